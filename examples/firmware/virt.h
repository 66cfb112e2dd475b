/* virt.h - registers of QEMU's RISC-V machine, for its drivers. */
#ifndef VIRT_H
#define VIRT_H

#include <stdint.h>

#define REG(address) (*(volatile uint32_t *)(uintptr_t)(address))

/* This interrupt ends a wait from now on. */
void virt_interrupt(unsigned irq);

#endif
