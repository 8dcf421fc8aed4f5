"""Owns the kernels in the words of simd/portable.h."""
cdef extern from "../simd/portable.h":
    pass
include "kernels.pxi"
