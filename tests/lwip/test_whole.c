/* The whole platform without an OS: two devices that join, talk to each other, lose their
 * network, their memory, their names, and come back; in virtual time. */
#include "lwip_wire.h"

u32_t sys_now(void) { return (u32_t)(lwip_ms + (world == NULL ? 0 : world->now_ms)); }

/* ---- tests ---- */

static void test_join(void)
{
    tailnet_self self;
    world_join(1);
    CHECK(names.asked > 0);
    CHECK(devices[0].flash_writes > 0 && devices[0].t.store.writes == devices[0].flash_writes);
    CHECK((devices[0].events & TAILNET_EVENT_SELF) != 0 && devices[0].t.error == NULL);
    CHECK(tailnet_get_self(devices[0].t.node, &self) && self.control_up);
    CHECK(netif_is_link_up(&devices[0].t.overlay.netif));
    world_end();
}

static void test_direct(void)
{
    struct tcp_pcb *listener;
    world_join(2);
    listener = connect_pair("beta", 150000, 100000);
    CHECK(run_until_closed(60000));
    CHECK(path_now() == TAILNET_PATH_DIRECT);
    CHECK(wire.full == 0);
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

static void test_by_relay(void)
{
    struct tcp_pcb *listener;
    world_begin(3);
    wire.no_udp = true;
    up(0);
    up(1);
    CHECK(until_running(0, 20000) && until_running(1, 20000));
    pass(3000);
    listener = connect_pair("beta", 60000, 60000);
    CHECK(run_until_closed(60000));
    CHECK(path_now() == TAILNET_PATH_RELAY);
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

static void test_loss(void)
{
    struct tcp_pcb *listener;
    world_begin(4);
    wire.loss = 12;
    up(0);
    up(1);
    CHECK(until_running(0, 60000) && until_running(1, 60000));
    pass(5000);
    listener = connect_pair("beta", 40000, 40000);
    CHECK(run_until_closed(300000));
    CHECK(wire.lost > 5);
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* After a reboot the same device, from flash; without flash another one. */
static void test_reboot(void)
{
    tailnet_self before, after;
    unsigned     writes;
    world_join(5);
    CHECK(tailnet_get_self(devices[0].t.node, &before));
    tailnet_lwip_close(&devices[0].t);
    writes = devices[0].flash_writes;
    pass(1000);
    up(0);
    CHECK(until_running(0, 20000));
    CHECK(tailnet_get_self(devices[0].t.node, &after));
    CHECK(before.id == after.id && memcmp(before.key, after.key, 32) == 0);
    CHECK(devices[0].flash_writes <= writes + 2);
    world_end();
}

static void test_damaged_flash(void)
{
    world_join(6);
    tailnet_lwip_close(&devices[0].t);
    memset(devices[0].flash, 0x5a, sizeof devices[0].flash);
    up(0);                                      /* both places damaged: a new device   */
    CHECK(until_running(0, 20000));
    tailnet_lwip_close(&devices[0].t);
    CHECK(devices[0].t.error == NULL);
    memset(devices[0].flash, 0x5a, sizeof devices[0].flash);
    devices[0].flash_fails = true;
    up(0);
    CHECK(until_running(0, 20000));
    pass(25000);
    CHECK(devices[0].t.error != NULL && devices[0].t.unsaved);
    devices[0].flash_fails = false;
    pass(11000);
    CHECK(devices[0].t.error == NULL && !devices[0].t.unsaved);
    world_end();
}

#if LWIP_IPV4
/* Another address, as after a walk to another network: connections in the tailnet go on. */
static void test_another_network(void)
{
    struct tcp_pcb *listener;
    world_join(7);
    listener = connect_pair("beta", 3000, 3000);
    talks[0].keep_open = talks[1].keep_open = true;
    pass(4000);
    CHECK(talks[1].got == 3000 && talks[0].got == 3000);
    host_place(&wire.host[0], "10.7.0.9", NULL);
    pass(8000);
    talks[0].to_send += 30000;
    talks[1].to_send += 30000;
    talks[0].keep_open = talks[1].keep_open = false;
    CHECK(run_until_closed(60000));
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* No cable for a while. */
static void test_link_down(void)
{
    struct tcp_pcb *listener;
    world_join(8);
    netif_set_link_down(&wire.host[0].netif);
    pass(5000);
    netif_set_link_up(&wire.host[0].netif);
    pass(10000);
    listener = connect_pair("beta", 3000, 3000);
    CHECK(run_until_closed(60000));
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}
#endif

#if LWIP_IPV4 && LWIP_IPV6
/* IPv4 leads nowhere although there is an address: IPv6 is tried two seconds later. */
static void test_other_family(void)
{
    uint64_t begin;
    world_begin(9);
    wire.no_ip4 = true;
    {
        ip_addr_t server;
        CHECK(ipaddr_aton("2001:db8:1::53", &server));
        dns_setserver(0, &server);
    }
    begin = world->now_ms;
    up(0);
    CHECK(until_running(0, 30000));
    CHECK(world->now_ms - begin > 2000 && world->now_ms - begin < 12000);
    world_end();
}
#endif

/* The name server is silent at first, then knows nobody, then is well. */
static void test_names_trouble(void)
{
    world_begin(10);
    names.silent = true;
    up(0);
    pass(15000);
    CHECK(names.asked > 1 && device_state(0) == TAILNET_STATE_CONNECTING);
    names.silent = false;
    names.none   = true;
    pass(15000);
    CHECK(device_state(0) == TAILNET_STATE_CONNECTING);
    names.none = false;
    CHECK(until_running(0, 90000));
    world_end();
}

/* Everything is routed into the tunnel, as with an exit node: what carries the tunnel stays
 * outside, the look-ups too. */
static void test_exit_node(void)
{
    tailnet_lwip_overlay *o = &devices[0].t.overlay;
    unsigned              dials, asked;
    world_join(16);
    memset(o->route, 0, sizeof o->route);
    o->route[0].family = 4;
    o->route[1].family = 6;
    o->route_count     = 2;
    dials = world->dials;
    asked = names.asked;
    nw_cut(shells[0], 0);
    nw_cut(shells[0], 1);
    nw_cut(shells[0], 2);
    pass(20000);                                /* names of lwIP's memory are old by now */
    nw_cut(shells[0], 0);
    pass(20000);
    CHECK(world->dials >= dials + 2 && names.asked > asked);
    CHECK(nw_conn_to(shells[0], 0) != NULL);
    world_end();
}

/* No address at first, as before DHCP. */
static void test_address_comes_later(void)
{
    world_begin(11);
    host_place(&wire.host[0], NULL, NULL);
    up(0);
    pass(5000);
    CHECK(device_state(0) == TAILNET_STATE_CONNECTING);
    host_place(&wire.host[0], "10.1.0.2", "2001:db8:a::2");
    CHECK(until_running(0, 30000));
    world_end();
}

/* The servers close or vanish: connected again. */
static void test_connections_break(void)
{
    unsigned dials;
    world_join(12);
    dials = world->dials;
    nw_cut(shells[0], 0);
    pass(10000);
    CHECK(world->dials == dials + 1);
    wire.host[CONTROL].cut = true;
    pass(200000);
    wire.host[CONTROL].cut = false;
    pass(90000);
    CHECK(world->dials > dials + 1 && device_state(0) == TAILNET_STATE_RUNNING);
    CHECK(nw_conn_to(shells[0], 0) != NULL);
    world_end();
}

/* lwIP has no memory, then no pcbs: the node tries again later. */
static void test_no_memory(void)
{
    struct tcp_pcb *pcbs[MEMP_NUM_TCP_PCB];
    struct tcp_pcb *listener;
    void           *hog[3000];
    unsigned        count = 0, size, k = 0;
    world_begin(13);
    while (k < MEMP_NUM_TCP_PCB && (pcbs[k] = tcp_new()) != NULL) k++;
    CHECK(k == MEMP_NUM_TCP_PCB);
    up(0);
    pass(3000);
    CHECK(device_state(0) == TAILNET_STATE_CONNECTING);
    while (k > 0) tcp_abort(pcbs[--k]);
    CHECK(until_running(0, 60000));
    up(1);
    CHECK(until_running(1, 20000));
    pass(2000);
    listener = connect_pair("beta", 300000, 200000);
    pass(300);
    for (size = 4000; size >= 30; size /= 2)
        while (count < 3000 && (hog[count] = mem_malloc((mem_size_t)size)) != NULL) count++;
    CHECK(count < 3000);
    pass(2000);
    CHECK(devices[0].t.udp_dropped + devices[1].t.udp_dropped + devices[0].t.overlay.held +
          devices[1].t.overlay.held > 0);
    while (count > 0) mem_free(hog[--count]);
    CHECK(run_until_closed(120000));
    if (listener != NULL) CHECK(tcp_close(listener) == ERR_OK);
    world_end();
}

/* An idle hour: nobody spins, nothing grows. */
static void test_idle_hour(void)
{
    unsigned polls;
    in_use   before;
    world_join(14);
    pass(200000);
    in_use_now(&before);
    polls = devices[0].polls;
    pass(1800000);
    CHECK(in_use_same(&before));
    CHECK(devices[0].polls - polls < 40000);    /* lwIP's own timers: a quarter second at worst */
    CHECK(device_state(0) == TAILNET_STATE_RUNNING);
    world_end();
}

static void test_arguments(void)
{
    device *d = &devices[0];
    world_begin(15);
    CHECK(device_open(0) == TAILNET_OK);
    tailnet_lwip_close(&d->t);
    d->desc.max_links = TAILNET_LWIP_LINKS + 1;
    CHECK(tailnet_lwip_open(&d->t, &d->desc, &d->options) == TAILNET_ERR_ARGUMENT);
    CHECK(d->t.error != NULL);
    d->desc.max_links = 0;
    d->desc.io.random = NULL;
    CHECK(tailnet_lwip_open(&d->t, &d->desc, &d->options) == TAILNET_ERR_ARGUMENT);
    d->desc.io.random   = device_random;
    d->desc.memory_size = 1000;
    CHECK(tailnet_lwip_open(&d->t, &d->desc, &d->options) == TAILNET_ERR_MEMORY);
    CHECK(d->t.node == NULL && tailnet_lwip_poll(&d->t) == 0);
    CHECK(tailnet_lwip_wait_ms(&d->t, 77) == 77);
    world_end();
}

/* Closed in the middle of everything: look-ups and connections on their way. */
static void test_close_any_time(void)
{
    unsigned ms;
    for (ms = 0; ms < 60; ms += 3) {
        world_begin(100 + ms);
        up(0);
        pass(ms);
        tailnet_lwip_close(&devices[0].t);
        pass(20);
        up(0);
        CHECK(until_running(0, 30000));
        world_end();
    }
}

int main(void)
{
    lwip_init();
    TEST(test_join);
    TEST(test_direct);
    TEST(test_by_relay);
    TEST(test_loss);
    TEST(test_reboot);
    TEST(test_damaged_flash);
#if LWIP_IPV4
    TEST(test_another_network);
    TEST(test_link_down);
#endif
#if LWIP_IPV4 && LWIP_IPV6
    TEST(test_other_family);
#endif
    TEST(test_names_trouble);
    TEST(test_exit_node);
    TEST(test_address_comes_later);
    TEST(test_connections_break);
    TEST(test_no_memory);
    TEST(test_idle_hour);
    TEST(test_arguments);
    TEST(test_close_any_time);
    return tn_test_end();
}
