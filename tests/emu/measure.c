/* What the library takes on a bare processor, as lines "name: number": instructions
 * of a join, a handshake, packets, a map, a TLS handshake, and the deepest painted
 * stack of each call. Real nodes in the in-memory world of tests/unit, where the
 * control server and the relays are; started by tests/tools/size under QEMU. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"
#include "meter.h"

#undef TAILNET_X25519                       /* the library has its own by now          */
#include "node_world.h"
#include "tls_world.h"

static void say(const char *name, uint64_t number)
{
    printf("%s: %lu\n", name, (unsigned long)number);
}

static void say_of(const char *what, const char *name, uint64_t number)
{
    printf("%s %s: %lu\n", what, name, (unsigned long)number);
}

/* How deep the calls since the last reset went. */
static void say_deep(const char *what)
{
    say_of("deep", what, meter_deep);
}

/* ---- nodes ---- */

/* A world where nothing is left to chance but keys. */
static nw_world *calm_world(uint64_t seed, bool udp)
{
    nw_world *w = nw_begin(seed);
    w->calm = true;
    w->udp  = udp;
    return w;
}

/* A metered node, joined; relay_only without a word by UDP. */
static nw_node *join(nw_world *w, const char *name, uint16_t peers, bool relay_only)
{
    nw_node *d = nw_add(w, name);
    d->desc.max_peers        = peers;
    d->desc.prefs.relay_only = relay_only;
    meter_callbacks(&d->desc.io);
    if (!relay_only) d->place.ip[0] = 203;
    CHECK(nw_make(d) == TAILNET_OK);
    if (d->n == NULL) exit(1);
    meter_nodes[d->number] = d->n;
    meter_reset();
    if (!relay_only) nw_network(d, false);
    CHECK(tailnet_up(d->n) == TAILNET_OK);
    CHECK(nw_until(d, TAILNET_STATE_RUNNING, 20000));
    return d;
}

/* count packets of so many bytes from a to b; all have to come. */
static void packets(nw_node *a, nw_node *b, size_t len, unsigned count)
{
    uint8_t      packet[2048], payload[2048];
    tailnet_addr src, dst;
    unsigned     i, was = b->packets;
    memset(payload, 'x', sizeof payload);
    nw_my_ip(a, &src);
    nw_my_ip(b, &dst);
    src.port = dst.port = 7;
    for (i = 0; i < count; i++) {
        size_t n = nw_udp_packet(packet, &src, &dst, payload, len - 28);
        CHECK(nw_send_packet(a, packet, n) == TAILNET_OK);
        nw_run(a->w, 10);
    }
    CHECK(b->packets == was + count);
}

/* Instructions per packet, of the sender and of the receiver. */
static void packets_cost(const char *way, nw_node *a, nw_node *b, meter_call arrives)
{
    static const size_t sizes[2] = { 100, 1280 };
    char     name[64];
    unsigned i;
    for (i = 0; i < 2; i++) {
        packets(a, b, sizes[i], 4);
        meter_reset();
        packets(a, b, sizes[i], 32);
        snprintf(name, sizeof name, "%s %u out", way, (unsigned)sizes[i]);
        say(name, meter_cost(a->n, METER_IP_INPUT) / 32);
        snprintf(name, sizeof name, "%s %u in", way, (unsigned)sizes[i]);
        say(name, (meter_cost(b->n, arrives) + meter_cost(b->n, METER_TCP_COMMIT)) / 32);
        snprintf(name, sizeof name, "%s %u", way, (unsigned)sizes[i]);
        say_deep(name);
    }
}

/* Joining, a handshake with a peer through the relay, packets through it. */
static void by_relay(void)
{
    nw_world *w = calm_world(1, false);
    nw_node  *a = join(w, "alpha", 16, true), *b;
    say("join", meter_total(a->n));
    say("join longest poll", meter_of(a->n, METER_POLL)->longest);
    say_deep("join");
    b = join(w, "beta", 16, true);
    nw_run(w, 5000);
    meter_reset();
    CHECK(nw_send(a, b, 7, "first") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(nw_got(b, "first") == 1);
    say("handshake initiator", meter_total(a->n));
    say("handshake responder", meter_total(b->n));
    say_deep("handshake");
    packets_cost("relay", a, b, METER_TCP_INPUT);
    nw_run(w, 122000);                      /* the next packet asks for new keys      */
    meter_reset();
    CHECK(nw_send(a, b, 7, "again") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(nw_got(b, "again") == 1 && a->n->stats.handshakes >= 2);
    say("rekey initiator", meter_total(a->n));
    say("rekey responder", meter_total(b->n));
    nw_end(w);
}

/* The straight way: how it is found, packets on it. */
static void straight(void)
{
    nw_world    *w = calm_world(2, true);
    nw_node     *a = join(w, "alpha", 16, false), *b = join(w, "beta", 16, false);
    tailnet_peer p;
    tailnet_addr ip;
    size_t       index = 0;
    nw_run(w, 5000);
    meter_reset();
    CHECK(nw_send(a, b, 7, "first") == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(nw_got(b, "first") == 1);
    nw_my_ip(b, &ip);
    CHECK(tailnet_find_peer_by_ip(a->n, &ip, &index) && tailnet_get_peer(a->n, index, &p));
    CHECK(p.path == TAILNET_PATH_DIRECT);
    say("meet initiator", meter_total(a->n));
    say("meet responder", meter_total(b->n));
    say_deep("meet");
    packets_cost("direct", a, b, METER_UDP_INPUT);
    meter_reset();
    nw_run(w, 3600000);
    say("idle hour", meter_total(a->n));
    say("idle hour polls", meter_of(a->n, METER_POLL)->calls);
    nw_end(w);
}

/* ---- a map ---- */

static const char MORE[] =
    ",\"StableID\":\"nTHmQ7hXkM11CNTRL\",\"Created\":\"2026-11-21T08:00:00Z\",\"Cap\":138,"
    "\"LastSeen\":\"2026-11-21T08:00:00Z\",\"Hostinfo\":{\"OS\":\"linux\",\"OSVersion\":"
    "\"6.1.0\",\"Hostname\":\"machine\",\"GoArch\":\"amd64\",\"Services\":[{\"Proto\":"
    "\"peerapi4\",\"Port\":41641}]},\"CapMap\":{\"https://tailscale.com/cap/is-owner\":null}";

/* What a node pays to join a tailnet of so many members; *bytes is the length of
 * the map as the server wrote it. */
static uint64_t map_cost(uint16_t peers, unsigned members, size_t *bytes)
{
    nw_world *w = calm_world(3, false);
    nw_node  *a;
    tn_wr     t;
    char      name[16];
    uint64_t  cost;
    unsigned  i;
    for (i = 0; i < members; i++) {
        nw_member *m;
        snprintf(name, sizeof name, "ghost%u", i);
        m = nw_ghost(w, name, 1);
        memcpy(m->more, MORE, sizeof MORE);
        memcpy(m->endpoints, "[\"203.0.113.9:41641\",\"10.0.0.9:41641\"]", 40);
    }
    a    = join(w, "alpha", peers, true);
    cost = meter_total(a->n);
    if (members == 51 && peers == 64) say_deep("map");
    CHECK(tailnet_peer_count(a->n) == (members < peers ? members : peers));
    tn_wr_over(&t, w->text, sizeof w->text);
    nw_put_map(w, &t, nw_member_of(w, a));
    *bytes = tn_wr_len(&t);
    nw_end(w);
    return cost;
}

static void map_lines(const char *what, uint16_t peers)
{
    size_t   few_bytes, many_bytes;
    uint64_t few = map_cost(peers, 3, &few_bytes), many = map_cost(peers, 51, &many_bytes);
    say_of(what, "map bytes", many_bytes - few_bytes);
    say_of(what, "map cost", many - few);
}

static void maps(void)
{
    map_lines("kept", 64);
    map_lines("passed", 3);
}

/* ---- TLS ---- */

static struct {
    uint64_t     now_ms, seed;
    world_server server;
    tailnet_link link;
    bool         open;
    unsigned     in;                        /* bytes of requests that reached the server */
    union {
        uint8_t  bytes[160 * 1024];
        uint64_t align;
    } memory;
} tls;

static uint64_t tls_now(void *user) { (void)user; return tls.now_ms; }
static uint64_t tls_unix(void *user) { (void)user; return WORLD_NOW_MS; }

static void tls_close(void *user, tailnet_link link)
{
    (void)user, (void)link;
    tls.open = false;
}

static int tls_random(void *user, void *dst, size_t size)
{
    (void)user;
    nw_fill(&tls.seed, dst, size);
    return 0;
}

static int tls_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    (void)user;
    (void)dial;
    tls.link = link;
    tls.open = true;
    return 0;
}

static int32_t tls_output(void *user, tailnet_link link, const void *data, size_t size)
{
    (void)user, (void)link;
    return (int32_t)world_feed(&tls.server.port, (const uint8_t *)data, size);
}

static tailnet_node *tls_node(const char *url)
{
    tailnet_desc  d;
    tailnet_node *n = NULL;
    memset(&d, 0, sizeof d);
    d.memory         = tls.memory.bytes;
    d.memory_size    = sizeof tls.memory.bytes;
    d.control_url    = url;
    d.auth_key       = "key-1";
    d.trust_anchors  = certs.anchors;
    d.trust_anchor_count = 2;
    d.io.now_ms      = tls_now;
    d.io.unix_ms     = tls_unix;
    d.io.random      = tls_random;
    d.io.ip_output   = world_ip;
    d.io.tcp_open    = tls_open;
    d.io.tcp_output  = tls_output;
    d.io.tcp_close   = tls_close;
    d.prefs.relay_only = true;
    meter_callbacks(&d.io);
    CHECK(tailnet_init(&n, &d) == TAILNET_OK);
    if (n == NULL) exit(1);
    meter_nodes[0] = n;
    return n;
}

/* Everything moves until the node's request for the key is at the server. */
static void tls_turn(tailnet_node *n)
{
    unsigned turns;
    size_t   len, asked = 0;
    for (turns = 0; turns < 2000 && asked == 0; turns++) {
        const uint8_t *data;
        tls.now_ms++;
        (void)tailnet_poll(n);
        data = tn_tls_out(&tls.server.port, &len);
        if (data != NULL) tn_tls_sent(&tls.server.port, tailnet_tcp_input(n, tls.link, data, len));
        if (tn_tls_is_up(&tls.server.port)) (void)tn_tls_read(&tls.server.port, &asked);
    }
    CHECK(asked != 0);
}

/* From the open connection to the request for the key: certificates and names are
 * verified, the key agreement done. */
static void tls_handshake(const char *name, const char *url, const int *chain)
{
    tailnet_node *n;
    char          text[32];
    tls.now_ms = 1000;
    tls.seed   = 7;
    world_server_start(&tls.server, chain);
    n = tls_node(url);
    CHECK(tailnet_up(n) == TAILNET_OK);
    while (!tls.open && tls.now_ms < 5000) {
        tls.now_ms++;
        (void)tailnet_poll(n);
    }
    meter_reset();
    CHECK(tailnet_tcp_opened(n, tls.link) == TAILNET_OK);
    tls_turn(n);
    say_of("tls", name, meter_total(n));
    say_of("tls longest poll", name, meter_of(n, METER_POLL)->longest);
    snprintf(text, sizeof text, "tls %s", name);
    say_deep(text);
    tailnet_wipe(n);
}

static void tls_handshakes(void)
{
    static const int p256[] = { C_ADDRESS, -2 }, p384[] = { C_GOOD, C_MIDDLE, -2 },
                     rsa[] = { C_GOOD_RSA, -2 };
    world_load();
    tls_handshake("rsa", "https://relay.example", rsa);
    tls_handshake("p256", "https://192.0.2.7", p256);
    tls_handshake("p384", "https://relay.example", p384);
}

/* ---- primitives ---- */

static void x25519_with(const char *name, const br_ec_impl *ec)
{
    uint8_t  scalar[32], point[32] = { 9 };
    uint64_t begun;
    memset(scalar, 0x5a, sizeof scalar);
    begun = meter_now();
    CHECK(ec->mul(point, 32, scalar, 32, BR_EC_curve25519) == 1);
    say_of("x25519", name, meter_now() - begun);
}

static void poly1305_with(const char *name, br_poly1305_run run)
{
    static uint8_t data[1280];
    uint8_t        key[32] = { 1 }, nonce[12] = { 2 }, tag[16];
    uint64_t       begun = meter_now();
    run(key, nonce, data, sizeof data, NULL, 0, tag, br_chacha20_ct_run, 1);
    say_of("aead 1280", name, meter_now() - begun);
}

/* The default again, compiled like the rest of BearSSL. */
extern const br_ec_impl small_c25519_m31;

static void primitives(void)
{
    x25519_with("m31", &br_ec_c25519_m31);
    x25519_with("small", &small_c25519_m31);
    x25519_with("m15", &br_ec_c25519_m15);
    x25519_with("i31", &br_ec_c25519_i31);
    x25519_with("i15", &br_ec_c25519_i15);
    poly1305_with("ctmul", br_poly1305_ctmul_run);
    poly1305_with("ctmul32", br_poly1305_ctmul32_run);
    poly1305_with("i15", br_poly1305_i15_run);
}

int main(void)
{
    unsigned i;
    meter_begin();
    meter_paint(0);
    TEST(primitives);
    TEST(by_relay);
    TEST(straight);
    TEST(maps);
    TEST(tls_handshakes);
    for (i = 0; i < METER_CALLS; i++) say_of("stack", meter_names[i], meter_deepest[i]);
    return tn_test_end();
}
