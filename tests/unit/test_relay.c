#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* A relay machine with all around it: a server per slot, a clock, the wishes. */
enum { SLOTS = 3, PEERS = 8, RECORD = 2048 };

typedef struct world {
    tn_relay       r;
    tn_relay_link  links[SLOTS];
    tn_relay_store stores[SLOTS];
    uint8_t        via[PEERS];
    uint64_t       now;
    unsigned       nodes;                   /* of every region */
    uint16_t       measured;                /* what the last report said */
    unsigned       opens, closes, busy;
    uint8_t        out[SLOTS][RECORD];      /* what the machine wrote last */
    size_t         out_len[SLOTS];
    tn_wr          record[SLOTS];
    uint8_t        k[SLOTS][32];
} world;

static uint8_t node_private[32], node_public[32], server_private[32], server_public[32], nonce[24];
static world   w0;
static uint64_t start_ms = 1000000;

static void begin(world *w, unsigned count)
{
    memset(w, 0xee, sizeof *w);
    memset(node_private, 3, 32);
    memset(server_private, 5, 32);
    memset(nonce, 9, 24);
    tn_cr_clamp(node_private);
    tn_cr_clamp(server_private);
    tn_cr_x25519_base(node_public, node_private);
    tn_cr_x25519_base(server_public, server_private);
    tn_relay_init(&w->r, w->links, w->stores, count, w->via, PEERS);
    w->now   = start_ms;
    w->nodes = 1;
    w->measured = 0;
    w->opens = w->closes = w->busy = 0;
}

static void prefer(world *w, uint16_t prefs, const char *regions)
{
    tn_relay_choice c;
    tn_relay_choice_begin(&c, &w->r, prefs, w->measured, w->now);
    for (; *regions != '\0'; regions++)
        tn_relay_choice_add(&c, (uint16_t)((*regions & 31) + 900), *regions >= 'a', 1000);
    tn_relay_choose(&w->r, &c, w->now);
}

/* Does the wishes; a close is answered at once. Returns the last slot that opens, or -1. */
static int steps(world *w)
{
    tn_relay_wish wish;
    int           slot = -1, n = 0;
    while (tn_relay_step(&w->r, w->now, &wish)) {
        CHECK(++n < 50);
        if (wish.kind == TN_RELAY_DO_CLOSE) {
            w->closes++;
            tn_relay_closed(&w->r, wish.slot, w->now, 0x8000);
        } else if (wish.node >= w->nodes) {
            tn_relay_no_node(&w->r, wish.slot, w->now, 0x8000);
        } else if (w->busy != 0) {
            tn_relay_later(&w->r, wish.slot, w->now);
        } else {
            w->opens++;
            slot = wish.slot;
        }
    }
    return slot;
}

static void write_out(world *w, unsigned slot, size_t cap)
{
    tn_relay_hello hello;
    tn_wr          t;
    memset(&hello, 0, sizeof hello);
    hello.host.name    = "derp.example";
    hello.host.port    = 443;
    hello.host.usual   = 443;
    hello.node_private = node_private;
    hello.node_public  = node_public;
    hello.nonce        = nonce;
    tn_wr_over(&t, w->out[slot], cap);
    tn_relay_write(&w->r, slot, &hello, &t, w->now);
    CHECK(tn_wr_ok(&t));
    w->out_len[slot] = tn_wr_len(&t);
}

static tn_relay_news bytes_in(world *w, unsigned slot, uint8_t *bytes, size_t len, tn_derp_event *ev)
{
    uint8_t      *at = bytes;
    tn_relay_news news, first = TN_RELAY_QUIET;
    tn_derp_event e;
    while ((news = tn_relay_next(&w->r, slot, &at, &len, w->now, &e)) != TN_RELAY_QUIET) {
        if (first == TN_RELAY_QUIET) {
            first = news;
            if (ev != NULL) *ev = e;
        }
    }
    CHECK(len == 0);
    return first;
}

/* The server's halves of the login. */
static void server_hello(world *w, unsigned slot, bool answer)
{
    uint8_t b[512];
    tn_wr   t;
    tn_wr_over(&t, b, sizeof b);
    if (answer) tn_h1_build_101(&t, "DERP", "Derp-Version: 2\r\n");
    tn_derp_wr_server_key(&t, server_public);
    CHECK(bytes_in(w, slot, b, tn_wr_len(&t), NULL) == TN_RELAY_QUIET);
}

static tn_relay_news server_info(world *w, unsigned slot, uint32_t rate, uint32_t burst)
{
    uint8_t b[512];
    tn_derp d;
    tn_wr   t;
    tn_derp_start(&d, true);
    CHECK(tn_derp_set_key(&d, server_private, node_public));
    tn_wr_over(&t, b, sizeof b);
    tn_derp_wr_server_info(&d, &t, nonce, rate, burst);
    return bytes_in(w, slot, b, tn_wr_len(&t), NULL);
}

/* From OPENING to OPEN. */
static void login(world *w, unsigned slot)
{
    CHECK(w->links[slot].state == TN_RELAY_OPENING);
    tn_relay_opened(&w->r, slot, NULL, w->now);
    write_out(w, slot, RECORD);
    CHECK(w->links[slot].state == TN_RELAY_UPGRADE && w->out_len[slot] > 50);
    server_hello(w, slot, true);
    CHECK(w->links[slot].state == TN_RELAY_LOGIN && tn_relay_has_output(&w->r, slot));
    write_out(w, slot, RECORD);
    CHECK(w->out_len[slot] >= TN_DERP_LOGIN_LEN + 6);
    CHECK(server_info(w, slot, 0, 0) == TN_RELAY_UP && w->links[slot].state == TN_RELAY_OPEN);
}

/* A home in region 901. */
static void at_home(world *w, unsigned count)
{
    begin(w, count);
    tn_relay_run(&w->r, true, w->now);
    prefer(w, 0, "abc");
    CHECK(steps(w) == 0);
    login(w, 0);
    CHECK(tn_relay_is_up(&w->r) && w->r.home == 901 && tn_relay_report(&w->r) == 901);
}

static void frame_in(world *w, unsigned slot, tn_relay_news want, tn_derp_event *ev,
                     void (*build)(tn_wr *))
{
    static uint8_t b[256];
    tn_wr          t;
    tn_wr_over(&t, b, sizeof b);
    build(&t);
    CHECK(bytes_in(w, slot, b, tn_wr_len(&t), ev) == want);
}

static void build_ping(tn_wr *t)    { tn_derp_wr_ping(t, (const uint8_t *)"abcdefgh"); }
static void build_restart(tn_wr *t) { tn_derp_wr_restarting(t, 1500, 5000); }
static void build_restart_now(tn_wr *t) { tn_derp_wr_restarting(t, 1, 86400000); }
static void build_health(tn_wr *t)  { tn_derp_wr_health(t, "sick"); }
static void build_gone(tn_wr *t)    { tn_derp_wr_peer_gone(t, server_public, 0); }
static void build_recv(tn_wr *t)    { tn_derp_wr_recv(t, server_public, "data", 4); }

/* ---- tests ---- */

static void nothing_before_a_choice(void)
{
    begin(&w0, 1);
    CHECK(steps(&w0) == -1 && tn_relay_deadline(&w0.r) == TN_NEVER);
    tn_relay_run(&w0.r, true, w0.now);
    CHECK(steps(&w0) == -1 && tn_relay_deadline(&w0.r) == TN_NEVER);
    prefer(&w0, 0, "");
    CHECK(steps(&w0) == -1 && tn_relay_report(&w0.r) == 0);
    prefer(&w0, 0, "AB");                   /* none may be home */
    CHECK(steps(&w0) == -1);
    prefer(&w0, 0, "Abc");
    CHECK(w0.r.wanted == 902 && steps(&w0) == 0);
}

static void plain_login(void)
{
    const char *want = "GET /derp HTTP/1.1\r\nHost: derp.example\r\nConnection: Upgrade\r\n"
                       "Upgrade: DERP\r\n\r\n";
    begin(&w0, 1);
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "ab");
    CHECK(steps(&w0) == 0 && w0.links[0].region == 901);
    tn_relay_opened(&w0.r, 0, NULL, w0.now);
    CHECK(tn_relay_deadline(&w0.r) == 0);
    write_out(&w0, 0, 20);                  /* too little room: nothing is written */
    CHECK(w0.out_len[0] == 0 && tn_relay_deadline(&w0.r) == w0.now + 10000);
    write_out(&w0, 0, RECORD);
    CHECK(tn_is((const char *)w0.out[0], w0.out_len[0], want));
    server_hello(&w0, 0, true);
    CHECK(tn_relay_deadline(&w0.r) == 0);
    write_out(&w0, 0, 108);
    CHECK(w0.out_len[0] == 0);
    write_out(&w0, 0, 109);                 /* login, but no room for the note */
    CHECK(w0.out_len[0] == 109 && w0.links[0].said);
    write_out(&w0, 0, RECORD);
    CHECK(w0.out_len[0] == 6 && w0.out[0][0] == 7 && w0.out[0][5] == 1);
    CHECK(server_info(&w0, 0, 1000, 2000) == TN_RELAY_UP);
    CHECK(w0.links[0].derp.per_second == 1000 && w0.links[0].derp.burst == 2000);
    CHECK(tn_relay_deadline(&w0.r) == w0.now + 120000);
}

/* The answer, the key frame and the rest in any cuts. */
static void cut_login(void)
{
    int turn;
    for (turn = 0; turn < 200; turn++) {
        uint8_t b[512];
        size_t  len, at = 0;
        tn_wr   t;
        begin(&w0, 1);
        tn_relay_run(&w0.r, true, w0.now);
        prefer(&w0, 0, "a");
        steps(&w0);
        tn_relay_opened(&w0.r, 0, NULL, w0.now);
        write_out(&w0, 0, RECORD);
        tn_wr_over(&t, b, sizeof b);
        tn_h1_build_101(&t, "DERP", "Derp-Version: 2\r\n");
        tn_derp_wr_server_key(&t, server_public);
        len = tn_wr_len(&t);
        while (at < len) {
            size_t   n = turn == 0 ? 1 : 1 + (size_t)(tn_test_random() % 60);
            uint8_t *part;
            if (n > len - at) n = len - at;
            part = (uint8_t *)malloc(n);
            memcpy(part, b + at, n);
            CHECK(bytes_in(&w0, 0, part, n, NULL) == TN_RELAY_QUIET);
            free(part);
            at += n;
        }
        CHECK(w0.links[0].state == TN_RELAY_LOGIN && (w0.links[0].due & TN_RELAY_DUE_LOGIN) != 0);
        write_out(&w0, 0, RECORD);
        CHECK(server_info(&w0, 0, 0, 0) == TN_RELAY_UP);
    }
}

static void fast_login(void)
{
    const char *end = "Upgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";
    begin(&w0, 1);
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "a");
    CHECK(steps(&w0) == 0);
    tn_relay_opened(&w0.r, 0, server_public, w0.now);
    CHECK(w0.links[0].state == TN_RELAY_LOGIN);
    write_out(&w0, 0, RECORD);
    CHECK(w0.out_len[0] > 150 && w0.links[0].said);
    CHECK(memcmp(w0.out[0] + w0.out_len[0] - 115 - strlen(end), end, strlen(end)) == 0);
    CHECK(w0.out[0][w0.out_len[0] - 115] == 2);             /* login, then the note */
    server_hello(&w0, 0, false);
    CHECK(!tn_relay_has_output(&w0.r, 0));
    CHECK(server_info(&w0, 0, 0, 0) == TN_RELAY_UP);

    /* An HTTP error instead: plainly the next time. */
    begin(&w0, 1);
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "a");
    steps(&w0);
    tn_relay_opened(&w0.r, 0, server_public, w0.now);
    write_out(&w0, 0, RECORD);
    memcpy(w0.out[0], "HTTP/1.1 404 Not Found\r\n\r\n", 26);
    CHECK(bytes_in(&w0, 0, w0.out[0], 26, NULL) == TN_RELAY_QUIET);
    CHECK(w0.links[0].state == TN_RELAY_CLOSING);
    steps(&w0);
    CHECK(w0.closes == 1 && w0.links[0].state == TN_RELAY_WAIT);
    w0.now += 20;
    CHECK(steps(&w0) == 0);
    tn_relay_opened(&w0.r, 0, server_public, w0.now);
    CHECK(w0.links[0].state == TN_RELAY_UPGRADE);
}

static void rejected(void)
{
    int i;
    begin(&w0, 1);
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "a");
    for (i = 0; i < 3; i++) {
        uint64_t before = w0.now;
        CHECK(steps(&w0) == 0);
        tn_relay_opened(&w0.r, 0, NULL, w0.now);
        write_out(&w0, 0, RECORD);
        server_hello(&w0, 0, true);
        write_out(&w0, 0, RECORD);
        tn_relay_closed(&w0.r, 0, w0.now, 0);
        CHECK(w0.links[0].state == TN_RELAY_WAIT && w0.links[0].why == TAILNET_ERR_DENIED);
        CHECK((uint32_t)(w0.links[0].deadline_ms - (uint32_t)before) >= 30000);
        w0.now += (uint32_t)(w0.links[0].deadline_ms - (uint32_t)w0.now);
    }
}

static void refused_upgrade(void)
{
    static const unsigned status[5] = { 200, 301, 404, 426, 500 };
    int i;
    for (i = 0; i < 6; i++) {
        uint8_t b[2200];
        tn_wr   t;
        begin(&w0, 1);
        tn_relay_run(&w0.r, true, w0.now);
        prefer(&w0, 0, "a");
        steps(&w0);
        tn_relay_opened(&w0.r, 0, NULL, w0.now);
        write_out(&w0, 0, RECORD);
        tn_wr_over(&t, b, sizeof b);
        if (i < 5) tn_h1_build_answer(&t, status[i], NULL, "", 0);
        else       tn_wr_text(&t, "DERP/1.1 hello\r\n\r\n");
        CHECK(bytes_in(&w0, 0, b, tn_wr_len(&t), NULL) == TN_RELAY_QUIET);
        CHECK(w0.links[0].state == TN_RELAY_CLOSING && w0.links[0].why == TAILNET_ERR_MALFORMED);
        CHECK(w0.links[0].status == (i < 5 ? status[i] : 0));
    }
}

static void frames(void)
{
    tn_derp_event ev;
    uint8_t       want[13];
    at_home(&w0, 1);
    frame_in(&w0, 0, TN_RELAY_PACKET, &ev, build_recv);
    CHECK(memcmp(ev.key, server_public, 32) == 0 && ev.len == 4 && memcmp(ev.data, "data", 4) == 0);
    frame_in(&w0, 0, TN_RELAY_GONE, &ev, build_gone);
    CHECK(memcmp(ev.key, server_public, 32) == 0);
    frame_in(&w0, 0, TN_RELAY_HEALTH, &ev, build_health);
    CHECK(ev.len == 4 && memcmp(ev.data, "sick", 4) == 0);
    frame_in(&w0, 0, TN_RELAY_QUIET, NULL, build_ping);
    CHECK(tn_relay_has_output(&w0.r, 0));
    write_out(&w0, 0, RECORD);
    tn_test_hex(want, 13, "13000000086162636465666768");
    CHECK(w0.out_len[0] == 13 && memcmp(w0.out[0], want, 13) == 0);
    CHECK(server_info(&w0, 0, 7, 7) == TN_RELAY_QUIET && !w0.links[0].derp.limited);
}

static void silence(void)
{
    at_home(&w0, 1);
    w0.now += 119999;
    CHECK(steps(&w0) == -1 && w0.links[0].state == TN_RELAY_OPEN);
    frame_in(&w0, 0, TN_RELAY_QUIET, NULL, tn_derp_wr_keepalive);
    w0.now += 119999;
    CHECK(steps(&w0) == -1 && w0.closes == 0);
    w0.now += 1;
    steps(&w0);
    CHECK(w0.closes == 1 && w0.links[0].state == TN_RELAY_WAIT);
    CHECK(w0.links[0].why == TAILNET_ERR_TIMEOUT);
}

static void backoff(void)
{
    unsigned n;
    CHECK(tn_relay_backoff_ms(1, 0) == 5 && tn_relay_backoff_ms(1, 0x8000) == 10);
    CHECK(tn_relay_backoff_ms(22, 0x8000) == 4840 && tn_relay_backoff_ms(23, 0x8000) == 5000);
    CHECK(tn_relay_backoff_ms(255, 0xffffffffu) < 7500 && tn_relay_backoff_ms(255, 0) == 2500);
    begin(&w0, 1);
    w0.nodes = 2;
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "a");
    for (n = 1; n < 30; n++) {
        uint64_t want = n >= 23 ? 5000 : 10 * n * n;
        CHECK(steps(&w0) == 0 && w0.links[0].node == 0);
        tn_relay_closed(&w0.r, 0, w0.now, 0x8000);          /* first node: at once the second */
        CHECK(w0.links[0].deadline_ms == (uint32_t)w0.now && w0.links[0].node == 1);
        CHECK(steps(&w0) == 0);
        tn_relay_closed(&w0.r, 0, w0.now, 0x8000);
        CHECK(steps(&w0) == -1 && w0.links[0].deadline_ms == (uint32_t)(w0.now + want));
        w0.now += want - 1;
        CHECK(steps(&w0) == -1);
        w0.now += 1;
    }
    CHECK(steps(&w0) == 0);
    login(&w0, 0);                          /* to be let in is not yet to stay    */
    w0.now += 19999;
    tn_relay_closed(&w0.r, 0, w0.now, 0x8000);
    CHECK(w0.links[0].deadline_ms == (uint32_t)w0.now + 5000);
    w0.now += 5000;
    CHECK(steps(&w0) == 0);
    login(&w0, 0);
    w0.now += 20000;
    tn_relay_closed(&w0.r, 0, w0.now, 0x8000);
    CHECK(w0.links[0].deadline_ms == (uint32_t)w0.now + 10 && w0.links[0].errors == 1);
}

/* A relay that lets us in and throws us out, and one that besides says each time that
 * it restarts and wants us back at once, for hours. */
static void hostile_home(void)
{
    unsigned how, dials;
    for (how = 0; how < 2; how++) {
        uint64_t end;
        begin(&w0, 1);
        w0.nodes = 1;
        tn_relay_run(&w0.r, true, w0.now);
        prefer(&w0, 0, "a");
        end = w0.now + 600000;
        for (dials = 0; w0.now < end; dials++) {
            CHECK(steps(&w0) == 0);
            login(&w0, 0);
            if (how == 1) frame_in(&w0, 0, TN_RELAY_QUIET, NULL, build_restart_now);
            tn_relay_closed(&w0.r, 0, w0.now, 0);
            CHECK(w0.links[0].state == TN_RELAY_WAIT);
            w0.now += w0.links[0].deadline_ms - (uint32_t)w0.now;
        }
        CHECK(dials < 300);                 /* 2.5 s is the shortest of the long waits */
        if (!tn_test_ok) printf("  case %u: %u dials in ten minutes\n", how, dials);
    }
}

static void busy_links(void)
{
    begin(&w0, 1);
    w0.busy = 1;
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "a");
    CHECK(steps(&w0) == -1 && w0.links[0].state == TN_RELAY_WAIT && w0.links[0].errors == 0);
    CHECK(tn_relay_deadline(&w0.r) == w0.now + 250);
}

static void restarting(void)
{
    at_home(&w0, 1);
    frame_in(&w0, 0, TN_RELAY_QUIET, NULL, build_restart);
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    CHECK(w0.links[0].deadline_ms == (uint32_t)w0.now + 1500 && w0.links[0].errors == 1);
    w0.now += 1500;
    CHECK(steps(&w0) == 0);
    tn_relay_opened(&w0.r, 0, NULL, w0.now);
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    CHECK(w0.links[0].deadline_ms == (uint32_t)w0.now + 1500);
    w0.now += 5000;
    CHECK(steps(&w0) == 0);
    tn_relay_opened(&w0.r, 0, NULL, w0.now);
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    CHECK(w0.links[0].deadline_ms == (uint32_t)w0.now + 45);
}

static tailnet_result post(world *w, int slot, size_t room, size_t len, bool urgent)
{
    static uint8_t data[70000], record[8192];
    tn_wr          t;
    tailnet_result result;
    CHECK(slot >= 0);
    if (slot < 0) return TAILNET_ERR_NO_ROUTE;
    tn_wr_over(&t, record, room);
    result = tn_relay_post(&w->r, (unsigned)slot, room == 0 ? NULL : &t, server_public, data, len,
                           urgent, w->now);
    CHECK(tn_wr_ok(&t) && (t.total == 0 || t.total == len + 37));
    return result;
}

static void room_of_a_record(void)
{
    at_home(&w0, 1);
    CHECK(tn_relay_route(&w0.r, 0, 901, w0.now) == 0);
    CHECK(post(&w0, 0, 37 + 100 + 512, 100, false) == TAILNET_OK);
    CHECK(post(&w0, 0, 37 + 100 + 511, 100, false) == TAILNET_ERR_AGAIN);
    CHECK(post(&w0, 0, 37 + 148, 148, true) == TAILNET_OK && w0.links[0].due == 0);
    CHECK(post(&w0, 0, 37 + 147, 148, true) == TAILNET_OK);        /* waits as a letter */
    CHECK(w0.links[0].due == TN_RELAY_DUE_LETTER && tn_relay_deadline(&w0.r) == 0);
    write_out(&w0, 0, 37 + 147);            /* still none: wait for room */
    CHECK(w0.out_len[0] == 0 && tn_relay_deadline(&w0.r) == w0.now + 120000);
    write_out(&w0, 0, RECORD);
    CHECK(w0.out_len[0] == 37 + 148 && w0.links[0].due == 0);
    CHECK(post(&w0, 0, 0, 10, false) == TAILNET_ERR_AGAIN);
    CHECK(post(&w0, 0, 36, 0, false) == TAILNET_ERR_AGAIN);
    CHECK(post(&w0, 0, 36, TN_RELAY_LETTER + 1, true) == TAILNET_ERR_AGAIN);
    CHECK(post(&w0, 0, 0, TN_RELAY_LETTER, true) == TAILNET_OK);
    CHECK(w0.links[0].due == TN_RELAY_DUE_LETTER && tn_relay_deadline(&w0.r) != 0);
    CHECK(tn_relay_region_of(&w0.r, 0) == 901);
    CHECK(post(&w0, 0, 2048, 65537, false) == TAILNET_ERR_TOO_BIG);
    w0.links[0].due = 0;
    tn_derp_limit(&w0.links[0].derp, 1000, 137, w0.now);
    CHECK(post(&w0, 0, 2048, 100, false) == TAILNET_OK);
    CHECK(post(&w0, 0, 2048, 0, true) == TAILNET_ERR_AGAIN);
}

static void guests(void)
{
    int s;
    at_home(&w0, 3);
    s = tn_relay_route(&w0.r, 0, 902, w0.now);
    CHECK(s == 1 && post(&w0, s, 0, 148, true) == TAILNET_OK);
    CHECK(post(&w0, s, 0, 1000, false) == TAILNET_ERR_AGAIN);
    CHECK(steps(&w0) == 1 && w0.links[1].region == 902);
    login(&w0, 1);
    CHECK(w0.out_len[1] == 109 + 6 + 37 + 148);             /* the letter went with the login */
    CHECK(w0.out[1][109 + 5] == 0);                         /* not our home */
    CHECK(tn_relay_route(&w0.r, 0, 902, w0.now) == 1 && post(&w0, 1, 2048, 500, false) == TAILNET_OK);

    w0.now += 1000;
    CHECK(tn_relay_route(&w0.r, 1, 903, w0.now) == 2 && steps(&w0) == 2);
    login(&w0, 2);
    CHECK(post(&w0, 2, 2048, 500, false) == TAILNET_OK);
    w0.now += 1000;                                         /* both in use: by home */
    CHECK(tn_relay_route(&w0.r, 2, 904, w0.now) == 0);
    w0.now += 3000;                                         /* the older one is 5 s unused */
    s = tn_relay_route(&w0.r, 2, 904, w0.now);
    CHECK(s == 1 && post(&w0, s, 0, 92, true) == TAILNET_OK);
    CHECK(tn_relay_find(&w0.r, 902) == -1 && w0.closes == 0);
    CHECK(steps(&w0) == 1 && w0.closes == 1 && w0.links[1].region == 904);
    login(&w0, 1);
    CHECK(w0.out_len[1] == 109 + 6 + 37 + 92);

    CHECK((uint32_t)tn_relay_deadline(&w0.r) == w0.links[2].written_ms + 60000);
    w0.now += (uint32_t)(w0.links[2].written_ms + 59999 - (uint32_t)w0.now);
    frame_in(&w0, 2, TN_RELAY_PACKET, NULL, build_recv);    /* reading does not count */
    CHECK(steps(&w0) == -1 && w0.closes == 1);
    w0.now += 1;
    steps(&w0);
    CHECK(w0.closes == 2 && w0.links[2].state == TN_RELAY_IDLE);
    w0.now += 5000;
    steps(&w0);
    CHECK(w0.closes == 3 && w0.links[1].state == TN_RELAY_IDLE && tn_relay_is_up(&w0.r));
}

static void one_slot_tries_home(void)
{
    at_home(&w0, 1);
    CHECK(tn_relay_route(&w0.r, 0, 902, w0.now + 100000) == 0);
    CHECK(tn_relay_route(&w0.r, 0, 0, w0.now) == -1);
    tn_relay_run(&w0.r, false, w0.now);
    CHECK(tn_relay_route(&w0.r, 0, 901, w0.now) == -1);
}

static void learned_routes(void)
{
    at_home(&w0, 2);
    tn_relay_learn(&w0.r, 3, 0);
    tn_relay_learn(&w0.r, PEERS, 0);                        /* no such peer: nothing */
    CHECK(tn_relay_route(&w0.r, 3, 902, w0.now) == 0 && w0.links[1].state == TN_RELAY_IDLE);
    CHECK(tn_relay_route(&w0.r, 3, 0, w0.now) == 0);
    tn_relay_forget(&w0.r, 3, 1);
    CHECK(tn_relay_route(&w0.r, 3, 0, w0.now) == 0);
    tn_relay_forget(&w0.r, 3, 0);
    CHECK(tn_relay_route(&w0.r, 3, 0, w0.now) == -1);
    tn_relay_learn(&w0.r, 3, 0);
    tn_relay_forget_peer(&w0.r, 3);
    CHECK(tn_relay_route(&w0.r, 3, 0, w0.now) == -1);
    tn_relay_learn(&w0.r, 3, 0);
    w0.now += 120000;
    {
        tn_relay_wish wish;                                 /* failed, not yet closed */
        CHECK(tn_relay_step(&w0.r, w0.now, &wish) && wish.kind == TN_RELAY_DO_CLOSE);
        CHECK(tn_relay_route(&w0.r, 3, 0, w0.now) == -1);
    }
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    CHECK(w0.via[3] == 0);
}

static void home_moves_with_two(void)
{
    at_home(&w0, 2);
    prefer(&w0, 902, "abc");
    CHECK(tn_relay_report(&w0.r) == 901 && steps(&w0) == 1 && w0.links[1].region == 902);
    CHECK(tn_relay_is_up(&w0.r) && w0.r.home == 901);
    login(&w0, 1);
    steps(&w0);
    CHECK(w0.r.home == 902 && tn_relay_report(&w0.r) == 902 && tn_relay_is_up(&w0.r));
    write_out(&w0, 0, RECORD);
    CHECK(w0.out_len[0] == 6 && w0.out[0][5] == 0);
    write_out(&w0, 1, RECORD);
    CHECK(w0.out_len[1] == 6 && w0.out[1][5] == 1);
    w0.now += 59999;
    steps(&w0);
    CHECK(w0.closes == 0);
    w0.now += 1;
    steps(&w0);
    CHECK(w0.closes == 1 && w0.links[0].state == TN_RELAY_IDLE);
}

static void home_moves_with_one(void)
{
    at_home(&w0, 1);
    prefer(&w0, 902, "abc");
    CHECK(tn_relay_report(&w0.r) == 902 && steps(&w0) == -1 && w0.r.home == 901);
    tn_relay_told(&w0.r, 901, w0.now);                      /* an answer to an older request */
    CHECK(!w0.r.told);
    tn_relay_told(&w0.r, 902, w0.now);
    CHECK(tn_relay_deadline(&w0.r) == w0.now + 2000);
    w0.now += 1999;
    CHECK(steps(&w0) == -1 && w0.links[0].state == TN_RELAY_OPEN);
    w0.now += 1;
    CHECK(steps(&w0) == 0 && w0.closes == 1 && w0.links[0].region == 902 && w0.r.home == 902);
    login(&w0, 0);
    CHECK(tn_relay_is_up(&w0.r));
    /* without a connection there is nothing to wait for */
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    prefer(&w0, 903, "abc");
    CHECK(steps(&w0) == 0 && w0.links[0].region == 903);
}

/* A home that cannot be reached for 30 s: the next of the map, each in turn. */
static void lost_home(void)
{
    unsigned i, seen[4] = { 0, 0, 0, 0 };
    begin(&w0, 1);
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "abBc");
    for (i = 0; i < 400; i++) {
        int slot = steps(&w0);
        if (slot >= 0) {
            seen[w0.links[0].region - 900]++;
            tn_relay_closed(&w0.r, 0, w0.now, 0x8000);
            CHECK(steps(&w0) == -1);
        }
        if (tn_relay_wants_choice(&w0.r, w0.now)) prefer(&w0, 0, "abBc");
        CHECK(tn_relay_deadline(&w0.r) > w0.now || w0.r.home != w0.r.wanted);
        w0.now += 500;
    }
    CHECK(seen[1] > 5 && seen[2] > 5 && seen[3] > 5);
    begin(&w0, 1);                                          /* the only one: stays */
    tn_relay_run(&w0.r, true, w0.now);
    prefer(&w0, 0, "a");
    CHECK(steps(&w0) == 0);
    w0.now += 30000;
    CHECK(tn_relay_wants_choice(&w0.r, w0.now));
    prefer(&w0, 0, "a");
    CHECK(w0.r.wanted == 901 && !tn_relay_wants_choice(&w0.r, w0.now));
}

/* What a report says is done, if the map has it and a person has not said otherwise. */
static void home_is_measured(void)
{
    at_home(&w0, 2);
    prefer(&w0, 0, "abC");
    CHECK(w0.r.wanted == 901);
    w0.measured = 903;                                      /* nobody's home */
    prefer(&w0, 0, "abC");
    CHECK(w0.r.wanted == 901);
    w0.measured = 904;                                      /* not in the map */
    prefer(&w0, 0, "abC");
    CHECK(w0.r.wanted == 901);
    w0.measured = 902;
    prefer(&w0, 901, "abC");
    CHECK(w0.r.wanted == 901);
    prefer(&w0, 0, "abC");
    CHECK(w0.r.wanted == 902 && tn_relay_wanted(&w0.r) == 902 && tn_relay_report(&w0.r) == 901);
    w0.measured = 0;                                        /* a report that says nothing */
    prefer(&w0, 0, "abC");
    CHECK(w0.r.wanted == 902 && steps(&w0) == 1);
    login(&w0, 1);
    steps(&w0);
    CHECK(w0.r.home == 902 && w0.links[0].state == TN_RELAY_OPEN && w0.closes == 0);
    w0.measured = 901;                                      /* and back: it is open yet */
    prefer(&w0, 0, "abC");
    steps(&w0);
    CHECK(w0.r.home == 901 && w0.opens == 2);

    at_home(&w0, 1);                                        /* one slot: control first */
    w0.measured = 902;
    prefer(&w0, 0, "abC");
    CHECK(steps(&w0) == -1 && w0.r.home == 901 && tn_relay_report(&w0.r) == 902);
    w0.now += 10000;
    CHECK(steps(&w0) == -1 && w0.r.home == 901);
    tn_relay_told(&w0.r, 902, w0.now);
    w0.measured = 901;                                      /* a report takes it back */
    prefer(&w0, 0, "abC");
    w0.now += 3000;
    CHECK(steps(&w0) == -1 && w0.r.home == 901 && w0.closes == 0);
    w0.measured = 902;
    prefer(&w0, 0, "abC");
    tn_relay_told(&w0.r, 902, w0.now);
    w0.now += 2000;
    CHECK(steps(&w0) == 0 && w0.r.home == 902);
}

/* A region that is near but cannot be reached is not gone back to at once. */
static void shunned_home(void)
{
    at_home(&w0, 1);
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    w0.now += 30000;
    prefer(&w0, 0, "ab");
    CHECK(w0.r.wanted == 902 && steps(&w0) == 0);
    login(&w0, 0);
    w0.measured = 901;
    prefer(&w0, 0, "ab");
    CHECK(w0.r.wanted == 902);
    w0.now += 299000;
    steps(&w0);
    prefer(&w0, 0, "ab");
    CHECK(w0.r.wanted == 902);
    w0.now += 1000;
    steps(&w0);
    prefer(&w0, 0, "ab");
    CHECK(w0.r.wanted == 901);
}

static void heard(void)
{
    uint64_t at;
    at_home(&w0, 2);
    at = w0.now;
    steps(&w0);
    CHECK(tn_relay_heard(&w0.r, 901) == at && tn_relay_heard(&w0.r, 902) == 0);
    w0.now += 50000;
    steps(&w0);
    CHECK(tn_relay_heard(&w0.r, 901) == at);
    w0.now += 7;
    frame_in(&w0, 0, TN_RELAY_PACKET, NULL, build_recv);
    CHECK(tn_relay_heard(&w0.r, 901) == w0.now);
    steps(&w0);
    CHECK(tn_relay_heard(&w0.r, 901) == w0.now);
    tn_relay_closed(&w0.r, 0, w0.now, 0);
    CHECK(tn_relay_heard(&w0.r, 901) == 0);
}

static void scores(void)
{
    tn_relay_choice c;
    begin(&w0, 1);
    tn_relay_choice_begin(&c, &w0.r, 0, 0, w0.now);
    tn_relay_choice_add(&c, 1, true, 1000);
    tn_relay_choice_add(&c, 2, true, 800);
    tn_relay_choice_add(&c, 3, false, 100);
    tn_relay_choice_add(&c, 4, true, 800);
    tn_relay_choose(&w0.r, &c, w0.now);
    CHECK(w0.r.wanted == 2);
    tn_relay_choice_begin(&c, &w0.r, 0, 0, w0.now);            /* a better one: we stay */
    tn_relay_choice_add(&c, 5, true, 1);
    tn_relay_choice_add(&c, 2, true, 800);
    tn_relay_choose(&w0.r, &c, w0.now);
    CHECK(w0.r.wanted == 2);
    tn_relay_choice_begin(&c, &w0.r, 3, 0, w0.now);            /* a person may take any */
    tn_relay_choice_add(&c, 2, true, 800);
    tn_relay_choice_add(&c, 3, false, 100);
    tn_relay_choose(&w0.r, &c, w0.now);
    CHECK(w0.r.wanted == 3);
    tn_relay_choice_begin(&c, &w0.r, 9, 0, w0.now);            /* gone, and a wish that is not there */
    tn_relay_choice_add(&c, 4, true, 800);
    tn_relay_choose(&w0.r, &c, w0.now);
    CHECK(w0.r.wanted == 4);
}

static void region_changes(void)
{
    at_home(&w0, 2);
    tn_relay_region_changed(&w0.r, 901, w0.now);
    steps(&w0);
    CHECK(w0.closes == 1 && w0.links[0].state == TN_RELAY_WAIT);
    w0.now += 20;
    CHECK(steps(&w0) == 0);
    login(&w0, 0);
    tn_relay_region_changed(&w0.r, 905, w0.now);            /* none of ours */
    steps(&w0);
    CHECK(w0.closes == 1);
    CHECK(tn_relay_route(&w0.r, 0, 902, w0.now) == 1);      /* a guest of a region that has no node */
    w0.nodes = 0;
    CHECK(steps(&w0) == -1 && w0.links[1].state == TN_RELAY_IDLE);
}

static void other_network(void)
{
    uint8_t pong[13];
    at_home(&w0, 1);
    tn_relay_network_changed(&w0.r, w0.now);
    write_out(&w0, 0, RECORD);
    CHECK(w0.out_len[0] == 13 && w0.out[0][0] == 0x12 && tn_relay_deadline(&w0.r) == w0.now + 3000);
    memcpy(pong, w0.out[0], 13);
    pong[0] = 0x13;
    pong[12] ^= 1;
    bytes_in(&w0, 0, pong, 13, NULL);
    CHECK(w0.links[0].pong_ms == (uint32_t)w0.now + 3000);
    pong[12] ^= 1;
    bytes_in(&w0, 0, pong, 13, NULL);
    CHECK(!w0.links[0].pinged);
    tn_relay_network_changed(&w0.r, w0.now);
    w0.now += 3000;
    steps(&w0);
    CHECK(w0.closes == 1 && w0.links[0].state == TN_RELAY_WAIT);
    w0.links[0].deadline_ms = (uint32_t)(w0.now + 4000);
    tn_relay_network_changed(&w0.r, w0.now);
    CHECK(steps(&w0) == 0);
}

static void off_and_on(void)
{
    at_home(&w0, 3);
    CHECK(tn_relay_route(&w0.r, 0, 902, w0.now) == 1 && steps(&w0) == 1);
    tn_relay_run(&w0.r, false, w0.now);
    steps(&w0);
    CHECK(w0.closes == 2 && tn_relay_deadline(&w0.r) == TN_NEVER && !tn_relay_is_up(&w0.r));
    tn_relay_run(&w0.r, true, w0.now);
    CHECK(steps(&w0) == 0 && w0.links[0].region == 901);
}

/* The table of arrows is the drawing in the manual. */
static void arrows(void)
{
    static const char *const drawing[7] = {
        /*               IWOULPC */
        /* IDLE    */ ".x.....", /* WAIT    */ "xxx....", /* OPENING */ "...xx.x",
        /* UPGRADE */ "....x.x", /* LOGIN   */ ".....xx", /* OPEN    */ "......x",
        /* CLOSING */ "xx....."
    };
    unsigned from, to;
    for (from = 0; from < 7; from++)
        for (to = 0; to < 7; to++)
            CHECK(((tn_relay_arrows[from] >> to & 1u) != 0) == (drawing[from][to] == 'x'));
}

/* Any calls in any order: the assertions of the arrows hold, one slot per region. */
static void monkey(void)
{
    int turn;
    begin(&w0, SLOTS);
    for (turn = 0; turn < 200000; turn++) {
        unsigned      slot = (unsigned)(tn_test_random() % SLOTS), i, k;
        uint8_t       b[300];
        tn_relay_wish wish;
        tn_wr         t;
        w0.now += tn_test_random() % 4 == 0 ? tn_test_random() % 20000 : tn_test_random() % 20;
        switch (tn_test_random() % 16) {
        case 0: tn_relay_run(&w0.r, tn_test_random() % 8 != 0, w0.now); break;
        case 1: prefer(&w0, (uint16_t)(tn_test_random() % 8 == 0 ? 902 : 0), "abCde"); break;
        case 2: tn_relay_opened(&w0.r, slot, tn_test_random() % 2 != 0 ? server_public : NULL, w0.now); break;
        case 3: tn_relay_closed(&w0.r, slot, w0.now, (uint32_t)tn_test_random()); break;
        case 4: tn_relay_later(&w0.r, slot, w0.now); break;
        case 5: tn_relay_no_node(&w0.r, slot, w0.now, (uint32_t)tn_test_random()); break;
        case 6: tn_relay_region_changed(&w0.r, (uint16_t)(900 + tn_test_random() % 6), w0.now); break;
        case 7: if (tn_test_random() % 16 == 0) tn_relay_network_changed(&w0.r, w0.now); break;
        case 8: {
            int s = tn_relay_route(&w0.r, tn_test_random() % PEERS,
                                   (uint16_t)(tn_test_random() % 8 == 0 ? 0 : 900 + tn_test_random() % 6), w0.now);
            if (s >= 0) (void)post(&w0, s, tn_test_random() % 2 * 2048, tn_test_random() % 170,
                                   tn_test_random() % 2 == 0);
            break;
        }
        case 9: if (w0.links[slot].state == TN_RELAY_OPEN) tn_relay_learn(&w0.r, tn_test_random() % PEERS, slot); break;
        case 10: tn_relay_told(&w0.r, tn_relay_report(&w0.r), w0.now); break;
        case 11:
            if (w0.links[slot].state == TN_RELAY_UPGRADE) server_hello(&w0, slot, true);
            else if (w0.links[slot].state == TN_RELAY_LOGIN && w0.links[slot].fast) server_hello(&w0, slot, false);
            break;
        case 12:
            if (w0.links[slot].state == TN_RELAY_LOGIN && w0.links[slot].said) (void)server_info(&w0, slot, 0, 0);
            break;
        case 13:
            for (i = 0; i < 40; i++) b[i] = (uint8_t)tn_test_random();
            b[1] = b[2] = 0;
            if (tn_test_random() % 8 == 0) bytes_in(&w0, slot, b, 40, NULL);
            break;
        case 14:
            tn_wr_over(&t, b, sizeof b);
            build_ping(&t); build_recv(&t); build_gone(&t);
            if (tn_test_random() % 16 == 0) build_restart(&t);
            if (w0.links[slot].state == TN_RELAY_OPEN) bytes_in(&w0, slot, b, tn_wr_len(&t), NULL);
            break;
        case 15: write_out(&w0, slot, tn_test_random() % 2 * 300 + 40); break;
        }
        for (k = 0; tn_relay_step(&w0.r, w0.now, &wish); k++) {
            CHECK(k < 20);
            if (wish.kind == TN_RELAY_DO_CLOSE && tn_test_random() % 2 == 0)
                tn_relay_closed(&w0.r, wish.slot, w0.now, (uint32_t)tn_test_random());
        }
        for (i = 0; i < SLOTS; i++) {
            const tn_relay_link *l = &w0.links[i];
            for (k = 0; k < i; k++)
                CHECK(tn_relay_target(l) == 0 || tn_relay_target(l) != tn_relay_target(&w0.links[k]));
            CHECK(l->state == TN_RELAY_IDLE || l->state == TN_RELAY_CLOSING ||
                  tn_relay_deadline(&w0.r) != TN_NEVER);
            CHECK((l->state == TN_RELAY_IDLE) == (l->region == 0));
        }
        for (i = 0; i < PEERS; i++)
            CHECK(w0.via[i] == 0 || w0.links[w0.via[i] - 1].state >= TN_RELAY_OPEN);
        if (!tn_test_ok) break;
    }
}

static void all(void)
{
    TEST(nothing_before_a_choice);
    TEST(plain_login);
    TEST(cut_login);
    TEST(fast_login);
    TEST(rejected);
    TEST(refused_upgrade);
    TEST(frames);
    TEST(silence);
    TEST(backoff);
    TEST(busy_links);
    TEST(restarting);
    TEST(hostile_home);
    TEST(room_of_a_record);
    TEST(guests);
    TEST(one_slot_tries_home);
    TEST(learned_routes);
    TEST(home_moves_with_two);
    TEST(home_moves_with_one);
    TEST(lost_home);
    TEST(home_is_measured);
    TEST(shunned_home);
    TEST(heard);
    TEST(scores);
    TEST(region_changes);
    TEST(other_network);
    TEST(off_and_on);
    TEST(arrows);
    TEST(monkey);
}

int main(void)
{
    all();
    start_ms = 0x2ffffffffu - 40000;        /* 32 bits of milliseconds run over     */
    all();
    start_ms = 1;                           /* a device that has just started       */
    all();
    return tn_test_end();
}
