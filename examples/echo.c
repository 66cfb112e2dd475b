/* echo.c - an echo server on the tailnet, TCP and UDP port 7: without root, on lwIP.
 *
 *     TAILNET_CONTROL=https://... TAILNET_AUTHKEY=... ./echo
 *     nc 100.64.0.1 7                       from another machine of the tailnet
 *
 * Everything but main is plain lwIP raw API and runs unchanged on a microcontroller. */
#include "lwip/loop.h"

enum { PORT = 7 };

static loop l;

/* Sends back what the connection takes of p, and keeps the rest as the connection's arg. Only
 * what was sent back makes room for more: who does not read stops himself. */
static struct pbuf *echo(struct tcp_pcb *pcb, struct pbuf *p)
{
    while (p != NULL && p->len <= tcp_sndbuf(pcb) &&
           tcp_write(pcb, p->payload, p->len, TCP_WRITE_FLAG_COPY) == ERR_OK) {
        struct pbuf *next = p->next;
        tcp_recved(pcb, p->len);
        if (next != NULL) pbuf_ref(next);
        pbuf_free(p);
        p = next;
    }
    tcp_arg(pcb, p);
    (void)tcp_output(pcb);
    return p;
}

static err_t on_sent(void *held, struct tcp_pcb *pcb, u16_t len)
{
    (void)len;
    (void)echo(pcb, (struct pbuf *)held);
    return ERR_OK;
}

/* The same once the other side has no more to say. */
static err_t on_sent_last(void *held, struct tcp_pcb *pcb, u16_t len)
{
    (void)len;
    return echo(pcb, (struct pbuf *)held) == NULL ? tcp_close(pcb) : ERR_OK;
}

/* p is NULL at the end of what the other side says. */
static err_t on_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    struct pbuf *held = (struct pbuf *)arg;
    (void)err;
    if (p == NULL) {
        tcp_sent(pcb, on_sent_last);
        return held == NULL ? tcp_close(pcb) : ERR_OK;
    }
    /* A pbuf counts to 65,535. What we do not take now lwIP keeps, and its window closes. */
    if (held != NULL && held->tot_len > 0xffff - p->tot_len) return ERR_MEM;
    if (held != NULL) pbuf_cat(held, p);
    (void)echo(pcb, held != NULL ? held : p);
    return ERR_OK;
}

static void on_err(void *held, err_t err)
{
    (void)err;
    if (held != NULL) pbuf_free((struct pbuf *)held);
}

static err_t on_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    (void)arg;
    if (err != ERR_OK) return err;
    tcp_arg(pcb, NULL);
    tcp_recv(pcb, on_recv);
    tcp_sent(pcb, on_sent);
    tcp_err(pcb, on_err);
    return ERR_OK;
}

static void on_udp(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *from,
                   u16_t port)
{
    (void)arg;
    (void)udp_sendto(pcb, p, from, port);
    pbuf_free(p);
}

int main(int argc, char **argv)
{
    struct udp_pcb *udp;
    (void)argv;
    if (argc > 1) return fputs("usage: echo\n" loop_usage, stderr), 1;
    if (!loop_open(&l, "echo")) return 2;
    udp = udp_new_ip_type(IPADDR_TYPE_ANY);
    if (udp == NULL || udp_bind(udp, IP_ANY_TYPE, PORT) != ERR_OK) return 2;
    udp_recv(udp, on_udp, NULL);
    if (tailnet_lwip_listen(&l.overlay, PORT, on_accept, NULL, NULL) != TAILNET_OK) return 2;
    while (!l.stop && loop_turn(&l, NULL, 0, 60000)) {}
    loop_close(&l);
    return l.stop ? 0 : 2;
}
