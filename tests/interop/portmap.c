/* portmap GATEWAY OWN PORT pcp|pmp|upnp: holds a port mapping of the gateway by one of
 * the three protocols and says what happens. Lines on stdin:
 *
 *     skip SECONDS   the machine's clock jumps, so that renewals come
 *     network PORT   the socket moves to another port
 *     release        gives the mapping back; then the program ends
 *
 * The other two protocols are made silent: their questions are not sent. */
#define _GNU_SOURCE
#define TAILNET_PORTMAP 1
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct {
    tn_pmp       p;
    tailnet_addr gateway, own;
    const char  *way;
    int          udp, tcp;              /* -1: none                                   */
    uint64_t     skipped_ms;
    tn_pmp_state state;
} m;

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u + m.skipped_ms;
}

static struct sockaddr_in to_posix(const tailnet_addr *a)
{
    struct sockaddr_in s;
    memset(&s, 0, sizeof s);
    s.sin_family = AF_INET;
    s.sin_port   = htons(a->port);
    memcpy(&s.sin_addr, a->ip, 4);
    return s;
}

static void die(const char *what)
{
    perror(what);
    exit(2);
}

static void open_udp(void)
{
    struct sockaddr_in s = to_posix(&m.own);
    if (m.udp >= 0) close(m.udp);
    m.udp = socket(AF_INET, SOCK_DGRAM, 0);
    if (m.udp < 0 || bind(m.udp, (struct sockaddr *)&s, sizeof s) != 0) die("udp");
}

/* Is this question part of the protocol to be shown? */
static bool allowed(const uint8_t *data, const tailnet_addr *to)
{
    const char *way = to->port == TN_PMP_SSDP_PORT ? "upnp" : data[0] == 2 ? "pcp" : "pmp";
    return strcmp(way, m.way) == 0;
}

/* A whole request by TCP. What comes back is read in the loop. */
static void open_tcp(const tailnet_addr *to)
{
    struct sockaddr_in s = to_posix(to);
    uint8_t            text[2048];
    tn_wr              out;
    tn_wr_over(&out, text, sizeof text);
    tn_pmp_http_request(&m.p, &out);
    m.tcp = socket(AF_INET, SOCK_STREAM, 0);
    if (tn_wr_ok(&out) && m.tcp >= 0 && connect(m.tcp, (struct sockaddr *)&s, sizeof s) == 0 &&
        write(m.tcp, text, tn_wr_len(&out)) == (ssize_t)tn_wr_len(&out))
        return;
    tn_pmp_http_end(&m.p, now_ms());
}

static void close_tcp(void)
{
    if (m.tcp >= 0) close(m.tcp);
    m.tcp = -1;
}

static void read_tcp(void)
{
    uint8_t data[100];
    ssize_t n = read(m.tcp, data, sizeof data);
    if (n > 0 && !tn_pmp_http_input(&m.p, data, (size_t)n, now_ms())) return;
    if (n <= 0) tn_pmp_http_end(&m.p, now_ms());
    close_tcp();
}

static void read_udp(void)
{
    uint8_t            data[2048];
    struct sockaddr_in s;
    socklen_t          len = sizeof s;
    tailnet_addr       from;
    ssize_t n = recvfrom(m.udp, data, sizeof data - 1, 0, (struct sockaddr *)&s, &len);
    if (n < 0) return;
    memset(&from, 0, sizeof from);
    from.family = 4;
    from.port   = ntohs(s.sin_port);
    memcpy(from.ip, &s.sin_addr, 4);
    if (tn_pmp_input(&m.p, data, (size_t)n, &from, now_ms())) return;
    data[n] = '\0';
    printf("got %s\n", (char *)data);
}

static void turn(void)
{
    static const char *const name[TN_PMP_STATES] = {
        "idle", "probe", "map", "get", "ask", "add", "held", "wait", "release"
    };
    uint8_t      data[TN_PMP_DATAGRAM], news;
    tailnet_addr to, external;
    tn_wr        out;
    tn_pmp_want  want;

    if (!tn_pmp_http_wanted(&m.p)) close_tcp();
    do {
        tn_wr_over(&out, data, sizeof data);
        want = tn_pmp_step(&m.p, now_ms(), &out, &to);
        if (m.p.state != m.state) printf("state %s\n", name[m.p.state]);
        m.state = m.p.state;
        if (want == TN_PMP_HTTP) open_tcp(&to);
        if (want == TN_PMP_SEND && allowed(data, &to)) {
            struct sockaddr_in s = to_posix(&to);
            (void)sendto(m.udp, data, tn_wr_len(&out), 0, (struct sockaddr *)&s, sizeof s);
        }
    } while (want != TN_PMP_NOTHING);
    news = tn_pmp_news(&m.p);
    if ((news & TN_PMP_NEWS_REPORT) != 0) printf("services %u\n", tn_pmp_services(&m.p));
    if ((news & TN_PMP_NEWS_MAPPING) == 0) return;
    if (!tn_pmp_external(&m.p, &external)) printf("lost\n");
    else printf("mapped %u.%u.%u.%u:%u\n", external.ip[0], external.ip[1], external.ip[2],
                external.ip[3], external.port);
}

static void network(void)
{
    uint8_t luck[12];
    if (getrandom(luck, sizeof luck, 0) != (ssize_t)sizeof luck) die("random");
    open_udp();
    tn_pmp_network(&m.p, &m.gateway, &m.own, luck, now_ms());
}

/* One line of stdin; false: the end. */
static void command(void)
{
    char line[100];
    if (fgets(line, sizeof line, stdin) == NULL) exit(0);
    if (strncmp(line, "skip ", 5) == 0) m.skipped_ms += strtoull(line + 5, NULL, 10) * 1000u;
    if (strncmp(line, "release", 7) == 0) tn_pmp_release(&m.p, now_ms());
    if (strncmp(line, "network ", 8) == 0) {
        m.own.port = (uint16_t)strtoul(line + 8, NULL, 10);
        network();
    }
}

static bool parse(tailnet_addr *a, const char *ip, const char *port)
{
    memset(a, 0, sizeof *a);
    a->family = 4;
    a->port   = (uint16_t)strtoul(port, NULL, 10);
    return inet_pton(AF_INET, ip, a->ip) == 1;
}

int main(int argc, char **argv)
{
    setvbuf(stdin, NULL, _IONBF, 0);    /* poll sees what fgets has not taken         */
    setvbuf(stdout, NULL, _IOLBF, 0);
    m.udp = m.tcp = -1;
    if (argc != 5 || !parse(&m.gateway, argv[1], "0") || !parse(&m.own, argv[2], argv[3])) {
        fprintf(stderr, "usage: portmap GATEWAY OWN PORT pcp|pmp|upnp\n");
        return 1;
    }
    m.way = argv[4];
    network();
    turn();
    while (m.p.state != TN_PMP_IDLE) {
        struct pollfd fds[3] = { { 0, POLLIN, 0 }, { m.udp, POLLIN, 0 }, { m.tcp, POLLIN, 0 } };
        uint64_t      at = tn_pmp_deadline(&m.p), now = now_ms();
        (void)poll(fds, 3, at <= now ? 0 : at - now > 1000 ? 1000 : (int)(at - now));
        if (fds[2].revents != 0) read_tcp();
        if (fds[1].revents != 0) read_udp();
        if (fds[0].revents != 0) command();
        turn();
    }
    return 0;
}
