/* socks5_server.h - a SOCKS5 server (RFC 1928, 1929) whose other side is the tailnet: programs
 * of this machine reach peers through it, without root.
 *
 * CONNECT and UDP ASSOCIATE; names are MagicDNS names. It connects to peers and to what peers
 * route, to nothing else: it is no way to the Internet. Clients are strangers: what they send
 * is read with bounds, who is slow is timed out, who does not read stops only himself. */
#ifndef SOCKS5_SERVER_H
#define SOCKS5_SERVER_H

#include "pump.h"
#include "reach.h"
#include "socks5.h"

#include "lwip/udp.h"

#ifndef SOCKS5_CLIENTS
#  define SOCKS5_CLIENTS 512            /* at a time; more wait in the kernel's queue */
#endif

enum {
    SOCKS5_TALK_MS    = 10000,          /* until the request is said                  */
    SOCKS5_CONNECT_MS = 30000,          /* until the peer has answered                */
    SOCKS5_HALF_MS    = 600000,         /* one side has ended, the other says nothing */
    SOCKS5_PAUSE_MS   = 100,            /* after the system had no more descriptors   */
    SOCKS5_FDS        = 1 + 2 * SOCKS5_CLIENTS,
    SOCKS5_DATAGRAM   = 1500
};

typedef enum socks5_stage {
    SOCKS5_AT_HELLO, SOCKS5_AT_LOGIN, SOCKS5_AT_REQUEST, SOCKS5_AT_SEARCH, SOCKS5_AT_CONNECT,
    SOCKS5_AT_PUMP, SOCKS5_AT_UDP, SOCKS5_AT_END
} socks5_stage;

struct socks5_server;

typedef struct socks5_client {
    struct socks5_client *next;
    struct socks5_server *server;
    socks5_stage   stage;
    int            fd, udp_fd;          /* udp_fd -1: none                            */
    uint64_t       since_ms;            /* of the stage, or of the last byte          */
    uint64_t       carried;             /* bytes up to then                           */
    size_t         at_fd, at_udp;       /* places in the list of descriptors          */
    socks5_target  to;
    struct tcp_pcb *pcb;                /* while it connects                          */
    pump           pump;
    struct udp_pcb *udp;
    uint8_t        client_ip[16];       /* whose datagrams we take                    */
    uint8_t        client_family;
    uint16_t       client_port;         /* 0: the first one says it                   */
    size_t         in_len;
    uint8_t        in[SOCKS5_LONGEST];
} socks5_client;

typedef struct socks5_server {
    tailnet_node         *node;
    tailnet_lwip_overlay *overlay;
    int                   fd;           /* listens                                    */
    uint64_t              deaf_until_ms;
    size_t                at_fd;
    bool                  want_login;
    socks5_login          login;
    socks5_client        *clients;
    size_t                count;
    unsigned long         served, refused;
} socks5_server;

static uint64_t socks5_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

/* ---- Answers ------------------------------------------------------------------------------ */

static void socks5_enter(socks5_client *c, socks5_stage stage)
{
    c->stage    = stage;
    c->since_ms = socks5_now();
}

/* A few bytes at the beginning of a connection always fit; whose do not, does not read. */
static void socks5_say(socks5_client *c, const void *data, size_t size)
{
    if (send(c->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
        socks5_enter(c, SOCKS5_AT_END);
}

static void socks5_answer(socks5_client *c, uint8_t code, const tailnet_addr *bound)
{
    uint8_t head[SOCKS5_HEAD];
    bool    known = bound != NULL;
    size_t  len   = socks5_write(head, 5, code, known ? bound->family : 0u,
                                 known ? bound->ip : NULL, known ? bound->port : 0);
    if (code != SOCKS5_OK) {
        c->server->refused++;
        socks5_enter(c, SOCKS5_AT_END);
    }
    socks5_say(c, head, len);
}

/* ---- Where to ----------------------------------------------------------------------------- */

/* The address of the target, also as text of up to 64 bytes: SOCKS5_OK, another code to answer,
 * or -1: not known yet. An address that is given as a name is an address. */
static int socks5_find(socks5_server *s, const socks5_target *to, ip_addr_t *out, char *text)
{
    tailnet_result result;
    tailnet_addr   ip;
    const char    *who = to->name;
    memset(&ip, 0, sizeof ip);
    if (to->family != 0) {
        ip.family = to->family;
        memcpy(ip.ip, to->ip, sizeof ip.ip);
        tailnet_posix_addr_text(text, 64, &ip);
        who = text;
    }
    result = reach_find(s->overlay, s->node, who, TAILNET_LWIP_IP4_IP6, out);
    if (result == TAILNET_OK) ipaddr_ntoa_r(out, text, 64);
    if (result == TAILNET_OK) return SOCKS5_OK;
    if (result == TAILNET_ERR_AGAIN) return -1;
    return tailnet_posix_addr_parse(&ip, who) ? SOCKS5_NO_NETWORK : SOCKS5_NO_HOST;
}

/* ---- CONNECT ------------------------------------------------------------------------------ */

static void socks5_connect_failed(void *arg, err_t err)
{
    socks5_client *c = (socks5_client *)arg;
    c->pcb = NULL;
    socks5_answer(c, err == ERR_RST ? SOCKS5_REFUSED : SOCKS5_TIMEOUT, NULL);
}

/* What the client said before we answered goes along. */
static err_t socks5_connected(void *arg, struct tcp_pcb *pcb, err_t err)
{
    socks5_client *c = (socks5_client *)arg;
    tailnet_addr   bound;
    char           text[64];
    (void)err;
    memset(&bound, 0, sizeof bound);
    if (tailnet_posix_addr_parse(&bound, ipaddr_ntoa_r(&pcb->local_ip, text, sizeof text)))
        bound.port = pcb->local_port;
    c->pcb = NULL;
    pump_start(&c->pump, pcb, c->fd, c->fd);
    socks5_enter(c, SOCKS5_AT_PUMP);
    c->server->served++;
    socks5_answer(c, SOCKS5_OK, &bound);
    pump_send(&c->pump, c->in, c->in_len);
    /* lwIP has to be told when the pcb is gone. */
    return c->pump.pcb == NULL ? ERR_ABRT : ERR_OK;
}

static void socks5_connect(socks5_client *c)
{
    ip_addr_t      ip;
    char           text[64];
    tailnet_result result;
    int            code = socks5_find(c->server, &c->to, &ip, text);
    if (code < 0) return;                           /* asked again after a while */
    if (code == SOCKS5_OK && c->to.port == 0) code = SOCKS5_REFUSED;
    if (code != SOCKS5_OK) {
        socks5_answer(c, (uint8_t)code, NULL);
        return;
    }
    result = tailnet_lwip_dial(c->server->overlay, text, c->to.port, socks5_connected, c, &c->pcb);
    if (result == TAILNET_ERR_AGAIN) return;
    if (result != TAILNET_OK) {
        c->pcb = NULL;
        socks5_answer(c, result == TAILNET_ERR_NO_ROUTE ? SOCKS5_NO_HOST : SOCKS5_FAILED, NULL);
        return;
    }
    tcp_err(c->pcb, socks5_connect_failed);
    socks5_enter(c, SOCKS5_AT_CONNECT);
}

/* ---- UDP ASSOCIATE ------------------------------------------------------------------------ */

/* An address of the client's side, as bytes. */
static uint16_t socks5_peer_of(const struct sockaddr_storage *from, uint8_t *family, uint8_t ip[16])
{
    memset(ip, 0, 16);
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *a = (const struct sockaddr_in *)(const void *)from;
        *family = 4;
        memcpy(ip, &a->sin_addr, 4);
        return ntohs(a->sin_port);
    }
    *family = 6;
    memcpy(ip, &((const struct sockaddr_in6 *)(const void *)from)->sin6_addr, 16);
    return ntohs(((const struct sockaddr_in6 *)(const void *)from)->sin6_port);
}

/* A datagram of a peer, for the client. */
static void socks5_from_peer(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *from,
                             u16_t port)
{
    socks5_client *c = (socks5_client *)arg;
    uint8_t        data[SOCKS5_HEAD + SOCKS5_DATAGRAM];
    tailnet_addr   ip;
    char           text[64];
    size_t         head;
    (void)pcb;
    memset(&ip, 0, sizeof ip);
    if (c->client_port != 0 && p->tot_len <= SOCKS5_DATAGRAM &&
        tailnet_posix_addr_parse(&ip, ipaddr_ntoa_r(from, text, sizeof text))) {
        head = socks5_write(data, 0, 0, ip.family, ip.ip, port);
        pbuf_copy_partial(p, data + head, p->tot_len, 0);
        c->carried += p->tot_len;
        (void)send(c->udp_fd, data, head + p->tot_len, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    pbuf_free(p);
}

/* A datagram of the client, for a peer. What cannot be sent is lost, as UDP is. */
static void socks5_to_peer(socks5_client *c, const uint8_t *data, size_t size)
{
    socks5_target to;
    ip_addr_t     ip;
    char          text[64];
    struct pbuf  *p;
    int           head = socks5_read_datagram(data, size, &to);
    if (head <= 0 || to.port == 0) return;
    if (socks5_find(c->server, &to, &ip, text) != SOCKS5_OK) return;
    size -= (size_t)head;
    p = pbuf_alloc(PBUF_TRANSPORT, (u16_t)size, PBUF_RAM);
    if (p == NULL) return;
    (void)pbuf_take(p, data + head, (u16_t)size);
    (void)udp_sendto(c->udp, p, &ip, to.port);
    pbuf_free(p);
    c->carried += size;
}

/* Reads the client's datagrams. Only those from the address that asked count, and from one
 * port: the one that the request named, or that of the first datagram. */
static void socks5_udp_ready(socks5_client *c)
{
    uint8_t                 data[SOCKS5_HEAD + 256 + SOCKS5_DATAGRAM], ip[16], family;
    struct sockaddr_storage from;
    socklen_t               len;
    ssize_t                 n;
    uint16_t                port;
    unsigned                turn;
    for (turn = 0; turn < 32; turn++) {
        len = sizeof from;
        n   = recvfrom(c->udp_fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&from, &len);
        if (n < 0) return;
        port = socks5_peer_of(&from, &family, ip);
        if (family != c->client_family || memcmp(ip, c->client_ip, 16) != 0) continue;
        if (c->client_port == 0 && (c->to.port == 0 || c->to.port == port) &&
            connect(c->udp_fd, (struct sockaddr *)&from, len) == 0)
            c->client_port = port;
        if (c->client_port != port) continue;
        socks5_to_peer(c, data, (size_t)n);
    }
}

/* A socket for the client's datagrams beside its connection, and one in the tailnet. */
static bool socks5_udp_open(socks5_client *c, tailnet_addr *bound)
{
    struct sockaddr_storage at, from;
    socklen_t               at_len = sizeof at, from_len = sizeof from;
    if (getsockname(c->fd, (struct sockaddr *)&at, &at_len) != 0) return false;
    if (getpeername(c->fd, (struct sockaddr *)&from, &from_len) != 0) return false;
    (void)socks5_peer_of(&from, &c->client_family, c->client_ip);
    if (at.ss_family == AF_INET) ((struct sockaddr_in *)(void *)&at)->sin_port = 0;
    else ((struct sockaddr_in6 *)(void *)&at)->sin6_port = 0;
    c->udp_fd = socket(at.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->udp_fd < 0 || bind(c->udp_fd, (struct sockaddr *)&at, at_len) != 0) return false;
    at_len = sizeof at;
    if (getsockname(c->udp_fd, (struct sockaddr *)&at, &at_len) != 0) return false;
    memset(bound, 0, sizeof *bound);
    bound->port = socks5_peer_of(&at, &bound->family, bound->ip);
    c->udp = udp_new_ip_type(IPADDR_TYPE_ANY);
    if (c->udp == NULL || udp_bind(c->udp, IP_ANY_TYPE, 0) != ERR_OK) return false;
    udp_bind_netif(c->udp, &c->server->overlay->netif);
    udp_recv(c->udp, socks5_from_peer, c);
    return true;
}

static void socks5_associate(socks5_client *c)
{
    tailnet_addr bound;
    if (!socks5_udp_open(c, &bound)) {
        socks5_answer(c, SOCKS5_FAILED, NULL);
        return;
    }
    socks5_enter(c, SOCKS5_AT_UDP);
    c->server->served++;
    socks5_answer(c, SOCKS5_OK, &bound);
}

/* ---- What a client says -------------------------------------------------------------------- */

/* Takes as long whatever differs. */
static bool socks5_same(const char *a, const char *b)
{
    size_t   i, len = strlen(a), other = strlen(b);
    unsigned differ = len != other;
    for (i = 0; i < len; i++)
        differ |= (unsigned)(uint8_t)a[i] ^ (uint8_t)b[other == 0 ? 0 : i % other];
    return differ == 0;
}

static int socks5_take_hello(socks5_client *c)
{
    uint8_t method, said[2] = { 5, 0 };
    int     n = socks5_read_hello(c->in, c->in_len, c->server->want_login, &method);
    if (n <= 0) return n;
    said[1] = method;
    socks5_enter(c, method == SOCKS5_PASSWORD ? SOCKS5_AT_LOGIN : SOCKS5_AT_REQUEST);
    socks5_say(c, said, sizeof said);
    if (method != SOCKS5_NO_METHOD) return n;
    c->server->refused++;
    return SOCKS5_BAD;
}

static int socks5_take_login(socks5_client *c)
{
    socks5_login login;
    uint8_t      said[2] = { 1, 0 };
    bool         user, password;
    int          n = socks5_read_login(c->in, c->in_len, &login);
    if (n <= 0) return n;
    user     = socks5_same(login.user, c->server->login.user);
    password = socks5_same(login.password, c->server->login.password);
    explicit_bzero(&login, sizeof login);
    explicit_bzero(c->in, (size_t)n);
    said[1] = user && password ? 0 : 1;
    socks5_enter(c, SOCKS5_AT_REQUEST);
    socks5_say(c, said, sizeof said);
    if (said[1] == 0) return n;
    c->server->refused++;
    return SOCKS5_BAD;
}

static int socks5_take_request(socks5_client *c)
{
    uint8_t command, code;
    int     n = socks5_read_request(c->in, c->in_len, &command, &c->to, &code);
    if (n < 0 && code != 0) socks5_answer(c, code, NULL);
    if (n <= 0) return n;
    if (tailnet_get_state(c->server->node) != TAILNET_STATE_RUNNING) {
        socks5_answer(c, SOCKS5_NO_NETWORK, NULL);
    } else if (command == SOCKS5_CONNECT) {
        socks5_enter(c, SOCKS5_AT_SEARCH);
    } else if (command == SOCKS5_UDP) {
        socks5_associate(c);
    } else {
        socks5_answer(c, SOCKS5_BAD_COMMAND, NULL);
    }
    return n;
}

/* Everything that is whole, one message after the other; the rest waits. */
static void socks5_take(socks5_client *c)
{
    int n = 1;
    while (n > 0) {
        switch (c->stage) {
        case SOCKS5_AT_HELLO:   n = socks5_take_hello(c); break;
        case SOCKS5_AT_LOGIN:   n = socks5_take_login(c); break;
        case SOCKS5_AT_REQUEST: n = socks5_take_request(c); break;
        case SOCKS5_AT_SEARCH:
        case SOCKS5_AT_CONNECT:
        case SOCKS5_AT_PUMP:
        case SOCKS5_AT_UDP:
        case SOCKS5_AT_END:
        default:                return;
        }
        if (n > 0) {
            c->in_len -= (size_t)n;
            memmove(c->in, c->in + n, c->in_len);
        }
    }
    if (n < 0) socks5_enter(c, SOCKS5_AT_END);
}

static void socks5_read(socks5_client *c)
{
    ssize_t n = recv(c->fd, c->in + c->in_len, sizeof c->in - c->in_len, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        socks5_enter(c, SOCKS5_AT_END);
        return;
    }
    c->in_len += (size_t)n;
    socks5_take(c);
    if (c->stage == SOCKS5_AT_SEARCH) socks5_connect(c);
}

/* A connection that belongs to UDP has nothing to say but its end. */
static void socks5_udp_held(socks5_client *c)
{
    uint8_t sink[256];
    ssize_t n = recv(c->fd, sink, sizeof sink, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) socks5_enter(c, SOCKS5_AT_END);
}

/* ---- Clients come and go ------------------------------------------------------------------- */

static void socks5_drop(socks5_client *c)
{
    struct linger hard = { 1, 0 };
    if (c->pcb != NULL) {
        tcp_arg(c->pcb, NULL);
        tcp_err(c->pcb, NULL);
        tcp_abort(c->pcb);
    }
    /* A broken connection is broken for the client too, not just ended. */
    if (c->pump.broken) (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    pump_stop(&c->pump);
    if (c->udp != NULL) udp_remove(c->udp);
    if (c->udp_fd >= 0) close(c->udp_fd);
    close(c->fd);
    free(c);
}

static void socks5_accept(socks5_server *s)
{
    while (s->count < SOCKS5_CLIENTS) {
        int            on = 1, fd = accept4(s->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        socks5_client *c;
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
                s->deaf_until_ms = socks5_now() + SOCKS5_PAUSE_MS;
            return;
        }
        c = (socks5_client *)calloc(1, sizeof *c);
        if (c == NULL) {
            close(fd);
            return;
        }
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->server  = s;
        c->fd      = fd;
        c->udp_fd  = -1;
        c->next    = s->clients;
        s->clients = c;
        s->count++;
        socks5_enter(c, SOCKS5_AT_HELLO);
    }
}

/* Is it time to give up? Whoever moves bytes is not asked. */
static bool socks5_late(socks5_client *c, uint64_t now)
{
    uint64_t age;
    uint64_t moved = c->stage == SOCKS5_AT_PUMP ? c->pump.sent + c->pump.received : c->carried;
    if (moved != c->carried || c->stage == SOCKS5_AT_UDP) {
        c->carried  = moved;
        c->since_ms = now;
    }
    /* The stage may have begun in this very turn. */
    age = now > c->since_ms ? now - c->since_ms : 0;
    if (c->stage <= SOCKS5_AT_REQUEST) return age >= SOCKS5_TALK_MS;
    if (c->stage <= SOCKS5_AT_CONNECT) return age >= SOCKS5_CONNECT_MS;
    return c->stage == SOCKS5_AT_PUMP && (c->pump.in_ended || c->pump.peer_ended) &&
           age >= SOCKS5_HALF_MS;
}

/* ---- The server ----------------------------------------------------------------------------- */

/* Numbers only: nobody shall wait for a name server. */
static bool socks5_where(const char *text, struct sockaddr_storage *at, socklen_t *len)
{
    struct addrinfo  hints, *list;
    char             host[64] = "127.0.0.1";
    const char      *colon    = strrchr(text, ':'), *port = colon != NULL ? colon + 1 : text;
    size_t           size     = colon != NULL ? (size_t)(colon - text) : 0;
    memset(&hints, 0, sizeof hints);
    hints.ai_flags    = AI_NUMERICHOST | AI_NUMERICSERV;
    hints.ai_socktype = SOCK_STREAM;
    if (size >= 2 && text[0] == '[' && text[size - 1] == ']') text++, size -= 2;
    if (size >= sizeof host || port[0] == '\0') return false;
    if (size != 0) memcpy(host, text, size), host[size] = '\0';
    if (getaddrinfo(host, port, &hints, &list) != 0) return false;
    memcpy(at, list->ai_addr, list->ai_addrlen);
    *len = list->ai_addrlen;
    freeaddrinfo(list);
    return true;
}

static bool socks5_is_local(const struct sockaddr_storage *at)
{
    static const uint8_t one[16] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };
    uint8_t              family, ip[16];
    (void)socks5_peer_of(at, &family, ip);
    return family == 4 ? ip[0] == 127 : memcmp(ip, one, 16) == 0;
}

/* Listens at "PORT", "ADDRESS:PORT" or "[ADDRESS]:PORT"; on failure *why says what is wrong.
 * Without a password it listens on this machine's own addresses only. Set login first. */
static bool socks5_open(socks5_server *s, tailnet_node *node, tailnet_lwip_overlay *overlay,
                        const char *where, const char **why)
{
    struct sockaddr_storage at;
    socklen_t               len;
    int                     on = 1;
    s->node    = node;
    s->overlay = overlay;
    s->fd      = -1;
    *why       = "it is no ADDRESS:PORT";
    if (!socks5_where(where, &at, &len)) return false;
    *why = "without a password it may only be 127.0.0.1 or ::1";
    if (!s->want_login && !socks5_is_local(&at)) return false;
    s->fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->fd >= 0) {
        (void)setsockopt(s->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(s->fd, (struct sockaddr *)&at, len) == 0 && listen(s->fd, 256) == 0) return true;
    }
    *why = strerror(errno);
    return false;
}

/* What to wait for; fds has room for SOCKS5_FDS. */
static size_t socks5_fds(socks5_server *s, struct pollfd *fds)
{
    socks5_client *c;
    size_t         n = 0;
    s->at_fd = SIZE_MAX;
    if (s->count < SOCKS5_CLIENTS && socks5_now() >= s->deaf_until_ms) {
        s->at_fd        = n;
        fds[n].fd       = s->fd;
        fds[n++].events = POLLIN;
    }
    for (c = s->clients; c != NULL; c = c->next) {
        bool in  = c->stage <= SOCKS5_AT_REQUEST || c->stage == SOCKS5_AT_UDP ||
                   (c->stage == SOCKS5_AT_PUMP && pump_wants_in(&c->pump));
        bool out = c->stage == SOCKS5_AT_PUMP && pump_wants_out(&c->pump);
        c->at_fd      = n;
        c->at_udp     = SIZE_MAX;
        fds[n].fd     = c->fd;
        fds[n].events = (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0));
        /* A client that is gone would be told again and again while we cannot take it. */
        if (c->stage == SOCKS5_AT_PUMP && !in && !out) fds[n].fd = -1;
        n++;
        if (c->udp_fd < 0) continue;
        c->at_udp       = n;
        fds[n].fd       = c->udp_fd;
        fds[n++].events = POLLIN;
    }
    return n;
}

static void socks5_client_turn(socks5_client *c, const struct pollfd *fds)
{
    short ready = fds != NULL && c->at_fd != SIZE_MAX ? fds[c->at_fd].revents : 0;
    if (c->at_udp != SIZE_MAX && fds != NULL && fds[c->at_udp].revents != 0) socks5_udp_ready(c);
    switch (c->stage) {
    case SOCKS5_AT_HELLO:
    case SOCKS5_AT_LOGIN:
    case SOCKS5_AT_REQUEST:
        if (ready != 0) socks5_read(c);
        break;
    case SOCKS5_AT_UDP:
        if (ready != 0) socks5_udp_held(c);
        break;
    case SOCKS5_AT_SEARCH:
    case SOCKS5_AT_CONNECT:
        if ((ready & (POLLERR | POLLHUP)) != 0) socks5_enter(c, SOCKS5_AT_END);
        else if (c->stage == SOCKS5_AT_SEARCH) socks5_connect(c);
        break;
    case SOCKS5_AT_PUMP:
        if ((ready & POLLERR) != 0) pump_abort(&c->pump);
        if ((ready & (POLLIN | POLLHUP)) != 0) pump_in(&c->pump);
        pump_out(&c->pump);
        if (pump_over(&c->pump)) socks5_enter(c, SOCKS5_AT_END);
        break;
    case SOCKS5_AT_END:
    default:
        break;
    }
}

/* After the node's and the overlay's turn: fds as socks5_fds wrote them, or NULL. */
static void socks5_turn(socks5_server *s, const struct pollfd *fds)
{
    uint64_t        now   = socks5_now();
    socks5_client **place = &s->clients, *c;
    while ((c = *place) != NULL) {
        socks5_client_turn(c, fds);
        if (socks5_late(c, now)) {
            if (c->stage == SOCKS5_AT_SEARCH || c->stage == SOCKS5_AT_CONNECT)
                socks5_answer(c, SOCKS5_TIMEOUT, NULL);
            c->pump.broken = c->stage == SOCKS5_AT_PUMP;
            c->stage       = SOCKS5_AT_END;
        }
        if (c->stage != SOCKS5_AT_END) {
            place = &c->next;
            continue;
        }
        *place = c->next;
        s->count--;
        socks5_drop(c);
    }
    if (fds != NULL && s->at_fd != SIZE_MAX && fds[s->at_fd].revents != 0) socks5_accept(s);
}

/* How long at most: searches are repeated, time-outs are seen within a second. */
static uint32_t socks5_wait_ms(const socks5_server *s, uint32_t max_ms)
{
    const socks5_client *c;
    uint32_t             wait = s->clients != NULL && max_ms > 1000 ? 1000 : max_ms;
    if (socks5_now() < s->deaf_until_ms && wait > SOCKS5_PAUSE_MS) wait = SOCKS5_PAUSE_MS;
    for (c = s->clients; c != NULL; c = c->next)
        if (c->stage == SOCKS5_AT_SEARCH && wait > 50) wait = 50;
    return wait;
}

static void socks5_close(socks5_server *s)
{
    while (s->clients != NULL) {
        socks5_client *c = s->clients;
        s->clients = c->next;
        socks5_drop(c);
    }
    s->count = 0;
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    explicit_bzero(&s->login, sizeof s->login);
}

#endif
