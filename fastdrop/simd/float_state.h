/* Selects the floating-point environment of this machine. */
#ifndef FASTDROP_FLOAT_STATE_H
#define FASTDROP_FLOAT_STATE_H

#if defined(__x86_64__)
#include "x86_float.h"
#elif defined(__aarch64__)
#include "arm_float.h"
#else
/* Unknown machine: the caller's modes are assumed to be the C standard's defaults. */
typedef int float_state;
static inline float_state float_state_enter(void) { return 0; }
static inline void float_state_leave(float_state saved) { (void)saved; }
#endif

#endif
