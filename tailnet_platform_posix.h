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
 *   >>p-network    our addresses, the way out, and when they change
 *   >>p-tun        the TUN device, its addresses and routes
 *   >>p-long       long packets of TUN, cut and joined
 *   >>p-flow       packets from the device to the library and back
 *   >>p-crypt      the cipher in vectors
 *   >>p-turn       one turn of the loop
 *   >>p-life       open, run, leave, close
 *
 * What to know
 *   - One tailnet_posix is one node. It lies in the caller's memory; there are no globals.
 *   - malloc is called in tailnet_posix_open only: once for the trust anchors, and once for
 *     the node when desc.memory is NULL. A name look-up starts a thread that calls
 *     getaddrinfo, and a look at a changed network calls getifaddrs; these two use the heap as
 *     they like. Nothing else does.
 *   - Any event loop: tailnet_posix_fds and tailnet_posix_wait_ms say what to wait for,
 *     tailnet_posix_handle takes what is ready. Loops that want to be told of changes
 *     (epoll, libuv) set options.on_fd. tailnet_posix_run is the loop for everybody else.
 *   - The network is watched: rtnetlink tells of changes on Linux, elsewhere we look every few
 *     seconds. What the system does not tell, tailnet_posix_network_changed does.
 *   - Long sends and reads, long packets of TUN, and the cipher in vectors are used where the
 *     system has them, asked at run time; options.no_offload does without. Define
 *     TAILNET_POSIX_NO_VECTORS to leave the cipher out.
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

/* Packets from TUN, or datagrams, handed on in one go. */
#ifndef TAILNET_POSIX_RUN
#  define TAILNET_POSIX_RUN 64
#endif

/* Trust anchors taken from one file. */
#ifndef TAILNET_POSIX_ANCHORS
#  define TAILNET_POSIX_ANCHORS 512
#endif

enum {
    TAILNET_POSIX_UPLINKS = 2,      /* devices with UDP sockets of their own   */
    TAILNET_POSIX_SOCKETS = 2 + 2 * TAILNET_POSIX_UPLINKS,
    TAILNET_POSIX_KNOWN   = 64,     /* senders whose uplink is remembered      */
    TAILNET_POSIX_WAITS   = 16,     /* destinations that packets wait for      */
    TAILNET_POSIX_SPACE   = 2048,   /* bytes for one packet with its room      */
    TAILNET_POSIX_STREAM  = 16640,  /* bytes of a stream that may wait         */
    TAILNET_POSIX_TRIES   = 3,      /* connections raced for one link          */
    TAILNET_POSIX_ADDRS   = 8,      /* addresses kept of one name              */
    TAILNET_POSIX_OWN     = 16,     /* own addresses told to the node          */
    /* As many as tailnet_posix_fds ever returns. */
    TAILNET_POSIX_FDS     = TAILNET_POSIX_LINKS * TAILNET_POSIX_TRIES + TAILNET_POSIX_LOOKUPS + 3 +
                            TAILNET_POSIX_SOCKETS
};

typedef struct tailnet_posix tailnet_posix;

/* What the caller wants. Zero every field first: zero means "the default". */
typedef struct tailnet_posix_options {
    void       *user;               /* first argument of the callbacks         */
    const char *ca_file;            /* PEM; NULL: where the system keeps them  */
    const char *state_file;         /* NULL: the state is not kept             */
    const char *tun;                /* name of the device; NULL: none          */
    uint16_t    udp_port;           /* 0: any                                  */
    const char *uplink[TAILNET_POSIX_UPLINKS]; /* devices with a way of their own to peers, */
                                    /*   beside the one that the routes of the system name */
    bool        replace_damaged_state; /* begin anew; the old identity is lost */
    bool        no_echo;            /* do not answer pings (without TUN)       */
    bool        no_offload;         /* no runs in one system call, no vectors  */

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

    uint32_t tcp_send_buffer;       /* bytes the kernel may hold of a relay stream at most, */
                                    /*   so that back-pressure is felt; default 262144.    */
                                    /*   Linux: less while the relay is near               */
    uint32_t tcp_not_sent;          /* of these not yet on the wire; default 65536         */
    uint32_t tcp_rate;              /* bytes a second per connection at most; 0: any       */
    uint32_t udp_buffer;            /* bytes of each datagram socket; default 4194304      */
    uint16_t turn_packets;          /* packets from TUN in one turn; default 64            */
    uint16_t hold_ms;               /* a packet waits that long for a link that is full or */
                                    /*   not there yet, then none to the same destination  */
                                    /*   for ten times as long, unless one is taken; 250   */
    uint16_t race_ms;               /* before the next address is tried as well; 250       */
    uint16_t lookup_ms;             /* a name look-up may take; default 10000              */
    uint16_t settle_ms;             /* from the first sign of another network to the look  */
                                    /*   at it, because signs come in swarms; 100          */
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
    uint64_t            fit_at_ms;  /* when the kernel's share is looked at again */
    uint64_t            trip_end_ms; /* how long trip_us holds                 */
    uint32_t            trip_us;    /* the shortest round trip seen            */
    size_t              in_at, in_len;
    uint8_t             in[TAILNET_POSIX_STREAM];
} tailnet_posix_slot;

/* What stands in front of a packet from and to TUN (struct virtio_net_hdr): where a sum has to
 * be finished, and at which size TCP data has to be cut. Numbers are the machine's own. */
typedef struct tailnet_posix_vnet {
    uint8_t  flags, kind;
    uint16_t head, size, sum_start, sum_offset;
} tailnet_posix_vnet;

/* Through which uplink somebody was heard; 0: as the system routes. */
typedef struct tailnet_posix_known {
    tailnet_addr from;
    uint64_t     heard_ms;
    int          uplink;
} tailnet_posix_known;

/* A long packet on its way to be cut: count pieces, next is the one to come. */
typedef struct tailnet_posix_cut {
    size_t size, tcp, head, step, next, count;
} tailnet_posix_cut;

/* Since when packets to one destination find no way; 0: they do. */
typedef struct tailnet_posix_wait {
    uint32_t key;
    uint64_t since_ms;
} tailnet_posix_wait;

/* The network around us, as we last told it. */
typedef struct tailnet_posix_network {
    tailnet_addr addrs[TAILNET_POSIX_OWN];
    size_t       count;
    bool         down;              /* not even a loopback address             */
    tailnet_addr gateway;           /* of IPv4                                 */
    tailnet_addr source[2];         /* of packets to the Internet: IPv4, IPv6  */
    uint32_t     device[2];         /* through which they leave                */
} tailnet_posix_network;

struct tailnet_posix {
    tailnet_node         *node;
    char                  error[256];   /* why open failed: a sentence         */
    int                   save_errno;   /* why the last save failed, 0: it did not */
    uint32_t              saves;        /* how often the state was saved       */
    uint32_t              lookups;      /* threads started for names           */
    bool                  heap_in_use;  /* by the system's functions, for a moment */
    uint64_t              held, dropped;/* own packets that waited, that were lost */
    char                  tun_name[16];
    uint16_t              udp_port[TAILNET_POSIX_SOCKETS]; /* of IPv4, of IPv6, the same of */
                                        /*   each uplink; 0: no such socket */
    uint32_t              networks;     /* how often the network was another   */
    uint32_t              rebinds;      /* how often the UDP sockets were made anew */
    tailnet_posix_network network;

    tailnet_posix_options opt;
    tailnet_posix_ca      ca;
    void                 *node_memory;
    uint8_t               state[TAILNET_STATE_SIZE];
    size_t                state_len;
    uint64_t              save_again_ms;
    uint32_t              mtu;
    volatile sig_atomic_t stop;
    bool                  inside, fed, unsaved;
    tailnet_posix_watch   wake, udp[TAILNET_POSIX_SOCKETS], tun, news;
    tailnet_posix_known   known[TAILNET_POSIX_KNOWN];
    volatile sig_atomic_t network_sign; /* somebody says: another network      */
    uint64_t              network_at_ms, asleep_ms, rebind_at_ms;
    bool                  rebind_wanted, udp_full, udp_gro[TAILNET_POSIX_SOCKETS];
    int                   udp_last;     /* socket of the last send             */
    int                   udp_room[TAILNET_POSIX_SOCKETS]; /* bytes of its queue */
    uint64_t              gso_at_ms;    /* when long sends may be tried (again) */
    uint64_t              udp_runs;     /* calls of udp_output                 */
    bool                  in_runs;      /* TUN is read in runs                 */
    int                   wake_in;
    tailnet_posix_lookup  lookup[TAILNET_POSIX_LOOKUPS];
    void                 *batch;        /* for datagrams that come in          */
    tailnet_addr          tun_ip[2];
    int                   tun_index;
    tailnet_prefix        route[TAILNET_POSIX_ROUTES];
    size_t                route_count;
    tailnet_posix_wait    waits[TAILNET_POSIX_WAITS];
    bool                  vnet;         /* TUN has headers for long packets    */
    tailnet_posix_cut     cut;          /* of tun_in                           */
    tailnet_buf           run[TAILNET_POSIX_RUN]; /* packets from TUN, in space */
    size_t                run_at, run_count;      /* those that wait           */
    size_t                out_first, out_count;
    uint16_t              out_len[TAILNET_POSIX_OUTBOX];
    /* From here on large, and never cleared as a whole: pages that nobody needs stay free. */
    tailnet_posix_slot    slot[TAILNET_POSIX_LINKS];
    uint8_t               tun_in[65536];
    uint8_t               one[TAILNET_POSIX_SPACE];
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

/* Look at the network again, and take it for another one whatever it looks like. It is done
 * in the next turn. May be called from a signal handler or another thread. */
TAILNET_API void tailnet_posix_network_changed(tailnet_posix *p);

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
#include <netinet/udp.h>
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
#  include <linux/sockios.h>
#  include <sys/random.h>
#  if defined(__GLIBC__) && !defined(__USE_GNU)
#    error "include tailnet_platform_posix.h before other headers, or define _GNU_SOURCE"
#  endif
#endif

#if (defined(__GNUC__) || defined(__clang__)) && !defined(__PCC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wconversion"
#  pragma GCC diagnostic ignored "-Wsign-conversion"
#  pragma GCC diagnostic ignored "-Wcast-qual"
#  pragma GCC diagnostic ignored "-Wshadow"
#  pragma GCC diagnostic ignored "-Wundef"
#endif
#include <bearssl.h>
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__PCC__)
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

/* The Internet checksum (RFC 1071) in parts: each but the last of even length. The sum does not
 * mind the order of bytes, so it is made with the machine's own numbers and turned once. */
static uint32_t tnp_sum(uint32_t sum, const void *data, size_t size)
{
    static const union { uint16_t number; uint8_t bytes[2]; } order = {1};
    const uint8_t *b     = (const uint8_t *)data;
    uint64_t       total = 0;
    uint32_t       four[4];
    for (; size >= 16; size -= 16, b += 16) {
        memcpy(four, b, 16);
        total += (uint64_t)four[0] + four[1] + four[2] + four[3];
    }
    for (; size >= 2; size -= 2, b += 2) {
        uint16_t two;
        memcpy(&two, b, 2);
        total += two;
    }
    total = (total & 0xffffffffu) + (total >> 32);
    while (total >> 16 != 0) total = (total & 0xffffu) + (total >> 16);
    if (order.bytes[0] == 1) total = (total >> 8) | (total & 0xffu) << 8;
    if (size != 0) total += (uint32_t)b[0] << 8;
    sum += (uint32_t)total;
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

static void tnp_log(tailnet_posix *p, const char *what, const char *which, int number)
{
    char text[200];
    if (p->opt.log == NULL || number == 0) return;
    snprintf(text, sizeof text, "%s %.80s: %s", what, which, strerror(number));
    p->opt.log(p->opt.user, 1, 0, text);
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

/* BearSSL's decoder must not be fed after an error: it would go on from the middle of what
 * failed, on a stack that no longer fits. */
static void tnp_pem_bytes(void *user, const void *data, size_t size)
{
    br_x509_decoder_context *x509 = &((tnp_pem *)user)->x509;
    if (x509->err == 0) br_x509_decoder_push(x509, data, size);
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

/* A number for the address that a packet goes to. */
static uint32_t tnp_packet_to(const uint8_t *packet, size_t size)
{
    size_t   at = packet[0] >> 4 == 4 ? 16u : 24u, end = packet[0] >> 4 == 4 ? 20u : 40u;
    uint32_t key = 2166136261u;             /* FNV-1a */
    for (; at < end && at < size; at++) key = (key ^ packet[at]) * 16777619u;
    return key;
}

/* One packet to the library. AGAIN: nothing has taken it, offer it again later. The library
 * encrypts in place, so it gets a copy, and a packet that has to wait is still whole.
 *
 * A packet that waits holds up the packets to everybody else. So those to a destination whose
 * relay does not answer wait for hold_ms, and then not for ten times as long unless one of them
 * is taken: it costs the others a tenth of the time at most. */
static tailnet_result tnp_offer(tailnet_posix *p, const uint8_t *packet, size_t size)
{
    uint64_t            now = tnp_now();
    uint32_t            key = tnp_packet_to(packet, size);
    tailnet_posix_wait *w   = &p->waits[key % TAILNET_POSIX_WAITS];
    tailnet_buf         buf;
    tailnet_result      result;
    memset(&buf, 0, sizeof buf);
    buf.base = p->one;
    buf.cap  = TAILNET_POSIX_SPACE;
    buf.off  = TAILNET_HEADROOM;
    buf.len  = (uint32_t)size;
    memcpy(buf.base + buf.off, packet, size);
    result = tailnet_ip_input(p->node, &buf, 1);
    if (result != TAILNET_ERR_AGAIN) {
        if (w->key == key) w->since_ms = 0;
        return result;
    }
    if (w->key != key || w->since_ms == 0) {
        w->key      = key;
        w->since_ms = now;
        p->held++;
    }
    if (now - w->since_ms >= 11u * p->opt.hold_ms) w->since_ms = now;
    if (now - w->since_ms < p->opt.hold_ms) return TAILNET_ERR_AGAIN;
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
    for (i = 0; i < TAILNET_POSIX_SOCKETS; i++) n = tnp_fds_add(&p->udp[i], fds, n, size);
    n = tnp_fds_add(&p->tun, fds, n, size);
    n = tnp_fds_add(&p->news, fds, n, size);
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
    p->heap_in_use = true;
    if (send(pair[0], &q, sizeof q, MSG_NOSIGNAL) == (ssize_t)sizeof q &&
        tnp_lookup_spawn(pair[1]))
        p->heap_in_use = false;
    if (p->heap_in_use) {
        p->heap_in_use = false;
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
    s->fit_at_ms = s->trip_end_ms = 0;
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

enum {
    TNP_FIT_MS     = 500,
    TNP_TRIP_MS    = 300000,        /* a way may become longer                     */
    TNP_FIT_LEAST  = 16384,         /* bytes: eleven packets                       */
    TNP_FIT_PER_US = 32             /* bytes per microsecond of the round trip     */
};

/* A relay keeps 32 packets for each of its clients and loses the oldest of more (derpserver.go,
 * perClientSendQueueDepth). So the kernel holds no more of a stream than the round trip to the
 * relay asks for: bursts stay short where the relay is near, and far ones are not throttled. */
static void tnp_tcp_fit(const tailnet_posix *p, tailnet_posix_slot *s)
{
#if defined(__linux__) && defined(TCP_INFO)
    struct tcp_info info;
    socklen_t       len = (socklen_t)sizeof info;
    uint64_t        now = tnp_now(), room;
    if (now < s->fit_at_ms) return;
    s->fit_at_ms = now + TNP_FIT_MS;
    memset(&info, 0, sizeof info);
    if (getsockopt(s->tries[0].fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0 ||
        len < offsetof(struct tcp_info, tcpi_rtt) + sizeof info.tcpi_rtt)
        return;
    /* The shortest, because the rest is what our own bytes wait in queues. */
    if (now >= s->trip_end_ms || info.tcpi_rtt < s->trip_us) {
        s->trip_us     = info.tcpi_rtt;
        s->trip_end_ms = now + TNP_TRIP_MS;
    }
    room = TNP_FIT_LEAST + (uint64_t)s->trip_us * TNP_FIT_PER_US;
    if (room > p->opt.tcp_send_buffer) room = p->opt.tcp_send_buffer;
    tnp_option(s->tries[0].fd, SOL_SOCKET, SO_SNDBUF, (int)room);
#else
    (void)p; (void)s;
#endif
}

static int32_t tnp_io_tcp_output(void *user, tailnet_link link, const void *data, size_t size)
{
    tailnet_posix      *p = (tailnet_posix *)user;
    tailnet_posix_slot *s = tnp_slot(p, link);
    ssize_t             n;
    if (s == NULL || !s->open || s->tries[0].fd < 0) return -1;
    if (size > 0x40000000u) size = 0x40000000u;
    tnp_tcp_fit(p, s);
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
 * Linux takes a run of equal datagrams in one send (UDP_SEGMENT) and gives
 * one back in one read (UDP_GRO), which is an order of magnitude cheaper than
 * one by one. Where it does not, everything works as well, only slower.
 * ======================================================================== */

enum {
    TNP_IN_BYTES    = 8 * 65536,        /* of datagrams read in one go            */
    TNP_SEGMENTS    = 64,               /* in one send, the kernel's limit        */
    TNP_STRETCH     = 65000,            /* bytes of one send, below any IP limit  */
    TNP_UDP_SEGMENT = 103, TNP_UDP_GRO = 104
};

/* Where runs of datagrams are put together and taken apart. */
typedef struct tnp_batch {
#if defined(__linux__)
    struct mmsghdr      msg[TAILNET_POSIX_RUN];
    uint64_t            control[TAILNET_POSIX_RUN][8];
#endif
    struct iovec        part[TAILNET_POSIX_RUN];
    struct sockaddr_in6 from[TAILNET_POSIX_RUN];
    uint32_t            len[TAILNET_POSIX_RUN];
    uint32_t            segment[TAILNET_POSIX_RUN];
    tailnet_buf         run[TAILNET_POSIX_RUN];
    uint8_t             in[TNP_IN_BYTES];
} tnp_batch;

/* As large as wanted, or as large as the system lets us. */
static void tnp_udp_space(const tailnet_posix *p, int fd)
{
    tnp_option(fd, SOL_SOCKET, SO_RCVBUF, (int)p->opt.udp_buffer);
    tnp_option(fd, SOL_SOCKET, SO_SNDBUF, (int)p->opt.udp_buffer);
#if defined(SO_RCVBUFFORCE) && defined(SO_SNDBUFFORCE)
    tnp_option(fd, SOL_SOCKET, SO_RCVBUFFORCE, (int)p->opt.udp_buffer);
    tnp_option(fd, SOL_SOCKET, SO_SNDBUFFORCE, (int)p->opt.udp_buffer);
#endif
}

/* Only through this device, whatever the routes say. */
static bool tnp_udp_bind_device(int fd, unsigned family, const char *device)
{
#if defined(SO_BINDTODEVICE)
    (void)family;
    return setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, device, (socklen_t)strlen(device)) == 0;
#elif defined(IP_BOUND_IF) && defined(IPV6_BOUND_IF)
    unsigned index = if_nametoindex(device);
    return index != 0 && setsockopt(fd, family == 4 ? IPPROTO_IP : IPPROTO_IPV6,
                                    family == 4 ? IP_BOUND_IF : IPV6_BOUND_IF, &index,
                                    (socklen_t)sizeof index) == 0;
#else
    (void)fd, (void)family, (void)device;
    return false;
#endif
}

/* device: NULL for any. -1: not to be had. */
static int tnp_udp_socket(const tailnet_posix *p, unsigned family, uint16_t port,
                          const char *device)
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
    tnp_udp_space(p, fd);
    if ((device == NULL || tnp_udp_bind_device(fd, family, device)) &&
        bind(fd, (const struct sockaddr *)&at, len) == 0)
        return fd;
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

/* The socket at `at` (0: IPv4, 1: IPv6) is fd from now on; -1: none. */
static void tnp_udp_take(tailnet_posix *p, int at, int fd)
{
    p->udp_port[at] = 0;
    p->udp_gro[at]  = false;
    if (!tnp_watch(p, &p->udp[at], fd, POLLIN)) return;
    p->udp_port[at] = tnp_udp_port(fd);
#if defined(__linux__)
    {
        int       one = 1, old = 0;
        socklen_t len = (socklen_t)sizeof old;
        if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &old, &len) == 0) p->udp_room[at] = old / 2;
        if (p->opt.no_offload) return;
        p->udp_gro[at] =
            setsockopt(fd, IPPROTO_UDP, TNP_UDP_GRO, &one, (socklen_t)sizeof one) == 0;
        if (getsockopt(fd, IPPROTO_UDP, TNP_UDP_SEGMENT, &old, &len) != 0)
            p->gso_at_ms = UINT64_MAX;
    }
#endif
}

/* Two sockets, on `port` if both can be: -1 for a family that this machine lacks, or whose
 * port is taken. With port 0 one is looked for that is free in both. */
static void tnp_udp_pair(const tailnet_posix *p, uint16_t port, int fds[2])
{
    int turn;
    for (turn = 0; turn < 16; turn++) {
        fds[0] = tnp_udp_socket(p, 4, port, NULL);
        fds[1] = tnp_udp_socket(p, 6, fds[0] >= 0 ? tnp_udp_port(fds[0]) : port, NULL);
        if (fds[0] < 0 || fds[1] >= 0 || port != 0) break;
        if (turn == 15 || errno != EADDRINUSE) break;
        close(fds[0]);
    }
}

/* Sockets of the uplinks, on their former ports if they can be had. A device that is not
 * there (yet) has none; with the next change of the network they are tried again. */
static void tnp_udp_uplinks(tailnet_posix *p)
{
    int at, fd;
    for (at = 2; at < TAILNET_POSIX_SOCKETS; at++) {
        const char *device = p->opt.uplink[at / 2 - 1];
        unsigned    family = at % 2 == 0 ? 4 : 6;
        if (device == NULL) continue;
        fd = tnp_udp_socket(p, family, p->udp_port[at], device);
        if (fd < 0) fd = tnp_udp_socket(p, family, 0, device);
        tnp_udp_take(p, at, fd);
    }
}

/* A port that the caller names has to be free in one family at least. */
static tailnet_result tnp_udp_open(tailnet_posix *p)
{
    int  fds[2], number;
    bool ok;
    p->gso_at_ms = UINT64_MAX;
#if defined(__linux__)
    if (!p->opt.no_offload) p->gso_at_ms = 0;
#endif
    p->batch     = malloc(sizeof(tnp_batch));
    if (p->batch == NULL) return TAILNET_ERR_MEMORY;
    tnp_udp_pair(p, p->opt.udp_port, fds);
    number = errno;
    ok     = fds[0] >= 0 || fds[1] >= 0;
    if (fds[0] < 0 && ok) fds[0] = tnp_udp_socket(p, 4, 0, NULL);
    if (fds[1] < 0 && ok) fds[1] = tnp_udp_socket(p, 6, 0, NULL);
    tnp_udp_take(p, 0, fds[0]);
    tnp_udp_take(p, 1, fds[1]);
    tnp_udp_uplinks(p);
    if (ok) return TAILNET_OK;
    tnp_error(p, "Cannot open", "a UDP socket on the wanted port", number);
    return TAILNET_ERR_NETWORK;
}

/* How many packets may go in one send: of one length, only the last may be shorter. */
static size_t tnp_udp_stretch(const tailnet_buf *pkts, size_t count)
{
    size_t n = 1, total = pkts[0].len;
    while (n < count && n < TNP_SEGMENTS && pkts[n].len <= pkts[0].len &&
           pkts[n].len != 0 && total + pkts[n].len <= TNP_STRETCH) {
        total += pkts[n++].len;
        if (pkts[n - 1].len != pkts[0].len) break;
    }
    return n;
}

/* One send of n packets; 0 or errno. */
static int tnp_udp_send(int fd, const struct sockaddr_storage *to, socklen_t to_len,
                        tailnet_buf *pkts, size_t n)
{
    struct iovec  part[TNP_SEGMENTS];
    struct msghdr m;
    uint64_t      control[4];
    ssize_t       done;
    size_t        i;
    memset(&m, 0, sizeof m);
    for (i = 0; i < n; i++) {
        part[i].iov_base = pkts[i].base + pkts[i].off;
        part[i].iov_len  = pkts[i].len;
    }
    m.msg_name    = (void *)(uintptr_t)to;
    m.msg_namelen = to_len;
    m.msg_iov     = part;
    m.msg_iovlen  = n;
    if (n > 1) {
        struct cmsghdr *c;
        uint16_t        size = (uint16_t)pkts[0].len;
        memset(control, 0, sizeof control);
        m.msg_control    = control;
        m.msg_controllen = CMSG_SPACE(sizeof size);
        c             = CMSG_FIRSTHDR(&m);
        c->cmsg_level = IPPROTO_UDP;
        c->cmsg_type  = TNP_UDP_SEGMENT;
        c->cmsg_len   = CMSG_LEN(sizeof size);
        memcpy(CMSG_DATA(c), &size, sizeof size);
    }
    do done = sendmsg(fd, &m, MSG_NOSIGNAL);
    while (done < 0 && errno == EINTR);
    return done >= 0 ? 0 : errno;
}

/* The queue of a socket is full, or as good as: TUN waits until there is room again. */
static void tnp_udp_fills(tailnet_posix *p, int at)
{
    p->udp_full = true;
    tnp_want(p, &p->udp[at], POLLIN | POLLOUT);
}

/* Is it time to let the network catch up, before anything is lost? */
static bool tnp_udp_crowded(tailnet_posix *p)
{
#if defined(__linux__)
    int queued = 0, at = p->udp_last;
    if (!p->udp_full && p->udp[at].fd >= 0 && ioctl(p->udp[at].fd, SIOCOUTQ, &queued) == 0 &&
        queued >= p->udp_room[at])
        tnp_udp_fills(p, at);
#endif
    return p->udp_full;
}

/* What an error of a send means. True: there is no way to this address from here, which the
 * library wants to know. The others are loss, as on any network. */
static bool tnp_udp_hopeless(tailnet_posix *p, int at, int trouble)
{
    switch (trouble) {
    case EPERM:                         /* a firewall here, or a socket gone bad: both may pass */
    case EPIPE:
    case ENOTCONN:
        p->rebind_wanted = true;
        return false;
    case EAGAIN:
    case ENOBUFS:
        tnp_udp_fills(p, at);
        return false;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case EADDRNOTAVAIL:
    case EAFNOSUPPORT:
    case EACCES:
    case EINVAL:
        return true;
    default:
        return false;
    }
}

/* A run through one socket. False: no way leads there. */
static bool tnp_udp_post(tailnet_posix *p, int at, const tailnet_addr *to, tailnet_buf *pkts,
                         size_t count)
{
    struct sockaddr_storage sa;
    socklen_t               len = tnp_to_sockaddr(&sa, to);
    int                     trouble;
    size_t                  i, n, most;
    if (p->udp[at].fd < 0 || len == 0) return false;
    p->udp_runs++;
    p->udp_last = at;
    most = p->gso_at_ms == 0 || (p->gso_at_ms != UINT64_MAX && tnp_now() >= p->gso_at_ms)
         ? count : 1;
    for (i = 0; i < count; i += n) {
        n       = most == 1 ? 1 : tnp_udp_stretch(pkts + i, count - i);
        trouble = tnp_udp_send(p->udp[at].fd, &sa, len, pkts + i, n);
        if (n > 1 && (trouble == EIO || trouble == EINVAL || trouble == EMSGSIZE ||
                      trouble == ENOPROTOOPT || trouble == EOPNOTSUPP)) {
            /* This device or this path does not: singly for a while. */
            p->gso_at_ms = tnp_now() + 10000;
            most = 1;
            n    = 0;
            continue;
        }
        if (trouble != 0 && tnp_udp_hopeless(p, at, trouble)) return false;
    }
    return true;
}

static bool tnp_addr_same(const tailnet_addr *a, const tailnet_addr *b)
{
    return a->family == b->family && a->port == b->port && memcmp(a->ip, b->ip, 16) == 0;
}

/* ---- several uplinks: whoever is heard through one is answered through it, whoever was not
 * heard lately is sought through all; the first to bring an answer is the nearest ---- */

enum { TNP_HEARD_MS = 6500 };           /* as long as the library trusts a path       */

static tailnet_posix_known *tnp_udp_known(tailnet_posix *p, const tailnet_addr *a)
{
    unsigned sum = a->port, i;
    for (i = 0; i < 16; i++) sum = sum * 31 + a->ip[i];
    return &p->known[sum % TAILNET_POSIX_KNOWN];
}

static void tnp_udp_heard(tailnet_posix *p, int at, const tailnet_addr *from)
{
    tailnet_posix_known *k;
    uint64_t             now;
    if (p->opt.uplink[0] == NULL) return;
    k   = tnp_udp_known(p, from);
    now = tnp_now();
    if (now - k->heard_ms < TNP_HEARD_MS && (k->uplink != at / 2 || !tnp_addr_same(&k->from, from)))
        return;
    k->from     = *from;
    k->heard_ms = now;
    k->uplink   = at / 2;
}

static int tnp_io_udp_output(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    tailnet_posix             *p = (tailnet_posix *)user;
    const tailnet_posix_known *k;
    int                        at = to->family == 6 ? 1 : 0;
    bool                       sent = false;
    if (p->opt.uplink[0] == NULL) return tnp_udp_post(p, at, to, pkts, count) ? 0 : -1;
    k = tnp_udp_known(p, to);
    if (tnp_addr_same(&k->from, to) && tnp_now() - k->heard_ms < TNP_HEARD_MS)
        return tnp_udp_post(p, at + 2 * k->uplink, to, pkts, count) ? 0 : -1;
    for (; at < TAILNET_POSIX_SOCKETS; at += 2)
        if (tnp_udp_post(p, at, to, pkts, count)) sent = true;
    return sent ? 0 : -1;
}

#if defined(__linux__)

/* The length of the segments in a long read; 0 when it holds one datagram. */
static uint32_t tnp_udp_segment(struct msghdr *m)
{
    struct cmsghdr *c;
    int             size = 0;
    for (c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == TNP_UDP_GRO &&
            c->cmsg_len >= CMSG_LEN(sizeof size))
            memcpy(&size, CMSG_DATA(c), sizeof size);
    return size > 0 ? (uint32_t)size : 0;
}

/* Reads what is there into pieces of `stride` bytes. What is longer than its piece is cut by
 * the kernel and could not be authentic: it comes out with length 0. */
static size_t tnp_udp_receive(tnp_batch *b, int fd, size_t stride)
{
    size_t i, most = sizeof b->in / stride;
    int    got;
    if (most > TAILNET_POSIX_RUN) most = TAILNET_POSIX_RUN;
    memset(b->msg, 0, most * sizeof b->msg[0]);
    memset(b->from, 0, most * sizeof b->from[0]);
    for (i = 0; i < most; i++) {
        struct msghdr *m = &b->msg[i].msg_hdr;
        b->part[i].iov_base = b->in + i * stride;
        b->part[i].iov_len  = stride;
        m->msg_name       = &b->from[i];
        m->msg_namelen    = (socklen_t)sizeof b->from[i];
        m->msg_iov        = &b->part[i];
        m->msg_iovlen     = 1;
        m->msg_control    = b->control[i];
        m->msg_controllen = sizeof b->control[i];
    }
    got = recvmmsg(fd, b->msg, (unsigned)most, MSG_DONTWAIT, NULL);
    for (i = 0; got > 0 && i < (size_t)got; i++) {
        bool cut = (b->msg[i].msg_hdr.msg_flags & MSG_TRUNC) != 0;
        b->len[i]     = cut ? 0 : b->msg[i].msg_len;
        b->segment[i] = tnp_udp_segment(&b->msg[i].msg_hdr);
    }
    return got > 0 ? (size_t)got : 0;
}

#else

static size_t tnp_udp_receive(tnp_batch *b, int fd, size_t stride)
{
    size_t n = 0, most = sizeof b->in / stride;
    if (most > TAILNET_POSIX_RUN) most = TAILNET_POSIX_RUN;
    memset(b->from, 0, sizeof b->from);
    while (n < most) {
        socklen_t len = (socklen_t)sizeof b->from[n];
        ssize_t   got = recvfrom(fd, b->in + n * stride, stride, 0,
                                 (struct sockaddr *)&b->from[n], &len);
        if (got < 0) break;
        b->len[n]     = (size_t)got == stride ? 0 : (uint32_t)got;
        b->segment[n] = 0;
        n++;
    }
    return n;
}

#endif

/* The run so far goes to the library. */
static void tnp_udp_hand_on(tailnet_posix *p, int at, tnp_batch *b, size_t sender, size_t *run)
{
    tailnet_addr from;
    if (*run != 0 && tnp_from_sockaddr(&from, &b->from[sender])) {
        tnp_udp_heard(p, at, &from);
        (void)tailnet_udp_input(p->node, &from, b->run, *run);
    }
    *run = 0;
}

/* One read of a socket, cut into datagrams; neighbours of one sender are one run. True: there
 * may be more. */
static bool tnp_udp_read_run(tailnet_posix *p, int at)
{
    tnp_batch *b      = (tnp_batch *)p->batch;
    size_t     stride = p->udp_gro[at] ? 65536u : (size_t)TAILNET_POSIX_SPACE;
    size_t     count  = tnp_udp_receive(b, p->udp[at].fd, stride), run = 0, i;
    for (i = 0; i < count; i++) {
        uint8_t *base = b->in + i * stride;
        uint32_t left = b->len[i], size = b->segment[i];
        if (i != 0 && memcmp(&b->from[i], &b->from[i - 1], sizeof b->from[i]) != 0)
            tnp_udp_hand_on(p, at, b, i - 1, &run);
        if (size == 0) size = left;
        for (; left != 0; left -= b->run[run++].len) {
            if (run == TAILNET_POSIX_RUN) tnp_udp_hand_on(p, at, b, i, &run);
            memset(&b->run[run], 0, sizeof b->run[run]);
            b->run[run].base = base + (b->len[i] - left);
            b->run[run].cap = b->run[run].len = left < size ? left : size;
        }
    }
    if (count != 0) tnp_udp_hand_on(p, at, b, count - 1, &run);
    return count * stride >= sizeof b->in || count == TAILNET_POSIX_RUN;
}

static void tnp_udp_ready(tailnet_posix *p, int at, short revents)
{
    int turn;
    if ((revents & POLLOUT) != 0) {
        tnp_want(p, &p->udp[at], POLLIN);
        p->udp_full = false;
        if (p->run_at == p->run_count) tnp_want(p, &p->tun, POLLIN);
    }
    for (turn = 0; turn < 8 && (revents & ~POLLOUT) != 0; turn++)
        if (!tnp_udp_read_run(p, at)) return;
}

/* Both sockets anew, on the same ports if they can be had: what the system remembers about
 * the old ones belongs to the old network. */
static void tnp_udp_rebind(tailnet_posix *p)
{
    uint16_t port[2];
    int      fds[2], i;
    if (p->batch == NULL) return;
    for (i = 0; i < TAILNET_POSIX_SOCKETS; i++) {
        if (i < 2) port[i] = p->udp_port[i];
        if (p->udp[i].fd < 0) continue;
        (void)tnp_udp_read_run(p, i);
        tnp_drop(p, &p->udp[i]);
    }
    if (port[0] == port[1] || port[0] == 0 || port[1] == 0) {
        tnp_udp_pair(p, port[0] != 0 ? port[0] : port[1], fds);
    } else {
        fds[0] = tnp_udp_socket(p, 4, port[0], NULL);
        fds[1] = tnp_udp_socket(p, 6, port[1], NULL);
    }
    for (i = 0; i < 2; i++) {
        if (fds[i] < 0) fds[i] = tnp_udp_socket(p, i == 0 ? 4u : 6u, 0, NULL);
        tnp_udp_take(p, i, fds[i]);
    }
    tnp_udp_uplinks(p);
    p->udp_full      = false;
    p->rebind_wanted = false;
    p->rebind_at_ms  = tnp_now() + 5000;            /* not again before, for an error's sake */
    p->rebinds++;
}

/* ======================================================================== *
 * >>p-network - our addresses, the way out, and when they change. What the
 * kernel tells is only taken as a sign; after settle_ms of such signs
 * we look at everything and compare.
 * ======================================================================== */

/* What an address of ours is good for. */
enum { TNP_OWN_NOTHING, TNP_OWN_PLAIN, TNP_OWN_SPARE, TNP_OWN_LOOP };

static bool tnp_starts(const uint8_t *ip, unsigned a, unsigned b, unsigned mask)
{
    return ip[0] == a && (ip[1] & mask) == b;
}

/* The ranges of a tailnet, but for the corner of them that Chrome OS uses for itself. */
static bool tnp_is_tailnet(const tailnet_addr *a)
{
    static const uint8_t ula[6] = {0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0};
    if (a->family == 6) return memcmp(a->ip, ula, sizeof ula) == 0;
    return tnp_starts(a->ip, 100, 64, 0xc0) &&
           !(a->ip[1] == 115 && (a->ip[2] & 0xfeu) == 92);
}

/* SPARE ones are told only when there is nothing better, LOOP ones when there are no SPARE
 * ones either. Other overlay networks (ZeroTier, WireGuard of others) are no way to us. */
static int tnp_own_kind(const tailnet_posix *p, const struct ifaddrs *i, tailnet_addr *a)
{
    if (i->ifa_addr == NULL || (i->ifa_flags & IFF_UP) == 0) return TNP_OWN_NOTHING;
    if (!tnp_from_sockaddr(a, i->ifa_addr) || tnp_is_tailnet(a)) return TNP_OWN_NOTHING;
    if (strncmp(i->ifa_name, "zt", 2) == 0 || strcmp(i->ifa_name, "wt0") == 0 ||
        (p->tun_name[0] != '\0' && strcmp(i->ifa_name, p->tun_name) == 0))
        return TNP_OWN_NOTHING;
    a->scope = 0;
    if (a->family == 6 && tnp_starts(a->ip, 0xfe, 0x80, 0xc0)) return TNP_OWN_NOTHING;
    if ((i->ifa_flags & IFF_LOOPBACK) != 0) return TNP_OWN_LOOP;
    if (a->family == 4) return tnp_starts(a->ip, 169, 254, 0xff) ? TNP_OWN_SPARE : TNP_OWN_PLAIN;
    return (a->ip[0] & 0xfeu) == 0xfc ? TNP_OWN_SPARE : TNP_OWN_PLAIN;
}

/* How many of those listed share the first bytes of mask with a. */
static size_t tnp_own_alike(const tailnet_posix_network *w, const tailnet_addr *a,
                            const struct sockaddr *netmask)
{
    tailnet_addr mask;
    size_t       i, k, alike = 0;
    if (netmask == NULL || !tnp_from_sockaddr(&mask, netmask)) return 0;
    for (i = 0; i < w->count; i++) {
        if (w->addrs[i].family != a->family) continue;
        for (k = 0; k < 16 && ((w->addrs[i].ip[k] ^ a->ip[k]) & mask.ip[k]) == 0; k++) continue;
        if (k == 16) alike++;
    }
    return alike;
}

static bool tnp_addr_before(const tailnet_addr *a, const tailnet_addr *b)
{
    if (a->family != b->family) return a->family < b->family;
    return memcmp(a->ip, b->ip, 16) < 0;
}

/* One more address, in its place; the last one goes when there is no room. */
static void tnp_own_add(tailnet_posix_network *w, const tailnet_addr *a)
{
    size_t i = 0, behind;
    while (i < w->count && tnp_addr_before(&w->addrs[i], a)) i++;
    if (i == TAILNET_POSIX_OWN || (i < w->count && tnp_addr_same(&w->addrs[i], a))) return;
    if (w->count < TAILNET_POSIX_OWN) w->count++;
    behind = w->count - i - 1;
    memmove(&w->addrs[i + 1], &w->addrs[i], behind * sizeof w->addrs[0]);
    w->addrs[i] = *a;
}

/* The port of the socket for a device and a family. */
static uint16_t tnp_own_port(const tailnet_posix *p, const char *device, int at)
{
    int i;
    for (i = 0; i < TAILNET_POSIX_UPLINKS; i++)
        if (p->opt.uplink[i] != NULL && strcmp(p->opt.uplink[i], device) == 0 &&
            p->udp_port[at + 2 + 2 * i] != 0)
            return p->udp_port[at + 2 + 2 * i];
    return p->udp_port[at];
}

/* Our addresses, each with the port of its family's socket, sorted. */
static void tnp_own_list(const tailnet_posix *p, const struct ifaddrs *list,
                         tailnet_posix_network *w)
{
    const struct ifaddrs *i;
    tailnet_addr          a;
    int                   kind;
    w->count = 0;
    w->down  = true;
    for (kind = TNP_OWN_PLAIN; kind <= TNP_OWN_LOOP && w->down; kind++) {
        for (i = list; i != NULL; i = i->ifa_next) {
            if (tnp_own_kind(p, i, &a) != kind) continue;
            w->down = false;
            a.port  = tnp_own_port(p, i->ifa_name, a.family == 6 ? 1 : 0);
            if (a.port == 0) continue;
            if (a.family == 6 && tnp_own_alike(w, &a, i->ifa_netmask) >= 2) continue;
            tnp_own_add(w, &a);
        }
    }
}

/* Addresses on the Internet, to ask for the way there. Nothing is ever sent to them. */
static void tnp_far(tailnet_addr *to, int v)
{
    static const uint8_t far[2][8] = {{8, 8, 8, 8, 0, 0, 0, 0},
                                      {0x20, 0x01, 0x48, 0x60, 0x48, 0x60, 0, 0}};
    memset(to, 0, sizeof *to);
    to->family = v == 0 ? 4 : 6;
    to->port   = 9;
    memcpy(to->ip, far[v], 8);
    if (v == 1) to->ip[15] = 0x88;
}

/* From which address we would speak to the Internet: that of a socket connected to it. */
static void tnp_way_source(tailnet_posix_network *w, int v)
{
    struct sockaddr_storage sa;
    tailnet_addr            to;
    socklen_t               len;
    int                     fd = socket(v == 0 ? AF_INET : AF_INET6, SOCK_DGRAM, 0);
    memset(&w->source[v], 0, sizeof w->source[v]);
    if (fd < 0) return;
    tnp_far(&to, v);
    len = tnp_to_sockaddr(&sa, &to);
    if (connect(fd, (const struct sockaddr *)&sa, len) == 0) {
        len = (socklen_t)sizeof sa;
        if (getsockname(fd, (struct sockaddr *)&sa, &len) == 0)
            (void)tnp_from_sockaddr(&w->source[v], &sa);
        w->source[v].port = 0;
    }
    close(fd);
}

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
    h.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
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

/* Sends it and reads the kernel's answer, which is there at once; its length, or -errno. */
static ssize_t tnp_nl_ask(tnp_nl *m, void *reply, size_t cap)
{
    uint32_t len = (uint32_t)m->len;
    ssize_t  n   = -1;
    int      fd  = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), number;
    if (fd < 0) return -errno;
    memcpy((uint8_t *)m->words + offsetof(struct nlmsghdr, nlmsg_len), &len, sizeof len);
    if (send(fd, m->words, m->len, 0) == (ssize_t)m->len) {
        do n = recv(fd, reply, cap, 0);
        while (n < 0 && errno == EINTR);
    }
    number = errno;
    close(fd);
    return n < 0 ? -number : n;
}

/* The same for a request that changes something: 0 or errno. */
static int tnp_nl_do(tnp_nl *m)
{
    uint32_t        reply[256];
    struct nlmsghdr h;
    int             trouble = EIO;
    ssize_t         n;
    memcpy(&h, m->words, sizeof h);
    h.nlmsg_flags |= NLM_F_ACK;
    memcpy(m->words, &h, sizeof h);
    n = tnp_nl_ask(m, reply, sizeof reply);
    if (n < 0) return (int)-n;
    memcpy(&h, reply, sizeof h);
    if (n >= (ssize_t)(sizeof h + sizeof trouble) && h.nlmsg_type == NLMSG_ERROR) {
        memcpy(&trouble, (const uint8_t *)reply + sizeof h, sizeof trouble);
        trouble = -trouble;
    }
    return trouble;
}

/* Gateway and device of a route as the kernel describes it. */
static void tnp_route_read(const uint8_t *at, size_t len, tailnet_addr *gateway, uint32_t *device)
{
    size_t        head = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(struct rtmsg)), size;
    struct rtattr a;
    if (len < head) return;
    at += head;
    len -= head;
    while (len >= sizeof a) {
        memcpy(&a, at, sizeof a);
        if (a.rta_len < sizeof a || a.rta_len > len) return;
        size = a.rta_len - sizeof a;
        if (a.rta_type == RTA_GATEWAY && (size == 4 || size == 16)) {
            gateway->family = size == 4 ? 4 : 6;
            memcpy(gateway->ip, at + sizeof a, size);
        }
        if (a.rta_type == RTA_OIF && size == sizeof *device)
            memcpy(device, at + sizeof a, sizeof *device);
        size = (a.rta_len + 3u) & ~(size_t)3;
        if (size > len) return;
        at += size;
        len -= size;
    }
}

/* How a packet to the Internet would leave: the kernel knows all its rules, we ask it. */
static void tnp_way(const tailnet_posix *p, tailnet_posix_network *w, int v)
{
    uint32_t        reply[256];
    struct rtmsg    body;
    struct nlmsghdr h;
    tailnet_addr    to, gateway;
    tnp_nl          m;
    ssize_t         n;
    tnp_way_source(w, v);
    memset(&gateway, 0, sizeof gateway);
    memset(&body, 0, sizeof body);
    tnp_far(&to, v);
    body.rtm_family  = v == 0 ? AF_INET : AF_INET6;
    body.rtm_dst_len = v == 0 ? 32 : 128;
    tnp_nl_begin(&m, RTM_GETROUTE, 0, &body, sizeof body);
    tnp_nl_attr(&m, RTA_DST, to.ip, v == 0 ? 4u : 16u);
    n = tnp_nl_ask(&m, reply, sizeof reply);
    memcpy(&h, reply, sizeof h);
    if (n < (ssize_t)sizeof h || h.nlmsg_type != RTM_NEWROUTE || h.nlmsg_len > (size_t)n) return;
    tnp_route_read((const uint8_t *)reply, h.nlmsg_len, &gateway, &w->device[v]);
    /* Through our own tunnel (an exit node): not the network around us. */
    if (p->tun.fd >= 0 && w->device[v] == (uint32_t)p->tun_index) {
        w->device[v]        = 0;
        w->source[v].family = 0;
    } else if (v == 0 && gateway.family == 4) {
        w->gateway = gateway;
    }
}

/* The kernel's news of devices, addresses and routes. */
static int tnp_news_socket(void)
{
    struct sockaddr_nl sa;
    int                fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    memset(&sa, 0, sizeof sa);
    sa.nl_family = AF_NETLINK;
    sa.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE |
                   RTMGRP_IPV6_ROUTE;
    if (fd >= 0 && bind(fd, (const struct sockaddr *)&sa, (socklen_t)sizeof sa) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

#else

static void tnp_way(const tailnet_posix *p, tailnet_posix_network *w, int v)
{
    (void)p;
    tnp_way_source(w, v);
}

static int tnp_news_socket(void) { return -1; }

#endif

/* Time that the machine has slept, as far as the system says. */
static uint64_t tnp_asleep(void)
{
    struct timespec ts;
    if (clock_gettime(CLOCK_MONOTONIC, &ts) != 0) return 0;
    return tnp_now() - ((uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u);
}

static void tnp_network_gather(tailnet_posix *p, tailnet_posix_network *w)
{
    struct ifaddrs *list = NULL;
    memset(w, 0, sizeof *w);
    p->heap_in_use = true;
    if (getifaddrs(&list) != 0) list = NULL;
    tnp_own_list(p, list, w);
    if (list != NULL) freeifaddrs(list);
    p->heap_in_use = false;
    tnp_way(p, w, 0);
    tnp_way(p, w, 1);
}

/* Is it another network, and not just one address more? */
static bool tnp_network_major(const tailnet_posix_network *a, const tailnet_posix_network *b)
{
    size_t i, k;
    if (a->down != b->down || !tnp_addr_same(&a->gateway, &b->gateway)) return true;
    for (i = 0; i < 2; i++)
        if (a->device[i] != b->device[i] || !tnp_addr_same(&a->source[i], &b->source[i]))
            return true;
    /* An IPv4 address that went may have been the end of a path. Of IPv6 temporary ones
     * come and go all the time. */
    for (i = 0; i < a->count; i++) {
        for (k = 0; k < b->count && !tnp_addr_same(&a->addrs[i], &b->addrs[k]); k++) continue;
        if (k == b->count && a->addrs[i].family == 4) return true;
    }
    return false;
}

static bool tnp_network_same(const tailnet_posix_network *a, const tailnet_posix_network *b)
{
    size_t i;
    if (a->count != b->count) return false;
    for (i = 0; i < a->count; i++)
        if (!tnp_addr_same(&a->addrs[i], &b->addrs[i])) return false;
    return true;
}

static void tnp_network_tell(tailnet_posix *p, bool changed)
{
    tailnet_network network;
    memset(&network, 0, sizeof network);
    network.addrs      = p->network.addrs;
    network.addr_count = p->network.count;
    network.gateway    = p->network.gateway;
    network.down       = p->network.down;
    network.port_fixed = p->opt.udp_port != 0;
    network.changed    = changed;
    (void)tailnet_set_network(p->node, &network);
}

/* Looks at the network, and tells the node when it is not what it was. */
static void tnp_network_look(tailnet_posix *p, bool another)
{
    tailnet_posix_network now;
    tnp_network_gather(p, &now);
    if (tnp_network_major(&p->network, &now)) another = true;
    if (!another && tnp_network_same(&p->network, &now)) return;
    if (another) {
        tnp_udp_rebind(p);
        tnp_network_gather(p, &now);                /* the ports may be others */
        p->networks++;
    }
    p->network = now;
    tnp_network_tell(p, another);
}

static uint64_t tnp_network_next(const tailnet_posix *p, uint64_t now)
{
    return p->news.fd >= 0 ? UINT64_MAX : now + 3000;
}

/* What is due in this turn: a look, new sockets after errors. */
static void tnp_network_due(tailnet_posix *p, uint64_t now)
{
    uint64_t asleep = tnp_asleep();
    bool     another = p->network_sign != 0;
    p->network_sign = 0;
    if (asleep > p->asleep_ms + 5000) another = true;       /* woke up, who knows where */
    p->asleep_ms = asleep;
    if (another || now >= p->network_at_ms) {
        p->network_at_ms = tnp_network_next(p, now);
        tnp_network_look(p, another);
    }
    if (p->rebind_wanted && now >= p->rebind_at_ms) {
        tnp_udp_rebind(p);
        tnp_network_gather(p, &p->network);
        tnp_network_tell(p, false);
    }
}

/* Signs of a change; what they say in particular does not matter. */
static void tnp_news_ready(tailnet_posix *p)
{
    uint8_t sink[4096];
    int     turn;
    uint64_t at = tnp_now() + p->opt.settle_ms;
    for (turn = 0; turn < 64; turn++)
        if (recv(p->news.fd, sink, sizeof sink, MSG_DONTWAIT) <= 0 && errno != ENOBUFS) break;
    if (at < p->network_at_ms) p->network_at_ms = at;
}

static void tnp_network_open(tailnet_posix *p)
{
    (void)tnp_watch(p, &p->news, tnp_news_socket(), POLLIN);
    tnp_network_gather(p, &p->network);
    p->network_at_ms = tnp_network_next(p, tnp_now());
    p->asleep_ms     = tnp_asleep();
    tnp_network_tell(p, false);
}

/* ======================================================================== *
 * >>p-tun - the TUN device, its addresses and routes, by rtnetlink; the kernel
 * removes everything together with the device when we close it.
 * ======================================================================== */

#if defined(__linux__)

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

/* With long packets if the kernel has them, else without. */
static bool tnp_tun_attach(tailnet_posix *p, int fd, struct ifreq *ifr)
{
    ifr->ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    if (!p->opt.no_offload && ioctl(fd, TUNSETIFF, ifr) == 0) {
        /* Whoever has the header but no cutting gets single packets, whole. */
        p->vnet = true;
        (void)ioctl(fd, TUNSETOFFLOAD, (unsigned long)(TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6));
        return true;
    }
    ifr->ifr_flags = IFF_TUN | IFF_NO_PI;
    return ioctl(fd, TUNSETIFF, ifr) == 0;
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
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0 || !tnp_tun_attach(p, fd, &ifr)) {
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

/* ======================================================================== *
 * >>p-long - long packets. A TUN device opened with IFF_VNET_HDR gives up to
 * 64 KB of TCP data behind one header and takes it the same way: one system
 * call, one walk through the kernel's IP and TCP, for fifty packets. We cut
 * on the way out, as a network card does, and join on the way in.
 * ======================================================================== */

enum {
    TNP_VNET_NEEDS_SUM = 1,                         /* flags: the sum is for us to finish    */
    TNP_VNET_TCP4 = 1, TNP_VNET_TCP6 = 4,           /* kinds, virtio 1.2 section 5.1.6       */
    TNP_TCP = 6, TNP_TCP_FIN = 1, TNP_TCP_PSH = 8, TNP_TCP_ACK = 16, TNP_TCP_CWR = 128
};

static void tnp_put32(uint8_t *b, uint32_t v)
{
    tnp_put16(b, (unsigned)(v >> 16));
    tnp_put16(b + 2, (unsigned)(v & 0xffffu));
}

static uint32_t tnp_get32(const uint8_t *b)
{
    return (uint32_t)tnp_get16(b) << 16 | tnp_get16(b + 2);
}

/* The same sum over the two addresses, the protocol and the length. */
static uint32_t tnp_sum_front(const uint8_t *ip, unsigned protocol, size_t size)
{
    uint32_t sum = ip[0] >> 4 == 4 ? tnp_sum(0, ip + 12, 8) : tnp_sum(0, ip + 8, 32);
    return sum + protocol + (uint32_t)(size & 0xffffu);
}

/* Sets the lengths that an IP header holds for a packet of `size`. */
static void tnp_ip_length(uint8_t *ip, size_t size)
{
    size_t head = (size_t)(ip[0] & 15u) * 4;
    if (ip[0] >> 4 == 6) {
        tnp_put16(ip + 4, (unsigned)(size - 40));
        return;
    }
    tnp_put16(ip + 2, (unsigned)size);
    tnp_put16(ip + 10, 0);
    tnp_put16(ip + 10, tnp_sum_end(tnp_sum(0, ip, head)));
}

/* The kernel leaves the sum of a packet's body to us: it stands begun in its field. */
static bool tnp_sum_finish(uint8_t *packet, size_t size, size_t start, size_t offset)
{
    uint16_t sum;
    if (start > size || offset > size - start || size - start - offset < 2) return false;
    sum = tnp_sum_end(tnp_sum(0, packet + start, size - start));
    tnp_put16(packet + start + offset, sum == 0 ? 0xffffu : sum);
    return true;
}

/* What was read last is one packet, or one to be cut. False: it makes no sense, away with it. */
static bool tnp_cut_begin(tailnet_posix_cut *c, const tailnet_posix_vnet *v, uint8_t *packet,
                          size_t size)
{
    size_t  tcp = v->sum_start, head;
    uint8_t kind = v->kind & 0x7fu;
    memset(c, 0, sizeof *c);
    c->size = size;
    if (kind == 0) {
        c->count = 1;
        if (size > (size_t)TNP_PACKET_MOST) return false;
        return (v->flags & TNP_VNET_NEEDS_SUM) == 0 ||
               tnp_sum_finish(packet, size, v->sum_start, v->sum_offset);
    }
    if (kind != TNP_VNET_TCP4 && kind != TNP_VNET_TCP6) return false;
    if (tcp < 20 || tcp > size || size - tcp < 20) return false;
    head = tcp + (size_t)(packet[tcp + 12] >> 4) * 4;
    if (head < tcp + 20 || head > size || v->size == 0) return false;
    if (head > (size_t)TNP_PACKET_MOST || v->size > (size_t)TNP_PACKET_MOST - head) return false;
    c->tcp   = tcp;
    c->head  = head;
    c->step  = v->size;
    c->count = (size - head + c->step - 1) / c->step;
    if (c->count == 0) c->count = 1;
    return true;
}

/* The next piece of it to dst, TNP_PACKET_MOST bytes; returns its length. */
static size_t tnp_cut_next(tailnet_posix_cut *c, const uint8_t *packet, uint8_t *dst)
{
    size_t   from, part, size;
    uint8_t *tcp = dst + c->tcp;
    bool     first = c->next == 0, last = c->next + 1 == c->count;
    if (c->step == 0) {
        memcpy(dst, packet, c->size);
        c->next++;
        return c->size;
    }
    from = c->head + c->next * c->step;
    part = c->size - from < c->step ? c->size - from : c->step;
    size = c->head + part;
    memcpy(dst, packet, c->head);
    memcpy(dst + c->head, packet + from, part);
    if (dst[0] >> 4 == 4) tnp_put16(dst + 4, (tnp_get16(dst + 4) + (unsigned)c->next) & 0xffffu);
    tnp_ip_length(dst, size);
    tnp_put32(tcp + 4, tnp_get32(tcp + 4) + (uint32_t)(from - c->head));
    if (!last) tcp[13] = (uint8_t)(tcp[13] & ~(TNP_TCP_FIN | TNP_TCP_PSH));
    if (!first) tcp[13] = (uint8_t)(tcp[13] & ~TNP_TCP_CWR);
    tnp_put16(tcp + 16, 0);
    tnp_put16(tcp + 16, tnp_sum_end(tnp_sum(tnp_sum_front(dst, TNP_TCP, size - c->tcp), tcp,
                                            size - c->tcp)));
    c->next++;
    return size;
}

/* Where the TCP data of a packet begins that could be joined with others: nothing special
 * about it, and its sum is right. 0: not such a one. */
static size_t tnp_join_head(const uint8_t *ip, size_t size)
{
    size_t tcp, head;
    if (size < 40) return 0;
    if (ip[0] == 0x45) {
        if (ip[9] != TNP_TCP || (tnp_get16(ip + 6) & 0x3fffu) != 0) return 0;
        if (tnp_get16(ip + 2) != size || tnp_sum_end(tnp_sum(0, ip, 20)) != 0) return 0;
        tcp = 20;
    } else {
        if (ip[0] >> 4 != 6 || ip[6] != TNP_TCP || tnp_get16(ip + 4) != size - 40) return 0;
        tcp = 40;
    }
    if (size - tcp < 20 || (ip[tcp + 13] & ~TNP_TCP_PSH) != TNP_TCP_ACK) return 0;
    head = tcp + (size_t)(ip[tcp + 12] >> 4) * 4;
    if (head < tcp + 20 || head >= size) return 0;
    return tnp_sum_end(tnp_sum(tnp_sum_front(ip, TNP_TCP, size - tcp), ip + tcp, size - tcp)) == 0
        ? head : 0;
}

/* Do b's data follow on `sent` bytes of data of a, all else being alike? */
static bool tnp_join_fits(const uint8_t *a, const uint8_t *b, size_t head, size_t sent)
{
    size_t         tcp = a[0] >> 4 == 4 ? 20u : 40u;
    const uint8_t *x = a + tcp, *y = b + tcp;
    if (tcp == 20) {
        if (memcmp(a, b, 2) != 0 || memcmp(a + 6, b + 6, 4) != 0 || memcmp(a + 12, b + 12, 8) != 0)
            return false;
    } else if (memcmp(a, b, 4) != 0 || memcmp(a + 6, b + 6, 34) != 0) {
        return false;
    }
    /* Ports; sequence; acknowledgement, length, flags, window; urgent pointer and options. */
    return memcmp(x, y, 4) == 0 && tnp_get32(y + 4) == tnp_get32(x + 4) + (uint32_t)sent &&
           memcmp(x + 8, y + 8, 5) == 0 && memcmp(x + 14, y + 14, 2) == 0 &&
           memcmp(x + 18, y + 18, head - tcp - 18) == 0;
}

/* How many packets, from the first on, can be written as one. */
static size_t tnp_join_count(const tailnet_buf *pkts, size_t count, size_t *head)
{
    const uint8_t *first = pkts[0].base + pkts[0].off, *at = first;
    size_t         flags = first[0] >> 4 == 4 ? 33u : 53u, step, part, total, n = 1;
    *head = tnp_join_head(first, pkts[0].len);
    if (*head == 0) return 1;
    step = part = total = pkts[0].len - *head;
    /* A shorter one, or one that the sender pushed, is the last. */
    while (n < count && n < TAILNET_POSIX_RUN && part == step && (at[flags] & TNP_TCP_PSH) == 0) {
        at = pkts[n].base + pkts[n].off;
        if (pkts[n].len <= *head || pkts[n].len - *head > step) break;
        part = pkts[n].len - *head;
        if (*head + total + part > 65535) break;
        if (tnp_join_head(at, pkts[n].len) != *head || !tnp_join_fits(first, at, *head, total))
            break;
        total += part;
        n++;
    }
    return n;
}

/* One write: a packet as it is (head 0), or n of them joined. What the device does not take is
 * lost, as on any network. */
static void tnp_join_write(tailnet_posix *p, tailnet_buf *pkts, size_t n, size_t head)
{
    struct iovec       part[TAILNET_POSIX_RUN + 1];
    tailnet_posix_vnet v;
    uint8_t           *ip = pkts[0].base + pkts[0].off;
    size_t             i, size = pkts[0].len, tcp;
    memset(&v, 0, sizeof v);
    part[0].iov_base = &v;
    part[0].iov_len  = sizeof v;
    part[1].iov_base = ip;
    part[1].iov_len  = pkts[0].len;
    for (i = 1; i < n; i++) {
        part[i + 1].iov_base = pkts[i].base + pkts[i].off + head;
        part[i + 1].iov_len  = pkts[i].len - head;
        size += part[i + 1].iov_len;
    }
    if (n > 1) {
        const uint8_t *end = pkts[n - 1].base + pkts[n - 1].off;
        tcp          = ip[0] >> 4 == 4 ? 20u : 40u;
        v.flags      = TNP_VNET_NEEDS_SUM;
        v.kind       = tcp == 20 ? TNP_VNET_TCP4 : TNP_VNET_TCP6;
        v.head       = (uint16_t)head;
        v.size       = (uint16_t)(pkts[0].len - head);
        v.sum_start  = (uint16_t)tcp;
        v.sum_offset = 16;
        ip[tcp + 13] = (uint8_t)(ip[tcp + 13] | (end[tcp + 13] & TNP_TCP_PSH));
        tnp_ip_length(ip, size);
        /* The kernel wants the sum begun, not turned over. */
        tnp_put16(ip + tcp + 16,
                  (uint16_t)~tnp_sum_end(tnp_sum_front(ip, TNP_TCP, size - tcp)));
    }
    i = p->vnet ? 0 : 1;
    (void)!writev(p->tun.fd, part + i, (int)(n + 1 - i));
}

static void tnp_tun_write(tailnet_posix *p, tailnet_buf *pkts, size_t count)
{
    size_t i, n, head;
    for (i = 0; i < count; i += n) {
        head = 0;
        n    = p->vnet && count - i > 1 ? tnp_join_count(pkts + i, count - i, &head) : 1;
        tnp_join_write(p, pkts + i, n, head);
    }
}

/* ======================================================================== *
 * >>p-flow - packets from the device to the library and back.
 * ======================================================================== */

/* Reads one packet, or one to be cut. False: there is none now. */
static bool tnp_tun_read(tailnet_posix *p)
{
    tailnet_posix_vnet v;
    struct iovec       part[2];
    ssize_t            n;
    size_t             head = p->vnet ? sizeof v : 0;
    memset(&v, 0, sizeof v);
    part[0].iov_base = &v;
    part[0].iov_len  = sizeof v;
    part[1].iov_base = p->tun_in;
    part[1].iov_len  = sizeof p->tun_in;
    n = readv(p->tun.fd, p->vnet ? part : part + 1, p->vnet ? 2 : 1);
    if (n <= 0 || (size_t)n <= head) return false;
    if (!tnp_cut_begin(&p->cut, &v, p->tun_in, (size_t)n - head)) p->cut.count = p->cut.next;
    return true;
}

/* Makes the next run: the pieces of one long packet, or many short packets. */
static bool tnp_tun_fill(tailnet_posix *p)
{
    p->run_at = p->run_count = 0;
    while (p->run_count < TAILNET_POSIX_RUN) {
        tailnet_buf *b = &p->run[p->run_count];
        if (p->cut.next == p->cut.count) {
            if (p->run_count != 0 && p->cut.step != 0) break;
            if (!tnp_tun_read(p)) break;
            if (p->run_count != 0 && p->cut.step != 0) break;   /* it begins a run of its own */
            continue;
        }
        memset(b, 0, sizeof *b);
        b->base = p->space[p->run_count];
        b->cap  = TAILNET_POSIX_SPACE;
        b->off  = TAILNET_HEADROOM;
        b->len  = (uint32_t)tnp_cut_next(&p->cut, p->tun_in, b->base + b->off);
        p->run_count++;
    }
    return p->run_count != 0;
}

/* A relay takes part of a run at best, and does not say which: packets go together only while
 * they leave as datagrams, which may be lost but are never refused. False: the way out is
 * full, the rest has to wait. */
static bool tnp_tun_hand_on(tailnet_posix *p)
{
    while (p->run_at < p->run_count) {
        uint64_t           before = p->udp_runs;
        const tailnet_buf *b      = &p->run[p->run_at];
        tailnet_result     result;
        if (p->in_runs) {
            result = tailnet_ip_input(p->node, &p->run[p->run_at], p->run_count - p->run_at);
            if (result == TAILNET_ERR_AGAIN) p->dropped++;
            p->run_at = p->run_count;
        } else {
            result = tnp_offer(p, b->base + b->off, b->len);
            if (result == TAILNET_ERR_AGAIN) return false;
            p->run_at++;
        }
        p->in_runs = result == TAILNET_OK && p->udp_runs != before;
    }
    return true;
}

/* Packets of the host's programs. When the library's way out is full they wait and the device
 * is left alone, for hold_ms at most: its queue fills, and TCP behind it slows down. */
static void tnp_tun_ready(tailnet_posix *p)
{
    size_t taken = 0;
    if (p->run_at < p->run_count) return;
    while (taken < p->opt.turn_packets && !tnp_udp_crowded(p) && tnp_tun_fill(p)) {
        taken += p->run_count;
        if (!tnp_tun_hand_on(p)) break;
    }
    if (p->run_at < p->run_count || p->udp_full) tnp_want(p, &p->tun, 0);
}

/* What waited is offered again: own packets, then those from TUN. */
static void tnp_held_retry(tailnet_posix *p)
{
    tnp_outbox_flush(p);
    if (p->run_at == p->run_count || !tnp_tun_hand_on(p)) return;
    if (!p->udp_full) tnp_want(p, &p->tun, POLLIN);
}

static void tnp_io_ip_output(void *user, tailnet_buf *pkts, size_t count)
{
    tailnet_posix *p = (tailnet_posix *)user;
    size_t         i;
    p->inside = true;
    if (p->tun.fd >= 0) tnp_tun_write(p, pkts, count);
    else
        for (i = 0; i < count; i++) tnp_packet_in(p, pkts[i].base + pkts[i].off, pkts[i].len);
    p->inside = false;
}

/* ======================================================================== *
 * >>p-crypt - ChaCha20-Poly1305 (RFC 8439) for io.crypt: eight blocks of the
 * cipher side by side in AVX2, Poly1305 in 64-bit numbers. Less than half
 * of the time of what the library brings for every machine. Only
 * where the processor has it, asked at run time. No branch and no address
 * depends on a secret.
 * ======================================================================== */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__PCC__) && \
    !defined(TAILNET_POSIX_NO_VECTORS)
#  define TNP_VECTORS 1
#  include <immintrin.h>
#  define TNP_AVX2 __attribute__((target("avx2")))

__extension__ typedef unsigned __int128 tnp_u128;

/* Eight blocks: [b] holds the first half of block b, [8 + b] the second. */
typedef struct tnp_blocks {
    __m256i half[16];
} tnp_blocks;

typedef struct tnp_poly {
    uint64_t r0, r1, s1, h0, h1, h2;
} tnp_poly;

#  define TNP_ROLL(v, n)                                                               \
    _mm256_or_si256(_mm256_slli_epi32((v), (n)), _mm256_srli_epi32((v), 32 - (n)))

/* One quarter round of RFC 8439 section 2.1, in all eight blocks. */
#  define TNP_QUARTER(a, b, c, d)                                                      \
    do {                                                                               \
        a = _mm256_add_epi32(a, b);                                                    \
        d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), roll16);                       \
        c = _mm256_add_epi32(c, d);                                                    \
        b = _mm256_xor_si256(b, c);                                                    \
        b = TNP_ROLL(b, 12);                                                           \
        a = _mm256_add_epi32(a, b);                                                    \
        d = _mm256_shuffle_epi8(_mm256_xor_si256(d, a), roll8);                        \
        c = _mm256_add_epi32(c, d);                                                    \
        b = _mm256_xor_si256(b, c);                                                    \
        b = TNP_ROLL(b, 7);                                                            \
    } while (0)

/* Eight vectors of one word of eight blocks become eight words of one block each. */
TNP_AVX2 static void tnp_blocks_turn(__m256i *v)
{
    __m256i t[8], u[8];
    int     i;
    for (i = 0; i < 4; i++) {
        t[2 * i]     = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    for (i = 0; i < 2; i++) {
        u[4 * i]     = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (i = 0; i < 4; i++) {
        v[i]     = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
        v[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
}

/* The eight blocks of key stream from block number `first` on. */
TNP_AVX2 static void tnp_blocks_make(tnp_blocks *out, const uint8_t key[32], uint64_t counter,
                                     uint32_t first)
{
    const __m256i roll16 = _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2,
                                           13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2);
    const __m256i roll8  = _mm256_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3,
                                           14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3);
    uint32_t words[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
    __m256i  s[16], x[16];
    int      i;
    memcpy(words + 4, key, 32);
    words[12] = first;
    words[13] = 0;
    words[14] = (uint32_t)counter;
    words[15] = (uint32_t)(counter >> 32);
    for (i = 0; i < 16; i++) s[i] = _mm256_set1_epi32((int)words[i]);
    s[12] = _mm256_add_epi32(s[12], _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
    for (i = 0; i < 16; i++) x[i] = s[i];
    for (i = 0; i < 10; i++) {
        TNP_QUARTER(x[0], x[4], x[8], x[12]);
        TNP_QUARTER(x[1], x[5], x[9], x[13]);
        TNP_QUARTER(x[2], x[6], x[10], x[14]);
        TNP_QUARTER(x[3], x[7], x[11], x[15]);
        TNP_QUARTER(x[0], x[5], x[10], x[15]);
        TNP_QUARTER(x[1], x[6], x[11], x[12]);
        TNP_QUARTER(x[2], x[7], x[8], x[13]);
        TNP_QUARTER(x[3], x[4], x[9], x[14]);
    }
    for (i = 0; i < 16; i++) out->half[i] = _mm256_add_epi32(x[i], s[i]);
    tnp_blocks_turn(out->half);
    tnp_blocks_turn(out->half + 8);
}

/* Mixes what blocks from..7 cover into the data; returns how much that is. */
TNP_AVX2 static size_t tnp_blocks_mix(const tnp_blocks *b, size_t from, uint8_t *data, size_t len)
{
    size_t  done = 0, i;
    uint8_t rest[64];
    for (; from < 8 && len - done >= 64; from++, done += 64) {
        __m256i *at = (__m256i *)(void *)(data + done);
        _mm256_storeu_si256(at, _mm256_xor_si256(_mm256_loadu_si256(at), b->half[from]));
        _mm256_storeu_si256(at + 1, _mm256_xor_si256(_mm256_loadu_si256(at + 1),
                                                     b->half[8 + from]));
    }
    if (from == 8 || done == len) return done;
    memcpy(rest, &b->half[from], 32);
    memcpy(rest + 32, &b->half[8 + from], 32);
    for (i = 0; done < len; i++, done++) data[done] ^= rest[i];
    return done;
}

static uint64_t tnp_load64(const uint8_t *b)
{
    uint64_t v;
    memcpy(&v, b, 8);
    return v;
}

/* Blocks of 16 bytes: h = (h + block) r modulo 2^130 - 5, not wholly reduced. Bits that r
 * lacks (RFC 8439 section 2.5) let r1 * 2^128 be folded as s1 = r1 + r1 / 4. */
static void tnp_poly_blocks(tnp_poly *p, const uint8_t *data, size_t count)
{
    uint64_t r0 = p->r0, r1 = p->r1, s1 = p->s1, h0 = p->h0, h1 = p->h1, h2 = p->h2, c;
    for (; count != 0; count--, data += 16) {
        tnp_u128 d0 = (tnp_u128)h0 + tnp_load64(data);
        tnp_u128 d1 = (tnp_u128)h1 + tnp_load64(data + 8) + (uint64_t)(d0 >> 64);
        h0 = (uint64_t)d0;
        h1 = (uint64_t)d1;
        h2 += (uint64_t)(d1 >> 64) + 1;
        d0 = (tnp_u128)h0 * r0 + (tnp_u128)h1 * s1;
        d1 = (tnp_u128)h0 * r1 + (tnp_u128)h1 * r0 + (tnp_u128)h2 * s1 + (uint64_t)(d0 >> 64);
        h2 = h2 * r0 + (uint64_t)(d1 >> 64);
        c  = (h2 >> 2) + (h2 & ~(uint64_t)3);
        d0 = (tnp_u128)(uint64_t)d0 + c;
        d1 = (tnp_u128)(uint64_t)d1 + (uint64_t)(d0 >> 64);
        h0 = (uint64_t)d0;
        h1 = (uint64_t)d1;
        h2 = (h2 & 3) + (uint64_t)(d1 >> 64);
    }
    p->h0 = h0;
    p->h1 = h1;
    p->h2 = h2;
}

/* The tag of a text without extra data; key: the first 32 bytes of block 0. */
static void tnp_poly_tag(tnp_poly *p, const uint8_t *key, const uint8_t *data, size_t len,
                         uint8_t tag[16])
{
    uint8_t  last[16];
    uint64_t size = len, g0, g1, mask;
    tnp_u128 t;
    memset(p, 0, sizeof *p);
    p->r0 = tnp_load64(key) & 0x0ffffffc0fffffffu;
    p->r1 = tnp_load64(key + 8) & 0x0ffffffc0ffffffcu;
    p->s1 = p->r1 + (p->r1 >> 2);
    tnp_poly_blocks(p, data, len / 16);
    memset(last, 0, sizeof last);
    if (len % 16 != 0) {
        memcpy(last, data + len - len % 16, len % 16);
        tnp_poly_blocks(p, last, 1);
        memset(last, 0, sizeof last);
    }
    memcpy(last + 8, &size, 8);
    tnp_poly_blocks(p, last, 1);
    /* h, or h - (2^130 - 5) = h + 5 - 2^130 if that is not negative. */
    t    = (tnp_u128)p->h0 + 5;
    g0   = (uint64_t)t;
    t    = (tnp_u128)p->h1 + (uint64_t)(t >> 64);
    g1   = (uint64_t)t;
    mask = 0 - ((p->h2 + (uint64_t)(t >> 64)) >> 2 & 1);
    g0   = (p->h0 & ~mask) | (g0 & mask);
    g1   = (p->h1 & ~mask) | (g1 & mask);
    t    = (tnp_u128)g0 + tnp_load64(key + 16);
    g0   = (uint64_t)t;
    g1   = g1 + tnp_load64(key + 24) + (uint64_t)(t >> 64);
    memcpy(tag, &g0, 8);
    memcpy(tag + 8, &g1, 8);
}

/* All of a text but its first seven blocks, which the caller has. */
TNP_AVX2 static void tnp_crypt_mix(const tailnet_crypt *w, const tnp_blocks *head, tnp_blocks *more)
{
    size_t   done  = tnp_blocks_mix(head, 1, w->data, w->len);
    uint32_t first = 8;
    for (; done < w->len; first += 8) {
        tnp_blocks_make(more, w->key, w->counter, first);
        done += tnp_blocks_mix(more, 0, w->data + done, w->len - done);
    }
}

TNP_AVX2 static void tnp_io_crypt(void *user, tailnet_crypt *work, size_t count)
{
    struct {
        tnp_blocks head, more;
        tnp_poly   poly;
    } s;
    uint8_t tag[16], differs;
    size_t  i, k;
    (void)user;
    for (i = 0; i < count; i++) {
        tailnet_crypt *w = &work[i];
        tnp_blocks_make(&s.head, w->key, w->counter, 0);
        if (!w->open) tnp_crypt_mix(w, &s.head, &s.more);
        tnp_poly_tag(&s.poly, (const uint8_t *)&s.head.half[0], w->data, w->len, tag);
        if (!w->open) {
            memcpy(w->data + w->len, tag, 16);
            continue;
        }
        for (k = 0, differs = 0; k < 16; k++) differs |= (uint8_t)(tag[k] ^ w->data[w->len + k]);
        w->ok = differs == 0;
        if (w->ok) tnp_crypt_mix(w, &s.head, &s.more);
    }
    tnp_wipe(&s, sizeof s);
}

/* Is this a processor for it, and does the system save its registers? */
static bool tnp_crypt_can(void) { return __builtin_cpu_supports("avx2") != 0; }

#endif

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
    else if (fd == p->news.fd) tnp_news_ready(p);
    for (i = 0; i < TAILNET_POSIX_SOCKETS; i++)
        if (fd == p->udp[i].fd) {
            tnp_udp_ready(p, (int)i, revents);
            return;
        }
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
    tnp_network_due(p, now);
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
    if (p->network_at_ms < at) at = p->network_at_ms;
    if (p->rebind_wanted && p->rebind_at_ms < at) at = p->rebind_at_ms;
    if (at <= now) return 0;
    if (at - now < wait) wait = (uint32_t)(at - now);
    /* Space in a link is told by its socket; these are for links that are not there yet. */
    if ((p->run_at != p->run_count || p->out_count != 0) && wait > 5) wait = 5;
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
    if (o->udp_buffer == 0) o->udp_buffer = 4194304;
    if (o->turn_packets == 0) o->turn_packets = 64;
    if (o->hold_ms == 0) o->hold_ms = 250;
    if (o->race_ms == 0) o->race_ms = 250;
    if (o->lookup_ms == 0) o->lookup_ms = 10000;
    if (o->settle_ms == 0) o->settle_ms = 100;
}

/* Everything small is cleared; of the large arrays only what is read before it is written. */
static void tnp_clear(tailnet_posix *p, const tailnet_posix_options *options)
{
    size_t i, k;
    memset(p, 0, offsetof(tailnet_posix, slot));
    if (options != NULL) p->opt = *options;
    tnp_defaults(&p->opt);
    p->wake.fd = p->wake_in = p->tun.fd = p->news.fd = -1;
    for (i = 0; i < TAILNET_POSIX_SOCKETS; i++) p->udp[i].fd = -1;
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
#if defined(TNP_VECTORS)
    if (!p->opt.no_offload && desc->io.crypt == NULL && tnp_crypt_can())
        desc->io.crypt = tnp_io_crypt;
#endif
    if (desc->trust_anchors == NULL && p->ca.count != 0) {
        desc->trust_anchors      = p->ca.anchors;
        desc->trust_anchor_count = p->ca.count;
    }
    if (desc->max_tls == 0) desc->max_tls = 2;
    if (desc->max_links < desc->max_tls) desc->max_links = desc->max_tls;
    if (desc->max_tls > 1 && desc->control_http_port == 0 &&
        (desc->control_url == NULL || strncmp(desc->control_url, "http://", 7) != 0))
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
    if (result == TAILNET_OK) result = tnp_udp_open(p);
    if (result == TAILNET_ERR_NETWORK && desc->prefs.relay_only) {
        p->error[0] = '\0';             /* it may have no use for them            */
        result      = TAILNET_OK;
    }
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
    for (i = 0; i < TAILNET_POSIX_SOCKETS; i++) tnp_drop(p, &p->udp[i]);
    tnp_drop(p, &p->tun);
    tnp_drop(p, &p->news);
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
    tnp_network_open(p);
    return TAILNET_OK;
}

TAILNET_API void tailnet_posix_network_changed(tailnet_posix *p)
{
    int before = errno;
    p->network_sign = 1;
    (void)!write(p->wake_in, "", 1);
    errno = before;
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
