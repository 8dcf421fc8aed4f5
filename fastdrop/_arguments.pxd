"""Declares the checks of arguments."""
from libc.stdint cimport uint64_t

from numpy cimport ndarray

cdef double rate_of(object rate) except -1
cdef double scale_of(object scale, double rate) except? -1
cdef double stddev_of(object stddev) except -1
cdef double stddev_of_rate(object rate) except -1
cdef double default_scale(double rate) noexcept nogil
cdef bint flag_of(object value, str name) except -1
cdef object integer_of(object value, str name, object low, object high, str bounds)
cdef tuple noise_entries_of(object noise_shape)
cdef tuple noise_shape_of(tuple entries, tuple shape)
cdef bint is_integer(object value)
cdef tuple shape_of(object shape)
cdef uint64_t size_of(tuple shape)
cdef object short_repr(object value)
cdef int kind_of(ndarray array, str name) except -1
cdef ndarray base_view(ndarray array)
cdef ndarray own_view(ndarray array)
cdef ndarray input_of(object x, str name)
cdef ndarray inplace_of(object x, str name)
cdef ndarray output_of(object out, ndarray x, str name)
