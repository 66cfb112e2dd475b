/* tailnetd - a small tailnet node for Linux. `tailnetd --help` lists the options.
 *
 * Without --tun it needs no root and answers pings and UDP echo (port 7) by itself. With
 * --json it says every change as one object per line on stdout. Exit codes: 0 asked to stop,
 * 1 usage, 2 cannot go on.
 *
 * Built with TAILNETD_LWIP and lwIP (examples/lwip) it has --socks5: any program of this machine
 * reaches the tailnet through it, without root. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

#ifdef TAILNETD_LWIP
#  define TAILNET_PLATFORM_LWIP_IMPLEMENTATION
#  include "tailnet_platform_lwip.h"
#  include "lwip/init.h"
#  include "lwip/timeouts.h"
#  include "socks5_server.h"
#else
enum { SOCKS5_FDS = 0 };
#endif

enum { LIST = 16, PEERS = 256, ECHO_PORT = 7, ASK_PORT = 40007 };

/* The way to a peer as we said it last. */
struct way {
    uint64_t     id;
    tailnet_path path;
    tailnet_addr endpoint;
};

/* What the command line said. */
struct wishes {
    const char    *control, *key_file, *host, *state, *ca, *tun, *control_key, *ping, *proxy;
    const char    *socks5, *socks5_login, *uplink;
    const char    *tags[LIST];
    size_t         tag_count;
    tailnet_prefix routes[LIST];
    size_t         route_count;
    uint16_t       port, links;
    bool           metered, no_port_map, netcheck, dns;
    bool           relay_only, ephemeral, json, verbose, logout, shields_up, accept_routes;
    bool           from_stdin, small, replace_state;
};

static struct {
    struct wishes wish;
    tailnet_posix posix;
    char          auth_key[512];
    char          name[256];
    char          output[4096];         /* of stdout, so that it takes none from the heap */
    char          command[1200];
    size_t        command_len;
    struct way    ways[PEERS];
    size_t        way_count;
    uint64_t      netcheck_until_us;
    bool          ping_wanted, was_running, input_open;
    uint64_t      asked_us;
    volatile sig_atomic_t stop;
#ifdef TAILNETD_LWIP
    tailnet_lwip_overlay overlay;
    socks5_server        socks5;
#endif
} app;

/* ---- Heap calls: counted, to show that there are none once the node runs -------------- */

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(TAILNETD_NO_HEAP_COUNT)
#  define COUNT_HEAP 1
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

static bool          heap_watched;
static pthread_t     heap_thread;
static unsigned long heap_calls;

/* Look-up threads and the system's list of addresses may use the heap; the node may not. */
static void heap_count(void)
{
    if (heap_watched && !app.posix.heap_in_use && pthread_equal(heap_thread, pthread_self()))
        heap_calls++;
}

void *malloc(size_t size)
{
    heap_count();
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    heap_count();
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    heap_count();
    return __libc_realloc(old, size);
}
#endif

static void heap_watch(bool on)
{
#ifdef COUNT_HEAP
    heap_thread  = pthread_self();
    heap_watched = on;
#else
    (void)on;
#endif
}

/* ---- Words ----------------------------------------------------------------------------- */

static const char *state_name(tailnet_state state)
{
    switch (state) {
    case TAILNET_STATE_DOWN:           return "down";
    case TAILNET_STATE_CONNECTING:     return "connecting";
    case TAILNET_STATE_NEEDS_LOGIN:    return "needs-login";
    case TAILNET_STATE_NEEDS_APPROVAL: return "needs-approval";
    case TAILNET_STATE_RUNNING:        return "running";
    case TAILNET_STATE_FAILED:         return "failed";
    default:                           return "unknown";
    }
}

static const char *path_name(tailnet_path path)
{
    switch (path) {
    case TAILNET_PATH_RELAY:      return "relay";
    case TAILNET_PATH_DIRECT:     return "direct";
    case TAILNET_PATH_PEER_RELAY: return "peer-relay";
    case TAILNET_PATH_NONE:
    default:                      return "none";
    }
}

/* What is wrong with a TLS connection, and what to do. Numbers: BearSSL's errors, and from
 * 1000 on those of tailnet.h. */
static const char *tls_sentence(int32_t detail)
{
    switch (detail) {
    case 54:
        return "The server's certificate has expired or is not valid yet: renew it there, or set "
               "this machine's clock";
    case 56:
        return "The server's certificate is for another name: use the name that it was made for, "
               "or give the server a certificate for this one";
    case 62:
        return "The server's certificate is not signed by a CA that we trust: name its CA file "
               "with --ca";
    case 1000:
    case 1001:
        return "The relay's certificate is not the one that the relay map pins: correct the "
               "relay map, or the relay";
    case 1002:
        return "The relay map pins a certificate in a way that cannot be read: correct CertName";
    case 1003:
        return "The server's certificate is malformed: give the server another one";
    default:
        return detail >= 256 && detail < 1000
            ? "The server and we do not agree on TLS: it has to offer TLS 1.2"
            : "The TLS connection to the server failed: is it a TLS server, is something between?";
    }
}

static const char *control_sentence(const tailnet_problem *pr)
{
    if (app.auth_key[0] != '\0' && !app.was_running)
        return "The control server refused the auth key: make a new one there and put it into the "
               "file of --authkey-file";
    if (pr->detail == 404) return "This is no control server: check the URL of --control";
    return "The control server refused us: see its own words, or ask its admin";
}

/* One plain sentence that says what to do. */
static const char *problem_sentence(const tailnet_problem *pr)
{
    switch (pr->result) {
    case TAILNET_ERR_TLS: return tls_sentence(pr->detail);
    case TAILNET_ERR_TOO_BIG:
        if (strcmp(pr->section, "tls") == 0)
            return "The server sends TLS records that are longer than TAILNET_CONTROL_RECORD";
        return tailnet_result_text(pr->result);
    case TAILNET_ERR_FORGED:
        if (strcmp(pr->section, "noise") != 0 && strcmp(pr->section, "control") != 0)
            return "Somebody sends forged bytes: nothing to do unless it goes on";
        return "The control server does not have the control key that we expect: correct "
               "--control-key, or find out who answers in its place";
    case TAILNET_ERR_CONTROL: return control_sentence(pr);
    case TAILNET_ERR_UNSUPPORTED:
        return "The other side speaks a version that we do not: update the older of the two";
    case TAILNET_ERR_NETWORK:
        return "A server cannot be reached: check the URL, its name and the network; we go on "
               "trying";
    case TAILNET_ERR_TIMEOUT:
        return "A server does not answer in time: check the URL and the network; we go on trying";
    case TAILNET_ERR_RANDOM:
        return "The system gives no random numbers: nothing is safe without, so we stop";
    case TAILNET_ERR_MALFORMED:
        if (strcmp(pr->section, "key") == 0 || strcmp(pr->section, "state") == 0)
            return "The state file is damaged: restore it, or delete it and join anew";
        return "A server sends what we cannot read: is it a control server, is it up to date?";
    case TAILNET_ERR_MEMORY: return "Something was larger than our memory for it";
    case TAILNET_ERR_DENIED:
        if (strcmp(pr->section, "proxy") == 0)
            return "The HTTP proxy refused: check --proxy, its user and its password";
        return "The packet filter refused it: change the policy";
    case TAILNET_ERR_NO_ROUTE: return "No peer has that address or name";
    case TAILNET_OK:
    case TAILNET_ERR_ARGUMENT:
    case TAILNET_ERR_BUSY:
    case TAILNET_ERR_AGAIN:
    case TAILNET_ERR_STALE:
    default: return tailnet_result_text(pr->result);
    }
}

/* ---- What we say: as JSON, one object per line, or as text ----------------------------- */

/* Text of others goes out so that neither a JSON reader nor a terminal is fooled. */
static void put_quoted(const char *text)
{
    putchar('"');
    for (; *text != '\0'; text++) {
        unsigned c = (unsigned char)*text;
        if (c == '"' || c == '\\') printf("\\%c", (int)c);
        else if (c < 32 || c == 127) printf("\\u%04x", c);
        else putchar((int)c);
    }
    putchar('"');
}

static void json_text(const char *key, const char *value)
{
    printf(",\"%s\":", key);
    put_quoted(value);
}

static void json_addr(const char *key, const tailnet_addr *addr)
{
    char text[64];
    if (addr->family == 0) return;
    tailnet_posix_addr_text(text, sizeof text, addr);
    json_text(key, text);
}

static void json_number(const char *key, uint64_t value)
{
    printf(",\"%s\":%llu", key, (unsigned long long)value);
}

static void json_bool(const char *key, bool value)
{
    printf(",\"%s\":%s", key, value ? "true" : "false");
}

static void json_begin(const char *event) { printf("{\"event\":\"%s\"", event); }

static void json_end(void)
{
    puts("}");
    fflush(stdout);
}

static void say_state(void)
{
    tailnet_state state = tailnet_get_state(app.posix.node);
    tailnet_self  self;
    bool          known = tailnet_get_self(app.posix.node, &self);
    char          ip4[64] = "", ip6[64] = "";
    if (known) {
        tailnet_posix_addr_text(ip4, sizeof ip4, &self.ip4);
        tailnet_posix_addr_text(ip6, sizeof ip6, &self.ip6);
    }
    if (!app.wish.json) {
        printf("%s", state_name(state));
        if (known) printf(": %s %s ", ip4, ip6);
        if (known) put_quoted(self.name);
        puts("");
        fflush(stdout);
        return;
    }
    json_begin("state");
    json_text("state", state_name(state));
    if (known) {
        json_text("ip4", ip4);
        json_text("ip6", ip6);
        json_text("name", self.name);
        json_number("region", self.home_region);
        json_bool("control", self.control_up);
        json_number("key_expiry_unix_ms", self.key_expiry_unix_ms);
    }
    json_end();
}

static void say_login(void)
{
    const char *url = tailnet_login_url(app.posix.node);
    if (url == NULL || url[0] == '\0') return;
    if (app.wish.json) {
        json_begin("login");
        json_text("url", url);
        json_end();
        return;
    }
    printf("to log in, open ");
    put_quoted(url);
    puts("");
    fflush(stdout);
}

static void json_peer(const tailnet_peer *peer, bool whole)
{
    json_text("name", peer->name);
    if (whole) {
        json_text("domain", peer->domain);
        json_addr("ip4", &peer->ip4);
        json_addr("ip6", &peer->ip6);
        json_bool("online", (peer->flags & TAILNET_PEER_ONLINE) != 0);
        json_bool("expired", (peer->flags & TAILNET_PEER_EXPIRED) != 0);
        json_bool("tagged", (peer->flags & TAILNET_PEER_TAGGED) != 0);
    }
    json_text("path", path_name(peer->path));
    json_addr("endpoint", &peer->endpoint);
    json_number("region", peer->region);
    if (peer->latency_ms != 0) json_number("latency_ms", peer->latency_ms);
}

/* event "peers": the directory; "paths": how each of them is reached. */
static void say_peers(const char *event)
{
    bool         whole = strcmp(event, "peers") == 0;
    tailnet_peer peer;
    char         ip[64];
    size_t       i, said = 0;
    if (app.wish.json) {
        json_begin(event);
        printf(",\"peers\":[");
    }
    for (i = 0; tailnet_get_peer(app.posix.node, i, &peer); i++) {
        if (!whole && peer.path == TAILNET_PATH_NONE) continue;
        if (app.wish.json) {
            printf("%s{\"index\":%lu", said++ != 0 ? "," : "", (unsigned long)i);
            json_peer(&peer, whole);
            putchar('}');
            continue;
        }
        tailnet_posix_addr_text(ip, sizeof ip, &peer.ip4);
        printf("  %-15s ", ip);
        put_quoted(peer.name);
        printf(" %s, %s\n", (peer.flags & TAILNET_PEER_ONLINE) != 0 ? "online" : "offline",
               path_name(peer.path));
    }
    if (app.wish.json) puts("]}");
    fflush(stdout);
}

/* What is remembered of a peer; a new place when it is new; NULL when there is none. */
static struct way *way_of(uint64_t id)
{
    size_t i;
    for (i = 0; i < app.way_count; i++)
        if (app.ways[i].id == id) return &app.ways[i];
    if (app.way_count == PEERS) return NULL;
    memset(&app.ways[i], 0, sizeof app.ways[i]);
    app.ways[i].id = id;
    app.way_count++;
    return &app.ways[i];
}

static void say_way(const tailnet_peer *peer)
{
    char text[64];
    if (app.wish.json) {
        json_begin("path");
        json_text("peer", peer->name);
        json_text("path", path_name(peer->path));
        json_addr("endpoint", &peer->endpoint);
        json_number("region", peer->region);
        json_number("latency_ms", peer->latency_ms);
        json_end();
        return;
    }
    tailnet_posix_addr_text(text, sizeof text, &peer->endpoint);
    printf("path ");
    put_quoted(peer->name);
    printf(": %s %s", path_name(peer->path), text);
    if (peer->path == TAILNET_PATH_RELAY) printf("region %u", (unsigned)peer->region);
    if (peer->latency_ms != 0) printf(", %lu ms", (unsigned long)peer->latency_ms);
    puts("");
    fflush(stdout);
}

/* A line for each peer that is reached another way than before. */
static void say_ways(void)
{
    tailnet_peer peer;
    size_t       i;
    for (i = 0; tailnet_get_peer(app.posix.node, i, &peer); i++) {
        struct way *w = way_of(peer.id);
        if (w == NULL || (w->path == peer.path && w->endpoint.port == peer.endpoint.port &&
                          memcmp(w->endpoint.ip, peer.endpoint.ip, 16) == 0))
            continue;
        w->path     = peer.path;
        w->endpoint = peer.endpoint;
        say_way(&peer);
    }
}

/* Peers that are gone need no memory. */
static void forget_ways(void)
{
    tailnet_peer peer;
    size_t       i, k;
    bool         there;
    for (i = 0; i < app.way_count;) {
        for (k = 0, there = false; !there && tailnet_get_peer(app.posix.node, k, &peer); k++)
            there = peer.id == app.ways[i].id;
        if (there) i++;
        else app.ways[i] = app.ways[--app.way_count];
    }
}

static const char *yes_no(bool value) { return value ? "yes" : "no"; }

static const char *varies_word(uint8_t varies)
{
    return varies == 0 ? "unknown" : varies == 1 ? "no" : "yes";
}

static void json_report(const tailnet_report *r)
{
    tailnet_region region;
    size_t         i;
    json_begin("netcheck");
    json_bool("udp", r->udp);
    json_bool("ipv4", r->ip4);
    json_bool("ipv6", r->ip6);
    json_text("mapping_varies", varies_word(r->varies));
    json_addr("global4", &r->global4);
    json_addr("global6", &r->global6);
    json_bool("nat_pmp", (r->port_map & 1u) != 0);
    json_bool("pcp", (r->port_map & 2u) != 0);
    json_bool("upnp", (r->port_map & 4u) != 0);
    json_addr("mapped", &r->mapped);
    json_number("nearest", r->home);
    json_number("age_ms", r->age_ms);
    printf(",\"regions\":[");
    for (i = 0; tailnet_get_region(app.posix.node, i, &region); i++) {
        printf("%s{\"region\":%u,\"v4_ms\":%u,\"v6_ms\":%u", i != 0 ? "," : "",
               (unsigned)region.region, (unsigned)region.v4_ms, (unsigned)region.v6_ms);
        json_text("host", region.host);
        putchar('}');
    }
    putchar(']');
    json_end();
}

static void put_region(const tailnet_region *r)
{
    printf("    - %u: ", (unsigned)r->region);
    if (r->v4_ms != 0) printf("%u ms", (unsigned)r->v4_ms);
    if (r->v6_ms != 0) printf("%s%u ms by IPv6", r->v4_ms != 0 ? ", " : "", (unsigned)r->v6_ms);
    printf("%s (%s)\n", r->v4_ms == 0 && r->v6_ms == 0 ? "no answer" : "", r->host);
}

static void text_report(const tailnet_report *r)
{
    tailnet_region region;
    char           v4[64], v6[64], mapped[64];
    size_t         i;
    tailnet_posix_addr_text(v4, sizeof v4, &r->global4);
    tailnet_posix_addr_text(v6, sizeof v6, &r->global6);
    tailnet_posix_addr_text(mapped, sizeof mapped, &r->mapped);
    printf("Report:\n  * UDP: %s\n", yes_no(r->udp));
    printf("  * IPv4: %s%s%s\n", yes_no(r->ip4), v4[0] != '\0' ? ", " : "", v4);
    printf("  * IPv6: %s%s%s\n", yes_no(r->ip6), v6[0] != '\0' ? ", " : "", v6);
    printf("  * Mapping varies by destination: %s\n", varies_word(r->varies));
    printf("  * Port mapping:%s%s%s%s%s%s\n", (r->port_map & 1u) != 0 ? " NAT-PMP" : "",
           (r->port_map & 2u) != 0 ? " PCP" : "", (r->port_map & 4u) != 0 ? " UPnP" : "",
           r->port_map == 0 ? " none" : "", mapped[0] != '\0' ? ", " : "", mapped);
    if (r->home == 0) puts("  * Nearest relay: unknown");
    else printf("  * Nearest relay: region %u\n", (unsigned)r->home);
    puts("  * Relay latency:");
    for (i = 0; tailnet_get_region(app.posix.node, i, &region); i++) put_region(&region);
    fflush(stdout);
}

/* True when there was something to say. */
static bool say_report(void)
{
    tailnet_report report;
    if (!tailnet_get_report(app.posix.node, &report)) return false;
    if (app.wish.json) json_report(&report);
    else text_report(&report);
    return true;
}

static void say_problem(bool fatal)
{
    tailnet_problem pr;
    const char     *sentence;
    if (!tailnet_get_problem(app.posix.node, &pr)) return;
    sentence = problem_sentence(&pr);
    if (app.wish.json) {
        json_begin("problem");
        json_text("text", sentence);
        json_text("result", tailnet_result_text(pr.result));
        printf(",\"code\":%d,\"detail\":%ld", (int)pr.result, (long)pr.detail);
        json_text("section", pr.section);
        json_text("server", pr.text);
        json_bool("fatal", fatal);
        json_end();
    }
    if (app.wish.json && !fatal) return;
    fprintf(stderr, "tailnetd: %s (%s %ld%s%.*s).\n", sentence, pr.section, (long)pr.detail,
            pr.text[0] != '\0' ? ", server: " : "", (int)strcspn(pr.text, "\r\n\033"), pr.text);
}

static void say_save(void)
{
    if (app.wish.state == NULL) return;
    if (app.wish.json) {
        json_begin("save");
        json_bool("ok", app.posix.save_errno == 0);
        if (app.posix.save_errno != 0) json_text("text", strerror(app.posix.save_errno));
        json_end();
    } else if (app.posix.save_errno != 0) {
        fprintf(stderr, "tailnetd: Cannot write the state file: %s; we go on trying.\n",
                strerror(app.posix.save_errno));
    }
}

static void say_ping(const char *who, const tailnet_pong *pong)
{
    char ip[64];
    tailnet_posix_addr_text(ip, sizeof ip, &pong->ip);
    if (!app.wish.json) {
        printf("ping %s %s: %s", who, ip, tailnet_result_text(pong->result));
        if (pong->result == TAILNET_OK)
            printf(", %lu ms, %s", (unsigned long)pong->latency_ms, path_name(pong->path));
        puts("");
        fflush(stdout);
        return;
    }
    json_begin("ping");
    json_bool("ok", pong->result == TAILNET_OK);
    json_text("ip", ip);
    json_text("kind", pong->kind == TAILNET_PING_PATH ? "path" : "tunnel");
    json_text("result", tailnet_result_text(pong->result));
    json_text("path", path_name(pong->path));
    json_addr("endpoint", &pong->endpoint);
    json_number("region", pong->region);
    json_number("latency_ms", pong->latency_ms);
    json_end();
}

static void say_stats(void)
{
    tailnet_stats s;
    memset(&s, 0, sizeof s);
    tailnet_get_stats(app.posix.node, &s);
    if (!app.wish.json) return;
    json_begin("stats");
    json_number("ip_in", s.ip_in);
    json_number("ip_out", s.ip_out);
    json_number("udp_in", s.udp_in);
    json_number("udp_out", s.udp_out);
    json_number("relay_in", s.relay_in);
    json_number("relay_out", s.relay_out);
    json_number("dropped_no_room", s.dropped_no_room);
    json_number("dropped_no_route", s.dropped_no_route);
    json_number("dropped_denied", s.dropped_denied);
    json_number("dropped_forged", s.dropped_forged);
    json_number("handshakes", s.handshakes);
    json_number("links_opened", s.links_opened);
    json_number("maps_read", s.maps_read);
    json_number("memory_used", s.memory_used);
    json_number("memory_free", s.memory_free);
    json_number("waited", app.posix.held);
    json_number("lost_waiting", app.posix.dropped);
    json_number("lookups", app.posix.lookups);
    json_number("saves", app.posix.saves);
#ifdef COUNT_HEAP
    json_number("heap_calls", heap_calls);
#endif
    json_end();
}

/* ---- What we do -------------------------------------------------------------------------- */

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

/* The address of a peer, by name or address; NO_ROUTE, or AGAIN while it is looked for. */
static tailnet_result find(const char *who, tailnet_addr *ip)
{
    tailnet_peer peer;
    size_t       index;
    if (tailnet_posix_addr_parse(ip, who)) return TAILNET_OK;
    if (!tailnet_find_peer(app.posix.node, who, &index))
        return tailnet_fetch_peer(app.posix.node, who) == TAILNET_ERR_AGAIN ? TAILNET_ERR_AGAIN
                                                                            : TAILNET_ERR_NO_ROUTE;
    if (!tailnet_get_peer(app.posix.node, index, &peer)) return TAILNET_ERR_NO_ROUTE;
    *ip = peer.ip4.family != 0 ? peer.ip4 : peer.ip6;
    return TAILNET_OK;
}

static tailnet_result ping(const char *who, tailnet_ping_kind kind)
{
    tailnet_pong   none;
    tailnet_result result;
    memset(&none, 0, sizeof none);
    none.kind   = kind;
    none.result = result = find(who, &none.ip);
    if (result == TAILNET_OK) none.result = result = tailnet_ping(app.posix.node, &none.ip, kind);
    if (result != TAILNET_OK && result != TAILNET_ERR_AGAIN) say_ping(who, &none);
    return result;
}

static void ask_udp(const char *who, unsigned port, const char *text)
{
    tailnet_addr   to;
    tailnet_result result = find(who, &to);
    to.port      = (uint16_t)port;
    app.asked_us = now_us();
    if (result == TAILNET_OK)
        result = tailnet_posix_udp_send(&app.posix, ASK_PORT, &to, text, strlen(text));
    if (!app.wish.json) return;
    json_begin("udp-sent");
    json_bool("ok", result == TAILNET_OK);
    json_text("result", tailnet_result_text(result));
    json_end();
}

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    uint64_t took = now_us() - app.asked_us;
    char     text[256];
    size_t   len = size < sizeof text - 1 ? size : sizeof text - 1;
    (void)user;
    if (port == ECHO_PORT) (void)tailnet_posix_udp_send(p, ECHO_PORT, from, data, size);
    if (port != ASK_PORT) return;
    memcpy(text, data, len);
    text[len] = '\0';
    if (app.wish.json) {
        json_begin("udp");
        json_addr("from", from);
        json_text("text", text);
        json_number("us", took);
        json_end();
    } else {
        printf("udp answer of %lu bytes in %lu us\n", (unsigned long)size, (unsigned long)took);
        fflush(stdout);
    }
}

/* ---- SOCKS5 (--socks5): lwIP between its clients and the node ----------------------------- */

#ifdef TAILNETD_LWIP
static void on_ip(void *user, tailnet_posix *p, const void *packet, size_t size)
{
    (void)user, (void)p;
    (void)tailnet_lwip_overlay_input(&app.overlay, packet, size);
}

static tailnet_result send_ip(void *user, const void *packet, size_t size)
{
    (void)user;
    return tailnet_posix_ip_send(&app.posix, packet, size);
}

/* UDP for the node itself: it comes through lwIP then. */
static void on_lwip_udp(void *user, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *from,
                        u16_t port)
{
    tailnet_addr at;
    char         text[64];
    uint8_t      data[1500];
    if (tailnet_posix_addr_parse(&at, ipaddr_ntoa_r(from, text, sizeof text)) &&
        p->tot_len <= sizeof data) {
        at.port = port;
        pbuf_copy_partial(p, data, p->tot_len, 0);
        on_udp(user, &app.posix, &at, pcb->local_port, data, p->tot_len);
    }
    pbuf_free(p);
}

static bool lwip_udp(uint16_t port)
{
    struct udp_pcb *pcb = udp_new_ip_type(IPADDR_TYPE_ANY);
    if (pcb == NULL || udp_bind(pcb, IP_ANY_TYPE, port) != ERR_OK) return false;
    udp_recv(pcb, on_lwip_udp, NULL);
    return true;
}

/* The file of --socks5-login: USER:PASSWORD in its first line. */
static bool read_login(const char *path, socks5_login *login)
{
    char   text[520], *colon;
    size_t len;
    bool   good;
    int    number = tailnet_posix_read_file(path, text, sizeof text - 1, &len);
    if (number != 0) {
        fprintf(stderr, "tailnetd: Cannot read %s: %s.\n", path, strerror(number));
        return false;
    }
    text[len]                   = '\0';
    text[strcspn(text, "\r\n")] = '\0';
    colon = strchr(text, ':');
    good  = colon != NULL && colon != text && colon - text < 256 && strlen(colon + 1) < 256 &&
           colon[1] != '\0';
    if (good) {
        memcpy(login->user, text, (size_t)(colon - text));
        memcpy(login->password, colon + 1, strlen(colon + 1));
    } else {
        fprintf(stderr, "tailnetd: The first line of %s has to be USER:PASSWORD.\n", path);
    }
    explicit_bzero(text, sizeof text);
    return good;
}

/* False: said on stderr. */
static bool open_socks5(void)
{
    tailnet_lwip_overlay_options options;
    const char                  *why;
    if (app.wish.socks5 == NULL) return true;
    memset(&options, 0, sizeof options);
    options.send          = send_ip;
    app.socks5.want_login = app.wish.socks5_login != NULL;
    if (app.socks5.want_login && !read_login(app.wish.socks5_login, &app.socks5.login))
        return false;
    lwip_init();
    if (tailnet_lwip_overlay_open(&app.overlay, app.posix.node, &options) != TAILNET_OK ||
        !lwip_udp(ECHO_PORT) || !lwip_udp(ASK_PORT)) {
        fprintf(stderr, "tailnetd: lwIP does not begin.\n");
        return false;
    }
    if (socks5_open(&app.socks5, app.posix.node, &app.overlay, app.wish.socks5, &why)) return true;
    fprintf(stderr, "tailnetd: Cannot listen at %s: %s.\n", app.wish.socks5, why);
    return false;
}

static void close_socks5(void)
{
    if (app.wish.socks5 == NULL) return;
    socks5_close(&app.socks5);
    tailnet_lwip_overlay_close(&app.overlay);
}

static void socks5_news(uint32_t events)
{
    if (app.wish.socks5 != NULL) tailnet_lwip_overlay_news(&app.overlay, events);
}

static size_t socks5_wait(struct pollfd *fds, int *wait)
{
    uint32_t ms;
    if (app.wish.socks5 == NULL) return 0;
    ms    = tailnet_lwip_overlay_wait_ms(&app.overlay, (uint32_t)*wait);
    *wait = (int)socks5_wait_ms(&app.socks5, ms);
    return socks5_fds(&app.socks5, fds);
}

/* After the node's turn; fds are NULL when none is ready. */
static void socks5_handle(const struct pollfd *fds)
{
    if (app.wish.socks5 == NULL) return;
    sys_check_timeouts();
    tailnet_lwip_overlay_turn(&app.overlay);
    socks5_turn(&app.socks5, fds);
}
#else
static bool open_socks5(void)
{
    if (app.wish.socks5 == NULL) return true;
    fprintf(stderr, "tailnetd: This build has no lwIP, --socks5 needs one with TAILNETD_LWIP.\n");
    return false;
}

static void   close_socks5(void) {}
static void   socks5_news(uint32_t events) { (void)events; }
static size_t socks5_wait(struct pollfd *fds, int *wait) { return (void)fds, (void)wait, 0; }
static void   socks5_handle(const struct pollfd *fds) { (void)fds; }
#endif

static void on_log(void *user, int level, uint32_t code, const char *text)
{
    (void)user;
    if (app.wish.verbose)
        fprintf(stderr, "%d %lu %s\n", level, (unsigned long)code, text != NULL ? text : "");
}

/* The auth key without the white space around it. False: said on stderr. */
static bool read_key(void)
{
    size_t len, skip;
    int    number = tailnet_posix_read_file(app.wish.key_file, app.auth_key,
                                            sizeof app.auth_key - 1, &len);
    if (number != 0) {
        fprintf(stderr, "tailnetd: Cannot read the auth key file %s: %s.\n", app.wish.key_file,
                strerror(number));
        return false;
    }
    while (len > 0 && strchr(" \t\r\n", app.auth_key[len - 1]) != NULL) len--;
    app.auth_key[len] = '\0';
    skip = strspn(app.auth_key, " \t\r\n");
    memmove(app.auth_key, app.auth_key + skip, len - skip + 1);
    if (app.auth_key[0] != '\0') return true;
    fprintf(stderr, "tailnetd: The auth key file %s is empty.\n", app.wish.key_file);
    return false;
}

/* Our key has expired: the auth key was wiped when it had done its work, but its
 * file may still be there, and good for another login. */
static void renew(tailnet_posix *p)
{
    if (!app.was_running || app.wish.key_file == NULL || app.wish.logout) return;
    app.was_running = false;
    if (read_key()) tailnet_login(p->node, app.auth_key);
}

static void on_news(void *user, tailnet_posix *p, uint32_t events)
{
    tailnet_pong pong;
    (void)user;
    socks5_news(events);
    if (app.wish.netcheck) {                /* the report is all that is wanted */
        if ((events & TAILNET_EVENT_LOGIN) != 0) say_login();
        if ((events & TAILNET_EVENT_PROBLEM) != 0) say_problem(false);
        return;
    }
    if ((events & (TAILNET_EVENT_STATE | TAILNET_EVENT_SELF)) != 0) say_state();
    if (tailnet_get_state(p->node) == TAILNET_STATE_RUNNING && !app.was_running) {
        app.was_running = true;
        explicit_bzero(app.auth_key, sizeof app.auth_key);   /* it has done its work */
    }
    if (tailnet_get_state(p->node) == TAILNET_STATE_NEEDS_LOGIN) renew(p);
    if ((events & TAILNET_EVENT_LOGIN) != 0) say_login();
    if ((events & TAILNET_EVENT_PEERS) != 0) {
        say_peers("peers");
        forget_ways();
    }
    if ((events & TAILNET_EVENT_PATHS) != 0) {
        if (app.wish.json) say_peers("paths");
        say_ways();
    }
    if ((events & TAILNET_EVENT_PROBLEM) != 0) say_problem(false);
    if ((events & TAILNET_EVENT_SAVE) != 0) say_save();
    if ((events & TAILNET_EVENT_PING) != 0 && tailnet_get_ping(p->node, &pong))
        say_ping("", &pong);
    if (app.ping_wanted && app.was_running)
        app.ping_wanted = ping(app.wish.ping, TAILNET_PING_TUNNEL) == TAILNET_ERR_AGAIN;
}

static void on_signal(int number)
{
    (void)number;
    app.stop = 1;
    tailnet_posix_stop(&app.posix);
}

static void on_network(int number)
{
    (void)number;
    tailnet_posix_network_changed(&app.posix);
}

/* ---- Commands on stdin (--control-stdin) ------------------------------------------------ */

static void do_command(char *line)
{
    char       *words[4] = {NULL, NULL, NULL, NULL};
    size_t      count    = 0;
    const char *word;
    /* Three words and the rest of the line. */
    while (count < 4 && *line != '\0') {
        while (*line == ' ') line++;
        if (*line == '\0') break;
        words[count++] = line;
        while (count < 4 && *line != '\0' && *line != ' ') line++;
        if (count < 4 && *line != '\0') *line++ = '\0';
    }
    if (count == 0) return;
    word = words[0];
    if (strcmp(word, "ping") == 0 && count >= 2) (void)ping(words[1], TAILNET_PING_TUNNEL);
    else if (strcmp(word, "ping-path") == 0 && count >= 2) (void)ping(words[1], TAILNET_PING_PATH);
    else if (strcmp(word, "udp") == 0 && count == 4)
        ask_udp(words[1], (unsigned)strtoul(words[2], NULL, 10), words[3]);
    else if (strcmp(word, "peers") == 0) say_peers("peers");
    else if (strcmp(word, "paths") == 0) say_peers("paths");
    else if (strcmp(word, "state") == 0) say_state();
    else if (strcmp(word, "stats") == 0) say_stats();
    else if (strcmp(word, "netcheck") == 0) (void)say_report();
    else if (strcmp(word, "down") == 0) (void)tailnet_down(app.posix.node);
    else if (strcmp(word, "up") == 0) (void)tailnet_up(app.posix.node);
    else if (strcmp(word, "login") == 0) (void)tailnet_login(app.posix.node, NULL);
    else if (strcmp(word, "logout") == 0) (void)tailnet_logout(app.posix.node);
    else if (strcmp(word, "quit") == 0) app.stop = 1;
    else fprintf(stderr, "tailnetd: no such command: %.40s\n", word);
}

static void read_commands(void)
{
    ssize_t n = read(0, app.command + app.command_len, sizeof app.command - app.command_len);
    char   *end;
    if (n <= 0) {
        app.input_open = n < 0 && (errno == EAGAIN || errno == EINTR);
        return;
    }
    app.command_len += (size_t)n;
    while ((end = (char *)memchr(app.command, '\n', app.command_len)) != NULL) {
        size_t used = (size_t)(end - app.command) + 1;
        *end = '\0';
        do_command(app.command);
        app.command_len -= used;
        memmove(app.command, app.command + used, app.command_len);
    }
    if (app.command_len == sizeof app.command) app.command_len = 0;     /* no line is so long */
}

/* ---- The command line ---------------------------------------------------------------------- */

static const char usage[] =
    "usage: tailnetd [options]\n"
    "  --control URL           the control server (default: the hosted service)\n"
    "  --authkey-file F        a file with an auth key; without it a login URL is shown\n"
    "  --hostname H            our name (default: this machine's)\n"
    "  --state F               where keys are kept from one start to the next\n"
    "  --ca F                  trust the certificates in this PEM file instead of the system's\n"
    "  --tun NAME              make this network device (needs root); without it we only answer\n"
    "                          pings and UDP echo (port 7)\n"
    "  --relay-only            never use UDP\n"
    "  --metered               spend few bytes while nobody talks to us\n"
    "  --port N                UDP port (default: any)\n"
    "  --uplink DEVICE         look for peers through this device too, not only where the routes\n"
    "                          of the system lead\n"
    "  --no-portmap            do not ask the router to map a port to us\n"
    "  --proxy [USER:PW@]HOST:PORT\n"
    "                          all TCP through this HTTP proxy (CONNECT)\n"
    "  --links N               TCP connections at a time, 2 to 8 (default: 6)\n"
    "  --ephemeral             be forgotten by the server when we go\n"
    "  --tags a,b              ask for these tags\n"
    "  --advertise-routes a,b  offer to carry these prefixes\n"
    "  --accept-routes         use the prefixes that peers offer\n"
    "  --socks5 [ADDR:]PORT    programs of this machine reach the tailnet through this SOCKS5\n"
    "                          proxy (default ADDR: 127.0.0.1); no root\n"
    "  --socks5-login F        and have to give the USER:PASSWORD that is in this file\n"
    "  --dns                   answer DNS at 100.100.100.100 for the names of the tailnet\n"
    "  --shields-up            let nobody begin to talk to us\n"
    "  --control-key mkey:..   the only key that the control server may have\n"
    "  --logout                log out and end\n"
    "  --ping WHO              ping this peer once we run\n"
    "  --netcheck              say what the network looks like from here, and end\n"
    "  --small                 the memory limits of a microcontroller\n"
    "  --replace-state         begin anew when the state file is damaged\n"
    "  --control-stdin         take commands from stdin: ping WHO, ping-path WHO, udp WHO PORT\n"
    "                          TEXT, peers, paths, state, stats, netcheck, up, down, login,\n"
    "                          logout, quit\n"
    "  --json                  say every change as one JSON object per line\n"
    "  -v                      log to stderr\n"
    "SIGTERM and SIGINT end it, SIGUSR1 says that the network is another one.\n";

/* Where the value of an option with one goes; NULL: it has none. */
static const char **text_option(struct wishes *w, const char *name)
{
    if (strcmp(name, "--control") == 0) return &w->control;
    if (strcmp(name, "--authkey-file") == 0) return &w->key_file;
    if (strcmp(name, "--hostname") == 0) return &w->host;
    if (strcmp(name, "--state") == 0) return &w->state;
    if (strcmp(name, "--ca") == 0) return &w->ca;
    if (strcmp(name, "--tun") == 0) return &w->tun;
    if (strcmp(name, "--control-key") == 0) return &w->control_key;
    if (strcmp(name, "--ping") == 0) return &w->ping;
    if (strcmp(name, "--proxy") == 0) return &w->proxy;
    if (strcmp(name, "--uplink") == 0) return &w->uplink;
    if (strcmp(name, "--socks5") == 0) return &w->socks5;
    if (strcmp(name, "--socks5-login") == 0) return &w->socks5_login;
    return NULL;
}

static bool *flag_option(struct wishes *w, const char *name)
{
    if (strcmp(name, "--relay-only") == 0) return &w->relay_only;
    if (strcmp(name, "--metered") == 0) return &w->metered;
    if (strcmp(name, "--no-portmap") == 0) return &w->no_port_map;
    if (strcmp(name, "--netcheck") == 0) return &w->netcheck;
    if (strcmp(name, "--dns") == 0) return &w->dns;
    if (strcmp(name, "--ephemeral") == 0) return &w->ephemeral;
    if (strcmp(name, "--json") == 0) return &w->json;
    if (strcmp(name, "-v") == 0) return &w->verbose;
    if (strcmp(name, "--logout") == 0) return &w->logout;
    if (strcmp(name, "--shields-up") == 0) return &w->shields_up;
    if (strcmp(name, "--accept-routes") == 0) return &w->accept_routes;
    if (strcmp(name, "--control-stdin") == 0) return &w->from_stdin;
    if (strcmp(name, "--small") == 0) return &w->small;
    if (strcmp(name, "--replace-state") == 0) return &w->replace_state;
    return NULL;
}

/* Cuts "a,b,c" in place; false when there are too many or one cannot be read. */
static bool take_list(struct wishes *w, char *list, bool tags)
{
    char *next;
    for (; list != NULL && *list != '\0'; list = next) {
        next = strchr(list, ',');
        if (next != NULL) *next++ = '\0';
        if (tags) {
            if (w->tag_count == LIST || strncmp(list, "tag:", 4) != 0) return false;
            w->tags[w->tag_count++] = list;
        } else {
            if (w->route_count == LIST) return false;
            if (!tailnet_posix_prefix_parse(&w->routes[w->route_count++], list)) return false;
        }
    }
    return true;
}

/* An option with a value that is no plain text. */
static bool take_value(struct wishes *w, const char *name, char *value)
{
    char         *end;
    unsigned long number;
    if (strcmp(name, "--tags") == 0) return take_list(w, value, true);
    if (strcmp(name, "--advertise-routes") == 0) return take_list(w, value, false);
    number = strtoul(value, &end, 10);
    if (*value < '0' || *value > '9' || *end != '\0' || number > 65535) return false;
    if (strcmp(name, "--port") == 0) {
        w->port = (uint16_t)number;
        return true;
    }
    w->links = (uint16_t)number;
    return strcmp(name, "--links") == 0 && number >= 2 && number <= TAILNET_POSIX_LINKS;
}

/* False: not understood; said on stderr. */
static bool read_arguments(struct wishes *w, int argc, char **argv)
{
    int i;
    for (i = 1; i < argc; i++) {
        bool        *flag = flag_option(w, argv[i]);
        const char **text = text_option(w, argv[i]);
        if (flag != NULL) {
            *flag = true;
        } else if (text != NULL && i + 1 < argc) {
            *text = argv[++i];
        } else if (i + 1 < argc && take_value(w, argv[i], argv[i + 1])) {
            i++;
        } else {
            fprintf(stderr, "tailnetd: cannot understand %s\n%s", argv[i], usage);
            return false;
        }
    }
    if (w->state == NULL && w->logout)
        fprintf(stderr, "tailnetd: --logout needs --state, it holds who we are\n");
    if (w->tun != NULL && w->socks5 != NULL)
        fprintf(stderr, "tailnetd: with --tun every program is in the tailnet: leave --socks5\n");
    return (w->state != NULL || !w->logout) && (w->tun == NULL || w->socks5 == NULL);
}

/* ---- Life ------------------------------------------------------------------------------------ */

/* A host has room for more than a microcontroller. */
static void set_limits(tailnet_desc *desc)
{
    desc->max_links = desc->max_tls = (uint8_t)app.wish.links;
    if (app.wish.small) return;
    desc->max_peers    = PEERS;
    desc->max_sessions = 64;
    desc->max_routes   = 128;
    desc->max_ranges   = 512;
    desc->max_flows    = 1024;
    desc->max_regions  = 64;
    desc->max_staged   = 64;
    if (app.wish.links == 0) desc->max_links = desc->max_tls = 6;
}

static tailnet_result open_node(void)
{
    const struct wishes  *w = &app.wish;
    tailnet_posix_options options;
    tailnet_desc          desc;
    memset(&options, 0, sizeof options);
    memset(&desc, 0, sizeof desc);
    set_limits(&desc);
    if (w->host == NULL && gethostname(app.name, sizeof app.name - 1) == 0)
        app.name[strcspn(app.name, ".")] = '\0';
    desc.prefs.hostname      = w->host != NULL ? w->host : app.name;
    desc.prefs.routes        = w->routes;
    desc.prefs.route_count   = w->route_count;
    desc.prefs.relay_only    = w->relay_only;
    desc.prefs.shields_up    = w->shields_up;
    desc.prefs.accept_routes = w->accept_routes;
    desc.prefs.metered       = w->metered;
    desc.prefs.answer_dns    = w->dns;
    desc.prefs.no_port_map   = w->no_port_map;
    desc.proxy               = w->proxy;
    desc.control_url         = w->control;
    desc.control_key         = w->control_key;
    desc.auth_key            = app.auth_key[0] != '\0' ? app.auth_key : NULL;
    desc.tags                = w->tags;
    desc.tag_count           = w->tag_count;
    desc.ephemeral           = w->ephemeral;
    desc.os                  = "linux";
    options.ca_file               = w->ca;
    options.state_file            = w->state;
    options.tun                   = w->tun;
    options.udp_port              = w->port;
    options.uplink[0]             = w->uplink;
    options.replace_damaged_state = w->replace_state;
    options.on_news               = on_news;
    options.on_udp                = on_udp;
    options.log                   = on_log;
#ifdef TAILNETD_LWIP
    if (w->socks5 != NULL) {
        options.on_udp  = NULL;
        options.on_ip   = on_ip;
        options.no_echo = true;
    }
#endif
    return tailnet_posix_open(&app.posix, &desc, &options);
}

/* One turn with stdin and SOCKS5 beside the node's own descriptors. */
static void turn(void)
{
    static struct pollfd fds[TAILNET_POSIX_FDS + 1 + SOCKS5_FDS];
    size_t n    = tailnet_posix_fds(&app.posix, fds, TAILNET_POSIX_FDS), all = n;
    int    wait = (int)tailnet_posix_wait_ms(&app.posix, app.wish.netcheck ? 100 : 60000);
    all += socks5_wait(fds + n, &wait);
    if (app.input_open) {
        fds[all].fd      = 0;
        fds[all].events  = POLLIN;
        fds[all].revents = 0;
        all++;
    }
    if (poll(fds, (nfds_t)all, wait) <= 0) {
        tailnet_posix_handle(&app.posix, NULL, 0);
        socks5_handle(NULL);
        return;
    }
    if (app.input_open && fds[all - 1].revents != 0) read_commands();
    tailnet_posix_handle(&app.posix, fds, n);
    socks5_handle(fds + n);
}

/* --netcheck: true when there is no more to wait for. A first report may come before the
 * slower answers, so it gets two seconds more. */
static bool netcheck_done(void)
{
    tailnet_report report;
    uint64_t       now = now_us();
    if (tailnet_get_state(app.posix.node) != TAILNET_STATE_RUNNING) return false;
    if (app.netcheck_until_us == 0) app.netcheck_until_us = now + 15000000u;
    if (app.netcheck_until_us > now + 2000000u && tailnet_get_report(app.posix.node, &report))
        app.netcheck_until_us = now + 2000000u;
    if (now < app.netcheck_until_us) return false;
    if (!say_report()) fprintf(stderr, "tailnetd: There is no report yet: no relay answers.\n");
    return true;
}

/* Turns until asked to stop or until the node cannot go on; the exit code. */
static int serve(void)
{
    while (!app.stop) {
        tailnet_state state = tailnet_get_state(app.posix.node);
        if (state == TAILNET_STATE_FAILED) {
            say_problem(true);
            return 2;
        }
        if (app.wish.logout && (state == TAILNET_STATE_RUNNING ||
                                state == TAILNET_STATE_NEEDS_LOGIN)) {
            /* Who has to log in first is logged out already. */
            if (state == TAILNET_STATE_NEEDS_LOGIN) return 0;
            if (tailnet_posix_leave(&app.posix, true, 15000) == TAILNET_OK) return 0;
            fprintf(stderr, "tailnetd: The control server did not answer our logout: try again.\n");
            return 2;
        }
        if (app.wish.netcheck && netcheck_done()) return 0;
        turn();
    }
    return 0;
}

/* SIGTERM leaves cleanly: an ephemeral node says that it is gone for good. */
static void leave(void)
{
    tailnet_state state = tailnet_get_state(app.posix.node);
    bool          gone  = app.wish.ephemeral && state == TAILNET_STATE_RUNNING;
    if (state == TAILNET_STATE_DOWN || state == TAILNET_STATE_FAILED) return;
    if (tailnet_posix_leave(&app.posix, gone, 3000) != TAILNET_OK && gone)
        (void)tailnet_posix_leave(&app.posix, false, 1000);
}

int main(int argc, char **argv)
{
    struct sigaction act;
    int              code;
    setvbuf(stdout, app.output, _IOLBF, sizeof app.output);
    if (argc == 2 && strcmp(argv[1], "--help") == 0) return fputs(usage, stdout) < 0;
    if (!read_arguments(&app.wish, argc, argv)) return 1;
    /* Logging out needs no key, and must not use one up. */
    if (app.wish.key_file != NULL && !app.wish.logout && !read_key()) return 2;
    if (open_node() != TAILNET_OK) {
        if (app.wish.json) {
            json_begin("problem");
            json_text("text", app.posix.error);
            json_bool("fatal", true);
            json_end();
        }
        fprintf(stderr, "tailnetd: %s\n", app.posix.error);
        return 2;
    }
    if (!open_socks5()) {
        close_socks5();
        tailnet_posix_close(&app.posix);
        return 2;
    }
    memset(&act, 0, sizeof act);
    act.sa_handler = on_signal;
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    act.sa_handler = on_network;
    sigaction(SIGUSR1, &act, NULL);
    act.sa_handler = SIG_IGN;               /* a reader of stdout that goes is no reason to */
    sigaction(SIGPIPE, &act, NULL);
    app.input_open  = app.wish.from_stdin;
    app.ping_wanted = app.wish.ping != NULL;
    heap_watch(app.wish.socks5 == NULL);    /* lwIP's memory comes from there */
    if (!app.wish.netcheck) say_state();
    (void)tailnet_up(app.posix.node);
    code = serve();
    leave();
    heap_watch(false);
    if (!app.wish.netcheck) say_stats();
    close_socks5();
    tailnet_posix_close(&app.posix);
    explicit_bzero(app.auth_key, sizeof app.auth_key);
    return code;
}
