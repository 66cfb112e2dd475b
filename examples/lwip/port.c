/* port.c - clock, random numbers and sequence numbers for lwIP on Linux. */
#define _GNU_SOURCE
#include "lwip/opt.h"

#include "lwip/ip_addr.h"
#include "lwip/sys.h"

#include <stdio.h>
#include <sys/random.h>
#include <time.h>

u32_t sys_now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (u32_t)((u64_t)ts.tv_sec * 1000u + (u64_t)ts.tv_nsec / 1000000u);
}

uint32_t examples_random(void)
{
    uint32_t value = 0;
    if (getrandom(&value, sizeof value, 0) != (ssize_t)sizeof value) abort();
    return value;
}

/* A random first number cannot be guessed by who is not on the way. The clock in it (RFC 6528)
 * keeps a new connection clear of an old one between the same ports; our ports are random. */
u32_t examples_tcp_isn(const ip_addr_t *local_ip, u16_t local_port, const ip_addr_t *remote_ip,
                       u16_t remote_port)
{
    (void)local_ip, (void)local_port, (void)remote_ip, (void)remote_port;
    return examples_random();
}

void examples_assert(const char *why, const char *file, int line)
{
    fprintf(stderr, "lwIP: %s (%s:%d)\n", why, file, line);
    abort();
}
