/* A packet of any bytes: what is read lies inside it; another address, and back,
 * changes no byte but sums that were made of nothing; answers are packets. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

static void answers(const tn_ip_packet *p)
{
    uint8_t      out[TN_IP_TSMP_MAX];
    tn_ip_packet q;
    tn_ip_tsmp   t, u;
    tn_wr        w;
    if (tn_ip_tsmp_parse(&t, p) != (p->flow.protocol == TN_IP_TSMP)) abort();
    tn_wr_over(&w, out, sizeof out);
    if (t.kind == TN_IP_TSMP_PING) {
        tn_ip_wr_pong(&w, p, &t, 80);
        if (!tn_wr_ok(&w) || !tn_ip_read(&q, out, tn_wr_len(&w)) || !tn_ip_sums_ok(&q)) abort();
        if (!tn_ip_tsmp_parse(&u, &q) || u.kind != TN_IP_TSMP_PONG || u.port != 80) abort();
        if (memcmp(u.data, t.data, 8) != 0) abort();
    } else if (p->flow.protocol != TN_IP_UNKNOWN) {
        tn_ip_wr_reject(&w, p, TN_IP_REJECT_ACL);
        if (!tn_wr_ok(&w) || !tn_ip_read(&q, out, tn_wr_len(&w)) || !tn_ip_sums_ok(&q)) abort();
        if (!tn_ip_tsmp_parse(&u, &q) || u.kind != TN_IP_TSMP_REJECT) abort();
        if (!tn_addr_same(&u.rejected.src, &p->flow.src)) abort();
        if (!tn_addr_same(&u.rejected.dst, &p->flow.dst)) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tn_ip_packet p, q;
    tailnet_addr other;
    uint8_t     *copy;
    size_t       trimmed = tn_ip_trim(data, size);
    bool         sums;

    if (trimmed > size) abort();
    if (!tn_ip_read(&p, data, size)) {
        if (p.flow.protocol != TN_IP_UNKNOWN || p.len > size) abort();
        return 0;
    }
    if (p.len != trimmed || p.body > p.len || p.flow.protocol == TN_IP_UNKNOWN) abort();
    if (p.family != p.flow.src.family || p.family != p.flow.dst.family) abort();
    if (p.quoted.src.family != 0 && p.icmp != TN_IP_ICMP_ERROR) abort();
    answers(&p);

    copy = (uint8_t *)malloc(p.len);        /* exactly as long as the packet      */
    if (copy == NULL) return 0;
    memcpy(copy, data, p.len);
    if (!tn_ip_read(&q, copy, p.len)) abort();
    sums  = tn_ip_sums_ok(&q);
    other = p.flow.src;
    other.ip[3] ^= 0x5a;
    other.ip[0] ^= size % 2 != 0 ? 0xff : 0;
    if (!tn_ip_set_src(copy, &q, &other)) abort();
    if (sums && !tn_ip_sums_ok(&q)) abort();
    if (!tn_ip_read(&q, copy, p.len) || !tn_ip_same(&q.flow.src, &other)) abort();
    other = p.flow.dst;
    other.ip[2] ^= 0xa5;
    if (!tn_ip_set_dst(copy, &q, &other)) abort();
    if (sums && !tn_ip_sums_ok(&q)) abort();
    other.family = (uint8_t)(10 - other.family);
    if (tn_ip_set_dst(copy, &q, &other)) abort();
    free(copy);
    return 0;
}
