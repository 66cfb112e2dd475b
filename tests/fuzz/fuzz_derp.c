/* DERP frames: any bytes, whole and cut at random, must give the same events; no event
 * leads out of the input or the store; every frame that fits the store arrives. First
 * byte: role (bit 0) and whether a right first frame goes before (bit 1); second: cuts. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

typedef struct story { uint64_t sum; bool broken; } story;

static void tell(story *s, const uint8_t *bytes, size_t len, uint64_t v)
{
    size_t i;
    s->sum = (s->sum ^ v) * 0x100000001b3u + len;
    for (i = 0; i < len; i++) s->sum = (s->sum ^ bytes[i]) * 0x100000001b3u;
}

static void feed(tn_derp *d, story *s, uint8_t *store, size_t cap, const uint8_t *src, size_t len)
{
    uint8_t      *piece = (uint8_t *)malloc(len + 1), *at = piece;
    size_t        left = len;
    tn_derp_event ev;
    if (len != 0) memcpy(piece, src, len);
    while (!s->broken && tn_derp_next(d, store, cap, &at, &left, &ev) != TN_DERP_NONE) {
        DEMAND(left <= len && at == piece + (len - left));
        s->broken = ev.kind == TN_DERP_BROKEN;
        tell(s, ev.data, ev.data == NULL ? 0 : ev.len, (uint64_t)ev.kind);
        tell(s, ev.key, ev.key == NULL ? 0 : 32, ev.reason);
        tell(s, NULL, 0, (uint64_t)ev.in_ms << 32 | ev.try_ms);
        if (ev.kind == TN_DERP_PACKET) memset(ev.data, 0, ev.len);
        if (ev.kind == TN_DERP_PING || ev.kind == TN_DERP_PONG) DEMAND(ev.len == 8);
        if (ev.kind == TN_DERP_SERVER_INFO || ev.kind == TN_DERP_CLIENT_INFO) (void)tn_derp_open(d, &ev);
    }
    DEMAND(s->broken || left == 0);
    free(piece);
}

static story run(const uint8_t *src, size_t len, size_t cap, uint32_t seed, bool server, bool begun)
{
    static const uint8_t key[45] = {
        1, 0, 0, 0, 40, 0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91, 9
    };
    static const uint8_t hello[37] = { 2, 0, 0, 0, 32 };
    uint8_t *store = (uint8_t *)malloc(cap + 1);
    story    s     = { 7, false };
    tn_derp  d;
    tn_derp_start(&d, server);
    if (begun) feed(&d, &s, store, cap, server ? hello : key, server ? sizeof hello : sizeof key);
    while (len != 0 && !s.broken) {
        size_t n = len;
        seed = seed * 1103515245u + 12345u;
        if (seed >> 31 != 0 || n > 4096) n = 1 + (seed >> 16) % (n < 60 ? n : 60);
        feed(&d, &s, store, cap, src, n);
        src += n;
        len -= n;
    }
    free(store);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    story    a, b;
    bool     server, begun;
    uint32_t seed;
    if (size < 2) return 0;
    server = (data[0] & 1) != 0;
    begun  = (data[0] & 2) != 0;
    seed   = data[1] * 2654435761u;
    a = run(data + 2, size - 2, size + 64, 0, server, begun);
    b = run(data + 2, size - 2, size + 64, seed, server, begun);
    DEMAND(a.sum == b.sum && a.broken == b.broken);
    (void)run(data + 2, size - 2, 64, seed, server, begun);
    return 0;
}
