/* The applications: packets with a mark that must never be seen outside, each delivered at most
 * once, only to whom it was sent, only where a rule lets it. Who gets one answers it. */
#ifndef SIM_APP_H
#define SIM_APP_H

#include "sim_node.h"

enum { APP_HEAD = SIM_MARK + 5, APP_FROM_PORT = 5000, APP_PORT = 7000 };

/* ---- what the rules say ---- */

static bool ports_have(const char *ports, unsigned port)
{
    uint64_t first, last;
    while (next_ports(&ports, &first, &last))
        if (first <= port && port <= last) return true;
    return false;
}

static bool policy_lets(const policy_was *p, const machine *from, const machine *to,
                        unsigned port)
{
    const node *a = node_by_key(W->h, from->key), *b = node_by_key(W->h, to->key);
    size_t      i;
    for (i = 0; i < p->count; i++) {
        const rule *r = &p->rules[i];
        bool src = strcmp(r->src, "*") == 0 || (a != NULL && rule_means(r->src, a));
        bool dst = strcmp(r->dst, "*") == 0 || (b != NULL && rule_means(r->dst, b));
        if (src && dst && ports_have(r->ports, port)) return true;
    }
    return false;
}

/* May it be that m still had a policy that lets this packet in? */
static bool may_pass(const machine *from, const machine *m, unsigned port)
{
    size_t i;
    for (i = m->policy; i < W->policy_count; i++)
        if (policy_lets(&W->policies[i], from, m, port)) return true;
    return false;
}

static void policy_note(void)
{
    policy_was *p;
    W->policies = (policy_was *)grown(W->policies, W->policy_count, &W->policy_cap, sizeof *p);
    p = &W->policies[W->policy_count++];
    memset(p, 0, sizeof *p);
    p->count = W->h->rule_count < 8 ? W->h->rule_count : 8;
    memcpy(p->rules, W->h->rules, p->count * sizeof p->rules[0]);
    p->clock = W->h->policy_clock;
}

/* ---- packets ---- */

static uint16_t ip_sum(const uint8_t *b, size_t len)
{
    uint32_t sum = 0;
    size_t   i;
    for (i = 0; i + 1 < len; i += 2) sum += (uint32_t)(b[i] << 8 | b[i + 1]);
    while (sum >> 16 != 0) sum = (sum & 0xffffu) + (sum >> 16);
    return (uint16_t)~sum;
}

static void ip6_of(uint32_t ip4, uint8_t out[16])
{
    static const uint8_t net6[6] = { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0 };
    memset(out, 0, 16);
    memcpy(out, net6, 6);
    tn_put_u32be(out + 12, ip4 & 0x003fffffu);
}

/* An IP packet with UDP in it; returns its length. */
static size_t app_build(uint8_t *b, bool six, uint32_t from, uint32_t to, uint16_t from_port,
                        uint16_t to_port, uint32_t id, bool echo, size_t size)
{
    size_t   head = six ? 40u : 20u, i;
    uint16_t sum;
    tn_wr    w;
    tn_wr_over(&w, b, 1500);
    if (six) {
        uint8_t ip[16];
        tn_wr_u32be(&w, 0x60000000u);
        tn_wr_u16be(&w, (unsigned)(8 + size));
        tn_wr_u16be(&w, 17 << 8 | 64);
        ip6_of(from, ip);
        tn_wr_bytes(&w, ip, 16);
        ip6_of(to, ip);
        tn_wr_bytes(&w, ip, 16);
    } else {
        tn_wr_u16be(&w, 0x4500);
        tn_wr_u16be(&w, (unsigned)(28 + size));
        tn_wr_u32be(&w, 0);
        tn_wr_u16be(&w, 64 << 8 | 17);
        tn_wr_u16be(&w, 0);
        tn_wr_u32be(&w, from);
        tn_wr_u32be(&w, to);
        sum   = ip_sum(b, 20);
        b[10] = (uint8_t)(sum >> 8);
        b[11] = (uint8_t)sum;
    }
    tn_wr_u16be(&w, from_port);
    tn_wr_u16be(&w, to_port);
    tn_wr_u16be(&w, (unsigned)(8 + size));
    tn_wr_u16be(&w, 0);
    tn_wr_bytes(&w, W->mark, SIM_MARK);
    tn_wr_u32be(&w, id);
    tn_wr_u8(&w, echo);
    for (i = APP_HEAD; i < size; i++) tn_wr_u8(&w, W->mark[i % SIM_MARK]);
    return head + 8 + size;
}

static uint32_t packet_new(uint32_t from, uint32_t to, uint32_t size, uint16_t port, bool six,
                           bool echo)
{
    packet *p;
    W->packets = (packet *)grown(W->packets, W->packet_count, &W->packet_cap, sizeof *p);
    p = &W->packets[W->packet_count];
    memset(p, 0, sizeof *p);
    p->from  = from;
    p->to    = to;
    p->size  = size;
    p->echo  = echo;
    p->port  = port;
    p->six   = six;
    p->at_ms = W->now_ms;
    return (uint32_t)W->packet_count++;
}

/* One packet from application to application. */
static tailnet_result app_send(machine *m, machine *to, bool six, uint16_t from_port,
                               uint16_t to_port, uint32_t size, bool echo)
{
    uint8_t        b[TAILNET_HEADROOM + 1500 + TAILNET_TAILROOM];
    tailnet_buf    buf;
    tailnet_result result;
    tailnet_peer   peer;
    uint32_t       id;
    bool           known;
    if (m->n == NULL || to->ip_count == 0 || m->ip_count == 0) return TAILNET_ERR_AGAIN;
    if (size < APP_HEAD) size = APP_HEAD;
    memset(&buf, 0, sizeof buf);
    memset(b, 0, sizeof b);
    id       = packet_new(m->number, to->number, size, to_port, six, echo);
    buf.base = b;
    buf.cap  = sizeof b;
    buf.off  = TAILNET_HEADROOM;
    buf.len  = (uint32_t)app_build(b + buf.off, six, m->ips[0], to->ips[0], from_port, to_port,
                                   id, echo, size);
    known    = node_knows(m, to, &peer);
    W->sent++;
    if (!node_enter(m)) return TAILNET_ERR_AGAIN;
    result = tailnet_ip_input(m->n, &buf, 1);
    node_leave(m);
    if (result == TAILNET_OK && !known) wrong("%s sends to %s, which it does not know", m->name,
                                              to->name);
    hash_number(&W->hash, (uint64_t)(int64_t)result);
    m->last_result = (int)result;
    return result;
}

/* ---- what comes ---- */

static void app_accept(machine *m, packet *p, uint32_t id, unsigned port)
{
    machine *from = &W->m[p->from];
    if (p->to != m->number) wrong("%s gets a packet for %s", m->name, W->m[p->to].name);
    if (p->got) wrong("%s gets packet %u twice", m->name, (unsigned)id);
    p->got = true;
    W->delivered++;
    if (m->number < SIM_MASKED && from->number < SIM_MASKED && W->count <= SIM_MASKED &&
        (m->known >> from->number & 1) == 0 && m->up_ms != W->now_ms)
        wrong("%s gets a packet of %s, which it does not know", m->name, from->name);
    if (p->echo) return;
    if (m->shields) wrong("%s gets a packet although its shields are up", m->name);
    if (!may_pass(from, m, port))
        wrong("%s gets a packet of %s for port %u, which no rule lets in", m->name, from->name,
              port);
    if (m->echoes < SIM_ECHOES) m->echo_id[m->echoes++] = id;
}

static unsigned be32_at(const uint8_t *b, size_t at, size_t len)
{
    return at + 4 > len ? 0u : (unsigned)tn_get_u32be(b + at);
}

/* A packet has to be one that somebody sent. */
static void app_mark(machine *m, const uint8_t *b, size_t len)
{
    size_t   head = len != 0 && b[0] >> 4 == 6 ? 40u : 20u, i, size;
    unsigned port;
    uint32_t id;
    packet  *p;
    if (len < head + 8 + APP_HEAD || memcmp(b + head + 8, W->mark, SIM_MARK) != 0) {
        say("%s: %u bytes: %08x %08x %08x %08x %08x %08x", m->name, (unsigned)len,
            be32_at(b, 0, len), be32_at(b, 4, len), be32_at(b, 8, len),
            be32_at(b, 12, len), be32_at(b, 16, len), be32_at(b, 20, len));
        wrong("%s gets a packet that nobody sent", m->name);
        return;
    }
    size = len - head - 8;
    port = (unsigned)(b[head + 2] << 8 | b[head + 3]);
    id   = tn_get_u32be(b + head + 8 + SIM_MARK);
    p    = id < W->packet_count ? &W->packets[id] : NULL;
    for (i = APP_HEAD; i < size; i++)
        if (b[head + 8 + i] != W->mark[i % SIM_MARK]) break;
    if (p == NULL || p->size != size || i != size || p->echo != (b[head + 8 + 20] != 0)) {
        wrong("%s gets a packet that was changed", m->name);
        return;
    }
    app_accept(m, p, id, port);
}

/* A packet of the hostile member in its own name: only where a rule lets it in. */
static bool app_hostile(const machine *m, const uint8_t *b, size_t len)
{
    const machine *from = W->hostile == NOBODY ? NULL : &W->m[W->hostile];
    uint8_t        six[16];
    size_t         head = b[0] >> 4 == 6 ? 40u : 20u;
    unsigned       port;
    bool           own;
    if (from == NULL || from->ip_count == 0 || len < head + 8) return false;
    ip6_of(from->ips[0], six);
    own = head == 40 ? memcmp(b + 8, six, 16) == 0 : tn_get_u32be(b + 12) == from->ips[0];
    if (!own) return false;
    if (len >= head + 8 + SIM_MARK && memcmp(b + head + 8, W->mark, SIM_MARK) == 0) return false;
    ip6_of(m->ips[0], six);
    if (head == 40 ? memcmp(b + 24, six, 16) != 0 : tn_get_u32be(b + 16) != m->ips[0])
        wrong("%s gets a packet for somebody else", m->name);
    port = (unsigned)(b[head + 2] << 8 | b[head + 3]);
    if (!may_pass(from, m, port)) wrong("%s gets a packet for port %u, which no rule lets in",
                                        m->name, port);
    if (m->shields) wrong("%s gets a packet although its shields are up", m->name);
    W->evil_in++;
    return true;
}

/* Called from inside ip_output: whatever is to be done waits for the end of the call. */
static void app_packet(machine *m, const uint8_t *b, size_t len)
{
    if (app_hostile(m, b, len)) return;
    if (len > 60 && b[0] == 0x45 && tn_get_u32be(b + 12) == 0x64646464u) {
        W->dns_answers++;                   /* an answer: its address is its end           */
        W->dns_answer = tn_get_u32be(b + len - 4);
        return;
    }
    app_mark(m, b, len);
}

/* Answers what came, now that the call is over. */
static void app_flush(machine *m)
{
    unsigned i, n = m->echoes;
    uint32_t ids[SIM_ECHOES];
    memcpy(ids, m->echo_id, n * sizeof ids[0]);
    m->echoes = 0;
    for (i = 0; i < n; i++) {
        packet p = W->packets[ids[i]];
        (void)app_send(m, &W->m[p.from], p.six, p.port, APP_FROM_PORT, p.size, true);
    }
}

/* ---- flows ---- */

static void flow_begin(const flow_plan *f)
{
    W->flows = (flow_plan *)grown(W->flows, W->flow_count, &W->flow_cap, sizeof *f);
    W->flows[W->flow_count] = *f;
    plan(W->now_ms, EV_FLOW, (uint32_t)W->flow_count++, 0, NULL);
}

static void flow_step(uint32_t index)
{
    flow_plan f = W->flows[index];
    machine  *m = &W->m[f.from];
    if (W->now_ms >= f.end_ms) return;
    (void)app_send(m, &W->m[f.to], f.six, APP_FROM_PORT, f.port, f.size, false);
    plan(W->now_ms + f.every_ms, EV_FLOW, index, 0, NULL);
}

/* Did packets of the last while come from one node to the other, and answers back? */
static bool talked(uint32_t from, uint32_t to, uint64_t since_ms, bool echo)
{
    size_t i;
    for (i = W->packet_count; i-- != 0;) {
        const packet *p = &W->packets[i];
        if (p->at_ms < since_ms) return false;
        if (p->from == from && p->to == to && p->got && p->echo == echo) return true;
    }
    return false;
}

#endif
