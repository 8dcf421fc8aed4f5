/* Owns what a kernel module hands out: the table of its kernels, and the key of a random stream. */
#ifndef FASTDROP_TABLE_H
#define FASTDROP_TABLE_H

#include <stdint.h>

/* A mask as a function of the element's index: the keys derived from (seed, step), and the number
   out of 2^48 of the field's values that keep an element. */
typedef struct {
    uint64_t k[5];
    uint64_t threshold;
} stream_key;

/* How a kernel treats an element. The first four scale what is kept, in that type; the others keep
   words of that many bits as they are, which is what a scale of exactly one means for any type. */
enum element_kind {
    KIND_F16, KIND_BF16, KIND_F32, KIND_F64, KIND_W16, KIND_W32, KIND_W64
};

/* Sizes and indices count elements; bit i % 8 of bits[i / 8] tells whether element i is kept.
   `to` may be `from`; otherwise the two do not overlap. Nothing else is touched, nothing allocated,
   and the GIL is not needed. */
typedef struct {
    const char *name;

    /* The mask of elements first .. first + size - 1. */
    void (*draw)(const stream_key *key, uint64_t first, uint64_t size, uint8_t *bits);

    /* Draws as above (first a multiple of BLOCK) and applies in the same pass. Bits is NULL where
       they are not wanted. */
    void (*draw_apply)(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
                       const void *from, uint8_t *bits, double scale);

    /* Applies bits bit_offset .. bit_offset + size - 1. */
    void (*apply)(int kind, uint64_t size, void *to, const void *from, const uint8_t *bits,
                  uint64_t bit_offset, double scale);

    /* Applies one bit to all elements. */
    void (*apply_one)(int kind, uint64_t size, void *to, const void *from, int kept, double scale);

    /* The three that follow are for the kinds that scale. With a key, the first two draw as above
       (first a multiple of BLOCK); without one, the bits are there. */

    /* Applies, after clearing the bits of elements that ReLU drops too (x <= 0). */
    void (*relu)(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
                 const void *from, uint8_t *bits, double scale);

    /* residual + (from + bias) * scale where kept, residual + 0 where dropped; `to` may be
       `residual` as well. The bias (float, or double for F64) of an element is that of its index
       modulo the period, which is at least 32, with the first 31 again after it. With `advance` 0,
       all elements have the residuals 0 .. 31 instead of their own. Bits is NULL where a key is
       there and they are not wanted. */
    void (*add)(int kind, const stream_key *key, uint64_t first, uint64_t size, void *to,
                const void *from, const void *bias, uint64_t period, const void *residual,
                int advance, uint8_t *bits, double scale);

    /* As apply, and adds each result to the sum (float, or double for F64) of the same index. */
    void (*apply_sum)(int kind, uint64_t size, void *to, const void *from, const uint8_t *bits,
                      uint64_t bit_offset, double scale, void *sums);
} kernel_table;

/* Elements that share one seeding of the lanes. */
#define BLOCK 4096
#define BLOCK_BYTES (BLOCK / 8)

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
