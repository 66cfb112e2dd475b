/* lan9118.c - the SMSC LAN9118 of the MPS2 boards, polled, as an lwIP netif. */
#include "ethernet.h"
#include "mps2.h"

#include "lwip/etharp.h"
#include "lwip/pbuf.h"
#include "netif/ethernet.h"

#ifndef LAN9118_BASE
#  define LAN9118_BASE 0x40200000u          /* AN500: 0xa0000000 */
#endif

enum {
    RX_DATA = 0x00, TX_DATA = 0x20, RX_STATUS = 0x40, TX_STATUS = 0x48, IRQ_CFG = 0x54,
    INT_STS = 0x58, INT_EN = 0x5c, BYTE_TEST = 0x64, FIFO_INT = 0x68, TX_CFG = 0x70,
    HW_CFG = 0x74, RX_FIFO_INF = 0x7c, TX_FIFO_INF = 0x80,
    MAC_CMD = 0xa4, MAC_DATA = 0xa8,
    MAC_CR = 1, MAC_ADDRH = 2, MAC_ADDRL = 3,
    LAN_IRQ = 13, FRAME_MIN = 60, FRAME_MAX = 1514
};

#define LAN(reg)     REG(LAN9118_BASE + (reg))
#define RSFL         (1u << 3)              /* the status FIFO has a frame            */
#define RX_ERRORS    ((1u << 15) | (1u << 12) | (1u << 11))
#define MAC_BUSY     (1u << 31)

static void mac_write(uint32_t reg, uint32_t value)
{
    LAN(MAC_DATA) = value;
    LAN(MAC_CMD)  = MAC_BUSY | reg;
    while (LAN(MAC_CMD) & MAC_BUSY) {}
}

static uint32_t mac_read(uint32_t reg)
{
    LAN(MAC_CMD) = MAC_BUSY | (1u << 30) | reg;
    while (LAN(MAC_CMD) & MAC_BUSY) {}
    return LAN(MAC_DATA);
}

/* The bytes of a chain, four to a word, however its pieces are cut. */
static void send_words(const struct pbuf *p, unsigned pad)
{
    uint32_t word = 0;
    unsigned have = 0, i;
    for (; p != NULL; p = p->next) {
        const uint8_t *at = (const uint8_t *)p->payload;
        for (i = 0; i < p->len; i++) {
            word |= (uint32_t)at[i] << (8 * have);
            if (++have < 4) continue;
            LAN(TX_DATA) = word;
            word = have = 0;
        }
    }
    for (i = 0; i < pad || have != 0; i++) {
        if (++have < 4) continue;
        LAN(TX_DATA) = word;
        word = have = 0;
    }
}

/* One frame out; lost (and counted by lwIP) when the chip has no room for it. */
static err_t send(struct netif *netif, struct pbuf *p)
{
    unsigned len = p->tot_len < FRAME_MIN ? FRAME_MIN : p->tot_len;
    (void)netif;
    if (len > FRAME_MAX) return ERR_BUF;
    while ((LAN(TX_FIFO_INF) >> 16 & 0xff) != 0) (void)LAN(TX_STATUS);
    if ((LAN(TX_FIFO_INF) & 0xffff) < len + 16) return ERR_MEM;
    LAN(TX_DATA) = 1u << 13 | 1u << 12 | len;       /* first and last piece */
    LAN(TX_DATA) = (uint32_t)len << 16 | len;
    send_words(p, len - p->tot_len);
    return ERR_OK;
}

/* The next frame as a pbuf; NULL when it was bad or no memory is left for it. */
static struct pbuf *receive(void)
{
    uint32_t     status = LAN(RX_STATUS);
    unsigned     len    = status >> 16 & 0x3fff, words = (len + 3) / 4, i;
    struct pbuf *p      = NULL;
    uint32_t    *at;
    if (!(status & RX_ERRORS) && len > 4 && len <= FRAME_MAX + 4)
        p = pbuf_alloc(PBUF_RAW, (u16_t)(words * 4), PBUF_POOL);
    if (p == NULL || p->next != NULL) {
        /* Read away: after a fast forward (RX_DP_CTRL) QEMU's chip loses its place for good. */
        while (words-- != 0) (void)LAN(RX_DATA);
        if (p != NULL) pbuf_free(p);
        return NULL;
    }
    at = (uint32_t *)p->payload;
    for (i = 0; i < words; i++) at[i] = LAN(RX_DATA);
    pbuf_realloc(p, (u16_t)(len - 4));              /* without the checksum */
    return p;
}

void ethernet_poll(struct netif *netif)
{
    LAN(INT_STS) = RSFL;
    NVIC_CLEAR(LAN_IRQ);
    while ((LAN(RX_FIFO_INF) >> 16 & 0xff) != 0) {
        struct pbuf *p = receive();
        if (p != NULL && netif->input(p, netif) != ERR_OK) pbuf_free(p);
    }
}

err_t ethernet_init(struct netif *netif)
{
    uint32_t low, high;
    if (LAN(BYTE_TEST) != 0x87654321u) return ERR_IF;
    LAN(HW_CFG) = 1;                                /* reset */
    while (LAN(HW_CFG) & 1) {}
    low  = mac_read(MAC_ADDRL);
    high = mac_read(MAC_ADDRH);
    for (netif->hwaddr_len = 0; netif->hwaddr_len < 6; netif->hwaddr_len++) {
        netif->hwaddr[netif->hwaddr_len] = (u8_t)low;
        low  = low >> 8 | high << 24;
        high >>= 8;
    }
    LAN(TX_CFG)   = 2;
    mac_write(MAC_CR, 1u << 20 | 1u << 3 | 1u << 2);    /* full duplex, send, receive */
    LAN(IRQ_CFG)  = 0x111;                          /* on, active high, push-pull */
    LAN(FIFO_INT) = 0;
    LAN(INT_STS)  = 0xffffffffu;
    LAN(INT_EN)   = RSFL;
    NVIC_ENABLE(LAN_IRQ);
    netif->name[0]    = 'e';
    netif->name[1]    = 'n';
    netif->mtu        = 1500;
    netif->flags      = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_LINK_UP;
    netif->output     = etharp_output;
    netif->linkoutput = send;
    return ERR_OK;
}
