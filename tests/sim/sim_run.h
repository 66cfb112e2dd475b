/* A run: from a seed or a script to a verdict. */
#ifndef SIM_RUN_H
#define SIM_RUN_H

#include "sim_hostile.h"

enum { TALK_MS = 90000, STALE_MS = 620000, DIRECT_MS = 30000, MOST_NODES = 1100 };

/* ---- faults begin and end ---- */

static void machine_cut(machine *m, uint64_t off_ms, uint32_t state)
{
    node_off(m);
    plan(W->now_ms + off_ms, EV_BOOT, m->number, state, NULL);
    W->cuts++;
}

/* The end of a fault that lasts. */
static void undo(const action *x)
{
    machine *m = &W->m[x->a < W->count ? x->a : 0];
    if (strcmp(x->what, "link") == 0) {
        m->link_down = false;
        if (x->b != 0) node_network(m, false);
    } else if (strcmp(x->what, "udp") == 0) {
        m->no_udp = false;
    } else if (strcmp(x->what, "control") == 0) {
        W->control_down = false;
    } else if (strcmp(x->what, "region") == 0) {
        W->region_down[x->a % SIM_REGIONS] = W->region_gone[x->a % SIM_REGIONS];
    } else if (strcmp(x->what, "slow") == 0) {
        set_slow(m, x->b, false);
    } else if (strcmp(x->what, "home") == 0) {
        m->home = 0;
        set_prefs(m);
    } else if (strcmp(x->what, "far") == 0) {
        W->region_place[x->a % SIM_REGIONS] -= (uint32_t)x->more;
    } else if (strcmp(x->what, "gone") == 0) {
        set_region(x->a % W->regions, false);
    } else if (strcmp(x->what, "cert") == 0) {
        W->bad_cert = false;
    } else if (strcmp(x->what, "down") == 0) {
        set_wanted(m, true);
    } else if (strcmp(x->what, "shields") == 0) {
        m->shields = false;
        set_prefs(m);
    } else if (strcmp(x->what, "relay") == 0) {
        m->relay_only = false;
        set_prefs(m);
    }
}

static void do_link(machine *m, const action *x)
{
    tailnet_network net;
    m->link_down = true;
    if (x->b == 0) return;
    memset(&net, 0, sizeof net);
    net.down = true;
    if (!node_enter(m)) return;
    (void)tailnet_set_network(m->n, &net);
    node_leave(m);
}

static void do_ping(machine *m, const action *x)
{
    machine     *to = &W->m[x->b % W->count];
    tailnet_addr a;
    if (to->ip_count == 0 || to == m || !node_enter(m)) return;
    addr4(&a, to->ips[0], 0);
    (void)tailnet_ping(m->n, &a, x->value == 0 ? TAILNET_PING_PATH : TAILNET_PING_TUNNEL);
    node_leave(m);
}

static void do_login(machine *m)
{
    if (!node_enter(m)) return;
    (void)tailnet_login(m->n, "key");
    node_leave(m);
}

/* What the administrator does to a node. */
static void do_admin(machine *m, bool remove)
{
    node *n = node_by_key(W->h, m->key);
    if (n == NULL) return;
    if (remove) forget_node(W->h, n);
    else        expire_node(W->h, n);
    m->removed = true;
    server_wake(W->now_ms);
}

static void do_flow(const action *x)
{
    flow_plan f;
    f.from     = x->a % W->count;
    f.to       = x->b % W->count;
    f.every_ms = (uint32_t)(x->more >> 32);
    f.size     = (uint32_t)(x->more >> 16 & 0xffffu);
    f.port     = (uint16_t)(x->more >> 1 & 0x7fffu);
    f.six      = (x->more & 1) != 0;
    f.end_ms   = W->now_ms + x->value;
    if (f.every_ms == 0 || f.from == f.to) return;
    flow_begin(&f);
}

static void do_wan(router *r)
{
    if (r->outer < 0) r->wan += 0x01000000u;
    nat_forget(r);
}

static void act(uint32_t index)
{
    const action *x = &W->actions[index];
    machine      *m = &W->m[x->a < W->count ? x->a : 0];
    router       *r = &W->box[x->a < W->boxes ? x->a : 0];
    const char   *w = x->what;
    say("-- %s %u %u %llu %llu", w, x->a, x->b, (unsigned long long)x->value,
        (unsigned long long)x->more);
    if (strcmp(w, "flow") == 0) do_flow(x);
    else if (strcmp(w, "link") == 0) do_link(m, x);
    else if (strcmp(w, "udp") == 0) m->no_udp = true;
    else if (strcmp(w, "nat") == 0) nat_forget(r);
    else if (strcmp(w, "wan") == 0) do_wan(r);
    else if (strcmp(w, "cut") == 0 && m->n != NULL) machine_cut(m, x->value, x->b);
    else if (strcmp(w, "cutin") == 0) {
        m->cut_after = (uint32_t)x->more;
        m->cut_ms    = x->value;
        m->cut_state = x->b;
    } else if (strcmp(w, "jump") == 0) m->skew_ms += (int64_t)(x->value - JUMP_ZERO);
    else if (strcmp(w, "control") == 0) {
        W->control_down = true;
        server_drops(0, true);
    } else if (strcmp(w, "region") == 0) {
        W->region_down[x->a % SIM_REGIONS] = true;
        server_drops((int)(x->a % SIM_REGIONS), false);
    } else if (strcmp(w, "restart") == 0) server_drops(-1, false);
    else if (strcmp(w, "evil") == 0) plan(W->now_ms, EV_EVIL, index, (uint32_t)x->value, NULL);
    else if (strcmp(w, "slow") == 0) set_slow(m, x->b, true);
    else if (strcmp(w, "home") == 0) {
        m->home = (uint16_t)x->b;
        set_prefs(m);
    } else if (strcmp(w, "far") == 0) W->region_place[x->a % SIM_REGIONS] += (uint32_t)x->more;
    else if (strcmp(w, "gone") == 0) set_region(x->a % W->regions, true);
    else if (strcmp(w, "cert") == 0) {
        W->bad_cert = true;
        server_drops(-1, false);
    } else if (strcmp(w, "policy") == 0) set_policy(x->a);
    else if (strcmp(w, "remove") == 0) do_admin(m, true);
    else if (strcmp(w, "expire") == 0) do_admin(m, false);
    else if (strcmp(w, "login") == 0) do_login(m);
    else if (strcmp(w, "roam") == 0) roam(m, x->b, x->value != 0);
    else if (strcmp(w, "attack") == 0) attack_step(m->number, (uint32_t)x->value);
    else if (strcmp(w, "down") == 0) set_wanted(m, false);
    else if (strcmp(w, "shields") == 0) {
        m->shields = true;
        set_prefs(m);
    } else if (strcmp(w, "relay") == 0) {
        m->relay_only = true;
        set_prefs(m);
    } else if (strcmp(w, "ping") == 0) do_ping(m, x);
    plan(W->now_ms + x->value, EV_UNDO, index, 0, NULL);
}

/* ---- the end of all faults, and what has to be true after it ---- */

/* Everything is whole again, and everybody wants to talk to everybody. */
static void heal(void)
{
    uint32_t  i, k;
    flow_plan f;
    say("-- all is well");
    W->healed = true;
    for (i = 0; i < SIM_REGIONS; i++) W->region_down[i] = W->region_gone[i];
    W->control_down = W->bad_cert = false;
    set_policy(0);
    for (i = 0; i < W->count; i++) {
        machine *m = &W->m[i];
        bool     was = m->shields || m->relay_only || m->home != 0;
        m->link_down = m->no_udp = false;
        m->shields = m->relay_only = false;
        m->cut_after = 0;
        m->home      = 0;
        m->wanted    = true;
        set_slow(m, 0, false);
        set_slow(m, 1, false);
        node_boot(m, 0);
        if (was) set_prefs(m);
        set_wanted(m, true);
        if (m->removed) do_login(m);
        node_network(m, m->moved);
        m->moved = false;
    }
    f.every_ms = 1000;
    f.size     = 100;
    f.port     = APP_PORT;
    f.six      = false;
    f.end_ms   = W->end_ms;
    for (i = 0; i < W->count; i++)
        for (k = 0; k < W->count; k++) {
            f.from = i;
            f.to   = k;
            if (i != k) flow_begin(&f);
        }
}

/* The chain of routers of a node as if it were one. */
static void chain_of(const machine *m, nat_kind *kind, nat_filter *filter)
{
    int at = m->box;
    *kind   = NAT_EIM;
    *filter = m->host_fw ? NAT_APDF : NAT_ANY;
    for (; at >= 0; at = W->box[at].outer) {
        if (W->box[at].kind > *kind) *kind = W->box[at].kind;
        if (W->box[at].filter > *filter) *filter = W->box[at].filter;
    }
}

static bool can_udp(const machine *m)
{
    int at = m->box;
    if (m->desc.prefs.relay_only || m->only_443 || m->no_udp) return false;
    for (; at >= 0; at = W->box[at].outer)
        if (W->box[at].no_udp) return false;
    return true;
}

static int outermost(const machine *m)
{
    int at = m->box;
    while (at >= 0 && W->box[at].outer >= 0) at = W->box[at].outer;
    return at;
}

/* Does x's address hold, and do y's datagrams pass x's filter? */
static bool reaches(nat_kind x_kind, nat_filter x_filter, nat_kind y_kind)
{
    return x_kind == NAT_EIM && (x_filter != NAT_APDF || y_kind == NAT_EIM);
}

/* By the table of paths that NATs allow: 1 direct, 0 by a relay, -1 who knows. */
static int expected(const machine *a, const machine *b)
{
    nat_kind   ka, kb;
    nat_filter fa, fb;
    if (!can_udp(a) || !can_udp(b)) return 0;
    if (a->has6 && b->has6) return 1;
    if (a->ip4 == 0 || b->ip4 == 0) return 0;
    if (a->box >= 0 && a->box == b->box) return 1;
    if (a->box >= 0 && outermost(a) == outermost(b)) return -1;
    chain_of(a, &ka, &fa);
    chain_of(b, &kb, &fb);
    return reaches(ka, fa, kb) || reaches(kb, fb, ka) ? 1 : 0;
}

/* What one node thinks of another, for the one who reads a failure. */
static void describe(machine *m, const machine *o)
{
    tailnet_peer    peer;
    tailnet_problem problem;
    if (m->n == NULL || !node_knows(m, o, &peer)) {
        say("%s does not know %s", m->name, o->name);
        return;
    }
    memset(&problem, 0, sizeof problem);
    say("the server: %s is at home in %u", o->name,
        node_by_key(W->h, o->key) == NULL ? 0 : node_by_key(W->h, o->key)->home);
    (void)tailnet_get_problem(m->n, &problem);
    say("%s about %s: path %d, home %u, session %d s old, flags %x, rx %lu, tx %lu; last %d; "
        "problem %d %s", m->name, o->name, (int)peer.path, peer.region,
        (int)peer.handshake_age_s, peer.flags, (unsigned long)peer.rx_bytes,
        (unsigned long)peer.tx_bytes, m->last_result, (int)problem.result,
        problem.section == NULL ? "" : problem.section);
}

/* With fewer connections than regions two nodes may have no relay in common just now. */
static bool is_scarce(const machine *a, const machine *b)
{
    const node *x = node_by_key(W->h, a->key), *y = node_by_key(W->h, b->key);
    return x != NULL && y != NULL && x->home != y->home &&
           (a->desc.max_links < 1 + W->regions || b->desc.max_links < 1 + W->regions);
}

/* Nothing but hostility happened: no honest packet may have been lost, but the first ones. */
static void check_calm(void)
{
    size_t   i;
    uint32_t lost = 0, all = 0;
    for (i = 0; i < W->packet_count && W->calm; i++) {
        const packet *p = &W->packets[i];
        if (p->at_ms < 20000 || p->at_ms > W->heal_ms - 1000) continue;
        if (p->from == W->hostile || p->to == W->hostile) continue;
        all++;
        lost += !p->got;
    }
    if (all > 200 && lost > all / 20)
        wrong("a hostile member makes others lose %u of %u packets", lost, all);
}

static void check_talk(void)
{
    uint32_t i, k;
    check_calm();
    for (i = 0; i < W->count; i++)
        for (k = 0; k < W->count; k++) {
            if (i == k || talked(i, k, W->now_ms - 15000, false)) continue;
            if (is_scarce(&W->m[i], &W->m[k])) continue;
            describe(&W->m[i], &W->m[k]);
            describe(&W->m[k], &W->m[i]);
            wrong("%s does not get through to %s, %lu s after all is well; states %d, %d",
                  W->m[i].name, W->m[k].name, (unsigned long)(W->now_ms - W->heal_ms) / 1000,
                  W->m[i].n == NULL ? -1 : (int)tailnet_get_state(W->m[i].n),
                  W->m[k].n == NULL ? -1 : (int)tailnet_get_state(W->m[k].n));
        }
}

static void check_direct(void)
{
    uint32_t i, k;
    for (i = 0; i < W->count; i++)
        for (k = 0; k < W->count; k++) {
            machine *a = &W->m[i], *b = &W->m[k];
            if (i == k || expected(a, b) != 1 || a->direct_ms[k] != NEVER) continue;
            if (W->now_ms - a->was_direct_ms[k] < DIRECT_MS) continue;   /* lost some pings  */
            if (is_scarce(a, b)) continue;
            describe(a, b);
            describe(b, a);
            wrong("%s is not direct to %s, %lu s after all is well", a->name, b->name,
                  (unsigned long)(W->now_ms - W->heal_ms) / 1000);
        }
}

/* ---- events ---- */

static void wire_event(const happening *e)
{
    wire    *c = wire_get(e->a, e->b);
    uint32_t len = (uint32_t)(uintptr_t)e->thing;
    if (c == NULL) return;
    if (e->kind == EV_OPEN) wire_opens(e->a, c);
    if (e->kind == EV_UP) wire_up(e->a, c, len);
    if (e->kind == EV_DOWN) wire_down(e->a, c, len);
    if (e->kind == EV_UP_END) wire_ends(e->a, c, true);
    if (e->kind == EV_DOWN_END) wire_ends(e->a, c, false);
    if (e->kind == EV_WRITABLE) wire_writable(c);
}

static void happen(const happening *e)
{
    machine *m = &W->m[e->a < W->count ? e->a : 0];
    switch (e->kind) {
    case EV_POLL:
        if (m->n == NULL || e->b != m->wake) return;
        m->wake_ms = NEVER;
        node_poll(m, false);
        return;
    case EV_SPURIOUS:
        if (e->b == m->boots) node_spurious(m);
        return;
    case EV_BOOT:    node_boot(m, e->b); return;
    case EV_GRAM:    gram_arrives((gram *)e->thing); return;
    case EV_SERVER:  server_turn(); return;
    case EV_ACTION:  if (!W->healed) act(e->a); return;
    case EV_UNDO:    if (!W->healed) undo(&W->actions[e->a]); return;
    case EV_HEAL:    heal(); return;
    case EV_FLOW:    flow_step(e->a); return;
    case EV_EVIL:    evil_step(e->a, e->b); return;
    case EV_ATTACK:  attack_step(e->a, e->b); return;
    case EV_TALK:    check_talk(); return;
    case EV_DIRECT:  check_direct(); return;
    case EV_OPEN: case EV_UP: case EV_DOWN: case EV_UP_END: case EV_DOWN_END: case EV_WRITABLE:
        wire_event(e);
        return;
    }
}

/* The power went while a callback ran: nothing of that call is left. */
static void power_went(void)
{
    machine *m = W->cut;
    say("%s: power cut in a callback", m->name);
    free(W->in_hand);
    W->in_hand = NULL;
    m->cut_after = 0;
    machine_cut(m, m->cut_ms, m->cut_state);
}

/* Not inlined: setjmp is kept apart from what works with registers. */
static void (*volatile happen_at)(const happening *e) = happen;

static void run_until(uint64_t end_ms)
{
    while (!W->failed && W->heap.count != 0 && W->heap.list[0].at_ms <= end_ms) {
        static happening e;                     /* static: it must survive the longjmp         */
        uint64_t     was = W->now_ms;
        heap_pop(&W->heap, &e);
        W->now_ms = e.at_ms;
        W->steps  = was == W->now_ms ? W->steps + 1 : 0;
        if (W->steps > 200000) wrong("time stands still");
        if (setjmp(W->power) == 0) happen_at(&e);
        else power_went();
    }
}

/* ---- worlds ---- */

static world *world_make(uint64_t seed, uint32_t room)
{
    uint32_t i;
    W = (world *)need(1, sizeof *W);
    W->seed   = seed;
    W->rnd    = seed ^ 0x73696d756c617465u;
    W->now_ms = 1000;
    W->hash   = 0xcbf29ce484222325u;
    W->m      = (machine *)need(room, sizeof(machine));
    W->box    = (router *)need(room + 4, sizeof(router));
    W->regions = 1;
    W->hostile = NOBODY;
    W->server_next_ms = NEVER;
    certs_load();
    rnd_fill(&W->rnd, W->mark, SIM_MARK);
    for (i = 0; i < SIM_MARK; i++) W->mark[i] |= 0x80;   /* in no text */
    return W;
}

/* The time that nodes have lived; once, at the end. */
static void world_sum(void)
{
    uint32_t i;
    for (i = 0; i < W->count; i++)
        if (W->m[i].n != NULL) W->node_ms += W->now_ms - W->m[i].boot_ms;
}

static void world_end(void)
{
    size_t i;
    for (i = 0; i < W->count; i++) free(W->m[i].block);
    for (i = 0; i < W->heap.count; i++)
        if (W->heap.list[i].kind == EV_GRAM) free(W->heap.list[i].thing);
    for (i = 0; i < W->wire_count; i++) {
        pipe_clear(&W->wires[i]->up);
        pipe_clear(&W->wires[i]->down);
        free(W->wires[i]);
    }
    for (i = 0; i < SIM_TAPE; i++) free(W->tape[i]);
    if (W->h != NULL) server_end();
    free(W->stun_now);
    free(W->wires);
    free(W->heap.list);
    free(W->m);
    free(W->box);
    free(W->packets);
    free(W->policies);
    free(W->flows);
    free(W->actions);
}

/* Everything is placed: power on, one after the other. */
static void world_start(void)
{
    uint32_t i;
    size_t   k;
    server_make();
    for (i = 0; i < W->count; i++) {
        machine_memory(&W->m[i]);
        plan(W->now_ms + rnd_below(&W->rnd, 2000), EV_BOOT, i, 0, NULL);
    }
    for (k = 0; k < W->action_count; k++)
        plan(W->actions[k].at_ms, EV_ACTION, (uint32_t)k, 0, NULL);
}

#endif
