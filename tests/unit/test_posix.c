/* Tests of tailnet_platform_posix.h: files, PEM, packets of our own, names, descriptors. */
#ifndef _GNU_SOURCE
#  define _GNU_SOURCE 1
#endif
#include <netdb.h>
#include <time.h>

int slow_getaddrinfo(const char *host, const char *service, const struct addrinfo *hint,
                     struct addrinfo **list);
#define TAILNET_POSIX_GETADDRINFO slow_getaddrinfo

#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

/* What the platform hands to the library goes by here. */
static tailnet_result seen_udp_input(tailnet_node *node, const tailnet_addr *from,
                                     tailnet_buf *pkts, size_t count);
static tailnet_result seen_set_network(tailnet_node *node, const tailnet_network *network);
static tailnet_result seen_ip_input(tailnet_node *node, tailnet_buf *pkts, size_t count);
#define tailnet_udp_input   seen_udp_input
#define tailnet_ip_input    seen_ip_input
#define tailnet_set_network seen_set_network
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"
#undef tailnet_udp_input
#undef tailnet_ip_input
#undef tailnet_set_network
#include "tn_test.h"

#if defined(__linux__)
#  include <sched.h>
#  include <sys/wait.h>
#endif

/* What the library says to packets of our own; it says that while it does not run. */
static tailnet_result ip_answer = TAILNET_ERR_AGAIN;

static tailnet_result seen_ip_input(tailnet_node *node, tailnet_buf *pkts, size_t count)
{
    (void)node; (void)pkts; (void)count;
    return ip_answer;
}

/* "never" takes three seconds, "slow" 300 ms, "none" fails at once. */
int slow_getaddrinfo(const char *host, const char *service, const struct addrinfo *hint,
                     struct addrinfo **list)
{
    struct timespec ts = {0, 0};
    if (strcmp(host, "none.test") == 0) return EAI_NONAME;
    if (strcmp(host, "slow.test") == 0) ts.tv_nsec = 300000000;
    if (strcmp(host, "never.test") == 0) ts.tv_sec = 3;
    nanosleep(&ts, NULL);
    return getaddrinfo("127.0.0.1", service, hint, list);
}

static char          folder[] = "/tmp/tailnet-posix-XXXXXX";
static tailnet_posix posix;

static struct {
    size_t          calls, packets, bytes;      /* of datagrams                  */
    bool            wrong;                      /* not the bytes that were sent  */
    tailnet_addr    from;
    unsigned        told;                       /* networks                      */
    tailnet_network network;
    tailnet_addr    addrs[TAILNET_POSIX_OWN];
} seen_in;

/* Datagrams of these tests: the first byte is a number, the others follow from it. */
static uint8_t pattern(size_t number, size_t at) { return (uint8_t)(number * 7 + at * 13); }

static tailnet_result seen_udp_input(tailnet_node *node, const tailnet_addr *from,
                                     tailnet_buf *pkts, size_t count)
{
    size_t i, k;
    for (i = 0; i < count; i++) {
        const uint8_t *data = pkts[i].base + pkts[i].off;
        if (data[0] != (uint8_t)seen_in.packets) seen_in.wrong = true;
        for (k = 1; k < pkts[i].len; k++)
            if (data[k] != pattern(data[0], k)) seen_in.wrong = true;
        seen_in.packets++;
        seen_in.bytes += pkts[i].len;
    }
    seen_in.calls++;
    seen_in.from = *from;
    return tailnet_udp_input(node, from, pkts, count);
}

static tailnet_result seen_set_network(tailnet_node *node, const tailnet_network *network)
{
    seen_in.told++;
    seen_in.network = *network;
    if (network->addr_count != 0)
        memcpy(seen_in.addrs, network->addrs, network->addr_count * sizeof network->addrs[0]);
    return tailnet_set_network(node, network);
}

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* ---- Texts ----------------------------------------------------------------------------- */

static void address_texts(void)
{
    static const char *const good[] = {"100.64.0.3", "fd7a:115c:a1e0::3", "::", "255.255.255.255"};
    static const char *const bad[]  = {"", "100.64.0", "100.64.0.256", "1.2.3.4.5", "fd7a:::1",
                                       "host", "1.2.3.4 "};
    tailnet_addr a;
    char         text[64];
    size_t       i;
    for (i = 0; i < sizeof good / sizeof good[0]; i++) {
        CHECK(tailnet_posix_addr_parse(&a, good[i]));
        tailnet_posix_addr_text(text, sizeof text, &a);
        CHECK(strcmp(text, good[i]) == 0);
    }
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(!tailnet_posix_addr_parse(&a, bad[i]));
        CHECK(a.family == 0);
    }
    CHECK(tailnet_posix_addr_parse(&a, "10.0.0.1"));
    a.port = 80;
    tailnet_posix_addr_text(text, sizeof text, &a);
    CHECK(strcmp(text, "10.0.0.1:80") == 0);
    CHECK(tailnet_posix_addr_parse(&a, "::1"));
    a.port = 65535;
    tailnet_posix_addr_text(text, sizeof text, &a);
    CHECK(strcmp(text, "[::1]:65535") == 0);
    a.family = 0;
    tailnet_posix_addr_text(text, sizeof text, &a);
    CHECK(text[0] == '\0');
}

static void prefix_texts(void)
{
    static const char *const bad[] = {"", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "::/129",
                                      "10.0.0.0/8x", "10.0.0.0/ 8", "x/8"};
    tailnet_prefix r;
    size_t         i;
    CHECK(tailnet_posix_prefix_parse(&r, "10.1.255.7/15"));
    CHECK(r.family == 4 && r.bits == 15 && r.ip[0] == 10 && r.ip[1] == 0 && r.ip[2] == 0);
    CHECK(tailnet_posix_prefix_parse(&r, "10.1.2.3") && r.bits == 32 && r.ip[3] == 3);
    CHECK(tailnet_posix_prefix_parse(&r, "::/0") && r.family == 6 && r.bits == 0);
    CHECK(tailnet_posix_prefix_parse(&r, "ff::ff/128") && r.bits == 128 && r.ip[15] == 0xff);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(!tailnet_posix_prefix_parse(&r, bad[i]));
}

/* ---- Files ----------------------------------------------------------------------------- */

static void file_whole(void)
{
    const char *path = in_folder("state");
    char        got[16], old[128];
    struct stat st;
    size_t      len = 99;
    FILE       *f;
    CHECK(tailnet_posix_read_file(path, got, sizeof got, &len) == ENOENT && len == 0);
    umask(0);
    CHECK(tailnet_posix_write_file(path, "first", 5) == 0);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600 && st.st_size == 5);
    CHECK(tailnet_posix_write_file(path, "the second", 10) == 0);
    CHECK(tailnet_posix_read_file(path, got, sizeof got, &len) == 0 && len == 10);
    CHECK_BYTES(got, "the second", 10);
    CHECK(tailnet_posix_read_file(path, got, 10, &len) == 0 && len == 10);      /* the limit */
    CHECK(tailnet_posix_read_file(path, got, 9, &len) == EFBIG && len == 0);
    CHECK(tailnet_posix_write_file(path, "", 0) == 0);
    CHECK(tailnet_posix_read_file(path, got, 0, &len) == 0 && len == 0);
    /* What a crash left behind, even with other permissions, is in nobody's way. */
    snprintf(old, sizeof old, "%s.new", path);
    f = fopen(old, "w");
    CHECK(f != NULL);
    if (f != NULL) fclose(f);
    CHECK(tailnet_posix_write_file(path, "third", 5) == 0);
    CHECK(access(old, F_OK) != 0);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
}

static void file_failures(void)
{
    char        long_name[1100], got[16], target[128], link_name[128];
    const char *path = in_folder("kept");
    size_t      len;
    CHECK(tailnet_posix_write_file(path, "kept", 4) == 0);
    /* A directory in the way of the temporary file: nothing is lost. */
    snprintf(link_name, sizeof link_name, "%s.new", path);
    CHECK(mkdir(link_name, 0700) == 0);
    CHECK(tailnet_posix_write_file(path, "lost", 4) != 0);
    CHECK(rmdir(link_name) == 0);
    CHECK(tailnet_posix_read_file(path, got, sizeof got, &len) == 0 && memcmp(got, "kept", 4) == 0);
    /* A link planted there is not followed. */
    snprintf(target, sizeof target, "%s/target", folder);
    CHECK(symlink(target, link_name) == 0);
    CHECK(tailnet_posix_write_file(path, "mine", 4) == 0);
    CHECK(access(target, F_OK) != 0);
    CHECK(tailnet_posix_write_file("/no/such/folder/x", "a", 1) == ENOENT);
    CHECK(tailnet_posix_write_file("", "a", 1) == ENAMETOOLONG);
    memset(long_name, 'a', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = '\0';
    CHECK(tailnet_posix_write_file(long_name, "a", 1) == ENAMETOOLONG);
    CHECK(tailnet_posix_read_file(folder, got, sizeof got, &len) == EISDIR);
}

/* ---- PEM ------------------------------------------------------------------------------- */

static void pem_good(void)
{
    char                       *pem = tn_test_file("posix_ca.pem");
    const br_x509_trust_anchor *ta;
    tailnet_posix_ca            ca;
    CHECK(tailnet_posix_anchors(&ca, pem, strlen(pem)) == TAILNET_OK);
    CHECK(ca.count == 3 && ca.skipped == 1 && !ca.damaged);
    if (ca.count == 3) {
        ta = (const br_x509_trust_anchor *)ca.anchors;
        CHECK(ta[0].pkey.key_type == BR_KEYTYPE_EC && ta[0].flags == BR_X509_TA_CA);
        CHECK(ta[0].pkey.key.ec.curve == BR_EC_secp256r1 && ta[0].pkey.key.ec.qlen == 65);
        CHECK(ta[0].pkey.key.ec.q[0] == 4);
        CHECK(ta[1].pkey.key_type == BR_KEYTYPE_RSA && ta[1].pkey.key.rsa.nlen == 256);
        CHECK(ta[1].pkey.key.rsa.elen == 3 && ta[1].pkey.key.rsa.e[0] == 1);
        CHECK(ta[2].flags == 0);                    /* no CA: trusted as itself only */
        CHECK(ta[0].dn.len > 12);
        CHECK(memcmp(ta[0].dn.data + ta[0].dn.len - 10, "test EC CA", 10) == 0);
        CHECK(memcmp(ta[2].dn.data + ta[2].dn.len - 4, "leaf", 4) == 0);
    }
    tailnet_posix_anchors_free(&ca);
    CHECK(ca.count == 0 && ca.memory == NULL);
    free(pem);
}

/* Every truncation: whole certificates count, a cut one is told. */
static void pem_truncated(void)
{
    char            *pem = tn_test_file("posix_ca.pem");
    size_t           len, whole = strlen(pem);
    tailnet_posix_ca ca;
    for (len = 0; len <= whole; len += 1 + tn_test_random() % 7) {
        char *cut = (char *)malloc(len + 1);        /* so that a sanitizer sees its end */
        if (cut == NULL) break;
        memcpy(cut, pem, len);
        (void)tailnet_posix_anchors(&ca, cut, len);
        CHECK(ca.count <= 3 && (ca.count == 0) == (ca.memory == NULL));
        tailnet_posix_anchors_free(&ca);
        free(cut);
    }
    /* In the middle of the second certificate. */
    len = (size_t)(strstr(strstr(pem, "END CERT"), "BEGIN CERT") - pem) + 200;
    CHECK(tailnet_posix_anchors(&ca, pem, len) == TAILNET_OK);
    CHECK(ca.count == 1 && ca.damaged);
    tailnet_posix_anchors_free(&ca);
    /* Without the last line end. */
    CHECK(tailnet_posix_anchors(&ca, pem, whole - 1) == TAILNET_OK);
    CHECK(ca.count == 3 && !ca.damaged);
    tailnet_posix_anchors_free(&ca);
    free(pem);
}

static void pem_garbage(void)
{
    static const char *const texts[] = {
        "", "\n", "no certificate here\n", "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n",
    };
    char            *pem = tn_test_file("posix_ca.pem");
    size_t           i, k, len = strlen(pem);
    tailnet_posix_ca ca;
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        CHECK(tailnet_posix_anchors(&ca, texts[i], strlen(texts[i])) == TAILNET_ERR_MALFORMED);
        CHECK(ca.memory == NULL && ca.count == 0);
    }
    for (i = 0; i < 300; i++) {                     /* bytes changed here and there */
        char *bent = (char *)malloc(len);
        if (bent == NULL) break;
        memcpy(bent, pem, len);
        for (k = 0; k <= i % 8; k++) bent[tn_test_random() % len] = (char)tn_test_random();
        (void)tailnet_posix_anchors(&ca, bent, len);
        CHECK(ca.count <= 5);
        tailnet_posix_anchors_free(&ca);
        free(bent);
    }
    free(pem);
}

/* A date that is none within the first 255 bytes, which come in one piece, and more after them:
 * BearSSL's decoder goes astray when it is fed on. Found by fuzzing. */
static void damaged_certificate_is_left_alone(void)
{
    static const struct { size_t at; char bytes[12]; size_t size; } put[] = {
        {0, "\x30\x82\x03\x00\x30\x82\x02\x00", 8},
        {8, "\xa0\x03\x02\x01\x00\x02\x14", 7},
        {35, "\x30\x0d", 2}, {50, "\x30\x25", 2}, {89, "\x30\x20\x17\x0d\x32\x38", 6},
        {255, "\x30", 1}};
    tailnet_posix_ca ca;
    uint8_t          der[511];
    char             pem[1024];
    size_t           i, len;
    memset(der, 0, sizeof der);
    for (i = 0; i < sizeof put / sizeof put[0]; i++)
        memcpy(der + put[i].at, put[i].bytes, put[i].size);
    len = br_pem_encode(pem, der, sizeof der, "CERTIFICATE", 0);
    CHECK(len < sizeof pem && tailnet_posix_anchors(&ca, pem, len) == TAILNET_ERR_MALFORMED);
    CHECK(ca.skipped == 1);
    tailnet_posix_anchors_free(&ca);
}

/* ---- Packets of our own ------------------------------------------------------------------ */

static void udp_packets(void)
{
    static const char *const pair[2][2] = {{"100.64.0.1", "100.64.0.2"}, {"fd7a::1", "fd7a::2"}};
    uint8_t        out[1400], data[1300];
    const uint8_t *got;
    tailnet_addr   src, dst;
    tnp_packet     k;
    size_t         i, n, len, got_len;
    for (i = 0; i < sizeof data; i++) data[i] = (uint8_t)tn_test_random();
    for (i = 0; i < 2; i++) {
        size_t head = i == 0 ? 28u : 48u;
        CHECK(tailnet_posix_addr_parse(&src, pair[i][0]));
        CHECK(tailnet_posix_addr_parse(&dst, pair[i][1]));
        src.port = 7;
        dst.port = 40000;
        for (n = 0; n <= 1280 - head; n += 1 + n / 3) {
            len = tnp_udp_build(out, 1280, &src, &dst, data, n);
            CHECK(len == n + head);
            CHECK(tnp_packet_read(&k, out, len) && k.protocol == 17);
            CHECK(tnp_udp_read(&k, &got, &got_len) && got_len == n);
            CHECK(n == 0 || memcmp(got, data, n) == 0);
            CHECK(k.src.port == 7 && k.dst.port == 40000);
            CHECK(i == 1 || tnp_sum_end(tnp_sum(0, out, 20)) == 0);
            CHECK(tnp_get16(out + head - 2) != 0);
            out[head + (n > 0 ? n - 1 : 0) - (n > 0 ? 0 : 3)] ^= 0x10;
            CHECK(tnp_packet_read(&k, out, len) && !tnp_udp_read(&k, &got, &got_len));
        }
        CHECK(tnp_udp_build(out, 1280, &src, &dst, data, 1280 - head) == 1280);
        CHECK(tnp_udp_build(out, 1280, &src, &dst, data, 1281 - head) == 0);
        CHECK(tnp_udp_build(out, head - 1, &src, &dst, data, 0) == 0);
    }
}

/* An IPv4 ping worked out by hand: id 1, number 2, data "ab". */
static void echo_packets(void)
{
    static const uint8_t ping4[] = {0x46, 0, 0, 34, 0x12, 0x34, 0, 0, 9, 1, 0, 0, 100, 64, 0, 1,
                                    100, 64, 0, 2, 1, 1, 1, 1,              /* an option */
                                    8, 0, 0x96, 0x9a, 0, 1, 0, 2, 'a', 'b'};
    uint8_t    out[128], ping6[60];
    uint32_t   pseudo;
    tnp_packet k;
    size_t     len, i;
    CHECK(tnp_packet_read(&k, ping4, sizeof ping4) && k.size == 10);
    len = tnp_echo_build(out, sizeof out, &k);
    CHECK(len == 30);
    CHECK(out[0] == 0x45 && out[9] == 1 && out[15] == 2 && out[19] == 1 && out[20] == 0);
    CHECK(tnp_sum_end(tnp_sum(0, out, 20)) == 0 && tnp_sum_end(tnp_sum(0, out + 20, 10)) == 0);
    CHECK_BYTES(out + 24, ping4 + 28, 6);
    CHECK(tnp_echo_build(out, 29, &k) == 0);
    for (i = 0; i < sizeof ping4; i++)              /* all truncations */
        CHECK(!tnp_packet_read(&k, ping4, i));
    memcpy(out, ping4, sizeof ping4);
    out[24] = 0;                                    /* an answer is not answered */
    CHECK(tnp_packet_read(&k, out, sizeof ping4) && tnp_echo_build(out + 64, 64, &k) == 0);
    out[24] = 8;
    out[6]  = 0x20;                                 /* nor is a fragment */
    CHECK(tnp_packet_read(&k, out, sizeof ping4) && tnp_echo_build(out + 64, 64, &k) == 0);
    out[6]  = 0;
    out[33] = 'x';                                  /* nor what is damaged */
    CHECK(tnp_packet_read(&k, out, sizeof ping4) && tnp_echo_build(out + 64, 64, &k) == 0);
    /* IPv6: our own answer, turned round, is what we would answer to its question. */
    memset(&k, 0, sizeof k);
    CHECK(tailnet_posix_addr_parse(&k.src, "fd7a::1"));
    CHECK(tailnet_posix_addr_parse(&k.dst, "fd7a::2"));
    len = tnp_ip_header(ping6, &k.src, &k.dst, 58, 20);
    memset(ping6 + len, 0, 20);
    ping6[40] = 128;
    ping6[45] = 9;
    pseudo = tnp_sum_pseudo(&k.src, &k.dst, 58, 20);
    tnp_put16(ping6 + 42, tnp_sum_end(tnp_sum(pseudo, ping6 + 40, 20)));
    CHECK(tnp_packet_read(&k, ping6, sizeof ping6));
    CHECK(tnp_echo_build(out, sizeof out, &k) == 60 && out[40] == 129 && out[45] == 9);
    CHECK(memcmp(out + 8, ping6 + 24, 16) == 0 && memcmp(out + 24, ping6 + 8, 16) == 0);
    CHECK(tnp_packet_read(&k, out, 60));
    CHECK(tnp_sum_end(tnp_sum(tnp_sum_pseudo(&k.src, &k.dst, 58, 20), out + 40, 20)) == 0);
}

/* Any bytes at all: nothing is read behind their end. */
static void packets_of_noise(void)
{
    const uint8_t *got;
    size_t         turn, len, i, got_len;
    uint8_t        out[256];
    tnp_packet     k;
    for (turn = 0; turn < 20000; turn++) {
        uint8_t *noise;
        len   = tn_test_random() % 80;
        noise = (uint8_t *)malloc(len + 1);
        if (noise == NULL) return;
        for (i = 0; i < len; i++) noise[i] = (uint8_t)tn_test_random();
        noise[0] = turn % 2 == 0 ? 0x45 : 0x60;
        if (len > 6) noise[2] = noise[4] = noise[6] = 0;
        if (len > 9 && turn % 2 == 0) noise[9] = turn % 3 == 0 ? 17 : 1;
        if (len > 9 && turn % 2 == 1) noise[6] = turn % 3 == 0 ? 17 : 58;
        if (tnp_packet_read(&k, noise, len)) {
            CHECK(k.body >= noise && k.size <= len && k.body + k.size <= noise + len);
            (void)tnp_echo_build(out, sizeof out, &k);
            if (tnp_udp_read(&k, &got, &got_len)) CHECK(got + got_len <= noise + len);
        }
        free(noise);
    }
}

/* ---- A node on its descriptors ----------------------------------------------------------- */

struct seen {
    int    fd[64];
    short  events[64];
    size_t count;
    bool   wrong;
};

/* The set that an epoll user would keep. */
static void follow(void *user, int fd, short events)
{
    struct seen *s = (struct seen *)user;
    size_t       i;
    for (i = 0; i < s->count && s->fd[i] != fd; i++) continue;
    if (events == 0) {
        if (i == s->count) {
            s->wrong = true;                        /* forgotten twice */
            return;
        }
        s->count--;
        s->fd[i]     = s->fd[s->count];
        s->events[i] = s->events[s->count];
        return;
    }
    if (i == s->count) s->count++;
    s->fd[i]     = fd;
    s->events[i] = events;
}

static bool agrees(const struct seen *s)
{
    struct pollfd fds[TAILNET_POSIX_FDS];
    size_t        n = tailnet_posix_fds(&posix, fds, TAILNET_POSIX_FDS), i, k;
    for (i = 0; i < n; i++) {
        for (k = 0; k < s->count && s->fd[k] != fds[i].fd; k++) continue;
        if (k == s->count || s->events[k] != fds[i].events) return false;
    }
    return n == s->count && !s->wrong;
}

static tailnet_result open_posix(struct seen *s, const char *url, uint16_t lookup_ms)
{
    static char           ca[128];
    tailnet_posix_options options;
    tailnet_desc          desc;
    snprintf(ca, sizeof ca, "%sposix_ca.pem", TN_TEST_VECTORS);
    memset(&options, 0, sizeof options);
    memset(&desc, 0, sizeof desc);
    memset(s, 0, sizeof *s);
    options.user      = s;
    options.on_fd     = follow;
    options.ca_file   = ca;
    options.lookup_ms = lookup_ms;
    desc.control_url  = url;
    desc.auth_key     = "none";
    return tailnet_posix_open(&posix, &desc, &options);
}

static void turns(uint32_t ms)
{
    uint64_t end = tnp_now() + ms;
    while (tnp_now() < end) {
        uint64_t now = tnp_now();
        tnp_turn(&posix, (uint32_t)(end > now ? end - now : 0));
    }
}

/* A socket on loopback, with the port it got. */
static int local_socket(int type, uint16_t *port)
{
    struct sockaddr_in sa;
    socklen_t          len = (socklen_t)sizeof sa;
    int                fd  = socket(AF_INET, type | SOCK_NONBLOCK, 0);
    memset(&sa, 0, sizeof sa);
    sa.sin_family      = AF_INET;
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, (const struct sockaddr *)&sa, sizeof sa) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
    *port = ntohs(sa.sin_port);
    return fd;
}

static int listen_local(uint16_t *port)
{
    int fd = local_socket(SOCK_STREAM, port);
    CHECK(listen(fd, 4) == 0);
    return fd;
}

/* Up: a connection arrives at the control server; closed: every descriptor is given back. */
static void node_connects(void)
{
    struct pollfd few[1];
    struct seen   s;
    char          url[64], hello[3];
    uint16_t      port;
    int           listener = listen_local(&port), peer, before = dup(0);
    close(before);
    snprintf(url, sizeof url, "https://127.0.0.1:%u", (unsigned)port);
    CHECK(open_posix(&s, url, 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    CHECK(posix.udp_port[0] != 0);
    CHECK(posix.udp_port[1] == 0 || posix.udp_port[1] == posix.udp_port[0]);
    CHECK(agrees(&s) && s.count >= 2);
    CHECK(tailnet_posix_fds(&posix, few, 1) == 1);
    CHECK(tailnet_up(posix.node) == TAILNET_OK);
    turns(300);
    CHECK(agrees(&s));
    peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    CHECK(peer >= 0);
    turns(100);
    CHECK(recv(peer, hello, 3, 0) == 3 && hello[0] == 0x16);    /* a TLS handshake */
    CHECK(send(peer, "garbage", 7, MSG_NOSIGNAL) == 7);
    close(peer);
    turns(100);
    CHECK(agrees(&s));
    CHECK(tailnet_posix_leave(&posix, false, 1000) == TAILNET_OK);
    tailnet_posix_close(&posix);
    CHECK(s.count == 0 && !s.wrong);
    tailnet_posix_close(&posix);
    peer = dup(0);
    CHECK(peer == before);                          /* nothing is left open */
    close(peer);
    close(listener);
}

/* run ends by a stop from elsewhere although it sleeps. */
static void *stop_soon(void *user)
{
    struct timespec ts = {0, 100000000};
    nanosleep(&ts, NULL);
    tailnet_posix_stop((tailnet_posix *)user);
    return NULL;
}

static void run_stops(void)
{
    struct seen s;
    pthread_t   thread;
    uint64_t    begin = tnp_now();
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    CHECK(pthread_create(&thread, NULL, stop_soon, &posix) == 0);
    CHECK(tailnet_posix_run(&posix) == TAILNET_OK);
    pthread_join(thread, NULL);
    CHECK(tnp_now() - begin < 2000);
    tailnet_posix_close(&posix);
}

static void bad_options(void)
{
    struct seen           s;
    tailnet_posix_options options;
    tailnet_desc          desc;
    memset(&s, 0, sizeof s);
    memset(&options, 0, sizeof options);
    memset(&desc, 0, sizeof desc);
    desc.control_url = "https://127.0.0.1:9";
    options.ca_file  = "/no/such/file";
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_ERR_ARGUMENT);
    CHECK(strstr(posix.error, "/no/such/file") != NULL && posix.node == NULL);
    options.ca_file = NULL;
    options.tun     = "a-name-that-is-too-long";
    CHECK(tailnet_posix_open(&posix, &desc, &options) != TAILNET_OK && posix.error[0] != '\0');
    options.tun    = NULL;
    desc.max_links = TAILNET_POSIX_LINKS + 1;
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_ERR_ARGUMENT);
}

/* A damaged state is refused and left as it is; told to, we begin anew. */
static void state_damaged(void)
{
    const char           *path = in_folder("node.state");
    tailnet_posix_options options;
    tailnet_desc          desc;
    char                  blob[TAILNET_STATE_SIZE + 1], after[TAILNET_STATE_SIZE + 1];
    size_t                len, len_after;
    memset(&options, 0, sizeof options);
    memset(&desc, 0, sizeof desc);
    desc.control_url   = "https://127.0.0.1:9";
    options.state_file = path;
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_OK);
    if (posix.node == NULL) return;
    tnp_save(&posix);
    tailnet_posix_close(&posix);
    CHECK(tailnet_posix_read_file(path, blob, sizeof blob, &len) == 0 && len > 100);
    memset(&desc, 0, sizeof desc);
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_OK);
    tailnet_posix_close(&posix);
    blob[20] ^= 1;
    CHECK(tailnet_posix_write_file(path, blob, len) == 0);
    memset(&desc, 0, sizeof desc);
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_ERR_MALFORMED);
    CHECK(strstr(posix.error, "damaged") != NULL && strstr(posix.error, "state") != NULL);
    CHECK(tailnet_posix_read_file(path, after, sizeof after, &len_after) == 0);
    CHECK(len == len_after && memcmp(blob, after, len) == 0);
    options.replace_damaged_state = true;
    memset(&desc, 0, sizeof desc);
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_OK);
    tailnet_posix_close(&posix);
    options.replace_damaged_state = false;
    memset(blob, 'x', sizeof blob);                 /* too long to be one of ours */
    CHECK(tailnet_posix_write_file(path, blob, sizeof blob) == 0);
    memset(&desc, 0, sizeof desc);
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_ERR_MALFORMED);
}

/* ---- Names --------------------------------------------------------------------------------- */

static void dial(tailnet_dial *d, const char *host, uint16_t port)
{
    memset(d, 0, sizeof *d);
    d->host = host;
    d->port = port;
}

/* Slow names do not hold the loop; the connection comes when the answer does. */
static void names_do_not_block(void)
{
    struct seen  s;
    tailnet_dial d;
    uint16_t     port;
    int          listener = listen_local(&port), peer;
    uint64_t     begin;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    dial(&d, "slow.test", port);
    begin = tnp_now();
    CHECK(tnp_io_tcp_open(&posix, 0x101, &d) == 0);
    CHECK(tnp_now() - begin < 200);
    CHECK(agrees(&s));
    turns(150);
    CHECK(!posix.slot[1].open);
    turns(400);
    CHECK(posix.slot[1].open && agrees(&s));
    peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    CHECK(peer >= 0);
    CHECK(tnp_io_tcp_output(&posix, 0x101, "abc", 3) == 3);
    CHECK(tnp_io_tcp_output(&posix, 0x201, "abc", 3) == -1);   /* another generation */
    tnp_io_tcp_close(&posix, 0x201);
    CHECK(posix.slot[1].used);
    tnp_io_tcp_close(&posix, 0x101);
    CHECK(!posix.slot[1].used && agrees(&s));
    close(peer);
    close(listener);
    tailnet_posix_close(&posix);
    CHECK(s.count == 0);
}

/* How much the kernel holds of a stream after some bytes of it, the kernel's own doubling undone,
 * and whether it tells the time of a round trip (not in qemu-user). */
static int room_of_stream(uint32_t most, bool *told)
{
    char         info[256];
    socklen_t    info_len = (socklen_t)sizeof info;
    struct seen  s;
    tailnet_dial d;
    uint16_t     port;
    int          listener = listen_local(&port), peer, room = 0;
    socklen_t    len = (socklen_t)sizeof room;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return -1;
    posix.opt.tcp_send_buffer = most;
    dial(&d, "127.0.0.1", port);
    CHECK(tnp_io_tcp_open(&posix, 0x101, &d) == 0);
    turns(50);
    peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    CHECK(peer >= 0 && tnp_io_tcp_output(&posix, 0x101, "abc", 3) == 3);
    CHECK(getsockopt(posix.slot[1].tries[0].fd, SOL_SOCKET, SO_SNDBUF, &room, &len) == 0);
    *told = getsockopt(posix.slot[1].tries[0].fd, IPPROTO_TCP, TCP_INFO, info, &info_len) == 0 &&
            info_len > 100;
    close(peer);
    close(listener);
    tailnet_posix_close(&posix);
    return room / 2;
}

/* A relay next door: its queue of 32 packets is not filled in one burst. */
static void near_stream_is_held_short(void)
{
    bool told;
    int  room = room_of_stream(200000, &told);
    CHECK(told ? room >= TNP_FIT_LEAST && room < 200000 : room == 200000);
    CHECK(room_of_stream(9000, &told) == 9000);
}

/* A relay that does not answer holds up the packets to others a tenth of the time. */
static void holding_up_is_rare(void)
{
    uint8_t             one[28] = {0x45}, other[40] = {0x60};
    struct seen         s;
    uint64_t            begin;
    tailnet_posix_wait *w;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    CHECK(posix.opt.hold_ms == 250);
    posix.opt.hold_ms = 30;
    one[19] = 1;
    begin   = tnp_now();
    while (tnp_offer(&posix, one, sizeof one) == TAILNET_ERR_AGAIN && tnp_now() < begin + 999)
        turns(1);
    CHECK(tnp_now() - begin >= 30 && tnp_now() - begin < 250 && posix.dropped == 1);
    /* Another destination has its own clock. */
    CHECK(tnp_offer(&posix, other, sizeof other) == TAILNET_ERR_AGAIN && posix.held == 2);
    CHECK(tnp_offer(&posix, one, sizeof one) == TAILNET_ERR_NETWORK && posix.dropped == 2);
    while (tnp_offer(&posix, one, sizeof one) != TAILNET_ERR_AGAIN && tnp_now() < begin + 999)
        turns(1);
    CHECK(tnp_now() - begin >= 330 && tnp_now() - begin < 900);
    /* One that is taken ends it, for its own destination. */
    w         = &posix.waits[tnp_packet_to(one, sizeof one) % TAILNET_POSIX_WAITS];
    ip_answer = TAILNET_OK;
    CHECK(tnp_offer(&posix, other, sizeof other) == TAILNET_OK && w->since_ms != 0);
    CHECK(tnp_offer(&posix, one, sizeof one) == TAILNET_OK && w->since_ms == 0);
    ip_answer = TAILNET_ERR_AGAIN;
    CHECK(tnp_offer(&posix, one, sizeof one) == TAILNET_ERR_AGAIN && w->since_ms != 0);
    tailnet_posix_close(&posix);
}

static void names_time_out(void)
{
    struct seen  s;
    tailnet_dial d;
    size_t       i;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 200) == TAILNET_OK);
    if (posix.node == NULL) return;
    dial(&d, "never.test", 80);
    CHECK(tnp_io_tcp_open(&posix, 1, &d) == 0);
    turns(100);
    CHECK(!posix.slot[1].told);
    turns(300);
    CHECK(posix.slot[1].told && !posix.slot[1].open);
    tnp_io_tcp_close(&posix, 1);
    /* Threads that nobody waits for any more still count: not one more than the limit. */
    for (i = 1; i < TAILNET_POSIX_LOOKUPS; i++) {
        CHECK(tnp_io_tcp_open(&posix, 1, &d) == 0);
        tnp_io_tcp_close(&posix, 1);
    }
    CHECK(tnp_io_tcp_open(&posix, 1, &d) != 0 && !posix.slot[1].used);
    turns(3200);
    dial(&d, "none.test", 80);
    CHECK(tnp_io_tcp_open(&posix, 1, &d) == 0);
    turns(100);
    CHECK(posix.slot[1].told);
    tnp_io_tcp_close(&posix, 1);
    CHECK(agrees(&s));
    tailnet_posix_close(&posix);
}

/* A dead first address: the second one is tried, at once or after race_ms. */
static void addresses_in_turn(void)
{
    struct seen  s;
    tailnet_dial d;
    uint16_t     port;
    int          listener = listen_local(&port);
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    dial(&d, "ignored.test", port);
    CHECK(tailnet_posix_addr_parse(&d.addr6, "::1"));           /* refused: nobody listens */
    CHECK(tailnet_posix_addr_parse(&d.addr4, "127.0.0.1"));
    CHECK(tnp_io_tcp_open(&posix, 2, &d) == 0);
    turns(350);
    CHECK(posix.slot[2].open && agrees(&s));
    tnp_io_tcp_close(&posix, 2);
    dial(&d, "127.0.0.1", 9);                                   /* a literal needs no thread */
    CHECK(tnp_io_tcp_open(&posix, 2, &d) == 0 && posix.lookups == 0);
    turns(100);
    CHECK(posix.slot[2].told);
    tnp_io_tcp_close(&posix, 2);
    CHECK(tnp_io_tcp_open(&posix, TAILNET_POSIX_LINKS, &d) != 0);
    tailnet_posix_close(&posix);
    close(listener);
}

/* ---- Datagrams ----------------------------------------------------------------------------- */

static int udp_local(uint16_t *port) { return local_socket(SOCK_DGRAM, port); }

enum { RUN = 130, LONGEST = 1400 };

static uint8_t datagrams[RUN][LONGEST];

/* A run of numbered datagrams; len(i) bytes each. */
static void make_run(tailnet_buf *run, const uint16_t *lens, size_t count)
{
    size_t i, k;
    memset(run, 0, count * sizeof *run);
    for (i = 0; i < count; i++) {
        datagrams[i][0] = (uint8_t)i;
        for (k = 1; k < lens[i]; k++) datagrams[i][k] = pattern(i, k);
        run[i].base = datagrams[i];
        run[i].cap  = LONGEST;
        run[i].len  = lens[i];
    }
}

/* Sends them and reads them at the other end, one by one, in order. */
static void run_arrives(const uint16_t *lens, size_t count)
{
    static tailnet_buf run[RUN];
    static uint8_t     got[65536];
    tailnet_addr       to;
    size_t             i;
    int                fd;
    make_run(run, lens, count);
    CHECK(tailnet_posix_addr_parse(&to, "127.0.0.1"));
    fd = udp_local(&to.port);
    tnp_option(fd, SOL_SOCKET, SO_RCVBUF, 1 << 20);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    posix.gso_at_ms = UINT64_MAX;           /* emulators hand its length on as the bytes lie */
#endif
    CHECK(tnp_io_udp_output(&posix, &to, run, count) == 0);
    for (i = 0; i < count; i++) {
        CHECK(recv(fd, got, sizeof got, 0) == lens[i]);
        CHECK_BYTES(got, datagrams[i], lens[i]);
    }
    CHECK(recv(fd, got, sizeof got, 0) < 0);
    close(fd);
}

/* And the other way: to the node's socket, in one send where the system can. */
static void run_comes_in(const uint16_t *lens, size_t count)
{
    static tailnet_buf      run[RUN];
    struct sockaddr_storage sa;
    tailnet_addr            to;
    socklen_t               len;
    size_t                  i, n, bytes = 0;
    uint16_t                port;
    int                     fd = udp_local(&port);
    make_run(run, lens, count);
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(tailnet_posix_addr_parse(&to, "127.0.0.1"));
    to.port = posix.udp_port[0];
    len     = tnp_to_sockaddr(&sa, &to);
    for (i = 0; i < count; i += n) {
        n = posix.gso_at_ms == 0 ? tnp_udp_stretch(run + i, count - i) : 1;
        CHECK(tnp_udp_send(fd, &sa, len, run + i, n) == 0);
    }
    for (i = 0; i < count; i++) bytes += lens[i];
    for (i = 0; i < count && seen_in.packets < count; i++) tnp_turn(&posix, 50);
    CHECK(seen_in.packets == count && seen_in.bytes == bytes && !seen_in.wrong);
    CHECK(seen_in.from.family == 4 && seen_in.from.port == port);
    if (posix.udp_gro[0] && count > 64) CHECK(seen_in.calls < count / 2);
    close(fd);
}

static void udp_runs(void)
{
    uint16_t    lens[RUN];
    struct seen s;
    size_t      i, turn;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    for (turn = 0; turn < 6; turn++) {
        for (i = 0; i < RUN; i++) {
            lens[i] = 1200;                                     /* all alike */
            if (turn == 1) lens[i] = i % 40 == 39 ? 100 : 1200; /* a short one ends a send */
            if (turn == 2) lens[i] = (uint16_t)(1 + i);         /* growing: none belong together */
            if (turn == 3) lens[i] = (uint16_t)(300 - i);
            if (turn == 4) lens[i] = (uint16_t)(1 + tn_test_random() % LONGEST);
            if (turn == 5) lens[i] = LONGEST;
        }
        run_arrives(lens, turn == 5 ? 64 : RUN);
        run_comes_in(lens, turn == 5 ? 64 : RUN);
    }
    posix.gso_at_ms = UINT64_MAX;                               /* one by one */
    run_arrives(lens, RUN);
    run_comes_in(lens, RUN);
    run_arrives(lens, 1);
    tailnet_posix_close(&posix);
}

static void udp_stretches(void)
{
    tailnet_buf b[80];
    size_t      i;
    memset(b, 0, sizeof b);
    for (i = 0; i < 80; i++) b[i].len = 100;
    CHECK(tnp_udp_stretch(b, 80) == 64 && tnp_udp_stretch(b, 64) == 64);
    CHECK(tnp_udp_stretch(b, 1) == 1);
    b[3].len = 99;
    CHECK(tnp_udp_stretch(b, 80) == 4);                         /* the shorter one is the last */
    b[3].len = 101;
    CHECK(tnp_udp_stretch(b, 80) == 3);
    b[3].len = 0;
    CHECK(tnp_udp_stretch(b, 80) == 3);
    for (i = 0; i < 80; i++) b[i].len = 1300;
    CHECK(tnp_udp_stretch(b, 80) == 50);                        /* 65,000 bytes */
}

/* No way there, a firewall, no such family. */
static void udp_errors(void)
{
    struct seen  s;
    tailnet_buf  one;
    tailnet_addr to;
    uint16_t     len = 10;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    make_run(&one, &len, 1);
    CHECK(tailnet_posix_addr_parse(&to, "255.255.255.255"));
    to.port = 9;
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == -1);       /* not a broadcaster */
    to.family = 0;
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == -1);
    CHECK(!tnp_udp_hopeless(&posix, 0, EMSGSIZE) && !posix.rebind_wanted);
    CHECK(tnp_udp_hopeless(&posix, 0, EHOSTUNREACH) && tnp_udp_hopeless(&posix, 1, ENETUNREACH));
    CHECK(!tnp_udp_hopeless(&posix, 0, ENOBUFS) && posix.udp_full);
    CHECK((posix.udp[0].events & POLLOUT) != 0 && agrees(&s));
    turns(50);
    CHECK(!posix.udp_full && posix.udp[0].events == POLLIN && agrees(&s));
    CHECK(!tnp_udp_hopeless(&posix, 0, EPERM) && posix.rebind_wanted);
    turns(50);
    CHECK(posix.rebinds == 1 && !posix.rebind_wanted);
    CHECK(!tnp_udp_hopeless(&posix, 0, EPERM));
    turns(50);
    CHECK(posix.rebinds == 1 && posix.rebind_wanted);           /* at most every 5 s */
    tailnet_posix_close(&posix);
}

#if defined(__linux__)

/* How many datagrams wait there, and the port that the last came from. */
static unsigned waiting(int fd, uint16_t *port)
{
    struct sockaddr_storage sa;
    tailnet_addr            from;
    uint8_t                 got[64];
    unsigned                n;
    for (n = 0;; n++) {
        socklen_t len = (socklen_t)sizeof sa;
        if (recvfrom(fd, got, sizeof got, MSG_DONTWAIT, (struct sockaddr *)&sa, &len) < 0) return n;
        if (tnp_from_sockaddr(&from, &sa)) *port = from.port;
    }
}

/* Two ways to one place: both for a stranger, then the one by which it was heard. */
static void uplinks(void)
{
    struct seen  s;
    tailnet_buf  one;
    tailnet_addr to;
    uint16_t     len = 10, port = 0, was;
    int          fd;
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    posix.opt.uplink[0] = "lo";
    posix.opt.uplink[1] = "nowhere0";
    tnp_udp_uplinks(&posix);
    was = posix.udp_port[2];
    CHECK(was != 0 && was != posix.udp_port[0] && posix.udp[4].fd == -1 && agrees(&s));
    CHECK(tnp_own_port(&posix, "lo", 0) == was && tnp_own_port(&posix, "lo", 1) == posix.udp_port[3]);
    CHECK(tnp_own_port(&posix, "eth9", 0) == posix.udp_port[0]);
    CHECK(tnp_own_port(&posix, "nowhere0", 0) == posix.udp_port[0]);
    fd = udp_local(&port);
    CHECK(tailnet_posix_addr_parse(&to, "127.0.0.1"));
    to.port = port;
    make_run(&one, &len, 1);
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == 0 && waiting(fd, &port) == 2);
    tnp_udp_heard(&posix, 2, &to);
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == 0 && waiting(fd, &port) == 1 && port == was);
    tnp_udp_heard(&posix, 0, &to);          /* later than by the other: farther    */
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == 0 && waiting(fd, &port) == 1 && port == was);
    tnp_udp_known(&posix, &to)->heard_ms -= TNP_HEARD_MS;
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == 0 && waiting(fd, &port) == 2);
    tnp_udp_heard(&posix, 0, &to);
    CHECK(tnp_io_udp_output(&posix, &to, &one, 1) == 0 && waiting(fd, &port) == 1);
    CHECK(port == posix.udp_port[0]);
    tnp_udp_rebind(&posix);
    CHECK(posix.udp_port[2] == was && agrees(&s));
    close(fd);
    tailnet_posix_close(&posix);
    CHECK(posix.udp[2].fd == -1);
}

#endif

/* ---- Long packets of TUN ---------------------------------------------------------------- */

enum { LONG = 65000, PIECES = 64 };

static uint8_t     long_packet[LONG], whole[LONG + 100];
static uint8_t     piece_space[PIECES][TAILNET_POSIX_SPACE];
static tailnet_buf pieces[PIECES];

/* A TCP packet as TUN gives it: sums begun, not finished. Returns the length. */
static size_t tcp_make(bool v4, size_t options, size_t data, unsigned flags,
                       tailnet_posix_vnet *v, size_t step)
{
    size_t       tcp = v4 ? 20u : 40u, head = tcp + 20 + options, i;
    tailnet_addr a, b;
    uint8_t     *t = long_packet + tcp;
    CHECK(tailnet_posix_addr_parse(&a, v4 ? "100.64.0.1" : "fd7a:115c:a1e0::1"));
    CHECK(tailnet_posix_addr_parse(&b, v4 ? "100.64.0.2" : "fd7a:115c:a1e0::2"));
    for (i = head; i < head + data; i++) long_packet[i] = (uint8_t)(i * 7 + i / 256);
    tnp_ip_header(long_packet, &a, &b, 6, head - tcp + data);
    tnp_put16(long_packet + 4, v4 ? 0xffff : tnp_get16(long_packet + 4));    /* the id wraps */
    tnp_ip_length(long_packet, head + data);
    memset(t, 0, 20 + options);
    tnp_put16(t, 1000);
    tnp_put16(t + 2, 2000);
    tnp_put32(t + 4, 0xffffff00u);                              /* the sequence wraps */
    tnp_put32(t + 8, 12345);
    t[12] = (uint8_t)((20 + options) / 4 << 4);
    t[13] = (uint8_t)flags;
    tnp_put16(t + 14, 500);
    memset(t + 20, 1, options);
    tnp_put16(t + 16, (uint16_t)~tnp_sum_end(tnp_sum_front(long_packet, 6, head - tcp + data)));
    memset(v, 0, sizeof *v);
    v->flags      = TNP_VNET_NEEDS_SUM;
    v->kind       = step == 0 ? 0 : v4 ? TNP_VNET_TCP4 : TNP_VNET_TCP6;
    v->size       = (uint16_t)step;
    v->head       = (uint16_t)head;
    v->sum_start  = (uint16_t)tcp;
    v->sum_offset = 16;
    return head + data;
}

/* Is this a packet with right lengths and sums? */
static bool tcp_right(const uint8_t *p, size_t size)
{
    size_t tcp = p[0] >> 4 == 4 ? 20u : 40u;
    if (tcp == 20 && (tnp_get16(p + 2) != size || tnp_sum_end(tnp_sum(0, p, 20)) != 0))
        return false;
    if (tcp == 40 && tnp_get16(p + 4) + 40u != size) return false;
    return tnp_sum_end(tnp_sum(tnp_sum_front(p, 6, size - tcp), p + tcp, size - tcp)) == 0;
}

/* Cuts long_packet; returns how many pieces. */
static size_t cut_all(const tailnet_posix_vnet *v, size_t size)
{
    tailnet_posix_cut c;
    size_t            n = 0;
    if (!tnp_cut_begin(&c, v, long_packet, size)) return 0;
    memset(pieces, 0, sizeof pieces);
    while (c.next < c.count && n < PIECES) {
        pieces[n].base = piece_space[n];
        pieces[n].cap  = TAILNET_POSIX_SPACE;
        pieces[n].off  = TAILNET_HEADROOM;
        pieces[n].len  = (uint32_t)tnp_cut_next(&c, long_packet, piece_space[n] + TAILNET_HEADROOM);
        n++;
    }
    return n;
}

/* Cut into pieces that are right one by one, joined again into what it was. */
static void long_one(bool v4, size_t options, size_t data, size_t step)
{
    tailnet_posix_vnet v, got;
    size_t             head = (v4 ? 40u : 60u) + options, size, n, i, k, at = 0, joined, psh, tcp;
    int                pair[2];
    ssize_t            len;
    size = tcp_make(v4, options, data, TNP_TCP_ACK | TNP_TCP_PSH, &v, step);
    n    = cut_all(&v, size);
    tcp  = v4 ? 20u : 40u;
    CHECK(n == (data + step - 1) / step);
    for (i = 0; i < n; i++, at += step) {
        const uint8_t *p    = pieces[i].base + pieces[i].off;
        size_t         part = data - at < step ? data - at : step;
        CHECK(pieces[i].len == head + part && tcp_right(p, head + part));
        CHECK(tnp_get32(p + tcp + 4) == 0xffffff00u + (uint32_t)at);
        CHECK_BYTES(p + head, long_packet + head + at, part);
        CHECK(((p[tcp + 13] & TNP_TCP_PSH) != 0) == (i + 1 == n));
    }
    k = tnp_join_count(pieces, n, &joined);
    CHECK(k == n && joined == head);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    i = 1 << 20;
    tnp_option(pair[1], SOL_SOCKET, SO_SNDBUF, (int)i);
    memset(&posix, 0, offsetof(tailnet_posix, slot));
    posix.vnet   = true;
    posix.tun.fd = pair[1];
    tnp_tun_write(&posix, pieces, n);
    len = recv(pair[0], whole, sizeof whole, 0);
    CHECK(len == (ssize_t)(sizeof got + size));
    memcpy(&got, whole, sizeof got);
    psh = n;
    if (psh > 1) {
        CHECK(got.kind == v.kind && got.size == step && got.sum_start == v.sum_start);
        CHECK(got.flags == v.flags && got.sum_offset == 16 && got.head == head);
        if (v4) tnp_put16(whole + sizeof got + 10, tnp_get16(long_packet + 10));
        CHECK_BYTES(whole + sizeof got, long_packet, size);
    }
    close(pair[0]);
    close(pair[1]);
}

static void long_packets(void)
{
    size_t i;
    for (i = 0; i < 2; i++) {
        long_one(i == 0, 12, 60000, 1208);
        long_one(i == 0, 0, 3000, 1000);
        long_one(i == 0, 40, 1001, 1000);
        long_one(i == 0, 12, 1208, 1208);
        long_one(i == 0, 4, 63, 1);
    }
}

/* What may not be joined, and lengths that lie. */
static void long_packets_apart(void)
{
    tailnet_posix_vnet v, bad;
    tailnet_posix_cut  c;
    size_t             size, head, n, i;
    uint8_t           *second = piece_space[1] + TAILNET_HEADROOM;
    static const uint8_t places[] = {0, 1, 8, 12, 19, 20, 23, 24, 28, 32, 33, 34, 38, 41, 60};
    for (i = 0; i < sizeof places; i++) {
        size = tcp_make(true, 12, 3000, TNP_TCP_ACK, &v, 1000);
        n    = cut_all(&v, size);
        CHECK(n == 3 && tnp_join_count(pieces, n, &head) == 3);
        second[places[i]] ^= 0x40;                  /* another flow, or a wrong sum */
        CHECK(tnp_join_count(pieces, n, &head) == 1);
    }
    size = tcp_make(true, 12, 3000, TNP_TCP_ACK | 2, &v, 1000);     /* SYN */
    CHECK(cut_all(&v, size) == 3 && tnp_join_count(pieces, 3, &head) == 1 && head == 0);
    size = tcp_make(false, 0, 0, TNP_TCP_ACK, &v, 0);               /* no data, plain */
    CHECK(cut_all(&v, size) == 1 && tcp_right(piece_space[0] + TAILNET_HEADROOM, size));
    CHECK(tnp_join_count(pieces, 1, &head) == 1 && head == 0);
    size = tcp_make(true, 12, 3000, TNP_TCP_ACK, &v, 1000);
    for (i = 0; i < 6; i++) {
        bad = v;
        if (i == 0) bad.kind = 5;                   /* UDP: we did not ask for that */
        if (i == 1) bad.sum_start = 60000;
        if (i == 2) bad.size = 0;
        if (i == 3) bad.size = 3000;                /* longer than a packet of ours */
        if (i == 4) bad.sum_start = 0;
        if (i == 5) bad.kind = 0;                   /* too long for one packet */
        CHECK(!tnp_cut_begin(&c, &bad, long_packet, size));
    }
    for (i = 0; i < 200000; i++) {                  /* noise: nothing out of bounds */
        uint8_t *to = piece_space[0];
        for (n = 0; n < 80; n++) long_packet[n] = (uint8_t)tn_test_random();
        memcpy(&bad, long_packet, sizeof bad);
        bad.kind = (uint8_t)(bad.kind % 6);
        if (i % 2 != 0) bad.sum_start = (uint16_t)(bad.sum_start % 90);
        size = tn_test_random() % 3000;
        if (!tnp_cut_begin(&c, &bad, long_packet, size)) continue;
        for (n = 0; c.next < c.count && n < 70; n++)
            CHECK(tnp_cut_next(&c, long_packet, to) <= (size_t)TNP_PACKET_MOST);
        (void)tnp_join_head(long_packet, size < 2000 ? size : 2000);
    }
}

/* ---- The cipher in vectors ------------------------------------------------------------------ */

static void vector_cipher(void)
{
#if defined(TNP_VECTORS)
    static uint8_t a[2100], b[2100], first[2100];
    uint8_t        key[32], nonce[12];
    tailnet_crypt  w[2];
    size_t         len, i;
    if (!tnp_crypt_can()) return;
    for (len = 0; len < 2048; len++) {
        for (i = 0; i < 32; i++) key[i] = (uint8_t)tn_test_random();
        for (i = 0; i < len; i++) a[i] = b[i] = first[i] = (uint8_t)tn_test_random();
        memset(w, 0, sizeof w);
        w[0].key     = key;
        w[0].counter = len < 100 ? UINT64_MAX - len : tn_test_random();
        w[0].data    = a;
        w[0].len     = (uint32_t)len;
        memset(nonce, 0, sizeof nonce);
        for (i = 0; i < 8; i++) nonce[4 + i] = (uint8_t)(w[0].counter >> (8 * i));
        if (len % 64 == 3) memset(a, 0xff, len);                /* carries in Poly1305 */
        if (len % 64 == 3) memset(b, 0xff, len);
        if (len % 64 == 3) memset(first, 0xff, len);
        tnp_io_crypt(NULL, w, 1);
        tn_cr_aead_seal(key, nonce, NULL, 0, b, len, b + len);
        CHECK_BYTES(a, b, len + 16);
        /* Two at once: one right, one forged, which stays as it is. */
        w[1]      = w[0];
        w[0].open = w[1].open = true;
        w[1].data = b;
        b[tn_test_random() % (len + 16)] ^= (uint8_t)(1u << tn_test_random() % 8);
        tnp_io_crypt(NULL, w, 2);
        CHECK(w[0].ok && !w[1].ok);
        CHECK_BYTES(a, first, len);
    }
#endif
}

/* ---- The network around us ----------------------------------------------------------------- */

struct own_case {
    const char *device, *ip, *mask;
    unsigned    flags;
};

/* What is told of these addresses, as text. */
static void own_text(char *out, size_t cap, const struct own_case *c, size_t count)
{
    static struct ifaddrs          list[32];
    static struct sockaddr_storage ip[32], mask[32];
    tailnet_posix_network          w;
    tailnet_addr                   a;
    char                           text[64];
    size_t                         i;
    memset(&w, 0, sizeof w);
    memset(list, 0, sizeof list);
    for (i = 0; i < count; i++) {
        CHECK(tailnet_posix_addr_parse(&a, c[i].ip));
        (void)tnp_to_sockaddr(&ip[i], &a);
        list[i].ifa_next  = i + 1 < count ? &list[i + 1] : NULL;
        list[i].ifa_name  = (char *)(uintptr_t)c[i].device;
        list[i].ifa_addr  = (struct sockaddr *)&ip[i];
        list[i].ifa_flags = c[i].flags;
        if (c[i].mask == NULL) continue;
        CHECK(tailnet_posix_addr_parse(&a, c[i].mask));
        (void)tnp_to_sockaddr(&mask[i], &a);
        list[i].ifa_netmask = (struct sockaddr *)&mask[i];
    }
    memset(&posix, 0, sizeof posix.network + offsetof(tailnet_posix, network));
    memcpy(posix.tun_name, "tun0", 5);
    posix.udp_port[0] = 4;
    posix.udp_port[1] = 6;
    tnp_own_list(&posix, count == 0 ? NULL : list, &w);
    out[0] = '\0';
    for (i = 0; i < w.count; i++) {
        tailnet_posix_addr_text(text, sizeof text, &w.addrs[i]);
        snprintf(out + strlen(out), cap - strlen(out), "%s ", text);
    }
    if (w.down) snprintf(out, cap, "down");
}

#define OWN(want, ...)                                                                 \
    do {                                                                               \
        static const struct own_case cases[] = {__VA_ARGS__};                          \
        char                         text[512];                                        \
        own_text(text, sizeof text, cases, sizeof cases / sizeof cases[0]);            \
        if (strcmp(text, want) != 0) printf("got  %s\nwant %s\n", text, want);         \
        CHECK(strcmp(text, want) == 0);                                                \
    } while (0)

#define UP   (IFF_UP | IFF_RUNNING)
#define LOOP (IFF_UP | IFF_LOOPBACK)
#define M64  "ffff:ffff:ffff:ffff::"

static void own_addresses(void)
{
    char none[64];
    own_text(none, sizeof none, NULL, 0);
    CHECK(strcmp(none, "down") == 0);
    OWN("10.0.0.2:4 192.168.1.9:4 ", {"lo", "127.0.0.1", NULL, LOOP}, {"b", "192.168.1.9", NULL, UP},
        {"a", "10.0.0.2", NULL, UP}, {"a", "10.0.0.2", NULL, UP}, {"c", "10.0.0.3", NULL, 0});
    /* Tailnet ranges but for one corner, our own device, other overlays. */
    OWN("100.63.255.255:4 100.115.92.1:4 100.128.0.1:4 ", {"a", "100.64.0.1", NULL, UP},
        {"a", "100.63.255.255", NULL, UP}, {"a", "100.128.0.1", NULL, UP},
        {"a", "100.115.92.1", NULL, UP}, {"a", "100.115.94.1", NULL, UP},
        {"a", "fd7a:115c:a1e0::1", NULL, UP}, {"tun0", "10.1.0.1", NULL, UP},
        {"zt7nn", "10.2.0.1", NULL, UP}, {"wt0", "10.3.0.1", NULL, UP});
}

/* Link-local and unique local ones only without better ones; never fe80. */
static void own_addresses_spare(void)
{
    OWN("[2001:db8::1]:6 ", {"a", "169.254.1.1", NULL, UP}, {"a", "2001:db8::1", M64, UP},
        {"a", "fd00::1", M64, UP}, {"a", "fe80::1", M64, UP}, {"lo", "::1", NULL, LOOP});
    OWN("169.254.1.1:4 [fd00::1]:6 ", {"a", "169.254.1.1", NULL, UP}, {"a", "fd00::1", M64, UP},
        {"a", "fe80::1", M64, UP}, {"lo", "127.0.0.1", NULL, LOOP});
    OWN("127.0.0.1:4 [::1]:6 ", {"lo", "::1", NULL, LOOP}, {"lo", "127.0.0.1", NULL, LOOP},
        {"a", "fe80::1", M64, UP});
    OWN("down", {"lo", "127.0.0.1", NULL, IFF_LOOPBACK}, {"a", "10.0.0.1", NULL, 0},
        {"a", "fe80::1", M64, UP});
    /* At most two of one prefix. */
    OWN("10.0.0.1:4 [2001:db8::1]:6 [2001:db8::3]:6 [2001:db8:0:1::9]:6 ",
        {"a", "2001:db8::3", M64, UP}, {"a", "2001:db8::1", M64, UP}, {"a", "2001:db8::2", M64, UP},
        {"a", "2001:db8:0:1::9", M64, UP}, {"a", "10.0.0.1", "255.255.255.0", UP});
}

static void own_addresses_many(void)
{
    struct own_case c[32];
    char            names[32][16], text[512];
    size_t          i, n = 0;
    for (i = 0; i < 32; i++) {
        snprintf(names[i], sizeof names[i], "10.0.0.%u", (unsigned)(200 - i));
        c[i].device = "a";
        c[i].ip     = names[i];
        c[i].mask   = NULL;
        c[i].flags  = UP;
    }
    own_text(text, sizeof text, c, 32);
    CHECK(strncmp(text, "10.0.0.169:4 10.0.0.170:4 ", 26) == 0);    /* the first sixteen */
    for (i = 0; text[i] != '\0'; i++) n += text[i] == ' ';
    CHECK(n == TAILNET_POSIX_OWN);
}

/* What counts as another network. */
static void network_differences(void)
{
    tailnet_posix_network a, b;
    memset(&a, 0, sizeof a);
    a.count = 2;
    CHECK(tailnet_posix_addr_parse(&a.addrs[0], "10.0.0.1"));
    CHECK(tailnet_posix_addr_parse(&a.addrs[1], "2001:db8::1"));
    CHECK(tailnet_posix_addr_parse(&a.source[0], "10.0.0.1"));
    CHECK(tailnet_posix_addr_parse(&a.gateway, "10.0.0.254"));
    a.device[0] = 2;
    b = a;
    CHECK(!tnp_network_major(&a, &b) && tnp_network_same(&a, &b));
    b.count = 1;                                                /* an IPv6 address went */
    CHECK(!tnp_network_major(&a, &b) && !tnp_network_same(&a, &b));
    CHECK(!tnp_network_major(&b, &a));                          /* or came */
    b = a;
    b.addrs[0].ip[3] = 9;                                       /* another IPv4 address */
    CHECK(tnp_network_major(&a, &b) && !tnp_network_same(&a, &b));
    b = a;
    b.device[0] = 3;
    CHECK(tnp_network_major(&a, &b));
    b = a;
    b.gateway.ip[3] = 1;
    CHECK(tnp_network_major(&a, &b));
    b = a;
    b.source[1] = a.addrs[1];                                   /* a way for IPv6 as well */
    CHECK(tnp_network_major(&a, &b));
    b = a;
    b.down = true;
    CHECK(tnp_network_major(&a, &b) && tnp_network_major(&b, &a));
}

/* A route message, whole, cut, and with lengths that lie. */
static void route_messages(void)
{
#if defined(__linux__)
    tnp_nl       m;
    struct rtmsg body;
    tailnet_addr gateway;
    uint32_t     device = 7, got;
    uint8_t      ip[4] = {10, 0, 0, 254}, noise[64];
    size_t       i, k;
    memset(&body, 0, sizeof body);
    tnp_nl_begin(&m, RTM_NEWROUTE, 0, &body, sizeof body);
    tnp_nl_attr(&m, RTA_OIF, &device, sizeof device);
    tnp_nl_attr(&m, RTA_GATEWAY, ip, sizeof ip);
    for (i = 0; i <= m.len; i++) {
        memset(&gateway, 0, sizeof gateway);
        got = 0;
        tnp_route_read((const uint8_t *)m.words, i, &gateway, &got);
        CHECK((gateway.family == 4) == (i == m.len) && (got == 7) == (i + 8 >= m.len));
    }
    CHECK(memcmp(gateway.ip, ip, 4) == 0);
    for (i = 0; i < 20000; i++) {
        for (k = 0; k < sizeof noise; k++) noise[k] = (uint8_t)tn_test_random();
        noise[28] = (uint8_t)(noise[28] % 40);
        noise[29] = 0;
        tnp_route_read(noise, tn_test_random() % (sizeof noise + 1), &gateway, &got);
    }
#endif
}

/* Told to look again: new sockets on the old ports, descriptors in step. */
static void network_sign(void)
{
    struct seen s;
    uint16_t    port;
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return;
    CHECK(seen_in.told == 1 && !seen_in.network.changed && !seen_in.network.port_fixed);
    CHECK(!seen_in.network.down && seen_in.network.addr_count != 0);
    port = posix.udp_port[0];
    tailnet_posix_network_changed(&posix);
    turns(50);
    CHECK(seen_in.told == 2 && seen_in.network.changed && posix.networks == 1);
    CHECK(posix.udp_port[0] == port && posix.rebinds == 1);
    CHECK(seen_in.addrs[0].port == port && agrees(&s));
    turns(250);
    CHECK(seen_in.told == 2);                                   /* once */
    tailnet_posix_close(&posix);
    CHECK(s.count == 0 && !s.wrong);
}

#if defined(__linux__)

static int shell(const char *command) { return system(command); }

/* In a network of our own, so it needs root (or user namespaces): addresses come and go. */
static int network_watched(void)
{
    struct seen s;
    uint64_t    begin;
    if (unshare(CLONE_NEWNET) != 0) return 77;
    if (shell("ip link set lo up && ip link add d0 type veth peer name d1 && "
              "ip link set d1 up && ip link set d0 up") != 0)
        return 77;
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(open_posix(&s, "https://127.0.0.1:9", 0) == TAILNET_OK);
    if (posix.node == NULL) return 1;
    CHECK(seen_in.network.addr_count >= 1 && seen_in.addrs[0].ip[0] == 127);
    turns(1500);                                    /* what the new device still does */
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(shell("ip addr add 10.9.0.2/24 dev d0 && ip route add default via 10.9.0.1") == 0);
    begin = tnp_now();
    while (seen_in.told == 0 && tnp_now() - begin < 2000) tnp_turn(&posix, 100);
    CHECK(tnp_now() - begin < 500);
    CHECK(seen_in.told == 1 && seen_in.network.changed && seen_in.network.addr_count == 1);
    CHECK(seen_in.addrs[0].ip[0] == 10 && seen_in.network.gateway.family == 4);
    CHECK(seen_in.network.gateway.ip[3] == 1);
    /* One address more: minor. */
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(shell("ip addr add 10.9.0.3/24 dev d0") == 0);
    turns(300);
    CHECK(seen_in.told == 1 && !seen_in.network.changed && seen_in.network.addr_count == 2);
    /* The network is another one. */
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(shell("ip addr flush dev d0; ip addr add 10.8.0.2/24 dev d0; "
                "ip route add default via 10.8.0.1") == 0);
    turns(300);
    CHECK(seen_in.told >= 1 && seen_in.network.changed && seen_in.network.gateway.ip[1] == 8);
    /* And none at all. */
    memset(&seen_in, 0, sizeof seen_in);
    CHECK(shell("ip link set lo down; ip link set d0 down") == 0);
    turns(300);
    CHECK(seen_in.told >= 1 && seen_in.network.changed && seen_in.network.down);
    CHECK(agrees(&s));
    tailnet_posix_close(&posix);
    CHECK(s.count == 0);
    return tn_test_ok ? 0 : 1;
}

static void network_watch(void)
{
    int   status = 0;
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        status = network_watched();
        fflush(stdout);
        _exit(status);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        printf("network_watch: not run, it needs a network namespace\n");
}

#else

static void network_watch(void) {}

#endif

/* ---- Through a proxy ------------------------------------------------------------------------ */

/* A proxy of one connection: what it was asked, and what it says. */
static size_t proxy_hears(int listener, char *heard, size_t cap, const char *says, int *fd)
{
    uint64_t end = tnp_now() + 2000;
    size_t   len = 0;
    *fd = -1;
    while (*fd < 0 && tnp_now() < end) {
        turns(20);
        *fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    }
    heard[0] = '\0';
    while (*fd >= 0 && strstr(heard, "\r\n\r\n") == NULL && tnp_now() < end) {
        ssize_t n;
        turns(20);
        n = recv(*fd, heard + len, cap - 1 - len, 0);
        if (n > 0) len += (size_t)n;
        heard[len] = '\0';
    }
    CHECK(send(*fd, says, strlen(says), MSG_NOSIGNAL) == (ssize_t)strlen(says));
    return len;
}

static void open_by_proxy(struct seen *s, const char *proxy)
{
    tailnet_posix_options options;
    tailnet_desc          desc;
    memset(&options, 0, sizeof options);
    memset(&desc, 0, sizeof desc);
    memset(s, 0, sizeof *s);
    options.user     = s;
    options.on_fd    = follow;
    desc.control_url = "https://control.test";      /* a name that only the proxy knows */
    desc.auth_key    = "none";
    desc.proxy       = proxy;
    CHECK(tailnet_posix_open(&posix, &desc, &options) == TAILNET_OK);
    CHECK(tailnet_up(posix.node) == TAILNET_OK);
}

static void through_a_proxy(void)
{
    struct seen     s;
    tailnet_problem problem;
    char            proxy[64], heard[1024];
    uint8_t         hello[3] = {0, 0, 0};
    uint16_t        port;
    size_t          more = 0;
    int             listener = listen_local(&port), fd;
    snprintf(proxy, sizeof proxy, "me:secret@127.0.0.1:%u", (unsigned)port);
    open_by_proxy(&s, proxy);
    (void)proxy_hears(listener, heard, sizeof heard, "HTTP/1.1 200 Go\r\nX: y\r\n\r\n", &fd);
    CHECK(strncmp(heard, "CONNECT control.test:443 HTTP/1.1\r\n", 35) == 0);
    CHECK(strstr(heard, "Basic bWU6c2VjcmV0\r\n") != NULL);
    turns(200);
    CHECK(recv(fd, hello, 3, 0) == 3 && hello[0] == 0x16);      /* TLS goes on behind it */
    CHECK(posix.lookups == 0);                                  /* we look no name up */
    close(fd);
    tailnet_posix_close(&posix);
    CHECK(s.count == 0);
    /* One that does not want us: a problem with its status, and no hurry. */
    open_by_proxy(&s, strchr(proxy, '@') + 1);
    (void)proxy_hears(listener, heard, sizeof heard,
                      "HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n", &fd);
    CHECK(strstr(heard, "Basic") == NULL);
    turns(2000);
    CHECK(tailnet_get_problem(posix.node, &problem) && problem.detail == 407);
    for (; fd >= 0; more++) {
        close(fd);
        fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    }
    CHECK(more <= 5);                                           /* in two seconds */
    tailnet_posix_close(&posix);
    close(listener);
}

static void random_bytes(void)
{
    uint8_t a[1000], b[1000];
    memset(a, 0, sizeof a);
    memset(b, 0, sizeof b);
    CHECK(tnp_io_random(NULL, a, sizeof a) == 0 && tnp_io_random(NULL, b, sizeof b) == 0);
    CHECK(memcmp(a, b, sizeof a) != 0 && memcmp(a + 500, b, 32) != 0);
    CHECK(tnp_io_random(NULL, a, 0) == 0);
}

int main(void)
{
    if (mkdtemp(folder) == NULL) return 2;
    TEST(address_texts);
    TEST(prefix_texts);
    TEST(file_whole);
    TEST(file_failures);
    TEST(pem_good);
    TEST(pem_truncated);
    TEST(pem_garbage);
    TEST(damaged_certificate_is_left_alone);
    TEST(udp_packets);
    TEST(echo_packets);
    TEST(packets_of_noise);
    TEST(udp_stretches);
    TEST(udp_runs);
    TEST(udp_errors);
#if defined(__linux__)
    TEST(uplinks);
#endif
    TEST(long_packets);
    TEST(long_packets_apart);
    TEST(vector_cipher);
    TEST(own_addresses);
    TEST(own_addresses_spare);
    TEST(own_addresses_many);
    TEST(network_differences);
    TEST(route_messages);
    TEST(network_sign);
    TEST(network_watch);
    TEST(through_a_proxy);
    TEST(random_bytes);
    TEST(bad_options);
    TEST(state_damaged);
    TEST(node_connects);
    TEST(run_stops);
    TEST(names_do_not_block);
    TEST(near_stream_is_held_short);
    TEST(holding_up_is_rare);
    TEST(names_time_out);
    TEST(addresses_in_turn);
    unlink(in_folder("state"));
    unlink(in_folder("kept"));
    unlink(in_folder("node.state"));
    rmdir(folder);
    return tn_test_end();
}
