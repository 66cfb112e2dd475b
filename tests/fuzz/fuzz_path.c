/* One path and a random life: lists, calls, pings, pongs true and false, traffic, time
 * that creeps and leaps. It stays within its limits, its deadlines are honest, it never
 * spins, and no address becomes the best that did not answer a ping sent to it. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

enum { KEPT = 32 };

static struct life {
    const uint8_t *at;
    size_t         left;
    tn_path        p;
    uint64_t       now, called;
    tn_path_wish   sent[KEPT];              /* the last pings, and when */
    uint64_t       sent_at[KEPT];
    unsigned       sent_count;
} x;

static unsigned byte(void)
{
    if (x.left == 0) return 0;
    x.left--;
    return *x.at++;
}

static void some_addr(tailnet_addr *a)
{
    static const uint8_t first[8] = { 203, 192, 10, 127, 169, 100, 224, 0 };
    unsigned b = byte();
    memset(a, 0, sizeof *a);
    a->family = (b & 64) != 0 ? 6 : 4;
    a->ip[0]  = (b & 128) != 0 ? (uint8_t)byte() : first[b & 7];
    a->ip[1]  = (uint8_t)(b & 1 ? 168 : 64);
    a->ip[3]  = (uint8_t)(b >> 3 & 7);
    a->port   = (uint16_t)(b == 33 ? 0 : 7);
}

static void drain(void)
{
    tn_path_wish w;
    tn_path_want want;
    unsigned     pings = 0, calls = 0;
    while ((want = tn_path_step(&x.p, x.now, &w)) != TN_PATH_QUIET) {
        if (want == TN_PATH_CALL) {
            DEMAND(x.called == 0 || x.now - x.called >= TN_PATH_PING_MS);
            x.called = x.now;
            DEMAND(++calls == 1);
            continue;
        }
        DEMAND(++pings <= TAILNET_MAX_CANDIDATES && !x.p.plain);
        DEMAND(tn_path_worth(&w.to) != TN_PATH_NEVER);
        x.sent_at[x.sent_count % KEPT] = x.now;
        x.sent[x.sent_count++ % KEPT]  = w;
    }
    DEMAND(tn_path_deadline(&x.p, x.now) > x.now);
}

static void check(void)
{
    unsigned i, named = 0, used = 0;
    DEMAND((x.p.state == TN_PATH_NONE) == (x.p.best == TN_PATH_NO_SLOT));
    DEMAND(x.p.state == TN_PATH_NONE || x.p.places[x.p.best].addr.family != 0);
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) {
        const tn_path_place *c = &x.p.places[i];
        if (c->addr.family == 0) continue;
        used++;
        named += (c->flags & (TN_PATH_LISTED | TN_PATH_CALLED)) != 0;
        DEMAND((c->flags & TN_PATH_OLD) == 0 && tn_path_find(&x.p, &c->addr) == i);
        DEMAND(tn_path_worth(&c->addr) != TN_PATH_NEVER);
    }
    DEMAND(used <= TAILNET_MAX_CANDIDATES && named <= used);
}

static void pong(void)
{
    unsigned     k = byte(), how = byte(), news;
    tn_path_wish w;
    tn_path_pong got;
    if (x.sent_count == 0) return;
    k = k % (x.sent_count < KEPT ? x.sent_count : KEPT);
    w = x.sent[k];
    if ((how & 3) == 3) w.tx[byte() % 12] ^= (uint8_t)(1u << (how >> 5));
    news = tn_path_pong_in(&x.p, w.tx, (how & 3) == 2, x.now, &got);
    if (news == 0) return;
    DEMAND((how & 3) != 3 && tn_addr_same(&got.to, &w.to));
    /* Ages are of 32 bits: right for 49 days, and after that an old pong is only old. */
    DEMAND((uint32_t)(x.now - x.sent_at[k]) < TN_PATH_PING_MS && got.latency_ms >= 1);
    DEMAND((how & 3) != 2 || news == TN_PATH_MINE);
    DEMAND(tn_path_pong_in(&x.p, w.tx, false, x.now, &got) == 0);
    if ((news & TN_PATH_CHANGED) != 0) {
        DEMAND(x.p.state == TN_PATH_TRUSTED);
        DEMAND(tn_addr_same(&x.p.places[x.p.best].addr, &w.to));
    }
}

static void named(bool call)
{
    tailnet_addr all[20], before, after;
    uint8_t      text[2 + 18 * 20];
    size_t       i, n = byte() % 21;
    bool         had = tn_path_best(&x.p, &before);
    tn_disco_msg m;
    tn_wr        w;
    for (i = 0; i < n; i++) some_addr(&all[i]);
    if (!call) {
        tn_path_listed(&x.p, all, n, x.now);
    } else {
        tn_wr_over(&w, text, sizeof text);
        tn_disco_wr_call(&w, all, n);
        DEMAND(tn_disco_parse(text, tn_wr_len(&w), &m) == TAILNET_OK);
        DEMAND(tn_path_call_in(&x.p, &m, x.now) == (had && x.p.state == TN_PATH_NONE));
    }
    if (x.p.state != TN_PATH_NONE)          /* being named makes nobody the best */
        DEMAND(had && tn_path_best(&x.p, &after) && tn_addr_same(&before, &after));
}

static void event(unsigned op)
{
    tailnet_addr a;
    uint8_t      tx[12];
    unsigned     ways, i;
    switch (op % 12) {
    case 0: x.now += byte(); break;
    case 1: x.now += (uint64_t)byte() * 100; break;
    case 2:                                 /* all in all less than 32 bits of time */
        if (x.now < (uint64_t)3 << 31) x.now += (uint64_t)(byte() & 63) << 24;
        break;
    case 3:
        if (tn_path_deadline(&x.p, x.now) != TN_NEVER) x.now = tn_path_deadline(&x.p, x.now);
        break;
    case 4: named(false); break;
    case 5: named(true); break;
    case 6:
        ways = tn_path_use(&x.p, x.now, &a);
        DEMAND(x.p.plain || (ways == TN_PATH_UDP) == (x.p.state == TN_PATH_TRUSTED));
        DEMAND(x.p.plain || ((ways & TN_PATH_UDP) != 0) == (x.p.state != TN_PATH_NONE));
        break;
    case 7:
        some_addr(&a);
        for (i = 0; i < 12; i++) tx[i] = (uint8_t)byte();
        if (tn_path_ping_in(&x.p, &a, tx, x.now) && tn_path_find(&x.p, &a) != TN_PATH_NO_SLOT)
            DEMAND(!tn_path_ping_in(&x.p, &a, tx, x.now));
        break;
    case 8: pong(); break;
    case 9:
        some_addr(&a);
        if ((op & 128) != 0) (void)tn_path_heard(&x.p, &a, 32, x.now);
        else                 (void)tn_path_unreachable(&x.p, &a, x.now);
        break;
    case 10:
        if ((op & 128) != 0) {
            tn_path_network_changed(&x.p, x.now);
            x.called = 0;
        } else {
            tn_path_probe(&x.p, x.now);
        }
        break;
    default: x.p.metered = !x.p.metered; break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t seed[16] = { 1, 2, 3 };
    unsigned mode;
    memset(&x, 0, sizeof x);
    x.at   = data;
    x.left = size;
    mode   = byte();
    x.now  = (uint64_t)byte() << 24 | 100;
    tn_path_init(&x.p, seed, x.now);
    x.p.metered = (mode & 1) != 0;
    x.p.silent  = (mode & 6) == 6;
    x.p.plain   = (mode & 24) == 24;
    x.p.lacks   = (mode & 96) == 96 ? (mode & 128) != 0 ? 4 : 6 : 0;
    while (x.left != 0) {
        unsigned op = byte();
        event(op);
        check();
        if (x.p.plain) x.p.due = 0;         /* the node brings a plain peer no disco */
        if ((op & 64) != 0) drain();
        check();
    }
    drain();
    return 0;
}
