/* STUN, both halves: any datagram; an answer that parses names an address that, sent as
 * an answer, parses to the same. The id is taken from the datagram itself. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t      id[12], other[12], out[64];
    tailnet_addr a, b;
    tn_wr        w;
    if (tn_stun_parse_request(data, size, id)) DEMAND(size >= TN_STUN_REQUEST_LEN);
    if (!tn_stun_id(data, size, id)) {
        DEMAND(tn_stun_parse(data, size, other, &a) == TAILNET_ERR_MALFORMED);
        return 0;
    }
    memcpy(other, id, 12);
    other[0] ^= 1;
    DEMAND(tn_stun_parse(data, size, other, &a) == TAILNET_ERR_FORGED);
    if (tn_stun_parse(data, size, id, &a) != TAILNET_OK) return 0;
    DEMAND(a.family == 4 || a.family == 6);
    tn_wr_over(&w, out, sizeof out);
    tn_stun_wr_response(&w, id, &a);
    DEMAND(tn_wr_ok(&w) && tn_stun_parse(out, tn_wr_len(&w), id, &b) == TAILNET_OK);
    DEMAND(tn_addr_same(&a, &b));
    return 0;
}
