"""Compiles the kernels for the instruction set of simd/neon.h."""
cdef extern from "../simd/neon.h":
    pass
include "kernels.pxi"
