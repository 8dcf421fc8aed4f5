"""Declares the walk through arrays of one shape in C order."""
from libc.stdint cimport int64_t, uint64_t

from numpy cimport npy_intp

from fastdrop._plan cimport MAX_DIMS

cdef enum:
    # Indices of the arrays that are walked together, and their number.
    TO
    FROM
    BROADCAST
    ARRAYS

cdef struct Walk:
    char *data[ARRAYS]
    int itemsize[ARRAYS]
    bint in_place[ARRAYS]           # in C order and aligned; else its blocks are copied
    int ndim
    int64_t shape[MAX_DIMS]         # innermost dimension first; so are the strides
    int64_t strides[ARRAYS][MAX_DIMS]

cdef uint64_t broadcast_strides(npy_intp *strides, int ndim, const npy_intp *shape,
                                int64_t itemsize) noexcept nogil
cdef void set_up_walk(Walk *walk, int ndim, const npy_intp *shape, const npy_intp *to_strides,
                      const npy_intp *from_strides, const npy_intp *broadcast) noexcept nogil
cdef char *address_of(const Walk *walk, int array, int64_t index) noexcept nogil
cdef char *block_of(const Walk *walk, int array, char *items, int64_t first,
                    int64_t count) noexcept nogil
cdef void move_block(const Walk *walk, int array, char *items, int64_t first,
                     int64_t count) noexcept nogil
