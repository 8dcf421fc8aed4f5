"""Declares buffers of aligned memory, and arrays over them."""
from libc.stdint cimport uint8_t

from numpy cimport ndarray, npy_intp

cdef class Buffer:
    cdef uint8_t *data
    cdef size_t capacity

cdef Buffer new_buffer(size_t size)
cdef ndarray array_over(Buffer buffer, object dtype, int ndim, npy_intp *shape, bint writeable)
