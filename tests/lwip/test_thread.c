/* The whole platform with an OS: lwIP's tcpip thread turns two devices by itself, applications in
 * threads of their own use sockets on the tailnet addresses. In real time. */
#include <pthread.h>
#include <time.h>

#include "lwip_wire.h"

#include "lwip/netdb.h"
#include "lwip/sockets.h"
#include "lwip/tcpip.h"

enum { TICK_MS = 2, CLIENTS = 3, BYTES = 60000, CHUNK = 2000, PORT = 7 };

static uint32_t began_ms;

/* The world beside the devices goes on with the clock of the machine. */
static void tick(void *arg)
{
    uint64_t now = 1000 + (uint32_t)(sys_now() - began_ms);
    unsigned i;
    (void)arg;
    if (now > world->now_ms) nw_run(world, now - world->now_ms);
    (void)wire_turn();
    for (i = 0; i < BRIDGES; i++)
        if (bridges[i].used) bridge_turn(&bridges[i]);
    sys_timeout(TICK_MS, tick, NULL);
}

static void rest(unsigned ms)
{
    struct timespec ts;
    ts.tv_sec  = ms / 1000;
    ts.tv_nsec = (long)(ms % 1000) * 1000000;
    (void)nanosleep(&ts, NULL);
}

static bool wait_for(tailnet_state state, unsigned ms)
{
    unsigned i, ready = 0;
    for (; ms > 0 && ready < DEVICES; ms = ms > 10 ? ms - 10 : 0) {
        rest(10);
        LOCK_TCPIP_CORE();
        for (ready = i = 0; i < DEVICES; i++)
            if (device_state(i) == state) ready++;
        UNLOCK_TCPIP_CORE();
    }
    return ready == DEVICES;
}

/* A socket that speaks through one device's interface: both are in this one stack. */
static int socket_on(unsigned i, int family, int type)
{
    struct netif *n = &devices[i].t.overlay.netif;
    struct ifreq  name;
    int           s = lwip_socket(family, type, 0);
    memset(&name, 0, sizeof name);
    name.ifr_name[0] = n->name[0];
    name.ifr_name[1] = n->name[1];
    name.ifr_name[2] = (char)('0' + n->num);
    CHECK(s >= 0 && lwip_setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, &name, sizeof name) == 0);
    return s;
}

static bool send_all(int s, const uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t n = lwip_send(s, data, size, 0);
        if (n <= 0) return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

static bool recv_all(int s, uint8_t *data, size_t size)
{
    while (size > 0) {
        ssize_t n = lwip_recv(s, data, size, 0);
        if (n <= 0) return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

/* One connection: what comes goes back. */
static void *echo(void *arg)
{
    int     s = (int)(intptr_t)arg;
    uint8_t data[CHUNK];
    ssize_t n;
    while ((n = lwip_recv(s, data, sizeof data, 0)) > 0)
        if (!send_all(s, data, (size_t)n)) break;
    (void)lwip_close(s);
    return NULL;
}

static void *serve(void *arg)
{
    struct sockaddr_storage from;
    socklen_t size = sizeof from;
    pthread_t threads[CLIENTS];
    unsigned  i;
    for (i = 0; i < CLIENTS; i++) {
        int s = lwip_accept((int)(intptr_t)arg, (struct sockaddr *)&from, &size);
        if (s < 0 || pthread_create(&threads[i], NULL, echo, (void *)(intptr_t)s) != 0) break;
    }
    while (i > 0) (void)pthread_join(threads[--i], NULL);
    return NULL;
}

typedef struct client {
    struct sockaddr_storage to;
    socklen_t to_size;
    int       number, family;
    bool      good;
} client;

static void *talk_to(void *arg)
{
    client  *c = (client *)arg;
    uint8_t  there[CHUNK], back[CHUNK];
    unsigned at, i;
    int      s = socket_on(0, c->family, SOCK_STREAM);
    if (lwip_connect(s, (struct sockaddr *)&c->to, c->to_size) != 0) return NULL;
    for (at = 0; at < BYTES; at += CHUNK) {
        for (i = 0; i < CHUNK; i++) there[i] = talk_byte((uint8_t)c->number, at + i);
        if (!send_all(s, there, CHUNK) || !recv_all(s, back, CHUNK)) break;
        if (memcmp(there, back, CHUNK) != 0) break;
    }
    c->good = at >= BYTES;
    (void)lwip_close(s);
    return NULL;
}

/* The peer's address by name, as any application asks for it. */
static bool look_up(client *c, int family)
{
    struct addrinfo hint, *list = NULL;
    memset(&hint, 0, sizeof hint);
    hint.ai_family   = family;
    hint.ai_socktype = SOCK_STREAM;
    if (lwip_getaddrinfo("beta", "7", &hint, &list) != 0 || list == NULL) return false;
    c->family  = list->ai_family;
    c->to_size = list->ai_addrlen;
    memcpy(&c->to, list->ai_addr, list->ai_addrlen);
    lwip_freeaddrinfo(list);
    return true;
}

static int listen_on(unsigned i)
{
    int s;
#if LWIP_IPV6
    struct sockaddr_in6 any;
    memset(&any, 0, sizeof any);
    any.sin6_family = AF_INET6;
    any.sin6_port   = lwip_htons(PORT);
    s = socket_on(i, AF_INET6, SOCK_STREAM);
#else
    struct sockaddr_in any;
    memset(&any, 0, sizeof any);
    any.sin_family = AF_INET;
    any.sin_port   = lwip_htons(PORT);
    s = socket_on(i, AF_INET, SOCK_STREAM);
#endif
    CHECK(lwip_bind(s, (struct sockaddr *)&any, sizeof any) == 0);
    CHECK(lwip_listen(s, 4) == 0);
    return s;
}

static void begin(void)
{
    unsigned i;
    LOCK_TCPIP_CORE();
    began_ms = sys_now();
    world_begin(1);
    world->latency_ms = 0;
    for (i = 0; i < DEVICES; i++) {
        up(i);
        CHECK(tailnet_lwip_start(&devices[i].t) == TAILNET_OK);
        CHECK(tailnet_lwip_start(&devices[i].t) == TAILNET_OK);
    }
    sys_timeout(TICK_MS, tick, NULL);
    UNLOCK_TCPIP_CORE();
}

/* Stopped, started again, closed while letters are on their way. */
static void end(void)
{
    unsigned i;
    LOCK_TCPIP_CORE();
    for (i = 0; i < DEVICES; i++) {
        CHECK(devices[i].t.node->rim.refused == 0);
        tailnet_lwip_stop(&devices[i].t);
        tailnet_lwip_stop(&devices[i].t);
        CHECK(tailnet_lwip_start(&devices[i].t) == TAILNET_OK);
        tailnet_lwip_close(&devices[i].t);
        CHECK(devices[i].t.node == NULL);
    }
    UNLOCK_TCPIP_CORE();
    rest(300);
    LOCK_TCPIP_CORE();
    for (i = 0; i < DEVICES; i++) CHECK(devices[i].t.message == NULL);
    CHECK(lwip_stats.memp[MEMP_TCPIP_MSG_API]->used == 0);
    CHECK(wire.bad_source == 0);
    sys_untimeout(tick, NULL);
    UNLOCK_TCPIP_CORE();
}

static void test_sockets(void)
{
    client    clients[CLIENTS];
    pthread_t threads[CLIENTS], server;
    int       listener;
    unsigned  i;
    begin();
    CHECK(wait_for(TAILNET_STATE_RUNNING, 20000));
    rest(500);
    listener = listen_on(1);
    CHECK(pthread_create(&server, NULL, serve, (void *)(intptr_t)listener) == 0);
    memset(clients, 0, sizeof clients);
    for (i = 0; i < CLIENTS; i++) {
        clients[i].number = (int)i;
        CHECK(look_up(&clients[i], i == 1 && LWIP_IPV6 ? AF_INET6 : AF_UNSPEC));
        CHECK(pthread_create(&threads[i], NULL, talk_to, &clients[i]) == 0);
    }
    for (i = 0; i < CLIENTS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(clients[i].good);
    }
    CHECK(pthread_join(server, NULL) == 0);
    (void)lwip_close(listener);
    end();
}

static void ready(void *arg) { sys_sem_signal((sys_sem_t *)arg); }

int main(void)
{
    sys_sem_t sem;
    CHECK(sys_sem_new(&sem, 0) == ERR_OK);
    tcpip_init(ready, &sem);
    sys_sem_wait(&sem);
    sys_sem_free(&sem);
    TEST(test_sockets);
    return tn_test_end();
}
