/* semihost.h - calls into the debugger or emulator, for the things these emulated boards
 * have not: a random number generator and an exit. A product replaces the users of it. */
#ifndef SEMIHOST_H
#define SEMIHOST_H

#include <stddef.h>
#include <stdint.h>

enum { SEMIHOST_OPEN = 1, SEMIHOST_READ = 6, SEMIHOST_EXIT = 0x20 };

static inline long semihost(long what, const void *block)
{
#if defined(__arm__)
    register long        r0 __asm__("r0") = what;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#else
    register long        a0 __asm__("a0") = what;
    register const void *a1 __asm__("a1") = block;
    /* The three have to lie in one page, none of them compressed. */
    __asm__ volatile(".balign 16\n.option push\n.option norvc\n"
                     "slli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                     : "+r"(a0) : "r"(a1) : "memory");
    return a0;
#endif
}

/* Leaves the emulator with this code. */
static inline void semihost_exit(int code)
{
    uintptr_t block[2] = {0x20026u, (uintptr_t)code};       /* ADP_Stopped_ApplicationExit */
    (void)semihost(SEMIHOST_EXIT, block);
}

/* Fills dst from the host's random device; 0 when it worked. */
static inline int semihost_random(void *dst, size_t size)
{
    static long handle = -1;
    uintptr_t   block[3];
    if (handle < 0) {
        block[0] = (uintptr_t)"/dev/urandom";
        block[1] = 1;                                       /* "rb" */
        block[2] = 12;
        handle = semihost(SEMIHOST_OPEN, block);
        if (handle < 0) return -1;
    }
    block[0] = (uintptr_t)handle;
    block[1] = (uintptr_t)dst;
    block[2] = size;
    return semihost(SEMIHOST_READ, block) == 0 ? 0 : -1;
}

#endif
