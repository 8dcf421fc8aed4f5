"""Declares normal noise, and how it is applied to arrays."""
from libc.stdint cimport uint64_t

from numpy cimport ndarray, npy_intp

from fastdrop._kernels.table cimport noise_operands, stream_key
from fastdrop._memory cimport Buffer
from fastdrop._stream cimport Stream, fastdrop_seed
from fastdrop._walk cimport Walk

cdef struct NoiseWork:
    noise_operands on               # points to the first elements
    Walk walk
    stream_key key
    uint64_t noise_size             # numbers of the noise shape

cdef void set_up_noise(NoiseWork *work, int ndim, const npy_intp *shape,
                       const npy_intp *to_strides, const npy_intp *from_strides,
                       const npy_intp *noise_shape) noexcept nogil
cdef void draw_and_apply(NoiseWork *work, const fastdrop_seed *position) noexcept nogil

cdef class Noise:
    # The underscore is for attributes that have a property, with its docstring.
    cdef tuple shape_
    cdef tuple noise_shape_
    cdef double stddev_
    cdef ndarray stddevs            # a standard deviation for each element; or None
    cdef bint additive_
    cdef fastdrop_seed position
    cdef Buffer new_numbers(self)
    cdef void apply_with(self, int kind, ndarray to, ndarray from_, Buffer buffer) noexcept
    cdef apply_to(self, int kind, ndarray to, ndarray from_, Stream stream)
    cdef apply_by_stddevs(self, ndarray to, ndarray from_, Stream stream)
    cdef check(self, ndarray x)
    cdef dict state(self)
