/* device URL KEYFILE CAFILE STATEFILE ENGINES HTTP-PORT: a node with the limits of a small
 * device (two connections, ENGINES of them with TLS), which answers UDP at port 7 and says on
 * stdout, one JSON object per line, what becomes of it. HTTP-PORT 0: none is named.
 *
 * The platform gives a host an engine for every connection, and keeps control inside TLS. */
#define _GNU_SOURCE
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

static unsigned engines, http_port;

static tailnet_result device_init(tailnet_node **out, tailnet_desc *desc)
{
    desc->max_links         = 2;
    desc->max_tls           = (uint8_t)engines;
    desc->control_tls       = false;
    desc->control_http_port = (uint16_t)http_port;
    return tailnet_init(out, desc);
}

#define tailnet_init device_init
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

enum { PORT = 7 };

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    (void)user;
    if (port == PORT) (void)tailnet_posix_udp_send(p, PORT, from, data, size);
}

static void on_news(void *user, tailnet_posix *p, uint32_t events)
{
    tailnet_self    self;
    tailnet_problem trouble;
    (void)user;
    if ((events & TAILNET_EVENT_STATE) != 0 || (events & TAILNET_EVENT_SELF) != 0) {
        bool running = tailnet_get_state(p->node) == TAILNET_STATE_RUNNING &&
                       tailnet_get_self(p->node, &self) && self.ip4.family == 4;
        if (running)
            printf("{\"event\": \"state\", \"state\": \"running\", \"ip4\": \"%d.%d.%d.%d\"}\n",
                   self.ip4.ip[0], self.ip4.ip[1], self.ip4.ip[2], self.ip4.ip[3]);
        else
            printf("{\"event\": \"state\", \"state\": \"other\"}\n");
    }
    if ((events & TAILNET_EVENT_PROBLEM) != 0 && tailnet_get_problem(p->node, &trouble))
        printf("{\"event\": \"problem\", \"section\": \"%s\", \"result\": %d, \"detail\": %d}\n",
               trouble.section, (int)trouble.result, (int)trouble.detail);
    if ((events & TAILNET_EVENT_PEERS) != 0)
        printf("{\"event\": \"peers\"}\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static tailnet_posix  posix;
    static char           key[512];
    tailnet_desc          desc    = {0};
    tailnet_posix_options options = {0};
    size_t                size    = 0;

    if (argc != 7 || tailnet_posix_read_file(argv[2], key, sizeof key - 1, &size) != 0) {
        fprintf(stderr, "usage: device URL KEYFILE CAFILE STATEFILE ENGINES HTTP-PORT\n");
        return 1;
    }
    key[strcspn(key, "\r\n")] = '\0';
    engines                   = (unsigned)strtoul(argv[5], NULL, 10);
    http_port                 = (unsigned)strtoul(argv[6], NULL, 10);
    desc.control_url          = argv[1];
    desc.auth_key             = key;
    desc.prefs.hostname       = "device";
    desc.prefs.relay_only     = true;
    options.ca_file           = argv[3];
    options.state_file        = argv[4];
    options.on_news           = on_news;
    options.on_udp            = on_udp;
    if (tailnet_posix_open(&posix, &desc, &options) != TAILNET_OK ||
        tailnet_up(posix.node) != TAILNET_OK) {
        fprintf(stderr, "%s\n", posix.error);
        return 2;
    }
    for (;;) {                              /* until it is killed */
        struct pollfd fds[TAILNET_POSIX_FDS];
        size_t        count = tailnet_posix_fds(&posix, fds, TAILNET_POSIX_FDS);
        (void)poll(fds, (nfds_t)count, (int)tailnet_posix_wait_ms(&posix, 1000));
        tailnet_posix_handle(&posix, fds, count);
    }
}
