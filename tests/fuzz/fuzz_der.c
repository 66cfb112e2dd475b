/* Certificates for the small DER reader: never out of its arrays, and the same
 * findings however the bytes are cut. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

static void check(const tn_tls_der *d)
{
    unsigned i;
    if (d->depth < 1 || d->depth > TN_TLS_DER_DEPTH) abort();
    if (d->keep_len > TN_TLS_DER_KEEP) abort();
    for (i = 0; i < d->depth; i++)
        if (d->left[i] > TN_TLS_DER_MAX) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tn_tls_der whole, cut;
    size_t     at, n;
    uint32_t   seed;
    if (size < 5) return 0;
    memset(&whole, 0, sizeof whole);
    whole.ip_len = (data[0] & 1) != 0 ? 16 : 4;
    memcpy(whole.ip, "\xc0\x00\x02\x07", 4);
    cut  = whole;
    seed = data[0];
    tn_tls_der_start(&whole);
    tn_tls_der_push(&whole, data + 1, size - 1);
    check(&whole);
    tn_tls_der_start(&cut);
    for (at = 1; at < size; at += n) {
        seed = seed * 1103515245u + 12345u;
        n    = 1 + (seed >> 16) % 9;
        if (n > size - at) n = size - at;
        tn_tls_der_push(&cut, data + at, n);
        check(&cut);
    }
    if (whole.phase != cut.phase || whole.ip_found != cut.ip_found || whole.meta != cut.meta ||
        whole.begin_unix_ms != cut.begin_unix_ms || whole.depth != cut.depth)
        abort();
    return 0;
}
