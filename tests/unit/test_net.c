#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

/* A node's view with a world around it: relays at some distance, a NAT, a clock. */
enum { REGIONS = 8, RELAYS = 12, FLIGHT = 64 };

typedef struct flight {
    uint64_t at;                            /* arrives; 0: free                   */
    uint8_t  data[64];
    size_t   len;
} flight;

typedef struct world {
    tn_net        n;
    tn_net_world  x;
    tn_map        map;
    tn_map_region relays[RELAYS];
    tn_net_region memory[REGIONS];
    uint64_t      now;
    uint32_t      ms4[REGIONS + 1], ms6[REGIONS + 1];   /* by region; 0: no answer */
    unsigned      lose;                     /* the first n tries of each set      */
    bool          hard, manual_dns, no_dns;
    uint16_t      nat_port;
    unsigned      sent, sent4, sent6, asked, rounds;
    unsigned      sent_to[REGIONS + 1][2];
    uint64_t      times[64];                /* when the first were sent           */
    uint32_t      query;
    flight        air[FLIGHT];
} world;

static world    w0;
static uint64_t t0 = 1000000;
static const uint8_t secret[16] = { 7, 1, 2 };

static void ip4(tailnet_addr *a, unsigned v, unsigned port)
{
    memset(a, 0, sizeof *a);
    a->family = 4;
    a->port   = (uint16_t)port;
    tn_put_u32be(a->ip, (uint32_t)v);
}

static void ip6(tailnet_addr *a, unsigned first, unsigned last, unsigned port)
{
    memset(a, 0, sizeof *a);
    a->family = 6;
    a->port   = (uint16_t)port;
    a->ip[0]  = (uint8_t)(first >> 8);
    a->ip[1]  = (uint8_t)first;
    a->ip[15] = (uint8_t)last;
}

/* A relay of the map: 192.0.2.<region * 10 + nth>, 2001:...::<the same>. */
static tn_map_region *relay(world *w, unsigned slot, unsigned id, unsigned nth)
{
    tn_map_region *r = &w->relays[slot];
    memset(r, 0, sizeof *r);
    snprintf(r->text, sizeof r->text, "r%u-%u.example", id, nth);
    tn_put_u32be(r->ip, (uint32_t)(0xc0000200u + id * 10 + nth));
    r->ip[4]     = 0x20;
    r->ip[5]     = 0x01;
    r->ip[19]    = (uint8_t)(id * 10 + nth);
    r->id        = (uint16_t)id;
    r->port      = 443;
    r->stun_port = 3478;
    r->nth       = (uint8_t)nth;
    r->flags     = TN_MAP_REGION_IP4 | TN_MAP_REGION_IP6;
    return r;
}

static void own(world *w, bool v4, bool v6, bool fixed, bool changed)
{
    tailnet_addr    a[2];
    tailnet_network net;
    memset(&net, 0, sizeof net);
    net.addrs      = a;
    net.port_fixed = fixed;
    net.changed    = changed;
    if (v4) ip4(&a[net.addr_count++], 0x0a000005, 41641);
    if (v6) ip6(&a[net.addr_count++], 0x2001, 99, 41642);
    tn_net_network(&w->n, &net, w->now);
}

static void begin(world *w, unsigned regions)
{
    unsigned i;
    memset(w, 0, sizeof *w);
    w->now                = t0;
    w->map.regions        = w->relays;
    w->map.limits.regions = RELAYS;
    w->x.map              = &w->map;
    w->nat_port           = 5000;
    for (i = 1; i <= regions; i++) {
        (void)relay(w, i - 1, i, 0);
        w->ms4[i] = 20 * i;
    }
    tn_net_init(&w->n, REGIONS, w->memory, secret);
    own(w, true, false, false, false);
}

/* An answer to that request, as the server at that address sees the sender. */
static size_t answer(const world *w, uint8_t *out, const uint8_t *request, const tailnet_addr *to)
{
    tailnet_addr seen;
    uint8_t      id[12];
    tn_wr        t;
    CHECK(tn_stun_parse_request(request, TN_STUN_REQUEST_LEN, id));
    if (to->family == 4) ip4(&seen, 0xcb007109, w->hard ? w->nat_port + to->ip[3] : w->nat_port);
    else ip6(&seen, 0x2001, 99, 41642);
    tn_wr_over(&t, out, 64);
    tn_stun_wr_response(&t, id, &seen);
    return tn_wr_len(&t);
}

static void serve(world *w, const tn_net_wish *wish)
{
    unsigned six = wish->to.family == 6, region, ms, i;
    region = (six ? wish->to.ip[15] : wish->to.ip[3]) / 10u;
    CHECK(wish->to.port == 3478 && region >= 1 && region <= REGIONS);
    if (w->sent < 64) w->times[w->sent] = w->now;
    w->sent++;
    if (six) w->sent6++;
    else w->sent4++;
    ms = six ? w->ms6[region] : w->ms4[region];
    if (w->sent_to[region][six]++ < w->lose || ms == 0) return;
    for (i = 0; i < FLIGHT && w->air[i].at != 0; i++) {}
    CHECK(i < FLIGHT);
    w->air[i].at  = w->now + ms;
    w->air[i].len = answer(w, w->air[i].data, wish->data, &wish->to);
}

static void lookup(world *w, const tn_net_wish *wish)
{
    tailnet_addr a[2];
    unsigned     id = (unsigned)(wish->host[1] - '0');
    w->asked++;
    w->query = wish->query;
    if (w->manual_dns) return;
    ip4(&a[0], 0xc0000200u + id * 10, 0);
    ip6(&a[1], 0x2001, id * 10, 0);
    CHECK(tn_net_resolved(&w->n, wish->query, a, w->no_dns ? 0 : 2));
    CHECK(!tn_net_resolved(&w->n, wish->query, a, 2));
}

static void turn(world *w)
{
    tn_net_wish wish;
    unsigned    i, n = 0;
    for (i = 0; i < FLIGHT; i++) {
        if (w->air[i].at == 0 || w->air[i].at > w->now) continue;
        (void)tn_net_input(&w->n, w->air[i].data, w->air[i].len, w->now);
        w->air[i].at = 0;
    }
    while (tn_net_step(&w->n, &w->x, w->now, (uint32_t)tn_test_random(), &wish)) {
        CHECK(++n < 100);
        if (wish.kind == TN_NET_SEND) serve(w, &wish);
        else lookup(w, &wish);
    }
}

/* Goes from deadline to deadline (and arrival to arrival) until then: no deadline may be in
 * the past after its own turn. */
static void run(world *w, uint64_t ms)
{
    uint64_t end = w->now + ms, at;
    unsigned i, stuck = 0;
    for (;;) {
        turn(w);
        w->rounds += (tn_net_news(&w->n) & TN_NET_NEWS_REPORT) != 0;
        at = tn_net_deadline(&w->n, &w->x);
        if (at <= w->now) CHECK(++stuck < 3);
        else stuck = 0;
        if (at < w->now) at = w->now;
        for (i = 0; i < FLIGHT; i++)
            if (w->air[i].at != 0 && w->air[i].at < at) at = w->air[i].at;
        if (at > end || stuck >= 3) break;
        w->now = at;
    }
    w->now = end;
}

static void round_now(world *w, bool full)
{
    unsigned before = w->rounds;
    memset(w->sent_to, 0, sizeof w->sent_to);
    w->sent = w->sent4 = w->sent6 = 0;
    tn_net_trigger(&w->n, full);
    run(w, 3100);
    CHECK(w->rounds == before + 1);
}

static bool has(world *w, const tailnet_addr *a, uint8_t type)
{
    tailnet_addr out[TAILNET_MAX_CANDIDATES];
    uint8_t      types[TAILNET_MAX_CANDIDATES];
    size_t       n = tn_net_list(&w->n, out, types, TAILNET_MAX_CANDIDATES), i;
    CHECK(n <= TAILNET_MAX_CANDIDATES);
    for (i = 0; i < n; i++)
        if (tn_addr_same(&out[i], a)) return types[i] == type;
    return false;
}

static size_t endpoints(world *w)
{
    tailnet_addr out[TAILNET_MAX_CANDIDATES];
    uint8_t      types[TAILNET_MAX_CANDIDATES];
    return tn_net_list(&w->n, out, types, TAILNET_MAX_CANDIDATES);
}

/* ---- rounds ---- */

static void test_full_round(void)
{
    world       *w = &w0;
    tailnet_addr seen, local;
    begin(w, 4);
    CHECK(tn_net_deadline(&w->n, &w->x) == 0 && !tn_net_fresh(&w->n, w->now));
    run(w, 3100);
    CHECK(w->rounds == 1 && w->n.udp && w->n.ip4 && !w->n.ip6 && w->n.varies == 1);
    CHECK(w->sent == 4 && w->sent6 == 0);       /* one each, a gap per set */
    CHECK(w->times[1] == w->times[0] + 10 && w->times[3] == w->times[0] + 30);
    CHECK(w->memory[0].id == 1 && w->memory[0].ms[0] == 20 && w->memory[2].ms[0] == 60);
    CHECK(w->n.last_ms < t0 + 200 && tn_net_fresh(&w->n, w->now));
    ip4(&seen, 0xcb007109, 5000);
    ip4(&local, 0x0a000005, 41641);
    CHECK(endpoints(w) == 2 && has(w, &seen, 2) && has(w, &local, 1));
    CHECK(tn_net_deadline(&w->n, &w->x) == TN_NEVER);
    run(w, 600000);
    CHECK(w->rounds == 1 && w->sent == 4);      /* nobody talks: nothing is sent */
    CHECK(!tn_net_fresh(&w->n, w->n.last_ms + 27001) && tn_net_fresh(&w->n, w->n.last_ms + 27000));
}

static void test_loss(void)
{
    world *w = &w0;
    begin(w, 3);
    w->lose = 2;
    run(w, 3100);
    CHECK(w->n.udp && w->sent == 9 && w->memory[2].ms[0] == 60 && w->memory[0].ms[0] == 20);
    CHECK(w->times[2] == w->times[0] + 20 && w->times[3] == w->times[0] + 100);

    w->lose = 3;                            /* none of the full round gets through */
    round_now(w, true);
    CHECK(!w->n.udp && w->sent == 9 && w->memory[0].ms[0] == 0);
    w->lose = 0;                            /* what was known comes back */
    round_now(w, false);
    CHECK(w->n.udp && w->memory[0].ms[0] == 20);
}

static void test_no_udp(void)
{
    world *w = &w0;
    begin(w, 3);
    memset(w->ms4, 0, sizeof w->ms4);
    run(w, 5000);
    CHECK(w->rounds == 1 && !w->n.udp && w->n.varies == 0 && w->sent == 9 && endpoints(w) == 1);
    CHECK(w->n.last_ms <= t0 + 3000 && tn_net_fresh(&w->n, w->n.last_ms));
    w->x.home = 2;
    CHECK(tn_net_prefer(&w->n, &w->x, w->now) == 0);
    w->x.heard_ms = w->now - 100000;
    CHECK(tn_net_prefer(&w->n, &w->x, w->now) == 2);
}

/* A map without a relay, or with none that may be measured: a report that says nothing. */
static void test_no_relay(void)
{
    world *w = &w0;
    begin(w, 0);
    run(w, 100);
    CHECK(w->rounds == 1 && !w->n.udp && w->sent == 0 && w->n.last_ms == t0);
    begin(w, 2);
    w->relays[0].flags |= TN_MAP_REGION_NOT_HOME;
    w->relays[1].stun_port = 0;
    run(w, 100);
    CHECK(w->rounds == 1 && w->sent == 0 && w->memory[0].id == 2);
    begin(w, 1);
    w->relays[0].flags |= TN_MAP_REGION_NO4;
    run(w, 100);
    CHECK(w->rounds == 1 && w->sent == 0);
}

static void test_only_ip6(void)
{
    world       *w = &w0;
    tailnet_addr seen;
    begin(w, 3);
    own(w, false, true, false, false);
    memcpy(w->ms6, w->ms4, sizeof w->ms6);
    run(w, 3100);
    CHECK(w->n.udp && w->n.ip6 && !w->n.ip4 && w->sent4 == 0 && w->sent6 == 3);
    CHECK(w->n.varies == 0 && w->memory[1].ms[1] == 40 && w->memory[1].ms[0] == 0);
    ip6(&seen, 0x2001, 99, 41642);
    CHECK(endpoints(w) == 1 && has(w, &seen, 2));       /* own and STUN are one */
    w->x.home = 3;
    round_now(w, false);
    CHECK(w->sent6 == 3 && w->sent4 == 0);      /* the third: IPv6 too, only it works */
}

static void test_both_families(void)
{
    world *w = &w0;
    begin(w, 3);
    own(w, true, true, false, false);
    w->ms6[1] = w->ms6[2] = w->ms6[3] = 15;
    run(w, 3100);
    CHECK(w->n.ip6 && w->n.ip4 && w->memory[0].ms[1] == 15 && w->memory[0].ms[0] == 20);
    w->x.home = 3;                          /* the nearest two and home are asked */
    round_now(w, false);
    CHECK(w->n.ip4 && w->n.ip6 && w->sent <= 12 && w->sent >= 6);

    memset(w->ms6, 0, sizeof w->ms6);       /* IPv6 breaks: it costs no three seconds */
    round_now(w, false);
    CHECK(!w->n.ip6 && w->n.ip4 && w->n.last_ms - w->n.start_ms < 2500);
    round_now(w, false);
    CHECK(!w->n.ip6 && w->n.last_ms - w->n.start_ms <= 1000);
}

/* Home four tries, the two nearest two, the third one; by 1.2 times the latency. */
static void test_part(void)
{
    world   *w = &w0;
    unsigned i;
    begin(w, 6);
    run(w, 3100);
    w->x.home = 5;
    memset(w->ms4, 0, sizeof w->ms4);
    round_now(w, false);
    CHECK(w->sent_to[1][0] == 2 && w->sent_to[2][0] == 2 && w->sent_to[3][0] == 1);
    CHECK(w->sent_to[5][0] == 4 && w->sent_to[4][0] == 0 && w->sent == 9);
    for (i = 0; i < 9; i++) CHECK(w->times[i] - w->n.start_ms <= 3 * (120 + 50));
    CHECK(w->times[0] == w->n.start_ms && w->times[3] == w->n.start_ms);
    CHECK(w->times[4] == w->n.start_ms + 24);   /* region 1: 20 ms */
    CHECK(w->times[8] == w->n.start_ms + 3 * (120 + 50));       /* home: 100 ms */
}

/* Three regions are enough: the rest get the largest latency once more, or twice. */
static void test_enough(void)
{
    world *w = &w0;
    begin(w, 8);
    w->ms4[4] = w->ms4[5] = w->ms4[6] = w->ms4[7] = 0;
    w->ms4[8] = 1500;
    run(w, 3100);
    CHECK(w->rounds == 1 && w->n.last_ms == w->n.start_ms + 80 + 120);
    CHECK(w->memory[7].ms[0] == 0 && w->memory[2].ms[0] == 60);
    w->x.home = 8;
    round_now(w, false);
    CHECK(w->n.last_ms == w->n.start_ms + 60 + 60);

    begin(w, 8);                            /* the nearest is asked last */
    w->ms4[1] = w->ms4[2] = w->ms4[3] = 12;
    w->ms4[8] = 3;
    run(w, 3100);
    CHECK(w->memory[7].ms[0] == 3 && tn_net_prefer(&w->n, &w->x, w->now) == 8);
}

/* Relays of a region take turns; those without STUN or without that family do not count. */
static void test_turns(void)
{
    world *w = &w0;
    begin(w, 0);
    (void)relay(w, 0, 1, 0);
    (void)relay(w, 1, 1, 1);
    (void)relay(w, 2, 1, 2);
    w->relays[1].stun_port = 0;
    w->relays[2].port      = 0;             /* STUN only */
    w->ms4[1]              = 30;
    w->lose                = 2;
    run(w, 3100);
    CHECK(w->sent == 3 && w->n.udp && w->memory[0].ms[0] == 30);
}

static void test_one_region(void)
{
    world *w = &w0;
    begin(w, 1);
    w->ms4[1] = 0;
    w->ms4[1] = 7;
    run(w, 3100);
    CHECK(w->n.last_ms == w->n.start_ms + 7 && w->n.varies == 0 && w->n.udp);
    w->ms4[1] = 2500;                       /* later than a try is waited for, but in time */
    round_now(w, false);
    CHECK(!w->n.udp);
    w->ms4[1] = 500;
    round_now(w, false);
    CHECK(w->n.udp && w->memory[0].ms[0] == 500);
}

/* ---- when ---- */

static void test_periodic(void)
{
    world   *w = &w0;
    uint64_t last;
    unsigned i, least = 99999, most = 0;
    begin(w, 3);
    run(w, 3100);
    for (i = 0; i < 200; i++) {
        last           = w->n.last_ms;
        w->x.active_ms = w->now + 45000;
        run(w, tn_net_deadline(&w->n, &w->x) - w->now);
        CHECK(w->n.busy && w->n.start_ms >= last + 20000 && w->n.start_ms <= last + 26000);
        if (w->n.start_ms - last < least) least = (unsigned)(w->n.start_ms - last);
        if (w->n.start_ms - last > most) most = (unsigned)(w->n.start_ms - last);
        run(w, 3000);
    }
    CHECK(least < 20200 && most > 25800 && w->rounds == 201);
    last           = w->n.last_ms;          /* over before the next is due */
    w->x.active_ms = last + 19999;
    CHECK(tn_net_deadline(&w->n, &w->x) == TN_NEVER);
    run(w, 100000);
    CHECK(w->rounds == 201);
    w->x.active_ms = w->now + 45000;        /* traffic again: at once */
    CHECK(tn_net_deadline(&w->n, &w->x) <= w->now);
    run(w, 3000);
    CHECK(w->rounds == 202);
    w->x.active_ms = w->n.last_ms + 26001;  /* polled too late: no busy loop */
    w->now += 60000;
    turn(w);
    CHECK(!w->n.busy && tn_net_deadline(&w->n, &w->x) == TN_NEVER);
    w->x.active_ms = w->now + 1;
    CHECK(tn_net_deadline(&w->n, &w->x) <= w->now);
}

static void test_full_again(void)
{
    world *w = &w0;
    begin(w, 5);
    run(w, 3100);
    run(w, 280000);
    round_now(w, false);
    CHECK(!w->n.full && w->sent == 3);
    run(w, 20000);
    round_now(w, false);                    /* more than five minutes */
    CHECK(w->n.full && w->sent == 5);
    round_now(w, false);
    CHECK(!w->n.full);
}

static void test_trigger_during(void)
{
    world *w = &w0;
    begin(w, 3);
    turn(w);
    CHECK(w->n.busy);
    tn_net_trigger(&w->n, false);
    tn_net_trigger(&w->n, true);
    tn_net_trigger(&w->n, false);
    w->now += 10;
    turn(w);
    CHECK(w->n.start_ms == t0 && w->n.pending != 0);
    run(w, 6000);
    CHECK(w->rounds == 2 && w->n.full && w->n.pending == 0);
}

static void test_silent(void)
{
    world *w = &w0;
    begin(w, 3);
    w->x.silent = true;
    CHECK(tn_net_deadline(&w->n, &w->x) == TN_NEVER);
    run(w, 10000);
    CHECK(w->sent == 0 && w->rounds == 0 && endpoints(w) == 0);
    w->x.silent = false;
    CHECK(tn_net_deadline(&w->n, &w->x) == 0);
    turn(w);
    CHECK(w->n.busy && w->sent == 1 && endpoints(w) == 1);
    w->x.silent = true;                     /* in the middle of a round */
    CHECK(tn_net_deadline(&w->n, &w->x) == 0);
    run(w, 10000);
    CHECK(w->sent == 1 && !w->n.udp && endpoints(w) == 0 && w->rounds == 0 && !w->n.busy);
    w->x.silent = false;
    run(w, 3100);
    CHECK(w->n.udp && w->rounds == 1 && endpoints(w) == 2);
}

/* ---- addresses ---- */

static void test_hard_nat(void)
{
    world       *w = &w0;
    tailnet_addr a;
    begin(w, 3);
    w->hard = true;
    own(w, true, false, true, false);
    run(w, 3100);
    CHECK(w->n.varies == 2 && tn_net_varies(&w->n));
    ip4(&a, 0xcb007109, 5010);
    CHECK(has(w, &a, 2));                   /* the first one only, the others came once */
    ip4(&a, 0xcb007109, 41641);
    CHECK(has(w, &a, 4) && endpoints(w) == 3);

    begin(w, 3);                            /* no fixed port: no guess */
    w->hard = true;
    run(w, 3100);
    CHECK(w->n.varies == 2 && endpoints(w) == 2);

    w->ms4[2] = w->ms4[3] = 0;              /* one answer says nothing: what we know stays */
    round_now(w, true);
    CHECK(w->n.varies == 2);
    w->hard   = false;
    w->ms4[2] = 40;
    round_now(w, true);
    CHECK(w->n.varies == 1);
}

/* A second mapping that two servers report is told too. */
static void test_counters(void)
{
    world       *w = &w0;
    tailnet_addr a, b;
    begin(w, 4);
    turn(w);                                /* region 1 will say 5000, the others 6000 */
    w->nat_port = 6000;
    run(w, 3100);
    ip4(&a, 0xcb007109, 5000);
    ip4(&b, 0xcb007109, 6000);
    CHECK(has(w, &a, 2) && has(w, &b, 2) && w->n.varies == 2);
}

static void test_cache(void)
{
    world       *w = &w0;
    tailnet_addr a, b;
    uint64_t     seen;
    begin(w, 3);
    run(w, 3100);
    ip4(&a, 0xcb007109, 5000);
    ip4(&b, 0xcb007109, 6000);
    CHECK(has(w, &a, 2));
    seen        = w->n.last_ms;
    w->nat_port = 6000;
    round_now(w, false);
    CHECK(has(w, &a, 2) && has(w, &b, 2) && endpoints(w) == 3);
    w->now = seen + 305000;
    round_now(w, false);
    CHECK(has(w, &a, 2));
    w->now = seen + 312000;                 /* it ages when a report ends, with news */
    CHECK(has(w, &a, 2) && tn_net_news(&w->n) == 0);
    tn_net_trigger(&w->n, false);
    do {
        turn(w);
        w->now += 5;
    } while (w->n.busy);
    CHECK((tn_net_news(&w->n) & TN_NET_NEWS_ENDPOINTS) != 0 && !has(w, &a, 2) && has(w, &b, 2));
}

/* Bounded: the oldest go, what is vouched for stays. */
static void test_many_mappings(void)
{
    world       *w = &w0;
    tailnet_addr a, mapped;
    unsigned     i;
    begin(w, 8);
    ip4(&mapped, 0xcb007101, 777);
    tn_net_mapped(&w->n, &mapped, w->now);
    run(w, 3100);                           /* the change to not silent forgets it */
    tn_net_mapped(&w->n, &mapped, w->now);
    CHECK(has(w, &mapped, 3));
    w->hard = true;
    for (i = 0; i < 20; i++) {
        w->nat_port = (uint16_t)(7000 + 100 * i);
        round_now(w, true);
        ip4(&a, 0xcb007109, w->nat_port + 10u);
        CHECK(has(w, &a, 2) && has(w, &mapped, 3) && endpoints(w) <= TAILNET_MAX_CANDIDATES);
        ip4(&a, 0x0a000005, 41641);
        CHECK(has(w, &a, 1));
        run(w, 5000);
    }
    CHECK(endpoints(w) == TAILNET_MAX_CANDIDATES);
}

static void test_mapped(void)
{
    world       *w = &w0;
    tailnet_addr m, out[8];
    uint8_t      types[8];
    begin(w, 3);
    run(w, 3100);
    ip4(&m, 0xcb007109, 9999);
    tn_net_mapped(&w->n, &m, w->now);
    CHECK((tn_net_news(&w->n) & TN_NET_NEWS_ENDPOINTS) != 0 && w->n.pending != 0);
    run(w, 400000);                         /* as long as the router keeps it */
    CHECK(tn_net_list(&w->n, out, types, 8) >= 2);
    CHECK(tn_addr_same(&out[0], &m) && types[0] == 3);
    CHECK(tn_net_list(&w->n, out, types, 0) == 0);
    CHECK(tn_net_list(&w->n, out, types, 1) == 1);
    tn_net_mapped(&w->n, NULL, w->now);
    CHECK(has(w, &m, 2));                   /* cached */
    w->now += 312000;
    run(w, 3100);
    CHECK(!has(w, &m, 2) && !has(w, &m, 3));
    ip4(&m, 0xcb007109, 5000);              /* the mapping is what STUN sees as well */
    tn_net_mapped(&w->n, &m, w->now);
    run(w, 3100);
    CHECK(has(w, &m, 3));
    tn_net_mapped(&w->n, NULL, w->now);
    CHECK(has(w, &m, 2));
}

static void test_network(void)
{
    world          *w = &w0;
    tailnet_network net;
    tailnet_addr    a[TN_NET_OWN + 3], seen;
    unsigned        i;
    begin(w, 3);
    run(w, 3100);
    ip4(&seen, 0xcb007109, 5000);
    CHECK(has(w, &seen, 2));
    (void)tn_net_news(&w->n);
    own(w, true, true, false, false);       /* one more address: a small round */
    CHECK(w->n.pending == TN_NET_PART && has(w, &seen, 2));
    CHECK((tn_net_news(&w->n) & TN_NET_NEWS_ENDPOINTS) != 0 && endpoints(w) == 3);
    run(w, 3100);
    turn(w);
    tn_net_trigger(&w->n, false);
    turn(w);
    CHECK(w->n.busy);
    own(w, true, false, false, true);       /* another network, in the middle of a round */
    CHECK(!has(w, &seen, 2) && endpoints(w) == 1 && !w->n.busy && w->memory[0].ms[0] == 0);
    CHECK(w->n.pending == TN_NET_FULL && tn_net_deadline(&w->n, &w->x) == 0 && !w->n.udp);
    CHECK(!tn_net_fresh(&w->n, w->now));
    w->rounds = 0;
    run(w, 3100);
    CHECK(w->rounds == 1 && w->n.full && has(w, &seen, 2));

    memset(&net, 0, sizeof net);            /* more than fit, and such without a port */
    net.addrs      = a;
    net.addr_count = TN_NET_OWN + 3;
    for (i = 0; i < TN_NET_OWN + 3; i++) ip4(&a[i], 0x0a000100u + i, i == 1 ? 0 : 1000);
    tn_net_network(&w->n, &net, w->now);
    CHECK(endpoints(w) == TN_NET_OWN + 1 && has(w, &a[0], 1) && !has(w, &a[1], 1));
    CHECK(has(w, &a[TN_NET_OWN], 1) && !has(w, &a[TN_NET_OWN + 1], 1) && w->n.have == 1);
    ip6(&a[0], 0xfe80, 1, 41641);
    net.addr_count = 1;
    tn_net_network(&w->n, &net, w->now);    /* link-local: no IPv6 to the world */
    CHECK(w->n.have == 0 && has(w, &a[0], 1));
    ip6(&a[0], 0xfd12, 1, 41641);
    tn_net_network(&w->n, &net, w->now);
    CHECK(w->n.have == 2);
    net.addr_count = 0;
    tn_net_network(&w->n, &net, w->now);    /* the platform does not know */
    CHECK(w->n.have == 1 && endpoints(w) == 1);
    net.down = true;
    tn_net_network(&w->n, &net, w->now);
    CHECK(endpoints(w) == 0);
}

static void test_map_changes(void)
{
    world *w = &w0;
    begin(w, 3);
    run(w, 3100);
    w->relays[0].id = 0;                    /* region 1 goes, 7 comes */
    (void)relay(w, 5, 7, 0);
    w->ms4[7] = 10;
    round_now(w, true);
    CHECK(w->memory[0].id == 7 && w->memory[0].ms[0] == 10 && w->memory[1].ms[0] == 40);
    CHECK(tn_net_prefer(&w->n, &w->x, w->now) == 7);
    (void)relay(w, 0, 1, 0);                /* in the middle of a round a region goes */
    tn_net_trigger(&w->n, true);
    turn(w);
    memset(w->relays, 0, sizeof w->relays);
    run(w, 3100);
}

/* ---- names ---- */

static void test_names(void)
{
    world *w = &w0;
    begin(w, 3);
    w->relays[0].flags = w->relays[1].flags = 0;
    run(w, 3100);
    CHECK(w->asked == 2 && w->n.udp && w->memory[0].ms[0] == 20 && w->memory[1].ms[0] == 40);
    round_now(w, false);
    CHECK(w->asked == 2 && w->memory[0].ms[0] == 20);   /* remembered */
    round_now(w, true);
    CHECK(w->asked == 4);
    w->no_dns = true;
    round_now(w, true);
    CHECK(w->memory[0].ms[0] == 0 && w->memory[2].ms[0] == 60);
    CHECK(w->n.last_ms == w->n.start_ms + 80);

    begin(w, 5);                            /* more names than places */
    w->relays[0].flags = w->relays[1].flags = w->relays[2].flags = w->relays[3].flags = 0;
    run(w, 3100);
    CHECK(w->n.answered >= 3 && w->memory[0].ms[0] == 20 && w->memory[1].ms[0] == 40);

    begin(w, 1);                            /* a literal in the place of a name */
    w->relays[0].flags = 0;
    strcpy(w->relays[0].text, "192.0.2.10");
    run(w, 3100);
    CHECK(w->asked == 0 && w->n.udp);
    begin(w, 1);
    w->relays[0].flags = 0;
    strcpy(w->relays[0].text, "2001::10");
    run(w, 3100);
    CHECK(w->asked == 0 && !w->n.udp && w->sent == 0);
}

static void test_slow_names(void)
{
    world       *w = &w0;
    tailnet_addr a[2];
    uint32_t     old;
    begin(w, 1);
    w->relays[0].flags = 0;
    w->manual_dns      = true;
    turn(w);
    CHECK(w->asked == 1 && w->sent == 0 && w->n.busy);
    CHECK(tn_net_deadline(&w->n, &w->x) == w->n.start_ms + 3000);
    w->now += 500;
    turn(w);
    CHECK(w->asked == 1 && w->sent == 0);
    ip6(&a[0], 0x2001, 10, 0);
    ip4(&a[1], 0xc000020a, 0);
    CHECK(!tn_net_resolved(&w->n, w->query + 1, a, 2));
    CHECK(tn_net_resolved(&w->n, w->query, a, 2));
    run(w, 1000);
    CHECK(w->rounds == 1 && w->memory[0].ms[0] == 20);  /* without the time of the look-up */

    tn_net_trigger(&w->n, true);            /* never answered: the round ends, the next asks */
    run(w, 3100);
    CHECK(w->asked == 2 && w->rounds == 2 && !w->n.udp);
    old = w->query;
    tn_net_trigger(&w->n, false);
    turn(w);
    CHECK(w->asked == 3);
    w->relays[0].id = 0;                    /* and the region leaves the map */
    run(w, 3100);
    CHECK(tn_net_resolved(&w->n, old, a, 2) && !tn_net_resolved(&w->n, old, a, 2));
    tn_net_trigger(&w->n, true);
    run(w, 3100);
    CHECK(w->n.names[0].region == 0 && w->rounds == 4);
}

/* ---- answers of others ---- */

static void test_forged(void)
{
    world       *w = &w0;
    tn_net_wish  wish;
    uint8_t      good[64], bad[64];
    size_t       len, i;
    tailnet_addr other;
    uint8_t      id[12];
    tn_wr        t;
    begin(w, 2);
    CHECK(!tn_net_input(&w->n, good, 0, w->now));
    CHECK(tn_net_step(&w->n, &w->x, w->now, 0, &wish) && wish.kind == TN_NET_SEND);
    len = answer(w, good, wish.data, &wish.to);
    CHECK(len == 32);
    for (i = 0; i < len; i++) CHECK(!tn_net_input(&w->n, good, i, w->now));
    for (i = 8; i < 20; i++) {              /* each bit of the id: other region, family, time */
        unsigned bit;
        for (bit = 0; bit < 8; bit++) {
            memcpy(bad, good, len);
            bad[i] ^= (uint8_t)(1u << bit);
            CHECK(!tn_net_input(&w->n, bad, len, w->now));
        }
    }
    memcpy(bad, good, len);
    bad[1] = 0x11;                          /* an error response */
    bad[0] = 0x01;
    CHECK(!tn_net_input(&w->n, bad, len, w->now) && w->n.got[0] == 0);
    CHECK(tn_stun_id(good, len, id));
    ip6(&other, 0x2001, 5, 5);              /* an address of the other family */
    tn_wr_over(&t, bad, sizeof bad);
    tn_stun_wr_response(&t, id, &other);
    CHECK(!tn_net_input(&w->n, bad, tn_wr_len(&t), w->now));
    ip4(&other, 0x01020304, 0);             /* no port */
    tn_wr_over(&t, bad, sizeof bad);
    tn_stun_wr_response(&t, id, &other);
    CHECK(!tn_net_input(&w->n, bad, tn_wr_len(&t), w->now) && w->n.got[0] == 0);

    w->now += 17;
    CHECK(tn_net_input(&w->n, good, len, w->now) && w->memory[0].ms[0] == 17);
    w->now += 5;                            /* twice: once */
    CHECK(tn_net_input(&w->n, good, len, w->now) && w->memory[0].ms[0] == 17 && w->n.got[0] == 1);
    run(w, 3100);
    CHECK(!tn_net_input(&w->n, good, len, w->now));     /* after its round */
    tn_net_trigger(&w->n, true);
    turn(w);
    CHECK(w->n.busy && !tn_net_input(&w->n, good, len, w->now));    /* of an older round */
}

/* The request is that of the vectors but for its id; answers with 0x8020 and MAPPED count. */
static void test_vectors(void)
{
    static const char *const kinds[2] = { "8020", "0001" };
    world      *w = &w0;
    tn_net_wish wish;
    uint8_t     want[40], resp[32];
    unsigned    i;
    tailnet_addr a;
    CHECK(tn_test_hex(want, 40, "000100142112a4420102030405060708090a0b0c802200087461696c6e6f6465"
                                "80280004b32c370f") == 40);
    for (i = 0; i < 2; i++) {
        begin(w, 1);
        CHECK(tn_net_step(&w->n, &w->x, w->now, 0, &wish) && sizeof wish.data == 40);
        CHECK_BYTES(wish.data, want, 8);
        CHECK_BYTES(wish.data + 20, want + 20, 16);
        CHECK(tn_test_hex(resp, 32, "0101000c2112a4420102030405060708090a0b0c"
                                    "00200008000183bbea12d545") == 32);
        memcpy(resp + 8, wish.data + 8, 12);
        CHECK(tn_test_hex(resp + 20, 2, kinds[i]) == 2);
        CHECK(tn_net_input(&w->n, resp, 32, w->now + 3));
        run(w, 3100);
        ip4(&a, i == 0 ? 0xcb007107 : 0xea12d545, i == 0 ? 41641 : 0x83bb);
        CHECK(has(w, &a, 2));
    }
}

/* ---- home ---- */

typedef struct report {
    unsigned t_s, ms[2];                    /* of regions 1 and 2; 0: no answer   */
    int      frame_s;                       /* last frame from home; -1: none     */
    uint16_t home;
} report;

/* A report that lies there as the rounds leave it. */
static uint16_t feed(world *w, const report *r)
{
    unsigned i, region;
    uint16_t pref;
    w->now = t0 + (uint64_t)r->t_s * 1000 - 100;
    tn_net_trigger(&w->n, true);
    w->ms4[1] = w->ms4[2] = 0;              /* the answers are ours */
    for (i = 0; i < 2; i++) w->memory[i].id = (uint16_t)(i + 1);
    turn(w);
    CHECK(w->n.busy && w->n.start_ms == w->now);
    w->now += 100;
    for (region = 0; region < 2; region++) {
        if (r->ms[region] == 0) continue;
        tn_net_close(&w->memory[region], 0, r->ms[region]);
        w->n.got[0]++;
    }
    tn_net_finish(&w->n, w->now, 0);
    w->x.heard_ms = r->frame_s < 0 ? 0 : t0 + (uint64_t)r->frame_s * 1000;
    pref = tn_net_prefer(&w->n, &w->x, w->now);
    w->x.home = pref;
    return pref;
}

static void test_home(void)
{
    static const struct { const char *name; report r[3]; unsigned score2; } cases[] = {
        { "plain", { { 0, { 40, 55 }, -1, 1 }, { 30, { 60, 55 }, -1, 1 } }, 0 },
        { "10 ms rule", { { 0, { 12, 15 }, -1, 1 }, { 30, { 12, 3 }, -1, 1 } }, 0 },
        { "2/3 rule, just not", { { 0, { 90, 95 }, -1, 1 }, { 30, { 90, 61 }, -1, 1 } }, 0 },
        { "2/3 rule, just enough", { { 0, { 90, 95 }, -1, 1 }, { 30, { 90, 60 }, -1, 2 } }, 0 },
        { "old minimum expires",
          { { 0, { 20, 50 }, -1, 1 }, { 200, { 100, 50 }, -1, 1 }, { 306, { 100, 50 }, -1, 2 } },
          0 },
        { "home silent, no frame", { { 0, { 20, 50 }, -1, 1 }, { 30, { 0, 50 }, -1, 2 } }, 0 },
        { "home silent, 7 s", { { 0, { 20, 50 }, -1, 1 }, { 30, { 0, 50 }, 23, 1 } }, 0 },
        { "home silent, 9 s", { { 0, { 20, 50 }, -1, 1 }, { 30, { 0, 50 }, 21, 2 } }, 0 },
        { "nothing, 119 s", { { 0, { 20, 50 }, -1, 1 }, { 130, { 0, 0 }, 11, 1 } }, 0 },
        { "nothing, 121 s", { { 0, { 20, 50 }, -1, 1 }, { 130, { 0, 0 }, 9, 0 } }, 0 },
        { "score 0.5 for region 2", { { 0, { 40, 70 }, -1, 2 } }, 500 },
        { "score 2 for region 1 only", { { 0, { 40, 70 }, -1, 1 } }, 2000 }
    };
    world   *w = &w0;
    unsigned i, k;
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        begin(w, 2);
        turn(w);
        tn_net_forget(&w->n);
        if (cases[i].score2 != 0) {
            w->map.scores[0].id          = 2;
            w->map.scores[0].thousandths = (uint16_t)cases[i].score2;
        }
        for (k = 0; k < 3 && (k == 0 || cases[i].r[k].t_s != 0); k++) {
            uint16_t got = feed(w, &cases[i].r[k]);
            if (got != cases[i].r[k].home) printf("%s, report %u: %u\n", cases[i].name, k, got);
            CHECK(got == cases[i].r[k].home);
        }
    }
}

/* Equal ones: the lowest number, wherever it lies; a frame since the start counts as heard. */
static void test_home_ties(void)
{
    static const report equal = { 0, { 30, 30 }, -1, 1 };
    static const report gone  = { 30, { 0, 20 }, -1, 2 };
    world *w = &w0;
    begin(w, 2);
    turn(w);
    tn_net_forget(&w->n);
    CHECK(feed(w, &equal) == 1);
    CHECK(feed(w, &gone) == 2);
    w->x.home     = 1;
    w->x.heard_ms = w->n.start_ms;
    w->now       += 60000;
    CHECK(tn_net_prefer(&w->n, &w->x, w->now) == 1);
    w->x.heard_ms = w->n.start_ms - 1;
    CHECK(tn_net_prefer(&w->n, &w->x, w->now) == 2);
    w->x.home = 0;
    CHECK(tn_net_prefer(&w->n, &w->x, w->now) == 2);
}

/* A value is remembered for 152 to 305 s, never longer. */
static void test_history(void)
{
    report r;
    world *w = &w0;
    unsigned t;
    begin(w, 2);
    turn(w);
    tn_net_forget(&w->n);
    memset(&r, 0, sizeof r);
    r.frame_s = -1;
    r.ms[0] = 20;
    r.ms[1] = 100;
    CHECK(feed(w, &r) == 1);
    r.ms[0] = 200;
    for (t = 30; t < 600; t += 30) {
        r.t_s = t;
        CHECK(feed(w, &r) == (t < 305 ? 1 : 2));
    }
    r.t_s = 5000;                           /* long after: nothing old counts */
    r.ms[0] = 300;
    w->x.home = 0;
    CHECK(feed(w, &r) == 2 && w->memory[0].least[1] == 0 && w->memory[0].least[0] == 300);
}

/* Whatever comes: one round at a time, limits hold, nothing is sent while silent. */
static void test_random(void)
{
    world   *w = &w0;
    unsigned i, turns;
    for (i = 0; i < 60; i++) {
        begin(w, 1 + (unsigned)(tn_test_random() % 8));
        for (turns = 0; turns < 60; turns++) {
            uint64_t     r = tn_test_random();
            tailnet_addr m;
            unsigned     k = (unsigned)(r >> 8) % 8;
            switch (r % 12) {
            case 0: tn_net_trigger(&w->n, (r & 256) != 0); break;
            case 1: w->x.silent = !w->x.silent; break;
            case 2: own(w, (r & 256) != 0, (r & 512) != 0, (r & 1024) != 0, (r & 2048) != 0); break;
            case 3: w->ms4[k + 1] = (uint32_t)(r >> 20) % 4000; break;
            case 4: w->ms6[k + 1] = (uint32_t)(r >> 20) % 200; break;
            case 5: w->hard = !w->hard; break;
            case 6: w->nat_port = (uint16_t)(r >> 30); break;
            case 7: w->x.active_ms = w->now + (r >> 16) % 100000; break;
            case 8: w->relays[k].flags = (uint8_t)((r >> 16) & 63); break;
            case 9:
                ip4(&m, 0xcb007109, 1 + (unsigned)(r >> 16) % 60000);
                tn_net_mapped(&w->n, (r & 256) != 0 ? &m : NULL, w->now);
                break;
            case 10: w->x.home = (uint16_t)k; break;
            case 11: w->no_dns = !w->no_dns; break;
            }
            if (w->nat_port == 0 || w->nat_port > 60000) w->nat_port = 1;
            run(w, (r >> 40) % 30000);
            CHECK(endpoints(w) <= TAILNET_MAX_CANDIDATES);
            CHECK(!w->x.silent || endpoints(w) == 0);
            CHECK(!w->n.busy || w->now - w->n.start_ms <= 3000);
            (void)tn_net_prefer(&w->n, &w->x, w->now);
        }
    }
}

static void test_sizes(void)
{
    CHECK(tn_net_memory(8) == 96 && sizeof(tn_net) <= 400);
}

static void all(void)
{
    TEST(test_full_round);
    TEST(test_loss);
    TEST(test_no_udp);
    TEST(test_no_relay);
    TEST(test_only_ip6);
    TEST(test_both_families);
    TEST(test_part);
    TEST(test_enough);
    TEST(test_turns);
    TEST(test_one_region);
    TEST(test_periodic);
    TEST(test_full_again);
    TEST(test_trigger_during);
    TEST(test_silent);
    TEST(test_hard_nat);
    TEST(test_counters);
    TEST(test_cache);
    TEST(test_many_mappings);
    TEST(test_mapped);
    TEST(test_network);
    TEST(test_map_changes);
    TEST(test_names);
    TEST(test_slow_names);
    TEST(test_forged);
    TEST(test_vectors);
    TEST(test_home);
    TEST(test_home_ties);
    TEST(test_history);
    TEST(test_random);
    TEST(test_sizes);
}

int main(void)
{
    all();
    t0 = 0x2ffffffffu - 150000;             /* 32 bits of milliseconds run over      */
    all();
    return tn_test_end();
}
