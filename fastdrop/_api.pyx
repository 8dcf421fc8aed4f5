"""Owns the public C interface, fastdrop.h, as the functions behind the capsule `_C_API`."""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from numpy cimport npy_intp

from fastdrop._arguments cimport default_scale
from fastdrop._kernels.table cimport stream_key
from fastdrop._layout cimport apply_strided, draw_apply_flat, draw_bits
from fastdrop._stream cimport derive_key, fastdrop_seed
from fastdrop._threads cimport set_thread_count, thread_count

from fastdrop._config import STREAM_VERSION

cdef extern from * nogil:
    """
    #include "fastdrop.h"
    #include "table.h"
    /* The kernels' first kinds are the interface's. */
    _Static_assert((int)KIND_F16 == FASTDROP_FLOAT16 && (int)KIND_BF16 == FASTDROP_BFLOAT16, "");
    _Static_assert((int)KIND_F32 == FASTDROP_FLOAT32 && (int)KIND_F64 == FASTDROP_FLOAT64, "");
    """
    bint __builtin_mul_overflow(int64_t a, int64_t b, int64_t *product)

cdef extern from "fastdrop.h" nogil:
    enum:
        FASTDROP_API_VERSION
        FASTDROP_MAX_DIMS
        FASTDROP_FLOAT16
        FASTDROP_FLOAT32
        FASTDROP_FLOAT64
        FASTDROP_OK
        FASTDROP_BAD_KIND
        FASTDROP_BAD_SHAPE
        FASTDROP_BAD_NOISE_SHAPE
        FASTDROP_BAD_RATE
        FASTDROP_BAD_SCALE
        FASTDROP_BAD_COUNT
        FASTDROP_NO_MEMORY

    const double FASTDROP_INVERTED
    const char *FASTDROP_CAPSULE

    ctypedef struct fastdrop_dropout:
        int kind
        int ndim
        const int64_t *shape
        const int64_t *noise_shape
        fastdrop_seed seed
        double rate
        double scale

    ctypedef struct fastdrop_api:
        uint32_t version
        uint32_t size
        uint32_t stream
        int (*forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                       const void *x, const int64_t *x_strides, uint8_t *bits) noexcept nogil
        int (*backward)(const fastdrop_dropout *dropout, void *dx, const int64_t *dx_strides,
                        const void *dy, const int64_t *dy_strides,
                        const uint8_t *bits) noexcept nogil
        int (*draw)(const fastdrop_seed *seed, double rate, uint64_t first, uint64_t size,
                    uint8_t *bits) noexcept nogil
        int (*get_num_threads)() noexcept nogil
        int (*set_num_threads)(int count) noexcept nogil

    int64_t fastdrop_mask_bytes(int ndim, const int64_t *noise_shape)


# ---- Two arrays of one shape, and their mask ----

cdef struct Pair:
    int itemsize
    int64_t size                    # elements
    int64_t bits                    # of the noise shape
    int64_t mask_bytes              # which the bits take
    bint aligned                    # whether the CPU can load the elements of both
    bint straight                   # whether bits and elements lie in one order without gaps
    npy_intp shape[FASTDROP_MAX_DIMS]
    npy_intp noise_shape[FASTDROP_MAX_DIMS]
    npy_intp to_strides[FASTDROP_MAX_DIMS]
    npy_intp from_strides[FASTDROP_MAX_DIMS]


cdef int measure(Pair *pair, const fastdrop_dropout *dropout) noexcept nogil:
    """The sizes; or why there are none."""
    cdef int64_t size, noise, bytes_
    cdef bint too_large = False
    cdef int i
    if not FASTDROP_FLOAT16 <= dropout.kind <= FASTDROP_FLOAT64:
        return FASTDROP_BAD_KIND
    if not 0 <= dropout.ndim <= FASTDROP_MAX_DIMS:
        return FASTDROP_BAD_SHAPE
    pair.itemsize = (
        8 if dropout.kind == FASTDROP_FLOAT64 else 4 if dropout.kind == FASTDROP_FLOAT32 else 2)
    pair.size = pair.bits = 1
    pair.straight = True
    bytes_ = pair.itemsize
    for i in range(dropout.ndim):
        size = dropout.shape[i]
        if size < 0:
            return FASTDROP_BAD_SHAPE
        too_large |= __builtin_mul_overflow(bytes_, size, &bytes_)
        pair.size = 0 if size == 0 else pair.size
        pair.shape[i] = size
    # What has no elements may have sizes whose product fits nowhere.
    if too_large and pair.size:
        return FASTDROP_BAD_SHAPE
    pair.size = bytes_ // pair.itemsize if pair.size else 0
    for i in range(dropout.ndim):
        size = dropout.shape[i]
        noise = size if dropout.noise_shape == NULL else dropout.noise_shape[i]
        if noise != 1 and noise != size:
            return FASTDROP_BAD_NOISE_SHAPE
        pair.straight &= noise == size
        pair.noise_shape[i] = noise
    pair.mask_bytes = fastdrop_mask_bytes(
        dropout.ndim, dropout.shape if dropout.noise_shape == NULL else dropout.noise_shape)
    if pair.mask_bytes < 0:
        return FASTDROP_BAD_NOISE_SHAPE
    for i in range(dropout.ndim):
        pair.bits = pair.bits * pair.noise_shape[i] if pair.mask_bytes else 0
    return FASTDROP_OK


cdef void lay_out(Pair *pair, int ndim, npy_intp *strides, const int64_t *given,
                  const void *data) noexcept nogil:
    """One array's strides, where there are elements, and what they say of the pair."""
    cdef int64_t plain = pair.itemsize
    cdef int64_t misaligned = <int64_t><uintptr_t>data
    cdef int i
    for i in range(ndim - 1, -1, -1):
        strides[i] = plain if given == NULL else given[i]
        # What is never stepped over may have any stride.
        if pair.shape[i] > 1:
            pair.straight &= strides[i] == plain
            misaligned |= strides[i]
        plain *= pair.shape[i]
    pair.aligned &= misaligned & (pair.itemsize - 1) == 0


cdef int describe(Pair *pair, const fastdrop_dropout *dropout, void *to, const int64_t *to_strides,
                  const void *from_, const int64_t *from_strides) noexcept nogil:
    cdef int status = measure(pair, dropout)
    if status == FASTDROP_OK and pair.size:
        pair.aligned = True
        lay_out(pair, dropout.ndim, pair.to_strides, to_strides, to)
        lay_out(pair, dropout.ndim, pair.from_strides, from_strides, from_)
        pair.straight &= pair.aligned
    return status


# ---- The functions ----

cdef bint is_rate(double rate) noexcept nogil:
    return 0.0 <= rate <= 1.0  # not NaN


cdef int find_scale(double *scale, const fastdrop_dropout *dropout) noexcept nogil:
    scale[0] = dropout.scale
    if dropout.scale == FASTDROP_INVERTED:
        if not is_rate(dropout.rate):
            return FASTDROP_BAD_RATE
        scale[0] = default_scale(dropout.rate)
    return FASTDROP_OK if isfinite(scale[0]) else FASTDROP_BAD_SCALE


cdef void use_bits(const Pair *pair, const fastdrop_dropout *dropout, void *to, const void *from_,
                   const uint8_t *bits, double scale) noexcept nogil:
    if pair.size:
        apply_strided(dropout.kind, pair.itemsize, pair.aligned, dropout.ndim, pair.shape, to,
                      pair.to_strides, from_, pair.from_strides, pair.noise_shape, bits, scale)


cdef int forward(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                 const void *x, const int64_t *x_strides, uint8_t *bits) noexcept nogil:
    cdef Pair pair
    cdef stream_key key
    cdef double scale
    cdef uint8_t *drawn = bits
    cdef int status = describe(&pair, dropout, y, y_strides, x, x_strides)
    if status == FASTDROP_OK and not is_rate(dropout.rate):
        status = FASTDROP_BAD_RATE
    if status == FASTDROP_OK:
        status = find_scale(&scale, dropout)
    if status != FASTDROP_OK:
        return status
    derive_key(&key, &dropout.seed, dropout.rate)
    if pair.straight:
        draw_apply_flat(dropout.kind, pair.itemsize, &key, pair.size, y, x, bits, scale)
        return FASTDROP_OK
    if bits == NULL:
        if pair.size == 0:
            return FASTDROP_OK
        drawn = <uint8_t *>malloc(pair.mask_bytes)
        if drawn == NULL:
            return FASTDROP_NO_MEMORY
    draw_bits(&key, 0, pair.bits, drawn)
    use_bits(&pair, dropout, y, x, drawn, scale)
    if bits == NULL:
        free(drawn)
    return FASTDROP_OK


cdef int backward(const fastdrop_dropout *dropout, void *dx, const int64_t *dx_strides,
                  const void *dy, const int64_t *dy_strides, const uint8_t *bits) noexcept nogil:
    cdef Pair pair
    cdef double scale
    cdef int status
    if bits == NULL:
        return forward(dropout, dx, dx_strides, dy, dy_strides, NULL)
    status = describe(&pair, dropout, dx, dx_strides, dy, dy_strides)
    if status == FASTDROP_OK:
        status = find_scale(&scale, dropout)
    if status == FASTDROP_OK:
        use_bits(&pair, dropout, dx, dy, bits, scale)
    return status


cdef int draw(const fastdrop_seed *seed, double rate, uint64_t first, uint64_t size,
              uint8_t *bits) noexcept nogil:
    cdef stream_key key
    cdef uint64_t end = <uint64_t>1 << 63
    if not is_rate(rate):
        return FASTDROP_BAD_RATE
    if first > end or size > end - first:
        return FASTDROP_BAD_SHAPE
    derive_key(&key, seed, rate)
    draw_bits(&key, first, size, bits)
    return FASTDROP_OK


cdef int set_num_threads(int count) noexcept nogil:
    if count < 1:
        return FASTDROP_BAD_COUNT
    set_thread_count(count)
    return FASTDROP_OK


cdef fastdrop_api api
api.version = FASTDROP_API_VERSION
api.size = sizeof(fastdrop_api)
api.stream = STREAM_VERSION
api.forward = forward
api.backward = backward
api.draw = draw
api.get_num_threads = thread_count
api.set_num_threads = set_num_threads

_C_API = PyCapsule_New(&api, FASTDROP_CAPSULE, NULL)
