/* Settings of lwIP for the tests; each choice can be made on the command line. */
#ifndef TESTS_LWIPOPTS_H
#define TESTS_LWIPOPTS_H

#ifndef NO_SYS
#  define NO_SYS 1
#endif
#ifndef LWIP_IPV4
#  define LWIP_IPV4 1
#endif
#ifndef LWIP_IPV6
#  define LWIP_IPV6 1
#endif

#define LWIP_NETCONN            (!NO_SYS)
#define LWIP_SOCKET             (!NO_SYS)
#define LWIP_NETIF_API          (!NO_SYS)
#define LWIP_TCPIP_CORE_LOCKING 1
#define SYS_LIGHTWEIGHT_PROT    (!NO_SYS)
#define TCPIP_MBOX_SIZE         64
#define DEFAULT_TCP_RECVMBOX_SIZE 64
#define DEFAULT_UDP_RECVMBOX_SIZE 64
#define DEFAULT_RAW_RECVMBOX_SIZE 64
#define DEFAULT_ACCEPTMBOX_SIZE 16
#define LWIP_SO_RCVTIMEO        1
#define LWIP_ERRNO_STDINCLUDE   1
#define LWIP_COMPAT_SOCKETS     0
#define LWIP_POSIX_SOCKETS_IO_NAMES 0
#define SO_REUSE                1

/* Who calls without the lock ends the test. */
#if !NO_SYS
#  ifdef __cplusplus
extern "C" {
#  endif
void sys_lock_tcpip_core(void);
void sys_unlock_tcpip_core(void);
void sys_mark_tcpip_thread(void);
void sys_check_core_locking(void);
#  ifdef __cplusplus
}
#  endif
#  define LOCK_TCPIP_CORE()          sys_lock_tcpip_core()
#  define UNLOCK_TCPIP_CORE()        sys_unlock_tcpip_core()
#  define LWIP_MARK_TCPIP_THREAD()   sys_mark_tcpip_thread()
#  define LWIP_ASSERT_CORE_LOCKED()  sys_check_core_locking()
#endif

/* Debian's lwIP 2.1 was changed for sockets of another system, and lacks these for its own. */
#ifdef TEST_SOCKADDR_LEN
#  define IP4ADDR_SOCKADDR_SET_LEN(sin)  (sin)->sin_len = sizeof(struct sockaddr_in)
#  define IP6ADDR_SOCKADDR_SET_LEN(sin6) (sin6)->sin6_len = sizeof(struct sockaddr_in6)
#  define IPADDR_SOCKADDR_GET_LEN(addr)  (addr)->sa.sa_len
#endif

#define MEM_ALIGNMENT           8
#define MEM_SIZE                (256 * 1024)
#define MEMP_NUM_PBUF           64
#define PBUF_POOL_SIZE          64
#define PBUF_POOL_BUFSIZE       1600
#define MEMP_NUM_TCP_PCB        24
#define MEMP_NUM_TCP_PCB_LISTEN 8
#define MEMP_NUM_TCP_SEG        256
#define MEMP_NUM_UDP_PCB        12
#define MEMP_NUM_SYS_TIMEOUT    20
#define MEMP_NUM_TCPIP_MSG_API  16
#define MEMP_NUM_NETCONN        16

#define TCP_MSS                 1220
#define TCP_WND                 (6 * TCP_MSS)
#define TCP_SND_BUF             (6 * TCP_MSS)
#define TCP_SND_QUEUELEN        24
#define TCP_LISTEN_BACKLOG      1

#define LWIP_ARP                0
#define LWIP_ETHERNET           0
#define LWIP_ICMP               1
#define LWIP_RAW                1
#define LWIP_UDP                1
#define LWIP_TCP                1
#define LWIP_DNS                1
#define DNS_MAX_SERVERS         2
#define IPV6_FRAG_COPYHEADER    1       /* pointers of 64 bits */
#define LWIP_IPV6_MLD           0
#define LWIP_IPV6_AUTOCONFIG    0
#define LWIP_IPV6_DUP_DETECT_ATTEMPTS 0
#define LWIP_HAVE_LOOPIF        0
#define LWIP_NETIF_LOOPBACK     0
#define LWIP_STATS              1
#define MEMP_STATS              1
#define MEM_STATS               1
#define LWIP_CHECKSUM_ON_COPY   0

#ifndef TEST_NO_HOOKS
#  define LWIP_HOOK_FILENAME "tailnet_platform_lwip.h"
#  define LWIP_HOOK_IP4_ROUTE_SRC(src, dest) tailnet_lwip_route4(src, dest)
#  define LWIP_HOOK_IP6_ROUTE(src, dest)     tailnet_lwip_route6(src, dest)
#  define LWIP_HOOK_IP4_INPUT(p, in)         tailnet_lwip_input4(p, in)
#  define LWIP_HOOK_IP6_INPUT(p, in)         tailnet_lwip_input6(p, in)
#  define DNS_LOOKUP_LOCAL_EXTERN            tailnet_lwip_lookup
#endif

#endif
