/* What happens in a world: where its nodes are, from the seed; and a script of faults and
 * traffic, from the seed or from a file. A script is one action a line:
 *
 *     AT_MS WHAT A B VALUE MORE
 *
 *     flow     A talks to B for VALUE ms; MORE: interval, size and port, see flow_of
 *     link     the line of A is down for VALUE ms; B 1: the node is told
 *     udp      UDP of A vanishes for VALUE ms
 *     nat      router A forgets its mappings       wan      router A gets another address
 *     cut      A loses power for VALUE ms; B: state at boot, 0 newest, 1 older, 2 none
 *     cutin    the same inside of its MOREth callback from now
 *     jump     the wall clock of A jumps by VALUE - 2^40 ms
 *     control  the control server is away for VALUE ms
 *     region   relay A is away for VALUE ms        restart  the server drops all connections
 *     policy   rules number A                      remove   A is removed from the tailnet
 *     expire   the key of A expires                login    A logs in again
 *     roam     A moves to router B; VALUE 1: the node is told at once
 *     attack   VALUE datagrams of forgers for A    down     tailnet_down for VALUE ms
 *     shields  of A go up for VALUE ms             ping     A pings B, kind VALUE
 *     relay    A uses relays only for VALUE ms
 *     evil     A, a hostile member, does VALUE things of kind MORE to B (sim_hostile.h)
 *     slow     A reads nothing of its relays for VALUE ms; B 1: they read nothing of it
 *     home     A wants to be at home in region B for VALUE ms, 0: in the nearest
 *     far      relay A is MORE ms farther away for VALUE ms
 *     gone     region A is in no map for VALUE ms, or for good
 *     cert     the server restarts, and shows a forged certificate for VALUE ms */
#ifndef SIM_SCRIPT_H
#define SIM_SCRIPT_H

#include "sim_app.h"

#define GOOD_MS (UINT64_C(1) << 40)         /* as good as for ever                         */

enum { TLS_WORLDS = 80, HOSTILE_WORLDS = 150 };    /* in a thousand                       */

#define JUMP_ZERO (UINT64_C(1) << 40)

/* ---- the server ---- */

static void server_make(void)
{
    static const char *const names[SIM_REGIONS] = { "relay0.wild.example", "relay1.wild.example",
                                                    "relay2.wild.example" };
    static const char *const ip4[SIM_REGIONS] = { "203.0.113.20", "203.0.113.21",
                                                  "203.0.113.22" };
    static const char *const ip6[SIM_REGIONS] = { "2001:db8:ff00::14", "2001:db8:ff00::15",
                                                  "2001:db8:ff00::16" };
    host    *h = (host *)need(1, sizeof *h);
    unsigned i;
    W->h = h;
    h->opt.max_nodes   = W->count + (W->count < 100 ? 8u : 2u);
    h->opt.ephemeral_s = 30;
    h->opt.keepalive_s = 50;
    h->opt.domain      = "tail.sim";
    h->opt.url         = "https://" SIM_CONTROL;
    h->opt.open_login  = true;
    h->opt.plain_relay = true;
    h->opt.verbose     = false;
    h->opt.no_early    = rnd_chance(&W->rnd, 500);
    h->region_count    = W->regions;
    h->stun_port       = SIM_STUN;
    h->plain_fd = h->stun_fd = h->admin_fd = -1;
    for (i = 0; i < W->regions; i++) {
        region *r = &h->regions[i];
        r->id   = (uint16_t)(REGION + i);
        r->port = 443;
        r->fd   = -1;
        r->ip4  = ip4[i];
        r->ip6  = ip6[i];
        strcpy(r->name, names[i]);
    }
    read_clocks(h);
    set_up_tables(h);
    add_key(h, "key:reusable");
    load_state(h);
    (void)add_rule(h, "*>*:*");
    policy_note();
    h->secret    = *br_skey_decoder_get_ec(&certs.skey);
    h->opt.peers = W->peers;
    set_up_peers(h);
    server_wake(W->now_ms);
}

static void server_end(void)
{
    host *h = W->h;
    free(h->conns[0].told);
    free(h->conns[0].b);
    free(h->conns);
    free(h->nodes);
    free(h->answer);
    free(h);
}

/* ---- places ---- */

static int router_make(int outer, nat_kind kind, nat_filter filter)
{
    router  *r = &W->box[W->boxes];
    uint32_t n = W->boxes;
    memset(r, 0, sizeof *r);
    r->outer      = outer;
    r->kind       = kind;
    r->filter     = filter;
    r->timeout_ms = 120000;
    r->keep_port  = kind == NAT_EIM;
    r->refresh_in = true;
    r->lan        = 0xc0a80000u + (n << 8);
    r->wan        = outer < 0 ? 0x05050000u + (n << 4) + 5 : W->box[outer].lan + 10 + n;
    return (int)W->boxes++;
}

static machine *machine_make(int box)
{
    machine      *m = &W->m[W->count];
    tailnet_desc *d = &m->desc;
    uint32_t      i;
    memset(m, 0, sizeof *m);
    m->number = W->count++;
    snprintf(m->name, sizeof m->name, "n%u", (unsigned)m->number);
    m->box    = box;
    m->ip4    = box < 0 ? 0x09000001u + m->number * 7 : W->box[box].lan + 100 + m->number % 128;
    m->mtu    = 1500;
    m->lat_ms = 5;
    m->wake_ms = NEVER;
    m->wanted  = true;
    for (i = 0; i < SIM_MASKED; i++) m->direct_ms[i] = NEVER;
    d->io.user       = m;
    d->io.now_ms     = io_now;
    d->io.unix_ms    = io_unix;
    d->io.random     = io_random;
    d->io.udp_output = io_udp;
    d->io.ip_output  = io_ip;
    d->io.tcp_open   = io_open;
    d->io.tcp_output = io_output;
    d->io.tcp_close  = io_close;
    d->io.log        = io_log;
    d->control_url   = "http://" SIM_CONTROL;
    d->auth_key      = "key";
    d->tls_by_caller = true;
    d->max_links     = (uint8_t)(1 + W->regions);
    d->max_peers     = 8;
    d->max_sessions  = 8;
    d->prefs.hostname = m->name;
    return m;
}

/* Its memory, exactly as much as it says it needs, between two guards. */
static void machine_memory(machine *m)
{
    m->size  = tailnet_memory_needed(&m->desc);
    m->block = (uint8_t *)need(1, m->size + 2 * SIM_GUARD);
    memset(m->block, 0x5a, m->size + 2 * SIM_GUARD);
    memset(m->block + SIM_GUARD, 0xa5, m->size);
    m->desc.memory      = m->block + SIM_GUARD;
    m->desc.memory_size = m->size;
}

static int random_router(uint64_t *r, int outer)
{
    static const uint8_t kinds[10]   = { 0, 0, 0, 0, 0, 0, 2, 2, 2, 1 };
    static const uint8_t filters[10] = { 2, 2, 2, 1, 0, 2, 2, 2, 1, 1 };
    unsigned pick = rnd_below(r, 10);
    int      i = router_make(outer, (nat_kind)kinds[pick], (nat_filter)filters[pick]);
    router  *b = &W->box[i];
    b->hairpin    = rnd_chance(r, 400);
    b->keep_port  = rnd_chance(r, 600);
    b->refresh_in = rnd_chance(r, 700);
    b->timeout_ms = rnd_chance(r, 250) ? 30000 : 60000 + rnd_below(r, 240000);
    b->grants     = rnd_chance(r, 150);
    return i;
}

static void random_line(uint64_t *r, machine *m)
{
    m->lat_ms    = rnd_below(r, 30);
    m->jitter_ms = rnd_chance(r, 500) ? rnd_below(r, 12) : 0;
    m->place_ms  = rnd_below(r, 80);
    m->loss      = rnd_chance(r, 350) ? 1 + rnd_below(r, 50) : 0;
    m->twice     = rnd_chance(r, 200) ? 1 + rnd_below(r, 30) : 0;
    m->late      = rnd_chance(r, 200) ? 1 + rnd_below(r, 50) : 0;
    m->mtu       = rnd_chance(r, 250) ? 1400 + rnd_below(r, 100) : 1500;
    m->ppm       = (int32_t)rnd_below(r, 401) - 200;
    if (rnd_chance(r, 100)) m->ppm = (int32_t)rnd_below(r, 40001) - 20000;
    m->no_clock  = rnd_chance(r, 150);
    m->skew_ms   = rnd_chance(r, 200) ? (int64_t)rnd_below(r, 7200000) - 3600000 : 0;
    m->lag_ms    = rnd_chance(r, 200) ? rnd_below(r, 8) : 0;
    m->host_fw   = rnd_chance(r, 100);
    m->only_443  = rnd_chance(r, 50);
    if (rnd_chance(r, 150)) m->desc.max_links = (uint8_t)(2 + rnd_below(r, 2));
    if (m->only_443) m->desc.control_url = "https://" SIM_CONTROL;
    if (rnd_chance(r, 50)) m->desc.prefs.relay_only = true;
    if (rnd_chance(r, 250)) {
        m->has6 = true;
        m->router_fw6 = rnd_chance(r, 700);
        tn_put_u32be(m->ip6, 0x26000000u);
        m->ip6[7]  = (uint8_t)m->number;
        m->ip6[15] = 1;
    }
}

/* A node that does TLS itself, to its relays and to control. */
static void own_tls(uint64_t *r, machine *m)
{
    m->desc.tls_by_caller      = false;
    m->desc.trust_anchors      = &certs.anchor;
    m->desc.trust_anchor_count = 1;
    m->desc.max_tls            = m->desc.max_links;
    m->desc.control_tls        = rnd_chance(r, 500) || m->only_443;
    if (m->desc.control_tls || rnd_chance(r, 700)) m->desc.control_url = "https://" SIM_CONTROL;
}

/* Two to six nodes, some at home, some behind the same router, some behind a carrier's. */
static void random_places(uint64_t *r)
{
    uint32_t n = 2 + rnd_below(r, 3), i;
    int      carrier = -1;
    if (rnd_chance(r, 200)) n += rnd_below(r, 3);
    W->regions = 1 + rnd_below(r, SIM_REGIONS);
    for (i = 0; i < W->regions; i++) W->region_place[i] = rnd_below(r, 80);
    for (i = 0; i < n; i++) {
        unsigned pick = rnd_below(r, 100);
        int      box = -1;
        if (pick >= 20 && pick < 70) box = random_router(r, -1);
        if (pick >= 70 && pick < 85) box = W->boxes != 0 ? (int)W->boxes - 1 : random_router(r, -1);
        if (pick >= 85) {
            if (carrier < 0) carrier = random_router(r, -1);
            box = random_router(r, carrier);
        }
        random_line(r, machine_make(box));
    }
    if (n > 2 && rnd_chance(r, HOSTILE_WORLDS)) W->hostile = n - 1;
    W->calm = W->hostile != NOBODY && rnd_chance(r, 300);
    for (i = 0; i < n && W->calm; i++) W->m[i].loss = W->m[i].twice = W->m[i].late = 0;
    W->tls = rnd_chance(r, TLS_WORLDS);
    for (i = 0; i < n && W->tls; i++)
        if (rnd_chance(r, 700)) own_tls(r, &W->m[i]);
}

/* ---- scripts ---- */

static void action_add(uint64_t at_ms, const char *what, uint32_t a, uint32_t b, uint64_t value,
                       uint64_t more)
{
    action *x;
    W->actions = (action *)grown(W->actions, W->action_count, &W->action_cap, sizeof *x);
    x = &W->actions[W->action_count++];
    memset(x, 0, sizeof *x);
    x->at_ms = at_ms;
    x->a     = a;
    x->b     = b;
    x->value = value;
    x->more  = more;
    strncpy(x->what, what, sizeof x->what - 1);
}

/* MORE of a flow: milliseconds between packets, their size, the port. */
static uint64_t flow_of(uint32_t every_ms, uint32_t size, uint32_t port, bool six)
{
    return (uint64_t)every_ms << 32 | (uint64_t)size << 16 | port << 1 | six;
}

static void random_fault(uint64_t *r, uint64_t at)
{
    uint32_t n = rnd_below(r, W->count), o = rnd_below(r, W->count), k = rnd_below(r, 100);
    uint32_t box = W->boxes == 0 ? 0 : rnd_below(r, W->boxes);
    uint64_t for_ms = rnd_chance(r, 700) ? 500 + rnd_below(r, 20000) : rnd_below(r, 200000);
    uint32_t state = rnd_chance(r, 80) ? 1 + rnd_below(r, 2) : 0, calls = 1 + rnd_below(r, 200);
    if (k < 12)      action_add(at, "link", n, rnd_below(r, 2), for_ms, 0);
    else if (k < 24) action_add(at, "udp", n, 0, for_ms, 0);
    else if (k < 30 && W->boxes != 0) action_add(at, "nat", box, 0, 0, 0);
    else if (k < 34 && W->boxes != 0) action_add(at, "wan", box, 0, 0, 0);
    else if (k < 40) action_add(at, "cut", n, state, 1 + for_ms / 4, 0);
    else if (k < 48) action_add(at, "cutin", n, state, 1 + for_ms / 4, calls);
    else if (k < 54) action_add(at, "jump", n, 0, JUMP_ZERO + rnd_below(r, 86400000u) - 43200000u,
                                0);
    else if (k < 58) action_add(at, "control", 0, 0, for_ms, 0);
    else if (k < 63) action_add(at, "region", rnd_below(r, W->regions), 0, for_ms, 0);
    else if (k < 66) action_add(at, "restart", 0, 0, 0, 0);
    else if (k < 73) action_add(at, "policy", rnd_below(r, 5), 0, 0, 0);
    else if (k < 75) action_add(at, "remove", n, 0, 0, 0);
    else if (k < 77) action_add(at, "expire", n, 0, 0, 0);
    else if (k < 79) action_add(at, "login", n, 0, 0, 0);
    else if (k < 84) action_add(at, "roam", n, W->boxes == 0 ? 0 : box, rnd_below(r, 2), 0);
    else if (k < 90) action_add(at, "attack", n, 0, 10 + rnd_below(r, 100), 0);
    else if (k < 93) action_add(at, "down", n, 0, for_ms, 0);
    else if (k < 95) action_add(at, "shields", n, 0, for_ms, 0);
    else if (k < 97) action_add(at, "relay", n, 0, for_ms, 0);
    else             action_add(at, "ping", n, o, rnd_below(r, 2), 0);
}

/* Relays: slow readers, homes that move, regions that come and go. */
static void random_relay_fault(uint64_t *r, uint64_t at)
{
    uint32_t n = rnd_below(r, W->count), region = rnd_below(r, W->regions), k = rnd_below(r, 100);
    uint64_t for_ms = 1000 + rnd_below(r, 90000);
    if (k < 30) action_add(at, "slow", n, rnd_below(r, 2), for_ms, 0);
    else if (k < 60) action_add(at, "home", n, REGION + region, for_ms, 0);
    else if (k < 80) action_add(at, "far", region, 0, for_ms, 50 + rnd_below(r, 200));
    else action_add(at, "gone", region, 0, rnd_chance(r, 600) ? for_ms : GOOD_MS, 0);
}

static void random_evil(uint64_t *r, uint64_t length)
{
    uint32_t i;
    for (i = 3 + rnd_below(r, 8); i != 0; i--) {
        uint64_t at = 2000 + rnd_next(r) % length, kind = rnd_below(r, 7);
        uint32_t to = rnd_below(r, W->hostile);
        action_add(at, "evil", W->hostile, to, 20 + rnd_below(r, 60), kind);
    }
}

static void random_script(uint64_t *r)
{
    uint64_t length = rnd_chance(r, 80) ? 1800000 + rnd_below(r, 7200000u)
                                        : 60000 + rnd_below(r, 360000);
    uint32_t flows = 1 + rnd_below(r, 2 * W->count), faults = rnd_below(r, 14), i;
    if (W->calm) length = 60000 + rnd_below(r, 200000);
    if (W->calm) faults = 0;
    W->heal_ms = 20000 + length;
    for (i = 0; i < flows; i++) {
        uint32_t a = rnd_below(r, W->count), b = rnd_below(r, W->count - 1);
        uint32_t every = rnd_chance(r, 200) ? 20 + rnd_below(r, 80) : 400 + rnd_below(r, 8000);
        uint32_t size = 30 + rnd_below(r, 1190), port = APP_PORT + rnd_below(r, 4);
        uint64_t at = 2000 + rnd_next(r) % length;
        uint32_t for_ms = every < 100 ? 4000u : rnd_below(r, 120000);
        if (b >= a) b++;
        action_add(at, "flow", a, b, for_ms, flow_of(every, size, port, rnd_chance(r, 200)));
    }
    for (i = 0; i < faults; i++) random_fault(r, 2000 + rnd_next(r) % length);
    if (W->hostile != NOBODY) random_evil(r, length);
    if (W->calm) return;
    for (i = rnd_below(r, 3); i != 0; i--) random_relay_fault(r, 2000 + rnd_next(r) % length);
    if (W->tls && rnd_chance(r, 500)) {
        uint64_t at = 2000 + rnd_next(r) % length;
        action_add(at, "cert", 0, 0, 1000 + rnd_below(r, 30000), 0);
    }
}

/* ---- actions ---- */

static void set_policy(uint32_t number)
{
    static const char *const rules[5][2] = {
        { "*>*:*", NULL }, { NULL, NULL }, { "n0>*:7000-7001/udp", NULL },
        { "*>n1:7000", "n1>n0:*" }, { "n0>n1:7002,7003", "n1>*:7000" }
    };
    unsigned i;
    W->h->rule_count = 0;
    names_changed(W->h);
    for (i = 0; i < 2; i++)
        if (rules[number % 5][i] != NULL) (void)add_rule(W->h, rules[number % 5][i]);
    policy_note();
    server_wake(W->now_ms);
}

/* The server closes everything, as when it is restarted; which: a region, or all. */
static void server_drops(int which, bool ctl)
{
    size_t i;
    for (i = 0; i < W->h->conn_count; i++) {
        conn *c = &W->h->conns[i];
        wire *w;
        if (c->stage == AT_FREE) continue;
        w = W->wires[c->fd];
        if (which < 0 || (ctl ? w->control : !w->control && (int)w->region == which))
            c->gone = true;
    }
    server_wake(W->now_ms);
}

static void set_prefs(machine *m)
{
    tailnet_prefs p = m->desc.prefs;
    p.shields_up = m->shields;
    p.relay_only = p.relay_only || m->relay_only;
    p.home_region = m->home;
    if (!node_enter(m)) return;
    if (tailnet_set_prefs(m->n, &p) != TAILNET_OK) wrong("set_prefs is refused");
    node_leave(m);
}

static void set_wanted(machine *m, bool up)
{
    m->wanted = up;
    if (!node_enter(m)) return;
    (void)(up ? tailnet_up(m->n) : tailnet_down(m->n));
    node_leave(m);
}

/* A region goes out of the map, or comes back: whoever has a map reads a new one. */
static void set_region(unsigned i, bool gone)
{
    unsigned k, left = 0;
    for (k = 0; k < W->regions; k++) left += !W->region_gone[k];
    if (W->region_gone[i] == gone || (gone && left == 1)) return;
    W->region_gone[i]         = gone;
    W->region_down[i]         = gone;
    W->h->regions[i].hidden   = gone;
    W->region_clock++;
    server_drops((int)i, false);
    server_drops(0, true);
}

static void set_slow(machine *m, uint32_t way, bool on)
{
    unsigned i;
    if (way == 0) m->slow = on;
    else          m->mute = on;
    for (i = 0; i < SIM_LINKS && !on; i++) {
        wire *c = m->wires[i];
        if (c == NULL || !c->open) continue;
        plan(W->now_ms, EV_DOWN, m->wire_ids[i], c->number, NULL);
        plan(W->now_ms, EV_WRITABLE, m->wire_ids[i], c->number, NULL);
    }
}

static void roam(machine *m, uint32_t box, bool know)
{
    m->box = W->boxes == 0 ? -1 : (int)box;
    m->ip4 = m->box < 0 ? 0x09000001u + m->number * 7 + 100000u * (uint32_t)(1 + m->boots)
                        : W->box[box].lan + 150 + m->number % 100;
    if (m->has6) m->ip6[6]++;
    memset(m->fw, 0, sizeof m->fw);
    net_kill_wires(m);
    m->moved = !know;
    if (know) node_network(m, true);
}

static void attack_step(uint32_t target, uint32_t left)
{
    machine *m = &W->m[target];
    uint8_t  b[256];
    uint32_t len = 1 + rnd_below(&W->rnd, sizeof b), k = rnd_below(&W->rnd, 6);
    unsigned i;
    gram    *g;
    rnd_fill(&W->rnd, b, len);
    if (k < 4 && len > 8) memcpy(b, k == 0 ? "TS\xf0\x9f\x92\xac" : "\1\0\0\0\0\0", k == 0 ? 6 : 4);
    if (k == 1) len = 148;
    if (k == 2) b[0] = 4;
    if (k == 3) {                           /* a STUN answer that nobody asked for         */
        memcpy(b, "\1\1\0\x0c\x21\x12\xa4\x42", 8);
        len = 32;
    }
    if (len > sizeof b) len = sizeof b;
    i = W->attack_next++ & 255u;
    g = gram_new(b, len);
    g->forged = true;
    g->level  = m->box;
    addr4(&g->from, 0x06060606u, (uint16_t)(1024 + i));
    addr4(&g->to, m->ip4, SIM_PORT);
    W->attack_in[(1024 + i) & 255u] += len;
    W->forged_in += len;
    plan(W->now_ms, EV_GRAM, 0, 0, g);
    if (left > 1) plan(W->now_ms + rnd_below(&W->rnd, 40), EV_ATTACK, target, left - 1, NULL);
}

#endif
