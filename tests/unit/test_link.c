#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"
#include "tls_world.h"

enum { SLOTS = 4, ENGINES = 2, WIRE = 40000 };

/* What lies behind the callbacks: one connection per slot. */
typedef struct wire {
    tailnet_link link;                      /* open now, or 0                     */
    unsigned     opens, closes;
    tailnet_dial dial;
    char         host[64], certificate[80];
    uint8_t      out[WIRE];                 /* what the link sent                 */
    size_t       out_len;
    int32_t      limit;                     /* per tcp_output; -1: broken         */
    size_t       budget;                    /* bytes taken until it blocks        */
} wire;

static world          w;
static tn_rim         rim;
static tn_links       links;
static tn_link        slots[SLOTS];
static tn_tls         engines[ENGINES];
static uint8_t        engine_in[ENGINES * TN_TLS_IN_LEN];
static tn_tls_check   check;
static wire           wires[SLOTS];
static bool           refuse_open;
static world_server   servers[2];
static uint8_t        bits_of[SLOTS];       /* news since fresh()                 */
static tn_link_news   gone[SLOTS];
static bool           lazy;                 /* the owner does not read            */
static uint8_t        got[WIRE];
static size_t         got_len;

static const int GOOD[] = { C_GOOD, C_MIDDLE, -1, -2 };

static int net_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    wire *x = &wires[TAILNET_LINK_SLOT(link)];
    (void)user;
    CHECK(rim.inside && x->link == 0);
    if (refuse_open) return -1;
    x->link = link;
    x->opens++;
    x->dial    = *dial;
    x->out_len = 0;
    strcpy(x->host, dial->host);
    strcpy(x->certificate, dial->certificate == NULL ? "" : dial->certificate);
    return 0;
}

static int32_t net_output(void *user, tailnet_link link, const void *data, size_t size)
{
    wire *x = &wires[TAILNET_LINK_SLOT(link)];
    (void)user;
    CHECK(x->link == link && size != 0);
    if (x->limit < 0) return -1;
    if (x->limit != 0 && size > (size_t)x->limit) size = (size_t)x->limit;
    if (size > x->budget) size = x->budget;
    if (size > WIRE - x->out_len) size = WIRE - x->out_len;
    memcpy(x->out + x->out_len, data, size);
    x->out_len += size;
    x->budget -= size;
    return (int32_t)size;
}

static void net_close(void *user, tailnet_link link)
{
    wire *x = &wires[TAILNET_LINK_SLOT(link)];
    (void)user;
    CHECK(x->link == link);
    x->link = 0;
    x->closes++;
}

static void fresh(void)
{
    tailnet_io io;
    unsigned   i;
    memset(&w, 0, sizeof w);
    w.now_ms  = 1000;
    w.unix_ms = WORLD_NOW_MS;
    world_io(&io, &w);
    io.tcp_open   = net_open;
    io.tcp_output = net_output;
    io.tcp_close  = net_close;
    CHECK(tn_rim_init(&rim, &io));
    CHECK(tn_rim_enter(&rim));
    memset(wires, 0, sizeof wires);
    for (i = 0; i < SLOTS; i++) wires[i].budget = WIRE;
    memset(&links, 0, sizeof links);
    memset(bits_of, 0, sizeof bits_of);
    memset(gone, 0, sizeof gone);
    links.rim          = &rim;
    links.slots        = slots;
    links.slot_count   = SLOTS;
    links.engines      = engines;
    links.engine_in    = engine_in;
    links.engine_count = ENGINES;
    links.check        = &check;
    links.anchors      = certs.anchors;
    links.anchor_count = 2;
    tn_link_init(&links);
    refuse_open = lazy = false;
    got_len = 0;
}

static void take_all(tailnet_link h)
{
    size_t   len;
    uint8_t *at;
    while ((at = tn_link_read(&links, h, &len)) != NULL) {
        len = world_cut(2, len);
        if (got_len + len <= WIRE) memcpy(got + got_len, at, len);
        got_len += len;
        tn_link_ack(&links, h, len);
    }
}

/* News of all slots, and what owners do with them. */
static void dispatch(void)
{
    tn_link_news n;
    unsigned     i;
    for (i = 0; i < SLOTS; i++) {
        if (!tn_link_fetch(&links, i, &n)) continue;
        CHECK(TAILNET_LINK_SLOT(n.link) == i && n.bits != 0);
        bits_of[i] |= n.bits;
        if ((n.bits & TN_LINK_READABLE) != 0 && !lazy) take_all(n.link);
        if ((n.bits & TN_LINK_GONE) != 0) {
            CHECK(gone[i].link != n.link);  /* told once                          */
            gone[i] = n;
        }
    }
    CHECK(!tn_link_fetch(&links, SLOTS, &n));
}

/* "Always" of the banner. */
static void always(void)
{
    unsigned i, shaking = 0;
    for (i = 0; i < SLOTS; i++) {
        const tn_link *l = &slots[i];
        CHECK((l->state != TN_LINK_IDLE) == (wires[i].link != 0));
        CHECK((l->deadline_ms == TN_NEVER) ==
              (l->state == TN_LINK_IDLE || l->state == TN_LINK_OPEN));
        CHECK(wires[i].opens == wires[i].closes + (wires[i].link != 0));
        CHECK(l->state == TN_LINK_IDLE || wires[i].link == l->handle);
        if (l->state == TN_LINK_HANDSHAKE) shaking++;
    }
    CHECK(shaking <= 1);
}

static void poll(void)
{
    CHECK(tn_rim_enter(&rim));
    tn_link_poll(&links);
    always();
    dispatch();
    tn_link_sweep(&links);
    always();
}

static tailnet_link open_link(const char *host, bool tls, const char *certificate)
{
    tailnet_dial dial;
    tailnet_link h = 99;
    memset(&dial, 0, sizeof dial);
    dial.host        = host;
    dial.port        = 443;
    dial.tls         = tls;
    dial.certificate = certificate;
    CHECK(tn_link_open(&links, &dial, TN_LINK_FOR_RELAY, &h) == TAILNET_OK);
    CHECK(h != 0 && tn_link_find(&links, h) != NULL);
    return h;
}

/* Gives received bytes to a link in pieces. Returns what it took. */
static size_t receive(tailnet_link h, const uint8_t *src, size_t len, int cut)
{
    size_t done = 0, room;
    while (done < len) {
        uint8_t *at = tn_link_in_reserve(&links, h, &room);
        size_t   n  = world_cut(cut, len - done);
        CHECK((at == NULL) == (room == 0));
        if (at == NULL) break;
        if (n > room) n = room;
        memcpy(at, src + done, n);
        CHECK(tn_link_in_commit(&links, h, n) == TAILNET_OK);
        done += n;
    }
    return done;
}

/* One round between a link and its server; true while something moves. */
static bool round_trip(tailnet_link h, world_server *s, int cut)
{
    wire          *x     = &wires[TAILNET_LINK_SLOT(h)];
    bool           moved = false;
    const uint8_t *data;
    size_t         n, len;
    if (x->out_len != 0) {
        n = world_feed(&s->port, x->out, x->out_len);
        memmove(x->out, x->out + n, x->out_len - n);
        x->out_len -= n;
        moved = n != 0;
    }
    x->budget = WIRE;
    CHECK(tn_link_tcp_writable(&links, h) == TAILNET_OK || tn_link_find(&links, h) == NULL);
    data = tn_tls_out(&s->port, &len);
    if (data != NULL && tn_link_find(&links, h) != NULL) {
        n = receive(h, data, len, cut);
        if (n != 0) tn_tls_sent(&s->port, n);
        moved |= n != 0;
    }
    moved |= tn_link_deadline(&links) == 0;
    poll();
    return moved;
}

static void run(tailnet_link h, world_server *s, int cut)
{
    unsigned rounds = 0;
    while (round_trip(h, s, cut) && ++rounds < 100000) {}
    CHECK(rounds < 100000);
}

static tailnet_link open_tls(world_server *s, const int *chain, const char *host, int cut)
{
    tailnet_link h = open_link(host, true, NULL);
    world_server_start(s, chain);
    CHECK(tn_link_tcp_opened(&links, h) == TAILNET_OK);
    run(h, s, cut);
    return h;
}

static void server_says(world_server *s, const void *data, size_t len)
{
    size_t   room;
    uint8_t *at = tn_tls_reserve(&s->port, &room);
    CHECK(at != NULL && room >= len);
    if (at == NULL) return;
    memcpy(at, data, len);
    tn_tls_commit(&s->port, len);
    tn_tls_flush(&s->port);
}

static size_t server_hears(world_server *s, uint8_t *dst, size_t cap)
{
    size_t   all = 0, len;
    uint8_t *at;
    while ((at = tn_tls_read(&s->port, &len)) != NULL) {
        if (all + len <= cap) memcpy(dst + all, at, len);
        all += len;
        tn_tls_ack(&s->port, len);
    }
    return all;
}

/* ---- the machine ---- */

/* Every state meets every event, with and without engine and proxy; where it
 * goes is written down here once more, as the drawing in the manual has it. */
static void test_machine(void)
{
    enum { I = TN_LINK_IDLE, O = TN_LINK_OPENING, P = TN_LINK_PROXY, Q = TN_LINK_QUEUED,
           H = TN_LINK_HANDSHAKE, U = TN_LINK_OPEN, C = TN_LINK_CLOSING, X = 99 };
    static const uint8_t want[TN_LINK_STATES][7] = {
        /*            WANTED TCP_UP PROXY_UP TURN TLS_UP ENDS FREED */
        /* IDLE    */ { O,   I,     I,       I,   I,     I,   I },
        /* OPENING */ { O,   X,     O,       O,   O,     C,   O },
        /* PROXY   */ { P,   P,     X,       P,   P,     C,   P },
        /* QUEUED  */ { Q,   Q,     Q,       H,   Q,     C,   Q },
        /* SHAKE   */ { H,   H,     H,       H,   U,     C,   H },
        /* OPEN    */ { U,   U,     U,       U,   U,     C,   U },
        /* CLOSING */ { C,   C,     C,       C,   C,     C,   I }
    };
    unsigned s, e, k;
    for (k = 0; k < 4; k++) {
        for (s = 0; s < TN_LINK_STATES; s++) {
            for (e = 0; e < 7; e++) {
                tn_link  l;
                unsigned up = (k & 1) != 0 ? Q : U, next = want[s][e];
                if (next == X) next = s == O && (k & 2) != 0 ? P : up;
                memset(&l, 0, sizeof l);
                l.state   = (tn_link_state)s;
                l.engine  = (k & 1) != 0 ? 0 : TN_LINK_NO_ENGINE;
                l.proxied = (k & 2) != 0;
                tn_link_step(&l, (tn_link_event)e, 500);
                CHECK(l.state == (tn_link_state)next);
                if (next == s) {
                    CHECK(l.deadline_ms == 0 && l.bits == 0);
                    continue;
                }
                CHECK((tn_link_arrows[s] >> next & 1) != 0);
                CHECK((l.deadline_ms == TN_NEVER) == (next == I || next == U));
                CHECK(l.bits == (next == U ? TN_LINK_OPENED : next == C ? TN_LINK_GONE : 0));
            }
        }
    }
}

/* ---- opening and closing ---- */

static void test_slots(void)
{
    tailnet_link h[SLOTS], more = 7;
    tailnet_dial dial;
    unsigned     i;
    fresh();
    memset(&dial, 0, sizeof dial);
    dial.host = "relay.example";
    dial.port = 443;
    for (i = 0; i < SLOTS; i++) h[i] = open_link("relay.example", false, NULL);
    for (i = 0; i < SLOTS; i++) CHECK(h[i] == (i | 1u << 8));
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_ERR_AGAIN && more == 0);
    tn_link_close(&links, h[2], TAILNET_OK);
    CHECK(wires[2].closes == 0);            /* never from anywhere but poll       */
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_ERR_AGAIN);
    CHECK(tn_link_deadline(&links) == 0);
    poll();
    CHECK(wires[2].closes == 1);
    CHECK(tn_link_tcp_opened(&links, h[2]) == TAILNET_ERR_STALE);
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_OK && more == (2u | 2u << 8));
    refuse_open = true;
    tn_link_close(&links, more, TAILNET_OK);
    poll();
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_ERR_NETWORK && more == 0);
    refuse_open = false;
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_OK && more == (2u | 4u << 8));
    slots[2].handle = 2u | 0xfffffful << 8; /* the last generation                */
    wires[2].link   = slots[2].handle;
    tn_link_close(&links, slots[2].handle, TAILNET_OK);
    poll();
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_OK && more == (2u | 1u << 8));
    tn_link_close_all(&links);
    always();
    CHECK(tn_link_deadline(&links) == TN_NEVER);
    for (i = 0; i < SLOTS; i++) CHECK(wires[i].link == 0 && gone[i].link == 0);
}

static void test_engines(void)
{
    tailnet_link h[2], more;
    tailnet_dial dial;
    fresh();
    memset(&dial, 0, sizeof dial);
    dial.host = "relay.example";
    dial.port = 443;
    dial.tls  = true;
    h[0] = open_link("relay.example", true, NULL);
    h[1] = open_link("relay.example", true, NULL);
    CHECK(slots[0].engine != slots[1].engine);
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_ERR_AGAIN);
    CHECK(!wires[0].dial.tls && wires[0].certificate[0] == '\0');
    tn_link_close(&links, h[0], TAILNET_OK);
    poll();
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_OK);
    CHECK(slots[0].engine == 0 && slots[1].engine == 1);
    CHECK(tn_link_has_engine(&links, more) && !tn_link_has_engine(&links, h[0]));
    fresh();
    links.engine_count = 0;
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_ERR_UNSUPPORTED && more == 0);
    links.tls_by_caller = true;
    more = open_link("relay.example", true, "front.example");
    CHECK(wires[0].dial.tls && strcmp(wires[0].certificate, "front.example") == 0);
    CHECK(!tn_link_has_engine(&links, more));
    links.proxy = "proxy:3128";
    CHECK(tn_link_open(&links, &dial, 1, &more) == TAILNET_ERR_UNSUPPORTED);
}

static void test_stale(void)
{
    tailnet_link h;
    size_t       n;
    unsigned     i;
    fresh();
    h = open_link("relay.example", false, NULL);
    tn_link_close(&links, h, TAILNET_OK);
    for (i = 0; i < 2; i++) {               /* closed by the owner, then freed    */
        CHECK(tn_link_read(&links, h, &n) == NULL && n == 0);
        CHECK(tn_link_reserve(&links, h, &n) == NULL && n == 0);
        CHECK(tn_link_write(&links, h, "x", 1) == 0);
        CHECK(!tn_link_is_open(&links, h) && tn_link_queued(&links, h) == 0);
        CHECK(tn_link_meta_key(&links, h) == NULL);
        tn_link_commit(&links, h, 0);
        tn_link_ack(&links, h, 0);
        tn_link_flush(&links, h);
        tn_link_lend(&links, h, got, 5, NULL, 0);
        tn_link_close(&links, h, TAILNET_OK);
        CHECK(tn_link_in_reserve(&links, h, &n) == NULL && n == 0);
        CHECK(tn_link_in_commit(&links, h, 5) == (i == 0 ? TAILNET_OK : TAILNET_ERR_STALE));
        CHECK(tn_link_tcp_opened(&links, h) == (i == 0 ? TAILNET_OK : TAILNET_ERR_STALE));
        CHECK(tn_link_tcp_writable(&links, h) == (i == 0 ? TAILNET_OK : TAILNET_ERR_STALE));
        CHECK(tn_link_tcp_closed(&links, h) == (i == 0 ? TAILNET_OK : TAILNET_ERR_STALE));
        poll();
    }
    CHECK(bits_of[0] == 0 && wires[0].closes == 1);
    CHECK(tn_link_tcp_opened(&links, 0) == TAILNET_ERR_STALE);
    CHECK(tn_link_tcp_opened(&links, 0xffffffffu) == TAILNET_ERR_STALE);
    CHECK(tn_link_tcp_opened(&links, SLOTS | 1u << 8) == TAILNET_ERR_STALE);
}

static void test_timeouts(void)
{
    static const uint64_t patience[] = { 10000, 10000, 20000, 15000 };
    unsigned              i;
    for (i = 0; i < 4; i++) {
        tailnet_link h, other = 0;
        fresh();
        if (i == 1) links.proxy = "proxy:3128";
        if (i == 2) {                       /* another one is shaking hands       */
            other = open_link("relay.example", true, NULL);
            tn_link_tcp_opened(&links, other);
            poll();
        }
        h = open_link("relay.example", true, NULL);
        if (i != 0) tn_link_tcp_opened(&links, h);
        poll();
        CHECK((unsigned)slots[TAILNET_LINK_SLOT(h)].state == TN_LINK_OPENING + i);
        if (i == 2) slots[TAILNET_LINK_SLOT(other)].deadline_ms = 1000000;
        CHECK(tn_link_deadline(&links) == w.now_ms + patience[i]);
        w.now_ms += patience[i] - 1;
        poll();
        CHECK(gone[TAILNET_LINK_SLOT(h)].link == 0);
        w.now_ms += 1;
        poll();
        CHECK(gone[TAILNET_LINK_SLOT(h)].why == TAILNET_ERR_TIMEOUT);
        CHECK(gone[TAILNET_LINK_SLOT(h)].purpose == TN_LINK_FOR_RELAY);
        CHECK(wires[TAILNET_LINK_SLOT(h)].closes == 1);
    }
}

/* The connection ends in each state. */
static void test_ends(void)
{
    unsigned i;
    for (i = 0; i < 5; i++) {
        tailnet_link h;
        fresh();
        if (i == 1) links.proxy = "proxy:3128";
        h = open_link("relay.example", i != 4, NULL);
        if (i != 0) tn_link_tcp_opened(&links, h);
        if (i > 2) poll();
        CHECK(tn_link_tcp_closed(&links, h) == TAILNET_OK);
        CHECK(tn_link_tcp_closed(&links, h) == TAILNET_OK);
        CHECK(wires[0].closes == 0 && tn_link_deadline(&links) == 0);
        poll();
        CHECK(wires[0].closes == 1 && gone[0].why == TAILNET_ERR_NETWORK);
    }
}

/* ---- TLS ---- */

static void test_tls(void)
{
    static const int32_t limits[] = { 0, 1, 37 };
    int                  cut, k;
    for (cut = 0; cut < 3; cut++) {
        for (k = 0; k < 3; k++) {
            tailnet_link h;
            uint8_t      heard[64];
            fresh();
            wires[0].limit = limits[k];
            h = open_tls(&servers[0], GOOD, "relay.example", cut);
            CHECK(bits_of[0] == TN_LINK_OPENED && tn_link_is_open(&links, h));
            CHECK(tn_link_meta_key(&links, h) != NULL && tn_link_meta_key(&links, h)[1] == 1);
            CHECK(tn_link_deadline(&links) == TN_NEVER);
            server_says(&servers[0], "hello", 5);
            run(h, &servers[0], cut);
            CHECK(got_len == 5 && memcmp(got, "hello", 5) == 0);
            CHECK(bits_of[0] == (TN_LINK_OPENED | TN_LINK_READABLE));
            CHECK(tn_link_write(&links, h, "hi there", 8) == 8);
            run(h, &servers[0], cut);
            CHECK(server_hears(&servers[0], heard, sizeof heard) == 8);
            CHECK_BYTES(heard, "hi there", 8);
            tn_tls_close(&servers[0].port);
            run(h, &servers[0], cut);
            CHECK(gone[0].link == h && gone[0].why == TAILNET_OK && wires[0].closes == 1);
        }
    }
}

/* A larger amount through a socket that takes little: nothing lost, WRITABLE
 * told, the order kept. */
static void test_back_pressure(void)
{
    static uint8_t data[20000], heard[20000];
    size_t         done = 0, n = 0, i;
    tailnet_link   h;
    unsigned       starved = 0;
    fresh();
    for (i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7 + (i >> 8));
    h = open_tls(&servers[0], GOOD, "relay.example", 0);
    while (n < sizeof data && starved < 10000) {
        size_t before = done;
        wires[0].budget = (size_t)(tn_test_random() % 700);
        bits_of[0]      = 0;
        done += tn_link_write(&links, h, data + done, sizeof data - done);
        if (done < sizeof data) {
            size_t room;
            starved++;
            CHECK(tn_link_reserve(&links, h, &room) == NULL && room == 0);
            CHECK(tn_link_write(&links, h, data + done, 1) == 0);
        }
        (void)round_trip(h, &servers[0], 2);
        if (done < sizeof data && before != done && wires[0].out_len == 0)
            CHECK((bits_of[0] & TN_LINK_WRITABLE) != 0);
        n += server_hears(&servers[0], heard + n, sizeof heard - n);
    }
    CHECK(n == sizeof data && starved > 5);
    CHECK_BYTES(heard, data, sizeof data);
    wires[0].limit = -1;                    /* and then it breaks                 */
    CHECK(tn_link_write(&links, h, data, 5) == 5);
    CHECK(!tn_link_is_open(&links, h));
    poll();
    CHECK(gone[0].why == TAILNET_ERR_NETWORK && wires[0].closes == 1);
}

/* What the handshake would call: on an open link nothing does, whatever the other
 * side asks for (tests/tools/stack.py leaves these ways out). */
static unsigned handshake_work;

static void no_prf(void *dst, size_t len, const void *secret, size_t secret_len, const char *label,
                   size_t seed_num, const br_tls_prf_seed_chunk *seed)
{
    (void)dst, (void)len, (void)secret, (void)secret_len, (void)label, (void)seed_num, (void)seed;
    handshake_work++;
}

static uint32_t no_mul(unsigned char *g, size_t glen, const unsigned char *x, size_t xlen,
                       int curve)
{
    (void)g, (void)glen, (void)x, (void)xlen, (void)curve;
    handshake_work++;
    return 0;
}

static size_t no_mulgen(unsigned char *r, const unsigned char *x, size_t xlen, int curve)
{
    (void)r, (void)x, (void)xlen, (void)curve;
    handshake_work++;
    return 0;
}

static uint32_t no_rsa(const unsigned char *x, size_t xlen, const unsigned char *hash_oid,
                       size_t hash_len, const br_rsa_public_key *pk, unsigned char *hash_out)
{
    (void)x, (void)xlen, (void)hash_oid, (void)hash_len, (void)pk, (void)hash_out;
    handshake_work++;
    return 0;
}

static void test_open_link_shakes_no_hands(void)
{
    tailnet_link           h;
    br_ssl_engine_context *eng;
    br_ec_impl             ec;
    uint8_t                heard[64];

    fresh();
    h   = open_tls(&servers[0], GOOD, "relay.example", 0);
    eng = links.engines[0].eng;
    memcpy(&ec, eng->iec, sizeof ec);
    ec.mul          = no_mul;
    ec.mulgen       = no_mulgen;
    eng->iec        = &ec;
    eng->prf10      = no_prf;
    eng->prf_sha256 = no_prf;
    eng->prf_sha384 = no_prf;
    eng->irsavrfy   = no_rsa;
    CHECK(tn_link_write(&links, h, "one", 3) == 3);
    run(h, &servers[0], 0);
    CHECK(server_hears(&servers[0], heard, sizeof heard) == 3);
    CHECK(br_ssl_engine_renegotiate(&servers[0].server.eng) == 1);
    run(h, &servers[0], 0);
    CHECK(tn_link_write(&links, h, "two", 3) == 3);
    tn_link_flush(&links, h);
    run(h, &servers[0], 0);
    CHECK(tn_link_is_open(&links, h) && handshake_work == 0);
}

/* Records are built from several pieces. */
static void test_record(void)
{
    tailnet_link h;
    size_t       room, all;
    uint8_t     *at, heard[64];
    fresh();
    h  = open_tls(&servers[0], GOOD, "relay.example", 0);
    at = tn_link_reserve(&links, h, &room);
    CHECK(at != NULL && room >= TAILNET_TLS_OUT);
    all = room;
    memcpy(at, "one", 3);
    tn_link_commit(&links, h, 3);
    at = tn_link_reserve(&links, h, &room);
    CHECK(at != NULL && room == all - 3 && tn_link_queued(&links, h) == 3);
    memcpy(at, "two", 3);
    tn_link_commit(&links, h, 3);
    CHECK(wires[0].out_len == 0);
    tn_link_flush(&links, h);
    CHECK(wires[0].out_len != 0 && tn_link_queued(&links, h) == 0);
    run(h, &servers[0], 0);
    CHECK(server_hears(&servers[0], heard, sizeof heard) == 6);
    CHECK_BYTES(heard, "onetwo", 6);
}

/* Each refusal comes up with its reason. */
static void test_refused(void)
{
    static const int expired[] = { C_EXPIRED, -2 }, forged[] = { C_FORGED, -2 };
    tailnet_link     h;
    int              cut;
    for (cut = 0; cut < 3; cut++) {
        fresh();
        open_tls(&servers[0], GOOD, "other.example", cut);
        CHECK(gone[0].why == TAILNET_ERR_TLS && gone[0].detail == BR_ERR_X509_BAD_SERVER_NAME);
        open_tls(&servers[0], expired, "relay.example", cut);
        CHECK(gone[0].why == TAILNET_ERR_TLS && gone[0].detail == BR_ERR_X509_EXPIRED);
        open_tls(&servers[0], forged, "relay.example", cut);
        CHECK(gone[0].why == TAILNET_ERR_TLS && gone[0].detail == BR_ERR_X509_NOT_TRUSTED);
        open_tls(&servers[0], GOOD, "relay.example", cut);
        CHECK(tn_is_zero(engines[1].out, sizeof engines[1].out));
        CHECK(bits_of[0] == (TN_LINK_GONE | TN_LINK_OPENED) && wires[0].closes == 3);
        h = open_link("relay.example", true, "sha256-raw:12");
        tn_link_tcp_opened(&links, h);
        poll();
        CHECK(gone[1].why == TAILNET_ERR_TLS && gone[1].detail == TN_TLS_ERR_TARGET);
        w.random_fails = true;
        h = open_link("relay.example", true, NULL);
        tn_link_tcp_opened(&links, h);
        poll();
        CHECK(gone[1].why == TAILNET_ERR_RANDOM && rim.random_failed);
    }
}

/* The reason is among the last bytes, and the connection is gone at once. */
static void test_alert_then_closed(void)
{
    static const uint8_t alert[] = { 21, 3, 3, 0, 2, 2, 40 };
    tailnet_link         h;
    fresh();
    h = open_link("relay.example", true, NULL);
    tn_link_tcp_opened(&links, h);
    poll();
    CHECK(receive(h, alert, 5, 0) == 5);
    poll();
    CHECK(receive(h, alert + 5, 2, 0) == 2);
    CHECK(tn_link_tcp_closed(&links, h) == TAILNET_OK);
    CHECK(tn_link_deadline(&links) == 0);
    poll();
    CHECK(gone[0].why == TAILNET_ERR_TLS && gone[0].detail == 256 + 40);
    CHECK(wires[0].closes == 1);
}

/* Cut off without close_notify: what came is readable, the end is not proper. */
static void test_truncated(void)
{
    tailnet_link h;
    fresh();
    h = open_tls(&servers[0], GOOD, "relay.example", 0);
    server_says(&servers[0], "last words", 10);
    CHECK(round_trip(h, &servers[0], 0));   /* the header                         */
    lazy = true;
    while (bits_of[0] == TN_LINK_OPENED && round_trip(h, &servers[0], 0)) {}
    CHECK(tn_link_tcp_closed(&links, h) == TAILNET_OK);
    CHECK(!tn_link_is_open(&links, h));
    lazy = false;
    poll();
    CHECK(got_len == 10 && memcmp(got, "last words", 10) == 0);
    CHECK(gone[0].why == TAILNET_ERR_NETWORK && wires[0].closes == 1);
}

/* The owner closes: close_notify goes out, nobody is told. */
static void test_dropped(void)
{
    tailnet_link h;
    fresh();
    h = open_tls(&servers[0], GOOD, "relay.example", 0);
    tn_link_close(&links, h, TAILNET_OK);
    CHECK(wires[0].out_len == 0 && wires[0].closes == 0);
    poll();
    CHECK(wires[0].closes == 1 && wires[0].out_len != 0 && gone[0].link == 0);
    CHECK(world_feed(&servers[0].port, wires[0].out, wires[0].out_len) == wires[0].out_len);
    CHECK(tn_tls_is_over(&servers[0].port) && tn_tls_error(&servers[0].port) == 0);
    CHECK(tn_is_zero(&engines[0].client, sizeof engines[0].client));
}

/* A link that is closed with bytes nobody fetched must not keep poll busy. */
static void test_freed_link_is_quiet(void)
{
    tailnet_link h;
    uint8_t      in[8];
    fresh();
    h = open_link("control.example", false, NULL);
    tn_link_lend(&links, h, in, sizeof in, NULL, 0);
    tn_link_tcp_opened(&links, h);
    CHECK(receive(h, (const uint8_t *)"xy", 2, 0) == 2);
    tn_link_close(&links, h, TAILNET_OK);
    tn_link_sweep(&links);
    CHECK(wires[0].closes == 1 && tn_link_deadline(&links) == TN_NEVER);
}

/* Two links come up together; one waits until the other is done. */
static void test_two(void)
{
    tailnet_link a, b;
    unsigned     i, waited = 0;
    fresh();
    a = open_link("relay.example", true, NULL);
    b = open_link("relay.example", true, NULL);
    world_server_start(&servers[0], GOOD);
    world_server_start(&servers[1], GOOD);
    tn_link_tcp_opened(&links, a);
    tn_link_tcp_opened(&links, b);
    for (i = 0; i < 200; i++) {
        size_t room;
        (void)round_trip(a, &servers[0], 2);
        if (slots[1].state == TN_LINK_QUEUED) {
            waited++;
            CHECK(tn_link_in_reserve(&links, b, &room) == NULL && room == 0);
            CHECK(wires[1].out_len == 0);
        }
        (void)round_trip(b, &servers[1], 2);
    }
    CHECK(waited > 0 && tn_link_is_open(&links, a) && tn_link_is_open(&links, b));
    CHECK(tn_link_meta_key(&links, a) != NULL && tn_link_meta_key(&links, b) != NULL);
}

/* A commit during a handshake takes no work of the engine. */
static void test_commit_only_counts(void)
{
    tailnet_link   h;
    const uint8_t *data;
    size_t         len, room;
    fresh();
    h = open_link("relay.example", true, NULL);
    world_server_start(&servers[0], GOOD);
    tn_link_tcp_opened(&links, h);
    poll();
    CHECK(world_feed(&servers[0].port, wires[0].out, wires[0].out_len) == wires[0].out_len);
    data = tn_tls_out(&servers[0].port, &len);
    CHECK(data != NULL);
    CHECK(receive(h, data, len, 1) == 5);   /* header, then poll has to turn      */
    CHECK(engines[0].held == 5 && tn_link_in_reserve(&links, h, &room) == NULL);
    CHECK(tn_link_deadline(&links) == 0);
    CHECK(tn_link_poll(&links));
    CHECK(engines[0].held == 0 && tn_link_in_reserve(&links, h, &room) != NULL);
    CHECK(!tn_link_poll(&links));
}

/* ---- without TLS of ours ---- */

static void test_plain(void)
{
    tailnet_link h;
    uint8_t      in[8], out[8], *at;
    size_t       room;
    fresh();
    h = open_link("control.example", false, NULL);
    tn_link_tcp_opened(&links, h);
    poll();
    CHECK(bits_of[0] == TN_LINK_OPENED && tn_link_meta_key(&links, h) == NULL);
    CHECK(tn_link_in_reserve(&links, h, &room) == NULL);    /* nothing lent: wait  */
    CHECK(tn_link_reserve(&links, h, &room) == NULL);
    CHECK(tn_link_write(&links, h, "GET", 3) == 3 && wires[0].out_len == 3);
    wires[0].budget = 1;
    CHECK(tn_link_write(&links, h, "abc", 3) == 1);
    bits_of[0]      = 0;
    wires[0].budget = WIRE;
    CHECK(tn_link_tcp_writable(&links, h) == TAILNET_OK);
    CHECK(tn_link_deadline(&links) == 0);
    poll();
    CHECK(bits_of[0] == TN_LINK_WRITABLE);
    tn_link_lend(&links, h, in, sizeof in, out, sizeof out);
    lazy = true;
    CHECK(receive(h, (const uint8_t *)"0123456789", 10, 1) == 8);
    CHECK(tn_link_deadline(&links) == 0);
    poll();
    CHECK(tn_link_deadline(&links) == TN_NEVER);            /* told; no spinning   */
    at = tn_link_read(&links, h, &room);
    CHECK(at == in && room == 8);
    tn_link_ack(&links, h, 3);
    at = tn_link_read(&links, h, &room);
    CHECK(at == in + 3 && room == 5);
    CHECK(tn_link_in_reserve(&links, h, &room) == NULL);
    tn_link_ack(&links, h, 5);
    CHECK(tn_link_in_reserve(&links, h, &room) == in && room == 8);

    wires[0].out_len = 0;
    at = tn_link_reserve(&links, h, &room);
    CHECK(at == out && room == 8);
    memcpy(at, "wxyz", 4);
    tn_link_commit(&links, h, 4);
    CHECK(tn_link_reserve(&links, h, &room) == out + 4 && room == 4);
    wires[0].budget = 1;
    tn_link_flush(&links, h);
    CHECK(wires[0].out_len == 1 && tn_link_reserve(&links, h, &room) == NULL);
    wires[0].budget = WIRE;
    bits_of[0]      = 0;
    poll();                                 /* poll offers again too              */
    CHECK(wires[0].out_len == 4 && memcmp(wires[0].out, "wxyz", 4) == 0);
    CHECK(bits_of[0] == TN_LINK_WRITABLE);
    CHECK(tn_link_write(&links, h, "0123456789abcdef!", 17) == 17 && wires[0].out_len == 21);
    CHECK(receive(h, (const uint8_t *)"end", 3, 0) == 3);
    tn_link_tcp_closed(&links, h);
    lazy = false;
    poll();
    CHECK(got_len == 3 && memcmp(got, "end", 3) == 0 && gone[0].why == TAILNET_ERR_NETWORK);
}

/* Any number of bytes through a lent buffer of any size. */
static void test_plain_stream(void)
{
    uint8_t in[64], data[3000];
    size_t  cap, i;
    for (i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i ^ i >> 5);
    for (cap = 1; cap <= sizeof in; cap += 9) {
        tailnet_link h;
        size_t       done = 0;
        fresh();
        h = open_link("control.example", false, NULL);
        tn_link_lend(&links, h, in, cap, NULL, 0);
        tn_link_tcp_opened(&links, h);
        while (done < sizeof data) {
            done += receive(h, data + done, sizeof data - done, 2);
            poll();
        }
        CHECK(got_len == sizeof data);
        CHECK_BYTES(got, data, sizeof data);
    }
}

/* ---- proxies ---- */

static void test_proxy_text(void)
{
    static const char *const bad[] = { "", "proxy", "proxy:", ":3128", "proxy:0", "proxy:65536",
                                       "proxy:x", "user@", "user@:1" };
    char     user[TN_LINK_USER_MAX], host[TN_LINK_HOST_MAX], longest[600];
    uint16_t port;
    size_t   i;
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(!tn_link_proxy_parse(bad[i], user, host, &port));
    CHECK(tn_link_proxy_parse("proxy:3128", user, host, &port));
    CHECK(user[0] == '\0' && strcmp(host, "proxy") == 0 && port == 3128);
    CHECK(tn_link_proxy_parse("me:p@ss:w@[fd7a::1]:65535", user, host, &port));
    CHECK(strcmp(user, "me:p@ss:w") == 0 && strcmp(host, "fd7a::1") == 0 && port == 65535);
    memset(longest, 'h', sizeof longest);
    strcpy(longest + TN_LINK_HOST_MAX - 1, ":1");
    CHECK(tn_link_proxy_parse(longest, user, host, &port));
    memset(longest, 'h', sizeof longest);
    strcpy(longest + TN_LINK_HOST_MAX, ":1");
    CHECK(!tn_link_proxy_parse(longest, user, host, &port));
    memset(longest, 'u', sizeof longest);
    strcpy(longest + TN_LINK_USER_MAX - 1, "@h:1");
    CHECK(tn_link_proxy_parse(longest, user, host, &port));
    memset(longest, 'u', sizeof longest);
    strcpy(longest + TN_LINK_USER_MAX, "@h:1");
    CHECK(!tn_link_proxy_parse(longest, user, host, &port));
}

static tailnet_link open_proxied(bool tls, int32_t limit)
{
    static const char ask[] = "CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n"
                              "Proxy-Authorization: Basic bWU6cHc=\r\n";
    tailnet_link      h;
    unsigned          i;
    fresh();
    links.proxy    = "me:pw@proxy.example:3128";
    wires[0].limit = limit;
    h = open_link("relay.example", tls, NULL);
    CHECK(strcmp(wires[0].host, "proxy.example") == 0 && wires[0].dial.port == 3128);
    CHECK(wires[0].dial.addr4.family == 0 && !wires[0].dial.tls);
    tn_link_tcp_opened(&links, h);
    CHECK(tn_link_deadline(&links) == 0);
    for (i = 0; i < 200; i++) poll();
    CHECK(wires[0].out_len >= sizeof ask - 1 &&
          memcmp(wires[0].out, ask, sizeof ask - 1) == 0);
    CHECK(memcmp(wires[0].out + wires[0].out_len - 4, "\r\n\r\n", 4) == 0);
    CHECK(slots[0].state == TN_LINK_PROXY && tn_link_deadline(&links) == 11000);
    wires[0].out_len = 0;
    return h;
}

static void test_proxy(void)
{
    static const char yes[] = "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
    int               cut, k;
    for (cut = 0; cut < 3; cut++) {
        for (k = 0; k < 2; k++) {
            tailnet_link h = open_proxied(true, k == 0 ? 0 : 1);
            CHECK(receive(h, (const uint8_t *)yes, sizeof yes - 1, cut) == sizeof yes - 1);
            CHECK(slots[0].state == TN_LINK_QUEUED);
            world_server_start(&servers[0], GOOD);
            run(h, &servers[0], cut);
            CHECK(tn_link_is_open(&links, h));
            CHECK(strcmp(servers[0].server.eng.server_name, "relay.example") == 0);
        }
    }
}

static void test_proxy_answers(void)
{
    static const struct {
        const char *text;
        int         status;                 /* -1: open, -2: not yet, else refused */
    } c[] = {
        { "HTTP/1.0 200\r\n\r\n", -1 },     { "HTTP/1.1 200 ok\n\n", -1 },
        { "HTTP/1.1 299 ok\r\n\r\n", -1 },  { "HTTP/1.1 200 ok\r\n", -2 },
        { "HTTP/1.1 407 no\r\n\r\n", 407 }, { "HTTP/1.1 300 no\r\n\r\n", 300 },
        { "HTTP/1.1 199 no\r\n\r\n", 199 }, { "HTTP/1.1 2000 no\r\n\r\n", 0 },
        { "HTTP/2.0 200 no\r\n\r\n", 0 },   { "HTTP/1.2 200 no\r\n\r\n", 0 },
        { "SSH-2.0-OpenSSH\r\n", 0 },       { "HTTP/1.1 2x0 no\r\n\r\n", 0 },
        { "HTTP/1.1  200 no\r\n\r\n", 0 },  { "", -2 }
    };
    size_t i;
    int    cut;
    for (cut = 0; cut < 3; cut++) {
        for (i = 0; i < sizeof c / sizeof c[0]; i++) {
            tailnet_link h = open_proxied(true, 0);
            (void)receive(h, (const uint8_t *)c[i].text, strlen(c[i].text), cut);
            CHECK((slots[0].state == TN_LINK_PROXY) == (c[i].status == -2));
            CHECK((slots[0].state == TN_LINK_QUEUED) == (c[i].status == -1));
            poll();
            if (c[i].status < 0) continue;
            CHECK(gone[0].why == TAILNET_ERR_NETWORK && gone[0].detail == c[i].status);
        }
    }
}

static void test_proxy_limits(void)
{
    static uint8_t big[TN_LINK_HEAD_MAX + 8];
    tailnet_link   h;
    uint8_t        in[32];
    static const char more[] = "HTTP/1.1 200 ok\r\n\r\nearly";
    memset(big, 'a', sizeof big);
    memcpy(big, "HTTP/1.1 200 ", 13);
    memcpy(big + TN_LINK_HEAD_MAX - 5, "\r\n\r\n", 4);      /* one byte under it  */
    h = open_proxied(true, 0);
    CHECK(receive(h, big, TN_LINK_HEAD_MAX - 1, 0) == TN_LINK_HEAD_MAX - 1);
    CHECK(slots[0].state == TN_LINK_QUEUED);
    memset(big + 13, 'a', sizeof big - 13);
    h = open_proxied(true, 0);
    (void)receive(h, big, sizeof big, 0);
    poll();
    CHECK(gone[0].why == TAILNET_ERR_NETWORK && gone[0].detail == 0);

    h = open_proxied(true, 0);              /* TLS servers never speak first      */
    (void)receive(h, (const uint8_t *)more, sizeof more - 1, 0);
    poll();
    CHECK(gone[0].why == TAILNET_ERR_NETWORK && gone[0].detail == 200);
    h = open_proxied(false, 0);             /* others may                         */
    tn_link_lend(&links, h, in, sizeof in, NULL, 0);
    CHECK(receive(h, (const uint8_t *)more, sizeof more - 1, 0) == sizeof more - 1);
    CHECK(tn_link_is_open(&links, h));
    poll();
    CHECK(got_len == 5 && memcmp(got, "early", 5) == 0);
}

int main(void)
{
    world_load();
    TEST(test_machine);
    TEST(test_slots);
    TEST(test_engines);
    TEST(test_stale);
    TEST(test_timeouts);
    TEST(test_ends);
    TEST(test_tls);
    TEST(test_back_pressure);
    TEST(test_open_link_shakes_no_hands);
    TEST(test_record);
    TEST(test_refused);
    TEST(test_alert_then_closed);
    TEST(test_truncated);
    TEST(test_dropped);
    TEST(test_freed_link_is_quiet);
    TEST(test_two);
    TEST(test_commit_only_counts);
    TEST(test_plain);
    TEST(test_plain_stream);
    TEST(test_proxy_text);
    TEST(test_proxy);
    TEST(test_proxy_answers);
    TEST(test_proxy_limits);
    return tn_test_end();
}
