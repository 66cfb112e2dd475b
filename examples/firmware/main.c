/* main.c - a device in the tailnet: no operating system, no heap, one loop. lwIP has an
 * Ethernet port below tailnet.h and the tailnet address above it; pings are answered by
 * lwIP, TCP and UDP port 7 by the echo services below.
 *
 * What it says, one line each, is for tests/firmware/run.py. */
#define TAILNET_IMPLEMENTATION
#define TAILNET_PLATFORM_LWIP_IMPLEMENTATION
#include "tailnet.h"
#include "tailnet_platform_lwip.h"

#include "board.h"
#include "ethernet.h"
#include "report.h"
#include "settings.h"

#include "lwip/dhcp.h"
#include "lwip/dns.h"
#include "lwip/init.h"
#include "lwip/timeouts.h"
#include "netif/ethernet.h"

#ifndef MAX_TLS
#  define MAX_TLS 1
#endif

enum { PEERS = 16, SESSIONS = 4, LINKS = 2, ECHO = 7, ECHO_WAITING = 1460 };

static TAILNET_MEMORY(memory, PEERS, SESSIONS, LINKS, MAX_TLS);
static tailnet_lwip         tailnet;
static br_x509_trust_anchor anchor;
static struct netif         ethernet;
static struct udp_pcb      *echo;
static uint32_t             dice;

/* A peer that is called once we are in, to see how soon it answers (a test's wish). */
static struct {
    ip_addr_t to;
    uint64_t  begun_ms, busy, running_ms;
    uint32_t  after_ms;                     /* so long after we are in: relays are connected */
    bool      wanted, answered;
} call;

/* ---- what lwIP asks of a port ------------------------------------------------------- */

u32_t sys_now(void) { return (u32_t)board_millis(); }

/* For port numbers and the like, which need not be secret; seeded from what is. */
unsigned long firmware_rand(void)
{
    dice ^= dice << 13;
    dice ^= dice >> 17;
    dice ^= dice << 5;
    return dice;
}

/* ---- what the platform header asks of us -------------------------------------------- */

static int on_random(void *t, void *dst, size_t size)
{
    (void)t;
    return board_random(dst, size) ? 0 : -1;
}

static int on_flash_read(void *user, unsigned place, uint32_t at, void *dst, size_t size)
{
    (void)user;
    board_flash_read(place * BOARD_FLASH_SECTOR + at, dst, size);
    return 0;
}

static int on_flash_write(void *user, unsigned place, const void *record, size_t size)
{
    uint32_t at = place * BOARD_FLASH_SECTOR;
    (void)user;
    return board_flash_erase(at) && board_flash_write(at, record, size) ? 0 : -1;
}

static void on_news(void *user, tailnet_lwip *t, uint32_t events)
{
    (void)user;
    say_news(t->node, events);
}

/* ---- what the device is for --------------------------------------------------------- */

static void on_datagram(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *from,
                        u16_t port)
{
    report r;
    (void)arg;
    if (call.wanted && !call.answered && ip_addr_cmp(from, &call.to)) {
        r.at = 0;
        say_text(&r, "answered ms ");
        say_number(&r, board_millis() - call.begun_ms);
        say_text(&r, " busy ");
        say_number(&r, board_busy() - call.busy);
        say_text(&r, " stack ");
        say_number(&r, board_stack_depth());
        say_end(&r);
        call.answered = true;
    } else {
        (void)udp_sendto(pcb, p, from, port);
    }
    pbuf_free(p);
}

/* As much of what came back out as there is room for; the rest waits in p, the stream's arg. */
static void echo_more(struct tcp_pcb *pcb, struct pbuf *p)
{
    while (p != NULL && tcp_sndbuf(pcb) != 0) {
        u16_t n = (u16_t)LWIP_MIN(p->len, tcp_sndbuf(pcb));
        if (tcp_write(pcb, p->payload, n, TCP_WRITE_FLAG_COPY) != ERR_OK) break;
        p = pbuf_free_header(p, n);
        tcp_recved(pcb, n);
    }
    tcp_arg(pcb, p);
    (void)tcp_output(pcb);
}

static err_t on_stream_sent(void *arg, struct tcp_pcb *pcb, u16_t size)
{
    (void)size;
    echo_more(pcb, (struct pbuf *)arg);
    return ERR_OK;
}

static err_t on_stream(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    struct pbuf *waiting = (struct pbuf *)arg;
    (void)err;
    if (p == NULL) {
        if (waiting != NULL) pbuf_free(waiting);
        tcp_arg(pcb, NULL);
        tcp_recv(pcb, NULL);
        tcp_sent(pcb, NULL);
        tcp_err(pcb, NULL);
        return tcp_close(pcb);
    }
    if (waiting != NULL) {
        pbuf_cat(waiting, p);
        p = waiting;
    }
    echo_more(pcb, p);
    return ERR_OK;
}

static void on_stream_error(void *arg, err_t err)
{
    (void)err;
    if (arg != NULL) pbuf_free((struct pbuf *)arg);
}

static err_t on_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    (void)arg;
    if (err != ERR_OK || pcb == NULL) return ERR_VAL;
    tcp_arg(pcb, NULL);
    tcp_recv(pcb, on_stream);
    tcp_sent(pcb, on_stream_sent);
    tcp_err(pcb, on_stream_error);
    return ERR_OK;
}

static bool serve(void)
{
    echo = udp_new();
    if (echo == NULL || udp_bind(echo, IP_ANY_TYPE, ECHO) != ERR_OK) return false;
    udp_bind_netif(echo, &tailnet.overlay.netif);
    udp_recv(echo, on_datagram, NULL);
    return tailnet_lwip_listen(&tailnet.overlay, ECHO, on_accept, NULL, NULL) == TAILNET_OK;
}

/* Once we are in, and again every two seconds until there is an answer. */
static void call_peer(void)
{
    struct pbuf *p;
    uint64_t     now = board_millis();
    if (!call.wanted || call.answered) return;
    if (call.begun_ms != 0 && now - call.begun_ms < 2000) return;
    if (tailnet_get_state(tailnet.node) != TAILNET_STATE_RUNNING) return;
    if (call.running_ms == 0) call.running_ms = now;
    if (now - call.running_ms < call.after_ms) return;
    p = pbuf_alloc(PBUF_TRANSPORT, 5, PBUF_RAM);
    if (p == NULL) return;
    pbuf_take(p, "hello", 5);
    if (call.begun_ms == 0) {
        call.begun_ms = now;
        call.busy     = board_busy();
    }
    (void)udp_sendto(echo, p, &call.to, ECHO);
    pbuf_free(p);
}

/* ---- start and loop ------------------------------------------------------------------ */

static bool network_start(void)
{
    const char *ip = board_setting("ip", NULL), *gateway = board_setting("gateway", NULL);
    ip4_addr_t  address, mask, router;
    if (netif_add(&ethernet, NULL, NULL, NULL, NULL, ethernet_init, ethernet_input) == NULL)
        return false;
    netif_set_default(&ethernet);
    if (ip != NULL && gateway != NULL && ip4addr_aton(ip, &address) &&
        ip4addr_aton(gateway, &router)) {
        IP4_ADDR(&mask, 255, 255, 255, 0);
        netif_set_addr(&ethernet, &address, &mask, &router);
        netif_set_up(&ethernet);
        return true;
    }
    netif_set_up(&ethernet);
    return dhcp_start(&ethernet) == ERR_OK;
}

static bool tailnet_start(void)
{
    tailnet_desc         desc;
    tailnet_lwip_options options;
    memset(&desc, 0, sizeof desc);
    memset(&options, 0, sizeof options);
    desc.memory       = &memory;
    desc.memory_size  = sizeof memory;
    desc.max_peers    = PEERS;
    desc.max_sessions = SESSIONS;
    desc.max_links    = LINKS;
    desc.max_tls      = MAX_TLS;
    desc.io.random    = on_random;
    settings_desc(&desc);
    settings_anchor(&anchor, &desc);
    options.below       = &ethernet;
    options.flash_read  = on_flash_read;
    options.flash_write = on_flash_write;
    options.on_news     = on_news;
    if (tailnet_lwip_open(&tailnet, &desc, &options) != TAILNET_OK) {
        board_print(tailnet.error != NULL ? tailnet.error : "tailnet_lwip_open failed");
        say("memory needed", tailnet_memory_needed(&desc));
        say("memory there", sizeof memory);
        return false;
    }
    return tailnet_up(tailnet.node) == TAILNET_OK;
}

int main(void)
{
    const char *peer = board_setting("call", NULL);
    uint64_t    report_at = setting_number("report-ms", 0);
    say("boot", board_busy());
    if (!board_random(&dice, sizeof dice)) return 2;
    dice |= 1;
    lwip_init();
    if (!network_start()) return 3;
    if (!tailnet_start()) return 4;
    if (!serve()) return 5;
    call.after_ms = setting_number("call-after-ms", 0);
    call.wanted   = peer != NULL && ipaddr_aton(peer, &call.to);
    for (;;) {
        uint32_t wait;
        ethernet_poll(&ethernet);
        sys_check_timeouts();
        (void)tailnet_lwip_poll(&tailnet);
        call_peer();
        wait = tailnet_lwip_wait_ms(&tailnet, call.wanted && !call.answered ? 100 : 60000);
        if (wait != 0) board_sleep(wait);
        if (report_at != 0 && board_millis() >= report_at) {
            say_running(tailnet.node);
            report_at += setting_number("report-ms", 0);
        }
    }
}
