/* loop.h - a tailnet node in this program, with lwIP on top of it: no root, no device, one
 * thread. What the examples here have in common.
 *
 *     loop_open(&l, "name")                joins, as the environment says (see loop_usage)
 *     while (!l.stop) loop_turn(&l, NULL, 0, 60000);
 *     loop_close(&l);
 *
 * In between l.overlay is lwIP's interface, l.posix.node the node. Defines the
 * implementations of tailnet.h and both platform headers. */
#ifndef LOOP_H
#define LOOP_H

#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#define TAILNET_PLATFORM_LWIP_IMPLEMENTATION
#include "tailnet_platform_posix.h"
#include "tailnet_platform_lwip.h"

#include "lwip/init.h"
#include "lwip/timeouts.h"

#define loop_usage                                                              \
    "environment:\n"                                                            \
    "  TAILNET_CONTROL    the control server (default: the hosted service)\n"   \
    "  TAILNET_AUTHKEY    an auth key; without it a login URL is shown\n"       \
    "  TAILNET_HOSTNAME   our name\n"                                           \
    "  TAILNET_STATE      where keys are kept; without it we are forgotten at the end\n" \
    "  TAILNET_CA         a PEM file of CAs to trust instead of the system's\n" \
    "  TAILNET_RELAY_ONLY 1: never use UDP\n"                                   \
    "  TAILNET_PORT       UDP port (default: any); who keeps it is found again at once\n" \
    "  TAILNET_VERBOSE    1: log to stderr\n"

/* The most descriptors that loop_turn waits for beside the node's. */
enum { LOOP_MORE = 8 };

typedef struct loop {
    tailnet_posix         posix;
    tailnet_lwip_overlay  overlay;
    bool                  quiet;    /* says nothing but problems */
    volatile sig_atomic_t stop;
    /* For the program: every event of the node, after the loop's own work. */
    void (*on_news)(struct loop *l, uint32_t events);
} loop;

static loop *loop_own;              /* for signals */

/* The node's clock. */
static inline uint64_t loop_now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

static const char *loop_setting(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* Text from outside, without what a terminal would obey. */
static void loop_say(const char *what, const char *text)
{
    fputs(what, stderr);
    for (; *text != '\0'; text++) {
        bool plain = (unsigned char)*text >= 32 && *text != 127;
        fputc(plain ? *text : '?', stderr);
    }
    fputc('\n', stderr);
}

static void loop_on_ip(void *user, tailnet_posix *p, const void *packet, size_t size)
{
    loop *l = (loop *)user;
    (void)p;
    (void)tailnet_lwip_overlay_input(&l->overlay, packet, size);
}

static tailnet_result loop_send(void *user, const void *packet, size_t size)
{
    loop *l = (loop *)user;
    return tailnet_posix_ip_send(&l->posix, packet, size);
}

static void loop_on_log(void *user, int level, uint32_t code, const char *text)
{
    (void)user;
    fprintf(stderr, "%d %lu ", level, (unsigned long)code);
    loop_say("", text != NULL ? text : "");
}

static void loop_on_news(void *user, tailnet_posix *p, uint32_t events)
{
    loop           *l   = (loop *)user;
    const char     *url = tailnet_login_url(p->node);
    tailnet_problem trouble;
    tailnet_self    self;
    char            ip[64];
    tailnet_lwip_overlay_news(&l->overlay, events);
    if ((events & TAILNET_EVENT_LOGIN) != 0 && url != NULL && url[0] != '\0')
        loop_say("to log in, open ", url);
    if ((events & TAILNET_EVENT_SELF) != 0 && !l->quiet && tailnet_get_self(p->node, &self)) {
        tailnet_posix_addr_text(ip, sizeof ip, &self.ip4);
        fprintf(stderr, "%s ", ip);
        loop_say("", self.name);
    }
    if ((events & TAILNET_EVENT_PROBLEM) != 0 && tailnet_get_problem(p->node, &trouble)) {
        fprintf(stderr, "problem: %s (%s %d)", tailnet_result_text(trouble.result),
                trouble.section, (int)trouble.detail);
        loop_say(" ", trouble.text);
    }
    if (l->on_news != NULL) l->on_news(l, events);
}

static void loop_on_signal(int number)
{
    (void)number;
    loop_own->stop = 1;
    tailnet_posix_stop(&loop_own->posix);
}

static void loop_signals(loop *l)
{
    struct sigaction act;
    loop_own = l;
    memset(&act, 0, sizeof act);
    act.sa_handler = loop_on_signal;
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGINT, &act, NULL);
    act.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &act, NULL);
}

/* False: said on stderr. on_news and quiet may be set before. */
static bool loop_open(loop *l, const char *hostname)
{
    tailnet_posix_options        options;
    tailnet_lwip_overlay_options overlay;
    tailnet_desc                 desc;
    memset(&options, 0, sizeof options);
    memset(&overlay, 0, sizeof overlay);
    memset(&desc, 0, sizeof desc);
    desc.control_url      = loop_setting("TAILNET_CONTROL");
    desc.auth_key         = loop_setting("TAILNET_AUTHKEY");
    desc.prefs.hostname   = loop_setting("TAILNET_HOSTNAME");
    desc.prefs.relay_only = loop_setting("TAILNET_RELAY_ONLY") != NULL;
    desc.prefs.accept_routes = true;
    desc.os               = "linux";
    desc.max_peers        = 256;
    desc.max_sessions     = 64;
    desc.max_flows        = 2048;
    desc.max_routes       = 64;
    desc.max_ranges       = 256;
    desc.max_links        = desc.max_tls = 4;
    if (desc.prefs.hostname == NULL) desc.prefs.hostname = hostname;
    if (loop_setting("TAILNET_PORT") != NULL)
        options.udp_port = (uint16_t)strtoul(loop_setting("TAILNET_PORT"), NULL, 10);
    options.user       = l;
    options.ca_file    = loop_setting("TAILNET_CA");
    options.state_file = loop_setting("TAILNET_STATE");
    options.no_echo    = true;
    options.on_ip      = loop_on_ip;
    options.on_news    = loop_on_news;
    if (loop_setting("TAILNET_VERBOSE") != NULL) options.log = loop_on_log;
    desc.ephemeral = options.state_file == NULL;
    overlay.user   = l;
    overlay.send   = loop_send;
    lwip_init();
    if (tailnet_posix_open(&l->posix, &desc, &options) != TAILNET_OK) {
        loop_say("", l->posix.error);
        return false;
    }
    loop_signals(l);
    if (tailnet_lwip_overlay_open(&l->overlay, l->posix.node, &overlay) == TAILNET_OK &&
        tailnet_up(l->posix.node) == TAILNET_OK)
        return true;
    tailnet_posix_close(&l->posix);
    return false;
}

/* One turn; waits for the node, for lwIP, for count descriptors of the program (at most
 * LOOP_MORE), and not longer than max_ms. False: the node cannot go on. */
static bool loop_turn(loop *l, struct pollfd *more, size_t count, uint32_t max_ms)
{
    struct pollfd fds[TAILNET_POSIX_FDS + LOOP_MORE];
    size_t        n = tailnet_posix_fds(&l->posix, fds, TAILNET_POSIX_FDS), i;
    uint32_t      wait = tailnet_posix_wait_ms(&l->posix, max_ms);
    wait = tailnet_lwip_overlay_wait_ms(&l->overlay, wait);
    for (i = 0; i < count; i++) {
        more[i].revents = 0;
        fds[n + i]      = more[i];
    }
    if (poll(fds, (nfds_t)(n + count), (int)wait) <= 0) {
        tailnet_posix_handle(&l->posix, NULL, 0);
    } else {
        tailnet_posix_handle(&l->posix, fds, n);
        for (i = 0; i < count; i++) more[i].revents = fds[n + i].revents;
    }
    sys_check_timeouts();
    tailnet_lwip_overlay_turn(&l->overlay);
    return tailnet_get_state(l->posix.node) != TAILNET_STATE_FAILED;
}

/* Without a state file the server is told that we are gone for good. */
static void loop_close(loop *l)
{
    if (tailnet_get_state(l->posix.node) != TAILNET_STATE_FAILED)
        (void)tailnet_posix_leave(&l->posix, l->posix.opt.state_file == NULL, 2000);
    tailnet_lwip_overlay_close(&l->overlay);
    tailnet_posix_close(&l->posix);
}

#endif
