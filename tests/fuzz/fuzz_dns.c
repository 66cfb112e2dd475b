/* DNS: any datagram is either not answered or gets an answer of at most 512 bytes that
 * repeats id and question and is whole; the question reads the same from the answer. The
 * first bytes choose what the answer holds; names go through all readers of names. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const zones[4] = { "", "arpa", "ts.net", "onion." };
    tn_dns_question q, back;
    tn_dns_answer   a;
    tailnet_addr    ip;
    uint8_t         out[TN_DNS_ANSWER_MAX], how;
    tn_wr           w;

    if (size == 0) return 0;
    how = data[0];
    if (tn_dns_parse(&q, data + 1, size - 1) != TAILNET_OK) return 0;
    memset(&a, 0, sizeof a);
    a.rcode = q.rcode;
    if (q.wire_len != 0)
        DEMAND(q.len <= TN_DNS_NAME_MAX && strlen(q.name) == q.len);
    if (q.rcode == TN_DNS_OK) {
        a.rcode       = how & 3u;
        a.zone_len    = tn_dns_under(q.name, q.len, zones[how >> 2 & 3u]);
        a.addr.family = (how & 16u) != 0 ? 4 : (how & 32u) != 0 ? 6 : 0;
        if ((how & 64u) != 0 && q.len < 80 && tn_dns_name_ok(q.name)) a.target = q.name;
        DEMAND(q.len == 0 || tn_dns_name_ok(q.name));
        DEMAND(a.zone_len <= q.len && tn_dns_reverse_zone(q.name, q.len) <= q.len);
        if (tn_dns_reverse(q.name, q.len, &ip)) DEMAND(ip.family == 4 || ip.family == 6);
        if (tn_dns_via(q.name, q.len, &ip)) DEMAND(ip.family == 6 && ip.ip[0] == 0xfd);
    }
    tn_wr_over(&w, out, sizeof out);
    tn_dns_wr_answer(&w, &q, &a);
    DEMAND(tn_wr_ok(&w) && memcmp(out, data + 1, 2) == 0 && (out[2] & 0x80u) != 0);
    DEMAND(tn_dns_parse(&back, out, tn_wr_len(&w)) == TAILNET_ERR_MALFORMED);
    out[2] &= 0x07u;
    DEMAND(tn_dns_parse(&back, out, tn_wr_len(&w)) == TAILNET_OK);
    if (q.wire_len == 0) return 0;
    DEMAND(back.rcode == TN_DNS_OK || back.rcode == TN_DNS_BADVERS);
    DEMAND(back.len == q.len && memcmp(back.name, q.name, q.len) == 0 && back.type == q.type);
    DEMAND(back.edns == q.edns && back.dnssec == q.dnssec);
    return 0;
}
