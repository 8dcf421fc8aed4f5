"""Owns the kernels in the words of simd/avx2.h."""
cdef extern from "../simd/avx2.h":
    pass
include "kernels.pxi"
