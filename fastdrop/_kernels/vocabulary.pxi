# Owns the vocabulary: the words in which the kernels are written, and which each header of simd/
# says in its own instructions. The including module has included one such header.

cdef extern from *:
    const char *ISA_NAME

    # How many groups of 32 elements to use between two planes of the next draw: none where the
    # state of the lanes and what is used do not fit the registers together.
    enum:
        GROUPS_BETWEEN_PLANES

    # Elements that C has no name for.
    ctypedef struct f16:
        pass
    ctypedef struct bf16:
        pass

    # Eight 64-bit lanes, lane 0 first in memory; arithmetic modulo 2^64.
    ctypedef struct u64x8:
        pass
    u64x8 u64x8_load(const uint64_t *from_) noexcept nogil
    void u64x8_store(uint8_t *to, u64x8 a) noexcept nogil
    u64x8 u64x8_splat(uint64_t a) noexcept nogil
    u64x8 u64x8_add(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_mul(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_xor(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_and(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_andnot(u64x8 a, u64x8 b) noexcept nogil         # those of b that are not in a
    u64x8 u64x8_or(u64x8 a, u64x8 b) noexcept nogil
    bint u64x8_any(u64x8 a) noexcept nogil                      # whether a bit is set
    u64x8 u64x8_xor3(u64x8 a, u64x8 b, u64x8 c) noexcept nogil
    u64x8 u64x8_shl(u64x8 a, int count) noexcept nogil
    u64x8 u64x8_shr(u64x8 a, int count) noexcept nogil
    u64x8 u64x8_rotl(u64x8 a, int count) noexcept nogil

    # Which of 32 consecutive elements are kept: bit i of four bytes, least significant first, is
    # the answer on element i.
    ctypedef struct keep32:
        pass
    # The answers from bit `shift` (0 to 7) on, out of eight bytes.
    keep32 keep32_load_at(const uint8_t *bits, int shift) noexcept nogil
    void keep32_store(uint8_t *bits, keep32 keep) noexcept nogil

    # 32 elements of any alignment, `to` being `from` or apart from it: zero where dropped, and
    # where kept the element, either as it is or multiplied by scale (in float32 and rounded to
    # nearest even for the two half-precision types). A NaN that is multiplied becomes quiet.
    void keep_w16(uint16_t *to, const uint16_t *from_, keep32 keep) noexcept nogil
    void keep_w32(uint32_t *to, const uint32_t *from_, keep32 keep) noexcept nogil
    void keep_w64(uint64_t *to, const uint64_t *from_, keep32 keep) noexcept nogil
    void keep_scale_f16(f16 *to, const f16 *from_, keep32 keep, float scale) noexcept nogil
    void keep_scale_bf16(bf16 *to, const bf16 *from_, keep32 keep, float scale) noexcept nogil
    void keep_scale_f32(float *to, const float *from_, keep32 keep, float scale) noexcept nogil
    void keep_scale_f64(double *to, const double *from_, keep32 keep, double scale) noexcept nogil

    # Of the kept ones, those not <= 0: what ReLU lets through. NaN is one of them.
    keep32 keep32_positive_f16(keep32 keep, const f16 *from_) noexcept nogil
    keep32 keep32_positive_bf16(keep32 keep, const bf16 *from_) noexcept nogil
    keep32 keep32_positive_f32(keep32 keep, const float *from_) noexcept nogil
    keep32 keep32_positive_f64(keep32 keep, const double *from_) noexcept nogil

    # 32 elements: residual + (from + bias) * scale where kept and residual + 0 where dropped, each
    # operation rounded, and for the two half-precision types all in float32 and rounded at the end.
    void keep_scale_add_f16(f16 *to, const f16 *from_, const float *bias, const f16 *residual,
                            keep32 keep, float scale) noexcept nogil
    void keep_scale_add_bf16(bf16 *to, const bf16 *from_, const float *bias, const bf16 *residual,
                             keep32 keep, float scale) noexcept nogil
    void keep_scale_add_f32(float *to, const float *from_, const float *bias,
                            const float *residual, keep32 keep, float scale) noexcept nogil
    void keep_scale_add_f64(double *to, const double *from_, const double *bias,
                            const double *residual, keep32 keep, double scale) noexcept nogil

    # As keep_scale, and adds what is written to the sums, before it is rounded to half precision.
    void keep_scale_sum_f16(f16 *to, const f16 *from_, float *sums, keep32 keep,
                            float scale) noexcept nogil
    void keep_scale_sum_bf16(bf16 *to, const bf16 *from_, float *sums, keep32 keep,
                             float scale) noexcept nogil
    void keep_scale_sum_f32(float *to, const float *from_, float *sums, keep32 keep,
                            float scale) noexcept nogil
    void keep_scale_sum_f64(double *to, const double *from_, double *sums, keep32 keep,
                            double scale) noexcept nogil

    # Lines of 64 bytes to a line's beginning, past the caches where the instruction set has a way;
    # and what comes after the last of them.
    void stream_lines(void *to, const void *from_, uint64_t size) noexcept nogil
    void stream_end() noexcept nogil

    # The caller's rounding and subnormal modes, set aside while a kernel runs.
    ctypedef struct float_state:
        pass
    float_state float_state_enter() noexcept nogil
    void float_state_leave(float_state saved) noexcept nogil
