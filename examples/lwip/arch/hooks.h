/* hooks.h - functions of ours that lwIP calls. */
#ifndef ARCH_HOOKS_H
#define ARCH_HOOKS_H

#include "lwip/ip_addr.h"

u32_t examples_tcp_isn(const ip_addr_t *local_ip, u16_t local_port, const ip_addr_t *remote_ip,
                       u16_t remote_port);

#endif
