/* Datagrams: sorted without reading past the end; a packet opens only if it was sealed;
 * what was parsed, written again, parses to the same. First byte chooses. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

static void text(const uint8_t *plain, size_t len)
{
    tn_disco_msg m, again;
    tailnet_addr list[64];
    uint8_t      out[2048];
    size_t       i;
    tn_wr        w;
    if (tn_disco_parse(plain, len, &m) != TAILNET_OK) return;
    DEMAND(m.count * TN_DISCO_ENDPOINT <= len);
    for (i = 0; i < 64 && tn_disco_endpoint(&m, i, &list[i]); i++) DEMAND(list[i].family != 0);
    DEMAND(i == (m.count < 64 ? m.count : 64));
    tn_wr_over(&w, out, sizeof out);
    if (m.type == TN_DISCO_PING) tn_disco_wr_ping(&w, m.tx, m.node_key, 0);
    if (m.type == TN_DISCO_PONG) tn_disco_wr_pong(&w, m.tx, &m.src);
    if (m.type == TN_DISCO_CALL) tn_disco_wr_call(&w, list, i);
    DEMAND(tn_wr_ok(&w) && tn_disco_parse(out, tn_wr_len(&w), &again) == TAILNET_OK);
    DEMAND(again.type == m.type && again.count == i && tn_addr_same(&again.src, &m.src));
    DEMAND((again.node_key == NULL) == (m.node_key == NULL));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t k[32] = { 1, 2, 3 };
    tn_disco_class  c;
    uint8_t        *p, *plain;
    size_t          len;
    if (size == 0) return 0;
    if ((data[0] & 1) != 0) {
        text(data + 1, size - 1);
        return 0;
    }
    p = (uint8_t *)malloc(size);
    memcpy(p, data + 1, size - 1);
    c = tn_disco_classify(p, size - 1);
    DEMAND((c == TN_DISCO_IS_DISCO) == tn_disco_is(p, size - 1) || c == TN_DISCO_IS_STUN);
    if (tn_disco_sender(p, size - 1) != NULL) DEMAND(size - 1 >= TN_DISCO_PLAIN);
    if (tn_disco_open(k, p, size - 1, &plain, &len)) text(plain, len);
    free(p);
    return 0;
}
