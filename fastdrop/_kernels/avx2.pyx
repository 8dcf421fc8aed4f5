"""Compiles the kernels for the instruction set of simd/avx2.h."""
cdef extern from "../simd/avx2.h":
    pass
include "kernels.pxi"
