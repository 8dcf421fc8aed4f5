/* Owns what a TensorFlow operation gets from this library: dropout of tensors, without Python. */
#ifndef FASTDROP_TENSOR_TABLE_H
#define FASTDROP_TENSOR_TABLE_H

#include <stdint.h>

/* Of a tensor's dimensions. */
#define TENSOR_MAX_DIMS 64

/* What follows the packed bits in a residual: the scale, a double. */
#define RESIDUAL_SCALE_BYTES 8

/* Tensors are in C order without gaps; the noise shape has their rank, and each entry is 1 or the
   size there. The kinds are the first four of `enum element_kind`. The GIL is not needed. */
typedef struct {
    /* Dropout of x at a rate in [0, 1] from the seed (low word, high word, step), into y, which may
       be x; and what the gradient needs, into the residual. */
    void (*forward)(int kind, int ndim, const int64_t *shape, const int64_t *noise_shape,
                    const uint64_t seed[3], double rate, void *y, const void *x,
                    uint8_t *residual);

    /* The gradient: dx, which may be dy, from dy and the residual. */
    void (*backward)(int kind, int ndim, const int64_t *shape, const int64_t *noise_shape, void *dx,
                     const void *dy, const uint8_t *residual);
} tensor_table;

/* The capsule in which the module _bridge holds its table, as its attribute `table`. */
#define TENSOR_TABLE_CAPSULE "fastdrop.tensor_table"

#endif
