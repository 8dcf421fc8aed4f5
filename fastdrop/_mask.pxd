"""Declares the mask to the functions that make and use masks."""
from libc.stdint cimport uint8_t, uint64_t

from numpy cimport ndarray

from fastdrop._apply cimport Work
from fastdrop._kernels.table cimport stream_key
from fastdrop._memory cimport Buffer
from fastdrop._stream cimport Stream, fastdrop_seed

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
    cdef size_t window_bytes(self) noexcept nogil
    cdef const uint8_t *some_bits(self, uint64_t first, uint64_t size,
                                  Buffer window) except NULL
    cdef tuple own_noise_shape(self)
    cdef apply_to(self, int kind, ndarray to, ndarray from_)

cdef class Request:
    cdef double rate
    cdef double scale
    cdef tuple noise_entries        # None for the shape of the arrays
    cdef bint stored
    cdef Stream stream              # None where the seed is fixed
    cdef fastdrop_seed draw         # then
    cdef Mask new_mask(self, tuple shape)
    cdef Buffer temporary           # the bits of a mask that does not store them, during the call
    cdef void prepare(self, Mask mask, Work *work, stream_key *key) except *
    cdef void take_key(self, Mask mask, stream_key *key) except *

cdef Request request_of(object rate, object seed, object noise_shape, object scale,
                        object store_mask)
cdef Mask mask_of(object mask, ndarray x, str name)
cdef masked(object mask, object x, object out, str name)
