/* Bytes of two saved places, and key texts. Odd first byte: the checksum of the
 * first place is made right, so that what is behind it gets its turn. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tn_key_state  s, t;
    tailnet_bytes saved[2];
    uint8_t       blob[TAILNET_STATE_SIZE], key[32];
    size_t        first, len;
    bool          ok[2];
    if (size < 2 || size > 2 * sizeof blob) return 0;
    first = data[1] * (size - 2) / 255;
    if (first > sizeof blob) first = sizeof blob;
    memcpy(blob, data + 2, first);
    len = first < 8 ? 0 : (size_t)blob[6] << 8 | blob[7];
    if (data[0] % 2 != 0 && len >= 44 && len <= first)
        tn_cr_hash(blob + len - 32, blob, len - 32, NULL, 0);
    saved[0].data = blob;
    saved[0].size = first;
    saved[1].data = data + 2 + first;
    saved[1].size = size - 2 - first;
    ok[0] = tn_key_state_parse(&s, saved[0].data, saved[0].size);
    ok[1] = tn_key_state_parse(&t, saved[1].data, saved[1].size);
    if (!ok[0] && !tn_is_zero(&s, sizeof s)) abort();
    if ((tn_key_state_choose(&t, saved) == TAILNET_OK) != (ok[0] || ok[1])) abort();
    if (ok[0]) {                                /* what was read is written and read the same */
        if (tn_key_state_build(&s, blob, sizeof blob) != TN_KEY_STATE_LEN) abort();
        if (!tn_key_state_parse(&t, blob, TN_KEY_STATE_LEN)) abort();
        if (memcmp(s.machine, t.machine, 192) != 0 || s.number != t.number) abort();
    }
    if (tn_key_parse(key, TN_KEY_LOCK, (const char *)data, size) && size != 70) abort();
    return 0;
}
