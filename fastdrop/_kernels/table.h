/* Defines the interface of a kernel module: the table of its kernels and their arguments. */
#ifndef FASTDROP_TABLE_H
#define FASTDROP_TABLE_H

#include <stdint.h>

/* Selects a mask: the four key words derived from (seed, step), and the threshold. An element is
   kept if its random number, in [0, 2^48), is below the threshold. */
typedef struct {
    uint64_t k[4];
    uint64_t threshold;
} stream_key;

/* The type of the elements. Kernels scale the first four types; they copy words, which is how a
   scale of exactly 1 is computed for every type. */
enum element_kind {
    KIND_F16,
    KIND_BF16,
    KIND_F32,
    KIND_F64,
    KIND_W16,
    KIND_W32,
    KIND_W64
};

/* The bytes of an element. */
static inline int kind_size(int kind) {
    return kind == KIND_F64 || kind == KIND_W64 ? 8 : kind == KIND_F32 || kind == KIND_W32 ? 4 : 2;
}

/* The bytes of a bias or a sum, which have the precision of the computation. */
static inline int kind_sum_size(int kind) { return kind == KIND_F64 ? 8 : 4; }

/* The result for a kept element. A dropped one becomes zero. Words support SCALE only. */
enum element_use {
    SCALE, /* from * scale */
    RELU,  /* from * scale; elements <= 0 are dropped too, and their bits cleared */
    ADD,   /* residual + (from + bias) * scale; residual + 0 where dropped */
    SUM,   /* from * scale; result i is added to sums[i] */
};

/* The arguments of a kernel. `to` may equal `from` or `residual`; no other two arrays overlap.
   Kernels touch no other memory, allocate nothing and do not need the GIL. */
typedef struct {
    int kind;
    int use;
    uint64_t size; /* in elements */
    void *to;
    const void *from;
    uint8_t *bits; /* bit i % 8 of bits[i / 8] is set if an element is kept; */
    uint64_t bit;  /* i is `bit` for element 0. RELU: bit % 8 is 0 */
    double scale;

    /* ADD: element i gets bias[(column + i) % period]. The bias is float (double for F64), with
       values of the elements' type. The period is at least 32, and `bias` has 31 more elements,
       which repeat the first 31. With `advance` 0, `residual` has 32 equal elements, and every
       element gets their value. */
    const void *bias;
    uint64_t period;
    uint64_t column;
    const void *residual;
    int advance;

    void *sums; /* SUM: float, or double for F64 */

    int streaming; /* write the result with non-temporal stores */

    float scale_f32; /* the scale, rounded; kernels set it */
} operands;

/* The arguments of the kernel for noise. `to` may equal `from`; no other two arrays overlap. */
typedef struct {
    int kind;
    int additive;  /* from + stddev * number, else from * (1 + stddev * number) */
    uint64_t size; /* in elements */
    void *to;
    const void *from;
    double stddev;
    const float *numbers; /* a standard normal number for each element; NULL to draw them */
} noise_operands;

/* The arguments of the kernel for elements that have a rate of their own. `to` may equal `from`; no
   other two arrays overlap. */
typedef struct {
    int kind;
    int double_rates; /* the rates are double, else float */
    uint64_t size;    /* in elements */
    void *to;         /* from * scale where kept, else 0; NULL to draw bits only */
    const void *from;
    const void *rates;    /* the probabilities of dropping */
    const double *scales; /* NULL for 1 / (1 - rate) */
    uint8_t *bits;        /* bit i % 8 of bits[i / 8] is set if element i is kept */
} rate_operands;

typedef struct {
    const char *name;

    /* Draws the mask of elements first .. first + size - 1. */
    void (*draw)(const stream_key *key, uint64_t first, uint64_t size, uint8_t *bits);

    /* Uses the bits on the elements. With a key it first draws the bits of elements from `first`
       on, a multiple of BLOCK; then `bit` is 0, and `bits` is NULL if the mask is not stored (RELU
       always stores it). */
    void (*use)(const stream_key *key, uint64_t first, const operands *on);

    /* Applies noise to the elements. Without `numbers` it draws those of the elements from `first`
       on, a multiple of BLOCK. */
    void (*noise)(const stream_key *key, uint64_t first, const noise_operands *on);

    /* Draws the bits of elements from `first` on, a multiple of 32, by their rates, stores them
       unless `bits` is NULL, and scales the elements by them. Without a key the bits are read. */
    void (*rates)(const stream_key *key, uint64_t first, const rate_operands *on);
} kernel_table;

/* Elements that one plane of random bits decides, and elements that share one seeding of the
   lanes. */
#define VECTOR 512
#define VECTOR_BYTES (VECTOR / 8)
#define BLOCK 4096

/* The planes that a vector takes before its first test for undecided elements. */
#define MIN_PLANES 12

/* From this threshold on, every element is kept. */
#define ALL_KEPT (UINT64_C(1) << 48)

/* The constants of SplitMix64 (Steele, Lea and Flood, 2014). */
#define GOLDEN UINT64_C(0x9E3779B97F4A7C15)
#define MIX_FIRST UINT64_C(0xBF58476D1CE4E5B9)
#define MIX_SECOND UINT64_C(0x94D049BB133111EB)

/* "noise" in ASCII. It gives noise other key words than a mask has at the same stream position. */
#define NOISE_DOMAIN UINT64_C(0x6E6F697365)

/* "rates" in ASCII, for the same purpose: decisions by an array of rates have key words of their
   own. */
#define RATES_DOMAIN UINT64_C(0x7261746573)

/* The counters of the lanes of a block. */
static const uint64_t LANE_MULTIPLES[8] = {
    0, GOLDEN, 2 * GOLDEN, 3 * GOLDEN, 4 * GOLDEN, 5 * GOLDEN, 6 * GOLDEN, 7 * GOLDEN,
};

/* The name of the capsule that a kernel module holds its table in, as its attribute `table`. */
#define TABLE_CAPSULE "fastdrop.kernel_table"

#endif
