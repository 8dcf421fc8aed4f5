/* Owns the words of the vocabulary (see vocabulary.pxi) in plain C, for every CPU.

   It is written in GNU C's vectors, which gcc and clang lower to whatever the baseline has (SSE2 on
   x86-64), and faster than loops, which they vectorize by luck. A keep32 is 32 words, all ones or
   zero, and bits become words through a vector of constants, since SSE2 cannot shift each word by
   its own count. Half precision has no vector instructions there: it goes element by element. */
#ifndef FASTDROP_PORTABLE_H
#define FASTDROP_PORTABLE_H

#include "elements.h"
#include "float_state.h"

#define ISA_NAME "portable"
#define BLOCKS_IN_FLIGHT 1

/* ---- eight 64-bit lanes ---- */
typedef uint64_t u64x8 __attribute__((vector_size(64)));

#if defined(__GNUC__) && !defined(__clang__)
/* How vectors this wide are passed depends on the CPU's; here nothing is passed, all is inlined. */
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

static inline u64x8 u64x8_load(const uint64_t *from) {
    u64x8 x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline void u64x8_store(uint64_t *to, u64x8 x) { memcpy(to, &x, sizeof x); }
static inline u64x8 u64x8_splat(uint64_t x) { return (u64x8){x, x, x, x, x, x, x, x}; }
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) { return x + y; }
static inline u64x8 u64x8_mul(u64x8 x, u64x8 y) { return x * y; }
static inline u64x8 u64x8_xor(u64x8 x, u64x8 y) { return x ^ y; }
static inline u64x8 u64x8_xor3(u64x8 x, u64x8 y, u64x8 z) { return x ^ y ^ z; }
static inline u64x8 u64x8_shl(u64x8 x, int count) { return x << count; }
static inline u64x8 u64x8_shr(u64x8 x, int count) { return x >> count; }
static inline u64x8 u64x8_rotl(u64x8 x, int count) { return x << count | x >> (64 - count); }

/* ---- which of 32 consecutive elements are kept: a 16-bit word each, all ones or zero ---- */
typedef int16_t i16x8 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int64_t i64x8 __attribute__((vector_size(64)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x8 __attribute__((vector_size(64)));
typedef struct { i16x8 part[4]; } keep32;

static const i16x8 places = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80};

/* Fields in the order of the elements, given a little-endian machine (setup.py refuses others), with
   their highest bits flipped, so that the signed comparison that SSE2 has orders them. */
static inline keep32 flipped_fields(u64x8 words) {
    keep32 fields;
    words = u64x8_xor(words, u64x8_splat(0x8000800080008000u));
    memcpy(&fields, &words, sizeof fields);
    return fields;
}
static inline i16x8 flipped_splat(uint16_t limit) {
    int16_t x = (int16_t)(limit ^ 0x8000);
    return (i16x8){x, x, x, x, x, x, x, x};
}
static inline keep32 keep32_less(u64x8 words, uint16_t limit) {
    keep32 fields = flipped_fields(words);
    for (int i = 0; i < 4; i++)
        fields.part[i] = fields.part[i] < flipped_splat(limit);
    return fields;
}
static inline int any_equal(u64x8 first, u64x8 second, uint16_t limit) {
    keep32 x = flipped_fields(first), y = flipped_fields(second);
    i16x8 equal = {0};
    uint64_t halves[2];
    for (int i = 0; i < 4; i++)
        equal |= (x.part[i] == flipped_splat(limit)) | (y.part[i] == flipped_splat(limit));
    memcpy(halves, &equal, sizeof halves);
    return (halves[0] | halves[1]) != 0;
}
static inline keep32 keep32_load(const uint8_t *bits) {
    keep32 keep;
    for (int i = 0; i < 4; i++) {
        int16_t b = bits[i];
        keep.part[i] = ((i16x8){b, b, b, b, b, b, b, b} & places) != 0;
    }
    return keep;
}
static inline keep32 keep32_load_at(const uint8_t *bits, int shift) {
    uint64_t word;
    memcpy(&word, bits, sizeof word);
    word >>= shift;
    return keep32_load((const uint8_t *)&word);
}
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        /* Each word has one bit of its own left, so adding all up is joining them. */
        uint64_t halves[2], sum;
        i16x8 own = keep.part[i] & places;
        memcpy(halves, &own, sizeof halves);
        sum = halves[0] + halves[1];
        sum += sum >> 32;
        bits[i] = (uint8_t)(sum + (sum >> 16));
    }
}

/* ---- 32 elements: kept ones as they are, dropped ones zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    keep32 x;
    memcpy(&x, from, sizeof x);
    for (int i = 0; i < 4; i++)
        x.part[i] &= keep.part[i];
    memcpy(to, &x, sizeof x);
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        i32x8 x;
        memcpy(&x, from + 8 * i, sizeof x);
        x &= __builtin_convertvector(keep.part[i], i32x8);
        memcpy(to + 8 * i, &x, sizeof x);
    }
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 4; i++) {
        i64x8 x;
        memcpy(&x, from + 8 * i, sizeof x);
        x &= __builtin_convertvector(keep.part[i], i64x8);
        memcpy(to + 8 * i, &x, sizeof x);
    }
}

/* ---- 32 elements: kept ones scaled, dropped ones zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    for (int i = 0; i < 4; i++) {
        f32x8 x;
        i32x8 product;
        memcpy(&x, from + 8 * i, sizeof x);
        product = (i32x8)(x * scale) & __builtin_convertvector(keep.part[i], i32x8);
        memcpy(to + 8 * i, &product, sizeof product);
    }
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    for (int i = 0; i < 4; i++) {
        f64x8 x;
        i64x8 product;
        memcpy(&x, from + 8 * i, sizeof x);
        product = (i64x8)(x * scale) & __builtin_convertvector(keep.part[i], i64x8);
        memcpy(to + 8 * i, &product, sizeof product);
    }
}
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    uint16_t words[32];
    memcpy(words, &keep, sizeof words);
    for (int i = 0; i < 32; i++)
        to[i].bits = f16_of_float(f16_to_float(from[i]) * scale).bits & words[i];
}
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    uint16_t words[32];
    memcpy(words, &keep, sizeof words);
    for (int i = 0; i < 32; i++)
        to[i].bits = bf16_of_float(bf16_to_float(from[i]) * scale).bits & words[i];
}

/* ---- 32 elements: those of the kept ones that are not <= 0 ---- */
static inline keep32 keep32_positive_f32(keep32 keep, const float *from) {
    for (int i = 0; i < 4; i++) {
        f32x8 x;
        memcpy(&x, from + 8 * i, sizeof x);
        keep.part[i] &= ~__builtin_convertvector(x <= 0, i16x8);
    }
    return keep;
}
static inline keep32 keep32_positive_f64(keep32 keep, const double *from) {
    for (int i = 0; i < 4; i++) {
        f64x8 x;
        memcpy(&x, from + 8 * i, sizeof x);
        keep.part[i] &= ~__builtin_convertvector(x <= 0, i16x8);
    }
    return keep;
}
/* Words above zero, and those with a sign whose magnitude is above infinity's. */
static inline keep32 positive_words(keep32 keep, const void *from, uint16_t minus_infinity) {
    keep32 x;
    memcpy(&x, from, sizeof x);
    for (int i = 0; i < 4; i++) {
        i16x8 flipped = x.part[i] ^ (int16_t)0x8000;
        keep.part[i] &= (x.part[i] > 0) | (flipped > (int16_t)(minus_infinity ^ 0x8000));
    }
    return keep;
}
static inline keep32 keep32_positive_f16(keep32 keep, const f16 *from) {
    return positive_words(keep, from, F16_MINUS_INFINITY);
}
static inline keep32 keep32_positive_bf16(keep32 keep, const bf16 *from) {
    return positive_words(keep, from, BF16_MINUS_INFINITY);
}

/* ---- 32 elements: kept ones with a bias and scaled, and a residual added to all ---- */
static inline void keep_scale_add_f32(float *to, const float *from, const float *bias,
                                      const float *residual, keep32 keep, float scale) {
    for (int i = 0; i < 4; i++) {
        f32x8 x, b, r;
        i32x8 product;
        memcpy(&x, from + 8 * i, sizeof x);
        memcpy(&b, bias + 8 * i, sizeof b);
        memcpy(&r, residual + 8 * i, sizeof r);
        product = (i32x8)((x + b) * scale) & __builtin_convertvector(keep.part[i], i32x8);
        r += (f32x8)product;
        memcpy(to + 8 * i, &r, sizeof r);
    }
}
static inline void keep_scale_add_f64(double *to, const double *from, const double *bias,
                                      const double *residual, keep32 keep, double scale) {
    for (int i = 0; i < 4; i++) {
        f64x8 x, b, r;
        i64x8 product;
        memcpy(&x, from + 8 * i, sizeof x);
        memcpy(&b, bias + 8 * i, sizeof b);
        memcpy(&r, residual + 8 * i, sizeof r);
        product = (i64x8)((x + b) * scale) & __builtin_convertvector(keep.part[i], i64x8);
        r += (f64x8)product;
        memcpy(to + 8 * i, &r, sizeof r);
    }
}
/* ---- 32 elements: kept ones scaled, dropped ones zero, and all added to sums ---- */
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

/* Half precision goes through single precision. */
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

#endif
