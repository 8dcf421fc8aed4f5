"""Compiles the kernels for the instruction set of simd/avx512.h."""
cdef extern from "../simd/avx512.h":
    pass
include "kernels.pxi"
