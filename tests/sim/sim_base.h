/* What everything in the simulator stands on: repeatable randomness, a hash of all that comes
 * out, and events in virtual time. Nothing here depends on pointers, sizes or byte order, so
 * that a seed gives the same run on every machine. */
#ifndef SIM_BASE_H
#define SIM_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NEVER UINT64_MAX

/* ---- randomness (splitmix64) ---- */

static uint64_t rnd_next(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* 0 to limit - 1; the small slant of the remainder does not matter here. */
static uint32_t rnd_below(uint64_t *seed, uint32_t limit)
{
    return limit == 0 ? 0 : (uint32_t)(rnd_next(seed) % limit);
}

static bool rnd_chance(uint64_t *seed, uint32_t permille)
{
    return rnd_below(seed, 1000) < permille;
}

static void rnd_fill(uint64_t *seed, void *dst, size_t size)
{
    uint8_t *b = (uint8_t *)dst;
    size_t   i;
    for (i = 0; i < size; i++) b[i] = (uint8_t)(rnd_next(seed) >> 56);
}

/* ---- memory that has to be there ---- */

static void *need(size_t count, size_t size)
{
    void *p = calloc(count == 0 ? 1 : count, size == 0 ? 1 : size);
    if (p == NULL) {
        fprintf(stderr, "sim: not enough memory\n");
        exit(2);
    }
    return p;
}

/* Room for one more element of a growing array. */
static void *grown(void *array, size_t have, size_t *cap, size_t size)
{
    if (have < *cap) return array;
    *cap = *cap == 0 ? 16 : 2 * *cap;
    array = realloc(array, *cap * size);
    if (array == NULL) {
        fprintf(stderr, "sim: not enough memory\n");
        exit(2);
    }
    return array;
}

/* ---- the hash (FNV-1a) ---- */

static void hash_bytes(uint64_t *hash, const void *data, size_t len)
{
    const uint8_t *b = (const uint8_t *)data;
    uint64_t       h = *hash;
    size_t         i;
    for (i = 0; i < len; i++) h = (h ^ b[i]) * 0x100000001b3u;
    *hash = h;
}

static void hash_number(uint64_t *hash, uint64_t number)
{
    uint8_t  b[8];
    unsigned i;
    for (i = 0; i < 8; i++) b[i] = (uint8_t)(number >> 8 * i);
    hash_bytes(hash, b, sizeof b);
}

/* ---- events: a heap, at equal times in the order in which they were planned ---- */

typedef enum event_kind {
    EV_POLL, EV_SPURIOUS, EV_BOOT, EV_GRAM, EV_OPEN, EV_UP, EV_DOWN, EV_UP_END, EV_DOWN_END,
    EV_WRITABLE, EV_SERVER, EV_ACTION, EV_UNDO, EV_HEAL, EV_FLOW,
    EV_ATTACK, EV_EVIL, EV_TALK, EV_DIRECT
} event_kind;

typedef struct happening {
    uint64_t   at_ms;
    uint64_t   number;
    event_kind kind;
    uint32_t   a, b;
    void      *thing;
} happening;

typedef struct event_heap {
    happening *list;
    size_t   count, cap;
    uint64_t numbers;
} event_heap;

static bool event_before(const happening *x, const happening *y)
{
    return x->at_ms != y->at_ms ? x->at_ms < y->at_ms : x->number < y->number;
}

static void heap_push(event_heap *h, uint64_t at_ms, event_kind kind, uint32_t a, uint32_t b,
                      void *thing)
{
    happening e;
    size_t i = h->count;
    h->list  = (happening *)grown(h->list, h->count, &h->cap, sizeof(happening));
    e.at_ms  = at_ms;
    e.number = h->numbers++;
    e.kind   = kind;
    e.a      = a;
    e.b      = b;
    e.thing  = thing;
    for (h->count++; i != 0 && event_before(&e, &h->list[(i - 1) / 2]); i = (i - 1) / 2)
        h->list[i] = h->list[(i - 1) / 2];
    h->list[i] = e;
}

static void heap_pop(event_heap *h, happening *out)
{
    happening last;
    size_t i = 0, child;
    *out = h->list[0];
    last = h->list[--h->count];
    while ((child = 2 * i + 1) < h->count) {
        if (child + 1 < h->count && event_before(&h->list[child + 1], &h->list[child])) child++;
        if (!event_before(&h->list[child], &last)) break;
        h->list[i] = h->list[child];
        i = child;
    }
    h->list[i] = last;
}

#endif
