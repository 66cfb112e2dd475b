/* A member that misbehaves: it has keys, stands in everybody's map, and runs the real header
 * beside what is done here in its name. It seals packets that lie about their source, that no
 * rule lets in, broken ones and fragments; it repeats what it overheard; it floods with true
 * handshakes and pings, from its own address and in the name of others; it calls for pings to
 * absurd addresses; it sends frames through the relay that are too long.
 *
 * What it may reach: itself, where a rule lets it in. Whatever else an application gets must
 * be a packet that somebody has sent (app_mark); nobody who is not asked gets more than was
 * sent in his name (check_attack); a second has so many curves (check_work). */
#ifndef SIM_HOSTILE_H
#define SIM_HOSTILE_H

#include "sim_script.h"

enum { EVIL_PORT = 9000, EVIL_KINDS = 7, EVIL_CALL_BYTES = 3000 };

/* ---- packets through its tunnels ---- */

/* An inner packet; returns its length. Its payload is short and has no mark. */
static size_t evil_inner(const machine *m, const machine *to, uint8_t *b)
{
    uint32_t how = rnd_below(&W->rnd, 10), src = m->ips[0], dst = to->ips[0];
    uint32_t size = APP_HEAD + rnd_below(&W->rnd, 600);
    bool     six = rnd_chance(&W->rnd, 300);
    unsigned at = six ? 6 : 9;
    size_t   len;
    if (how == 0) src = to->ips[0];
    if (how == 1) src = W->m[rnd_below(&W->rnd, W->count)].ips[0];
    if (how == 2) src = 0x64400000u + rnd_below(&W->rnd, 1000);
    if (how == 3) dst = W->m[rnd_below(&W->rnd, W->count)].ips[0];
    len = app_build(b, six, src, dst, EVIL_PORT, (uint16_t)(EVIL_PORT + rnd_below(&W->rnd, 900)),
                    0, false, size);
    memset(b + (six ? 48 : 28), 0xee, len - (six ? 48 : 28));
    if (how == 4) b[at] = (uint8_t)rnd_next(&W->rnd);               /* another protocol    */
    if (how == 5) len = 1 + rnd_below(&W->rnd, (uint32_t)len);      /* cut                 */
    if (how == 6) rnd_fill(&W->rnd, b, 1 + rnd_below(&W->rnd, 28)); /* a head of luck      */
    if (how == 7 && !six) {                                         /* a fragment          */
        uint16_t sum;
        tn_wr    w;
        tn_wr_over(&w, b + 6, 2);
        how = rnd_below(&W->rnd, 4);                                /* its offset, in 8 bytes */
        tn_wr_u16be(&w, rnd_below(&W->rnd, 2) << 13 | how);
        how = 7;
        b[10] = b[11] = 0;
        sum   = ip_sum(b, 20);
        b[10] = (uint8_t)(sum >> 8);
        b[11] = (uint8_t)sum;
    }
    if (how == 8) b[six ? 5 : 3] = (uint8_t)rnd_next(&W->rnd);      /* its length lies     */
    if (how == 9 && !six) b[0] = (uint8_t)(0x40 | rnd_below(&W->rnd, 16));
    return len;
}

static void evil_packet(machine *m, machine *to)
{
    uint8_t      b[TN_WG_OVERHEAD + 1600 + 64];
    uint16_t     peer;
    size_t       len;
    tn_session  *s = NULL;
    tailnet_addr a;
    if (m->ip_count == 0 || to->ip_count == 0) return;
    addr4(&a, to->ips[0], 0);
    if (tn_map_by_ip(&m->n->map, &a, &peer)) s = tn_node_session(m->n, peer);
    if (s == NULL || !tn_wg_can_send(&s->wg, node_now(m))) {
        (void)app_send(m, to, false, APP_FROM_PORT, APP_PORT, 100, false);
        return;
    }
    memset(b, 0, sizeof b);
    len = evil_inner(m, to, b + TN_WG_HEAD_LEN);
    if (!node_enter(m)) return;
    m->n->rim.now_ms = node_now(m);
    (void)tn_node_seal_one(m->n, s, b, len);
    node_leave(m);
}

/* ---- datagrams ---- */

/* Sends it to a node, from the member's address or in somebody's name. */
static void evil_datagram(machine *m, const machine *to, const uint8_t *b, size_t len)
{
    gram    *g = gram_new(b, (uint32_t)len);
    unsigned i = W->attack_next++ & 255u;
    g->forged = true;
    g->level  = to->box;
    addr4(&g->to, to->ip4, SIM_PORT);
    if (rnd_chance(&W->rnd, 500)) {
        addr4(&g->from, m->ip4, SIM_PORT);
    } else {
        addr4(&g->from, 0x06060606u, (uint16_t)(1024 + i));
        W->attack_in[(1024 + i) & 255u] += (uint32_t)len;
        W->forged_in += len;
    }
    plan(W->now_ms + 1, EV_GRAM, 0, 0, g);
}

static void evil_handshake(machine *m, machine *to)
{
    tn_wg_device dev;
    tn_wg        wg;
    uint8_t      b[TN_WG_INITIATION_LEN], eph[32], stamp[12];
    tn_wg_device_init(&dev, m->n->keys.node, 0);
    tn_wg_init(&wg, W->now_ms);
    tn_wg_want(&wg, W->now_ms);
    (void)tn_wg_stamp(&dev, SIM_WALL_MS + W->now_ms + (rnd_chance(&W->rnd, 500) ? 0 : 3600000),
                      stamp);
    rnd_fill(&W->rnd, eph, 32);
    (void)tn_wg_initiate(&dev, &wg, b, to->key, stamp, eph, (uint32_t)rnd_next(&W->rnd) | 1u,
                         W->now_ms);
    evil_datagram(m, to, b, sizeof b);
}

static void evil_address(tailnet_addr *a, unsigned *victim)
{
    static const uint32_t absurd[10] = {
        0, 0x7f000001u, 0xffffffffu, 0xe0000001u, 0x64400001u, 0x64646464u, 0x0a000001u,
        0xa9fe0001u, 0xf0000001u, 0xcb007114u
    };
    unsigned i = rnd_below(&W->rnd, 256);
    *victim = 256;
    if (rnd_chance(&W->rnd, 400)) {
        addr4(a, 0x06060606u, (uint16_t)(1024 + i));
        *victim = (1024 + i) & 255u;
    } else if (rnd_chance(&W->rnd, 700)) {
        i = rnd_below(&W->rnd, 10);
        addr4(a, absurd[i], (uint16_t)(rnd_chance(&W->rnd, 300) ? 0 : 53));
    } else {
        memset(a, 0, sizeof *a);
        a->family = 6;
        a->port   = (uint16_t)rnd_next(&W->rnd);
        rnd_fill(&W->rnd, a->ip, 16);
        if (rnd_chance(&W->rnd, 500)) memset(a->ip, 0, 15);
        if (rnd_chance(&W->rnd, 200)) a->ip[0] = 0xff;
    }
}

/* Through the relay, as if it came on the member's connection. */
static void evil_relay(machine *m, machine *to, uint8_t *b, size_t len)
{
    node         *from = node_by_key(W->h, m->key), *other = node_by_key(W->h, to->key);
    tn_derp_event ev;
    unsigned      i;
    memset(&ev, 0, sizeof ev);
    ev.key  = to->key;
    ev.data = b;
    ev.len  = len;
    for (i = 0; from != NULL && other != NULL && i < W->regions; i++) {
        if (from->relay[i] == NULL || other->relay[i] == NULL || W->region_down[i]) continue;
        if (from->relay[i]->gone || from->relay[i]->leaving) continue;
        relay_packet(W->h, from->relay[i], &ev);
        server_wake(W->now_ms);
        return;
    }
}

/* Disco, sealed as it should be: 0 a ping, 1 a pong of luck, 2 a call for absurd addresses. */
static void evil_disco(machine *m, machine *to, unsigned what)
{
    uint8_t      b[400], key[32], luck[32];             /* a nonce takes 24 of them        */
    tn_wr        w;
    tailnet_addr list[8];
    unsigned     i, victim;
    size_t       len;
    if (to->n == NULL || !tn_cr_box_key(key, m->n->disco_private, to->n->disco_public)) return;
    rnd_fill(&W->rnd, luck, sizeof luck);
    tn_disco_begin(&w, b, sizeof b, m->n->disco_public, luck);
    rnd_fill(&W->rnd, luck, sizeof luck);
    for (i = 0; i < 8; i++) {
        evil_address(&list[i], &victim);
        if (what != 2 || victim > 255) continue;
        if (W->call_ms[victim] != 0) continue;
        W->call_ms[victim] = W->now_ms;
        W->attack_in[victim] += EVIL_CALL_BYTES;
    }
    if (what == 0) tn_disco_wr_ping(&w, luck, rnd_chance(&W->rnd, 700) ? m->key : luck, 0);
    if (what == 1) tn_disco_wr_pong(&w, luck, &list[0]);
    if (what == 2) tn_disco_wr_call(&w, list, 1 + rnd_below(&W->rnd, 8));
    len = tn_disco_finish(&w, key);
    if (what == 2 && rnd_chance(&W->rnd, 800)) evil_relay(m, to, b, len);
    else                                       evil_datagram(m, to, b, len);
}

/* What the member overheard comes once more, from where it came or from elsewhere. */
static void evil_replay(void)
{
    const gram *t = W->tape_count == 0 ? NULL :
                    W->tape[rnd_below(&W->rnd, W->tape_count < SIM_TAPE ? W->tape_count
                                                                        : SIM_TAPE)];
    gram       *g;
    unsigned    i = W->attack_next++ & 255u;
    if (t == NULL || t->to.family != 4) return;
    g = gram_new(t->data, t->len);
    g->from   = t->from;
    g->to     = t->to;
    g->level  = t->level;
    g->forged = true;
    if (rnd_chance(&W->rnd, 300)) {
        addr4(&g->from, 0x06060606u, (uint16_t)(1024 + i));
        W->attack_in[(1024 + i) & 255u] += g->len;
    }
    if (rnd_chance(&W->rnd, 300)) g->data[rnd_below(&W->rnd, g->len)] ^= 1;
    plan(W->now_ms + rnd_below(&W->rnd, 2000), EV_GRAM, 0, 0, g);
}

static void evil_frame(machine *m, machine *to)
{
    static uint8_t b[65536];
    static const uint32_t sizes[8] = { 0, 1, 31, 1300, 1500, 2049, 9000, 65536 };
    uint32_t len = sizes[rnd_below(&W->rnd, 8)];
    rnd_fill(&W->rnd, b, len < 64 ? len : 64);
    if (len > 64 && rnd_chance(&W->rnd, 700)) memcpy(b, "\4\0\0\0", 4);
    if (len > 64 && rnd_chance(&W->rnd, 300)) memcpy(b, "TS\xf0\x9f\x92\xac", 6);
    evil_relay(m, to, b, len);
}

static void evil_step(uint32_t index, uint32_t left)
{
    const action *x = &W->actions[index];
    machine      *m = &W->m[x->a % W->count], *to = &W->m[x->b % W->count];
    if (left == 0 || W->healed || W->count > SIM_MASKED) return;
    plan(W->now_ms + 1 + rnd_below(&W->rnd, 40), EV_EVIL, index, left - 1, NULL);
    if (m->n == NULL || to->n == NULL || m == to || m->ip_count == 0 || to->ip_count == 0) return;
    switch (x->more % EVIL_KINDS) {
    case 0:  evil_packet(m, to); return;
    case 1:  evil_replay(); return;
    case 2:  evil_handshake(m, to); return;
    case 3:  evil_disco(m, to, 0); return;
    case 4:  evil_disco(m, to, 1); return;
    case 5:  evil_disco(m, to, 2); return;
    default: evil_frame(m, to); return;
    }
}

#endif
