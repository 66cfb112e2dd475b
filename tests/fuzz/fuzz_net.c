/* The view of the network: the input is a script of what a hostile world may do: answers to
 * our probes and to those of others, time, triggers, networks, maps, names. What must hold:
 * a round is short, silence is silent, a deadline is honest, the list is bounded and has no
 * address twice, and nobody's answer counts that we did not ask. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

enum { REGIONS = 4, RELAYS = 6 };

typedef struct world {
    tn_net        n;
    tn_net_world  x;
    tn_map_region relays[RELAYS];
    tn_net_region memory[REGIONS];
    tn_net_wish   last[4];
    uint32_t      query;
    uint64_t      now;
} world;

static world  w;
static tn_map map;

static void relay(unsigned slot, uint32_t v)
{
    tn_map_region *r = &w.relays[slot];
    memset(r, 0, sizeof *r);
    r->text[0]   = 'a';
    r->id        = (uint16_t)(v % 5);
    r->nth       = (uint8_t)(v >> 3 & 1);
    r->flags     = (uint8_t)(v >> 4 & 31);
    r->stun_port = (uint16_t)(v >> 9 & 1 ? 3478 : 0);
    r->ip[0]     = 192;
    r->ip[3]     = (uint8_t)slot;
    r->ip[4]     = 0x20;
}

static void address(tailnet_addr *a, uint32_t v)
{
    memset(a, 0, sizeof *a);
    a->family = (uint8_t)(v & 1 ? 4 : v & 2 ? 6 : 0);
    a->port   = (uint16_t)(v >> 2 & 3);
    a->ip[0]  = (uint8_t)(v >> 4 & 1 ? 0x20 : 0x0a);
    a->ip[1]  = (uint8_t)(v >> 5 & 3);
}

/* Polls as a node does, as late as it likes. */
static void poll_it(uint32_t luck)
{
    tn_net_wish wish;
    unsigned    turns = 0;
    while (tn_net_step(&w.n, &w.x, w.now, luck, &wish)) {
        DEMAND(!w.x.silent && ++turns < 200);
        if (wish.kind == TN_NET_SEND) {
            DEMAND((wish.to.family == 4 || wish.to.family == 6) && wish.to.port != 0);
            w.last[turns % 4] = wish;
        } else {
            DEMAND(wish.host != NULL);
            w.query = wish.query;
        }
    }
    DEMAND(!w.n.busy || w.now - w.n.start_ms < TN_NET_LIMIT_MS);
    DEMAND(!w.n.busy || tn_net_deadline(&w.n, &w.x) > w.now);
    DEMAND(!w.n.busy || tn_net_deadline(&w.n, &w.x) <= w.n.start_ms + TN_NET_LIMIT_MS);
}

static void check_list(void)
{
    tailnet_addr out[TAILNET_MAX_CANDIDATES];
    uint8_t      types[TAILNET_MAX_CANDIDATES];
    size_t       n = tn_net_list(&w.n, out, types, TAILNET_MAX_CANDIDATES), i, k;
    DEMAND(n <= TAILNET_MAX_CANDIDATES);
    for (i = 0; i < n; i++) {
        DEMAND(out[i].port != 0 && types[i] >= 1 && types[i] <= 4);
        for (k = 0; k < i; k++) DEMAND(!tn_addr_same(&out[i], &out[k]));
    }
}

/* The right answer to one of the last probes, with any address in it; or one bit off. */
static void answer(uint32_t v)
{
    uint8_t      out[64], id[12];
    tn_wr        t;
    tailnet_addr seen;
    tn_net_wish *wish = &w.last[v & 3];
    bool         wrong = (v >> 2 & 1) != 0, took;
    unsigned     got   = (unsigned)w.n.got[0] + w.n.got[1];
    if (!tn_stun_parse_request(wish->data, sizeof wish->data, id)) return;
    address(&seen, v >> 8);
    if (seen.family == 0) return;
    if (wrong) id[v >> 16 & 3] ^= (uint8_t)(1u << (v >> 3 & 7));
    tn_wr_over(&t, out, sizeof out);
    tn_stun_wr_response(&t, id, &seen);
    took = tn_net_input(&w.n, out, tn_wr_len(&t), w.now);
    DEMAND(!wrong || !took);
    DEMAND(took || (unsigned)w.n.got[0] + w.n.got[1] == got);
}

static void network(uint32_t v)
{
    tailnet_addr    a[6];
    tailnet_network net;
    unsigned        i;
    memset(&net, 0, sizeof net);
    net.addrs      = a;
    net.addr_count = v % 7;
    net.port_fixed = (v >> 3 & 1) != 0;
    net.changed    = (v >> 4 & 3) == 0;
    net.down       = (v >> 6 & 3) == 0;
    for (i = 0; i < 6; i++) {
        address(&a[i], v >> (8 + 3 * i));
        if (a[i].family == 0) a[i].family = 4;
    }
    tn_net_network(&w.n, &net, w.now);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t secret[16] = { 1, 2, 3 };
    tailnet_addr         a[2];
    tn_rd                r;

    memset(&w, 0, sizeof w);
    memset(&map, 0, sizeof map);
    map.regions        = w.relays;
    map.limits.regions = RELAYS;
    w.x.map            = &map;
    w.now              = 0xfffff000u;       /* its low 32 bits run over soon         */
    tn_net_init(&w.n, REGIONS, w.memory, secret);
    tn_rd_over(&r, data, size);
    while (r.left >= 5) {
        unsigned op = tn_rd_u8(&r);
        uint32_t v  = tn_rd_u32be(&r);
        switch (op % 12) {
        case 0: w.now += v % 64; break;
        case 1: w.now += v % 400000; break;
        case 2: answer(v); break;
        case 3: tn_net_trigger(&w.n, (v & 1) != 0); break;
        case 4: network(v); break;
        case 5: relay(v % RELAYS, v >> 4); break;
        case 6: w.x.silent = (v & 3) == 0; break;
        case 7: w.x.active_ms = w.now + v % 100000; break;
        case 8:
            address(&a[0], v);
            address(&a[1], v >> 8);
            (void)tn_net_resolved(&w.n, (v >> 16 & 3) == 0 ? v : w.query, a, v >> 18 & 2);
            break;
        case 9:
            address(&a[0], v);
            if (a[0].family != 0 && a[0].port != 0) tn_net_mapped(&w.n, &a[0], w.now);
            else tn_net_mapped(&w.n, NULL, w.now);
            break;
        case 10: {
            size_t len = v % 64 < r.left ? v % 64 : r.left;
            (void)tn_net_input(&w.n, tn_rd_bytes(&r, len), len, w.now);
            break;
        }
        case 11:
            w.x.home     = (uint16_t)(v % 5);
            w.x.heard_ms = (v >> 3 & 1) != 0 ? w.now - (v >> 4) % 200000 : 0;
            map.scores[0].id          = (uint16_t)(v >> 8 & 3);
            map.scores[0].thousandths = (uint16_t)(v >> 10 | 1u);
            (void)tn_net_prefer(&w.n, &w.x, w.now);
            break;
        }
        if (op < 200) poll_it(v);
        check_list();
        (void)tn_net_news(&w.n);
    }
    return 0;
}
