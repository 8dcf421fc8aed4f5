"""Declares table.h to Cython, and owns the mixing function that the keys and the kernels share."""
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "table.h" nogil:
    ctypedef struct stream_key:
        uint64_t k[5]
        uint64_t threshold

    enum:
        KIND_F16
        KIND_BF16
        KIND_F32
        KIND_F64
        KIND_W16
        KIND_W32
        KIND_W64
        BLOCK
        BLOCK_BYTES

    const uint64_t ALL_KEPT
    const uint64_t GOLDEN
    const uint64_t *LANE_MULTIPLES
    const uint64_t MIX_FIRST
    const uint64_t MIX_SECOND
    const char *TABLE_CAPSULE

    ctypedef struct kernel_table:
        const char *name
        void (*draw)(const stream_key *key, uint64_t first, uint64_t size,
                     uint8_t *bits) noexcept nogil
        void (*draw_apply)(int kind, const stream_key *key, uint64_t first, uint64_t size,
                           void *to, const void *from_, uint8_t *bits,
                           double scale) noexcept nogil
        void (*apply)(int kind, uint64_t size, void *to, const void *from_, const uint8_t *bits,
                      uint64_t bit_offset, double scale) noexcept nogil
        void (*apply_one)(int kind, uint64_t size, void *to, const void *from_, int kept,
                          double scale) noexcept nogil
        void (*relu)(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
                     const void *from_, uint8_t *bits, double scale) noexcept nogil
        void (*add)(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
                    const void *from_, const void *bias, uint64_t period, const void *residual,
                    int advance, uint8_t *bits, double scale) noexcept nogil
        void (*apply_sum)(int kind, uint64_t size, void *to, const void *from_,
                          const uint8_t *bits, uint64_t bit_offset, double scale,
                          void *sums) noexcept nogil


cdef inline uint64_t mix64(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * MIX_FIRST
    z = (z ^ (z >> 27)) * MIX_SECOND
    return z ^ (z >> 31)
