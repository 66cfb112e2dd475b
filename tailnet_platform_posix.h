/* tailnet_platform_posix.h - sockets, clock, random, files, names and TUN for tailnet.h on
 * Linux and, without TUN, on other POSIX systems. Single header, as tailnet.h is.
 *
 *     #define TAILNET_IMPLEMENTATION
 *     #define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
 *     #include "tailnet_platform_posix.h"      (first in that file: it includes tailnet.h)
 *
 * Link with -lbearssl (and -lpthread where threads are no part of libc).
 *
 * Contents (search for the token)
 *   >>p-bytes      addresses as text, checksums, small helpers
 *   >>p-file       the state file and other whole files
 *   >>p-anchors    PEM to trust anchors
 *   >>p-packets    packets of our own for nodes without TUN
 *   >>p-watch      descriptors and what we wait for on them
 *   >>p-lookup     names, without blocking
 *   >>p-tcp        connections of the library
 *   >>p-udp        the two datagram sockets
 *   >>p-tun        the TUN device, its addresses and routes
 *   >>p-turn       one turn of the loop
 *   >>p-life       open, run, leave, close
 *
 * What to know
 *   - One tailnet_posix is one node. It lies in the caller's memory; there are no globals.
 *   - malloc is called in tailnet_posix_open only: once for the trust anchors, and once for
 *     the node when desc.memory is NULL. A name look-up starts a thread that calls
 *     getaddrinfo, which uses the heap as it likes. Nothing else does.
 *   - Any event loop: tailnet_posix_fds and tailnet_posix_wait_ms say what to wait for,
 *     tailnet_posix_handle takes what is ready. Loops that want to be told of changes
 *     (epoll, libuv) set options.on_fd. tailnet_posix_run is the loop for everybody else.
 *   - Without a TUN device the node answers pings itself; options.on_udp and on_ip see the
 *     other packets, tailnet_posix_udp_send and _ip_send send.
 *   - With a TUN device routes of one address or more are set, default routes (an exit node)
 *     are not: they need a policy for the node's own packets that only the host can make. */
#ifndef TAILNET_PLATFORM_POSIX_H
#define TAILNET_PLATFORM_POSIX_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE 1
#endif

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tailnet.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Connections at a time; desc.max_links may not be more. */
#ifndef TAILNET_POSIX_LINKS
#  define TAILNET_POSIX_LINKS 8
#endif

/* Names looked up at a time, each by a thread of its own. */
#ifndef TAILNET_POSIX_LOOKUPS
#  define TAILNET_POSIX_LOOKUPS 4
#endif

/* Packets of our own that wait until the library takes them. */
#ifndef TAILNET_POSIX_OUTBOX
#  define TAILNET_POSIX_OUTBOX 64
#endif

/* Routes kept in the kernel's table at a time. */
#ifndef TAILNET_POSIX_ROUTES
#  define TAILNET_POSIX_ROUTES 256
#endif

/* Datagrams read in one go. */
#ifndef TAILNET_POSIX_RUN
#  define TAILNET_POSIX_RUN 64
#endif

/* Trust anchors taken from one file. */
#ifndef TAILNET_POSIX_ANCHORS
#  define TAILNET_POSIX_ANCHORS 512
#endif

enum {
    TAILNET_POSIX_SPACE   = 2048,   /* bytes for one packet with its room      */
    TAILNET_POSIX_STREAM  = 16640,  /* bytes of a stream that may wait         */
    TAILNET_POSIX_TRIES   = 3,      /* connections raced for one link          */
    TAILNET_POSIX_ADDRS   = 8,      /* addresses kept of one name              */
    /* As many as tailnet_posix_fds ever returns. */
    TAILNET_POSIX_FDS     = TAILNET_POSIX_LINKS * TAILNET_POSIX_TRIES + TAILNET_POSIX_LOOKUPS + 4
};

typedef struct tailnet_posix tailnet_posix;

/* What the caller wants. Zero every field first: zero means "the default". */
typedef struct tailnet_posix_options {
    void       *user;               /* first argument of the callbacks         */
    const char *ca_file;            /* PEM; NULL: where the system keeps them  */
    const char *state_file;         /* NULL: the state is not kept             */
    const char *tun;                /* name of the device; NULL: none          */
    uint16_t    udp_port;           /* 0: any                                  */
    bool        replace_damaged_state; /* begin anew; the old identity is lost */
    bool        no_echo;            /* do not answer pings (without TUN)       */

    /* tailnet_poll had news (TAILNET_EVENT_ bits). State is saved and TUN is set up by
     * then. Every function of tailnet.h may be called. */
    void (*on_news)(void *user, tailnet_posix *p, uint32_t events);

    /* A UDP packet reached us (without TUN). May call tailnet_posix_udp_send, and
     * tailnet_ functions that ask, nothing else of tailnet.h. */
    void (*on_udp)(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size);

    /* Any other IP packet reached us (without TUN). The same rule. */
    void (*on_ip)(void *user, tailnet_posix *p, const void *packet, size_t size);

    /* From now on wait for these poll(2) events on fd; 0: not at all, it may be closed
     * right after this call. For loops that keep a set, such as epoll. */
    void (*on_fd)(void *user, int fd, short events);

    void (*log)(void *user, int level, uint32_t code, const char *text);

    uint32_t tcp_send_buffer;       /* bytes the kernel may hold of a relay stream: small, */
                                    /*   so that back-pressure is felt; default 262144     */
    uint32_t tcp_not_sent;          /* of these not yet on the wire; default 65536         */
    uint32_t tcp_rate;              /* bytes a second per connection at most; 0: any       */
    uint32_t udp_buffer;            /* bytes of each datagram socket; default 1048576      */
    uint16_t turn_packets;          /* packets from TUN in one turn; default 64            */
    uint16_t hold_ms;               /* a packet waits that long for a full link; 100       */
    uint16_t race_ms;               /* before the next address is tried as well; 250       */
    uint16_t lookup_ms;             /* a name look-up may take; default 10000              */
} tailnet_posix_options;

/* ---- What follows is the inside; read error, node, and the texts only. -------------- */

typedef struct tailnet_posix_watch {
    int   fd;
    short events;
} tailnet_posix_watch;

/* Trust anchors in one block of memory. */
typedef struct tailnet_posix_ca {
    void       *memory;
    const void *anchors;            /* br_x509_trust_anchor[count]             */
    size_t      count, skipped;     /* skipped: certificates we cannot read    */
    bool        damaged;            /* some of the file is no PEM              */
} tailnet_posix_ca;

typedef struct tailnet_posix_lookup {
    tailnet_posix_watch watch;      /* our end of a socket pair                */
    uint64_t            deadline_ms;
    uint32_t            query;      /* of io.resolve                           */
    tailnet_link        link;
    uint16_t            port;
    uint8_t             purpose;    /* 0 free, else TNP_FOR_                   */
} tailnet_posix_lookup;

typedef struct tailnet_posix_slot {
    tailnet_link        link;
    bool                used, open, ended, told;
    tailnet_posix_watch tries[TAILNET_POSIX_TRIES]; /* [0] once it is open     */
    tailnet_addr        addrs[TAILNET_POSIX_ADDRS];
    size_t              addr_count, addr_next;
    uint64_t            race_at_ms;
    size_t              in_at, in_len;
    uint8_t             in[TAILNET_POSIX_STREAM];
} tailnet_posix_slot;

struct tailnet_posix {
    tailnet_node         *node;
    char                  error[256];   /* why open failed: a sentence         */
    int                   save_errno;   /* why the last save failed, 0: it did not */
    uint32_t              saves;        /* how often the state was saved       */
    uint32_t              lookups;      /* threads started for names           */
    uint64_t              held, dropped;/* own packets that waited, that were lost */
    char                  tun_name[16];
    uint16_t              udp_port[2];  /* of IPv4, of IPv6; 0: no such socket */

    tailnet_posix_options opt;
    tailnet_posix_ca      ca;
    void                 *node_memory;
    uint8_t               state[TAILNET_STATE_SIZE];
    size_t                state_len;
    uint64_t              save_again_ms;
    uint32_t              mtu;
    volatile sig_atomic_t stop;
    bool                  inside, fed, unsaved;
    tailnet_posix_watch   wake, udp[2], tun;
    int                   wake_in;
    tailnet_posix_lookup  lookup[TAILNET_POSIX_LOOKUPS];
    tailnet_posix_slot    slot[TAILNET_POSIX_LINKS];
    tailnet_addr          tun_ip[2];
    int                   tun_index;
    tailnet_prefix        route[TAILNET_POSIX_ROUTES];
    size_t                route_count;
    uint64_t              full_since_ms;
    uint32_t              tun_held;     /* bytes of the packet that waits      */
    uint8_t               tun_packet[TAILNET_POSIX_SPACE];
    size_t                out_first, out_count;
    uint16_t              out_len[TAILNET_POSIX_OUTBOX];
    uint8_t               out[TAILNET_POSIX_OUTBOX][TAILNET_POSIX_SPACE];
    uint8_t               space[TAILNET_POSIX_RUN][TAILNET_POSIX_SPACE];
};

/* ---- Life --------------------------------------------------------------------------- */

/* Fills in what is missing of desc (callbacks, memory, saved state, trust anchors, two TLS
 * engines, control inside TLS unless the URL begins with http://), opens sockets and TUN,
 * makes the node and tells it the network. Then call tailnet_up(p->node). On failure p->error
 * says why in one sentence and everything is closed again. The texts in desc and options must
 * stay; p may not be moved. Ask for the highest of the limits in desc, they cost no more. */
TAILNET_API tailnet_result tailnet_posix_open(tailnet_posix *p, tailnet_desc *desc,
                                              const tailnet_posix_options *options);

/* Turns until tailnet_posix_stop (OK) or until the node is FAILED (its problem's result). */
TAILNET_API tailnet_result tailnet_posix_run(tailnet_posix *p);

/* Ends tailnet_posix_run soon. May be called from a signal handler or another thread. */
TAILNET_API void tailnet_posix_stop(tailnet_posix *p);

/* Goes down, or logs out first, and turns until that is done or max_ms are over. OK,
 * TIMEOUT, or what tailnet_down or tailnet_logout said. */
TAILNET_API tailnet_result tailnet_posix_leave(tailnet_posix *p, bool logout, uint32_t max_ms);

/* Saves what is not saved, wipes the node, closes and frees everything. Harmless after a
 * failed open and when called twice. */
TAILNET_API void tailnet_posix_close(tailnet_posix *p);

/* ---- For loops of your own ---------------------------------------------------------- */

/* What to wait for; at most TAILNET_POSIX_FDS. Returns how many were written. */
TAILNET_API size_t tailnet_posix_fds(const tailnet_posix *p, struct pollfd *fds, size_t size);

/* How long at most, cut to max_ms. */
TAILNET_API uint32_t tailnet_posix_wait_ms(tailnet_posix *p, uint32_t max_ms);

/* One turn: takes those of fds that have revents (others' descriptors are passed over), does
 * what is due, polls the node, saves, calls on_news. With size 0: only what is due. */
TAILNET_API void tailnet_posix_handle(tailnet_posix *p, const struct pollfd *fds, size_t size);

/* ---- Packets of our own, without TUN ------------------------------------------------ */

/* A UDP packet from our tailnet address to another. OK; TOO_BIG; NO_ROUTE when we have no
 * address of that family yet; AGAIN when the outbox is full. */
TAILNET_API tailnet_result tailnet_posix_udp_send(tailnet_posix *p, uint16_t from_port,
                                                  const tailnet_addr *to, const void *data,
                                                  size_t size);

/* A whole IP packet; the same results. */
TAILNET_API tailnet_result tailnet_posix_ip_send(tailnet_posix *p, const void *packet, size_t size);

/* ---- Useful by themselves ----------------------------------------------------------- */

/* Replaces a file as a whole: readers see the old bytes or the new ones, also after a power
 * cut. Mode 0600. Returns 0 or errno. */
TAILNET_API int tailnet_posix_write_file(const char *path, const void *data, size_t size);

/* Reads a whole file. Returns 0 or errno; EFBIG when it is longer than cap. */
TAILNET_API int tailnet_posix_read_file(const char *path, void *dst, size_t cap, size_t *size);

/* Trust anchors from PEM text. OK, MALFORMED when there is no certificate in it that we can
 * use, MEMORY. What was skipped is counted in ca; a damaged part is told by ca->damaged. */
TAILNET_API tailnet_result tailnet_posix_anchors(tailnet_posix_ca *ca, const char *pem,
                                                 size_t size);
TAILNET_API void tailnet_posix_anchors_free(tailnet_posix_ca *ca);

/* "100.64.0.3", "fd7a::1", with a port "100.64.0.3:80", "[fd7a::1]:80"; "" for none. */
TAILNET_API void tailnet_posix_addr_text(char *dst, size_t cap, const tailnet_addr *addr);
TAILNET_API bool tailnet_posix_addr_parse(tailnet_addr *out, const char *text);   /* no port */
TAILNET_API bool tailnet_posix_prefix_parse(tailnet_prefix *out, const char *text);

#ifdef __cplusplus
}
#endif
#endif /* TAILNET_PLATFORM_POSIX_H */

#ifdef TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#ifndef TAILNET_PLATFORM_POSIX_IMPLEMENTATION_DONE
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION_DONE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#  include <linux/if_tun.h>
#  include <linux/rtnetlink.h>
#  include <sys/random.h>
#  if defined(__GLIBC__) && !defined(__USE_GNU)
#    error "include tailnet_platform_posix.h before other headers, or define _GNU_SOURCE"
#  endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wconversion"
#  pragma GCC diagnostic ignored "-Wsign-conversion"
#  pragma GCC diagnostic ignored "-Wcast-qual"
#  pragma GCC diagnostic ignored "-Wshadow"
#  pragma GCC diagnostic ignored "-Wundef"
#endif
#include <bearssl.h>
#if defined(__GNUC__) || defined(__clang__)
#  pragma GCC diagnostic pop
#endif

/* The function that looks a name up; tests put a slow one here. */
#ifndef TAILNET_POSIX_GETADDRINFO
#  define TAILNET_POSIX_GETADDRINFO getaddrinfo
#endif

#ifndef MSG_NOSIGNAL
#  define MSG_NOSIGNAL 0
#endif

enum { TNP_FOR_LINK = 1, TNP_FOR_QUERY, TNP_FOR_NOBODY };

/* ======================================================================== *
 * >>p-bytes - addresses as text, checksums, small helpers.
 * ======================================================================== */

static uint64_t tnp_now(void)
{
    struct timespec ts;
#ifdef CLOCK_BOOTTIME
    /* Goes on while the machine sleeps, so that sessions age as the peers think. */
    if (clock_gettime(CLOCK_BOOTTIME, &ts) == 0)
        return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
#endif
    if (clock_gettime(CLOCK_MONOTONIC, &ts) != 0) return 0;
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

static uint16_t tnp_get16(const uint8_t *b) { return (uint16_t)((unsigned)b[0] << 8 | b[1]); }

static void tnp_put16(uint8_t *b, unsigned v)
{
    b[0] = (uint8_t)(v >> 8);
    b[1] = (uint8_t)v;
}

/* The Internet checksum (RFC 1071) in parts: each but the last of even length. */
static uint32_t tnp_sum(uint32_t sum, const void *data, size_t size)
{
    const uint8_t *b = (const uint8_t *)data;
    size_t         i;
    for (i = 0; i + 1 < size; i += 2) {
        sum += tnp_get16(b + i);
        sum = (sum & 0xffffu) + (sum >> 16);
    }
    if (i < size) sum += (uint32_t)b[i] << 8;
    return (sum & 0xffffu) + (sum >> 16);
}

static uint16_t tnp_sum_end(uint32_t sum)
{
    sum = (sum & 0xffffu) + (sum >> 16);
    sum = (sum & 0xffffu) + (sum >> 16);
    return (uint16_t)~sum;
}

static void tnp_error(tailnet_posix *p, const char *what, const char *which, int number)
{
    if (p->error[0] != '\0') return;                /* the first cause counts */
    snprintf(p->error, sizeof p->error, "%s %.120s%s%s.", what, which, number != 0 ? ": " : "",
             number != 0 ? strerror(number) : "");
}

TAILNET_API void tailnet_posix_addr_text(char *dst, size_t cap, const tailnet_addr *addr)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (cap == 0) return;
    dst[0] = '\0';
    if (addr->family == 4) inet_ntop(AF_INET, addr->ip, text, sizeof text);
    if (addr->family == 6) inet_ntop(AF_INET6, addr->ip, text, sizeof text);
    if (text[0] == '\0') return;
    if (addr->port == 0) snprintf(dst, cap, "%s", text);
    else snprintf(dst, cap, addr->family == 6 ? "[%s]:%u" : "%s:%u", text, (unsigned)addr->port);
}

TAILNET_API bool tailnet_posix_addr_parse(tailnet_addr *out, const char *text)
{
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, text, out->ip) == 1) out->family = 4;
    else if (inet_pton(AF_INET6, text, out->ip) == 1) out->family = 6;
    return out->family != 0;
}

/* "10.1.0.0/16"; without a slash one address. Bits behind the mask are cleared. */
TAILNET_API bool tailnet_posix_prefix_parse(tailnet_prefix *out, const char *text)
{
    char         copy[64];
    char        *slash, *end;
    tailnet_addr addr;
    unsigned     i, most;
    long         bits;
    memset(out, 0, sizeof *out);
    if (strlen(text) >= sizeof copy) return false;
    memcpy(copy, text, strlen(text) + 1);
    slash = strchr(copy, '/');
    if (slash != NULL) *slash = '\0';
    if (!tailnet_posix_addr_parse(&addr, copy)) return false;
    most = addr.family == 4 ? 32u : 128u;
    bits = (long)most;
    if (slash != NULL) {
        if (slash[1] < '0' || slash[1] > '9') return false;
        bits = strtol(slash + 1, &end, 10);
        if (*end != '\0' || bits < 0 || bits > (long)most) return false;
    }
    out->family = addr.family;
    out->bits   = (uint8_t)bits;
    for (i = 0; i < most; i++)
        if (i < (unsigned)bits) out->ip[i / 8] |= (uint8_t)(addr.ip[i / 8] & (0x80u >> i % 8));
    return true;
}

/* To the kernel's form; 0 when there is no such family. */
static socklen_t tnp_to_sockaddr(struct sockaddr_storage *to, const tailnet_addr *addr)
{
    struct sockaddr_in  v4;
    struct sockaddr_in6 v6;
    memset(to, 0, sizeof *to);
    if (addr->family == 4) {
        memset(&v4, 0, sizeof v4);
        v4.sin_family = AF_INET;
        v4.sin_port   = htons(addr->port);
        memcpy(&v4.sin_addr, addr->ip, 4);
        memcpy(to, &v4, sizeof v4);
        return (socklen_t)sizeof v4;
    }
    if (addr->family != 6) return 0;
    memset(&v6, 0, sizeof v6);
    v6.sin6_family   = AF_INET6;
    v6.sin6_port     = htons(addr->port);
    v6.sin6_scope_id = addr->scope;
    memcpy(&v6.sin6_addr, addr->ip, 16);
    memcpy(to, &v6, sizeof v6);
    return (socklen_t)sizeof v6;
}

static bool tnp_from_sockaddr(tailnet_addr *addr, const void *from)
{
    struct sockaddr     head;
    struct sockaddr_in  v4;
    struct sockaddr_in6 v6;
    memset(addr, 0, sizeof *addr);
    memcpy(&head, from, sizeof head);
    if (head.sa_family == AF_INET) {
        memcpy(&v4, from, sizeof v4);
        addr->family = 4;
        addr->port   = ntohs(v4.sin_port);
        memcpy(addr->ip, &v4.sin_addr, 4);
    } else if (head.sa_family == AF_INET6) {
        memcpy(&v6, from, sizeof v6);
        addr->family = 6;
        addr->port   = ntohs(v6.sin6_port);
        addr->scope  = v6.sin6_scope_id;
        memcpy(addr->ip, &v6.sin6_addr, 16);
    }
    return addr->family != 0;
}

/* Ours alone: not passed to programs that we start, and never waits. */
static bool tnp_prepare(int fd)
{
    int flags = fcntl(fd, F_GETFL, 0);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

static void tnp_option(int fd, int level, int name, int value)
{
    /* None of them is worth failing for. */
    (void)setsockopt(fd, level, name, &value, (socklen_t)sizeof value);
}

/* ======================================================================== *
 * >>p-file - the state file and other whole files.
 * ======================================================================== */

static int tnp_write_all(int fd, const void *data, size_t size)
{
    const uint8_t *at = (const uint8_t *)data;
    while (size > 0) {
        ssize_t n = write(fd, at, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        at += n;
        size -= (size_t)n;
    }
    return fsync(fd) == 0 ? 0 : errno;
}

/* The name in the directory is only on the disk when the directory is. */
static int tnp_sync_folder(char *path)
{
    char *slash = strrchr(path, '/');
    int   fd, result;
    if (slash == path) path[1] = '\0';
    else if (slash != NULL) *slash = '\0';
    fd = open(slash != NULL ? path : ".", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    result = fsync(fd) == 0 || errno == EINVAL ? 0 : errno;
    close(fd);
    return result;
}

TAILNET_API int tailnet_posix_write_file(const char *path, const void *data, size_t size)
{
    char   beside[1024];
    size_t len   = strlen(path);
    int    flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int    fd, result;
    if (len == 0 || len + 5 > sizeof beside) return ENAMETOOLONG;
    memcpy(beside, path, len);
    memcpy(beside + len, ".new", 5);
    fd = open(beside, flags, 0600);
    if (fd < 0 && errno == EEXIST && unlink(beside) == 0) {
        fd = open(beside, flags, 0600);             /* left behind by a crash */
    }
    if (fd < 0) return errno;
    result = tnp_write_all(fd, data, size);
    if (close(fd) != 0 && result == 0) result = errno;
    if (result == 0 && rename(beside, path) != 0) result = errno;
    if (result != 0) {
        unlink(beside);
        return result;
    }
    memcpy(beside, path, len + 1);
    return tnp_sync_folder(beside);
}

TAILNET_API int tailnet_posix_read_file(const char *path, void *dst, size_t cap, size_t *size)
{
    uint8_t *at     = (uint8_t *)dst;
    size_t   len    = 0;
    int      result = 0;
    uint8_t  more;
    int      fd = open(path, O_RDONLY | O_CLOEXEC);
    *size = 0;
    if (fd < 0) return errno;
    for (;;) {
        ssize_t n = len < cap ? read(fd, at + len, cap - len) : read(fd, &more, 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) result = errno;
        if (n > 0 && len == cap) result = EFBIG;
        if (n <= 0 || result != 0) break;
        len += (size_t)n;
    }
    close(fd);
    if (result == 0) *size = len;
    return result;
}

/* ======================================================================== *
 * >>p-anchors - PEM to trust anchors. The text is read twice: once to
 * measure, once to fill one block of exactly that size.
 * ======================================================================== */

typedef struct tnp_pem {
    br_x509_decoder_context x509;
    br_x509_trust_anchor   *anchors;        /* NULL: only measuring           */
    uint8_t                *bytes;
    size_t                  byte_count, count, skipped;
    size_t                  count_max, byte_max;
    bool                    damaged;
    size_t                  dn_len;
    uint8_t                 dn[2048];
} tnp_pem;

static void tnp_pem_name(void *user, const void *data, size_t size)
{
    tnp_pem *m = (tnp_pem *)user;
    if (size <= sizeof m->dn - m->dn_len) {
        memcpy(m->dn + m->dn_len, data, size);
        m->dn_len += size;
    } else {
        m->dn_len = sizeof m->dn;           /* full means: too long */
    }
}

static void tnp_pem_bytes(void *user, const void *data, size_t size)
{
    br_x509_decoder_push(&((tnp_pem *)user)->x509, data, size);
}

/* The next piece of the block, filled with data; NULL while only measuring. */
static unsigned char *tnp_pem_keep(tnp_pem *m, const void *data, size_t size)
{
    unsigned char *here = NULL;
    if (m->anchors != NULL) {
        here = m->bytes + m->byte_count;
        memcpy(here, data, size);
    }
    m->byte_count += size;
    return here;
}

/* One certificate is complete. */
static void tnp_pem_end(tnp_pem *m)
{
    br_x509_pkey        *key = br_x509_decoder_get_pkey(&m->x509);
    br_x509_trust_anchor ta;
    size_t               need = m->dn_len;
    if (key == NULL || m->dn_len == sizeof m->dn || m->count == TAILNET_POSIX_ANCHORS ||
        (key->key_type != BR_KEYTYPE_RSA && key->key_type != BR_KEYTYPE_EC)) {
        m->skipped++;
        return;
    }
    need += key->key_type == BR_KEYTYPE_RSA ? key->key.rsa.nlen + key->key.rsa.elen
                                            : key->key.ec.qlen;
    /* Both passes see the same text; this only makes sure. */
    if (m->anchors != NULL && (m->count == m->count_max || need > m->byte_max - m->byte_count))
        return;
    memset(&ta, 0, sizeof ta);
    ta.dn.data = tnp_pem_keep(m, m->dn, m->dn_len);
    ta.dn.len  = m->dn_len;
    ta.flags   = br_x509_decoder_isCA(&m->x509) ? BR_X509_TA_CA : 0;
    ta.pkey    = *key;
    if (key->key_type == BR_KEYTYPE_RSA) {
        ta.pkey.key.rsa.n = tnp_pem_keep(m, key->key.rsa.n, key->key.rsa.nlen);
        ta.pkey.key.rsa.e = tnp_pem_keep(m, key->key.rsa.e, key->key.rsa.elen);
    } else {
        ta.pkey.key.ec.q = tnp_pem_keep(m, key->key.ec.q, key->key.ec.qlen);
    }
    if (m->anchors != NULL) m->anchors[m->count] = ta;
    m->count++;
}

static bool tnp_pem_is_certificate(const char *name)
{
    return strcmp(name, "CERTIFICATE") == 0 || strcmp(name, "X509 CERTIFICATE") == 0;
}

/* All of the text once. The last line may lack its end; we add one. */
static void tnp_pem_pass(tnp_pem *m, const char *pem, size_t size)
{
    br_pem_decoder_context pc;
    bool                   object = false, certificate = false, ended = false;
    br_pem_decoder_init(&pc);
    m->byte_count = m->count = m->skipped = 0;
    m->damaged    = false;
    while (size > 0 || !ended) {
        size_t n;
        if (size == 0) {
            ended = true;
            n = br_pem_decoder_push(&pc, "\n", 1);
        } else {
            n = br_pem_decoder_push(&pc, pem, size);
            pem += n;
            size -= n;
        }
        switch (br_pem_decoder_event(&pc)) {
        case BR_PEM_BEGIN_OBJ:
            object      = true;
            certificate = tnp_pem_is_certificate(br_pem_decoder_name(&pc));
            m->dn_len   = 0;
            br_x509_decoder_init(&m->x509, tnp_pem_name, m);
            br_pem_decoder_setdest(&pc, certificate ? tnp_pem_bytes : NULL, m);
            break;
        case BR_PEM_END_OBJ:
            if (certificate) tnp_pem_end(m);
            object = false;
            break;
        case BR_PEM_ERROR:
            m->damaged = true;
            object     = false;
            break;
        default:
            if (n == 0) ended = true;               /* cannot happen; never spin */
            if (n == 0) size = 0;
            break;
        }
    }
    if (object) m->damaged = true;                  /* cut short */
}

TAILNET_API tailnet_result tailnet_posix_anchors(tailnet_posix_ca *ca, const char *pem,
                                                 size_t size)
{
    tnp_pem m;
    size_t  table;
    memset(ca, 0, sizeof *ca);
    memset(&m, 0, sizeof m);
    tnp_pem_pass(&m, pem, size);
    ca->skipped = m.skipped;
    ca->damaged = m.damaged;
    if (m.count == 0) return TAILNET_ERR_MALFORMED;
    m.count_max = m.count;
    m.byte_max  = m.byte_count;
    table       = m.count * sizeof(br_x509_trust_anchor);
    ca->memory  = malloc(table + m.byte_count);
    if (ca->memory == NULL) return TAILNET_ERR_MEMORY;
    m.anchors = (br_x509_trust_anchor *)ca->memory;
    m.bytes   = (uint8_t *)ca->memory + table;
    tnp_pem_pass(&m, pem, size);
    ca->anchors = ca->memory;
    ca->count   = m.count;
    return TAILNET_OK;
}

TAILNET_API void tailnet_posix_anchors_free(tailnet_posix_ca *ca)
{
    free(ca->memory);
    memset(ca, 0, sizeof *ca);
}

/* The anchors of a file. The text lies on the heap while it is read. */
static tailnet_result tnp_anchors_read(tailnet_posix_ca *ca, const char *path, int *number)
{
    enum { MOST = 4 << 20 };
    tailnet_result result = TAILNET_ERR_NETWORK;
    struct stat    st;
    size_t         len;
    char          *text;
    memset(ca, 0, sizeof *ca);
    *number = 0;
    if (stat(path, &st) != 0) *number = errno;
    else if (!S_ISREG(st.st_mode) || st.st_size > MOST) *number = EINVAL;
    if (*number != 0) return result;
    text = (char *)malloc((size_t)st.st_size + 1);
    if (text == NULL) return TAILNET_ERR_MEMORY;
    *number = tailnet_posix_read_file(path, text, (size_t)st.st_size + 1, &len);
    if (*number == 0) result = tailnet_posix_anchors(ca, text, len);
    free(text);
    return result;
}

/* A file that the caller names has to be whole; of the system's store some certificates may
 * be beyond us. No system store is no failure: the built-in anchors count then. */
static tailnet_result tnp_anchors_open(tailnet_posix *p)
{
    static const char *const usual[] = {
        "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "/etc/ssl/cert.pem", "/usr/local/etc/ssl/cert.pem", "/usr/share/ssl/certs/ca-bundle.crt",
    };
    const char    *path = p->opt.ca_file;
    tailnet_result result;
    size_t         i;
    int            number;
    if (path == NULL) {
        for (i = 0; i < sizeof usual / sizeof usual[0]; i++)
            if (tnp_anchors_read(&p->ca, usual[i], &number) == TAILNET_OK) break;
        return TAILNET_OK;
    }
    result = tnp_anchors_read(&p->ca, path, &number);
    if (number != 0) tnp_error(p, "Cannot read the CA file", path, number);
    else if (result == TAILNET_ERR_MEMORY) tnp_error(p, "Not enough memory for the CA file", path, 0);
    else if (result != TAILNET_OK) tnp_error(p, "There is no usable PEM certificate in", path, 0);
    else if (p->ca.damaged) tnp_error(p, "The CA file is damaged or cut short:", path, 0);
    return p->error[0] == '\0' ? TAILNET_OK : TAILNET_ERR_ARGUMENT;
}

/* ======================================================================== *
 * >>p-packets - packets of our own for nodes without TUN: what comes in is
 * looked at, what goes out waits in the outbox, because the library may not
 * be called from inside its own ip_output.
 * ======================================================================== */

enum { TNP_ICMP4 = 1, TNP_UDP = 17, TNP_ICMP6 = 58 };
enum { TNP_PACKET_MOST = TAILNET_POSIX_SPACE - (int)TAILNET_HEADROOM - (int)TAILNET_TAILROOM };

/* An IP packet, cut: addresses, protocol, and the body behind headers without options. */
typedef struct tnp_packet {
    tailnet_addr   src, dst;
    uint8_t        protocol;        /* 0: a fragment, or nothing we look into */
    const uint8_t *body;
    size_t         size;
} tnp_packet;

static bool tnp_packet_read(tnp_packet *k, const uint8_t *data, size_t size)
{
    memset(k, 0, sizeof *k);
    if (size >= 20 && data[0] >> 4 == 4) {
        size_t head = (size_t)(data[0] & 15u) * 4, total = tnp_get16(data + 2);
        if (head < 20 || total < head || total > size) return false;
        k->src.family = k->dst.family = 4;
        memcpy(k->src.ip, data + 12, 4);
        memcpy(k->dst.ip, data + 16, 4);
        k->protocol = (tnp_get16(data + 6) & 0x3fffu) != 0 ? 0 : data[9];
        k->body     = data + head;
        k->size     = total - head;
        return true;
    }
    if (size < 40 || data[0] >> 4 != 6 || tnp_get16(data + 4) > size - 40) return false;
    k->src.family = k->dst.family = 6;
    memcpy(k->src.ip, data + 8, 16);
    memcpy(k->dst.ip, data + 24, 16);
    k->protocol = data[6];
    k->body     = data + 40;
    k->size     = tnp_get16(data + 4);
    return true;
}

/* The sum over the pseudo header (RFC 768, RFC 8200 section 8.1); ICMP for IPv4 has none. */
static uint32_t tnp_sum_pseudo(const tailnet_addr *src, const tailnet_addr *dst,
                               unsigned protocol, size_t size)
{
    size_t   len = src->family == 4 ? 4u : 16u;
    uint32_t sum = 0;
    if (protocol == TNP_ICMP4) return 0;
    sum = tnp_sum(sum, src->ip, len);
    sum = tnp_sum(sum, dst->ip, len);
    return sum + protocol + (uint32_t)(size & 0xffffu);
}

/* An IP header without options in front of size bytes of body; returns its length. */
static size_t tnp_ip_header(uint8_t *out, const tailnet_addr *src, const tailnet_addr *dst,
                            unsigned protocol, size_t size)
{
    if (src->family == 4) {
        memset(out, 0, 20);
        out[0] = 0x45;
        tnp_put16(out + 2, (unsigned)(20 + size));
        out[6] = 0x40;                              /* never cut on the way: no id needed */
        out[8] = 64;
        out[9] = (uint8_t)protocol;
        memcpy(out + 12, src->ip, 4);
        memcpy(out + 16, dst->ip, 4);
        tnp_put16(out + 10, tnp_sum_end(tnp_sum(0, out, 20)));
        return 20;
    }
    memset(out, 0, 40);
    out[0] = 0x60;
    tnp_put16(out + 4, (unsigned)size);
    out[6] = (uint8_t)protocol;
    out[7] = 64;
    memcpy(out + 8, src->ip, 16);
    memcpy(out + 24, dst->ip, 16);
    return 40;
}

/* A whole UDP packet; 0 when it does not fit into cap. */
static size_t tnp_udp_build(uint8_t *out, size_t cap, const tailnet_addr *src,
                            const tailnet_addr *dst, const void *data, size_t size)
{
    size_t   head = src->family == 4 ? 20u : 40u;
    uint8_t *udp  = out + head;
    uint16_t sum;
    if (cap < head + 8 || size > cap - head - 8) return 0;
    tnp_ip_header(out, src, dst, TNP_UDP, size + 8);
    tnp_put16(udp, src->port);
    tnp_put16(udp + 2, dst->port);
    tnp_put16(udp + 4, (unsigned)(size + 8));
    tnp_put16(udp + 6, 0);
    if (size != 0) memcpy(udp + 8, data, size);
    sum = tnp_sum_end(tnp_sum(tnp_sum_pseudo(src, dst, TNP_UDP, size + 8), udp, size + 8));
    tnp_put16(udp + 6, sum == 0 ? 0xffffu : sum);   /* 0 would say: no checksum */
    return head + 8 + size;
}

/* The answer to a ping; 0 when the packet is none, is damaged, or does not fit. */
static size_t tnp_echo_build(uint8_t *out, size_t cap, const tnp_packet *ping)
{
    bool     v4   = ping->src.family == 4;
    unsigned ask  = v4 ? 8u : 128u, kind = v4 ? TNP_ICMP4 : TNP_ICMP6;
    size_t   head = v4 ? 20u : 40u;
    uint32_t pseudo;
    if (ping->protocol != kind || ping->size < 8 || ping->body[0] != ask) return 0;
    if (cap < head || ping->size > cap - head) return 0;
    pseudo = tnp_sum_pseudo(&ping->src, &ping->dst, kind, ping->size);
    if (tnp_sum_end(tnp_sum(pseudo, ping->body, ping->size)) != 0) return 0;
    tnp_ip_header(out, &ping->dst, &ping->src, kind, ping->size);
    memcpy(out + head, ping->body, ping->size);
    out[head] = v4 ? 0 : 129;
    tnp_put16(out + head + 2, 0);
    tnp_put16(out + head + 2, tnp_sum_end(tnp_sum(pseudo, out + head, ping->size)));
    return head + ping->size;
}

/* A datagram in the packet, with ports set; false when it is none or damaged. */
static bool tnp_udp_read(tnp_packet *k, const uint8_t **data, size_t *size)
{
    uint32_t pseudo;
    size_t   len;
    if (k->protocol != TNP_UDP || k->size < 8) return false;
    len = tnp_get16(k->body + 4);
    if (len < 8 || len > k->size) return false;
    pseudo = tnp_sum_pseudo(&k->src, &k->dst, TNP_UDP, len);
    if (tnp_get16(k->body + 6) == 0) {
        if (k->src.family != 4) return false;       /* RFC 8200: IPv6 has to have one */
    } else if (tnp_sum_end(tnp_sum(pseudo, k->body, len)) != 0) {
        return false;
    }
    k->src.port = tnp_get16(k->body);
    k->dst.port = tnp_get16(k->body + 2);
    *data       = k->body + 8;
    *size       = len - 8;
    return true;
}

/* One packet to the library. AGAIN: nothing has taken it, offer it again later. The library
 * encrypts in place, so it gets a copy, and a packet that has to wait is still whole. */
static tailnet_result tnp_offer(tailnet_posix *p, const uint8_t *packet, size_t size)
{
    tailnet_buf    buf;
    tailnet_result result;
    memset(&buf, 0, sizeof buf);
    buf.base = p->space[0];
    buf.cap  = TAILNET_POSIX_SPACE;
    buf.off  = TAILNET_HEADROOM;
    buf.len  = (uint32_t)size;
    memcpy(buf.base + buf.off, packet, size);
    result = tailnet_ip_input(p->node, &buf, 1);
    if (result != TAILNET_ERR_AGAIN) {
        p->full_since_ms = 0;
        return result;
    }
    /* A link that stays full, or is not there, must not hold everything for ever. */
    if (p->full_since_ms == 0) {
        p->full_since_ms = tnp_now();
        p->held++;
    }
    if (tnp_now() - p->full_since_ms < p->opt.hold_ms) return TAILNET_ERR_AGAIN;
    p->dropped++;
    return TAILNET_ERR_NETWORK;
}

static void tnp_outbox_flush(tailnet_posix *p)
{
    while (p->out_count != 0) {
        if (tnp_offer(p, p->out[p->out_first], p->out_len[p->out_first]) == TAILNET_ERR_AGAIN)
            return;
        p->out_first = (p->out_first + 1) % TAILNET_POSIX_OUTBOX;
        p->out_count--;
    }
}

/* Room for a packet at the end of the outbox, or NULL. */
static uint8_t *tnp_outbox_room(tailnet_posix *p)
{
    if (p->out_count < TAILNET_POSIX_OUTBOX)
        return p->out[(p->out_first + p->out_count) % TAILNET_POSIX_OUTBOX];
    p->dropped++;
    return NULL;
}

static void tnp_outbox_add(tailnet_posix *p, size_t size)
{
    p->out_len[(p->out_first + p->out_count) % TAILNET_POSIX_OUTBOX] = (uint16_t)size;
    p->out_count++;
    if (!p->inside) tnp_outbox_flush(p);
}

static size_t tnp_packet_most(const tailnet_posix *p)
{
    return p->mtu < (uint32_t)TNP_PACKET_MOST ? p->mtu : (size_t)TNP_PACKET_MOST;
}

TAILNET_API tailnet_result tailnet_posix_ip_send(tailnet_posix *p, const void *packet, size_t size)
{
    uint8_t *room;
    if (size == 0 || size > tnp_packet_most(p)) return TAILNET_ERR_TOO_BIG;
    room = tnp_outbox_room(p);
    if (room == NULL) return TAILNET_ERR_AGAIN;
    memcpy(room, packet, size);
    tnp_outbox_add(p, size);
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_posix_udp_send(tailnet_posix *p, uint16_t from_port,
                                                  const tailnet_addr *to, const void *data,
                                                  size_t size)
{
    tailnet_self self;
    tailnet_addr from;
    uint8_t     *room;
    size_t       len;
    if (!tailnet_get_self(p->node, &self)) return TAILNET_ERR_NO_ROUTE;
    from      = to->family == 4 ? self.ip4 : self.ip6;
    from.port = from_port;
    if (from.family == 0 || from.family != to->family) return TAILNET_ERR_NO_ROUTE;
    room = tnp_outbox_room(p);
    if (room == NULL) return TAILNET_ERR_AGAIN;
    len = tnp_udp_build(room, tnp_packet_most(p), &from, to, data, size);
    if (len == 0) return TAILNET_ERR_TOO_BIG;
    tnp_outbox_add(p, len);
    return TAILNET_OK;
}

/* A decrypted packet for us, without TUN. */
static void tnp_packet_in(tailnet_posix *p, const uint8_t *packet, size_t size)
{
    const uint8_t *data;
    tnp_packet     k;
    uint8_t       *room;
    size_t         len;
    if (!tnp_packet_read(&k, packet, size)) return;
    if (!p->opt.no_echo && (k.protocol == TNP_ICMP4 || k.protocol == TNP_ICMP6)) {
        room = tnp_outbox_room(p);
        len  = room == NULL ? 0 : tnp_echo_build(room, tnp_packet_most(p), &k);
        if (len != 0) {
            tnp_outbox_add(p, len);
            return;
        }
    }
    if (p->opt.on_udp != NULL && k.protocol == TNP_UDP) {
        if (tnp_udp_read(&k, &data, &len))
            p->opt.on_udp(p->opt.user, p, &k.src, k.dst.port, data, len);
    } else if (p->opt.on_ip != NULL) {
        p->opt.on_ip(p->opt.user, p, packet, size);
    }
}

/* ======================================================================== *
 * >>p-watch - descriptors and what we wait for on them.
 * ======================================================================== */

static void tnp_want(tailnet_posix *p, tailnet_posix_watch *w, short events)
{
    if (w->fd < 0 || w->events == events) return;
    w->events = events;
    if (p->opt.on_fd != NULL) p->opt.on_fd(p->opt.user, w->fd, events);
}

/* Closes; who keeps a set of descriptors hears of it before. */
static void tnp_drop(tailnet_posix *p, tailnet_posix_watch *w)
{
    if (w->fd < 0) return;
    tnp_want(p, w, 0);
    close(w->fd);
    w->fd = -1;
}

static bool tnp_watch(tailnet_posix *p, tailnet_posix_watch *w, int fd, short events)
{
    w->fd     = fd;
    w->events = 0;
    if (fd < 0) return false;
    if (!tnp_prepare(fd)) {
        close(fd);
        w->fd = -1;
        return false;
    }
    tnp_want(p, w, events);
    return true;
}

static size_t tnp_fds_add(const tailnet_posix_watch *w, struct pollfd *fds, size_t n, size_t size)
{
    if (w->fd < 0 || w->events == 0 || n == size) return n;
    fds[n].fd      = w->fd;
    fds[n].events  = w->events;
    fds[n].revents = 0;
    return n + 1;
}

TAILNET_API size_t tailnet_posix_fds(const tailnet_posix *p, struct pollfd *fds, size_t size)
{
    size_t n = 0, i, k;
    n = tnp_fds_add(&p->wake, fds, n, size);
    n = tnp_fds_add(&p->udp[0], fds, n, size);
    n = tnp_fds_add(&p->udp[1], fds, n, size);
    n = tnp_fds_add(&p->tun, fds, n, size);
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++)
        n = tnp_fds_add(&p->lookup[i].watch, fds, n, size);
    for (i = 0; i < TAILNET_POSIX_LINKS; i++)
        for (k = 0; k < TAILNET_POSIX_TRIES; k++)
            n = tnp_fds_add(&p->slot[i].tries[k], fds, n, size);
    return n;
}

/* ======================================================================== *
 * >>p-lookup - names, without blocking: getaddrinfo in a thread. The thread
 * shares nothing with us but one end of a socket pair: it reads the name
 * there, writes the addresses, and ends. Whoever has lost interest just
 * leaves it alone; its entry is free again when it ends, so that a dead name
 * server costs at most TAILNET_POSIX_LOOKUPS threads.
 * ======================================================================== */

typedef struct tnp_question {
    char host[256];
} tnp_question;

typedef struct tnp_answer {
    uint32_t     count;
    tailnet_addr addrs[TAILNET_POSIX_ADDRS];
} tnp_answer;

static void *tnp_lookup_thread(void *argument)
{
    int              fd = (int)(intptr_t)argument;
    struct addrinfo  hint, *list = NULL, *at;
    tnp_question     q;
    tnp_answer       a;
    ssize_t          n;
    memset(&a, 0, sizeof a);
    memset(&hint, 0, sizeof hint);
    hint.ai_socktype = SOCK_STREAM;
    n = recv(fd, &q, sizeof q, 0);
    if (n == (ssize_t)sizeof q && TAILNET_POSIX_GETADDRINFO(q.host, NULL, &hint, &list) == 0) {
        for (at = list; at != NULL && a.count < TAILNET_POSIX_ADDRS; at = at->ai_next)
            if (tnp_from_sockaddr(&a.addrs[a.count], at->ai_addr)) a.count++;
        freeaddrinfo(list);
    }
    (void)!send(fd, &a, sizeof a, MSG_NOSIGNAL);
    close(fd);
    return NULL;
}

/* Signals are for the threads of the program, not for ours. */
static bool tnp_lookup_spawn(int fd)
{
    sigset_t       all, before;
    pthread_attr_t how;
    pthread_t      thread;
    bool           ok;
    if (pthread_attr_init(&how) != 0) return false;
    (void)pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
    (void)pthread_attr_setstacksize(&how, (size_t)256 << 10);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    ok = pthread_create(&thread, &how, tnp_lookup_thread, (void *)(intptr_t)fd) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&how);
    return ok;
}

/* Begins a look-up; NULL when all entries are taken or nothing can begin. */
static tailnet_posix_lookup *tnp_lookup_begin(tailnet_posix *p, const char *host)
{
    tailnet_posix_lookup *l = NULL;
    tnp_question          q;
    int                   pair[2];
    size_t                i;
    for (i = 0; i < TAILNET_POSIX_LOOKUPS && l == NULL; i++)
        if (p->lookup[i].purpose == 0) l = &p->lookup[i];
    memset(&q, 0, sizeof q);
    if (l == NULL || strlen(host) >= sizeof q.host) return NULL;
    memcpy(q.host, host, strlen(host));
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) return NULL;
    (void)fcntl(pair[1], F_SETFD, FD_CLOEXEC);
    if (!tnp_watch(p, &l->watch, pair[0], POLLIN)) {
        close(pair[1]);
        return NULL;
    }
    if (send(pair[0], &q, sizeof q, MSG_NOSIGNAL) != (ssize_t)sizeof q ||
        !tnp_lookup_spawn(pair[1])) {
        tnp_drop(p, &l->watch);
        close(pair[1]);
        return NULL;
    }
    p->lookups++;
    l->deadline_ms = tnp_now() + p->opt.lookup_ms;
    return l;
}

static void tnp_lookup_forget(tailnet_posix *p, tailnet_link link)
{
    size_t i;
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++)
        if (p->lookup[i].purpose == TNP_FOR_LINK && p->lookup[i].link == link)
            p->lookup[i].purpose = TNP_FOR_NOBODY;
}

static int tnp_io_resolve(void *user, uint32_t query, const char *host)
{
    tailnet_posix_lookup *l = tnp_lookup_begin((tailnet_posix *)user, host);
    if (l == NULL) return -1;
    l->purpose = TNP_FOR_QUERY;
    l->query   = query;
    return 0;
}

/* ======================================================================== *
 * >>p-tcp - connections of the library. Addresses of a name are tried in
 * turn, the next one when one fails or has not answered in race_ms; the
 * first that stands wins (a light form of RFC 8305).
 * ======================================================================== */

static void tnp_tcp_options(const tailnet_posix *p, int fd)
{
    tnp_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    tnp_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    tnp_option(fd, SOL_SOCKET, SO_SNDBUF, (int)p->opt.tcp_send_buffer);
#ifdef TCP_KEEPIDLE
    tnp_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 45);
    tnp_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 15);
    tnp_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
#endif
#ifdef TCP_USER_TIMEOUT
    tnp_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 45000);
#endif
#ifdef TCP_NOTSENT_LOWAT
    tnp_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, (int)p->opt.tcp_not_sent);
#endif
#ifdef SO_MAX_PACING_RATE
    if (p->opt.tcp_rate != 0) tnp_option(fd, SOL_SOCKET, SO_MAX_PACING_RATE, (int)p->opt.tcp_rate);
#endif
#ifdef SO_NOSIGPIPE
    tnp_option(fd, SOL_SOCKET, SO_NOSIGPIPE, 1);
#endif
}

static tailnet_posix_slot *tnp_slot(tailnet_posix *p, tailnet_link link)
{
    uint32_t at = TAILNET_LINK_SLOT(link);
    if (at >= TAILNET_POSIX_LINKS || !p->slot[at].used || p->slot[at].link != link) return NULL;
    return &p->slot[at];
}

static void tnp_tcp_address(tailnet_posix_slot *s, const tailnet_addr *addr, uint16_t port)
{
    if (addr->family == 0 || s->addr_count == TAILNET_POSIX_ADDRS) return;
    s->addrs[s->addr_count]      = *addr;
    s->addrs[s->addr_count].port = port;
    s->addr_count++;
}

static bool tnp_tcp_trying(const tailnet_posix_slot *s)
{
    size_t i;
    for (i = 0; i < TAILNET_POSIX_TRIES; i++)
        if (s->tries[i].fd >= 0) return true;
    return false;
}

/* Begins to connect to the next address that lets us; false when nothing is under way. */
static bool tnp_tcp_next(tailnet_posix *p, tailnet_posix_slot *s)
{
    struct sockaddr_storage to;
    socklen_t               len;
    tailnet_posix_watch    *w;
    size_t                  i;
    int                     fd;
    while (s->addr_next < s->addr_count) {
        for (i = 0; i < TAILNET_POSIX_TRIES && s->tries[i].fd >= 0; i++) continue;
        if (i == TAILNET_POSIX_TRIES) return true;  /* enough at a time */
        w   = &s->tries[i];
        len = tnp_to_sockaddr(&to, &s->addrs[s->addr_next++]);
        fd  = socket(to.ss_family, SOCK_STREAM, 0);
        if (!tnp_watch(p, w, fd, POLLOUT)) continue;
        tnp_tcp_options(p, fd);
        if (connect(fd, (const struct sockaddr *)&to, len) == 0 || errno == EINPROGRESS) {
            s->race_at_ms = tnp_now() + p->opt.race_ms;
            return true;
        }
        tnp_drop(p, w);
    }
    return tnp_tcp_trying(s);
}

static void tnp_tcp_clear(tailnet_posix *p, tailnet_posix_slot *s)
{
    size_t i;
    for (i = 0; i < TAILNET_POSIX_TRIES; i++) tnp_drop(p, &s->tries[i]);
    s->used = s->open = s->ended = s->told = false;
    s->addr_count = s->addr_next = s->in_at = s->in_len = 0;
}

static int tnp_io_tcp_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    tailnet_posix        *p  = (tailnet_posix *)user;
    uint32_t              at = TAILNET_LINK_SLOT(link);
    tailnet_posix_slot   *s;
    tailnet_posix_lookup *l;
    tailnet_addr          literal;
    if (at >= TAILNET_POSIX_LINKS || p->slot[at].used) return -1;
    s = &p->slot[at];
    tnp_tcp_clear(p, s);
    tnp_tcp_address(s, &dial->addr6, dial->port);
    tnp_tcp_address(s, &dial->addr4, dial->port);
    if (s->addr_count == 0 && tailnet_posix_addr_parse(&literal, dial->host))
        tnp_tcp_address(s, &literal, dial->port);
    s->link = link;
    s->used = true;
    if (s->addr_count != 0) {
        if (!tnp_tcp_next(p, s)) s->used = false;
        return s->used ? 0 : -1;
    }
    l = tnp_lookup_begin(p, dial->host);
    if (l == NULL) {
        s->used = false;
        return -1;
    }
    l->purpose = TNP_FOR_LINK;
    l->link    = link;
    l->port    = dial->port;
    return 0;
}

static int32_t tnp_io_tcp_output(void *user, tailnet_link link, const void *data, size_t size)
{
    tailnet_posix      *p = (tailnet_posix *)user;
    tailnet_posix_slot *s = tnp_slot(p, link);
    ssize_t             n;
    if (s == NULL || !s->open || s->tries[0].fd < 0) return -1;
    if (size > 0x40000000u) size = 0x40000000u;
    do n = send(s->tries[0].fd, data, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) n = 0;
    if (n < 0) return -1;
    if ((size_t)n < size)
        tnp_want(p, &s->tries[0], (short)(s->tries[0].events | POLLOUT));
    return (int32_t)n;
}

static void tnp_io_tcp_close(void *user, tailnet_link link)
{
    tailnet_posix      *p = (tailnet_posix *)user;
    tailnet_posix_slot *s = tnp_slot(p, link);
    if (s == NULL) return;
    tnp_lookup_forget(p, link);
    tnp_tcp_clear(p, s);
}

/* Broken, or never came to be. Said once; the next poll closes. */
static void tnp_tcp_gone(tailnet_posix *p, tailnet_posix_slot *s)
{
    size_t i;
    for (i = 0; i < TAILNET_POSIX_TRIES; i++) tnp_want(p, &s->tries[i], 0);
    if (s->told) return;
    s->told = true;
    s->open = false;
    (void)tailnet_tcp_closed(p->node, s->link);
}

/* A try has come to something: connected, or failed and the next one begins. */
static void tnp_tcp_tried(tailnet_posix *p, tailnet_posix_slot *s, size_t at)
{
    tailnet_posix_watch won = s->tries[at];
    int                 trouble = 0;
    socklen_t           len     = (socklen_t)sizeof trouble;
    size_t              i;
    if (getsockopt(won.fd, SOL_SOCKET, SO_ERROR, &trouble, &len) != 0) trouble = errno;
    if (trouble == EINPROGRESS) return;
    if (trouble != 0) {
        tnp_drop(p, &s->tries[at]);
        if (!tnp_tcp_next(p, s)) tnp_tcp_gone(p, s);
        return;
    }
    s->tries[at].fd = -1;
    for (i = 0; i < TAILNET_POSIX_TRIES; i++) tnp_drop(p, &s->tries[i]);
    s->tries[0]   = won;
    s->addr_next  = s->addr_count;
    s->open       = true;
    tnp_want(p, &s->tries[0], POLLIN);
    (void)tailnet_tcp_opened(p->node, s->link);
}

/* What waits goes to the library; true when nothing waits any more. */
static bool tnp_tcp_feed(tailnet_posix *p, tailnet_posix_slot *s)
{
    while (s->in_len != 0) {
        size_t n = tailnet_tcp_input(p->node, s->link, s->in + s->in_at, s->in_len);
        if (n == 0 || n > s->in_len) return false;
        p->fed = true;
        s->in_at += n;
        s->in_len -= n;
    }
    s->in_at = 0;
    if (s->ended) tnp_tcp_gone(p, s);
    return true;
}

/* Reads a bounded share of a stream. What the library does not take waits here and the
 * socket is left alone meanwhile: that is the back-pressure. */
static void tnp_tcp_read(tailnet_posix *p, tailnet_posix_slot *s)
{
    int turn;
    for (turn = 0; turn < 8 && !s->ended && tnp_tcp_feed(p, s); turn++) {
        ssize_t n;
        do n = recv(s->tries[0].fd, s->in, sizeof s->in, 0);
        while (n < 0 && errno == EINTR);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return;
        if (n <= 0) s->ended = true;
        else s->in_len = (size_t)n;
        if (!tnp_tcp_feed(p, s)) break;
        if (n < (ssize_t)sizeof s->in) return;      /* that was all of it */
    }
    if (s->ended) tnp_want(p, &s->tries[0], 0);
    else if (s->in_len != 0) tnp_want(p, &s->tries[0], (short)(s->tries[0].events & ~POLLIN));
}

static void tnp_tcp_ready(tailnet_posix *p, tailnet_posix_slot *s, size_t at, short revents)
{
    short events;
    if (!s->open) {
        if (!s->told) tnp_tcp_tried(p, s, at);
        return;
    }
    events = s->tries[0].events;
    if (revents & POLLOUT) {
        /* First, because the library sets it again when the buffer fills again. */
        tnp_want(p, &s->tries[0], (short)(events & ~POLLOUT));
        (void)tailnet_tcp_writable(p->node, s->link);
    }
    if (revents & (POLLIN | POLLHUP | POLLERR)) tnp_tcp_read(p, s);
}

/* After a poll there is room again in the library. */
static void tnp_tcp_later(tailnet_posix *p)
{
    size_t i;
    for (i = 0; i < TAILNET_POSIX_LINKS; i++) {
        tailnet_posix_slot *s = &p->slot[i];
        if (!s->used || !s->open || (s->in_len == 0 && !s->ended)) continue;
        if (tnp_tcp_feed(p, s) && !s->ended)
            tnp_want(p, &s->tries[0], (short)(s->tries[0].events | POLLIN));
    }
}

/* The answer of a look-up thread, or the end of our patience. */
static void tnp_lookup_done(tailnet_posix *p, tailnet_posix_lookup *l, const tnp_answer *a)
{
    tailnet_posix_slot *s;
    size_t              i;
    uint8_t             purpose = l->purpose;
    l->purpose = TNP_FOR_NOBODY;
    if (purpose == TNP_FOR_QUERY) (void)tailnet_resolved(p->node, l->query, a->addrs, a->count);
    s = purpose == TNP_FOR_LINK ? tnp_slot(p, l->link) : NULL;
    if (s == NULL) return;
    for (i = 0; i < a->count && i < TAILNET_POSIX_ADDRS; i++)
        tnp_tcp_address(s, &a->addrs[i], l->port);
    if (!tnp_tcp_next(p, s)) tnp_tcp_gone(p, s);
}

static void tnp_lookup_ready(tailnet_posix *p, tailnet_posix_lookup *l)
{
    tnp_answer a;
    ssize_t    n = recv(l->watch.fd, &a, sizeof a, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n != (ssize_t)sizeof a || a.count > TAILNET_POSIX_ADDRS) memset(&a, 0, sizeof a);
    tnp_lookup_done(p, l, &a);
    tnp_drop(p, &l->watch);
    l->purpose = 0;
}

/* Races and look-ups whose time has come. */
static void tnp_tcp_timers(tailnet_posix *p, uint64_t now)
{
    tnp_answer none;
    size_t     i;
    memset(&none, 0, sizeof none);
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++) {
        tailnet_posix_lookup *l = &p->lookup[i];
        if (l->purpose != 0 && l->purpose != TNP_FOR_NOBODY && now >= l->deadline_ms)
            tnp_lookup_done(p, l, &none);
    }
    for (i = 0; i < TAILNET_POSIX_LINKS; i++) {
        tailnet_posix_slot *s = &p->slot[i];
        if (s->used && !s->open && !s->told && s->addr_next < s->addr_count &&
            now >= s->race_at_ms) {
            s->race_at_ms = now + p->opt.race_ms;
            if (!tnp_tcp_next(p, s)) tnp_tcp_gone(p, s);
        }
    }
}

static uint64_t tnp_tcp_deadline(const tailnet_posix *p)
{
    uint64_t at = UINT64_MAX;
    size_t   i;
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++) {
        const tailnet_posix_lookup *l = &p->lookup[i];
        if (l->purpose != 0 && l->purpose != TNP_FOR_NOBODY && l->deadline_ms < at)
            at = l->deadline_ms;
    }
    for (i = 0; i < TAILNET_POSIX_LINKS; i++) {
        const tailnet_posix_slot *s = &p->slot[i];
        if (s->used && !s->open && !s->told && s->addr_next < s->addr_count && s->race_at_ms < at)
            at = s->race_at_ms;
    }
    return at;
}
