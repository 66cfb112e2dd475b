/* The JSON reader over any bytes: whole, and cut where the first byte says; the
 * same events, and none of them points out of its space. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

static uint64_t digest(const uint8_t *data, size_t size, size_t step, unsigned skip)
{
    tn_js       js;
    tn_js_event ev = TN_JS_MORE;
    uint64_t    h  = 1469598103934665603u;
    size_t      from = 0, i;
    unsigned    count = 0;

    tn_js_init(&js);
    while (from < size && ev != TN_JS_ERROR) {
        size_t n = step < size - from ? step : size - from;
        tn_js_feed(&js, data + from, n);
        from += n;
        while ((ev = tn_js_next(&js)) > TN_JS_MORE) {
            if (js.key_len > TN_JS_MAX_KEY || js.key_len + js.text_len > TN_JS_SPACE) abort();
            if (js.depth > TN_JS_MAX_DEPTH) abort();
            h = (h ^ (uint64_t)ev ^ (uint64_t)js.depth << 8) * 1099511628211u;
            for (i = 0; i < js.key_len; i++) h = (h ^ (uint8_t)js.key[i]) * 1099511628211u;
            for (i = 0; i < js.text_len; i++) h = (h ^ (uint8_t)js.text[i]) * 1099511628211u;
            if (++count % 8 == skip) tn_js_skip(&js);
        }
    }
    return (h ^ (ev == TN_JS_ERROR ? js.at : 0)) * 1099511628211u ^ (uint64_t)js.error;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t step;
    if (size == 0) return 0;
    step  = data[0] % 31u + 1u;
    if (digest(data + 1, size - 1, size, data[0] % 8u) !=
        digest(data + 1, size - 1, step, data[0] % 8u)) abort();
    return 0;
}
