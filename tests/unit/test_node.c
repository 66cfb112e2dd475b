/* Whole nodes in the world of node_world.h: traffic through relays, sessions, the
 * filter, what attackers send, and what must hold for the caller. */
#define NW_NO_HEAP
#include "tn_test.h"
#include "node_world.h"

static nw_member *me(nw_node *d) { return nw_member_of(d->w, d); }

static tailnet_stats stats_of(const nw_node *d)
{
    tailnet_stats s;
    memset(&s, 0, sizeof s);
    tailnet_get_stats(d->n, &s);
    return s;
}

static tailnet_problem problem_of(const nw_node *d)
{
    tailnet_problem p;
    memset(&p, 0, sizeof p);
    p.section = p.text = "";
    (void)tailnet_get_problem(d->n, &p);
    return p;
}

/* The session of a node with another, NULL: none. */
static tn_session *session_of(nw_node *d, nw_node *with)
{
    uint16_t peer = 0;
    if (!tn_map_by_key(&d->n->map, with->n->node_public, &peer)) return NULL;
    return tn_node_session(d->n, peer);
}

/* A new policy for everybody, on the wire of each stream. */
static void say_filter(nw_world *w, const char *rules)
{
    char     text[1024];
    unsigned i;
    w->filter = rules;
    snprintf(text, sizeof text, "{\"PacketFilter\":%s}", rules);
    for (i = 0; i < NW_MEMBERS; i++)
        if (w->members[i].used) (void)nw_say(w, &w->members[i], text);
}

static void say_removed(nw_world *w, nw_node *to, nw_node *gone)
{
    char text[64];
    snprintf(text, sizeof text, "{\"PeersRemoved\":[%u]}", nw_id(w, me(gone)));
    CHECK(nw_say(w, me(to), text));
}

/* What went through the relays. */
static struct {
    uint8_t data[64][1500], from[64][32], to[64][32];
    size_t  len[64];
    unsigned count;
    bool    swallow;
} heard;

static bool hear(nw_world *w, const uint8_t from[32], const uint8_t to[32], const uint8_t *data,
                 size_t len)
{
    unsigned i = heard.count % 64;
    (void)w;
    if (len <= sizeof heard.data[0]) {
        memcpy(heard.data[i], data, len);
        memcpy(heard.from[i], from, 32);
        memcpy(heard.to[i], to, 32);
        heard.len[i] = len;
        heard.count++;
    }
    return !heard.swallow;
}

/* ---- traffic ---- */

static void traffic_both_ways(void)
{
    nw_world    *w = nw_begin(1);
    nw_node     *a, *b;
    tailnet_addr ip4, ip6, src;
    char         text[1300];
    unsigned     i;
    nw_pair(w, &a, &b);
    for (i = 0; i <= 1252; i += i < 40 ? 1 : 101) {
        memset(text, 'a' + (int)(i % 26), i);
        text[i] = '\0';
        CHECK(nw_send(a, b, 7, text) == TAILNET_OK);
        CHECK(nw_send(b, a, 7, text) == TAILNET_OK);
        nw_run(w, 50);
        CHECK(nw_got(a, text) >= 1 && nw_got(b, text) >= 1);
    }
    memset(text, 'x', 1252);
    text[1252] = '\0';
    CHECK(nw_send(a, b, 7, text) == TAILNET_OK);        /* 1280 with its heads     */
    nw_run(w, 50);
    CHECK(nw_got(b, text) == 1);
    memset(text, 'x', 1253);
    text[1253] = '\0';
    CHECK(nw_send(a, b, 7, text) == TAILNET_ERR_TOO_BIG);
    nw_ip6(nw_id(w, me(a)), &src);
    nw_ip6(nw_id(w, me(b)), &ip6);
    CHECK(nw_send_from(a, &src, 1, &ip6, 2, "six") == TAILNET_OK);
    nw_run(w, 50);
    CHECK(nw_got(b, "six") == 1);
    nw_ip4(999, &ip4);
    CHECK(nw_send_from(a, &src, 1, &ip4, 2, "nobody") == TAILNET_ERR_NO_ROUTE);
    CHECK(stats_of(a).dropped_forged == 0 && stats_of(b).dropped_forged == 0);
    CHECK(problem_of(a).result == TAILNET_OK);
    nw_end(w);
}

static void first_packet_waits_for_the_handshake(void)
{
    nw_world *w = nw_begin(2);
    nw_node  *a = nw_join(w, "alpha"), *b = nw_join(w, "beta");
    nw_run(w, 1000);
    CHECK(nw_send(a, b, 7, "one") == TAILNET_OK);
    CHECK(nw_send(a, b, 7, "two") == TAILNET_OK);       /* takes the place of one  */
    CHECK(nw_send(a, b, 7, "three") == TAILNET_OK);
    nw_run(w, 500);
    CHECK(nw_got(b, "three") == 1 && nw_got(b, "one") == 0);
    CHECK(stats_of(a).handshakes == 1);
    nw_end(w);
}

static void staged_packets_are_bounded(void)
{
    nw_world    *w = nw_begin(3);
    nw_node     *a = nw_join(w, "alpha");
    tailnet_addr src, dst;
    unsigned     i;
    for (i = 0; i < 4; i++) nw_ghost(w, "ghost", 1);
    for (i = 1; i < 5; i++) nw_announce(w, &w->members[i]);
    nw_run(w, 100);
    nw_my_ip(a, &src);
    for (i = 0; i < 40; i++) {
        nw_ip4(2 + i % 4, &dst);
        CHECK(nw_send_from(a, &src, 1, &dst, 2, "into the dark") == TAILNET_OK);
        nw_run(w, 10);
    }
    CHECK(stats_of(a).dropped_no_room >= 38);
    nw_run(w, 120000);                      /* 20 initiations each, then silence   */
    for (i = 0; i < 2; i++) CHECK(a->n->staged[i].len == 0);
    i = w->relayed;
    nw_run(w, 400000);
    CHECK(w->relayed == i);
    nw_end(w);
}

static void runs_of_packets(void)
{
    static uint8_t bytes[40][2048];
    nw_world    *w = nw_begin(4);
    nw_node     *a, *b, *c;
    tailnet_buf  run[40];
    tailnet_addr src, dst;
    unsigned     i;
    char         text[16];
    nw_pair(w, &a, &b);
    c = nw_join(w, "gamma");
    nw_run(w, 500);
    CHECK(nw_send(a, c, 7, "hello") == TAILNET_OK);
    nw_run(w, 500);
    nw_my_ip(a, &src);
    for (i = 0; i < 40; i++) {
        memset(&run[i], 0, sizeof run[i]);
        nw_ip4(nw_id(w, me(i % 5 == 4 ? c : b)), &dst);
        if (i == 17) nw_ip4(777, &dst);
        snprintf(text, sizeof text, "number %u", i);
        run[i].base = bytes[i];
        run[i].off  = i % 7 == 3 ? 0 : TAILNET_HEADROOM;    /* some have no room   */
        run[i].len  = (uint32_t)nw_udp_packet(bytes[i] + run[i].off, &src, &dst, text, strlen(text));
        run[i].cap  = i % 7 == 5 ? run[i].off + run[i].len : 2048;
        if (i == 23) bytes[i][run[i].off] = 0x33;           /* no IP at all        */
    }
    CHECK(tailnet_ip_input(a->n, run, 40) == TAILNET_ERR_NO_ROUTE);
    nw_run(w, 200);
    for (i = 0; i < 40; i++) {
        snprintf(text, sizeof text, "number %u", i);
        CHECK(nw_got(b, text) == (i % 5 != 4 && i != 17 && i != 23 ? 1u : 0u));
        CHECK(nw_got(c, text) == (i % 5 == 4 ? 1u : 0u));
    }
    nw_end(w);
}

/* One session only, and a run for two peers: what is sealed for the first goes
 * out before the second takes its place. */
static void eviction_inside_a_run(void)
{
    static uint8_t bytes[2][2048];
    nw_world    *w = nw_begin(6);
    nw_node     *a = nw_add(w, "alpha"), *b, *c;
    tailnet_buf  run[2];
    tailnet_addr src, dst;
    unsigned     i;
    a->desc.max_sessions = 1;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    b = nw_join(w, "beta");
    c = nw_join(w, "gamma");
    nw_run(w, 1000);
    CHECK(nw_send(a, b, 7, "hello") == TAILNET_OK);
    nw_run(w, 500);
    memset(&heard, 0, sizeof heard);
    w->tap = hear;
    nw_my_ip(a, &src);
    for (i = 0; i < 2; i++) {
        nw_ip4(nw_id(w, me(i == 0 ? b : c)), &dst);
        memset(&run[i], 0, sizeof run[i]);
        run[i].base = bytes[i];
        run[i].off  = TAILNET_HEADROOM;
        run[i].cap  = 2048;
        run[i].len  = (uint32_t)nw_udp_packet(bytes[i] + TAILNET_HEADROOM, &src, &dst, "secret", 6);
    }
    CHECK(tailnet_ip_input(a->n, run, 2) == TAILNET_OK);
    nw_run(w, 500);
    CHECK(nw_got(b, "secret") == 1 && nw_got(c, "secret") == 1);
    CHECK(heard.count >= 2 && heard.data[0][0] == 4 && heard.data[1][0] == 1);
    CHECK_BYTES(heard.to[0], b->n->node_public, 32);
    CHECK_BYTES(heard.to[1], c->n->node_public, 32);
    nw_end(w);
}

/* The ping that a build without direct paths has as well. */
#define PING_ANY (TAILNET_DIRECT ? TAILNET_PING_PATH : TAILNET_PING_TUNNEL)

static void pings_by_path_and_tunnel(void)
{
    nw_world    *w = nw_begin(5);
    nw_node     *a = nw_join(w, "alpha"), *b = nw_join(w, "beta");
    tailnet_addr ip;
    tailnet_pong pong;
    unsigned     i;
    nw_run(w, 1000);
    nw_ip4(nw_id(w, me(b)), &ip);
    CHECK(!tailnet_get_ping(a->n, &pong));
    for (i = 0; i < 4; i++) {
        tailnet_ping_kind kind = i % 2 == 0 ? PING_ANY : TAILNET_PING_TUNNEL;
        a->events = 0;
        CHECK(tailnet_ping(a->n, &ip, kind) == TAILNET_OK);
        CHECK(tailnet_ping(a->n, &ip, kind) == TAILNET_ERR_AGAIN);
        nw_run(w, 1000);
        CHECK((a->events & TAILNET_EVENT_PING) != 0);
        CHECK(tailnet_get_ping(a->n, &pong) && pong.result == TAILNET_OK && pong.kind == kind);
        CHECK(pong.path == TAILNET_PATH_RELAY && pong.region == 1);
        CHECK(pong.latency_ms >= 1 && pong.latency_ms < 100);
    }
    w->relay_drop = true;
    if (!TAILNET_DIRECT)
        CHECK(tailnet_ping(a->n, &ip, TAILNET_PING_PATH) == TAILNET_ERR_UNSUPPORTED);
    CHECK(tailnet_ping(a->n, &ip, PING_ANY) == TAILNET_OK);
    nw_run(w, 6000);
    CHECK(tailnet_get_ping(a->n, &pong) && pong.result == TAILNET_ERR_TIMEOUT);
    CHECK(b->packets == 0 && a->packets == 0);
    nw_ip4(555, &ip);
    CHECK(tailnet_ping(a->n, &ip, PING_ANY) == TAILNET_ERR_NO_ROUTE);
    nw_end(w);
}

/* A peer that was started anew tells its disco key inside the tunnel: it is taken, for
 * its pings and against the session's end when control says the same later. */
static void disco_key_told_inside(void)
{
    nw_world    *w = nw_begin(6);
    nw_node     *a, *b;
    tailnet_addr src, dst;
    tailnet_pong pong;
    uint16_t     peer = 0;
    tn_wr        t;
    unsigned     i;
    nw_pair(w, &a, &b);
    CHECK(tn_map_by_disco(&b->n->map, a->n->disco_public, &peer));
    w->quiet = true;                        /* control does not tell               */
    nw_fill(&w->seed, a->n->disco_private, 32);
    tn_cr_clamp(a->n->disco_private);
    tn_cr_x25519_base(a->n->disco_public, a->n->disco_private);
    memset(a->n->disco, 0, sizeof a->n->disco);
    session_of(a, b)->disco.known = false;
    nw_my_ip(a, &src);
    nw_my_ip(b, &dst);
    for (i = 0; i < 2; i++) {
        CHECK(tailnet_ping(a->n, &dst, TAILNET_PING_PATH) == TAILNET_OK);
        a->touched = true;
        nw_run(w, 6000);
        CHECK(tailnet_get_ping(a->n, &pong));
        CHECK(pong.result == (i == 0 ? TAILNET_ERR_TIMEOUT : TAILNET_OK));
        tn_wr_over(&t, a->n->scratch + TAILNET_HEADROOM, 100);
        tn_ip_wr_disco(&t, &src, &dst, a->n->disco_public);
        tn_node_send_own(a->n, session_of(a, b), tn_wr_len(&t));
        tn_node_flush(a->n);
        nw_run(w, 100);
        CHECK(tn_map_by_disco(&b->n->map, a->n->disco_public, &peer));
    }
    i = stats_of(b).handshakes;
    nw_announce(w, me(a));                  /* now control says it too             */
    nw_run(w, 1000);
    CHECK(nw_send(b, a, 7, "still here") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(a, "still here") == 1 && stats_of(b).handshakes == i && b->packets == 1);
    nw_end(w);
}

/* ---- control and the map ---- */

static void control_is_gone_for_an_hour(void)
{
    nw_world    *w = nw_begin(10);
    nw_node     *a, *b;
    tailnet_self self;
    unsigned     i, got = 0;
    char         text[32];
    nw_pair(w, &a, &b);
    w->refuse = false;
    nw_freeze(a, 0);
    nw_freeze(b, 0);
    w->drop_upgrade = true;
    for (i = 0; i < 240; i++) {
        snprintf(text, sizeof text, "minute %u", i / 4);
        CHECK(nw_send(i % 2 ? a : b, i % 2 ? b : a, 7, text) == TAILNET_OK);
        nw_run(w, 15000);
        got += nw_got(i % 2 ? b : a, text) != 0;
    }
    CHECK(got >= 239);
    CHECK(stats_of(a).handshakes >= 25);    /* every two minutes                   */
    CHECK(tailnet_get_self(a->n, &self) && !self.control_up);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    w->drop_upgrade = false;
    nw_run(w, 120000);
    CHECK(tailnet_get_self(a->n, &self) && self.control_up);
    nw_end(w);
}

static void peer_is_removed(void)
{
    nw_world *w = nw_begin(11);
    nw_node  *a, *b;
    uint64_t  forged;
    nw_pair(w, &a, &b);
    CHECK(session_of(a, b) != NULL);
    forged = stats_of(a).dropped_no_route + stats_of(a).dropped_forged;
    say_removed(w, a, b);
    CHECK(nw_send(b, a, 7, "under way") == TAILNET_OK);
    while (tailnet_peer_count(a->n) != 0) nw_run(w, 1);
    CHECK(nw_send(b, a, 7, "too late") == TAILNET_OK);
    CHECK(nw_send(a, b, 7, "nobody there") == TAILNET_ERR_NO_ROUTE);
    nw_run(w, 60000);
    CHECK(nw_got(a, "too late") == 0 && session_of(a, b) == NULL);
    CHECK(stats_of(a).dropped_no_route + stats_of(a).dropped_forged > forged);
    nw_announce(w, me(b));                  /* and back again                      */
    nw_run(w, 100);
    CHECK(nw_send(a, b, 7, "again") == TAILNET_OK);
    nw_run(w, 20000);
    CHECK(nw_got(b, "again") == 1);
    nw_end(w);
}

/* Removed in the middle of a handshake, with a packet staged. */
static void peer_is_removed_early(void)
{
    unsigned ms;
    for (ms = 0; ms < 12; ms++) {
        nw_world *w = nw_begin(300 + ms);
        nw_node  *a = nw_join(w, "alpha"), *b = nw_join(w, "beta");
        nw_run(w, 1000);
        CHECK(nw_send(a, b, 7, "hello") == TAILNET_OK);
        nw_run(w, ms);
        say_removed(w, a, b);
        nw_run(w, 100);
        CHECK(tailnet_peer_count(a->n) == 0);
        nw_run(w, 10000);
        nw_end(w);
    }
}

static void peer_expires(void)
{
    nw_world *w = nw_begin(12);
    nw_node  *a, *b;
    char      more[64];
    nw_pair(w, &a, &b);
    me(b)->expired = true;
    nw_announce(w, me(b));
    nw_run(w, 100);
    CHECK(session_of(a, b) == NULL);
    CHECK(nw_send(b, a, 7, "still here?") == TAILNET_OK);
    CHECK(nw_send(a, b, 7, "no") == TAILNET_ERR_NO_ROUTE);
    nw_run(w, 10000);
    CHECK(nw_got(a, "still here?") == 0);
    me(b)->expired = false;
    nw_announce(w, me(b));
    nw_run(w, 100);
    CHECK(nw_send(a, b, 7, "welcome") == TAILNET_OK);
    nw_run(w, 20000);
    CHECK(nw_got(b, "welcome") == 1);
    /* by its date: 1800000000 + 100 s is 2027-01-15T08:01:40Z */
    snprintf(more, sizeof more, ",\"KeyExpiry\":\"2027-01-15T08:01:40Z\"");
    strcpy(me(b)->more, more);
    nw_announce(w, me(b));
    nw_run(w, 50);
    CHECK(session_of(a, b) != NULL);
    nw_run(w, NW_UNIX_MS + 100000 - (NW_UNIX_MS + w->now_ms) + 5);
    CHECK(session_of(a, b) == NULL);
    CHECK(nw_send(a, b, 7, "no more") == TAILNET_ERR_NO_ROUTE);
    nw_end(w);
}

static void peer_gets_another_key(void)
{
    nw_world *w = nw_begin(13);
    nw_node  *a, *b;
    uint8_t   secret[32];
    nw_pair(w, &a, &b);
    nw_fill(&w->seed, secret, 32);
    tn_cr_x25519_base(me(b)->key, secret);
    nw_announce(w, me(b));
    nw_run(w, 50);
    CHECK(a->n->map.peers[0].session == TN_NODE_NO_SLOT);
    CHECK(nw_send(b, a, 7, "old key") == TAILNET_OK);
    nw_run(w, 20000);
    CHECK(nw_got(a, "old key") == 0);
    nw_end(w);

    w = nw_begin(14);                       /* another disco key: it was restarted */
    nw_pair(w, &a, &b);
    tn_cr_x25519_base(me(b)->disco, secret);
    nw_announce(w, me(b));
    nw_run(w, 50);
    CHECK(session_of(a, b) == NULL);
    CHECK(nw_send(a, b, 7, "new session") == TAILNET_OK);
    nw_run(w, 6000);
    CHECK(nw_got(b, "new session") == 1);
    nw_end(w);
}

static void we_expire(void)
{
    nw_world *w = nw_begin(15);
    nw_node  *a, *b;
    nw_pair(w, &a, &b);
    w->register_body = "{\"AuthURL\":\"https://control.test/register/x\"}";
    w->hold_register = true;
    me(a)->expired   = true;
    nw_say_self(w, me(a));
    nw_run(w, 200);
    CHECK(nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
    CHECK(session_of(a, b) == NULL);
    CHECK(nw_send(a, b, 7, "no") == TAILNET_ERR_AGAIN);
    CHECK(nw_send(b, a, 7, "no") == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(nw_got(a, "no") == 0);
    CHECK(strcmp(tailnet_login_url(a->n), "https://control.test/register/x") == 0);
    me(a)->expired = false;                 /* an admin extends the key            */
    nw_say_self(w, me(a));
    nw_run(w, 200);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    CHECK(nw_send(a, b, 7, "yes") == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(nw_got(b, "yes") == 1);
    nw_end(w);

    w = nw_begin(16);                       /* with an auth key it heals by itself */
    nw_pair(w, &a, &b);
    strcpy(me(a)->more, ",\"KeyExpiry\":\"2027-01-15T08:01:40Z\"");
    nw_say_self(w, me(a));
    nw_run(w, 100);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    nw_run(w, 100000 - w->now_ms - 10);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING && w->registers == 2);
    me(a)->more[0] = '\0';
    nw_run(w, 2000);
    CHECK(w->registers == 3 && nw_state(a) == TAILNET_STATE_RUNNING);
    CHECK(memcmp(me(a)->key, a->n->node_public, 32) == 0);
    CHECK(nw_send(a, b, 7, "with a new key") == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(nw_got(b, "with a new key") == 1);
    nw_end(w);
}

/* A device without a clock believes the server's. */
static void we_expire_without_a_clock(void)
{
    nw_world *w = nw_begin(17);
    nw_node  *a = nw_add(w, "alpha");
    a->no_clock = true;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    w->register_body = "{\"AuthURL\":\"https://control.test/register/x\"}";
    w->hold_register = true;
    CHECK(nw_say(w, me(a), "{\"ControlTime\":\"2027-01-15T08:00:02Z\"}"));
    nw_run(w, 100);
    strcpy(me(a)->more, ",\"KeyExpiry\":\"2027-01-15T08:10:00Z\"");
    nw_say_self(w, me(a));
    nw_run(w, 500000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    nw_run(w, 110000);
    CHECK(nw_state(a) == TAILNET_STATE_NEEDS_LOGIN);
    nw_end(w);
}

static void machine_waits_for_approval(void)
{
    nw_world *w = nw_begin(18);
    nw_node  *b = nw_join(w, "beta"), *a = nw_add(w, "alpha");
    nw_up(a);
    while (me(a) == NULL) nw_run(w, 1);
    me(a)->unapproved = true;
    nw_run(w, 2000);
    CHECK(nw_state(a) == TAILNET_STATE_NEEDS_APPROVAL);
    CHECK(nw_send(a, b, 7, "no") == TAILNET_ERR_AGAIN);
    me(a)->unapproved = false;
    nw_say_self(w, me(a));
    nw_run(w, 1000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    CHECK(nw_send(a, b, 7, "yes") == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(nw_got(b, "yes") == 1);
    nw_end(w);
}

/* ---- the filter ---- */

static const char rules_none[] = "[]";

static void policy_bites_at_once(void)
{
    nw_world *w = nw_begin(20);
    nw_node  *a, *b;
    uint64_t  denied;
    nw_pair(w, &a, &b);
    denied = stats_of(b).dropped_denied;
    say_filter(w, rules_none);
    nw_run(w, 50);
    CHECK(nw_send(a, b, 7, "refused") == TAILNET_OK);   /* b's own filter says no  */
    nw_run(w, 100);
    CHECK(nw_got(b, "refused") == 0 && stats_of(b).dropped_denied == denied + 1);
    /* what b itself asked may be answered, on that flow only */
    {
        tailnet_addr ipa, ipb;
        nw_my_ip(a, &ipa);
        nw_my_ip(b, &ipb);
        CHECK(nw_send_from(b, &ipb, 5000, &ipa, 53, "question") == TAILNET_OK);
        nw_run(w, 100);
        CHECK(nw_got(a, "question") == 0);  /* a refuses too: nothing is allowed   */
        CHECK(nw_send_from(a, &ipa, 53, &ipb, 5000, "answer it") == TAILNET_OK);
        CHECK(nw_send_from(a, &ipa, 54, &ipb, 5000, "not asked") == TAILNET_OK);
        CHECK(nw_send_from(a, &ipa, 53, &ipb, 5001, "not there") == TAILNET_OK);
        nw_run(w, 100);
        CHECK(nw_got(b, "answer it") == 1);
        CHECK(nw_got(b, "not asked") == 0 && nw_got(b, "not there") == 0);
    }
    nw_end(w);
}

static void grant_goes_one_way(void)
{
    nw_world    *w = nw_begin(21);
    nw_node     *a, *b;
    tailnet_addr ipa, ipb;
    char         rules[300];
    nw_pair(w, &a, &b);
    nw_my_ip(a, &ipa);
    nw_my_ip(b, &ipb);
    snprintf(rules, sizeof rules, "[{\"SrcIPs\":[\"100.64.0.%u\"],\"DstPorts\":[{\"IP\":\"100.64.0.%u\","
             "\"Ports\":{\"First\":80,\"Last\":90}}]}]", ipa.ip[3], ipb.ip[3]);
    say_filter(w, rules);
    nw_run(w, 50);
    CHECK(nw_send_from(a, &ipa, 4000, &ipb, 85, "allowed") == TAILNET_OK);
    CHECK(nw_send_from(a, &ipa, 4000, &ipb, 91, "other port") == TAILNET_OK);
    CHECK(nw_send_from(b, &ipb, 4000, &ipa, 85, "backwards") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "allowed") == 1 && nw_got(b, "other port") == 0 && nw_got(a, "backwards") == 0);
    CHECK(nw_send_from(b, &ipb, 85, &ipa, 4000, "reply") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(a, "reply") == 1);
    say_filter(w, rules_none);
    nw_run(w, 50);
    CHECK(nw_send_from(a, &ipa, 4000, &ipb, 85, "flow") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "flow") == 0);          /* the running flow is cut too         */
    nw_end(w);
}

static void nothing_before_the_first_filter(void)
{
    nw_world *w = nw_begin(22);
    nw_node  *a = nw_join(w, "alpha"), *b;
    w->filter = "null";
    b         = nw_join(w, "beta");
    nw_run(w, 500);
    CHECK(nw_send(a, b, 7, "hello") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(b->packets == 0 && stats_of(b).dropped_denied >= 1);
    nw_end(w);
}

static void jailed_and_shields(void)
{
    nw_world     *w = nw_begin(23);
    nw_node      *a, *b;
    tailnet_prefs prefs;
    tailnet_addr  ipa, ipb;
    nw_pair(w, &a, &b);
    nw_my_ip(a, &ipa);
    nw_my_ip(b, &ipb);
    strcpy(me(b)->more, ",\"IsJailed\":true");
    nw_announce(w, me(b));
    nw_run(w, 50);
    CHECK(nw_send_from(b, &ipb, 1, &ipa, 2, "from jail") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(a, "from jail") == 0);
    CHECK(nw_send_from(a, &ipa, 3, &ipb, 4, "to jail") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_send_from(b, &ipb, 4, &ipa, 3, "may answer") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "to jail") == 1 && nw_got(a, "may answer") == 1);
    prefs            = b->desc.prefs;
    prefs.shields_up = true;
    CHECK(tailnet_set_prefs(b->n, &prefs) == TAILNET_OK);
    CHECK(nw_send_from(a, &ipa, 5, &ipb, 6, "against shields") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "against shields") == 0);
    nw_end(w);
}

static void masquerade(void)
{
    nw_world    *w = nw_begin(24);
    nw_node     *a, *b;
    tailnet_addr ipa, ipb, masq;
    nw_pair(w, &a, &b);
    nw_my_ip(a, &ipa);
    nw_my_ip(b, &ipb);
    nw_ip4(200, &masq);                     /* b knows a under this address        */
    strcpy(me(b)->more, ",\"SelfNodeV4MasqAddrForThisPeer\":\"100.64.0.200\"");
    {
        char  text[NW_BODY];
        tn_wr t;
        tn_wr_over(&t, text, sizeof text - 1);
        tn_wr_text(&t, "{\"PeersChanged\":[");
        nw_put_node(w, &t, me(b));
        tn_wr_text(&t, "]}");
        text[tn_wr_len(&t)] = '\0';
        CHECK(nw_say(w, me(a), text));
    }
    strcpy(me(a)->allowed, "\"100.64.0.200/32\"");
    nw_announce(w, me(a));
    nw_run(w, 50);
    CHECK(nw_send_from(a, &ipa, 11, &ipb, 12, "masked") == TAILNET_OK);
    nw_run(w, 5000);
    CHECK(nw_got(b, "masked") == 1);
    CHECK_BYTES(b->kept[(b->packets - 1) % NW_KEPT].data + 12, masq.ip, 4);
    CHECK(nw_send_from(b, &ipb, 12, &masq, 11, "to the mask") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(a, "to the mask") == 1);
    CHECK_BYTES(a->kept[(a->packets - 1) % NW_KEPT].data + 16, ipa.ip, 4);
    {
        tn_ip_packet p;
        nw_packet   *k = &a->kept[(a->packets - 1) % NW_KEPT];
        CHECK(tn_ip_read(&p, k->data, k->len) && p.body == 20);
        CHECK(tn_ip_fold(tn_ip_sum(0, k->data, 20)) == 0xffff);
    }
    nw_end(w);
}

static void spoofed_sources(void)
{
    nw_world    *w = nw_begin(25);
    nw_node     *a, *b;
    tailnet_addr ipa, ipb, other;
    uint64_t     forged;
    nw_pair(w, &a, &b);
    (void)nw_join(w, "gamma");
    nw_run(w, 100);
    nw_my_ip(a, &ipa);
    nw_my_ip(b, &ipb);
    forged = stats_of(b).dropped_forged;
    nw_ip4(3, &other);
    CHECK(nw_send_from(a, &other, 1, &ipb, 2, "as gamma") == TAILNET_OK);
    CHECK(nw_send_from(a, &ipb, 1, &ipb, 2, "as yourself") == TAILNET_OK);
    nw_ip4(77, &other);
    CHECK(nw_send_from(a, &other, 1, &ipb, 2, "as nobody") == TAILNET_OK);
    nw_run(w, 200);
    CHECK(nw_got(b, "as gamma") + nw_got(b, "as yourself") + nw_got(b, "as nobody") == 0);
    CHECK(stats_of(b).dropped_forged == forged + 3);
    CHECK(nw_send_from(a, &ipa, 1, &ipb, 2, "as myself") == TAILNET_OK);
    nw_run(w, 200);
    CHECK(nw_got(b, "as myself") == 1);     /* its session has not suffered        */
    nw_end(w);
}

/* ---- what attackers send ---- */

static void replayed_datagrams(void)
{
    nw_world *w = nw_begin(30);
    nw_node  *a, *b;
    unsigned  i, k, handshakes;
    memset(&heard, 0, sizeof heard);
    w->tap = hear;
    nw_pair(w, &a, &b);
    for (i = 0; i < 20; i++) {
        CHECK(nw_send(a, b, 7, "once") == TAILNET_OK);
        nw_run(w, 20);
    }
    CHECK(nw_got(b, "once") == 20 && heard.count < 64);
    handshakes = stats_of(b).handshakes;
    for (k = 0; k < 3; k++)
        for (i = 0; i < heard.count; i++) {
            CHECK(nw_relay_bring(w, 1, heard.to[i], heard.from[i], heard.data[i], heard.len[i]));
            nw_run(w, 30);
        }
    CHECK(nw_got(b, "once") == 20 && nw_got(a, "answer") == 1);
    CHECK(stats_of(b).handshakes == handshakes);
    CHECK(nw_send(a, b, 7, "still") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "still") == 1);
    nw_end(w);
}

static void every_byte_changed(void)
{
    nw_world *w = nw_begin(31);
    nw_node  *a, *b;
    unsigned  i, at;
    uint8_t   copy[1500];
    nw_pair(w, &a, &b);
    memset(&heard, 0, sizeof heard);
    w->tap        = hear;
    heard.swallow = true;
    CHECK(nw_send(a, b, 7, "true") == TAILNET_OK);
    nw_run(w, 50);
    CHECK(heard.count == 1);
    for (at = 0; at < heard.len[0]; at++) {
        memcpy(copy, heard.data[0], heard.len[0]);
        copy[at] ^= (uint8_t)(1u << at % 8);
        (void)nw_relay_bring(w, 1, heard.to[0], heard.from[0], copy, heard.len[0]);
        nw_run(w, 5);
    }
    for (i = 0; i < heard.len[0]; i++)
        (void)nw_relay_bring(w, 1, heard.to[0], heard.from[0], heard.data[0], i);
    nw_run(w, 100);
    CHECK(nw_got(b, "true") == 0);
    (void)nw_relay_bring(w, 1, heard.to[0], heard.from[0], heard.data[0], heard.len[0]);
    nw_run(w, 50);
    CHECK(nw_got(b, "true") == 1);
    nw_end(w);
}

static void strangers_on_the_relay(void)
{
    nw_world *w = nw_begin(32);
    nw_node  *a, *b;
    uint8_t   key[32], data[200];
    unsigned  i, dh;
    nw_pair(w, &a, &b);
    dh = nw_dh;
    for (i = 0; i < 500; i++) {
        nw_fill(&w->seed, key, 32);
        nw_fill(&w->seed, data, sizeof data);
        data[0] = (uint8_t)(1 + i % 4);
        data[1] = data[2] = data[3] = 0;
        if (i % 5 == 0) memcpy(data, tn_disco_magic, 6);
        (void)nw_relay_bring(w, 1, b->n->node_public, i % 3 == 0 ? a->n->node_public : key, data,
                             i % 4 == 0 ? 148 : i % 4 == 1 ? 92 : i % 4 == 2 ? 64 : 32 + i % 160);
        if (i % 10 == 0) nw_run(w, 5);
    }
    nw_run(w, 100);
    CHECK(nw_dh == dh);                     /* none was worth a multiplication     */
    CHECK(nw_conn_to(b, 1) != NULL && stats_of(b).dropped_no_route > 300);
    CHECK(nw_send(a, b, 7, "untouched") == TAILNET_OK);
    nw_run(w, 50);
    CHECK(nw_got(b, "untouched") == 1);
    nw_end(w);
}

static void huge_relay_packets(void)
{
    static uint8_t huge[65536];
    nw_world *w = nw_begin(33);
    nw_node  *a, *b;
    unsigned  i, len;
    nw_pair(w, &a, &b);
    nw_fill(&w->seed, huge, sizeof huge);
    huge[0] = 4;
    huge[1] = huge[2] = huge[3] = 0;
    for (i = 0; i < 8; i++) {
        len = i == 0 ? 65536u : 1500u + nw_below(w, 64000);
        (void)nw_relay_bring(w, 1, b->n->node_public, a->n->node_public, huge, len);
        CHECK(nw_send(a, b, 7, "between giants") == TAILNET_OK);
        nw_run(w, 300);
        CHECK(nw_got(b, "between giants") == i + 1);
    }
    CHECK(w->relay_refused == 0 && b->dials <= 3);
    nw_end(w);
}

/* Initiations with a good first mac, from one key: in all, and from one known peer. */
static void flood(bool from_peer)
{
    nw_world    *w = nw_begin(34);
    nw_node     *a, *b;
    nw_member   *ghost;
    tn_wg_device dev;
    tn_wg        wg;
    uint8_t      msg[TN_WG_INITIATION_LEN], eph[32], stamp[12], secret[32];
    unsigned     i, before, dh, polls;
    nw_pair(w, &a, &b);
    ghost = nw_ghost(w, "ghost", 1);
    nw_fill(&w->seed, secret, 32);
    tn_cr_x25519_base(ghost->key, secret);
    if (from_peer) nw_announce(w, ghost);
    nw_run(w, 100);
    tn_wg_device_init(&dev, secret, 0);
    before     = b->packets;
    dh         = nw_dh;
    polls      = b->polls;
    b->most_dh = 0;
    for (i = 0; i < 600; i++) {
        if (i % 2 == 0) {
            unsigned own = nw_dh;
            tn_wg_init(&wg, w->now_ms);
            tn_wg_want(&wg, w->now_ms);
            (void)tn_wg_stamp(&dev, NW_UNIX_MS + w->now_ms + 1000 * i, stamp);
            nw_fill(&w->seed, eph, 32);
            CHECK(tn_wg_initiate(&dev, &wg, msg, b->n->node_public, stamp, eph, 1 + i, w->now_ms) ==
                  TN_WG_OK);
            dh += nw_dh - own;
        }
        (void)nw_relay_bring(w, 1, b->n->node_public, ghost->key, msg, sizeof msg);
        if (i % 10 == 0) {
            CHECK(nw_send(a, b, 7, "meanwhile") == TAILNET_OK);
            nw_run(w, 10);
        }
    }
    nw_run(w, 100);
    CHECK(b->packets == before + 60);       /* nobody else's traffic suffers       */
    CHECK(b->most_dh <= 5);
    CHECK(nw_dh - dh <= (from_peer ? 5u * 30u : 1u * 30u));
    if (!tn_test_ok) printf("  %u multiplications in %u polls\n", nw_dh - dh, b->polls - polls);
    CHECK(session_of(b, a) != NULL && nw_state(b) == TAILNET_STATE_RUNNING);
    nw_end(w);
}

static void floods_of_initiations(void)
{
    flood(true);
    flood(false);
}

/* By UDP, from many addresses, with cookies under load. */
static void floods_by_udp(void)
{
    nw_world    *w = nw_begin(35);
    nw_node     *a, *b;
    tn_wg_device dev;
    tn_wg        wg;
    uint8_t      msg[TN_WG_INITIATION_LEN], eph[32], stamp[12], secret[32];
    tailnet_buf  buf;
    unsigned     i, dh, own = 0, sent;
    nw_pair(w, &a, &b);
    nw_fill(&w->seed, secret, 32);
    tn_wg_device_init(&dev, secret, 0);
    dh   = nw_dh;
    sent = b->udp_sent;
    for (i = 0; i < 400; i++) {
        tailnet_addr from = a->place;
        unsigned     mark = nw_dh;
        from.ip[2] = (uint8_t)(i >> 4);
        from.ip[3] = (uint8_t)i;
        tn_wg_init(&wg, w->now_ms);
        tn_wg_want(&wg, w->now_ms);
        (void)tn_wg_stamp(&dev, NW_UNIX_MS + w->now_ms, stamp);
        nw_fill(&w->seed, eph, 32);
        CHECK(tn_wg_initiate(&dev, &wg, msg, b->n->node_public, stamp, eph, 1 + i, w->now_ms) == TN_WG_OK);
        own += nw_dh - mark;
        memset(&buf, 0, sizeof buf);
        buf.base = msg;
        buf.cap = buf.len = sizeof msg;
        (void)tailnet_udp_input(b->n, &from, &buf, 1);
        nw_run(w, 2);
    }
    CHECK(nw_dh - dh - own <= 40);
    CHECK((b->udp_sent > sent) == TAILNET_DIRECT);      /* cookies went out        */
    CHECK(nw_send(a, b, 7, "calm") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "calm") == 1);
    nw_end(w);
}

/* The relay says that a packet came from a peer: its bytes must say so too. */
static void handshake_under_a_false_key(void)
{
    nw_world *w = nw_begin(36);
    nw_node  *a, *b;
    nw_member *ghost;
    unsigned  i;
    nw_pair(w, &a, &b);
    ghost = nw_ghost(w, "ghost", 1);
    nw_announce(w, ghost);
    nw_run(w, 100);
    memset(&heard, 0, sizeof heard);
    w->tap = hear;
    nw_kill(a);
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 5000));
    heard.swallow = true;
    nw_run(w, 2000);
    CHECK(nw_send(a, b, 7, "hello") == TAILNET_OK);
    nw_run(w, 200);
    CHECK(heard.count >= 1);
    for (i = 0; i < heard.count && i < 64; i++)
        (void)nw_relay_bring(w, 1, heard.to[i], ghost->key, heard.data[i], heard.len[i]);
    i = heard.count;
    nw_run(w, 1000);
    CHECK(heard.count == i);                /* no answer to anybody                */
    nw_end(w);
}

/* ---- sessions ---- */

static void more_peers_than_sessions(void)
{
    nw_world *w = nw_begin(40);
    nw_node  *a, *p[4];
    unsigned  i, k;
    char      text[32];
    a = nw_add(w, "alpha");
    a->desc.max_sessions = 2;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    for (i = 0; i < 4; i++) p[i] = nw_join(w, i == 0 ? "b" : i == 1 ? "c" : i == 2 ? "d" : "e");
    nw_run(w, 2000);
    for (k = 0; k < 3; k++)
        for (i = 0; i < 4; i++) {
            snprintf(text, sizeof text, "to %u, time %u", i, k);
            CHECK(nw_send(a, p[i], 7, text) == TAILNET_OK);
            nw_run(w, 6000);
            CHECK(nw_got(p[i], text) == 1);
            CHECK(nw_send(p[i], a, 7, text) == TAILNET_OK);
            nw_run(w, 100);
            CHECK(nw_got(a, text) == 1);
        }
    nw_end(w);
}

static void more_peers_than_places(void)
{
    nw_world *w = nw_begin(41);
    nw_node  *a, *b;
    tailnet_self self;
    unsigned  i;
    for (i = 0; i < 40; i++) nw_ghost(w, "ghost", 1);
    a = nw_add(w, "alpha");
    a->desc.max_peers = 8;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    w->quiet = true;
    b        = nw_add(w, "zulu");
    b->desc.max_peers = 60;
    nw_up(b);
    CHECK(nw_until(b, TAILNET_STATE_RUNNING, 10000));
    nw_run(w, 2000);
    nw_cut(a, 0);
    nw_run(w, 5000);
    CHECK(tailnet_get_self(a->n, &self) && self.peers_missing);
    CHECK(tailnet_peer_count(a->n) == 8);
    CHECK(nw_send(a, b, 7, "who are you") == TAILNET_ERR_AGAIN);
    nw_run(w, 15000);
    CHECK(nw_got(b, "who are you") == 1);
    CHECK(nw_send(b, a, 7, "zulu") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(nw_got(a, "zulu") == 1 && tailnet_peer_count(a->n) == 8);
    CHECK(tailnet_fetch_peer(a->n, "zulu") == TAILNET_OK);
    CHECK(tailnet_fetch_peer(a->n, "nobody-has-this-name") == TAILNET_ERR_AGAIN);
    nw_run(w, 30000);
    CHECK(tailnet_fetch_peer(a->n, "nobody-has-this-name") == TAILNET_ERR_NO_ROUTE);
    nw_end(w);
}

/* A peer that is not in the directory begins to talk. */
static void unknown_peer_is_fetched(void)
{
    nw_world *w = nw_begin(42);
    nw_node  *a, *b;
    unsigned  i, maps;
    for (i = 0; i < 40; i++) nw_ghost(w, "ghost", 1);
    w->quiet = true;
    b        = nw_add(w, "zulu");
    b->desc.max_peers = 60;
    nw_up(b);
    CHECK(nw_until(b, TAILNET_STATE_RUNNING, 10000));
    nw_run(w, 2000);
    a = nw_add(w, "alpha");
    a->desc.max_peers = 8;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    nw_run(w, 2000);
    nw_announce(w, me(a));
    nw_run(w, 100);
    CHECK(nw_send(b, a, 7, "let me in") == TAILNET_OK);
    nw_run(w, 40000);
    CHECK(nw_got(a, "let me in") >= 1);
    maps = w->maps;                         /* strangers make it read again, rarely */
    for (i = 0; i < 200; i++) {
        uint8_t key[32], data[148];
        nw_fill(&w->seed, key, 32);
        memset(data, 0, sizeof data);
        data[0] = 1;
        (void)nw_relay_bring(w, 1, a->n->node_public, key, data, 148);
        nw_run(w, 10000);
    }
    CHECK(w->maps - maps <= 12);
    if (!tn_test_ok) printf("  %u readings\n", w->maps - maps);
    nw_end(w);
}

static void session_lives_and_ends(void)
{
    nw_world *w = nw_begin(43);
    nw_node  *a, *b;
    unsigned  relayed;
    nw_pair(w, &a, &b);
    nw_run(w, 600000);                      /* nobody says a word: keys are erased */
    CHECK(session_of(a, b) == NULL && session_of(b, a) == NULL);
    relayed = w->relayed;
    nw_run(w, 600000);
    CHECK(w->relayed == relayed);           /* an idle tunnel is silent            */
    CHECK(nw_send(a, b, 7, "again") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(nw_got(b, "again") == 1);
    nw_end(w);
}

static void both_begin_at_once(void)
{
    uint64_t seed;
    for (seed = 500; seed < 530; seed++) {
        nw_world *w = nw_begin(seed);
        nw_node  *a = nw_join(w, "alpha"), *b = nw_join(w, "beta");
        unsigned  i;
        nw_run(w, 1000);
        CHECK(nw_send(a, b, 7, "from a") == TAILNET_OK);
        nw_run(w, seed % 5);
        CHECK(nw_send(b, a, 7, "from b") == TAILNET_OK);
        nw_run(w, 12000);
        for (i = 0; i < 3; i++) {
            CHECK(nw_send(a, b, 7, "a") == TAILNET_OK && nw_send(b, a, 7, "b") == TAILNET_OK);
            nw_run(w, 100);
        }
        CHECK(nw_got(b, "from a") == 1 && nw_got(a, "from b") == 1);
        CHECK(nw_got(b, "a") == 3 && nw_got(a, "b") == 3);
        if (!tn_test_ok) printf("  seed %lu\n", (unsigned long)seed);
        nw_end(w);
    }
}

/* A lossy relay: sessions always come back. */
static bool lossy(nw_world *w, const uint8_t from[32], const uint8_t to[32], const uint8_t *data,
                  size_t len)
{
    (void)from, (void)to, (void)data, (void)len;
    return nw_below(w, 3) != 0;
}

static void losses(void)
{
    uint64_t seed;
    for (seed = 540; seed < 546; seed++) {
        nw_world *w = nw_begin(seed);
        nw_node  *a, *b;
        unsigned  i, got;
        char      text[16];
        nw_pair(w, &a, &b);
        w->tap = lossy;
        for (i = 0; i < 300; i++) {
            snprintf(text, sizeof text, "%u", i);
            CHECK(nw_send(a, b, 7, text) == TAILNET_OK);
            nw_run(w, 2000);
        }
        CHECK(b->packets > 120);
        w->tap = NULL;
        nw_run(w, 30000);
        got = b->packets;
        for (i = 0; i < 5; i++) {
            CHECK(nw_send(a, b, 7, "clear") == TAILNET_OK);
            nw_run(w, 1000);
        }
        CHECK(b->packets >= got + 5);
        nw_end(w);
    }
}

/* A WireGuard peer that speaks no disco is answered where it last spoke from. */
static void roaming_without_disco(void)
{
    nw_world    *w = nw_begin(44);
    nw_node     *a, *b;
    tailnet_addr from;
    tailnet_buf  buf;
    unsigned     sent;
    a = nw_join(w, "alpha");
    b = nw_join(w, "beta");
    nw_run(w, 1000);
    memset(me(b)->disco, 0, 32);
    nw_announce(w, me(b));
    nw_run(w, 100);
    memset(&heard, 0, sizeof heard);
    CHECK(nw_send(b, a, 7, "first") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(nw_got(a, "first") == 1);
    w->tap        = hear;
    heard.swallow = true;
    CHECK(nw_send(b, a, 7, "by another way") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(heard.count == 1);
    from = b->place;
    memset(&buf, 0, sizeof buf);
    buf.base = heard.data[0];
    buf.cap  = sizeof heard.data[0];
    buf.len  = (uint32_t)heard.len[0];
    CHECK(tailnet_udp_input(a->n, &from, &buf, 1) == TAILNET_OK);
    CHECK(nw_got(a, "by another way") == 1);
    sent = a->udp_sent;
    CHECK(nw_send(a, b, 7, "straight") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(a->udp_sent == sent + 1 && nw_got(b, "straight") == 1);
    nw_end(w);
}

/* ---- direct paths ---- */

/* A world with STUN servers, and nodes that know their network. */
static nw_world *udp_world(uint64_t seed)
{
    nw_world *w = nw_begin(seed);
    w->udp = true;
    return w;
}

static nw_node *join_udp(nw_world *w, const char *name, nw_nat nat)
{
    nw_node *d = nw_add(w, name);
    d->nat = nat;
    if (nat == NW_OPEN) d->place.ip[0] = 203;
    CHECK(nw_make(d) == TAILNET_OK);
    if (d->n == NULL) exit(1);
    nw_network(d, false);
    CHECK(tailnet_up(d->n) == TAILNET_OK);
    CHECK(nw_until(d, TAILNET_STATE_RUNNING, 20000));
    return d;
}

static void pair_udp(nw_world *w, nw_node **a, nw_nat a_nat, nw_node **b, nw_nat b_nat)
{
    *a = join_udp(w, "alpha", a_nat);
    *b = join_udp(w, "beta", b_nat);
    nw_run(w, 5000);                        /* endpoints are known to all         */
}

static tailnet_peer peer_of(nw_node *d, nw_node *with)
{
    tailnet_peer p;
    tailnet_addr ip;
    size_t       index = 0;
    memset(&p, 0, sizeof p);
    nw_ip4(nw_id(d->w, me(with)), &ip);
    CHECK(tailnet_find_peer_by_ip(d->n, &ip, &index) && tailnet_get_peer(d->n, index, &p));
    return p;
}

/* Both talk for some seconds, one packet each in 100 ms; how many were lost? */
static unsigned chatter(nw_node *a, nw_node *b, unsigned ms)
{
    unsigned i, came = 0, sent = 0;
    for (i = 0; i < ms; i += 100) {
        unsigned was = a->packets + b->packets;
        if (nw_send(a, b, 7, "question") == TAILNET_OK) sent++;
        if (nw_send(b, a, 7, "answer") == TAILNET_OK) sent++;
        nw_run(a->w, 100);
        came += a->packets + b->packets - was;
    }
    return sent - came;
}

/* Who meets whom, as the reference does (matrix of the protocol notes). */
static void direct_or_not(void)
{
    static const char *const expected[4] = { "DDDR", "DDRR", "DRRR", "RRRR" };
    unsigned i, k;
    for (i = 0; i < 4; i++) {
        for (k = 0; k < 4; k++) {
            nw_world    *w = udp_world(900 + 4 * i + k);
            nw_node     *a, *b;
            tailnet_path path = expected[i][k] == 'D' ? TAILNET_PATH_DIRECT : TAILNET_PATH_RELAY;
            unsigned     lost;
            pair_udp(w, &a, (nw_nat)i, &b, (nw_nat)k);
            (void)chatter(a, b, 300);
            lost = chatter(a, b, 20000);
            CHECK(lost == 0);
            CHECK(peer_of(a, b).path == path && peer_of(b, a).path == path);
            if (path == TAILNET_PATH_DIRECT) {
                unsigned relayed = w->relayed;
                CHECK(chatter(a, b, 2000) == 0 && w->relayed <= relayed + 1);
                CHECK(peer_of(a, b).endpoint.family == 4 && peer_of(a, b).latency_ms != 0);
            }
            CHECK(a->most_idle <= 3 && b->most_idle <= 3);
            if (!tn_test_ok)
                printf("  %u with %u: lost %u, paths %d %d, idle %u %u\n", i, k, lost,
                       (int)peer_of(a, b).path, (int)peer_of(b, a).path, a->most_idle, b->most_idle);
            nw_end(w);
        }
    }
}

/* The first answer comes by relay at once, the direct way within seconds. */
static void direct_in_time(void)
{
    uint64_t seed;
    for (seed = 920; seed < 926; seed++) {
        nw_world *w = udp_world(seed);
        nw_node  *a, *b;
        uint64_t  begun;
        w->latency_ms = 20;
        pair_udp(w, &a, NW_EASY, &b, NW_EASY);
        begun = w->now_ms;
        CHECK(nw_send(a, b, 7, "first") == TAILNET_OK);
        nw_run(w, 400);
        CHECK(nw_got(b, "first") == 1);
        while (peer_of(a, b).path != TAILNET_PATH_DIRECT && w->now_ms < begun + 10000) nw_run(w, 10);
        CHECK(w->now_ms <= begun + 1500);
        if (!tn_test_ok)
            printf("  seed %lu: %lu ms\n", (unsigned long)seed, (unsigned long)(w->now_ms - begun));
        nw_end(w);
    }
}

/* The peer's call overtakes its handshake, and its pings were ahead of ours, which open
 * our NAT: it hears a call of ours at once, so that it need not wait for its next round. */
static struct {
    uint8_t  msg[TN_WG_INITIATION_LEN];
    bool     held;
    unsigned calls;                         /* of beta                            */
} late;

static bool initiation_is_late(nw_world *w, const uint8_t from[32], const uint8_t to[32],
                               const uint8_t *data, size_t len)
{
    (void)to;
    if (tn_disco_is(data, len)) {
        if (len != TN_DISCO_PING_LEN && len != TN_DISCO_PONG_LEN &&
            memcmp(from, w->nodes[1].n->node_public, 32) == 0)
            late.calls++;
    } else if (!late.held && tn_wg_classify(data, len) == TN_WG_INITIATION) {
        memcpy(late.msg, data, len);
        late.held = true;
        return false;
    }
    return true;
}

static bool no_pings_of_alpha(nw_world *w, nw_node *from, const tailnet_addr *to,
                              const uint8_t *data, size_t len)
{
    (void)w, (void)to;
    return from->number != 0 || !tn_disco_is(data, len) || len != TN_DISCO_PING_LEN;
}

static void call_overtakes_handshake(void)
{
    nw_world *w = udp_world(930);
    nw_node  *a, *b;
    memset(&late, 0, sizeof late);
    pair_udp(w, &a, NW_OPEN, &b, NW_EASY);
    w->tap     = initiation_is_late;
    w->udp_tap = no_pings_of_alpha;
    CHECK(nw_send(a, b, 7, "first") == TAILNET_OK);
    nw_run(w, 50);
    CHECK(late.held && late.calls == 0);
    CHECK(session_of(b, a) != NULL && session_of(b, a)->path.state == TN_PATH_TRUSTED);
    w->udp_tap = NULL;
    CHECK(nw_relay_bring(w, 1, b->n->node_public, a->n->node_public, late.msg, sizeof late.msg));
    nw_run(w, 50);
    CHECK(late.calls == 1 && nw_got(b, "first") == 1);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT);
    nw_end(w);
}

/* Control never told anybody an address: the calls by relay are enough. */
static void direct_without_candidates(void)
{
    nw_world *w = udp_world(930);
    nw_node  *a, *b;
    unsigned  i;
    w->keep_secret = true;
    pair_udp(w, &a, NW_EASY, &b, NW_EASY);
    for (i = 0; i < NW_MEMBERS; i++) CHECK(w->members[i].endpoints[0] == '\0');
    (void)chatter(a, b, 8000);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT && peer_of(b, a).path == TAILNET_PATH_DIRECT);
    nw_end(w);
}

static bool nothing_passes(nw_world *w, nw_node *from, const tailnet_addr *to, const uint8_t *data,
                           size_t len)
{
    (void)w, (void)from, (void)to, (void)data, (void)len;
    return false;
}

/* The longest time without a packet for b, both talking for so long. */
static unsigned longest_gap(nw_node *a, nw_node *b, unsigned ms)
{
    unsigned i, gap = 0, most = 0, was;
    for (i = 0; i < ms; i += 100) {
        was = b->packets;
        (void)nw_send(a, b, 7, "tick");
        (void)nw_send(b, a, 7, "tock");
        nw_run(a->w, 100);
        gap  = b->packets == was ? gap + 100 : 0;
        most = gap > most ? gap : most;
    }
    return most;
}

static void direct_way_breaks_and_returns(void)
{
    nw_world *w = udp_world(931);
    nw_node  *a, *b;
    unsigned  gap;
    uint64_t  begun;
    pair_udp(w, &a, NW_EASY, &b, NW_OPEN);
    (void)chatter(a, b, 6000);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT);
    w->udp_tap = nothing_passes;
    gap        = longest_gap(a, b, 15000);
    CHECK(gap <= 6600);
    CHECK(peer_of(a, b).path == TAILNET_PATH_RELAY && peer_of(b, a).path == TAILNET_PATH_RELAY);
    w->udp_tap = NULL;
    begun      = w->now_ms;
    CHECK(chatter(a, b, 5500) == 0);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT);
    if (!tn_test_ok) printf("  gap %u, back after %lu\n", gap, (unsigned long)(w->now_ms - begun));
    nw_end(w);
}

/* No datagram at all a minute after the last packet; then direct again. */
static void idle_paths_are_silent(void)
{
    nw_world *w = udp_world(932);
    nw_node  *a, *b;
    unsigned  sent;
    pair_udp(w, &a, NW_EASY, &b, NW_EASY);
    (void)chatter(a, b, 6000);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT);
    nw_run(w, 75000);
    sent = a->udp_sent + b->udp_sent;
    nw_run(w, 45000);
    CHECK(a->udp_sent + b->udp_sent == sent);
    nw_run(w, 60000);                       /* the mappings are long gone         */
    CHECK(nw_send(b, a, 7, "still there?") == TAILNET_OK);
    nw_run(w, 300);
    CHECK(nw_got(a, "still there?") >= 1);
    (void)chatter(a, b, 6000);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT && peer_of(b, a).path == TAILNET_PATH_DIRECT);
    nw_end(w);
}

static void relay_only_uses_no_udp(void)
{
    nw_world *w = udp_world(933);
    nw_node  *a = nw_add(w, "alpha"), *b;
    a->desc.prefs.relay_only = true;
    a->desc.io.udp_output    = NULL;
    CHECK(nw_make(a) == TAILNET_OK);
    nw_network(a, false);
    CHECK(tailnet_up(a->n) == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
    b = join_udp(w, "beta", NW_OPEN);
    nw_run(w, 3000);
    CHECK(chatter(a, b, 10000) == 0);
    nw_network(a, true);
    nw_run(w, 3000);
    CHECK(chatter(a, b, 1000) == 0);
    CHECK(a->udp_sent == 0 && me(a)->endpoints[0] == '\0');
    CHECK((b->udp_sent != 0) == TAILNET_DIRECT && (me(b)->endpoints[0] != '\0') == TAILNET_DIRECT);
    CHECK(peer_of(a, b).path == TAILNET_PATH_RELAY && peer_of(b, a).path == TAILNET_PATH_RELAY);
    nw_end(w);
}

/* Another address: traffic is back in less than a second. */
static void network_changes(void)
{
    uint64_t seed;
    for (seed = 940; seed < 946; seed++) {
        nw_world *w = udp_world(seed);
        nw_node  *a, *b;
        unsigned  gap;
        pair_udp(w, &a, seed % 2 == 0 ? NW_EASY : NW_OPEN, &b, NW_EASY);
        (void)chatter(a, b, 8000);
        CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT);
        nw_freeze(a, 0);                    /* its connections came from the old one */
        nw_freeze(a, 1);
        memset(a->holes, 0, sizeof a->holes);
        a->place.ip[2] = 77;
        a->renumbered++;
        nw_network(a, true);
        gap = longest_gap(a, b, 5000);
        CHECK(gap < 1000);
        gap = longest_gap(b, a, 5000);
        CHECK(gap <= 100);
        CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT && peer_of(b, a).path == TAILNET_PATH_DIRECT);
        if (!tn_test_ok) printf("  seed %lu: %u ms\n", (unsigned long)seed, gap);
        nw_end(w);
    }
}

static void pings_find_the_direct_way(void)
{
    nw_world    *w = udp_world(934);
    nw_node     *a, *b;
    tailnet_addr ip;
    tailnet_pong pong;
    unsigned     i;
    pair_udp(w, &a, NW_EASY, &b, NW_OPEN);
    nw_ip4(nw_id(w, me(b)), &ip);
    for (i = 0; i < 4; i++) {
        tailnet_ping_kind kind = i < 2 ? TAILNET_PING_PATH : TAILNET_PING_TUNNEL;
        CHECK(tailnet_ping(a->n, &ip, kind) == TAILNET_OK);
        if (i != 0) CHECK(tailnet_get_ping(a->n, &pong));      /* the last one, meanwhile */
        nw_run(w, 2000);
        CHECK(tailnet_get_ping(a->n, &pong) && pong.result == TAILNET_OK && pong.kind == kind);
        CHECK(pong.path == TAILNET_PATH_DIRECT && tn_addr_same(&pong.endpoint, &b->place));
        CHECK(pong.latency_ms >= 1 && pong.latency_ms < 50 && pong.region == 1);
    }
    w->udp_tap = nothing_passes;
    nw_run(w, 60000);
    CHECK(tailnet_ping(a->n, &ip, TAILNET_PING_PATH) == TAILNET_OK);
    nw_run(w, 2000);
    CHECK(tailnet_get_ping(a->n, &pong) && pong.result == TAILNET_OK);
    CHECK(pong.path == TAILNET_PATH_RELAY && pong.endpoint.family == 0);
    nw_end(w);
}

/* A peer without a session is answered, and so becomes no session. */
static void strangers_get_no_pong(void)
{
    nw_world    *w = udp_world(935);
    nw_node     *a, *b;
    tailnet_addr from;
    uint8_t      gram[256], nonce[24], k[32], secret[32];
    tn_wr        t;
    unsigned     i;
    uint64_t     bytes, given = 0;
    pair_udp(w, &a, NW_OPEN, &b, NW_OPEN);
    nw_run(w, 90000);
    memset(&from, 0, sizeof from);
    from.family = 4;
    from.port   = 9;
    from.ip[0]  = 203;
    bytes       = a->udp_bytes;
    memset(secret, 7, sizeof secret);
    tn_cr_clamp(secret);
    CHECK(tn_cr_box_key(k, secret, a->n->disco_public));
    for (i = 0; i < 400; i++) {             /* forged in every way                */
        size_t      len;
        tailnet_buf buf;
        nw_fill(&w->seed, nonce, sizeof nonce);
        tn_cr_x25519_base(gram, secret);
        tn_disco_begin(&t, gram + 64, 180, i % 2 == 0 ? gram : b->n->disco_public, nonce);
        tn_disco_wr_ping(&t, nonce, b->n->node_public, 0);
        len = tn_disco_finish(&t, k);
        if (i % 5 == 4) {                   /* an answer to no question           */
            tn_wr_over(&t, gram + 64, 180);
            tn_stun_wr_response(&t, nonce, &from);
            len = tn_wr_len(&t);
        }
        memset(&buf, 0, sizeof buf);
        buf.base = gram + 64;
        buf.cap  = 180;
        buf.len  = (uint32_t)len;
        given += len;
        (void)tailnet_udp_input(a->n, &from, &buf, 1);
        nw_run(w, 20);
    }
    CHECK(a->udp_bytes - bytes < 400);      /* a round of STUN may be due         */
    CHECK(session_of(a, b) == NULL && given > 30000);
    nw_end(w);
}

/* A true ping, seen on the way and sent again from elsewhere: each makes one pong,
 * which is shorter, and the path stays what it is. */
static struct {
    uint8_t data[256];
    size_t  len;
} caught;

static bool catch_ping(nw_world *w, nw_node *from, const tailnet_addr *to, const uint8_t *data,
                       size_t len)
{
    (void)w, (void)to;
    if (from->number == 1 && len == TN_DISCO_PING_LEN && tn_disco_is(data, len)) {
        memcpy(caught.data, data, len);
        caught.len = len;
    }
    return true;
}

static void replayed_pings(void)
{
    nw_world    *w = udp_world(936);
    nw_node     *a, *b;
    tailnet_peer p;
    tailnet_addr from;
    unsigned     i;
    uint64_t     bytes, given = 0;
    pair_udp(w, &a, NW_OPEN, &b, NW_OPEN);
    caught.len = 0;
    w->udp_tap = catch_ping;
    (void)chatter(a, b, 6000);
    CHECK(caught.len != 0 && peer_of(a, b).path == TAILNET_PATH_DIRECT);
    nw_run(w, 120000);
    memset(&from, 0, sizeof from);
    from.family = 4;
    from.ip[0]  = 203;
    bytes       = a->udp_bytes;
    for (i = 0; i < 500; i++) {
        uint8_t     gram[256];
        tailnet_buf buf;
        memcpy(gram, caught.data, caught.len);
        from.port = (uint16_t)(1 + i);
        memset(&buf, 0, sizeof buf);
        buf.base = gram;
        buf.cap  = sizeof gram;
        buf.len  = (uint32_t)caught.len;
        given += caught.len;
        (void)tailnet_udp_input(a->n, &from, &buf, 1);
        nw_run(w, 5);
    }
    CHECK(a->udp_bytes - bytes <= given);
    CHECK(chatter(a, b, 1000) == 0);
    p = peer_of(a, b);
    CHECK(p.path == TAILNET_PATH_DIRECT && tn_addr_same(&p.endpoint, &b->place));
    nw_end(w);
}

/* IPv6 on both sides needs no NAT, and is as good. */
static void direct_by_ipv6(void)
{
    unsigned i;
    for (i = 0; i < 3; i++) {               /* both have both; only one; b has only IPv6 */
        nw_world *w = udp_world(950 + i);
        nw_node  *d[2];
        unsigned  k;
        for (k = 0; k < 2; k++) {
            d[k]      = nw_add(w, k == 0 ? "alpha" : "beta");
            d[k]->nat = NW_HARD;
            memcpy(d[k]->place6.ip, "\x20\x01\x0d\xb8\0\0\0\2", 8);
            d[k]->place6.ip[15] = (uint8_t)(1 + k);
            d[k]->place6.port   = 41641;
            d[k]->place6.family = i == 1 && k == 0 ? 0 : 6;
            if (i == 2 && k == 1) d[k]->place.family = 0;
            CHECK(nw_make(d[k]) == TAILNET_OK);
            nw_network(d[k], false);
            CHECK(tailnet_up(d[k]->n) == TAILNET_OK);
            CHECK(nw_until(d[k], TAILNET_STATE_RUNNING, 20000));
        }
        nw_run(w, 5000);
        (void)chatter(d[0], d[1], 500);
        CHECK(chatter(d[0], d[1], 8000) == 0);
        CHECK(peer_of(d[0], d[1]).path == (i == 1 ? TAILNET_PATH_RELAY : TAILNET_PATH_DIRECT));
        if (i != 1) CHECK(peer_of(d[0], d[1]).endpoint.family == 6);
        nw_end(w);
    }
}

/* Behind one NAT, which sends nothing back in: by their own addresses. */
static void direct_in_one_lan(void)
{
    nw_world *w = udp_world(953);
    nw_node  *a = nw_add(w, "alpha"), *b = nw_add(w, "beta");
    unsigned  i;
    for (i = 0; i < 2; i++) {
        w->nodes[i].nat = NW_HARD;
        w->nodes[i].lan = 1;
        CHECK(nw_make(&w->nodes[i]) == TAILNET_OK);
        nw_network(&w->nodes[i], false);
        CHECK(tailnet_up(w->nodes[i].n) == TAILNET_OK);
    }
    nw_run(w, 8000);
    (void)chatter(a, b, 5000);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT && peer_of(a, b).endpoint.ip[0] == 10);
    nw_end(w);
}

/* The nearest region becomes home, and another only when it is much nearer. */
static void home_is_the_nearest(void)
{
    nw_world       *w = udp_world(954);
    nw_node        *a;
    tailnet_report  report;
    tailnet_region  region;
    unsigned        i;
    w->regions = 3;
    w->stun_ms[1] = 80;
    w->stun_ms[2] = 20;
    w->stun_ms[3] = 40;
    a = nw_add(w, "alpha");
    a->nat = NW_HARD;
    a->desc.max_links = 3;
    CHECK(nw_make(a) == TAILNET_OK);
    nw_network(a, false);
    CHECK(!tailnet_get_report(a->n, &report));
    CHECK(tailnet_up(a->n) == TAILNET_OK);
    nw_run(w, 20000);
    CHECK(me(a)->home == 2 && nw_conn_to(a, 2) != NULL);
    CHECK(tailnet_get_report(a->n, &report) && report.udp && report.ip4 && !report.ip6);
    CHECK(report.varies == 2 && report.home == 2 && report.global4.ip[0] == 198);
    for (i = 0; i < 3; i++) {
        CHECK(tailnet_get_region(a->n, i, &region) && region.region == i + 1);
        CHECK(region.v4_ms >= w->stun_ms[i + 1] && region.v4_ms <= w->stun_ms[i + 1] + 10);
        CHECK(region.v6_ms == 0 && memcmp(region.host, "relay", 5) == 0);
    }
    CHECK(!tailnet_get_region(a->n, 3, &region));
    CHECK(strstr(w->last_lite, "\"MappingVariesByDestIP\":true") != NULL);
    CHECK(strstr(w->last_lite, "\"WorkingUDP\":true") != NULL);
    nw_end(w);
}

/* NetInfo to the letter. Latencies go along with what is told, and are no reason to tell. */
static void netinfo_to_the_letter(void)
{
    static const char want[] = "\"NetInfo\":{\"PreferredDERP\":2,\"MappingVariesByDestIP\":false,"
                               "\"WorkingIPv6\":true,\"WorkingUDP\":true";
    static const char times[] = ",\"DERPLatency\":{\"1-v4\":81e-3,\"1-v6\":81e-3,"
                                "\"2-v4\":6e-3,\"2-v6\":6e-3}}";
    nw_world   *w = udp_world(957);
    nw_node    *a = nw_add(w, "alpha");
    unsigned    lites;
    const char *at;
#if TAILNET_PORTMAP
    char        text[512];
    tn_ctl_wish wish;
    tn_wr       t;
#endif
    w->stun_ms[1] = 75;
    w->regions    = 2;
    memcpy(a->place6.ip, "\x20\x01\x0d\xb8\0\0\0\2", 8);
    a->place6.port   = 41641;
    a->place6.family = 6;
    CHECK(nw_make(a) == TAILNET_OK);
    nw_network(a, false);
    CHECK(tailnet_up(a->n) == TAILNET_OK);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 20000));
    nw_run(w, 10000);
    at = strstr(w->last_lite, "\"NetInfo\":");
    CHECK(at != NULL && strncmp(at, want, sizeof want - 1) == 0);
    if (at != NULL) at += sizeof want - 1;
    CHECK(at != NULL && strncmp(at, times, sizeof times - 1) == 0);
    lites         = w->lites;
    w->stun_ms[1] = 60;
    tn_net_trigger(&a->n->net, true);
    a->touched = true;
    nw_run(w, 10000);
    CHECK(a->n->net.regions[0].ms[0] == 66 && w->lites == lites);
#if TAILNET_PORTMAP
    a->gateway.family = 4;                  /* one that does not answer          */
    a->gateway.ip[0]  = 10;
    a->gateway.ip[3]  = 254;
    nw_network(a, false);
    nw_run(w, 5000);
    CHECK(w->lites == lites + 1 && strstr(w->last_lite, "{\"1-v4\":66e-3,") != NULL);
    CHECK(strstr(w->last_lite, ",\"WorkingUDP\":true,\"HavePortMap\":false,\"UPnP\":false,"
                               "\"PMP\":false,\"PCP\":false,\"DERPLatency\":{") != NULL);
    wish          = a->n->ctl.sent;
    wish.port_map = TN_CTL_PROBED | TN_CTL_PCP | TN_CTL_MAPPED;
    wish.latency[0].ms[0] = 2999;
    tn_wr_over(&t, text, sizeof text);
    tn_ctl_w_netinfo(&t, &wish);
    tn_wr_u8(&t, '\0');
    CHECK(strcmp(text, ",\"NetInfo\":{\"PreferredDERP\":2,\"MappingVariesByDestIP\":false,"
                       "\"WorkingIPv6\":true,\"WorkingUDP\":true,\"HavePortMap\":true,"
                       "\"UPnP\":false,\"PMP\":false,\"PCP\":true,\"DERPLatency\":{"
                       "\"1-v4\":2999e-3,\"1-v6\":66e-3,\"2-v4\":6e-3,\"2-v6\":6e-3}}") == 0);
#endif
    if (!tn_test_ok) printf("%s\n", w->last_lite);
    nw_end(w);
}

static uint64_t sent_by(nw_node *d)
{
    uint64_t all = d->udp_bytes;
    unsigned i;
    for (i = 0; i < 8; i++)
        if (d->conns[i] != NULL) all += d->conns[i]->up.total;
    return all;
}

/* Nothing to do for an hour: no datagram, and few bytes at all. */
static void metered_hour(void)
{
    nw_world *w = udp_world(955);
    nw_node  *a, *b;
    uint64_t  udp, all;
    unsigned  i;
    a = nw_add(w, "alpha");
    b = nw_add(w, "beta");
    for (i = 0; i < 2; i++) {
        w->nodes[i].nat                = NW_EASY;
        w->nodes[i].desc.prefs.metered = true;
        CHECK(nw_make(&w->nodes[i]) == TAILNET_OK);
        nw_network(&w->nodes[i], false);
        CHECK(tailnet_up(w->nodes[i].n) == TAILNET_OK);
    }
    nw_run(w, 8000);
    (void)chatter(a, b, 6000);
    CHECK(peer_of(a, b).path == TAILNET_PATH_DIRECT);
    nw_run(w, 30000);
    udp = a->udp_bytes + b->udp_bytes;
    all = sent_by(a);
    nw_run(w, 3600000);
    CHECK(a->udp_bytes + b->udp_bytes == udp);
    CHECK(sent_by(a) - all < 4000);
    printf("  metered and idle: %lu bytes sent in an hour\n", (unsigned long)(sent_by(a) - all));
    nw_end(w);
}

/* Paths that come and go do not make anybody spin, nor poll too often. */
static void path_deadlines_are_honest(void)
{
    nw_world *w = udp_world(956);
    nw_node  *a, *b;
    unsigned  polls;
    pair_udp(w, &a, NW_EASY, &b, NW_HARD);
    polls = a->polls;
    (void)chatter(a, b, 60000);
    CHECK(a->most_idle <= 3 && b->most_idle <= 3);
    CHECK(a->polls - polls < 3000);
    nw_run(w, 120000);
    polls = a->polls;
    nw_run(w, 3600000);
    CHECK(a->polls - polls < 1200);
    if (!tn_test_ok) printf("  idle %u %u, polls %u\n", a->most_idle, b->most_idle, a->polls - polls);
    nw_end(w);
}

/* ---- relays ---- */

static void relay_restarts(void)
{
    nw_world *w = nw_begin(50);
    nw_node  *a, *b;
    nw_pair(w, &a, &b);
    w->no_relay = true;
    nw_cut(a, 1);
    nw_cut(b, 1);
    nw_run(w, 10000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    (void)nw_send(a, b, 7, "lost");
    nw_run(w, 1000);
    w->no_relay = false;
    nw_run(w, 8000);
    CHECK(nw_send(a, b, 7, "there again") == TAILNET_OK);
    nw_run(w, 6000);
    CHECK(nw_got(b, "there again") == 1);
    CHECK(a->dials < 60);
    nw_end(w);
}

static void relay_is_cut_in_silence(void)
{
    nw_world *w = nw_begin(51);
    nw_node  *a, *b;
    nw_pair(w, &a, &b);
    nw_freeze(a, 1);
    nw_run(w, 100000);
    CHECK(nw_send(b, a, 7, "into nothing") == TAILNET_OK);
    nw_run(w, 25000);                       /* 120 s without a byte                */
    CHECK(nw_send(b, a, 7, "back") == TAILNET_OK);
    nw_run(w, 20000);
    CHECK(nw_got(a, "back") >= 1);
    nw_end(w);
}

static void relay_peer_is_gone_and_back(void)
{
    nw_world *w = nw_begin(52);
    nw_node  *a, *b;
    nw_pair(w, &a, &b);
    w->no_relay = true;
    nw_cut(b, 1);
    nw_run(w, 1000);
    (void)nw_send(a, b, 7, "not there");
    nw_run(w, 3000);
    CHECK(w->relay_refused >= 1);
    w->no_relay = false;
    nw_run(w, 6000);
    CHECK(nw_send(a, b, 7, "hello again") == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(nw_got(b, "hello again") == 1);
    nw_end(w);
}

static void peers_of_another_home(void)
{
    nw_world *w = nw_begin(53);
    nw_node  *a, *b;
    unsigned  i;
    char      text[16];
    a = nw_add(w, "alpha");
    b = nw_add(w, "beta");
    a->desc.max_links = b->desc.max_links = 3;
    b->desc.prefs.home_region = 2;
    nw_up(a);
    nw_up(b);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000) && nw_until(b, TAILNET_STATE_RUNNING, 10000));
    nw_run(w, 3000);
    CHECK(me(a)->home == 1 && me(b)->home == 2);
    for (i = 0; i < 5; i++) {
        snprintf(text, sizeof text, "number %u", i);
        CHECK(nw_send(a, b, 7, text) == TAILNET_OK);
        nw_run(w, 1000);
        CHECK(nw_got(b, text) == 1);
        CHECK(nw_send(b, a, 7, text) == TAILNET_OK);
        nw_run(w, 1000);
        CHECK(nw_got(a, text) == 1);
    }
    CHECK(nw_conn_to(a, 2) != NULL || nw_conn_to(b, 1) != NULL);
    nw_run(w, 600000);                      /* guests leave when nobody talks      */
    CHECK(nw_conn_to(a, 2) == NULL && nw_conn_to(b, 1) == NULL);
    CHECK(nw_conn_to(a, 1) != NULL && nw_conn_to(b, 2) != NULL);
    nw_end(w);
}

/* One relay link only: home it is, and a peer elsewhere talks to us there. */
static void one_link_and_another_home(void)
{
    nw_world *w = nw_begin(54);
    nw_node  *a, *b;
    a = nw_add(w, "alpha");
    b = nw_add(w, "beta");
    b->desc.max_links         = 3;
    b->desc.prefs.home_region = 2;
    nw_up(a);
    nw_up(b);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000) && nw_until(b, TAILNET_STATE_RUNNING, 10000));
    nw_run(w, 3000);
    CHECK(nw_send(b, a, 7, "hello") == TAILNET_OK);
    nw_run(w, 2000);
    CHECK(nw_got(a, "hello") == 1);
    CHECK(nw_send(a, b, 7, "answer") == TAILNET_OK);
    nw_run(w, 2000);
    CHECK(nw_got(b, "answer") == 1);
    nw_end(w);
}

static void home_moves(void)
{
    nw_world     *w = nw_begin(55);
    nw_node      *a, *b;
    tailnet_prefs prefs;
    nw_pair(w, &a, &b);
    prefs             = b->desc.prefs;
    prefs.home_region = 2;
    CHECK(tailnet_set_prefs(b->n, &prefs) == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(me(b)->home == 2 && nw_conn_to(b, 2) != NULL);
    prefs             = a->desc.prefs;
    prefs.home_region = 2;
    CHECK(tailnet_set_prefs(a->n, &prefs) == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(nw_send(a, b, 7, "at the new home") == TAILNET_OK);
    nw_run(w, 10000);
    CHECK(nw_got(b, "at the new home") == 1);
    nw_end(w);
}

static void relay_sends_rubbish(void)
{
    nw_world *w = nw_begin(56);
    nw_node  *a, *b;
    unsigned  i;
    nw_pair(w, &a, &b);
    for (i = 0; i < 30; i++) {
        nw_conn *c = nw_conn_to(b, 1);
        uint8_t  bytes[300];
        if (c != NULL && c->logged_in) {
            nw_fill(&w->seed, bytes, sizeof bytes);
            if (i % 2 == 0) nw_pipe_put(w, &c->down, bytes, 1 + nw_below(w, 300));
            else            c->down.flip = 1 + nw_below(w, 60);
        }
        (void)nw_send(a, b, 7, "through it");
        nw_run(w, 40000);
        CHECK(nw_state(b) == TAILNET_STATE_RUNNING);
    }
    nw_cut(b, 1);
    nw_run(w, 70000);
    CHECK(nw_send(a, b, 7, "whole") == TAILNET_OK);
    nw_run(w, 20000);
    CHECK(nw_got(b, "whole") == 1);
    nw_end(w);
}

/* ---- back-pressure ---- */

static void nothing_lost_nothing_twice(void)
{
    uint64_t seed;
    for (seed = 600; seed < 606; seed++) {
        nw_world *w = nw_begin(seed);
        nw_node  *a, *b;
        unsigned  i, taken = 0, refused = 0, k;
        bool      ok[400];
        char      text[1100];
        nw_pair(w, &a, &b);
        nw_run(w, 1000);
        for (i = 0; i < 400; i++) {
            unsigned got = b->packets;
            if (i % 40 == 0) a->sip = i % 80 == 0 ? 0 : 1 + nw_below(w, 700);
            if (i % 50 == 10) a->mute = true;
            if (i % 50 == 20) a->mute = false;
            memset(text, 'p', sizeof text);
            k = (unsigned)snprintf(text, 16, "number %u", i);
            text[k] = 'p';
            text[200 + nw_below(w, 800)] = '\0';
            ok[i] = nw_send(a, b, 7, text) == TAILNET_OK;
            if (ok[i]) taken++;
            else       refused++;
            nw_run(w, nw_below(w, 12));
            (void)got;
        }
        a->mute = false;
        a->sip  = 0;
        nw_run(w, 5000);
        CHECK(b->packets == taken + 1);     /* "first" came before                 */
        CHECK(refused > 0 && taken > 100);
        if (!tn_test_ok) printf("  seed %lu: %u taken, %u refused, %u came\n", (unsigned long)seed,
                                taken, refused, b->packets - 1);
        nw_end(w);
    }
}

/* ---- the caller ---- */

static unsigned reentered;

static void call_back_in(nw_node *d)
{
    tailnet_buf     b;
    tailnet_network net;
    uint8_t         byte = 0;
    size_t          room = 1;
    memset(&b, 0, sizeof b);
    memset(&net, 0, sizeof net);
    b.base = &byte;
    b.cap = b.len = 1;
    reentered++;
    CHECK(tailnet_poll(d->n) == 0);
    CHECK(tailnet_up(d->n) == TAILNET_ERR_BUSY && tailnet_down(d->n) == TAILNET_ERR_BUSY);
    CHECK(tailnet_login(d->n, NULL) == TAILNET_ERR_BUSY && tailnet_logout(d->n) == TAILNET_ERR_BUSY);
    CHECK(tailnet_ip_input(d->n, &b, 1) == TAILNET_ERR_BUSY);
    CHECK(tailnet_udp_input(d->n, &d->place, &b, 1) == TAILNET_ERR_BUSY);
    CHECK(tailnet_set_prefs(d->n, &d->desc.prefs) == TAILNET_ERR_BUSY);
    CHECK(tailnet_set_network(d->n, &net) == TAILNET_ERR_BUSY);
    CHECK(tailnet_ping(d->n, &d->place, PING_ANY) == TAILNET_ERR_BUSY);
    CHECK(tailnet_fetch_peer(d->n, "x") == TAILNET_ERR_BUSY);
    CHECK(tailnet_tcp_opened(d->n, 0x100) == TAILNET_ERR_BUSY);
    CHECK(tailnet_tcp_closed(d->n, 0x100) == TAILNET_ERR_BUSY);
    CHECK(tailnet_tcp_writable(d->n, 0x100) == TAILNET_ERR_BUSY);
    CHECK(tailnet_tcp_commit(d->n, 0x100, 1) == TAILNET_ERR_BUSY);
    CHECK(tailnet_tcp_reserve(d->n, 0x100, &room) == NULL && room == 0);
    CHECK(tailnet_tcp_input(d->n, 0x100, &byte, 1) == 0);
    tailnet_wipe(d->n);
    CHECK(nw_state(d) == TAILNET_STATE_RUNNING);
    CHECK(tailnet_peer_count(d->n) == 1);   /* questions are allowed               */
}

static void called_from_a_callback(void)
{
    nw_world *w = nw_begin(60);
    nw_node  *a, *b;
    nw_pair(w, &a, &b);
    reentered = 0;
    b->on_ip  = call_back_in;
    CHECK(nw_send(a, b, 7, "in") == TAILNET_OK);
    nw_run(w, 100);
    b->on_ip = NULL;
    CHECK(reentered == 1 && nw_got(b, "in") == 1);
    CHECK(nw_send(a, b, 7, "after") == TAILNET_OK);
    nw_run(w, 100);
    CHECK(nw_got(b, "after") == 1);
    nw_end(w);
}

static void random_fails_for_good(void)
{
    nw_world *w = nw_begin(61);
    nw_node  *a, *b;
    unsigned  outputs, dials, sent;
    nw_pair(w, &a, &b);
    a->random_fails = true;
    CHECK(nw_send(a, b, 7, "one more") == TAILNET_OK);  /* needs no random bytes   */
    nw_run(w, 50);
    CHECK(nw_got(b, "one more") == 1);
    {
        tailnet_addr ip;
        nw_my_ip(b, &ip);
        CHECK(tailnet_ping(a->n, &ip, PING_ANY) == TAILNET_ERR_RANDOM);
    }
    nw_run(w, 400000);
    CHECK(nw_state(a) == TAILNET_STATE_FAILED);
    CHECK(problem_of(a).result == TAILNET_ERR_RANDOM);
    CHECK(nw_send(a, b, 7, "no") == TAILNET_ERR_AGAIN);
    nw_run(w, 1000);
    outputs         = a->outputs;
    dials           = a->dials;
    sent            = a->udp_sent;
    a->random_fails = false;                /* it is never asked again             */
    nw_cut(a, 0);
    nw_cut(a, 1);
    nw_run(w, 3600000);
    CHECK(a->outputs == outputs && a->dials == dials && a->udp_sent == sent);
    CHECK(nw_state(a) == TAILNET_STATE_FAILED);
    nw_end(w);

    w = nw_begin(62);                       /* from the very beginning             */
    a = nw_add(w, "alpha");
    a->random_fails = true;
    CHECK(nw_make(a) == TAILNET_ERR_RANDOM && a->n == NULL);
    CHECK(tn_is_zero(a->memory.bytes, tailnet_memory_needed(&a->desc)));
    nw_end(w);
}

/* Random fails at each of its first calls. */
static void random_fails_early(void)
{
    unsigned ms;
    for (ms = 0; ms < 60; ms += 2) {
        nw_world *w = nw_begin(63);
        nw_node  *a = nw_add(w, "alpha");
        w->early    = false;
        nw_up(a);
        nw_run(w, ms);
        a->random_fails = true;
        nw_run(w, 100);
        nw_cut(a, 0);                       /* a node in peace asks for no bytes   */
        nw_run(w, 100);
        CHECK(nw_state(a) == TAILNET_STATE_FAILED);
        CHECK(nw_conn_to(a, 0) == NULL && nw_conn_to(a, 1) == NULL);
        if (!tn_test_ok) printf("  at %u ms\n", ms);
        nw_end(w);
    }
}

static void saved_state_survives(void)
{
    nw_world     *w = nw_begin(64);
    nw_node      *a, *b;
    tailnet_self  before, after;
    uint8_t       copy[TAILNET_STATE_SIZE], second[TAILNET_STATE_SIZE];
    size_t        len, second_len;
    unsigned      registers;
    nw_pair(w, &a, &b);
    CHECK(tailnet_get_self(a->n, &before));
    registers = w->registers;
    memcpy(copy, a->state, sizeof copy);
    len = a->state_len;
    nw_kill(a);
    nw_run(w, 1000);
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 5000));
    CHECK(tailnet_get_self(a->n, &after) && w->registers == registers);
    CHECK_BYTES(before.key, after.key, 32);
    CHECK(tn_ip_same(&before.ip4, &after.ip4) && before.id == after.id);
    nw_run(w, 500);
    CHECK(nw_send(a, b, 7, "after the reboot") == TAILNET_OK);
    nw_run(w, 300);                         /* the first handshake is taken at once */
    CHECK(nw_got(b, "after the reboot") == 1);

    /* the same without a clock, several times: stamps grow all the same */
    for (registers = 0; registers < 4; registers++) {
        nw_kill(a);
        a->no_clock = true;
        nw_up(a);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 5000));
        nw_run(w, 500);
        CHECK(nw_send(a, b, 7, "no clock") == TAILNET_OK);
        nw_run(w, 300);
        CHECK(nw_got(b, "no clock") == registers + 1);
    }

    /* two copies: the newer one that is intact counts */
    second_len = a->state_len;
    memcpy(second, a->state, sizeof second);
    second[second_len / 2] ^= 1;
    nw_kill(a);
    a->desc.saved_state[1].data = copy;
    a->desc.saved_state[1].size = len;
    memcpy(a->state, second, second_len);
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 5000));
    CHECK(tailnet_get_self(a->n, &after));
    CHECK_BYTES(before.key, after.key, 32);

    /* none intact: refused, and nothing of it used */
    nw_kill(a);
    copy[7] ^= 1;
    memcpy(a->state, second, second_len);
    CHECK(nw_make(a) == TAILNET_ERR_MALFORMED && a->n == NULL);
    CHECK(tn_is_zero(a->memory.bytes, tailnet_memory_needed(&a->desc)));
    nw_end(w);
}

static void state_of_another_server(void)
{
    nw_world *w = nw_begin(65);
    nw_node  *a = nw_join(w, "alpha");
    uint8_t   key[32];
    memcpy(key, a->n->node_public, 32);
    nw_kill(a);
    a->desc.control_url = "http://elsewhere.test";
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    CHECK(memcmp(key, a->n->node_public, 32) != 0 && w->registers == 2);
    nw_end(w);
}

static void down_and_up(void)
{
    nw_world *w = nw_begin(66);
    nw_node  *a, *b;
    unsigned  i, registers;
    nw_pair(w, &a, &b);
    registers = w->registers;
    for (i = 0; i < 3; i++) {
        CHECK(tailnet_down(a->n) == TAILNET_OK);
        nw_run(w, 100);
        CHECK(nw_state(a) == TAILNET_STATE_DOWN && tailnet_deadline(a->n) == UINT64_MAX);
        CHECK(nw_conn_to(a, 0) == NULL && nw_conn_to(a, 1) == NULL);
        CHECK(session_of(a, b) == NULL && nw_send(a, b, 7, "no") == TAILNET_ERR_AGAIN);
        nw_run(w, 100000);
        CHECK(tailnet_up(a->n) == TAILNET_OK);
        CHECK(nw_until(a, TAILNET_STATE_RUNNING, 5000));
        nw_run(w, 1000);
        CHECK(nw_send(a, b, 7, "up") == TAILNET_OK);
        nw_run(w, 6000);
        CHECK(nw_got(b, "up") == i + 1);
    }
    CHECK(w->registers == registers);
    nw_end(w);
}

static void no_network_no_word(void)
{
    nw_world       *w = nw_begin(73);
    nw_node        *a, *b;
    tailnet_network net;
    unsigned        outputs, dials, sent;
    nw_pair(w, &a, &b);
    memset(&net, 0, sizeof net);
    net.down = true;
    CHECK(tailnet_set_network(a->n, &net) == TAILNET_OK);
    nw_run(w, 1000);
    outputs = a->outputs;
    dials   = a->dials;
    sent    = a->udp_sent;
    (void)nw_send(a, b, 7, "nobody hears");
    nw_run(w, 900000);
    CHECK(a->outputs == outputs && a->dials == dials && a->udp_sent == sent);
    CHECK(nw_got(b, "nobody hears") == 0);
    net.down = false;
    CHECK(tailnet_set_network(a->n, &net) == TAILNET_OK);
    nw_run(w, 8000);
    CHECK(nw_send(a, b, 7, "back") == TAILNET_OK);
    nw_run(w, 6000);
    CHECK(nw_got(b, "back") == 1 && nw_state(a) == TAILNET_STATE_RUNNING);
    nw_end(w);
}

static bool memory_has(const nw_node *d, const void *secret, size_t len)
{
    size_t i;
    for (i = 0; i + len <= sizeof d->memory.bytes; i++)
        if (memcmp(d->memory.bytes + i, secret, len) == 0) return true;
    return false;
}

static void wipe_leaves_nothing(void)
{
    nw_world *w = nw_begin(67);
    nw_node  *a, *b;
    uint8_t   key[32];
    unsigned  i;
    nw_pair(w, &a, &b);
    memcpy(key, session_of(a, b)->wg.key[session_of(a, b)->wg.current].tx_key, 32);
    CHECK(memory_has(a, a->n->keys.node, 16));
    if (!tn_is_zero(key, 32)) CHECK(memory_has(a, key, 16));
    say_removed(w, a, b);                   /* the keys of a session go with it    */
    nw_run(w, 50);
    if (!tn_is_zero(key, 32)) CHECK(!memory_has(a, key, 32));
    tailnet_wipe(a->n);
    CHECK(tn_is_zero(a->memory.bytes, tailnet_memory_needed(&a->desc)));
    for (i = 0; i < 8; i++) CHECK(a->conns[i] == NULL);     /* each was closed     */
    a->n = NULL;
    nw_run(w, 1000);
    nw_end(w);

    w = nw_begin(68);                       /* down: no session key, no noise key  */
    nw_pair(w, &a, &b);
    memcpy(key, a->n->ctl.nz.tx_key, 32);
    CHECK(memory_has(a, key, 32));
    CHECK(tailnet_down(a->n) == TAILNET_OK);
    nw_run(w, 100);
    CHECK(!memory_has(a, key, 32));
    nw_end(w);
}

static void work_of_a_poll_is_bounded(void)
{
    uint64_t seed;
    for (seed = 700; seed < 710; seed++) {
        nw_world *w = nw_begin(seed);
        nw_node  *a, *b;
        nw_pair(w, &a, &b);
        CHECK(a->most_dh <= 7 && b->most_dh <= 7);
        if (!tn_test_ok) printf("  %u and %u in one poll\n", a->most_dh, b->most_dh);
        nw_end(w);
    }
}

static void deadlines_are_honest(void)
{
    nw_world *w = nw_begin(69);
    nw_node  *a, *b;
    unsigned  polls;
    nw_pair(w, &a, &b);
    CHECK(a->most_idle <= 3 && b->most_idle <= 3);
    if (!tn_test_ok) printf("  idle %u %u\n", a->most_idle, b->most_idle);
    nw_run(w, 600000);
    polls = a->polls;
    nw_run(w, 3600000);                     /* an idle hour: keep-alives and little else */
    CHECK(a->polls - polls < 1200);
    if (!tn_test_ok) printf("  %u polls in an idle hour\n", a->polls - polls);
    CHECK(tailnet_wait_ms(a->n, 7) <= 7);
    nw_end(w);
}

static void same_seed_same_world(void)
{
    uint64_t hash[2];
    unsigned i;
    for (i = 0; i < 2; i++) {
        nw_world *w = nw_begin(4711);
        nw_node  *a, *b;
        nw_pair(w, &a, &b);
        nw_cut(a, 1);
        nw_run(w, 300000);
        CHECK(nw_send(b, a, 7, "end") == TAILNET_OK);
        nw_run(w, 3000);
        hash[i] = w->hash;
        nw_end(w);
    }
    CHECK(hash[0] == hash[1]);
}

static unsigned crypts;

static void crypt_by_caller(void *user, tailnet_crypt *work, size_t count)
{
    size_t i;
    (void)user;
    crypts += (unsigned)count;
    for (i = count; i-- > 0;) {             /* any order will do                   */
        uint8_t nonce[12];
        tn_wr   n;
        tn_wr_over(&n, nonce, sizeof nonce);
        tn_wr_u32le(&n, 0);
        tn_wr_u64le(&n, work[i].counter);
        if (work[i].open)
            work[i].ok = tn_cr_aead_open(work[i].key, nonce, NULL, 0, work[i].data, work[i].len,
                                         work[i].data + work[i].len);
        else
            tn_cr_aead_seal(work[i].key, nonce, NULL, 0, work[i].data, work[i].len,
                            work[i].data + work[i].len);
    }
}

static void symmetric_work_of_the_caller(void)
{
    nw_world *w = nw_begin(70);
    nw_node  *a = nw_add(w, "alpha"), *b;
    crypts = 0;
    a->desc.io.crypt = crypt_by_caller;
    nw_up(a);
    CHECK(nw_until(a, TAILNET_STATE_RUNNING, 10000));
    b = nw_join(w, "beta");
    nw_run(w, 1000);
    CHECK(nw_send(a, b, 7, "there") == TAILNET_OK);
    nw_run(w, 500);
    CHECK(nw_send(b, a, 7, "back") == TAILNET_OK);
    nw_run(w, 500);
    CHECK(nw_got(b, "there") == 1 && nw_got(a, "back") == 1 && crypts >= 2);
    nw_end(w);
}

static void arguments(void)
{
    nw_world    *w = nw_begin(71);
    nw_node     *a = nw_join(w, "alpha");
    tailnet_desc d = a->desc;
    tailnet_node *n;
    tailnet_buf   b;
    uint8_t       byte[64];
    tailnet_addr  ip;
    size_t        needed = tailnet_memory_needed(&d);
    memset(&b, 0, sizeof b);
    memset(&ip, 0, sizeof ip);
    CHECK(tailnet_init(NULL, &d) == TAILNET_ERR_ARGUMENT);
    CHECK(tailnet_init(&n, NULL) == TAILNET_ERR_ARGUMENT && n == NULL);
    d.memory      = w->nodes[1].memory.bytes;
    d.memory_size = needed - 1;
    CHECK(tailnet_init(&n, &d) == TAILNET_ERR_MEMORY && n == NULL);
    d.memory_size = needed;
    d.memory      = w->nodes[1].memory.bytes + 1;
    CHECK(tailnet_init(&n, &d) == TAILNET_ERR_ARGUMENT);
    d.memory    = w->nodes[1].memory.bytes;
    d.max_links = 1;
    CHECK(tailnet_init(&n, &d) == TAILNET_ERR_ARGUMENT);
    d.max_links          = 2;
    d.capability_version = 60;
    CHECK(tailnet_init(&n, &d) == TAILNET_ERR_ARGUMENT);
    d.capability_version = 0;
    d.mtu                = 9000;
    CHECK(tailnet_init(&n, &d) == TAILNET_ERR_ARGUMENT);
    d.mtu          = 0;
    d.io.tcp_close = NULL;
    CHECK(tailnet_init(&n, &d) == TAILNET_ERR_ARGUMENT && n == NULL);
    CHECK(tailnet_ip_input(a->n, NULL, 1) == TAILNET_ERR_ARGUMENT);
    CHECK(tailnet_ip_input(a->n, &b, 0) == TAILNET_ERR_ARGUMENT);
    b.base = byte;
    b.cap  = sizeof byte;
    b.off  = 60;
    b.len  = 5;
    CHECK(tailnet_ip_input(a->n, &b, 1) == TAILNET_ERR_ARGUMENT);
    b.off = 0xffffffffu;
    CHECK(tailnet_ip_input(a->n, &b, 1) == TAILNET_ERR_ARGUMENT);
    b.off = 0;
    CHECK(tailnet_udp_input(a->n, &ip, &b, 1) == TAILNET_ERR_ARGUMENT);     /* family 0 */
    CHECK(tailnet_tcp_opened(a->n, 0x12345600u) == TAILNET_ERR_STALE);
    CHECK(tailnet_tcp_closed(a->n, 0x12345600u) == TAILNET_ERR_STALE);
    CHECK(tailnet_tcp_writable(a->n, 255) == TAILNET_ERR_STALE);
    CHECK(tailnet_tcp_input(a->n, 0x12345601u, byte, 4) == 0);
    CHECK(tailnet_resolved(a->n, 1, NULL, 1) == TAILNET_ERR_ARGUMENT);
    CHECK(tailnet_poll(NULL) == 0 && tailnet_deadline(NULL) == UINT64_MAX);
    CHECK(tailnet_up(NULL) == TAILNET_ERR_ARGUMENT && tailnet_get_state(NULL) == TAILNET_STATE_FAILED);
    tailnet_wipe(NULL);
    CHECK(tailnet_export_state(a->n, byte, sizeof byte) == TN_KEY_STATE_LEN);
    nw_run(w, 1000);
    CHECK(nw_state(a) == TAILNET_STATE_RUNNING);
    nw_end(w);
}

static void peers_as_the_caller_sees_them(void)
{
    nw_world    *w = nw_begin(72);
    nw_node     *a, *b;
    tailnet_peer p;
    tailnet_addr ip;
    size_t       at = 99;
    nw_pair(w, &a, &b);
    CHECK(tailnet_peer_count(a->n) == 1 && tailnet_get_peer(a->n, 0, &p));
    CHECK(!tailnet_get_peer(a->n, 1, &p) || true);
    CHECK(tailnet_get_peer(a->n, 0, &p) && strcmp(p.name, "beta") == 0);
    CHECK(strcmp(p.domain, "tail.test") == 0 && p.path == TAILNET_PATH_RELAY && p.region == 1);
    CHECK(p.handshake_age_s < 10 && p.rx_bytes != 0 && p.tx_bytes != 0);
    CHECK(tailnet_find_peer(a->n, "beta", &at) && at == 0);
    at = 99;
    CHECK(tailnet_find_peer(a->n, "BETA.tail.test.", &at) && at == 0);
    CHECK(tailnet_find_peer(a->n, "100.64.0.2", &at) && !tailnet_find_peer(a->n, "100.64.0.9", &at));
    nw_ip4(2, &ip);
    CHECK(tailnet_find_peer_by_ip(a->n, &ip, &at) && at == 0);
    nw_end(w);
}

/* Everything at once, for a while: lost connections, stalls, losses, restarts.
 * In the end all must talk again. */
static void storms(void)
{
    uint64_t seed;
    for (seed = 800; seed < 812; seed++) {
        nw_world *w = nw_begin(seed);
        nw_node  *n[3];
        unsigned  i, k;
        for (i = 0; i < 3; i++) {           /* homes will differ: room for a guest */
            n[i] = nw_add(w, i == 0 ? "alpha" : i == 1 ? "beta" : "gamma");
            n[i]->desc.max_links = 3;
            nw_up(n[i]);
        }
        nw_run(w, 5000);
        w->tap = lossy;
        for (i = 0; i < 60; i++) {
            nw_node *d = n[nw_below(w, 3)], *e = n[nw_below(w, 3)];
            if (d != e) (void)nw_send(d, e, 7, "storm");
            switch (nw_below(w, 12)) {
            case 0: nw_cut(d, 0); break;
            case 1: nw_cut(d, 1); break;
            case 2: nw_freeze(d, 0); break;
            case 3: nw_freeze(d, 1); break;
            case 4: w->refuse = !w->refuse; break;
            case 5: d->mute = !d->mute; break;
            case 6: if (nw_conn_to(d, 1) != NULL) nw_conn_to(d, 1)->down.flip = 1 + nw_below(w, 100); break;
            case 7: if (nw_conn_to(d, 0) != NULL) nw_conn_to(d, 0)->down.flip = 1 + nw_below(w, 100); break;
            case 8: (void)tailnet_down(d->n); break;
            case 9: (void)tailnet_up(d->n); break;
            case 10: nw_kill(d); nw_up(d); break;
            default: d->sip = nw_below(w, 100); break;
            }
            nw_run(w, nw_below(w, 10000));
        }
        w->tap    = NULL;
        w->refuse = false;
        for (i = 0; i < 3; i++) {
            n[i]->mute = false;
            n[i]->sip  = 0;
            CHECK(tailnet_up(n[i]->n) == TAILNET_OK);
        }
        nw_run(w, 400000);
        for (i = 0; i < 3; i++)
            for (k = 0; k < 3; k++) {
                if (i == k) continue;
                CHECK(nw_send(n[i], n[k], 7, "calm") == TAILNET_OK);
                nw_run(w, 6000);
            }
        for (i = 0; i < 3; i++) {
            CHECK(nw_state(n[i]) == TAILNET_STATE_RUNNING);
            CHECK(nw_got(n[i], "calm") == 2);
        }
        if (!tn_test_ok)
            printf("  seed %lu: %u %u %u\n", (unsigned long)seed, nw_got(n[0], "calm"),
                   nw_got(n[1], "calm"), nw_got(n[2], "calm"));
        nw_end(w);
    }
}

static void paths(void)
{
    TEST(direct_or_not);
    TEST(direct_in_time);
    TEST(call_overtakes_handshake);
    TEST(direct_without_candidates);
    TEST(direct_way_breaks_and_returns);
    TEST(idle_paths_are_silent);
    TEST(network_changes);
    TEST(pings_find_the_direct_way);
    TEST(strangers_get_no_pong);
    TEST(replayed_pings);
    TEST(direct_by_ipv6);
    TEST(direct_in_one_lan);
    TEST(home_is_the_nearest);
    TEST(netinfo_to_the_letter);
    TEST(metered_hour);
    TEST(path_deadlines_are_honest);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    TEST(traffic_both_ways);
    TEST(first_packet_waits_for_the_handshake);
    TEST(staged_packets_are_bounded);
    TEST(runs_of_packets);
    TEST(eviction_inside_a_run);
    TEST(pings_by_path_and_tunnel);
    if (TAILNET_DIRECT) TEST(disco_key_told_inside);
    TEST(control_is_gone_for_an_hour);
    TEST(peer_is_removed);
    TEST(peer_is_removed_early);
    TEST(peer_expires);
    TEST(peer_gets_another_key);
    TEST(we_expire);
    TEST(we_expire_without_a_clock);
    TEST(machine_waits_for_approval);
    TEST(policy_bites_at_once);
    TEST(grant_goes_one_way);
    TEST(nothing_before_the_first_filter);
    TEST(jailed_and_shields);
    TEST(masquerade);
    TEST(spoofed_sources);
    TEST(replayed_datagrams);
    TEST(every_byte_changed);
    TEST(strangers_on_the_relay);
    TEST(huge_relay_packets);
    TEST(floods_of_initiations);
    TEST(floods_by_udp);
    TEST(handshake_under_a_false_key);
    TEST(more_peers_than_sessions);
    TEST(more_peers_than_places);
    TEST(unknown_peer_is_fetched);
    TEST(session_lives_and_ends);
    TEST(both_begin_at_once);
    TEST(losses);
    if (TAILNET_DIRECT) TEST(roaming_without_disco);
    TEST(relay_only_uses_no_udp);
    if (TAILNET_DIRECT) paths();
    TEST(relay_restarts);
    TEST(relay_is_cut_in_silence);
    TEST(relay_peer_is_gone_and_back);
    TEST(peers_of_another_home);
    TEST(one_link_and_another_home);
    TEST(home_moves);
    TEST(relay_sends_rubbish);
    TEST(nothing_lost_nothing_twice);
    TEST(called_from_a_callback);
    TEST(random_fails_for_good);
    TEST(random_fails_early);
    TEST(saved_state_survives);
    TEST(state_of_another_server);
    TEST(down_and_up);
    TEST(no_network_no_word);
    TEST(wipe_leaves_nothing);
    TEST(work_of_a_poll_is_bounded);
    TEST(deadlines_are_honest);
    TEST(same_seed_same_world);
    TEST(symmetric_work_of_the_caller);
    TEST(arguments);
    TEST(peers_as_the_caller_sees_them);
    TEST(storms);
    return tn_test_end();
}
