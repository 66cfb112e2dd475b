/* epoll_loop.c - a node inside a program that has an epoll loop of its own: joins, prints its
 * address, answers pings and UDP echo (port 7).
 *
 *     cc -std=c99 -I. examples/epoll_loop.c -lbearssl -o epoll_loop
 *     ./epoll_loop https://control.example.com AUTH_KEY [CA_FILE]
 *
 * Three things connect the two: on_fd keeps the epoll set in step, tailnet_posix_wait_ms says
 * how long to sleep, tailnet_posix_handle takes what is ready. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

#include <sys/epoll.h>
#include <sys/signalfd.h>

enum { TURN = 16 };

/* The platform speaks of poll(2) events. */
static uint32_t to_epoll(short events)
{
    return ((events & POLLIN) != 0 ? EPOLLIN : 0u) | ((events & POLLOUT) != 0 ? EPOLLOUT : 0u);
}

static short from_epoll(uint32_t events)
{
    return (short)(((events & EPOLLIN) != 0 ? POLLIN : 0) |
                   ((events & EPOLLOUT) != 0 ? POLLOUT : 0) |
                   ((events & EPOLLERR) != 0 ? POLLERR : 0) |
                   ((events & EPOLLHUP) != 0 ? POLLHUP : 0));
}

static void on_fd(void *user, int fd, short events)
{
    int                ep = *(const int *)user;
    struct epoll_event ev;
    memset(&ev, 0, sizeof ev);
    ev.events  = to_epoll(events);
    ev.data.fd = fd;
    if (events == 0)
        (void)epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
    else if (epoll_ctl(ep, EPOLL_CTL_MOD, fd, &ev) != 0)
        (void)epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    (void)user;
    if (port == 7) (void)tailnet_posix_udp_send(p, port, from, data, size);
}

static void on_news(void *user, tailnet_posix *p, uint32_t events)
{
    char         text[64];
    tailnet_self self;
    (void)user;
    if ((events & TAILNET_EVENT_SELF) == 0 || !tailnet_get_self(p->node, &self)) return;
    tailnet_posix_addr_text(text, sizeof text, &self.ip4);
    printf("%s\n", text);
    fflush(stdout);
}

/* SIGINT and SIGTERM as one more descriptor. */
static int open_signals(int ep)
{
    struct epoll_event ev;
    sigset_t           set;
    int                fd;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    fd = signalfd(-1, &set, SFD_CLOEXEC);
    memset(&ev, 0, sizeof ev);
    ev.events  = EPOLLIN;
    ev.data.fd = fd;
    (void)epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    return fd;
}

static int serve(tailnet_posix *p, int ep, int signals)
{
    struct epoll_event ev[TURN];
    struct pollfd      ready[TURN];
    int                i, n;
    for (;;) {
        size_t count = 0;
        n = epoll_wait(ep, ev, TURN, (int)tailnet_posix_wait_ms(p, 60000));
        for (i = 0; i < n; i++) {
            if (ev[i].data.fd == signals) return 0;
            ready[count].fd        = ev[i].data.fd;
            ready[count].revents   = from_epoll(ev[i].events);
            ready[count++].events  = 0;
        }
        tailnet_posix_handle(p, ready, count);
        if (tailnet_get_state(p->node) == TAILNET_STATE_FAILED) return 2;
    }
}

int main(int argc, char **argv)
{
    static tailnet_posix  node;
    tailnet_desc          desc;
    tailnet_posix_options options;
    int                   ep = epoll_create1(EPOLL_CLOEXEC), code;
    memset(&desc, 0, sizeof desc);
    memset(&options, 0, sizeof options);
    desc.control_url    = argc > 1 ? argv[1] : NULL;
    desc.auth_key       = argc > 2 ? argv[2] : NULL;
    desc.prefs.hostname = "epoll-loop";
    options.ca_file     = argc > 3 ? argv[3] : NULL;
    options.user        = &ep;
    options.on_fd       = on_fd;
    options.on_news     = on_news;
    options.on_udp      = on_udp;
    if (tailnet_posix_open(&node, &desc, &options) != TAILNET_OK) {
        fprintf(stderr, "%s\n", node.error);
        return 2;
    }
    (void)tailnet_up(node.node);
    code = serve(&node, ep, open_signals(ep));
    (void)tailnet_posix_leave(&node, false, 2000);
    tailnet_posix_close(&node);
    close(ep);
    return code;
}
