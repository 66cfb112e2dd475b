/* image.h - what the emulated boards have in common: the image's memory at the start, the
 * depth of its stack, and what the emulator lends. Included by one file of each board. */
#ifndef IMAGE_H
#define IMAGE_H

#include "board.h"
#include "semihost.h"

#include <string.h>

#define STACK_PAINT 0x5ac3a55au

/* From the linker script. */
extern uint32_t _data[], _data_end[], _data_load[], _bss[], _bss_end[], _stack_top[];

/* Below everything that runs: the unused stack gets a pattern that shows its depth. */
static void image_paint(void)
{
    uint32_t *here = (uint32_t *)__builtin_frame_address(0) - 16;
    uint32_t *p    = _bss_end;
    while (p < here) *p++ = STACK_PAINT;
}

/* Variables as the program wants to find them. */
static void image_begin(void)
{
    memcpy(_data, _data_load, (size_t)((char *)_data_end - (char *)_data));
    memset(_bss, 0, (size_t)((char *)_bss_end - (char *)_bss));
    image_paint();
}

/* How many words of flash may change until a test lets the power fail; 0: it does not. */
static uint32_t image_power(void)
{
    const char *text = board_setting("power-fails", NULL);
    uint32_t    n    = 0;
    while (text != NULL && *text != '\0') n = n * 10 + (uint32_t)(*text++ - '0');
    return n;
}

bool board_random(void *dst, size_t size) { return semihost_random(dst, size) == 0; }

void board_exit(int code)
{
    semihost_exit(code);
    for (;;) {}
}

size_t board_stack_depth(void)
{
    const uint32_t *p = _bss_end;
    while (*p == STACK_PAINT) p++;
    return (size_t)((const char *)_stack_top - (const char *)p);
}

#endif
