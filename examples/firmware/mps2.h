/* mps2.h - registers of the MPS2 boards, for their drivers. */
#ifndef MPS2_H
#define MPS2_H

#include <stdint.h>

#define REG(address)      (*(volatile uint32_t *)(uintptr_t)(address))
#define NVIC_ENABLE(irq)  (REG(0xe000e100u) = 1u << (irq))
#define NVIC_DISABLE(irq) (REG(0xe000e180u) = 1u << (irq))
#define NVIC_CLEAR(irq)   (REG(0xe000e280u) = 1u << (irq))

#endif
