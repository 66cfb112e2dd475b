/* dial.c - like netcat, through the tailnet: connects stdin and stdout with a port of a peer,
 * without root, on lwIP.
 *
 *     dial [-u] [-4 | -6] HOST PORT         HOST: a MagicDNS name or an address
 *
 * The end of stdin is passed on, what still comes is written. Exit codes: 0 both sides have
 * ended, 1 usage, 2 no connection (the reason is on stderr), 3 it broke. */
#include "lwip/loop.h"
#include "lwip/pump.h"
#include "lwip/reach.h"

enum { JOIN_MS = 60000, CONNECT_MS = 30000, UDP_QUIET_MS = 1000 };

static struct {
    loop            loop;
    pump            pump;
    const char     *host;
    uint16_t        port;
    uint8_t         kind;          /* TAILNET_LWIP_IP4...: which addresses are wanted */
    bool            udp;
    struct tcp_pcb *tcp;
    struct udp_pcb *peer;
    bool            open;           /* the connection stands                      */
    err_t           trouble;        /* why it does not                            */
    bool            ended;          /* stdin, with UDP                            */
    uint64_t        heard_ms;
} app;

static int fail(const char *why)
{
    loop_say("dial: ", why);
    return 2;
}

/* ---- The way there ----------------------------------------------------------------------- */

/* Turns until the node runs and the peer is found. NULL, or why not. */
static const char *find(ip_addr_t *ip)
{
    uint64_t       end = loop_now_ms() + JOIN_MS;
    tailnet_result result;
    while (tailnet_get_state(app.loop.posix.node) != TAILNET_STATE_RUNNING) {
        if (app.loop.stop) return "interrupted";
        if (loop_now_ms() >= end) return "the tailnet did not let us in within a minute";
        if (!loop_turn(&app.loop, NULL, 0, 1000)) return "the tailnet does not let us in";
    }
    for (;;) {
        result = reach_find(&app.loop.overlay, app.loop.posix.node, app.host, app.kind, ip);
        if (result != TAILNET_ERR_AGAIN || app.loop.stop || loop_now_ms() >= end) break;
        if (!loop_turn(&app.loop, NULL, 0, 100)) break;
    }
    if (result == TAILNET_OK) return NULL;
    return result == TAILNET_ERR_NO_ROUTE ? "no peer of that name or address"
                                          : tailnet_result_text(result);
}

static err_t on_connected(void *arg, struct tcp_pcb *pcb, err_t err)
{
    (void)arg, (void)pcb;
    app.open = err == ERR_OK;
    return ERR_OK;
}

static void on_refused(void *arg, err_t err)
{
    (void)arg;
    app.tcp     = NULL;
    app.trouble = err;
}

/* Turns until the connection stands. NULL, or why not. */
static const char *connect_tcp(const ip_addr_t *ip)
{
    uint64_t       end = loop_now_ms() + CONNECT_MS;
    tailnet_result result;
    do {
        result = tailnet_lwip_dial(&app.loop.overlay, ipaddr_ntoa(ip), app.port, on_connected,
                                   NULL, &app.tcp);
        if (result != TAILNET_ERR_AGAIN) break;
    } while (loop_turn(&app.loop, NULL, 0, 100) && !app.loop.stop && loop_now_ms() < end);
    if (result != TAILNET_OK) return tailnet_result_text(result);
    tcp_err(app.tcp, on_refused);
    while (!app.open && app.tcp != NULL && !app.loop.stop && loop_now_ms() < end)
        if (!loop_turn(&app.loop, NULL, 0, (uint32_t)(end - loop_now_ms()))) break;
    if (app.open) return NULL;
    if (app.trouble == ERR_RST) return "connection refused";
    return app.loop.stop ? "interrupted" : "no answer";
}

/* ---- TCP ------------------------------------------------------------------------------- */

static int carry(void)
{
    pump *m = &app.pump;
    pump_start(m, app.tcp, STDIN_FILENO, STDOUT_FILENO);
    while (!pump_over(m) && !app.loop.stop) {
        struct pollfd fds[2];
        size_t        n = 0, in = 2, out = 2;
        if (pump_wants_in(m)) in = n++;
        if (pump_wants_out(m)) out = n++;
        if (in < 2) fds[in].fd = m->in, fds[in].events = POLLIN;
        if (out < 2) fds[out].fd = m->out, fds[out].events = POLLOUT;
        if (!loop_turn(&app.loop, fds, n, 60000)) break;
        if (in < 2 && fds[in].revents != 0) pump_in(m);
        if (m->peer_ended || (out < 2 && fds[out].revents != 0)) pump_out(m);
    }
    if (!m->broken && pump_over(m)) return 0;
    if (!m->out_broken && !app.loop.stop) loop_say("dial: ", "the connection broke");
    pump_stop(m);
    return 3;
}

/* ---- UDP: one read of stdin is one datagram -------------------------------------------------- */

static void on_datagram(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *from,
                        u16_t port)
{
    struct pbuf *q;
    (void)arg, (void)pcb, (void)from, (void)port;
    app.heard_ms = loop_now_ms();
    for (q = p; q != NULL; q = q->next)
        if (write(STDOUT_FILENO, q->payload, q->len) != (ssize_t)q->len) app.loop.stop = 1;
    pbuf_free(p);
}

static void send_datagram(void)
{
    uint8_t      data[1200];
    struct pbuf *p;
    ssize_t      n = read(STDIN_FILENO, data, sizeof data);
    app.ended = n <= 0;
    if (n <= 0) return;
    p = pbuf_alloc(PBUF_TRANSPORT, (u16_t)n, PBUF_RAM);
    if (p == NULL) return;
    (void)pbuf_take(p, data, (u16_t)n);
    (void)udp_send(app.peer, p);
    pbuf_free(p);
    app.heard_ms = loop_now_ms();
}

/* There is no end in UDP: a second of silence after the end of stdin is one. */
static int carry_udp(const ip_addr_t *ip)
{
    struct pollfd in;
    app.peer = udp_new_ip_type(IP_GET_TYPE(ip));
    if (app.peer == NULL || udp_connect(app.peer, ip, app.port) != ERR_OK)
        return fail("no room for a socket");
    udp_recv(app.peer, on_datagram, NULL);
    in.fd        = STDIN_FILENO;
    in.events    = POLLIN;
    app.heard_ms = loop_now_ms();
    while (!app.loop.stop && !(app.ended && loop_now_ms() - app.heard_ms >= UDP_QUIET_MS)) {
        size_t count = app.ended ? 0 : 1;
        if (!loop_turn(&app.loop, &in, count, app.ended ? 100 : 60000)) return 3;
        if (count != 0 && in.revents != 0) send_datagram();
    }
    udp_remove(app.peer);
    return 0;
}

/* ---- The command line ----------------------------------------------------------------- */

static bool read_arguments(int argc, char **argv)
{
    char *end;
    long  port;
    int   i = 1;
    app.kind = TAILNET_LWIP_IP4_IP6;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "-u") == 0) app.udp = true;
        else if (strcmp(argv[i], "-4") == 0) app.kind = TAILNET_LWIP_IP4;
        else if (strcmp(argv[i], "-6") == 0) app.kind = TAILNET_LWIP_IP6;
        else return false;
    }
    if (argc - i != 2) return false;
    app.host = argv[i];
    port     = strtol(argv[i + 1], &end, 10);
    app.port = (uint16_t)port;
    return *end == '\0' && port >= 1 && port <= 65535;
}

int main(int argc, char **argv)
{
    const char *why;
    ip_addr_t   ip;
    int         code;
    if (!read_arguments(argc, argv)) {
        fputs("usage: dial [-u] [-4 | -6] HOST PORT\n" loop_usage, stderr);
        return 1;
    }
    app.loop.quiet = true;
    if (!loop_open(&app.loop, "dial")) return 2;
    why = find(&ip);
    if (why == NULL && !app.udp) why = connect_tcp(&ip);
    if (why != NULL) code = fail(why);
    else code = app.udp ? carry_udp(&ip) : carry();
    loop_close(&app.loop);
    return code;
}
