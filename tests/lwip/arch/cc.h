/* What lwIP wants to know of the compiler: nothing that is not standard. */
#ifndef TESTS_ARCH_CC_H
#define TESTS_ARCH_CC_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

#define LWIP_TIMEVAL_PRIVATE 0
typedef int sys_prot_t;
#define LWIP_PLATFORM_DIAG(x)   do { printf x; } while (0)
#define LWIP_PLATFORM_ASSERT(x)                                       \
    do {                                                              \
        printf("lwIP: %s, %s:%d\n", x, __FILE__, __LINE__);           \
        fflush(NULL);                                                 \
        abort();                                                      \
    } while (0)

unsigned tests_lwip_rand(void);
#define LWIP_RAND() (tests_lwip_rand())

#endif
