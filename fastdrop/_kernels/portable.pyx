"""Compiles the kernels for the instruction set of simd/portable.h."""
cdef extern from "../simd/portable.h":
    pass
include "kernels.pxi"
