/* The machine of the relay connections: the input is a script of servers, links, peers and
 * time. What must hold: no region has two slots, every state but IDLE and CLOSING has an
 * end, a deadline is honest until all is quiet, what waits for a connection is bounded, and
 * a learned route points to a slot that there is. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

enum { SLOTS = 3, PEERS = 6, RECORD = 2048, FRAMES = 1024 };

typedef struct world {
    tn_relay       r;
    tn_relay_link  links[SLOTS];
    tn_relay_store stores[SLOTS];
    uint8_t        via[PEERS];
    uint8_t        frames[FRAMES];          /* what a server says                 */
    uint64_t       now;
} world;

static world   w;
static uint8_t node_private[32], node_public[32], server_private[32], server_public[32];
static const uint8_t nonce[24] = { 7, 7, 7 };

static void keys(void)
{
    static bool done;
    if (done) return;
    done = true;
    memset(node_private, 3, sizeof node_private);
    memset(server_private, 5, sizeof server_private);
    tn_cr_clamp(node_private);
    tn_cr_clamp(server_private);
    tn_cr_x25519_base(node_public, node_private);
    tn_cr_x25519_base(server_public, server_private);
}

static void check(void)
{
    unsigned i, k;
    for (i = 0; i < w.r.count; i++) {
        const tn_relay_link *l = &w.links[i];
        uint16_t             target = tn_relay_target(l);
        DEMAND(l->state <= TN_RELAY_CLOSING && l->letter.len <= sizeof l->letter.data);
        DEMAND((l->state == TN_RELAY_IDLE) == (l->region == 0));
        DEMAND(l->state == TN_RELAY_CLOSING || (l->due & TN_RELAY_DUE_CLOSE) == 0);
        for (k = 0; k < i; k++) DEMAND(target == 0 || tn_relay_target(&w.links[k]) != target);
    }
    for (i = 0; i < PEERS; i++) DEMAND(w.via[i] <= w.r.count);
}

/* Writes what is due, into a record with that much room. */
static void write_out(unsigned slot, size_t cap, bool in_poll)
{
    uint8_t        record[RECORD];
    tn_relay_hello hello;
    tn_wr          t;
    memset(&hello, 0, sizeof hello);
    hello.host.name    = "derp.example";
    hello.host.port    = 443;
    hello.host.usual   = 443;
    hello.node_private = node_private;
    hello.node_public  = node_public;
    hello.nonce        = nonce;
    tn_wr_over(&t, record, cap);
    tn_relay_write(&w.r, slot, in_poll ? &hello : NULL, &t, w.now);
    DEMAND(tn_wr_ok(&t) && tn_wr_len(&t) <= cap);
}

/* Decides where home is, among regions 1 to 4 by their bits. */
static void choose(uint32_t v)
{
    tn_relay_choice c;
    uint16_t        region;
    tn_relay_choice_begin(&c, &w.r, (uint16_t)((v & 8) != 0 ? v % 5 : 0), (uint16_t)(v >> 4 & 7),
                          w.now);
    for (region = 1; region <= 4; region++)
        if ((v >> (7 + region) & 1) != 0)
            tn_relay_choice_add(&c, region, (v >> (11 + region) & 1) != 0, v >> 16 & 1023);
    tn_relay_choose(&w.r, &c, w.now);
    DEMAND(tn_relay_wanted(&w.r) <= 4);
}

/* Polls as a node does, as late as it likes. Opening is answered later, or here. */
static void poll_it(uint32_t v)
{
    tn_relay_wish wish;
    unsigned      turns = 0, rounds, i;
    uint64_t      at;
    while (tn_relay_step(&w.r, w.now, &wish)) {
        DEMAND(++turns < 50 && wish.slot < w.r.count);
        if (wish.kind == TN_RELAY_DO_CLOSE) {
            DEMAND(w.links[wish.slot].state == TN_RELAY_CLOSING);
            if ((v & 1) == 0) tn_relay_closed(&w.r, wish.slot, w.now, v);
            continue;
        }
        DEMAND(wish.region != 0 && wish.region == tn_relay_region_of(&w.r, wish.slot));
        if (wish.node >= 2) tn_relay_no_node(&w.r, wish.slot, w.now, v);
        else if ((v & 6) == 2) tn_relay_later(&w.r, wish.slot, w.now);
    }
    if (tn_relay_wants_choice(&w.r, w.now)) choose(0xffff00u | v);
    /* What a failed login closes; and what a move that followed has to say. */
    for (rounds = 0; rounds < 3; rounds++) {
        for (i = 0; i < w.r.count; i++) write_out(i, RECORD, true);
        while (tn_relay_step(&w.r, w.now, &wish)) {
            DEMAND(++turns < 99);
            if (wish.kind == TN_RELAY_DO_CLOSE)
                tn_relay_closed(&w.r, wish.slot, w.now, v | 0xffffu);
        }
    }
    at = tn_relay_deadline(&w.r);
    for (i = 0; i < w.r.count; i++) {
        tn_relay_state state = w.links[i].state;
        DEMAND(state == TN_RELAY_IDLE || state == TN_RELAY_CLOSING || at != TN_NEVER);
        if (tn_relay_has_output(&w.r, i)) DEMAND(w.links[i].stuck || at <= w.now);
    }
    DEMAND(at > w.now);
}

/* Bytes of a server, all at once or one by one. */
static void feed(unsigned slot, uint8_t *bytes, size_t len, bool in_pieces)
{
    size_t piece = in_pieces ? 1 : len, turns = 0;
    for (; len != 0; bytes += piece, len -= piece) {
        uint8_t      *at   = bytes;
        size_t        left = piece;
        tn_derp_event ev;
        tn_relay_news news;
        while ((news = tn_relay_next(&w.r, slot, &at, &left, w.now, &ev)) != TN_RELAY_QUIET) {
            DEMAND(++turns <= 2 * FRAMES && at + left == bytes + piece);
            if (news == TN_RELAY_UP) DEMAND(w.links[slot].state == TN_RELAY_OPEN);
            if (news != TN_RELAY_PACKET) continue;
            DEMAND(w.links[slot].state == TN_RELAY_OPEN && ev.len <= TN_DERP_STRADDLE);
            tn_relay_learn(&w.r, ev.key[0] % PEERS, slot);
        }
        DEMAND(left == 0);
    }
}

/* What a well-behaved server says, by kind. */
static void serve(unsigned slot, uint32_t v)
{
    static const uint8_t key[32] = { 1 }, packet[512] = { 2 };
    tn_derp              d;
    tn_wr                t;
    tn_wr_over(&t, w.frames, sizeof w.frames);
    switch (v % 10) {
    case 0: tn_h1_build_101(&t, "DERP", "Derp-Version: 2\r\n"); break;
    case 1: tn_derp_wr_server_key(&t, server_public); break;
    case 2:
        tn_derp_start(&d, true);
        DEMAND(tn_derp_set_key(&d, server_private, node_public));
        tn_derp_wr_server_info(&d, &t, nonce, v >> 8, v >> 12);
        break;
    case 3: tn_derp_wr_recv(&t, key, packet, v >> 8 & 511); break;
    case 4: tn_derp_wr_peer_gone(&t, key, v >> 8 & 1); break;
    case 5: tn_derp_wr_ping(&t, key); break;
    case 6: tn_derp_wr_pong(&t, w.links[slot].ping); break;
    case 7: tn_derp_wr_restarting(&t, v >> 8, v >> 4); break;
    case 8: tn_derp_wr_health(&t, "full"); break;
    case 9: tn_derp_wr_keepalive(&t); break;
    }
    feed(slot, w.frames, tn_wr_len(&t), (v >> 7 & 1) != 0);
}

/* A packet for a peer, by the way there is. */
static void post(uint32_t v)
{
    static uint8_t data[1500];
    uint8_t        record[RECORD], key[32] = { 9 };
    tn_wr          t;
    size_t         len  = v >> 8 & 1023;
    int            slot = tn_relay_route(&w.r, v % (PEERS + 1), (uint16_t)(v >> 3 & 3), w.now);
    DEMAND(slot < (int)w.r.count);
    if (slot < 0) return;
    tn_wr_over(&t, record, v >> 18 & 2047);
    (void)tn_relay_post(&w.r, (unsigned)slot, (v & 32) != 0 ? &t : NULL, key, data, len,
                        (v & 64) != 0, w.now);
    DEMAND(tn_wr_ok(&t));
}

static void news_of_link(unsigned slot, uint32_t v)
{
    switch (v >> 2 & 3) {
    case 0: tn_relay_opened(&w.r, slot, (v & 16) != 0 ? server_public : NULL, w.now); break;
    case 1: tn_relay_closed(&w.r, slot, w.now, v >> 4); break;
    case 2: tn_relay_later(&w.r, slot, w.now); break;
    case 3: tn_relay_no_node(&w.r, slot, w.now, v >> 4); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tn_rd r;
    keys();
    memset(&w, 0, sizeof w);
    tn_rd_over(&r, data, size);
    tn_relay_init(&w.r, w.links, w.stores, 1 + tn_rd_u8(&r) % SLOTS, w.via, PEERS);
    w.now = 0xfffff000u;                    /* its low 32 bits run over soon      */
    tn_relay_run(&w.r, true, w.now);
    choose(0xff10u);
    while (r.left >= 5) {
        unsigned op   = tn_rd_u8(&r);
        uint32_t v    = tn_rd_u32be(&r);
        unsigned slot = v % w.r.count;
        switch (op % 12) {
        case 0: w.now += v % 64; break;
        case 1: w.now += v % 400000; break;
        case 2: news_of_link(slot, v >> 2); break;
        case 3: serve(slot, v >> 2); break;
        case 4: {
            size_t len = v >> 2 & 63;
            len = len < r.left ? len : r.left;
            memcpy(w.frames, len == 0 ? data : tn_rd_bytes(&r, len), len);
            feed(slot, w.frames, len, (v >> 8 & 1) != 0);
            break;
        }
        case 5: post(v); break;
        case 6: choose(v); break;
        case 7: tn_relay_told(&w.r, tn_relay_report(&w.r), w.now); break;
        case 8: tn_relay_region_changed(&w.r, (uint16_t)(v % 5), w.now); break;
        case 9: tn_relay_network_changed(&w.r, w.now); break;
        case 10: tn_relay_run(&w.r, (v & 3) != 0, w.now); break;
        case 11:
            if ((v & 16) != 0) tn_relay_forget_peer(&w.r, v % 8);
            else tn_relay_forget(&w.r, v % 8, slot);
            write_out(slot, v >> 8 & 511, false);
            (void)tn_relay_heard(&w.r, (uint16_t)(v >> 20 & 3));
            break;
        }
        if (op < 200) poll_it(v);
        check();
    }
    return 0;
}
