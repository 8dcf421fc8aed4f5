/* Owns what a kernel module hands out: the table of its kernels, and the key of a random stream. */
#ifndef FASTDROP_TABLE_H
#define FASTDROP_TABLE_H

#include <stdint.h>

/* A mask as a function of the element's index: the keys derived from (seed, step), and how many of
   2^48 numbers keep an element. */
typedef struct {
    uint64_t k[4];
    uint64_t threshold;
} stream_key;

/* How a kernel treats an element. The first four scale what is kept, in that type; the others keep
   words of that many bits as they are, which is what a scale of exactly one means for any type. */
enum element_kind {
    KIND_F16, KIND_BF16, KIND_F32, KIND_F64, KIND_W16, KIND_W32, KIND_W64
};

/* What becomes of a kept element; a dropped one becomes zero. Words of bits know SCALE only. */
enum element_use {
    SCALE,  /* from * scale */
    RELU,   /* the same, after dropping those with from <= 0 too, whose bits are cleared */
    ADD,    /* residual + (from + bias) * scale, and residual + 0 where dropped */
    SUM,    /* from * scale, and each result is added to the sum of the same index */
};

/* Elements and what is done with them. `to` may be `from` or `residual`; otherwise no two overlap.
   Nothing else is touched, nothing allocated, and the GIL is not needed. */
typedef struct {
    int kind;
    int use;
    uint64_t size;          /* elements */
    void *to;
    const void *from;
    uint8_t *bits;          /* bit i % 8 of bits[i / 8] tells whether an element is kept, */
    uint64_t bit;           /* the first of them for i = bit; bit % 8 is 0 for RELU */
    double scale;

    /* Of ADD: the bias (float, or double for F64, of a value that the elements' type has) of an
       element is that of its column, which goes from `column` up to the period and then from 0; the
       period is at least 32, and the first 31 columns stand again after it. With `advance` 0,
       elements have no residuals of their own, but the first 32, which are equal. */
    const void *bias;
    uint64_t period;
    uint64_t column;
    const void *residual;
    int advance;

    void *sums;             /* of SUM: float, or double for F64 */

    /* Whether the result should not push other memory out of the caches. */
    int streaming;

    float scale_f32;        /* the scale, rounded; the kernels set it */
} operands;

typedef struct {
    const char *name;

    /* The mask of elements first .. first + size - 1. */
    void (*draw)(const stream_key *key, uint64_t first, uint64_t size, uint8_t *bits);

    /* Uses bits that are there; or, with a key, draws them for elements from first on (a multiple
       of BLOCK) and uses them in the same pass. Then `bit` is 0, and `bits` NULL where they are not
       wanted, which RELU always does. */
    void (*use)(const stream_key *key, uint64_t first, const operands *on);
} kernel_table;

/* Elements that are decided at once, and that share one seeding of the lanes. */
#define VECTOR 512
#define VECTOR_BYTES (VECTOR / 8)
#define BLOCK 4096

/* Planes of random bits that each vector takes at least, unless the threshold has fewer digits. */
#define SURE_PLANES 12

/* The threshold from which on nothing is dropped. */
#define ALL_KEPT (UINT64_C(1) << 48)

/* The stream's constants: those of SplitMix64 (Steele, Lea and Flood, 2014). */
#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)
#define MIX_FIRST UINT64_C(0xBF58476D1CE4E5B9)
#define MIX_SECOND UINT64_C(0x94D049BB133111EB)

/* What tells the lanes of a block from each other. */
static const uint64_t LANE_MULTIPLES[8] = {
    0, GOLDEN, 2 * GOLDEN, 3 * GOLDEN, 4 * GOLDEN, 5 * GOLDEN, 6 * GOLDEN, 7 * GOLDEN,
};

/* The capsule in which a kernel module holds its table, as its attribute `table`. */
#define TABLE_CAPSULE "fastdrop.kernel_table"

#endif
