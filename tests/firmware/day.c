/* day.c - the world of tests/unit/node_world.h (control server, relays, peers, in virtual
 * time) around a firmware that runs in an emulator: day plays the modem of
 * examples/firmware/modem.c and tells it when the next thing happens; the emulator's own
 * clock then jumps there (-icount sleep=off). So a day takes seconds, and every timer of
 * the firmware and its board runs through it.
 *
 *     day SOCKET HOURS        waits for the emulator's UART at a UNIX socket
 *
 * The firmware has to have the setting lockstep. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tn_test.h"

static void nw_x25519(unsigned char *out, const unsigned char *scalar,
                      const unsigned char *point);
#define TAILNET_X25519(out, scalar, point) nw_x25519(out, scalar, point)
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

/* The world calls these of its nodes; for the one in the emulator they become frames. */
static uint32_t       day_poll(tailnet_node *n);
static uint64_t       day_deadline(const tailnet_node *n);
static tailnet_result day_udp_input(tailnet_node *n, const tailnet_addr *from, tailnet_buf *pkts,
                                    size_t count);
static tailnet_result day_tcp_opened(tailnet_node *n, tailnet_link link);
static tailnet_result day_tcp_closed(tailnet_node *n, tailnet_link link);
static tailnet_result day_tcp_writable(tailnet_node *n, tailnet_link link);
static size_t         day_tcp_input(tailnet_node *n, tailnet_link link, const void *data,
                                    size_t size);
static uint8_t       *day_tcp_reserve(tailnet_node *n, tailnet_link link, size_t *room);
static tailnet_result day_tcp_commit(tailnet_node *n, tailnet_link link, size_t size);
#define tailnet_poll         day_poll
#define tailnet_deadline     day_deadline
#define tailnet_udp_input    day_udp_input
#define tailnet_tcp_opened   day_tcp_opened
#define tailnet_tcp_closed   day_tcp_closed
#define tailnet_tcp_writable day_tcp_writable
#define tailnet_tcp_input    day_tcp_input
#define tailnet_tcp_reserve  day_tcp_reserve
#define tailnet_tcp_commit   day_tcp_commit
#include "node_world.h"
#undef tailnet_poll
#undef tailnet_deadline
#undef tailnet_udp_input
#undef tailnet_tcp_opened
#undef tailnet_tcp_closed
#undef tailnet_tcp_writable
#undef tailnet_tcp_input
#undef tailnet_tcp_reserve
#undef tailnet_tcp_commit

#define HOUR UINT64_C(3600000)

static nw_world *world;
static nw_node  *gadget;                    /* who is in the emulator             */
static int       line;
static struct {
    uint64_t wake_ms, ahead_ms;             /* in its own time; its clock minus the world's */
    uint64_t first_ms, now_ms;              /* its clock at the beginning, and as last told */
    unsigned turns, lost;
    size_t   len;                           /* of what waits for its next turn    */
    uint8_t  out[512 * 1024];
    struct { uint8_t bytes[65536]; size_t len; } left[4];       /* short outputs  */
    uint8_t  scratch[2048];
} guest;

static void fail(const char *why)
{
    printf("day: %s\n0 passed, 1 failed\n", why);
    exit(1);
}

/* ---- frames --------------------------------------------------------------------------- */

static void line_write(const uint8_t *src, size_t size)
{
    while (size != 0) {
        ssize_t n = write(line, src, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail("the emulator is gone");
        src += n;
        size -= (size_t)n;
    }
}

static void line_read(uint8_t *dst, size_t size)
{
    while (size != 0) {
        ssize_t n = read(line, dst, size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail("the emulator is gone");
        dst += n;
        size -= (size_t)n;
    }
}

/* A frame for the next turn: head, and two parts of contents. */
static void frame(char kind, uint8_t channel, const void *a, size_t a_len, const void *b,
                  size_t b_len)
{
    uint8_t *p   = guest.out + guest.len;
    size_t   len = a_len + b_len;
    if (guest.len + 4 + len > sizeof guest.out) {
        guest.lost++;
        return;
    }
    p[0] = (uint8_t)kind;
    p[1] = channel;
    p[2] = (uint8_t)len;
    p[3] = (uint8_t)(len >> 8);
    if (a_len != 0) memcpy(p + 4, a, a_len);
    if (b_len != 0) memcpy(p + 4 + a_len, b, b_len);
    guest.len += 4 + len;
}

static uint8_t channel_of(tailnet_link link)
{
    return (uint8_t)((link & 3u) | (link >> 8) << 2);
}

static tailnet_link link_of(uint8_t channel)
{
    return (channel & 3u) | (tailnet_link)(channel >> 2) << 8;
}

/* What of a stream could not be written at once. */
static void flush(tailnet_link link)
{
    unsigned slot = TAILNET_LINK_SLOT(link);
    int32_t  n;
    if (guest.left[slot].len == 0 || nw_conn_of(gadget, link) == NULL) return;
    n = nw_io_output(gadget, link, guest.left[slot].bytes, guest.left[slot].len);
    if (n < 0) n = (int32_t)guest.left[slot].len;       /* it will hear that it is closed */
    guest.left[slot].len -= (size_t)n;
    memmove(guest.left[slot].bytes, guest.left[slot].bytes + n, guest.left[slot].len);
}

static void take_open(uint8_t channel, const uint8_t *data, size_t len)
{
    static char  host[64];
    tailnet_dial dial;
    memset(&dial, 0, sizeof dial);
    if (len < 6 || len - 6 >= sizeof host) fail("a name is too long");
    memcpy(host, data + 6, len - 6);
    host[len - 6] = '\0';
    dial.host = host;
    dial.port = (uint16_t)(data[0] | data[1] << 8);
    guest.left[channel & 3].len = 0;
    if (nw_io_open(gadget, link_of(channel), &dial) != 0) frame('C', channel, "", 0, "", 0);
}

static void take_datagram(uint8_t *data, size_t len)
{
    tailnet_addr to;
    tailnet_buf  p;
    memset(&to, 0, sizeof to);
    memset(&p, 0, sizeof p);
    to.family = 4;
    memcpy(to.ip, data, 4);
    to.port = (uint16_t)(data[4] | data[5] << 8);
    p.base  = data + 6;
    p.cap   = p.len = (uint32_t)len - 6;
    (void)nw_io_udp(gadget, &to, &p, 1);
}

static void take_stream(uint8_t channel, const uint8_t *data, size_t len)
{
    unsigned slot = channel & 3;
    if (guest.left[slot].len + len > sizeof guest.left[slot].bytes) fail("a stream is too long");
    memcpy(guest.left[slot].bytes + guest.left[slot].len, data, len);
    guest.left[slot].len += len;
    flush(link_of(channel));
}

static void take_reset(void)
{
    uint8_t own[6];
    memcpy(own, gadget->place.ip, 4);
    own[4] = (uint8_t)gadget->place.port;
    own[5] = (uint8_t)(gadget->place.port >> 8);
    guest.len = 0;
    frame('N', 0, own, sizeof own, "", 0);
}

/* What the firmware does in its turn, until it has nothing to do. */
static void listen_to_guest(void)
{
    static uint8_t data[65536];
    uint8_t        head[4];
    for (;;) {
        size_t len;
        line_read(head, sizeof head);
        len = (size_t)(head[2] | head[3] << 8);
        line_read(data, len);
        switch (head[0]) {
        case 'R': take_reset(); break;
        case 'O': take_open(head[1], data, len); break;
        case 'D': take_stream(head[1], data, len); break;
        case 'U': take_datagram(data, len); break;
        case 'C':
            guest.left[head[1] & 3].len = 0;
            if (nw_conn_of(gadget, link_of(head[1])) != NULL) nw_io_close(gadget, link_of(head[1]));
            break;
        case 'T':
            memcpy(&guest.now_ms, data, 8);
            memcpy(&guest.wake_ms, data + 8, 8);
            return;
        default: fail("a frame of unknown kind");
        }
    }
}

/* One turn: it sleeps until now, gets what came, and does what it wants. */
static void turn(void)
{
    uint8_t  head[16] = {'T', 0, 12, 0};
    uint64_t until    = world->now_ms + guest.ahead_ms;
    uint32_t size     = (uint32_t)guest.len;
    memcpy(head + 4, &until, 8);
    memcpy(head + 12, &size, 4);
    guest.turns++;
    guest.len = 0;
    line_write(head, sizeof head);
    line_write(guest.out, size);
    listen_to_guest();
}

/* ---- what the world calls --------------------------------------------------------------- */

static bool is_guest(const tailnet_node *n) { return n == gadget->n; }

static uint32_t day_poll(tailnet_node *n)
{
    if (!is_guest(n)) return tailnet_poll(n);
    turn();
    gadget->outputs++;                      /* the world takes care of polls that do nothing */
    return 0;
}

static uint64_t day_deadline(const tailnet_node *n)
{
    if (!is_guest(n)) return tailnet_deadline(n);
    if (guest.len != 0) return 0;
    return guest.wake_ms < guest.ahead_ms ? 0 : guest.wake_ms - guest.ahead_ms;
}

static tailnet_result day_udp_input(tailnet_node *n, const tailnet_addr *from, tailnet_buf *pkts,
                                    size_t count)
{
    uint8_t head[6];
    if (!is_guest(n)) return tailnet_udp_input(n, from, pkts, count);
    memcpy(head, from->ip, 4);
    head[4] = (uint8_t)from->port;
    head[5] = (uint8_t)(from->port >> 8);
    frame('U', 0, head, sizeof head, pkts->base + pkts->off, pkts->len);
    return TAILNET_OK;
}

static tailnet_result day_tcp_opened(tailnet_node *n, tailnet_link link)
{
    if (!is_guest(n)) return tailnet_tcp_opened(n, link);
    frame('O', channel_of(link), "", 0, "", 0);
    return TAILNET_OK;
}

static tailnet_result day_tcp_closed(tailnet_node *n, tailnet_link link)
{
    if (!is_guest(n)) return tailnet_tcp_closed(n, link);
    frame('C', channel_of(link), "", 0, "", 0);
    return TAILNET_OK;
}

static tailnet_result day_tcp_writable(tailnet_node *n, tailnet_link link)
{
    if (!is_guest(n)) return tailnet_tcp_writable(n, link);
    flush(link);
    return TAILNET_OK;
}

static size_t day_tcp_input(tailnet_node *n, tailnet_link link, const void *data, size_t size)
{
    if (!is_guest(n)) return tailnet_tcp_input(n, link, data, size);
    if (size > 32768) size = 32768;
    frame('D', channel_of(link), data, size, "", 0);
    return size;
}

static uint8_t *day_tcp_reserve(tailnet_node *n, tailnet_link link, size_t *room)
{
    if (!is_guest(n)) return tailnet_tcp_reserve(n, link, room);
    *room = sizeof guest.scratch;
    return guest.scratch;
}

static tailnet_result day_tcp_commit(tailnet_node *n, tailnet_link link, size_t size)
{
    if (!is_guest(n)) return tailnet_tcp_commit(n, link, size);
    frame('D', channel_of(link), guest.scratch, size, "", 0);
    return TAILNET_OK;
}

/* ---- the day ----------------------------------------------------------------------------- */

/* A peer asks for an echo; does it come within ten seconds, and after how many? */
static bool echo(nw_node *from, const char *what)
{
    unsigned i, k;
    unsigned before = nw_got(from, what);
    for (i = 0; i < 5; i++) {
        (void)nw_send(from, gadget, 7, what);
        for (k = 0; k < 20; k++) {
            nw_run(world, 100);
            if (nw_got(from, what) > before) return true;
        }
    }
    return false;
}

static void until(unsigned hour)
{
    uint64_t at = 1000 + hour * HOUR;
    if (at > world->now_ms) nw_run(world, at - world->now_ms);
}

/* The server says that a peer's key has expired, or has been renewed. */
static void expire(nw_member *m, bool expired)
{
    m->expired = expired;
    nw_announce(world, m);
    nw_run(world, 5000);
}

/* Our own key expires: the device logs in again with its auth key. */
static void expire_own(void)
{
    nw_member *m         = nw_member_of(world, gadget);
    unsigned   registers = m->registers;
    m->expired = true;
    nw_say_self(world, m);
    nw_run(world, 30000);
    CHECK(m->registers > registers);
    CHECK(!m->expired);
}

/* What an hour brings besides an echo. */
static void event(unsigned hour, nw_node *alpha, nw_node *beta)
{
    unsigned i;
    switch (hour) {
    case 2:                                 /* a session that lives on and on     */
        for (i = 0; i < 90; i++) {
            CHECK(nw_send(alpha, gadget, 7, "steady") == TAILNET_OK);
            nw_run(world, 20000);
        }
        break;
    case 5: nw_cut(gadget, 0); break;
    case 7: nw_freeze(gadget, 1); break;
    case 9: nw_freeze(gadget, 0); break;
    case 11:
        CHECK(echo(beta, "before"));
        expire(nw_member_of(world, beta), true);
        CHECK(!echo(beta, "expired"));
        break;
    case 14:
        expire(nw_member_of(world, beta), false);
        CHECK(echo(beta, "again"));
        break;
    case 16: expire_own(); break;
    default: break;
    }
}

static void meet(const char *path)
{
    struct sockaddr_un a;
    int                s = socket(AF_UNIX, SOCK_STREAM, 0);
    memset(&a, 0, sizeof a);
    a.sun_family = AF_UNIX;
    if (s < 0 || strlen(path) >= sizeof a.sun_path) fail("no socket");
    strcpy(a.sun_path, path);
    (void)unlink(path);
    if (bind(s, (struct sockaddr *)&a, sizeof a) != 0 || listen(s, 1) != 0) fail("no socket");
    line = accept(s, NULL, NULL);
    if (line < 0) fail("nobody came");
    listen_to_guest();
    guest.first_ms = guest.now_ms;
    guest.ahead_ms = guest.now_ms >= world->now_ms ? guest.now_ms - world->now_ms : 0;
    if (guest.ahead_ms == 0) world->now_ms = guest.now_ms;
}

static unsigned hours = 24;

static void a_day(void)
{
    nw_node *alpha, *beta;
    unsigned hour;
    uint64_t begin = world->now_ms;
    alpha = nw_join(world, "alpha");
    beta  = nw_join(world, "beta");
    for (hour = 0; hour < hours; hour++) {
        char text[32];
        until(hour);
        if (hour == 0) nw_run(world, 10000);
        snprintf(text, sizeof text, "hour %u", hour);
        if (!echo(alpha, text)) printf("no echo at %lu s\n", (unsigned long)(world->now_ms / 1000));
        CHECK(nw_got(alpha, text) != 0);
        event(hour, alpha, beta);
    }
    until(hours);
    CHECK(echo(alpha, "last"));
    CHECK(guest.lost == 0);
    CHECK(guest.now_ms - guest.first_ms + 65000 > world->now_ms - begin);
    CHECK(guest.now_ms - guest.first_ms < world->now_ms - begin + 65000);
    printf("%u turns in %lu s; dials %u, datagrams %u\n", guest.turns,
           (unsigned long)((world->now_ms - begin) / 1000), gadget->dials, gadget->udp_sent);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2) fail("day SOCKET HOURS");
    if (argc > 2) hours = (unsigned)atoi(argv[2]);
    world      = nw_begin(24);
    world->udp = true;
    gadget     = nw_add(world, "gadget");
    if (nw_make(gadget) != TAILNET_OK) fail("no place for the firmware");
    meet(argv[1]);
    TEST(a_day);
    return tn_test_end();
}
