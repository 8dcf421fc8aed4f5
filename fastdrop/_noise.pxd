"""Declares normal noise."""
from numpy cimport ndarray

from fastdrop._memory cimport Buffer
from fastdrop._stream cimport fastdrop_seed

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
