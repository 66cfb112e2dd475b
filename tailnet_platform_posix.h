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
    bool                  spawning;     /* while one is started (that uses the heap) */
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
    void                 *batch;        /* for datagrams that come in          */
    tailnet_addr          tun_ip[2];
    int                   tun_index;
    tailnet_prefix        route[TAILNET_POSIX_ROUTES];
    size_t                route_count;
    uint64_t              full_since_ms;
    uint32_t              tun_held;     /* bytes of the packet that waits      */
    size_t                out_first, out_count;
    uint16_t              out_len[TAILNET_POSIX_OUTBOX];
    /* From here on large, and never cleared as a whole: pages that nobody needs stay free. */
    tailnet_posix_slot    slot[TAILNET_POSIX_LINKS];
    uint8_t               tun_packet[TAILNET_POSIX_SPACE];
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
#include <sys/uio.h>
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

/* Secrets: through volatile, so that no compiler finds it useless. */
static void tnp_wipe(void *dst, size_t size)
{
    volatile uint8_t *at = (volatile uint8_t *)dst;
    while (size-- > 0) *at++ = 0;
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

/* Both passes; m is cleared. */
static tailnet_result tnp_pem_read(tailnet_posix_ca *ca, tnp_pem *m, const char *pem, size_t size)
{
    size_t table;
    tnp_pem_pass(m, pem, size);
    ca->skipped = m->skipped;
    ca->damaged = m->damaged;
    if (m->count == 0) return TAILNET_ERR_MALFORMED;
    m->count_max = m->count;
    m->byte_max  = m->byte_count;
    table        = m->count * sizeof(br_x509_trust_anchor);
    ca->memory   = malloc(table + m->byte_count);
    if (ca->memory == NULL) return TAILNET_ERR_MEMORY;
    m->anchors = (br_x509_trust_anchor *)ca->memory;
    m->bytes   = (uint8_t *)ca->memory + table;
    tnp_pem_pass(m, pem, size);
    ca->anchors = ca->memory;
    ca->count   = m->count;
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_posix_anchors(tailnet_posix_ca *ca, const char *pem,
                                                 size_t size)
{
    tnp_pem       *m = (tnp_pem *)calloc(1, sizeof *m);     /* too large for a small stack */
    tailnet_result result;
    memset(ca, 0, sizeof *ca);
    if (m == NULL) return TAILNET_ERR_MEMORY;
    result = tnp_pem_read(ca, m, pem, size);
    free(m);
    return result;
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
    else if (result == TAILNET_ERR_MEMORY) tnp_error(p, "No memory for the CA file", path, 0);
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
    p->spawning = true;
    if (send(pair[0], &q, sizeof q, MSG_NOSIGNAL) == (ssize_t)sizeof q &&
        tnp_lookup_spawn(pair[1]))
        p->spawning = false;
    if (p->spawning) {
        p->spawning = false;
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
    if (p->opt.tcp_rate != 0)
        tnp_option(fd, SOL_SOCKET, SO_MAX_PACING_RATE, (int)p->opt.tcp_rate);
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
    if (n < 0 && (errno == EAGAIN || errno == ENOBUFS)) n = 0;
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
        if (n < 0 && (errno == EAGAIN)) return;
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

/* ======================================================================== *
 * >>p-udp - the two datagram sockets, on one port where that can be had.
 * ======================================================================== */

/* Where a run of datagrams is put together. */
typedef struct tnp_batch {
#if defined(__linux__)
    struct mmsghdr      msg[TAILNET_POSIX_RUN];
#endif
    struct iovec        part[TAILNET_POSIX_RUN];
    struct sockaddr_in6 from[TAILNET_POSIX_RUN];
    tailnet_buf         run[TAILNET_POSIX_RUN];
} tnp_batch;

static int tnp_udp_socket(const tailnet_posix *p, unsigned family, uint16_t port)
{
    struct sockaddr_storage at;
    tailnet_addr            any;
    socklen_t               len;
    int                     fd = socket(family == 4 ? AF_INET : AF_INET6, SOCK_DGRAM, 0);
    if (fd < 0) return -1;
    memset(&any, 0, sizeof any);
    any.family = (uint8_t)family;
    any.port   = port;
    len = tnp_to_sockaddr(&at, &any);
    if (family == 6) tnp_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
    tnp_option(fd, SOL_SOCKET, SO_RCVBUF, (int)p->opt.udp_buffer);
    tnp_option(fd, SOL_SOCKET, SO_SNDBUF, (int)p->opt.udp_buffer);
    if (bind(fd, (const struct sockaddr *)&at, len) == 0) return fd;
    close(fd);
    return -1;
}

static uint16_t tnp_udp_port(int fd)
{
    struct sockaddr_storage at;
    socklen_t               len = (socklen_t)sizeof at;
    tailnet_addr            addr;
    if (getsockname(fd, (struct sockaddr *)&at, &len) != 0) return 0;
    return tnp_from_sockaddr(&addr, &at) ? addr.port : 0;
}

/* Machines without IPv4 or without IPv6 get one socket. A port that the caller names has to
 * be free; one that we choose is chosen again when only one family has it. */
static tailnet_result tnp_udp_open(tailnet_posix *p)
{
    int turn, v4 = -1, v6 = -1;
    for (turn = 0; turn < 16; turn++) {
        v4 = tnp_udp_socket(p, 4, p->opt.udp_port);
        v6 = tnp_udp_socket(p, 6, v4 >= 0 ? tnp_udp_port(v4) : p->opt.udp_port);
        if (v4 < 0 || v6 >= 0 || p->opt.udp_port != 0) break;
        if (turn == 15 || errno != EADDRINUSE) break;
        close(v4);
    }
    if (v4 >= 0 && v6 < 0) v6 = tnp_udp_socket(p, 6, 0);
    (void)tnp_watch(p, &p->udp[0], v4, POLLIN);
    (void)tnp_watch(p, &p->udp[1], v6, POLLIN);
    if (v4 >= 0) p->udp_port[0] = tnp_udp_port(v4);
    if (v6 >= 0) p->udp_port[1] = tnp_udp_port(v6);
    p->batch = malloc(sizeof(tnp_batch));
    if (p->batch == NULL) return TAILNET_ERR_MEMORY;
    if ((v4 >= 0 || v6 >= 0) && (p->opt.udp_port == 0 || p->udp_port[0] == p->opt.udp_port ||
                                 p->udp_port[1] == p->opt.udp_port))
        return TAILNET_OK;
    tnp_error(p, "Cannot open", "a UDP socket on the wanted port", errno);
    return TAILNET_ERR_NETWORK;
}

static int tnp_io_udp_output(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    tailnet_posix          *p = (tailnet_posix *)user;
    int                     fd = p->udp[to->family == 6 ? 1 : 0].fd;
    struct sockaddr_storage at;
    socklen_t               len = tnp_to_sockaddr(&at, to);
    size_t                  i;
    if (fd < 0 || len == 0) return -1;
    for (i = 0; i < count; i++) {
        ssize_t n;
        do n = sendto(fd, pkts[i].base + pkts[i].off, pkts[i].len, MSG_NOSIGNAL,
                      (const struct sockaddr *)&at, len);
        while (n < 0 && errno == EINTR);
        if (n >= 0) continue;
        /* A full buffer is loss; no way there at all is what the library wants to know. */
        if (errno == ENETUNREACH || errno == EHOSTUNREACH || errno == EADDRNOTAVAIL ||
            errno == EAFNOSUPPORT || errno == EACCES || errno == EPERM || errno == EINVAL)
            return -1;
    }
    return 0;
}

/* Reads what is there, at most a run. Datagrams longer than their space are cut by the
 * kernel and could not be authentic: they come out with length 0. */
static size_t tnp_udp_receive(tailnet_posix *p, int fd)
{
    tnp_batch *b = (tnp_batch *)p->batch;
    size_t     i, n = 0;
    memset(b, 0, sizeof *b);
    for (i = 0; i < TAILNET_POSIX_RUN; i++) {
        b->part[i].iov_base = p->space[i];
        b->part[i].iov_len  = TAILNET_POSIX_SPACE;
        b->run[i].base      = p->space[i];
        b->run[i].cap       = TAILNET_POSIX_SPACE;
    }
#if defined(__linux__)
    for (i = 0; i < TAILNET_POSIX_RUN; i++) {
        b->msg[i].msg_hdr.msg_name    = &b->from[i];
        b->msg[i].msg_hdr.msg_namelen = (socklen_t)sizeof b->from[i];
        b->msg[i].msg_hdr.msg_iov     = &b->part[i];
        b->msg[i].msg_hdr.msg_iovlen  = 1;
    }
    {
        int got = recvmmsg(fd, b->msg, TAILNET_POSIX_RUN, MSG_DONTWAIT, NULL);
        n = got > 0 ? (size_t)got : 0;
    }
    for (i = 0; i < n; i++)
        b->run[i].len = (b->msg[i].msg_hdr.msg_flags & MSG_TRUNC) != 0 ? 0 : b->msg[i].msg_len;
#else
    while (n < TAILNET_POSIX_RUN) {
        socklen_t len = (socklen_t)sizeof b->from[n];
        ssize_t   got = recvfrom(fd, p->space[n], TAILNET_POSIX_SPACE, 0,
                                 (struct sockaddr *)&b->from[n], &len);
        if (got < 0) break;
        b->run[n].len = got == TAILNET_POSIX_SPACE ? 0 : (uint32_t)got;
        n++;
    }
#endif
    return n;
}

static void tnp_udp_ready(tailnet_posix *p, int fd)
{
    tnp_batch   *b     = (tnp_batch *)p->batch;
    size_t       count = tnp_udp_receive(p, fd), at = 0;
    tailnet_addr from;
    while (at < count) {
        size_t first = at++;
        if (b->run[first].len == 0) continue;
        while (at < count && b->run[at].len != 0 &&
               memcmp(&b->from[at], &b->from[first], sizeof b->from[at]) == 0)
            at++;
        if (tnp_from_sockaddr(&from, &b->from[first]))
            (void)tailnet_udp_input(p->node, &from, &b->run[first], at - first);
    }
}

/* Our addresses in the networks around us, which are not those of a tailnet. */
static bool tnp_is_tailnet(const tailnet_addr *a)
{
    static const uint8_t ula[6] = {0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0};
    if (a->family == 4) return a->ip[0] == 100 && (a->ip[1] & 0xc0u) == 64;
    return memcmp(a->ip, ula, sizeof ula) == 0;
}

static bool tnp_is_local(const tailnet_addr *a)
{
    return a->family == 6 && a->ip[0] == 0xfe && (a->ip[1] & 0xc0u) == 0x80;
}

static void tnp_network_tell(tailnet_posix *p)
{
    enum { MOST = 16 };
    tailnet_addr    addrs[MOST];
    tailnet_network network;
    struct ifaddrs *list = NULL, *i;
    int             pass;
    memset(&network, 0, sizeof network);
    if (getifaddrs(&list) != 0) list = NULL;
    /* Loopback addresses only where there is nothing else. */
    for (pass = 0; pass < 2 && network.addr_count == 0; pass++) {
        for (i = list; i != NULL && network.addr_count < MOST; i = i->ifa_next) {
            tailnet_addr *a = &addrs[network.addr_count];
            if (i->ifa_addr == NULL || (i->ifa_flags & IFF_UP) == 0) continue;
            if (((i->ifa_flags & IFF_LOOPBACK) != 0) != (pass == 1)) continue;
            if (!tnp_from_sockaddr(a, i->ifa_addr)) continue;
            if (tnp_is_tailnet(a) || tnp_is_local(a)) continue;
            a->port  = p->udp_port[a->family == 6 ? 1 : 0];
            a->scope = 0;
            if (a->port != 0) network.addr_count++;
        }
    }
    network.addrs = addrs;
    (void)tailnet_set_network(p->node, &network);
    if (list != NULL) freeifaddrs(list);
}

/* ======================================================================== *
 * >>p-tun - the TUN device, its addresses and routes. All by rtnetlink; the
 * kernel removes everything together with the device when we close it.
 * ======================================================================== */

#if defined(__linux__)

/* One request: header, fixed part, attributes; always a multiple of four bytes. */
typedef struct tnp_nl {
    size_t   len;
    uint32_t words[48];
} tnp_nl;

static void tnp_nl_bytes(tnp_nl *m, const void *data, size_t size)
{
    uint8_t *at = (uint8_t *)m->words + m->len;
    if (size + 3 > sizeof m->words - m->len) return;    /* cannot be: all sizes are ours */
    if (size != 0) memcpy(at, data, size);
    m->len += (size + 3) & ~(size_t)3;
}

static void tnp_nl_begin(tnp_nl *m, uint16_t type, unsigned flags, const void *body, size_t size)
{
    struct nlmsghdr h;
    memset(m, 0, sizeof *m);
    memset(&h, 0, sizeof h);
    h.nlmsg_type  = type;
    h.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
    tnp_nl_bytes(m, &h, sizeof h);
    tnp_nl_bytes(m, body, size);
}

static void tnp_nl_attr(tnp_nl *m, uint16_t type, const void *data, size_t size)
{
    struct rtattr a;
    a.rta_type = type;
    a.rta_len  = (uint16_t)(sizeof a + size);
    tnp_nl_bytes(m, &a, sizeof a);
    tnp_nl_bytes(m, data, size);
}

/* Sends it and waits for the kernel's word, which is there at once. 0 or errno. */
static int tnp_nl_do(tnp_nl *m)
{
    uint32_t        reply[256];
    struct nlmsghdr h;
    int             trouble = EIO;
    ssize_t         n;
    int             fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0) return errno;
    memcpy(&h, m->words, sizeof h);
    h.nlmsg_len = (uint32_t)m->len;
    memcpy(m->words, &h, sizeof h);
    if (send(fd, m->words, m->len, 0) != (ssize_t)m->len) {
        trouble = errno;
    } else {
        do n = recv(fd, reply, sizeof reply, 0);
        while (n < 0 && errno == EINTR);
        memcpy(&h, reply, sizeof h);
        if (n >= (ssize_t)(sizeof h + sizeof trouble) && h.nlmsg_type == NLMSG_ERROR) {
            memcpy(&trouble, (const uint8_t *)reply + sizeof h, sizeof trouble);
            trouble = -trouble;
        }
    }
    close(fd);
    return trouble;
}

static int tnp_tun_up(const tailnet_posix *p)
{
    struct ifinfomsg body;
    uint32_t         mtu = p->mtu;
    tnp_nl           m;
    memset(&body, 0, sizeof body);
    body.ifi_index  = p->tun_index;
    body.ifi_flags  = IFF_UP;
    body.ifi_change = IFF_UP;
    tnp_nl_begin(&m, RTM_NEWLINK, 0, &body, sizeof body);
    tnp_nl_attr(&m, IFLA_MTU, &mtu, sizeof mtu);
    return tnp_nl_do(&m);
}

static int tnp_tun_address(const tailnet_posix *p, const tailnet_addr *a, bool add)
{
    struct ifaddrmsg body;
    size_t           len = a->family == 4 ? 4u : 16u;
    tnp_nl           m;
    memset(&body, 0, sizeof body);
    body.ifa_family    = a->family == 4 ? AF_INET : AF_INET6;
    body.ifa_prefixlen = (uint8_t)(len * 8);
    body.ifa_flags     = a->family == 4 ? 0 : IFA_F_NODAD;  /* nobody else can have it */
    body.ifa_index     = (unsigned)p->tun_index;
    tnp_nl_begin(&m, add ? RTM_NEWADDR : RTM_DELADDR, add ? NLM_F_CREATE | NLM_F_REPLACE : 0u,
                 &body, sizeof body);
    tnp_nl_attr(&m, IFA_LOCAL, a->ip, len);
    tnp_nl_attr(&m, IFA_ADDRESS, a->ip, len);
    return tnp_nl_do(&m);
}

/* A route that is there already, such as the local network's, is not replaced. */
static int tnp_tun_route(const tailnet_posix *p, const tailnet_prefix *r, bool add)
{
    struct rtmsg body;
    uint32_t     index = (uint32_t)p->tun_index;
    tnp_nl       m;
    memset(&body, 0, sizeof body);
    body.rtm_family   = r->family == 4 ? AF_INET : AF_INET6;
    body.rtm_dst_len  = r->bits;
    body.rtm_table    = RT_TABLE_MAIN;
    body.rtm_protocol = RTPROT_STATIC;
    body.rtm_scope    = r->family == 4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE;
    body.rtm_type     = RTN_UNICAST;
    tnp_nl_begin(&m, add ? RTM_NEWROUTE : RTM_DELROUTE, add ? NLM_F_CREATE | NLM_F_EXCL : 0u,
                 &body, sizeof body);
    tnp_nl_attr(&m, RTA_DST, r->ip, r->family == 4 ? 4u : 16u);
    tnp_nl_attr(&m, RTA_OIF, &index, sizeof index);
    return tnp_nl_do(&m);
}

static tailnet_result tnp_tun_open(tailnet_posix *p)
{
    struct ifreq ifr;
    int          number, fd;
    memset(&ifr, 0, sizeof ifr);
    if (strlen(p->opt.tun) >= sizeof ifr.ifr_name) {
        tnp_error(p, "The name of the TUN device is too long:", p->opt.tun, 0);
        return TAILNET_ERR_ARGUMENT;
    }
    memcpy(ifr.ifr_name, p->opt.tun, strlen(p->opt.tun));
    ifr.ifr_flags = IFF_TUN | IFF_NO_PI;
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr) != 0) {
        number = errno;
        if (fd >= 0) close(fd);
        tnp_error(p, "Cannot make the TUN device (it needs root or CAP_NET_ADMIN):", p->opt.tun,
                  number);
        return TAILNET_ERR_UNSUPPORTED;
    }
    if (!tnp_watch(p, &p->tun, fd, POLLIN)) return TAILNET_ERR_NETWORK;
    memcpy(p->tun_name, ifr.ifr_name, sizeof p->tun_name);
    p->tun_name[sizeof p->tun_name - 1] = '\0';
    p->tun_index = (int)if_nametoindex(p->tun_name);
    number       = tnp_tun_up(p);
    if (number == 0) return TAILNET_OK;
    tnp_error(p, "Cannot set up the TUN device", p->tun_name, number);
    return TAILNET_ERR_NETWORK;
}

#else /* not Linux */

static int tnp_tun_address(const tailnet_posix *p, const tailnet_addr *a, bool add)
{
    (void)p; (void)a; (void)add;
    return ENOSYS;
}

static int tnp_tun_route(const tailnet_posix *p, const tailnet_prefix *r, bool add)
{
    (void)p; (void)r; (void)add;
    return ENOSYS;
}

static tailnet_result tnp_tun_open(tailnet_posix *p)
{
    tnp_error(p, "TUN devices are only supported on Linux, not", p->opt.tun, 0);
    return TAILNET_ERR_UNSUPPORTED;
}

#endif

static void tnp_log(tailnet_posix *p, const char *what, const char *which, int number)
{
    char text[200];
    if (p->opt.log == NULL || number == 0) return;
    snprintf(text, sizeof text, "%s %.80s: %s", what, which, strerror(number));
    p->opt.log(p->opt.user, 1, 0, text);
}

/* Our addresses changed: the device gets the new ones. */
static void tnp_tun_self(tailnet_posix *p)
{
    tailnet_self self;
    tailnet_addr want[2];
    char         text[64];
    int          i;
    if (p->tun.fd < 0 || !tailnet_get_self(p->node, &self)) return;
    want[0] = self.ip4;
    want[1] = self.ip6;
    for (i = 0; i < 2; i++) {
        if (memcmp(want[i].ip, p->tun_ip[i].ip, 16) == 0 &&
            want[i].family == p->tun_ip[i].family)
            continue;
        want[i].port = 0;
        tailnet_posix_addr_text(text, sizeof text, &want[i]);
        if (p->tun_ip[i].family != 0) (void)tnp_tun_address(p, &p->tun_ip[i], false);
        if (want[i].family != 0) tnp_log(p, "address", text, tnp_tun_address(p, &want[i], true));
        p->tun_ip[i] = want[i];
    }
}

static bool tnp_prefix_same(const tailnet_prefix *a, const tailnet_prefix *b)
{
    return a->family == b->family && a->bits == b->bits && memcmp(a->ip, b->ip, 16) == 0;
}

static bool tnp_route_known(const tailnet_posix *p, const tailnet_prefix *r)
{
    size_t i;
    for (i = 0; i < p->route_count; i++)
        if (tnp_prefix_same(&p->route[i], r)) return true;
    return false;
}

/* The node's list of routes changed: what is gone goes, what is there comes. */
static void tnp_tun_routes(tailnet_posix *p)
{
    tailnet_route r;
    size_t        i, k;
    bool          there;
    int           number;
    if (p->tun.fd < 0) return;
    for (i = 0; i < p->route_count;) {
        for (k = 0, there = false; !there && tailnet_get_route(p->node, k, &r); k++)
            there = tnp_prefix_same(&r.prefix, &p->route[i]);
        if (there) {
            i++;
            continue;
        }
        (void)tnp_tun_route(p, &p->route[i], false);
        p->route[i] = p->route[--p->route_count];
    }
    for (k = 0; p->route_count < TAILNET_POSIX_ROUTES && tailnet_get_route(p->node, k, &r); k++) {
        if (r.prefix.bits == 0 || tnp_route_known(p, &r.prefix)) continue;
        number = tnp_tun_route(p, &r.prefix, true);
        if (number == 0) p->route[p->route_count++] = r.prefix;
        else if (number != EEXIST) tnp_log(p, "route through", p->tun_name, number);
    }
}

/* Packets of the host's programs. When the library's way out is full, the one in hand waits
 * and the device is left alone: its queue fills, and TCP behind it slows down. */
static void tnp_tun_ready(tailnet_posix *p)
{
    unsigned turn;
    for (turn = 0; turn < p->opt.turn_packets && p->tun_held == 0; turn++) {
        ssize_t n = read(p->tun.fd, p->tun_packet, (size_t)TNP_PACKET_MOST);
        if (n <= 0) return;
        if (tnp_offer(p, p->tun_packet, (size_t)n) == TAILNET_ERR_AGAIN) {
            p->tun_held = (uint32_t)n;
            tnp_want(p, &p->tun, 0);
        }
    }
}

/* What waited is offered again: own packets, then the one from TUN. */
static void tnp_held_retry(tailnet_posix *p)
{
    tnp_outbox_flush(p);
    if (p->tun_held == 0 || tnp_offer(p, p->tun_packet, p->tun_held) == TAILNET_ERR_AGAIN) return;
    p->tun_held = 0;
    tnp_want(p, &p->tun, POLLIN);
}

static void tnp_io_ip_output(void *user, tailnet_buf *pkts, size_t count)
{
    tailnet_posix *p = (tailnet_posix *)user;
    size_t         i;
    p->inside = true;
    for (i = 0; i < count; i++) {
        const uint8_t *packet = pkts[i].base + pkts[i].off;
        /* A packet that the device does not take is lost, as on any network. */
        if (p->tun.fd >= 0) (void)!write(p->tun.fd, packet, pkts[i].len);
        else tnp_packet_in(p, packet, pkts[i].len);
    }
    p->inside = false;
}

/* ======================================================================== *
 * >>p-turn - one turn of the loop.
 * ======================================================================== */

static void tnp_ready(tailnet_posix *p, int fd, short revents)
{
    size_t i, k;
    char   sink[64];
    if (fd < 0) return;
    if (fd == p->wake.fd) (void)!read(fd, sink, sizeof sink);
    else if (fd == p->tun.fd) tnp_tun_ready(p);
    else if (fd == p->udp[0].fd || fd == p->udp[1].fd) tnp_udp_ready(p, fd);
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++)
        if (p->lookup[i].watch.fd == fd) {
            tnp_lookup_ready(p, &p->lookup[i]);
            return;
        }
    for (i = 0; i < TAILNET_POSIX_LINKS; i++)
        for (k = 0; k < TAILNET_POSIX_TRIES; k++)
            if (p->slot[i].tries[k].fd == fd) {
                tnp_tcp_ready(p, &p->slot[i], k, revents);
                return;
            }
}

/* Writes the state file. A failure is tried again in ten seconds. */
static void tnp_save(tailnet_posix *p)
{
    uint8_t blob[TAILNET_STATE_SIZE];
    size_t  len;
    p->unsaved = false;
    if (p->opt.state_file == NULL) return;
    len = tailnet_export_state(p->node, blob, sizeof blob);
    if (len == 0 || len > sizeof blob) return;
    p->save_errno = tailnet_posix_write_file(p->opt.state_file, blob, len);
    tnp_wipe(blob, sizeof blob);
    p->saves += p->save_errno == 0;
    if (p->save_errno == 0) return;
    tnp_log(p, "cannot save", p->opt.state_file, p->save_errno);
    p->unsaved       = true;
    p->save_again_ms = tnp_now() + 10000;
}

TAILNET_API void tailnet_posix_handle(tailnet_posix *p, const struct pollfd *fds, size_t size)
{
    uint64_t now;
    uint32_t events;
    size_t   i;
    for (i = 0; i < size; i++)
        if (fds[i].revents != 0) tnp_ready(p, fds[i].fd, fds[i].revents);
    now = tnp_now();
    tnp_tcp_timers(p, now);
    p->fed = false;
    events = tailnet_poll(p->node);
    tnp_tcp_later(p);
    tnp_held_retry(p);
    if ((events & TAILNET_EVENT_SAVE) != 0 || (p->unsaved && now >= p->save_again_ms))
        tnp_save(p);
    if ((events & (TAILNET_EVENT_SELF | TAILNET_EVENT_STATE)) != 0) tnp_tun_self(p);
    if ((events & (TAILNET_EVENT_ROUTES | TAILNET_EVENT_SELF)) != 0) tnp_tun_routes(p);
    if (events != 0 && p->opt.on_news != NULL) p->opt.on_news(p->opt.user, p, events);
}

TAILNET_API uint32_t tailnet_posix_wait_ms(tailnet_posix *p, uint32_t max_ms)
{
    uint64_t now  = tnp_now(), at = tnp_tcp_deadline(p);
    uint32_t wait = p->fed ? 0 : tailnet_wait_ms(p->node, max_ms);
    size_t   i;
    if (p->unsaved && p->save_again_ms < at) at = p->save_again_ms;
    if (at <= now) return 0;
    if (at - now < wait) wait = (uint32_t)(at - now);
    /* Space in a link is told by its socket; these are for links that are not there yet. */
    if ((p->tun_held != 0 || p->out_count != 0) && wait > 5) wait = 5;
    for (i = 0; i < TAILNET_POSIX_LINKS; i++)
        if (p->slot[i].open && p->slot[i].in_len != 0 && wait > 10) wait = 10;
    return wait;
}

/* ======================================================================== *
 * >>p-life - open, run, leave, close.
 * ======================================================================== */

static uint64_t tnp_io_now(void *user)
{
    (void)user;
    return tnp_now();
}

/* A clock that stands before 2024 has not been set: better none than a wrong one. */
static uint64_t tnp_io_unix(void *user)
{
    struct timespec ts;
    (void)user;
    if (clock_gettime(CLOCK_REALTIME, &ts) != 0 || ts.tv_sec < 1704067200) return 0;
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

static int tnp_io_random(void *user, void *dst, size_t size)
{
    uint8_t *at = (uint8_t *)dst;
    (void)user;
    while (size > 0) {
        size_t part = size < 256 ? size : 256;
#if defined(__linux__)
        ssize_t n = getrandom(at, part, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        part = (size_t)n;
#else
        if (getentropy(at, part) != 0) return -1;
#endif
        at += part;
        size -= part;
    }
    return 0;
}

static void tnp_io_log(void *user, int level, uint32_t code, const char *text)
{
    tailnet_posix *p = (tailnet_posix *)user;
    p->opt.log(p->opt.user, level, code, text);
}

static void tnp_defaults(tailnet_posix_options *o)
{
    if (o->tcp_send_buffer == 0) o->tcp_send_buffer = 262144;
    if (o->tcp_not_sent == 0) o->tcp_not_sent = 65536;
    if (o->udp_buffer == 0) o->udp_buffer = 1048576;
    if (o->turn_packets == 0) o->turn_packets = 64;
    if (o->hold_ms == 0) o->hold_ms = 100;
    if (o->race_ms == 0) o->race_ms = 250;
    if (o->lookup_ms == 0) o->lookup_ms = 10000;
}

/* Everything small is cleared; of the large arrays only what is read before it is written. */
static void tnp_clear(tailnet_posix *p, const tailnet_posix_options *options)
{
    size_t i, k;
    memset(p, 0, offsetof(tailnet_posix, slot));
    if (options != NULL) p->opt = *options;
    tnp_defaults(&p->opt);
    p->wake.fd = p->wake_in = p->udp[0].fd = p->udp[1].fd = p->tun.fd = -1;
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++) p->lookup[i].watch.fd = -1;
    for (i = 0; i < TAILNET_POSIX_LINKS; i++) {
        memset(&p->slot[i], 0, offsetof(tailnet_posix_slot, in));
        for (k = 0; k < TAILNET_POSIX_TRIES; k++) p->slot[i].tries[k].fd = -1;
    }
}

static tailnet_result tnp_state_open(tailnet_posix *p, tailnet_desc *desc)
{
    int number;
    if (p->opt.state_file == NULL) return TAILNET_OK;
    number = tailnet_posix_read_file(p->opt.state_file, p->state, sizeof p->state, &p->state_len);
    if (number == ENOENT) return TAILNET_OK;
    if (number == EFBIG && p->opt.replace_damaged_state) return TAILNET_OK;
    if (number == EFBIG) tnp_error(p, "This is no state file of ours:", p->opt.state_file, 0);
    else if (number != 0) tnp_error(p, "Cannot read the state file", p->opt.state_file, number);
    if (number != 0) return TAILNET_ERR_MALFORMED;
    if (p->state_len != 0) {
        desc->saved_state[0].data = p->state;
        desc->saved_state[0].size = p->state_len;
    }
    return TAILNET_OK;
}

static void tnp_desc_fill(tailnet_posix *p, tailnet_desc *desc)
{
    desc->io.user       = p;
    desc->io.now_ms     = tnp_io_now;
    desc->io.unix_ms    = tnp_io_unix;
    desc->io.random     = tnp_io_random;
    desc->io.udp_output = tnp_io_udp_output;
    desc->io.ip_output  = tnp_io_ip_output;
    desc->io.tcp_open   = tnp_io_tcp_open;
    desc->io.tcp_output = tnp_io_tcp_output;
    desc->io.tcp_close  = tnp_io_tcp_close;
    desc->io.resolve    = tnp_io_resolve;
    if (p->opt.log != NULL) desc->io.log = tnp_io_log;
    if (desc->trust_anchors == NULL && p->ca.count != 0) {
        desc->trust_anchors      = p->ca.anchors;
        desc->trust_anchor_count = p->ca.count;
    }
    if (desc->max_tls < 2) desc->max_tls = 2;
    if (desc->max_links < desc->max_tls) desc->max_links = desc->max_tls;
    if (desc->control_url == NULL || strncmp(desc->control_url, "http://", 7) != 0)
        desc->control_tls = true;
}

static bool tnp_wake_open(tailnet_posix *p)
{
    int pair[2];
    if (pipe(pair) != 0) return false;
    p->wake_in = pair[1];
    if (!tnp_watch(p, &p->wake, pair[0], POLLIN)) return false;
    return tnp_prepare(pair[1]);
}

/* The node itself. A state that it cannot read is never written over unless told so. */
static tailnet_result tnp_node_open(tailnet_posix *p, tailnet_desc *desc)
{
    tailnet_result result;
    if (desc->memory == NULL) {
        desc->memory_size = tailnet_memory_needed(desc);
        desc->memory = p->node_memory = malloc(desc->memory_size);
        if (desc->memory == NULL) return TAILNET_ERR_MEMORY;
    }
    result = tailnet_init(&p->node, desc);
    if (result == TAILNET_ERR_MALFORMED && p->opt.replace_damaged_state) {
        memset(desc->saved_state, 0, sizeof desc->saved_state);
        result = tailnet_init(&p->node, desc);
    }
    if (result == TAILNET_OK) return result;
    p->node = NULL;
    if (result == TAILNET_ERR_MALFORMED && p->state_len != 0)
        tnp_error(p, "The state file is damaged; restore it, or delete it and join anew:",
                  p->opt.state_file, 0);
    else if (result == TAILNET_ERR_UNSUPPORTED && p->state_len != 0)
        tnp_error(p, "The state file was written by a newer version:", p->opt.state_file, 0);
    else
        tnp_error(p, "The node cannot begin:", tailnet_result_text(result), 0);
    return result;
}

static tailnet_result tnp_open_all(tailnet_posix *p, tailnet_desc *desc)
{
    tailnet_result result = TAILNET_OK;
    p->mtu = desc->mtu != 0 ? desc->mtu : 1280;
    if (p->mtu > 1900 || desc->max_links > TAILNET_POSIX_LINKS) {
        tnp_error(p, "The MTU or the number of links is", "more than this platform serves", 0);
        return TAILNET_ERR_ARGUMENT;
    }
    if (!tnp_wake_open(p)) result = TAILNET_ERR_NETWORK;
    if (result == TAILNET_OK) result = tnp_anchors_open(p);
    if (result == TAILNET_OK) result = tnp_state_open(p, desc);
    if (result == TAILNET_OK && !desc->prefs.relay_only) result = tnp_udp_open(p);
    if (result == TAILNET_OK && p->opt.tun != NULL) result = tnp_tun_open(p);
    if (result != TAILNET_OK) return result;
    tnp_desc_fill(p, desc);
    return tnp_node_open(p, desc);
}

TAILNET_API void tailnet_posix_close(tailnet_posix *p)
{
    size_t i;
    if (p->node != NULL) {
        if (p->unsaved) tnp_save(p);
        tailnet_wipe(p->node);
        p->node = NULL;
    }
    for (i = 0; i < TAILNET_POSIX_LINKS; i++) tnp_tcp_clear(p, &p->slot[i]);
    for (i = 0; i < TAILNET_POSIX_LOOKUPS; i++) tnp_drop(p, &p->lookup[i].watch);
    tnp_drop(p, &p->udp[0]);
    tnp_drop(p, &p->udp[1]);
    tnp_drop(p, &p->tun);
    tnp_drop(p, &p->wake);
    if (p->wake_in >= 0) close(p->wake_in);
    p->wake_in = -1;
    free(p->node_memory);
    free(p->batch);
    p->node_memory = p->batch = NULL;
    tailnet_posix_anchors_free(&p->ca);
    tnp_wipe(p->state, sizeof p->state);
}

TAILNET_API tailnet_result tailnet_posix_open(tailnet_posix *p, tailnet_desc *desc,
                                              const tailnet_posix_options *options)
{
    tailnet_result result;
    tnp_clear(p, options);
    result = tnp_open_all(p, desc);
    if (result != TAILNET_OK) {
        tnp_error(p, "Cannot begin:", tailnet_result_text(result), 0);
        tailnet_posix_close(p);
        return result;
    }
    tnp_network_tell(p);
    return TAILNET_OK;
}

TAILNET_API void tailnet_posix_stop(tailnet_posix *p)
{
    int before = errno;                             /* a signal handler must keep it */
    p->stop = 1;
    (void)!write(p->wake_in, "", 1);
    errno = before;
}

static void tnp_turn(tailnet_posix *p, uint32_t max_ms)
{
    struct pollfd fds[TAILNET_POSIX_FDS];
    size_t        n    = tailnet_posix_fds(p, fds, TAILNET_POSIX_FDS);
    int           wait = (int)tailnet_posix_wait_ms(p, max_ms);
    if (poll(fds, (nfds_t)n, wait) <= 0) n = 0;     /* EINTR, or only time has passed */
    tailnet_posix_handle(p, fds, n);
}

TAILNET_API tailnet_result tailnet_posix_run(tailnet_posix *p)
{
    tailnet_problem problem;
    while (p->stop == 0) {
        if (tailnet_get_state(p->node) == TAILNET_STATE_FAILED) {
            if (!tailnet_get_problem(p->node, &problem)) return TAILNET_ERR_CONTROL;
            return problem.result != TAILNET_OK ? problem.result : TAILNET_ERR_CONTROL;
        }
        tnp_turn(p, 60000);
    }
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_posix_leave(tailnet_posix *p, bool logout, uint32_t max_ms)
{
    uint64_t       end    = tnp_now() + max_ms;
    tailnet_result result = logout ? tailnet_logout(p->node) : tailnet_down(p->node);
    while (result == TAILNET_OK && tailnet_get_state(p->node) != TAILNET_STATE_DOWN) {
        uint64_t now = tnp_now();
        if (now >= end) result = TAILNET_ERR_TIMEOUT;
        else tnp_turn(p, (uint32_t)(end - now));
    }
    if (p->unsaved) tnp_save(p);
    return result;
}

#endif /* TAILNET_PLATFORM_POSIX_IMPLEMENTATION_DONE */
#endif /* TAILNET_PLATFORM_POSIX_IMPLEMENTATION */
