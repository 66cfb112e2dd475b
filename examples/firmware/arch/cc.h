/* arch/cc.h - what lwIP has to know of the compiler: nothing that it does not guess. */
#ifndef LWIP_ARCH_CC_H
#define LWIP_ARCH_CC_H

#include "board.h"

#define LWIP_PLATFORM_DIAG(x)   do { } while (0)
#define LWIP_PLATFORM_ASSERT(x) do { board_print(x); board_exit(98); } while (0)

#endif
