/* A tailnet of ten thousand, and a node with memory for three of them. The map is longer than
 * ten megabytes; the real peers stand in its middle. Each way in which a peer that is not in
 * the directory becomes known is tried, over relays and directly, and what must not read the
 * map again does not. */
#ifndef SIM_BIG_H
#define SIM_BIG_H

#include "sim_many.h"

enum {
    BIG_PEERS = 10000, BIG_REAL = 5, BIG_MEMORY = 3,
    BIG_TLS   = 1                           /* engines; links are two                      */
};

static unsigned big_passed, big_failed;

static void big_check(bool ok, const char *what)
{
    if (ok) big_passed++;
    else    big_failed++;
    printf("%-4s %9.3f s  %s\n", ok ? "ok" : "FAIL", (double)W->now_ms / 1000.0, what);
    fflush(stdout);
}

static uint32_t big_maps(uint32_t i)
{
    tailnet_stats s;
    if (W->m[i].n == NULL) return 0;
    tailnet_get_stats(W->m[i].n, &s);
    return s.maps_read;
}

static bool big_knows(uint32_t i, uint32_t k)
{
    tailnet_peer peer;
    return W->m[i].n != NULL && node_knows(&W->m[i], &W->m[k], &peer);
}

/* One packet, and again every second as an application does, until it is there. */
static bool big_talk(uint32_t from, uint32_t to, unsigned seconds)
{
    uint64_t begin = W->now_ms;
    unsigned i;
    for (i = 0; i < seconds && !W->failed; i++) {
        (void)app_send(&W->m[from], &W->m[to], false, APP_FROM_PORT, APP_PORT, 100, false);
        run_for(1000);
        if (talked(from, to, begin, false) && talked(to, from, begin, true)) return true;
    }
    return false;
}

/* Nobody uses anything for so long that places in the directory become free. */
static void big_forget(void) { run_for(11 * 60000u); }

/* As little memory as the manual says, to the byte. */
static void big_machine(bool small)
{
    machine *m = machine_make(-1);
    m->desc.tls_by_caller      = false;
    m->desc.trust_anchors      = &certs.anchor;
    m->desc.trust_anchor_count = 1;
    m->desc.control_url        = "https://" SIM_CONTROL;
    m->desc.max_peers          = BIG_MEMORY;
    m->desc.max_sessions       = BIG_MEMORY;
    m->desc.max_links          = 2;
    m->desc.max_tls            = BIG_TLS;
    m->desc.prefs.answer_dns   = true;
    m->lat_ms                  = small ? 5 : 3 + m->number;
}

static const char *big_name(uint32_t i) { return W->m[i].name; }

/* A question for the address of a node, to the resolver inside. */
static tailnet_result big_ask(uint32_t from, uint32_t about)
{
    uint8_t     b[TAILNET_HEADROOM + 600 + TAILNET_TAILROOM], *at = b + TAILNET_HEADROOM;
    machine    *m = &W->m[from];
    tailnet_buf buf;
    tn_wr       w;
    size_t      n = strlen(big_name(about)), len;
    uint16_t    sum;
    tailnet_result r;
    memset(b, 0, sizeof b);
    memset(&buf, 0, sizeof buf);
    tn_wr_over(&w, at, 600);
    len = 20 + 8 + 12 + 1 + n + 1 + 4 + 1 + 3 + 1 + 4;
    tn_wr_u16be(&w, 0x4500);
    tn_wr_u16be(&w, (unsigned)len);
    tn_wr_u32be(&w, 0);
    tn_wr_u32be(&w, (uint32_t)64 << 24 | (uint32_t)17 << 16);
    tn_wr_u32be(&w, m->ips[0]);
    tn_wr_u32be(&w, 0x64646464u);           /* 100.100.100.100                             */
    tn_wr_u16be(&w, 40000);
    tn_wr_u16be(&w, 53);
    tn_wr_u16be(&w, (unsigned)(len - 20));
    tn_wr_u16be(&w, 0);
    tn_wr_u16be(&w, 0x1234);
    tn_wr_u16be(&w, 0x0100);
    tn_wr_u32be(&w, 0x00010000u);
    tn_wr_u32be(&w, 0);
    tn_wr_u8(&w, (unsigned)n);
    tn_wr_bytes(&w, big_name(about), n);
    tn_wr_bytes(&w, "\4tail\3sim", 9);
    tn_wr_u8(&w, 0);
    tn_wr_u32be(&w, 0x00010001u);
    sum    = ip_sum(at, 20);
    at[10] = (uint8_t)(sum >> 8);
    at[11] = (uint8_t)sum;
    buf.base = b;
    buf.cap  = sizeof b;
    buf.off  = TAILNET_HEADROOM;
    buf.len  = (uint32_t)len;
    if (!node_enter(m)) return TAILNET_ERR_AGAIN;
    r = tailnet_ip_input(m->n, &buf, 1);
    node_leave(m);
    return r;
}

static tailnet_result big_fetch(uint32_t i, const char *who)
{
    tailnet_result r;
    if (!node_enter(&W->m[i])) return TAILNET_ERR_AGAIN;
    r = tailnet_fetch_peer(W->m[i].n, who);
    node_leave(&W->m[i]);
    return r;
}

static bool big_fetched(uint32_t i, const char *who, unsigned seconds)
{
    bool asked = big_fetch(i, who) == TAILNET_ERR_AGAIN;
    for (; asked && seconds-- != 0 && !W->failed; run_for(1000))
        if (big_fetch(i, who) == TAILNET_OK) return true;
    return false;
}

/* ---- the ways in ---- */

static void big_join(void)
{
    uint64_t     begin = W->now_ms;
    tailnet_self self;
    tailnet_stats stats;
    uint32_t     i, up = 0;
    run_for(60000);
    for (i = 0; i < BIG_REAL; i++)
        up += tailnet_get_state(W->m[i].n) == TAILNET_STATE_RUNNING;
    big_check(up == BIG_REAL, "all join");
    tailnet_get_stats(W->m[0].n, &stats);
    memset(&self, 0, sizeof self);
    big_check(tailnet_get_self(W->m[0].n, &self) && self.peers_missing &&
              tailnet_peer_count(W->m[0].n) == BIG_MEMORY &&
              stats.peers_passed_over >= BIG_PEERS - BIG_MEMORY, "three peers are kept");
    for (i = 1; i < BIG_REAL; i++)
        if (big_knows(0, i)) break;
    big_check(i == BIG_REAL, "the real ones are not among them");
    printf("     joined within %.1f s, %u KiB of memory\n",
           (double)(W->m[0].up_ms - begin) / 1000.0, (unsigned)(W->m[0].size / 1024u));
}

static void big_own_packet(void)
{
    uint32_t maps = big_maps(0);
    big_check(app_send(&W->m[0], &W->m[1], false, APP_FROM_PORT, APP_PORT, 100, false) ==
              TAILNET_ERR_AGAIN, "a packet to an address without a peer waits");
    run_for(20000);
    big_check(big_maps(0) == maps + 1 && talked(0, 1, 0, false) && talked(1, 0, 0, true),
              "it arrives after one reading, and its answer comes");
    big_check(W->m[0].direct_ms[1] != NEVER, "directly");
}

static void big_dialled_by_relay(void)
{
    W->m[2].no_udp = true;
    big_check(big_talk(2, 0, 60), "a peer that nobody knows dials by relay");
    big_check(big_knows(0, 2) && W->m[0].direct_ms[2] == NEVER, "over the relay");
    W->m[2].no_udp = false;
}

/* A handshake by UDP of a peer that is not in the directory, no relay near: a plain WireGuard
 * client does that, or a node that still has a path which we forgot in a power cut. */
static void big_dialled_by_udp(void)
{
    tn_wg_device dev;
    tn_wg        wg;
    uint8_t      msg[TN_WG_INITIATION_LEN], eph[32], stamp[12];
    uint32_t     maps;
    gram        *g;
    machine_cut(&W->m[0], 500, 0);
    run_for(20000);
    big_check(W->m[0].n != NULL && !big_knows(0, 1), "after a power cut all of them are forgotten");
    maps = big_maps(0);
    tn_wg_device_init(&dev, W->m[1].n->keys.node, 0);
    tn_wg_init(&wg, W->now_ms);
    tn_wg_want(&wg, W->now_ms);
    (void)tn_wg_stamp(&dev, SIM_WALL_MS + W->now_ms + 100000, stamp);
    rnd_fill(&W->rnd, eph, 32);
    (void)tn_wg_initiate(&dev, &wg, msg, W->m[0].key, stamp, eph, 77, W->now_ms);
    g = gram_new(msg, sizeof msg);
    addr4(&g->from, W->m[1].ip4, SIM_PORT);
    addr4(&g->to, W->m[0].ip4, SIM_PORT);
    g->level = -1;
    plan(W->now_ms, EV_GRAM, 0, 0, g);
    run_for(30000);
    big_check(big_maps(0) == maps + 1 && big_knows(0, 1), "a handshake by UDP: it is known again");
    big_check(big_talk(1, 0, 10) && big_talk(0, 1, 10), "and they talk both ways");
}

static void big_by_name(void)
{
    char address[32];
    big_forget();
    big_check(big_fetched(0, big_name(3), 60), "tailnet_fetch_peer by name");
    big_check(big_talk(0, 3, 10), "and it is dialled");
    snprintf(address, sizeof address, "100.%u.%u.%u", (unsigned)(W->m[4].ips[0] >> 16 & 255),
             (unsigned)(W->m[4].ips[0] >> 8 & 255), (unsigned)(W->m[4].ips[0] & 255));
    big_check(big_fetched(0, address, 60), "tailnet_fetch_peer by address");
    big_check(big_talk(0, 4, 10), "and it is dialled");
}

static void big_by_dns(void)
{
    uint32_t answers = W->dns_answers, i;
    big_forget();
    big_check(!big_knows(0, 2) && big_ask(0, 2) == TAILNET_ERR_AGAIN && W->dns_answers == answers,
              "a question for a name is met by silence");
    for (i = 0; i < 30 && W->dns_answers == answers; i++) {
        run_for(2000);
        (void)big_ask(0, 2);
    }
    big_check(W->dns_answers != answers && W->dns_answer == W->m[2].ips[0],
              "and repeated, by the address");
}

/* Names of nobody: one reading, and none for ten minutes. */
static void big_nobody(void)
{
    uint32_t maps = big_maps(0), i;
    (void)big_fetch(0, "nobody");
    run_for(20000);
    big_check(big_maps(0) == maps + 1 && big_fetch(0, "nobody") == TAILNET_ERR_NO_ROUTE,
              "a name of nobody: one reading");
    for (i = 0; i < 50; i++) {
        (void)big_fetch(0, "nobody");
        run_for(10000);
    }
    big_check(big_maps(0) == maps + 1, "and no other for a while");
}

/* Strangers: by UDP they cause nothing, by relay few readings, ever farther apart. */
static void big_strangers(void)
{
    uint32_t maps = big_maps(0), i;
    uint8_t  b[160];
    gram    *g;
    for (i = 0; i < 200; i++) {
        rnd_fill(&W->rnd, b, sizeof b);
        if (i % 2 == 0) memcpy(b, "TS\xf0\x9f\x92\xac", 6);
        else            memcpy(b, "\1\0\0\0", 4);
        g = gram_new(b, i % 2 == 0 ? 122 : 148);
        g->forged = true;
        addr4(&g->from, 0x06060606u, (uint16_t)(1024 + i));
        addr4(&g->to, W->m[0].ip4, SIM_PORT);
        W->attack_in[i & 255u] += g->len;
        plan(W->now_ms, EV_GRAM, 0, 0, g);
        run_for(100);
    }
    run_for(60000);
    big_check(big_maps(0) == maps, "disco and handshakes of strangers by UDP: no reading");
}

/* The length of a whole map. */
static size_t big_bytes(void)
{
    static session m;
    job   j;
    tn_wr wr;
    told *none = (told *)need(W->h->opt.max_nodes, sizeof *none);
    memset(&j, 0, sizeof j);
    m.first = true;
    m.told  = none;
    tn_wr_over(&wr, NULL, 0);
    while (job_step(W->h, &m, &j, &wr, false)) {}
    free(none);
    return wr.total;
}

static void big_time(void)
{
    double map = (double)big_bytes(), all = (double)W->down_bytes;
    double us = (double)W->node_clock * 1e6 / (double)CLOCKS_PER_SEC;
    printf("     a map of %.1f MB, read %.0f times: %.0f ms of processor each, %.2f us per KB\n",
           map / 1e6, all / map, us / (all / map) / 1000.0, us / (all / 1000.0));
}

static int run_big(bool verbose)
{
    uint32_t i;
    bool     fits = true;
    (void)world_make(5, BIG_REAL);
    W->verbose = verbose;
    W->end_ms  = NEVER;
    W->peers   = BIG_PEERS;
    for (i = 0; i < BIG_REAL; i++) big_machine(i == 0);
    world_start();
    for (i = 0; i < BIG_REAL; i++) {
        fits = fits && W->m[i].size <= TAILNET_MEMORY_SIZE(BIG_MEMORY, BIG_MEMORY, 2, BIG_TLS);
    }
    big_check(fits, "memory: what TAILNET_MEMORY_SIZE says for three peers");
    big_join();
    big_own_packet();
    big_dialled_by_relay();
    big_dialled_by_udp();
    big_by_name();
    big_by_dns();
    big_nobody();
    big_strangers();
    big_check(big_bytes() >= 10000000, "the map has ten megabytes");
    big_check(!W->failed, W->failed ? W->why : "nothing was wrong on the way");
    big_time();
    world_sum();
    world_end();
    free(W);
    printf("%u passed, %u failed\n", big_passed, big_failed);
    return big_failed == 0 ? 0 : 1;
}

#endif
