/* cc.h - what lwIP asks of the compiler and the system; lwIP's own defaults for gcc do the rest. */
#ifndef ARCH_CC_H
#define ARCH_CC_H

#include <stdint.h>
#include <stdlib.h>

/* Hard to guess: ports and sequence numbers hang on it. In port.c. */
uint32_t examples_random(void);

#define LWIP_RAND()          examples_random()
#define LWIP_NO_UNISTD_H     1
#define LWIP_TIMEVAL_PRIVATE 0

/* A broken rule of lwIP is a bug of ours: say where, and stop. */
void examples_assert(const char *why, const char *file, int line);
#define LWIP_PLATFORM_ASSERT(why) examples_assert(why, __FILE__, __LINE__)
#define LWIP_PLATFORM_DIAG(x)     ((void)0)

#endif
