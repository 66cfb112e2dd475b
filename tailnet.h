/* tailnet.h — 0.1.0 — a node of a tailnet in one C99 header. MIT or Unlicense.
 *
 * Logs in to a Tailscale-compatible control server (the hosted service, or
 * headscale), keeps the network map, and carries encrypted IP packets to the
 * other nodes. No heap, no threads, no globals: the caller gives memory, sockets,
 * a clock and random numbers, and turns the crank.
 *
 *     #define TAILNET_IMPLEMENTATION          in exactly one file
 *     #include "tailnet.h"
 *
 *     static TAILNET_MEMORY(memory, 16, 4, 2, 1);      16 peers, 4 sessions, 2 links, 1 TLS
 *     tailnet_desc desc = {0};
 *     desc.memory = &memory;  desc.memory_size = sizeof memory;
 *     desc.auth_key = "tskey-auth-...";
 *     desc.io = my_callbacks;                          seven functions, see tailnet_io
 *     tailnet_init(&node, &desc);  tailnet_up(node);
 *     for (;;) { feed sockets in; tailnet_poll(node); wait tailnet_wait_ms(node, 60000); }
 *
 * Needs BearSSL 0.6 (-lbearssl) and nothing else. On Linux and other POSIX systems
 * tailnet_platform_posix.h does all of the above.
 *
 * Not affiliated with Tailscale Inc. or the headscale project.
 *
 * SPDX-License-Identifier: MIT OR Unlicense
 *
 * ---- Contents: search for the token ---------------------------------------
 *
 *   >>manual    how to use it: rules, loops, memory, clocks, security, limits
 *   >>api-types >>api   the types, and the functions
 *   >>config    limits, compilers, and what they must agree on
 *   >>base      bytes, time, cursors, addresses, dates
 *   >>crypto    BLAKE2s, HKDF, ChaCha20-Poly1305, XChaCha, NaCl box, X25519
 *   >>rim       the only code that calls the caller
 *   >>key       text forms of keys, the saved state
 *   >>json      a reader that never holds a document, and a writer
 *   >>http      HTTP/1.1 heads, HTTP/2 frames and flow control, HPACK
 *   >>noise     the control channel's handshake and records
 *   >>derp      relay frames and login
 *   >>stun      which address the world sees
 *   >>pmp       port mapping: NAT-PMP, PCP, UPnP
 *   >>disco     ping, pong, call-me-maybe
 *   >>wg        WireGuard: handshake, keys, windows, cookies, timers
 *   >>ip        IPv4 and IPv6 headers, masquerade, TSMP
 *   >>filter    who may reach us, and which answers are ours
 *   >>dns       MagicDNS: a question in, an answer out
 *   >>tls       BearSSL behind four ports, and whom to believe
 *   >>link      one TCP connection, from wish to bytes
 *   >>map       the network map: peers, routes, relays, names
 *   >>net       our addresses, and how far the relays are
 *   >>path      which way to one peer
 *   >>relay     which relays to hold, and the way to peers through them
 *   >>control   the conversation with the control server
 *   >>node      the struct that holds all; runs, dispatch, poll
 *   >>public    the functions of the API
 *   >>history   >>licence
 */

/* ======================================================================== *
 * >>manual
 *
 * 1. IN FOUR SENTENCES
 *
 * What comes in is a call. What goes out is a callback. Waiting is a number.
 * News is a set of bits. There is no more to it: the library owns no socket, no
 * thread, no timer and no memory of its own, so it runs under any event loop,
 * any RTOS, or none.
 *
 * 2. RULES
 *
 *  - One node, one thread at a time. Nodes share nothing; have as many as you
 *    like, in as many threads. Nothing may be called from an interrupt.
 *  - A callback must not call into its own node: such a call answers
 *    TAILNET_ERR_BUSY (or NULL, 0, false) and changes nothing. With a stack that
 *    answers at once, such as lwIP without an OS, put decrypted packets into a
 *    small queue and hand them over after tailnet_poll.
 *  - Poll once after a batch of inputs, not after each. Never sleep longer than
 *    tailnet_wait_ms says.
 *  - A negative result of a packet call is loss, as on any network; only
 *    TAILNET_ERR_AGAIN is worth waiting for (the stream to the relay is full:
 *    keep the packet, stop reading, go on after tailnet_tcp_writable). While the
 *    node is not RUNNING every packet is refused with it.
 *  - tcp_open that returns nonzero has left nothing open. One that returned 0 is
 *    matched by exactly one tcp_close, always from tailnet_poll or tailnet_wipe.
 *  - Strings and arrays of the desc must stay until tailnet_wipe; the desc itself
 *    may go. What a question returns by pointer is valid until the next poll.
 *  - Lists and enums may grow in later versions: zero desc first, name fields, and
 *    give every switch a default.
 *
 * 3. THE LOOP
 *
 *     for (;;) {
 *         wait for a socket, a packet of yours, or tailnet_wait_ms(node, 60000);
 *         datagrams        -> tailnet_udp_input(node, &from, pkts, count);
 *         own IP packets   -> tailnet_ip_input(node, pkts, count);
 *         connect finished -> tailnet_tcp_opened(node, link);
 *         stream bytes     -> tailnet_tcp_input(node, link, bytes, size);
 *         room to send     -> tailnet_tcp_writable(node, link);
 *         closed, failed   -> tailnet_tcp_closed(node, link);
 *         news = tailnet_poll(node);
 *         if (news & TAILNET_EVENT_SAVE)  store tailnet_export_state();
 *         if (news & TAILNET_EVENT_LOGIN) show tailnet_login_url();
 *     }
 *
 * tailnet_tcp_input takes fewer bytes than offered when the library cannot use
 * them yet. Keep the rest and offer it again after the next poll: the stream's
 * own window then closes by itself. Who would rather read straight into the TLS
 * record uses tailnet_tcp_reserve and tailnet_tcp_commit.
 *
 * 4. STATES
 *
 *     DOWN --up--> CONNECTING --first map--> RUNNING <--> NEEDS_APPROVAL
 *                     |   ^                    |  ^
 *                     v   |                    v  |
 *                  NEEDS_LOGIN <---- key expired, login done
 *
 * and from each of them to DOWN (tailnet_down) and to FAILED: the random source
 * failed, or the server refused for good (a bad auth key, a version it does not
 * know). tailnet_up or tailnet_login tries again. Losing the control connection
 * is not a state: packets go on flowing on the last map, tailnet_self.control_up
 * is false, and the library reconnects with growing, jittered pauses.
 *
 * 5. MEMORY
 *
 * All of it is given at tailnet_init and never grows. TAILNET_MEMORY declares it
 * as a constant; tailnet_memory_needed says it exactly. The large part is TLS: a
 * server may send records of 16 KB, and BearSSL needs a record whole, so each TLS
 * engine takes 22 KB. Hence two numbers: max_links (connections) and max_tls
 * (engines). A device does with 2 and 1: the server's key is fetched over TLS,
 * then control goes over port 80 (or control_http_port), where Noise protects it,
 * and the engine serves the relay. That works where the control URL names no port,
 * or control_http_port does; else, and with control_tls, control needs an engine
 * for good: max_tls 2. tls_memory may lie in slow external RAM. tls_by_caller needs
 * no engine at all: a modem or the RTOS then does TLS, and has to verify names and
 * pins as tailnet_dial says.
 *
 * Peers beyond max_peers are counted and passed over; a packet to or from one of
 * them makes the library read the map again and take it in (design: the peers in
 * use stay, by age). Sessions beyond max_sessions replace the quietest. Filter
 * rules beyond max_ranges are dropped whole, and reported: never widened.
 *
 * 6. CLOCKS
 *
 * now_ms must never go back. unix_ms is optional. Without it certificates are
 * judged by the newest time that is known for sure: the release of this file
 * (TAILNET_RELEASE_UNIX), the saved state, what the control server said inside its
 * authenticated channel. A certificate that ended before that is refused. WireGuard
 * needs a stamp that grows across reboots; the saved state holds one reserved a
 * day ahead. So store the state whenever TAILNET_EVENT_SAVE says so (about once a
 * day): a device that loses it is ignored by its peers until theirs forget, up to
 * nine minutes, unless it has a clock.
 *
 * 7. SAVED STATE
 *
 * One blob of private keys, numbered and checksummed. Give both places of
 * desc.saved_state when you write two in turn: the newest intact one counts, and
 * a power cut costs nothing. A damaged blob makes tailnet_init answer
 * TAILNET_ERR_MALFORMED; it is never used in part. To start over, give none: the
 * device is then a new machine to the server.
 *
 * 8. THE WAY TO A PEER
 *
 * The first packets go through the peer's relay, at once. Meanwhile both sides try
 * each other's addresses and take the best that answers, within a second or two;
 * from then on packets go straight. When the straight way stays silent for 6.5
 * seconds packets go both ways, then by relay, until one answers again. Nothing of
 * this loses a packet on purpose, and tailnet_peer tells how it stands now.
 *
 *  - tailnet_set_network says which addresses the UDP sockets have: call it before
 *    tailnet_up, and with `changed` when the machine is somewhere else. Traffic is
 *    back in less than a second then. Without addresses those that STUN servers
 *    see are used alone.
 *  - One UDP socket per address family, for everything: peers are told the address
 *    under which the world sees this very socket.
 *  - With `gateway` set the router is asked for a mapping (TAILNET_PORTMAP).
 *  - prefs.relay_only: no UDP at all, TCP port 443 and nothing else. prefs.metered:
 *    straight as well, but no heartbeats without packets and no regular measuring,
 *    so an idle hour costs about 2 KB, nearly all of it the relay's and the control
 *    server's signs of life.
 *  - An idle node sends no datagram a minute after the last packet. It is reached
 *    through its relay, and straight again moments later.
 *  - A peer at another relay than ours needs a link of its own (max_links 3), or
 *    comes to us: with 2 we cannot begin to talk to it unless it can be reached
 *    straight by an address that the map names.
 *
 * 9. SECURITY
 *
 *  - Who can read or change traffic: nobody but the peer. Relays and the control
 *    server carry ciphertext. But the control server names the peers and their
 *    keys: whoever owns it decides who is in the network.
 *  - Its key is fetched once over TLS, and certificates are always verified:
 *    against desc.trust_anchors, or the built-in roots of the hosted service. Names
 *    are compared, and for addresses the address in the certificate.
 *  - With an http:// URL the key comes over the clear: who sits in the path at that
 *    moment can be the server. Pin it (desc.control_key = "mkey:...", as GET
 *    /key?v=138 shows it) whenever the URL is http://. A key once learned over http
 *    is not replaced over http.
 *  - The packet filter is default deny before the first map. Beyond what the
 *    reference does, a TCP segment that opens nothing passes only if a rule or a
 *    flow of our own lets it: a policy change ends running flows at once.
 *  - Random numbers come from io.random alone. When it fails the node stops.
 *  - Keys are compared in constant time, wiped when done with, and never logged.
 *    BearSSL's fast multiplications are not constant-time on cores whose multiplier
 *    is not (Cortex-M0 to M3): define TAILNET_SLOW_MULTIPLY there.
 *  - There has been no outside audit.
 *
 * 10. TIME IN ONE CALL
 *
 * Inputs do symmetric work only. tailnet_poll does at most one handshake message
 * (up to five X25519), one relay login (one) or one step of a TLS handshake, then
 * reports deadline 0 if more waits; opening the control channel (up to four) may
 * fall into the same poll. The longest step is that of a TLS handshake in which the
 * server's certificates come: on a Cortex-M4 8 million instructions with RSA-2048, 28
 * with P-256, 79 when an intermediate has P-384, as Let's Encrypt's do; on RV32 half as
 * much again. Let a watchdog allow for it.
 *
 * 11. MACROS, all optional, defined before the include that implements
 *
 *   TAILNET_STATIC         the functions are static
 *   TAILNET_ASSERT(x)      default assert(), nothing with NDEBUG
 *   TAILNET_NO_STRINGS     no sentences for results
 *   TAILNET_DIRECT         0: all traffic by relays, as with prefs.relay_only, without
 *                          the code for direct paths (11 KB); default 1
 *   TAILNET_DNS            1: the name service; default 1 on hosts, 0 on devices
 *   TAILNET_PORTMAP        1: NAT-PMP and PCP; default 1 on hosts, 0 on devices
 *   TAILNET_UPNP           1: UPnP too, over one more link; default as TAILNET_PORTMAP
 *   TAILNET_TLS            TAILNET_TLS_BEARSSL (default) or TAILNET_TLS_NONE
 *   TAILNET_NO_BUILTIN_ANCHORS   without the roots of the hosted service
 *   TAILNET_SERVER         1: the halves of HTTP/2 and DERP that only a server needs are
 *                          built too; default 1 on hosts, 0 on devices
 *   TAILNET_SLOW_MULTIPLY  arithmetic for cores without a constant-time multiplier
 *   TAILNET_MAX_NAME       bytes of a peer's name that are kept: 24, hosts 63
 *   TAILNET_MAX_CANDIDATES addresses kept per peer: 8
 *   TAILNET_REPLAY_BITS    reordering that WireGuard allows: 2048
 *   TAILNET_BATCH          packets encrypted in one go: 4, 64-bit machines 64
 *   TAILNET_TLS_OUT        plaintext of one TLS record: 2048
 *   TAILNET_TLS_AES        1: AES-GCM too, for servers that insist on it (3.7 KB); default
 *                          1 on hosts, 0 on devices
 *   TAILNET_CONTROL_RECORD longest TLS record that control may send: 16384. With max_tls 2
 *                          and 6000 its engine takes 10 KB less: enough for servers with
 *                          their own certificate, not behind a reverse proxy
 *   TAILNET_X25519, TAILNET_AEAD_SEAL, TAILNET_AEAD_OPEN, TAILNET_BLAKE2S_BLOCK,
 *   TAILNET_HCHACHA20, TAILNET_BOX_SEAL, TAILNET_BOX_OPEN, TAILNET_SHA256
 *                          an accelerator of yours; see >>crypto
 *
 * None of them changes a public struct; TAILNET_DNS, _DIRECT, _PORTMAP and the like
 * change what a node needs: take tailnet_memory_needed then, not the constant.
 *
 * 12. WHAT IT DOES NOT DO (yet)
 *
 * Peer relays, probing the path MTU, Tailnet Lock (a node whose key has to be signed
 * is refused with TAILNET_ERR_UNSUPPORTED; signatures of peers are not checked),
 * being reached as subnet router beyond the filter, Taildrop, SSH, Funnel. A page that
 * the server asks to be visited needs a link of its own: with max_links 2 the relay makes
 * place for a moment. TLS is 1.2; a control server behind a proxy that insists on 1.3
 * cannot be reached.
 *
 * 13. WHEN IT DOES NOT WORK
 *
 * tailnet_get_problem has the newest trouble, its room and a number:
 *
 *   section    result        detail        mostly means
 *   "tls"      ERR_TLS       62            no trust anchor for that certificate
 *                            54            the certificate has expired, or the clock is off
 *                            56            it is for another name or address
 *                            1000          it is not the pinned one
 *              ERR_TOO_BIG   a size        a record longer than TAILNET_CONTROL_RECORD
 *   "proxy"    ERR_DENIED    HTTP status   it refused (407: user or password)
 *   "key"      any           HTTP status   the server's key could not be had
 *   "noise"    ERR_FORGED    0             the server has another key than we were told
 *   "control"  ERR_CONTROL   200           refused; problem.text has the server's words
 *              ERR_UNSUPPORTED             it speaks only with newer or older clients
 *              ERR_TOO_BIG                 its login URL is too long to be kept
 *   "link"     ERR_NETWORK, ERR_TIMEOUT    no connection
 *              ERR_UNSUPPORTED             control wants TLS: max_tls has to be 2
 *   "relay"    ERR_TLS       as above      of the relay's certificate
 *   "map"      ERR_MALFORMED               the server's message does not parse
 *   "random"   ERR_RANDOM                  io.random failed
 * ======================================================================== */

#ifndef TAILNET_H
#define TAILNET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TAILNET_VERSION            "0.1.0"
#define TAILNET_VERSION_NUMBER     100u         /* major * 10000 + minor * 100 + patch */
#define TAILNET_CAPABILITY_VERSION 138u         /* the default of desc.capability_version */

#ifndef TAILNET_API
#  if defined(TAILNET_STATIC) && (defined(__GNUC__) || defined(__clang__))
#    define TAILNET_API static __attribute__((unused))
#  elif defined(TAILNET_STATIC)
#    define TAILNET_API static
#  else
#    define TAILNET_API extern
#  endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ======================================================================== *
 * >>api-types
 * ======================================================================== */

/* ---- 1. Words ---------------------------------------------------------- */

/* One Tailscale node. Opaque: it lives in the memory of the desc, never moves,
 * and may be used by one thread at a time. Nodes share nothing. */
typedef struct tailnet_node tailnet_node;

/* What a call came to. Zero is success, every failure is negative. The list
 * is one X-macro in the file, so the enum and the texts cannot drift apart.
 * Later versions may add results: treat any negative value as a failure. */
typedef enum tailnet_result {
    TAILNET_OK              =  0,
    TAILNET_ERR_ARGUMENT    = -1,   /* a value the manual forbids              */
    TAILNET_ERR_MEMORY      = -2,   /* desc.memory is too small                */
    TAILNET_ERR_BUSY        = -3,   /* called from inside a callback           */
    TAILNET_ERR_AGAIN       = -4,   /* not now: poll, wait for news, ask again */
    TAILNET_ERR_NO_ROUTE    = -5,   /* no peer owns that address or name       */
    TAILNET_ERR_DENIED      = -6,   /* the packet filter says no               */
    TAILNET_ERR_TOO_BIG     = -7,   /* longer than the MTU or a limit          */
    TAILNET_ERR_MALFORMED   = -8,   /* bytes from outside do not parse         */
    TAILNET_ERR_FORGED      = -9,   /* bytes from outside fail authentication  */
    TAILNET_ERR_STALE       = -10,  /* a link handle of a closed connection    */
    TAILNET_ERR_RANDOM      = -11,  /* io.random failed; the node stops        */
    TAILNET_ERR_TLS         = -12,  /* certificate or TLS protocol trouble     */
    TAILNET_ERR_CONTROL     = -13,  /* the control server refused us           */
    TAILNET_ERR_TIMEOUT     = -14,  /* nothing came back in time               */
    TAILNET_ERR_NETWORK     = -15,  /* the caller reported a broken connection */
    TAILNET_ERR_UNSUPPORTED = -16   /* built without it, or newer than we are  */
} tailnet_result;

/* Where the node stands. A node only ever moves along the arrows drawn in the
 * manual; tailnet_up and tailnet_down choose the direction. Losing the control
 * connection is not a state: packets go on flowing, see tailnet_self. */
typedef enum tailnet_state {
    TAILNET_STATE_DOWN,             /* init done, or after tailnet_down        */
    TAILNET_STATE_CONNECTING,       /* no network map yet                      */
    TAILNET_STATE_NEEDS_LOGIN,      /* new or expired: show tailnet_login_url  */
    TAILNET_STATE_NEEDS_APPROVAL,   /* an admin has to approve the machine     */
    TAILNET_STATE_RUNNING,          /* has a network map, packets flow         */
    TAILNET_STATE_FAILED            /* cannot continue; see tailnet_problem    */
} tailnet_state;

/* Bits returned by tailnet_poll. They say what to look at again; they never
 * carry data, so they merge instead of queueing and none is ever lost. */
enum {
    TAILNET_EVENT_STATE   = 1 << 0, /* tailnet_get_state changed               */
    TAILNET_EVENT_LOGIN   = 1 << 1, /* tailnet_login_url changed               */
    TAILNET_EVENT_SELF    = 1 << 2, /* our addresses, name or expiry changed   */
    TAILNET_EVENT_PEERS   = 1 << 3, /* the peer directory changed              */
    TAILNET_EVENT_PATHS   = 1 << 4, /* some peer became direct, relayed, idle  */
    TAILNET_EVENT_SAVE    = 1 << 5, /* store tailnet_export_state somewhere    */
    TAILNET_EVENT_PROBLEM = 1 << 6, /* tailnet_get_problem has something new   */
    TAILNET_EVENT_ROUTES  = 1 << 7, /* tailnet_get_route gives another list    */
    TAILNET_EVENT_DNS     = 1 << 8, /* tailnet_get_dns gives another list      */
    TAILNET_EVENT_PING    = 1 << 9  /* tailnet_get_ping has an answer          */
};

/* An IP address and port. family is 4, 6, or 0 for "none". IPv4 uses ip[0..3].
 * Bytes are in network order, port and scope are plain numbers. */
typedef struct tailnet_addr {
    uint8_t  family;
    uint16_t port;
    uint32_t scope;
    uint8_t  ip[16];
} tailnet_addr;

/* A prefix; bits behind the mask are zero. */
typedef struct tailnet_prefix {
    uint8_t family;
    uint8_t bits;
    uint8_t ip[16];
} tailnet_prefix;

/* Bytes that are only read. */
typedef struct tailnet_bytes {
    const void *data;
    size_t      size;
} tailnet_bytes;

/* A packet inside a piece of memory with room on both sides:
 *
 *     base            base+off            base+off+len          base+cap
 *      |-- headroom --|------ packet ------|------ tailroom -----|
 *
 * Lent for the length of one call. The library may overwrite all cap bytes and
 * move off and len. owner is the caller's own cookie (a pbuf, a slot number):
 * the library hands it on untouched; memory of the library has owner NULL.
 * Whoever keeps the packet sets owner to NULL; a caller that still sees its
 * cookie when the call returns still owns the packet.
 *
 * Datagrams and IP packets travel in runs: an array of count packets, at least
 * one. The pieces of memory of a run must not overlap. The order inside a run
 * is kept. Outward a run has one address; it is a stretch of the very array
 * that came in, so a callback never sees more packets than the call that
 * caused it brought, and tailnet_poll brings one at a time: who always passes
 * 1 always gets 1. */
typedef struct tailnet_buf {
    uint8_t *base;
    uint32_t cap;
    uint32_t off;
    uint32_t len;
    void    *owner;
} tailnet_buf;

/* Room tailnet_ip_input needs to encrypt without a copy: 16 for WireGuard and
 * 8 for a peer relay in front, 15 of padding and 16 of tag behind. With less
 * room it still works: the packet is copied once through scratch memory. */
#define TAILNET_HEADROOM 32u
#define TAILNET_TAILROOM 32u

/* One TCP connection of the library. Low byte: slot 0..max_links-1, to index
 * the caller's table; the rest: a generation, so that late news of an old
 * connection is recognised and refused (TAILNET_ERR_STALE). */
typedef uint32_t tailnet_link;
#define TAILNET_LINK_SLOT(link) ((link) & 0xffu)

/* Where a connection has to go. The name is always there; addresses may be
 * known already (from the relay map): family 0 is unknown, and if both are,
 * the caller resolves. With both known the caller may race them. */
typedef struct tailnet_dial {
    const char  *host;
    tailnet_addr addr4, addr6;      /* port set in both                        */
    uint16_t     port;
    bool         tls;               /* these two only with desc.tls_by_caller: */
    const char  *certificate;       /*   a name, or "sha256-raw:" and hex      */
} tailnet_dial;

/* One piece of symmetric work: ChaCha20-Poly1305 (RFC 8439) without extra
 * data, in place, the tag of 16 bytes right behind the text. */
typedef struct tailnet_crypt {
    const uint8_t *key;             /* 32 bytes                                */
    uint64_t       counter;         /* nonce: four zero bytes, this as LE64    */
    uint8_t       *data;
    uint32_t       len;             /* of the text, without the tag            */
    bool           open;            /* false: encrypt. true: check, decrypt    */
    bool           ok;              /* answer of an open: the tag was right    */
} tailnet_crypt;

/* A peer as the network map has it, and what we know about the way to it. */
typedef enum tailnet_path {
    TAILNET_PATH_NONE, TAILNET_PATH_RELAY, TAILNET_PATH_DIRECT, TAILNET_PATH_PEER_RELAY
} tailnet_path;

enum {
    TAILNET_PEER_ONLINE       = 1 << 0,
    TAILNET_PEER_EXPIRED      = 1 << 1,
    TAILNET_PEER_OFFERS_EXIT  = 1 << 2,
    TAILNET_PEER_IS_EXIT      = 1 << 3, /* it is our exit node now              */
    TAILNET_PEER_HAS_ROUTES   = 1 << 4, /* carries subnet routes                */
    TAILNET_PEER_TAGGED       = 1 << 5, /* owned by a tag, not by user          */
    TAILNET_PEER_JAILED       = 1 << 6, /* may answer us, may not begin         */
    TAILNET_PEER_LOCKED_OUT   = 1 << 7  /* Tailnet Lock does not vouch for it   */
};

typedef struct tailnet_peer {
    tailnet_addr ip4, ip6;          /* port 0                                  */
    const char  *name;              /* first label; valid until the next poll  */
    const char  *domain;            /* the rest of the name, "" if not kept    */
    uint64_t     id, user;          /* numbers of the control server           */
    uint8_t      key[32];
    uint32_t     flags;             /* TAILNET_PEER_                           */
    tailnet_path path;
    tailnet_addr endpoint;          /* when direct                             */
    uint16_t     region;            /* its home relay region                   */
    uint32_t     latency_ms;        /* rounded up; 0: not measured             */
    uint32_t     handshake_age_s;   /* UINT32_MAX: no session                  */
    uint64_t     rx_bytes, tx_bytes;/* of the present session                  */
    uint64_t     key_expiry_unix_ms;/* 0: never                                */
} tailnet_peer;

/* ---- 2. What the caller supplies --------------------------------------- */

/* Callbacks. They are called only from inside tailnet_ functions, on the
 * caller's thread, must not block, and must not call back into the same node
 * (that answers TAILNET_ERR_BUSY and changes nothing). */
typedef struct tailnet_io {
    void *user;                     /* first argument of every callback        */

    /* Milliseconds that never go back. Asked exactly once per call into the
     * library, so one call sees one time. Required. */
    uint64_t (*now_ms)(void *user);

    /* Milliseconds since 1970, or 0 while unknown. Optional; without it TLS
     * dates are checked against the control server's clock, see the manual. */
    uint64_t (*unix_ms)(void *user);

    /* Fill dst with unpredictable bytes; 0 is success, anything else stops
     * the node. Required. There is no fallback generator. */
    int (*random)(void *user, void *dst, size_t size);

    /* Send a run of datagrams from the node's UDP socket of that family. Loss
     * is allowed, also of all of them; nonzero only says that this address
     * cannot be reached from here (EHOSTUNREACH, ENETUNREACH), not that it is
     * full or forbidden just now. Required unless prefs.relay_only. */
    int (*udp_output)(void *user, const tailnet_addr *to, tailnet_buf *pkts, size_t count);

    /* Take a run of decrypted IP packets for the application. Required. */
    void (*ip_output)(void *user, tailnet_buf *pkts, size_t count);

    /* Begin to connect; answer later with tailnet_tcp_opened or _closed.
     * Nonzero means it cannot even begin. Every call that returned 0 is
     * matched by exactly one tcp_close, also after tailnet_tcp_closed.
     * Required. */
    int (*tcp_open)(void *user, tailnet_link link, const tailnet_dial *dial);

    /* Take up to size bytes of a stream and return how many were taken: fewer
     * when the send buffer fills (the rest is offered again), negative when
     * the connection is broken. The bytes are not valid afterwards. Required. */
    int32_t (*tcp_output)(void *user, tailnet_link link, const void *data, size_t size);

    /* Free the connection: abort what is still open. Called only from
     * tailnet_poll and tailnet_wipe. Required. */
    void (*tcp_close)(void *user, tailnet_link link);

    /* Look a name up; answer later with tailnet_resolved. Optional: used only
     * for STUN servers that the relay map lists without an address. */
    int (*resolve)(void *user, uint32_t query, const char *host);

    /* Do count pieces of symmetric work and return when all are done: on this
     * core, on several, or in hardware. The pieces are independent and touch
     * nothing of the node. Optional; without it the built-in code does them. */
    void (*crypt)(void *user, tailnet_crypt *work, size_t count);

    /* How much this peer of a map matters: negative is "never keep", zero is
     * "when there is room", above zero the larger stays. Asked in tailnet_poll
     * for every peer that goes by, kept or not. Optional. */
    int (*keep_peer)(void *user, const tailnet_peer *peer);

    /* One log line. level 0 error .. 3 debug; code is stable, text may be NULL
     * in builds without strings. Never contains key material. Optional. */
    void (*log)(void *user, int level, uint32_t code, const char *text);
} tailnet_io;

/* What a person may change while the node runs. Zero means "the default". */
typedef struct tailnet_prefs {
    const char           *hostname;     /* default: "tailnet"                  */
    const tailnet_prefix *routes;       /* advertised; 0.0.0.0/0 and ::/0: we  */
    size_t                route_count;  /*   offer to be an exit node          */
    const char           *exit_node;    /* name or address; NULL: none         */
    uint16_t              home_region;  /* 0: the nearest relay                */
    bool                  accept_routes;/* use the subnet routes of peers      */
    bool                  shields_up;   /* nobody may begin to talk to us      */
    bool                  relay_only;   /* never use UDP                       */
    bool                  answer_dns;   /* be the resolver at 100.100.100.100  */
    bool                  metered;      /* few bytes while idle, slower to be direct */
    bool                  no_port_map;  /* never ask the gateway for a mapping  */
} tailnet_prefs;

/* Everything a node needs. Zero every field first: zero means "the default".
 * New fields may come at any place, so name them, do not count them. */
typedef struct tailnet_desc {
    void         *memory;           /* required, aligned as TAILNET_MEMORY does */
    size_t        memory_size;
    void         *tls_memory;       /* optional second region for the large    */
    size_t        tls_memory_size;  /*   stream buffers (external RAM)         */
    tailnet_io    io;
    tailnet_prefs prefs;

    const char   *control_url;      /* default: the public service             */
    const char   *control_key;      /* "mkey:..." pins the server; NULL: ask   */
    const char   *auth_key;         /* NULL: interactive login                 */
    const char   *const *tags;      /* asked for at registration               */
    size_t        tag_count;
    const char   *os, *model;       /* shown in the admin console              */
    const char   *proxy;            /* "host:port" or "user:pw@host:port"      */
    tailnet_bytes saved_state[2];   /* of tailnet_export_state; the newest one */
                                    /*   that is intact counts                 */
    const void   *trust_anchors;    /* for the TLS back end; NULL: built-in    */
    size_t        trust_anchor_count;

    uint16_t      max_peers;        /* directory entries, default 16           */
    uint16_t      max_sessions;     /* live WireGuard sessions, default 4      */
    uint16_t      max_routes;       /* subnet routes of peers, default 16      */
    uint16_t      max_ranges;       /* address ranges in the filter, default 32 */
    uint16_t      max_flows;        /* replies remembered, default 32          */
    uint16_t      max_regions;      /* relay regions known, default 8          */
    uint16_t      max_staged;       /* packets waiting for handshakes, default 2 */
    uint8_t       max_links;        /* TCP connections, default 2, at least 2  */
    uint8_t       max_tls;          /* of these with TLS at a time, default 1  */
    uint16_t      mtu;              /* inner MTU, default 1280                 */
    uint16_t      control_http_port;/* control in the clear goes there; 0: to  */
                                    /*   80, if control_url names no port      */
    uint16_t      capability_version;
    bool          ephemeral;        /* forget us when we go                    */
    bool          control_tls;      /* control never in the clear on port 80   */
    bool          tls_by_caller;    /* tcp_open does TLS (modem, RTOS stack)   */
} tailnet_desc;

/* The network this machine is in. The arrays are copied. */
typedef struct tailnet_network {
    const tailnet_addr *addrs;      /* own addresses, each with the port of    */
    size_t              addr_count; /*   the UDP socket of its family          */
    tailnet_addr        gateway;    /* for port mapping; family 0: none        */
    bool                port_fixed; /* a person chose the port of the sockets  */
    bool                changed;    /* another network: measure all paths anew */
    bool                down;       /* no network: be silent                   */
} tailnet_network;

/* ======================================================================== *
 * >>api
 * ======================================================================== */

/* ---- 3. Life ------------------------------------------------------------ */

/* Bytes tailnet_init will use of desc.memory (and of desc.tls_memory when that
 * is set): exact for these limits on this build. Only limits are read. */
TAILNET_API size_t tailnet_memory_needed(const tailnet_desc *desc);

/* The same as a constant expression, rounded up by less than 2 %, with every other
 * limit and every macro of >>config at its default. On a device: 21 KB, 0.2 KB a peer,
 * 1.4 KB a session, 2 KB a connection, 22 KB a TLS engine and 2 KB once for the first;
 * a tls of 0 stands for desc.tls_by_caller.
 *     static TAILNET_MEMORY(memory, 16, 4, 2, 1);
 *     desc.memory = &memory; desc.memory_size = sizeof memory; */
#define TAILNET_MEMORY_SIZE(peers, sessions, links, tls)                              \
    (21708ul + TAILNET_MEMORY_HOST * 3384ul + TAILNET_MEMORY_WIDE * 3032ul +          \
     TAILNET_MEMORY_ENUMS * 56ul +                                                    \
     (peers) * (207ul + TAILNET_MEMORY_HOST * 196ul + TAILNET_MEMORY_WIDE * 4ul) +    \
     (sessions) * (1369ul + TAILNET_MEMORY_HOST * 4ul + TAILNET_MEMORY_WIDE * 12ul +  \
                   TAILNET_MEMORY_ENUMS * 16ul) +                                     \
     (links) * (520ul + TAILNET_MEMORY_HOST * 8ul + TAILNET_MEMORY_WIDE * 32ul +      \
                TAILNET_MEMORY_ENUMS * 24ul) +                                        \
     (tls) * (22296ul + TAILNET_MEMORY_WIDE * 328ul) +                                \
     ((tls) == 0   ? ((links) - 1) * 5680ul                                           \
      : (tls) == 1 ? ((links) < 4 ? TAILNET_MEMORY_CHECK : ((links) - 1) * 1584ul)    \
                   : ((links) - 1) * 1584ul + TAILNET_MEMORY_CHECK))
#define TAILNET_MEMORY_CHECK (3496ul + TAILNET_MEMORY_WIDE * 256ul)
#define TAILNET_MEMORY_WIDE (sizeof(void *) > 4 ? 1ul : 0ul)
#if defined(__linux__) || defined(__APPLE__) || defined(_WIN32)
#  define TAILNET_MEMORY_HOST 1ul       /* longer names; the tests' server      */
#else
#  define TAILNET_MEMORY_HOST 0ul
#endif
/* Devices whose enums are as long as an int. */
#define TAILNET_MEMORY_ENUMS                                                          \
    (TAILNET_MEMORY_HOST == 0 && sizeof(tailnet_state) > 1 ? 1ul : 0ul)
#define TAILNET_MEMORY(name, peers, sessions, links, tls)                       \
    union { unsigned char bytes[TAILNET_MEMORY_SIZE(peers, sessions, links, tls)]; \
            uint64_t align_number; void *align_pointer; } name

/* Make a node in desc.memory. Does no I/O. The desc may go away afterwards;
 * its strings and ranges must stay until tailnet_wipe. */
TAILNET_API tailnet_result tailnet_init(tailnet_node **out, const tailnet_desc *desc);

/* Want to be connected, or not. Takes effect in the following polls. */
TAILNET_API tailnet_result tailnet_up(tailnet_node *node);
TAILNET_API tailnet_result tailnet_down(tailnet_node *node);

/* Log in again with a new node key: by auth_key, or by a person when NULL. The
 * present key stays in use until the server has taken the new one. auth_key
 * must stay until the state is RUNNING or FAILED; it may be wiped then. */
TAILNET_API tailnet_result tailnet_login(tailnet_node *node, const char *auth_key);

/* Tell the server this node key is done with, then go down. */
TAILNET_API tailnet_result tailnet_logout(tailnet_node *node);

/* Replace all preferences; the old strings and ranges are no longer read. */
TAILNET_API tailnet_result tailnet_set_prefs(tailnet_node *node, const tailnet_prefs *prefs);

/* Close every link, erase all secrets; the memory is the caller's again. */
TAILNET_API void tailnet_wipe(tailnet_node *node);

/* Keys and clocks that must outlive a reboot, as one opaque blob with its own
 * number and checksum. Returns the bytes it takes; writes nothing if that is
 * more than size. Never more than TAILNET_STATE_SIZE; 280 without
 * Tailnet Lock. Call it on TAILNET_EVENT_SAVE; two places written in turn
 * survive a power cut (desc.saved_state). It holds private keys. */
#define TAILNET_STATE_SIZE 1536u
TAILNET_API size_t tailnet_export_state(tailnet_node *node, void *dst, size_t size);

/* ---- 4. Turning the crank ------------------------------------------------ */

/* Do what is due: timers, handshakes, the control stream. Bounded work: at
 * most one handshake message (five X25519) or one TLS handshake step, so that a
 * super-loop stays responsive. Returns TAILNET_EVENT_ bits and clears them.
 * Calling it too often is harmless. */
TAILNET_API uint32_t tailnet_poll(tailnet_node *node);

/* When poll has to be called at the latest if nothing comes in before: a time
 * on the now_ms clock; 0 means at once, UINT64_MAX means no timer is set. */
TAILNET_API uint64_t tailnet_deadline(const tailnet_node *node);

/* The same as a wait from now, cut to max_ms: for epoll, select, queues. */
TAILNET_API uint32_t tailnet_wait_ms(tailnet_node *node, uint32_t max_ms);

/* ---- 5. Things that come in ---------------------------------------------- */

/* A run of datagrams reached the UDP socket, all from one address. Decrypts in
 * place and calls ip_output or udp_output before it returns; public-key work
 * is left for poll. Every packet is treated; the result is the first trouble. */
TAILNET_API tailnet_result tailnet_udp_input(tailnet_node *node, const tailnet_addr *from,
                                             tailnet_buf *pkts, size_t count);

/* The application sends a run of IP packets, to any addresses. Encrypts in
 * place and calls udp_output, or puts them in the relay stream. Without a
 * session the newest packet is kept (copied) until the handshake is done.
 * Every packet is treated; the result is the first trouble. */
TAILNET_API tailnet_result tailnet_ip_input(tailnet_node *node, tailnet_buf *pkts, size_t count);

/* A connection asked for by tcp_open is up. */
TAILNET_API tailnet_result tailnet_tcp_opened(tailnet_node *node, tailnet_link link);

/* Where to put received stream bytes, and how many fit now; NULL and 0 when
 * nothing fits (stop reading: that is the back-pressure). A TLS record comes
 * in two pieces, header and body: repeat reserve, read, commit until there is
 * no room or nothing to read. Room is back after the next poll at the latest:
 * a stream never waits for the application. */
TAILNET_API uint8_t *tailnet_tcp_reserve(tailnet_node *node, tailnet_link link, size_t *room);

/* size bytes (not more than room) were put there. On an open relay link this
 * decrypts and may call ip_output; handshakes and control wait for poll. */
TAILNET_API tailnet_result tailnet_tcp_commit(tailnet_node *node, tailnet_link link, size_t size);

/* Both steps for callers with their own buffer, over many records; returns the
 * bytes taken. The quick way on machines where a copy costs less than a read. */
TAILNET_API size_t tailnet_tcp_input(tailnet_node *node, tailnet_link link,
                                     const void *data, size_t size);

/* After a short tcp_output: the connection takes bytes again. */
TAILNET_API tailnet_result tailnet_tcp_writable(tailnet_node *node, tailnet_link link);

/* The connection failed to open, broke, or was closed by the other side. The
 * next poll calls tcp_close for it. */
TAILNET_API tailnet_result tailnet_tcp_closed(tailnet_node *node, tailnet_link link);

/* The answer to io.resolve; count 0 is "no such name". */
TAILNET_API tailnet_result tailnet_resolved(tailnet_node *node, uint32_t query,
                                            const tailnet_addr *addrs, size_t count);

/* The network as it is now. Call it at start and whenever it changes. */
TAILNET_API tailnet_result tailnet_set_network(tailnet_node *node, const tailnet_network *network);

/* ---- 6. Wishes ------------------------------------------------------------ */

/* Have a peer in the directory, by name or address text: OK when it is there,
 * AGAIN while the map is read once more for it (TAILNET_EVENT_PEERS follows),
 * NO_ROUTE when the map does not have it. Only needed for tailnets larger than
 * max_peers; a packet to an unknown address does the same by itself. */
TAILNET_API tailnet_result tailnet_fetch_peer(tailnet_node *node, const char *who);

/* Measure the way to a peer, without or through the tunnel. One at a time. A build with
 * TAILNET_DIRECT=0 has the second only; the first is UNSUPPORTED. */
typedef enum tailnet_ping_kind { TAILNET_PING_PATH, TAILNET_PING_TUNNEL } tailnet_ping_kind;
TAILNET_API tailnet_result tailnet_ping(tailnet_node *node, const tailnet_addr *ip,
                                        tailnet_ping_kind kind);

/* ---- 7. Questions (never call a callback, never change the node) ---------- */

TAILNET_API tailnet_state tailnet_get_state(const tailnet_node *node);
TAILNET_API const char   *tailnet_login_url(const tailnet_node *node);

/* Ourselves, as the network map has it. False before the first map. */
typedef struct tailnet_self {
    tailnet_addr ip4, ip6;          /* port 0                                  */
    const char  *name;              /* full MagicDNS name; valid until poll    */
    uint64_t     id;
    uint8_t      key[32];
    uint64_t     key_expiry_unix_ms;/* 0: never                                */
    uint16_t     home_region;       /* relay region, 0: none yet               */
    bool         control_up;        /* the control connection stands           */
    bool         peers_missing;     /* the map has more peers than max_peers   */
    bool         lock_on;           /* Tailnet Lock is in force                */
} tailnet_self;
TAILNET_API bool tailnet_get_self(const tailnet_node *node, tailnet_self *out);

/* A peer, by index 0..count-1. Indexes hold until poll returns EVENT_PEERS.
 * who is a name, with or without the domain, or an address as text. Who sent a
 * packet is tailnet_find_peer_by_ip of its source address: the source check
 * has bound it to the key. */
TAILNET_API size_t tailnet_peer_count(const tailnet_node *node);
TAILNET_API bool   tailnet_get_peer(const tailnet_node *node, size_t index, tailnet_peer *out);
TAILNET_API bool   tailnet_find_peer(const tailnet_node *node, const char *who, size_t *index);
TAILNET_API bool   tailnet_find_peer_by_ip(const tailnet_node *node, const tailnet_addr *ip,
                                           size_t *index);

/* What the operating system has to route into the tunnel, one by one, until
 * false: own addresses' ranges, accepted subnets, the exit node's defaults. */
typedef struct tailnet_route {
    tailnet_prefix prefix;
    size_t         peer;            /* index, or SIZE_MAX: several             */
} tailnet_route;
TAILNET_API bool tailnet_get_route(const tailnet_node *node, size_t index, tailnet_route *out);

/* The name service the map asks for, one by one, until false. */
typedef enum tailnet_dns_kind {
    TAILNET_DNS_DOMAIN,             /* text: our MagicDNS domain               */
    TAILNET_DNS_SEARCH,             /* text: a search domain                   */
    TAILNET_DNS_RESOLVER,           /* addr or text: for everything            */
    TAILNET_DNS_SPLIT               /* text: a domain; addr: who answers it,   */
                                    /*   family 0: we do                       */
} tailnet_dns_kind;
typedef struct tailnet_dns {
    tailnet_dns_kind kind;
    const char      *text;          /* valid until the next poll               */
    tailnet_addr     addr;
} tailnet_dns;
TAILNET_API bool tailnet_get_dns(const tailnet_node *node, size_t index, tailnet_dns *out);

/* Answer a DNS message from the map. *answer_size is the room before the call
 * and the answer's length after it; 512 is always enough. query and answer must
 * not overlap. OK: send the answer. NO_ROUTE: the name is none of ours, ask a
 * real resolver. AGAIN: the peer is not in the directory; give no answer, the
 * asker repeats (see tailnet_fetch_peer). MALFORMED: no DNS question; be silent.
 * TOO_BIG: *answer_size is the room that is needed. UNSUPPORTED: this build has
 * no name service. *answer_size is 0 except with OK and TOO_BIG. */
TAILNET_API tailnet_result tailnet_answer_dns(const tailnet_node *node,
                                              const void *query, size_t query_size,
                                              void *answer, size_t *answer_size);

/* The beginning of a flow, as the packet filter sees it. */
typedef struct tailnet_flow {
    tailnet_addr src, dst;
    uint8_t      protocol;          /* 6, 17, ...                              */
} tailnet_flow;

/* Would the packet filter let this flow begin? OK, DENIED, or NO_ROUTE when
 * dst is not ours. For listeners and forwarders outside the packet path. */
TAILNET_API tailnet_result tailnet_check_flow(const tailnet_node *node, const tailnet_flow *flow);

/* The answer to tailnet_ping. False before the first. */
typedef struct tailnet_pong {
    tailnet_addr      ip;
    tailnet_ping_kind kind;
    tailnet_result    result;       /* OK, TIMEOUT, NO_ROUTE, DENIED           */
    tailnet_path      path;
    tailnet_addr      endpoint;
    uint16_t          region;
    uint32_t          latency_ms;
} tailnet_pong;
TAILNET_API bool tailnet_get_ping(const tailnet_node *node, tailnet_pong *out);

/* What the network looks like from here, by the newest measurement: what
 * `tailscale netcheck` shows. */
typedef struct tailnet_report {
    bool         udp, ip4, ip6;     /* STUN answered: at all, of that family   */
    uint8_t      varies;            /* hard NAT: 0 unknown, 1 no, 2 yes        */
    uint8_t      port_map;          /* the gateway has NAT-PMP 1, PCP 2, UPnP 4 */
    tailnet_addr global4, global6;  /* our address as STUN servers see it      */
    tailnet_addr mapped;            /* by the gateway; family 0: none          */
    uint16_t     home;              /* relay region, 0: none yet               */
    uint64_t     age_ms;
} tailnet_report;

/* The newest report, also while the next is being made. False before the first. */
TAILNET_API bool tailnet_get_report(const tailnet_node *node, tailnet_report *out);

/* A relay region, and how far it is: milliseconds, rounded up; 0: unknown. */
typedef struct tailnet_region {
    uint16_t    region, v4_ms, v6_ms;
    const char *host;               /* its first relay; valid until the next poll */
} tailnet_region;

/* The relay regions of the map, one by one, until false. */
TAILNET_API bool tailnet_get_region(const tailnet_node *node, size_t index, tailnet_region *out);

/* The newest trouble: what, in which section, and a number that section
 * understands (an HTTP status, a BearSSL code, an alert). */
typedef struct tailnet_problem {
    tailnet_result result;
    const char    *section;
    int32_t        detail;
    uint64_t       at_ms;
    const char    *text;            /* the server's own words or ""; until the next poll */
} tailnet_problem;
TAILNET_API bool tailnet_get_problem(const tailnet_node *node, tailnet_problem *out);

/* Counters since init; they wrap, on small machines at 32 bits. */
typedef struct tailnet_stats {
    unsigned long ip_in, ip_out, udp_in, udp_out, relay_in, relay_out;
    unsigned long dropped_no_room, dropped_no_route, dropped_denied, dropped_forged;
    uint32_t handshakes, links_opened, maps_read, peers_passed_over;
    uint32_t memory_used, memory_free;
} tailnet_stats;

/* All counters at once. */
TAILNET_API void tailnet_get_stats(const tailnet_node *node, tailnet_stats *out);

/* A sentence for a result ("" in builds with TAILNET_NO_STRINGS). */
TAILNET_API const char *tailnet_result_text(tailnet_result result);

#ifdef __cplusplus
}
#endif
#endif /* TAILNET_H */

#ifdef TAILNET_IMPLEMENTATION
#ifndef TAILNET_IMPLEMENTATION_DONE
#define TAILNET_IMPLEMENTATION_DONE

/* ======================================================================== *
 * >>config — limits, compilers, and what they must agree on.
 * ======================================================================== */

#include <string.h>

#ifndef TAILNET_ASSERT
#  ifdef NDEBUG
#    define TAILNET_ASSERT(x) ((void)0)
#  else
#    include <assert.h>
#    define TAILNET_ASSERT(x) assert(x)
#  endif
#endif

/* Functions that only a server or a test needs must not warn in anybody's build. */
#if defined(__GNUC__) || defined(__clang__)
#  define TN_MAYBE_UNUSED __attribute__((unused))
#else
#  define TN_MAYBE_UNUSED
#endif

/* Where a copy at each call, or inside a big caller, only costs flash: by measurement. */
#if defined(__GNUC__) || defined(__clang__)
#  define TN_NOINLINE __attribute__((noinline))
#  define TN_INLINE   inline __attribute__((always_inline))     /* one instruction  */
#else
#  define TN_NOINLINE
#  define TN_INLINE   inline
#endif

/* A condition that stops the build when it is false. */
#if defined(__cplusplus)
#  define TN_STATIC_ASSERT(name, x) static_assert(x, #name)
#elif defined(__PCC__)                       /* it cannot join two offsetof       */
#  define TN_STATIC_ASSERT(name, x) typedef char tn_assert_##name[1]
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#  define TN_STATIC_ASSERT(name, x) _Static_assert(x, #name)
#else
#  define TN_STATIC_ASSERT(name, x) typedef char tn_assert_##name[(x) ? 1 : -1] TN_MAYBE_UNUSED
#endif

/* A machine with room, or a device? */
#if defined(__linux__) || defined(__APPLE__) || defined(_WIN32)
#  define TN_ON_HOST 1
#else
#  define TN_ON_HOST 0
#endif

/* Direct paths by UDP: 0 or 1. Without them all traffic is relayed, as with
 * prefs.relay_only, and the code that finds paths is left out. */
#ifndef TAILNET_DIRECT
#  define TAILNET_DIRECT 1
#endif

/* UDP addresses kept per peer as candidates for a direct path: 1..32. */
#ifndef TAILNET_MAX_CANDIDATES
#  define TAILNET_MAX_CANDIDATES (TAILNET_DIRECT ? 8 : 1)
#endif

/* Longest first label of a name that is kept, without its end: 8..63. */
#ifndef TAILNET_MAX_NAME
#  if TN_ON_HOST
#    define TAILNET_MAX_NAME 63
#  else
#    define TAILNET_MAX_NAME 24
#  endif
#endif

/* Packets a WireGuard session may arrive late and still count: a power of two, 64..8192. */
#ifndef TAILNET_REPLAY_BITS
#  define TAILNET_REPLAY_BITS 2048
#endif

/* Pieces of symmetric work done in one go: 1..256. */
#ifndef TAILNET_BATCH
#  if UINTPTR_MAX > 0xffffffffu
#    define TAILNET_BATCH 64
#  else
#    define TAILNET_BATCH 4
#  endif
#endif

/* The server's half of HTTP and DERP, for the tests and examples/selfhost.c: 0 or 1.
 * A device is nobody's server. */
#ifndef TAILNET_SERVER
#  define TAILNET_SERVER TN_ON_HOST
#endif

/* Answering names of the tailnet, and asking the gateway for a port mapping (NAT-PMP and
 * PCP; UPnP too): each 0 or 1. A device that wants them says so. */
#ifndef TAILNET_DNS
#  define TAILNET_DNS TN_ON_HOST
#endif
#ifndef TAILNET_PORTMAP
#  define TAILNET_PORTMAP (TN_ON_HOST && TAILNET_DIRECT)
#endif
#ifndef TAILNET_UPNP
#  define TAILNET_UPNP TAILNET_PORTMAP
#endif

/* Largest plaintext of one TLS record that we send: 512..16384. */
#ifndef TAILNET_TLS_OUT
#  define TAILNET_TLS_OUT 2048
#endif

/* Largest TLS record of the control server that is taken: 4096..16384. */
#ifndef TAILNET_CONTROL_RECORD
#  define TAILNET_CONTROL_RECORD 16384
#endif

TN_STATIC_ASSERT(char_is_8_bits, (unsigned char)~0u == 255u);
TN_STATIC_ASSERT(replay_is_power_of_two,
                 TAILNET_REPLAY_BITS >= 64 && TAILNET_REPLAY_BITS <= 8192 &&
                     (TAILNET_REPLAY_BITS & (TAILNET_REPLAY_BITS - 1)) == 0);
TN_STATIC_ASSERT(name_limit, TAILNET_MAX_NAME >= 8 && TAILNET_MAX_NAME <= 63);
TN_STATIC_ASSERT(tls_out_limit, TAILNET_TLS_OUT >= 512 && TAILNET_TLS_OUT <= 16384);
TN_STATIC_ASSERT(control_record_limit,
                 TAILNET_CONTROL_RECORD >= 4096 && TAILNET_CONTROL_RECORD <= 16384);

/* ======================================================================== *
 * >>base — bytes, time, and the two cursors everything is read and written
 * with.
 *
 * Owns:    nothing.
 * Calls:   nothing.
 * States:  none.
 * Always:  no other room touches a wire byte by pointer arithmetic.
 * Trust:   every reader may be over hostile bytes.
 * ======================================================================== */

/* A time that never comes. */
#define TN_NEVER UINT64_MAX

/* Reads forward through left bytes. Running past the end is remembered, gives
 * zeroes from then on, and is checked once, at the end, with tn_rd_ok. */
typedef struct tn_rd {
    const uint8_t *at;                      /* never used while left is 0         */
    size_t         left;
    bool           short_input;
} tn_rd;

static TN_NOINLINE void tn_rd_over(tn_rd *r, const void *src, size_t len)
{
    TAILNET_ASSERT(src != NULL || len == 0);
    r->at          = (const uint8_t *)src;
    r->left        = len;
    r->short_input = false;
}

static bool tn_rd_ok(const tn_rd *r) { return !r->short_input; }

/* The next len bytes where they lie, or NULL when there are fewer. */
static const uint8_t *tn_rd_bytes(tn_rd *r, size_t len)
{
    const uint8_t *here = r->at;
    if (len > r->left) {
        r->short_input = true;
        r->left        = 0;
        return NULL;
    }
    if (len != 0) r->at += len;             /* NULL + 0 is undefined in C         */
    r->left -= len;
    return here;
}

/* Copies the next len bytes to dst; zeroes when there are fewer. */
static void tn_rd_copy(tn_rd *r, void *dst, size_t len)
{
    const uint8_t *b = tn_rd_bytes(r, len);
    if (b == NULL)     memset(dst, 0, len);
    else if (len != 0) memcpy(dst, b, len);
}

static uint8_t tn_rd_u8(tn_rd *r)
{
    const uint8_t *b = tn_rd_bytes(r, 1);
    return b == NULL ? (uint8_t)0 : b[0];
}

static uint16_t tn_rd_u16be(tn_rd *r)
{
    const uint8_t *b = tn_rd_bytes(r, 2);
    return b == NULL ? (uint16_t)0 : (uint16_t)((unsigned)b[0] << 8 | b[1]);
}

static uint32_t tn_rd_u32be(tn_rd *r)
{
    uint32_t high = tn_rd_u16be(r);
    return high << 16 | tn_rd_u16be(r);
}

static TN_MAYBE_UNUSED uint64_t tn_rd_u64be(tn_rd *r)
{
    uint64_t high = tn_rd_u32be(r);
    return high << 32 | tn_rd_u32be(r);
}

static TN_MAYBE_UNUSED uint16_t tn_rd_u16le(tn_rd *r)
{
    const uint8_t *b = tn_rd_bytes(r, 2);
    return b == NULL ? (uint16_t)0 : (uint16_t)((unsigned)b[1] << 8 | b[0]);
}

static uint32_t tn_rd_u32le(tn_rd *r)
{
    uint32_t low = tn_rd_u16le(r);
    return low | (uint32_t)tn_rd_u16le(r) << 16;
}

static TN_MAYBE_UNUSED uint64_t tn_rd_u64le(tn_rd *r)
{
    uint64_t low = tn_rd_u32le(r);
    return low | (uint64_t)tn_rd_u32le(r) << 32;
}

/* Writes forward. Counts every byte, but stores only those from skip on and
 * only while there is room: a message longer than the space is written again
 * with a larger skip until its end is out. Without a window skip is 0. */
typedef struct tn_wr {
    uint8_t *base;
    size_t   cap;
    size_t   skip;
    size_t   total;                         /* bytes written, stored or not       */
} tn_wr;

static TN_NOINLINE void tn_wr_window(tn_wr *w, void *dst, size_t cap, size_t skip)
{
    TAILNET_ASSERT(dst != NULL || cap == 0);
    w->base  = (uint8_t *)dst;
    w->cap   = cap;
    w->skip  = skip;
    w->total = 0;
}

static TN_NOINLINE void tn_wr_over(tn_wr *w, void *dst, size_t cap)
{
    tn_wr_window(w, dst, cap, 0);
}

/* Did everything up to here fit (or lie before the window)? */
static bool tn_wr_ok(const tn_wr *w) { return w->total <= w->skip || w->total - w->skip <= w->cap; }

/* The bytes stored in the space. */
static size_t tn_wr_len(const tn_wr *w)
{
    size_t behind = w->total <= w->skip ? 0 : w->total - w->skip;
    return behind < w->cap ? behind : w->cap;
}

static void tn_wr_bytes(tn_wr *w, const void *src, size_t len)
{
    const uint8_t *b    = (const uint8_t *)src;
    size_t         from = w->total < w->skip ? w->skip - w->total : 0;
    size_t         at   = w->total + from - w->skip;

    if (from < len && w->total + from >= w->skip && at < w->cap) {
        size_t n = len - from;
        if (n > w->cap - at) n = w->cap - at;
        memcpy(w->base + at, b + from, n);
    }
    w->total += len;
}

static void tn_wr_u8(tn_wr *w, unsigned v)
{
    uint8_t b = (uint8_t)v;
    tn_wr_bytes(w, &b, 1);
}

static void tn_wr_u16be(tn_wr *w, unsigned v)
{
    tn_wr_u8(w, v >> 8 & 0xffu);
    tn_wr_u8(w, v & 0xffu);
}

static void tn_wr_u32be(tn_wr *w, uint32_t v)
{
    tn_wr_u16be(w, (unsigned)(v >> 16));
    tn_wr_u16be(w, (unsigned)(v & 0xffffu));
}

static TN_MAYBE_UNUSED void tn_wr_u64be(tn_wr *w, uint64_t v)
{
    tn_wr_u32be(w, (uint32_t)(v >> 32));
    tn_wr_u32be(w, (uint32_t)(v & 0xffffffffu));
}

static void tn_wr_u32le(tn_wr *w, uint32_t v)
{
    unsigned i;
    for (i = 0; i < 4; i++) tn_wr_u8(w, (unsigned)(v >> (8 * i)) & 0xffu);
}

static TN_MAYBE_UNUSED void tn_wr_u64le(tn_wr *w, uint64_t v)
{
    tn_wr_u32le(w, (uint32_t)(v & 0xffffffffu));
    tn_wr_u32le(w, (uint32_t)(v >> 32));
}

static void tn_wr_zero(tn_wr *w, size_t len)
{
    while (len-- != 0) tn_wr_u8(w, 0);
}

/* A text, without its end. */
static void tn_wr_text(tn_wr *w, const char *text) { tn_wr_bytes(w, text, strlen(text)); }

/* A number in decimal digits. */
static void tn_wr_dec(tn_wr *w, uint64_t v)
{
    uint8_t  digits[20];
    unsigned at = sizeof digits;
    do {
        digits[--at] = (uint8_t)('0' + (unsigned)(v % 10));
        v /= 10;
    } while (v != 0);
    tn_wr_bytes(w, digits + at, sizeof digits - at);
}

/* The lowest four bits as a hex digit in lower case. */
static void tn_wr_hex_digit(tn_wr *w, unsigned v)
{
    tn_wr_u8(w, (unsigned char)"0123456789abcdef"[v & 15u]);
}

/* Bytes as lower-case hex. */
static void tn_wr_hex(tn_wr *w, const uint8_t *src, size_t len)
{
    for (; len != 0; len--, src++) {
        tn_wr_hex_digit(w, *src >> 4);
        tn_wr_hex_digit(w, *src);
    }
}

/* RFC 4648 section 4. */
static const char tn_base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/* The value of a digit, 64 for what is none. */
static unsigned tn_base64_digit(char c)
{
    unsigned d = 0;
    while (d < 64 && tn_base64[d] != c) d++;
    return d;
}

/* Bytes as standard base64 with padding. */
static void tn_wr_base64(tn_wr *w, const uint8_t *src, size_t len)
{
    size_t i, k;
    for (i = 0; i < len; i += 3) {          /* n bytes fill n + 1 of four digits  */
        uint32_t v = (uint32_t)src[i] << 16;
        if (i + 1 < len) v |= (uint32_t)src[i + 1] << 8;
        if (i + 2 < len) v |= src[i + 2];
        for (k = 0; k < 4; k++, v <<= 6)
            tn_wr_u8(w, i + k <= len ? (unsigned char)tn_base64[v >> 18 & 63] : (unsigned)'=');
    }
}

/* Are the bytes equal? Takes the same time wherever they differ. */
static bool tn_equal(const void *a, const void *b, size_t len)
{
    const volatile uint8_t *x    = (const volatile uint8_t *)a;
    const volatile uint8_t *y    = (const volatile uint8_t *)b;
    unsigned                diff = 0;
    size_t                  i;
    for (i = 0; i < len; i++) diff |= (unsigned)(x[i] ^ y[i]);
    return diff == 0;
}

/* Is every byte zero? Takes the same time for every content. */
static bool tn_is_zero(const void *a, size_t len)
{
    const volatile uint8_t *x    = (const volatile uint8_t *)a;
    unsigned                some = 0;
    size_t                  i;
    for (i = 0; i < len; i++) some |= x[i];
    return some == 0;
}

/* Erases, even when the compiler sees that nobody reads it again. */
static void tn_wipe(void *dst, size_t len)
{
    volatile uint8_t *p = (volatile uint8_t *)dst;
    while (len-- != 0) *p++ = 0;
}

/* Copies a key or a hash: as a memcpy of its own each would become a loop. */
static TN_NOINLINE void tn_copy_key(void *dst, const void *src) { memcpy(dst, src, 32); }

static uint32_t tn_get_u32be(const uint8_t *b)
{
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
}

static void tn_put_u32be(uint8_t *b, uint32_t v)
{
    b[0] = (uint8_t)(v >> 24);
    b[1] = (uint8_t)(v >> 16 & 0xffu);
    b[2] = (uint8_t)(v >> 8 & 0xffu);
    b[3] = (uint8_t)(v & 0xffu);
}

static TN_NOINLINE uint64_t tn_min64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Lowers *at to when. In this order a deadline just returned lies ready: fewer moves. */
static TN_NOINLINE void tn_sooner(uint64_t when, uint64_t *at)
{
    if (when < *at) *at = when;
}

/* a + b that stops at TN_NEVER instead of wrapping. */
static TN_NOINLINE uint64_t tn_time_add(uint64_t a, uint64_t b)
{
    return b > TN_NEVER - a ? TN_NEVER : a + b;
}

/* Value of a hex digit, or -1. */
static int tn_hex_digit(unsigned c)
{
    if (c >= '0' && c <= '9') return (int)(c - '0');
    c |= 0x20u;
    return c >= 'a' && c <= 'f' ? (int)(c - 'a') + 10 : -1;
}

/* Exactly 2 * len hex digits into len bytes; false leaves dst undefined. */
static bool tn_hex_parse(uint8_t *dst, size_t len, const char *text, size_t text_len)
{
    size_t i;
    if (text_len != 2 * len) return false;
    for (i = 0; i < len; i++) {
        int high = tn_hex_digit((unsigned char)text[2 * i]);
        int low  = tn_hex_digit((unsigned char)text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        dst[i] = (uint8_t)((unsigned)high << 4 | (unsigned)low);
    }
    return true;
}

/* Does the text of len bytes begin with prefix? */
static bool tn_begins(const char *text, size_t len, const char *prefix)
{
    size_t n = strlen(prefix);
    return len >= n && memcmp(text, prefix, n) == 0;
}

/* Is the text of len bytes exactly this word? */
static bool tn_is(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

/* Is there such a byte in the text of len bytes? */
static bool tn_has_byte(const char *text, size_t len, char c)
{
    size_t i = 0;
    while (i < len && text[i] != c) i++;
    return i < len;
}

/* A whole text of decimal digits, no number above most. */
static bool tn_u32_parse(const char *text, size_t len, uint32_t most, uint32_t *out)
{
    uint32_t v = 0;
    size_t   i;
    if (len == 0) return false;
    for (i = 0; i < len; i++) {
        unsigned d = (unsigned)(unsigned char)text[i] - '0';
        if (d > 9 || d > most || v > (most - d) / 10) return false;
        v = v * 10 + d;
    }
    *out = v;
    return true;
}

/* The same in 64 bits: goes as soon as nobody needs it. */
static TN_MAYBE_UNUSED bool tn_dec_parse(const char *text, size_t len, uint64_t most, uint64_t *out)
{
    uint32_t v = 0;
    if (!tn_u32_parse(text, len, (uint32_t)most, &v)) return false;
    *out = v;
    return true;
}

/* Copies a text of len bytes into cap bytes with its end; false if it was cut. */
static bool tn_text_copy(char *dst, size_t cap, const char *text, size_t len)
{
    size_t n = len < cap ? len : cap - 1;
    if (n != 0) memcpy(dst, text, n);
    dst[n] = '\0';
    return n == len;
}

/* ---- addresses as bytes and as text ---- */

/* Have packets of this protocol ports: TCP, UDP, SCTP? */
static bool tn_has_ports(unsigned protocol)
{
    return protocol == 6 || protocol == 17 || protocol == 132;
}

static unsigned tn_ip_len(unsigned family) { return family == 4 ? 4u : family == 6 ? 16u : 0u; }

static bool tn_ip_same(const tailnet_addr *a, const tailnet_addr *b)
{
    return a->family == b->family && memcmp(a->ip, b->ip, tn_ip_len(a->family)) == 0;
}

/* Same address and port. */
static TN_MAYBE_UNUSED bool tn_addr_same(const tailnet_addr *a, const tailnet_addr *b)
{
    return a->port == b->port && tn_ip_same(a, b);
}

/* Four decimal numbers with dots, no leading zeroes (as Go's netip reads them). */
static bool tn_ip4_parse(uint8_t out[4], const char *text, size_t len)
{
    size_t at = 0;
    int    i;
    for (i = 0; i < 4; i++) {
        unsigned v     = 0;
        size_t   start = at;
        for (; at < len && text[at] >= '0' && text[at] <= '9'; at++)
            v = v * 10 + (unsigned)(text[at] - '0');
        if (at == start || at - start > 3 || v > 255) return false;
        if (at - start > 1 && text[start] == '0') return false;
        out[i] = (uint8_t)v;
        if (i < 3 && (at == len || text[at++] != '.')) return false;
    }
    return at == len;
}

/* One group of up to four hex digits. Returns how many characters it took, 0 if none. */
static size_t tn_ip6_group(const char *text, size_t len, unsigned *out)
{
    size_t n = 0;
    *out     = 0;
    while (n < len && n < 4) {
        int d = tn_hex_digit((unsigned char)text[n]);
        if (d < 0) break;
        *out = *out << 4 | (unsigned)d;
        n++;
    }
    return n;
}

/* RFC 4291 section 2.2, all three forms; no zone. False leaves out undefined. */
static bool tn_ip6_parse(uint8_t out[16], const char *text, size_t len)
{
    unsigned used = 0, gap = 17;            /* bytes so far, and before the "::"  */
    size_t   at   = 0;

    memset(out, 0, 16);
    if (tn_begins(text, len, "::")) {
        gap = 0;
        at  = 2;
    }
    while (at < len && used < 16) {
        unsigned v;
        size_t   n = tn_ip6_group(text + at, len - at, &v);
        if (n == 0) return false;
        if (at + n < len && text[at + n] == '.') {
            if (used > 12 || !tn_ip4_parse(out + used, text + at, len - at)) return false;
            used += 4;
            at = len;
            break;
        }
        out[used++] = (uint8_t)(v >> 8);
        out[used++] = (uint8_t)(v & 0xffu);
        at += n;
        if (at == len) break;
        if (text[at++] != ':' || at == len) return false;
        if (text[at] == ':') {
            if (gap != 17) return false;
            gap = used;
            at++;
        }
    }
    if (at != len || (gap == 17 ? used != 16 : used > 14)) return false;
    if (used == 16) return true;
    memmove(out + 16 - used + gap, out + gap, used - gap);  /* what stood behind it   */
    memset(out + gap, 0, 16 - used);
    return true;
}

/* An address without port. */
static bool tn_ip_parse(tailnet_addr *out, const char *text, size_t len)
{
    memset(out, 0, sizeof *out);
    out->family = 4;
    if (tn_ip4_parse(out->ip, text, len)) return true;
    out->family = 6;
    if (tn_ip6_parse(out->ip, text, len)) return true;
    memset(out, 0, sizeof *out);
    return false;
}

/* "1.2.3.4:5" or "[2001:db8::1]:5". */
static TN_MAYBE_UNUSED bool tn_addr_parse(tailnet_addr *out, const char *text, size_t len)
{
    size_t   colon  = len;
    unsigned family = 4;
    uint32_t port;
    while (colon != 0 && text[colon - 1] != ':') colon--;
    if (colon == 0 || !tn_u32_parse(text + colon, len - colon, 65535, &port)) return false;
    colon--;
    if (colon >= 2 && text[0] == '[' && text[colon - 1] == ']') {
        family = 6;
        text++;
        colon -= 2;
    }
    if (!tn_ip_parse(out, text, colon) || out->family != family) return false;
    out->port = (uint16_t)port;
    return true;
}

/* Do the first bits of a and b agree? */
static bool tn_bits_same(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned whole = bits / 8, rest = bits % 8;
    if (memcmp(a, b, whole) != 0) return false;
    return rest == 0 || ((a[whole] ^ b[whole]) & (0xff00u >> rest) & 0xffu) == 0;
}

/* "10.0.0.0/8", or an address alone, which has all its bits. One with bits set behind
 * the mask is none. */
static bool tn_cidr_parse(tailnet_addr *ip, unsigned *bits, const char *text, size_t len)
{
    size_t   slash = 0;
    uint32_t v;
    while (slash < len && text[slash] != '/') slash++;
    if (!tn_ip_parse(ip, text, slash)) return false;
    v = 8u * tn_ip_len(ip->family);
    if (slash < len) {
        text += slash + 1;
        len -= slash + 1;
        if ((len > 1 && text[0] == '0') || !tn_u32_parse(text, len, v, &v)) return false;
    }
    *bits = (unsigned)v;
    for (; v < 8u * tn_ip_len(ip->family); v++)
        if ((ip->ip[v / 8] & 0x80u >> v % 8) != 0) return false;
    return true;
}

/* The same as a prefix. */
static TN_MAYBE_UNUSED bool tn_prefix_parse(tailnet_prefix *out, const char *text, size_t len)
{
    unsigned     bits;
    tailnet_addr ip;
    if (!tn_cidr_parse(&ip, &bits, text, len)) return false;
    memset(out, 0, sizeof *out);
    out->family = ip.family;
    out->bits   = (uint8_t)bits;
    memcpy(out->ip, ip.ip, 16);
    return true;
}

static bool tn_prefix_has(const tailnet_prefix *p, const tailnet_addr *ip)
{
    return p->family == ip->family && p->family != 0 && tn_bits_same(p->ip, ip->ip, p->bits);
}

/* What an address is for. From NOBODY on it is nothing that the Internet carries. */
typedef enum tn_addr_kind {
    TN_ADDR_PUBLIC, TN_ADDR_UNIQUE /* fc00::/7 */, TN_ADDR_RESERVED, TN_ADDR_NOBODY,
    TN_ADDR_MULTICAST, TN_ADDR_TAILNET, TN_ADDR_LOOPBACK, TN_ADDR_LINK_LOCAL, TN_ADDR_PRIVATE,
    TN_ADDR_KINDS
} tn_addr_kind;

static tn_addr_kind tn_ip_kind_of(unsigned family, const uint8_t *ip)
{
    /* family, bits, kind, the first bytes; the first that fits */
    static const uint8_t kinds[14][9] = {
        { 4, 8, TN_ADDR_NOBODY, 0 },
        { 4, 8, TN_ADDR_PRIVATE, 10 },
        { 4, 23, TN_ADDR_NOBODY, 100, 115, 92 },            /* ChromeOS keeps that one   */
        { 4, 10, TN_ADDR_TAILNET, 100, 64 },
        { 4, 8, TN_ADDR_LOOPBACK, 127 },
        { 4, 16, TN_ADDR_LINK_LOCAL, 169, 254 },
        { 4, 12, TN_ADDR_PRIVATE, 172, 16 },
        { 4, 16, TN_ADDR_PRIVATE, 192, 168 },
        { 4, 4, TN_ADDR_MULTICAST, 224 },
        { 4, 4, TN_ADDR_RESERVED, 240 },    /* and 255.255.255.255                */
        { 6, 48, TN_ADDR_TAILNET, 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0 },
        { 6, 7, TN_ADDR_UNIQUE, 0xfc },
        { 6, 10, TN_ADDR_LINK_LOCAL, 0xfe, 0x80 },
        { 6, 8, TN_ADDR_MULTICAST, 0xff }
    };
    unsigned i;
    if (tn_is_zero(ip, family == 4 ? 4 : 15))
        return family == 6 && ip[15] == 1 ? TN_ADDR_LOOPBACK : TN_ADDR_NOBODY;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const uint8_t *k = kinds[i];
        if (k[0] == family && tn_bits_same(k + 3, ip, k[1])) return (tn_addr_kind)k[2];
    }
    return TN_ADDR_PUBLIC;
}

static tn_addr_kind tn_addr_kind_of(const tailnet_addr *a)
{
    return tn_ip_kind_of(a->family, a->ip);
}

static void tn_wr_ip6(tn_wr *w, const uint8_t ip[16])
{
    unsigned i, best = 8, best_len = 1, run = 0;
    for (i = 0; i < 8; i++) {               /* the longest run of two or more zeroes */
        run = ip[2 * i] == 0 && ip[2 * i + 1] == 0 ? run + 1 : 0;
        if (run > best_len) {
            best_len = run;
            best     = i + 1 - run;
        }
    }
    for (i = 0; i < 8; i++) {
        unsigned v = (unsigned)ip[2 * i] << 8 | ip[2 * i + 1], shift;
        if (i == best) {
            tn_wr_text(w, "::");
            i += best_len - 1;
            continue;
        }
        if (i != 0 && i != best + best_len) tn_wr_u8(w, ':');
        for (shift = 16; shift != 0;) {
            shift -= 4;
            if (shift == 0 || v >> shift != 0) tn_wr_hex_digit(w, v >> shift);
        }
    }
}

/* An address as text (RFC 5952), without its port; nothing for family 0. */
static void tn_wr_ip(tn_wr *w, const tailnet_addr *a)
{
    unsigned i;
    if (a->family == 6) tn_wr_ip6(w, a->ip);
    if (a->family != 4) return;
    for (i = 0; i < 4; i++) {
        if (i != 0) tn_wr_u8(w, '.');
        tn_wr_dec(w, a->ip[i]);
    }
}

/* The same with its port, IPv6 in brackets. */
static TN_MAYBE_UNUSED void tn_wr_addr(tn_wr *w, const tailnet_addr *a)
{
    if (a->family == 6) tn_wr_u8(w, '[');
    tn_wr_ip(w, a);
    if (a->family == 6) tn_wr_u8(w, ']');
    tn_wr_u8(w, ':');
    tn_wr_dec(w, a->port);
}

/* ---- dates ---- */

/* Days from 1970-01-01 to a date of the Gregorian calendar, year 1 to 9999. */
static int32_t tn_days_of(uint32_t year, uint32_t month, uint32_t day)
{
    uint32_t y    = month <= 2 ? year - 1 : year;      /* years begin in March: leap day last */
    uint32_t in_y = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
    return (int32_t)(y * 365 + y / 4 - y / 100 + y / 400 + in_y) - 719468;
}

/* A number of so many digits, at most most, and the character behind it (0: none).
 * What is wrong counts as if it were not there. */
static unsigned tn_date_field(tn_rd *r, unsigned digits, unsigned most, char end)
{
    unsigned v = 0;
    for (; digits != 0; digits--) {
        unsigned d = tn_rd_u8(r) - (unsigned)'0';
        if (d > 9) r->short_input = true;
        v = v * 10 + d;
    }
    if (v > most || (end != 0 && tn_rd_u8(r) != (uint8_t)end)) r->short_input = true;
    return v;
}

/* RFC 3339, as Go writes times, in milliseconds since 1970. Go's zero time and
 * all else before 1970 gives 0, which means "none" everywhere here. */
static bool tn_date_parse(uint64_t *unix_ms, const char *text, size_t len)
{
    /* year, month, day, hour, minute, second */
    static const uint16_t most[6] = { 9999, 12, 31, 23, 59, 60 };
    static const char     end[6]  = { '-', '-', 'T', ':', ':', 0 };
    tn_rd    r;
    unsigned part[6], i, c;
    uint32_t ms = 0, scale = 100;
    int32_t  zone = 0;
    int64_t  t;

    tn_rd_over(&r, text, len);
    for (i = 0; i < 6; i++) {
        part[i] = tn_date_field(&r, i == 0 ? 4 : 2, most[i], end[i]);
        if (i < 3 && part[i] == 0) r.short_input = true;
    }
    c = tn_rd_u8(&r);
    if (c == '.') {
        while ((c = tn_rd_u8(&r)) >= '0' && c <= '9') {
            ms += (c - '0') * scale;
            scale /= 10;
        }
    }
    if (c == '+' || c == '-') {
        zone = (int32_t)tn_date_field(&r, 2, 99, ':') * 3600;
        zone += (int32_t)tn_date_field(&r, 2, 99, 0) * 60;
        if (c == '-') zone = -zone;
    } else if (c != 'Z') {
        return false;
    }
    if (!tn_rd_ok(&r) || r.left != 0) return false;
    zone -= (int32_t)((uint32_t)part[3] * 3600 + part[4] * 60 + part[5]);
    t = (int64_t)tn_days_of(part[0], part[1], part[2]) * 86400 - zone;
    *unix_ms = t <= 0 ? 0 : (uint64_t)t * 1000u + ms;
    return true;
}

/* ======================================================================== *
 * >>crypto — the primitives of Noise, WireGuard, disco and DERP, under one
 * set of names.
 *
 * Owns:    nothing; a tn_cr_blake2s lives with its caller.
 * Calls:   >>base, and BearSSL 0.6 for X25519, ChaCha20, Poly1305 in its AEAD
 *          form, and SHA-256. BLAKE2s, HChaCha20, XSalsa20 and the Poly1305
 *          of NaCl boxes are written here: BearSSL has none of them.
 * States:  none.
 * Always:  time and addresses touched depend on lengths, never on secrets.
 *          What a function leaves on the stack of a secret is wiped. Outputs
 *          may be the same array as any input of the same length.
 * Trust:   lengths come from our own code; bytes come from anywhere.
 *
 * Hooks. Who has an accelerator defines one of these before the include; the
 * arguments are those of the tn_cr_ function of that name.
 *   TAILNET_X25519(out, scalar, point)     out = scalar * point, RFC 7748; the
 *                                          zero check is ours, so is the wipe
 *   TAILNET_AEAD_SEAL(key, nonce, ad, ad_len, data, len, tag)
 *   TAILNET_AEAD_OPEN(key, nonce, ad, ad_len, data, len, tag)   gives a bool
 *   TAILNET_HCHACHA20(out, key, in)        32, 32 and 16 bytes
 *   TAILNET_BLAKE2S_BLOCK(h, block, count, last)   uint32_t h[8], 64 bytes,
 *                                          uint64_t and bool of RFC 7693 F
 *   TAILNET_BOX_KEY(k, dh)                 k = HSalsa20(dh, 0)
 *   TAILNET_BOX_SEAL(k, nonce, dst, src, len)
 *   TAILNET_BOX_OPEN(k, nonce, dst, src, len)                   gives a bool
 *   TAILNET_SHA256(out, data, len)
 * TAILNET_SLOW_MULTIPLY: define it for cores whose 32 x 32 -> 64 multiply is
 * missing or takes a time that depends on the numbers (Cortex-M0, M0+, M3,
 * ARM7, ARM9): X25519 and the AEAD then keep to multiplies of 32 bits.
 * ======================================================================== */

#if (defined(__GNUC__) || defined(__clang__)) && !defined(__PCC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wconversion"
#  pragma GCC diagnostic ignored "-Wsign-conversion"
#  pragma GCC diagnostic ignored "-Wcast-qual"
#  pragma GCC diagnostic ignored "-Wshadow"
#  pragma GCC diagnostic ignored "-Wundef"
#endif
#include <bearssl.h>
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__PCC__)
#  pragma GCC diagnostic pop
#endif

enum {
    TN_CR_KEY_LEN     = 32,
    TN_CR_TAG_LEN     = 16,
    TN_CR_BLOCK_LEN   = 64,                 /* of BLAKE2s, Salsa20 and ChaCha20   */
    TN_CR_POLY_LEN    = 17                  /* bytes of a number below 2^136      */
};

static TN_INLINE uint32_t tn_cr_load32(const uint8_t *b)
{
    return (uint32_t)b[3] << 24 | (uint32_t)b[2] << 16 | (uint32_t)b[1] << 8 | b[0];
}

static void tn_cr_store32(uint8_t *b, uint32_t v)
{
    b[0] = (uint8_t)(v & 0xffu);
    b[1] = (uint8_t)(v >> 8 & 0xffu);
    b[2] = (uint8_t)(v >> 16 & 0xffu);
    b[3] = (uint8_t)(v >> 24);
}

static uint32_t tn_cr_rotl(uint32_t v, unsigned n) { return v << n | v >> (32 - n); }

/* ---- X25519 (RFC 7748) ---- */

/* BearSSL 0.6 takes this curve's scalar little-endian, whatever its header
 * says, and clamps it; a low-order point gives zero and no error. */
#ifndef TAILNET_X25519
static void tn_cr_x25519_bearssl(uint8_t out[32], const uint8_t scalar[32],
                                 const uint8_t point[32])
{
    uint8_t g[32];
    tn_copy_key(g, point);
#  ifdef TAILNET_SLOW_MULTIPLY
    (void)br_ec_c25519_m15.mul(g, sizeof g, scalar, 32, BR_EC_curve25519);
#  else
    (void)br_ec_c25519_m31.mul(g, sizeof g, scalar, 32, BR_EC_curve25519);
#  endif
    tn_copy_key(out, g);
    tn_wipe(g, sizeof g);
}
#  define TAILNET_X25519(out, scalar, point) tn_cr_x25519_bearssl(out, scalar, point)
#endif

/* out = scalar * point. False when that is all zero, which only a point chosen
 * to cheat gives: both sides must then give up (RFC 7748 section 6.1). */
static bool tn_cr_x25519(uint8_t out[32], const uint8_t scalar[32], const uint8_t point[32])
{
    TAILNET_X25519(out, scalar, point);
    return !tn_is_zero(out, 32);
}

/* The public key of a private one. */
static void tn_cr_x25519_base(uint8_t out[32], const uint8_t scalar[32])
{
    static const uint8_t nine[32] = { 9 };
    TAILNET_X25519(out, scalar, nine);
}

/* Makes 32 random bytes a private key. X25519 clamps again; saved keys are
 * clamped so that their text is the same everywhere. */
static void tn_cr_clamp(uint8_t k[32])
{
    k[0]  = (uint8_t)(k[0] & 248u);
    k[31] = (uint8_t)((k[31] & 127u) | 64u);
}

/* ---- BLAKE2s (RFC 7693), HMAC (RFC 2104), HKDF (RFC 5869) ---- */

static const uint32_t tn_cr_blake2s_iv[8] = {
    0x6a09e667ul, 0xbb67ae85ul, 0x3c6ef372ul, 0xa54ff53aul,
    0x510e527ful, 0x9b05688cul, 0x1f83d9abul, 0x5be0cd19ul
};

#ifndef TAILNET_BLAKE2S_BLOCK
/* RFC 7693 section 2.7, two numbers per byte: the first is the high digit. */
static const uint8_t tn_cr_blake2s_sigma[10][8] = {
    { 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef },
    { 0xea, 0x48, 0x9f, 0xd6, 0x1c, 0x02, 0xb7, 0x53 },
    { 0xb8, 0xc0, 0x52, 0xfd, 0xae, 0x36, 0x71, 0x94 },
    { 0x79, 0x31, 0xdc, 0xbe, 0x26, 0x5a, 0x40, 0xf8 },
    { 0x90, 0x57, 0x24, 0xaf, 0xe1, 0xbc, 0x68, 0x3d },
    { 0x2c, 0x6a, 0x0b, 0x83, 0x4d, 0x75, 0xfe, 0x19 },
    { 0xc5, 0x1f, 0xed, 0x4a, 0x07, 0x63, 0x92, 0x8b },
    { 0xdb, 0x7e, 0xc1, 0x39, 0x50, 0xf4, 0x86, 0x2a },
    { 0x6f, 0xe9, 0xb3, 0x08, 0xc2, 0xd7, 0x14, 0xa5 },
    { 0xa2, 0x84, 0x76, 0x15, 0xfb, 0x9e, 0x3c, 0xd0 }
};

/* The mixing function G: RFC 7693 section 3.1, for BLAKE2s. The compiler cannot know that
 * the four places differ: without copies it would store after every line. */
static void tn_cr_blake2s_mix(uint32_t v[16], unsigned a, unsigned b, unsigned c, unsigned d,
                              uint32_t x, uint32_t y)
{
    uint32_t p = v[a], q = v[b], r = v[c], s = v[d];
    p    = p + q + x;
    s    = tn_cr_rotl(s ^ p, 16);
    r    = r + s;
    q    = tn_cr_rotl(q ^ r, 20);
    p    = p + q + y;
    s    = tn_cr_rotl(s ^ p, 24);
    r    = r + s;
    v[a] = p;
    v[b] = tn_cr_rotl(q ^ r, 25);
    v[c] = r;
    v[d] = s;
}

/* The compression function F: RFC 7693 section 3.2. */
static void tn_cr_blake2s_block(uint32_t h[8], const uint8_t block[64], uint64_t count, bool last)
{
    uint32_t  v[32];                        /* and the block: one thing to wipe   */
    uint32_t *m = v + 16;
    unsigned  i, round;

    for (i = 0; i < 16; i++) m[i] = tn_cr_load32(block + 4 * i);
    for (i = 0; i < 8; i++) {
        v[i]     = h[i];
        v[i + 8] = tn_cr_blake2s_iv[i];
    }
    v[12] ^= (uint32_t)(count & 0xffffffffu);
    v[13] ^= (uint32_t)(count >> 32);
    if (last) v[14] = ~v[14];
    for (round = 0; round < 10; round++) {
        const uint8_t *s = tn_cr_blake2s_sigma[round];
        for (i = 0; i < 8; i++) {           /* four columns, then four diagonals  */
            unsigned k = i / 4;
            tn_cr_blake2s_mix(v, i % 4, 4 + (i + k) % 4, 8 + (i + 2 * k) % 4,
                              12 + (i + 3 * k) % 4, m[s[i] >> 4], m[s[i] & 15]);
        }
    }
    for (i = 0; i < 8; i++) h[i] ^= v[i] ^ v[i + 8];
    tn_wipe(v, sizeof v);
}
#  define TAILNET_BLAKE2S_BLOCK(h, block, count, last) tn_cr_blake2s_block(h, block, count, last)
#endif

typedef struct tn_cr_blake2s {
    uint8_t  out_len;
    uint8_t  block_len;                     /* never 0 once there was a byte: the */
    uint64_t count;                         /*   last block is a special one      */
    uint32_t h[8];                          /* count: bytes compressed            */
    uint8_t  block[64];
} tn_cr_blake2s;

static void tn_cr_blake2s_update(tn_cr_blake2s *b, const void *data, size_t len)
{
    const uint8_t *from = (const uint8_t *)data;
    while (len != 0) {
        size_t n = sizeof b->block - b->block_len;
        if (n == 0) {
            b->count += sizeof b->block;
            TAILNET_BLAKE2S_BLOCK(b->h, b->block, b->count, false);
            b->block_len = 0;
            n = sizeof b->block;
        }
        if (n > len) n = len;
        memcpy(b->block + b->block_len, from, n);
        b->block_len = (uint8_t)(b->block_len + n);
        from += n;
        len -= n;
    }
}

/* Begins a hash of out_len bytes, 1..32; keyed when key_len, 0..32, is not 0.
 * Both lengths go into it: a shorter one is not a longer one cut. */
static TN_NOINLINE void tn_cr_blake2s_init(tn_cr_blake2s *b, size_t out_len, const void *key,
                                           size_t key_len)
{
    TAILNET_ASSERT(out_len >= 1 && out_len <= 32 && key_len <= 32);
    tn_copy_key(b->h, tn_cr_blake2s_iv);
    b->h[0] ^= 0x01010000ul ^ (uint32_t)key_len << 8 ^ (uint32_t)out_len;
    b->count     = 0;
    b->block_len = 0;
    b->out_len   = (uint8_t)out_len;
    if (key_len == 0) return;
    memset(b->block, 0, sizeof b->block);   /* the key is a block of its own      */
    memcpy(b->block, key, key_len);
    b->block_len = sizeof b->block;
}

/* Writes out_len bytes and wipes the state. */
static void tn_cr_blake2s_final(tn_cr_blake2s *b, uint8_t *out)
{
    unsigned i;
    b->count += b->block_len;
    memset(b->block + b->block_len, 0, sizeof b->block - b->block_len);
    TAILNET_BLAKE2S_BLOCK(b->h, b->block, b->count, true);
    for (i = 0; i < b->out_len; i++) out[i] = (uint8_t)(b->h[i / 4] >> 8 * (i % 4) & 0xffu);
    tn_wipe(b, sizeof *b);
}

/* BLAKE2s-256 of a followed by b. */
static void tn_cr_hash(uint8_t out[32], const void *a, size_t a_len, const void *b, size_t b_len)
{
    tn_cr_blake2s s;
    tn_cr_blake2s_init(&s, 32, NULL, 0);
    tn_cr_blake2s_update(&s, a, a_len);
    tn_cr_blake2s_update(&s, b, b_len);
    tn_cr_blake2s_final(&s, out);
}

/* Keyed BLAKE2s: MAC of the WireGuard paper. Not the same as tn_cr_hmac. */
static TN_MAYBE_UNUSED void tn_cr_mac(uint8_t *out, size_t out_len, const void *key,
                                      size_t key_len, const void *data, size_t len)
{
    tn_cr_blake2s s;
    tn_cr_blake2s_init(&s, out_len, key, key_len);
    tn_cr_blake2s_update(&s, data, len);
    tn_cr_blake2s_final(&s, out);
}

/* HMAC over unkeyed BLAKE2s-256 (RFC 2104): HMAC of Noise and WireGuard. */
static void tn_cr_hmac(uint8_t out[32], const void *key, size_t key_len, const void *data,
                       size_t len)
{
    uint8_t  pad[TN_CR_BLOCK_LEN], inner[32];
    unsigned i;

    memset(pad, 0, sizeof pad);
    if (key_len > sizeof pad) tn_cr_hash(pad, key, key_len, NULL, 0);
    else if (key_len != 0)    memcpy(pad, key, key_len);
    for (i = 0; i < sizeof pad; i++) pad[i] ^= 0x36u;
    tn_cr_hash(inner, pad, sizeof pad, data, len);
    for (i = 0; i < sizeof pad; i++) pad[i] ^= 0x36u ^ 0x5cu;
    tn_cr_hash(out, pad, sizeof pad, inner, sizeof inner);
    tn_wipe(pad, sizeof pad);
    tn_wipe(inner, sizeof inner);
}

/* HKDF as Noise defines it: one, two or three keys out of a chaining key and
 * an input. t2 and t3 may be NULL; each may be ck itself. */
static void tn_cr_kdf(uint8_t *t1, uint8_t *t2, uint8_t *t3, const uint8_t ck[32],
                      const void *input, size_t len)
{
    uint8_t *to[3];
    uint8_t  prk[32], t[33];
    uint8_t  i;

    to[0] = t1;
    to[1] = t2;
    to[2] = t3;
    tn_cr_hmac(prk, ck, 32, input, len);
    for (i = 0; i < 3 && to[i] != NULL; i++) {
        t[32] = (uint8_t)(i + 1);           /* each goes with the one before      */
        tn_cr_hmac(t, prk, 32, i == 0 ? t + 32 : t, i == 0 ? 1 : sizeof t);
        tn_copy_key(to[i], t);
    }
    tn_wipe(prk, sizeof prk);
    tn_wipe(t, sizeof t);
}

/* ---- ChaCha20-Poly1305 (RFC 8439) ---- */

#if !defined(TAILNET_AEAD_SEAL) || !defined(TAILNET_AEAD_OPEN) || !defined(TAILNET_HCHACHA20)
/* The quickest ChaCha20 of BearSSL here. On 64-bit x86 asking costs nothing,
 * SSE2 is part of that machine; elsewhere nothing unused gets linked. */
static br_chacha20_run tn_cr_chacha20(void)
{
#  if defined(__x86_64__) || defined(_M_X64)
    br_chacha20_run sse2 = br_chacha20_sse2_get();
    if (sse2 != 0) return sse2;
#  endif
    return &br_chacha20_ct_run;
}
#endif

#if !defined(TAILNET_AEAD_SEAL) || !defined(TAILNET_AEAD_OPEN)
static TN_NOINLINE void tn_cr_aead_bearssl(const uint8_t key[32], const uint8_t nonce[12],
                                           const void *ad, size_t ad_len, uint8_t *data,
                                           size_t len, uint8_t tag[16], int encrypt)
{
#  if defined(TAILNET_SLOW_MULTIPLY)
    br_poly1305_ctmul32_run(key, nonce, data, len, ad, ad_len, tag, tn_cr_chacha20(), encrypt);
#  elif UINTPTR_MAX > 0xffffffffu
    br_poly1305_run run = br_poly1305_ctmulq_get();
    if (run == 0) run = &br_poly1305_ctmul_run;
    run(key, nonce, data, len, ad, ad_len, tag, tn_cr_chacha20(), encrypt);
#  else
    br_poly1305_ctmul_run(key, nonce, data, len, ad, ad_len, tag, tn_cr_chacha20(), encrypt);
#  endif
}
#endif

#ifndef TAILNET_AEAD_SEAL
#  define TAILNET_AEAD_SEAL(key, nonce, ad, ad_len, data, len, tag) \
    tn_cr_aead_bearssl(key, nonce, ad, ad_len, data, len, tag, 1)
#endif

#ifndef TAILNET_AEAD_OPEN
/* BearSSL decrypts and says which tag it should have been; it does not compare. */
static bool tn_cr_aead_check(const uint8_t key[32], const uint8_t nonce[12], const void *ad,
                             size_t ad_len, uint8_t *data, size_t len, const uint8_t tag[16])
{
    uint8_t right[TN_CR_TAG_LEN];
    bool    ok;
    tn_cr_aead_bearssl(key, nonce, ad, ad_len, data, len, right, 0);
    ok = tn_equal(right, tag, sizeof right);
    tn_wipe(right, sizeof right);
    return ok;
}
#  define TAILNET_AEAD_OPEN(key, nonce, ad, ad_len, data, len, tag) \
    tn_cr_aead_check(key, nonce, ad, ad_len, data, len, tag)
#endif

/* Encrypts data in place and writes its tag. */
static void tn_cr_aead_seal(const uint8_t key[32], const uint8_t nonce[12], const void *ad,
                            size_t ad_len, uint8_t *data, size_t len, uint8_t tag[16])
{
    TAILNET_AEAD_SEAL(key, nonce, ad, ad_len, data, len, tag);
}

/* Decrypts data in place. False when it is forged; data is zero then. */
static bool tn_cr_aead_open(const uint8_t key[32], const uint8_t nonce[12], const void *ad,
                            size_t ad_len, uint8_t *data, size_t len, const uint8_t tag[16])
{
    if (TAILNET_AEAD_OPEN(key, nonce, ad, ad_len, data, len, tag)) return true;
    if (len != 0) memset(data, 0, len);
    return false;
}

/* ---- the symmetric state of Noise (sections 5.2 and 5.3): control's, WireGuard's ---- */

static const uint8_t tn_cr_zero[32] = { 0 };

static void tn_cr_mix_hash(uint8_t h[32], const void *data, size_t len)
{
    tn_cr_hash(h, h, 32, data, len);
}

/* Mixes a Diffie-Hellman result into ck and gives the key that follows from it.
 * False: the point is of small order, the other side no honest one. */
static bool tn_cr_mix_dh(uint8_t ck[32], uint8_t k[32], const uint8_t priv[32],
                         const uint8_t pub[32])
{
    uint8_t shared[32];
    bool    ok = tn_cr_x25519(shared, priv, pub);
    tn_cr_kdf(ck, k, NULL, ck, shared, sizeof shared);
    tn_wipe(shared, sizeof shared);
    return ok;
}

/* Seals len bytes in place, the tag behind them. Every handshake key seals one
 * thing only, so the nonce is always zero. */
static void tn_cr_mix_seal(uint8_t h[32], const uint8_t k[32], uint8_t *data, size_t len)
{
    tn_cr_aead_seal(k, tn_cr_zero, h, 32, data, len, data + len);
    tn_cr_mix_hash(h, data, len + TN_CR_TAG_LEN);
}

/* Opens len bytes and their tag in place. */
static bool tn_cr_mix_open(uint8_t h[32], const uint8_t k[32], uint8_t *data, size_t len)
{
    uint8_t ad[32];
    tn_copy_key(ad, h);
    tn_cr_mix_hash(h, data, len + TN_CR_TAG_LEN);       /* of what was sent       */
    return tn_cr_aead_open(k, tn_cr_zero, ad, sizeof ad, data, len, data + len);
}

/* ---- XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) ---- */

static TN_MAYBE_UNUSED const uint8_t tn_cr_sigma[17] = "expand 32-byte k";  /* Salsa's as well */

#ifndef TAILNET_HCHACHA20
/* HChaCha20 out of a ChaCha20 block: the block is the same rounds plus the
 * start state, and what the start state has in the eight words used is public. */
static void tn_cr_hchacha20(uint8_t out[32], const uint8_t key[32], const uint8_t input[16])
{
    uint8_t  block[TN_CR_BLOCK_LEN];
    unsigned i;

    memset(block, 0, sizeof block);
    (void)tn_cr_chacha20()(key, input + 4, tn_cr_load32(input), block, sizeof block);
    for (i = 0; i < 16; i += 4) {
        tn_cr_store32(out + i, tn_cr_load32(block + i) - tn_cr_load32(tn_cr_sigma + i));
        tn_cr_store32(out + 16 + i, tn_cr_load32(block + 48 + i) - tn_cr_load32(input + i));
    }
    tn_wipe(block, sizeof block);
}
#  define TAILNET_HCHACHA20(out, key, input) tn_cr_hchacha20(out, key, input)
#endif

/* Key and nonce of the inner AEAD for a long nonce. */
static void tn_cr_xaead_key(uint8_t key_out[32], uint8_t nonce_out[12], const uint8_t key[32],
                            const uint8_t nonce[24])
{
    TAILNET_HCHACHA20(key_out, key, nonce);
    memset(nonce_out, 0, 4);
    memcpy(nonce_out + 4, nonce + 16, 8);
}

/* XChaCha20-Poly1305, in place. */
static TN_NOINLINE TN_MAYBE_UNUSED void tn_cr_xaead_seal(const uint8_t key[32],
                                                         const uint8_t nonce[24], const void *ad,
                                                         size_t ad_len, uint8_t *data, size_t len,
                                                         uint8_t tag[16])
{
    uint8_t inner[32], short_nonce[12];
    tn_cr_xaead_key(inner, short_nonce, key, nonce);
    tn_cr_aead_seal(inner, short_nonce, ad, ad_len, data, len, tag);
    tn_wipe(inner, sizeof inner);
}

/* The way back. False when it is forged; data is zero then. */
static TN_MAYBE_UNUSED bool tn_cr_xaead_open(const uint8_t key[32], const uint8_t nonce[24],
                                             const void *ad, size_t ad_len, uint8_t *data,
                                             size_t len, const uint8_t tag[16])
{
    uint8_t inner[32], short_nonce[12];
    bool    ok;
    tn_cr_xaead_key(inner, short_nonce, key, nonce);
    ok = tn_cr_aead_open(inner, short_nonce, ad, ad_len, data, len, tag);
    tn_wipe(inner, sizeof inner);
    return ok;
}

/* ---- NaCl's crypto_box_curve25519xsalsa20poly1305 ---- */

#if !defined(TAILNET_BOX_KEY) || !defined(TAILNET_BOX_SEAL) || !defined(TAILNET_BOX_OPEN)
static void tn_cr_salsa20_quarter(uint32_t v[16], unsigned a, unsigned b, unsigned c, unsigned d)
{
    uint32_t p = v[a], q = v[b], r = v[c], s = v[d];
    q ^= tn_cr_rotl(p + s, 7);
    r ^= tn_cr_rotl(q + p, 9);
    s ^= tn_cr_rotl(r + q, 13);
    v[a] = p ^ tn_cr_rotl(s + r, 18);
    v[b] = q;
    v[c] = r;
    v[d] = s;
}

/* Twenty rounds, and behind them the start state. */
static void tn_cr_salsa20_rounds(uint32_t v[32], const uint8_t key[32], const uint8_t input[16])
{
    /* four columns, then four rows; each begins on the main diagonal */
    static const uint8_t quarter[8][4] = {
        { 0, 4, 8, 12 }, { 5, 9, 13, 1 }, { 10, 14, 2, 6 }, { 15, 3, 7, 11 },
        { 0, 1, 2, 3 },  { 5, 6, 7, 4 },  { 10, 11, 8, 9 }, { 15, 12, 13, 14 }
    };
    uint32_t *s = v + 16;
    unsigned  i;

    for (i = 0; i < 4; i++) {
        s[5 * i]  = tn_cr_load32(tn_cr_sigma + 4 * i);
        s[1 + i]  = tn_cr_load32(key + 4 * i);
        s[6 + i]  = tn_cr_load32(input + 4 * i);
        s[11 + i] = tn_cr_load32(key + 16 + 4 * i);
    }
    memcpy(v, s, 16 * sizeof v[0]);
    for (i = 0; i < 80; i++) {
        const uint8_t *q = quarter[i % 8];
        tn_cr_salsa20_quarter(v, q[0], q[1], q[2], q[3]);
    }
}

/* HSalsa20: the rounds alone, and of them the words nobody can run backwards. */
static void tn_cr_hsalsa20(uint8_t out[32], const uint8_t key[32], const uint8_t input[16])
{
    uint32_t v[32];
    unsigned i;
    tn_cr_salsa20_rounds(v, key, input);
    for (i = 0; i < 4; i++) {
        tn_cr_store32(out + 4 * i, v[5 * i]);
        tn_cr_store32(out + 16 + 4 * i, v[6 + i]);
    }
    tn_wipe(v, sizeof v);
}
#endif

#if !defined(TAILNET_BOX_SEAL) || !defined(TAILNET_BOX_OPEN)
/* The stream of one box: the first 32 bytes key its Poly1305, the text is
 * mixed with what follows. */
typedef struct tn_cr_salsa20 {
    unsigned used;                          /* bytes of the block                 */
    uint8_t  key[32];
    uint8_t  input[16];                     /* nonce, then the block's number     */
    uint8_t  block[TN_CR_BLOCK_LEN];
} tn_cr_salsa20;

static void tn_cr_salsa20_block(tn_cr_salsa20 *x)
{
    uint32_t v[32];
    unsigned i;
    tn_cr_salsa20_rounds(v, x->key, x->input);
    for (i = 0; i < 16; i++) tn_cr_store32(x->block + 4 * i, v[i] + v[16 + i]);
    tn_cr_store32(x->input + 8, v[24] + 1); /* 2^32 blocks are more than size_t   */
    x->used = 0;                            /*   may count: no carry to word 9    */
    tn_wipe(v, sizeof v);
}

static void tn_cr_salsa20_start(tn_cr_salsa20 *x, const uint8_t k[32], const uint8_t nonce[24])
{
    tn_cr_hsalsa20(x->key, k, nonce);
    memset(x->input, 0, sizeof x->input);
    memcpy(x->input, nonce + 16, 8);
    tn_cr_salsa20_block(x);
    x->used = 32;
}

static void tn_cr_salsa20_xor(tn_cr_salsa20 *x, uint8_t *dst, const uint8_t *src, size_t len)
{
    size_t i;
    for (i = 0; i < len; i++) {
        if (x->used == sizeof x->block) tn_cr_salsa20_block(x);
        dst[i] = (uint8_t)(src[i] ^ x->block[x->used++]);
    }
}

/* Carries through a number modulo 2^130 - 5 whose bytes have grown: what lies
 * above bit 130 returns at the bottom five times. Thrice, and all are bytes. */
static void tn_cr_poly_carry(uint32_t h[TN_CR_POLY_LEN])
{
    uint32_t carry = 0;
    unsigned i;
    for (i = 0; i < TN_CR_POLY_LEN; i++) {
        carry += h[i];
        h[i] = carry & 0xffu;
        carry >>= 8;
    }
    h[0] += 5 * (carry << 6 | h[16] >> 2);
    h[16] &= 3;
}

/* h = (h + block) * r. Bytes need no multiply that is wider than 32 bits, so it
 * takes the same time on the smallest core; boxes are short and few. r holds
 * 320r below r: a byte carried over 2^136 returns at the bottom 320 times. */
static void tn_cr_poly_block(uint32_t h[TN_CR_POLY_LEN], const uint32_t r[2 * TN_CR_POLY_LEN],
                             const uint8_t block[TN_CR_POLY_LEN])
{
    uint32_t sum[TN_CR_POLY_LEN];
    unsigned i, j;

    for (i = 0; i < TN_CR_POLY_LEN; i++) sum[i] = h[i] + block[i];
    for (i = 0; i < TN_CR_POLY_LEN; i++) {
        h[i] = 0;
        for (j = 0; j < TN_CR_POLY_LEN; j++)    /* 17 * 765 * 81600 < 2^30         */
            h[i] += sum[j] * r[TN_CR_POLY_LEN + i - j];
    }
    tn_cr_poly_carry(h);
    tn_cr_poly_carry(h);
    tn_wipe(sum, sizeof sum);
}

/* The tag: h modulo 2^130 - 5, plus s, modulo 2^128. Wipes h. */
static void tn_cr_poly_final(uint8_t tag[16], uint32_t h[TN_CR_POLY_LEN], const uint8_t s[16])
{
    uint32_t over = 5, carry;
    unsigned i;

    tn_cr_poly_carry(h);
    for (i = 0; i < 16; i++) over = (over + h[i]) >> 8;
    carry = 5 * ((over + h[16]) >> 2);      /* h + 5 reaches 2^130: once too much */
    for (i = 0; i < 16; i++) {
        carry += h[i] + s[i];
        tag[i] = (uint8_t)(carry & 0xffu);
        carry >>= 8;
    }
    tn_wipe(h, TN_CR_POLY_LEN * sizeof h[0]);
}

/* Poly1305 (RFC 8439 section 2.5) over the bytes alone. key: r, then s. */
static void tn_cr_poly1305(uint8_t tag[16], const uint8_t key[32], const uint8_t *data, size_t len)
{
    uint32_t h[TN_CR_POLY_LEN], r[2 * TN_CR_POLY_LEN];
    uint8_t  block[TN_CR_POLY_LEN];
    unsigned i;

    memset(h, 0, sizeof h);
    memset(r, 0, sizeof r);
    for (i = 0; i < 16; i++) {
        unsigned keep = i % 4 == 3 ? 15u : i != 0 && i % 4 == 0 ? 252u : 255u;
        r[TN_CR_POLY_LEN + i] = key[i] & keep;
        r[i]                  = 320 * r[TN_CR_POLY_LEN + i];
    }
    while (len != 0) {
        size_t n = len < 16 ? len : 16;
        memset(block, 0, sizeof block);
        memcpy(block, data, n);
        block[n] = 1;
        tn_cr_poly_block(h, r, block);
        data += n;
        len -= n;
    }
    tn_cr_poly_final(tag, h, key + 16);
    tn_wipe(r, sizeof r);
    tn_wipe(block, sizeof block);
}
#endif

#ifndef TAILNET_BOX_KEY
static void tn_cr_box_key_of(uint8_t k[32], const uint8_t dh[32])
{
    tn_cr_hsalsa20(k, dh, tn_cr_zero);
}
#  define TAILNET_BOX_KEY(k, dh) tn_cr_box_key_of(k, dh)
#endif

#ifndef TAILNET_BOX_SEAL
static void tn_cr_box_seal_salsa20(const uint8_t k[32], const uint8_t nonce[24], uint8_t *dst,
                                   const uint8_t *src, size_t len)
{
    tn_cr_salsa20 x;
    uint8_t       key[32];
    tn_cr_salsa20_start(&x, k, nonce);
    tn_copy_key(key, x.block);
    tn_cr_salsa20_xor(&x, dst + TN_CR_TAG_LEN, src, len);
    tn_cr_poly1305(dst, key, dst + TN_CR_TAG_LEN, len);
    tn_wipe(&x, sizeof x);
    tn_wipe(key, sizeof key);
}
#  define TAILNET_BOX_SEAL(k, nonce, dst, src, len) tn_cr_box_seal_salsa20(k, nonce, dst, src, len)
#endif

#ifndef TAILNET_BOX_OPEN
static bool tn_cr_box_open_salsa20(const uint8_t k[32], const uint8_t nonce[24], uint8_t *dst,
                                   const uint8_t *src, size_t len)
{
    tn_cr_salsa20 x;
    uint8_t       tag[TN_CR_TAG_LEN];
    bool          ok;
    tn_cr_salsa20_start(&x, k, nonce);
    tn_cr_poly1305(tag, x.block, src + TN_CR_TAG_LEN, len - TN_CR_TAG_LEN);
    ok = tn_equal(tag, src, sizeof tag);
    if (ok) tn_cr_salsa20_xor(&x, dst, src + TN_CR_TAG_LEN, len - TN_CR_TAG_LEN);
    tn_wipe(&x, sizeof x);
    tn_wipe(tag, sizeof tag);
    return ok;
}
#  define TAILNET_BOX_OPEN(k, nonce, dst, src, len) tn_cr_box_open_salsa20(k, nonce, dst, src, len)
#endif

/* The key two sides share (NaCl's beforenm): worth keeping per peer. False
 * when the other's key is one chosen to cheat; k is zero then. */
static TN_MAYBE_UNUSED bool tn_cr_box_key(uint8_t k[32], const uint8_t priv[32],
                                          const uint8_t pub[32])
{
    uint8_t dh[32];
    bool    ok = tn_cr_x25519(dh, priv, pub);
    if (ok) TAILNET_BOX_KEY(k, dh);
    else    memset(k, 0, 32);
    tn_wipe(dh, sizeof dh);
    return ok;
}

/* dst gets the tag and then the len bytes of text, encrypted. dst + 16 may be
 * src; any other overlap is forbidden. */
static TN_MAYBE_UNUSED void tn_cr_box_seal(const uint8_t k[32], const uint8_t nonce[24],
                                           uint8_t *dst, const uint8_t *src, size_t len)
{
    TAILNET_BOX_SEAL(k, nonce, dst, src, len);
}

/* src is tag and text, len bytes together; dst gets the len - 16 bytes of text
 * and may be src + 16, any other overlap is forbidden. False when it is too
 * short or forged; dst is untouched then. */
static TN_MAYBE_UNUSED bool tn_cr_box_open(const uint8_t k[32], const uint8_t nonce[24],
                                           uint8_t *dst, const uint8_t *src, size_t len)
{
    return len >= TN_CR_TAG_LEN && TAILNET_BOX_OPEN(k, nonce, dst, src, len);
}

/* ---- SHA-256 ---- */

#ifndef TAILNET_SHA256
static void tn_cr_sha256_bearssl(uint8_t out[32], const void *data, size_t len)
{
    br_sha256_context c;
    br_sha256_init(&c);
    br_sha256_update(&c, data, len);
    br_sha256_out(&c, out);
    tn_wipe(&c, sizeof c);
}
#  define TAILNET_SHA256(out, data, len) tn_cr_sha256_bearssl(out, data, len)
#endif

static TN_MAYBE_UNUSED void tn_cr_sha256(uint8_t out[32], const void *data, size_t len)
{
    TAILNET_SHA256(out, data, len);
}

/* ======================================================================== *
 * >>rim — the only code that calls the caller.
 *
 * Owns:    the caller's callbacks, the time of the present call, the guard.
 * Calls:   >>base.
 * States:  none.
 * Always:  inside is true exactly while a callback runs. The clock is asked
 *          once per call into the library and never goes back. After random
 *          has failed once it is never asked again.
 * Trust:   callbacks may be wrong about sizes, never about memory.
 * ======================================================================== */

/* Seconds since 1970 at which this version was made. A certificate that had
 * ended by then is never accepted, whatever a device believes the time to be. */
#ifndef TAILNET_RELEASE_UNIX
#  define TAILNET_RELEASE_UNIX 1795219200ul /* 2026-11-21                         */
#endif

typedef struct tn_rim {
    bool       inside;
    bool       random_failed;
    uint32_t   refused;                     /* calls made from inside a callback  */
    uint64_t   now_ms;                      /* the time of this call              */
    uint64_t   learnt_unix_ms;              /* the present is not before this     */
    tailnet_io io;
} tn_rim;

/* Keeps the callbacks. False when one is missing that no node can do without;
 * udp_output may be, for nodes that only use relays. */
static bool tn_rim_init(tn_rim *r, const tailnet_io *io)
{
    memset(r, 0, sizeof *r);
    r->io = *io;
    return io->now_ms != NULL && io->random != NULL && io->ip_output != NULL &&
           io->tcp_open != NULL && io->tcp_output != NULL && io->tcp_close != NULL;
}

/* The first thing a public function does: false, and nothing changed, when it
 * was called from inside a callback. Otherwise now_ms is the time of the call. */
static bool tn_rim_enter(tn_rim *r)
{
    uint64_t now;
    if (r->inside) {
        r->refused++;
        return false;
    }
    r->inside = true;
    now       = r->io.now_ms(r->io.user);
    r->inside = false;
    if (now > r->now_ms) r->now_ms = now;   /* deadlines must not run backwards   */
    return true;
}

/* Milliseconds since 1970 by the caller's clock, 0 while unknown. */
static uint64_t tn_rim_unix_ms(tn_rim *r)
{
    uint64_t unix_ms;
    if (r->io.unix_ms == NULL) return 0;
    r->inside = true;
    unix_ms   = r->io.unix_ms(r->io.user);
    r->inside = false;
    return unix_ms;
}

/* Somebody we believe (the saved state, the control server inside its channel)
 * says it is at least this late. */
static void tn_rim_learn_time(tn_rim *r, uint64_t unix_ms)
{
    if (unix_ms > r->learnt_unix_ms) r->learnt_unix_ms = unix_ms;
}

/* The present is certainly not before this. */
static TN_NOINLINE uint64_t tn_rim_unix_floor_ms(const tn_rim *r)
{
    uint64_t release = (uint64_t)TAILNET_RELEASE_UNIX * 1000u;
    return r->learnt_unix_ms > release ? r->learnt_unix_ms : release;
}

/* Unpredictable bytes. False, and zeroes, when the caller's source fails or
 * has ever failed: the node has to stop, there is no other source. */
static bool tn_rim_random(tn_rim *r, void *dst, size_t len)
{
    if (!r->random_failed) {
        r->inside        = true;
        r->random_failed = r->io.random(r->io.user, dst, len) != 0;
        r->inside        = false;
    }
    if (r->random_failed) memset(dst, 0, len);
    return !r->random_failed;
}

/* A number from low to high, both included: timers of many nodes must not beat
 * in step. low when random fails. */
static uint32_t tn_rim_between(tn_rim *r, uint32_t low, uint32_t high)
{
    uint8_t  b[4];
    uint32_t some, span = high - low + 1u;  /* 0: any number                      */
    if (high <= low || !tn_rim_random(r, b, sizeof b)) return low;
    some = tn_get_u32be(b);
    return low + (span == 0 ? some : some % span);
}

/* ---- packets ---- */

/* Is there a UDP socket? Nodes that only use relays do without. */
static bool tn_rim_has_udp(const tn_rim *r) { return r->io.udp_output != NULL; }

/* Sends a run of datagrams. False when that address cannot be reached at all. */
static bool tn_rim_udp_output(tn_rim *r, const tailnet_addr *to, tailnet_buf *pkts, size_t count)
{
    int bad;
    if (r->io.udp_output == NULL) return false;
    r->inside = true;
    bad       = r->io.udp_output(r->io.user, to, pkts, count);
    r->inside = false;
    return bad == 0;
}

/* Hands a run of decrypted packets to the application. */
static void tn_rim_ip_output(tn_rim *r, tailnet_buf *pkts, size_t count)
{
    r->inside = true;
    (r->io.ip_output)(r->io.user, pkts, count);     /* ip_output() is a macro of lwIP */
    r->inside = false;
}

/* ---- connections: only >>link calls these ---- */

/* False when it cannot even begin; then there is nothing to close. */
static bool tn_rim_tcp_open(tn_rim *r, tailnet_link link, const tailnet_dial *dial)
{
    int bad;
    r->inside = true;
    bad       = r->io.tcp_open(r->io.user, link, dial);
    r->inside = false;
    return bad == 0;
}

/* The bytes taken, at most size; negative when the connection is broken. */
static int32_t tn_rim_tcp_output(tn_rim *r, tailnet_link link, const void *data, size_t size)
{
    int32_t taken;
    if (size > (size_t)INT32_MAX) size = (size_t)INT32_MAX;
    r->inside = true;
    taken     = r->io.tcp_output(r->io.user, link, data, size);
    r->inside = false;
    TAILNET_ASSERT(taken < 0 || (size_t)taken <= size);
    return taken > 0 && (size_t)taken > size ? (int32_t)size : taken;
}

static void tn_rim_tcp_close(tn_rim *r, tailnet_link link)
{
    r->inside = true;
    r->io.tcp_close(r->io.user, link);
    r->inside = false;
}

/* ---- what is optional ---- */

/* Asks for the addresses of a name. False when nobody will answer. */
static TN_MAYBE_UNUSED bool tn_rim_resolve(tn_rim *r, uint32_t query, const char *host)
{
    int bad;
    if (r->io.resolve == NULL) return false;
    r->inside = true;
    bad       = r->io.resolve(r->io.user, query, host);
    r->inside = false;
    return bad == 0;
}

/* Symmetric work by the caller's machine. False: nobody did it. */
static bool tn_rim_crypt(tn_rim *r, tailnet_crypt *work, size_t count)
{
    if (r->io.crypt == NULL) return false;
    r->inside = true;
    r->io.crypt(r->io.user, work, count);
    r->inside = false;
    return true;
}

/* Does the caller say how much a peer matters? */
static bool tn_rim_asks_keep(const tn_rim *r) { return r->io.keep_peer != NULL; }

/* How much a peer matters; 0 when nobody says. */
static int tn_rim_keep_peer(tn_rim *r, const tailnet_peer *peer)
{
    int rank;
    if (r->io.keep_peer == NULL) return 0;
    r->inside = true;
    rank      = r->io.keep_peer(r->io.user, peer);
    r->inside = false;
    return rank;
}

/* One line of log; level 0 error to 3 debug. The text is gone in small builds. */
static TN_NOINLINE TN_MAYBE_UNUSED void tn_rim_log(tn_rim *r, int level, uint32_t code,
                                                   const char *text)
{
#ifdef TAILNET_NO_STRINGS
    text = NULL;
#endif
    if (r->io.log == NULL) return;
    r->inside = true;
    r->io.log(r->io.user, level, code, text);
    r->inside = false;
}

/* ======================================================================== *
 * >>key — the text forms of keys, and what has to outlive a reboot.
 *
 * Owns:    tn_key_state, the decoded form of the saved blob.
 * Calls:   >>base, >>crypto.
 * States:  none. A key rotation is has_trying: node is the key in use, trying
 *          the one the server is asked to take, old_public names node to it.
 * Always:  a blob is taken whole or not at all. A key that is not there is all
 *          zero, and its has_ is false.
 * Trust:   key texts are the server's. The blob is our own, but flash decays,
 *          writes get cut, and people save the wrong bytes.
 *
 * Source of the text forms: tailscale types/key/{util,machine,node,disco,nl,
 * chal}.go. The blob is ours alone:
 *
 *      0   4  "TNks"                      40  32  machine, private
 *      4   2  version, 1                  72  32  node, private
 *      6   2  length, with the checksum  104  32  trying, private
 *      8   4  number of the save         136  32  old_public
 *     12   4  zero                       168  32  server, public
 *     16   8  stamp_unix_ms              200  32  lock_seed
 *     24   8  newest_unix_ms             232  16  server_id
 *     32   8  zero                       248  32  BLAKE2s-256 of all before
 *
 * Big-endian. Every later version keeps the first 12 bytes and the checksum as
 * the last 32 of its length.
 * ======================================================================== */

#define TN_KEY_MACHINE   "mkey:"
#define TN_KEY_NODE      "nodekey:"
#define TN_KEY_DISCO     "discokey:"
#define TN_KEY_LOCK      "nlpub:"
#define TN_KEY_CHALLENGE "chalpub:"
#define TN_KEY_PRIVATE   "privkey:"

enum {
    TN_KEY_STATE_VERSION = 1,
    TN_KEY_STATE_LEN     = 280,
    TN_KEY_SUM_LEN       = 32
};
#define TN_KEY_STATE_MAGIC 0x544e6b73ul     /* "TNks"                             */
#define TN_KEY_NUMBER_AT   8u

TN_STATIC_ASSERT(key_state_fits, TN_KEY_STATE_LEN <= TAILNET_STATE_SIZE);

typedef struct tn_key_state {
    uint32_t number;                        /* the higher one is the newer one    */
    bool     has_machine, has_node, has_trying, has_old, has_server, has_lock;
    uint8_t  machine[32];                   /* private                            */
    uint8_t  node[32];                      /* private; also WireGuard's and DERP's */
    uint8_t  trying[32];                    /* private: a login is under way      */
    uint8_t  old_public[32];                /* of node, while trying              */
    uint8_t  server[32];                    /* Noise key of the control server    */
    uint8_t  lock_seed[32];                 /* Ed25519, for Tailnet Lock          */
    uint8_t  server_id[16];                 /* which server: hash of its URL      */
    uint64_t stamp_unix_ms;                 /* no WireGuard stamp above was sent  */
    uint64_t newest_unix_ms;                /* it cannot be earlier than this     */
} tn_key_state;

/* The keys stand in a row, and their has_ in another, both as in the blob. */
#define TN_KEY_KEYS offsetof(tn_key_state, machine)
#define TN_KEY_HAS  offsetof(tn_key_state, has_machine)
enum { TN_KEY_COUNT = 6 };

TN_STATIC_ASSERT(key_rows, offsetof(tn_key_state, lock_seed) == TN_KEY_KEYS + 5 * 32 &&
                               offsetof(tn_key_state, has_lock) == TN_KEY_HAS + 5 * sizeof(bool));

/* ---- text forms ---- */

/* Exactly the prefix and 64 hex digits, either case. An all-zero key is legal
 * and means "none". False leaves zeroes. */
static bool tn_key_parse(uint8_t out[32], const char *prefix, const char *text, size_t len)
{
    size_t skip = strlen(prefix);            /* the alias of nlpub: is as long      */
    if (tn_is(prefix, skip, TN_KEY_LOCK) && tn_begins(text, len, "tlpub:")) prefix = "tlpub:";
    if (tn_begins(text, len, prefix) && tn_hex_parse(out, 32, text + skip, len - skip))
        return true;
    memset(out, 0, 32);
    return false;
}

static TN_MAYBE_UNUSED void tn_key_write(tn_wr *w, const char *prefix, const uint8_t key[32])
{
    tn_wr_text(w, prefix);
    tn_wr_hex(w, key, 32);
}

/* ---- the blob ---- */

/* What a blob is: OK is intact and ours. NO_ROUTE: there is none, an erased
 * place is all ones or all zeroes. UNSUPPORTED: intact, of a later version.
 * MALFORMED: all else. Bytes behind the blob do not count. */
static tailnet_result tn_key_state_check(const void *src, size_t len)
{
    tn_rd          r;
    uint8_t        sum[TN_KEY_SUM_LEN];
    const uint8_t *b = (const uint8_t *)src, *body;
    uint32_t       magic;
    unsigned       version, size;
    size_t         i;

    if (src == NULL || len == 0) return TAILNET_ERR_NO_ROUTE;
    for (i = 1; i < len && b[i] == b[0]; i++) {}
    if (i == len && (b[0] == 0 || b[0] == 0xffu)) return TAILNET_ERR_NO_ROUTE;

    tn_rd_over(&r, src, len);
    magic   = tn_rd_u32be(&r);
    version = tn_rd_u16be(&r);
    size    = tn_rd_u16be(&r);
    if (magic != TN_KEY_STATE_MAGIC || size > len || size < 12 + TN_KEY_SUM_LEN)
        return TAILNET_ERR_MALFORMED;
    tn_rd_over(&r, src, size);
    body = tn_rd_bytes(&r, size - TN_KEY_SUM_LEN);
    tn_cr_hash(sum, body, size - TN_KEY_SUM_LEN, NULL, 0);
    if (!tn_equal(sum, r.at, sizeof sum)) return TAILNET_ERR_MALFORMED;
    if (version > TN_KEY_STATE_VERSION) return TAILNET_ERR_UNSUPPORTED;
    return version == TN_KEY_STATE_VERSION && size == TN_KEY_STATE_LEN ? TAILNET_OK
                                                                       : TAILNET_ERR_MALFORMED;
}

/* Takes an intact blob apart. */
static void tn_key_state_read(tn_key_state *out, const void *src)
{
    uint8_t *key = (uint8_t *)out + TN_KEY_KEYS;
    bool    *has = (bool *)out + TN_KEY_HAS / sizeof(bool);
    tn_rd    r;
    unsigned i;

    tn_rd_over(&r, src, TN_KEY_STATE_LEN);
    (void)tn_rd_bytes(&r, TN_KEY_NUMBER_AT);
    out->number         = tn_rd_u32be(&r);
    (void)tn_rd_u32be(&r);
    out->stamp_unix_ms  = tn_rd_u64be(&r);
    out->newest_unix_ms = tn_rd_u64be(&r);
    (void)tn_rd_u64be(&r);
    for (i = 0; i < TN_KEY_COUNT; i++, key += 32) {
        tn_rd_copy(&r, key, 32);
        has[i] = !tn_is_zero(key, 32);
    }
    tn_rd_copy(&r, out->server_id, sizeof out->server_id);
}

/* Takes a blob apart. False when it is damaged, cut, or newer than we are: then
 * everything is zero. */
static TN_MAYBE_UNUSED bool tn_key_state_parse(tn_key_state *out, const void *src, size_t len)
{
    tn_wipe(out, sizeof *out);
    if (tn_key_state_check(src, len) != TAILNET_OK) return false;
    tn_key_state_read(out, src);
    return true;
}

/* Returns the bytes it takes, and writes nothing if that is more than cap. The
 * caller counts number up for every save. */
static size_t tn_key_state_build(const tn_key_state *s, void *dst, size_t cap)
{
    const uint8_t *key = (const uint8_t *)s + TN_KEY_KEYS;
    const bool    *has = (const bool *)s + TN_KEY_HAS / sizeof(bool);
    tn_wr          w;
    uint8_t        sum[TN_KEY_SUM_LEN];
    unsigned       i;

    if (cap < TN_KEY_STATE_LEN) return TN_KEY_STATE_LEN;
    tn_wr_over(&w, dst, cap);
    tn_wr_u32be(&w, TN_KEY_STATE_MAGIC);
    tn_wr_u16be(&w, TN_KEY_STATE_VERSION);
    tn_wr_u16be(&w, TN_KEY_STATE_LEN);
    tn_wr_u32be(&w, s->number);
    tn_wr_u32be(&w, 0);
    tn_wr_u64be(&w, s->stamp_unix_ms);
    tn_wr_u64be(&w, s->newest_unix_ms);
    tn_wr_u64be(&w, 0);
    for (i = 0; i < TN_KEY_COUNT; i++, key += 32) {
        if (has[i]) tn_wr_bytes(&w, key, 32);
        else        tn_wr_zero(&w, 32);
    }
    tn_wr_bytes(&w, s->server_id, sizeof s->server_id);
    tn_cr_hash(sum, dst, tn_wr_len(&w), NULL, 0);
    tn_wr_bytes(&w, sum, sizeof sum);
    return TN_KEY_STATE_LEN;
}

/* The newest intact one of two places. NO_ROUTE: none was given, this device is
 * new. UNSUPPORTED: only a later version can read them. MALFORMED: there was
 * something, and none of it is intact. Unless OK, out is zero. */
static tailnet_result tn_key_state_choose(tn_key_state *out, const tailnet_bytes saved[2])
{
    tailnet_result result = TAILNET_ERR_NO_ROUTE, got;
    uint32_t       number = 0;
    int            i;

    tn_wipe(out, sizeof *out);
    for (i = 0; i < 2; i++) {
        got = tn_key_state_check(saved[i].data, saved[i].size);
        if (got == TAILNET_OK) {
            number = tn_get_u32be((const uint8_t *)saved[i].data + TN_KEY_NUMBER_AT);
            if (result != TAILNET_OK || number > out->number)
                tn_key_state_read(out, saved[i].data);
            result = TAILNET_OK;
        } else if (result == TAILNET_ERR_NO_ROUTE ||
                   (result == TAILNET_ERR_MALFORMED && got == TAILNET_ERR_UNSUPPORTED)) {
            result = got;
        }
    }
    return result;
}

/* ---- the life of the keys ---- */

/* Keys of a device that was never anywhere: machine and node, independent. */
static void tn_key_state_first(tn_key_state *s, const uint8_t random[64])
{
    tn_copy_key(s->machine, random);
    tn_copy_key(s->node, random + 32);
    tn_cr_clamp(s->machine);
    tn_cr_clamp(s->node);
    s->has_machine = true;
    s->has_node    = true;
}

/* Gives the key of an unfinished login up. */
static void tn_key_state_drop(tn_key_state *s)
{
    tn_wipe(s->trying, sizeof s->trying);
    memset(s->old_public, 0, sizeof s->old_public);
    s->has_trying = false;
    s->has_old    = false;
}

/* Begins a login with a new key; node stays in use until it is taken. */
static void tn_key_state_try(tn_key_state *s, const uint8_t random[32])
{
    tn_key_state_drop(s);
    tn_copy_key(s->trying, random);
    tn_cr_clamp(s->trying);
    s->has_trying = true;
    if (!s->has_node) return;
    tn_cr_x25519_base(s->old_public, s->node);
    s->has_old = true;
}

/* The server has taken the new key: it is the node's now. */
static void tn_key_state_took(tn_key_state *s)
{
    if (!s->has_trying) return;
    memcpy(s->node, s->trying, sizeof s->node);
    s->has_node = true;
    tn_key_state_drop(s);
}

/* Notes which server this is for. True when the state is of that server or of
 * none. False when it was of another: what only that one may know is forgotten
 * then, and the caller makes a new node key; machine and stamps stay. */
static bool tn_key_state_serve(tn_key_state *s, const char *url, size_t len)
{
    uint8_t id[32];
    bool    same;

    tn_cr_hash(id, url, len, NULL, 0);
    same = tn_is_zero(s->server_id, sizeof s->server_id) ||
           tn_equal(s->server_id, id, sizeof s->server_id);
    memcpy(s->server_id, id, sizeof s->server_id);
    if (same) return true;
    tn_key_state_drop(s);
    tn_wipe(s->node, sizeof s->node);
    tn_wipe(s->lock_seed, sizeof s->lock_seed);
    memset(s->server, 0, sizeof s->server);
    s->has_node   = false;
    s->has_lock   = false;
    s->has_server = false;
    return false;
}

/* ======================================================================== *
 * >>json — a JSON text in pieces of any size, one event at a time; and a
 * writer that sets the commas.
 *
 * Owns:    the reader: one token's space and a bit per open container.
 * Calls:   >>base.
 * States:  VALUE -> (STRING | NUMBER | WORD | FIRST_KEY | FIRST_VALUE) -> AFTER
 *          -> (KEY -> STRING -> COLON -> VALUE) | VALUE ... -> END -> DONE, and
 *          from every state to FAILED.
 * Always:  the same bytes give the same events however they are cut. Memory
 *          does not depend on the text. FAILED is for good.
 * Trust:   any bytes. Strict RFC 8259; bytes that are no UTF-8 and lone
 *          surrogates become U+FFFD, as Go's decoder does. Too long strings are
 *          cut, flagged, counted, and read to their end. Deeper than
 *          TN_JS_MAX_DEPTH is an error.
 * ======================================================================== */

enum {
    TN_JS_SPACE     = 288,                  /* key and text of one value together */
    TN_JS_MAX_KEY   = 96,                   /* kept of a key                      */
    TN_JS_MAX_DEPTH = 128                   /* containers inside each other       */
};

typedef enum tn_js_event {
    TN_JS_ERROR = -1,                       /* see error and at; stays            */
    TN_JS_MORE,                             /* needs bytes                        */
    TN_JS_OBJECT, TN_JS_OBJECT_END, TN_JS_ARRAY, TN_JS_ARRAY_END,
    TN_JS_STRING, TN_JS_NUMBER,
    TN_JS_TRUE, TN_JS_FALSE, TN_JS_NULL,    /* in the order of tn_js_words        */
    TN_JS_END                               /* the whole value has been read      */
} tn_js_event;

typedef enum tn_js_error { TN_JS_FINE, TN_JS_BAD_SYNTAX, TN_JS_TOO_DEEP } tn_js_error;

typedef enum tn_js_state {
    TN_JS_IN_VALUE, TN_JS_IN_FIRST_VALUE, TN_JS_IN_KEY, TN_JS_IN_FIRST_KEY, TN_JS_IN_COLON,
    TN_JS_IN_AFTER, TN_JS_IN_STRING, TN_JS_IN_ESCAPE, TN_JS_IN_UNICODE, TN_JS_IN_NUMBER,
    TN_JS_IN_WORD, TN_JS_IN_END, TN_JS_IN_DONE, TN_JS_FAILED
} tn_js_state;

/* Where a number is. It may end where it is odd, and a digit leads from each to the odd
 * one behind it; but nothing follows a first zero. */
enum {
    TN_JS_MINUS, TN_JS_INTEGER, TN_JS_POINT, TN_JS_FRACTION, TN_JS_E, TN_JS_EXPONENT,
    TN_JS_E_SIGN, TN_JS_SIGNED_EXPONENT, TN_JS_ZERO = 9
};

/* The reader. key and text point into it: it must not be copied. Small members first:
 * their places fit into short instructions. */
typedef struct tn_js {
    bool         key_cut, text_cut;         /* only the beginning was kept        */
    tn_js_error  error;
    tn_js_state  state;
    tn_js_event  last;
    bool         in_key, full;
    uint8_t      digits;
    uint8_t      word, word_at;             /* which of tn_js_words, and where    */
    uint8_t      code_left;                 /* bytes or digits of code to come    */
    uint8_t      pending;                   /* bytes of code; surrogate that waits */
    uint16_t     key_len, text_len;         /* key_len is 0 outside objects       */
    uint16_t     depth;                     /* containers the event stands in     */
    uint16_t     level, skip;               /* skip: level that is skipped, or 0  */
    uint16_t     begin, fill;               /* of the token in space              */
    uint16_t     high;                      /* surrogate that waits for its half  */
    const char  *key, *text;                /* of the event; no end byte          */
    uint32_t     cut_count;                 /* strings and numbers cut so far     */
    uint32_t     at;                        /* bytes read                         */
    uint32_t     code;                      /* of the character so far            */
    tn_rd        rd;
    uint8_t      is_object[TN_JS_MAX_DEPTH / 8];
    char         space[TN_JS_SPACE];
} tn_js;

static void tn_js_init(tn_js *js)
{
    memset(js, 0, sizeof *js);
    js->key = js->text = js->space;
}

/* The next bytes. They must stay until tn_js_next has returned TN_JS_MORE; what
 * was not read of the last ones is forgotten. */
static void tn_js_feed(tn_js *js, const void *bytes, size_t len)
{
    tn_rd_over(&js->rd, bytes, len);
}

/* Has the whole value been read? Then only white space may follow. */
static TN_MAYBE_UNUSED bool tn_js_done(const tn_js *js) { return js->state == TN_JS_IN_DONE; }

static tn_js_event tn_js_fail(tn_js *js, tn_js_error error)
{
    js->state = TN_JS_FAILED;
    js->error = error;
    return TN_JS_ERROR;
}

static bool tn_js_in_object(const tn_js *js)
{
    unsigned i = js->level - 1u;
    return js->level != 0 && ((unsigned)js->is_object[i / 8] >> (i % 8) & 1u) != 0;
}

/* What the token may still take. */
static size_t tn_js_room(const tn_js *js)
{
    return (js->in_key ? (size_t)TN_JS_MAX_KEY : (size_t)TN_JS_SPACE) - js->fill;
}

/* Adds bytes to the token, all or none. */
static void tn_js_put(tn_js *js, const void *bytes, size_t len)
{
    if (js->skip != 0 || js->full) return;
    if (len > tn_js_room(js)) {
        js->full = true;
        js->cut_count++;
        return;
    }
    memcpy(js->space + js->fill, bytes, len);
    js->fill = (uint16_t)(js->fill + len);
}

/* Bytes of a character in UTF-8. */
static unsigned tn_js_code_len(uint32_t v)
{
    return v < 0x80 ? 1u : v < 0x800 ? 2u : v < 0x10000ul ? 3u : 4u;
}

/* Adds one character as UTF-8. */
static void tn_js_put_code(tn_js *js, uint32_t v)
{
    static const uint8_t lead[4] = { 0, 0xc0, 0xe0, 0xf0 };
    unsigned             n = tn_js_code_len(v), i = n;
    uint8_t              b[4];
    while (--i != 0) {
        b[i] = (uint8_t)(0x80u | (v & 0x3fu));
        v >>= 6;
    }
    b[0] = (uint8_t)(lead[n - 1] | v);
    tn_js_put(js, b, n);
}

/* Gives up on an unfinished character: U+FFFD for each of its bytes. */
static void tn_js_flush(tn_js *js)
{
    for (; js->pending != 0; js->pending--) tn_js_put_code(js, 0xfffd);
    js->high      = 0;
    js->code_left = 0;
}

/* A byte above 0x7f inside a string. */
static void tn_js_utf8(tn_js *js, uint8_t c)
{
    if ((c & 0xc0u) != 0x80u || js->code_left == 0) {
        tn_js_flush(js);
        js->code_left = c < 0xc0 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        js->code      = c & 0x7fu >> js->code_left;     /* f8 to ff: far above U+10FFFF   */
    } else {
        js->code = js->code << 6 | (c & 0x3fu);
        js->code_left--;
    }
    js->pending++;
    if (js->code_left != 0) return;
    /* no overlong form, no surrogate, not above U+10FFFF, and no lone byte 80 to bf */
    if (tn_js_code_len(js->code) == js->pending && js->pending > 1 && js->code >> 11 != 0x1b &&
        js->code < 0x110000ul) {
        js->pending = 0;
        tn_js_put_code(js, js->code);
    }
    tn_js_flush(js);
}

/* The four digits of \uXXXX are there. */
static void tn_js_unicode(tn_js *js)
{
    uint32_t code = js->code, kind = code >> 10;        /* 0x36 and 0x37 are surrogates */
    if (kind == 0x37 && js->high != 0) {
        code        = (uint32_t)0x10000ul + (((uint32_t)js->high & 0x3ffu) << 10) + (code & 0x3ffu);
        js->pending = 0;
    }
    tn_js_flush(js);
    if (kind == 0x36) {
        js->high    = (uint16_t)code;
        js->pending = 1;
    } else {
        tn_js_put_code(js, code >> 10 == 0x37 ? (uint32_t)0xfffd : code);
    }
}

static void tn_js_begin(tn_js *js, bool in_key)
{
    js->in_key = in_key;
    js->begin  = in_key ? (uint16_t)0 : js->key_len;
    js->fill   = js->begin;
    js->full   = false;
}

/* A value is complete: what may follow? */
static tn_js_event tn_js_value_end(tn_js *js, tn_js_event event)
{
    js->state = js->level == 0 ? TN_JS_IN_END : TN_JS_IN_AFTER;
    return event;
}

/* The token is complete: event says what it was. */
static TN_NOINLINE tn_js_event tn_js_token_end(tn_js *js, tn_js_event event)
{
    uint16_t len = (uint16_t)(js->fill - js->begin);
    if (js->in_key) {
        js->key_len = len;
        js->key_cut = js->full;
        js->state   = TN_JS_IN_COLON;
        return TN_JS_MORE;
    }
    js->text     = js->space + js->begin;
    js->text_len = len;
    js->text_cut = js->full;
    return tn_js_value_end(js, event);
}

static tn_js_event tn_js_open(tn_js *js, bool object)
{
    unsigned i = js->level;
    uint8_t  bit;
    if (i >= TN_JS_MAX_DEPTH) return tn_js_fail(js, TN_JS_TOO_DEEP);
    bit = (uint8_t)(1u << (i % 8));
    js->is_object[i / 8] = (uint8_t)(js->is_object[i / 8] | bit);
    if (!object) js->is_object[i / 8] = (uint8_t)(js->is_object[i / 8] ^ bit);
    js->level++;
    js->state = object ? TN_JS_IN_FIRST_KEY : TN_JS_IN_FIRST_VALUE;
    return object ? TN_JS_OBJECT : TN_JS_ARRAY;
}

/* The end of a skipped container is skipped as well. */
static tn_js_event tn_js_close(tn_js *js, bool object)
{
    bool last = js->skip == js->level;      /* level is not 0 here                */
    js->level--;
    js->depth   = js->level;
    js->key_len = 0;
    js->key_cut = false;
    if (last) js->skip = 0;
    return tn_js_value_end(js, last ? TN_JS_MORE : object ? TN_JS_OBJECT_END : TN_JS_ARRAY_END);
}

/* May a number go on with c? Then at says where it is. */
static bool tn_js_digit(uint8_t *at, uint8_t c)
{
    unsigned now = *at, next;
    bool     whole = now == TN_JS_INTEGER || now == TN_JS_ZERO;
    if (c >= '0' && c <= '9') {
        if (now == TN_JS_ZERO) return false;
        next = now == TN_JS_MINUS && c == '0' ? (unsigned)TN_JS_ZERO : now | 1u;
    } else if (c == '.' && whole) {
        next = TN_JS_POINT;
    } else if ((c == 'e' || c == 'E') && (whole || now == TN_JS_FRACTION)) {
        next = TN_JS_E;
    } else if ((c == '+' || c == '-') && now == TN_JS_E) {
        next = TN_JS_E_SIGN;
    } else {
        return false;
    }
    *at = (uint8_t)next;
    return true;
}

static const char tn_js_words[3][6] = { "true", "false", "null" };

/* The first byte of a value. */
static tn_js_event tn_js_value(tn_js *js, uint8_t c)
{
    if (!tn_js_in_object(js)) {
        js->key_len = 0;
        js->key_cut = false;
    }
    js->depth    = js->level;
    js->text_len = 0;
    js->text_cut = false;
    tn_js_begin(js, false);
    if (c == '{' || c == '[') return tn_js_open(js, c == '{');
    js->state = TN_JS_IN_STRING;
    if (c == '"') return TN_JS_MORE;
    js->state  = TN_JS_IN_NUMBER;
    js->digits = TN_JS_MINUS;
    if (c == '-' || tn_js_digit(&js->digits, c)) {
        tn_js_put(js, &c, 1);
        return TN_JS_MORE;
    }
    js->state   = TN_JS_IN_WORD;
    js->word_at = 1;
    for (js->word = 0; js->word < 3; js->word++)
        if (c == (uint8_t)tn_js_words[js->word][0]) return TN_JS_MORE;
    return tn_js_fail(js, TN_JS_BAD_SYNTAX);
}

/* A byte between the tokens. */
static tn_js_event tn_js_between(tn_js *js, uint8_t c)
{
    tn_js_state state = js->state;
    bool        first = state == TN_JS_IN_FIRST_KEY || state == TN_JS_IN_FIRST_VALUE;
    bool        object = tn_js_in_object(js);
    if (c == ' ' || c == '\n' || c == '\r' || c == '\t') return TN_JS_MORE;
    if ((state == TN_JS_IN_AFTER || first) && c == (object ? '}' : ']'))
        return tn_js_close(js, object);
    if (state == TN_JS_IN_VALUE || state == TN_JS_IN_FIRST_VALUE) return tn_js_value(js, c);
    if (state == TN_JS_IN_COLON && c == ':') {
        js->state = TN_JS_IN_VALUE;
    } else if (state == TN_JS_IN_AFTER && c == ',') {
        js->state = object ? TN_JS_IN_KEY : TN_JS_IN_VALUE;
    } else if ((state == TN_JS_IN_KEY || first) && c == '"') {
        js->state = TN_JS_IN_STRING;
        tn_js_begin(js, true);
    } else {
        return tn_js_fail(js, TN_JS_BAD_SYNTAX);
    }
    return TN_JS_MORE;
}

static tn_js_event tn_js_string(tn_js *js, uint8_t c)
{
    if (c >= 0x80) {
        tn_js_utf8(js, c);
        return TN_JS_MORE;
    }
    if (c != '\\' || js->high == 0) tn_js_flush(js);    /* a surrogate's half may follow */
    if (c == '"') return tn_js_token_end(js, TN_JS_STRING);
    if (c < 0x20) return tn_js_fail(js, TN_JS_BAD_SYNTAX);
    if (c == '\\') js->state = TN_JS_IN_ESCAPE;
    else           tn_js_put(js, &c, 1);
    return TN_JS_MORE;
}

static tn_js_event tn_js_escape(tn_js *js, uint8_t c)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    unsigned          i;
    if (c == 'u') {
        js->state     = TN_JS_IN_UNICODE;
        js->code      = 0;
        js->code_left = 4;
        return TN_JS_MORE;
    }
    tn_js_flush(js);
    js->state = TN_JS_IN_STRING;
    for (i = 0; from[i] != '\0'; i++) {
        if (c != (uint8_t)from[i]) continue;
        tn_js_put(js, &to[i], 1);
        return TN_JS_MORE;
    }
    return tn_js_fail(js, TN_JS_BAD_SYNTAX);
}

static tn_js_event tn_js_hex(tn_js *js, uint8_t c)
{
    int digit = tn_hex_digit(c);
    if (digit < 0) return tn_js_fail(js, TN_JS_BAD_SYNTAX);
    js->code = js->code << 4 | (uint32_t)digit;
    if (--js->code_left == 0) {
        js->state = TN_JS_IN_STRING;
        tn_js_unicode(js);
    }
    return TN_JS_MORE;
}

static tn_js_event tn_js_number(tn_js *js, uint8_t c)
{
    if (tn_js_digit(&js->digits, c)) {
        tn_js_put(js, &c, 1);
        return TN_JS_MORE;
    }
    if ((js->digits & 1u) == 0) return tn_js_fail(js, TN_JS_BAD_SYNTAX);
    js->rd.at--;                            /* it was read just now, and belongs  */
    js->rd.left++;                          /* to what follows                    */
    js->at--;
    return tn_js_token_end(js, TN_JS_NUMBER);
}

static tn_js_event tn_js_word(tn_js *js, uint8_t c)
{
    const char *word = tn_js_words[js->word];
    if (c != (uint8_t)word[js->word_at]) return tn_js_fail(js, TN_JS_BAD_SYNTAX);
    if (word[++js->word_at] != '\0') return TN_JS_MORE;
    return tn_js_value_end(js, (tn_js_event)((int)TN_JS_TRUE + js->word));
}

static TN_NOINLINE tn_js_event tn_js_step(tn_js *js, uint8_t c)
{
    switch (js->state) {
    case TN_JS_IN_STRING:  return tn_js_string(js, c);
    case TN_JS_IN_ESCAPE:  return tn_js_escape(js, c);
    case TN_JS_IN_UNICODE: return tn_js_hex(js, c);
    case TN_JS_IN_NUMBER:  return tn_js_number(js, c);
    case TN_JS_IN_WORD:    return tn_js_word(js, c);
    case TN_JS_IN_VALUE: case TN_JS_IN_FIRST_VALUE: case TN_JS_IN_KEY: case TN_JS_IN_FIRST_KEY:
    case TN_JS_IN_COLON: case TN_JS_IN_AFTER: case TN_JS_IN_END: case TN_JS_IN_DONE:
    case TN_JS_FAILED:     break;
    }
    return tn_js_between(js, c);
}

/* The plain characters at the front of the input go in at once, if there are any. */
static bool tn_js_plain(tn_js *js)
{
    const uint8_t *b = js->rd.at;
    size_t         n = 0, most = tn_js_room(js);        /* all or none: not past the end */
    if (most > js->rd.left) most = js->rd.left;
    while (n < most && b[n] >= 0x20 && b[n] < 0x80 && b[n] != '"' && b[n] != '\\') n++;
    if (n == 0 || js->pending != 0) return false;
    tn_js_put(js, tn_rd_bytes(&js->rd, n), n);
    js->at += (uint32_t)n;
    return true;
}

/* The next event. A string longer than the space comes with its beginning and
 * text_cut. */
static tn_js_event tn_js_next(tn_js *js)
{
    tn_js_event event = TN_JS_MORE;
    while (event == TN_JS_MORE && js->state != TN_JS_IN_END) {
        if (js->state == TN_JS_FAILED) return TN_JS_ERROR;
        if (js->rd.left == 0) break;
        if (js->state == TN_JS_IN_STRING && tn_js_plain(js)) continue;
        js->at++;
        event = tn_js_step(js, tn_rd_u8(&js->rd));
        if (js->skip != 0 && event > TN_JS_MORE) event = TN_JS_MORE;
    }
    if (event == TN_JS_MORE && js->state == TN_JS_IN_END) {
        js->state    = TN_JS_IN_DONE;
        js->text_len = 0;
        event        = TN_JS_END;
    }
    js->last = event;
    return event;
}

/* Right after TN_JS_OBJECT or TN_JS_ARRAY: leave out all of it, its end too.
 * After any other event it does nothing. */
static void tn_js_skip(tn_js *js)
{
    if (js->last == TN_JS_OBJECT || js->last == TN_JS_ARRAY) js->skip = js->level;
}

/* Does the event stand under this key? Never true for a key that was cut. */
static bool tn_js_is_key(const tn_js *js, const char *key)
{
    return !js->key_cut && tn_is(js->key, js->key_len, key);
}

/* Is the text exactly this word? */
static TN_MAYBE_UNUSED bool tn_js_is_text(const tn_js *js, const char *word)
{
    return !js->text_cut && tn_is(js->text, js->text_len, word);
}

/* A whole text as int64: no fraction, no exponent, in range. For numbers, and
 * for the decimal keys of Go's maps. */
static bool tn_js_int_text(const char *text, size_t len, int64_t *out)
{
    bool     minus = len != 0 && text[0] == '-';
    uint64_t v     = 0;
    size_t   i     = minus;
    if (i == len) return false;
    for (; i < len; i++) {
        unsigned d = (unsigned)(unsigned char)text[i] - '0';
        if (d > 9 || v > (uint64_t)INT64_MAX / 10) return false;
        v = v * 10 + d;
    }
    if (v > (uint64_t)INT64_MAX + minus) return false;
    if (minus) v = 0u - v;
    memcpy(out, &v, sizeof v);              /* int64_t is two's complement        */
    return true;
}

/* The number of a TN_JS_NUMBER, exactly. */
static bool tn_js_int(const tn_js *js, int64_t *out)
{
    return !js->text_cut && tn_js_int_text(js->text, js->text_len, out);
}

/* The key as a number: {"9007199254740993":true}. */
static TN_MAYBE_UNUSED bool tn_js_key_int(const tn_js *js, int64_t *out)
{
    return !js->key_cut && tn_js_int_text(js->key, js->key_len, out);
}

/* ---- the writer ---- */

/* The inside of a string: quotes, backslashes and controls escaped, all else as
 * it is. The text has to be UTF-8. */
static void tn_js_wr_escape(tn_wr *wr, const char *text, size_t len)
{
    size_t i;
    for (i = 0; i < len; i++) {
        uint8_t c = (uint8_t)text[i];
        if (c >= 0x20) {
            if (c == '"' || c == '\\') tn_wr_u8(wr, '\\');
            tn_wr_u8(wr, c);
        } else {
            tn_wr_text(wr, "\\u00");
            tn_wr_hex(wr, &c, 1);
        }
    }
}

/* A piece of JSON as it stands, with ' in place of ": so that it can be read here. */
static void tn_js_wr(tn_wr *wr, const char *piece)
{
    for (; *piece != '\0'; piece++) tn_wr_u8(wr, *piece == '\'' ? '"' : (unsigned char)*piece);
}

/* Such a piece, and a text as a string behind it. */
static void tn_js_wr_text(tn_wr *wr, const char *piece, const char *text)
{
    tn_js_wr(wr, piece);
    tn_wr_u8(wr, '"');
    tn_js_wr_escape(wr, text, strlen(text));
    tn_wr_u8(wr, '"');
}

/* Writes to wr, which may be a window. Only the commas are its business. */
typedef struct tn_js_w {
    tn_wr *wr;
    bool   comma;                           /* something stands before            */
} tn_js_w;

static TN_MAYBE_UNUSED void tn_js_w_init(tn_js_w *w, tn_wr *wr)
{
    w->wr    = wr;
    w->comma = false;
}

static TN_MAYBE_UNUSED void tn_js_w_before(tn_js_w *w)
{
    if (w->comma) tn_wr_u8(w->wr, ',');
    w->comma = true;
}

static TN_MAYBE_UNUSED void tn_js_w_open(tn_js_w *w, char c)
{
    tn_js_w_before(w);
    tn_wr_u8(w->wr, (unsigned char)c);
    w->comma = false;
}

static TN_MAYBE_UNUSED void tn_js_w_close(tn_js_w *w, char c)
{
    tn_wr_u8(w->wr, (unsigned char)c);
    w->comma = true;
}

static TN_MAYBE_UNUSED void tn_js_w_object(tn_js_w *w)     { tn_js_w_open(w, '{'); }
static TN_MAYBE_UNUSED void tn_js_w_object_end(tn_js_w *w) { tn_js_w_close(w, '}'); }
static TN_MAYBE_UNUSED void tn_js_w_array(tn_js_w *w)      { tn_js_w_open(w, '['); }
static TN_MAYBE_UNUSED void tn_js_w_array_end(tn_js_w *w)  { tn_js_w_close(w, ']'); }

static TN_MAYBE_UNUSED void tn_js_w_string(tn_js_w *w, const char *text, size_t len)
{
    tn_js_w_before(w);
    tn_wr_u8(w->wr, '"');
    tn_js_wr_escape(w->wr, text, len);
    tn_wr_u8(w->wr, '"');
}

static TN_MAYBE_UNUSED void tn_js_w_text(tn_js_w *w, const char *text)
{
    tn_js_w_string(w, text, strlen(text));
}

/* The name of a member; its value is the next thing written. */
static TN_MAYBE_UNUSED void tn_js_w_key(tn_js_w *w, const char *key)
{
    tn_js_w_text(w, key);
    tn_wr_u8(w->wr, ':');
    w->comma = false;
}

static TN_MAYBE_UNUSED void tn_js_w_uint(tn_js_w *w, uint64_t v)
{
    tn_js_w_before(w);
    tn_wr_dec(w->wr, v);
}

static TN_MAYBE_UNUSED void tn_js_w_int(tn_js_w *w, int64_t v)
{
    tn_js_w_before(w);
    if (v < 0) tn_wr_u8(w->wr, '-');
    tn_wr_dec(w->wr, v < 0 ? 0u - (uint64_t)v : (uint64_t)v);
}

static TN_MAYBE_UNUSED void tn_js_w_bool(tn_js_w *w, bool v)
{
    tn_js_w_before(w);
    tn_wr_text(w->wr, v ? "true" : "false");
}

static TN_MAYBE_UNUSED void tn_js_w_null(tn_js_w *w)
{
    tn_js_w_before(w);
    tn_wr_text(w->wr, "null");
}

/* A key as "nodekey:" and hex. */
static TN_MAYBE_UNUSED void tn_js_w_hex(tn_js_w *w, const char *prefix, const uint8_t *src,
                                        size_t len)
{
    tn_js_w_before(w);
    tn_wr_u8(w->wr, '"');
    tn_js_wr_escape(w->wr, prefix, strlen(prefix));
    tn_wr_hex(w->wr, src, len);
    tn_wr_u8(w->wr, '"');
}

/* Bytes, as Go writes a []byte. */
static TN_MAYBE_UNUSED void tn_js_w_base64(tn_js_w *w, const uint8_t *src, size_t len)
{
    tn_js_w_before(w);
    tn_wr_u8(w->wr, '"');
    tn_wr_base64(w->wr, src, len);
    tn_wr_u8(w->wr, '"');
}

/* Members in one line each, for the requests. */
static TN_MAYBE_UNUSED void tn_js_w_member(tn_js_w *w, const char *key, const char *text)
{
    tn_js_w_key(w, key);
    tn_js_w_text(w, text);
}

static TN_MAYBE_UNUSED void tn_js_w_member_uint(tn_js_w *w, const char *key, uint64_t v)
{
    tn_js_w_key(w, key);
    tn_js_w_uint(w, v);
}

static TN_MAYBE_UNUSED void tn_js_w_member_bool(tn_js_w *w, const char *key, bool v)
{
    tn_js_w_key(w, key);
    tn_js_w_bool(w, v);
}

static TN_MAYBE_UNUSED void tn_js_w_member_hex(tn_js_w *w, const char *key, const char *prefix,
                                               const uint8_t *src, size_t len)
{
    tn_js_w_key(w, key);
    tn_js_w_hex(w, prefix, src, len);
}

/* ======================================================================== *
 * >>http — HTTP/1.1 for the way in, HTTP/2 for what follows, the part of
 * HPACK that needs no table.
 *
 * Owns:    tn_h1: one message being read. tn_h2: one connection and its four
 *          streams. No buffer in either: pieces are handed on where they lie.
 * Calls:   >>base.
 * States:  h1: START -> NAME <-> VALUE -> one of the bodies -> END.
 *          h2: PREFACE (server) -> HEAD -> FIXED, DATA, BLOCK -> SKIP -> HEAD;
 *          from everywhere to FAILED, which is final.
 * Always:  the same bytes give the same events however they are cut. A reader
 *          never takes a byte behind its message. What must be answered is kept
 *          in counters and bits, so that no peer can make it grow.
 * Trust:   none. HTTP/1 comes from any proxy in between, HTTP/2 from a server
 *          that may be wrong or hostile. A form that two readers could read in
 *          two ways (RFC 9112 section 11.2) is refused.
 * ======================================================================== */

/* ---- HTTP/1.1: what is written ---- */

/* Whom a request is for. name has no brackets. A port equal to usual (that of the
 * scheme) or 0 is left out of Host. */
typedef struct tn_h1_host {
    const char *name;
    uint16_t    port;
    uint16_t    usual;
} tn_h1_host;

enum {
    TN_H1_HANDSHAKE = 136,                  /* base64 of the 101 bytes of a Noise initiation  */
    TN_H1_HEAD_MAX  = 8192,                 /* bytes of a start line and all header lines     */
    TN_H1_LINE_MAX  = 256,                  /* bytes of a chunk's size and its extensions     */
    TN_H1_TEXT      = TAILNET_SERVER ? 128 : 2,     /* a path, with its end                   */
    TN_H1_TOKEN     = 28                    /* the longest word that means something, and one */
};

/* Is the character one of this text? */
static bool tn_h1_has(const char *text, uint8_t c)
{
    while (*text != '\0' && (uint8_t)*text != c) text++;
    return *text != '\0';
}

/* Names come from a map or a user: one with a space or a line end in it would write
 * headers of its own. */
static bool tn_h1_clean(const char *text)
{
    const char *c;
    for (c = text; *c != '\0'; c++)
        if ((unsigned char)*c <= 0x20u || (unsigned char)*c >= 0x7fu) return false;
    return c != text;
}

static void tn_h1_build_authority(tn_wr *w, const tn_h1_host *host, bool with_port)
{
    bool literal = host->name[0] != '[' && tn_h1_has(host->name, ':');
    if (literal) tn_wr_u8(w, '[');
    tn_wr_text(w, host->name);
    if (literal) tn_wr_u8(w, ']');
    if (!with_port) return;
    tn_wr_u8(w, ':');
    tn_wr_dec(w, host->port);
}

/* "METHOD path HTTP/1.1" and Host. False, with nothing written, for an unclean text. */
static bool tn_h1_build_start(tn_wr *w, const char *method, const tn_h1_host *host,
                              const char *path)
{
    if (!tn_h1_clean(host->name) || !tn_h1_clean(path)) return false;
    tn_wr_text(w, method);
    tn_wr_u8(w, ' ');
    tn_wr_text(w, path);
    tn_wr_text(w, " HTTP/1.1\r\nHost: ");
    tn_h1_build_authority(w, host, host->port != 0 && host->port != host->usual);
    tn_wr_text(w, "\r\n");
    return true;
}

/* A request without body on a connection of its own: method is GET or HEAD. */
static bool tn_h1_build_bare(tn_wr *w, const char *method, const tn_h1_host *host,
                             const char *path)
{
    if (!tn_h1_build_start(w, method, host, path)) return false;
    tn_wr_text(w, "Connection: close\r\n\r\n");
    return true;
}

static bool tn_h1_build_get(tn_wr *w, const tn_h1_host *host, const char *path)
{
    return tn_h1_build_bare(w, "GET", host, path);
}

/* The upgrade to the control protocol (control/controlhttp/client.go). */
static bool tn_h1_build_ts2021(tn_wr *w, const tn_h1_host *host, const char *handshake)
{
    if (!tn_h1_build_start(w, "POST", host, "/ts2021")) return false;
    tn_wr_text(w, "Content-Length: 0\r\nConnection: upgrade\r\n"
                  "Upgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: ");
    tn_wr_bytes(w, handshake, TN_H1_HANDSHAKE);
    tn_wr_text(w, "\r\n\r\n");
    return true;
}

/* The upgrade to DERP (derp/derphttp). ideal_node is the first node of the region
 * when another one is asked, else NULL. */
static bool tn_h1_build_derp(tn_wr *w, const tn_h1_host *host, const char *ideal_node)
{
    if (ideal_node != NULL && !tn_h1_clean(ideal_node)) return false;
    if (!tn_h1_build_start(w, "GET", host, "/derp")) return false;
    tn_wr_text(w, "Connection: Upgrade\r\n");
    if (ideal_node != NULL) {
        tn_wr_text(w, "Ideal-Node: ");
        tn_wr_text(w, ideal_node);
        tn_wr_text(w, "\r\n");
    }
    tn_wr_text(w, "Upgrade: DERP\r\n\r\n");
    return true;
}

/* A tunnel through a proxy (RFC 9110 section 9.3.6). userinfo is "user:password" for
 * Basic credentials (RFC 7617), or NULL. */
static bool tn_h1_build_connect(tn_wr *w, const tn_h1_host *host, const char *userinfo)
{
    if (!tn_h1_clean(host->name)) return false;
    tn_wr_text(w, "CONNECT ");
    tn_h1_build_authority(w, host, true);
    tn_wr_text(w, " HTTP/1.1\r\nHost: ");
    tn_h1_build_authority(w, host, true);
    if (userinfo != NULL) {
        tn_wr_text(w, "\r\nProxy-Authorization: Basic ");
        tn_wr_base64(w, (const uint8_t *)userinfo, strlen(userinfo));
    }
    tn_wr_text(w, "\r\n\r\n");
    return true;
}

/* A server's consent to an upgrade. extra is whole header lines, or NULL. */
static TN_MAYBE_UNUSED void tn_h1_build_101(tn_wr *w, const char *upgrade, const char *extra)
{
    tn_wr_text(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ");
    tn_wr_text(w, upgrade);
    tn_wr_text(w, "\r\n");
    if (extra != NULL) tn_wr_text(w, extra);
    tn_wr_text(w, "\r\n");
}

static const char *tn_h1_reason(unsigned status)
{
    switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 426: return "Upgrade Required";
    case 500: return "Internal Server Error";
    }
    return "Unknown";
}

/* A server's whole answer. type NULL writes no Content-Type. */
static TN_MAYBE_UNUSED void tn_h1_build_answer(tn_wr *w, unsigned status, const char *type,
                                               const void *body, size_t len)
{
    tn_wr_text(w, "HTTP/1.1 ");
    tn_wr_dec(w, status);
    tn_wr_u8(w, ' ');
    tn_wr_text(w, tn_h1_reason(status));
    if (type != NULL) {
        tn_wr_text(w, "\r\nContent-Type: ");
        tn_wr_text(w, type);
    }
    if (status != 204) {                    /* RFC 9110 section 8.6: never with a 204     */
        tn_wr_text(w, "\r\nContent-Length: ");
        tn_wr_dec(w, len);
    }
    tn_wr_text(w, "\r\nConnection: close\r\n\r\n");
    if (len != 0) tn_wr_bytes(w, body, len);
}

/* ---- HTTP/1.1: what is read ---- */

typedef enum tn_h1_state {
    TN_H1_AT_NONE,
    TN_H1_AT_START,                         /* status line or request line                */
    TN_H1_AT_NAME,                          /* of a header, or the blank line             */
    TN_H1_AT_VALUE,
    TN_H1_AT_SIZED,                         /* a body of known length                     */
    TN_H1_AT_CLOSE,                         /* a body that ends with the connection       */
    TN_H1_AT_CHUNK_SIZE,
    TN_H1_AT_CHUNK,
    TN_H1_AT_CHUNK_END,                     /* the line end behind a chunk                */
    TN_H1_AT_TRAILER,
    TN_H1_AT_END,
    TN_H1_AT_BAD
} tn_h1_state;

typedef enum tn_h1_result {
    TN_H1_MORE,                             /* the input is used up                       */
    TN_H1_HEAD_DONE,                        /* and the input stands behind the blank line */
    TN_H1_BODY,                             /* a piece of it                              */
    TN_H1_DONE,                             /* the body is complete                       */
    TN_H1_BAD                               /* for ever                                   */
} tn_h1_result;

typedef enum tn_h1_method {
    TN_H1_OTHER, TN_H1_GET, TN_H1_HEAD, TN_H1_POST, TN_H1_CONNECT
} tn_h1_method;

/* What headers said. */
enum {
    TN_H1_UPGRADE       = 1,                /* Connection: upgrade                        */
    TN_H1_CLOSE         = 2,                /* Connection: close                          */
    TN_H1_TO_CONTROL    = 4,                /* Upgrade: tailscale-control-protocol        */
    TN_H1_TO_DERP       = 8,                /* Upgrade: derp                              */
    TN_H1_TO_WEBSOCKET  = 16,               /* Upgrade: websocket                         */
    TN_H1_FAST_START    = 32,               /* Derp-Fast-Start: 1                         */
    TN_H1_TEXT_CUT      = 64,               /* the path was too long                      */
    TN_H1_HANDSHAKE_CUT = 128,              /* X-Tailscale-Handshake was too long         */
    TN_H1_CHUNKED       = 256,
    TN_H1_OLD           = 512               /* HTTP/1.0                                   */
};

/* Headers that mean something, the last few to servers only. */
typedef enum tn_h1_field {
    TN_H1_NO_FIELD, TN_H1_UPGRADE_TO, TN_H1_CONTENT_LENGTH, TN_H1_TRANSFER_ENCODING, TN_H1_HOST,
    TN_H1_CONNECTION, TN_H1_RETRY_AFTER, TN_H1_X_HANDSHAKE,
    TN_H1_DERP_FAST_START
} tn_h1_field;
enum { TN_H1_FIELDS = TAILNET_SERVER ? TN_H1_DERP_FAST_START + 1 : TN_H1_HOST + 1 };

typedef struct tn_h1 {
    tn_h1_state  state;
    tn_h1_field  field;                     /* whose value is being read                  */
    tn_h1_method method;                    /* of a request                               */
    bool         is_request;
    bool         cr;                        /* a CR was read, LF must follow              */
    uint8_t      gap;                       /* in a value: 1 a word has ended, 2 it is cut */
    uint8_t      token_len;
    uint8_t      handshake_len;
    uint16_t     status;                    /* of a response                              */
    uint16_t     flags;
    uint16_t     seen;                      /* 1 << field                                 */
    uint16_t     taken;                     /* bytes of the head, of a chunk's line       */
    uint16_t     at;                        /* bytes of this line, or of its part         */
    uint16_t     text_len;
    uint32_t     left;                      /* bytes of the body or chunk to come         */
    uint32_t     retry_after_s;             /* 0: none, or a date                         */
    char        *handshake;                 /* for a server, or NULL                      */
    char         token[TN_H1_TOKEN];
    char         text[TN_H1_TEXT];          /* path of a request                          */
} tn_h1;

/* Only servers read requests. */
static bool tn_h1_asks(const tn_h1 *h) { return TAILNET_SERVER != 0 && h->is_request; }

/* The only writer of state; leaving BAD is impossible. */
static TN_NOINLINE void tn_h1_enter(tn_h1 *h, tn_h1_state next)
{
    TAILNET_ASSERT(h->state != TN_H1_AT_BAD || next == TN_H1_AT_BAD);
    h->state     = next;
    h->at        = 0;
    h->gap       = 0;
    h->token_len = 0;
}

/* A response comes next. */
static void tn_h1_begin_response(tn_h1 *h)
{
    memset(h, 0, sizeof *h);
    tn_h1_enter(h, TN_H1_AT_START);
}

/* Header fields come next, of a message whose first line has been read by others. */
static void tn_h1_begin_fields(tn_h1 *h)
{
    tn_h1_begin_response(h);
    h->status = 200;
    tn_h1_enter(h, TN_H1_AT_NAME);
}

/* A request comes next. X-Tailscale-Handshake goes to handshake, which has room for
 * 136 characters and their end, and outlives the reading; NULL: nobody wants it. */
static TN_MAYBE_UNUSED void tn_h1_begin_request(tn_h1 *h, char *handshake)
{
    tn_h1_begin_response(h);
    h->is_request = true;
    h->handshake  = handshake;
    if (handshake != NULL) handshake[0] = '\0';
}

/* One character of the word being read, in lower case; too long is remembered. */
static void tn_h1_token_add(tn_h1 *h, uint8_t c)
{
    if (h->token_len == TN_H1_TOKEN) return;
    h->token[h->token_len++] = (char)(c >= 'A' && c <= 'Z' ? c | 0x20u : c);
}

static TN_NOINLINE bool tn_h1_token_is(const tn_h1 *h, const char *word)
{
    return h->gap < 2 && h->token_len < TN_H1_TOKEN && tn_is(h->token, h->token_len, word);
}

/* The path; what does not fit is cut and flagged. */
static void tn_h1_text_add(tn_h1 *h, uint8_t c)
{
    if (h->text_len < TN_H1_TEXT - 1) h->text[h->text_len++] = (char)c;
    else                              h->flags |= TN_H1_TEXT_CUT;
}

/* "HTTP/1." and a digit, one character at a time. */
static bool tn_h1_version(tn_h1 *h, unsigned at, uint8_t c)
{
    static const char want[] = "HTTP/1.";
    if (at < 7) return c == (uint8_t)want[at];
    if (c == '0') h->flags |= TN_H1_OLD;
    return at == 7 && c >= '0' && c <= '9';
}

/* "HTTP/1.1 200 OK"; the text behind the number means nothing and may be missing. */
static bool tn_h1_status_line(tn_h1 *h, uint8_t c)
{
    unsigned at = h->at;
    if (at < 13) h->at++;
    if (at < 8) return tn_h1_version(h, at, c);
    if (at == 8 || at == 12) return c == ' ';
    if (at > 12) return c >= 0x20u || c == '\t';
    if (c < '0' || c > '9') return false;
    h->status = (uint16_t)(h->status * 10u + (unsigned)(c - '0'));
    return true;
}

/* "GET /path HTTP/1.1": the word, then the path, then the version. */
static bool tn_h1_request_line(tn_h1 *h, uint8_t c)
{
    if (h->gap == 2) return tn_h1_version(h, h->at++, c);
    if (c <= 0x20u || c >= 0x7fu) {
        if (c != ' ' || (h->gap == 0 ? h->token_len == 0 : h->at == 0)) return false;
        h->gap++;
        h->at = 0;
        return true;
    }
    if (h->gap == 0) {
        if (h->token_len == TN_H1_TOKEN) return false;
        h->token[h->token_len++] = (char)c;  /* methods are case-sensitive                 */
        return true;
    }
    h->at = 1;
    tn_h1_text_add(h, c);
    return true;
}

static bool tn_h1_start_end(tn_h1 *h)
{
    if (!tn_h1_asks(h)) return h->at >= 12 && h->status >= 100;
    if (h->gap != 2 || h->at != 8) return false;
    if (tn_is(h->token, h->token_len, "GET"))          h->method = TN_H1_GET;
    else if (tn_is(h->token, h->token_len, "HEAD"))    h->method = TN_H1_HEAD;
    else if (tn_is(h->token, h->token_len, "POST"))    h->method = TN_H1_POST;
    else if (tn_is(h->token, h->token_len, "CONNECT")) h->method = TN_H1_CONNECT;
    return true;
}

/* Which header is this? Anything that frames the body may stand there only once. */
static bool tn_h1_name_end(tn_h1 *h)
{
    static const char *const names[TN_H1_FIELDS] = {
        "", "upgrade", "content-length", "transfer-encoding", "host",
#if TAILNET_SERVER
        "connection", "retry-after", "x-tailscale-handshake", "derp-fast-start"
#endif
    };
    unsigned i;
    if (h->token_len == 0) return false;
    h->field = TN_H1_NO_FIELD;
    for (i = 1; i < TN_H1_FIELDS; i++)
        if (tn_h1_token_is(h, names[i])) h->field = (tn_h1_field)i;
    if (h->field >= TN_H1_CONTENT_LENGTH && h->field != TN_H1_CONNECTION) {
        if (((unsigned)h->seen >> h->field & 1u) != 0) return false;
        h->seen = (uint16_t)(h->seen | 1u << h->field);
    }
    tn_h1_enter(h, TN_H1_AT_VALUE);
    return true;
}

/* Characters of a name are those of a token (RFC 9110 section 5.6.2). A space before the
 * colon or at the start of a line (obs-fold) is none, and ends the connection. */
static bool tn_h1_name(tn_h1 *h, uint8_t c)
{
    uint8_t low = (uint8_t)(c | 0x20u);
    if (c == ':') return tn_h1_name_end(h);
    if (!(low >= 'a' && low <= 'z') && !(c >= '0' && c <= '9') && !tn_h1_has("!#$%&'*+-.^_`|~", c))
        return false;
    tn_h1_token_add(h, c);
    return true;
}

/* One word of a list, or a value that is one word. False: it frames the body, and not
 * in a way that we can follow. */
static bool tn_h1_word_end(tn_h1 *h)
{
    static const struct {
        uint16_t    field, flag;
        const char *word;
    } known[] = {
#if TAILNET_SERVER
        { TN_H1_CONNECTION,        TN_H1_UPGRADE,      "upgrade" },
        { TN_H1_CONNECTION,        TN_H1_CLOSE,        "close" },
        { TN_H1_UPGRADE_TO,        TN_H1_TO_DERP,      "derp" },
        { TN_H1_UPGRADE_TO,        TN_H1_TO_WEBSOCKET, "websocket" },
        { TN_H1_DERP_FAST_START,   TN_H1_FAST_START,   "1" },
#endif
        { TN_H1_UPGRADE_TO,        TN_H1_TO_CONTROL,   "tailscale-control-protocol" },
        { TN_H1_TRANSFER_ENCODING, TN_H1_CHUNKED,      "chunked" }
    };
    uint32_t v   = 0;
    unsigned old = h->flags, i;
    bool     number;
    for (i = 0; i < sizeof known / sizeof known[0]; i++)
        if (known[i].field == h->field && tn_h1_token_is(h, known[i].word))
            h->flags |= known[i].flag;
    number = h->gap < 2 && h->token_len < TN_H1_TOKEN &&
             tn_u32_parse(h->token, h->token_len, UINT32_MAX, &v);
    if (h->field == TN_H1_CONTENT_LENGTH) {
        if (!number) return false;
        h->left = v;
    }
    if (h->field == TN_H1_TRANSFER_ENCODING && h->flags == old) return false;
    if (TAILNET_SERVER != 0 && h->field == TN_H1_RETRY_AFTER && number)
        h->retry_after_s = (uint32_t)v;
    h->token_len = 0;
    h->gap       = 0;
    return true;
}

static bool tn_h1_value(tn_h1 *h, uint8_t c)
{
    bool space = c == ' ' || c == '\t';
    if ((c < 0x20u && !space) || c == 0x7fu) return false;
    if (TAILNET_SERVER != 0 && h->field == TN_H1_X_HANDSHAKE) {
        if (space) return true;
        if (h->handshake_len == TN_H1_HANDSHAKE) h->flags |= TN_H1_HANDSHAKE_CUT;
        else if (h->handshake != NULL)           h->handshake[h->handshake_len++] = (char)c;
    } else if (c == ',' && h->field != TN_H1_CONTENT_LENGTH) {
        return tn_h1_word_end(h);           /* "4, 4" is refused as a length              */
    } else if (space) {
        if (h->token_len != 0 && h->gap == 0) h->gap = 1;
    } else {
        if (h->gap == 1) h->gap = 2;        /* two words without a comma are none         */
        tn_h1_token_add(h, c);
    }
    return true;
}

static bool tn_h1_value_end(tn_h1 *h)
{
    if (!tn_h1_word_end(h)) return false;
    tn_h1_enter(h, TN_H1_AT_NAME);
    return true;
}

/* The blank line: how long is the body (RFC 9112 section 6.3)? */
static bool tn_h1_head_end(tn_h1 *h)
{
    bool sized = ((unsigned)h->seen >> TN_H1_CONTENT_LENGTH & 1u) != 0;
    bool coded = ((unsigned)h->seen >> TN_H1_TRANSFER_ENCODING & 1u) != 0;
    bool old   = (h->flags & TN_H1_OLD) != 0;
    if (coded && (sized || old)) return false;
    if (tn_h1_asks(h) && !old && ((unsigned)h->seen >> TN_H1_HOST & 1u) == 0) return false;
    if (!tn_h1_asks(h) && h->status < 200 && h->status != 101) {
        uint16_t taken = h->taken;          /* one limit for all of them together         */
        tn_h1_begin_response(h);
        h->taken = taken;
        return true;
    }
    if (TAILNET_SERVER != 0) h->text[h->text_len] = '\0';
    if (TAILNET_SERVER != 0 && h->handshake != NULL) h->handshake[h->handshake_len] = '\0';
    if (!tn_h1_asks(h) && (h->status < 200 || h->status == 204 || h->status == 304))
        tn_h1_enter(h, TN_H1_AT_END);
    else if (coded)
        tn_h1_enter(h, TN_H1_AT_CHUNK_SIZE);
    else if (!sized && !tn_h1_asks(h))
        tn_h1_enter(h, TN_H1_AT_CLOSE);
    else
        tn_h1_enter(h, h->left == 0 ? TN_H1_AT_END : TN_H1_AT_SIZED);
    h->taken = 0;
    if (!sized) h->left = 0;
    return true;
}

/* The part that all lines have in common: CR LF ends them, and neither stands alone.
 * Returns 1 at the end of a line, 0 inside, -1 for a broken one. */
static int tn_h1_line(tn_h1 *h, uint8_t c)
{
    if (h->cr) {
        h->cr = false;
        return c == '\n' ? 1 : -1;
    }
    h->cr = c == '\r';
    return c == '\n' ? -1 : 0;
}

static TN_NOINLINE bool tn_h1_head_byte(tn_h1 *h, uint8_t c)
{
    int end = tn_h1_line(h, c);
    if (end < 0 || h->taken++ == TN_H1_HEAD_MAX) return false;
    if (end == 0 && h->cr) return true;
    if (h->state == TN_H1_AT_START) {
        if (end == 0) return tn_h1_asks(h) ? tn_h1_request_line(h, c) : tn_h1_status_line(h, c);
        if (!tn_h1_start_end(h)) return false;
        tn_h1_enter(h, TN_H1_AT_NAME);
        return true;
    }
    if (h->state == TN_H1_AT_VALUE) return end == 0 ? tn_h1_value(h, c) : tn_h1_value_end(h);
    if (end == 0) return tn_h1_name(h, c);
    return h->token_len == 0 && tn_h1_head_end(h);
}

/* Reads the head. Behind HEAD_DONE the input stands on the first byte of what follows:
 * a body, or the protocol that was changed to. Interim answers (100, 103) are skipped. */
static tn_h1_result tn_h1_head(tn_h1 *h, tn_rd *in)
{
    while (h->state != TN_H1_AT_BAD && h->state != TN_H1_AT_NONE) {
        if (h->state > TN_H1_AT_VALUE) return TN_H1_HEAD_DONE;
        if (in->left == 0) return TN_H1_MORE;
        if (!tn_h1_head_byte(h, tn_rd_u8(in))) tn_h1_enter(h, TN_H1_AT_BAD);
    }
    return TN_H1_BAD;
}

/* "1a;name=value" */
static bool tn_h1_chunk_size(tn_h1 *h, uint8_t c, bool end)
{
    int digit = h->gap == 0 ? tn_hex_digit(c) : -1;
    if (end) {
        if (h->at == 0) return false;
        tn_h1_enter(h, h->left == 0 ? TN_H1_AT_TRAILER : TN_H1_AT_CHUNK);
        h->taken = 0;
        return true;
    }
    if (digit >= 0) {
        if (h->at == 8) return false;
        h->left = h->left << 4 | (uint32_t)digit;
        h->at++;
        return true;
    }
    if (c < 0x20u && c != '\t') return false;
    if (c == ';') h->gap = 2;               /* extensions mean nothing to us              */
    if (h->gap == 2) return true;
    h->gap = 1;                             /* only spaces may come between               */
    return c == ' ' || c == '\t';
}

/* Everything between the chunks. */
static bool tn_h1_chunk_byte(tn_h1 *h, uint8_t c)
{
    int      end   = tn_h1_line(h, c);
    unsigned limit = h->state == TN_H1_AT_TRAILER ? (unsigned)TN_H1_HEAD_MAX
                                                  : (unsigned)TN_H1_LINE_MAX;
    if (end < 0 || h->taken++ == limit) return false;
    if (end == 0 && h->cr) return true;
    if (h->state == TN_H1_AT_CHUNK_SIZE) return tn_h1_chunk_size(h, c, end == 1);
    if (h->state == TN_H1_AT_CHUNK_END) {
        h->taken = 0;
        tn_h1_enter(h, TN_H1_AT_CHUNK_SIZE);
        return end == 1;
    }
    if (end == 0) {
        h->at = 1;                          /* a trailer, which nobody reads              */
    } else {
        tn_h1_enter(h, h->at == 0 ? TN_H1_AT_END : TN_H1_AT_TRAILER);
    }
    return true;
}

/* As much of the body as lies there. */
static tn_h1_result tn_h1_piece(tn_h1 *h, tn_rd *in, const uint8_t **piece, size_t *len)
{
    size_t n = in->left;
    if (h->state != TN_H1_AT_CLOSE) {
        if (n > h->left) n = (size_t)h->left;
        h->left -= (uint32_t)n;
        if (h->left == 0)
            tn_h1_enter(h, h->state == TN_H1_AT_SIZED ? TN_H1_AT_END : TN_H1_AT_CHUNK_END);
    }
    *piece = tn_rd_bytes(in, n);
    *len   = n;
    return TN_H1_BODY;
}

/* Behind HEAD_DONE: the next piece of the body where it lies, or what else is. Not to be
 * called for the answer to HEAD or CONNECT, whose head does not say that it is all. */
static tn_h1_result tn_h1_body(tn_h1 *h, tn_rd *in, const uint8_t **piece, size_t *len)
{
    *piece = NULL;
    *len   = 0;
    for (;;) {
        switch (h->state) {
        case TN_H1_AT_NONE: case TN_H1_AT_START: case TN_H1_AT_NAME: case TN_H1_AT_VALUE:
        case TN_H1_AT_BAD:
            return TN_H1_BAD;
        case TN_H1_AT_END:
            return TN_H1_DONE;
        case TN_H1_AT_SIZED: case TN_H1_AT_CLOSE: case TN_H1_AT_CHUNK:
            return in->left == 0 ? TN_H1_MORE : tn_h1_piece(h, in, piece, len);
        case TN_H1_AT_CHUNK_SIZE: case TN_H1_AT_CHUNK_END: case TN_H1_AT_TRAILER:
            if (in->left == 0) return TN_H1_MORE;
            if (!tn_h1_chunk_byte(h, tn_rd_u8(in))) tn_h1_enter(h, TN_H1_AT_BAD);
            break;
        }
    }
}

/* The connection has ended. Was that a proper end of the message? */
static TN_MAYBE_UNUSED bool tn_h1_closed(const tn_h1 *h)
{
    return h->state == TN_H1_AT_END || h->state == TN_H1_AT_CLOSE;
}

/* ---- HPACK without a table (RFC 7541) ----
 *
 * We announce a table of size 0. Then nothing that comes later depends on a header that
 * came before: all but three headers are skipped by length, Huffman-coded or not. */

enum {
    TN_HP_BLOCK_MAX = 16384,                /* bytes of one header block                  */
    TN_HP_STATIC    = 61                    /* entries of the static table                */
};

typedef enum tn_hp_state {
    TN_HP_FIELD,                            /* the first byte of a field                  */
    TN_HP_LEN,                              /* the first byte of a string                 */
    TN_HP_INT,                              /* further bytes of an integer                */
    TN_HP_NAME,
    TN_HP_VALUE
} tn_hp_state;

/* What an integer is. */
typedef enum tn_hp_kind {
    TN_HP_INDEXED, TN_HP_LITERAL, TN_HP_TABLE_SIZE, TN_HP_NAME_LEN, TN_HP_VALUE_LEN
} tn_hp_kind;

typedef enum tn_hp_header {
    TN_HP_OTHER, TN_HP_STATUS, TN_HP_RETRY_AFTER, TN_HP_LENGTH
} tn_hp_header;

typedef struct tn_hp {
    tn_hp_state  state;
    tn_hp_kind   kind;
    tn_hp_header header;
    bool         huffman;
    bool         malformed;                 /* decodes, but is no response (RFC 9113 8.3) */
    bool         any;                       /* a field has come                           */
    bool         regular;                   /* one that is no pseudo-header has come      */
    bool         numeric;                   /* the value is digits so far                 */
    uint8_t      digits;
    uint8_t      shift;
    uint8_t      bit_count;
    uint8_t      name_len;                  /* as far as it is kept                       */
    uint16_t     bits;
    uint16_t     status;                    /* 0: none                                    */
    uint32_t     number;                    /* the integer; bytes left of the string      */
    uint32_t     value;
    uint32_t     retry_after_s;             /* 0: none, or a date                         */
    uint32_t     length;                    /* TN_H2_UNKNOWN: none                        */
    char         name[15];                  /* as sent; longer than any that we know      */
} tn_hp;

#define TN_H2_UNKNOWN UINT32_MAX

static void tn_hp_begin(tn_hp *p)
{
    memset(p, 0, sizeof *p);
    p->length = TN_H2_UNKNOWN;
}

/* The numbers of the static table that interest us (RFC 7541 appendix A). */
static tn_hp_header tn_hp_static(tn_hp *p, uint32_t index)
{
    if (index < 8) p->malformed = true;     /* a request's pseudo-header                  */
    if (index < 15) return TN_HP_STATUS;
    p->regular = true;
    return index == 28 ? TN_HP_LENGTH : index == 53 ? TN_HP_RETRY_AFTER : TN_HP_OTHER;
}

/* Names that a server spells out although the static table has them. The Huffman forms
 * are fixed: an encoder has no choice of code. */
static const struct tn_hp_known {
    uint8_t header;
    uint8_t huffman;
    uint8_t len;
    char    bytes[15];
} tn_hp_names[6] = {
    { TN_HP_STATUS,      0, 7,  ":status" },
    { TN_HP_RETRY_AFTER, 0, 11, "retry-after" },
    { TN_HP_LENGTH,      0, 14, "content-length" },
    { TN_HP_STATUS,      1, 5,  "\xb8\x84\x8d\x36\xa3" },
    { TN_HP_RETRY_AFTER, 1, 8,  "\xb0\xa9\xb3\xd2\xc3\x95\x25\xb3" },
    { TN_HP_LENGTH,      1, 10, "\x21\xea\x49\x6a\x4a\xd4\x16\xa9\x93\x3f" }
};

/* ':' begins a pseudo-header, in Huffman code 1011100; capitals are forbidden. */
static void tn_hp_name(tn_hp *p, uint8_t c)
{
    if (p->name_len == 0) {
        bool pseudo = p->huffman ? c >> 1 == 0x5c : c == ':';
        if (pseudo && p->regular) p->malformed = true;
        if (!pseudo) p->regular = true;
    }
    if (!p->huffman && c >= 'A' && c <= 'Z') p->malformed = true;
    if (p->name_len < sizeof p->name) p->name[p->name_len++] = (char)c;
}

static void tn_hp_name_end(tn_hp *p)
{
    unsigned i;
    p->header = TN_HP_OTHER;
    for (i = 0; i < 6; i++) {
        const struct tn_hp_known *n = &tn_hp_names[i];
        if ((n->huffman != 0) == p->huffman && n->len == p->name_len &&
            memcmp(n->bytes, p->name, n->len) == 0)
            p->header = (tn_hp_header)n->header;
    }
    if (p->header == TN_HP_OTHER && !p->regular) p->malformed = true;
    p->kind  = TN_HP_VALUE_LEN;
    p->state = TN_HP_LEN;
}

static void tn_hp_digit(tn_hp *p, unsigned digit)
{
    if (digit > 9 || p->digits == 9) {      /* nine digits are 31 years, or a gigabyte    */
        p->numeric = false;
        return;
    }
    p->value = p->value * 10 + digit;
    p->digits++;
}

/* Digits are the shortest Huffman codes but for some letters: 0, 1, 2 are the 5-bit codes
 * of that value, 3 to 9 the 6-bit codes 25 to 31. Everything else is no number. */
static void tn_hp_digits(tn_hp *p, uint8_t c)
{
    if (!p->huffman) {
        tn_hp_digit(p, (unsigned)c - '0');
        return;
    }
    p->bits      = (uint16_t)((unsigned)p->bits << 8 | c);
    p->bit_count = (uint8_t)(p->bit_count + 8);
    while (p->bit_count >= 5 && p->numeric) {
        unsigned five = (unsigned)p->bits >> (p->bit_count - 5) & 31u, six;
        if (five <= 2) {
            tn_hp_digit(p, five);
            p->bit_count = (uint8_t)(p->bit_count - 5);
            continue;
        }
        if (p->bit_count < 6) return;
        six = (unsigned)p->bits >> (p->bit_count - 6) & 63u;
        if (six < 25 || six > 31) {
            if (p->bit_count >= 8) p->numeric = false;      /* too long to be padding     */
            return;
        }
        tn_hp_digit(p, six - 22);
        p->bit_count = (uint8_t)(p->bit_count - 6);
    }
}

static void tn_hp_value_end(tn_hp *p)
{
    unsigned ones = (1u << p->bit_count) - 1u;
    if (p->huffman && (p->bit_count > 7 || (p->bits & ones) != ones)) p->numeric = false;
    if (p->digits == 0) p->numeric = false;
    switch (p->header) {
    case TN_HP_STATUS:
        if (!p->numeric || p->digits != 3 || p->value < 100 || p->status != 0 || p->regular)
            p->malformed = true;
        else
            p->status = (uint16_t)p->value;
        break;
    case TN_HP_RETRY_AFTER:
        if (p->numeric) p->retry_after_s = p->value;
        break;
    case TN_HP_LENGTH:
        if (p->length != TN_H2_UNKNOWN && p->numeric && p->length != p->value)
            p->malformed = true;
        if (p->numeric) p->length = p->value;
        break;
    case TN_HP_OTHER:
        break;
    }
    p->state = TN_HP_FIELD;
}

/* A field that the static table has whole. */
static bool tn_hp_indexed(tn_hp *p, uint32_t index)
{
    static const uint16_t statuses[7] = { 200, 204, 206, 304, 400, 404, 500 };
    if (index == 0 || index > TN_HP_STATIC) return false;
    if (tn_hp_static(p, index) == TN_HP_STATUS) {
        if (p->status != 0 || p->regular || index < 8) p->malformed = true;
        else p->status = statuses[index - 8];
    }
    p->state = TN_HP_FIELD;
    return true;
}

/* An integer is complete. False: COMPRESSION_ERROR. */
static bool tn_hp_number(tn_hp *p)
{
    switch (p->kind) {
    case TN_HP_TABLE_SIZE:                  /* only in front, only down to what we allow  */
        p->state = TN_HP_FIELD;
        return !p->any && p->number == 0;
    case TN_HP_INDEXED:
        p->any = true;
        return tn_hp_indexed(p, p->number);
    case TN_HP_LITERAL:
        p->any = true;
        if (p->number > TN_HP_STATIC) return false;
        p->kind = p->number == 0 ? TN_HP_NAME_LEN : TN_HP_VALUE_LEN;
        if (p->number != 0) p->header = tn_hp_static(p, p->number);
        p->state = TN_HP_LEN;
        return true;
    case TN_HP_NAME_LEN:
        p->name_len = 0;
        p->state    = TN_HP_NAME;
        if (p->number == 0) tn_hp_name_end(p);
        break;
    case TN_HP_VALUE_LEN:
        p->value     = 0;
        p->digits    = 0;
        p->bits      = 0;
        p->bit_count = 0;
        p->numeric   = true;
        p->state     = TN_HP_VALUE;
        if (p->number == 0) tn_hp_value_end(p);
        break;
    }
    return p->number <= TN_HP_BLOCK_MAX;
}

/* The first byte of an integer (RFC 7541 section 5.1) under a mask of ones. */
static bool tn_hp_prefix(tn_hp *p, tn_hp_kind kind, uint8_t c, uint8_t mask)
{
    p->kind   = kind;
    p->number = (uint32_t)(c & mask);
    p->shift  = 0;
    p->state  = TN_HP_INT;
    return p->number < mask ? tn_hp_number(p) : true;
}

static TN_NOINLINE bool tn_hp_byte(tn_hp *p, uint8_t c)
{
    switch (p->state) {
    case TN_HP_FIELD:
        if ((c & 0x80u) != 0) return tn_hp_prefix(p, TN_HP_INDEXED, c, 0x7f);
        if ((c & 0x40u) != 0) return tn_hp_prefix(p, TN_HP_LITERAL, c, 0x3f);
        if ((c & 0x20u) != 0) return tn_hp_prefix(p, TN_HP_TABLE_SIZE, c, 0x1f);
        return tn_hp_prefix(p, TN_HP_LITERAL, c, 0x0f);
    case TN_HP_LEN:
        p->huffman = (c & 0x80u) != 0;
        return tn_hp_prefix(p, p->kind, c, 0x7f);
    case TN_HP_INT:
        if (p->shift > 21) return false;
        p->number += (uint32_t)(c & 0x7fu) << p->shift;
        p->shift = (uint8_t)(p->shift + 7);
        return (c & 0x80u) != 0 ? true : tn_hp_number(p);
    case TN_HP_NAME:
        tn_hp_name(p, c);
        if (--p->number == 0) tn_hp_name_end(p);
        return true;
    case TN_HP_VALUE:
        if (p->header != TN_HP_OTHER && p->numeric) tn_hp_digits(p, c);
        if (--p->number == 0) tn_hp_value_end(p);
        return true;
    }
    return false;
}

/* A piece of a header block, of any length. False: COMPRESSION_ERROR. */
static bool tn_hp_feed(tn_hp *p, const uint8_t *src, size_t len)
{
    size_t i;
    for (i = 0; i < len; i++)
        if (!tn_hp_byte(p, src[i])) return false;
    return true;
}

/* The block is over. Is that the end of a field? */
static bool tn_hp_end(const tn_hp *p) { return p->state == TN_HP_FIELD; }

/* An integer with its first byte's other bits. */
static void tn_hp_wr_int(tn_wr *w, unsigned high, uint32_t mask, uint32_t v)
{
    if (v < mask) {
        tn_wr_u8(w, high | (unsigned)v);
        return;
    }
    tn_wr_u8(w, high | (unsigned)mask);
    for (v -= mask; v >= 128; v >>= 7) tn_wr_u8(w, (unsigned)(v & 127u) | 128u);
    tn_wr_u8(w, (unsigned)v);
}

static void tn_hp_wr_string(tn_wr *w, const char *text)
{
    size_t len = strlen(text);
    tn_hp_wr_int(w, 0, 127, (uint32_t)len);
    tn_wr_bytes(w, text, len);
}

/* A literal field that enters no table, its name from the static table. */
static void tn_hp_wr_field(tn_wr *w, uint32_t index, const char *value)
{
    tn_hp_wr_int(w, 0, 15, index);
    tn_hp_wr_string(w, value);
}

static void tn_hp_wr_number(tn_wr *w, uint32_t index, uint32_t value)
{
    char  text[11];
    tn_wr t;
    tn_wr_over(&t, text, sizeof text);
    tn_wr_dec(&t, value);
    tn_wr_u8(&t, 0);
    tn_hp_wr_field(w, index, text);
}

/* ---- HTTP/2 (RFC 9113) ---- */

enum { TN_H2_STREAMS = 4, TN_H2_FRAME_HEAD = 9 };
#define TN_H2_WINDOW     ((int32_t)1 << 20)  /* of the connection and of each stream       */
#define TN_H2_RAISE      983041ul           /* from the 65,535 a connection begins with   */
#define TN_H2_FRAME_MAX  16384ul            /* the smallest limit one may announce        */
#define TN_H2_NO_LENGTH  UINT32_MAX
#define TN_H2_ID_MAX     0x7ffffffful

/* Numbers that no honest peer reaches. */
enum {
    TN_H2_ACKS_MAX   = 8,                   /* SETTINGS that wait for our answer          */
    TN_H2_EMPTY_MAX  = 100,                 /* frames in a row that bring nothing         */
    TN_H2_RESETS_MAX = 100                  /* requests taken back, less those completed  */
};

typedef enum tn_h2_role { TN_H2_CLIENT, TN_H2_SERVER } tn_h2_role;

/* RFC 9113 section 7. */
enum {
    TN_H2_NO_ERROR = 0, TN_H2_PROTOCOL_ERROR = 1, TN_H2_FLOW_CONTROL_ERROR = 3,
    TN_H2_STREAM_CLOSED = 5, TN_H2_FRAME_SIZE_ERROR = 6, TN_H2_REFUSED_STREAM = 7,
    TN_H2_CANCEL = 8, TN_H2_COMPRESSION_ERROR = 9, TN_H2_ENHANCE_YOUR_CALM = 11
};

/* Frame types (section 6) and flags. */
enum {
    TN_H2_T_DATA, TN_H2_T_HEADERS, TN_H2_T_PRIORITY, TN_H2_T_RST_STREAM, TN_H2_T_SETTINGS,
    TN_H2_T_PUSH_PROMISE, TN_H2_T_PING, TN_H2_T_GOAWAY, TN_H2_T_WINDOW_UPDATE,
    TN_H2_T_CONTINUATION, TN_H2_TYPES
};
enum {
    TN_H2_F_ACK = 1, TN_H2_F_END_STREAM = 1, TN_H2_F_END_HEADERS = 4, TN_H2_F_PADDED = 8,
    TN_H2_F_PRIORITY = 32
};

typedef enum tn_h2_state {
    TN_H2_AT_NONE,
    TN_H2_AT_PREFACE,                       /* a server waits for the client's 24 bytes   */
    TN_H2_AT_HEAD,                          /* the nine bytes of a frame                  */
    TN_H2_AT_FIXED,                         /* a payload of known form, or its first part */
    TN_H2_AT_DATA,
    TN_H2_AT_BLOCK,                         /* a piece of a header block                  */
    TN_H2_AT_SKIP,                          /* padding, and what nobody reads             */
    TN_H2_FAILED_FOR_GOOD
} tn_h2_state;

/* What may be due to the peer. */
enum { TN_H2_DUE_FIRST = 1, TN_H2_DUE_PONG = 2, TN_H2_DUE_PING = 4, TN_H2_DUE_GOAWAY = 8 };

/* What has happened on the connection. */
enum {
    TN_H2_GREETED    = 1,                   /* the peer's first SETTINGS came             */
    TN_H2_ACKED      = 2,                   /* our SETTINGS were acknowledged             */
    TN_H2_LEAVING    = 4                    /* GOAWAY came: no new streams                */
};

/* What has happened on a stream. */
enum { TN_H2_SENT_ALL = 1, TN_H2_GOT_ALL = 2, TN_H2_GOT_HEAD = 4, TN_H2_RESET_DUE = 8 };

typedef struct tn_h2_stream {
    uint32_t id;                            /* 0: the slot is free                        */
    int32_t  send_window;                   /* below 0 when the peer shrank it            */
    int32_t  recv_window;                   /* what the peer may still send               */
    uint32_t body_left;                     /* of a response, or TN_H2_UNKNOWN            */
    uint8_t  marks;
    uint8_t  code;                          /* of the RST_STREAM that is due              */
} tn_h2_stream;

typedef struct tn_h2 {
    tn_h2_state  state;
    tn_h2_role   role;
    uint8_t      due;
    uint8_t      marks;
    uint8_t      part_len;                  /* bytes of part, of the preface              */
    uint8_t      need;                      /* bytes of part that make it whole           */
    uint8_t      type;                      /* of the frame being read                    */
    uint8_t      flags;
    uint8_t      block_flags;               /* of the HEADERS that opened the block       */
    uint8_t      pad;                       /* padding at the end of the frame            */
    uint8_t      acks;                      /* SETTINGS to acknowledge                    */
    uint8_t      empty;                     /* see TN_H2_EMPTY_MAX                        */
    uint8_t      resets;
    uint8_t      peer_streams;              /* streams the peer allows                    */
    uint8_t      code;                      /* of the GOAWAY that is due                  */
    uint8_t      part[TN_H2_FRAME_HEAD];
    uint8_t      ping[8];                   /* to be echoed                               */
    uint16_t     block_len;
    uint32_t     left;                      /* bytes of the frame not yet read            */
    uint32_t     stream;                    /* of the frame                               */
    uint32_t     block;                     /* stream of the open header block, or 0      */
    uint32_t     refused;                   /* a stream that finds no slot, or 0          */
    uint32_t     last_id;                   /* highest stream opened, by whom does that   */
    uint32_t     peer_frame;                /* largest payload the peer takes             */
    int32_t      peer_window;               /* its window for a new stream                */
    int32_t      send_window;
    int32_t      recv_window;
    tn_hp        hp;                        /* a client's header block                    */
    tn_h2_stream streams[TN_H2_STREAMS];
} tn_h2;

typedef enum tn_h2_kind {
    TN_H2_MORE,                             /* the input is used up                       */
    TN_H2_RESPONSE,                         /* stream, status, retry_after_s, end         */
    TN_H2_BODY,                             /* stream, at, len, end; len 0 only with end  */
    TN_H2_RESET,                            /* stream, code: the stream is no more        */
    TN_H2_GOAWAY,                           /* last, code: streams above last are no more */
    TN_H2_PING_ACK,                         /* to tn_h2_ping                              */
    TN_H2_FAILED,                           /* code: flush the GOAWAY, close; for ever    */
    TN_H2_HEADER_BYTES,                     /* server: stream, at, len                    */
    TN_H2_HEADERS_END                       /* server: stream, end, trailers, dead        */
} tn_h2_kind;

typedef struct tn_h2_event {
    tn_h2_kind     kind;
    uint32_t       stream;
    uint32_t       code;
    uint32_t       last;
    uint32_t       retry_after_s;
    uint16_t       status;
    bool           end;                     /* of the stream, from their side             */
    bool           trailers;
    bool           dead;                    /* decode it for the table, then forget it    */
    const uint8_t *at;                      /* inside the input                           */
    size_t         len;
} tn_h2_event;

/* Our first flight: preface (a client's), SETTINGS, and WINDOW_UPDATE for the connection.
 * The window is TN_H2_WINDOW, raised from 65,535 by TN_H2_RAISE. */
enum { TN_H2_PREFACE = 24, TN_H2_FIRST = TN_H2_PREFACE + 27 + 13 };
static const char tn_h2_first[TN_H2_FIRST + 1] =
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    "\0\0\x12" "\4" "\0" "\0\0\0\0"
    "\0\1" "\0\0\0\0"                        /* HEADER_TABLE_SIZE: see tn_hp               */
    "\0\2" "\0\0\0\0"                        /* ENABLE_PUSH                                */
    "\0\4" "\0\x10\0\0"                      /* INITIAL_WINDOW_SIZE                        */
    "\0\0\4" "\10" "\0" "\0\0\0\0" "\0\x0f\0\1";
#if TAILNET_SERVER
static const char tn_h2_first_of_server[TN_H2_FIRST - TN_H2_PREFACE + 1] =
    "\0\0\x12" "\4" "\0" "\0\0\0\0"
    "\0\3" "\0\0\0\4"                        /* MAX_CONCURRENT_STREAMS: TN_H2_STREAMS      */
    "\0\6" "\0\0\x40\0"                      /* MAX_HEADER_LIST_SIZE: TN_HP_BLOCK_MAX      */
    "\0\4" "\0\x10\0\0"
    "\0\0\4" "\10" "\0" "\0\0\0\0" "\0\x0f\0\1";
#endif
TN_STATIC_ASSERT(h2_first_says_so, TN_H2_STREAMS == 4 && TN_HP_BLOCK_MAX == 0x4000 &&
                                   TN_H2_WINDOW == 0x100000 && TN_H2_RAISE == 0xf0001ul);

/* Our own PING: sent at most one at a time, so it needs no number. */
static const uint8_t tn_h2_probe[8] = { 't', 'a', 'i', 'l', 'n', 'e', 't', '?' };

/* A device is never the server: this is false there, and half of the code goes. */
static bool tn_h2_serves(const tn_h2 *h) { return TAILNET_SERVER != 0 && h->role == TN_H2_SERVER; }

/* The only writer of state; FAILED is final. */
static TN_NOINLINE void tn_h2_enter(tn_h2 *h, tn_h2_state next)
{
    TAILNET_ASSERT(h->state != TN_H2_FAILED_FOR_GOOD || next == TN_H2_FAILED_FOR_GOOD);
    h->state    = next;
    h->part_len = 0;
}

/* A fresh connection. Our first flight is due: tn_h2_flush writes it. */
static void tn_h2_begin(tn_h2 *h, tn_h2_role role)
{
    TAILNET_ASSERT(role == TN_H2_CLIENT || TAILNET_SERVER != 0);
    memset(h, 0, sizeof *h);
    h->role         = role;
    h->due          = TN_H2_DUE_FIRST;
    h->peer_streams = 255;
    h->peer_frame   = TN_H2_FRAME_MAX;
    h->peer_window  = 65535l;
    h->send_window  = 65535l;
    h->recv_window  = TN_H2_WINDOW;
    tn_h2_enter(h, tn_h2_serves(h) ? TN_H2_AT_PREFACE : TN_H2_AT_HEAD);
}

/* ---- HTTP/2: streams ---- */

static TN_NOINLINE tn_h2_stream *tn_h2_find(tn_h2 *h, uint32_t id)
{
    unsigned i;
    for (i = 0; i < TN_H2_STREAMS && id != 0; i++)
        if (h->streams[i].id == id) return &h->streams[i];
    return NULL;
}

/* The same, unless it waits for nothing but its RST_STREAM. */
static tn_h2_stream *tn_h2_alive(tn_h2 *h, uint32_t id)
{
    tn_h2_stream *s = tn_h2_find(h, id);
    return s != NULL && (s->marks & TN_H2_RESET_DUE) == 0 ? s : NULL;
}

/* Takes a slot for stream id, the newest one. NULL: all are taken. */
static tn_h2_stream *tn_h2_take(tn_h2 *h, uint32_t id)
{
    unsigned i;
    h->last_id = id;
    for (i = 0; i < TN_H2_STREAMS; i++) {
        tn_h2_stream *s = &h->streams[i];
        if (s->id != 0) continue;
        s->id          = id;
        s->send_window = h->peer_window;
        s->recv_window = TN_H2_WINDOW;
        s->body_left   = TN_H2_UNKNOWN;
        return s;
    }
    return NULL;
}

static void tn_h2_drop(tn_h2_stream *s) { memset(s, 0, sizeof *s); }

/* One side has said all; when both have, the slot is free. */
static void tn_h2_said_all(tn_h2 *h, tn_h2_stream *s, unsigned who)
{
    s->marks = (uint8_t)(s->marks | who);
    if ((s->marks & TN_H2_SENT_ALL) == 0 || (s->marks & TN_H2_GOT_ALL) == 0) return;
    if (tn_h2_serves(h) && h->resets != 0) h->resets--;
    if ((s->marks & TN_H2_RESET_DUE) == 0) tn_h2_drop(s);
}

/* An id that nobody has opened yet. Even ones nobody may. */
static bool tn_h2_is_idle(const tn_h2 *h, uint32_t id) { return id % 2 == 0 || id > h->last_id; }

static TN_MAYBE_UNUSED bool tn_h2_is_open(tn_h2 *h, uint32_t id)
{
    return tn_h2_alive(h, id) != NULL;
}

/* ---- HTTP/2: endings ---- */

/* The peer, or the caller, has ended the connection: GOAWAY is due, and the last word. */
static void tn_h2_close(tn_h2 *h, uint32_t code)
{
    if (h->state == TN_H2_FAILED_FOR_GOOD) return;
    tn_h2_enter(h, TN_H2_FAILED_FOR_GOOD);
    h->code = (uint8_t)code;
    h->due  = (uint8_t)(h->due | TN_H2_DUE_GOAWAY);
}

/* A connection error (section 5.4.1). */
static void tn_h2_fail(tn_h2 *h, unsigned code, tn_h2_event *ev)
{
    tn_h2_close(h, code);
    ev->kind = TN_H2_FAILED;
    ev->code = h->code;
}

/* Ends a stream; its RST_STREAM is due. An unknown one is no mistake. */
static void tn_h2_cancel(tn_h2 *h, uint32_t id, uint32_t code)
{
    tn_h2_stream *s = tn_h2_alive(h, id);
    if (s == NULL) return;
    s->marks = (uint8_t)(s->marks | TN_H2_RESET_DUE);
    s->code  = (uint8_t)code;
}

/* A stream error (section 5.4.2), which the caller hears of. */
static void tn_h2_break(tn_h2 *h, tn_h2_stream *s, unsigned code, tn_h2_event *ev)
{
    ev->kind   = TN_H2_RESET;
    ev->stream = s->id;
    ev->code   = code;
    tn_h2_cancel(h, s->id, code);
}

/* ---- HTTP/2: what is written ---- */

static bool tn_h2_fits(const tn_wr *w, size_t len)
{
    TAILNET_ASSERT(w->skip == 0);
    return tn_wr_ok(w) && len <= w->cap - w->total;
}

static void tn_h2_wr_head(tn_wr *w, uint32_t len, unsigned type, unsigned flags, uint32_t stream)
{
    tn_wr_u8(w, (unsigned)(len >> 16));
    tn_wr_u16be(w, (unsigned)(len & 0xffffu));
    tn_wr_u8(w, type);
    tn_wr_u8(w, flags);
    tn_wr_u32be(w, stream);
}

/* A frame of up to 8 bytes, whole or not at all. */
static bool tn_h2_put(tn_wr *w, unsigned type, unsigned flags, uint32_t stream,
                      const uint8_t *payload, uint32_t len)
{
    if (!tn_h2_fits(w, TN_H2_FRAME_HEAD + (size_t)len)) return false;
    tn_h2_wr_head(w, len, type, flags, stream);
    if (len != 0) tn_wr_bytes(w, payload, len);
    return true;
}

static bool tn_h2_put_u32(tn_wr *w, unsigned type, uint32_t stream, uint32_t v)
{
    uint8_t b[4];
    tn_put_u32be(b, v);
    return tn_h2_put(w, type, 0, stream, b, 4);
}

static bool tn_h2_put_first(const tn_h2 *h, tn_wr *w)
{
    if (!tn_h2_fits(w, TN_H2_FIRST)) return false;
#if TAILNET_SERVER
    if (tn_h2_serves(h)) {
        tn_wr_bytes(w, tn_h2_first_of_server, TN_H2_FIRST - TN_H2_PREFACE);
        return true;
    }
#endif
    (void)h;
    tn_wr_bytes(w, tn_h2_first, TN_H2_FIRST);
    return true;
}

/* Credit, once more than half of a window is used up: seldom, and never too late. */
static bool tn_h2_put_credit(tn_wr *w, uint32_t stream, int32_t *window)
{
    if (*window >= TN_H2_WINDOW / 2) return true;
    if (!tn_h2_put_u32(w, TN_H2_T_WINDOW_UPDATE, stream, (uint32_t)(TN_H2_WINDOW - *window)))
        return false;
    *window = TN_H2_WINDOW;
    return true;
}

static bool tn_h2_put_stream(tn_wr *w, tn_h2_stream *s)
{
    if (s->id == 0) return true;
    if ((s->marks & TN_H2_RESET_DUE) != 0) {
        if (!tn_h2_put_u32(w, TN_H2_T_RST_STREAM, s->id, s->code)) return false;
        tn_h2_drop(s);
        return true;
    }
    return (s->marks & TN_H2_GOT_ALL) != 0 || tn_h2_put_credit(w, s->id, &s->recv_window);
}

/* A PING, ours or the answer to theirs, if that is due. */
static bool tn_h2_put_ping(tn_h2 *h, tn_wr *w, unsigned due, unsigned flags, const uint8_t bytes[8])
{
    if ((h->due & due) == 0) return true;
    if (!tn_h2_put(w, TN_H2_T_PING, flags, 0, bytes, 8)) return false;
    h->due = (uint8_t)(h->due & ~due);
    return true;
}

/* PINGs and SETTINGS answered, our own PING asked. */
static bool tn_h2_put_answers(tn_h2 *h, tn_wr *w)
{
    for (; h->acks != 0; h->acks--)
        if (!tn_h2_put(w, TN_H2_T_SETTINGS, TN_H2_F_ACK, 0, NULL, 0)) return false;
    return tn_h2_put_ping(h, w, TN_H2_DUE_PONG, TN_H2_F_ACK, h->ping) &&
           tn_h2_put_ping(h, w, TN_H2_DUE_PING, 0, tn_h2_probe);
}

/* The last frame, of servers: a client that closes the connection says as much. */
static bool tn_h2_put_goaway(tn_h2 *h, tn_wr *w)
{
    uint8_t b[8];
    if ((h->due & TN_H2_DUE_GOAWAY) == 0) return true;
    tn_put_u32be(b, h->last_id);
    tn_put_u32be(b + 4, h->code);
    if (!tn_h2_put(w, TN_H2_T_GOAWAY, 0, 0, b, 8)) return false;
    h->due = (uint8_t)(h->due & ~(unsigned)TN_H2_DUE_GOAWAY);
    return true;
}

/* Writes what is due, whole frames only. False: more is due than there was room for. To be
 * called after each run of tn_h2_next, and before the first stream is opened. */
static bool tn_h2_flush(tn_h2 *h, tn_wr *w)
{
    unsigned i;
    if ((h->due & TN_H2_DUE_FIRST) != 0) {
        if (!tn_h2_put_first(h, w)) return false;
        h->due = (uint8_t)(h->due & ~(unsigned)TN_H2_DUE_FIRST);
    }
    if (h->state == TN_H2_FAILED_FOR_GOOD) return !tn_h2_serves(h) || tn_h2_put_goaway(h, w);
    if (!tn_h2_put_answers(h, w) || !tn_h2_put_credit(w, 0, &h->recv_window)) return false;
    for (i = 0; i < TN_H2_STREAMS; i++)
        if (!tn_h2_put_stream(w, &h->streams[i])) return false;
    if (tn_h2_serves(h) && h->refused != 0) {
        if (!tn_h2_put_u32(w, TN_H2_T_RST_STREAM, h->refused, TN_H2_REFUSED_STREAM)) return false;
        h->refused = 0;
    }
    return true;
}

/* Is anything due? */
static TN_MAYBE_UNUSED bool tn_h2_wants_flush(tn_h2 *h)
{
    tn_wr nowhere;
    tn_wr_over(&nowhere, NULL, 0);
    return !tn_h2_flush(h, &nowhere);       /* writes nothing, so it changes nothing      */
}

/* Asks the peer for a sign of life: TN_H2_PING_ACK. */
static void tn_h2_ping(tn_h2 *h) { h->due = (uint8_t)(h->due | TN_H2_DUE_PING); }

/* A stream on which we may still say something, or NULL. */
static tn_h2_stream *tn_h2_open_to_us(tn_h2 *h, uint32_t id)
{
    tn_h2_stream *s = tn_h2_alive(h, id);
    if (s == NULL || (s->marks & TN_H2_SENT_ALL) != 0 || h->state == TN_H2_FAILED_FOR_GOOD)
        return NULL;
    return s;
}

/* The body bytes that one DATA frame may carry now: what both windows, the peer's limit
 * and the room behind the frame's head allow. 0: wait, or the stream is no more. */
static size_t tn_h2_data_room(tn_h2 *h, uint32_t stream, const tn_wr *w)
{
    const tn_h2_stream *s = tn_h2_open_to_us(h, stream);
    int32_t             n = (int32_t)h->peer_frame;
    size_t              room;
    if (s == NULL || !tn_h2_fits(w, TN_H2_FRAME_HEAD)) return 0;
    if (n > s->send_window) n = s->send_window;         /* below 0: see tn_h2_setting     */
    if (n > h->send_window) n = h->send_window;
    if (n <= 0) return 0;
    room = w->cap - w->total - TN_H2_FRAME_HEAD;
    return room < (size_t)n ? room : (size_t)n;
}

/* The head of a DATA frame of len bytes, at most tn_h2_data_room. The caller writes exactly
 * so many behind it. end: nothing follows on this stream; alone it may go with len 0. */
static bool tn_h2_data_head(tn_h2 *h, tn_wr *w, uint32_t stream, size_t len, bool end)
{
    tn_h2_stream *s = tn_h2_open_to_us(h, stream);
    if (s == NULL || !tn_h2_fits(w, TN_H2_FRAME_HEAD) || (len == 0 && !end) ||
        len > tn_h2_data_room(h, stream, w))
        return false;
    tn_h2_wr_head(w, (uint32_t)len, TN_H2_T_DATA, end ? (unsigned)TN_H2_F_END_STREAM : 0u,
                  stream);
    s->send_window -= (int32_t)len;
    h->send_window -= (int32_t)len;
    if (end) tn_h2_said_all(h, s, TN_H2_SENT_ALL);
    return true;
}

/* As much of src as may go in one frame. Returns how much; what is left needs another
 * call, and end is only said with the last byte. (len 0 with end: ask tn_h2_is_open.) */
static TN_MAYBE_UNUSED size_t tn_h2_data(tn_h2 *h, tn_wr *w, uint32_t stream, const void *src,
                                         size_t len, bool end)
{
    size_t room = tn_h2_data_room(h, stream, w);
    size_t n    = len < room ? len : room;
    if ((n == 0 && len != 0) || !tn_h2_data_head(h, w, stream, n, end && n == len)) return 0;
    if (n != 0) tn_wr_bytes(w, src, n);
    return n;
}

typedef struct tn_h2_request {
    const char *method;
    const char *path;
    const char *authority;
    uint32_t    length;                     /* of the body, or TN_H2_NO_LENGTH            */
    bool        end;                        /* there is no body                           */
} tn_h2_request;

/* A header block begins: our table, never used, has size 0. A peer that shrinks its own
 * has to hear that (RFC 7541 section 4.2), and nobody minds to hear it again. */
static void tn_h2_wr_table(tn_wr *w) { tn_wr_u8(w, 0x20); }

static void tn_h2_wr_request(tn_wr *w, const tn_h2_request *rq)
{
    tn_h2_wr_table(w);
    tn_hp_wr_field(w, 2, rq->method);
    tn_wr_u8(w, 0x87);                      /* :scheme https, whatever carries it         */
    tn_hp_wr_field(w, 4, rq->path);
    tn_hp_wr_field(w, 1, rq->authority);
    if (rq->length != TN_H2_NO_LENGTH) tn_hp_wr_number(w, 28, rq->length);
}

/* Is there a slot, and does the peer take new streams? */
static bool tn_h2_can_open(const tn_h2 *h)
{
    unsigned i, used = 0;
    for (i = 0; i < TN_H2_STREAMS; i++)
        if (h->streams[i].id != 0) used++;
    return used < TN_H2_STREAMS && used < h->peer_streams && (h->marks & TN_H2_LEAVING) == 0 &&
           (h->due & TN_H2_DUE_FIRST) == 0 && h->state != TN_H2_FAILED_FOR_GOOD &&
           h->last_id < TN_H2_ID_MAX;
}

/* A client's request up to its body. Returns the stream, or 0 with nothing written: not
 * now (tn_h2_can_open, or too little room). */
static TN_NOINLINE uint32_t tn_h2_open(tn_h2 *h, tn_wr *w, const tn_h2_request *rq)
{
    tn_wr         count;
    tn_h2_stream *s;
    tn_wr_over(&count, NULL, 0);
    tn_h2_wr_request(&count, rq);
    if (!tn_h2_can_open(h) || count.total > TN_H2_FRAME_MAX ||
        !tn_h2_fits(w, TN_H2_FRAME_HEAD + count.total))
        return 0;
    s = tn_h2_take(h, h->last_id == 0 ? 1 : h->last_id + 2);
    if (s == NULL) return 0;
    tn_h2_wr_head(w, (uint32_t)count.total, TN_H2_T_HEADERS,
                  TN_H2_F_END_HEADERS | (rq->end ? (unsigned)TN_H2_F_END_STREAM : 0u), s->id);
    tn_h2_wr_request(w, rq);
    if (rq->end) tn_h2_said_all(h, s, TN_H2_SENT_ALL);
    return s->id;
}

static void tn_h2_wr_answer(tn_wr *w, unsigned status, const char *type, uint64_t length)
{
    tn_h2_wr_table(w);
    if (status == 200) tn_wr_u8(w, 0x88);
    else               tn_hp_wr_number(w, 8, status);
    if (type != NULL) tn_hp_wr_field(w, 31, type);
    if (length < TN_H2_NO_LENGTH) tn_hp_wr_number(w, 28, (uint32_t)length);
}

/* A server's answer up to its body. False, with nothing written: no room, or no stream. */
static TN_MAYBE_UNUSED bool tn_h2_answer(tn_h2 *h, tn_wr *w, uint32_t stream, unsigned status,
                                         const char *type, uint64_t length, bool end)
{
    tn_h2_stream *s = tn_h2_open_to_us(h, stream);
    tn_wr         count;
    tn_wr_over(&count, NULL, 0);
    tn_h2_wr_answer(&count, status, type, length);
    if (s == NULL || count.total > TN_H2_FRAME_MAX ||
        !tn_h2_fits(w, TN_H2_FRAME_HEAD + count.total))
        return false;
    tn_h2_wr_head(w, (uint32_t)count.total, TN_H2_T_HEADERS,
                  TN_H2_F_END_HEADERS | (end ? (unsigned)TN_H2_F_END_STREAM : 0u), stream);
    tn_h2_wr_answer(w, status, type, length);
    if (end) tn_h2_said_all(h, s, TN_H2_SENT_ALL);
    return true;
}

/* ---- HTTP/2: what is read ---- */

/* Moves a window; it may fall below 0 but not above 2^31 - 1 (section 6.9.1). */
static bool tn_h2_widen(int32_t *window, int32_t by)
{
    if (by > 0 && (uint32_t)by > (uint32_t)INT32_MAX - (uint32_t)*window) return false;
    *window += by;
    return true;
}

/* One setting (section 6.5.2). Unknown ones mean nothing. */
static TN_NOINLINE void tn_h2_setting(tn_h2 *h, unsigned number, uint32_t v, tn_h2_event *ev)
{
    unsigned i;
    if (number == 2) {
        if (v > (tn_h2_serves(h) ? 1u : 0u)) tn_h2_fail(h, TN_H2_PROTOCOL_ERROR, ev);
    } else if (number == 3) {
        h->peer_streams = v > 255 ? (uint8_t)255 : (uint8_t)v;
    } else if (number == 4) {
        if (v > TN_H2_ID_MAX) {
            tn_h2_fail(h, TN_H2_FLOW_CONTROL_ERROR, ev);
            return;
        }
        for (i = 0; i < TN_H2_STREAMS; i++) {           /* open streams follow: 6.9.2     */
            tn_h2_stream *s = &h->streams[i];
            if (s->id != 0 && !tn_h2_widen(&s->send_window, (int32_t)v - h->peer_window))
                tn_h2_fail(h, TN_H2_FLOW_CONTROL_ERROR, ev);
        }
        h->peer_window = (int32_t)v;
    } else if (number == 5) {
        if (v < TN_H2_FRAME_MAX || v > 0xfffffful) tn_h2_fail(h, TN_H2_PROTOCOL_ERROR, ev);
        else h->peer_frame = v;
    }
}

/* WINDOW_UPDATE (section 6.9). */
static void tn_h2_credit(tn_h2 *h, uint32_t v, tn_h2_event *ev)
{
    tn_h2_stream *s      = tn_h2_alive(h, h->stream);
    int32_t      *window = h->stream == 0 ? &h->send_window : s == NULL ? NULL : &s->send_window;
    unsigned      code   = TN_H2_FLOW_CONTROL_ERROR;
    v &= TN_H2_ID_MAX;
    if (v == 0) code = TN_H2_PROTOCOL_ERROR;
    else if (window == NULL || tn_h2_widen(window, (int32_t)v)) return;
    if (s == NULL) tn_h2_fail(h, code, ev);
    else           tn_h2_break(h, s, code, ev);
}

/* RST_STREAM (section 6.4). Requests that are taken back cost us more than the peer. */
static void tn_h2_reset(tn_h2 *h, uint32_t code, tn_h2_event *ev)
{
    tn_h2_stream *s = tn_h2_find(h, h->stream);
    bool          known;
    if (s == NULL) return;
    known = (s->marks & TN_H2_RESET_DUE) != 0;
    tn_h2_drop(s);
    if (tn_h2_serves(h) && ++h->resets > TN_H2_RESETS_MAX) {
        tn_h2_fail(h, TN_H2_ENHANCE_YOUR_CALM, ev);
        return;
    }
    if (known) return;                      /* both sides reset it, and ours was told     */
    ev->kind   = TN_H2_RESET;
    ev->stream = h->stream;
    ev->code   = code;
}

/* GOAWAY (section 6.8): what we asked above last was not done and never will be. */
static void tn_h2_goaway(tn_h2 *h, uint32_t last, uint32_t code, tn_h2_event *ev)
{
    unsigned i;
    h->marks = (uint8_t)(h->marks | TN_H2_LEAVING);
    ev->kind = TN_H2_GOAWAY;
    ev->last = last & TN_H2_ID_MAX;
    ev->code = code;
    for (i = 0; i < TN_H2_STREAMS && !tn_h2_serves(h); i++)
        if (h->streams[i].id > ev->last) tn_h2_drop(&h->streams[i]);
}

static void tn_h2_pinged(tn_h2 *h, tn_h2_event *ev)
{
    if ((h->flags & TN_H2_F_ACK) != 0) {
        if (memcmp(h->part, tn_h2_probe, 8) == 0) ev->kind = TN_H2_PING_ACK;
        return;
    }
    memcpy(h->ping, h->part, 8);            /* only the newest waits for its answer       */
    h->due = (uint8_t)(h->due | TN_H2_DUE_PONG);
}

/* Skips what is left of the frame, also when that is nothing. */
static void tn_h2_enter_skip(tn_h2 *h)
{
    if (h->state != TN_H2_FAILED_FOR_GOOD) tn_h2_enter(h, TN_H2_AT_SKIP);
}

/* Collects need more bytes of the payload into part. */
static void tn_h2_enter_fixed(tn_h2 *h, unsigned need)
{
    h->need = (uint8_t)need;
    tn_h2_enter(h, TN_H2_AT_FIXED);
}

/* Body bytes come next. A response that is longer or shorter than it said is none. */
static void tn_h2_start_body(tn_h2 *h, tn_h2_event *ev)
{
    tn_h2_stream *s = tn_h2_alive(h, h->stream);
    uint32_t      n = h->left - h->pad;
    tn_h2_enter(h, TN_H2_AT_DATA);
    if (s == NULL || s->body_left == TN_H2_UNKNOWN) return;
    if (n > s->body_left || ((h->flags & TN_H2_F_END_STREAM) != 0 && n != s->body_left))
        tn_h2_break(h, s, TN_H2_PROTOCOL_ERROR, ev);
    else
        s->body_left -= n;
}

/* A payload of fixed form is complete, or what stands before data or a header block. */
static void tn_h2_fixed(tn_h2 *h, tn_h2_event *ev)
{
    uint32_t a = tn_get_u32be(h->part), b = tn_get_u32be(h->part + 4);
    if (h->type == TN_H2_T_DATA || h->type == TN_H2_T_HEADERS) {
        h->pad = (h->flags & TN_H2_F_PADDED) != 0 ? h->part[0] : (uint8_t)0;
        if (h->pad > h->left)               tn_h2_fail(h, TN_H2_PROTOCOL_ERROR, ev);
        else if (h->type == TN_H2_T_DATA)   tn_h2_start_body(h, ev);
        else                                tn_h2_enter(h, TN_H2_AT_BLOCK);
        return;
    }
    if (h->type == TN_H2_T_SETTINGS) {
        tn_h2_setting(h, (unsigned)(a >> 16), a << 16 | b >> 16, ev);
        if (h->state == TN_H2_FAILED_FOR_GOOD) return;
        if (h->left != 0) {
            tn_h2_enter_fixed(h, 6);
            return;
        }
    }
    tn_h2_enter_skip(h);
    if (h->type == TN_H2_T_PING)               tn_h2_pinged(h, ev);
    else if (h->type == TN_H2_T_GOAWAY)        tn_h2_goaway(h, a, b, ev);
    else if (h->type == TN_H2_T_RST_STREAM)    tn_h2_reset(h, a, ev);
    else if (h->type == TN_H2_T_WINDOW_UPDATE) tn_h2_credit(h, a, ev);
}

/* DATA begins: all of the frame, padding too, counts against the windows. The connection
 * is charged, and so credited, also for streams that are no more. */
static void tn_h2_start_data(tn_h2 *h, tn_h2_event *ev)
{
    tn_h2_stream *s = tn_h2_alive(h, h->stream);
    if (h->left > (uint32_t)h->recv_window ||
        (s != NULL && h->left > (uint32_t)s->recv_window)) {
        tn_h2_fail(h, TN_H2_FLOW_CONTROL_ERROR, ev);
        return;
    }
    h->recv_window -= (int32_t)h->left;
    if (s != NULL) {
        s->recv_window -= (int32_t)h->left;
        if ((s->marks & TN_H2_GOT_ALL) != 0)
            tn_h2_break(h, s, TN_H2_STREAM_CLOSED, ev);
        else if ((s->marks & TN_H2_GOT_HEAD) == 0)
            tn_h2_break(h, s, TN_H2_PROTOCOL_ERROR, ev);
    }
    tn_h2_enter_fixed(h, (h->flags & TN_H2_F_PADDED) != 0 ? 1 : 0);
}

/* HEADERS begin, on a stream the client has opened or, for a server, opens with them. */
static void tn_h2_start_block(tn_h2 *h, tn_h2_event *ev)
{
    tn_h2_stream *s      = tn_h2_alive(h, h->stream);
    bool          opens  = tn_h2_serves(h) && h->stream % 2 == 1 && h->stream > h->last_id;
    unsigned      before = (h->flags & TN_H2_F_PADDED) != 0 ? 1 : 0;
    if (tn_h2_is_idle(h, h->stream) && !opens) {
        tn_h2_fail(h, TN_H2_PROTOCOL_ERROR, ev);
        return;
    }
    if (opens && tn_h2_take(h, h->stream) == NULL) {
        if (h->refused != 0) {              /* a second one, before the first was told    */
            tn_h2_fail(h, TN_H2_ENHANCE_YOUR_CALM, ev);
            return;
        }
        h->refused = h->stream;
    }
    if (s != NULL && (s->marks & TN_H2_GOT_ALL) != 0) tn_h2_break(h, s, TN_H2_STREAM_CLOSED, ev);
    tn_hp_begin(&h->hp);
    h->block       = h->stream;
    h->block_len   = 0;
    h->block_flags = h->flags;
    tn_h2_enter_fixed(h, before + ((h->flags & TN_H2_F_PRIORITY) != 0 ? 5u : 0u));
}

/* May this frame come now, on this stream, with this length? Returns an error code. */
static TN_NOINLINE unsigned tn_h2_refuses(const tn_h2 *h)
{
    /* length: 0 any, else the only one. stream: where it is refused, the sum of 1 stream 0,
     * 2 any other stream, 4 an idle one. */
    static const uint8_t length[TN_H2_TYPES] = { 0, 0, 5, 4, 0, 0, 8, 0, 4, 0 };
    static const uint8_t stream[TN_H2_TYPES] = { 5, 1, 1, 5, 2, 3, 2, 2, 4, 1 };
    bool     ack   = (h->flags & TN_H2_F_ACK) != 0;
    unsigned where = 1;
    if (h->left > TN_H2_FRAME_MAX) return TN_H2_FRAME_SIZE_ERROR;
    if (((h->marks & TN_H2_GREETED) == 0 && (h->type != TN_H2_T_SETTINGS || ack)) ||
        (h->block != 0) != (h->type == TN_H2_T_CONTINUATION) ||
        (h->block != 0 && h->block != h->stream))
        return TN_H2_PROTOCOL_ERROR;
    if (h->type >= TN_H2_TYPES) return TN_H2_NO_ERROR;
    if (h->stream != 0) where = tn_h2_is_idle(h, h->stream) ? 6 : 2;
    if ((stream[h->type] & where) != 0) return TN_H2_PROTOCOL_ERROR;
    if ((length[h->type] != 0 && h->left != length[h->type]) ||
        (h->type == TN_H2_T_GOAWAY && h->left < 8) ||
        (h->type == TN_H2_T_SETTINGS && (ack ? h->left != 0 : h->left % 6 != 0)))
        return TN_H2_FRAME_SIZE_ERROR;
    if (h->type == TN_H2_T_SETTINGS && ack && (h->marks & TN_H2_ACKED) != 0)
        return TN_H2_PROTOCOL_ERROR;        /* we send SETTINGS once                      */
    return TN_H2_NO_ERROR;
}

/* Frames that bring nothing, one after the other, and SETTINGS that we cannot answer as
 * fast as they come (section 10.5). */
static bool tn_h2_is_flood(tn_h2 *h)
{
    bool data = h->type == TN_H2_T_DATA || h->type == TN_H2_T_HEADERS ||
                h->type == TN_H2_T_CONTINUATION;
    unsigned last = h->type == TN_H2_T_DATA ? TN_H2_F_END_STREAM : TN_H2_F_END_HEADERS;
    if (data && h->left == 0 && (h->flags & last) == 0) h->empty++;
    else if (data)                                      h->empty = 0;
    return h->empty > TN_H2_EMPTY_MAX || h->acks > TN_H2_ACKS_MAX;
}

static void tn_h2_start_settings(tn_h2 *h)
{
    if ((h->flags & TN_H2_F_ACK) != 0) {
        h->marks = (uint8_t)(h->marks | TN_H2_ACKED);
    } else {
        h->marks = (uint8_t)(h->marks | TN_H2_GREETED);
        h->acks++;
    }
    if (h->left != 0) tn_h2_enter_fixed(h, 6);
    else              tn_h2_enter_skip(h);
}

/* The nine bytes are there: what comes behind them? */
static void tn_h2_head(tn_h2 *h, tn_h2_event *ev)
{
    unsigned code;
    h->left   = tn_get_u32be(h->part) >> 8;
    h->type   = h->part[3];
    h->flags  = h->part[4];
    h->stream = tn_get_u32be(h->part + 5) & (uint32_t)TN_H2_ID_MAX;
    h->pad    = 0;
    code      = tn_h2_refuses(h);
    if (code == TN_H2_NO_ERROR && tn_h2_is_flood(h)) code = TN_H2_ENHANCE_YOUR_CALM;
    if (code != TN_H2_NO_ERROR) {
        tn_h2_fail(h, code, ev);
        return;
    }
    switch (h->type) {
    case TN_H2_T_DATA:          tn_h2_start_data(h, ev); break;
    case TN_H2_T_HEADERS:       tn_h2_start_block(h, ev); break;
    case TN_H2_T_CONTINUATION:  tn_h2_enter(h, TN_H2_AT_BLOCK); break;
    case TN_H2_T_SETTINGS:      tn_h2_start_settings(h); break;
    case TN_H2_T_RST_STREAM:
    case TN_H2_T_WINDOW_UPDATE: tn_h2_enter_fixed(h, 4); break;
    case TN_H2_T_PING:
    case TN_H2_T_GOAWAY:        tn_h2_enter_fixed(h, 8); break;
    default:                    tn_h2_enter_skip(h); break;      /* PRIORITY, unknown ones */
    }
}

/* Body bytes, where they lie. */
static void tn_h2_body(tn_h2 *h, tn_rd *in, tn_h2_event *ev)
{
    tn_h2_stream  *s = tn_h2_alive(h, h->stream);
    uint32_t       n = h->left - h->pad;
    const uint8_t *at;
    bool           end;
    if (n > in->left) n = (uint32_t)in->left;
    at = tn_rd_bytes(in, (size_t)n);
    h->left -= n;
    end = h->left == h->pad && (h->flags & TN_H2_F_END_STREAM) != 0;
    if (h->left == h->pad) tn_h2_enter_skip(h);
    if (s == NULL || (n == 0 && !end)) return;
    ev->kind   = TN_H2_BODY;
    ev->stream = h->stream;
    ev->at     = at;
    ev->len    = (size_t)n;
    ev->end    = end;
    if (end) tn_h2_said_all(h, s, TN_H2_GOT_ALL);
}

/* A client's header block is complete: the answer, an interim one (1xx), or trailers. */
static void tn_h2_response(tn_h2 *h, tn_h2_event *ev)
{
    tn_h2_stream *s        = tn_h2_alive(h, h->stream);
    const tn_hp  *p        = &h->hp;
    bool          end      = (h->block_flags & TN_H2_F_END_STREAM) != 0;
    bool          trailers = s != NULL && (s->marks & TN_H2_GOT_HEAD) != 0;
    bool          interim  = p->status >= 100 && p->status < 200;
    if (!tn_hp_end(p)) {
        tn_h2_fail(h, TN_H2_COMPRESSION_ERROR, ev);
        return;
    }
    if (s == NULL) return;
    if (p->malformed || (trailers ? p->status != 0 || !end : p->status == 0) ||
        (interim && (end || p->status == 101)) ||
        (trailers && s->body_left != TN_H2_UNKNOWN && s->body_left != 0)) {
        tn_h2_break(h, s, TN_H2_PROTOCOL_ERROR, ev);
        return;
    }
    if (interim) return;
    ev->kind          = trailers ? TN_H2_BODY : TN_H2_RESPONSE;
    ev->stream        = h->stream;
    ev->status        = p->status;
    ev->retry_after_s = trailers ? 0 : p->retry_after_s;
    ev->end           = end;
    if (!trailers) s->body_left = p->length;
    s->marks = (uint8_t)(s->marks | TN_H2_GOT_HEAD);
    if (end) tn_h2_said_all(h, s, TN_H2_GOT_ALL);
}

/* A server's: a request, or the trailers of one. */
static void tn_h2_requested(tn_h2 *h, tn_h2_event *ev)
{
    tn_h2_stream *s = tn_h2_alive(h, h->stream);
    bool          end = (h->block_flags & TN_H2_F_END_STREAM) != 0;
    ev->kind     = TN_H2_HEADERS_END;
    ev->stream   = h->stream;
    ev->dead     = s == NULL;
    ev->end      = end;
    ev->trailers = s != NULL && (s->marks & TN_H2_GOT_HEAD) != 0;
    if (s == NULL) return;
    if (ev->trailers && !end) tn_h2_cancel(h, s->id, TN_H2_PROTOCOL_ERROR);
    ev->dead = (s->marks & TN_H2_RESET_DUE) != 0;
    s->marks = (uint8_t)(s->marks | TN_H2_GOT_HEAD);
    if (end) tn_h2_said_all(h, s, TN_H2_GOT_ALL);
}

/* Bytes of a header block. */
static void tn_h2_block(tn_h2 *h, tn_rd *in, tn_h2_event *ev)
{
    uint32_t       n = h->left - h->pad;
    const uint8_t *at;
    if (n > TN_HP_BLOCK_MAX - (uint32_t)h->block_len) {
        tn_h2_fail(h, TN_H2_ENHANCE_YOUR_CALM, ev);
        return;
    }
    if (n > in->left) n = (uint32_t)in->left;
    if (n != 0) {
        at = tn_rd_bytes(in, (size_t)n);
        h->left -= n;
        h->block_len = (uint16_t)(h->block_len + n);
        if (!tn_h2_serves(h)) {
            if (!tn_hp_feed(&h->hp, at, (size_t)n)) tn_h2_fail(h, TN_H2_COMPRESSION_ERROR, ev);
            return;
        }
        ev->kind   = TN_H2_HEADER_BYTES;
        ev->stream = h->stream;
        ev->at     = at;
        ev->len    = (size_t)n;
        return;
    }
    tn_h2_enter_skip(h);
    if ((h->flags & TN_H2_F_END_HEADERS) == 0) return;
    h->block = 0;
    if (tn_h2_serves(h)) tn_h2_requested(h, ev);
    else                 tn_h2_response(h, ev);
}

/* Copies into part until it has need bytes; true when it has. */
static bool tn_h2_collect(tn_h2 *h, tn_rd *in, unsigned need)
{
    size_t n = need - h->part_len;
    if (n > in->left) n = in->left;
    tn_rd_copy(in, h->part + h->part_len, n);
    h->part_len = (uint8_t)(h->part_len + n);
    return h->part_len == need;
}

/* A server's first bytes. */
static void tn_h2_greet(tn_h2 *h, tn_rd *in, tn_h2_event *ev)
{
    if (tn_rd_u8(in) != (uint8_t)tn_h2_first[h->part_len++])
        tn_h2_fail(h, TN_H2_PROTOCOL_ERROR, ev);
    else if (h->part_len == TN_H2_PREFACE)
        tn_h2_enter(h, TN_H2_AT_HEAD);
}

/* One step. False: it needs input and there is none. */
static bool tn_h2_step(tn_h2 *h, tn_rd *in, tn_h2_event *ev)
{
    size_t n, before = in->left;
    bool   whole;
    switch (h->state) {
    case TN_H2_AT_PREFACE:
        if (TAILNET_SERVER == 0 || in->left == 0) return false;
        tn_h2_greet(h, in, ev);
        return true;
    case TN_H2_AT_HEAD:
        if (!tn_h2_collect(h, in, TN_H2_FRAME_HEAD)) return false;
        tn_h2_head(h, ev);
        return true;
    case TN_H2_AT_FIXED:
        if (h->need > h->left + h->part_len) {          /* padded, and no room for it     */
            tn_h2_fail(h, TN_H2_FRAME_SIZE_ERROR, ev);
            return true;
        }
        whole = tn_h2_collect(h, in, h->need);
        h->left -= (uint32_t)(before - in->left);
        if (whole) tn_h2_fixed(h, ev);
        return whole;
    case TN_H2_AT_DATA:
        if (in->left == 0 && h->left > h->pad) return false;
        tn_h2_body(h, in, ev);
        return true;
    case TN_H2_AT_BLOCK:
        if (in->left == 0 && h->left > h->pad) return false;
        tn_h2_block(h, in, ev);
        return true;
    case TN_H2_AT_SKIP:
        n = before < h->left ? before : (size_t)h->left;
        (void)tn_rd_bytes(in, n);
        h->left -= (uint32_t)n;
        if (h->left == 0) tn_h2_enter(h, TN_H2_AT_HEAD);
        return h->left == 0;
    case TN_H2_AT_NONE: case TN_H2_FAILED_FOR_GOOD:
        tn_h2_fail(h, TN_H2_PROTOCOL_ERROR, ev);        /* the first code stays           */
        return true;
    }
    return false;
}

/* The next thing that happened in the decrypted bytes of in. Pieces lie in them; MORE
 * means that they are used up, and then tn_h2_flush has its turn. */
static tn_h2_kind tn_h2_next(tn_h2 *h, tn_rd *in, tn_h2_event *ev)
{
    memset(ev, 0, sizeof *ev);
    while (ev->kind == TN_H2_MORE)
        if (!tn_h2_step(h, in, ev)) break;
    return ev->kind;
}

/* ======================================================================== *
 * >>noise — the channel to the control server: Noise IK handshake, records,
 * and the early payload in front of HTTP/2.
 *
 * Owns:    a tn_nz: the handshake's hash, then two keys and two counters. The
 *          4,096 bytes a record may have lie with the caller.
 * Calls:   >>base, >>crypto.
 * States:  IDLE -> WAITING -> OPEN -> DEAD (client), IDLE -> OPEN -> DEAD
 *          (server); from every state to DEAD, and by tn_nz_wipe to IDLE.
 * Always:  one key and one counter never seal twice; the first record that is
 *          wrong in any way ends the channel and erases its keys.
 * Trust:   the other side is nobody before its tag is checked; an error frame
 *          and all lengths are anybody's.
 *
 * Source: tailscale control/controlbase/{messages,handshake,conn}.go and
 * control/ts2021/conn.go; the Noise Protocol Framework, revision 34.
 * ======================================================================== */

enum {
    TN_NZ_INITIATION_LEN = 101,
    TN_NZ_RESPONSE_LEN   = 51,
    TN_NZ_HEAD_LEN       = 3,               /* of all but the initiation          */
    TN_NZ_TAG_LEN        = 16,
    TN_NZ_RECORD_MAX     = 4096,            /* with head and tag                  */
    TN_NZ_TEXT_MAX       = 4077,
    TN_NZ_TYPE_INITIATION = 1, TN_NZ_TYPE_RESPONSE = 2, TN_NZ_TYPE_ERROR = 3, TN_NZ_TYPE_RECORD = 4
};

typedef enum tn_nz_state { TN_NZ_IDLE, TN_NZ_WAITING, TN_NZ_OPEN, TN_NZ_DEAD } tn_nz_state;

typedef struct tn_nz {
    tn_nz_state state;
    uint64_t    tx_count, rx_count;
    uint8_t     h[32];                      /* hash of all that was said          */
    uint8_t     ck[32];                     /* these two while WAITING only       */
    uint8_t     eph_priv[32];
    uint8_t     tx_key[32], rx_key[32];     /* these while OPEN only              */
} tn_nz;

/* From row to column: may that happen? */
static const uint8_t tn_nz_arrows[4] = {
    /* IDLE    */ 1u << TN_NZ_WAITING | 1u << TN_NZ_OPEN | 1u << TN_NZ_DEAD,
    /* WAITING */ 1u << TN_NZ_OPEN | 1u << TN_NZ_DEAD,
    /* OPEN    */ 1u << TN_NZ_DEAD,
    /* DEAD    */ 1u << TN_NZ_DEAD
};

/* The only place where state changes; what the next state has no use for goes. */
static void tn_nz_enter(tn_nz *nz, tn_nz_state next)
{
    TAILNET_ASSERT((tn_nz_arrows[nz->state] >> next & 1u) != 0);
    if (next != TN_NZ_WAITING) {
        tn_wipe(nz->ck, sizeof nz->ck);
        tn_wipe(nz->eph_priv, sizeof nz->eph_priv);
    }
    if (next != TN_NZ_OPEN) {
        tn_wipe(nz->tx_key, sizeof nz->tx_key);
        tn_wipe(nz->rx_key, sizeof nz->rx_key);
    }
    nz->tx_count = 0;
    nz->rx_count = 0;
    nz->state    = next;
}

/* Back to the beginning, with nothing left of what was. */
static void tn_nz_wipe(tn_nz *nz)
{
    tn_wipe(nz, sizeof *nz);
    nz->state = TN_NZ_IDLE;
}

/* Ends the channel and says why. */
static tailnet_result tn_nz_fail(tn_nz *nz, tailnet_result why)
{
    tn_nz_enter(nz, TN_NZ_DEAD);
    return why;
}

/* ---- handshake ---- */

/* What both know before the first byte. The version stands in the prologue, so
 * that one changed under way makes the first tag wrong. */
static void tn_nz_begin(tn_nz *nz, const uint8_t server_pub[32], uint16_t version)
{
    static const char name[] = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
    uint8_t           prologue[40];
    tn_wr             w;

    tn_nz_wipe(nz);
    tn_cr_hash(nz->h, name, sizeof name - 1, NULL, 0);  /* longer than 32 bytes   */
    tn_copy_key(nz->ck, nz->h);
    tn_wr_over(&w, prologue, sizeof prologue);
    tn_wr_text(&w, "Tailscale Control Protocol v");
    tn_wr_dec(&w, version);
    tn_cr_mix_hash(nz->h, prologue, tn_wr_len(&w));
    tn_cr_mix_hash(nz->h, server_pub, 32);
}

/* The two keys of the records; first is the client's to send with. */
static void tn_nz_split(tn_nz *nz, bool client)
{
    uint8_t first[32], second[32];
    tn_cr_kdf(first, second, NULL, nz->ck, NULL, 0);
    tn_nz_enter(nz, TN_NZ_OPEN);
    tn_copy_key(client ? nz->tx_key : nz->rx_key, first);
    tn_copy_key(client ? nz->rx_key : nz->tx_key, second);
    tn_wipe(first, sizeof first);
    tn_wipe(second, sizeof second);
}

/* Client: the initiation, which goes into an HTTP header. eph_priv are 32 fresh
 * random bytes. Three X25519. False when server_pub is no honest key. */
static bool tn_nz_start(tn_nz *nz, const uint8_t machine_priv[32], const uint8_t server_pub[32],
                        uint16_t version, const uint8_t eph_priv[32],
                        uint8_t out[TN_NZ_INITIATION_LEN])
{
    uint8_t key[32], pub[32], sealed[32 + TN_NZ_TAG_LEN], tag[TN_NZ_TAG_LEN];
    tn_wr   w;
    bool    ok;

    tn_nz_begin(nz, server_pub, version);
    tn_copy_key(nz->eph_priv, eph_priv);
    tn_cr_clamp(nz->eph_priv);
    tn_cr_x25519_base(pub, nz->eph_priv);
    tn_cr_mix_hash(nz->h, pub, sizeof pub);
    ok = tn_cr_mix_dh(nz->ck, key, nz->eph_priv, server_pub);           /* es         */
    tn_cr_x25519_base(sealed, machine_priv);
    tn_cr_mix_seal(nz->h, key, sealed, 32);
    ok = tn_cr_mix_dh(nz->ck, key, machine_priv, server_pub) && ok;     /* ss         */
    tn_cr_mix_seal(nz->h, key, tag, 0);
    tn_wipe(key, sizeof key);

    tn_wr_over(&w, out, TN_NZ_INITIATION_LEN);
    tn_wr_u16be(&w, version);
    tn_wr_u8(&w, TN_NZ_TYPE_INITIATION);
    tn_wr_u16be(&w, TN_NZ_INITIATION_LEN - 5);
    tn_wr_bytes(&w, pub, sizeof pub);
    tn_wr_bytes(&w, sealed, sizeof sealed);
    tn_wr_bytes(&w, tag, sizeof tag);
    tn_nz_enter(nz, ok ? TN_NZ_WAITING : TN_NZ_DEAD);
    return ok;
}

/* Client: the answer to the initiation, len bytes as tn_nz_whole counts. OK
 * opens the channel. CONTROL: it is an error frame. FORGED: the server has
 * another key, or somebody stands between. Two X25519. */
static tailnet_result tn_nz_finish(tn_nz *nz, const uint8_t machine_priv[32], const uint8_t *msg,
                                   size_t len)
{
    tn_rd    r;
    uint8_t  key[32], pub[32], tag[TN_NZ_TAG_LEN];
    unsigned type, rest;
    bool     ok;

    tn_rd_over(&r, msg, len);
    type = tn_rd_u8(&r);
    rest = tn_rd_u16be(&r);
    if (nz->state != TN_NZ_WAITING || !tn_rd_ok(&r) || rest != r.left)
        return tn_nz_fail(nz, TAILNET_ERR_MALFORMED);
    if (type == TN_NZ_TYPE_ERROR) return tn_nz_fail(nz, TAILNET_ERR_CONTROL);
    if (type != TN_NZ_TYPE_RESPONSE || len != TN_NZ_RESPONSE_LEN)
        return tn_nz_fail(nz, TAILNET_ERR_MALFORMED);
    tn_rd_copy(&r, pub, sizeof pub);
    tn_rd_copy(&r, tag, sizeof tag);

    tn_cr_mix_hash(nz->h, pub, sizeof pub);
    ok = tn_cr_mix_dh(nz->ck, key, nz->eph_priv, pub);                  /* ee         */
    ok = tn_cr_mix_dh(nz->ck, key, machine_priv, pub) && ok;            /* se         */
    ok = tn_cr_mix_open(nz->h, key, tag, 0) && ok;
    tn_wipe(key, sizeof key);
    if (!ok) return tn_nz_fail(nz, TAILNET_ERR_FORGED);
    tn_nz_split(nz, true);
    return TAILNET_OK;
}

/* Server: reads the initiation, leaves nz ready for tn_nz_answer and tells who
 * it is. The version is whatever the client says, proved by its tag. */
static TN_MAYBE_UNUSED tailnet_result tn_nz_read_initiation(
    tn_nz *nz, const uint8_t server_priv[32], const uint8_t init[TN_NZ_INITIATION_LEN],
    uint8_t eph_pub[32], uint8_t machine_pub[32], uint16_t *version)
{
    tn_rd    r;
    uint8_t  key[32], pub[32], sealed[32 + TN_NZ_TAG_LEN], tag[TN_NZ_TAG_LEN];
    unsigned type, len;
    bool     ok;

    tn_rd_over(&r, init, TN_NZ_INITIATION_LEN);
    *version = tn_rd_u16be(&r);
    type     = tn_rd_u8(&r);
    len      = tn_rd_u16be(&r);
    tn_rd_copy(&r, eph_pub, 32);
    tn_rd_copy(&r, sealed, sizeof sealed);
    tn_rd_copy(&r, tag, sizeof tag);
    tn_cr_x25519_base(pub, server_priv);
    tn_nz_begin(nz, pub, *version);
    if (type != TN_NZ_TYPE_INITIATION || len != TN_NZ_INITIATION_LEN - 5)
        return tn_nz_fail(nz, TAILNET_ERR_MALFORMED);

    tn_cr_mix_hash(nz->h, eph_pub, 32);
    ok = tn_cr_mix_dh(nz->ck, key, server_priv, eph_pub);               /* es         */
    ok = tn_cr_mix_open(nz->h, key, sealed, 32) && ok;
    ok = ok && tn_cr_mix_dh(nz->ck, key, server_priv, sealed);          /* ss         */
    ok = ok && tn_cr_mix_open(nz->h, key, tag, 0);
    tn_wipe(key, sizeof key);
    tn_copy_key(machine_pub, sealed);
    return ok ? TAILNET_OK : tn_nz_fail(nz, TAILNET_ERR_FORGED);
}

/* Server: takes an initiation and writes the response; the channel is open
 * then. machine_pub means nothing unless the result is OK. */
static TN_MAYBE_UNUSED tailnet_result tn_nz_accept(
    tn_nz *nz, const uint8_t server_priv[32], const uint8_t init[TN_NZ_INITIATION_LEN],
    const uint8_t eph_priv[32], uint8_t out[TN_NZ_RESPONSE_LEN], uint8_t machine_pub[32],
    uint16_t *version)
{
    uint8_t        key[32], pub[32], tag[TN_NZ_TAG_LEN], client_eph[32];
    tn_wr          w;
    bool           ok;
    tailnet_result got;

    got = tn_nz_read_initiation(nz, server_priv, init, client_eph, machine_pub, version);
    if (got != TAILNET_OK) return got;
    tn_copy_key(nz->eph_priv, eph_priv);
    tn_cr_clamp(nz->eph_priv);
    tn_cr_x25519_base(pub, nz->eph_priv);
    tn_cr_mix_hash(nz->h, pub, sizeof pub);
    ok = tn_cr_mix_dh(nz->ck, key, nz->eph_priv, client_eph);           /* ee         */
    ok = tn_cr_mix_dh(nz->ck, key, nz->eph_priv, machine_pub) && ok;    /* se         */
    tn_cr_mix_seal(nz->h, key, tag, 0);
    tn_wipe(key, sizeof key);
    if (!ok) return tn_nz_fail(nz, TAILNET_ERR_FORGED);
    tn_nz_split(nz, false);

    tn_wr_over(&w, out, TN_NZ_RESPONSE_LEN);
    tn_wr_u8(&w, TN_NZ_TYPE_RESPONSE);
    tn_wr_u16be(&w, TN_NZ_RESPONSE_LEN - TN_NZ_HEAD_LEN);
    tn_wr_bytes(&w, pub, sizeof pub);
    tn_wr_bytes(&w, tag, sizeof tag);
    return TAILNET_OK;
}

/* ---- what stands at the front of the receive buffer ---- */

/* Can a message with this head come now? Its length fits the buffer if so. */
static bool tn_nz_head_ok(const tn_nz *nz, unsigned type, unsigned len)
{
    if (len > TN_NZ_RECORD_MAX - TN_NZ_HEAD_LEN) return false;
    if (nz->state == TN_NZ_OPEN) return type == TN_NZ_TYPE_RECORD && len >= TN_NZ_TAG_LEN;
    if (nz->state != TN_NZ_WAITING) return false;
    return type == TN_NZ_TYPE_ERROR ||
           (type == TN_NZ_TYPE_RESPONSE && len == TN_NZ_RESPONSE_LEN - TN_NZ_HEAD_LEN);
}

/* How many bytes the message at buf still lacks, first of its head, then of the
 * rest. 0: it is for tn_nz_finish or tn_nz_open, which also say if it is broken;
 * nobody waits for what a wrong head promises. */
static size_t tn_nz_want(const tn_nz *nz, const uint8_t *buf, size_t have)
{
    tn_rd    r;
    unsigned type, len;
    if (have < TN_NZ_HEAD_LEN) return TN_NZ_HEAD_LEN - have;
    tn_rd_over(&r, buf, have);
    type = tn_rd_u8(&r);
    len  = tn_rd_u16be(&r);
    return tn_nz_head_ok(nz, type, len) && len > r.left ? len - r.left : 0;
}

/* How many of the have bytes at buf belong to the message there, once none of
 * them is wanted any more. */
static TN_MAYBE_UNUSED size_t tn_nz_whole(const uint8_t *buf, size_t have)
{
    tn_rd    r;
    unsigned len;
    tn_rd_over(&r, buf, have);
    (void)tn_rd_u8(&r);
    len = tn_rd_u16be(&r);
    return tn_rd_ok(&r) && len < r.left ? (size_t)TN_NZ_HEAD_LEN + len : have;
}

/* The text of an error frame: not ended by a zero, and anybody's words. */
static TN_MAYBE_UNUSED bool tn_nz_error_text(const uint8_t *msg, size_t len, const char **text,
                                             size_t *text_len)
{
    tn_rd    r;
    unsigned type;
    size_t   rest;
    tn_rd_over(&r, msg, len);
    type      = tn_rd_u8(&r);
    rest      = tn_rd_u16be(&r);
    *text     = (const char *)tn_rd_bytes(&r, rest);
    *text_len = *text == NULL ? 0 : rest;
    return tn_rd_ok(&r) && r.left == 0 && type == TN_NZ_TYPE_ERROR;
}

/* ---- records ---- */

/* Big-endian, unlike every other Noise: little-endian works for one record. */
static void tn_nz_nonce(uint8_t nonce[12], uint64_t count)
{
    tn_wr w;
    tn_wr_over(&w, nonce, 12);
    tn_wr_zero(&w, 4);
    tn_wr_u64be(&w, count);
}

/* Makes a record of the len bytes at record + 3, in place; there have to be 16
 * more behind. Returns its length, or 0 when the channel is not open, len is
 * above TN_NZ_TEXT_MAX, or the counter has come to its end. */
static size_t tn_nz_seal(tn_nz *nz, uint8_t *record, size_t len)
{
    uint8_t  nonce[12];
    uint8_t *text = record + TN_NZ_HEAD_LEN;
    tn_wr    w;

    if (nz->state != TN_NZ_OPEN || len > TN_NZ_TEXT_MAX || nz->tx_count == UINT64_MAX) return 0;
    tn_wr_over(&w, record, TN_NZ_HEAD_LEN);
    tn_wr_u8(&w, TN_NZ_TYPE_RECORD);
    tn_wr_u16be(&w, (unsigned)len + TN_NZ_TAG_LEN);
    tn_nz_nonce(nonce, nz->tx_count++);
    tn_cr_aead_seal(nz->tx_key, nonce, NULL, 0, text, len, text + len);
    return TN_NZ_HEAD_LEN + len + TN_NZ_TAG_LEN;
}

/* Opens a whole record in place. The text may be empty. Whatever is wrong with
 * it ends the channel: MALFORMED is its form, FORGED its tag. */
static tailnet_result tn_nz_open(tn_nz *nz, uint8_t *record, size_t whole_len, uint8_t **text,
                                 size_t *len)
{
    tn_rd    r;
    uint8_t  nonce[12];
    unsigned type;
    size_t   n;

    tn_rd_over(&r, record, whole_len);
    type  = tn_rd_u8(&r);
    n     = tn_rd_u16be(&r);
    *text = record;
    *len  = 0;
    if (nz->state != TN_NZ_OPEN || !tn_rd_ok(&r) || !tn_nz_head_ok(nz, type, (unsigned)n) ||
        n != r.left || nz->rx_count == UINT64_MAX)
        return tn_nz_fail(nz, TAILNET_ERR_MALFORMED);
    n -= TN_NZ_TAG_LEN;
    record += TN_NZ_HEAD_LEN;
    tn_nz_nonce(nonce, nz->rx_count++);
    if (!tn_cr_aead_open(nz->rx_key, nonce, NULL, 0, record, n, record + n))
        return tn_nz_fail(nz, TAILNET_ERR_FORGED);
    *text = record;
    *len  = n;
    return TAILNET_OK;
}

/* ---- the early payload ---- */

#define TN_NZ_EARLY_MAX 65536ul

typedef enum tn_nz_early_result {
    TN_NZ_EARLY_MORE,                       /* all eaten: come again with more    */
    TN_NZ_EARLY_NONE,                       /* head is HTTP/2, then what is left  */
    TN_NZ_EARLY_SKIPPED,                    /* what is left is HTTP/2             */
    TN_NZ_EARLY_BAD                         /* close                              */
} tn_nz_early_result;

/* Starts as zeroes. A challenge for the node key is all that comes there, and
 * nothing waits for an answer to it. */
typedef struct tn_nz_early {
    uint8_t  head[9];                       /* as long as a frame head of HTTP/2  */
    uint8_t  have;
    uint32_t skip;                          /* bytes still to pass over           */
} tn_nz_early;

/* Eats of the first plaintext until it is clear what it was; data and len move
 * along. After any result but MORE it has done its work. */
static tn_nz_early_result tn_nz_early_take(tn_nz_early *e, const uint8_t **data, size_t *len)
{
    static const uint8_t magic[5] = { 0xff, 0xff, 0xff, 0x54, 0x53 };
    tn_rd  r;
    size_t n;

    tn_rd_over(&r, *data, *len);
    if (e->have < sizeof e->head) {
        n = sizeof e->head - e->have;
        if (n > r.left) n = r.left;
        tn_rd_copy(&r, e->head + e->have, n);
        e->have = (uint8_t)(e->have + n);
        *data   = r.at;
        *len    = r.left;
        if (e->have < sizeof e->head) return TN_NZ_EARLY_MORE;
        if (memcmp(e->head, magic, sizeof magic) != 0) return TN_NZ_EARLY_NONE;
        e->skip = tn_get_u32be(e->head + sizeof magic);
        if (e->skip > TN_NZ_EARLY_MAX) return TN_NZ_EARLY_BAD;
    }
    n = e->skip < r.left ? (size_t)e->skip : r.left;
    (void)tn_rd_bytes(&r, n);
    e->skip -= (uint32_t)n;
    *data = r.at;
    *len  = r.left;
    return e->skip == 0 ? TN_NZ_EARLY_SKIPPED : TN_NZ_EARLY_MORE;
}

/* ======================================================================== *
 * >>derp — what is said on a connection to a relay: frames both ways, the
 * login, the sending limit.
 *
 * Owns:    the state of one reader; the buffer for frames that straddle two
 *          pieces of input is the caller's.
 * Calls:   >>base, >>crypto (box).
 * States:  HEAD -> WHOLE | COLLECT | SKIP -> HEAD, and from each to BROKEN.
 * Always:  any cut of the same bytes gives the same events, but that a frame
 *          longer than the straddle buffer is skipped when it is cut. Types
 *          we do not know are skipped, known ones that are too short too.
 * Trust:   TLS has named the server, so the server key is believed; the source
 *          of a packet as far as the server is. Everything else may be hostile.
 * ======================================================================== */

enum {
    TN_DERP_HEAD_LEN   = 5,                 /* type 1, length of the rest 4       */
    TN_DERP_KEYED_LEN  = 37,                /* head and a key: before every packet */
    TN_DERP_STRADDLE   = 1568,              /* a good size for straddle buffers   */
    TN_DERP_LOGIN_LEN  = 109,               /* the ClientInfo frame               */
    TN_DERP_BOX_LEN    = 40                 /* nonce and tag before a box's text  */
};
#define TN_DERP_FRAME_MAX ((uint32_t)1 << 20) /* longer is an error (derp_client.go) */

enum {
    TN_DERP_T_SERVER_KEY  = 0x01,
    TN_DERP_T_CLIENT_INFO = 0x02,
    TN_DERP_T_SERVER_INFO = 0x03,
    TN_DERP_T_SEND        = 0x04,
    TN_DERP_T_RECV        = 0x05,
    TN_DERP_T_KEEPALIVE   = 0x06,
    TN_DERP_T_PREFERRED   = 0x07,
    TN_DERP_T_PEER_GONE   = 0x08,
    TN_DERP_T_PING        = 0x12,
    TN_DERP_T_PONG        = 0x13,
    TN_DERP_T_HEALTH      = 0x14,
    TN_DERP_T_RESTARTING  = 0x15,
    TN_DERP_TYPES         = 0x16
};

static const uint8_t tn_derp_magic[8] = { 0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91 };
static const char    tn_derp_hello[]  = "{\"version\":2,\"CanAckPings\":true}";

typedef enum tn_derp_kind {
    TN_DERP_NONE,                           /* all input is taken, no event       */
    TN_DERP_BROKEN,                         /* cannot go on: close                */
    TN_DERP_OTHER,                          /* a frame that was skipped           */
    TN_DERP_SERVER_KEY,                     /* key                                */
    TN_DERP_SERVER_INFO,                    /* data: a box for tn_derp_open       */
    TN_DERP_PACKET,                         /* key: other end, data: may be changed */
    TN_DERP_PEER_GONE,                      /* key, reason                        */
    TN_DERP_PING,                           /* data: 8 bytes                      */
    TN_DERP_PONG,                           /* data: 8 bytes                      */
    TN_DERP_HEALTH,                         /* data: text, empty: well again      */
    TN_DERP_RESTARTING,                     /* in_ms, try_ms                      */
    TN_DERP_KEEPALIVE,
    TN_DERP_CLIENT_INFO,                    /* server: key, data: a box           */
    TN_DERP_PREFERRED                       /* server: reason is 0 or 1           */
} tn_derp_kind;

/* What a frame says. The pointers lead into the input or the straddle buffer
 * and hold until the next call. */
typedef struct tn_derp_event {
    tn_derp_kind   kind;
    const uint8_t *key;
    uint8_t       *data;
    size_t         len;
    uint32_t       in_ms, try_ms;
    uint8_t        reason;
} tn_derp_event;

typedef enum tn_derp_state {
    TN_DERP_AT_HEAD, TN_DERP_AT_BODY, TN_DERP_AT_COLLECT, TN_DERP_AT_SKIP, TN_DERP_AT_END
} tn_derp_state;

/* One connection. */
typedef struct tn_derp {
    tn_derp_state state;
    bool          server;                   /* we are the server                  */
    bool          begun;                    /* the first frame was the right one  */
    bool          limited;                  /* the server limits what we send     */
    uint8_t       head[TN_DERP_HEAD_LEN];
    uint8_t       head_len;
    uint8_t       type;
    uint32_t      len;                      /* of the frame behind its head       */
    uint32_t      have;                     /* of that collected or skipped       */
    uint32_t      oversize;                 /* frames skipped for their length    */
    uint32_t      per_second, burst;        /* token bucket, in bytes             */
    uint64_t      tokens;                   /* in thousandths of a byte           */
    uint64_t      filled_ms;
    uint8_t       k[32];                    /* box key of this login              */
} tn_derp;

/* A new connection. Forgets everything about an old one. */
static void tn_derp_start(tn_derp *d, bool server)
{
    tn_wipe(d, sizeof *d);
    d->server = server;
}

/* ---- reading ---- */

/* A short frame of a known type is no event; a wrong beginning ends all: a
 * client's first frame is ServerKey, a server's is ClientInfo. */
static tn_derp_kind tn_derp_refuse(tn_derp *d)
{
    if (d->begun) return TN_DERP_OTHER;
    d->state = TN_DERP_AT_END;
    return TN_DERP_BROKEN;
}

/* A device is never the server: this is false there. */
static bool tn_derp_serves(const tn_derp *d) { return TAILNET_SERVER != 0 && d->server; }

/* What a type is to whom it comes; each side has its own. The first frame of a
 * connection comes once. */
static tn_derp_kind tn_derp_kind_of(const tn_derp *d)
{
    static const uint8_t to_client[TN_DERP_TYPES] = {
        0, TN_DERP_SERVER_KEY, 0, TN_DERP_SERVER_INFO, 0, TN_DERP_PACKET, TN_DERP_KEEPALIVE, 0,
        TN_DERP_PEER_GONE, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        TN_DERP_PING, TN_DERP_PONG, TN_DERP_HEALTH, TN_DERP_RESTARTING
    };
    static const uint8_t to_server[TN_DERP_TYPES] = {
        0, 0, TN_DERP_CLIENT_INFO, 0, TN_DERP_PACKET, 0, 0, TN_DERP_PREFERRED,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, TN_DERP_PING, TN_DERP_PONG, 0, 0
    };
    unsigned kind = TN_DERP_NONE;
    if (d->type < TN_DERP_TYPES) kind = (tn_derp_serves(d) ? to_server : to_client)[d->type];
    if (kind == TN_DERP_NONE ||
        (d->begun && (kind == TN_DERP_SERVER_KEY || kind == TN_DERP_CLIENT_INFO)))
        return TN_DERP_OTHER;
    return (tn_derp_kind)kind;
}

/* A frame that lies whole at body: what does it say? */
static tn_derp_kind tn_derp_dispatch(tn_derp *d, uint8_t *body, size_t len, tn_derp_event *ev)
{
    tn_rd          r;
    const uint8_t *magic;

    tn_rd_over(&r, body, len);
    ev->kind = tn_derp_kind_of(d);
    switch (ev->kind) {
    case TN_DERP_SERVER_KEY:
        magic   = tn_rd_bytes(&r, sizeof tn_derp_magic);
        ev->key = tn_rd_bytes(&r, 32);
        if (ev->key == NULL || memcmp(magic, tn_derp_magic, sizeof tn_derp_magic) != 0)
            return ev->kind = tn_derp_refuse(d);
        break;
    case TN_DERP_CLIENT_INFO:
    case TN_DERP_PACKET:
        ev->key = tn_rd_bytes(&r, 32);
        break;
    case TN_DERP_PEER_GONE:
        ev->key = tn_rd_bytes(&r, 32);
        if (r.left != 0) ev->reason = tn_rd_u8(&r);
        break;
    case TN_DERP_RESTARTING:
        ev->in_ms  = tn_rd_u32be(&r);
        ev->try_ms = tn_rd_u32be(&r);
        break;
    case TN_DERP_PREFERRED:
        ev->reason = tn_rd_u8(&r);
        break;
    case TN_DERP_PING:
    case TN_DERP_PONG:
        if (r.left < 8) r.short_input = true;
        else            r.left = 8;
        break;
    case TN_DERP_NONE: case TN_DERP_BROKEN: case TN_DERP_OTHER: case TN_DERP_SERVER_INFO:
    case TN_DERP_HEALTH: case TN_DERP_KEEPALIVE:
        break;
    }
    if (!tn_rd_ok(&r)) ev->kind = TN_DERP_OTHER;
    if (!d->begun) {
        d->begun = ev->kind == (tn_derp_serves(d) ? TN_DERP_CLIENT_INFO : TN_DERP_SERVER_KEY);
        if (!d->begun) return ev->kind = tn_derp_refuse(d);
    }
    if (ev->kind == TN_DERP_OTHER) {        /* as when it was skipped             */
        ev->key = NULL;
        return ev->kind;
    }
    ev->data = r.left == 0 ? body : body + (r.at - body); /* the same, to be written */
    ev->len  = r.left;
    return ev->kind;
}

/* Takes what is there of the head; true when it is complete. */
static bool tn_derp_take_head(tn_derp *d, uint8_t **at, size_t *left)
{
    tn_rd r;
    while (*left != 0 && d->head_len < TN_DERP_HEAD_LEN) {
        d->head[d->head_len++] = **at;
        ++*at;
        --*left;
    }
    if (d->head_len < TN_DERP_HEAD_LEN) return false;
    tn_rd_over(&r, d->head, TN_DERP_HEAD_LEN);
    d->type     = tn_rd_u8(&r);
    d->len      = tn_rd_u32be(&r);
    d->have     = 0;
    d->head_len = 0;
    d->state    = d->len > TN_DERP_FRAME_MAX ? TN_DERP_AT_END : TN_DERP_AT_BODY;
    return true;
}

/* Takes up to the rest of the frame, into the store unless it is NULL; true
 * when the frame is complete. */
static bool tn_derp_take_body(tn_derp *d, uint8_t *store, uint8_t **at, size_t *left)
{
    uint32_t n = d->len - d->have;          /* up to 64 KB: more than a size_t may hold */
    if (n > *left) n = (uint32_t)*left;
    if (store != NULL && n != 0) memcpy(store + d->have, *at, (size_t)n);
    d->have += n;
    *at   += (size_t)n;
    *left -= (size_t)n;
    return d->have == d->len;
}

/* Takes bytes from *at and *left up to the end of the next frame and says what
 * it was; NONE when all bytes are taken and no frame is complete. Frames that
 * lie whole in the bytes are read where they lie, others are collected in the
 * store of cap bytes; those longer than that are skipped. *at is never NULL. */
static tn_derp_kind tn_derp_next(tn_derp *d, uint8_t *store, size_t cap, uint8_t **at,
                                 size_t *left, tn_derp_event *ev)
{
    memset(ev, 0, sizeof *ev);
    for (;;) {                              /* at most three states per frame     */
        uint8_t *body = *at;
        switch (d->state) {
        case TN_DERP_AT_HEAD:
            if (!tn_derp_take_head(d, at, left)) return ev->kind = TN_DERP_NONE;
            break;
        case TN_DERP_AT_BODY:
            if (d->len <= *left) {
                *at   += d->len;
                *left -= d->len;
                d->state = TN_DERP_AT_HEAD;
                return tn_derp_dispatch(d, body, d->len, ev);
            }
            d->state = TN_DERP_AT_SKIP;
            if (d->begun && tn_derp_kind_of(d) == TN_DERP_OTHER) break;
            if (d->len <= cap) d->state = TN_DERP_AT_COLLECT;
            else               d->oversize++;
            break;
        case TN_DERP_AT_COLLECT:
            if (!tn_derp_take_body(d, store, at, left)) return ev->kind = TN_DERP_NONE;
            d->state = TN_DERP_AT_HEAD;
            return tn_derp_dispatch(d, store, d->len, ev);
        case TN_DERP_AT_SKIP:
            if (!d->begun) return ev->kind = tn_derp_refuse(d);
            if (!tn_derp_take_body(d, NULL, at, left)) return ev->kind = TN_DERP_NONE;
            d->state = TN_DERP_AT_HEAD;
            return ev->kind = TN_DERP_OTHER;
        case TN_DERP_AT_END:
            return ev->kind = TN_DERP_BROKEN;
        }
    }
}

/* Is a frame collected in the store right now? */
static TN_MAYBE_UNUSED bool tn_derp_holds_store(const tn_derp *d)
{
    return d->state == TN_DERP_AT_COLLECT;
}

/* ---- writing ---- */

static void tn_derp_wr_head(tn_wr *w, unsigned type, size_t len)
{
    tn_wr_u8(w, type);
    tn_wr_u32be(w, (uint32_t)len);
}

/* A packet to or from a key. */
static void tn_derp_wr_packet(tn_wr *w, unsigned type, const uint8_t key[32], const void *data,
                              size_t len)
{
    tn_derp_wr_head(w, type, 32 + len);
    tn_wr_bytes(w, key, 32);
    tn_wr_bytes(w, data, len);
}

static void tn_derp_wr_send(tn_wr *w, const uint8_t to[32], const void *data, size_t len)
{
    tn_derp_wr_packet(w, TN_DERP_T_SEND, to, data, len);
}

static TN_MAYBE_UNUSED void tn_derp_wr_recv(tn_wr *w, const uint8_t from[32], const void *data,
                                            size_t len)
{
    tn_derp_wr_packet(w, TN_DERP_T_RECV, from, data, len);
}

/* Is this relay our home? */
static void tn_derp_wr_preferred(tn_wr *w, bool home)
{
    tn_derp_wr_head(w, TN_DERP_T_PREFERRED, 1);
    tn_wr_u8(w, home ? 1u : 0u);
}

static TN_MAYBE_UNUSED void tn_derp_wr_ping(tn_wr *w, const uint8_t bytes[8])
{
    tn_derp_wr_head(w, TN_DERP_T_PING, 8);
    tn_wr_bytes(w, bytes, 8);
}

static void tn_derp_wr_pong(tn_wr *w, const uint8_t bytes[8])
{
    tn_derp_wr_head(w, TN_DERP_T_PONG, 8);
    tn_wr_bytes(w, bytes, 8);
}

/* The rest of the writers are a server's. */
static TN_MAYBE_UNUSED void tn_derp_wr_server_key(tn_wr *w, const uint8_t key[32])
{
    tn_derp_wr_head(w, TN_DERP_T_SERVER_KEY, sizeof tn_derp_magic + 32);
    tn_wr_bytes(w, tn_derp_magic, sizeof tn_derp_magic);
    tn_wr_bytes(w, key, 32);
}

static TN_MAYBE_UNUSED void tn_derp_wr_keepalive(tn_wr *w)
{
    tn_derp_wr_head(w, TN_DERP_T_KEEPALIVE, 0);
}

/* reason 0: the peer disconnected; 1: it is not here. */
static TN_MAYBE_UNUSED void tn_derp_wr_peer_gone(tn_wr *w, const uint8_t key[32], unsigned reason)
{
    tn_derp_wr_head(w, TN_DERP_T_PEER_GONE, 33);
    tn_wr_bytes(w, key, 32);
    tn_wr_u8(w, reason);
}

static TN_MAYBE_UNUSED void tn_derp_wr_health(tn_wr *w, const char *text)
{
    tn_derp_wr_head(w, TN_DERP_T_HEALTH, strlen(text));
    tn_wr_text(w, text);
}

static TN_MAYBE_UNUSED void tn_derp_wr_restarting(tn_wr *w, uint32_t in_ms, uint32_t try_ms)
{
    tn_derp_wr_head(w, TN_DERP_T_RESTARTING, 8);
    tn_wr_u32be(w, in_ms);
    tn_wr_u32be(w, try_ms);
}

/* ---- login ---- */

/* The server key in the common name "derpkey<64 hex>" of a certificate that
 * relays add to their chain (derpserver.go, initMetacert): who finds it may
 * send ClientInfo together with the HTTP request. */
static TN_MAYBE_UNUSED bool tn_derp_meta_key(uint8_t key[32], const char *name, size_t len)
{
    static const char prefix[] = "derpkey";
    if (!tn_begins(name, len, prefix)) return false;
    return tn_hex_parse(key, 32, name + sizeof prefix - 1, len - (sizeof prefix - 1)) &&
           !tn_is_zero(key, 32);
}

/* Fixes the key of the login's boxes: one X25519. The other side's key comes
 * with its first frame, or was known in advance. False: it is no usable key. */
static bool tn_derp_set_key(tn_derp *d, const uint8_t my_private[32],
                            const uint8_t their_public[32])
{
    return tn_cr_box_key(d->k, my_private, their_public);
}

/* nonce, tag, and text encrypted. */
static void tn_derp_wr_box(const tn_derp *d, tn_wr *w, const uint8_t nonce[24], const uint8_t *text,
                           size_t len)
{
    uint8_t box[TN_DERP_LOGIN_LEN];
    TAILNET_ASSERT(len + 16 <= sizeof box);
    tn_cr_box_seal(d->k, nonce, box, text, len);
    tn_wr_bytes(w, nonce, 24);
    tn_wr_bytes(w, box, len + 16);
}

/* The client's login, TN_DERP_LOGIN_LEN bytes, after tn_derp_set_key. */
static void tn_derp_wr_client_info(const tn_derp *d, tn_wr *w, const uint8_t node_public[32],
                                   const uint8_t nonce[24])
{
    size_t len = sizeof tn_derp_hello - 1;
    tn_derp_wr_head(w, TN_DERP_T_CLIENT_INFO, 32 + TN_DERP_BOX_LEN + len);
    tn_wr_bytes(w, node_public, 32);
    tn_derp_wr_box(d, w, nonce, (const uint8_t *)tn_derp_hello, len);
}

/* The server's answer. A per_second of 0 is "no limit". */
static TN_MAYBE_UNUSED void tn_derp_wr_server_info(const tn_derp *d, tn_wr *w,
                                                   const uint8_t nonce[24], uint32_t per_second,
                                                   uint32_t burst)
{
    uint8_t text[93];
    tn_wr   t;
    tn_wr_over(&t, text, sizeof text);
    tn_wr_text(&t, "{\"version\":2");
    if (per_second != 0) {
        tn_wr_text(&t, ",\"TokenBucketBytesPerSecond\":");
        tn_wr_dec(&t, per_second);
        tn_wr_text(&t, ",\"TokenBucketBytesBurst\":");
        tn_wr_dec(&t, burst);
    }
    tn_wr_u8(&t, '}');
    tn_derp_wr_head(w, TN_DERP_T_SERVER_INFO, TN_DERP_BOX_LEN + tn_wr_len(&t));
    tn_derp_wr_box(d, w, nonce, text, tn_wr_len(&t));
}

/* Opens the box of SERVER_INFO or CLIENT_INFO in place: data and len become
 * the JSON text. The login is over then, and its key forgotten by a client. */
static bool tn_derp_open(tn_derp *d, tn_derp_event *ev)
{
    bool ok = ev->len >= TN_DERP_BOX_LEN &&
              tn_cr_box_open(d->k, ev->data, ev->data + TN_DERP_BOX_LEN, ev->data + 24,
                             ev->len - 24);
    if (!tn_derp_serves(d)) tn_wipe(d->k, sizeof d->k);
    if (!ok) return false;
    ev->data += TN_DERP_BOX_LEN;
    ev->len  -= TN_DERP_BOX_LEN;
    return true;
}

/* ---- the sending limit (ServerInfo's token bucket; derp_client.go, send) ---- */

/* What the server allows; the bucket starts full. per_second 0: all. */
static void tn_derp_limit(tn_derp *d, uint32_t per_second, uint32_t burst, uint64_t now_ms)
{
    d->limited    = per_second != 0;
    d->per_second = per_second;
    d->burst      = burst;
    d->tokens     = (uint64_t)burst * 1000u;
    d->filled_ms  = now_ms;
}

/* Pays for a packet of len bytes. False: too fast, drop it. */
static bool tn_derp_may_send(tn_derp *d, size_t len, uint64_t now_ms)
{
    uint64_t full = (uint64_t)d->burst * 1000u;
    uint64_t cost = ((uint64_t)len + TN_DERP_KEYED_LEN) * 1000u;
    if (!d->limited) return true;
    if (now_ms > d->filled_ms) {
        uint64_t passed = tn_min64(now_ms - d->filled_ms, 0xffffffffu);
        d->tokens       = tn_min64(full, d->tokens + passed * d->per_second);
        d->filled_ms    = now_ms;
    }
    if (cost > d->tokens) return false;
    d->tokens -= cost;
    return true;
}

/* ======================================================================== *
 * >>stun — which address does the world see us from? (RFC 8489, the part
 * that a binding request needs)
 *
 * Owns:    nothing; a request is 40 bytes and the caller keeps its id.
 * Calls:   >>base.
 * States:  none. Retries and choosing servers belong above.
 * Always:  what one half builds, the other half parses.
 * Trust:   input is any datagram from anywhere. A response counts only if it
 *          carries an id we sent; the id is 96 random bits.
 * ======================================================================== */

enum {
    TN_STUN_BINDING_REQUEST  = 0x0001,
    TN_STUN_BINDING_RESPONSE = 0x0101,
    TN_STUN_MAPPED           = 0x0001,
    TN_STUN_XOR_MAPPED       = 0x0020,
    TN_STUN_FAMILY_IP4       = 1,
    TN_STUN_FAMILY_IP6       = 2,
    TN_STUN_HEAD             = 20,
    TN_STUN_REQUEST_LEN      = 40
};
#define TN_STUN_XOR_MAPPED_OLD 0x8020u      /* its number in drafts, still in use */
#define TN_STUN_SOFTWARE       0x8022u
#define TN_STUN_FINGERPRINT    0x8028u
#define TN_STUN_COOKIE         0x2112a442ul /* an enum may be 16 bits wide        */
#define TN_STUN_CRC_XOR        0x5354554eul

/* CRC-32 of IEEE 802.3, without a table: a request is 32 bytes. */
static uint32_t tn_stun_crc(const uint8_t *src, size_t len)
{
    uint32_t crc = 0xfffffffful;
    size_t   i;
    int      bit;
    for (i = 0; i < len; i++) {
        crc ^= src[i];
        for (bit = 0; bit < 8; bit++)
            crc = (crc & 1u) != 0 ? crc >> 1 ^ (uint32_t)0xedb88320ul : crc >> 1;
    }
    return crc ^ (uint32_t)0xfffffffful;
}

/* A binding request. Relays answer only this form: SOFTWARE "tailnode", then
 * FINGERPRINT (reference: net/stun/stun.go, Request). */
static TN_MAYBE_UNUSED void tn_stun_wr_request(tn_wr *w, const uint8_t id[12])
{
    uint8_t  text[TN_STUN_REQUEST_LEN];
    uint32_t crc;
    tn_wr    t;

    tn_wr_over(&t, text, sizeof text);
    tn_wr_u16be(&t, TN_STUN_BINDING_REQUEST);
    tn_wr_u16be(&t, TN_STUN_REQUEST_LEN - TN_STUN_HEAD);
    tn_wr_u32be(&t, (uint32_t)TN_STUN_COOKIE);
    tn_wr_bytes(&t, id, 12);
    tn_wr_u16be(&t, TN_STUN_SOFTWARE);
    tn_wr_u16be(&t, 8);
    tn_wr_text(&t, "tailnode");
    crc = tn_stun_crc(text, tn_wr_len(&t)) ^ (uint32_t)TN_STUN_CRC_XOR;
    tn_wr_u16be(&t, TN_STUN_FINGERPRINT);
    tn_wr_u16be(&t, 4);
    tn_wr_u32be(&t, crc);
    tn_wr_bytes(w, text, sizeof text);
}

/* The head of a message: its type and id, and in msg the attributes that
 * belong to it. What follows the message in the datagram is cut off. */
static bool tn_stun_head(tn_rd *msg, const uint8_t *src, size_t len, uint16_t *type,
                         const uint8_t **id)
{
    uint16_t length;
    uint32_t cookie;

    tn_rd_over(msg, src, len);
    *type  = tn_rd_u16be(msg);
    length = tn_rd_u16be(msg);
    cookie = tn_rd_u32be(msg);
    *id    = tn_rd_bytes(msg, 12);
    if (!tn_rd_ok(msg) || cookie != TN_STUN_COOKIE || length > msg->left) return false;
    msg->left = length;
    return true;
}

/* One attribute, cut out of the message. Attributes are padded to four bytes,
 * the last one sometimes is not: some servers stop early, and we allow it. */
static uint16_t tn_stun_attribute(tn_rd *msg, tn_rd *value)
{
    uint16_t       type  = tn_rd_u16be(msg);
    uint16_t       len   = tn_rd_u16be(msg);
    const uint8_t *bytes = tn_rd_bytes(msg, len);
    size_t         pad   = (4u - len % 4u) % 4u;

    tn_rd_over(value, bytes, bytes == NULL ? 0 : len);
    if (pad <= msg->left) (void)tn_rd_bytes(msg, pad);
    return type;
}

/* The value of an address attribute; with an id it is XORed with cookie and
 * id. IPv4 inside IPv6 becomes IPv4, as peers will see it. */
static bool tn_stun_addr(tn_rd *value, const uint8_t *id, tailnet_addr *out)
{
    static const uint8_t inside[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
    uint8_t  mask[16];
    unsigned family = tn_rd_u16be(value) & 0xffu, i;
    unsigned port   = tn_rd_u16be(value);

    memset(out, 0, sizeof *out);
    memset(mask, 0, sizeof mask);
    if (id != NULL) {
        tn_put_u32be(mask, (uint32_t)TN_STUN_COOKIE);
        memcpy(mask + 4, id, 12);
    }
    out->family = family == TN_STUN_FAMILY_IP4 ? 4 : family == TN_STUN_FAMILY_IP6 ? 6 : 0;
    out->port   = (uint16_t)(port ^ ((unsigned)mask[0] << 8 | mask[1]));
    tn_rd_copy(value, out->ip, tn_ip_len(out->family));
    for (i = 0; i < tn_ip_len(out->family); i++) out->ip[i] ^= mask[i];
    if (out->family == 6 && memcmp(out->ip, inside, sizeof inside) == 0) {
        out->family = 4;
        memmove(out->ip, out->ip + 12, 4);
        memset(out->ip + 4, 0, 12);
    }
    return tn_rd_ok(value) && out->family != 0;
}

/* Is this datagram the answer to request id, and which address does it name?
 * FORGED: an answer, but not to this request. The last XOR address counts, a
 * plain one only without any (reference: net/stun/stun.go, ParseResponse). */
static TN_MAYBE_UNUSED tailnet_result tn_stun_parse(const uint8_t *src, size_t len,
                                                    const uint8_t id[12], tailnet_addr *out)
{
    tn_rd          msg, value;
    uint16_t       type;
    const uint8_t *got;
    bool           found = false;

    memset(out, 0, sizeof *out);
    if (!tn_stun_head(&msg, src, len, &type, &got) || type != TN_STUN_BINDING_RESPONSE)
        return TAILNET_ERR_MALFORMED;
    if (memcmp(got, id, 12) != 0) return TAILNET_ERR_FORGED;

    while (msg.left != 0) {                 /* at most len / 4 turns              */
        uint16_t kind = tn_stun_attribute(&msg, &value);
        bool     xored = kind == TN_STUN_XOR_MAPPED || kind == TN_STUN_XOR_MAPPED_OLD;
        if (!tn_rd_ok(&msg)) return TAILNET_ERR_MALFORMED;
        if (!xored && (kind != TN_STUN_MAPPED || found)) continue;
        if (!tn_stun_addr(&value, xored ? id : NULL, out)) return TAILNET_ERR_MALFORMED;
        if (xored) found = true;
    }
    return out->family != 0 ? TAILNET_OK : TAILNET_ERR_MALFORMED;
}

/* The id of a success response, to find the request it answers. */
static TN_MAYBE_UNUSED bool tn_stun_id(const uint8_t *src, size_t len, uint8_t id[12])
{
    tn_rd          msg;
    uint16_t       type;
    const uint8_t *got;
    if (!tn_stun_head(&msg, src, len, &type, &got) || type != TN_STUN_BINDING_RESPONSE)
        return false;
    memcpy(id, got, 12);
    return true;
}

/* Server: is this a request that the reference server would answer? SOFTWARE
 * must be "tailnode" and FINGERPRINT right and last (ParseBindingRequest). */
static TN_MAYBE_UNUSED bool tn_stun_parse_request(const uint8_t *src, size_t len, uint8_t id[12])
{
    tn_rd          msg, value;
    uint16_t       type;
    const uint8_t *got;
    bool           ours = false, sealed = false;
    size_t         end;

    if (!tn_stun_head(&msg, src, len, &type, &got) || type != TN_STUN_BINDING_REQUEST) return false;
    end = TN_STUN_HEAD + msg.left;
    while (msg.left != 0) {
        size_t   before = end - msg.left;
        uint16_t kind   = tn_stun_attribute(&msg, &value);
        if (!tn_rd_ok(&msg) || sealed) return false;
        if (kind == TN_STUN_SOFTWARE)
            ours = value.left == 8 && memcmp(value.at, "tailnode", 8) == 0;
        if (kind != TN_STUN_FINGERPRINT) continue;
        if (value.left != 4) return false;
        sealed = (tn_rd_u32be(&value) ^ (uint32_t)TN_STUN_CRC_XOR) == tn_stun_crc(src, before);
        if (!sealed) return false;
    }
    memcpy(id, got, 12);
    return ours && sealed;
}

/* Server: the answer, 32 or 44 bytes. */
static TN_MAYBE_UNUSED void tn_stun_wr_response(tn_wr *w, const uint8_t id[12],
                                                const tailnet_addr *mapped)
{
    uint8_t  mask[16];
    unsigned i, n = tn_ip_len(mapped->family);

    tn_put_u32be(mask, (uint32_t)TN_STUN_COOKIE);
    memcpy(mask + 4, id, 12);
    tn_wr_u16be(w, TN_STUN_BINDING_RESPONSE);
    tn_wr_u16be(w, 8 + n);
    tn_wr_u32be(w, (uint32_t)TN_STUN_COOKIE);
    tn_wr_bytes(w, id, 12);
    tn_wr_u16be(w, TN_STUN_XOR_MAPPED);
    tn_wr_u16be(w, 4 + n);
    tn_wr_u16be(w, mapped->family == 6 ? TN_STUN_FAMILY_IP6 : TN_STUN_FAMILY_IP4);
    tn_wr_u16be(w, (unsigned)mapped->port ^ (unsigned)(TN_STUN_COOKIE >> 16));
    for (i = 0; i < n; i++) tn_wr_u8(w, (unsigned)(mapped->ip[i] ^ mask[i]));
}

#if TAILNET_PORTMAP
/* ======================================================================== *
 * >>pmp — a port of the router that leads to our socket: PCP (RFC 6887),
 * NAT-PMP (RFC 6886), UPnP-IGD 1 and 2.
 *
 * Owns:    one mapping and what is needed to ask for it.
 * Calls:   >>base.
 * States:  IDLE -> PROBE -> MAP -> HELD, UPnP instead of MAP: GET -> ASK -> ADD.
 *          HELD -> MAP or ASK to renew. Nothing answers: WAIT -> PROBE. RELEASE
 *          gives back, then IDLE or PROBE. From every state to IDLE.
 * Always:  every state but IDLE has a deadline. An answer is believed once and
 *          only after its question. An answer never lengthens a time-out.
 * Trust:   only the gateway's address is listened to, and it can be forged by
 *          anybody in the local network; PCP also carries our nonce. HTTP goes
 *          to the gateway only. What a liar gains is a wrong address in our
 *          list of addresses, which peers try and find dead.
 * ======================================================================== */

typedef enum tn_pmp_state {
    TN_PMP_IDLE, TN_PMP_PROBE, TN_PMP_MAP, TN_PMP_GET, TN_PMP_ASK, TN_PMP_ADD, TN_PMP_HELD,
    TN_PMP_WAIT, TN_PMP_RELEASE
} tn_pmp_state;

/* What step wants of the node. */
typedef enum tn_pmp_want { TN_PMP_NOTHING, TN_PMP_SEND, TN_PMP_HTTP } tn_pmp_want;

/* Services of the gateway; PROBED: the others are known. */
enum { TN_PMP_HAS_PCP = 1, TN_PMP_HAS_PMP = 2, TN_PMP_HAS_UPNP = 4, TN_PMP_PROBED = 8 };

enum { TN_PMP_NEWS_MAPPING = 1, TN_PMP_NEWS_REPORT = 2 };

/* Questions, in the order in which they are put. */
enum {
    TN_PMP_Q_ANNOUNCE = 1, TN_PMP_Q_ADDRESS = 2, TN_PMP_Q_PCP = 4, TN_PMP_Q_PMP = 8,
    TN_PMP_Q_NEAR = 16, TN_PMP_Q_ALL = 32, TN_PMP_Q_HTTP = 64,
#if TAILNET_UPNP
    TN_PMP_Q_PROBE = 1 | 2 | 16 | 32
#else
    TN_PMP_Q_PROBE = 1 | 2
#endif
};

enum {
    TN_PMP_STATES    = 9,
    TN_PMP_DATAGRAM  = 192,                 /* the longest one                    */
    TN_PMP_PORT      = 5351,
    TN_PMP_SSDP_PORT = 1900,
    TN_PMP_LIFE_S    = 7200,
    TN_PMP_LIFE_LEAST_S = 60,               /* less is as good as a refusal       */
    TN_PMP_REPEATS   = 5,
    TN_PMP_PORTS     = 4,                   /* tried until UPnP has a free one    */
    TN_PMP_LIMIT_MS  = 5000                 /* for a mapping                      */
};
#define TN_PMP_TRUST_MS 600000ul            /* also the longest wait              */

#if TAILNET_UPNP
enum { TN_PMP_TEXT = 128, TN_PMP_NAME = 24 };

typedef enum tn_pmp_part { TN_PMP_HEAD, TN_PMP_CHUNK, TN_PMP_BODY } tn_pmp_part;
typedef enum tn_pmp_mark { TN_PMP_IN_TEXT, TN_PMP_IN_NAME, TN_PMP_IN_TAG } tn_pmp_mark;

/* An HTTP answer byte by byte: one line of its head, or the name of the last
 * tag and the text behind it. What does not fit is like nothing we look for. */
typedef struct tn_pmp_reader {
    tn_pmp_part part;
    tn_pmp_mark mark;
    bool        chunked;
    uint8_t     text_len, name_len;
    uint8_t     seen;                       /* services that would do             */
    uint8_t     kind;                       /* 1 + index of urn; 0: another one   */
    uint16_t    status;
    uint32_t    left;                       /* of the chunk                       */
    char        text[TN_PMP_TEXT], name[TN_PMP_NAME];
} tn_pmp_reader;
#endif

typedef struct tn_pmp {
    tn_pmp_state state;
    uint8_t      way;                       /* HAS_: who maps                     */
    uint8_t      services, seen, refused;   /* known, by this probe, in this turn */
    uint8_t      due, open;                 /* Q_: to be put; put, not answered   */
    uint8_t      news;
    uint8_t      tries, failures;
    bool         mapped;                    /* external and its port are true     */
    bool         forever;                   /* UPnP: only permanent mappings      */
    uint8_t      gateway[4], own[4], address[4], external[4];
    uint8_t      nonce[12];
    uint16_t     port, port_next;           /* of our socket: mapped; as it is    */
    uint16_t     external_port, want_port;
    uint32_t     life_s, epoch_s;
    uint64_t     epoch_ms;                  /* when the gateway said epoch_s      */
    uint64_t     deadline_ms, renew_ms, end_ms;
#if TAILNET_UPNP
    uint16_t      http_port;
    uint8_t       kind, nth;                /* of the service; which one to take  */
    char          path[TN_PMP_TEXT];        /* of the description, of the service */
    tn_pmp_reader in;
#endif
} tn_pmp;

/* From row to column: may that happen? */
static const uint16_t tn_pmp_arrows[TN_PMP_STATES] = {
    /* IDLE    */ 1u << TN_PMP_PROBE,
    /* PROBE   */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_MAP | 1u << TN_PMP_GET |
                  1u << TN_PMP_WAIT,
    /* MAP     */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_MAP | 1u << TN_PMP_GET |
                  1u << TN_PMP_WAIT | 1u << TN_PMP_HELD,
    /* GET     */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_ASK | 1u << TN_PMP_WAIT,
    /* ASK     */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_ADD | 1u << TN_PMP_WAIT,
    /* ADD     */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_ADD | 1u << TN_PMP_WAIT |
                  1u << TN_PMP_HELD,
    /* HELD    */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_MAP | 1u << TN_PMP_ASK |
                  1u << TN_PMP_HELD,
    /* WAIT    */ 1u << TN_PMP_IDLE | 1u << TN_PMP_RELEASE | 1u << TN_PMP_PROBE |
                  1u << TN_PMP_GET,
    /* RELEASE */ 1u << TN_PMP_IDLE
};

/* When a repeat of a mapping request follows; 5 s in all. */
static const uint16_t tn_pmp_repeat_ms[TN_PMP_REPEATS] = { 250, 500, 1000, 2000, 1250 };

static const uint16_t tn_pmp_patience_ms[TN_PMP_STATES] = {
    /* IDLE */ 0, /* PROBE */ 250, /* MAP */ 250, /* GET */ 5000, /* ASK */ 5000, /* ADD */ 5000,
    /* HELD */ 0 /* see enter */, /* WAIT */ 30000, /* RELEASE */ 5000
};

/* ---- the machine ---- */

/* The only place where state changes. Puts the state's questions; whatever was
 * open is forgotten. */
static TN_NOINLINE void tn_pmp_enter(tn_pmp *p, tn_pmp_state next, uint64_t now_ms)
{
    uint32_t patience_ms = tn_pmp_patience_ms[next];
    unsigned questions   = 0;

    TAILNET_ASSERT((tn_pmp_arrows[p->state] >> next & 1u) != 0);
    p->state = next;
    p->open  = 0;
    if (next != TN_PMP_ADD) p->tries = 0;
    if (next == TN_PMP_PROBE) {
        p->seen    = 0;
        p->refused = 0;
        questions  = TN_PMP_Q_PROBE;
    } else if (next == TN_PMP_HELD) {
        p->failures = 0;
        patience_ms = (uint32_t)tn_min64(p->renew_ms - now_ms, TN_PMP_TRUST_MS);
    } else if (next == TN_PMP_WAIT) {
        patience_ms <<= p->failures;
        if (patience_ms < TN_PMP_TRUST_MS) p->failures++;
        else                               patience_ms = TN_PMP_TRUST_MS;
    } else if (next != TN_PMP_IDLE) {
        questions = TN_PMP_Q_HTTP;
        if (p->way == TN_PMP_HAS_PCP) questions = TN_PMP_Q_PCP;
        if (p->way == TN_PMP_HAS_PMP) questions = TN_PMP_Q_PMP;
        if (questions == TN_PMP_Q_PMP && next == TN_PMP_MAP) questions |= TN_PMP_Q_ADDRESS;
    }
    p->due         = (uint8_t)questions;
    p->deadline_ms = tn_time_add(now_ms, patience_ms);
}

static void tn_pmp_lose(tn_pmp *p)
{
    if (p->mapped) p->news |= TN_PMP_NEWS_MAPPING;
    p->mapped = false;
}

static void tn_pmp_know(tn_pmp *p, unsigned services)
{
    if (p->services != services) p->news |= TN_PMP_NEWS_REPORT;
    p->services = (uint8_t)services;
}

/* The next service that answered and did not refuse, or a pause. */
static void tn_pmp_next(tn_pmp *p, uint64_t now_ms)
{
    unsigned left = p->seen & ~(unsigned)p->refused;
    if (left != 0) p->way = (uint8_t)(left & (0u - left));
    tn_pmp_enter(p, left == 0                   ? TN_PMP_WAIT
                    : p->way == TN_PMP_HAS_UPNP ? TN_PMP_GET : TN_PMP_MAP, now_ms);
}

static TN_NOINLINE void tn_pmp_refuse(tn_pmp *p, uint64_t now_ms)
{
    p->refused |= p->way;
    tn_pmp_next(p, now_ms);
}

/* Could anybody outside reach this address? Private ones are allowed: behind a
 * second router they serve the machines in between. */
static bool tn_pmp_good(const uint8_t ip[4])
{
    return ip[0] != 0 && ip[0] != 127 && ip[0] < 224;
}

/* What address says now is true outside. */
static void tn_pmp_publish(tn_pmp *p)
{
    if (p->mapped && p->external_port == p->want_port && memcmp(p->external, p->address, 4) == 0)
        return;
    p->mapped        = true;
    p->external_port = p->want_port;
    p->news |= TN_PMP_NEWS_MAPPING;
    memcpy(p->external, p->address, 4);
}

/* The gateway granted want_port at address for life_s. */
static void tn_pmp_grant(tn_pmp *p, uint64_t now_ms)
{
    uint32_t life = p->life_s < TN_PMP_LIFE_S ? p->life_s : (uint32_t)TN_PMP_LIFE_S;
    if (life < TN_PMP_LIFE_LEAST_S || p->want_port == 0 || !tn_pmp_good(p->address)) {
        tn_pmp_refuse(p, now_ms);
        return;
    }
    tn_pmp_publish(p);
    p->renew_ms = tn_time_add(now_ms, life * 500u);
    p->end_ms   = tn_time_add(now_ms, life * (uint32_t)1000ul);
    tn_pmp_enter(p, TN_PMP_HELD, now_ms);
}

/* Given back, or given up. */
static void tn_pmp_released(tn_pmp *p, uint64_t now_ms)
{
    tn_pmp_enter(p, TN_PMP_IDLE, now_ms);
    p->port = p->port_next;
    if (p->port != 0) tn_pmp_enter(p, TN_PMP_PROBE, now_ms);
}

static void tn_pmp_leave(tn_pmp *p, uint16_t port_next, uint64_t now_ms)
{
    p->port_next = port_next;
    if (p->mapped)                       tn_pmp_enter(p, TN_PMP_RELEASE, now_ms);
    else if (p->state != TN_PMP_RELEASE) tn_pmp_released(p, now_ms);
    tn_pmp_lose(p);
}

/* Asks once more for what we have. */
static void tn_pmp_renew(tn_pmp *p, uint64_t now_ms)
{
    p->seen    = p->way;
    p->refused = 0;
    tn_pmp_enter(p, p->way == TN_PMP_HAS_UPNP ? TN_PMP_ASK : TN_PMP_MAP, now_ms);
}

/* The state's deadline has come. */
static void tn_pmp_late(tn_pmp *p, uint64_t now_ms)
{
    switch (p->state) {
    case TN_PMP_IDLE:
        return;
    case TN_PMP_PROBE:
        tn_pmp_know(p, TN_PMP_PROBED | p->seen);
        tn_pmp_next(p, now_ms);
        return;
    case TN_PMP_MAP:
        if (++p->tries == TN_PMP_REPEATS) {
            tn_pmp_refuse(p, now_ms);
            return;
        }
        p->due         = p->open;
        p->deadline_ms = tn_time_add(now_ms, tn_pmp_repeat_ms[p->tries]);
        return;
    case TN_PMP_GET:
    case TN_PMP_ASK:
    case TN_PMP_ADD:
        tn_pmp_refuse(p, now_ms);
        return;
    case TN_PMP_HELD:
        if (now_ms >= p->renew_ms) {
            tn_pmp_renew(p, now_ms);
            return;
        }
        tn_pmp_enter(p, TN_PMP_HELD, now_ms);
        p->due = p->way == TN_PMP_HAS_PCP   ? TN_PMP_Q_ANNOUNCE
                 : p->way == TN_PMP_HAS_PMP ? TN_PMP_Q_ADDRESS : 0;
        return;
    case TN_PMP_WAIT:
        tn_pmp_enter(p, TN_PMP_PROBE, now_ms);
        return;
    case TN_PMP_RELEASE:
        tn_pmp_released(p, now_ms);
        return;
    }
}

/* Every answer tells the seconds since the gateway began. Has it begun anew
 * since (RFC 6886 section 3.6)? Its clock may be slow by an eighth. */
static bool tn_pmp_rebooted(tn_pmp *p, uint32_t epoch_s, uint64_t now_ms)
{
    uint32_t passed = (uint32_t)(now_ms - p->epoch_ms) / 1000u;
    uint32_t least  = p->epoch_s + (passed - passed / 8) - 2;
    p->epoch_s      = epoch_s;
    p->epoch_ms     = now_ms;
    return epoch_s - least > (uint32_t)0x7ffffffful;   /* below it, on a circle    */
}

/* The gateway tells that it is there, NAT-PMP also with its address. */
static void tn_pmp_told(tn_pmp *p, unsigned way, uint32_t epoch_s, uint64_t now_ms)
{
    if (p->state == TN_PMP_PROBE) p->seen = (uint8_t)(p->seen | way);
    if (p->state != TN_PMP_HELD) return;
    if (tn_pmp_rebooted(p, epoch_s, now_ms)) {
        p->end_ms = tn_min64(p->end_ms, tn_time_add(now_ms, TN_PMP_LIMIT_MS));
        tn_pmp_renew(p, now_ms);
    } else if (way == TN_PMP_HAS_PMP && tn_pmp_good(p->address)) {
        tn_pmp_publish(p);
    }
}

/* MAP has an answer to each of its questions, or a refusal. */
static void tn_pmp_map_told(tn_pmp *p, unsigned result, uint32_t epoch_s, uint64_t now_ms)
{
    (void)tn_pmp_rebooted(p, epoch_s, now_ms);
    if (result != 0)       tn_pmp_refuse(p, now_ms);
    else if (p->open == 0) tn_pmp_grant(p, now_ms);
}

/* Was this asked? Then not again. */
static TN_NOINLINE bool tn_pmp_asked(tn_pmp *p, unsigned question)
{
    bool asked = (p->open & question) != 0;
    p->open    = (uint8_t)(p->open & ~question);
    return asked;
}

/* RFC 6886 sections 3.2 and 3.3. A refusal may lack its last fields. */
static void tn_pmp_pmp_answer(tn_pmp *p, tn_rd *r, uint64_t now_ms)
{
    unsigned op     = tn_rd_u16be(r);
    unsigned result = tn_rd_u16be(r);
    uint32_t epoch  = tn_rd_u32be(r);
    if (op == 0x80) {
        const uint8_t *ip = tn_rd_bytes(r, result == 0 ? 4 : 0);
        if (result == 1) return;            /* of our PCP question: it speaks NAT-PMP alone */
        if (!tn_rd_ok(r) || !tn_pmp_asked(p, TN_PMP_Q_ADDRESS)) return;
        if (result == 0) memcpy(p->address, ip, 4);
        if (p->state == TN_PMP_MAP) tn_pmp_map_told(p, result, epoch, now_ms);
        else if (result == 0)       tn_pmp_told(p, TN_PMP_HAS_PMP, epoch, now_ms);
    } else if (op == 0x81) {
        unsigned internal = tn_rd_u16be(r), external = tn_rd_u16be(r);
        uint32_t life     = tn_rd_u32be(r);
        if (!tn_rd_ok(r) || internal != p->port || !tn_pmp_asked(p, TN_PMP_Q_PMP)) return;
        p->want_port = (uint16_t)external;
        p->life_s    = life;
        tn_pmp_map_told(p, result, epoch, now_ms);
    }
}

/* RFC 6887 sections 7.2, 11.1 and 14.1. */
static void tn_pmp_pcp_answer(tn_pmp *p, tn_rd *r, uint64_t now_ms)
{
    const uint8_t *head = tn_rd_bytes(r, 24), *nonce, *protocol;
    unsigned       internal, external;
    uint32_t       epoch, high, low, mark;

    if (head == NULL) return;
    epoch = tn_get_u32be(head + 8);
    if (head[1] == 0x80 && tn_pmp_asked(p, TN_PMP_Q_ANNOUNCE) && head[3] == 0)
        tn_pmp_told(p, TN_PMP_HAS_PCP, epoch, now_ms);
    nonce    = tn_rd_bytes(r, 12);
    protocol = tn_rd_bytes(r, 4);
    internal = tn_rd_u16be(r);
    external = tn_rd_u16be(r);
    high     = tn_rd_u32be(r);
    low      = tn_rd_u32be(r);
    mark     = tn_rd_u32be(r);
    if (head[1] != 0x81 || r->left < 4 || protocol[0] != 17 || internal != p->port ||
        !tn_equal(nonce, p->nonce, 12) || !tn_pmp_asked(p, TN_PMP_Q_PCP))
        return;
    tn_rd_copy(r, p->address, 4);
    p->want_port = (uint16_t)external;
    p->life_s    = tn_get_u32be(head + 4);
    if ((high | low) != 0 || mark != 0xffff) p->want_port = 0;         /* not IPv4 */
    tn_pmp_map_told(p, head[3], epoch, now_ms);
}

static void tn_pmp_wr_pcp(const tn_pmp *p, tn_wr *w, bool map, uint32_t life_s, unsigned external)
{
    tn_wr_u16be(w, map ? 0x0201 : 0x0200);
    tn_wr_u16be(w, 0);
    tn_wr_u32be(w, life_s);
    tn_wr_zero(w, 10);
    tn_wr_u16be(w, 0xffff);
    tn_wr_bytes(w, p->own, 4);
    if (!map) return;
    tn_wr_bytes(w, p->nonce, 12);
    tn_wr_u32be(w, (uint32_t)17 << 24);
    tn_wr_u16be(w, p->port);
    tn_wr_u16be(w, external);
    tn_wr_zero(w, 10);
    tn_wr_u16be(w, 0xffff);
    tn_wr_u32be(w, 0);
}

static void tn_pmp_wr_pmp(const tn_pmp *p, tn_wr *w, uint32_t life_s, unsigned external)
{
    tn_wr_u32be(w, (uint32_t)1 << 16);
    tn_wr_u16be(w, p->port);
    tn_wr_u16be(w, external);
    tn_wr_u32be(w, life_s);
}

#if TAILNET_UPNP
/* ---- UPnP ---- */

/* Services that map ports, by their rest. */
static const char *const tn_pmp_urn[3] = { "IPConnection:1", "IPConnection:2", "PPPConnection:1" };
static const char        tn_pmp_urn_begin[] = "urn:schemas-upnp-org:service:WAN";

static void tn_pmp_wr_ip(tn_wr *w, const uint8_t ip[4])
{
    tailnet_addr a;
    a.family = 4;
    memcpy(a.ip, ip, 4);
    tn_wr_ip(w, &a);
}

/* A text with the machine's values put in for % and a letter. */
static TN_NOINLINE void tn_pmp_wr_form(const tn_pmp *p, tn_wr *w, const char *form)
{
    for (; *form != '\0'; form++) {
        if (*form != '%') {
            tn_wr_u8(w, (unsigned char)*form);
            continue;
        }
        switch (*++form) {
        case 'a':                           /* action                             */
            tn_wr_text(w, p->state == TN_PMP_ASK   ? "GetExternalIPAddress"
                          : p->state == TN_PMP_ADD ? "AddPortMapping" : "DeletePortMapping");
            break;
        case 'e': tn_wr_dec(w, p->state == TN_PMP_ADD ? p->want_port : p->external_port); break;
        case 'g': tn_pmp_wr_ip(w, p->gateway); break;
        case 'h': tn_wr_dec(w, p->http_port); break;
        case 'i': tn_wr_dec(w, p->port); break;
        case 'l': tn_wr_dec(w, p->forever ? 0u : (unsigned)TN_PMP_LIFE_S); break;
        case 'o': tn_pmp_wr_ip(w, p->own); break;
        case 'p': tn_wr_text(w, p->path); break;
        default:                            /* u: the service                     */
            tn_wr_text(w, tn_pmp_urn_begin);
            tn_wr_text(w, tn_pmp_urn[p->kind]);
        }
    }
}

static void tn_pmp_wr_soap(const tn_pmp *p, tn_wr *w)
{
    tn_pmp_wr_form(p, w, "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s="
                         "\"http://schemas.xmlsoap.org/soap/envelope/\" s:encodingStyle="
                         "\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>"
                         "<u:%a xmlns:u=\"%u\">");
    if (p->state != TN_PMP_ASK)
        tn_pmp_wr_form(p, w, "<NewRemoteHost></NewRemoteHost><NewExternalPort>%e</NewExternalPort>"
                             "<NewProtocol>UDP</NewProtocol>");
    if (p->state == TN_PMP_ADD)
        tn_pmp_wr_form(p, w, "<NewInternalPort>%i</NewInternalPort>"
                             "<NewInternalClient>%o</NewInternalClient><NewEnabled>1</NewEnabled>"
                             "<NewPortMappingDescription>tailnet</NewPortMappingDescription>"
                             "<NewLeaseDuration>%l</NewLeaseDuration>");
    tn_pmp_wr_form(p, w, "</u:%a></s:Body></s:Envelope>\r\n");
}

/* The whole request; a window of it, when w is one. */
static void tn_pmp_http_request(const tn_pmp *p, tn_wr *w)
{
    tn_wr count;
    tn_pmp_wr_form(p, w, p->state == TN_PMP_GET ? "GET" : "POST");
    tn_pmp_wr_form(p, w, " %p HTTP/1.1\r\nHost: %g:%h\r\nConnection: close\r\n");
    if (p->state != TN_PMP_GET) {
        tn_wr_over(&count, NULL, 0);
        tn_pmp_wr_soap(p, &count);
        tn_pmp_wr_form(p, w, "Content-Type: text/xml; charset=\"utf-8\"\r\n"
                             "SOAPAction: \"%u#%a\"\r\nContent-Length: ");
        tn_wr_dec(w, count.total);
        tn_wr_text(w, "\r\n");
    }
    tn_wr_text(w, "\r\n");
    if (p->state != TN_PMP_GET) tn_pmp_wr_soap(p, w);
}

/* Does the text begin like this (in small letters)? */
static bool tn_pmp_like(const char *text, size_t len, const char *begin)
{
    size_t i = 0;
    while (begin[i] != '\0' && i < len && (text[i] | 0x20) == begin[i]) i++;
    return begin[i] == '\0';
}

static bool tn_pmp_line(const tn_pmp_reader *x, const char *begin)
{
    return tn_pmp_like(x->text, x->text_len, begin);
}

/* "http://gateway[:port]/path", or a path alone. Nobody sends us anywhere else. */
static bool tn_pmp_url(tn_pmp *p, const char *text, size_t len)
{
    size_t slash = 7, lead;
    if (tn_pmp_like(text, len, "http://")) {
        tailnet_addr host;
        while (slash < len && text[slash] != '/') slash++;
        if (!tn_addr_parse(&host, text + 7, slash - 7)) {
            if (!tn_ip_parse(&host, text + 7, slash - 7)) return false;
            host.port = 80;
        }
        if (host.family != 4 || host.port == 0 || memcmp(host.ip, p->gateway, 4) != 0) return false;
        p->http_port = host.port;
        text += slash;
        len -= slash;
    }
    lead = len != 0 && text[0] == '/' ? 0 : 1;
    if (len > sizeof p->path - 2) return false;
    p->path[0] = '/';
    (void)tn_text_copy(p->path + lead, sizeof p->path - lead, text, len);
    return true;
}

/* Keeps what is neither blank nor control character: no URL smuggles a line
 * into a request of ours. */
static void tn_pmp_keep(tn_pmp_reader *x, uint8_t c)
{
    if (c > ' ' && c < 0x7f && x->text_len < TN_PMP_TEXT) x->text[x->text_len++] = (char)c;
}

/* An answer to our search, perhaps after the probe's short time. */
static void tn_pmp_found(tn_pmp *p, const uint8_t *data, size_t len, uint64_t now_ms)
{
    bool   located = false, right = false;
    bool   late    = p->state == TN_PMP_WAIT && (p->refused & TN_PMP_HAS_UPNP) == 0;
    size_t i;

    if ((p->state != TN_PMP_PROBE && !late) || (p->seen & TN_PMP_HAS_UPNP) != 0) return;
    p->in.text_len = 0;
    for (i = 0; i < len; i++) {
        if (data[i] != '\n') {
            tn_pmp_keep(&p->in, data[i]);
            continue;
        }
        if (tn_pmp_line(&p->in, "location:http://"))
            located = tn_pmp_url(p, p->in.text + 9, p->in.text_len - 9u);
        if (tn_pmp_line(&p->in, "st:urn:schemas-upnp-org:device:internetgatewaydevice:"))
            right = true;
        p->in.text_len = 0;
    }
    if (!located || !right) return;
    p->seen |= TN_PMP_HAS_UPNP;
    if (!late) return;
    tn_pmp_know(p, p->services | TN_PMP_HAS_UPNP);
    p->way = TN_PMP_HAS_UPNP;
    tn_pmp_enter(p, TN_PMP_GET, now_ms);
}

/* The text behind a tag is complete: is it what the state waits for? */
static void tn_pmp_element(tn_pmp *p, uint64_t now_ms)
{
    tn_pmp_reader *x = &p->in;
    tailnet_addr   ip;
    uint64_t       code = 0;

    if (p->state == TN_PMP_GET && tn_is(x->name, x->name_len, "serviceType")) {
        size_t   n = sizeof tn_pmp_urn_begin - 1;
        unsigned i;
        x->kind = 0;
        if (!tn_begins(x->text, x->text_len, tn_pmp_urn_begin)) return;
        for (i = 0; i < 3; i++) {
            if (tn_is(x->text + n, x->text_len - n, tn_pmp_urn[i]) && x->seen++ == p->nth)
                x->kind = (uint8_t)(i + 1);
        }
    } else if (p->state == TN_PMP_GET && tn_is(x->name, x->name_len, "controlURL")) {
        if (x->kind == 0) return;
        p->kind = (uint8_t)(x->kind - 1);
        if (tn_pmp_url(p, x->text, x->text_len)) tn_pmp_enter(p, TN_PMP_ASK, now_ms);
        else                                     tn_pmp_refuse(p, now_ms);
    } else if (p->state == TN_PMP_ASK && tn_is(x->name, x->name_len, "NewExternalIPAddress")) {
        if (!tn_ip_parse(&ip, x->text, x->text_len) || ip.family != 4 || !tn_pmp_good(ip.ip)) {
            p->nth++;                       /* perhaps the router's other line    */
            tn_pmp_refuse(p, now_ms);
            return;
        }
        memcpy(p->address, ip.ip, 4);
        p->want_port = p->external_port != 0 ? p->external_port : p->port;
        if (p->want_port < 1024) p->want_port |= 0x4000u;
        tn_pmp_enter(p, TN_PMP_ADD, now_ms);
    } else if (p->state == TN_PMP_ADD && tn_is(x->name, x->name_len, "errorCode") &&
               tn_dec_parse(x->text, x->text_len, 999, &code)) {
        if (++p->tries == TN_PMP_PORTS) {
            tn_pmp_refuse(p, now_ms);
            return;
        }
        if ((code == 402 || code == 725) && !p->forever) {
            p->forever = true;
        } else {                            /* somebody else has it               */
            p->want_port = (uint16_t)((unsigned)p->nonce[2 * p->tries] << 8 |
                                      p->nonce[2 * p->tries + 1] | 0x4000u);
        }
        tn_pmp_enter(p, TN_PMP_ADD, now_ms);
    }
}

/* The blank line behind the head: sometimes the status says enough. */
static void tn_pmp_head(tn_pmp *p, uint64_t now_ms)
{
    p->in.part = p->in.chunked ? TN_PMP_CHUNK : TN_PMP_BODY;
    if (p->state == TN_PMP_RELEASE) {
        tn_pmp_released(p, now_ms);
    } else if (p->state == TN_PMP_ADD) {
        p->life_s = TN_PMP_LIFE_S;
        if (p->in.status == 200) tn_pmp_grant(p, now_ms);
    } else if (p->in.status != 200) {
        if (p->state == TN_PMP_ASK) p->nth++;
        tn_pmp_refuse(p, now_ms);
    }
}

static void tn_pmp_head_byte(tn_pmp *p, uint8_t c, uint64_t now_ms)
{
    tn_pmp_reader *x    = &p->in;
    uint64_t       code = 0;
    if (c != '\n') {
        tn_pmp_keep(x, c);
    } else if (x->text_len == 0) {
        tn_pmp_head(p, now_ms);
    } else {
        if (x->status == 0) {               /* HTTP/1.1200OK, blanks are gone     */
            x->status = 1;
            if (tn_pmp_line(x, "http/1.") && x->text_len >= 11 &&
                tn_dec_parse(x->text + 8, 3, 999, &code) && code != 0)
                x->status = (uint16_t)code;
        }
        if (tn_pmp_line(x, "transfer-encoding:chunked")) x->chunked = true;
        x->text_len = 0;
    }
}

/* XML as far as we need it: a name, and the text up to the next tag. */
static void tn_pmp_xml_byte(tn_pmp *p, uint8_t c, uint64_t now_ms)
{
    tn_pmp_reader *x = &p->in;
    if (c == '<') {
        tn_pmp_element(p, now_ms);
        x->mark     = TN_PMP_IN_NAME;
        x->name_len = 0;
    } else if (c == '>') {
        x->mark     = TN_PMP_IN_TEXT;
        x->text_len = 0;
    } else if (x->mark == TN_PMP_IN_TEXT) {
        tn_pmp_keep(x, c);
    } else if (x->mark == TN_PMP_IN_NAME) {
        if (c == ':') x->name_len = 0;      /* behind the name space              */
        else if (c <= ' ' || c == '/') x->mark = TN_PMP_IN_TAG;
        else if (x->name_len < TN_PMP_NAME) x->name[x->name_len++] = (char)c;
    }
}

static void tn_pmp_byte(tn_pmp *p, uint8_t c, uint64_t now_ms)
{
    tn_pmp_reader *x = &p->in;
    int            d;
    switch (x->part) {
    case TN_PMP_HEAD:
        tn_pmp_head_byte(p, c, now_ms);
        return;
    case TN_PMP_CHUNK:                      /* the end of the last one is no size */
        d = tn_hex_digit(c);
        if (d >= 0) x->left = x->left << 4 | (uint32_t)d;
        else if (c == '\n' && x->left != 0) x->part = TN_PMP_BODY;
        return;
    case TN_PMP_BODY:
        if (x->chunked && --x->left == 0) x->part = TN_PMP_CHUNK;
        tn_pmp_xml_byte(p, c, now_ms);
        return;
    }
}

/* Does anybody still wait for the answer to the HTTP request? */
static bool tn_pmp_http_wanted(const tn_pmp *p) { return (p->open & TN_PMP_Q_HTTP) != 0; }

/* Bytes of the answer, in pieces of any size. True: enough, close the link. */
static bool tn_pmp_http_input(tn_pmp *p, const uint8_t *data, size_t len, uint64_t now_ms)
{
    size_t i;
    for (i = 0; i < len && tn_pmp_http_wanted(p); i++) tn_pmp_byte(p, data[i], now_ms);
    return !tn_pmp_http_wanted(p);
}

/* No connection, or it is over: what is missing does not come any more. */
static void tn_pmp_http_end(tn_pmp *p, uint64_t now_ms)
{
    if (!tn_pmp_http_wanted(p)) return;
    if (p->state == TN_PMP_GET) p->nth = 0; /* there was no such service          */
    if (p->state == TN_PMP_RELEASE) tn_pmp_released(p, now_ms);
    else                            tn_pmp_refuse(p, now_ms);
}
#endif /* TAILNET_UPNP */

/* ---- for the rooms above ---- */

/* The network as it is: the gateway, and our address with the port of the data
 * socket. Without news nothing happens; without gateway there is no mapping. */
static void tn_pmp_network(tn_pmp *p, const tailnet_addr *gateway, const tailnet_addr *own,
                           const uint8_t luck[12], uint64_t now_ms)
{
    bool usable = gateway != NULL && own != NULL && gateway->family == 4 && own->family == 4 &&
                  own->port != 0;
    bool same   = usable && p->state != TN_PMP_IDLE && memcmp(gateway->ip, p->gateway, 4) == 0 &&
                  memcmp(own->ip, p->own, 4) == 0;

    if (same && own->port == p->port_next) return;
    if (same && (p->mapped || p->state == TN_PMP_RELEASE)) {   /* it can be given back */
        tn_pmp_leave(p, own->port, now_ms);
        return;
    }
    tn_pmp_lose(p);
    tn_pmp_know(p, 0);
    if (p->state != TN_PMP_IDLE) tn_pmp_enter(p, TN_PMP_IDLE, now_ms);
    if (!usable) return;
    memcpy(p->gateway, gateway->ip, 4);
    memcpy(p->own, own->ip, 4);
    memcpy(p->nonce, luck, 12);
    p->port          = own->port;
    p->port_next     = own->port;
    p->external_port = 0;
    p->failures      = 0;
    p->forever       = false;
    tn_pmp_enter(p, TN_PMP_PROBE, now_ms);
}

/* Going down: gives the mapping back. */
static void tn_pmp_release(tn_pmp *p, uint64_t now_ms)
{
    if (p->state != TN_PMP_IDLE) tn_pmp_leave(p, 0, now_ms);
}

/* A datagram: was it for us, or pretends to be? Answers to what was not asked,
 * or that are cut short, change nothing. */
static bool tn_pmp_input(tn_pmp *p, const uint8_t *data, size_t len, const tailnet_addr *from,
                         uint64_t now_ms)
{
    tn_rd r;
    if (p->state == TN_PMP_IDLE || from->family != 4 || memcmp(from->ip, p->gateway, 4) != 0)
        return false;
    if (from->port == TN_PMP_PORT) {
        tn_rd_over(&r, data, len);
        if (len != 0 && data[0] == 2) tn_pmp_pcp_answer(p, &r, now_ms);
        else                          tn_pmp_pmp_answer(p, &r, now_ms);
        return true;
    }
#if TAILNET_UPNP
    if (tn_begins((const char *)data, len, "HTTP/1.1 200")) {
        tn_pmp_found(p, data, len, now_ms);
        return true;
    }
#endif
    return false;
}

/* The next thing to be done: a datagram in w for *to, an HTTP request to *to,
 * or nothing before the deadline. */
static tn_pmp_want tn_pmp_step(tn_pmp *p, uint64_t now_ms, tn_wr *w, tailnet_addr *to)
{
    uint32_t life     = p->state == TN_PMP_RELEASE ? 0u : (uint32_t)TN_PMP_LIFE_S;
    unsigned external = p->state == TN_PMP_RELEASE ? 0u : p->external_port, question;

    if (p->mapped && now_ms >= p->end_ms) tn_pmp_lose(p);
    if (now_ms >= p->deadline_ms) tn_pmp_late(p, now_ms);
    if (p->due == 0) return TN_PMP_NOTHING;
    question = p->due & (0u - p->due);
    p->due   = (uint8_t)(p->due & ~question);
    p->open = (uint8_t)(p->open | question);

    memset(to, 0, sizeof *to);
    to->family = 4;
    to->port   = TN_PMP_PORT;
    memcpy(to->ip, p->gateway, 4);
    if (question == TN_PMP_Q_ADDRESS) tn_wr_u16be(w, 0);
    if (question == TN_PMP_Q_ANNOUNCE) tn_pmp_wr_pcp(p, w, false, 0, 0);
    if (question == TN_PMP_Q_PCP) tn_pmp_wr_pcp(p, w, true, life, external);
    if (question == TN_PMP_Q_PMP) tn_pmp_wr_pmp(p, w, life, external);
#if TAILNET_UPNP
    if (question == TN_PMP_Q_HTTP) {
        to->port = p->http_port;
        memset(&p->in, 0, sizeof p->in);
        return TN_PMP_HTTP;
    }
    if (question >= TN_PMP_Q_NEAR) {
        static const uint8_t all[4] = { 239, 255, 255, 250 };
        if (question == TN_PMP_Q_ALL) memcpy(to->ip, all, 4);
        to->port = TN_PMP_SSDP_PORT;
        tn_wr_text(w, "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n"
                      "MAN: \"ssdp:discover\"\r\nMX: 1\r\n"
                      "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n");
    }
#endif
    if (p->state == TN_PMP_RELEASE) tn_pmp_released(p, now_ms);
    return TN_PMP_SEND;
}

/* When step has something to say or to do: 0 is now. */
static uint64_t tn_pmp_deadline(const tn_pmp *p)
{
    if (p->due != 0) return 0;
    if (p->state == TN_PMP_IDLE) return TN_NEVER;
    return p->mapped ? tn_min64(p->deadline_ms, p->end_ms) : p->deadline_ms;
}

/* What changed since the last call. */
static uint8_t tn_pmp_news(tn_pmp *p)
{
    uint8_t news = p->news;
    p->news = 0;
    return news;
}

/* Our address outside, while there is a mapping. */
static bool tn_pmp_external(const tn_pmp *p, tailnet_addr *out)
{
    memset(out, 0, sizeof *out);
    if (!p->mapped) return false;
    out->family = 4;
    out->port   = p->external_port;
    memcpy(out->ip, p->external, 4);
    return true;
}

/* For the report: HAS_ and PROBED. */
static uint8_t tn_pmp_services(const tn_pmp *p) { return p->services; }
#endif /* TAILNET_PORTMAP */

/* ======================================================================== *
 * >>disco — the small sealed messages by which peers find the way to each
 * other: ping, pong, call-me-maybe; and what kind of datagram came in.
 *
 * Owns:    nothing; shared keys, transactions and candidates belong above.
 * Calls:   >>base, >>crypto (box).
 * States:  none.
 * Always:  tn_disco_sender does no crypto: look the sender up before opening,
 *          that is the protection against floods.
 * Trust:   input is any datagram from anywhere. What opens was made by the
 *          owner of the disco key, but may be a repetition; the node key in
 *          a ping is only alleged.
 * ======================================================================== */

enum {
    TN_DISCO_PING     = 1,
    TN_DISCO_PONG     = 2,
    TN_DISCO_CALL     = 3,                  /* CallMeMaybe                        */
    TN_DISCO_HEAD     = 38,                 /* magic and sender's key             */
    TN_DISCO_PLAIN    = 78,                 /* head, nonce 24, tag 16             */
    TN_DISCO_ENDPOINT = 18,
    TN_DISCO_PING_LEN = 124,                /* whole packets, with node key       */
    TN_DISCO_PONG_LEN = 110
};
#define TN_DISCO_COOKIE 0x2112a442ul        /* of STUN                            */

static const uint8_t tn_disco_magic[6] = { 0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac };

/* ---- what is this datagram? ---- */

typedef enum tn_disco_class { TN_DISCO_IS_WG, TN_DISCO_IS_STUN, TN_DISCO_IS_DISCO } tn_disco_class;

/* A disco packet? Only this question is asked of packets by relay. */
static bool tn_disco_is(const uint8_t *p, size_t n)
{
    return n >= TN_DISCO_HEAD && memcmp(p, tn_disco_magic, sizeof tn_disco_magic) == 0;
}

/* Sorts a datagram of the common UDP socket. Never fails: what is nothing else is
 * WireGuard's to refuse, also what came through a peer relay, behind 8 bytes of
 * Geneve that begin like no message of it (reference: magicsock.go,
 * packetLooksLike). */
static TN_MAYBE_UNUSED tn_disco_class tn_disco_classify(const uint8_t *p, size_t n)
{
    if (n >= 20 && (p[0] & 0xc0u) == 0 && p[1] == 1 && tn_get_u32be(p + 4) == TN_DISCO_COOKIE)
        return TN_DISCO_IS_STUN;
    return tn_disco_is(p, n) ? TN_DISCO_IS_DISCO : TN_DISCO_IS_WG;
}

/* ---- the box ---- */

/* The sender's public disco key, 32 bytes in the packet; NULL: no disco packet
 * or too short for any message. */
static const uint8_t *tn_disco_sender(const uint8_t *p, size_t n)
{
    if (n < TN_DISCO_PLAIN || !tn_disco_is(p, n)) return NULL;
    return p + sizeof tn_disco_magic;
}

/* Opens the packet where it lies, with the key shared with its sender. False:
 * forged, or one of the two keys is not the present one; nothing changed. */
static bool tn_disco_open(const uint8_t k[32], uint8_t *p, size_t n, uint8_t **plain, size_t *len)
{
    uint8_t *box = p + TN_DISCO_HEAD + 24;
    if (tn_disco_sender(p, n) == NULL) return false;
    if (!tn_cr_box_open(k, p + TN_DISCO_HEAD, box + 16, box, n - TN_DISCO_HEAD - 24)) return false;
    *plain = box + 16;
    *len   = n - TN_DISCO_PLAIN;
    return true;
}

/* ---- reading ---- */

/* A message; the pointers lead into the plaintext. */
typedef struct tn_disco_msg {
    uint8_t        type;
    const uint8_t *tx;                      /* ping, pong: 12 bytes               */
    const uint8_t *node_key;                /* ping: 32 bytes or NULL             */
    tailnet_addr   src;                     /* pong: whence the ping seemed to come */
    const uint8_t *endpoints;               /* call: count of them                */
    size_t         count;
} tn_disco_msg;

/* IP as 16 bytes and port; IPv4 lies in ::ffff:0:0/96. */
static void tn_disco_rd_addr(tn_rd *r, tailnet_addr *out)
{
    static const uint8_t inside[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
    memset(out, 0, sizeof *out);
    out->family = 6;
    tn_rd_copy(r, out->ip, 16);
    out->port = tn_rd_u16be(r);
    if (memcmp(out->ip, inside, sizeof inside) != 0) return;
    out->family = 4;
    memmove(out->ip, out->ip + 12, 4);
    memset(out->ip + 4, 0, 12);
}

/* Reads an opened message. UNSUPPORTED: of a type we do not know, to be
 * ignored. Bytes behind the known fields are of the future and allowed. */
static tailnet_result tn_disco_parse(const uint8_t *plain, size_t len, tn_disco_msg *out)
{
    tn_rd    r;
    unsigned version;

    memset(out, 0, sizeof *out);
    tn_rd_over(&r, plain, len);
    out->type = tn_rd_u8(&r);
    version   = tn_rd_u8(&r);
    if (!tn_rd_ok(&r)) return TAILNET_ERR_MALFORMED;
    switch (out->type) {
    case TN_DISCO_PING:
        out->tx = tn_rd_bytes(&r, 12);
        if (r.left >= 32) out->node_key = tn_rd_bytes(&r, 32);
        break;
    case TN_DISCO_PONG:
        out->tx = tn_rd_bytes(&r, 12);
        tn_disco_rd_addr(&r, &out->src);
        break;
    case TN_DISCO_CALL:                     /* odd ones are empty lists, not errors */
        if (version != 0 || r.left % TN_DISCO_ENDPOINT != 0) break;
        out->count     = r.left / TN_DISCO_ENDPOINT;
        out->endpoints = tn_rd_bytes(&r, r.left);
        break;
    default:
        return TAILNET_ERR_UNSUPPORTED;
    }
    return tn_rd_ok(&r) ? TAILNET_OK : TAILNET_ERR_MALFORMED;
}

/* One address of a call-me-maybe; false behind the last. */
static TN_MAYBE_UNUSED bool tn_disco_endpoint(const tn_disco_msg *m, size_t index,
                                              tailnet_addr *out)
{
    tn_rd r;
    if (index >= m->count) return false;
    tn_rd_over(&r, m->endpoints + index * TN_DISCO_ENDPOINT, TN_DISCO_ENDPOINT);
    tn_disco_rd_addr(&r, out);
    return true;
}

/* ---- writing: begin, one message, finish ---- */

/* The head of a packet, and room for the tag. */
static void tn_disco_begin(tn_wr *w, uint8_t *dst, size_t cap, const uint8_t my_public[32],
                           const uint8_t nonce[24])
{
    tn_wr_over(w, dst, cap);
    tn_wr_bytes(w, tn_disco_magic, sizeof tn_disco_magic);
    tn_wr_bytes(w, my_public, 32);
    tn_wr_bytes(w, nonce, 24);
    tn_wr_zero(w, 16);
}

/* Seals what was written since tn_disco_begin. The packet's length, or 0 when
 * it did not fit. */
static size_t tn_disco_finish(tn_wr *w, const uint8_t k[32])
{
    uint8_t *box = w->base + TN_DISCO_HEAD + 24;
    if (!tn_wr_ok(w) || w->total < TN_DISCO_PLAIN) return 0;
    tn_cr_box_seal(k, w->base + TN_DISCO_HEAD, box, box + 16, w->total - TN_DISCO_PLAIN);
    return w->total;
}

/* The address that stands for "through relay region n". */
static void tn_disco_relay_addr(tailnet_addr *out, unsigned region)
{
    memset(out, 0, sizeof *out);
    out->family = 4;
    out->port   = (uint16_t)region;
    tn_put_u32be(out->ip, (uint32_t)0x7f030328ul);
}

static void tn_disco_wr_addr(tn_wr *w, const tailnet_addr *a)
{
    if (a->family != 6) {
        tn_wr_zero(w, 10);
        tn_wr_u16be(w, 0xffffu);
    }
    tn_wr_bytes(w, a->ip, a->family == 6 ? 16 : 4);
    tn_wr_u16be(w, a->port);
}

/* Always send the node key (NULL only in tests); padding probes the path's MTU. */
static TN_MAYBE_UNUSED void tn_disco_wr_ping(tn_wr *w, const uint8_t tx[12],
                                             const uint8_t *node_key, size_t padding)
{
    tn_wr_u8(w, TN_DISCO_PING);
    tn_wr_u8(w, 0);
    tn_wr_bytes(w, tx, 12);
    if (node_key != NULL) tn_wr_bytes(w, node_key, 32);
    tn_wr_zero(w, padding);
}

/* src: the address the ping came from, or tn_disco_relay_addr. */
static void tn_disco_wr_pong(tn_wr *w, const uint8_t tx[12], const tailnet_addr *src)
{
    tn_wr_u8(w, TN_DISCO_PONG);
    tn_wr_u8(w, 0);
    tn_wr_bytes(w, tx, 12);
    tn_disco_wr_addr(w, src);
}

static TN_MAYBE_UNUSED void tn_disco_wr_call(tn_wr *w, const tailnet_addr *endpoints, size_t count)
{
    size_t i;
    tn_wr_u8(w, TN_DISCO_CALL);
    tn_wr_u8(w, 0);
    for (i = 0; i < count; i++) tn_disco_wr_addr(w, &endpoints[i]);
}

/* ======================================================================== *
 * >>wg — WireGuard: who may talk in the tunnel, with which key, and when.
 *
 * Owns:    tn_wg_device, one per node: the private key, the cookie secret, the
 *          load limiter, our last time stamp. tn_wg, one per live peer: the
 *          handshake we began, two keys with a replay window each, the cookie
 *          we were given, every timer.
 * Calls:   >>base, >>crypto.
 * States:  which keys there are, moved by three events (tn_wg_after below):
 *          a handshake that we began is done (INITIATED), one that the peer
 *          began (RESPONDED), the first good packet on the next key (CONFIRMED).
 * Always:  sending uses only the current key, and only below 180 s and 2^64 -
 *          2^13 - 1 packets. Nothing of a session changes before a tag was
 *          checked, and no packet is accepted twice. A responder's key sends
 *          nothing before the peer has proved that it has it, too. Nothing is
 *          stored for anybody who has not proved who he is.
 * Trust:   every message is anybody's until its last check; mac1 only proves
 *          that the sender knows our public key, which is no secret.
 *
 * What has to be done is kept as state (deadlines), not as events: the room
 * above asks tn_wg_timers and may take its time. Indexes are chosen and found
 * by the room above, which owns all sessions.
 *
 * Sources: the WireGuard paper (wireguard.com/papers/wireguard.pdf), sections
 * 5 and 6; wireguard-go device/{noise-protocol,receive,send,timers,cookie}.go.
 * Two things are better than there: the handshake we began lives on when the
 * peer begins one as well, so both finish and nobody waits 5 s; and a
 * handshake that is wanted less than 5 s after the last one is put off, not
 * forgotten.
 * ======================================================================== */

enum {
    TN_WG_INITIATION_LEN = 148,
    TN_WG_RESPONSE_LEN   = 92,
    TN_WG_COOKIE_LEN     = 64,
    TN_WG_HEAD_LEN       = 16,
    TN_WG_TAG_LEN        = 16,
    TN_WG_OVERHEAD       = 32,              /* of a data message; alone: keepalive */
    TN_WG_MAC_LEN        = 16,
    TN_WG_MACS_LEN       = 32,              /* mac1 and mac2, the end of handshakes */
    TN_WG_STAMP_LEN      = 12,
    TN_WG_PAD            = 16,
    TN_WG_FROM_MAX       = 32,              /* bytes that say where a message is from */
    TN_WG_SOURCES        = 8,               /* proven senders remembered under load */
    TN_WG_ATTEMPTS       = 20,              /* initiations before giving up: 1 + 19 */
    TN_WG_WINDOW_WORDS   = TAILNET_REPLAY_BITS / 32
};

/* Section 6 of the paper; wireguard-go device/constants.go. Milliseconds. */
#define TN_WG_REKEY_AFTER_MS     120000ul
#define TN_WG_REJECT_AFTER_MS    180000ul
#define TN_WG_FRESH_RECEIVE_MS   165000ul   /* reject - keepalive - rekey timeout */
#define TN_WG_REKEY_TIMEOUT_MS     5000ul
#define TN_WG_KEEPALIVE_MS        10000ul
#define TN_WG_SILENCE_MS          15000ul   /* keepalive + rekey timeout          */
#define TN_WG_ERASE_MS           540000ul
#define TN_WG_COOKIE_MS          120000ul
#define TN_WG_JITTER_MS             334ul
#define TN_WG_REKEY_MESSAGES     ((uint64_t)1 << 60)
#define TN_WG_REJECT_MESSAGES    (UINT64_MAX - 8192u)

/* Ours. A peer that is in order begins one handshake per 5 s. */
#define TN_WG_FLOOD_MS              250ul
#define TN_WG_LOADED_MS            1000ul
#define TN_WG_SOURCE_SPACING_MS    1000ul
#define TN_WG_SOURCE_BURST            5u
#define TN_WG_COOKIE_SPACING_MS      10ul   /* fewer would starve honest peers    */
#define TN_WG_COOKIE_BURST           50u

/* Stamps: 17 ms is the least that still differs after whitening by 2^24 ns. */
#define TN_WG_STAMP_STEP_MS          17ul
#define TN_WG_STAMP_SPARE_MS      60000ul
#define TN_WG_STAMP_BOOT_MS      600000ul
#define TN_WG_STAMP_AHEAD_MS   86400000ul
#define TN_WG_STAMP_BASE         ((uint64_t)1 << 62)
#define TN_WG_UNIX_MAX_MS        ((uint64_t)253402300800u * 1000u)      /* year 10000 */

/* The numbers are those on the wire. */
typedef enum tn_wg_type {
    TN_WG_OTHER, TN_WG_INITIATION, TN_WG_RESPONSE, TN_WG_COOKIE, TN_WG_DATA
} tn_wg_type;

/* What became of a message. Everything but OK means: drop it, nothing changed. */
typedef enum tn_wg_verdict {
    TN_WG_OK,
    TN_WG_MALFORMED,                        /* not the shape of its type          */
    TN_WG_UNKNOWN,                          /* names no key or handshake of ours  */
    TN_WG_EXPIRED,                          /* a key older than 180 s             */
    TN_WG_FORGED,                           /* a tag is wrong, or a key is no key */
    TN_WG_REPLAYED,                         /* seen before, or too old to know    */
    TN_WG_TOO_SOON,                         /* handshakes too close together      */
    TN_WG_NO_KEY                            /* nothing to send with; asked for it */
} tn_wg_verdict;

typedef enum tn_wg_admission { TN_WG_REFUSE, TN_WG_ADMIT, TN_WG_ANSWER_COOKIE } tn_wg_admission;

/* News: what the room above has to do now. */
enum {
    TN_WG_NEW_KEY        = 1 << 0,          /* send what is staged                */
    TN_WG_WANT_KEEPALIVE = 1 << 1,          /* nothing staged: send an empty one  */
    TN_WG_WANT_HANDSHAKE = 1 << 2,          /* tn_wg_initiate; stays until done   */
    TN_WG_SILENT         = 1 << 3,          /* 15 s of our data without an answer */
    TN_WG_GAVE_UP        = 1 << 4,          /* drop what is staged                */
    TN_WG_ERASED         = 1 << 5           /* all wiped; the slot may be freed   */
};

/* ---- time stamps, cookies, load: the device ---- */

typedef struct tn_wg_source {
    uint64_t next_ms;                       /* of its bucket; least recent: reused */
    uint8_t  tag[4];                        /* keyed hash of the address          */
} tn_wg_source;

typedef struct tn_wg_device {
    uint64_t     cookie_until_ms;           /* 0: no secret yet                   */
    uint64_t     stamp_ms;                  /* last stamp, in Unix time           */
    uint64_t     stamp_saved_ms;            /* to be stored: no stamp is above    */
    uint64_t     loaded_until_ms;
    uint64_t     initiation_ms, response_ms, proven_ms, cookie_ms;     /* buckets */
    uint32_t     spacing_ms;                /* of messages that cost public-key   */
    uint32_t     burst;                     /*   work; the owner may change both  */
    uint8_t      private_key[32], public_key[32];
    uint8_t      mac1_key[32];
    uint8_t      cookie_secret[32];
    tn_wg_source source[TN_WG_SOURCES];
} tn_wg_device;

/* HASH(label || key): the keys of mac1 and of cookies. */
static TN_NOINLINE void tn_wg_label_key(uint8_t out[32], const char *label,
                                        const uint8_t public_key[32])
{
    tn_cr_hash(out, label, 8, public_key, 32);
}

/* Our key is new: sessions made with the old one are up to the caller
 * (tn_wg_expire, tn_wg_wipe). */
static void tn_wg_device_key(tn_wg_device *dev, const uint8_t private_key[32])
{
    tn_copy_key(dev->private_key, private_key);
    tn_cr_x25519_base(dev->public_key, private_key);
    tn_wg_label_key(dev->mac1_key, "mac1----", dev->public_key);
}

/* saved_stamp_ms is the stamp_saved_ms of the last life, 0 for none. */
static void tn_wg_device_init(tn_wg_device *dev, const uint8_t private_key[32],
                              uint64_t saved_stamp_ms)
{
    memset(dev, 0, sizeof *dev);
    tn_wg_device_key(dev, private_key);
    dev->stamp_ms       = saved_stamp_ms;
    dev->stamp_saved_ms = saved_stamp_ms;
    dev->spacing_ms     = 333;
    dev->burst          = 6;
}

static TN_MAYBE_UNUSED void tn_wg_device_wipe(tn_wg_device *dev) { tn_wipe(dev, sizeof *dev); }

/* Keeps stamps that may be sent ahead of need, so that after a power cut the
 * first one is above all of this life. True: store stamp_saved_ms. That comes
 * once a day and once per boot; without a wall clock every 35,000 stamps. */
static bool tn_wg_stamp_reserve(tn_wg_device *dev, uint64_t unix_ms)
{
    uint64_t last = dev->stamp_ms, wall = unix_ms < TN_WG_UNIX_MAX_MS ? unix_ms : 0;

    if (dev->stamp_saved_ms >= tn_time_add(wall > last ? wall : last, TN_WG_STAMP_SPARE_MS))
        return false;
    last = tn_time_add(last, TN_WG_STAMP_BOOT_MS);
    wall = wall == 0 ? 0 : wall + TN_WG_STAMP_AHEAD_MS;
    dev->stamp_saved_ms = wall > last ? wall : last;
    return true;
}

/* The stamp of the next initiation (TAI64N, low 24 bits of the nanoseconds
 * zero as wireguard-go does it): greater than any before, whatever the clock
 * does. unix_ms 0: not known. The answer is that of tn_wg_stamp_reserve. */
static bool tn_wg_stamp(tn_wg_device *dev, uint64_t unix_ms, uint8_t out[TN_WG_STAMP_LEN])
{
    bool     save = tn_wg_stamp_reserve(dev, unix_ms);
    uint64_t ms   = tn_time_add(dev->stamp_ms, TN_WG_STAMP_STEP_MS);
    tn_wr    w;

    if (unix_ms > ms && unix_ms < TN_WG_UNIX_MAX_MS) ms = unix_ms;
    dev->stamp_ms = ms;
    tn_wr_over(&w, out, TN_WG_STAMP_LEN);
    tn_wr_u64be(&w, TN_WG_STAMP_BASE + 10u + ms / 1000u);
    tn_wr_u32be(&w, (uint32_t)(ms % 1000u) * 1000000ul & 0xff000000ul);
    return save;
}

/* A stamp in 64 bits that keep its order to 256 ns. Seconds that no clock
 * shows, before 1970 or 34,000 years later, are the least and the greatest. */
static uint64_t tn_wg_stamp_value(const uint8_t stamp[TN_WG_STAMP_LEN])
{
    tn_rd    r;
    uint64_t seconds;
    uint32_t nanos;

    tn_rd_over(&r, stamp, TN_WG_STAMP_LEN);
    seconds = tn_rd_u64be(&r);
    nanos   = tn_rd_u32be(&r);
    if (seconds < TN_WG_STAMP_BASE) return 0;
    seconds -= TN_WG_STAMP_BASE;
    return seconds >> 40 != 0 ? UINT64_MAX : seconds << 24 | nanos >> 8;
}

/* Type of a datagram by its first four bytes and its length, which is exact for
 * all but data. OTHER: drop it. */
static tn_wg_type tn_wg_classify(const uint8_t *msg, size_t len)
{
    static const uint8_t length[TN_WG_DATA] = {
        0, TN_WG_INITIATION_LEN, TN_WG_RESPONSE_LEN, TN_WG_COOKIE_LEN
    };
    tn_rd    r;
    uint32_t type;
    tn_rd_over(&r, msg, len);
    type = tn_rd_u32le(&r);
    if (type == TN_WG_DATA) return len >= TN_WG_OVERHEAD ? TN_WG_DATA : TN_WG_OTHER;
    return type < TN_WG_DATA && len == length[type] ? (tn_wg_type)type : TN_WG_OTHER;
}

/* The index, one of ours, that a response, cookie or data message names; 0: none. */
static uint32_t tn_wg_receiver(const uint8_t *msg, size_t len)
{
    tn_wg_type type = tn_wg_classify(msg, len);
    tn_rd      r;

    if (type == TN_WG_OTHER || type == TN_WG_INITIATION) return 0;
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, type == TN_WG_RESPONSE ? 8 : 4);
    return tn_rd_u32le(&r);
}

/* Is the MAC that has behind bytes after it in the message the one of all before? */
static bool tn_wg_mac_ok(const uint8_t *key, size_t key_len, const uint8_t *msg, size_t len,
                         size_t behind)
{
    size_t  covered = len - TN_WG_MAC_LEN - behind;
    uint8_t want[TN_WG_MAC_LEN];
    tn_rd   r;
    tn_cr_mac(want, sizeof want, key, key_len, msg, covered);
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, covered);
    return tn_equal(tn_rd_bytes(&r, TN_WG_MAC_LEN), want, sizeof want);
}

/* Is this message a handshake of the right length, with mac1 for us? Costs
 * three blocks of BLAKE2s. */
static bool tn_wg_check_mac1(const tn_wg_device *dev, const uint8_t *msg, size_t len)
{
    tn_wg_type type = tn_wg_classify(msg, len);
    return (type == TN_WG_INITIATION || type == TN_WG_RESPONSE) &&
           tn_wg_mac_ok(dev->mac1_key, 32, msg, len, TN_WG_MAC_LEN);
}

/* The bytes that stand for the sender of a datagram. For a packet that came by
 * relay the sender's node key stands there instead. */
static size_t tn_wg_from_addr(uint8_t out[18], const tailnet_addr *addr)
{
    tn_wr w;
    tn_wr_over(&w, out, 18);
    tn_wr_bytes(&w, addr->ip, tn_ip_len(addr->family));
    tn_wr_u16be(&w, addr->port);
    return tn_wr_len(&w);
}

/* The cookie of a sender, good as long as our secret lives. */
static void tn_wg_cookie_of(const tn_wg_device *dev, uint8_t cookie[TN_WG_MAC_LEN],
                            const uint8_t *from, size_t from_len)
{
    tn_cr_mac(cookie, TN_WG_MAC_LEN, dev->cookie_secret, 32, from, from_len);
}

/* mac2: does the sender hold the cookie that we gave to this very address? */
static bool tn_wg_check_mac2(const tn_wg_device *dev, const uint8_t *msg, size_t len,
                             const uint8_t *from, size_t from_len, uint64_t now_ms)
{
    uint8_t cookie[TN_WG_MAC_LEN];
    bool    ok;
    if (now_ms >= dev->cookie_until_ms) return false;
    tn_wg_cookie_of(dev, cookie, from, from_len);
    ok = tn_wg_mac_ok(cookie, sizeof cookie, msg, len, 0);
    tn_wipe(cookie, sizeof cookie);
    return ok;
}

/* A bucket of burst tokens, one more per spacing_ms, kept as the time at which
 * it is full again. */
static bool tn_wg_take(uint64_t *full_ms, uint64_t now_ms, uint32_t spacing_ms, uint32_t burst)
{
    if (*full_ms > tn_time_add(now_ms, (uint64_t)spacing_ms * (burst - 1))) return false;
    *full_ms = tn_time_add(*full_ms > now_ms ? *full_ms : now_ms, spacing_ms);
    return true;
}

/* The bucket of one proven sender: IPv4 by address, IPv6 by network, relayed
 * ones by key. The hash is keyed, so nobody can aim at another one's bucket. */
static bool tn_wg_take_source(tn_wg_device *dev, const uint8_t *from, size_t from_len,
                              uint64_t now_ms)
{
    tn_wg_source *s = &dev->source[0];
    uint8_t       tag[4];
    unsigned      i;

    tn_cr_mac(tag, sizeof tag, dev->cookie_secret, 32, from,
              from_len == 6 ? 4 : from_len == 18 ? 8 : from_len);
    for (i = 0; i < TN_WG_SOURCES; i++) {
        if (memcmp(dev->source[i].tag, tag, sizeof tag) == 0) {
            s = &dev->source[i];
            break;
        }
        if (dev->source[i].next_ms < s->next_ms) s = &dev->source[i];
    }
    if (memcmp(s->tag, tag, sizeof tag) != 0) {
        memcpy(s->tag, tag, sizeof tag);
        s->next_ms = 0;
    }
    return tn_wg_take(&s->next_ms, now_ms, TN_WG_SOURCE_SPACING_MS, TN_WG_SOURCE_BURST);
}

/* May this message, whose mac1 is right (and whose index, if it is a response,
 * waits for one), cost us public-key work? Three buckets of equal size bound
 * that work: initiations, responses, and senders with a cookie. The first two
 * are apart because a flood of initiations needs only our public key, but one
 * of responses needs an index that only the path to the peer has seen. */
static tn_wg_admission tn_wg_admit(tn_wg_device *dev, const uint8_t *msg, size_t len,
                                   const uint8_t *from, size_t from_len, uint64_t now_ms)
{
    bool initiation = tn_wg_classify(msg, len) == TN_WG_INITIATION;

    if (!initiation || now_ms >= dev->loaded_until_ms) {
        if (tn_wg_take(initiation ? &dev->initiation_ms : &dev->response_ms, now_ms,
                       dev->spacing_ms, dev->burst))
            return TN_WG_ADMIT;
        if (initiation) dev->loaded_until_ms = tn_time_add(now_ms, TN_WG_LOADED_MS);
    }
    if (tn_wg_check_mac2(dev, msg, len, from, from_len, now_ms)) {
        return tn_wg_take_source(dev, from, from_len, now_ms) &&
                       tn_wg_take(&dev->proven_ms, now_ms, dev->spacing_ms, dev->burst)
                   ? TN_WG_ADMIT
                   : TN_WG_REFUSE;
    }
    return tn_wg_take(&dev->cookie_ms, now_ms, TN_WG_COOKIE_SPACING_MS, TN_WG_COOKIE_BURST)
               ? TN_WG_ANSWER_COOKIE
               : TN_WG_REFUSE;
}

/* The answer to a handshake message that tn_wg_admit wants answered so; msg is
 * of the right type and length. random: 32 bytes for the secret, which lives
 * 120 s, and 24 for the nonce. */
static void tn_wg_cookie_reply(tn_wg_device *dev, uint8_t out[TN_WG_COOKIE_LEN],
                               const uint8_t *msg, size_t len, const uint8_t *from,
                               size_t from_len, const uint8_t random[56], uint64_t now_ms)
{
    uint8_t        key[32], cookie[TN_WG_MAC_LEN + TN_WG_TAG_LEN];
    const uint8_t *sender, *mac1, *nonce = random + 32;
    tn_rd          r;
    tn_wr          w;

    if (now_ms >= dev->cookie_until_ms) {
        tn_copy_key(dev->cookie_secret, random);
        dev->cookie_until_ms = tn_time_add(now_ms, TN_WG_COOKIE_MS);
    }
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, 4);
    sender = tn_rd_bytes(&r, 4);
    (void)tn_rd_bytes(&r, len - 8 - TN_WG_MACS_LEN);
    mac1 = tn_rd_bytes(&r, TN_WG_MAC_LEN);

    tn_wg_label_key(key, "cookie--", dev->public_key);
    tn_wg_cookie_of(dev, cookie, from, from_len);
    tn_cr_xaead_seal(key, nonce, mac1, TN_WG_MAC_LEN, cookie, TN_WG_MAC_LEN,
                     cookie + TN_WG_MAC_LEN);
    tn_wr_over(&w, out, TN_WG_COOKIE_LEN);
    tn_wr_u32le(&w, TN_WG_COOKIE);
    tn_wr_bytes(&w, sender, 4);
    tn_wr_bytes(&w, nonce, 24);
    tn_wr_bytes(&w, cookie, sizeof cookie);
}

/* ---- replay window ---- */

/* Which counters were seen: the greatest, and one bit for each of the
 * TAILNET_REPLAY_BITS below it. The greatest itself needs none. */
typedef struct tn_wg_window {
    uint64_t next;                          /* greatest counter + 1; 0: none yet  */
    uint32_t bits[TN_WG_WINDOW_WORDS];      /* counter n at n mod its size        */
} tn_wg_window;

/* Is the counter neither seen nor too old? Changes nothing. */
static bool tn_wg_window_new(const tn_wg_window *win, uint64_t counter)
{
    uint32_t at = (uint32_t)counter % TAILNET_REPLAY_BITS;
    if (counter >= win->next) return true;
    if (win->next - 1 == counter || win->next - 1 - counter > TAILNET_REPLAY_BITS) return false;
    return (win->bits[at / 32] >> at % 32 & 1u) == 0;
}

static TN_NOINLINE void tn_wg_window_mark(tn_wg_window *win, uint32_t counter, bool seen)
{
    uint32_t *word = &win->bits[counter % TAILNET_REPLAY_BITS / 32];
    uint32_t  bit  = (uint32_t)1 << counter % 32;
    *word = seen ? *word | bit : *word & ~bit;
}

/* Notes a counter that tn_wg_window_new has let pass. When the greatest moves
 * on it gets its bit, and those passed over lose theirs. */
static TN_NOINLINE void tn_wg_window_set(tn_wg_window *win, uint64_t counter)
{
    uint32_t at = (uint32_t)counter, passed;

    if (counter < win->next) {
        tn_wg_window_mark(win, at, true);
        return;
    }
    if (win->next != 0) tn_wg_window_mark(win, (uint32_t)win->next - 1, true);
    passed = (uint32_t)tn_min64(counter - win->next, TAILNET_REPLAY_BITS);
    for (; passed != 0; passed--) tn_wg_window_mark(win, at - passed, false);
    win->next = counter + 1;
}

/* ---- a session: its keys ---- */

typedef struct tn_wg_key {
    uint32_t     local, remote;             /* indexes; local 0: no key           */
    uint64_t     tx_counter;
    uint64_t     created_ms;
    uint8_t      tx_key[32], rx_key[32];
    tn_wg_window window;
} tn_wg_key;

/* Which keys there are. Section 6.6 of the paper has three places, previous,
 * current and next, but its rules never fill more than two of them: a new next
 * drops previous, and whatever makes a previous uses next up. */
typedef enum tn_wg_keys {
    TN_WG_KEYS_NONE,
    TN_WG_KEYS_NEXT,                        /* next alone: waiting for the peer   */
    TN_WG_KEYS_CURRENT,                     /* current alone                      */
    TN_WG_KEYS_CURRENT_NEXT,
    TN_WG_KEYS_CURRENT_PREVIOUS
} tn_wg_keys;

typedef enum tn_wg_event { TN_WG_INITIATED, TN_WG_RESPONDED, TN_WG_CONFIRMED } tn_wg_event;

/* From row to column; without a next key nothing can be confirmed. */
static const uint8_t tn_wg_after[5][3] = {
    /* NONE             */ {TN_WG_KEYS_CURRENT, TN_WG_KEYS_NEXT, TN_WG_KEYS_NONE},
    /* NEXT             */ {TN_WG_KEYS_CURRENT_PREVIOUS, TN_WG_KEYS_NEXT, TN_WG_KEYS_CURRENT},
    /* CURRENT          */ {TN_WG_KEYS_CURRENT_PREVIOUS, TN_WG_KEYS_CURRENT_NEXT, TN_WG_KEYS_NONE},
    /* CURRENT_NEXT     */ {TN_WG_KEYS_CURRENT_PREVIOUS, TN_WG_KEYS_CURRENT_NEXT,
                            TN_WG_KEYS_CURRENT_PREVIOUS},
    /* CURRENT_PREVIOUS */ {TN_WG_KEYS_CURRENT_PREVIOUS, TN_WG_KEYS_CURRENT_NEXT, TN_WG_KEYS_NONE}
};

/* The handshake that we began and whose response may still come. */
typedef struct tn_wg_pending {
    uint8_t  ck[32], h[32], ephemeral[32];
    uint32_t index;                         /* 0: none                            */
} tn_wg_pending;

typedef struct tn_wg {
    tn_wg_keys    keys;
    uint8_t       current;                  /* key[current]; the other one is next*/
                                            /*   or previous, as keys says        */
    uint8_t       attempts;                 /* initiations sent for one wish      */
    bool          initiator;                /* we began the current key           */
    bool          renewed_late;             /* the rule of 165 s was used         */
    bool          sent_mac1;
    uint64_t      initiate_ms;              /* deadlines; 0: none                 */
    uint64_t      keepalive_ms;
    uint64_t      silence_ms;
    uint64_t      erase_ms;
    uint64_t      quiet_until_ms;           /* no initiation of ours before       */
    uint64_t      refuse_until_ms;          /* none of the peer's accepted before */
    uint64_t      cookie_until_ms;
    uint64_t      rx_bytes, tx_bytes;       /* whole data messages                */
    uint8_t       mac1[TN_WG_MAC_LEN];      /* of our last handshake message      */
    uint8_t       cookie[TN_WG_MAC_LEN];    /* from the peer                      */
    tn_wg_pending pending;
    tn_wg_key     key[2];
} tn_wg;

/* A deadline, never the 0 that means "none". */
static uint64_t tn_wg_at(uint64_t now_ms, uint32_t delay_ms)
{
    uint64_t at = tn_time_add(now_ms, delay_ms);
    return at == 0 ? 1 : at;
}

static bool tn_wg_has_next(const tn_wg *wg)
{
    return wg->keys == TN_WG_KEYS_NEXT || wg->keys == TN_WG_KEYS_CURRENT_NEXT;
}

static bool tn_wg_has_current(const tn_wg *wg)
{
    return wg->keys != TN_WG_KEYS_NONE && wg->keys != TN_WG_KEYS_NEXT;
}

/* The only place where keys move. Gives the place of the key that the event
 * made, wiped, to be filled; or the one confirmed, untouched. */
static tn_wg_key *tn_wg_enter(tn_wg *wg, tn_wg_event event)
{
    bool had_next = tn_wg_has_next(wg);
    TAILNET_ASSERT(event != TN_WG_CONFIRMED || had_next);

    wg->keys = (tn_wg_keys)tn_wg_after[wg->keys][event];
    switch (event) {
    case TN_WG_INITIATED:                   /* without next, current is previous  */
        if (!had_next) wg->current ^= 1u;
        wg->initiator = true;
        break;
    case TN_WG_RESPONDED:
        tn_wipe(&wg->key[wg->current ^ 1u], sizeof wg->key[0]);
        return &wg->key[wg->current ^ 1u];
    case TN_WG_CONFIRMED:
        wg->current ^= 1u;
        wg->initiator = false;
        return &wg->key[wg->current];
    }
    tn_wipe(&wg->key[wg->current], sizeof wg->key[0]);
    return &wg->key[wg->current];
}

/* All is gone: keys, handshake, cookie, timers. */
static void tn_wg_wipe(tn_wg *wg)
{
    tn_wipe(wg, sizeof *wg);
    wg->keys = TN_WG_KEYS_NONE;
}

/* A session for a peer; without a handshake it ends like one without renewal. */
static void tn_wg_init(tn_wg *wg, uint64_t now_ms)
{
    tn_wg_wipe(wg);
    wg->erase_ms = tn_wg_at(now_ms, TN_WG_ERASE_MS);
}

/* Our own key is another now: what comes in is still read, nothing is sent any
 * more with these keys, and a new handshake may begin at once (wireguard-go
 * device/peer.go, ExpireCurrentKeypairs). */
static TN_MAYBE_UNUSED void tn_wg_expire(tn_wg *wg)
{
    tn_wipe(&wg->pending, sizeof wg->pending);
    wg->key[0].tx_counter = TN_WG_REJECT_MESSAGES;
    wg->key[1].tx_counter = TN_WG_REJECT_MESSAGES;
    wg->initiate_ms    = 0;
    wg->quiet_until_ms = 0;
}

static bool tn_wg_is_pending(const tn_wg *wg, uint32_t index)
{
    return index != 0 && wg->pending.index == index;
}

/* The place of the key that an index of ours names, or -1. */
static int tn_wg_key_of(const tn_wg *wg, uint32_t index)
{
    if (index == 0) return -1;
    return wg->key[0].local == index ? 0 : wg->key[1].local == index ? 1 : -1;
}

/* Does the index name a key or the handshake of this session? */
static bool tn_wg_has_index(const tn_wg *wg, uint32_t index)
{
    return tn_wg_is_pending(wg, index) || tn_wg_key_of(wg, index) >= 0;
}

/* How long ago a key was made: no limit of keys needs more than 32 bits. */
static TN_NOINLINE uint32_t tn_wg_age(const tn_wg_key *key, uint64_t now_ms)
{
    return (uint32_t)tn_min64(now_ms - key->created_ms, UINT32_MAX);
}

/* Is there a key to send with? */
static bool tn_wg_can_send(const tn_wg *wg, uint64_t now_ms)
{
    const tn_wg_key *key = &wg->key[wg->current];
    return tn_wg_has_current(wg) && tn_wg_age(key, now_ms) < TN_WG_REJECT_AFTER_MS &&
           key->tx_counter < TN_WG_REJECT_MESSAGES;
}

/* When the current key was made, or TN_NEVER. */
static uint64_t tn_wg_up_ms(const tn_wg *wg)
{
    return tn_wg_has_current(wg) ? wg->key[wg->current].created_ms : TN_NEVER;
}

/* ---- a session: its clock ---- */

/* Ask for an initiation, because there is something to send or to renew. Once
 * asked, it is sent, repeated, and given up by itself. */
static void tn_wg_want(tn_wg *wg, uint64_t now_ms)
{
    if (wg->initiate_ms == 0) {
        wg->attempts    = 0;
        wg->initiate_ms = tn_wg_at(now_ms, 0);
    } else if (wg->attempts > 1) {
        wg->attempts = 1;                   /* somebody still wants to send       */
    }
}

/* When an initiation is due: never within 5 s of our last handshake message. */
static uint64_t tn_wg_initiate_at(const tn_wg *wg)
{
    if (wg->initiate_ms == 0) return TN_NEVER;
    return wg->initiate_ms > wg->quiet_until_ms ? wg->initiate_ms : wg->quiet_until_ms;
}

/* Is that deadline over? Then it is none any more. */
static TN_NOINLINE bool tn_wg_past(uint64_t *deadline_ms, uint64_t now_ms)
{
    if (*deadline_ms == 0 || *deadline_ms > now_ms) return false;
    *deadline_ms = 0;
    return true;
}

/* What time has brought (section 6 of the paper). */
static TN_NOINLINE unsigned tn_wg_timers(tn_wg *wg, uint64_t now_ms)
{
    unsigned news = 0;

    if (tn_wg_past(&wg->erase_ms, now_ms)) {
        tn_wg_wipe(wg);
        return TN_WG_ERASED;
    }
    if (tn_wg_past(&wg->keepalive_ms, now_ms)) news |= TN_WG_WANT_KEEPALIVE;
    if (tn_wg_past(&wg->silence_ms, now_ms)) {
        tn_wg_want(wg, now_ms);
        news |= TN_WG_SILENT;
    }
    if (tn_wg_initiate_at(wg) > now_ms) return news;
    if (wg->attempts < TN_WG_ATTEMPTS) return news | TN_WG_WANT_HANDSHAKE;
    wg->initiate_ms  = 0;
    wg->keepalive_ms = 0;
    if (wg->erase_ms == 0) wg->erase_ms = tn_wg_at(now_ms, TN_WG_ERASE_MS);
    return TN_WG_GAVE_UP;
}

/* When tn_wg_timers has something to say at the earliest, TN_NEVER: nothing. */
static uint64_t tn_wg_deadline(const tn_wg *wg)
{
    uint64_t at = tn_wg_initiate_at(wg);
    if (wg->keepalive_ms != 0) at = tn_min64(at, wg->keepalive_ms);
    if (wg->silence_ms != 0)   at = tn_min64(at, wg->silence_ms);
    if (wg->erase_ms != 0)     at = tn_min64(at, wg->erase_ms);
    return at;
}

/* A handshake message of ours is about to leave. */
static void tn_wg_sent_handshake(tn_wg *wg, uint64_t now_ms)
{
    wg->quiet_until_ms = tn_wg_at(now_ms, TN_WG_REKEY_TIMEOUT_MS);
    wg->keepalive_ms   = 0;
}

/* The current key is new: no more initiations for now. */
static TN_NOINLINE void tn_wg_complete(tn_wg *wg)
{
    wg->initiate_ms  = 0;
    wg->attempts     = 0;
    wg->renewed_late = false;
}

/* ---- the handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s ---- */

/* HASH of the protocol's name, and HASH of that and the identifier "WireGuard
 * v1 zx2c4 Jason@zx2c4.com" (section 5.4). */
static const uint8_t tn_wg_ck0[32] = {
    0x60, 0xe2, 0x6d, 0xae, 0xf3, 0x27, 0xef, 0xc0, 0x2e, 0xc3, 0x35, 0xe2, 0xa0, 0x25, 0xd2, 0xd0,
    0x16, 0xeb, 0x42, 0x06, 0xf8, 0x72, 0x77, 0xf5, 0x2d, 0x38, 0xd1, 0x98, 0x8b, 0x78, 0xcd, 0x36
};
static const uint8_t tn_wg_h0[32] = {
    0x22, 0x11, 0xb3, 0x61, 0x08, 0x1a, 0xc5, 0x66, 0x69, 0x12, 0x43, 0xdb, 0x45, 0x8a, 0xd5, 0x32,
    0x2d, 0x9c, 0x6c, 0x66, 0x22, 0x93, 0xe8, 0xb7, 0x0e, 0xe1, 0x9c, 0x65, 0xba, 0x07, 0x9e, 0xf3
};

typedef struct tn_wg_noise {
    uint8_t ck[32], h[32], k[32];
} tn_wg_noise;

static void tn_wg_mix_ephemeral(tn_wg_noise *n, const uint8_t public_key[32])
{
    tn_cr_mix_hash(n->h, public_key, 32);
    tn_cr_kdf(n->ck, NULL, NULL, n->ck, public_key, 32);
}

static bool tn_wg_mix_dh(tn_wg_noise *n, const uint8_t private_key[32],
                         const uint8_t public_key[32])
{
    return tn_cr_mix_dh(n->ck, n->k, private_key, public_key);
}

static void tn_wg_mix_psk(tn_wg_noise *n)
{
    uint8_t tau[32];
    tn_cr_kdf(n->ck, tau, n->k, n->ck, tn_cr_zero, sizeof tn_cr_zero);  /* no key in tailnets */
    tn_cr_mix_hash(n->h, tau, sizeof tau);
    tn_wipe(tau, sizeof tau);
}

static void tn_wg_start(tn_wg_noise *n, const uint8_t responder[32])
{
    tn_copy_key(n->ck, tn_wg_ck0);
    tn_copy_key(n->h, tn_wg_h0);
    tn_cr_mix_hash(n->h, responder, 32);
}

/* Seals len bytes (at most 32) into the message, and mixes them in. */
static void tn_wg_put_sealed(tn_wg_noise *n, tn_wr *w, const uint8_t *src, size_t len)
{
    uint8_t box[32 + TN_WG_TAG_LEN];
    if (len != 0) memcpy(box, src, len);
    tn_cr_mix_seal(n->h, n->k, box, len);
    tn_wr_bytes(w, box, len + TN_WG_TAG_LEN);
}

/* Opens len bytes (at most 32) and a tag from box; mixes them in. Zeroes and
 * false when they are forged. */
static bool tn_wg_get_sealed(tn_wg_noise *n, uint8_t *dst, const uint8_t *box, size_t len)
{
    uint8_t copy[32 + TN_WG_TAG_LEN];
    bool    ok;
    memcpy(copy, box, len + TN_WG_TAG_LEN);
    ok = tn_cr_mix_open(n->h, n->k, copy, len);
    if (len != 0) memcpy(dst, copy, len);
    return ok;
}

/* Writes mac1, and mac2 if the peer gave us a cookie; remembers mac1, which
 * the peer's next cookie reply has to name. */
static void tn_wg_put_macs(tn_wg *wg, tn_wr *w, const uint8_t peer[32], uint64_t now_ms)
{
    uint8_t key[32], mac2[TN_WG_MAC_LEN];

    tn_wg_label_key(key, "mac1----", peer);
    tn_cr_mac(wg->mac1, sizeof wg->mac1, key, sizeof key, w->base, w->total);
    tn_wr_bytes(w, wg->mac1, sizeof wg->mac1);
    wg->sent_mac1 = true;
    memset(mac2, 0, sizeof mac2);
    if (now_ms < wg->cookie_until_ms)
        tn_cr_mac(mac2, sizeof mac2, wg->cookie, sizeof wg->cookie, w->base, w->total);
    tn_wr_bytes(w, mac2, sizeof mac2);
}

/* Makes a key of the finished handshake (section 5.4.5). */
static void tn_wg_derive(tn_wg *wg, tn_wg_event event, const tn_wg_noise *n, uint32_t local,
                         uint32_t remote, uint64_t now_ms)
{
    tn_wg_key *key   = tn_wg_enter(wg, event);
    bool       began = event == TN_WG_INITIATED;

    tn_cr_kdf(began ? key->tx_key : key->rx_key, began ? key->rx_key : key->tx_key, NULL, n->ck,
              NULL, 0);
    key->created_ms = now_ms;
    key->local      = local;
    key->remote     = remote;
    wg->silence_ms  = 0;
    wg->erase_ms    = tn_wg_at(now_ms, TN_WG_ERASE_MS);
}

/* Writes an initiation (section 5.4.2) to be sent now. Three X25519. ephemeral
 * is 32 random bytes, index a random number that is neither 0 nor in use, stamp
 * from tn_wg_stamp. TOO_SOON: not yet (nothing changed). FORGED: the peer's key
 * is no key; nothing is wanted any more. */
static tn_wg_verdict tn_wg_initiate(const tn_wg_device *dev, tn_wg *wg,
                                    uint8_t out[TN_WG_INITIATION_LEN], const uint8_t peer[32],
                                    const uint8_t stamp[TN_WG_STAMP_LEN],
                                    const uint8_t ephemeral[32], uint32_t index, uint64_t now_ms)
{
    tn_wg_noise n;
    uint8_t     public_key[32];
    tn_wr       w;
    bool        ok;

    TAILNET_ASSERT(index != 0);
    if (now_ms < wg->quiet_until_ms) return TN_WG_TOO_SOON;
    tn_wg_sent_handshake(wg, now_ms);
    tn_wg_start(&n, peer);
    tn_cr_x25519_base(public_key, ephemeral);
    tn_wr_over(&w, out, TN_WG_INITIATION_LEN);
    tn_wr_u32le(&w, TN_WG_INITIATION);
    tn_wr_u32le(&w, index);
    tn_wr_bytes(&w, public_key, sizeof public_key);
    tn_wg_mix_ephemeral(&n, public_key);
    ok = tn_wg_mix_dh(&n, ephemeral, peer);
    tn_wg_put_sealed(&n, &w, dev->public_key, 32);
    ok = ok && tn_wg_mix_dh(&n, dev->private_key, peer);
    if (ok) {
        tn_wg_put_sealed(&n, &w, stamp, TN_WG_STAMP_LEN);
        tn_wg_put_macs(wg, &w, peer, now_ms);
        tn_copy_key(wg->pending.ck, n.ck);
        tn_copy_key(wg->pending.h, n.h);
        tn_copy_key(wg->pending.ephemeral, ephemeral);
        wg->pending.index = index;
        wg->initiate_ms = tn_wg_at(now_ms, TN_WG_REKEY_TIMEOUT_MS + index % TN_WG_JITTER_MS);
        if (wg->attempts < TN_WG_ATTEMPTS) wg->attempts++;
    } else {
        wg->initiate_ms = 0;
    }
    tn_wipe(&n, sizeof n);
    return ok ? TN_WG_OK : TN_WG_FORGED;
}

/* An initiation that is being read. It holds all that the further steps need,
 * so they may come in later calls; who drops it wipes it. */
typedef struct tn_wg_hello {
    tn_wg_noise noise;
    uint8_t     ephemeral[32];
    uint8_t     peer[32];                   /* who it claims to be                */
    uint8_t     sealed_stamp[TN_WG_STAMP_LEN + TN_WG_TAG_LEN];
    uint64_t    stamp;                      /* after tn_wg_prove_initiation       */
    uint32_t    index;
} tn_wg_hello;

/* First step with an initiation whose mac1 is right: who says he is calling?
 * One X25519. Anybody who knows two public keys can get this far as anybody:
 * the answer is only good for looking the peer up. */
static tn_wg_verdict tn_wg_open_initiation(const tn_wg_device *dev, const uint8_t *msg, size_t len,
                                           tn_wg_hello *out)
{
    tn_rd          r;
    const uint8_t *sealed;

    memset(out, 0, sizeof *out);
    if (tn_wg_classify(msg, len) != TN_WG_INITIATION) return TN_WG_MALFORMED;
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, 4);
    out->index = tn_rd_u32le(&r);
    tn_rd_copy(&r, out->ephemeral, sizeof out->ephemeral);
    sealed = tn_rd_bytes(&r, 32 + TN_WG_TAG_LEN);
    tn_rd_copy(&r, out->sealed_stamp, sizeof out->sealed_stamp);
    tn_wg_start(&out->noise, dev->public_key);
    tn_wg_mix_ephemeral(&out->noise, out->ephemeral);
    if (tn_wg_mix_dh(&out->noise, dev->private_key, out->ephemeral) &&
        tn_wg_get_sealed(&out->noise, out->peer, sealed, 32))
        return TN_WG_OK;
    tn_wipe(out, sizeof *out);
    return TN_WG_FORGED;
}

/* Second step: is it really that peer, and is the message new? One X25519.
 * seen_stamp is the greatest stamp of that peer so far, 0 for none. Only after
 * an OK may anything be given up to make room for the session. */
static tn_wg_verdict tn_wg_prove_initiation(const tn_wg_device *dev, tn_wg_hello *hello,
                                            uint64_t seen_stamp)
{
    uint8_t       stamp[TN_WG_STAMP_LEN];
    tn_wg_verdict verdict = TN_WG_FORGED;

    if (tn_wg_mix_dh(&hello->noise, dev->private_key, hello->peer) &&
        tn_wg_get_sealed(&hello->noise, stamp, hello->sealed_stamp, sizeof stamp)) {
        hello->stamp = tn_wg_stamp_value(stamp);
        verdict      = hello->stamp > seen_stamp ? TN_WG_OK : TN_WG_REPLAYED;
    }
    if (verdict != TN_WG_OK) tn_wipe(hello, sizeof *hello);
    return verdict;
}

/* Third step: the response (section 5.4.3), to be sent now, and a key that
 * waits for the peer's first packet. Three X25519. ephemeral and index as for
 * tn_wg_initiate. *seen_stamp lives with the peer's entry, because it has to
 * outlive the session's slot; it is raised here. hello is used up. */
static tn_wg_verdict tn_wg_respond(tn_wg *wg, tn_wg_hello *hello, uint8_t out[TN_WG_RESPONSE_LEN],
                                   const uint8_t ephemeral[32], uint32_t index,
                                   uint64_t *seen_stamp, uint64_t now_ms)
{
    tn_wg_noise  *n       = &hello->noise;
    tn_wg_verdict verdict = TN_WG_OK;
    uint8_t       public_key[32];
    tn_wr         w;

    TAILNET_ASSERT(index != 0);
    if (hello->stamp <= *seen_stamp)               verdict = TN_WG_REPLAYED;
    else if (now_ms < wg->refuse_until_ms)         verdict = TN_WG_TOO_SOON;
    if (verdict == TN_WG_OK) {
        tn_cr_x25519_base(public_key, ephemeral);
        tn_wg_mix_ephemeral(n, public_key);
        if (!tn_wg_mix_dh(n, ephemeral, hello->ephemeral) ||
            !tn_wg_mix_dh(n, ephemeral, hello->peer))
            verdict = TN_WG_FORGED;
    }
    if (verdict == TN_WG_OK) {
        *seen_stamp         = hello->stamp;
        wg->refuse_until_ms = tn_time_add(now_ms, TN_WG_FLOOD_MS);
        tn_wr_over(&w, out, TN_WG_RESPONSE_LEN);
        tn_wr_u32le(&w, TN_WG_RESPONSE);
        tn_wr_u32le(&w, index);
        tn_wr_u32le(&w, hello->index);
        tn_wr_bytes(&w, public_key, sizeof public_key);
        tn_wg_mix_psk(n);
        tn_wg_put_sealed(n, &w, NULL, 0);
        tn_wg_put_macs(wg, &w, hello->peer, now_ms);
        tn_wg_derive(wg, TN_WG_RESPONDED, n, index, hello->index, now_ms);
        tn_wg_sent_handshake(wg, now_ms);
    }
    tn_wipe(hello, sizeof *hello);
    return verdict;
}

/* The response to our initiation, with mac1 checked: the key is there, and the
 * peer waits for a packet on it. Two X25519. A wrong one changes nothing, the
 * right one may still come. */
static tn_wg_verdict tn_wg_consume_response(const tn_wg_device *dev, tn_wg *wg,
                                            const uint8_t *msg, size_t len, uint64_t now_ms,
                                            unsigned *news)
{
    tn_wg_noise    n;
    tn_rd          r;
    uint32_t       remote;
    const uint8_t *public_key, *sealed;
    uint8_t        nothing[1];
    bool           ok;

    *news = 0;
    if (tn_wg_classify(msg, len) != TN_WG_RESPONSE) return TN_WG_MALFORMED;
    if (!tn_wg_is_pending(wg, tn_wg_receiver(msg, len))) return TN_WG_UNKNOWN;
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, 4);
    remote = tn_rd_u32le(&r);
    (void)tn_rd_bytes(&r, 4);
    public_key = tn_rd_bytes(&r, 32);
    sealed     = tn_rd_bytes(&r, TN_WG_TAG_LEN);
    tn_copy_key(n.ck, wg->pending.ck);
    tn_copy_key(n.h, wg->pending.h);
    tn_wg_mix_ephemeral(&n, public_key);
    ok = tn_wg_mix_dh(&n, wg->pending.ephemeral, public_key) &&
         tn_wg_mix_dh(&n, dev->private_key, public_key);
    if (ok) {
        tn_wg_mix_psk(&n);
        ok = tn_wg_get_sealed(&n, nothing, sealed, 0);
    }
    if (ok) {
        tn_wg_derive(wg, TN_WG_INITIATED, &n, wg->pending.index, remote, now_ms);
        tn_wipe(&wg->pending, sizeof wg->pending);
        tn_wg_complete(wg);
        *news = TN_WG_NEW_KEY | TN_WG_WANT_KEEPALIVE;
    }
    tn_wipe(&n, sizeof n);
    return ok ? TN_WG_OK : TN_WG_FORGED;
}

/* The peer is under load and wants mac2 in our next handshake message, which
 * is sent when it is due, not now (section 5.4.7). */
static tn_wg_verdict tn_wg_consume_cookie(tn_wg *wg, const uint8_t peer[32], const uint8_t *msg,
                                          size_t len, uint64_t now_ms)
{
    uint8_t        key[32], cookie[TN_WG_MAC_LEN];
    const uint8_t *nonce, *tag;
    tn_rd          r;

    if (tn_wg_classify(msg, len) != TN_WG_COOKIE) return TN_WG_MALFORMED;
    if (!tn_wg_has_index(wg, tn_wg_receiver(msg, len)) || !wg->sent_mac1) return TN_WG_UNKNOWN;
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, 8);
    nonce = tn_rd_bytes(&r, 24);
    tn_rd_copy(&r, cookie, sizeof cookie);
    tag = tn_rd_bytes(&r, TN_WG_TAG_LEN);
    tn_wg_label_key(key, "cookie--", peer);
    if (!tn_cr_xaead_open(key, nonce, wg->mac1, sizeof wg->mac1, cookie, sizeof cookie, tag))
        return TN_WG_FORGED;
    memcpy(wg->cookie, cookie, sizeof cookie);
    wg->cookie_until_ms = tn_time_add(now_ms, TN_WG_COOKIE_MS);
    return TN_WG_OK;
}

/* ---- data ---- */

/* Prepares len bytes that lie 16 behind datagram, 0 for a keepalive: header,
 * padding, counter, timers. There has to be room for 15 of padding and 16 of
 * tag behind them. When the work is done the datagram is 32 + work->len long.
 * NO_KEY: keep the packet; a handshake has been asked for. */
static tn_wg_verdict tn_wg_seal_begin(tn_wg *wg, uint8_t *datagram, size_t len, size_t mtu,
                                      uint64_t now_ms, tailnet_crypt *work)
{
    tn_wg_key *key    = &wg->key[wg->current];
    size_t     padded = (len + TN_WG_PAD - 1) / TN_WG_PAD * TN_WG_PAD;
    tn_wr      w;

    if (!tn_wg_can_send(wg, now_ms)) {
        tn_wg_want(wg, now_ms);
        return TN_WG_NO_KEY;
    }
    if (padded > mtu) padded = len > mtu ? len : mtu;
    work->key     = key->tx_key;
    work->counter = key->tx_counter++;
    work->data    = datagram + TN_WG_HEAD_LEN;
    work->len     = (uint32_t)padded;
    work->open    = false;
    work->ok      = false;
    tn_wr_over(&w, datagram, TN_WG_HEAD_LEN);
    tn_wr_u32le(&w, TN_WG_DATA);
    tn_wr_u32le(&w, key->remote);
    tn_wr_u64le(&w, work->counter);
    memset(work->data + len, 0, padded - len);

    wg->tx_bytes += TN_WG_OVERHEAD + padded;
    wg->keepalive_ms = 0;
    if (len != 0 && wg->silence_ms == 0)
        wg->silence_ms = tn_wg_at(now_ms, TN_WG_SILENCE_MS + key->local % TN_WG_JITTER_MS);
    /* The jitter ends the case that both began at the same time and would renew
     * both keys for ever. */
    if (work->counter > TN_WG_REKEY_MESSAGES ||
        (wg->initiator && tn_wg_age(key, now_ms) >
                              TN_WG_REKEY_AFTER_MS + (key->local ^ key->remote) % TN_WG_JITTER_MS))
        tn_wg_want(wg, now_ms);
    return TN_WG_OK;
}

/* Prepares the opening of a data message of this session, in place. Changes
 * nothing but work. */
static tn_wg_verdict tn_wg_open_begin(const tn_wg *wg, uint8_t *msg, size_t len, uint64_t now_ms,
                                      tailnet_crypt *work)
{
    const tn_wg_key *key;
    tn_rd            r;
    int              at;

    if (tn_wg_classify(msg, len) != TN_WG_DATA || len > UINT32_MAX) return TN_WG_MALFORMED;
    at = tn_wg_key_of(wg, tn_wg_receiver(msg, len));
    if (at < 0) return TN_WG_UNKNOWN;
    key = &wg->key[at];
    if (tn_wg_age(key, now_ms) > TN_WG_REJECT_AFTER_MS) return TN_WG_EXPIRED;
    tn_rd_over(&r, msg, len);
    (void)tn_rd_bytes(&r, 8);
    work->key     = key->rx_key;
    work->counter = tn_rd_u64le(&r);
    work->data    = msg + TN_WG_HEAD_LEN;
    work->len     = (uint32_t)(len - TN_WG_OVERHEAD);
    work->open    = true;
    work->ok      = false;
    if (work->counter >= TN_WG_REJECT_MESSAGES) return TN_WG_REPLAYED;
    return tn_wg_window_new(&key->window, work->counter) ? TN_WG_OK : TN_WG_REPLAYED;
}

/* Takes a message whose opening is done; msg still has its header. OK: it is
 * from the peer and new, so its sender's address may be learned; work->len is
 * 0 for a keepalive. */
static TN_NOINLINE tn_wg_verdict tn_wg_accept(tn_wg *wg, const uint8_t *msg,
                                              const tailnet_crypt *work, uint64_t now_ms,
                                              unsigned *news)
{
    tn_wg_key *key;
    int        at;

    *news = 0;
    if (!work->ok) return TN_WG_FORGED;
    at = tn_wg_key_of(wg, tn_wg_receiver(msg, (size_t)work->len + TN_WG_OVERHEAD));
    if (at < 0) return TN_WG_UNKNOWN;
    key = &wg->key[at];
    if (!tn_wg_window_new(&key->window, work->counter)) return TN_WG_REPLAYED;
    tn_wg_window_set(&key->window, work->counter);

    wg->rx_bytes += (uint64_t)TN_WG_OVERHEAD + work->len;
    wg->silence_ms = 0;
    if (tn_wg_has_next(wg) && at != wg->current) {
        (void)tn_wg_enter(wg, TN_WG_CONFIRMED);
        tn_wg_complete(wg);
        *news = TN_WG_NEW_KEY;
    }
    if (work->len != 0 && wg->keepalive_ms == 0)
        wg->keepalive_ms = tn_wg_at(now_ms, TN_WG_KEEPALIVE_MS);
    if (wg->initiator && !wg->renewed_late && tn_wg_has_current(wg) &&
        tn_wg_age(&wg->key[wg->current], now_ms) > TN_WG_FRESH_RECEIVE_MS) {
        wg->renewed_late = true;
        tn_wg_want(wg, now_ms);
    }
    return TN_WG_OK;
}

/* ======================================================================== *
 * >>ip — looks into IP packets: who to whom, which protocol, which ports;
 * rewrites an address for peers that know us by another one; reads and writes
 * TSMP, the control messages inside the tunnel (IP protocol 99).
 *
 * Owns:    nothing; a tn_ip_packet points into the packet it was made from.
 * Calls:   >>base.
 * States:  none.
 * Always:  every offset in a tn_ip_packet lies inside its len bytes. What could
 *          not be read with certainty has protocol TN_IP_UNKNOWN. Rewriting an
 *          address leaves a right checksum right and a wrong one wrong.
 * Trust:   packets come from peers and may hold anything; only the length of
 *          the memory is known. A quoted packet is the peer's word.
 * ======================================================================== */

enum {
    TN_IP_UNKNOWN = 0, TN_IP_ICMP4 = 1, TN_IP_IGMP = 2, TN_IP_TCP = 6, TN_IP_UDP = 17,
    TN_IP_FRAGMENT_HEAD = 44, TN_IP_ICMP6 = 58, TN_IP_TSMP = 99, TN_IP_SCTP = 132,
    TN_IP_FRAGMENT = 255                    /* a later fragment: no ports to see  */
};

enum { TN_IP_FIN = 1, TN_IP_SYN = 2, TN_IP_RST = 4, TN_IP_ACK = 16 };

enum { TN_IP_REJECT_ACL = 'A', TN_IP_REJECT_SHIELDS = 'S' };

#define TN_IP_TSMP_MAX 73u                  /* longest TSMP packet that we build  */
#define TN_IP_TTL      64u

/* ICMP of the packet's own family; in the other family it is just a number. */
typedef enum tn_ip_icmp {
    TN_IP_NO_ICMP, TN_IP_ECHO_REQUEST, TN_IP_ECHO_REPLY, TN_IP_ICMP_ERROR, TN_IP_ICMP_OTHER
} tn_ip_icmp;

/* One packet as far as anybody here has to understand it. Ports are those of
 * TCP, UDP and SCTP; in an ICMP echo the number of the asker stands where his
 * port would, so that a request and its reply look like any other flow. */
typedef struct tn_ip_packet {
    uint8_t        family;                  /* 4, 6, or 0: no IP packet           */
    uint8_t        tcp_flags;               /* 0 unless TCP                       */
    tn_ip_icmp     icmp;
    bool           fragmented;              /* there are other pieces of it       */
    uint16_t       body;                    /* where the transport header begins  */
    const uint8_t *data;
    size_t         len;                     /* cut to its own total length        */
    tailnet_flow   flow;
    tailnet_flow   quoted;                  /* what an ICMP error complains about; */
                                            /*   family 0 when there is none      */
} tn_ip_packet;

/* The IP header with what follows it up to the transport header. */
typedef struct tn_ip_head {
    uint16_t size;                          /* up to the transport header         */
    uint16_t offset;                        /* of this fragment, in 8 bytes       */
    bool     more;                          /* fragments follow                   */
    uint32_t total;                         /* as the packet claims               */
} tn_ip_head;

static void tn_ip_ends_read(tn_rd *r, tailnet_flow *flow, unsigned family)
{
    flow->src.family = flow->dst.family = (uint8_t)family;
    tn_rd_copy(r, flow->src.ip, tn_ip_len(family));
    tn_rd_copy(r, flow->dst.ip, tn_ip_len(family));
}

/* RFC 791. Options are skipped. False: cut, or a length that cannot be. */
static bool tn_ip_head4(tn_rd *r, tn_ip_head *h, tailnet_flow *flow)
{
    uint32_t word = tn_rd_u32be(r);         /* version, size, service, total      */
    h->total  = word & 0xffffu;
    h->size   = (uint16_t)((word >> 24 & 15u) * 4);
    word      = tn_rd_u32be(r);             /* number, flags, offset              */
    h->offset = (uint16_t)(word & 0x1fffu);
    h->more   = (word & 0x2000u) != 0;
    word      = tn_rd_u32be(r);             /* hops, protocol, checksum           */
    flow->protocol = (uint8_t)(word >> 16 & 0xffu);
    tn_ip_ends_read(r, flow, 4);
    if (h->size < 20) return false;         /* would read ports from the addresses */
    (void)tn_rd_bytes(r, h->size - 20u);
    return tn_rd_ok(r) && h->total >= h->size;
}

/* RFC 8200. A fragment header right behind is understood (hosts make it for
 * packets above the MTU); other extension headers are protocols of their own,
 * as in the reference (net/packet/packet.go), so that no rule for TCP or UDP
 * ever matches behind one. */
static bool tn_ip_head6(tn_rd *r, tn_ip_head *h, tailnet_flow *flow)
{
    uint32_t word;
    (void)tn_rd_u32be(r);
    word           = tn_rd_u32be(r);        /* length of the rest, protocol, hops */
    h->size        = 40;
    h->total       = (word >> 16) + 40;
    flow->protocol = (uint8_t)(word >> 8 & 0xffu);
    tn_ip_ends_read(r, flow, 6);
    if (flow->protocol == TN_IP_FRAGMENT_HEAD) {
        word           = tn_rd_u32be(r);    /* protocol, zero, offset, flags      */
        flow->protocol = (uint8_t)(word >> 24);
        h->offset      = (uint16_t)(word >> 3 & 0x1fffu);
        h->more        = (word & 1u) != 0;
        h->size        = 48;
        (void)tn_rd_u32be(r);
    }
    return tn_rd_ok(r) && h->total >= h->size;
}

/* The head at the cursor, which then stands on the transport header. Ports are 0. */
static bool tn_ip_head_read(tn_rd *r, tn_ip_head *h, tailnet_flow *flow)
{
    tn_rd    peek    = *r;
    unsigned version = (unsigned)tn_rd_u8(&peek) >> 4;
    memset(h, 0, sizeof *h);
    memset(flow, 0, sizeof *flow);
    if (version == 4) return tn_ip_head4(r, h, flow);
    return version == 6 && tn_ip_head6(r, h, flow);
}

/* The length of the IP packet in a decrypted plaintext, which may be padded; 0
 * when it is malformed. WireGuard's receivers cut here. */
static TN_MAYBE_UNUSED size_t tn_ip_trim(const uint8_t *data, size_t len)
{
    tn_rd    r;
    unsigned version, total4, payload6;

    tn_rd_over(&r, data, len);
    version = (unsigned)tn_rd_u8(&r) >> 4;
    (void)tn_rd_u8(&r);
    total4   = tn_rd_u16be(&r);
    payload6 = tn_rd_u16be(&r);
    if (version == 4 && len >= 20) return total4 < 20 || total4 > len ? 0 : total4;
    if (version == 6 && len >= 40) return payload6 > len - 40 ? 0 : (size_t)payload6 + 40;
    return 0;
}

/* Fewest bytes a transport header needs to be believed. A first fragment with
 * less is an attempt to hide the ports (RFC 1858). */
static unsigned tn_ip_least(unsigned family, unsigned protocol)
{
    /* protocol, where another family takes it for a mere number, bytes */
    static const uint8_t least[7][3] = {
        { TN_IP_TCP, 0, 20 }, { TN_IP_UDP, 0, 8 }, { TN_IP_SCTP, 0, 12 }, { TN_IP_TSMP, 0, 7 },
        { TN_IP_ICMP4, 6, 4 }, { TN_IP_IGMP, 6, 8 }, { TN_IP_ICMP6, 4, 4 }
    };
    unsigned i;
    for (i = 0; i < 7; i++)
        if (least[i][0] == protocol && least[i][1] != family) return least[i][2];
    return 0;
}

static bool tn_ip_is_icmp(unsigned family, unsigned protocol)
{
    return protocol == (family == 4 ? TN_IP_ICMP4 : TN_IP_ICMP6);
}

/* RFC 792, RFC 4443. Which kind of message is that? Type 12 is the parameter
 * problem of ICMPv4; the reference writes 0x12 and means it. */
static tn_ip_icmp tn_ip_icmp_kind(unsigned family, unsigned type, unsigned code)
{
    bool v4 = family == 4;
    if (type == (v4 ? 8 : 128) && code == 0) return TN_IP_ECHO_REQUEST;
    if (type == (v4 ? 0 : 129) && code == 0) return TN_IP_ECHO_REPLY;
    if (v4 ? type == 3 || type == 11 || type == 12 : type >= 1 && type <= 4)
        return TN_IP_ICMP_ERROR;
    return TN_IP_ICMP_OTHER;
}

/* The eight bytes that every ICMP message begins with; a shorter one is OTHER,
 * which nothing treats as an answer. */
static tn_ip_icmp tn_ip_icmp_read(tn_rd *r, tailnet_flow *flow)
{
    unsigned   type = tn_rd_u8(r), code = tn_rd_u8(r), number;
    tn_ip_icmp kind = tn_ip_icmp_kind(flow->src.family, type, code);

    (void)tn_rd_u16be(r);
    number = tn_rd_u16be(r);
    (void)tn_rd_u16be(r);
    if (!tn_rd_ok(r)) return TN_IP_ICMP_OTHER;
    if (kind == TN_IP_ECHO_REQUEST) flow->src.port = (uint16_t)number;
    if (kind == TN_IP_ECHO_REPLY) flow->dst.port = (uint16_t)number;
    return kind;
}

/* The packet inside an ICMP error, of which only the beginning is there. False
 * unless it tells a flow: same family, first fragment, ports readable. */
static bool tn_ip_quote_read(tn_rd *r, unsigned family, tailnet_flow *out)
{
    tn_ip_head h;
    if (!tn_ip_head_read(r, &h, out) || out->src.family != family || h.offset != 0) return false;
    if (out->protocol == TN_IP_UNKNOWN || out->protocol == TN_IP_FRAGMENT ||
        out->protocol == TN_IP_TSMP)
        return false;
    if (tn_has_ports(out->protocol)) {
        out->src.port = tn_rd_u16be(r);
        out->dst.port = tn_rd_u16be(r);
    } else if (tn_ip_is_icmp(family, out->protocol)) {
        if (tn_ip_icmp_read(r, out) != TN_IP_ECHO_REQUEST) return false;
    }
    return tn_rd_ok(r);
}

/* The transport header at the cursor, as far as rules look at it. False: cut. */
static bool tn_ip_body_read(tn_ip_packet *p, tn_rd *r, unsigned protocol, bool more)
{
    if (r->left < tn_ip_least(p->family, protocol)) return false;
    if (protocol == TN_IP_UNKNOWN || protocol == TN_IP_FRAGMENT) return false;
    if (protocol == TN_IP_TSMP && more) return false;
    if (tn_has_ports(protocol)) {
        p->flow.src.port = tn_rd_u16be(r);
        p->flow.dst.port = tn_rd_u16be(r);
    }
    if (protocol == TN_IP_TCP) {
        (void)tn_rd_bytes(r, 9);            /* sequence, acknowledged, offset     */
        p->tcp_flags = tn_rd_u8(r);
    } else if (tn_ip_is_icmp(p->family, protocol)) {
        p->icmp = tn_ip_icmp_read(r, &p->flow);
        if (p->icmp == TN_IP_ICMP_ERROR && !tn_ip_quote_read(r, p->family, &p->quoted))
            memset(&p->quoted, 0, sizeof p->quoted);
    }
    return true;
}

/* Looks into a packet. False is protocol TN_IP_UNKNOWN: malformed, cut, or a
 * fragment that could lie over a transport header; nobody may deliver it. */
static bool tn_ip_read(tn_ip_packet *p, const uint8_t *data, size_t len)
{
    tn_ip_head h;
    tn_rd      r;
    unsigned   protocol;
    bool       ok;

    memset(p, 0, sizeof *p);
    p->data = data;
    p->len  = len;
    tn_rd_over(&r, data, len);
    ok               = tn_ip_head_read(&r, &h, &p->flow) && h.total <= len;
    protocol         = p->flow.protocol;
    p->flow.protocol = TN_IP_UNKNOWN;
    if (!ok) {
        memset(&p->flow, 0, sizeof p->flow);
        return false;
    }
    p->family     = p->flow.src.family;
    p->len        = (size_t)h.total;
    p->body       = h.size;
    p->fragmented = h.more || h.offset != 0;
    if (h.offset != 0) {
        if (h.offset < 10) return false;    /* 80 bytes: 60 of TCP and options    */
        p->flow.protocol = TN_IP_FRAGMENT;
        return true;
    }
    r.left = p->len - h.size;               /* padding behind is not the packet's */
    if (!tn_ip_body_read(p, &r, protocol, h.more)) return false;
    p->flow.protocol = (uint8_t)protocol;
    return true;
}

/* ---- checksums (RFC 1071, RFC 1624) ---- */

/* Adds bytes as big-endian numbers of 16 bits to a sum that may stay unfolded:
 * 64 KB of them cannot overflow it. */
static uint32_t tn_ip_sum(uint32_t sum, const uint8_t *data, size_t len)
{
    tn_rd r;
    tn_rd_over(&r, data, len);
    while (r.left >= 2) sum += tn_rd_u16be(&r);
    if (r.left != 0) sum += (uint32_t)tn_rd_u8(&r) << 8;
    return sum;
}

static uint16_t tn_ip_fold(uint32_t sum)
{
    sum = (sum & 0xffffu) + (sum >> 16);
    sum = (sum & 0xffffu) + (sum >> 16);
    return (uint16_t)sum;
}

static uint16_t tn_ip_get16(const uint8_t *data, size_t at)
{
    tn_rd r;
    tn_rd_over(&r, data + at, 2);
    return tn_rd_u16be(&r);
}

static void tn_ip_put16(uint8_t *data, size_t at, unsigned v)
{
    tn_wr w;
    tn_wr_over(&w, data + at, 2);
    tn_wr_u16be(&w, v);
}

/* What replacing old by new adds to a sum: ~m + m' of RFC 1624. */
static uint32_t tn_ip_delta(const uint8_t *old, const uint8_t *neu, unsigned len)
{
    return (uint32_t)0xffffu * (len / 2) - tn_ip_sum(0, old, len) + tn_ip_sum(0, neu, len);
}

/* Corrects the checksum at at by delta and returns what that changes in a sum
 * over the field itself. */
static uint32_t tn_ip_fix(uint8_t *data, size_t at, uint32_t delta)
{
    unsigned old = tn_ip_get16(data, at);
    unsigned neu = 0xffffu & ~(unsigned)tn_ip_fold((0xffffu & ~old) + delta);
    tn_ip_put16(data, at, neu);
    return (uint32_t)(0xffffu & ~old) + neu;
}

/* The sum of the addresses inside the transport checksum has changed by delta. */
static void tn_ip_fix_transport(uint8_t *data, const tn_ip_packet *p, uint32_t delta)
{
    size_t at = p->body;
    if (p->flow.protocol == TN_IP_TCP) {
        (void)tn_ip_fix(data, at + 16, delta);
    } else if (p->flow.protocol == TN_IP_UDP) {
        if (tn_ip_get16(data, at + 6) == 0) return;     /* none was made (RFC 768) */
        (void)tn_ip_fix(data, at + 6, delta);
        if (tn_ip_get16(data, at + 6) == 0) tn_ip_put16(data, at + 6, 0xffffu);
    } else if (p->family == 6 && p->flow.protocol == TN_IP_ICMP6) {
        (void)tn_ip_fix(data, at + 2, delta);
    }
}

/* Where the source (or destination) address of the head at at lies. */
static size_t tn_ip_addr_at(unsigned family, bool src, size_t at)
{
    if (family == 4) return at + (src ? 12u : 16u);
    return at + (src ? 8u : 24u);
}

/* Puts the source (or destination) address into the head at at and into field.
 * Returns what that adds to a sum over it. */
static uint32_t tn_ip_put_addr(uint8_t *data, size_t at, bool src, tailnet_addr *field,
                               const tailnet_addr *ip)
{
    unsigned len   = tn_ip_len(ip->family);
    uint8_t *bytes = data + tn_ip_addr_at(ip->family, src, at);
    uint32_t delta = tn_ip_delta(bytes, ip->ip, len);
    memcpy(bytes, ip->ip, len);
    memcpy(field->ip, ip->ip, len);
    return delta;
}

/* Puts another address into a packet. False, and nothing changed, when there is
 * no packet or the family differs. An ICMP error quotes a packet of the other
 * direction, so the address stands at the other end there; the transport checksum
 * in there stays: nobody checks it. */
static bool tn_ip_set(uint8_t *data, tn_ip_packet *p, bool src, const tailnet_addr *ip)
{
    tailnet_addr *field  = src ? &p->flow.src : &p->flow.dst;
    tailnet_addr *quoted = src ? &p->quoted.dst : &p->quoted.src;
    uint32_t      delta;

    TAILNET_ASSERT(data == p->data);
    if (p->family == 0 || ip->family != p->family || p->flow.protocol == TN_IP_UNKNOWN)
        return false;
    if (p->quoted.src.family != 0 && tn_ip_same(quoted, field)) {
        size_t head = (size_t)p->body + 8;
        delta = tn_ip_put_addr(data, head, !src, quoted, ip);
        if (p->family == 4) delta += tn_ip_fix(data, head + 10, delta);
        (void)tn_ip_fix(data, (size_t)p->body + 2, delta);
    }
    delta = tn_ip_put_addr(data, 0, src, field, ip);
    if (p->family == 4) (void)tn_ip_fix(data, 10, delta);
    tn_ip_fix_transport(data, p, delta);
    return true;
}

/* Masquerade of a packet that goes out, after the filter. data is p->data. */
static bool tn_ip_set_src(uint8_t *data, tn_ip_packet *p, const tailnet_addr *ip)
{
    return tn_ip_set(data, p, true, ip);
}

/* Masquerade of a packet that comes in, before the filter. data is p->data. */
static bool tn_ip_set_dst(uint8_t *data, tn_ip_packet *p, const tailnet_addr *ip)
{
    return tn_ip_set(data, p, false, ip);
}

/* Are the checksums of a whole packet right? Protocols without one pass. */
static TN_MAYBE_UNUSED bool tn_ip_sums_ok(const tn_ip_packet *p)
{
    unsigned len  = tn_ip_len(p->family), protocol = p->flow.protocol;
    size_t   body = p->len - p->body;
    uint32_t sum;

    if (p->family == 4 && tn_ip_fold(tn_ip_sum(0, p->data, p->body)) != 0xffffu) return false;
    if (p->fragmented) return true;
    if (protocol == TN_IP_UDP && tn_ip_get16(p->data, p->body + 6u) == 0)
        return p->family == 4;              /* none; IPv6 does not allow that     */
    sum = tn_ip_sum(0, p->data + p->body, body);
    if (!(p->family == 4 && protocol == TN_IP_ICMP4)) {
        if (protocol != TN_IP_TCP && protocol != TN_IP_UDP &&
            !(p->family == 6 && protocol == TN_IP_ICMP6))
            return true;
        sum += protocol + (uint32_t)body;
        sum = tn_ip_sum(sum, p->flow.src.ip, len);
        sum = tn_ip_sum(sum, p->flow.dst.ip, len);
    }
    return tn_ip_fold(sum) == 0xffffu;
}

/* ---- TSMP (net/packet/tsmp.go of the reference) ---- */

typedef enum tn_ip_tsmp_kind {
    TN_IP_TSMP_OTHER, TN_IP_TSMP_PING, TN_IP_TSMP_PONG, TN_IP_TSMP_REJECT, TN_IP_TSMP_DISCO
} tn_ip_tsmp_kind;

typedef struct tn_ip_tsmp {
    tn_ip_tsmp_kind kind;                   /* OTHER: drop it                     */
    const uint8_t  *data;                   /* 8 of ping and pong, 32 of disco    */
    tailnet_flow    rejected;               /* our flow that they refuse          */
    uint16_t        port;                   /* PeerAPI port in a pong, 0: none    */
    uint8_t         reason;                 /* TN_IP_REJECT_, or another letter   */
    bool            maybe_broken;           /* the refusal may not be final       */
} tn_ip_tsmp;

/* '!', protocol, reason, ports of the refused flow, and perhaps flags. The
 * addresses of the flow are those of the packet, turned around. */
static void tn_ip_reject_read(tn_ip_tsmp *out, tn_rd *r, const tn_ip_packet *p)
{
    out->rejected.src      = p->flow.dst;
    out->rejected.dst      = p->flow.src;
    out->rejected.protocol = tn_rd_u8(r);
    out->reason            = tn_rd_u8(r);
    out->rejected.src.port = tn_rd_u16be(r);
    out->rejected.dst.port = tn_rd_u16be(r);
    if (!tn_rd_ok(r)) return;
    out->kind         = TN_IP_TSMP_REJECT;
    out->maybe_broken = r->left != 0 && (tn_rd_u8(r) & 1u) != 0;
}

/* False: no TSMP packet. True with kind OTHER: one that is not understood. */
static bool tn_ip_tsmp_parse(tn_ip_tsmp *out, const tn_ip_packet *p)
{
    tn_rd    r;
    unsigned type;

    memset(out, 0, sizeof *out);
    if (p->flow.protocol != TN_IP_TSMP) return false;
    tn_rd_over(&r, p->data + p->body, p->len - p->body);
    type = tn_rd_u8(&r);
    if (type == '!') {
        tn_ip_reject_read(out, &r, p);
        return true;
    }
    out->data = tn_rd_bytes(&r, type == 'a' ? 32 : 8);
    if (out->data == NULL) return true;
    if (type == 'p') out->kind = TN_IP_TSMP_PING;
    if (type == 'o') out->kind = TN_IP_TSMP_PONG;
    if (type == 'a') out->kind = TN_IP_TSMP_DISCO;
    if (type == 'o' && r.left >= 2) out->port = tn_rd_u16be(&r);
    return true;
}

/* A head for len bytes of TSMP or UDP. number is the identification of IPv4 or
 * the flow label of IPv6. */
static void tn_ip_wr_head(tn_wr *w, const tailnet_addr *src, const tailnet_addr *dst,
                          unsigned protocol, uint32_t number, unsigned len)
{
    uint8_t  bytes[40];
    tn_wr    h;
    unsigned ip_len = tn_ip_len(src->family);

    TAILNET_ASSERT(src->family == dst->family && ip_len != 0);
    tn_wr_over(&h, bytes, sizeof bytes);
    if (src->family == 4) {
        tn_wr_u16be(&h, 0x4500u);
        tn_wr_u16be(&h, 20u + len);
        tn_wr_u16be(&h, (unsigned)(number & 0xffffu));
        tn_wr_u16be(&h, 0);
        tn_wr_u8(&h, TN_IP_TTL);
        tn_wr_u8(&h, protocol);
        tn_wr_u16be(&h, 0);
    } else {
        tn_wr_u32be(&h, (uint32_t)0x60000000ul | (number & (uint32_t)0xffffful));
        tn_wr_u16be(&h, len);
        tn_wr_u8(&h, protocol);
        tn_wr_u8(&h, TN_IP_TTL);
    }
    tn_wr_bytes(&h, src->ip, ip_len);
    tn_wr_bytes(&h, dst->ip, ip_len);
    if (src->family == 4)
        tn_ip_put16(bytes, 10, 0xffffu & ~(unsigned)tn_ip_fold(tn_ip_sum(0, bytes, 20)));
    tn_wr_bytes(w, bytes, tn_wr_len(&h));
}

/* Asks a peer through the tunnel; data comes back in the pong. */
static void tn_ip_wr_ping(tn_wr *w, const tailnet_addr *src, const tailnet_addr *dst,
                          const uint8_t data[8])
{
    tn_ip_wr_head(w, src, dst, TN_IP_TSMP, 0, 9);
    tn_wr_u8(w, 'p');
    tn_wr_bytes(w, data, 8);
}

/* The answer to a ping (t of p); port is that of our PeerAPI, 0 for none. The
 * number in the head is that of the ping, inverted, as the reference does. */
static void tn_ip_wr_pong(tn_wr *w, const tn_ip_packet *p, const tn_ip_tsmp *t, unsigned port)
{
    tn_rd    r;
    uint32_t label, id;

    tn_rd_over(&r, p->data, p->len);
    label = tn_rd_u32be(&r);
    id    = tn_rd_u16be(&r);
    tn_ip_wr_head(w, &p->flow.dst, &p->flow.src, TN_IP_TSMP, ~(p->family == 4 ? id : label), 11);
    tn_wr_u8(w, 'o');
    tn_wr_bytes(w, t->data, 8);
    tn_wr_u16be(w, port);
}

/* Tells the sender of p that the filter refused it, and why (TN_IP_REJECT_). */
static void tn_ip_wr_reject(tn_wr *w, const tn_ip_packet *p, uint8_t reason)
{
    tn_ip_wr_head(w, &p->flow.dst, &p->flow.src, TN_IP_TSMP, 0, 7);
    tn_wr_u8(w, '!');
    tn_wr_u8(w, p->flow.protocol);
    tn_wr_u8(w, reason);
    tn_wr_u16be(w, p->flow.src.port);
    tn_wr_u16be(w, p->flow.dst.port);
}

/* Tells a peer our disco key, first thing in a new session, so that it keeps
 * the session when our key is new. */
static TN_MAYBE_UNUSED void tn_ip_wr_disco(tn_wr *w, const tailnet_addr *src,
                                           const tailnet_addr *dst, const uint8_t disco_public[32])
{
    tn_ip_wr_head(w, src, dst, TN_IP_TSMP, 0, 33);
    tn_wr_u8(w, 'a');
    tn_wr_bytes(w, disco_public, 32);
}

/* The heads of a UDP packet of our own, ports as in the addresses, for a body
 * of len bytes that stands elsewhere, as a rule right behind. */
static TN_MAYBE_UNUSED void tn_ip_wr_udp_head(tn_wr *w, const tailnet_addr *src,
                                              const tailnet_addr *dst, const uint8_t *body,
                                              size_t len)
{
    uint8_t  bytes[8];
    tn_wr    h;
    unsigned ip_len = tn_ip_len(src->family), size = (unsigned)len + 8u, check;
    uint32_t sum    = TN_IP_UDP + (uint32_t)size;

    tn_wr_over(&h, bytes, sizeof bytes);
    tn_wr_u16be(&h, src->port);
    tn_wr_u16be(&h, dst->port);
    tn_wr_u16be(&h, size);
    tn_wr_u16be(&h, 0);
    sum   = tn_ip_sum(tn_ip_sum(sum, src->ip, ip_len), dst->ip, ip_len);
    sum   = tn_ip_sum(tn_ip_sum(sum, bytes, sizeof bytes), body, len);
    check = 0xffffu & ~(unsigned)tn_ip_fold(sum);
    tn_ip_put16(bytes, 6, check != 0 ? check : 0xffffu);    /* 0 means none (RFC 768) */
    tn_ip_wr_head(w, src, dst, TN_IP_UDP, 0, size);
    tn_wr_bytes(w, bytes, sizeof bytes);
}

/* ======================================================================== *
 * >>filter — who may talk to us. The control server compiles the policy into
 * rules for this node; the receiving node enforces them (wgengine/filter of the
 * reference). A packet from a peer passes when a rule lets it in, or when it
 * answers a flow that we began. Nothing else passes.
 *
 * Owns:    the rules in force, a shadow in which the next ones grow, the flows,
 *          the names of rule lists and of capabilities (as hashes).
 * Calls:   >>base. Reads a tn_ip_packet of >>ip, calls nothing there.
 * States:  closed -> begin -> open -> commit or abort -> closed. Only commit
 *          exchanges the shadow with the rules in force.
 * Always:  nothing is let in before the first commit. A rule that does not fit
 *          or cannot be read is left out, never widened: rules only let in, so
 *          that is safe. What a rule let in is asked again packet by packet, so
 *          a change of the rules bites at once, in flows that exist too.
 * Trust:   rules come from the control server, packets from peers whose source
 *          address the caller has bound to their key.
 *
 * Stricter than the reference, which remembers only UDP and SCTP:
 *   - TCP without SYN: in a connection that our SYN began, or with a rule for its
 *     port now (there: always). What a peer began under a rule ends with it.
 *   - ICMP echo reply: to a request of ours. ICMP error: about a flow of ours or
 *     one that a rule lets in. Both also from whom a rule lets ping.
 *   - Later fragments: from whom a rule lets ping, or where a flow of ours leads.
 *   - A capability lets ping only what its own rule names.
 *   - Who sends first owns a UDP flow: our answers to a peer, let in by a rule,
 *     do not make the flow ours. Flows end when idle and when their peer goes.
 * ======================================================================== */

#define TN_FLT_SETS    16u                  /* named lists; the first is "base"   */
#define TN_FLT_CAPS    32u                  /* bits of tn_flt_peer.caps           */
#define TN_FLT_NOWHERE 0xffu                /* rules of a list that does not count */
#define TN_FLT_LOST    0xfeu                /* rules of a list there is no room for */

typedef enum tn_flt_verdict {
    TN_FLT_DROP, TN_FLT_ACCEPT, TN_FLT_REJECT /* drop, and tell the sender (TSMP)   */
} tn_flt_verdict;

typedef enum tn_flt_why {
    TN_FLT_WHY_OK, TN_FLT_WHY_FLOW,         /* a rule, or an answer to us         */
    TN_FLT_WHY_SHORT, TN_FLT_WHY_UNKNOWN, TN_FLT_WHY_MULTICAST, TN_FLT_WHY_LINK_LOCAL,
    TN_FLT_WHY_NOT_LOCAL, TN_FLT_WHY_NO_RULE, TN_FLT_WHY_SHIELDS, TN_FLT_WHY_COUNT
} tn_flt_why;

/* Answers of tn_flt_commit. */
enum {
    TN_FLT_CHANGED = 1, TN_FLT_FULL = 2, TN_FLT_TEXT = 4, TN_FLT_VOID = 8, TN_FLT_NEW_CAP = 16
};

/* What a range says. A rule needs all of TN_FLT_ALL; 4 only tells CAP from SRC. */
enum { TN_FLT_SRC = 1, TN_FLT_DST = 2, TN_FLT_CAP = 4 | TN_FLT_SRC, TN_FLT_PROTO = 8 };
#define TN_FLT_ALL 11u

/* A rule is a run of these in any order; head marks the first of a run. */
typedef struct tn_flt_range {
    uint8_t  at[32];                        /* SRC, DST: first and last address,  */
    uint16_t port_first, port_last;         /*   16 bytes each. CAP: bits. PROTO: */
    uint8_t  kind;                          /*   a bit per protocol number        */
    uint8_t  family;                        /* of SRC, DST; 0: both               */
    uint8_t  set;
    uint8_t  head;
} tn_flt_range;

TN_STATIC_ASSERT(flt_range, sizeof(tn_flt_range) == 40);

typedef struct tn_flt_table {
    tn_flt_range *range;
    uint16_t      used;
    uint16_t      bad;                      /* lists, by bit, that void all rules */
} tn_flt_table;

enum {
    TN_FLT_IP6 = 1, TN_FLT_THEIRS = 2, TN_FLT_OPEN = 4, TN_FLT_CLOSING = 8,
    TN_FLT_FREED = 16                       /* free, and was not always           */
};

/* A flow, as its inbound packets look. The table is in order of use; an entry of
 * protocol 0 is free. Without padding up to bits: compared as bytes. */
typedef struct tn_flt_flow {
    uint8_t  remote[16], local[16];
    uint16_t remote_port, local_port;
    uint8_t  protocol;
    uint8_t  bits;
    uint16_t who;                           /* peer that our last packet went to  */
    uint32_t used;                          /* when, in ticks                     */
} tn_flt_flow;

enum { TN_FLT_ENDS = 32, TN_FLT_KEY = 37 }; /* the addresses; with ports and protocol */

TN_STATIC_ASSERT(flt_flow, sizeof(tn_flt_flow) == 44);

/* The peer a packet comes from or goes to, as the map knows it. Capabilities
 * belong to its own addresses: for a packet from a network behind it, give 0. */
typedef struct tn_flt_peer {
    uint32_t caps;                          /* bits of tn_flt_cap                 */
    uint16_t index;
    bool     jailed;                        /* may answer, not begin              */
} tn_flt_peer;

/* Small and much used first: short offsets make short code. */
typedef struct tn_flt {
    bool                  open, star, rule_lost, new_cap, shields, distrusted;
    uint8_t               set;              /* list the open rule belongs to      */
    uint8_t               cap_count;
    uint16_t              range_max, flow_max;
    uint16_t              rules_dropped, texts_skipped;     /* of the last message */
    uint16_t              rule_at;          /* where the complete rules end       */
    uint16_t              named;            /* lists this message names, by bit   */
    tn_flt_table          now, next;        /* rules in force, shadow             */
    tn_flt_flow          *flow;
    const tailnet_prefix *route;            /* advertised; the caller's           */
    size_t                route_count;
    tailnet_addr          self[2];
    uint64_t              set_name[TN_FLT_SETS], cap_name[TN_FLT_CAPS];
} tn_flt;

/* Everything at its beginning: default deny, no flows, no names. ranges holds
 * twice range_max. Also when the node goes down and forgets its peers. */
static void tn_flt_init(tn_flt *f, tn_flt_range *ranges, uint16_t range_max, tn_flt_flow *flows,
                        uint16_t flow_max)
{
    memset(f, 0, sizeof *f);
    f->now.range  = ranges;
    f->next.range = ranges + range_max;
    f->range_max  = range_max;
    f->flow       = flows;
    f->flow_max   = flow_max;
    f->set        = TN_FLT_NOWHERE;
    if (flow_max != 0) memset(flows, 0, flow_max * sizeof *flows);
}

/* ---- what is ours ---- */

/* Own addresses (either may be NULL) and advertised routes. The routes are not
 * copied: call again whenever they change. */
static void tn_flt_local(tn_flt *f, const tailnet_addr *self4, const tailnet_addr *self6,
                         const tailnet_prefix *routes, size_t route_count)
{
    memset(f->self, 0, sizeof f->self);
    if (self4 != NULL) f->self[0] = *self4;
    if (self6 != NULL) f->self[1] = *self6;
    f->route       = routes;
    f->route_count = route_count;
}

/* May packets for this address come to us at all? An exit node gives the Internet,
 * not its own network, the tailnet (ipn/ipnlocal/local.go), or the machine itself. */
static bool tn_flt_is_local(const tn_flt *f, const tailnet_addr *ip)
{
    size_t i;
    if (ip->family == 0) return false;
    if (tn_ip_same(&f->self[0], ip) || tn_ip_same(&f->self[1], ip)) return true;
    for (i = 0; i < f->route_count; i++)
        if (tn_prefix_has(&f->route[i], ip) &&
            (f->route[i].bits != 0 || tn_addr_kind_of(ip) < TN_ADDR_NOBODY))
            return true;
    return false;
}

/* Shields up: every peer is treated as if jailed. */
static void tn_flt_shields(tn_flt *f, bool up) { f->shields = up; }

/* ---- rules, as they are asked ---- */

/* What a rule has to have for a packet; the reference's three functions. */
typedef enum tn_flt_mode {
    TN_FLT_PORT,                            /* protocol, addresses, port          */
    TN_FLT_PING,                            /* addresses: who may do anything may ping */
    TN_FLT_WHOLE                            /* protocol, addresses, all ports open */
} tn_flt_mode;

static bool tn_flt_within(const tn_flt_range *r, const tailnet_addr *ip)
{
    unsigned len = tn_ip_len(ip->family);
    if (r->family == 0) return true;
    return r->family == ip->family && memcmp(r->at, ip->ip, len) <= 0 &&
           memcmp(ip->ip, r->at + 16, len) <= 0;
}

/* Has the range what it says, for a packet of this flow? */
static bool tn_flt_hit(const tn_flt_range *r, const tailnet_flow *flow, uint32_t caps,
                       tn_flt_mode mode)
{
    unsigned port = flow->dst.port;
    if (r->kind == TN_FLT_SRC) return tn_flt_within(r, &flow->src);
    if (r->kind == TN_FLT_CAP) return mode != TN_FLT_WHOLE && (tn_get_u32be(r->at) & caps) != 0;
    if (mode == TN_FLT_PING) return r->kind == TN_FLT_PROTO || tn_flt_within(r, &flow->dst);
    if (r->kind == TN_FLT_PROTO) return (r->at[flow->protocol / 8] >> flow->protocol % 8 & 1) != 0;
    if (mode == TN_FLT_WHOLE && (r->port_first != 0 || r->port_last != 65535u)) return false;
    return r->port_first <= port && port <= r->port_last && tn_flt_within(r, &flow->dst);
}

/* Does a rule let this flow begin? caps are those of the peer it comes from. A rule
 * that lists no protocol means TCP, UDP and both ICMPs. */
static bool tn_flt_match(const tn_flt *f, const tailnet_flow *flow, uint32_t caps,
                         tn_flt_mode mode)
{
    unsigned protocol = flow->protocol, i, have = 0, at_first = 0;

    if (f->now.bad != 0 || f->distrusted) return false;
    if (mode == TN_FLT_PING || protocol == TN_IP_TCP || protocol == TN_IP_UDP ||
        protocol == TN_IP_ICMP4 || protocol == TN_IP_ICMP6)
        at_first = TN_FLT_PROTO;
    for (i = 0; i < f->now.used; i++) {
        const tn_flt_range *r = &f->now.range[i];
        if (r->head != 0) {
            if (have == TN_FLT_ALL) return true;
            have = at_first;
        }
        if (r->kind == TN_FLT_PROTO) have &= ~(unsigned)TN_FLT_PROTO;
        if (tn_flt_hit(r, flow, caps, mode)) have |= r->kind & TN_FLT_ALL;
    }
    return have == TN_FLT_ALL;
}

/* The same with the right mode for its protocol, and for peers that may not. */
static bool tn_flt_lets(const tn_flt *f, const tailnet_flow *flow, const tn_flt_peer *from)
{
    unsigned    protocol = flow->protocol;
    tn_flt_mode mode     = TN_FLT_WHOLE;

    if (f->shields || from->jailed) return false;
    if (tn_has_ports(protocol)) mode = TN_FLT_PORT;
    if (protocol == TN_IP_FRAGMENT ||
        protocol == (flow->src.family == 4 ? TN_IP_ICMP4 : TN_IP_ICMP6))
        mode = TN_FLT_PING;
    return tn_flt_match(f, flow, from->caps, mode);
}

/* Would the rules let this flow begin? NO_ROUTE: dst is not ours. */
static tailnet_result tn_flt_check(const tn_flt *f, const tailnet_flow *flow,
                                   const tn_flt_peer *from)
{
    if (flow->src.family != flow->dst.family || tn_ip_len(flow->src.family) == 0 ||
        flow->protocol == TN_IP_UNKNOWN || flow->protocol == TN_IP_FRAGMENT)
        return TAILNET_ERR_ARGUMENT;
    if (!tn_flt_is_local(f, &flow->dst)) return TAILNET_ERR_NO_ROUTE;
    return tn_flt_lets(f, flow, from) ? TAILNET_OK : TAILNET_ERR_DENIED;
}

/* ---- flows ---- */

/* Ticks of 1,024 ms that a flow lives without a packet: RFC 4787 (UDP: 5 min), RFC
 * 5382 (TCP that opens or closes: 4 min), RFC 5508 (echo: 1 min). TCP that stands
 * may be silent for five days, as in Linux; for half an hour nothing pushes it out. */
#define TN_FLT_LIFE_UDP  293u
#define TN_FLT_LIFE_EDGE 234u
#define TN_FLT_LIFE_ECHO 59u
#define TN_FLT_LIFE_TCP  421875ul
#define TN_FLT_TCP_BONUS 1758u

static uint32_t tn_flt_tick(uint64_t now_ms) { return (uint32_t)(now_ms >> 10); }

static bool tn_flt_stands(const tn_flt_flow *e)
{
    return (e->bits & (TN_FLT_OPEN | TN_FLT_CLOSING)) == TN_FLT_OPEN;
}

static bool tn_flt_lives(const tn_flt_flow *e, uint32_t tick)
{
    uint32_t life = TN_FLT_LIFE_UDP;
    if (e->protocol == 0) return false;
    if (e->protocol == TN_IP_ICMP4 || e->protocol == TN_IP_ICMP6) life = TN_FLT_LIFE_ECHO;
    if (e->protocol == TN_IP_TCP) life = tn_flt_stands(e) ? TN_FLT_LIFE_TCP : TN_FLT_LIFE_EDGE;
    return tick - e->used < life;
}

/* The key of a flow whose inbound packets look like this. */
static void tn_flt_key(tn_flt_flow *key, const tailnet_flow *in)
{
    memset(key, 0, sizeof *key);
    memcpy(key->remote, in->src.ip, 16);
    memcpy(key->local, in->dst.ip, 16);
    key->remote_port = in->src.port;
    key->local_port  = in->dst.port;
    key->protocol    = in->protocol;
    key->bits        = in->src.family == 6 ? TN_FLT_IP6 : 0;
}

/* The way back. */
static TN_NOINLINE void tn_flt_turn(tailnet_flow *back, const tailnet_flow *flow)
{
    back->src      = flow->dst;
    back->dst      = flow->src;
    back->protocol = flow->protocol;
}

/* Is it alive, and the same in the first len bytes and the family? */
static bool tn_flt_same(const tn_flt_flow *e, const tn_flt_flow *key, size_t len, uint32_t tick)
{
    return ((e->bits ^ key->bits) & TN_FLT_IP6) == 0 && memcmp(e, key, len) == 0 &&
           tn_flt_lives(e, tick);
}

/* The live flow of this key, now the first of the table; NULL if there is none. */
static tn_flt_flow *tn_flt_find(tn_flt *f, const tn_flt_flow *key, uint32_t tick)
{
    tn_flt_flow found;
    unsigned    i;

    for (i = 0; i < f->flow_max; i++) {
        if (f->flow[i].protocol == 0 && f->flow[i].bits == 0) break;    /* the rest is new */
        if (!tn_flt_same(&f->flow[i], key, TN_FLT_KEY, tick)) continue;
        found = f->flow[i];
        memmove(f->flow + 1, f->flow, i * sizeof *f->flow);
        f->flow[0] = found;
        return f->flow;
    }
    return NULL;
}

/* How soon the place of a flow is taken: the highest goes. */
static uint32_t tn_flt_age(const tn_flt_flow *e, uint32_t tick)
{
    if (!tn_flt_lives(e, tick)) return UINT32_MAX;
    return tick - e->used + (tn_flt_stands(e) ? 0u : TN_FLT_TCP_BONUS);
}

/* Puts a new flow first, in the place of the one not used for longest; a standing
 * TCP connection outlives a shower of DNS questions. Flows that peers began push
 * out only each other, and hold at most half of the table: no peer can end a flow
 * of ours. */
static void tn_flt_add(tn_flt *f, const tn_flt_flow *flow, uint32_t tick)
{
    unsigned i, theirs = 0, any = 0, theirs_at = f->flow_max, at;
    uint32_t oldest = 0;

    if (f->flow_max == 0) return;
    for (i = 0; i < f->flow_max; i++) {
        uint32_t age = tn_flt_age(&f->flow[i], tick);
        if (age >= oldest) {
            oldest = age;
            any    = i;
        }
        if (age == UINT32_MAX || (f->flow[i].bits & TN_FLT_THEIRS) == 0) continue;
        theirs++;
        theirs_at = i;                      /* in order of use: the last is oldest */
    }
    at = any;
    if ((flow->bits & TN_FLT_THEIRS) != 0) {
        if (theirs >= (f->flow_max + 1u) / 2 || oldest != UINT32_MAX) at = theirs_at;
        if (at == f->flow_max) return;
    }
    memmove(f->flow + 1, f->flow, at * sizeof *f->flow);
    f->flow[0]      = *flow;
    f->flow[0].used = tick;
}

/* Notes what TCP flags say about a connection, and that it was used. */
static void tn_flt_touch(tn_flt_flow *e, unsigned tcp_flags, uint32_t tick)
{
    if ((tcp_flags & (TN_IP_FIN | TN_IP_RST)) != 0) e->bits |= TN_FLT_CLOSING;
    e->used = tick;
}

/* The flow of ours that leads to this peer and that such a packet answers, or NULL. */
static tn_flt_flow *tn_flt_ours(tn_flt *f, const tailnet_flow *in, const tn_flt_peer *from,
                                uint32_t tick)
{
    tn_flt_flow  key;
    tn_flt_flow *e;
    tn_flt_key(&key, in);
    e = tn_flt_find(f, &key, tick);
    return e != NULL && (e->bits & TN_FLT_THEIRS) == 0 && e->who == from->index ? e : NULL;
}

/* Do we have any flow between these two addresses? For fragments without ports. */
static bool tn_flt_any_flow(const tn_flt *f, const tailnet_flow *flow, const tn_flt_peer *from,
                            uint32_t tick)
{
    tn_flt_flow key;
    unsigned    i;
    tn_flt_key(&key, flow);
    for (i = 0; i < f->flow_max; i++) {
        const tn_flt_flow *e = &f->flow[i];
        if ((e->bits & TN_FLT_THEIRS) == 0 && e->who == from->index &&
            tn_flt_same(e, &key, TN_FLT_ENDS, tick))
            return true;
    }
    return false;
}

/* A rule let a packet of UDP or SCTP in. If it is the first of its flow, the
 * peer began it: remembered, so that our answers never make the flow ours. */
static void tn_flt_note_in(tn_flt *f, const tn_ip_packet *p, const tn_flt_peer *from,
                           uint32_t tick)
{
    tn_flt_flow  key;
    tn_flt_flow *e;
    tn_flt_key(&key, &p->flow);
    e = tn_flt_find(f, &key, tick);
    if (e != NULL) {
        if ((e->bits & TN_FLT_THEIRS) != 0) tn_flt_touch(e, 0, tick);
        return;
    }
    key.who   = from->index;
    key.bits |= TN_FLT_THEIRS;
    tn_flt_add(f, &key, tick);
}

/* A packet of ours goes to a peer: begins a flow, or keeps it. TCP begins with
 * SYN alone, an echo with a request. */
static void tn_flt_note_out(tn_flt *f, const tn_ip_packet *p, const tn_flt_peer *to, uint32_t tick)
{
    unsigned     protocol = p->flow.protocol;
    bool         syn      = (p->tcp_flags & (TN_IP_SYN | TN_IP_ACK)) == TN_IP_SYN;
    tailnet_flow back;
    tn_flt_flow  key;
    tn_flt_flow *e;

    if (!tn_has_ports(protocol) && p->icmp != TN_IP_ECHO_REQUEST) return;
    tn_flt_turn(&back, &p->flow);
    tn_flt_key(&key, &back);
    e = tn_flt_find(f, &key, tick);
    if (e != NULL) {
        e->who = to->index;                 /* another router may lead there now  */
        if (syn) e->bits &= TN_FLT_IP6;     /* the ports are used anew            */
        tn_flt_touch(e, p->tcp_flags, tick);
    } else if (protocol != TN_IP_TCP || syn) {
        key.who = to->index;
        tn_flt_add(f, &key, tick);
    }
}

/* A peer is going, or its place in the map gets another: its flows end. */
static void tn_flt_forget(tn_flt *f, uint16_t peer_index)
{
    unsigned i;
    for (i = 0; i < f->flow_max; i++) {
        if (f->flow[i].protocol == 0 || f->flow[i].who != peer_index) continue;
        f->flow[i].protocol = 0;
        f->flow[i].bits     = TN_FLT_FREED;
    }
}

/* ---- packets ---- */

/* What stops a packet in both directions; WHY_OK: nothing does. */
static tn_flt_why tn_flt_first_look(const tn_ip_packet *p)
{
    const uint8_t *to = p->flow.dst.ip;
    if (p->len < 20) return TN_FLT_WHY_SHORT;
    if (p->flow.protocol == TN_IP_UNKNOWN) return TN_FLT_WHY_UNKNOWN;
    if (p->family == 4) {
        if (to[0] >> 4 == 14) return TN_FLT_WHY_MULTICAST;
        if (to[0] == 169 && to[1] == 254 && !(to[2] == 169 && to[3] == 254))
            return TN_FLT_WHY_LINK_LOCAL;   /* 169.254.169.254: cloud metadata    */
        return TN_FLT_WHY_OK;
    }
    if (to[0] == 0xff) return TN_FLT_WHY_MULTICAST;
    return to[0] == 0xfe && to[1] >> 6 == 2 ? TN_FLT_WHY_LINK_LOCAL : TN_FLT_WHY_OK;
}

/* Is this ICMP error about a packet of ours in a flow of ours, or in one that a
 * rule lets somebody begin? */
static bool tn_flt_error_is_ours(tn_flt *f, const tn_ip_packet *p, const tn_flt_peer *from,
                                 uint32_t tick)
{
    tailnet_flow back;

    if (p->quoted.src.family == 0 || !tn_ip_same(&p->quoted.src, &p->flow.dst)) return false;
    tn_flt_turn(&back, &p->quoted);         /* whose capabilities let it ping anyway */
    return tn_flt_ours(f, &back, from, tick) != NULL || tn_flt_lets(f, &back, from);
}

/* Does this packet answer a flow that we began? Keeps the flow if it is TCP:
 * the others stay only as long as we send. */
static bool tn_flt_answers(tn_flt *f, const tn_ip_packet *p, const tn_flt_peer *from,
                           uint32_t tick)
{
    unsigned     protocol = p->flow.protocol;
    tn_flt_flow *e;

    if (protocol == TN_IP_FRAGMENT) return tn_flt_any_flow(f, &p->flow, from, tick);
    if (p->icmp == TN_IP_ICMP_ERROR) return tn_flt_error_is_ours(f, p, from, tick);
    if (!tn_has_ports(protocol) && p->icmp != TN_IP_ECHO_REPLY) return false;
    if (protocol == TN_IP_TCP && (p->tcp_flags & (TN_IP_SYN | TN_IP_ACK)) == TN_IP_SYN)
        return false;
    e = tn_flt_ours(f, &p->flow, from, tick);
    if (e == NULL) return false;
    if (protocol == TN_IP_TCP) {
        e->bits |= TN_FLT_OPEN;
        tn_flt_touch(e, p->tcp_flags, tick);
    }
    return true;
}

/* A packet from a peer, after masquerade and TSMP: may it come in? why is for
 * the counters, and tells which word a REJECT carries (SHIELDS or NO_RULE). */
static tn_flt_verdict tn_flt_in(tn_flt *f, const tn_ip_packet *p, const tn_flt_peer *from,
                                uint64_t now_ms, tn_flt_why *why)
{
    uint32_t tick     = tn_flt_tick(now_ms);
    unsigned protocol = p->flow.protocol;

    *why = TN_FLT_WHY_OK;
    if (p->len == 0) return TN_FLT_ACCEPT;  /* keep-alive: nothing to deliver     */
    *why = tn_flt_first_look(p);
    if (*why != TN_FLT_WHY_OK) return TN_FLT_DROP;
    if (!tn_flt_is_local(f, &p->flow.dst)) {
        *why = TN_FLT_WHY_NOT_LOCAL;
        return TN_FLT_DROP;
    }
    if (protocol == TN_IP_TSMP) return TN_FLT_ACCEPT;
    if (tn_flt_answers(f, p, from, tick)) {
        *why = TN_FLT_WHY_FLOW;
        return TN_FLT_ACCEPT;
    }
    if (tn_flt_lets(f, &p->flow, from)) {
        if (protocol == TN_IP_UDP || protocol == TN_IP_SCTP) tn_flt_note_in(f, p, from, tick);
        return TN_FLT_ACCEPT;
    }
    *why = f->shields || from->jailed ? TN_FLT_WHY_SHIELDS : TN_FLT_WHY_NO_RULE;
    if (p->family == 4 && (p->tcp_flags & TN_IP_SYN) != 0) return TN_FLT_REJECT;
    return TN_FLT_DROP;
}

/* A packet of the application to a peer, before masquerade: may it go, and remember
 * that it did. Rules do not restrict what we send; TSMP is not the application's. */
static tn_flt_verdict tn_flt_out(tn_flt *f, const tn_ip_packet *p, const tn_flt_peer *to,
                                 uint64_t now_ms, tn_flt_why *why)
{
    *why = tn_flt_first_look(p);
    if (p->flow.protocol == TN_IP_TSMP) *why = TN_FLT_WHY_UNKNOWN;
    if (*why != TN_FLT_WHY_OK) return TN_FLT_DROP;
    tn_flt_note_out(f, p, to, tn_flt_tick(now_ms));
    return TN_FLT_ACCEPT;
}

/* ---- names ---- */

/* Names are kept as 64 bits (FNV-1a). They all come from the control server,
 * which has nothing to win by a collision. */
static TN_NOINLINE uint64_t tn_flt_hash(const char *name, size_t len)
{
    uint64_t h = 14695981039346656037ull;
    size_t   i;
    for (i = 0; i < len; i++) h = (h ^ (unsigned char)name[i]) * 1099511628211ull;
    return h;
}

/* The bit of a node capability, a key of a peer's CapMap; 0: no rule names it. */
static TN_NOINLINE uint32_t tn_flt_cap(const tn_flt *f, const char *name, size_t len)
{
    uint64_t h = tn_flt_hash(name, len);
    unsigned i;
    for (i = 0; i < f->cap_count; i++)
        if (f->cap_name[i] == h) return (uint32_t)1 << i;
    return 0;
}

/* The same for a name in a rule, which gets a bit if there is one left. Bits are
 * never used again for another name: peers carry them. */
static uint32_t tn_flt_cap_make(tn_flt *f, const char *name, size_t len)
{
    uint32_t bit = tn_flt_cap(f, name, len);
    if (bit != 0 || f->cap_count == TN_FLT_CAPS) return bit;
    f->new_cap = true;
    f->cap_name[f->cap_count] = tn_flt_hash(name, len);
    return (uint32_t)1 << f->cap_count++;
}

/* Does a source rule name this address, alone or with its neighbours (ranges of
 * up to 256)? Such a peer is worth keeping when the directory is small. */
static bool tn_flt_names(const tn_flt *f, const tailnet_addr *ip)
{
    unsigned len = tn_ip_len(ip->family), i;
    for (i = 0; i < f->now.used && len != 0; i++) {
        const tn_flt_range *r = &f->now.range[i];
        if (r->kind == TN_FLT_SRC && r->family == ip->family && tn_flt_within(r, ip) &&
            memcmp(r->at, r->at + 16, len - 1) == 0)
            return true;
    }
    return false;
}

/* Does a source rule have an address of this prefix? For peers that no rule may let
 * in, see tn_flt_distrust. */
static bool tn_flt_overlaps(const tn_flt *f, unsigned family, const uint8_t *ip, unsigned bits)
{
    unsigned len = tn_ip_len(family), i;
    for (i = 0; i < f->now.used; i++) {
        const tn_flt_range *r = &f->now.range[i];
        if (r->kind != TN_FLT_SRC) continue;
        if (r->family == 0) return true;
        if (r->family == family && memcmp(r->at + 16, ip, len) >= 0 &&
            (memcmp(r->at, ip, len) <= 0 || tn_bits_same(r->at, ip, bits))) return true;
    }
    return false;
}

/* The rules in force let in somebody that no honest server's would: none of them
 * counts, until this is taken back. */
static void tn_flt_distrust(tn_flt *f, bool on) { f->distrusted = on; }

/* ---- rules, as they come ---- */

static uint16_t tn_flt_bit(unsigned set) { return (uint16_t)(1u << set); }

/* Takes the rules of one list, or of all that the mask has, out of the shadow. */
static void tn_flt_remove(tn_flt *f, uint16_t sets)
{
    unsigned i, kept = 0;
    for (i = 0; i < f->rule_at; i++)
        if ((sets & tn_flt_bit(f->next.range[i].set)) == 0)
            f->next.range[kept++] = f->next.range[i];
    f->next.used = f->rule_at = (uint16_t)kept;
    f->next.bad &= (uint16_t)~(unsigned)sets;
}

/* Lists that have rules, in force or in the shadow, or that this message names. */
static uint16_t tn_flt_busy(const tn_flt *f)
{
    unsigned i, busy = 1u | f->named | f->now.bad | f->next.bad;
    for (i = 0; i < f->now.used; i++) busy |= tn_flt_bit(f->now.range[i].set);
    for (i = 0; i < f->next.used; i++) busy |= tn_flt_bit(f->next.range[i].set);
    return (uint16_t)busy;
}

/* The number of a list; LOST when it has none (and make is false, or all are in
 * use). "base" is always 0. */
static uint8_t tn_flt_set_find(tn_flt *f, const char *name, size_t len, bool make)
{
    uint64_t h    = tn_flt_hash(name, len);
    uint16_t busy = tn_flt_busy(f);
    unsigned i, spare = TN_FLT_LOST;

    if (tn_is(name, len, "base")) return 0;
    for (i = TN_FLT_SETS; --i != 0;) {
        if ((busy & tn_flt_bit(i)) == 0) spare = i;
        else if (f->set_name[i] == h) return (uint8_t)i;
    }
    if (!make || spare == TN_FLT_LOST) return TN_FLT_LOST;
    f->set_name[spare] = h;
    return (uint8_t)spare;
}

/* A message with filter members begins, in which lists that are not named stay
 * as they are. fresh: the first of a stream, the lists of the last are void. */
static void tn_flt_begin(tn_flt *f, bool fresh)
{
    f->next.used = fresh ? (uint16_t)0 : f->now.used;
    f->next.bad  = fresh ? (uint16_t)0 : f->now.bad;
    if (f->next.used != 0)
        memcpy(f->next.range, f->now.range, f->next.used * sizeof *f->next.range);
    f->rule_at       = f->next.used;
    f->rules_dropped = 0;
    f->texts_skipped = 0;
    f->named         = 0;
    f->set           = TN_FLT_NOWHERE;
    f->star          = false;
    f->new_cap       = false;
    f->open          = true;
}

static bool tn_flt_is_open(const tn_flt *f) { return f->open; }

/* The array of PacketFilter begins: the list "base", unless PacketFilters, which
 * counts as later wherever it stands, has named or cleared it. */
static void tn_flt_base(tn_flt *f)
{
    f->set = TN_FLT_NOWHERE;
    if (!f->open || f->star || (f->named & 1u) != 0) return;
    f->set = 0;
    tn_flt_remove(f, 1);
}

/* The list of a name, which is empty from here on and which this message names. */
static uint8_t tn_flt_set_clear(tn_flt *f, const char *name, size_t len, bool make)
{
    uint8_t set = tn_flt_set_find(f, name, len, make);
    if (set == TN_FLT_LOST) return set;
    f->named |= tn_flt_bit(set);
    tn_flt_remove(f, tn_flt_bit(set));
    return set;
}

/* A named array of PacketFilters begins. An array named "*" means nothing. */
static void tn_flt_set(tn_flt *f, const char *name, size_t len)
{
    f->set = TN_FLT_NOWHERE;
    if (!f->open || tn_is(name, len, "*")) return;
    f->set = tn_flt_set_clear(f, name, len, true);
}

/* A name with null in PacketFilters: the list goes; with "*" all go that this
 * message does not name itself. */
static void tn_flt_set_drop(tn_flt *f, const char *name, size_t len)
{
    f->set = TN_FLT_NOWHERE;
    if (!f->open) return;
    if (tn_is(name, len, "*")) {
        f->star = true;
        tn_flt_remove(f, (uint16_t)~(unsigned)f->named);
    } else {
        (void)tn_flt_set_clear(f, name, len, false);
    }
}

/* What a rule without an end has left behind is forgotten. */
static void tn_flt_rule_begin(tn_flt *f)
{
    f->next.used = f->rule_at;
    f->rule_lost = false;
}

/* Adds a range to the open rule; without room the rule is lost. */
static tn_flt_range *tn_flt_push(tn_flt *f, unsigned kind)
{
    tn_flt_range *r;
    if (!f->open || f->set >= TN_FLT_SETS || f->rule_lost) return NULL;
    if (f->next.used == f->range_max) {
        f->rule_lost = true;
        return NULL;
    }
    r = &f->next.range[f->next.used++];
    memset(r, 0, sizeof *r);
    r->kind = (uint8_t)kind;
    r->set  = f->set;
    return r;
}

/* The one range of that kind in the open rule. */
static tn_flt_range *tn_flt_only(tn_flt *f, unsigned kind)
{
    unsigned i;
    for (i = f->rule_at; i < f->next.used; i++)
        if (f->next.range[i].kind == kind) return &f->next.range[i];
    return tn_flt_push(f, kind);
}

/* "*", an address, "first-last", or CIDR, whose host bits must be zero. Into r->at and
 * family; false leaves them undefined. */
static bool tn_flt_text(tn_flt_range *r, const char *text, size_t len)
{
    size_t       at   = 0;
    unsigned     bits = 128;
    tailnet_addr ip;

    if (tn_is(text, len, "*")) return true;
    while (at < len && text[at] != '-') at++;
    if (!(at < len ? tn_ip_parse(&ip, text, at) : tn_cidr_parse(&ip, &bits, text, len)))
        return false;
    r->family = ip.family;
    memcpy(r->at, ip.ip, 16);
    if (at < len && !tn_ip_parse(&ip, text + at + 1, len - at - 1)) return false;
    for (; bits < 8 * tn_ip_len(ip.family); bits++) {
        ip.ip[bits / 8] = (uint8_t)(ip.ip[bits / 8] | 0x80u >> bits % 8);
    }
    memcpy(r->at + 16, ip.ip, 16);
    return ip.family == r->family && memcmp(r->at, r->at + 16, 16) <= 0;
}

/* Is b not higher than the address after a? */
static bool tn_flt_reaches(const uint8_t *a, const uint8_t *b, unsigned len)
{
    uint8_t  after[16];
    unsigned i = len;
    memcpy(after, a, len);
    while (i != 0 && ++after[--i] == 0) {}
    return memcmp(a, b, len) >= 0 || memcmp(after, b, len) >= 0;
}

/* Adds a range of addresses, or widens one of the rule that it overlaps or
 * touches: nodes are numbered in a row, and policies list them one by one. */
static void tn_flt_put(tn_flt *f, const tn_flt_range *neu)
{
    unsigned      len = tn_ip_len(neu->family), i;
    tn_flt_range *r;

    for (i = f->rule_at; i < f->next.used && f->set < TN_FLT_SETS; i++) {
        r = &f->next.range[i];
        if (r->kind != neu->kind || r->family != neu->family ||
            r->port_first != neu->port_first || r->port_last != neu->port_last)
            continue;
        if (!tn_flt_reaches(r->at + 16, neu->at, len) || !tn_flt_reaches(neu->at + 16, r->at, len))
            continue;
        if (memcmp(neu->at, r->at, len) < 0) memcpy(r->at, neu->at, len);
        if (memcmp(neu->at + 16, r->at + 16, len) > 0) memcpy(r->at + 16, neu->at + 16, len);
        return;
    }
    r = tn_flt_push(f, neu->kind);
    if (r == NULL) return;
    *r     = *neu;
    r->set = f->set;
}

static void tn_flt_skip_text(tn_flt *f)
{
    if (f->texts_skipped != 65535u) f->texts_skipped++;
}

/* An address text of the open rule. One that means nothing is skipped: the rule gets
 * narrower. */
static void tn_flt_add_text(tn_flt *f, unsigned kind, const char *text, size_t len,
                            uint16_t first, uint16_t last)
{
    tn_flt_range r;
    memset(&r, 0, sizeof r);
    r.kind       = (uint8_t)kind;
    r.port_first = first;
    r.port_last  = last;
    if (f->set >= TN_FLT_SETS) return;
    if (tn_flt_text(&r, text, len)) tn_flt_put(f, &r);
    else tn_flt_skip_text(f);
}

/* One of SrcIPs, which may be a capability. */
static void tn_flt_src(tn_flt *f, const char *text, size_t len)
{
    tn_flt_range *caps;
    uint32_t      bit;

    if (!tn_begins(text, len, "cap:")) {
        tn_flt_add_text(f, TN_FLT_SRC, text, len, 0, 0);
        return;
    }
    if (f->set >= TN_FLT_SETS || len == 4) return;
    bit = tn_flt_cap_make(f, text + 4, len - 4);
    if (bit == 0) tn_flt_skip_text(f);
    caps = bit == 0 ? NULL : tn_flt_only(f, TN_FLT_CAP);
    if (caps != NULL) tn_put_u32be(caps->at, tn_get_u32be(caps->at) | bit);
}

/* One of DstPorts. Capabilities count as texts that mean nothing. */
static void tn_flt_dst(tn_flt *f, const char *text, size_t len, uint16_t first, uint16_t last)
{
    tn_flt_add_text(f, TN_FLT_DST, text, len, first, last);
}

/* One of IPProto. Numbers that are none still replace the default list. */
static void tn_flt_proto(tn_flt *f, int64_t number)
{
    tn_flt_range *r = tn_flt_only(f, TN_FLT_PROTO);
    if (r == NULL || number < 0 || number > 255) return;
    r->at[number / 8] = (uint8_t)(r->at[number / 8] | 1u << number % 8);
}

/* The open rule uses SrcBits or Bits, gone since capability version 80 or so: the
 * reference then has no rules at all, and so do we while this list stands. */
static void tn_flt_rule_bad(tn_flt *f)
{
    if (f->open && f->set < TN_FLT_SETS) f->next.bad |= tn_flt_bit(f->set);
}

/* A part of the open rule could not be read: all of it is left out. */
static void tn_flt_rule_skip(tn_flt *f) { f->rule_lost = true; }

/* The open rule is complete. It is kept if it can match anything. */
static void tn_flt_rule_end(tn_flt *f)
{
    unsigned i, have = TN_FLT_PROTO;
    for (i = f->rule_at; i < f->next.used; i++) have |= f->next.range[i].kind & TN_FLT_ALL;
    if (f->rule_lost || f->set == TN_FLT_LOST) {
        if (f->set != TN_FLT_NOWHERE && f->rules_dropped != 65535u) f->rules_dropped++;
    } else if (have == TN_FLT_ALL) {
        f->next.range[f->rule_at].head = 1;
        f->rule_at = f->next.used;
    }
    f->next.used = f->rule_at;
}

/* The message is complete: the shadow comes into force. Returns TN_FLT_ bits. */
static unsigned tn_flt_commit(tn_flt *f)
{
    tn_flt_table old  = f->now;
    unsigned     news = 0;

    if (!f->open) return 0;
    f->next.used = f->rule_at;
    if (f->next.used != old.used || f->next.bad != old.bad ||
        (old.used != 0 && memcmp(f->next.range, old.range, old.used * sizeof *old.range) != 0))
        news |= TN_FLT_CHANGED;
    if (f->rules_dropped != 0) news |= TN_FLT_FULL;
    if (f->texts_skipped != 0) news |= TN_FLT_TEXT;
    if (f->next.bad != 0) news |= TN_FLT_VOID;
    if (f->new_cap) news |= TN_FLT_NEW_CAP;
    f->now  = f->next;
    f->next = old;
    f->open = false;
    f->set  = TN_FLT_NOWHERE;
    return news;
}

/* The message broke off: the rules in force stay. */
static void tn_flt_abort(tn_flt *f)
{
    f->open = false;
    f->set  = TN_FLT_NOWHERE;
}

/* ======================================================================== *
 * >>dns — one DNS question in, one answer out (RFC 1035, RFC 6891), and the
 * names that are addresses themselves: reverse names and 4via6.
 *
 * Owns:    nothing; a question points into the message it was read from.
 * Calls:   >>base.
 * States:  none.
 * Always:  an answer never needs more than TN_DNS_ANSWER_MAX bytes, so none is
 *          ever cut. The question goes back byte by byte as it came.
 * Trust:   any datagram from anywhere; names of the map are hostile as well.
 * ======================================================================== */

#if TAILNET_DNS

enum {
    TN_DNS_HEAD = 12, TN_DNS_ANSWER_MAX = 512,
    TN_DNS_NAME_MAX = 253,                  /* as text without its final dot      */
    TN_DNS_TTL = 5, TN_DNS_TTL_NO = 10,     /* net/dns/resolver/tsdns.go          */
    TN_DNS_UDP_SIZE = 1232,                 /* what we say we take: DNS flag day  */
    TN_DNS_IN = 1,                          /* a class; then types, then rcodes   */
    TN_DNS_A = 1, TN_DNS_NS = 2, TN_DNS_SOA = 6, TN_DNS_PTR = 12, TN_DNS_HINFO = 13,
    TN_DNS_AAAA = 28, TN_DNS_OPT = 41, TN_DNS_AXFR = 252, TN_DNS_ANY = 255,
    TN_DNS_OK = 0, TN_DNS_FORMERR = 1, TN_DNS_SERVFAIL = 2, TN_DNS_NXDOMAIN = 3,
    TN_DNS_NOTIMP = 4, TN_DNS_BADVERS = 16,
    TN_DNS_OPCODE = 0x7800, TN_DNS_AA = 0x0400, TN_DNS_RD = 0x0100, TN_DNS_RA = 0x0080
};
#define TN_DNS_RESPONSE 0x8000u             /* an enum may be 16 bits wide        */

typedef struct tn_dns_question {
    uint16_t       id, flags, type, net;    /* net: the class                     */
    uint8_t        rcode;                   /* not OK: nothing else may be said   */
    bool           edns, dnssec;            /* has an OPT record; its DO bit      */
    const uint8_t *wire;                    /* name, type and class as they came  */
    size_t         wire_len, len;           /* wire_len 0: it was not readable    */
    char           name[TN_DNS_NAME_MAX + 3];   /* lower case, len without end    */
} tn_dns_question;

typedef struct tn_dns_answer {
    uint8_t      rcode;
    size_t       zone_len;                  /* end of the name that is ours; 0: none */
    tailnet_addr addr;                      /* an A or AAAA record; family 0: none */
    const char  *target;                    /* a PTR record; NULL: none           */
} tn_dns_answer;

static uint8_t tn_dns_lower(uint8_t c)
{
    return (uint8_t)(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
}

/* ---- names ---- */

/* Reads a name as text. There is nothing before the first name that a pointer
 * could mean, so compression is refused; so is a byte that text cannot hold. */
static bool tn_dns_name_read(tn_rd *r, char *name, size_t *len)
{
    size_t   used = 0, i;
    unsigned n;
    while ((n = tn_rd_u8(r)) != 0) {
        const uint8_t *label;
        if (n > 63 || n + used > TN_DNS_NAME_MAX) return false;
        label = tn_rd_bytes(r, n);
        if (label == NULL) return false;
        for (i = 0; i < n; i++) {
            if (label[i] == '.' || label[i] == 0) return false;
            name[used++] = (char)tn_dns_lower(label[i]);
        }
        name[used++] = '.';
    }
    *len       = used == 0 ? 0 : used - 1;
    name[*len] = '\0';
    return tn_rd_ok(r);
}

/* May this text be sent as a name? */
static bool tn_dns_name_ok(const char *text)
{
    size_t i, label = 0, len = strlen(text);
    for (i = 0; i <= len; i++) {
        bool ends = text[i] == '.' || text[i] == '\0';
        if (label == (ends ? 0 : 63)) return false;
        label = ends ? 0 : label + 1;
    }
    return len <= TN_DNS_NAME_MAX;
}

/* A name that tn_dns_name_ok has seen: two bytes longer than its text. */
static void tn_dns_wr_name(tn_wr *w, const char *text)
{
    for (;;) {
        size_t n = 0;
        while (text[n] != '.' && text[n] != '\0') n++;
        tn_wr_u8(w, (unsigned)n);
        tn_wr_bytes(w, text, n);
        if (text[n] == '\0') break;
        text += n + 1;
    }
    tn_wr_u8(w, 0);
}

/* Is the name, in lower case, that zone or below it? A final dot and the case
 * of the zone do not count. Gives the zone's length without the dot, or 0. */
static size_t tn_dns_under(const char *name, size_t len, const char *zone)
{
    size_t n = strlen(zone), i;
    if (n != 0 && zone[n - 1] == '.') n--;
    if (n == 0 || n > len || (n < len && name[len - n - 1] != '.')) return 0;
    for (i = 0; i < n; i++)
        if ((uint8_t)name[len - n + i] != tn_dns_lower((uint8_t)zone[i])) return 0;
    return n;
}

/* ---- names that are addresses ---- */

/* "4.3.2.1.in-addr.arpa", or 32 nibbles before "ip6.arpa" (RFC 3596). */
static bool tn_dns_reverse(const char *name, size_t len, tailnet_addr *out)
{
    size_t  zone = tn_dns_under(name, len, "in-addr.arpa"), i;
    uint8_t ip[4];

    memset(out, 0, sizeof *out);
    if (zone != 0 && zone < len && tn_ip4_parse(ip, name, len - zone - 1)) {
        for (i = 0; i < 4; i++) out->ip[i] = ip[3 - i];
        out->family = 4;
        return true;
    }
    zone = tn_dns_under(name, len, "ip6.arpa");
    if (zone == 0 || len - zone != 64) return false;
    for (i = 0; i < 32; i++) {
        int digit = tn_hex_digit((unsigned char)name[2 * i]);
        if (digit < 0 || name[2 * i + 1] != '.') return false;
        out->ip[15 - i / 2] = (uint8_t)(out->ip[15 - i / 2] | (i % 2 == 0 ? digit : digit * 16));
    }
    out->family = 6;
    return true;
}

/* The reverse zones of the tailnet's ranges: length of the one the name is in, or 0. */
static size_t tn_dns_reverse_zone(const char *name, size_t len)
{
    size_t   zone = tn_dns_under(name, len, "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"), at;
    uint32_t v    = 0;
    if (zone != 0) return zone;
    zone = tn_dns_under(name, len, "100.in-addr.arpa");
    if (zone == 0 || zone == len) return 0;
    at = len - zone - 1;                    /* the dot before the zone            */
    while (at != 0 && name[at - 1] != '.') at--;
    if (!tn_u32_parse(name + at, len - zone - 1 - at, 127, &v) || v < 64) return 0;
    return len - at;
}

/* A number as Go writes it: 0x, 0b, 0 or 0o in front tell its base. */
static bool tn_dns_number(const char *text, size_t len, uint32_t *out)
{
    char     mark = len > 1 && text[0] == '0' ? text[1] : ' ';
    unsigned base = mark == ' ' ? 10 : mark == 'x' ? 16 : mark == 'b' ? 2 : 8;
    size_t   at   = base == 10 ? 0 : base == 8 && mark != 'o' ? 1 : 2;
    *out          = 0;
    if (at == len) return false;
    for (; at < len; at++) {
        int d = tn_hex_digit((unsigned char)text[at]);
        if (d < 0 || (unsigned)d >= base) return false;
        if (*out > (UINT32_MAX - (unsigned)d) / base) return false;
        *out = *out * base + (unsigned)d;
    }
    return true;
}

/* 4via6: "10-0-0-1-via-7", alone or in the service's domains, is 10.0.0.1 at
 * site 7 (reference: resolveViaDomain). */
static bool tn_dns_via(const char *name, size_t len, tailnet_addr *out)
{
    static const uint8_t prefix[8] = { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 0x0b, 0x1a };
    char                 ip[16];
    size_t               label = 0, at = 0, dashes = 0;
    uint32_t             site;

    memset(out, 0, sizeof *out);
    while (label < len && name[label] != '.') label++;
    if (label != len && tn_dns_under(name, len, "ts.net") == 0 &&
        tn_dns_under(name, len, "tailscale.net") == 0)
        return false;
    for (; at < label && at < sizeof ip; at++) {
        if (name[at] == '-' && ++dashes == 4) break;
        ip[at] = name[at];
        if (ip[at] == '.') return false;
        if (ip[at] == '-') ip[at] = '.';
    }
    if (dashes != 4 || !tn_begins(name + at, label - at, "-via-")) return false;
    if (!tn_ip4_parse(out->ip + 12, ip, at)) return false;
    if (!tn_dns_number(name + at + 5, label - at - 5, &site)) return false;
    memcpy(out->ip, prefix, sizeof prefix);
    tn_put_u32be(out->ip + 8, site);
    out->family = 6;
    return true;
}

/* ---- messages ---- */

/* Looks for EDNS in what follows the question. False: it is malformed. */
static bool tn_dns_records_read(tn_dns_question *q, tn_rd *r, uint32_t count)
{
    for (; count != 0; count--) {           /* each takes at least eleven bytes   */
        unsigned n, type, labels = 0;
        uint32_t ttl;
        while ((n = tn_rd_u8(r)) != 0 && n < 0xc0u) {   /* a pointer ends a name  */
            if (n > 63 || tn_rd_bytes(r, n) == NULL) return false;
            labels++;
        }
        if (n != 0) labels += 1u + tn_rd_u8(r);
        type = tn_rd_u16be(r);
        (void)tn_rd_u16be(r);
        ttl = tn_rd_u32be(r);
        if (tn_rd_bytes(r, tn_rd_u16be(r)) == NULL || !tn_rd_ok(r)) return false;
        if (type != TN_DNS_OPT) continue;
        if (q->edns || labels != 0) return false;       /* RFC 6891 section 6.1.1 */
        q->edns   = true;
        q->dnssec = (ttl & 0x8000u) != 0;
        if ((ttl >> 16 & 0xffu) != 0) q->rcode = TN_DNS_BADVERS;
    }
    return true;
}

/* Reads a message. OK with rcode OK: a question; with another rcode: only that
 * can be answered. MALFORMED: no answer at all. A response gets none, or two
 * servers could talk to each other for ever; the reference says FORMERR. */
static tailnet_result tn_dns_parse(tn_dns_question *q, const void *src, size_t len)
{
    tn_rd    r, whole;
    unsigned questions;
    uint32_t records;

    memset(q, 0, sizeof *q);
    tn_rd_over(&r, src, len);
    q->id     = tn_rd_u16be(&r);
    q->flags  = tn_rd_u16be(&r);
    questions = tn_rd_u16be(&r);
    records   = tn_rd_u16be(&r);
    records += tn_rd_u16be(&r);
    records += tn_rd_u16be(&r);
    if (!tn_rd_ok(&r) || (q->flags & TN_DNS_RESPONSE) != 0) return TAILNET_ERR_MALFORMED;
    q->rcode = (q->flags & TN_DNS_OPCODE) != 0 ? TN_DNS_NOTIMP : TN_DNS_FORMERR;
    if (q->rcode == TN_DNS_NOTIMP || questions != 1) return TAILNET_OK;
    whole = r;
    if (!tn_dns_name_read(&r, q->name, &q->len)) return TAILNET_OK;
    q->type = tn_rd_u16be(&r);
    q->net  = tn_rd_u16be(&r);
    if (!tn_rd_ok(&r)) return TAILNET_OK;
    q->wire_len = whole.left - r.left;
    q->wire     = tn_rd_bytes(&whole, q->wire_len);
    q->rcode    = TN_DNS_OK;
    if (!tn_dns_records_read(q, &r, records)) q->rcode = TN_DNS_FORMERR;
    return TAILNET_OK;
}

/* The head of a record whose owner is at offset at of the message. */
static void tn_dns_wr_record(tn_wr *w, size_t at, unsigned type, unsigned ttl, size_t len)
{
    tn_wr_u16be(w, 0xc000u | (unsigned)at);
    tn_wr_u16be(w, type);
    tn_wr_u16be(w, TN_DNS_IN);
    tn_wr_u32be(w, ttl);
    tn_wr_u16be(w, (unsigned)len);
}

/* The zone that says no. Nobody transfers it, so its numbers mean nothing
 * (RFC 6303 section 3); the last is how long a no may be believed. */
static void tn_dns_wr_soa(tn_wr *w, size_t at)
{
    static const uint8_t rest[] = {
        6, 'n', 'o', 'b', 'o', 'd', 'y', 7, 'i', 'n', 'v', 'a', 'l', 'i', 'd', 0,
        0, 0, 0, 1,  0, 0, 0x0e, 0x10,  0, 0, 0x04, 0xb0,   /* 1, 1 h, 20 min     */
        0, 0x09, 0x3a, 0x80,  0, 0, 0, TN_DNS_TTL_NO        /* 7 days, the no     */
    };
    tn_dns_wr_record(w, at, TN_DNS_SOA, TN_DNS_TTL_NO, 2 + sizeof rest);
    tn_wr_u16be(w, 0xc000u | (unsigned)at);
    tn_wr_bytes(w, rest, sizeof rest);
}

/* The whole answer into an empty cursor of TN_DNS_ANSWER_MAX bytes. */
static void tn_dns_wr_answer(tn_wr *w, const tn_dns_question *q, const tn_dns_answer *a)
{
    bool     found = a->rcode == TN_DNS_OK && (a->addr.family != 0 || a->target != NULL);
    bool     no    = !found && a->zone_len != 0 &&
                     (a->rcode == TN_DNS_OK || a->rcode == TN_DNS_NXDOMAIN);
    unsigned rd    = q->flags & (unsigned)TN_DNS_RD;
    unsigned flags = TN_DNS_RESPONSE | (q->flags & (unsigned)TN_DNS_OPCODE) | TN_DNS_AA | rd |
                     (rd != 0 ? (unsigned)TN_DNS_RA : 0u);

    tn_wr_u16be(w, q->id);
    tn_wr_u16be(w, flags | (a->rcode & 15u));
    tn_wr_u16be(w, q->wire_len != 0);
    tn_wr_u16be(w, found);
    tn_wr_u16be(w, no);
    tn_wr_u16be(w, q->edns);
    tn_wr_bytes(w, q->wire, q->wire_len);
    if (found && a->target != NULL) {
        tn_dns_wr_record(w, TN_DNS_HEAD, TN_DNS_PTR, TN_DNS_TTL, strlen(a->target) + 2);
        tn_dns_wr_name(w, a->target);
    } else if (found) {
        tn_dns_wr_record(w, TN_DNS_HEAD, a->addr.family == 4 ? TN_DNS_A : TN_DNS_AAAA, TN_DNS_TTL,
                         tn_ip_len(a->addr.family));
        tn_wr_bytes(w, a->addr.ip, tn_ip_len(a->addr.family));
    }
    if (no) tn_dns_wr_soa(w, TN_DNS_HEAD + q->len - a->zone_len);
    if (!q->edns) return;
    tn_wr_u8(w, 0);
    tn_wr_u16be(w, TN_DNS_OPT);
    tn_wr_u16be(w, TN_DNS_UDP_SIZE);
    tn_wr_u32be(w, (uint32_t)(a->rcode >> 4) << 24 | (q->dnssec ? 0x8000u : 0u));
    tn_wr_u16be(w, 0);
}

#endif /* TAILNET_DNS */

/* ======================================================================== *
 * >>tls — BearSSL behind four ports, and whom to believe.
 *
 * Owns:    engines (keys, one output record), the one X.509 context of a node,
 *          the built-in roots.
 * Calls:   >>base, >>rim, >>derp (the name of a relay's meta certificate).
 * States:  BearSSL's: handshake, open, closed.
 * Always:  no certificate is taken without a root, a name and a date, or a
 *          pin and a date; there is no way to switch that off. What commit
 *          brings during a handshake is only held: work happens in turn, one
 *          bite at a time. No byte of randomness comes from anywhere but the
 *          rim.
 * Trust:   none before the handshake is done. A certificate is read twice, by
 *          BearSSL and by the small reader here; BearSSL alone decides whether
 *          it is well formed and signed, ours only finds what BearSSL does not
 *          report: addresses, the first date, a relay key.
 * ======================================================================== */

#define TAILNET_TLS_NONE    0
#define TAILNET_TLS_BEARSSL 1
#ifndef TAILNET_TLS
#  define TAILNET_TLS TAILNET_TLS_BEARSSL
#endif

/* Without AES only ChaCha20-Poly1305 is offered, which every Go server takes: 3.7 KB less. */
#ifndef TAILNET_TLS_AES
#  define TAILNET_TLS_AES TN_ON_HOST
#endif

/* Details of TAILNET_ERR_TLS that are not BearSSL's own (those are below 1000:
 * TN_TLS_ERR_LARGE, 54 date, 56 name, 62 no root, 256 + n an alert). */
enum {
    TN_TLS_ERR_LARGE     = 6,               /* a record larger than our buffer    */
    TN_TLS_ERR_PIN       = 1000,            /* not the pinned certificate         */
    TN_TLS_ERR_PIN_CHAIN = 1001,            /* more than the pinned certificate   */
    TN_TLS_ERR_TARGET    = 1002             /* the name or pin to check is no such */
};

/* Whom we expect at the other end. All of it must stay during the handshake. */
typedef struct tn_tls_want {
    const char *host;                       /* dialled; sent as SNI unless an address */
    const char *certificate;                /* NULL: host; a name; "sha256-raw:"+hex  */
    const void *anchors;                    /* br_x509_trust_anchor[]; NULL: built in */
    size_t      anchor_count;
} tn_tls_want;

#if TAILNET_TLS == TAILNET_TLS_BEARSSL

#ifndef BR_BEARSSL_H__
#  include <bearssl.h>
#endif

#define TN_TLS_IN_LEN  16709u               /* BR_SSL_BUFSIZE_INPUT: a whole record */
#define TN_TLS_LEAN_LEN (TAILNET_CONTROL_RECORD + 325u) /* the same for shorter records */
#define TN_TLS_OUT_LEN (TAILNET_TLS_OUT + 85u)

/* ---- a small DER reader that takes a certificate as it comes ---- */

enum {
    TN_TLS_DER_DEPTH = 9,
    TN_TLS_DER_KEEP  = 72,                  /* the common name of a meta certificate is 71 */
    TN_TLS_DER_MAX   = 65535                /* longest certificate looked at      */
};

/* What an element is to us, by its place. Containers come last. */
enum {
    TN_TLS_DER_SKIP, TN_TLS_DER_OID, TN_TLS_DER_BEGIN, TN_TLS_DER_CN, TN_TLS_DER_IP,
    TN_TLS_DER_ROOT, TN_TLS_DER_CERT, TN_TLS_DER_TBS, TN_TLS_DER_DATES, TN_TLS_DER_SUBJECT,
    TN_TLS_DER_RDN, TN_TLS_DER_PART, TN_TLS_DER_WRAP, TN_TLS_DER_EXTS, TN_TLS_DER_EXT,
    TN_TLS_DER_SAN, TN_TLS_DER_NAMES
};

typedef enum tn_tls_der_phase {
    TN_TLS_DER_TAG, TN_TLS_DER_LEN, TN_TLS_DER_MORE, TN_TLS_DER_VALUE, TN_TLS_DER_BAD
} tn_tls_der_phase;

typedef struct tn_tls_der {
    tn_tls_der_phase phase;
    uint8_t          depth, tag, value, head, more, keep_len;
    uint8_t          oid;                   /* the last one read: what it makes of its value */
    uint8_t          ip_len;                /* 4 or 16: look for ip; 0: do not    */
    bool             ip_found;
    bool             meta;                  /* the subject is "derpkey" + hex     */
    uint8_t          kind[TN_TLS_DER_DEPTH];
    uint8_t          seen[TN_TLS_DER_DEPTH];/* sequences begun in it, up to 255   */
    uint32_t         len;                   /* of the element, later what is left */
    uint32_t         left[TN_TLS_DER_DEPTH];/* bytes left in each open container  */
    uint64_t         begin_unix_ms;         /* notBefore, 0 while unknown         */
    uint8_t          ip[16];
    uint8_t          keep[TN_TLS_DER_KEEP];
    uint8_t          meta_key[32];
} tn_tls_der;

/* A new certificate; the address looked for stays. */
static void tn_tls_der_start(tn_tls_der *d)
{
    d->phase         = TN_TLS_DER_TAG;
    d->oid           = TN_TLS_DER_SKIP;
    d->depth         = 1;
    d->left[0]       = TN_TLS_DER_MAX;
    d->kind[0]       = TN_TLS_DER_ROOT;
    d->seen[0]       = 0;
    d->ip_found      = false;
    d->meta          = false;
    d->begin_unix_ms = 0;
}

/* What a child is, from where it stands (RFC 5280 section 4.1). */
static uint8_t tn_tls_der_kind(const tn_tls_der *d)
{
    /* parent, tag, how many sequences came before; 0xff: any. The first that fits. */
    static const uint8_t places[16][4] = {
        { TN_TLS_DER_ROOT,    0x30, 0,    TN_TLS_DER_CERT },
        { TN_TLS_DER_CERT,    0x30, 0,    TN_TLS_DER_TBS },
        { TN_TLS_DER_TBS,     0xa3, 0xff, TN_TLS_DER_WRAP },
        { TN_TLS_DER_TBS,     0x30, 2,    TN_TLS_DER_DATES },   /* behind algorithm, issuer */
        { TN_TLS_DER_TBS,     0x30, 3,    TN_TLS_DER_SUBJECT },
        { TN_TLS_DER_DATES,   0xff, 0,    TN_TLS_DER_BEGIN },
        { TN_TLS_DER_SUBJECT, 0x31, 0xff, TN_TLS_DER_RDN },
        { TN_TLS_DER_RDN,     0x30, 0xff, TN_TLS_DER_PART },
        { TN_TLS_DER_PART,    0x06, 0xff, TN_TLS_DER_OID },
        { TN_TLS_DER_PART,    0xff, 0xff, TN_TLS_DER_CN },
        { TN_TLS_DER_WRAP,    0x30, 0xff, TN_TLS_DER_EXTS },
        { TN_TLS_DER_EXTS,    0x30, 0xff, TN_TLS_DER_EXT },
        { TN_TLS_DER_EXT,     0x06, 0xff, TN_TLS_DER_OID },
        { TN_TLS_DER_EXT,     0x04, 0xff, TN_TLS_DER_SAN },
        { TN_TLS_DER_SAN,     0x30, 0xff, TN_TLS_DER_NAMES },
        { TN_TLS_DER_NAMES,   0x87, 0xff, TN_TLS_DER_IP }
    };
    unsigned at = d->depth - 1u, i;
    for (i = 0; i < 16; i++) {
        const uint8_t *p = places[i];
        if (p[0] != d->kind[at] || (p[1] != 0xff && p[1] != d->tag) ||
            (p[2] != 0xff && p[2] != d->seen[at]))
            continue;
        if ((p[3] == TN_TLS_DER_CN || p[3] == TN_TLS_DER_SAN) && p[3] != d->oid) break;
        return p[3];
    }
    return TN_TLS_DER_SKIP;
}

/* UTCTime or GeneralizedTime in the one form each that RFC 5280 section 4.1.2.5
 * allows, in milliseconds since 1970; 0 for all else and all before. */
static uint64_t tn_tls_der_time(const uint8_t *text, size_t len)
{
    static const char form[] = "0000-00-00T00:00:00Z";
    char              date[sizeof form - 1];
    size_t            at = 0, i = 0;
    uint64_t          unix_ms;
    if ((len != 13 && len != 15) || text[len - 1] != 'Z') return 0;
    if (len == 13) {                        /* two digits of a year until 2049    */
        memcpy(date, text[0] < '5' ? "20" : "19", 2);
        at = 2;
    }
    for (; at < sizeof date; at++)
        date[at] = form[at] == '0' ? (char)text[i++] : form[at];
    return tn_date_parse(&unix_ms, date, sizeof date) ? unix_ms : 0;
}

/* A value we wanted is whole. */
static void tn_tls_der_take(tn_tls_der *d)
{
    const uint8_t *k   = d->keep;
    size_t         len = d->keep_len;
    switch (d->value) {
    case TN_TLS_DER_OID:                    /* 2.5.4.3, 2.5.29.17                 */
        d->oid = TN_TLS_DER_SKIP;
        if (len != 3 || k[0] != 0x55) break;
        if (k[1] == 0x04 && k[2] == 0x03) d->oid = TN_TLS_DER_CN;
        if (k[1] == 0x1d && k[2] == 0x11) d->oid = TN_TLS_DER_SAN;
        break;
    case TN_TLS_DER_BEGIN:
        d->begin_unix_ms = tn_tls_der_time(k, len);
        break;
    case TN_TLS_DER_CN:
        d->meta = tn_derp_meta_key(d->meta_key, (const char *)k, len);
        break;
    case TN_TLS_DER_IP:
        if (d->ip_len != 0 && len == d->ip_len && memcmp(k, d->ip, len) == 0) d->ip_found = true;
        break;
    default:
        break;
    }
}

/* Behind an element: close all containers that end here. */
static void tn_tls_der_settle(tn_tls_der *d)
{
    d->phase = TN_TLS_DER_TAG;
    while (d->depth > 1 && d->left[d->depth - 1] == 0) d->depth--;
}

/* Tag and length are whole: charge the element to its container, then open it,
 * keep its value, or skip it. */
static void tn_tls_der_begin(tn_tls_der *d)
{
    unsigned at   = d->depth - 1u;
    uint8_t  kind = tn_tls_der_kind(d);
    if (d->head > d->left[at] || d->len > d->left[at] - d->head) {
        d->phase = TN_TLS_DER_BAD;
        return;
    }
    d->left[at] -= d->head + d->len;
    if ((d->tag == 0x30 || kind == TN_TLS_DER_BEGIN) && d->seen[at] != 255) d->seen[at]++;
    if (kind < TN_TLS_DER_ROOT) {
        d->value    = kind;
        d->keep_len = 0;
        d->phase    = TN_TLS_DER_VALUE;
        if (d->len != 0) return;
        tn_tls_der_take(d);
    } else if (d->depth == TN_TLS_DER_DEPTH) {
        d->phase = TN_TLS_DER_BAD;
        return;
    } else {
        if (kind == TN_TLS_DER_PART || kind == TN_TLS_DER_EXT) d->oid = TN_TLS_DER_SKIP;
        d->left[d->depth] = d->len;
        d->kind[d->depth] = kind;
        d->seen[d->depth] = 0;
        d->depth++;
    }
    tn_tls_der_settle(d);
}

/* One byte of a tag or length. Indefinite lengths and long tags are not DER. */
static void tn_tls_der_header(tn_tls_der *d, uint8_t c)
{
    switch (d->phase) {
    case TN_TLS_DER_TAG:
        d->tag   = c;
        d->head  = 1;
        d->phase = (c & 0x1fu) == 0x1fu ? TN_TLS_DER_BAD : TN_TLS_DER_LEN;
        break;
    case TN_TLS_DER_LEN:
        d->head++;
        d->len  = c < 0x80 ? c : 0u;
        d->more = (uint8_t)(c & 0x7fu);
        if (c < 0x80) tn_tls_der_begin(d);
        else d->phase = d->more == 0 || d->more > 3 ? TN_TLS_DER_BAD : TN_TLS_DER_MORE;
        break;
    case TN_TLS_DER_MORE:
        d->head++;
        d->len = d->len << 8 | c;
        if (--d->more == 0) tn_tls_der_begin(d);
        break;
    case TN_TLS_DER_VALUE:
    case TN_TLS_DER_BAD:
        break;
    }
}

/* The next bytes of a certificate, cut anyhow. What is no DER ends the search. */
static TN_NOINLINE void tn_tls_der_push(tn_tls_der *d, const uint8_t *src, size_t len)
{
    tn_rd r;
    tn_rd_over(&r, src, len);
    while (r.left != 0 && d->phase != TN_TLS_DER_BAD) {
        size_t         n;
        const uint8_t *b;
        if (d->phase != TN_TLS_DER_VALUE) {
            tn_tls_der_header(d, tn_rd_u8(&r));
            continue;
        }
        n = r.left < d->len ? r.left : (size_t)d->len;
        b = tn_rd_bytes(&r, n);
        if (d->value != TN_TLS_DER_SKIP && n <= (size_t)TN_TLS_DER_KEEP - d->keep_len) {
            memcpy(d->keep + d->keep_len, b, n);
            d->keep_len = (uint8_t)(d->keep_len + n);
        } else {
            d->value = TN_TLS_DER_SKIP;     /* longer than anything we look for   */
        }
        d->len -= (uint32_t)n;
        if (d->len != 0) continue;
        tn_tls_der_take(d);
        tn_tls_der_settle(d);
    }
}

/* ---- the roots of the public service ---- */

#ifndef TAILNET_NO_BUILTIN_ANCHORS
/* Names and keys of the roots that the reference client carries (tailscale:
 * net/bakedroots): ISRG Root X1 (RSA) and X2 (P-384), Root YE (P-384) and YR
 * (RSA) of Let's Encrypt. Made by tests/gen/anchors.sh. */
static const uint8_t tn_tls_x1_dn[81] = {
    0x30, 0x4f, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, 0x55, 0x53, 0x31,
    0x29, 0x30, 0x27, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x20, 0x49, 0x6e, 0x74, 0x65, 0x72, 0x6e,
    0x65, 0x74, 0x20, 0x53, 0x65, 0x63, 0x75, 0x72, 0x69, 0x74, 0x79, 0x20, 0x52, 0x65, 0x73, 0x65,
    0x61, 0x72, 0x63, 0x68, 0x20, 0x47, 0x72, 0x6f, 0x75, 0x70, 0x31, 0x15, 0x30, 0x13, 0x06, 0x03,
    0x55, 0x04, 0x03, 0x13, 0x0c, 0x49, 0x53, 0x52, 0x47, 0x20, 0x52, 0x6f, 0x6f, 0x74, 0x20, 0x58,
    0x31
};
static const uint8_t tn_tls_x1_key[512] = {
    0xad, 0xe8, 0x24, 0x73, 0xf4, 0x14, 0x37, 0xf3, 0x9b, 0x9e, 0x2b, 0x57, 0x28, 0x1c, 0x87, 0xbe,
    0xdc, 0xb7, 0xdf, 0x38, 0x90, 0x8c, 0x6e, 0x3c, 0xe6, 0x57, 0xa0, 0x78, 0xf7, 0x75, 0xc2, 0xa2,
    0xfe, 0xf5, 0x6a, 0x6e, 0xf6, 0x00, 0x4f, 0x28, 0xdb, 0xde, 0x68, 0x86, 0x6c, 0x44, 0x93, 0xb6,
    0xb1, 0x63, 0xfd, 0x14, 0x12, 0x6b, 0xbf, 0x1f, 0xd2, 0xea, 0x31, 0x9b, 0x21, 0x7e, 0xd1, 0x33,
    0x3c, 0xba, 0x48, 0xf5, 0xdd, 0x79, 0xdf, 0xb3, 0xb8, 0xff, 0x12, 0xf1, 0x21, 0x9a, 0x4b, 0xc1,
    0x8a, 0x86, 0x71, 0x69, 0x4a, 0x66, 0x66, 0x6c, 0x8f, 0x7e, 0x3c, 0x70, 0xbf, 0xad, 0x29, 0x22,
    0x06, 0xf3, 0xe4, 0xc0, 0xe6, 0x80, 0xae, 0xe2, 0x4b, 0x8f, 0xb7, 0x99, 0x7e, 0x94, 0x03, 0x9f,
    0xd3, 0x47, 0x97, 0x7c, 0x99, 0x48, 0x23, 0x53, 0xe8, 0x38, 0xae, 0x4f, 0x0a, 0x6f, 0x83, 0x2e,
    0xd1, 0x49, 0x57, 0x8c, 0x80, 0x74, 0xb6, 0xda, 0x2f, 0xd0, 0x38, 0x8d, 0x7b, 0x03, 0x70, 0x21,
    0x1b, 0x75, 0xf2, 0x30, 0x3c, 0xfa, 0x8f, 0xae, 0xdd, 0xda, 0x63, 0xab, 0xeb, 0x16, 0x4f, 0xc2,
    0x8e, 0x11, 0x4b, 0x7e, 0xcf, 0x0b, 0xe8, 0xff, 0xb5, 0x77, 0x2e, 0xf4, 0xb2, 0x7b, 0x4a, 0xe0,
    0x4c, 0x12, 0x25, 0x0c, 0x70, 0x8d, 0x03, 0x29, 0xa0, 0xe1, 0x53, 0x24, 0xec, 0x13, 0xd9, 0xee,
    0x19, 0xbf, 0x10, 0xb3, 0x4a, 0x8c, 0x3f, 0x89, 0xa3, 0x61, 0x51, 0xde, 0xac, 0x87, 0x07, 0x94,
    0xf4, 0x63, 0x71, 0xec, 0x2e, 0xe2, 0x6f, 0x5b, 0x98, 0x81, 0xe1, 0x89, 0x5c, 0x34, 0x79, 0x6c,
    0x76, 0xef, 0x3b, 0x90, 0x62, 0x79, 0xe6, 0xdb, 0xa4, 0x9a, 0x2f, 0x26, 0xc5, 0xd0, 0x10, 0xe1,
    0x0e, 0xde, 0xd9, 0x10, 0x8e, 0x16, 0xfb, 0xb7, 0xf7, 0xa8, 0xf7, 0xc7, 0xe5, 0x02, 0x07, 0x98,
    0x8f, 0x36, 0x08, 0x95, 0xe7, 0xe2, 0x37, 0x96, 0x0d, 0x36, 0x75, 0x9e, 0xfb, 0x0e, 0x72, 0xb1,
    0x1d, 0x9b, 0xbc, 0x03, 0xf9, 0x49, 0x05, 0xd8, 0x81, 0xdd, 0x05, 0xb4, 0x2a, 0xd6, 0x41, 0xe9,
    0xac, 0x01, 0x76, 0x95, 0x0a, 0x0f, 0xd8, 0xdf, 0xd5, 0xbd, 0x12, 0x1f, 0x35, 0x2f, 0x28, 0x17,
    0x6c, 0xd2, 0x98, 0xc1, 0xa8, 0x09, 0x64, 0x77, 0x6e, 0x47, 0x37, 0xba, 0xce, 0xac, 0x59, 0x5e,
    0x68, 0x9d, 0x7f, 0x72, 0xd6, 0x89, 0xc5, 0x06, 0x41, 0x29, 0x3e, 0x59, 0x3e, 0xdd, 0x26, 0xf5,
    0x24, 0xc9, 0x11, 0xa7, 0x5a, 0xa3, 0x4c, 0x40, 0x1f, 0x46, 0xa1, 0x99, 0xb5, 0xa7, 0x3a, 0x51,
    0x6e, 0x86, 0x3b, 0x9e, 0x7d, 0x72, 0xa7, 0x12, 0x05, 0x78, 0x59, 0xed, 0x3e, 0x51, 0x78, 0x15,
    0x0b, 0x03, 0x8f, 0x8d, 0xd0, 0x2f, 0x05, 0xb2, 0x3e, 0x7b, 0x4a, 0x1c, 0x4b, 0x73, 0x05, 0x12,
    0xfc, 0xc6, 0xea, 0xe0, 0x50, 0x13, 0x7c, 0x43, 0x93, 0x74, 0xb3, 0xca, 0x74, 0xe7, 0x8e, 0x1f,
    0x01, 0x08, 0xd0, 0x30, 0xd4, 0x5b, 0x71, 0x36, 0xb4, 0x07, 0xba, 0xc1, 0x30, 0x30, 0x5c, 0x48,
    0xb7, 0x82, 0x3b, 0x98, 0xa6, 0x7d, 0x60, 0x8a, 0xa2, 0xa3, 0x29, 0x82, 0xcc, 0xba, 0xbd, 0x83,
    0x04, 0x1b, 0xa2, 0x83, 0x03, 0x41, 0xa1, 0xd6, 0x05, 0xf1, 0x1b, 0xc2, 0xb6, 0xf0, 0xa8, 0x7c,
    0x86, 0x3b, 0x46, 0xa8, 0x48, 0x2a, 0x88, 0xdc, 0x76, 0x9a, 0x76, 0xbf, 0x1f, 0x6a, 0xa5, 0x3d,
    0x19, 0x8f, 0xeb, 0x38, 0xf3, 0x64, 0xde, 0xc8, 0x2b, 0x0d, 0x0a, 0x28, 0xff, 0xf7, 0xdb, 0xe2,
    0x15, 0x42, 0xd4, 0x22, 0xd0, 0x27, 0x5d, 0xe1, 0x79, 0xfe, 0x18, 0xe7, 0x70, 0x88, 0xad, 0x4e,
    0xe6, 0xd9, 0x8b, 0x3a, 0xc6, 0xdd, 0x27, 0x51, 0x6e, 0xff, 0xbc, 0x64, 0xf5, 0x33, 0x43, 0x4f
};
static const uint8_t tn_tls_x2_dn[81] = {
    0x30, 0x4f, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, 0x55, 0x53, 0x31,
    0x29, 0x30, 0x27, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x20, 0x49, 0x6e, 0x74, 0x65, 0x72, 0x6e,
    0x65, 0x74, 0x20, 0x53, 0x65, 0x63, 0x75, 0x72, 0x69, 0x74, 0x79, 0x20, 0x52, 0x65, 0x73, 0x65,
    0x61, 0x72, 0x63, 0x68, 0x20, 0x47, 0x72, 0x6f, 0x75, 0x70, 0x31, 0x15, 0x30, 0x13, 0x06, 0x03,
    0x55, 0x04, 0x03, 0x13, 0x0c, 0x49, 0x53, 0x52, 0x47, 0x20, 0x52, 0x6f, 0x6f, 0x74, 0x20, 0x58,
    0x32
};
static const uint8_t tn_tls_x2_key[97] = {
    0x04, 0xcd, 0x9b, 0xd5, 0x9f, 0x80, 0x83, 0x0a, 0xec, 0x09, 0x4a, 0xf3, 0x16, 0x4a, 0x3e, 0x5c,
    0xcf, 0x77, 0xac, 0xde, 0x67, 0x05, 0x0d, 0x1d, 0x07, 0xb6, 0xdc, 0x16, 0xfb, 0x5a, 0x8b, 0x14,
    0xdb, 0xe2, 0x71, 0x60, 0xc4, 0xba, 0x45, 0x95, 0x11, 0x89, 0x8e, 0xea, 0x06, 0xdf, 0xf7, 0x2a,
    0x16, 0x1c, 0xa4, 0xb9, 0xc5, 0xc5, 0x32, 0xe0, 0x03, 0xe0, 0x1e, 0x82, 0x18, 0x38, 0x8b, 0xd7,
    0x45, 0xd8, 0x0a, 0x6a, 0x6e, 0xe6, 0x00, 0x77, 0xfb, 0x02, 0x51, 0x7d, 0x22, 0xd8, 0x0a, 0x6e,
    0x9a, 0x5b, 0x77, 0xdf, 0xf0, 0xfa, 0x41, 0xec, 0x39, 0xdc, 0x75, 0xca, 0x68, 0x07, 0x0c, 0x1f,
    0xea
};
static const uint8_t tn_tls_ye_dn[48] = {
    0x30, 0x2e, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, 0x55, 0x53, 0x31,
    0x0d, 0x30, 0x0b, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x04, 0x49, 0x53, 0x52, 0x47, 0x31, 0x10,
    0x30, 0x0e, 0x06, 0x03, 0x55, 0x04, 0x03, 0x13, 0x07, 0x52, 0x6f, 0x6f, 0x74, 0x20, 0x59, 0x45
};
static const uint8_t tn_tls_ye_key[97] = {
    0x04, 0x3c, 0x12, 0xff, 0xab, 0xe1, 0xad, 0xc5, 0x6a, 0x71, 0xb0, 0x68, 0xfb, 0x08, 0x1d, 0x23,
    0x77, 0xf0, 0x9f, 0xdc, 0x7b, 0x0c, 0xd2, 0x49, 0x39, 0x8f, 0xe5, 0x4c, 0xeb, 0x62, 0xd2, 0xf9,
    0x30, 0xb9, 0x13, 0x7c, 0xed, 0x18, 0x44, 0x85, 0x31, 0xf5, 0xec, 0x4e, 0xd7, 0xc8, 0x58, 0xd6,
    0xb0, 0xf6, 0x21, 0x20, 0xfb, 0x7f, 0xc3, 0x33, 0xaa, 0xc5, 0x37, 0x76, 0x6f, 0xee, 0x19, 0x24,
    0xdc, 0xbd, 0x20, 0x3d, 0x38, 0x63, 0x2c, 0x05, 0xf5, 0x4e, 0x73, 0x6a, 0xc0, 0xd5, 0xc8, 0x64,
    0x8d, 0x12, 0xb5, 0x4d, 0xb7, 0x3f, 0x2e, 0x48, 0x68, 0x79, 0x8b, 0x35, 0xbc, 0xee, 0x3e, 0xfb,
    0x19
};
static const uint8_t tn_tls_yr_dn[48] = {
    0x30, 0x2e, 0x31, 0x0b, 0x30, 0x09, 0x06, 0x03, 0x55, 0x04, 0x06, 0x13, 0x02, 0x55, 0x53, 0x31,
    0x0d, 0x30, 0x0b, 0x06, 0x03, 0x55, 0x04, 0x0a, 0x13, 0x04, 0x49, 0x53, 0x52, 0x47, 0x31, 0x10,
    0x30, 0x0e, 0x06, 0x03, 0x55, 0x04, 0x03, 0x13, 0x07, 0x52, 0x6f, 0x6f, 0x74, 0x20, 0x59, 0x52
};
static const uint8_t tn_tls_yr_key[512] = {
    0xdb, 0xc6, 0x26, 0x73, 0x7b, 0xf0, 0x24, 0xc9, 0x75, 0x62, 0xf7, 0xf9, 0xe1, 0x9f, 0xb0, 0xb3,
    0x79, 0x4e, 0xb3, 0x41, 0x26, 0xcf, 0x95, 0x1f, 0xd8, 0x51, 0x5e, 0xa4, 0x5b, 0xc3, 0x1b, 0xbd,
    0xb0, 0x63, 0x62, 0x07, 0x40, 0x43, 0xd5, 0xf7, 0x0e, 0xc5, 0xb4, 0x94, 0x40, 0x22, 0x48, 0x33,
    0x5c, 0x44, 0xd7, 0x70, 0xdb, 0xfb, 0x90, 0xb0, 0xd7, 0x0d, 0x2c, 0xd0, 0x40, 0x58, 0xb2, 0xfb,
    0x88, 0x3f, 0xfe, 0xa3, 0xa0, 0x5d, 0x30, 0xf1, 0xcb, 0x88, 0x99, 0xb8, 0x11, 0xd4, 0xe1, 0xa0,
    0x61, 0xb4, 0x90, 0xe0, 0xea, 0x73, 0x23, 0xe0, 0xc6, 0xf1, 0x21, 0xae, 0x4e, 0x57, 0x04, 0xf3,
    0xbd, 0xce, 0x09, 0x2f, 0xa4, 0x87, 0x7b, 0x2b, 0x96, 0x8e, 0xaf, 0x97, 0x8d, 0xcc, 0xe4, 0xe2,
    0x60, 0xe0, 0x07, 0xa8, 0xd6, 0xc7, 0xc7, 0xa7, 0xa9, 0x13, 0x24, 0x3a, 0x08, 0x88, 0x50, 0x4d,
    0x24, 0x06, 0x3e, 0x38, 0xa7, 0xd7, 0xfc, 0x55, 0x2f, 0x60, 0xab, 0xa1, 0x8d, 0x3f, 0xa7, 0xa3,
    0x8f, 0x65, 0x9a, 0xa9, 0xae, 0xa5, 0x20, 0x48, 0xe4, 0xf9, 0x01, 0x42, 0x2a, 0xab, 0x10, 0x6b,
    0x56, 0x53, 0x9b, 0xb1, 0x53, 0xf7, 0x10, 0x58, 0x71, 0xae, 0xf2, 0x34, 0xa3, 0x14, 0x1c, 0xe7,
    0x66, 0xab, 0xdb, 0x34, 0xf2, 0xcc, 0x5c, 0xc2, 0xc5, 0xc4, 0x26, 0xf7, 0x59, 0x37, 0xeb, 0x24,
    0x15, 0xd7, 0x8e, 0xab, 0xd6, 0x1b, 0xeb, 0xf8, 0x6e, 0x3c, 0xf1, 0x8e, 0x37, 0x80, 0xb4, 0xe9,
    0x54, 0xee, 0xa6, 0xab, 0x44, 0x3b, 0xcd, 0x3b, 0x20, 0x2e, 0x41, 0x82, 0xe5, 0x9f, 0xdd, 0x38,
    0x33, 0xe7, 0xda, 0x2b, 0x1f, 0x21, 0x9c, 0xb0, 0xa9, 0x27, 0x5e, 0x59, 0xa9, 0xa1, 0x20, 0x70,
    0xd9, 0x58, 0xfb, 0xd3, 0x0c, 0x59, 0xc0, 0xb9, 0xca, 0xf2, 0xf6, 0x03, 0x68, 0xf7, 0x97, 0xdf,
    0xb6, 0x6e, 0xe8, 0x20, 0x65, 0x7f, 0x9d, 0x38, 0x4f, 0x75, 0xcd, 0x89, 0x88, 0x75, 0xac, 0x13,
    0xbd, 0x26, 0x6e, 0x56, 0xf9, 0x5b, 0x46, 0xb0, 0x25, 0x2f, 0x12, 0x01, 0xea, 0x9c, 0x0c, 0x06,
    0x39, 0xde, 0x5c, 0x28, 0xd8, 0x43, 0xcf, 0xb7, 0x04, 0x20, 0xa3, 0xb2, 0xc6, 0xd2, 0x36, 0x96,
    0x54, 0xde, 0x14, 0xdc, 0x04, 0x37, 0x61, 0x7c, 0x09, 0x44, 0x0e, 0x56, 0x2b, 0xea, 0x91, 0x1a,
    0xb6, 0x73, 0x1d, 0x98, 0x34, 0xf9, 0x06, 0xa9, 0xca, 0x0b, 0xdd, 0x9b, 0x77, 0x41, 0x21, 0x33,
    0x57, 0xdb, 0x2c, 0x78, 0xa8, 0x2d, 0xc7, 0x0b, 0x0a, 0xe8, 0x9e, 0xbd, 0x3f, 0x19, 0x90, 0xf8,
    0x59, 0xae, 0xae, 0xcc, 0x8a, 0x2e, 0xe0, 0x35, 0x70, 0x1c, 0x50, 0x40, 0x11, 0xf3, 0xe9, 0x73,
    0x61, 0xa9, 0x7e, 0xf7, 0x34, 0xe0, 0xec, 0x2e, 0x43, 0x00, 0xbc, 0x95, 0x39, 0xe1, 0xbf, 0x0a,
    0xa7, 0xd1, 0x00, 0xc9, 0xf5, 0x29, 0x21, 0xc2, 0x47, 0x43, 0x52, 0x03, 0xa3, 0xfc, 0xb6, 0x7f,
    0xe6, 0x19, 0x19, 0x67, 0x09, 0xcb, 0x79, 0xae, 0xd5, 0x42, 0x2e, 0x75, 0x72, 0x49, 0x5a, 0x54,
    0xe8, 0x7d, 0x6a, 0x1a, 0x0d, 0xc3, 0x81, 0x33, 0xae, 0xb2, 0x47, 0xfc, 0x79, 0xa8, 0x53, 0x32,
    0x26, 0x1b, 0x23, 0x97, 0xb3, 0x3c, 0x99, 0x8e, 0xe5, 0xea, 0xed, 0x6a, 0x5b, 0x24, 0x43, 0x5b,
    0xad, 0xa7, 0xbe, 0x3e, 0x78, 0x3c, 0xbd, 0xd8, 0xf2, 0x38, 0x7e, 0xd1, 0xca, 0x4d, 0xba, 0xbd,
    0x21, 0x68, 0x47, 0xe1, 0x86, 0x4a, 0x87, 0x75, 0xa7, 0x24, 0x42, 0x2d, 0xfa, 0x84, 0x2f, 0x95,
    0x86, 0x5b, 0x63, 0xcb, 0x69, 0x12, 0xba, 0x0a, 0xac, 0x50, 0x7a, 0x3c, 0x51, 0xb3, 0xac, 0x92,
    0x03, 0x47, 0x2b, 0x6c, 0xe0, 0x7a, 0xaf, 0xb8, 0x7e, 0x76, 0x44, 0x58, 0xf6, 0xce, 0xff, 0xc1
};

/* BearSSL's own form cannot be written as a constant in C and C++ alike. */
typedef struct tn_tls_root {
    const uint8_t *dn, *key;
    uint16_t       dn_len, key_len;
    bool           rsa;                     /* exponent 65537; else a point of P-384 */
} tn_tls_root;

static const uint8_t     tn_tls_exponent[3] = { 0x01, 0x00, 0x01 };
static const tn_tls_root tn_tls_roots[]     = {
    { tn_tls_x1_dn, tn_tls_x1_key, sizeof tn_tls_x1_dn, sizeof tn_tls_x1_key, true },
    { tn_tls_x2_dn, tn_tls_x2_key, sizeof tn_tls_x2_dn, sizeof tn_tls_x2_key, false },
    { tn_tls_ye_dn, tn_tls_ye_key, sizeof tn_tls_ye_dn, sizeof tn_tls_ye_key, false },
    { tn_tls_yr_dn, tn_tls_yr_key, sizeof tn_tls_yr_dn, sizeof tn_tls_yr_key, true }
};
enum { TN_TLS_ROOTS = 4 };

/* BearSSL's structs want plain pointers even for what it only reads. */
static unsigned char *tn_tls_plain(const uint8_t *p) { return (unsigned char *)(uintptr_t)p; }

static void tn_tls_root_anchor(br_x509_trust_anchor *a, const tn_tls_root *root)
{
    memset(a, 0, sizeof *a);
    a->dn.data = tn_tls_plain(root->dn);
    a->dn.len  = root->dn_len;
    a->flags   = BR_X509_TA_CA;
    if (root->rsa) {
        a->pkey.key_type     = BR_KEYTYPE_RSA;
        a->pkey.key.rsa.n    = tn_tls_plain(root->key);
        a->pkey.key.rsa.nlen = root->key_len;
        a->pkey.key.rsa.e    = tn_tls_plain(tn_tls_exponent);
        a->pkey.key.rsa.elen = sizeof tn_tls_exponent;
    } else {
        a->pkey.key_type    = BR_KEYTYPE_EC;
        a->pkey.key.ec.curve = BR_EC_secp384r1;
        a->pkey.key.ec.q     = tn_tls_plain(root->key);
        a->pkey.key.ec.qlen  = root->key_len;
    }
}
#endif /* TAILNET_NO_BUILTIN_ANCHORS */

/* ---- checking a chain ---- */

/* BearSSL's engine for chains, and around it what it does not do: addresses,
 * pins, dates without a clock, relay keys. One per node, for one handshake. */
typedef struct tn_tls_check {
    const br_x509_class    *vtable;         /* first: BearSSL sees only this      */
    bool                    clock;          /* unix_ms is the present, not a floor */
    bool                    pinned, pin_ok; /* only this certificate; and it came */
    bool                    extra;          /* certificates that are not meta     */
    bool                    ip_ok;          /* the first one names our address    */
    bool                    meta;
    uint32_t                count;          /* certificates so far                */
    const char             *name;           /* to be found; NULL: an address, or none */
    uint64_t                unix_ms;        /* the time certificates are held against */
    tn_tls_der              der;
    uint8_t                 meta_key[32];
    uint8_t                 pin[32];
    union {
        br_sha256_context    sha;           /* pinned: of the first certificate   */
#ifndef TAILNET_NO_BUILTIN_ANCHORS
        br_x509_trust_anchor roots[TN_TLS_ROOTS];
#endif
    } u;
    br_x509_minimal_context chain;
} tn_tls_check;

/* BearSSL counts days from the first of January of the year 0. */
static TN_NOINLINE void tn_tls_check_time(tn_tls_check *c, uint64_t unix_ms)
{
    c->unix_ms = unix_ms;
    br_x509_minimal_set_time(&c->chain, (uint32_t)(unix_ms / 86400000ul) + 719528ul,
                             (uint32_t)(unix_ms % 86400000ul) / 1000u);
}

static tn_tls_check *tn_tls_check_of(const br_x509_class **ctx)
{
    return (tn_tls_check *)(void *)ctx;
}

/* The name BearSSL offers is that of SNI; what has to be found may be another. */
static void tn_tls_x_start_chain(const br_x509_class **ctx, const char *server_name)
{
    tn_tls_check *c = tn_tls_check_of(ctx);
    (void)server_name;
    c->count  = 0;
    c->pin_ok = c->extra = c->meta = c->ip_ok = false;
    c->chain.vtable->start_chain(&c->chain.vtable, c->name);
}

/* Of a pinned chain BearSSL sees only the pinned certificate. */
static bool tn_tls_check_shown(const tn_tls_check *c) { return !c->pinned || c->count == 0; }

static void tn_tls_x_start_cert(const br_x509_class **ctx, uint32_t length)
{
    tn_tls_check *c = tn_tls_check_of(ctx);
    tn_tls_der_start(&c->der);
    if (c->pinned && c->count == 0) br_sha256_init(&c->u.sha);
    if (tn_tls_check_shown(c)) c->chain.vtable->start_cert(&c->chain.vtable, length);
}

/* Ours reads first: without a clock a certificate proves that it is at least as
 * late as its own beginning, and BearSSL must know before it looks at the date. */
static void tn_tls_x_append(const br_x509_class **ctx, const unsigned char *buf, size_t len)
{
    tn_tls_check *c = tn_tls_check_of(ctx);
    tn_tls_der_push(&c->der, buf, len);
    if (!c->clock && c->der.begin_unix_ms > c->unix_ms)
        tn_tls_check_time(c, c->der.begin_unix_ms);
    if (c->pinned && c->count == 0) br_sha256_update(&c->u.sha, buf, len);
    if (tn_tls_check_shown(c)) c->chain.vtable->append(&c->chain.vtable, buf, len);
}

static void tn_tls_x_end_cert(const br_x509_class **ctx)
{
    tn_tls_check *c = tn_tls_check_of(ctx);
    if (tn_tls_check_shown(c)) c->chain.vtable->end_cert(&c->chain.vtable);
    if (c->count == 0) {
        if (c->pinned) {
            uint8_t hash[32];
            br_sha256_out(&c->u.sha, hash);
            c->pin_ok = tn_equal(hash, c->pin, sizeof hash);
        }
        c->ip_ok = c->der.ip_found;         /* only the first names the server    */
    } else if (c->der.meta) {
        c->meta = true;
        tn_copy_key(c->meta_key, c->der.meta_key);
    } else {
        c->extra = true;
    }
    if (c->count != UINT32_MAX) c->count++;
}

/* 0 when the server is who we want, else why not. A pin replaces the root, so
 * "no root" is the good end there; name and date count as everywhere. */
static unsigned tn_tls_x_end_chain(const br_x509_class **ctx)
{
    tn_tls_check *c   = tn_tls_check_of(ctx);
    unsigned      err = c->chain.vtable->end_chain(&c->chain.vtable);
    if (c->pinned) {
        if (!c->pin_ok) return TN_TLS_ERR_PIN;
        if (c->extra) return TN_TLS_ERR_PIN_CHAIN;
        return err == BR_ERR_X509_NOT_TRUSTED ? 0u : err == 0 ? (unsigned)TN_TLS_ERR_PIN : err;
    }
    if (err == 0 && c->der.ip_len != 0 && !c->ip_ok) return BR_ERR_X509_BAD_SERVER_NAME;
    return err;
}

static const br_x509_pkey *tn_tls_x_get_pkey(const br_x509_class *const *ctx, unsigned *usages)
{
    const tn_tls_check *c = (const tn_tls_check *)(const void *)ctx;
    return c->chain.vtable->get_pkey(&c->chain.vtable, usages);
}

static const br_x509_class tn_tls_x_class = {
    sizeof(tn_tls_check), tn_tls_x_start_chain, tn_tls_x_start_cert, tn_tls_x_append,
    tn_tls_x_end_cert,    tn_tls_x_end_chain,   tn_tls_x_get_pkey
};

/* Whom to look for: name, address, pin. False when the text is none of these. */
static bool tn_tls_check_target(tn_tls_check *c, const tn_tls_want *want)
{
    static const char pin[] = "sha256-raw:";
    const char       *name  = want->host;
    const char       *cert  = want->certificate;
    tailnet_addr      ip;

    if (cert != NULL && tn_begins(cert, strlen(cert), pin)) {
        size_t skip = sizeof pin - 1;
        if (!tn_hex_parse(c->pin, sizeof c->pin, cert + skip, strlen(cert) - skip)) return false;
        c->pinned = true;
    } else if (cert != NULL && cert[0] != '\0') {
        name = cert;
    }
    if (name == NULL || name[0] == '\0') return false;
    if (tn_ip_parse(&ip, name, strlen(name))) {
        c->der.ip_len = (uint8_t)tn_ip_len(ip.family);
        memcpy(c->der.ip, ip.ip, sizeof c->der.ip);
    } else {
        c->name = name;
    }
    return true;
}

/* Makes the context ready for one chain. False: there is nothing to look for. */
static bool tn_tls_check_start(tn_tls_check *c, tn_rim *rim, const tn_tls_want *want)
{
    uint64_t                    unix_ms = tn_rim_unix_ms(rim);
    uint64_t                    floor   = tn_rim_unix_floor_ms(rim);
    const br_x509_trust_anchor *anchors = (const br_x509_trust_anchor *)want->anchors;
    size_t                      count   = anchors == NULL ? 0 : want->anchor_count;

    memset(c, 0, sizeof *c);
    c->vtable = &tn_tls_x_class;
    if (!tn_tls_check_target(c, want)) return false;
    if (c->pinned) {
        anchors = NULL;
        count   = 0;
    }
#ifndef TAILNET_NO_BUILTIN_ANCHORS
    if (!c->pinned && anchors == NULL) {
        for (count = 0; count < TN_TLS_ROOTS; count++)
            tn_tls_root_anchor(&c->u.roots[count], &tn_tls_roots[count]);
        anchors = c->u.roots;
    }
#endif
    br_x509_minimal_init(&c->chain, &br_sha256_vtable, anchors, count);
    br_x509_minimal_set_minrsa(&c->chain, 256);
    br_x509_minimal_set_hash(&c->chain, br_sha256_ID, &br_sha256_vtable);
    br_x509_minimal_set_hash(&c->chain, br_sha384_ID, &br_sha384_vtable);
    br_x509_minimal_set_hash(&c->chain, br_sha512_ID, &br_sha512_vtable);
    /* A clock that is behind what we know for sure has not been set. */
    c->clock = unix_ms >= floor;
    tn_tls_check_time(c, c->clock ? unix_ms : floor);
    return true;
}

/* ---- the engine ---- */

enum { TN_TLS_BITE = 512 };                 /* handshake bytes in one go: about one signature */

/* One end of a TLS connection. eng is our own client, or in a test or a server
 * BearSSL's server. What is received lies in BearSSL's input buffer; of that
 * the held bytes are not yet told to BearSSL. */
typedef struct tn_tls {
    br_ssl_engine_context *eng;             /* NULL: not in use                   */
    uint8_t               *held_at;
    size_t                 held;
    bool                   up;              /* the handshake is done              */
    bool                   meta;
    uint8_t                meta_key[32];
    br_ssl_client_context  client;
    uint8_t                out[TN_TLS_OUT_LEN];
} tn_tls;

/* Puts the ports over an engine that has been set up and reset. */
static void tn_tls_attach(tn_tls *t, br_ssl_engine_context *eng)
{
    t->eng     = eng;
    t->held_at = NULL;
    t->held    = 0;
    t->up      = false;
    t->meta    = false;
}

/* The suites and nothing else: what a Go server takes, and the order that suits
 * processors without AES. */
static void tn_tls_suites(br_ssl_engine_context *eng)
{
    static const uint16_t suites[] = {
#if TAILNET_TLS_AES
        BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        BR_TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        BR_TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
#else
        BR_TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        BR_TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
#endif
    };
    br_ssl_engine_set_versions(eng, BR_TLS12, BR_TLS12);
    br_ssl_engine_set_suites(eng, suites, sizeof suites / sizeof suites[0]);
    br_ssl_engine_set_hash(eng, br_sha256_ID, &br_sha256_vtable);
    br_ssl_engine_set_hash(eng, br_sha384_ID, &br_sha384_vtable);
    br_ssl_engine_set_hash(eng, br_sha512_ID, &br_sha512_vtable);
    br_ssl_engine_set_prf_sha256(eng, &br_tls12_sha256_prf);
    br_ssl_engine_add_flags(eng, BR_OPT_NO_RENEGOTIATION);
#if TAILNET_TLS_AES
    br_ssl_engine_set_prf_sha384(eng, &br_tls12_sha384_prf);
#  if UINTPTR_MAX > 0xffffffffu
    br_ssl_engine_set_default_aes_gcm(eng);
#  else
    br_ssl_engine_set_gcm(eng, &br_sslrec_in_gcm_vtable, &br_sslrec_out_gcm_vtable);
    br_ssl_engine_set_aes_ctr(eng, &br_aes_ct_ctr_vtable);
#    ifdef TAILNET_SLOW_MULTIPLY
    br_ssl_engine_set_ghash(eng, &br_ghash_ctmul32);
#    else
    br_ssl_engine_set_ghash(eng, &br_ghash_ctmul);
#    endif
#  endif
#endif
#if UINTPTR_MAX > 0xffffffffu
    br_ssl_engine_set_default_chapol(eng);
#else
    br_ssl_engine_set_chapol(eng, &br_sslrec_in_chapol_vtable, &br_sslrec_out_chapol_vtable);
    br_ssl_engine_set_chacha20(eng, &br_chacha20_ct_run);
#  ifdef TAILNET_SLOW_MULTIPLY
    br_ssl_engine_set_poly1305(eng, &br_poly1305_ctmul32_run);
#  else
    br_ssl_engine_set_poly1305(eng, &br_poly1305_ctmul_run);
#  endif
#endif
}

/* Elliptic curves and signatures, for the engine and for its checker. */
static void tn_tls_public_key(br_ssl_engine_context *eng, br_x509_minimal_context *chain)
{
#ifdef TAILNET_SLOW_MULTIPLY
    br_ssl_engine_set_ec(eng, &br_ec_all_m15);
    br_ssl_engine_set_ecdsa(eng, &br_ecdsa_i15_vrfy_asn1);
    br_ssl_engine_set_rsavrfy(eng, &br_rsa_i15_pkcs1_vrfy);
#else
    br_ssl_engine_set_ec(eng, &br_ec_all_m31);
    br_ssl_engine_set_ecdsa(eng, &br_ecdsa_i31_vrfy_asn1);
    br_ssl_engine_set_rsavrfy(eng, &br_rsa_i31_pkcs1_vrfy);
#endif
    br_x509_minimal_set_ecdsa(chain, br_ssl_engine_get_ec(eng), br_ssl_engine_get_ecdsa(eng));
    br_x509_minimal_set_rsa(chain, br_ssl_engine_get_rsavrfy(eng));
}

/* BearSSL's error, or one of ours; 0 while all is well or after a proper close. */
static int32_t tn_tls_error(const tn_tls *t)
{
    return t->eng == NULL ? 0 : (int32_t)br_ssl_engine_last_error(t->eng);
}

/* Begins a handshake over in_len bytes of buffer. OK; RANDOM; TLS when there is
 * nobody to look for (TN_TLS_ERR_TARGET) or the setting is impossible. */
static tailnet_result tn_tls_start(tn_tls *t, tn_tls_check *c, tn_rim *rim,
                                   const tn_tls_want *want, uint8_t *in, size_t in_len)
{
    br_ssl_engine_context *eng = &t->client.eng;
    uint8_t                seed[48];
    tailnet_addr           ip;
    bool                   sni;

    tn_tls_attach(t, NULL);
    if (!tn_tls_check_start(c, rim, want)) return TAILNET_ERR_TLS;
    if (!tn_rim_random(rim, seed, sizeof seed)) return TAILNET_ERR_RANDOM;
    br_ssl_client_zero(&t->client);
    tn_tls_suites(eng);
    tn_tls_public_key(eng, &c->chain);
    br_ssl_engine_set_x509(eng, &c->vtable);
    br_ssl_engine_set_buffers_bidi(eng, in, in_len, t->out, sizeof t->out);
    br_ssl_engine_inject_entropy(eng, seed, sizeof seed);
    tn_wipe(seed, sizeof seed);
    eng->rng_os_rand_done = 1;              /* a node is a function of its inputs */
    sni = !tn_ip_parse(&ip, want->host, strlen(want->host));
    tn_tls_attach(t, eng);
    return br_ssl_client_reset(&t->client, sni ? want->host : NULL, 0) ? TAILNET_OK
                                                                      : TAILNET_ERR_TLS;
}

/* Forgets keys and what was read. */
static void tn_tls_wipe(tn_tls *t)
{
    if (t->eng == &t->client.eng) tn_wipe(t, sizeof *t);
    tn_tls_attach(t, NULL);
}

/* ---- port 1: bytes from the connection ---- */

/* Where BearSSL wants its next bytes; the held ones lie in front of them. After
 * a bite it may want them elsewhere than they are. */
static uint8_t *tn_tls_hold(tn_tls *t, size_t *room)
{
    uint8_t *at = (uint8_t *)br_ssl_engine_recvrec_buf(t->eng, room);
    if (at == NULL) return NULL;
    TAILNET_ASSERT(t->held <= *room);
    if (t->held != 0 && at != t->held_at) memmove(at, t->held_at, t->held);
    t->held_at = at;
    return at;
}

/* Where received bytes go and how many fit; NULL when none do now. */
static uint8_t *tn_tls_in_reserve(tn_tls *t, size_t *room)
{
    uint8_t *at = tn_tls_hold(t, room);
    if (at == NULL || *room == t->held) {
        *room = 0;
        return NULL;
    }
    *room -= t->held;
    return at + t->held;
}

/* One step of the engine with bytes that were held. False: nothing to do. */
static bool tn_tls_turn(tn_tls *t)
{
    size_t room, n = t->held < TN_TLS_BITE ? t->held : (size_t)TN_TLS_BITE;
    if (n == 0 || tn_tls_hold(t, &room) == NULL) return false;
    t->held -= n;
    t->held_at += n;
    br_ssl_engine_recvrec_ack(t->eng, n);
    if ((br_ssl_engine_current_state(t->eng) & (BR_SSL_SENDAPP | BR_SSL_RECVAPP)) != 0)
        t->up = true;
    return true;
}

/* size bytes were put where reserve said. During the handshake they are only
 * held; later a whole record is decrypted here. */
static void tn_tls_in_commit(tn_tls *t, size_t size)
{
    size_t n = t->held + size;
    t->held  = t->up ? 0 : n;
    if (t->up && n != 0) br_ssl_engine_recvrec_ack(t->eng, n);
}

/* Is there work for turn? */
static bool tn_tls_waits(const tn_tls *t)
{
    size_t room;
    return t->eng != NULL && t->held != 0 && br_ssl_engine_recvrec_buf(t->eng, &room) != NULL;
}

/* ---- port 2: bytes to the connection ---- */

static const uint8_t *tn_tls_out(const tn_tls *t, size_t *len)
{
    return (const uint8_t *)br_ssl_engine_sendrec_buf(t->eng, len);
}

static void tn_tls_sent(tn_tls *t, size_t len)
{
    br_ssl_engine_sendrec_ack(t->eng, len);
    if ((br_ssl_engine_current_state(t->eng) & BR_SSL_SENDAPP) != 0) t->up = true;
}

/* ---- port 3: what was said to us ---- */

/* Plaintext where it lies; the rest of one record. NULL: none. */
static uint8_t *tn_tls_read(const tn_tls *t, size_t *len)
{
    return (uint8_t *)br_ssl_engine_recvapp_buf(t->eng, len);
}

static void tn_tls_ack(tn_tls *t, size_t len)
{
    if (len != 0) br_ssl_engine_recvapp_ack(t->eng, len);
}

/* ---- port 4: what we say ---- */

/* Room in the open record; NULL while a closed one is being sent. */
static uint8_t *tn_tls_reserve(const tn_tls *t, size_t *room)
{
    return (uint8_t *)br_ssl_engine_sendapp_buf(t->eng, room);
}

static void tn_tls_commit(tn_tls *t, size_t len)
{
    if (len != 0) br_ssl_engine_sendapp_ack(t->eng, len);
}

/* Closes the open record if anything is in it. */
static void tn_tls_flush(tn_tls *t) { br_ssl_engine_flush(t->eng, 0); }

/* Says close_notify as far as there is room for it. */
static void tn_tls_close(tn_tls *t) { br_ssl_engine_close(t->eng); }

static bool tn_tls_is_up(const tn_tls *t) { return t->up; }

/* Is this connection over, by error or by the other side's close_notify? Its
 * error says which. What was received before has all been read by then. */
static bool tn_tls_is_over(const tn_tls *t)
{
    unsigned state = br_ssl_engine_current_state(t->eng);
    return state == BR_SSL_CLOSED ||
           (t->up && (state & (BR_SSL_RECVREC | BR_SSL_RECVAPP | BR_SSL_SENDAPP)) == 0);
}

/* The handshake is done and the checker goes to the next: keep what it learnt. */
static void tn_tls_learn(tn_tls *t, const tn_tls_check *c)
{
    t->meta = c->meta;
    if (c->meta) tn_copy_key(t->meta_key, c->meta_key);
}

/* The relay key of the server's meta certificate; NULL: there was none. */
static const uint8_t *tn_tls_meta_key(const tn_tls *t) { return t->meta ? t->meta_key : NULL; }

#else /* TAILNET_TLS_NONE: no engine, every wish for TLS is answered "unsupported" */

#define TN_TLS_IN_LEN  1u
#define TN_TLS_LEAN_LEN 1u
#define TN_TLS_OUT_LEN 1u

typedef struct tn_tls {
    uint8_t none;
} tn_tls;
typedef struct tn_tls_check {
    uint8_t none;
} tn_tls_check;

static tailnet_result tn_tls_start(tn_tls *t, tn_tls_check *c, tn_rim *rim,
                                   const tn_tls_want *want, uint8_t *in, size_t in_len)
{
    (void)t, (void)c, (void)rim, (void)want, (void)in, (void)in_len;
    return TAILNET_ERR_UNSUPPORTED;
}

static uint8_t *tn_tls_none(size_t *len)
{
    *len = 0;
    return NULL;
}

static int32_t        tn_tls_error(const tn_tls *t) { (void)t; return 0; }
static void           tn_tls_wipe(tn_tls *t) { (void)t; }
static uint8_t       *tn_tls_in_reserve(tn_tls *t, size_t *n) { (void)t; return tn_tls_none(n); }
static bool           tn_tls_turn(tn_tls *t) { (void)t; return false; }
static void           tn_tls_in_commit(tn_tls *t, size_t n) { (void)t, (void)n; }
static bool           tn_tls_waits(const tn_tls *t) { (void)t; return false; }
static const uint8_t *tn_tls_out(const tn_tls *t, size_t *n) { (void)t; return tn_tls_none(n); }
static void           tn_tls_sent(tn_tls *t, size_t n) { (void)t, (void)n; }
static uint8_t       *tn_tls_read(const tn_tls *t, size_t *n) { (void)t; return tn_tls_none(n); }
static void           tn_tls_ack(tn_tls *t, size_t n) { (void)t, (void)n; }
static uint8_t       *tn_tls_reserve(const tn_tls *t, size_t *n) { (void)t; return tn_tls_none(n); }
static void           tn_tls_commit(tn_tls *t, size_t n) { (void)t, (void)n; }
static void           tn_tls_flush(tn_tls *t) { (void)t; }
static void           tn_tls_close(tn_tls *t) { (void)t; }
static bool           tn_tls_is_up(const tn_tls *t) { (void)t; return false; }
static bool           tn_tls_is_over(const tn_tls *t) { (void)t; return true; }
static void tn_tls_learn(tn_tls *t, const tn_tls_check *c) { (void)t, (void)c; }
static const uint8_t *tn_tls_meta_key(const tn_tls *t) { (void)t; return NULL; }

#endif /* TAILNET_TLS */

/* ======================================================================== *
 * >>link — one TCP connection, from wish to bytes.
 *
 * Owns:    the slots: their handles, who has which TLS engine, what waits to
 *          be sent, the CONNECT through a proxy.
 * Calls:   >>base, >>rim, >>http (CONNECT), >>tls.
 * States:  IDLE -> OPENING -> PROXY -> QUEUED -> HANDSHAKE -> OPEN -> CLOSING
 *          -> IDLE. PROXY only with a proxy, QUEUED and HANDSHAKE only with
 *          TLS of ours. From every state but IDLE straight to CLOSING.
 * Always:  io.tcp_open was called and io.tcp_close was not, exactly while the
 *          state is not IDLE. Every state but IDLE and OPEN has a deadline. At
 *          most one link is in HANDSHAKE. An input call does no public-key
 *          work. A slot is not used again before its end has been told.
 * Trust:   handles come from the caller and may be old. Bytes of a proxy, and
 *          of a link without TLS, may be anybody's.
 * ======================================================================== */

typedef enum tn_link_state {
    TN_LINK_IDLE, TN_LINK_OPENING, TN_LINK_PROXY, TN_LINK_QUEUED, TN_LINK_HANDSHAKE, TN_LINK_OPEN,
    TN_LINK_CLOSING
} tn_link_state;

typedef enum tn_link_event {
    TN_LINK_WANTED, TN_LINK_TCP_UP, TN_LINK_PROXY_UP, TN_LINK_TURN, TN_LINK_TLS_UP, TN_LINK_ENDS,
    TN_LINK_FREED
} tn_link_event;

enum { TN_LINK_STATES = 7, TN_LINK_NO_ENGINE = 255 };

/* With a smaller record allowed to control than to relays, the first of several engines has
 * a smaller buffer and is not for relays. */
#define TN_LINK_LEAN(engines) (TAILNET_CONTROL_RECORD < 16384 && (engines) > 1)

/* Whom news of a link are for; the node's dispatch. */
enum { TN_LINK_FOR_NOBODY, TN_LINK_FOR_CONTROL, TN_LINK_FOR_KEY, TN_LINK_FOR_RELAY };

/* What there is to know about a link. READABLE as long as it is so, the others
 * once; GONE comes last, but what was received is still readable with it. */
enum {
    TN_LINK_OPENED = 1 << 0, TN_LINK_READABLE = 1 << 1, TN_LINK_WRITABLE = 1 << 2,
    TN_LINK_GONE   = 1 << 3
};

enum {
    TN_LINK_HOST_MAX  = 256,                /* name of a proxy, with its end      */
    TN_LINK_USER_MAX  = 128,                /* user:password of a proxy, with end */
    TN_LINK_PIECE     = 128,                /* of a CONNECT request in one go     */
    TN_LINK_HEAD_MAX  = 8192                /* bytes of a proxy's answer          */
};

typedef struct tn_link {
    tn_link_state  state;
    uint8_t        engine;                  /* or TN_LINK_NO_ENGINE               */
    uint8_t        bits;                    /* news not yet fetched               */
    uint8_t        purpose;
    uint8_t        line;                    /* 0: nothing yet in this header line */
    bool           proxied;
    bool           sending;                 /* out is closed and being sent       */
    bool           blocked;                 /* tcp_output took less than it could */
    bool           starved;                 /* the owner wanted room, had none    */
    bool           fresh;                   /* bytes came since the last fetch    */
    bool           ended;                   /* TCP is gone, held bytes are not    */
    bool           told;                    /* the owner knows that it is over    */
    bool           dropped;                 /* because he closed it               */
    tailnet_result why;                     /* what closed it                     */
    uint16_t       sent, seen, status;      /* of CONNECT and of its answer       */
    uint16_t       port;
    tailnet_link   handle;                  /* slot | generation << 8; 0: never used */
    int32_t        detail;
    uint64_t       deadline_ms;             /* TN_NEVER when none                 */
    const char    *host, *certificate;      /* the owner's; valid until OPEN      */
    uint8_t       *in, *out;                /* lent by the owner, without an engine */
    uint32_t       in_cap, in_from, in_to;  /* unread is from in_from to in_to    */
    uint32_t       out_cap, out_from, out_to;
    uint32_t       queued;                  /* plaintext in the open record       */
} tn_link;

typedef struct tn_links {                   /* zero it, fill the first part, init */
    tn_rim       *rim;
    tn_link      *slots;
    tn_tls       *engines;
    uint8_t      *engine_in;                /* tn_link_engines_in() bytes         */
    uint32_t      engine_in_len;            /* 0: TN_TLS_IN_LEN                   */
    tn_tls_check *check;
    const void   *anchors;                  /* of desc                            */
    size_t        anchor_count;
    const char   *proxy;                    /* "[user:password@]host:port" or NULL */
    uint8_t       slot_count, engine_count;
    bool          tls_by_caller;
} tn_links;

typedef struct tn_link_news {
    tailnet_link   link;
    uint8_t        purpose, bits;
    tailnet_result why;                     /* of GONE; OK: a proper close_notify */
    int32_t        detail;                  /* TLS code, or a proxy's status      */
} tn_link_news;

/* From row to column: may that happen? */
static const uint8_t tn_link_arrows[TN_LINK_STATES] = {
    /* IDLE      */ 1u << TN_LINK_OPENING,
    /* OPENING   */ 1u << TN_LINK_PROXY | 1u << TN_LINK_QUEUED | 1u << TN_LINK_OPEN |
                    1u << TN_LINK_CLOSING,
    /* PROXY     */ 1u << TN_LINK_QUEUED | 1u << TN_LINK_OPEN | 1u << TN_LINK_CLOSING,
    /* QUEUED    */ 1u << TN_LINK_HANDSHAKE | 1u << TN_LINK_CLOSING,
    /* HANDSHAKE */ 1u << TN_LINK_OPEN | 1u << TN_LINK_CLOSING,
    /* OPEN      */ 1u << TN_LINK_CLOSING,
    /* CLOSING   */ 1u << TN_LINK_IDLE
};

static const uint16_t tn_link_patience_ms[TN_LINK_STATES] = {
    /* IDLE */ 0, /* OPENING */ 10000, /* PROXY */ 10000, /* QUEUED */ 20000,
    /* HANDSHAKE */ 15000, /* OPEN */ 0, /* CLOSING */ 1 /* next poll */
};

/* ---- the machine ---- */

/* The only place where state changes. */
static void tn_link_enter(tn_link *l, tn_link_state next, uint64_t now_ms)
{
    uint32_t patience = tn_link_patience_ms[next];
    TAILNET_ASSERT((tn_link_arrows[l->state] >> next & 1u) != 0);
    l->state       = next;
    l->deadline_ms = patience == 0 ? TN_NEVER : tn_time_add(now_ms, patience);
    l->blocked     = false;
    if (next == TN_LINK_OPEN) l->bits |= TN_LINK_OPENED;
    if (next == TN_LINK_CLOSING && !l->dropped) l->bits |= TN_LINK_GONE;
}

/* One switch; every state answers every event it can meet and ignores the rest. */
static void tn_link_step(tn_link *l, tn_link_event event, uint64_t now_ms)
{
    tn_link_state up = l->engine == TN_LINK_NO_ENGINE ? TN_LINK_OPEN : TN_LINK_QUEUED;
    switch (l->state) {
    case TN_LINK_IDLE:
        if (event == TN_LINK_WANTED) tn_link_enter(l, TN_LINK_OPENING, now_ms);
        return;
    case TN_LINK_OPENING:
        if (event == TN_LINK_TCP_UP) tn_link_enter(l, l->proxied ? TN_LINK_PROXY : up, now_ms);
        break;
    case TN_LINK_PROXY:
        if (event == TN_LINK_PROXY_UP) tn_link_enter(l, up, now_ms);
        break;
    case TN_LINK_QUEUED:
        if (event == TN_LINK_TURN) tn_link_enter(l, TN_LINK_HANDSHAKE, now_ms);
        break;
    case TN_LINK_HANDSHAKE:
        if (event == TN_LINK_TLS_UP) tn_link_enter(l, TN_LINK_OPEN, now_ms);
        break;
    case TN_LINK_OPEN:
        break;
    case TN_LINK_CLOSING:
        if (event == TN_LINK_FREED) tn_link_enter(l, TN_LINK_IDLE, now_ms);
        return;
    }
    if (event == TN_LINK_ENDS) tn_link_enter(l, TN_LINK_CLOSING, now_ms);
}

/* It is over, and this is why; the first cause counts. */
static void tn_link_end(const tn_links *t, tn_link *l, tailnet_result why, int32_t detail)
{
    if (l->state == TN_LINK_IDLE || l->state == TN_LINK_CLOSING) return;
    l->why    = why;
    l->detail = detail;
    tn_link_step(l, TN_LINK_ENDS, t->rim->now_ms);
}

/* ---- finding ---- */

static void tn_link_init(tn_links *t)
{
    unsigned i;
    for (i = 0; i < t->slot_count; i++) {
        memset(&t->slots[i], 0, sizeof t->slots[i]);
        t->slots[i].deadline_ms = TN_NEVER;
        t->slots[i].engine      = TN_LINK_NO_ENGINE;
    }
    if (t->engine_in_len == 0) t->engine_in_len = TN_TLS_IN_LEN;
}

/* The slot of a handle; NULL when that connection has been freed. */
static tn_link *tn_link_find(const tn_links *t, tailnet_link h)
{
    unsigned slot = TAILNET_LINK_SLOT(h);
    if (slot >= t->slot_count || t->slots[slot].state == TN_LINK_IDLE) return NULL;
    return t->slots[slot].handle == h ? &t->slots[slot] : NULL;
}

/* The same for owners, who may not use a link they have closed. */
static tn_link *tn_link_owned(const tn_links *t, tailnet_link h)
{
    tn_link *l = tn_link_find(t, h);
    return l == NULL || l->dropped ? NULL : l;
}

/* ... and only while it can send. */
static tn_link *tn_link_able(const tn_links *t, tailnet_link h)
{
    tn_link *l = tn_link_owned(t, h);
    return l == NULL || l->state != TN_LINK_OPEN ? NULL : l;
}

/* The TLS engine of a link, NULL when it has none. */
static tn_tls *tn_link_tls(const tn_links *t, const tn_link *l)
{
    return l->engine == TN_LINK_NO_ENGINE ? NULL : &t->engines[l->engine];
}

static uint8_t *tn_link_engine_in(const tn_links *t, const tn_link *l)
{
    bool lean = TN_LINK_LEAN(t->engine_count) && l->engine != 0;
    return t->engine_in + (size_t)l->engine * t->engine_in_len -
           (size_t)lean * (TN_TLS_IN_LEN - TN_TLS_LEAN_LEN);
}

/* Bytes there. */
static uint32_t tn_link_engine_in_len(const tn_links *t, const tn_link *l)
{
    bool lean = TN_LINK_LEAN(t->engine_count) && l->engine == 0;
    return lean ? (uint32_t)TN_TLS_LEAN_LEN : t->engine_in_len;
}

/* Bytes of input buffers that so many engines take. */
static size_t tn_link_engines_in(unsigned engines)
{
    if (!TN_LINK_LEAN(engines)) return (size_t)engines * TN_TLS_IN_LEN;
    return (engines - 1u) * (size_t)TN_TLS_IN_LEN + TN_TLS_LEAN_LEN;
}

/* Is it the turn of one of the waiting links? */
static bool tn_link_nobody_shakes(const tn_links *t)
{
    unsigned i;
    for (i = 0; i < t->slot_count; i++)
        if (t->slots[i].state == TN_LINK_HANDSHAKE) return false;
    return true;
}

/* ---- opening ---- */

/* "user:password@host:port" in pieces. False when it is no such text. */
static bool tn_link_proxy_parse(const char *text, char *user, char *host, uint16_t *port)
{
    size_t   len = strlen(text), at = len, colon = len;
    uint32_t v   = 0;
    while (at != 0 && text[at - 1] != '@') at--;
    while (colon != at && text[colon - 1] != ':') colon--;
    if (colon == at || !tn_u32_parse(text + colon, len - colon, 65535, &v) || v == 0) return false;
    *port = (uint16_t)v;
    colon--;
    if (at != 0 && !tn_text_copy(user, TN_LINK_USER_MAX, text, at - 1)) return false;
    if (at == 0) user[0] = '\0';
    if (colon >= at + 2 && text[at] == '[' && text[colon - 1] == ']') {
        at++;
        colon--;
    }
    return colon != at && tn_text_copy(host, TN_LINK_HOST_MAX, text + at, colon - at);
}

/* An engine for that purpose that no link has, or TN_LINK_NO_ENGINE. */
static uint8_t tn_link_free_engine(const tn_links *t, uint8_t purpose)
{
    unsigned e = TN_LINK_LEAN(t->engine_count) && purpose == TN_LINK_FOR_RELAY, i;
    for (; e < t->engine_count; e++) {
        for (i = 0; i < t->slot_count && t->slots[i].engine != e; i++) {}
        if (i == t->slot_count) return (uint8_t)e;
    }
    return TN_LINK_NO_ENGINE;
}

/* An idle slot with its next handle; NULL: all in use. */
static tn_link *tn_link_take(tn_links *t)
{
    unsigned i;
    for (i = 0; i < t->slot_count; i++) {
        tn_link *l          = &t->slots[i];
        uint32_t generation = l->handle >> 8;
        if (l->state != TN_LINK_IDLE) continue;
        memset(l, 0, sizeof *l);
        l->handle      = i | (generation == 0xfffffful ? 1u : generation + 1u) << 8;
        l->engine      = TN_LINK_NO_ENGINE;
        l->deadline_ms = TN_NEVER;
        return l;
    }
    return NULL;
}

/* Calls tcp_open, for the proxy if there is one. False: it cannot begin. */
static bool tn_link_dial(tn_links *t, tn_link *l, const tailnet_dial *dial)
{
    tailnet_dial d = *dial;
    char         user[TN_LINK_USER_MAX], host[TN_LINK_HOST_MAX];
    if (!t->tls_by_caller) {
        d.tls         = false;
        d.certificate = NULL;
    }
    if (l->proxied) {
        memset(&d, 0, sizeof d);
        if (!tn_link_proxy_parse(t->proxy, user, host, &d.port)) return false;
        tn_wipe(user, sizeof user);
        d.host = host;
    }
    return tn_rim_tcp_open(t->rim, l->handle, &d);
}

/* Wants a connection; only from poll. dial->tls says whether it has to be TLS,
 * whoever does it. host and certificate must stay until it is OPEN or GONE.
 * AGAIN: no slot or engine is free; UNSUPPORTED: TLS and no way to do it;
 * NETWORK: tcp_open refused, there is nothing to close. */
static tailnet_result tn_link_open(tn_links *t, const tailnet_dial *dial, uint8_t purpose,
                                   tailnet_link *out)
{
    bool     ours   = dial->tls && !t->tls_by_caller;
    uint8_t  engine = TN_LINK_NO_ENGINE;
    tn_link *l;

    *out = 0;
    if (ours && (t->engine_count == 0 || TAILNET_TLS == TAILNET_TLS_NONE))
        return TAILNET_ERR_UNSUPPORTED;
    if (t->proxy != NULL && dial->tls && t->tls_by_caller) return TAILNET_ERR_UNSUPPORTED;
    if (ours) engine = tn_link_free_engine(t, purpose);
    if (ours && engine == TN_LINK_NO_ENGINE) return TAILNET_ERR_AGAIN;
    l = tn_link_take(t);
    if (l == NULL) return TAILNET_ERR_AGAIN;
    l->host        = dial->host;
    l->certificate = dial->certificate;
    l->port        = dial->port;
    l->purpose     = purpose;
    l->proxied     = t->proxy != NULL;
    if (!tn_link_dial(t, l, dial)) return TAILNET_ERR_NETWORK;
    l->engine = engine;
    tn_link_step(l, TN_LINK_WANTED, t->rim->now_ms);
    *out = l->handle;
    return TAILNET_OK;
}

/* For a link without an engine: where received bytes go, and where reserve has
 * its room. Only while nothing is unread and nothing unsent. Without in nothing
 * is taken from the connection; without out only tn_link_write sends. */
static void tn_link_lend(tn_links *t, tailnet_link h, uint8_t *in, size_t in_cap, uint8_t *out,
                         size_t out_cap)
{
    tn_link *l = tn_link_owned(t, h);
    if (l == NULL || l->engine != TN_LINK_NO_ENGINE) return;
    TAILNET_ASSERT(l->in_from == l->in_to && l->out_from == l->out_to);
    l->in      = in;
    l->in_cap  = in == NULL ? 0 : (uint32_t)in_cap;
    l->out     = out;
    l->out_cap = out == NULL ? 0 : (uint32_t)out_cap;
    l->in_from = l->in_to = l->out_from = l->out_to = 0;
}

static bool tn_link_has_engine(const tn_links *t, tailnet_link h)
{
    const tn_link *l = tn_link_owned(t, h);
    return l != NULL && l->engine != TN_LINK_NO_ENGINE;
}

/* ---- sending ---- */

/* The closed record, or what of it is left; NULL: nothing is to be sent. */
static const uint8_t *tn_link_out(const tn_link *l, const tn_tls *tls, size_t *len)
{
    if (tls != NULL) return tn_tls_out(tls, len);
    *len = l->sending ? l->out_to - l->out_from : 0;
    return *len == 0 ? NULL : l->out + l->out_from;
}

/* Room in the open record; NULL: none. */
static uint8_t *tn_link_room(const tn_link *l, const tn_tls *tls, size_t *room)
{
    if (tls != NULL) return tn_tls_reserve(tls, room);
    *room = l->sending ? 0 : l->out_cap - l->out_to;
    return *room == 0 ? NULL : l->out + l->out_to;
}

static void tn_link_out_sent(tn_link *l, tn_tls *tls, size_t len)
{
    if (tls != NULL) {
        tn_tls_sent(tls, len);
        return;
    }
    l->out_from += (uint32_t)len;
    if (l->out_from != l->out_to) return;
    l->out_from = l->out_to = 0;
    l->sending  = false;
}

/* Offers what is closed to tcp_output until it is gone or not wanted. Every turn
 * but the last sends bytes, of which there are no more than one flight. */
static void tn_link_offer(tn_links *t, tn_link *l)
{
    tn_tls        *tls = tn_link_tls(t, l);
    const uint8_t *data;
    size_t         len;
    while ((data = tn_link_out(l, tls, &len)) != NULL) {
        int32_t taken = tn_rim_tcp_output(t->rim, l->handle, data, len);
        if (taken < 0) {
            tn_link_end(t, l, TAILNET_ERR_NETWORK, 0);
            return;
        }
        l->blocked = (size_t)taken < len;
        if (taken != 0) tn_link_out_sent(l, tls, (size_t)taken);
        if (l->blocked) return;
    }
    l->blocked = false;
    if (l->starved && l->state == TN_LINK_OPEN) {
        l->starved = false;
        l->bits |= TN_LINK_WRITABLE;
    }
}

/* Room in the open record; NULL: not now, WRITABLE will tell. */
static uint8_t *tn_link_reserve(tn_links *t, tailnet_link h, size_t *room)
{
    tn_link *l = tn_link_able(t, h);
    uint8_t *at;
    *room = 0;
    if (l == NULL) return NULL;
    at = tn_link_room(l, tn_link_tls(t, l), room);
    if (at == NULL) l->starved = true;
    return at;
}

/* len bytes were put where reserve said. */
static void tn_link_commit(tn_links *t, tailnet_link h, size_t len)
{
    tn_link *l = tn_link_able(t, h);
    size_t   room;
    if (l == NULL || len == 0) return;
    if (tn_link_room(l, tn_link_tls(t, l), &room) == NULL || len > room) {
        TAILNET_ASSERT(len == 0);
        return;
    }
    if (l->engine != TN_LINK_NO_ENGINE) tn_tls_commit(tn_link_tls(t, l), len);
    else l->out_to += (uint32_t)len;
    l->queued = len == room ? 0 : l->queued + (uint32_t)len;    /* a full one is closed */
}

/* Closes the open record and offers it. */
static void tn_link_flush(tn_links *t, tailnet_link h)
{
    tn_link *l = tn_link_able(t, h);
    if (l == NULL) return;
    l->queued = 0;
    if (l->engine != TN_LINK_NO_ENGINE) tn_tls_flush(tn_link_tls(t, l));
    else if (l->out_to != 0) l->sending = true;
    tn_link_offer(t, l);
}

/* Sends a copy of data at once. Returns the bytes taken; with fewer than len
 * WRITABLE will tell when to go on. */
static size_t tn_link_write(tn_links *t, tailnet_link h, const void *data, size_t len)
{
    const uint8_t *src  = (const uint8_t *)data;
    tn_link       *l    = tn_link_able(t, h);
    size_t         done = 0, room;
    if (l == NULL) return 0;
    if (l->engine == TN_LINK_NO_ENGINE && l->out_cap == 0) {
        int32_t taken = len == 0 ? 0 : tn_rim_tcp_output(t->rim, h, src, len);
        if (taken < 0) tn_link_end(t, l, TAILNET_ERR_NETWORK, 0);
        done       = taken < 0 ? 0 : (size_t)taken;
        l->starved = done < len;
        l->blocked = l->starved;
        return done;
    }
    while (done < len) {                    /* each turn fills a record           */
        uint8_t *at = tn_link_reserve(t, h, &room);
        if (at == NULL) break;
        if (room > len - done) room = len - done;
        memcpy(at, src + done, room);
        tn_link_commit(t, h, room);
        done += room;
        tn_link_flush(t, h);
    }
    return done;
}

/* The connection takes bytes again. During a handshake poll goes on with it. */
static tailnet_result tn_link_tcp_writable(tn_links *t, tailnet_link h)
{
    tn_link *l = tn_link_find(t, h);
    if (l == NULL) return TAILNET_ERR_STALE;
    l->blocked = false;
    if (l->state == TN_LINK_OPEN) tn_link_offer(t, l);
    return TAILNET_OK;
}

/* ---- receiving ---- */

/* Received plaintext where it lies; it may be changed there. NULL: none. Also
 * after the other side has gone, until the end of that poll. */
static uint8_t *tn_link_read(tn_links *t, tailnet_link h, size_t *len)
{
    tn_link *l   = tn_link_owned(t, h);
    tn_tls  *tls = l == NULL ? NULL : tn_link_tls(t, l);
    *len = 0;
    if (l == NULL || l->state < TN_LINK_OPEN) return NULL;
    if (tls != NULL) return tn_tls_is_up(tls) ? tn_tls_read(tls, len) : NULL;
    *len = l->in_to - l->in_from;
    return *len == 0 ? NULL : l->in + l->in_from;
}

/* len of these bytes are used up. */
static void tn_link_ack(tn_links *t, tailnet_link h, size_t len)
{
    tn_link *l = tn_link_owned(t, h);
    size_t   have;
    if (tn_link_read(t, h, &have) == NULL || len > have) {
        TAILNET_ASSERT(len == 0);
        return;
    }
    if (l->engine != TN_LINK_NO_ENGINE) {
        tn_tls_ack(tn_link_tls(t, l), len);
        return;
    }
    l->in_from += (uint32_t)len;
    if (l->in_from == l->in_to) l->in_from = l->in_to = 0;
}

/* Where received bytes go now and how many fit; NULL: none. */
static uint8_t *tn_link_in_room(tn_links *t, tn_link *l, size_t *room)
{
    tn_tls *tls = tn_link_tls(t, l);
    *room = 0;
    switch (l->state) {
    case TN_LINK_PROXY:
        if (tls == NULL) break;
        *room = tn_link_engine_in_len(t, l);    /* not yet in use by TLS          */
        return tn_link_engine_in(t, l);
    case TN_LINK_HANDSHAKE:
        return tn_tls_in_reserve(tls, room);
    case TN_LINK_OPEN:
        if (tls != NULL) return tn_tls_in_reserve(tls, room);
        break;
    case TN_LINK_IDLE:
    case TN_LINK_OPENING:
    case TN_LINK_QUEUED:
    case TN_LINK_CLOSING:
        return NULL;
    }
    *room = l->in_cap - l->in_to;
    return *room == 0 ? NULL : l->in + l->in_to;
}

static uint8_t *tn_link_in_reserve(tn_links *t, tailnet_link h, size_t *room)
{
    tn_link *l = tn_link_find(t, h);
    *room = 0;
    return l == NULL ? NULL : tn_link_in_room(t, l, room);
}

/* One byte of a proxy's answer (RFC 9110 section 9.3.6: a 2xx has no body).
 * Returns true at its end; status 0 then means that it was none. */
static bool tn_link_proxy_byte(tn_link *l, uint8_t c)
{
    static const char start[] = "HTTP/1.x ";
    unsigned          at      = l->seen++;
    if (at < 9) return at == 7 ? c != '0' && c != '1' : c != (uint8_t)start[at];
    if (at < 12) {
        bool digit = c >= '0' && c <= '9';
        l->status  = digit ? (uint16_t)(l->status * 10u + (c - '0')) : (uint16_t)0;
        l->line    = 1;                     /* the first line is not the blank one */
        return !digit;
    }
    if ((at == 12 && c != ' ' && c != '\r' && c != '\n') || l->seen == TN_LINK_HEAD_MAX) {
        l->status = 0;
        return true;
    }
    if (c == '\n' && l->line == 0) return true;
    if (c == '\n') l->line = 0;
    else if (c != '\r') l->line = 1;
    return false;
}

/* Bytes of a proxy. What follows its answer is the other side's, which never
 * speaks first in TLS; without TLS it is kept. */
static void tn_link_proxy_in(tn_links *t, tn_link *l, const uint8_t *data, size_t len)
{
    size_t at = 0;
    bool   whole = false;
    while (at < len && !whole) whole = tn_link_proxy_byte(l, data[at++]);
    if (!whole) return;
    if (l->status < 200 || l->status > 299 || (at < len && l->engine != TN_LINK_NO_ENGINE)) {
        tn_link_end(t, l, TAILNET_ERR_NETWORK, l->status);
        return;
    }
    if (at < len) {
        memmove(l->in, data + at, len - at);
        l->in_to = (uint32_t)(len - at);
    }
    tn_link_step(l, TN_LINK_PROXY_UP, t->rim->now_ms);
}

/* TLS has come to an end: by error, or because the other side said so. */
static void tn_link_look_over(tn_links *t, tn_link *l)
{
    const tn_tls *tls = tn_link_tls(t, l);
    int32_t       err;
    if (tls == NULL || !tn_tls_is_over(tls)) return;
    err = tn_tls_error(tls);
    tn_link_end(t, l,
                err != 0            ? TAILNET_ERR_TLS
                : tn_tls_is_up(tls) ? TAILNET_OK
                                    : TAILNET_ERR_NETWORK,
                err);
}

/* size bytes were put where in_reserve said. On an open link a record may be
 * opened now: fetch the news. */
static tailnet_result tn_link_in_commit(tn_links *t, tailnet_link h, size_t size)
{
    tn_link *l = tn_link_find(t, h);
    uint8_t *at;
    size_t   room;
    if (l == NULL) return TAILNET_ERR_STALE;
    if (size == 0 || l->state == TN_LINK_CLOSING) return TAILNET_OK;
    at = tn_link_in_room(t, l, &room);
    TAILNET_ASSERT(at != NULL && size <= room);
    if (at == NULL || size > room) return TAILNET_ERR_ARGUMENT;
    l->fresh = true;
    if (l->state == TN_LINK_PROXY) {
        tn_link_proxy_in(t, l, at, size);
    } else if (l->engine == TN_LINK_NO_ENGINE) {
        l->in_to += (uint32_t)size;
    } else {
        tn_tls_in_commit(tn_link_tls(t, l), size);
        if (l->state == TN_LINK_OPEN) tn_link_look_over(t, l);
    }
    return TAILNET_OK;
}

/* ---- what else the caller reports ---- */

static tailnet_result tn_link_tcp_opened(tn_links *t, tailnet_link h)
{
    tn_link *l = tn_link_find(t, h);
    if (l == NULL) return TAILNET_ERR_STALE;
    tn_link_step(l, TN_LINK_TCP_UP, t->rim->now_ms);
    return TAILNET_OK;
}

/* A handshake may still have the reason in its held bytes; poll looks there. */
static tailnet_result tn_link_tcp_closed(tn_links *t, tailnet_link h)
{
    tn_link *l = tn_link_find(t, h);
    if (l == NULL) return TAILNET_ERR_STALE;
    l->ended = true;
    if (l->state != TN_LINK_HANDSHAKE || !tn_tls_waits(tn_link_tls(t, l)))
        tn_link_end(t, l, TAILNET_ERR_NETWORK, 0);
    return TAILNET_OK;
}

/* The owner is done with it and hears no more of it. Its memory is freed in the
 * sweep of a poll, so bytes it is reading stay where they are until then. */
static void tn_link_close(tn_links *t, tailnet_link h, tailnet_result why)
{
    tn_link *l = tn_link_owned(t, h);
    if (l == NULL) return;
    l->dropped = l->told = true;
    l->bits    = 0;
    tn_link_end(t, l, why, 0);
}

/* ---- poll ---- */

/* CONNECT, built again for each piece of it (RFC 9110 section 9.3.6). */
static void tn_link_ask_proxy(tn_links *t, tn_link *l)
{
    char       user[TN_LINK_USER_MAX], host[TN_LINK_HOST_MAX];
    uint8_t    piece[TN_LINK_PIECE];
    tn_h1_host target;
    uint16_t   port;
    tn_wr      w;
    bool       ok = tn_link_proxy_parse(t->proxy, user, host, &port);

    target.name  = l->host;
    target.port  = l->port;
    target.usual = 0;
    l->blocked   = false;
    while (ok && l->state == TN_LINK_PROXY && !l->blocked) {
        int32_t taken;
        tn_wr_window(&w, piece, sizeof piece, l->sent);
        ok = tn_h1_build_connect(&w, &target, user[0] == '\0' ? NULL : user);
        if (!ok || tn_wr_len(&w) == 0) break;
        taken = tn_rim_tcp_output(t->rim, l->handle, piece, tn_wr_len(&w));
        ok    = taken >= 0;
        if (!ok) break;
        l->blocked = (size_t)taken < tn_wr_len(&w);
        l->sent    = (uint16_t)(l->sent + (unsigned)taken);
    }
    tn_wipe(user, sizeof user);
    tn_wipe(piece, sizeof piece);
    if (!ok) tn_link_end(t, l, TAILNET_ERR_NETWORK, 0);
}

/* The first of the waiting links to be served has the checker for itself. */
static TN_NOINLINE void tn_link_begin_tls(tn_links *t, tn_link *l)
{
    tn_tls        *tls = tn_link_tls(t, l);
    tn_tls_want    want;
    tailnet_result r;
    want.host         = l->host;
    want.certificate  = l->certificate;
    want.anchors      = t->anchors;
    want.anchor_count = t->anchor_count;
    r = tn_tls_start(tls, t->check, t->rim, &want, tn_link_engine_in(t, l),
                     tn_link_engine_in_len(t, l));
    tn_link_step(l, TN_LINK_TURN, t->rim->now_ms);
    if (r != TAILNET_OK) {
        int32_t err = tn_tls_error(tls);
        tn_link_end(t, l, r, err != 0 || r != TAILNET_ERR_TLS ? err : TN_TLS_ERR_TARGET);
    }
}

/* One step of a handshake, and what it says. Returns true if it took work. */
static bool tn_link_shake(tn_links *t, tn_link *l)
{
    tn_tls *tls    = tn_link_tls(t, l);
    bool    worked = tn_tls_turn(tls);
    tn_link_offer(t, l);
    if (l->state != TN_LINK_HANDSHAKE) return worked;
    if (tn_tls_is_up(tls)) {
        tn_tls_learn(tls, t->check);
        tn_link_step(l, TN_LINK_TLS_UP, t->rim->now_ms);
    }
    tn_link_look_over(t, l);
    if (l->ended && !tn_tls_waits(tls))
        tn_link_end(t, l, TAILNET_ERR_NETWORK, 0);
    return worked;
}

static bool tn_link_poll_one(tn_links *t, tn_link *l)
{
    if (l->deadline_ms <= t->rim->now_ms && l->state != TN_LINK_CLOSING)
        tn_link_end(t, l, TAILNET_ERR_TIMEOUT, 0);
    switch (l->state) {
    case TN_LINK_PROXY:
        tn_link_ask_proxy(t, l);
        break;
    case TN_LINK_QUEUED:
        if (tn_link_nobody_shakes(t)) tn_link_begin_tls(t, l);
        if (l->state == TN_LINK_HANDSHAKE) tn_link_offer(t, l);
        break;
    case TN_LINK_HANDSHAKE:
        return tn_link_shake(t, l);
    case TN_LINK_OPEN:
        tn_link_offer(t, l);
        tn_link_look_over(t, l);
        break;
    case TN_LINK_IDLE:
    case TN_LINK_OPENING:
    case TN_LINK_CLOSING:
        break;
    }
    return false;
}

/* First part of a poll: deadlines, at most one step of one handshake, offers.
 * The room above then fetches the news and lets the owners work. True when that
 * step may have been public-key work: enough for one poll. */
static bool tn_link_poll(tn_links *t)
{
    bool     worked = false;
    unsigned i;
    for (i = 0; i < t->slot_count; i++)
        if (tn_link_poll_one(t, &t->slots[i])) worked = true;
    return worked;
}

/* News of a slot; false: none. GONE comes with what there is left to read. */
static bool tn_link_fetch(tn_links *t, unsigned slot, tn_link_news *out)
{
    tn_link *l = slot < t->slot_count ? &t->slots[slot] : NULL;
    size_t   len;
    if (l == NULL || l->state == TN_LINK_IDLE || l->told) return false;
    out->link    = l->handle;
    out->purpose = l->purpose;
    out->bits    = l->bits;
    out->why     = l->why;
    out->detail  = l->detail;
    if (tn_link_read(t, l->handle, &len) != NULL) out->bits |= TN_LINK_READABLE;
    l->told  = (l->bits & TN_LINK_GONE) != 0;
    l->bits  = 0;
    l->fresh = false;
    return out->bits != 0;
}

/* Frees what is closing and was told. close_notify goes out if it can at once. */
static void tn_link_free(tn_links *t, tn_link *l)
{
    tn_tls *tls = tn_link_tls(t, l);
    if (tls != NULL && !l->ended && tn_tls_is_up(tls)) {
        tn_tls_close(tls);
        tn_link_offer(t, l);
    }
    tn_rim_tcp_close(t->rim, l->handle);
    if (tls != NULL) tn_tls_wipe(tls);
    l->engine = TN_LINK_NO_ENGINE;
    l->bits   = 0;
    l->fresh  = false;
    tn_link_step(l, TN_LINK_FREED, t->rim->now_ms);
}

/* Last part of a poll. */
static void tn_link_sweep(tn_links *t)
{
    unsigned i;
    for (i = 0; i < t->slot_count; i++)
        if (t->slots[i].state == TN_LINK_CLOSING && t->slots[i].told)
            tn_link_free(t, &t->slots[i]);
}

/* Closes all at once: the node goes down or away. Nobody is told. */
static void tn_link_close_all(tn_links *t)
{
    unsigned i;
    for (i = 0; i < t->slot_count; i++) tn_link_close(t, t->slots[i].handle, TAILNET_OK);
    for (i = 0; i < t->slot_count; i++) t->slots[i].told = true;
    tn_link_sweep(t);
}

/* When one link needs poll at the latest; 0: at once. */
static uint64_t tn_link_due(const tn_links *t, const tn_link *l)
{
    size_t len;
    if (l->bits != 0 || l->fresh) return 0;
    switch (l->state) {
    case TN_LINK_IDLE:
        return TN_NEVER;
    case TN_LINK_PROXY:
        if (l->sent == 0 && !l->blocked) return 0;
        break;
    case TN_LINK_QUEUED:
        if (tn_link_nobody_shakes(t)) return 0;
        break;
    case TN_LINK_HANDSHAKE: {
        const tn_tls *tls = tn_link_tls(t, l);
        if (tn_tls_waits(tls) || l->ended) return 0;
        if (!l->blocked && tn_tls_out(tls, &len) != NULL) return 0;
        break;
    }
    case TN_LINK_CLOSING:
        return 0;
    case TN_LINK_OPENING:
    case TN_LINK_OPEN:
        break;
    }
    return l->deadline_ms;
}

static uint64_t tn_link_deadline(const tn_links *t)
{
    uint64_t due = TN_NEVER;
    unsigned i;
    for (i = 0; i < t->slot_count; i++) due = tn_min64(due, tn_link_due(t, &t->slots[i]));
    return due;
}

/* ---- questions ---- */

static bool tn_link_is_open(const tn_links *t, tailnet_link h)
{
    return tn_link_able(t, h) != NULL;
}

/* The bytes of plaintext in the open record. */
static TN_MAYBE_UNUSED size_t tn_link_queued(const tn_links *t, tailnet_link h)
{
    const tn_link *l = tn_link_able(t, h);
    return l == NULL ? 0 : l->queued;
}

/* The relay key of a meta certificate (paths.md 2.2), 32 bytes; NULL: none. */
static const uint8_t *tn_link_meta_key(const tn_links *t, tailnet_link h)
{
    const tn_link *l   = tn_link_owned(t, h);
    const tn_tls  *tls = l == NULL ? NULL : tn_link_tls(t, l);
    return tls == NULL || l->state < TN_LINK_OPEN ? NULL : tn_tls_meta_key(tls);
}

/* ======================================================================== *
 * >>map — the network map: who is there, what they own, which relays exist.
 *
 * Owns:    the directory of peers and its index, subnet routes, relay regions,
 *          the name service settings, what is known of ourselves, and wants.
 * Calls:   >>base, >>key, >>json, >>filter (downwards, while a message streams).
 * States:  none of its own; a message is read through tn_map_take, and what has
 *          to happen above is left as a change (tn_map_change).
 * Always:  an entry never moves. A peer that goes is found by no look-up from
 *          that moment, and its slot is not free before the change is finished.
 *          Every entry that is not GOING stands in the index exactly once per
 *          value. Half a filter is never in force.
 * Trust:   the control server's word, read through the Noise channel. Sizes and
 *          numbers in it are not believed; whatever does not fit is counted.
 *
 * A stream that breaks off in its first message: the filter stays the old one and
 * the peers that were new go (tn_map_stream). Relay regions and name service have
 * no shadow: they may be incomplete until the next stream, whose first message
 * has all of them, has been read.
 * ======================================================================== */

#define TN_MAP_NONE 0xffffu

enum {
    TN_MAP_FQDN        = TAILNET_MAX_NAME > 24 ? 256 : 128,     /* our own name          */
    TN_MAP_DNS_TEXT    = TAILNET_DNS == 0 ? 1 : TAILNET_MAX_NAME > 24 ? 2048 : 384,
                                            /* name service, packed                   */
    TN_MAP_REGION_TEXT = 64,                /* host name and certificate of a relay   */
    TN_MAP_LABEL       = TAILNET_MAX_NAME < 20 ? TAILNET_MAX_NAME : 20,
    TN_MAP_PATH        = 12,                /* deepest place in a message we look at  */
    TN_MAP_WANTS       = 4,
    TN_MAP_SCORES      = 8,
    TN_MAP_TEXT        = 168,               /* URL of a ping, and whatever is shorter */
    TN_MAP_MORE        = 80,
    TN_MAP_PING_BODY   = 160,
    TN_MAP_RECENT_S    = 540,               /* in use: WireGuard's zero-key time      */
    TN_MAP_LOST_S      = 600
};

/* Flags of an entry. The low eight are the public TAILNET_PEER_ bits. Of a pair that
 * ends in 4 and 6 the second is the next bit: see tn_map_bit. */
enum {
    TN_MAP_BIT_ONLINE = 0, TN_MAP_BIT_EXPIRED = 1, TN_MAP_BIT_JAILED = 6,
    TN_MAP_BIT_AUTHORIZED = 26, TN_MAP_BIT_WG_ONLY = 27, TN_MAP_BIT_UNSIGNED = 28
};
#define TN_MAP_USED       ((uint32_t)0x00000100ul) /* the entry is taken */
#define TN_MAP_GONE       ((uint32_t)0x00000200ul) /* leaving: its change is not finished */
#define TN_MAP_HAS4       ((uint32_t)0x00000400ul)
#define TN_MAP_HAS6       ((uint32_t)0x00000800ul)
#define TN_MAP_ROUTED4    ((uint32_t)0x00001000ul) /* AllowedIPs has its own address */
#define TN_MAP_ROUTED6    ((uint32_t)0x00002000ul)
#define TN_MAP_EXIT4      ((uint32_t)0x00004000ul) /* AllowedIPs has 0.0.0.0/0 */
#define TN_MAP_EXIT6      ((uint32_t)0x00008000ul)
#define TN_MAP_MASQ4      ((uint32_t)0x00010000ul) /* it knows us by another address */
#define TN_MAP_MASQ6      ((uint32_t)0x00020000ul)
#define TN_MAP_BROKEN4    ((uint32_t)0x00040000ul) /* asks for something we cannot do */
#define TN_MAP_BROKEN6    ((uint32_t)0x00080000ul)
#define TN_MAP_DISCO_KEY  ((uint32_t)0x00100000ul) /* has a disco key */
#define TN_MAP_BUSY       ((uint32_t)0x00200000ul) /* a session or a staged packet */
#define TN_MAP_ROUTED     ((uint32_t)0x00400000ul) /* has a further address of its own */
#define TN_MAP_SEEN       ((uint32_t)0x01000000ul) /* this message wrote it */
#define TN_MAP_NEW        ((uint32_t)0x02000000ul) /* made by a first message, not yet over */
#define TN_MAP_AUTHORIZED ((uint32_t)0x04000000ul) /* MachineAuthorized */
#define TN_MAP_WG_ONLY    ((uint32_t)0x08000000ul) /* plain WireGuard: no disco, no relay */
#define TN_MAP_UNSIGNED   ((uint32_t)0x10000000ul) /* UnsignedPeerAPIOnly */
#define TN_MAP_STICKY   (TN_MAP_BUSY | TN_MAP_SEEN | TN_MAP_NEW | TAILNET_PEER_LOCKED_OUT | \
                         TAILNET_PEER_IS_EXIT)

/* Members in the order of tn_map_spans. */
typedef struct tn_map_peer {
    uint32_t flags;
    uint32_t used_s;                        /* 1 + seconds of its last use, 0 never   */
    uint16_t session;                       /* the node's; 0xffff in a new entry      */
    uint16_t region;
    uint32_t caps;                          /* bits of tn_flt_cap                     */
    uint64_t expiry_ms;                     /* since 1970, 0 never                    */
    uint8_t  key[32], disco[32];
    uint64_t id, user;
    uint8_t  own[20], masq[20];             /* an IPv4 and an IPv6 address each       */
    uint32_t name_hash, domain_hash;        /* whole name; name without first label   */
    int32_t  rank;
    char     name[TAILNET_MAX_NAME + 1];    /* first label, lower case, cut           */
} tn_map_peer;

TN_STATIC_ASSERT(map_peer_fits_the_ledger,
                 sizeof(tn_map_peer) <= 160 + (TAILNET_MAX_NAME + 1 + 7) / 8 * 8);

/* A prefix of a peer. kind: 4 or 6, and flags. */
typedef struct tn_map_prefix {
    uint8_t  ip[16];
    uint8_t  kind, bits;
    uint16_t peer;
} tn_map_prefix;
#define TN_MAP_OWN     0x80u                /* its own address: needs no accept_routes */
#define TN_MAP_LISTED  0x40u                /* work only: Addresses has it            */
#define TN_MAP_ALLOWED 0x20u                /* work only: AllowedIPs has it           */

/* A UDP address where a peer may be reached; family 0: none. */
typedef struct tn_map_place {
    uint8_t  ip[16];
    uint16_t port;
    uint8_t  family, zero;
} tn_map_place;

/* One relay. A region has one or more; nth is its place among them. */
typedef struct tn_map_region {
    char     text[TN_MAP_REGION_TEXT];      /* host, '\0', certificate name or pin    */
    uint8_t  ip[20];                        /* IPv4, IPv6                             */
    uint16_t id, port, stun_port;           /* a port of 0: does not; an id of 0: free */
    uint8_t  nth, flags;
} tn_map_region;
enum {
    TN_MAP_REGION_IP4 = 1, TN_MAP_REGION_IP6 = 2, TN_MAP_REGION_NO4 = 4, TN_MAP_REGION_NO6 = 8,
    TN_MAP_REGION_NOT_HOME = 16, TN_MAP_REGION_PORT80 = 32, TN_MAP_REGION_NAMED = 64,
    TN_MAP_REGION_PINNED = 128,
    TN_MAP_REGION_NTH = 15, TN_MAP_REGION_OLD = 128         /* in nth                 */
};

typedef struct tn_map_score { uint16_t id, thousandths; } tn_map_score;

enum { TN_MAP_DNS_SEARCH = 1, TN_MAP_DNS_RESOLVER, TN_MAP_DNS_SPLIT, TN_MAP_DNS_RECORD };

typedef struct tn_map_self {
    uint64_t     id, expiry_ms;
    uint8_t      key[32];
    tailnet_addr ip4, ip6;
    bool         authorized, expired;
    bool         ipv6_names, only_tcp_443, silent_disco;    /* tn_map_attributes      */
    char         name[TN_MAP_FQDN];         /* without its final dot                  */
} tn_map_self;

/* Who is meant: a key, an address, or a name as its hash and the beginning of its
 * first label. */
typedef struct tn_map_who {
    uint8_t kind;                           /* 0 nobody, 4, 6, TN_MAP_WHO_            */
    uint8_t what[24];
} tn_map_who;
enum { TN_MAP_WHO_KEY = 1, TN_MAP_WHO_NAME = 2 };

/* A peer we would like to have, or one (lost_s) that is known not to be there. */
typedef struct tn_map_want {
    tn_map_who who;
    bool       own, asked;
    uint32_t   lost_s;                      /* until when it counts as not there, or 0 */
} tn_map_want;
typedef enum tn_map_wish { TN_MAP_WISH_NO, TN_MAP_WISH_WAIT } tn_map_wish;

/* What has been read of a peer, of ourselves, or of a PeerChange. */
typedef struct tn_map_node_work {
    tn_map_peer  peer;
    tn_map_place places[TAILNET_MAX_CANDIDATES];
    uint16_t     legacy_region, prefix_count;
    uint8_t      place_count;
    bool         wanted, answered;
    uint8_t      attributes;                /* a bit for each of tn_map_attributes    */
    char         name[TN_MAP_FQDN];
} tn_map_node_work;
enum {                                      /* bits of tn_map.has: see tn_map_spans   */
    TN_MAP_NO, TN_MAP_GOT_REGION, TN_MAP_GOT_CAPS, TN_MAP_GOT_EXPIRY, TN_MAP_GOT_KEY,
    TN_MAP_GOT_DISCO, TN_MAP_GOT_REST,
    TN_MAP_GOT_PLACES, TN_MAP_GOT_ALLOWED   /* these are no spans                     */
};
#define TN_MAP_HAS(m, what) (((m)->has & 1u << TN_MAP_GOT_##what) != 0)

/* What has been read of any other object: up to two texts, addresses and numbers.
 *              text      more      addresses  first     last
 * PingRequest  URL       Types     -          -         -         and payload
 * DERPNode     HostName  CertName  ip         DERPPort  STUNPort
 * DstPorts     IP        -         -          First     Last
 * Routes       its key   -         -          -         -
 * ExtraRecord  Name      Type      value      -         -                            */
typedef struct tn_map_item {
    uint32_t     flags;
    int32_t      first, last;               /* 0 absent, -1 no 16-bit number          */
    tailnet_addr value;
    uint8_t      ip[20];                    /* IPv4, IPv6                             */
    uint16_t     text_len, payload_len;
    bool         noise;
    char         text[TN_MAP_TEXT], more[TN_MAP_MORE];
    uint8_t      payload[TN_MAP_PING_BODY];
} tn_map_item;
enum {                                      /* numbers of bits                        */
    TN_MAP_ITEM_PORT80 = 5,                 /* the first six as in TN_MAP_REGION_     */
    TN_MAP_ITEM_NOISE, TN_MAP_ITEM_STUN_ONLY, TN_MAP_ITEM_ANY, TN_MAP_ITEM_BAD
};

/* Only one object is open at a time. Each begins with its flags. */
typedef union tn_map_work {
    uint32_t         flags;
    tn_map_node_work node;
    tn_map_item      item;
} tn_map_work;

typedef struct tn_map_limits {
    uint16_t peers, routes, regions;
    uint8_t  places;
} tn_map_limits;

/* The values by which a peer is found. */
enum { TN_MAP_BY_KEY, TN_MAP_BY_DISCO, TN_MAP_BY_ID, TN_MAP_BY_IP4, TN_MAP_BY_IP6, TN_MAP_BYS };

typedef enum tn_map_result {
    TN_MAP_ERROR = -1, TN_MAP_OK, TN_MAP_CHANGE, TN_MAP_PING, TN_MAP_BROWSE
} tn_map_result;

enum {                                      /* kinds of change, bits                  */
    TN_MAP_GOING = 1, TN_MAP_REKEYED = 2, TN_MAP_DISCO = 4, TN_MAP_MOVED = 8,
    TN_MAP_EXPIRED = 16, TN_MAP_ASK = 32
};
#define TN_MAP_EVENT_FILTER  0x10000ul
#define TN_MAP_EVENT_REGIONS 0x20000ul

/* What is left to do with what was read, step by step between the changes. */
enum { TN_MAP_DO_NOTHING, TN_MAP_DO_PLACE, TN_MAP_DO_SWEEP, TN_MAP_DO_UNDO, TN_MAP_DO_FINISH };

/* Small members first: their places fit into short instructions. */
typedef struct tn_map {
    uint8_t        todo, change_kind;
    bool           first, listed, has_self, asks, accept_routes, peers_missing, passed_now;
    bool           reread, reread_done, region_passed, change_places, under_way, unsafe;
    bool           keep_alive, lock_on, dns_proxied, node_seen, dns_seen, lock_seen;
    uint8_t        region_nth, region_flags;
    uint8_t        filter_news;             /* of the last commit: TN_FLT_            */
    tn_map_limits  limits;
    uint16_t       has;                     /* of the object of the work: TN_MAP_GOT_ */
    uint16_t       going, change_index, sweep_at, peer_count, route_count, exit_index;
    uint16_t       dns_len, home, region_id;
    tn_map_peer   *peers;
    uint16_t      *index;                   /* see tn_map_head                        */
    tn_map_prefix *routes;                  /* in force; behind them those of the work */
    tn_map_region *regions;
    tn_map_place  *places;
    const char    *exit_node;
    uint32_t       events, passed_over, dropped, wants_met, wants_lost, ping_hash;
    uint32_t       named;                   /* flags that the object of the work names */
    tn_map_work    work;
    uint64_t       next_expiry_ms;          /* TN_NEVER: none                         */
    uint64_t       control_time_ms;         /* of the message, 0 none                 */
    uint8_t        path[TN_MAP_PATH];
    tn_map_want    wants[TN_MAP_WANTS];
    tn_map_score   scores[TN_MAP_SCORES];
    tn_map_self    self;
    uint8_t        dns[TN_MAP_DNS_TEXT];
} tn_map;

/* ---- memory ---- */

/* Heads of the chains of one kind of value: one for two peers. */
static size_t tn_map_heads(const tn_map_limits *limits) { return limits->peers / 2u + 1u; }

/* Where the five pools lie, and behind the last: how much memory that is. */
static size_t tn_map_lay(const tn_map_limits *limits, size_t at[5])
{
    size_t   size[5], n = limits->peers, sum = 0;
    unsigned i;
    size[0] = n * sizeof(tn_map_peer);
    size[1] = n * limits->places * sizeof(tn_map_place);
    size[2] = (2u * (size_t)limits->routes + 2u) * sizeof(tn_map_prefix);
    size[3] = limits->regions * sizeof(tn_map_region);
    size[4] = TN_MAP_BYS * (n + tn_map_heads(limits)) * sizeof(uint16_t);
    for (i = 0; i < 5; i++) {
        at[i] = sum;
        sum += (size[i] + 7u) & ~(size_t)7u;
    }
    return sum;
}

/* Bytes that tn_map_init takes. */
static size_t tn_map_memory(const tn_map_limits *limits)
{
    size_t at[5];
    return tn_map_lay(limits, at);
}

/* memory: tn_map_memory bytes, aligned to 8, for as long as the map is used. */
static void tn_map_init(tn_map *m, const tn_map_limits *limits, void *memory)
{
    uint8_t *base = (uint8_t *)memory;
    size_t   at[5], size = tn_map_lay(limits, at);
    TAILNET_ASSERT(limits->peers < 0x7fff && limits->places <= TAILNET_MAX_CANDIDATES);
    memset(m, 0, sizeof *m);
    memset(base, 0, at[4]);
    memset(base + at[4], 0xff, size - at[4]);
    m->limits          = *limits;
    m->peers        = (tn_map_peer *)(void *)(base + at[0]);
    m->places       = (tn_map_place *)(void *)(base + at[1]);
    m->routes       = (tn_map_prefix *)(void *)(base + at[2]);
    m->regions      = (tn_map_region *)(void *)(base + at[3]);
    m->index        = (uint16_t *)(void *)(base + at[4]);
    m->change_index = m->going = m->exit_index = TN_MAP_NONE;
    m->next_expiry_ms = TN_NEVER;
    m->first          = true;
}

/* ---- the index ---- */

/* FNV-1a over the bytes; letters count as lower case, for names. */
static uint32_t tn_map_hash(uint32_t h, const void *bytes, size_t len)
{
    const uint8_t *b = (const uint8_t *)bytes;
    while (len-- != 0) {
        unsigned c = *b++;
        h = (h ^ (c - 'A' < 26u ? c + 32u : c)) * (uint32_t)16777619ul;
    }
    return h;
}
#define TN_MAP_HASH_BEGIN ((uint32_t)2166136261ul)

/* Where the values stand in an entry. */
static const uint8_t tn_map_at[TN_MAP_BYS]  = {
    offsetof(tn_map_peer, key), offsetof(tn_map_peer, disco), offsetof(tn_map_peer, id),
    offsetof(tn_map_peer, own), offsetof(tn_map_peer, own) + 4
};
static const uint8_t tn_map_len[TN_MAP_BYS] = { 32, 32, 8, 4, 16 };
/* and the number of the flag that says that it is there. */
static const uint8_t tn_map_if[TN_MAP_BYS]  = { 8, 20, 8, 10, 11 };

static const uint8_t *tn_map_bytes(const tn_map *m, unsigned by, uint16_t i)
{
    return (const uint8_t *)&m->peers[i] + tn_map_at[by];
}

/* The head of the chain of a value. Behind the heads of a kind: who comes after
 * whom. */
static uint16_t *tn_map_head(const tn_map *m, unsigned by, const void *bytes)
{
    size_t heads = tn_map_heads(&m->limits);
    return m->index + by * (heads + m->limits.peers) +
           tn_map_hash(TN_MAP_HASH_BEGIN, bytes, tn_map_len[by] < 16 ? tn_map_len[by] : 16) % heads;
}

static uint16_t *tn_map_next(const tn_map *m, unsigned by, uint16_t i)
{
    size_t heads = tn_map_heads(&m->limits);
    return m->index + by * (heads + m->limits.peers) + heads + i;
}

/* Puts an entry into the chains of its values or takes it out; they must not change
 * while it is in. */
static void tn_map_link(tn_map *m, uint16_t i, bool in)
{
    unsigned by;
    for (by = 0; by < TN_MAP_BYS; by++) {
        uint16_t *at = tn_map_head(m, by, tn_map_bytes(m, by, i)), *next = tn_map_next(m, by, i);
        if ((m->peers[i].flags >> tn_map_if[by] & 1u) == 0) continue;
        while (!in && *at != i) at = tn_map_next(m, by, *at);
        if (in) *next = *at;
        *at = in ? i : *next;
    }
}

/* Which peer has this value? Of several the one with the lowest id. */
static bool tn_map_find(const tn_map *m, unsigned by, const void *bytes, uint16_t *index)
{
    uint16_t i     = *tn_map_head(m, by, bytes);
    bool     found = false;
    for (; i != TN_MAP_NONE; i = *tn_map_next(m, by, i)) {
        if (memcmp(tn_map_bytes(m, by, i), bytes, tn_map_len[by]) != 0) continue;
        if (found && m->peers[*index].id < m->peers[i].id) continue;
        *index = i;
        found  = true;
    }
    return found;
}

/* ---- names, and who is meant ---- */

static size_t tn_map_name_len(const char *text, size_t len)
{
    return len != 0 && text[len - 1] == '.' ? len - 1 : len;
}

static size_t tn_map_label_len(const char *text, size_t len)
{
    size_t n = 0;
    while (n < len && text[n] != '.') n++;
    return n;
}

/* The first letters of a label in lower case. */
static void tn_map_label(void *dst, size_t cap, const char *text, size_t len)
{
    uint8_t *d = (uint8_t *)dst;
    size_t   i;
    for (i = 0; i < len && i < cap; i++)
        d[i] = (uint8_t)(text[i] >= 'A' && text[i] <= 'Z' ? text[i] + ('a' - 'A') : text[i]);
}

/* The suffix that names of this tailnet have; "" before the first map. */
static const char *tn_map_suffix(const tn_map *m)
{
    const char *name = m->self.name;
    name += tn_map_label_len(name, strlen(name));
    return *name == '.' ? name + 1 : name;
}

/* The domain of a peer when it is ours, else "": others are not kept. */
static TN_MAYBE_UNUSED const char *tn_map_domain(const tn_map *m, const tn_map_peer *p)
{
    const char *ours = tn_map_suffix(m);
    return p->name[0] != '\0' &&
           p->domain_hash == tn_map_hash(TN_MAP_HASH_BEGIN, ours, strlen(ours)) ? ours : "";
}

static void tn_map_mean(tn_map_who *who, unsigned kind, const void *what, size_t len)
{
    memset(who, 0, sizeof *who);
    who->kind = (uint8_t)kind;
    memcpy(who->what, what, len < sizeof who->what ? len : sizeof who->what);
}

/* A name with or without our domain, in any case, with or without the final dot. */
static void tn_map_mean_name(const tn_map *m, tn_map_who *who, const char *name, size_t len)
{
    uint32_t h;
    size_t   label;
    len   = tn_map_name_len(name, len);
    label = tn_map_label_len(name, len);
    h     = tn_map_hash(TN_MAP_HASH_BEGIN, name, len);
    if (label == len) {
        const char *suffix = tn_map_suffix(m);
        h = tn_map_hash(tn_map_hash(h, ".", 1), suffix, strlen(suffix));
    }
    tn_map_mean(who, label == 0 ? 0 : TN_MAP_WHO_NAME, &h, sizeof h);
    tn_map_label(who->what + 4, TN_MAP_LABEL, name, label);
}

/* An address or a name. */
static void tn_map_mean_text(const tn_map *m, tn_map_who *who, const char *text)
{
    tailnet_addr ip;
    size_t       len = strlen(text);
    if (tn_ip_parse(&ip, text, len)) tn_map_mean(who, ip.family, ip.ip, sizeof ip.ip);
    else                             tn_map_mean_name(m, who, text, len);
}

/* The second of a pair belongs to IPv6: the flag is the next bit, the address stands
 * 4 bytes on. */
static unsigned tn_map_six(unsigned family) { return family >> 1 & 1u; }

/* Is it this peer, by its own address, key or name? */
static bool tn_map_is(const tn_map_peer *p, const tn_map_who *who)
{
    const uint8_t *what = who->what;
    switch (who->kind) {
    case TN_MAP_WHO_KEY:
        return memcmp(p->key, what, sizeof who->what) == 0;
    case TN_MAP_WHO_NAME:
        return memcmp(&p->name_hash, what, 4) == 0 && memcmp(p->name, what + 4, TN_MAP_LABEL) == 0;
    case 4:
    case 6:
        return (p->flags & TN_MAP_HAS4 << tn_map_six(who->kind)) != 0 &&
               memcmp(p->own + 4 * tn_map_six(who->kind), what, tn_ip_len(who->kind)) == 0;
    default:
        return false;
    }
}

/* ---- questions ---- */

static bool tn_map_there(const tn_map_peer *p)
{
    return (p->flags & (TN_MAP_USED | TN_MAP_GONE)) == TN_MAP_USED;
}

/* The next entry behind p that is there, in the order of the slots. NULL is before the
 * first and behind the last. */
static TN_NOINLINE tn_map_peer *tn_map_each(const tn_map *m, tn_map_peer *p)
{
    p = p == NULL ? m->peers : p + 1;
    while (p < m->peers + m->limits.peers && !tn_map_there(p)) p++;
    return p < m->peers + m->limits.peers ? p : NULL;
}

/* An entry, or NULL when it is free. One that is going can still be read. */
static TN_MAYBE_UNUSED const tn_map_peer *tn_map_peer_at(const tn_map *m, uint16_t i)
{
    return i < m->limits.peers && (m->peers[i].flags & TN_MAP_USED) != 0 ? &m->peers[i] : NULL;
}

static TN_MAYBE_UNUSED size_t tn_map_count(const tn_map *m) { return m->peer_count; }

/* The n-th entry in the order of the slots. */
static TN_MAYBE_UNUSED bool tn_map_nth(const tn_map *m, size_t n, uint16_t *index)
{
    tn_map_peer *p = NULL;
    do p = tn_map_each(m, p);
    while (p != NULL && n-- != 0);
    if (p != NULL) *index = (uint16_t)(p - m->peers);
    return p != NULL;
}

/* May we talk to it? It has to be valid, reachable in some way, and own something. */
static bool tn_map_usable(const tn_map *m, const tn_map_peer *p)
{
    uint32_t bad = TN_MAP_GONE | TN_MAP_BROKEN4 | TN_MAP_BROKEN6 | TAILNET_PEER_EXPIRED |
                   TAILNET_PEER_LOCKED_OUT;
    uint32_t own = TN_MAP_ROUTED4 | TN_MAP_ROUTED6 | TN_MAP_ROUTED | TAILNET_PEER_IS_EXIT;
    if ((p->flags & (bad | TN_MAP_USED)) != TN_MAP_USED) return false;
    if ((p->flags & (TN_MAP_DISCO_KEY | TN_MAP_WG_ONLY)) == 0 && p->region == 0) return false;
    if (m->accept_routes) own |= TAILNET_PEER_HAS_ROUTES;
    return (p->flags & own) != 0;
}

/* An address of a pair, if the flag says that it is there; else family 0, false. */
static bool tn_map_ip(tailnet_addr *out, uint32_t flags, uint32_t flag4, const uint8_t pair[20],
                      unsigned family)
{
    memset(out, 0, sizeof *out);
    if ((flags & flag4 << tn_map_six(family)) == 0) return false;
    out->family = (uint8_t)family;
    memcpy(out->ip, pair + 4 * tn_map_six(family), tn_ip_len(family));
    return true;
}

/* Its own address of a family; family 0 and false when it has none. */
static bool tn_map_addr(const tn_map_peer *p, unsigned family, tailnet_addr *out)
{
    return tn_map_ip(out, p->flags, TN_MAP_HAS4, p->own, family);
}

/* The address this peer knows us by, when it is another than ours. */
static TN_MAYBE_UNUSED bool tn_map_masq(const tn_map_peer *p, unsigned family, tailnet_addr *out)
{
    return tn_map_ip(out, p->flags, TN_MAP_MASQ4, p->masq, family);
}

/* What the packet filter wants to know of a peer. */
static TN_NOINLINE TN_MAYBE_UNUSED void tn_map_flt_peer(const tn_map *m, uint16_t i,
                                                         tn_flt_peer *out)
{
    out->caps   = m->peers[i].caps;
    out->index  = i;
    out->jailed = (m->peers[i].flags & (TAILNET_PEER_JAILED | TN_MAP_UNSIGNED)) != 0;
}

static void tn_map_set_flag(uint32_t *flags, uint32_t flag, bool on)
{
    *flags &= ~flag;
    if (on) *flags |= flag;
}

static TN_MAYBE_UNUSED void tn_map_busy(tn_map *m, uint16_t i, bool busy)
{
    tn_map_set_flag(&m->peers[i].flags, TN_MAP_BUSY, busy);
}

static void tn_map_used(tn_map *m, uint16_t i, uint64_t now_ms)
{
    m->peers[i].used_s = (uint32_t)(now_ms / 1000u) + 1u;
}

/* Tailnet Lock's verdict on a peer. */
static TN_MAYBE_UNUSED void tn_map_lock_out(tn_map *m, uint16_t i, bool out)
{
    tn_map_set_flag(&m->peers[i].flags, (uint32_t)TAILNET_PEER_LOCKED_OUT, out);
    m->events |= TAILNET_EVENT_PEERS;
}

/* ---- look-ups ---- */

/* Whose own address is it? Also of a peer that cannot be used. */
static bool tn_map_by_own_ip(const tn_map *m, const tailnet_addr *ip, uint16_t *index)
{
    return ip->family != 0 &&
           tn_map_find(m, ip->family == 4 ? TN_MAP_BY_IP4 : TN_MAP_BY_IP6, ip->ip, index);
}

static bool tn_map_by_key(const tn_map *m, const uint8_t key[32], uint16_t *index)
{
    return tn_map_find(m, TN_MAP_BY_KEY, key, index);
}

static TN_MAYBE_UNUSED bool tn_map_by_disco(const tn_map *m, const uint8_t disco[32],
                                            uint16_t *index)
{
    return tn_map_find(m, TN_MAP_BY_DISCO, disco, index);
}

static bool tn_map_by_id(const tn_map *m, uint64_t id, uint16_t *index)
{
    return tn_map_find(m, TN_MAP_BY_ID, &id, index);
}

/* The peer that is meant and has these flags; of several the one with the lowest
 * id. */
static bool tn_map_by_who(const tn_map *m, const tn_map_who *who, uint32_t flags, uint16_t *index)
{
    tn_map_peer *p = NULL, *best = NULL;
    while ((p = tn_map_each(m, p)) != NULL) {
        if ((p->flags & flags) != flags || !tn_map_is(p, who)) continue;
        if (best == NULL || p->id < best->id) best = p;
    }
    if (best != NULL) *index = (uint16_t)(best - m->peers);
    return best != NULL;
}

/* With or without our domain, in any case, with or without the final dot. */
static TN_MAYBE_UNUSED bool tn_map_by_name(const tn_map *m, const char *name, size_t len,
                                           uint16_t *index)
{
    tn_map_who who;
    tn_map_mean_name(m, &who, name, len);
    return tn_map_by_who(m, &who, 0, index);
}

/* Is it where the tailnet's own addresses live? */
static bool tn_map_is_tailnet(const uint8_t *ip, unsigned family)
{
    return tn_ip_kind_of(family, ip) == TN_ADDR_TAILNET;
}

static bool tn_map_in_force(const tn_map *m, const tn_map_prefix *r)
{
    return (m->accept_routes || (r->kind & TN_MAP_OWN) != 0) &&
           tn_map_usable(m, &m->peers[r->peer]);
}

static bool tn_map_exit(const tn_map *m, unsigned family, uint16_t *index)
{
    const tn_map_peer *p;
    if (m->exit_index == TN_MAP_NONE) return false;
    p      = &m->peers[m->exit_index];
    *index = m->exit_index;
    return tn_map_usable(m, p) && (p->flags & TN_MAP_EXIT4 << tn_map_six(family)) != 0;
}

static bool tn_map_has_ip(const tn_map_prefix *r, unsigned family, const uint8_t *ip)
{
    return (r->kind & 15u) == family && tn_bits_same(r->ip, ip, r->bits);
}

/* Where does a packet to ip go? Own addresses first, then the longest subnet
 * route, then the exit node; an address of the tailnet never goes to the exit
 * node. An owner that cannot be used takes its address with it: the packet must
 * not leave by another peer. */
static bool tn_map_by_ip(const tn_map *m, const tailnet_addr *ip, uint16_t *index)
{
    const tn_map_prefix *best = NULL;
    uint16_t             i;
    if (ip->family != 4 && ip->family != 6) return false;
    if (tn_map_by_own_ip(m, ip, index))
        return (m->peers[*index].flags & TN_MAP_ROUTED4 << tn_map_six(ip->family)) != 0 &&
               tn_map_usable(m, &m->peers[*index]);
    for (i = 0; i < m->route_count; i++) {
        const tn_map_prefix *r = &m->routes[i];
        if (!tn_map_has_ip(r, ip->family, ip->ip) || !tn_map_in_force(m, r)) continue;
        if (best != NULL && (best->bits > r->bits ||
            (best->bits == r->bits && m->peers[best->peer].id < m->peers[r->peer].id))) continue;
        best   = r;
        *index = r->peer;
    }
    return best != NULL ||
           (!tn_map_is_tailnet(ip->ip, ip->family) && tn_map_exit(m, ip->family, index));
}

/* Does an inner source address belong to this peer? The classic rule: what we would
 * send there has to go to this peer, so an exit node cannot speak for another. */
static TN_MAYBE_UNUSED bool tn_map_owns(const tn_map *m, uint16_t index, const tailnet_addr *src)
{
    uint16_t i;
    return tn_map_by_ip(m, src, &i) && i == index;
}

static void tn_map_prefix_out(tailnet_prefix *out, unsigned family, unsigned bits,
                              const uint8_t *ip)
{
    memset(out, 0, sizeof *out);
    out->family = (uint8_t)family;
    out->bits   = (uint8_t)bits;
    if (bits != 0) memcpy(out->ip, ip, tn_ip_len(family));
}

/* The n-th route in force: subnets of peers, then the exit node's defaults. */
static TN_MAYBE_UNUSED bool tn_map_route(const tn_map *m, size_t n, tailnet_prefix *out,
                                         uint16_t *index)
{
    const tn_map_prefix *r = m->routes;
    unsigned             family;
    for (; r < m->routes + m->route_count; r++) {
        if (!tn_map_in_force(m, r) || n-- != 0) continue;
        tn_map_prefix_out(out, r->kind & 15u, r->bits, r->ip);
        *index = r->peer;
        return true;
    }
    for (family = 4; family <= 6; family += 2) {
        if (!tn_map_exit(m, family, index) || n-- != 0) continue;
        tn_map_prefix_out(out, family, 0, NULL);
        return true;
    }
    return false;
}

/* Candidates of a peer: while its own change is pending all that its Node listed,
 * later the few that were kept. */
static TN_MAYBE_UNUSED size_t tn_map_places(const tn_map *m, uint16_t index, tailnet_addr *out,
                                            size_t cap)
{
    const tn_map_place *from  = m->places + (size_t)index * m->limits.places;
    size_t              count = m->limits.places, n;
    if (m->change_index == index && m->change_places) {
        from  = m->work.node.places;
        count = m->work.node.place_count;
    }
    for (n = 0; n < count && n < cap && from->family != 0; n++, from++) {
        memset(&out[n], 0, sizeof out[n]);
        memcpy(out[n].ip, from->ip, 16);
        out[n].family = from->family;
        out[n].port   = from->port;
    }
    return n;
}

/* ---- exit node and expiry ---- */

/* Leaves a change for the rooms above. places: the work has its candidates. */
static void tn_map_note_change(tn_map *m, unsigned index, unsigned kind, bool places)
{
    m->change_index  = (uint16_t)index;
    m->change_kind   = (uint8_t)kind;
    m->change_places = places;
}

/* Finds the exit node anew. Without one the defaults lead nowhere: fail closed. */
static void tn_map_choose_exit(tn_map *m)
{
    uint16_t   found = TN_MAP_NONE;
    tn_map_who who;
    if (m->exit_node != NULL) {
        tn_map_mean_text(m, &who, m->exit_node);
        (void)tn_map_by_who(m, &who, (uint32_t)TAILNET_PEER_OFFERS_EXIT, &found);
    }
    if (found == m->exit_index) return;
    if (m->exit_index != TN_MAP_NONE)
        m->peers[m->exit_index].flags &= ~(uint32_t)TAILNET_PEER_IS_EXIT;
    if (found != TN_MAP_NONE) m->peers[found].flags |= (uint32_t)TAILNET_PEER_IS_EXIT;
    m->exit_index = found;
    m->events |= TAILNET_EVENT_ROUTES | TAILNET_EVENT_PEERS;
}

/* What a person prefers. exit_node (name or address) has to stay; NULL: none. */
static TN_MAYBE_UNUSED void tn_map_prefs(tn_map *m, const char *exit_node, bool accept_routes)
{
    if (m->accept_routes != accept_routes) m->events |= TAILNET_EVENT_ROUTES;
    m->accept_routes = accept_routes;
    m->exit_node     = exit_node;
    tn_map_choose_exit(m);
}

/* Our home relay region is never pushed out by others. */
static TN_MAYBE_UNUSED void tn_map_home(tn_map *m, uint16_t region) { m->home = region; }

/* Is there an io.keep_peer to ask? */
static TN_MAYBE_UNUSED void tn_map_asks(tn_map *m, bool on) { m->asks = on; }

#define TN_MAP_SANE_MS ((uint64_t)1673373066000u)  /* 2023-01-10: a clock before is wrong */

static bool tn_map_self_expired(const tn_map *m, uint64_t unix_ms)
{
    uint64_t t = m->self.expiry_ms;
    return m->has_self &&
           (m->self.expired || (t != 0 && t <= unix_ms && unix_ms >= TN_MAP_SANE_MS));
}

/* When the next key runs out, in server time; TN_NEVER when none does. */
static TN_MAYBE_UNUSED uint64_t tn_map_expiry(const tn_map *m) { return m->next_expiry_ms; }

static void tn_map_note_expiry(tn_map *m, uint64_t expiry_ms)
{
    if (expiry_ms - 1u < m->next_expiry_ms) m->next_expiry_ms = expiry_ms;     /* 0: never */
}

/* unix_ms by the server's clock. True: a peer's key ran out; fetch the change and
 * call again. Our own key running out is TAILNET_EVENT_SELF. */
static TN_MAYBE_UNUSED bool tn_map_expire(tn_map *m, uint64_t unix_ms)
{
    tn_map_peer *p = NULL;
    if (unix_ms < TN_MAP_SANE_MS || unix_ms < m->next_expiry_ms || m->change_kind != 0)
        return false;
    if (m->self.expiry_ms > unix_ms) m->next_expiry_ms = m->self.expiry_ms;
    else {
        if (m->self.expiry_ms >= m->next_expiry_ms) m->events |= TAILNET_EVENT_SELF;
        m->next_expiry_ms = TN_NEVER;
    }
    while ((p = tn_map_each(m, p)) != NULL) {
        if ((p->flags & TAILNET_PEER_EXPIRED) != 0) continue;
        if (p->expiry_ms - 1u >= unix_ms || m->change_kind != 0) {
            tn_map_note_expiry(m, p->expiry_ms);
            continue;
        }
        p->flags |= (uint32_t)TAILNET_PEER_EXPIRED;
        tn_map_note_change(m, (unsigned)(p - m->peers), TN_MAP_EXPIRED, false);
        m->events |= TAILNET_EVENT_PEERS;
    }
    return m->change_kind != 0;
}

/* TAILNET_EVENT_ bits and the room's own since the last call. */
static TN_MAYBE_UNUSED uint32_t tn_map_events(tn_map *m)
{
    uint32_t events = m->events;
    m->events = 0;
    return events;
}

/* ---- relay regions ---- */

/* The n-th relay of a region, in the order of the map; NULL: not known. */
static const tn_map_region *tn_map_region_node(const tn_map *m, uint16_t id, unsigned n)
{
    const tn_map_region *r = m->regions, *end = r + m->limits.regions;
    for (; r < end; r++)
        if (r->id == id && id != 0 && (r->nth & TN_MAP_REGION_NTH) == n) return r;
    return NULL;
}

/* The first relay of a region. */
static const tn_map_region *tn_map_region_by_id(const tn_map *m, uint16_t id)
{
    return tn_map_region_node(m, id, 0);
}

/* The first relay of the n-th known region; NULL: no more. */
static TN_MAYBE_UNUSED const tn_map_region *tn_map_region_at(const tn_map *m, size_t n)
{
    const tn_map_region *r = m->regions, *end = r + m->limits.regions;
    for (; r < end; r++)
        if (r->id != 0 && (r->nth & TN_MAP_REGION_NTH) == 0 && n-- == 0) return r;
    return NULL;
}

static TN_MAYBE_UNUSED const char *tn_map_region_host(const tn_map_region *r) { return r->text; }

/* The pin of a self-signed certificate, or NULL. */
static TN_MAYBE_UNUSED const uint8_t *tn_map_region_pin(const tn_map_region *r)
{
    return (r->flags & TN_MAP_REGION_PINNED) != 0 ? (const uint8_t *)r->text + strlen(r->text) + 1
                                                  : NULL;
}

/* The name the certificate has to have; not for one that is pinned. */
static TN_MAYBE_UNUSED const char *tn_map_region_name(const tn_map_region *r)
{
    return (r->flags & TN_MAP_REGION_NAMED) != 0 ? r->text + strlen(r->text) + 1 : r->text;
}

/* Its literal address with the DERP port; family 0 when it has none. */
static TN_MAYBE_UNUSED void tn_map_region_addr(const tn_map_region *r, unsigned family,
                                               tailnet_addr *out)
{
    (void)tn_map_ip(out, r->flags, TN_MAP_REGION_IP4, r->ip, family);
    out->port = r->port;
}

/* What latencies to a region are multiplied with, in thousandths. */
static TN_MAYBE_UNUSED uint16_t tn_map_region_score(const tn_map *m, uint16_t id)
{
    unsigned i;
    for (i = 0; i < TN_MAP_SCORES; i++)
        if (m->scores[i].id == id && id != 0) return m->scores[i].thousandths;
    return 1000;
}

/* How much a relay is worth its place: the first of a region before all others, then
 * those of our home and of the homes of peers. */
static unsigned tn_map_region_worth(const tn_map *m, uint16_t id, unsigned nth)
{
    tn_map_peer *p = NULL;
    bool         needed = id == m->home;
    if (id == 0) return 0;
    if ((nth & TN_MAP_REGION_OLD) != 0) return 1;
    while (!needed && (p = tn_map_each(m, p)) != NULL) needed = p->region == id;
    return (nth == 0 ? 64u : 32u - nth) + (needed ? 16u : 0u);
}

/* Puts the relay in where one of the smallest worth stands. */
static void tn_map_region_put(tn_map *m, const tn_map_region *relay)
{
    unsigned       least = tn_map_region_worth(m, relay->id, relay->nth), worth;
    tn_map_region *slot = NULL, *r = m->regions, *end = r + m->limits.regions;
    for (; r < end; r++) {
        worth = tn_map_region_worth(m, r->id, r->nth);
        if (worth > least || (worth == least && (slot == NULL || worth == 0))) continue;
        slot  = r;                          /* the first free one, else the last       */
        least = worth;
    }
    if ((slot == NULL && relay->nth == 0) || (slot != NULL && least >= 64)) m->region_passed = true;
    if (slot != NULL) *slot = *relay;
}

/* A DERPNode is complete. One that we cannot use is left out. */
static void tn_map_relay_end(tn_map *m)
{
    static const char  pin[] = "sha256-raw:";
    const tn_map_item *w     = &m->work.item;
    size_t             more = strlen(w->more), skip = sizeof pin - 1, room;
    unsigned           flags = (w->flags & 63u) | m->region_flags;
    tn_map_region      r;
    char              *cert;
    memset(&r, 0, sizeof r);
    if ((w->flags & 1u << TN_MAP_ITEM_BAD) != 0 ||
        w->text_len == 0 || w->text_len >= sizeof r.text || m->region_nth > TN_MAP_REGION_NTH)
        return;
    memcpy(r.text, w->text, w->text_len);
    cert = r.text + w->text_len + 1;
    room = sizeof r.text - 1u - w->text_len;
    if (tn_begins(w->more, more, pin)) {
        if (room < 32 || !tn_hex_parse((uint8_t *)cert, 32, w->more + skip, more - skip)) return;
        flags |= TN_MAP_REGION_PINNED;
    } else if (more != 0) {
        if (room <= more) return;
        memcpy(cert, w->more, more);
        flags |= TN_MAP_REGION_NAMED;
    }
    memcpy(r.ip, w->ip, sizeof r.ip);
    r.flags     = (uint8_t)flags;
    r.id        = m->region_id;
    r.port      = (uint16_t)(w->first > 0 ? w->first : 443);
    if ((w->flags & 1u << TN_MAP_ITEM_STUN_ONLY) != 0) r.port = 0;
    r.stun_port = (uint16_t)(w->last == 0 ? 3478 : w->last < 0 ? 0 : w->last);
    r.nth       = m->region_nth++;
    tn_map_region_put(m, &r);
}

/* The regions begin: what there is is the old set. They end: what is left of it goes. */
static void tn_map_regions(tn_map *m, bool begin)
{
    tn_map_region *r = m->regions, *end = r + m->limits.regions;
    for (; r < end; r++) {
        if (begin) r->nth |= TN_MAP_REGION_OLD;
        else if ((r->nth & TN_MAP_REGION_OLD) != 0) r->id = 0;
    }
    if (!begin) m->events |= TN_MAP_EVENT_REGIONS;
}

/* A region begins: its old relays go. It ends: what was said of all of it holds for
 * all, wherever it stood. */
static void tn_map_region_mark(tn_map *m, bool begin)
{
    tn_map_region *r = m->regions, *end = r + m->limits.regions;
    for (; r < end; r++) {
        if (r->id != m->region_id) continue;
        r->flags |= m->region_flags;
        if (begin) r->id = 0;
    }
}

/* ---- name service ---- */

#if TAILNET_DNS

/* The n-th entry. text ends with '\0'; family 0 of a SPLIT: we answer ourselves. */
static TN_MAYBE_UNUSED bool tn_map_dns(const tn_map *m, size_t n, uint8_t *kind,
                                       const char **text, tailnet_addr *addr)
{
    tn_rd r;
    tn_rd_over(&r, m->dns, m->dns_len);
    while (r.left != 0) {
        *kind = tn_rd_u8(&r);
        memset(addr, 0, sizeof *addr);
        addr->family = tn_rd_u8(&r);
        addr->port   = tn_rd_u16be(&r);
        tn_rd_copy(&r, addr->ip, tn_ip_len(addr->family));
        *text = (const char *)r.at;
        (void)tn_rd_bytes(&r, strlen(*text) + 1);
        if (n-- == 0) return true;
    }
    return false;
}

static void tn_map_dns_add(tn_map *m, unsigned kind, const tailnet_addr *addr, const char *text,
                           size_t len)
{
    tn_wr w;
    tn_wr_over(&w, m->dns + m->dns_len, sizeof m->dns - m->dns_len);
    tn_wr_u8(&w, kind);
    tn_wr_u8(&w, addr->family);
    tn_wr_u16be(&w, addr->port);
    tn_wr_bytes(&w, addr->ip, tn_ip_len(addr->family));
    tn_wr_bytes(&w, text, tn_map_name_len(text, len));
    tn_wr_u8(&w, 0);
    if (!tn_wr_ok(&w) || tn_has_byte(text, len, '\0')) m->dropped++;
    else m->dns_len = (uint16_t)(m->dns_len + tn_wr_len(&w));
}

/* A resolver: "8.8.8.8", "8.8.8.8:53", "[::1]:53", or of the whole system a URL.
 * route: for the domain of the work only. */
static void tn_map_dns_resolver(tn_map *m, bool route, const char *text, size_t len)
{
    const tn_map_item *w = &m->work.item;
    tailnet_addr       a;
    bool               ok = tn_ip_parse(&a, text, len);
    if (ok) a.port = 53;
    else if (!tn_addr_parse(&a, text, len)) memset(&a, 0, sizeof a);
    if (a.family == 0 && (route || len == 0)) m->dropped++;
    else if (!route) tn_map_dns_add(m, TN_MAP_DNS_RESOLVER, &a, text, a.family == 0 ? len : 0);
    else if (w->text_len != 0) tn_map_dns_add(m, TN_MAP_DNS_SPLIT, &a, w->text, w->text_len);
}

/* The end of a split route without resolver: we answer for it. Reverse zones, that
 * we answer anyway, are not stored: headscale sends 65 of them in every map. */
static void tn_map_dns_route_end(tn_map *m)
{
    const tn_map_item *w   = &m->work.item;
    size_t             len = tn_map_name_len(w->text, w->text_len);
    if ((w->flags & 1u << TN_MAP_ITEM_ANY) != 0 || len == 0) return;
    if (len > 5 && memcmp(w->text + len - 5, ".arpa", 5) == 0) return;
    tn_map_dns_add(m, TN_MAP_DNS_SPLIT, &w->value, w->text, len);
}

#else
static TN_MAYBE_UNUSED bool tn_map_dns(const tn_map *m, size_t n, uint8_t *kind,
                                       const char **text, tailnet_addr *addr)
{
    (void)m; (void)n; (void)kind; (void)text; (void)addr;
    return false;                           /* built without it */
}
#endif

/* ---- wants ---- */

/* Which want is this? TN_MAP_WANTS: none. */
static unsigned tn_map_want_of(const tn_map *m, const tn_map_who *who)
{
    unsigned i = 0;
    while (i < TN_MAP_WANTS && memcmp(&m->wants[i].who, who, sizeof *who) != 0) i++;
    return i;
}

/* Has reading the map again failed to find it, not long ago? */
static TN_MAYBE_UNUSED bool tn_map_is_lost(const tn_map *m, const tn_map_who *who, uint64_t now_ms)
{
    unsigned i = tn_map_want_of(m, who);
    return i < TN_MAP_WANTS && m->wants[i].lost_s > (uint32_t)(now_ms / 1000u);
}

static TN_MAYBE_UNUSED tn_map_wish tn_map_want_who(tn_map *m, const tn_map_who *who, bool own,
                                                   uint64_t now_ms)
{
    unsigned     at = tn_map_want_of(m, who), best = 0, worth, i;
    tn_map_want *w  = m->wants;
    if (!m->peers_missing || who->kind == 0 || tn_map_is_lost(m, who, now_ms))
        return TN_MAP_WISH_NO;
    if (at < TN_MAP_WANTS && w[at].lost_s == 0) {
        w[at].own = w[at].own || own;
        return TN_MAP_WISH_WAIT;
    }
    for (i = 0; i < TN_MAP_WANTS; i++) {
        worth = i == at ? 4u : w[i].who.kind == 0 ? 3u : w[i].lost_s != 0 ? 2u :
                own && !w[i].own ? 1u : 0u;
        if (worth <= best) continue;
        best = worth;
        at   = i;
    }
    if (best == 0) return TN_MAP_WISH_NO;
    memset(&w[at], 0, sizeof w[at]);
    w[at].who = *who;
    w[at].own = own;
    return TN_MAP_WISH_WAIT;
}

/* Wants a peer by address, key or name. own: our own wish, not caused by what came
 * from outside. NO: the map does not have it, or there is no room for a want. */
static TN_MAYBE_UNUSED tn_map_wish tn_map_want_ip(tn_map *m, const tailnet_addr *ip, bool own,
                                                  uint64_t now_ms)
{
    tn_map_who who;
    tn_map_mean(&who, ip->family, ip->ip, tn_ip_len(ip->family));
    return tn_map_want_who(m, &who, own, now_ms);
}

static TN_MAYBE_UNUSED tn_map_wish tn_map_want_key(tn_map *m, const uint8_t key[32], bool own,
                                                   uint64_t now_ms)
{
    tn_map_who who;
    tn_map_mean(&who, TN_MAP_WHO_KEY, key, 32);
    return tn_map_want_who(m, &who, own, now_ms);
}

static TN_MAYBE_UNUSED tn_map_wish tn_map_want_name(tn_map *m, const char *name, size_t len,
                                                    bool own, uint64_t now_ms)
{
    tn_map_who who;
    tn_map_mean_name(m, &who, name, len);
    return tn_map_want_who(m, &who, own, now_ms);
}

/* How many things wait for a reading of the map that has not begun. */
static TN_MAYBE_UNUSED unsigned tn_map_wants(const tn_map *m, bool *own)
{
    const tn_map_want *w = m->wants;
    unsigned           n = m->reread ? 1u : 0u;
    *own = false;
    for (; w < m->wants + TN_MAP_WANTS; w++) {
        if (w->who.kind == 0 || w->asked || w->lost_s != 0) continue;
        if (w->own) *own = true;
        n++;
    }
    return n;
}

/* Does the node just read answer a want? The first that it does, or NULL. */
static tn_map_want *tn_map_work_wanted(tn_map *m)
{
    const tn_map_node_work *node = &m->work.node;
    tn_map_want            *w    = m->wants;
    uint16_t                i;
    for (; w < m->wants + TN_MAP_WANTS; w++) {
        if (w->lost_s != 0) continue;
        if (tn_map_is(&node->peer, &w->who)) return w;
        for (i = 0; i < node->prefix_count; i++) {
            const tn_map_prefix *r = &m->routes[m->limits.routes + i];
            if ((m->accept_routes || (r->kind & TN_MAP_OWN) != 0) &&
                tn_map_has_ip(r, w->who.kind, w->who.what)) return w;
        }
    }
    return NULL;
}

/* A whole map has gone by: what was wanted and did not come is not there. */
static void tn_map_wants_end(tn_map *m, uint64_t now_ms)
{
    tn_map_want *w = m->wants;
    for (; w < m->wants + TN_MAP_WANTS; w++) {
        if (!w->asked) continue;
        w->asked  = w->own = false;
        w->lost_s = (uint32_t)(now_ms / 1000u) + TN_MAP_LOST_S;
        m->wants_lost++;
    }
}

/* ---- changes to entries ---- */

/* The routes of a peer become these: none, or those of the work. */
static void tn_map_routes_set(tn_map *m, uint16_t peer, unsigned count)
{
    tn_map_prefix *from = m->routes + m->limits.routes, *to = m->routes, *r = m->routes;
    tn_map_prefix *end = to + m->route_count, *old_end = end;
    bool           changed = false;
    for (; r < end; r++) {
        if (r->peer == peer) {
            if (count == 0) {
                changed = true;
                continue;
            }
            from->peer = peer;
            changed    = changed || memcmp(r, from, sizeof *r) != 0;
            *r         = *from++;
            count--;
        }
        *to++ = *r;
    }
    for (; count != 0; count--, from++) {
        if (to == m->routes + m->limits.routes) {              /* never widened: left out */
            m->dropped++;
            continue;
        }
        from->peer = peer;
        *to++      = *from;
    }
    m->route_count = (uint16_t)(to - m->routes);
    if (changed || to > old_end) m->events |= TAILNET_EVENT_ROUTES;
}

static void tn_map_leave(tn_map *m, uint16_t i)
{
    tn_map_link(m, i, false);
    tn_map_routes_set(m, i, 0);
    m->peers[i].flags |= TN_MAP_GONE;
    m->peer_count--;
    tn_map_note_change(m, i, TN_MAP_GOING, false);
    m->events |= TAILNET_EVENT_PEERS;
}

/* The parts of an entry that an object may leave as they were. Bit 1 << i of tn_map.has
 * is for span i; the first is never in an object. */
static const uint8_t tn_map_spans[] = {
    offsetof(tn_map_peer, used_s), offsetof(tn_map_peer, region), offsetof(tn_map_peer, caps),
    offsetof(tn_map_peer, expiry_ms), offsetof(tn_map_peer, key), offsetof(tn_map_peer, disco),
    offsetof(tn_map_peer, id), sizeof(tn_map_peer)
};

/* The work becomes the new value of an entry; what it does not name stays. */
static TN_NOINLINE void tn_map_store(tn_map *m, uint16_t i)
{
    tn_map_peer  *old = &m->peers[i], *neu = &m->work.node.peer;
    tn_map_place *at   = m->places + (size_t)i * m->limits.places;
    size_t        size = m->limits.places * sizeof *at;
    bool          was  = tn_map_usable(m, old), used = (old->flags & TN_MAP_USED) != 0;
    uint32_t      mask = TN_MAP_HAS(m, REST) ? ~(uint32_t)TN_MAP_STICKY : m->named;
    unsigned      kind = 0, k;

    old->flags |= TN_MAP_SEEN | (used ? 0u : TN_MAP_NEW);
    neu->flags = (old->flags & ~mask) | (neu->flags & mask);
    for (k = 0; k < sizeof tn_map_spans - 1; k++) {
        unsigned from = tn_map_spans[k], len = tn_map_spans[k + 1] - from;
        if (((unsigned)m->has >> k & 1u) != 0) continue;
        memcpy((uint8_t *)neu + from, (const uint8_t *)old + from, len);
    }
    if (memcmp(old->key, neu->key, 32) != 0) kind |= TN_MAP_REKEYED;
    if ((old->flags & TN_MAP_DISCO_KEY) != 0 && memcmp(old->disco, neu->disco, 32) != 0)
        kind |= TN_MAP_DISCO;
    if (old->region != neu->region || ((old->flags ^ neu->flags) & TN_MAP_DISCO_KEY) != 0)
        kind |= TN_MAP_MOVED;
    if (TAILNET_DIRECT != 0 && TN_MAP_HAS(m, PLACES)) {
        if (m->work.node.place_count > m->limits.places ||      /* then it cannot be told */
            memcmp(at, m->work.node.places, size) != 0) kind |= TN_MAP_MOVED;
        memcpy(at, m->work.node.places, size);
    }
    if (memcmp(old, neu, sizeof *old) != 0) m->events |= TAILNET_EVENT_PEERS;
    if (used) tn_map_link(m, i, false);
    else m->peer_count++;
    memcpy(old, neu, sizeof *old);
    tn_map_link(m, i, true);
    tn_map_note_expiry(m, old->expiry_ms);
    if (was && !tn_map_usable(m, old)) kind |= TN_MAP_EXPIRED;
    if (used && kind != 0) tn_map_note_change(m, i, kind, TN_MAP_HAS(m, PLACES));
}

/* Is a more worth keeping than b? */
static bool tn_map_outranks(const tn_map_peer *a, const tn_map_peer *b)
{
    return a->rank != b->rank ? a->rank > b->rank : a->id < b->id;
}

/* A place for the node just read: a free entry, or one that has to go for it. */
static bool tn_map_room(const tn_map *m, uint64_t now_ms, uint16_t *index)
{
    const tn_map_node_work *w     = &m->work.node;
    uint32_t                now_s = (uint32_t)(now_ms / 1000u) + 1u;
    const tn_map_peer      *p = m->peers, *least = NULL;
    for (; p < m->peers + m->limits.peers; p++) {
        if ((p->flags & TN_MAP_USED) == 0) break;
        if ((p->flags & TN_MAP_BUSY) != 0) continue;
        if (p->used_s != 0 && now_s - p->used_s < TN_MAP_RECENT_S) continue;
        if (least == NULL || !tn_map_outranks(p, least)) least = p;
    }
    if (p == m->peers + m->limits.peers) {
        p = least;
        if (p == NULL) return false;
        if (!w->wanted && (w->peer.rank <= 0 || !tn_map_outranks(&w->peer, p))) return false;
    }
    *index = (uint16_t)(p - m->peers);
    return true;
}

/* The rank of a node when nobody is asked. */
static int32_t tn_map_rank(const tn_map *m, const tn_flt *flt)
{
    const tn_map_peer *p = &m->work.node.peer;
    tn_map_who         who;
    tailnet_addr       ip;
    if (m->exit_node != NULL) {
        tn_map_mean_text(m, &who, m->exit_node);
        if (tn_map_is(p, &who)) return 4;
    }
    if (m->accept_routes && (p->flags & TAILNET_PEER_HAS_ROUTES) != 0) return 3;
    return (tn_map_addr(p, 4, &ip) && tn_flt_names(flt, &ip)) ||
           (tn_map_addr(p, 6, &ip) && tn_flt_names(flt, &ip)) ? 2 : 1;
}

/* A node that the directory does not have: a place for it, if it gets one. False:
 * passed over, or first somebody else has to go. */
static bool tn_map_admit(tn_map *m, uint64_t now_ms, uint16_t *index)
{
    if ((m->work.node.peer.rank < 0 && !m->work.node.wanted) || !tn_map_room(m, now_ms, index)) {
        m->passed_over++;
        m->todo = TN_MAP_DO_NOTHING;
    } else if ((m->peers[*index].flags & TN_MAP_USED) == 0) {
        m->peers[*index].session = 0xffff;
        return true;
    } else {
        tn_map_leave(m, *index);
    }
    m->peers_missing = m->passed_now = true;
    return false;
}

/* One step with the node or PeerChange just read: it goes in, something goes out for
 * it, or it is passed over. */
static void tn_map_place_node(tn_map *m, const tn_flt *flt, uint64_t now_ms)
{
    tn_map_node_work *w     = &m->work.node;
    tn_map_peer      *p     = &w->peer;
    bool              whole = TN_MAP_HAS(m, REST);
    uint16_t          i = TN_MAP_NONE, other;
    tn_map_want      *want;

    if (!tn_map_by_id(m, p->id, &i) && !whole) {
        m->todo = TN_MAP_DO_NOTHING;
        return;
    }
    if (whole && m->asks && !w->answered) {
        tn_map_note_change(m, TN_MAP_NONE, TN_MAP_ASK, false);
        w->answered = true;
        return;
    }
    if (TN_MAP_HAS(m, KEY) && tn_map_by_key(m, p->key, &other) && other != i) {
        tn_map_leave(m, other);             /* one key, one peer                      */
        return;
    }
    if (whole) {
        if (!m->asks) p->rank = tn_map_rank(m, flt);
        w->wanted = tn_map_work_wanted(m) != NULL;
        if (i != TN_MAP_NONE && p->rank < 0 && !w->wanted &&
            (m->peers[i].flags & TN_MAP_BUSY) == 0) {
            tn_map_leave(m, i);             /* and comes back here as one that is not */
            return;
        }
        if (i == TN_MAP_NONE && !tn_map_admit(m, now_ms, &i)) return;
        tn_map_routes_set(m, i, w->prefix_count);
    }
    tn_map_store(m, i);
    while (whole && (want = tn_map_work_wanted(m)) != NULL) {
        memset(want, 0, sizeof *want);
        m->wants_met++;
        tn_map_used(m, i, now_ms);
    }
    m->todo = TN_MAP_DO_NOTHING;
}

/* A peer that Tailnet Lock does not vouch for may never be let in: rules that do are
 * those of a broken or hostile server (ipn/ipnlocal/local.go of the reference). */
static bool tn_map_is_unsafe(const tn_map *m, const tn_flt *flt, const tn_map_peer *p)
{
    const tn_map_prefix *r = m->routes, *end = r + m->route_count;
    if ((p->flags & TN_MAP_UNSIGNED) == 0) return false;
    if ((p->flags & TN_MAP_HAS4) != 0 && tn_flt_overlaps(flt, 4, p->own, 32)) return true;
    if ((p->flags & TN_MAP_HAS6) != 0 && tn_flt_overlaps(flt, 6, p->own + 4, 128)) return true;
    for (; r < end; r++)
        if (&m->peers[r->peer] == p &&
            tn_flt_overlaps(flt, r->kind & 15u, r->ip, r->bits)) return true;
    return false;
}

/* The message is complete and everybody who had to go is gone. */
static void tn_map_finish(tn_map *m, tn_flt *flt, uint64_t now_ms)
{
    tn_map_peer *p = NULL;
    bool         unsafe = false;
    if (m->first) {
        tn_map_wants_end(m, now_ms);
        if (TAILNET_DNS != 0 && !m->dns_seen && (m->dns_len != 0 || m->dns_proxied)) {
            m->dns_len     = 0;
            m->dns_proxied = false;
            m->events |= TAILNET_EVENT_DNS;
        }
        if (!m->lock_seen) m->lock_on = false;
    }
    if (m->first || m->listed) m->peers_missing = m->passed_now;
    tn_map_choose_exit(m);
    while ((p = tn_map_each(m, p)) != NULL) {
        if (tn_map_is_unsafe(m, flt, p)) unsafe = true;
        if ((m->first || (p->flags & TN_MAP_NEW) != 0) && m->region_passed && !m->reread_done &&
            p->region != 0 && tn_map_region_by_id(m, p->region) == NULL) m->reread = true;
        p->flags &= ~(uint32_t)TN_MAP_NEW;
    }
    tn_flt_distrust(flt, unsafe);
    if (unsafe != m->unsafe) m->events |= TN_MAP_EVENT_FILTER;
    m->unsafe = unsafe;
    if (m->first) m->reread_done = false;   /* one reading for one reason             */
    m->first = m->under_way = false;
    m->todo  = TN_MAP_DO_NOTHING;
}

/* Goes on until there is a change or nothing left to do. */
static void tn_map_proceed(tn_map *m, tn_flt *flt, uint64_t now_ms)
{
    while (m->change_kind == 0 && m->going == TN_MAP_NONE && m->todo != TN_MAP_DO_NOTHING) {
        bool     undo = m->todo == TN_MAP_DO_UNDO;
        uint32_t mask = TN_MAP_USED | (undo ? TN_MAP_NEW : TN_MAP_SEEN);
        uint32_t want = TN_MAP_USED | (undo ? TN_MAP_NEW : 0u);
        if (m->todo == TN_MAP_DO_PLACE) {
            tn_map_place_node(m, flt, now_ms);
        } else if (m->todo == TN_MAP_DO_FINISH) {
            tn_map_finish(m, flt, now_ms);
        } else {
            while (m->sweep_at < m->limits.peers && (m->peers[m->sweep_at].flags & mask) != want)
                m->sweep_at++;
            if (m->sweep_at < m->limits.peers) tn_map_leave(m, m->sweep_at++);
            else m->todo = undo ? TN_MAP_DO_NOTHING : TN_MAP_DO_FINISH;
        }
    }
}

/* The next thing the rooms above have to do, see the kinds. Fetching it finishes
 * the one before: an entry that was going is free then. */
static bool tn_map_change(tn_map *m, tn_flt *flt, uint16_t *index, uint8_t *kind, uint64_t now_ms)
{
    if (m->going != TN_MAP_NONE) {
        memset(&m->peers[m->going], 0, sizeof m->peers[m->going]);
        if (m->exit_index == m->going) {
            m->exit_index = TN_MAP_NONE;
            m->events |= TAILNET_EVENT_ROUTES;
        }
        m->going = TN_MAP_NONE;
    }
    tn_map_proceed(m, flt, now_ms);
    *index = m->change_index;
    *kind  = m->change_kind;
    m->change_kind = 0;
    if (*kind == 0) m->change_index = TN_MAP_NONE;
    if ((*kind & TN_MAP_GOING) != 0) m->going = *index;
    return *kind != 0;
}

/* The answer to TN_MAP_ASK, as io.keep_peer gives it. */
static TN_MAYBE_UNUSED void tn_map_keep(tn_map *m, int32_t rank)
{
    if (m->todo == TN_MAP_DO_PLACE) m->work.node.peer.rank = rank;
}

/* A new map stream begins: its first message will be complete. What is in force
 * stays until then; of a first message that broke off the peers that were new go.
 * Open wants are asked for by this reading. */
static void tn_map_stream(tn_map *m, tn_flt *flt)
{
    tn_map_want *w = m->wants;
    if (tn_flt_is_open(flt)) tn_flt_abort(flt);
    m->todo        = m->first && m->under_way ? TN_MAP_DO_UNDO : TN_MAP_DO_NOTHING;
    m->sweep_at    = 0;
    m->first       = true;
    m->under_way   = false;
    m->reread_done = m->reread;
    m->reread      = false;
    for (; w < m->wants + TN_MAP_WANTS; w++) w->asked = w->who.kind != 0 && w->lost_s == 0;
}

/* ---- reading: what may stand where ---- */

/* Places in a message. First those with a work at their beginning, at both ends, at
 * their end: tn_map_enter, tn_map_exit_place. NODE, SELF and PATCH share their rows. */
enum {
    TN_MAP_AT_SCORES = 1, TN_MAP_AT_SETS, TN_MAP_AT_SET, TN_MAP_AT_LOCK,
    TN_MAP_AT_ROUTE_RESOLVER,
    TN_MAP_AT_NODE, TN_MAP_AT_PATCH, TN_MAP_AT_REGIONS, TN_MAP_AT_REGION, TN_MAP_AT_DNS,
    TN_MAP_AT_ROUTE, TN_MAP_AT_RULE, TN_MAP_AT_PING,
    TN_MAP_AT_SELF, TN_MAP_AT_RELAY, TN_MAP_AT_RECORD, TN_MAP_AT_TARGET,
    TN_MAP_AT_TOP, TN_MAP_AT_PEERS, TN_MAP_AT_CHANGED, TN_MAP_AT_REMOVED, TN_MAP_AT_PATCHES,
    TN_MAP_AT_ONLINE, TN_MAP_AT_ADDRESSES, TN_MAP_AT_ALLOWED, TN_MAP_AT_PLACES, TN_MAP_AT_TAGS,
    TN_MAP_AT_CAPS, TN_MAP_AT_CAP_MAP, TN_MAP_AT_DERP, TN_MAP_AT_HOME, TN_MAP_AT_RELAYS,
    TN_MAP_AT_RESOLVERS, TN_MAP_AT_RESOLVER, TN_MAP_AT_ROUTES, TN_MAP_AT_DOMAINS,
    TN_MAP_AT_RECORDS, TN_MAP_AT_SOURCES, TN_MAP_AT_SOURCE_BITS, TN_MAP_AT_TARGETS,
    TN_MAP_AT_PORTS, TN_MAP_AT_PROTOCOLS
};

/* Values in it: a flag of the object that is open, of a node, all others. */
enum {
    TN_MAP_V_FLAG = 1,
    TN_MAP_V_ID, TN_MAP_V_NAME, TN_MAP_V_USER, TN_MAP_V_KEY, TN_MAP_V_EXPIRY, TN_MAP_V_DISCO,
    TN_MAP_V_LEGACY, TN_MAP_V_REGION, TN_MAP_V_MASQ4, TN_MAP_V_MASQ6, TN_MAP_V_ADDRESS,
    TN_MAP_V_ALLOWED, TN_MAP_V_PLACE, TN_MAP_V_TAG, TN_MAP_V_CAP, TN_MAP_V_CAP_KEY,
    TN_MAP_V_TEXT, TN_MAP_V_MORE, TN_MAP_V_FIRST, TN_MAP_V_LAST, TN_MAP_V_IP4, TN_MAP_V_IP6,
    TN_MAP_V_VALUE, TN_MAP_V_PAYLOAD, TN_MAP_V_KEEP_ALIVE, TN_MAP_V_BROWSE, TN_MAP_V_TIME,
    TN_MAP_V_UNLOCKED, TN_MAP_V_REMOVED, TN_MAP_V_ONLINE_OF, TN_MAP_V_SCORE, TN_MAP_V_NOT_HOME,
    TN_MAP_V_PROXIED, TN_MAP_V_DOMAIN, TN_MAP_V_RESOLVER, TN_MAP_V_ROUTE_NULL,
    TN_MAP_V_ROUTE_RESOLVER, TN_MAP_V_SET_NULL, TN_MAP_V_SOURCE, TN_MAP_V_BAD, TN_MAP_V_PROTOCOL
};

/* All that may stand in a place: its key ("" is any key, or an element of an array),
 * the place, its form, the place it opens or the value it is, and what else there is to
 * say: the TN_MAP_GOT_ it sets, or the number of the flag. */
#if TAILNET_DNS
#define TN_MAP_DNS_ROWS(X) \
    X("DNSConfig", TOP, OBJECT, AT_DNS, NO) \
    X("Proxied", DNS, TRUTH, V_PROXIED, NO) \
    X("Domains", DNS, ARRAY, AT_DOMAINS, NO) \
    X("Resolvers", DNS, ARRAY, AT_RESOLVERS, NO) \
    X("Routes", DNS, OBJECT, AT_ROUTES, NO) \
    X("ExtraRecords", DNS, ARRAY, AT_RECORDS, NO) \
    X("", RESOLVERS, OBJECT, AT_RESOLVER, NO) \
    X("Addr", RESOLVER, TEXT, V_RESOLVER, NO) \
    X("", ROUTES, ARRAY, AT_ROUTE, NO) \
    X("", ROUTES, NULL, V_ROUTE_NULL, NO) \
    X("", ROUTE, OBJECT, AT_ROUTE_RESOLVER, NO) \
    X("Addr", ROUTE_RESOLVER, TEXT, V_ROUTE_RESOLVER, NO) \
    X("", DOMAINS, TEXT, V_DOMAIN, NO) \
    X("", RECORDS, NEW, AT_RECORD, NO) \
    X("Name", RECORD, TEXT, V_TEXT, NO) \
    X("Type", RECORD, TEXT, V_MORE, NO) \
    X("Value", RECORD, TEXT, V_VALUE, NO)
#else
#define TN_MAP_DNS_ROWS(X)
#endif
#if TAILNET_DIRECT
#define TN_MAP_PLACE_ROWS(X) \
    X("Endpoints", NODE, ARRAY, AT_PLACES, GOT_PLACES) \
    X("", PLACES, TEXT, V_PLACE, NO)
#else
#define TN_MAP_PLACE_ROWS(X)
#endif
#define TN_MAP_ROWS(X) \
    X("KeepAlive", TOP, TRUTH, V_KEEP_ALIVE, NO) \
    X("PingRequest", TOP, NEW, AT_PING, NO) \
    X("PopBrowserURL", TOP, TEXT, V_BROWSE, NO) \
    X("Node", TOP, NEW, AT_SELF, NO) \
    X("DERPMap", TOP, OBJECT, AT_DERP, NO) \
    X("Peers", TOP, ARRAY, AT_PEERS, NO) \
    X("PeersChanged", TOP, ARRAY, AT_CHANGED, NO) \
    X("PeersRemoved", TOP, ARRAY, AT_REMOVED, NO) \
    X("PeersChangedPatch", TOP, ARRAY, AT_PATCHES, NO) \
    X("OnlineChange", TOP, OBJECT, AT_ONLINE, NO) \
    X("PacketFilter", TOP, ARRAY, AT_SET, NO) \
    X("PacketFilters", TOP, OBJECT, AT_SETS, NO) \
    X("ControlTime", TOP, TEXT, V_TIME, NO) \
    X("TKAInfo", TOP, OBJECT, AT_LOCK, NO) \
    X("ID", NODE, NUMBER, V_ID, NO) \
    X("NodeID", NODE, NUMBER, V_ID, NO) \
    X("Name", NODE, TEXT, V_NAME, NO) \
    X("User", NODE, NUMBER, V_USER, NO) \
    X("Key", NODE, TEXT, V_KEY, GOT_KEY) \
    X("KeyExpiry", NODE, TEXT, V_EXPIRY, GOT_EXPIRY) \
    X("DiscoKey", NODE, TEXT, V_DISCO, GOT_DISCO) \
    X("Addresses", NODE, ARRAY, AT_ADDRESSES, NO) \
    X("AllowedIPs", NODE, ARRAY, AT_ALLOWED, GOT_ALLOWED) \
    X("DERP", NODE, TEXT, V_LEGACY, NO) \
    X("HomeDERP", NODE, NUMBER, V_REGION, GOT_REGION) \
    X("DERPRegion", NODE, NUMBER, V_REGION, GOT_REGION) \
    X("Tags", NODE, ARRAY, AT_TAGS, NO) \
    X("Online", NODE, TRUTH, V_FLAG, BIT_ONLINE) \
    X("MachineAuthorized", NODE, TRUTH, V_FLAG, BIT_AUTHORIZED) \
    X("Capabilities", NODE, ARRAY, AT_CAPS, NO) \
    X("CapMap", NODE, OBJECT, AT_CAP_MAP, GOT_CAPS) \
    X("UnsignedPeerAPIOnly", NODE, TRUTH, V_FLAG, BIT_UNSIGNED) \
    X("Expired", NODE, TRUTH, V_FLAG, BIT_EXPIRED) \
    X("SelfNodeV4MasqAddrForThisPeer", NODE, TEXT, V_MASQ4, NO) \
    X("SelfNodeV6MasqAddrForThisPeer", NODE, TEXT, V_MASQ6, NO) \
    X("IsWireGuardOnly", NODE, TRUTH, V_FLAG, BIT_WG_ONLY) \
    X("IsJailed", NODE, TRUTH, V_FLAG, BIT_JAILED) \
    X("", PEERS, NEW, AT_NODE, NO) \
    X("", CHANGED, NEW, AT_NODE, NO) \
    X("", REMOVED, NUMBER, V_REMOVED, NO) \
    X("", PATCHES, NEW, AT_PATCH, NO) \
    X("", ONLINE, TRUTH, V_ONLINE_OF, NO) \
    X("", ADDRESSES, TEXT, V_ADDRESS, NO) \
    X("", ALLOWED, TEXT, V_ALLOWED, NO) \
    X("", TAGS, TEXT, V_TAG, NO) \
    X("", CAPS, TEXT, V_CAP, NO) \
    X("", CAP_MAP, ANY, V_CAP_KEY, NO) \
    X("HomeParams", DERP, OBJECT, AT_HOME, NO) \
    X("Regions", DERP, OBJECT, AT_REGIONS, NO) \
    X("RegionScore", HOME, OBJECT, AT_SCORES, NO) \
    X("", SCORES, NUMBER, V_SCORE, NO) \
    X("", REGIONS, OBJECT, AT_REGION, NO) \
    X("Avoid", REGION, TRUTH, V_NOT_HOME, NO) \
    X("NoMeasureNoHome", REGION, TRUTH, V_NOT_HOME, NO) \
    X("Nodes", REGION, ARRAY, AT_RELAYS, NO) \
    X("", RELAYS, NEW, AT_RELAY, NO) \
    X("HostName", RELAY, TEXT, V_TEXT, NO) \
    X("CertName", RELAY, TEXT, V_MORE, NO) \
    X("IPv4", RELAY, TEXT, V_IP4, NO) \
    X("IPv6", RELAY, TEXT, V_IP6, NO) \
    X("STUNPort", RELAY, NUMBER, V_LAST, NO) \
    X("STUNOnly", RELAY, TRUTH, V_FLAG, ITEM_STUN_ONLY) \
    X("DERPPort", RELAY, NUMBER, V_FIRST, NO) \
    X("CanPort80", RELAY, TRUTH, V_FLAG, ITEM_PORT80) \
    X("", SETS, ARRAY, AT_SET, NO) \
    X("", SETS, NULL, V_SET_NULL, NO) \
    X("", SET, OBJECT, AT_RULE, NO) \
    X("SrcIPs", RULE, ARRAY, AT_SOURCES, NO) \
    X("SrcBits", RULE, ARRAY, AT_SOURCE_BITS, NO) \
    X("DstPorts", RULE, ARRAY, AT_TARGETS, NO) \
    X("IPProto", RULE, ARRAY, AT_PROTOCOLS, NO) \
    X("", SOURCES, TEXT, V_SOURCE, NO) \
    X("", SOURCE_BITS, ANY, V_BAD, NO) \
    X("", TARGETS, NEW, AT_TARGET, NO) \
    X("IP", TARGET, TEXT, V_TEXT, NO) \
    X("Ports", TARGET, OBJECT, AT_PORTS, NO) \
    X("Bits", TARGET, NUMBER, V_BAD, NO) \
    X("First", PORTS, NUMBER, V_FIRST, NO) \
    X("Last", PORTS, NUMBER, V_LAST, NO) \
    X("", PROTOCOLS, NUMBER, V_PROTOCOL, NO) \
    X("URL", PING, TEXT, V_TEXT, NO) \
    X("URLIsNoise", PING, TRUTH, V_FLAG, ITEM_NOISE) \
    X("Types", PING, TEXT, V_MORE, NO) \
    X("Payload", PING, TEXT, V_PAYLOAD, NO) \
    X("Disabled", LOCK, TRUTH, V_UNLOCKED, NO) \
    TN_MAP_PLACE_ROWS(X) \
    TN_MAP_DNS_ROWS(X)

enum { TN_MAP_F_NEW, TN_MAP_F_OBJECT, TN_MAP_F_ARRAY, TN_MAP_F_TEXT, TN_MAP_F_NUMBER,
       TN_MAP_F_TRUTH, TN_MAP_F_NULL, TN_MAP_F_ANY };        /* NEW: an object, for the work */

typedef struct tn_map_row {
    uint8_t at, to, form, key_len;          /* form: also eight times the last        */
} tn_map_row;
#define TN_MAP_ROW(key, at, form, to, arg) \
    { TN_MAP_AT_##at, TN_MAP_##to, TN_MAP_F_##form | TN_MAP_##arg << 3, sizeof key - 1 },
static const tn_map_row tn_map_rows[] = { TN_MAP_ROWS(TN_MAP_ROW) { 0, 0, 0, 0 } };

/* Their keys, one behind the other. */
#define TN_MAP_KEY(key, at, form, to, arg) key
static const char tn_map_keys[] = TN_MAP_ROWS(TN_MAP_KEY);

/* The form of each event, from TN_JS_OBJECT on; 0: an end. */
static const uint8_t tn_map_forms[] = {
    TN_MAP_F_OBJECT, 0, TN_MAP_F_ARRAY, 0, TN_MAP_F_TEXT, TN_MAP_F_NUMBER,
    TN_MAP_F_TRUTH, TN_MAP_F_TRUTH, TN_MAP_F_NULL, 0
};

/* What this event is where it stands; NULL: nothing we look at. */
static const tn_map_row *tn_map_row_of(unsigned place, const tn_js *js, unsigned form)
{
    const tn_map_row *row = tn_map_rows;
    const char       *key = tn_map_keys;
    if (place == TN_MAP_AT_SELF || place == TN_MAP_AT_PATCH) place = TN_MAP_AT_NODE;
    for (; row->at != 0; key += row->key_len, row++) {
        unsigned want = row->form & 7u;
        if (row->at != place) continue;
        if (want == TN_MAP_F_NEW) want = TN_MAP_F_OBJECT;
        if ((want == form || want == TN_MAP_F_ANY) &&
            (row->key_len == 0 || (!js->key_cut && js->key_len == row->key_len &&
                                   memcmp(js->key, key, row->key_len) == 0))) return row;
    }
    return NULL;
}

/* ---- reading: a node ---- */

static void tn_map_node_name(tn_map_node_work *w, const char *text, size_t len)
{
    tn_map_peer *p = &w->peer;
    size_t       label, rest;
    len   = tn_map_name_len(text, len);
    label = tn_map_label_len(text, len);
    rest  = label < len ? label + 1 : label;
    if (len > 254 || label == 0 || label > 63 || tn_has_byte(text, len, '\0')) return;
    p->name_hash   = tn_map_hash(TN_MAP_HASH_BEGIN, text, len);
    p->domain_hash = tn_map_hash(TN_MAP_HASH_BEGIN, text + rest, len - rest);
    memset(p->name, 0, sizeof p->name);
    tn_map_label(p->name, TAILNET_MAX_NAME, text, label);
    if (!tn_text_copy(w->name, sizeof w->name, text, len)) w->name[0] = '\0';
}

/* An element of Addresses or AllowedIPs. What both have stands once. A prefix as Go
 * means it: one with bits set behind the mask is none. */
static void tn_map_node_prefix(tn_map *m, unsigned kind, const char *text, size_t len)
{
    tn_map_node_work *w  = &m->work.node;
    tn_map_prefix    *at = m->routes + m->limits.routes, *end = at + w->prefix_count;
    unsigned          bits;
    tailnet_addr      ip;
    if (!tn_cidr_parse(&ip, &bits, text, len)) return;
    if (kind == TN_MAP_LISTED && bits != 8u * tn_ip_len(ip.family)) return;
    if (bits == 0) {
        w->peer.flags |= TN_MAP_EXIT4 << tn_map_six(ip.family);
        return;
    }
    while (at < end && ((at->kind & 15u) != ip.family || at->bits != bits ||
                        memcmp(at->ip, ip.ip, 16) != 0)) at++;
    if (at == end) {
        if (w->prefix_count >= m->limits.routes + 2u) {
            m->dropped++;
            return;
        }
        w->prefix_count++;
        memset(at, 0, sizeof *at);
        memcpy(at->ip, ip.ip, 16);
        at->kind = ip.family;
        at->bits = (uint8_t)bits;
    }
    at->kind = (uint8_t)(at->kind | kind);
}

#if TAILNET_DIRECT
static void tn_map_node_place(tn_map_node_work *w, const char *text, size_t len)
{
    tailnet_addr  a;
    tn_map_place *at = &w->places[w->place_count];
    if (w->place_count >= TAILNET_MAX_CANDIDATES || !tn_addr_parse(&a, text, len) || a.port == 0)
        return;
    memcpy(at->ip, a.ip, 16);
    at->port   = a.port;
    at->family = a.family;
    w->place_count++;
}
#endif

/* A value as it stands in the message. */
typedef struct tn_map_value {
    const tn_js *js;
    const char  *text;
    size_t       len;                       /* 0 when the text was cut                */
    int64_t      n;                         /* -1 when it is no number                */
    int32_t      low16;                     /* the same, -1 when it has more than 16 bits */
    bool         on, cut;
} tn_map_value;

/* An address of a pair of the object: the flag good becomes true, or that two bits on,
 * which means unreadable. "" is Go's way to write none. */
static void tn_map_pair(tn_map *m, uint32_t good, uint8_t *at, unsigned family, const tn_js *js)
{
    tailnet_addr ip;
    bool         ok = tn_ip_parse(&ip, js->text, js->text_len) && ip.family == family;
    if (js->text_len == 0) return;
    m->work.flags |= ok ? good : good << 2;
    if (ok) memcpy(at, ip.ip, tn_ip_len(family));
}

static bool tn_map_node_key(tn_map *m, const tn_map_value *v, bool disco)
{
    tn_map_peer *p    = &m->work.node.peer;
    uint8_t     *at   = disco ? p->disco : p->key;
    bool         ok   = tn_key_parse(at, disco ? TN_KEY_DISCO : TN_KEY_NODE, v->text, v->len);
    bool         zero = tn_is_zero(at, 32);
    if (!disco) return ok && !zero;
    tn_map_set_flag(&p->flags, TN_MAP_DISCO_KEY, !zero);
    if (ok) m->named |= TN_MAP_DISCO_KEY;
    return ok;
}

/* Capabilities of our own node that mean something to us. */
static const char tn_map_attributes[3][14] = { "magicdns-aaaa", "only-tcp-443", "silent-disco" };

/* A member of a node that is no flag. False: it does not count. */
static bool tn_map_node_value(tn_map *m, const tn_flt *flt, unsigned value, const tn_map_value *v)
{
    tn_map_node_work *w = &m->work.node;
    tn_map_peer      *p = &w->peer;
    const char       *text = v->text;
    size_t            len = v->len;
    uint32_t          n;
    unsigned          i;
    switch (value) {
    case TN_MAP_V_ID:   p->id = v->n == -1 ? 0 : (uint64_t)v->n; break;     /* -1: unreadable */
    case TN_MAP_V_USER: p->user = (uint64_t)v->n; break;
    case TN_MAP_V_REGION:
        if (v->low16 <= 0) return false;
        p->region = (uint16_t)v->low16;
        break;
    case TN_MAP_V_LEGACY:
        if (tn_begins(text, len, "127.3.3.40:") && tn_u32_parse(text + 11, len - 11u, 0xffff, &n))
            w->legacy_region = (uint16_t)n;
        break;
    case TN_MAP_V_EXPIRY:
        m->named |= (uint32_t)TAILNET_PEER_EXPIRED;         /* later: it may be used again */
        return tn_date_parse(&p->expiry_ms, text, len);
    case TN_MAP_V_KEY:
    case TN_MAP_V_DISCO:   return tn_map_node_key(m, v, value == TN_MAP_V_DISCO);
    case TN_MAP_V_NAME:    tn_map_node_name(w, text, len); break;
    case TN_MAP_V_MASQ4:   tn_map_pair(m, TN_MAP_MASQ4, p->masq, 4, v->js); break;
    case TN_MAP_V_MASQ6:   tn_map_pair(m, TN_MAP_MASQ6, p->masq + 4, 6, v->js); break;
    case TN_MAP_V_ADDRESS: tn_map_node_prefix(m, TN_MAP_LISTED, text, len); break;
    case TN_MAP_V_ALLOWED: tn_map_node_prefix(m, TN_MAP_ALLOWED, text, len); break;
#if TAILNET_DIRECT
    case TN_MAP_V_PLACE:   tn_map_node_place(w, text, len); break;
#endif
    case TN_MAP_V_TAG:     p->flags |= (uint32_t)TAILNET_PEER_TAGGED; break;
    default:                                /* TN_MAP_V_CAP, TN_MAP_V_CAP_KEY */
        if (value == TN_MAP_V_CAP_KEY) {
            text = v->js->key;
            len  = v->js->key_cut ? 0 : v->js->key_len;
        }
        if (len != 0) p->caps |= tn_flt_cap(flt, text, len);
        for (i = 0; i < 3; i++)
            if (tn_is(text, len, tn_map_attributes[i]))
                w->attributes = (uint8_t)(w->attributes | 1u << i);
        break;
    }
    return true;
}

/* The node is complete; one without id or key is none. Sorts its prefixes into own
 * addresses and subnets (wireguard.md 8.1). */
static bool tn_map_node_end(tn_map *m)
{
    tn_map_node_work *w  = &m->work.node;
    tn_map_peer      *p  = &w->peer;
    tn_map_prefix    *at = m->routes + m->limits.routes, *to = at;
    uint32_t          flags = p->flags;
    uint16_t          n = w->prefix_count;
    bool own_only = !TN_MAP_HAS(m, ALLOWED) || (flags & TN_MAP_UNSIGNED) != 0;
    if (p->id == 0 || !TN_MAP_HAS(m, KEY)) return false;
    if (p->region == 0) p->region = w->legacy_region;
    if (own_only) flags &= ~(uint32_t)(TN_MAP_EXIT4 | TN_MAP_EXIT6);
    for (w->prefix_count = 0; n != 0; n--, at++) {
        unsigned family = at->kind & 15u, six = tn_map_six(family), len = tn_ip_len(family);
        bool     listed = (at->kind & TN_MAP_LISTED) != 0;
        bool     allowed = own_only ? listed : (at->kind & TN_MAP_ALLOWED) != 0;
        bool     own = listed || (at->bits == 8u * len && tn_map_is_tailnet(at->ip, family));
        if (listed && (flags & TN_MAP_HAS4 << six) == 0) {
            flags |= (allowed ? TN_MAP_HAS4 | TN_MAP_ROUTED4 : TN_MAP_HAS4) << six;
            memcpy(p->own + 4 * six, at->ip, len);
        } else if (allowed) {
            flags |= own ? TN_MAP_ROUTED : (uint32_t)TAILNET_PEER_HAS_ROUTES;
            at->kind = (uint8_t)(own ? family | TN_MAP_OWN : family);
            to[w->prefix_count++] = *at;
        }
    }
    if ((~flags & (TN_MAP_EXIT4 | TN_MAP_EXIT6)) == 0) flags |= (uint32_t)TAILNET_PEER_OFFERS_EXIT;
    p->flags = flags;
    return true;
}

/* A peer is complete: all that it did not say is absent. It is not ourselves. */
static void tn_map_peer_end(tn_map *m)
{
    const tn_map_peer *p = &m->work.node.peer;
    if (!tn_map_node_end(m)) return;
    if (m->has_self && (p->id == m->self.id || memcmp(p->key, m->self.key, 32) == 0)) return;
    m->has = 0xfe;
    m->work.flags |= TN_MAP_USED;
    m->todo = TN_MAP_DO_PLACE;
}

/* Our own node is complete. */
static void tn_map_self_end(tn_map *m)
{
    const tn_map_node_work *w = &m->work.node;
    tn_map_self             was, *s = &m->self;
    if (!tn_map_node_end(m)) return;
    memcpy(&was, s, sizeof was);
    s->id        = w->peer.id;
    s->expiry_ms = w->peer.expiry_ms;
    tn_copy_key(s->key, w->peer.key);
    (void)tn_map_addr(&w->peer, 4, &s->ip4);
    (void)tn_map_addr(&w->peer, 6, &s->ip6);
    s->authorized = (w->peer.flags & TN_MAP_AUTHORIZED) != 0;
    s->expired    = (w->peer.flags & TAILNET_PEER_EXPIRED) != 0;
    s->ipv6_names   = (w->attributes & 1u) != 0;
    s->only_tcp_443 = (w->attributes & 2u) != 0;
    s->silent_disco = (w->attributes & 4u) != 0;
    memcpy(s->name, w->name, sizeof s->name);
    m->node_seen = m->has_self = true;
    tn_map_note_expiry(m, s->expiry_ms);
    if (memcmp(s, &was, sizeof was) != 0) m->events |= TAILNET_EVENT_SELF | TAILNET_EVENT_DNS;
}

/* ---- reading: everything else ---- */

/* Adds a text to the object: plain characters only, nothing that could break a
 * request line or a name check, and all of it or none. */
static void tn_map_item_text(tn_map_item *w, char *dst, size_t cap, const tn_map_value *v)
{
    size_t i;
    bool   ok = !v->cut && tn_text_copy(dst, cap, v->text, v->len);
    for (i = 0; i < v->len; i++) ok = ok && v->text[i] > 0x20 && v->text[i] < 0x7f;
    if (!ok) {
        w->flags |= 1u << TN_MAP_ITEM_BAD;
        dst[0] = '\0';
    }
    w->text_len = (uint16_t)strlen(w->text);
}

/* Standard base64, all of it or a bad object. */
static void tn_map_item_payload(tn_map_item *w, const tn_map_value *v)
{
    uint32_t sum = 0, bits = 0;
    size_t   i;
    w->payload_len = 0;
    if (v->cut) w->flags |= 1u << TN_MAP_ITEM_BAD;
    for (i = 0; i < v->len && v->text[i] != '=' && (w->flags >> TN_MAP_ITEM_BAD & 1u) == 0; i++) {
        unsigned d = tn_base64_digit(v->text[i]);
        sum = sum << 6 | d;
        bits += 6;
        if (d > 63 || w->payload_len == sizeof w->payload) w->flags |= 1u << TN_MAP_ITEM_BAD;
        else if (bits >= 8) w->payload[w->payload_len++] = (uint8_t)(sum >> (bits -= 8) & 0xffu);
    }
}

/* A decimal fraction in thousandths, at most some 4,000,000,000; 0 for what is none.
 * Exponents and signs are not for us. */
static uint32_t tn_map_thousandths(const tn_js *js)
{
    uint32_t v = 0, scale = 1000;
    bool     point = false;
    uint16_t i;
    for (i = 0; i < js->text_len; i++) {
        unsigned d = (unsigned)(unsigned char)js->text[i] - '0';
        if (js->text[i] == '.') {
            point = true;
            continue;
        }
        if (d > 9) return 0;
        if (scale == 1) continue;
        v = (v < 400000ul ? v : (uint32_t)400000ul) * 10u + d;
        if (point) scale /= 10;
    }
    return v * scale;
}

/* The number of a relay region as a key; 0: none. */
static uint16_t tn_map_region_key(const tn_js *js)
{
    uint32_t id;
    return !js->key_cut && tn_u32_parse(js->key, js->key_len, 0xffff, &id) ? (uint16_t)id
                                                                           : (uint16_t)0;
}

static void tn_map_score_value(tn_map *m, const tn_js *js)
{
    uint32_t v  = tn_map_thousandths(js);
    uint16_t id = tn_map_region_key(js);
    unsigned i  = 0;
    if (id == 0 || v == 0 || v > 0xffff) return;
    while (i < TN_MAP_SCORES && m->scores[i].id != 0 && m->scores[i].id != id) i++;
    if (i == TN_MAP_SCORES) {
        m->dropped++;
        return;
    }
    m->scores[i].id          = id;
    m->scores[i].thousandths = (uint16_t)v;
}

/* The same URL twice is one request (the server repeats it until it is answered). */
static tn_map_result tn_map_ping_end(tn_map *m)
{
    tn_map_item *w = &m->work.item;
    uint32_t     h = tn_map_hash(TN_MAP_HASH_BEGIN, w->text, w->text_len);
    if ((w->flags & 1u << TN_MAP_ITEM_BAD) != 0 || w->text_len == 0 || h == m->ping_hash)
        return TN_MAP_OK;
    w->noise     = (w->flags & 1u << TN_MAP_ITEM_NOISE) != 0;
    m->ping_hash = h;
    return TN_MAP_PING;
}

/* The entry a delta is about; deltas beside a full list do not count. */
static bool tn_map_delta(const tn_map *m, int64_t id, uint16_t *index)
{
    return !m->listed && id != 0 && tn_map_by_id(m, (uint64_t)id, index);
}

static void tn_map_online(tn_map *m, const tn_map_value *v)
{
    int64_t  id;
    uint16_t i;
    uint32_t was;
    if (!tn_js_key_int(v->js, &id) || !tn_map_delta(m, id, &i)) return;
    was = m->peers[i].flags;
    tn_map_set_flag(&m->peers[i].flags, (uint32_t)TAILNET_PEER_ONLINE, v->on);
    if (was != m->peers[i].flags) m->events |= TAILNET_EVENT_PEERS;
}

#if TAILNET_DNS

static void tn_map_record_end(tn_map *m)
{
    tn_map_item *w   = &m->work.item;
    size_t       len = strlen(w->more);
    if (w->text_len == 0 || w->value.family == 0) return;
    if (len != 0 && !tn_is(w->more, len, "A") && !tn_is(w->more, len, "AAAA")) return;
    tn_map_dns_add(m, TN_MAP_DNS_RECORD, &w->value, w->text, w->text_len);
}

/* The domain of a split route is its key. */
static void tn_map_dns_route_begin(tn_map *m, const tn_js *js)
{
    tn_map_item *w = &m->work.item;
    tn_map_value v;
    memset(w, 0, sizeof *w);
    v.text = js->key;
    v.len  = js->key_len;
    v.cut  = js->key_cut;
    tn_map_item_text(w, w->text, sizeof w->text, &v);
    if (js->key_cut) m->dropped++;
}

/* Values of the name service. */
static void tn_map_dns_value(tn_map *m, unsigned value, const tn_map_value *v)
{
    tn_map_item *w = &m->work.item;
    switch (value) {
    case TN_MAP_V_VALUE:   (void)tn_ip_parse(&w->value, v->text, v->len); break;
    case TN_MAP_V_PROXIED:   m->dns_proxied = v->on; break;
    case TN_MAP_V_DOMAIN:
        memset(&w->value, 0, sizeof w->value);
        if (v->len != 0) tn_map_dns_add(m, TN_MAP_DNS_SEARCH, &w->value, v->text, v->len);
        break;
    case TN_MAP_V_RESOLVER:
    case TN_MAP_V_ROUTE_RESOLVER:
        tn_map_dns_resolver(m, value == TN_MAP_V_ROUTE_RESOLVER, v->text, v->len);
        break;
    case TN_MAP_V_ROUTE_NULL:
        tn_map_dns_route_begin(m, v->js);
        tn_map_dns_route_end(m);
        break;
    default: break;
    }
}

#endif

/* Values of the message and of its small objects. */
static tn_map_result tn_map_other_value(tn_map *m, tn_flt *flt, unsigned value,
                                        const tn_map_value *v)
{
    tn_map_item *w  = &m->work.item;
    const tn_js *js = v->js;
    uint16_t     i;
    switch (value) {
    case TN_MAP_V_TEXT:
        tn_map_item_text(w, w->text, sizeof w->text, v);
        break;
    case TN_MAP_V_MORE:
        tn_map_item_text(w, w->more, sizeof w->more, v);
        break;
    case TN_MAP_V_FIRST:   w->first = v->low16; break;
    case TN_MAP_V_LAST:    w->last = v->low16; break;
    case TN_MAP_V_IP4: tn_map_pair(m, TN_MAP_REGION_IP4, w->ip, 4, js); break;
    case TN_MAP_V_IP6: tn_map_pair(m, TN_MAP_REGION_IP6, w->ip + 4, 6, js); break;
    case TN_MAP_V_PAYLOAD: tn_map_item_payload(w, v); break;
    case TN_MAP_V_KEEP_ALIVE: m->keep_alive = v->on; break;
    case TN_MAP_V_BROWSE:     return v->len != 0 ? TN_MAP_BROWSE : TN_MAP_OK;
    case TN_MAP_V_TIME:       (void)tn_date_parse(&m->control_time_ms, v->text, v->len); break;
    case TN_MAP_V_UNLOCKED: if (v->on) m->lock_on = false; break;
    case TN_MAP_V_REMOVED:
        if (tn_map_delta(m, v->n, &i) && (m->peers[i].flags & TN_MAP_SEEN) == 0) tn_map_leave(m, i);
        break;
    case TN_MAP_V_ONLINE_OF: tn_map_online(m, v); break;
    case TN_MAP_V_SCORE:     tn_map_score_value(m, js); break;
    case TN_MAP_V_NOT_HOME:  if (v->on) m->region_flags = TN_MAP_REGION_NOT_HOME; break;
    case TN_MAP_V_SET_NULL: if (!js->key_cut) tn_flt_set_drop(flt, js->key, js->key_len); break;
    case TN_MAP_V_SOURCE:
        if (v->cut) tn_flt_rule_skip(flt);
        else        tn_flt_src(flt, v->text, v->len);
        break;
    case TN_MAP_V_PROTOCOL: tn_flt_proto(flt, v->n); break;
    case TN_MAP_V_BAD:      tn_flt_rule_bad(flt); break;
#if TAILNET_DNS
    default:                tn_map_dns_value(m, value, v); break;
#endif
    }
    return TN_MAP_OK;
}

static tn_map_result tn_map_take_value(tn_map *m, tn_flt *flt, const tn_map_row *row,
                                       const tn_js *js, tn_js_event ev)
{
    uint32_t     bit = (uint32_t)1 << (row->form >> 3);
    tn_map_value v;
    v.js   = js;
    v.text = js->text;
    v.cut  = js->text_cut;
    v.len  = v.cut ? 0 : js->text_len;
    v.on   = ev == TN_JS_TRUE;
    if (ev != TN_JS_NUMBER || !tn_js_int(js, &v.n)) v.n = -1;
    v.low16 = v.n < 0 || v.n > 0xffff ? -1 : (int32_t)v.n;
    if (row->to > TN_MAP_V_CAP_KEY) return tn_map_other_value(m, flt, row->to, &v);
    if (row->to == TN_MAP_V_FLAG) {
        m->named |= bit;
        tn_map_set_flag(&m->work.flags, bit, v.on);
    } else if (tn_map_node_value(m, flt, row->to, &v)) {
        m->has = (uint16_t)(m->has | bit);
    } else {
        m->has = (uint16_t)(m->has & ~bit);
    }
    return TN_MAP_OK;
}

/* A container begins. False: it is not for us. */
static bool tn_map_enter(tn_map *m, tn_flt *flt, const tn_map_row *row, tn_js *js)
{
    if ((row->form & 7u) == TN_MAP_F_NEW) {
        memset(&m->work, 0, sizeof m->work);
        m->named = m->has = 0;
    }
    m->has = (uint16_t)(m->has | 1u << (row->form >> 3));
    switch (row->to) {
    case TN_MAP_AT_NODE:
        if (row->at == TN_MAP_AT_PEERS) m->listed = true;
        return row->at == TN_MAP_AT_PEERS || !m->listed;
    case TN_MAP_AT_PATCH:  return !m->listed;
    case TN_MAP_AT_SCORES: memset(m->scores, 0, sizeof m->scores); break;
    case TN_MAP_AT_REGIONS:
        m->region_passed = false;
        tn_map_regions(m, true);
        break;
    case TN_MAP_AT_REGION:
        m->region_id = tn_map_region_key(js);
        if (m->region_id == 0) return false;
        m->region_flags = m->region_nth = 0;
        tn_map_region_mark(m, true);
        break;
#if TAILNET_DNS
    case TN_MAP_AT_DNS:
        m->dns_len     = 0;
        m->dns_proxied = false;
        m->dns_seen    = true;
        break;
    case TN_MAP_AT_ROUTE: tn_map_dns_route_begin(m, js); break;
    case TN_MAP_AT_ROUTE_RESOLVER: m->work.flags |= 1u << TN_MAP_ITEM_ANY; break;
#endif
    case TN_MAP_AT_SETS:
    case TN_MAP_AT_SET:
        if (!tn_flt_is_open(flt)) tn_flt_begin(flt, m->first);
        if (row->to == TN_MAP_AT_SETS) break;
        if (js->depth == 1) tn_flt_base(flt);
        else if (js->key_cut) return false; /* cannot be told from another: none      */
        else tn_flt_set(flt, js->key, js->key_len);
        break;
    case TN_MAP_AT_RULE: tn_flt_rule_begin(flt); break;
    case TN_MAP_AT_LOCK: m->lock_on = m->lock_seen = true; break;
    default: break;
    }
    return true;
}

/* A container ends. */
static TN_NOINLINE tn_map_result tn_map_exit_place(tn_map *m, tn_flt *flt, unsigned place)
{
    const tn_map_item *w = &m->work.item;
    switch (place) {
    case TN_MAP_AT_NODE: tn_map_peer_end(m); break;
    case TN_MAP_AT_SELF: tn_map_self_end(m); break;
    case TN_MAP_AT_PATCH:
        m->has = (uint16_t)(m->has & ~1u);
        m->todo = TN_MAP_DO_PLACE;
        break;
    case TN_MAP_AT_REGIONS:
        tn_map_regions(m, false);
        break;
    case TN_MAP_AT_REGION: tn_map_region_mark(m, false); break;
    case TN_MAP_AT_RELAY:   tn_map_relay_end(m); break;
#if TAILNET_DNS
    case TN_MAP_AT_DNS:     m->events |= TAILNET_EVENT_DNS; break;
    case TN_MAP_AT_ROUTE:   tn_map_dns_route_end(m); break;
    case TN_MAP_AT_RECORD:  tn_map_record_end(m); break;
#endif
    case TN_MAP_AT_RULE:    tn_flt_rule_end(flt); break;
    case TN_MAP_AT_TARGET:
        if ((w->flags & 1u << TN_MAP_ITEM_BAD) != 0 || w->first < 0 || w->last < 0)
            tn_flt_rule_skip(flt);
        else
            tn_flt_dst(flt, w->text, w->text_len, (uint16_t)w->first, (uint16_t)w->last);
        break;
    case TN_MAP_AT_PING: return tn_map_ping_end(m);
    default: break;
    }
    return TN_MAP_OK;
}

static void tn_map_message_begin(tn_map *m)
{
    tn_map_peer *p = NULL;
    while ((p = tn_map_each(m, p)) != NULL) p->flags &= ~TN_MAP_SEEN;
    m->keep_alive = m->listed = m->node_seen = m->dns_seen = m->lock_seen = false;
    m->passed_now      = false;
    m->under_way       = true;
    m->control_time_ms = 0;
    m->path[1]         = TN_MAP_AT_TOP;
}

/* The message is complete: the filter is switched, who was not listed goes. */
static tn_map_result tn_map_message_end(tn_map *m, tn_flt *flt)
{
    if (!m->node_seen && (m->keep_alive || m->first)) {
        if (tn_flt_is_open(flt)) tn_flt_abort(flt);
        m->under_way = !m->keep_alive;
        return m->keep_alive ? TN_MAP_OK : TN_MAP_ERROR;
    }
    if (m->first && !tn_flt_is_open(flt)) tn_flt_begin(flt, true);
    if (tn_flt_is_open(flt)) {
        m->filter_news = (uint8_t)tn_flt_commit(flt);
        if ((m->filter_news & TN_FLT_CHANGED) != 0) m->events |= TN_MAP_EVENT_FILTER;
        if ((m->filter_news & TN_FLT_NEW_CAP) != 0 && !m->reread_done) m->reread = true;
    }
    m->sweep_at = 0;
    m->todo     = m->first || m->listed ? TN_MAP_DO_SWEEP : TN_MAP_DO_FINISH;
    return TN_MAP_OK;
}

/* Takes one event of the message. CHANGE: fetch the changes before the next event.
 * PING and BROWSE: look now, it is gone with the next event. ERROR: the stream is
 * of no use. */
static TN_NOINLINE tn_map_result tn_map_take(tn_map *m, tn_flt *flt, tn_js *js, tn_js_event ev,
                                             uint64_t now_ms)
{
    const tn_map_row *row;
    tn_map_result     result = TN_MAP_OK;
    unsigned          form   = tn_map_forms[ev - TN_JS_OBJECT];
    if (ev == TN_JS_END) {
        result = tn_map_message_end(m, flt);
    } else if (form == 0) {
        if (js->depth + 1 < TN_MAP_PATH)
            result = tn_map_exit_place(m, flt, m->path[js->depth + 1]);
    } else if (js->depth == 0) {
        if (ev != TN_JS_OBJECT) return TN_MAP_ERROR;
        tn_map_message_begin(m);
    } else {
        row = js->depth + 1 < TN_MAP_PATH ? tn_map_row_of(m->path[js->depth], js, form) : NULL;
        if (row != NULL && (form > TN_MAP_F_ARRAY || (row->form & 7u) == TN_MAP_F_ANY)) {
            result = tn_map_take_value(m, flt, row, js, ev);
            row    = NULL;
        }
        if (form <= TN_MAP_F_ARRAY) {
            if (row == NULL || !tn_map_enter(m, flt, row, js)) tn_js_skip(js);
            else m->path[js->depth + 1] = row->to;
        }
    }
    tn_map_proceed(m, flt, now_ms);
    return result == TN_MAP_OK && m->change_kind != 0 ? TN_MAP_CHANGE : result;
}

/* ======================================================================== *
 * >>net — what the world looks like from here: our own addresses, those that
 * others see us under, how far the relay regions are, which is the nearest.
 *
 * Owns:    own addresses, mapped addresses with the time they were last seen,
 *          latencies per region with their minima of the last five minutes.
 * Calls:   >>base, >>crypto (a MAC), >>stun, >>map (read only).
 * States:  quiet, or a round is under way: a report that begins with a plan of
 *          probes and ends when they are answered or late. Wishes by pull.
 * Always:  one round at a time, three seconds at most; a trigger during it
 *          makes one more. A quiet node without sessions has no deadline.
 *          Nothing is sent while the world is silent.
 * Trust:   an answer counts for the one probe that its id names, which carries
 *          a MAC: no server can answer for another, or twice. What it says of
 *          our address is believed as far as to be told to peers.
 * ======================================================================== */

#define TN_NET_LIMIT_MS    3000u            /* a round (netcheck.go: stunProbeTimeout) */
#define TN_NET_PATIENCE_MS 1000u            /* after the last try of a probe      */
#define TN_NET_RETRY_MS    100u             /* full: between tries                */
#define TN_NET_GAP_MS      5u               /* full: between first tries          */
#define TN_NET_GUESS_MS    200u             /* incremental: latency not known     */
#define TN_NET_FULL_MS     300000ul         /* so old a full round may get        */
#define TN_NET_FRESH_MS    27000u           /* endpoints (magicsock.go)           */
#define TN_NET_AGAIN_MS    20000u           /* from round to round at least,      */
#define TN_NET_SPREAD_MS   6000u            /*   and at random so much more       */
#define TN_NET_HALF_MS     152500ul         /* two of them: 305 s of history      */
#define TN_NET_NEAR        10000ul          /* 10 ms, in thousandths              */
#define TN_NET_HEARD_MS    8000u            /* a frame from home since: it lives  */
#define TN_NET_ALIVE_MS    120000ul         /* the same when nothing answers      */
#define TN_NET_CACHE       303u             /* 310 s, in 1,024 ms: not seen again */
#define TN_NET_NEVER       0xfffffffful

enum {
    TN_NET_ENOUGH = 3,                      /* regions that have answered         */
    TN_NET_OWN    = TAILNET_MAX_CANDIDATES / 3 + 1,
    TN_NET_PLACES = TAILNET_MAX_CANDIDATES + (TAILNET_MAX_CANDIDATES < 4 ? 2 : 1),
    TN_NET_NAMES  = 2
};

/* News. */
enum { TN_NET_NEWS_REPORT = 1, TN_NET_NEWS_ENDPOINTS = 2 };

/* Which round is wanted. */
enum { TN_NET_PART = 1, TN_NET_FULL = 2 };

/* Bits of a region's set of probes, one set per address family. */
enum { TN_NET_SENT = 7, TN_NET_TRIES = 8, TN_NET_GOT = 64, TN_NET_WAITS = 128 };

/* What is known of an address of ours: first why it is told to others, the most useful
 * reason first; ONCE, TWICE and FIRST are of this round. */
enum {
    TN_NET_MAPPED = 1, TN_NET_STUN = 2, TN_NET_OWN_ONE = 4, TN_NET_GUESS = 8,
    TN_NET_ONCE = 16, TN_NET_TWICE = 32, TN_NET_FIRST = 64,
    TN_NET_KEPT = TN_NET_OWN_ONE | TN_NET_MAPPED,
    TN_NET_TOLD = TN_NET_KEPT | TN_NET_STUN | TN_NET_GUESS
};

typedef struct tn_net_place {
    uint8_t  ip[16];
    uint16_t port;
    uint8_t  family;                        /* 0: free                            */
    uint8_t  marks;
    uint32_t seen;                          /* in 1,024 ms                        */
} tn_net_place;

/* A relay that the map has without an address. */
enum { TN_NET_HAS4 = 1, TN_NET_HAS6 = 2, TN_NET_ASKED = 4 };
typedef struct tn_net_name {
    uint16_t region;                        /* 0: free                            */
    uint8_t  nth, state;
    uint8_t  ip[20];
} tn_net_name;

/* A region of the map that may be home. What is by family has IPv4 first. */
typedef struct tn_net_region {
    uint16_t id;                            /* 0: free                            */
    uint16_t ms[2];                         /* by family, the newest; 0: none     */
    uint16_t least[2];                      /* of this half-window, of the last; 0: none */
    uint8_t  sets[2];                       /* by family: sent + TRIES * tries + bits */
} tn_net_region;

typedef struct tn_net {
    uint8_t        news, pending;
    bool           silent, busy, full;      /* a round is under way; of all       */
    bool           udp, ip4, ip6;           /* of the last report: works          */
    uint8_t        varies, varies_now;      /* hard NAT: 0 unknown, 1 no, 2 yes   */
    uint8_t        have;                    /* families: bit 0: IPv4, bit 1: IPv6 */
    uint16_t       guess_port;              /* opened by a person, perhaps; or 0  */
    uint16_t       count, answered, got[2];
    uint16_t       end;                     /* of the round, ms after its start   */
    uint16_t       wait_ms;                 /* from round to round                */
    tn_net_region *regions;
    uint32_t       clock;                   /* now, in 1,024 ms, for the places   */
    uint64_t       start_ms, last_ms;       /* of this round; end of the last one */
    uint64_t       idle_ms;                 /* sessions were active until then    */
    uint32_t       full_ms, half_ms;        /* end of the last full; window since */
    tn_net_place   places[TN_NET_PLACES];
    tn_net_name    names[TN_NET_NAMES];
    uint8_t        secret[16];
} tn_net;

/* What the room sees of others. */
typedef struct tn_net_world {
    const tn_map *map;
    uint16_t      home;                     /* the region we serve, or mean to    */
    uint64_t      heard_ms;                 /* last frame from it; 0: none        */
    uint64_t      active_ms;                /* sessions are active until then     */
    bool          silent;                   /* no UDP now                         */
} tn_net_world;

typedef enum tn_net_do { TN_NET_SEND, TN_NET_RESOLVE } tn_net_do;

/* SEND: data to to. RESOLVE: look host up, then tn_net_resolved(query). */
typedef struct tn_net_wish {
    tn_net_do    kind;
    tailnet_addr to;
    uint32_t     query;
    const char  *host;
    uint8_t      data[TN_STUN_REQUEST_LEN];
} tn_net_wish;

static size_t tn_net_memory(uint16_t regions)
{
    return sizeof(tn_net_region) * regions;
}

static uint32_t tn_net_news(tn_net *n)
{
    uint32_t news = n->news;
    n->news = 0;
    return news;
}

/* Wants a round, now or when this one has ended. */
static TN_NOINLINE void tn_net_trigger(tn_net *n, bool full)
{
    n->pending |= full ? TN_NET_FULL : TN_NET_PART;
}

/* Are the endpoints new enough for a call-me-maybe? */
static bool tn_net_fresh(const tn_net *n, uint64_t now_ms)
{
    return n->last_ms <= now_ms && now_ms - n->last_ms <= TN_NET_FRESH_MS;
}

/* MappingVariesByDestIP: a hard NAT. */
static bool tn_net_varies(const tn_net *n) { return n->varies == 2; }

/* ---- addresses ---- */

/* What a place is worth: nothing when it is free, little when it was only seen, else by
 * age. What this round, a port mapping or the network itself vouches for stays. */
static uint32_t tn_net_worth(const tn_net_place *p)
{
    if ((p->marks & (TN_NET_KEPT | TN_NET_FIRST | TN_NET_TWICE)) != 0) return TN_NET_NEVER;
    return (p->marks & TN_NET_TOLD) != 0 ? p->seen + 2u : p->family != 0;
}

/* The place of an address, new or not; NULL: none is to be had. */
static tn_net_place *tn_net_note(tn_net *n, const tailnet_addr *a)
{
    tn_net_place *p, *best = NULL;
    uint32_t      least = TN_NET_NEVER;
    for (p = n->places; p < n->places + TN_NET_PLACES; p++) {
        if (p->family == a->family && p->port == a->port && memcmp(p->ip, a->ip, 16) == 0)
            return p;
        if (tn_net_worth(p) >= least) continue;
        least = tn_net_worth(p);
        best  = p;
    }
    if (best == NULL) return NULL;
    memcpy(best->ip, a->ip, sizeof best->ip);
    best->port   = a->port;
    best->family = a->family;
    best->marks  = 0;
    return best;
}

/* From now on this one is told to others, or still. */
static TN_NOINLINE void tn_net_tell(tn_net *n, tn_net_place *p, unsigned mark)
{
    if ((p->marks & TN_NET_TOLD) == 0) n->news |= TN_NET_NEWS_ENDPOINTS;
    p->marks = (uint8_t)(p->marks | mark);
    p->seen  = n->clock;
}

/* Takes marks away; what nobody vouches for then, or for too long, goes. */
static void tn_net_sweep(tn_net *n, unsigned marks)
{
    tn_net_place *p;
    for (p = n->places; p < n->places + TN_NET_PLACES; p++) {
        unsigned left = p->marks & ~marks;
        if ((left & (TN_NET_KEPT | TN_NET_ONCE)) == 0 &&
            ((left & TN_NET_TOLD) == 0 || n->clock - p->seen >= TN_NET_CACHE)) {
            if ((p->marks & TN_NET_TOLD) != 0) n->news |= TN_NET_NEWS_ENDPOINTS;
            p->family = 0;
            left      = 0;
        }
        p->marks = (uint8_t)left;
    }
}

/* All that was measured is of another network: begin anew. */
static void tn_net_forget(tn_net *n)
{
    n->busy    = n->udp = n->ip4 = n->ip6 = false;
    n->varies  = 0;
    n->pending = TN_NET_FULL;
    n->last_ms = TN_NEVER;
    tn_net_sweep(n, 255u - TN_NET_OWN_ONE);
    memset(n->regions, 0, tn_net_memory(n->count));
    memset(n->names, 0, sizeof n->names);
}

/* memory: of tn_net_memory bytes, 2-aligned. secret: random. */
static void tn_net_init(tn_net *n, uint16_t regions, void *memory, const uint8_t secret[16])
{
    memset(n, 0, sizeof *n);
    n->regions = (tn_net_region *)memory;
    n->count   = regions;
    n->silent  = true;
    n->have    = 1;
    memcpy(n->secret, secret, sizeof n->secret);
    tn_net_forget(n);
}

/* The network we are in, new or changed. */
static void tn_net_network(tn_net *n, const tailnet_network *network, uint64_t now_ms)
{
    const tailnet_addr *a = network->addrs, *end = a + network->addr_count;
    tn_net_place       *p;
    unsigned            own = 0;

    n->clock = (uint32_t)(now_ms >> 10);
    tn_net_trigger(n, false);
    if (network->changed || network->down) tn_net_forget(n);
    n->have       = a == end;
    n->guess_port = 0;
    for (p = n->places; p < n->places + TN_NET_PLACES; p++)
        p->marks = (uint8_t)(p->marks & ~(unsigned)TN_NET_OWN_ONE);
    for (; a < end; a++) {
        bool six = a->family == 6;
        if (!six || (a->ip[0] & 0xe0) == 0x20 || (a->ip[0] & 0xfe) == 0xfc)
            n->have |= six ? 2 : 1;
        if (!six && network->port_fixed) n->guess_port = a->port;
        if (a->port == 0 || own == TN_NET_OWN || (p = tn_net_note(n, a)) == NULL) continue;
        tn_net_tell(n, p, TN_NET_OWN_ONE);
        own++;
    }
    tn_net_sweep(n, 0);
}

/* The router maps this address to us; NULL: none any more, but others may know it yet. */
static TN_MAYBE_UNUSED void tn_net_mapped(tn_net *n, const tailnet_addr *external, uint64_t now_ms)
{
    tn_net_place *p;
    n->clock = (uint32_t)(now_ms >> 10);
    for (p = n->places; p < n->places + TN_NET_PLACES; p++)
        if ((p->marks & TN_NET_MAPPED) != 0) {
            tn_net_tell(n, p, TN_NET_STUN);
            p->marks ^= TN_NET_MAPPED;
        }
    if (external != NULL && (p = tn_net_note(n, external)) != NULL)
        tn_net_tell(n, p, TN_NET_MAPPED);
    tn_net_trigger(n, false);
}

/* Our UDP addresses, for control and for peers, the most useful first: mapped, STUN, own,
 * guess, then what was not seen by the last report (magicsock.go, determineEndpoints).
 * types: as in tailcfg.EndpointType. They age only when a report ends, with news. */
static size_t tn_net_list(const tn_net *n, tailnet_addr *out, uint8_t *types, size_t cap)
{
    static const uint8_t type[4] = { 3, 2, 1, 4 };
    uint32_t             last    = (uint32_t)(n->last_ms >> 10);
    const tn_net_place  *p;
    size_t               count = 0;
    unsigned             rank;
    if (n->silent) return 0;
    for (rank = 0; rank < 8; rank++) {
        unsigned mark = 1u << (rank & 3);   /* this one, and none before it       */
        for (p = n->places; p < n->places + TN_NET_PLACES && count < cap; p++) {
            bool old = (p->marks & TN_NET_KEPT) == 0 && p->seen < last;
            if ((p->marks & (2 * mark - 1)) != mark || old != (rank > 3)) continue;
            memset(out, 0, sizeof *out);
            memcpy(out->ip, p->ip, sizeof p->ip);
            out->family    = p->family;
            out++->port    = p->port;
            types[count++] = type[rank & 3];
        }
    }
    return count;
}

/* ---- a round ---- */

/* Latency of a region, 0: none. got: GOT for what this round brought, 0 for the last
 * known. */
static uint32_t tn_net_latency(const tn_net_region *g, unsigned got)
{
    uint32_t v4 = (g->sets[0] & got) == got ? g->ms[0] : 0u;
    uint32_t v6 = (g->sets[1] & got) == got ? g->ms[1] : 0u;
    return v4 - 1u < v6 - 1u ? v4 : v6;     /* 0 becomes the largest              */
}

/* A set is over. ms 0: without an answer. */
static void tn_net_close(tn_net_region *g, unsigned six, unsigned ms)
{
    g->sets[six] = ms != 0 ? TN_NET_GOT : 0;
    g->ms[six]   = (uint16_t)ms;
}

/* May a region of the map be measured, and be home? */
static bool tn_net_counts(const tn_map_region *g)
{
    return g != NULL && (g->flags & TN_MAP_REGION_NOT_HOME) == 0;
}

/* Makes the list of regions that of the map. */
static void tn_net_sync(tn_net *n, const tn_map *map)
{
    const tn_map_region *of_map;
    tn_net_region       *g, *spare, *end = n->regions + n->count;
    unsigned             k;
    for (g = n->regions; g < end; g++)
        if (!tn_net_counts(tn_map_region_by_id(map, g->id))) memset(g, 0, sizeof *g);
    for (k = 0; (of_map = tn_map_region_at(map, k)) != NULL; k++) {
        if (!tn_net_counts(of_map)) continue;
        spare = NULL;
        for (g = n->regions; g < end && g->id != of_map->id; g++)
            if (g->id == 0 && spare == NULL) spare = g;
        if (g == end && spare != NULL) spare->id = of_map->id;
    }
}

/* How often a region is asked in this round: three times, or by how near it was the last
 * time (netcheck.go, makeProbePlan). */
static unsigned tn_net_tries(const tn_net *n, const tn_net_region *g, uint16_t home)
{
    uint32_t             own = tn_net_latency(g, 0) - 1u, it;
    unsigned             nearer = 0;
    const tn_net_region *o;
    if (g->id == 0) return 0;
    if (n->full) return 3;
    if (g->id == home) return 4;
    for (o = n->regions; o < n->regions + n->count; o++) {
        it = tn_net_latency(o, 0) - 1u;
        if (o->id != 0 && (it < own || (it == own && o < g))) nearer++;
    }
    return nearer < 2 ? 2 : nearer == 2;
}

/* The same by IPv6. */
static unsigned tn_net_tries6(const tn_net *n, unsigned tries)
{
    if (n->full || (n->ip6 && (tries != 1 || !n->ip4))) return tries;
    return !n->ip6 && tries > 1;
}

static TN_NOINLINE void tn_net_begin(tn_net *n, const tn_net_world *x, uint64_t now_ms)
{
    tn_net_region *g;
    unsigned       s;
    n->full = n->pending >= TN_NET_FULL || (uint32_t)now_ms - n->full_ms >= TN_NET_FULL_MS;
    for (s = 0; s < TN_NET_NAMES; s++)      /* look up anew: what is old, or no answer came */
        if (n->full || (n->names[s].state & TN_NET_ASKED) != 0)
            memset(&n->names[s], 0, sizeof n->names[s]);
    tn_net_sync(n, x->map);
    for (g = n->regions; g < n->regions + n->count; g++) {
        unsigned tries = tn_net_tries(n, g, x->home);
        g->sets[0] = (uint8_t)(TN_NET_TRIES * tries * (n->have & 1));
        g->sets[1] = (uint8_t)(TN_NET_TRIES * tn_net_tries6(n, tries) * (n->have >> 1));
    }
    n->busy       = true;
    n->pending    = n->varies_now = 0;
    n->answered   = n->got[0] = n->got[1] = 0;
    n->start_ms   = now_ms;
    n->end        = TN_NET_LIMIT_MS;
}

/* When a set has its next try, or is given up, in ms after the start; NEVER: it is over,
 * or waits. */
static uint32_t tn_net_due(const tn_net *n, unsigned s)
{
    const tn_net_region *g = &n->regions[s / 2];
    unsigned set = g->sets[s % 2], k = set & TN_NET_SENT;
    uint32_t at = 0, step = tn_net_latency(g, 0) * 6u / 5u;

    if (set < TN_NET_TRIES || set >= TN_NET_GOT) return TN_NET_NEVER;
    if (k == set / TN_NET_TRIES) {
        at = TN_NET_PATIENCE_MS;
        k--;
    }
    if (n->full) return at + s * TN_NET_GAP_MS + k * TN_NET_RETRY_MS;
    if (step == 0) step = TN_NET_GUESS_MS;
    if (k > 1) step += 50;
    return at + k * step;
}

/* The end of the round or the next try; 0: all sets are over. */
static uint32_t tn_net_next(const tn_net *n)
{
    uint32_t at = n->end, due;
    unsigned s, open = 0;
    for (s = 0; s < 2u * n->count; s++) {
        open |= n->regions[s / 2].sets[s % 2] % TN_NET_GOT;
        due   = tn_net_due(n, s);
        if (due < at) at = due;
    }
    return open != 0 ? at : 0;
}

/* The id of a probe: its first four bytes say which and when, the rest proves it. */
static void tn_net_id(const tn_net *n, uint8_t id[12])
{
    uint8_t text[8];
    memcpy(text, id, 4);
    tn_put_u32be(text + 4, (uint32_t)n->start_ms);
    tn_cr_mac(id + 4, 8, n->secret, sizeof n->secret, text, sizeof text);
}

/* The address of a relay by name into wish->to. False: wait, for the wish to be done if
 * there is one. */
static bool tn_net_lookup(tn_net *n, const tn_map_region *g, unsigned family, tn_net_wish *wish)
{
    tn_net_name *e, *spare = NULL;
    for (e = n->names; e < n->names + TN_NET_NAMES; e++) {
        bool asked = (e->state & TN_NET_ASKED) != 0;
        if (e->region == g->id && e->nth == g->nth) {
            if ((e->state & (family == 6 ? TN_NET_HAS6 : TN_NET_HAS4)) != 0) {
                wish->to.family = (uint8_t)family;
                memcpy(wish->to.ip, e->ip + (family == 6 ? 4 : 0), tn_ip_len(family));
            }
            return !asked;
        }
        if (!asked && (spare == NULL || e->region == 0)) spare = e;
    }
    if (spare == NULL) return false;        /* other names are being looked up    */
    spare->region = g->id;
    spare->nth    = g->nth;
    spare->state  = TN_NET_ASKED;
    wish->kind    = TN_NET_RESOLVE;
    wish->host    = tn_map_region_host(g);
    wish->query   = (uint32_t)g->nth << 16 | g->id;
    return false;
}

/* Where try number k of a set goes: the relays of the region take turns. False: wait. */
static bool tn_net_where(tn_net *n, const tn_map *map, unsigned s, unsigned k, tn_net_wish *wish)
{
    const tn_map_region *g;
    const char          *host;
    unsigned             turn, family = 4 + s % 2 * 2;

    memset(wish, 0, sizeof *wish);
    for (turn = 0; turn < 64; turn++) {     /* 4 tries, 16 relays                 */
        g = tn_map_region_node(map, n->regions[s / 2].id, turn & TN_MAP_REGION_NTH);
        if (g == NULL || g->stun_port == 0 ||
            (g->flags & (unsigned)TN_MAP_REGION_NO4 << s % 2) != 0 || k-- != 0) continue;
        host = tn_map_region_host(g);
        tn_map_region_addr(g, family, &wish->to);
        if (wish->to.family == 0 && !tn_ip_parse(&wish->to, host, strlen(host)) &&
            !tn_net_lookup(n, g, family, wish)) return false;
        wish->to.port = g->stun_port;
        break;
    }
    if (wish->to.family != family) wish->to.family = 0;
    return true;
}

/* A set that is due. True: there is a wish. A probe that can bring nothing new ends its
 * set (netcheck.go, probeWouldHelp). */
static bool tn_net_probe(tn_net *n, const tn_map *map, unsigned s, uint64_t now_ms,
                         tn_net_wish *wish)
{
    tn_net_region *g   = &n->regions[s / 2];
    uint8_t       *set = &g->sets[s % 2], id[12];
    unsigned       sent = *set & TN_NET_SENT;
    tn_wr          w;

    if (tn_net_latency(g, TN_NET_GOT) != 0 && n->got[s % 2] >= 2 - s % 2) {
        *set = 0;
        return false;
    }
    if (sent == *set / TN_NET_TRIES) {
        tn_net_close(g, s % 2, 0);
        return false;
    }
    if (!tn_net_where(n, map, s, sent, wish)) {
        *set |= TN_NET_WAITS;
        return wish->host != NULL;
    }
    if (wish->to.family == 0) {
        tn_net_close(g, s % 2, 0);
        return false;
    }
    (*set)++;
    tn_put_u32be(id, (uint32_t)s << 16 | (uint32_t)(now_ms & 0xffff));
    tn_net_id(n, id);
    tn_wr_over(&w, wish->data, sizeof wish->data);
    tn_stun_wr_request(&w, id);
    return true;
}

/* What this round has shown of our addresses. Behind a hard NAT a person may have opened
 * the port that we use ourselves: worth a guess. */
static void tn_net_settle(tn_net *n)
{
    tn_net_place *p;
    tailnet_addr  guess;
    memset(&guess, 0, sizeof guess);
    for (p = n->places; p < n->places + TN_NET_PLACES; p++) {
        if ((p->marks & (TN_NET_FIRST | TN_NET_TWICE)) != 0)
            tn_net_tell(n, p, TN_NET_STUN);
        if ((p->marks & TN_NET_FIRST) == 0 || p->family != 4) continue;
        guess.family = 4;
        guess.port   = n->guess_port;
        memcpy(guess.ip, p->ip, 4);
    }
    if (n->varies == 2 && guess.port != 0 && (p = tn_net_note(n, &guess)) != NULL)
        tn_net_tell(n, p, TN_NET_GUESS);
    tn_net_sweep(n, TN_NET_ONCE | TN_NET_TWICE | TN_NET_FIRST);
}

static void tn_net_finish(tn_net *n, uint64_t now_ms, uint32_t luck)
{
    uint32_t       halves, ms;
    unsigned       six;
    tn_net_region *g;
    if (n->last_ms == TN_NEVER) n->half_ms = (uint32_t)now_ms;
    halves      = ((uint32_t)now_ms - n->half_ms) / (uint32_t)TN_NET_HALF_MS;
    n->half_ms += halves * (uint32_t)TN_NET_HALF_MS;
    for (g = n->regions; g < n->regions + n->count; g++) {
        if (halves != 0) {
            g->least[1] = halves > 1 ? (uint16_t)0 : g->least[0];
            g->least[0] = 0;
        }
        for (six = 0; six < 2; six++)
            if (g->sets[six] % TN_NET_GOT != 0) tn_net_close(g, six, 0);
        ms = tn_net_latency(g, TN_NET_GOT);
        if (ms - 1u < g->least[0] - 1u) g->least[0] = (uint16_t)ms;
    }
    n->ip4 = n->got[0] != 0;
    n->ip6 = n->got[1] != 0;
    n->udp = n->ip4 || n->ip6;
    if (n->varies_now != 0) n->varies = n->varies_now;
    n->clock = (uint32_t)(now_ms >> 10);
    tn_net_settle(n);
    n->busy    = false;
    n->last_ms = now_ms;
    if (n->full) n->full_ms = (uint32_t)now_ms;
    n->wait_ms = (uint16_t)(TN_NET_AGAIN_MS + luck % (TN_NET_SPREAD_MS + 1));
    n->news   |= TN_NET_NEWS_REPORT;
}

/* When the next round of its own begins; TN_NEVER: nobody talks. */
static uint64_t tn_net_periodic(const tn_net *n, const tn_net_world *x)
{
    uint64_t at = tn_time_add(n->last_ms, n->wait_ms);
    return at < x->active_ms && x->active_ms != n->idle_ms ? at : TN_NEVER;
}

/* In poll: call and do the wish until it is false. luck: any random number. */
static TN_NOINLINE bool tn_net_step(tn_net *n, const tn_net_world *x, uint64_t now_ms,
                                    uint32_t luck, tn_net_wish *wish)
{
    unsigned s;
    uint32_t t;
    if (x->silent != n->silent) {
        tn_net_forget(n);
        n->silent = x->silent;
        n->news  |= TN_NET_NEWS_ENDPOINTS;
    }
    if (n->silent) return false;
    if (!n->busy) {
        if (now_ms >= x->active_ms) n->idle_ms = x->active_ms;
        if (n->pending == 0 && now_ms < tn_net_periodic(n, x)) return false;
        tn_net_begin(n, x, now_ms);
    }
    t = (uint32_t)(now_ms - n->start_ms);
    for (s = 0; s < 2u * n->count && t < n->end; s++)
        if (tn_net_due(n, s) <= t && tn_net_probe(n, x->map, s, now_ms, wish)) return true;
    if (tn_net_next(n) <= t) tn_net_finish(n, now_ms, luck);
    return false;
}

/* When tn_net_step has to be called. */
static uint64_t tn_net_deadline(const tn_net *n, const tn_net_world *x)
{
    if (x->silent) return n->silent ? TN_NEVER : 0;
    if (n->busy) return tn_time_add(n->start_ms, tn_net_next(n));
    return n->pending != 0 || n->silent ? 0 : tn_net_periodic(n, x);
}

/* The answer to a RESOLVE wish; none or an empty one: no address. False: nobody asked. */
static bool tn_net_resolved(tn_net *n, uint32_t query, const tailnet_addr *addrs, size_t count)
{
    tn_net_name *e = n->names;
    unsigned     s;
    while ((e->state & TN_NET_ASKED) == 0 || ((uint32_t)e->nth << 16 | e->region) != query)
        if (++e == n->names + TN_NET_NAMES) return false;
    e->state = 0;
    for (; count != 0; count--, addrs++) {
        unsigned has = addrs->family == 6 ? TN_NET_HAS6 : TN_NET_HAS4;
        if (tn_ip_len(addrs->family) == 0 || (e->state & has) != 0) continue;
        memcpy(e->ip + (addrs->family == 6 ? 4 : 0), addrs->ip, tn_ip_len(addrs->family));
        e->state = (uint8_t)(e->state | has);
    }
    for (s = 0; s < 2u * n->count; s++) n->regions[s / 2].sets[s % 2] &= TN_NET_WAITS - 1;
    return true;
}

/* Somebody saw us under this address. */
static TN_NOINLINE void tn_net_saw(tn_net *n, const tailnet_addr *a, bool first)
{
    tn_net_place *p     = tn_net_note(n, a);
    unsigned      marks = p == NULL ? 0u : p->marks;
    if (a->family == 4 && !first && n->varies_now != 2)
        n->varies_now = (marks & TN_NET_FIRST) != 0 ? 1 : 2;
    if (p == NULL) return;
    if (first) marks |= TN_NET_FIRST;
    p->marks = (uint8_t)(marks | TN_NET_ONCE | (marks & TN_NET_ONCE) << 1);
}

/* Enough regions have answered: the others, once they are all asked, get as long as the
 * slowest, or twice. */
static void tn_net_hurry(tn_net *n, uint64_t now_ms)
{
    uint32_t most = 0, at = (uint32_t)(now_ms - n->start_ms), ms;
    unsigned i;
    for (i = 0; i < n->count; i++) {
        ms = tn_net_latency(&n->regions[i], TN_NET_GOT);
        if (ms > most) most = ms;
        ms = 2u * TN_NET_GAP_MS * i;
        if (n->full && n->regions[i].id != 0 && ms > at) at = ms;
    }
    at += n->full ? 2 * most : most;
    if (at < n->end) n->end = (uint16_t)at;
}

/* A datagram that looks like STUN. True: the answer to a probe of ours. Where it came
 * from does not matter (stun.go). */
static TN_NOINLINE bool tn_net_input(tn_net *n, const uint8_t *data, size_t len, uint64_t now_ms)
{
    uint8_t        id[12], want[12];
    tailnet_addr   seen;
    unsigned       s;
    uint16_t       ms;
    tn_net_region *g;

    if (!n->busy || !tn_stun_id(data, len, id)) return false;
    memcpy(want, id, 4);
    tn_net_id(n, want);
    s  = (unsigned)id[0] << 8 | id[1];
    ms = (uint16_t)((now_ms - tn_get_u32be(id)) & 0xffff);
    if (s >= 2u * n->count || ms >= TN_NET_LIMIT_MS ||
        tn_stun_parse(data, len, want, &seen) != TAILNET_OK || seen.family != 4 + s % 2 * 2 ||
        seen.port == 0)
        return false;
    g = &n->regions[s / 2];
    if ((g->sets[s % 2] & TN_NET_GOT) != 0) return true;
    if (tn_net_latency(g, TN_NET_GOT) == 0) n->answered++;
    tn_net_close(g, s % 2, ms == 0 ? 1 : ms);
    tn_net_saw(n, &seen, n->got[s % 2]++ == 0);
    if (n->answered == TN_NET_ENOUGH) tn_net_hurry(n, now_ms);
    return true;
}

/* ---- home ---- */

/* After a report: the region that should be home by it; 0: it does not say. An old home
 * stays unless the new one is clearly nearer (netcheck.go,
 * addReportHistoryAndSetPreferredDERP). Among equals the lowest number. */
static TN_NOINLINE uint16_t tn_net_prefer(const tn_net *n, const tn_net_world *x, uint64_t now_ms)
{
    uint32_t since = x->heard_ms == 0 ? (uint32_t)TN_NET_NEVER : (uint32_t)(now_ms - x->heard_ms);
    bool     heard = since <= TN_NET_HEARD_MS || since <= (uint32_t)(now_ms - n->start_ms);
    uint32_t best = 0, home_now = 0;
    uint16_t pref = 0;
    const tn_net_region *g;

    for (g = n->regions; g < n->regions + n->count; g++) {
        uint16_t id    = g->id;
        uint32_t score = tn_map_region_score(x->map, id), least = g->least[0];
        uint32_t ms    = tn_net_latency(g, TN_NET_GOT) * score;
        if (ms == 0) continue;
        if (g->least[1] - 1u < least - 1u) least = g->least[1];
        least *= score;
        if (id == x->home) home_now = ms;
        if (pref != 0 && (least > best || (least == best && id > pref))) continue;
        best = least;
        pref = id;
    }
    if (x->home == 0 || pref == x->home) return pref;
    if ((home_now != 0 || heard) &&
        (home_now < best + TN_NET_NEAR || best > home_now / 3 * 2)) return x->home;
    return pref == 0 && since <= TN_NET_ALIVE_MS ? x->home : pref;
}
/* ======================================================================== *
 * >>path — which way to one peer: the addresses it may have, pings that try
 * them, trust in the best, and the relay for the rest of the time.
 *
 * Owns:    candidates, the best of them, and what is due to be sent. Sealing,
 *          sockets, relays and our own addresses are the node's.
 * Calls:   >>base, >>crypto (one keyed hash), >>disco (reading a call).
 * States:  NONE -> TRUSTED on a pong; TRUSTED -> TRUSTED on each further one;
 *          TRUSTED -> UNTRUSTED 6.5 s after the last, or when the peer calls
 *          and leaves the best out; UNTRUSTED -> TRUSTED on any pong; TRUSTED,
 *          UNTRUSTED -> NONE when a ping to the best stays without answer, on
 *          a network change, or when the best is deleted.
 * Always:  best is a slot in use exactly while the state is not NONE. By
 *          traffic one ping per candidate in 5 s (heartbeats to the best each
 *          3 s), and one call in 5 s. After step said QUIET the deadline lies in the future.
 *          To an address that only a ping's source named, and that never answered,
 *          no more is sent than came from there.
 * Trust:   whatever comes in was authenticated by disco or WireGuard. The peer
 *          may name any address, and repeat: an address becomes the best only
 *          after it answered a ping that was sent to it.
 * ======================================================================== */

/* Reference: wgengine/magicsock/{magicsock,endpoint}.go. */
#define TN_PATH_SESSION_MS 45000ul          /* heartbeats after the last use      */
#define TN_PATH_METERED_MS 3000u            /* the same when bytes cost money     */
#define TN_PATH_BEAT_MS    3000u
#define TN_PATH_TRUST_MS   6500u
#define TN_PATH_PLAIN_MS   15000u           /* trust in a peer without disco: its
                                               keepalive answers within 10 s      */
#define TN_PATH_PING_MS    5000u            /* no answer after this; and not sooner again */
#define TN_PATH_UPGRADE_MS 60000ul          /* looks for something better         */
#define TN_PATH_GOOD_MS    5u               /* and not when it is that fast       */
#define TN_PATH_HEED_MS    1000u            /* calls that make us ping            */

enum {
    TN_PATH_CALL_MAX = 16,                  /* addresses used of one call         */
    TN_PATH_PRICE    = 124,                 /* bytes of a ping                    */
    TN_PATH_RESERVE  = TAILNET_MAX_CANDIDATES / 4,  /* kept for sources of pings  */
    TN_PATH_NO_SLOT  = 0xff
};

typedef enum tn_path_state { TN_PATH_NONE, TN_PATH_TRUSTED, TN_PATH_UNTRUSTED } tn_path_state;

/* What a candidate is known from, and marks of work on it. */
enum {
    TN_PATH_LISTED = 1,                     /* control names it                   */
    TN_PATH_CALLED = 2,                     /* the peer's last call-me-maybe does */
    TN_PATH_HEARD  = 4,                     /* the peer sent from there           */
    TN_PATH_DUE    = 8,                     /* to be pinged                       */
    TN_PATH_OLD    = 16,                    /* named before; and now?             */
    TN_PATH_ECHOED = 32,                    /* pinged back since the last round   */
    TN_PATH_PROVEN = 64                     /* answered a ping                    */
};

/* What runs, and what is due. */
enum { TN_PATH_BEATS = 1, TN_PATH_DOUBT = 2, TN_PATH_DUE_PING = 4, TN_PATH_DUE_CALL = 8 };

/* Answers of tn_path_use and tn_path_pong_in. */
enum { TN_PATH_UDP = 1, TN_PATH_RELAY = 2 };
enum { TN_PATH_MINE = 1, TN_PATH_CHANGED = 2, TN_PATH_OWES = 4 };

/* Times are the low 32 bits of the clock, and always moments that have passed:
 * what counts is their age, which is right for 49 days and harmless after. */
typedef struct tn_path_place {
    tailnet_addr addr;                      /* family 0: the slot is free         */
    uint32_t     pinged;
    uint32_t     answered;                  /* when the last ping answered was sent */
    uint32_t     heard;                     /* last ping from there               */
    uint16_t     heard_tx;                  /* its end, to know it again          */
    uint8_t      flags;
    uint8_t      paid;                      /* bytes of WireGuard's from there, for a ping */
} tn_path_place;

typedef struct tn_path {
    tn_path_state state;
    uint8_t       best;                     /* slot or NO_SLOT                    */
    uint8_t       due;
    uint8_t       turn;                     /* plain: slot tried last             */
    uint8_t       lacks;                    /* 4, 6: a family we have not; 0: none */
    uint8_t       owed;                     /* slot whose ping waits for its answer */
    uint8_t       owed_tx[12];              /* that ping's id                     */
    bool          metered, silent, plain;   /* the node's to set                  */
    uint32_t      latency_ms;               /* of best, at least 1                */
    uint32_t      trusted, doubted;         /* last pong of best; ping in doubt   */
    uint32_t      used, beat;               /* last use; last heartbeat           */
    uint32_t      full, called, heeded;     /* ping round; our call; its call     */
    uint8_t       seed[16];
    tn_path_place places[TAILNET_MAX_CANDIDATES];
} tn_path;

TN_STATIC_ASSERT(candidates_limit, TAILNET_MAX_CANDIDATES >= 1 && TAILNET_MAX_CANDIDATES <= 32);

/* What step wants sent. */
typedef enum tn_path_want { TN_PATH_QUIET, TN_PATH_PING, TN_PATH_CALL } tn_path_want;

typedef struct tn_path_wish {
    tailnet_addr to;
    uint8_t      tx[12];
} tn_path_wish;

typedef struct tn_path_pong {
    tailnet_addr to;                        /* the address that was pinged        */
    uint32_t     latency_ms;
} tn_path_pong;

static uint32_t tn_path_age(uint32_t now, uint32_t since) { return now - since; }

/* ---- the worth of an address ---- */

enum { TN_PATH_NEVER = 255 };

/* Loopback 50, link-local 30, private 20, else 0: as betterAddr has it. NEVER are
 * such as cannot be a peer's: multicast, broadcast, and the tailnet's own, where a
 * ping would run through the tunnel into itself. */
static unsigned tn_path_worth(const tailnet_addr *a)
{
    static const uint8_t worth[TN_ADDR_KINDS] = {
        /* PUBLIC */ 0, /* UNIQUE */ 20, /* RESERVED */ TN_PATH_NEVER, /* NOBODY */ TN_PATH_NEVER,
        /* MULTICAST */ TN_PATH_NEVER, /* TAILNET */ TN_PATH_NEVER, /* LOOPBACK */ 50,
        /* LINK_LOCAL */ 30, /* PRIVATE */ 20
    };
    return a->port == 0 ? (unsigned)TN_PATH_NEVER : worth[tn_addr_kind_of(a)];
}

/* Is a better than b? By how many percent it is faster, with a bonus for near
 * addresses and for IPv6 (reference: betterAddr, whose relays and MTU probes we
 * have not). Latencies of any unit, at most 40 millions. */
static bool tn_path_better(const tailnet_addr *a, uint32_t a_latency,
                           const tailnet_addr *b, uint32_t b_latency)
{
    uint32_t for_a = 0, for_b = 0;
    if (tn_addr_same(a, b)) return false;
    if (a_latency > b_latency) for_b = 100u - b_latency * 100u / a_latency;
    else if (b_latency != 0)   for_a = 100u - a_latency * 100u / b_latency;
    for_a += tn_path_worth(a) + (a->family == 6 ? 10u : 0u);
    for_b += tn_path_worth(b) + (b->family == 6 ? 10u : 0u);
    return for_a > for_b && (for_a > 1 || for_b != 0);
}

/* ---- the state ---- */

static const uint8_t tn_path_arrows[3] = {
    /* NONE      */ 1u << TN_PATH_TRUSTED,
    /* TRUSTED   */ 1u << TN_PATH_NONE | 1u << TN_PATH_TRUSTED | 1u << TN_PATH_UNTRUSTED,
    /* UNTRUSTED */ 1u << TN_PATH_NONE | 1u << TN_PATH_TRUSTED
};

/* The only place where the state changes. A ping sent before a pong came cannot
 * time out after the trust of that pong, so each arrow that sets trust or takes
 * the best away ends the doubt. */
static void tn_path_enter(tn_path *p, tn_path_state next, uint32_t now)
{
    TAILNET_ASSERT((tn_path_arrows[p->state] >> next & 1u) != 0);
    p->state = next;
    if (next == TN_PATH_UNTRUSTED) return;
    p->due = (uint8_t)(p->due & ~(unsigned)TN_PATH_DOUBT);
    if (next == TN_PATH_TRUSTED) p->trusted = now;
    else                         p->best = TN_PATH_NO_SLOT;
}

static uint32_t tn_path_trust_ms(const tn_path *p)
{
    return p->plain ? TN_PATH_PLAIN_MS : TN_PATH_TRUST_MS;
}

/* Trust ends by itself: every entry looks at the clock first. */
static void tn_path_look(tn_path *p, uint32_t now)
{
    if (p->state == TN_PATH_TRUSTED && tn_path_age(now, p->trusted) > tn_path_trust_ms(p))
        tn_path_enter(p, TN_PATH_UNTRUSTED, now);
}

/* The best is no more. */
static bool tn_path_lose(tn_path *p, uint32_t now)
{
    if (p->state == TN_PATH_NONE) return false;
    tn_path_enter(p, TN_PATH_NONE, now);
    return true;
}

static void tn_path_init(tn_path *p, const uint8_t seed[16], uint64_t now_ms)
{
    uint32_t now = (uint32_t)now_ms;
    memset(p, 0, sizeof *p);
    memcpy(p->seed, seed, sizeof p->seed);
    p->best   = p->owed = TN_PATH_NO_SLOT;
    p->turn   = TAILNET_MAX_CANDIDATES - 1;
    p->full   = p->called = now - TN_PATH_PING_MS;
    p->heeded = now - TN_PATH_PING_MS;
}

/* ---- candidates ---- */

/* The slot of an address, or NO_SLOT. */
static unsigned tn_path_find(const tn_path *p, const tailnet_addr *a)
{
    unsigned i;
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) {
        if (p->places[i].addr.family != 0 && tn_addr_same(&p->places[i].addr, a)) return i;
    }
    return TN_PATH_NO_SLOT;
}

/* Removes what nobody names any more, and sources of pings after 45 s. A plain
 * peer's best stays: nothing else would find it again. */
static void tn_path_sweep(tn_path *p, uint32_t now)
{
    unsigned i;
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) {
        tn_path_place *c = &p->places[i];
        bool heard = (c->flags & TN_PATH_HEARD) != 0 &&
                     tn_path_age(now, c->heard) <= TN_PATH_SESSION_MS;
        if (c->addr.family == 0) continue;
        if (c->addr.family != p->lacks) {
            if (heard || (c->flags & (TN_PATH_LISTED | TN_PATH_CALLED)) != 0) continue;
            if (p->plain && i == p->best) continue;
        }
        if (i == p->best) (void)tn_path_lose(p, now);
        memset(c, 0, sizeof *c);
    }
}

/* A slot for a newcomer, or NO_SLOT; never that of the best. What control and the
 * peer name displaces the other's when it fills its part, as it is newer; the
 * reserve belongs to sources of pings, the only ones that reach behind a hard NAT. */
static unsigned tn_path_room(const tn_path *p, unsigned kind, uint32_t now)
{
    unsigned i, named = 0, open = TN_PATH_NO_SLOT, oldest = TN_PATH_NO_SLOT;
    unsigned other = TN_PATH_NO_SLOT;
    for (i = TAILNET_MAX_CANDIDATES; i-- != 0;) {
        const tn_path_place *c = &p->places[i];
        if (c->addr.family == 0) {
            open = i;
        } else if ((c->flags & (TN_PATH_LISTED | TN_PATH_CALLED)) != 0) {
            named++;
            if (i != p->best && (c->flags & kind) == 0) other = i;
        } else if (i != p->best &&
                   (oldest == TN_PATH_NO_SLOT || tn_path_age(now, c->heard) >
                                                     tn_path_age(now, p->places[oldest].heard))) {
            oldest = i;
        }
    }
    if (kind != TN_PATH_HEARD && named >= TAILNET_MAX_CANDIDATES - TN_PATH_RESERVE) return other;
    if (open != TN_PATH_NO_SLOT) return open;
    return oldest != TN_PATH_NO_SLOT ? oldest : other;  /* other: with a table too small */
}

/* Makes an address a candidate, if it is none yet. Its slot or NO_SLOT. */
static unsigned tn_path_put(tn_path *p, const tailnet_addr *a, unsigned kind, uint32_t now)
{
    unsigned       i = tn_path_find(p, a), worth = tn_path_worth(a);
    tn_path_place *c;
    if (i != TN_PATH_NO_SLOT) return i;
    if (worth == TN_PATH_NEVER || a->family == p->lacks) return i;
    if (worth == 30 && a->family == 6 && a->scope == 0) return i;   /* on which link? */
    i = tn_path_room(p, kind, now);
    if (i == TN_PATH_NO_SLOT) return i;
    c = &p->places[i];
    memset(c, 0, sizeof *c);
    c->addr     = *a;
    c->flags    = (uint8_t)kind;
    c->pinged   = now - TN_PATH_PING_MS;
    c->answered = now - 1;
    c->heard    = now - TN_PATH_PING_MS;
    return i;
}

/* A list of addresses takes the place of the former list of its kind: from list,
 * or from the message m. First those that we know, so that no newcomer displaces
 * them. What a call leaves out is deleted, whoever else names it. */
static void tn_path_name(tn_path *p, unsigned kind, const tailnet_addr *list,
                         const tn_disco_msg *m, size_t count, uint32_t now)
{
    unsigned pass, slot;
    size_t   i;
    for (slot = 0; slot < TAILNET_MAX_CANDIDATES; slot++) {
        tn_path_place *c = &p->places[slot];
        if ((c->flags & kind) != 0) c->flags = (uint8_t)(c->flags ^ (kind | TN_PATH_OLD));
    }
    for (pass = 0; pass < 2; pass++) {
        for (i = 0; i < count; i++) {
            tailnet_addr a;
            if (m != NULL) (void)tn_disco_endpoint(m, i, &a);
            else           a = list[i];
            slot = pass == 0 ? tn_path_find(p, &a) : tn_path_put(p, &a, kind, now);
            if (slot == TN_PATH_NO_SLOT) continue;
            p->places[slot].flags =
                (uint8_t)((p->places[slot].flags & ~(unsigned)TN_PATH_OLD) | kind);
        }
        for (slot = 0; slot < TAILNET_MAX_CANDIDATES; slot++) {
            tn_path_place *c = &p->places[slot];
            if ((c->flags & TN_PATH_OLD) == 0) continue;
            c->flags = kind == TN_PATH_CALLED ? 0 : (uint8_t)(c->flags ^ TN_PATH_OLD);
        }
        tn_path_sweep(p, now);
    }
}

/* The addresses that the map names for the peer now. */
static void tn_path_listed(tn_path *p, const tailnet_addr *list, size_t count, uint64_t now_ms)
{
    tn_path_name(p, TN_PATH_LISTED, list, NULL, count, (uint32_t)now_ms);
}

/* The address of the best; false: there is none. */
static TN_MAYBE_UNUSED bool tn_path_best(const tn_path *p, tailnet_addr *out)
{
    if (p->best == TN_PATH_NO_SLOT) return false;
    *out = p->places[p->best].addr;
    return true;
}

/* ---- what is to be sent ---- */

/* May anybody have put this address here who forged the source of a ping, or sent
 * one of the peer's once more? Then it gets a ping for a ping, and nothing else. */
static bool tn_path_is_doubtful(const tn_path_place *c)
{
    return (c->flags & (TN_PATH_LISTED | TN_PATH_CALLED | TN_PATH_PROVEN)) == 0;
}

static void tn_path_due(tn_path *p, unsigned slot)
{
    p->places[slot].flags |= TN_PATH_DUE;
    p->due |= TN_PATH_DUE_PING;
}

/* A full round: pings all candidates that were not in the last 5 s, and calls the
 * peer. Also when there is none to ping now: we may know no address (the peer may
 * know ours; the reference waits for the peer then), or the peer's own call made us
 * ping them all a moment ago, and it does not know where we are. When metered and
 * the best only has to prove itself again, no other is asked. */
static void tn_path_round(tn_path *p, bool call, uint32_t now)
{
    bool     cheap = call && p->metered && p->best != TN_PATH_NO_SLOT;
    unsigned i;
    p->full = now;
    tn_path_sweep(p, now);
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) {
        const tn_path_place *c = &p->places[i];
        if (c->addr.family == 0 || tn_path_age(now, c->pinged) < TN_PATH_PING_MS) continue;
        if (cheap && i != p->best) continue;
        p->places[i].flags = (uint8_t)(c->flags & ~(unsigned)TN_PATH_ECHOED);
        if (!tn_path_is_doubtful(c)) tn_path_due(p, i);
    }
    if (call && !cheap && tn_path_age(now, p->called) >= TN_PATH_PING_MS)
        p->due |= TN_PATH_DUE_CALL;
}

/* Traffic: heartbeats begin 3 s from now, if they do not run. */
static void tn_path_active(tn_path *p, uint32_t now)
{
    tn_path_look(p, now);
    p->used = now;
    if ((p->due & TN_PATH_BEATS) != 0 || p->silent || p->plain) return;
    p->due |= TN_PATH_BEATS;
    p->beat = now;
}

/* Without disco there is nothing but trying: best while it is heard, then each
 * address for one handshake's patience, best first. */
static unsigned tn_path_try(tn_path *p, uint32_t now)
{
    unsigned n = TAILNET_MAX_CANDIDATES;
    if (p->state == TN_PATH_TRUSTED) return p->best;
    if (tn_path_age(now, p->full) < TN_PATH_PING_MS) return p->turn;
    p->full = now;
    do {
        p->turn = (uint8_t)((p->turn + 1u) % TAILNET_MAX_CANDIDATES);
    } while (p->places[p->turn].addr.family == 0 && --n != 0);
    return p->turn;
}

/* The peer called, and we found the way while its own pings have not come through:
 * they were ahead of ours, which opened our NAT. It would try again in 5 s; a call
 * makes it try now. (Of two clients of the reference the second may wait.) */
static bool tn_path_is_sought(const tn_path *p, uint32_t now)
{
    return !p->plain && tn_path_age(now, p->heeded) < TN_PATH_PING_MS &&
           tn_path_age(now, p->called) >= TN_PATH_PING_MS &&
           tn_path_age(now, p->places[p->best].heard) >= TN_PATH_PING_MS;
}

/* Where does a WireGuard message go that is sent now? TN_PATH_UDP: to *to.
 * TN_PATH_RELAY: by relay; both: by both, WireGuard drops the second copy. Then
 * step has something to say. */
static unsigned tn_path_use(tn_path *p, uint64_t now_ms, tailnet_addr *to)
{
    uint32_t now = (uint32_t)now_ms;
    unsigned ways, slot;
    tn_path_active(p, now);
    ways = p->plain || p->state == TN_PATH_TRUSTED ? 0u : (unsigned)TN_PATH_RELAY;
    if (ways != 0) tn_path_round(p, true, now);
    else if (tn_path_is_sought(p, now)) p->due |= TN_PATH_DUE_CALL;
    slot = p->plain ? tn_path_try(p, now) : p->best;
    if (slot == TN_PATH_NO_SLOT || p->places[slot].addr.family == 0) return ways;
    *to = p->places[slot].addr;
    return ways | TN_PATH_UDP;
}

/* Somebody wants to know how far the peer is: pings the best if it is trusted,
 * else all, however long ago they were pinged. */
static TN_MAYBE_UNUSED void tn_path_probe(tn_path *p, uint64_t now_ms)
{
    unsigned i;
    tn_path_active(p, (uint32_t)now_ms);
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) {
        if (p->places[i].addr.family == 0 || tn_path_is_doubtful(&p->places[i])) continue;
        if (p->state != TN_PATH_TRUSTED || i == p->best) tn_path_due(p, i);
    }
}

/* Every 3 s while there is traffic, and 45 s more. A metered path beats once more
 * after the last packet at most, and looks for nothing better. */
static void tn_path_tick(tn_path *p, uint32_t now)
{
    uint32_t idle = tn_path_age(now, p->used);
    if (p->silent || p->plain || idle > (p->metered ? TN_PATH_METERED_MS : TN_PATH_SESSION_MS)) {
        p->due = (uint8_t)(p->due & ~(unsigned)TN_PATH_BEATS);
        return;
    }
    p->beat = now;
    if (p->state == TN_PATH_TRUSTED &&
        (p->latency_ms <= TN_PATH_GOOD_MS || p->metered ||
         tn_path_age(now, p->full) < TN_PATH_UPGRADE_MS)) {
        tn_path_due(p, p->best);
        return;
    }
    tn_path_round(p, true, now);
    if (p->best != TN_PATH_NO_SLOT) tn_path_due(p, p->best);
}

/* The transaction of a ping to a slot's address at a time. Made, not stored: time,
 * slot, and 56 bits of a keyed hash over both and the address. So no outsider
 * guesses it, no table has to remember it, and the peer, who reads it wherever it
 * gets our pings, still cannot answer for an address where it does not. */
static void tn_path_tx(const tn_path *p, unsigned slot, uint32_t sent, uint8_t tx[12])
{
    const tailnet_addr *a = &p->places[slot].addr;
    uint8_t             text[5 + 16 + 4];
    tn_put_u32be(text, sent);
    text[4] = (uint8_t)slot;
    memcpy(text + 5, a->ip, sizeof a->ip);
    tn_put_u32be(text + 21, (uint32_t)a->family << 16 | a->port);
    memcpy(tx, text, 5);
    tn_cr_mac(tx + 5, 7, p->seed, sizeof p->seed, text, sizeof text);
}

/* Fills in the ping to a candidate that is due. If it can take the best away when
 * it stays without answer, the path is in doubt from now on. */
static void tn_path_ping(tn_path *p, unsigned slot, uint32_t now, tn_path_wish *w)
{
    tn_path_place *c = &p->places[slot];
    c->flags  = (uint8_t)(c->flags ^ TN_PATH_DUE);
    c->pinged = now;
    w->to     = c->addr;
    tn_path_tx(p, slot, now, w->tx);
    if (slot != p->best || (p->due & TN_PATH_DOUBT) != 0 ||
        tn_path_age(now, p->trusted) <= TN_PATH_TRUST_MS - TN_PATH_PING_MS)
        return;
    p->due |= TN_PATH_DOUBT;
    p->doubted = now;
}

/* What is to be sent next? Until it says QUIET. */
static TN_NOINLINE tn_path_want tn_path_step(tn_path *p, uint64_t now_ms, tn_path_wish *w)
{
    uint32_t now = (uint32_t)now_ms;
    unsigned i;
    tn_path_look(p, now);
    if ((p->due & TN_PATH_DOUBT) != 0 && tn_path_age(now, p->doubted) >= TN_PATH_PING_MS)
        (void)tn_path_lose(p, now);
    if ((p->due & TN_PATH_BEATS) != 0 && tn_path_age(now, p->beat) >= TN_PATH_BEAT_MS)
        tn_path_tick(p, now);
    for (i = 0; (p->due & TN_PATH_DUE_PING) != 0 && i < TAILNET_MAX_CANDIDATES; i++) {
        if ((p->places[i].flags & TN_PATH_DUE) == 0) continue;
        tn_path_ping(p, i, now, w);
        return TN_PATH_PING;
    }
    i      = p->due & TN_PATH_DUE_CALL;
    p->due = (uint8_t)(p->due & (TN_PATH_BEATS | TN_PATH_DOUBT));
    if (i == 0) return TN_PATH_QUIET;
    p->called = now;
    return TN_PATH_CALL;
}

/* What is left of most since that moment, if that is sooner than wait. */
static uint32_t tn_path_sooner(uint32_t wait, uint32_t now, uint32_t since, uint32_t most)
{
    uint32_t age = tn_path_age(now, since), left = age < most ? most - age : 0;
    return left < wait ? left : wait;
}

/* When step has something to do; TN_NEVER when only traffic can bring that. */
static uint64_t tn_path_deadline(const tn_path *p, uint64_t now_ms)
{
    uint32_t now = (uint32_t)now_ms, wait = UINT32_MAX;
    if ((p->due & (TN_PATH_DUE_PING | TN_PATH_DUE_CALL)) != 0) return now_ms;
    if (p->state == TN_PATH_TRUSTED)
        wait = tn_path_sooner(wait, now, p->trusted, tn_path_trust_ms(p) + 1u);
    if ((p->due & TN_PATH_DOUBT) != 0)
        wait = tn_path_sooner(wait, now, p->doubted, TN_PATH_PING_MS);
    if ((p->due & TN_PATH_BEATS) != 0) wait = tn_path_sooner(wait, now, p->beat, TN_PATH_BEAT_MS);
    return wait == UINT32_MAX ? TN_NEVER : tn_time_add(now_ms, wait);
}

/* ---- what comes in ---- */

/* An authentic ping by UDP: its source is a candidate from now on. True: to be
 * answered, with one pong to where it came from; false: we had it already, or it is
 * answered later. What the peer came through may have been closed to our last ping
 * and is open now: in search of a way we try it again, once (the reference waits for
 * its next round, up to 5 s). Where its source may be forged that ping goes out in
 * place of the pong, which follows when it was answered: the reference sends both. */
static bool tn_path_ping_in(tn_path *p, const tailnet_addr *from, const uint8_t tx[12],
                            uint64_t now_ms)
{
    unsigned       end  = (unsigned)tx[10] << 8 | tx[11];
    unsigned       slot = tn_path_find(p, from);
    tn_path_place *c;
    if (slot != TN_PATH_NO_SLOT && p->places[slot].heard_tx == end) return false;
    slot = tn_path_put(p, from, TN_PATH_HEARD, (uint32_t)now_ms);
    if (slot == TN_PATH_NO_SLOT) return true;
    c           = &p->places[slot];
    c->heard_tx = (uint16_t)end;
    c->heard    = (uint32_t)now_ms;
    tn_path_look(p, c->heard);
    if (p->state != TN_PATH_TRUSTED && (p->due & TN_PATH_BEATS) != 0 &&
        (c->flags & TN_PATH_ECHOED) == 0) {
        c->flags |= TN_PATH_ECHOED;
        tn_path_due(p, slot);
        if (!tn_path_is_doubtful(c)) return true;
        p->owed = (uint8_t)slot;
        memcpy(p->owed_tx, tx, sizeof p->owed_tx);
        return false;
    }
    return true;
}

/* An authentic pong. One that came by relay ends its ping and proves nothing.
 * Zero: no ping of ours, too late, or answered already. CHANGED: another best, or
 * trust is back. OWES: now the ping from there, owed_tx, is to be answered. */
static unsigned tn_path_pong_in(tn_path *p, const uint8_t tx[12], bool by_relay, uint64_t now_ms,
                                tn_path_pong *got)
{
    uint32_t       now  = (uint32_t)now_ms, age = tn_path_age(now, tn_get_u32be(tx));
    unsigned       slot = tx[4], news = TN_PATH_MINE;
    tn_path_place *c    = &p->places[slot % TAILNET_MAX_CANDIDATES];
    uint8_t        want[12];

    if (slot >= TAILNET_MAX_CANDIDATES || c->addr.family == 0) return 0;
    if (age >= TN_PATH_PING_MS || age >= tn_path_age(now, c->answered)) return 0;
    tn_path_tx(p, slot, now - age, want);
    if (!tn_equal(want, tx, sizeof want)) return 0;
    c->answered     = now - age;
    got->to         = c->addr;
    got->latency_ms = age == 0 ? 1u : age;
    if (by_relay) return news;
    c->flags |= TN_PATH_PROVEN;
    if (p->owed == slot) {
        p->owed = TN_PATH_NO_SLOT;
        news |= TN_PATH_OWES;
    }
    tn_path_look(p, now);
    if (p->state != TN_PATH_TRUSTED ||
        tn_path_better(&c->addr, got->latency_ms, &p->places[p->best].addr, p->latency_ms)) {
        p->best = (uint8_t)slot;
        news |= TN_PATH_CHANGED;
    }
    if (p->best != slot) return news;
    p->latency_ms = got->latency_ms;
    tn_path_enter(p, TN_PATH_TRUSTED, now);
    return news;
}

/* An authentic call-me-maybe, which came by relay from this very peer: its
 * addresses are candidates, all are pinged at once, and it is no traffic. It is
 * not answered by a call: two of us would never end. At most one in a second
 * makes us ping. A best that it leaves out is gone, or in doubt where control
 * still names it: the peer may have moved. True: the best is gone. */
static bool tn_path_call_in(tn_path *p, const tn_disco_msg *m, uint64_t now_ms)
{
    uint32_t now   = (uint32_t)now_ms;
    size_t   count = m->count;
    bool     had   = p->best != TN_PATH_NO_SLOT;
    unsigned i;
    if (count > TN_PATH_CALL_MAX) count = TN_PATH_CALL_MAX;
    tn_path_look(p, now);
    tn_path_name(p, TN_PATH_CALLED, NULL, m, count, now);
    if (p->state == TN_PATH_TRUSTED &&
        (p->places[p->best].flags & (TN_PATH_LISTED | TN_PATH_CALLED)) == TN_PATH_LISTED)
        tn_path_enter(p, TN_PATH_UNTRUSTED, now);
    if (tn_path_age(now, p->heeded) >= TN_PATH_HEED_MS) {
        p->heeded = now;
        for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) p->places[i].pinged = now - TN_PATH_PING_MS;
        tn_path_round(p, false, now);
    }
    return had && p->best == TN_PATH_NO_SLOT;
}

/* In search of a way, a WireGuard packet of len bytes came from there. An address that
 * only a ping's source named is pinged when that was paid for. */
static void tn_path_pay(tn_path *p, tn_path_place *c, unsigned slot, size_t len)
{
    if (!tn_path_is_doubtful(c) || (c->flags & TN_PATH_ECHOED) != 0) return;
    c->paid = (uint8_t)(len < 255u - c->paid ? c->paid + len : 255u);
    if (c->paid < TN_PATH_PRICE) return;
    c->paid = 0;
    c->flags |= TN_PATH_ECHOED;
    tn_path_due(p, slot);
}

/* An authentic WireGuard packet of len bytes came by UDP. It moves only peers without
 * disco, and holds trust only where heartbeats are forbidden. True: another best. */
static bool tn_path_heard(tn_path *p, const tailnet_addr *from, size_t len, uint64_t now_ms)
{
    uint32_t now = (uint32_t)now_ms;
    unsigned slot;
    bool     moved;
    if (!p->plain && p->state == TN_PATH_TRUSTED && !p->silent) return false;
    slot  = p->plain ? tn_path_put(p, from, TN_PATH_HEARD, now) : tn_path_find(p, from);
    moved = slot != p->best;
    if (slot == TN_PATH_NO_SLOT) return false;
    if (!p->plain && (p->due & TN_PATH_BEATS) != 0) tn_path_pay(p, &p->places[slot], slot, len);
    if (!p->plain && (moved || !p->silent)) return false;
    p->best = (uint8_t)slot;
    p->turn = (uint8_t)((slot + TAILNET_MAX_CANDIDATES - 1) % TAILNET_MAX_CANDIDATES);
    p->places[slot].heard = now;
    tn_path_enter(p, TN_PATH_TRUSTED, now);
    return moved;
}

/* The system says that no way leads to an address that we sent to. True: it was
 * the best. It is pinged again with the others, not before. */
static bool tn_path_unreachable(tn_path *p, const tailnet_addr *to, uint64_t now_ms)
{
    unsigned slot = tn_path_find(p, to);
    return slot != TN_PATH_NO_SLOT && slot == p->best && tn_path_lose(p, (uint32_t)now_ms);
}

/* We are somewhere else: nothing that was measured holds. A path in use begins
 * anew with the next step, the others with their next use. */
static void tn_path_network_changed(tn_path *p, uint64_t now_ms)
{
    uint32_t now = (uint32_t)now_ms;
    unsigned i;
    (void)tn_path_lose(p, now);
    for (i = 0; i < TAILNET_MAX_CANDIDATES; i++) {
        tn_path_place *c = &p->places[i];
        c->pinged = now - TN_PATH_PING_MS;
        c->flags  = (uint8_t)(c->flags & (TN_PATH_LISTED | TN_PATH_HEARD | TN_PATH_PROVEN));
    }
    p->called = p->beat = now - TN_PATH_PING_MS;
    p->due    = (uint8_t)(p->due & TN_PATH_BEATS);
}

/* ======================================================================== *
 * >>relay — which relays we are connected to, and through which one a peer
 * is reached: the home region, guests, learned routes.
 *
 * Owns:    one slot per relay connection: state, DERP reader, back-off, one
 *          waiting letter; a byte per peer for the learned route. Links, the
 *          map and random numbers are the node's, who carries wishes out.
 * Calls:   >>base, >>json, >>http (HTTP/1 upgrade), >>derp.
 * States:  IDLE -> WAIT -> OPENING -> UPGRADE -> LOGIN -> OPEN; fast start
 *          leaves UPGRADE out; from OPENING on every state -> CLOSING ->
 *          WAIT or IDLE; WAIT -> IDLE.
 * Always:  at most one slot per region. Every state but IDLE has a deadline,
 *          CLOSING excepted, which the node ends. A learned route points to
 *          an open slot on which its peer was heard, or to none.
 * Trust:   the relay was named by TLS; it may lie about who sent a packet,
 *          which WireGuard and disco find out.
 * ======================================================================== */

#define TN_RELAY_NODE_PATIENCE_MS 1500u     /* TCP, for all but the last node     */
#define TN_RELAY_LATER_MS         250u      /* the link room had no place         */
#define TN_RELAY_DEAD_MS          120000ul  /* two of the server's keep-alives lost */
#define TN_RELAY_GUEST_MS         60000ul   /* without a write: a guest leaves    */
#define TN_RELAY_HOLD_MS          5000u     /* written to since: stays            */
#define TN_RELAY_PONG_MS          3000u     /* after a network change             */
#define TN_RELAY_MOVE_MS          2000u     /* from "control knows" to the move   */
#define TN_RELAY_LOST_MS          30000u    /* home not reached: take another     */
#define TN_RELAY_SHUN_MS          300000ul  /* not there again, however near      */
#define TN_RELAY_REJECTED_MS      30000u    /* closed after our login             */
#define TN_RELAY_BACKOFF_MAX_MS   5000u
#define TN_RELAY_STAYED_MS        20000u    /* open for so long: its errors are forgiven */
#define TN_RELAY_RESTART_MAX_MS   10000u
#define TN_RELAY_TRYING_MAX_MS    600000ul

enum {
    TN_RELAY_LETTER  = 168,                 /* a handshake or disco message       */
    TN_RELAY_RESERVE = 512                  /* of a record, free of data packets  */
};

typedef enum tn_relay_state {
    TN_RELAY_IDLE, TN_RELAY_WAIT, TN_RELAY_OPENING, TN_RELAY_UPGRADE, TN_RELAY_LOGIN,
    TN_RELAY_OPEN, TN_RELAY_CLOSING
} tn_relay_state;

/* What has to be written when there is room, in this order; CLOSE is a wish. */
enum {
    TN_RELAY_DUE_REQUEST = 1, TN_RELAY_DUE_LOGIN = 2, TN_RELAY_DUE_NOTE = 4,
    TN_RELAY_DUE_LETTER = 8, TN_RELAY_DUE_PONG = 16, TN_RELAY_DUE_PING = 32,
    TN_RELAY_DUE_CLOSE = 64
};

typedef struct tn_relay_letter {
    uint8_t key[32];
    uint8_t len;
    uint8_t data[TN_RELAY_LETTER];
} tn_relay_letter;

typedef struct tn_relay_link {
    tn_relay_state  state, from;            /* from: what CLOSING ended           */
    tailnet_result  why;                    /* what ended the last connection     */
    uint8_t         node;                   /* which of the region is tried       */
    uint8_t         errors;                 /* one after another                  */
    uint8_t         due;                    /* TN_RELAY_DUE_                      */
    bool            stuck;                  /* due, but there was no room         */
    bool            said;                   /* our login is written               */
    bool            fast, never_fast;       /* login went with the request        */
    bool            pinged;                 /* a pong has to come                 */
    uint16_t        region;                 /* 0: the slot is free                */
    uint16_t        next_region;            /* CLOSING: what comes then           */
    uint16_t        status;                 /* of HTTP, when the upgrade failed   */
    uint32_t        deadline_ms;            /* of the state, if it has one        */
    uint32_t        written_ms;             /* the last packet for it             */
    uint32_t        open_ms;                /* logged in since                    */
    uint32_t        pong_ms;                /* by then                            */
    uint32_t        restart_ms;             /* until then failing is no error,    */
    uint32_t        restart_in_ms;          /*   if this is not 0                 */
    uint8_t         pong[8];                /* to be answered, or expected        */
    uint8_t         ping[8];
    tn_derp         derp;
    tn_relay_letter letter;
} tn_relay_link;

/* The answer to the upgrade is over before the first frame can straddle. */
typedef union tn_relay_store {
    uint8_t bytes[TN_DERP_STRADDLE];
    tn_h1   answer;
} tn_relay_store;

typedef struct tn_relay {
    bool            on, told;               /* control knows wanted               */
    uint8_t         count;
    uint16_t        home;                   /* the region we serve                */
    uint16_t        wanted;                 /* the one it shall be                */
    uint16_t        shunned;                /* could not be reached               */
    tn_relay_link  *links;
    tn_relay_store *stores;
    uint8_t        *via;                    /* per peer: slot + 1, or 0           */
    size_t          peers;
    uint64_t        now_ms;                 /* of the last step                   */
    uint32_t        up_ms;                  /* when home was last seen open       */
    uint32_t        move_ms;                /* when to move, if told              */
    uint32_t        shun_ms;                /* until then                         */
} tn_relay;

/* Times here are the low 32 bits of milliseconds: none is as far off as 24 days. Has
 * when come? */
static TN_NOINLINE bool tn_relay_is_past(uint32_t when, uint32_t now)
{
    return (now - when) >> 31 == 0;
}

/* From row to column: may that happen? */
static const uint8_t tn_relay_arrows[7] = {
    /* IDLE    */ 1u << TN_RELAY_WAIT,
    /* WAIT    */ 1u << TN_RELAY_OPENING | 1u << TN_RELAY_IDLE | 1u << TN_RELAY_WAIT,
    /* OPENING */ 1u << TN_RELAY_UPGRADE | 1u << TN_RELAY_LOGIN | 1u << TN_RELAY_CLOSING,
    /* UPGRADE */ 1u << TN_RELAY_LOGIN | 1u << TN_RELAY_CLOSING,
    /* LOGIN   */ 1u << TN_RELAY_OPEN | 1u << TN_RELAY_CLOSING,
    /* OPEN    */ 1u << TN_RELAY_CLOSING,
    /* CLOSING */ 1u << TN_RELAY_WAIT | 1u << TN_RELAY_IDLE
};

/* In seconds. OPENING: the link room has its own, shorter limits; this one is a net. OPEN:
 * see derp_client.go, Recv. The states without a limit have 0. */
static const uint8_t tn_relay_patience_s[7] = {
    /* IDLE */ 0, /* WAIT */ 0, /* OPENING */ 60, /* UPGRADE */ 10, /* LOGIN */ 10,
    /* OPEN */ TN_RELAY_DEAD_MS / 1000, /* CLOSING */ 0
};

static void tn_relay_init(tn_relay *r, tn_relay_link *links, tn_relay_store *stores,
                          unsigned count, uint8_t *via, size_t peers)
{
    memset(r, 0, sizeof *r);
    memset(links, 0, count * sizeof *links);
    memset(via, 0, peers);
    r->links   = links;
    r->stores  = stores;
    r->count   = (uint8_t)count;
    r->via     = via;
    r->peers   = peers;
}

/* The only place where state changes. WAIT's deadline is set by its callers. */
static TN_NOINLINE void tn_relay_enter(tn_relay_link *l, tn_relay_state next, uint32_t now)
{
    TAILNET_ASSERT((tn_relay_arrows[l->state] >> next & 1u) != 0);
    l->state       = next;
    l->deadline_ms = now + (uint32_t)tn_relay_patience_s[next] * 1000u;
    if (next != TN_RELAY_OPENING && next != TN_RELAY_UPGRADE && next != TN_RELAY_LOGIN &&
        next != TN_RELAY_OPEN) {
        l->due    &= TN_RELAY_DUE_LETTER;
        l->pinged  = l->said = l->stuck = false;
        tn_derp_start(&l->derp, false);
    }
}

/* Dials (again) after that delay. */
static void tn_relay_wait(tn_relay_link *l, uint32_t delay_ms, uint32_t now)
{
    tn_relay_enter(l, TN_RELAY_WAIT, now);
    l->deadline_ms += delay_ms;
}

/* Ends a connection, or the attempt; region next comes into the slot then. */
static void tn_relay_leave(tn_relay_link *l, tailnet_result why, uint16_t next, uint32_t now)
{
    if (l->fast && l->state == TN_RELAY_LOGIN) l->never_fast = true;
    l->from        = l->state;
    l->why         = why;
    l->next_region = next;
    if (next != l->region) l->due = 0;
    tn_relay_enter(l, TN_RELAY_CLOSING, now);
    l->due |= TN_RELAY_DUE_CLOSE;
}

static void tn_relay_fail(tn_relay_link *l, tailnet_result why, uint32_t now)
{
    tn_relay_leave(l, why, l->region, now);
}

/* The region a slot is for, now or when it has closed. */
static uint16_t tn_relay_target(const tn_relay_link *l)
{
    return l->state == TN_RELAY_CLOSING ? l->next_region : l->region;
}

static int tn_relay_find(const tn_relay *r, uint16_t region)
{
    int i;
    for (i = 0; i < r->count; i++)
        if (region != 0 && tn_relay_target(&r->links[i]) == region) return i;
    return -1;
}

static bool tn_relay_is_open(const tn_relay *r, uint16_t region)
{
    int i = tn_relay_find(r, region);
    return i >= 0 && r->links[i].state == TN_RELAY_OPEN;
}

/* The region a slot stands for. */
static uint16_t tn_relay_region_of(const tn_relay *r, unsigned slot)
{
    return r->links[slot].region;
}

/* Which of the region's relays it is. */
static uint8_t tn_relay_node_of(const tn_relay *r, unsigned slot) { return r->links[slot].node; }

/* Are we where our peers look for us? */
static TN_MAYBE_UNUSED bool tn_relay_is_up(const tn_relay *r)
{
    return r->on && tn_relay_is_open(r, r->home);
}

/* A slot without a connection becomes free. */
static void tn_relay_free(tn_relay_link *l, uint32_t now)
{
    if (l->state != TN_RELAY_IDLE) tn_relay_enter(l, TN_RELAY_IDLE, now);
    l->due    = 0;
    l->region = 0;
}

/* A slot without a connection gets another region, to be dialled at once. */
static void tn_relay_assign(tn_relay_link *l, uint16_t region, uint32_t now)
{
    l->region        = region;
    l->node          = 0;
    l->errors        = 0;
    l->never_fast    = false;
    l->restart_in_ms = 0;
    l->written_ms    = now;
    tn_relay_wait(l, 0, now);
}

/* ---- the home region ---- */

/* Goes through the regions of the map, one tn_relay_choice_add each. */
typedef struct tn_relay_choice {
    uint16_t prefs, measured, current, best, first, after;
    uint32_t best_score;
    bool     lost;                          /* current cannot be reached          */
    bool     prefs_seen, measured_seen, current_seen;
} tn_relay_choice;

/* Home cannot be reached for long: time to choose again. */
static bool tn_relay_wants_choice(const tn_relay *r, uint64_t now_ms)
{
    return r->on && r->home != 0 && !tn_relay_is_open(r, r->home) &&
           tn_relay_is_past(r->up_ms + TN_RELAY_LOST_MS, (uint32_t)now_ms);
}

/* prefs_home: the region a person wants, or 0. measured: what a new report says (net),
 * or 0: it says nothing, or control is not there to be told. */
static void tn_relay_choice_begin(tn_relay_choice *c, const tn_relay *r, uint16_t prefs_home,
                                  uint16_t measured, uint64_t now_ms)
{
    memset(c, 0, sizeof *c);
    c->prefs    = prefs_home;
    c->measured = measured == r->shunned ? (uint16_t)0 : measured;
    c->current  = r->wanted;
    c->lost     = tn_relay_wants_choice(r, now_ms);
}

/* A region of the map, in its order. A smaller score is better. A person may
 * choose a region that the map does not offer as home; we do not. */
static TN_NOINLINE void tn_relay_choice_add(tn_relay_choice *c, uint16_t region, bool may_be_home,
                                            uint32_t score)
{
    if (region == c->prefs) c->prefs_seen = true;
    if (!may_be_home) return;
    if (region == c->measured) c->measured_seen = true;
    if (c->first == 0) c->first = region;
    if (c->current_seen && c->after == 0) c->after = region;
    if (region == c->current) c->current_seen = true;
    if (c->best == 0 || score < c->best_score) {
        c->best       = region;
        c->best_score = score;
    }
}

/* Decides. Stays where we are as long as that is possible and no report says better;
 * after a region that cannot be reached comes the next of the map, so that each gets
 * its turn. */
static TN_NOINLINE void tn_relay_choose(tn_relay *r, const tn_relay_choice *c, uint64_t now_ms)
{
    uint16_t next = c->best;
    if (c->current_seen)  next = c->current;
    if (c->measured_seen) next = c->measured;
    if (c->lost && c->current_seen && next == c->current) {
        next       = c->after != 0 ? c->after : c->first;
        r->shunned = c->current;
        r->shun_ms = (uint32_t)(now_ms + TN_RELAY_SHUN_MS);
    }
    if (c->prefs_seen) next = c->prefs;
    if (c->lost || r->wanted == 0) r->up_ms = (uint32_t)now_ms;
    if (next == 0 || next == r->wanted) return;
    r->wanted = next;
    r->told   = false;
}

/* The region that is or shall be our home. */
static uint16_t tn_relay_wanted(const tn_relay *r) { return r->wanted; }

/* When a relay of that region was last heard; 0: not connected. */
static uint64_t tn_relay_heard(const tn_relay *r, uint16_t region)
{
    int i = tn_relay_find(r, region);
    if (i < 0 || r->links[i].state != TN_RELAY_OPEN) return 0;
    return r->now_ms + (r->links[i].deadline_ms - (uint32_t)r->now_ms) - TN_RELAY_DEAD_MS;
}

/* The region to tell control. With one slot peers must know before we move,
 * with more we open the new home first. */
static uint16_t tn_relay_report(const tn_relay *r)
{
    return r->count > 1 && r->home != 0 ? r->home : r->wanted;
}

/* Control has answered a request that named this region. */
static void tn_relay_told(tn_relay *r, uint16_t region, uint64_t now_ms)
{
    if (region != r->wanted || r->home == r->wanted || r->told) return;
    r->told    = true;
    r->move_ms = (uint32_t)now_ms + TN_RELAY_MOVE_MS;
}

static bool tn_relay_may_move(const tn_relay *r, uint32_t now)
{
    if (r->home == 0) return true;
    if (r->count > 1) return tn_relay_is_open(r, r->wanted);
    return (r->told && tn_relay_is_past(r->move_ms, now)) || !tn_relay_is_open(r, r->home);
}

/* A slot for a region that has none: a free one, or that of the guest least
 * recently written to; unless forced, not of one in use. -1: none. */
static int tn_relay_take(tn_relay *r, uint16_t region, bool force, uint32_t now)
{
    tn_relay_link *l;
    int            i, best = -1;
    for (i = 0; i < r->count; i++) {
        uint16_t target = tn_relay_target(&r->links[i]);
        if (r->links[i].state == TN_RELAY_IDLE) {
            best = i;
            break;
        }
        if (target != 0 && (target == r->home || target == r->wanted)) continue;
        if (best < 0 || tn_relay_is_past(r->links[i].written_ms, r->links[best].written_ms))
            best = i;
    }
    if (best < 0) return -1;
    l = &r->links[best];
    if (l->state != TN_RELAY_IDLE && !force &&
        !tn_relay_is_past(l->written_ms + TN_RELAY_HOLD_MS, now)) return -1;
    if (l->state == TN_RELAY_IDLE || l->state == TN_RELAY_WAIT) {
        l->due = 0;
        tn_relay_assign(l, region, now);
    } else if (l->state == TN_RELAY_CLOSING) {
        l->due        &= TN_RELAY_DUE_CLOSE;
        l->next_region = region;
    } else {
        tn_relay_leave(l, TAILNET_OK, region, now);
    }
    l->written_ms = now;
    return best;
}

/* Moves home if it is time, and sees to slots for home and the next home. */
static void tn_relay_plan(tn_relay *r, uint32_t now)
{
    int i;
    if (!r->on) return;
    if (tn_relay_is_past(r->shun_ms, now)) r->shunned = 0;
    if (r->home != r->wanted && tn_relay_may_move(r, now)) {
        i = tn_relay_find(r, r->home);
        if (i >= 0) r->links[i].written_ms = now;  /* late packets find us */
        r->home  = r->wanted;
        r->up_ms = now;
        r->told  = false;
        for (i = 0; i < r->count; i++)
            if (r->links[i].said) r->links[i].due |= TN_RELAY_DUE_NOTE;
    }
    if (r->home != 0 && tn_relay_find(r, r->home) < 0)
        (void)tn_relay_take(r, r->home, true, now);
    if (r->count > 1 && r->wanted != r->home && tn_relay_find(r, r->wanted) < 0)
        (void)tn_relay_take(r, r->wanted, true, now);
    if (tn_relay_is_open(r, r->home)) r->up_ms = now;
}

/* ---- wishes ---- */

typedef enum tn_relay_do { TN_RELAY_DO_OPEN, TN_RELAY_DO_CLOSE } tn_relay_do;

/* OPEN: a link with TLS to the node-th usable node of the region; then call
 * tn_relay_opened, _closed, _later or _no_node. CLOSE: then call _closed. */
typedef struct tn_relay_wish {
    tn_relay_do kind;
    uint8_t     slot;
    uint8_t     node;
    uint16_t    region;
} tn_relay_wish;

static TN_NOINLINE bool tn_relay_is_guest(const tn_relay *r, const tn_relay_link *l)
{
    uint16_t target = tn_relay_target(l);
    return target != r->home && target != r->wanted;
}

/* A guest that nobody wrote to for a minute (cleanStaleDerp). */
static bool tn_relay_is_stale(const tn_relay *r, const tn_relay_link *l, uint32_t now)
{
    return tn_relay_is_guest(r, l) && tn_relay_is_past(l->written_ms + TN_RELAY_GUEST_MS, now);
}

/* One slot. True: there is a wish. */
static bool tn_relay_step_slot(tn_relay *r, unsigned slot, uint32_t now, tn_relay_wish *wish)
{
    tn_relay_link *l     = &r->links[slot];
    bool           waits = l->state == TN_RELAY_WAIT;
    bool           over  = !r->on || ((waits || l->state == TN_RELAY_OPEN) &&
                                      tn_relay_is_stale(r, l, now));

    wish->slot   = (uint8_t)slot;
    wish->region = l->region;
    wish->node   = l->node;
    wish->kind   = TN_RELAY_DO_CLOSE;
    if (waits) {
        if (over) tn_relay_free(l, now);
        if (over || !tn_relay_is_past(l->deadline_ms, now)) return false;
        tn_relay_enter(l, TN_RELAY_OPENING, now);
        wish->kind = TN_RELAY_DO_OPEN;
        return true;
    }
    if (l->state != TN_RELAY_IDLE && l->state != TN_RELAY_CLOSING) {
        if (over) tn_relay_leave(l, TAILNET_OK, 0, now);
        else if (tn_relay_is_past(l->deadline_ms, now) ||
                 (l->pinged && tn_relay_is_past(l->pong_ms, now)))
            tn_relay_fail(l, TAILNET_ERR_TIMEOUT, now);
    }
    if ((l->due & TN_RELAY_DUE_CLOSE) == 0) return false;
    l->due &= (uint8_t)~(unsigned)TN_RELAY_DUE_CLOSE;
    return true;
}

/* In poll: call and do the wish until it is false. */
static bool tn_relay_step(tn_relay *r, uint64_t now_ms, tn_relay_wish *wish)
{
    unsigned i;
    uint32_t now = (uint32_t)now_ms;
    r->now_ms = now_ms;
    tn_relay_plan(r, now);
    for (i = 0; i < r->count; i++)
        if (tn_relay_step_slot(r, i, now, wish)) return true;
    return false;
}

/* Want to be connected, or not. */
static void tn_relay_run(tn_relay *r, bool on, uint64_t now_ms)
{
    if (on && !r->on) r->up_ms = (uint32_t)now_ms;
    r->on = on;
}

/* What can be written as things stand: before our login that and the request,
 * afterwards all. */
static unsigned tn_relay_ready(const tn_relay_link *l)
{
    if (l->state < TN_RELAY_UPGRADE || l->state > TN_RELAY_OPEN) return 0;
    return l->said ? l->due : l->due & (unsigned)(TN_RELAY_DUE_REQUEST | TN_RELAY_DUE_LOGIN);
}

/* Milliseconds from the last step to when; no more than least. */
static uint32_t tn_relay_sooner(const tn_relay *r, uint32_t when, uint32_t least)
{
    uint32_t in = tn_relay_is_past(when, (uint32_t)r->now_ms) ? 0 : when - (uint32_t)r->now_ms;
    return in < least ? in : least;
}

/* When tn_relay_step, tn_relay_choose or tn_relay_write have to be called. */
static TN_NOINLINE uint64_t tn_relay_deadline(const tn_relay *r)
{
    uint32_t in = UINT32_MAX;
    unsigned i;
    for (i = 0; i < r->count; i++) {
        const tn_relay_link *l = &r->links[i];
        if (l->state == TN_RELAY_IDLE) continue;
        if ((l->due & TN_RELAY_DUE_CLOSE) != 0 || (tn_relay_ready(l) != 0 && !l->stuck)) return 0;
        if (l->state == TN_RELAY_CLOSING) continue;
        in = tn_relay_sooner(r, l->deadline_ms, in);
        if (l->pinged) in = tn_relay_sooner(r, l->pong_ms, in);
        if ((l->state == TN_RELAY_OPEN || l->state == TN_RELAY_WAIT) && tn_relay_is_guest(r, l))
            in = tn_relay_sooner(r, l->written_ms + TN_RELAY_GUEST_MS, in);
    }
    if (r->on && r->home != 0 && !tn_relay_is_open(r, r->home))
        in = tn_relay_sooner(r, r->up_ms + TN_RELAY_LOST_MS, in);
    if (r->on && r->told && r->count == 1) in = tn_relay_sooner(r, r->move_ms, in);
    return in == UINT32_MAX ? TN_NEVER : r->now_ms + in;
}

/* ---- news of links ---- */

/* Connected, TLS is up. meta_key: the relay's key from its certificates, which
 * allows a fast start; NULL: none. */
static void tn_relay_opened(tn_relay *r, unsigned slot, const uint8_t *meta_key, uint64_t now_ms)
{
    tn_relay_link *l = &r->links[slot];
    uint32_t       now = (uint32_t)now_ms;
    if (l->state != TN_RELAY_OPENING) return;
    tn_derp_start(&l->derp, false);
    l->due |= TN_RELAY_DUE_REQUEST;
    l->fast = meta_key != NULL && !l->never_fast;
    if (l->fast) {
        tn_copy_key(l->derp.k, meta_key);    /* until the login makes a box key of it */
        l->due |= TN_RELAY_DUE_LOGIN;
        tn_relay_enter(l, TN_RELAY_LOGIN, now);
    } else {
        tn_h1_begin_response(&r->stores[slot].answer);
        tn_relay_enter(l, TN_RELAY_UPGRADE, now);
    }
}

/* min(10 ms n^2, 5 s), times 0.5 to 1.5 (runDerpReader, util/backoff). */
static uint32_t tn_relay_backoff_ms(unsigned errors, uint32_t rnd)
{
    uint32_t base = errors >= 23 ? TN_RELAY_BACKOFF_MAX_MS : (uint32_t)errors * errors * 10u;
    return base / 2 + (uint32_t)((base * (rnd & 0xffffu)) >> 16);
}

/* One more error: wait, then walk the region's nodes anew. A server that said it would
 * restart is waited for as long as it asked, but none makes us come back ever so fast. */
static void tn_relay_retry(tn_relay_link *l, uint32_t least_ms, uint32_t now, uint32_t rnd)
{
    uint32_t wait, restart = l->restart_in_ms + rnd % 1000u;
    if (l->from == TN_RELAY_OPEN && tn_relay_is_past(l->open_ms + TN_RELAY_STAYED_MS, now))
        l->errors = 0;
    if (l->errors < 255) l->errors++;
    wait = least_ms + tn_relay_backoff_ms(l->errors, rnd);
    if (l->restart_in_ms == 0 || tn_relay_is_past(l->restart_ms, now)) l->restart_in_ms = 0;
    else if (wait < restart)                                           wait = restart;
    l->node = 0;
    tn_relay_wait(l, wait, now);
}

/* The link of this slot is gone, for whatever reason. rnd: any random number. */
static void tn_relay_closed(tn_relay *r, unsigned slot, uint64_t now_ms, uint32_t rnd)
{
    tn_relay_link *l = &r->links[slot];
    uint32_t       now = (uint32_t)now_ms;
    bool           rejected;
    size_t         i;

    if (l->state == TN_RELAY_IDLE || l->state == TN_RELAY_WAIT) return;
    rejected = l->state == TN_RELAY_LOGIN && l->said && !l->fast;
    if (l->state != TN_RELAY_CLOSING)
        tn_relay_fail(l, rejected ? TAILNET_ERR_DENIED : TAILNET_ERR_NETWORK, now);
    for (i = 0; i < r->peers; i++)
        if (r->via[i] == slot + 1) r->via[i] = 0;

    if (!r->on || l->next_region == 0 ||
        (l->next_region == l->region && tn_relay_is_stale(r, l, now))) {
        tn_relay_free(l, now);
    } else if (l->next_region != l->region) {
        tn_relay_assign(l, l->next_region, now);
    } else if (l->from == TN_RELAY_OPENING) {
        if (l->node < 255) l->node++;       /* the next one at once               */
        tn_relay_wait(l, 0, now);
    } else {
        tn_relay_retry(l, rejected ? TN_RELAY_REJECTED_MS : 0, now, rnd);
    }
}

/* The wish to open found no free link or TLS engine. */
static void tn_relay_later(tn_relay *r, unsigned slot, uint64_t now_ms)
{
    tn_relay_link *l = &r->links[slot];
    uint32_t       now = (uint32_t)now_ms;
    if (l->state != TN_RELAY_OPENING) return;
    tn_relay_leave(l, TAILNET_ERR_AGAIN, l->region, now);
    tn_relay_wait(l, TN_RELAY_LATER_MS, now);
}

/* The wish to open named a node that the region does not have: all were tried. */
static void tn_relay_no_node(tn_relay *r, unsigned slot, uint64_t now_ms, uint32_t rnd)
{
    tn_relay_link *l = &r->links[slot];
    uint32_t       now = (uint32_t)now_ms;
    if (l->state != TN_RELAY_OPENING) return;
    tn_relay_leave(l, TAILNET_ERR_NO_ROUTE, l->region, now);
    if (l->node == 0 && tn_relay_is_guest(r, l)) tn_relay_free(l, now);
    else tn_relay_retry(l, l->node == 0 ? TN_RELAY_BACKOFF_MAX_MS : 0, now, rnd);
}

/* A region's definition changed, or it left the map: what we have is old. */
static void tn_relay_region_changed(tn_relay *r, uint16_t region, uint64_t now_ms)
{
    int            i = tn_relay_find(r, region);
    uint32_t       now = (uint32_t)now_ms;
    tn_relay_link *l;
    if (i < 0) return;
    l             = &r->links[i];
    l->errors     = 0;
    l->never_fast = false;
    if (l->state == TN_RELAY_WAIT) {
        l->node        = 0;
        l->deadline_ms = now;
    } else if (l->state != TN_RELAY_CLOSING) {
        tn_relay_fail(l, TAILNET_OK, now);
        l->from = TN_RELAY_OPEN;
    }
}

/* Another network: ask each server for a sign of life, dial again at once. */
static void tn_relay_network_changed(tn_relay *r, uint64_t now_ms)
{
    unsigned i;
    uint32_t now = (uint32_t)now_ms;
    for (i = 0; i < r->count; i++) {
        tn_relay_link *l = &r->links[i];
        if (l->state == TN_RELAY_WAIT) {
            l->errors      = 0;
            l->deadline_ms = now;
        } else if (l->state == TN_RELAY_OPEN) {
            tn_wr w;
            tn_wr_over(&w, l->ping, sizeof l->ping);
            tn_wr_u64be(&w, now_ms);
            l->due    |= TN_RELAY_DUE_PING;
            l->pinged  = true;
            l->pong_ms = now + TN_RELAY_PONG_MS;
        }
    }
}

/* ---- bytes in ---- */

typedef enum tn_relay_news {
    TN_RELAY_QUIET,                         /* all bytes are used up              */
    TN_RELAY_UP,                            /* logged in                          */
    TN_RELAY_PACKET,                        /* key, data                          */
    TN_RELAY_GONE,                          /* key: forget its learned route      */
    TN_RELAY_HEALTH                         /* text; empty: well again            */
} tn_relay_news;

/* ServerInfo's numbers; false: no JSON. Members we do not know do not matter. */
static bool tn_relay_server_info(tn_derp *d, const tn_derp_event *ev, uint64_t now_ms)
{
    tn_js       js;
    tn_js_event e;
    int64_t     value;
    uint32_t    per_second = 0, burst = 0, it;

    tn_js_init(&js);
    tn_js_feed(&js, ev->data, ev->len);
    while ((e = tn_js_next(&js)) > TN_JS_MORE) {
        if (e != TN_JS_NUMBER || js.depth != 1 || !tn_js_int(&js, &value) || value < 0) continue;
        it = (uint64_t)value >> 32 != 0 ? UINT32_MAX : (uint32_t)value;
        if (tn_js_is_key(&js, "TokenBucketBytesPerSecond")) per_second = it;
        if (tn_js_is_key(&js, "TokenBucketBytesBurst"))     burst = it;
    }
    if (e == TN_JS_ERROR || !tn_js_done(&js)) return false;
    tn_derp_limit(d, per_second, burst, now_ms);
    return true;
}

/* What a frame means for the machine; QUIET: nothing for the node. */
static tn_relay_news tn_relay_take_frame(tn_relay_link *l, tn_derp_event *ev, uint64_t now_ms)
{
    bool     open = l->state == TN_RELAY_OPEN;
    uint32_t now  = (uint32_t)now_ms;

    if (open) l->deadline_ms = (uint32_t)(now_ms + TN_RELAY_DEAD_MS);
    switch (ev->kind) {
    case TN_DERP_SERVER_KEY:
        if (l->fast) break;                 /* known before, and our login is out */
        tn_copy_key(l->derp.k, ev->key);
        l->due |= TN_RELAY_DUE_LOGIN;
        break;
    case TN_DERP_SERVER_INFO:
        if (open || !l->said) break;
        if (!tn_derp_open(&l->derp, ev)) {
            tn_relay_fail(l, TAILNET_ERR_FORGED, now);
        } else if (!tn_relay_server_info(&l->derp, ev, now_ms)) {
            tn_relay_fail(l, TAILNET_ERR_MALFORMED, now);
        } else {
            l->open_ms       = now;
            l->restart_in_ms = 0;
            tn_relay_enter(l, TN_RELAY_OPEN, now);
            return TN_RELAY_UP;
        }
        break;
    case TN_DERP_PACKET:    return open ? TN_RELAY_PACKET : TN_RELAY_QUIET;
    case TN_DERP_PEER_GONE: return TN_RELAY_GONE;
    case TN_DERP_HEALTH:    return TN_RELAY_HEALTH;
    case TN_DERP_PING:                      /* one answer waits at most           */
        memcpy(l->pong, ev->data, sizeof l->pong);
        l->due |= TN_RELAY_DUE_PONG;
        break;
    case TN_DERP_PONG:
        if (memcmp(ev->data, l->ping, sizeof l->ping) == 0) l->pinged = false;
        break;
    case TN_DERP_RESTARTING:
        l->restart_in_ms = (uint32_t)tn_min64(ev->in_ms, TN_RELAY_RESTART_MAX_MS);
        l->restart_ms    = (uint32_t)(now_ms + tn_min64((uint64_t)ev->in_ms + ev->try_ms,
                                                        TN_RELAY_TRYING_MAX_MS));
        break;
    case TN_DERP_BROKEN:
        tn_relay_fail(l, TAILNET_ERR_MALFORMED, now);
        break;
    case TN_DERP_NONE: case TN_DERP_OTHER: case TN_DERP_KEEPALIVE: case TN_DERP_CLIENT_INFO:
    case TN_DERP_PREFERRED:
        break;
    }
    return TN_RELAY_QUIET;
}

/* The answer to the upgrade request. Frames may follow it in the same bytes. */
static void tn_relay_take_answer(tn_relay_link *l, tn_h1 *answer, uint8_t **at, size_t *left,
                                 uint32_t now)
{
    tn_rd        r;
    tn_h1_result result;
    size_t       before = *left;

    tn_rd_over(&r, *at, *left);
    result = tn_h1_head(answer, &r);
    *left  = r.left;
    *at   += before - r.left;
    if (result == TN_H1_MORE) return;
    if (result == TN_H1_HEAD_DONE && answer->status == 101) {
        tn_relay_enter(l, TN_RELAY_LOGIN, now);
    } else {
        l->status = result == TN_H1_HEAD_DONE ? answer->status : (uint16_t)0;
        tn_relay_fail(l, TAILNET_ERR_MALFORMED, now);
    }
}

/* Takes received bytes up to the next thing the node has to know. Call until
 * QUIET. A packet's data may be changed; all pointers hold until the next call. */
static tn_relay_news tn_relay_next(tn_relay *r, unsigned slot, uint8_t **at, size_t *left,
                                   uint64_t now_ms, tn_derp_event *ev)
{
    tn_relay_link  *l     = &r->links[slot];
    tn_relay_store *store = &r->stores[slot];

    memset(ev, 0, sizeof *ev);
    if (l->state == TN_RELAY_UPGRADE && *left != 0)
        tn_relay_take_answer(l, &store->answer, at, left, (uint32_t)now_ms);
    while (l->state == TN_RELAY_LOGIN || l->state == TN_RELAY_OPEN) {
        tn_relay_news news;
        if (tn_derp_next(&l->derp, store->bytes, sizeof store->bytes, at, left, ev) ==
            TN_DERP_NONE)
            return TN_RELAY_QUIET;
        news = tn_relay_take_frame(l, ev, now_ms);
        if (news != TN_RELAY_QUIET) return news;
    }
    if (l->state != TN_RELAY_UPGRADE) *left = 0;        /* nobody wants these any more */
    return TN_RELAY_QUIET;
}

/* ---- bytes out ---- */

/* What the machine needs to greet a server. */
typedef struct tn_relay_hello {
    tn_h1_host     host;
    const char    *ideal_node;              /* name of the first node, if this is another */
    const uint8_t *node_private, *node_public;
    const uint8_t *nonce;                   /* 24 fresh random bytes              */
} tn_relay_hello;

/* Would tn_relay_write write something? */
static bool tn_relay_has_output(const tn_relay *r, unsigned slot)
{
    return tn_relay_ready(&r->links[slot]) != 0;
}

static size_t tn_relay_room(const tn_wr *w) { return w->cap - tn_wr_len(w); }

/* The upgrade request; with a fast start the login follows in the same record
 * and the server leaves its answer out (reference: Derp-Fast-Start). */
static bool tn_relay_wr_request(tn_relay_link *l, const tn_relay_hello *hello, tn_wr *w,
                                uint32_t now)
{
    size_t before = w->total;
    if (!tn_h1_build_derp(w, &hello->host, hello->ideal_node)) {
        tn_relay_fail(l, TAILNET_ERR_MALFORMED, now);
        return false;
    }
    if (l->fast) {
        w->total -= 2;                      /* one more line before the empty one */
        tn_wr_text(w, "Derp-Fast-Start: 1\r\n\r\n");
    }
    if (tn_wr_ok(w)) return true;
    w->total = before;
    return false;
}

/* Our login: the X25519 of a connection. */
static bool tn_relay_wr_login(tn_relay_link *l, const tn_relay_hello *hello, tn_wr *w,
                              uint32_t now)
{
    if (tn_relay_room(w) < TN_DERP_LOGIN_LEN) return false;
    if (!tn_derp_set_key(&l->derp, hello->node_private, l->derp.k)) {
        tn_relay_fail(l, TAILNET_ERR_FORGED, now);
        return false;
    }
    tn_derp_wr_client_info(&l->derp, w, hello->node_public, hello->nonce);
    l->said = true;
    l->due |= TN_RELAY_DUE_NOTE;            /* also makes the server prefer this connection */
    return true;
}

/* One due frame of a connection that has logged in. */
static bool tn_relay_wr_frame(const tn_relay *r, const tn_relay_link *l, unsigned what, tn_wr *w)
{
    size_t need = what == TN_RELAY_DUE_LETTER ? (size_t)TN_DERP_KEYED_LEN + l->letter.len
                                              : (size_t)TN_DERP_HEAD_LEN + 8;
    if (tn_relay_room(w) < need) return false;
    if (what == TN_RELAY_DUE_NOTE) tn_derp_wr_preferred(w, l->region == r->home);
    if (what == TN_RELAY_DUE_PONG) tn_derp_wr_pong(w, l->pong);
    if (what == TN_RELAY_DUE_PING) tn_derp_wr_ping(w, l->ping);
    if (what == TN_RELAY_DUE_LETTER)
        tn_derp_wr_send(w, l->letter.key, l->letter.data, l->letter.len);
    return true;
}

/* Writes what is due into the link's open record; the caller commits and
 * flushes tn_wr_len(w) bytes. Request and login need hello and, the login, one
 * X25519: give NULL outside of poll. */
static void tn_relay_write(tn_relay *r, unsigned slot, const tn_relay_hello *hello, tn_wr *w,
                           uint64_t now_ms)
{
    tn_relay_link *l = &r->links[slot];
    uint32_t       now = (uint32_t)now_ms;
    unsigned       what;

    l->stuck = false;
    for (what = 1; what < TN_RELAY_DUE_CLOSE; what <<= 1) {
        bool done;
        if ((tn_relay_ready(l) & what) == 0) continue;
        if (what <= TN_RELAY_DUE_LOGIN && hello == NULL) return;
        if (what == TN_RELAY_DUE_REQUEST)    done = tn_relay_wr_request(l, hello, w, now);
        else if (what == TN_RELAY_DUE_LOGIN) done = tn_relay_wr_login(l, hello, w, now);
        else                                 done = tn_relay_wr_frame(r, l, what, w);
        if (!done) {
            l->stuck = l->state != TN_RELAY_CLOSING;
            return;
        }
        l->due &= (uint8_t)~what;
    }
}

/* ---- packets out, and the ways to peers ---- */

/* The slot to reach a peer of that home region: its region if open, else where
 * the peer was heard, else its region is dialled; -1: no way at all. Without a
 * slot to spare our own home is tried: the peer may be there too. */
static int tn_relay_route(tn_relay *r, size_t peer, uint16_t region, uint64_t now_ms)
{
    int own   = tn_relay_find(r, region);
    int heard = peer < r->peers ? (int)r->via[peer] - 1 : -1;

    if (!r->on) return -1;
    if (own >= 0 && r->links[own].state == TN_RELAY_OPEN) return own;
    if (heard >= 0 && r->links[heard].state == TN_RELAY_OPEN) return heard;
    if (own < 0 && region != 0) own = tn_relay_take(r, region, false, (uint32_t)now_ms);
    if (own < 0 && region != 0) own = tn_relay_find(r, r->home);
    return own;
}

/* A packet for key through that slot. w: the link's open record, NULL while it
 * takes nothing. urgent: handshake or disco, which may fill the record and wait
 * for a connection, one per slot, the newest. AGAIN: dropped. */
static TN_NOINLINE tailnet_result tn_relay_post(tn_relay *r, unsigned slot, tn_wr *w,
                                                const uint8_t key[32], const void *data, size_t len,
                                                bool urgent, uint64_t now_ms)
{
    tn_relay_link *l    = &r->links[slot];
    size_t         room = w == NULL ? 0 : tn_relay_room(w);

    if (len > 65536ul) return TAILNET_ERR_TOO_BIG;
    if (l->state == TN_RELAY_IDLE) return TAILNET_ERR_AGAIN;
    l->written_ms = (uint32_t)now_ms;
    if (!urgent) room = room < TN_RELAY_RESERVE ? 0 : room - TN_RELAY_RESERVE;
    if (l->said && room >= TN_DERP_KEYED_LEN && room - TN_DERP_KEYED_LEN >= len) {
        if (!tn_derp_may_send(&l->derp, len, now_ms)) return TAILNET_ERR_AGAIN;
        tn_derp_wr_send(w, key, data, len);
        return TAILNET_OK;
    }
    if (!urgent || len > sizeof l->letter.data) return TAILNET_ERR_AGAIN;
    tn_copy_key(l->letter.key, key);
    memcpy(l->letter.data, data, len);
    l->letter.len = (uint8_t)len;
    l->due       |= TN_RELAY_DUE_LETTER;
    l->stuck      = l->said && w == NULL;   /* else the next poll finds room        */
    return TAILNET_OK;
}

/* A packet of this peer came in by that slot. */
static TN_NOINLINE void tn_relay_learn(tn_relay *r, size_t peer, unsigned slot)
{
    if (peer < r->peers) r->via[peer] = (uint8_t)(slot + 1);
}

/* The server says that the peer is gone from there. */
static void tn_relay_forget(tn_relay *r, size_t peer, unsigned slot)
{
    if (peer < r->peers && r->via[peer] == slot + 1) r->via[peer] = 0;
}

/* The peer left the map or has another key. */
static void tn_relay_forget_peer(tn_relay *r, size_t peer)
{
    if (peer < r->peers) r->via[peer] = 0;
}

/* ======================================================================== *
 * >>control — the conversation with the control server: key fetch, Noise
 * upgrade, register, map stream, short requests.
 *
 * Owns:    the control connection from wish to bytes: Noise, HTTP/2 and JSON
 *          states, the two record buffers, what the server last said.
 * Calls:   >>base, >>crypto, >>rim, >>key, >>json, >>http, >>noise, >>link, >>map.
 * States:  IDLE -> PAUSE -> KEY -> PAUSE -> DIAL -> UPGRADE -> REGISTER ->
 *          STREAM -> RUN; PAUSE -> DIAL when the key is known; UPGRADE ->
 *          STREAM, FOLLOWUP; REGISTER -> FOLLOWUP -> STREAM; FOLLOWUP, STREAM,
 *          RUN -> REGISTER; REGISTER and FOLLOWUP begin anew; from every
 *          state but IDLE to PAUSE and to IDLE.
 * Always:  every state but IDLE has a deadline. A request under way is built
 *          from frozen inputs. No message is ever in memory as a whole.
 * Trust:   bytes inside Noise are as trustworthy as the server key, which is
 *          as trustworthy as the TLS of the key fetch, or as a pinned key.
 *          Their form is not trusted at all.
 * ======================================================================== */

enum {
    TN_CTL_RECORD_MAX = TN_NZ_RECORD_MAX,
    TN_CTL_OUT_MAX    = TAILNET_TLS_OUT < TN_NZ_TEXT_MAX ? TAILNET_TLS_OUT : TN_NZ_TEXT_MAX,
    TN_CTL_TEXT_MAX   = 120,                /* of a refusal, kept for the user      */
    TN_CTL_URL_MAX    = 192,                /* login URL with its end               */
    TN_CTL_HOST_MAX   = 96,                 /* host name with its end               */
    TN_CTL_STREAMS    = 4
};

#define TN_CTL_DIAL_MS      30000ul         /* the links have shorter ones          */
#define TN_CTL_REGISTER_MS  60000ul
#define TN_CTL_WATCHDOG_MS  120000ul        /* control/controlclient/direct.go      */
#define TN_CTL_LITE_MS      30000ul
#define TN_CTL_PING_MS      60000ul         /* while a follow-up is silent          */
#define TN_CTL_PONG_MS      15000ul
#define TN_CTL_AUX_MS       15000ul
#define TN_CTL_CROWDED_MS   100u            /* till a TLS engine is free           */
#define TN_CTL_REFRESH_MS   1200000ul       /* a deleted node learns of it only by
                                             * asking: hscontrol/poll.go            */
#define TN_CTL_SLOW_MS      300000ul        /* between tries that will hardly heal  */
#define TN_CTL_REREAD_MS    10000ul
#define TN_CTL_MESSAGE_MAX  67108864ul      /* one map message                      */

typedef enum tn_ctl_state {
    TN_CTL_IDLE, TN_CTL_KEY, TN_CTL_DIAL, TN_CTL_UPGRADE, TN_CTL_REGISTER, TN_CTL_FOLLOWUP,
    TN_CTL_STREAM, TN_CTL_RUN, TN_CTL_PAUSE
} tn_ctl_state;

/* From row to column: may that happen? */
static const uint16_t tn_ctl_arrows[9] = {
    /* IDLE     */ 1u << TN_CTL_PAUSE,
    /* KEY      */ 1u << TN_CTL_PAUSE | 1u << TN_CTL_IDLE,
    /* DIAL     */ 1u << TN_CTL_UPGRADE | 1u << TN_CTL_PAUSE | 1u << TN_CTL_IDLE,
    /* UPGRADE  */ 1u << TN_CTL_REGISTER | 1u << TN_CTL_FOLLOWUP | 1u << TN_CTL_STREAM |
        1u << TN_CTL_PAUSE | 1u << TN_CTL_IDLE,
    /* REGISTER */ 1u << TN_CTL_REGISTER | 1u << TN_CTL_FOLLOWUP | 1u << TN_CTL_STREAM |
        1u << TN_CTL_PAUSE | 1u << TN_CTL_IDLE,
    /* FOLLOWUP */ 1u << TN_CTL_REGISTER | 1u << TN_CTL_FOLLOWUP | 1u << TN_CTL_STREAM |
        1u << TN_CTL_PAUSE | 1u << TN_CTL_IDLE,
    /* STREAM   */ 1u << TN_CTL_REGISTER | 1u << TN_CTL_RUN | 1u << TN_CTL_PAUSE |
        1u << TN_CTL_IDLE,
    /* RUN      */ 1u << TN_CTL_REGISTER | 1u << TN_CTL_PAUSE | 1u << TN_CTL_IDLE,
    /* PAUSE    */ 1u << TN_CTL_KEY | 1u << TN_CTL_DIAL | 1u << TN_CTL_IDLE
};

/* What a request on an HTTP/2 stream is for. */
typedef enum tn_ctl_kind {
    TN_CTL_NOTHING, TN_CTL_ASK_REGISTER, TN_CTL_ASK_LOGOUT, TN_CTL_ASK_STREAM, TN_CTL_ASK_LITE,
    TN_CTL_ASK_ANSWER
} tn_ctl_kind;

/* News for the node, merged until it fetches them. */
enum {
    TN_CTL_NEWS_STATE   = 1 << 0,           /* where we stand changed               */
    TN_CTL_NEWS_LOGIN   = 1 << 1,           /* the login URL changed                */
    TN_CTL_NEWS_KEY     = 1 << 2,           /* the node key changed                 */
    TN_CTL_NEWS_SAVE    = 1 << 3,           /* the saved state should be stored     */
    TN_CTL_NEWS_PROBLEM = 1 << 4,
    TN_CTL_NEWS_TOLD    = 1 << 5,           /* the server has taken our last wish   */
    TN_CTL_NEWS_OUT     = 1 << 6            /* the logout is done                   */
};

/* What was learned of the gateway; the first four are tn_pmp_services. */
enum {
    TN_CTL_PCP = 1, TN_CTL_PMP = 2, TN_CTL_UPNP = 4, TN_CTL_PROBED = 8, TN_CTL_MAPPED = 16,
    TN_CTL_LATENCIES = TN_ON_HOST ? 32 : 8  /* regions told of                    */
};

/* How far a region is, by IPv4 and by IPv6; 0: not known. */
typedef struct tn_ctl_latency {
    uint16_t region, ms[2];
} tn_ctl_latency;

/* What the server should know of us. The node fills it, zeroed first, before
 * each step. What is before latency is told when it changes; latency goes along. */
typedef struct tn_ctl_wish {
    uint16_t     home_region;
    uint8_t      endpoint_count;
    uint8_t      endpoint_type[TAILNET_MAX_CANDIDATES];   /* tailcfg.EndpointType   */
    bool         udp, ip6, varies;          /* NetInfo: works, works, hard NAT      */
    uint8_t      port_map;                  /* NetInfo: bits                        */
    uint8_t      disco[32];
    tailnet_addr endpoint[TAILNET_MAX_CANDIDATES];
    tn_ctl_latency latency[TN_CTL_LATENCIES];
} tn_ctl_wish;

/* Everything a step works on besides its own struct. */
typedef struct tn_ctl_world {
    tn_rim             *rim;
    tn_links           *links;
    tn_map             *map;
    tn_flt             *flt;
    tn_key_state       *keys;
    uint8_t            *node_public;        /* of keys->node; follows a new key     */
    const tailnet_desc *desc;
    tn_ctl_wish         wish;
    bool                tls_free;           /* control may keep a TLS engine        */
} tn_ctl_world;

/* A request being written: its body is built anew for each piece. */
typedef struct tn_ctl_outgoing {
    uint32_t stream;                        /* 0: none                              */
    uint32_t total, done;
    uint8_t  kind;
} tn_ctl_outgoing;

typedef struct tn_ctl_asked {
    uint32_t stream;                        /* 0: free                              */
    uint16_t status;                        /* 0: not answered yet                  */
    uint8_t  kind;
} tn_ctl_asked;

/* The answer to a registration, while it is read. */
typedef struct tn_ctl_answer {
    bool     expired, signature, error, has_url, same_url, too_long;
    uint16_t retry_s;                       /* Retry-After; 0: none that we follow  */
} tn_ctl_answer;

/* What ends with the connection: zero when there is none. */
typedef struct tn_ctl_line {
    bool            proven;                 /* the head of an HTTP/1 answer was read */
    bool            early_done, message_open, fed, pinged, piece_end;
    bool            ping_waits;             /* for room to answer; no reading till then */
    uint8_t         prefix_len, prefix[4];
    uint16_t        out_len, out_at;
    uint16_t        in_len, in_end;         /* of the record; where plain ends      */
    tailnet_link    link;                   /* 0: none                              */
    uint32_t        map_stream;             /* whose answer fills the map; 0: none  */
    uint32_t        next_stream;            /* the one that will replace it         */
    uint32_t        piece_stream;
    uint32_t        message_left;
    tn_ctl_outgoing rq;
    tn_ctl_asked    asked[TN_CTL_STREAMS];
    tn_rd           plain;                  /* decrypted and not yet eaten          */
    tn_rd           piece;                  /* of a body, not yet eaten             */
    tn_nz_early     early;
} tn_ctl_line;

/* What has a deadline: the state, a visit, a lite update, an answer to a sign of life. */
enum { TN_CTL_STATE, TN_CTL_VISIT, TN_CTL_UPDATE, TN_CTL_SIGN, TN_CTL_CLOCKS };

/* Small and much used first: short offsets make short code. */
typedef struct tn_ctl {
    tn_ctl_state    state;
    bool            up;                     /* wanted                               */
    bool            want_login, want_logout, want_reread;
    bool            over_tls;               /* carrier of the present dial          */
    bool            plain_failed;           /* the last plain one failed            */
    bool            key_known;              /* server_key may be used               */
    bool            expired_once;           /* NodeKeyExpired in this login already */
    bool            lite_dirty, aux_sent, reread_own;
    bool            refused;                /* cannot go on, see the problem        */
    bool            crowded;                /* no TLS engine was free for us        */
    bool            slow;                   /* the next pause is a long one         */
    bool            map_refused;            /* since it last gave us a map        */
    uint8_t         text_len, url_len;
    tailnet_result  why;                    /* the newest trouble                   */
    tn_ctl_answer   answer;
    tn_ctl_line     line;
    uint16_t        failures;               /* in a row                             */
    uint16_t        port;                   /* of the dial under way                */
    tailnet_link    aux;                    /* 0: none                              */
    uint32_t        reread_ms;
    uint32_t        news, detail;
    uint32_t        maps_read;              /* messages that were no mere sign of life */
    const char     *why_section;
    uint32_t        due[TN_CTL_CLOCKS];     /* low 32 bits of a time; 0: never    */
    uint64_t        now_ms;                 /* of the last step                   */
    uint64_t        reread_at_ms;           /* not again before                     */
    uint8_t         server_key[32];
    uint8_t         asker[32];              /* public node key of a registration    */
    char            host[TN_CTL_HOST_MAX];
    char            text[TN_CTL_TEXT_MAX];  /* what a refusing server said          */
    char            url[TN_CTL_URL_MAX];    /* login                                */
    tn_ctl_wish     sent;                   /* the wish of the last request         */
    tn_nz           nz;
    union {
        tn_h1 h1;                           /* key fetch and upgrade                */
        tn_h2 h2;                           /* from then on                         */
    } u;
    tn_js           js;                     /* of the map message, of the key       */
    tn_js           asked_js;               /* of a registration's answer           */
    uint8_t         out[TN_CTL_OUT_MAX + 19];
    uint8_t         in[TN_CTL_RECORD_MAX];
} tn_ctl;

/* ---- request bodies: built whole every time, the window cuts ---- */

static void tn_ctl_w_bool(tn_wr *w, const char *piece, bool on)
{
    tn_js_wr(w, piece);
    tn_wr_text(w, on ? "true" : "false");
}

/* A key in hex; the piece ends with what keys of its kind begin with. */
static void tn_ctl_w_key(tn_wr *w, const char *piece, const uint8_t key[32])
{
    tn_js_wr(w, piece);
    tn_wr_hex(w, key, 32);
    tn_wr_u8(w, '"');
}

/* Seconds, by region and family. */
static void tn_ctl_w_latency(tn_wr *w, const tn_ctl_wish *wish)
{
    unsigned i, told = 0;
    for (i = 0; i < 2u * TN_CTL_LATENCIES; i++) {
        const tn_ctl_latency *l  = &wish->latency[i / 2];
        unsigned              ms = l->ms[i % 2];
        if (ms == 0) continue;
        tn_js_wr(w, told++ == 0 ? ",'DERPLatency':{'" : ",'");
        tn_wr_dec(w, l->region);
        tn_js_wr(w, i % 2 == 0 ? "-v4':" : "-v6':");
        tn_wr_dec(w, ms);
        tn_wr_text(w, "e-3");
    }
    if (told != 0) tn_wr_u8(w, '}');
}

/* Left out while we have no home: a server then keeps the one it knows of our
 * last run, and peers reach us there at once (hscontrol/state). */
static void tn_ctl_w_netinfo(tn_wr *w, const tn_ctl_wish *wish)
{
    if (wish->home_region == 0) return;
    tn_js_wr(w, ",'NetInfo':{'PreferredDERP':");
    tn_wr_dec(w, wish->home_region);
    if (TAILNET_DIRECT) {
        tn_ctl_w_bool(w, ",'MappingVariesByDestIP':", wish->varies);
        tn_ctl_w_bool(w, ",'WorkingIPv6':", wish->ip6);
        tn_ctl_w_bool(w, ",'WorkingUDP':", wish->udp);
    }
    if (TAILNET_PORTMAP && (wish->port_map & TN_CTL_PROBED) != 0) {
        tn_ctl_w_bool(w, ",'HavePortMap':", (wish->port_map & TN_CTL_MAPPED) != 0);
        tn_ctl_w_bool(w, ",'UPnP':", (wish->port_map & TN_CTL_UPNP) != 0);
        tn_ctl_w_bool(w, ",'PMP':", (wish->port_map & TN_CTL_PMP) != 0);
        tn_ctl_w_bool(w, ",'PCP':", (wish->port_map & TN_CTL_PCP) != 0);
    }
    if (TAILNET_DIRECT) tn_ctl_w_latency(w, wish);
    tn_wr_u8(w, '}');
}

/* The same contents in every request: servers differ in which request they
 * take them from, and some take what is missing for withdrawn. */
static void tn_ctl_w_hostinfo(tn_wr *w, const tailnet_desc *d, const tn_ctl_wish *wish)
{
    tailnet_addr ip;
    size_t       i;
    tn_js_wr(w, ",'Hostinfo':{'IPNVersion':'" TAILNET_VERSION "-tailnet.h','App':'tailnet.h'");
    tn_js_wr_text(w, ",'OS':", d->os != NULL ? d->os : "linux");
    if (d->model != NULL) tn_js_wr_text(w, ",'DeviceModel':", d->model);
    tn_js_wr_text(w, ",'Hostname':", d->prefs.hostname != NULL ? d->prefs.hostname : "tailnet");
    for (i = 0; i < d->prefs.route_count; i++) {
        const tailnet_prefix *p = &d->prefs.routes[i];
        tn_js_wr(w, i == 0 ? ",'RoutableIPs':['" : "','");
        ip.family = p->family;
        memcpy(ip.ip, p->ip, 16);
        tn_wr_ip(w, &ip);
        tn_wr_u8(w, '/');
        tn_wr_dec(w, p->bits);
    }
    if (i != 0) tn_js_wr(w, "']");
    for (i = 0; i < d->tag_count; i++)
        tn_js_wr_text(w, i == 0 ? ",'RequestTags':[" : ",", d->tags[i]);
    if (i != 0) tn_wr_u8(w, ']');
    if (d->prefs.shields_up) tn_js_wr(w, ",'ShieldsUp':true");
    tn_ctl_w_netinfo(w, wish);
    tn_wr_u8(w, '}');
}

/* What every request begins with. */
static void tn_ctl_w_head(tn_wr *w, const tailnet_desc *d, const uint8_t node_key[32])
{
    tn_js_wr(w, "{'Version':");
    tn_wr_dec(w, d->capability_version);
    tn_ctl_w_key(w, ",'NodeKey':'" TN_KEY_NODE, node_key);
}

/* POST /machine/register (tailcfg.RegisterRequest). */
static void tn_ctl_body_register(const tn_ctl *c, const tn_ctl_world *x, tn_wr *w, bool logout)
{
    const tailnet_desc *d = x->desc;

    tn_ctl_w_head(w, d, logout ? x->node_public : c->asker);
    if (x->keys->has_old && !logout)
        tn_ctl_w_key(w, ",'OldNodeKey':'" TN_KEY_NODE, x->keys->old_public);
    if (logout) {                           /* any past time; this is the official one */
        tn_js_wr(w, ",'Expiry':'1970-01-01T00:02:03Z'");
    } else if (c->url_len != 0) {
        tn_js_wr_text(w, ",'Followup':", c->url);
    } else if (d->auth_key != NULL && d->auth_key[0] != '\0') {
        tn_js_wr_text(w, ",'Auth':{'AuthKey':", d->auth_key);
        tn_wr_u8(w, '}');
    }
    tn_ctl_w_hostinfo(w, d, &c->sent);
    tn_js_wr(w, d->ephemeral ? ",'Ephemeral':true}" : "}");
}

/* POST /machine/map (tailcfg.MapRequest), as the endless stream or as a lite update. */
static void tn_ctl_body_map(const tn_ctl *c, const tn_ctl_world *x, tn_wr *w, bool stream)
{
    const tn_ctl_wish *wish = &c->sent;
    unsigned           i;

    tn_ctl_w_head(w, x->desc, x->node_public);
    tn_ctl_w_key(w, ",'DiscoKey':'" TN_KEY_DISCO, wish->disco);
    tn_js_wr(w, ",'KeepAlive':true");
    tn_js_wr(w, stream ? ",'Stream':true" : ",'OmitPeers':true");
    tn_ctl_w_hostinfo(w, x->desc, wish);
    for (i = 0; TAILNET_DIRECT && i < wish->endpoint_count; i++) {
        tn_js_wr(w, i == 0 ? ",'Endpoints':['" : "','");
        tn_wr_addr(w, &wish->endpoint[i]);
    }
    if (i != 0) tn_js_wr(w, "']");
    for (i = 0; TAILNET_DIRECT && i < wish->endpoint_count; i++) {
        tn_js_wr(w, i == 0 ? ",'EndpointTypes':[" : ",");
        tn_wr_dec(w, wish->endpoint_type[i]);
    }
    tn_js_wr(w, i != 0 ? "]}" : "}");
}

/* Two kinds of ping request are answered: a HEAD of the URL, and a request to
 * us inside it (tailcfg.PingRequest.Types). */
static bool tn_ctl_ping_is_head(const tn_map_item *ping) { return ping->more[0] == '\0'; }
static bool tn_ctl_ping_is_c2n(const tn_map_item *ping)
{
    return tn_is(ping->more, strlen(ping->more), "c2n");
}

/* The body of a request inside a ping request, HTTP/1.1 as Go writes it, if it is one
 * for /echo. Behind its first line a request is framed like an answer. */
static bool tn_ctl_echo(const tn_map_item *ping, const uint8_t **body, size_t *len)
{
    const char  *text = (const char *)ping->payload;
    size_t       left = ping->payload_len, path = 0, line;
    tn_h1        h;
    tn_rd        in;

    while (path < left && text[path] != ' ') path++;    /* behind the method */
    line = path;
    while (line < left && text[line] != '\n') line++;
    if (line == left || !tn_begins(text + path, left - path, " /echo ")) return false;
    tn_rd_over(&in, text + line + 1, left - line - 1);
    tn_h1_begin_fields(&h);
    if (tn_h1_head(&h, &in) != TN_H1_HEAD_DONE) return false;
    return tn_h1_body(&h, &in, body, len) != TN_H1_BAD;
}

/* The HTTP/1.1 answer to it: /echo gives back its body, all else is unknown
 * (what reduced official builds say, feature/c2n). */
static void tn_ctl_body_answer(const tn_map_item *ping, tn_wr *w)
{
    static const char unknown[] = "unknown c2n path\n";
    const uint8_t    *body;
    size_t            len;
    if (tn_ctl_echo(ping, &body, &len)) {
        tn_wr_text(w, "HTTP/1.1 200 OK");
    } else {
        body = (const uint8_t *)unknown;
        len  = sizeof unknown - 1;
        tn_wr_text(w, "HTTP/1.1 400 Bad Request");
    }
    tn_wr_text(w, "\r\nContent-Length: ");
    tn_wr_dec(w, len);
    tn_wr_text(w, "\r\n\r\n");
    tn_wr_bytes(w, body, len);
}

/* ---- where the server is ---- */

typedef struct tn_ctl_target {
    const char *host, *path;
    size_t      host_len, path_len;
    uint16_t    port;
    bool        tls, named_port;
} tn_ctl_target;

/* How far url goes from at till one of the characters of ends, or its own end. */
static size_t tn_ctl_span(const char *url, size_t len, size_t at, const char *ends)
{
    while (at < len && !tn_h1_has(ends, (uint8_t)url[at])) at++;
    return at;
}

/* The parts of http[s]://host[:port][/path]; false: not such a URL. */
static bool tn_ctl_url_parse(tn_ctl_target *t, const char *url, size_t len)
{
    size_t   at, end;
    uint32_t port = 0;
    bool     literal;

    t->tls = tn_begins(url, len, "https://");
    if (!t->tls && !tn_begins(url, len, "http://")) return false;
    at          = t->tls ? 8 : 7;
    literal     = at < len && url[at] == '[';
    at         += literal;
    end         = tn_ctl_span(url, len, at, literal ? "]" : ":/?");
    t->host     = url + at;
    t->host_len = end - at;
    if (literal && end++ == len) return false;
    t->port       = t->tls ? 443 : 80;
    t->named_port = end < len && url[end] == ':';
    if (t->named_port) {
        at  = end + 1;
        end = tn_ctl_span(url, len, at, "/?");
        if (!tn_u32_parse(url + at, end - at, 65535, &port) || port == 0) return false;
        t->port = (uint16_t)port;
    }
    t->path     = url + end;
    t->path_len = len - end;
    return t->host_len != 0 && t->host_len < TN_CTL_HOST_MAX;
}

static const char *tn_ctl_configured_url(const tn_ctl_world *x)
{
    return x->desc->control_url != NULL ? x->desc->control_url
                                        : "https://controlplane.tailscale.com";
}

static bool tn_ctl_target_of(tn_ctl_target *t, const tn_ctl_world *x)
{
    const char *url = tn_ctl_configured_url(x);
    return tn_ctl_url_parse(t, url, strlen(url));
}

/* ---- state, trouble, and the way out of it ---- */

static TN_NOINLINE void tn_ctl_enter(tn_ctl *c, tn_ctl_state next, uint32_t due)
{
    TAILNET_ASSERT((tn_ctl_arrows[c->state] >> next & 1u) != 0);
    c->state       = next;
    c->due[TN_CTL_STATE] = due;
    c->news |= TN_CTL_NEWS_STATE;
}

/* So many milliseconds from now on, fewer than 24 days. */
static TN_NOINLINE uint32_t tn_ctl_in(const tn_ctl_world *x, uint32_t ms)
{
    uint32_t due = (uint32_t)x->rim->now_ms + ms;
    return due != 0 ? due : 1;
}

/* Has that time come? */
static bool tn_ctl_is_due(const tn_ctl *c, unsigned what)
{
    uint32_t due = c->due[what];
    return due != 0 && ((uint32_t)c->now_ms - due) >> 31 == 0;
}

/* Causes that come and go, and say nothing of what is wrong. */
static bool tn_ctl_is_weak(tailnet_result why)
{
    return why == TAILNET_OK || why == TAILNET_ERR_NETWORK || why == TAILNET_ERR_TIMEOUT ||
           why == TAILNET_ERR_AGAIN;
}

/* What went wrong, and where: one of the names that a problem is reported with. */
enum {
    TN_CTL_IN_KEY, TN_CTL_IN_LINK, TN_CTL_IN_TLS, TN_CTL_IN_NOISE, TN_CTL_IN_HTTP, TN_CTL_IN_MAP,
    TN_CTL_IN_CONTROL, TN_CTL_IN_PROXY
};
#define TN_CTL_WHAT(where, why) ((unsigned)TN_CTL_IN_##where * 32u + (unsigned)-(int)(why))

/* Notes trouble for the user. Within one episode the first cause stays: the
 * time-out that follows a bad certificate says less than the certificate. */
static void tn_ctl_trouble(tn_ctl *c, unsigned what, int32_t detail)
{
    static const char names[][8] = { "key", "link", "tls", "noise", "http", "map", "control",
                                         "proxy" };
    tailnet_result    why        = (tailnet_result)-(int)(what % 32u);
    if (c->why != TAILNET_OK && (!tn_ctl_is_weak(c->why) || tn_ctl_is_weak(why))) return;
    c->why         = why;
    c->why_section = names[what / 32u];
    c->detail      = (uint32_t)detail;
    c->news |= TN_CTL_NEWS_PROBLEM;
}

static void tn_ctl_well(tn_ctl *c)
{
    c->why      = TAILNET_OK;
    c->failures = 0;
    c->slow     = false;
    c->text_len = 0;
}

static void tn_ctl_end_aux(tn_ctl *c, tn_ctl_world *x)
{
    if (c->aux != 0) tn_link_close(x->links, c->aux, TAILNET_OK);
    c->aux             = 0;
    c->due[TN_CTL_VISIT] = 0;
    c->crowded         = false;
}

/* Forgets the connection and everything that lived on it; the map stays in force. */
static void tn_ctl_disconnect(tn_ctl *c, tn_ctl_world *x, tailnet_result why)
{
    tn_ctl_end_aux(c, x);                   /* its host is ours, and may change */
    if (c->line.link != 0) tn_link_close(x->links, c->line.link, why);
    if (c->line.map_stream != 0 || c->line.next_stream != 0) tn_map_stream(x->map, x->flt);
    memset(&c->line, 0, sizeof c->line);
    tn_nz_wipe(&c->nz);
    tn_wipe(c->out, sizeof c->out);
    tn_wipe(c->in, sizeof c->in);
    c->due[TN_CTL_UPDATE] = c->due[TN_CTL_SIGN] = 0;
}

/* Gives this attempt up and waits; longer with every failure in a row. */
static void tn_ctl_pause(tn_ctl *c, tn_ctl_world *x, tailnet_result why)
{
    uint32_t wait = c->failures < 8 ? (uint32_t)250 << c->failures : (uint32_t)60000u;
    if (wait > 60000u) wait = 60000u;
    if (c->slow) wait = TN_CTL_SLOW_MS;
    c->slow = false;
    if (c->failures < 1000) c->failures++;
    tn_ctl_disconnect(c, x, why);
    tn_ctl_enter(c, TN_CTL_PAUSE,
                 tn_ctl_in(x, tn_rim_between(x->rim, wait / 2, wait + wait / 2)));
}

static void tn_ctl_fail(tn_ctl *c, tn_ctl_world *x, unsigned what, int32_t detail)
{
    if ((c->state == TN_CTL_DIAL || c->state == TN_CTL_UPGRADE) && !c->over_tls)
        c->plain_failed = true;             /* the other carrier next time */
    tn_ctl_trouble(c, what, detail);
    tn_ctl_pause(c, x, (tailnet_result)-(int)(what % 32u));
}

/* The server answered with an error. */
static void tn_ctl_fail_status(tn_ctl *c, tn_ctl_world *x, unsigned status)
{
    tn_ctl_fail(c, x, TN_CTL_WHAT(CONTROL, TAILNET_ERR_CONTROL), (int32_t)status);
}

/* The server will not have us, and asking again does not help. */
static void tn_ctl_refuse(tn_ctl *c, tn_ctl_world *x, tailnet_result why, int32_t detail)
{
    c->why = TAILNET_OK;
    tn_ctl_trouble(c, TN_CTL_WHAT(CONTROL, why), detail);
    c->refused = true;
    c->slow    = true;
    tn_ctl_pause(c, x, why);
    c->due[TN_CTL_STATE] = 0;
}

/* ---- dialling ---- */

/* Lends a link without an engine the free end of our record buffer. */
static void tn_ctl_lend(tn_ctl *c, tn_ctl_world *x)
{
    size_t used = c->line.in_end > c->line.in_len ? c->line.in_end : c->line.in_len;
    if (tn_link_has_engine(x->links, c->line.link)) return;
    tn_link_lend(x->links, c->line.link, c->in + used, sizeof c->in - used, NULL, 0);
}

/* Opens a link to the host that stands in c->host. */
static bool tn_ctl_dial_host(tn_ctl *c, tn_ctl_world *x, uint16_t port, bool tls, uint8_t purpose,
                             tailnet_link *out)
{
    tailnet_dial   dial;
    tailnet_addr  *ip = &dial.addr4;
    tailnet_result r;

    memset(&dial, 0, sizeof dial);
    dial.host = c->host;
    dial.port = port;
    dial.tls  = tls;
    if (tn_ip_parse(ip, c->host, strlen(c->host))) {
        ip->port = port;
        if (ip->family == 6) {
            dial.addr6 = *ip;
            memset(ip, 0, sizeof *ip);
        }
    }
    r = tn_link_open(x->links, &dial, purpose, out);
    c->crowded = r == TAILNET_ERR_AGAIN;
    if (r == TAILNET_OK) return true;
    *out = 0;
    if (r != TAILNET_ERR_AGAIN && out == &c->line.link) tn_ctl_trouble(c, TN_CTL_WHAT(LINK, r), 0);
    return false;
}

/* The dial could not even begin. An engine that others hold is no failure of ours:
 * the room above makes place. */
static void tn_ctl_not_dialled(tn_ctl *c, tn_ctl_world *x)
{
    uint16_t failures = c->failures;
    bool     crowded  = c->crowded;
    tn_ctl_pause(c, x, TAILNET_ERR_AGAIN);
    if (!crowded) return;
    c->crowded     = true;
    c->failures    = failures;
    c->due[TN_CTL_STATE] = tn_ctl_in(x, TN_CTL_CROWDED_MS);
}

/* Where control goes in the clear, under Noise alone, although the URL says https; 0:
 * nowhere. A URL with a port says what listens there and nothing of port 80. */
static uint16_t tn_ctl_plain_port(const tn_ctl *c, const tn_ctl_world *x, const tn_ctl_target *t)
{
    const tailnet_desc *d = x->desc;
    if (!c->key_known || d->control_tls || (c->plain_failed && x->tls_free)) return 0;
    return d->control_http_port != 0 || t->named_port ? d->control_http_port : (uint16_t)80;
}

/* Starts the next connection: for the server's key, or for control itself. The key of an
 * https server never comes in the clear. */
static void tn_ctl_begin(tn_ctl *c, tn_ctl_world *x)
{
    bool          key = !c->key_known;
    tn_ctl_target t;

    if (!tn_ctl_target_of(&t, x)) {
        tn_ctl_refuse(c, x, TAILNET_ERR_ARGUMENT, 0);
        return;
    }
    tn_text_copy(c->host, sizeof c->host, t.host, t.host_len);
    c->port     = t.tls ? tn_ctl_plain_port(c, x, &t) : t.port;
    c->over_tls = c->port == 0;
    if (c->over_tls) c->port = t.port;
    if (!key && c->over_tls && !x->tls_free) {
        tn_ctl_fail(c, x, TN_CTL_WHAT(LINK, TAILNET_ERR_UNSUPPORTED), 0);
        return;
    }
    tn_ctl_enter(c, key ? TN_CTL_KEY : TN_CTL_DIAL, tn_ctl_in(x, TN_CTL_DIAL_MS));
    if (tn_ctl_dial_host(c, x, c->port, c->over_tls,
                         key ? TN_LINK_FOR_KEY : TN_LINK_FOR_CONTROL, &c->line.link))
        tn_ctl_lend(c, x);                  /* a proxy answers before it is open */
    else
        tn_ctl_not_dialled(c, x);
}

/* Whom a request on the present dial is for. */
static void tn_ctl_h1_host(const tn_ctl *c, tn_h1_host *out)
{
    out->name  = c->host;
    out->port  = c->port;
    out->usual = c->over_tls ? 443 : 80;
}

/* Goes on sending what stands in out; true: all of it is on its way. */
static bool tn_ctl_push(tn_ctl *c, tn_ctl_world *x)
{
    tn_ctl_line *l = &c->line;
    if (l->out_at < l->out_len)
        l->out_at = (uint16_t)(l->out_at + tn_link_write(x->links, l->link, c->out + l->out_at,
                                                         (size_t)(l->out_len - l->out_at)));
    return l->out_at == l->out_len;
}

/* Sends a request that was written into out; its rest follows with later steps.
 * False: it did not fit there. */
static bool tn_ctl_send(tn_ctl *c, tn_ctl_world *x, const tn_wr *w)
{
    if (!tn_wr_ok(w)) return false;
    c->line.out_len = (uint16_t)tn_wr_len(w);
    c->line.out_at  = 0;
    (void)tn_ctl_push(c, x);
    return true;
}

/* GET /key?v=N (control/controlclient/direct.go, loadServerPubKeys). */
static void tn_ctl_ask_key(tn_ctl *c, tn_ctl_world *x)
{
    tn_h1_host host;
    tn_wr      w, path;
    char       text[16];

    tn_ctl_h1_host(c, &host);
    memset(text, 0, sizeof text);
    tn_wr_over(&path, text, sizeof text - 1);
    tn_wr_text(&path, "/key?v=");
    tn_wr_dec(&path, x->desc->capability_version);
    tn_h1_begin_response(&c->u.h1);
    tn_js_init(&c->js);
    tn_wr_over(&w, c->out, sizeof c->out);
    if (!tn_h1_build_get(&w, &host, text) || !tn_ctl_send(c, x, &w))
        tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_NETWORK), 0);
}

/* POST /ts2021 with the Noise initiation (control/controlhttp). */
static void tn_ctl_ask_upgrade(tn_ctl *c, tn_ctl_world *x)
{
    uint8_t    eph[32], init[TN_NZ_INITIATION_LEN];
    char       text[137];
    tn_h1_host host;
    tn_wr      w;
    bool       ok = tn_rim_random(x->rim, eph, sizeof eph);

    tn_ctl_h1_host(c, &host);
    ok = ok && tn_nz_start(&c->nz, x->keys->machine, c->server_key, x->desc->capability_version,
                           eph, init);
    tn_wipe(eph, sizeof eph);
    if (!ok) {
        if (x->desc->control_key == NULL) c->key_known = false;
        tn_ctl_fail(c, x, TN_CTL_WHAT(NOISE, TAILNET_ERR_FORGED), 0);
        return;
    }
    tn_wr_over(&w, text, sizeof text - 1);
    tn_wr_base64(&w, init, sizeof init);
    text[136] = '\0';
    tn_h1_begin_response(&c->u.h1);
    tn_wr_over(&w, c->out, sizeof c->out);
    tn_ctl_enter(c, TN_CTL_UPGRADE, tn_ctl_in(x, TN_CTL_DIAL_MS));
    if (!tn_h1_build_ts2021(&w, &host, text) || !tn_ctl_send(c, x, &w))
        tn_ctl_fail(c, x, TN_CTL_WHAT(NOISE, TAILNET_ERR_NETWORK), 0);
}

/* ---- bytes from the link ---- */

/* Moves up to want bytes from the link behind those of the record at hand. */
static size_t tn_ctl_pull(tn_ctl *c, tn_ctl_world *x, size_t want)
{
    size_t   len = 0;
    uint8_t *at  = tn_link_read(x->links, c->line.link, &len);
    if (at == NULL || len == 0) {
        tn_ctl_lend(c, x);
        return 0;
    }
    if (len > want) len = want;
    if (len > sizeof c->in - c->line.in_len) len = sizeof c->in - c->line.in_len;
    memmove(c->in + c->line.in_len, at, len);    /* a lent piece may lie in the same buffer */
    tn_link_ack(x->links, c->line.link, len);
    c->line.in_len = (uint16_t)(c->line.in_len + len);
    return len;
}

/* One piece of an HTTP/1.1 head, straight from where the link has it. */
static tn_h1_result tn_ctl_pull_head(tn_ctl *c, tn_ctl_world *x)
{
    size_t       len = 0;
    uint8_t     *at  = tn_link_read(x->links, c->line.link, &len);
    tn_rd        in;
    tn_h1_result r;
    if (at == NULL || len == 0) {
        tn_ctl_lend(c, x);
        return TN_H1_MORE;
    }
    tn_rd_over(&in, at, len);
    r = tn_h1_head(&c->u.h1, &in);
    tn_link_ack(x->links, c->line.link, len - in.left);
    return r;
}

/* ---- the server's key ---- */

static void tn_ctl_have_key(tn_ctl *c, tn_ctl_world *x)
{
    c->key_known = true;
    tn_ctl_disconnect(c, x, TAILNET_OK);
    tn_ctl_enter(c, TN_CTL_PAUSE, tn_ctl_in(x, 0));   /* the next connection begins there */
}

/* A key that came without TLS may not replace one that we have used. */
static void tn_ctl_judge_key(tn_ctl *c, tn_ctl_world *x, const uint8_t key[32])
{
    if (tn_is_zero(key, 32)) {
        tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_UNSUPPORTED), 0);
    } else if (!c->over_tls && x->keys->has_server && !tn_equal(key, x->keys->server, 32)) {
        c->slow = true;
        tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_FORGED), 0);
    } else {
        tn_copy_key(c->server_key, key);
        tn_ctl_have_key(c, x);
    }
}

/* The head of the answer is here: is it one to read on? A redirect is not
 * followed: the URL that the user gave is the one whose name is checked. */
static bool tn_ctl_key_head(tn_ctl *c, tn_ctl_world *x)
{
    unsigned status = c->u.h1.status;
    if (status == 200) return true;
    c->slow = status == 400;                /* our version is too old for it */
    tn_ctl_fail(c, x, status == 400 ? TN_CTL_WHAT(KEY, TAILNET_ERR_UNSUPPORTED)
                                    : TN_CTL_WHAT(KEY, TAILNET_ERR_CONTROL),
                (int32_t)status);
    return false;
}

static void tn_ctl_key_json(tn_ctl *c, tn_ctl_world *x, const uint8_t *at, size_t len)
{
    tn_js_event ev;
    uint8_t     key[32];
    tn_js_feed(&c->js, at, len);
    while ((ev = tn_js_next(&c->js)) > TN_JS_MORE) {
        if (ev == TN_JS_STRING && c->js.depth == 1 && tn_js_is_key(&c->js, "publicKey")) {
            if (tn_key_parse(key, TN_KEY_MACHINE, c->js.text, c->js.text_len)) {
                tn_ctl_judge_key(c, x, key);
            } else {
                tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_MALFORMED), 0);
            }
            return;
        }
        if (ev == TN_JS_END) break;
    }
    if (ev != TN_JS_MORE) tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_MALFORMED), 0);
}

static void tn_ctl_read_key(tn_ctl *c, tn_ctl_world *x)
{
    tn_h1_result r = TN_H1_BODY;
    if (c->line.proven == false) {               /* here: the head is through */
        r = tn_ctl_pull_head(c, x);
        if (r == TN_H1_BAD) tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_MALFORMED), 0);
        if (r != TN_H1_HEAD_DONE || !tn_ctl_key_head(c, x)) return;
        c->line.proven = true;
    }
    for (;;) {                              /* ends with the bytes that are there */
        size_t         len = 0, piece_len = 0;
        uint8_t       *at  = tn_link_read(x->links, c->line.link, &len);
        const uint8_t *piece = NULL;
        tn_rd          in;
        if (at == NULL || len == 0) break;
        tn_rd_over(&in, at, len);
        r = tn_h1_body(&c->u.h1, &in, &piece, &piece_len);
        if (r == TN_H1_BODY) tn_ctl_key_json(c, x, piece, piece_len);
        if (c->state != TN_CTL_KEY) return;
        tn_link_ack(x->links, c->line.link, len - in.left);
        if (r == TN_H1_BAD || r == TN_H1_DONE) {
            tn_ctl_fail(c, x, TN_CTL_WHAT(KEY, TAILNET_ERR_MALFORMED), 0);
            return;
        }
    }
    tn_ctl_lend(c, x);
}

/* ---- Noise ---- */

/* The upgrade or the handshake did not work: the other carrier next time, and
 * perhaps the server has another key by now (control.md 4.7 has the patterns). */
static void tn_ctl_upgrade_failed(tn_ctl *c, tn_ctl_world *x, tailnet_result why, int32_t detail)
{
    if (x->desc->control_key == NULL) c->key_known = false;
    tn_ctl_fail(c, x, TN_CTL_WHAT(NOISE, why), detail);
}

/* There is no login page, or no more. */
static void tn_ctl_no_page(tn_ctl *c)
{
    c->url_len = 0;
    c->url[0]  = '\0';
}

/* Makes a node key to try. False: there is no randomness. */
static bool tn_ctl_fresh_key(tn_ctl *c, tn_ctl_world *x)
{
    uint8_t fresh[32];
    bool    ok = tn_rim_random(x->rim, fresh, sizeof fresh);
    if (ok) tn_key_state_try(x->keys, fresh);
    tn_wipe(fresh, sizeof fresh);
    c->news |= TN_CTL_NEWS_SAVE;
    return ok;
}

/* Begins a registration on the present connection. */
static void tn_ctl_register(tn_ctl *c, tn_ctl_world *x)
{
    if (x->keys->has_trying) tn_cr_x25519_base(c->asker, x->keys->trying);
    else                     tn_copy_key(c->asker, x->node_public);
    memset(&c->answer, 0, sizeof c->answer);
    tn_ctl_enter(c, c->url_len != 0 ? TN_CTL_FOLLOWUP : TN_CTL_REGISTER,
                 c->url_len != 0 ? 0 : tn_ctl_in(x, TN_CTL_REGISTER_MS));
    c->due[TN_CTL_SIGN] = c->url_len != 0 ? tn_ctl_in(x, TN_CTL_PING_MS) : 0;
    c->line.pinged = false;
}

/* The request on this stream, 0: a free place; or NULL. */
static tn_ctl_asked *tn_ctl_asked_on(tn_ctl *c, uint32_t stream)
{
    tn_ctl_asked *q = c->line.asked;
    for (; q < c->line.asked + TN_CTL_STREAMS; q++)
        if (q->stream == stream) return q;
    return NULL;
}

static tn_ctl_asked *tn_ctl_asking(tn_ctl *c, tn_ctl_kind kind)
{
    tn_ctl_asked *q = c->line.asked;
    for (; q < c->line.asked + TN_CTL_STREAMS; q++)
        if (q->stream != 0 && q->kind == kind) return q;
    return NULL;
}

/* Lets a stream go, whatever it was for; 0 is none. */
static void tn_ctl_drop(tn_ctl *c, uint32_t stream)
{
    tn_ctl_asked *q;
    if (stream == 0) return;
    q = tn_ctl_asked_on(c, stream);
    tn_h2_cancel(&c->u.h2, stream, TN_H2_CANCEL);
    if (q != NULL) memset(q, 0, sizeof *q);
    if (c->line.rq.stream == stream) c->line.rq.stream = 0;
    if (c->line.map_stream == stream) c->line.map_stream = 0;
    if (c->line.next_stream == stream) c->line.next_stream = 0;
}

/* Asks for the map stream, in place of any that was asked for. */
static void tn_ctl_stream(tn_ctl *c, tn_ctl_world *x)
{
    tn_ctl_drop(c, c->line.map_stream);
    tn_ctl_drop(c, c->line.next_stream);
    c->due[TN_CTL_SIGN] = 0;
    c->lite_dirty = true;                   /* some servers listen only to lite updates */
    tn_ctl_enter(c, TN_CTL_STREAM, tn_ctl_in(x, TN_CTL_WATCHDOG_MS));
}

/* The channel stands: register, or the map at once when the server knows us. */
static void tn_ctl_connected(tn_ctl *c, tn_ctl_world *x)
{
    c->line.proven = false;
    tn_h2_begin(&c->u.h2, TN_H2_CLIENT);
    if (x->keys->has_server && !x->keys->has_trying && !c->want_login && c->url_len == 0)
        tn_ctl_stream(c, x);
    else
        tn_ctl_register(c, x);
}

static void tn_ctl_read_upgrade(tn_ctl *c, tn_ctl_world *x)
{
    if (!c->line.proven) {                       /* here: the head is through */
        tn_h1_result r = tn_ctl_pull_head(c, x);
        if (r == TN_H1_BAD) tn_ctl_upgrade_failed(c, x, TAILNET_ERR_MALFORMED, 0);
        if (r != TN_H1_HEAD_DONE) return;
        if (c->u.h1.status != 101 || (c->u.h1.flags & TN_H1_TO_CONTROL) == 0) {
            tn_ctl_upgrade_failed(c, x, TAILNET_ERR_CONTROL, (int32_t)c->u.h1.status);
            return;
        }
        c->line.proven = true;
    }
    while (c->state == TN_CTL_UPGRADE) {
        size_t         want = tn_nz_want(&c->nz, c->in, c->line.in_len);
        tailnet_result r;
        if (want != 0) {
            if (tn_ctl_pull(c, x, want) == 0) return;
            continue;
        }
        r = tn_nz_finish(&c->nz, x->keys->machine, c->in, c->line.in_len);
        c->line.in_len = 0;
        if (r == TAILNET_OK) tn_ctl_connected(c, x);
        else                 tn_ctl_upgrade_failed(c, x, r, 0);
    }
}

/* The next record's plaintext into c->line.plain; false: none is whole yet, or it
 * failed and the connection with it. */
static bool tn_ctl_next_record(tn_ctl *c, tn_ctl_world *x)
{
    for (;;) {
        uint8_t       *text = NULL;
        size_t         len = 0, want = tn_nz_want(&c->nz, c->in, c->line.in_len);
        tailnet_result r;
        if (want != 0) {
            c->line.in_end = 0;
            if (tn_ctl_pull(c, x, want) == 0) return false;
            continue;
        }
        r = tn_nz_open(&c->nz, c->in, c->line.in_len, &text, &len);
        if (r != TAILNET_OK) {
            tn_ctl_fail(c, x, TN_CTL_WHAT(NOISE, r), 0);
            return false;
        }
        c->line.in_end = c->line.in_len;
        c->line.in_len = 0;
        tn_rd_over(&c->line.plain, text, len);
        if (tn_link_read(x->links, c->line.link, &want) == NULL)
            tn_ctl_lend(c, x);              /* what comes now must not fall on this text */
        return true;
    }
}

/* Takes the early payload off the front (control/ts2021/conn.go). HTTP/2 gets
 * the nine bytes back when there was none. */
static bool tn_ctl_early(tn_ctl *c, tn_ctl_world *x, tn_h2_event *ev)
{
    const uint8_t     *at   = c->line.plain.at;
    size_t             left = c->line.plain.left;
    tn_nz_early_result r;
    tn_rd              head;

    if (c->line.early_done) return true;
    r = tn_nz_early_take(&c->line.early, &at, &left);
    tn_rd_over(&c->line.plain, left == 0 ? NULL : at, left);
    if (r == TN_NZ_EARLY_BAD) tn_ctl_fail(c, x, TN_CTL_WHAT(NOISE, TAILNET_ERR_MALFORMED), 0);
    if (r == TN_NZ_EARLY_BAD || r == TN_NZ_EARLY_MORE) return false;
    c->line.early_done = true;
    if (r == TN_NZ_EARLY_NONE) {            /* nine bytes of a SETTINGS frame: no event yet */
        tn_rd_over(&head, c->line.early.head, 9);
        if (tn_h2_next(&c->u.h2, &head, ev) == TN_H2_FAILED) {
            tn_ctl_fail(c, x, TN_CTL_WHAT(HTTP, TAILNET_ERR_MALFORMED), 0);
            return false;
        }
    }
    return true;
}

/* ---- answers ---- */

/* Keeps the beginning of what a refusing server says, printable. */
static void tn_ctl_collect(tn_ctl *c, const uint8_t *at, size_t len)
{
    size_t i;
    for (i = 0; i < len && c->text_len < sizeof c->text - 1; i++) {
        uint8_t b = at[i];
        if (b == '\n' && c->text_len == 0) continue;
        c->text[c->text_len++] = b >= 32 && b < 127 ? (char)b : ' ';
    }
    c->text[c->text_len] = '\0';
}

/* One event of a RegisterResponse. */
static void tn_ctl_take_answer(tn_ctl *c, tn_js_event ev)
{
    tn_ctl_answer *a  = &c->answer;
    tn_js         *js = &c->asked_js;

    if ((ev == TN_JS_OBJECT || ev == TN_JS_ARRAY) && js->depth == 1) {
        tn_js_skip(js);
    } else if (ev == TN_JS_TRUE && tn_js_is_key(js, "NodeKeyExpired")) {
        a->expired = true;
    } else if (ev == TN_JS_STRING && js->text_len != 0) {
        if (tn_js_is_key(js, "NodeKeySignature")) a->signature = true;
        if (tn_js_is_key(js, "Error")) {
            a->error    = true;
            c->text_len = 0;
            tn_ctl_collect(c, (const uint8_t *)js->text, js->text_len);
        }
        if (tn_js_is_key(js, "AuthURL")) {
            a->same_url = tn_is(js->text, js->text_len, c->url);
            a->has_url  = !js->text_cut &&
                          tn_text_copy(c->url, sizeof c->url, js->text, js->text_len) &&
                          tn_h1_clean(c->url);  /* it will be shown on somebody's screen */
            a->too_long = !a->has_url;      /* half a page is none */
            c->url_len  = a->has_url ? (uint8_t)js->text_len : 0;
            if (a->too_long) c->url[0] = '\0';
        }
    }
}

/* We are in: the key that was asked for is ours from now on. */
static void tn_ctl_registered(tn_ctl *c, tn_ctl_world *x)
{
    if (x->keys->has_trying) {
        tn_key_state_took(x->keys);
        tn_copy_key(x->node_public, c->asker);   /* the next request names it already */
        c->news |= TN_CTL_NEWS_KEY;
    }
    tn_copy_key(x->keys->server, c->server_key);
    x->keys->has_server = true;
    if (c->url_len != 0) c->news |= TN_CTL_NEWS_LOGIN;
    tn_ctl_no_page(c);
    c->want_login = c->expired_once = c->refused = false;
    c->news |= TN_CTL_NEWS_SAVE | TN_CTL_NEWS_STATE;
    tn_ctl_well(c);
    tn_ctl_stream(c, x);
}

/* The server wants another node key: make one, and ask once more. */
static void tn_ctl_rotate(tn_ctl *c, tn_ctl_world *x)
{
    if (c->expired_once) {
        c->slow = true;
        tn_ctl_fail_status(c, x, 0);
        return;
    }
    c->expired_once = true;
    if (!tn_ctl_fresh_key(c, x)) return;
    tn_ctl_no_page(c);                      /* the page, if any, was for the other key */
    c->news |= TN_CTL_NEWS_LOGIN;
    tn_ctl_register(c, x);
}

/* A person has to open a page: show it, and wait on the same connection. */
static void tn_ctl_follow(tn_ctl *c, tn_ctl_world *x)
{
    if (c->answer.same_url) {               /* asked, and nobody has come: not at once again */
        tn_ctl_pause(c, x, TAILNET_ERR_AGAIN);
    } else {
        c->news |= TN_CTL_NEWS_LOGIN | TN_CTL_NEWS_STATE;
        tn_ctl_register(c, x);
    }
}

/* The whole answer to a registration is here. The order is the official
 * client's (control/controlclient/direct.go, doLogin). */
static void tn_ctl_judge_answer(tn_ctl *c, tn_ctl_world *x, unsigned status)
{
    const tn_ctl_answer *a = &c->answer;
    if (status == 429 || status >= 500) {
        tn_ctl_fail_status(c, x, status);
        if (status == 429)
            c->due[TN_CTL_STATE] = tn_ctl_in(x, a->retry_s != 0 ? a->retry_s * 1000u :
                                          (uint32_t)tn_rim_between(x->rim, 5000, 10000));
    } else if (status != 200) {
        tn_ctl_refuse(c, x, status == 400 ? TAILNET_ERR_UNSUPPORTED : TAILNET_ERR_CONTROL,
                      (int32_t)status);
    } else if (a->error) {
        tn_ctl_refuse(c, x, TAILNET_ERR_CONTROL, 200);
    } else if (!tn_js_done(&c->asked_js)) {
        tn_ctl_fail(c, x, TN_CTL_WHAT(CONTROL, TAILNET_ERR_MALFORMED), 0);
    } else if (a->signature || a->too_long) {
        tn_ctl_refuse(c, x, a->signature ? TAILNET_ERR_UNSUPPORTED : TAILNET_ERR_TOO_BIG, 200);
    } else if (a->expired && !(x->keys->has_trying && a->has_url)) {
        tn_ctl_rotate(c, x);
    } else if (a->has_url) {
        tn_ctl_follow(c, x);
    } else if (c->asked_js.at <= 5) {             /* "null": an ephemeral node was being removed */
        tn_ctl_fail_status(c, x, 0);
    } else {
        tn_ctl_registered(c, x);
    }
}

/* The node is signed out on the server: its key is worth nothing any more. */
static void tn_ctl_logged_out(tn_ctl *c, tn_ctl_world *x)
{
    x->keys->has_server = false;
    tn_key_state_drop(x->keys);
    if (tn_ctl_fresh_key(c, x)) tn_key_state_took(x->keys);
    c->want_logout = false;
    c->up          = false;
    c->news |= TN_CTL_NEWS_OUT | TN_CTL_NEWS_KEY;
}

/* A map request was refused. */
static void tn_ctl_map_refused(tn_ctl *c, tn_ctl_world *x, unsigned status)
{
    if (status == 400 && tn_begins(c->text, c->text_len, "unsupported")) {
        tn_ctl_refuse(c, x, TAILNET_ERR_UNSUPPORTED, 400);
    } else if (status >= 400 && status < 500 && status != 429) {
        c->want_login = true;               /* it does not know this node: register again */
        if (x->keys->has_server) c->news |= TN_CTL_NEWS_SAVE;
        x->keys->has_server = false;
        if (c->map_refused) {               /* it has just taken us in: no hurry */
            c->slow = true;
            tn_ctl_fail_status(c, x, status);
            return;
        }
        c->map_refused = true;
        if (c->line.map_stream != 0) tn_map_stream(x->map, x->flt);
        tn_ctl_drop(c, c->line.map_stream);
        tn_ctl_register(c, x);
    } else {
        tn_ctl_fail_status(c, x, status);
    }
}

/* A request came to its end. */
static void tn_ctl_finish(tn_ctl *c, tn_ctl_world *x, tn_ctl_asked *q)
{
    tn_ctl_kind kind   = (tn_ctl_kind)q->kind;
    unsigned    status = q->status;
    uint32_t    stream = q->stream;

    memset(q, 0, sizeof *q);
    if (c->line.rq.stream == stream) {           /* answered before it had read our request */
        tn_h2_cancel(&c->u.h2, stream, TN_H2_NO_ERROR);
        c->line.rq.stream = 0;
    }
    switch (kind) {
    case TN_CTL_ASK_REGISTER:
        tn_ctl_judge_answer(c, x, status);
        break;
    case TN_CTL_ASK_LOGOUT:
        if (status == 429 || status >= 500)
            tn_ctl_fail_status(c, x, status);
        else
            tn_ctl_logged_out(c, x);
        break;
    case TN_CTL_ASK_STREAM:
        if (stream == c->line.next_stream) c->line.next_stream = 0;
        if (status != 200) {
            tn_ctl_map_refused(c, x, status);
        } else if (stream == c->line.map_stream) {
            c->line.map_stream = 0;              /* the next one may be on its way */
            if (c->line.next_stream == 0)
                tn_ctl_fail(c, x, TN_CTL_WHAT(CONTROL, TAILNET_ERR_NETWORK), 0);
        }
        break;
    case TN_CTL_ASK_LITE:
        c->due[TN_CTL_UPDATE] = tn_ctl_in(x, TN_CTL_REFRESH_MS);
        if (status == 200) c->news |= TN_CTL_NEWS_TOLD;
        else               tn_ctl_map_refused(c, x, status);
        break;
    case TN_CTL_ASK_ANSWER:
    case TN_CTL_NOTHING:
        break;
    }
}

/* ---- the map stream ---- */

/* What to do after some bytes. */
typedef enum tn_ctl_turn { TN_CTL_QUIET, TN_CTL_MORE, TN_CTL_CHANGE, TN_CTL_PING } tn_ctl_turn;

/* A whole message was applied. */
static void tn_ctl_message_done(tn_ctl *c, tn_ctl_world *x)
{
    c->line.message_open = false;
    if (!x->map->keep_alive) c->maps_read++;
    if (c->state == TN_CTL_STREAM || c->state == TN_CTL_RUN)
        c->due[TN_CTL_STATE] = tn_ctl_in(x, TN_CTL_WATCHDOG_MS);
    if (x->map->control_time_ms != 0) tn_rim_learn_time(x->rim, x->map->control_time_ms);
    if (c->state == TN_CTL_STREAM && !x->map->first) {
        tn_ctl_enter(c, TN_CTL_RUN, c->due[TN_CTL_STATE]);
        tn_ctl_well(c);
        c->map_refused = false;
    }
    c->news |= TN_CTL_NEWS_STATE;
}

/* Feeds the piece at hand to the message under way. Returns early, with the
 * rest kept, when the node has to look at a change or a ping first. */
static tn_ctl_turn tn_ctl_message(tn_ctl *c, tn_ctl_world *x)
{
    tn_js_event ev;
    c->line.fed = true;                          /* until it has asked for more */
    while ((ev = tn_js_next(&c->js)) > TN_JS_MORE) {
        tn_map_result r = tn_map_take(x->map, x->flt, &c->js, ev, x->rim->now_ms);
        if (r == TN_MAP_CHANGE) return TN_CTL_CHANGE;
        if (r == TN_MAP_PING) return TN_CTL_PING;
        if (r == TN_MAP_BROWSE) c->news |= TN_CTL_NEWS_LOGIN;
        if (r == TN_MAP_ERROR) {
            ev = TN_JS_ERROR;
            break;
        }
    }
    c->line.fed = false;
    if (ev == TN_JS_MORE && c->line.message_left == 0 && tn_js_done(&c->js))
        tn_ctl_message_done(c, x);
    else if (ev == TN_JS_ERROR || c->line.message_left == 0)
        tn_ctl_fail(c, x, TN_CTL_WHAT(MAP, TAILNET_ERR_MALFORMED), (int32_t)c->js.at);
    return TN_CTL_MORE;
}

/* Cuts the body into [LE32 length][JSON] messages, at any split. */
static tn_ctl_turn tn_ctl_take_map(tn_ctl *c, tn_ctl_world *x)
{
    tn_rd         *in = &c->line.piece;
    size_t         n;
    const uint8_t *at;

    if (c->line.fed) return tn_ctl_message(c, x);
    if (c->line.message_open) {
        n  = in->left < c->line.message_left ? in->left : c->line.message_left;
        at = tn_rd_bytes(in, n);
        c->line.message_left -= (uint32_t)n;
        tn_js_feed(&c->js, at, n);
        return tn_ctl_message(c, x);
    }
    while (in->left != 0 && c->line.prefix_len < 4)
        c->line.prefix[c->line.prefix_len++] = tn_rd_u8(in);
    if (c->line.prefix_len == 4) {
        tn_rd head;
        tn_rd_over(&head, c->line.prefix, 4);
        c->line.message_left = tn_rd_u32le(&head);
        c->line.prefix_len   = 0;
        c->line.message_open = true;
        tn_js_init(&c->js);
        if (c->line.message_left == 0 || c->line.message_left > TN_CTL_MESSAGE_MAX)
            tn_ctl_fail(c, x, TN_CTL_WHAT(MAP, TAILNET_ERR_MALFORMED), 0);
    }
    return TN_CTL_MORE;
}

/* Feeds the piece at hand to whatever asked for it. */
static tn_ctl_turn tn_ctl_take_piece(tn_ctl *c, tn_ctl_world *x)
{
    tn_ctl_asked *q    = tn_ctl_asked_on(c, c->line.piece_stream);
    tn_ctl_turn   turn = TN_CTL_MORE;
    tn_js_event   ev;
    size_t        n = c->line.piece.left;

    if (q != NULL && q->kind == TN_CTL_ASK_STREAM && q->status == 200) {
        if (c->line.piece_stream != c->line.map_stream) tn_rd_bytes(&c->line.piece, n);
        else if (n != 0 || c->line.fed) return tn_ctl_take_map(c, x);
    } else if (q != NULL && q->kind == TN_CTL_ASK_REGISTER && q->status == 200) {
        tn_js_feed(&c->asked_js, tn_rd_bytes(&c->line.piece, n), n);
        while ((ev = tn_js_next(&c->asked_js)) > TN_JS_MORE) tn_ctl_take_answer(c, ev);
    } else if (q != NULL && q->status != 200) {
        tn_ctl_collect(c, tn_rd_bytes(&c->line.piece, n), n);
    } else {
        (void)tn_rd_bytes(&c->line.piece, n);
    }
    return turn;
}

/* The head of an answer. */
static void tn_ctl_response(tn_ctl *c, tn_ctl_world *x, const tn_h2_event *ev)
{
    tn_ctl_asked *q = tn_ctl_asked_on(c, ev->stream);
    if (q == NULL) return;
    q->status = ev->status;
    if (ev->status != 200) c->text_len = 0;
    if (q->kind == TN_CTL_ASK_REGISTER) {
        tn_js_init(&c->asked_js);
        c->answer.retry_s = ev->retry_after_s > 3600 ? (uint16_t)0 : (uint16_t)ev->retry_after_s;
    }
    if (q->kind == TN_CTL_ASK_STREAM && ev->status == 200) {
        tn_ctl_drop(c, c->line.map_stream);
        c->line.map_stream   = ev->stream;
        c->line.next_stream  = 0;
        c->line.prefix_len   = 0;
        c->line.message_open = c->line.fed = false;
        tn_map_stream(x->map, x->flt);
    }
    if (ev->end) tn_ctl_finish(c, x, q);
}

static void tn_ctl_reset(tn_ctl *c, tn_ctl_world *x, const tn_h2_event *ev)
{
    tn_ctl_asked *q = tn_ctl_asked_on(c, ev->stream);
    if (c->line.rq.stream == ev->stream) c->line.rq.stream = 0;
    if (q == NULL) return;
    if (q->kind == TN_CTL_ASK_LITE || q->kind == TN_CTL_ASK_ANSWER) {
        if (q->kind == TN_CTL_ASK_LITE)
            c->due[TN_CTL_UPDATE] = tn_ctl_in(x, TN_CTL_LITE_MS);
        memset(q, 0, sizeof *q);
    } else if (ev->stream == c->line.map_stream && c->line.next_stream != 0) {
        tn_ctl_drop(c, ev->stream);         /* the next one takes over */
    } else {
        tn_ctl_fail(c, x, TN_CTL_WHAT(HTTP, TAILNET_ERR_NETWORK), (int32_t)ev->code);
    }
}

/* One HTTP/2 event. */
static TN_NOINLINE void tn_ctl_event(tn_ctl *c, tn_ctl_world *x, tn_h2_kind kind,
                                     const tn_h2_event *ev)
{
    if (kind == TN_H2_RESPONSE) {
        tn_ctl_response(c, x, ev);
    } else if (kind == TN_H2_BODY) {
        tn_rd_over(&c->line.piece, ev->len == 0 ? NULL : ev->at, ev->len);
        c->line.piece_stream = ev->stream;
        c->line.piece_end    = ev->end;
    } else if (kind == TN_H2_RESET) {
        tn_ctl_reset(c, x, ev);
    } else if (kind == TN_H2_PING_ACK) {
        c->line.pinged      = false;
        c->due[TN_CTL_SIGN] =
            c->state == TN_CTL_FOLLOWUP ? tn_ctl_in(x, TN_CTL_PING_MS) : 0;
    } else if (kind != TN_H2_MORE) {        /* TN_H2_GOAWAY, TN_H2_FAILED */
        tn_ctl_fail(c, x, kind == TN_H2_FAILED ? TN_CTL_WHAT(HTTP, TAILNET_ERR_MALFORMED)
                                               : TN_CTL_WHAT(HTTP, TAILNET_ERR_NETWORK),
                    (int32_t)ev->code);
    }
}

/* One step of reading: a piece, an event, or a record. */
static TN_NOINLINE tn_ctl_turn tn_ctl_read(tn_ctl *c, tn_ctl_world *x)
{
    tn_h2_event   ev;
    tn_ctl_asked *q;
    tn_ctl_turn   turn;

    memset(&ev, 0, sizeof ev);
    if (c->line.piece_stream != 0) {
        turn = tn_ctl_take_piece(c, x);
        if (turn != TN_CTL_MORE || c->line.piece_stream == 0) return turn;
        if (c->line.piece.left != 0 || c->line.fed) return TN_CTL_MORE;
        q               = c->line.piece_end ? tn_ctl_asked_on(c, c->line.piece_stream) : NULL;
        c->line.piece_stream = 0;
        if (q != NULL) tn_ctl_finish(c, x, q);
        return TN_CTL_MORE;
    }
    if (c->line.plain.left == 0) {
        if (!tn_ctl_next_record(c, x)) return c->line.link != 0 ? TN_CTL_QUIET : TN_CTL_MORE;
        if (c->line.plain.left == 0 || !tn_ctl_early(c, x, &ev)) return TN_CTL_MORE;
    }
    tn_ctl_event(c, x, tn_h2_next(&c->u.h2, &c->line.plain, &ev), &ev);
    return TN_CTL_MORE;
}

/* ---- requests out ---- */

static void tn_ctl_body(const tn_ctl *c, const tn_ctl_world *x, tn_ctl_kind kind, tn_wr *w)
{
    switch (kind) {
    case TN_CTL_ASK_REGISTER: tn_ctl_body_register(c, x, w, false); break;
    case TN_CTL_ASK_LOGOUT:   tn_ctl_body_register(c, x, w, true); break;
    case TN_CTL_ASK_STREAM:   tn_ctl_body_map(c, x, w, true); break;
    case TN_CTL_ASK_LITE:     tn_ctl_body_map(c, x, w, false); break;
    case TN_CTL_ASK_ANSWER:   tn_ctl_body_answer(&x->map->work.item, w); break;
    case TN_CTL_NOTHING:      break;
    }
}

/* What to ask next, if anything. */
static tn_ctl_kind tn_ctl_next_kind(tn_ctl *c, const tn_ctl_world *x)
{
    bool asks = c->state == TN_CTL_REGISTER || c->state == TN_CTL_FOLLOWUP;
    bool maps = c->state == TN_CTL_STREAM || c->state == TN_CTL_RUN;
    if (c->want_logout && tn_ctl_asking(c, TN_CTL_ASK_LOGOUT) == NULL) return TN_CTL_ASK_LOGOUT;
    if (c->want_logout || !c->up) return TN_CTL_NOTHING;   /* signed out: say no more */
    if (asks && tn_ctl_asking(c, TN_CTL_ASK_REGISTER) == NULL) return TN_CTL_ASK_REGISTER;
    if (c->state == TN_CTL_STREAM && c->line.map_stream == 0 && c->line.next_stream == 0)
        return TN_CTL_ASK_STREAM;
    if (maps && c->want_reread && c->line.next_stream == 0) return TN_CTL_ASK_STREAM;
    if (c->state == TN_CTL_RUN && tn_ctl_asking(c, TN_CTL_ASK_LITE) == NULL &&
        (c->lite_dirty || memcmp(&c->sent, &x->wish, offsetof(tn_ctl_wish, latency)) != 0))
        return TN_CTL_ASK_LITE;
    return TN_CTL_NOTHING;
}

/* "/path" of a request; the one of a ping answer is the server's own. */
static const char *tn_ctl_path(const tn_ctl_world *x, tn_ctl_kind kind)
{
    tn_ctl_target t;
    if (kind == TN_CTL_ASK_REGISTER || kind == TN_CTL_ASK_LOGOUT) return "/machine/register";
    if (kind != TN_CTL_ASK_ANSWER) return "/machine/map";
    if (!tn_ctl_url_parse(&t, x->map->work.item.text, x->map->work.item.text_len)) return "";
    return t.path;
}

/* Opens the stream of a request. The body follows piece by piece. */
static bool tn_ctl_open(tn_ctl *c, tn_ctl_world *x, tn_ctl_kind kind, tn_wr *w)
{
    tn_h2_request rq;
    tn_ctl_asked *q = tn_ctl_asked_on(c, 0);
    tn_wr         count;
    bool          head = kind == TN_CTL_ASK_ANSWER && tn_ctl_ping_is_head(&x->map->work.item);

    if (q == NULL || !tn_h2_can_open(&c->u.h2)) return false;
    if (kind != TN_CTL_ASK_ANSWER) memcpy(&c->sent, &x->wish, sizeof c->sent);   /* padding too */
    tn_wr_over(&count, NULL, 0);
    if (!head) tn_ctl_body(c, x, kind, &count);
    rq.method    = head ? "HEAD" : "POST";
    rq.path      = tn_ctl_path(x, kind);
    rq.authority = c->host;
    rq.length    = head ? TN_H2_NO_LENGTH : (uint32_t)count.total;
    rq.end       = head;
    q->stream    = tn_h2_open(&c->u.h2, w, &rq);
    if (q->stream == 0) {                   /* no room now; the wish counts as not sent */
        if (kind != TN_CTL_ASK_ANSWER) c->lite_dirty = true;
        return false;
    }
    q->kind      = (uint8_t)kind;
    q->status    = 0;
    c->line.rq.stream = head ? 0 : q->stream;
    c->line.rq.kind   = (uint8_t)kind;
    c->line.rq.total  = (uint32_t)count.total;
    c->line.rq.done   = 0;
    if (kind == TN_CTL_ASK_STREAM) {
        c->line.next_stream = q->stream;
        c->want_reread = false;
    }
    if (kind == TN_CTL_ASK_LITE) {
        c->lite_dirty       = false;
        c->due[TN_CTL_UPDATE] = tn_ctl_in(x, TN_CTL_LITE_MS);
    }
    return true;
}

/* One DATA frame of the request under way. */
static bool tn_ctl_write_body(tn_ctl *c, tn_ctl_world *x, tn_wr *w)
{
    tn_ctl_outgoing *rq = &c->line.rq;
    size_t           n = tn_h2_data_room(&c->u.h2, rq->stream, w), left = rq->total - rq->done;
    tn_wr            body;
    if (n == 0 && left != 0) return false;
    if (n > left) n = left;
    if (!tn_h2_data_head(&c->u.h2, w, rq->stream, n, n == left)) return false;
    tn_wr_window(&body, w->base + tn_wr_len(w), n, rq->done);
    tn_ctl_body(c, x, (tn_ctl_kind)rq->kind, &body);
    TAILNET_ASSERT(body.total == rq->total);
    w->total += n;
    rq->done += (uint32_t)n;
    if (rq->done == rq->total) rq->stream = 0;
    return true;
}

/* Where the text of the next record is built. */
static void tn_ctl_text(tn_ctl *c, tn_wr *w) { tn_wr_over(w, c->out + 3, sizeof c->out - 19); }

/* Makes a record of it; tn_ctl_push sends that. */
static void tn_ctl_seal(tn_ctl *c, const tn_wr *w)
{
    c->line.out_len = (uint16_t)tn_nz_seal(&c->nz, c->out, tn_wr_len(w));
    c->line.out_at  = 0;
}

/* Builds, seals and sends what is due. Stops when the link takes no more. */
static void tn_ctl_write(tn_ctl *c, tn_ctl_world *x)
{
    for (;;) {                              /* ends when nothing is due, or no room */
        tn_ctl_kind kind;
        tn_wr       w;
        if (!tn_ctl_push(c, x)) return;
        tn_ctl_text(c, &w);
        (void)tn_h2_flush(&c->u.h2, &w);
        if (c->line.rq.stream != 0) {
            (void)tn_ctl_write_body(c, x, &w);
        } else if ((kind = tn_ctl_next_kind(c, x)) != TN_CTL_NOTHING) {
            if (tn_ctl_open(c, x, kind, &w) && c->line.rq.stream != 0)
                (void)tn_ctl_write_body(c, x, &w);
        }
        if (tn_wr_len(&w) == 0) return;
        tn_ctl_seal(c, &w);
    }
}

/* ---- pings of the server ---- */

/* HEAD of an outside URL, on a connection of its own; only to the control
 * server's own host, so that a server cannot make us knock at other doors.
 * False: all connections are in use; the room above makes place. */
static bool tn_ctl_begin_aux(tn_ctl *c, tn_ctl_world *x)
{
    const char   *url = x->map->work.item.text;
    tn_ctl_target t;

    if (!tn_ctl_url_parse(&t, url, x->map->work.item.text_len)) return true;
    if (!tn_is(t.host, t.host_len, c->host) || t.path_len == 0) return true;
    if (t.path_len >= sizeof c->text || c->state != TN_CTL_RUN) return true;
    if (c->due[TN_CTL_VISIT] == 0) c->due[TN_CTL_VISIT] = tn_ctl_in(x, TN_CTL_AUX_MS);
    if (!tn_ctl_dial_host(c, x, t.port, t.tls, TN_LINK_FOR_KEY, &c->aux)) {
        if (c->crowded) return false;
        tn_ctl_end_aux(c, x);
        return true;
    }
    c->port     = t.port;                   /* until the next dial of our own */
    c->over_tls = t.tls;
    tn_text_copy(c->text, sizeof c->text, t.path, t.path_len);
    c->aux_sent = false;
    return true;
}

/* The aux link is open: the request; whatever the answer is, it is not read. */
static void tn_ctl_send_aux(tn_ctl *c, tn_ctl_world *x)
{
    uint8_t    text[TN_CTL_TEXT_MAX + TN_CTL_HOST_MAX + 64];
    tn_h1_host host;
    tn_wr      w;
    tn_ctl_h1_host(c, &host);
    tn_wr_over(&w, text, sizeof text);
    if (tn_h1_build_bare(&w, "HEAD", &host, c->text) && tn_wr_ok(&w))
        (void)tn_link_write(x->links, c->aux, text, tn_wr_len(&w));
    c->text[sizeof c->text - 1] = '\0';     /* the answer falls there, but not on this */
    tn_link_lend(x->links, c->aux, (uint8_t *)c->text, sizeof c->text - 1, NULL, 0);
    c->aux_sent = true;
}

/* A ping request has arrived whole. Returns false while its answer waits for room. */
static TN_NOINLINE bool tn_ctl_answer_ping(tn_ctl *c, tn_ctl_world *x)
{
    const tn_map_item *p = &x->map->work.item;
    tn_wr              w;

    if (tn_ctl_ping_is_c2n(p) || (tn_ctl_ping_is_head(p) && p->noise)) {
        if (c->line.out_at < c->line.out_len || c->line.rq.stream != 0) return false;
        tn_ctl_text(c, &w);
        if (tn_ctl_path(x, TN_CTL_ASK_ANSWER)[0] != '/') return true;
        if (!tn_ctl_open(c, x, TN_CTL_ASK_ANSWER, &w)) return false;
        while (c->line.rq.stream != 0 && tn_ctl_write_body(c, x, &w)) {}
        tn_ctl_seal(c, &w);
        tn_ctl_drop(c, c->line.rq.stream);       /* no window for a short answer: let it go */
    } else if (tn_ctl_ping_is_head(p)) {
        return c->aux == 0 && tn_ctl_begin_aux(c, x);   /* one visit at a time */
    }
    return true;
}

/* ---- what the node calls ---- */

/* All-zero memory plus the key that the caller pinned or the last run learned. */
static bool tn_ctl_init(tn_ctl *c, const tailnet_desc *d, const tn_key_state *keys)
{
    memset(c, 0, sizeof *c);
    if (keys->has_server) {
        tn_copy_key(c->server_key, keys->server);
        c->key_known = true;
    }
    if (d->control_key != NULL) {
        c->key_known = tn_key_parse(c->server_key, TN_KEY_MACHINE, d->control_key,
                                    strlen(d->control_key)) &&
                       !tn_is_zero(c->server_key, 32);
        return c->key_known;
    }
    return true;
}

/* Want to be connected, or not. Not: the connection ends at once. */
static void tn_ctl_set_up(tn_ctl *c, tn_ctl_world *x, bool up)
{
    c->up      = up;
    c->refused = false;                     /* both lead on from FAILED           */
    if (up && c->state == TN_CTL_PAUSE) c->due[TN_CTL_STATE] = tn_ctl_in(x, 0);
    if (up && c->state == TN_CTL_IDLE) {
        tn_ctl_well(c);
        tn_ctl_enter(c, TN_CTL_PAUSE, tn_ctl_in(x, 0));
    }
    if (!up) c->want_logout = false;        /* whoever waits no longer            */
    if (up || c->state == TN_CTL_IDLE) return;
    tn_ctl_end_aux(c, x);
    tn_ctl_disconnect(c, x, TAILNET_OK);
    tn_ctl_no_page(c);
    tn_ctl_enter(c, TN_CTL_IDLE, 0);
}

/* Log in with a new node key, on the present connection if it stands. */
static void tn_ctl_login(tn_ctl *c, tn_ctl_world *x)
{
    if (!tn_ctl_fresh_key(c, x)) return;
    c->want_login = true;
    c->refused = c->expired_once = false;
    tn_ctl_no_page(c);
    if (c->state == TN_CTL_RUN || c->state == TN_CTL_STREAM) tn_ctl_register(c, x);
    else if (c->state != TN_CTL_IDLE && c->state != TN_CTL_PAUSE) tn_ctl_pause(c, x, TAILNET_OK);
    if (c->state == TN_CTL_PAUSE) c->due[TN_CTL_STATE] = tn_ctl_in(x, 0);
}

/* Sign out on the server; the connection is made if there is none. */
static void tn_ctl_logout(tn_ctl *c, uint64_t now_ms)
{
    c->want_logout = true;
    if (c->state == TN_CTL_IDLE) tn_ctl_enter(c, TN_CTL_PAUSE, 0);
    if (c->state == TN_CTL_PAUSE) c->due[TN_CTL_STATE] = (uint32_t)now_ms | 1u;
}

/* Our link ended by itself: says why, and where. */
static void tn_ctl_link_gone(tn_ctl *c, tn_ctl_world *x, const tn_link_news *n)
{
    tailnet_result why    = n->why == TAILNET_OK ? TAILNET_ERR_NETWORK : n->why;
    unsigned       what   = c->state == TN_CTL_KEY ? TN_CTL_WHAT(KEY, why) : TN_CTL_WHAT(LINK, why);
    int32_t        detail = n->detail;

    if (why == TAILNET_ERR_TLS) {
        what = TN_CTL_WHAT(TLS, why);
        if (TAILNET_CONTROL_RECORD < 16384 && detail == TN_TLS_ERR_LARGE) {
            what    = TN_CTL_WHAT(TLS, TAILNET_ERR_TOO_BIG);
            detail  = TAILNET_CONTROL_RECORD;
            c->slow = true;                 /* it will send such a record again */
        }
    } else if (why == TAILNET_ERR_NETWORK && detail != 0) {
        what = TN_CTL_WHAT(PROXY, TAILNET_ERR_DENIED);  /* only a proxy's answer has a number */
    }
    tn_ctl_fail(c, x, what, detail);
}

/* News of one of our links. */
static TN_NOINLINE void tn_ctl_link_news(tn_ctl *c, tn_ctl_world *x, const tn_link_news *n)
{
    if (n->link == c->aux && c->aux != 0) {
        if ((n->bits & TN_LINK_OPENED) != 0 && !c->aux_sent) tn_ctl_send_aux(c, x);
        if ((n->bits & (TN_LINK_GONE | TN_LINK_READABLE)) != 0) tn_ctl_end_aux(c, x);
        return;
    }
    if (n->link != c->line.link || c->line.link == 0) return;
    if ((n->bits & TN_LINK_OPENED) != 0) {
        if (c->state == TN_CTL_KEY) tn_ctl_ask_key(c, x);
        else if (c->state == TN_CTL_DIAL) tn_ctl_ask_upgrade(c, x);
    }
    if ((n->bits & TN_LINK_GONE) == 0 || c->line.link != n->link) return;
    if (c->state == TN_CTL_KEY) tn_ctl_read_key(c, x);          /* its last words count */
    if (c->state == TN_CTL_UPGRADE) tn_ctl_read_upgrade(c, x);
    if (c->line.link != n->link) return;
    if (c->state == TN_CTL_UPGRADE && c->line.proven && n->why != TAILNET_ERR_TLS)
        tn_ctl_upgrade_failed(c, x, TAILNET_ERR_FORGED, 0);   /* it cannot read what we sent:
                                                               * another key, or too old    */
    else
        tn_ctl_link_gone(c, x, n);
}

/* What is late. */
static TN_NOINLINE void tn_ctl_late(tn_ctl *c, tn_ctl_world *x)
{
    c->now_ms = x->rim->now_ms;
    if (tn_ctl_is_due(c, TN_CTL_VISIT)) {
        if (c->aux == 0) c->line.ping_waits = false;    /* nobody made place */
        tn_ctl_end_aux(c, x);
    }
    if (tn_ctl_is_due(c, TN_CTL_SIGN)) {
        if (c->line.pinged) {
            tn_ctl_fail(c, x, TN_CTL_WHAT(CONTROL, TAILNET_ERR_TIMEOUT), 0);
        } else {
            tn_h2_ping(&c->u.h2);
            c->line.pinged      = true;
            c->due[TN_CTL_SIGN] = tn_ctl_in(x, TN_CTL_PONG_MS);
        }
    }
    if (tn_ctl_is_due(c, TN_CTL_UPDATE)) {
        tn_ctl_asked *q = tn_ctl_asking(c, TN_CTL_ASK_LITE);
        if (q != NULL) tn_ctl_fail(c, x, TN_CTL_WHAT(CONTROL, TAILNET_ERR_TIMEOUT), 0);
        c->lite_dirty       = true;
        c->due[TN_CTL_UPDATE] = 0;
    }
    if (!tn_ctl_is_due(c, TN_CTL_STATE)) return;
    if (c->state == TN_CTL_PAUSE) {
        if (c->up || c->want_logout) tn_ctl_begin(c, x);
        else                         tn_ctl_enter(c, TN_CTL_IDLE, 0);
    } else if (c->state == TN_CTL_UPGRADE && c->line.proven) {
        tn_ctl_upgrade_failed(c, x, TAILNET_ERR_FORGED, 0);   /* it said yes and knew no more */
    } else if (c->state != TN_CTL_IDLE) {
        tn_ctl_fail(c, x, c->state == TN_CTL_KEY ? TN_CTL_WHAT(KEY, TAILNET_ERR_TIMEOUT)
                                               : TN_CTL_WHAT(CONTROL, TAILNET_ERR_TIMEOUT), 0);
    }
}

static bool tn_ctl_is_noise(const tn_ctl *c)
{
    return c->line.link != 0 && c->nz.state == TN_NZ_OPEN;
}

/* Does one bounded piece of work. QUIET: nothing to do until news or the
 * deadline. MORE: call again, in this poll or the next. CHANGE: fetch the
 * map's changes first, then call again. */
static tn_ctl_turn tn_ctl_step(tn_ctl *c, tn_ctl_world *x)
{
    tn_ctl_turn turn = TN_CTL_QUIET;

    tn_ctl_late(c, x);
    if (c->line.link != 0) (void)tn_ctl_push(c, x);
    if (c->state == TN_CTL_KEY && c->line.link != 0) tn_ctl_read_key(c, x);
    if (c->state == TN_CTL_UPGRADE && c->line.link != 0) tn_ctl_read_upgrade(c, x);
    if (tn_ctl_is_noise(c) && !c->line.ping_waits) turn = tn_ctl_read(c, x);
    if (turn == TN_CTL_PING) {
        c->line.ping_waits = true;
        turn = TN_CTL_MORE;
    }
    if (c->line.ping_waits && tn_ctl_is_noise(c)) c->line.ping_waits = !tn_ctl_answer_ping(c, x);
    if (tn_ctl_is_noise(c)) tn_ctl_write(c, x);
    return turn;
}

/* When step has to be called at the latest. */
static uint64_t tn_ctl_deadline(const tn_ctl *c)
{
    uint32_t least = UINT32_MAX;
    unsigned i;
    for (i = 0; i < TN_CTL_CLOCKS; i++) {
        uint32_t in = c->due[i] - (uint32_t)c->now_ms;
        if (c->due[i] == 0) continue;
        if (in >> 31 != 0) return 0;
        if (in < least) least = in;
    }
    return least == UINT32_MAX ? TN_NEVER : c->now_ms + least;
}

/* News since the last call. */
static uint32_t tn_ctl_fetch_news(tn_ctl *c)
{
    uint32_t news = c->news;
    c->news       = 0;
    return news;
}

/* Another network: the connection of the old one is dead weight. */
static void tn_ctl_network_changed(tn_ctl *c, tn_ctl_world *x)
{
    c->plain_failed = false;
    if (c->state == TN_CTL_IDLE || c->refused) return;
    c->failures = 0;
    if (c->state != TN_CTL_PAUSE) tn_ctl_pause(c, x, TAILNET_ERR_NETWORK);
    c->failures    = 0;
    c->due[TN_CTL_STATE] = tn_ctl_in(x, 0);
}

/* No network: not a word until there is one again. Called in every poll till then. */
static void tn_ctl_silence(tn_ctl *c, tn_ctl_world *x)
{
    if (c->state == TN_CTL_IDLE || c->refused) return;
    if (c->state != TN_CTL_PAUSE) tn_ctl_pause(c, x, TAILNET_ERR_NETWORK);
    c->due[TN_CTL_STATE] = tn_ctl_in(x, TN_CTL_SLOW_MS);
}

/* The server should hear of us again: preferences changed. A request that is
 * being written was built from the old ones and is taken back. */
static void tn_ctl_touch(tn_ctl *c)
{
    c->lite_dirty = true;
    tn_ctl_drop(c, c->line.rq.stream);
}

/* Could the map be read once more now, but for the spacing? */
static bool tn_ctl_may_reread(const tn_ctl *c)
{
    return c->state == TN_CTL_RUN && !c->want_reread && c->line.next_stream == 0;
}

/* The map should be read once more, for peers that had no room. Not more often
 * than the spacing says; wishes from outside make it grow. */
static void tn_ctl_reread(tn_ctl *c, bool own, uint64_t now_ms)
{
    if (!tn_ctl_may_reread(c)) return;
    if (now_ms < c->reread_at_ms && !(own && !c->reread_own)) return;
    c->reread_own = own;
    if (own)                              c->reread_ms = TN_CTL_REREAD_MS;
    else if (c->reread_ms < 600000u / 2u) c->reread_ms = c->reread_ms * 2u + TN_CTL_REREAD_MS;
    c->reread_at_ms = now_ms + c->reread_ms;
    c->want_reread  = true;
}

/* The control connection stands and the map on it is whole. */
static bool tn_ctl_is_up(const tn_ctl *c) { return c->state == TN_CTL_RUN; }

static TN_MAYBE_UNUSED void tn_ctl_wipe(tn_ctl *c) { tn_wipe(c, sizeof *c); }

/* ======================================================================== *
 * >>node — the struct that holds all, and the only room that knows more than
 * one protocol: sessions, staged packets, the agenda of public-key work, runs
 * of packets, dispatch, events.
 *
 * Owns:    everything below, in the caller's memory.
 * Calls:   every room below.
 * States:  those of tailnet_state; computed from control and map, never set.
 * Always:  indexes of peers move only in poll. A session belongs to one peer
 *          of the map, and is wiped in the poll in which that peer goes. At
 *          most one piece of public-key work per poll. No plaintext leaves
 *          but through a session; none enters without the source check and
 *          the filter.
 * Trust:   what a datagram claims counts only after its tag was checked.
 * ======================================================================== */

enum {
    TN_NODE_AGENDA      = 4,
    TN_NODE_AGENDA_DISCO = 2,               /* of these, at most for disco        */
    TN_NODE_STEPS       = 48,               /* of control in one poll             */
    TN_NODE_DISCO_KEYS  = 2,                /* of peers without a session         */
    TN_NODE_CALL_MOST   = 224,              /* bytes of our longest disco message */
    TN_NODE_ANSWERS     = 10,               /* to one peer in a second            */
    TN_NODE_HELD_MS     = 90000             /* a packet waits for its peer        */
};
#define TN_NODE_NO_SLOT 0xffffu
#define TN_NODE_PLACES (TN_ON_HOST && TAILNET_DIRECT ? TAILNET_MAX_CANDIDATES : 0)
#define TN_NODE_PING_MS 5000ul
#define TN_NODE_GRACE_MS 250u               /* for a direct answer behind one by relay */
#define TN_NODE_BEGUN_MS 15000u             /* a handshake may take so long       */
#define TN_NODE_ACTIVE_MS 45000ul           /* sessionActiveTimeout of magicsock  */
#define TN_NODE_CLOCK_MS 60000ul            /* without a clock: look again         */
/* 2023-01-10: an earlier time is a clock that was never set (ipnlocal/expiry.go). */
#define TN_NODE_SANE_UNIX_MS UINT64_C(1673373066000)

/* Where a datagram came from: a relay slot and the sender's key, or an address. */
typedef struct tn_origin {
    bool         relay;
    uint8_t      slot;
    uint8_t      key[32];                   /* node key, as the relay vouches     */
    tailnet_addr addr;
} tn_origin;

/* The key shared with a peer's disco key; computing one is public-key work. */
typedef struct tn_disco_key {
    uint8_t  shared[32];
    uint16_t peer;                          /* index in the map                   */
    bool     known;
} tn_disco_key;

/* A live WireGuard exchange with one peer, and the way to it. */
typedef struct tn_session {
    tn_wg        wg;
    tn_path      path;
    uint64_t     used_ms;                   /* 0: the slot is free                */
    uint32_t     answer_s;
    uint32_t     relay_ms;                  /* of the last ping by relay, 0: none */
    uint16_t     peer;                      /* index in the map                   */
    uint8_t      answers;                   /* of ours in answer_s, to its doings */
    uint8_t      call_due;                  /* a call-me-maybe: 1 wanted, 2 waits for STUN */
    tn_disco_key disco;
} tn_session;

/* A packet that waits for a handshake, or for its peer to be found. */
typedef struct tn_staged {
    uint64_t until_ms;
    uint16_t peer;                          /* TN_MAP_NONE: not known yet         */
    uint16_t len;                           /* 0: free                            */
} tn_staged;

/* Messages that wait for poll to do their public-key work: handshakes, and
 * disco of a peer whose shared key is not at hand (a ping is 124 bytes). */
typedef struct tn_agenda {
    tn_origin from;
    uint8_t   len;                          /* 0: free                            */
    uint8_t   msg[TN_WG_INITIATION_LEN];
} tn_agenda;

typedef struct tn_node_relay {
    tailnet_link link;
    uint8_t      check[8];                  /* of the region as it was dialled    */
    char         certificate[80];           /* "sha256-raw:" and 64 digits        */
    bool         dirty;                     /* its record should be flushed       */
} tn_node_relay;

/* A piece of the work list: which packet of the run, which session. */
typedef struct tn_piece {
    uint32_t at;
    uint16_t session;
} tn_piece;

/* A ping under way, and the answer to the last one. */
typedef struct tn_node_ping {
    tailnet_pong pong;                      /* the last; result AGAIN: none yet   */
    tailnet_addr ip;
    uint64_t     sent_ms, until_ms;         /* until 0: none under way            */
    uint32_t     took_ms;                   /* of an answer, 0: none yet          */
    uint16_t     peer;
    uint8_t      kind;
    bool         asked, direct;             /* direct: the answer came by UDP     */
    uint8_t      tx[12];
    tailnet_addr endpoint;
} tn_node_ping;

/* Small and much used first: short offsets make short code. */
struct tailnet_node {
    tailnet_state   state;
    bool            up, want_down, mapped, more, network_down;
    bool            expired_seen;           /* a login was begun for this expiry  */
    bool            key_lent;               /* auth_key is of tailnet_login       */
    bool            relay_again;            /* connect anew once all links are down */
    bool            worked;                 /* this poll had its public-key work  */
    uint8_t         lacks;                  /* a family without an address, 0: none */
    uint8_t         disco_turn;             /* round robin over disco keys        */
    uint8_t         agenda_turn;            /* and over the agenda                */
    bool            own_turn;               /* our handshakes before those that came */
    uint16_t        turn;                   /* and over sessions                  */
    uint16_t        relay_slots;
    uint32_t        events;
    uint32_t        staged_size;            /* bytes of one staged packet's place */
    tailnet_stats   stats;
    tn_session     *sessions;
    tn_node_relay  *relays;
    tn_staged      *staged;
    uint8_t        *staged_bytes, *map_memory, *net_memory;
    uint8_t        *scratch;                /* one packet with room around it     */
    uint8_t        *streams;                /* tls_by_caller: in and out of each relay */
    uint64_t       *seen;                   /* per peer: its greatest stamp       */
    tn_flt_range   *ranges;
    tn_flt_flow    *flows;
    uint64_t        expiry_at_ms;           /* when somebody's key expires        */
    uint64_t        disco_full_ms;          /* bucket of disco keys to compute    */
    uint64_t        server_unix_ms, server_at_ms;   /* its clock, and when it said so */
    tn_rim          rim;
    tn_links        links;
    tn_relay        relay;
    tn_net          net;
#if TAILNET_PORTMAP
    tn_pmp          pmp;
    bool            portmap_on;
    tailnet_addr    gateway, beside;        /* beside: our address next to it     */
#  if TAILNET_UPNP
    tailnet_link    upnp;                   /* 0: none                            */
    uint32_t        upnp_sent;
    char            upnp_host[16];
    uint8_t         upnp_in[512];
#  endif
#endif
    uint32_t        own_sum;                /* of our addresses                   */
    tailnet_problem problem;
    tn_node_ping    ping;
    tailnet_desc    desc;
    tn_key_state    keys;
    uint8_t         node_public[32];
    uint8_t         disco_private[32], disco_public[32];
    tn_wg_device    wg;
    tn_flt          flt;
    tn_disco_key    disco[TN_NODE_DISCO_KEYS];
    tailnet_crypt   work[TAILNET_BATCH];
    tn_piece        pieces[TAILNET_BATCH];
    tn_map          map;
    tn_ctl          ctl;
    tn_agenda       agenda[TN_NODE_AGENDA];
};

/* ---- memory ---- */

/* The parts of the caller's memory, in their order; the last two in tls_memory. */
enum {
    TN_PART_NODE, TN_PART_MAP, TN_PART_SESSIONS, TN_PART_SEEN, TN_PART_VIA, TN_PART_STAGED,
    TN_PART_BYTES, TN_PART_SCRATCH, TN_PART_RELAYS, TN_PART_LINKS, TN_PART_STORES, TN_PART_CHECK,
    TN_PART_NET, TN_PART_SLOTS, TN_PART_RANGES, TN_PART_FLOWS, TN_PART_ENGINES,
    TN_PART_ENGINE_IN, TN_PART_STREAMS, TN_PARTS
};

/* Where each begins, from the start of its memory. */
typedef struct tn_node_layout {
    size_t   at[TN_PARTS];
    size_t   used, tls_used;                /* of memory, of tls_memory           */
    uint32_t staged_size;
} tn_node_layout;

/* Zero means the default, everywhere. */
static void tn_node_defaults(tailnet_desc *d)
{
    if (d->max_peers == 0) d->max_peers = 16;
    if (d->max_sessions == 0) d->max_sessions = 4;
    if (d->max_routes == 0) d->max_routes = 16;
    if (d->max_ranges == 0) d->max_ranges = 32;
    if (d->max_flows == 0) d->max_flows = 32;
    if (d->max_regions == 0) d->max_regions = 8;
    if (d->max_staged == 0) d->max_staged = 2;
    if (d->max_links == 0) d->max_links = 2;
    if (d->max_tls == 0) d->max_tls = 1;
    if (d->tls_by_caller) d->max_tls = 0;
    if (d->mtu == 0) d->mtu = 1280;
    if (d->capability_version == 0) d->capability_version = TAILNET_CAPABILITY_VERSION;
}

static TN_NOINLINE void tn_node_map_limits(const tailnet_desc *d, tn_map_limits *out)
{
    memset(out, 0, sizeof *out);
    out->peers   = d->max_peers;
    out->routes  = d->max_routes;
    out->regions = d->max_regions;
    out->places  = TN_NODE_PLACES;
}

/* Computes where everything lies for these limits (defaults applied). */
static void tn_node_lay_out(const tailnet_desc *d, tn_node_layout *l)
{
    static const uint32_t unit[TN_PARTS] = {
        sizeof(tailnet_node), 1, sizeof(tn_session), sizeof(uint64_t), 1, sizeof(tn_staged),
        1, 1, sizeof(tn_node_relay), sizeof(tn_relay_link), sizeof(tn_relay_store),
        sizeof(tn_tls_check), 1, sizeof(tn_link), 2 * sizeof(tn_flt_range), sizeof(tn_flt_flow),
        sizeof(tn_tls), 1, 2 * TAILNET_TLS_OUT
    };
    tn_map_limits lim;
    size_t        count[TN_PARTS];
    unsigned      i, relays = d->max_links - 1u;

    memset(l, 0, sizeof *l);
    tn_node_map_limits(d, &lim);
    l->staged_size = (uint32_t)(d->mtu + TAILNET_HEADROOM + TAILNET_TAILROOM + 7u) & ~7u;
    count[TN_PART_NODE]      = 1;
    count[TN_PART_MAP]       = tn_map_memory(&lim);
    count[TN_PART_SESSIONS]  = count[TN_PART_VIA] = d->max_sessions;
    count[TN_PART_SEEN]      = d->max_peers;
    count[TN_PART_STAGED]    = d->max_staged;
    count[TN_PART_BYTES]     = (size_t)d->max_staged * l->staged_size;
    count[TN_PART_SCRATCH]   = l->staged_size;
    count[TN_PART_RELAYS]    = count[TN_PART_LINKS] = count[TN_PART_STORES] = relays;
    count[TN_PART_CHECK]     = d->max_tls != 0;
    count[TN_PART_NET]       = TAILNET_DIRECT ? tn_net_memory(d->max_regions) : 0;
    count[TN_PART_SLOTS]     = d->max_links;
    count[TN_PART_RANGES]    = d->max_ranges;
    count[TN_PART_FLOWS]     = d->max_flows;
    count[TN_PART_ENGINES]   = d->max_tls;
    count[TN_PART_ENGINE_IN] = tn_link_engines_in(d->max_tls);
    count[TN_PART_STREAMS]   = d->tls_by_caller ? relays : 0;
    for (i = 0; i < TN_PARTS; i++) {
        bool    apart = i >= TN_PART_ENGINE_IN && d->tls_memory_size != 0;
        size_t *used  = apart ? &l->tls_used : &l->used;
        size_t  end;
        l->at[i] = *used;
        if (i == TN_PART_CHECK && d->max_tls == 1)  /* one engine: a certificate is checked */
            l->at[i] = l->at[TN_PART_STORES];       /*   only while no relay's store is used */
        end = l->at[i] + ((count[i] * unit[i] + 7u) & ~(size_t)7u);
        if (*used < end) *used = end;
    }
}

/* Gives every room its part of the memory, which is zero. */
static void tn_node_place(tailnet_node *n, const tn_node_layout *l, uint8_t *base,
                          uint8_t *tls_base)
{
    const tailnet_desc *d = &n->desc;
    const size_t       *at = l->at;
    tn_map_limits       lim;

    if (d->tls_memory_size == 0) tls_base = base;
    tn_node_map_limits(d, &lim);
    n->relay_slots  = (uint16_t)(d->max_links - 1u);
    n->map_memory   = base + at[TN_PART_MAP];
    n->ranges       = (tn_flt_range *)(void *)(base + at[TN_PART_RANGES]);
    n->flows        = (tn_flt_flow *)(void *)(base + at[TN_PART_FLOWS]);
    tn_map_init(&n->map, &lim, n->map_memory);
    tn_flt_init(&n->flt, n->ranges, d->max_ranges, n->flows, d->max_flows);
    tn_relay_init(&n->relay, (tn_relay_link *)(void *)(base + at[TN_PART_LINKS]),
                  (tn_relay_store *)(void *)(base + at[TN_PART_STORES]), n->relay_slots,
                  base + at[TN_PART_VIA], d->max_sessions);
    n->net_memory         = base + at[TN_PART_NET];
    n->sessions           = (tn_session *)(void *)(base + at[TN_PART_SESSIONS]);
    n->seen               = (uint64_t *)(void *)(base + at[TN_PART_SEEN]);
    n->staged             = (tn_staged *)(void *)(base + at[TN_PART_STAGED]);
    n->staged_bytes       = base + at[TN_PART_BYTES];
    n->scratch            = base + at[TN_PART_SCRATCH];
    n->relays             = (tn_node_relay *)(void *)(base + at[TN_PART_RELAYS]);
    n->links.slots        = (tn_link *)(void *)(base + at[TN_PART_SLOTS]);
    n->links.slot_count   = d->max_links;
    n->links.engines      = (tn_tls *)(void *)(base + at[TN_PART_ENGINES]);
    n->links.check        = (tn_tls_check *)(void *)(base + at[TN_PART_CHECK]);
    n->links.engine_in    = tls_base + at[TN_PART_ENGINE_IN];
    n->links.engine_count = d->max_tls;
    n->streams            = tls_base + at[TN_PART_STREAMS];
    n->staged_size        = l->staged_size;
}

/* ---- peers and sessions ---- */

static tn_session *tn_node_session(tailnet_node *n, uint16_t peer)
{
    uint16_t slot = n->map.peers[peer].session;
    return slot == TN_NODE_NO_SLOT ? NULL : &n->sessions[slot];
}

/* The next session in use from *i on, and *i behind it; NULL: no more. */
static TN_NOINLINE tn_session *tn_node_each(const tailnet_node *n, unsigned *i)
{
    while (*i < n->desc.max_sessions) {
        tn_session *s = &n->sessions[(*i)++];
        if (s->used_ms != 0) return s;
    }
    return NULL;
}

static TN_NOINLINE uint16_t tn_node_slot(const tailnet_node *n, const tn_session *s)
{
    return (uint16_t)(s - n->sessions);
}

/* The session that an index of ours belongs to; its slot is the low half. */
static tn_session *tn_node_by_index(tailnet_node *n, uint32_t index)
{
    uint32_t slot = index & 0xffffu;
    if (slot >= n->desc.max_sessions || n->sessions[slot].used_ms == 0) return NULL;
    return tn_wg_has_index(&n->sessions[slot].wg, index) ? &n->sessions[slot] : NULL;
}

/* A staged packet is not wanted any more, and it was plaintext. */
static void tn_node_free_staged(tailnet_node *n, unsigned i)
{
    tn_wipe(n->staged_bytes + (size_t)i * n->staged_size, n->staged_size);
    memset(&n->staged[i], 0, sizeof n->staged[i]);
}

static void tn_node_unstage(tailnet_node *n, uint16_t peer)
{
    unsigned i;
    for (i = 0; i < n->desc.max_staged; i++)
        if (n->staged[i].len != 0 && n->staged[i].peer == peer) tn_node_free_staged(n, i);
}

/* Ends a session: keys wiped, route forgotten, staged packets dropped. */
static void tn_node_end_session(tailnet_node *n, tn_session *s)
{
    uint16_t slot = tn_node_slot(n, s);
    if (s->used_ms == 0) return;
    tn_relay_forget_peer(&n->relay, slot);
    n->map.peers[s->peer].session = TN_NODE_NO_SLOT;
    tn_map_busy(&n->map, s->peer, false);
    tn_node_unstage(n, s->peer);
    tn_wg_wipe(&s->wg);
    memset(s, 0, sizeof *s);
    n->events |= TAILNET_EVENT_PATHS;
}

static void tn_node_end_sessions(tailnet_node *n)
{
    tn_session *s;
    unsigned    i = 0;
    while ((s = tn_node_each(n, &i)) != NULL) tn_node_end_session(n, s);
}

/* May datagrams leave by UDP at all? Without TAILNET_DIRECT never: what stands behind
 * this question is not compiled then. */
static bool tn_node_udp(const tailnet_node *n)
{
    return TAILNET_DIRECT && n->state == TAILNET_STATE_RUNNING && !n->network_down &&
           !n->desc.prefs.relay_only &&
           !n->map.self.only_tcp_443 && tn_rim_has_udp(&n->rim);
}

/* What the path of a session has to know besides its peer's doings. */
static TN_NOINLINE void tn_node_path_flags(const tailnet_node *n, tn_session *s)
{
    s->path.metered = n->desc.prefs.metered;
    s->path.silent  = n->map.self.silent_disco;
    s->path.plain   = (n->map.peers[s->peer].flags & TN_MAP_DISCO_KEY) == 0;
    s->path.lacks   = n->lacks;
}

/* Where the map says the peer of a session may be found. */
static void tn_node_path_places(tailnet_node *n, tn_session *s)
{
    tailnet_addr at[TAILNET_MAX_CANDIDATES];
    size_t       count;
    if (!TAILNET_DIRECT) return;
    count = tn_map_places(&n->map, s->peer, at, TAILNET_MAX_CANDIDATES);
    tn_path_listed(&s->path, at, count, n->rim.now_ms);
}

/* Is the way to the peer of a session direct? Then it leads to *to. */
static bool tn_node_is_direct(const tn_session *s, tailnet_addr *to)
{
    return TAILNET_DIRECT && s->path.state == TN_PATH_TRUSTED && tn_path_best(&s->path, to);
}

/* The slot for a new session: a free one, or that of the one quiet longest. */
static tn_session *tn_node_oldest(tailnet_node *n)
{
    tn_session *oldest = n->sessions;
    unsigned    i;
    for (i = 1; i < n->desc.max_sessions; i++)
        if (n->sessions[i].used_ms < oldest->used_ms) oldest = &n->sessions[i];
    return oldest;
}

/* The session of a peer, a new one if need be, in the slot of another if need be. */
static tn_session *tn_node_open_session(tailnet_node *n, uint16_t peer)
{
    tn_session *s = tn_node_session(n, peer);
    uint8_t     seed[16];
    unsigned    i;
    if (s != NULL) return s;
    s = tn_node_oldest(n);
    tn_node_end_session(n, s);
    s->peer    = peer;
    s->used_ms = n->rim.now_ms + 1;         /* never 0 */
    tn_wg_init(&s->wg, n->rim.now_ms);
    (void)tn_rim_random(&n->rim, seed, sizeof seed);
    if (TAILNET_DIRECT) tn_path_init(&s->path, seed, n->rim.now_ms);
    tn_node_path_flags(n, s);
    tn_node_path_places(n, s);
    for (i = 0; i < TN_NODE_DISCO_KEYS; i++)
        if (n->disco[i].known && n->disco[i].peer == peer) s->disco = n->disco[i];
    n->map.peers[peer].session = tn_node_slot(n, s);
    tn_map_busy(&n->map, peer, true);
    n->events |= TAILNET_EVENT_PATHS;
    return s;
}

/* A random index for a session: its slot below, luck above, never one in use. */
static uint32_t tn_node_new_index(tailnet_node *n, const tn_session *s)
{
    uint32_t index;
    unsigned tries;
    uint8_t  luck[2];
    for (tries = 0; tries < 16; tries++) {
        if (!tn_rim_random(&n->rim, luck, sizeof luck)) return 0;
        index = (uint32_t)luck[0] << 24 | (uint32_t)luck[1] << 16 | tn_node_slot(n, s);
        if (index >> 16 != 0 && !tn_wg_has_index(&s->wg, index)) return index;
    }
    return 0;
}

/* May packets flow at all? */
static bool tn_node_flows(const tailnet_node *n)
{
    return n->state == TAILNET_STATE_RUNNING && !n->rim.random_failed;
}

/* Notes trouble that is not control's. */
static TN_NOINLINE void tn_node_trouble(tailnet_node *n, tailnet_result why, const char *section,
                            int32_t detail)
{
    n->problem.result  = why;
    n->problem.section = section;
    n->problem.detail  = detail;
    n->problem.at_ms   = n->rim.now_ms;
    n->problem.text    = "";
    n->events |= TAILNET_EVENT_PROBLEM;
    tn_rim_log(&n->rim, 1, 200u + (uint32_t)-(int)why, section);
}

/* ---- bytes out ---- */

/* A run of one, in memory of ours. */
static void tn_node_buf(tailnet_buf *pkt, uint8_t *data, size_t len)
{
    memset(pkt, 0, sizeof *pkt);
    pkt->base = data;
    pkt->cap = pkt->len = (uint32_t)len;
}

/* Puts what a relay link has gathered on its way. */
static void tn_node_flush(tailnet_node *n)
{
    unsigned i;
    for (i = 0; i < n->relay_slots; i++) {
        if (!n->relays[i].dirty) continue;
        n->relays[i].dirty = false;
        tn_link_flush(&n->links, n->relays[i].link);
    }
}

/* One datagram to a key over a relay slot. When the open record is full it goes
 * first and a new one is begun. */
static tailnet_result tn_node_post_relay(tailnet_node *n, unsigned slot, const uint8_t key[32],
                                         const uint8_t *data, size_t len, bool urgent)
{
    tn_node_relay *r = &n->relays[slot];
    tailnet_result result = TAILNET_ERR_AGAIN;
    unsigned       tries;

    for (tries = 0; tries < 2 && result == TAILNET_ERR_AGAIN; tries++) {
        size_t   room = 0;
        uint8_t *at   = tn_link_reserve(&n->links, r->link, &room);
        tn_wr    w;
        tn_wr_over(&w, at, at == NULL ? 0 : room);
        result = tn_relay_post(&n->relay, slot, at == NULL ? NULL : &w, key, data, len, urgent,
                               n->rim.now_ms);
        if (at != NULL && tn_wr_len(&w) != 0) {
            tn_link_commit(&n->links, r->link, tn_wr_len(&w));
            r->dirty = true;
        }
        if (result == TAILNET_ERR_AGAIN && tries == 0) tn_link_flush(&n->links, r->link);
    }
    if (result == TAILNET_OK) n->stats.relay_out++;
    else                      n->stats.dropped_no_room++;
    return result;
}

/* The relay slot for a session, -1 when there is none. */
static int tn_node_relay_of(tailnet_node *n, const tn_session *s)
{
    const tn_map_peer *p = tn_map_peer_at(&n->map, s->peer);
    uint16_t           region;
    if (p == NULL) return -1;
    region = tn_map_region_node(&n->map, p->region, 0) == NULL ? 0 : p->region;     /* unknown */
    return tn_relay_route(&n->relay, tn_node_slot(n, s), region, n->rim.now_ms);
}

/* A run of whole datagrams to the peer of a session by relay. */
static tailnet_result tn_node_send_relay(tailnet_node *n, const tn_session *s,
                                         const tailnet_buf *pkts, size_t count, bool urgent)
{
    const tn_map_peer *p      = &n->map.peers[s->peer];
    int                slot   = tn_node_relay_of(n, s);
    tailnet_result     result = TAILNET_OK;
    size_t             i;
    if (slot < 0) return TAILNET_ERR_NO_ROUTE;
    for (i = 0; i < count; i++) {
        tailnet_result r = tn_node_post_relay(n, (unsigned)slot, p->key, pkts[i].base + pkts[i].off,
                                              pkts[i].len, urgent);
        if (r != TAILNET_OK && result == TAILNET_OK) result = r;
    }
    return result;
}

/* The same the way it goes now: straight, by relay, or both while the straight way
 * is not proved. By relay first: udp_output may keep the packets. */
static tailnet_result tn_node_send(tailnet_node *n, tn_session *s, tailnet_buf *pkts, size_t count,
                                   bool urgent)
{
    tailnet_result result = TAILNET_ERR_NO_ROUTE;
    unsigned       ways   = 0;
    uint8_t        was    = (uint8_t)s->path.state;
    tailnet_addr   to;

    if (n->network_down) return TAILNET_ERR_NO_ROUTE;
    if (tn_node_udp(n)) ways = tn_path_use(&s->path, n->rim.now_ms, &to);
    if (ways == 0 || (ways & TN_PATH_RELAY) != 0)
        result = tn_node_send_relay(n, s, pkts, count, urgent);
    if ((ways & TN_PATH_UDP) != 0) {
        n->stats.udp_out += count;
        if (tn_rim_udp_output(&n->rim, &to, pkts, count)) {
            result = TAILNET_OK;
        } else {
            (void)tn_path_unreachable(&s->path, &to, n->rim.now_ms);
            if (ways == TN_PATH_UDP) result = tn_node_send_relay(n, s, pkts, count, urgent);
        }
    }
    if (was != (uint8_t)s->path.state) n->events |= TAILNET_EVENT_PATHS;
    if (result == TAILNET_ERR_NO_ROUTE) n->stats.dropped_no_route += count;
    return result;
}

/* One message of our own making. */
static void tn_node_send_bytes(tailnet_node *n, tn_session *s, uint8_t *data, size_t len)
{
    tailnet_buf pkt;
    tn_node_buf(&pkt, data, len);
    (void)tn_node_send(n, s, &pkt, 1, true);
}

/* An answer to exactly where a message came from. */
static void tn_node_answer(tailnet_node *n, const tn_origin *to, uint8_t *data, size_t len)
{
    tailnet_buf pkt;
    if (!TAILNET_DIRECT || to->relay) {
        (void)tn_node_post_relay(n, to->slot, to->key, data, len, true);
        return;
    }
    tn_node_buf(&pkt, data, len);
    n->stats.udp_out++;
    (void)tn_rim_udp_output(&n->rim, &to->addr, &pkt, 1);
}

/* ---- plaintext out: seal in runs ---- */

/* Does the work list: by the caller's hook, or here. */
static void tn_node_crypt(tailnet_node *n, tailnet_crypt *work, size_t count)
{
    size_t i;
    if (count == 0 || tn_rim_crypt(&n->rim, work, count)) return;
    for (i = 0; i < count; i++) {
        tailnet_crypt *w = &work[i];
        uint8_t        nonce[12];
        tn_wr          out;
        tn_wr_over(&out, nonce, sizeof nonce);
        tn_wr_u32le(&out, 0);
        tn_wr_u64le(&out, w->counter);
        if (w->open) {
            w->ok = tn_cr_aead_open(w->key, nonce, NULL, 0, w->data, w->len, w->data + w->len);
        } else {
            tn_cr_aead_seal(w->key, nonce, NULL, 0, w->data, w->len, w->data + w->len);
        }
    }
}

/* Seals one packet that has room around it, and sends it. len 0 is a keepalive. */
static tailnet_result tn_node_seal_one(tailnet_node *n, tn_session *s, uint8_t *datagram,
                                       size_t len)
{
    tailnet_buf   pkt;
    tailnet_crypt work;                     /* not the list: an answer may go out while   */
    tn_wg_verdict v =                       /* the list holds what came in                */
        tn_wg_seal_begin(&s->wg, datagram, len, n->desc.mtu, n->rim.now_ms, &work);
    if (v != TN_WG_OK) return TAILNET_ERR_AGAIN;
    tn_node_crypt(n, &work, 1);
    tn_node_buf(&pkt, datagram, work.len + TN_WG_OVERHEAD);
    return tn_node_send(n, s, &pkt, 1, len == 0);
}

static void tn_node_keepalive(tailnet_node *n, tn_session *s)
{
    uint8_t empty[TN_WG_OVERHEAD];
    (void)tn_node_seal_one(n, s, empty, 0);
}

/* Our source address as this peer knows it, when that is another one. */
static void tn_node_masquerade(tailnet_node *n, const tn_map_peer *peer, uint8_t *data,
                               tn_ip_packet *p)
{
    tailnet_addr ours;
    if (!tn_map_masq(peer, p->family, &ours)) return;
    if (tn_ip_same(&p->flow.src, p->family == 4 ? &n->map.self.ip4 : &n->map.self.ip6))
        (void)tn_ip_set_src(data, p, &ours);
}

/* A packet of our own (TSMP) to the peer of a session: it stands at scratch + 32. */
static void tn_node_send_own(tailnet_node *n, tn_session *s, size_t len)
{
    uint8_t           *data = n->scratch + TAILNET_HEADROOM;
    const tn_map_peer *peer = tn_map_peer_at(&n->map, s->peer);
    tn_ip_packet       p;
    if (peer == NULL || !tn_ip_read(&p, data, len)) return;
    tn_node_masquerade(n, peer, data, &p);
    (void)tn_node_seal_one(n, s, data - TN_WG_HEAD_LEN, len);
}

/* Answers that a peer can provoke are few per second, or a scan of our ports
 * would cost an encryption each. */
static TN_NOINLINE bool tn_node_may_answer(tailnet_node *n, tn_session *s)
{
    uint32_t second = (uint32_t)(n->rim.now_ms / 1000u);
    if (s->answer_s != second) s->answers = 0;
    s->answer_s = second;
    return s->answers++ < TN_NODE_ANSWERS;
}

/* Keeps a copy of a packet until its peer can be reached: in a free place, or in
 * that of the oldest one of the same peer, or else of the oldest of all. */
static void tn_node_stage(tailnet_node *n, uint16_t peer, const uint8_t *data, size_t len)
{
    unsigned   i, at = 0;
    bool       same = false;
    tn_staged *st;
    if (len + TAILNET_HEADROOM + TAILNET_TAILROOM > n->staged_size) return;
    for (i = 0; i < n->desc.max_staged; i++) {
        bool mine = n->staged[i].peer == peer;
        st        = &n->staged[i];
        if (st->len == 0) {
            at = i;
            break;
        }
        if (mine == same ? st->until_ms < n->staged[at].until_ms : mine) at = i;
        same = same || mine;
    }
    st = &n->staged[at];
    if (st->len != 0) n->stats.dropped_no_room++;
    st->until_ms = n->rim.now_ms + TN_NODE_HELD_MS;
    st->peer     = peer;
    st->len      = (uint16_t)len;
    memcpy(n->staged_bytes + (size_t)at * n->staged_size + TAILNET_HEADROOM, data, len);
}

/* Sends what waited for this session; a keepalive if nothing did and one is due. */
static void tn_node_flush_staged(tailnet_node *n, tn_session *s, bool keepalive)
{
    unsigned i;
    bool     sent = false;
    for (i = 0; i < n->desc.max_staged; i++) {
        tn_staged *st = &n->staged[i];
        uint8_t   *at = n->staged_bytes + (size_t)i * n->staged_size;
        if (st->len == 0 || st->peer != s->peer) continue;
        if (tn_node_seal_one(n, s, at + TAILNET_HEADROOM - TN_WG_HEAD_LEN, st->len) != TAILNET_OK)
            n->stats.dropped_no_room++;
        tn_node_free_staged(n, i);
        sent = true;
    }
    if (!sent && keepalive) tn_node_keepalive(n, s);
}

/* What a session tells after something happened to it. */
static void tn_node_session_news(tailnet_node *n, tn_session *s, unsigned news)
{
    if ((news & TN_WG_NEW_KEY) != 0) {
        n->stats.handshakes++;
        n->events |= TAILNET_EVENT_PATHS;
        tn_node_flush_staged(n, s, (news & TN_WG_WANT_KEEPALIVE) != 0);
    } else if ((news & TN_WG_WANT_KEEPALIVE) != 0) {
        tn_node_keepalive(n, s);
    }
    if ((news & TN_WG_SILENT) != 0) tn_relay_forget_peer(&n->relay, tn_node_slot(n, s));
    if ((news & TN_WG_GAVE_UP) != 0) tn_node_unstage(n, s->peer);
    if ((news & TN_WG_ERASED) != 0) {
        n->seen[s->peer] = 0;
        tn_node_end_session(n, s);
    }
}

/* ---- names ---- */

#if TAILNET_DNS

/* Where the resolver is asked, and its name (net/tsaddr, net/dns/resolver). */
#define TN_NODE_DNS_IP4  "100.100.100.100"
#define TN_NODE_DNS_IP6  "fd7a:115c:a1e0::53"
#define TN_NODE_DNS_NAME "magicdns.localhost-tailscale-daemon"

/* One question, and what the map has for it. */
typedef struct tn_node_dns {
    tn_dns_question q;
    tn_dns_answer   a;
    tailnet_addr    ip4, ip6;               /* of the name; family 0: none        */
    tailnet_addr    asked;                  /* the address of a reverse name      */
    char            target[TN_MAP_FQDN];
} tn_node_dns;

static bool tn_node_is_resolver(const tailnet_addr *ip)
{
    tailnet_addr own;
    (void)tn_ip_parse(&own, TN_NODE_DNS_IP4, sizeof TN_NODE_DNS_IP4 - 1);
    if (tn_ip_same(ip, &own)) return true;
    (void)tn_ip_parse(&own, TN_NODE_DNS_IP6, sizeof TN_NODE_DNS_IP6 - 1);
    return tn_ip_same(ip, &own);
}

/* Is the question about exactly this name? */
static bool tn_node_dns_is(const tn_node_dns *d, const char *name)
{
    return tn_dns_under(d->q.name, d->q.len, name) == d->q.len;
}

/* The zone that answers for the name when nothing in it does: the longest of ours,
 * or none. A record that no other resolver's route covers is a zone of its own. */
static void tn_node_dns_zone(const tailnet_node *n, tn_node_dns *d)
{
    const char  *name = d->q.name, *text = "";
    size_t       len = d->q.len, best = 0, record = 0, routed = 0, zone, i;
    uint8_t      kind = 0;
    tailnet_addr addr;

    if (n->map.dns_proxied) {
        best = tn_dns_under(name, len, tn_map_suffix(&n->map));
        zone = tn_dns_reverse_zone(name, len);
        if (zone > best) best = zone;
    }
    for (i = 0; tn_map_dns(&n->map, i, &kind, &text, &addr); i++) {
        if (kind != TN_MAP_DNS_SPLIT && kind != TN_MAP_DNS_RECORD) continue;
        zone = tn_dns_under(name, len, text);
        if (kind == TN_MAP_DNS_RECORD && zone > record) record = zone;
        if (kind == TN_MAP_DNS_SPLIT && addr.family != 0 && zone > routed) routed = zone;
        if (kind == TN_MAP_DNS_SPLIT && addr.family == 0 && zone > best) best = zone;
    }
    if (best == 0 && routed == 0) best = record;
    d->a.zone_len = best;
}

/* The map's own records, which come before its nodes. */
static bool tn_node_dns_record(const tailnet_node *n, tn_node_dns *d)
{
    const char  *text = "";
    uint8_t      kind = 0;
    size_t       i;
    bool         found = false;
    tailnet_addr addr;

    for (i = 0; tn_map_dns(&n->map, i, &kind, &text, &addr); i++) {
        tailnet_addr *ip = addr.family == 4 ? &d->ip4 : &d->ip6;
        if (kind != TN_MAP_DNS_RECORD || !tn_node_dns_is(d, text)) continue;
        if (ip->family == 0) *ip = addr;
        found = true;
    }
    return found;
}

/* A node, by whole name or first label. IPv6 is told only where it is all there is,
 * unless our node is one that shall see both (reference: magicDNSHostAddrs). */
static bool tn_node_dns_host(const tailnet_node *n, tn_node_dns *d)
{
    const tn_map_self *self  = &n->map.self;
    bool               plain = !tn_has_byte((const char *)d->q.name, d->q.len, '.');
    uint16_t           at    = 0;
    char               label[64];

    if (plain && !n->map.dns_proxied) return false;
    (void)tn_text_copy(label, sizeof label, self->name,
                       tn_map_label_len(self->name, strlen(self->name)));
    if (tn_node_dns_is(d, plain ? label : self->name)) {
        d->ip4 = self->ip4;
        d->ip6 = self->ip6;
    } else {
        if (!tn_map_by_name(&n->map, d->q.name, d->q.len, &at)) return false;
        tn_map_addr(tn_map_peer_at(&n->map, at), 4, &d->ip4);
        tn_map_addr(tn_map_peer_at(&n->map, at), 6, &d->ip6);
    }
    if (self->ip4.family == 0) d->ip4.family = 0;
    else if (d->ip4.family != 0 && !self->ipv6_names) d->ip6.family = 0;
    return true;
}

/* The service's own name, and names that hold an address. */
static bool tn_node_dns_fixed(tn_node_dns *d)
{
    if (!tn_node_dns_is(d, TN_NODE_DNS_NAME)) return tn_dns_via(d->q.name, d->q.len, &d->ip6);
    (void)tn_ip_parse(&d->ip4, TN_NODE_DNS_IP4, sizeof TN_NODE_DNS_IP4 - 1);
    (void)tn_ip_parse(&d->ip6, TN_NODE_DNS_IP6, sizeof TN_NODE_DNS_IP6 - 1);
    return true;
}

/* The name of a peer, if it leads back to it: one that is kept only in part, or
 * in a domain that is not ours, is not told. */
static const char *tn_node_dns_peer_name(const tailnet_node *n, tn_node_dns *d, uint16_t at)
{
    const tn_map_peer *p    = tn_map_peer_at(&n->map, at);
    uint16_t           back = TN_MAP_NONE;
    tn_wr              w;
    tn_wr_over(&w, d->target, sizeof d->target - 1);
    tn_wr_text(&w, p->name);
    tn_wr_u8(&w, '.');
    tn_wr_text(&w, tn_map_domain(&n->map, p));
    d->target[tn_wr_len(&w)] = '\0';
    if (!tn_wr_ok(&w) || !tn_map_by_name(&n->map, d->target, tn_wr_len(&w), &back)) return NULL;
    return back == at ? d->target : NULL;
}

/* Whose address is it? NULL: nobody's. */
static const char *tn_node_dns_owner(const tailnet_node *n, tn_node_dns *d, const tailnet_addr *ip)
{
    const char  *text = NULL;
    uint16_t     at   = 0;
    uint8_t      kind = 0;
    size_t       i;
    tailnet_addr addr;

    if (tn_node_is_resolver(ip)) return TN_NODE_DNS_NAME;
    if (tn_ip_same(ip, &n->map.self.ip4) || tn_ip_same(ip, &n->map.self.ip6))
        return n->map.self.name;
    if (tn_map_by_own_ip(&n->map, ip, &at)) text = tn_node_dns_peer_name(n, d, at);
    if (text != NULL) return text;
    for (i = 0; tn_map_dns(&n->map, i, &kind, &text, &addr); i++)
        if (kind == TN_MAP_DNS_RECORD && tn_ip_same(ip, &addr)) return text;
    return NULL;
}

/* A reverse name. IPv6 addresses of an older kind hold 24 bits of the IPv4 one. */
static bool tn_node_dns_reverse(const tailnet_node *n, tn_node_dns *d)
{
    static const uint8_t old[13] = { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0, 0xab,
                                     0x12, 0x48, 0x43, 0xcd, 0x96, 0x62 };
    const char  *name;
    tailnet_addr ip4;

    if (!tn_dns_reverse(d->q.name, d->q.len, &d->asked)) return false;
    name = tn_node_dns_owner(n, d, &d->asked);
    if (name == NULL && d->asked.family == 6 && memcmp(d->asked.ip, old, sizeof old) == 0) {
        memset(&ip4, 0, sizeof ip4);
        ip4.family = 4;
        ip4.ip[0]  = 100;
        memcpy(ip4.ip + 1, d->asked.ip + 13, 3);
        name = tn_node_dns_owner(n, d, &ip4);
    }
    if (name != NULL && tn_dns_name_ok(name)) d->a.target = name;
    return d->a.target != NULL;
}

/* Could this be a peer that had no room in the directory, and that reading the map
 * again has not failed to find? */
static bool tn_node_dns_missing(const tailnet_node *n, const tn_node_dns *d)
{
    size_t      len = d->q.len, label = tn_map_label_len(d->q.name, len);
    size_t      zone = tn_dns_under(d->q.name, len, tn_map_suffix(&n->map));
    tn_map_who  who;

    if (!n->map.peers_missing || !n->map.dns_proxied) return false;
    if (d->asked.family != 0) {
        if (tn_dns_reverse_zone(d->q.name, len) == 0) return false;
        tn_map_mean(&who, d->asked.family, d->asked.ip, tn_ip_len(d->asked.family));
    } else {
        if (label != len && (zone == 0 || len - zone != label + 1)) return false;
        tn_map_mean_name(&n->map, &who, d->q.name, len);
    }
    return !tn_map_is_lost(&n->map, &who, n->rim.now_ms);
}

/* What a name that exists has of the type asked for. */
static void tn_node_dns_pick(tn_node_dns *d)
{
    unsigned type = d->q.type;
    if (type == TN_DNS_NS || type == TN_DNS_SOA || type == TN_DNS_AXFR || type == TN_DNS_HINFO)
        d->a.rcode = TN_DNS_NOTIMP;
    if (type == TN_DNS_A || type == TN_DNS_ANY) d->a.addr = d->ip4;
    if (type == TN_DNS_AAAA || (type == TN_DNS_ANY && d->ip4.family == 0)) d->a.addr = d->ip6;
    if (type != TN_DNS_PTR && type != TN_DNS_ANY) d->a.target = NULL;
}

/* Fills the answer. NO_ROUTE: the name is none of ours. AGAIN: see fetch_peer. */
static tailnet_result tn_node_dns_look(const tailnet_node *n, tn_node_dns *d)
{
    size_t onion = tn_dns_under(d->q.name, d->q.len, "onion");  /* RFC 7686 */
    bool   found;

    d->a.rcode = d->q.rcode;
    if (d->a.rcode == TN_DNS_OK && d->q.net != TN_DNS_IN && d->q.net != TN_DNS_ANY)
        d->a.rcode = TN_DNS_NOTIMP;
    if (d->a.rcode != TN_DNS_OK) return TAILNET_OK;
    if (!n->map.has_self || d->q.len == 0) return TAILNET_ERR_NO_ROUTE;
    tn_node_dns_zone(n, d);
    if (onion != 0) d->a.zone_len = onion;
    found = onion == 0 && (tn_node_dns_fixed(d) || tn_node_dns_record(n, d) ||
                           tn_node_dns_host(n, d) || tn_node_dns_reverse(n, d));
    if (found) {
        tn_node_dns_pick(d);
        return TAILNET_OK;
    }
    if (tn_node_dns_missing(n, d)) return TAILNET_ERR_AGAIN;
    d->a.rcode = TN_DNS_NXDOMAIN;
    return d->a.zone_len != 0 ? TAILNET_OK : TAILNET_ERR_NO_ROUTE;
}

/* The answer to a message (see tailnet_answer_dns), written only when OK. */
static tailnet_result tn_node_dns_answer(const tailnet_node *n, tn_node_dns *d, const void *query,
                                         size_t len, tn_wr *w)
{
    tailnet_result r;
    memset(d, 0, sizeof *d);
    r = tn_dns_parse(&d->q, query, len);
    if (r == TAILNET_OK) r = tn_node_dns_look(n, d);
    if (r == TAILNET_OK) tn_dns_wr_answer(w, &d->q, &d->a);
    return tn_wr_ok(w) ? r : TAILNET_ERR_TOO_BIG;
}

/* A packet of the application to the resolver: it never leaves the node. A name that
 * we know nothing of fails: nobody here could be asked. */
static tailnet_result tn_node_serve_dns(tailnet_node *n, const tn_ip_packet *p)
{
    size_t         head = p->family == 4 ? 28 : 48;
    uint8_t       *at   = n->scratch + TAILNET_HEADROOM;
    tn_node_dns    d;
    tn_wr          w;
    tailnet_buf    out;
    tailnet_result r;

    if (p->flow.protocol != TN_IP_UDP || p->flow.dst.port != 53 || p->fragmented) {
        n->stats.dropped_no_route++;
        return TAILNET_ERR_NO_ROUTE;
    }
    tn_wr_over(&w, at + head, n->staged_size - TAILNET_HEADROOM - head);
    r = tn_node_dns_answer(n, &d, p->data + p->body + 8, p->len - p->body - 8, &w);
    if (r == TAILNET_ERR_AGAIN) {           /* silence: the asker repeats */
        if (d.asked.family != 0) (void)tn_map_want_ip(&n->map, &d.asked, true, n->rim.now_ms);
        else (void)tn_map_want_name(&n->map, d.q.name, d.q.len, true, n->rim.now_ms);
        n->more = true;
        return r;
    }
    if (r == TAILNET_ERR_NO_ROUTE) {
        d.a.rcode = TN_DNS_SERVFAIL;
        tn_dns_wr_answer(&w, &d.q, &d.a);
    } else if (r != TAILNET_OK) {
        return r;
    }
    memset(&out, 0, sizeof out);
    out.base = n->scratch;
    out.cap  = n->staged_size;
    out.off  = TAILNET_HEADROOM;
    out.len  = (uint32_t)(head + tn_wr_len(&w));
    tn_wr_over(&w, at, head);
    tn_ip_wr_udp_head(&w, &p->flow.dst, &p->flow.src, at + head, out.len - head);
    n->stats.ip_out++;
    tn_rim_ip_output(&n->rim, &out, 1);
    return TAILNET_OK;
}

#endif /* TAILNET_DNS */

/* ---- packets of the application ---- */

/* A run under way: pieces of one destination that wait to be sealed and sent. */
typedef struct tn_run {
    tn_session *session;
    size_t      first, count;               /* neighbours in the caller's array   */
} tn_run;

/* Seals and sends the neighbours gathered so far. */
static tailnet_result tn_node_send_run(tailnet_node *n, tn_run *run, tailnet_buf *pkts)
{
    tailnet_result r = TAILNET_OK;
    size_t         i;
    if (run->count != 0) {
        tn_node_crypt(n, n->work, run->count);
        for (i = 0; i < run->count; i++) pkts[run->first + i].len = n->work[i].len + TN_WG_OVERHEAD;
        r = tn_node_send(n, run->session, pkts + run->first, run->count, false);
    }
    run->count = 0;
    return r;
}

/* No session yet: the newest packet is kept, and a handshake asked for. */
static tailnet_result tn_node_await(tailnet_node *n, uint16_t peer, const uint8_t *data, size_t len)
{
    tn_session *s = tn_node_open_session(n, peer);
    tn_node_stage(n, peer, data, len);
    tn_wg_want(&s->wg, n->rim.now_ms);
    n->more = true;
    return TAILNET_OK;
}

/* Is it the peer of a packet that we may talk to? Looks it up, asks for the map
 * once more when it may be one that had no room. */
static tailnet_result tn_node_find(tailnet_node *n, const tn_ip_packet *p, uint16_t *peer)
{
    if (tn_map_by_ip(&n->map, &p->flow.dst, peer)) return TAILNET_OK;
    n->stats.dropped_no_route++;
    if (!n->map.peers_missing) return TAILNET_ERR_NO_ROUTE;
    if (tn_map_want_ip(&n->map, &p->flow.dst, true, n->rim.now_ms) != TN_MAP_WISH_WAIT)
        return TAILNET_ERR_NO_ROUTE;
    tn_node_stage(n, TN_MAP_NONE, p->data, p->len);
    n->more = true;
    return TAILNET_ERR_AGAIN;
}

/* May it go to that peer? Then its flow is noted and its source the right one. */
static bool tn_node_may_out(tailnet_node *n, uint16_t peer, uint8_t *data, tn_ip_packet *p)
{
    tn_flt_peer to;
    tn_flt_why  why;
    tn_map_flt_peer(&n->map, peer, &to);
    if (tn_flt_out(&n->flt, p, &to, n->rim.now_ms, &why) != TN_FLT_ACCEPT) {
        n->stats.dropped_denied++;
        return false;
    }
    tn_node_masquerade(n, tn_map_peer_at(&n->map, peer), data, p);
    return true;
}

/* Filter, flow and source for one packet. OK: it may go to that peer, or the
 * packet was for us and is done with (TN_MAP_NONE). */
static tailnet_result tn_node_admit_out(tailnet_node *n, tailnet_buf *pkt, uint16_t *to_peer)
{
    uint8_t       *data = pkt->base + pkt->off;
    tn_ip_packet   p;
    uint16_t       peer = 0;
    tailnet_result r;

    *to_peer = TN_MAP_NONE;
    if (!tn_ip_read(&p, data, pkt->len)) return TAILNET_ERR_MALFORMED;
    if (p.len > n->desc.mtu) return TAILNET_ERR_TOO_BIG;
#if TAILNET_DNS
    if (n->desc.prefs.answer_dns && tn_node_is_resolver(&p.flow.dst))
        return tn_node_serve_dns(n, &p);
#endif
    r = tn_node_find(n, &p, &peer);
    if (r != TAILNET_OK) return r;
    if (!tn_node_may_out(n, peer, data, &p)) return TAILNET_ERR_DENIED;
    pkt->len = (uint32_t)p.len;
    tn_map_used(&n->map, peer, n->rim.now_ms);
    *to_peer = peer;
    return TAILNET_OK;
}

/* Too little room around it: through the scratch memory, alone. */
static tailnet_result tn_node_send_copy(tailnet_node *n, tn_session *s, const tailnet_buf *pkt)
{
    if (pkt->len + TAILNET_HEADROOM + TAILNET_TAILROOM > n->staged_size)
        return TAILNET_ERR_TOO_BIG;
    memcpy(n->scratch + TAILNET_HEADROOM, pkt->base + pkt->off, pkt->len);
    return tn_node_seal_one(n, s, n->scratch + TAILNET_HEADROOM - TN_WG_HEAD_LEN, pkt->len);
}

/* One packet into the run; what does not fit on sends the run first. */
static tailnet_result tn_node_take_out(tailnet_node *n, tn_run *run, tailnet_buf *pkts, size_t i)
{
    tailnet_buf   *pkt = &pkts[i];
    tn_session    *s   = NULL;
    uint8_t       *at;
    uint16_t       peer = TN_MAP_NONE;
    tailnet_result r    = tn_node_admit_out(n, pkt, &peer), sent = TAILNET_OK;

    if (r != TAILNET_OK || peer == TN_MAP_NONE) return r;
    s = tn_node_session(n, peer);
    if (s != NULL) s->used_ms = n->rim.now_ms + 1;
    if (s != NULL && !tn_wg_can_send(&s->wg, n->rim.now_ms)) s = NULL;
    if (run->count != 0 && (run->session != s || run->count == TAILNET_BATCH ||
                            run->first + run->count != i))
        sent = tn_node_send_run(n, run, pkts);  /* before another session takes its place */
    if (s == NULL) {
        r = tn_node_await(n, peer, pkt->base + pkt->off, pkt->len);
        return sent != TAILNET_OK ? sent : r;
    }
    if (pkt->off < TN_WG_HEAD_LEN ||
        pkt->cap - pkt->off - pkt->len < TN_WG_TAG_LEN + 15u) {
        if (run->count != 0) sent = tn_node_send_run(n, run, pkts);
        r = tn_node_send_copy(n, s, pkt);
        return sent != TAILNET_OK ? sent : r;
    }
    at = pkt->base + pkt->off - TN_WG_HEAD_LEN;
    if (tn_wg_seal_begin(&s->wg, at, pkt->len, n->desc.mtu, n->rim.now_ms,
                         &n->work[run->count]) != TN_WG_OK)
        return TAILNET_ERR_AGAIN;
    pkt->off -= TN_WG_HEAD_LEN;
    if (run->count++ == 0) run->first = i;
    run->session = s;
    return sent;
}

static tailnet_result tn_node_ip_input(tailnet_node *n, tailnet_buf *pkts, size_t count)
{
    tailnet_result first = TAILNET_OK, r;
    tn_run         run;
    size_t         i;

    memset(&run, 0, sizeof run);
    for (i = 0; i < count; i++) {
        n->stats.ip_in++;
        r = tn_node_take_out(n, &run, pkts, i);
        if (first == TAILNET_OK) first = r;
    }
    r = tn_node_send_run(n, &run, pkts);
    if (first == TAILNET_OK) first = r;
    tn_node_flush(n);
    return first;
}

/* ---- datagrams in: open in runs, then judge what they hold ---- */

/* The answer to a ping inside the tunnel. */
static void tn_node_pong_inside(tailnet_node *n, tn_session *s, const tn_ip_packet *p,
                                const tn_ip_tsmp *t)
{
    tn_wr w;
    if (!tn_node_may_answer(n, s)) return;
    tn_wr_over(&w, n->scratch + TAILNET_HEADROOM, n->staged_size - 2 * TAILNET_HEADROOM);
    tn_ip_wr_pong(&w, p, t, 0);
    if (tn_wr_ok(&w)) tn_node_send_own(n, s, tn_wr_len(&w));
}

/* What the filter has to know of a sender. Capabilities are the peer's own, not
 * those of the subnets behind it (ipnlocal, srcIPHasCapForFilter). */
static void tn_node_flt_peer(const tailnet_node *n, uint16_t index, const tailnet_addr *src,
                             tn_flt_peer *out)
{
    tailnet_addr own;
    tn_map_flt_peer(&n->map, index, out);
    tn_map_addr(tn_map_peer_at(&n->map, index), src->family, &own);
    if (!tn_ip_same(&own, src)) out->caps = 0;
}

/* Is that ping under way? */
static bool tn_node_pinged(const tailnet_node *n, uint16_t peer, tailnet_ping_kind kind)
{
    return n->ping.until_ms != 0 && n->ping.asked && n->ping.peer == peer && n->ping.kind == kind;
}

static void tn_node_ping_took(tailnet_node *n, uint64_t ms)
{
    n->ping.took_ms = ms == 0 ? 1 : (uint32_t)ms;
    n->more         = true;
}

static void tn_node_disco_forget(tailnet_node *n, uint16_t peer)
{
    unsigned i;
    for (i = 0; i < TN_NODE_DISCO_KEYS; i++)
        if (n->disco[i].peer == peer) memset(&n->disco[i], 0, sizeof n->disco[i]);
}

/* The peer's disco key is another one, it says inside the tunnel: it was started anew,
 * and control is not there to tell us, or not yet. */
static void tn_node_disco_told(tailnet_node *n, tn_session *s, const uint8_t key[32])
{
    tn_map_peer *p = &n->map.peers[s->peer];
    if (memcmp(p->disco, key, 32) == 0 || !tn_node_may_answer(n, s)) return;
    tn_map_link(&n->map, s->peer, false);
    tn_copy_key(p->disco, key);
    p->flags |= TN_MAP_DISCO_KEY;
    tn_map_link(&n->map, s->peer, true);
    tn_node_disco_forget(n, s->peer);
    s->disco.known = false;
    tn_node_path_flags(n, s);
}

/* TSMP never reaches the application. */
static void tn_node_tsmp(tailnet_node *n, tn_session *s, const tn_ip_packet *p)
{
    tn_ip_tsmp t;
    if (!tn_ip_tsmp_parse(&t, p)) return;
    if (t.kind == TN_IP_TSMP_PING && tn_flt_is_local(&n->flt, &p->flow.dst)) {
        tn_node_pong_inside(n, s, p, &t);
    } else if (TAILNET_DIRECT && t.kind == TN_IP_TSMP_DISCO) {
        tn_node_disco_told(n, s, t.data);
    } else if (t.kind == TN_IP_TSMP_PONG && tn_equal(t.data, n->ping.tx, 8) &&
               tn_node_pinged(n, s->peer, TAILNET_PING_TUNNEL)) {
        tn_node_ping_took(n, n->rim.now_ms - n->ping.sent_ms);
        n->ping.direct = tn_node_is_direct(s, &n->ping.endpoint);
    }
}

/* A packet that the policy refuses: tell the one who sent a SYN, as the
 * reference does, so that it need not wait for its time-out. */
static void tn_node_reject(tailnet_node *n, tn_session *s, const tn_ip_packet *p, tn_flt_why why)
{
    tn_wr w;
    if (!tn_node_may_answer(n, s)) return;
    tn_wr_over(&w, n->scratch + TAILNET_HEADROOM, n->staged_size - 2 * TAILNET_HEADROOM);
    tn_ip_wr_reject(&w, p, why == TN_FLT_WHY_SHIELDS ? TN_IP_REJECT_SHIELDS : TN_IP_REJECT_ACL);
    if (tn_wr_ok(&w)) tn_node_send_own(n, s, tn_wr_len(&w));
}

/* Decrypted bytes of a session: are they a packet for us? On true, pkt is cut
 * to that packet. */
static TN_NOINLINE bool tn_node_judge(tailnet_node *n, tn_session *s, tailnet_buf *pkt)
{
    uint8_t      *data = pkt->base + pkt->off;
    tn_ip_packet  p;
    tn_flt_peer   from;
    tn_flt_why    why;
    tn_flt_verdict v;
    tailnet_addr  ours;

    if (pkt->len == 0) return false;        /* a keepalive */
    if (!tn_ip_read(&p, data, pkt->len) || !tn_map_owns(&n->map, s->peer, &p.flow.src)) {
        n->stats.dropped_forged++;
        return false;
    }
    if (tn_map_masq(tn_map_peer_at(&n->map, s->peer), p.family, &ours) &&
        tn_ip_same(&p.flow.dst, &ours))
        (void)tn_ip_set_dst(data, &p, p.family == 4 ? &n->map.self.ip4 : &n->map.self.ip6);
    if (p.flow.protocol == 99) {
        tn_node_tsmp(n, s, &p);
        return false;
    }
    tn_node_flt_peer(n, s->peer, &p.flow.src, &from);
    v        = tn_flt_in(&n->flt, &p, &from, n->rim.now_ms, &why);
    pkt->len = (uint32_t)p.len;
    if (v == TN_FLT_ACCEPT) return true;
    n->stats.dropped_denied++;
    if (v == TN_FLT_REJECT) tn_node_reject(n, s, &p, why);
    return false;
}

/* After the crypt: counts one piece as received. True: pkt holds plaintext. */
static bool tn_node_accept(tailnet_node *n, tn_session *s, tailnet_buf *pkt,
                           const tailnet_crypt *work, const tn_origin *from)
{
    unsigned      news = 0;
    tn_wg_verdict v =
        tn_wg_accept(&s->wg, pkt->base + pkt->off, work, n->rim.now_ms, &news);
    if (v != TN_WG_OK) {
        n->stats.dropped_forged++;
        return false;
    }
    if (work->len != 0) s->used_ms = n->rim.now_ms + 1;     /* keepalives are no use */
    tn_map_used(&n->map, s->peer, n->rim.now_ms);
    if (!TAILNET_DIRECT || from->relay) tn_relay_learn(&n->relay, tn_node_slot(n, s), from->slot);
    else if (tn_path_heard(&s->path, &from->addr, pkt->len, n->rim.now_ms))
        n->events |= TAILNET_EVENT_PATHS;
    pkt->off += TN_WG_HEAD_LEN;
    pkt->len = work->len;
    if (news != 0) tn_node_session_news(n, s, news);
    return true;
}

/* A run for the application. */
static TN_NOINLINE void tn_node_hand_on(tailnet_node *n, tailnet_buf *pkts, size_t count)
{
    if (count == 0) return;
    n->stats.ip_out += count;
    tn_rim_ip_output(&n->rim, pkts, count);
}

/* The work list is done: hand runs of accepted neighbours on. */
static tailnet_result tn_node_deliver(tailnet_node *n, tailnet_buf *pkts, size_t count,
                                      const tn_origin *from)
{
    tailnet_result first = TAILNET_OK;
    size_t         i, begin = 0, run = 0;

    for (i = 0; i < count; i++) {
        size_t      at = n->pieces[i].at;
        tn_session *s  = &n->sessions[n->pieces[i].session];
        bool        ok = tn_node_accept(n, s, &pkts[at], &n->work[i], from);
        if (!ok && first == TAILNET_OK) first = TAILNET_ERR_FORGED;
        if (ok) ok = tn_node_judge(n, s, &pkts[at]);
        if (ok && run != 0 && begin + run == at) {
            run++;
            continue;
        }
        tn_node_hand_on(n, pkts + begin, run);
        run   = ok ? 1 : 0;
        begin = at;
    }
    tn_node_hand_on(n, pkts + begin, run);
    return first;
}

/* Opens what is in the list. */
static tailnet_result tn_node_open_run(tailnet_node *n, tailnet_buf *pkts, size_t count,
                                       const tn_origin *from)
{
    if (count == 0) return TAILNET_OK;
    tn_node_crypt(n, n->work, count);
    return tn_node_deliver(n, pkts, count, from);
}

/* Is there a place in the agenda? One sender has one at most for each kind of
 * message, and disco never has them all: nobody can keep the others out. */
static tn_agenda *tn_node_agenda_place(tailnet_node *n, const uint8_t *msg, size_t len,
                                       const tn_origin *from)
{
    tn_agenda *place = NULL;
    bool       disco = tn_disco_is(msg, len);
    unsigned   i, of_disco = 0;
    for (i = 0; i < TN_NODE_AGENDA; i++) {
        tn_agenda *a = &n->agenda[i];
        if (a->len == 0) {
            if (place == NULL) place = a;
            continue;
        }
        if (tn_disco_is(a->msg, a->len)) of_disco++;
        if (a->len == len && a->msg[0] == msg[0] && a->from.relay == from->relay &&
            (!TAILNET_DIRECT || from->relay ? memcmp(a->from.key, from->key, 32) == 0
                         : tn_addr_same(&a->from.addr, &from->addr)))
            return NULL;
    }
    return disco && of_disco >= TN_NODE_AGENDA_DISCO ? NULL : place;
}

/* Keeps a message for poll; loss when there is no place. */
static tailnet_result tn_node_remember(tailnet_node *n, const uint8_t *msg, size_t len,
                                       const tn_origin *from)
{
    tn_agenda *slot =
        len > sizeof n->agenda[0].msg ? NULL : tn_node_agenda_place(n, msg, len, from);
    if (slot != NULL) {
        slot->from = *from;
        slot->len  = (uint8_t)len;
        memcpy(slot->msg, msg, len);
        n->more = true;
        return TAILNET_OK;
    }
    n->stats.dropped_no_room++;
    return TAILNET_ERR_AGAIN;
}

/* A handshake message: kept for poll, if it is worth it. */
static tailnet_result tn_node_keep_handshake(tailnet_node *n, const uint8_t *msg, size_t len,
                                             const tn_origin *from)
{
    uint8_t         who[32];
    size_t          who_len = 32;
    tn_wg_admission a;

    if (!tn_wg_check_mac1(&n->wg, msg, len)) return TAILNET_ERR_FORGED;
    if (tn_wg_classify(msg, len) == TN_WG_RESPONSE) {
        tn_session *s = tn_node_by_index(n, tn_wg_receiver(msg, len));
        if (s == NULL || !tn_wg_is_pending(&s->wg, tn_wg_receiver(msg, len)))
            return TAILNET_ERR_FORGED;
    }
    if (!TAILNET_DIRECT || from->relay) tn_copy_key(who, from->key);
    else                                who_len = tn_wg_from_addr(who, &from->addr);
    a = tn_wg_admit(&n->wg, msg, len, who, who_len, n->rim.now_ms);
    if (a == TN_WG_ANSWER_COOKIE) {
        uint8_t reply[TN_WG_COOKIE_LEN], luck[56];
        if (!tn_rim_random(&n->rim, luck, sizeof luck)) return TAILNET_ERR_RANDOM;
        tn_wg_cookie_reply(&n->wg, reply, msg, len, who, who_len, luck, n->rim.now_ms);
        tn_wipe(luck, sizeof luck);
        tn_node_answer(n, from, reply, sizeof reply);
    }
    return a == TN_WG_ADMIT ? tn_node_remember(n, msg, len, from) : TAILNET_ERR_AGAIN;
}

/* ---- disco ---- */

/* The shared key of a peer if it is at hand, or NULL. */
static tn_disco_key *tn_node_disco_key(tailnet_node *n, uint16_t peer)
{
    tn_session *s = tn_node_session(n, peer);
    unsigned    i;
    if (s != NULL && s->disco.known) return &s->disco;
    for (i = 0; i < TN_NODE_DISCO_KEYS; i++)
        if (n->disco[i].known && n->disco[i].peer == peer) return &n->disco[i];
    return NULL;
}

/* The same, computed if need be: one X25519, only in poll. */
static tn_disco_key *tn_node_disco_make(tailnet_node *n, uint16_t peer)
{
    tn_disco_key *k = tn_node_disco_key(n, peer);
    tn_session   *s = tn_node_session(n, peer);
    if (k != NULL) return k;
    k        = s != NULL ? &s->disco : &n->disco[n->disco_turn++ % TN_NODE_DISCO_KEYS];
    k->peer  = peer;
    k->known = tn_cr_box_key(k->shared, n->disco_private, n->map.peers[peer].disco);
    return k->known ? k : NULL;
}

/* A message under way, of ours: begin, one tn_disco_wr_, end. */
typedef struct tn_node_disco_out {
    tn_wr   w;
    uint8_t text[TN_NODE_CALL_MOST];
} tn_node_disco_out;

static bool tn_node_disco_begin(tailnet_node *n, tn_node_disco_out *o)
{
    uint8_t nonce[24];
    if (!tn_rim_random(&n->rim, nonce, sizeof nonce)) return false;
    tn_disco_begin(&o->w, o->text, sizeof o->text, n->disco_public, nonce);
    return true;
}

static void tn_node_disco_end(tailnet_node *n, tn_node_disco_out *o, const tn_disco_key *k,
                              const tn_origin *to)
{
    size_t len = tn_disco_finish(&o->w, k->shared);
    if (len != 0) tn_node_answer(n, to, o->text, len);
}

static void tn_node_disco_ping(tailnet_node *n, const tn_disco_key *k, const uint8_t tx[12],
                               const tn_origin *to)
{
    tn_node_disco_out o;
    if (!tn_node_disco_begin(n, &o)) return;
    tn_disco_wr_ping(&o.w, tx, n->node_public, 0);
    tn_node_disco_end(n, &o, k, to);
}

static void tn_node_disco_pong(tailnet_node *n, const tn_disco_key *k, const uint8_t tx[12],
                               const tn_origin *from)
{
    tn_node_disco_out o;
    tailnet_addr      src = from->addr;
    if (!tn_node_disco_begin(n, &o)) return;
    if (!TAILNET_DIRECT || from->relay)
        tn_disco_relay_addr(&src, tn_relay_region_of(&n->relay, from->slot));
    tn_disco_wr_pong(&o.w, tx, &src);
    tn_node_disco_end(n, &o, k, from);
}

/* Peers that share a disco key: a ping by UDP says whose it is. */
static uint16_t tn_node_disco_whose(const tailnet_node *n, uint16_t peer, const tn_disco_msg *ping)
{
    uint16_t by_key = 0;
    if (ping->node_key != NULL && tn_map_by_key(&n->map, ping->node_key, &by_key) &&
        memcmp(n->map.peers[by_key].disco, n->map.peers[peer].disco, 32) == 0)
        return by_key;
    return peer;
}

static void tn_node_ping_in(tailnet_node *n, uint16_t peer, const tn_disco_key *k,
                            const tn_disco_msg *m, const tn_origin *from)
{
    tn_session *s;
    if (TAILNET_DIRECT && !from->relay) {
        if (m->node_key == NULL) return;    /* shorter than its answer: nobody's since 2021 */
        s = tn_node_session(n, tn_node_disco_whose(n, peer, m));
        if (s != NULL && (!tn_path_ping_in(&s->path, &from->addr, m->tx, n->rim.now_ms) ||
                          !tn_node_may_answer(n, s))) return;
    }
    tn_node_disco_pong(n, k, m->tx, from);
}

/* Which ping it answers is in its id, which only the pinged peer has read. */
static void tn_node_pong_in(tailnet_node *n, uint16_t peer, const tn_disco_key *k,
                            const tn_disco_msg *m, const tn_origin *from)
{
    tn_session *s;
    unsigned    i = 0, bits = 0;
    if (!TAILNET_DIRECT) return;            /* we send none                       */
    while (bits == 0 && (s = tn_node_each(n, &i)) != NULL) {
        tn_path_pong got;
        memset(&got, 0, sizeof got);
        bits = tn_path_pong_in(&s->path, m->tx, from->relay, n->rim.now_ms, &got);
        if ((bits & TN_PATH_CHANGED) != 0) n->events |= TAILNET_EVENT_PATHS;
        if ((bits & TN_PATH_OWES) != 0) tn_node_disco_pong(n, k, s->path.owed_tx, from);
        if ((bits & TN_PATH_MINE) == 0 || from->relay ||
            !tn_node_pinged(n, s->peer, TAILNET_PING_PATH)) continue;
        n->ping.direct   = true;
        n->ping.endpoint = got.to;
        tn_node_ping_took(n, got.latency_ms);
    }
    if (bits == 0 && from->relay && tn_node_pinged(n, peer, TAILNET_PING_PATH) &&
        n->ping.took_ms == 0 && tn_equal(m->tx, n->ping.tx, 12))
        tn_node_ping_took(n, n->rim.now_ms - n->ping.sent_ms);
}

/* A call-me-maybe. Without a session its addresses wait in a new one for the
 * handshake that is on its way, if that takes the place of none in use. */
static void tn_node_call_in(tailnet_node *n, uint16_t peer, const tn_disco_msg *m)
{
    tn_session *s = tn_node_session(n, peer), *oldest = tn_node_oldest(n);
    if (!tn_node_udp(n)) return;
    if (s == NULL && tn_map_usable(&n->map, &n->map.peers[peer]) &&
        (oldest->used_ms == 0 || (!tn_wg_can_send(&oldest->wg, n->rim.now_ms) &&
                                  oldest->used_ms + TN_NODE_BEGUN_MS < n->rim.now_ms)))
        s = tn_node_open_session(n, peer);
    if (s == NULL) return;
    if (tn_path_call_in(&s->path, m, n->rim.now_ms)) n->events |= TAILNET_EVENT_PATHS;
}

/* A disco packet from a peer whose key is at hand. */
static tailnet_result tn_node_disco_open(tailnet_node *n, uint16_t peer, const tn_disco_key *k,
                                         uint8_t *data, size_t len, const tn_origin *from)
{
    uint8_t       *plain = NULL;
    size_t         plain_len = 0;
    tn_disco_msg   msg;
    tailnet_result r;

    if (!tn_disco_open(k->shared, data, len, &plain, &plain_len)) return TAILNET_ERR_FORGED;
    r = tn_disco_parse(plain, plain_len, &msg);
    if (r != TAILNET_OK) return r;
    if (msg.type == TN_DISCO_PING) tn_node_ping_in(n, peer, k, &msg, from);
    if (msg.type == TN_DISCO_PONG) tn_node_pong_in(n, peer, k, &msg, from);
    if (msg.type == TN_DISCO_CALL && from->relay) tn_node_call_in(n, peer, &msg);
    return TAILNET_OK;
}

/* Whose disco packet is it? Only a key that the map names, and by relay only from
 * the very peer that has it. No cryptography before. */
static bool tn_node_disco_peer(const tailnet_node *n, const uint8_t *data, size_t len,
                               const tn_origin *from, uint16_t *peer)
{
    const uint8_t *sender = tn_disco_sender(data, len);
    if (sender == NULL || tn_is_zero(sender, 32)) return false;
    if (!from->relay) return tn_map_by_disco(&n->map, sender, peer);
    return tn_map_by_key(&n->map, from->key, peer) &&
           memcmp(n->map.peers[*peer].disco, sender, 32) == 0;
}

static tailnet_result tn_node_disco(tailnet_node *n, uint8_t *data, size_t len,
                                    const tn_origin *from)
{
    tn_disco_key *k;
    uint16_t      peer = 0;

    if (!tn_node_disco_peer(n, data, len, from, &peer)) return TAILNET_ERR_FORGED;
    k = tn_node_disco_key(n, peer);
    if (k != NULL) return tn_node_disco_open(n, peer, k, data, len, from);
    if (!tn_wg_take(&n->disco_full_ms, n->rim.now_ms, n->wg.spacing_ms, n->wg.burst)) {
        n->stats.dropped_no_room++;
        return TAILNET_ERR_AGAIN;
    }
    return tn_node_remember(n, data, len, from);
}

/* ---- datagrams, by what they are ---- */

/* Data collects in the list; all else is treated at once. */
static tailnet_result tn_node_take_in(tailnet_node *n, tailnet_buf *pkts, size_t i, size_t *count,
                                      const tn_origin *from)
{
    tailnet_buf *pkt  = &pkts[i];
    uint8_t     *data = pkt->base + pkt->off;
    tn_session  *s    = tn_node_by_index(n, tn_wg_receiver(data, pkt->len));

    switch (tn_wg_classify(data, pkt->len)) {
    case TN_WG_DATA:
        if (s == NULL || tn_wg_open_begin(&s->wg, data, pkt->len, n->rim.now_ms,
                                          &n->work[*count]) != TN_WG_OK) {
            n->stats.dropped_forged++;
            return TAILNET_ERR_FORGED;
        }
        n->pieces[*count].at      = (uint32_t)i;
        n->pieces[*count].session = tn_node_slot(n, s);
        *count += 1;
        return TAILNET_OK;
    case TN_WG_INITIATION:
    case TN_WG_RESPONSE:
        return tn_node_keep_handshake(n, data, pkt->len, from);
    case TN_WG_COOKIE:
        if (s == NULL || tn_wg_consume_cookie(&s->wg, tn_map_peer_at(&n->map, s->peer)->key, data,
                                              pkt->len, n->rim.now_ms) != TN_WG_OK)
            return TAILNET_ERR_FORGED;
        return TAILNET_OK;
    case TN_WG_OTHER:
        break;
    }
    n->stats.dropped_forged++;
    return TAILNET_ERR_MALFORMED;
}

/* What the measuring of the network has to know. */
static void tn_node_net_world(const tailnet_node *n, tn_net_world *x)
{
    const tn_session *s;
    unsigned          i = 0;
    memset(x, 0, sizeof *x);
    x->map      = &n->map;
    x->home     = tn_relay_wanted(&n->relay);
    x->heard_ms = tn_relay_heard(&n->relay, x->home);
    x->silent   = !tn_node_udp(n);
    if (n->desc.prefs.metered) return;
    while ((s = tn_node_each(n, &i)) != NULL)
        if (s->used_ms + TN_NODE_ACTIVE_MS > x->active_ms)
            x->active_ms = s->used_ms + TN_NODE_ACTIVE_MS;
}

/* The reports for our own questions: STUN, and the gateway's answers. */
static bool tn_node_is_report(tailnet_node *n, const uint8_t *data, size_t len, bool stun,
                              const tailnet_addr *from)
{
    bool ours = false;
#if TAILNET_PORTMAP
    ours = tn_pmp_input(&n->pmp, data, len, from, n->rim.now_ms);
#else
    (void)from;
#endif
    if (stun && !ours) ours = tn_net_input(&n->net, data, len, n->rim.now_ms);
    if (ours) n->more = true;
    return ours || stun;
}

/* One datagram, by what it is (6.4 of the reference's order: magicsock.go). */
static tailnet_result tn_node_sort(tailnet_node *n, tailnet_buf *pkts, size_t i, size_t *listed,
                                   const tn_origin *from)
{
    uint8_t       *data = pkts[i].base + pkts[i].off;
    size_t         len  = pkts[i].len;
    tn_disco_class is   = tn_disco_is(data, len) ? TN_DISCO_IS_DISCO : TN_DISCO_IS_WG;

    if (TAILNET_DIRECT && !from->relay) {
        is = tn_disco_classify(data, len);
        if (tn_node_is_report(n, data, len, is == TN_DISCO_IS_STUN, &from->addr)) return TAILNET_OK;
    }
    return is == TN_DISCO_IS_DISCO ? tn_node_disco(n, data, len, from)
                                   : tn_node_take_in(n, pkts, i, listed, from);
}

/* A run of datagrams from one place. */
static tailnet_result tn_node_input(tailnet_node *n, tailnet_buf *pkts, size_t count,
                                    const tn_origin *from)
{
    tailnet_result first = TAILNET_OK, r;
    size_t         i, listed = 0;

    for (i = 0; i < count; i++) {
        r = tn_node_sort(n, pkts, i, &listed, from);
        if (first == TAILNET_OK) first = r;
        if (listed == TAILNET_BATCH) {
            r      = tn_node_open_run(n, pkts, listed, from);
            listed = 0;
            if (first == TAILNET_OK) first = r;
        }
    }
    r = tn_node_open_run(n, pkts, listed, from);
    return first == TAILNET_OK ? r : first;
}

static tailnet_result tn_node_udp_input(tailnet_node *n, const tailnet_addr *addr,
                                        tailnet_buf *pkts, size_t count)
{
    tn_origin      from;
    tailnet_result r;
    n->stats.udp_in += count;
    if (!tn_node_flows(n) || !tn_node_udp(n)) return TAILNET_ERR_AGAIN;
    memset(&from, 0, sizeof from);
    from.addr = *addr;
    r         = tn_node_input(n, pkts, count, &from);
    tn_node_flush(n);
    return r;
}

/* ---- public-key work, one piece per poll ---- */

/* An initiation: who is it, is it true, and the answer. */
static void tn_node_respond(tailnet_node *n, tn_agenda *a)
{
    uint8_t      out[TN_WG_RESPONSE_LEN], eph[32];
    tn_wg_hello  hello;
    tn_session  *s;
    tailnet_addr unused;
    uint16_t     peer = 0;
    uint32_t     index;

    if (tn_wg_open_initiation(&n->wg, a->msg, a->len, &hello) != TN_WG_OK) return;
    if (a->from.relay && !tn_equal(hello.peer, a->from.key, 32)) {
        tn_wipe(&hello, sizeof hello);
        return;
    }
    if (!tn_map_by_key(&n->map, hello.peer, &peer) ||
        !tn_map_usable(&n->map, tn_map_peer_at(&n->map, peer))) {
        if (n->map.peers_missing)
            (void)tn_map_want_key(&n->map, hello.peer, false, n->rim.now_ms);
        tn_wipe(&hello, sizeof hello);
        return;
    }
    if (tn_wg_prove_initiation(&n->wg, &hello, n->seen[peer]) == TN_WG_OK &&
        tn_rim_random(&n->rim, eph, sizeof eph)) {
        s     = tn_node_open_session(n, peer);
        index = tn_node_new_index(n, s);
        if (index != 0 && tn_wg_respond(&s->wg, &hello, out, eph, index, &n->seen[peer],
                                        n->rim.now_ms) == TN_WG_OK) {
            s->used_ms = n->rim.now_ms + 1;
            if (a->from.relay) tn_relay_learn(&n->relay, tn_node_slot(n, s), a->from.slot);
            tn_node_answer(n, &a->from, out, sizeof out);
            if (tn_node_udp(n))             /* where it came from; but it is a use of the path */
                (void)tn_path_use(&s->path, n->rim.now_ms, &unused);
        }
        tn_wipe(eph, sizeof eph);
    }
    tn_wipe(&hello, sizeof hello);
}

static void tn_node_take_response(tailnet_node *n, tn_agenda *a)
{
    tn_session *s    = tn_node_by_index(n, tn_wg_receiver(a->msg, a->len));
    unsigned    news = 0;
    if (s == NULL) return;
    if (tn_wg_consume_response(&n->wg, &s->wg, a->msg, a->len, n->rim.now_ms, &news) != TN_WG_OK)
        return;
    if (a->from.relay) tn_relay_learn(&n->relay, tn_node_slot(n, s), a->from.slot);
    tn_node_session_news(n, s, news);
}

/* Starts a handshake. */
static void tn_node_initiate(tailnet_node *n, tn_session *s)
{
    const tn_map_peer *p = tn_map_peer_at(&n->map, s->peer);
    uint8_t            out[TN_WG_INITIATION_LEN], eph[32], stamp[TN_WG_STAMP_LEN];
    uint32_t           index = tn_node_new_index(n, s);
    uint64_t           unix_ms = tn_rim_unix_ms(&n->rim);

    if (index == 0 || p == NULL || !tn_rim_random(&n->rim, eph, sizeof eph)) return;
    if (unix_ms == 0) unix_ms = tn_rim_unix_floor_ms(&n->rim);
    if (tn_wg_stamp(&n->wg, unix_ms, stamp)) {
        n->keys.stamp_unix_ms = n->wg.stamp_saved_ms;
        n->events |= TAILNET_EVENT_SAVE;
    }
    if (tn_wg_initiate(&n->wg, &s->wg, out, p->key, stamp, eph, index, n->rim.now_ms) == TN_WG_OK)
        tn_node_send_bytes(n, s, out, sizeof out);
    tn_wipe(eph, sizeof eph);
}

/* A disco packet whose shared key has to be computed first. */
static void tn_node_disco_later(tailnet_node *n, tn_agenda *a)
{
    uint16_t      peer = 0;
    tn_disco_key *k;
    if (!tn_node_disco_peer(n, a->msg, a->len, &a->from, &peer)) return;
    k = tn_node_disco_make(n, peer);
    if (k != NULL) (void)tn_node_disco_open(n, peer, k, a->msg, a->len, &a->from);
}

/* A message that came, each place of the agenda in its turn. True: there was one. */
static bool tn_node_work_agenda(tailnet_node *n)
{
    unsigned i;
    for (i = 0; i < TN_NODE_AGENDA; i++) {
        tn_agenda *a = &n->agenda[(n->agenda_turn + i) % TN_NODE_AGENDA];
        if (a->len == 0) continue;
        n->agenda_turn = (uint8_t)((n->agenda_turn + i + 1) % TN_NODE_AGENDA);
        if (tn_node_flows(n)) {
            if (tn_disco_is(a->msg, a->len)) tn_node_disco_later(n, a);
            else if (tn_wg_classify(a->msg, a->len) == TN_WG_INITIATION) tn_node_respond(n, a);
            else tn_node_take_response(n, a);
        }
        memset(a, 0, sizeof *a);
        return true;
    }
    return false;
}

/* Is there something to say to a peer whose disco key is not computed yet? */
static bool tn_node_wants_disco_key(const tailnet_node *n, const tn_session *s)
{
    return !s->disco.known && !s->path.plain && tn_node_udp(n) &&
           tn_path_deadline(&s->path, n->rim.now_ms) <= n->rim.now_ms;
}

/* Timers of all sessions, up to the first that wants public-key work, which is done. */
static bool tn_node_work_sessions(tailnet_node *n)
{
    unsigned i;
    for (i = 0; i < n->desc.max_sessions; i++) {
        tn_session *s = &n->sessions[(n->turn + i) % n->desc.max_sessions];
        unsigned    news;
        if (s->used_ms == 0) continue;
        news = tn_wg_timers(&s->wg, n->rim.now_ms);
        tn_node_session_news(n, s, news & ~(unsigned)TN_WG_WANT_HANDSHAKE);
        if (s->used_ms == 0 || !tn_node_flows(n)) continue;
        if ((news & TN_WG_WANT_HANDSHAKE) != 0)   tn_node_initiate(n, s);
        else if (!tn_node_wants_disco_key(n, s)) continue;
        else if (tn_node_disco_make(n, s->peer) == NULL) s->path.plain = true;
        n->turn = (uint16_t)((n->turn + i + 1) % n->desc.max_sessions);
        return true;
    }
    return false;
}

/* What came and what we begin go first by turns: a flood of the one does not stop
 * the other. True: there may be more. */
static bool tn_node_work(tailnet_node *n)
{
    n->own_turn = !n->own_turn;
    if (n->own_turn) return tn_node_work_sessions(n) || tn_node_work_agenda(n);
    return tn_node_work_agenda(n) || tn_node_work_sessions(n);
}

/* ---- relays ---- */

static uint32_t tn_node_luck(tailnet_node *n)
{
    return (uint32_t)tn_rim_between(&n->rim, 0, UINT32_MAX);
}

static int tn_node_relay_slot(const tailnet_node *n, tailnet_link link)
{
    unsigned i;
    for (i = 0; i < n->relay_slots; i++)
        if (n->relays[i].link == link && link != 0) return (int)i;
    return -1;
}

/* A packet that a relay vouches for. */
static void tn_node_relay_packet(tailnet_node *n, unsigned slot, const tn_derp_event *ev)
{
    tn_origin   from;
    tailnet_buf pkt;
    uint16_t    peer = 0;

    n->stats.relay_in++;
    if (!tn_node_flows(n)) return;
    if (!tn_map_by_key(&n->map, ev->key, &peer)) {
        if (n->map.peers_missing && (tn_disco_is(ev->data, ev->len) ||
                                     tn_wg_classify(ev->data, ev->len) == TN_WG_INITIATION))
            (void)tn_map_want_key(&n->map, ev->key, false, n->rim.now_ms);
        n->stats.dropped_no_route++;
        return;
    }
    memset(&from, 0, sizeof from);
    from.relay = true;
    from.slot  = (uint8_t)slot;
    tn_copy_key(from.key, ev->key);
    tn_node_buf(&pkt, ev->data, ev->len);
    (void)tn_node_input(n, &pkt, 1, &from);
}

/* A relay link without an engine of ours works in memory of the node. */
static void tn_node_lend(tailnet_node *n, unsigned slot)
{
    tailnet_link link = n->relays[slot].link;
    uint8_t     *in   = n->streams + (size_t)slot * 2u * TAILNET_TLS_OUT;
    if (tn_link_has_engine(&n->links, link)) return;
    tn_link_lend(&n->links, link, in, TAILNET_TLS_OUT, in + TAILNET_TLS_OUT, TAILNET_TLS_OUT);
}

/* Reads what a relay link has. Symmetric work only. */
static void tn_node_relay_read(tailnet_node *n, unsigned slot)
{
    tailnet_link link = n->relays[slot].link;
    for (;;) {                              /* ends with the bytes that are there */
        size_t        len = 0, left;
        uint8_t      *at  = tn_link_read(&n->links, link, &len);
        tn_derp_event ev;
        tn_relay_news news;
        uint16_t      peer = 0;
        if (at == NULL || len == 0) return;
        left = len;
        while ((news = tn_relay_next(&n->relay, slot, &at, &left, n->rim.now_ms, &ev)) !=
               TN_RELAY_QUIET) {
            if (news == TN_RELAY_PACKET) tn_node_relay_packet(n, slot, &ev);
            if (news == TN_RELAY_UP) {
                n->events |= TAILNET_EVENT_PATHS;
                n->more = true;             /* for what waited for it */
            }
            if (news == TN_RELAY_GONE && tn_map_by_key(&n->map, ev.key, &peer) &&
                n->map.peers[peer].session != TN_NODE_NO_SLOT)
                tn_relay_forget(&n->relay, n->map.peers[peer].session, slot);
        }
        tn_link_ack(&n->links, link, len);
    }
}

/* Dials the relay that the wish names. */
static bool tn_node_dial_relay(tailnet_node *n, const tn_relay_wish *wish)
{
    const tn_map_region *g = tn_map_region_node(&n->map, wish->region, wish->node);
    tn_node_relay       *r = &n->relays[wish->slot];
    tailnet_dial         dial;
    tn_wr                w;
    tailnet_result       result;

    if (n->ctl.crowded) {                   /* control is first: it waits for an engine */
        tn_relay_later(&n->relay, wish->slot, n->rim.now_ms);
        return true;
    }
    if (g != NULL && g->port == 0) {        /* it only answers STUN: the next */
        tn_relay_closed(&n->relay, wish->slot, n->rim.now_ms, tn_node_luck(n));
        return true;
    }
    if (g == NULL) {
        tn_relay_no_node(&n->relay, wish->slot, n->rim.now_ms, tn_node_luck(n));
        return true;
    }
    memset(&dial, 0, sizeof dial);
    dial.host = tn_map_region_host(g);
    dial.port = g->port;
    dial.tls  = true;
    tn_map_region_addr(g, 4, &dial.addr4);
    tn_map_region_addr(g, 6, &dial.addr6);
    dial.certificate = tn_map_region_name(g);
    if (tn_map_region_pin(g) != NULL) {
        tn_wr_over(&w, r->certificate, sizeof r->certificate - 1);
        tn_wr_text(&w, "sha256-raw:");
        tn_wr_hex(&w, tn_map_region_pin(g), 32);
        r->certificate[tn_wr_len(&w)] = '\0';
        dial.certificate              = r->certificate;
    }
    tn_cr_mac(r->check, sizeof r->check, "region", 6, g, sizeof *g);
    result = tn_link_open(&n->links, &dial, TN_LINK_FOR_RELAY, &r->link);
    if (result == TAILNET_OK) {
        tn_node_lend(n, wish->slot);
        return true;
    }
    r->link = 0;
    if (result == TAILNET_ERR_AGAIN) tn_relay_later(&n->relay, wish->slot, n->rim.now_ms);
    else tn_relay_closed(&n->relay, wish->slot, n->rim.now_ms, tn_node_luck(n));
    return true;
}

static void tn_node_close_relay(tailnet_node *n, unsigned slot, tailnet_result why)
{
    tn_node_relay *r = &n->relays[slot];
    if (r->link != 0) tn_link_close(&n->links, r->link, why);
    r->link  = 0;
    r->dirty = false;
    tn_relay_closed(&n->relay, slot, n->rim.now_ms, tn_node_luck(n));
    n->events |= TAILNET_EVENT_PATHS;
}

/* Requests, login, notes, pongs, the letter that waited for the link. */
static void tn_node_relay_write(tailnet_node *n, unsigned slot)
{
    tn_node_relay       *r = &n->relays[slot];
    const tn_map_region *g;
    tn_relay_hello       hello;
    uint8_t              nonce[24];
    unsigned             turns;

    for (turns = 0; turns < 4 && tn_relay_has_output(&n->relay, slot); turns++) {
        size_t   room = 0;
        uint8_t *at   = tn_link_reserve(&n->links, r->link, &room);
        tn_wr    w;
        g = tn_map_region_node(&n->map, tn_relay_region_of(&n->relay, slot),
                               tn_relay_node_of(&n->relay, slot));
        if (g == NULL) g = tn_map_region_by_id(&n->map, tn_relay_region_of(&n->relay, slot));
        if (!tn_rim_random(&n->rim, nonce, sizeof nonce)) return;
        if (at == NULL || g == NULL) room = 0;   /* it notes then that it waits */
        memset(&hello, 0, sizeof hello);
        hello.host.name    = g == NULL ? "" : tn_map_region_host(g);
        hello.host.port    = g == NULL ? 0 : g->port;
        hello.host.usual   = 443;
        hello.node_private = n->keys.node;
        hello.node_public  = n->node_public;
        hello.nonce        = nonce;
        tn_wr_over(&w, room == 0 ? NULL : at, room);
        tn_relay_write(&n->relay, slot, &hello, &w, n->rim.now_ms);
        if (tn_wr_len(&w) == 0) return;
        tn_link_commit(&n->links, r->link, tn_wr_len(&w));
        tn_link_flush(&n->links, r->link);
        n->stats.relay_out++;
    }
}

/* Which region shall be our home: what the caller says, else the one measured as
 * nearest (0: none was), else the map's best. */
static void tn_node_choose_home(tailnet_node *n, uint16_t measured)
{
    tn_relay_choice      c;
    const tn_map_region *g;
    size_t               i;
    tn_relay_choice_begin(&c, &n->relay, n->desc.prefs.home_region, measured,
                          n->rim.now_ms);
    for (i = 0; (g = tn_map_region_at(&n->map, i)) != NULL; i++)
        tn_relay_choice_add(&c, g->id, (g->flags & TN_MAP_REGION_NOT_HOME) == 0,
                            tn_map_region_score(&n->map, g->id));
    tn_relay_choose(&n->relay, &c, n->rim.now_ms);
    tn_map_home(&n->map, tn_relay_report(&n->relay));
}

/* The relay map changed: connections to what is no longer so are ended. */
static void tn_node_regions_changed(tailnet_node *n)
{
    unsigned i;
    for (i = 0; i < n->relay_slots; i++) {
        uint16_t             id = tn_relay_region_of(&n->relay, i);
        const tn_map_region *g  = tn_map_region_by_id(&n->map, id);
        uint8_t              check[8];
        if (id == 0 || n->relays[i].link == 0) continue;
        memset(check, 0, sizeof check);
        if (g != NULL) tn_cr_mac(check, sizeof check, "region", 6, g, sizeof *g);
        if (memcmp(check, n->relays[i].check, sizeof check) != 0)
            tn_relay_region_changed(&n->relay, id, n->rim.now_ms);
    }
    if (TAILNET_DIRECT) tn_net_trigger(&n->net, true);
    tn_node_choose_home(n, 0);
}

static void tn_node_relay_news(tailnet_node *n, const tn_link_news *news)
{
    int slot = tn_node_relay_slot(n, news->link);
    if (slot < 0) {
        if ((news->bits & TN_LINK_GONE) == 0)
            tn_link_close(&n->links, news->link, TAILNET_ERR_STALE);
        return;
    }
    if ((news->bits & TN_LINK_OPENED) != 0)
        tn_relay_opened(&n->relay, (unsigned)slot, tn_link_meta_key(&n->links, news->link),
                        n->rim.now_ms);
    if ((news->bits & TN_LINK_READABLE) != 0) tn_node_relay_read(n, (unsigned)slot);
    if ((news->bits & TN_LINK_GONE) != 0) {
        if (TAILNET_DIRECT &&
            tn_relay_is_open(&n->relay, tn_relay_region_of(&n->relay, (unsigned)slot)))
            tn_net_trigger(&n->net, false); /* is it the relay, or the network? */
        if (news->why == TAILNET_ERR_TLS) tn_node_trouble(n, news->why, "relay", news->detail);
        n->relays[slot].link = 0;
        tn_node_close_relay(n, (unsigned)slot, news->why);
    }
}

/* ---- what is said of a peer ---- */

/* A peer of the map in the public form; index TN_MAP_NONE: not kept (yet). */
static void tn_node_describe(const tailnet_node *n, const tn_map_peer *p, uint16_t index,
                             tailnet_peer *out)
{
    const tn_session *s = NULL;
    uint64_t          up;

    memset(out, 0, sizeof *out);
    tn_map_addr(p, 4, &out->ip4);
    tn_map_addr(p, 6, &out->ip6);
    out->name   = p->name;
    out->domain = tn_map_domain(&n->map, p);
    out->id     = p->id;
    out->user   = p->user;
    tn_copy_key(out->key, p->key);
    out->flags              = p->flags & 0xffu;
    out->region             = p->region;
    out->key_expiry_unix_ms = p->expiry_ms;
    out->handshake_age_s    = UINT32_MAX;
    if (index != TN_MAP_NONE && n->map.peers[index].session != TN_NODE_NO_SLOT)
        s = &n->sessions[n->map.peers[index].session];
    if (s == NULL) return;
    up = tn_wg_up_ms(&s->wg);
    if (up != TN_NEVER) {
        out->handshake_age_s = (uint32_t)((n->rim.now_ms - up) / 1000u);
        out->path            = TAILNET_PATH_RELAY;
    }
    out->latency_ms = s->relay_ms;
    if (tn_node_is_direct(s, &out->endpoint)) {
        out->latency_ms = s->path.latency_ms;
        out->path       = TAILNET_PATH_DIRECT;
    }
    out->rx_bytes   = s->wg.rx_bytes;
    out->tx_bytes   = s->wg.tx_bytes;
}

/* ---- the map ---- */

/* What hangs on one peer that changed or goes. */
static void tn_node_peer_changed(tailnet_node *n, uint16_t index, unsigned kind)
{
    tn_session *s = tn_node_session(n, index);
    if ((kind & (TN_MAP_GOING | TN_MAP_REKEYED)) != 0) tn_flt_forget(&n->flt, index);
    if ((kind & (TN_MAP_GOING | TN_MAP_REKEYED | TN_MAP_DISCO)) != 0) n->seen[index] = 0;
    if ((kind & (TN_MAP_GOING | TN_MAP_REKEYED | TN_MAP_DISCO | TN_MAP_EXPIRED)) != 0) {
        if (s != NULL) tn_node_end_session(n, s);
        tn_node_disco_forget(n, index);
        tn_node_unstage(n, index);
        if (n->ping.until_ms != 0 && n->ping.peer == index) n->ping.until_ms = n->rim.now_ms;
    } else if (s != NULL && (kind & TN_MAP_MOVED) != 0) {
        tn_node_path_places(n, s);
    }
}

/* The peer just parsed, as the caller's keep_peer sees it. */
static void tn_node_ask_keep(tailnet_node *n)
{
    tailnet_peer out;
    tn_node_describe(n, &n->map.work.node.peer, TN_MAP_NONE, &out);
    tn_map_keep(&n->map, tn_rim_keep_peer(&n->rim, &out));
}

static void tn_node_fetch_changes(tailnet_node *n)
{
    uint16_t index = 0;
    uint8_t  kind  = 0;
    while (tn_map_change(&n->map, &n->flt, &index, &kind, n->rim.now_ms)) {
        if ((kind & TN_MAP_ASK) != 0) tn_node_ask_keep(n);
        else                          tn_node_peer_changed(n, index, kind);
    }
}

/* The server-adjusted time of day, 0 while unknown. */
static uint64_t tn_node_unix_ms(tailnet_node *n)
{
    uint64_t unix_ms = tn_rim_unix_ms(&n->rim);
    if (unix_ms == 0) {                     /* no clock of our own: the server's goes on */
        return n->server_unix_ms == 0 ? 0
                                      : n->server_unix_ms + (n->rim.now_ms - n->server_at_ms);
    }
    if (n->server_unix_ms != 0) {
        uint64_t theirs = n->server_unix_ms + (n->rim.now_ms - n->server_at_ms);
        uint64_t apart  = theirs > unix_ms ? theirs - unix_ms : unix_ms - theirs;
        if (apart > 60000u && theirs > TN_NODE_SANE_UNIX_MS) return theirs;
    }
    return unix_ms;
}

/* Whose key is past its date? */
static void tn_node_expire(tailnet_node *n)
{
    uint64_t unix_ms = tn_node_unix_ms(n), next;
    if (n->rim.now_ms < n->expiry_at_ms) return;
    n->expiry_at_ms = tn_time_add(n->rim.now_ms, TN_NODE_CLOCK_MS);
    if (unix_ms < TN_NODE_SANE_UNIX_MS) return;
    while (tn_map_expire(&n->map, unix_ms)) tn_node_fetch_changes(n);
    next            = tn_map_expiry(&n->map);
    n->expiry_at_ms = next == TN_NEVER ? TN_NEVER
                      : next <= unix_ms ? n->rim.now_ms + 1000u
                                        : tn_time_add(n->rim.now_ms, next - unix_ms);
}

static bool tn_node_self_expired(tailnet_node *n)
{
    uint64_t unix_ms = tn_node_unix_ms(n);
    if (unix_ms < TN_NODE_SANE_UNIX_MS) unix_ms = 0;
    return n->map.has_self && tn_map_self_expired(&n->map, unix_ms);
}

/* Which destinations are ours. */
static void tn_node_set_local(tailnet_node *n)
{
    const tailnet_addr *ip4 = &n->map.self.ip4, *ip6 = &n->map.self.ip6;
    if (!n->map.has_self) return;
    tn_flt_local(&n->flt, ip4->family != 0 ? ip4 : NULL, ip6->family != 0 ? ip6 : NULL,
                 n->desc.prefs.routes, n->desc.prefs.route_count);
}

/* The map told something new of itself or of us. */
static void tn_node_map_events(tailnet_node *n)
{
    uint32_t    events = tn_map_events(&n->map);
    tn_session *s;
    unsigned    i = 0;

    if ((events & TAILNET_EVENT_SELF) != 0) {
        while ((s = tn_node_each(n, &i)) != NULL) tn_node_path_flags(n, s);
        tn_node_set_local(n);
        n->expiry_at_ms = 0;
    }
    if ((events & TN_MAP_EVENT_REGIONS) != 0) tn_node_regions_changed(n);
    if ((events & TAILNET_EVENT_PEERS) != 0) n->expiry_at_ms = 0;
    n->events |= events & 0xffffu;
}

/* Packets whose peer was not in the directory: it may be there by now. */
static void tn_node_restage(tailnet_node *n)
{
    unsigned i;
    for (i = 0; i < n->desc.max_staged; i++) {
        tn_staged   *st   = &n->staged[i];
        uint8_t     *data = n->staged_bytes + (size_t)i * n->staged_size + TAILNET_HEADROOM;
        tn_ip_packet p;
        uint16_t     peer = 0;
        if (st->len == 0) continue;
        if (n->rim.now_ms >= st->until_ms) tn_node_free_staged(n, i);
        if (st->len == 0 || st->peer != TN_MAP_NONE || !tn_node_flows(n)) continue;
        if (!tn_ip_read(&p, data, st->len) || !tn_map_by_ip(&n->map, &p.flow.dst, &peer)) continue;
        if (!tn_node_may_out(n, peer, data, &p)) {  /* what admit_out could not do yet */
            tn_node_free_staged(n, i);
            continue;
        }
        st->peer = peer;
        tn_wg_want(&tn_node_open_session(n, peer)->wg, n->rim.now_ms);
    }
}

/* ---- control ---- */

/* What was measured of the network. */
static void tn_node_netinfo(const tailnet_node *n, tn_ctl_wish *wish)
{
    unsigned i, k;
    wish->udp    = n->net.udp;
    wish->ip6    = n->net.ip6;
    wish->varies = tn_net_varies(&n->net);
#if TAILNET_PORTMAP
    wish->port_map = tn_pmp_services(&n->pmp);
    if (n->pmp.mapped) wish->port_map |= TN_CTL_MAPPED;
#endif
    for (i = k = 0; i < n->net.count && k < TN_CTL_LATENCIES; i++) {
        const tn_net_region *g = &n->net.regions[i];
        if (g->ms[0] == 0 && g->ms[1] == 0) continue;
        wish->latency[k].region = g->id;
        memcpy(wish->latency[k++].ms, g->ms, sizeof g->ms);
    }
}

static void tn_node_world(tailnet_node *n, tn_ctl_world *x)
{
    memset(x, 0, sizeof *x);
    x->rim              = &n->rim;
    x->links            = &n->links;
    x->map              = &n->map;
    x->flt              = &n->flt;
    x->keys             = &n->keys;
    x->node_public      = n->node_public;
    x->desc             = &n->desc;
    x->tls_free         = n->desc.tls_by_caller || n->desc.max_tls > 1;
    x->wish.home_region = tn_relay_report(&n->relay);
    tn_copy_key(x->wish.disco, n->disco_public);
    if (!tn_node_udp(n)) return;
    tn_node_netinfo(n, &x->wish);
    x->wish.endpoint_count = (uint8_t)tn_net_list(&n->net, x->wish.endpoint,
                                                  x->wish.endpoint_type, TAILNET_MAX_CANDIDATES);
}

/* Our node key is another one: no session may go on under the old one, and the
 * relays have to see the new one. */
static void tn_node_rekey(tailnet_node *n)
{
    tn_cr_x25519_base(n->node_public, n->keys.node);
    tn_wg_device_key(&n->wg, n->keys.node);
    tn_node_end_sessions(n);
    tn_relay_run(&n->relay, false, n->rim.now_ms);
    n->relay_again = true;
}

/* Signed out: nothing of the old life may stay. */
static void tn_node_forget(tailnet_node *n)
{
    tn_map_limits lim;
    tn_node_end_sessions(n);
    tn_node_map_limits(&n->desc, &lim);
    tn_map_init(&n->map, &lim, n->map_memory);
    tn_map_prefs(&n->map, n->desc.prefs.exit_node, n->desc.prefs.accept_routes);
    tn_map_asks(&n->map, tn_rim_asks_keep(&n->rim));
    tn_flt_init(&n->flt, n->ranges, n->desc.max_ranges, n->flows, n->desc.max_flows);
    tn_flt_shields(&n->flt, n->desc.prefs.shields_up);
    memset(n->seen, 0, n->desc.max_peers * sizeof n->seen[0]);
    n->want_down = n->more = true;
    n->mapped              = false;
    n->events |= TAILNET_EVENT_SELF | TAILNET_EVENT_PEERS | TAILNET_EVENT_ROUTES |
                 TAILNET_EVENT_DNS;
}

static void tn_node_control_news(tailnet_node *n)
{
    uint32_t news = tn_ctl_fetch_news(&n->ctl);
    if ((news & TN_CTL_NEWS_KEY) != 0) tn_node_rekey(n);
    if ((news & TN_CTL_NEWS_SAVE) != 0) n->events |= TAILNET_EVENT_SAVE;
    if ((news & TN_CTL_NEWS_LOGIN) != 0) n->events |= TAILNET_EVENT_LOGIN;
    if ((news & TN_CTL_NEWS_TOLD) != 0)
        tn_relay_told(&n->relay, n->ctl.sent.home_region, n->rim.now_ms);
    if ((news & TN_CTL_NEWS_OUT) != 0) tn_node_forget(n);
    if ((news & TN_CTL_NEWS_PROBLEM) != 0) {
        tn_node_trouble(n, n->ctl.why, n->ctl.why_section, (int32_t)n->ctl.detail);
        if (n->ctl.text_len != 0) n->problem.text = n->ctl.text;
    }
    if (n->key_lent && (!n->ctl.want_login || n->ctl.refused)) {
        n->key_lent      = false;           /* from now on its owner may wipe it  */
        n->desc.auth_key = NULL;
    }
    if (tn_ctl_is_up(&n->ctl)) n->mapped = true;
    if (n->map.control_time_ms != 0 && (news & TN_CTL_NEWS_STATE) != 0) {
        n->server_unix_ms = n->map.control_time_ms;
        n->server_at_ms   = n->rim.now_ms;
        n->expiry_at_ms   = 0;
    }
}

/* Turns control until it is quiet, or has had its share of this poll. */
static void tn_node_turn_control(tailnet_node *n)
{
    tn_ctl_world x;
    tn_ctl_turn  turn = TN_CTL_MORE;
    unsigned     steps;
    bool         own  = false;

    tn_node_world(n, &x);
    if (n->network_down) tn_ctl_silence(&n->ctl, &x);
    if (tn_map_wants(&n->map, &own) != 0) tn_ctl_reread(&n->ctl, own, n->rim.now_ms);
    for (steps = 0; steps < TN_NODE_STEPS && turn != TN_CTL_QUIET; steps++) {
        turn = tn_ctl_step(&n->ctl, &x);
        if (turn == TN_CTL_CHANGE) tn_node_fetch_changes(n);
        if (n->ctl.news != 0) tn_node_control_news(n);
    }
    if (turn != TN_CTL_QUIET) n->more = true;
}

/* Where we stand, from what control and map say. */
static tailnet_state tn_node_standing(tailnet_node *n)
{
    if (n->rim.random_failed || n->ctl.refused) return TAILNET_STATE_FAILED;
    if (!n->up) return TAILNET_STATE_DOWN;
    if (n->mapped && n->map.has_self && !tn_node_self_expired(n))
        return n->map.self.authorized ? TAILNET_STATE_RUNNING : TAILNET_STATE_NEEDS_APPROVAL;
    if (n->ctl.url_len != 0 || (n->mapped && tn_node_self_expired(n)))
        return TAILNET_STATE_NEEDS_LOGIN;
    return TAILNET_STATE_CONNECTING;
}

static TN_NOINLINE void tn_node_settle(tailnet_node *n)
{
    tailnet_state was = n->state;
    tn_ctl_world  x;

    n->state = tn_node_standing(n);
    if (n->state != was) {
        n->events |= TAILNET_EVENT_STATE;
        tn_rim_log(&n->rim, 2, 100u + (uint32_t)n->state, "state");
        n->more = true;
        if (n->state == TAILNET_STATE_FAILED && n->rim.random_failed)
            tn_node_trouble(n, TAILNET_ERR_RANDOM, "random", 0);
    }
    if (n->state == TAILNET_STATE_FAILED) n->mapped = false;    /* a new start needs a new map */
    if (n->rim.random_failed && n->up) n->want_down = n->more = true;
    if (n->state != TAILNET_STATE_RUNNING && was == TAILNET_STATE_RUNNING) tn_node_end_sessions(n);
    if (!n->mapped || !tn_node_self_expired(n)) {
        n->expired_seen = false;
    } else if (!n->expired_seen && tn_ctl_is_up(&n->ctl)) {
        n->expired_seen = true;             /* once: then it is the server's or a person's turn */
        tn_node_world(n, &x);
        tn_ctl_login(&n->ctl, &x);
        n->more = true;
    }
}

/* ---- ping ---- */

static void tn_node_end_ping(tailnet_node *n, tailnet_result result)
{
    tailnet_pong      *p    = &n->ping.pong;
    const tn_map_peer *peer = tn_map_peer_at(&n->map, n->ping.peer);
    tn_session        *s    = peer == NULL ? NULL : tn_node_session(n, n->ping.peer);
    memset(p, 0, sizeof *p);
    p->ip     = n->ping.ip;
    p->kind   = (tailnet_ping_kind)n->ping.kind;
    p->result = result;
    if (peer != NULL) p->region = peer->region;
    if (result == TAILNET_OK) {
        p->latency_ms = n->ping.took_ms;
        p->path       = n->ping.direct ? TAILNET_PATH_DIRECT : TAILNET_PATH_RELAY;
        if (n->ping.direct) p->endpoint = n->ping.endpoint;
        else if (s != NULL) s->relay_ms = p->latency_ms;
    }
    n->ping.until_ms = 0;
    n->events |= TAILNET_EVENT_PING;
}

/* The peer of a session by relay. False: there is no way. */
static bool tn_node_by_relay(tailnet_node *n, const tn_session *s, tn_origin *to)
{
    int slot = tn_node_relay_of(n, s);
    memset(to, 0, sizeof *to);
    to->relay = true;
    to->slot  = (uint8_t)slot;
    tn_copy_key(to->key, n->map.peers[s->peer].key);
    return slot >= 0;
}

/* Disco pings: to the addresses of the peer, and by relay straight to its key. */
static bool tn_node_send_path_ping(tailnet_node *n, tn_session *s)
{
    const tn_disco_key *k;
    tn_origin           to;
    bool                relay = tn_node_by_relay(n, s, &to);

    if (s->path.plain || (!relay && !tn_node_udp(n)) || n->worked) {
        n->more = n->worked;
        return false;
    }
    n->worked = tn_node_disco_key(n, s->peer) == NULL;
    k         = tn_node_disco_make(n, s->peer);
    if (k == NULL) return false;
    if (tn_node_udp(n)) tn_path_probe(&s->path, n->rim.now_ms);
    if (relay) tn_node_disco_ping(n, k, n->ping.tx, &to);
    return true;
}

/* A TSMP ping through the tunnel. */
static bool tn_node_send_tunnel_ping(tailnet_node *n, tn_session *s)
{
    const tailnet_addr *dst = &n->ping.ip;
    const tailnet_addr *src = dst->family == 4 ? &n->map.self.ip4 : &n->map.self.ip6;
    tn_wr               w;
    if (!tn_wg_can_send(&s->wg, n->rim.now_ms)) {
        tn_wg_want(&s->wg, n->rim.now_ms);
        return false;
    }
    tn_wr_over(&w, n->scratch + TAILNET_HEADROOM, n->staged_size - 2 * TAILNET_HEADROOM);
    tn_ip_wr_ping(&w, src, dst, n->ping.tx);
    if (tn_wr_ok(&w)) tn_node_send_own(n, s, tn_wr_len(&w));
    return tn_wr_ok(&w);
}

/* An answer by relay waits a moment for a direct one, which says more. */
static uint64_t tn_node_ping_at(const tailnet_node *n)
{
    if (n->ping.took_ms == 0 || n->ping.direct) return n->ping.until_ms;
    return tn_min64(n->ping.until_ms, n->ping.sent_ms + n->ping.took_ms + TN_NODE_GRACE_MS);
}

static void tn_node_turn_ping(tailnet_node *n)
{
    tn_session *s;
    if (n->ping.until_ms == 0) return;
    if (n->ping.took_ms != 0 &&
        (n->ping.direct || n->ping.kind == TAILNET_PING_TUNNEL || !tn_node_udp(n) ||
         n->rim.now_ms >= tn_node_ping_at(n))) {
        tn_node_end_ping(n, TAILNET_OK);
    } else if (n->rim.now_ms >= n->ping.until_ms || !tn_node_flows(n)) {
        tn_node_end_ping(n, TAILNET_ERR_TIMEOUT);
    } else if (!n->ping.asked) {
        s = tn_node_open_session(n, n->ping.peer);
        n->ping.asked = TAILNET_DIRECT && n->ping.kind == TAILNET_PING_PATH
                            ? tn_node_send_path_ping(n, s)
                            : tn_node_send_tunnel_ping(n, s);
        n->ping.sent_ms = n->rim.now_ms;
    }
}

/* ---- the ways to peers ---- */

/* A round of measuring is over. */
static void tn_node_net_news(tailnet_node *n, const tn_net_world *x)
{
    uint32_t news = tn_net_news(&n->net);
    if ((news & TN_NET_NEWS_REPORT) != 0)
        tn_node_choose_home(n, tn_ctl_is_up(&n->ctl) || n->relay.home == 0
                                   ? tn_net_prefer(&n->net, x, n->rim.now_ms) : 0);
    if (news != 0) n->more = true;          /* control hears of it */
}

/* What has to be sent to measure the network. */
static void tn_node_turn_net(tailnet_node *n)
{
    tn_net_world x;
    tn_net_wish  wish;
    tailnet_buf  pkt;
    unsigned     turns;

    if (!TAILNET_DIRECT) return;
    tn_node_net_world(n, &x);
    if (tn_net_deadline(&n->net, &x) <= n->rim.now_ms) {
        for (turns = 0; turns < 64; turns++) {
            if (!tn_net_step(&n->net, &x, n->rim.now_ms, tn_node_luck(n), &wish)) break;
            if (wish.kind == TN_NET_SEND) {
                tn_node_buf(&pkt, wish.data, sizeof wish.data);
                n->stats.udp_out++;
                (void)tn_rim_udp_output(&n->rim, &wish.to, &pkt, 1);
            } else if (!tn_rim_resolve(&n->rim, wish.query, wish.host)) {
                (void)tn_net_resolved(&n->net, wish.query, NULL, 0);
            }
        }
    }
    tn_node_net_news(n, &x);
}

#if TAILNET_PORTMAP

/* ---- the gateway ---- */

#if TAILNET_UPNP

enum { TN_NODE_LINK_UPNP = TN_LINK_FOR_RELAY + 1 };

static void tn_node_upnp_end(tailnet_node *n)
{
    if (n->upnp != 0) tn_link_close(&n->links, n->upnp, TAILNET_OK);
    n->upnp = 0;
    tn_pmp_http_end(&n->pmp, n->rim.now_ms);
}

/* One page of the gateway, if a connection is free; never through a proxy. */
static void tn_node_upnp_begin(tailnet_node *n, const tailnet_addr *to)
{
    tailnet_dial dial;
    tn_wr        w;
    tn_wr_over(&w, n->upnp_host, sizeof n->upnp_host - 1);
    tn_wr_ip(&w, to);
    n->upnp_host[tn_wr_len(&w)] = '\0';
    memset(&dial, 0, sizeof dial);
    dial.host    = n->upnp_host;
    dial.port    = to->port;
    dial.addr4   = *to;
    n->upnp_sent = 0;
    if (n->links.proxy != NULL ||
        tn_link_open(&n->links, &dial, TN_NODE_LINK_UPNP, &n->upnp) != TAILNET_OK) {
        n->upnp = 0;
        tn_node_upnp_end(n);
        return;
    }
    tn_link_lend(&n->links, n->upnp, n->upnp_in, sizeof n->upnp_in, NULL, 0);
}

static void tn_node_upnp_write(tailnet_node *n)
{
    uint8_t text[256];
    tn_wr   w;
    size_t  took;
    do {
        tn_wr_window(&w, text, sizeof text, n->upnp_sent);
        tn_pmp_http_request(&n->pmp, &w);
        took = tn_wr_len(&w) == 0 ? 0 : tn_link_write(&n->links, n->upnp, text, tn_wr_len(&w));
        n->upnp_sent += (uint32_t)took;
    } while (took != 0);
}

static void tn_node_upnp_news(tailnet_node *n, const tn_link_news *news)
{
    uint8_t *at;
    size_t   len  = 0;
    bool     done = (news->bits & TN_LINK_GONE) != 0;
    if (news->link != n->upnp) {
        if (!done) tn_link_close(&n->links, news->link, TAILNET_ERR_STALE);
        return;
    }
    if ((news->bits & (TN_LINK_OPENED | TN_LINK_WRITABLE)) != 0) tn_node_upnp_write(n);
    while ((at = tn_link_read(&n->links, n->upnp, &len)) != NULL && len != 0) {
        if (tn_pmp_http_input(&n->pmp, at, len, n->rim.now_ms)) done = true;
        tn_link_ack(&n->links, n->upnp, len);
    }
    if (!done) return;
    if ((news->bits & TN_LINK_GONE) != 0) n->upnp = 0;
    tn_node_upnp_end(n);
}

#endif /* TAILNET_UPNP */

/* The gateway, and which of our addresses is next to it. */
static void tn_node_portmap_place(tailnet_node *n, const tailnet_network *network)
{
    size_t i;
    n->gateway = network->gateway;
    memset(&n->beside, 0, sizeof n->beside);
    for (i = 0; i < network->addr_count && n->gateway.family == 4; i++) {
        const tailnet_addr *a = &network->addrs[i];
        if (a->family == 4 &&
            (n->beside.family == 0 || (!tn_bits_same(n->beside.ip, n->gateway.ip, 16) &&
                                       tn_bits_same(a->ip, n->gateway.ip, 16))))
            n->beside = *a;
    }
    n->portmap_on = false;                  /* tells it in the next poll */
}

/* Is there a mapping to care for, or traffic that wants one? An idle node that was
 * told "no" does not ask again. */
static bool tn_node_portmap_due(const tailnet_node *n)
{
    tn_net_world x;
    if (!n->portmap_on) return false;
    if (n->pmp.mapped || (tn_pmp_services(&n->pmp) & TN_PMP_PROBED) == 0) return true;
    tn_node_net_world(n, &x);
    return x.active_ms > n->rim.now_ms;
}

/* Datagrams and pages for the gateway, until there is nothing more to say. */
static void tn_node_portmap_step(tailnet_node *n)
{
    uint8_t      text[TN_PMP_DATAGRAM];
    tailnet_addr to;
    tailnet_buf  pkt;
    tn_wr        w;
    unsigned     turns;
    for (turns = 0; turns < 8; turns++) {
        tn_pmp_want want;
        tn_wr_over(&w, text, sizeof text);
        want = tn_pmp_step(&n->pmp, n->rim.now_ms, &w, &to);
        if (want == TN_PMP_NOTHING) return;
#if TAILNET_UPNP
        if (want == TN_PMP_HTTP) tn_node_upnp_begin(n, &to);
#endif
        if (want != TN_PMP_SEND) continue;
        tn_node_buf(&pkt, text, tn_wr_len(&w));
        n->stats.udp_out++;
        (void)tn_rim_udp_output(&n->rim, &to, &pkt, 1);
    }
}

/* May we ask the gateway? Before UDP ends the mapping is given back. */
static void tn_node_portmap_run(tailnet_node *n, bool on)
{
    uint8_t luck[12];
    bool    was = n->portmap_on;
    memset(luck, 0, sizeof luck);
    n->portmap_on = on;
    if (on) {
        if (!was && tn_rim_random(&n->rim, luck, sizeof luck))
            tn_pmp_network(&n->pmp, &n->gateway, &n->beside, luck, n->rim.now_ms);
    } else if (was && !n->network_down && !n->desc.prefs.relay_only) {
        tn_pmp_release(&n->pmp, n->rim.now_ms);
        tn_node_portmap_step(n);
    } else {
        tn_pmp_network(&n->pmp, NULL, NULL, luck, n->rim.now_ms);
    }
}

static void tn_node_turn_portmap(tailnet_node *n)
{
    tailnet_addr outside;
    uint32_t     news;
    bool         on  = tn_node_udp(n) && !n->desc.prefs.no_port_map && n->gateway.family == 4;
    bool         was = n->portmap_on;
    if (on != was || (!on && tn_pmp_deadline(&n->pmp) == TN_NEVER)) tn_node_portmap_run(n, on);
    if (tn_node_portmap_due(n)) tn_node_portmap_step(n);
#if TAILNET_UPNP
    if (n->upnp != 0 && !tn_pmp_http_wanted(&n->pmp)) tn_node_upnp_end(n);
#endif
    news = tn_pmp_news(&n->pmp);
    if (news != 0 || on != was) n->more = true;     /* control hears of it */
    if ((news & TN_PMP_NEWS_MAPPING) == 0 && on == was) return;
    tn_net_mapped(&n->net, tn_pmp_external(&n->pmp, &outside) ? &outside : NULL, n->rim.now_ms);
}

#endif /* TAILNET_PORTMAP */

/* Our addresses for the peer of a session, when they are fresh and its relay is
 * reached: the letter that may wait for a relay is a handshake. */
static void tn_node_call(tailnet_node *n, tn_session *s)
{
    const tn_disco_key *k = tn_node_disco_key(n, s->peer);
    tailnet_addr        own[TAILNET_MAX_CANDIDATES];
    uint8_t             type[TAILNET_MAX_CANDIDATES];
    tn_node_disco_out   o;
    tn_origin           to;
    size_t              count;
    bool                relay;

    if (s->call_due == 1 && (!n->net.udp || !tn_net_fresh(&n->net, n->rim.now_ms))) {
        s->call_due = 2;                    /* also when the last round found nobody */
        if (!n->net.busy) tn_net_trigger(&n->net, false);
        n->more = true;
    }
    if (s->call_due == 2 && (n->net.busy || n->net.pending != 0)) return;
    relay = tn_node_by_relay(n, s, &to);
    if (relay && !tn_relay_is_open(&n->relay, tn_relay_region_of(&n->relay, to.slot))) return;
    s->call_due = 0;
    count       = tn_net_list(&n->net, own, type, TAILNET_MAX_CANDIDATES);
    if (count == 0 || !relay || k == NULL || !tn_node_disco_begin(n, &o)) return;
    tn_disco_wr_call(&o.w, own, count);
    tn_node_disco_end(n, &o, k, &to);
}

/* Pings and calls that are due. */
static void tn_node_turn_path(tailnet_node *n, tn_session *s)
{
    const tn_disco_key *k   = tn_node_disco_key(n, s->peer);
    tn_path_state       was = s->path.state;
    tn_path_wish        wish;
    tn_path_want        want;
    tn_origin           to;
    if ((k != NULL || s->path.plain) &&
        tn_path_deadline(&s->path, n->rim.now_ms) <= n->rim.now_ms) {
        memset(&to, 0, sizeof to);
        while ((want = tn_path_step(&s->path, n->rim.now_ms, &wish)) != TN_PATH_QUIET) {
            to.addr = wish.to;
            if (want == TN_PATH_CALL) s->call_due = 1;
            else if (k != NULL)       tn_node_disco_ping(n, k, wish.tx, &to);
        }
        if (s->path.state != was) n->events |= TAILNET_EVENT_PATHS;
    }
    if (s->call_due != 0) tn_node_call(n, s);
}

static void tn_node_turn_paths(tailnet_node *n)
{
    tn_session *s;
    unsigned    i = 0;
    if (!tn_node_udp(n)) return;
    while ((s = tn_node_each(n, &i)) != NULL) tn_node_turn_path(n, s);
}

/* ---- poll ---- */

/* News of one slot, to whoever has it. */
static void tn_node_slot_news(tailnet_node *n, unsigned slot)
{
    tn_link_news news;
    tn_ctl_world x;
    if (!tn_link_fetch(&n->links, slot, &news)) return;
    if ((news.bits & TN_LINK_OPENED) != 0) n->stats.links_opened++;
    switch (news.purpose) {
    case TN_LINK_FOR_CONTROL:
    case TN_LINK_FOR_KEY:
        tn_node_world(n, &x);
        tn_ctl_link_news(&n->ctl, &x, &news);
        break;
    case TN_LINK_FOR_RELAY:
        tn_node_relay_news(n, &news);
        break;
#if TAILNET_PORTMAP && TAILNET_UPNP
    case TN_NODE_LINK_UPNP:
        tn_node_upnp_news(n, &news);
        break;
#endif
    default:
        break;
    }
}

/* Control needs a TLS engine and found none: one of ours has to go, home last. */
static void tn_node_make_room(tailnet_node *n)
{
    unsigned i, victim = n->relay_slots;
    for (i = 0; i < n->relay_slots; i++) {
        if (n->relays[i].link == 0) continue;
        if (victim == n->relay_slots || tn_relay_region_of(&n->relay, i) != n->relay.home)
            victim = i;
    }
    if (victim < n->relay_slots) tn_node_close_relay(n, victim, TAILNET_ERR_AGAIN);
}

/* Wishes of the relay machine, and what it has to write. */
static void tn_node_turn_relays(tailnet_node *n)
{
    tn_relay_wish wish;
    unsigned      i, turns = 0;
    bool          open = false;

    if (n->ctl.crowded) tn_node_make_room(n);
    if (tn_relay_wants_choice(&n->relay, n->rim.now_ms)) tn_node_choose_home(n, 0);
    while (turns++ < 8 && tn_relay_step(&n->relay, n->rim.now_ms, &wish)) {
        if (wish.kind == TN_RELAY_DO_CLOSE) tn_node_close_relay(n, wish.slot, TAILNET_OK);
        else                                (void)tn_node_dial_relay(n, &wish);
    }
    for (i = 0; i < n->relay_slots; i++) {
        if (n->relays[i].link == 0) continue;
        open = true;
        if (tn_relay_has_output(&n->relay, i) &&
            !tn_relay_is_open(&n->relay, tn_relay_region_of(&n->relay, i))) {
            if (n->worked) n->more = true;  /* a login costs an X25519 */
            if (n->worked) continue;
            n->worked = true;
        }
        tn_node_relay_write(n, i);
    }
    if (!n->relay_again || !n->up || n->network_down || open) return;
    n->relay_again = false;                 /* all are down: log in with the new key */
    tn_relay_run(&n->relay, true, n->rim.now_ms);
    tn_node_choose_home(n, 0);
    n->more = true;
}

/* Down: every connection and session ends, the keys and the map stay. */
static void tn_node_go_down(tailnet_node *n)
{
    tn_ctl_world x;
    tn_node_world(n, &x);
#if TAILNET_PORTMAP
    if (n->portmap_on) tn_node_portmap_run(n, false);
#endif
    n->want_down = false;
    n->up = n->mapped = false;
    tn_ctl_set_up(&n->ctl, &x, false);
    tn_relay_run(&n->relay, false, n->rim.now_ms);
    tn_node_end_sessions(n);
    tn_node_unstage(n, TN_MAP_NONE);
    memset(n->agenda, 0, sizeof n->agenda);
}

/* All that was measured holds no more. */
static void tn_node_paths_anew(tailnet_node *n)
{
    tn_session *s;
    unsigned    i = 0;
    while (TAILNET_DIRECT && (s = tn_node_each(n, &i)) != NULL) {
        tn_node_path_flags(n, s);
        tn_path_network_changed(&s->path, n->rim.now_ms);
        tn_node_path_places(n, s);
    }
    n->events |= TAILNET_EVENT_PATHS;
}

/* Have we other addresses than before? What went out from the old ones is dead. */
static bool tn_node_moved(tailnet_node *n, const tailnet_network *network)
{
    uint32_t sum = 0;
    size_t   i, k;
    bool     moved;
    for (i = 0; i < network->addr_count; i++)
        for (k = 0; k < 16; k++) sum = sum * 31u + network->addrs[i].ip[k];
    moved      = sum != n->own_sum || network->addr_count == 0;
    n->own_sum = sum;
    return moved;
}

/* What the platform knows of the network. */
static void tn_node_network(tailnet_node *n, const tailnet_network *network)
{
    tn_ctl_world x;
    uint8_t      lacked = n->lacks;
    bool         moved  = !TAILNET_DIRECT || tn_node_moved(n, network);
    unsigned     i;

    tn_node_world(n, &x);
    if (TAILNET_DIRECT) {
        tn_net_network(&n->net, network, n->rim.now_ms);
        n->lacks = n->net.have == 1 ? 6 : n->net.have == 2 ? 4 : 0;
    }
#if TAILNET_PORTMAP
    tn_node_portmap_place(n, network);
#endif
    if (network->down) {
        tn_ctl_silence(&n->ctl, &x);
        tn_relay_run(&n->relay, false, n->rim.now_ms);
    } else if (network->changed || n->network_down) {
        if (n->up && !n->relay_again) tn_relay_run(&n->relay, true, n->rim.now_ms);
        for (i = 0; i < n->relay_slots && moved; i++)
            if (n->relays[i].link != 0) tn_node_close_relay(n, i, TAILNET_ERR_NETWORK);
        tn_relay_network_changed(&n->relay, n->rim.now_ms);
        tn_ctl_network_changed(&n->ctl, &x);
    }
    if (network->down || network->changed || n->network_down || lacked != n->lacks)
        tn_node_paths_anew(n);
    n->network_down = network->down;
    n->more         = true;
}

/* One turn of everything (see tailnet_poll). */
static uint32_t tn_node_poll(tailnet_node *n)
{
    uint32_t events;
    uint16_t told, home = n->relay.home;
    unsigned i;

    n->more = false;
    if (n->want_down) tn_node_go_down(n);
    n->worked = tn_link_poll(&n->links);    /* a bite of a TLS handshake */
    for (i = 0; i < n->desc.max_links; i++) tn_node_slot_news(n, i);
    told = tn_relay_report(&n->relay);
    tn_node_turn_control(n);
    tn_node_map_events(n);
    tn_node_expire(n);
    tn_node_settle(n);
    tn_node_turn_relays(n);
    tn_node_restage(n);
#if TAILNET_PORTMAP
    tn_node_turn_portmap(n);
#endif
    tn_node_turn_net(n);
    tn_node_turn_ping(n);
    if (n->worked || tn_node_work(n)) n->more = true;
    tn_node_turn_paths(n);
    if (tn_relay_report(&n->relay) != told) n->more = true;     /* control shall hear of it */
    if (n->relay.home != home) n->events |= TAILNET_EVENT_SELF;
    tn_node_flush(n);
    tn_link_sweep(&n->links);
    events    = n->events;
    n->events = 0;
    return events;
}

static uint64_t tn_node_deadline(const tailnet_node *n)
{
    uint64_t          at  = tn_link_deadline(&n->links);
    const tn_session *s;
    unsigned          i   = 0;
    bool              own = false;
    tn_net_world      x;
    if (n->more) return 0;
    tn_sooner(tn_ctl_deadline(&n->ctl), &at);
    if (TAILNET_DIRECT) {
        tn_node_net_world(n, &x);
        tn_sooner(tn_net_deadline(&n->net, &x), &at);
    }
#if TAILNET_PORTMAP
    if (tn_node_portmap_due(n)) tn_sooner(tn_pmp_deadline(&n->pmp), &at);
#endif
    tn_sooner(tn_relay_deadline(&n->relay), &at);
    tn_sooner(n->expiry_at_ms, &at);
    if (tn_ctl_may_reread(&n->ctl) && tn_map_wants(&n->map, &own) != 0)
        tn_sooner(n->ctl.reread_at_ms, &at);
    if (n->ping.until_ms != 0) tn_sooner(tn_node_ping_at(n), &at);
    while ((s = tn_node_each(n, &i)) != NULL) {
        tn_sooner(tn_wg_deadline(&s->wg), &at);
        if (tn_node_udp(n)) tn_sooner(tn_path_deadline(&s->path, n->rim.now_ms), &at);
    }
    return at;
}

/* ======================================================================== *
 * >>public — the functions of the API: arguments checked, the guard, one call
 * downwards. What they do is said at their prototypes.
 *
 * Owns:    nothing.
 * Calls:   >>node, and for plain questions the room that knows.
 * States:  none.
 * Always:  a wrong argument changes nothing and answers ERR_ARGUMENT, a call
 *          from inside a callback ERR_BUSY.
 * Trust:   the caller's pointers, but none of his numbers.
 * ======================================================================== */

/* How every call begins that changes the node. ok: the other arguments are right. Then
 * the time is that of the call. */
static TN_NOINLINE tailnet_result tn_pub_enter(tailnet_node *node, bool ok)
{
    if (node == NULL || !ok) return TAILNET_ERR_ARGUMENT;
    return tn_rim_enter(&node->rim) ? TAILNET_OK : TAILNET_ERR_BUSY;
}

/* The same for what the next poll has to see to. */
static TN_NOINLINE tailnet_result tn_pub_wake(tailnet_node *node, bool ok)
{
    tailnet_result r = tn_pub_enter(node, ok);
    if (r == TAILNET_OK) node->more = true;
    return r;
}

TAILNET_API size_t tailnet_memory_needed(const tailnet_desc *desc)
{
    tailnet_desc d;
    tn_node_layout l;
    if (desc == NULL) return 0;
    d = *desc;
    tn_node_defaults(&d);
    tn_node_lay_out(&d, &l);
    return l.used;
}

/* What TAILNET_MEMORY aligns to: 8, but 4 where the ABI aligns long numbers so. */
typedef struct tn_pub_align {
    char c;
    union {
        uint64_t number;
        void    *pointer;
    } u;
} tn_pub_align;

static TN_NOINLINE bool tn_pub_desc_ok(const tailnet_desc *d)
{
    const size_t odd = offsetof(tn_pub_align, u) - 1;
    if (d->memory == NULL || ((uintptr_t)d->memory & odd) != 0) return false;
    if (((uintptr_t)d->tls_memory & odd) != 0) return false;
    if (d->max_links < 2 || d->mtu < 576 || d->mtu > 1500) return false;
    if (d->prefs.routes == NULL && d->prefs.route_count != 0) return false;
    if (d->tags == NULL && d->tag_count != 0) return false;
    if (d->max_peers > 32000 || d->max_sessions > d->max_peers + 1000u) return false;
    return d->capability_version >= 68;     /* older ones have other map semantics */
}

/* Keys of a device that has none yet, or the saved ones. */
static tailnet_result tn_pub_keys(tailnet_node *n)
{
    const char    *url = n->desc.control_url != NULL ? n->desc.control_url
                                                     : "https://controlplane.tailscale.com";
    uint8_t        luck[64];
    tailnet_result r = tn_key_state_choose(&n->keys, n->desc.saved_state);
    if (r == TAILNET_ERR_NO_ROUTE) {
        if (!tn_rim_random(&n->rim, luck, sizeof luck)) return TAILNET_ERR_RANDOM;
        tn_key_state_first(&n->keys, luck);
        tn_wipe(luck, sizeof luck);
        n->events |= TAILNET_EVENT_SAVE;
    } else if (r != TAILNET_OK) {
        return r;
    }
    if (!tn_key_state_serve(&n->keys, url, strlen(url)) || !n->keys.has_node) {
        if (!tn_rim_random(&n->rim, luck, 32)) return TAILNET_ERR_RANDOM;
        tn_key_state_try(&n->keys, luck);
        tn_key_state_took(&n->keys);
        tn_wipe(luck, sizeof luck);
        n->events |= TAILNET_EVENT_SAVE;
    }
    if (n->keys.newest_unix_ms != 0) tn_rim_learn_time(&n->rim, n->keys.newest_unix_ms);
    return TAILNET_OK;
}

/* A fresh disco key for this run, as the reference makes one. */
static tailnet_result tn_pub_start(tailnet_node *n)
{
    uint8_t luck[16];
    if (!tn_rim_random(&n->rim, n->disco_private, 32)) return TAILNET_ERR_RANDOM;
    if (!tn_rim_random(&n->rim, luck, sizeof luck)) return TAILNET_ERR_RANDOM;
    if (TAILNET_DIRECT) tn_net_init(&n->net, n->desc.max_regions, n->net_memory, luck);
    tn_cr_clamp(n->disco_private);
    tn_cr_x25519_base(n->disco_public, n->disco_private);
    tn_cr_x25519_base(n->node_public, n->keys.node);
    tn_wg_device_init(&n->wg, n->keys.node, n->keys.stamp_unix_ms);
    if (n->desc.max_sessions > 64) n->wg.spacing_ms = 20;   /* a host has the time for more */
    if (n->desc.max_sessions > n->wg.burst) n->wg.burst = n->desc.max_sessions;
    tn_map_prefs(&n->map, n->desc.prefs.exit_node, n->desc.prefs.accept_routes);
    tn_map_asks(&n->map, tn_rim_asks_keep(&n->rim));
    tn_flt_shields(&n->flt, n->desc.prefs.shields_up);
    n->links.rim           = &n->rim;
    n->links.anchors       = n->desc.trust_anchors;
    n->links.anchor_count  = n->desc.trust_anchor_count;
    n->links.proxy         = n->desc.proxy;
    n->links.tls_by_caller = n->desc.tls_by_caller;
    tn_link_init(&n->links);
    n->expiry_at_ms = TN_NEVER;
    return tn_ctl_init(&n->ctl, &n->desc, &n->keys) ? TAILNET_OK : TAILNET_ERR_ARGUMENT;
}

TAILNET_API tailnet_result tailnet_init(tailnet_node **out, const tailnet_desc *desc)
{
    tailnet_desc   d;
    tn_node_layout l;
    tailnet_node  *n;
    tailnet_result r;

    if (out == NULL) return TAILNET_ERR_ARGUMENT;
    *out = NULL;
    if (desc == NULL) return TAILNET_ERR_ARGUMENT;
    d = *desc;
    tn_node_defaults(&d);
    if (!tn_pub_desc_ok(&d)) return TAILNET_ERR_ARGUMENT;
    tn_node_lay_out(&d, &l);
    if (l.used > d.memory_size || l.tls_used > d.tls_memory_size) return TAILNET_ERR_MEMORY;
    memset(d.memory, 0, l.used);
    n       = (tailnet_node *)d.memory;
    n->desc = d;
    if (!tn_rim_init(&n->rim, &d.io) || (!tn_rim_has_udp(&n->rim) && !d.prefs.relay_only))
        return TAILNET_ERR_ARGUMENT;
    if (!tn_rim_enter(&n->rim)) return TAILNET_ERR_BUSY;
    n->stats.memory_used = (uint32_t)l.used;
    n->stats.memory_free = (uint32_t)(d.memory_size - l.used);
    tn_node_place(n, &l, (uint8_t *)d.memory, (uint8_t *)d.tls_memory);
    r = tn_pub_keys(n);
    if (r == TAILNET_OK) r = tn_pub_start(n);
    if (r != TAILNET_OK) tn_wipe(d.memory, l.used);
    else                 *out = n;
    return r;
}

TAILNET_API tailnet_result tailnet_up(tailnet_node *node)
{
    tn_ctl_world x;
    tailnet_result r = tn_pub_wake(node, true);
    if (r != TAILNET_OK) return r;
    if (node->want_down) tn_node_go_down(node);     /* the newest wish counts */
    tn_node_world(node, &x);
    node->up   = true;
    tn_ctl_set_up(&node->ctl, &x, true);
    if (!node->relay_again && !node->network_down)
        tn_relay_run(&node->relay, true, node->rim.now_ms);
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_down(tailnet_node *node)
{
    tailnet_result r = tn_pub_wake(node, true);
    if (r != TAILNET_OK) return r;
    node->want_down = true;
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_login(tailnet_node *node, const char *auth_key)
{
    tn_ctl_world x;
    tailnet_result r = tn_pub_wake(node, true);
    if (r != TAILNET_OK) return r;
    node->desc.auth_key = auth_key;
    node->key_lent      = auth_key != NULL;
    tn_node_world(node, &x);
    tn_ctl_login(&node->ctl, &x);
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_logout(tailnet_node *node)
{
    tailnet_result r = tn_pub_wake(node, true);
    if (r != TAILNET_OK) return r;
    tn_ctl_logout(&node->ctl, node->rim.now_ms);
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_set_prefs(tailnet_node *node, const tailnet_prefs *prefs)
{
    bool anew;
    tailnet_result r = tn_pub_wake(node, prefs != NULL &&
                                   (prefs->routes != NULL || prefs->route_count == 0));
    if (r != TAILNET_OK) return r;
    anew = prefs->relay_only != node->desc.prefs.relay_only ||
           prefs->metered != node->desc.prefs.metered;
    node->desc.prefs = *prefs;
    tn_map_prefs(&node->map, prefs->exit_node, prefs->accept_routes);
    tn_flt_shields(&node->flt, prefs->shields_up);
    tn_node_set_local(node);
    tn_ctl_touch(&node->ctl);
    tn_node_choose_home(node, 0);
    if (anew) tn_node_paths_anew(node);
    return TAILNET_OK;
}

TAILNET_API void tailnet_wipe(tailnet_node *node)
{
    size_t used;
    if (tn_pub_enter(node, true) != TAILNET_OK) return;
    tn_link_close_all(&node->links);
    used = node->stats.memory_used;
    if (node->desc.tls_memory != NULL) tn_wipe(node->desc.tls_memory, node->desc.tls_memory_size);
    tn_wipe(node, used);
}

TAILNET_API size_t tailnet_export_state(tailnet_node *node, void *dst, size_t size)
{
    if (node == NULL || (dst == NULL && size != 0) || node->rim.inside) return 0;
    if (size < TN_KEY_STATE_LEN) return TN_KEY_STATE_LEN;
    node->keys.newest_unix_ms = tn_rim_unix_floor_ms(&node->rim);
    node->keys.number++;
    return tn_key_state_build(&node->keys, dst, size);
}

TAILNET_API uint32_t tailnet_poll(tailnet_node *node)
{
    return tn_pub_enter(node, true) == TAILNET_OK ? tn_node_poll(node) : 0;
}

TAILNET_API uint64_t tailnet_deadline(const tailnet_node *node)
{
    return node == NULL ? TN_NEVER : tn_node_deadline(node);
}

TAILNET_API uint32_t tailnet_wait_ms(tailnet_node *node, uint32_t max_ms)
{
    uint64_t at, left;
    if (node == NULL) return max_ms;
    if (!tn_rim_enter(&node->rim)) return 0;
    at   = tn_node_deadline(node);
    left = at <= node->rim.now_ms ? 0 : at - node->rim.now_ms;
    return left < max_ms ? (uint32_t)left : max_ms;
}

/* Is this a run that may be looked at? */
static bool tn_pub_run_ok(const tailnet_buf *pkts, size_t count)
{
    size_t i;
    if (pkts == NULL || count == 0) return false;
    for (i = 0; i < count; i++) {
        const tailnet_buf *p = &pkts[i];
        if (p->base == NULL || p->off > p->cap || p->len > p->cap - p->off) return false;
    }
    return true;
}

TAILNET_API tailnet_result tailnet_udp_input(tailnet_node *node, const tailnet_addr *from,
                                             tailnet_buf *pkts, size_t count)
{
    tailnet_result r = tn_pub_enter(node, from != NULL && tn_ip_len(from->family) != 0 &&
                                    tn_pub_run_ok(pkts, count));
    if (!TAILNET_DIRECT && r == TAILNET_OK) return TAILNET_ERR_AGAIN;
    return r != TAILNET_OK ? r : tn_node_udp_input(node, from, pkts, count);
}

TAILNET_API tailnet_result tailnet_ip_input(tailnet_node *node, tailnet_buf *pkts, size_t count)
{
    tailnet_result r = tn_pub_enter(node, tn_pub_run_ok(pkts, count));
    if (r != TAILNET_OK) return r;
    if (!tn_node_flows(node)) return TAILNET_ERR_AGAIN;
    return tn_node_ip_input(node, pkts, count);
}

TAILNET_API tailnet_result tailnet_tcp_opened(tailnet_node *node, tailnet_link link)
{
    tailnet_result r = tn_pub_wake(node, true);
    return r != TAILNET_OK ? r : tn_link_tcp_opened(&node->links, link);
}

TAILNET_API uint8_t *tailnet_tcp_reserve(tailnet_node *node, tailnet_link link, size_t *room)
{
    size_t none = 0;
    if (room == NULL) room = &none;
    *room = 0;
    if (tn_pub_enter(node, true) != TAILNET_OK) return NULL;
    return tn_link_in_reserve(&node->links, link, room);
}

/* Received stream bytes: relay data flows on at once, all else waits for poll. */
static tailnet_result tn_pub_commit(tailnet_node *node, tailnet_link link, size_t size)
{
    tailnet_result r    = tn_link_in_commit(&node->links, link, size);
    int            slot = tn_node_relay_slot(node, link);
    if (r == TAILNET_OK && slot >= 0 && tn_link_is_open(&node->links, link)) {
        tn_node_relay_read(node, (unsigned)slot);
        tn_node_flush(node);
        if (!tn_relay_has_output(&node->relay, (unsigned)slot)) return r;
    }
    node->more = true;
    return r;
}

TAILNET_API tailnet_result tailnet_tcp_commit(tailnet_node *node, tailnet_link link, size_t size)
{
    tailnet_result r = tn_pub_enter(node, true);
    return r != TAILNET_OK ? r : tn_pub_commit(node, link, size);
}

TAILNET_API size_t tailnet_tcp_input(tailnet_node *node, tailnet_link link, const void *data,
                                     size_t size)
{
    tn_rd  in;
    size_t taken = 0;
    if (tn_pub_enter(node, data != NULL || size == 0) != TAILNET_OK) return 0;
    tn_rd_over(&in, data, size);
    while (in.left != 0) {                  /* each turn takes at least one byte */
        size_t   room = 0, n;
        uint8_t *dst = tn_link_in_reserve(&node->links, link, &room);
        if (dst == NULL || room == 0) break;
        n = in.left < room ? in.left : room;
        tn_rd_copy(&in, dst, n);
        taken += n;
        if (tn_pub_commit(node, link, n) != TAILNET_OK) break;
    }
    return taken;
}

TAILNET_API tailnet_result tailnet_tcp_writable(tailnet_node *node, tailnet_link link)
{
    tailnet_result r = tn_pub_wake(node, true);
    return r != TAILNET_OK ? r : tn_link_tcp_writable(&node->links, link);
}

TAILNET_API tailnet_result tailnet_tcp_closed(tailnet_node *node, tailnet_link link)
{
    tailnet_result r = tn_pub_wake(node, true);
    return r != TAILNET_OK ? r : tn_link_tcp_closed(&node->links, link);
}

TAILNET_API tailnet_result tailnet_resolved(tailnet_node *node, uint32_t query,
                                            const tailnet_addr *addrs, size_t count)
{
    tailnet_result r = tn_pub_enter(node, addrs != NULL || count == 0);
    if (r != TAILNET_OK) return r;
    if (!TAILNET_DIRECT || !tn_net_resolved(&node->net, query, addrs, count))
        return TAILNET_ERR_STALE;
    node->more = true;
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_set_network(tailnet_node *node, const tailnet_network *network)
{
    tailnet_result r = tn_pub_enter(node, network != NULL &&
                                    (network->addrs != NULL || network->addr_count == 0));
    if (r != TAILNET_OK) return r;
    tn_node_network(node, network);
    return TAILNET_OK;
}

TAILNET_API tailnet_result tailnet_fetch_peer(tailnet_node *node, const char *who)
{
    tailnet_addr ip;
    uint16_t     index = 0;
    size_t       len;
    tn_map_wish  wish;
    tailnet_result r = tn_pub_enter(node, who != NULL);
    if (r != TAILNET_OK) return r;
    len = strlen(who);
    if (tn_ip_parse(&ip, who, len)) {
        if (tn_map_by_own_ip(&node->map, &ip, &index)) return TAILNET_OK;
        wish = tn_map_want_ip(&node->map, &ip, true, node->rim.now_ms);
    } else {
        if (tn_map_by_name(&node->map, who, len, &index)) return TAILNET_OK;
        wish = tn_map_want_name(&node->map, who, len, true, node->rim.now_ms);
    }
    if (wish != TN_MAP_WISH_WAIT) return TAILNET_ERR_NO_ROUTE;
    node->more = true;
    return TAILNET_ERR_AGAIN;
}

TAILNET_API tailnet_result tailnet_ping(tailnet_node *node, const tailnet_addr *ip,
                                        tailnet_ping_kind kind)
{
    uint16_t peer = 0;
    tailnet_result r = tn_pub_enter(node, ip != NULL &&
                                    (kind == TAILNET_PING_PATH || kind == TAILNET_PING_TUNNEL));
    if (r != TAILNET_OK) return r;
    if (!TAILNET_DIRECT && kind == TAILNET_PING_PATH) return TAILNET_ERR_UNSUPPORTED;
    if (!tn_node_flows(node) || node->ping.until_ms != 0) return TAILNET_ERR_AGAIN;
    if (!tn_map_by_ip(&node->map, ip, &peer)) return TAILNET_ERR_NO_ROUTE;
    if (!tn_rim_random(&node->rim, node->ping.tx, sizeof node->ping.tx)) return TAILNET_ERR_RANDOM;
    node->ping.ip       = *ip;
    node->ping.kind     = (uint8_t)kind;
    node->ping.peer     = peer;
    node->ping.asked    = node->ping.direct = false;
    node->ping.took_ms  = 0;
    node->ping.until_ms = node->rim.now_ms + TN_NODE_PING_MS;
    node->more          = true;
    return TAILNET_OK;
}

TAILNET_API tailnet_state tailnet_get_state(const tailnet_node *node)
{
    return node == NULL ? TAILNET_STATE_FAILED : node->state;
}

TAILNET_API const char *tailnet_login_url(const tailnet_node *node)
{
    return node == NULL ? "" : node->ctl.url;
}

TAILNET_API bool tailnet_get_self(const tailnet_node *node, tailnet_self *out)
{
    if (node == NULL || out == NULL) return false;
    memset(out, 0, sizeof *out);
    out->name = "";
    tn_copy_key(out->key, node->node_public);
    out->home_region = node->relay.home;
    out->control_up  = tn_ctl_is_up(&node->ctl);
    if (!node->map.has_self) return false;
    out->ip4                = node->map.self.ip4;
    out->ip6                = node->map.self.ip6;
    out->name               = node->map.self.name;
    out->id                 = node->map.self.id;
    out->key_expiry_unix_ms = node->map.self.expiry_ms;
    out->peers_missing      = node->map.peers_missing;
    out->lock_on            = node->map.lock_on;
    return true;
}

TAILNET_API size_t tailnet_peer_count(const tailnet_node *node)
{
    return node == NULL ? 0 : tn_map_count(&node->map);
}

TAILNET_API bool tailnet_get_peer(const tailnet_node *node, size_t index, tailnet_peer *out)
{
    uint16_t at = 0;
    if (node == NULL || out == NULL || !tn_map_nth(&node->map, index, &at)) return false;
    tn_node_describe(node, tn_map_peer_at(&node->map, at), at, out);
    return true;
}

/* The dense number of an entry of the map. */
static bool tn_pub_number(const tailnet_node *node, uint16_t at, size_t *index)
{
    uint16_t other = 0;
    size_t   i;
    for (i = 0; tn_map_nth(&node->map, i, &other); i++) {
        if (other != at) continue;
        *index = i;
        return true;
    }
    return false;
}

/* The entry of the map, we ourselves included, that has the address. */
static TN_NOINLINE bool tn_pub_by_ip(const tailnet_node *node, const tailnet_addr *ip, uint16_t *at)
{
    return tn_map_by_own_ip(&node->map, ip, at) || tn_map_by_ip(&node->map, ip, at);
}

TAILNET_API bool tailnet_find_peer_by_ip(const tailnet_node *node, const tailnet_addr *ip,
                                         size_t *index)
{
    uint16_t at = 0;
    if (node == NULL || ip == NULL || index == NULL) return false;
    return tn_pub_by_ip(node, ip, &at) && tn_pub_number(node, at, index);
}

TAILNET_API bool tailnet_find_peer(const tailnet_node *node, const char *who, size_t *index)
{
    tailnet_addr ip;
    uint16_t     at = 0;
    if (node == NULL || who == NULL || index == NULL) return false;
    if (tn_ip_parse(&ip, who, strlen(who))) return tailnet_find_peer_by_ip(node, &ip, index);
    return tn_map_by_name(&node->map, who, strlen(who), &at) && tn_pub_number(node, at, index);
}

TAILNET_API bool tailnet_get_route(const tailnet_node *node, size_t index, tailnet_route *out)
{
    static const uint8_t every[2][6] = {    /* which every tailnet has (net/tsaddr) */
        { 100, 64 }, { 0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0 }
    };
    uint16_t at = 0;
    unsigned six;
    if (node == NULL || out == NULL || !node->map.has_self) return false;
    memset(out, 0, sizeof *out);
    for (six = 0; six < 2; six++) {
        const tailnet_addr *own = six != 0 ? &node->map.self.ip6 : &node->map.self.ip4;
        if (own->family == 0 || index-- != 0) continue;
        out->prefix.family = six != 0 ? 6 : 4;
        out->prefix.bits   = six != 0 ? 48 : 10;
        out->peer          = SIZE_MAX;
        memcpy(out->prefix.ip, every[six], sizeof every[six]);
        return true;
    }
    if (!tn_map_route(&node->map, index, &out->prefix, &at)) return false;
    return tn_pub_number(node, at, &out->peer);
}

TAILNET_API bool tailnet_get_dns(const tailnet_node *node, size_t index, tailnet_dns *out)
{
#if !TAILNET_DNS
    (void)node, (void)index, (void)out;
    return false;
#else
    uint8_t kind = 0;
    size_t  i, seen = 0;
    if (node == NULL || out == NULL || !node->map.has_self) return false;
    memset(out, 0, sizeof *out);
    out->text = tn_map_suffix(&node->map);
    out->kind = TAILNET_DNS_DOMAIN;
    if (node->map.dns_proxied && index-- == 0) return true;
    for (i = 0; tn_map_dns(&node->map, i, &kind, &out->text, &out->addr); i++) {
        if (kind == TN_MAP_DNS_RECORD) continue;
        if (seen++ != index) continue;
        out->kind = kind == TN_MAP_DNS_SEARCH     ? TAILNET_DNS_SEARCH
                    : kind == TN_MAP_DNS_RESOLVER ? TAILNET_DNS_RESOLVER
                                                  : TAILNET_DNS_SPLIT;
        return true;
    }
    return false;
#endif
}

TAILNET_API tailnet_result tailnet_answer_dns(const tailnet_node *node, const void *query,
                                              size_t query_size, void *answer,
                                              size_t *answer_size)
{
#if !TAILNET_DNS
    (void)node;
    (void)query;
    (void)query_size;
    (void)answer;
    (void)answer_size;
    return TAILNET_ERR_UNSUPPORTED;
#else
    tn_node_dns    d;
    tn_wr          w;
    tailnet_result r;
    if (node == NULL || answer_size == NULL || (answer == NULL && *answer_size != 0) ||
        (query == NULL && query_size != 0))
        return TAILNET_ERR_ARGUMENT;
    tn_wr_over(&w, answer, *answer_size);
    r = tn_node_dns_answer(node, &d, query, query_size, &w);
    *answer_size = r == TAILNET_OK ? tn_wr_len(&w) : r == TAILNET_ERR_TOO_BIG ? w.total : 0;
    return r;
#endif
}

TAILNET_API tailnet_result tailnet_check_flow(const tailnet_node *node, const tailnet_flow *flow)
{
    tn_flt_peer from;
    uint16_t    at = 0;
    if (node == NULL || flow == NULL) return TAILNET_ERR_ARGUMENT;
    if (!tn_pub_by_ip(node, &flow->src, &at) || !tn_map_owns(&node->map, at, &flow->src))
        return TAILNET_ERR_DENIED;
    tn_node_flt_peer(node, at, &flow->src, &from);
    return tn_flt_check(&node->flt, flow, &from);
}

TAILNET_API bool tailnet_get_ping(const tailnet_node *node, tailnet_pong *out)
{
    if (node == NULL || out == NULL || node->ping.pong.ip.family == 0) return false;
    *out = node->ping.pong;
    return true;
}

TAILNET_API bool tailnet_get_report(const tailnet_node *node, tailnet_report *out)
{
    tailnet_addr at[TAILNET_MAX_CANDIDATES];
    uint8_t      type[TAILNET_MAX_CANDIDATES];
    size_t       count, i;
    if (!TAILNET_DIRECT || node == NULL || out == NULL) return false;
    if (node->net.last_ms > node->rim.now_ms) return false;
    memset(out, 0, sizeof *out);
    out->udp    = node->net.udp;
    out->ip4    = node->net.ip4;
    out->ip6    = node->net.ip6;
    out->varies = node->net.varies;
    out->home   = node->relay.home;
    out->age_ms = node->rim.now_ms - node->net.last_ms;
    count = tn_net_list(&node->net, at, type, TAILNET_MAX_CANDIDATES);
    for (i = count; i-- != 0;) {            /* the first of each is the newest    */
        if (type[i] == 2 && at[i].family == 4) out->global4 = at[i];
        if (type[i] == 2 && at[i].family == 6) out->global6 = at[i];
    }
#if TAILNET_PORTMAP
    out->port_map = (uint8_t)((tn_pmp_services(&node->pmp) & TN_PMP_HAS_PMP) != 0);
    if ((tn_pmp_services(&node->pmp) & TN_PMP_HAS_PCP) != 0) out->port_map |= 2;
    if ((tn_pmp_services(&node->pmp) & TN_PMP_HAS_UPNP) != 0) out->port_map |= 4;
    (void)tn_pmp_external(&node->pmp, &out->mapped);
#endif
    return true;
}

TAILNET_API bool tailnet_get_region(const tailnet_node *node, size_t index, tailnet_region *out)
{
    const tn_map_region *g;
    unsigned             i;
    if (node == NULL || out == NULL) return false;
    g = tn_map_region_at(&node->map, index);
    if (g == NULL) return false;
    memset(out, 0, sizeof *out);
    out->region = g->id;
    out->host   = tn_map_region_host(g);
    for (i = 0; TAILNET_DIRECT && i < node->net.count; i++) {
        const tn_net_region *r = &node->net.regions[i];
        if (r->id != g->id) continue;
        out->v4_ms = r->ms[0];
        out->v6_ms = r->ms[1];
    }
    return true;
}

TAILNET_API bool tailnet_get_problem(const tailnet_node *node, tailnet_problem *out)
{
    if (node == NULL || out == NULL || node->problem.section == NULL) return false;
    *out = node->problem;
    return true;
}

TAILNET_API void tailnet_get_stats(const tailnet_node *node, tailnet_stats *out)
{
    if (node == NULL || out == NULL) return;
    *out                   = node->stats;
    out->maps_read         = node->ctl.maps_read;
    out->peers_passed_over = node->map.passed_over;
}

#ifdef TAILNET_NO_STRINGS
TAILNET_API const char *tailnet_result_text(tailnet_result result)
{
    (void)result;
    return "";
}
#else
TAILNET_API const char *tailnet_result_text(tailnet_result result)
{
    switch (result) {
    case TAILNET_OK:              return "done";
    case TAILNET_ERR_ARGUMENT:    return "a value the manual forbids";
    case TAILNET_ERR_MEMORY:      return "the memory given is too small";
    case TAILNET_ERR_BUSY:        return "called from inside a callback";
    case TAILNET_ERR_AGAIN:       return "not now, try again later";
    case TAILNET_ERR_NO_ROUTE:    return "no peer has that address or name";
    case TAILNET_ERR_DENIED:      return "the packet filter says no";
    case TAILNET_ERR_TOO_BIG:     return "longer than the MTU or a limit";
    case TAILNET_ERR_MALFORMED:   return "bytes from outside do not parse";
    case TAILNET_ERR_FORGED:      return "bytes from outside fail authentication";
    case TAILNET_ERR_STALE:       return "a handle of a closed connection";
    case TAILNET_ERR_RANDOM:      return "the random source failed";
    case TAILNET_ERR_TLS:         return "certificate or TLS trouble";
    case TAILNET_ERR_CONTROL:     return "the control server refused";
    case TAILNET_ERR_TIMEOUT:     return "nothing came back in time";
    case TAILNET_ERR_NETWORK:     return "the connection broke";
    case TAILNET_ERR_UNSUPPORTED: return "not supported by this build or server";
    }
    return "unknown";
}
#endif

/* ======================================================================== *
 * >>history
 *
 *   0.1.0  first version: joins, keeps the map, carries packets through relays
 * ======================================================================== */

#endif /* TAILNET_IMPLEMENTATION_DONE */
#endif /* TAILNET_IMPLEMENTATION */

/* ======================================================================== *
 * >>licence — this software is available under two licences, choose one.
 *
 * A - MIT
 *
 * Permission is hereby granted, free of charge, to any person obtaining a copy of
 * this software and associated documentation files (the "Software"), to deal in the
 * Software without restriction, including without limitation the rights to use,
 * copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
 * Software, and to permit persons to whom the Software is furnished to do so,
 * subject to the following conditions: The above copyright notice and this
 * permission notice shall be included in all copies or substantial portions of the
 * Software. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS
 * OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
 * FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS
 * OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
 * IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION
 * WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
 *
 * B - Public domain (unlicense.org)
 *
 * This is free and unencumbered software released into the public domain. Anyone is
 * free to copy, modify, publish, use, compile, sell, or distribute this software,
 * either in source code form or as a compiled binary, for any purpose, commercial or
 * non-commercial, and by any means.
 * ======================================================================== */
