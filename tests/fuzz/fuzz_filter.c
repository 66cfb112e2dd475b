/* Any rules and any packets. The input is a row of pieces, each a letter, a
 * length and that many bytes. Whatever comes: the tables keep their form, nobody
 * gets in to an address that is not ours, a jailed peer only with an answer, and
 * a rule dropped from the arena lets nobody in that a larger arena would not. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

enum { RANGES = 24, MORE = 400, FLOWS = 5 };

static void check_tables(const tn_flt *f)
{
    unsigned i;
    if (f->now.used > f->range_max || f->next.used > f->range_max) abort();
    if (f->open && f->rule_at > f->next.used) abort();
    if (f->cap_count > TN_FLT_CAPS) abort();
    for (i = 0; i < f->now.used; i++) {
        const tn_flt_range *r = &f->now.range[i];
        if (r->kind > TN_FLT_PROTO || r->set >= TN_FLT_SETS) abort();
        if (i == 0 && r->head == 0) abort();
        if (i != 0 && r->head == 0 && r->set != r[-1].set) abort();
        if (r->kind > TN_FLT_DST || r->family == 0) continue;
        if (memcmp(r->at, r->at + 16, tn_ip_len(r->family)) > 0) abort();
    }
}

static void feed(tn_flt *f, unsigned letter, const char *text, size_t len)
{
    uint16_t first = (uint16_t)(len == 0 ? 0 : (unsigned char)text[0] % 4 * 21845u);
    switch (letter % 16) {
    case 0: tn_flt_begin(f, len % 2 != 0); break;
    case 1: tn_flt_base(f); break;
    case 2: tn_flt_set(f, text, len); break;
    case 3: tn_flt_set_drop(f, text, len); break;
    case 4: case 5: tn_flt_rule_begin(f); break;
    case 6: case 7: tn_flt_src(f, text, len); break;
    case 8: tn_flt_dst(f, text, len, 0, 65535); break;
    case 9: tn_flt_dst(f, text, len, first, (uint16_t)(first + len)); break;
    case 10: tn_flt_proto(f, len == 0 ? -1 : (unsigned char)text[0] * 2); break;
    case 11: if (len == 7) tn_flt_rule_bad(f); break;
    case 12: tn_flt_rule_end(f); break;
    case 13: (void)tn_flt_commit(f); break;
    case 14: tn_flt_abort(f); break;
    default: tn_flt_forget(f, (uint16_t)len); break;
    }
    check_tables(f);
}

static void packet(tn_flt *small, tn_flt *large, unsigned letter, const uint8_t *data, size_t len,
                   uint64_t now_ms)
{
    tn_ip_packet   p;
    tn_flt_peer    peer = {letter & 1u ? 0xffu : 0u, (uint16_t)(letter & 2u), (letter & 4u) != 0};
    tn_flt_why     why;
    tn_flt_verdict v, w;
    (void)tn_ip_read(&p, data, len);
    if ((letter & 8u) != 0) {
        v = tn_flt_out(small, &p, &peer, now_ms, &why);
        if (v != tn_flt_out(large, &p, &peer, now_ms, &why)) abort();
        return;
    }
    v = tn_flt_in(small, &p, &peer, now_ms, &why);
    if (v == TN_FLT_ACCEPT && len != 0) {
        if (p.flow.protocol == TN_IP_UNKNOWN || !tn_flt_is_local(small, &p.flow.dst)) abort();
        if (peer.jailed && why != TN_FLT_WHY_FLOW && p.flow.protocol != TN_IP_TSMP) abort();
        if (small->now.used == 0 && why != TN_FLT_WHY_FLOW && p.flow.protocol != TN_IP_TSMP) abort();
    }
    if (why == TN_FLT_WHY_FLOW) return;     /* the tables of flows may differ     */
    w = tn_flt_in(large, &p, &peer, now_ms, &why);
    if (v == TN_FLT_ACCEPT && w != TN_FLT_ACCEPT && large->now.bad == small->now.bad) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tn_flt_range ranges[2 * RANGES], more[2 * MORE];
    static tn_flt_flow  flows[FLOWS], others[FLOWS];
    tn_flt              small, large;
    tailnet_addr        self4, self6;
    tailnet_prefix      route;
    uint64_t            now_ms = 0;
    tn_rd               r;

    if (size > 2000) return 0;              /* the large arena never gets full    */
    tn_flt_init(&small, ranges, RANGES, flows, FLOWS);
    tn_flt_init(&large, more, MORE, others, FLOWS);
    (void)tn_ip_parse(&self4, "100.64.0.10", 11);
    (void)tn_ip_parse(&self6, "fd7a:115c:a1e0::10", 18);
    (void)tn_prefix_parse(&route, "0.0.0.0/0", 9);
    tn_flt_local(&small, &self4, &self6, &route, 1);
    tn_flt_local(&large, &self4, &self6, &route, 1);
    tn_rd_over(&r, data, size);
    while (r.left >= 2) {
        unsigned       letter = tn_rd_u8(&r), len = tn_rd_u8(&r);
        const uint8_t *piece;
        if (len > r.left) len = (unsigned)r.left;
        piece = tn_rd_bytes(&r, len);
        now_ms += letter >> 6 == 3 ? 100000 : 1;
        if (letter < 128) {
            feed(&small, letter, (const char *)piece, len);
            feed(&large, letter, (const char *)piece, len);
        } else {
            packet(&small, &large, letter, piece, len, now_ms);
        }
    }
    return 0;
}
