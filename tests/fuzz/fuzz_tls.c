/* A TLS client that hears anything from its server. It must never be up: nobody
 * here can sign for the roots it believes in. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include <stdlib.h>

static uint64_t now(void *user) { (void)user; return 1; }
static uint64_t unix_now(void *user) { (void)user; return 1800000000000u; }
static int      noise(void *user, void *dst, size_t size)
{
    (void)user;
    memset(dst, 0x42, size);
    return 0;
}
static void ip(void *user, tailnet_buf *p, size_t n) { (void)user, (void)p, (void)n; }
static int  open_(void *user, tailnet_link l, const tailnet_dial *d)
{
    (void)user, (void)l, (void)d;
    return 0;
}
static int32_t output(void *user, tailnet_link l, const void *data, size_t size)
{
    (void)user, (void)l, (void)data;
    return (int32_t)size;
}
static void close_(void *user, tailnet_link l) { (void)user, (void)l; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tn_rim       rim;
    static tn_tls       tls;
    static tn_tls_check check;
    static uint8_t      in[TN_TLS_IN_LEN];
    tailnet_io          io;
    tn_tls_want         want;
    size_t              at = 1, len, room;
    if (size < 2) return 0;
    memset(&io, 0, sizeof io);
    io.now_ms     = now;
    io.unix_ms    = (data[0] & 1) != 0 ? unix_now : NULL;
    io.random     = noise;
    io.ip_output  = ip;
    io.tcp_open   = open_;
    io.tcp_output = output;
    io.tcp_close  = close_;
    if (!tn_rim_init(&rim, &io)) abort();
    memset(&want, 0, sizeof want);
    want.host = (data[0] & 2) != 0 ? "192.0.2.7" : "relay.example";
    if (tn_tls_start(&tls, &check, &rim, &want, in, sizeof in) != TAILNET_OK) abort();
    while (at < size && !tn_tls_is_over(&tls)) {
        uint8_t *to = tn_tls_in_reserve(&tls, &room);
        if (tn_tls_out(&tls, &len) != NULL) tn_tls_sent(&tls, len);
        if (to != NULL) {
            size_t n = size - at < room ? size - at : room;
            if ((data[0] & 4) != 0 && n > 3) n = 3;
            memcpy(to, data + at, n);
            tn_tls_in_commit(&tls, n);
            at += n;
        }
        if (!tn_tls_turn(&tls) && to == NULL && tn_tls_out(&tls, &len) == NULL) break;
    }
    while (tn_tls_turn(&tls)) {}
    if (tn_tls_is_up(&tls)) abort();
    tn_tls_wipe(&tls);
    return 0;
}
