/* The world: machines behind routers, a server, what moves between them. One world at a time,
 * in the variable W, because the callbacks of a socket have nowhere to carry it. */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "sim_base.h"
#include "sim_tls.h"

/* Every X25519 is counted: a poll may do those of one message. */
static unsigned sim_curves;
static void     sim_x25519(unsigned char *out, const unsigned char *scalar,
                           const unsigned char *point);
#define TAILNET_X25519(out, scalar, point) sim_x25519(out, scalar, point)

/* The server is the real one; the system below it is ours. */
static ssize_t sim_recv(int fd, void *dst, size_t len);
static ssize_t sim_send(int fd, const void *src, size_t len);
static int     sim_accept(int listener);
static int     sim_close(int fd);
static int     sim_clock(int which, struct timespec *out);
static ssize_t sim_getrandom(void *dst, size_t len);
static ssize_t sim_recvfrom(void *dst, size_t cap, struct sockaddr *from, socklen_t *len);
static ssize_t sim_sendto(const void *src, size_t len, const struct sockaddr *to);
#define recv(fd, dst, len, flags)              sim_recv(fd, dst, len)
#define send(fd, src, len, flags)              sim_send(fd, src, len)
#define accept(fd, from, len)                  sim_accept(fd)
#define close(fd)                              sim_close(fd)
#define fcntl(fd, what, flags)                 0
#define setsockopt(fd, level, name, at, size)  ((void)(at), 0)
#define clock_gettime(which, out)              sim_clock(which, out)
#define getrandom(dst, len, flags)             sim_getrandom(dst, len)
#define recvfrom(fd, dst, cap, flags, a, n)    sim_recvfrom(dst, cap, a, n)
#define sendto(fd, src, len, flags, a, n)      sim_sendto(src, len, a)
#define br_ssl_server_reset(context)           sim_server_reset(context)
#define main                                   selfhost_main
#include "examples/selfhost.c"
#undef main
#undef br_ssl_server_reset
#undef recv
#undef send
#undef accept
#undef close
#undef fcntl
#undef setsockopt
#undef clock_gettime
#undef getrandom
#undef recvfrom
#undef sendto

enum {
    SIM_REGIONS  = 3,
    SIM_PORT     = 41641,
    SIM_STUN     = 3478,
    SIM_MARK     = 16,                      /* bytes that no packet outside may contain    */
    SIM_GUARD    = 64,
    SIM_LINKS    = 6,
    SIM_WINDOW   = 65536,                   /* of a TCP connection, each way               */
    SIM_MAPS     = 64,                      /* of a router                                 */
    SIM_REMOTES  = 24,                      /* of a mapping                                */
    SIM_FLOWS    = 64,                      /* that a firewall remembers                   */
    SIM_MASKED   = 64,                      /* nodes whose knowledge of each other counts  */
    SIM_ECHOES   = 32,
    SIM_TAPE     = 64                       /* datagrams that a hostile member overheard   */
};

#define SIM_WALL_MS UINT64_C(1800000000000) /* when the world is 0 ms old: January 2027    */

/* ---- routers ---- */

typedef enum nat_kind { NAT_EIM, NAT_ADM, NAT_APDM } nat_kind;       /* mapping            */
typedef enum nat_filter { NAT_ANY, NAT_ADF, NAT_APDF } nat_filter;   /* who may answer     */

typedef struct end4 { uint32_t ip; uint16_t port; } end4;

typedef struct remote { end4 who; uint64_t at_ms; } remote;

typedef struct mapping {
    bool     used, fixed;                   /* fixed: forwarded or asked for, for anybody  */
    bool     exact;                         /* a flow that came in through a fixed one     */
    end4     in, to;                        /* to: as far as the kind looks at it          */
    uint16_t port;                          /* outside                                     */
    uint64_t last_ms, end_ms;               /* end_ms: of a fixed one, or NEVER            */
    remote   seen[SIM_REMOTES];
    unsigned next;
} mapping;

typedef struct router {
    int        outer;                       /* the router in front of it, or -1            */
    uint32_t   lan, wan;                    /* lan: a /24                                  */
    nat_kind   kind;
    nat_filter filter;
    bool       hairpin, keep_port, refresh_in, grants;   /* grants: speaks NAT-PMP         */
    bool       no_udp;
    uint32_t   timeout_ms, reboot_ms;
    mapping    maps[SIM_MAPS];
} router;

/* ---- connections ---- */

typedef struct piece {
    struct piece *next;
    uint32_t      len, at;                  /* at: taken already                           */
    uint64_t      put_ms;
    uint8_t       bytes[];
} piece;

typedef struct pipe_ {
    piece   *first, *last;
    uint32_t bytes, ready;                  /* ready: have arrived                         */
    uint64_t last_ms, stalled_ms;           /* stalled_ms: since when nothing gets through */
    bool     end, ended;                    /* FIN is on its way; has arrived              */
    uint8_t  tail[SIM_MARK - 1];            /* of what went before, for the look for marks */
    unsigned tail_len;
} pipe_;

typedef struct wire {
    bool         used, open, told, accepted;
    bool         client_gone, server_gone;  /* have closed their end                       */
    bool         reset, blocked, thirsty;   /* thirsty: the client waits for room          */
    bool         cut_short;                 /* the last output took less than was offered  */
    bool         dead;                      /* nothing gets through any more, in silence   */
    uint32_t     node, boot, number;        /* number: of use, against late events         */
    uint64_t     short_ms;                  /* when an output was cut short the last time  */
    tailnet_link link;
    unsigned     region;                    /* of the server                               */
    bool         control, tls;              /* tls: at port 443                            */
    bool         inner;                     /* the header does TLS itself                  */
    bool         bad_cert;                  /* the server shows a forged certificate       */
    pipe_        up, down;
} wire;

/* ---- datagrams ---- */

typedef struct gram {
    int          level;                     /* the router whose LAN it is on, or -1        */
    tailnet_addr from, to;
    uint32_t     len;
    uint32_t     sender;                    /* a node, or NOBODY                           */
    uint64_t     known, sent_ms;            /* nodes in the sender's directory, then       */
    uint32_t     path_mtu;
    bool         forged;
    uint8_t      data[];
} gram;

#define NOBODY UINT32_MAX

/* ---- nodes ---- */

typedef struct packet {                     /* of an application                           */
    uint32_t from, to, size;
    uint16_t port;
    uint64_t at_ms;
    bool     got, echo, six;
} packet;

typedef struct flow_seen { end4 who; uint8_t ip6[16]; uint16_t port; uint64_t at_ms; } flow_seen;

typedef struct machine {
    uint32_t      number;
    char          name[16];
    tailnet_node *n;                        /* NULL: off                                   */
    tailnet_desc  desc;
    uint8_t      *block;                    /* guard, memory, guard                        */
    size_t        size;
    uint8_t       saved[2][TAILNET_STATE_SIZE];
    size_t        saved_len[2];
    unsigned      newest, saves;
    /* where it is */
    int           box;                      /* its router, or -1                           */
    uint32_t      ip4;                      /* 0: none                                     */
    uint8_t       ip6[16];
    bool          has6, host_fw, router_fw6, only_443;
    uint32_t      lat_ms, jitter_ms, place_ms, loss, twice, late, mtu;  /* permille        */
    bool          link_down, no_udp;
    bool          slow, mute;               /* reads nothing from relays; they nothing of it */
    uint16_t      home;                     /* the region that a person chose, or 0        */
    flow_seen     fw[SIM_FLOWS];
    unsigned      fw_next;
    /* its clocks */
    uint64_t      boot_ms, base_ms;
    int32_t       ppm;
    int64_t       skew_ms;
    bool          no_clock;
    /* turning it */
    uint32_t      boots, wake, lag_ms;
    uint64_t      wake_ms, deadline_ms;
    uint64_t      last_poll_ms;
    uint32_t      polls, idle, in_a_row;
    bool          touched, inside, unasked; /* unasked: in a poll that was not due         */
    int           last_result;              /* of tailnet_ip_input                         */
    uint64_t      outputs;                  /* of all kinds                                */
    uint64_t      second;                   /* in which so many curves                     */
    uint32_t      curves;
    const char   *did;                      /* the last of them                            */
    uint64_t      random_seed;
    uint32_t      events;
    uint32_t      cut_after, cut_state;     /* power goes at so many callbacks from now,   */
    uint64_t      cut_ms;                   /*   for so long                               */
    wire         *wires[SIM_LINKS];
    uint32_t      wire_ids[SIM_LINKS];
    /* what the rest of the world may hold against it */
    uint64_t      known;                    /* mask of nodes in its directory              */
    uint32_t      ips[8];                   /* that it has had in the tailnet              */
    unsigned      ip_count;
    uint8_t       key[32];                  /* of the node, as it last knew it             */
    bool          shields, relay_only;
    bool          moved;                    /* to another network, and does not know it    */
    uint32_t      clock;                    /* of the server, up to which it has heard     */
    bool          forwarded;                /* its router forwards its port                */
    uint64_t      lost_ms[SIM_MASKED];      /* when a node left it                         */
    uint32_t      region_clock;             /* of the world, up to which it has heard      */
    uint32_t      policy;                   /* index of the policy it is sure to have      */
    bool          wanted, removed;          /* wanted: the script has it up                */
    bool          stale;                    /* came back with an old state                 */
    uint64_t      up_ms;
    uint64_t      direct_ms[SIM_MASKED];    /* since when direct, or NEVER                 */
    uint64_t      was_direct_ms[SIM_MASKED];/* when it was so for the last time            */
    uint32_t      echo_id[SIM_ECHOES];      /* packets to be answered after the call       */
    unsigned      echoes;
} machine;

typedef struct policy_was { rule rules[8]; size_t count; uint32_t clock; } policy_was;

typedef struct flow_plan {
    uint32_t from, to, size, every_ms;
    uint16_t port;
    bool     six;
    uint64_t end_ms;
} flow_plan;

typedef struct action {
    uint64_t at_ms;
    char     what[16];
    uint32_t a, b;
    uint64_t value, more;
} action;

typedef struct stun_wait { gram *g; struct stun_wait *next; } stun_wait;

typedef struct world {
    uint64_t    seed, rnd, now_ms, hash;
    event_heap  heap;
    bool        verbose, chatty, failed, healed, marks_off;
    bool        bad_cert;                   /* the server shows a forged certificate       */
    bool        tls;                        /* some nodes do TLS themselves                */
    uint32_t    peers;                      /* made-up ones, in every map                  */
    char        why[256];
    host       *h;
    uint64_t    server_next_ms;
    bool        control_down, region_down[SIM_REGIONS], region_gone[SIM_REGIONS];
    uint32_t    region_clock;               /* how often regions came or went              */
    int64_t     server_skew_ms;
    machine    *m;
    uint32_t    count;
    router     *box;
    uint32_t    boxes;
    bool        same_lans;
    wire      **wires;
    size_t      wire_count, wire_cap;
    int         accepting;
    stun_wait  *stun_first;
    gram       *stun_now;
    uint32_t    region_place[SIM_REGIONS], regions;
    packet     *packets;
    size_t      packet_count, packet_cap;
    uint8_t     mark[SIM_MARK];
    policy_was *policies;
    size_t      policy_count, policy_cap;
    flow_plan  *flows;
    size_t      flow_count, flow_cap;
    action     *actions;
    size_t      action_count, action_cap;
    uint64_t    heal_ms, talk_ms, end_ms;
    jmp_buf     power;                      /* where a power cut in a callback ends        */
    machine    *cut;
    gram       *in_hand;
    uint32_t    attack_in[256], attack_out[256], attack_next;
    uint32_t    hostile;                    /* a member, or NOBODY                         */
    bool        calm;                       /* nothing happens but what it does            */
    uint64_t    call_ms[256];               /* when it called for pings to that forger     */
    gram       *tape[SIM_TAPE];
    uint32_t    tape_count;
    /* figures */
    uint64_t    node_ms, grams, gram_lost, delivered, sent, forged_in, forged_out, spurious;
    uint64_t    evil_in;                    /* packets of the hostile member that came in  */
    uint64_t    handshakes;                 /* of TLS                                      */
    uint64_t    steps, cuts, directs, boots, idle;
    uint64_t    down_bytes;                 /* that nodes took from their connections      */
    clock_t     node_clock;                 /* processor time of nodes, with made-up peers */
    uint32_t    dns_answers, dns_answer;
} world;

static world *W;

static void rnd_seed(void *dst, size_t len) { rnd_fill(&W->rnd, dst, len); }

/* The first thing that is wrong ends the run. */
static void wrong(const char *format, ...)
{
    va_list list;
    char    text[200];
    if (W->failed) return;
    W->failed = true;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    snprintf(W->why, sizeof W->why, "at %lu ms: %s", (unsigned long)W->now_ms, text);
}

static void say(const char *format, ...)
{
    va_list list;
    if (!W->verbose) return;
    printf("%10.3f %04x ", (double)W->now_ms / 1000.0, (unsigned)(W->hash & 0xffffu));
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
}

static void plan(uint64_t at_ms, event_kind kind, uint32_t a, uint32_t b, void *thing)
{
    heap_push(&W->heap, at_ms < W->now_ms ? W->now_ms : at_ms, kind, a, b, thing);
}

static void sim_x25519(unsigned char *out, const unsigned char *scalar, const unsigned char *point)
{
    /* What was done before, for the keys that last: this is half of the simulator's time. */
    static struct { uint8_t in[64], out[32]; } known[1024];
    uint8_t  in[64];                        /* out may be the scalar                       */
    uint32_t at;
    memcpy(in, scalar, 32);
    memcpy(in + 32, point, 32);
    at = (tn_get_u32be(in) ^ tn_get_u32be(in + 32)) & 1023u;
    sim_curves++;
    if (memcmp(known[at].in, in, 64) != 0) {
        memcpy(known[at].in, in, 64);
        memcpy(known[at].out, point, 32);
        (void)br_ec_c25519_m31.mul(known[at].out, 32, in, 32, BR_EC_curve25519);
    }
    memcpy(out, known[at].out, 32);
}

/* ---- does a payload show? ---- */

/* A mark anywhere in the bytes. */
static bool has_mark(const uint8_t *b, size_t len)
{
    const uint8_t *end = b + len;
    while ((size_t)(end - b) >= SIM_MARK) {
        b = (const uint8_t *)memchr(b, W->mark[0], (size_t)(end - b) - SIM_MARK + 1);
        if (b == NULL) return false;
        if (memcmp(b, W->mark, SIM_MARK) == 0) return true;
        b++;
    }
    return false;
}

/* The same for a stream, whose bytes come in pieces. */
static bool stream_has_mark(pipe_ *p, const uint8_t *b, size_t len)
{
    uint8_t seam[2 * SIM_MARK];
    size_t  n = len < SIM_MARK - 1 ? len : SIM_MARK - 1, all;
    memcpy(seam, p->tail, p->tail_len);
    memcpy(seam + p->tail_len, b, n);
    all = p->tail_len + n;
    if (has_mark(seam, all) || has_mark(b, len)) return true;
    if (len >= SIM_MARK - 1) {
        memcpy(p->tail, b + len - (SIM_MARK - 1), SIM_MARK - 1);
        p->tail_len = SIM_MARK - 1;
    } else {
        p->tail_len = (unsigned)(all < SIM_MARK - 1 ? all : SIM_MARK - 1);
        memcpy(p->tail, seam + all - p->tail_len, p->tail_len);
    }
    return false;
}

#endif
