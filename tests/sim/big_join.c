/* big_join URL KEYFILE CAFILE: three nodes with real sockets, each with memory for three peers,
 * join a control server whose map has ten thousand and find each other: by address, by being
 * dialled, by name. tests/tools/sim starts the server (selfhost --peers). Exit code 0: all of
 * it happened. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

enum { NODES = 3, PEERS = 3, PORT = 7777, STEP_MS = 30000, JOIN_MS = 60000, AGAIN_MS = 300 };

typedef struct side {
    tailnet_posix posix;
    tailnet_self  self;
    const char   *name;
    bool          running;
    unsigned      got[NODES];               /* datagrams, by sender                       */
    TAILNET_MEMORY(memory, PEERS, PEERS, 2, 2);     /* this platform does all of its TLS  */
} side;

static side     sides[NODES];
static unsigned passed, failed;

static uint64_t clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    side    *s = (side *)user;
    unsigned i;
    (void)p;
    (void)data;
    for (i = 0; i < NODES; i++)
        if (port == PORT && size == 1 && memcmp(from->ip, sides[i].self.ip4.ip, 4) == 0)
            s->got[i]++;
}

static void on_news(void *user, tailnet_posix *p, uint32_t events)
{
    side           *s = (side *)user;
    tailnet_problem trouble;
    s->running = tailnet_get_state(p->node) == TAILNET_STATE_RUNNING &&
                 tailnet_get_self(p->node, &s->self) && s->self.ip4.family == 4;
    if ((events & TAILNET_EVENT_PROBLEM) != 0 && tailnet_get_problem(p->node, &trouble))
        printf("%s: %s: %s (%d) %s\n", s->name, trouble.section,
               tailnet_result_text(trouble.result), (int)trouble.detail, trouble.text);
}

static bool begin(side *s, char **argv, const char *auth_key)
{
    tailnet_desc          desc    = {0};
    tailnet_posix_options options = {0};
    desc.memory         = &s->memory;
    desc.memory_size    = sizeof s->memory;
    desc.max_peers      = PEERS;
    desc.max_sessions   = PEERS;
    desc.max_links      = 2;
    desc.control_url    = argv[1];
    desc.auth_key       = auth_key;
    desc.prefs.hostname = s->name;
    options.user        = s;
    options.ca_file     = argv[3];
    options.on_news     = on_news;
    options.on_udp      = on_udp;
    if (tailnet_posix_open(&s->posix, &desc, &options) == TAILNET_OK &&
        tailnet_up(s->posix.node) == TAILNET_OK)
        return true;
    printf("%s: %s\n", s->name, s->posix.error);
    return false;
}

static void turn(void)
{
    struct pollfd fds[NODES * TAILNET_POSIX_FDS];
    uint32_t      wait_ms = 20;
    size_t        count[NODES], all = 0, i;
    for (i = 0; i < NODES; i++) {
        count[i] = tailnet_posix_fds(&sides[i].posix, fds + all, TAILNET_POSIX_FDS);
        wait_ms  = tailnet_posix_wait_ms(&sides[i].posix, wait_ms);
        all += count[i];
    }
    (void)poll(fds, (nfds_t)all, (int)wait_ms);
    for (i = 0, all = 0; i < NODES; all += count[i++])
        tailnet_posix_handle(&sides[i].posix, fds + all, count[i]);
}

static void check(bool ok, const char *what, uint64_t since_ms)
{
    if (ok) passed++;
    else    failed++;
    printf("%-4s %6.0f ms  %s\n", ok ? "ok" : "FAIL", (double)(clock_ms() - since_ms), what);
    fflush(stdout);
}

static bool all_run(void)
{
    unsigned i, n = 0;
    for (i = 0; i < NODES; i++) n += sides[i].running;
    return n == NODES;
}

static bool knows(unsigned i, unsigned k)
{
    size_t index;
    return tailnet_find_peer_by_ip(sides[i].posix.node, &sides[k].self.ip4, &index);
}

/* Sends one datagram, and again, until one is there. */
static bool reach(unsigned from, unsigned to)
{
    uint64_t      end = clock_ms() + STEP_MS, next = 0;
    unsigned      had = sides[to].got[from];
    unsigned char number = 1;
    tailnet_addr  there = sides[to].self.ip4;
    there.port = PORT;
    for (; sides[to].got[from] == had && clock_ms() < end; turn()) {
        if (clock_ms() < next) continue;
        next = clock_ms() + AGAIN_MS;
        (void)tailnet_posix_udp_send(&sides[from].posix, PORT, &there, &number, 1);
    }
    return sides[to].got[from] != had;
}

static bool fetch(unsigned i, const char *who)
{
    uint64_t       end = clock_ms() + STEP_MS;
    tailnet_result r = TAILNET_ERR_AGAIN;
    while (r == TAILNET_ERR_AGAIN && clock_ms() < end) {
        r = tailnet_fetch_peer(sides[i].posix.node, who);
        turn();
    }
    return r == TAILNET_OK;
}

static void find_each_other(void)
{
    uint64_t begin_ms = clock_ms();
    check(!knows(0, 1) && !knows(0, 2), "the first knows neither of the others", begin_ms);
    check(reach(0, 1), "it sends to the second by address", begin_ms);
    begin_ms = clock_ms();
    check(reach(1, 0), "and gets an answer", begin_ms);
    begin_ms = clock_ms();
    check(reach(2, 0), "the third dials the first, which does not know it", begin_ms);
    begin_ms = clock_ms();
    check(fetch(1, "third"), "the second asks for the third by name", begin_ms);
    check(reach(1, 2), "and sends to it", begin_ms);
}

int main(int argc, char **argv)
{
    static const char *const names[NODES] = { "first", "second", "third" };
    static char   key[512];
    uint64_t      begin_ms = clock_ms();
    size_t        size = 0, i;
    tailnet_stats stats;
    if (argc != 4 || tailnet_posix_read_file(argv[2], key, sizeof key - 1, &size) != 0) {
        fprintf(stderr, "usage: big_join URL KEYFILE CAFILE\n");
        return 1;
    }
    key[strcspn(key, "\r\n")] = '\0';
    for (i = 0; i < NODES; i++) {
        sides[i].name = names[i];
        if (!begin(&sides[i], argv, key)) return 2;
    }
    while (!all_run() && clock_ms() - begin_ms < JOIN_MS) turn();
    check(all_run(), "three nodes, memory for three peers each, join", begin_ms);
    if (failed == 0) find_each_other();
    tailnet_get_stats(sides[0].posix.node, &stats);
    printf("     %lu bytes of memory for a node, %lu peers passed over; %.0f ms of processor\n",
           (unsigned long)sizeof sides[0].memory, (unsigned long)stats.peers_passed_over,
           (double)clock() * 1000.0 / CLOCKS_PER_SEC);
    for (i = 0; i < NODES; i++) {
        (void)tailnet_posix_leave(&sides[i].posix, false, 2000);
        tailnet_posix_close(&sides[i].posix);
    }
    printf("%u passed, %u failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
