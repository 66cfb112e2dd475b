/* Bytes are a list of calls on the links, by the caller, by owners and by time;
 * after each the sentences under "Always" in the room's banner must hold. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

enum { SLOTS = 3 };

static tn_rim       rim;
static tn_links     links;
static tn_link      slots[SLOTS];
static tn_tls       engine[1];
static uint8_t      engine_in[TN_TLS_IN_LEN];
static tn_tls_check check;
static uint64_t     clock_ms;
static tailnet_link open_now[SLOTS];
static int32_t      taken;

static uint64_t now(void *user) { (void)user; return clock_ms; }
static int      noise(void *user, void *dst, size_t size)
{
    (void)user;
    memset(dst, 0x42, size);
    return 0;
}
static void ip(void *user, tailnet_buf *p, size_t n) { (void)user, (void)p, (void)n; }
static int  net_open(void *user, tailnet_link l, const tailnet_dial *d)
{
    (void)user;
    if (open_now[TAILNET_LINK_SLOT(l)] != 0 || d->host == NULL) abort();
    if (taken == 5) return -1;
    open_now[TAILNET_LINK_SLOT(l)] = l;
    return 0;
}
static int32_t net_output(void *user, tailnet_link l, const void *data, size_t size)
{
    volatile uint8_t sum = 0;
    size_t           i;
    (void)user;
    if (open_now[TAILNET_LINK_SLOT(l)] != l || size == 0) abort();
    for (i = 0; i < size; i++) sum = (uint8_t)(sum + ((const uint8_t *)data)[i]);
    return taken >= 0 && size < (size_t)taken ? (int32_t)size : taken;
}
static void net_close(void *user, tailnet_link l)
{
    (void)user;
    if (open_now[TAILNET_LINK_SLOT(l)] != l) abort();
    open_now[TAILNET_LINK_SLOT(l)] = 0;
}

static void always(void)
{
    unsigned i, shaking = 0, with_engine = 0;
    for (i = 0; i < SLOTS; i++) {
        const tn_link *l = &slots[i];
        if ((l->state != TN_LINK_IDLE) != (open_now[i] != 0)) abort();
        if ((l->deadline_ms == TN_NEVER) != (l->state == TN_LINK_IDLE || l->state == TN_LINK_OPEN))
            abort();
        if (l->in_from > l->in_to || l->in_to > l->in_cap) abort();
        if (l->out_from > l->out_to || l->out_to > l->out_cap) abort();
        shaking += l->state == TN_LINK_HANDSHAKE;
        with_engine += l->engine != TN_LINK_NO_ENGINE;
    }
    if (shaking > 1 || with_engine > 1) abort();
}

static void owners(void)
{
    tn_link_news n;
    unsigned     i;
    size_t       len;
    for (i = 0; i < SLOTS; i++) {
        if (!tn_link_fetch(&links, i, &n)) continue;
        if (n.bits == 0) abort();
        while (tn_link_read(&links, n.link, &len) != NULL)
            tn_link_ack(&links, n.link, (len + 1) / 2);
    }
}

static void act(unsigned what, unsigned arg, const uint8_t **at, const uint8_t *end)
{
    static uint8_t in[SLOTS][40], out[SLOTS][40];
    static const char *const hosts[4] = { "relay.example", "192.0.2.7", "a b", "" };
    unsigned       s = arg % SLOTS;
    tailnet_link   h = slots[s].handle - ((arg & 64) != 0 ? 256u : 0u);
    tailnet_dial   dial;
    tailnet_link   made;
    uint8_t       *to;
    size_t         room, n;
    memset(&dial, 0, sizeof dial);
    switch (what % 14) {
    case 0:
        dial.host = hosts[arg >> 2 & 3];
        dial.port = 443;
        dial.tls  = (arg & 1) != 0;
        (void)tn_link_open(&links, &dial, 1, &made);
        break;
    case 1: (void)tn_link_tcp_opened(&links, h); break;
    case 2: (void)tn_link_tcp_closed(&links, h); break;
    case 3: (void)tn_link_tcp_writable(&links, h); break;
    case 4: tn_link_close(&links, h, TAILNET_OK); break;
    case 5: taken = (int32_t)(arg % 70) - 1; break;
    case 6: clock_ms += (uint64_t)arg * 100; break;
    case 7: (void)tn_link_write(&links, h, hosts[0], arg % 13); break;
    case 8:
        to = tn_link_reserve(&links, h, &room);
        if (to == NULL) break;
        if (room > arg) room = arg;
        memset(to, 7, room);
        tn_link_commit(&links, h, room);
        break;
    case 9: tn_link_flush(&links, h); break;
    case 10:
        if (slots[s].in_from == slots[s].in_to && slots[s].out_from == slots[s].out_to)
            tn_link_lend(&links, h, in[s], arg % 41, out[s], arg % 39);
        break;
    case 11:
        to = tn_link_in_reserve(&links, h, &room);
        n  = (size_t)(end - *at);
        if (n > arg) n = arg;
        if (n > room) n = room;
        if (to == NULL) break;
        memcpy(to, *at, n);
        *at += n;
        (void)tn_link_in_commit(&links, h, n);
        break;
    case 12: owners(); break;
    default:
        (void)tn_link_poll(&links);
        always();
        owners();
        tn_link_sweep(&links);
        (void)tn_link_deadline(&links);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *at = data, *end = data + size;
    tailnet_io     io;
    if (size < 2) return 0;
    memset(&io, 0, sizeof io);
    io.now_ms     = now;
    io.random     = noise;
    io.ip_output  = ip;
    io.tcp_open   = net_open;
    io.tcp_output = net_output;
    io.tcp_close  = net_close;
    clock_ms      = 0;
    taken         = 100;
    memset(open_now, 0, sizeof open_now);
    if (!tn_rim_init(&rim, &io)) abort();
    memset(&links, 0, sizeof links);
    links.rim          = &rim;
    links.slots        = slots;
    links.slot_count   = SLOTS;
    links.engines      = engine;
    links.engine_in    = engine_in;
    links.engine_count = 1;
    links.check        = &check;
    links.proxy        = (*at & 1) != 0 ? "u:p@proxy:3128" : NULL;
    links.tls_by_caller = (*at++ & 2) != 0;
    memset(slots, 0, sizeof slots);
    tn_link_init(&links);
    while (end - at >= 2) {
        unsigned what = at[0], arg = at[1];
        at += 2;
        if (!tn_rim_enter(&rim)) abort();
        act(what, arg, &at, end);
        always();
    }
    tn_link_close_all(&links);
    always();
    if (tn_link_deadline(&links) != TN_NEVER) abort();
    return 0;
}
