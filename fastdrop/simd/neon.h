/* Owns the words of the vocabulary (see vocabulary.pxi) for NEON, which every aarch64 CPU has.

   What the kernels lean on (pipes and latency on Neoverse N1):
     cmhi            V,   2 cycles   unsigned comparison straight to words
     sxtl, sxtl2     V1,  2 cycles   the comparison's own words, widened, are the mask
     umaxv           V1,  5 cycles   one flag for the ties of 64 elements
     addv of places  V1,  5 cycles   words to bits: there is no movemask */
#ifndef FASTDROP_NEON_H
#define FASTDROP_NEON_H

#include <arm_neon.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "neon"
#define BLOCKS_IN_FLIGHT 1

/* ---- eight 64-bit lanes ---- */
typedef struct { uint64x2_t pair[4]; } u64x8;

#define EACH_PAIR(expression) \
    u64x8 result; \
    for (int i = 0; i < 4; i++) \
        result.pair[i] = (expression); \
    return result

static inline u64x8 u64x8_load(const uint64_t *from) { EACH_PAIR(vld1q_u64(from + 2 * i)); }
static inline void u64x8_store(uint64_t *to, u64x8 x) {
    for (int i = 0; i < 4; i++)
        vst1q_u64(to + 2 * i, x.pair[i]);
}
static inline u64x8 u64x8_splat(uint64_t x) { EACH_PAIR(vdupq_n_u64(x)); }
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) { EACH_PAIR(vaddq_u64(x.pair[i], y.pair[i])); }
static inline u64x8 u64x8_xor(u64x8 x, u64x8 y) { EACH_PAIR(veorq_u64(x.pair[i], y.pair[i])); }
static inline u64x8 u64x8_xor3(u64x8 x, u64x8 y, u64x8 z) { return u64x8_xor(u64x8_xor(x, y), z); }
static inline u64x8 u64x8_shl(u64x8 x, int count) {
    EACH_PAIR(vshlq_u64(x.pair[i], vdupq_n_s64(count)));
}
static inline u64x8 u64x8_shr(u64x8 x, int count) {
    EACH_PAIR(vshlq_u64(x.pair[i], vdupq_n_s64(-count)));
}
static inline u64x8 u64x8_rotl(u64x8 x, int count) {
    return u64x8_xor(u64x8_shl(x, count), u64x8_shr(x, 64 - count));
}
/* NEON multiplies no 64-bit lanes: the low 64 bits of a product, from 32-bit ones. */
static inline uint64x2_t mul_u64x2(uint64x2_t x, uint64x2_t y) {
    uint32x2_t x_low = vmovn_u64(x), x_high = vshrn_n_u64(x, 32);
    uint32x2_t y_low = vmovn_u64(y), y_high = vshrn_n_u64(y, 32);
    uint64x2_t cross = vmlal_u32(vmull_u32(x_high, y_low), x_low, y_high);
    return vaddq_u64(vmull_u32(x_low, y_low), vshlq_n_u64(cross, 32));
}
static inline u64x8 u64x8_mul(u64x8 x, u64x8 y) { EACH_PAIR(mul_u64x2(x.pair[i], y.pair[i])); }

/* ---- which of 32 consecutive elements are kept: a 16-bit word each, all ones or zero ---- */
typedef struct { uint16x8_t part[4]; } keep32;

static inline keep32 keep32_less(u64x8 words, uint16_t limit) {
    keep32 keep;
    for (int i = 0; i < 4; i++)
        keep.part[i] = vcltq_u16(vreinterpretq_u16_u64(words.pair[i]), vdupq_n_u16(limit));
    return keep;
}
static inline int any_equal(u64x8 first, u64x8 second, uint16_t limit) {
    uint16x8_t limits = vdupq_n_u16(limit), equal = vdupq_n_u16(0);
    for (int i = 0; i < 4; i++) {
        equal = vorrq_u16(equal, vceqq_u16(vreinterpretq_u16_u64(first.pair[i]), limits));
        equal = vorrq_u16(equal, vceqq_u16(vreinterpretq_u16_u64(second.pair[i]), limits));
    }
    return vmaxvq_u16(equal) != 0;
}
static inline uint16x8_t places(void) {
    static const uint16_t place[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    return vld1q_u16(place);
}
static inline keep32 keep32_load(const uint8_t *bits) {
    keep32 keep;
    for (int i = 0; i < 4; i++)
        keep.part[i] = vtstq_u16(vdupq_n_u16(bits[i]), places());
    return keep;
}
static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    word >>= shift;
    return keep32_load((const uint8_t *)&word);
}
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    for (int i = 0; i < 4; i++)
        bits[i] = (uint8_t)vaddvq_u16(vandq_u16(keep.part[i], places()));
}
/* The words of elements 4i .. 4i+3 (i = 0..7), widened to 32 bits. */
static inline uint32x4_t keep32_wide(keep32 keep, int i) {
    int16x8_t part = vreinterpretq_s16_u16(keep.part[i / 2]);
    int32x4_t wide = i & 1 ? vmovl_high_s16(part) : vmovl_s16(vget_low_s16(part));
    return vreinterpretq_u32_s32(wide);
}
/* The words of elements 2i and 2i+1 (i = 0..15), widened to 64 bits. */
static inline uint64x2_t keep32_widest(keep32 keep, int i) {
    int32x4_t wide = vreinterpretq_s32_u32(keep32_wide(keep, i / 2));
    int64x2_t widest = i & 1 ? vmovl_high_s32(wide) : vmovl_s32(vget_low_s32(wide));
    return vreinterpretq_u64_s64(widest);
}

/* ---- 32 elements: kept ones as they are, dropped ones zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++)
        vst1q_u16(to + 8 * i, vandq_u16(vld1q_u16(from + 8 * i), keep.part[i]));
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 8; i++)
        vst1q_u32(to + 4 * i, vandq_u32(vld1q_u32(from + 4 * i), keep32_wide(keep, i)));
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 16; i++)
        vst1q_u64(to + 2 * i, vandq_u64(vld1q_u64(from + 2 * i), keep32_widest(keep, i)));
}

/* ---- 32 elements: kept ones scaled, dropped ones zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    for (int i = 0; i < 8; i++) {
        float32x4_t product = vmulq_n_f32(vld1q_f32(from + 4 * i), scale);
        uint32x4_t kept = vandq_u32(vreinterpretq_u32_f32(product), keep32_wide(keep, i));
        vst1q_f32(to + 4 * i, vreinterpretq_f32_u32(kept));
    }
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    for (int i = 0; i < 16; i++) {
        float64x2_t product = vmulq_n_f64(vld1q_f64(from + 2 * i), scale);
        uint64x2_t kept = vandq_u64(vreinterpretq_u64_f64(product), keep32_widest(keep, i));
        vst1q_f64(to + 2 * i, vreinterpretq_f64_u64(kept));
    }
}
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    const uint16_t *source = (const uint16_t *)from;
    for (int i = 0; i < 4; i++) {
        float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(source + 8 * i));
        float32x4_t low = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(x)), scale);
        float32x4_t high = vmulq_n_f32(vcvt_high_f32_f16(x), scale);
        float16x8_t product = vcvt_high_f16_f32(vcvt_f16_f32(low), high);
        uint16x8_t kept = vandq_u16(vreinterpretq_u16_f16(product), keep.part[i]);
        vst1q_u16((uint16_t *)to + 8 * i, kept);
    }
}
/* Adds what rounds the upper half to nearest even; NaN becomes quiet in place. */
static inline uint32x4_t rounded_for_bf16(float32x4_t wide) {
    uint32x4_t bits = vreinterpretq_u32_f32(wide);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
    uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vbslq_u32(vceqq_f32(wide, wide), rounded, quiet);
}
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    const uint16_t *source = (const uint16_t *)from;
    for (int i = 0; i < 4; i++) {
        uint16x8_t x = vld1q_u16(source + 8 * i);
        float32x4_t low = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(x), 16));
        float32x4_t high = vreinterpretq_f32_u32(vshll_high_n_u16(x, 16));
        uint32x4_t low_bits = rounded_for_bf16(vmulq_n_f32(low, scale));
        uint32x4_t high_bits = rounded_for_bf16(vmulq_n_f32(high, scale));
        uint16x8_t product = vshrn_high_n_u32(vshrn_n_u32(low_bits, 16), high_bits, 16);
        vst1q_u16((uint16_t *)to + 8 * i, vandq_u16(product, keep.part[i]));
    }
}

/* ---- 32 elements: those of the kept ones that are not <= 0 ---- */
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    for (int i = 0; i < 4; i++) {
        uint32x4_t low = vcleq_f32(vld1q_f32(from + 8 * i), vdupq_n_f32(0));
        uint32x4_t high = vcleq_f32(vld1q_f32(from + 8 * i + 4), vdupq_n_f32(0));
        keep.part[i] = vbicq_u16(keep.part[i], vmovn_high_u32(vmovn_u32(low), high));
    }
    return keep;
}
static inline uint32x4_t not_positive_f64x4(const double *from) {
    uint64x2_t low = vcleq_f64(vld1q_f64(from), vdupq_n_f64(0));
    uint64x2_t high = vcleq_f64(vld1q_f64(from + 2), vdupq_n_f64(0));
    return vmovn_high_u64(vmovn_u64(low), high);
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    for (int i = 0; i < 4; i++) {
        uint16x4_t low = vmovn_u32(not_positive_f64x4(from + 8 * i));
        uint16x8_t both = vmovn_high_u32(low, not_positive_f64x4(from + 8 * i + 4));
        keep.part[i] = vbicq_u16(keep.part[i], both);
    }
    return keep;
}
/* Words above zero, and those with a sign whose magnitude is above infinity's. */
static inline keep32 positive_words(keep32 keep, const uint16_t *from, uint16_t minus_infinity) {
    for (int i = 0; i < 4; i++) {
        uint16x8_t x = vld1q_u16(from + 8 * i);
        uint16x8_t above = vcgtq_s16(vreinterpretq_s16_u16(x), vdupq_n_s16(0));
        uint16x8_t nan = vcgtq_u16(x, vdupq_n_u16(minus_infinity));
        keep.part[i] = vandq_u16(keep.part[i], vorrq_u16(above, nan));
    }
    return keep;
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return positive_words(keep, (const uint16_t *)from, F16_MINUS_INFINITY);
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return positive_words(keep, (const uint16_t *)from, BF16_MINUS_INFINITY);
}

/* ---- 32 elements, in single precision ---- */
static inline float32x4_t wide_f16(const f16 *from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)from)));
}
static inline void narrow_f16(f16 *to, float32x4_t wide) {
    vst1_u16((uint16_t *)to, vreinterpret_u16_f16(vcvt_f16_f32(wide)));
}
static inline float32x4_t wide_bf16(const bf16 *from) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const uint16_t *)from), 16));
}
static inline void narrow_bf16(bf16 *to, float32x4_t wide) {
    vst1_u16((uint16_t *)to, vshrn_n_u32(rounded_for_bf16(wide), 16));
}
static inline float32x4_t wide_f32(const float *from) { return vld1q_f32(from); }
static inline void narrow_f32(float *to, float32x4_t wide) { vst1q_f32(to, wide); }
static inline float32x4_t kept_f32x4(float32x4_t product, keep32 keep, int i) {
    return vreinterpretq_f32_u32(
        vandq_u32(vreinterpretq_u32_f32(product), keep32_wide(keep, i)));
}

#define KEEP_SCALE_ADD_SUM(name, type) \
    static inline void keep_scale_add_##name(type *to, const type *from, const float *bias, \
                                             const type *residual, keep32 keep, float scale) { \
        for (int i = 0; i < 8; i++) { \
            float32x4_t sum = vaddq_f32(wide_##name(from + 4 * i), vld1q_f32(bias + 4 * i)); \
            float32x4_t kept = kept_f32x4(vmulq_n_f32(sum, scale), keep, i); \
            narrow_##name(to + 4 * i, vaddq_f32(wide_##name(residual + 4 * i), kept)); \
        } \
    } \
    static inline void keep_scale_sum_##name(type *to, const type *from, float *sums, keep32 keep, \
                                             float scale) { \
        for (int i = 0; i < 8; i++) { \
            float32x4_t product = vmulq_n_f32(wide_##name(from + 4 * i), scale); \
            float32x4_t kept = kept_f32x4(product, keep, i); \
            narrow_##name(to + 4 * i, kept); \
            vst1q_f32(sums + 4 * i, vaddq_f32(vld1q_f32(sums + 4 * i), kept)); \
        } \
    }
KEEP_SCALE_ADD_SUM(f16, f16)
KEEP_SCALE_ADD_SUM(bf16, bf16)
KEEP_SCALE_ADD_SUM(f32, float)

/* ---- 32 elements in double precision ---- */
static inline float64x2_t kept_f64x2(float64x2_t product, keep32 keep, int i) {
    return vreinterpretq_f64_u64(
        vandq_u64(vreinterpretq_u64_f64(product), keep32_widest(keep, i)));
}
static inline void keep_scale_add_f64(double *to, const double *from, const double *bias,
                                      const double *residual, keep32 keep, double scale) {
    for (int i = 0; i < 16; i++) {
        float64x2_t sum = vaddq_f64(vld1q_f64(from + 2 * i), vld1q_f64(bias + 2 * i));
        float64x2_t kept = kept_f64x2(vmulq_n_f64(sum, scale), keep, i);
        vst1q_f64(to + 2 * i, vaddq_f64(vld1q_f64(residual + 2 * i), kept));
    }
}
static inline void keep_scale_sum_f64(double *to, const double *from, double *sums, keep32 keep,
                                      double scale) {
    for (int i = 0; i < 16; i++) {
        float64x2_t product = vmulq_n_f64(vld1q_f64(from + 2 * i), scale);
        float64x2_t kept = kept_f64x2(product, keep, i);
        vst1q_f64(to + 2 * i, kept);
        vst1q_f64(sums + 2 * i, vaddq_f64(vld1q_f64(sums + 2 * i), kept));
    }
}

#endif
