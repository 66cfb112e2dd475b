/* modem_uart.c - the second UART of the MPS2 boards, with a ring that its interrupt fills. */
#include "modem_uart.h"
#include "board.h"
#include "mps2.h"

#define UART 0x40005000u

enum { DATA = 0, STATE = 4, CTRL = 8, INT_CLEAR = 12, BAUDDIV = 16, TX_FULL = 1, RX_FULL = 2,
       IRQ = 2, RING = 256 };

static struct {
    volatile uint16_t head, tail;           /* written by the interrupt, by the loop      */
    uint8_t           bytes[RING];
} ring;

void board_modem_interrupt(void);
void board_modem_interrupt(void)
{
    while (REG(UART + STATE) & RX_FULL) {
        if ((uint16_t)(ring.head - ring.tail) == RING) {
            NVIC_DISABLE(IRQ);              /* the line waits, until somebody reads       */
            return;
        }
        ring.bytes[ring.head % RING] = (uint8_t)REG(UART + DATA);
        ring.head++;
        REG(UART + INT_CLEAR) = 2;
    }
}

void modem_start(void)
{
    REG(UART + BAUDDIV) = 16;
    REG(UART + CTRL)    = 1 | 2 | 8;        /* send, receive, interrupt for each byte     */
    (void)REG(UART + DATA);                 /* of before; and QEMU looks for more         */
    NVIC_ENABLE(IRQ);
    __asm__ volatile("cpsie i" ::: "memory");
}

void modem_write(const void *src, size_t size)
{
    const uint8_t *from = (const uint8_t *)src;
    for (; size != 0; size--) {
        while (REG(UART + STATE) & TX_FULL) {}
        REG(UART + DATA) = *from++;
    }
}

size_t modem_waiting(void) { return (uint16_t)(ring.head - ring.tail); }

void modem_read(void *dst, size_t size)
{
    uint8_t *to = (uint8_t *)dst;
    while (size != 0) {
        while (modem_waiting() == 0) {}
        *to++ = ring.bytes[ring.tail % RING];
        ring.tail++;
        size--;
        NVIC_ENABLE(IRQ);
    }
}

void modem_listen(bool on)
{
    if (on) NVIC_ENABLE(IRQ);
    else    NVIC_DISABLE(IRQ);
}

/* Masked, so that a byte between the look and the sleep is not missed: it ends the sleep. */
void modem_sleep(uint32_t ms)
{
    __asm__ volatile("cpsid i" ::: "memory");
    if (modem_waiting() == 0) board_sleep(ms);
    __asm__ volatile("cpsie i" ::: "memory");
}
