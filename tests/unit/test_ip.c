/* Looking into IP packets, masquerade, TSMP. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"
#include "tn_test.h"

static void addr(tailnet_addr *out, const char *text)
{
    if (!tn_ip_parse(out, text, strlen(text))) abort();
}

static uint16_t whole_sum(const uint8_t *p, size_t len, uint32_t start)
{
    uint64_t sum = start;
    size_t   i;
    for (i = 0; i + 1 < len; i += 2) sum += (uint64_t)p[i] << 8 | p[i + 1];
    if (len % 2 != 0) sum += (uint64_t)p[len - 1] << 8;
    while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

static void put16(uint8_t *p, unsigned v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)(v & 0xff);
}

/* A packet of any protocol with the given transport bytes and right checksums,
 * made the plain way. option_len (IPv4) is a multiple of 4. */
static size_t make(uint8_t *out, const tailnet_addr *src, const tailnet_addr *dst,
                   unsigned protocol, const uint8_t *body, size_t body_len, unsigned option_len)
{
    unsigned n    = src->family == 4 ? 4 : 16;
    size_t   head = src->family == 4 ? 20 + option_len : 40;
    int      at   = protocol == 6 ? 16 : protocol == 17 ? 6 : -1;
    uint32_t pseudo;

    memset(out, 0, head);
    memcpy(out + head, body, body_len);
    if (src->family == 4) {
        out[0] = (uint8_t)(0x45 + option_len / 4);
        put16(out + 2, (unsigned)(head + body_len));
        put16(out + 4, 0x1234);
        out[8] = 64;
        out[9] = (uint8_t)protocol;
        memcpy(out + 12, src->ip, 4);
        memcpy(out + 16, dst->ip, 4);
        put16(out + 10, 0xffffu & ~(unsigned)whole_sum(out, head, 0));
    } else {
        out[0] = 0x60;
        put16(out + 4, (unsigned)body_len);
        out[6] = (uint8_t)protocol;
        out[7] = 64;
        memcpy(out + 8, src->ip, 16);
        memcpy(out + 24, dst->ip, 16);
    }
    pseudo = whole_sum(src->ip, n, 0);
    pseudo += whole_sum(dst->ip, n, 0);
    pseudo += protocol + (uint32_t)body_len;
    if ((src->family == 4 && protocol == 1) || (src->family == 6 && protocol == 58)) {
        at = 2;
        if (protocol == 1) pseudo = 0;
    }
    if (at >= 0) {
        unsigned sum;
        put16(out + head + at, 0);
        sum = 0xffffu & ~(unsigned)whole_sum(out + head, body_len, pseudo);
        if (protocol == 17 && sum == 0) sum = 0xffff;
        put16(out + head + at, sum);
    }
    return head + body_len;
}

static void fill(uint8_t *p, size_t len)
{
    size_t i;
    for (i = 0; i < len; i++) p[i] = (uint8_t)tn_test_random();
}

static void reads_ipv4(void)
{
    uint8_t      tcp[20] = {0x9c, 0x40, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x12}, b[128];
    tailnet_addr s, d;
    tn_ip_packet p;
    unsigned     options;

    addr(&s, "100.64.0.1");
    addr(&d, "100.64.0.10");
    for (options = 0; options <= 40; options += 4) {
        size_t n = make(b, &s, &d, 6, tcp, sizeof tcp, options), cut;
        CHECK(tn_ip_read(&p, b, n));
        CHECK(p.family == 4 && p.flow.protocol == 6 && p.len == n && p.body == 20 + options);
        CHECK(tn_ip_same(&p.flow.src, &s) && tn_ip_same(&p.flow.dst, &d));
        CHECK(p.flow.src.port == 40000 && p.flow.dst.port == 22);
        CHECK(p.tcp_flags == (TN_IP_SYN | TN_IP_ACK) && p.icmp == TN_IP_NO_ICMP && !p.fragmented);
        CHECK(tn_ip_sums_ok(&p));
        b[n] = 0xee;                        /* padding behind                     */
        CHECK(tn_ip_trim(b, n + 1) == n && tn_ip_read(&p, b, n + 1) && p.len == n);
        for (cut = 0; cut < n; cut++) {
            CHECK(tn_ip_trim(b, cut) == 0);
            CHECK(!tn_ip_read(&p, b, cut) && p.flow.protocol == TN_IP_UNKNOWN && p.len <= cut);
        }
    }
}

static void reads_ipv6(void)
{
    uint8_t      udp[12] = {0, 53, 0x0f, 0xa0, 0, 12, 0, 0, 1, 2, 3, 4}, b[128];
    uint8_t      frag[20] = {17, 0, 0, 1, 0, 0, 0, 1};
    tailnet_addr s, d;
    tn_ip_packet p;
    size_t       n, cut;

    addr(&s, "fd7a:115c:a1e0::1");
    addr(&d, "fd7a:115c:a1e0::10");
    n = make(b, &s, &d, 17, udp, sizeof udp, 0);
    CHECK(tn_ip_read(&p, b, n) && p.family == 6 && p.flow.protocol == 17 && p.body == 40);
    CHECK(tn_ip_same(&p.flow.src, &s) && tn_ip_same(&p.flow.dst, &d));
    CHECK(p.flow.src.port == 53 && p.flow.dst.port == 4000 && tn_ip_sums_ok(&p));
    for (cut = 0; cut < n; cut++) CHECK(!tn_ip_read(&p, b, cut) && tn_ip_trim(b, cut) == 0);

    memcpy(frag + 8, udp, 12);
    n = make(b, &s, &d, 44, frag, sizeof frag, 0);
    CHECK(tn_ip_read(&p, b, n) && p.flow.protocol == 17 && p.body == 48 && p.fragmented);
    CHECK(p.flow.src.port == 53 && p.flow.dst.port == 4000);
    for (cut = 0; cut < n; cut++) CHECK(!tn_ip_read(&p, b, cut));
    put16(b + 42, 185 << 3);
    CHECK(tn_ip_read(&p, b, n) && p.flow.protocol == TN_IP_FRAGMENT && p.flow.src.port == 0);
    put16(b + 42, 9 << 3);
    CHECK(!tn_ip_read(&p, b, n));
    put16(b + 42, 10 << 3 | 1);
    CHECK(tn_ip_read(&p, b, n) && p.flow.protocol == TN_IP_FRAGMENT);
    b[40] = 99;
    put16(b + 42, 1);                       /* TSMP in pieces                     */
    CHECK(!tn_ip_read(&p, b, n));
    put16(b + 42, 0);
    CHECK(tn_ip_read(&p, b, n) && p.flow.protocol == 99 && !p.fragmented);
    b[6] = 60;                              /* no walk through other headers      */
    CHECK(tn_ip_read(&p, b, n) && p.flow.protocol == 60 && p.body == 40);
    put16(b + 4, 65535);                    /* 16 bits would wrap                 */
    CHECK(!tn_ip_read(&p, b, n) && tn_ip_trim(b, n) == 0);
    put16(b + 4, 65496);
    CHECK(!tn_ip_read(&p, b, n) && tn_ip_trim(b, n) == 0);
}

static void knows_smallest_headers(void)
{
    static const struct { unsigned family, protocol, least; } is[] = {
        {4, 1, 4}, {4, 2, 8}, {4, 6, 20}, {4, 17, 8}, {4, 132, 12}, {4, 99, 7}, {4, 58, 0},
        {4, 47, 0}, {6, 58, 4}, {6, 1, 0}, {6, 2, 0}, {6, 6, 20}, {6, 17, 8}, {6, 132, 12},
        {6, 99, 7}, {6, 59, 0}, {6, 50, 0}
    };
    uint8_t      body[32], b[128];
    tailnet_addr s, d;
    tn_ip_packet p;
    size_t       i, n;

    memset(body, 0, sizeof body);
    for (i = 0; i < sizeof is / sizeof is[0]; i++) {
        addr(&s, is[i].family == 4 ? "1.2.3.4" : "::1");
        addr(&d, is[i].family == 4 ? "1.2.3.5" : "::2");
        n = make(b, &s, &d, is[i].protocol, body, 32, 0) - 32 + is[i].least;
        put16(b + (is[i].family == 4 ? 2 : 4), (unsigned)(is[i].family == 4 ? n : is[i].least));
        CHECK(tn_ip_read(&p, b, n) && p.flow.protocol == is[i].protocol);
        if (is[i].least == 0) continue;
        put16(b + (is[i].family == 4 ? 2 : 4),
              (unsigned)(is[i].family == 4 ? n - 1 : is[i].least - 1));
        CHECK(!tn_ip_read(&p, b, n - 1));
    }
    for (i = 0; i < 2; i++) {               /* 0 and 255 mean something else here */
        n = make(b, &s, &d, i == 0 ? 0 : 255, body, 32, 0);
        CHECK(!tn_ip_read(&p, b, n));
    }
    CHECK(!tn_ip_read(&p, NULL, 0) && p.len == 0);
    b[0] = 0x55;
    CHECK(!tn_ip_read(&p, b, 60) && p.family == 0);
}

static void reads_icmp(void)
{
    uint8_t      echo[12] = {8, 0, 0, 0, 0x12, 0x34, 0, 1, 9, 9, 9, 9}, b[256], e[128];
    uint8_t      udp[8] = {0x0f, 0xa0, 0, 53, 0, 8, 0, 0}, body[160];
    tailnet_addr me, peer, router;
    tn_ip_packet p;
    size_t       n, q;
    int          six;

    for (six = 0; six < 2; six++) {
        unsigned icmp = six ? 58 : 1, cut;
        addr(&me, six ? "fd7a:115c:a1e0::10" : "100.64.0.10");
        addr(&peer, six ? "fd7a:115c:a1e0::1" : "100.64.0.1");
        addr(&router, six ? "fd7a:115c:a1e0::9" : "100.64.0.9");
        echo[0] = six ? 128 : 8;
        n = make(b, &peer, &me, icmp, echo, sizeof echo, 0);
        CHECK(tn_ip_read(&p, b, n) && p.icmp == TN_IP_ECHO_REQUEST && tn_ip_sums_ok(&p));
        CHECK(p.flow.src.port == 0x1234 && p.flow.dst.port == 0);
        echo[0] = six ? 129 : 0;
        n = make(b, &peer, &me, icmp, echo, sizeof echo, 0);
        CHECK(tn_ip_read(&p, b, n) && p.icmp == TN_IP_ECHO_REPLY);
        CHECK(p.flow.src.port == 0 && p.flow.dst.port == 0x1234);
        echo[1] = 1;
        n = make(b, &peer, &me, icmp, echo, sizeof echo, 0);
        CHECK(tn_ip_read(&p, b, n) && p.icmp == TN_IP_ICMP_OTHER && p.flow.dst.port == 0);
        echo[1] = 0;
        n = make(b, &peer, &me, icmp, echo, 7, 0);
        CHECK(tn_ip_read(&p, b, n) && p.icmp == TN_IP_ICMP_OTHER);
        n = make(b, &peer, &me, six ? 1 : 58, echo, sizeof echo, 0);
        CHECK(tn_ip_read(&p, b, n) && p.icmp == TN_IP_NO_ICMP);

        memset(body, 0, 8);                 /* an error about a UDP packet of ours */
        body[0] = six ? 1 : 3;
        q = make(e, &me, &peer, 17, udp, sizeof udp, 0);
        memcpy(body + 8, e, q);
        for (cut = 0; cut <= q; cut++) {
            n = make(b, &router, &me, icmp, body, 8 + cut, 0);
            CHECK(tn_ip_read(&p, b, n) && p.icmp == TN_IP_ICMP_ERROR && tn_ip_sums_ok(&p));
            CHECK((p.quoted.src.family != 0) == (cut >= (six ? 44u : 24u)));
        }
        CHECK(p.quoted.protocol == 17 && p.quoted.src.port == 4000 && p.quoted.dst.port == 53);
        CHECK(tn_ip_same(&p.quoted.src, &me) && tn_ip_same(&p.quoted.dst, &peer));
        b[n - 8 - (six ? 40 : 20)] ^= 0x20; /* the other version inside           */
        CHECK(tn_ip_read(&p, b, n) && p.quoted.src.family == 0);
        b[n - 8 - (six ? 40 : 20)] ^= 0x20;
        if (!six) {
            put16(b + 20 + 8 + 6, 100);     /* a later fragment is quoted         */
            CHECK(tn_ip_read(&p, b, n) && p.quoted.src.family == 0);
        }
        echo[0] = six ? 128 : 8;            /* about our echo request             */
        q = make(e, &me, &peer, icmp, echo, sizeof echo, 0);
        memcpy(body + 8, e, q);
        n = make(b, &router, &me, icmp, body, 8 + q, 0);
        CHECK(tn_ip_read(&p, b, n) && p.quoted.protocol == icmp && p.quoted.src.port == 0x1234);
        body[8 + (six ? 40 : 20)] = six ? 129 : 0;      /* about a reply: no flow */
        n = make(b, &router, &me, icmp, body, 8 + q, 0);
        CHECK(tn_ip_read(&p, b, n) && p.quoted.src.family == 0);
    }
    CHECK(tn_ip_icmp_kind(4, 3, 9) == TN_IP_ICMP_ERROR && tn_ip_icmp_kind(4, 11, 0) == TN_IP_ICMP_ERROR);
    CHECK(tn_ip_icmp_kind(4, 12, 0) == TN_IP_ICMP_ERROR && tn_ip_icmp_kind(4, 18, 0) == TN_IP_ICMP_OTHER);
    CHECK(tn_ip_icmp_kind(6, 4, 0) == TN_IP_ICMP_ERROR && tn_ip_icmp_kind(6, 0, 0) == TN_IP_ICMP_OTHER);
    CHECK(tn_ip_icmp_kind(6, 5, 0) == TN_IP_ICMP_OTHER && tn_ip_icmp_kind(6, 134, 0) == TN_IP_ICMP_OTHER);
}

/* Rewriting must give what making the packet with the new address gives. */
static void masquerades(void)
{
    static const unsigned protocols[] = {6, 17, 1, 58, 132, 47};
    uint8_t               body[200], a[300], b[300];
    tailnet_addr          s, d, other;
    tn_ip_packet          p;
    int                   round;

    for (round = 0; round < 20000; round++) {
        unsigned protocol = protocols[tn_test_random() % 6];
        size_t   len      = 20 + tn_test_random() % 150, n, m;
        bool     six = tn_test_random() % 2 != 0, src = tn_test_random() % 2 != 0, done;
        unsigned options = six ? 0 : 4 * (unsigned)(tn_test_random() % 4);
        tailnet_addr *old;

        fill(body, len);
        addr(&s, six ? "fd7a:115c:a1e0::1" : "100.64.0.1");
        addr(&d, six ? "fd7a:115c:a1e0::2" : "100.64.0.2");
        other = s;
        fill(other.ip, six ? 16 : 4);
        if (tn_test_random() % 8 == 0) memset(other.ip, tn_test_random() % 2 ? 0xff : 0, six ? 16 : 4);
        if (protocol == (six ? 58u : 1u)) body[0] = (uint8_t)(six ? 128 : 8);   /* quotes: below */
        n = make(a, &s, &d, protocol, body, len, options);
        if (!tn_ip_read(&p, a, n)) continue;
        old  = src ? &s : &d;
        done = src ? tn_ip_set_src(a, &p, &other) : tn_ip_set_dst(a, &p, &other);
        *old = other;
        m    = make(b, &s, &d, protocol, body, len, options);
        CHECK(done && n == m);
        CHECK_BYTES(a, b, n);
        CHECK(tn_ip_same(src ? &p.flow.src : &p.flow.dst, &other));
        CHECK(tn_ip_sums_ok(&p));
        a[p.body] ^= 1;                     /* and a wrong one stays wrong        */
        if (protocol == 6) CHECK(!tn_ip_sums_ok(&p));
    }
    addr(&s, "1.2.3.4");
    addr(&other, "::1");
    (void)make(a, &s, &s, 17, body, 30, 0);
    CHECK(tn_ip_read(&p, a, 50) && !tn_ip_set_src(a, &p, &other));
    a[0] = 0x44;
    CHECK(!tn_ip_read(&p, a, 50) && !tn_ip_set_dst(a, &p, &s));
}

/* An ICMP error comes in for the address a peer knows us by, and quotes a packet
 * that we sent; one that goes out quotes what the peer sent. */
static void masquerades_errors(void)
{
    uint8_t      tcp[20], body[200], a[300], b[300], inner[100];
    tailnet_addr me, masq, peer, router;
    tn_ip_packet p;
    int          six, out, round;

    for (round = 0; round < 400; round++)
        for (six = 0; six < 2; six++)
            for (out = 0; out < 2; out++) {
                unsigned icmp = six ? 58 : 1;
                size_t   q, n, m, len;

                addr(&me, six ? "fd7a:115c:a1e0::10" : "100.64.0.10");
                addr(&masq, six ? "fd7a:115c:a1e0::77" : "100.77.7.7");
                addr(&peer, six ? "fd7a:115c:a1e0::1" : "100.64.0.1");
                addr(&router, six ? "fd7a:115c:a1e0::9" : "100.64.0.9");
                fill(tcp, sizeof tcp);
                fill(body, 8);
                fill(masq.ip + 2, 2);
                body[0] = six ? 3 : 11;
                len     = 8 + (six ? 40u : 20u) + 8 + tn_test_random() % 12;
                if (out) {
                    q = make(inner, &peer, &me, 6, tcp, sizeof tcp, 0);
                    memcpy(body + 8, inner, q);
                    n = make(a, &me, &peer, icmp, body, len, 0);
                    CHECK(tn_ip_read(&p, a, n) && tn_ip_set_src(a, &p, &masq));
                    CHECK(tn_ip_same(&p.quoted.dst, &masq));
                    memcpy(inner + (six ? 24 : 16), masq.ip, six ? 16 : 4);
                } else {
                    q = make(inner, &masq, &peer, 6, tcp, sizeof tcp, 0);
                    memcpy(body + 8, inner, q);
                    n = make(a, &router, &masq, icmp, body, len, 0);
                    CHECK(tn_ip_read(&p, a, n) && tn_ip_set_dst(a, &p, &me));
                    CHECK(tn_ip_same(&p.quoted.src, &me));
                    memcpy(inner + (six ? 8 : 12), me.ip, six ? 16 : 4);
                }
                CHECK(tn_ip_sums_ok(&p));
                if (!six) {                 /* the inner head is right, too       */
                    put16(inner + 10, 0);
                    put16(inner + 10, 0xffffu & ~(unsigned)whole_sum(inner, 20, 0));
                }
                memcpy(body + 8, inner, q);
                m = make(b, out ? &masq : &router, out ? &peer : &me, icmp, body, len, 0);
                CHECK(n == m);
                CHECK_BYTES(a, b, n);
            }
    /* A quote that has nothing to do with the address stays. */
    addr(&me, "100.64.0.10");
    addr(&masq, "100.77.7.7");
    addr(&peer, "100.64.0.1");
    fill(body, 8);
    body[0] = 3;
    memcpy(body + 8, inner, make(inner, &peer, &peer, 6, tcp, 20, 0));
    (void)make(a, &peer, &me, 1, body, 48, 0);
    CHECK(tn_ip_read(&p, a, 68) && tn_ip_set_dst(a, &p, &masq) && tn_ip_sums_ok(&p));
    CHECK_BYTES(a + 28, body + 8, 40);
}

static void keeps_udp_without_sum(void)
{
    uint8_t      udp[8] = {0, 1, 0, 2, 0, 8, 0, 0}, a[64];
    tailnet_addr s, d;
    tn_ip_packet p;
    unsigned     i, seen = 0;

    addr(&s, "100.64.0.1");
    addr(&d, "100.64.0.2");
    (void)make(a, &s, &d, 17, udp, 8, 0);
    put16(a + 26, 0);
    CHECK(tn_ip_read(&p, a, 28) && tn_ip_sums_ok(&p));
    addr(&d, "100.99.1.2");
    CHECK(tn_ip_set_dst(a, &p, &d) && a[26] == 0 && a[27] == 0 && tn_ip_sums_ok(&p));
    for (i = 0; i < 65536; i++) {           /* one of these sums comes out as 0   */
        put16(udp, i);
        addr(&d, "100.64.0.2");
        (void)make(a, &s, &d, 17, udp, 8, 0);
        addr(&d, "100.99.1.2");
        if (!tn_ip_read(&p, a, 28) || !tn_ip_set_dst(a, &p, &d) || (a[26] == 0 && a[27] == 0) ||
            !tn_ip_sums_ok(&p))
            break;
        seen += a[26] == 0xff && a[27] == 0xff;
    }
    CHECK(i == 65536 && seen == 1);
}

static void later_fragments_keep_their_bytes(void)
{
    uint8_t      body[64], a[100], before[100];
    tailnet_addr s, d;
    tn_ip_packet p;

    addr(&s, "100.64.0.1");
    addr(&d, "100.99.1.2");
    fill(body, sizeof body);
    (void)make(a, &s, &s, 6, body, sizeof body, 0);
    put16(a + 6, 185);
    put16(a + 10, 0);
    put16(a + 10, 0xffffu & ~(unsigned)whole_sum(a, 20, 0));
    memcpy(before, a, 84);
    CHECK(tn_ip_read(&p, a, 84) && p.flow.protocol == TN_IP_FRAGMENT);
    CHECK(tn_ip_set_dst(a, &p, &d));
    CHECK_BYTES(a + 20, before + 20, 64);
    CHECK_BYTES(a + 16, d.ip, 4);
    CHECK(whole_sum(a, 20, 0) == 0xffff);
}

static void answers_tsmp(void)
{
    uint8_t      opaque[8] = {'1', '2', '3', '4', '5', '6', '7', '8'}, key[32];
    uint8_t      ping[80], out[80];
    tailnet_addr me, peer;
    tn_ip_packet p, q;
    tn_ip_tsmp   t;
    tn_wr        w;
    size_t       n, i, cut;
    int          six;

    for (six = 0; six < 2; six++) {
        addr(&me, six ? "fd7a:115c:a1e0::10" : "100.64.0.10");
        addr(&peer, six ? "fd7a:115c:a1e0::99" : "100.64.9.9");
        tn_wr_over(&w, ping, sizeof ping);
        tn_ip_wr_ping(&w, &peer, &me, opaque);
        n = tn_wr_len(&w);
        if (six) put16(ping + 2, 0xabcd);
        else put16(ping + 4, 0x1234);
        CHECK(tn_ip_read(&p, ping, n) && tn_ip_tsmp_parse(&t, &p) && t.kind == TN_IP_TSMP_PING);
        CHECK_BYTES(t.data, opaque, 8);
        tn_wr_over(&w, out, sizeof out);
        tn_ip_wr_pong(&w, &p, &t, 0x8765);
        n = tn_wr_len(&w);
        CHECK(tn_wr_ok(&w) && n == (six ? 51u : 31u));
        CHECK(six ? tn_get_u32be(out) == 0x600f5432u : out[4] == 0xed && out[5] == 0xcb);
        CHECK(out[six ? 7 : 8] == 64);
        CHECK(tn_ip_read(&q, out, n) && tn_ip_sums_ok(&q));
        CHECK(tn_ip_same(&q.flow.src, &me) && tn_ip_same(&q.flow.dst, &peer));
        CHECK(tn_ip_tsmp_parse(&t, &q) && t.kind == TN_IP_TSMP_PONG && t.port == 0x8765);
        CHECK_BYTES(t.data, opaque, 8);
        for (i = 7; i <= 11; i++) {         /* 9 bytes are enough, the port is extra */
            put16(out + (six ? 4 : 2), (unsigned)(six ? i : 20 + i));
            CHECK(tn_ip_read(&q, out, (six ? 40 : 20) + i) && tn_ip_tsmp_parse(&t, &q));
            CHECK(t.kind == (i < 9 ? TN_IP_TSMP_OTHER : TN_IP_TSMP_PONG));
            CHECK(t.port == (i < 11 ? 0 : 0x8765));
        }
        fill(key, 32);
        tn_wr_over(&w, out, TN_IP_TSMP_MAX);
        tn_ip_wr_disco(&w, &peer, &me, key);
        CHECK(tn_wr_ok(&w) && tn_wr_len(&w) == (six ? 73u : 53u));
        n = tn_wr_len(&w);
        for (cut = 7; cut <= 33; cut++) {
            put16(out + (six ? 4 : 2), (unsigned)(six ? cut : 20 + cut));
            CHECK(tn_ip_read(&q, out, n) && tn_ip_tsmp_parse(&t, &q));
            CHECK(t.kind == (cut < 33 ? TN_IP_TSMP_OTHER : TN_IP_TSMP_DISCO));
        }
        CHECK_BYTES(t.data, key, 32);
    }
}

static void refuses_with_a_word(void)
{
    uint8_t      ping[80], out[80], want[80];
    tn_ip_packet p, q;
    tn_ip_tsmp   t;
    tn_wr        w;
    size_t       n, i;

    n = tn_test_hex(ping, sizeof ping,      /* the SYN and its refusal of the document */
                    "450000280001000040060000644000026440000a9c40001600000000000000005002"
                    "040000000000");
    CHECK(tn_ip_read(&p, ping, n));
    tn_wr_over(&w, out, sizeof out);
    tn_ip_wr_reject(&w, &p, TN_IP_REJECT_ACL);
    n = tn_test_hex(want, sizeof want, "4500001b000000004063b1f46440000a644000022106419c400016");
    CHECK(tn_wr_len(&w) == n);
    CHECK_BYTES(out, want, n);
    CHECK(tn_ip_read(&q, out, n) && tn_ip_tsmp_parse(&t, &q) && t.kind == TN_IP_TSMP_REJECT);
    CHECK(t.reason == 'A' && t.rejected.protocol == 6 && !t.maybe_broken);
    CHECK(tn_addr_same(&t.rejected.src, &p.flow.src) && tn_addr_same(&t.rejected.dst, &p.flow.dst));
    out[3] = 28;
    out[27] = 1;
    CHECK(tn_ip_read(&q, out, 28) && tn_ip_tsmp_parse(&t, &q) && t.maybe_broken);
    out[20] = 'x';
    CHECK(tn_ip_read(&q, out, 28) && tn_ip_tsmp_parse(&t, &q) && t.kind == TN_IP_TSMP_OTHER);
    CHECK(!tn_ip_tsmp_parse(&t, &p));
    for (i = 0; i < 28; i++) {              /* too little room: a result, no overrun */
        tn_wr_over(&w, out, i);
        tn_ip_wr_reject(&w, &p, TN_IP_REJECT_SHIELDS);
        CHECK(tn_wr_ok(&w) == (i >= 27));
    }
}

int main(void)
{
    TEST(reads_ipv4);
    TEST(reads_ipv6);
    TEST(knows_smallest_headers);
    TEST(reads_icmp);
    TEST(masquerades);
    TEST(masquerades_errors);
    TEST(keeps_udp_without_sum);
    TEST(later_fragments_keep_their_bytes);
    TEST(answers_tsmp);
    TEST(refuses_with_a_word);
    return tn_test_end();
}
