/* Owns the choice of how this machine's floating-point environment is set aside. */
#ifndef FASTDROP_FLOAT_STATE_H
#define FASTDROP_FLOAT_STATE_H

#if defined(__x86_64__)
#include "x86_float.h"
#elif defined(__aarch64__)
#include "arm_float.h"
#else
/* No name here for the caller's rounding and flushing modes: the C standard's defaults are assumed. */
typedef int float_state;
static inline float_state float_state_enter(void) { return 0; }
static inline void float_state_leave(float_state saved) { (void)saved; }
#endif

#endif
