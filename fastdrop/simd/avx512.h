/* Defines the vocabulary (vocabulary.pxi) for AVX-512: the extensions F, BW, CD, DQ and VL of
   x86-64-v4.

   The instructions that matter most (port and latency on Cascade Lake / Zen 4):
     vpternlogq  p05, 1 cycle     / any of 4 pipes
     vprolq      p0,  1 cycle     / 2 of 4 pipes
     vmulps {z}  p05, 4 cycles    / zeroes by a mask register at no cost
     vptestmq    p5,  3 cycles    / tests 512 undecided elements at once */
#ifndef FASTDROP_AVX512_H
#define FASTDROP_AVX512_H

#include <immintrin.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "avx512"
#define GROUPS_BETWEEN_PLANES 2

/* ---- eight 64-bit lanes ---- */
typedef __m512i u64x8;

static inline u64x8 u64x8_load(const uint64_t *from) { return _mm512_loadu_si512(from); }
static inline void u64x8_store(uint8_t *to, u64x8 a) { _mm512_storeu_si512(to, a); }
static inline u64x8 u64x8_splat(uint64_t a) { return _mm512_set1_epi64((long long)a); }
static inline u64x8 u64x8_add(u64x8 a, u64x8 b) { return _mm512_add_epi64(a, b); }
static inline u64x8 u64x8_mul(u64x8 a, u64x8 b) { return _mm512_mullo_epi64(a, b); }
static inline u64x8 u64x8_xor(u64x8 a, u64x8 b) { return _mm512_xor_si512(a, b); }
static inline u64x8 u64x8_and(u64x8 a, u64x8 b) { return _mm512_and_si512(a, b); }
static inline u64x8 u64x8_andnot(u64x8 a, u64x8 b) { return _mm512_andnot_si512(a, b); }
static inline u64x8 u64x8_or(u64x8 a, u64x8 b) { return _mm512_or_si512(a, b); }
static inline int u64x8_any(u64x8 a) { return _mm512_test_epi64_mask(a, a) != 0; }
static inline u64x8 u64x8_xor3(u64x8 a, u64x8 b, u64x8 c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
/* Macros, since the count is an immediate operand. */
#define u64x8_shl(a, count) _mm512_slli_epi64(a, count)
#define u64x8_shr(a, count) _mm512_srli_epi64(a, count)
#define u64x8_rotl(a, count) _mm512_rol_epi64(a, count)

/* ---- the bits of 32 consecutive elements ---- */
typedef __mmask32 keep32;

#ifdef __SANITIZE_ADDRESS__
/* The instruction takes any address, but gcc's intrinsic dereferences a pointer, which its
   sanitizer reports as misaligned. In other builds memcpy would make drawing 5 % slower. */
static inline void keep32_store(uint8_t *bits, keep32 keep) { memcpy(bits, &keep, sizeof keep); }
#else
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    _store_mask32((__mmask32 *)bits, keep);
}
#endif
static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    return _cvtu32_mask32((uint32_t)(word >> shift));
}

/* The low 16 or 8 bits of a mask register. For a cast, gcc moves the mask through a general
   register, which would take a fifth of the time of a dropout. */
#if defined(__AVX512BW__) && !defined(__clang__)
#define FIRST_BITS(name, mask) \
    static inline mask name(keep32 keep) { \
        mask first; \
        __asm__("" : "=Yk"(first) : "0"(keep)); \
        return first; \
    }
#else
#define FIRST_BITS(name, mask) \
    static inline mask name(keep32 keep) { return (mask)keep; }
#endif
FIRST_BITS(first16, __mmask16)
FIRST_BITS(first8, __mmask8)
static inline __mmask16 half_of(keep32 keep, int i) {
    return first16(i ? _kshiftri_mask32(keep, 16) : keep);
}
static inline __mmask8 quarter_of(keep32 keep, int i) {
    return first8(i == 3   ? _kshiftri_mask32(keep, 24)
                  : i == 2 ? _kshiftri_mask32(keep, 16)
                  : i == 1 ? _kshiftri_mask32(keep, 8)
                           : keep);
}

/* ---- keep: copy kept elements, set dropped ones to zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    _mm512_storeu_si512(to, _mm512_maskz_mov_epi16(keep, _mm512_loadu_si512(from)));
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    __m512i low = _mm512_maskz_mov_epi32(half_of(keep, 0), _mm512_loadu_si512(from));
    __m512i high = _mm512_maskz_mov_epi32(half_of(keep, 1), _mm512_loadu_si512(from + 16));
    _mm512_storeu_si512(to, low);
    _mm512_storeu_si512(to + 16, high);
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    __m512i a = _mm512_maskz_mov_epi64(quarter_of(keep, 0), _mm512_loadu_si512(from));
    __m512i b = _mm512_maskz_mov_epi64(quarter_of(keep, 1), _mm512_loadu_si512(from + 8));
    __m512i c = _mm512_maskz_mov_epi64(quarter_of(keep, 2), _mm512_loadu_si512(from + 16));
    __m512i d = _mm512_maskz_mov_epi64(quarter_of(keep, 3), _mm512_loadu_si512(from + 24));
    _mm512_storeu_si512(to, a);
    _mm512_storeu_si512(to + 8, b);
    _mm512_storeu_si512(to + 16, c);
    _mm512_storeu_si512(to + 24, d);
}

/* ---- keep_scale: scale kept elements, set dropped ones to zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    __m512 scales = _mm512_set1_ps(scale);
    __m512 low = _mm512_maskz_mul_ps(half_of(keep, 0), _mm512_loadu_ps(from), scales);
    __m512 high = _mm512_maskz_mul_ps(half_of(keep, 1), _mm512_loadu_ps(from + 16), scales);
    _mm512_storeu_ps(to, low);
    _mm512_storeu_ps(to + 16, high);
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    __m512d scales = _mm512_set1_pd(scale);
    __m512d a = _mm512_maskz_mul_pd(quarter_of(keep, 0), _mm512_loadu_pd(from), scales);
    __m512d b = _mm512_maskz_mul_pd(quarter_of(keep, 1), _mm512_loadu_pd(from + 8), scales);
    __m512d c = _mm512_maskz_mul_pd(quarter_of(keep, 2), _mm512_loadu_pd(from + 16), scales);
    __m512d d = _mm512_maskz_mul_pd(quarter_of(keep, 3), _mm512_loadu_pd(from + 24), scales);
    _mm512_storeu_pd(to, a);
    _mm512_storeu_pd(to + 8, b);
    _mm512_storeu_pd(to + 16, c);
    _mm512_storeu_pd(to + 24, d);
}
static inline __m256i scaled_f16x16(const f16 *from, __m512 scales) {
    __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_cvtps_ph(_mm512_mul_ps(wide, scales),
                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    __m512 scales = _mm512_set1_ps(scale);
    __m256i low = scaled_f16x16(from, scales);
    __m256i high = scaled_f16x16(from + 16, scales);
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    _mm512_storeu_si512(to, _mm512_maskz_mov_epi16(keep, both));
}
/* The products of the even words and of the odd words have 32 bits each. Their upper halves and
   their lower halves are collected, and all 32 are rounded to nearest even at once: up if the
   lower half, plus one if the upper half is odd, is above 2^15. The lower half of a NaN is zero,
   since the scale is finite: rounding does not change a NaN. */
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    __m512 scales = _mm512_set1_ps(scale);
    __m512i words = _mm512_loadu_si512(from);
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xFFFF0000)));
    __m512i a = _mm512_castps_si512(_mm512_mul_ps(even, scales));
    __m512i b = _mm512_castps_si512(_mm512_mul_ps(odd, scales));
    __m512i upper = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(a, 16), b);
    __m512i lower = _mm512_mask_blend_epi16(0xAAAAAAAA, a, _mm512_slli_epi32(b, 16));
    __m512i one_if_odd = _mm512_and_si512(upper, _mm512_set1_epi16(1));
    __mmask32 up = _mm512_cmpgt_epu16_mask(_mm512_adds_epu16(lower, one_if_odd),
                                           _mm512_set1_epi16((short)0x8000));
    __m512i rounded = _mm512_mask_sub_epi16(upper, up, upper, _mm512_set1_epi16(-1));
    _mm512_storeu_si512(to, _mm512_maskz_mov_epi16(keep, rounded));
}

/* ---- keep32_positive: clear the bits of elements <= 0 ---- */
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    __mmask16 low = _mm512_cmp_ps_mask(_mm512_loadu_ps(from), _mm512_setzero_ps(), _CMP_NLE_UQ);
    __mmask16 high =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(from + 16), _mm512_setzero_ps(), _CMP_NLE_UQ);
    return _kand_mask32(keep, _mm512_kunpackw(high, low));
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    __mmask8 eighth[4];
    for (int i = 0; i < 4; i++)
        eighth[i] =
            _mm512_cmp_pd_mask(_mm512_loadu_pd(from + 8 * i), _mm512_setzero_pd(), _CMP_NLE_UQ);
    return _kand_mask32(keep, _mm512_kunpackw(_mm512_kunpackb(eighth[3], eighth[2]),
                                              _mm512_kunpackb(eighth[1], eighth[0])));
}
/* As integers, positive numbers are above zero, and negative NaNs are above minus infinity. */
static inline keep32 positive_u16x32(keep32 keep, const void *from, uint16_t minus_infinity) {
    __m512i words = _mm512_loadu_si512(from);
    __mmask32 above = _mm512_cmpgt_epi16_mask(words, _mm512_setzero_si512());
    __mmask32 nan = _mm512_cmpgt_epu16_mask(words, _mm512_set1_epi16((short)minus_infinity));
    return _kand_mask32(keep, _kor_mask32(above, nan));
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return positive_u16x32(keep, from, F16_MINUS_INFINITY);
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return positive_u16x32(keep, from, BF16_MINUS_INFINITY);
}

/* ---- keep_scale_add and keep_scale_sum in single precision ---- */
static inline __m512 wide_f16(const f16 *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}
static inline void narrow_f16(f16 *to, __m512 wide) {
    _mm256_storeu_si256((__m256i *)to,
                        _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m512 wide_bf16(const bf16 *from) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
/* Rounds to nearest even. The lower half of a NaN is zero, as in keep_scale_bf16. */
static inline void narrow_bf16(bf16 *to, __m512 wide) {
    __m512i bits = _mm512_castps_si512(wide);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
static inline __m512 wide_f32(const float *from) { return _mm512_loadu_ps(from); }
static inline void narrow_f32(float *to, __m512 wide) { _mm512_storeu_ps(to, wide); }

#define KEEP_SCALE_ADD_SUM(name, type) \
    static inline void keep_scale_add_##name(type *to, const type *from, const float *bias, \
                                             const type *residual, keep32 keep, float scale) { \
        for (int i = 0; i < 2; i++) { \
            __m512 sum = \
                _mm512_add_ps(wide_##name(from + 16 * i), _mm512_loadu_ps(bias + 16 * i)); \
            __m512 kept = _mm512_maskz_mul_ps(half_of(keep, i), sum, _mm512_set1_ps(scale)); \
            narrow_##name(to + 16 * i, _mm512_add_ps(wide_##name(residual + 16 * i), kept)); \
        } \
    } \
    static inline void keep_scale_sum_##name(type *to, const type *from, float *sums, keep32 keep, \
                                             float scale) { \
        for (int i = 0; i < 2; i++) { \
            __m512 kept = _mm512_maskz_mul_ps(half_of(keep, i), wide_##name(from + 16 * i), \
                                              _mm512_set1_ps(scale)); \
            narrow_##name(to + 16 * i, kept); \
            _mm512_storeu_ps(sums + 16 * i, _mm512_add_ps(_mm512_loadu_ps(sums + 16 * i), kept)); \
        } \
    }
KEEP_SCALE_ADD_SUM(f16, f16)
KEEP_SCALE_ADD_SUM(bf16, bf16)
KEEP_SCALE_ADD_SUM(f32, float)

/* ---- keep_scale_add and keep_scale_sum in double precision ---- */
static inline void keep_scale_add_f64(double *to, const double *from, const double *bias,
                                      const double *residual, keep32 keep, double scale) {
    for (int i = 0; i < 4; i++) {
        __m512d sum = _mm512_add_pd(_mm512_loadu_pd(from + 8 * i), _mm512_loadu_pd(bias + 8 * i));
        __m512d kept = _mm512_maskz_mul_pd(quarter_of(keep, i), sum, _mm512_set1_pd(scale));
        _mm512_storeu_pd(to + 8 * i, _mm512_add_pd(_mm512_loadu_pd(residual + 8 * i), kept));
    }
}
static inline void keep_scale_sum_f64(double *to, const double *from, double *sums, keep32 keep,
                                      double scale) {
    for (int i = 0; i < 4; i++) {
        __m512d kept = _mm512_maskz_mul_pd(quarter_of(keep, i), _mm512_loadu_pd(from + 8 * i),
                                           _mm512_set1_pd(scale));
        _mm512_storeu_pd(to + 8 * i, kept);
        _mm512_storeu_pd(sums + 8 * i, _mm512_add_pd(_mm512_loadu_pd(sums + 8 * i), kept));
    }
}

/* ---- non-temporal stores ---- */
static inline void stream_lines(void *to, const void *from, uint64_t size) {
    for (uint64_t i = 0; i < size; i += 64)
        _mm512_stream_si512((void *)((char *)to + i), _mm512_loadu_si512((const char *)from + i));
}
static inline void stream_end(void) { _mm_sfence(); }

/* ---- normal numbers ---- */
#define FLOATS 16
typedef __m512 floats;
static inline floats floats_sqrt(floats x) { return _mm512_sqrt_ps(x); }
#include "normal.h"

/* The sign bits, as an integer. */
static inline unsigned doubles_signs(doubles x) {
    return (unsigned)_mm512_movepi64_mask((__m512i)x);
}
static inline floats rounded_to_floats(doubles low, doubles high) {
    __m512 rounded = _mm512_castps256_ps512(_mm512_cvtpd_ps(low));
    return _mm512_insertf32x8(rounded, _mm512_cvtpd_ps(high), 1);
}
#include "rates.h"

#endif
