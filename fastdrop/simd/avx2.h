/* Defines the vocabulary (vocabulary.pxi) for AVX2: the extensions AVX2 and F16C of x86-64-v3.

   The instructions that matter most (port and latency on Haswell to Cascade Lake):
     vpand + vpcmpeqd    p015, p01; 1 cycle each   expand 8 bits to a vector of 32-bit masks
     vpshufb             p5, 1 cycle               selects 16 of the 32 bits for 16-bit masks
     vptest              p0+p5, 3 cycles           tests 512 undecided elements at once */
#ifndef FASTDROP_AVX2_H
#define FASTDROP_AVX2_H

#include <immintrin.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "avx2"
#define GROUPS_BETWEEN_PLANES 0

/* ---- eight 64-bit lanes ---- */
typedef struct {
    __m256i a, b;
} u64x8;

static inline u64x8 u64x8_load(const uint64_t *from) {
    return (u64x8){_mm256_loadu_si256((const __m256i *)from),
                   _mm256_loadu_si256((const __m256i *)(from + 4))};
}
static inline void u64x8_store(uint8_t *to, u64x8 x) {
    _mm256_storeu_si256((__m256i *)to, x.a);
    _mm256_storeu_si256((__m256i *)to + 1, x.b);
}
static inline u64x8 u64x8_splat(uint64_t x) {
    return (u64x8){_mm256_set1_epi64x((long long)x), _mm256_set1_epi64x((long long)x)};
}
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) {
    return (u64x8){_mm256_add_epi64(x.a, y.a), _mm256_add_epi64(x.b, y.b)};
}
/* The low 64 bits of a product, from 32-bit products: AVX2 has no 64-bit multiplication. */
static inline __m256i mul_u64x4(__m256i x, __m256i y) {
    __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(x, 32), y),
                                     _mm256_mul_epu32(x, _mm256_srli_epi64(y, 32)));
    return _mm256_add_epi64(_mm256_mul_epu32(x, y), _mm256_slli_epi64(cross, 32));
}
static inline u64x8 u64x8_mul(u64x8 x, u64x8 y) {
    return (u64x8){mul_u64x4(x.a, y.a), mul_u64x4(x.b, y.b)};
}
static inline u64x8 u64x8_xor(u64x8 x, u64x8 y) {
    return (u64x8){_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)};
}
static inline u64x8 u64x8_and(u64x8 x, u64x8 y) {
    return (u64x8){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
static inline u64x8 u64x8_andnot(u64x8 x, u64x8 y) {
    return (u64x8){_mm256_andnot_si256(x.a, y.a), _mm256_andnot_si256(x.b, y.b)};
}
static inline u64x8 u64x8_or(u64x8 x, u64x8 y) {
    return (u64x8){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
static inline int u64x8_any(u64x8 x) {
    __m256i either = _mm256_or_si256(x.a, x.b);
    return !_mm256_testz_si256(either, either);
}
static inline u64x8 u64x8_xor3(u64x8 x, u64x8 y, u64x8 z) { return u64x8_xor(u64x8_xor(x, y), z); }
static inline u64x8 u64x8_shl(u64x8 x, int count) {
    return (u64x8){_mm256_slli_epi64(x.a, count), _mm256_slli_epi64(x.b, count)};
}
static inline u64x8 u64x8_shr(u64x8 x, int count) {
    return (u64x8){_mm256_srli_epi64(x.a, count), _mm256_srli_epi64(x.b, count)};
}
static inline u64x8 u64x8_rotl(u64x8 x, int count) {
    return u64x8_xor(u64x8_shl(x, count), u64x8_shr(x, 64 - count));
}

/* ---- the bits of 32 consecutive elements, repeated in eight lanes ---- */
typedef __m256i keep32;

static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    return _mm256_set1_epi32((int)(word >> shift));
}
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    int word = _mm256_cvtsi256_si32(keep);
    memcpy(bits, &word, sizeof word);
}
/* 16-bit masks of elements 16i .. 16i+15 (i = 0, 1): all ones if kept, zero if dropped. */
static inline __m256i keep32_words(keep32 keep, int i) {
    const __m256i bit =
        _mm256_setr_epi16(0x0001, 0x0002, 0x0004, 0x0008, 0x0010, 0x0020, 0x0040, 0x0080, 0x0100,
                          0x0200, 0x0400, 0x0800, 0x1000, 0x2000, 0x4000, (short)0x8000);
    __m256i half = _mm256_shuffle_epi8(keep, _mm256_set1_epi16((short)(i ? 0x0302 : 0x0100)));
    return _mm256_cmpeq_epi16(_mm256_and_si256(half, bit), bit);
}
/* 32-bit masks of elements 8i .. 8i+7 (i = 0..3), and 64-bit masks of elements 4i .. 4i+3 (i =
   0..7). */
static inline __m256i keep32_wide(keep32 keep, int i) {
    const __m256i first = _mm256_setr_epi32(0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80);
    __m256i bit = _mm256_slli_epi32(first, 8 * i);
    return _mm256_cmpeq_epi32(_mm256_and_si256(keep, bit), bit);
}
static inline __m256i keep32_widest(keep32 keep, int i) {
    const __m256i first = _mm256_setr_epi32(0x1, 0x1, 0x2, 0x2, 0x4, 0x4, 0x8, 0x8);
    __m256i bit = _mm256_slli_epi32(first, 4 * i);
    return _mm256_cmpeq_epi32(_mm256_and_si256(keep, bit), bit);
}

/* ---- keep: copy kept elements, set dropped ones to zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    for (int i = 0; i < 2; i++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(from + 16 * i));
        _mm256_storeu_si256((__m256i *)(to + 16 * i), _mm256_and_si256(x, keep32_words(keep, i)));
    }
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(from + 8 * i));
        _mm256_storeu_si256((__m256i *)(to + 8 * i), _mm256_and_si256(x, keep32_wide(keep, i)));
    }
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 8; i++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(from + 4 * i));
        _mm256_storeu_si256((__m256i *)(to + 4 * i), _mm256_and_si256(x, keep32_widest(keep, i)));
    }
}

/* ---- keep_scale: scale kept elements, set dropped ones to zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    __m256 scales = _mm256_set1_ps(scale);
    for (int i = 0; i < 4; i++) {
        __m256 product = _mm256_mul_ps(_mm256_loadu_ps(from + 8 * i), scales);
        __m256 mask = _mm256_castsi256_ps(keep32_wide(keep, i));
        _mm256_storeu_ps(to + 8 * i, _mm256_and_ps(product, mask));
    }
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    __m256d scales = _mm256_set1_pd(scale);
    for (int i = 0; i < 8; i++) {
        __m256d product = _mm256_mul_pd(_mm256_loadu_pd(from + 4 * i), scales);
        __m256d mask = _mm256_castsi256_pd(keep32_widest(keep, i));
        _mm256_storeu_pd(to + 4 * i, _mm256_and_pd(product, mask));
    }
}
static inline __m128i scaled_f16x8(const f16 *from, __m256 scales) {
    __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
    return _mm256_cvtps_ph(_mm256_mul_ps(wide, scales),
                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    __m256 scales = _mm256_set1_ps(scale);
    for (int i = 0; i < 2; i++) {
        __m256i product = _mm256_set_m128i(scaled_f16x8(from + 16 * i + 8, scales),
                                           scaled_f16x8(from + 16 * i, scales));
        _mm256_storeu_si256((__m256i *)(to + 16 * i),
                            _mm256_and_si256(product, keep32_words(keep, i)));
    }
}
/* The products of the even words and of the odd words have 32 bits each. Their upper halves and
   their lower halves are collected, and all 16 are rounded to nearest even at once: up if the
   lower half, plus one if the upper half is odd, is above 2^15. The lower half of a NaN is zero,
   since the scale is finite: rounding does not change a NaN. */
static inline __m256i scaled_bf16x16(const bf16 *from, __m256 scales) {
    __m256i words = _mm256_loadu_si256((const __m256i *)from);
    __m256 even = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    __m256 odd = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32((int)0xFFFF0000)));
    __m256i a = _mm256_castps_si256(_mm256_mul_ps(even, scales));
    __m256i b = _mm256_castps_si256(_mm256_mul_ps(odd, scales));
    __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xAA);
    __m256i lower = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA);
    __m256i one = _mm256_set1_epi16(1);
    __m256i with_odd = _mm256_adds_epu16(lower, _mm256_and_si256(upper, one));
    __m256i above = _mm256_subs_epu16(with_odd, _mm256_set1_epi16((short)0x8000));
    return _mm256_add_epi16(upper, _mm256_min_epu16(above, one));
}
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    __m256 scales = _mm256_set1_ps(scale);
    for (int i = 0; i < 2; i++) {
        __m256i product = scaled_bf16x16(from + 16 * i, scales);
        _mm256_storeu_si256((__m256i *)(to + 16 * i),
                            _mm256_and_si256(product, keep32_words(keep, i)));
    }
}

/* ---- keep32_positive: clear the bits of elements <= 0 ---- */
static inline keep32 keep32_and(keep32 keep, uint32_t bits) {
    return _mm256_and_si256(keep, _mm256_set1_epi32((int)bits));
}
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        __m256 x = _mm256_loadu_ps(from + 8 * i);
        __m256 positive = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NLE_UQ);
        bits |= (uint32_t)_mm256_movemask_ps(positive) << (8 * i);
    }
    return keep32_and(keep, bits);
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; i++) {
        __m256d x = _mm256_loadu_pd(from + 4 * i);
        __m256d positive = _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_NLE_UQ);
        bits |= (uint32_t)_mm256_movemask_pd(positive) << (4 * i);
    }
    return keep32_and(keep, bits);
}
/* As integers, positive numbers are above zero, and negative NaNs are above minus infinity. */
static inline __m256i positive_u16x16(const void *from, uint16_t minus_infinity) {
    __m256i words = _mm256_loadu_si256((const __m256i *)from);
    __m256i flipped = _mm256_xor_si256(words, _mm256_set1_epi16((short)0x8000));
    __m256i infinity = _mm256_set1_epi16((short)(minus_infinity ^ 0x8000));
    return _mm256_or_si256(_mm256_cmpgt_epi16(words, _mm256_setzero_si256()),
                           _mm256_cmpgt_epi16(flipped, infinity));
}
static inline keep32 positive_words(keep32 keep, const uint16_t *from, uint16_t minus_infinity) {
    __m256i low = positive_u16x16(from, minus_infinity);
    __m256i high = positive_u16x16(from + 16, minus_infinity);
    /* Packing works within 128-bit halves; the permutation restores the order. */
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
    return keep32_and(keep, (uint32_t)_mm256_movemask_epi8(bytes));
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return positive_words(keep, (const uint16_t *)from, F16_MINUS_INFINITY);
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return positive_words(keep, (const uint16_t *)from, BF16_MINUS_INFINITY);
}

/* ---- keep_scale_add and keep_scale_sum in single precision ---- */
static inline __m256 wide_f16(const f16 *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}
static inline void narrow_f16(f16 *to, __m256 wide) {
    _mm_storeu_si128((__m128i *)to,
                     _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m256 wide_bf16(const bf16 *from) {
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
/* Rounds to nearest even. The lower half of a NaN is zero, as in scaled_bf16x16. */
static inline void narrow_bf16(bf16 *to, __m256 wide) {
    __m256i bits = _mm256_castps_si256(wide);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    __m256i upper = _mm256_srli_epi32(rounded, 16);
    __m256i words = _mm256_packus_epi32(upper, upper);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0xD8)));
}
static inline __m256 wide_f32(const float *from) { return _mm256_loadu_ps(from); }
static inline void narrow_f32(float *to, __m256 wide) { _mm256_storeu_ps(to, wide); }

#define KEEP_SCALE_ADD_SUM(name, type) \
    static inline void keep_scale_add_##name(type *to, const type *from, const float *bias, \
                                             const type *residual, keep32 keep, float scale) { \
        for (int i = 0; i < 4; i++) { \
            __m256 sum = _mm256_add_ps(wide_##name(from + 8 * i), _mm256_loadu_ps(bias + 8 * i)); \
            __m256 kept = _mm256_and_ps(_mm256_mul_ps(sum, _mm256_set1_ps(scale)), \
                                        _mm256_castsi256_ps(keep32_wide(keep, i))); \
            narrow_##name(to + 8 * i, _mm256_add_ps(wide_##name(residual + 8 * i), kept)); \
        } \
    } \
    static inline void keep_scale_sum_##name(type *to, const type *from, float *sums, keep32 keep, \
                                             float scale) { \
        for (int i = 0; i < 4; i++) { \
            __m256 product = _mm256_mul_ps(wide_##name(from + 8 * i), _mm256_set1_ps(scale)); \
            __m256 kept = _mm256_and_ps(product, _mm256_castsi256_ps(keep32_wide(keep, i))); \
            narrow_##name(to + 8 * i, kept); \
            _mm256_storeu_ps(sums + 8 * i, _mm256_add_ps(_mm256_loadu_ps(sums + 8 * i), kept)); \
        } \
    }
KEEP_SCALE_ADD_SUM(f16, f16)
KEEP_SCALE_ADD_SUM(bf16, bf16)
KEEP_SCALE_ADD_SUM(f32, float)

/* ---- keep_scale_add and keep_scale_sum in double precision ---- */
static inline void keep_scale_add_f64(double *to, const double *from, const double *bias,
                                      const double *residual, keep32 keep, double scale) {
    for (int i = 0; i < 8; i++) {
        __m256d sum = _mm256_add_pd(_mm256_loadu_pd(from + 4 * i), _mm256_loadu_pd(bias + 4 * i));
        __m256d kept = _mm256_and_pd(_mm256_mul_pd(sum, _mm256_set1_pd(scale)),
                                     _mm256_castsi256_pd(keep32_widest(keep, i)));
        _mm256_storeu_pd(to + 4 * i, _mm256_add_pd(_mm256_loadu_pd(residual + 4 * i), kept));
    }
}
static inline void keep_scale_sum_f64(double *to, const double *from, double *sums, keep32 keep,
                                      double scale) {
    for (int i = 0; i < 8; i++) {
        __m256d product = _mm256_mul_pd(_mm256_loadu_pd(from + 4 * i), _mm256_set1_pd(scale));
        __m256d kept = _mm256_and_pd(product, _mm256_castsi256_pd(keep32_widest(keep, i)));
        _mm256_storeu_pd(to + 4 * i, kept);
        _mm256_storeu_pd(sums + 4 * i, _mm256_add_pd(_mm256_loadu_pd(sums + 4 * i), kept));
    }
}

/* ---- non-temporal stores ---- */
static inline void stream_lines(void *to, const void *from, uint64_t size) {
    for (uint64_t i = 0; i < size; i += 32)
        _mm256_stream_si256((__m256i *)((char *)to + i),
                            _mm256_loadu_si256((const __m256i *)((const char *)from + i)));
}
static inline void stream_end(void) { _mm_sfence(); }

/* ---- normal numbers ---- */
#define FLOATS 8
typedef __m256 floats;
static inline floats floats_sqrt(floats x) { return _mm256_sqrt_ps(x); }
#include "normal.h"

/* The sign bits, as an integer. */
static inline unsigned doubles_signs(doubles x) { return (unsigned)_mm256_movemask_pd((__m256d)x); }
static inline floats rounded_to_floats(doubles low, doubles high) {
    return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
}
#include "rates.h"

#endif
