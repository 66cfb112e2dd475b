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
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"
#include "tn_test.h"

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

static int listen_local(uint16_t *port)
{
    struct sockaddr_in sa;
    socklen_t          len = (socklen_t)sizeof sa;
    int                fd  = socket(AF_INET, SOCK_STREAM, 0);
    memset(&sa, 0, sizeof sa);
    sa.sin_family      = AF_INET;
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(fd, (const struct sockaddr *)&sa, sizeof sa) == 0 && listen(fd, 4) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&sa, &len) == 0);
    *port = ntohs(sa.sin_port);
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
    TEST(udp_packets);
    TEST(echo_packets);
    TEST(packets_of_noise);
    TEST(random_bytes);
    TEST(bad_options);
    TEST(state_damaged);
    TEST(node_connects);
    TEST(run_stops);
    TEST(names_do_not_block);
    TEST(names_time_out);
    TEST(addresses_in_turn);
    unlink(in_folder("state"));
    unlink(in_folder("kept"));
    unlink(in_folder("node.state"));
    rmdir(folder);
    return tn_test_end();
}
