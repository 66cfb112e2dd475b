/* virtio_net.c - a virtio network card on the MMIO bus of QEMU's "virt", as an lwIP netif.
 * Two rings in shared memory: we lend the device buffers, it gives them back used. */
#include "ethernet.h"
#include "virt.h"

#include "lwip/etharp.h"
#include "lwip/pbuf.h"
#include "netif/ethernet.h"

#include <string.h>

enum {
    MAGIC = 0x00, VERSION = 0x04, DEVICE_ID = 0x08, DRIVER_FEATURES = 0x20,
    DRIVER_FEATURES_SEL = 0x24, QUEUE_SEL = 0x30, QUEUE_NUM = 0x38, QUEUE_READY = 0x44,
    QUEUE_NOTIFY = 0x50, INTERRUPT_STATUS = 0x60, INTERRUPT_ACK = 0x64, STATUS = 0x70,
    QUEUE_DESC = 0x80, QUEUE_DRIVER = 0x90, QUEUE_DEVICE = 0xa0, CONFIG = 0x100,
    SLOTS = 8, RX = 0, TX = 1, RX_SIZE = 4, TX_SIZE = 2, RING = 4,
    HEADER = 12, FRAME_MAX = 1514, DESC_WRITE = 2
};

typedef struct descriptor {
    uint32_t address, address_high, len;
    uint16_t flags, next;
} descriptor;

typedef struct queue {
    descriptor desc[RING] __attribute__((aligned(16)));
    struct { uint16_t flags, index, ring[RING]; } driver __attribute__((aligned(4)));
    struct {
        uint16_t flags, index;
        struct { uint32_t id, len; } ring[RING];
    } device __attribute__((aligned(4)));
    uint16_t seen;                          /* of device.index                        */
} queue;

static struct {
    uint32_t base;
    queue    queues[2];
    uint8_t  rx[RX_SIZE][HEADER + FRAME_MAX + 2];
    uint8_t  tx[TX_SIZE][HEADER + FRAME_MAX + 2];
    uint32_t tx_busy;                       /* a bit for each                         */
} card;

#define NET(reg) REG(card.base + (reg))

static void barrier(void) { __asm__ volatile("fence iorw, iorw" ::: "memory"); }

/* The device may use descriptor i of the queue now. */
static void lend(unsigned which, unsigned i)
{
    queue *q = &card.queues[which];
    q->driver.ring[q->driver.index % RING] = (uint16_t)i;
    barrier();
    q->driver.index++;
    barrier();
    NET(QUEUE_NOTIFY) = which;
}

/* The next descriptor that came back, or -1; *len is what the device wrote. */
static int returned(unsigned which, uint32_t *len)
{
    queue *q = &card.queues[which];
    int    i;
    barrier();
    if (q->seen == *(volatile uint16_t *)&q->device.index) return -1;
    barrier();
    i    = (int)q->device.ring[q->seen % RING].id;
    *len = q->device.ring[q->seen % RING].len;
    q->seen++;
    return i < RING ? i : -1;
}

static err_t send(struct netif *netif, struct pbuf *p)
{
    uint32_t len;
    int      i;
    (void)netif;
    while ((i = returned(TX, &len)) >= 0) card.tx_busy &= ~(1u << i);
    for (i = 0; i < TX_SIZE && (card.tx_busy >> i & 1); i++) {}
    if (i == TX_SIZE) return ERR_MEM;
    if (p->tot_len > FRAME_MAX) return ERR_BUF;
    memset(card.tx[i], 0, HEADER);
    pbuf_copy_partial(p, card.tx[i] + HEADER, p->tot_len, 0);
    card.queues[TX].desc[i].len = (uint32_t)(HEADER + p->tot_len);
    card.tx_busy |= 1u << i;
    lend(TX, (unsigned)i);
    return ERR_OK;
}

void ethernet_poll(struct netif *netif)
{
    uint32_t len;
    int      i;
    NET(INTERRUPT_ACK) = NET(INTERRUPT_STATUS);
    while ((i = returned(RX, &len)) >= 0) {
        struct pbuf *p = NULL;
        if (i < RX_SIZE && len > HEADER && len <= HEADER + FRAME_MAX)
            p = pbuf_alloc(PBUF_RAW, (u16_t)(len - HEADER), PBUF_POOL);
        if (p != NULL) pbuf_take(p, card.rx[i] + HEADER, (u16_t)(len - HEADER));
        lend(RX, (unsigned)i);
        if (p != NULL && netif->input(p, netif) != ERR_OK) pbuf_free(p);
    }
}

static void queue_start(unsigned which, uint8_t *buffers, size_t step, unsigned count)
{
    queue   *q = &card.queues[which];
    unsigned i;
    for (i = 0; i < count; i++) {
        q->desc[i].address = (uint32_t)(uintptr_t)(buffers + i * step);
        q->desc[i].len     = (uint32_t)step;
        q->desc[i].flags   = which == RX ? DESC_WRITE : 0;
    }
    NET(QUEUE_SEL)        = which;
    NET(QUEUE_NUM)        = RING;
    NET(QUEUE_DESC)       = (uint32_t)(uintptr_t)q->desc;
    NET(QUEUE_DESC + 4)   = 0;
    NET(QUEUE_DRIVER)     = (uint32_t)(uintptr_t)&q->driver;
    NET(QUEUE_DRIVER + 4) = 0;
    NET(QUEUE_DEVICE)     = (uint32_t)(uintptr_t)&q->device;
    NET(QUEUE_DEVICE + 4) = 0;
    NET(QUEUE_READY)      = 1;
}

/* Which of the slots of the bus holds a network card of version 2? */
static bool find(void)
{
    unsigned slot;
    for (slot = 0; slot < SLOTS; slot++) {
        card.base = 0x10001000u + 0x1000u * slot;
        if (NET(MAGIC) != 0x74726976u || NET(VERSION) != 2 || NET(DEVICE_ID) != 1) continue;
        virt_interrupt(1 + slot);
        return true;
    }
    return false;
}

err_t ethernet_init(struct netif *netif)
{
    unsigned i;
    if (!find()) return ERR_IF;
    NET(STATUS) = 0;                                /* reset, acknowledge, driver     */
    NET(STATUS) = 1;
    NET(STATUS) = 3;
    NET(DRIVER_FEATURES_SEL) = 1;
    NET(DRIVER_FEATURES)     = 1;                   /* version 1                      */
    NET(DRIVER_FEATURES_SEL) = 0;
    NET(DRIVER_FEATURES)     = 1u << 5;             /* it has a MAC address           */
    NET(STATUS) = 11;
    if (!(NET(STATUS) & 8)) return ERR_IF;
    queue_start(RX, card.rx[0], sizeof card.rx[0], RX_SIZE);
    queue_start(TX, card.tx[0], sizeof card.tx[0], TX_SIZE);
    NET(STATUS) = 15;
    for (i = 0; i < RX_SIZE; i++) lend(RX, i);
    for (i = 0; i < 6; i++)
        netif->hwaddr[i] = *(volatile uint8_t *)(uintptr_t)(card.base + CONFIG + i);
    netif->hwaddr_len = 6;
    netif->name[0]    = 'e';
    netif->name[1]    = 'n';
    netif->mtu        = 1500;
    netif->flags      = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_LINK_UP;
    netif->output     = etharp_output;
    netif->linkoutput = send;
    return ERR_OK;
}
