"""Declares normal noise, and the walk through the arrays that it is applied to."""
from libc.stdint cimport int64_t, uint64_t

from numpy cimport ndarray, npy_intp

from fastdrop._kernels.table cimport noise_operands, stream_key
from fastdrop._memory cimport Buffer
from fastdrop._plan cimport MAX_DIMS
from fastdrop._stream cimport fastdrop_seed

cdef enum:
    # Indices of the arrays that are walked together, and their number.
    TO
    FROM
    NUMBERS
    ARRAYS

cdef struct Walk:
    stream_key key
    noise_operands on               # points to the first elements
    int itemsize
    bint in_place[ARRAYS]           # the kernel accesses the array itself; else it is gathered
    uint64_t noise_size             # numbers of the noise shape
    int ndim
    int64_t shape[MAX_DIMS]         # innermost dimension first; so are the strides
    int64_t strides[ARRAYS][MAX_DIMS]

cdef void set_up_walk(Walk *walk, int ndim, const npy_intp *shape, const npy_intp *to_strides,
                      const npy_intp *from_strides, const npy_intp *noise_shape) noexcept nogil
cdef void draw_and_apply(Walk *walk, const fastdrop_seed *position,
                         float *numbers) noexcept nogil

cdef class Noise:
    # The underscore is for attributes that have a property, with its docstring.
    cdef tuple shape_
    cdef tuple noise_shape_
    cdef double stddev_
    cdef bint additive_
    cdef fastdrop_seed position
    cdef Buffer new_numbers(self)
    cdef void apply_with(self, int kind, ndarray to, ndarray from_, Buffer buffer) noexcept
    cdef check(self, ndarray x)
    cdef dict state(self)
