/* Owns the words of the vocabulary (see vocabulary.pxi) for AVX-512: x86-64-v4, that is F, BW, CD,
   DQ and VL.

   What the kernels lean on (port and latency on Cascade Lake / Zen 4):
     vpternlogq  p05, 1 cycle     / any of 4 pipes
     vprolq      p0,  1 cycle     / 2 of 4 pipes
     vpcmpuw     p5,  3 cycles    / to a mask register: masks are never expanded
     vmulps {z}  p05, 4 cycles    / zeroing by the mask register is free
     kortest     p0,  1 cycle     / one flag for the ties of 64 elements */
#ifndef FASTDROP_AVX512_H
#define FASTDROP_AVX512_H

#include <immintrin.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "avx512"
#define BLOCKS_IN_FLIGHT 2

/* ---- eight 64-bit lanes ---- */
typedef __m512i u64x8;

static inline u64x8 u64x8_load(const uint64_t *from) { return _mm512_loadu_si512(from); }
static inline void u64x8_store(uint64_t *to, u64x8 a) { _mm512_storeu_si512(to, a); }
static inline u64x8 u64x8_splat(uint64_t a) { return _mm512_set1_epi64((long long)a); }
static inline u64x8 u64x8_add(u64x8 a, u64x8 b) { return _mm512_add_epi64(a, b); }
static inline u64x8 u64x8_mul(u64x8 a, u64x8 b) { return _mm512_mullo_epi64(a, b); }
static inline u64x8 u64x8_xor(u64x8 a, u64x8 b) { return _mm512_xor_si512(a, b); }
static inline u64x8 u64x8_xor3(u64x8 a, u64x8 b, u64x8 c) {
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}
/* Macros, since the instructions take their count as an immediate. */
#define u64x8_shl(a, count) _mm512_slli_epi64(a, count)
#define u64x8_shr(a, count) _mm512_srli_epi64(a, count)
#define u64x8_rotl(a, count) _mm512_rol_epi64(a, count)

/* ---- which of 32 consecutive elements are kept ---- */
typedef __mmask32 keep32;

static inline keep32 keep32_less(u64x8 words, uint16_t limit) {
    return _mm512_cmplt_epu16_mask(words, _mm512_set1_epi16((short)limit));
}
static inline int any_equal(u64x8 first, u64x8 second, uint16_t limit) {
    __m512i limits = _mm512_set1_epi16((short)limit);
    return !_kortestz_mask32_u8(_mm512_cmpeq_epi16_mask(first, limits),
                                _mm512_cmpeq_epi16_mask(second, limits));
}
static inline keep32 keep32_load(const uint8_t *bits) {
    return _load_mask32((__mmask32 *)bits);
}
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    _store_mask32((__mmask32 *)bits, keep);
}

/* ---- 32 elements: kept ones as they are, dropped ones zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    _mm512_storeu_si512(to, _mm512_maskz_mov_epi16(keep, _mm512_loadu_si512(from)));
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    __m512i low = _mm512_maskz_mov_epi32((__mmask16)keep, _mm512_loadu_si512(from));
    __m512i high = _mm512_maskz_mov_epi32((__mmask16)(_kshiftri_mask32(keep, 16)),
                                          _mm512_loadu_si512(from + 16));
    _mm512_storeu_si512(to, low);
    _mm512_storeu_si512(to + 16, high);
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    __m512i a = _mm512_maskz_mov_epi64((__mmask8)keep, _mm512_loadu_si512(from));
    __m512i b = _mm512_maskz_mov_epi64((__mmask8)(_kshiftri_mask32(keep, 8)),
                                       _mm512_loadu_si512(from + 8));
    __m512i c = _mm512_maskz_mov_epi64((__mmask8)(_kshiftri_mask32(keep, 16)),
                                       _mm512_loadu_si512(from + 16));
    __m512i d = _mm512_maskz_mov_epi64((__mmask8)(_kshiftri_mask32(keep, 24)),
                                       _mm512_loadu_si512(from + 24));
    _mm512_storeu_si512(to, a);
    _mm512_storeu_si512(to + 8, b);
    _mm512_storeu_si512(to + 16, c);
    _mm512_storeu_si512(to + 24, d);
}

/* ---- 32 elements: kept ones scaled, dropped ones zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    __m512 scales = _mm512_set1_ps(scale);
    __m512 low = _mm512_maskz_mul_ps((__mmask16)keep, _mm512_loadu_ps(from), scales);
    __m512 high = _mm512_maskz_mul_ps((__mmask16)(_kshiftri_mask32(keep, 16)),
                                      _mm512_loadu_ps(from + 16), scales);
    _mm512_storeu_ps(to, low);
    _mm512_storeu_ps(to + 16, high);
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    __m512d scales = _mm512_set1_pd(scale);
    __m512d a = _mm512_maskz_mul_pd((__mmask8)keep, _mm512_loadu_pd(from), scales);
    __m512d b = _mm512_maskz_mul_pd((__mmask8)(_kshiftri_mask32(keep, 8)),
                                    _mm512_loadu_pd(from + 8), scales);
    __m512d c = _mm512_maskz_mul_pd((__mmask8)(_kshiftri_mask32(keep, 16)),
                                    _mm512_loadu_pd(from + 16), scales);
    __m512d d = _mm512_maskz_mul_pd((__mmask8)(_kshiftri_mask32(keep, 24)),
                                    _mm512_loadu_pd(from + 24), scales);
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
/* Adds what rounds the upper half to nearest even; NaN becomes quiet in place. */
static inline __m512i rounded_for_bf16(__m512 wide) {
    __m512i bits = _mm512_castps_si512(wide);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    __mmask16 nan = _mm512_cmp_ps_mask(wide, wide, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
}
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    __m512 scales = _mm512_set1_ps(scale);
    __m512i words = _mm512_loadu_si512(from);
    __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32((int)0xFFFF0000)));
    __m512i low = rounded_for_bf16(_mm512_mul_ps(even, scales));
    __m512i high = rounded_for_bf16(_mm512_mul_ps(odd, scales));
    __m512i both = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(low, 16), high);
    _mm512_storeu_si512(to, _mm512_maskz_mov_epi16(keep, both));
}

#endif
