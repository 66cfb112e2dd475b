/* lwipopts.h - lwIP as the Linux examples use it: one thread, no OS, memory from malloc, and
 * windows for fast and far connections. A microcontroller wants other numbers: see
 * examples/firmware. */
#ifndef LWIPOPTS_H
#define LWIPOPTS_H

#define NO_SYS                       1      /* everything in one loop               */
#define SYS_LIGHTWEIGHT_PROT         0
#define LWIP_SOCKET                  0
#define LWIP_NETCONN                 0
#define LWIP_STATS                   0
#define MEM_LIBC_MALLOC              1
#define MEMP_MEM_MALLOC              1
#define MEM_ALIGNMENT                8

/* The tailnet is a network of IP packets: nothing below, nothing to configure. */
#define LWIP_IPV4                    1
#define LWIP_IPV6                    1
#define LWIP_ARP                     0
#define LWIP_ETHERNET                0
#define LWIP_DHCP                    0
#define LWIP_DNS                     0
#define LWIP_IGMP                    0
#define LWIP_IPV6_MLD                0
#define LWIP_IPV6_AUTOCONFIG         0
#define LWIP_IPV6_SEND_ROUTER_SOLICIT 0
#define LWIP_IPV6_DUP_DETECT_ATTEMPTS 0
#define LWIP_IPV6_FORWARD            0
#define IP_FORWARD                   0
#define IP_REASSEMBLY                1
#define LWIP_IPV6_REASS              1
#define IPV6_FRAG_COPYHEADER         1      /* pointers of 8 bytes                  */
#define LWIP_RAW                     0
#define LWIP_UDP                     1
#define LWIP_TCP                     1
#define LWIP_NETIF_STATUS_CALLBACK   0

/* A window of 256 KB: 20 MB/s over 12 ms, 2.5 MB/s over 100 ms. */
#define TCP_MSS                      1240   /* MTU 1280 less IPv4's headers         */
#define LWIP_WND_SCALE               1
#define TCP_RCV_SCALE                3
#define TCP_WND                      (256 * 1024)
#define TCP_SND_BUF                  (256 * 1024 - 1)   /* httpd takes 16 bits of it  */
#define TCP_SND_QUEUELEN             (4 * (TCP_SND_BUF / TCP_MSS))
#define TCP_SNDLOWAT                 32768
#define TCP_SNDQUEUELOWAT            (TCP_SND_QUEUELEN / 2)
#define TCP_TMR_INTERVAL             50     /* a lost packet costs 0.2 s, not a second */
#define TCP_QUEUE_OOSEQ              1
#define TCP_OOSEQ_MAX_BYTES(pcb)     TCP_WND
#define TCP_OOSEQ_MAX_PBUFS(pcb)     (2 * TCP_WND / TCP_MSS)
#define LWIP_TCP_SACK_OUT            1
#define LWIP_TCP_TIMESTAMPS          0
#define TCP_LISTEN_BACKLOG           1
#define LWIP_TCP_KEEPALIVE           1
#define TCP_OVERSIZE                 TCP_MSS
#define LWIP_CHECKSUM_ON_COPY        1
#define PBUF_POOL_BUFSIZE            1536

/* As many packets as tailnet_platform_posix.h may bring in one turn. */
#define TAILNET_LWIP_FIFO            1024

/* Room in front of what TCP sends, so that WireGuard need not copy. */
#define PBUF_LINK_ENCAPSULATION_HLEN 32
#define PBUF_LINK_HLEN               0

/* The status page (http.c). */
#define LWIP_HTTPD_CUSTOM_FILES      1
#define LWIP_HTTPD_FILE_EXTENSION    1      /* 2.2: a file has a pextension         */
#define LWIP_HTTPD_SUPPORT_V09       0
#define LWIP_HTTPD_SUPPORT_EXTSTATUS 1
#define LWIP_HTTPD_SUPPORT_11_KEEPALIVE 1
#define LWIP_HTTPD_MAX_REQ_LENGTH    4095
#define LWIP_HTTPD_REQ_QUEUELEN      8
#define HTTPD_LIMIT_SENDING_TO_2MSS  0
#define HTTPD_POLL_INTERVAL          50     /* of 0.1 s                             */
#define HTTP_IS_DATA_VOLATILE(hs)    TCP_WRITE_FLAG_COPY    /* pages are made when asked for */
#define HTTPD_FSDATA_FILE            "arch/no_files.h"

/* Ports of outgoing connections are not to be guessed. */
#define LWIP_RANDOMIZE_INITIAL_LOCAL_PORTS 1
#define LWIP_HOOK_FILENAME           "arch/hooks.h"
#define LWIP_HOOK_TCP_ISN            examples_tcp_isn

#endif
