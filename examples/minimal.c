/* minimal.c - joins a tailnet and answers UDP echo (port 7) and pings on its own address.
 *
 *     cc -std=c99 -I. examples/minimal.c -lbearssl -o minimal
 *     ./minimal https://control.example.com AUTH_KEY [CA_FILE]
 *
 * Needs no root. Its identity is kept in ./minimal.state. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"

static tailnet_posix node;

static void on_signal(int number)
{
    (void)number;
    tailnet_posix_stop(&node);
}

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    (void)user;
    if (port == 7) (void)tailnet_posix_udp_send(p, port, from, data, size);
}

static void on_news(void *user, tailnet_posix *p, uint32_t events)
{
    char            text[64];
    tailnet_self    self;
    tailnet_problem trouble;
    (void)user;
    if ((events & TAILNET_EVENT_SELF) != 0 && tailnet_get_self(p->node, &self)) {
        tailnet_posix_addr_text(text, sizeof text, &self.ip4);
        printf("we are %s, %s\n", self.name, text);
    }
    if ((events & TAILNET_EVENT_PROBLEM) != 0 && tailnet_get_problem(p->node, &trouble))
        printf("problem: %s (%s %d) %s\n", tailnet_result_text(trouble.result), trouble.section,
               (int)trouble.detail, trouble.text);
}

int main(int argc, char **argv)
{
    tailnet_desc          desc    = {0};
    tailnet_posix_options options = {0};
    desc.control_url   = argc > 1 ? argv[1] : getenv("TAILNET_CONTROL");
    desc.auth_key      = argc > 2 ? argv[2] : getenv("TAILNET_AUTHKEY");
    desc.prefs.hostname = "minimal";
    options.ca_file    = argc > 3 ? argv[3] : NULL;
    options.state_file = "minimal.state";
    options.on_news    = on_news;
    options.on_udp     = on_udp;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGINT, on_signal);
    if (tailnet_posix_open(&node, &desc, &options) != TAILNET_OK) return puts(node.error), 2;
    (void)tailnet_up(node.node);
    if (tailnet_posix_run(&node) != TAILNET_OK) return 2;
    (void)tailnet_posix_leave(&node, false, 2000);
    tailnet_posix_close(&node);
    return 0;
}
