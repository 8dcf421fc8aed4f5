"""Declares the mask to the functions that make and use masks."""
from libc.stdint cimport uint64_t

from numpy cimport ndarray

from fastdrop._kernels.table cimport stream_key
from fastdrop._memory cimport Buffer
from fastdrop._stream cimport fastdrop_seed, Seed

cdef class Mask:
    cdef readonly tuple shape
    cdef readonly tuple noise_shape
    cdef readonly object rate
    cdef readonly double scale
    cdef bint drawn                 # from a stream, and not packed from what a user decided
    cdef fastdrop_seed draw
    cdef uint64_t offset
    cdef uint64_t size_
    cdef Buffer buffer              # None where bits are drawn again when used
    cdef size_t packed_size(self) noexcept nogil
    cdef Buffer stored_bits(self)
    cdef apply_to(self, int kind, ndarray to, ndarray from_)

cdef Mask new_mask(tuple shape, tuple noise_shape, double rate, double scale, bint store_mask)
cdef void start_draw(Mask mask, Seed seed, stream_key *key) except *
cdef Mask mask_of(object mask, ndarray x, str name)
cdef masked(object mask, object x, object out, str name)
