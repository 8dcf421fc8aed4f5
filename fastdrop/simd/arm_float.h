/* Sets the floating-point environment of aarch64 kernels. The caller's modes (flush to zero,
   alternative half precision, default NaN, rounding) must not change a bit of a result. */
#ifndef FASTDROP_ARM_FLOAT_H
#define FASTDROP_ARM_FLOAT_H

#include <stdint.h>

typedef struct {
    uint64_t control, status;
} float_state;

static inline float_state float_state_enter(void) {
    float_state saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved.control) : : "memory");
    __asm__ volatile("mrs %0, fpsr" : "=r"(saved.status) : : "memory");
    if (saved.control != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return saved;
}

/* Restores the caller's environment, with its exception flags. */
static inline void float_state_leave(float_state saved) {
    if (saved.control != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"(saved.control) : "memory");
    __asm__ volatile("msr fpsr, %0" : : "r"(saved.status) : "memory");
}

#endif
