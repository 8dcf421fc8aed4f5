"""Declares the kernel table in use to the modules that call kernels."""
from fastdrop._kernels.table cimport kernel_table

cdef const kernel_table *kernels
