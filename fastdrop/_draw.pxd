"""Declares the drawing of masks."""
from libc.stdint cimport uint8_t, uint64_t

from fastdrop._kernels.table cimport stream_key
from fastdrop._stream cimport fastdrop_seed

cdef void derive_key(stream_key *key, const fastdrop_seed *draw, double rate) noexcept nogil
cdef void derive_other_key(stream_key *key, const fastdrop_seed *draw,
                           uint64_t domain) noexcept nogil
cdef void draw_bits(const stream_key *key, uint64_t first, uint64_t size,
                    uint8_t *bits) noexcept nogil
