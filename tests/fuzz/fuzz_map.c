/* Any messages into a small map (3 peers, 3 routes, 2 regions): no way of cutting
 * them matters, and the indexes stay true. Messages are separated by newlines; a
 * line that begins with '!' begins a new stream, '?' turns keep_peer on. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

static tn_map       map;
static tn_flt       flt;
static tn_flt_range ranges[16];
static tn_flt_flow  flows[2];
static uint64_t     memory[400];
static uint64_t     hash;

static void mix(const void *bytes, size_t len)
{
    const uint8_t *b = (const uint8_t *)bytes;
    while (len-- != 0) hash = (hash ^ *b++) * 1099511628211u;
}

static void changes(void)
{
    uint16_t     index, n = 0;
    uint8_t      kind;
    tailnet_addr places[4];
    while (tn_map_change(&map, &flt, &index, &kind, 5000)) {
        mix(&index, 2);
        mix(&kind, 1);
        if (kind == TN_MAP_ASK) tn_map_keep(&map, (int32_t)(map.work.node.peer.id % 7) - 1);
        else (void)tn_map_places(&map, index, places, 4);
        if (++n > 1000) abort();
    }
}

static void check(void)
{
    uint16_t i, found;
    size_t   count = 0;
    for (i = 0; i < map.limits.peers; i++) {
        const tn_map_peer *p = &map.peers[i];
        tailnet_addr       ip;
        if ((p->flags & TN_MAP_USED) == 0) continue;
        count++;
        if ((p->flags & TN_MAP_GONE) != 0) abort();
        if (!tn_map_by_key(&map, p->key, &found) || found != i) abort();
        if (!tn_map_by_id(&map, p->id, &found) || found != i) abort();
        tn_map_addr(p, 4, &ip);
        if (ip.family != 0 && (!tn_map_by_own_ip(&map, &ip, &found) || map.peers[found].id > p->id)) abort();
        mix(p->name, strlen(p->name));
    }
    if (count != tn_map_count(&map)) abort();
    for (i = 0; i < map.route_count; i++)
        if (tn_map_peer_at(&map, map.routes[i].peer) == NULL) abort();
    mix(map.routes, map.route_count * sizeof(tn_map_prefix));
    mix(map.dns, map.dns_len);
}

static void message(const uint8_t *data, size_t size, size_t step)
{
    tn_js       js;
    tn_js_event ev   = TN_JS_MORE;
    size_t      from = 0;
    tn_js_init(&js);
    while (from < size) {
        size_t n = step < size - from ? step : size - from;
        tn_js_feed(&js, data + from, n);
        from += n;
        while ((ev = tn_js_next(&js)) > TN_JS_MORE) {
            tn_map_result r = tn_map_take(&map, &flt, &js, ev, 5000);
            if (r == TN_MAP_ERROR) return;
            if (r == TN_MAP_PING) mix(&map.work.item.payload, map.work.item.payload_len);
            if (map.change_kind != 0 && r != TN_MAP_CHANGE) abort();
            if (r == TN_MAP_CHANGE) changes();
        }
        if (ev == TN_JS_ERROR) return;
    }
}

static uint64_t run(const uint8_t *data, size_t size, size_t step)
{
    static const tn_map_limits limits = { 3, 3, 2, 2 };
    size_t from = 0;
    if (tn_map_memory(&limits) > sizeof memory) abort();
    hash = 1469598103934665603u;
    tn_map_init(&map, &limits, memory);
    tn_flt_init(&flt, ranges, 8, flows, 2);
    tn_map_prefs(&map, "100.64.0.2", true);
    while (from < size) {
        const uint8_t *end = (const uint8_t *)memchr(data + from, '\n', size - from);
        size_t         len = end == NULL ? size - from : (size_t)(end - data) - from;
        if (len != 0 && data[from] == '!')      tn_map_stream(&map, &flt);
        else if (len != 0 && data[from] == '?') tn_map_asks(&map, true);
        else                                    message(data + from, len, step);
        check();
        while (tn_map_expire(&map, 1800000000000u)) changes();
        from += len + 1;
    }
    return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint64_t whole;
    if (size == 0) return 0;
    whole = run(data + 1, size - 1, size);
    if (whole != run(data + 1, size - 1, data[0] % 17u + 1u)) abort();
    return 0;
}
