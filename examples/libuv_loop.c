/* libuv_loop.c - a node inside a libuv program: joins, prints its address, answers pings and
 * UDP echo (port 7).
 *
 *     cc -std=c99 -I. examples/libuv_loop.c -lbearssl -luv -o libuv_loop
 *     ./libuv_loop https://control.example.com AUTH_KEY [CA_FILE]
 *
 * A uv_poll_t per descriptor only notes what is ready. Once per turn a uv_check_t hands the
 * notes to the node, and a uv_prepare_t sets the timer before libuv sleeps. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

#include <uv.h>

enum { HANDLES = 2 * TAILNET_POSIX_FDS };   /* closing ones still count for a turn */

struct watcher {
    uv_poll_t poll;
    int       fd;
    bool      used, closing;
};

static struct {
    tailnet_posix  node;
    uv_loop_t     *loop;
    uv_timer_t     timer;
    struct watcher watchers[HANDLES];
    struct pollfd  ready[HANDLES];
    size_t         ready_count;
} app;

static void on_ready(uv_poll_t *handle, int status, int events)
{
    const struct watcher *w  = (const struct watcher *)handle->data;
    struct pollfd        *to = &app.ready[app.ready_count];
    if (app.ready_count == HANDLES - 1) return;
    app.ready_count++;
    to->fd      = w->fd;
    to->events  = 0;
    to->revents = status < 0 ? POLLERR
                             : (short)(((events & UV_READABLE) != 0 ? POLLIN : 0) |
                                       ((events & UV_WRITABLE) != 0 ? POLLOUT : 0));
}

static void on_closed(uv_handle_t *handle) { ((struct watcher *)handle->data)->used = false; }

/* A uv_poll_t has to be gone before its descriptor is closed; events 0 announces that. */
static void on_fd(void *user, int fd, short events)
{
    struct watcher *w = NULL;
    size_t          i;
    (void)user;
    for (i = 0; i < HANDLES; i++)
        if (app.watchers[i].used && !app.watchers[i].closing && app.watchers[i].fd == fd)
            w = &app.watchers[i];
    if (events == 0) {
        if (w == NULL) return;
        w->closing = true;
        (void)uv_poll_stop(&w->poll);
        uv_close((uv_handle_t *)&w->poll, on_closed);
        return;
    }
    for (i = 0; i < HANDLES && w == NULL; i++) {
        if (app.watchers[i].used) continue;
        w            = &app.watchers[i];
        w->used      = uv_poll_init(app.loop, &w->poll, fd) == 0;
        w->closing   = false;
        w->fd        = fd;
        w->poll.data = w;
    }
    if (w == NULL || !w->used) return;
    (void)uv_poll_start(&w->poll, ((events & POLLIN) != 0 ? UV_READABLE : 0) |
                                  ((events & POLLOUT) != 0 ? UV_WRITABLE : 0), on_ready);
}

static void on_timer(uv_timer_t *timer) { (void)timer; }
static void on_prepare(uv_prepare_t *prepare)
{
    (void)prepare;
    (void)uv_timer_start(&app.timer, on_timer, tailnet_posix_wait_ms(&app.node, 60000), 0);
}

static void on_check(uv_check_t *check)
{
    (void)check;
    tailnet_posix_handle(&app.node, app.ready, app.ready_count);
    app.ready_count = 0;
    if (tailnet_get_state(app.node.node) == TAILNET_STATE_FAILED) uv_stop(app.loop);
}

static void on_signal(uv_signal_t *signal, int number)
{
    (void)signal;
    (void)number;
    uv_stop(app.loop);
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

int main(int argc, char **argv)
{
    static uv_prepare_t   prepare;
    static uv_check_t     check;
    static uv_signal_t    interrupt;
    tailnet_desc          desc;
    tailnet_posix_options options;
    memset(&desc, 0, sizeof desc);
    memset(&options, 0, sizeof options);
    app.loop            = uv_default_loop();
    desc.control_url    = argc > 1 ? argv[1] : NULL;
    desc.auth_key       = argc > 2 ? argv[2] : NULL;
    desc.prefs.hostname = "libuv-loop";
    options.ca_file     = argc > 3 ? argv[3] : NULL;
    options.on_fd       = on_fd;
    options.on_news     = on_news;
    options.on_udp      = on_udp;
    if (tailnet_posix_open(&app.node, &desc, &options) != TAILNET_OK) {
        fprintf(stderr, "%s\n", app.node.error);
        return 2;
    }
    (void)uv_timer_init(app.loop, &app.timer);
    (void)uv_prepare_init(app.loop, &prepare);
    (void)uv_check_init(app.loop, &check);
    (void)uv_signal_init(app.loop, &interrupt);
    (void)uv_prepare_start(&prepare, on_prepare);
    (void)uv_check_start(&check, on_check);
    (void)uv_signal_start(&interrupt, on_signal, SIGINT);
    (void)tailnet_up(app.node.node);
    (void)uv_run(app.loop, UV_RUN_DEFAULT);
    (void)tailnet_posix_leave(&app.node, false, 2000);
    tailnet_posix_close(&app.node);
    return 0;
}
