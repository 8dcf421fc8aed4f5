/* Owns the words of the vocabulary (see vocabulary.pxd) in plain C, for every CPU.

   Each word is a loop of fixed length over memory, the form that compilers turn into whatever
   vectors the baseline has (SSE2 on x86-64). A keep32 is 32 words, all ones or zero, and bits become
   words through a table of constants, since SSE2 cannot shift each word by its own count. */
#ifndef FASTDROP_PORTABLE_H
#define FASTDROP_PORTABLE_H

#include "elements.h"
#if defined(__x86_64__) || defined(_M_X64)
#include "x86_float.h"
#elif defined(__aarch64__)
#include "arm_float.h"
#else
/* No name here for the caller's rounding and flushing modes: the C standard's defaults are assumed. */
typedef int float_state;
static inline float_state float_state_enter(void) { return 0; }
static inline void float_state_leave(float_state saved) { (void)saved; }
#endif

#define ISA_NAME "portable"

/* ---- eight 64-bit lanes ---- */
typedef struct { uint64_t lane[8]; } u64x8;

#define EACH_LANE(expression) \
    u64x8 result; \
    for (int i = 0; i < 8; i++) \
        result.lane[i] = (expression); \
    return result

static inline u64x8 u64x8_load(const uint64_t *from) { EACH_LANE(from[i]); }
static inline void u64x8_store(void *to, u64x8 x) { memcpy(to, x.lane, sizeof x.lane); }
static inline u64x8 u64x8_splat(uint64_t x) { EACH_LANE(x); }
static inline u64x8 u64x8_add(u64x8 x, u64x8 y) { EACH_LANE(x.lane[i] + y.lane[i]); }
static inline u64x8 u64x8_mul(u64x8 x, u64x8 y) { EACH_LANE(x.lane[i] * y.lane[i]); }
static inline u64x8 u64x8_xor(u64x8 x, u64x8 y) { EACH_LANE(x.lane[i] ^ y.lane[i]); }
static inline u64x8 u64x8_xor3(u64x8 x, u64x8 y, u64x8 z) {
    EACH_LANE(x.lane[i] ^ y.lane[i] ^ z.lane[i]);
}
static inline u64x8 u64x8_shl(u64x8 x, int count) { EACH_LANE(x.lane[i] << count); }
static inline u64x8 u64x8_shr(u64x8 x, int count) { EACH_LANE(x.lane[i] >> count); }
static inline u64x8 u64x8_rotl(u64x8 x, int count) {
    EACH_LANE(x.lane[i] << count | x.lane[i] >> (64 - count));
}

/* ---- which of 32 consecutive elements are kept: a 16-bit word each, all ones or zero ---- */
typedef struct { uint16_t word[32]; } keep32;

/* In the order of the elements, given a little-endian machine (setup.py refuses others). */
static inline keep32 fields_of(u64x8 words) {
    keep32 fields;
    memcpy(fields.word, words.lane, sizeof fields.word);
    return fields;
}
static inline keep32 keep32_less(u64x8 words, uint16_t limit) {
    keep32 fields = fields_of(words), keep;
    for (int i = 0; i < 32; i++)
        keep.word[i] = (uint16_t)-(fields.word[i] < limit);
    return keep;
}
static inline int any_equal(u64x8 first, u64x8 second, uint16_t limit) {
    keep32 x = fields_of(first), y = fields_of(second);
    uint16_t equal = 0;
    for (int i = 0; i < 32; i++)
        equal |= (uint16_t)((uint16_t)-(x.word[i] == limit) | (uint16_t)-(y.word[i] == limit));
    return equal != 0;
}
static const uint16_t place[32] = {
    0x0001, 0x0002, 0x0004, 0x0008, 0x0010, 0x0020, 0x0040, 0x0080,
    0x0100, 0x0200, 0x0400, 0x0800, 0x1000, 0x2000, 0x4000, 0x8000,
    0x0001, 0x0002, 0x0004, 0x0008, 0x0010, 0x0020, 0x0040, 0x0080,
    0x0100, 0x0200, 0x0400, 0x0800, 0x1000, 0x2000, 0x4000, 0x8000,
};
static inline keep32 keep32_of_bits(uint32_t bits) {
    keep32 keep;
    uint16_t half[2] = {(uint16_t)bits, (uint16_t)(bits >> 16)};
    for (int i = 0; i < 32; i++)
        keep.word[i] = (uint16_t)-((half[i / 16] & place[i]) == place[i]);
    return keep;
}
static inline uint32_t keep32_bits(keep32 keep) {
    uint16_t low = 0, high = 0;
    for (int i = 0; i < 16; i++) {
        low |= keep.word[i] & place[i];
        high |= keep.word[i + 16] & place[i];
    }
    return (uint32_t)high << 16 | low;
}
static inline keep32 keep32_load(const uint8_t *bits) {
    uint32_t word;
    memcpy(&word, bits, sizeof word);
    return keep32_of_bits(word);
}
static inline void keep32_store(uint8_t *bits, keep32 keep) {
    uint32_t word = keep32_bits(keep);
    memcpy(bits, &word, sizeof word);
}

/* ---- 32 elements: kept ones as they are, dropped ones zero ---- */
static inline void keep_w16(uint16_t *to, const uint16_t *from, keep32 keep) {
    for (int i = 0; i < 32; i++)
        to[i] = from[i] & keep.word[i];
}
static inline void keep_w32(uint32_t *to, const uint32_t *from, keep32 keep) {
    for (int i = 0; i < 32; i++)
        to[i] = from[i] & (uint32_t)(int16_t)keep.word[i];
}
static inline void keep_w64(uint64_t *to, const uint64_t *from, keep32 keep) {
    for (int i = 0; i < 32; i++)
        to[i] = from[i] & (uint64_t)(int16_t)keep.word[i];
}

/* ---- 32 elements: kept ones scaled, dropped ones zero ---- */
static inline void keep_scale_f32(float *to, const float *from, keep32 keep, float scale) {
    for (int i = 0; i < 32; i++)
        to[i] = float_of_bits(bits_of_float(from[i] * scale) & (uint32_t)(int16_t)keep.word[i]);
}
static inline void keep_scale_f64(double *to, const double *from, keep32 keep, double scale) {
    for (int i = 0; i < 32; i++) {
        double product = from[i] * scale;
        uint64_t bits;
        memcpy(&bits, &product, sizeof bits);
        bits &= (uint64_t)(int16_t)keep.word[i];
        memcpy(to + i, &bits, sizeof bits);
    }
}
static inline void keep_scale_f16(f16 *to, const f16 *from, keep32 keep, float scale) {
    for (int i = 0; i < 32; i++)
        to[i].bits = f16_of_float(f16_to_float(from[i]) * scale).bits & keep.word[i];
}
static inline void keep_scale_bf16(bf16 *to, const bf16 *from, keep32 keep, float scale) {
    for (int i = 0; i < 32; i++)
        to[i].bits = bf16_of_float(bf16_to_float(from[i]) * scale).bits & keep.word[i];
}

#endif
