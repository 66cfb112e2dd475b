/* Datagrams: out through firewalls and routers, over lossy lines, in again. A router translates
 * on the way out when a datagram is sent, and on the way in when it arrives. */
#ifndef SIM_NET_H
#define SIM_NET_H

#include "sim_world.h"

static void node_datagram(machine *m, gram *g);

/* ---- addresses ---- */

static end4 end4_of(const tailnet_addr *a)
{
    end4 e;
    e.ip   = tn_get_u32be(a->ip);
    e.port = a->port;
    return e;
}

static void addr4(tailnet_addr *out, uint32_t ip, uint16_t port)
{
    memset(out, 0, sizeof *out);
    out->family = 4;
    out->port   = port;
    tn_put_u32be(out->ip, ip);
}

static bool end4_same(end4 a, end4 b) { return a.ip == b.ip && a.port == b.port; }

static uint32_t server_ip(unsigned relay_at) { return 0xcb007114u + relay_at; }  /* 203.0.113.20 */

static void server_ip6(unsigned relay_at, uint8_t ip[16])
{
    memset(ip, 0, 16);
    tn_put_u32be(ip, 0x20010db8u);
    ip[4]  = 0xff;
    ip[15] = (uint8_t)(20 + relay_at);
}

/* ---- mappings ---- */

static bool mapping_lives(const router *r, const mapping *p)
{
    if (!p->used) return false;
    return p->fixed ? p->end_ms > W->now_ms : W->now_ms - p->last_ms < r->timeout_ms;
}

static bool port_taken(const router *r, uint16_t port)
{
    unsigned i;
    for (i = 0; i < SIM_MAPS; i++)
        if (mapping_lives(r, &r->maps[i]) && !r->maps[i].exact && r->maps[i].port == port)
            return true;
    return false;
}

/* A place for a mapping: a free one, or that which was quiet for the longest. */
static mapping *mapping_new(router *r, end4 in, end4 to)
{
    mapping *best = NULL;
    unsigned i;
    for (i = 0; i < SIM_MAPS; i++) {
        mapping *p = &r->maps[i];
        if (p->fixed && mapping_lives(r, p)) continue;
        if (!mapping_lives(r, p)) {
            best = p;
            break;
        }
        if (best == NULL || p->last_ms < best->last_ms) best = p;
    }
    if (best == NULL) best = &r->maps[0];
    memset(best, 0, sizeof *best);
    best->used    = true;
    best->in      = in;
    best->to      = to;
    best->last_ms = W->now_ms;
    best->end_ms  = NEVER;
    return best;
}

static uint16_t port_new(const router *r, uint16_t wish)
{
    uint16_t port = wish;
    if (r->keep_port && !port_taken(r, wish)) return wish;
    do port = (uint16_t)(32768 + rnd_below(&W->rnd, 32768));
    while (port_taken(r, port));
    return port;
}

static void remember(mapping *p, end4 who)
{
    unsigned i;
    for (i = 0; i < SIM_REMOTES; i++)
        if (end4_same(p->seen[i].who, who)) break;
    if (i == SIM_REMOTES) i = p->next++ % SIM_REMOTES;
    p->seen[i].who   = who;
    p->seen[i].at_ms = W->now_ms;
}

/* What the outside sees of a datagram that leaves. */
static end4 nat_out(router *r, end4 from, end4 to)
{
    mapping *p = NULL;
    end4     key = to, out;
    unsigned i;
    for (i = 0; i < SIM_MAPS && p == NULL; i++) {
        mapping *q = &r->maps[i];
        if (mapping_lives(r, q) && q->exact && end4_same(q->in, from) && end4_same(q->to, to))
            p = q;
    }
    if (r->kind != NAT_APDM) key.port = 0;
    if (r->kind == NAT_EIM) key.ip = 0;
    for (i = 0; i < SIM_MAPS && p == NULL; i++) {
        mapping *q = &r->maps[i];
        if (mapping_lives(r, q) && !q->fixed && !q->exact && end4_same(q->in, from) &&
            end4_same(q->to, key))
            p = q;
    }
    if (p == NULL) {
        uint16_t port = port_new(r, from.port);
        p       = mapping_new(r, from, key);
        p->port = port;
    }
    p->last_ms = W->now_ms;
    remember(p, to);
    out.ip   = r->wan;
    out.port = p->port;
    return out;
}

static bool filter_lets(const router *r, const mapping *p, end4 from)
{
    unsigned i;
    if (p->fixed || r->filter == NAT_ANY) return true;
    for (i = 0; i < SIM_REMOTES; i++) {
        const remote *s = &p->seen[i];
        if (s->at_ms == 0 || s->who.ip != from.ip || W->now_ms - s->at_ms >= r->timeout_ms)
            continue;
        if (r->filter == NAT_ADF || s->who.port == from.port) return true;
    }
    return false;
}

/* Whom inside a datagram from outside is for; false: nobody. */
static bool nat_in(router *r, end4 from, uint16_t port, end4 *in)
{
    unsigned i;
    for (i = 0; i < SIM_MAPS; i++) {
        mapping *p = &r->maps[i], *flow;
        if (!mapping_lives(r, p) || p->port != port || !filter_lets(r, p, from)) continue;
        if (p->exact && !end4_same(p->to, from)) continue;
        *in = p->in;
        if (r->refresh_in) {
            p->last_ms = W->now_ms;
            if (!p->fixed) remember(p, from);
        }
        if (p->fixed) {
            unsigned k;
            for (k = 0; k < SIM_MAPS; k++)
                if (mapping_lives(r, &r->maps[k]) && r->maps[k].exact &&
                    end4_same(r->maps[k].to, from) && end4_same(r->maps[k].in, *in))
                    return true;
            flow        = mapping_new(r, *in, from);
            flow->exact = true;
            flow->port  = port;
            remember(flow, from);
        }
        return true;
    }
    return false;
}

static void nat_forget(router *r)
{
    unsigned i;
    for (i = 0; i < SIM_MAPS; i++)
        if (!(r->maps[i].fixed && r->maps[i].end_ms == NEVER)) r->maps[i].used = false;
}

/* ---- the stateful firewall of a host, and of a router for IPv6 ---- */

static bool fw_same(const flow_seen *f, const tailnet_addr *a)
{
    return f->at_ms != 0 && f->port == a->port &&
           (a->family == 4 ? f->who.ip == tn_get_u32be(a->ip) : memcmp(f->ip6, a->ip, 16) == 0) &&
           (a->family == 4) == tn_is_zero(f->ip6, 16);
}

static void fw_out(machine *m, const tailnet_addr *to)
{
    flow_seen *f = NULL;
    unsigned   i;
    for (i = 0; i < SIM_FLOWS && f == NULL; i++)
        if (fw_same(&m->fw[i], to)) f = &m->fw[i];
    if (f == NULL) f = &m->fw[m->fw_next++ % SIM_FLOWS];
    memset(f, 0, sizeof *f);
    f->at_ms = W->now_ms == 0 ? 1 : W->now_ms;
    f->port  = to->port;
    if (to->family == 4) f->who.ip = tn_get_u32be(to->ip);
    else                 memcpy(f->ip6, to->ip, 16);
}

static bool fw_lets(machine *m, const tailnet_addr *from)
{
    unsigned i;
    if (!m->host_fw && !(m->router_fw6 && from->family == 6)) return true;
    for (i = 0; i < SIM_FLOWS; i++)
        if (fw_same(&m->fw[i], from) && W->now_ms - m->fw[i].at_ms < 120000) {
            m->fw[i].at_ms = W->now_ms;
            return true;
        }
    return false;
}

/* ---- lines ---- */

static uint32_t apart(uint32_t a, uint32_t b) { return a > b ? a - b : b - a; }

/* One way from a node to a place. */
static uint32_t line_ms(const machine *m, uint32_t place)
{
    return 1 + m->lat_ms + apart(m->place_ms, place) +
           (m->jitter_ms == 0 ? 0 : rnd_below(&W->rnd, m->jitter_ms + 1));
}

/* Does the line of a node lose a datagram, and how much later does it come? */
static bool line_loses(const machine *m, uint32_t *more_ms)
{
    if (m->link_down || rnd_chance(&W->rnd, m->loss)) return true;
    if (rnd_chance(&W->rnd, m->late)) *more_ms += 5 + rnd_below(&W->rnd, 60);
    return false;
}

static machine *node_at4(int level, uint32_t ip)
{
    uint32_t i;
    for (i = 0; i < W->count; i++)
        if (W->m[i].box == level && W->m[i].ip4 == ip && ip != 0) return &W->m[i];
    return NULL;
}

static machine *node_at6(const uint8_t ip[16])
{
    uint32_t i;
    for (i = 0; i < W->count; i++)
        if (W->m[i].has6 && memcmp(W->m[i].ip6, ip, 16) == 0) return &W->m[i];
    return NULL;
}

static router *box_at(int level, uint32_t ip)
{
    uint32_t i;
    for (i = 0; i < W->boxes; i++)
        if (W->box[i].outer == level && W->box[i].wan == ip) return &W->box[i];
    return NULL;
}

static int server_at(const tailnet_addr *a)
{
    unsigned i;
    uint8_t  ip[16];
    for (i = 0; i < W->regions; i++) {
        server_ip6(i, ip);
        if (a->family == 4 ? tn_get_u32be(a->ip) == server_ip(i) : memcmp(a->ip, ip, 16) == 0)
            return (int)i;
    }
    return -1;
}

static gram *gram_new(const void *data, uint32_t len)
{
    gram *g = (gram *)need(1, sizeof *g + len + 64);
    g->len    = len;
    g->sender = NOBODY;
    memcpy(g->data, data, len);
    W->grams++;
    return g;
}

static void gram_lost(gram *g)
{
    W->gram_lost++;
    free(g);
}

/* ---- a gateway that maps ports on request (NAT-PMP, RFC 6886) ---- */

static void gateway(router *r, gram *g)
{
    uint8_t  b[16];
    tn_wr    w;
    gram    *answer;
    uint16_t port, wish;
    uint32_t life;
    mapping *p = NULL;
    unsigned i;
    machine *m = node_at4(g->level, tn_get_u32be(g->from.ip));
    if (!r->grants || m == NULL || g->len < 2) return;
    tn_wr_over(&w, b, sizeof b);
    tn_wr_u8(&w, 0);
    tn_wr_u8(&w, 128 + (g->data[1] & 127u));
    tn_wr_u16be(&w, g->data[0] != 0 ? 1 : g->data[1] > 1 ? 5 : 0);
    tn_wr_u32be(&w, (uint32_t)((W->now_ms - r->reboot_ms) / 1000));
    if (g->data[0] == 0 && g->data[1] == 0) {
        tn_wr_u32be(&w, r->wan);
    } else if (g->data[0] == 0 && g->data[1] == 1 && g->len >= 12) {
        port = (uint16_t)(g->data[4] << 8 | g->data[5]);
        wish = (uint16_t)(g->data[6] << 8 | g->data[7]);
        life = tn_get_u32be(g->data + 8);
        for (i = 0; i < SIM_MAPS && p == NULL; i++)
            if (mapping_lives(r, &r->maps[i]) && r->maps[i].fixed &&
                r->maps[i].in.ip == m->ip4 && r->maps[i].in.port == port)
                p = &r->maps[i];
        if (p == NULL) {
            end4 in, none = { 0, 0 };
            in.ip   = m->ip4;
            in.port = port;
            wish    = wish == 0 || port_taken(r, wish) ? port_new(r, port) : wish;
            p       = mapping_new(r, in, none);
            p->fixed = true;
            p->port  = wish;
        }
        p->end_ms = W->now_ms + 1000u * (uint64_t)life;
        tn_wr_u16be(&w, port);
        tn_wr_u16be(&w, p->port);
        tn_wr_u32be(&w, life);
    }
    answer        = gram_new(b, (uint32_t)tn_wr_len(&w));
    answer->level = g->level;
    answer->from  = g->to;
    answer->to    = g->from;
    plan(W->now_ms + 1, EV_GRAM, 0, 0, answer);
}

/* ---- STUN ---- */

static void to_stun(gram *g)
{
    stun_wait *s = (stun_wait *)need(1, sizeof *s), **at = &W->stun_first;
    s->g = g;
    while (*at != NULL) at = &(*at)->next;
    *at = s;
    stun_work(W->h);
}

static ssize_t sim_recvfrom(void *dst, size_t cap, struct sockaddr *from, socklen_t *len)
{
    stun_wait          *s = W->stun_first;
    gram               *g;
    struct sockaddr_in  in;
    struct sockaddr_in6 in6;
    size_t              n;
    if (W->stun_now != NULL) free(W->stun_now);
    W->stun_now = NULL;
    if (s == NULL) return -1;
    W->stun_first = s->next;
    W->stun_now   = g = s->g;
    free(s);
    n = g->len < cap ? g->len : cap;
    memcpy(dst, g->data, n);
    if (g->from.family == 4) {
        memset(&in, 0, sizeof in);
        in.sin_family = AF_INET;
        in.sin_port   = htons(g->from.port);
        memcpy(&in.sin_addr, g->from.ip, 4);
        memcpy(from, &in, sizeof in);
        *len = sizeof in;
    } else {
        memset(&in6, 0, sizeof in6);
        in6.sin6_family = AF_INET6;
        in6.sin6_port   = htons(g->from.port);
        memcpy(&in6.sin6_addr, g->from.ip, 16);
        memcpy(from, &in6, sizeof in6);
        *len = sizeof in6;
    }
    return (ssize_t)n;
}

/* The machine that a datagram for the Internet ends at, as far as its lines count. */
static machine *line_of(const tailnet_addr *a)
{
    router  *r;
    uint32_t i;
    if (a->family == 6) return node_at6(a->ip);
    r = box_at(-1, tn_get_u32be(a->ip));
    if (r == NULL) return node_at4(-1, tn_get_u32be(a->ip));
    for (i = 0; i < W->count; i++) {
        int at = W->m[i].box;
        while (at >= 0 && &W->box[at] != r) at = W->box[at].outer;
        if (at >= 0) return &W->m[i];
    }
    return NULL;
}

static ssize_t sim_sendto(const void *src, size_t len, const struct sockaddr *to)
{
    gram    *g = gram_new(src, (uint32_t)len);
    machine *m = line_of(&W->stun_now->from);
    uint32_t more = 0;
    int      relay_at = server_at(&W->stun_now->to);
    (void)to;                               /* it is where the request came from           */
    g->level = -1;
    g->from  = W->stun_now->to;
    g->to    = W->stun_now->from;
    if (m == NULL || relay_at < 0 || line_loses(m, &more)) gram_lost(g);
    else plan(W->now_ms + line_ms(m, W->region_place[relay_at]) + more, EV_GRAM, 0, 0, g);
    return (ssize_t)len;
}

/* ---- in ---- */

/* A datagram has come to where its address is. */
static void gram_arrives(gram *g)
{
    machine *m;
    router  *r;
    end4     in;
    int      relay_at;
    unsigned hops = 0;
    while (g->to.family == 4 && hops++ < 4) {
        uint32_t ip = tn_get_u32be(g->to.ip);
        relay_at = g->level < 0 ? server_at(&g->to) : -1;
        if (relay_at >= 0) {
            if (g->to.port == SIM_STUN && !W->region_down[relay_at]) to_stun(g);
            else                                                  gram_lost(g);
            return;
        }
        if (g->level >= 0 && ip == W->box[g->level].lan + 1) {
            if (g->to.port == 5351) gateway(&W->box[g->level], g);
            gram_lost(g);
            return;
        }
        m = node_at4(g->level, ip);
        if (m != NULL) {
            node_datagram(m, g);
            return;
        }
        r = box_at(g->level, ip);
        if (r == NULL || r->no_udp || !nat_in(r, end4_of(&g->from), g->to.port, &in)) break;
        addr4(&g->to, in.ip, in.port);
        g->level = (int)(r - W->box);
    }
    relay_at = g->to.family == 6 ? server_at(&g->to) : -1;
    if (relay_at >= 0 && g->to.port == SIM_STUN && !W->region_down[relay_at]) {
        to_stun(g);
        return;
    }
    m = g->to.family == 6 ? node_at6(g->to.ip) : NULL;
    if (m != NULL) node_datagram(m, g);
    else           gram_lost(g);
}

/* ---- out ---- */

/* Through the routers of a node, up to the LAN or the Internet that has the address; false: it
 * does not get there. */
static bool gram_leaves(const machine *m, gram *g)
{
    int  at = m->box;
    end4 from = end4_of(&g->from), to = end4_of(&g->to);
    while (at >= 0) {
        router *r = &W->box[at];
        if ((to.ip & 0xffffff00u) == r->lan) break;
        if (r->no_udp || (to.ip == r->wan && !r->hairpin)) return false;
        from = nat_out(r, from, to);
        at   = r->outer;
    }
    addr4(&g->from, from.ip, from.port);
    g->level = at;
    return true;
}

/* Delay, loss, repetition of what is on its way. */
static void gram_travels(const machine *m, gram *g)
{
    const machine *to = g->level < 0 ? line_of(&g->to) : NULL;
    int            relay_at = g->level < 0 ? server_at(&g->to) : -1;
    uint32_t       more = 0, mtu = m->mtu, head = g->to.family == 4 ? 28 : 48;
    uint64_t       at = W->now_ms + 1;
    if (to != NULL && to->mtu < mtu) mtu = to->mtu;
    if (g->level >= 0) mtu = 1500;
    if (g->len + head > mtu || (g->level < 0 && line_loses(m, &more)) ||
        (to != NULL && to != m && line_loses(to, &more))) {
        gram_lost(g);
        return;
    }
    if (relay_at >= 0)     at = W->now_ms + line_ms(m, W->region_place[relay_at]) + more;
    else if (to != NULL) at = W->now_ms + line_ms(m, to->place_ms) + to->lat_ms + more;
    if (rnd_chance(&W->rnd, m->twice)) {
        gram *again = gram_new(g->data, g->len);
        memcpy(again, g, sizeof *g);
        plan(at + 1 + rnd_below(&W->rnd, 20), EV_GRAM, 0, 0, again);
    }
    plan(at, EV_GRAM, 0, 0, g);
}

/* A line for each datagram that a node sends, for who looks closely. */
static void tell_gram(const machine *m, const gram *g)
{
    uint8_t     text[64];
    tn_wr       w;
    const char *what = "?";
    if (g->len >= 20 && g->data[0] == 0 && g->data[1] == 1) what = "STUN";
    else if (tn_disco_is(g->data, g->len)) what = "disco";
    else if (g->len >= 32 && g->data[0] >= 1 && g->data[0] <= 4) what = "WireGuard";
    tn_wr_over(&w, text, sizeof text);
    tn_wr_addr(&w, &g->to);
    say("%s: %s %u bytes to %.*s", m->name, what, (unsigned)g->len, (int)tn_wr_len(&w),
        (const char *)text);
}

/* The hostile member listens. */
static void overhear(const gram *g)
{
    gram **at = &W->tape[W->tape_count++ % SIM_TAPE];
    free(*at);
    *at = (gram *)need(1, sizeof *g + g->len);
    memcpy(*at, g, sizeof *g + g->len);
}

/* The socket of a node; false: no such address can be reached from here. */
static bool net_send(machine *m, const tailnet_addr *to, const void *data, uint32_t len)
{
    gram *g;
    if (to->family == 4 ? m->ip4 == 0 : !m->has6) return false;
    if (m->no_udp || m->only_443 || m->link_down) {
        W->gram_lost++;
        return true;
    }
    g         = gram_new(data, len);
    g->to     = *to;
    g->sender = m->number;
    g->known  = m->known;
    g->sent_ms = W->now_ms;
    g->level  = -1;
    fw_out(m, to);
    if (W->chatty) tell_gram(m, g);
    if (to->family == 4) {
        addr4(&g->from, m->ip4, SIM_PORT);
        if (!gram_leaves(m, g)) {
            gram_lost(g);
            return true;
        }
    } else {
        memset(&g->from, 0, sizeof g->from);
        g->from.family = 6;
        g->from.port   = SIM_PORT;
        memcpy(g->from.ip, m->ip6, 16);
    }
    if (W->hostile != NOBODY) overhear(g);
    gram_travels(m, g);
    return true;
}

#endif
