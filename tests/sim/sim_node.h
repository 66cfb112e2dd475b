/* Nodes: the callbacks, turning the crank, and what must hold after each turn. */
#ifndef SIM_NODE_H
#define SIM_NODE_H

#include "sim_tcp.h"

static void app_packet(machine *m, const uint8_t *b, size_t len);
static void app_flush(machine *m);

enum { MOST_CURVES = 12, MOST_IN_A_ROW = 100, MOST_IDLE = 3,
       MOST_IN_SECOND = 60 };

/* ---- clocks ---- */

static uint64_t node_now(const machine *m)
{
    uint64_t e = W->now_ms - m->boot_ms;
    return m->base_ms + e + (uint64_t)((int64_t)e * m->ppm / 1000000);
}

/* The first moment of the world at which a node's clock shows at least that. */
static uint64_t world_time(const machine *m, uint64_t node_ms)
{
    uint64_t lo = W->now_ms, hi, mid;
    machine  at = *m;
    if (node_ms == NEVER) return NEVER;
    if (node_now(m) >= node_ms) return W->now_ms;
    hi = W->now_ms + (node_ms - node_now(m)) * 2 + 2;
    while (lo < hi) {
        uint64_t e;
        mid = lo + (hi - lo) / 2;
        e   = mid - at.boot_ms;
        if (at.base_ms + e + (uint64_t)((int64_t)e * at.ppm / 1000000) >= node_ms) hi = mid;
        else lo = mid + 1;
    }
    return lo;
}

/* ---- callbacks ---- */

/* The power may go at any of them: the memory of the node is then no more. */
static machine *callback(void *user)
{
    machine *m = (machine *)user;
    if (!m->inside) wrong("%s: a callback out of nowhere", m->name);
    if (m->cut_after != 0 && --m->cut_after == 0) {
        W->cut = m;
        longjmp(W->power, 1);
    }
    return m;
}

static uint64_t io_now(void *user) { return node_now(callback(user)); }

static uint64_t io_unix(void *user)
{
    machine *m = callback(user);
    return m->no_clock ? 0 : SIM_WALL_MS + W->now_ms + (uint64_t)m->skew_ms;
}

static int io_random(void *user, void *dst, size_t size)
{
    rnd_fill(&callback(user)->random_seed, dst, size);
    return 0;
}

/* Attackers live in 6.6.6.0/24, each at a port of its own: none may get more than it gave. */
static void check_attack(const machine *m, const tailnet_addr *to, uint32_t len)
{
    unsigned i = to->port & 255u;
    if (to->family != 4 || tn_get_u32be(to->ip) >> 8 != 0x060606u) return;
    W->attack_out[i] += len;
    W->forged_out += len;
    /* Whom a member named in a call is pinged now and then for as long as it is talked to. */
    if (W->call_ms[i] != 0 && W->attack_out[i] <= W->attack_in[i] + (W->now_ms - W->call_ms[i]) / 4)
        return;
    if (W->attack_out[i] > W->attack_in[i])
        wrong("%s sends %u bytes to a forger who gave %u", m->name, (unsigned)W->attack_out[i],
              (unsigned)W->attack_in[i]);
}

/* Nobody sends to an address that no datagram of a tailnet belongs at. */
static void check_address(const machine *m, const tailnet_addr *to)
{
    uint32_t ip = tn_get_u32be(to->ip);
    bool     bad = to->port == 0;
    if (to->port == 1900 && ip == 0xeffffffau) return;      /* who is the router? (UPnP)   */
    if (to->family == 4)
        bad = bad || ip >> 24 == 0 || ip >> 28 >= 14 || ip >> 22 == 0x191;
    else
        bad = bad || to->ip[0] == 0xff || tn_is_zero(to->ip, 16);
    if (bad) wrong("%s sends to %08x port %u", m->name, (unsigned)ip, to->port);
}

static int io_udp(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    machine *m = callback(user);
    size_t   i;
    bool     fine = true;
    for (i = 0; i < count; i++) {
        const uint8_t *b = pkts[i].base + pkts[i].off;
        m->outputs++;
        m->did = "a datagram";
        hash_number(&W->hash, (uint64_t)m->number << 32 | pkts[i].len);
        hash_bytes(&W->hash, to->ip, to->family == 4 ? 4 : 16);
        hash_number(&W->hash, to->port);
        hash_bytes(&W->hash, b, pkts[i].len);
        if (pkts[i].len > 1472) wrong("%s: a datagram of %u bytes", m->name, pkts[i].len);
        if (!W->marks_off && has_mark(b, pkts[i].len))
            wrong("%s: plaintext in a datagram", m->name);
        if (m->desc.prefs.relay_only || m->relay_only)
            wrong("%s sends UDP although relay_only", m->name);
        check_attack(m, to, pkts[i].len);
        check_address(m, to);
        if (!net_send(m, to, b, pkts[i].len)) fine = false;
    }
    return fine ? 0 : -1;
}

static void io_ip(void *user, tailnet_buf *pkts, size_t count)
{
    machine *m = callback(user);
    size_t   i;
    for (i = 0; i < count; i++) {
        m->outputs++;
        m->did = "a packet";
        hash_number(&W->hash, W->now_ms << 8 | m->number);
        hash_bytes(&W->hash, pkts[i].base + pkts[i].off, pkts[i].len);
        app_packet(m, pkts[i].base + pkts[i].off, pkts[i].len);
    }
}

static int io_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    machine *m = callback(user);
    m->outputs++;
    m->did = "a dial";
    hash_bytes(&W->hash, dial->host, strlen(dial->host));
    hash_number(&W->hash, W->now_ms);
    return net_open(m, link, dial);
}

static int32_t io_output(void *user, tailnet_link link, const void *data, size_t size)
{
    machine *m = callback(user);
    if (m->unasked) say("%s: %u bytes for link %x", m->name, (unsigned)size, (unsigned)link);
    m->outputs++;
    m->did = "bytes";
    return net_output(m, link, data, size);
}

static void io_close(void *user, tailnet_link link)
{
    machine *m = callback(user);
    m->outputs++;
    m->did = "a close";
    net_close(m, link);
}

static void io_log(void *user, int level, uint32_t code, const char *text)
{
    machine *m = (machine *)user;
    (void)level;
    say("%s: log %u %s", m->name, (unsigned)code, text == NULL ? "" : text);
}

/* ---- around every call ---- */

static void node_check(machine *m)
{
    unsigned i;
    for (i = 0; i < SIM_GUARD; i++)
        if (m->block[i] != 0x5a || m->block[SIM_GUARD + m->size + i] != 0x5a) break;
    if (i != SIM_GUARD) wrong("%s writes outside of its memory", m->name);
}

static bool node_enter(machine *m)
{
    if (m->n == NULL) return false;
    m->inside = true;
    return true;
}

static void node_leave(machine *m)
{
    m->inside = false;
    node_check(m);
    node_touch(m);
    app_flush(m);
}

/* Plans a poll, if none is planned as early. */
static void node_wake(machine *m, uint64_t at_ms)
{
    if (at_ms < W->now_ms) at_ms = W->now_ms;
    if (at_ms >= m->wake_ms) return;
    m->wake_ms = at_ms;
    plan(at_ms, EV_POLL, m->number, ++m->wake, NULL);
}

/* Something went in: poll once after the batch. */
static void node_touch(machine *m)
{
    if (m->touched) return;
    m->touched = true;
    node_wake(m, W->now_ms + (m->lag_ms == 0 ? 0 : rnd_below(&W->rnd, m->lag_ms + 1)));
}

/* Is that datagram meant for this node, and for no other? */
static bool gram_is_for(const machine *m, const gram *g)
{
    uint8_t       b[2048], key[32], *plain;
    size_t        len;
    tailnet_node *n = m->n;
    if (g->len > sizeof b) return false;
    memcpy(b, g->data, g->len);
    if (tn_disco_is(b, g->len))
        return g->len >= 38 && tn_cr_box_key(key, n->disco_private, b + 6) &&
               tn_disco_open(key, b, g->len, &plain, &len);
    switch (tn_wg_classify(b, g->len)) {
    case TN_WG_OTHER:      return false;
    case TN_WG_INITIATION: return tn_wg_check_mac1(&n->wg, b, g->len);
    default:               break;
    }
    return tn_node_by_index(n, tn_wg_receiver(b, g->len)) != NULL;
}

/* Did its sender know at that time that this node is no longer in the tailnet? */
static void check_sent(const machine *m, const gram *g)
{
    const machine *from;
    uint64_t       bit = (uint64_t)1 << m->number % SIM_MASKED;
    if (g->sender == NOBODY || W->count > SIM_MASKED) return;
    from = &W->m[g->sender];
    if ((g->known & bit) != 0 || (from->known & bit) != 0 || from == m) return;
    if (from->lost_ms[m->number] == 0 || from->lost_ms[m->number] >= g->sent_ms) return;
    if (gram_is_for(m, g))
        wrong("%s has sent to %s at %lu ms, %lu ms after it left", from->name, m->name,
              (unsigned long)g->sent_ms,
              (unsigned long)(g->sent_ms - from->lost_ms[m->number]));
}

static void node_datagram(machine *m, gram *g)
{
    tailnet_buf  b;
    tailnet_addr from = g->from;
    if (m->n == NULL || m->link_down || m->no_udp || m->only_443 || !fw_lets(m, &g->from)) {
        gram_lost(g);
        return;
    }
    check_sent(m, g);
    memset(&b, 0, sizeof b);
    b.base = g->data;
    b.cap  = g->len;
    b.len  = g->len;
    W->in_hand = g;
    if (node_enter(m)) {
        (void)tailnet_udp_input(m->n, &from, &b, 1);
        node_leave(m);
    }
    W->in_hand = NULL;
    free(g);
}

/* ---- what the node knows ---- */

static void note_self(machine *m)
{
    tailnet_self self;
    uint32_t     ip;
    unsigned     i;
    if (!tailnet_get_self(m->n, &self)) return;
    memcpy(m->key, self.key, 32);
    ip = tn_get_u32be(self.ip4.ip);
    for (i = 0; i < m->ip_count && m->ips[i] != ip; i++) {}
    if (i == m->ip_count && ip != 0 && i < 8) m->ips[m->ip_count++] = ip;
    if (i < m->ip_count && i != 0) {        /* the present one first                       */
        m->ips[i] = m->ips[0];
        m->ips[0] = ip;
    }
}

static bool node_knows(const machine *m, const machine *other, tailnet_peer *peer)
{
    tailnet_addr a;
    size_t       index;
    unsigned     i;
    for (i = 0; i < other->ip_count; i++) {
        addr4(&a, other->ips[i], 0);
        if (tailnet_find_peer_by_ip(m->n, &a, &index) && tailnet_get_peer(m->n, index, peer))
            return true;
    }
    return false;
}

static void note_peers(machine *m)
{
    tailnet_peer peer;
    uint32_t     i;
    uint64_t     known = 0;
    for (i = 0; i < W->count && i < SIM_MASKED; i++) {
        machine *o = &W->m[i];
        bool     direct;
        if (o == m || !node_knows(m, o, &peer)) continue;
        known |= (uint64_t)1 << i;
        direct = peer.path == TAILNET_PATH_DIRECT;
        if (direct && m->direct_ms[i] == NEVER) {
            say("%s: direct to %s, %u ms", m->name, o->name, peer.latency_ms);
            m->direct_ms[i] = W->now_ms;
            W->directs++;
        }
        if (!direct && m->direct_ms[i] != NEVER) {
            say("%s: no longer direct to %s", m->name, o->name);
            m->direct_ms[i]     = NEVER;
            m->was_direct_ms[i] = W->now_ms;
        }
    }
    for (i = 0; i < W->count && i < SIM_MASKED; i++)
        if ((m->known >> i & 1) != 0 && (known >> i & 1) == 0) m->lost_ms[i] = W->now_ms;
    m->known = known;
}

/* Nobody may be known whom the server has removed. */
static void check_removed(machine *m)
{
    tailnet_addr a;
    uint32_t     i;
    unsigned     k;
    size_t       index;
    char         id[16];
    for (i = 0; i < W->count; i++)
        for (k = 0; k < W->m[i].ip_count; k++) {
            snprintf(id, sizeof id, "%u", (unsigned)(W->m[i].ips[k] & 0x3fffffu));
            addr4(&a, W->m[i].ips[k], 0);
            if (node_by_name(W->h, id) == NULL && tailnet_find_peer_by_ip(m->n, &a, &index))
                wrong("%s still knows %s, which was removed", m->name, W->m[i].name);
        }
}

/* Has the newest filter certainly arrived, and who is there? */
static void note_server(machine *m)
{
    size_t i;
    if (m->clock == W->h->clock && m->region_clock == W->region_clock) return;
    if (W->count > SIM_MASKED || m->touched) return;
    for (i = 0; i < W->h->conn_count; i++) {
        conn    *c = &W->h->conns[i];
        wire    *w;
        session *s;
        if (c->stage != AT_CONTROL || c->to != c->from) continue;
        w = W->wires[c->fd];
        s = &control_of(c)->map;
        if (w->node != m->number || w->boot != m->boots || s->stream == 0 || s->left != 0 ||
            s->first || s->policy_seen < W->h->policy_clock || w->down.bytes != 0)
            continue;
        if (!c->gone && !w->reset) m->region_clock = W->region_clock;
        m->policy = (uint32_t)W->policy_count - 1;
        if (s->checked != W->h->clock) continue;
        m->clock = W->h->clock;
        check_removed(m);
    }
}

/* ---- turning it ---- */

static void node_save(machine *m)
{
    unsigned slot = 1 - m->newest;
    m->saved_len[slot] = tailnet_export_state(m->n, m->saved[slot], sizeof m->saved[slot]);
    if (m->saved_len[slot] > sizeof m->saved[slot]) wrong("%s: the state is too long", m->name);
    m->newest = slot;
    m->saves++;
}

static void node_turned(machine *m, bool spurious, unsigned curves, uint64_t outputs,
                        uint32_t events)
{
    bool idle = curves == 0 && outputs == m->outputs && events == 0;
    if (m->second != W->now_ms / 1000) m->curves = 0;
    m->second = W->now_ms / 1000;
    m->curves += curves;
    if (W->hostile != NOBODY && m->curves > MOST_IN_SECOND)
        wrong("%s: %u X25519 in one second", m->name, (unsigned)m->curves);
    if (curves > MOST_CURVES) wrong("%s: %u X25519 in one poll", m->name, curves);
    if (spurious && !idle)
        wrong("%s: a poll at %lu did something (%s, events %x, %u curves), its deadline was "
              "%lu",
              m->name, (unsigned long)node_now(m), m->did, (unsigned)events, curves,
              (unsigned long)m->deadline_ms);
    if (!m->touched && m->last_poll_ms == W->now_ms && !spurious) {
        if (++m->in_a_row > MOST_IN_A_ROW) wrong("%s: spins", m->name);
        m->idle = idle ? m->idle + 1 : 0;
        if (m->idle > MOST_IDLE) wrong("%s: polls that do nothing", m->name);
    } else {
        m->in_a_row = m->idle = 0;
    }
    if (idle && !m->touched && !spurious) W->idle++;
}

static void node_poll(machine *m, bool spurious)
{
    unsigned      curves = sim_curves, i;
    uint64_t      outputs = m->outputs;
    tailnet_state was = tailnet_get_state(m->n), is;
    uint32_t      events;
    (void)node_enter(m);
    m->unasked = spurious;
    m->did = "nothing";
    node_clock(false);
    events = tailnet_poll(m->n);
    node_clock(true);
    m->inside = m->unasked = false;
    m->polls++;
    m->events |= events;
    hash_number(&W->hash, events);
    node_turned(m, spurious, sim_curves - curves, outputs, events);
    is = tailnet_get_state(m->n);
    if (is != was) say("%s: state %d -> %d", m->name, (int)was, (int)is);
    if (is != was && (events & TAILNET_EVENT_STATE) == 0) wrong("%s: a state unsaid", m->name);
    if (is == TAILNET_STATE_RUNNING && was != is) m->up_ms = W->now_ms;
    if ((events & TAILNET_EVENT_SAVE) != 0) node_save(m);
    if (events != 0) note_self(m);
    if (events != 0 && W->count <= SIM_MASKED) note_peers(m);
    if (!spurious) m->touched = false;
    m->last_poll_ms = W->now_ms;
    node_check(m);
    note_server(m);
    for (i = 0; i < SIM_LINKS; i++) {
        wire *c = m->wires[i];
        if (c == NULL || !c->blocked) continue;
        c->blocked = false;
        plan(W->now_ms, EV_DOWN, m->wire_ids[i], c->number, NULL);
    }
    app_flush(m);
    m->deadline_ms = tailnet_deadline(m->n);
    m->wake_ms     = NEVER;
    if (m->touched) node_wake(m, W->now_ms);
    node_wake(m, world_time(m, m->deadline_ms));
    /* Now and then somebody polls for no reason, and mostly just before it is time. */
    if (!spurious && m->wake_ms != NEVER && m->wake_ms > W->now_ms + 1 &&
        rnd_chance(&W->rnd, 300))
        plan(rnd_chance(&W->rnd, 700) ? m->wake_ms - 1
                                      : W->now_ms + 1 + rnd_below(&W->rnd, 500),
             EV_SPURIOUS, m->number, m->boots, NULL);
}

static void node_spurious(machine *m)
{
    if (m->n == NULL || m->touched || m->wake_ms <= W->now_ms) return;
    if (world_time(m, tailnet_deadline(m->n)) <= W->now_ms) return;
    W->spurious++;
    node_poll(m, true);
}

/* ---- power ---- */

static void node_network(machine *m, bool changed)
{
    tailnet_addr    addrs[2];
    tailnet_network net;
    memset(&net, 0, sizeof net);
    if (m->ip4 != 0) addr4(&addrs[net.addr_count++], m->ip4, SIM_PORT);
    if (m->has6) {
        tailnet_addr *a = &addrs[net.addr_count++];
        memset(a, 0, sizeof *a);
        a->family = 6;
        a->port   = SIM_PORT;
        memcpy(a->ip, m->ip6, 16);
    }
    net.addrs   = addrs;
    net.changed = changed;
    net.port_fixed = m->forwarded;
    if (m->box >= 0) addr4(&net.gateway, W->box[m->box].lan + 1, 0);
    if (!node_enter(m)) return;
    if (tailnet_set_network(m->n, &net) != TAILNET_OK) wrong("set_network is refused");
    node_leave(m);
}

static void node_off(machine *m)
{
    uint32_t i;
    if (m->n == NULL) return;
    say("%s: power off", m->name);
    W->node_ms += W->now_ms - m->boot_ms;
    m->n      = NULL;
    m->inside = false;
    m->wake_ms = NEVER;
    m->wake++;
    m->echoes = 0;
    m->known  = 0;
    for (i = 0; i < SIM_MASKED; i++) m->direct_ms[i] = NEVER;
    memset(m->block + SIM_GUARD, 0xa5, m->size);
    net_power_off(m);
}

/* which: 0 what was saved last, 1 only the older one, 2 nothing. */
static void node_boot(machine *m, unsigned which)
{
    tailnet_result result;
    unsigned       old = 1 - m->newest, i;
    tailnet_desc   desc;
    if (m->n != NULL) return;
    m->boots++;
    W->boots++;
    m->boot_ms = W->now_ms;
    m->base_ms = rnd_below(&W->rnd, 5000);
    m->touched = false;
    m->cut_after = 0;
    m->last_poll_ms = NEVER;
    m->random_seed = W->seed * 31 + m->number * 1009u + m->boots;
    memset(m->desc.saved_state, 0, sizeof m->desc.saved_state);
    for (i = 0; i < 2; i++) {
        if (which == 2 || (which == 1 && i != old) || m->saved_len[i] == 0) continue;
        m->desc.saved_state[i].data = m->saved[i];
        m->desc.saved_state[i].size = m->saved_len[i];
    }
    if (which != 0 && m->saves != 0) m->stale = true;
    say("%s: power on, state %u", m->name, which);
    desc = m->desc;
    desc.prefs.shields_up = m->shields;
    desc.prefs.relay_only = desc.prefs.relay_only || m->relay_only;
    m->inside = true;
    result = tailnet_init(&m->n, &desc);
    if (result != TAILNET_OK) {
        wrong("%s: tailnet_init gives %d", m->name, (int)result);
        m->n = NULL;
        return;
    }
    node_network(m, false);
    m->inside = true;
    if (m->wanted && tailnet_up(m->n) != TAILNET_OK) wrong("tailnet_up is refused");
    node_leave(m);
    m->wake_ms = NEVER;
    node_wake(m, W->now_ms);
}

#endif
