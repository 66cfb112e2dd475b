/* The network map: recorded streams whole, byte by byte and cut at random; every row
 * of the table of members; deltas; full directories; wants; look-ups. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static tn_map        map;
static tn_flt        flt;
static tn_flt_range  ranges[64];
static tn_flt_flow   flows[4];
static uint64_t      memory[40000];
static char          log_text[1 << 18], was_text[1 << 18], dump_text[1 << 18], dump_was[1 << 18];
static size_t        log_len;
static uint64_t      now_ms = 1000000;
static int           cut_mode;              /* 0 whole, 1 byte by byte, 2 at random */
static tn_map_result last;                  /* PING and BROWSE that came by */
static char          browse[300];
static int32_t     (*keep)(const tn_map_peer *);

static void start(uint16_t peers, uint16_t routes, uint16_t regions)
{
    tn_map_limits limits = { 0, 0, 0, 2 };
    limits.peers   = peers;
    limits.routes  = routes;
    limits.regions = regions;
    if (tn_map_memory(&limits) > sizeof memory) exit(2);
    memset(memory, 0xa5, sizeof memory);
    tn_map_init(&map, &limits, memory);
    tn_flt_init(&flt, ranges, 32, flows, 4);
    log_len     = 0;
    log_text[0] = '\0';
    keep        = NULL;
}

/* What has to be true whenever no change is pending. */
static void invariants(void)
{
    uint16_t i, found;
    size_t   count = 0, t, used[TN_MAP_BYS] = { 0, 0, 0, 0, 0 };
    for (i = 0; i < map.limits.peers; i++) {
        const tn_map_peer *p = &map.peers[i];
        tailnet_addr       ip;
        if ((p->flags & TN_MAP_USED) == 0) continue;
        CHECK((p->flags & TN_MAP_GONE) == 0);
        count++;
        CHECK(tn_map_by_key(&map, p->key, &found) && found == i);
        CHECK(tn_map_by_id(&map, p->id, &found) && found == i);
        if ((p->flags & TN_MAP_DISCO_KEY) != 0)
            CHECK(tn_map_by_disco(&map, p->disco, &found) && map.peers[found].id <= p->id);
        tn_map_addr(p, 4, &ip);
        if (ip.family != 0) {
            CHECK(tn_map_by_own_ip(&map, &ip, &found) && map.peers[found].id <= p->id);
            used[TN_MAP_BY_IP4]++;
        }
        tn_map_addr(p, 6, &ip);
        if (ip.family != 0) {
            CHECK(tn_map_by_own_ip(&map, &ip, &found) && map.peers[found].id <= p->id);
            used[TN_MAP_BY_IP6]++;
        }
        if ((p->flags & TN_MAP_DISCO_KEY) != 0) used[TN_MAP_BY_DISCO]++;
        CHECK(p->name[TAILNET_MAX_NAME] == '\0');
    }
    used[TN_MAP_BY_KEY] = used[TN_MAP_BY_ID] = count;
    CHECK(tn_map_count(&map) == count);
    for (t = 0; t < TN_MAP_BYS; t++) {
        size_t heads = tn_map_heads(&map.limits), n = 0, k;
        for (k = 0; k < heads; k++) {
            i = map.index[t * (heads + map.limits.peers) + k];
            for (; i != TN_MAP_NONE && n <= count; i = *tn_map_next(&map, (unsigned)t, i)) {
                CHECK(tn_map_peer_at(&map, i) != NULL);
                CHECK(*tn_map_head(&map, (unsigned)t, tn_map_bytes(&map, (unsigned)t, i)) != TN_MAP_NONE);
                n++;
            }
        }
        CHECK(n == used[t]);
    }
    CHECK(map.route_count <= map.limits.routes);
    for (i = 0; i < map.route_count; i++) CHECK(tn_map_peer_at(&map, map.routes[i].peer) != NULL);
    CHECK(map.exit_index == TN_MAP_NONE || tn_map_peer_at(&map, map.exit_index) != NULL);
    CHECK(map.going == TN_MAP_NONE && map.change_kind == 0 && map.todo == TN_MAP_DO_NOTHING);
    CHECK(!tn_flt_is_open(&flt));
}

static void changes(void)
{
    uint16_t index;
    uint8_t  kind;
    while (tn_map_change(&map, &flt, &index, &kind, now_ms)) {
        log_len += (size_t)snprintf(
            log_text + log_len, sizeof log_text - log_len, "%u:%s%u ", kind, kind == TN_MAP_ASK ? "ask" : "",
            kind == TN_MAP_ASK ? (unsigned)map.work.node.peer.id : (unsigned)map.peers[index].id);
        if (kind == TN_MAP_ASK) tn_map_keep(&map, keep(&map.work.node.peer));
        if ((kind & TN_MAP_GOING) != 0) {
            uint16_t found;
            CHECK(!tn_map_by_id(&map, map.peers[index].id, &found));
            CHECK(!tn_map_usable(&map, &map.peers[index]));
        }
    }
}

/* Feeds one message. */
static tn_map_result take(const char *json, size_t len)
{
    tn_js         js;
    tn_js_event   ev   = TN_JS_MORE;
    tn_map_result r    = TN_MAP_OK;
    size_t        from = 0;
    tn_js_init(&js);
    last = TN_MAP_OK;
    while (from < len) {
        size_t n = cut_mode == 0 ? len : cut_mode == 1 ? 1 : (size_t)(tn_test_random() % 40);
        if (n > len - from) n = len - from;
        tn_js_feed(&js, json + from, n);
        from += n;
        while ((ev = tn_js_next(&js)) > TN_JS_MORE) {
            r = tn_map_take(&map, &flt, &js, ev, now_ms);
            if (r == TN_MAP_ERROR) return r;
            if (r == TN_MAP_PING || r == TN_MAP_BROWSE) last = r;
            if (r == TN_MAP_BROWSE) tn_text_copy(browse, sizeof browse, js.text, js.text_len);
            if (r == TN_MAP_CHANGE) changes();
        }
        if (ev == TN_JS_ERROR) return TN_MAP_ERROR;
    }
    CHECK(tn_js_done(&js));
    invariants();
    return TN_MAP_OK;
}

static tn_map_result say(const char *json) { return take(json, strlen(json)); }

static size_t put(char *dst, size_t at, size_t cap, const uint8_t *bytes, size_t len)
{
    size_t i;
    for (i = 0; i < len && at + 3 < cap; i++) at += (size_t)snprintf(dst + at, cap - at, "%02x", bytes[i]);
    return at;
}

/* Everything that can be seen of the map, as text. */
static void dump(char *dst, size_t cap)
{
    size_t       at = 0, n;
    uint16_t     i, index;
    uint8_t      kind;
    const char  *text;
    tailnet_addr a;
    tailnet_prefix pre;
    at += (size_t)snprintf(dst, cap, "self %u %s %d %d exp %u suffix %s lock %d first %d missing %d over %u\n",
                           (unsigned)map.self.id, map.self.name, map.self.authorized,
                           map.self.expired, (unsigned)(map.self.expiry_ms / 1000), tn_map_suffix(&map), map.lock_on,
                           map.first, map.peers_missing, map.passed_over);
    for (i = 0; i < map.limits.peers; i++) {
        const tn_map_peer *p = tn_map_peer_at(&map, i);
        tailnet_addr       places[8];
        if (p == NULL) continue;
        at += (size_t)snprintf(dst + at, cap - at, "peer %u %llu %llu %s fl %lx reg %u exp %llu ", i,
                               (unsigned long long)p->id, (unsigned long long)p->user, p->name,
                               (unsigned long)(p->flags & ~TN_MAP_SEEN), p->region, (unsigned long long)p->expiry_ms);
        at = put(dst, at, cap, p->key, 32);
        at = put(dst, at, cap, p->disco, 32);
        at = put(dst, at, cap, p->own, 20);
        n = tn_map_places(&map, i, places, 8);
        while (n-- != 0) at = put(dst, at, cap, places[n].ip, 16);
        at += (size_t)snprintf(dst + at, cap - at, "\n");
    }
    for (n = 0; tn_map_route(&map, n, &pre, &index); n++) {
        at += (size_t)snprintf(dst + at, cap - at, "route %u/%u by %u ", pre.family, pre.bits, index);
        at = put(dst, at, cap, pre.ip, 16);
    }
    for (n = 0; tn_map_region_at(&map, n) != NULL; n++) {
        const tn_map_region *r = tn_map_region_at(&map, n);
        at += (size_t)snprintf(dst + at, cap - at, "region %u %s %u %u %u %u\n", r->id, tn_map_region_host(r),
                               r->port, r->stun_port, r->flags, tn_map_region_score(&map, r->id));
    }
    for (n = 0; tn_map_dns(&map, n, &kind, &text, &a); n++) {
        at += (size_t)snprintf(dst + at, cap - at, "dns %u %s %u %u ", kind, text, a.family, a.port);
        at = put(dst, at, cap, a.ip, 16);
    }
}

static uint16_t at_id(uint64_t id)
{
    uint16_t i;
    return tn_map_by_id(&map, id, &i) ? i : (uint16_t)TN_MAP_NONE;
}

static bool finds(const char *ip, uint64_t id)
{
    tailnet_addr a;
    uint16_t     i;
    CHECK(tn_ip_parse(&a, ip, strlen(ip)));
    if (!tn_map_by_ip(&map, &a, &i)) return id == 0;
    CHECK(tn_map_owns(&map, i, &a));
    return map.peers[i].id == id;
}

static bool named(const char *name, uint64_t id)
{
    uint16_t i;
    if (!tn_map_by_name(&map, name, strlen(name), &i)) return id == 0;
    return map.peers[i].id == id;
}

/* A node's text with a key made of its id. */
static const char *node(unsigned id, const char *more)
{
    static char text[4][1600];
    static int  turn;
    char       *t = text[turn++ % 4];
    snprintf(t, 1600,
             "{\"ID\":%u,\"Name\":\"p%u.t.net.\",\"Key\":\"nodekey:%064x\",\"DiscoKey\":\"discokey:%064x\","
             "\"Addresses\":[\"100.64.%u.%u/32\",\"fd7a:115c:a1e0::%x/128\"],\"HomeDERP\":1%s}",
             id, id, id + 1, id + 0x5000, id / 256, id % 256, id, more);
    return t;
}

#define SELF                                                                                                         \
    "\"Node\":{\"ID\":7000,\"Name\":\"me.t.net.\",\"Key\":\"nodekey:"                                                \
    "7777777777777777777777777777777777777777777777777777777777777777\",\"Addresses\":[\"100.99.0.1/"                \
    "32\"],\"MachineAuthorized\":true}"

static void first(const char *more)
{
    char text[8000];
    snprintf(text, sizeof text, "{" SELF "%s%s}", *more == '\0' ? "" : ",", more);
    tn_map_stream(&map, &flt);
    CHECK(say(text) == TN_MAP_OK);
    CHECK(map.has_self && !map.first);
}

static void sayf(const char *format, const char *a)
{
    char text[8000];
    snprintf(text, sizeof text, format, a);
    CHECK(say(text) == TN_MAP_OK);
}

/* ---- recorded streams ---- */

static void replay_lines(const char *file, bool streams)
{
    char *text = tn_test_file(file), *at = text;
    while (at != NULL && *at != '\0') {
        char *end = strchr(at, '\n');
        if (end != NULL) *end = '\0';
        if (strncmp(at, "mark: first map", 15) == 0 && streams) tn_map_stream(&map, &flt);
        if (strncmp(at, "map: ", 5) == 0) CHECK(say(at + 5) == TN_MAP_OK);
        at = end == NULL ? NULL : end + 1;
    }
    free(text);
}

/* The same state and the same changes for every cut. */
static void all_cuts(void (*run)(void))
{
    for (cut_mode = 0; cut_mode < 5; cut_mode++) {
        run();
        dump(dump_text, sizeof dump_text);
        if (cut_mode == 0) {
            strcpy(was_text, log_text);
            strcpy(dump_was, dump_text);
        }
        CHECK(strcmp(was_text, log_text) == 0);
        CHECK(strcmp(dump_was, dump_text) == 0);
    }
    cut_mode = 0;
}

static void run_maps(void)
{
    start(8, 8, 4);
    tn_map_prefs(&map, NULL, true);
    replay_lines("control-maps.txt", true);
}

static void recorded_maps(void)
{
    all_cuts(run_maps);
    CHECK(map.self.id == 22 && strcmp(map.self.name, "py-a.lab.test") == 0);
    CHECK(strcmp(tn_map_suffix(&map), "lab.test") == 0);
    CHECK(tn_map_region_by_id(&map, 999) != NULL && tn_map_region_by_id(&map, 999)->port == 8443);
    CHECK(named("gol2c", 1) && named("GOL2C.lab.test.", 1) && named("gol2c.other.net", 0));
    CHECK(finds("100.64.0.1", 1) && finds("fd7a:115c:a1e0::2", 2) && finds("9.9.9.9", 0));
    CHECK(strstr(log_text, "1:23 ") != NULL);           /* py-b was deleted */
    CHECK(map.self.expiry_ms != 0 && tn_map_self_expired(&map, map.self.expiry_ms));
    CHECK(map.self.expired);
    CHECK(map.passed_over == 0 && map.dropped == 0);
}

static void run_small(void)
{
    start(1, 1, 1);
    replay_lines("control-maps.txt", true);
}

static void recorded_maps_small(void)
{
    all_cuts(run_small);
    CHECK(map.peers_missing && map.passed_over > 5);
    CHECK(tn_map_count(&map) == 1 && at_id(1) == 0);    /* the lowest id stays */
}

static void run_deltas(void)
{
    start(8, 8, 4);
    first("\"Peers\":[]");
    replay_lines("map-deltas-go.txt", false);
}

static void recorded_deltas(void)
{
    uint8_t      kind;
    const char  *text;
    tailnet_addr a;
    uint16_t     i;
    all_cuts(run_deltas);
    i = at_id(5954820057290456u);
    CHECK(i != TN_MAP_NONE);
    if (i == TN_MAP_NONE) return;
    CHECK((map.peers[i].flags & TAILNET_PEER_EXPIRED) != 0 && (map.peers[i].flags & TAILNET_PEER_JAILED) != 0);
    CHECK((map.peers[i].flags & TAILNET_PEER_TAGGED) != 0 && map.peers[i].region == 7);
    CHECK(tn_map_masq(&map.peers[i], 4, &a) && a.ip[3] == 9 && !tn_map_masq(&map.peers[i], 6, &a));
    CHECK(!tn_map_usable(&map, &map.peers[i]));
    CHECK(at_id(1) == TN_MAP_NONE);                     /* a zero key is no node */
    CHECK(map.lock_on);
    CHECK(tn_map_region_by_id(&map, 3) == NULL && tn_map_region_by_id(&map, 900) == NULL);     /* bad pin */
    CHECK(!tn_map_dns(&map, 0, &kind, &text, &a));      /* the empty one came last */
    CHECK(tn_map_region_score(&map, 1) == 800 && tn_map_region_score(&map, 4) == 1500 &&
          tn_map_region_score(&map, 5) == 1000);
}

/* The map messages inside a recorded connection: HTTP/2 DATA frames of one stream. */
static void run_session(const char *file, unsigned stream)
{
    static uint8_t bytes[1 << 18], body[1 << 18];
    char          *text = tn_test_file(file), *at = text;
    size_t         len = 0, i = 0, n = 0;
    while (at != NULL && *at != '\0') {
        char *end = strchr(at, '\n');
        if (end != NULL) *end = '\0';
        if (at[0] == 'S') {
            const char *hex = strchr(at + 2, ' ') + 1;
            uint8_t     line[8192];
            size_t      got = tn_test_hex(line, sizeof line, hex);
            if (!(len == 0 && got == 5 && line[0] == 0xff)) {       /* the early payload is no frame */
                memcpy(bytes + len, line, got);
                len += got;
            } else {
                len = SIZE_MAX;
            }
            if (len == SIZE_MAX) len = 0;
        }
        at = end == NULL ? NULL : end + 1;
    }
    free(text);
    if (len > 4 && bytes[0] == 0 && bytes[1] == 0 && bytes[2] == 0 && bytes[4] == '{') i = 4u + bytes[3];
    for (; i + 9 <= len;) {
        size_t   size = (size_t)bytes[i] << 16 | (size_t)bytes[i + 1] << 8 | bytes[i + 2];
        unsigned id   = (unsigned)tn_get_u32be(bytes + i + 5);
        CHECK(size <= 16384 && i + 9 + size <= len);
        if (size > 16384 || i + 9 + size > len) return;
        if (bytes[i + 3] == 0 && id == stream) {
            memcpy(body + n, bytes + i + 9, size);
            n += size;
        }
        i += 9 + size;
    }
    tn_map_stream(&map, &flt);
    for (i = 0; i + 4 < n;) {
        tn_rd    r;
        uint32_t size;
        tn_rd_over(&r, body + i, 4);
        size = tn_rd_u32le(&r);
        CHECK(size <= n - i - 4);
        if (size > n - i - 4) return;
        CHECK(take((const char *)body + i + 4, size) == TN_MAP_OK);
        i += 4 + size;
    }
    CHECK(i == n && n > 1000);
}

static void run_headscale(void)
{
    start(8, 8, 4);
    tn_map_prefs(&map, NULL, true);
    run_session("control-session.txt", 3);
}

static void run_testserver(void)
{
    start(8, 8, 4);
    run_session("control-session-testserver.txt", 5);
}

static void recorded_sessions(void)
{
    all_cuts(run_headscale);
    CHECK(map.self.id == 22 && tn_map_count(&map) > 0);
    all_cuts(run_testserver);
    CHECK(map.has_self && !map.first);
}

/* ---- rows of the table ---- */

static void row(const char *what, const char *json)
{
    char text[4000];
    snprintf(text, sizeof text, "{%s}", json);
    dump(dump_was, sizeof dump_was);
    CHECK(say(text) == TN_MAP_OK);
    dump(dump_text, sizeof dump_text);
    if (strcmp(dump_was, dump_text) != 0) {
        printf("%s changed something:\n%s\n%s\n", what, dump_was, dump_text);
        CHECK(false);
    }
}

static void full(void)
{
    char peers[6000];
    start(8, 8, 4);
    snprintf(peers, sizeof peers,
             "\"Peers\":[%s,%s,%s],\"DERPMap\":{\"Regions\":{\"1\":{\"Nodes\":[{\"HostName\":\"r.x\"}]}}},"
             "\"DNSConfig\":{\"Domains\":[\"t.net\"],\"Proxied\":true},\"TKAInfo\":{\"Head\":\"A\"},"
             "\"PacketFilters\":{\"base\":[{\"SrcIPs\":[\"100.64.0.2\"],\"DstPorts\":[{\"IP\":\"*\",\"Ports\":{"
             "\"First\":0,\"Last\":65535}}]}]}",
             node(1, ""), node(2, ",\"Online\":true"),
             node(3, ",\"AllowedIPs\":[\"100.64.0.3/32\",\"10.3.0.0/16\"]"));
    first(peers);
    CHECK(tn_map_count(&map) == 3);
}

static tailnet_result allowed(unsigned from)
{
    tailnet_flow flow;
    tn_flt_peer  peer;
    memset(&flow, 0, sizeof flow);
    flow.src.family = flow.dst.family = 4;
    memcpy(flow.src.ip, "\x64\x40\x00", 3);
    flow.src.ip[3] = (uint8_t)from;
    memcpy(flow.dst.ip, "\x64\x63\x00\x01", 4);
    flow.dst.port = 22;
    flow.protocol = 6;
    tn_flt_local(&flt, &map.self.ip4, NULL, NULL, 0);
    if (at_id(from) == TN_MAP_NONE) return TAILNET_ERR_NO_ROUTE;
    tn_map_flt_peer(&map, at_id(from), &peer);
    return tn_flt_check(&flt, &flow, &peer);
}

static void rows_without_effect(void)
{
    static const char *const names[] = {
        "MapSessionHandle", "Seq", "KeepAlive", "PingRequest", "PopBrowserURL", "Node", "DERPMap", "Peers",
        "PeersChanged", "PeersRemoved", "PeersChangedPatch", "PeerSeenChange", "OnlineChange", "DNSConfig", "Domain",
        "CollectServices", "PacketFilter", "PacketFilters", "UserProfiles", "Health", "DisplayMessages", "SSHPolicy",
        "ControlTime", "TKAInfo", "DomainDataPlaneAuditLogID", "Debug", "ControlDialPlan", "ClientVersion",
        "DefaultAutoUpdate", "Unknown"
    };
    static const char *const values[] = { "null", "17", "\"x\"", "true", "1.5e3" };
    size_t i, k;
    full();
    row("nothing", "");
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        for (k = 0; k < sizeof values / sizeof *values; k++) {     /* also of a wrong form */
            char text[200];
            snprintf(text, sizeof text, "\"%s\":%s", names[i], values[k]);
            row(text, text);
        }
    }
    row("Peers []", "\"Peers\":[]");
    row("PeersChanged []", "\"PeersChanged\":[]");
    row("PeersRemoved []", "\"PeersRemoved\":[]");
    row("unknown id", "\"PeersRemoved\":[99,0,-1,9007199254740993,1.5,\"1\",null,18446744073709551615]");
    row("patches", "\"PeersChangedPatch\":[{},{\"NodeID\":99,\"Online\":true},{\"NodeID\":1},null,1,{\"NodeID\":1,"
                   "\"Endpoints\":null,\"CapMap\":null,\"DERPRegion\":0,\"Key\":\"bad\",\"Key\":\"nodekey:"
                   "0000000000000000000000000000000000000000000000000000000000000000\"}]");
    row("online {}", "\"OnlineChange\":{},\"PeerSeenChange\":{\"1\":true}");
    row("online null", "\"OnlineChange\":{\"2\":null,\"x\":true,\"\":true,\"99\":true}");
    row("filters {}", "\"PacketFilters\":{}");
    row("derp null", "\"DERPMap\":{\"Regions\":null},\"DERPMap\":{\"HomeParams\":{\"RegionScore\":null}},\"DERPMap\":"
                     "{}");
    row("others", "\"Health\":[],\"Health\":[\"x\"],\"DisplayMessages\":{\"*\":null},\"SSHPolicy\":{\"rules\":[]},"
                  "\"UserProfiles\":[{\"ID\":1}]");
    row("a node without key", "\"PeersChanged\":[{\"ID\":5},{\"Key\":\"nodekey:"
                              "1111111111111111111111111111111111111111111111111111111111111111\"},{},null,[],5]");
    row("keep-alive", "\"KeepAlive\":true,\"ControlTime\":\"2026-11-21T08:15:00.5+02:00\"");
    CHECK(map.keep_alive && map.control_time_ms == 1795241700500u);
    CHECK(allowed(2) == TAILNET_OK && allowed(1) == TAILNET_ERR_DENIED);
}

static void rows_with_effect(void)
{
    uint8_t      kind;
    const char  *text;
    tailnet_addr a;
    full();
    CHECK(say("{\"PopBrowserURL\":\"https://x/\\u0026\"}") == TN_MAP_OK && last == TN_MAP_BROWSE &&
          strcmp(browse, "https://x/&") == 0);
    CHECK(say("{\"OnlineChange\":{\"1\":true,\"2\":false}}") == TN_MAP_OK);
    CHECK((map.peers[at_id(1)].flags & 1u) == 1 && (map.peers[at_id(2)].flags & 1u) == 0);
    sayf("{\"PeersChanged\":[%s]}", node(4, ""));
    CHECK(tn_map_count(&map) == 4 && finds("100.64.0.4", 4));
    sayf("{\"PeersChanged\":[%s],\"PeersRemoved\":[4,3]}", node(4, ",\"Online\":true"));
    CHECK(tn_map_count(&map) == 3 && at_id(4) != TN_MAP_NONE && at_id(3) == TN_MAP_NONE);
    CHECK(say("{\"PacketFilter\":[]}") == TN_MAP_OK && allowed(2) == TAILNET_ERR_DENIED);
    CHECK(say("{\"PacketFilters\":{\"a\":[{\"SrcIPs\":[\"100.64.0.2\"],\"DstPorts\":[{\"IP\":\"100.99.0.1\","
              "\"Ports\":{\"First\":22,\"Last\":22}}]}]}}") == TN_MAP_OK);
    CHECK(allowed(2) == TAILNET_OK);
    CHECK(say("{\"PacketFilters\":{\"b\":[],\"a\":null}}") == TN_MAP_OK && allowed(2) == TAILNET_ERR_DENIED);
    CHECK(say("{\"PacketFilter\":[{\"SrcIPs\":[\"*\"],\"DstPorts\":[{\"IP\":\"*\",\"Ports\":{\"First\":0,\"Last\":"
              "65535}}]}]}") == TN_MAP_OK);
    CHECK(allowed(1) == TAILNET_OK);
    CHECK(say("{\"PacketFilters\":{\"*\":null}}") == TN_MAP_OK && allowed(1) == TAILNET_ERR_DENIED);
    CHECK(say("{\"DNSConfig\":{}}") == TN_MAP_OK && !map.dns_proxied && !tn_map_dns(&map, 0, &kind, &text, &a));
    CHECK(say("{\"TKAInfo\":{\"Head\":\"B\",\"Disabled\":true}}") == TN_MAP_OK && !map.lock_on);
    CHECK(say("{\"DERPMap\":{\"Regions\":{}}}") == TN_MAP_OK && tn_map_region_at(&map, 0) == NULL);
    /* a full list in mid-stream: deltas beside it do not count, the others go */
    sayf("{\"Peers\":[%s],\"PeersRemoved\":[1],\"OnlineChange\":{\"1\":true},\"PeersChangedPatch\":[{\"NodeID\":1,"
         "\"DERPRegion\":9}]}",
         node(1, ""));
    CHECK(tn_map_count(&map) == 1 && map.peers[at_id(1)].region == 1 && (map.peers[at_id(1)].flags & 1u) == 0);
    CHECK(say("{\"Node\":{\"ID\":7000,\"Key\":\"nodekey:"
              "7777777777777777777777777777777777777777777777777777777777777777\",\"Expired\":true,"
              "\"CapMap\":{\"magicdns-aaaa\":null,\"silent-disco\":[],\"x\":[{\"a\":[{}]}]}}}") == TN_MAP_OK);
    CHECK(map.self.expired && map.self.ipv6_names && map.self.silent_disco);
    CHECK(!map.self.only_tcp_443 && !map.self.authorized && map.self.ip4.family == 0);
}

static void streams(void)
{
    full();
    tn_map_events(&map);
    tn_map_stream(&map, &flt);
    CHECK(finds("100.64.0.1", 1) && allowed(2) == TAILNET_OK);      /* what runs stays */
    CHECK(say("{\"KeepAlive\":true}") == TN_MAP_OK && map.first && tn_map_count(&map) == 3);
    CHECK(say("{\"PeersChanged\":[]}") == TN_MAP_ERROR);            /* lacked Node */
    CHECK(tn_map_count(&map) == 3);
    first("");                                                      /* no peers: none */
    CHECK(tn_map_count(&map) == 0 && map.dns_len == 0 && !map.lock_on && allowed(2) == TAILNET_ERR_NO_ROUTE);
    CHECK((tn_map_events(&map) & (TAILNET_EVENT_PEERS | TAILNET_EVENT_DNS)) ==
          (TAILNET_EVENT_PEERS | TAILNET_EVENT_DNS));
    CHECK(tn_map_region_by_id(&map, 1) != NULL);
    /* a message that breaks off leaves the filter as it was */
    full();
    CHECK(allowed(2) == TAILNET_OK);
    {
        tn_js       js;
        tn_js_event ev;
        const char *half = "{\"PacketFilters\":{\"base\":[{\"SrcIPs\":[\"*\"],\"DstPorts\":[{\"IP\":\"*\",\"Ports\":{"
                           "\"First\":0,\"Last\":65535}}]}";
        tn_js_init(&js);
        tn_js_feed(&js, half, strlen(half));
        while ((ev = tn_js_next(&js)) > TN_JS_MORE) CHECK(tn_map_take(&map, &flt, &js, ev, now_ms) == TN_MAP_OK);
        CHECK(tn_flt_is_open(&flt) && allowed(2) == TAILNET_OK && allowed(1) == TAILNET_ERR_DENIED);
        tn_map_stream(&map, &flt);
        CHECK(!tn_flt_is_open(&flt) && allowed(1) == TAILNET_ERR_DENIED);
    }
    CHECK(say("[]") == TN_MAP_ERROR && say("5 ") == TN_MAP_ERROR);
}

static void nodes(void)
{
    uint16_t     i;
    tailnet_addr a, places[8];
    start(8, 8, 4);
    first("");
    sayf("{\"PeersChanged\":[%s]}", "{\"ID\":9007199254740993,\"Name\":\"Six\\u002eT.NET\",\"User\":5954820057290456,"
                                    "\"Key\":\"nodekey:"
                                    "aa00000000000000000000000000000000000000000000000000000000000000\","
                                    "\"Addresses\":[\"fd7a:115c:a1e0::5/"
                                    "128\"],\"HomeDERP\":3,\"Tags\":null,\"Endpoints\":[\"198.51.100.77:41641\",\"["
                                    "2001:db8::77]:41641\",\"bad\",\"1.2.3.4:0\",\"10.0.0.1:1\"]}");
    i = at_id(9007199254740993u);
    CHECK(i != TN_MAP_NONE && at_id(9007199254740992u) == TN_MAP_NONE);
    CHECK(map.peers[i].user == 5954820057290456u && strcmp(map.peers[i].name, "six") == 0);
    CHECK(strcmp(tn_map_domain(&map, &map.peers[i]), "t.net") == 0);
    CHECK(named("six", 9007199254740993u) && named("SIX.t.net.", 9007199254740993u) && named("si", 0) &&
          named("", 0) && named(".", 0));
    CHECK(finds("fd7a:115c:a1e0::5", 9007199254740993u) && finds("100.64.0.5", 0));
    CHECK(tn_map_places(&map, i, places, 8) == 2 && places[0].port == 41641 && places[1].family == 6);
    CHECK((map.peers[i].flags & TN_MAP_DISCO_KEY) == 0 && tn_map_usable(&map, &map.peers[i]));
    /* AllowedIPs: absent, null, [], own one missing, subnets, both defaults */
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"AllowedIPs\":null"));
    CHECK(finds("100.64.0.1", 1) && finds("fd7a:115c:a1e0::1", 1));
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"AllowedIPs\":[]"));
    CHECK(finds("100.64.0.1", 0) && !tn_map_usable(&map, &map.peers[at_id(1)]));
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"AllowedIPs\":[\"10.1.2.3/8\",\"10.0.0.0/8\",\"100.64.0.1/"
                                            "32\",\"0.0.0.0/0\"]"));
    CHECK(finds("100.64.0.1", 1) && finds("fd7a:115c:a1e0::1", 0) && finds("10.9.9.9", 0));
    tn_map_prefs(&map, "p1", true);
    CHECK(finds("10.9.9.9", 1) && finds("8.8.8.8", 0));             /* one default does not make an exit node */
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"AllowedIPs\":[\"::/0\",\"10.0.0.0/8\",\"100.64.0.1/32\",\"0.0.0.0/"
                                            "0\"]"));
    CHECK(finds("8.8.8.8", 1) && finds("2001:db8::1", 1) && finds("100.64.77.77", 0));
    CHECK((map.peers[at_id(1)].flags & TAILNET_PEER_IS_EXIT) != 0);
    sayf("{\"PeersChanged\":[%s]}", node(2, ",\"AllowedIPs\":[\"10.2.0.0/16\",\"100.64.0.2/32\",\"192.0.2.7/"
                                            "32\",\"100.64.9.9/32\"]"));
    CHECK(finds("10.2.0.1", 2) && finds("10.3.0.1", 1) && finds("192.0.2.7", 2) && finds("100.64.9.9", 2));
    CHECK(tn_ip_parse(&a, "100.64.0.2", 10) && !tn_map_owns(&map, at_id(1), &a) && tn_map_owns(&map, at_id(2), &a));
    tn_map_prefs(&map, "100.64.0.1", false);
    CHECK(finds("10.2.0.1", 1) && finds("192.0.2.7", 1) &&
          finds("100.64.9.9", 2)); /* to the exit node, as routes are off */
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"Expired\":true,\"AllowedIPs\":[\"0.0.0.0/0\",\"::/0\"]"));
    CHECK(finds("8.8.8.8", 0));                                     /* fails closed */
    tn_map_prefs(&map, NULL, false);
    /* same address twice: the lower id, then the other */
    sayf("{\"PeersChanged\":[%s]}", "{\"ID\":90,\"Key\":\"nodekey:"
                                    "bb00000000000000000000000000000000000000000000000000000000000000\",\"HomeDERP\":"
                                    "1,\"Addresses\":[\"100.64.0.2/32\"]}");
    CHECK(finds("100.64.0.2", 2));
    CHECK(say("{\"PeersRemoved\":[2]}") == TN_MAP_OK);
    CHECK(finds("100.64.0.2", 90));
    /* safety members */
    sayf("{\"PeersChanged\":[%s]}", node(5, ",\"UnsignedPeerAPIOnly\":true,\"AllowedIPs\":[\"10.5.0.0/16\",\"0.0.0.0/"
                                            "0\",\"::/0\"]"));
    tn_map_prefs(&map, "p5", true);
    CHECK(finds("10.5.0.1", 0) && finds("100.64.0.5", 5));
    {
        tn_flt_peer peer;
        tn_map_flt_peer(&map, at_id(5), &peer);
        CHECK(peer.jailed && peer.index == at_id(5));
    }
    sayf("{\"PeersChanged\":[%s]}", node(6, ",\"SelfNodeV6MasqAddrForThisPeer\":\"1.2.3.4\""));
    CHECK(finds("100.64.0.6", 0));                                  /* cannot be done: not talked to */
    sayf("{\"PeersChanged\":[%s]}", node(6, ",\"SelfNodeV6MasqAddrForThisPeer\":\"fd7a:115c:a1e0::99\""));
    CHECK(finds("100.64.0.6", 6) && tn_map_masq(&map.peers[at_id(6)], 6, &a));
}

static void kinds_of_change(void)
{
    full();
    log_len = 0;
    log_text[0] = '\0';
    sayf("{\"PeersChanged\":[%s]}", node(1, ""));
    CHECK(strcmp(log_text, "") == 0);                               /* nothing new */
    CHECK(say("{\"PeersChangedPatch\":[{\"NodeID\":1,\"Endpoints\":[\"1.2.3.4:5\"]}]}") == TN_MAP_OK);
    CHECK(say("{\"PeersChangedPatch\":[{\"NodeID\":1,\"Endpoints\":[]}]}") == TN_MAP_OK);
    CHECK(say("{\"PeersChangedPatch\":[{\"NodeID\":2,\"DERPRegion\":12},{\"NodeID\":2,\"Online\":false}]}") ==
          TN_MAP_OK);
    CHECK(say("{\"PeersChangedPatch\":[{\"Key\":\"nodekey:"
              "cc00000000000000000000000000000000000000000000000000000000000000\",\"DiscoKey\":\"discokey:"
              "dd00000000000000000000000000000000000000000000000000000000000000\",\"NodeID\":3}]}") == TN_MAP_OK);
    CHECK(strcmp(log_text, "8:1 8:1 8:2 6:3 ") == 0);
    log_len = 0;
    sayf("{\"PeersChanged\":[%s]}", node(2, ",\"Expired\":true"));
    CHECK(strcmp(log_text, "24:2 ") == 0);                          /* moved back to 1, and unusable */
    log_len = 0;
    CHECK(say("{\"PeersChangedPatch\":[{\"NodeID\":2,\"KeyExpiry\":\"0001-01-01T00:00:00Z\"}]}") == TN_MAP_OK);
    CHECK(finds("100.64.0.2", 2));
    /* the key of another one: that one goes first */
    CHECK(say("{\"PeersChangedPatch\":[{\"NodeID\":1,\"Key\":\"nodekey:"
              "0000000000000000000000000000000000000000000000000000000000000003\"}]}") == TN_MAP_OK);
    CHECK(strcmp(log_text, "1:2 2:1 ") == 0 && at_id(2) == TN_MAP_NONE);
    log_len = 0;
    sayf("{\"PeersChanged\":[%s]}", "{\"ID\":50,\"Key\":\"nodekey:"
                                    "0000000000000000000000000000000000000000000000000000000000000003\",\"HomeDERP\":"
                                    "1,\"Addresses\":[\"100.64.0.50/32\"]}");
    CHECK(strcmp(log_text, "1:1 ") == 0 && finds("100.64.0.50", 50));
}

static void expiry(void)
{
    full();
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"KeyExpiry\":\"2026-12-01T10:11:12.5Z\""));
    sayf("{\"PeersChanged\":[%s]}", node(2, ",\"KeyExpiry\":\"2026-12-02T00:00:00+02:00\""));
    sayf("{\"PeersChanged\":[%s]}", node(3, ",\"KeyExpiry\":\"0001-01-01T00:00:00Z\""));
    CHECK(tn_map_expiry(&map) == 1796119872500u);
    CHECK(!tn_map_expire(&map, 1796119872499u) && finds("100.64.0.1", 1));
    CHECK(!tn_map_expire(&map, 0));
    log_len = 0;
    while (tn_map_expire(&map, 1796119872500u)) changes();
    CHECK(strcmp(log_text, "16:1 ") == 0 && finds("100.64.0.1", 0) && finds("100.64.0.2", 2));
    while (tn_map_expire(&map, 1896119872500u)) changes();
    CHECK(finds("100.64.0.2", 0) && finds("100.64.0.3", 3) && tn_map_expiry(&map) == TN_NEVER);
    CHECK(named("p1", 1));                                          /* stays in the list of names */
}

static void relays(void)
{
    const tn_map_region *r;
    tailnet_addr         a;
    char                 text[3000], host[80];
    unsigned             len;
    start(4, 4, 2);
    tn_map_home(&map, 9);
    first("\"DERPMap\":{\"HomeParams\":{\"RegionScore\":{\"2\":0.85,\"x\":2,\"3\":-1,\"4\":0}},\"Regions\":{"
          "\"1\":{\"Nodes\":null},\"2\":{\"Avoid\":true,\"Nodes\":[{"
          "\"CertName\":\"c.x\",\"HostName\":\"two\",\"IPv4\":\"192.0.2.2\",\"IPv6\":\"none\",\"STUNPort\":-1,"
          "\"DERPPort\":0,\"CanPort80\":true},{\"HostName\":\"later\"}]},"
          "\"3\":{\"Nodes\":[{\"HostName\":\"three\"}]},\"9\":{\"Nodes\":[{\"HostName\":\"192.0.2.9\",\"CertName\":"
          "\"sha256-raw:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\",\"IPv6\":\"2001:db8::9\","
          "\"DERPPort\":8443}]},"
          "\"70000\":{\"Nodes\":[{\"HostName\":\"x\"}]},\"0\":{\"Nodes\":[{\"HostName\":\"x\"}]}}}");
    r = tn_map_region_by_id(&map, 2);
    CHECK(r != NULL && tn_map_region_by_id(&map, 3) == NULL);       /* home pushed it out */
    if (r == NULL) return;
    CHECK(strcmp(tn_map_region_host(r), "two") == 0 && strcmp(tn_map_region_name(r), "c.x") == 0 &&
          tn_map_region_pin(r) == NULL);
    CHECK(r->port == 443 && r->stun_port == 0 && tn_map_region_score(&map, 2) == 850 &&
          tn_map_region_score(&map, 3) == 1000);
    CHECK(r->flags == (TN_MAP_REGION_IP4 | TN_MAP_REGION_NO6 | TN_MAP_REGION_NOT_HOME | TN_MAP_REGION_PORT80 |
                       TN_MAP_REGION_NAMED));
    tn_map_region_addr(r, 4, &a);
    CHECK(a.family == 4 && a.port == 443 && a.ip[3] == 2);
    r = tn_map_region_by_id(&map, 9);
    CHECK(r != NULL && tn_map_region_pin(r) != NULL && tn_map_region_pin(r)[31] == 0xff && r->port == 8443 &&
          r->stun_port == 3478);
    tn_map_region_addr(r, 6, &a);
    CHECK(a.family == 6 && a.port == 8443);
    /* a peer in a region that was passed over: read once more, once */
    {
        bool own;
        CHECK(tn_map_wants(&map, &own) == 0);
        sayf("{\"PeersChanged\":[%s]}", node(1, ",\"HomeDERP\":3"));
        CHECK(tn_map_wants(&map, &own) == 1 && !own);
        tn_map_stream(&map, &flt);
        CHECK(tn_map_wants(&map, &own) == 0);
    }
    first("\"DERPMap\":{\"Regions\":{\"9\":{\"Nodes\":[{\"HostName\":\"s\",\"STUNOnly\":true},"
          "{\"HostName\":\"t\"}]}}}");
    r = tn_map_region_node(&map, 9, 0);                             /* no relay, but it answers STUN */
    CHECK(r != NULL && r->port == 0 && r->stun_port == 3478);
    r = tn_map_region_node(&map, 9, 1);
    CHECK(r != NULL && r->port == 443);
    for (len = 62; len <= 65; len++) {                              /* host names at the limit */
        memset(host, 'h', sizeof host);
        host[len] = '\0';
        snprintf(text, sizeof text,
                 "{" SELF ",\"DERPMap\":{\"Regions\":{\"5\":{\"Nodes\":[{\"HostName\":\"%s\"},{\"HostName\":\"a "
                          "b\"},{\"HostName\":\"x\\r\\ny\"},{\"HostName\":\"fallback\"}]}}}}",
                 host);
        CHECK(say(text) == TN_MAP_OK);
        r = tn_map_region_by_id(&map, 5);
        CHECK(r != NULL && strcmp(tn_map_region_host(r), len <= 63 ? host : "fallback") == 0);
        CHECK(tn_map_region_by_id(&map, 9) == NULL);                /* the new set is the whole set */
    }
}

/* Each region's first relay before all others, then those of regions that matter. */
static void relays_of_a_region(void)
{
    static const char three[] = "\"Regions\":{\"1\":{\"Nodes\":[{\"HostName\":\"a0\"},{\"HostName\":\"bad "
                                "name\"},{\"HostName\":\"a1\"},{\"HostName\":\"a2\"}]},"
                                "\"2\":{\"Nodes\":[{\"HostName\":\"b0\"},{\"HostName\":\"b1\"}],\"Avoid\":true},"
                                "\"3\":{\"Nodes\":[{\"HostName\":\"c0\"},{\"HostName\":\"c1\"}]}}";
    char     text[2000];
    unsigned room, n, firsts;
    for (room = 0; room <= 8; room++) {
        start(2, 2, (uint16_t)room);
        tn_map_home(&map, 2);
        snprintf(text, sizeof text, "\"DERPMap\":{%s}", three);
        for (n = 0; n < 2; n++) first(text);                /* and again over itself */
        for (firsts = 0; tn_map_region_at(&map, firsts) != NULL; firsts++) {}
        CHECK(firsts == (room < 3 ? room : 3));
        CHECK((tn_map_region_node(&map, 2, 0) != NULL) == (room >= 1));
        CHECK((tn_map_region_node(&map, 2, 1) != NULL) == (room >= 4));
        CHECK((tn_map_region_node(&map, 1, 1) != NULL) == (room >= 5));
        CHECK((tn_map_region_node(&map, 1, 2) != NULL) == (room >= 7));
        CHECK(tn_map_region_node(&map, 1, 3) == NULL && tn_map_region_node(&map, 2, 2) == NULL);
        CHECK(tn_map_region_node(&map, 4, 0) == NULL && tn_map_region_node(&map, 0, 0) == NULL);
        for (n = 0; tn_map_region_node(&map, 2, n) != NULL; n++)
            CHECK((tn_map_region_node(&map, 2, n)->flags & TN_MAP_REGION_NOT_HOME) != 0);
        if (room == 8) CHECK(strcmp(tn_map_region_host(tn_map_region_node(&map, 1, 2)), "a2") == 0);
        CHECK(say("{\"DERPMap\":{\"Regions\":{\"3\":{\"Nodes\":[{\"HostName\":\"d0\"}]}}}}") == TN_MAP_OK);
        CHECK(tn_map_region_by_id(&map, 1) == NULL && tn_map_region_node(&map, 3, 1) == NULL);
        CHECK(room == 0 || strcmp(tn_map_region_host(tn_map_region_by_id(&map, 3)), "d0") == 0);
    }
}

/* A peer that no rule may let in: all rules are void while one does. */
static void unsigned_peers(void)
{
    static const char *const sources[] = { "*", "100.64.0.0/10", "100.64.0.4-100.64.0.5", "fd7a:115c:a1e0::5" };
    static const char *const others[]  = { "100.64.0.4", "100.64.0.6-100.64.0.9", "fd7a:115c:a1e0::6/127", "cap:x" };
    char     text[2000];
    unsigned i;
    for (i = 0; i < 8; i++) {
        const char *src = i < 4 ? sources[i] : others[i - 4];
        start(8, 8, 2);
        snprintf(text, sizeof text,
                 "\"Peers\":[%s,%s],\"PacketFilters\":{\"base\":[{\"SrcIPs\":[\"100.64.0.2\",\"%s\"],"
                 "\"DstPorts\":[{\"IP\":\"*\",\"Ports\":{\"First\":0,\"Last\":65535}}]}]}",
                 node(2, ""), node(5, ",\"UnsignedPeerAPIOnly\":true,\"AllowedIPs\":[\"100.64.0.4/32\"]"), src);
        first(text);
        CHECK(map.unsafe == (i < 4) && allowed(2) == (i < 4 ? TAILNET_ERR_DENIED : TAILNET_OK));
        CHECK(allowed(5) == TAILNET_ERR_DENIED);
        CHECK(say("{\"PeersRemoved\":[5]}") == TN_MAP_OK && !map.unsafe && allowed(2) == TAILNET_OK);
        sayf("{\"PeersChanged\":[%s]}", node(5, ",\"UnsignedPeerAPIOnly\":true"));
        CHECK(map.unsafe == (i < 4) && allowed(2) == (i < 4 ? TAILNET_ERR_DENIED : TAILNET_OK));
    }
}

/* What a first message that breaks off has brought goes again. */
static void broken_first(void)
{
    char        text[4000];
    tn_js       js;
    tn_js_event ev;
    uint16_t    index;
    uint8_t     kind;
    int         how;
    for (how = 0; how < 3; how++) {
        full();
        map.peers[at_id(2)].session = 7;
        tn_map_stream(&map, &flt);
        if (how == 0) {                                             /* no Node in it */
            snprintf(text, sizeof text, "{\"Peers\":[%s,%s]}", node(2, ""), node(6, ""));
            CHECK(say(text) == TN_MAP_ERROR);
        } else {
            snprintf(text, sizeof text, "{" SELF ",\"Peers\":[%s,%s", node(2, ""), node(6, ""));
            tn_js_init(&js);
            tn_js_feed(&js, text, strlen(text));
            while ((ev = tn_js_next(&js)) > TN_JS_MORE)
                if (tn_map_take(&map, &flt, &js, ev, now_ms) == TN_MAP_CHANGE) changes();
        }
        CHECK(tn_map_count(&map) == 4 && map.peers[at_id(6)].session == 0xffff);
        log_len = 0;
        tn_map_stream(&map, &flt);
        if (how == 2) while (tn_map_change(&map, &flt, &index, &kind, now_ms)) CHECK(kind == TN_MAP_GOING);
        CHECK(say("{\"KeepAlive\":true}") == TN_MAP_OK);
        CHECK(tn_map_count(&map) == 3 && at_id(6) == TN_MAP_NONE && at_id(1) != TN_MAP_NONE);
        CHECK(map.peers[at_id(2)].session == 7 && map.first);
        if (how != 2) CHECK(strcmp(log_text, "1:6 ") == 0);
    }
}

static void dns(void)
{
    uint8_t      kind;
    const char  *text;
    tailnet_addr a;
    unsigned     i;
    char         many[6000];
    size_t       at;
    start(4, 4, 2);
    first("\"DNSConfig\":{\"Resolvers\":[{\"Addr\":\"1.1.1.1\"},{\"Addr\":\"[::1]:5353\"},{\"Addr\":\"https://dns.x/"
          "q\"}],\"Routes\":{"
          "\"corp.x.\":[{\"Addr\":\"10.20.0.53\"},{\"Addr\":\"http://p:1/"
          "\"}],\"own.x\":null,\"own2.x\":[],\"64.100.in-addr.arpa\":[],\"only.http\":[{\"Addr\":\"https://a\"}]},"
          "\"Domains\":[\"t.net\",\"\"],\"Proxied\":true,\"ExtraRecords\":[{\"Name\":\"g.t.net.\",\"Value\":\"100.64."
          "0.4\"},{\"Name\":\"h\",\"Type\":\"TXT\",\"Value\":\"1.2.3.4\"}]}");
    CHECK(map.dns_proxied);
    CHECK(tn_map_dns(&map, 0, &kind, &text, &a) && kind == TN_MAP_DNS_RESOLVER && a.family == 4 && a.port == 53 &&
          *text == '\0');
    CHECK(tn_map_dns(&map, 1, &kind, &text, &a) && a.family == 6 && a.port == 5353);
    CHECK(tn_map_dns(&map, 2, &kind, &text, &a) && a.family == 0 && strcmp(text, "https://dns.x/q") == 0);
    CHECK(tn_map_dns(&map, 3, &kind, &text, &a) && kind == TN_MAP_DNS_SPLIT && strcmp(text, "corp.x") == 0 &&
          a.ip[3] == 53);
    CHECK(tn_map_dns(&map, 4, &kind, &text, &a) && strcmp(text, "own.x") == 0 && a.family == 0);
    CHECK(tn_map_dns(&map, 5, &kind, &text, &a) && strcmp(text, "own2.x") == 0 && a.family == 0);
    CHECK(tn_map_dns(&map, 6, &kind, &text, &a) && kind == TN_MAP_DNS_SEARCH && strcmp(text, "t.net") == 0);
    CHECK(tn_map_dns(&map, 7, &kind, &text, &a) && kind == TN_MAP_DNS_RECORD && strcmp(text, "g.t.net") == 0 &&
          a.ip[3] == 4);
    CHECK(!tn_map_dns(&map, 8, &kind, &text, &a));
    at = (size_t)sprintf(many, "{\"DNSConfig\":{\"Domains\":[");
    for (i = 0; i < 200; i++) at += (size_t)sprintf(many + at, "%s\"domain%u.x\"", i == 0 ? "" : ",", i);
    sprintf(many + at, "]}}");
    CHECK(say(many) == TN_MAP_OK);
    for (i = 0; tn_map_dns(&map, i, &kind, &text, &a); i++) CHECK(kind == TN_MAP_DNS_SEARCH);
    CHECK(i > 10 && i + map.dropped >= 200);
}

static void pings(void)
{
    char     text[3000], url[300];
    unsigned i, len;
    const tn_map_item *p = &map.work.item;
    start(4, 4, 2);
    for (cut_mode = 0; cut_mode < 3; cut_mode++) {
        map.ping_hash = 0;
        CHECK(say("{\"KeepAlive\":true,\"PingRequest\":{\"URL\":\"https://unused/c2n/"
                  "x?a=1\\u0026b=\\u003c2\\u003e\",\"URLIsNoise\":true,\"Types\":\"c2n\",\"Payload\":"
                  "\"R0VUIC9lY2hvIEhUVFAvMS4xDQpIb3N0OiANCg0K\"}}") == TN_MAP_OK);
        CHECK(last == TN_MAP_PING && strcmp(p->text, "https://unused/c2n/x?a=1&b=<2>") == 0 && p->noise);
        CHECK(strcmp(p->more, "c2n") == 0 && p->payload_len == 30);
        CHECK_BYTES(p->payload, "GET /echo HTTP/1.1\r\nHost: \r\n\r\n", 30);
        CHECK(say("{\"PingRequest\":{\"URL\":\"https://unused/c2n/x?a=1\\u0026b=\\u003c2\\u003e\"}}") ==
                  TN_MAP_ERROR ||
              last == TN_MAP_OK);
        for (i = TN_MAP_PING_BODY - 3; i <= TN_MAP_PING_BODY + 3; i++) { /* payloads around the limit */
            size_t n = (size_t)sprintf(text, "{\"KeepAlive\":true,\"PingRequest\":{\"URL\":\"u%u\",\"Payload\":\"",
                                       i),
                   k;
            for (k = 0; k < (i + 2) / 3 * 4; k++)
                text[n++] = k * 3 / 4 < i && !(k == (i + 2) / 3 * 4 - 1 && i % 3 != 0) ? 'Q' : '=';
            strcpy(text + n, "\"}}");
            CHECK(say(text) == TN_MAP_OK && (last == TN_MAP_PING) == (i <= TN_MAP_PING_BODY));
            CHECK(p->payload_len == (i <= TN_MAP_PING_BODY ? i : TN_MAP_PING_BODY) && p->payload[0] == 0x41);
        }
        for (len = TN_MAP_TEXT - 2; len <= 290; len++) {
            memset(url, 'u', sizeof url);
            url[len] = '\0';
            snprintf(text, sizeof text, "{\"KeepAlive\":true,\"PingRequest\":{\"URL\":\"%s\"}}", url);
            CHECK(say(text) == TN_MAP_OK && (last == TN_MAP_PING) == (len < TN_MAP_TEXT));
        }
        CHECK(say("{\"KeepAlive\":true,\"PingRequest\":{\"URL\":\"a b\"}}") == TN_MAP_OK && last == TN_MAP_OK);
        CHECK(say("{\"KeepAlive\":true,\"PingRequest\":{\"URL\":\"b64\",\"Payload\":\"!!!!!!AA\"}}") ==
                  TN_MAP_OK && last == TN_MAP_OK);                  /* no base64 */
        CHECK(say("{\"KeepAlive\":true,\"PingRequest\":{}}") == TN_MAP_OK && last == TN_MAP_OK);
    }
    cut_mode = 0;
}

/* ---- more peers than room ---- */

static void list(char *dst, size_t cap, unsigned from, unsigned to, int step)
{
    size_t   at = (size_t)snprintf(dst, cap, "\"Peers\":[");
    unsigned id = from;
    for (;;) {
        at += (size_t)snprintf(dst + at, cap - at, "%s%s", id == from ? "" : ",", node(id, ""));
        if (id == to) break;
        id = (unsigned)((int)id + step);
    }
    snprintf(dst + at, cap - at, "]");
}

static void directory_full(void)
{
    static char text[8000];
    uint16_t    i;
    tailnet_addr a;
    bool        own;
    start(3, 4, 2);
    list(text, sizeof text, 10, 1, -1);
    first(text);
    CHECK(tn_map_count(&map) == 3 && map.peers_missing && map.passed_over == 0);
    CHECK(at_id(1) != TN_MAP_NONE && at_id(2) != TN_MAP_NONE && at_id(3) != TN_MAP_NONE);     /* the lowest ids */
    list(text, sizeof text, 1, 10, 1);
    first(text);
    CHECK(tn_map_count(&map) == 3 && map.passed_over == 7 && at_id(3) != TN_MAP_NONE);
    /* a want: by address, key, name */
    CHECK(tn_ip_parse(&a, "100.64.0.8", 10));
    CHECK(tn_map_want_ip(&map, &a, true, now_ms) == TN_MAP_WISH_WAIT && tn_map_wants(&map, &own) == 1 && own);
    CHECK(tn_map_want_ip(&map, &a, true, now_ms) == TN_MAP_WISH_WAIT && tn_map_wants(&map, &own) == 1);
    CHECK(tn_map_want_name(&map, "nobody", 6, false, now_ms) == TN_MAP_WISH_WAIT && tn_map_wants(&map, &own) == 2);
    CHECK(tn_map_want_name(&map, "P9.t.net.", 9, false, now_ms) == TN_MAP_WISH_WAIT && tn_map_wants(&map, &own) == 3);
    tn_map_busy(&map, at_id(1), true);
    log_len = 0;
    first(text);
    CHECK(finds("100.64.0.8", 8) && at_id(9) != TN_MAP_NONE && at_id(1) != TN_MAP_NONE &&
          tn_map_wants(&map, &own) == 0);
    CHECK(strcmp(log_text, "1:3 1:2 ") == 0 && map.wants_met == 2 && map.wants_lost == 1);
    CHECK(tn_map_want_name(&map, "nobody", 6, true, now_ms) == TN_MAP_WISH_NO);
    now_ms += 601000;
    CHECK(tn_map_want_name(&map, "nobody", 6, true, now_ms) == TN_MAP_WISH_WAIT);
    /* in use: not the victim, for nine minutes */
    CHECK(tn_map_want_ip(&map, &a, true, now_ms) == TN_MAP_WISH_WAIT);
    tn_map_used(&map, at_id(8), now_ms);
    tn_map_used(&map, at_id(9), now_ms);
    first(text);
    CHECK(at_id(8) != TN_MAP_NONE && at_id(9) != TN_MAP_NONE && at_id(1) != TN_MAP_NONE);
    now_ms += 541000;
    first(text);
    CHECK(at_id(2) != TN_MAP_NONE && at_id(3) != TN_MAP_NONE && at_id(1) != TN_MAP_NONE);
    for (i = 0; i < 6; i++) {                                       /* four wants at most; our own first */
        a.ip[3] = (uint8_t)(20 + i);
        CHECK(tn_map_want_ip(&map, &a, false, now_ms) == (i < 4 ? TN_MAP_WISH_WAIT : TN_MAP_WISH_NO));
    }
    CHECK(tn_map_want_ip(&map, &a, true, now_ms) == TN_MAP_WISH_WAIT && tn_map_wants(&map, &own) == 4 && own);
    first("");
    CHECK(!map.peers_missing && tn_map_want_ip(&map, &a, true, now_ms) == TN_MAP_WISH_NO);
}

static int32_t keep_even(const tn_map_peer *p)
{
    return p->id % 5 == 0 ? -1 : p->id % 2 == 0 ? (int32_t)p->id : 0;
}

static void asked(void)
{
    static char text[8000];
    start(3, 4, 2);
    keep = keep_even;
    tn_map_asks(&map, true);
    list(text, sizeof text, 1, 10, 1);
    first(text);
    CHECK(at_id(4) != TN_MAP_NONE && at_id(6) != TN_MAP_NONE && at_id(8) != TN_MAP_NONE && tn_map_count(&map) == 3);
    CHECK(strstr(log_text, "32:ask10 ") != NULL && map.passed_over == 4);     /* 5, 7, 9, 10 */
    start(3, 4, 2);
    keep = keep_even;
    tn_map_asks(&map, true);
    tn_map_prefs(&map, NULL, false);
    first("");
    sayf("{\"PeersChanged\":[%s]}", node(5, ""));
    CHECK(tn_map_count(&map) == 0 && map.peers_missing);
}

static void ranks(void)
{
    static char text[8000];
    start(2, 4, 2);
    tn_map_prefs(&map, "p30", true);
    snprintf(text, sizeof text, "\"Peers\":[%s,%s,%s,%s]", node(1, ""), node(2, ""),
             node(20, ",\"AllowedIPs\":[\"100.64.0.20/32\",\"10.0.0.0/8\"]"),
             node(30, ",\"AllowedIPs\":[\"0.0.0.0/0\",\"::/0\"]"));
    first(text);
    CHECK(at_id(20) != TN_MAP_NONE && at_id(30) != TN_MAP_NONE);
    CHECK(finds("8.8.8.8", 30) && finds("10.1.1.1", 20));
    /* named by a rule: the filter of the stream before counts */
    start(1, 4, 2);
    first("\"PacketFilters\":{\"base\":[{\"SrcIPs\":[\"100.64.0.9\"],\"DstPorts\":[{\"IP\":\"*\",\"Ports\":{"
          "\"First\":1,\"Last\":2}}]}]}");
    list(text, sizeof text, 7, 10, 1);
    first(text);
    CHECK(at_id(9) != TN_MAP_NONE);
}

static void routes_full(void)
{
    tailnet_prefix pre;
    uint16_t       i;
    size_t         n = 0;
    start(4, 3, 2);
    tn_map_prefs(&map, NULL, true);
    first("");
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"AllowedIPs\":[\"10.1.0.0/16\",\"10.2.0.0/16\",\"10.3.0.0/"
                                            "16\",\"100.64.0.1/32\",\"fd7a:115c:a1e0::1/128\"]"));
    while (tn_map_route(&map, n, &pre, &i)) n++;
    CHECK(n == 3 && map.dropped == 0 && finds("fd7a:115c:a1e0::1", 1) && finds("10.3.1.1", 1));
    sayf("{\"PeersChanged\":[%s]}", node(1, ",\"AllowedIPs\":[\"10.1.0.0/16\",\"10.2.0.0/16\",\"10.4.0.0/"
                                            "16\",\"100.64.0.1/32\"]"));
    CHECK(finds("10.4.1.1", 1) && finds("10.3.1.1", 0) && map.dropped == 0);    /* replaced in a full pool */
    sayf("{\"PeersChanged\":[%s]}", node(2, ",\"AllowedIPs\":[\"10.7.0.0/16\",\"100.64.0.2/32\"]"));
    CHECK(finds("10.7.1.1", 0) && finds("100.64.0.2", 2) && map.dropped == 1);
    sayf("{\"PeersChanged\":[%s]}", node(3, ",\"AllowedIPs\":[\"10.21.0.0/16\",\"10.22.0.0/16\",\"10.23.0.0/"
                                            "16\",\"10.24.0.0/16\",\"10.25.0.0/16\",\"10.26.0.0/16\",\"10.27.0.0/"
                                            "16\",\"100.64.0.3/32\"]"));
    CHECK(finds("100.64.0.3", 3));
}

static void nothing_fits(void)
{
    static char text[8000];
    start(0, 0, 0);
    list(text, sizeof text, 1, 5, 1);
    strcat(text, ",\"DERPMap\":{\"Regions\":{\"1\":{\"Nodes\":[{\"HostName\":\"r.x\"}]}}}");
    first(text);
    CHECK(tn_map_count(&map) == 0 && map.peers_missing && map.passed_over == 5);
    CHECK(finds("100.64.0.1", 0) && named("p1", 0));
    CHECK(say("{\"PeersRemoved\":[1],\"OnlineChange\":{\"1\":true},\"PeersChangedPatch\":[{\"NodeID\":1,\"Online\":"
              "true}]}") == TN_MAP_OK);
}

/* Random deltas over a small directory: the invariants hold, any cut gives the same. */
static uint64_t churn_seed;
static void run_churn(void)
{
    uint64_t seed = churn_seed, keep_seed = tn_test_seed;
    int      turn;
    start(3, 3, 2);
    tn_map_prefs(&map, "p2", true);
    for (turn = 0; turn < 60; turn++) {
        static const char *const more[] = {
            "", ",\"AllowedIPs\":[]", ",\"Expired\":true", ",\"AllowedIPs\":[\"0.0.0.0/0\",\"::/0\",\"10.0.0.0/8\"]",
            ",\"AllowedIPs\":[\"10.0.0.0/8\",\"10.1.0.0/16\",\"100.64.0.1/32\"]",
            ",\"IsWireGuardOnly\":true", ",\"Online\":true"
        };
        char     text[8000];
        uint64_t r;
        unsigned id, other;
        tn_test_seed = seed;
        r    = tn_test_random();
        seed = tn_test_seed;
        id    = (unsigned)(r % 7 + 1);
        other = (unsigned)(r >> 8) % 7 + 1;
        switch ((r >> 16) % 8) {
        case 0: snprintf(text, sizeof text, "{\"PeersRemoved\":[%u,%u]}", id, other); break;
        case 1:
            snprintf(text, sizeof text, "{\"PeersChangedPatch\":[{\"NodeID\":%u,\"Key\":\"nodekey:%064x\"}]}", id,
                     other + 1);
            break;
        case 2:
            snprintf(text, sizeof text,
                     "{\"PeersChangedPatch\":[{\"NodeID\":%u,\"DiscoKey\":\"discokey:%064x\",\"DERPRegion\":%u}]}",
                     id, other, id);
            break;
        case 3:
            snprintf(text, sizeof text, "{\"Peers\":[%s,%s]}", node(id, more[(r >> 24) % 7]), node(other, ""));
            break;
        case 4:
            tn_map_stream(&map, &flt);
            snprintf(text, sizeof text, "{" SELF ",\"Peers\":[%s]}", node(id, more[(r >> 24) % 7]));
            break;
        default:
            snprintf(text, sizeof text, "{\"PeersChanged\":[%s,%s]}", node(id, more[(r >> 24) % 7]),
                     node(other, more[(r >> 28) % 7]));
            break;
        }
        if (turn == 0) { first(""); }
        tn_test_seed = keep_seed;
        CHECK(say(text) == TN_MAP_OK);
        keep_seed = tn_test_seed;
    }
    tn_test_seed = keep_seed;
}

static void churn(void)
{
    int i;
    for (i = 0; i < 60; i++) {
        churn_seed = (uint64_t)i * 77 + 5;
        all_cuts(run_churn);
    }
}

int main(void)
{
    TEST(recorded_maps);
    TEST(recorded_maps_small);
    TEST(recorded_deltas);
    TEST(recorded_sessions);
    TEST(rows_without_effect);
    TEST(rows_with_effect);
    TEST(streams);
    TEST(nodes);
    TEST(kinds_of_change);
    TEST(expiry);
    TEST(relays);
    TEST(relays_of_a_region);
    TEST(unsigned_peers);
    TEST(broken_first);
    TEST(dns);
    TEST(pings);
    TEST(directory_full);
    TEST(asked);
    TEST(ranks);
    TEST(routes_full);
    TEST(nothing_fits);
    TEST(churn);
    printf("sizeof tn_map %u, peer %u, region %u\n", (unsigned)sizeof(tn_map), (unsigned)sizeof(tn_map_peer),
           (unsigned)sizeof(tn_map_region));
    return tn_test_end();
}
