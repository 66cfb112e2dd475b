/* tailnet_platform_lwip.h - tailnet.h on lwIP 2.1 and 2.2: a device's own network below it, a
 * network interface with the tailnet address above it. Single header, as tailnet.h is.
 *
 *     #define TAILNET_IMPLEMENTATION
 *     #define TAILNET_PLATFORM_LWIP_IMPLEMENTATION
 *     #include "tailnet_platform_lwip.h"       (in one file; it includes tailnet.h and lwIP)
 *
 *     static TAILNET_MEMORY(memory, 16, 4, 2, 1);
 *     static tailnet_lwip   t;
 *     tailnet_desc          desc = {0};
 *     tailnet_lwip_options  options = {0};
 *     desc.memory = &memory;  desc.memory_size = sizeof memory;
 *     desc.auth_key  = "tskey-auth-...";
 *     desc.io.random = my_random;              the only callback that has to be given
 *     options.flash_read = my_flash_read;  options.flash_write = my_flash_write;
 *     tailnet_lwip_open(&t, &desc, &options);
 *     tailnet_up(t.node);
 *     for (;;) {                               NO_SYS=1; with an OS: tailnet_lwip_start(&t)
 *         my_netif_poll();  sys_check_timeouts();
 *         tailnet_lwip_poll(&t);
 *         my_sleep(tailnet_lwip_wait_ms(&t, 1000));
 *     }
 *
 * From TAILNET_STATE_RUNNING on the application uses lwIP as ever - raw API, netconn,
 * sockets - with addresses of the tailnet; tailnet_lwip_dial and tailnet_lwip_listen are
 * shorthands that never leave the tailnet by mistake.
 *
 * Two objects, usable one by one:
 *   tailnet_lwip_overlay   the interface: packets of the stack to a node and back. The node may
 *                          be anybody's, such as one of tailnet_platform_posix.h.
 *   tailnet_lwip           the whole: an overlay, the node, its UDP and TCP and names on lwIP,
 *                          its state in flash.
 *
 * Contents (search for the token)
 *   >>l-address    addresses of lwIP and of tailnet.h
 *   >>l-packet     pbufs that carry packets
 *   >>l-overlay    the interface, and the fifo that keeps the library from being re-entered
 *   >>l-hooks      routes and names for lwipopts.h
 *   >>l-short      dial, listen, resolve
 *   >>l-store      the state in two places of a flash
 *   >>l-udp        datagrams below
 *   >>l-tcp        connections and names below
 *   >>l-network    which addresses we have, and when they change
 *   >>l-life       open, poll, wait, close; running by itself
 *
 * What to know
 *   - No heap but lwIP's own, no globals. Objects are large enough to be static and may not be
 *     moved while open.
 *   - One thread. With NO_SYS=0 everything here, every tailnet_ function, and every callback
 *     belongs to the tcpip thread: call from tcpip_callback, or between LOCK_TCPIP_CORE and
 *     UNLOCK_TCPIP_CORE, as with lwIP's raw API. Sockets and netconns need nothing of that.
 *   - The device's own packets (to relays, to the control server, to peers' addresses) are
 *     bound to the interface below and never enter the tunnel, whatever the routes say.
 *   - lwIP answers at once, the library must not be entered twice: decrypted packets wait in a
 *     fifo until tailnet_lwip_poll, and are the same pbufs that the driver filled when they
 *     came straight. Packets of the stack are copied once, because lwIP's TCP sends the same
 *     memory again, and then encrypted where they lie.
 *   - A full relay stream makes the interface answer ERR_MEM: TCP then waits and loses nothing,
 *     tailnet_lwip_poll wakes it. UDP sees ERR_MEM from udp_sendto.
 *
 * What lwipopts.h needs
 *   LWIP_UDP and LWIP_TCP 1, LWIP_SINGLE_NETIF 0. LWIP_DNS 1, or the control server has to be
 *   given by address. MEM_SIZE: a packet on its way out takes 1,450 bytes of it. Beyond what
 *   the application uses: one UDP pcb, desc.max_links TCP pcbs and some that are being closed,
 *   DNS_TABLE_SIZE 2 for each address family; for each tailnet_lwip_start one timeout
 *   (MEMP_NUM_SYS_TIMEOUT) and one of MEMP_NUM_TCPIP_MSG_API.
 *   Optional, and then everything on the device knows the tailnet's routes and names:
 *
 *     #define LWIP_HOOK_FILENAME "tailnet_platform_lwip.h"
 *     #define LWIP_HOOK_IP4_ROUTE_SRC(src, dest)  tailnet_lwip_route4(src, dest)
 *     #define LWIP_HOOK_IP6_ROUTE(src, dest)      tailnet_lwip_route6(src, dest)
 *     #define LWIP_HOOK_IP4_INPUT(p, in)          tailnet_lwip_input4(p, in)
 *     #define LWIP_HOOK_IP6_INPUT(p, in)          tailnet_lwip_input6(p, in)
 *     #define DNS_LOOKUP_LOCAL_EXTERN             tailnet_lwip_lookup
 *
 *   Without the first two lwIP knows only 100.64.0.0/10 and the /64 of our own IPv6 address as
 *   ways into the tailnet: accepted subnets and exit nodes are then reached by
 *   tailnet_lwip_dial alone, or by pcbs bound to the interface (tcp_bind_netif). Do not make
 *   the interface lwIP's default one: the look-ups for the tunnel would go into the tunnel.
 *   (Unless another platform carries the node, and lwIP has nothing but the tailnet.)
 *   Without the next two whoever is on the local network may write to services on the tailnet
 *   address as though it were in the tailnet: lwIP takes a packet for any of its addresses
 *   from any interface. (tailnet_lwip_listen is safe from that either way.) Without the last
 *   one only tailnet_lwip_resolve knows MagicDNS names.
 *
 * What it takes, on a Cortex-M4 with IPv4: 1.0 KB of RAM for tailnet_lwip (1.4 KB with IPv6);
 * 5 KB of code, 0.7 KB more with IPv6, and 1 KB with all shorthands and hooks that are used.
 * TAILNET_LWIP_LOOKUPS 0 and TAILNET_NO_STRINGS save half a kilobyte.
 *
 * What it does not do: carry packets of others (a subnet router); listen on one port both in
 * the tailnet and beside it (lwIP binds a port once, unless to different addresses). */
#ifndef TAILNET_PLATFORM_LWIP_H
#define TAILNET_PLATFORM_LWIP_H

#include "tailnet.h"                    /* first: lwip/ip.h has a macro ip_output  */

#include "lwip/opt.h"

#include "lwip/init.h"
#include "lwip/ip_addr.h"
#include "lwip/netif.h"
#include "lwip/pbuf.h"
#include "lwip/tcp.h"
#include "lwip/udp.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Decrypted packets that wait for the stack. More are lost, as on any network. */
#ifndef TAILNET_LWIP_FIFO
#  define TAILNET_LWIP_FIFO 8
#endif

/* Routes kept for the hooks: two of every tailnet, and accepted subnets. */
#ifndef TAILNET_LWIP_ROUTES
#  define TAILNET_LWIP_ROUTES 8
#endif

/* Connections at a time; desc.max_links may not be more. */
#ifndef TAILNET_LWIP_LINKS
#  define TAILNET_LWIP_LINKS 3
#endif

/* Names of STUN servers looked up at a time; 0: those without an address are left out. */
#ifndef TAILNET_LWIP_LOOKUPS
#  define TAILNET_LWIP_LOOKUPS 2
#endif

/* Bytes of saved state kept in memory while it is read or written. */
#ifndef TAILNET_LWIP_STATE
#  define TAILNET_LWIP_STATE 320
#endif

enum {
    TAILNET_LWIP_OWN    = 1 + (LWIP_IPV6 ? LWIP_IPV6_NUM_ADDRESSES : 0),
    TAILNET_LWIP_HEAD   = 16,       /* in front of the state in flash          */
    TAILNET_LWIP_RECORD = TAILNET_LWIP_HEAD + TAILNET_LWIP_STATE    /* size of a place */
};

/* Which address of a peer: the numbers of LWIP_DNS_ADDRTYPE_ in lwip/dns.h. */
enum { TAILNET_LWIP_IP4, TAILNET_LWIP_IP6, TAILNET_LWIP_IP4_IP6, TAILNET_LWIP_IP6_IP4 };

typedef struct tailnet_lwip_overlay tailnet_lwip_overlay;
typedef struct tailnet_lwip         tailnet_lwip;

/* ---- The interface ------------------------------------------------------------------ */

/* What the caller wants. Zero every field first: zero means "the default". */
typedef struct tailnet_lwip_overlay_options {
    void *user;                     /* first argument of send                  */

    /* Where packets of the stack go: size bytes from the IP header on, lent for the call.
     * OK; AGAIN: not now, TCP waits and tailnet_lwip_overlay_turn tries again; anything else
     * is loss. NULL: tailnet_ip_input, without a further copy. For nodes that somebody else
     * turns, see tailnet_lwip_overlay_open. */
    tailnet_result (*send)(void *user, const void *packet, size_t size);

    uint16_t mtu;                   /* default 1280; as desc.mtu               */
} tailnet_lwip_overlay_options;

/* Read netif, dropped and held; the rest is the inside. */
struct tailnet_lwip_overlay {
    struct netif  netif;            /* for tcp_bind_netif, udp_bind_netif, SO_BINDTODEVICE */
    uint32_t      dropped;          /* packets lost for want of memory or room in the fifo */
    uint32_t      held;             /* packets of the stack answered with ERR_MEM          */

    tailnet_node *node;
    tailnet_lwip_overlay_options opt;
    void        (*wake)(void *user);/* something is to be done: NO_SYS=0                   */
    void         *wake_user;
    bool          open, full, deaf; /* deaf: names are not ours to answer just now         */
    uint16_t      first, count;     /* of the fifo                                         */
    uint16_t      route_count;
    struct pbuf  *fifo[TAILNET_LWIP_FIFO];
    tailnet_prefix route[TAILNET_LWIP_ROUTES];
};

/* Adds the interface to lwIP; it has no address and is down until the node has one. The node
 * may be NULL at first (set o->node later). On top of tailnet_platform_posix.h:
 *
 *     posix_options.no_echo = true;            lwIP answers pings
 *     posix_options.on_ip   = on_ip;           -> tailnet_lwip_overlay_input(o, packet, size)
 *     posix_options.on_news = on_news;         -> tailnet_lwip_overlay_news(o, events)
 *     overlay_options.send  = send;            -> tailnet_posix_ip_send(p, packet, size)
 *     tailnet_posix_open(p, ...);  tailnet_lwip_overlay_open(o, p->node, &overlay_options);
 *     for (;;) {
 *         poll(2) for tailnet_lwip_overlay_wait_ms(o, tailnet_posix_wait_ms(p, 60000));
 *         tailnet_posix_handle(p, fds, count);
 *         sys_check_timeouts();                NO_SYS=1
 *         tailnet_lwip_overlay_turn(o);
 *     }
 *
 * OK; NETWORK when lwIP does not take it. */
TAILNET_API tailnet_result tailnet_lwip_overlay_open(tailnet_lwip_overlay *o, tailnet_node *node,
                                                     const tailnet_lwip_overlay_options *options);

/* A decrypted packet for the stack; it is copied. May be called from inside io.ip_output: it
 * waits in the fifo for the next turn. OK; MEMORY: lost and counted; MALFORMED. */
TAILNET_API tailnet_result tailnet_lwip_overlay_input(tailnet_lwip_overlay *o, const void *packet,
                                                      size_t size);

/* tailnet_poll had these news: addresses, routes and the state of the link follow. */
TAILNET_API void tailnet_lwip_overlay_news(tailnet_lwip_overlay *o, uint32_t events);

/* Hands waiting packets to the stack and wakes TCP that found the way full. Not from inside a
 * callback of the node. The stack may call the application and send during this. */
TAILNET_API void tailnet_lwip_overlay_turn(tailnet_lwip_overlay *o);

/* How long until the next turn at the latest, cut to max_ms; with NO_SYS=1 lwIP's own timers
 * (sys_check_timeouts) are counted in. */
TAILNET_API uint32_t tailnet_lwip_overlay_wait_ms(tailnet_lwip_overlay *o, uint32_t max_ms);

/* Takes the interface from lwIP, which ends the connections through it: before the node goes.
 * Harmless twice, and on an object of zeros. */
TAILNET_API void tailnet_lwip_overlay_close(tailnet_lwip_overlay *o);

/* ---- Shorthands --------------------------------------------------------------------- */

/* The address of a peer, by MagicDNS name with or without the domain; or an address as text, of
 * any family, if a peer has it or carries its subnet. OK; AGAIN: the map is read once more for
 * it, ask again after TAILNET_EVENT_PEERS (or after a while); NO_ROUTE: nobody in the tailnet,
 * or without such an address: ask dns_gethostbyname. Never waits. */
TAILNET_API tailnet_result tailnet_lwip_resolve(tailnet_lwip_overlay *o, const char *who,
                                                uint8_t kind, ip_addr_t *out);

/* Connects through the tailnet, never beside it. who as above; IPv4 is preferred. With OK *pcb
 * is lwIP's, yours to give a tcp_recv, a tcp_sent and a tcp_err before you return to
 * lwIP; connected is called as tcp_connect does. AGAIN, NO_ROUTE: as above; MEMORY: lwIP has no
 * room; NETWORK: we have no address of that family (yet). */
TAILNET_API tailnet_result tailnet_lwip_dial(tailnet_lwip_overlay *o, const char *who,
                                             uint16_t port, tcp_connected_fn connected, void *arg,
                                             struct tcp_pcb **pcb);

/* Listens for peers on all tailnet addresses, and for nobody else; works before the node is
 * running. OK; MEMORY; BUSY: the port is taken. *listener (which may be NULL) is for tcp_close. */
TAILNET_API tailnet_result tailnet_lwip_listen(tailnet_lwip_overlay *o, uint16_t port,
                                               tcp_accept_fn accept, void *arg,
                                               struct tcp_pcb **listener);

/* ---- For lwipopts.h; see "What lwipopts.h needs" ------------------------------------ */

#if LWIP_IPV4
TAILNET_API struct netif *tailnet_lwip_route4(const ip4_addr_t *src, const ip4_addr_t *dest);
TAILNET_API int           tailnet_lwip_input4(struct pbuf *p, struct netif *in);
#endif
#if LWIP_IPV6
TAILNET_API struct netif *tailnet_lwip_route6(const ip6_addr_t *src, const ip6_addr_t *dest);
TAILNET_API int           tailnet_lwip_input6(struct pbuf *p, struct netif *in);
#endif
#if LWIP_VERSION_MAJOR == 2 && LWIP_VERSION_MINOR < 2
TAILNET_API err_t tailnet_lwip_lookup(const char *name, ip_addr_t *addr, u8_t kind);
#else
TAILNET_API err_t tailnet_lwip_lookup(const char *name, size_t size, ip_addr_t *addr, u8_t kind);
#endif

/* ---- The state in flash ------------------------------------------------------------- */

/* Two places, each of TAILNET_LWIP_RECORD bytes, in erase blocks of their own. Whenever power
 * goes while one is written the other is intact. Load comes before the first save. */
typedef struct tailnet_lwip_store {
    void *user;

    /* size bytes of place 0 or 1, from offset on. 0 is success. */
    int (*read)(void *user, unsigned place, uint32_t offset, void *dst, size_t size);

    /* Erase the place, then write size bytes at its beginning; size is a multiple of 16.
     * 0 is success. */
    int (*write)(void *user, unsigned place, const void *record, size_t size);

    uint32_t writes;                /* since load: what the flash had to bear  */
    uint32_t sequence;              /* of the newest record                    */
    uint8_t  newest;                /* its place; 2: there is none             */
} tailnet_lwip_store;

/* Finds the newest intact record and reads its state into record + TAILNET_LWIP_HEAD. *size
 * is 0 when there is none (OK); NETWORK: the flash cannot be read. */
TAILNET_API tailnet_result tailnet_lwip_store_load(tailnet_lwip_store *s,
                                                   uint8_t record[TAILNET_LWIP_RECORD],
                                                   size_t *size);

/* Writes the state that lies at record + TAILNET_LWIP_HEAD to the place that is not the newest,
 * and reads it back; does nothing when the newest record has the same bytes. OK; TOO_BIG;
 * NETWORK: the flash failed, the old record is intact, try again later. */
TAILNET_API tailnet_result tailnet_lwip_store_save(tailnet_lwip_store *s,
                                                   uint8_t record[TAILNET_LWIP_RECORD],
                                                   size_t size);

/* ---- The whole ---------------------------------------------------------------------- */

/* What the caller wants. Zero every field first: zero means "the default". */
typedef struct tailnet_lwip_options {
    void         *user;             /* yours; found again as t->opt.user       */

    /* The interface below, added and set up by the caller. NULL: lwIP's netif_default, also
     * when it changes. May be without address at first. */
    struct netif *below;
    uint16_t      udp_port;         /* 0: any                                  */
    uint16_t      fallback_ms;      /* before the other address family is tried; 2000 */
    bool          replace_damaged_state; /* begin anew; the old identity is lost */

    /* As read and write of tailnet_lwip_store. NULL: the state is not kept, each start is a
     * new machine to the server (desc.saved_state is used when given). */
    int (*flash_read)(void *user, unsigned place, uint32_t offset, void *dst, size_t size);
    int (*flash_write)(void *user, unsigned place, const void *record, size_t size);

    /* tailnet_poll had news (TAILNET_EVENT_ bits). State is saved and the interface is set up
     * by then. Every function of tailnet.h may be called but tailnet_poll and tailnet_wipe. */
    void (*on_news)(void *user, tailnet_lwip *t, uint32_t events);
} tailnet_lwip_options;

/* ---- What follows is the inside. ---------------------------------------------------- */

typedef struct tailnet_lwip_name {  /* a name being looked up, or an address  */
    tailnet_lwip *t;
    uint32_t      query;            /* of io.resolve                           */
    uint32_t      hash;             /* of the name: lwIP cannot be told to forget one */
    ip_addr_t     ip;
    uint8_t       state;
} tailnet_lwip_name;

typedef struct tailnet_lwip_slot {
    tailnet_lwip     *t;
    struct tcp_pcb   *pcb;          /* NULL: lwIP has freed it, or none yet    */
    struct pbuf      *held;         /* received, not yet taken                 */
    tailnet_link      link;
    uint32_t          at_ms;        /* this try began, or: output was short    */
    uint16_t          port;
    uint8_t           state, now, tries[2];
    bool              fresh, ended; /* news for the library: open, closed      */
    bool              full, room;   /* output was short; there is room again   */
    tailnet_lwip_name name[2];      /* IPv4, IPv6                              */
} tailnet_lwip_slot;

/* Read node, overlay, store, error; the rest is the inside. */
struct tailnet_lwip {
    tailnet_node        *node;
    tailnet_lwip_overlay overlay;
    tailnet_lwip_store   store;
    const char          *error;     /* why open failed, or the last save: a sentence, or NULL */
    uint32_t             udp_dropped; /* datagrams lost for want of memory                    */

    tailnet_lwip_options opt;
    struct udp_pcb      *udp;
    struct netif        *below;
    uint64_t             now_ms;    /* of sys_now, without its overflow        */
    uint32_t             now_low, save_at_ms;
    bool                 unsaved, more, running, woken, told, was_down;
    void                *message;   /* of tcpip_callbackmsg                    */
    tailnet_addr         own[TAILNET_LWIP_OWN];     /* as last told            */
    tailnet_addr         gateway;
#if TAILNET_LWIP_LOOKUPS > 0
    tailnet_lwip_name    name[TAILNET_LWIP_LOOKUPS];
#endif
    tailnet_lwip_slot    slot[TAILNET_LWIP_LINKS];
    uint8_t              record[TAILNET_LWIP_RECORD];
};

/* ---- Life --------------------------------------------------------------------------- */

/* After lwip_init (or tcpip_init). Fills in what is missing of desc: callbacks but random,
 * saved_state, max_links. desc.io.user becomes t: callbacks of yours in desc.io (random,
 * unix_ms, now_ms, log, crypt, keep_peer) are kept and get t; what is yours is t->opt.user.
 * Makes the node, its UDP socket and the interface; then call tailnet_up(t->node). desc.memory
 * has to be given. On failure t->error says why and everything is closed again. */
TAILNET_API tailnet_result tailnet_lwip_open(tailnet_lwip *t, tailnet_desc *desc,
                                             const tailnet_lwip_options *options);

/* One turn: what came in, tailnet_poll, saving, the fifo. Call it after lwIP got packets and
 * timers (sys_check_timeouts), and at least every tailnet_lwip_wait_ms. Returns the
 * TAILNET_EVENT_ bits, which on_news got too. */
TAILNET_API uint32_t tailnet_lwip_poll(tailnet_lwip *t);

/* How long until then, cut to max_ms; with NO_SYS=1 lwIP's own timers are counted in. Any
 * interrupt that brings a packet has to end the sleep. */
TAILNET_API uint32_t tailnet_lwip_wait_ms(tailnet_lwip *t, uint32_t max_ms);

#if !NO_SYS
/* Lets lwIP's tcpip thread call tailnet_lwip_poll whenever it is due, until stop or close. The
 * longest step (see the manual of tailnet.h) holds up the stack that long. OK; MEMORY. */
TAILNET_API tailnet_result tailnet_lwip_start(tailnet_lwip *t);
TAILNET_API void           tailnet_lwip_stop(tailnet_lwip *t);
#endif

/* Saves what is not saved, wipes the node, closes everything. Harmless after a failed open and
 * twice. t has to stay a while: name look-ups of lwIP cannot be called back, their late
 * answers are let fall. */
TAILNET_API void tailnet_lwip_close(tailnet_lwip *t);

#ifdef __cplusplus
}
#endif
#endif /* TAILNET_PLATFORM_LWIP_H */

#ifdef TAILNET_PLATFORM_LWIP_IMPLEMENTATION
#ifndef TAILNET_PLATFORM_LWIP_IMPLEMENTATION_DONE
#define TAILNET_PLATFORM_LWIP_IMPLEMENTATION_DONE

#include <string.h>

#include "lwip/dns.h"
#include "lwip/ip.h"
#include "lwip/priv/tcp_priv.h"         /* tcp_txnow                               */
#include "lwip/sys.h"
#include "lwip/timeouts.h"
#if !NO_SYS
#  include "lwip/tcpip.h"
#endif

#if LWIP_VERSION_MAJOR != 2 || LWIP_VERSION_MINOR < 1
#  error "tailnet_platform_lwip.h needs lwIP 2.1 or 2.2"
#endif
#if !LWIP_UDP || !LWIP_TCP || LWIP_SINGLE_NETIF || !LWIP_TIMERS
#  error "tailnet_platform_lwip.h needs LWIP_UDP, LWIP_TCP and LWIP_TIMERS 1, LWIP_SINGLE_NETIF 0"
#endif

/* ======================================================================== *
 * >>l-address - addresses of lwIP and of tailnet.h.
 * ======================================================================== */

static void tnl_addr_of(tailnet_addr *out, const ip_addr_t *ip, uint16_t port)
{
    memset(out, 0, sizeof *out);
    out->port = port;
#if LWIP_IPV6
    if (IP_IS_V6(ip)) {
        out->family = 6;
        memcpy(out->ip, ip_2_ip6(ip)->addr, 16);
        return;
    }
#endif
#if LWIP_IPV4
    out->family = 4;
    memcpy(out->ip, &ip_2_ip4(ip)->addr, 4);
#endif
}

/* False for families that this build does not have, and for none. Addresses of one link only
 * would need to know which: nobody tells us, so they are not reached. */
static bool tnl_ip_of(ip_addr_t *out, const tailnet_addr *addr)
{
    memset(out, 0, sizeof *out);
#if LWIP_IPV4
    if (addr->family == 4) {
        memcpy(&ip_2_ip4(out)->addr, addr->ip, 4);
        IP_SET_TYPE(out, IPADDR_TYPE_V4);
        return true;
    }
#endif
#if LWIP_IPV6
    if (addr->family == 6 && !(addr->ip[0] == 0xfe && (addr->ip[1] & 0xc0) == 0x80)) {
        memcpy(ip_2_ip6(out)->addr, addr->ip, 16);
        IP_SET_TYPE(out, IPADDR_TYPE_V6);
        return true;
    }
#endif
    return false;
}

static bool tnl_within(const tailnet_prefix *prefix, const uint8_t *ip)
{
    unsigned whole = prefix->bits / 8u, rest = prefix->bits % 8u;
    if (memcmp(prefix->ip, ip, whole) != 0) return false;
    return rest == 0 || (prefix->ip[whole] ^ ip[whole]) >> (8u - rest) == 0;
}

/* An address that others can write to, of this family, at this interface. */
static const ip_addr_t *tnl_netif_ip(const struct netif *n, unsigned index)
{
#if LWIP_IPV4
    if (index == 0) return ip4_addr_isany(netif_ip4_addr(n)) ? NULL : netif_ip_addr4(n);
#endif
#if LWIP_IPV6
    if (index >= 1 && index <= LWIP_IPV6_NUM_ADDRESSES &&
        ip6_addr_ispreferred(netif_ip6_addr_state(n, (s8_t)(index - 1))) &&
        !ip6_addr_islinklocal(netif_ip6_addr(n, (s8_t)(index - 1))))
        return netif_ip_addr6(n, (s8_t)(index - 1));
#endif
    LWIP_UNUSED_ARG(n);
    LWIP_UNUSED_ARG(index);
    return NULL;
}

static bool tnl_netif_has(const struct netif *n, unsigned family)
{
    unsigned i;
    if (n == NULL) return false;
    if (family == 4) return tnl_netif_ip(n, 0) != NULL;
    for (i = 1; i < TAILNET_LWIP_OWN; i++)
        if (tnl_netif_ip(n, i) != NULL) return true;
    return false;
}

/* ======================================================================== *
 * >>l-packet - pbufs that carry packets.
 * ======================================================================== */

/* A packet of the library as a pbuf to keep: its own if it came in one, else a copy. */
static struct pbuf *tnl_pbuf_of(const tailnet_buf *pkt, pbuf_layer layer, pbuf_type type)
{
    struct pbuf *p = pbuf_alloc(layer, (u16_t)pkt->len, type);
    if (p == NULL) return NULL;
    (void)pbuf_take(p, pkt->base + pkt->off, (u16_t)pkt->len);
    return p;
}

static void tnl_buf_over(tailnet_buf *pkt, struct pbuf *p)
{
    memset(pkt, 0, sizeof *pkt);
    pkt->base  = (uint8_t *)p->payload;
    pkt->cap   = pkt->len = p->len;
    pkt->owner = p;
}

/* ======================================================================== *
 * >>l-overlay - the interface, and the fifo that keeps the library from being
 * re-entered: what it decrypts waits here until it has returned.
 * ======================================================================== */

static void tnl_overlay_wake(tailnet_lwip_overlay *o)
{
    if (o->wake != NULL) o->wake(o->wake_user);
}

/* A packet for the stack, ours from now on. */
static bool tnl_overlay_put(tailnet_lwip_overlay *o, struct pbuf *p)
{
    if (p == NULL || !o->open || o->count == TAILNET_LWIP_FIFO) {
        if (p != NULL) pbuf_free(p);
        o->dropped++;
        return false;
    }
    o->fifo[(o->first + (unsigned)o->count++) % TAILNET_LWIP_FIFO] = p;
    tnl_overlay_wake(o);
    return true;
}

/* io.ip_output. Who lent the pbuf frees it, so that we hold one more of it; it is not looked
 * at any more by then, and may be cut to the packet. */
static void tnl_overlay_ip_output(tailnet_lwip_overlay *o, tailnet_buf *pkt)
{
    struct pbuf *p = (struct pbuf *)pkt->owner;
    if (p == NULL) {
        (void)tnl_overlay_put(o, tnl_pbuf_of(pkt, PBUF_RAW, PBUF_POOL));
        return;
    }
    (void)pbuf_remove_header(p, pkt->off);
    pbuf_realloc(p, (u16_t)pkt->len);
    pbuf_ref(p);
    (void)tnl_overlay_put(o, p);
}

/* There are no neighbours and no routers in a tunnel: who speaks of them (ICMPv6 types 130 to
 * 137) wants to fill our tables. */
static bool tnl_packet_unwanted(const struct pbuf *p)
{
    const uint8_t *b = (const uint8_t *)p->payload;
    return p->len > 40 && b[0] >> 4 == 6 && b[6] == 58 && b[40] >= 130 && b[40] <= 137;
}

static tailnet_result tnl_overlay_send_copy(tailnet_lwip_overlay *o, struct pbuf *q)
{
    struct pbuf   *p = q;
    tailnet_result result;
    if (q->next != NULL) p = pbuf_clone(PBUF_RAW, PBUF_RAM, q);
    if (p == NULL) return TAILNET_ERR_AGAIN;
    result = o->opt.send(o->opt.user, p->payload, p->len);
    if (p != q) pbuf_free(p);
    return result;
}

/* The copy that may be encrypted: TCP sends q again. */
static tailnet_result tnl_overlay_send(tailnet_lwip_overlay *o, struct pbuf *q)
{
    u16_t          room = (u16_t)(TAILNET_HEADROOM + q->tot_len + TAILNET_TAILROOM);
    struct pbuf   *p;
    tailnet_buf    pkt;
    tailnet_result result;
    if (o->opt.send != NULL) return tnl_overlay_send_copy(o, q);
    p = pbuf_alloc(PBUF_TRANSPORT, room, PBUF_RAM);
    if (p == NULL) return TAILNET_ERR_AGAIN;
    tnl_buf_over(&pkt, p);
    pkt.off = TAILNET_HEADROOM;
    pkt.len = q->tot_len;
    (void)pbuf_copy_partial(q, pkt.base + pkt.off, q->tot_len, 0);
    result = tailnet_ip_input(o->node, &pkt, 1);
    pbuf_free(p);
    tnl_overlay_wake(o);                /* poll once after a batch                 */
    return result;
}

/* The stack sends into the tailnet. ERR_MEM makes TCP keep the segment and try again. */
static err_t tnl_overlay_output(struct netif *n, struct pbuf *q)
{
    tailnet_lwip_overlay *o = (tailnet_lwip_overlay *)n->state;
    tailnet_result        result;
    if (o->node == NULL || q->tot_len > n->mtu) return ERR_RTE;
    result = tnl_overlay_send(o, q);
    if (result == TAILNET_ERR_AGAIN) {
        o->full = true;
        o->held++;
        return ERR_MEM;
    }
    return result == TAILNET_ERR_NO_ROUTE ? ERR_RTE : ERR_OK;
}

#if LWIP_IPV4
static err_t tnl_overlay_output4(struct netif *n, struct pbuf *q, const ip4_addr_t *to)
{
    LWIP_UNUSED_ARG(to);
    return tnl_overlay_output(n, q);
}
#endif

#if LWIP_IPV6
static err_t tnl_overlay_output6(struct netif *n, struct pbuf *q, const ip6_addr_t *to)
{
    LWIP_UNUSED_ARG(to);
    return tnl_overlay_output(n, q);
}
#endif

static bool tnl_netif_is_overlay(const struct netif *n)
{
#if LWIP_IPV4
    return n->output == tnl_overlay_output4;
#else
    return n->output_ip6 == tnl_overlay_output6;
#endif
}

static err_t tnl_overlay_setup(struct netif *n)
{
    tailnet_lwip_overlay *o = (tailnet_lwip_overlay *)n->state;
    n->name[0] = 't';
    n->name[1] = 'n';
    n->mtu     = o->opt.mtu != 0 ? o->opt.mtu : (uint16_t)1280;
#if LWIP_IPV4
    n->output = tnl_overlay_output4;
#endif
#if LWIP_IPV6
    n->output_ip6 = tnl_overlay_output6;
#  if LWIP_ND6_ALLOW_RA_UPDATES
    n->mtu6 = n->mtu;
#  endif
#endif
    return ERR_OK;
}

TAILNET_API tailnet_result tailnet_lwip_overlay_open(tailnet_lwip_overlay *o, tailnet_node *node,
                                                     const tailnet_lwip_overlay_options *options)
{
    memset(o, 0, sizeof *o);
    if (options != NULL) o->opt = *options;
    o->node = node;
    if (netif_add_noaddr(&o->netif, o, tnl_overlay_setup, ip_input) == NULL)
        return TAILNET_ERR_NETWORK;
    o->open = true;
    if (node != NULL) tailnet_lwip_overlay_news(o, TAILNET_EVENT_SELF | TAILNET_EVENT_ROUTES);
    return TAILNET_OK;
}

TAILNET_API void tailnet_lwip_overlay_close(tailnet_lwip_overlay *o)
{
    if (!o->open) return;
    o->open = false;
    while (o->count > 0) {
        pbuf_free(o->fifo[o->first]);
        o->first = (uint16_t)((o->first + 1u) % TAILNET_LWIP_FIFO);
        o->count--;
    }
    netif_remove(&o->netif);
}

TAILNET_API tailnet_result tailnet_lwip_overlay_input(tailnet_lwip_overlay *o, const void *packet,
                                                      size_t size)
{
    struct pbuf *p;
    if (size == 0 || size > 0xffffu) return TAILNET_ERR_MALFORMED;
    p = o->count < TAILNET_LWIP_FIFO ? pbuf_alloc(PBUF_RAW, (u16_t)size, PBUF_POOL) : NULL;
    if (p != NULL) (void)pbuf_take(p, packet, (u16_t)size);
    return tnl_overlay_put(o, p) ? TAILNET_OK : TAILNET_ERR_MEMORY;
}

/* Our address, when it is another one: lwIP ends the connections of the old one. */
static void tnl_overlay_address(tailnet_lwip_overlay *o, const tailnet_self *self)
{
#if LWIP_IPV4
    ip4_addr_t ip, mask, none;
    memset(&none, 0, sizeof none);
    ip = mask = none;
    if (self->ip4.family == 4) {
        bool usual = self->ip4.ip[0] == 100 && (self->ip4.ip[1] & 0xc0) == 64;
        memcpy(&ip.addr, self->ip4.ip, 4);
        mask.addr = usual ? PP_HTONL(0xffc00000UL) : 0xffffffffUL;
    }
    if (!ip4_addr_cmp(&ip, netif_ip4_addr(&o->netif)))
        netif_set_addr(&o->netif, &ip, &mask, &none);
#endif
#if LWIP_IPV6
    ip_addr_t ip6;
    if (!tnl_ip_of(&ip6, &self->ip6)) {
        netif_ip6_addr_set_state(&o->netif, 0, IP6_ADDR_INVALID);
    } else if (memcmp(ip_2_ip6(&ip6)->addr, netif_ip6_addr(&o->netif, 0)->addr, 16) != 0 ||
               !ip6_addr_isvalid(netif_ip6_addr_state(&o->netif, 0))) {
        netif_ip6_addr_set(&o->netif, 0, ip_2_ip6(&ip6));
        netif_ip6_addr_set_state(&o->netif, 0, IP6_ADDR_PREFERRED);
    }
#endif
}

static void tnl_overlay_link(tailnet_lwip_overlay *o, bool up)
{
    if (!up) {
        netif_set_link_down(&o->netif);
        return;
    }
    netif_set_up(&o->netif);
    netif_set_link_up(&o->netif);
#if LWIP_IPV6 && LWIP_IPV6_SEND_ROUTER_SOLICIT
    o->netif.rs_count = 0;              /* nobody is there to answer               */
#endif
}

TAILNET_API void tailnet_lwip_overlay_news(tailnet_lwip_overlay *o, uint32_t events)
{
    tailnet_route route;
    tailnet_self  self;
    bool          known;
    if (!o->open || o->node == NULL) return;
    if ((events & (TAILNET_EVENT_SELF | TAILNET_EVENT_STATE)) != 0) {
        known = tailnet_get_self(o->node, &self);
        if (known) tnl_overlay_address(o, &self);
        tnl_overlay_link(o, known && tailnet_get_state(o->node) == TAILNET_STATE_RUNNING);
    }
    if ((events & (TAILNET_EVENT_SELF | TAILNET_EVENT_ROUTES)) == 0) return;
    o->route_count = 0;
    while (o->route_count < TAILNET_LWIP_ROUTES &&
           tailnet_get_route(o->node, o->route_count, &route))
        o->route[o->route_count++] = route.prefix;
}

TAILNET_API void tailnet_lwip_overlay_turn(tailnet_lwip_overlay *o)
{
    uint16_t left = o->count;           /* what comes meanwhile waits: no endless loop */
    while (o->open && left-- > 0) {
        struct pbuf *p = o->fifo[o->first];
        o->first = (uint16_t)((o->first + 1u) % TAILNET_LWIP_FIFO);
        o->count--;
        if (tnl_packet_unwanted(p) || o->netif.input(p, &o->netif) != ERR_OK) pbuf_free(p);
    }
    if (o->open && o->full) {
        o->full = false;
        tcp_txnow();
    }
}

/* lwIP's own timers, when nobody else looks after them. */
static uint32_t tnl_wait_stack(uint32_t max_ms)
{
#if NO_SYS
    uint32_t wait = sys_timeouts_sleeptime();
    if (wait < max_ms) return wait;
#endif
    return max_ms;
}

TAILNET_API uint32_t tailnet_lwip_overlay_wait_ms(tailnet_lwip_overlay *o, uint32_t max_ms)
{
    if (o->count > 0) return 0;
    if (o->full && max_ms > 10) max_ms = 10;
    return tnl_wait_stack(max_ms);
}

/* ======================================================================== *
 * >>l-hooks - routes and names for lwipopts.h. lwIP asks without saying whom:
 * we are found among its interfaces.
 * ======================================================================== */

static tailnet_lwip_overlay *tnl_overlay_next(struct netif **at)
{
    while (*at != NULL) {
        struct netif *n = *at;
        *at = n->next;
        if (tnl_netif_is_overlay(n)) return (tailnet_lwip_overlay *)n->state;
    }
    return NULL;
}

/* 0: not through the tailnet; 1: its own addresses; 2: a subnet or the exit node. */
static unsigned tnl_overlay_routes(const tailnet_lwip_overlay *o, unsigned family,
                                   const uint8_t *ip)
{
    unsigned i;
    if (!netif_is_up(&o->netif) || !netif_is_link_up(&o->netif)) return 0;
    for (i = 0; i < o->route_count; i++) {
        const tailnet_prefix *prefix = &o->route[i];
        if (prefix->family == family && tnl_within(prefix, ip))
            return prefix->bits == (family == 4 ? 10 : 48) && i < 2 ? 1 : 2;
    }
    return 0;
}

/* Who answers our look-ups has to be reached before the tunnel is there. */
static bool tnl_is_resolver(const void *ip, size_t size)
{
#if LWIP_DNS
    unsigned i;
    for (i = 0; i < DNS_MAX_SERVERS; i++) {
        tailnet_addr addr;
        tnl_addr_of(&addr, dns_getserver((u8_t)i), 0);
        if (addr.family == (size == 4 ? 4 : 6) && memcmp(addr.ip, ip, size) == 0) return true;
    }
#endif
    LWIP_UNUSED_ARG(ip);
    LWIP_UNUSED_ARG(size);
    return false;
}

#if LWIP_IPV4
static bool tnl_on_link4(const struct netif *n, const ip4_addr_t *ip)
{
    return netif_is_up(n) && !ip4_addr_isany(netif_ip4_addr(n)) &&
           ip4_addr_netcmp(ip, netif_ip4_addr(n), netif_ip4_netmask(n));
}

/* Has a neighbour of an interface that is not the tailnet's this address? */
static bool tnl_is_near4(const ip4_addr_t *ip)
{
    const struct netif *n;
    NETIF_FOREACH(n) {
        if (!tnl_netif_is_overlay(n) && tnl_on_link4(n, ip)) return true;
    }
    return false;
}

TAILNET_API struct netif *tailnet_lwip_route4(const ip4_addr_t *src, const ip4_addr_t *dest)
{
    struct netif         *at = netif_list;
    tailnet_lwip_overlay *o;
    LWIP_UNUSED_ARG(src);               /* lwIP asks a second time, without it     */
    if (ip4_addr_ismulticast(dest) || dest->addr == 0xffffffffUL) return NULL;
    while ((o = tnl_overlay_next(&at)) != NULL) {
        unsigned way = tnl_overlay_routes(o, 4, (const uint8_t *)&dest->addr);
        if (way == 1) return &o->netif;
        if (way == 2 && !tnl_is_near4(dest) && !tnl_is_resolver(&dest->addr, 4)) return &o->netif;
    }
    return NULL;
}

TAILNET_API int tailnet_lwip_input4(struct pbuf *p, struct netif *in)
{
    struct netif         *at = netif_list;
    tailnet_lwip_overlay *o;
    ip4_addr_t            src, dest;
    if (p->len < 20 || tnl_netif_is_overlay(in)) return 0;
    memcpy(&src.addr, (const uint8_t *)p->payload + 12, 4);
    memcpy(&dest.addr, (const uint8_t *)p->payload + 16, 4);
    while ((o = tnl_overlay_next(&at)) != NULL) {
        if (!ip4_addr_cmp(&dest, netif_ip4_addr(&o->netif)) &&
            (tnl_overlay_routes(o, 4, (const uint8_t *)&src.addr) != 1 || tnl_on_link4(in, &src)))
            continue;
        pbuf_free(p);
        return 1;
    }
    return 0;
}
#endif

#if LWIP_IPV6
static bool tnl_is_near6(const ip6_addr_t *ip)
{
    const struct netif *n;
    s8_t i;
    NETIF_FOREACH(n) {
        for (i = 0; i < LWIP_IPV6_NUM_ADDRESSES && !tnl_netif_is_overlay(n); i++)
            if (ip6_addr_isvalid(netif_ip6_addr_state(n, i)) &&
                memcmp(netif_ip6_addr(n, i)->addr, ip->addr, 8) == 0)
                return true;
    }
    return false;
}

TAILNET_API struct netif *tailnet_lwip_route6(const ip6_addr_t *src, const ip6_addr_t *dest)
{
    struct netif         *at = netif_list;
    tailnet_lwip_overlay *o;
    if (ip6_addr_ismulticast(dest)) return NULL;
    while ((o = tnl_overlay_next(&at)) != NULL) {
        unsigned way = tnl_overlay_routes(o, 6, (const uint8_t *)dest->addr);
        if (src != NULL && !ip6_addr_isany(src) &&
            memcmp(src->addr, netif_ip6_addr(&o->netif, 0)->addr, 16) != 0)
            continue;
        if (way == 1) return &o->netif;
        if (way == 2 && !tnl_is_near6(dest) && !tnl_is_resolver(dest->addr, 16)) return &o->netif;
    }
    return NULL;
}

TAILNET_API int tailnet_lwip_input6(struct pbuf *p, struct netif *in)
{
    struct netif         *at = netif_list;
    tailnet_lwip_overlay *o;
    const uint8_t        *head = (const uint8_t *)p->payload;
    if (p->len < 40 || tnl_netif_is_overlay(in)) return 0;
    while ((o = tnl_overlay_next(&at)) != NULL) {
        if (tnl_overlay_routes(o, 6, head + 8) != 1 && tnl_overlay_routes(o, 6, head + 24) != 1)
            continue;
        pbuf_free(p);
        return 1;
    }
    return 0;
}
#endif

static err_t tnl_lookup(const char *name, ip_addr_t *addr, u8_t kind)
{
    struct netif         *at = netif_list;
    tailnet_lwip_overlay *o;
    while ((o = tnl_overlay_next(&at)) != NULL)
        if (!o->deaf && tailnet_lwip_resolve(o, name, kind, addr) == TAILNET_OK) return ERR_OK;
    return ERR_VAL;
}

#if LWIP_VERSION_MINOR < 2
TAILNET_API err_t tailnet_lwip_lookup(const char *name, ip_addr_t *addr, u8_t kind)
{
    return tnl_lookup(name, addr, kind);
}
#else
TAILNET_API err_t tailnet_lwip_lookup(const char *name, size_t size, ip_addr_t *addr, u8_t kind)
{
    LWIP_UNUSED_ARG(size);
    return tnl_lookup(name, addr, kind);
}
#endif

/* ======================================================================== *
 * >>l-short - dial, listen, resolve.
 * ======================================================================== */

/* With one family alone lwIP does not say which it wants. */
static bool tnl_peer_ip(const tailnet_peer *peer, uint8_t kind, ip_addr_t *out)
{
    bool six = kind == TAILNET_LWIP_IP6 || kind == TAILNET_LWIP_IP6_IP4;
    bool any = kind >= TAILNET_LWIP_IP4_IP6 || !LWIP_IPV4 || !LWIP_IPV6;
    if (tnl_ip_of(out, six ? &peer->ip6 : &peer->ip4)) return true;
    return any && tnl_ip_of(out, six ? &peer->ip4 : &peer->ip6);
}

/* The address of a peer, or one behind a peer; the map may have to be read for it. */
static tailnet_result tnl_resolve_text(tailnet_lwip_overlay *o, const ip_addr_t *ip,
                                       const char *who)
{
    tailnet_addr   addr;
    size_t         index;
    tailnet_result result;
    tnl_addr_of(&addr, ip, 0);
    if (tailnet_find_peer_by_ip(o->node, &addr, &index)) return TAILNET_OK;
    if (tnl_overlay_routes(o, addr.family, addr.ip) == 2) return TAILNET_OK;
    result = tailnet_fetch_peer(o->node, who);
    tnl_overlay_wake(o);
    return result;
}

TAILNET_API tailnet_result tailnet_lwip_resolve(tailnet_lwip_overlay *o, const char *who,
                                                uint8_t kind, ip_addr_t *out)
{
    tailnet_peer   peer;
    size_t         index;
    tailnet_result result;
    if (o->node == NULL) return TAILNET_ERR_NO_ROUTE;
    if (ipaddr_aton(who, out)) {
        result = tnl_resolve_text(o, out, who);
    } else if (tailnet_find_peer(o->node, who, &index)) {
        result = tailnet_get_peer(o->node, index, &peer) && tnl_peer_ip(&peer, kind, out)
                     ? TAILNET_OK : TAILNET_ERR_NO_ROUTE;
    } else {
        result = tailnet_fetch_peer(o->node, who);
        tnl_overlay_wake(o);
    }
    return result == TAILNET_OK || result == TAILNET_ERR_AGAIN ? result : TAILNET_ERR_NO_ROUTE;
}

static tailnet_result tnl_result_of(err_t err)
{
    if (err == ERR_OK) return TAILNET_OK;
    if (err == ERR_USE) return TAILNET_ERR_BUSY;
    return err == ERR_MEM || err == ERR_BUF ? TAILNET_ERR_MEMORY : TAILNET_ERR_NETWORK;
}

TAILNET_API tailnet_result tailnet_lwip_dial(tailnet_lwip_overlay *o, const char *who,
                                             uint16_t port, tcp_connected_fn connected, void *arg,
                                             struct tcp_pcb **pcb)
{
    ip_addr_t       ip;
    struct tcp_pcb *p;
    err_t           err;
    tailnet_result  result = tailnet_lwip_resolve(o, who, TAILNET_LWIP_IP4_IP6, &ip);
    *pcb = NULL;
    if (result != TAILNET_OK) return result;
    p = tcp_new_ip_type(IP_GET_TYPE(&ip));
    if (p == NULL) return TAILNET_ERR_MEMORY;
    tcp_arg(p, arg);
    tcp_bind_netif(p, &o->netif);
    err = tcp_connect(p, &ip, port, connected);
    if (err == ERR_OK) *pcb = p;
    else               tcp_abort(p);
    return tnl_result_of(err);
}

TAILNET_API tailnet_result tailnet_lwip_listen(tailnet_lwip_overlay *o, uint16_t port,
                                               tcp_accept_fn accept, void *arg,
                                               struct tcp_pcb **listener)
{
    struct tcp_pcb *p = tcp_new_ip_type(IPADDR_TYPE_ANY), *l = NULL;
    err_t           err;
    if (listener != NULL) *listener = NULL;
    if (p == NULL) return TAILNET_ERR_MEMORY;
    tcp_bind_netif(p, &o->netif);
    err = tcp_bind(p, IP_ANY_TYPE, port);
    if (err == ERR_OK) l = tcp_listen_with_backlog_and_err(p, TCP_DEFAULT_LISTEN_BACKLOG, &err);
    if (l == NULL) {
        (void)tcp_close(p);
        return tnl_result_of(err);
    }
    tcp_arg(l, arg);
    tcp_accept(l, accept);
    if (listener != NULL) *listener = l;
    return TAILNET_OK;
}

/* ======================================================================== *
 * >>l-store - the state in two places of a flash. A record: four bytes that say
 * what it is, its size, its number, a CRC over all of it but itself, the state.
 * The place that is written never is the one that counts.
 * ======================================================================== */

enum { TNL_NO_PLACE = 2 };

typedef char tnl_state_is_whole[TAILNET_LWIP_STATE % 16 == 0 ? 1 : -1];

static uint32_t tnl_crc(uint32_t crc, const uint8_t *data, size_t size)
{
    unsigned bit;
    crc = ~crc;
    while (size-- > 0) {
        crc ^= *data++;
        for (bit = 0; bit < 8; bit++) crc = crc >> 1 ^ ((crc & 1u) != 0 ? 0xedb88320u : 0u);
    }
    return ~crc;
}

static void tnl_put32(uint8_t *b, uint32_t v)
{
    unsigned i;
    for (i = 0; i < 4; i++, v >>= 8) b[i] = (uint8_t)v;
}

static uint32_t tnl_get32(const uint8_t *b)
{
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static uint32_t tnl_record_crc(const uint8_t *record, size_t size)
{
    return tnl_crc(tnl_crc(0, record, 12), record + TAILNET_LWIP_HEAD, size);
}

/* The record of a place, whole and intact, or false. *size is that of the state. */
static bool tnl_record_read(const tailnet_lwip_store *s, unsigned place, uint8_t *record,
                            size_t *size)
{
    if (s->read(s->user, place, 0, record, TAILNET_LWIP_HEAD) != 0) return false;
    *size = tnl_get32(record + 4);
    if (memcmp(record, "TNL1", 4) != 0 || *size > TAILNET_LWIP_STATE) return false;
    if (s->read(s->user, place, TAILNET_LWIP_HEAD, record + TAILNET_LWIP_HEAD, *size) != 0)
        return false;
    return tnl_get32(record + 12) == tnl_record_crc(record, *size);
}

TAILNET_API tailnet_result tailnet_lwip_store_load(tailnet_lwip_store *s,
                                                   uint8_t record[TAILNET_LWIP_RECORD],
                                                   size_t *size)
{
    unsigned place;
    s->writes = s->sequence = 0;
    s->newest = TNL_NO_PLACE;
    for (place = 0; place < 2; place++) {
        uint32_t number;
        if (!tnl_record_read(s, place, record, size)) continue;
        number = tnl_get32(record + 8);
        if (s->newest != TNL_NO_PLACE && number - s->sequence > 0x7fffffffu) continue;
        s->sequence = number;
        s->newest   = (uint8_t)place;
    }
    *size = 0;
    if (s->newest == TNL_NO_PLACE) return TAILNET_OK;
    if (tnl_record_read(s, s->newest, record, size)) return TAILNET_OK;
    *size = 0;
    return TAILNET_ERR_NETWORK;
}

/* Do so many bytes of a place say the same as the record? */
static bool tnl_record_same(const tailnet_lwip_store *s, unsigned place, const uint8_t *record,
                            size_t from, size_t size)
{
    uint8_t piece[32];
    while (from < size) {
        size_t n = size - from < sizeof piece ? size - from : sizeof piece;
        if (s->read(s->user, place, (uint32_t)from, piece, n) != 0) return false;
        if (memcmp(piece, record + from, n) != 0) return false;
        from += n;
    }
    return true;
}

TAILNET_API tailnet_result tailnet_lwip_store_save(tailnet_lwip_store *s,
                                                   uint8_t record[TAILNET_LWIP_RECORD],
                                                   size_t size)
{
    unsigned place = s->newest == 0 ? 1 : 0;
    size_t   whole = TAILNET_LWIP_HEAD + ((size + 15u) & ~(size_t)15u);
    if (size > TAILNET_LWIP_STATE) return TAILNET_ERR_TOO_BIG;
    memcpy(record, "TNL1", 4);
    tnl_put32(record + 4, (uint32_t)size);
    if (s->newest != TNL_NO_PLACE) {            /* a flash bears so many writes    */
        tnl_put32(record + 8, s->sequence);
        tnl_put32(record + 12, tnl_record_crc(record, size));
        if (tnl_record_same(s, s->newest, record, 0, TAILNET_LWIP_HEAD + size)) return TAILNET_OK;
    }
    tnl_put32(record + 8, s->sequence + 1);
    tnl_put32(record + 12, tnl_record_crc(record, size));
    memset(record + TAILNET_LWIP_HEAD + size, 0xff, whole - TAILNET_LWIP_HEAD - size);
    s->writes++;
    if (s->write(s->user, place, record, whole) != 0) return TAILNET_ERR_NETWORK;
    if (!tnl_record_same(s, place, record, 0, whole)) return TAILNET_ERR_NETWORK;
    s->sequence++;
    s->newest = (uint8_t)place;
    return TAILNET_OK;
}

/* ======================================================================== *
 * >>l-udp - datagrams below.
 * ======================================================================== */

/* Something is to be done: the loop sees it by wait_ms, the tcpip thread gets a letter. */
static void tnl_wake(void *user)
{
    tailnet_lwip *t = (tailnet_lwip *)user;
    t->more = true;
#if !NO_SYS
    if (t->running && !t->woken)
        t->woken = tcpip_callbackmsg_trycallback((struct tcpip_callback_msg *)t->message) == ERR_OK;
#endif
}

/* A datagram for us. It is decrypted where it lies, if it lies in one piece that is ours. */
static void tnl_udp_recv(void *user, struct udp_pcb *pcb, struct pbuf *p, const ip_addr_t *ip,
                         u16_t port)
{
    tailnet_lwip *t = (tailnet_lwip *)user;
    tailnet_addr  from;
    tailnet_buf   pkt;
    LWIP_UNUSED_ARG(pcb);
    if (p->next != NULL || p->ref != 1) {
        struct pbuf *whole = pbuf_clone(PBUF_RAW, PBUF_RAM, p);
        pbuf_free(p);
        p = whole;
    }
    if (p == NULL) {
        t->udp_dropped++;
        return;
    }
    tnl_addr_of(&from, ip, port);
    tnl_buf_over(&pkt, p);
    if (t->node != NULL && p->len > 0) (void)tailnet_udp_input(t->node, &from, &pkt, 1);
    pbuf_free(p);
    tnl_wake(t);
}

/* Sends a packet that lies in a pbuf of ours. lwIP writes its headers in front of it and may
 * keep it for a while (ARP, a driver): then it stays as it is until the last one frees it. */
static err_t tnl_udp_send_in_place(tailnet_lwip *t, struct pbuf *p, const tailnet_buf *pkt,
                                   const ip_addr_t *ip, uint16_t port)
{
    void *payload = p->payload;
    u16_t len     = p->len;
    err_t err;
    (void)pbuf_remove_header(p, pkt->off);
    p->len = p->tot_len = (u16_t)pkt->len;
    err = udp_sendto(t->udp, p, ip, port);
    if (p->ref != 1) return err;
    p->payload = payload;
    p->len = p->tot_len = len;
    return err;
}

/* io.udp_output; count is 1, because we never hand over more. */
static int tnl_io_udp_output(void *user, const tailnet_addr *to, tailnet_buf *pkt, size_t count)
{
    tailnet_lwip *t = (tailnet_lwip *)user;
    struct pbuf  *p = (struct pbuf *)pkt->owner;
    ip_addr_t     ip;
    err_t         err;
    LWIP_UNUSED_ARG(count);
    if (t->below == NULL || !tnl_ip_of(&ip, to) || !tnl_netif_has(t->below, to->family)) return -1;
    if (p != NULL && p->ref == 1 && p->payload == pkt->base) {
        err = tnl_udp_send_in_place(t, p, pkt, &ip, to->port);
    } else {
        p   = tnl_pbuf_of(pkt, PBUF_TRANSPORT, PBUF_RAM);
        err = ERR_MEM;
        if (p != NULL) {
            err = udp_sendto(t->udp, p, &ip, to->port);
            pbuf_free(p);
        }
    }
    if (err == ERR_MEM) t->udp_dropped++;
    return err == ERR_RTE ? -1 : 0;
}

static void tnl_io_ip_output(void *user, tailnet_buf *pkt, size_t count)
{
    LWIP_UNUSED_ARG(count);
    tnl_overlay_ip_output(&((tailnet_lwip *)user)->overlay, pkt);
}

/* ======================================================================== *
 * >>l-tcp - connections and names below. lwIP's callbacks only note what
 * happened; the library hears of it in the next turn.
 * ======================================================================== */

enum { TNL_FREE, TNL_DIALING, TNL_OPEN, TNL_TOLD };         /* of a slot           */
enum { TNL_NO_NAME, TNL_ASKED, TNL_KNOWN, TNL_FAILED };     /* of a name           */
enum { TNL_TRIES = 2, TNL_SHORT_MS = 50, TNL_SAVE_AGAIN_MS = 10000 };

/* ---- names ---- */

static uint32_t tnl_hash(const char *text)
{
    uint32_t hash = 2166136261u;
    while (*text != '\0') hash = (hash ^ (uint8_t)*text++) * 16777619u;
    return hash;
}

/* lwIP's answer. It may be one to an earlier question that nobody waits for any more. */
static void tnl_name_found(const char *host, const ip_addr_t *ip, void *arg)
{
    tailnet_lwip_name *name = (tailnet_lwip_name *)arg;
    if (name->state != TNL_ASKED || name->hash != tnl_hash(host)) return;
    name->state = ip != NULL ? TNL_KNOWN : TNL_FAILED;
    if (ip != NULL) name->ip = *ip;
    tnl_wake(name->t);
}

/* False: no such name, or no room to ask. The tailnet's own names do not count here. */
static bool tnl_name_ask(tailnet_lwip *t, tailnet_lwip_name *name, const char *host, uint8_t kind)
{
    err_t err;
    name->t     = t;
    name->hash  = tnl_hash(host);
    name->state = TNL_ASKED;
#if LWIP_DNS
    t->overlay.deaf = true;
    err = dns_gethostbyname_addrtype(host, &name->ip, tnl_name_found, name, kind);
    t->overlay.deaf = false;
#else
    LWIP_UNUSED_ARG(kind);
    err = ipaddr_aton(host, &name->ip) ? ERR_OK : ERR_VAL;
#endif
    if (err == ERR_OK) name->state = TNL_KNOWN;
    else if (err != ERR_INPROGRESS) name->state = TNL_FAILED;
    return name->state != TNL_FAILED;
}

#if TAILNET_LWIP_LOOKUPS > 0
static int tnl_io_resolve(void *user, uint32_t query, const char *host)
{
    tailnet_lwip *t = (tailnet_lwip *)user;
    unsigned      i;
    for (i = 0; i < TAILNET_LWIP_LOOKUPS; i++) {
        tailnet_lwip_name *name = &t->name[i];
        if (name->state != TNL_NO_NAME) continue;
        name->query = query;
        t->more     = true;
        if (tnl_name_ask(t, name, host, TAILNET_LWIP_IP4_IP6)) return 0;
        name->state = TNL_NO_NAME;
        return -1;
    }
    return -1;
}

/* Answers that came, to io.resolve. */
static void tnl_names_turn(tailnet_lwip *t)
{
    unsigned i;
    for (i = 0; i < TAILNET_LWIP_LOOKUPS; i++) {
        tailnet_lwip_name *name = &t->name[i];
        tailnet_addr       addr;
        size_t             count = name->state == TNL_KNOWN ? 1 : 0;
        if (name->state != TNL_KNOWN && name->state != TNL_FAILED) continue;
        name->state = TNL_NO_NAME;
        if (count != 0) tnl_addr_of(&addr, &name->ip, 0);
        (void)tailnet_resolved(t->node, name->query, &addr, count);
    }
}
#endif

/* ---- what lwIP tells ---- */

static err_t tnl_tcp_connected(void *arg, struct tcp_pcb *pcb, err_t err)
{
    tailnet_lwip_slot *s = (tailnet_lwip_slot *)arg;
    LWIP_UNUSED_ARG(pcb);
    LWIP_UNUSED_ARG(err);
    s->state = TNL_OPEN;
    s->fresh = true;
    tnl_wake(s->t);
    return ERR_OK;
}

static err_t tnl_tcp_recv(void *arg, struct tcp_pcb *pcb, struct pbuf *p, err_t err)
{
    tailnet_lwip_slot *s = (tailnet_lwip_slot *)arg;
    LWIP_UNUSED_ARG(pcb);
    LWIP_UNUSED_ARG(err);
    if (p == NULL)            s->ended = true;
    else if (s->held != NULL) pbuf_cat(s->held, p);
    else                      s->held = p;
    tnl_wake(s->t);
    return ERR_OK;
}

static err_t tnl_tcp_sent(void *arg, struct tcp_pcb *pcb, u16_t size)
{
    tailnet_lwip_slot *s = (tailnet_lwip_slot *)arg;
    LWIP_UNUSED_ARG(pcb);
    LWIP_UNUSED_ARG(size);
    if (!s->full) return ERR_OK;
    s->room = true;
    tnl_wake(s->t);
    return ERR_OK;
}

static void tnl_tcp_err(void *arg, err_t err)
{
    tailnet_lwip_slot *s = (tailnet_lwip_slot *)arg;
    LWIP_UNUSED_ARG(err);
    s->pcb = NULL;                      /* lwIP has freed it                       */
    if (s->state == TNL_OPEN) s->ended = true;
    tnl_wake(s->t);
}

/* ---- dialling ---- */

/* Lets go of a connection; politely if there was one. lwIP keeps a closed one for minutes when
 * nobody answers, so it becomes the first to be taken when there is no room. */
static void tnl_tcp_drop(tailnet_lwip_slot *s)
{
    struct tcp_pcb *pcb = s->pcb;
    s->pcb = NULL;
    if (s->held != NULL) {
        if (pcb != NULL) tcp_recved(pcb, s->held->tot_len);
        pbuf_free(s->held);
        s->held = NULL;
    }
    if (pcb == NULL) return;
    tcp_arg(pcb, NULL);
    tcp_recv(pcb, NULL);
    tcp_sent(pcb, NULL);
    tcp_err(pcb, NULL);
    tcp_setprio(pcb, TCP_PRIO_MIN);
    if (s->state == TNL_DIALING || tcp_close(pcb) != ERR_OK) tcp_abort(pcb);
}

static bool tnl_tcp_connect(tailnet_lwip_slot *s, const ip_addr_t *ip)
{
    struct tcp_pcb *pcb = tcp_new_ip_type(IP_GET_TYPE(ip));
    if (pcb == NULL || s->t->below == NULL) {
        if (pcb != NULL) tcp_abort(pcb);
        return false;
    }
    tcp_arg(pcb, s);
    tcp_recv(pcb, tnl_tcp_recv);
    tcp_sent(pcb, tnl_tcp_sent);
    tcp_nagle_disable(pcb);
    tcp_bind_netif(pcb, s->t->below);
    if (tcp_connect(pcb, ip, s->port, tnl_tcp_connected) != ERR_OK) {
        tcp_abort(pcb);
        return false;
    }
    tcp_err(pcb, tnl_tcp_err);
    s->pcb = pcb;
    return true;
}

/* May this family be tried (again)? Twice at most, and once if there is no other. */
static bool tnl_tcp_may(const tailnet_lwip_slot *s, unsigned family)
{
    unsigned most = s->name[1 - family].state == TNL_KNOWN ? TNL_TRIES : 1;
    return s->name[family].state == TNL_KNOWN && s->tries[family] < most;
}

/* The next address: the families take turns, IPv4 first. False when all was tried. */
static bool tnl_tcp_try(tailnet_lwip_slot *s)
{
    while (tnl_tcp_may(s, 0) || tnl_tcp_may(s, 1)) {
        unsigned family = !tnl_tcp_may(s, 0) || (tnl_tcp_may(s, 1) && s->tries[1] < s->tries[0]);
        s->tries[family]++;
        s->now   = (uint8_t)family;
        s->at_ms = sys_now();
        if (tnl_tcp_connect(s, &s->name[family].ip)) return true;
    }
    return false;
}

/* Is there an address of the other family that this try keeps waiting? */
static bool tnl_tcp_has_other(const tailnet_lwip_slot *s) { return tnl_tcp_may(s, 1u - s->now); }

static uint32_t tnl_fallback_ms(const tailnet_lwip *t)
{
    return t->opt.fallback_ms != 0 ? t->opt.fallback_ms : 2000u;
}

static void tnl_tcp_dial(tailnet_lwip_slot *s)
{
    if (s->pcb != NULL) {
        if (!tnl_tcp_has_other(s) || sys_now() - s->at_ms < tnl_fallback_ms(s->t)) return;
        tnl_tcp_drop(s);
    }
    if (tnl_tcp_try(s)) return;
    if (s->name[0].state == TNL_ASKED || s->name[1].state == TNL_ASKED) return;
    s->state = TNL_TOLD;
    (void)tailnet_tcp_closed(s->t->node, s->link);
}

/* io.tcp_open. Addresses that are given count, else the name is looked up in the families that
 * we have ourselves. */
static int tnl_io_tcp_open(void *user, tailnet_link link, const tailnet_dial *dial)
{
    tailnet_lwip      *t = (tailnet_lwip *)user;
    tailnet_lwip_slot *s = &t->slot[TAILNET_LINK_SLOT(link)];
    bool               given = false, any = false;
    unsigned           i;
    memset(s, 0, sizeof *s);
    s->t    = t;
    s->link = link;
    s->port = dial->port;
    for (i = 0; i < 2; i++) {
        const tailnet_addr *addr = i == 0 ? &dial->addr4 : &dial->addr6;
        if (!tnl_netif_has(t->below, i == 0 ? 4 : 6) || !tnl_ip_of(&s->name[i].ip, addr)) continue;
        s->name[i].state = TNL_KNOWN;
        given            = true;
    }
    for (i = 0; i < 2 && !given; i++)
        if (tnl_netif_has(t->below, i == 0 ? 4 : 6) &&
            tnl_name_ask(t, &s->name[i], dial->host,
                         i == 0 ? TAILNET_LWIP_IP4 : TAILNET_LWIP_IP6))
            any = true;
    if (!given && !any) return -1;
    s->state = TNL_DIALING;
    t->more  = true;
    return 0;
}

/* ---- open connections ---- */

static tailnet_lwip_slot *tnl_slot_of(tailnet_lwip *t, tailnet_link link)
{
    tailnet_lwip_slot *s = &t->slot[TAILNET_LINK_SLOT(link)];
    return s->state != TNL_FREE && s->link == link ? s : NULL;
}

/* io.tcp_output. lwIP may be short of memory with nothing on the way that would tell us of
 * room later; so we ask again after a while. */
static int32_t tnl_io_tcp_output(void *user, tailnet_link link, const void *data, size_t size)
{
    tailnet_lwip_slot *s = tnl_slot_of((tailnet_lwip *)user, link);
    size_t             n = size;
    if (s == NULL || s->pcb == NULL || s->state != TNL_OPEN) return -1;
    if (n > tcp_sndbuf(s->pcb)) n = tcp_sndbuf(s->pcb);
    if (n > 0xffffu) n = 0xffffu;
    while (n > 0) {
        err_t err = tcp_write(s->pcb, data, (u16_t)n, TCP_WRITE_FLAG_COPY);
        if (err == ERR_OK) break;
        if (err != ERR_MEM) return -1;
        n /= 2;
    }
    s->full  = n < size;
    s->at_ms = sys_now();
    if (n > 0) (void)tcp_output(s->pcb);
    return (int32_t)n;
}

static void tnl_io_tcp_close(void *user, tailnet_link link)
{
    tailnet_lwip_slot *s = tnl_slot_of((tailnet_lwip *)user, link);
    if (s == NULL) return;
    tnl_tcp_drop(s);
    s->state = TNL_FREE;
    s->name[0].state = s->name[1].state = TNL_NO_NAME;
}

/* Bytes that came, as far as the library takes them: lwIP's window opens by so much. */
static void tnl_tcp_feed(tailnet_lwip_slot *s)
{
    while (s->held != NULL && s->state == TNL_OPEN) {
        size_t n = tailnet_tcp_input(s->t->node, s->link, s->held->payload, s->held->len);
        if (n == 0) return;
        s->held = pbuf_free_header(s->held, (u16_t)n);
        if (s->pcb != NULL) tcp_recved(s->pcb, (u16_t)n);
        s->t->more = true;
    }
}

static void tnl_tcp_turn(tailnet_lwip_slot *s)
{
    tailnet_node *node;
    if (s->state == TNL_DIALING) tnl_tcp_dial(s);
    if (s->state != TNL_OPEN) return;
    node = s->t->node;
    if (s->fresh) (void)tailnet_tcp_opened(node, s->link);
    s->fresh = false;
    tnl_tcp_feed(s);
    if (s->room || (s->full && sys_now() - s->at_ms >= TNL_SHORT_MS)) {
        s->room = s->full = false;
        (void)tailnet_tcp_writable(node, s->link);
    }
    if (!s->ended || s->held != NULL) return;
    s->state = TNL_TOLD;
    (void)tailnet_tcp_closed(node, s->link);
}

static uint32_t tnl_tcp_wait_ms(const tailnet_lwip_slot *s, uint32_t max_ms)
{
    uint32_t limit = max_ms, gone = sys_now() - s->at_ms;
    if (s->state == TNL_DIALING && s->pcb != NULL && tnl_tcp_has_other(s))
        limit = tnl_fallback_ms(s->t);
    else if (s->state == TNL_OPEN && (s->full || s->held != NULL))
        limit = TNL_SHORT_MS;
    else
        return max_ms;
    limit = s->held != NULL ? limit : limit > gone ? limit - gone : 0;
    return limit < max_ms ? limit : max_ms;
}

/* ======================================================================== *
 * >>l-network - which addresses we have, and when they change.
 * ======================================================================== */

static size_t tnl_network_addrs(const tailnet_lwip *t, tailnet_addr *out)
{
    size_t   count = 0;
    unsigned i;
    memset(out, 0, TAILNET_LWIP_OWN * sizeof *out);
    if (t->below == NULL || !netif_is_up(t->below) || !netif_is_link_up(t->below)) return 0;
    for (i = 0; i < TAILNET_LWIP_OWN; i++) {
        const ip_addr_t *ip = tnl_netif_ip(t->below, i);
        if (ip != NULL) tnl_addr_of(&out[count++], ip, t->udp->local_port);
    }
    return count;
}

static void tnl_network_gateway(const tailnet_lwip *t, tailnet_addr *out)
{
    memset(out, 0, sizeof *out);
    LWIP_UNUSED_ARG(t);
#if LWIP_IPV4
    if (t->below != NULL && !ip4_addr_isany(netif_ip4_gw(t->below)))
        tnl_addr_of(out, netif_ip_gw4(t->below), 0);
#endif
}

/* Looks at the interface below, and tells the node when it is not as it was. */
static void tnl_network_turn(tailnet_lwip *t)
{
    tailnet_network network;
    tailnet_addr    now[TAILNET_LWIP_OWN], gateway;
    struct netif   *below = t->opt.below;
    bool            moved;
    if (below == NULL) below = netif_default != NULL && tnl_netif_is_overlay(netif_default)
                                   ? t->below : netif_default;
    moved = below != t->below;
    if (moved) udp_bind_netif(t->udp, below);
    t->below = below;
    memset(&network, 0, sizeof network);
    network.addr_count = tnl_network_addrs(t, now);
    tnl_network_gateway(t, &gateway);
    if (t->told && !moved && memcmp(now, t->own, sizeof now) == 0 &&
        memcmp(&gateway, &t->gateway, sizeof gateway) == 0)
        return;
    network.addrs      = now;
    network.gateway    = gateway;
    network.down       = network.addr_count == 0;
    network.port_fixed = t->opt.udp_port != 0;
    network.changed    = t->told && (moved || t->was_down ||
                                     memcmp(&now[0], &t->own[0], sizeof now[0]) != 0);
    if (tailnet_set_network(t->node, &network) != TAILNET_OK) return;
    memcpy(t->own, now, sizeof now);
    memcpy(&t->gateway, &gateway, sizeof gateway);
    t->was_down = network.down;
    t->told     = true;
}

/* ======================================================================== *
 * >>l-life - open, poll, wait, close; running by itself.
 * ======================================================================== */

/* lwIP's clock runs over after seven weeks, ours must not. */
static uint64_t tnl_io_now(void *user)
{
    tailnet_lwip *t   = (tailnet_lwip *)user;
    uint32_t      low = sys_now();
    t->now_ms += (uint32_t)(low - t->now_low);
    t->now_low = low;
    return t->now_ms;
}

static void tnl_wipe(void *dst, size_t size)
{
    volatile uint8_t *at = (volatile uint8_t *)dst;
    while (size-- > 0) *at++ = 0;
}

/* A sentence, for who has room for sentences. */
#ifdef TAILNET_NO_STRINGS
#  define TNL_SAY(text) ""
#else
#  define TNL_SAY(text) text
#endif

static void tnl_save(tailnet_lwip *t)
{
    size_t         size;
    tailnet_result result = TAILNET_ERR_TOO_BIG;
    size = tailnet_export_state(t->node, t->record + TAILNET_LWIP_HEAD, TAILNET_LWIP_STATE);
    if (size != 0 && size <= TAILNET_LWIP_STATE)
        result = tailnet_lwip_store_save(&t->store, t->record, size);
    tnl_wipe(t->record, sizeof t->record);
    t->save_at_ms = sys_now();
    t->unsaved    = result != TAILNET_OK;
    t->error      = t->unsaved ? TNL_SAY("the state could not be saved") : NULL;
}

static tailnet_result tnl_open_udp(tailnet_lwip *t)
{
    t->udp = udp_new_ip_type(IPADDR_TYPE_ANY);
    if (t->udp == NULL) return TAILNET_ERR_MEMORY;
    udp_recv(t->udp, tnl_udp_recv, t);
    return tnl_result_of(udp_bind(t->udp, IP_ANY_TYPE, t->opt.udp_port));
}

static void tnl_fill_io(tailnet_lwip *t, tailnet_io *io)
{
    io->user = t;
    if (io->now_ms == NULL) io->now_ms = tnl_io_now;
    io->udp_output = tnl_io_udp_output;
    io->ip_output  = tnl_io_ip_output;
    io->tcp_open   = tnl_io_tcp_open;
    io->tcp_output = tnl_io_tcp_output;
    io->tcp_close  = tnl_io_tcp_close;
#if TAILNET_LWIP_LOOKUPS > 0
    io->resolve    = tnl_io_resolve;
#endif
}

static tailnet_result tnl_open_state(tailnet_lwip *t, tailnet_desc *desc)
{
    size_t         size;
    tailnet_result result;
    t->store.user  = t->opt.user;
    t->store.read  = t->opt.flash_read;
    t->store.write = t->opt.flash_write;
    if (t->store.read == NULL || t->store.write == NULL) return TAILNET_OK;
    result = tailnet_lwip_store_load(&t->store, t->record, &size);
    if (result != TAILNET_OK || size == 0) return result;
    desc->saved_state[0].data = t->record + TAILNET_LWIP_HEAD;
    desc->saved_state[0].size = size;
    return TAILNET_OK;
}

static tailnet_result tnl_open_node(tailnet_lwip *t, tailnet_desc *desc)
{
    tailnet_result result = tailnet_init(&t->node, desc);
    if (result == TAILNET_ERR_MALFORMED && t->opt.replace_damaged_state) {
        memset(desc->saved_state, 0, sizeof desc->saved_state);
        result = tailnet_init(&t->node, desc);
    }
    if (result != TAILNET_OK) t->node = NULL;
    tnl_wipe(t->record, sizeof t->record);
    if (desc->saved_state[0].data == t->record + TAILNET_LWIP_HEAD)
        memset(desc->saved_state, 0, sizeof desc->saved_state[0]);
    return result;
}

/* Step by step; t->error is what the step that failed was about. */
static tailnet_result tnl_open(tailnet_lwip *t, tailnet_desc *desc)
{
    tailnet_lwip_overlay_options over;
    tailnet_result               result;
    t->error = TNL_SAY("desc: no io.random, or max_links above TAILNET_LWIP_LINKS");
    if (desc->max_links > TAILNET_LWIP_LINKS || desc->io.random == NULL)
        return TAILNET_ERR_ARGUMENT;
    t->error = TNL_SAY("lwIP has no room for the UDP socket");
    result   = tnl_open_udp(t);
    if (result != TAILNET_OK) return result;
    t->error = TNL_SAY("the flash cannot be read");
    result   = tnl_open_state(t, desc);
    if (result != TAILNET_OK) return result;
    t->error = TNL_SAY("tailnet_init: the memory, a limit, or the saved state");
    result   = tnl_open_node(t, desc);
    if (result != TAILNET_OK) return result;
    t->error = TNL_SAY("lwIP does not take the interface");
    memset(&over, 0, sizeof over);
    over.mtu = desc->mtu;
    return tailnet_lwip_overlay_open(&t->overlay, t->node, &over);
}

TAILNET_API tailnet_result tailnet_lwip_open(tailnet_lwip *t, tailnet_desc *desc,
                                             const tailnet_lwip_options *options)
{
    tailnet_result result;
    memset(t, 0, sizeof *t);
    t->now_low = sys_now();
    if (options != NULL) t->opt = *options;
    if (desc->max_links == 0) desc->max_links = 2;
    tnl_fill_io(t, &desc->io);
    result = tnl_open(t, desc);
    if (result != TAILNET_OK) {
        tailnet_lwip_close(t);
        return result;
    }
    t->error             = NULL;
    t->overlay.wake      = tnl_wake;
    t->overlay.wake_user = t;
    tnl_network_turn(t);
    return TAILNET_OK;
}

TAILNET_API uint32_t tailnet_lwip_poll(tailnet_lwip *t)
{
    uint32_t events;
    unsigned i;
    if (t->node == NULL) return 0;
    t->more = false;
    tnl_network_turn(t);
#if TAILNET_LWIP_LOOKUPS > 0
    tnl_names_turn(t);
#endif
    for (i = 0; i < TAILNET_LWIP_LINKS; i++) tnl_tcp_turn(&t->slot[i]);
    events = tailnet_poll(t->node);
    for (i = 0; i < TAILNET_LWIP_LINKS; i++) tnl_tcp_feed(&t->slot[i]);
    if ((events & TAILNET_EVENT_SAVE) != 0 && t->store.write != NULL) {
        t->unsaved    = true;
        t->save_at_ms = sys_now() - TNL_SAVE_AGAIN_MS;
    }
    if (t->unsaved && sys_now() - t->save_at_ms >= TNL_SAVE_AGAIN_MS) tnl_save(t);
    tailnet_lwip_overlay_news(&t->overlay, events);
    if (events != 0 && t->opt.on_news != NULL) t->opt.on_news(t->opt.user, t, events);
    tailnet_lwip_overlay_turn(&t->overlay);
    return events;
}

TAILNET_API uint32_t tailnet_lwip_wait_ms(tailnet_lwip *t, uint32_t max_ms)
{
    unsigned i;
    if (t->node == NULL) return max_ms;
    if (t->more) return 0;
    max_ms = tailnet_wait_ms(t->node, max_ms);
    for (i = 0; i < TAILNET_LWIP_LINKS; i++) max_ms = tnl_tcp_wait_ms(&t->slot[i], max_ms);
    if (t->unsaved && max_ms > TNL_SAVE_AGAIN_MS) max_ms = TNL_SAVE_AGAIN_MS;
    return tailnet_lwip_overlay_wait_ms(&t->overlay, max_ms);
}

#if !NO_SYS
enum { TNL_LOOK_MS = 1000 };            /* how late we see that the network is another */

/* The letter can only be torn up when it is not on its way. */
static void tnl_forget_message(tailnet_lwip *t)
{
    if (t->message == NULL || t->woken) return;
    tcpip_callbackmsg_delete((struct tcpip_callback_msg *)t->message);
    t->message = NULL;
}

/* One turn in the tcpip thread, and the appointment for the next. */
static void tnl_turn(void *user)
{
    tailnet_lwip *t = (tailnet_lwip *)user;
    if (!t->running) return;
    sys_untimeout(tnl_turn, t);
    (void)tailnet_lwip_poll(t);
    if (t->running) sys_timeout(tailnet_lwip_wait_ms(t, TNL_LOOK_MS), tnl_turn, t);
}

/* The letter of tnl_wake has come. */
static void tnl_letter(void *user)
{
    tailnet_lwip *t = (tailnet_lwip *)user;
    t->woken = false;
    tnl_turn(t);
    if (t->node == NULL) tnl_forget_message(t);
}

TAILNET_API tailnet_result tailnet_lwip_start(tailnet_lwip *t)
{
    if (t->running) return TAILNET_OK;
    if (t->message == NULL) t->message = tcpip_callbackmsg_new(tnl_letter, t);
    if (t->message == NULL) return TAILNET_ERR_MEMORY;
    t->running = true;
    tnl_wake(t);
    return TAILNET_OK;
}

TAILNET_API void tailnet_lwip_stop(tailnet_lwip *t)
{
    if (!t->running) return;
    t->running = false;
    sys_untimeout(tnl_turn, t);
}
#endif

TAILNET_API void tailnet_lwip_close(tailnet_lwip *t)
{
    unsigned i;
#if !NO_SYS
    tailnet_lwip_stop(t);
    tnl_forget_message(t);              /* on its way: it goes when it arrives     */
#endif
    tailnet_lwip_overlay_close(&t->overlay);    /* peers hear that connections end  */
    if (t->node != NULL) {
        if (t->unsaved) tnl_save(t);
        tailnet_wipe(t->node);
        t->node = NULL;
    }
    for (i = 0; i < TAILNET_LWIP_LINKS; i++)
        if (t->slot[i].state != TNL_FREE) tnl_io_tcp_close(t, t->slot[i].link);
#if TAILNET_LWIP_LOOKUPS > 0
    for (i = 0; i < TAILNET_LWIP_LOOKUPS; i++) t->name[i].state = TNL_NO_NAME;
#endif
    if (t->udp != NULL) udp_remove(t->udp);
    t->udp = NULL;
}

#endif /* TAILNET_PLATFORM_LWIP_IMPLEMENTATION_DONE */
#endif /* TAILNET_PLATFORM_LWIP_IMPLEMENTATION */
