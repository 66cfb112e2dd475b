/* modem.c - a device in the tailnet without a TCP/IP stack of its own: its sockets are in a
 * modem on a second UART. All of it, stack included, in 64 KiB of memory and 128 KiB of
 * flash. It answers pings and UDP port 7 on its tailnet address, in IPv4 and IPv6.
 *
 * Both sides send frames: kind, channel, length (two bytes, low first), contents.
 *
 *   to the modem                              from the modem
 *   'R'  forget everything                    'N'  the network: address (4), port (2) of the
 *   'O'  connect: port (2), address (4,            datagram socket
 *        zeros: unknown), name                'O'  connected
 *   'D'  bytes of a connection                'D'  bytes of a connection
 *   'C'  close                                'C'  closed, or it could not be opened
 *   'U'  datagram: address (4), port (2),     'U'  datagram: the same
 *        bytes
 *   'T'  (tests) now (8), nothing to do       'T'  sleep until (8), then read this many (4)
 *        until (8)                                 bytes of frames
 *
 * A channel is a slot of the library and six bits of its generation, so that what the modem
 * still sends of an old connection is known as such. */
#define TAILNET_IMPLEMENTATION
#include "tailnet.h"

#include "board.h"
#include "modem_uart.h"
#include "report.h"
#include "settings.h"

#ifndef MAX_TLS
#  define MAX_TLS 1
#endif

enum { PEERS = 16, SESSIONS = 4, LINKS = 2, MTU = 1280, RECORD = 512, RECORD_HEAD = 16,
       ECHO_PORT = 7 };

static TAILNET_MEMORY(memory, PEERS, SESSIONS, LINKS, MAX_TLS);
static tailnet_node        *node;
static br_x509_trust_anchor anchor;
static tailnet_link         links[LINKS];       /* 0: closed                              */
static uint32_t             newest;             /* number of the newest record in flash   */
static uint16_t             our_port;
static bool                 lockstep;           /* the modem says what time passes        */

/* One packet, whoever needs it: a datagram on its way in, the answer to it on its way out,
 * a record of the state while it is read or written. */
static struct {
    uint8_t  bytes[TAILNET_HEADROOM + MTU + TAILNET_TAILROOM];
    uint32_t off, len;                          /* len 0: no answer waits                 */
} packet;

static struct {                                 /* the frame being read                   */
    uint8_t  kind, channel;
    uint16_t left;
    uint32_t turn;                              /* bytes left of this turn, in lockstep   */
} in;

/* A peer that is called once we are in, to see how soon it answers (a test's wish). */
static struct {
    uint8_t  ip[4];
    uint64_t begun_ms, busy, running_ms;
    uint32_t after_ms;                          /* so long after we are in            */
    bool     wanted, answered;
} call;

/* ---- to the modem ------------------------------------------------------------------- */

static uint8_t channel_of(tailnet_link link)
{
    return (uint8_t)((link & 3u) | (link >> 8 & 63u) << 2);
}

static void frame(char kind, uint8_t channel, size_t size)
{
    uint8_t head[4];
    head[0] = (uint8_t)kind;
    head[1] = channel;
    head[2] = (uint8_t)size;
    head[3] = (uint8_t)(size >> 8);
    modem_write(head, sizeof head);
}

static void write_u16(uint16_t v)
{
    uint8_t b[2];
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
    modem_write(b, 2);
}

static uint64_t on_now(void *user)
{
    (void)user;
    return board_millis();
}

static int on_random(void *user, void *dst, size_t size)
{
    (void)user;
    return board_random(dst, size) ? 0 : -1;
}

static int on_udp_output(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    (void)user;
    if (to->family != 4) return -1;
    for (; count != 0; count--, pkts++) {
        frame('U', 0, 6 + pkts->len);
        modem_write(to->ip, 4);
        write_u16(to->port);
        modem_write(pkts->base + pkts->off, pkts->len);
    }
    return 0;
}

static int on_tcp_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    uint8_t none[4] = {0, 0, 0, 0};
    size_t  len     = strlen(dial->host);
    (void)user;
    links[TAILNET_LINK_SLOT(link)] = link;
    frame('O', channel_of(link), 6 + len);
    write_u16(dial->port);
    modem_write(dial->addr4.family == 4 ? dial->addr4.ip : none, 4);
    modem_write(dial->host, len);
    return 0;
}

static int32_t on_tcp_output(void *user, tailnet_link link, const void *data, size_t size)
{
    (void)user;
    if (size > 1024) size = 1024;
    frame('D', channel_of(link), size);
    modem_write(data, size);
    return (int32_t)size;
}

static void on_tcp_close(void *user, tailnet_link link)
{
    (void)user;
    frame('C', channel_of(link), 0);
    links[TAILNET_LINK_SLOT(link)] = 0;
}

/* ---- what the device is for --------------------------------------------------------- */

static void swap(uint8_t *a, uint8_t *b, size_t len)
{
    for (; len != 0; len--, a++, b++) {
        uint8_t t = *a;
        *a = *b;
        *b = t;
    }
}

/* An echo request turns into its answer: the type changes, and the sum by as much. */
static bool answer_ping(uint8_t *icmp, uint8_t request, uint8_t reply)
{
    uint32_t sum = ((uint32_t)icmp[2] << 8 | icmp[3]) + ((uint32_t)(request - reply) << 8 & 0xffff);
    if (icmp[0] != request || icmp[1] != 0) return false;
    if (request < reply) sum += 0xffff - 1;     /* ones' complement of a negative step    */
    sum     = (sum & 0xffff) + (sum >> 16);
    sum     = (sum & 0xffff) + (sum >> 16);
    icmp[0] = reply;
    icmp[2] = (uint8_t)(sum >> 8);
    icmp[3] = (uint8_t)sum;
    return true;
}

/* Turns a packet into the answer to it; false: there is none. The library has checked the
 * lengths of the headers. */
static bool answer(uint8_t *ip, size_t len)
{
    bool     six   = ip[0] >> 4 == 6;
    size_t   head  = six ? 40 : (size_t)(ip[0] & 15) * 4;
    unsigned proto = six ? ip[6] : ip[9];
    uint8_t *body  = ip + head;
    if (len < head + 8) return false;
    if (proto == 17) {
        if (body[2] != 0 || body[3] != ECHO_PORT) return false;
        swap(body, body + 2, 2);
    } else if (proto != (six ? 58u : 1u) || !answer_ping(body, six ? 128 : 8, six ? 129 : 0)) {
        return false;
    }
    if (six) swap(ip + 8, ip + 24, 16);
    else     swap(ip + 12, ip + 16, 4);
    return true;
}

static void say_answered(void)
{
    report r;
    r.at = 0;
    say_text(&r, "answered ms ");
    say_number(&r, board_millis() - call.begun_ms);
    say_text(&r, " busy ");
    say_number(&r, board_busy() - call.busy);
    say_text(&r, " stack ");
    say_number(&r, board_stack_depth());
    say_end(&r);
    call.answered = true;
}

/* Decrypted packets. One at a time is answered, after this call; more at once are lost. */
static void on_ip_output(void *user, tailnet_buf *pkts, size_t count)
{
    (void)user;
    for (; count != 0; count--, pkts++) {
        uint8_t *ip = pkts->base + pkts->off;
        if (call.wanted && !call.answered && pkts->len > 28 && memcmp(ip + 12, call.ip, 4) == 0) {
            say_answered();
        } else if (packet.len == 0 && pkts->len <= MTU && answer(ip, pkts->len)) {
            packet.off = TAILNET_HEADROOM;
            packet.len = pkts->len;
            memmove(packet.bytes + TAILNET_HEADROOM, ip, pkts->len);
        }
    }
}

static void send_packet(void)
{
    tailnet_buf p;
    p.base  = packet.bytes;
    p.cap   = sizeof packet.bytes;
    p.off   = packet.off;
    p.len   = packet.len;
    p.owner = NULL;
    packet.len = 0;
    (void)tailnet_ip_input(node, &p, 1);
}

/* Once we are in, and again every two seconds until there is an answer: "hello" by UDP. */
static void call_peer(void)
{
    static const uint8_t head[28] = {0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0,
                                     0, 0, 0, 0, 0, ECHO_PORT, 0, ECHO_PORT, 0, 13, 0, 0};
    uint8_t     *ip  = packet.bytes + TAILNET_HEADROOM;
    uint64_t     now = board_millis();
    uint32_t     sum = 0;
    unsigned     i;
    tailnet_self self;
    if (!call.wanted || call.answered || packet.len != 0) return;
    if (call.begun_ms != 0 && now - call.begun_ms < 2000) return;
    if (tailnet_get_state(node) != TAILNET_STATE_RUNNING) return;
    if (call.running_ms == 0) call.running_ms = now;
    if (now - call.running_ms < call.after_ms) return;
    if (!tailnet_get_self(node, &self)) return;
    if (call.begun_ms == 0) {
        call.begun_ms = now;
        call.busy     = board_busy();
    }
    memcpy(ip, head, sizeof head);
    memcpy(ip + sizeof head, "hello", 5);
    memcpy(ip + 12, self.ip4.ip, 4);
    memcpy(ip + 16, call.ip, 4);
    for (i = 0; i < 20; i += 2) sum += (uint32_t)ip[i] << 8 | ip[i + 1];
    sum    = (sum & 0xffff) + (sum >> 16);
    sum    = ~((sum & 0xffff) + (sum >> 16));
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
    packet.off = TAILNET_HEADROOM;
    packet.len = sizeof head + 5;
    send_packet();
}

/* ---- the state in flash: two sectors in turn, the head of a record written last ------- */

enum { MAGIC = 0x544e3031 };

/* Reads record `place` into memory and returns its number; 0: there is none. */
static uint32_t record_read(unsigned place, uint8_t *dst, tailnet_bytes *out)
{
    uint32_t head[4];
    board_flash_read(place * BOARD_FLASH_SECTOR, head, sizeof head);
    if (head[0] != MAGIC || head[1] == 0 || head[3] != ~head[1] || head[2] > RECORD) return 0;
    board_flash_read(place * BOARD_FLASH_SECTOR + RECORD_HEAD, dst, head[2]);
    out->data = dst;
    out->size = head[2];
    return head[1];
}

static void record_write(void)
{
    uint32_t at = (newest + 1) % BOARD_FLASH_SECTORS * BOARD_FLASH_SECTOR, head[4];
    size_t   size = tailnet_export_state(node, packet.bytes, RECORD);
    packet.len = 0;                             /* an answer that waited is lost          */
    if (size > RECORD) return;
    head[0] = MAGIC;
    head[1] = newest + 1;
    head[2] = (uint32_t)size;
    head[3] = ~head[1];
    if (!board_flash_erase(at) || !board_flash_write(at + RECORD_HEAD, packet.bytes, size) ||
        !board_flash_write(at, head, sizeof head)) {
        board_print("the flash failed");
    } else {
        newest++;
    }
    tn_wipe(packet.bytes, size);
}

/* ---- from the modem ------------------------------------------------------------------ */

static uint16_t read_u16(void)
{
    uint8_t b[2];
    modem_read(b, 2);
    in.left = (uint16_t)(in.left - 2);
    return (uint16_t)(b[0] | b[1] << 8);
}

static void read_bytes(void *dst, size_t size)
{
    modem_read(dst, size);
    in.left = (uint16_t)(in.left - size);
}

static void skip(void)
{
    uint8_t b;
    while (in.left != 0) read_bytes(&b, 1);
}

static void read_datagram(void)
{
    tailnet_addr from;
    tailnet_buf  p;
    memset(&from, 0, sizeof from);
    if (in.left < 6 || in.left - 6u > sizeof packet.bytes - 16) {
        skip();
        return;
    }
    from.family = 4;
    read_bytes(from.ip, 4);
    from.port = read_u16();
    p.base    = packet.bytes;
    p.cap     = sizeof packet.bytes;
    p.off     = 16;                             /* decrypted, it has its headroom         */
    p.len     = in.left;
    p.owner   = NULL;
    read_bytes(packet.bytes + 16, in.left);
    if (node != NULL) (void)tailnet_udp_input(node, &from, &p, 1);
}

static void read_network(void)
{
    tailnet_addr    own;
    tailnet_network network;
    memset(&own, 0, sizeof own);
    memset(&network, 0, sizeof network);
    if (in.left >= 6) {
        own.family = 4;
        read_bytes(own.ip, 4);
        own.port = our_port = read_u16();
        network.addrs      = &own;
        network.addr_count = 1;
        (void)tailnet_set_network(node, &network);
    }
    skip();
}

/* Bytes of a connection, as many as are there and fit. False: poll first. */
static bool read_stream(tailnet_link link)
{
    size_t   room, n = modem_waiting();
    uint8_t *to;
    if (n == 0) return false;
    to = tailnet_tcp_reserve(node, link, &room);
    if (room == 0) return false;
    if (n > in.left) n = in.left;
    if (n > room) n = room;
    read_bytes(to, n);
    (void)tailnet_tcp_commit(node, link, n);
    return true;
}

/* The frame whose head has been read. False: the rest of it has to wait. */
static bool read_frame(void)
{
    unsigned     slot = in.channel & 3u;
    tailnet_link link = slot < LINKS ? links[slot] : 0;
    if (link != 0 && channel_of(link) != in.channel) link = 0;
    switch (in.kind) {
    case 'U': read_datagram(); break;
    case 'N': read_network(); break;
    case 'D':
        if (link != 0 && in.left != 0) return read_stream(link);
        skip();
        break;
    case 'O':
        if (link != 0) (void)tailnet_tcp_opened(node, link);
        break;
    case 'C':
        if (link != 0) (void)tailnet_tcp_closed(node, link);
        break;
    default: skip();
    }
    return true;
}

/* Takes what the modem sent. An answer that waits goes out before the next packet comes in. */
static void listen(void)
{
    uint8_t  head[4];
    uint16_t before;
    while (packet.len == 0 && !(lockstep && in.turn == 0)) {
        if (in.left == 0) {
            if (!lockstep && modem_waiting() < sizeof head) return;
            modem_read(head, sizeof head);
            in.kind    = head[0];
            in.channel = head[1];
            in.left    = (uint16_t)(head[2] | head[3] << 8);
            in.turn   -= lockstep ? 4 : 0;
        }
        before = in.left;
        if (!read_frame()) {
            in.turn -= lockstep ? (uint32_t)(before - in.left) : 0;
            return;
        }
        in.turn -= lockstep ? (uint32_t)(before - in.left) : 0;
    }
}

/* ---- start and loop ------------------------------------------------------------------ */

static void news(uint32_t events)
{
    if (events & TAILNET_EVENT_SAVE) record_write();
    say_news(node, events);
}

static bool start(void)
{
    tailnet_desc desc;
    uint32_t     number[2];
    memset(&desc, 0, sizeof desc);
    number[0] = record_read(0, packet.bytes, &desc.saved_state[0]);
    number[1] = record_read(1, packet.bytes + RECORD, &desc.saved_state[1]);
    newest    = number[0] > number[1] ? number[0] : number[1];
    desc.memory        = &memory;
    desc.memory_size   = sizeof memory;
    desc.max_peers     = PEERS;
    desc.max_sessions  = SESSIONS;
    desc.max_links     = LINKS;
    desc.max_tls       = MAX_TLS;
    desc.io.now_ms     = on_now;
    desc.io.random     = on_random;
    desc.io.udp_output = on_udp_output;
    desc.io.ip_output  = on_ip_output;
    desc.io.tcp_open   = on_tcp_open;
    desc.io.tcp_output = on_tcp_output;
    desc.io.tcp_close  = on_tcp_close;
    settings_desc(&desc);
    settings_anchor(&anchor, &desc);
    if (tailnet_init(&node, &desc) != TAILNET_OK) return false;
    tn_wipe(packet.bytes, sizeof packet.bytes);
    modem_start();
    frame('R', 0, 0);
    return tailnet_up(node) == TAILNET_OK;
}

/* In lockstep with a test's world: say until when there is nothing to do, hear until when
 * nothing happens. */
static void rest_in_lockstep(uint32_t ms)
{
    uint64_t now = board_millis(), times[2];
    uint8_t  answer_head[4 + 12];
    uint64_t until;
    times[0] = now;
    times[1] = now + ms;
    frame('T', 0, sizeof times);
    modem_write(times, sizeof times);
    modem_read(answer_head, sizeof answer_head);
    memcpy(&until, answer_head + 4, 8);
    memcpy(&in.turn, answer_head + 12, 4);
    modem_listen(false);                        /* it has sent already what comes then    */
    __asm__ volatile("cpsid i");
    while ((now = board_millis()) < until) board_sleep((uint32_t)(until - now));
    __asm__ volatile("cpsie i");
    modem_listen(true);
}

int main(void)
{
    uint64_t report_at = setting_number("report-ms", 0);
    uint8_t *peer      = (uint8_t *)(uintptr_t)board_setting("call-ip4", NULL);
    say("boot", board_busy());
    lockstep = board_setting("lockstep", NULL) != NULL;
    if (!start()) return 4;
    call.after_ms = setting_number("call-after-ms", 0);
    call.wanted   = peer != NULL;
    if (call.wanted) memcpy(call.ip, peer, 4);
    for (;;) {
        uint32_t wait;
        listen();
        news(tailnet_poll(node));
        if (packet.len != 0) send_packet();
        call_peer();
        wait = tailnet_wait_ms(node, call.wanted && !call.answered ? 100 : 60000);
        if (lockstep && in.turn == 0) rest_in_lockstep(wait);
        else if (!lockstep && wait != 0) modem_sleep(wait);
        if (report_at != 0 && board_millis() >= report_at) {
            say_running(node);
            report_at += setting_number("report-ms", 0);
        }
    }
}
