/* Two devices whose UDP, TCP and names go through lwIP to a control server, relays, STUN and
 * name servers, all behind interfaces of one stack, joined by a wire in memory that delays and
 * loses. What the servers say comes from tests/unit/node_world.h. */
#ifndef LWIP_WIRE_H
#define LWIP_WIRE_H

#define LWIP_WORLD_BRIDGE
#include "lwip_world.h"

enum { DEVICES = 2, SERVERS = 4, HOSTS = DEVICES + SERVERS, WIRE = 400, BRIDGES = 24 };
enum { CONTROL = DEVICES, RELAY1, RELAY2, NAMES };

static nw_world *world;

static uint64_t lwip_ms;                        /* before this world: lwIP goes on living */

/* ---- the wire ---- */

typedef struct on_wire {
    uint64_t at_ms;                             /* 0: free                            */
    uint16_t len;
    uint8_t  data[1600];
} on_wire;

typedef struct host {
    cable_end    end;
    struct netif netif;
    tailnet_addr ip4, ip6;
    bool         cut;                           /* nothing in, nothing out            */
} host;

static struct {
    on_wire  packet[WIRE];
    host     host[HOSTS];
    unsigned loss;                              /* one of so many is lost; 0: none    */
    bool     no_udp, no_ip4, no_ip6;            /* vanish between devices and servers */
    unsigned lost, full, bad_source;
} wire;

static host *wire_host(unsigned family, const uint8_t *ip)
{
    unsigned i;
    for (i = 0; i < HOSTS; i++) {
        const host         *h    = &wire.host[i];
        const tailnet_addr *addr = family == 4 ? &h->ip4 : &h->ip6;
        if (addr->family == family && memcmp(addr->ip, ip, family == 4 ? 4 : 16) == 0)
            return &wire.host[i];
    }
    return NULL;
}

static bool wire_takes(const host *from, const uint8_t *data, size_t len)
{
    bool     four  = data[0] >> 4 == 4;
    unsigned proto = four ? data[9] : data[6], kind = four ? data[20] : data[40];
    if (from->cut || len < 28) return false;
    if ((four && wire.no_ip4) || (!four && wire.no_ip6)) return false;
    if (proto == 17 && wire.no_udp && data[four ? 23 : 43] != 53 && data[four ? 21 : 41] != 53)
        return false;
    (void)kind;
    return wire.loss == 0 || nw_below(world, wire.loss) != 0;
}

static err_t wire_output(struct netif *n, struct pbuf *p)
{
    host    *from = (host *)n->state;
    on_wire *k    = wire.packet;
    uint8_t  data[1600];
    if (p->tot_len > sizeof data) return ERR_VAL;
    (void)pbuf_copy_partial(p, data, p->tot_len, 0);
    /* Whoever is bound to an interface speaks with its address: nothing leaks out of the tunnel. */
    if (data[0] >> 4 == 4 ? data[12] == 100 && data[13] == 64 : data[8] == 0xfd) wire.bad_source++;
    if (!wire_takes(from, data, p->tot_len)) {
        wire.lost++;
        return ERR_OK;
    }
    while (k < wire.packet + WIRE && k->at_ms != 0) k++;
    if (k == wire.packet + WIRE) {
        wire.full++;
        return ERR_OK;
    }
    k->at_ms = world->now_ms + 3 + nw_below(world, 3);
    k->len   = p->tot_len;
    memcpy(k->data, data, k->len);
    return ERR_OK;
}

static void host_place(host *h, const char *ip4, const char *ip6)
{
    memset(&h->ip4, 0, sizeof h->ip4);
    memset(&h->ip6, 0, sizeof h->ip6);
#if LWIP_IPV4
    if (ip4 != NULL) {
        ip4_addr_t ip, mask, gw;
        CHECK(tn_ip_parse(&h->ip4, ip4, strlen(ip4)) && ip4addr_aton(ip4, &ip));
        gw = ip;
        IP4_ADDR(&mask, 255, 255, 255, 0);
        if (h - wire.host >= DEVICES) IP4_ADDR(&mask, 255, 255, 255, 255);
        else ip4_addr_set_u32(&gw, (ip4_addr_get_u32(&ip) & ip4_addr_get_u32(&mask)) |
                                       PP_HTONL(1));
        netif_set_addr(&h->netif, &ip, &mask, &gw);
    } else netif_set_addr(&h->netif, IP4_ADDR_ANY4, IP4_ADDR_ANY4, IP4_ADDR_ANY4);
#endif
#if LWIP_IPV6
    netif_ip6_addr_set_state(&h->netif, 1, IP6_ADDR_INVALID);
    if (ip6 != NULL) {
        ip6_addr_t ip;
        CHECK(tn_ip_parse(&h->ip6, ip6, strlen(ip6)) && ip6addr_aton(ip6, &ip));
        netif_ip6_addr_set(&h->netif, 1, &ip);
        netif_ip6_addr_set_state(&h->netif, 1, IP6_ADDR_PREFERRED);
    }
#endif
    (void)ip4, (void)ip6;
}

static void host_add(unsigned i, const char *ip4, const char *ip6)
{
    host *h = &wire.host[i];
    memset(h, 0, sizeof *h);
    h->end.output = wire_output;
    CHECK(netif_add_noaddr(&h->netif, h, cable_setup, ip_input) != NULL);
    host_place(h, ip4, ip6);
    netif_set_up(&h->netif);
    netif_set_link_up(&h->netif);
}

static uint64_t woken[DEVICES];                 /* a packet came for this device      */

static bool wire_turn(void)
{
    on_wire *k;
    bool     some = false;
    for (k = wire.packet; k < wire.packet + WIRE; k++) {
        bool  four = k->data[0] >> 4 == 4;
        host *to;
        struct pbuf *p;
        if (k->at_ms == 0 || k->at_ms > world->now_ms) continue;
        k->at_ms = 0;
        to       = wire_host(four ? 4 : 6, k->data + (four ? 16 : 24));
        if (to == NULL || to->cut) continue;
        p = pbuf_alloc(PBUF_RAW, k->len, PBUF_POOL);
        if (p == NULL) continue;
        (void)pbuf_take(p, k->data, k->len);
        if (to->netif.input(p, &to->netif) != ERR_OK) pbuf_free(p);
        if (to < wire.host + DEVICES) woken[to - wire.host] = world->now_ms;
        some = true;
    }
    return some;
}

/* ---- the servers: TCP to the connections of the world ---- */

typedef struct bridge {
    struct tcp_pcb *pcb;
    struct pbuf    *held;
    nw_node        *shell;
    tailnet_link    link;
    bool            used, opened, ended;
} bridge;

static bridge   bridges[BRIDGES];
static unsigned bridge_number;
static nw_node *shells[DEVICES];

static bridge *bridge_of(tailnet_link link)
{
    unsigned i;
    for (i = 0; i < BRIDGES; i++)
        if (bridges[i].used && bridges[i].link == link) return &bridges[i];
    return NULL;
}

static void bridge_drop(bridge *b)
{
    struct tcp_pcb *pcb = b->pcb;
    if (b->held != NULL) {
        if (pcb != NULL) tcp_recved(pcb, b->held->tot_len);
        pbuf_free(b->held);
    }
    if (pcb != NULL) {
        tcp_arg(pcb, NULL);
        tcp_recv(pcb, NULL);
        tcp_err(pcb, NULL);
        if (tcp_close(pcb) != ERR_OK) tcp_abort(pcb);
    }
    memset(b, 0, sizeof *b);
}

static tailnet_result bridge_opened(tailnet_node *n, tailnet_link link)
{
    bridge *b = bridge_of(link);
    if (n != NULL) return tailnet_tcp_opened(n, link);
    if (b != NULL) b->opened = true;
    return TAILNET_OK;
}

/* The server has had enough. */
static tailnet_result bridge_closed(tailnet_node *n, tailnet_link link)
{
    bridge *b = bridge_of(link);
    if (n != NULL) return tailnet_tcp_closed(n, link);
    if (b != NULL) {
        nw_io_close(b->shell, link);
        bridge_drop(b);
    }
    return TAILNET_OK;
}

static tailnet_result bridge_writable(tailnet_node *n, tailnet_link link)
{
    return n != NULL ? tailnet_tcp_writable(n, link) : TAILNET_OK;
}

static tailnet_result bridge_commit(tailnet_node *n, tailnet_link link, size_t size)
{
    return n != NULL ? tailnet_tcp_commit(n, link, size) : TAILNET_OK;
}

static uint8_t *bridge_reserve(tailnet_node *n, tailnet_link link, size_t *room)
{
    if (n != NULL) return tailnet_tcp_reserve(n, link, room);
    *room = 0;
    return NULL;
}

static size_t bridge_input(tailnet_node *n, tailnet_link link, const void *data, size_t size)
{
    bridge *b = bridge_of(link);
    if (n != NULL) return tailnet_tcp_input(n, link, data, size);
    if (b == NULL || b->pcb == NULL) return size;
    if (size > tcp_sndbuf(b->pcb)) size = tcp_sndbuf(b->pcb);
    if (size == 0 || tcp_write(b->pcb, data, (u16_t)size, TCP_WRITE_FLAG_COPY) != ERR_OK) return 0;
    (void)tcp_output(b->pcb);
    return size;
}

static err_t bridge_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    bridge *b = (bridge *)arg;
    (void)pcb, (void)err;
    if (p == NULL) b->ended = true;
    else if (b->held != NULL) pbuf_cat(b->held, p);
    else b->held = p;
    return ERR_OK;
}

static void bridge_err(void *arg, err_t err)
{
    (void)err;
    ((bridge *)arg)->pcb   = NULL;
    ((bridge *)arg)->ended = true;
}

static err_t bridge_accept(void *arg, struct tcp_pcb *pcb, err_t err)
{
    const host  *at = (const host *)arg;
    bridge      *b  = bridges;
    tailnet_addr from;
    tailnet_dial dial;
    unsigned     i, slot = 0;
    char         name[16];
    if (err != ERR_OK || pcb == NULL) return ERR_VAL;
    tnl_addr_of(&from, &pcb->remote_ip, 0);
    for (i = 0; i < DEVICES; i++)
        if (wire_host(from.family, from.ip) == &wire.host[i]) break;
    while (b < bridges + BRIDGES && b->used) b++;
    if (i == DEVICES || b == bridges + BRIDGES) return ERR_VAL;
    while (slot < 8 && shells[i]->conns[slot] != NULL) slot++;
    if (slot == 8) return ERR_VAL;
    memset(b, 0, sizeof *b);
    memset(&dial, 0, sizeof dial);
    (void)snprintf(name, sizeof name, "relay%u.test", (unsigned)(at - wire.host - RELAY1 + 1));
    dial.host = at == &wire.host[CONTROL] ? "control.test" : name;
    b->link   = (tailnet_link)(++bridge_number << 8 | slot);
    b->shell  = shells[i];
    if (nw_io_open(b->shell, b->link, &dial) != 0) return ERR_VAL;
    b->used = true;
    b->pcb  = pcb;
    tcp_arg(pcb, b);
    tcp_recv(pcb, bridge_recv);
    tcp_err(pcb, bridge_err);
    tcp_nagle_disable(pcb);
    return ERR_OK;
}

static void bridge_turn(bridge *b)
{
    nw_conn *c = nw_conn_of(b->shell, b->link);
    if (c != NULL) c->blocked = false;
    while (b->opened && b->held != NULL && c != NULL) {
        int32_t n = nw_io_output(b->shell, b->link, b->held->payload, b->held->len);
        if (n == 0) break;
        if (n < 0) n = b->held->len;
        if (b->pcb != NULL) tcp_recved(b->pcb, (u16_t)n);
        b->held = pbuf_free_header(b->held, (u16_t)n);
    }
    if (!b->ended || b->held != NULL) return;
    if (c != NULL) nw_io_close(b->shell, b->link);
    bridge_drop(b);
}

static struct tcp_pcb *listeners[SERVERS];
static struct udp_pcb *udp_servers[SERVERS];

static void serve_tcp(unsigned at, uint16_t port)
{
    struct tcp_pcb *pcb = tcp_new_ip_type(IPADDR_TYPE_ANY);
    tcp_bind_netif(pcb, &wire.host[at].netif);
    CHECK(tcp_bind(pcb, IP_ANY_TYPE, (u16_t)(port + 1000 * (at - CONTROL))) == ERR_OK);
    pcb = tcp_listen(pcb);
    pcb->local_port = port;                     /* lwIP lets a port be bound only once */
    tcp_arg(pcb, &wire.host[at]);
    tcp_accept(pcb, bridge_accept);
    listeners[at - CONTROL] = pcb;
}

/* ---- names and STUN ---- */

static struct {
    bool     silent, none;                      /* no answer; "no such name"          */
    unsigned asked;
} names;

static unsigned names_server(const char *name, size_t len)
{
    if (len == 14 && memcmp(name, "\7control\4test\0", 14) == 0) return CONTROL;
    if (len == 13 && memcmp(name, "\6relay1\4test\0", 13) == 0) return RELAY1;
    if (len == 13 && memcmp(name, "\6relay2\4test\0", 13) == 0) return RELAY2;
    return 0;
}

static void names_recv(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *ip,
                       u16_t port)
{
    uint8_t  b[256];
    size_t   len = p->tot_len, end;
    unsigned at, kind;
    const tailnet_addr *addr;
    (void)arg;
    (void)pbuf_copy_partial(p, b, sizeof b, 0);
    pbuf_free(p);
    names.asked++;
    if (names.silent || len < 17 || len > 200) return;
    end  = len - 4;
    at   = names_server((const char *)b + 12, end - 12);
    kind = b[end + 1];
    addr = kind == 28 ? &wire.host[at].ip6 : &wire.host[at].ip4;
    b[2] = 0x81;
    b[3] = at == 0 || names.none || addr->family == 0 ? 0x83 : 0x80;
    if ((b[3] & 15) == 0) {
        uint8_t tail[12] = { 0xc0, 12, 0, (uint8_t)kind, 0, 1, 0, 0, 0, 5, 0, 4 };
        b[7] = 1;
        tail[11] = kind == 28 ? 16 : 4;
        memcpy(b + len, tail, 12);
        memcpy(b + len + 12, addr->ip, tail[11]);
        len += 12u + tail[11];
    }
    p = pbuf_alloc(PBUF_TRANSPORT, (u16_t)len, PBUF_RAM);
    (void)pbuf_take(p, b, (u16_t)len);
    (void)udp_sendto(pcb, p, ip, port);
    pbuf_free(p);
}

static void stun_recv(void *arg, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *ip,
                      u16_t port)
{
    uint8_t      b[256], id[12], text[64];
    size_t       len = p->tot_len;
    tailnet_addr from;
    tn_wr        t;
    (void)arg;
    (void)pbuf_copy_partial(p, b, sizeof b, 0);
    pbuf_free(p);
    if (len > sizeof b || !tn_stun_parse_request(b, len, id)) return;
    tnl_addr_of(&from, ip, port);
    tn_wr_over(&t, text, sizeof text);
    tn_stun_wr_response(&t, id, &from);
    p = pbuf_alloc(PBUF_TRANSPORT, (u16_t)tn_wr_len(&t), PBUF_RAM);
    (void)pbuf_take(p, text, (u16_t)tn_wr_len(&t));
    (void)udp_sendto(pcb, p, ip, port);
    pbuf_free(p);
}

static void serve_udp(unsigned at, uint16_t port, udp_recv_fn recv)
{
    struct udp_pcb *pcb = udp_new_ip_type(IPADDR_TYPE_ANY);
    udp_bind_netif(pcb, &wire.host[at].netif);
    CHECK(udp_bind(pcb, IP_ANY_TYPE, (u16_t)(port + 1000 * (at - CONTROL))) == ERR_OK);
    pcb->local_port = port;
    udp_recv(pcb, recv, NULL);
    udp_servers[at - CONTROL] = pcb;
}

/* ---- the devices ---- */

typedef struct device {
    tailnet_lwip         t;
    tailnet_desc         desc;
    tailnet_lwip_options options;
    uint64_t             seed, due_ms;
    uint32_t             events;
    unsigned             polls;
    uint8_t              flash[2][TAILNET_LWIP_RECORD];
    unsigned             flash_writes;
    bool                 flash_fails;
    union {
        uint8_t  bytes[NW_MEMORY];
        uint64_t align_number;
        void    *align_pointer;
    } memory;
} device;

static device devices[DEVICES];
static talk   talks[4];

static int device_random(void *user, void *dst, size_t size)
{
    nw_fill(&((device *)((tailnet_lwip *)user)->opt.user)->seed, dst, size);
    return 0;
}

static uint64_t device_unix_ms(void *user)
{
    (void)user;
    return NW_UNIX_MS + world->now_ms;
}

static int device_flash_read(void *user, unsigned place, uint32_t offset, void *dst, size_t size)
{
    memcpy(dst, ((device *)user)->flash[place] + offset, size);
    return 0;
}

static int device_flash_write(void *user, unsigned place, const void *record, size_t size)
{
    device *d = (device *)user;
    d->flash_writes++;
    memset(d->flash[place], 0xff, TAILNET_LWIP_RECORD);
    if (d->flash_fails) return -1;
    memcpy(d->flash[place], record, size);
    return 0;
}

static void device_news(void *user, tailnet_lwip *t, uint32_t events)
{
    CHECK(t == &((device *)user)->t);
    ((device *)user)->events |= events;
}

static tailnet_result device_open(unsigned i)
{
    device      *d = &devices[i];
    tailnet_desc *s = &d->desc;
    memset(s, 0, sizeof *s);
    memset(&d->options, 0, sizeof d->options);
    memset(&d->memory, 0xa5, sizeof d->memory);
    memset(&d->t, 0xa5, sizeof d->t);
    d->seed++;
    s->memory        = d->memory.bytes;
    s->memory_size   = sizeof d->memory.bytes;
    s->io.random     = device_random;
    s->io.unix_ms    = device_unix_ms;
    s->control_url   = "http://control.test";
    s->auth_key      = "key-1";
    s->tls_by_caller = true;
    s->prefs.hostname = i == 0 ? "alpha" : "beta";
    d->options.user        = d;
    d->options.below       = &wire.host[i].netif;
    d->options.flash_read  = device_flash_read;
    d->options.flash_write = device_flash_write;
    d->options.on_news     = device_news;
    d->due_ms              = world->now_ms;
    return tailnet_lwip_open(&d->t, s, &d->options);
}

/* Polls when it is due by tailnet_lwip_wait_ms, or when a packet came: no sooner. */
static void device_turn(unsigned i)
{
    device  *d     = &devices[i];
    unsigned spins = 0;
    if (d->t.node == NULL) return;
    if (woken[i] != world->now_ms && d->due_ms > world->now_ms) {
        d->due_ms = tn_min64(d->due_ms, world->now_ms + tailnet_lwip_wait_ms(&d->t, 60000));
        if (d->due_ms > world->now_ms) return;
    }
    do {
        (void)tailnet_lwip_poll(&d->t);
        d->polls++;
        if (++spins > 300) nw_wrong(world, "tailnet_lwip_wait_ms says 0 again and again");
    } while (tailnet_lwip_wait_ms(&d->t, 1) == 0 && sys_timeouts_sleeptime() != 0 && spins < 310);
    d->due_ms = world->now_ms + tailnet_lwip_wait_ms(&d->t, 60000);
}

static void turn(void)
{
    unsigned i;
    nw_run(world, 1);
    sys_check_timeouts();
    (void)wire_turn();
    for (i = 0; i < BRIDGES; i++)
        if (bridges[i].used) bridge_turn(&bridges[i]);
    for (i = 0; i < sizeof talks / sizeof talks[0]; i++) talk_turn(&talks[i], world->now_ms);
    for (i = 0; i < DEVICES; i++) device_turn(i);
}

static void pass(uint64_t ms)
{
    uint64_t end = world->now_ms + ms;
    while (world->now_ms < end) turn();
}

static tailnet_state device_state(unsigned i) { return tailnet_get_state(devices[i].t.node); }

static bool until_running(unsigned i, uint64_t ms)
{
    uint64_t end = world->now_ms + ms;
    while (device_state(i) != TAILNET_STATE_RUNNING && world->now_ms < end) turn();
    return device_state(i) == TAILNET_STATE_RUNNING;
}

static in_use at_first;

static void world_begin(uint64_t seed)
{
    ip_addr_t server;
    unsigned  i;
    world = nw_begin(seed);
    memset(&wire, 0, sizeof wire);
    memset(&names, 0, sizeof names);
    memset(bridges, 0, sizeof bridges);
    memset(talks, 0, sizeof talks);
    memset(devices, 0, sizeof devices);
    memset(woken, 0, sizeof woken);
    memset(shells, 0, sizeof shells);
    while (tcp_tw_pcbs != NULL || tcp_active_pcbs != NULL) {
        world->now_ms += 250;
        sys_check_timeouts();
    }
    in_use_now(&at_first);
    host_add(0, "10.1.0.2", "2001:db8:a::2");
    host_add(1, "10.2.0.2", "2001:db8:b::2");
    host_add(CONTROL, "192.0.2.100", "2001:db8:1::100");
    host_add(RELAY1, "192.0.2.1", "2001:db8:1::1");
    host_add(RELAY2, "192.0.2.2", "2001:db8:1::2");
    host_add(NAMES, "192.0.2.53", "2001:db8:1::53");
    netif_set_default(&wire.host[0].netif);
    serve_tcp(CONTROL, 80);
    serve_tcp(RELAY1, 443);
    serve_tcp(RELAY2, 443);
    serve_udp(RELAY1, 3478, stun_recv);
    serve_udp(RELAY2, 3478, stun_recv);
    serve_udp(NAMES, 53, names_recv);
    CHECK(ipaddr_aton(LWIP_IPV4 ? "192.0.2.53" : "2001:db8:1::53", &server));
    dns_setserver(0, &server);
    for (i = 0; i < DEVICES; i++) {
        shells[i]       = nw_add(world, i == 0 ? "alpha" : "beta");
        devices[i].seed = seed * 100 + i;
        memset(devices[i].flash, 0xff, sizeof devices[i].flash);
    }
}

static void up(unsigned i)
{
    CHECK(device_open(i) == TAILNET_OK);
    if (devices[i].t.node == NULL) printf("%s\n", devices[i].t.error);
    if (devices[i].t.node != NULL) CHECK(tailnet_up(devices[i].t.node) == TAILNET_OK);
}

/* Both devices run and know each other. */
static void world_join(uint64_t seed)
{
    unsigned i;
    world_begin(seed);
    for (i = 0; i < DEVICES; i++) {
        up(i);
        CHECK(until_running(i, 20000));
    }
    pass(3000);
}

static void world_end(void)
{
    unsigned i;
    for (i = 0; i < sizeof talks / sizeof talks[0]; i++) {
        if (talks[i].held != NULL) pbuf_free(talks[i].held);
        if (talks[i].pcb != NULL) tcp_abort(talks[i].pcb);
        talks[i].held = NULL;
        talks[i].pcb  = NULL;
    }
    for (i = 0; i < DEVICES; i++) {
        if (devices[i].t.node != NULL) CHECK(devices[i].t.node->rim.refused == 0);
        tailnet_lwip_close(&devices[i].t);
        tailnet_lwip_close(&devices[i].t);
    }
    CHECK(wire.bad_source == 0);
    names.silent = false;
    wire.loss    = 0;
    for (i = 0; i < 30000 && (tcp_active_pcbs != NULL || tcp_tw_pcbs != NULL); i++) {
        if (tcp_active_pcbs == NULL) world->now_ms += 250;
        turn();
    }
    pass(10000);                                /* look-ups that nobody waits for      */
    for (i = 0; i < BRIDGES; i++)
        if (bridges[i].used) bridge_drop(&bridges[i]);
    for (i = 0; i < SERVERS; i++) {
        if (listeners[i] != NULL) CHECK(tcp_close(listeners[i]) == ERR_OK);
        if (udp_servers[i] != NULL) udp_remove(udp_servers[i]);
        listeners[i]   = NULL;
        udp_servers[i] = NULL;
    }
    for (i = 0; i < HOSTS; i++) netif_remove(&wire.host[i].netif);
    CHECK(in_use_same(&at_first));
    lwip_ms += world->now_ms;
    nw_end(world);
    world = NULL;
}

static struct tcp_pcb *connect_pair(const char *who, uint32_t there, uint32_t back)
{
    struct tcp_pcb *listener = NULL, *pcb = NULL;
    memset(talks, 0, sizeof talks);
    talks[0].to_send = there;
    talks[1].to_send = back;
    talks[1].key     = 1;
    CHECK(tailnet_lwip_listen(&devices[1].t.overlay, 7, talk_accept, &talks[1], &listener) ==
          TAILNET_OK);
    CHECK(tailnet_lwip_dial(&devices[0].t.overlay, who, 7, talk_connected, &talks[0], &pcb) ==
          TAILNET_OK);
    if (pcb != NULL) talk_own(&talks[0], pcb);
    return listener;
}

static bool run_until_closed(uint64_t ms)
{
    uint64_t end = world->now_ms + ms;
    while (!(talks[0].closed && talks[1].closed) && world->now_ms < end) turn();
    if (!talks[0].closed || !talks[1].closed)
        printf("sent %u of %u, got %u, err %d; sent %u of %u, got %u, err %d\n",
               (unsigned)talks[0].sent, (unsigned)talks[0].to_send, (unsigned)talks[0].got,
               talks[0].err, (unsigned)talks[1].sent, (unsigned)talks[1].to_send,
               (unsigned)talks[1].got, talks[1].err);
    return talks[0].closed && talks[1].closed && !talks[0].wrong && !talks[1].wrong &&
           talks[0].got == talks[1].to_send && talks[1].got == talks[0].to_send;
}

static tailnet_path path_now(void)
{
    tailnet_peer peer;
    size_t       index = 0;
    memset(&peer, 0, sizeof peer);
    CHECK(tailnet_find_peer(devices[0].t.node, "beta", &index));
    CHECK(tailnet_get_peer(devices[0].t.node, index, &peer));
    return peer.path;
}

#endif
