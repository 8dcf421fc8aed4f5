/* Defines the vocabulary (vocabulary.pxi) in portable C, for every CPU.

   GNU C's vector types compile to the vector instructions of the baseline (SSE2 on x86-64), while
   compilers vectorize loops unreliably. Constant vectors expand bits to masks, since SSE2 neither
   shifts words by different counts nor compares 64-bit words. Half precision is computed element by
   element, since SSE2 has no instructions for it. */
#ifndef FASTDROP_PORTABLE_H
#define FASTDROP_PORTABLE_H

#include <math.h>
#include "elements.h"
#include "float_state.h"

#define ISA_NAME "portable"
#define GROUPS_BETWEEN_PLANES 0

/* ---- eight 64-bit lanes ---- */
typedef uint64_t u64x8 __attribute__((vector_size(64)));

#if defined(__GNUC__) && !defined(__clang__)
/* The ABI of wide vectors depends on the CPU. It does not matter: every function is inlined. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

static inline u64x8 u64x8_load(const uint64_t *from) {
    u64x8 x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline void u64x8_store(uint8_t *to, u64x8 x) { memcpy(to, &x, sizeof x); }
static inline u64x8 u64x8_splat(uint64_t x) { return (u64x8){x, x, x, x, x, x, x, x}; }
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) { return x + y; }
static inline u64x8 u64x8_mul(u64x8 x, u64x8 y) { return x * y; }
static inline u64x8 u64x8_xor(u64x8 x, u64x8 y) { return x ^ y; }
static inline u64x8 u64x8_and(u64x8 x, u64x8 y) { return x & y; }
static inline u64x8 u64x8_andnot(u64x8 x, u64x8 y) { return ~x & y; }
static inline u64x8 u64x8_or(u64x8 x, u64x8 y) { return x | y; }
static inline int u64x8_any(u64x8 x) {
    return (x[0] | x[1] | x[2] | x[3] | x[4] | x[5] | x[6] | x[7]) != 0;
}
static inline u64x8 u64x8_xor3(u64x8 x, u64x8 y, u64x8 z) { return x ^ y ^ z; }
static inline u64x8 u64x8_shl(u64x8 x, int count) { return x << count; }
static inline u64x8 u64x8_shr(u64x8 x, int count) { return x >> count; }
static inline u64x8 u64x8_rotl(u64x8 x, int count) { return x << count | x >> (64 - count); }

/* ---- the bits of 32 consecutive elements ---- */
typedef uint32_t keep32;
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int64_t i64x2 __attribute__((vector_size(16)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x2 __attribute__((vector_size(16)));

static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    return (keep32)(word >> shift);
}
static inline void keep32_store(uint8_t *bits, keep32 keep) { memcpy(bits, &keep, sizeof keep); }

/* 16-bit masks of elements 8i .. 8i+7 (i = 0..3): all ones if kept, zero if dropped. */
static inline i16x8 keep32_words(keep32 keep, int i) {
    const i16x8 bit = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80};
    int16_t x = (int16_t)(keep >> (8 * i) & 0xFF);
    return ((i16x8){x, x, x, x, x, x, x, x} & bit) == bit;
}
static inline i32x4 splat_i32(keep32 keep) {
    int32_t x = (int32_t)keep;
    return (i32x4){x, x, x, x};
}
/* 32-bit masks of elements 4i .. 4i+3 (i = 0..7), and 64-bit masks of 2i and 2i+1 (i = 0..15). */
static inline i32x4 keep32_wide(keep32 keep, int i) {
    const i32x4 first = {0x1, 0x2, 0x4, 0x8};
    i32x4 bit = first << (4 * i);
    return (splat_i32(keep) & bit) == bit;
}
static inline i64x2 keep32_widest(keep32 keep, int i) {
    const i32x4 first = {0x1, 0x1, 0x2, 0x2};
    i32x4 bit = first << (2 * i);
    return (i64x2)((splat_i32(keep) & bit) == bit);
}

/* ---- keep: copy kept elements, set dropped ones to zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        i16x8 x;
        memcpy(&x, from + 8 * i, sizeof x);
        x &= keep32_words(keep, i);
        memcpy(to + 8 * i, &x, sizeof x);
    }
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 8; i++) {
        i32x4 x;
        memcpy(&x, from + 4 * i, sizeof x);
        x &= keep32_wide(keep, i);
        memcpy(to + 4 * i, &x, sizeof x);
    }
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 16; i++) {
        i64x2 x;
        memcpy(&x, from + 2 * i, sizeof x);
        x &= keep32_widest(keep, i);
        memcpy(to + 2 * i, &x, sizeof x);
    }
}

/* ---- keep_scale: scale kept elements, set dropped ones to zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    for (int i = 0; i < 8; i++) {
        f32x4 x;
        i32x4 product;
        memcpy(&x, from + 4 * i, sizeof x);
        product = (i32x4)(x * scale) & keep32_wide(keep, i);
        memcpy(to + 4 * i, &product, sizeof product);
    }
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    for (int i = 0; i < 16; i++) {
        f64x2 x;
        i64x2 product;
        memcpy(&x, from + 2 * i, sizeof x);
        product = (i64x2)(x * scale) & keep32_widest(keep, i);
        memcpy(to + 2 * i, &product, sizeof product);
    }
}
static inline uint16_t keep32_word(keep32 keep, int i) { return (uint16_t)-(keep >> i & 1); }
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    for (int i = 0; i < 32; i++)
        to[i].bits = f16_of_float(f16_to_float(from[i]) * scale).bits & keep32_word(keep, i);
}
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    for (int i = 0; i < 32; i++)
        to[i].bits = bf16_of_float(bf16_to_float(from[i]) * scale).bits & keep32_word(keep, i);
}

/* ---- keep32_positive: clear the bits of elements <= 0 ---- */
static inline keep32 all_of(i32x4 bits) { return (keep32)(bits[0] | bits[1] | bits[2] | bits[3]); }
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    const i32x4 first = {0x1, 0x2, 0x4, 0x8};
    i32x4 dropped = {0};
    for (int i = 0; i < 8; i++) {
        f32x4 x;
        memcpy(&x, from + 4 * i, sizeof x);
        dropped |= (x <= 0) & first << (4 * i);
    }
    return keep & ~all_of(dropped);
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    const i32x4 first = {0x1, 0x1, 0x2, 0x2};
    i32x4 dropped = {0};
    for (int i = 0; i < 16; i++) {
        f64x2 x;
        memcpy(&x, from + 2 * i, sizeof x);
        dropped |= (i32x4)(x <= 0) & first << (2 * i);
    }
    return keep & ~all_of(dropped);
}
/* As integers, positive numbers are above zero, and negative NaNs are above minus infinity. */
static inline keep32 positive_words(keep32 keep, const void *from, uint16_t minus_infinity) {
    uint16_t x[32];
    memcpy(x, from, sizeof x);
    for (int i = 0; i < 32; i++)
        keep &= ~((keep32) !((int16_t)x[i] > 0 || x[i] > minus_infinity) << i);
    return keep;
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return positive_words(keep, from, F16_MINUS_INFINITY);
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return positive_words(keep, from, BF16_MINUS_INFINITY);
}

/* ---- keep_scale_add: add the bias, keep and scale, add the residual ---- */
static inline void keep_scale_add_f32(float *to, const float *from, const float *bias,
                                      const float *residual, keep32 keep, float scale) {
    for (int i = 0; i < 8; i++) {
        f32x4 x, b, r;
        i32x4 product;
        memcpy(&x, from + 4 * i, sizeof x);
        memcpy(&b, bias + 4 * i, sizeof b);
        memcpy(&r, residual + 4 * i, sizeof r);
        product = (i32x4)((x + b) * scale) & keep32_wide(keep, i);
        r += (f32x4)product;
        memcpy(to + 4 * i, &r, sizeof r);
    }
}
static inline void keep_scale_add_f64(double *to, const double *from, const double *bias,
                                      const double *residual, keep32 keep, double scale) {
    for (int i = 0; i < 16; i++) {
        f64x2 x, b, r;
        i64x2 product;
        memcpy(&x, from + 2 * i, sizeof x);
        memcpy(&b, bias + 2 * i, sizeof b);
        memcpy(&r, residual + 2 * i, sizeof r);
        product = (i64x2)((x + b) * scale) & keep32_widest(keep, i);
        r += (f64x2)product;
        memcpy(to + 2 * i, &r, sizeof r);
    }
}

/* ---- keep_scale_sum: keep and scale, and add the results to the sums ---- */
static inline void keep_scale_sum_f32(float *to, const float *from, float *sums, keep32 keep,
                                      float scale) {
    float kept[32];
    keep_scale_f32(kept, from, keep, scale);
    memcpy(to, kept, sizeof kept);
    for (int i = 0; i < 32; i++)
        sums[i] += kept[i];
}
static inline void keep_scale_sum_f64(double *to, const double *from, double *sums, keep32 keep,
                                      double scale) {
    double kept[32];
    keep_scale_f64(kept, from, keep, scale);
    memcpy(to, kept, sizeof kept);
    for (int i = 0; i < 32; i++)
        sums[i] += kept[i];
}

/* Half precision is computed in single precision. */
#define KEEP_SCALE_ADD_SUM(type) \
    static inline void keep_scale_add_##type(type *to, const type *from, const float *bias, \
                                             const type *residual, keep32 keep, float scale) { \
        float x[32], r[32]; \
        for (int i = 0; i < 32; i++) { \
            x[i] = type##_to_float(from[i]); \
            r[i] = type##_to_float(residual[i]); \
        } \
        keep_scale_add_f32(x, x, bias, r, keep, scale); \
        for (int i = 0; i < 32; i++) \
            to[i] = type##_of_float(x[i]); \
    } \
    static inline void keep_scale_sum_##type(type *to, const type *from, float *sums, keep32 keep, \
                                             float scale) { \
        float x[32]; \
        for (int i = 0; i < 32; i++) \
            x[i] = type##_to_float(from[i]); \
        keep_scale_sum_f32(x, x, sums, keep, scale); \
        for (int i = 0; i < 32; i++) \
            to[i] = type##_of_float(x[i]); \
    }
KEEP_SCALE_ADD_SUM(f16)
KEEP_SCALE_ADD_SUM(bf16)

/* ---- non-temporal stores: ordinary ones in C ---- */
static inline void stream_lines(void *to, const void *from, uint64_t size) {
    memcpy(to, from, size);
}
static inline void stream_end(void) {}

/* ---- normal numbers ---- */
#define FLOATS 4
typedef f32x4 floats;
static inline floats floats_sqrt(floats x) {
    return (f32x4){sqrtf(x[0]), sqrtf(x[1]), sqrtf(x[2]), sqrtf(x[3])};
}
static inline f32x4 wide_f32(const float *from) {
    f32x4 x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline void narrow_f32(float *to, f32x4 wide) { memcpy(to, &wide, sizeof wide); }
#define WIDE_NARROW(type) \
    static inline f32x4 wide_##type(const type *from) { \
        return (f32x4){type##_to_float(from[0]), type##_to_float(from[1]), \
                       type##_to_float(from[2]), type##_to_float(from[3])}; \
    } \
    static inline void narrow_##type(type *to, f32x4 wide) { \
        for (int i = 0; i < 4; i++) \
            to[i] = type##_of_float(wide[i]); \
    }
WIDE_NARROW(f16)
WIDE_NARROW(bf16)
#include "normal.h"

/* The sign bits, as an integer. */
#if defined(__SSE2__)
static inline unsigned doubles_signs(doubles x) { return (unsigned)__builtin_ia32_movmskpd(x); }
#else
typedef uint64_t longs_of_two __attribute__((vector_size(16)));
static inline unsigned doubles_signs(doubles x) {
    longs_of_two bits = (longs_of_two)x;
    return (unsigned)(bits[0] >> 63 | bits[1] >> 63 << 1);
}
#endif
static inline floats rounded_to_floats(doubles low, doubles high) {
    return (floats){(float)low[0], (float)low[1], (float)high[0], (float)high[1]};
}
#include "rates.h"

#endif
