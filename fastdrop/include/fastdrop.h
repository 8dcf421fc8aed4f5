/* Declares the public C interface of fastdrop: dropout of arrays in C and C++. No call uses Python.

   An extension module gets the interface from the Python package once, and keeps the pointer. It
   includes Python.h before this header, and holds the GIL:

       const fastdrop_api *dropout = fastdrop_import();

   Code that does not use Python receives the address in the capsule `fastdrop._C_API`, and checks
   it with fastdrop_serves().

   The functions do not need the GIL. Any thread with 128 KiB of stack may call them. During a call
   no other thread may change an array or a mask of the call, or read those that the call writes.
   They check numbers and shapes, not pointers. If they return an error, they have changed no memory.

   The functions allocate memory for the duration of a call, and only for
   - a mask that is not stored and whose bits are not in the order of the elements;
   - a bit for each element, in relu_forward, if the bits are not in the order of the elements;
   - a copy of the bias, in bias_forward: its numbers as float, or double for FASTDROP_FLOAT64;
   - in noise, the numbers of a noise shape that shares them, as float.
   The bits are in the order of the elements if all arrays are C-contiguous and aligned to their
   elements, and the mask has a bit for each element.

   A newer fastdrop serves code that was compiled with this header; an older one is refused, since
   its FASTDROP_API_VERSION is smaller. Functions are only added, at the end.

   docs/c_interface.md documents the interface with an example. */
#ifndef FASTDROP_H
#define FASTDROP_H

#include <math.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTDROP_API_VERSION 1
#define FASTDROP_CAPSULE "fastdrop._C_API"

/* The largest number of dimensions of an array. */
#define FASTDROP_MAX_DIMS 64

/* The type of the elements, in the machine's byte order. */
enum fastdrop_kind {
    FASTDROP_FLOAT16,
    FASTDROP_BFLOAT16,
    FASTDROP_FLOAT32,
    FASTDROP_FLOAT64
};

/* The status that a function returns: 0, or the error. */
enum fastdrop_status {
    FASTDROP_OK,
    FASTDROP_BAD_KIND,        /* not an enum fastdrop_kind */
    FASTDROP_BAD_SHAPE,       /* more than FASTDROP_MAX_DIMS, a negative size, 2^63 bytes or more */
    FASTDROP_BAD_NOISE_SHAPE, /* an entry neither 1 nor the size; 2^63 bits or more */
    FASTDROP_BAD_RATE,        /* outside of [0, 1], or NaN */
    FASTDROP_BAD_SCALE,       /* infinite or NaN */
    FASTDROP_BAD_COUNT,       /* fewer than one thread */
    FASTDROP_NO_MEMORY,       /* no memory for a mask that is not stored, a bias or numbers */
    FASTDROP_BAD_BIAS,        /* neither one element nor the size of the last dimension */
    FASTDROP_NO_BITS,         /* relu_forward without `bits` */
    FASTDROP_BAD_STDDEV       /* negative, infinite or NaN */
};

/* A position of the random stream: the seed, high * 2^64 + low, and the step. */
typedef struct {
    uint64_t low;
    uint64_t high;
    uint64_t step;
} fastdrop_seed;

/* The parameters of a dropout. */
typedef struct {
    int kind;
    int ndim;
    const int64_t *shape;
    const int64_t *noise_shape; /* 1 to share a decision along a dimension, else the size; NULL
                                    for a decision on each element */
    fastdrop_seed seed;
    double rate;  /* the probability of dropping, in [0, 1] */
    double scale; /* the factor of kept elements, or FASTDROP_INVERTED */
} fastdrop_dropout;

/* Stands for the scale that preserves the expectation: 1 / (1 - rate), and 0 at rate 1. */
#define FASTDROP_INVERTED (-HUGE_VAL)

typedef struct {
    uint32_t version; /* FASTDROP_API_VERSION of the library */
    uint32_t size;    /* bytes of the library's struct */
    uint32_t stream;  /* the version of the random stream: each version has its own masks */

    /* Writes the dropout of x to y. y equals x, with the same strides, or does not overlap it.
       Strides are in bytes; NULL means C-contiguous. `bits` receives the mask,
       fastdrop_mask_bytes bytes: element i of the noise shape in C order is bit i % 8 of bits[i
       / 8]. A set bit means kept; unused bits of the last byte are zero. If `bits` is NULL the
       mask is not stored; the same parameters draw it again. */
    int (*forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                   const void *x, const int64_t *x_strides, uint8_t *bits);

    /* Writes the gradient dx of a forward pass with the same parameters, from dy. It reads the
       mask from `bits`; then it ignores the seed, and uses the rate for FASTDROP_INVERTED only.
       If `bits` is NULL it draws the mask again. */
    int (*backward)(const fastdrop_dropout *dropout, void *dx, const int64_t *dx_strides,
                    const void *dy, const int64_t *dy_strides, const uint8_t *bits);

    /* Draws the bits of elements first .. first + size - 1 of the noise shape in C order.
       first + size is at most 2^63. */
    int (*draw)(const fastdrop_seed *seed, double rate, uint64_t first, uint64_t size,
                uint8_t *bits);

    /* The number of threads that a call on a large array may use, as in
       fastdrop.set_num_threads. */
    int (*get_num_threads)(void);
    int (*set_num_threads)(int count);

    /* Writes the dropout of max(x, 0) to y, as `forward`: an element that is not positive becomes
       zero, too. NaN counts as positive. `bits`, which is not NULL, receives a bit for each element
       of x in C order, fastdrop_mask_bytes(ndim, shape) bytes, whatever the noise shape: a set bit
       means kept and positive. The gradient is `backward` with these bits and without a
       noise shape. */
    int (*relu_forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                        const void *x, const int64_t *x_strides, uint8_t *bits);

    /* Writes residual + dropout(x + bias) to y. Each operation is rounded to the type; float16 and
       bfloat16 are computed as float, and rounded at the end. `bias` has `bias_size` contiguous
       elements, which repeat along the last dimension: as many as this dimension, or one; NULL
       adds nothing. `residual` has the shape of x; NULL adds nothing. y equals x or residual, or
       both, with the same strides, or does not overlap them; it may overlap bias. `bits` is as for
       `forward`. The gradient for x is `backward`. */
    int (*bias_forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                        const void *x, const int64_t *x_strides, const void *bias,
                        int64_t bias_size, const void *residual, const int64_t *residual_strides,
                        uint8_t *bits);

    /* Writes x * (1 + stddev * number) to y, or x + stddev * number if `additive` is not 0, with a
       standard normal number for each element of the noise shape. The numbers are drawn from the
       seed; the rate and the scale of `dropout` are ignored. y equals x, with the same strides, or
       does not overlap it. The gradient for x is the same call on dy; if the noise is additive, it
       is dy. Gaussian dropout has the stddev sqrt(rate / (1 - rate)). */
    int (*noise)(const fastdrop_dropout *dropout, double stddev, int additive, void *y,
                 const int64_t *y_strides, const void *x, const int64_t *x_strides);

    /* Writes 1 to y for each element that is kept and 0 for the others. `rates` has the shape and
       the kind of y, and holds each element's probability of dropping. The rate, the scale and the
       noise shape of `dropout` are ignored. `bits` is as for `forward`, or NULL. y equals rates,
       with the same strides, or does not overlap them. Returns FASTDROP_BAD_RATE if a rate is no
       probability. The decisions are those of fastdrop.dropout with an array of rates. */
    int (*bernoulli)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                     const void *rates, const int64_t *rates_strides, uint8_t *bits);
} fastdrop_api;

/* Returns whether the library has all functions of this header. */
static inline int fastdrop_serves(const fastdrop_api *api) {
    return api->version >= FASTDROP_API_VERSION && api->size >= sizeof *api;
}

/* Computes the noise shape for an array. An entry of 1 shares decisions along its dimension; -1
   or the size does not. If there are fewer entries than dimensions, they belong to the last
   dimensions, the others share their decisions, and -1 is not allowed. Returns
   FASTDROP_BAD_NOISE_SHAPE for any other entry. */
static inline int fastdrop_fit_noise_shape(int ndim, const int64_t *shape, int count,
                                           const int64_t *entries, int64_t *noise_shape) {
    int i;
    if (count < 0 || count > ndim)
        return FASTDROP_BAD_NOISE_SHAPE;
    for (i = 0; i < ndim; i++) {
        int64_t entry = i < ndim - count ? 1 : entries[i - (ndim - count)];
        if (entry != 1 && entry != shape[i] && (entry != -1 || count < ndim))
            return FASTDROP_BAD_NOISE_SHAPE;
        noise_shape[i] = entry == 1 ? 1 : shape[i];
    }
    return FASTDROP_OK;
}

/* Returns the bytes of a mask, with eight bits per byte; -1 for an invalid shape. */
static inline int64_t fastdrop_mask_bytes(int ndim, const int64_t *noise_shape) {
    int64_t bits = 1;
    int i, none = 0;
    for (i = 0; i < ndim; i++) {
        if (noise_shape[i] < 0)
            return -1;
        none |= noise_shape[i] == 0;
    }
    for (i = 0; i < ndim && !none; i++) {
        if (noise_shape[i] > (INT64_MAX - 7) / bits)
            return -1;
        bits *= noise_shape[i];
    }
    return none ? 0 : (bits + 7) / 8;
}

#ifdef Py_PYTHON_H
/* Returns the interface of the installed fastdrop, or NULL with an exception set. */
static inline const fastdrop_api *fastdrop_import(void) {
    const fastdrop_api *api = (const fastdrop_api *)PyCapsule_Import(FASTDROP_CAPSULE, 0);
    if (api != NULL && !fastdrop_serves(api)) {
        PyErr_Format(PyExc_ImportError,
                     "this extension was compiled for version %d of fastdrop's C interface, and "
                     "the installed fastdrop has version %u: install a newer fastdrop",
                     FASTDROP_API_VERSION, (unsigned)api->version);
        return NULL;
    }
    return api;
}
#endif

#ifdef __cplusplus
}
#endif

#endif
