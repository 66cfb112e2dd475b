/* lwIP inside the world of tests/unit/node_world.h, in its virtual time: what both test
 * programs of interfaces share. lwIP is one per process, so all interfaces here live in one
 * stack; pcbs are bound to theirs, and packets meet only where the world joins them. */
#ifndef LWIP_WORLD_H
#define LWIP_WORLD_H

#include "tn_test.h"

#ifdef LWIP_WORLD_BRIDGE
/* Connections that the world serves for nodes which are not its own: see test_whole.c. */
#  define TAILNET_IMPLEMENTATION
#  include "tailnet.h"
#  undef TAILNET_X25519
static tailnet_result bridge_opened(tailnet_node *n, tailnet_link link);
static tailnet_result bridge_closed(tailnet_node *n, tailnet_link link);
static tailnet_result bridge_writable(tailnet_node *n, tailnet_link link);
static tailnet_result bridge_commit(tailnet_node *n, tailnet_link link, size_t size);
static uint8_t       *bridge_reserve(tailnet_node *n, tailnet_link link, size_t *room);
static size_t bridge_input(tailnet_node *n, tailnet_link link, const void *data, size_t size);
#  define tailnet_tcp_opened   bridge_opened
#  define tailnet_tcp_closed   bridge_closed
#  define tailnet_tcp_writable bridge_writable
#  define tailnet_tcp_commit   bridge_commit
#  define tailnet_tcp_reserve  bridge_reserve
#  define tailnet_tcp_input    bridge_input
#endif
#include "node_world.h"
#ifdef LWIP_WORLD_BRIDGE
#  undef tailnet_tcp_opened
#  undef tailnet_tcp_closed
#  undef tailnet_tcp_writable
#  undef tailnet_tcp_commit
#  undef tailnet_tcp_reserve
#  undef tailnet_tcp_input
#endif

#define TAILNET_PLATFORM_LWIP_IMPLEMENTATION
#include "tailnet_platform_lwip.h"

#include "lwip/icmp.h"
#include "lwip/inet_chksum.h"
#include "lwip/init.h"
#include "lwip/memp.h"
#include "lwip/raw.h"
#include "lwip/stats.h"

/* ---- a network interface of the tests: whole IP packets go to one function, which its
 * state begins with ---- */

typedef struct cable_end {
    err_t (*output)(struct netif *n, struct pbuf *p);
} cable_end;

#if LWIP_IPV4
static err_t cable_output4(struct netif *n, struct pbuf *p, const ip4_addr_t *to)
{
    (void)to;
    return ((const cable_end *)n->state)->output(n, p);
}
#endif
#if LWIP_IPV6
static err_t cable_output6(struct netif *n, struct pbuf *p, const ip6_addr_t *to)
{
    (void)to;
    return ((const cable_end *)n->state)->output(n, p);
}
#endif

static err_t cable_setup(struct netif *n)
{
    n->mtu = 1500;
#if LWIP_IPV4
    n->output = cable_output4;
#endif
#if LWIP_IPV6
    n->output_ip6 = cable_output6;
#endif
    return ERR_OK;
}

unsigned tests_lwip_rand(void) { return (unsigned)tn_test_random(); }

/* ---- two ends of one TCP connection, and what they are to do ---- */

enum { TALK_CHUNK = 700, TALK_SAMPLES = 16 };

typedef struct talk {
    struct tcp_pcb *pcb;
    uint32_t        to_send, sent, acked, got;
    uint32_t        pause_at, paused_until;     /* the reader stops for a while           */
    struct pbuf    *held;
    bool            connected, ended, closed, wrong, shut, keep_open;
    err_t           err;
    uint8_t         key;                        /* of the bytes that this end sends       */
} talk;

static uint8_t talk_byte(uint8_t key, uint32_t at)
{
    return (uint8_t)(at * 7u + (at >> 8) * 13u + key);
}

/* Writes what fits; when all is sent the sending half is closed. */
static void talk_push(talk *k)
{
    uint8_t bytes[TALK_CHUNK];
    while (k->pcb != NULL && k->connected && k->sent < k->to_send) {
        uint32_t n = k->to_send - k->sent, i;
        if (n > TALK_CHUNK) n = TALK_CHUNK;
        if (n > tcp_sndbuf(k->pcb)) n = tcp_sndbuf(k->pcb);
        if (n == 0) break;
        for (i = 0; i < n; i++) bytes[i] = talk_byte(k->key, k->sent + i);
        if (tcp_write(k->pcb, bytes, (u16_t)n, TCP_WRITE_FLAG_COPY) != ERR_OK) break;
        k->sent += n;
    }
    if (k->pcb == NULL || !k->connected) return;
    (void)tcp_output(k->pcb);
    if (k->sent == k->to_send && !k->shut && !k->keep_open)
        k->shut = tcp_shutdown(k->pcb, 0, 1) == ERR_OK;
}

/* Both halves are done: lwIP keeps the rest to itself. */
static void talk_finish(talk *k)
{
    if (k->pcb == NULL || !k->ended || !k->shut || k->closed) return;
    tcp_arg(k->pcb, NULL);
    tcp_recv(k->pcb, NULL);
    tcp_sent(k->pcb, NULL);
    tcp_err(k->pcb, NULL);
    k->closed = true;
    CHECK(tcp_close(k->pcb) == ERR_OK);
    k->pcb = NULL;
}

static void talk_take(talk *k, struct pbuf *p)
{
    struct pbuf *q;
    uint32_t     i;
    for (q = p; q != NULL; q = q->next)
        for (i = 0; i < q->len; i++)
            if (((const uint8_t *)q->payload)[i] != talk_byte((uint8_t)(k->key ^ 1), k->got++))
                k->wrong = true;
    if (k->pcb != NULL) tcp_recved(k->pcb, p->tot_len);
    pbuf_free(p);
}

static err_t talk_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    talk *k = (talk *)arg;
    (void)pcb, (void)err;
    if (p == NULL) k->ended = true;
    else if (k->pause_at != 0 && k->got >= k->pause_at) {
        if (k->held != NULL) pbuf_cat(k->held, p);
        else                 k->held = p;
    } else talk_take(k, p);
    return ERR_OK;
}

static err_t talk_sent(void *arg, struct tcp_pcb *pcb, u16_t len)
{
    talk *k = (talk *)arg;
    (void)pcb;
    k->acked += len;
    talk_push(k);
    return ERR_OK;
}

static void talk_err(void *arg, err_t err)
{
    talk *k = (talk *)arg;
    k->pcb  = NULL;
    k->err  = err;
}

static void talk_own(talk *k, struct tcp_pcb *pcb)
{
    k->pcb = pcb;
    tcp_arg(pcb, k);
    tcp_recv(pcb, talk_recv);
    tcp_sent(pcb, talk_sent);
    tcp_err(pcb, talk_err);
}

static err_t talk_connected(void *arg, struct tcp_pcb *pcb, err_t err)
{
    talk *k = (talk *)arg;
    (void)pcb;
    k->connected = err == ERR_OK;
    talk_push(k);
    return ERR_OK;
}

static err_t talk_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    talk *k = (talk *)arg;
    if (err != ERR_OK || pcb == NULL || k->pcb != NULL || k->connected) return ERR_VAL;
    k->connected = true;
    talk_own(k, pcb);
    talk_push(k);
    return ERR_OK;
}

/* From time to time, as an application's loop would. */
static void talk_turn(talk *k, uint64_t now_ms)
{
    if (k->held != NULL && now_ms >= k->paused_until) {
        struct pbuf *p = k->held;
        k->held     = NULL;
        k->pause_at = 0;
        talk_take(k, p);
    }
    talk_push(k);
    talk_finish(k);
}

/* ---- pings ---- */

typedef struct ping {
    struct raw_pcb *raw;
    unsigned        answers;
    ip_addr_t       from;
} ping;

enum { PING_SIZE = 8 + 32 };

static u8_t ping_recv(void *arg, struct raw_pcb *pcb, struct pbuf *p, const ip_addr_t *ip)
{
    ping    *g    = (ping *)arg;
    unsigned head = IP_IS_V6(ip) ? 40u : 20u;
    uint8_t  kind = 0, id[2] = { 0, 0 };
    (void)pcb;
    if (p->tot_len < head + 8) return 0;
    (void)pbuf_copy_partial(p, &kind, 1, (u16_t)head);
    (void)pbuf_copy_partial(p, id, 2, (u16_t)(head + 4));
    if (kind != (IP_IS_V6(ip) ? 129 : 0) || id[0] != 0xab || id[1] != 0xcd) return 0;
    g->answers++;
    g->from = *ip;
    pbuf_free(p);
    return 1;
}

static void ping_open(ping *g, struct netif *n, bool six)
{
    memset(g, 0, sizeof *g);
    g->raw = raw_new_ip_type(six ? IPADDR_TYPE_V6 : IPADDR_TYPE_V4, six ? 58 : 1);
    CHECK(g->raw != NULL);
    raw_bind_netif(g->raw, n);
    raw_recv(g->raw, ping_recv, g);
#if LWIP_IPV6
    if (six) {                              /* lwIP fills the sum in for raw ICMPv6      */
        g->raw->chksum_reqd   = 1;
        g->raw->chksum_offset = 2;
    }
#endif
}

static err_t ping_send(ping *g, const ip_addr_t *to)
{
    struct pbuf *p = pbuf_alloc(PBUF_IP, PING_SIZE, PBUF_RAM);
    uint8_t     *b = (uint8_t *)p->payload;
    uint16_t     sum;
    err_t        err;
    memset(b, 0x55, PING_SIZE);
    b[0] = IP_IS_V6(to) ? 128 : 8;
    b[1] = b[2] = b[3] = 0;
    b[4] = 0xab;
    b[5] = 0xcd;
    if (!IP_IS_V6(to)) {
        sum = inet_chksum(b, PING_SIZE);
        memcpy(b + 2, &sum, 2);
    }
    err = raw_sendto(g->raw, p, to);
    pbuf_free(p);
    return err;
}

/* ---- what lwIP has in use: at the end as much as at the beginning ---- */

typedef struct in_use {
    size_t heap;
    size_t pool[MEMP_MAX];
} in_use;

static void in_use_now(in_use *u)
{
    unsigned i;
    memset(u, 0, sizeof *u);
    u->heap = lwip_stats.mem.used;
    for (i = 0; i < MEMP_MAX; i++) u->pool[i] = lwip_stats.memp[i]->used;
}

static bool in_use_same(const in_use *a)
{
    in_use   b;
    unsigned i;
    bool     same;
    in_use_now(&b);
    same = a->heap == b.heap;
    if (!same) printf("the heap has %lu in use, had %lu\n", (unsigned long)b.heap,
                      (unsigned long)a->heap);
    for (i = 0; i < MEMP_MAX; i++) {
        if (a->pool[i] == b.pool[i]) continue;
        printf("pool %u has %lu in use, had %lu\n", i, (unsigned long)b.pool[i],
               (unsigned long)a->pool[i]);
        same = false;
    }
    return same;
}

#endif
