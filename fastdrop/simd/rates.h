/* Decides about elements that have a rate of their own, and scales the kept ones. docs/stream.md
   defines each operation.

   It is written once, as normal.h is, in GNU C's vectors of the width that an instruction set's
   header chooses; the header also defines doubles_signs, the sign bits of `doubles`, and
   rounded_to_floats. */
#ifndef FASTDROP_RATES_H
#define FASTDROP_RATES_H

enum {
    RATED = 32, /* elements that are scaled together: a group */
    DOUBLES = FLOATS / 2
};

typedef uint64_t longs __attribute__((vector_size(4 * FLOATS)));
typedef float few_floats __attribute__((vector_size(2 * FLOATS))); /* DOUBLES of them */
typedef int16_t shorts __attribute__((vector_size(2 * FLOATS)));

/* The probabilities of keeping 32 elements. */
static inline void keep_rates_f32(double *keeps, const float *rates) {
    for (int i = 0; i < RATED; i += DOUBLES) {
        few_floats rate;
        memcpy(&rate, rates + i, sizeof rate);
        doubles keep = 1.0 - __builtin_convertvector(rate, doubles);
        memcpy(keeps + i, &keep, sizeof keep);
    }
}
static inline void keep_rates_f64(double *keeps, const double *rates) {
    for (int i = 0; i < RATED; i += DOUBLES) {
        doubles keep = 1.0 - doubles_load(rates + i);
        memcpy(keeps + i, &keep, sizeof keep);
    }
}

/* The bits of eight elements: bit i is set if the number of word i, in (0, 1), is at most keeps[i].
   The number is the middle of the interval that the upper 48 bits of the word give. */
static inline uint32_t kept_of_8(u64x8 words, const double *keeps) {
    uint64_t drawn[8];
    uint32_t kept = 0;
    u64x8_store((uint8_t *)drawn, words);
    for (int i = 0; i < 8; i += DOUBLES) {
        longs word;
        memcpy(&word, drawn + i, sizeof word);
        /* 1 + the number, by its bits */
        word = ((word >> 12) & ~UINT64_C(15)) | UINT64_C(0x3FF0000000000008);
        kept |= doubles_signs((doubles)((doubles)word - 1.0 <= doubles_load(keeps + i))) << i;
    }
    return kept;
}

static inline void inverses(double *scales, const double *keeps) {
    for (int i = 0; i < RATED; i += DOUBLES) {
        doubles scale = 1.0 / doubles_load(keeps + i);
        memcpy(scales + i, &scale, sizeof scale);
    }
}

static inline floats rounded_scales(const double *scales) {
    return rounded_to_floats(doubles_load(scales), doubles_load(scales + DOUBLES));
}

/* All bits of each lane whose bit is set. */
static inline ints kept_lanes(uint32_t kept) {
    ints bits = (ints){0} + (int32_t)kept;
    ints lane;
    for (int i = 0; i < FLOATS; i++)
        lane[i] = 1 << i;
    return (bits & lane) != 0;
}
static inline longs kept_long_lanes(uint32_t kept) {
    longs bits = (longs){0} + kept;
    longs lane;
    for (int i = 0; i < DOUBLES; i++)
        lane[i] = 1 << i;
    return (longs)((bits & lane) != 0);
}

/* ---- from * scale where kept, 0 elsewhere; at scale 1 a copy, also of a signalling NaN ---- */
static inline void keep_by_f32(float *to, const float *from, uint32_t kept, const double *scales) {
    for (int i = 0; i < RATED; i += FLOATS) {
        floats x = floats_load(from + i), scale = rounded_scales(scales + i);
        ints result = chosen(scale == 1.0f, x, x * scale) & kept_lanes(kept >> i);
        memcpy(to + i, &result, sizeof result);
    }
}

static inline void keep_by_f64(double *to, const double *from, uint32_t kept,
                               const double *scales) {
    for (int i = 0; i < RATED; i += DOUBLES) {
        doubles x = doubles_load(from + i), scale = doubles_load(scales + i);
        longs same = (longs)(scale == 1.0);
        longs result =
            ((same & (longs)x) | (~same & (longs)(x * scale))) & kept_long_lanes(kept >> i);
        memcpy(to + i, &result, sizeof result);
    }
}

#define KEEP_BY(name) \
    static inline void keep_by_##name(name *to, const name *from, uint32_t kept, \
                                      const double *scales) { \
        for (int i = 0; i < RATED; i += FLOATS) { \
            floats scale = rounded_scales(scales + i); \
            name narrowed[FLOATS]; \
            shorts x, product; \
            narrow_##name(narrowed, wide_##name(from + i) * scale); \
            memcpy(&product, narrowed, sizeof product); \
            memcpy(&x, from + i, sizeof x); \
            shorts same = __builtin_convertvector(scale == 1.0f, shorts); \
            shorts result = ((same & x) | (~same & product)) \
                            & __builtin_convertvector(kept_lanes(kept >> i), shorts); \
            memcpy(to + i, &result, sizeof result); \
        } \
    }
KEEP_BY(f16)
KEEP_BY(bf16)

#endif
