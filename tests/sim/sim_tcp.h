/* TCP connections between nodes and the server: bytes that come late and in pieces, windows that
 * fill, ends that are heard of or not. And the system calls of the server. */
#ifndef SIM_TCP_H
#define SIM_TCP_H

#include "sim_net.h"

static void node_touch(machine *m);
static void node_check(machine *m);
static bool node_enter(machine *m);
static void node_leave(machine *m);

/* Long maps are timed; nothing in the world depends on it. */
static void node_clock(bool end)
{
    if (W->peers == 0) return;
    if (end) W->node_clock += clock();
    else     W->node_clock -= clock();
}

enum { STALL_RESET_MS = 60000, RETRY_MS = 700 };

/* ---- the server's clock and turn ---- */

static int sim_clock(int which, struct timespec *out)
{
    uint64_t ms = W->now_ms;
    if (which == CLOCK_REALTIME) ms += SIM_WALL_MS + (uint64_t)W->server_skew_ms;
    out->tv_sec  = (time_t)(ms / 1000u);
    out->tv_nsec = (long)(ms % 1000u) * 1000000;
    return 0;
}

static ssize_t sim_getrandom(void *dst, size_t len)
{
    rnd_fill(&W->rnd, dst, len);
    return (ssize_t)len;
}

/* The server will have a turn at that time. */
static void server_wake(uint64_t at_ms)
{
    if (W->count > SIM_MASKED) at_ms = (at_ms / 200 + 1) * 200; /* a crowd: by batches     */
    if (at_ms >= W->server_next_ms) return;
    W->server_next_ms = at_ms;
    plan(at_ms, EV_SERVER, 0, 0, NULL);
}

/* Who sees a forged certificate says nothing at all. */
static void check_certs(void)
{
    size_t i;
    for (i = 0; i < W->h->conn_count && W->tls; i++) {
        const conn *c = &W->h->conns[i];
        if (c->stage == AT_FREE || !c->tls) continue;
        if (W->wires[c->fd]->bad_cert && c->stage != AT_HTTP)
            wrong("%s believes a forged certificate", W->m[W->wires[c->fd]->node].name);
    }
}

static void server_turn(void)
{
    int rounds = 64;
    if (W->server_next_ms > W->now_ms) return;      /* an event that was planned earlier   */
    W->server_next_ms = NEVER;
    read_clocks(W->h);
    do work(W->h);
    while (W->h->again && rounds-- != 0);
    if (rounds < 0) wrong("the server spins");
    check_certs();
    W->h->dirty = false;
    server_wake(W->now_ms + 1000);
}

/* ---- pieces ---- */

static void pipe_put(pipe_ *p, const void *data, size_t len)
{
    piece *q = (piece *)malloc(sizeof *q + len);
    if (q == NULL) exit(2);
    q->next   = NULL;
    q->len    = (uint32_t)len;
    q->at     = 0;
    q->put_ms = W->now_ms;
    memcpy(q->bytes, data, len);
    if (p->last == NULL) p->first = q;
    else                 p->last->next = q;
    p->last = q;
    p->bytes += (uint32_t)len;
}

static void pipe_clear(pipe_ *p)
{
    while (p->first != NULL) {
        piece *q = p->first;
        p->first = q->next;
        free(q);
    }
    memset(p, 0, sizeof *p);
}

/* Takes bytes that have arrived. */
static size_t pipe_take(pipe_ *p, uint8_t *dst, size_t len)
{
    size_t got = 0;
    while (got < len && p->ready != 0) {
        piece *q = p->first;
        size_t n = q->len - q->at;
        if (n > len - got) n = len - got;
        if (n > p->ready) n = p->ready;
        if (dst != NULL) memcpy(dst + got, q->bytes + q->at, n);
        got += n;
        q->at += (uint32_t)n;
        p->ready -= (uint32_t)n;
        p->bytes -= (uint32_t)n;
        if (q->at != q->len) continue;
        p->first = q->next;
        if (p->first == NULL) p->last = NULL;
        free(q);
    }
    return got;
}

/* ---- wires ---- */

static wire *wire_get(uint32_t id, uint32_t number)
{
    wire *c = id < W->wire_count ? W->wires[id] : NULL;
    return c != NULL && c->used && c->number == number ? c : NULL;
}

static uint32_t wire_id(const wire *c)
{
    uint32_t i;
    for (i = 0; i < W->wire_count; i++)
        if (W->wires[i] == c) return i;
    return NOBODY;
}

static wire *wire_new(uint32_t *id)
{
    wire    *c;
    uint32_t number;
    size_t   i;
    for (i = 0; i < W->wire_count && W->wires[i]->used; i++) {}
    if (i == W->wire_count) {
        W->wires = (wire **)grown(W->wires, W->wire_count, &W->wire_cap, sizeof(wire *));
        W->wires[W->wire_count++] = (wire *)need(1, sizeof(wire));
    }
    c      = W->wires[i];
    number = c->number + 1;
    memset(c, 0, sizeof *c);
    c->used   = true;
    c->number = number;
    *id       = (uint32_t)i;
    return c;
}

static void wire_free(wire *c)
{
    if (!c->client_gone || (c->accepted && !c->server_gone)) return;
    pipe_clear(&c->up);
    pipe_clear(&c->down);
    c->used = false;
}

static machine *wire_machine(const wire *c) { return &W->m[c->node]; }

static bool server_is_down(const wire *c)
{
    return c->control ? W->control_down : W->region_down[c->region];
}

/* Do segments get through just now? */
static bool wire_works(const wire *c)
{
    const machine *m = wire_machine(c);
    return !c->dead && !m->link_down && m->n != NULL && m->boots == c->boot &&
           !(m->only_443 && !c->tls);
}

static uint32_t wire_ms(const wire *c)
{
    const machine *m = wire_machine(c);
    uint32_t       ms = line_ms(m, W->region_place[c->region]);
    if (rnd_chance(&W->rnd, m->loss)) ms += 200 + rnd_below(&W->rnd, 200);
    return ms;
}

/* Plans the arrival of what was just put in, in one or two pieces of time. */
static void pipe_plan(wire *c, uint32_t id, pipe_ *p, uint32_t len, event_kind kind)
{
    while (len != 0) {
        uint32_t n = rnd_chance(&W->rnd, 150) ? 1 + rnd_below(&W->rnd, len) : len;
        uint64_t at = W->now_ms + wire_ms(c);
        if (at < p->last_ms) at = p->last_ms;
        p->last_ms = at;
        /* The kind and the length of a piece travel with the event. */
        plan(at, kind, id, c->number, (void *)(uintptr_t)n);
        len -= n;
    }
}

/* ---- what the server calls ---- */

static conn *server_conn(uint32_t id)
{
    size_t i;
    for (i = 0; i < W->h->conn_count; i++)
        if (W->h->conns[i].stage != AT_FREE && W->h->conns[i].fd == (int)id)
            return &W->h->conns[i];
    return NULL;
}

static int sim_accept(int listener)
{
    (void)listener;
    return W->accepting;
}

static ssize_t sim_recv(int fd, void *dst, size_t len)
{
    wire  *c = W->wires[fd];
    size_t n = pipe_take(&c->up, (uint8_t *)dst, len);
    if (n != 0) {
        if (c->thirsty && c->up.bytes < SIM_WINDOW / 2) {
            c->thirsty = false;
            plan(W->now_ms + wire_ms(c), EV_WRITABLE, (uint32_t)fd, c->number, NULL);
        }
        return (ssize_t)n;
    }
    if (c->reset || (c->up.ended && c->up.bytes == 0)) {
        errno = ECONNRESET;
        return c->reset ? -1 : 0;
    }
    errno = EAGAIN;
    return -1;
}

static ssize_t sim_send(int fd, const void *src, size_t len)
{
    wire *c = W->wires[fd];
    if (c->reset) {
        errno = EPIPE;
        return -1;
    }
    if (c->down.bytes + len > SIM_WINDOW) len = SIM_WINDOW - c->down.bytes;
    if (len == 0) {
        errno = EAGAIN;
        return -1;
    }
    if (!c->client_gone && wire_machine(c)->boots == c->boot && stream_has_mark(&c->down,
        (const uint8_t *)src, len) && !W->marks_off)
        wrong("plaintext in what the server sends");
    pipe_put(&c->down, src, len);
    pipe_plan(c, (uint32_t)fd, &c->down, (uint32_t)len, EV_DOWN);
    return (ssize_t)len;
}

static int sim_close(int fd)
{
    wire *c = W->wires[fd];
    c->server_gone = true;
    if (c->reset) pipe_clear(&c->down);     /* what was under way is lost                  */
    plan(c->down.last_ms + 1, EV_DOWN_END, (uint32_t)fd, c->number, NULL);
    wire_free(c);
    return 0;
}

/* ---- arrivals ---- */

/* Nothing gets through: later again, or the end. */
static bool pipe_stalls(wire *c, pipe_ *p)
{
    if (p->stalled_ms == 0) p->stalled_ms = W->now_ms;
    return W->now_ms - p->stalled_ms < STALL_RESET_MS && !c->reset;
}

/* Would the server have sent more, had there been room? */
static bool server_has_more(const conn *s)
{
    return s->to != s->from ||
           (s->tls && (br_ssl_engine_current_state(&s->b->tls.eng) & BR_SSL_SENDREC) != 0);
}

/* The server learns that the connection is no more. */
static void server_resets(uint32_t id, wire *c)
{
    conn *s = server_conn(id);
    c->reset = true;
    if (s != NULL) s->readable = true;
    server_wake(W->now_ms);
}

static void wire_client_closed(wire *c)
{
    machine *m = wire_machine(c);
    if (c->told || c->client_gone || m->n == NULL || m->boots != c->boot) return;
    c->told = true;
    if (!node_enter(m)) return;
    if (tailnet_tcp_closed(m->n, c->link) != TAILNET_OK) wrong("tcp_closed is refused");
    node_leave(m);
}

static void wire_up(uint32_t id, wire *c, uint32_t len)
{
    conn *s;
    if (c->server_gone) {                   /* the answer is a reset                       */
        if (wire_works(c)) wire_client_closed(c);
        return;
    }
    if (!wire_works(c) || server_is_down(c)) {
        if (!pipe_stalls(c, &c->up)) server_resets(id, c);
        else plan(W->now_ms + RETRY_MS, EV_UP, id, c->number, (void *)(uintptr_t)len);
        return;
    }
    c->up.stalled_ms = 0;
    c->up.ready += len;
    s = server_conn(id);
    if (s == NULL) return;
    s->readable = true;
    server_wake(W->now_ms);
}

/* Hands what has arrived to the node, by one of the two ways. */
static void wire_deliver(wire *c)
{
    machine *m = wire_machine(c);
    uint8_t  b[4096];
    size_t   n, took, room = 0;
    uint8_t *dst;
    if (m->slow && !c->control) return;
    while (c->down.ready != 0 && !c->blocked && !c->client_gone && m->n != NULL && c->open) {
        const piece *q = c->down.first;
        n = q->len - q->at;
        if (n > c->down.ready) n = c->down.ready;
        if (n > sizeof b) n = sizeof b;
        memcpy(b, q->bytes + q->at, n);
        if (!node_enter(m)) return;
        node_clock(false);
        if (rnd_chance(&W->rnd, 500)) {
            took = tailnet_tcp_input(m->n, c->link, b, n);
        } else {
            dst  = tailnet_tcp_reserve(m->n, c->link, &room);
            took = dst == NULL ? 0 : room < n ? room : n;
            if (took != 0) memcpy(dst, b, took);
            if (took != 0 && tailnet_tcp_commit(m->n, c->link, took) != TAILNET_OK)
                wrong("tcp_commit is refused");
        }
        node_clock(true);
        if (took > n) wrong("tcp_input takes more than there is");
        W->down_bytes += took;
        (void)pipe_take(&c->down, NULL, took);
        if (took == 0) c->blocked = true;
        node_leave(m);
    }
    if (c->down.ended && c->down.bytes == 0) wire_client_closed(c);
}

static void wire_down(uint32_t id, wire *c, uint32_t len)
{
    conn *s;
    if (!wire_works(c)) {
        if (!pipe_stalls(c, &c->down)) server_resets(id, c);
        else plan(W->now_ms + RETRY_MS, EV_DOWN, id, c->number, (void *)(uintptr_t)len);
        return;
    }
    if (c->client_gone) {                   /* the answer is a reset                       */
        server_resets(id, c);
        return;
    }
    c->down.stalled_ms = 0;
    if (len > c->down.bytes - c->down.ready) len = c->down.bytes - c->down.ready;   /* reset */
    c->down.ready += len;
    wire_deliver(c);
    s = server_conn(id);
    if (s != NULL && server_has_more(s)) server_wake(W->now_ms + 1);
}

static void wire_ends(uint32_t id, wire *c, bool up)
{
    pipe_ *p = up ? &c->up : &c->down;
    bool   late = p->bytes != p->ready;
    if (!wire_works(c) || late || (up && server_is_down(c))) {
        if (pipe_stalls(c, p)) {
            plan(W->now_ms + RETRY_MS, up ? EV_UP_END : EV_DOWN_END, id, c->number, NULL);
            return;
        }
        if (up) server_resets(id, c);
        return;                             /* the node never hears of it                  */
    }
    p->ended = true;
    if (up) {
        conn *s = server_conn(id);
        if (s != NULL) s->readable = true;
        server_wake(W->now_ms);
    } else {
        wire_deliver(c);
    }
}

/* The answer to a SYN is due. */
static void wire_opens(uint32_t id, wire *c)
{
    machine *m = wire_machine(c);
    conn    *s;
    if (c->client_gone) {
        wire_free(c);
        return;
    }
    if (!wire_works(c)) {
        if (pipe_stalls(c, &c->up)) plan(W->now_ms + 1000, EV_OPEN, id, c->number, NULL);
        else                        wire_client_closed(c);
        return;
    }
    if (server_is_down(c)) {
        wire_client_closed(c);
        return;
    }
    c->up.stalled_ms = 0;
    c->open = c->accepted = true;
    W->accepting = (int)id;
    read_clocks(W->h);
    c->bad_cert   = W->bad_cert;
    W->h->chain_len = c->bad_cert ? 1 : 2;
    memcpy(W->h->chain, c->bad_cert ? certs.bad : certs.chain,
           W->h->chain_len * sizeof certs.chain[0]);
    W->handshakes += c->inner;
    conn_begin(W->h, 0, c->inner, c->region);
    s = server_conn(id);
    if (s == NULL) {
        c->server_gone = true;
        wire_client_closed(c);
        return;
    }
    server_wake(W->now_ms);
    if (!node_enter(m)) return;
    if (tailnet_tcp_opened(m->n, c->link) != TAILNET_OK) wrong("tcp_opened is refused");
    node_leave(m);
}

static void wire_writable(wire *c)
{
    machine *m = wire_machine(c);
    if (c->client_gone || c->told || m->n == NULL || m->boots != c->boot) return;
    c->cut_short = false;
    if (!node_enter(m)) return;
    if (tailnet_tcp_writable(m->n, c->link) != TAILNET_OK) wrong("tcp_writable is refused");
    node_leave(m);
}

/* ---- what a node calls ---- */

static wire *wire_of(machine *m, tailnet_link link)
{
    unsigned slot = TAILNET_LINK_SLOT(link);
    wire    *c = slot < SIM_LINKS ? m->wires[slot] : NULL;
    return c != NULL && c->link == link ? c : NULL;
}

static int net_open(machine *m, tailnet_link link, const tailnet_dial *dial)
{
    unsigned slot = TAILNET_LINK_SLOT(link), i;
    uint32_t id;
    wire    *c;
    bool     ctl = strcmp(dial->host, SIM_CONTROL) == 0;
    if (slot >= SIM_LINKS || m->wires[slot] != NULL) {
        wrong("%s: tcp_open of a slot in use", m->name);
        return -1;
    }
    for (i = 0; i < W->regions && !ctl; i++)
        if (strcmp(dial->host, W->h->regions[i].name) == 0) break;
    if (ctl) i = 0;
    if (i == W->regions) {
        wrong("%s dials %s", m->name, dial->host);
        return -1;
    }
    if (!ctl && W->region_gone[i] && m->region_clock == W->region_clock)
        wrong("%s dials %s, which is in no map", m->name, dial->host);
    c          = wire_new(&id);
    c->node    = m->number;
    c->boot    = m->boots;
    c->link    = link;
    c->region  = i;
    c->control = ctl;
    c->tls     = dial->port == 443;
    c->inner   = c->tls && !dial->tls;
    m->wires[slot]    = c;
    m->wire_ids[slot] = id;
    say("%s: dials %s, link %x", m->name, dial->host, (unsigned)link);
    plan(W->now_ms + 2 * line_ms(m, W->region_place[i]), EV_OPEN, id, c->number, NULL);
    return 0;
}

/* The key of a peer that has left stands in no frame for a relay, unless it waited in a queue. */
static void check_relayed(const machine *m, const wire *c, const uint8_t *b, size_t len)
{
    uint32_t i;
    for (i = 0; i < W->count && W->count <= SIM_MASKED && !c->control && !c->inner; i++) {
        const machine *to = &W->m[i];
        const uint8_t *at = b, *end = b + len;
        if ((m->known >> i & 1) != 0 || m->lost_ms[i] == 0 || tn_is_zero(to->key, 32)) continue;
        if (W->now_ms - m->lost_ms[i] <= 1000 || W->now_ms - c->short_ms <= 1000) continue;
        while ((size_t)(end - at) >= 32 &&
               (at = (const uint8_t *)memchr(at, to->key[0], (size_t)(end - at) - 31)) != NULL) {
            if (memcmp(at, to->key, 32) == 0)
                wrong("%s sends to %s by relay, %lu ms after it left", m->name, to->name,
                      (unsigned long)(W->now_ms - m->lost_ms[i]));
            at++;
        }
    }
}

static int32_t net_output(machine *m, tailnet_link link, const void *data, size_t size)
{
    wire    *c = wire_of(m, link);
    uint32_t id, n = (uint32_t)size;
    if (c == NULL || !c->open || size == 0) {
        wrong("%s: tcp_output on a connection that is none", m->name);
        return -1;
    }
    if (c->down.ended || c->told) return -1;
    if (c->up.bytes + n > SIM_WINDOW) n = SIM_WINDOW - c->up.bytes;
    if (n != 0 && rnd_chance(&W->rnd, 80)) n = rnd_below(&W->rnd, n + 1);
    if (m->mute && !c->control) n = 0;
    id = m->wire_ids[TAILNET_LINK_SLOT(link)];
    if (c->cut_short) m->outputs--;         /* offered again too early: that is harmless   */
    if (n < size) {
        c->cut_short = true;
        c->short_ms  = W->now_ms;
        if (c->up.bytes + n < SIM_WINDOW / 2 && !(m->mute && !c->control))
            plan(W->now_ms + 1 + rnd_below(&W->rnd, 5), EV_WRITABLE, id, c->number, NULL);
        else
            c->thirsty = true;
    }
    if (n == 0) return 0;
    if (!W->marks_off && stream_has_mark(&c->up, (const uint8_t *)data, n))
        wrong("%s: plaintext in a stream", m->name);
    hash_bytes(&W->hash, data, n);
    check_relayed(m, c, (const uint8_t *)data, n);
    pipe_put(&c->up, data, n);
    pipe_plan(c, id, &c->up, n, EV_UP);
    return (int32_t)n;
}

static void net_close(machine *m, tailnet_link link)
{
    wire    *c = wire_of(m, link);
    unsigned slot = TAILNET_LINK_SLOT(link);
    if (c == NULL) {
        wrong("%s: tcp_close of a connection that is none", m->name);
        return;
    }
    say("%s: closes link %x", m->name, (unsigned)link);
    c->client_gone = true;
    m->wires[slot] = NULL;
    plan(c->up.last_ms + 1, EV_UP_END, m->wire_ids[slot], c->number, NULL);
    if (!c->accepted || c->server_gone) wire_free(c);
}

/* The power of a machine is gone: the server hears of it when it tries to send. */
static void net_power_off(machine *m)
{
    unsigned i;
    for (i = 0; i < SIM_LINKS; i++) {
        wire *c = m->wires[i];
        if (c == NULL) continue;
        m->wires[i]    = NULL;
        c->client_gone = true;
        plan(W->now_ms + 45000, EV_UP_END, m->wire_ids[i], c->number, NULL);
        if (!c->accepted || c->server_gone) wire_free(c);
    }
}

/* All connections of a machine are black holes from now on, as after a router's reboot. */
static void net_kill_wires(machine *m)
{
    unsigned i;
    for (i = 0; i < SIM_LINKS; i++)
        if (m->wires[i] != NULL) m->wires[i]->dead = true;
}

#endif
