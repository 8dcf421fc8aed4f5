/* Owns the floating-point environment of aarch64 kernels: what a caller has set must not change a
   bit of a result (flush to zero, alternative half precision, default NaN, rounding mode). */
#ifndef FASTDROP_ARM_FLOAT_H
#define FASTDROP_ARM_FLOAT_H

#include <stdint.h>

typedef struct { uint64_t control, status; } float_state;

static inline float_state float_state_enter(void) {
    float_state saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved.control) : : "memory");
    __asm__ volatile("mrs %0, fpsr" : "=r"(saved.status) : : "memory");
    if (saved.control != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
    return saved;
}

/* Restores all of it, the exception flags too: a kernel leaves no trace in them. */
static inline void float_state_leave(float_state saved) {
    if (saved.control != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"(saved.control) : "memory");
    __asm__ volatile("msr fpsr, %0" : : "r"(saved.status) : "memory");
}

#endif
