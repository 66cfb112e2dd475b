/* The POSIX platform: packets that peers wrote, joined for the TUN device and cut again by what
 * stands for the kernel; long packets of any shape from the device; packets to us without a
 * device; CA files. The first byte says which. */
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE 1
#endif
#include <sys/uio.h>
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

static ssize_t        to_device(int fd, const struct iovec *part, int count);
static tailnet_result from_us(tailnet_node *node, tailnet_buf *pkts, size_t count);
#define writev           to_device
#define tailnet_ip_input from_us
#define TAILNET_PLATFORM_POSIX_IMPLEMENTATION
#include "tailnet_platform_posix.h"
#undef writev
#undef tailnet_ip_input
#include <stdlib.h>

#define DEMAND(x) do { if (!(x)) abort(); } while (0)

enum { PACKETS = 64, LARGEST = 1400 };      /* more than one long packet holds */

static tailnet_posix platform;
static tailnet_buf   packet[PACKETS];
static uint8_t       space[PACKETS][TAILNET_POSIX_SPACE], before[PACKETS][TAILNET_POSIX_SPACE];
static uint8_t       written[70000];
static size_t        packets, arrived, answers;

/* Is this the packet that was handed over? Joining may change the id of IPv4, and the sum over
 * it, which is right then. */
static void same(const uint8_t *got, size_t size, bool joined)
{
    uint8_t *was = before[arrived];
    DEMAND(arrived < packets && size == packet[arrived].len);
    if (joined && got[0] >> 4 == 4) {
        DEMAND(memcmp(got, was, 4) == 0 && memcmp(got + 6, was + 6, 4) == 0);
        DEMAND(memcmp(got + 12, was + 12, size - 12) == 0);
        DEMAND(tnp_sum_end(tnp_sum(0, got, 20)) == 0);
    } else {
        DEMAND(memcmp(got, was, size) == 0);
    }
    arrived++;
}

static ssize_t to_device(int fd, const struct iovec *part, int count)
{
    tailnet_posix_vnet v;
    tailnet_posix_cut  c;
    uint8_t            piece[TAILNET_POSIX_SPACE];
    size_t             size = 0;
    int                i;
    (void)fd;
    DEMAND(count >= 2 && part[0].iov_len == sizeof v);
    memcpy(&v, part[0].iov_base, sizeof v);
    for (i = 1; i < count; i++) {
        DEMAND(part[i].iov_len <= sizeof written - size);
        memcpy(written + size, part[i].iov_base, part[i].iov_len);
        size += part[i].iov_len;
    }
    DEMAND(size <= 65535 + 40);     /* IPv6 does not count its own header */
    if (v.kind == 0) {
        same(written, size, false);
        return 0;
    }
    DEMAND(tnp_cut_begin(&c, &v, written, size));
    while (c.next < c.count) {
        size_t n = tnp_cut_next(&c, written, piece);
        same(piece, n, true);
    }
    return 0;
}

static tailnet_result from_us(tailnet_node *node, tailnet_buf *pkts, size_t count)
{
    (void)node;
    DEMAND(count == 1 && pkts->len >= 28 && pkts->len <= platform.mtu);
    answers++;
    return TAILNET_OK;
}

/* A TCP packet, its sums right, with up to three bytes of the input poked into its headers. */
static size_t make(uint8_t *out, const uint8_t *seed, size_t i, uint32_t sequence)
{
    size_t   ip = (seed[0] & 1) != 0 ? 40u : 20u, head = ip + 20 + (seed[0] & 6u) * 2u;
    size_t   data = (size_t)(seed[1] | (seed[2] & 7) << 8), size = head + data;
    unsigned k;
    if (size > LARGEST) size = LARGEST;
    memset(out, (int)i, size);
    memset(out, 0, head);
    out[0]                = ip == 20 ? 0x45 : 0x60;
    out[ip == 20 ? 8 : 7] = 64;
    out[ip == 20 ? 9 : 6] = 6;
    tnp_put32(out + ip + 4, sequence);
    out[ip + 12] = (uint8_t)((head - ip) / 4 << 4);
    out[ip + 13] = (uint8_t)(0x10 | (seed[0] & 8));
    for (k = 0; k < 3; k++)
        if (seed[3 + 2 * k] < 72) out[seed[3 + 2 * k] % head] ^= seed[4 + 2 * k];
    if ((seed[0] & 16) == 0) tnp_ip_length(out, size);
    tnp_put16(out + ip + 16, 0);
    tnp_put16(out + ip + 16,
              tnp_sum_end(tnp_sum(tnp_sum_front(out, 6, size - ip), out + ip, size - ip)));
    if ((seed[0] & 32) != 0) out[size - 1] ^= seed[9];
    return size;
}

static void join(const uint8_t *data, size_t size)
{
    uint32_t sequence = 0xfffffe00u;
    memset(packet, 0, sizeof packet);
    for (packets = 0; packets < PACKETS && size >= 10; packets++, data += 10, size -= 10) {
        tailnet_buf *b = &packet[packets];
        b->base        = space[packets];
        b->cap         = TAILNET_POSIX_SPACE;
        b->off         = TAILNET_HEADROOM;
        b->len         = (uint32_t)make(b->base + b->off, data, packets, sequence);
        sequence += b->len - ((data[0] & 1) != 0 ? 60u : 40u) - (data[0] & 6u) * 2u;
        memcpy(before[packets], b->base + b->off, b->len);
    }
    platform.vnet = true;
    arrived       = 0;
    tnp_tun_write(&platform, packet, packets);
    DEMAND(arrived == packets);
}

static void cut(const uint8_t *data, size_t size)
{
    tailnet_posix_vnet v;
    tailnet_posix_cut  c;
    uint8_t           *copy;
    uint8_t            piece[TNP_PACKET_MOST];
    size_t             sum = 0;
    if (size <= sizeof v) return;
    memcpy(&v, data, sizeof v);
    size -= sizeof v;
    copy = (uint8_t *)malloc(size);
    DEMAND(copy != NULL);
    memcpy(copy, data + sizeof v, size);
    if (tnp_cut_begin(&c, &v, copy, size)) {
        DEMAND(c.count != 0 && c.count <= size);
        while (c.next < c.count) {
            size_t n = tnp_cut_next(&c, copy, piece);
            DEMAND(n >= c.head && n <= sizeof piece);
            sum += n - c.head;
        }
        DEMAND(sum == size - c.head);
    }
    free(copy);
}

static void on_udp(void *user, tailnet_posix *p, const tailnet_addr *from, uint16_t port,
                   const void *data, size_t size)
{
    const uint8_t   *b = (const uint8_t *)data;
    size_t           i;
    volatile uint8_t sink = 0;
    (void)user;
    (void)p;
    (void)port;
    for (i = 0; i < size; i++) sink = b[i];
    (void)sink;
    DEMAND((from->family == 4 || from->family == 6) && size < 65536);
}

/* A sum that is right is more than a fuzzer guesses. */
static void mend_sum(uint8_t *p, size_t size)
{
    tnp_packet k;
    uint8_t   *body;
    size_t     at, len;
    if (!tnp_packet_read(&k, p, size) || k.size < 8) return;
    at   = k.protocol == TNP_UDP ? 6 : 2;
    body = p + (size_t)(k.body - p);
    len  = k.protocol == TNP_UDP ? tnp_get16(body + 4) : k.size;
    if (len < 8 || len > k.size) return;
    tnp_put16(body + at, 0);
    tnp_put16(body + at, tnp_sum_end(tnp_sum(tnp_sum_pseudo(&k.src, &k.dst, k.protocol, len),
                                             body, len)));
}

static void to_us(const uint8_t *data, size_t size, bool mend)
{
    uint8_t *copy = (uint8_t *)malloc(size);
    DEMAND(copy != NULL);
    memcpy(copy, data, size);
    if (mend) mend_sum(copy, size);
    platform.mtu        = 1280;
    platform.opt.on_udp = on_udp;
    answers             = 0;
    tnp_packet_in(&platform, copy, size);
    DEMAND(answers <= 1);
    free(copy);
}

static void anchors(const uint8_t *data, size_t size)
{
    tailnet_posix_ca ca;
    memset(&ca, 0, sizeof ca);
    if (tailnet_posix_anchors(&ca, (const char *)data, size) == TAILNET_OK)
        DEMAND(ca.count <= TAILNET_POSIX_ANCHORS);
    tailnet_posix_anchors_free(&ca);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    switch (data[0] & 3) {
    case 0: join(data + 1, size - 1); break;
    case 1: cut(data + 1, size - 1); break;
    case 2: to_us(data + 1, size - 1, (data[0] & 4) != 0); break;
    default: anchors(data + 1, size - 1); break;
    }
    return 0;
}
