"""Declares the kernel table in use."""
from fastdrop._kernels.table cimport kernel_table

cdef const kernel_table *kernels
