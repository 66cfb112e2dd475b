/* >>path alone: its machine against the drawing, each rule at its limit, and two
 * of them talking over a small network with NATs, loss and outages. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static const uint8_t seed[16] = { 9, 8, 7, 6, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6, 7, 8 };
static uint64_t      now;                   /* of the test that runs */
static tn_path       p;

static tailnet_addr addr(const char *text)
{
    tailnet_addr a;
    memset(&a, 0, sizeof a);
    CHECK(tn_addr_parse(&a, text, strlen(text)));
    return a;
}

/* What step wants: how many pings, to whom, how many calls. */
typedef struct wants {
    unsigned     pings, calls;
    tn_path_wish wish[40];
} wants;

static wants drain(void)
{
    wants        w;
    tn_path_wish wish;
    tn_path_want got;
    memset(&w, 0, sizeof w);
    while ((got = tn_path_step(&p, now, &wish)) != TN_PATH_QUIET && w.pings + w.calls < 40) {
        if (got == TN_PATH_CALL) w.calls++;
        else                     w.wish[w.pings++] = wish;
    }
    CHECK(w.pings + w.calls < 40);
    CHECK(tn_path_deadline(&p, now) > now);
    return w;
}

/* The transaction of the ping to an address among those, or NULL. */
static const uint8_t *tx_to(const wants *w, const char *text)
{
    tailnet_addr a = addr(text);
    unsigned     i;
    for (i = 0; i < w->pings; i++) {
        if (tn_addr_same(&w->wish[i].to, &a)) return w->wish[i].tx;
    }
    return NULL;
}

static unsigned use(void)
{
    tailnet_addr to;
    return tn_path_use(&p, now, &to);
}

static unsigned pong(const uint8_t *tx)
{
    tn_path_pong got;
    if (tx == NULL) return 0;
    return tn_path_pong_in(&p, tx, false, now, &got);
}

static void list(const char *a, const char *b, const char *c)
{
    tailnet_addr all[3];
    size_t       n = 0;
    if (a != NULL) all[n++] = addr(a);
    if (b != NULL) all[n++] = addr(b);
    if (c != NULL) all[n++] = addr(c);
    tn_path_listed(&p, all, n, now);
}

/* A call-me-maybe as it is on the wire. */
static bool call(const tailnet_addr *all, size_t count)
{
    uint8_t      text[2 + 18 * 40];
    tn_disco_msg m;
    tn_wr        w;
    tn_wr_over(&w, text, sizeof text);
    tn_disco_wr_call(&w, all, count);
    CHECK(tn_wr_ok(&w) && tn_disco_parse(text, tn_wr_len(&w), &m) == TAILNET_OK);
    return tn_path_call_in(&p, &m, now);
}

static bool call_one(const char *text)
{
    tailnet_addr a = addr(text);
    return call(&a, 1);
}

static bool has(const char *text)
{
    tailnet_addr a = addr(text);
    return tn_path_find(&p, &a) != TN_PATH_NO_SLOT;
}

static unsigned count(void)
{
    unsigned i, n = 0;
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) n += p.places[i].addr.family != 0;
    return n;
}

#define A "203.0.113.9:41641"
#define B "192.168.7.2:41641"
#define C "[2001:db8::9]:41641"

static void start(uint64_t at)
{
    now = at;
    tn_path_init(&p, seed, now);
}

/* A trusted path to A with that latency; now is when the pong came. */
static void trusted(uint64_t at, uint32_t latency_ms)
{
    wants w;
    start(at);
    list(A, NULL, NULL);
    CHECK(use() == TN_PATH_RELAY);
    w = drain();
    CHECK(w.pings == 1 && w.calls == 1);
    now += latency_ms;
    CHECK(pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED));
    CHECK(p.state == TN_PATH_TRUSTED && p.latency_ms == (latency_ms == 0 ? 1 : latency_ms));
}

/* ---- the machine ---- */

/* The drawing: from row to column. */
static void arrows(void)
{
    static const char drawing[3][4] = { " T ", "NTU", "NT " };
    int from, to;
    for (from = 0; from < 3; from++) {
        for (to = 0; to < 3; to++) {
            bool drawn = drawing[from][to] != ' ';
            CHECK(drawn == ((tn_path_arrows[from] >> to & 1) != 0));
        }
    }
}

/* Every arrow is gone by something that happens. */
static void arrows_walked(void)
{
    wants        w;
    tailnet_addr a = addr(A);
    trusted(1000, 20);                      /* NONE -> TRUSTED */
    now += 2980;
    w = drain();
    CHECK(w.pings == 1 && pong(tx_to(&w, A)) == TN_PATH_MINE);     /* TRUSTED -> TRUSTED */
    now += 6501;
    (void)drain();
    CHECK(p.state == TN_PATH_UNTRUSTED);
    now += 10;
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY));
    now += 5000;
    w = drain();
    CHECK(p.state == TN_PATH_NONE);         /* UNTRUSTED -> NONE */
    CHECK(w.pings == 1 && pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED));
    CHECK(tn_path_unreachable(&p, &a, now) && p.state == TN_PATH_NONE);    /* TRUSTED -> NONE */
    CHECK(!tn_path_unreachable(&p, &a, now));
    trusted(1000, 20);
    now += 6501;
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY) && p.state == TN_PATH_UNTRUSTED);
    w = drain();
    CHECK(pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED));  /* UNTRUSTED -> TRUSTED */
    CHECK(use() == TN_PATH_UDP);
    tn_path_network_changed(&p, now);
    CHECK(p.state == TN_PATH_NONE && p.best == TN_PATH_NO_SLOT);
}

/* ---- betterAddr ---- */

static void better(void)
{
    /* Microseconds. The reference's rows, but for relays and MTU, which we have not. */
    static const struct {
        const char *a;
        uint32_t    a_us;
        const char *b;
        uint32_t    b_us;
        bool        ab, ba;
    } row[] = {
        { "198.51.100.1:1", 40000, "203.0.113.9:1", 40300, false, false },
        { "198.51.100.1:1", 40000, "203.0.113.9:1", 41000, true, false },
        { "198.51.100.1:1", 20000, "203.0.113.9:1", 40000, true, false },
        { "203.0.113.9:1", 40000, "198.51.100.1:1", 20000, false, true },
        { "192.168.7.2:1", 3000, "203.0.113.9:1", 2500, true, false },
        { "192.168.7.2:1", 3000, "203.0.113.9:1", 2000, false, true },
        { "[2001:db8::9]:1", 22000, "203.0.113.9:1", 20000, false, false },
        { "[2001:db8::9]:1", 23000, "203.0.113.9:1", 20000, false, true },
        { "169.254.3.4:1", 10000, "10.1.1.1:1", 9500, true, false },
        { "[fd00::5]:1", 10000, "10.1.1.1:1", 9800, true, false },
        { "100.63.9.9:1", 10000, "203.0.113.9:1", 10000, false, false },
        { "203.0.113.9:1", 4000, "203.0.113.9:1", 9000, false, false }
    };
    size_t i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        tailnet_addr a = addr(row[i].a), b = addr(row[i].b);
        CHECK(tn_path_better(&a, row[i].a_us, &b, row[i].b_us) == row[i].ab);
        CHECK(tn_path_better(&b, row[i].b_us, &a, row[i].a_us) == row[i].ba);
    }
}

static void worths(void)
{
    static const struct {
        const char *text;
        unsigned    worth;
    } row[] = {
        { "127.0.0.1:1", 50 }, { "[::1]:1", 50 }, { "169.254.1.1:1", 30 }, { "[fe80::1]:1", 30 },
        { "[febf::1]:1", 30 }, { "[fec0::1]:1", 0 }, { "10.255.0.1:1", 20 }, { "11.0.0.1:1", 0 },
        { "172.15.0.1:1", 0 }, { "172.16.0.1:1", 20 }, { "172.31.0.1:1", 20 },
        { "172.32.0.1:1", 0 }, { "192.168.0.1:1", 20 }, { "192.169.0.1:1", 0 },
        { "[fc00::1]:1", 20 }, { "[fdff::1]:1", 20 },
        { "8.8.8.8:1", 0 }, { "[2001:db8::1]:1", 0 }, { "100.63.255.255:1", 0 },
        { "100.64.0.0:1", 255 }, { "100.127.255.255:1", 255 }, { "100.128.0.0:1", 0 },
        { "[fd7a:115c:a1e0::1]:1", 255 }, { "[fd7a:115c:a1e1::1]:1", 20 },
        { "224.0.0.1:1", 255 }, { "239.1.1.1:1", 255 }, { "255.255.255.255:1", 255 },
        { "[ff02::1]:1", 255 }, { "0.0.0.0:1", 255 }, { "[::]:1", 255 }, { "8.8.8.8:0", 255 }
    };
    tailnet_addr none;
    size_t       i;
    for (i = 0; i < sizeof row / sizeof row[0]; i++) {
        tailnet_addr a = addr(row[i].text);
        CHECK(tn_path_worth(&a) == row[i].worth);
        if (row[i].worth != 255 && row[i].worth != 30) continue;
        start(5);
        tn_path_listed(&p, &a, 1, now);
        CHECK(count() == (a.family == 4 && row[i].worth == 30));
        call(&a, 1);
        CHECK(count() == (a.family == 4 && row[i].worth == 30));
    }
    memset(&none, 0, sizeof none);
    none.port = 1;
    CHECK(tn_path_worth(&none) == 255);
    none = addr("[fe80::1]:7");             /* from the socket it has its link */
    none.scope = 2;
    start(5);
    CHECK(tn_path_ping_in(&p, &none, seed, now) && count() == 1);
}

/* ---- candidates ---- */

static void lists(void)
{
    tailnet_addr all[16];
    unsigned     i;
    wants        w;
    start(1000);
    list(A, B, C);
    CHECK(count() == 3 && has(A) && has(B) && has(C));
    list(A, C, NULL);
    CHECK(count() == 2 && !has(B));
    list(A, A, A);
    CHECK(count() == 1);
    (void)use();
    w = drain();
    CHECK(pong(tx_to(&w, A)) != 0 && p.state == TN_PATH_TRUSTED);
    list(B, NULL, NULL);                    /* the best has left */
    CHECK(p.state == TN_PATH_NONE && count() == 1 && has(B));
    p.lacks = 6;
    list(A, C, NULL);
    CHECK(count() == 1 && has(A));
    p.lacks = 4;
    list(A, C, NULL);
    CHECK(count() == 1 && has(C));
    start(1000);                            /* what we cannot reach displaces nothing */
    p.lacks = 6;
    for (i = 0; i < 16; i++) {
        all[i]       = addr(i < 8 ? A : C);
        all[i].ip[3] = (uint8_t)(i + 1);
    }
    tn_path_listed(&p, all, 8, now);
    i = count();
    call(all + 8, 8);
    CHECK(count() == i && tn_path_find(&p, &all[0]) != TN_PATH_NO_SLOT);
}

/* Numbers of addresses around the limits, and who goes. */
static void limits(void)
{
    tailnet_addr all[40];
    unsigned     i, named = TAILNET_MAX_CANDIDATES - TN_PATH_RESERVE;
    uint8_t      tx[12] = { 0 };
    for (i = 0; i < 40; i++) {
        all[i]    = addr("198.51.100.0:7");
        all[i].ip[3] = (uint8_t)(i + 1);
    }
    if (TAILNET_MAX_CANDIDATES != 8) return;
    start(1000);
    tn_path_listed(&p, all, 0, now);
    CHECK(count() == 0);
    tn_path_listed(&p, all, named, now);
    CHECK(count() == named);
    tn_path_listed(&p, all, 40, now);
    CHECK(count() == named && tn_path_find(&p, &all[named]) == TN_PATH_NO_SLOT);
    for (i = 0; i < 6; i++) {               /* sources of pings: the oldest goes */
        now += 10;
        tx[11] = (uint8_t)(i + 1);
        CHECK(tn_path_ping_in(&p, &all[20 + i], tx, now));
        CHECK(count() == named + (i + 1 < TN_PATH_RESERVE ? i + 1 : TN_PATH_RESERVE));
    }
    CHECK(tn_path_find(&p, &all[25]) != TN_PATH_NO_SLOT);
    CHECK(tn_path_find(&p, &all[24]) != TN_PATH_NO_SLOT);
    CHECK(tn_path_find(&p, &all[23]) == TN_PATH_NO_SLOT);
    call(all + 10, 17);                     /* the 17th is not read; newer than the list */
    CHECK(count() == TAILNET_MAX_CANDIDATES);
    CHECK(tn_path_find(&p, &all[24]) != TN_PATH_NO_SLOT);
    CHECK(tn_path_find(&p, &all[10]) != TN_PATH_NO_SLOT);
    CHECK(tn_path_find(&p, &all[0]) == TN_PATH_NO_SLOT);
    CHECK((p.places[tn_path_find(&p, &all[25])].flags & TN_PATH_CALLED) != 0);
    start(1000);
    call(all, 16);
    CHECK(count() == named);
    for (i = 0; i < 2; i++) {               /* the sixteenth is read, the next is not */
        start(1000);
        tn_path_listed(&p, all + 39, 1, now);
        call(all + 23 + i, 16);
        CHECK((tn_path_find(&p, &all[39]) != TN_PATH_NO_SLOT) == (i == 1));
        start(1000);
        tn_path_listed(&p, all + 39, 1, now);
        call(all + 23 + i, 17 - i);
        CHECK((tn_path_find(&p, &all[39]) != TN_PATH_NO_SLOT) == (i == 1));
    }
}

/* The best is never displaced. */
static void best_stays(void)
{
    tailnet_addr all[16];
    unsigned     i, round;
    uint8_t      tx[12] = { 0 };
    trusted(1000, 20);
    for (round = 0; round < 4; round++) {
        for (i = 0; i < 16; i++) {
            all[i] = addr("198.51.100.0:7");
            all[i].ip[3] = (uint8_t)(16 * round + i + 1);
            tx[10] = (uint8_t)(i + 1);
            (void)tn_path_ping_in(&p, &all[i], tx, now);
        }
        call(all, 16);
        CHECK(has(A) && p.state != TN_PATH_NONE);
    }
    list(NULL, NULL, NULL);                 /* one that is only known from its ping, too */
    start(1000);
    all[0] = addr(A);
    (void)tn_path_ping_in(&p, &all[0], tx, now);
    p.best  = (uint8_t)tn_path_find(&p, &all[0]);
    p.state = TN_PATH_TRUSTED;
    p.trusted = (uint32_t)now;
    for (i = 0; i < 40; i++) {
        now++;
        all[0]    = addr(B);
        all[0].ip[3] = (uint8_t)i;
        (void)tn_path_ping_in(&p, &all[0], tx, now);
        CHECK(has(A));
    }
    CHECK(count() == TAILNET_MAX_CANDIDATES);
    trusted(1000, 20);
    list(NULL, NULL, NULL);                 /* but it goes when nobody names it */
    CHECK(p.state == TN_PATH_NONE && count() == 0);
}

/* ---- sending ---- */

static void rounds(void)
{
    wants    w;
    int      i;
    uint64_t at;
    start(10000);
    list(A, B, NULL);
    CHECK(use() == TN_PATH_RELAY && tn_path_deadline(&p, now) == now);
    w = drain();
    CHECK(w.pings == 2 && w.calls == 1);
    CHECK(memcmp(w.wish[0].tx, w.wish[1].tx, 12) != 0);
    at = now;
    for (i = -1; i <= 1; i++) {             /* 5 s per candidate, counted from its ping */
        now = at + 5000 - 1 + (uint64_t)(i + 1);
        p.due &= (uint8_t)~TN_PATH_BEATS;   /* without the heartbeat */
        (void)use();
        w = drain();
        CHECK(w.pings == (i == 0 ? 2 : 0) && w.calls == (i == 0 ? 1 : 0));
        if (i == 0) break;
    }
    start(10000);                           /* nothing known: call, once in 5 s */
    CHECK(use() == TN_PATH_RELAY);
    w = drain();
    CHECK(w.pings == 0 && w.calls == 1);
    at = now;
    for (i = 0; i < 4; i++) {
        now = at + (i == 0 ? 0u : i == 1 ? 4999u : i == 2 ? 5000u : 5001u);
        p.due &= (uint8_t)~TN_PATH_BEATS;
        (void)use();
        w = drain();
        CHECK(w.pings == 0 && w.calls == (i == 2));
    }
    list(A, NULL, NULL);                    /* a new one at once, but no second call */
    (void)use();
    w = drain();
    CHECK(w.pings == 1 && w.calls == 0);
}

static void trust(void)
{
    int      i;
    uint64_t at;
    for (i = -1; i <= 1; i++) {             /* up to and with 6.5 s */
        trusted(10000, 20);
        now += (uint64_t)(6500 + i);
        CHECK(use() == (i <= 0 ? TN_PATH_UDP : TN_PATH_UDP | TN_PATH_RELAY));
    }
    trusted(10000, 20);                     /* idle: the deadline says when trust ends */
    p.due = 0;
    CHECK(tn_path_deadline(&p, now) == now + 6501);
    at = now;
    now += 6500;
    (void)drain();
    CHECK(p.state == TN_PATH_TRUSTED);
    now++;
    (void)drain();
    CHECK(p.state == TN_PATH_UNTRUSTED && tn_path_deadline(&p, now) == TN_NEVER);
    now = at;
    for (i = -1; i <= 1; i++) {             /* a ping to best that stays without answer */
        trusted(10000, 20);
        now += 6600;
        p.due = 0;
        CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY));
        CHECK(drain().pings == 1);
        p.due &= (uint8_t)~TN_PATH_BEATS;
        CHECK(tn_path_deadline(&p, now) == now + 5000);
        now += (uint64_t)(5000 + i);
        (void)drain();
        CHECK(p.state == (i < 0 ? TN_PATH_UNTRUSTED : TN_PATH_NONE));
    }
    trusted(10000, 20);                     /* one that times out under trust harms nothing */
    now += 1500;
    tn_path_due(&p, p.best);
    CHECK(drain().pings == 1 && (p.due & TN_PATH_DOUBT) == 0);
    now += 1;
    tn_path_due(&p, p.best);
    CHECK(drain().pings == 1 && (p.due & TN_PATH_DOUBT) != 0);
}

static void heartbeats(void)
{
    wants    w;
    uint64_t at;
    unsigned beats = 0;
    trusted(10000, 5);
    at = now - 5;                           /* the one use */
    CHECK(tn_path_deadline(&p, now) == at + 3000);
    now = at + 2999;
    CHECK(drain().pings == 0);
    for (;;) {
        uint64_t next = tn_path_deadline(&p, now);
        if (next == TN_NEVER) break;
        now = next;
        w   = drain();
        if (w.pings == 0) continue;
        beats++;
        CHECK(w.pings == 1 && w.calls == 0 && (now - at) % 3000 == 0 && now - at <= 45000);
        CHECK(pong(tx_to(&w, A)) == TN_PATH_MINE);
    }
    CHECK(beats == 15 && p.state == TN_PATH_UNTRUSTED);
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY) && drain().pings == 1);
    CHECK((p.due & TN_PATH_BEATS) != 0);
}

/* The heartbeat looks for something better each 60 s, above 5 ms. */
static void upgrades(void)
{
    int i;
    for (i = 0; i < 9; i++) {
        uint32_t latency_ms = i < 3 ? 5 : 6;
        int      late       = i % 3 - 1;
        wants    w;
        trusted(10000, latency_ms);
        list(A, B, NULL);
        p.metered = i >= 6;
        p.full    = (uint32_t)now;
        now += (uint64_t)(60000 + late);
        p.used = p.trusted = (uint32_t)now; /* as if there had been traffic all the time */
        p.beat = (uint32_t)(now - 3000);
        w      = drain();
        CHECK(tx_to(&w, A) != NULL);
        CHECK((tx_to(&w, B) != NULL) == (latency_ms > 5 && late >= 0 && !p.metered));
        CHECK(w.calls == w.pings - 1);
    }
}

/* ---- pongs ---- */

static void pongs(void)
{
    wants        w;
    uint8_t      tx[12], old[12];
    tn_path_pong got;
    tailnet_addr b = addr(B);
    unsigned     bit, i;
    start(10000);
    list(A, B, NULL);
    (void)use();
    w = drain();
    for (bit = 0; bit < 96; bit++) {        /* nothing near it is ours */
        memcpy(tx, tx_to(&w, A), 12);
        tx[bit / 8] = (uint8_t)(tx[bit / 8] ^ 1u << bit % 8);
        CHECK(pong(tx) == 0);
    }
    now += 40;
    CHECK(tn_path_pong_in(&p, tx_to(&w, A), true, now, &got) == TN_PATH_MINE);
    CHECK(got.latency_ms == 40 && got.to.ip[0] == 203 && p.state == TN_PATH_NONE);
    CHECK(pong(tx_to(&w, A)) == 0);         /* by relay: used up, nothing confirmed */
    CHECK(tn_path_pong_in(&p, tx_to(&w, B), false, now, &got) == (TN_PATH_MINE | TN_PATH_CHANGED));
    CHECK(tn_addr_same(&got.to, &b) && pong(tx_to(&w, B)) == 0);
    for (i = 0; i < 3; i++) {               /* forgotten after 5 s */
        start(10000);
        list(A, NULL, NULL);
        (void)use();
        w = drain();
        now += 4999 + i;
        CHECK((pong(tx_to(&w, A)) != 0) == (i == 0));
        if (i == 0) CHECK(p.latency_ms == 4999);
    }
    start(10000);                           /* the candidate has gone; its slot is another's */
    list(A, NULL, NULL);
    (void)use();
    w = drain();
    memcpy(old, tx_to(&w, A), 12);
    list(B, NULL, NULL);
    CHECK(pong(old) == 0);
    (void)use();
    w = drain();
    CHECK(w.pings == 1 && memcmp(old, w.wish[0].tx, 5) == 0 && memcmp(old, w.wish[0].tx, 12) != 0);
    CHECK(pong(old) == 0 && pong(tx_to(&w, B)) != 0);
    start(now);                             /* another session of the same peer */
    p.seed[15] ^= 1;
    list(B, NULL, NULL);
    CHECK(pong(w.wish[0].tx) == 0);
    memset(tx, 0xff, 12);
    CHECK(pong(tx) == 0);
}

/* Which becomes the best: by comparison under trust, the first one else. */
static void choice(void)
{
    wants w;
    start(10000);
    list(A, B, NULL);
    (void)use();
    w = drain();
    now += 20;
    CHECK(pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED) && p.latency_ms == 20);
    now += 4;                               /* 24 ms: 16 % slower, but private */
    CHECK(pong(tx_to(&w, B)) == (TN_PATH_MINE | TN_PATH_CHANGED) && p.latency_ms == 24);
    now += 3000;
    w = drain();
    CHECK(w.pings == 1 && tx_to(&w, B) != NULL);
    start(10000);
    list(A, B, NULL);
    (void)use();
    w = drain();
    now += 20;
    (void)pong(tx_to(&w, A));
    now += 20;                              /* twice as slow */
    CHECK(pong(tx_to(&w, B)) == TN_PATH_MINE && p.latency_ms == 20);
    start(10000);
    list(A, B, NULL);
    (void)use();
    w = drain();
    now += 20;
    (void)pong(tx_to(&w, B));
    now += 6501;                            /* no trust: any pong decides */
    (void)use();
    w = drain();
    now += 300;
    CHECK(pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED) && p.latency_ms == 300);
    CHECK(p.state == TN_PATH_TRUSTED);
}

/* ---- pings and calls of the peer ---- */

static void pings(void)
{
    tailnet_addr a = addr(A), forbidden = addr("100.64.0.1:9");
    uint8_t      tx[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    wants        w;
    int          i;
    start(10000);
    CHECK(tn_path_ping_in(&p, &a, tx, now) && has(A));
    CHECK(!tn_path_ping_in(&p, &a, tx, now));
    CHECK(drain().pings == 0 && tn_path_deadline(&p, now) == TN_NEVER);    /* no ping back */
    tx[11]++;
    CHECK(tn_path_ping_in(&p, &a, tx, now) && count() == 1);
    CHECK(tn_path_ping_in(&p, &forbidden, tx, now) && count() == 1);
    (void)use();
    w = drain();
    CHECK(w.pings == 0 && w.calls == 1);    /* who knows whether it is there?      */
    for (i = -1; i <= 1; i++) {             /* learned: for 45 s after the last ping */
        start(10000);
        (void)tn_path_ping_in(&p, &a, tx, now);
        p.places[0].flags |= TN_PATH_PROVEN;
        now += 1000;
        tx[11]++;
        (void)tn_path_ping_in(&p, &a, tx, now);
        now += (uint64_t)(45000 + i);
        (void)use();
        CHECK(drain().pings == (i <= 0) && count() == (i <= 0));
    }
    start(10000);                           /* listed ones do not age, and do not learn to */
    list(A, NULL, NULL);
    tx[11]++;
    (void)tn_path_ping_in(&p, &a, tx, now);
    now += 100000;
    (void)use();
    CHECK(drain().pings == 1);
    list(NULL, NULL, NULL);
    CHECK(count() == 0);
}

static void calls(void)
{
    wants        w;
    int          i;
    tailnet_addr b = addr(B);
    uint8_t      tx[12] = { 1 };
    start(10000);
    list(A, NULL, NULL);
    (void)use();
    CHECK(drain().pings == 1);
    now += 10;
    p.due = 0;
    CHECK(!call_one(B));                    /* all at once, also those pinged just now */
    w = drain();
    CHECK(w.pings == 2 && w.calls == 0 && tx_to(&w, A) != NULL && tx_to(&w, B) != NULL);
    CHECK(tn_path_deadline(&p, now) == TN_NEVER);   /* no traffic: no heartbeat */
    start(10000);                           /* no call in answer, ours is not due either */
    list(A, NULL, NULL);
    call_one(B);
    w = drain();
    CHECK(w.pings == 2 && w.calls == 0);
    start(10000);
    list(A, NULL, NULL);
    (void)use();
    CHECK(drain().calls == 1);
    now += 4000;
    call_one(B);
    (void)drain();
    now += 2000;                            /* all were pinged because of its call: it must */
    p.beat = (uint32_t)now;                 /*   hear where we are all the same       */
    (void)use();
    w = drain();
    CHECK(w.pings == 0 && w.calls == 1);
    now += 5000;
    CHECK(!call_one(C));                    /* B was in the former and is not in this */
    CHECK(!has(B) && has(A) && has(C) && drain().pings == 2);
    list(A, C, NULL);
    now += 5000;
    CHECK(!call(&b, 0));                    /* an empty one; listed or not */
    CHECK(count() == 1 && has(A));
    start(10000);                           /* the best is left out */
    (void)tn_path_ping_in(&p, &b, tx, now);
    call_one(B);
    w = drain();
    CHECK(pong(tx_to(&w, B)) != 0 && p.state == TN_PATH_TRUSTED);
    now += 1000;
    CHECK(call_one(A) && p.state == TN_PATH_NONE && !has(B));
    for (i = -1; i <= 1; i++) {             /* calls in a row make pings once in a second */
        start(10000);
        call_one(A);
        CHECK(drain().pings == 1);
        now += (uint64_t)(1000 + i);
        call_one(A);
        CHECK(drain().pings == (i >= 0));
    }
    start(10000);                           /* a network change takes the mark away */
    list(A, NULL, NULL);
    call_one(B);
    (void)drain();
    tn_path_network_changed(&p, now);
    (void)use();
    w = drain();
    CHECK(w.pings == 1 && tx_to(&w, A) != NULL && !has(B));
}

/* In search of a way a ping is answered by a ping too: once until the next round. */
static void echoes(void)
{
    tailnet_addr a = addr(A);
    uint8_t      tx[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    wants        w;
    start(10000);
    list(A, NULL, NULL);
    (void)use();
    (void)drain();
    now += 100;
    CHECK(tn_path_ping_in(&p, &a, tx, now));
    w = drain();
    CHECK(w.pings == 1 && w.calls == 0 && tx_to(&w, A) != NULL);
    tx[11]++;
    CHECK(tn_path_ping_in(&p, &a, tx, now) && drain().pings == 0);
    now += 5000;                            /* the next round brings it back */
    p.beat = (uint32_t)now;
    (void)use();
    CHECK(drain().pings == 1);
    tx[11]++;
    CHECK(tn_path_ping_in(&p, &a, tx, now));
    w = drain();
    CHECK(w.pings == 1 && pong(tx_to(&w, A)) != 0);
    now += 100;
    trusted(20000, 20);                     /* not when the way is known */
    CHECK(tn_path_ping_in(&p, &a, tx, now) && drain().pings == 0);
    a = addr(B);
    CHECK(tn_path_ping_in(&p, &a, tx, now) && drain().pings == 0);
}

/* The source of a ping may be forged, by the peer or by somebody who sends one of its
 * pings again: such an address gets one ping or one pong for each, and no more until
 * it answered. */
static void doubtful_sources(void)
{
    tailnet_addr a = addr(A), b = addr(B);
    uint8_t      tx[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    wants        w;
    int          i;
    start(10000);
    (void)use();                            /* in search of a way                  */
    (void)drain();
    CHECK(!tn_path_ping_in(&p, &a, tx, now));
    CHECK(drain().pings == 1);              /* in place of the pong                */
    CHECK(!tn_path_ping_in(&p, &a, tx, now) && drain().pings == 0);
    tx[11]++;
    CHECK(tn_path_ping_in(&p, &a, tx, now) && drain().pings == 0);
    for (i = 0; i < 12; i++) {              /* no round asks it again              */
        now += 1000;
        (void)use();
        CHECK(drain().pings == 0);
    }
    tn_path_probe(&p, now);
    CHECK(drain().pings == 0);
    for (i = 0; i < 4; i++) {               /* or for packets of its size          */
        CHECK(!tn_path_heard(&p, &a, 40, now) && drain().pings == (i == 3));
    }
    CHECK(!tn_path_heard(&p, &a, 1300, now) && drain().pings == 0);
    now += 5000;
    p.beat = (uint32_t)now;
    (void)use();
    CHECK(drain().pings == 0);
    tx[11]++;                               /* a ping for a ping                   */
    CHECK(!tn_path_ping_in(&p, &a, tx, now));
    w = drain();
    CHECK(w.pings == 1);
    now += 10;                              /* it is there: the pong is owed       */
    CHECK(pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED | TN_PATH_OWES));
    CHECK(tn_equal(p.owed_tx, tx, sizeof tx) && p.state == TN_PATH_TRUSTED);
    now += 7000;
    (void)use();
    CHECK(drain().pings == 1);              /* one of ours from now on             */
    tx[11]++;
    CHECK(tn_path_ping_in(&p, &a, tx, now) && tn_path_ping_in(&p, &b, tx, now + 1) == false);
    w = drain();
    CHECK(w.pings == 2 && tx_to(&w, B) != NULL);
}

/* The peer called and its pings did not reach us, ours reached it: with our next packet
 * it hears a call, so that it tries again. Not when it found us, not without traffic,
 * not for one that did not call, and once. */
static void sought(void)
{
    tailnet_addr a = addr(A);
    uint8_t      tx[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    wants        w;
    int          i;
    for (i = 0; i < 4; i++) {
        start(10000);
        list(A, NULL, NULL);
        if (i == 1) (void)tn_path_ping_in(&p, &a, tx, now);
        if (i == 2) tn_path_probe(&p, now);
        else        call_one(A);
        w = drain();
        CHECK(w.pings == 1 && w.calls == 0);
        now += 3;
        CHECK(pong(tx_to(&w, A)) != 0 && drain().calls == 0);
        now += i == 3 ? 5000 : 1;
        if (i == 3) p.beat = p.trusted = (uint32_t)now;
        CHECK(use() == TN_PATH_UDP);
        w = drain();
        CHECK(w.calls == (i == 0) && w.pings == 0);
        CHECK(use() == TN_PATH_UDP && drain().calls == 0);
    }
}

/* The peer calls and leaves out the best, which control still names: both ways. */
static void call_doubts(void)
{
    wants w;
    trusted(10000, 20);
    now += 100;
    CHECK(!call_one(B) && p.state == TN_PATH_UNTRUSTED);
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY));
    w = drain();
    CHECK(w.pings == 2);
    now += 30;
    CHECK(pong(tx_to(&w, B)) == (TN_PATH_MINE | TN_PATH_CHANGED) && use() == TN_PATH_UDP);
    now += 1000;                            /* one that names it changes nothing */
    CHECK(!call_one(B) && p.state == TN_PATH_TRUSTED);
}

/* ---- the rest ---- */

static void changes(void)
{
    wants    w;
    uint64_t at;
    trusted(10000, 20);
    now += 100;
    tn_path_network_changed(&p, now);       /* in use: at once, without waiting for traffic */
    CHECK(p.state == TN_PATH_NONE && tn_path_deadline(&p, now) <= now);
    w = drain();
    CHECK(w.pings == 1 && w.calls == 1);
    at = now;
    now += 20;
    CHECK(pong(tx_to(&w, A)) == (TN_PATH_MINE | TN_PATH_CHANGED));
    CHECK(tn_path_deadline(&p, now) == at + 3000);
    start(10000);                           /* idle: nothing */
    list(A, NULL, NULL);
    tn_path_network_changed(&p, now);
    CHECK(tn_path_deadline(&p, now) == TN_NEVER && drain().pings == 0);
    tn_path_probe(&p, now);                 /* somebody asks: all, then the best */
    w = drain();
    CHECK(w.pings == 1 && pong(tx_to(&w, A)) != 0);
    list(A, B, NULL);
    tn_path_probe(&p, now);
    w = drain();
    CHECK(w.pings == 1 && tx_to(&w, A) != NULL && use() == TN_PATH_UDP);
}

static void metered(void)
{
    wants    w;
    unsigned bytes = 0;
    uint64_t at;
    trusted(10000, 20);
    p.metered = true;
    list(A, B, C);
    at = now - 20;
    while (tn_path_deadline(&p, now) != TN_NEVER) {
        unsigned i;
        now = tn_path_deadline(&p, now);
        w   = drain();
        for (i = 0; i < w.pings; i++) {
            bytes += 124;
            (void)pong(w.wish[i].tx);
        }
    }
    CHECK(bytes == 124 && now - at < 3000 + 6600);
    CHECK(p.state == TN_PATH_UNTRUSTED);
    now += 60000;
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY));  /* only the best is asked */
    w = drain();
    CHECK(w.pings == 1 && w.calls == 0 && tx_to(&w, A) != NULL);
    CHECK(pong(tx_to(&w, A)) != 0 && use() == TN_PATH_UDP);
    now += 60000;
    (void)use();
    CHECK(drain().pings == 1);
    for (at = now; now <= at + 5000; now += 1000) {
        (void)use();
        w = drain();
    }
    (void)use();                            /* it does not answer: everything */
    w = drain();
    CHECK(p.state == TN_PATH_NONE);
    CHECK(p.called == (uint32_t)(at + 5000) || w.calls == 1);
    /* traffic each 5 s keeps the path, and one ping in 3 s is all it costs */
    trusted(10000, 20);
    p.metered = true;
    for (at = now + 60000; now < at; now += 500) {
        unsigned i;
        if ((at - now) % 5000 == 0) CHECK(use() == TN_PATH_UDP);
        w = drain();
        for (i = 0; i < w.pings; i++) (void)pong(w.wish[i].tx);
        CHECK(w.pings <= 1 && w.calls == 0);
    }
}

static void silent(void)
{
    tailnet_addr a = addr(A), b = addr(B);
    trusted(10000, 20);
    p.due    = 0;
    p.silent = true;
    list(A, B, NULL);
    now += 6500;
    CHECK(!tn_path_heard(&p, &b, 32, now));
    CHECK(!tn_path_heard(&p, &a, 32, now));
    now += 6500;
    CHECK(use() == TN_PATH_UDP && drain().pings == 0 && (p.due & TN_PATH_BEATS) == 0);
    now += 1;
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY) && drain().pings == 2);
    p.silent = false;
    now += 1;
    CHECK(!tn_path_heard(&p, &a, 32, now) && p.state == TN_PATH_UNTRUSTED);
}

/* A peer without disco. */
static void plain(void)
{
    tailnet_addr to, b = addr(B), x = addr("198.51.100.77:1");
    unsigned     i, turns[3] = { 0, 0, 0 };
    uint64_t     at;
    if (TAILNET_MAX_CANDIDATES < 3) return;
    start(10000);
    p.plain = true;
    CHECK(tn_path_use(&p, now, &to) == 0);
    now += 5000;
    list(A, B, C);
    for (at = now; now < at + 60000; now += 1000) {     /* each in turn, for 5 s */
        CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && drain().pings == 0);
        turns[to.ip[0] == 203 ? 0 : to.ip[0] == 192 ? 1 : 2]++;
    }
    for (i = 0; i < 3; i++) CHECK(turns[i] == 20);
    CHECK(tn_path_heard(&p, &b, 32, now) && !tn_path_heard(&p, &b, 32, now));
    CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && tn_addr_same(&to, &b));
    CHECK(tn_path_heard(&p, &x, 32, now));      /* it roamed */
    now += 15000;
    CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && tn_addr_same(&to, &x));
    now += 1;
    CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && tn_addr_same(&to, &x));  /* still first */
    now += 4999;
    CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && tn_addr_same(&to, &x));
    now += 1;
    CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && !tn_addr_same(&to, &x));
    now += 600000;
    list(A, B, C);                          /* the only thing we know stays */
    CHECK(tn_path_best(&p, &to) && tn_addr_same(&to, &x));
    x = addr(A);
    CHECK(tn_path_heard(&p, &x, 32, now));
    now += 20000;
    CHECK(tn_path_use(&p, now, &to) == TN_PATH_UDP && tn_addr_same(&to, &x));
    x = addr("224.0.0.1:1");
    CHECK(!tn_path_heard(&p, &x, 32, now));
}

/* The 32 bits of the clock run over under way, and years without traffic. */
static void long_times(void)
{
    uint64_t at;
    wants    w;
    trusted((uint64_t)0xffffffffu - 10, 20);
    for (at = now; now < at + 20000;) {
        CHECK(use() == TN_PATH_UDP);
        w = drain();
        if (w.pings != 0) CHECK(pong(w.wish[0].tx) == TN_PATH_MINE);
        now = tn_path_deadline(&p, now);
    }
    now += (uint64_t)1000 * 86400 * 25;     /* asleep, nobody polled */
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY) && drain().pings == 1);
    now += (uint64_t)1000 * 86400 * 40;
    CHECK(use() == (TN_PATH_UDP | TN_PATH_RELAY));
    (void)drain();
    start(TN_NEVER - 5);
    list(A, NULL, NULL);
    (void)use();
    (void)tn_path_step(&p, now, &w.wish[0]);
    CHECK(tn_path_deadline(&p, now) >= now);
}

static void sizes(void)
{
    if (TAILNET_MAX_CANDIDATES == 8) CHECK(sizeof(tn_path) <= 400);
}

/* ---- two of them, and a network between ---- */

/* What stands before a node: nothing; a firewall or NAT that lets in only who was
 * written to, with the same port outside for everybody, or another for each. */
typedef enum barrier { OPEN, FIREWALL, EASY, HARD } barrier;

typedef struct flow {
    uint16_t     port;                      /* outside */
    tailnet_addr remote;
    uint64_t     used;
} flow;

typedef struct side {
    tn_path      path;
    barrier      before;
    tailnet_addr own;                       /* as STUN would say */
    flow         flows[64];
    unsigned     flow_count;
    uint64_t     next_data, got_data, longest_gap;
    uint64_t     last_udp_out, last_udp_data, last_relay_data, direct_since;
    bool         talks, answers;            /* on its own; when it got something */
} side;

enum { PING, PONG, DATA, CALL };

typedef struct letter {
    uint64_t     at;
    int          kind, to;                  /* to: side, or -1 while on the way by address */
    bool         relay;
    tailnet_addr from, dst;
    uint8_t      tx[12];
} letter;

static struct world {
    side     s[2];
    letter   letters[512];
    unsigned count, lost, sent;
    unsigned loss;                          /* percent */
    bool     blocked;                       /* UDP does not get through */
} net;

static void post(letter *l, unsigned delay)
{
    if (net.count == 512) return;
    l->at = now + delay;
    net.letters[net.count++] = *l;
}

/* Out through what stands before the node: which address does the world see? */
static tailnet_addr outside(side *s, const tailnet_addr *to)
{
    tailnet_addr from = s->own;
    unsigned     i;
    if (s->before == OPEN) return from;
    for (i = 0; i < s->flow_count; i++) {
        if (tn_addr_same(&s->flows[i].remote, to) && now - s->flows[i].used < 30000) break;
    }
    if (i == s->flow_count) {
        CHECK(s->flow_count < 64);
        s->flow_count++;
        s->flows[i].remote = *to;
        s->flows[i].port   = s->before == HARD ? (uint16_t)(50000 + i * 7) : s->own.port;
    }
    s->flows[i].used = now;
    from.port        = s->flows[i].port;
    return from;
}

static bool let_in(side *s, const letter *l)
{
    unsigned i;
    if (memcmp(l->dst.ip, s->own.ip, 16) != 0) return false;
    if (s->before == OPEN) return l->dst.port == s->own.port;
    for (i = 0; i < s->flow_count; i++) {
        if (s->flows[i].port == l->dst.port && tn_addr_same(&s->flows[i].remote, &l->from) &&
            now - s->flows[i].used < 30000)
            return true;
    }
    return false;
}

static void udp(int who, int kind, const tailnet_addr *to, const uint8_t *tx)
{
    letter l;
    memset(&l, 0, sizeof l);
    l.kind = kind;
    l.to   = 1 - who;
    l.dst  = *to;
    l.from = outside(&net.s[who], to);
    if (tx != NULL) memcpy(l.tx, tx, 12);
    net.s[who].last_udp_out = now;
    net.sent++;
    if (!net.blocked && tn_test_random() % 100 >= net.loss) post(&l, 10);
}

static void relay(int who, int kind)
{
    letter l;
    memset(&l, 0, sizeof l);
    l.kind  = kind;
    l.to    = 1 - who;
    l.relay = true;
    post(&l, 40);
}

static void say(int who)
{
    side        *s = &net.s[who];
    tailnet_addr to;
    unsigned     ways = tn_path_use(&s->path, now, &to);
    s->next_data      = now + 100;
    if ((ways & TN_PATH_UDP) != 0) {
        udp(who, DATA, &to, NULL);
        s->last_udp_data = now;
    }
    if ((ways & TN_PATH_RELAY) != 0) {
        relay(who, DATA);
        s->last_relay_data = now;
    }
}

static void work(int who)
{
    side        *s = &net.s[who];
    tn_path_wish w;
    tn_path_want want;
    unsigned     n = 0;
    if (s->talks && now >= s->next_data) say(who);
    while ((want = tn_path_step(&s->path, now, &w)) != TN_PATH_QUIET) {
        CHECK(++n < 40);
        if (want == TN_PATH_CALL) relay(who, CALL);
        else                      udp(who, PING, &w.to, w.tx);
    }
    if (s->path.state != TN_PATH_TRUSTED) s->direct_since = 0;
    else if (s->direct_since == 0)        s->direct_since = now;
}

static void arrive(const letter *l)
{
    side        *s = &net.s[l->to];
    tn_path_pong got;
    tn_disco_msg m;
    uint8_t      text[20];
    tn_wr        w;
    if (!l->relay && !let_in(s, l)) return;
    switch (l->kind) {
    case PING:
        if (tn_path_ping_in(&s->path, &l->from, l->tx, now)) udp(l->to, PONG, &l->from, l->tx);
        return;
    case PONG:
        (void)tn_path_pong_in(&s->path, l->tx, false, now, &got);
        return;
    case CALL:
        tn_wr_over(&w, text, sizeof text);
        tn_disco_wr_call(&w, &net.s[1 - l->to].own, 1);
        CHECK(tn_disco_parse(text, sizeof text, &m) == TAILNET_OK);
        (void)tn_path_call_in(&s->path, &m, now);
        return;
    default:
        if (now - s->got_data > s->longest_gap) s->longest_gap = now - s->got_data;
        s->got_data = now;
        if (s->answers && now >= s->next_data) say(l->to);
        return;
    }
}

static void run(uint64_t ms)
{
    uint64_t end = now + ms;
    while (now < end) {
        unsigned i;
        for (i = 0; i < net.count;) {
            letter l = net.letters[i];
            if (l.at > now) {
                i++;
                continue;
            }
            net.letters[i] = net.letters[--net.count];
            arrive(&l);
        }
        work(0);
        work(1);
        now++;
    }
}

/* Side 0 knows side 1 from the map when listed, and talks; side 1 answers. */
static void world(barrier a, barrier b, bool listed)
{
    int i;
    memset(&net, 0, sizeof net);
    tn_test_seed    = 7;
    now             = 5000000;
    net.s[0].before = a;
    net.s[1].before = b;
    net.s[0].own    = addr("198.51.100.1:41641");
    net.s[1].own    = addr("203.0.113.1:41641");
    for (i = 0; i < 2; i++) {
        uint8_t mine[16] = { 1, 2, 3, 4, 5, 6, 7, 8 };
        mine[15]         = (uint8_t)i;
        tn_path_init(&net.s[i].path, mine, now);
        if (listed) tn_path_listed(&net.s[i].path, &net.s[1 - i].own, 1, now);
        net.s[i].talks    = true;
        net.s[i].got_data = now;
    }
}

static void matrix(void)
{
    static const char expected[4][5] = { "DDDD", "DDDR", "DDDR", "DRRR" };
    int a, b, kind;                         /* bit 0: listed; bit 1: side 1 only answers */
    for (a = 0; a < 4; a++) {
        for (b = 0; b < 4; b++) {
            for (kind = 0; kind < 4; kind++) {
                uint64_t begin;
                bool     direct;
                world((barrier)a, (barrier)b, (kind & 1) != 0);
                net.s[1].talks   = kind < 2;
                net.s[1].answers = kind >= 2;
                begin = now;
                run(12000);
                direct = net.s[0].direct_since != 0 && net.s[1].direct_since != 0;
                CHECK(direct == (expected[a][b] == 'D'));
                if (!direct) continue;
                CHECK(net.s[0].direct_since - begin < 200 && net.s[1].direct_since - begin < 200);
                CHECK(net.s[0].longest_gap <= 241 && net.s[1].longest_gap <= 241);
            }
        }
    }
}

/* Blocked without a word: both ways within 6.5 s, relay only within 11.5 s, no gap
 * above 6.5 s; and direct again within 8 s. */
static void outage(void)
{
    unsigned shift;
    for (shift = 0; shift < 3000; shift += 250) {
        uint64_t at;
        int      i;
        world(EASY, EASY, true);
        run(10000 + shift);
        at          = now;
        net.blocked = true;
        net.s[0].longest_gap = net.s[1].longest_gap = 0;
        run(6600);
        for (i = 0; i < 2; i++) CHECK(net.s[i].last_relay_data + 100 >= now - 1);
        run(5100);
        for (i = 0; i < 2; i++) {
            CHECK(net.s[i].path.state == TN_PATH_NONE);
            CHECK(net.s[i].last_udp_data <= at + 11600);
            CHECK(net.s[i].longest_gap <= 6700);
        }
        run(7000);
        at          = now;
        net.blocked = false;
        run(8000);
        for (i = 0; i < 2; i++)
            CHECK(net.s[i].direct_since != 0 && net.s[i].direct_since <= at + 8000);
    }
}

static void idle(void)
{
    uint64_t at;
    unsigned sent;
    world(EASY, EASY, true);
    run(5000);
    CHECK(net.s[0].path.state == TN_PATH_TRUSTED);
    at               = now;
    net.s[0].talks   = net.s[1].talks = false;
    run(60000);
    CHECK(net.s[0].last_udp_out >= at + 42000 && net.s[0].last_udp_out <= at + 48100);
    sent = net.sent;
    run(600000);
    CHECK(net.sent == sent);
    net.s[0].talks = net.s[1].talks = true;
    net.s[0].longest_gap = 0;
    at             = now;
    net.s[0].got_data = net.s[1].got_data = now;
    run(5000);
    CHECK(net.s[0].direct_since != 0 && net.s[0].direct_since <= at + 5000);
    CHECK(net.s[1].longest_gap <= 600000 && net.s[0].longest_gap <= 241);
}

/* One packet in five is lost: the path is trusted nearly always. */
static void lossy(void)
{
    unsigned i, direct = 0;
    world(EASY, FIREWALL, true);
    net.loss = 20;
    run(8000);
    for (i = 0; i < 3000; i++) {
        run(100);
        direct += net.s[0].path.state == TN_PATH_TRUSTED;
    }
    CHECK(direct > 2500);
}

/* The other end gets another address and says so through control. */
static void moved(void)
{
    world(EASY, EASY, true);
    run(8000);
    CHECK(net.s[0].direct_since != 0);
    net.s[1].own = addr("203.0.113.77:999");
    net.s[1].flow_count = 0;
    tn_path_network_changed(&net.s[1].path, now);
    net.s[0].longest_gap = net.s[1].longest_gap = 0;
    run(1000);
    CHECK(net.s[1].direct_since != 0 && net.s[0].path.state == TN_PATH_TRUSTED);
    CHECK(net.s[0].longest_gap <= 241);
}

int main(void)
{
    TEST(arrows);
    TEST(arrows_walked);
    TEST(better);
    TEST(worths);
    TEST(lists);
    TEST(limits);
    TEST(best_stays);
    TEST(rounds);
    TEST(trust);
    TEST(heartbeats);
    TEST(upgrades);
    TEST(pongs);
    TEST(choice);
    TEST(pings);
    TEST(calls);
    TEST(echoes);
    TEST(doubtful_sources);
    TEST(sought);
    TEST(call_doubts);
    TEST(changes);
    TEST(metered);
    TEST(silent);
    TEST(plain);
    TEST(long_times);
    TEST(sizes);
    TEST(matrix);
    TEST(outage);
    TEST(idle);
    TEST(lossy);
    TEST(moved);
    return tn_test_end();
}
