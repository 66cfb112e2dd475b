/* A world for whole nodes, in memory and in virtual time, from a seed: nodes (the
 * header as it is), a control server and DERP relays, joined by pipes that split
 * and delay what goes through them.
 *
 *     nw_world *w = nw_begin(seed);
 *     nw_node  *a = nw_add(w, "alpha");       change a->desc, then
 *     nw_up(a);  nw_run(w, 5000);             five seconds pass
 *
 * The callbacks of a node only queue; things are delivered by nw_run, which asks
 * each node when it wants to be polled and believes it: a deadline that is too
 * late shows as something that never happens, one that is too early as a poll
 * that does nothing. After every event nw_check looks at what must always hold.
 *
 * Include after tn_test.h, before anything that includes tailnet.h. */
#ifndef NODE_WORLD_H
#define NODE_WORLD_H

/* Every X25519 is counted: a poll may do those of one message. NW_TOY_CURVE puts
 * a cheap commutative product in its place, for fuzzing. */
static unsigned nw_dh;
static void     nw_x25519(unsigned char *out, const unsigned char *scalar,
                          const unsigned char *point);
#define TAILNET_X25519(out, scalar, point) nw_x25519(out, scalar, point)

#ifdef NW_NO_HEAP
static void nw_no_heap(void)
{
    printf("the header called the heap\n");
    abort();
}
#  define malloc(size)          (nw_no_heap(), (void *)0)
#  define calloc(count, size)   (nw_no_heap(), (void *)0)
#  define realloc(block, size)  (nw_no_heap(), (void *)0)
#  define free(block)           nw_no_heap()
#endif
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#ifdef NW_NO_HEAP
#  undef malloc
#  undef calloc
#  undef realloc
#  undef free
#endif

enum {
    NW_NODES   = 6,
    NW_GHOSTS  = 64,                        /* members without a node of ours     */
    NW_MEMBERS = NW_NODES + NW_GHOSTS,
    NW_CONNS   = 24,
    NW_STREAMS = 6,
    NW_REGIONS = 4,
    NW_PIPE    = 160 * 1024,
    NW_CHUNKS  = 512,
    NW_OUT     = 64 * 1024,                 /* of one answer of the control server */
    NW_BODY    = 4096,
    NW_FRAME   = 70 * 1024,                 /* largest DERP frame a relay keeps   */
    NW_MEMORY  = 192 * 1024,
    NW_KEPT    = 64,                        /* packets an application remembers   */
    NW_GRAMS   = 96,
    NW_HOLES   = 40,                        /* of a NAT                           */
    NW_TURNS   = 40000                      /* at one instant: somebody spins     */
};

#define NW_UNIX_MS UINT64_C(1800000000000)  /* when now_ms is 0: January 2027     */

/* What stands between a node and the world, for IPv4: nothing; a NAT that keeps a
 * mapping for all, or one that makes one for each address; both let in only who was
 * written to. BLOCKED: no datagram passes, of either family. */
typedef enum nw_nat { NW_OPEN, NW_EASY, NW_HARD, NW_BLOCKED } nw_nat;

typedef struct nw_world nw_world;
typedef struct nw_node  nw_node;
typedef struct nw_conn  nw_conn;

/* ---- pipes ---- */

typedef struct nw_chunk {
    uint64_t at_ms;
    uint32_t len;
} nw_chunk;

typedef struct nw_pipe {
    uint8_t  bytes[NW_PIPE];
    nw_chunk chunks[NW_CHUNKS];
    unsigned first, count;                  /* of chunks                          */
    uint32_t head, len;                     /* of bytes                           */
    uint64_t total;                         /* that ever went in                  */
    bool     stalled;                       /* nothing comes out                  */
    bool     lost;                          /* what goes in vanishes              */
    uint32_t flip;                          /* one bit of the flip-th byte changes */
} nw_pipe;

/* ---- the control server ---- */

typedef struct nw_stream {
    uint32_t  id;                           /* 0: free                            */
    char      method[8], path[200];
    uint8_t   head[512], body[NW_BODY];
    unsigned  head_len, body_len;
    bool      asked, head_due, answered, end;
    bool      is_map;                       /* the member's map stream            */
    unsigned  status;
    uint8_t  *out;
    uint32_t  out_len, out_at;
} nw_stream;

typedef struct nw_member {
    bool     used, known;                   /* known: registered                  */
    bool     unapproved, expired, hidden;
    uint8_t  machine[32], key[32], disco[32];
    uint16_t home;
    char     name[32];
    char     more[512];                     /* further members of its Node        */
    char     allowed[200];                  /* AllowedIPs instead of its addresses */
    char     endpoints[600];                /* as it told them                    */
    nw_node *node;                          /* NULL: a ghost                      */
    nw_conn *conn;                          /* of its map stream                  */
    uint32_t stream;
    uint64_t said_ms;                       /* last message on it                 */
    unsigned registers, streams, lites, answers;
} nw_member;

/* ---- connections ---- */

typedef enum nw_phase { NW_HEAD, NW_NOISE, NW_DERP, NW_DEAF } nw_phase;

struct nw_conn {
    bool         used, opened, closing, told, gone;   /* gone: the node closed it */
    bool         blocked;                   /* the node has no room till it polls */
    bool         frozen;                    /* no FIN, no bytes: cut in silence   */
    nw_node     *node;
    tailnet_link link;
    uint64_t     at_ms, writable_ms, alive_ms;
    uint16_t     region;                    /* 0: control                         */
    nw_phase     phase;
    char         host[64];
    nw_pipe      up, down;
    /* the server's half */
    tn_h1        h1;
    char         handshake[TN_H1_HANDSHAKE + 1];
    tn_nz        nz;
    tn_h2        h2;
    uint8_t      record[TN_NZ_RECORD_MAX];
    unsigned     record_len;
    bool         leave;                     /* GOAWAY is due                      */
    nw_stream    streams[NW_STREAMS];
    nw_member   *member;
    tn_derp      derp;
    uint8_t      store[NW_FRAME];
    uint8_t      key[32];                   /* who logged in on a relay           */
    bool         logged_in;
};

typedef struct nw_packet {
    uint64_t at_ms;
    uint32_t len;
    uint8_t  data[1600];
} nw_packet;

typedef struct nw_gram {
    uint64_t     at_ms;                     /* 0: free                            */
    tailnet_addr from, to;
    uint32_t     len;
    uint8_t      data[1700];
} nw_gram;

/* Where a NAT lets datagrams in again: from there to this port of its. */
typedef struct nw_hole {
    tailnet_addr to;
    uint16_t     port;
    uint64_t     until_ms;
} nw_hole;

struct nw_node {
    nw_world      *w;
    tailnet_node  *n;
    tailnet_desc   desc;
    unsigned       number;
    char           name[32];
    tailnet_addr   place, place6;           /* its UDP sockets; family 0: none    */
    nw_nat         nat;
    unsigned       renumbered;              /* its NAT has another address        */
    unsigned       lan;                     /* nodes of one number, not 0, share a NAT */
    tailnet_addr   gateway;
    nw_hole        holes[NW_HOLES];
    unsigned       hole;
    uint64_t       udp_bytes;
    nw_conn       *conns[8];
    uint8_t        state[TAILNET_STATE_SIZE];
    size_t         state_len;
    uint32_t       events;                  /* all since they were last taken     */
    uint64_t       seed;
    bool           random_fails, no_clock;
    int64_t        clock_skew_ms;
    bool           mute;                    /* tcp_output takes nothing           */
    uint32_t       sip;                     /* it takes at most so many at a time */
    unsigned       polls, dials, outputs, udp_sent;
    unsigned       idle, most_idle;         /* polls in a row that did nothing    */
    unsigned       most_dh;
    uint64_t       last_poll_ms;
    bool           touched;                 /* something came in since            */
    unsigned       packets;                 /* all that came                      */
    nw_packet      kept[NW_KEPT];
    tn_ctl_state   ctl_was;
    uint16_t       ctl_arrows[9];           /* seen: bit "to" in row "from"       */
    void         (*on_ip)(nw_node *node);   /* inside ip_output                   */
    union {
        uint8_t    bytes[NW_MEMORY];
        uint64_t   align_number;
        void      *align_pointer;
    } memory;
};

struct nw_world {
    uint64_t   now_ms, seed, hash;
    bool       trace;                       /* print what happens                 */
    bool       calm;                        /* no splits, no delays               */
    bool       quiet;                       /* the server announces nothing by itself */
    bool       early, deaf;                 /* deaf: dials are never answered     */
    bool       refuse;                      /* dials are refused                  */
    bool       no_relay;                    /* relay dials are refused            */
    uint32_t   latency_ms;
    uint64_t   keepalive_ms;                /* 0: none                            */
    uint8_t    control_private[32], control_public[32], relay_private[32], relay_public[32];
    /* what the control server says */
    const char *filter;                     /* JSON of PacketFilter               */
    const char *register_body;              /* instead of "you are in"            */
    unsigned    register_status;            /* 0: 200                             */
    unsigned    map_status, lite_status, key_status;
    const char *refuse_text, *retry_after;
    const char *first_map;                  /* instead of the real one            */
    const char *key_body;
    const char *key_moved;                  /* Location of a redirect             */
    const char *auth_key;                   /* NULL: any                          */
    bool        hold_register;              /* no answer to a follow-up           */
    bool        hold_map;
    bool        drop_upgrade;               /* 101, then the end                  */
    bool        mute_upgrade;               /* 101, then not a word               */
    uint16_t    regions;                    /* 1..NW_REGIONS exist                */
    char        last_register[NW_BODY], last_map[NW_BODY], last_lite[NW_BODY];
    char        last_answer[NW_BODY], last_path[200], last_method[8], last_head[160];
    char        last_key[160];
    unsigned    dials, keys, upgrades, registers, maps, lites, answers, heads;
    unsigned    relayed, relay_refused;
    bool      (*tap)(nw_world *w, const uint8_t from[32], const uint8_t to[32], const uint8_t *data,
                     size_t len);           /* sees what goes through relays; false: it is lost */
    bool        relay_drop;
    bool        keep_secret;                /* no member hears others' endpoints  */
    bool        udp;                        /* STUN servers answer                */
    uint32_t    udp_ms;                     /* of a datagram's way, besides 1     */
    uint32_t    stun_ms[NW_REGIONS + 1];    /* more until a region's server answers */
    unsigned    stuns;                      /* requests that were answered        */
    bool      (*udp_tap)(nw_world *w, nw_node *from, const tailnet_addr *to, const uint8_t *data,
                         size_t len);       /* sees what nodes send by UDP; false: lost */
    nw_node     nodes[NW_NODES];
    unsigned    count;
    nw_member   members[NW_MEMBERS];
    nw_conn     conns[NW_CONNS];
    nw_gram     grams[NW_GRAMS];
    char        text[NW_OUT];
};

/* ---- small things ---- */

static void nw_x25519(unsigned char *out, const unsigned char *scalar, const unsigned char *point)
{
#ifdef NW_TOY_CURVE
    uint8_t  s[32];
    unsigned i, k;
    memcpy(s, scalar, 32);
    tn_cr_clamp(s);
    for (i = 0; i < 32; i += 8) {
        uint64_t a = 0, b = 0;
        for (k = 0; k < 8; k++) {
            a |= (uint64_t)s[i + k] << 8 * k;
            b |= (uint64_t)point[i + k] << 8 * k;
        }
        a = (a | 1) * (b == 0 ? 0x9e3779b97f4a7c15u : b);
        for (k = 0; k < 8; k++) out[i + k] = (uint8_t)(a >> 8 * k);
    }
#else
    uint8_t g[32];                          /* out may be the scalar               */
    memcpy(g, point, 32);
    (void)br_ec_c25519_m31.mul(g, 32, scalar, 32, BR_EC_curve25519);
    memcpy(out, g, 32);
#endif
    nw_dh++;
}

static uint64_t nw_next(uint64_t *seed)
{
    uint64_t z = (*seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint32_t nw_below(nw_world *w, uint32_t limit) { return (uint32_t)(nw_next(&w->seed) % limit); }

static void nw_fill(uint64_t *seed, void *dst, size_t size)
{
    uint8_t *b = (uint8_t *)dst;
    size_t   i;
    for (i = 0; i < size; i++) b[i] = (uint8_t)(nw_next(seed) >> 56);
}

/* FNV-1a over everything that leaves a node: the same seed, the same hash. */
static void nw_note(nw_world *w, const void *data, size_t len)
{
    const uint8_t *b = (const uint8_t *)data;
    size_t         i;
    for (i = 0; i < len; i++) w->hash = (w->hash ^ b[i]) * 0x100000001b3u;
}

static void nw_wrong(nw_world *w, const char *what)
{
    tn_test_ok = false;
    printf("at %lu ms: %s\n", (unsigned long)w->now_ms, what);
}

/* ---- pipes ---- */

static void nw_pipe_clear(nw_pipe *p)
{
    p->first = p->count = 0;
    p->head = p->len = 0;
    p->stalled = p->lost = false;
    p->flip = 0;
    p->total = 0;
}

static void nw_pipe_chunk(nw_world *w, nw_pipe *p, uint32_t len, uint64_t at_ms)
{
    nw_chunk *last = p->count == 0 ? NULL : &p->chunks[(p->first + p->count - 1) % NW_CHUNKS];
    if (last != NULL && at_ms < last->at_ms) at_ms = last->at_ms;
    if (last != NULL && (p->count == NW_CHUNKS || (w->calm && last->at_ms == at_ms))) {
        last->len += len;
        return;
    }
    last        = &p->chunks[(p->first + p->count++) % NW_CHUNKS];
    last->at_ms = at_ms;
    last->len   = len;
}

/* Puts bytes in, cut and delayed as the world likes. */
static void nw_pipe_put(nw_world *w, nw_pipe *p, const void *data, size_t size)
{
    uint32_t left = (uint32_t)size;
    p->total += size;
    if (p->lost || size == 0) return;
    if (p->head + p->len + size > NW_PIPE) {
        memmove(p->bytes, p->bytes + p->head, p->len);
        p->head = 0;
    }
    if (p->len + size > NW_PIPE) {
        nw_wrong(w, "a pipe is full");
        return;
    }
    memcpy(p->bytes + p->head + p->len, data, size);
    if (p->flip != 0 && p->flip <= size) {
        p->bytes[p->head + p->len + p->flip - 1] ^= 0x10;
        p->flip = 0;
    } else if (p->flip != 0) {
        p->flip -= (uint32_t)size;
    }
    p->len += (uint32_t)size;
    while (left != 0) {
        uint32_t n = left;
        if (!w->calm && nw_below(w, 3) == 0) n = 1 + nw_below(w, left);
        nw_pipe_chunk(w, p, n, w->now_ms + w->latency_ms + (w->calm ? 0 : nw_below(w, 4)));
        left -= n;
    }
}

static uint64_t nw_pipe_at(const nw_pipe *p)
{
    return p->count == 0 || p->stalled ? TN_NEVER : p->chunks[p->first].at_ms;
}

/* The bytes that have arrived and belong together; 0: none. */
static uint32_t nw_pipe_ready(const nw_pipe *p, uint64_t now_ms)
{
    return nw_pipe_at(p) <= now_ms ? p->chunks[p->first].len : 0;
}

static void nw_pipe_take(nw_pipe *p, uint32_t len)
{
    p->head += len;
    p->len -= len;
    if (p->len == 0) p->head = 0;
    while (len != 0) {
        nw_chunk *c = &p->chunks[p->first];
        uint32_t  n = len < c->len ? len : c->len;
        c->len -= n;
        len -= n;
        if (c->len == 0) {
            p->first = (p->first + 1) % NW_CHUNKS;
            p->count--;
        }
    }
}

/* ---- callbacks ---- */

/* Which way control went since the last look. */
static void nw_sample(nw_node *d)
{
    if (d->n == NULL || d->n->ctl.state == d->ctl_was) return;
    d->ctl_arrows[d->ctl_was] = (uint16_t)(d->ctl_arrows[d->ctl_was] | 1u << d->n->ctl.state);
    if (d->w->trace)
        printf("%lu %s: control %d -> %d, why %d %s\n", (unsigned long)d->w->now_ms, d->name,
               (int)d->ctl_was, (int)d->n->ctl.state, (int)d->n->ctl.why,
               d->n->ctl.why_section == NULL ? "" : d->n->ctl.why_section);
    d->ctl_was = d->n->ctl.state;
}

static uint64_t nw_io_now(void *user)
{
    nw_sample((nw_node *)user);
    return ((nw_node *)user)->w->now_ms;
}

static uint64_t nw_io_unix(void *user)
{
    nw_node *d = (nw_node *)user;
    return d->no_clock ? 0 : NW_UNIX_MS + d->w->now_ms + (uint64_t)d->clock_skew_ms;
}

static int nw_io_random(void *user, void *dst, size_t size)
{
    nw_node *d = (nw_node *)user;
    nw_sample(d);
    nw_fill(&d->seed, dst, size);
    return d->random_fails ? -1 : 0;
}

/* A datagram is on its way. */
static void nw_gram_put(nw_world *w, const tailnet_addr *from, const tailnet_addr *to,
                        const uint8_t *data, size_t len)
{
    nw_gram *g = w->grams;
    while (g < w->grams + NW_GRAMS && g->at_ms != 0) g++;
    if (g == w->grams + NW_GRAMS || len > sizeof g->data) return;
    g->at_ms = w->now_ms + 1 + w->latency_ms + w->udp_ms;
    g->from  = *from;
    g->to    = *to;
    g->len   = (uint32_t)len;
    memcpy(g->data, data, len);
}

/* The outside of a node's NAT, without port. */
static void nw_outside(const nw_node *d, tailnet_addr *out)
{
    memset(out, 0, sizeof *out);
    out->family = 4;
    out->ip[0]  = 198;
    out->ip[1]  = 51;
    out->ip[2]  = (uint8_t)(100 + d->renumbered);
    out->ip[3]  = (uint8_t)(d->lan != 0 ? 100 + d->lan : d->number + 1);
}

static nw_hole *nw_hole_for(nw_node *d, const tailnet_addr *to, uint16_t port)
{
    unsigned i;
    for (i = 0; i < NW_HOLES; i++) {
        nw_hole *h = &d->holes[i];
        if (h->until_ms > d->w->now_ms && tn_addr_same(&h->to, to) && (port == 0 || h->port == port))
            return h;
    }
    return NULL;
}

/* The source that the world sees; remembers that answers may come in. */
static void nw_nat_out(nw_node *d, const tailnet_addr *to, tailnet_addr *from)
{
    nw_hole *h = nw_hole_for(d, to, 0);
    if (h == NULL) {
        h       = &d->holes[d->hole++ % NW_HOLES];
        h->to   = *to;
        h->port = (uint16_t)(d->nat == NW_HARD ? 32768 + nw_below(d->w, 32000) : 20000 + d->number);
    }
    h->until_ms = d->w->now_ms + 30000;
    nw_outside(d, from);
    from->port = h->port;
}

static int nw_io_udp(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    nw_node     *d    = (nw_node *)user;
    tailnet_addr from = to->family == 6 ? d->place6 : d->place;
    size_t       i;
    if (to->family == 4 && (to->ip[0] != 10 || d->lan == 0) && (d->nat == NW_EASY || d->nat == NW_HARD))
        nw_nat_out(d, to, &from);
    for (i = 0; i < count; i++) {
        const uint8_t *data = pkts[i].base + pkts[i].off;
        d->udp_sent++;
        d->udp_bytes += pkts[i].len;
        nw_note(d->w, data, pkts[i].len);
        if (d->w->udp_tap != NULL && !d->w->udp_tap(d->w, d, to, data, pkts[i].len)) continue;
        if (d->nat != NW_BLOCKED && from.family != 0) nw_gram_put(d->w, &from, to, data, pkts[i].len);
    }
    return from.family == 0 ? -1 : 0;
}

static void nw_io_ip(void *user, tailnet_buf *pkts, size_t count)
{
    nw_node *d = (nw_node *)user;
    size_t   i;
    for (i = 0; i < count; i++) {
        nw_packet *k = &d->kept[d->packets++ % NW_KEPT];
        k->at_ms     = d->w->now_ms;
        k->len       = pkts[i].len;
        if (k->len > sizeof k->data) k->len = sizeof k->data;
        memcpy(k->data, pkts[i].base + pkts[i].off, k->len);
        nw_note(d->w, k->data, k->len);
        if (d->on_ip != NULL) d->on_ip(d);
    }
}

static int nw_io_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    nw_node *d    = (nw_node *)user;
    unsigned slot = TAILNET_LINK_SLOT(link), i;
    nw_conn *c    = NULL;

    nw_sample(d);
    d->dials++;
    if (slot >= 8 || d->conns[slot] != NULL || dial->host == NULL) {
        nw_wrong(d->w, "tcp_open of a slot in use");
        return -1;
    }
    for (i = 0; i < NW_CONNS && c == NULL; i++)
        if (!d->w->conns[i].used) c = &d->w->conns[i];
    if (c == NULL) {
        nw_wrong(d->w, "no connection is left");
        return -1;
    }
    nw_note(d->w, dial->host, strlen(dial->host));
    memset(c, 0, offsetof(nw_conn, up));
    nw_pipe_clear(&c->up);
    nw_pipe_clear(&c->down);
    memset(&c->h1, 0, sizeof *c - offsetof(nw_conn, h1));
    c->used = true;
    c->node = d;
    c->link = link;
    c->at_ms = d->w->now_ms + 1 + d->w->latency_ms;
    c->writable_ms = c->alive_ms = TN_NEVER;
    (void)tn_text_copy(c->host, sizeof c->host, dial->host, strlen(dial->host));
    if (memcmp(c->host, "relay", 5) == 0) c->region = (uint16_t)(c->host[5] - '0');
    if (c->region == 0) d->w->dials++;
    tn_h1_begin_request(&c->h1, c->handshake);
    d->conns[slot] = c;
    return 0;
}

static nw_conn *nw_conn_of(nw_node *d, tailnet_link link)
{
    unsigned slot = TAILNET_LINK_SLOT(link);
    nw_conn *c    = slot < 8 ? d->conns[slot] : NULL;
    return c != NULL && c->link == link ? c : NULL;
}

static int32_t nw_io_output(void *user, tailnet_link link, const void *data, size_t size)
{
    nw_node *d = (nw_node *)user;
    nw_conn *c = nw_conn_of(d, link);
    size_t   n = size;

    nw_sample(d);
    if (c == NULL || !c->opened || size == 0) {
        nw_wrong(d->w, "tcp_output on a connection that is none");
        return -1;
    }
    d->outputs++;
    if (c->closing && !c->frozen) return -1;
    if (d->mute) {
        c->writable_ms = d->w->now_ms + 20;
        return 0;
    }
    if (d->sip != 0 && n > d->sip) n = d->sip;
    if (!d->w->calm && nw_below(d->w, 8) == 0) n = nw_below(d->w, (uint32_t)n + 1);
    if (n < size) c->writable_ms = d->w->now_ms + 1 + nw_below(d->w, 5);
    nw_note(d->w, data, n);
    nw_pipe_put(d->w, &c->up, data, n);
    return (int32_t)n;
}

static void nw_io_close(void *user, tailnet_link link)
{
    nw_node *d = (nw_node *)user;
    nw_conn *c = nw_conn_of(d, link);
    nw_sample(d);
    if (c == NULL) {
        nw_wrong(d->w, "tcp_close of a connection that is none");
        return;
    }
    c->gone = true;
    d->conns[TAILNET_LINK_SLOT(link)] = NULL;
}

/* ---- making it ---- */

static nw_world *nw_begin(uint64_t seed)
{
    nw_world *w = (nw_world *)calloc(1, sizeof *w);
    if (w == NULL) exit(2);
    w->seed         = seed;
    w->trace        = getenv("NW_TRACE") != NULL;
    w->now_ms       = 1000;
    w->hash         = 0xcbf29ce484222325u;
    w->latency_ms   = 2;
    w->keepalive_ms = 50000;
    w->regions      = 2;
    w->early        = nw_below(w, 2) == 0;
    w->filter       = "[{\"SrcIPs\":[\"*\"],\"DstPorts\":[{\"IP\":\"*\",\"Ports\":"
                      "{\"First\":0,\"Last\":65535}}]}]";
    nw_fill(&w->seed, w->control_private, 32);
    nw_fill(&w->seed, w->relay_private, 32);
    tn_cr_x25519_base(w->control_public, w->control_private);
    tn_cr_x25519_base(w->relay_public, w->relay_private);
    return w;
}

static nw_node *nw_add(nw_world *w, const char *name)
{
    nw_node      *d = &w->nodes[w->count];
    tailnet_desc *s = &d->desc;
    d->w      = w;
    d->number = w->count++;
    d->seed   = w->seed * 31 + d->number;
    (void)tn_text_copy(d->name, sizeof d->name, name, strlen(name));
    d->place.family = 4;
    d->place.port   = 41641;
    d->place.ip[0]  = 10;
    d->place.ip[3]  = (uint8_t)(d->number + 1);
    s->memory       = d->memory.bytes;
    s->memory_size  = sizeof d->memory.bytes;
    s->io.user      = d;
    s->io.now_ms    = nw_io_now;
    s->io.unix_ms   = nw_io_unix;
    s->io.random    = nw_io_random;
    s->io.udp_output = nw_io_udp;
    s->io.ip_output  = nw_io_ip;
    s->io.tcp_open   = nw_io_open;
    s->io.tcp_output = nw_io_output;
    s->io.tcp_close  = nw_io_close;
    s->control_url   = "http://control.test";
    s->auth_key      = "key-1";
    s->tls_by_caller = true;
    s->prefs.hostname = d->name;
    return d;
}

/* Tells the node what its network is. */
static void nw_network(nw_node *d, bool changed)
{
    tailnet_network net;
    tailnet_addr    own[2];
    memset(&net, 0, sizeof net);
    net.addrs = own;
    if (d->place.family != 0) own[net.addr_count++] = d->place;
    if (d->place6.family != 0) own[net.addr_count++] = d->place6;
    net.gateway = d->gateway;
    net.changed = changed;
    d->touched  = true;
    CHECK(tailnet_set_network(d->n, &net) == TAILNET_OK);
}

/* Makes the node, with the state that was saved last if there is one. */
static tailnet_result nw_make(nw_node *d)
{
    if (d->state_len != 0) {
        d->desc.saved_state[0].data = d->state;
        d->desc.saved_state[0].size = d->state_len;
    }
    return tailnet_init(&d->n, &d->desc);
}

static void nw_up(nw_node *d)
{
    CHECK(nw_make(d) == TAILNET_OK);
    if (d->n != NULL) CHECK(tailnet_up(d->n) == TAILNET_OK);
}

static void nw_gone_all(nw_world *w, nw_node *d);

/* Power off: no goodbye, the memory is filled with rubbish. */
static void nw_kill(nw_node *d)
{
    unsigned i;
    for (i = 0; i < 8; i++) {
        if (d->conns[i] != NULL) d->conns[i]->gone = true;
        d->conns[i] = NULL;
    }
    d->n = NULL;
    memset(d->memory.bytes, 0xa5, sizeof d->memory.bytes);
    nw_gone_all(d->w, d);
}

static void nw_end_streams(nw_conn *c)
{
    unsigned i;
    for (i = 0; i < NW_STREAMS; i++) {
        free(c->streams[i].out);
        memset(&c->streams[i], 0, sizeof c->streams[i]);
    }
}

static void nw_end(nw_world *w)
{
    unsigned i;
    for (i = 0; i < NW_CONNS; i++) nw_end_streams(&w->conns[i]);
    free(w);
}

/* ---- members ---- */

static nw_member *nw_member_of(nw_world *w, const nw_node *d)
{
    unsigned i;
    for (i = 0; i < NW_MEMBERS; i++)
        if (w->members[i].used && w->members[i].node == d) return &w->members[i];
    return NULL;
}

static unsigned nw_id(const nw_world *w, const nw_member *m) { return (unsigned)(m - w->members) + 1; }

static void nw_ip4(unsigned id, tailnet_addr *out)
{
    memset(out, 0, sizeof *out);
    out->family = 4;
    out->ip[0]  = 100;
    out->ip[1]  = 64;
    out->ip[2]  = (uint8_t)(id >> 8);
    out->ip[3]  = (uint8_t)id;
}

static void nw_ip6(unsigned id, tailnet_addr *out)
{
    static const uint8_t net[6] = { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0 };
    memset(out, 0, sizeof *out);
    out->family = 6;
    memcpy(out->ip, net, 6);
    out->ip[14] = (uint8_t)(id >> 8);
    out->ip[15] = (uint8_t)id;
}

/* A member of the tailnet that no node of ours plays. */
static nw_member *nw_ghost(nw_world *w, const char *name, uint16_t home)
{
    nw_member *m = NULL;
    unsigned   i;
    uint8_t    secret[32];
    for (i = 0; i < NW_MEMBERS && m == NULL; i++)
        if (!w->members[i].used) m = &w->members[i];
    memset(m, 0, sizeof *m);
    m->used = m->known = true;
    m->home = home;
    (void)tn_text_copy(m->name, sizeof m->name, name, strlen(name));
    nw_fill(&w->seed, secret, 32);
    tn_cr_x25519_base(m->key, secret);
    nw_fill(&w->seed, secret, 32);
    tn_cr_x25519_base(m->disco, secret);
    return m;
}

/* ---- what the control server says ---- */

static void nw_put_ip(tn_wr *w, const tailnet_addr *ip, const char *after)
{
    tn_wr_u8(w, '"');
    tn_wr_ip(w, ip);
    tn_wr_text(w, ip->family == 4 ? "/32\"" : "/128\"");
    tn_wr_text(w, after);
}

static void nw_put_node(nw_world *w, tn_wr *t, const nw_member *m)
{
    tailnet_addr ip4, ip6;
    unsigned     i;
    nw_ip4(nw_id(w, m), &ip4);
    nw_ip6(nw_id(w, m), &ip6);
    tn_wr_text(t, "{\"ID\":");
    tn_wr_dec(t, nw_id(w, m));
    tn_wr_text(t, ",\"Name\":\"");
    tn_wr_text(t, m->name);
    tn_wr_text(t, ".tail.test.\",\"User\":1,\"Key\":\"nodekey:");
    tn_wr_hex(t, m->key, 32);
    tn_wr_text(t, "\",\"DiscoKey\":\"discokey:");
    tn_wr_hex(t, m->disco, 32);
    tn_wr_text(t, "\"");
    for (i = 0; i < 2; i++) {
        tn_wr_text(t, i == 0 ? ",\"Addresses\":[" : ",\"AllowedIPs\":[");
        if (i == 1 && m->allowed[0] != '\0') {
            tn_wr_text(t, m->allowed);
        } else {
            nw_put_ip(t, &ip4, ",");
            nw_put_ip(t, &ip6, "");
        }
        tn_wr_text(t, "]");
    }
    tn_wr_text(t, ",\"HomeDERP\":");
    tn_wr_dec(t, m->home);
    tn_wr_text(t, m->unapproved ? "" : ",\"MachineAuthorized\":true");
    tn_wr_text(t, m->expired ? ",\"Expired\":true" : "");
    if (m->endpoints[0] != '\0') {
        tn_wr_text(t, ",\"Endpoints\":");
        tn_wr_text(t, m->endpoints);
    }
    tn_wr_text(t, m->more);
    tn_wr_text(t, "}");
}

static void nw_put_regions(nw_world *w, tn_wr *t)
{
    unsigned i;
    tn_wr_text(t, "\"DERPMap\":{\"Regions\":{");
    for (i = 1; i <= w->regions; i++) {
        tn_wr_text(t, i == 1 ? "\"" : ",\"");
        tn_wr_dec(t, i);
        tn_wr_text(t, "\":{\"RegionID\":");
        tn_wr_dec(t, i);
        tn_wr_text(t, ",\"Nodes\":[{\"Name\":\"r\",\"RegionID\":");
        tn_wr_dec(t, i);
        tn_wr_text(t, ",\"HostName\":\"relay");
        tn_wr_dec(t, i);
        tn_wr_text(t, ".test\",\"IPv4\":\"192.0.2.");
        tn_wr_dec(t, i);
        tn_wr_text(t, "\",\"IPv6\":\"2001:db8:1::");
        tn_wr_dec(t, i);
        tn_wr_text(t, "\"}]}");
    }
    tn_wr_text(t, "}}");
}

/* The first message of a stream. */
static void nw_put_map(nw_world *w, tn_wr *t, const nw_member *m)
{
    bool     some = false;
    unsigned i;
    tn_wr_text(t, "{\"Node\":");
    nw_put_node(w, t, m);
    tn_wr_text(t, ",");
    nw_put_regions(w, t);
    tn_wr_text(t, ",\"Domain\":\"tail.test\",\"PacketFilter\":");
    tn_wr_text(t, w->filter);
    tn_wr_text(t, ",\"Peers\":[");
    for (i = 0; i < NW_MEMBERS; i++) {
        const nw_member *p = &w->members[i];
        if (p == m || !p->used || !p->known || p->hidden) continue;
        if (some) tn_wr_text(t, ",");
        nw_put_node(w, t, p);
        some = true;
    }
    tn_wr_text(t, "]}");
}

static nw_stream *nw_stream_by_id(nw_conn *c, uint32_t id)
{
    unsigned i;
    for (i = 0; i < NW_STREAMS; i++)
        if (c->streams[i].id == id && id != 0) return &c->streams[i];
    return NULL;
}

static void nw_out(nw_stream *s, const void *data, size_t len)
{
    if (s->out == NULL) s->out = (uint8_t *)malloc(NW_OUT);
    if (s->out_at == s->out_len) s->out_at = s->out_len = 0;
    if (s->out == NULL || s->out_len + len > NW_OUT) exit(2);
    memcpy(s->out + s->out_len, data, len);
    s->out_len += (uint32_t)len;
}

static void nw_answer(nw_stream *s, unsigned status, const char *body)
{
    s->status   = status;
    s->head_due = true;
    s->end      = true;
    if (body != NULL) nw_out(s, body, strlen(body));
}

/* One framed message. */
static void nw_out_message(nw_stream *s, const char *text, size_t len)
{
    uint8_t head[4];
    tn_wr   w;
    tn_wr_over(&w, head, sizeof head);
    tn_wr_u32le(&w, (uint32_t)len);
    nw_out(s, head, 4);
    nw_out(s, text, len);
}

static void nw_control_flush(nw_world *w, nw_conn *c);

static nw_stream *nw_map_of(nw_member *m)
{
    return m == NULL || m->conn == NULL ? NULL : nw_stream_by_id(m->conn, m->stream);
}

/* A message to one member's map stream; false: there is none. */
static bool nw_say(nw_world *w, nw_member *m, const char *text)
{
    nw_stream *s = nw_map_of(m);
    if (s == NULL) return false;
    nw_out_message(s, text, strlen(text));
    m->said_ms = w->now_ms;
    nw_control_flush(w, m->conn);
    return true;
}

/* Tells everybody else what became of a member. */
static void nw_announce(nw_world *w, const nw_member *m)
{
    unsigned i;
    tn_wr    t;
    for (i = 0; i < NW_MEMBERS; i++) {
        if (!w->members[i].used || &w->members[i] == m) continue;
        tn_wr_over(&t, w->text, sizeof w->text - 1);
        tn_wr_text(&t, "{\"PeersChanged\":[");
        nw_put_node(w, &t, m);
        tn_wr_text(&t, "]}");
        w->text[tn_wr_len(&t)] = '\0';
        (void)nw_say(w, &w->members[i], w->text);
    }
}

/* The same to the member itself. */
static void nw_say_self(nw_world *w, nw_member *m)
{
    tn_wr t;
    tn_wr_over(&t, w->text, sizeof w->text - 1);
    tn_wr_text(&t, "{\"Node\":");
    nw_put_node(w, &t, m);
    tn_wr_text(&t, "}");
    w->text[tn_wr_len(&t)] = '\0';
    (void)nw_say(w, m, w->text);
}

/* A string member of a JSON text, by looking for it: our client's own JSON. */
static size_t nw_json_text(const char *json, const char *name, char *dst, size_t cap)
{
    char        key[64];
    const char *at;
    size_t      len;
    snprintf(key, sizeof key, "\"%s\":\"", name);
    at = strstr(json, key);
    if (at == NULL) return 0;
    at += strlen(key);
    len = strcspn(at, "\"");
    return tn_text_copy(dst, cap, at, len) ? len : 0;
}

static void nw_take_register(nw_world *w, nw_conn *c, nw_stream *s)
{
    nw_member *m = c->member;
    char       text[256];
    size_t     len;

    w->registers++;
    m->registers++;
    memcpy(w->last_register, s->body, s->body_len + 1);
    if (w->register_status != 0) {
        nw_answer(s, w->register_status, w->refuse_text);
        return;
    }
    if (w->hold_register && strstr(w->last_register, "Followup") != NULL) return;
    len = nw_json_text(w->last_register, "AuthKey", text, sizeof text);
    if (w->register_body != NULL) {
        nw_answer(s, 200, w->register_body);
        return;
    }
    if (w->auth_key != NULL && !m->known && (len == 0 || strcmp(text, w->auth_key) != 0)) {
        nw_answer(s, 200, "{\"MachineAuthorized\":false,\"AuthURL\":\"\",\"Error\":\"invalid pre auth key\"}");
        return;
    }
    if (strstr(w->last_register, "1970-01-01T00:02:03Z") != NULL) {
        m->known = false;
        nw_answer(s, 200, "{\"MachineAuthorized\":false,\"AuthURL\":\"\",\"Error\":\"\"}");
        return;
    }
    len = nw_json_text(w->last_register, "NodeKey", text, sizeof text);
    if (!tn_key_parse(m->key, TN_KEY_NODE, text, len)) nw_wrong(w, "no NodeKey in a registration");
    len = nw_json_text(w->last_register, "Hostname", text, sizeof text);
    if (!m->known) (void)tn_text_copy(m->name, sizeof m->name, text, len);
    m->known   = true;
    m->expired = false;
    nw_answer(s, 200, "{\"User\":{\"ID\":1},\"NodeKeyExpired\":false,\"MachineAuthorized\":true,"
                      "\"AuthURL\":\"\",\"Error\":\"\"}");
    if (!w->quiet) nw_announce(w, m);
}

/* Keys and home region of a map request; true: something is different now. */
static bool nw_take_facts(nw_world *w, nw_member *m, const char *json)
{
    char        text[128];
    uint8_t     disco[32];
    uint16_t    home = 0;
    const char *at   = strstr(json, "\"PreferredDERP\":"), *end;
    size_t      len  = nw_json_text(json, "DiscoKey", text, sizeof text);
    bool        changed;
    if (at != NULL) home = (uint16_t)atoi(at + 16);
    if (!tn_key_parse(disco, TN_KEY_DISCO, text, len)) {
        nw_wrong(w, "no DiscoKey in a map request");
        return false;
    }
    at  = strstr(json, "\"Endpoints\":[");
    end = at == NULL ? NULL : strstr(at + 12, "\"]");
    len = end == NULL ? 0 : (size_t)(end - at) - 10;
    if (len >= sizeof m->endpoints || w->keep_secret) len = 0;
    changed = home != m->home || memcmp(disco, m->disco, 32) != 0 ||
              strlen(m->endpoints) != len || (len != 0 && memcmp(m->endpoints, at + 12, len) != 0);
    (void)tn_text_copy(m->endpoints, sizeof m->endpoints, len == 0 ? "" : at + 12, len);
    m->home = home;
    memcpy(m->disco, disco, 32);
    return changed;
}

static void nw_take_map(nw_world *w, nw_conn *c, nw_stream *s)
{
    nw_member *m      = c->member;
    bool       stream = strstr((const char *)s->body, "\"Stream\":true") != NULL;
    tn_wr      t;

    memcpy(stream ? w->last_map : w->last_lite, s->body, s->body_len + 1);
    if (stream) w->maps++, m->streams++;
    else        w->lites++, m->lites++;
    if (!m->known || (stream ? w->map_status : w->lite_status) != 0) {
        unsigned status = stream ? w->map_status : w->lite_status;
        nw_answer(s, status == 0 ? 404 : status, w->refuse_text != NULL ? w->refuse_text : "node not found");
        return;
    }
    if (!stream) {
        nw_answer(s, 200, NULL);
        if (nw_take_facts(w, m, w->last_lite) && !w->quiet) nw_announce(w, m);
        return;
    }
    s->status   = 200;
    s->head_due = true;
    s->is_map   = true;
    m->conn     = c;
    m->stream   = s->id;
    m->said_ms  = w->now_ms;
    if (w->hold_map) return;
    if (w->first_map != NULL) {
        nw_out_message(s, w->first_map, strlen(w->first_map));
        return;
    }
    tn_wr_over(&t, w->text, sizeof w->text - 1);
    nw_put_map(w, &t, m);
    nw_out_message(s, w->text, tn_wr_len(&t));
}

/* A number of HPACK with a prefix of so many bits. */
static uint32_t nw_hp_number(tn_rd *r, unsigned first, unsigned bits)
{
    uint32_t most = ((uint32_t)1 << bits) - 1, v = first & most, shift = 0;
    uint8_t  b;
    if (v != most) return v;
    do {
        b = tn_rd_u8(r);
        v += (uint32_t)(b & 127u) << shift;
        shift += 7;
    } while ((b & 128u) != 0 && shift < 28);
    return v;
}

/* A string without Huffman: our client writes no other. */
static size_t nw_hp_string(tn_rd *r, char *dst, size_t cap)
{
    unsigned       first = tn_rd_u8(r);
    size_t         len   = nw_hp_number(r, first, 7);
    const uint8_t *at    = tn_rd_bytes(r, len);
    if ((first & 128u) != 0 || at == NULL || !tn_text_copy(dst, cap, (const char *)at, len)) return 0;
    return len;
}

static void nw_read_head(nw_world *w, nw_stream *s)
{
    tn_rd r;
    char  name[64], value[256];
    tn_rd_over(&r, s->head, s->head_len);
    (void)tn_text_copy(s->method, sizeof s->method, "POST", 4);
    while (r.left != 0 && tn_rd_ok(&r)) {
        unsigned first = tn_rd_u8(&r), index;
        if ((first & 0xe0u) == 0x20) {
            (void)nw_hp_number(&r, first, 5);
            continue;
        }
        if ((first & 0x80u) != 0) {
            index = nw_hp_number(&r, first, 7);
            if (index == 2) (void)tn_text_copy(s->method, sizeof s->method, "GET", 3);
            continue;
        }
        index = nw_hp_number(&r, first, 4);
        if (index == 0) (void)nw_hp_string(&r, name, sizeof name);
        value[0] = '\0';
        (void)nw_hp_string(&r, value, sizeof value);
        if (index == 2) (void)tn_text_copy(s->method, sizeof s->method, value, strlen(value));
        if (index == 4) (void)tn_text_copy(s->path, sizeof s->path, value, strlen(value));
    }
    if (!tn_rd_ok(&r)) nw_wrong(w, "a header block that does not read");
}

static void nw_take_request(nw_world *w, nw_conn *c, nw_stream *s)
{
    s->body[s->body_len] = '\0';
    s->asked             = true;
    if (strcmp(s->path, "/machine/register") == 0) {
        nw_take_register(w, c, s);
    } else if (strcmp(s->path, "/machine/map") == 0) {
        nw_take_map(w, c, s);
    } else {
        w->answers++;
        c->member->answers++;
        memcpy(w->last_answer, s->body, s->body_len + 1);
        memcpy(w->last_path, s->path, sizeof s->path);
        memcpy(w->last_method, s->method, sizeof s->method);
        nw_answer(s, 200, NULL);
    }
}

/* A 429 with its header, which the header's own server half has no need for. */
static bool nw_wr_retry(tn_wr *w, nw_stream *s, const char *after)
{
    uint8_t block[64];
    tn_wr   b;
    if (w->cap - tn_wr_len(w) < sizeof block + 9) return false;
    tn_wr_over(&b, block, sizeof block);
    tn_h2_wr_table(&b);
    tn_hp_wr_number(&b, 8, s->status);
    tn_hp_wr_field(&b, 53, after);
    tn_h2_wr_head(w, (uint32_t)tn_wr_len(&b), TN_H2_T_HEADERS, TN_H2_F_END_HEADERS, s->id);
    tn_wr_bytes(w, block, tn_wr_len(&b));
    return true;
}

/* Everything the server has to say on this connection, in Noise records. */
static void nw_control_flush(nw_world *w, nw_conn *c)
{
    uint8_t  record[TN_NZ_RECORD_MAX];
    unsigned i;
    if (c->phase != NW_NOISE) return;
    for (;;) {
        tn_wr o;
        tn_wr_over(&o, record + 3, TN_NZ_TEXT_MAX);
        (void)tn_h2_flush(&c->h2, &o);
        for (i = 0; i < NW_STREAMS; i++) {
            nw_stream *s = &c->streams[i];
            uint32_t   left;
            if (s->id == 0) continue;
            if (s->head_due && !s->answered) {
                if (s->status == 429 && w->retry_after != NULL) {
                    s->answered = nw_wr_retry(&o, s, w->retry_after);
                } else {
                    s->answered = tn_h2_answer(&c->h2, &o, s->id, s->status, NULL, TN_H2_NO_LENGTH,
                                               s->end && s->out_len == 0);
                    if (s->answered && s->end && s->out_len == 0) s->id = 0;
                }
            }
            left = s->out_len - s->out_at;
            if (s->id == 0 || !s->answered || (left == 0 && !(s->end && s->status == 429))) continue;
            s->out_at += (uint32_t)tn_h2_data(&c->h2, &o, s->id, s->out + s->out_at, left, s->end);
            if (s->end && s->out_at == s->out_len) {
                if (tn_h2_is_open(&c->h2, s->id)) continue;
                free(s->out);
                memset(s, 0, sizeof *s);
            }
        }
        if (tn_wr_len(&o) == 0) break;
        nw_pipe_put(w, &c->down, record, tn_nz_seal(&c->nz, record, tn_wr_len(&o)));
    }
    if (c->leave && !tn_h2_wants_flush(&c->h2)) c->closing = true;
}

static void nw_control_event(nw_world *w, nw_conn *c, tn_h2_kind kind, const tn_h2_event *ev)
{
    nw_stream *s = nw_stream_by_id(c, ev->stream);
    unsigned   i;
    if (kind == TN_H2_HEADER_BYTES) {
        for (i = 0; i < NW_STREAMS && s == NULL; i++)
            if (c->streams[i].id == 0) {
                s = &c->streams[i];
                free(s->out);
                memset(s, 0, sizeof *s);
                s->id = ev->stream;
            }
        if (s == NULL || s->head_len + ev->len > sizeof s->head) {
            nw_wrong(w, "too many streams or too long a head");
            return;
        }
        memcpy(s->head + s->head_len, ev->at, ev->len);
        s->head_len += (unsigned)ev->len;
    } else if (kind == TN_H2_HEADERS_END && s != NULL) {
        nw_read_head(w, s);
        if (ev->end) nw_take_request(w, c, s);
    } else if (kind == TN_H2_BODY && s != NULL) {
        if (s->body_len + ev->len >= sizeof s->body) nw_wrong(w, "too long a body");
        else if (ev->len != 0) memcpy(s->body + s->body_len, ev->at, ev->len);
        s->body_len += (unsigned)ev->len;
        if (ev->end) nw_take_request(w, c, s);
    } else if (kind == TN_H2_RESET && s != NULL) {
        if (c->member != NULL && c->member->conn == c && c->member->stream == s->id)
            c->member->conn = NULL;
        free(s->out);
        memset(s, 0, sizeof *s);
    } else if (kind == TN_H2_FAILED) {
        nw_wrong(w, "our client broke HTTP/2");
        c->closing = true;
    } else if (kind == TN_H2_GOAWAY) {
        c->closing = true;
    }
}

static void nw_control_text(nw_world *w, nw_conn *c, const uint8_t *text, size_t len)
{
    tn_rd       in;
    tn_h2_event ev;
    tn_h2_kind  kind;
    tn_rd_over(&in, text, len);
    memset(&ev, 0, sizeof ev);
    while (!c->closing && (kind = tn_h2_next(&c->h2, &in, &ev)) != TN_H2_MORE) {
        nw_control_event(w, c, kind, &ev);
        memset(&ev, 0, sizeof ev);
    }
    nw_control_flush(w, c);
}

/* Records of a client. */
static void nw_control_bytes(nw_world *w, nw_conn *c, const uint8_t *at, size_t len)
{
    while (len != 0 && !c->closing) {
        size_t   want = tn_nz_want(&c->nz, c->record, c->record_len), text_len = 0;
        uint8_t *text = NULL;
        if (want > len) want = len;
        memcpy(c->record + c->record_len, at, want);
        c->record_len += (unsigned)want;
        at += want;
        len -= want;
        if (tn_nz_want(&c->nz, c->record, c->record_len) != 0) continue;
        if (tn_nz_open(&c->nz, c->record, tn_nz_whole(c->record, c->record_len), &text, &text_len) !=
            TAILNET_OK) {
            c->closing = true;
            return;
        }
        c->record_len = 0;
        if (text_len != 0) nw_control_text(w, c, text, text_len);
    }
}

/* Base64 of the upgrade header; 0: it is none. */
static size_t nw_base64(uint8_t *dst, size_t cap, const char *text)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t          v       = 0;
    unsigned          bits    = 0;
    size_t            n       = 0;
    for (; *text != '\0' && *text != '='; text++) {
        const char *at = strchr(digit, *text);
        if (at == NULL) return 0;
        v = v << 6 | (uint32_t)(at - digit);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        if (n == cap) return 0;
        dst[n++] = (uint8_t)(v >> bits);
    }
    return n;
}

static nw_member *nw_member_by_machine(nw_world *w, const uint8_t machine[32], nw_node *d)
{
    nw_member *m = NULL;
    unsigned   i;
    for (i = 0; i < NW_MEMBERS; i++)
        if (w->members[i].used && memcmp(w->members[i].machine, machine, 32) == 0) return &w->members[i];
    for (i = 0; i < NW_MEMBERS && m == NULL; i++)
        if (!w->members[i].used) m = &w->members[i];
    if (m == NULL) exit(2);
    m->used = true;
    m->node = d;
    memcpy(m->machine, machine, 32);
    return m;
}

static void nw_answer_plain(nw_world *w, nw_conn *c, unsigned status, const char *body)
{
    uint8_t text[1024];
    tn_wr   t;
    tn_wr_over(&t, text, sizeof text);
    tn_h1_build_answer(&t, status, "text/plain", body, strlen(body));
    nw_pipe_put(w, &c->down, text, tn_wr_len(&t));
    c->closing = true;
}

static void nw_answer_key(nw_world *w, nw_conn *c)
{
    char  text[256];
    tn_wr t;
    w->keys++;
    memcpy(w->last_key, c->h1.text, sizeof c->h1.text);
    tn_wr_over(&t, text, sizeof text - 1);
    tn_wr_text(&t, "{\"legacyPublicKey\":\"mkey:");
    tn_wr_hex(&t, w->relay_public, 32);
    tn_wr_text(&t, "\",\"publicKey\":\"mkey:");
    tn_wr_hex(&t, w->control_public, 32);
    tn_wr_text(&t, "\"}");
    text[tn_wr_len(&t)] = '\0';
    if (w->key_moved != NULL && strstr(w->key_moved, c->h1.text) == NULL) {
        tn_wr_over(&t, text, sizeof text);
        tn_wr_text(&t, "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ");
        tn_wr_text(&t, w->key_moved);
        tn_wr_text(&t, "\r\n\r\n");
        nw_pipe_put(w, &c->down, text, tn_wr_len(&t));
        c->closing = true;
        return;
    }
    nw_answer_plain(w, c, w->key_status == 0 ? 200 : w->key_status,
                    w->key_body != NULL ? w->key_body : text);
}

static void nw_begin_noise(nw_world *w, nw_conn *c)
{
    static const char challenge[] = "{\"nodeKeyChallenge\":\"chalpub:"
        "0000000000000000000000000000000000000000000000000000000000000000\"}";
    uint8_t  init[TN_NZ_INITIATION_LEN + 8], eph[32], answer[TN_NZ_RESPONSE_LEN], machine[32];
    uint8_t  text[256];
    uint16_t version = 0;
    tn_wr    t;

    w->upgrades++;
    tn_wr_over(&t, text, sizeof text);
    tn_h1_build_101(&t, "tailscale-control-protocol", NULL);
    nw_pipe_put(w, &c->down, text, tn_wr_len(&t));
    if (w->mute_upgrade) return;
    nw_fill(&w->seed, eph, 32);
    if (w->drop_upgrade || nw_base64(init, sizeof init, c->handshake) != TN_NZ_INITIATION_LEN ||
        tn_nz_accept(&c->nz, w->control_private, init, eph, answer, machine, &version) != TAILNET_OK) {
        c->closing = true;
        return;
    }
    nw_pipe_put(w, &c->down, answer, sizeof answer);
    c->member = nw_member_by_machine(w, machine, c->node);
    c->phase  = NW_NOISE;
    tn_h2_begin(&c->h2, TN_H2_SERVER);
    if (w->early) {
        tn_wr_over(&t, text + 3, sizeof text - 3);
        tn_wr_bytes(&t, "\xff\xff\xff" "TS", 5);
        tn_wr_u32be(&t, sizeof challenge - 1);
        tn_wr_text(&t, challenge);
        nw_pipe_put(w, &c->down, text, tn_nz_seal(&c->nz, text, tn_wr_len(&t)));
    }
    nw_control_flush(w, c);
}

/* ---- relays ---- */

static nw_conn *nw_relay_of(nw_world *w, uint16_t region, const uint8_t key[32])
{
    unsigned i;
    for (i = 0; i < NW_CONNS; i++) {
        nw_conn *c = &w->conns[i];
        if (c->used && !c->gone && !c->closing && c->logged_in && c->region == region &&
            memcmp(c->key, key, 32) == 0)
            return c;
    }
    return NULL;
}

/* A packet as the relay would bring it, from any key. */
static bool nw_relay_bring(nw_world *w, uint16_t region, const uint8_t to[32],
                           const uint8_t from[32], const void *data, size_t len)
{
    static uint8_t frame[NW_FRAME];
    nw_conn       *c = nw_relay_of(w, region, to);
    tn_wr          t;
    if (c == NULL) return false;
    tn_wr_over(&t, frame, sizeof frame);
    tn_derp_wr_recv(&t, from, data, len);
    nw_pipe_put(w, &c->down, frame, tn_wr_len(&t));
    return true;
}

static void nw_relay_put(nw_world *w, nw_conn *c, tn_wr *t)
{
    nw_pipe_put(w, &c->down, t->base, tn_wr_len(t));
}

static void nw_relay_event(nw_world *w, nw_conn *c, tn_derp_event *ev)
{
    uint8_t text[256], nonce[24];
    tn_wr   t;
    tn_wr_over(&t, text, sizeof text);
    switch (ev->kind) {
    case TN_DERP_CLIENT_INFO:
        memcpy(c->key, ev->key, 32);
        nw_fill(&w->seed, nonce, sizeof nonce);
        if (!tn_derp_set_key(&c->derp, w->relay_private, c->key) || !tn_derp_open(&c->derp, ev)) {
            c->closing = true;
            return;
        }
        c->logged_in = true;
        tn_derp_wr_server_info(&c->derp, &t, nonce, 0, 0);
        nw_relay_put(w, c, &t);
        break;
    case TN_DERP_PACKET:
        if (w->relay_drop) return;
        w->relayed++;
        if (w->tap != NULL && !w->tap(w, c->key, ev->key, ev->data, ev->len)) return;
        if (nw_relay_bring(w, c->region, ev->key, c->key, ev->data, ev->len)) return;
        w->relay_refused++;
        tn_derp_wr_peer_gone(&t, ev->key, 1);
        nw_relay_put(w, c, &t);
        break;
    case TN_DERP_PING:
        tn_derp_wr_pong(&t, ev->data);
        nw_relay_put(w, c, &t);
        break;
    case TN_DERP_BROKEN:
        c->closing = true;
        break;
    case TN_DERP_NONE: case TN_DERP_OTHER: case TN_DERP_SERVER_KEY: case TN_DERP_SERVER_INFO:
    case TN_DERP_PEER_GONE: case TN_DERP_PONG: case TN_DERP_HEALTH: case TN_DERP_RESTARTING:
    case TN_DERP_KEEPALIVE: case TN_DERP_PREFERRED:
        break;
    }
}

static void nw_begin_relay(nw_world *w, nw_conn *c)
{
    uint8_t text[256];
    tn_wr   t;
    tn_wr_over(&t, text, sizeof text);
    tn_h1_build_101(&t, "DERP", NULL);
    tn_derp_wr_server_key(&t, w->relay_public);
    nw_pipe_put(w, &c->down, text, tn_wr_len(&t));
    tn_derp_start(&c->derp, true);
    c->phase    = NW_DERP;
    c->alive_ms = w->now_ms + 60000;
}

static void nw_relay_gone(nw_world *w, nw_conn *gone)
{
    uint8_t  text[64];
    unsigned i;
    tn_wr    t;
    for (i = 0; i < NW_CONNS; i++) {
        nw_conn *c = &w->conns[i];
        if (!c->used || c == gone || !c->logged_in || c->region != gone->region || c->closing) continue;
        tn_wr_over(&t, text, sizeof text);
        tn_derp_wr_peer_gone(&t, gone->key, 0);
        nw_relay_put(w, c, &t);
    }
}

/* ---- a server's half of a connection ---- */

static void nw_serve_head(nw_world *w, nw_conn *c)
{
    memcpy(w->last_head, c->h1.text, sizeof c->h1.text);
    if (c->region != 0) {
        if ((c->h1.flags & TN_H1_TO_DERP) != 0) nw_begin_relay(w, c);
        else                                    nw_answer_plain(w, c, 426, "DERP?");
    } else if (tn_begins(c->h1.text, strlen(c->h1.text), "/key")) {
        nw_answer_key(w, c);
    } else if (strcmp(c->h1.text, "/ts2021") == 0 && (c->h1.flags & TN_H1_TO_CONTROL) != 0) {
        nw_begin_noise(w, c);
    } else {
        if (c->h1.method == TN_H1_HEAD) w->heads++;
        nw_answer_plain(w, c, 200, "");
    }
}

static void nw_serve(nw_world *w, nw_conn *c, uint8_t *at, size_t len)
{
    tn_rd         in;
    tn_derp_event ev;
    tn_rd_over(&in, at, len);
    if (c->phase == NW_HEAD) {
        tn_h1_result r = tn_h1_head(&c->h1, &in);
        if (r == TN_H1_BAD) nw_wrong(w, "a request that is no HTTP");
        if (r == TN_H1_BAD) c->closing = true;
        if (r != TN_H1_HEAD_DONE) return;
        nw_serve_head(w, c);
        at += len - in.left;
        len = in.left;
    }
    if (c->phase == NW_NOISE && len != 0) nw_control_bytes(w, c, at, len);
    memset(&ev, 0, sizeof ev);
    while (c->phase == NW_DERP && !c->closing &&
           tn_derp_next(&c->derp, c->store, sizeof c->store, &at, &len, &ev) != TN_DERP_NONE) {
        nw_relay_event(w, c, &ev);
        memset(&ev, 0, sizeof ev);
    }
}

/* The server's timers. */
static void nw_serve_time(nw_world *w, nw_conn *c)
{
    uint8_t text[16];
    tn_wr   t;
    if (c->phase == NW_DERP && c->alive_ms <= w->now_ms) {
        tn_wr_over(&t, text, sizeof text);
        tn_derp_wr_keepalive(&t);
        nw_relay_put(w, c, &t);
        c->alive_ms = w->now_ms + 60000;
    }
    if (c->member != NULL && c->member->conn == c && w->keepalive_ms != 0 &&
        c->member->said_ms + w->keepalive_ms <= w->now_ms)
        (void)nw_say(w, c->member, "{\"KeepAlive\":true}");
}

static uint64_t nw_serve_at(const nw_world *w, const nw_conn *c)
{
    uint64_t at = c->phase == NW_DERP ? c->alive_ms : TN_NEVER;
    if (c->member != NULL && c->member->conn == c && w->keepalive_ms != 0)
        at = tn_min64(at, c->member->said_ms + w->keepalive_ms);
    return at;
}

static void nw_free_conn(nw_world *w, nw_conn *c)
{
    if (c->member != NULL && c->member->conn == c) c->member->conn = NULL;
    if (c->logged_in) nw_relay_gone(w, c);
    nw_end_streams(c);
    c->used = c->logged_in = false;
}

static void nw_gone_all(nw_world *w, nw_node *d)
{
    unsigned i;
    for (i = 0; i < NW_CONNS; i++)
        if (w->conns[i].used && w->conns[i].node == d && w->conns[i].gone) nw_free_conn(w, &w->conns[i]);
}

/* ---- what must always hold ---- */

static void nw_check(nw_node *d)
{
    const tailnet_node *n = d->n;
    unsigned            i, used = 0;
    for (i = 0; i < n->desc.max_sessions; i++) {
        const tn_session *s = &n->sessions[i];
        if (s->used_ms == 0) {
            if (!tn_is_zero(&s->wg, sizeof s->wg)) nw_wrong(d->w, "a free session holds something");
            continue;
        }
        used++;
        if (s->peer >= n->desc.max_peers || n->map.peers[s->peer].session != i)
            nw_wrong(d->w, "a session and its peer disagree");
        else if (tn_map_peer_at(&n->map, s->peer) == NULL)
            nw_wrong(d->w, "a session without a peer");
    }
    for (i = 0; i < n->desc.max_peers; i++)
        if (tn_map_peer_at(&n->map, (uint16_t)i) != NULL &&
            n->map.peers[i].session != TN_NODE_NO_SLOT) used--;
    if (used != 0) nw_wrong(d->w, "more peers have sessions than there are sessions");
    for (i = 0; i < n->desc.max_staged; i++)
        if (n->staged[i].len != 0 && n->staged[i].len + TAILNET_HEADROOM > n->staged_size)
            nw_wrong(d->w, "a staged packet is too long");
    if (n->ctl.state != TN_CTL_IDLE && n->ctl.due[TN_CTL_STATE] == 0 &&
        n->ctl.state != TN_CTL_FOLLOWUP && !n->ctl.refused && !n->network_down)
        nw_wrong(d->w, "a state of control without a deadline");
    if (n->state != TAILNET_STATE_RUNNING && n->state != TAILNET_STATE_FAILED)
        for (i = 0; i < n->desc.max_sessions; i++)
            if (n->sessions[i].used_ms != 0) nw_wrong(d->w, "a session although not running");
}

/* ---- turning it ---- */

static void nw_poll(nw_node *d)
{
    nw_world *w  = d->w;
    unsigned  dh = nw_dh, outputs = d->outputs, udp = d->udp_sent, packets = d->packets, i;
    uint32_t  events;
    bool      same = d->last_poll_ms == w->now_ms && !d->touched;

    events = tailnet_poll(d->n);
    nw_sample(d);
    d->polls++;
    d->events |= events;
    d->last_poll_ms = w->now_ms;
    d->touched      = false;
    dh              = nw_dh - dh;
    if (dh > d->most_dh) d->most_dh = dh;
    if (same && dh == 0 && events == 0 && outputs == d->outputs && udp == d->udp_sent &&
        packets == d->packets) {
        if (++d->idle > d->most_idle) d->most_idle = d->idle;
    } else {
        d->idle = 0;
    }
    if ((events & TAILNET_EVENT_SAVE) != 0)
        d->state_len = tailnet_export_state(d->n, d->state, sizeof d->state);
    for (i = 0; i < 8; i++)
        if (d->conns[i] != NULL) d->conns[i]->blocked = false;
    nw_check(d);
}

/* Hands bytes to a node, by one of the two ways. */
static void nw_deliver(nw_world *w, nw_conn *c, uint32_t len)
{
    tailnet_node *n    = c->node->n;
    const uint8_t *src = c->down.bytes + c->down.head;
    size_t         took, room = 0;
    uint8_t       *dst;

    c->node->touched = true;
    if (nw_below(w, 2) == 0) {
        took = tailnet_tcp_input(n, c->link, src, len);
    } else {
        dst  = tailnet_tcp_reserve(n, c->link, &room);
        took = dst == NULL ? 0 : room < len ? room : len;
        if (took != 0) {
            memcpy(dst, src, took);
            CHECK(tailnet_tcp_commit(n, c->link, took) == TAILNET_OK);
        }
    }
    if (took < len) c->blocked = took == 0;
    nw_pipe_take(&c->down, (uint32_t)took);
}

static bool nw_turn_conn(nw_world *w, nw_conn *c)
{
    uint32_t n;
    if (c->gone) {
        nw_free_conn(w, c);
        return true;
    }
    if (!c->opened) {
        if (c->at_ms > w->now_ms || w->deaf) return false;
        c->at_ms = TN_NEVER;
        if (c->told) return false;
        if (w->refuse || (w->no_relay && c->region != 0)) {
            c->told = true;
            (void)tailnet_tcp_closed(c->node->n, c->link);
        } else {
            c->opened = true;
            CHECK(tailnet_tcp_opened(c->node->n, c->link) == TAILNET_OK);
        }
        c->node->touched = true;
        return true;
    }
    if (c->writable_ms <= w->now_ms) {
        c->writable_ms   = TN_NEVER;
        c->node->touched = true;
        CHECK(tailnet_tcp_writable(c->node->n, c->link) == TAILNET_OK);
        return true;
    }
    if (c->frozen) return false;
    n = nw_pipe_ready(&c->up, w->now_ms);
    if (n != 0) {
        static uint8_t bytes[NW_PIPE];
        memcpy(bytes, c->up.bytes + c->up.head, n);
        nw_pipe_take(&c->up, n);
        if (!c->closing) nw_serve(w, c, bytes, n);
        return true;
    }
    if (!c->closing && nw_serve_at(w, c) <= w->now_ms) {
        nw_serve_time(w, c);
        return true;
    }
    n = nw_pipe_ready(&c->down, w->now_ms);
    if (n != 0 && !c->blocked) {
        nw_deliver(w, c, n);
        return true;
    }
    if (c->closing && c->down.count == 0 && !c->told) {
        c->told          = true;
        c->node->touched = true;
        if (c->logged_in) nw_relay_gone(w, c);
        c->logged_in = false;
        CHECK(tailnet_tcp_closed(c->node->n, c->link) == TAILNET_OK);
        return true;
    }
    return false;
}

/* Is a datagram for this node, as things stand? */
static bool nw_gram_is_for(nw_node *d, const nw_gram *g)
{
    tailnet_addr out;
    if (d->n == NULL || d->nat == NW_BLOCKED) return false;
    if (g->to.family == 6) return tn_addr_same(&d->place6, &g->to);
    if (tn_addr_same(&d->place, &g->to)) {
        const nw_node *o = NULL;
        unsigned       i;
        if (d->nat == NW_OPEN) return true;
        for (i = 0; i < d->w->count; i++)
            if (tn_addr_same(&d->w->nodes[i].place, &g->from)) o = &d->w->nodes[i];
        return o != NULL && o->lan == d->lan && d->lan != 0;
    }
    nw_outside(d, &out);
    return tn_ip_same(&out, &g->to) && nw_hole_for(d, &g->from, g->to.port) != NULL;
}

/* The STUN servers of the relays: 192.0.2.region and 2001:db8:1::region. */
static bool nw_gram_stun(nw_world *w, const nw_gram *g)
{
    uint8_t id[12], text[64];
    tn_wr   t;
    if (g->to.port != 3478 || (g->to.family == 4 ? g->to.ip[0] != 192 : g->to.ip[5] != 1)) return false;
    if (!w->udp || !tn_stun_parse_request(g->data, g->len, id)) return true;
    w->stuns++;
    tn_wr_over(&t, text, sizeof text);
    tn_stun_wr_response(&t, id, &g->from);
    w->udp_ms += w->stun_ms[g->to.ip[g->to.family == 4 ? 3 : 15] % (NW_REGIONS + 1)];
    nw_gram_put(w, &g->to, &g->from, text, tn_wr_len(&t));
    w->udp_ms -= w->stun_ms[g->to.ip[g->to.family == 4 ? 3 : 15] % (NW_REGIONS + 1)];
    return true;
}

static bool nw_turn_gram(nw_world *w, nw_gram *g)
{
    unsigned i;
    if (g->at_ms == 0 || g->at_ms > w->now_ms) return false;
    if (!nw_gram_stun(w, g)) {
        for (i = 0; i < w->count; i++) {
            nw_node    *d = &w->nodes[i];
            tailnet_buf b;
            if (!nw_gram_is_for(d, g)) continue;
            memset(&b, 0, sizeof b);
            b.base = g->data;
            b.cap  = sizeof g->data;
            b.len  = g->len;
            (void)tailnet_udp_input(d->n, &g->from, &b, 1);
            d->touched = true;
            nw_check(d);
            break;
        }
    }
    g->at_ms = 0;
    return true;
}

/* Whatever is due at this instant, one thing of each kind; false: nothing was. */
static bool nw_turn(nw_world *w)
{
    bool     some = false;
    unsigned i;
    for (i = 0; i < NW_CONNS; i++)
        if (w->conns[i].used && nw_turn_conn(w, &w->conns[i])) some = true;
    for (i = 0; i < NW_GRAMS; i++)
        if (nw_turn_gram(w, &w->grams[i])) some = true;
    for (i = 0; i < w->count; i++) {
        nw_node *d = &w->nodes[i];
        if (d->n == NULL || tailnet_deadline(d->n) > w->now_ms) continue;
        nw_poll(d);
        some = true;
    }
    return some;
}

/* When the next thing happens. */
static uint64_t nw_when(const nw_world *w)
{
    uint64_t at = TN_NEVER;
    unsigned i;
    for (i = 0; i < NW_CONNS; i++) {
        const nw_conn *c = &w->conns[i];
        if (!c->used) continue;
        if (!c->opened) {
            if (!w->deaf && !c->told) at = tn_min64(at, c->at_ms);
            continue;
        }
        at = tn_min64(at, c->writable_ms);
        if (c->frozen) continue;
        at = tn_min64(at, nw_pipe_at(&c->up));
        if (!c->blocked) at = tn_min64(at, nw_pipe_at(&c->down));
        if (!c->closing) at = tn_min64(at, nw_serve_at(w, c));
    }
    for (i = 0; i < NW_GRAMS; i++)
        if (w->grams[i].at_ms != 0) at = tn_min64(at, w->grams[i].at_ms);
    for (i = 0; i < w->count; i++)
        if (w->nodes[i].n != NULL) at = tn_min64(at, tailnet_deadline(w->nodes[i].n));
    return at;
}

/* Who wants what just now, for a person. */
static void nw_tell(const nw_world *w)
{
    unsigned i, k;
    for (i = 0; i < w->count; i++) {
        const nw_node      *d = &w->nodes[i];
        const tailnet_node *n = d->n;
        if (n == NULL) continue;
        printf("%s: state %d, more %d, polls %u, deadline %ld: link %ld, control %ld (%d), relay %ld\n",
               d->name, (int)n->state, n->more, d->polls, (long)tailnet_deadline(n),
               (long)tn_link_deadline(&n->links), (long)tn_ctl_deadline(&n->ctl), (int)n->ctl.state,
               (long)tn_relay_deadline(&n->relay));
        for (k = 0; k < n->desc.max_sessions; k++)
            if (n->sessions[k].used_ms != 0)
                printf("  session %u: %ld\n", k, (long)tn_wg_deadline(&n->sessions[k].wg));
        for (k = 0; k < 8; k++)
            if (d->conns[k] != NULL)
                printf("  %s: opened %d, closing %d, down %ld, up %ld, blocked %d\n", d->conns[k]->host,
                       d->conns[k]->opened, d->conns[k]->closing, (long)nw_pipe_at(&d->conns[k]->down),
                       (long)nw_pipe_at(&d->conns[k]->up), d->conns[k]->blocked);
    }
}

/* Lets ms milliseconds pass. */
static void nw_run(nw_world *w, uint64_t ms)
{
    uint64_t end = w->now_ms + ms, at;
    unsigned turns;
    for (;;) {
        for (turns = 0; nw_turn(w); turns++) {
            if (turns < NW_TURNS) continue;
            nw_wrong(w, "somebody spins");
            nw_tell(w);
            exit(1);
        }
        at = nw_when(w);
        if (at > end) break;
        if (at > w->now_ms) w->now_ms = at;
    }
    w->now_ms = end;
}

static tailnet_state nw_state(const nw_node *d) { return tailnet_get_state(d->n); }

/* Lets time pass until a node stands so, at most ms milliseconds. */
static bool nw_until(nw_node *d, tailnet_state state, uint64_t ms)
{
    uint64_t end = d->w->now_ms + ms;
    while (nw_state(d) != state && d->w->now_ms < end) nw_run(d->w, 10);
    return nw_state(d) == state;
}

/* ---- scripts ---- */

/* The connection of a node to control (region 0) or to a relay. */
static nw_conn *nw_conn_to(nw_node *d, uint16_t region)
{
    unsigned i;
    for (i = 0; i < 8; i++)
        if (d->conns[i] != NULL && d->conns[i]->region == region) return d->conns[i];
    return NULL;
}

/* The server ends it; what is under way is lost. */
static void nw_cut(nw_node *d, uint16_t region)
{
    nw_conn *c = nw_conn_to(d, region);
    if (c == NULL) return;
    c->closing = true;
    if (c->member != NULL && c->member->conn == c) c->member->conn = NULL;
    nw_pipe_clear(&c->up);
    nw_pipe_clear(&c->down);
}

/* A router forgot it: both sides believe it stands, nothing gets through. */
static void nw_freeze(nw_node *d, uint16_t region)
{
    nw_conn *c = nw_conn_to(d, region);
    if (c == NULL) return;
    c->frozen    = true;
    c->closing   = true;                    /* the server has given up on it      */
    c->logged_in = false;
    if (c->member != NULL && c->member->conn == c) c->member->conn = NULL;
    c->up.lost = c->down.lost = true;
}

/* ---- packets ---- */

/* An IPv4 or IPv6 UDP packet into dst; returns its length. */
static size_t nw_udp_packet(uint8_t *dst, const tailnet_addr *src, const tailnet_addr *to,
                            const void *payload, size_t len)
{
    tn_wr    w;
    uint16_t sum;
    tn_wr_over(&w, dst, 2048);
    if (src->family == 4) {
        tn_wr_u8(&w, 0x45);
        tn_wr_u8(&w, 0);
        tn_wr_u16be(&w, (unsigned)(28 + len));
        tn_wr_u32be(&w, 0);
        tn_wr_u8(&w, 64);
        tn_wr_u8(&w, 17);
        tn_wr_u16be(&w, 0);
        tn_wr_bytes(&w, src->ip, 4);
        tn_wr_bytes(&w, to->ip, 4);
        sum = (uint16_t)~(unsigned)tn_ip_fold(tn_ip_sum(0, dst, 20));
        dst[10] = (uint8_t)(sum >> 8);
        dst[11] = (uint8_t)sum;
    } else {
        tn_wr_u32be(&w, 0x60000000u);
        tn_wr_u16be(&w, (unsigned)(8 + len));
        tn_wr_u8(&w, 17);
        tn_wr_u8(&w, 64);
        tn_wr_bytes(&w, src->ip, 16);
        tn_wr_bytes(&w, to->ip, 16);
    }
    tn_wr_u16be(&w, src->port);
    tn_wr_u16be(&w, to->port);
    tn_wr_u16be(&w, (unsigned)(8 + len));
    tn_wr_u16be(&w, 0);                     /* no sum: legal for IPv4, nobody looks */
    tn_wr_bytes(&w, payload, len);
    return tn_wr_len(&w);
}

/* The application of a node sends a packet. */
static tailnet_result nw_send_packet(nw_node *d, const uint8_t *packet, size_t len)
{
    uint8_t     bytes[2048];
    tailnet_buf b;
    memset(&b, 0, sizeof b);
    memset(bytes, 0xee, sizeof bytes);
    memcpy(bytes + TAILNET_HEADROOM, packet, len);
    b.base = bytes;
    b.cap  = sizeof bytes;
    b.off  = TAILNET_HEADROOM;
    b.len  = (uint32_t)len;
    d->touched = true;
    return tailnet_ip_input(d->n, &b, 1);
}

/* UDP from port to port, between addresses of the tailnet. */
static tailnet_result nw_send_from(nw_node *d, const tailnet_addr *src, uint16_t src_port,
                                   const tailnet_addr *dst, uint16_t dst_port, const char *text)
{
    uint8_t      packet[2048];
    tailnet_addr a = *src, b = *dst;
    a.port = src_port;
    b.port = dst_port;
    return nw_send_packet(d, packet, nw_udp_packet(packet, &a, &b, text, strlen(text)));
}

static void nw_my_ip(const nw_node *d, tailnet_addr *out)
{
    tailnet_self self;
    memset(out, 0, sizeof *out);
    if (tailnet_get_self(d->n, &self)) *out = self.ip4;
}

static tailnet_result nw_send(nw_node *d, nw_node *to, uint16_t port, const char *text)
{
    tailnet_addr src, dst;
    nw_my_ip(d, &src);
    nw_ip4(nw_id(d->w, nw_member_of(d->w, to)), &dst);
    return nw_send_from(d, &src, 1000, &dst, port, text);
}

/* Did a packet with this payload come, and how often? */
static unsigned nw_got(const nw_node *d, const char *text)
{
    unsigned i, found = 0, have = d->packets < NW_KEPT ? d->packets : NW_KEPT;
    size_t   len = strlen(text);
    for (i = 0; i < have; i++) {
        size_t head = d->kept[i].data[0] >> 4 == 4 ? 28 : 48;
        if (d->kept[i].len == head + len && memcmp(d->kept[i].data + head, text, len) == 0) found++;
    }
    return found;
}

/* A node that runs, joined by key. */
static nw_node *nw_join(nw_world *w, const char *name)
{
    nw_node *d = nw_add(w, name);
    nw_up(d);
    CHECK(nw_until(d, TAILNET_STATE_RUNNING, 20000));
    return d;
}

/* Two nodes that have talked to each other. */
static void nw_pair(nw_world *w, nw_node **a, nw_node **b)
{
    *a = nw_join(w, "alpha");
    *b = nw_join(w, "beta");
    nw_run(w, 2000);
    CHECK(nw_send(*a, *b, 7, "first") == TAILNET_OK);
    nw_run(w, 1000);
    CHECK(nw_got(*b, "first") == 1);
    CHECK(nw_send(*b, *a, 7, "answer") == TAILNET_OK);
    nw_run(w, 200);
    CHECK(nw_got(*a, "answer") == 1);
}

#endif
