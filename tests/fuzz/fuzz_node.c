/* Bytes are a list of calls into a node that runs: relay frames, sealed packets of
 * its peer, map messages, HTTP/2 frames, packets of its application, time, broken
 * connections, wishes. After each what must always hold is looked at. The node is
 * made once, in the world of the unit tests, and put back from a copy each time. */
#define NW_TOY_CURVE
#include "tn_test.h"
#include "node_world.h"

static nw_world     *world;
static nw_node      *node, *peer;
static uint8_t       copy[NW_MEMORY];
static size_t        used;
static uint64_t      start_ms;
static nw_conn       control_copy;
static tn_wg         wg_copy, wg;           /* the peer's side of the session     */
static tn_nz         nz;                    /* the server's side of control       */
static uint8_t       peer_key[32], peer_disco[32], box[32];
static uint32_t      map_stream;
static tailnet_link  control_link, relay_link, open_links[8];
static unsigned      room;                  /* what tcp_output takes; 255: all    */
static uint64_t      luck;

static uint64_t sink_now(void *user) { (void)user; return world->now_ms; }
static uint64_t sink_unix(void *user) { (void)user; return NW_UNIX_MS + world->now_ms; }
static int      sink_random(void *user, void *dst, size_t size)
{
    (void)user;
    nw_fill(&luck, dst, size);
    return 0;
}
static volatile uint8_t seen;
static uint8_t          last_stun[12];      /* id of the request sent last        */
static void touch(const tailnet_buf *pkts, size_t count)
{
    size_t i, k;
    for (i = 0; i < count; i++)
        for (k = 0; k < pkts[i].len; k++) seen ^= pkts[i].base[pkts[i].off + k];
}
static int sink_udp(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    (void)user;
    if (to->family != 4 && to->family != 6) abort();
    if (pkts->len == TN_STUN_REQUEST_LEN) memcpy(last_stun, pkts->base + pkts->off + 8, 12);
    touch(pkts, count);
    return 0;
}
static void sink_ip(void *user, tailnet_buf *pkts, size_t count)
{
    (void)user;
    touch(pkts, count);
    if (tailnet_poll(node->n) != 0) abort();    /* refused: we are inside          */
}
static int sink_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    (void)user;
    if (TAILNET_LINK_SLOT(link) >= 2 || open_links[TAILNET_LINK_SLOT(link)] != 0) abort();
    if (dial->host == NULL || strlen(dial->host) == 0) abort();
    open_links[TAILNET_LINK_SLOT(link)] = link;
    return room == 7 ? -1 + 0 * (int)(open_links[TAILNET_LINK_SLOT(link)] = 0) : 0;
}
static int32_t sink_output(void *user, tailnet_link link, const void *data, size_t size)
{
    tailnet_buf b;
    (void)user;
    if (open_links[TAILNET_LINK_SLOT(link)] != link || size == 0) abort();
    memset(&b, 0, sizeof b);
    b.base = (uint8_t *)(uintptr_t)data;
    b.len  = (uint32_t)size;
    touch(&b, 1);
    if (room == 6) return -1;
    return room == 255 || size < room ? (int32_t)size : (int32_t)room;
}
static void sink_close(void *user, tailnet_link link)
{
    (void)user;
    if (open_links[TAILNET_LINK_SLOT(link)] != link) abort();
    open_links[TAILNET_LINK_SLOT(link)] = 0;
}

static void begin(void)
{
    nw_conn *c, *r;
    tailnet_io *io;
    setvbuf(stdout, NULL, _IOLBF, 0);
    world = nw_begin(1);
    world->calm = true;
    world->udp  = true;
    nw_pair(world, &node, &peer);
    nw_network(node, true);
    nw_network(peer, true);
    nw_run(world, 5000);
    CHECK(nw_send(node, peer, 7, "directly") == TAILNET_OK);
    nw_run(world, 3000);
    c = nw_conn_to(node, 0);
    r = nw_conn_to(node, 1);
    if (!tn_test_ok || c == NULL || r == NULL) abort();
    control_link = c->link;
    relay_link   = r->link;
    control_copy = *c;
    map_stream   = c->member->stream;
    io = &node->n->rim.io;
    io->now_ms     = sink_now;
    io->unix_ms    = sink_unix;
    io->random     = sink_random;
    io->udp_output = sink_udp;
    io->ip_output  = sink_ip;
    io->tcp_open   = sink_open;
    io->tcp_output = sink_output;
    io->tcp_close  = sink_close;
    memcpy(peer_key, peer->n->node_public, 32);
    memcpy(peer_disco, peer->n->disco_public, 32);
    if (!tn_cr_box_key(box, peer->n->disco_private, node->n->disco_public)) abort();
    wg_copy  = peer->n->sessions[0].wg;
    used     = tailnet_memory_needed(&node->desc);
    start_ms = world->now_ms;
    memcpy(copy, node->memory.bytes, used);
}

static void put_back(void)
{
    memcpy(node->memory.bytes, copy, used);
    world->now_ms = start_ms;
    wg            = wg_copy;
    nz            = control_copy.nz;
    room          = 255;
    luck          = 7;
    memset(open_links, 0, sizeof open_links);
    open_links[TAILNET_LINK_SLOT(control_link)] = control_link;
    open_links[TAILNET_LINK_SLOT(relay_link)]   = relay_link;
}

static void look(void)
{
    nw_check(node);
    if (!tn_test_ok) abort();
}

static void polls(void)
{
    unsigned i;
    for (i = 0; i < 300 && tailnet_deadline(node->n) <= world->now_ms; i++) {
        unsigned dh = nw_dh;
        (void)tailnet_poll(node->n);
        if (nw_dh - dh > 12) abort();
        look();
    }
    if (i == 300) abort();                  /* it spins                           */
}

static void stream_in(tailnet_link link, const uint8_t *data, size_t size)
{
    size_t   at = 0;
    unsigned i;
    for (i = 0; i < 64 && at < size; i++) { /* room is back after a poll          */
        size_t n = tailnet_tcp_input(node->n, link, data + at, size - at);
        if (n > size - at) abort();
        at += n;
        if (n == 0) (void)tailnet_poll(node->n);
    }
}

/* As the relay brings it. */
static void by_relay(const uint8_t *data, size_t size)
{
    uint8_t frame[4096];
    tn_wr   t;
    tn_wr_over(&t, frame, sizeof frame);
    tn_derp_wr_recv(&t, peer_key, data, size);
    stream_in(relay_link, frame, tn_wr_len(&t));
}

static void sealed_by_peer(const uint8_t *data, size_t size)
{
    uint8_t       gram[4096], nonce[12];
    tailnet_crypt work;
    tn_wr         t;
    memset(gram, 0, sizeof gram);
    memcpy(gram + TN_WG_HEAD_LEN, data, size);
    if (tn_wg_seal_begin(&wg, gram, size, 1280, world->now_ms, &work) != TN_WG_OK) return;
    tn_wr_over(&t, nonce, sizeof nonce);
    tn_wr_u32le(&t, 0);
    tn_wr_u64le(&t, work.counter);
    tn_cr_aead_seal(work.key, nonce, NULL, 0, work.data, work.len, work.data + work.len);
    by_relay(gram, work.len + TN_WG_OVERHEAD);
}


/* Bytes inside Noise, as the server writes them. */
static void by_control(const uint8_t *data, size_t size)
{
    uint8_t record[TN_NZ_RECORD_MAX];
    memcpy(record + TN_NZ_HEAD_LEN, data, size);
    size = tn_nz_seal(&nz, record, size);
    if (size != 0) stream_in(control_link, record, size);
}

static void map_message(const uint8_t *data, size_t size)
{
    uint8_t text[3000];
    tn_wr   t;
    tn_wr_over(&t, text, sizeof text);
    tn_h2_wr_head(&t, (uint32_t)(4 + size), TN_H2_T_DATA, 0, map_stream);
    tn_wr_u32le(&t, (uint32_t)size);
    tn_wr_bytes(&t, data, size);
    by_control(text, tn_wr_len(&t));
}

static void application(const uint8_t *data, size_t size, unsigned how)
{
    uint8_t     bytes[4096];
    tailnet_buf b;
    memset(&b, 0, sizeof b);
    b.base = bytes;
    b.off  = how % 48;
    b.len  = (uint32_t)size;
    b.cap  = (uint32_t)(b.off + size + how / 5);
    memcpy(bytes + b.off, data, size);
    (void)tailnet_ip_input(node->n, &b, 1);
}

static void datagram(const uint8_t *data, size_t size)
{
    uint8_t     bytes[2048];
    tailnet_buf b;
    memset(&b, 0, sizeof b);
    memcpy(bytes, data, size);
    b.base = bytes;
    b.cap  = sizeof bytes;
    b.len  = (uint32_t)size;
    (void)tailnet_udp_input(node->n, &peer->place, &b, 1);
}

/* In the box of its disco key; a pong by UDP answers the ping that its first byte
 * names, if there was one. */
static void disco_by_peer(const uint8_t *data, size_t size, bool relay)
{
    uint8_t gram[2048], nonce[24];
    tn_wr   t;
    size_t  len;
    memset(nonce, 3, sizeof nonce);
    tn_disco_begin(&t, gram, sizeof gram, peer_disco, nonce);
    tn_wr_bytes(&t, data, size);
    len = tn_disco_finish(&t, box);
    if (relay) by_relay(gram, len);
    else       datagram(gram, len);
}

/* An answer to the last STUN request of the node, or to none. */
static void stun_answer(const uint8_t *data, size_t size)
{
    uint8_t gram[2048];
    if (size < 20) return;
    memcpy(gram, data, size);
    gram[0] = gram[1] = 1;
    tn_put_u32be(gram + 4, TN_STUN_COOKIE);
    memcpy(gram + 8, last_stun, 12);
    datagram(gram, size);
}

static void wish(unsigned what)
{
    tailnet_network net;
    tailnet_prefs   prefs = node->desc.prefs;
    tailnet_addr    ip;
    nw_ip4(2, &ip);
    memset(&net, 0, sizeof net);
    net.addrs           = &node->place;
    net.addr_count      = what & 1;
    net.gateway.family  = 4;
    net.gateway.ip[0]   = 10;
    prefs.relay_only    = (what & 128) != 0;
    prefs.metered       = (what & 256) != 0;
    prefs.shields_up  = (what & 16) != 0;
    prefs.home_region = what >> 5;
    net.changed       = (what & 16) != 0;
    net.down          = (what & 32) != 0;
    switch (what % 10) {
    case 0: (void)tailnet_up(node->n); break;
    case 1: (void)tailnet_down(node->n); break;
    case 2: (void)tailnet_login(node->n, (what & 16) != 0 ? "key" : NULL); break;
    case 3: (void)tailnet_logout(node->n); break;
    case 4: (void)tailnet_set_prefs(node->n, &prefs); break;
    case 5: (void)tailnet_set_network(node->n, &net); break;
    case 6: (void)tailnet_ping(node->n, &ip, (what & 16) != 0 ? TAILNET_PING_PATH : TAILNET_PING_TUNNEL); break;
    case 7: (void)tailnet_fetch_peer(node->n, (what & 16) != 0 ? "beta" : "100.64.0.99"); break;
    default: break;
    }
}

/* Something happens to a connection. */
static void link_event(unsigned what)
{
    tailnet_link link = open_links[what & 1];
    if ((what & 2) != 0) link ^= what & 0xfc00u;
    switch (what >> 4 & 3) {
    case 0: (void)tailnet_tcp_opened(node->n, link); break;
    case 1: (void)tailnet_tcp_closed(node->n, link); break;
    case 2: (void)tailnet_tcp_writable(node->n, link); break;
    default: room = what >> 6 == 0 ? 255 : what & 15; break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tn_rd    in;
    unsigned calls;
    tn_test_ok = true;
    if (world == NULL) begin();
    put_back();
    tn_rd_over(&in, data, size);
    for (calls = 0; calls < 40 && in.left >= 3; calls++) {
        unsigned       what = tn_rd_u8(&in), len = tn_rd_u16be(&in) % 1500u;
        const uint8_t *at   = in.at;
        if (len > in.left) len = (unsigned)in.left;
        switch (what % 16) {
        case 0: by_relay(at, len); break;
        case 1: sealed_by_peer(at, len); break;
        case 2: stream_in(open_links[1] != 0 ? open_links[1] : relay_link, at, len); break;
        case 3: case 4: map_message(at, len); break;
        case 5: by_control(at, len); break;
        case 6: stream_in(open_links[0] != 0 ? open_links[0] : control_link, at, len); break;
        case 7: case 8: application(at, len, what >> 4); break;
        case 9: datagram(at, len); break;
        case 10: disco_by_peer(at, len, (what & 16) != 0); break;
        case 11: wish(len); len = 0; break;
        case 12: link_event(len); len = 0; break;
        case 13: world->now_ms += len; len = 0; break;
        case 14: world->now_ms += (uint64_t)len * 1000; len = 0; break;
        default: stun_answer(at, len); break;
        }
        (void)tn_rd_bytes(&in, len);
        look();
        if (what >= 16) polls();
    }
    polls();
    tailnet_wipe(node->n);
    if (open_links[0] != 0 || open_links[1] != 0) abort();  /* each has its close     */
    if (!tn_is_zero(node->memory.bytes, used)) abort();
    return 0;
}
