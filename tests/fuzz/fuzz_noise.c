/* Bytes of a server into the record reader and the early payload. The AEAD is
 * a toy that believes every tag whose first byte is even, so that the fuzzer
 * gets past it. Whole and in pieces must come to the same. */
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <stdlib.h>
static bool toy_open(const uint8_t *tag) { return tag[0] % 2 == 0; }
#define TAILNET_AEAD_OPEN(key, nonce, ad, ad_len, data, len, tag) \
    ((void)(key), (void)(nonce), (void)(ad), (void)(ad_len), (void)(data), toy_open(tag))
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

typedef struct outcome {
    tailnet_result     result;
    tn_nz_early_result early;
    size_t             left, plain_len, http_len;
    uint32_t           sum;
} outcome;

static void add(outcome *o, const uint8_t *b, size_t len)
{
    size_t i;
    for (i = 0; i < len; i++) o->sum = o->sum * 31u + b[i];
    o->http_len += len;
}

static void take(outcome *o, tn_nz_early *e, const uint8_t *text, size_t len)
{
    o->plain_len += len;
    if (o->early == TN_NZ_EARLY_MORE) {
        o->early = tn_nz_early_take(e, &text, &len);
        if (o->early == TN_NZ_EARLY_MORE && len != 0) abort();
        if (o->early == TN_NZ_EARLY_NONE) add(o, e->head, sizeof e->head);
    }
    if (o->early != TN_NZ_EARLY_BAD) add(o, text, len);
}

static void run(outcome *o, const uint8_t *src, size_t len, uint32_t seed)
{
    uint8_t     buf[TN_NZ_RECORD_MAX], *text;
    size_t      have = 0, at = 0, n;
    tn_nz       nz;
    tn_nz_early e;
    memset(&nz, 0, sizeof nz);
    memset(&e, 0, sizeof e);
    memset(o, 0, sizeof *o);
    nz.state = TN_NZ_OPEN;
    for (;;) {
        size_t want = tn_nz_want(&nz, buf, have);
        if (want == 0) {
            o->result = tn_nz_open(&nz, buf, tn_nz_whole(buf, have), &text, &n);
            if (o->result != TAILNET_OK) break;
            if (n > TN_NZ_TEXT_MAX || text + n > buf + sizeof buf) abort();
            take(o, &e, text, n);
            have = 0;
            continue;
        }
        if (want > sizeof buf - have) abort();
        if (at == len) break;
        seed = seed * 1664525u + 1013904223u;
        n = seed == 0 ? want : 1 + (seed >> 16) % 50;
        if (n > want) n = want;
        if (n > len - at) n = len - at;
        memcpy(buf + have, src + at, n);
        have += n;
        at += n;
    }
    o->left = have;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    outcome     whole, cut;
    const char *text;
    size_t      n;
    run(&whole, data, size, 0);
    run(&cut, data, size, (uint32_t)size * 2654435761u + 1u);
    if (memcmp(&whole, &cut, sizeof whole) != 0) abort();
    if (tn_nz_error_text(data, size, &text, &n) && n + 3 != size) abort();
    return 0;
}
