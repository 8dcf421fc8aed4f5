/* Owns the public C interface: dropout of arrays in C and C++, without Python in any call.

   A library takes the interface from the Python package fastdrop once, and holds on to it:

       const fastdrop_api *dropout = fastdrop_import();   (with Python.h included, and the GIL)

   or passes the address in the capsule `fastdrop._C_API` on to code that knows nothing of Python,
   and asks fastdrop_serves there. The functions need no GIL, and any thread with 128 KiB of stack
   may call them. They allocate nothing, but for a mask that is not stored and whose bits are not in
   the order of the elements in memory. They check numbers and shapes, not pointers, and leave memory
   as it was where they return an error.

   Versions: a newer fastdrop serves what was compiled with this header. An older one has a smaller
   FASTDROP_API_VERSION, and is refused. Functions are only ever added at the end.

   Documented in docs/c_interface.md, with a program that uses it. */
#ifndef FASTDROP_H
#define FASTDROP_H

#include <math.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FASTDROP_API_VERSION 1
#define FASTDROP_CAPSULE "fastdrop._C_API"

/* Of an array's dimensions. */
#define FASTDROP_MAX_DIMS 64

/* The type of an array's elements, in the machine's byte order. */
enum fastdrop_kind {
    FASTDROP_FLOAT16,
    FASTDROP_BFLOAT16,
    FASTDROP_FLOAT32,
    FASTDROP_FLOAT64
};

/* What a function returns: 0, or why nothing was done. */
enum fastdrop_status {
    FASTDROP_OK,
    FASTDROP_BAD_KIND,         /* none of enum fastdrop_kind */
    FASTDROP_BAD_SHAPE,        /* more than FASTDROP_MAX_DIMS, a negative size, 2^63 bytes or more */
    FASTDROP_BAD_NOISE_SHAPE,  /* an entry neither 1 nor the size there; 2^63 bits or more */
    FASTDROP_BAD_RATE,         /* outside of [0, 1], or NaN */
    FASTDROP_BAD_SCALE,        /* infinite or NaN */
    FASTDROP_BAD_COUNT,        /* of threads: less than one */
    FASTDROP_NO_MEMORY         /* for a mask that is not stored */
};

/* What a mask is drawn from, besides its rate: seed = high * 2^64 + low, and the step. */
typedef struct {
    uint64_t low;
    uint64_t high;
    uint64_t step;
} fastdrop_seed;

/* One dropout. */
typedef struct {
    int kind;
    int ndim;
    const int64_t *shape;
    const int64_t *noise_shape;  /* 1 where a decision is shared along a dimension, else the size;
                                    NULL for a decision on each element */
    fastdrop_seed seed;
    double rate;                 /* of dropping, in [0, 1] */
    double scale;                /* of what is kept; FASTDROP_INVERTED for 1 / (1 - rate) */
} fastdrop_dropout;

/* The scale that keeps the expectation: 1 / (1 - rate), and 0 at rate 1. */
#define FASTDROP_INVERTED (-HUGE_VAL)

typedef struct {
    uint32_t version;   /* FASTDROP_API_VERSION of the library */
    uint32_t size;      /* of its struct, in bytes */
    uint32_t stream;    /* the number of its random stream: other numbers, other masks */

    /* Dropout of x into y, which may be x with the same strides; otherwise the two do not overlap.
       Strides are in bytes, NULL for C order without gaps. The mask goes to `bits`, which has room
       for fastdrop_mask_bytes: element i of the noise shape in C order is bit i % 8 of bits[i / 8],
       set where kept, and unused bits of the last byte are zero. With bits NULL it is forgotten:
       the same dropout draws it again. */
    int (*forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                   const void *x, const int64_t *x_strides, uint8_t *bits);

    /* The gradient, dx from dy, of a forward pass with the same dropout: by its bits, and then seed
       and rate are not looked at (the rate is for FASTDROP_INVERTED), or with bits NULL by drawing
       them again. */
    int (*backward)(const fastdrop_dropout *dropout, void *dx, const int64_t *dx_strides,
                    const void *dy, const int64_t *dy_strides, const uint8_t *bits);

    /* The mask alone, of elements first .. first + size - 1 of the noise shape in C order, which
       end at most at 2^63. */
    int (*draw)(const fastdrop_seed *seed, double rate, uint64_t first, uint64_t size,
                uint8_t *bits);

    /* How many threads a call on a large array may use, as fastdrop.set_num_threads says. */
    int (*get_num_threads)(void);
    int (*set_num_threads)(int count);
} fastdrop_api;

/* Whether a library has all that this header says. */
static inline int fastdrop_serves(const fastdrop_api *api) {
    return api->version >= FASTDROP_API_VERSION && api->size >= sizeof *api;
}

/* The mask's shape, for an array: where an entry is 1 a decision is shared along the dimension, and
   where it is -1 or the size there, it is not. Fewer entries than dimensions, none of them -1, are
   for the last ones, and decisions are shared along the others. FASTDROP_BAD_NOISE_SHAPE for any
   other entry. */
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

/* The bytes of a mask: its bits, eight to a byte; or -1 where the shape is none. */
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
/* The interface of the installed fastdrop; or NULL with an exception set. */
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
