/* The interface alone: two nodes of the in-memory world, lwIP above both. Everything that the
 * one sends goes through its node, the world's relay, and the other node. */
#include "lwip_world.h"

static nw_world            *world;
static nw_node             *node[2];
static tailnet_lwip_overlay over[2];
static bool                 direct_send;    /* options.send, as with a node of another platform */
static tailnet_result       send_says;
static unsigned             sends;
static unsigned             drop_in;        /* of so many packets one is lost, 0: none */
static struct netif         lan;            /* another interface                       */
static unsigned             lan_out;

static uint64_t lwip_ms;                         /* before this world: lwIP goes on living */

u32_t sys_now(void) { return (u32_t)(lwip_ms + (world == NULL ? 0 : world->now_ms)); }

static void over_ip_output(void *user, tailnet_buf *pkts, size_t count)
{
    nw_node *d = (nw_node *)user;
    (void)count;
    if (drop_in != 0 && nw_below(d->w, drop_in) == 0) return;
    (void)tailnet_lwip_overlay_input(&over[d->number], pkts->base + pkts->off, pkts->len);
}

/* As tailnet_posix_ip_send: copies, encrypts later or now. */
static tailnet_result over_send(void *user, const void *packet, size_t size)
{
    nw_node *d = (nw_node *)user;
    sends++;
    if (send_says != TAILNET_OK) return send_says;
    return nw_send_packet(d, (const uint8_t *)packet, size);
}

static err_t lan_output(struct netif *n, struct pbuf *p)
{
    (void)n, (void)p;
    lan_out++;
    return ERR_OK;
}

/* A local network beside the tailnet, 192.168.7.2/24 and 2001:db8:7::2, which is the default. */
static void lan_open(void)
{
    static cable_end end;
    end.output = lan_output;
    CHECK(netif_add_noaddr(&lan, &end, cable_setup, ip_input) != NULL);
#if LWIP_IPV4
    {
        ip4_addr_t ip, mask, gw;
        IP4_ADDR(&ip, 192, 168, 7, 2);
        IP4_ADDR(&mask, 255, 255, 255, 0);
        IP4_ADDR(&gw, 192, 168, 7, 1);
        netif_set_addr(&lan, &ip, &mask, &gw);
    }
#endif
#if LWIP_IPV6
    {
        ip6_addr_t ip;
        CHECK(ip6addr_aton("2001:db8:7::2", &ip));
        netif_ip6_addr_set(&lan, 1, &ip);
        netif_ip6_addr_set_state(&lan, 1, IP6_ADDR_PREFERRED);
    }
#endif
    netif_set_default(&lan);
    netif_set_up(&lan);
    netif_set_link_up(&lan);
    lan_out = 0;
}

/* ---- time ---- */

static talk talks[8];

/* The loop of an application, a millisecond a turn. */
static void turn(void)
{
    unsigned i;
    nw_run(world, 1);
    sys_check_timeouts();
    for (i = 0; i < 2; i++) {
        if (node[i] == NULL) continue;
        tailnet_lwip_overlay_news(&over[i], node[i]->events);
        node[i]->events = 0;
        tailnet_lwip_overlay_turn(&over[i]);
    }
    for (i = 0; i < sizeof talks / sizeof talks[0]; i++) talk_turn(&talks[i], world->now_ms);
}

static void pass(uint64_t ms)
{
    uint64_t end = world->now_ms + ms;
    while (world->now_ms < end) turn();
}

static in_use at_first;

static void world_begin(uint64_t seed)
{
    unsigned i;
    world = nw_begin(seed);
    memset(talks, 0, sizeof talks);
    drop_in   = 0;
    send_says = TAILNET_OK;
    sends     = 0;
    lan_open();
    in_use_now(&at_first);
    for (i = 0; i < 2; i++) {
        tailnet_lwip_overlay_options options;
        node[i] = nw_add(world, i == 0 ? "alpha" : "beta");
        node[i]->desc.io.ip_output = over_ip_output;
        nw_up(node[i]);
        memset(&options, 0, sizeof options);
        options.user = node[i];
        options.send = direct_send ? over_send : NULL;
        CHECK(tailnet_lwip_overlay_open(&over[i], node[i]->n, &options) == TAILNET_OK);
        CHECK(nw_until(node[i], TAILNET_STATE_RUNNING, 10000));     /* alpha has number 1 */
    }
    pass(2000);
    CHECK(netif_is_link_up(&over[0].netif) && netif_is_link_up(&over[1].netif));
}

/* Nothing may be left of lwIP's memory, and the library never was re-entered. */
static void world_end(void)
{
    unsigned i;
    for (i = 0; i < sizeof talks / sizeof talks[0]; i++) {
        if (talks[i].held != NULL) pbuf_free(talks[i].held);
        if (talks[i].pcb != NULL) tcp_abort(talks[i].pcb);
        talks[i].held = NULL;
    }
    for (i = 0; i < 2; i++) {
        if (node[i]->n != NULL) CHECK(node[i]->n->rim.refused == 0);
        tailnet_lwip_overlay_close(&over[i]);
        tailnet_lwip_overlay_close(&over[i]);
    }
    while (tcp_tw_pcbs != NULL || tcp_active_pcbs != NULL) {
        world->now_ms += 250;
        sys_check_timeouts();
    }
    for (i = 0; i < 70; i++) {                  /* half packets are forgotten */
        world->now_ms += 1000;
        sys_check_timeouts();
    }
    CHECK(in_use_same(&at_first));
    netif_remove(&lan);
    lwip_ms += world->now_ms;
    nw_end(world);
    world = NULL;
}

/* ---- helpers ---- */

static void address_of(unsigned i, bool six, ip_addr_t *out)
{
    tailnet_self self;
    memset(&self, 0, sizeof self);
    CHECK(tailnet_get_self(node[i]->n, &self));
    CHECK(tnl_ip_of(out, six ? &self.ip6 : &self.ip4));
}

/* A listener on beta and a connection of alpha's: talks[at] and talks[at + 1]. */
static struct tcp_pcb *connect_pair(unsigned at, const char *who, uint16_t port, uint32_t there,
                                    uint32_t back)
{
    struct tcp_pcb *listener = NULL, *pcb = NULL;
    talks[at].key         = 0;
    talks[at].to_send     = there;
    talks[at + 1].key     = 1;
    talks[at + 1].to_send = back;
    CHECK(tailnet_lwip_listen(&over[1], port, talk_accept, &talks[at + 1], &listener) ==
          TAILNET_OK);
    CHECK(tailnet_lwip_dial(&over[0], who, port, talk_connected, &talks[at], &pcb) == TAILNET_OK);
    if (pcb != NULL) talk_own(&talks[at], pcb);
    return listener;
}

static bool all_closed(unsigned at)
{
    return talks[at].closed && talks[at + 1].closed;
}

static bool run_until_closed(unsigned at, uint64_t ms)
{
    uint64_t end = world->now_ms + ms;
    while (!all_closed(at) && world->now_ms < end) turn();
    if (!all_closed(at))
        printf("stands at: sent %u of %u, got %u, err %d; sent %u of %u, got %u, err %d\n",
               (unsigned)talks[at].sent, (unsigned)talks[at].to_send, (unsigned)talks[at].got,
               talks[at].err, (unsigned)talks[at + 1].sent, (unsigned)talks[at + 1].to_send,
               (unsigned)talks[at + 1].got, talks[at + 1].err);
    return all_closed(at) && !talks[at].wrong && !talks[at + 1].wrong &&
           talks[at].got == talks[at + 1].to_send && talks[at + 1].got == talks[at].to_send;
}

/* ---- tests ---- */

static void test_addresses(void)
{
    world_begin(1);
#if LWIP_IPV4
    CHECK(ip4_addr_get_u32(netif_ip4_addr(&over[0].netif)) == PP_HTONL(0x64400001UL));
    CHECK(ip4_addr_get_u32(netif_ip4_netmask(&over[0].netif)) == PP_HTONL(0xffc00000UL));
#endif
#if LWIP_IPV6
    CHECK(ip6_addr_ispreferred(netif_ip6_addr_state(&over[1].netif, 0)));
    CHECK(netif_ip6_addr(&over[1].netif, 0)->addr[0] == PP_HTONL(0xfd7a115cUL));
    CHECK(netif_ip6_addr(&over[1].netif, 0)->addr[3] == PP_HTONL(2UL));
#endif
    CHECK(over[0].netif.mtu == 1280);
    CHECK(over[0].netif.name[0] == 't' && over[0].netif.name[1] == 'n');
    CHECK(tailnet_down(node[0]->n) == TAILNET_OK);
    pass(1000);
    CHECK(!netif_is_link_up(&over[0].netif));
    CHECK(tailnet_up(node[0]->n) == TAILNET_OK);
    pass(5000);
    CHECK(netif_is_link_up(&over[0].netif));
    world_end();
}

static void tcp_both_ways(const char *who, uint64_t seed)
{
    struct tcp_pcb *listener;
    world_begin(seed);
    listener = connect_pair(0, who, 7, 120000, 90000);
    CHECK(run_until_closed(0, 60000));
    CHECK(lan_out == 0);
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

static void test_tcp_by_name(void) { tcp_both_ways("beta", 2); }
static void test_tcp_by_full_name(void) { tcp_both_ways("beta.tail.test", 3); }
#if LWIP_IPV4
static void test_tcp_by_ip4(void) { tcp_both_ways("100.64.0.2", 4); }
#endif
#if LWIP_IPV6
static void test_tcp_by_ip6(void) { tcp_both_ways("fd7a:115c:a1e0::2", 5); }
#endif

/* As with a node of another platform: packets out through a callback. */
static void test_tcp_by_send(void)
{
    direct_send = true;
    tcp_both_ways("beta", 6);
    CHECK(sends > 100);
    direct_send = false;
}

static void test_loss(void)
{
    struct tcp_pcb *listener;
    world_begin(7);
    drop_in  = 12;
    listener = connect_pair(0, "beta", 7, 60000, 60000);
    CHECK(run_until_closed(0, 300000));
    drop_in = 0;
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* One side sends nothing more and goes on reading for a while. */
static void test_half_close(void)
{
    struct tcp_pcb *listener;
    world_begin(8);
    listener = connect_pair(0, "beta", 7, 1000, 50000);
    talks[1].keep_open = true;
    talks[1].to_send   = 0;
    pass(3000);
    CHECK(talks[0].shut && talks[1].ended && talks[1].got == 1000 && !talks[0].ended);
    talks[1].keep_open = false;
    talks[1].to_send   = 50000;
    CHECK(run_until_closed(0, 60000));
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* A reader that stops for ten seconds: the window closes, and opens again. */
static void test_slow_reader(void)
{
    struct tcp_pcb *listener;
    uint32_t        stopped;
    world_begin(9);
    listener = connect_pair(0, "beta", 7, 80000, 10);
    talks[1].pause_at     = 9000;
    talks[1].paused_until = (uint32_t)world->now_ms + 12000;
    pass(8000);
    stopped = talks[0].acked;
    CHECK(stopped < 30000);
    pass(2000);
    CHECK(talks[0].acked - stopped < 10);
    CHECK(run_until_closed(0, 120000));
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* The relay stream takes nothing for a while: the interface says ERR_MEM, TCP waits without
 * taking it for loss, and goes on soon after. */
static void test_full_stream(void)
{
    struct tcp_pcb *listener;
    uint64_t        before;
    world_begin(10);
    node[0]->nat = node[1]->nat = NW_BLOCKED;           /* by relay only */
    listener     = connect_pair(0, "beta", 7, 300000, 10);
    pass(100);
    node[0]->mute = true;
    pass(500);
    CHECK(over[0].held > 0 && over[0].full);
    node[0]->mute = false;
    before        = world->now_ms;
    CHECK(run_until_closed(0, 60000));
    CHECK(world->now_ms - before < 3000);
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* The same with options.send, which says AGAIN; other failures are loss. */
static void test_send_refuses(void)
{
    struct tcp_pcb *listener;
    direct_send = true;
    world_begin(11);
    send_says = TAILNET_ERR_AGAIN;
    listener  = connect_pair(0, "beta", 7, 20000, 10);
    pass(400);
    CHECK(over[0].held > 0 && talks[0].sent == 0);
    CHECK(tailnet_lwip_overlay_wait_ms(&over[0], 1000) <= 10);
    send_says = TAILNET_OK;
    pass(2000);
    CHECK(talks[0].sent > 0);
    send_says = TAILNET_ERR_NETWORK;
    pass(100);
    send_says = TAILNET_OK;
    CHECK(run_until_closed(0, 60000));
    direct_send = false;
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* lwIP's heap is empty for a second: nothing breaks, and it goes on. */
static void test_no_memory(void)
{
    struct tcp_pcb *listener;
    void           *hog[2000];
    unsigned        count = 0, size;
    world_begin(12);
    listener = connect_pair(0, "beta", 7, 300000, 200000);
    pass(100);
    for (size = 2000; size >= 200; size /= 2)
        while (count < 2000 && (hog[count] = mem_malloc((mem_size_t)size)) != NULL) count++;
    CHECK(count > 50 && count < 2000);
    pass(1500);
    CHECK(over[0].held + over[1].held > 0);
    while (count > 0) mem_free(hog[--count]);
    CHECK(run_until_closed(0, 60000));
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* No pbuf for what comes in, and a fifo that is full: loss, counted. */
static void test_no_room_inward(void)
{
    struct pbuf *hog[PBUF_POOL_SIZE];
    uint8_t      packet[200];
    unsigned     count = 0, i;
    world_begin(13);
    memset(packet, 0, sizeof packet);
    packet[0] = 0x45;
    while (count < PBUF_POOL_SIZE && (hog[count] = pbuf_alloc(PBUF_RAW, 100, PBUF_POOL)) != NULL)
        count++;
    CHECK(tailnet_lwip_overlay_input(&over[0], packet, sizeof packet) == TAILNET_ERR_MEMORY);
    CHECK(over[0].dropped == 1);
    while (count > 0) pbuf_free(hog[--count]);
    for (i = 0; i < TAILNET_LWIP_FIFO; i++)
        CHECK(tailnet_lwip_overlay_input(&over[0], packet, sizeof packet) == TAILNET_OK);
    CHECK(tailnet_lwip_overlay_wait_ms(&over[0], 1000) == 0);
    CHECK(tailnet_lwip_overlay_input(&over[0], packet, sizeof packet) == TAILNET_ERR_MEMORY);
    CHECK(over[0].dropped == 2);
    tailnet_lwip_overlay_turn(&over[0]);
    CHECK(over[0].count == 0);
    CHECK(tailnet_lwip_overlay_input(&over[0], packet, 0) == TAILNET_ERR_MALFORMED);
    CHECK(tailnet_lwip_overlay_input(&over[0], packet, sizeof packet) == TAILNET_OK);
    world_end();                                /* closed with one waiting            */
}

/* Many connections at once, some of them dialled twice. */
static void test_many(void)
{
    struct tcp_pcb *listener[4];
    unsigned        i;
    world_begin(14);
    for (i = 0; i < 4; i++)
        listener[i] = connect_pair(2 * i, "beta", (uint16_t)(100 + i), 20000 + i, 15000 - i);
    for (i = 0; i < 4; i++) CHECK(run_until_closed(2 * i, 120000));
    for (i = 0; i < 4; i++)
        if (listener[i] != NULL) CHECK(tcp_close(listener[i]) == ERR_OK);
    world_end();
}

static struct {
    unsigned  count;
    u16_t     len;
    uint8_t   bytes[3000];
    ip_addr_t from;
    u16_t     port;
} gram;

static void gram_recv(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *ip,
                      u16_t port)
{
    (void)pcb;
    gram.count++;
    gram.len  = p->tot_len;
    gram.from = *ip;
    gram.port = port;
    (void)pbuf_copy_partial(p, gram.bytes, sizeof gram.bytes, 0);
    if (arg != NULL) CHECK(udp_sendto((struct udp_pcb *)arg, p, ip, port) == ERR_OK);
    pbuf_free(p);
}

/* Datagrams of any size, also larger than the MTU, there and back. */
static void udp_there_and_back(bool six, uint64_t seed)
{
    struct udp_pcb *a, *b;
    struct pbuf    *p;
    ip_addr_t       to;
    u16_t           sizes[] = { 1, 100, 1232, 1233, 2500 }, i, k;
    world_begin(seed);
    a = udp_new_ip_type(IPADDR_TYPE_ANY);
    b = udp_new_ip_type(IPADDR_TYPE_ANY);
    udp_bind_netif(a, &over[0].netif);
    udp_bind_netif(b, &over[1].netif);
    CHECK(udp_bind(a, IP_ANY_TYPE, 5000) == ERR_OK);
    CHECK(udp_bind(b, IP_ANY_TYPE, 5001) == ERR_OK);
    udp_recv(a, gram_recv, NULL);
    udp_recv(b, gram_recv, b);
    address_of(1, six, &to);
    for (i = 0; i < 5; i++) {
        memset(&gram, 0, sizeof gram);
        p = pbuf_alloc(PBUF_TRANSPORT, sizes[i], PBUF_RAM);
        for (k = 0; k < sizes[i]; k++) ((uint8_t *)p->payload)[k] = (uint8_t)(k + i);
        CHECK(udp_sendto(a, p, &to, 5001) == ERR_OK);
        pbuf_free(p);
        pass(500);
        CHECK(gram.count == 2 && gram.len == sizes[i] && gram.port == 5001);
        CHECK(ip_addr_cmp(&gram.from, &to));
        for (k = 0; k < sizes[i]; k++)
            if (gram.bytes[k] != (uint8_t)(k + i)) break;
        CHECK(k == sizes[i]);
    }
    udp_remove(a);
    udp_remove(b);
    world_end();
}

#if LWIP_IPV4
static void test_udp4(void) { udp_there_and_back(false, 15); }
#endif
#if LWIP_IPV6
static void test_udp6(void) { udp_there_and_back(true, 16); }
#endif

static void ping_there(bool six, uint64_t seed)
{
    ip_addr_t to;
    ping      g;
    world_begin(seed);
    ping_open(&g, &over[0].netif, six);
    address_of(1, six, &to);
    CHECK(ping_send(&g, &to) == ERR_OK);
    pass(1500);
    CHECK(g.answers == 1 && ip_addr_cmp(&g.from, &to));
    CHECK(lan_out == 0);
    raw_remove(g.raw);
    world_end();
}

#if LWIP_IPV4
static void test_ping4(void) { ping_there(false, 17); }
#endif
#if LWIP_IPV6
static void test_ping6(void) { ping_there(true, 18); }
#endif

static void test_resolve(void)
{
    struct tcp_pcb *pcb;
    ip_addr_t       ip, want;
    world_begin(19);
#if LWIP_IPV4
    address_of(1, false, &want);
    CHECK(tailnet_lwip_resolve(&over[0], "beta", TAILNET_LWIP_IP4, &ip) == TAILNET_OK);
    CHECK(ip_addr_cmp(&ip, &want));
    CHECK(tailnet_lwip_resolve(&over[0], "BETA.tail.test.", TAILNET_LWIP_IP4_IP6, &ip) ==
          TAILNET_OK);
    CHECK(ip_addr_cmp(&ip, &want));
    CHECK(tailnet_lwip_resolve(&over[0], "100.64.0.2", TAILNET_LWIP_IP4, &ip) == TAILNET_OK);
    CHECK(ip_addr_cmp(&ip, &want));
    CHECK(tailnet_lwip_resolve(&over[0], "192.0.2.1", TAILNET_LWIP_IP4, &ip) ==
          TAILNET_ERR_NO_ROUTE);
    over[0].route[2].family = 4;                        /* a subnet behind somebody */
    over[0].route[2].bits   = 24;
    memcpy(over[0].route[2].ip, "\300\0\2\0", 4);
    over[0].route_count = 3;
    CHECK(tailnet_lwip_resolve(&over[0], "192.0.2.1", TAILNET_LWIP_IP4, &ip) == TAILNET_OK);
#endif
#if LWIP_IPV6
    address_of(1, true, &want);
    CHECK(tailnet_lwip_resolve(&over[0], "beta", TAILNET_LWIP_IP6, &ip) == TAILNET_OK);
    CHECK(ip_addr_cmp(&ip, &want));
    CHECK(tailnet_lwip_resolve(&over[0], "beta", TAILNET_LWIP_IP6_IP4, &ip) == TAILNET_OK);
    CHECK(ip_addr_cmp(&ip, &want));
#endif
    CHECK(tailnet_lwip_resolve(&over[0], "nobody", TAILNET_LWIP_IP4_IP6, &ip) ==
          TAILNET_ERR_NO_ROUTE);
    CHECK(tailnet_lwip_dial(&over[0], "nobody", 7, talk_connected, NULL, &pcb) ==
          TAILNET_ERR_NO_ROUTE && pcb == NULL);
#ifndef TEST_NO_HOOKS
    CHECK(dns_gethostbyname_addrtype("beta", &ip, NULL, NULL, TAILNET_LWIP_IP4_IP6) == ERR_OK);
    over[0].deaf = over[1].deaf = true;
    CHECK(dns_gethostbyname_addrtype("beta", &ip, NULL, NULL, TAILNET_LWIP_IP4_IP6) != ERR_OK);
#endif
    world_end();
}

/* A port can be listened on once; the listener is for the tailnet alone. */
static void test_listen_is_for_the_tailnet(void)
{
    struct tcp_pcb *first, *second;
    world_begin(20);
    CHECK(tailnet_lwip_listen(&over[1], 7, talk_accept, NULL, &first) == TAILNET_OK);
    CHECK(tailnet_lwip_listen(&over[1], 7, talk_accept, NULL, &second) == TAILNET_ERR_BUSY);
    CHECK(second == NULL && first != NULL);
    CHECK(first->netif_idx == netif_get_index(&over[1].netif));
    CHECK(tcp_close(first) == ERR_OK);
    world_end();
}

#if LWIP_IPV4 && !defined(TEST_NO_HOOKS)
static void put_packet4(struct netif *in, const char *src, const char *dst, uint16_t port)
{
    uint8_t      bytes[64];
    tailnet_addr from, to;
    struct pbuf *p;
    size_t       len;
    memset(&from, 0, sizeof from);
    memset(&to, 0, sizeof to);
    CHECK(tn_ip_parse(&from, src, strlen(src)) && tn_ip_parse(&to, dst, strlen(dst)));
    from.port = 9;
    to.port   = port;
    len = nw_udp_packet(bytes, &from, &to, "x", 1);
    p   = pbuf_alloc(PBUF_RAW, (u16_t)len, PBUF_POOL);
    (void)pbuf_take(p, bytes, (u16_t)len);
    CHECK(in->input(p, in) == ERR_OK);
}

/* From the local network nobody speaks to the tailnet address, nor as a peer. */
static void test_hook_input(void)
{
    struct udp_pcb *b;
    world_begin(21);
    b = udp_new();
    CHECK(udp_bind(b, IP_ANY_TYPE, 5001) == ERR_OK);
    udp_recv(b, gram_recv, NULL);
    memset(&gram, 0, sizeof gram);
    put_packet4(&lan, "192.168.7.9", "192.168.7.2", 5001);
    CHECK(gram.count == 1);
    put_packet4(&lan, "192.168.7.9", "100.64.0.2", 5001);
    CHECK(gram.count == 1);
    put_packet4(&lan, "100.64.0.1", "192.168.7.2", 5001);
    CHECK(gram.count == 1);
    put_packet4(&over[1].netif, "100.64.0.1", "100.64.0.2", 5001);
    CHECK(gram.count == 2);
    udp_remove(b);
    world_end();
}

static struct netif *route_to(const char *text)
{
    ip4_addr_t ip;
    CHECK(ip4addr_aton(text, &ip));
    return ip4_route_src(IP4_ADDR_ANY4, &ip);
}

static void test_hook_routes(void)
{
    tailnet_prefix every, net;
    ip_addr_t      server;
    world_begin(22);
    tailnet_lwip_overlay_close(&over[1]);       /* one is enough here */
    memset(&every, 0, sizeof every);
    every.family = 4;
    net          = every;
    net.bits     = 23;
    net.ip[0]    = 10;
    net.ip[2]    = 6;
    CHECK(route_to("100.64.0.2") == &over[0].netif);
    CHECK(route_to("100.127.255.254") == &over[0].netif);
    CHECK(route_to("100.128.0.1") == &lan);
    CHECK(route_to("8.8.8.8") == &lan);
    CHECK(route_to("10.0.7.1") == &lan);
    over[0].route[over[0].route_count++] = net;
    CHECK(route_to("10.0.7.1") == &over[0].netif && route_to("10.0.6.255") == &over[0].netif);
    CHECK(route_to("10.0.8.0") == &lan && route_to("10.0.5.255") == &lan);
    over[0].route[over[0].route_count++] = every;       /* an exit node */
    CHECK(route_to("8.8.8.8") == &over[0].netif);
    CHECK(route_to("192.168.7.77") == &lan);
    CHECK(ipaddr_aton("9.9.9.9", &server));
    dns_setserver(0, &server);
    CHECK(route_to("9.9.9.9") == &lan);
    CHECK(route_to("224.0.0.1") == &lan && route_to("255.255.255.255") == &lan);
    netif_set_link_down(&over[0].netif);
    CHECK(route_to("8.8.8.8") == &lan);
    memset(&server, 0, sizeof server);
    dns_setserver(0, &server);
    world_end();
}
#endif

#if LWIP_IPV6
/* Neighbours and routers do not exist in a tunnel: nobody fills lwIP's tables. */
static void test_no_neighbours(void)
{
    uint8_t  packet[40 + 32];
    unsigned kind;
    world_begin(23);
    for (kind = 128; kind < 140; kind++) {
        uint32_t before = lwip_stats.icmp6.recv;
        memset(packet, 0, sizeof packet);
        packet[0] = 0x60;
        packet[5] = 32;
        packet[6] = 58;
        packet[7] = 255;
        memcpy(packet + 8, "\xfd\x7a\x11\x5c\xa1\xe0\0\0\0\0\0\0\0\0\0\2", 16);
        memcpy(packet + 24, "\xfd\x7a\x11\x5c\xa1\xe0\0\0\0\0\0\0\0\0\0\1", 16);
        packet[40] = (uint8_t)kind;
        CHECK(tailnet_lwip_overlay_input(&over[0], packet, sizeof packet) == TAILNET_OK);
        tailnet_lwip_overlay_turn(&over[0]);
        CHECK(lwip_stats.icmp6.recv == before + (kind < 130 || kind > 137 ? 1u : 0u));
    }
    world_end();
}
#endif

/* Rubbish from a peer goes through lwIP without harm, in pieces of a pool too. */
static void test_rubbish(void)
{
    uint8_t  packet[1500];
    unsigned round, i;
    world_begin(24);
    for (round = 0; round < 3000; round++) {
        size_t size = 1 + (size_t)(tn_test_random() % (round % 10 == 0 ? 1500 : 100));
        for (i = 0; i < size; i++) packet[i] = (uint8_t)tn_test_random();
        packet[0] = round % 2 == 0 ? 0x45 : 0x60;
        if (size > 30 && round % 4 == 0) memcpy(packet + 16, "\x64\x40\0\1", 4);
        if (size > 40 && round % 4 == 1)
            memcpy(packet + 24, "\xfd\x7a\x11\x5c\xa1\xe0\0\0\0\0\0\0\0\0\0\1", 16);
        (void)tailnet_lwip_overlay_input(&over[0], packet, size);
        tailnet_lwip_overlay_turn(&over[0]);
    }
    pass(100);
    world_end();
}

/* An object of zeros, a node that comes later, an address that changes under a connection. */
static void test_life(void)
{
    tailnet_lwip_overlay none;
    struct tcp_pcb      *listener;
    memset(&none, 0, sizeof none);
    tailnet_lwip_overlay_close(&none);
    world_begin(25);
    CHECK(tailnet_lwip_overlay_open(&none, NULL, NULL) == TAILNET_OK);
    tailnet_lwip_overlay_news(&none, 0xffffffffu);
    tailnet_lwip_overlay_turn(&none);
    CHECK(none.netif.mtu == 1280 && !netif_is_link_up(&none.netif));
    tailnet_lwip_overlay_close(&none);
    listener = connect_pair(0, "beta", 7, 100, 100);
    talks[0].keep_open = talks[1].keep_open = true;
    pass(2000);
    CHECK(talks[0].got == 100 && talks[1].got == 100);
#if LWIP_IPV4
    {
        ip4_addr_t ip, mask, gw;
        IP4_ADDR(&ip, 100, 64, 0, 77);
        IP4_ADDR(&mask, 255, 192, 0, 0);
        IP4_ADDR(&gw, 0, 0, 0, 0);
        netif_set_addr(&over[0].netif, &ip, &mask, &gw);
        CHECK(talks[0].pcb == NULL && talks[0].err == ERR_ABRT);
        tailnet_lwip_overlay_news(&over[0], TAILNET_EVENT_SELF);
        CHECK(ip4_addr_get_u32(netif_ip4_addr(&over[0].netif)) == PP_HTONL(0x64400001UL));
    }
#endif
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

int main(void)
{
    lwip_init();
    TEST(test_addresses);
    TEST(test_tcp_by_name);
    TEST(test_tcp_by_full_name);
#if LWIP_IPV4
    TEST(test_tcp_by_ip4);
    TEST(test_udp4);
    TEST(test_ping4);
#endif
#if LWIP_IPV6
    TEST(test_tcp_by_ip6);
    TEST(test_udp6);
    TEST(test_ping6);
    TEST(test_no_neighbours);
#endif
    TEST(test_tcp_by_send);
    TEST(test_loss);
    TEST(test_half_close);
    TEST(test_slow_reader);
    TEST(test_full_stream);
    TEST(test_send_refuses);
    TEST(test_no_memory);
    TEST(test_no_room_inward);
    TEST(test_many);
    TEST(test_resolve);
    TEST(test_listen_is_for_the_tailnet);
#if LWIP_IPV4 && !defined(TEST_NO_HOOKS)
    TEST(test_hook_input);
    TEST(test_hook_routes);
#endif
    TEST(test_rubbish);
    TEST(test_life);
    return tn_test_end();
}
