"""Declares masks, and the request for a random one."""
from libc.stdint cimport uint8_t, uint64_t

from numpy cimport ndarray

from fastdrop._apply cimport Work
from fastdrop._kernels.table cimport stream_key
from fastdrop._memory cimport Buffer
from fastdrop._stream cimport Stream, fastdrop_seed

cdef class Mask:
    # The underscore is for attributes that have a property, with its docstring.
    cdef tuple shape_
    cdef tuple noise_shape_
    cdef object rate_
    cdef ndarray rates              # rate_, if it is an array; else None
    cdef double scale_
    cdef bint inverted              # the scale of each element is 1 / (1 - rate), by `rates`
    cdef ndarray scales             # a scale for each element; or None
    cdef bint drawn                 # from a random stream; False for a packed mask
    cdef fastdrop_seed draw
    cdef uint64_t offset
    cdef uint64_t size_
    cdef Buffer buffer              # None if the bits are drawn again at each use
    cdef size_t packed_size(self) noexcept nogil
    cdef Buffer stored_bits(self)
    cdef object kept_bits(self, uint64_t first, uint64_t count)
    cdef size_t chunk_bytes(self) noexcept nogil
    cdef const uint8_t *chunk_bits(self, uint64_t first, uint64_t size,
                                   Buffer chunk) except NULL
    cdef tuple own_noise_shape(self)
    cdef void draw_bits_to(self, uint64_t first, uint64_t size, uint8_t *bits) noexcept
    cdef bint scales_differ(self) noexcept
    cdef bint draws_at_once(self) noexcept
    cdef Buffer new_element_bits(self)
    cdef const uint8_t *element_bits(self, const uint8_t *bits, Buffer expanded) noexcept
    cdef void apply_bits(self, int kind, ndarray to, ndarray from_, const uint8_t *bits,
                         Buffer expanded) noexcept
    cdef set_rate(self, object rate)
    cdef apply_to(self, int kind, ndarray to, ndarray from_)

cdef class Request:
    cdef double rate
    cdef ndarray rates              # None for one rate
    cdef double scale
    cdef bint inverted              # the scale is 1 / (1 - rate), by `rates`
    cdef tuple noise_entries        # None for a bit per element
    cdef bint stored
    cdef Stream stream              # None if `draw` holds the seed
    cdef fastdrop_seed draw
    cdef Mask new_mask(self, tuple shape)
    cdef Buffer temporary           # bits that last for one call
    cdef void prepare(self, Mask mask, Work *work, stream_key *key) except *
    cdef void take_key(self, Mask mask, stream_key *key) except *
    cdef drop_by_rates(self, Mask mask, int kind, ndarray to, ndarray from_)

cdef Request request_of(object rate, object seed, object noise_shape, object scale,
                        object store_mask)
cdef Mask mask_of(object mask, ndarray x, str name)
cdef masked(object mask, object x, object out, str name)
