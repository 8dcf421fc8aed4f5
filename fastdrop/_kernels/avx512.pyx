"""Owns the kernels in the words of simd/avx512.h."""
cdef extern from "../simd/avx512.h":
    pass
include "kernels.pxi"
