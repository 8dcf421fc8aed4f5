/* Owns the words of the vocabulary (see vocabulary.pxi) for AVX2: x86-64-v3, that is AVX2 and F16C.

   What the kernels lean on (port and latency on Haswell to Cascade Lake):
     vpxor + vpcmpgtw    p01, 1 cycle each   AVX2 compares signed words only: flip the sign bits
     vpmovsxwd           p5,  3 cycles       the comparison's own words, widened, are the mask
     vptest              p0+p5, 3 cycles     one flag for the ties of 64 elements */
#ifndef FASTDROP_AVX2_H
#define FASTDROP_AVX2_H

#include <immintrin.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "avx2"
#define BLOCKS_IN_FLIGHT 1

/* ---- eight 64-bit lanes ---- */
typedef struct { __m256i a, b; } u64x8;

static inline u64x8 u64x8_load(const uint64_t *from) {
    return (u64x8){_mm256_loadu_si256((const __m256i *)from),
                   _mm256_loadu_si256((const __m256i *)(from + 4))};
}
static inline void u64x8_store(uint64_t *to, u64x8 x) {
    _mm256_storeu_si256((__m256i *)to, x.a);
    _mm256_storeu_si256((__m256i *)to + 1, x.b);
}
static inline u64x8 u64x8_splat(uint64_t x) {
    return (u64x8){_mm256_set1_epi64x((long long)x), _mm256_set1_epi64x((long long)x)};
}
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) {
    return (u64x8){_mm256_add_epi64(x.a, y.a), _mm256_add_epi64(x.b, y.b)};
}
/* The low 64 bits of a product, from 32-bit ones: AVX2 has no 64-bit multiplication. */
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

/* ---- which of 32 consecutive elements are kept: a 16-bit word each, all ones or zero ---- */
typedef struct { __m256i a, b; } keep32;

static inline __m256i less_u16x16(__m256i words, uint16_t limit) {
    __m256i sign = _mm256_set1_epi16((short)0x8000);
    __m256i limits = _mm256_set1_epi16((short)(limit ^ 0x8000));
    return _mm256_cmpgt_epi16(limits, _mm256_xor_si256(words, sign));
}
static inline keep32 keep32_less(u64x8 words, uint16_t limit) {
    return (keep32){less_u16x16(words.a, limit), less_u16x16(words.b, limit)};
}
static inline int any_equal(u64x8 first, u64x8 second, uint16_t limit) {
    __m256i limits = _mm256_set1_epi16((short)limit);
    __m256i equal = _mm256_or_si256(
        _mm256_or_si256(_mm256_cmpeq_epi16(first.a, limits), _mm256_cmpeq_epi16(first.b, limits)),
        _mm256_or_si256(_mm256_cmpeq_epi16(second.a, limits),
                        _mm256_cmpeq_epi16(second.b, limits)));
    return !_mm256_testz_si256(equal, equal);
}
static inline __m256i words_of_bits(uint16_t bits) {
    const __m256i place = _mm256_setr_epi16(
        0x0001, 0x0002, 0x0004, 0x0008, 0x0010, 0x0020, 0x0040, 0x0080, 0x0100, 0x0200, 0x0400,
        0x0800, 0x1000, 0x2000, 0x4000, (short)0x8000);
    __m256i all = _mm256_set1_epi16((short)bits);
    return _mm256_cmpeq_epi16(_mm256_and_si256(all, place), place);
}
static inline keep32 keep32_load(const uint8_t *bits) {
    uint16_t halves[2];
    memcpy(halves, bits, sizeof halves);
    return (keep32){words_of_bits(halves[0]), words_of_bits(halves[1])};
}
static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    word >>= shift;
    return (keep32){words_of_bits((uint16_t)word), words_of_bits((uint16_t)(word >> 16))};
}
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    /* Packing works within 128-bit halves: the permutation puts the quarters in order again. */
    __m256i bytes = _mm256_packs_epi16(keep.a, keep.b);
    int word = _mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xD8));
    memcpy(bits, &word, sizeof word);
}
/* The words of elements 8i .. 8i+7 (i = 0..3), widened to 32 bits. */
static inline __m256i keep32_wide(keep32 keep, int i) {
    __m256i half = i < 2 ? keep.a : keep.b;
    __m128i quarter = i & 1 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
    return _mm256_cvtepi16_epi32(quarter);
}

/* ---- 32 elements: kept ones as they are, dropped ones zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    __m256i a = _mm256_and_si256(keep.a, _mm256_loadu_si256((const __m256i *)from));
    __m256i b = _mm256_and_si256(keep.b, _mm256_loadu_si256((const __m256i *)(from + 16)));
    _mm256_storeu_si256((__m256i *)to, a);
    _mm256_storeu_si256((__m256i *)(to + 16), b);
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(from + 8 * i));
        _mm256_storeu_si256((__m256i *)(to + 8 * i), _mm256_and_si256(x, keep32_wide(keep, i)));
    }
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        __m256i wide = keep32_wide(keep, i);
        __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(wide));
        __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(wide, 1));
        __m256i x = _mm256_loadu_si256((const __m256i *)(from + 8 * i));
        __m256i y = _mm256_loadu_si256((const __m256i *)(from + 8 * i + 4));
        _mm256_storeu_si256((__m256i *)(to + 8 * i), _mm256_and_si256(x, low));
        _mm256_storeu_si256((__m256i *)(to + 8 * i + 4), _mm256_and_si256(y, high));
    }
}

/* ---- 32 elements: kept ones scaled, dropped ones zero ---- */
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
    for (int i = 0; i < 4; i++) {
        __m256i wide = keep32_wide(keep, i);
        __m256i low = _mm256_cvtepi32_epi64(_mm256_castsi256_si128(wide));
        __m256i high = _mm256_cvtepi32_epi64(_mm256_extracti128_si256(wide, 1));
        __m256d x = _mm256_mul_pd(_mm256_loadu_pd(from + 8 * i), scales);
        __m256d y = _mm256_mul_pd(_mm256_loadu_pd(from + 8 * i + 4), scales);
        _mm256_storeu_pd(to + 8 * i, _mm256_and_pd(x, _mm256_castsi256_pd(low)));
        _mm256_storeu_pd(to + 8 * i + 4, _mm256_and_pd(y, _mm256_castsi256_pd(high)));
    }
}
static inline __m128i scaled_f16x8(const f16 *from, __m256 scales) {
    __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
    return _mm256_cvtps_ph(_mm256_mul_ps(wide, scales),
                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    __m256 scales = _mm256_set1_ps(scale);
    __m256i a = _mm256_set_m128i(scaled_f16x8(from + 8, scales), scaled_f16x8(from, scales));
    __m256i b = _mm256_set_m128i(scaled_f16x8(from + 24, scales), scaled_f16x8(from + 16, scales));
    _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(a, keep.a));
    _mm256_storeu_si256((__m256i *)(to + 16), _mm256_and_si256(b, keep.b));
}
/* The products of the even and the odd words lie in 32 bits each. Sorted into upper and lower
   halves, all 16 are rounded to nearest even at once: up where the lower half, plus one if the
   upper is odd, is above 2^15. A NaN has zeros below, the scale being finite: it stays one. */
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
    __m256i a = scaled_bf16x16(from, scales);
    __m256i b = scaled_bf16x16(from + 16, scales);
    _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(a, keep.a));
    _mm256_storeu_si256((__m256i *)(to + 16), _mm256_and_si256(b, keep.b));
}

/* ---- 32 elements: those of the kept ones that are not <= 0 ---- */
/* Packing works within 128-bit halves: the permutation puts the quarters in order again. */
static inline __m256i packed_words(__m256i first, __m256i second) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
}
static inline __m256i positive_f32x8(const float *from) {
    return _mm256_castps_si256(
        _mm256_cmp_ps(_mm256_loadu_ps(from), _mm256_setzero_ps(), _CMP_NLE_UQ));
}
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    __m256i a = packed_words(positive_f32x8(from), positive_f32x8(from + 8));
    __m256i b = packed_words(positive_f32x8(from + 16), positive_f32x8(from + 24));
    return (keep32){_mm256_and_si256(keep.a, a), _mm256_and_si256(keep.b, b)};
}
static inline __m256i positive_f64x8(const double *from) {
    __m256d zero = _mm256_setzero_pd();
    __m256 low = _mm256_castpd_ps(_mm256_cmp_pd(_mm256_loadu_pd(from), zero, _CMP_NLE_UQ));
    __m256 high = _mm256_castpd_ps(_mm256_cmp_pd(_mm256_loadu_pd(from + 4), zero, _CMP_NLE_UQ));
    return _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)), 0xD8);
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    __m256i a = packed_words(positive_f64x8(from), positive_f64x8(from + 8));
    __m256i b = packed_words(positive_f64x8(from + 16), positive_f64x8(from + 24));
    return (keep32){_mm256_and_si256(keep.a, a), _mm256_and_si256(keep.b, b)};
}
/* Words above zero, and those with a sign whose magnitude is above infinity's. */
static inline __m256i positive_u16x16(const void *from, uint16_t minus_infinity) {
    __m256i words = _mm256_loadu_si256((const __m256i *)from);
    __m256i flipped = _mm256_xor_si256(words, _mm256_set1_epi16((short)0x8000));
    __m256i infinity = _mm256_set1_epi16((short)(minus_infinity ^ 0x8000));
    return _mm256_or_si256(_mm256_cmpgt_epi16(words, _mm256_setzero_si256()),
                           _mm256_cmpgt_epi16(flipped, infinity));
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return (keep32){
        _mm256_and_si256(keep.a, positive_u16x16(from, F16_MINUS_INFINITY)),
        _mm256_and_si256(keep.b, positive_u16x16(from + 16, F16_MINUS_INFINITY))};
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return (keep32){
        _mm256_and_si256(keep.a, positive_u16x16(from, BF16_MINUS_INFINITY)),
        _mm256_and_si256(keep.b, positive_u16x16(from + 16, BF16_MINUS_INFINITY))};
}

/* ---- 32 elements, in single precision ---- */
static inline __m256 wide_f16(const f16 *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}
static inline void narrow_f16(f16 *to, __m256 wide) {
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT
                                                              | _MM_FROUND_NO_EXC));
}
static inline __m256 wide_bf16(const bf16 *from) {
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
/* Of sums and products of bfloat16 numbers and a finite scale: a NaN has zeros below. */
static inline void narrow_bf16(bf16 *to, __m256 wide) {
    __m256i bits = _mm256_castps_si256(wide);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    __m256i upper = _mm256_srli_epi32(rounded, 16);
    __m256i words = _mm256_packus_epi32(upper, upper);
    _mm_storeu_si128((__m128i *)to,
                     _mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0xD8)));
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

/* ---- 32 elements in double precision ---- */
/* The words of elements 4i .. 4i+3 (i = 0..7), widened to 64 bits. */
static inline __m256d keep32_widest(keep32 keep, int i) {
    __m256i wide = keep32_wide(keep, i / 2);
    __m128i half = i & 1 ? _mm256_extracti128_si256(wide, 1) : _mm256_castsi256_si128(wide);
    return _mm256_castsi256_pd(_mm256_cvtepi32_epi64(half));
}
static inline void keep_scale_add_f64(double *to, const double *from, const double *bias,
                                      const double *residual, keep32 keep, double scale) {
    for (int i = 0; i < 8; i++) {
        __m256d sum = _mm256_add_pd(_mm256_loadu_pd(from + 4 * i), _mm256_loadu_pd(bias + 4 * i));
        __m256d kept = _mm256_and_pd(_mm256_mul_pd(sum, _mm256_set1_pd(scale)),
                                     keep32_widest(keep, i));
        _mm256_storeu_pd(to + 4 * i, _mm256_add_pd(_mm256_loadu_pd(residual + 4 * i), kept));
    }
}
static inline void keep_scale_sum_f64(double *to, const double *from, double *sums, keep32 keep,
                                      double scale) {
    for (int i = 0; i < 8; i++) {
        __m256d product = _mm256_mul_pd(_mm256_loadu_pd(from + 4 * i), _mm256_set1_pd(scale));
        __m256d kept = _mm256_and_pd(product, keep32_widest(keep, i));
        _mm256_storeu_pd(to + 4 * i, kept);
        _mm256_storeu_pd(sums + 4 * i, _mm256_add_pd(_mm256_loadu_pd(sums + 4 * i), kept));
    }
}

#endif
