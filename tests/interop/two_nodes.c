/* two_nodes URL KEYFILE CAFILE: two nodes in one process join the control server and
 * exchange packets both ways through the relay. Says what happened; exit code 0 is success.
 *
 * Nothing is shared: if a node kept anything outside its own memory, two would show it. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

enum { PACKETS = 20, PORT = 7777, MAX_MS = 50000, AGAIN_MS = 500 };

struct side {
    tailnet_posix posix;
    tailnet_self  self;
    struct side  *other;
    const char   *name;
    bool          running;
    unsigned      next;                 /* number of the packet that is on its way    */
    unsigned      received;             /* packets that came, in order, each once     */
    uint64_t      sent_at_ms;           /* 0: the packet waits to be sent             */
};

static struct side sides[2];

static uint64_t clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    struct side *s      = (struct side *)user;
    unsigned     number = size == 1 ? *(const unsigned char *)data : 255u;
    (void)p;
    if (port != PORT || memcmp(from->ip, s->other->self.ip4.ip, 4) != 0) return;
    if (number != s->received) return;  /* a packet that was sent again               */
    s->received++;
    s->other->next++;
    s->other->sent_at_ms = 0;
}

static void on_news(void *user, tailnet_posix *p, uint32_t events)
{
    struct side    *s = (struct side *)user;
    tailnet_problem trouble;
    s->running = tailnet_get_state(p->node) == TAILNET_STATE_RUNNING &&
                 tailnet_get_self(p->node, &s->self) && s->self.ip4.family == 4;
    if ((events & TAILNET_EVENT_PROBLEM) != 0 && tailnet_get_problem(p->node, &trouble))
        printf("%s: %s: %s (%d) %s\n", s->name, trouble.section,
               tailnet_result_text(trouble.result), (int)trouble.detail, trouble.text);
}

static bool begin(struct side *s, char **argv, const char *auth_key)
{
    tailnet_desc          desc    = {0};
    tailnet_posix_options options = {0};
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

/* The next packet to the other side, or the same once more when it is late. */
static void talk(struct side *s, uint64_t now_ms)
{
    unsigned char number = (unsigned char)s->next;
    tailnet_addr  to     = s->other->self.ip4;
    if (!s->running || !s->other->running || s->next == PACKETS) return;
    if (s->sent_at_ms != 0 && now_ms - s->sent_at_ms < AGAIN_MS) return;
    to.port       = PORT;
    s->sent_at_ms = now_ms;
    (void)tailnet_posix_udp_send(&s->posix, PORT, &to, &number, 1);
}

static void turn(void)
{
    struct pollfd fds[2 * TAILNET_POSIX_FDS];
    uint32_t      wait_ms = 100;
    size_t        count[2], i;
    for (i = 0; i < 2; i++) talk(&sides[i], clock_ms());
    count[0] = tailnet_posix_fds(&sides[0].posix, fds, TAILNET_POSIX_FDS);
    count[1] = tailnet_posix_fds(&sides[1].posix, fds + count[0], TAILNET_POSIX_FDS);
    for (i = 0; i < 2; i++) wait_ms = tailnet_posix_wait_ms(&sides[i].posix, wait_ms);
    (void)poll(fds, (nfds_t)(count[0] + count[1]), (int)wait_ms);
    tailnet_posix_handle(&sides[0].posix, fds, count[0]);
    tailnet_posix_handle(&sides[1].posix, fds + count[0], count[1]);
}

int main(int argc, char **argv)
{
    static char key[512];
    uint64_t    end_ms = clock_ms() + MAX_MS;
    size_t      size   = 0, i;
    bool        done   = false;

    if (argc != 4 || tailnet_posix_read_file(argv[2], key, sizeof key - 1, &size) != 0) {
        fprintf(stderr, "usage: two_nodes URL KEYFILE CAFILE\n");
        return 1;
    }
    key[strcspn(key, "\r\n")] = '\0';
    for (i = 0; i < 2; i++) {
        sides[i].other = &sides[1 - i];
        sides[i].name  = i == 0 ? "left" : "right";
        if (!begin(&sides[i], argv, key)) return 2;
    }
    while (!done && clock_ms() < end_ms) {
        turn();
        done = sides[0].received == PACKETS && sides[1].received == PACKETS;
    }
    for (i = 0; i < 2; i++) {
        printf("%s: %s, %u of %d packets received\n", sides[i].name,
               sides[i].running ? "running" : "not running", sides[i].received, PACKETS);
        (void)tailnet_posix_leave(&sides[i].posix, false, 2000);
        tailnet_posix_close(&sides[i].posix);
    }
    return done ? 0 : 2;
}
