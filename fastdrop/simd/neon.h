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

#endif
