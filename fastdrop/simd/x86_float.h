/* Sets the floating-point environment of x86 kernels. The caller's modes must not change a bit of a
   result; TensorFlow's threads, for example, flush subnormals to zero. */
#ifndef FASTDROP_X86_FLOAT_H
#define FASTDROP_X86_FLOAT_H

#include <xmmintrin.h>

typedef unsigned int float_state;

/* Sets: round to nearest even, keep subnormals, mask all exceptions. Returns the caller's state. */
static inline float_state float_state_enter(void) {
    float_state saved = _mm_getcsr();
    if ((saved & ~0x3Fu) != 0x1F80u)
        _mm_setcsr(0x1F80u);
    return saved;
}

/* Restores the caller's environment, with its exception flags. */
static inline void float_state_leave(float_state saved) {
    if (_mm_getcsr() != saved)
        _mm_setcsr(saved);
}

#endif
