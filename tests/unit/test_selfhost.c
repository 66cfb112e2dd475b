/* The parts of examples/selfhost.c that can be tried without sockets: HPACK, rules, names, the
 * reading of requests, map messages against a model of a client, and the relay's queue. */
#define main selfhost_main
#include "examples/selfhost.c"
#undef main
#include "tn_test.h"

static host H;
static conn C;

static void fresh(uint32_t max_nodes)
{
    free(H.nodes);
    free(H.conns);
    memset(&H, 0, sizeof H);
    H.opt.max_nodes   = max_nodes;
    H.opt.domain      = "tail.lab";
    H.opt.url         = "https://127.0.0.1:8443";
    H.opt.keepalive_s = 50;
    H.opt.ephemeral_s = 30;
    H.nodes   = (node *)calloc(max_nodes, sizeof(node));
    H.now_ms  = 1000;
    H.wall_ms = 1790000000000u;
    H.next_id = 1;
    strcpy(H.regions[0].name, "127.0.0.1");
    H.regions[0].port = 8443;
    H.region_count    = 1;
    huffman_init(&H.huff);
    (void)add_rule(&H, "*>*:*");
}

static node *join(const char *name)
{
    uint8_t key[32];
    node   *n;
    size_t  i;
    for (i = 0; i < 32; i++) key[i] = (uint8_t)tn_test_random();
    n = node_add(&H, key);
    if (n == NULL) return NULL;
    strcpy(n->host, name);
    choose_name(&H, n, name);
    node_set_key(&H, n, key);
    n->shown = true;
    changed(&H, n, PART_WHOLE);
    return n;
}

/* ---- HPACK: the examples of RFC 7541, appendix C ---- */

static bool decode(hp_table *t, const char *hex, hp_head *head)
{
    uint8_t block[512];
    return hp_decode(&H.huff, t, block, tn_test_hex(block, sizeof block, hex), head);
}

static bool newest(const hp_table *t, const char *name, const char *value)
{
    static hp_text n, v;
    return hp_look(t, HP_STATIC + 1, &n, &v) && tn_is(n.text, n.len, name) &&
           tn_is(v.text, v.len, value);
}

static void hpack_requests(void)
{
    static const char *const plain[3] = {
        "828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565"
    };
    static const char *const coded[3] = {
        "828684418cf1e3c2e5f23a6ba0ab90f4ff", "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"
    };
    static const char *const paths[3] = { "/", "/", "/index.html" };
    static const size_t      sizes[3] = { 57, 110, 164 };
    hp_table t;
    hp_head  head;
    int      way, i;
    fresh(4);
    for (way = 0; way < 2; way++) {
        memset(&t, 0, sizeof t);
        t.limit = HP_TABLE;
        for (i = 0; i < 3; i++) {
            CHECK(decode(&t, way == 0 ? plain[i] : coded[i], &head));
            CHECK(strcmp(head.method, "GET") == 0 && strcmp(head.path, paths[i]) == 0);
            CHECK(t.size == sizes[i]);
        }
        CHECK(newest(&t, "custom-key", "custom-value"));
    }
}

/* Appendix C.5 and C.6: a table of 256 bytes, so entries go. */
static void hpack_evicts(void)
{
    static const char *const plain[3] = {
        "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
        "6e1768747470733a2f2f7777772e6578616d706c652e636f6d",
        "4803333037c1c0bf",
        "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f"
        "3d4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b2076"
        "657273696f6e3d31"
    };
    static const char *const coded[3] = {
        "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad1718"
        "63c78f0b97c8e9ae82ae43d3",
        "4883640effc1c0bf",
        "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335df"
        "dfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007"
    };
    static const size_t sizes[3] = { 222, 222, 215 };
    hp_table t;
    hp_head  head;
    int      way, i;
    fresh(4);
    for (way = 0; way < 2; way++) {
        memset(&t, 0, sizeof t);
        t.limit = 256;
        for (i = 0; i < 3; i++) {
            CHECK(decode(&t, way == 0 ? plain[i] : coded[i], &head));
            CHECK(t.size == sizes[i]);
        }
        CHECK(newest(&t, "set-cookie",
                     "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"));
    }
}

/* Each symbol's code by the table of lengths; three of them are in the standard's text. */
static void huffman_round_trip(void)
{
    static hp_text out;
    uint32_t codes[257];
    unsigned i, j, len;
    fresh(4);
    for (len = 1; len <= 30; len++)
        for (i = 0; i < H.huff.count[len]; i++)
            codes[H.huff.symbol[H.huff.index[len] + i]] = H.huff.first[len] + i;
    CHECK(codes['0'] == 0 && codes['a'] == 3 && codes[0] == 0x1ff8 && codes[256] == 0x3fffffff);
    for (i = 0; i < 257; i++) {
        uint8_t  b[8];
        uint64_t bits = (uint64_t)codes[i] << (64 - hp_lengths[i]);
        bits |= UINT64_MAX >> hp_lengths[i];
        for (j = 0; j < 8; j++) b[j] = (uint8_t)(bits >> (56 - 8 * j));
        out.len = 0;
        CHECK(hp_huffman(&H.huff, b, (hp_lengths[i] + 7u) / 8u, &out) == (i < 256));
        if (i < 256) CHECK(out.len == 1 && (uint8_t)out.text[0] == i);
        out.len = 0;
        CHECK(!hp_huffman(&H.huff, b, (hp_lengths[i] + 7u) / 8u + 1, &out));    /* too much padding */
    }
}

static void hpack_refuses(void)
{
    static const char *const bad[] = {
        "80",                               /* index 0                                    */
        "be",                               /* nothing in the table                       */
        "3fe21f",                           /* a size above 4,096                         */
        "82ffffffff0f",                     /* a number without end                       */
        "44", "4405", "4405616263",         /* cut                                        */
        "448100",                           /* padding of zeroes                          */
        "4484ffffffff"                      /* the end symbol                             */
    };
    hp_table t;
    hp_head  head;
    size_t   i;
    uint8_t  block[64];
    fresh(4);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memset(&t, 0, sizeof t);
        t.limit = HP_TABLE;
        CHECK(!decode(&t, bad[i], &head));
    }
    for (i = 0; i < 20000; i++) {           /* whatever comes, the table stays in order   */
        size_t n = (size_t)(tn_test_random() % sizeof block), j, used = 0;
        if (i % 50 == 0) memset(&t, 0, sizeof t);
        if (i % 50 == 0) t.limit = HP_TABLE;
        for (j = 0; j < n; j++)
            block[j] = (uint8_t)(tn_test_random() % 3 == 0 ? 0x40 + tn_test_random() % 4
                                                           : tn_test_random());
        (void)hp_decode(&H.huff, &t, block, n, &head);
        for (j = 0; j < t.count; j++) used += (size_t)t.entry[j].name_len + t.entry[j].value_len;
        CHECK(used == t.used && t.size == used + HP_ENTRY * t.count && t.size <= t.limit);
    }
}

/* ---- rules, names ---- */

static void rules(void)
{
    static const char *const good[] = {
        "*>*:*", "alpha>beta:7/udp", "tag:a>tag:b:80,90-95/tcp", "10.0.0.0/8>100.64.0.1:*/icmp",
        "fd7a::1>fd7a::2:53", "a>10.0.0.0/8:1-2/132"
    };
    static const char *const bad[] = { "", ">", "a>b", "a:1", ">b:1", "a>:1", "a>b:1/xyz",
                                       "a>b:1/256", "a>10.0.0.0/8" };
    rule        r;
    size_t      i;
    uint64_t    first, last;
    const char *at = "7,80-90,*";
    for (i = 0; i < sizeof good / sizeof good[0]; i++) CHECK(rule_parse(&r, good[i]));
    CHECK(strcmp(r.dst, "10.0.0.0/8") == 0 && strcmp(r.ports, "1-2") == 0);
    CHECK(strcmp(r.proto, "132") == 0);
    CHECK(rule_parse(&r, "tag:a>tag:b:80/tcp") && strcmp(r.dst, "tag:b") == 0);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) CHECK(!rule_parse(&r, bad[i]));
    CHECK(next_ports(&at, &first, &last) && first == 7 && last == 7);
    CHECK(next_ports(&at, &first, &last) && first == 80 && last == 90);
    CHECK(next_ports(&at, &first, &last) && first == 0 && last == 65535);
    CHECK(!next_ports(&at, &first, &last));
}

static void names(void)
{
    fresh(8);
    CHECK(strcmp(join("Alpha")->name, "alpha") == 0);
    CHECK(strcmp(join("alpha.example.com")->name, "alpha-1") == 0);
    CHECK(strcmp(join("")->name, "node") == 0);
    CHECK(strcmp(join("--- my box! ---")->name, "my-box") == 0);
    CHECK(strcmp(join("alpha")->name, "alpha-2") == 0);
    CHECK(has_tag("tag:a,tag:bb", "tag:bb", 6) && !has_tag("tag:a,tag:bb", "tag:b", 5));
}

static void base64(void)
{
    uint8_t b[3];
    CHECK(base64_parse(b, 3, "AQID") && b[0] == 1 && b[1] == 2 && b[2] == 3);
    CHECK(base64_parse(b, 2, "AQI=") && b[1] == 2);
    CHECK(!base64_parse(b, 2, "AQID") && !base64_parse(b, 3, "AQI=") && !base64_parse(b, 3, "AQ!D"));
}

/* ---- requests ---- */

static const char map_request[] =
    "{\"Version\":142,\"Compress\":\"zstd\",\"KeepAlive\":true,\"NodeKey\":\"nodekey:"
    "1111111111111111111111111111111111111111111111111111111111111111\",\"DiscoKey\":\"discokey:"
    "2222222222222222222222222222222222222222222222222222222222222222\",\"Stream\":true,"
    "\"Hostinfo\":{\"Hostname\":\"go\\u00e4\",\"OS\":\"linux\",\"RequestTags\":[\"tag:a\",\"tag:b\"],"
    "\"Services\":[{\"Proto\":\"peerapi4\",\"Port\":80,\"Description\":\"x\"},"
    "{\"Proto\":\"peerapi-dns-proxy\",\"Port\":1},{\"Proto\":\"peerapi6\",\"Port\":81}],"
    "\"NetInfo\":{\"WorkingUDP\":null,\"DERPLatency\":{\"900-v4\":0.1},\"PreferredDERP\":900}},"
    "\"Endpoints\":[\"192.0.2.1:41641\",\"[2001:db8::1]:41641\",\"nonsense\"],\"EndpointTypes\":[1,1]}";

static void read_request(request *q, const char *text, size_t cut)
{
    tn_js  js;
    size_t len = strlen(text), at, n;
    memset(q, 0, sizeof *q);
    tn_js_init(&js);
    for (at = 0; at < len; at += n) {
        n = len - at < cut ? len - at : cut;
        request_feed(q, &js, text + at, n);
    }
    q->bad = q->bad || !tn_js_done(&js);
}

static void requests(void)
{
    request q, whole;
    size_t  cut;
    read_request(&whole, map_request, sizeof map_request);
    CHECK(!whole.bad && whole.version == 142 && whole.zstd && whole.stream && whole.home == 900);
    CHECK(whole.key[0] == 0x11 && whole.disco[31] == 0x22 && whole.api4 == 80 && whole.api6 == 81);
    CHECK(strcmp(whole.host, "go??") == 0 && strcmp(whole.tags, "tag:a,tag:b") == 0);
    CHECK(whole.endpoint_count == 2 && whole.endpoints[1].family == 6 && whole.has_hostinfo);
    for (cut = 1; cut < 40; cut++) {
        read_request(&q, map_request, cut);
        CHECK(memcmp(&q, &whole, sizeof q) == 0);
    }
    read_request(&q, "{\"Version\":138,\"Auth\":{\"AuthKey\":\"k\"},\"Expiry\":\"1970-01-01T00:02:03Z\"}", 7);
    CHECK(!q.bad && strcmp(q.auth, "k") == 0 && q.expiry_ms == 123000);
    read_request(&q, "[]", 2);
    CHECK(q.bad);
    read_request(&q, "{\"NodeKey\":\"nodekey:12\"}", 3);
    CHECK(q.bad);
    read_request(&q, "{\"Version\":1", 3);
    CHECK(q.bad);
}

/* ---- map messages: a client that applies what it is told has to end up knowing what is ---- */

enum { MODEL = 4096 };

typedef struct model {
    uint8_t  text[1 << 20];                 /* one message                                */
    size_t   len, messages, longest;
    char     names[MODEL][NAME];            /* by id, "" unknown; synthetic ones follow   */
    bool     online[MODEL];
    uint32_t synthetic;
    size_t   rules;
    bool     has_node;
} model;

static model M;

/* The text of a zstd frame of raw blocks, checked as a decoder would. */
static bool unpack(const uint8_t *src, size_t len)
{
    tn_rd          r;
    uint32_t       size, head, n;
    const uint8_t *b;
    tn_rd_over(&r, src, len);
    CHECK(tn_rd_u32le(&r) == 0xfd2fb528ul && tn_rd_u8(&r) == 0xa0);
    size  = tn_rd_u32le(&r);
    M.len = 0;
    do {
        head = tn_rd_u8(&r);
        head |= (uint32_t)tn_rd_u8(&r) << 8;
        head |= (uint32_t)tn_rd_u8(&r) << 16;
        n = head >> 3;
        if ((head & 6) != 0 || (b = tn_rd_bytes(&r, n)) == NULL) return false;
        memcpy(M.text + M.len, b, n);
        M.len += n;
    } while ((head & 1) == 0);
    return r.left == 0 && M.len == size;
}

static void apply(void)
{
    tn_js       js;
    tn_js_event ev;
    char        member[32] = "";
    int64_t     id = 0;
    tn_js_init(&js);
    tn_js_feed(&js, M.text, M.len);
    while ((ev = tn_js_next(&js)) > TN_JS_MORE) {
        bool peers = strcmp(member, "Peers") == 0 || strcmp(member, "PeersChanged") == 0;
        if (js.depth == 1 && js.key_len != 0 && js.key_len < sizeof member)
            tn_text_copy(member, sizeof member, js.key, js.key_len);
        if (js.depth == 1 && ev == TN_JS_OBJECT && tn_js_is_key(&js, "Node")) M.has_node = true;
        if (strcmp(member, "PacketFilters") == 0 && js.depth == 2 && ev == TN_JS_ARRAY) M.rules = 0;
        if (strcmp(member, "PacketFilters") == 0 && js.depth == 3 && ev == TN_JS_OBJECT) M.rules++;
        if (js.depth == 3 && ev == TN_JS_NUMBER &&
            (tn_js_is_key(&js, "ID") || tn_js_is_key(&js, "NodeID")))
            CHECK(tn_js_int(&js, &id));
        if (peers && js.depth == 3 && ev == TN_JS_NUMBER && tn_js_is_key(&js, "ID") && id >= BIG_ID)
            M.synthetic++;
        if (peers && js.depth == 3 && ev == TN_JS_STRING && tn_js_is_key(&js, "Name") && id < MODEL)
            tn_text_copy(M.names[id], NAME, js.text, js.text_len);
        if ((peers || strcmp(member, "PeersChangedPatch") == 0) && js.depth == 3 && id < MODEL &&
            tn_js_is_key(&js, "Online"))
            M.online[id] = ev == TN_JS_TRUE;
        if (strcmp(member, "PeersRemoved") == 0 && js.depth == 2 && ev == TN_JS_NUMBER) {
            CHECK(tn_js_int(&js, &id));
            if (id >= BIG_ID) M.synthetic--;
            else              M.names[id][0] = '\0';
        }
    }
    CHECK(ev != TN_JS_ERROR && tn_js_done(&js));
}

/* Takes one message from the session, in bites of any size, while others may change the world. */
static bool take_message(session *m, void (*meanwhile)(void))
{
    static uint8_t raw[1 << 20];
    size_t         have = 0, want = 4;
    while (have < want) {
        size_t n;
        if (m->from == m->to && m->left != 0) session_fill(&H, m);
        else if (m->from == m->to && have == 0) session_begin(&H, m);
        if (m->from == m->to) return false;
        n = 1 + (size_t)(tn_test_random() % 5000);
        if (n > m->to - m->from) n = m->to - m->from;
        memcpy(raw + have, m->piece + m->from, n);
        m->from += n;
        have += n;
        if (have >= 4 && want == 4) {
            tn_rd r;
            tn_rd_over(&r, raw, 4);
            want = 4 + (size_t)tn_rd_u32le(&r);
            CHECK(want < sizeof raw);
        }
        if (meanwhile != NULL && tn_test_random() % 4 == 0) meanwhile();
    }
    CHECK(have == want && m->from == m->to && m->left == 0);
    if (m->zstd) CHECK(unpack(raw + 4, want - 4));
    else         memcpy(M.text, raw + 4, M.len = want - 4);
    M.messages++;
    if (want > M.longest) M.longest = want;
    return true;
}

static void begin_session(session *m, node *self, bool zstd)
{
    memset(m, 0, sizeof *m);
    memset(C.told, 0, H.opt.max_nodes * sizeof(told));
    memset(&M, 0, sizeof M);
    m->told         = C.told;
    m->slot         = slot_of(&H, self);
    m->id           = self->id;
    m->first        = true;
    m->zstd         = zstd;
    m->keepalive_ms = TN_NEVER;
}

static bool model_is_right(const session *m)
{
    uint32_t i;
    char     text[NAME + 32];
    bool     known[MODEL] = { false };
    for (i = 0; i < H.opt.max_nodes; i++) {
        const node *n = &H.nodes[i];
        if (n->id == 0 || i == m->slot) continue;
        snprintf(text, sizeof text, "%s.tail.lab.", n->name);
        if (strncmp(M.names[n->id], text, NAME - 1) != 0 || M.online[n->id] != is_online(n)) {
            printf("node %lu is %s, known as %s\n", (unsigned long)n->id, text, M.names[n->id]);
            return false;
        }
        known[n->id] = true;
    }
    for (i = 0; i < MODEL; i++)
        if (M.names[i][0] != '\0' && !known[i]) return false;
    return M.synthetic == H.big;
}

/* Something happens to a node that is not the first one. */
static void happening(void)
{
    node *n = &H.nodes[1 + tn_test_random() % (H.opt.max_nodes - 1)];
    char  name[NAME];
    snprintf(name, sizeof name, "n%lu", (unsigned long)(tn_test_random() % 1000));
    switch (tn_test_random() % 8) {
    case 0: case 1:
        if (H.next_id < MODEL) (void)join(name);
        break;
    case 2:
        if (n->id != 0) forget_node(&H, n);
        break;
    case 3: case 4:
        if (n->id == 0) break;
        n->polls = n->polls == 0;
        changed(&H, n, PART_ONLINE);
        break;
    case 5:
        if (n->id == 0) break;
        choose_name(&H, n, name);
        changed(&H, n, PART_WHOLE);
        break;
    case 6:
        if (n->id != 0) changed(&H, n, PART_PATHS);
        break;
    default: H.big = (uint32_t)(tn_test_random() % 40); H.clock++; break;
    }
}

static void maps_in_any_order(void)
{
    static session m;
    int            round, i;
    for (round = 0; round < 40; round++) {
        fresh(64);
        free(C.told);
        C.told = (told *)calloc(64, sizeof(told));
        (void)join("self");
        for (i = 0; i < 30; i++) happening();
        H.big_before = round % 4 < 2 ? 0u : 20u;    /* as --peers puts them               */
        begin_session(&m, &H.nodes[0], round % 2 == 1);
        for (i = 0; i < 60; i++) {
            happening();
            if (tn_test_random() % 3 == 0 && take_message(&m, happening)) apply();
        }
        while (take_message(&m, NULL)) apply();
        CHECK(M.has_node && M.rules == 1 && model_is_right(&m));
        CHECK(M.longest > 8192);
    }
}

static bool says(const char *start)
{
    return tn_begins((const char *)M.text, M.len, start);
}

/* One change is one small message; no change is none; a keep-alive has its known form. */
static void maps_say_little(void)
{
    static session m;
    node          *self, *peer;
    fresh(8);
    free(C.told);
    C.told = (told *)calloc(8, sizeof(told));
    self = join("self");
    begin_session(&m, self, false);
    CHECK(take_message(&m, NULL));
    apply();
    CHECK(!take_message(&m, NULL));
    peer = join("peer");
    H.policy_clock = m.policy_seen;
    CHECK(take_message(&m, NULL) && says("{\"PeersChanged\":[{\"ID\":2,"));
    peer->polls = 1;
    changed(&H, peer, PART_ONLINE);
    CHECK(take_message(&m, NULL) &&
          says("{\"PeersChangedPatch\":[{\"NodeID\":2,\"Online\":true}],\"ControlTime\""));
    CHECK(!take_message(&m, NULL));
    m.keepalive = true;
    CHECK(take_message(&m, NULL) && M.len == 18 && says("{\"KeepAlive\":true}"));
    H.rule_count = 0;
    names_changed(&H);
    CHECK(take_message(&m, NULL) && says("{\"PacketFilters\":{\"base\":[]},"));
    (void)add_rule(&H, "peer>self:7/udp");
    (void)add_rule(&H, "self>peer:7/udp");
    CHECK(take_message(&m, NULL));
    M.text[M.len] = '\0';
    CHECK(strstr((char *)M.text, "[{\"SrcIPs\":[\"100.64.0.2\",\"fd7a:115c:a1e0::2\"],\"DstPorts\":"
                                 "[{\"IP\":\"100.64.0.1\",\"Ports\":{\"First\":7,\"Last\":7}},"
                                 "{\"IP\":\"fd7a:115c:a1e0::1\",\"Ports\":{\"First\":7,\"Last\":7}}],"
                                 "\"IPProto\":[17]}]}") != NULL);
}

/* ---- the relay's queue: whatever is dropped, what comes out are whole frames in order ---- */

static void queue_keeps_frames(void)
{
    static uint8_t big[70000], got[70100];
    uint8_t       *room;
    size_t         have = 0, i, n;
    uint32_t       number = 0, last = 0, seen = 0;
    tn_wr          w;
    fresh(4);
    if (C.b == NULL) C.b = (body *)calloc(1, sizeof(body));
    C.stage = AT_RELAY;
    C.from = C.to = C.frame = 0;
    out_put(&C, "HTTP/1.1 101\r\n\r\n", 16);
    C.frame = C.to;
    took_out(&C, 7);
    took_out(&C, 9);
    CHECK(C.to == 0);
    for (i = 0; i < 60000; i++) {
        n = tn_test_random() % 50 == 0 ? 65536 : (size_t)(tn_test_random() % 1500);
        if (n < 4) n = 4;
        if (tn_test_random() % 3 != 0) {
            tn_put_u32be(big, ++number);
            room = frame_room(&H, &C, 5 + n);
            CHECK(room != NULL);
            tn_wr_over(&w, room, 5 + n);
            tn_wr_u8(&w, 5);
            tn_wr_u32be(&w, (uint32_t)n);
            tn_wr_bytes(&w, big, n);
            C.to += 5 + n;
        }
        n = (size_t)(tn_test_random() % 1600);
        if (n > C.to - C.from) n = C.to - C.from;
        while (n != 0) {                    /* the reader collects frames                 */
            size_t want = have < 5 ? 5 : 5 + (size_t)tn_get_u32be(got + 1), take = want - have;
            if (take > n) take = n;
            memcpy(got + have, C.b->out + C.from, take);
            took_out(&C, take);
            have += take;
            n -= take;
            CHECK(have < 5 || (got[0] == 5 && tn_get_u32be(got + 1) <= 65536));
            if (!tn_test_ok) return;
            if (have < 9 || have < 5 + (size_t)tn_get_u32be(got + 1)) continue;
            CHECK(tn_get_u32be(got + 5) > last);
            last = tn_get_u32be(got + 5);
            seen++;
            have = 0;
        }
    }
    CHECK(H.dropped > 0 && seen > 1000);
    CHECK(frame_room(&H, &C, OUT_MAX + 1) == NULL);
}

/* ---- state ---- */

static void state_survives(void)
{
    char  path[] = "/tmp/test_selfhost.XXXXXX";
    int   fd = mkstemp(path);
    node *n;
    CHECK(fd >= 0);
    close(fd);
    unlink(path);
    fresh(8);
    H.opt.state = path;
    load_state(&H);
    n = join("alpha beta\n");
    strcpy(n->tags, "tag:a");
    n->expired = true;
    (void)join("other");
    forget_node(&H, node_by_name(&H, "other"));
    save_state(&H);
    {
        uint8_t noise[32], key[32];
        memcpy(noise, H.noise_public, 32);
        memcpy(key, n->key, 32);
        fresh(8);
        H.opt.state = path;
        load_state(&H);
        n = node_by_key(&H, key);
        CHECK(memcmp(noise, H.noise_public, 32) == 0 && n != NULL && n->id == 1 && H.next_id == 3);
        CHECK(n != NULL && n->expired && strcmp(n->tags, "tag:a") == 0 && strcmp(n->os, "") == 0);
        CHECK(n != NULL && strcmp(n->host, "alpha beta\n") == 0);
    }
    unlink(path);
}

int main(void)
{
    TEST(hpack_requests);
    TEST(hpack_evicts);
    TEST(huffman_round_trip);
    TEST(hpack_refuses);
    TEST(rules);
    TEST(names);
    TEST(base64);
    TEST(requests);
    TEST(maps_in_any_order);
    TEST(maps_say_little);
    TEST(queue_keeps_frames);
    TEST(state_survives);
    free(H.nodes);
    free(C.told);
    free(C.b);
    return tn_test_end();
}
