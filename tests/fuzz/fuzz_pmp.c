/* Port mapping: a gateway that says anything at any time. The input is a list of deeds:
 *
 *     0 n         the clock goes on by n * n * 100 ms
 *     1 n bytes   a datagram from the gateway's port 5351
 *     2 n bytes   a datagram from the gateway's port 1900
 *     3 n bytes   bytes of HTTP, n * 8
 *     4 n         the connection ends
 *     5 n         the network is another one, or none
 *     6 n         going down
 *     7 n         to the next deadline
 *
 * What was sent and when may never depend on unasked words: between two turns of the
 * clock there are at most as many datagrams as the longest honest answer asks for. */
#define TAILNET_PORTMAP 1
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

/* Everything that is to be done; returns how much it was. */
static unsigned turn(tn_pmp *p, uint64_t now_ms)
{
    uint8_t      out[TN_PMP_DATAGRAM], part[1500];
    tailnet_addr to;
    tn_wr        w;
    unsigned     count = 0;
    for (;;) {
        tn_pmp_want want;
        tn_wr_over(&w, out, sizeof out);
        want = tn_pmp_step(p, now_ms, &w, &to);
        if (want == TN_PMP_NOTHING) break;
        DEMAND(++count < 8 && tn_wr_ok(&w) && to.family == 4 && to.port != 0);
        DEMAND(memcmp(to.ip, p->gateway, 4) == 0 || to.ip[0] == 239);
        if (want == TN_PMP_SEND) DEMAND(tn_wr_len(&w) != 0);
        if (want != TN_PMP_HTTP) continue;
        DEMAND(tn_wr_len(&w) == 0 && tn_pmp_http_wanted(p));
        tn_wr_over(&w, part, sizeof part);
        tn_pmp_http_request(p, &w);
        DEMAND(tn_wr_ok(&w) && tn_wr_len(&w) <= 1250);
    }
    DEMAND(tn_pmp_deadline(p) > now_ms);
    return count;
}

static void check(const tn_pmp *p)
{
    tailnet_addr a;
    size_t       i;
    if (tn_pmp_external(p, &a)) DEMAND(a.port != 0 && a.ip[0] != 0 && a.ip[0] < 224);
    for (i = 0; p->path[i] != '\0'; i++) DEMAND(p->path[i] > ' ' && i < sizeof p->path);
    if (p->state == TN_PMP_IDLE) DEMAND(tn_pmp_deadline(p) == TN_NEVER);
    else DEMAND(tn_pmp_deadline(p) != TN_NEVER);
}

static void network(tn_pmp *p, unsigned n, uint64_t now_ms)
{
    static const uint8_t luck[12] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };
    tailnet_addr gateway, own;
    memset(&gateway, 0, sizeof gateway);
    gateway.family = n == 0 ? 0 : 4;
    gateway.ip[0]  = 10;
    gateway.ip[3]  = (uint8_t)(1 + n / 4 % 2);
    own            = gateway;
    own.ip[3]      = 20;
    own.port       = (uint16_t)(4096 + n % 4);
    tn_pmp_network(p, &gateway, &own, luck, now_ms);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tn_pmp       p;
    tailnet_addr from;
    uint64_t     now_ms = 5000, first_ms = now_ms;
    unsigned     said   = 0, asked = 1;
    memset(&p, 0, sizeof p);
    network(&p, 1, now_ms);
    while (size >= 2) {
        unsigned what = data[0] % 8u, n = data[1];
        size_t   len  = what == 3 ? 8u * n : n;
        data += 2;
        size -= 2;
        memset(&from, 0, sizeof from);
        from.family = 4;
        from.port   = what == 1 ? 5351 : 1900;
        memcpy(from.ip, p.gateway, 4);
        if (what == 1 || what == 2 || what == 3) {
            if (len > size) len = size;
            if (what != 3) (void)tn_pmp_input(&p, data, len, &from, now_ms);
            else (void)tn_pmp_http_input(&p, data, len, now_ms);
            data += len;
            size -= len;
        }
        if (what == 0) now_ms += (uint64_t)n * n * 100;
        if (what == 4) tn_pmp_http_end(&p, now_ms);
        if (what == 5) network(&p, n % 8, now_ms);
        if (what == 6) tn_pmp_release(&p, now_ms);
        if (what == 7 && p.state != TN_PMP_IDLE) now_ms = tn_pmp_deadline(&p);
        if (what >= 5) asked += 2;
        said += turn(&p, now_ms);
        /* A round is 4 searches, 9 + 5 * 2 requests, 7 of HTTP; a pause of 30 s follows, or
         * ten minutes with one question. */
        DEMAND(said <= 40 * (asked + (now_ms - first_ms) / 250));
        (void)tn_pmp_news(&p);
        check(&p);
    }
    return 0;
}
