/* selfhost: a control server, a relay and a STUN server in one process.
 *
 * For tests and small labs: one tailnet, one user, fixed tables, no database, no web page. It
 * speaks what nodes and official clients speak (TLS, Noise, HTTP/2, the map stream, DERP), and
 * stands on the rooms of tailnet.h in the server's role. `selfhost --help` lists the options.
 *
 * One poll(2) loop, no threads, memory taken once at the start. Each connection is a struct conn:
 *
 *     socket <-> TLS or plain <-> HTTP/1 head -> control (Noise, HTTP/2, JSON) or relay (DERP)
 *
 * Whatever arrives closes at most its own connection. A change of the tailnet raises one counter
 * (host.clock); each map stream remembers up to where it has told its node, and asks for itself
 * what is due. From top to bottom: tables, HPACK, nodes, policy, map text, requests, control
 * connections, relay, HTTP, sockets, admin lines, files, main. */
#define _GNU_SOURCE
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_NODES = 1024, MAX_KEYS = 32, MAX_LOGINS = 64, MAX_RULES = 64, MAX_ADMINS = 8,
    MAX_ENDPOINTS = 12, MAX_CHAIN = 4, MAX_REGIONS = 4, NAME = 64, TAGS = 128,
    REGION     = 900,                       /* 900 to 999 are for one's own relays        */
    BIG_ID     = 1000001,                   /* of the first synthetic peer                */
    BIG_JUMP   = 2000000,                   /* between those of --peers before the real
                                               ones and behind them                       */
    BIG_MAX    = 1000000,
    BODY_MAX   = 1 << 20,                   /* of a request, as other servers             */
    OUT_MAX    = 160 * 1024,                /* a relay's queue: two of the largest packets */
    STORE      = 65536 + 64,                /* the largest packet and its keys            */
    POLICY_MAX = 6144,                      /* of a policy file                           */
    STEP_MAX   = POLICY_MAX + 1024,         /* the longest piece of a message             */
    PIECE      = 16384,
    NODE_TEXT  = 1536,                      /* of a node in maps; longer ones: each time  */
    SLACK      = 4096                       /* for what joins while a long message is sent */
};

/* Limits of time, in milliseconds. */
enum {
    HELLO_MS = 15000, STUCK_MS = 10000, LEAVE_MS = 3000, IDLE_MS = 120000, PING_MS = 10000,
    LOGIN_MS = 900000, RELAY_KEEPALIVE_MS = 60000
};

/* ---- tables ---- */

/* What of a node may change on its own; each has its own mark in node.changed. */
typedef enum part { PART_WHOLE, PART_ONLINE, PART_PATHS, PART_KEY, PARTS } part;

typedef struct conn conn;

typedef struct node {
    uint32_t     id;                        /* 0: free; its addresses follow from it      */
    uint8_t      machine[32], key[32], disco[32];
    char         host[NAME], name[NAME], os[24], tags[TAGS];
    uint16_t     home, version, api4, api6;
    bool         expired, ephemeral;
    bool         shown;                     /* it asked for a map: others may know it     */
    uint32_t     changed[PARTS];            /* host.clock of the last change              */
    uint32_t     polls;                     /* its map streams                            */
    tailnet_addr endpoints[MAX_ENDPOINTS];
    size_t       endpoint_count;
    uint64_t     created_ms, seen_ms, expiry_ms;    /* wall clock                         */
    uint64_t     forget_ms;                 /* of an ephemeral node that is away, or NEVER */
    conn        *relay[MAX_REGIONS];        /* where its packets go, by region            */
    uint16_t     text_len;                  /* of its text in maps; 0: to be written anew */
    uint8_t      text[NODE_TEXT];
} node;

typedef struct auth_key {
    char text[NAME * 2], tags[TAGS];
    bool once, used, ephemeral, expired;
} auth_key;

/* A relay: the first is the server itself, more have a listener each. */
typedef struct region {
    uint16_t    id, port;
    char        name[128];
    const char *ip4, *ip6;                  /* may be NULL                                */
    int         fd;                         /* where TLS is spoken                        */
    bool        hidden;                     /* in no map                                  */
} region;

typedef struct login {
    char     id[25];                        /* "": free                                   */
    uint8_t  machine[32], key[32];
    char     host[NAME];
    bool     approved;
    uint64_t deadline_ms;
} login;

typedef struct rule {
    char src[72], dst[72], ports[64], proto[12];
} rule;

/* The code of HPACK's strings, made from its lengths. */
typedef struct huffman {
    uint16_t symbol[257];
    uint32_t first[31], count[31], index[31];
} huffman;

typedef struct admin {
    int    fd;                              /* -1: free                                   */
    size_t len;
    bool   waits;                           /* for the answer to its ping                 */
    char   line[4096];
} admin;

typedef struct options {
    const char *listen, *plain, *url, *cert, *key, *state, *policy, *admin, *stun, *node_ip4;
    const char *cert_name, *domain, *node_ip6;
    bool        open_login, no_early, json, verbose, deny, plain_relay;
    uint32_t    max_nodes, ephemeral_s, keepalive_s, peers;
} options;

typedef struct host {
    options  opt;
    region   regions[MAX_REGIONS];          /* the first has name and port of the URL     */
    size_t   region_count;
    uint16_t stun_port;
    uint8_t  noise[32], noise_public[32], derp[32], derp_public[32];
    uint64_t now_ms, wall_ms;
    uint32_t clock, policy_clock, next_id, big, big_before, ping_number;
    bool     dirty, stop, again, raw_policy;
    node    *nodes;
    uint16_t by_key[4 * MAX_NODES];         /* open addressing: slot + 1                  */
    auth_key keys[MAX_KEYS];
    login    logins[MAX_LOGINS];
    rule     rules[MAX_RULES];
    size_t   key_count, rule_count, policy_len;
    char     policy[POLICY_MAX];
    huffman  huff;
    conn    *conns;
    size_t   conn_count;
    int      plain_fd, stun_fd, admin_fd;
    admin    admins[MAX_ADMINS];
    char    *answer;                        /* of an admin line                           */
    size_t   answer_cap;
    char     ping_id[17];
    uint32_t ping_node;
    bool     ping_c2n;
    uint64_t ping_start_ms;                 /* 0: none under way                          */
    uint64_t relayed, dropped, nobody, stuns, accepted, turned_away;
    br_x509_certificate     chain[MAX_CHAIN];
    size_t                  chain_len;
    br_ec_private_key       secret;
    uint8_t                 pem[16384], secret_bytes[64];
} host;

static void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("selfhost: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    exit(2);
}

static void randomly(void *dst, size_t len)
{
    if (getrandom(dst, len, 0) != (ssize_t)len) die("the system gives no random bytes");
}

static void read_clocks(host *h)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    h->now_ms = (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
    clock_gettime(CLOCK_REALTIME, &t);
    h->wall_ms = (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

/* Whatever is no printable ASCII becomes a question mark. */
static void make_plain(char *text, size_t len)
{
    for (; len != 0; len--, text++)
        if (*text < ' ' || *text > '~') *text = '?';
}

/* Something happened: a line for people (-v) and one for programs (--json). */
static void tell(const host *h, const char *event, const node *n, const char *detail)
{
    uint8_t text[768];
    tn_wr   wr;
    tn_js_w w;
    if (h->opt.verbose)
        fprintf(stderr, "%s%s%s%s%s\n", event, n != NULL ? " " : "", n != NULL ? n->name : "",
                detail != NULL ? ": " : "", detail != NULL ? detail : "");
    if (!h->opt.json) return;
    tn_wr_over(&wr, text, sizeof text - 1);
    tn_js_w_init(&w, &wr);
    tn_js_w_object(&w);
    tn_js_w_member(&w, "event", event);
    if (n != NULL) tn_js_w_member(&w, "name", n->name);
    if (n != NULL) tn_js_w_member_uint(&w, "id", n->id);
    if (detail != NULL) tn_js_w_member(&w, strcmp(event, "login") == 0 ? "url" : "detail", detail);
    tn_js_w_object_end(&w);
    if (!tn_wr_ok(&wr)) return;
    tn_wr_u8(&wr, '\n');
    fwrite(text, 1, tn_wr_len(&wr), stdout);
    fflush(stdout);
}

/* One line to an admin, who has a second to read it. */
static void admin_answer(admin *a, const void *text, size_t len)
{
    const char *at = (const char *)text;
    while (len != 0) {
        ssize_t n = send(a->fd, at, len, MSG_NOSIGNAL);
        if (n <= 0) {
            close(a->fd);
            a->fd = -1;
            return;
        }
        at += n;
        len -= (size_t)n;
    }
}

/* The node answered the ping of an admin, or it did not (reply NULL). */
static void ping_answered(host *h, const char *reply, size_t len)
{
    char     start[200];
    uint8_t  text[512];
    tn_wr    wr;
    tn_js_w  w;
    unsigned i;
    if (h->ping_start_ms == 0) return;
    tn_wr_over(&wr, text, sizeof text - 2);
    tn_js_w_init(&w, &wr);
    tn_js_w_object(&w);
    tn_js_w_member_bool(&w, "ok", reply != NULL);
    tn_js_w_member_uint(&w, "ms", h->now_ms - h->ping_start_ms);
    tn_js_w_key(&w, reply != NULL ? "reply" : "error");
    if (len > sizeof start) len = sizeof start;
    if (reply != NULL) memcpy(start, reply, len);
    make_plain(start, len);
    if (reply != NULL) tn_js_w_string(&w, start, len);
    else               tn_js_w_text(&w, "no answer");
    tn_js_w_object_end(&w);
    tn_wr_u8(&wr, '\n');
    h->ping_start_ms = 0;
    for (i = 0; i < MAX_ADMINS; i++) {
        if (!h->admins[i].waits || h->admins[i].fd < 0) continue;
        h->admins[i].waits = false;
        admin_answer(&h->admins[i], text, tn_wr_len(&wr));
    }
}

/* ---- HPACK (RFC 7541) ----
 * Official clients use the dynamic table and Huffman's code before they have read our settings,
 * so a server needs both. */

enum { HP_TABLE = 4096, HP_ENTRY = 32, HP_STRING = 4096, HP_STATIC = 61 };

typedef struct hp_table {
    struct { uint16_t name_len, value_len; } entry[HP_TABLE / HP_ENTRY];    /* oldest first */
    size_t count, limit, size, used;        /* size as the standard counts, used of text  */
    char   text[HP_TABLE];
} hp_table;

/* The fields of a request that we look at. */
typedef struct hp_head {
    char method[16], path[128];
} hp_head;

typedef struct hp_text {
    size_t len;                             /* may be longer than what was kept           */
    char   text[HP_STRING];
} hp_text;

/* Appendix B gives a canonical code: its lengths are all there is to know. */
static const uint8_t hp_lengths[257] = {
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30
};

/* Appendix A; only 1 to 16 have values, of which a request's are kept. */
static const char *const hp_names[HP_STATIC] = {
    ":authority", ":method", ":method", ":path", ":path", ":scheme", ":scheme", ":status",
    ":status", ":status", ":status", ":status", ":status", ":status", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "accept",
    "access-control-allow-origin", "age", "allow", "authorization", "cache-control",
    "content-disposition", "content-encoding", "content-language", "content-length",
    "content-location", "content-range", "content-type", "cookie", "date", "etag", "expect",
    "expires", "from", "host", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "last-modified", "link", "location", "max-forwards",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "refresh", "retry-after",
    "server", "set-cookie", "strict-transport-security", "transfer-encoding", "user-agent",
    "vary", "via", "www-authenticate"
};
static const char *const hp_values[7] = { "", "GET", "POST", "/", "/index.html", "http", "https" };

static void huffman_init(huffman *f)
{
    uint32_t code = 0, at = 0, len, i;
    memset(f, 0, sizeof *f);
    for (len = 1; len <= 30; len++) {
        code <<= 1;
        f->first[len] = code;
        f->index[len] = at;
        for (i = 0; i < 257; i++)
            if (hp_lengths[i] == len) f->symbol[at++] = (uint16_t)i;
        f->count[len] = at - f->index[len];
        code += f->count[len];
    }
}

/* One byte of a string: kept while there is room. */
static void hp_put(hp_text *t, unsigned c)
{
    if (t->len < HP_STRING) t->text[t->len] = (char)c;
    t->len++;
}

/* False: not a code, the end symbol, or wrong padding (section 5.2). */
static bool hp_huffman(const huffman *f, const uint8_t *src, size_t len, hp_text *out)
{
    uint32_t code = 0, bits = 0;
    size_t   i;
    for (i = 0; i < 8 * len; i++) {
        code = code << 1 | ((unsigned)src[i / 8] >> (7 - i % 8) & 1u);
        if (++bits > 30) return false;
        if (code - f->first[bits] < f->count[bits] && code >= f->first[bits]) {
            uint16_t symbol = f->symbol[f->index[bits] + code - f->first[bits]];
            if (symbol == 256) return false;
            hp_put(out, symbol);
            code = bits = 0;
        }
    }
    return bits < 8 && code == ((uint32_t)1 << bits) - 1;
}

/* An integer behind a prefix of so many bits (section 5.1), none above 2^20. */
static bool hp_number(tn_rd *r, unsigned first, unsigned prefix, uint32_t *out)
{
    uint32_t mask = ((uint32_t)1 << prefix) - 1, v = first & mask;
    unsigned shift, b;
    for (shift = 0; v >= mask && shift < 21; shift += 7) {
        b = tn_rd_u8(r);
        v += (b & 127u) << shift;
        if (b < 128) break;
        if (shift == 14) return false;
    }
    *out = v;
    return tn_rd_ok(r);
}

static bool hp_string(const huffman *f, tn_rd *r, hp_text *out)
{
    unsigned       first = tn_rd_u8(r);
    uint32_t       len, i;
    const uint8_t *b;
    out->len = 0;
    if (!hp_number(r, first, 7, &len) || (b = tn_rd_bytes(r, len)) == NULL) return false;
    if (first >= 128) return hp_huffman(f, b, len, out);
    for (i = 0; i < len; i++) hp_put(out, b[i]);
    return true;
}

static void hp_evict(hp_table *t, size_t limit)
{
    while (t->size > limit) {
        size_t n = (size_t)t->entry[0].name_len + t->entry[0].value_len;
        t->size -= n + HP_ENTRY;
        t->used -= n;
        t->count--;
        memmove(t->text, t->text + n, t->used);
        memmove(t->entry, t->entry + 1, t->count * sizeof t->entry[0]);
    }
}

/* An entry larger than the table empties it, and that is no mistake (section 4.4). */
static void hp_insert(hp_table *t, const hp_text *name, const hp_text *value)
{
    size_t size = name->len + value->len + HP_ENTRY;
    hp_evict(t, size > t->limit ? 0 : t->limit - size);
    if (size > t->limit) return;
    memcpy(t->text + t->used, name->text, name->len);
    memcpy(t->text + t->used + name->len, value->text, value->len);
    t->entry[t->count].name_len  = (uint16_t)name->len;
    t->entry[t->count].value_len = (uint16_t)value->len;
    t->count++;
    t->used += size - HP_ENTRY;
    t->size += size;
}

/* The entry of an index; value may be NULL. */
static bool hp_look(const hp_table *t, uint32_t index, hp_text *name, hp_text *value)
{
    size_t      i, which, at = 0;
    const char *v;
    if (index == 0 || index > HP_STATIC + t->count) return false;
    if (index <= HP_STATIC) {
        v = index <= 7 ? hp_values[index - 1] : "";
        name->len = strlen(hp_names[index - 1]);
        memcpy(name->text, hp_names[index - 1], name->len);
        if (value == NULL) return true;
        value->len = strlen(v);
        memcpy(value->text, v, value->len);
        return true;
    }
    which = t->count - (index - HP_STATIC);
    for (i = 0; i < which; i++) at += (size_t)t->entry[i].name_len + t->entry[i].value_len;
    name->len = t->entry[which].name_len;
    memcpy(name->text, t->text + at, name->len);
    if (value == NULL) return true;
    value->len = t->entry[which].value_len;
    memcpy(value->text, t->text + at + name->len, value->len);
    return true;
}

/* One field, or a change of the table's size (name->len 0). */
static bool hp_field(const huffman *f, hp_table *t, tn_rd *r, hp_text *name, hp_text *value)
{
    unsigned first = tn_rd_u8(r);
    uint32_t n;
    name->len = 0;
    if (first >= 0x80) return hp_number(r, first, 7, &n) && hp_look(t, n, name, value);
    if (first >= 0x20 && first < 0x40) {
        if (!hp_number(r, first, 5, &n) || n > HP_TABLE) return false;
        t->limit = n;
        hp_evict(t, n);
        return true;
    }
    if (!hp_number(r, first, first >= 0x40 ? 6 : 4, &n)) return false;
    if (n == 0 ? !hp_string(f, r, name) : !hp_look(t, n, name, NULL)) return false;
    if (!hp_string(f, r, value)) return false;
    if (first >= 0x40) hp_insert(t, name, value);
    return true;
}

/* A whole header block. False: the connection cannot go on (section 2.3.3, 4.3). */
static bool hp_decode(const huffman *f, hp_table *t, const uint8_t *block, size_t len, hp_head *out)
{
    static hp_text name, value;             /* 8 KB that need not lie on the stack        */
    tn_rd          r;
    memset(out, 0, sizeof *out);
    tn_rd_over(&r, block, len);
    while (r.left != 0) {
        if (!hp_field(f, t, &r, &name, &value)) return false;
        if (value.len > HP_STRING) value.len = HP_STRING;
        if (tn_is(name.text, name.len > HP_STRING ? 0 : name.len, ":method"))
            tn_text_copy(out->method, sizeof out->method, value.text, value.len);
        else if (tn_is(name.text, name.len > HP_STRING ? 0 : name.len, ":path"))
            tn_text_copy(out->path, sizeof out->path, value.text, value.len);
    }
    return tn_rd_ok(&r);
}

/* ---- nodes ---- */

static uint32_t slot_of(const host *h, const node *n) { return (uint32_t)(n - h->nodes); }

static void node_address(uint32_t id, bool six, tailnet_addr *out)
{
    static const uint8_t net6[6] = { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0 };
    memset(out, 0, sizeof *out);
    out->family = six ? 6 : 4;
    if (six) memcpy(out->ip, net6, sizeof net6);
    tn_put_u32be(out->ip + (six ? 12 : 0), (six ? 0u : 0x64400000u) + id);
}

/* Something of the node changed: every map stream will see it. */
static void changed(host *h, node *n, part what)
{
    n->changed[what] = ++h->clock;
    n->text_len      = 0;
    h->dirty = h->dirty || what != PART_ONLINE;
}

static uint32_t key_place(const uint8_t key[32]) { return tn_get_u32be(key) % (4 * MAX_NODES); }

static void index_nodes(host *h)
{
    uint32_t i, at;
    memset(h->by_key, 0, sizeof h->by_key);
    for (i = 0; i < h->opt.max_nodes; i++) {
        if (h->nodes[i].id == 0) continue;
        at = key_place(h->nodes[i].key);
        while (h->by_key[at] != 0) at = (at + 1) % (4 * MAX_NODES);
        h->by_key[at] = (uint16_t)(i + 1);
    }
}

static node *node_by_key(host *h, const uint8_t key[32])
{
    uint32_t at = key_place(key);
    for (; h->by_key[at] != 0; at = (at + 1) % (4 * MAX_NODES)) {
        node *n = &h->nodes[h->by_key[at] - 1];
        if (memcmp(n->key, key, 32) == 0) return n;
    }
    return NULL;
}

static node *node_by_machine(host *h, const uint8_t machine[32])
{
    uint32_t i;
    for (i = 0; i < h->opt.max_nodes; i++)
        if (h->nodes[i].id != 0 && memcmp(h->nodes[i].machine, machine, 32) == 0)
            return &h->nodes[i];
    return NULL;
}

static node *node_by_name(host *h, const char *name)
{
    uint32_t i;
    uint64_t id = 0;
    (void)tn_dec_parse(name, strlen(name), UINT32_MAX, &id);
    for (i = 0; i < h->opt.max_nodes; i++) {
        node *n = &h->nodes[i];
        if (n->id != 0 && (n->id == id || strcmp(n->name, name) == 0)) return n;
    }
    return NULL;
}

/* Is the tag in a list like "tag:a,tag:b"? */
static bool has_tag(const char *tags, const char *tag, size_t len)
{
    while (*tags != '\0') {
        size_t n = strcspn(tags, ",");
        if (n == len && memcmp(tags, tag, n) == 0) return true;
        tags += n + (tags[n] == ',');
    }
    return false;
}

/* Rules may name nodes and tags. */
static void names_changed(host *h)
{
    h->policy_clock = ++h->clock;
}

/* A DNS label made of what the node calls itself; a second one gets a number. */
static void choose_name(host *h, node *n, const char *wish)
{
    char     base[NAME - 8], name[NAME];
    size_t   len = 0;
    unsigned number = 0;
    node    *other;
    for (; *wish != '\0' && *wish != '.' && len < sizeof base - 1; wish++) {
        char c = *wish >= 'A' && *wish <= 'Z' ? (char)(*wish + 32) : *wish;
        bool fine = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (fine || len != 0) base[len++] = fine ? c : '-';
    }
    while (len != 0 && base[len - 1] == '-') len--;
    base[len] = '\0';
    if (len == 0) strcpy(base, "node");
    strcpy(name, base);
    while ((other = node_by_name(h, name)) != NULL && other != n)
        snprintf(name, sizeof name, "%s-%u", base, ++number);
    strcpy(n->name, name);
}

/* A slot and an id; NULL: the table is full. */
static node *node_add(host *h, const uint8_t machine[32])
{
    uint32_t i;
    for (i = 0; i < h->opt.max_nodes; i++) {
        node *n = &h->nodes[i];
        if (n->id != 0) continue;
        memset(n, 0, sizeof *n);
        n->id         = h->next_id++;
        n->created_ms = n->seen_ms = h->wall_ms;
        n->forget_ms  = TN_NEVER;
        memcpy(n->machine, machine, 32);
        names_changed(h);
        return n;
    }
    return NULL;
}

static bool is_online(const node *n) { return n->polls != 0; }

static void node_set_key(host *h, node *n, const uint8_t key[32])
{
    memcpy(n->key, key, 32);
    index_nodes(h);
    changed(h, n, PART_KEY);
}

/* ---- policy ---- */

/* 'SRC>DST:PORTS/PROTO'; a destination may be an IPv6 address, so the last colon counts. */
static bool rule_parse(rule *r, const char *text)
{
    const char *gt = strchr(text, '>'), *slash, *colon, *end = text + strlen(text);
    uint64_t    number;
    memset(r, 0, sizeof *r);
    if (gt == NULL || gt == text) return false;
    for (slash = end; slash > gt && *slash != '/' && *slash != ':'; slash--) {}
    if (*slash == '/') {
        if (!tn_text_copy(r->proto, sizeof r->proto, slash + 1, (size_t)(end - slash - 1)))
            return false;
        end = slash;
    }
    for (colon = end - 1; colon > gt && *colon != ':'; colon--) {}
    if (colon <= gt + 1) return false;
    if (!tn_text_copy(r->src, sizeof r->src, text, (size_t)(gt - text)) ||
        !tn_text_copy(r->dst, sizeof r->dst, gt + 1, (size_t)(colon - gt - 1)) ||
        !tn_text_copy(r->ports, sizeof r->ports, colon + 1, (size_t)(end - colon - 1)))
        return false;
    return r->proto[0] == '\0' || strcmp(r->proto, "tcp") == 0 || strcmp(r->proto, "udp") == 0 ||
           strcmp(r->proto, "icmp") == 0 ||
           tn_dec_parse(r->proto, strlen(r->proto), 255, &number);
}

/* "*", or numbers and ranges with commas: the next one, or false. */
static bool next_ports(const char **at, uint64_t *first, uint64_t *last)
{
    size_t n = strcspn(*at, ","), dash = strcspn(*at, "-");
    bool   ok;
    if (n == 0) return false;
    *first = 0;
    *last  = 65535;
    if (n == 1 && **at == '*') ok = true;
    else if (dash < n) ok = tn_dec_parse(*at, dash, 65535, first) &&
                            tn_dec_parse(*at + dash + 1, n - dash - 1, 65535, last);
    else ok = tn_dec_parse(*at, n, 65535, first) && tn_dec_parse(*at, n, 65535, last);
    *at += n + ((*at)[n] == ',');
    return ok;
}

/* Does a word of a rule, which is a name or a tag, mean this node? */
static bool rule_means(const char *word, const node *n)
{
    return n->id != 0 && (strcmp(word, n->name) == 0 || has_tag(n->tags, word, strlen(word)));
}

static bool rule_is_address(const char *word)
{
    tailnet_prefix p;
    return strcmp(word, "*") == 0 || tn_prefix_parse(&p, word, strlen(word));
}

static void js_prefix(tn_js_w *w, uint32_t id, bool six, bool bits)
{
    uint8_t      text[48];
    tn_wr        wr;
    tailnet_addr a;
    node_address(id, six, &a);
    tn_wr_over(&wr, text, sizeof text);
    tn_wr_ip(&wr, &a);
    if (bits) tn_wr_text(&wr, six ? "/128" : "/32");
    tn_js_w_string(w, (const char *)text, tn_wr_len(&wr));
}

static void wr_dst(tn_js_w *w, const rule *r, const node *to, bool six)
{
    const char *at = r->ports;
    uint64_t    first, last;
    while (next_ports(&at, &first, &last)) {
        tn_js_w_object(w);
        tn_js_w_key(w, "IP");
        if (rule_is_address(r->dst)) tn_js_w_text(w, r->dst);
        else                         js_prefix(w, to->id, six, false);
        tn_js_w_key(w, "Ports");
        tn_js_w_object(w);
        tn_js_w_member_uint(w, "First", first);
        tn_js_w_member_uint(w, "Last", last);
        tn_js_w_object_end(w);
        tn_js_w_object_end(w);
    }
}

/* A rule for one source (from: a node, or NULL when the rule itself says an address). */
static void wr_rule(tn_js_w *w, const rule *r, const node *from, const node *to)
{
    uint64_t number;
    tn_js_w_object(w);
    tn_js_w_key(w, "SrcIPs");
    tn_js_w_array(w);
    if (from == NULL) tn_js_w_text(w, r->src);
    if (from != NULL) js_prefix(w, from->id, false, false);
    if (from != NULL) js_prefix(w, from->id, true, false);
    tn_js_w_array_end(w);
    tn_js_w_key(w, "DstPorts");
    tn_js_w_array(w);
    wr_dst(w, r, to, false);
    if (!rule_is_address(r->dst)) wr_dst(w, r, to, true);
    tn_js_w_array_end(w);
    if (r->proto[0] != '\0') {
        tn_js_w_key(w, "IPProto");
        tn_js_w_array(w);
        if (strcmp(r->proto, "tcp") == 0) tn_js_w_uint(w, 6);
        else if (strcmp(r->proto, "udp") == 0) tn_js_w_uint(w, 17);
        else if (tn_dec_parse(r->proto, strlen(r->proto), 255, &number)) tn_js_w_uint(w, number);
        else {
            tn_js_w_uint(w, 1);
            tn_js_w_uint(w, 58);
        }
        tn_js_w_array_end(w);
    }
    tn_js_w_object_end(w);
}

static bool add_rule(host *h, const char *text)
{
    if (h->rule_count == MAX_RULES || !rule_parse(&h->rules[h->rule_count], text)) return false;
    h->rule_count++;
    h->raw_policy = false;
    names_changed(h);
    return true;
}

/* A file with a JSON array of filter rules, for those who want to write their own. */
static bool load_policy(host *h, const char *path)
{
    FILE       *f = fopen(path, "rb");
    char        text[POLICY_MAX];
    size_t      len;
    tn_js       js;
    tn_js_event ev;
    if (f == NULL) return false;
    len = fread(text, 1, sizeof text, f);
    fclose(f);
    if (len == sizeof text) return false;
    tn_js_init(&js);
    tn_js_feed(&js, text, len);
    if (tn_js_next(&js) != TN_JS_ARRAY) return false;
    while ((ev = tn_js_next(&js)) > TN_JS_MORE) {}
    if (ev == TN_JS_ERROR || !tn_js_done(&js)) return false;
    memcpy(h->policy, text, len);
    h->policy_len = len;
    h->raw_policy = true;
    names_changed(h);
    return true;
}

/* ---- the text of maps ---- */

/* Where in a message its writer stands. */
typedef enum job_at { AT_BEGIN, AT_RULES, AT_GONE, AT_PEERS, AT_PATCHES, AT_END, AT_DONE } job_at;

typedef struct job {
    job_at   at;
    bool     member, open, element;         /* stood there already: a member; an array, which
                                               is open; in that array an element          */
    uint32_t i, k;
} job;

typedef struct told { uint32_t id, seen; } told;

/* A map stream: what its node was told, and the message under way. A message's length goes
 * first, so it is written twice: counted, then stored piece by piece as the stream takes it. What
 * joins meanwhile uses up the slack or waits for the next message; spaces fill the rest. */
typedef struct session {
    uint32_t stream;                        /* 0: none                                    */
    uint32_t slot, id;                      /* of the node                                */
    bool     first, keepalive;
    bool     counted, ending;               /* in node.polls; it ends with this message   */
    told    *told;                          /* by slot                                    */
    uint32_t big_told, self_seen, policy_seen, ping_seen, checked;
    uint64_t keepalive_ms;
    job      job;
    bool     zstd, sliced;                  /* too long to be stored at once              */
    size_t   total, left;                   /* bytes of the message; not yet stored       */
    size_t   from, to;                      /* of piece                                   */
    uint8_t  piece[PIECE];
} session;

static void js_time(tn_js_w *w, const char *key, uint64_t unix_ms)
{
    char      text[40];
    time_t    t = (time_t)(unix_ms / 1000u);
    struct tm tm;
    if (gmtime_r(&t, &tm) == NULL) return;
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    tn_js_w_member(w, key, text);
}

static void wr_hostinfo(tn_js_w *w, const node *n)
{
    unsigned i;
    tn_js_w_key(w, "Hostinfo");
    tn_js_w_object(w);
    if (n->os[0] != '\0') tn_js_w_member(w, "OS", n->os);
    tn_js_w_member(w, "Hostname", n->host);
    if (n->api4 != 0 || n->api6 != 0) {
        tn_js_w_key(w, "Services");
        tn_js_w_array(w);
        for (i = 0; i < 2; i++) {
            if ((i == 0 ? n->api4 : n->api6) == 0) continue;
            tn_js_w_object(w);
            tn_js_w_member(w, "Proto", i == 0 ? "peerapi4" : "peerapi6");
            tn_js_w_member_uint(w, "Port", i == 0 ? n->api4 : n->api6);
            tn_js_w_object_end(w);
        }
        tn_js_w_array_end(w);
    }
    tn_js_w_object_end(w);
}

static void wr_endpoints(tn_js_w *w, const char *key, const node *n)
{
    size_t i;
    tn_js_w_key(w, key);
    tn_js_w_array(w);
    for (i = 0; i < n->endpoint_count; i++) {
        uint8_t text[64];
        tn_wr   wr;
        tn_wr_over(&wr, text, sizeof text);
        tn_wr_addr(&wr, &n->endpoints[i]);
        tn_js_w_string(w, (const char *)text, tn_wr_len(&wr));
    }
    tn_js_w_array_end(w);
}

static void wr_tags(tn_js_w *w, const char *tags)
{
    tn_js_w_key(w, "Tags");
    tn_js_w_array(w);
    while (*tags != '\0') {
        size_t n = strcspn(tags, ",");
        tn_js_w_string(w, tags, n);
        tags += n + (tags[n] == ',');
    }
    tn_js_w_array_end(w);
}

static void wr_node(const host *h, tn_js_w *w, const node *n)
{
    char     text[NAME + 72];
    unsigned i;
    tn_js_w_object(w);
    tn_js_w_member_uint(w, "ID", n->id);
    snprintf(text, sizeof text, "%lu", (unsigned long)n->id);
    tn_js_w_member(w, "StableID", text);
    snprintf(text, sizeof text, "%s.%s.", n->name, h->opt.domain);
    tn_js_w_member(w, "Name", text);
    tn_js_w_member_uint(w, "User", 1);
    tn_js_w_member_hex(w, "Key", TN_KEY_NODE, n->key, 32);
    if (n->expiry_ms != 0) js_time(w, "KeyExpiry", n->expiry_ms);
    tn_js_w_member_hex(w, "Machine", TN_KEY_MACHINE, n->machine, 32);
    if (!tn_is_zero(n->disco, 32)) tn_js_w_member_hex(w, "DiscoKey", TN_KEY_DISCO, n->disco, 32);
    for (i = 0; i < 2; i++) {
        tn_js_w_key(w, i == 0 ? "Addresses" : "AllowedIPs");
        tn_js_w_array(w);
        js_prefix(w, n->id, false, true);
        js_prefix(w, n->id, true, true);
        tn_js_w_array_end(w);
    }
    if (n->endpoint_count != 0) wr_endpoints(w, "Endpoints", n);
    if (n->home != 0) tn_js_w_member_uint(w, "HomeDERP", n->home);
    wr_hostinfo(w, n);
    js_time(w, "Created", n->created_ms);
    tn_js_w_member_uint(w, "Cap", n->version);
    if (n->tags[0] != '\0') wr_tags(w, n->tags);
    if (!is_online(n)) js_time(w, "LastSeen", n->seen_ms);
    tn_js_w_member_bool(w, "Online", is_online(n));
    if (n->expired) tn_js_w_member_bool(w, "Expired", true);
    else            tn_js_w_member_bool(w, "MachineAuthorized", true);
    tn_js_w_object_end(w);
}

/* The same, written once for all who are told of it: a change of the node makes it due anew. */
static void wr_peer(const host *h, tn_js_w *w, node *n)
{
    tn_wr   wr;
    tn_js_w own;
    if (n->text_len == 0) {
        tn_wr_over(&wr, n->text, sizeof n->text);
        tn_js_w_init(&own, &wr);
        wr_node(h, &own, n);
        if (tn_wr_ok(&wr)) n->text_len = (uint16_t)tn_wr_len(&wr);
    }
    if (n->text_len == 0) {
        wr_node(h, w, n);
        return;
    }
    if (w->comma) tn_wr_u8(w->wr, ',');
    tn_wr_bytes(w->wr, n->text, n->text_len);
    w->comma = true;
}

/* Only the parts that changed after seen (tailcfg.PeerChange). */
static void wr_patch(tn_js_w *w, const node *n, uint32_t seen)
{
    tn_js_w_object(w);
    tn_js_w_member_uint(w, "NodeID", n->id);
    if (n->changed[PART_KEY] > seen) tn_js_w_member_hex(w, "Key", TN_KEY_NODE, n->key, 32);
    if (n->changed[PART_PATHS] > seen) {
        if (n->home != 0) tn_js_w_member_uint(w, "DERPRegion", n->home);
        wr_endpoints(w, "Endpoints", n);
        if (!tn_is_zero(n->disco, 32))
            tn_js_w_member_hex(w, "DiscoKey", TN_KEY_DISCO, n->disco, 32);
    }
    if (n->changed[PART_ONLINE] > seen) {
        tn_js_w_member_bool(w, "Online", is_online(n));
        if (!is_online(n)) js_time(w, "LastSeen", n->seen_ms);
    }
    tn_js_w_object_end(w);
}

static void wr_region(const host *h, tn_js_w *w, const region *r)
{
    char number[8], name[12];
    snprintf(number, sizeof number, "%u", (unsigned)r->id);
    snprintf(name, sizeof name, "%ua", (unsigned)r->id);
    tn_js_w_key(w, number);
    tn_js_w_object(w);
    tn_js_w_member_uint(w, "RegionID", r->id);
    tn_js_w_member(w, "RegionCode", "lab");
    tn_js_w_member(w, "RegionName", "selfhost");
    tn_js_w_key(w, "Nodes");
    tn_js_w_array(w);
    tn_js_w_object(w);
    tn_js_w_member(w, "Name", name);
    tn_js_w_member_uint(w, "RegionID", r->id);
    tn_js_w_member(w, "HostName", r->name);
    if (h->opt.cert_name != NULL) tn_js_w_member(w, "CertName", h->opt.cert_name);
    if (r->ip4 != NULL) tn_js_w_member(w, "IPv4", r->ip4);
    if (r->ip6 != NULL) tn_js_w_member(w, "IPv6", r->ip6);
    tn_js_w_key(w, "STUNPort");
    if (h->stun_port != 0) tn_js_w_uint(w, h->stun_port);
    else                   tn_js_w_int(w, -1);
    tn_js_w_member_uint(w, "DERPPort", r->port);
    tn_js_w_object_end(w);
    tn_js_w_array_end(w);
    tn_js_w_object_end(w);
}

static void wr_derp_map(const host *h, tn_js_w *w)
{
    size_t i;
    tn_js_w_key(w, "DERPMap");
    tn_js_w_object(w);
    tn_js_w_key(w, "Regions");
    tn_js_w_object(w);
    for (i = 0; i < h->region_count; i++)
        if (!h->regions[i].hidden) wr_region(h, w, &h->regions[i]);
    tn_js_w_object_end(w);
    tn_js_w_object_end(w);
}

/* What only the first message of a stream says. */
static void wr_world(const host *h, tn_js_w *w)
{
    wr_derp_map(h, w);
    tn_js_w_key(w, "DNSConfig");
    tn_js_w_object(w);
    tn_js_w_key(w, "Routes");
    tn_js_w_object(w);
    tn_js_w_key(w, h->opt.domain);
    tn_js_w_array(w);
    tn_js_w_array_end(w);
    tn_js_w_object_end(w);
    tn_js_w_key(w, "Domains");
    tn_js_w_array(w);
    tn_js_w_text(w, h->opt.domain);
    tn_js_w_array_end(w);
    tn_js_w_member_bool(w, "Proxied", true);
    tn_js_w_object_end(w);
    tn_js_w_member(w, "Domain", h->opt.domain);
    tn_js_w_key(w, "UserProfiles");
    tn_js_w_array(w);
    tn_js_w_object(w);
    tn_js_w_member_uint(w, "ID", 1);
    tn_js_w_member(w, "LoginName", "lab@selfhost");
    tn_js_w_member(w, "DisplayName", "lab");
    tn_js_w_object_end(w);
    tn_js_w_array_end(w);
}

static void wr_ping(const host *h, tn_js_w *w)
{
    static const char question[] = "POST /echo HTTP/1.1\r\nHost: selfhost\r\n"
                                   "Content-Length: 5\r\n\r\nhello";
    char url[256];
    snprintf(url, sizeof url, "%s/%s%s", h->ping_c2n ? "https://unused" : h->opt.url,
             h->ping_c2n ? "c2n/" : "machine/ping-response?id=", h->ping_id);
    tn_js_w_key(w, "PingRequest");
    tn_js_w_object(w);
    tn_js_w_member(w, "URL", url);
    if (h->ping_c2n) {
        tn_js_w_member_bool(w, "URLIsNoise", true);
        tn_js_w_member(w, "Types", "c2n");
        tn_js_w_key(w, "Payload");
        tn_js_w_base64(w, (const uint8_t *)question, sizeof question - 1);
    }
    tn_js_w_object_end(w);
}

/* ---- map messages, step by step ---- */

static bool self_is_due(const host *h, const session *m)
{
    const node *n = &h->nodes[m->slot];
    return m->first || n->changed[PART_WHOLE] > m->self_seen || n->changed[PART_KEY] > m->self_seen;
}

static bool ping_is_due(const host *h, const session *m)
{
    return h->ping_start_ms != 0 && h->ping_node == m->id && m->ping_seen != h->ping_number;
}

static bool is_gone(const host *h, const session *m, uint32_t i)
{
    return m->told[i].id != 0 && m->told[i].id != h->nodes[i].id;
}

static bool is_new(const host *h, const session *m, uint32_t i)
{
    const node *n = &h->nodes[i];
    if (n->id == 0 || !n->shown || i == m->slot) return false;
    return m->told[i].id != n->id || n->changed[PART_WHOLE] > m->told[i].seen;
}

static bool is_patched(const host *h, const session *m, uint32_t i)
{
    const node *n    = &h->nodes[i];
    uint32_t    seen = m->told[i].seen;
    return n->id != 0 && n->shown && i != m->slot && !is_new(h, m, i) &&
           (n->changed[PART_ONLINE] > seen || n->changed[PART_PATHS] > seen ||
            n->changed[PART_KEY] > seen);
}

static bool is_due(const host *h, const session *m)
{
    uint32_t i;
    if (self_is_due(h, m) || ping_is_due(h, m) || h->policy_clock > m->policy_seen ||
        h->big != m->big_told)
        return true;
    for (i = 0; i < h->opt.max_nodes; i++)
        if (is_gone(h, m, i) || is_new(h, m, i) || is_patched(h, m, i)) return true;
    return false;
}

/* Bytes that look random and are the same in every run: splitmix64 of a number. */
static void made_up(uint8_t *dst, size_t len, uint64_t number)
{
    size_t   i;
    uint64_t z = 0;
    for (i = 0; i < len; i++) {
        if (i % 8 == 0) {
            z = (number += 0x9e3779b97f4a7c15u);
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            z ^= z >> 31;
        }
        dst[i] = (uint8_t)(z >> 8 * (i % 8));
    }
}

static uint32_t synthetic_id(const host *h, uint32_t number)
{
    bool behind = h->big_before != 0 && number >= h->big_before;
    return BIG_ID + number + (behind ? (uint32_t)BIG_JUMP : 0u);
}

/* A peer that exists only to make maps long; a node with this text about it has the size of
 * those that large services send, one kilobyte and some. */
static void wr_synthetic(const host *h, tn_js_w *w, uint32_t number)
{
    static const char *const kinds[4] = { "laptop", "build-server", "phone", "camera" };
    uint8_t  b[128];
    node     n;
    unsigned i;
    memset(&n, 0, sizeof n);
    made_up(b, sizeof b, (uint64_t)number << 8);
    n.id = synthetic_id(h, number);
    snprintf(n.name, sizeof n.name, "%s-%lu", kinds[b[0] & 3], (unsigned long)number);
    strcpy(n.host, n.name);
    strcpy(n.os, "linux");
    strcpy(n.tags, "tag:fleet,tag:site-north,tag:made-up");
    memcpy(n.key, b, 32);
    memcpy(n.machine, b + 32, 32);
    memcpy(n.disco, b + 64, 32);
    n.home       = REGION;
    n.version    = TAILNET_CAPABILITY_VERSION;
    n.api4       = n.api6 = (uint16_t)(32768 + tn_get_u32be(b + 96) % 32768);
    n.created_ms = n.seen_ms = h->wall_ms;
    n.endpoint_count = 8;
    for (i = 0; i < 8; i++) {
        tailnet_addr *a = &n.endpoints[i];
        a->family = i < 4 ? 4 : 6;
        a->port   = 41641;
        memcpy(a->ip, b + 100, 16);
        a->ip[0] = i < 4 ? 10 : 0xfd;
        a->ip[3] = (uint8_t)(a->ip[3] + i);
    }
    wr_node(h, w, &n);
}

/* In front of an element: opens the array of the section, or writes a comma. */
static void begin_element(job *j, tn_js_w *w, const char *key)
{
    if (!j->open) {
        tn_js_w_key(w, key);
        tn_js_w_array(w);
    }
    w->comma = j->element;
    j->open = j->member = j->element = true;
}

/* Closes the array, if there is one, and goes on to the next section. */
static bool next_section(job *j, tn_wr *wr, const char *end)
{
    if (j->open) tn_wr_text(wr, end);
    j->open = j->element = false;
    j->at   = (job_at)(j->at + 1);
    j->i = j->k = 0;
    return true;
}

static void step_begin(host *h, session *m, job *j, tn_js_w *w, bool real)
{
    tn_wr_u8(w->wr, '{');
    w->comma = false;
    if (ping_is_due(h, m)) {
        wr_ping(h, w);
        if (real) m->ping_seen = h->ping_number;
    }
    if (self_is_due(h, m)) {
        tn_js_w_key(w, "Node");
        wr_node(h, w, &h->nodes[m->slot]);
        if (real) m->self_seen = h->clock;
    }
    if (m->first) wr_world(h, w);
    j->member = w->comma;
    (void)next_section(j, w->wr, "");
}

/* One rule for one of its sources. */
static bool step_rules(host *h, session *m, job *j, tn_js_w *w, bool real)
{
    const node *to = &h->nodes[m->slot];
    if (!j->open) {
        if (h->policy_clock <= m->policy_seen) return next_section(j, w->wr, "");
        tn_js_w_key(w, "PacketFilters");
        tn_wr_text(w->wr, "{\"base\":");
        j->open = j->member = true;
        if (real) m->policy_seen = h->clock;
        if (!h->raw_policy) tn_wr_u8(w->wr, '[');
        else                tn_wr_bytes(w->wr, h->policy, h->policy_len);
    }
    for (; !h->raw_policy && j->i < h->rule_count; j->i++, j->k = 0) {
        const rule *r     = &h->rules[j->i];
        bool        plain = rule_is_address(r->src);
        if (!rule_is_address(r->dst) && !rule_means(r->dst, to)) continue;
        while (j->k < (plain ? 1u : h->opt.max_nodes)) {
            const node *from = plain ? NULL : &h->nodes[j->k];
            j->k++;
            if (from != NULL && !rule_means(r->src, from)) continue;
            w->comma   = j->element;
            j->element = true;
            wr_rule(w, r, from, to);
            return true;
        }
    }
    return next_section(j, w->wr, h->raw_policy ? "}" : "]}");
}

/* Ids of peers that are no more. */
static bool step_gone(host *h, session *m, job *j, tn_js_w *w, bool real)
{
    for (; j->i < h->opt.max_nodes; j->i++) {
        if (!is_gone(h, m, j->i)) continue;
        begin_element(j, w, "PeersRemoved");
        tn_js_w_uint(w, m->told[j->i].id);
        if (real) m->told[j->i].id = 0;
        j->i++;
        return true;
    }
    if (h->big + j->k < m->big_told) {      /* downwards, so that the count stays true    */
        begin_element(j, w, "PeersRemoved");
        tn_js_w_uint(w, synthetic_id(h, m->big_told - 1 - (real ? 0 : j->k)));
        if (real) m->big_told--;
        else      j->k++;
        return true;
    }
    return next_section(j, w->wr, "]");
}

/* The next of the synthetic peers up to a number. */
static bool step_synthetic(host *h, session *m, job *j, tn_js_w *w, bool real, uint32_t end)
{
    if (m->big_told + j->k >= end) return false;
    begin_element(j, w, m->first ? "Peers" : "PeersChanged");
    wr_synthetic(h, w, m->big_told + j->k);
    if (real) m->big_told++;
    else      j->k++;
    return true;
}

static bool step_peers(host *h, session *m, job *j, tn_js_w *w, bool real)
{
    if (step_synthetic(h, m, j, w, real, h->big < h->big_before ? h->big : h->big_before))
        return true;
    for (; j->i < h->opt.max_nodes; j->i++) {
        if (!is_new(h, m, j->i)) continue;
        begin_element(j, w, m->first ? "Peers" : "PeersChanged");
        wr_peer(h, w, &h->nodes[j->i]);
        if (real) m->told[j->i].id   = h->nodes[j->i].id;
        if (real) m->told[j->i].seen = h->clock;
        j->i++;
        return true;
    }
    return step_synthetic(h, m, j, w, real, h->big) || next_section(j, w->wr, "]");
}

static bool step_patches(host *h, session *m, job *j, tn_js_w *w, bool real)
{
    for (; j->i < h->opt.max_nodes; j->i++) {
        if (!is_patched(h, m, j->i)) continue;
        begin_element(j, w, "PeersChangedPatch");
        wr_patch(w, &h->nodes[j->i], m->told[j->i].seen);
        if (real) m->told[j->i].seen = h->clock;
        j->i++;
        return true;
    }
    return next_section(j, w->wr, "]");
}

/* Writes the next piece, at most STEP_MAX bytes; false: the message is complete. Only if real is
 * set does the session count it as told. */
static bool job_step(host *h, session *m, job *j, tn_wr *wr, bool real)
{
    tn_js_w w;
    tn_js_w_init(&w, wr);
    w.comma = j->member;
    switch (j->at) {
    case AT_BEGIN:   step_begin(h, m, j, &w, real); return true;
    case AT_RULES:   return step_rules(h, m, j, &w, real);
    case AT_GONE:    return step_gone(h, m, j, &w, real);
    case AT_PEERS:   return step_peers(h, m, j, &w, real);
    case AT_PATCHES: return step_patches(h, m, j, &w, real);
    case AT_END:
        js_time(&w, "ControlTime", h->wall_ms);
        tn_wr_u8(wr, '}');
        j->at = AT_DONE;
        return true;
    case AT_DONE:    break;
    }
    return false;
}

/* What is behind any step: the end of its array, and the last member. */
enum { CLOSING = 64 };

/* Official clients insist on zstd. A frame of raw blocks (RFC 8878 section 3.1.1) is that, too:
 * magic, "one segment, size in four bytes", size; each block begins with last, raw, and size. */
enum { ZSTD_HEAD = 9, ZSTD_BLOCK = 8192, ZSTD_BLOCK_HEAD = 3 };

/* The beginning of a message of so many bytes of text. */
static void session_head(session *m, size_t total)
{
    size_t blocks = (total + ZSTD_BLOCK - 1) / ZSTD_BLOCK;
    tn_wr  wr;
    tn_wr_over(&wr, m->piece, PIECE);
    tn_wr_u32le(&wr, (uint32_t)(total + (m->zstd ? ZSTD_HEAD + ZSTD_BLOCK_HEAD * blocks : 0u)));
    if (m->zstd) {
        tn_wr_u32le(&wr, 0xfd2fb528ul);
        tn_wr_u8(&wr, 0xa0);
        tn_wr_u32le(&wr, (uint32_t)total);
    }
    m->from  = 0;
    m->to    = tn_wr_len(&wr);
    m->total = m->left = total;
}

/* Text of the message. */
static void session_store(session *m, const void *text, size_t len)
{
    const uint8_t *at = (const uint8_t *)text;
    while (len != 0) {
        size_t in_block = (m->total - m->left) % ZSTD_BLOCK, n = ZSTD_BLOCK - in_block;
        if (m->zstd && in_block == 0) {
            size_t size = m->left < ZSTD_BLOCK ? m->left : (size_t)ZSTD_BLOCK;
            size_t head = size << 3 | (size == m->left ? 1u : 0u);
            m->piece[m->to++] = (uint8_t)(head & 255u);
            m->piece[m->to++] = (uint8_t)(head >> 8 & 255u);
            m->piece[m->to++] = (uint8_t)(head >> 16);
        }
        if (n > len) n = len;
        memcpy(m->piece + m->to, at, n);
        m->to += n;
        m->left -= n;
        at += n;
        len -= n;
    }
}

/* Stores as many pieces as fit. A step that the announced length cannot take ends the message
 * early; what it would have told stays due. */
static void session_fill(host *h, session *m)
{
    uint8_t text[STEP_MAX];
    if (m->from == m->to) m->from = m->to = 0;
    while (m->left != 0 && m->to + STEP_MAX + 2 * ZSTD_BLOCK_HEAD <= PIECE) {
        job   trial = m->job;
        tn_wr wr;
        tn_wr_over(&wr, text, sizeof text);
        if (!m->sliced && m->job.at != AT_DONE) {       /* it was counted just now: it fits */
            (void)job_step(h, m, &m->job, &wr, true);
            session_store(m, text, tn_wr_len(&wr));
        } else if (!job_step(h, m, &trial, &wr, false)) {
            memset(text, ' ', sizeof text); /* up to the end                              */
            session_store(m, text, m->left < sizeof text ? m->left : sizeof text);
        } else if (m->sliced && trial.at != AT_DONE && wr.total + CLOSING > m->left) {
            if (m->job.open) session_store(m, "]}", m->job.at == AT_RULES ? 2 : 1);
            m->job.open = false;
            m->job.at   = AT_END;
        } else {
            tn_wr_over(&wr, text, sizeof text);
            (void)job_step(h, m, &m->job, &wr, true);
            session_store(m, text, tn_wr_len(&wr));
        }
    }
    if (m->left == 0) m->first = false;
}

/* Begins the next message if one is due. */
static void session_begin(host *h, session *m)
{
    static const char alive[] = "{\"KeepAlive\":true}";
    job    j;
    tn_wr  wr;
    bool   keep = m->keepalive || h->now_ms >= m->keepalive_ms;
    if (!m->first && (m->checked == h->clock || !is_due(h, m))) {
        m->checked = h->clock;
        if (!keep) return;
        session_head(m, sizeof alive - 1);
        session_store(m, alive, sizeof alive - 1);
    } else {
        memset(&j, 0, sizeof j);
        tn_wr_over(&wr, NULL, 0);
        m->job = j;
        while (job_step(h, m, &j, &wr, false)) {}
        m->sliced = wr.total > ZSTD_BLOCK;
        session_head(m, wr.total + (m->sliced ? (size_t)SLACK : 0u));
        session_fill(h, m);
    }
    m->keepalive    = false;
    m->keepalive_ms = h->now_ms + 1000ul * h->opt.keepalive_s;
}

/* ---- requests ---- */

typedef enum section {
    IN_NOTHING, IN_AUTH, IN_HOSTINFO, IN_ENDPOINTS, IN_NETINFO, IN_TAGS, IN_SERVICES
} section;

/* What we read of RegisterRequest and MapRequest. */
typedef struct request {
    section      outer, inner;              /* depth 1 and 2 of the text                  */
    uint32_t     version;
    uint8_t      key[32], old_key[32], disco[32];
    bool         bad, stream, ephemeral, zstd, has_hostinfo, has_endpoints;
    uint64_t     expiry_ms;
    char         auth[NAME * 2], followup[256], host[NAME], os[24], tags[TAGS];
    uint16_t     home, api4, api6, port;
    unsigned     api;                       /* of the service being read: 4, 6, 0         */
    tailnet_addr endpoints[MAX_ENDPOINTS];
    size_t       endpoint_count;
} request;

/* A container opens: which one, and does anybody read it? */
static void request_open(request *q, tn_js *js, bool array)
{
    section s = IN_NOTHING;
    if (js->depth == 0) {
        q->bad = q->bad || array;
        return;
    }
    if (js->depth == 1 && !array && tn_js_is_key(js, "Auth")) s = IN_AUTH;
    if (js->depth == 1 && !array && tn_js_is_key(js, "Hostinfo")) s = IN_HOSTINFO;
    if (js->depth == 1 && array && tn_js_is_key(js, "Endpoints")) s = IN_ENDPOINTS;
    if (js->depth == 2 && q->outer == IN_HOSTINFO) {
        if (!array && tn_js_is_key(js, "NetInfo")) s = IN_NETINFO;
        if (array && tn_js_is_key(js, "RequestTags")) s = IN_TAGS;
        if (array && tn_js_is_key(js, "Services")) s = IN_SERVICES;
    }
    if (js->depth == 3 && q->inner == IN_SERVICES && !array) {
        q->api = q->port = 0;
        return;
    }
    if (s == IN_NOTHING) {
        tn_js_skip(js);
        return;
    }
    q->has_hostinfo  = q->has_hostinfo || s == IN_HOSTINFO;
    q->has_endpoints = q->has_endpoints || s == IN_ENDPOINTS;
    if (js->depth == 1) q->outer = s;
    if (js->depth == 2) q->inner = s;
}

static void request_close(request *q, const tn_js *js)
{
    if (js->depth == 3 && q->inner == IN_SERVICES && q->api == 4) q->api4 = q->port;
    if (js->depth == 3 && q->inner == IN_SERVICES && q->api == 6) q->api6 = q->port;
    if (js->depth == 2) q->inner = IN_NOTHING;
    if (js->depth == 1) q->outer = IN_NOTHING;
}

/* What one node sends is shown to others: only plain characters. */
static void take_text(char *dst, size_t cap, const tn_js *js)
{
    tn_text_copy(dst, cap, js->text, js->text_len);
    make_plain(dst, strlen(dst));
}

static void take_key(request *q, uint8_t key[32], const char *prefix, const tn_js *js)
{
    if (!tn_key_parse(key, prefix, js->text, js->text_len)) q->bad = true;
}

static void request_string(request *q, const tn_js *js)
{
    size_t len = strlen(q->tags);
    if (js->depth == 1) {
        if (tn_js_is_key(js, "NodeKey")) take_key(q, q->key, TN_KEY_NODE, js);
        else if (tn_js_is_key(js, "OldNodeKey")) take_key(q, q->old_key, TN_KEY_NODE, js);
        else if (tn_js_is_key(js, "DiscoKey")) take_key(q, q->disco, TN_KEY_DISCO, js);
        else if (tn_js_is_key(js, "Compress")) q->zstd = tn_js_is_text(js, "zstd");
        else if (tn_js_is_key(js, "Followup")) take_text(q->followup, sizeof q->followup, js);
        else if (tn_js_is_key(js, "Expiry") &&
                 !tn_date_parse(&q->expiry_ms, js->text, js->text_len))
            q->bad = true;
    } else if (js->depth == 2 && q->outer == IN_AUTH) {
        if (tn_js_is_key(js, "AuthKey")) take_text(q->auth, sizeof q->auth, js);
    } else if (js->depth == 2 && q->outer == IN_HOSTINFO) {
        if (tn_js_is_key(js, "Hostname")) take_text(q->host, sizeof q->host, js);
        if (tn_js_is_key(js, "OS")) take_text(q->os, sizeof q->os, js);
    } else if (js->depth == 2 && q->outer == IN_ENDPOINTS) {
        if (q->endpoint_count < MAX_ENDPOINTS &&
            tn_addr_parse(&q->endpoints[q->endpoint_count], js->text, js->text_len))
            q->endpoint_count++;
    } else if (js->depth == 3 && q->inner == IN_TAGS) {
        if (len + js->text_len + 2 > sizeof q->tags) return;
        if (len != 0) q->tags[len++] = ',';
        take_text(q->tags + len, sizeof q->tags - len, js);
    } else if (js->depth == 4 && q->inner == IN_SERVICES && tn_js_is_key(js, "Proto")) {
        q->api = tn_js_is_text(js, "peerapi4") ? 4u : tn_js_is_text(js, "peerapi6") ? 6u : 0u;
    }
}

static void request_number(request *q, const tn_js *js)
{
    int64_t v;
    if (!tn_js_int(js, &v) || v < 0 || v > 65535) return;
    if (js->depth == 1 && tn_js_is_key(js, "Version")) q->version = (uint32_t)v;
    if (js->depth == 3 && q->inner == IN_NETINFO && tn_js_is_key(js, "PreferredDERP"))
        q->home = (uint16_t)v;
    if (js->depth == 4 && q->inner == IN_SERVICES && tn_js_is_key(js, "Port"))
        q->port = (uint16_t)v;
}

static void request_flag(request *q, const tn_js *js)
{
    if (js->depth != 1) return;
    if (tn_js_is_key(js, "Stream")) q->stream = true;
    if (tn_js_is_key(js, "Ephemeral")) q->ephemeral = true;
}

/* More bytes of a body; q->bad is set when they are no request. */
static void request_feed(request *q, tn_js *js, const void *bytes, size_t len)
{
    tn_js_event ev;
    tn_js_feed(js, bytes, len);
    while ((ev = tn_js_next(js)) > TN_JS_MORE) {
        switch (ev) {
        case TN_JS_OBJECT:     request_open(q, js, false); break;
        case TN_JS_ARRAY:      request_open(q, js, true);  break;
        case TN_JS_OBJECT_END:
        case TN_JS_ARRAY_END:  request_close(q, js);       break;
        case TN_JS_STRING:     request_string(q, js);      break;
        case TN_JS_NUMBER:     request_number(q, js);      break;
        case TN_JS_TRUE:       request_flag(q, js);        break;
        case TN_JS_ERROR: case TN_JS_MORE: case TN_JS_FALSE: case TN_JS_NULL:
        case TN_JS_END:        break;
        }
    }
    if (ev == TN_JS_ERROR) q->bad = true;
}

/* ---- connections ---- */

typedef enum stage { AT_FREE, AT_HTTP, AT_CONTROL, AT_RELAY } stage;

typedef enum route { TO_NOBODY, TO_REGISTER, TO_MAP, TO_C2N } route;

/* One request on a control connection. */
typedef enum stream_state {
    ST_FREE,
    ST_BODY,                                /* its body comes                             */
    ST_WAIT,                                /* a login that nobody has approved           */
    ST_ANSWER                               /* head and text go                           */
} stream_state;

typedef struct stream {
    stream_state state;
    route        to;
    uint32_t     id;
    size_t       body_len;
    unsigned     status;
    bool         head_sent;
    char         wait[25];                  /* id of the login                            */
    size_t       from, len;                 /* of text                                    */
    char         text[1024];
    request      rq;
    tn_js        js;
} stream;

typedef struct control {
    tn_nz    nz;
    tn_h2    h2;
    hp_table hp;
    uint8_t  machine[32];
    uint16_t version;
    uint64_t idle_ms;                       /* since when no stream is open               */
    uint8_t  rx[TN_NZ_RECORD_MAX], tx[TN_NZ_RECORD_MAX];
    size_t   rx_len, block_len;
    uint8_t  block[TN_HP_BLOCK_MAX];
    stream   streams[TN_H2_STREAMS];
    session  map;
} control;

typedef struct relay {
    tn_derp  derp;
    uint32_t slot, id;                      /* of the node, once it has logged in: id != 0 */
    uint8_t  key[32];
    uint64_t keepalive_ms, notice_ms;
    unsigned notices;                       /* PeerGone that may still go at once         */
    uint8_t  talked[MAX_NODES / 8];         /* slots it has sent packets to               */
    uint8_t  store[STORE];
} relay;

typedef struct http {
    tn_h1 h1;
    char  handshake[TN_H1_HANDSHAKE + 1];
} http;

typedef struct body {
    br_ssl_server_context tls;
    uint8_t tls_in[TN_TLS_IN_LEN], tls_out[16384 + 85];
    uint8_t in[4096];                       /* without TLS                                */
    uint8_t out[OUT_MAX];
    union { http http; control control; relay relay; } u;
} body;

struct conn {
    int      fd;
    stage    stage;
    bool     tls, readable, leaving, closed, gone, cut;
    unsigned region;                        /* of the listener                            */
    uint64_t deadline_ms;                   /* of the present stage, or NEVER             */
    uint64_t moved_ms;                      /* when output last went, or there was none   */
    size_t   from, to, frame;               /* of out; the first whole frame of a relay   */
    told    *told;
    body    *b;
};

static control *control_of(conn *c) { return &c->b->u.control; }
static relay   *relay_of(conn *c) { return &c->b->u.relay; }

/* Close it once what is under way is out. */
static void leave(const host *h, conn *c)
{
    if (c->leaving) return;
    c->leaving     = true;
    c->deadline_ms = h->now_ms + LEAVE_MS;
}

/* Room for len bytes at the end of out, or NULL. */
static uint8_t *out_room(conn *c, size_t len)
{
    if (OUT_MAX - c->to < len && c->from != 0) {
        memmove(c->b->out, c->b->out + c->from, c->to - c->from);
        c->to    -= c->from;
        c->frame -= c->from < c->frame ? c->from : c->frame;
        c->from   = 0;
    }
    return OUT_MAX - c->to < len ? NULL : c->b->out + c->to;
}

static void out_put(conn *c, const void *data, size_t len)
{
    uint8_t *room = out_room(c, len);
    if (room == NULL) {
        c->gone = true;
        return;
    }
    memcpy(room, data, len);
    c->to += len;
}

/* ---- registering ---- */

static void stream_answer(stream *s, unsigned status, const char *text)
{
    s->state  = ST_ANSWER;
    s->status = status;
    s->from   = 0;
    s->len    = strlen(text);
    memcpy(s->text, text, s->len);
}

static void answer_register(stream *s, const char *url, const char *error, bool expired, bool in)
{
    tn_wr   wr;
    tn_js_w w;
    int     i;
    tn_wr_over(&wr, s->text, sizeof s->text);
    tn_js_w_init(&w, &wr);
    tn_js_w_object(&w);
    for (i = 0; i < 2; i++) {
        tn_js_w_key(&w, i == 0 ? "User" : "Login");
        tn_js_w_object(&w);
        tn_js_w_member_uint(&w, "ID", in ? 1 : 0);
        if (i == 1) tn_js_w_member(&w, "LoginName", in ? "lab@selfhost" : "");
        tn_js_w_member(&w, "DisplayName", in ? "lab" : "");
        tn_js_w_object_end(&w);
    }
    tn_js_w_member_bool(&w, "NodeKeyExpired", expired);
    tn_js_w_member_bool(&w, "MachineAuthorized", in);
    tn_js_w_member(&w, "AuthURL", url);
    tn_js_w_member(&w, "Error", error);
    tn_js_w_object_end(&w);
    s->state  = ST_ANSWER;
    s->status = tn_wr_ok(&wr) ? 200u : 500u;
    s->from   = 0;
    s->len    = tn_wr_ok(&wr) ? tn_wr_len(&wr) : 0u;
}

/* Its key is not good any more. */
static void close_relays(node *n)
{
    unsigned i;
    for (i = 0; i < MAX_REGIONS; i++)
        if (n->relay[i] != NULL) n->relay[i]->gone = true;
}

static void forget_node(host *h, node *n)
{
    tell(h, "removed", n, NULL);
    close_relays(n);
    memset(n, 0, sizeof *n);                /* its map streams notice by themselves       */
    index_nodes(h);
    names_changed(h);
    h->dirty = true;
}

static void expire_node(host *h, node *n)
{
    n->expired   = true;
    n->expiry_ms = h->wall_ms;
    close_relays(n);
    changed(h, n, PART_WHOLE);
    tell(h, "expired", n, NULL);
}

static login *login_by_id(host *h, const char *id, size_t len)
{
    unsigned i;
    for (i = 0; i < MAX_LOGINS; i++)
        if (h->logins[i].id[0] != '\0' && tn_is(id, len, h->logins[i].id)) return &h->logins[i];
    return NULL;
}

/* A login for somebody to approve; the same machine and key get the same one again, and the
 * oldest makes room. */
static login *login_begin(host *h, const control *k, const request *q)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    login   *l = &h->logins[0];
    uint8_t  random[24];
    unsigned i;
    for (i = 0; i < MAX_LOGINS; i++) {
        login *o = &h->logins[i];
        if (o->id[0] != '\0' && memcmp(o->machine, k->machine, 32) == 0 &&
            memcmp(o->key, q->key, 32) == 0)
            return o;
        if (o->id[0] == '\0' || (l->id[0] != '\0' && o->deadline_ms < l->deadline_ms)) l = o;
    }
    memset(l, 0, sizeof *l);
    randomly(random, sizeof random);
    for (i = 0; i < 24; i++) l->id[i] = letters[random[i] & 63];
    memcpy(l->machine, k->machine, 32);
    memcpy(l->key, q->key, 32);
    memcpy(l->host, q->host, sizeof l->host);
    l->deadline_ms = h->now_ms + LOGIN_MS;
    return l;
}

static void ask_for_login(host *h, control *k, stream *s)
{
    login *l = login_begin(h, k, &s->rq);
    char   url[256];
    snprintf(url, sizeof url, "%s/register/%s", h->opt.url, l->id);
    tell(h, "login", NULL, url);
    answer_register(s, url, "", false, false);
}

/* Why an auth key does not do, or NULL. */
static const char *check_auth(host *h, const char *text, const request *q, auth_key **out)
{
    size_t      i, n;
    const char *tag = q->tags;
    auth_key   *a   = NULL;
    for (i = 0; i < h->key_count; i++)
        if (strlen(text) == strlen(h->keys[i].text) &&
            tn_equal(text, h->keys[i].text, strlen(text)))
            a = &h->keys[i];
    if (a == NULL) return "invalid pre auth key";
    if (a->expired) return "authkey expired";
    if (a->once && a->used) return "authkey already used";
    for (; *tag != '\0'; tag += n + (tag[n] == ',')) {
        n = strcspn(tag, ",");
        if (!has_tag(a->tags, tag, n)) return "requested tags are invalid or not permitted";
    }
    *out = a;
    return NULL;
}

/* The node is in: created or updated, answered. */
static void let_in(host *h, control *k, stream *s, const char *tags, bool ephemeral)
{
    request *q   = &s->rq;
    node    *n   = node_by_machine(h, k->machine);
    bool     made = n == NULL;
    if (made) n = node_add(h, k->machine);
    if (n == NULL) {
        answer_register(s, "", "this server's table of nodes is full", false, false);
        return;
    }
    n->version = (uint16_t)q->version;
    if (q->has_hostinfo) memcpy(n->host, q->host, sizeof n->host);
    if (q->os[0] != '\0') memcpy(n->os, q->os, sizeof n->os);
    if (made || strncmp(n->tags, tags, TAGS) != 0) {
        snprintf(n->tags, sizeof n->tags, "%s", tags);
        names_changed(h);
    }
    if (made) choose_name(h, n, n->host);
    n->ephemeral = made ? ephemeral : n->ephemeral;
    n->forget_ms = n->ephemeral ? h->now_ms + 1000ul * h->opt.ephemeral_s : TN_NEVER;
    if (made || n->expired || q->expiry_ms != 0) {
        n->expiry_ms = q->expiry_ms;
        changed(h, n, PART_WHOLE);
    }
    n->expired = false;
    if (memcmp(n->key, q->key, 32) != 0) {
        close_relays(n);
        node_set_key(h, n, q->key);
    }
    tell(h, "registered", n, NULL);
    answer_register(s, "", "", false, true);
}

static void log_out(host *h, stream *s, node *n)
{
    bool was_ephemeral = n != NULL && n->ephemeral;
    if (was_ephemeral) forget_node(h, n);
    else if (n != NULL) expire_node(h, n);
    answer_register(s, "", "", true, n != NULL && !was_ephemeral);
}

/* POST /machine/register, its body read. */
static void do_register(host *h, control *k, stream *s)
{
    request    *q     = &s->rq;
    node       *n     = node_by_machine(h, k->machine), *other = node_by_key(h, q->key);
    auth_key   *a     = NULL;
    bool        same  = n != NULL && memcmp(n->key, q->key, 32) == 0;
    const char *why   = NULL, *id;
    login      *l;
    if (tn_is_zero(q->key, 32)) {
        stream_answer(s, 400, "no node key\n");
    } else if (other != NULL && other != n) {
        answer_register(s, "", "node exists with a different machine key", false, false);
    } else if (q->expiry_ms != 0 && q->expiry_ms <= h->wall_ms) {
        log_out(h, s, same ? n : NULL);
    } else if (q->auth[0] != '\0' && !(same && !n->expired)) {
        why = check_auth(h, q->auth, q, &a);
        if (why != NULL) {
            answer_register(s, "", why, false, false);
            return;
        }
        a->used = h->dirty = true;
        let_in(h, k, s, a->tags, a->ephemeral || q->ephemeral);
    } else if (same && !n->expired) {
        let_in(h, k, s, n->tags, n->ephemeral);
    } else if (q->followup[0] != '\0') {
        id = strrchr(q->followup, '/');
        l  = id == NULL ? NULL : login_by_id(h, id + 1, strlen(id + 1));
        if (l == NULL || memcmp(l->machine, k->machine, 32) != 0 ||
            memcmp(l->key, q->key, 32) != 0) {
            ask_for_login(h, k, s);
            return;
        }
        s->state = ST_WAIT;
        memcpy(s->wait, l->id, sizeof s->wait);
    } else if (same) {
        answer_register(s, "", "", true, false);
    } else {
        ask_for_login(h, k, s);
    }
}

/* A held request: has its login been approved, or thrown away? */
static void look_at_login(host *h, control *k, stream *s)
{
    login *l = login_by_id(h, s->wait, strlen(s->wait));
    if (l == NULL) {
        ask_for_login(h, k, s);
    } else if (l->approved) {
        let_in(h, k, s, s->rq.tags, s->rq.ephemeral);
        memset(l, 0, sizeof *l);
    }
}

/* ---- map requests ---- */

static void poll_ends(host *h, conn *c)
{
    session *m = &control_of(c)->map;
    node    *n = &h->nodes[m->slot];
    if (!m->counted) return;
    m->counted = false;
    if (n->id != m->id || n->polls == 0 || --n->polls != 0) return;
    n->seen_ms = h->wall_ms;
    if (n->ephemeral) n->forget_ms = h->now_ms + 1000ul * h->opt.ephemeral_s;
    changed(h, n, PART_ONLINE);
    tell(h, "offline", n, NULL);
}

/* Ends the map stream of a node, as a newer one does, or an admin. */
static bool stop_poll(host *h, const node *n, const conn *except)
{
    size_t i;
    bool   any = false;
    for (i = 0; i < h->conn_count; i++) {
        conn    *c = &h->conns[i];
        session *m;
        if (c->stage != AT_CONTROL || c == except) continue;
        m = &control_of(c)->map;
        if (m->stream == 0 || m->id != n->id) continue;
        m->ending = true;
        poll_ends(h, c);
        any = true;
    }
    return any;
}

/* What a node says about itself. As the hosted service does, only lite updates count. */
static void take_update(host *h, node *n, const request *q)
{
    bool paths = memcmp(n->disco, q->disco, 32) != 0 || n->home != q->home, info;
    n->version = (uint16_t)q->version;
    memcpy(n->disco, q->disco, 32);
    n->home = q->home;
    if (q->has_endpoints) {
        paths = paths || n->endpoint_count != q->endpoint_count ||
                memcmp(n->endpoints, q->endpoints, sizeof n->endpoints) != 0;
        memcpy(n->endpoints, q->endpoints, sizeof n->endpoints);
        n->endpoint_count = q->endpoint_count;
    }
    if (paths) changed(h, n, PART_PATHS);
    if (!q->has_hostinfo) return;
    info = strcmp(n->host, q->host) != 0 || strcmp(n->os, q->os) != 0 || n->api4 != q->api4 ||
           n->api6 != q->api6;
    memcpy(n->host, q->host, sizeof n->host);
    memcpy(n->os, q->os, sizeof n->os);
    n->api4 = q->api4;
    n->api6 = q->api6;
    if (info) changed(h, n, PART_WHOLE);
}

static void begin_poll(host *h, conn *c, stream *s, node *n)
{
    session *m = &control_of(c)->map;
    if (m->stream != 0) tn_h2_cancel(&control_of(c)->h2, m->stream, TN_H2_NO_ERROR);
    poll_ends(h, c);
    (void)stop_poll(h, n, c);
    memset(m, 0, sizeof *m);
    m->stream = s->id;
    m->slot   = slot_of(h, n);
    m->id     = n->id;
    m->first  = m->counted = true;
    m->zstd   = s->rq.zstd;
    m->told   = c->told;
    memset(c->told, 0, h->opt.max_nodes * sizeof c->told[0]);
    m->keepalive_ms = TN_NEVER;
    n->forget_ms    = TN_NEVER;
    n->version      = (uint16_t)s->rq.version;
    n->shown        = true;
    if (n->polls++ == 0) {
        changed(h, n, PART_ONLINE);
        tell(h, "online", n, NULL);
    }
}

/* POST /machine/map, its body read. */
static void do_map(host *h, conn *c, stream *s)
{
    request *q = &s->rq;
    node    *n = node_by_key(h, q->key);
    if (n == NULL || memcmp(n->machine, control_of(c)->machine, 32) != 0) {
        stream_answer(s, 404, "node not found\n");
        return;
    }
    if (!q->stream || q->version < 68) take_update(h, n, q);
    if (q->stream) begin_poll(h, c, s, n);
    stream_answer(s, 200, "");
}

/* ---- streams of a control connection ---- */

static stream *stream_by_id(control *k, uint32_t id)
{
    unsigned i;
    for (i = 0; i < TN_H2_STREAMS; i++)
        if (k->streams[i].state != ST_FREE && k->streams[i].id == id) return &k->streams[i];
    return NULL;
}

static void stream_done(host *h, conn *c, stream *s)
{
    control *k = control_of(c);
    if (s->state != ST_BODY) return;
    if (s->to == TO_C2N) {
        ping_answered(h, s->text, s->len);
        s->len = 0;
        stream_answer(s, 204, "");
    } else if (s->rq.bad || !tn_js_done(&s->js)) {
        stream_answer(s, 400, "not a request\n");
    } else if (s->rq.version < 68) {
        stream_answer(s, 400, "unsupported client version\n");
    } else if (s->to == TO_REGISTER) {
        do_register(h, k, s);
    } else if (s->to == TO_MAP) {
        do_map(h, c, s);
    }
}

/* A header block is complete: a request begins, or is refused. */
static void stream_begin(host *h, conn *c, const tn_h2_event *ev)
{
    control *k = control_of(c);
    hp_head  head;
    stream  *s;
    unsigned i;
    bool     fine = hp_decode(&h->huff, &k->hp, k->block, k->block_len, &head);
    k->block_len = 0;
    if (!fine) tn_h2_close(&k->h2, TN_H2_COMPRESSION_ERROR);
    s = stream_by_id(k, ev->stream);
    if (ev->trailers && ev->end && s != NULL && !ev->dead) stream_done(h, c, s);
    if (!fine || ev->dead || ev->trailers) return;
    for (i = 0; i < TN_H2_STREAMS && k->streams[i].state != ST_FREE; i++) {}
    if (i == TN_H2_STREAMS) {
        tn_h2_cancel(&k->h2, ev->stream, TN_H2_REFUSED_STREAM);
        return;
    }
    s = &k->streams[i];
    memset(s, 0, sizeof *s);
    s->id    = ev->stream;
    s->state = ST_BODY;
    tn_js_init(&s->js);
    if (strcmp(head.path, "/machine/register") == 0) s->to = TO_REGISTER;
    else if (strcmp(head.path, "/machine/map") == 0) s->to = TO_MAP;
    else if (h->ping_start_ms != 0 && h->ping_c2n && strncmp(head.path, "/c2n/", 5) == 0 &&
             strcmp(head.path + 5, h->ping_id) == 0) s->to = TO_C2N;
    if (s->to == TO_NOBODY) stream_answer(s, 404, "not found\n");
    else if (strcmp(head.method, "POST") != 0) stream_answer(s, 405, "");
    else if (ev->end) stream_done(h, c, s);
}

static void stream_body(host *h, conn *c, const tn_h2_event *ev)
{
    stream *s = stream_by_id(control_of(c), ev->stream);
    size_t  n;
    if (s == NULL || s->state != ST_BODY) return;
    s->body_len += ev->len;
    if (s->body_len > BODY_MAX) {
        stream_answer(s, 413, "too long\n");
    } else if (s->to == TO_C2N) {           /* its beginning is enough                    */
        n = sizeof s->text - s->len < ev->len ? sizeof s->text - s->len : ev->len;
        if (n != 0) memcpy(s->text + s->len, ev->at, n);
        s->len += n;
    } else if (ev->len != 0) {
        request_feed(&s->rq, &s->js, ev->at, ev->len);
    }
    if (ev->end) stream_done(h, c, s);
}

static void stream_reset(host *h, conn *c, uint32_t id)
{
    control *k = control_of(c);
    stream  *s = stream_by_id(k, id);
    if (s != NULL) s->state = ST_FREE;
    if (k->map.stream != id) return;
    k->map.stream = 0;
    poll_ends(h, c);
}

/* Plaintext of a record. */
static void control_plain(host *h, conn *c, const uint8_t *text, size_t len)
{
    control    *k = control_of(c);
    tn_h2_event ev;
    tn_rd       in;
    tn_rd_over(&in, text, len);
    while (tn_h2_next(&k->h2, &in, &ev) != TN_H2_MORE) {
        switch (ev.kind) {
        case TN_H2_HEADER_BYTES:            /* the room counts: no block is longer        */
            memcpy(k->block + k->block_len, ev.at, ev.len);
            k->block_len += ev.len;
            break;
        case TN_H2_HEADERS_END: stream_begin(h, c, &ev); break;
        case TN_H2_BODY:        stream_body(h, c, &ev); break;
        case TN_H2_RESET:       stream_reset(h, c, ev.stream); break;
        case TN_H2_FAILED:      leave(h, c); return;
        case TN_H2_MORE: case TN_H2_RESPONSE: case TN_H2_GOAWAY: case TN_H2_PING_ACK: break;
        }
    }
}

static void control_input(host *h, conn *c, uint8_t *data, size_t len)
{
    control *k = control_of(c);
    while (len != 0 && !c->gone && !c->leaving) {
        size_t   want = tn_nz_want(&k->nz, k->rx, k->rx_len), n = want < len ? want : len;
        uint8_t *text;
        memcpy(k->rx + k->rx_len, data, n);
        k->rx_len += n;
        data += n;
        len -= n;
        if (tn_nz_want(&k->nz, k->rx, k->rx_len) != 0) continue;
        if (tn_nz_open(&k->nz, k->rx, k->rx_len, &text, &n) != TAILNET_OK) {
            c->gone = true;
            return;
        }
        k->rx_len = 0;
        if (n != 0) control_plain(h, c, text, n);
    }
}

/* What a stream has to say into the open record. */
static void stream_output(host *h, control *k, stream *s, tn_wr *w)
{
    size_t n;
    if (s->state == ST_WAIT) look_at_login(h, k, s);
    if (s->state != ST_ANSWER) return;
    if (!tn_h2_is_open(&k->h2, s->id)) {
        s->state = ST_FREE;
        return;
    }
    if (!s->head_sent) {
        bool polls = k->map.stream == s->id;
        if (!tn_h2_answer(&k->h2, w, s->id, s->status,
                          polls ? NULL : s->status == 200 ? "application/json" : "text/plain",
                          polls ? TN_H2_NO_LENGTH : s->len, !polls && s->len == 0))
            return;
        s->head_sent = true;
        if (polls) k->map.keepalive_ms = h->now_ms + 1000ul * h->opt.keepalive_s;
        if (polls || s->len == 0) s->state = ST_FREE;
        if (polls || s->len == 0) return;
    }
    n = tn_h2_data(&k->h2, w, s->id, s->text + s->from, s->len - s->from, true);
    s->from += n;
    if (s->from == s->len) s->state = ST_FREE;
}

/* What the map stream has to say into the open record. */
static void map_output(host *h, conn *c, tn_wr *w)
{
    control *k = control_of(c);
    session *m = &k->map;
    if (m->stream == 0 || stream_by_id(k, m->stream) != NULL) return;
    if (h->nodes[m->slot].id != m->id) m->ending = true;
    if (!tn_h2_is_open(&k->h2, m->stream)) {
        stream_reset(h, c, m->stream);
        return;
    }
    while (w->cap - w->total > 256) {
        if (m->ending && (m->from == m->to || h->nodes[m->slot].id != m->id)) {
            (void)tn_h2_data_head(&k->h2, w, m->stream, 0, true);
            m->stream = 0;
            poll_ends(h, c);
            return;
        }
        if (m->from == m->to && m->left != 0) session_fill(h, m);
        else if (m->from == m->to) session_begin(h, m);
        if (m->from == m->to) return;
        m->from += tn_h2_data(&k->h2, w, m->stream, m->piece + m->from, m->to - m->from, false);
        if (m->from != m->to) return;       /* no room in the record or in the window     */
    }
}

/* Fills records while anybody has something to say and the socket keeps up. */
static void control_output(host *h, conn *c)
{
    control *k = control_of(c);
    while (c->to - c->from < 2 * TN_NZ_RECORD_MAX) {
        tn_wr    w;
        unsigned i;
        size_t   n;
        tn_wr_over(&w, k->tx + TN_NZ_HEAD_LEN, TN_NZ_TEXT_MAX);
        if (tn_h2_flush(&k->h2, &w) && !c->leaving) {
            for (i = 0; i < TN_H2_STREAMS; i++) stream_output(h, k, &k->streams[i], &w);
            map_output(h, c, &w);
        }
        if (tn_wr_len(&w) == 0) break;
        n = tn_nz_seal(&k->nz, k->tx, tn_wr_len(&w));
        if (n == 0) {
            c->gone = true;
            return;
        }
        out_put(c, k->tx, n);
    }
}

/* Is a stream open? An idle connection may stay only so long. */
static void control_idle(host *h, conn *c)
{
    control *k    = control_of(c);
    bool     busy = k->map.stream != 0;
    unsigned i;
    for (i = 0; i < TN_H2_STREAMS; i++) busy = busy || k->streams[i].state != ST_FREE;
    if (busy || k->idle_ms == 0) k->idle_ms = h->now_ms;
    if (h->now_ms - k->idle_ms > IDLE_MS && !c->leaving) {
        tn_h2_close(&k->h2, TN_H2_NO_ERROR);
        leave(h, c);
    }
}

/* ---- relay ---- */

/* The first frame of out that is whole, or c->to. */
static size_t first_frame(conn *c)
{
    while (c->frame < c->from) c->frame += 5 + (size_t)tn_get_u32be(c->b->out + c->frame + 1);
    return c->frame;
}

/* Makes room for a frame: the oldest go, as in every relay. NULL: it is too long. */
static uint8_t *frame_room(host *h, conn *c, size_t len)
{
    uint8_t *room;
    (void)first_frame(c);
    while ((room = out_room(c, len)) == NULL) {
        size_t at = first_frame(c), n;
        if (at >= c->to) return NULL;
        n = 5 + (size_t)tn_get_u32be(c->b->out + at + 1);
        memmove(c->b->out + at, c->b->out + at + n, c->to - at - n);
        c->to -= n;
        h->dropped++;
    }
    return room;
}

/* A frame that is built in a small buffer. */
static void frame_put(host *h, conn *c, const tn_wr *w)
{
    uint8_t *room = frame_room(h, c, tn_wr_len(w));
    if (room == NULL) return;
    memcpy(room, w->base, tn_wr_len(w));
    c->to += tn_wr_len(w);
}

static void tell_gone(host *h, conn *c, const uint8_t key[32], unsigned reason)
{
    uint8_t b[64];
    tn_wr   w;
    tn_wr_over(&w, b, sizeof b);
    tn_derp_wr_peer_gone(&w, key, reason);
    frame_put(h, c, &w);
}

/* ClientInfo: only nodes that we know may use this relay. */
static void relay_login(host *h, conn *c, tn_derp_event *ev)
{
    relay   *r = relay_of(c);
    node    *n = node_by_key(h, ev->key);
    uint8_t  b[256], nonce[24];
    tn_wr    w;
    memcpy(r->key, ev->key, 32);
    if (n == NULL || n->expired || !tn_derp_set_key(&r->derp, h->derp, r->key) ||
        !tn_derp_open(&r->derp, ev)) {
        h->turned_away++;
        c->gone = true;
        return;
    }
    r->slot         = slot_of(h, n);
    r->id           = n->id;
    r->keepalive_ms = h->now_ms + RELAY_KEEPALIVE_MS;
    r->notice_ms    = h->now_ms;
    r->notices      = 3;
    c->deadline_ms  = TN_NEVER;
    n->relay[c->region] = c;
    randomly(nonce, sizeof nonce);
    tn_wr_over(&w, b, sizeof b);
    tn_derp_wr_server_info(&r->derp, &w, nonce, 0, 0);
    frame_put(h, c, &w);
    tell(h, "relay", n, NULL);
}

/* SendPacket becomes RecvPacket in the queue of who it is for. */
static void relay_packet(host *h, conn *c, const tn_derp_event *ev)
{
    relay   *r  = relay_of(c);
    node    *to = node_by_key(h, ev->key);
    conn    *o  = to == NULL ? NULL : to->relay[c->region];
    uint8_t *room;
    tn_wr    w;
    if (o == NULL || o->gone || o->leaving) {
        h->nobody++;
        for (; r->notices < 3 && h->now_ms - r->notice_ms >= 1000; r->notice_ms += 1000)
            r->notices++;
        if (r->notices == 3) r->notice_ms = h->now_ms;
        if (r->notices == 0 || ev->len < 62 || !tn_disco_is(ev->data, ev->len)) return;
        r->notices--;
        tell_gone(h, c, ev->key, 1);
        return;
    }
    if (ev->len > 65536 || (room = frame_room(h, o, TN_DERP_KEYED_LEN + ev->len)) == NULL) {
        h->dropped++;
        return;
    }
    tn_wr_over(&w, room, TN_DERP_KEYED_LEN + ev->len);
    tn_derp_wr_recv(&w, r->key, ev->data, ev->len);
    o->to += tn_wr_len(&w);
    r->talked[slot_of(h, to) / 8] |= (uint8_t)(1u << slot_of(h, to) % 8);
    h->relayed++;
}

static void relay_input(host *h, conn *c, uint8_t *data, size_t len)
{
    relay        *r = relay_of(c);
    tn_derp_event ev;
    uint8_t       b[16];
    tn_wr         w;
    while (!c->gone && tn_derp_next(&r->derp, r->store, sizeof r->store, &data, &len, &ev) !=
                           TN_DERP_NONE) {
        node *n = &h->nodes[r->slot];
        if (r->id != 0 && (n->id != r->id || n->expired || memcmp(n->key, r->key, 32) != 0))
            ev.kind = TN_DERP_BROKEN;
        else if (r->id != 0)
            n->relay[c->region] = c;        /* the last to speak is the one               */
        if (ev.kind == TN_DERP_BROKEN) {
            c->gone = true;
        } else if (ev.kind == TN_DERP_CLIENT_INFO) {
            relay_login(h, c, &ev);
        } else if (ev.kind == TN_DERP_PACKET && r->id != 0) {
            relay_packet(h, c, &ev);
        } else if (ev.kind == TN_DERP_PING && r->id != 0) {
            tn_wr_over(&w, b, sizeof b);
            tn_derp_wr_pong(&w, ev.data);
            frame_put(h, c, &w);
        }
    }
}

static void relay_output(host *h, conn *c)
{
    relay  *r = relay_of(c);
    uint8_t b[8];
    tn_wr   w;
    if (r->id == 0 || h->now_ms < r->keepalive_ms) return;
    r->keepalive_ms = h->now_ms + RELAY_KEEPALIVE_MS;
    tn_wr_over(&w, b, sizeof b);
    tn_derp_wr_keepalive(&w);
    frame_put(h, c, &w);
}

/* The connection ends: those it had sent to hear of it. */
static void relay_end(host *h, conn *c)
{
    relay   *r = relay_of(c);
    uint32_t i;
    node    *n = &h->nodes[r->slot];
    if (r->id == 0) return;
    if (n->id == r->id && n->relay[c->region] == c) {
        n->relay[c->region] = NULL;
        tell(h, "relay-gone", n, NULL);
    } else if (n->id == r->id && n->relay[c->region] != NULL) {
        return;                             /* it has a newer connection                  */
    }
    for (i = 0; i < h->opt.max_nodes; i++) {
        conn *to = h->nodes[i].relay[c->region];
        if ((r->talked[i / 8] >> i % 8 & 1) != 0 && to != NULL && to != c && !to->gone)
            tell_gone(h, to, r->key, 0);
    }
}

/* ---- HTTP/1 ---- */

/* Standard base64 of exactly n bytes. */
static bool base64_parse(uint8_t *dst, size_t n, const char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint32_t bits = 0;
    unsigned have = 0;
    size_t   at   = 0;
    for (; *text != '\0' && *text != '='; text++) {
        const char *d = strchr(digits, *text);
        if (d == NULL) return false;
        bits = bits << 6 | (uint32_t)(d - digits);
        have += 6;
        if (have < 8) continue;
        have -= 8;
        if (at == n) return false;
        dst[at++] = (uint8_t)(bits >> have & 255u);
    }
    return at == n;
}

static void http_answer(const host *h, conn *c, unsigned status, const char *type,
                        const char *text, bool head)
{
    uint8_t b[1024];
    tn_wr   w;
    tn_wr_over(&w, b, sizeof b);
    tn_h1_build_answer(&w, status, type, text, strlen(text));
    out_put(c, b, tn_wr_len(&w) - (head ? strlen(text) : 0));
    leave(h, c);
}

/* GET /key?v=N: the public key that the rest hangs on. */
static void answer_key(const host *h, conn *c, const char *query)
{
    static const uint8_t none[32] = { 0 };
    uint8_t  b[256];
    uint64_t version = 0;
    tn_wr    wr;
    tn_js_w  w;
    if (!tn_begins(query, strlen(query), "v=") ||
        !tn_dec_parse(query + 2, strlen(query) - 2, 65535, &version) || version < 68) {
        http_answer(h, c, 400, "text/plain", "unsupported client version\n", false);
        return;
    }
    tn_wr_over(&wr, b, sizeof b - 1);
    tn_js_w_init(&w, &wr);
    tn_js_w_object(&w);
    tn_js_w_member_hex(&w, "legacyPublicKey", TN_KEY_MACHINE, none, 32);
    tn_js_w_member_hex(&w, "publicKey", TN_KEY_MACHINE, h->noise_public, 32);
    tn_js_w_object_end(&w);
    b[tn_wr_len(&wr)] = '\0';
    http_answer(h, c, 200, "application/json", (const char *)b, false);
}

/* The early payload, in three records as other servers send it (control/ts2021/conn.go). */
static void early_payload(conn *c)
{
    static const uint8_t magic[5] = { 0xff, 0xff, 0xff, 0x54, 0x53 };
    control *k = control_of(c);
    uint8_t  secret[32], challenge[32], text[160];
    tn_wr    w, piece;
    unsigned i;
    randomly(secret, sizeof secret);
    tn_cr_x25519_base(challenge, secret);
    tn_wr_over(&w, text, sizeof text);
    tn_wr_text(&w, "{\"nodeKeyChallenge\":\"");
    tn_key_write(&w, TN_KEY_CHALLENGE, challenge);
    tn_wr_text(&w, "\"}");
    for (i = 0; i < 3; i++) {
        tn_wr_over(&piece, k->tx + TN_NZ_HEAD_LEN, TN_NZ_TEXT_MAX);
        if (i == 0) tn_wr_bytes(&piece, magic, sizeof magic);
        if (i == 1) tn_wr_u32be(&piece, (uint32_t)tn_wr_len(&w));
        if (i == 2) tn_wr_bytes(&piece, text, tn_wr_len(&w));
        out_put(c, k->tx, tn_nz_seal(&k->nz, k->tx, tn_wr_len(&piece)));
    }
}

/* POST /ts2021: from here on it is Noise. As with Go's server, a handshake that fails ends the
 * connection behind the 101. */
static void become_control(host *h, conn *c)
{
    control *k = control_of(c);
    char     text[TN_H1_HANDSHAKE + 1];
    uint8_t  hello[TN_NZ_INITIATION_LEN], answer[TN_NZ_RESPONSE_LEN], ephemeral[32], head[256];
    tn_wr    w;
    memcpy(text, c->b->u.http.handshake, sizeof text);
    if (!base64_parse(hello, sizeof hello, text)) {
        http_answer(h, c, 400, "text/plain", "invalid tailscale handshake header\n", false);
        return;
    }
    memset(k, 0, sizeof *k);
    randomly(ephemeral, sizeof ephemeral);
    tn_wr_over(&w, head, sizeof head);
    tn_h1_build_101(&w, "tailscale-control-protocol", NULL);
    out_put(c, head, tn_wr_len(&w));
    if (tn_nz_accept(&k->nz, h->noise, hello, ephemeral, answer, k->machine, &k->version) !=
            TAILNET_OK || k->version < 68) {
        memset(k, 0, sizeof *k);
        h->turned_away++;
        leave(h, c);
        return;
    }
    c->stage       = AT_CONTROL;
    c->deadline_ms = TN_NEVER;
    k->hp.limit    = HP_TABLE;
    k->idle_ms     = h->now_ms;
    out_put(c, answer, sizeof answer);
    if (!h->opt.no_early) early_payload(c);
    tn_h2_begin(&k->h2, TN_H2_SERVER);
}

static void become_relay(host *h, conn *c, bool fast)
{
    relay  *r = relay_of(c);
    uint8_t b[512];
    tn_wr   w;
    memset(r, 0, sizeof *r - sizeof r->store);
    tn_derp_start(&r->derp, true);
    tn_wr_over(&w, b, sizeof b);
    if (!fast) {
        char    extra[160];
        uint8_t hex[64];
        tn_wr   x;
        tn_wr_over(&x, hex, sizeof hex);
        tn_wr_hex(&x, h->derp_public, 32);
        snprintf(extra, sizeof extra, "Derp-Version: 2\r\nDerp-Public-Key: %.64s\r\n",
                 (const char *)hex);
        tn_h1_build_101(&w, "DERP", extra);
    }
    out_put(c, b, tn_wr_len(&w));
    c->stage = AT_RELAY;
    c->frame = c->to;
    tn_wr_over(&w, b, sizeof b);
    tn_derp_wr_server_key(&w, h->derp_public);
    frame_put(h, c, &w);
}

/* The page behind an AuthURL. */
static void answer_login(host *h, conn *c, const char *id)
{
    login *l = login_by_id(h, id, strlen(id));
    if (l == NULL) {
        http_answer(h, c, 404, "text/plain", "no such login\n", false);
        return;
    }
    if (h->opt.open_login) l->approved = true;
    http_answer(h, c, 200, "text/plain",
                l->approved ? "approved\n" : "ask the one who runs this server to approve it\n",
                false);
}

/* A request's head is complete. */
static void http_route(host *h, conn *c)
{
    const tn_h1 *q    = &c->b->u.http.h1;
    const char  *path = q->text;
    bool         head = q->method == TN_H1_HEAD, get = head || q->method == TN_H1_GET;
    size_t       len  = strlen(path);
    if (strcmp(path, "/ts2021") == 0) {
        if (q->method != TN_H1_POST) http_answer(h, c, 405, NULL, "", false);
        else if ((q->flags & TN_H1_TO_CONTROL) == 0)
            http_answer(h, c, 400, "text/plain", "missing next protocol\n", false);
        else become_control(h, c);
    } else if (strcmp(path, "/derp") == 0) {
        if (!c->tls && !h->opt.plain_relay) http_answer(h, c, 404, NULL, "", false);
        else if ((q->flags & TN_H1_TO_DERP) == 0) http_answer(h, c, 426, NULL, "", false);
        else become_relay(h, c, (q->flags & TN_H1_FAST_START) != 0);
    } else if (!get) {
        http_answer(h, c, 404, NULL, "", head);
    } else if (tn_begins(path, len, "/key") && (path[4] == '?' || path[4] == '\0')) {
        answer_key(h, c, path[4] == '?' ? path + 5 : "");
    } else if (strcmp(path, "/derp/probe") == 0 || strcmp(path, "/derp/latency-check") == 0) {
        http_answer(h, c, 200, NULL, "", head);
    } else if (strcmp(path, "/generate_204") == 0) {
        http_answer(h, c, 204, NULL, "", head);
    } else if (tn_begins(path, len, "/register/")) {
        answer_login(h, c, path + 10);
    } else if (head && tn_begins(path, len, "/machine/ping-response?id=") && !h->ping_c2n &&
               h->ping_start_ms != 0 && strcmp(path + 26, h->ping_id) == 0) {
        ping_answered(h, "HEAD", 4);
        http_answer(h, c, 200, NULL, "", true);
    } else {
        http_answer(h, c, 404, "text/plain", "not found\n", head);
    }
}

static void conn_input(host *h, conn *c, uint8_t *data, size_t len)
{
    tn_rd in;
    if (c->stage == AT_HTTP && !c->leaving) {
        tn_h1_result result;
        tn_rd_over(&in, data, len);
        result = tn_h1_head(&c->b->u.http.h1, &in);
        if (result == TN_H1_MORE) return;
        data += len - in.left;
        len = in.left;
        if (result == TN_H1_HEAD_DONE) http_route(h, c);
        else                           c->gone = true;
    }
    if (c->leaving || c->gone || len == 0) return;
    if (c->stage == AT_CONTROL) control_input(h, c, data, len);
    if (c->stage == AT_RELAY) relay_input(h, c, data, len);
}

static void conn_output(host *h, conn *c)
{
    if (c->stage == AT_CONTROL) control_output(h, c);
    if (c->stage == AT_RELAY && !c->leaving) relay_output(h, c);
}

/* ---- sockets ---- */

/* recv and send that never wait: bytes, 0 for not now; a connection that ended is gone. */
static size_t conn_recv(conn *c, void *dst, size_t len)
{
    ssize_t n;
    if (!c->readable) return 0;
    n = recv(c->fd, dst, len, 0);
    if (n <= 0 || (size_t)n < len) c->readable = false;
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) c->gone = true;
    return n < 0 ? 0 : (size_t)n;
}

static size_t conn_send(const host *h, conn *c, const void *src, size_t len)
{
    ssize_t n = send(c->fd, src, len, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) c->gone = true;
    if (n > 0) c->moved_ms = h->now_ms;
    return n < 0 ? 0 : (size_t)n;
}

static void took_out(conn *c, size_t n)
{
    c->from += n;
    if (c->stage == AT_RELAY) (void)first_frame(c);
    if (c->from == c->to) c->from = c->to = c->frame = 0;
}

/* Moves bytes through the TLS engine while anything moves. */
static void conn_work_tls(host *h, conn *c)
{
    br_ssl_engine_context *e = &c->b->tls.eng;
    int rounds = 64;
    while (!c->gone) {
        unsigned state = br_ssl_engine_current_state(e);
        size_t   len, n = 0;
        uint8_t *p;
        if (rounds-- == 0) {                /* then it is somebody else's turn            */
            h->again = true;
            return;
        }
        if (state == BR_SSL_CLOSED) {
            c->gone = true;
            return;
        }
        if ((state & BR_SSL_SENDREC) != 0) {
            p = br_ssl_engine_sendrec_buf(e, &len);
            n = conn_send(h, c, p, len);
            if (n != 0) br_ssl_engine_sendrec_ack(e, n);
            if (n == len) continue;
        }
        if ((state & BR_SSL_RECVAPP) != 0) {
            p = br_ssl_engine_recvapp_buf(e, &len);
            conn_input(h, c, p, len);
            br_ssl_engine_recvapp_ack(e, len);
            n = len;
        }
        if (c->stage != AT_HTTP) conn_output(h, c);
        state = br_ssl_engine_current_state(e);
        if ((state & BR_SSL_SENDAPP) != 0 && c->to != c->from) {
            p = br_ssl_engine_sendapp_buf(e, &len);
            if (len > c->to - c->from) len = c->to - c->from;
            memcpy(p, c->b->out + c->from, len);
            br_ssl_engine_sendapp_ack(e, len);
            took_out(c, len);
            br_ssl_engine_flush(e, 0);
            continue;
        }
        if (c->leaving && !c->closed && c->to == c->from) {
            br_ssl_engine_close(e);
            c->closed = true;
        }
        if ((state & BR_SSL_RECVREC) != 0 && c->readable) {
            p = br_ssl_engine_recvrec_buf(e, &len);
            n = conn_recv(c, p, len);
            if (n != 0) br_ssl_engine_recvrec_ack(e, n);
        }
        if (n == 0 && (br_ssl_engine_current_state(e) & BR_SSL_SENDREC) == (state & BR_SSL_SENDREC))
            return;
    }
}

static void conn_work_plain(host *h, conn *c)
{
    int rounds = 64;
    while (!c->gone && rounds-- != 0) {
        size_t n = conn_recv(c, c->b->in, sizeof c->b->in), sent = 0;
        if (n != 0) conn_input(h, c, c->b->in, n);
        conn_output(h, c);
        if (c->to != c->from) sent = conn_send(h, c, c->b->out + c->from, c->to - c->from);
        took_out(c, sent);
        if (c->leaving && c->to == c->from) c->gone = true;
        if (n == 0 && sent == 0) return;
    }
}

static void conn_end(host *h, conn *c)
{
    struct linger cut = { 1, 0 };
    if (c->stage == AT_CONTROL) poll_ends(h, c);
    if (c->stage == AT_CONTROL) tn_nz_wipe(&control_of(c)->nz);
    if (c->stage == AT_RELAY) relay_end(h, c);
    if (c->cut) (void)setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &cut, sizeof cut);
    close(c->fd);
    c->stage = AT_FREE;
    c->fd    = -1;
}

/* Limits of time: a stage that takes too long, output that does not move, an idle connection. */
static void conn_limits(host *h, conn *c)
{
    bool pending = c->to != c->from ||
                   (c->tls && (br_ssl_engine_current_state(&c->b->tls.eng) & BR_SSL_SENDREC) != 0);
    if (!pending) c->moved_ms = h->now_ms;
    if (h->now_ms >= c->deadline_ms || h->now_ms - c->moved_ms > STUCK_MS) c->gone = true;
    if (c->stage == AT_CONTROL) control_idle(h, c);
}

/* A free connection, or one that has not got further than its hello for the longest. */
static conn *conn_find(host *h)
{
    conn  *best = NULL;
    size_t i;
    for (i = 0; i < h->conn_count; i++) {
        conn *c = &h->conns[i];
        if (c->stage == AT_FREE) return c;
        if (c->stage == AT_HTTP && (best == NULL || c->deadline_ms < best->deadline_ms)) best = c;
    }
    if (best != NULL) conn_end(h, best);
    return best;
}

static void conn_begin(host *h, int listener, bool tls, unsigned at)
{
    int   fd = accept(listener, NULL, NULL), one = 1, seconds = 30, user_ms = 30000;
    conn *c;
    told *t;
    body *b;
    if (fd < 0) return;
    c = conn_find(h);
    if (c == NULL || fcntl(fd, F_SETFL, O_NONBLOCK) != 0) {
        close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &seconds, sizeof seconds);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof user_ms);
    t = c->told;
    b = c->b;
    memset(c, 0, sizeof *c);
    c->told        = t;
    c->b           = b;
    c->fd          = fd;
    c->stage       = AT_HTTP;
    c->tls         = tls;
    c->region      = at;
    c->deadline_ms = h->now_ms + HELLO_MS;
    c->moved_ms    = h->now_ms;
    h->accepted++;
    tn_h1_begin_request(&b->u.http.h1, b->u.http.handshake);
    if (!tls) return;
    br_ssl_server_init_full_ec(&b->tls, h->chain, h->chain_len, BR_KEYTYPE_EC, &h->secret);
    br_ssl_engine_set_versions(&b->tls.eng, BR_TLS12, BR_TLS12);
    br_ssl_engine_add_flags(&b->tls.eng, BR_OPT_NO_RENEGOTIATION);
    br_ssl_engine_set_buffers_bidi(&b->tls.eng, b->tls_in, sizeof b->tls_in, b->tls_out,
                                   sizeof b->tls_out);
    br_ssl_server_reset(&b->tls);
}

/* "ADDR:PORT", "[ADDR]:PORT", ":PORT" or "PORT" into a socket that is bound; -1: it cannot be. */
static int open_socket(const char *where, int type, uint16_t *port)
{
    char             node_text[128] = "";
    const char      *colon = strrchr(where, ':'), *service = colon == NULL ? where : colon + 1;
    struct addrinfo  hints, *list = NULL;
    int              fd, one = 1;
    size_t           len = colon == NULL ? 0u : (size_t)(colon - where), skip;
    uint64_t         number = 0;
    skip = len >= 2 && where[0] == '[' ? 1u : 0u;
    tn_text_copy(node_text, sizeof node_text, where + skip, len - 2 * skip);
    memset(&hints, 0, sizeof hints);
    hints.ai_flags    = AI_PASSIVE | AI_NUMERICSERV;
    hints.ai_socktype = type;
    if (getaddrinfo(node_text[0] == '\0' ? NULL : node_text, service, &hints, &list) != 0)
        return -1;
    fd = socket(list->ai_family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd >= 0 && (bind(fd, list->ai_addr, list->ai_addrlen) != 0 ||
                    (type == SOCK_STREAM && listen(fd, 128) != 0))) {
        close(fd);
        fd = -1;
    }
    freeaddrinfo(list);
    if (tn_dec_parse(service, strlen(service), 65535, &number)) *port = (uint16_t)number;
    return fd;
}

/* Answers binding requests with the address they came from. */
static void stun_work(host *h)
{
    struct sockaddr_storage from;
    socklen_t               from_len = sizeof from;
    uint8_t                 b[512], id[12];
    tailnet_addr            a;
    tn_wr                   w;
    ssize_t                 n;
    int                     rounds = 64;
    while (rounds-- != 0 && (n = recvfrom(h->stun_fd, b, sizeof b, 0, (struct sockaddr *)&from,
                                          &from_len)) >= 0) {
        memset(&a, 0, sizeof a);
        if (from.ss_family == AF_INET) {
            struct sockaddr_in in;
            memcpy(&in, &from, sizeof in);
            a.family = 4;
            a.port   = ntohs(in.sin_port);
            memcpy(a.ip, &in.sin_addr, 4);
        } else {
            struct sockaddr_in6 in6;
            memcpy(&in6, &from, sizeof in6);
            a.family = 6;
            a.port   = ntohs(in6.sin6_port);
            memcpy(a.ip, &in6.sin6_addr, 16);
            if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr)) {
                a.family = 4;
                memmove(a.ip, a.ip + 12, 4);
            }
        }
        if (tn_stun_parse_request(b, (size_t)n, id)) {
            tn_wr_over(&w, b, sizeof b);
            tn_stun_wr_response(&w, id, &a);
            (void)sendto(h->stun_fd, b, tn_wr_len(&w), 0, (struct sockaddr *)&from, from_len);
            h->stuns++;
        }
        from_len = sizeof from;
    }
}

/* ---- lines of an admin ---- */

static bool admin_ok(tn_js_w *w)
{
    tn_js_w_member_bool(w, "ok", true);
    return true;
}

static void wr_admin_node(tn_js_w *w, const node *n)
{
    bool     relayed = false;
    unsigned i;
    tn_js_w_object(w);
    tn_js_w_member_uint(w, "id", n->id);
    tn_js_w_member(w, "name", n->name);
    tn_js_w_key(w, "ip4");
    js_prefix(w, n->id, false, false);
    tn_js_w_key(w, "ip6");
    js_prefix(w, n->id, true, false);
    tn_js_w_member_hex(w, "key", TN_KEY_NODE, n->key, 32);
    tn_js_w_member(w, "host", n->host);
    tn_js_w_member(w, "os", n->os);
    tn_js_w_member(w, "tags", n->tags);
    tn_js_w_member_bool(w, "online", is_online(n));
    for (i = 0; i < MAX_REGIONS; i++) relayed = relayed || n->relay[i] != NULL;
    tn_js_w_member_bool(w, "relay", relayed);
    tn_js_w_member_bool(w, "expired", n->expired);
    tn_js_w_member_bool(w, "ephemeral", n->ephemeral);
    tn_js_w_member_bool(w, "disco", !tn_is_zero(n->disco, 32));
    tn_js_w_member_uint(w, "home", n->home);
    tn_js_w_member_uint(w, "version", n->version);
    wr_endpoints(w, "endpoints", n);
    tn_js_w_object_end(w);
}

static bool admin_list(host *h, tn_js_w *w)
{
    uint32_t i;
    admin_ok(w);
    tn_js_w_key(w, "nodes");
    tn_js_w_array(w);
    for (i = 0; i < h->opt.max_nodes; i++)
        if (h->nodes[i].id != 0) wr_admin_node(w, &h->nodes[i]);
    tn_js_w_array_end(w);
    tn_js_w_key(w, "logins");
    tn_js_w_array(w);
    for (i = 0; i < MAX_LOGINS; i++) {
        if (h->logins[i].id[0] == '\0') continue;
        tn_js_w_object(w);
        tn_js_w_member(w, "id", h->logins[i].id);
        tn_js_w_member(w, "host", h->logins[i].host);
        tn_js_w_object_end(w);
    }
    tn_js_w_array_end(w);
    return true;
}

static bool admin_stats(const host *h, tn_js_w *w)
{
    size_t i, used = 0;
    for (i = 0; i < h->conn_count; i++) used += h->conns[i].stage != AT_FREE;
    admin_ok(w);
    tn_js_w_member_uint(w, "connections", used);
    tn_js_w_member_uint(w, "accepted", h->accepted);
    tn_js_w_member_uint(w, "turned_away", h->turned_away);
    tn_js_w_member_uint(w, "relayed", h->relayed);
    tn_js_w_member_uint(w, "dropped", h->dropped);
    tn_js_w_member_uint(w, "to_nobody", h->nobody);
    tn_js_w_member_uint(w, "stun", h->stuns);
    return true;
}

/* policy allow | deny | only RULE... | add RULE... | file F */
static bool admin_policy(host *h, char **words, int count, tn_js_w *w)
{
    const char *what = count > 1 ? words[1] : "";
    bool        add  = strcmp(what, "add") == 0, ok;
    rule        r;
    int         i;
    if (strcmp(what, "file") == 0)
        return count == 3 && load_policy(h, words[2]) && admin_ok(w);
    ok = strcmp(what, "allow") == 0 || strcmp(what, "deny") == 0 ||
         (count > 2 && (add || strcmp(what, "only") == 0));
    for (i = 2; i < count; i++) ok = ok && rule_parse(&r, words[i]);
    if (!ok || (add ? h->rule_count : 0u) + (size_t)count > MAX_RULES) return false;
    if (!add) h->rule_count = 0;
    h->raw_policy = false;
    names_changed(h);
    if (strcmp(what, "allow") == 0) (void)add_rule(h, "*>*:*");
    for (i = 2; i < count; i++) (void)add_rule(h, words[i]);
    return admin_ok(w);
}

static bool admin_approve(host *h, const char *id, tn_js_w *w)
{
    unsigned i, count = 0;
    for (i = 0; i < MAX_LOGINS; i++) {
        login *l = &h->logins[i];
        if (l->id[0] == '\0' || (strcmp(id, "all") != 0 && strcmp(id, l->id) != 0)) continue;
        l->approved = true;
        count++;
    }
    h->clock++;                             /* the waiting requests look at it            */
    return count != 0 && admin_ok(w);
}

/* The control or relay connections of a node are cut, as by a cable. */
static void admin_drop(host *h, const node *n, stage which)
{
    size_t i;
    for (i = 0; i < h->conn_count; i++) {
        conn *c = &h->conns[i];
        if (c->stage != which) continue;
        if (which == AT_RELAY ? relay_of(c)->id != n->id
                              : memcmp(control_of(c)->machine, n->machine, 32) != 0)
            continue;
        c->gone = c->cut = true;
    }
}

static bool admin_ping(host *h, admin *a, const node *n, const char *kind)
{
    uint8_t random[8], hex[16];
    tn_wr   w;
    if (h->ping_start_ms != 0 || !is_online(n) ||
        (strcmp(kind, "c2n") != 0 && strcmp(kind, "head") != 0))
        return false;
    randomly(random, sizeof random);
    tn_wr_over(&w, hex, sizeof hex);
    tn_wr_hex(&w, random, sizeof random);
    memcpy(h->ping_id, hex, sizeof hex);
    h->ping_c2n      = kind[0] == 'c';
    h->ping_node     = n->id;
    h->ping_start_ms = h->now_ms;
    h->ping_number   = ++h->clock;
    a->waits         = true;
    return true;
}

static bool admin_of_node(host *h, admin *a, char **words, int count, tn_js_w *w)
{
    node       *n    = count > 1 ? node_by_name(h, words[1]) : NULL;
    const char *what = words[0];
    if (n == NULL) return false;
    if (strcmp(what, "ping") == 0) return count == 3 && admin_ping(h, a, n, words[2]);
    if (strcmp(what, "remove") == 0) forget_node(h, n);
    else if (strcmp(what, "expire") == 0) expire_node(h, n);
    else if (strcmp(what, "stop-map") == 0) return stop_poll(h, n, NULL) && admin_ok(w);
    else if (strcmp(what, "drop") == 0) admin_drop(h, n, AT_CONTROL);
    else if (strcmp(what, "drop-relay") == 0) admin_drop(h, n, AT_RELAY);
    else if (strcmp(what, "rename") == 0 && count == 3) {
        choose_name(h, n, words[2]);
        changed(h, n, PART_WHOLE);
        names_changed(h);
    } else return false;
    return admin_ok(w);
}

static bool admin_keepalive(host *h, tn_js_w *w)
{
    size_t i;
    for (i = 0; i < h->conn_count; i++)
        if (h->conns[i].stage == AT_CONTROL) control_of(&h->conns[i])->map.keepalive = true;
    return admin_ok(w);
}

static bool admin_do(host *h, admin *a, char **words, int count, tn_js_w *w)
{
    const char *what = words[0];
    uint64_t    n;
    if (strcmp(what, "list") == 0) return admin_list(h, w);
    if (strcmp(what, "stats") == 0) return admin_stats(h, w);
    if (strcmp(what, "policy") == 0) return admin_policy(h, words, count, w);
    if (strcmp(what, "approve") == 0) return count == 2 && admin_approve(h, words[1], w);
    if (strcmp(what, "keepalive") == 0) return admin_keepalive(h, w);
    if (strcmp(what, "bigmap") == 0) {
        if (count != 2 || !tn_dec_parse(words[1], strlen(words[1]), BIG_MAX, &n)) return false;
        h->big = (uint32_t)n;
        h->clock++;
        return admin_ok(w);
    }
    if (strcmp(what, "quit") == 0) {
        h->stop = true;
        return admin_ok(w);
    }
    return admin_of_node(h, a, words, count, w);
}

/* One line: words, an answer in JSON. The answer to a ping comes later. */
static void admin_line(host *h, admin *a, char *line)
{
    char   *words[MAX_RULES], *at = line;
    int     count = 0;
    tn_wr   wr;
    tn_js_w w;
    bool    ok;
    for (;;) {
        at += strspn(at, " \t\r");
        if (*at == '\0' || count == MAX_RULES) break;
        words[count++] = at;
        at += strcspn(at, " \t\r");
        if (*at != '\0') *at++ = '\0';
    }
    if (count == 0) return;
    tn_wr_over(&wr, h->answer, h->answer_cap - 2);
    tn_js_w_init(&w, &wr);
    tn_js_w_object(&w);
    ok = admin_do(h, a, words, count, &w);
    if (a->waits) return;
    if (!ok) {
        tn_js_w_member_bool(&w, "ok", false);
        tn_js_w_member(&w, "error", "no such command, node, rule or file");
    }
    tn_js_w_object_end(&w);
    h->answer[tn_wr_len(&wr)] = '\n';
    admin_answer(a, h->answer, tn_wr_len(&wr) + 1);
}

static void admin_accept(host *h)
{
    int            fd = accept(h->admin_fd, NULL, NULL);
    struct timeval second = { 1, 0 };
    unsigned       i;
    if (fd < 0) return;
    for (i = 0; i < MAX_ADMINS && h->admins[i].fd >= 0; i++) {}
    if (i == MAX_ADMINS) {
        close(fd);
        return;
    }
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof second);
    memset(&h->admins[i], 0, sizeof h->admins[i]);
    h->admins[i].fd = fd;
}

static void admin_work(host *h, admin *a)
{
    ssize_t n = recv(a->fd, a->line + a->len, sizeof a->line - 1 - a->len, MSG_DONTWAIT);
    char   *end;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        close(a->fd);
        a->fd = -1;
        return;
    }
    a->len += (size_t)n;
    a->line[a->len] = '\0';
    while (a->fd >= 0 && (end = strchr(a->line, '\n')) != NULL) {
        *end = '\0';
        admin_line(h, a, a->line);
        a->len -= (size_t)(end + 1 - a->line);
        memmove(a->line, end + 1, a->len + 1);
    }
    if (a->len == sizeof a->line - 1) a->len = 0;
}

static int open_admin(const char *path, bool server)
{
    struct sockaddr_un where;
    int                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    memset(&where, 0, sizeof where);
    where.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof where.sun_path) die("the path of the admin socket is too long");
    strcpy(where.sun_path, path);
    if (server) unlink(path);
    if (fd < 0 || (server ? bind(fd, (struct sockaddr *)&where, sizeof where)
                          : connect(fd, (struct sockaddr *)&where, sizeof where)) != 0)
        return -1;
    if (!server) return fd;
    (void)chmod(path, 0600);
    return listen(fd, 8) == 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0 ? fd : -1;
}

/* selfhost --ask SOCKET WORDS...: one line there, one line back. */
static int ask(int argc, char **argv)
{
    char    b[4096];
    int     fd = open_admin(argv[0], false), i;
    ssize_t n;
    bool    ok = false, first = true, end = false;
    if (fd < 0) die("nobody listens on %s", argv[0]);
    b[0] = '\0';
    for (i = 1; i < argc; i++) {
        if (strlen(b) + strlen(argv[i]) + 3 > sizeof b) die("too many words");
        strcat(b, argv[i]);
        strcat(b, i + 1 < argc ? " " : "\n");
    }
    if (send(fd, b, strlen(b), MSG_NOSIGNAL) < 0) die("%s does not listen", argv[0]);
    while (!end && (n = recv(fd, b, sizeof b, 0)) > 0) {
        if (first) ok = n >= 10 && memcmp(b, "{\"ok\":true", 10) == 0;
        first = false;
        end   = b[n - 1] == '\n';
        fwrite(b, 1, (size_t)n, stdout);
    }
    close(fd);
    return ok && end ? 0 : 1;
}

/* ---- files ---- */

/* All of a file; the length, or 0. */
static size_t read_file(const char *path, void *dst, size_t cap)
{
    FILE  *f = fopen(path, "rb");
    size_t n;
    if (f == NULL) return 0;
    n = fread(dst, 1, cap, f);
    fclose(f);
    return n == cap ? 0 : n;
}

typedef struct pem_object {
    uint8_t *base;
    size_t   len, cap;
    bool     full;
} pem_object;

static void pem_take(void *to, const void *src, size_t len)
{
    pem_object *o = (pem_object *)to;
    if (o->cap - o->len < len) {
        o->full = true;
        return;
    }
    memcpy(o->base + o->len, src, len);
    o->len += len;
}

/* The objects of a PEM file whose names have this ending, at most max of them, each into o and on
 * behind it. Returns how many. */
static size_t read_pem(const char *path, const char *ending, pem_object *o, uint8_t **starts,
                       size_t *lens, size_t max)
{
    char                   text[16384];
    size_t                 len = read_file(path, text, sizeof text - 1), at = 0, count = 0;
    br_pem_decoder_context pem;
    bool                   wanted = false;
    if (len == 0) die("cannot read %s", path);
    text[len++] = '\n';
    br_pem_decoder_init(&pem);
    while (at < len) {
        at += br_pem_decoder_push(&pem, text + at, len - at);
        switch (br_pem_decoder_event(&pem)) {
        case BR_PEM_BEGIN_OBJ: {
            const char *name = br_pem_decoder_name(&pem);
            size_t      n = strlen(name), e = strlen(ending);
            wanted = count < max && n >= e && strcmp(name + n - e, ending) == 0;
            if (wanted) starts[count] = o->base + o->len;
            br_pem_decoder_setdest(&pem, wanted ? pem_take : NULL, o);
            break;
        }
        case BR_PEM_END_OBJ:
            if (wanted) lens[count] = (size_t)(o->base + o->len - starts[count]);
            if (wanted) count++;
            wanted = false;
            break;
        case BR_PEM_ERROR: die("%s is no PEM file", path); break;
        default: break;
        }
    }
    if (o->full) die("%s is too long", path);
    return count;
}

static void load_certificate(host *h)
{
    pem_object            o = { h->pem, 0, sizeof h->pem, false };
    uint8_t              *starts[MAX_CHAIN];
    size_t                lens[MAX_CHAIN], i;
    br_skey_decoder_context key;
    const br_ec_private_key *ec;
    h->chain_len = read_pem(h->opt.cert, "CERTIFICATE", &o, starts, lens, MAX_CHAIN);
    for (i = 0; i < h->chain_len; i++) {
        h->chain[i].data     = starts[i];
        h->chain[i].data_len = lens[i];
    }
    if (read_pem(h->opt.key, "PRIVATE KEY", &o, starts, lens, 1) != 1 || h->chain_len == 0)
        die("no certificate in %s, or no key in %s", h->opt.cert, h->opt.key);
    br_skey_decoder_init(&key);
    br_skey_decoder_push(&key, starts[0], lens[0]);
    ec = br_skey_decoder_get_ec(&key);
    if (ec == NULL || ec->curve != BR_EC_secp256r1 || ec->xlen > sizeof h->secret_bytes)
        die("the key in %s has to be of curve P-256", h->opt.key);
    memcpy(h->secret_bytes, ec->x, ec->xlen);
    h->secret.curve = ec->curve;
    h->secret.x     = h->secret_bytes;
    h->secret.xlen  = ec->xlen;
    tn_wipe(&key, sizeof key);
}

static void put_hex(FILE *f, const void *src, size_t len)
{
    const uint8_t *b = (const uint8_t *)src;
    fputc(' ', f);
    if (len == 0) fputc('-', f);
    for (; len != 0; len--) fprintf(f, "%02x", *b++);
}

/* Keys and nodes, one a line, texts in hex. Written anew and renamed. */
static void save_state(host *h)
{
    char     path[512];
    uint8_t  sum[32];
    size_t   i;
    FILE    *f;
    int      fd;
    h->dirty = false;
    if (h->opt.state == NULL) return;
    snprintf(path, sizeof path, "%s.new", h->opt.state);
    fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    f  = fd < 0 ? NULL : fdopen(fd, "w");
    if (f == NULL) die("cannot write %s", path);
    fputs("selfhost 1\nkeys", f);
    put_hex(f, h->noise, 32);
    put_hex(f, h->derp, 32);
    fprintf(f, " %lu\n", (unsigned long)h->next_id);
    for (i = 0; i < h->key_count; i++) {
        if (!h->keys[i].used) continue;
        tn_cr_sha256(sum, h->keys[i].text, strlen(h->keys[i].text));
        fputs("used", f);
        put_hex(f, sum, 32);
        fputc('\n', f);
    }
    for (i = 0; i < h->opt.max_nodes; i++) {
        const node *n = &h->nodes[i];
        if (n->id == 0) continue;
        fprintf(f, "node %lu %d %llu %llu %u %u %s", (unsigned long)n->id,
                (n->expired ? 1 : 0) + (n->ephemeral ? 2 : 0), (unsigned long long)n->created_ms,
                (unsigned long long)n->expiry_ms, n->home, n->version, n->name);
        put_hex(f, n->machine, 32);
        put_hex(f, n->key, 32);
        put_hex(f, n->disco, 32);
        put_hex(f, n->host, strlen(n->host));
        put_hex(f, n->os, strlen(n->os));
        put_hex(f, n->tags, strlen(n->tags));
        fputc('\n', f);
    }
    if (fflush(f) != 0 || fsync(fd) != 0 || fclose(f) != 0 || rename(path, h->opt.state) != 0)
        die("cannot write %s", h->opt.state);
}

static bool take_hex(void *dst, size_t len, const char *word)
{
    return tn_hex_parse((uint8_t *)dst, len, word, strlen(word));
}

static bool take_word(char *dst, size_t cap, const char *word)
{
    size_t n = strlen(word) / 2;
    memset(dst, 0, cap);
    return strcmp(word, "-") == 0 || (n < cap && take_hex(dst, n, word));
}

static bool load_node(host *h, char **w)
{
    node    *n = node_add(h, h->noise);
    uint64_t v[6];
    int      i;
    if (n == NULL) return false;
    for (i = 0; i < 6; i++) {
        char *end;
        v[i] = strtoull(w[i], &end, 10);
        if (w[i][0] < '0' || w[i][0] > '9' || *end != '\0') return false;
    }
    n->id         = (uint32_t)v[0];
    n->expired    = (v[1] & 1) != 0;
    n->ephemeral  = (v[1] & 2) != 0;
    n->created_ms = v[2];
    n->expiry_ms  = v[3];
    n->shown      = true;
    n->home       = (uint16_t)v[4];
    n->version    = (uint16_t)v[5];
    if (n->ephemeral) n->forget_ms = h->now_ms + 1000ul * h->opt.ephemeral_s;
    return n->id != 0 && tn_text_copy(n->name, sizeof n->name, w[6], strlen(w[6])) &&
           take_hex(n->machine, 32, w[7]) && take_hex(n->key, 32, w[8]) &&
           take_hex(n->disco, 32, w[9]) && take_word(n->host, sizeof n->host, w[10]) &&
           take_word(n->os, sizeof n->os, w[11]) && take_word(n->tags, sizeof n->tags, w[12]);
}

static bool load_line(host *h, char **w, int count)
{
    uint8_t  sum[32], mine[32];
    uint64_t next;
    size_t   i;
    if (count == 2 && strcmp(w[0], "selfhost") == 0) return strcmp(w[1], "1") == 0;
    if (count == 14 && strcmp(w[0], "node") == 0) return load_node(h, w + 1);
    if (count == 2 && strcmp(w[0], "used") == 0 && take_hex(sum, 32, w[1])) {
        for (i = 0; i < h->key_count; i++) {
            tn_cr_sha256(mine, h->keys[i].text, strlen(h->keys[i].text));
            if (memcmp(mine, sum, 32) == 0) h->keys[i].used = true;
        }
        return true;
    }
    if (count != 4 || strcmp(w[0], "keys") != 0 || !take_hex(h->noise, 32, w[1]) ||
        !take_hex(h->derp, 32, w[2]) || !tn_dec_parse(w[3], strlen(w[3]), BIG_ID + BIG_JUMP, &next))
        return false;
    h->next_id = (uint32_t)next;
    return true;
}

/* The keys of the last time, or new ones. */
static void load_state(host *h)
{
    char     line[2048], *words[16], *at;
    FILE    *f = h->opt.state == NULL ? NULL : fopen(h->opt.state, "r");
    uint32_t next;
    int      count;
    randomly(h->noise, 32);
    randomly(h->derp, 32);
    h->next_id = 1;
    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        next = h->next_id;
        count = 0;
        for (at = strtok(line, " \n"); at != NULL && count < 16; at = strtok(NULL, " \n"))
            words[count++] = at;
        if (count == 0) continue;
        if (!load_line(h, words, count)) die("%s is damaged", h->opt.state);
        if (strcmp(words[0], "node") == 0) h->next_id = next;
    }
    if (f != NULL) fclose(f);
    tn_cr_clamp(h->noise);
    tn_cr_x25519_base(h->noise_public, h->noise);
    tn_cr_x25519_base(h->derp_public, h->derp);
    index_nodes(h);
    save_state(h);
}

/* ---- main ---- */

static const char usage[] =
    "selfhost: a control server, relay and STUN server in one process, for tests and small labs\n"
    "(one user, fixed tables, no database)\n\n"
    "  --listen ADDR:PORT   where TLS is spoken: control and relay (needed)\n"
    "  --url URL            how nodes name this server, https://host:port (needed)\n"
    "  --cert F --key F     certificate chain and P-256 key, PEM (needed)\n"
    "  --plain ADDR:PORT    the same without TLS, for /key and /ts2021\n"
    "  --stun [ADDR:]PORT   answer STUN there\n"
    "  --authkey KEY[:reusable|once|ephemeral|expired|tag:a,tag:b]...   repeatable\n"
    "  --open-login         opening a login's page approves it\n"
    "  --allow 'SRC>DST:PORTS/PROTO'   repeatable; * or a name, tag:x, address, prefix;\n"
    "                       without any, everything is allowed\n"
    "  --deny               nothing is allowed\n"
    "  --policy F           a JSON array of filter rules, sent as it is\n"
    "  --domain D           of names (tail.lab)\n"
    "  --state F            keys and nodes survive a restart\n"
    "  --admin SOCKET       a Unix socket for --ask\n"
    "  --max-nodes N        (64)           --ephemeral-s N   of an ephemeral node away (30)\n"
    "  --keepalive-s N      (50)           --no-early        no early payload\n"
    "  --node-ip4 A         IPv4 of the relay in maps        --cert-name N  its CertName\n"
    "  --node-ip6 A         the same for IPv6                --plain-relay  also without TLS\n"
    "  --relay ID,HOST,ADDR:PORT   another region's relay, at a port of its own; repeatable\n"
    "  --peers N            maps hold N made-up peers, half of them before the real ones\n"
    "  --json               events on stdout                 -v  events on stderr\n\n"
    "selfhost --ask SOCKET list | stats | remove N | expire N | rename N NEW | approve ID |\n"
    "  policy allow|deny|only RULE..|add RULE..|file F | ping N c2n|head | stop-map N | drop N |\n"
    "  drop-relay N | keepalive | bigmap COUNT | quit\n";

/* KEY and its words; "tag:" and what follows is the rest. */
static void add_key(host *h, const char *text)
{
    auth_key   *a = &h->keys[h->key_count];
    size_t      n = strcspn(text, ":");
    if (h->key_count == MAX_KEYS || !tn_text_copy(a->text, sizeof a->text, text, n) || n == 0)
        die("too many auth keys, or one too long");
    for (text += n; *text == ':'; text += n) {
        n = strcspn(++text, ":");
        if (tn_begins(text, strlen(text), "tag:")) {
            n = strlen(text);
            if (!tn_text_copy(a->tags, sizeof a->tags, text, n)) die("too many tags");
        } else if (tn_is(text, n, "once")) a->once = true;
        else if (tn_is(text, n, "ephemeral")) a->ephemeral = true;
        else if (tn_is(text, n, "expired")) a->expired = true;
        else if (!tn_is(text, n, "reusable")) die("no such kind of auth key: %s", text);
    }
    h->key_count++;
}

static void take_number(uint32_t *dst, const char *text, uint32_t most)
{
    uint64_t v;
    if (!tn_dec_parse(text, strlen(text), most, &v) || v == 0) die("no such number: %s", text);
    *dst = (uint32_t)v;
}

/* ID,HOST,ADDR:PORT of one more relay, which the first one's addresses do not hold for. */
static void add_relay(host *h, const char *text)
{
    region     *r     = &h->regions[h->region_count];
    const char *comma = strchr(text, ','), *where = comma == NULL ? NULL : strchr(comma + 1, ',');
    uint64_t    id    = 0;
    if (h->region_count == MAX_REGIONS || where == NULL ||
        !tn_dec_parse(text, (size_t)(comma - text), 999, &id) || id == 0 || id == REGION ||
        !tn_text_copy(r->name, sizeof r->name, comma + 1, (size_t)(where - comma - 1)))
        die("no such relay: %s", text);
    r->id = (uint16_t)id;
    r->fd = open_socket(where + 1, SOCK_STREAM, &r->port);
    if (r->fd < 0) die("cannot listen on %s: %s", where + 1, strerror(errno));
    h->region_count++;
}

/* One option; returns how many words it took. */
static int take_option(host *h, const char *name, const char *value)
{
    options    *o = &h->opt;
    const char **texts[] = { &o->listen, &o->plain, &o->url, &o->cert, &o->key, &o->state,
                             &o->policy, &o->admin, &o->stun, &o->node_ip4, &o->cert_name,
                             &o->domain, &o->node_ip6 };
    static const char *const names[] = { "--listen", "--plain", "--url", "--cert", "--key",
                                         "--state", "--policy", "--admin", "--stun", "--node-ip4",
                                         "--cert-name", "--domain", "--node-ip6" };
    size_t i;
    if (strcmp(name, "--open-login") == 0) return o->open_login = true;
    if (strcmp(name, "--no-early") == 0) return o->no_early = true;
    if (strcmp(name, "--plain-relay") == 0) return o->plain_relay = true;
    if (strcmp(name, "--json") == 0) return o->json = true;
    if (strcmp(name, "--deny") == 0) return o->deny = true;
    if (strcmp(name, "-v") == 0) return o->verbose = true;
    if (strcmp(name, "--help") == 0) {
        fputs(usage, stdout);
        exit(0);
    }
    if (value == NULL) die("%s: unknown, or without its value; see --help", name);
    for (i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0) {
            *texts[i] = value;
            return 2;
        }
    if (strcmp(name, "--authkey") == 0) add_key(h, value);
    else if (strcmp(name, "--relay") == 0) add_relay(h, value);
    else if (strcmp(name, "--max-nodes") == 0) take_number(&o->max_nodes, value, MAX_NODES);
    else if (strcmp(name, "--peers") == 0) take_number(&o->peers, value, BIG_MAX);
    else if (strcmp(name, "--ephemeral-s") == 0) take_number(&o->ephemeral_s, value, 86400);
    else if (strcmp(name, "--keepalive-s") == 0) take_number(&o->keepalive_s, value, 86400);
    else if (strcmp(name, "--allow") == 0) {
        if (!add_rule(h, value)) die("no such rule: %s", value);
    } else die("%s: unknown; see --help", name);
    return 2;
}

/* Host and port of the URL: what nodes find in the DERP map. */
static void take_url(host *h)
{
    const char *at = h->opt.url, *end, *colon;
    uint64_t    port = 443;
    region     *r    = &h->regions[0];
    size_t      len;
    if (!tn_begins(at, strlen(at), "https://")) die("--url has to begin with https://");
    at += 8;
    end = at + strcspn(at, "/");
    if (*end != '\0') die("--url without a path, please");
    colon = at[0] == '[' ? strchr(at, ']') : at;
    colon = colon == NULL ? NULL : strchr(colon, ':');
    if (colon != NULL && !tn_dec_parse(colon + 1, strlen(colon + 1), 65535, &port))
        die("no such port in --url");
    len = (size_t)((colon == NULL ? end : colon) - at);
    if (at[0] == '[') {
        at++;
        len -= 2;
    }
    if (!tn_text_copy(r->name, sizeof r->name, at, len) || len == 0) die("no host in --url");
    r->id   = REGION;
    r->port = (uint16_t)port;
    r->ip4  = h->opt.node_ip4;
    r->ip6  = h->opt.node_ip6;
}

/* All the memory that a server of max_nodes ever takes. */
static void set_up_tables(host *h)
{
    size_t   i;
    unsigned k;
    told    *t;
    body    *b;
    h->conn_count = (1 + h->region_count) * (size_t)h->opt.max_nodes + 16;
    h->answer_cap = 65536 + 1536 * (size_t)h->opt.max_nodes;
    h->nodes  = (node *)calloc(h->opt.max_nodes, sizeof(node));
    h->conns  = (conn *)calloc(h->conn_count, sizeof(conn));
    h->answer = (char *)malloc(h->answer_cap);
    t = (told *)calloc(h->conn_count * h->opt.max_nodes, sizeof(told));
    b = (body *)calloc(h->conn_count, sizeof(body));
    if (h->nodes == NULL || h->conns == NULL || h->answer == NULL || t == NULL || b == NULL)
        die("not enough memory for %lu nodes", (unsigned long)h->opt.max_nodes);
    for (i = 0; i < h->conn_count; i++) {
        h->conns[i].told = t + i * h->opt.max_nodes;
        h->conns[i].b    = b + i;
    }
    for (k = 0; k < MAX_ADMINS; k++) h->admins[k].fd = -1;
    huffman_init(&h->huff);
}

/* The real nodes get ids between those of the made-up ones, and their place in maps. */
static void set_up_peers(host *h)
{
    if (h->opt.peers == 0) return;
    h->big        = h->opt.peers;
    h->big_before = h->opt.peers / 2;
    if (h->next_id <= BIG_MAX) h->next_id += BIG_ID + BIG_MAX;
}

static void set_up(host *h)
{
    uint16_t port = 0;
    set_up_tables(h);
    take_url(h);
    load_certificate(h);
    load_state(h);
    if (h->opt.policy != NULL && !load_policy(h, h->opt.policy))
        die("%s is no JSON array, or longer than %d bytes", h->opt.policy, POLICY_MAX - 1);
    if (h->rule_count == 0 && !h->opt.deny && h->opt.policy == NULL) (void)add_rule(h, "*>*:*");
    names_changed(h);
    set_up_peers(h);
    h->plain_fd = h->stun_fd = h->admin_fd = -1;
    h->regions[0].fd = open_socket(h->opt.listen, SOCK_STREAM, &port);
    if (h->regions[0].fd < 0) die("cannot listen on %s: %s", h->opt.listen, strerror(errno));
    if (h->opt.plain != NULL && (h->plain_fd = open_socket(h->opt.plain, SOCK_STREAM, &port)) < 0)
        die("cannot listen on %s: %s", h->opt.plain, strerror(errno));
    if (h->opt.stun != NULL &&
        (h->stun_fd = open_socket(h->opt.stun, SOCK_DGRAM, &h->stun_port)) < 0)
        die("cannot answer STUN on %s: %s", h->opt.stun, strerror(errno));
    if (h->opt.admin != NULL && (h->admin_fd = open_admin(h->opt.admin, true)) < 0)
        die("cannot open %s: %s", h->opt.admin, strerror(errno));
}

static void conn_work(host *h, conn *c)
{
    if (c->stage == AT_FREE || c->gone) return;
    if (c->tls) conn_work_tls(h, c);
    else        conn_work_plain(h, c);
}

/* What we wait for on a connection. */
static short conn_wants(const conn *c)
{
    unsigned state = c->tls ? br_ssl_engine_current_state(&c->b->tls.eng) : 0u;
    bool     in    = !c->tls || (state & BR_SSL_RECVREC) != 0;
    bool     out   = c->to != c->from || (state & BR_SSL_SENDREC) != 0;
    return (short)((in ? POLLIN : 0) | (out ? POLLOUT : 0));
}

/* Logins that nobody approved, ephemeral nodes that are away, a ping without an answer. */
static void forget_old(host *h)
{
    uint32_t i;
    for (i = 0; i < MAX_LOGINS; i++)
        if (h->logins[i].id[0] != '\0' && h->now_ms >= h->logins[i].deadline_ms)
            h->logins[i].id[0] = '\0';
    for (i = 0; i < h->opt.max_nodes; i++) {
        node *n = &h->nodes[i];
        if (n->id == 0) continue;
        if (n->forget_ms <= h->now_ms && !is_online(n)) forget_node(h, n);
        else if (n->expiry_ms != 0 && n->expiry_ms <= h->wall_ms && !n->expired) expire_node(h, n);
    }
    if (h->ping_start_ms != 0 && h->now_ms - h->ping_start_ms > PING_MS) ping_answered(h, NULL, 0);
}

/* Takes what came on the connections, gives what is due. */
static void work(host *h)
{
    uint32_t clock = h->clock;
    size_t   i;
    h->again = false;
    forget_old(h);
    for (i = 0; i < h->conn_count; i++) conn_work(h, &h->conns[i]);
    for (i = 0; i < h->conn_count; i++) {
        conn *c = &h->conns[i];
        if (c->stage == AT_FREE) continue;
        if (c->to != c->from) conn_work(h, c);
        conn_limits(h, c);
        if (c->gone) conn_end(h, c);
    }
    h->again = h->again || clock != h->clock;
}

/* One turn of the loop: wait, see who comes, work. */
static void turn(host *h, struct pollfd *fds)
{
    enum { LISTENERS = 3 + MAX_REGIONS, CONNS = LISTENERS + MAX_ADMINS };
    size_t   i, n = 0;
    unsigned k;
    int      fixed[LISTENERS];
    fixed[0] = h->plain_fd;
    fixed[1] = h->stun_fd;
    fixed[2] = h->admin_fd;
    for (k = 0; k < MAX_REGIONS; k++) fixed[3 + k] = k < h->region_count ? h->regions[k].fd : -1;
    for (k = 0; k < CONNS; k++, n++) {
        fds[n].fd     = k < LISTENERS ? fixed[k] : h->admins[k - LISTENERS].fd;
        fds[n].events = POLLIN;
    }
    for (i = 0; i < h->conn_count; i++, n++) {
        fds[n].fd     = h->conns[i].stage == AT_FREE ? -1 : h->conns[i].fd;
        fds[n].events = fds[n].fd < 0 ? (short)0 : conn_wants(&h->conns[i]);
    }
    if (poll(fds, (nfds_t)n, h->again ? 0 : 1000) < 0 && errno != EINTR) die("poll failed");
    read_clocks(h);
    for (i = 0; i < h->conn_count; i++)
        if (fds[CONNS + i].fd >= 0 && (fds[CONNS + i].revents & (POLLIN | POLLHUP | POLLERR)) != 0)
            h->conns[i].readable = true;
    for (k = 0; k < h->region_count; k++)
        if ((fds[3 + k].revents & POLLIN) != 0) conn_begin(h, fixed[3 + k], true, k);
    if ((fds[0].revents & POLLIN) != 0) conn_begin(h, h->plain_fd, false, 0);
    if ((fds[1].revents & POLLIN) != 0) stun_work(h);
    if ((fds[2].revents & POLLIN) != 0) admin_accept(h);
    for (k = 0; k < MAX_ADMINS; k++)
        if (fds[LISTENERS + k].fd >= 0 && fds[LISTENERS + k].revents != 0)
            admin_work(h, &h->admins[k]);
    work(h);
    if (h->dirty) save_state(h);
}

static volatile sig_atomic_t stop_asked;

static void on_signal(int number)
{
    (void)number;
    stop_asked = 1;
}

int main(int argc, char **argv)
{
    static host    h;
    struct pollfd *fds;
    int            i;
    if (argc > 3 && strcmp(argv[1], "--ask") == 0) return ask(argc - 2, argv + 2);
    h.region_count    = 1;
    h.opt.max_nodes   = 64;
    h.opt.ephemeral_s = 30;
    h.opt.keepalive_s = 50;
    h.opt.domain      = "tail.lab";
    read_clocks(&h);
    for (i = 1; i < argc;) i += take_option(&h, argv[i], i + 1 < argc ? argv[i + 1] : NULL);
    if (h.opt.listen == NULL || h.opt.url == NULL || h.opt.cert == NULL || h.opt.key == NULL) {
        fputs(usage, stderr);
        return 1;
    }
    set_up(&h);
    fds = (struct pollfd *)calloc(h.conn_count + 3 + MAX_REGIONS + MAX_ADMINS, sizeof *fds);
    if (fds == NULL) die("not enough memory");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (!h.opt.json) {
        printf("selfhost %s on %s: for tests and small labs, no database\n", TAILNET_VERSION,
               h.opt.url);
        fflush(stdout);
    }
    tell(&h, "ready", NULL, h.opt.url);
    while (!h.stop && stop_asked == 0) turn(&h, fds);
    if (h.opt.admin != NULL) unlink(h.opt.admin);
    return 0;
}
