"""Declares table.h, and defines the mixing function of the random stream."""
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "table.h" nogil:
    ctypedef struct stream_key:
        uint64_t k[4]
        uint64_t threshold

    enum:
        KIND_F16
        KIND_BF16
        KIND_F32
        KIND_F64
        KIND_W16
        KIND_W32
        KIND_W64
        SCALE
        RELU
        ADD
        SUM
        VECTOR
        VECTOR_BYTES
        BLOCK
        MIN_PLANES

    int kind_size(int kind)
    int kind_sum_size(int kind)

    ctypedef struct operands:
        int kind
        int use
        uint64_t size
        void *to
        const void *from_ "from"
        uint8_t *bits
        uint64_t bit
        double scale
        const void *bias
        uint64_t period
        uint64_t column
        const void *residual
        int advance
        void *sums
        int streaming
        float scale_f32

    ctypedef struct noise_operands:
        int kind
        int additive
        uint64_t size
        void *to
        const void *from_ "from"
        double stddev
        const float *numbers

    ctypedef struct rate_operands:
        int kind
        int double_rates
        uint64_t size
        void *to
        const void *from_ "from"
        const void *rates
        const double *scales
        uint8_t *bits

    const uint64_t ALL_KEPT
    const uint64_t GOLDEN
    const uint64_t *LANE_MULTIPLES
    const uint64_t MIX_FIRST
    const uint64_t MIX_SECOND
    const uint64_t NOISE_DOMAIN
    const uint64_t RATES_DOMAIN
    const char *TABLE_CAPSULE

    ctypedef struct kernel_table:
        const char *name
        void (*draw)(const stream_key *key, uint64_t first, uint64_t size,
                     uint8_t *bits) noexcept nogil
        void (*use)(const stream_key *key, uint64_t first, const operands *on) noexcept nogil
        void (*noise)(const stream_key *key, uint64_t first,
                      const noise_operands *on) noexcept nogil
        void (*rates)(const stream_key *key, uint64_t first,
                      const rate_operands *on) noexcept nogil


cdef inline uint64_t mix64(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * MIX_FIRST
    z = (z ^ (z >> 27)) * MIX_SECOND
    return z ^ (z >> 31)
