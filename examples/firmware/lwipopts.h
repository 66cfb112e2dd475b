/* lwipopts.h - lwIP without an operating system, in 24 KB: what a device with one
 * Ethernet port, three connections of the tailnet and a few of its own needs. */
#ifndef LWIPOPTS_H
#define LWIPOPTS_H

#define NO_SYS                      1
#define SYS_LIGHTWEIGHT_PROT        0
#define LWIP_NETCONN                0
#define LWIP_SOCKET                 0
#define LWIP_RAW                    0
#define LWIP_IPV6                   0
#define LWIP_DHCP                   1
#define LWIP_DNS                    1
#define DNS_TABLE_SIZE              2
#define DNS_MAX_NAME_LENGTH         64
#define LWIP_DHCP_DOES_ACD_CHECK    0
#define DHCP_DOES_ARP_CHECK         0
#define LWIP_STATS                  0
#define LWIP_NETIF_LOOPBACK         0
#define LWIP_HAVE_LOOPIF            0
#define IP_REASSEMBLY               0
#define IP_FRAG                     0
#define ARP_QUEUEING                0
#define LWIP_CHECKSUM_ON_COPY       0

/* Packets that come in, whole: 6 of 1,536 bytes. */
#define PBUF_POOL_SIZE              6
#define PBUF_POOL_BUFSIZE           1536

/* Packets that go out, and what TCP keeps until it is acknowledged. */
#define MEM_ALIGNMENT               4
#define MEM_SIZE                    8192
#define MEMP_NUM_PBUF               8
#define MEMP_NUM_UDP_PCB            5
#define MEMP_NUM_TCP_PCB            6
#define MEMP_NUM_TCP_PCB_LISTEN     2
#define MEMP_NUM_TCP_SEG            16

#define TCP_MSS                     1460
#define TCP_WND                     (2 * TCP_MSS)
#define TCP_SND_BUF                 (2 * TCP_MSS)
#define TCP_SND_QUEUELEN            8
#define TCP_QUEUE_OOSEQ             0

#define LWIP_RAND()                 ((u32_t)firmware_rand())
unsigned long firmware_rand(void);

/* lwIP's own texts cost 11 KB; with DEBUG=1 they are there. */
#ifndef FIRMWARE_DEBUG
#  define LWIP_NOASSERT             1
#endif

#endif
