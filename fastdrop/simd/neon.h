/* Defines the vocabulary (vocabulary.pxi) for NEON, which every aarch64 CPU has.

   The instructions that matter most (pipes and latency on Neoverse N1):
     cmtst           V,   2 cycles   expands bits to masks, without a shift or a comparison
     umaxv 4s        V1,  3 cycles   tests 512 undecided elements at once
     addv            V1,  3 to 5     packs masks to bits: NEON has no movemask */
#ifndef FASTDROP_NEON_H
#define FASTDROP_NEON_H

#include <arm_neon.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "neon"
#define GROUPS_BETWEEN_PLANES 0

/* ---- eight 64-bit lanes ---- */
typedef struct {
    uint64x2_t pair[4];
} u64x8;

#define EACH_PAIR(expression) \
    u64x8 result; \
    for (int i = 0; i < 4; i++) \
        result.pair[i] = (expression); \
    return result

static inline u64x8 u64x8_load(const uint64_t *from) { EACH_PAIR(vld1q_u64(from + 2 * i)); }
static inline void u64x8_store(uint8_t *to, u64x8 x) {
    for (int i = 0; i < 4; i++)
        vst1q_u8(to + 16 * i, vreinterpretq_u8_u64(x.pair[i]));
}
static inline u64x8 u64x8_splat(uint64_t x) { EACH_PAIR(vdupq_n_u64(x)); }
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) { EACH_PAIR(vaddq_u64(x.pair[i], y.pair[i])); }
static inline u64x8 u64x8_xor(u64x8 x, u64x8 y) { EACH_PAIR(veorq_u64(x.pair[i], y.pair[i])); }
static inline u64x8 u64x8_and(u64x8 x, u64x8 y) { EACH_PAIR(vandq_u64(x.pair[i], y.pair[i])); }
static inline u64x8 u64x8_andnot(u64x8 x, u64x8 y) { EACH_PAIR(vbicq_u64(y.pair[i], x.pair[i])); }
static inline u64x8 u64x8_or(u64x8 x, u64x8 y) { EACH_PAIR(vorrq_u64(x.pair[i], y.pair[i])); }
static inline int u64x8_any(u64x8 x) {
    uint64x2_t either = vorrq_u64(vorrq_u64(x.pair[0], x.pair[1]), vorrq_u64(x.pair[2], x.pair[3]));
    return vmaxvq_u32(vreinterpretq_u32_u64(either)) != 0;
}
static inline u64x8 u64x8_xor3(u64x8 x, u64x8 y, u64x8 z) { return u64x8_xor(u64x8_xor(x, y), z); }
/* GNU C's operators, since the intrinsics take constant counts only. */
static inline u64x8 u64x8_shl(u64x8 x, int count) { EACH_PAIR(x.pair[i] << count); }
static inline u64x8 u64x8_shr(u64x8 x, int count) { EACH_PAIR(x.pair[i] >> count); }
static inline u64x8 u64x8_rotl(u64x8 x, int count) {
    return u64x8_or(u64x8_shl(x, count), u64x8_shr(x, 64 - count));
}
/* The low 64 bits of a product, from 32-bit products: NEON has no 64-bit multiplication. */
static inline uint64x2_t mul_u64x2(uint64x2_t x, uint64x2_t y) {
    uint32x2_t x_low = vmovn_u64(x), x_high = vshrn_n_u64(x, 32);
    uint32x2_t y_low = vmovn_u64(y), y_high = vshrn_n_u64(y, 32);
    uint64x2_t cross = vmlal_u32(vmull_u32(x_high, y_low), x_low, y_high);
    return vaddq_u64(vmull_u32(x_low, y_low), vshlq_n_u64(cross, 32));
}
static inline u64x8 u64x8_mul(u64x8 x, u64x8 y) { EACH_PAIR(mul_u64x2(x.pair[i], y.pair[i])); }

/* ---- the bits of 32 consecutive elements ---- */
typedef uint32_t keep32;

static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    return (keep32)(word >> shift);
}
static inline void keep32_store(uint8_t *bits, keep32 keep) { memcpy(bits, &keep, sizeof keep); }

/* The bit of each element: of 8i .. 8i+7 (i = 0..3) within their 16 bits; of 4i .. 4i+3 (i =
   0..7) and of 2i and 2i+1 (i = 0..15) within all 32 bits. */
static inline uint16x8_t bits_u16(int i) {
    const uint16x8_t first = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80};
    return first << (i % 2 * 8);
}
static inline uint32x4_t bits_u32(int i) {
    const uint32x4_t first = {0x1, 0x2, 0x4, 0x8};
    return first << (4 * i);
}
static inline uint64x2_t bits_u64(int i) {
    const uint64x2_t first = {0x1, 0x2};
    return first << (2 * i);
}
/* Masks of the same elements: all ones if kept, zero if dropped. */
static inline uint16x8_t keep32_words(keep32 keep, int i) {
    return vtstq_u16(vdupq_n_u16((uint16_t)(keep >> (i / 2 * 16))), bits_u16(i));
}
static inline uint32x4_t keep32_wide(keep32 keep, int i) {
    return vtstq_u32(vdupq_n_u32(keep), bits_u32(i));
}
static inline uint64x2_t keep32_widest(keep32 keep, int i) {
    return vtstq_u64(vdupq_n_u64(keep), bits_u64(i));
}

/* ---- keep: copy kept elements, set dropped ones to zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++)
        vst1q_u16(to + 8 * i, vandq_u16(vld1q_u16(from + 8 * i), keep32_words(keep, i)));
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 8; i++)
        vst1q_u32(to + 4 * i, vandq_u32(vld1q_u32(from + 4 * i), keep32_wide(keep, i)));
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 16; i++)
        vst1q_u64(to + 2 * i, vandq_u64(vld1q_u64(from + 2 * i), keep32_widest(keep, i)));
}

/* ---- keep_scale: scale kept elements, set dropped ones to zero ---- */
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
        uint16x8_t kept = vandq_u16(vreinterpretq_u16_f16(product), keep32_words(keep, i));
        vst1q_u16((uint16_t *)to + 8 * i, kept);
    }
}
/* Prepares the upper half: adds the increment that rounds to nearest even, or makes a NaN quiet. */
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
        vst1q_u16((uint16_t *)to + 8 * i, vandq_u16(product, keep32_words(keep, i)));
    }
}

/* ---- keep32_positive: clear the bits of elements <= 0 ---- */
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    uint32x4_t dropped = vdupq_n_u32(0);
    for (int i = 0; i < 8; i++) {
        uint32x4_t not_positive = vcleq_f32(vld1q_f32(from + 4 * i), vdupq_n_f32(0));
        dropped = vorrq_u32(dropped, vandq_u32(not_positive, bits_u32(i)));
    }
    return keep & ~vaddvq_u32(dropped);
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    uint64x2_t dropped = vdupq_n_u64(0);
    for (int i = 0; i < 16; i++) {
        uint64x2_t not_positive = vcleq_f64(vld1q_f64(from + 2 * i), vdupq_n_f64(0));
        dropped = vorrq_u64(dropped, vandq_u64(not_positive, bits_u64(i)));
    }
    return keep & ~(keep32)vaddvq_u64(dropped);
}
/* As integers, positive numbers are above zero, and negative NaNs are above minus infinity. */
static inline keep32 positive_words(keep32 keep, const uint16_t *from, uint16_t minus_infinity) {
    uint16x8_t positive[2] = {vdupq_n_u16(0), vdupq_n_u16(0)};
    for (int i = 0; i < 4; i++) {
        uint16x8_t x = vld1q_u16(from + 8 * i);
        uint16x8_t above = vcgtq_s16(vreinterpretq_s16_u16(x), vdupq_n_s16(0));
        uint16x8_t nan = vcgtq_u16(x, vdupq_n_u16(minus_infinity));
        uint16x8_t either = vandq_u16(vorrq_u16(above, nan), bits_u16(i));
        positive[i / 2] = vorrq_u16(positive[i / 2], either);
    }
    return keep & ((keep32)vaddvq_u16(positive[1]) << 16 | vaddvq_u16(positive[0]));
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return positive_words(keep, (const uint16_t *)from, F16_MINUS_INFINITY);
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return positive_words(keep, (const uint16_t *)from, BF16_MINUS_INFINITY);
}

/* ---- keep_scale_add and keep_scale_sum in single precision ---- */
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
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(product), keep32_wide(keep, i)));
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

/* ---- keep_scale_add and keep_scale_sum in double precision ---- */
static inline float64x2_t kept_f64x2(float64x2_t product, keep32 keep, int i) {
    return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(product), keep32_widest(keep, i)));
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

/* ---- non-temporal stores: ordinary ones, since stnp is only a hint ---- */
static inline void stream_lines(void *to, const void *from, uint64_t size) {
    memcpy(to, from, size);
}
static inline void stream_end(void) {}

/* ---- normal numbers ---- */
#define FLOATS 4
typedef float32x4_t floats;
static inline floats floats_sqrt(floats x) { return vsqrtq_f32(x); }
#include "normal.h"

typedef uint64_t longs_of_two __attribute__((vector_size(16)));
/* The sign bits, as an integer. */
static inline unsigned doubles_signs(doubles x) {
    longs_of_two bits = (longs_of_two)x;
    return (unsigned)(bits[0] >> 63 | bits[1] >> 63 << 1);
}
static inline floats rounded_to_floats(doubles low, doubles high) {
    return vcvt_high_f32_f64(vcvt_f32_f64((float64x2_t)low), (float64x2_t)high);
}
#include "rates.h"

#endif
