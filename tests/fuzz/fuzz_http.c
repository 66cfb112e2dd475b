/* HTTP/1.1 and HTTP/2 readers: any bytes, whole and cut, must give the same events and
 * never an answer that grows. First byte: which reader; second: the seed of the cuts. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

typedef struct { uint64_t sum; size_t body; unsigned end; } story;

static uint32_t seed;
static size_t cut(size_t left, bool whole)
{
    seed = seed * 1103515245u + 12345u;
    return whole ? left : 1 + (seed >> 16) % (left < 30 ? left : 30);
}

static void tell(story *s, uint64_t v) { s->sum = (s->sum ^ v) * 0x100000001b3u + 7; }

static void h1(story *s, const uint8_t *src, size_t len, bool request, bool whole)
{
    char         shake[TN_H1_HANDSHAKE + 1];
    tn_h1        h;
    tn_h1_result r    = TN_H1_MORE;
    bool         head = true;
    size_t       i;
    if (request) tn_h1_begin_request(&h, shake);
    else         tn_h1_begin_response(&h);
    while (len != 0 && r != TN_H1_BAD && r != TN_H1_DONE) {
        tn_rd  in;
        size_t n = cut(len, whole);
        tn_rd_over(&in, src, n);
        src += n;
        len -= n;
        if (head) {
            r = tn_h1_head(&h, &in);
            DEMAND(r != TN_H1_MORE || in.left == 0);
            if (r != TN_H1_HEAD_DONE) continue;
            head = false;
            DEMAND(strlen(h.text) < TN_H1_TEXT && (!request || strlen(shake) <= TN_H1_HANDSHAKE));
            tell(s, h.status);
            tell(s, h.flags);
        }
        do {
            const uint8_t *at;
            size_t         got;
            r = tn_h1_body(&h, &in, &at, &got);
            for (i = 0; i < got; i++) tell(s, at[i]);
            s->body += got;
        } while (r == TN_H1_BODY);
        if (r == TN_H1_DONE) tell(s, len + in.left);
    }
    s->end = (unsigned)r;
}

static void h2(story *s, const uint8_t *src, size_t len, tn_h2_role role, bool whole)
{
    static uint8_t out[4096];
    static const tn_h2_request rq = { "GET", "/", "u", TN_H2_NO_LENGTH, false };
    tn_h2       h;
    tn_h2_event ev;
    tn_wr       w;
    unsigned    i;
    tn_h2_begin(&h, role);
    tn_wr_over(&w, out, sizeof out);
    DEMAND(tn_h2_flush(&h, &w));
    for (i = 0; i < 3 && role == TN_H2_CLIENT; i++) DEMAND(tn_h2_open(&h, &w, &rq) == 2 * i + 1);
    while (len != 0) {
        tn_rd  in;
        size_t n = cut(len, whole), k;
        tn_rd_over(&in, src, n);
        src += n;
        len -= n;
        while (tn_h2_next(&h, &in, &ev) != TN_H2_MORE) {
            if (ev.kind != TN_H2_BODY && ev.kind != TN_H2_HEADER_BYTES) {
                tell(s, (uint64_t)ev.kind << 32 | ev.code);
                tell(s, (uint64_t)ev.status + ev.retry_after_s + ev.last);
            }
            DEMAND(ev.len != 0 || ev.kind != TN_H2_BODY || ev.end);
            for (k = 0; k < ev.len; k++) tell(s, ev.at[k]);
            s->body += ev.len;
            if (ev.end) tell(s, ev.stream);
            if (ev.kind == TN_H2_FAILED) break;
        }
        if (ev.kind == TN_H2_FAILED) break;
        DEMAND(in.left == 0);
    }
    for (i = 0; i < TN_H2_STREAMS; i++) DEMAND(h.streams[i].recv_window >= 0);
    DEMAND(h.recv_window >= 0 && h.block_len <= TN_HP_BLOCK_MAX);
    tn_wr_over(&w, out, sizeof out);
    DEMAND(tn_h2_flush(&h, &w) && w.total <= 9u * TN_H2_ACKS_MAX + 9 + 17 + 13 + 4 * 13 + 13);
    DEMAND(!tn_h2_wants_flush(&h));
    s->end = h.state == TN_H2_FAILED_FOR_GOOD ? 100u + h.code : 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *src, size_t len);
int LLVMFuzzerTestOneInput(const uint8_t *src, size_t len)
{
    story    s[2];
    unsigned i;
    if (len < 2) return 0;
    seed = src[1];
    memset(s, 0, sizeof s);
    for (i = 0; i < 2; i++) {
        if ((src[0] & 2u) == 0) h1(&s[i], src + 2, len - 2, (src[0] & 1u) != 0, i == 0);
        else h2(&s[i], src + 2, len - 2, (src[0] & 1u) != 0 ? TN_H2_SERVER : TN_H2_CLIENT, i == 0);
    }
    DEMAND(s[0].sum == s[1].sum && s[0].body == s[1].body && s[0].end == s[1].end);
    return 0;
}
