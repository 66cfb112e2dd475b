/* Names: the codec with every truncation and the limits of labels and names; the names
 * that are addresses; the whole table of answers from a map; the resolver inside the
 * packet path. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* ---- questions, and answers as text ---- */

static uint8_t query[600], answer[TN_DNS_ANSWER_MAX];
static size_t  query_len, answer_len;
static char    said[1200];

/* A question: flags, name with dots, type, and the number of OPT records behind it. */
static void ask_as(unsigned flags, const char *name, unsigned type, unsigned net, unsigned opts,
                   uint32_t opt)
{
    tn_wr w;
    tn_wr_over(&w, query, sizeof query);
    tn_wr_u16be(&w, 0xbeef);
    tn_wr_u16be(&w, flags);
    tn_wr_u16be(&w, 1);
    tn_wr_u32be(&w, 0);
    tn_wr_u16be(&w, opts);
    if (*name == '\0') tn_wr_u8(&w, 0);
    else tn_dns_wr_name(&w, name);
    tn_wr_u16be(&w, type);
    tn_wr_u16be(&w, net);
    for (; opts != 0; opts--) {
        tn_wr_u8(&w, 0);
        tn_wr_u16be(&w, 41);
        tn_wr_u16be(&w, 4096);
        tn_wr_u32be(&w, opt);
        tn_wr_u16be(&w, 0);
    }
    CHECK(tn_wr_ok(&w));
    query_len = tn_wr_len(&w);
}

static void ask(const char *name, unsigned type) { ask_as(0x0100, name, type, 1, 0, 0); }

static void add(const char *text) { strncat(said, text, sizeof said - strlen(said) - 1); }

static void add_number(const char *before, uint32_t v)
{
    char text[48];
    snprintf(text, sizeof text, "%s%lu", before, (unsigned long)v);
    add(text);
}

/* A name of the answer; pointers only backwards. */
static void add_name(const uint8_t *msg, size_t len, tn_rd *r)
{
    tn_rd    at = *r;
    bool     away = false;
    size_t   limit = len;
    unsigned n;
    while ((n = tn_rd_u8(&at)) != 0) {
        char label[70] = "";
        if (n >= 0xc0) {
            size_t to = (n & 0x3fu) << 8 | tn_rd_u8(&at);
            if (!away) *r = at;
            away = true;
            CHECK(to < limit && to >= 12);
            if (to >= limit) return;
            limit = to;
            tn_rd_over(&at, msg + to, len - to);
            continue;
        }
        CHECK(n < 64);
        tn_rd_copy(&at, label, n < 64 ? n : 0);
        add(label);
        add(".");
    }
    CHECK(tn_rd_ok(&at));
    if (!away) *r = at;
}

static void add_record(const uint8_t *msg, size_t len, tn_rd *r)
{
    unsigned type, net, size;
    uint32_t ttl;
    size_t   left;
    char     text[80] = "";
    tn_wr    w;
    tailnet_addr a;

    add(" | ");
    add_name(msg, len, r);
    type = tn_rd_u16be(r);
    net  = tn_rd_u16be(r);
    ttl  = tn_rd_u32be(r);
    size = tn_rd_u16be(r);
    left = r->left;
    CHECK(size <= left);
    memset(&a, 0, sizeof a);
    a.family = type == 1 ? 4 : 6;
    tn_wr_over(&w, text, sizeof text - 1);
    if (type == 41) {
        CHECK(net == TN_DNS_UDP_SIZE && size == 0);
        snprintf(text, sizeof text, "OPT %08lx", (unsigned long)ttl);
    } else if (type == 1 || type == 28) {
        CHECK(net == 1 && size == tn_ip_len(a.family));
        tn_rd_copy(r, a.ip, tn_ip_len(a.family));
        tn_wr_ip(&w, &a);
    } else if (type == 12) {
        add(" PTR ");
        add_name(msg, len, r);
    } else {
        CHECK(type == 6 && net == 1);
        add(" SOA ");
        add_name(msg, len, r);
        add(" ");
        add_name(msg, len, r);
        (void)tn_rd_bytes(r, 16);
        CHECK(ttl == tn_rd_u32be(r));
    }
    CHECK(left - r->left == size);
    if (*text != '\0') add(" ");
    add(text);
    if (type != 41) add_number(" ", ttl);
}

/* The answer as text: rcode, flags that are not usual, the records. */
static void read_answer(void)
{
    tn_rd    r;
    unsigned flags, qd, count;
    tn_rd_over(&r, answer, answer_len);
    said[0] = '\0';
    CHECK(tn_rd_u16be(&r) == 0xbeef);
    flags = tn_rd_u16be(&r);
    qd    = tn_rd_u16be(&r);
    count = tn_rd_u16be(&r);
    count += tn_rd_u16be(&r);
    CHECK(count <= 1);
    count += tn_rd_u16be(&r);
    add_number("", flags & 15u);
    CHECK((flags & 0x8670u) == 0x8400);     /* response, authoritative, whole, no others */
    CHECK(((flags >> 8 ^ query[2]) & 0x79u) == 0);
    CHECK((flags >> 7 & 1u) == (query[2] & 1u));
    if (qd == 1) {
        size_t at = r.left;
        tn_rd  q  = r;
        char   keep[1200];
        strcpy(keep, said);
        add_name(answer, answer_len, &q);
        strcpy(said, keep);
        (void)tn_rd_u32be(&q);
        CHECK(12 + at - q.left <= query_len);
        CHECK_BYTES(answer + 12, query + 12, at - q.left);
        r = q;
    } else {
        add(" bare");
    }
    for (; count != 0; count--) add_record(answer, answer_len, &r);
    CHECK(tn_rd_ok(&r) && r.left == 0);
}

/* Parses the query and answers it with what is given. */
static tailnet_result echo(const tn_dns_answer *a)
{
    tn_dns_question q;
    tn_dns_answer   b = *a;
    tn_wr           w;
    tailnet_result  r = tn_dns_parse(&q, query, query_len);
    if (r != TAILNET_OK) return r;
    if (q.rcode != TN_DNS_OK) {
        memset(&b, 0, sizeof b);
        b.rcode = q.rcode;
    }
    tn_wr_over(&w, answer, sizeof answer);
    tn_dns_wr_answer(&w, &q, &b);
    CHECK(tn_wr_ok(&w));
    answer_len = tn_wr_len(&w);
    read_answer();
    return r;
}

static bool echoes(const char *text)
{
    tn_dns_answer a;
    memset(&a, 0, sizeof a);
    a.addr.family = 4;
    a.addr.ip[0]  = 9;
    if (echo(&a) != TAILNET_OK) return *text == '\0';
    if (strcmp(said, text) == 0) return true;
    printf("said %s\n", said);
    return false;
}

/* ---- the codec ---- */

static void question(void)
{
    tn_dns_question q;
    ask("HoSt.Example", 1);
    CHECK(tn_dns_parse(&q, query, query_len) == TAILNET_OK && q.rcode == 0 && q.id == 0xbeef);
    CHECK(q.len == 12 && strcmp(q.name, "host.example") == 0 && q.type == 1 && q.net == 1 && !q.edns);
    CHECK(q.wire == query + 12 && q.wire_len == query_len - 12);
    CHECK(echoes("0 | HoSt.Example. 9.0.0.0 5"));
    ask("", 2);
    CHECK(tn_dns_parse(&q, query, query_len) == TAILNET_OK && q.rcode == 0 && q.len == 0 && q.name[0] == '\0');
    ask_as(0, "a", 1, 1, 0, 0);
    CHECK(echoes("0 | a. 9.0.0.0 5"));
    query[query_len++] = 7;                 /* what follows the last record is not looked at */
    CHECK(echoes("0 | a. 9.0.0.0 5"));
}

static void truncations(void)
{
    size_t n, whole, name_end;
    ask_as(0x0100, "some.host.example", 28, 1, 1, 0);
    whole    = query_len;
    name_end = whole - 11;
    for (n = 0; n < whole; n++) {
        query_len = n;
        CHECK(echoes(n < 12 ? "" : n < name_end ? "1 bare" : "1"));
    }
}

static void heads(void)
{
    unsigned i, at;
    ask("a.b", 1);
    for (i = 1; i < 16; i++) {              /* operations */
        query[2] = (uint8_t)(i << 3 | 1);
        CHECK(echoes("4 bare"));
    }
    query[2] = 0x81;                        /* an answer is never answered */
    CHECK(echoes(""));
    query[2] = 1;
    for (i = 0; i < 4; i++) {               /* numbers of questions */
        query[5] = (uint8_t)i;
        CHECK(echoes(i == 1 ? "0 | a.b. 9.0.0.0 5" : "1 bare"));
    }
    query[5] = 1;
    for (at = 6; at < 12; at++) {           /* records that are not there */
        query[at] = 0xff;
        CHECK(echoes("1"));
        query[at] = 0;
    }
}

static void edns(void)
{
    static const uint8_t other[] = { 1, 'x', 0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 9, 0, 2, 1, 'y' };
    ask_as(0x0100, "a", 1, 1, 1, 0);
    CHECK(echoes("0 | a. 9.0.0.0 5 |  OPT 00000000"));
    ask_as(0x0100, "a", 1, 1, 1, 0x8000u);  /* DO comes back (RFC 3225) */
    CHECK(echoes("0 | a. 9.0.0.0 5 |  OPT 00008000"));
    ask_as(0x0100, "a", 1, 1, 1, 0x10000u); /* another version: BADVERS */
    CHECK(echoes("0 |  OPT 01000000"));
    ask_as(0x0100, "a", 1, 1, 2, 0);        /* two of them */
    CHECK(echoes("1 |  OPT 00000000"));
    ask_as(0x0100, "a", 1, 1, 1, 0);
    query[query_len - 11] = 0xc0;           /* not the root's */
    CHECK(echoes("1"));
    ask("a", 1);                            /* other records are passed over */
    query[11] = 1;
    memcpy(query + query_len, other, sizeof other);
    query_len += sizeof other;
    CHECK(echoes("0 | a. 9.0.0.0 5"));
    query[query_len - 3] = 3;
    CHECK(echoes("1"));
    query[query_len - 3]             = 2;
    query[query_len - sizeof other]  = 64;  /* a label that is none */
    CHECK(echoes("1"));
}

/* A question whose name is count labels of the given lengths, raw. */
static void raw(const uint8_t *lengths, size_t count)
{
    tn_wr  w;
    size_t i;
    unsigned n;
    ask("", 1);
    tn_wr_over(&w, query + 12, sizeof query - 12);
    for (i = 0; i < count; i++) {
        tn_wr_u8(&w, lengths[i]);
        for (n = 0; n < lengths[i]; n++) tn_wr_u8(&w, 'a');
    }
    tn_wr_u8(&w, 0);
    tn_wr_u32be(&w, 0x00010001u);
    query_len = 12 + tn_wr_len(&w);
}

static void limits(void)
{
    static const uint8_t l63[] = { 63 }, l64[] = { 64 }, l128[] = { 128 }, l191[] = { 191 };
    static const uint8_t l255[] = { 63, 63, 63, 61 }, l256[] = { 63, 63, 63, 62 };
    uint8_t         ones[128];
    tn_dns_question q;
    char            text[300];
    size_t          i;
    memset(ones, 1, sizeof ones);
    raw(l63, 1);
    CHECK(tn_dns_parse(&q, query, query_len) == TAILNET_OK && q.rcode == 0 && q.len == 63);
    raw(l64, 1);
    CHECK(echoes("1 bare"));
    raw(l128, 1);
    CHECK(echoes("1 bare"));
    raw(l191, 1);
    CHECK(echoes("1 bare"));
    raw(l255, 4);
    CHECK(tn_dns_parse(&q, query, query_len) == TAILNET_OK && q.rcode == 0 && q.len == 253 && q.wire_len == 259);
    raw(l256, 4);
    CHECK(echoes("1 bare"));
    raw(ones, 127);
    CHECK(tn_dns_parse(&q, query, query_len) == TAILNET_OK && q.rcode == 0 && q.len == 253);
    raw(ones, 128);
    CHECK(echoes("1 bare"));
    memset(text, 'a', sizeof text);
    for (i = 0; i < 256; i++) {             /* the same for names that we write */
        text[i] = '\0';
        CHECK(tn_dns_name_ok(text) == (i != 0 && i <= 63));
        text[i] = 'a';
    }
    for (i = 60; i < 260; i += 60) text[i] = '.';
    text[253] = '\0';
    CHECK(tn_dns_name_ok(text));
    text[253] = 'a';
    text[254] = '\0';
    CHECK(!tn_dns_name_ok(text));
    CHECK(!tn_dns_name_ok(".") && !tn_dns_name_ok("a.") && !tn_dns_name_ok(".a") && !tn_dns_name_ok("a..b"));
}

static void hostile(void)
{
    size_t i;
    ask("ab.c", 1);
    query[12] = 0xc0;                       /* pointers: to itself, forwards, into the head */
    for (i = 0; i < 256; i++) {
        query[13] = (uint8_t)i;
        CHECK(echoes("1 bare"));
    }
    ask("ab.c", 1);
    query[15] = 0xc0;                       /* a loop behind a label */
    query[16] = 12;
    CHECK(echoes("1 bare"));
    ask("ab.c", 1);
    query[13] = '.';                        /* text cannot hold these two */
    CHECK(echoes("1 bare"));
    query[13] = 0;
    CHECK(echoes("1 bare"));
    query[13] = 0xff;                       /* but every other byte */
    CHECK(echoes("0 | \xff" "b.c. 9.0.0.0 5"));
}

/* The largest answers fit, also with the longest question. */
static void largest(void)
{
    static const uint8_t l255[] = { 63, 63, 63, 61 };
    tn_dns_answer a;
    char          target[254];
    size_t        zone;
    memset(&a, 0, sizeof a);
    raw(l255, 4);
    for (zone = 61; zone <= 253; zone += 64) {
        a.rcode    = TN_DNS_NXDOMAIN;
        a.zone_len = zone;
        CHECK(echo(&a) == TAILNET_OK && strstr(said, " SOA ") != NULL);
    }
    memset(target, 'b', 253);
    target[63] = target[127] = target[191] = '.';
    target[253] = '\0';
    ask_as(0x0100, "f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.f.ip6.arpa", 12, 1, 1, 0);
    memset(&a, 0, sizeof a);
    a.target = target;
    CHECK(tn_dns_name_ok(target) && echo(&a) == TAILNET_OK && strstr(said, " PTR ") != NULL);
}

static size_t under(const char *name, const char *zone) { return tn_dns_under(name, strlen(name), zone); }

static void zones(void)
{
    CHECK(under("a.t.net", "t.net") == 5 && under("a.t.net", "T.NET.") == 5 && under("t.net", "t.net") == 5);
    CHECK(under("at.net", "t.net") == 0 && under("net", "t.net") == 0 && under("a.t.net", "") == 0);
    CHECK(under("a.t.net", ".") == 0 && under("", "t.net") == 0 && under("a", "a.b") == 0);
}

/* ---- names that are addresses ---- */

static bool reverse(const char *name, const char *want)
{
    tailnet_addr a;
    char         text[64] = "";
    tn_wr        w;
    tn_wr_over(&w, text, sizeof text - 1);
    if (tn_dns_reverse(name, strlen(name), &a)) tn_wr_ip(&w, &a);
    return strcmp(text, want) == 0;
}

static void reverse_names(void)
{
    char   name[80] = "4.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa";
    size_t i;
    CHECK(reverse("4.3.2.1.in-addr.arpa", "1.2.3.4"));
    CHECK(reverse("3.2.1.in-addr.arpa", "") && reverse("5.4.3.2.1.in-addr.arpa", ""));
    CHECK(reverse("256.3.2.1.in-addr.arpa", "") && reverse("04.3.2.1.in-addr.arpa", ""));
    CHECK(reverse("in-addr.arpa", "") && reverse("4.3.2.1in-addr.arpa", "") && reverse("", ""));
    CHECK(reverse(name, "fd7a:115c:a1e0::34"));
    for (i = 0; i < 63; i++) {
        char was = name[i];
        name[i] = i % 2 == 0 ? 'g' : '1';
        CHECK(reverse(name, ""));
        name[i] = was;
    }
    CHECK(reverse(name + 2, "") && reverse("ip6.arpa", ""));
    CHECK(reverse("0.4.3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", ""));
    CHECK(tn_dns_reverse_zone(name, strlen(name)) == strlen("0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"));
    CHECK(tn_dns_reverse_zone("1.2.64.100.in-addr.arpa", 23) == 19);
    CHECK(tn_dns_reverse_zone("127.100.in-addr.arpa", 20) == 20);
    CHECK(tn_dns_reverse_zone("63.100.in-addr.arpa", 19) == 0 && tn_dns_reverse_zone("128.100.in-addr.arpa", 20) == 0);
    CHECK(tn_dns_reverse_zone("100.in-addr.arpa", 16) == 0 && tn_dns_reverse_zone("x.100.in-addr.arpa", 18) == 0);
    CHECK(tn_dns_reverse_zone(".100.in-addr.arpa", 17) == 0);
}

static bool via(const char *name, const char *want)
{
    tailnet_addr a;
    char         text[64] = "";
    tn_wr        w;
    tn_wr_over(&w, text, sizeof text - 1);
    if (tn_dns_via(name, strlen(name), &a)) tn_wr_ip(&w, &a);
    return strcmp(text, want) == 0;
}

static void via_names(void)
{
    CHECK(via("10-0-0-1-via-7", "fd7a:115c:a1e0:b1a:0:7:a00:1"));
    CHECK(via("10-0-0-1-via-0xff.tail1.ts.net", "fd7a:115c:a1e0:b1a:0:ff:a00:1"));
    CHECK(via("10-0-0-1-via-010.x.tailscale.net", "fd7a:115c:a1e0:b1a:0:8:a00:1"));
    CHECK(via("1-2-3-4-via-0b11", "fd7a:115c:a1e0:b1a:0:3:102:304"));
    CHECK(via("1-2-3-4-via-0o11", "fd7a:115c:a1e0:b1a:0:9:102:304"));
    CHECK(via("1-2-3-4-via-0", "fd7a:115c:a1e0:b1a::102:304"));
    CHECK(via("255-255-255-255-via-4294967295", "fd7a:115c:a1e0:b1a:ffff:ffff:ffff:ffff"));
    CHECK(via("255-255-255-255-via-4294967296", "") && via("1-2-3-4-via-0x100000000", ""));
    CHECK(via("1-2-3-4-via-", "") && via("1-2-3-4-via-0x", "") && via("1-2-3-4-via-09", "") &&
          via("1-2-3-4-via-f", ""));
    CHECK(via("1-2-3-4-via-7.example.com", "") && via("1-2-3-4-via-7.fakets.net", "") && via("1-2-3-via-7", ""));
    CHECK(via("1-2-3-4-5-via-7", "") && via("1-2-3-256-via-7", "") && via("01-2-3-4-via-7", "") && via("", ""));
    CHECK(via("1.2.3.4-via-7.ts.net", "") && via("--------", "") && via("aaaaaaaaaaaaaaaaaaaaaa-via-1", ""));
}

/* ---- a node with a map ---- */

static uint64_t      memory[12000];
static tailnet_node *node;
static tailnet_desc  desc;
static uint8_t       packet[700];
static size_t        packet_len, packets;

static uint64_t now(void *user) { (void)user; return 1000; }
static int random_bytes(void *user, void *dst, size_t size)
{
    (void)user;
    memset(dst, 7, size);
    return 0;
}
static int udp_output(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    (void)user;
    (void)to;
    (void)pkts;
    (void)count;
    CHECK(false);
    return 0;
}
static void ip_output(void *user, tailnet_buf *pkts, size_t count)
{
    (void)user;
    CHECK(count == 1 && pkts->len <= sizeof packet);
    packet_len = pkts->len;
    memcpy(packet, pkts->base + pkts->off, packet_len);
    packets++;
}
static int tcp_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    (void)user;
    (void)link;
    (void)dial;
    return 1;
}
static int32_t tcp_output(void *user, tailnet_link link, const void *data, size_t size)
{
    (void)user;
    (void)link;
    (void)data;
    (void)size;
    return -1;
}
static void tcp_close(void *user, tailnet_link link) { (void)user; (void)link; }

static void message(const char *json)
{
    tn_js       js;
    tn_js_event ev;
    uint16_t    index;
    uint8_t     kind;
    tn_js_init(&js);
    tn_js_feed(&js, json, strlen(json));
    while ((ev = tn_js_next(&js)) > TN_JS_MORE) {
        tn_map_result r = tn_map_take(&node->map, &node->flt, &js, ev, 1000);
        CHECK(r >= 0);
        while (tn_map_change(&node->map, &node->flt, &index, &kind, 1000)) {}
        if (r < 0) return;
    }
    CHECK(tn_js_done(&js));
}

#define PEER(id, name, addresses)                                                                                    \
    "{\"ID\":" #id ",\"Name\":\"" name "\",\"Key\":\"nodekey:"                                                       \
    "00000000000000000000000000000000000000000000000000000000000001" #id "\",\"DiscoKey\":\"discokey:"               \
    "00000000000000000000000000000000000000000000000000000000000002" #id "\",\"Addresses\":[" addresses              \
    "],\"HomeDERP\":1}"
#define L63 "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijk"
#define PEERS "\"Peers\":[" \
    PEER(11, "web.tail.Example.net.", "\"100.64.0.11/32\",\"fd7a:115c:a1e0::b/128\"") "," \
    PEER(12, "six.tail.example.net.", "\"fd7a:115c:a1e0::c/128\"") "," \
    PEER(13, L63 ".tail.example.net.", "\"100.64.0.13/32\"") "," \
    PEER(14, "web.other.net.", "\"100.64.0.14/32\"") "," \
    PEER(15, "", "\"100.64.0.15/32\"") "]"
#define DNS(proxied) "\"DNSConfig\":{\"Proxied\":" proxied ",\"Domains\":[\"tail.example.net\"],\"Routes\":{" \
    "\"corp.example\":[{\"Addr\":\"10.0.0.53\"}],\"Own.Example.\":[],\"deep.own.example\":null," \
    "\"0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa.\":null},\"ExtraRecords\":[" \
    "{\"Name\":\"Grafana.own.example\",\"Value\":\"100.64.0.99\"}," \
    "{\"Name\":\"grafana.own.example.\",\"Type\":\"AAAA\",\"Value\":\"fd7a:115c:a1e0::99\"}," \
    "{\"Name\":\"lone.example\",\"Value\":\"10.1.1.1\"},{\"Name\":\"in.corp.example\",\"Value\":\"10.1.1.2\"}," \
    "{\"Name\":\"six.tail.example.net\",\"Type\":\"A\",\"Value\":\"10.1.1.3\"}]}"
#define SELF(addresses, caps) "{\"Node\":{\"ID\":7,\"Name\":\"Me.tail.example.net.\",\"Key\":\"nodekey:" \
    "7777777777777777777777777777777777777777777777777777777777777777\",\"Addresses\":[" addresses "]," \
    "\"CapMap\":{" caps "},\"MachineAuthorized\":true},"
#define SELF_BOTH "\"100.64.0.7/32\",\"fd7a:115c:a1e0::7/128\""

static void start(const char *json)
{
    memset(&desc, 0, sizeof desc);
    desc.memory        = memory;
    desc.memory_size   = sizeof memory;
    desc.max_peers     = 8;
    desc.max_sessions  = 2;
    desc.io.now_ms     = now;
    desc.io.random     = random_bytes;
    desc.io.udp_output = udp_output;
    desc.io.ip_output  = ip_output;
    desc.io.tcp_open   = tcp_open;
    desc.io.tcp_output = tcp_output;
    desc.io.tcp_close  = tcp_close;
    desc.prefs.answer_dns = true;
    CHECK(tailnet_init(&node, &desc) == TAILNET_OK);
    if (node == NULL) exit(2);
    tn_map_stream(&node->map, &node->flt);
    if (*json != '\0') message(json);
    node->state = TAILNET_STATE_RUNNING;
}

/* The answer to the question, as text: "no" for NO_ROUTE, "again" for AGAIN. */
static const char *told(void)
{
    static uint8_t was[sizeof memory];
    tailnet_result r;
    memcpy(was, memory, sizeof was);
    answer_len = sizeof answer;
    r = tailnet_answer_dns(node, query, query_len, answer, &answer_len);
    CHECK(memcmp(was, memory, sizeof was) == 0);
    if (r == TAILNET_OK) read_answer();
    else CHECK(answer_len == 0);
    return r == TAILNET_OK ? said : r == TAILNET_ERR_NO_ROUTE ? "no" : r == TAILNET_ERR_AGAIN ? "again" : "bad";
}

static bool tells(const char *name, unsigned type, const char *want)
{
    ask(name, type);
    if (strcmp(told(), want) == 0) return true;
    printf("%s %u: %s\n", name, type, told());
    return false;
}

#define SOA(zone) " | " zone ". SOA " zone ". nobody.invalid. 10"

static void table(void)
{
    static const unsigned refused[] = { 2, 6, 252, 13 }, others[] = { 15, 16, 33, 5, 65, 12 };
    size_t i;
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    CHECK(tells("web.tail.example.net", 1, "0 | web.tail.example.net. 100.64.0.11 5"));
    CHECK(tells("WEB.tail.EXAMPLE.net", 1, "0 | WEB.tail.EXAMPLE.net. 100.64.0.11 5"));
    CHECK(tells("web.tail.example.net", 28, "0" SOA("tail.example.net")));
    CHECK(tells("web.tail.example.net", 255, "0 | web.tail.example.net. 100.64.0.11 5"));
    for (i = 0; i < 4; i++) CHECK(tells("web.tail.example.net", refused[i], "4"));
    for (i = 0; i < 6; i++) CHECK(tells("web.tail.example.net", others[i], "0" SOA("tail.example.net")));
    CHECK(tells("me.tail.example.net", 1, "0 | me.tail.example.net. 100.64.0.7 5"));
    CHECK(tells("me", 1, "0 | me. 100.64.0.7 5") && tells("ME", 255, "0 | ME. 100.64.0.7 5"));
    CHECK(tells("web", 1, "0 | web. 100.64.0.11 5") && tells("web", 28, "0"));
    CHECK(tells(L63 ".tail.example.net", 1, "0 | " L63 ".tail.example.net. 100.64.0.13 5"));
    CHECK(tells("abc.tail.example.net", 1, "3" SOA("tail.example.net")));
    CHECK(tells("a.b.web.tail.example.net", 1, "3" SOA("tail.example.net")));
    CHECK(tells("tail.example.net", 1, "3" SOA("tail.example.net")));
    CHECK(tells("abc", 1, "no") && tells("example.net", 1, "no") && tells("", 2, "no") &&
          tells("xtail.example.net", 1, "no"));
    CHECK(tells("web.other.net", 1, "0 | web.other.net. 100.64.0.14 5") && tells("x.other.net", 1, "no"));
    CHECK(tells("a.onion", 1, "3" SOA("onion")) && tells("onion", 1, "3" SOA("onion")));
    CHECK(tells("magicdns.localhost-tailscale-daemon", 1,
                "0 | magicdns.localhost-tailscale-daemon. 100.100.100.100 5"));
    CHECK(tells("magicdns.localhost-tailscale-daemon", 28,
                "0 | magicdns.localhost-tailscale-daemon. fd7a:115c:a1e0::53 5"));
    CHECK(tells("10-0-0-1-via-7", 28, "0 | 10-0-0-1-via-7. fd7a:115c:a1e0:b1a:0:7:a00:1 5"));
    CHECK(tells("10-0-0-1-via-7", 1, "0"));
    ask_as(0x0100, "web.tail.example.net", 1, 3, 0, 0);     /* class CHAOS */
    CHECK(strcmp(told(), "4") == 0);
    ask_as(0x0100, "web.tail.example.net", 1, 255, 1, 0);   /* any class */
    CHECK(strcmp(told(), "0 | web.tail.example.net. 100.64.0.11 5 |  OPT 00000000") == 0);
}

static void routes(void)
{
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    CHECK(tells("corp.example", 1, "no") && tells("a.corp.example", 1, "no"));
    CHECK(tells("own.example", 1, "3" SOA("own.example")) && tells("a.own.example", 1, "3" SOA("own.example")));
    CHECK(tells("a.deep.own.example", 16, "3" SOA("deep.own.example")));
    CHECK(tells("grafana.own.example", 1, "0 | grafana.own.example. 100.64.0.99 5"));
    CHECK(tells("grafana.own.example", 28, "0 | grafana.own.example. fd7a:115c:a1e0::99 5"));
    CHECK(tells("grafana.own.example", 15, "0" SOA("own.example")));
    CHECK(tells("lone.example", 1, "0 | lone.example. 10.1.1.1 5") &&
          tells("lone.example", 28, "0" SOA("lone.example")));
    CHECK(tells("a.lone.example", 1, "3" SOA("lone.example")) && tells("example", 1, "no"));
    CHECK(tells("in.corp.example", 1, "0 | in.corp.example. 10.1.1.2 5") && tells("in.corp.example", 28, "0"));
    CHECK(tells("a.in.corp.example", 1, "no"));
    CHECK(tells("six.tail.example.net", 1, "0 | six.tail.example.net. 10.1.1.3 5"));    /* before the node */
}

#define OWN6 "fd7a:115c:a1e0::"
#define NIB "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"

static void pointers(void)
{
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    CHECK(tells("11.0.64.100.in-addr.arpa", 12, "0 | 11.0.64.100.in-addr.arpa. PTR web.tail.example.net. 5"));
    CHECK(tells("11.0.64.100.in-addr.arpa", 255, "0 | 11.0.64.100.in-addr.arpa. PTR web.tail.example.net. 5"));
    CHECK(tells("11.0.64.100.in-addr.arpa", 1, "0" SOA("64.100.in-addr.arpa")));
    CHECK(tells("b." NIB, 12, "0 | b." NIB ". PTR web.tail.example.net. 5"));
    CHECK(tells("7." NIB, 12, "0 | 7." NIB ". PTR Me.tail.example.net. 5"));
    CHECK(tells("7.0.64.100.in-addr.arpa", 12, "0 | 7.0.64.100.in-addr.arpa. PTR Me.tail.example.net. 5"));
    CHECK(tells("13.0.64.100.in-addr.arpa", 12, TAILNET_MAX_NAME == 63
        ? "0 | 13.0.64.100.in-addr.arpa. PTR " L63 ".tail.example.net. 5" : "3" SOA("64.100.in-addr.arpa")));
    CHECK(tells("14.0.64.100.in-addr.arpa", 12, "3" SOA("64.100.in-addr.arpa")));  /* its domain is not kept */
    CHECK(tells("15.0.64.100.in-addr.arpa", 12, "3" SOA("64.100.in-addr.arpa")));  /* has no name */
    CHECK(tells("99.0.64.100.in-addr.arpa", 12, "0 | 99.0.64.100.in-addr.arpa. PTR Grafana.own.example. 5"));
    CHECK(tells("1.1.1.10.in-addr.arpa", 12, "0 | 1.1.1.10.in-addr.arpa. PTR lone.example. 5"));
    CHECK(tells("4.1.1.10.in-addr.arpa", 12, "no"));
    CHECK(tells("1.9.127.100.in-addr.arpa", 12, "3" SOA("127.100.in-addr.arpa")));
    CHECK(tells("1.9.128.100.in-addr.arpa", 12, "no"));
    CHECK(tells("9." NIB, 12, "3" SOA("0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa")));
    CHECK(tells("100.100.100.100.in-addr.arpa", 12,
                "0 | 100.100.100.100.in-addr.arpa. PTR magicdns.localhost-tailscale-daemon. 5"));
    CHECK(tells("b.0.0.0.0.4.2.6.6.9.d.c.3.4.8.4.2.1.b.a.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", 12,
        "0 | b.0.0.0.0.4.2.6.6.9.d.c.3.4.8.4.2.1.b.a.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa. PTR web.tail.example.net. 5"));
    CHECK(tells("b._dns-sd._udp.0.0.64.100.in-addr.arpa", 12, "3" SOA("64.100.in-addr.arpa")));
    CHECK(tells("b._dns-sd._udp.example.com", 12, "no"));
}

/* Which addresses of a node are told depends on us. */
static void families(void)
{
    start(SELF(SELF_BOTH, "\"magicdns-aaaa\":null") PEERS "," DNS("true") "}");
    CHECK(tells("web", 28, "0 | web. fd7a:115c:a1e0::b 5") && tells("web", 1, "0 | web. 100.64.0.11 5"));
    start(SELF("\"fd7a:115c:a1e0::7/128\"", "") PEERS ",\"DNSConfig\":{\"Proxied\":true}}");
    CHECK(tells("web", 28, "0 | web. fd7a:115c:a1e0::b 5") && tells("web", 1, "0"));
    CHECK(tells("web", 255, "0 | web. fd7a:115c:a1e0::b 5") && tells("me", 28, "0 | me. fd7a:115c:a1e0::7 5"));
    start(SELF(SELF_BOTH, "") PEERS ",\"DNSConfig\":{\"Proxied\":true}}");
    CHECK(tells("six", 28, "0 | six. fd7a:115c:a1e0::c 5") && tells("six", 1, "0") &&
          tells("six", 255, "0 | six. fd7a:115c:a1e0::c 5"));
}

/* Without MagicDNS there are no zones and no short names; without a map nothing. */
static void unproxied(void)
{
    start(SELF(SELF_BOTH, "") PEERS "," DNS("false") "}");
    CHECK(tells("web.tail.example.net", 1, "0 | web.tail.example.net. 100.64.0.11 5"));
    CHECK(tells("web", 1, "no") && tells("me", 1, "no") && tells("x.tail.example.net", 1, "no"));
    CHECK(tells("11.0.64.100.in-addr.arpa", 12, "0 | 11.0.64.100.in-addr.arpa. PTR web.tail.example.net. 5"));
    CHECK(tells("16.0.64.100.in-addr.arpa", 12, "no") && tells("a.own.example", 1, "3" SOA("own.example")));
    start("");
    CHECK(tells("web.tail.example.net", 1, "no") && tells("web", 1, "no") && tells("x.onion", 1, "no"));
    query[2] = 0x11;
    CHECK(strcmp(told(), "4 bare") == 0);
}

/* A directory too small for the map: not there is not the same as nobody. */
static void missing(void)
{
    unsigned i;
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    node->map.peers_missing = true;
    CHECK(tells("web", 1, "0 | web. 100.64.0.11 5") && tells("abc", 1, "again"));
    CHECK(tells("abc.tail.example.net", 1, "again") && tells("ABC.tail.example.net", 28, "again"));
    CHECK(tells("a.abc.tail.example.net", 1, "3" SOA("tail.example.net")));     /* no peer is called so */
    CHECK(tells("tail.example.net", 1, "3" SOA("tail.example.net")));
    CHECK(tells("a.own.example", 1, "3" SOA("own.example")) && tells("a.b", 1, "no"));
    CHECK(tells("88.0.64.100.in-addr.arpa", 12, "again") && tells("88.0.0.10.in-addr.arpa", 12, "no"));
    /* as after a reading that did not find it */
    CHECK(tailnet_fetch_peer(node, "abc") == TAILNET_ERR_AGAIN);
    for (i = 0; i < TN_MAP_WANTS; i++)
        if (node->map.wants[i].who.kind != 0) node->map.wants[i].lost_s = 600;
    CHECK(tells("abc.tail.example.net", 1, "3" SOA("tail.example.net")) && tells("abc", 1, "no"));
    CHECK(tells("abd.tail.example.net", 1, "again"));
}

static void arguments(void)
{
    size_t n, whole;
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    ask("web", 1);
    CHECK(tailnet_answer_dns(NULL, query, query_len, answer, &n) == TAILNET_ERR_ARGUMENT);
    CHECK(tailnet_answer_dns(node, query, query_len, answer, NULL) == TAILNET_ERR_ARGUMENT);
    n = 10;
    CHECK(tailnet_answer_dns(node, query, query_len, NULL, &n) == TAILNET_ERR_ARGUMENT);
    CHECK(tailnet_answer_dns(node, NULL, 1, answer, &n) == TAILNET_ERR_ARGUMENT);
    whole = sizeof answer;
    CHECK(tailnet_answer_dns(node, query, query_len, answer, &whole) == TAILNET_OK);
    for (n = 0; n < whole; n++) {
        size_t room = n;
        CHECK(tailnet_answer_dns(node, query, query_len, answer, &room) == TAILNET_ERR_TOO_BIG && room == whole);
    }
    CHECK(tailnet_answer_dns(node, query, query_len, answer, &n) == TAILNET_OK && n == whole);
    n = sizeof answer;
    CHECK(tailnet_answer_dns(node, query, 11, answer, &n) == TAILNET_ERR_MALFORMED && n == 0);
}

/* Names of the map that cannot be sent. */
static void bad_map(void)
{
    start(SELF(SELF_BOTH, "") PEERS ",\"DNSConfig\":{\"Proxied\":true,\"Routes\":{\".\":[],\"..\":[],\".x\":[]},"
                                    "\"ExtraRecords\":["
                                    "{\"Name\":\"a..b\",\"Value\":\"1.1.1.1\"},{\"Name\":\".\",\"Value\":\"1.1.1.2\"}"
                                    ","
                                    "{\"Name\":\"" L63 "l.x\",\"Value\":\"1.1.1.3\"}]}}");
    CHECK(tells("1.1.1.1.in-addr.arpa", 12, "no") && tells("2.1.1.1.in-addr.arpa", 12, "no") &&
          tells("3.1.1.1.in-addr.arpa", 12, "no"));
    CHECK(tells("a.b", 1, "no") && tells("x", 1, "no") && tells("", 1, "no"));
}

/* ---- inside the packet path ---- */

static tailnet_result send_packet(const char *to, unsigned protocol, unsigned port)
{
    static uint8_t bytes[800];
    tailnet_addr   src, dst;
    tailnet_buf    buf;
    tn_wr          w;
    CHECK(tn_ip_parse(&dst, to, strlen(to)));
    src      = dst.family == 4 ? node->map.self.ip4 : node->map.self.ip6;
    src.port = 40000;
    dst.port = (uint16_t)port;
    tn_wr_over(&w, bytes, sizeof bytes);
    tn_ip_wr_udp_head(&w, &src, &dst, query, query_len);
    tn_wr_bytes(&w, query, query_len);
    if (protocol != 17) bytes[dst.family == 4 ? 9 : 6] = (uint8_t)protocol;
    memset(&buf, 0, sizeof buf);
    buf.base = bytes;
    buf.cap  = sizeof bytes;
    buf.len  = (uint32_t)tn_wr_len(&w);
    packets  = 0;
    return tailnet_ip_input(node, &buf, 1);
}

static bool served(const char *to, const char *want)
{
    tn_ip_packet p;
    tailnet_addr from;
    if (send_packet(to, 17, 53) != TAILNET_OK || packets != 1) return false;
    CHECK(tn_ip_read(&p, packet, packet_len) && p.len == packet_len && tn_ip_sums_ok(&p));
    CHECK(tn_ip_parse(&from, to, strlen(to)) && tn_ip_same(&p.flow.src, &from));
    CHECK(p.flow.src.port == 53 && p.flow.dst.port == 40000 && p.flow.protocol == 17);
    CHECK(tn_ip_same(&p.flow.dst, from.family == 4 ? &node->map.self.ip4 : &node->map.self.ip6));
    answer_len = p.len - p.body - 8;
    memcpy(answer, packet + p.body + 8, answer_len);
    read_answer();
    return strcmp(said, want) == 0;
}

static void inside(void)
{
    static const char *const to[2] = { "100.100.100.100", "fd7a:115c:a1e0::53" };
    tailnet_prefs prefs;
    bool          own;
    unsigned      i;
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    for (i = 0; i < 2; i++) {
        ask("web", 1);
        CHECK(served(to[i], "0 | web. 100.64.0.11 5"));
        ask("b." NIB, 12);
        CHECK(served(to[i], "0 | b." NIB ". PTR web.tail.example.net. 5"));
        ask("x.tail.example.net", 1);
        CHECK(served(to[i], "3" SOA("tail.example.net")));
        ask_as(0x0100, "www.example.com", 1, 1, 1, 0);
        CHECK(served(to[i], "2 |  OPT 00000000"));
        query[5] = 2;
        CHECK(served(to[i], "1 bare"));
        query[2] = 0x80;                    /* an answer */
        CHECK(send_packet(to[i], 17, 53) == TAILNET_ERR_MALFORMED && packets == 0);
        ask("web", 1);
        CHECK(send_packet(to[i], 17, 54) == TAILNET_ERR_NO_ROUTE && packets == 0);
        CHECK(send_packet(to[i], 132, 53) == TAILNET_ERR_NO_ROUTE && packets == 0);
        node->map.peers_missing = true;
        ask("later", 1);
        CHECK(send_packet(to[i], 17, 53) == TAILNET_ERR_AGAIN && packets == 0);
        CHECK(tn_map_wants(&node->map, &own) == 1 && own);
        node->map.peers_missing = false;
    }
    prefs = desc.prefs;
    prefs.answer_dns = false;
    CHECK(tailnet_set_prefs(node, &prefs) == TAILNET_OK);
    ask("web", 1);
    for (i = 0; i < 2; i++) CHECK(send_packet(to[i], 17, 53) == TAILNET_ERR_NO_ROUTE && packets == 0);
}

/* Any bytes: no answer, or one that reads. */
static void noise(void)
{
    unsigned i, n;
    start(SELF(SELF_BOTH, "") PEERS "," DNS("true") "}");
    for (i = 0; i < 20000; i++) {
        ask_as(0x0100, i % 2 == 0 ? "web.tail.example.net" : "11.0.64.100.in-addr.arpa", i % 3 == 0 ? 12 : 1, 1,
               i % 2, 0);
        query[0] = 0xbe;
        for (n = 0; n < 1 + i % 3; n++)
            query[2 + tn_test_random() % (query_len - 2)] = (uint8_t)tn_test_random();
        answer_len = sizeof answer;
        if (tailnet_answer_dns(node, query, query_len, answer, &answer_len) == TAILNET_OK) {
            CHECK(answer_len >= 12 && answer_len <= sizeof answer && (answer[2] & 0x80u) != 0);
            CHECK(answer[0] == 0xbe && answer[1] == 0xef);
        }
    }
}

int main(void)
{
    TEST(question);
    TEST(truncations);
    TEST(heads);
    TEST(edns);
    TEST(limits);
    TEST(hostile);
    TEST(largest);
    TEST(zones);
    TEST(reverse_names);
    TEST(via_names);
    TEST(table);
    TEST(routes);
    TEST(pointers);
    TEST(families);
    TEST(unproxied);
    TEST(missing);
    TEST(arguments);
    TEST(bad_map);
    TEST(inside);
    TEST(noise);
    return tn_test_end();
}
