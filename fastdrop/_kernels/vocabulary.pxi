# Declares the vocabulary: the functions in which the kernels are written. Each instruction set has
# a header in simd/ that defines them; the kernel module includes that header first.

cdef extern from *:
    const char *ISA_NAME

    # Groups of 32 elements to use between two planes of the next vector. Zero where the registers
    # cannot hold the state of the lanes and a group together.
    enum:
        GROUPS_BETWEEN_PLANES

    # The element types that C lacks.
    ctypedef struct f16:
        pass
    ctypedef struct bf16:
        pass

    # Eight lanes of 64 bits, lane 0 first in memory. Arithmetic is modulo 2^64.
    ctypedef struct u64x8:
        pass
    u64x8 u64x8_load(const uint64_t *from_) noexcept nogil
    void u64x8_store(uint8_t *to, u64x8 a) noexcept nogil
    u64x8 u64x8_splat(uint64_t a) noexcept nogil
    u64x8 u64x8_add(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_mul(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_xor(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_and(u64x8 a, u64x8 b) noexcept nogil
    u64x8 u64x8_andnot(u64x8 a, u64x8 b) noexcept nogil         # ~a & b
    u64x8 u64x8_or(u64x8 a, u64x8 b) noexcept nogil
    bint u64x8_any(u64x8 a) noexcept nogil                      # a != 0
    u64x8 u64x8_xor3(u64x8 a, u64x8 b, u64x8 c) noexcept nogil
    u64x8 u64x8_shl(u64x8 a, int count) noexcept nogil
    u64x8 u64x8_shr(u64x8 a, int count) noexcept nogil
    u64x8 u64x8_rotl(u64x8 a, int count) noexcept nogil

    # The bits of 32 consecutive elements: bit i of four little-endian bytes is set if element i is
    # kept.
    ctypedef struct keep32:
        pass
    # Loads the 32 bits from bit `shift` (0 to 7) on. Reads eight bytes.
    keep32 keep32_load_at(const uint8_t *bits, int shift) noexcept nogil
    void keep32_store(uint8_t *bits, keep32 keep) noexcept nogil

    # Write 32 elements of any alignment. `to` equals `from` or does not overlap it. A dropped
    # element becomes zero. A kept one is copied (keep_w*) or multiplied by scale (keep_scale_*); a
    # NaN that is multiplied becomes quiet. Half precision is computed in float32 and rounded to
    # nearest even.
    void keep_w16(uint16_t *to, const uint16_t *from_, keep32 keep) noexcept nogil
    void keep_w32(uint32_t *to, const uint32_t *from_, keep32 keep) noexcept nogil
    void keep_w64(uint64_t *to, const uint64_t *from_, keep32 keep) noexcept nogil
    void keep_scale_f16(f16 *to, const f16 *from_, keep32 keep, float scale) noexcept nogil
    void keep_scale_bf16(bf16 *to, const bf16 *from_, keep32 keep, float scale) noexcept nogil
    void keep_scale_f32(float *to, const float *from_, keep32 keep, float scale) noexcept nogil
    void keep_scale_f64(double *to, const double *from_, keep32 keep, double scale) noexcept nogil

    # Clears the bits of elements <= 0, which ReLU drops. NaN is kept.
    keep32 keep32_positive_f16(keep32 keep, const f16 *from_) noexcept nogil
    keep32 keep32_positive_bf16(keep32 keep, const bf16 *from_) noexcept nogil
    keep32 keep32_positive_f32(keep32 keep, const float *from_) noexcept nogil
    keep32 keep32_positive_f64(keep32 keep, const double *from_) noexcept nogil

    # Write residual + (from + bias) * scale where kept, and residual + 0 where dropped. Each
    # operation is rounded; half precision is computed in float32 and rounded at the end.
    void keep_scale_add_f16(f16 *to, const f16 *from_, const float *bias, const f16 *residual,
                            keep32 keep, float scale) noexcept nogil
    void keep_scale_add_bf16(bf16 *to, const bf16 *from_, const float *bias, const bf16 *residual,
                             keep32 keep, float scale) noexcept nogil
    void keep_scale_add_f32(float *to, const float *from_, const float *bias,
                            const float *residual, keep32 keep, float scale) noexcept nogil
    void keep_scale_add_f64(double *to, const double *from_, const double *bias,
                            const double *residual, keep32 keep, double scale) noexcept nogil

    # As keep_scale_*, and add the products to the sums before they are rounded to half precision.
    void keep_scale_sum_f16(f16 *to, const f16 *from_, float *sums, keep32 keep,
                            float scale) noexcept nogil
    void keep_scale_sum_bf16(bf16 *to, const bf16 *from_, float *sums, keep32 keep,
                             float scale) noexcept nogil
    void keep_scale_sum_f32(float *to, const float *from_, float *sums, keep32 keep,
                            float scale) noexcept nogil
    void keep_scale_sum_f64(double *to, const double *from_, double *sums, keep32 keep,
                            double scale) noexcept nogil

    # Computes 32 standard normal numbers from random words.
    void normals(float *to, u64x8 distances, u64x8 directions) noexcept nogil

    # Write from * (1 + stddev * number), or from + stddev * number, for 32 elements. Each operation
    # is rounded; half precision is computed in float32 and rounded to nearest even.
    void noise_times_f16(f16 *to, const f16 *from_, const float *numbers,
                         float stddev) noexcept nogil
    void noise_times_bf16(bf16 *to, const bf16 *from_, const float *numbers,
                          float stddev) noexcept nogil
    void noise_times_f32(float *to, const float *from_, const float *numbers,
                         float stddev) noexcept nogil
    void noise_times_f64(double *to, const double *from_, const float *numbers,
                         double stddev) noexcept nogil
    void noise_plus_f16(f16 *to, const f16 *from_, const float *numbers,
                        float stddev) noexcept nogil
    void noise_plus_bf16(bf16 *to, const bf16 *from_, const float *numbers,
                         float stddev) noexcept nogil
    void noise_plus_f32(float *to, const float *from_, const float *numbers,
                        float stddev) noexcept nogil
    void noise_plus_f64(double *to, const double *from_, const float *numbers,
                        double stddev) noexcept nogil

    # Compute the probabilities of keeping 32 elements from their rates, and their inverses.
    void keep_rates_f32(double *keeps, const float *rates) noexcept nogil
    void keep_rates_f64(double *keeps, const double *rates) noexcept nogil
    void inverses(double *scales, const double *keeps) noexcept nogil

    # Decides on eight elements by random words: bit i is set if element i is kept.
    uint32_t kept_of_8(u64x8 words, const double *keeps) noexcept nogil

    # As keep_scale_*, with a scale for each element. At scale 1 elements are copied.
    void keep_by_f16(f16 *to, const f16 *from_, uint32_t kept, const double *scales) noexcept nogil
    void keep_by_bf16(bf16 *to, const bf16 *from_, uint32_t kept,
                      const double *scales) noexcept nogil
    void keep_by_f32(float *to, const float *from_, uint32_t kept,
                     const double *scales) noexcept nogil
    void keep_by_f64(double *to, const double *from_, uint32_t kept,
                     const double *scales) noexcept nogil

    # Copies whole cache lines (64 bytes) to an aligned address, with non-temporal stores if the
    # instruction set has them. stream_end() comes after the last line.
    void stream_lines(void *to, const void *from_, uint64_t size) noexcept nogil
    void stream_end() noexcept nogil

    # Saves the caller's rounding and subnormal modes and sets the default modes; restores them.
    ctypedef struct float_state:
        pass
    float_state float_state_enter() noexcept nogil
    void float_state_leave(float_state saved) noexcept nogil
