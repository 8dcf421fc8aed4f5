"""Owns the kernels in the words of simd/neon.h."""
cdef extern from "../simd/neon.h":
    pass
include "kernels.pxi"
