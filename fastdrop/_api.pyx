"""Implements the public C interface, fastdrop.h, behind the capsule `_C_API`."""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from numpy cimport npy_intp

from fastdrop._arguments cimport default_scale
from fastdrop._apply cimport (
    EQUAL_RESIDUALS, Work, bias_bytes, scaling_kind, set_up_add, set_up_bias, use_on, use_relu_on,
)
from fastdrop._draw cimport derive_key, derive_other_key, draw_bits
from fastdrop._kernels.table cimport ADD, RATES_DOMAIN, RELU, SCALE, kind_size, stream_key
from fastdrop._noise cimport NoiseWork, draw_and_apply, set_up_noise
from fastdrop._plan cimport FROM, RESIDUAL, TO, parts
from fastdrop._rates cimport RateWork, rates_are_valid, run_rates
from fastdrop._stream cimport fastdrop_seed
from fastdrop._threads cimport set_thread_count, thread_count
from fastdrop._walk cimport BROADCAST, set_up_walk

from fastdrop._config import STREAM_VERSION

cdef extern from * nogil:
    """
    #include "fastdrop.h"
    #include "table.h"
    /* The kernels' first kinds equal the kinds of the interface. */
    _Static_assert((int)KIND_F16 == FASTDROP_FLOAT16 && (int)KIND_BF16 == FASTDROP_BFLOAT16, "");
    _Static_assert((int)KIND_F32 == FASTDROP_FLOAT32 && (int)KIND_F64 == FASTDROP_FLOAT64, "");
    """
    bint __builtin_mul_overflow(int64_t a, int64_t b, int64_t *product)

cdef extern from "fastdrop.h" nogil:
    enum:
        FASTDROP_API_VERSION
        FASTDROP_MAX_DIMS
        FASTDROP_FLOAT16
        FASTDROP_FLOAT64
        FASTDROP_OK
        FASTDROP_BAD_KIND
        FASTDROP_BAD_SHAPE
        FASTDROP_BAD_NOISE_SHAPE
        FASTDROP_BAD_RATE
        FASTDROP_BAD_SCALE
        FASTDROP_BAD_COUNT
        FASTDROP_NO_MEMORY
        FASTDROP_BAD_BIAS
        FASTDROP_NO_BITS
        FASTDROP_BAD_STDDEV

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
        int (*relu_forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                            const void *x, const int64_t *x_strides,
                            uint8_t *bits) noexcept nogil
        int (*bias_forward)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                            const void *x, const int64_t *x_strides, const void *bias,
                            int64_t bias_size, const void *residual,
                            const int64_t *residual_strides, uint8_t *bits) noexcept nogil
        int (*noise)(const fastdrop_dropout *dropout, double stddev, int additive, void *y,
                     const int64_t *y_strides, const void *x,
                     const int64_t *x_strides) noexcept nogil
        int (*bernoulli)(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                         const void *rates, const int64_t *rates_strides,
                         uint8_t *bits) noexcept nogil

    int fastdrop_fit_noise_shape(int ndim, const int64_t *shape, int count,
                                 const int64_t *entries, int64_t *noise_shape)
    int64_t fastdrop_mask_bytes(int ndim, const int64_t *noise_shape)


# ---- Arrays of one shape, and their mask ----

cdef struct Arrays:
    Work work
    npy_intp shape[FASTDROP_MAX_DIMS]
    npy_intp to_strides[FASTDROP_MAX_DIMS]
    npy_intp from_strides[FASTDROP_MAX_DIMS]
    npy_intp residual_strides[FASTDROP_MAX_DIMS]
    int64_t mask_bytes


cdef int measure(Arrays *arrays, const fastdrop_dropout *dropout) noexcept nogil:
    """Check kind, shape and noise shape, and compute the sizes. Return a status."""
    cdef Work *work = &arrays.work
    cdef const int64_t *noise_shape = (
        dropout.shape if dropout.noise_shape == NULL else dropout.noise_shape)
    cdef int64_t fitted[FASTDROP_MAX_DIMS]
    cdef int64_t size
    cdef bint too_large = False, empty = False
    cdef int i
    if not FASTDROP_FLOAT16 <= dropout.kind <= FASTDROP_FLOAT64:
        return FASTDROP_BAD_KIND
    if not 0 <= dropout.ndim <= FASTDROP_MAX_DIMS:
        return FASTDROP_BAD_SHAPE
    memset(work, 0, sizeof(Work))
    work.ndim = dropout.ndim
    size = work.itemsize = kind_size(dropout.kind)
    for i in range(dropout.ndim):
        if dropout.shape[i] < 0:
            return FASTDROP_BAD_SHAPE
        too_large |= __builtin_mul_overflow(size, dropout.shape[i], &size)
        empty |= dropout.shape[i] == 0
    # The sizes of an empty array may have any product.
    if too_large and not empty:
        return FASTDROP_BAD_SHAPE
    work.size = work.on.size = 0 if empty else size // work.itemsize
    work.contiguous = True
    if fastdrop_fit_noise_shape(dropout.ndim, dropout.shape, dropout.ndim, noise_shape,
                                fitted) != FASTDROP_OK:
        return FASTDROP_BAD_NOISE_SHAPE
    for i in range(dropout.ndim):
        if fitted[i] != noise_shape[i]:
            return FASTDROP_BAD_NOISE_SHAPE
        work.contiguous &= fitted[i] == dropout.shape[i]
        arrays.shape[i], work.own_noise_shape[i] = dropout.shape[i], fitted[i]
    arrays.mask_bytes = fastdrop_mask_bytes(dropout.ndim, fitted)
    return FASTDROP_OK if arrays.mask_bytes >= 0 else FASTDROP_BAD_NOISE_SHAPE


cdef void lay_out(Arrays *arrays, npy_intp *strides, const int64_t *given,
                  const void *data) noexcept nogil:
    """Set the strides of one array that is not empty, and update the flags of the work."""
    cdef Work *work = &arrays.work
    cdef int64_t c_stride = work.itemsize
    cdef int64_t addresses = <int64_t><uintptr_t>data
    cdef int i
    for i in range(work.ndim - 1, -1, -1):
        strides[i] = c_stride if given == NULL else given[i]
        # A dimension of size 1 may have any stride.
        if arrays.shape[i] > 1:
            work.contiguous &= strides[i] == c_stride
            addresses |= strides[i]
        c_stride *= arrays.shape[i]
    work.aligned &= addresses & (work.itemsize - 1) == 0
    work.contiguous &= work.aligned


cdef int describe(Arrays *arrays, const fastdrop_dropout *dropout, int use,
                  void *to, const int64_t *to_strides, const void *from_,
                  const int64_t *from_strides, const uint8_t *bits) noexcept nogil:
    """Describe the operation, except its scale. Return a status."""
    cdef Work *work = &arrays.work
    cdef int status = measure(arrays, dropout)
    if status != FASTDROP_OK:
        return status
    work.shape = work.noise_shape = arrays.shape
    if not work.contiguous:  # so far: elements share bits
        work.noise_shape = work.own_noise_shape
    work.strides[TO], work.strides[FROM] = arrays.to_strides, arrays.from_strides
    work.columns = 1
    work.aligned = True
    work.on.use, work.on.to, work.on.from_, work.on.bits = use, to, from_, <uint8_t *>bits
    if work.size:
        lay_out(arrays, arrays.to_strides, to_strides, to)
        lay_out(arrays, arrays.from_strides, from_strides, from_)
    return FASTDROP_OK


# ---- The functions ----

cdef bint is_rate(double rate) noexcept nogil:
    return 0.0 <= rate <= 1.0  # not NaN


cdef int take_scale(Work *work, const fastdrop_dropout *dropout) noexcept nogil:
    cdef double scale = dropout.scale
    if scale == FASTDROP_INVERTED:
        if not is_rate(dropout.rate):
            return FASTDROP_BAD_RATE
        scale = default_scale(dropout.rate)
    work.on.kind, work.on.scale = scaling_kind(dropout.kind, work.on.use, scale), scale
    return FASTDROP_OK if isfinite(scale) else FASTDROP_BAD_SCALE


cdef int describe_forward(Arrays *arrays, const fastdrop_dropout *dropout, int use,
                          void *y, const int64_t *y_strides, const void *x,
                          const int64_t *x_strides, uint8_t *bits) noexcept nogil:
    """Describe a forward pass. Return a status."""
    cdef int status = describe(arrays, dropout, use, y, y_strides, x, x_strides, bits)
    if status == FASTDROP_OK and not is_rate(dropout.rate):
        status = FASTDROP_BAD_RATE
    if status == FASTDROP_OK:
        status = take_scale(&arrays.work, dropout)
    return status


cdef int draw_and_use(Arrays *arrays, const fastdrop_dropout *dropout) noexcept nogil:
    """Draw the mask and use it; allocate it if it is not stored but needed. Return a status."""
    cdef Work *work = &arrays.work
    cdef stream_key key
    cdef uint8_t *own_bits = NULL
    if work.on.bits == NULL and not work.contiguous:
        if work.size == 0:
            return FASTDROP_OK
        own_bits = work.on.bits = <uint8_t *>malloc(arrays.mask_bytes)
        if own_bits == NULL:
            return FASTDROP_NO_MEMORY
    derive_key(&key, &dropout.seed, dropout.rate)
    use_on(work, &key)
    free(own_bits)
    return FASTDROP_OK


cdef int forward(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                 const void *x, const int64_t *x_strides, uint8_t *bits) noexcept nogil:
    cdef Arrays arrays
    cdef int status = describe_forward(&arrays, dropout, SCALE, y, y_strides, x, x_strides, bits)
    return draw_and_use(&arrays, dropout) if status == FASTDROP_OK else status


cdef int backward(const fastdrop_dropout *dropout, void *dx, const int64_t *dx_strides,
                  const void *dy, const int64_t *dy_strides, const uint8_t *bits) noexcept nogil:
    cdef Arrays arrays
    cdef int status
    if bits == NULL:
        return forward(dropout, dx, dx_strides, dy, dy_strides, NULL)
    status = describe(&arrays, dropout, SCALE, dx, dx_strides, dy, dy_strides, bits)
    if status == FASTDROP_OK:
        status = take_scale(&arrays.work, dropout)
    if status == FASTDROP_OK:
        use_on(&arrays.work, NULL)
    return status


cdef int relu_forward(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                      const void *x, const int64_t *x_strides, uint8_t *bits) noexcept nogil:
    cdef Arrays arrays
    cdef Work *work = &arrays.work
    cdef stream_key key
    cdef uint8_t *element_bits = NULL
    cdef int status = describe_forward(&arrays, dropout, RELU, y, y_strides, x, x_strides, bits)
    if status == FASTDROP_OK and bits == NULL:
        status = FASTDROP_NO_BITS
    if status != FASTDROP_OK or work.size == 0:
        return status
    if not work.contiguous:
        element_bits = <uint8_t *>malloc(parts(work.size, 8))
        if element_bits == NULL:
            return FASTDROP_NO_MEMORY
    derive_key(&key, &dropout.seed, dropout.rate)
    use_relu_on(work, &key, element_bits)
    free(element_bits)
    return FASTDROP_OK


cdef bint repeats(const int64_t *strides, int ndim) noexcept nogil:
    """Whether all elements of an array are the same one."""
    cdef int i
    for i in range(ndim):
        if strides == NULL or strides[i] != 0:
            return False
    return True


cdef int bias_forward(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                      const void *x, const int64_t *x_strides, const void *bias,
                      int64_t bias_size, const void *residual, const int64_t *residual_strides,
                      uint8_t *bits) noexcept nogil:
    cdef Arrays arrays
    cdef Work *work = &arrays.work
    cdef uint64_t equal[EQUAL_RESIDUALS]
    cdef char *copy = NULL
    cdef int64_t columns = 1
    cdef int i
    cdef int status = describe_forward(&arrays, dropout, ADD, y, y_strides, x, x_strides, bits)
    if status != FASTDROP_OK:
        return status
    if dropout.ndim:
        columns = dropout.shape[dropout.ndim - 1]
    if bias != NULL and bias_size != 1 and bias_size != columns:
        return FASTDROP_BAD_BIAS
    set_up_add(work)
    if residual != NULL and work.size and repeats(residual_strides, dropout.ndim):
        for i in range(EQUAL_RESIDUALS):
            memcpy(<char *>equal + i * work.itemsize, residual, work.itemsize)
        work.on.residual = &equal[0]
    elif residual != NULL and work.size:
        work.on.residual, work.on.advance = residual, True
        work.strides[RESIDUAL] = arrays.residual_strides
        lay_out(&arrays, arrays.residual_strides, residual_strides, residual)
    if bias != NULL and work.size:
        copy = <char *>malloc(bias_bytes(work.on.kind, bias_size))
        if copy == NULL:
            return FASTDROP_NO_MEMORY
        set_up_bias(work, copy, <const char *>bias, work.itemsize, bias_size)
    status = draw_and_use(&arrays, dropout)
    free(copy)
    return status


cdef uint64_t number_count(const Work *work) noexcept nogil:
    """The numbers of the noise shape, which has no zeros."""
    cdef uint64_t count = 1
    cdef int i
    for i in range(work.ndim):
        count *= work.noise_shape[i]
    return count


cdef int noise(const fastdrop_dropout *dropout, double stddev, int additive, void *y,
               const int64_t *y_strides, const void *x, const int64_t *x_strides) noexcept nogil:
    cdef Arrays arrays
    cdef Work *work = &arrays.work
    cdef NoiseWork noise_work
    cdef float *numbers = NULL
    cdef int status = describe(&arrays, dropout, SCALE, y, y_strides, x, x_strides, NULL)
    if status == FASTDROP_OK and not (stddev >= 0.0 and isfinite(stddev)):
        status = FASTDROP_BAD_STDDEV
    if status != FASTDROP_OK or work.size == 0:
        return status
    noise_work.on.kind, noise_work.on.additive = dropout.kind, additive
    noise_work.on.stddev = stddev
    noise_work.on.size, noise_work.on.to, noise_work.on.from_ = work.size, y, x
    if work.noise_shape != work.shape:
        # Of more numbers, the bytes would not fit 63 bits.
        if number_count(work) < <uint64_t>1 << 61:
            numbers = <float *>malloc(number_count(work) * sizeof(float))
        if numbers == NULL:
            return FASTDROP_NO_MEMORY
    noise_work.on.numbers = numbers
    set_up_noise(&noise_work, work.ndim, work.shape, work.strides[TO], work.strides[FROM],
                 work.noise_shape)
    draw_and_apply(&noise_work, &dropout.seed)
    free(numbers)
    return FASTDROP_OK


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


cdef int bernoulli(const fastdrop_dropout *dropout, void *y, const int64_t *y_strides,
                   const void *rates, const int64_t *rates_strides,
                   uint8_t *bits) noexcept nogil:
    cdef Arrays arrays
    cdef RateWork work
    cdef fastdrop_dropout each = dropout[0]
    cdef int status
    each.noise_shape = NULL
    status = describe(&arrays, &each, SCALE, y, y_strides, rates, rates_strides, bits)
    if status != FASTDROP_OK or arrays.work.size == 0:
        return status
    memset(&work, 0, sizeof(work))
    work.on.kind = work.rates_kind = dropout.kind
    work.on.double_rates = dropout.kind == FASTDROP_FLOAT64
    work.on.size, work.on.to, work.on.bits = arrays.work.size, y, bits
    work.ones = work.drawn = True
    work.walk.data[TO] = work.walk.data[FROM] = <char *>y
    work.walk.data[BROADCAST] = <char *>rates
    work.walk.itemsize[TO] = work.walk.itemsize[FROM] = arrays.work.itemsize
    work.walk.itemsize[BROADCAST] = arrays.work.itemsize
    set_up_walk(&work.walk, dropout.ndim, arrays.shape, arrays.to_strides, arrays.to_strides,
                arrays.from_strides)
    if not rates_are_valid(&work):
        return FASTDROP_BAD_RATE
    derive_other_key(&work.key, &dropout.seed, RATES_DOMAIN)
    run_rates(&work)
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
api.relu_forward = relu_forward
api.bias_forward = bias_forward
api.noise = noise
api.bernoulli = bernoulli

_C_API = PyCapsule_New(&api, FASTDROP_CAPSULE, NULL)
