/* mps2.c - ARM MPS2 boards with a Cortex-M3 (AN385), M4 (AN386) or M7 (AN500), as QEMU
 * has them: start, clock, UART, random numbers, and flash that is battery-backed memory.
 *
 * Interrupts stay masked: a pending one ends the wait in board_sleep, and that is all it is
 * for. Only modem.c takes one, because its UART has no memory. */
#include "board.h"
#include "image.h"
#include "mps2.h"

#include <string.h>

#define TIMER_FREE  0x40000000u             /* CMSDK timer 0: runs down at 25 MHz     */
#define TIMER_WAKE  0x40001000u             /* CMSDK timer 1: ends board_sleep        */
#define UART_PRINT  0x40004000u
#ifndef FLASH_BASE
#  define FLASH_BASE 0x21000000u            /* PSRAM (AN500: 0x60000000): the test    */
#endif                                      /* keeps it in a file                     */

enum { TICKS_PER_MS = 25000, WAKE_IRQ = 9 };

int main(void);

static struct {
    uint32_t last, rest;                    /* of the free timer; ticks below a ms    */
    uint64_t ms;
    uint64_t asleep;                        /* ticks                                  */
    uint32_t power;                         /* flash words until the power fails      */
} board;

/* ---- start -------------------------------------------------------------------------- */

static void clocks(void)
{
    REG(TIMER_FREE + 8) = 0xffffffffu;      /* RELOAD, VALUE, CTRL: enable            */
    REG(TIMER_FREE + 4) = 0xffffffffu;
    REG(TIMER_FREE)     = 1;
    board.last = 0xffffffffu;
    REG(UART_PRINT + 16) = 16;              /* BAUDDIV before the first character     */
    REG(UART_PRINT + 8)  = 1;               /* CTRL: transmit                         */
    NVIC_ENABLE(WAKE_IRQ);
}

void board_reset(void)
{
    __asm__ volatile("cpsid i");
    image_begin();
    clocks();
    board.power = image_power();
    board_exit(main());
}

static void hex(char *dst, uint32_t v)
{
    int i;
    for (i = 7; i >= 0; i--, v >>= 4) dst[i] = "0123456789abcdef"[v & 15];
}

/* A fault: where, and the end. */
__attribute__((used)) void board_fault(const uint32_t *frame)
{
    char text[] = "fault: pc ........ lr ........ cfsr ........ bfar ........";
    hex(text + 10, frame[6]);
    hex(text + 22, frame[5]);
    hex(text + 36, REG(0xe000ed28));
    hex(text + 50, REG(0xe000ed38));
    board_print(text);
    board_exit(99);
}

__attribute__((naked)) static void fault(void)
{
    __asm__ volatile("mov r0, sp\n b board_fault");
}

/* Of modem_uart.c, where that is linked. */
__attribute__((weak)) void board_modem_interrupt(void) { }

typedef void (*vector)(void);
static const struct {
    uint32_t *stack;
    vector    handlers[15 + 3];
} vectors __attribute__((section(".vectors"), used)) = {
    _stack_top,
    {board_reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault,
     fault, fault, fault, fault, fault, board_modem_interrupt}      /* IRQ 2: UART 1 receives */
};

/* ---- time --------------------------------------------------------------------------- */

static uint32_t ticks(void)
{
    uint32_t now  = REG(TIMER_FREE + 4);
    uint32_t past = board.last - now;       /* it runs down, and may wrap             */
    uint32_t rest = past % TICKS_PER_MS + board.rest;
    board.last = now;
    board.ms  += past / TICKS_PER_MS + rest / TICKS_PER_MS;
    board.rest = rest % TICKS_PER_MS;
    return past;
}

uint64_t board_millis(void)
{
    (void)ticks();
    return board.ms;
}

uint64_t board_busy(void)
{
    return board_millis() * TICKS_PER_MS + board.rest - board.asleep;
}

void board_sleep(uint32_t ms)
{
    uint64_t begin;
    if (ms > 60000) ms = 60000;             /* the free timer must not wrap unseen    */
    begin = board_millis() * TICKS_PER_MS + board.rest;
    REG(TIMER_WAKE + 4) = ms * TICKS_PER_MS;
    REG(TIMER_WAKE)     = 9;                /* enable, with interrupt                 */
    __asm__ volatile("dsb\n wfi" ::: "memory");
    REG(TIMER_WAKE)      = 0;
    REG(TIMER_WAKE + 12) = 1;               /* clear                                  */
    NVIC_CLEAR(WAKE_IRQ);
    board.asleep += board_millis() * TICKS_PER_MS + board.rest - begin;
}

/* ---- the small things --------------------------------------------------------------- */

void board_print(const char *text)
{
    for (;; text++) {
        while (REG(UART_PRINT + 4) & 1) {}  /* STATE: the transmitter is full         */
        REG(UART_PRINT) = *text != '\0' ? (uint32_t)(unsigned char)*text : '\n';
        if (*text == '\0') return;
    }
}

/* ---- flash -------------------------------------------------------------------------- */

/* Where the power may fail: before each word that changes. The test asks for it. */
static void power(void)
{
    if (board.power != 0 && --board.power == 0) board_exit(77);
}

void board_flash_read(uint32_t at, void *dst, size_t size)
{
    memcpy(dst, (const void *)(FLASH_BASE + at), size);
}

bool board_flash_erase(uint32_t at)
{
    uint32_t end = at + BOARD_FLASH_SECTOR;
    for (; at < end; at += 4) {
        power();
        REG(FLASH_BASE + at) = 0xffffffffu;
    }
    return true;
}

bool board_flash_write(uint32_t at, const void *src, size_t size)
{
    const uint8_t *from = (const uint8_t *)src;
    size_t         i;
    for (i = 0; i < size; i++) {
        if ((at + i) % 4 == 0) power();
        *(volatile uint8_t *)(FLASH_BASE + at + i) &= from[i];
    }
    return true;
}
