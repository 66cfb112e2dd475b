/* virt.c - QEMU's RISC-V machine "virt" with one RV32IMAC core: start, clock, UART, random
 * numbers, and its CFI flash. Interrupts stay masked: a pending one ends the wait in
 * board_sleep, and that is all it is for. */
#include "board.h"
#include "image.h"
#include "virt.h"

#include <string.h>

#define UART        0x10000000u
#define PLIC        0x0c000000u
#define MTIMECMP    0x02004000u             /* of the CLINT; mtime runs at 10 MHz     */
#define MTIME       0x0200bff8u
#define FLASH       0x22000000u             /* two chips of 16 bits side by side      */
#define FLASH_STEP  0x40000u                /* what they erase in one go              */

enum { TICKS_PER_MS = 10000, NS_PER_TICK = 100, MTIE = 1 << 7, MEIE = 1 << 11 };

int main(void);

static struct {
    uint64_t asleep;                        /* ticks                                  */
    uint32_t power;                         /* flash words until the power fails      */
} board;

/* ---- start -------------------------------------------------------------------------- */

__attribute__((naked, section(".vectors"), used)) void _start(void)
{
    __asm__ volatile("la sp, _stack_top\n la t0, board_fault\n csrw mtvec, t0\n j board_reset");
}

__attribute__((used)) void board_reset(void)
{
    image_begin();
    REG(PLIC + 0x200000) = 0;               /* every priority above 0 counts          */
    board.power = image_power();
    board_exit(main());
}

static void hex(char *dst, uint32_t v)
{
    int i;
    for (i = 7; i >= 0; i--, v >>= 4) dst[i] = "0123456789abcdef"[v & 15];
}

/* A trap: where, and the end. */
__attribute__((used, aligned(4))) void board_fault(void)
{
    char     text[] = "fault: pc ........ cause ........ value ........";
    uint32_t pc, cause, value;
    __asm__ volatile("csrr %0, mepc\n csrr %1, mcause\n csrr %2, mtval"
                     : "=r"(pc), "=r"(cause), "=r"(value));
    hex(text + 10, pc);
    hex(text + 25, cause);
    hex(text + 40, value);
    board_print(text);
    board_exit(99);
}

/* ---- time --------------------------------------------------------------------------- */

static uint64_t ticks(void)
{
    uint32_t high, low;
    do {
        high = REG(MTIME + 4);
        low  = REG(MTIME);
    } while (high != REG(MTIME + 4));
    return (uint64_t)high << 32 | low;
}

uint64_t board_millis(void) { return ticks() / TICKS_PER_MS; }

uint64_t board_busy(void) { return (ticks() - board.asleep) * NS_PER_TICK / 40; }

void board_sleep(uint32_t ms)
{
    uint64_t begin = ticks(), end = begin + (uint64_t)ms * TICKS_PER_MS;
    uint32_t irq;
    REG(MTIMECMP + 4) = 0xffffffffu;        /* never, between the two writes          */
    REG(MTIMECMP)     = (uint32_t)end;
    REG(MTIMECMP + 4) = (uint32_t)(end >> 32);
    __asm__ volatile("csrs mie, %0\n wfi" : : "r"(MTIE | MEIE) : "memory");
    while ((irq = REG(PLIC + 0x200004)) != 0) REG(PLIC + 0x200004) = irq;
    board.asleep += ticks() - begin;
}

void virt_interrupt(unsigned irq)
{
    REG(PLIC + 4 * irq) = 1;                /* priority, and enabled for machine mode */
    REG(PLIC + 0x2000) |= 1u << irq;
}

/* ---- the small things --------------------------------------------------------------- */

void board_print(const char *text)
{
    for (;; text++) {
        while (!(*(volatile uint8_t *)(UART + 5) & 0x20)) {}
        *(volatile uint8_t *)UART = *text != '\0' ? (uint8_t)*text : (uint8_t)'\n';
        if (*text == '\0') return;
    }
}

/* ---- flash: Intel's command set on both chips at once --------------------------------- */

enum { CMD_WRITE = 0x00400040, CMD_ERASE = 0x00200020, CMD_SURE = 0x00d000d0,
       CMD_STATUS = 0x00700070, CMD_CLEAR = 0x00500050, CMD_READ = 0x00ff00ff,
       READY = 0x00800080, TROUBLE = 0x003a003a };

/* Sectors lie a block of the chips apart, so that one can be erased without the other. */
static uint32_t place(uint32_t at)
{
    return FLASH + at / BOARD_FLASH_SECTOR * FLASH_STEP + at % BOARD_FLASH_SECTOR;
}

/* Where the power may fail: before each word that changes. The test asks for it. */
static void power(void)
{
    if (board.power != 0 && --board.power == 0) board_exit(77);
}

static bool finish(uint32_t at)
{
    uint32_t status;
    do status = REG(at);
    while ((status & READY) != READY);
    REG(at) = CMD_CLEAR;
    REG(at) = CMD_READ;
    return (status & TROUBLE) == 0;
}

void board_flash_read(uint32_t at, void *dst, size_t size)
{
    memcpy(dst, (const void *)(uintptr_t)place(at), size);
}

bool board_flash_erase(uint32_t at)
{
    power();
    REG(place(at)) = CMD_ERASE;
    REG(place(at)) = CMD_SURE;
    return finish(place(at));
}

bool board_flash_write(uint32_t at, const void *src, size_t size)
{
    const uint8_t *from = (const uint8_t *)src;
    bool           good = true;
    while (size != 0) {
        uint32_t word = 0xffffffffu, skip = at % 4, n = 4 - skip;
        if (n > size) n = (uint32_t)size;
        memcpy((uint8_t *)&word + skip, from, n);
        power();
        REG(place(at - skip)) = CMD_WRITE;
        REG(place(at - skip)) = word;
        good = finish(place(at - skip)) && good;
        from += n;
        at   += n;
        size -= n;
    }
    return good;
}
