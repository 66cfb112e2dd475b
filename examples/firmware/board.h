/* board.h - what the firmware asks of a board. Six functions and one region of flash
 * are all that a port has to bring; mps2.c and virt.c are two such ports. */
#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Milliseconds since reset; never goes back. To be asked at least every two minutes. */
uint64_t board_millis(void);

/* Waits for an interrupt, at most ms milliseconds. Interrupts only end the wait: the
 * loop looks for itself what there is to do. */
void board_sleep(uint32_t ms);

/* Fills dst from a real source of randomness; false when it failed. */
bool board_random(void *dst, size_t size);

/* Two sectors of NOR flash for the state: an erased byte is 0xff, writing clears bits. */
enum { BOARD_FLASH_SECTOR = 4096, BOARD_FLASH_SECTORS = 2 };
void board_flash_read(uint32_t at, void *dst, size_t size);
bool board_flash_erase(uint32_t at);
bool board_flash_write(uint32_t at, const void *src, size_t size);

/* The settings that the device got at the factory: one value by its name, with a zero
 * behind it, or NULL. *size (which may be NULL) gets its length. See provision.py. */
const char *board_setting(const char *name, size_t *size);

/* One line for whoever listens, and the end (the emulator leaves with that code). */
void board_print(const char *text);
void board_exit(int code) __attribute__((noreturn));

/* For measuring: a clock of 40 ns without the time spent asleep, which is the number of
 * instructions times 40 under QEMU's -icount shift=0; the deepest stack so far in bytes. */
uint64_t board_busy(void);
size_t   board_stack_depth(void);

#endif
