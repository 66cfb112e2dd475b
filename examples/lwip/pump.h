/* pump.h - carries bytes between one TCP connection of lwIP and two descriptors (or one socket),
 * both ways, each end by itself: what is full stops what feeds it, nothing is lost or kept
 * without bound, and an end of one direction leaves the other open.
 *
 *     pump_start(&m, pcb, in, out);            a connected tcp_pcb; in and out may be the same
 *     each turn: poll for pump_wants_in / pump_wants_out, call pump_in / pump_out,
 *                and when pump_over: look at m.broken, pump_stop(&m)
 *
 * The descriptors stay the caller's. Only sockets are expected not to block. */
#ifndef PUMP_H
#define PUMP_H

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lwip/tcp.h"

/* Bytes read from a descriptor in one go. */
enum { PUMP_PIECE = 32768 };

typedef struct pump {
    struct tcp_pcb *pcb;            /* NULL: lwIP has done with it                */
    int             in, out;
    bool            in_socket, out_socket;
    bool            in_ended;       /* we have sent our FIN                       */
    bool            peer_ended;     /* the peer has sent its FIN                  */
    bool            out_ended;      /* and it was passed on                       */
    bool            broken;         /* not ended: torn                            */
    bool            out_broken;     /* it was our side that broke                 */
    uint8_t        *held;           /* came from the peer, out has not taken it   */
    size_t          at, len, cap;   /* never more than the TCP window             */
    uint64_t        sent, received;
} pump;

static void pump_leave(pump *m)
{
    if (m->pcb == NULL) return;
    tcp_arg(m->pcb, NULL);
    tcp_recv(m->pcb, NULL);
    tcp_err(m->pcb, NULL);
    m->pcb = NULL;
}

static void pump_abort(pump *m)
{
    struct tcp_pcb *pcb = m->pcb;
    m->broken = true;
    pump_leave(m);
    if (pcb != NULL) tcp_abort(pcb);
}

/* Room for size bytes more behind what is held. The peer may not send more than the window,
 * so that much is always enough. */
static bool pump_reserve(pump *m, size_t size)
{
    size_t   cap = m->cap == 0 ? 16384 : m->cap;
    uint8_t *more;
    if (m->cap - m->at - m->len >= size) return true;
    if (m->at != 0) memmove(m->held, m->held + m->at, m->len);
    m->at = 0;
    while (cap - m->len < size) cap *= 2;
    if (cap == m->cap) return true;
    more = (uint8_t *)realloc(m->held, cap);
    if (more == NULL) return false;
    m->held = more;
    m->cap  = cap;
    return true;
}

static err_t pump_on_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    pump *m = (pump *)arg;
    (void)pcb, (void)err;
    if (p == NULL) {
        m->peer_ended = true;
        return ERR_OK;
    }
    if (!pump_reserve(m, p->tot_len)) return ERR_MEM;   /* lwIP keeps it, and asks again */
    pbuf_copy_partial(p, m->held + m->at + m->len, p->tot_len, 0);
    m->len += p->tot_len;
    m->received += p->tot_len;
    pbuf_free(p);
    return ERR_OK;
}

/* ERR_CLSD: both FINs are through, and acknowledged. */
static void pump_on_err(void *arg, err_t err)
{
    pump *m = (pump *)arg;
    m->pcb = NULL;
    if (err != ERR_CLSD) m->broken = true;
}

static bool pump_is_socket(int fd)
{
    int       kind;
    socklen_t size = sizeof kind;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &size) == 0;
}

static void pump_start(pump *m, struct tcp_pcb *pcb, int in, int out)
{
    memset(m, 0, sizeof *m);
    m->pcb        = pcb;
    m->in         = in;
    m->out        = out;
    m->in_socket  = pump_is_socket(in);
    m->out_socket = pump_is_socket(out);
    tcp_arg(pcb, m);
    tcp_recv(pcb, pump_on_recv);
    tcp_err(pcb, pump_on_err);
    tcp_nagle_disable(pcb);
}

/* How much the connection takes now. */
static size_t pump_room(const pump *m)
{
    size_t room, segments;
    if (m->pcb == NULL || m->in_ended) return 0;
    room     = tcp_sndbuf(m->pcb);
    segments = tcp_sndqueuelen(m->pcb) + 2u;
    if (segments >= TCP_SND_QUEUELEN) return 0;
    segments = (TCP_SND_QUEUELEN - segments) / 2;
    if (room > segments * 512) room = segments * 512;
    return room < PUMP_PIECE ? room : PUMP_PIECE;
}

/* Not for a few bytes: they would come as many small segments. */
static bool pump_wants_in(const pump *m) { return pump_room(m) >= 4096; }

static bool pump_wants_out(const pump *m) { return m->len != 0; }

/* Our side has no more to say. */
static void pump_in_end(pump *m)
{
    m->in_ended = true;
    if (m->pcb != NULL && tcp_shutdown(m->pcb, 0, 1) != ERR_OK) pump_abort(m);
}

/* Sends bytes that did not come from the descriptor; they have to fit. */
static void pump_send(pump *m, const void *data, size_t size)
{
    if (m->pcb == NULL || size == 0) return;
    if (tcp_write(m->pcb, data, (u16_t)size, TCP_WRITE_FLAG_COPY) != ERR_OK) {
        pump_abort(m);
        return;
    }
    m->sent += size;
    (void)tcp_output(m->pcb);
}

/* in can be read (or has ended): a piece of it goes out. */
static void pump_in(pump *m)
{
    static uint8_t piece[PUMP_PIECE];
    size_t         room = pump_room(m);
    ssize_t        n;
    if (room == 0) return;
    n = m->in_socket ? recv(m->in, piece, room, MSG_DONTWAIT) : read(m->in, piece, room);
    if (n > 0) {
        pump_send(m, piece, (size_t)n);
    } else if (n == 0) {
        pump_in_end(m);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        m->out_broken = true;
        pump_abort(m);
    }
}

/* A pipe or a terminal may block when it gets more than it promised. */
static ssize_t pump_write(const pump *m)
{
    struct pollfd ready;
    size_t        size = m->len;
    if (m->out_socket) return send(m->out, m->held + m->at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    ready.fd     = m->out;
    ready.events = POLLOUT;
    if (poll(&ready, 1, 0) <= 0) {
        errno = EAGAIN;
        return -1;
    }
    return write(m->out, m->held + m->at, size < PIPE_BUF ? size : PIPE_BUF);
}

/* lwIP's probe of a shut window counts a byte as sent that the peer did not take. Where the
 * peer waits for our window too it then drops what tells it of room, as out of order (Linux
 * does): both would wait for ever. Nothing is under way then, so the byte is taken back. */
static void pump_unprobe(const pump *m)
{
    struct tcp_pcb *pcb = m->pcb;
    if (pcb != NULL && pcb->persist_backoff != 0 && pcb->snd_wnd == 0 && pcb->unacked == NULL &&
        pcb->snd_nxt == pcb->lastack + 1)
        pcb->snd_nxt = pcb->lastack;
}

/* What out has taken the peer may send anew. */
static void pump_took(pump *m, size_t size)
{
    m->at += size;
    m->len -= size;
    pump_unprobe(m);
    while (m->pcb != NULL && size != 0) {
        u16_t part = size < 0xffff ? (u16_t)size : 0xffff;
        tcp_recved(m->pcb, part);
        size -= part;
    }
    if (m->len != 0) return;
    m->at = 0;
    if (m->cap <= 16384 && !m->peer_ended) return;
    free(m->held);
    m->held = NULL;
    m->cap  = 0;
}

/* out may take bytes, or nothing waits for it: passes on what is held, and the end after it. */
static void pump_out(pump *m)
{
    pump_unprobe(m);
    while (m->len != 0) {
        ssize_t n = pump_write(m);
        if (n > 0) {
            pump_took(m, (size_t)n);
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n < 0 && errno == EINTR) continue;
        m->out_broken = true;
        m->len        = 0;
        pump_abort(m);
        return;
    }
    if (!m->peer_ended || m->out_ended) return;
    m->out_ended = true;
    if (m->out_socket) (void)shutdown(m->out, SHUT_WR);
    else (void)close(m->out);
}

/* True when there is nothing more to carry: both ends are through, or it is broken. */
static bool pump_over(pump *m)
{
    /* lwIP ends this wait by itself, and tells nobody. */
    if (m->pcb != NULL && m->pcb->state == TIME_WAIT) pump_leave(m);
    if (m->pcb != NULL || m->len != 0) return false;
    return m->broken || m->out_ended;
}

static void pump_stop(pump *m)
{
    if (m->pcb != NULL) pump_abort(m);
    free(m->held);
    m->held = NULL;
    m->len = m->cap = 0;
}

#endif
