"""Draws masks by an array of rates, one for each element, and scales elements by their own factors.

Threads share the blocks of 4096 elements, in C order. Rates that several elements share, half
precision and strided elements are copied for the kernel, a block at a time.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t
from libc.string cimport memmove, memset

cimport numpy as np

from fastdrop._arguments cimport base_view, kind_of, short_repr
from fastdrop._draw cimport derive_other_key
from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    BLOCK, KIND_F16, KIND_F32, KIND_F64, KIND_W16, KIND_W32, KIND_W64, RATES_DOMAIN,
    SCALE, kind_size, operands, rate_operands,
)
from fastdrop._memory cimport Buffer, array_over, new_buffer
from fastdrop._plan cimport MAX_DIMS, parts
from fastdrop._stream cimport fastdrop_seed
from fastdrop._threads cimport parallel_for
from fastdrop._walk cimport (
    BROADCAST, FROM, TO, Walk, address_of, block_of, broadcast_strides, move_block, set_up_walk,
)

import numpy

np.import_array()

cdef extern from "simd/elements.h" nogil:
    ctypedef struct f16:
        pass
    ctypedef struct bf16:
        pass
    float f16_to_float(f16 x)
    float bf16_to_float(bf16 x)
    f16 f16_of_float(float x)
    bf16 bf16_of_float(float x)

cdef extern from "simd/float_state.h" nogil:
    ctypedef struct float_state:
        pass
    float_state float_state_enter()
    void float_state_leave(float_state saved)

cdef extern from * nogil:
    """
    #define set_flag(flag) __atomic_store_n(flag, 1, __ATOMIC_RELAXED)

    /* NaN is no rate. In C, since Cython compares float with its own constants as double. */
    #define ARE_RATES(type) \\
        static int type##s_are_rates(const type *rates, uint64_t count) { \\
            int wrong = 0; \\
            for (uint64_t i = 0; i < count; i++) \\
                wrong |= !((rates[i] >= 0) & (rates[i] <= 1)); \\
            return !wrong; \\
        }
    ARE_RATES(float)
    ARE_RATES(double)
    """
    void set_flag(int *flag)
    bint floats_are_rates(const float *rates, uint64_t count)
    bint doubles_are_rates(const double *rates, uint64_t count)

cdef enum:
    GROUP = 32                      # elements; the kernel begins at a multiple of it
    ONES = 512                      # elements that are written at once
    BLOCK_BYTES = 512               # of the bits of a block
    WORK = 4                        # an element takes this many times as long as in a dropout


# ---- Blocks ----

cdef const void *rates_of_block(const RateWork *work, double *buffer, uint64_t first,
                                uint64_t count) noexcept nogil:
    """Rates from an index on, in single or double precision: in place, or in the buffer."""
    cdef uint16_t halves[BLOCK]
    cdef const char *given
    cdef float *single = <float *>buffer
    cdef uint64_t i
    if work.rates_kind == KIND_F32 or work.rates_kind == KIND_F64:
        return block_of(&work.walk, BROADCAST, <char *>buffer, first, count)
    given = block_of(&work.walk, BROADCAST, <char *>halves, first, count)
    for i in range(count):
        if work.rates_kind == KIND_F16:
            single[i] = f16_to_float((<const f16 *>given)[i])
        else:
            single[i] = bf16_to_float((<const bf16 *>given)[i])
    return single


cdef void write_ones(int kind, void *to, const uint8_t *bits, uint64_t size) noexcept nogil:
    """Write 1 where a bit is set, and 0 elsewhere."""
    cdef uint64_t ones[ONES]
    cdef operands on
    cdef uint64_t i, done = 0
    for i in range(ONES):
        if kind == KIND_F32:
            (<float *>ones)[i] = 1.0
        elif kind == KIND_F64:
            (<double *>ones)[i] = 1.0
        elif kind == KIND_F16:
            (<f16 *>ones)[i] = f16_of_float(1.0)
        else:
            (<bf16 *>ones)[i] = bf16_of_float(1.0)
    memset(&on, 0, sizeof(on))
    on.kind = KIND_W64 if kind == KIND_F64 else KIND_W32 if kind == KIND_F32 else KIND_W16
    on.use, on.from_ = SCALE, ones
    while done < size:
        on.size = min(size - done, <uint64_t>ONES)
        on.to = <char *>to + done * kind_size(kind)
        on.bits = <uint8_t *>bits + done // 8
        kernels.use(NULL, 0, &on)
        done += ONES


cdef void draw_shifted(const RateWork *work, rate_operands on, double *buffer,
                       uint64_t index) noexcept nogil:
    """Draw the bits of elements from an index of the stream on that is no multiple of GROUP.

    The rates are in the buffer or elsewhere; the buffer has room for GROUP more.
    """
    cdef uint8_t drawn[BLOCK_BYTES + GROUP]
    cdef uint8_t *bits = on.bits
    cdef int itemsize = sizeof(double) if on.double_rates else sizeof(float)
    cdef uint64_t shift = index % GROUP
    cdef uint64_t count = parts(on.size, 8)
    cdef uint64_t i
    memmove(<char *>buffer + shift * itemsize, on.rates, on.size * itemsize)
    memset(buffer, 0, shift * itemsize)
    memset(drawn, 0, sizeof(drawn))
    on.rates, on.bits = buffer, drawn
    on.size += shift
    kernels.rates(&work.key, index - shift, &on)
    for i in range(count):
        bits[i] = <uint8_t>((drawn[i + shift // 8] | drawn[i + shift // 8 + 1] << 8) >> shift % 8)


cdef void work_on_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef const RateWork *work = <const RateWork *>context
    cdef const Walk *walk = &work.walk
    cdef double rates[BLOCK + GROUP]
    cdef uint64_t items[BLOCK]
    cdef uint8_t bits[BLOCK_BYTES]
    cdef const void *given
    cdef void *to
    cdef rate_operands on = work.on
    cdef uint64_t last = min(<uint64_t>end * BLOCK, work.on.size)
    cdef uint64_t done = <uint64_t>begin * BLOCK
    cdef uint64_t first
    while done < last:
        on.size = min(last - done, <uint64_t>BLOCK)
        first = work.first + done
        on.bits = NULL if work.on.bits == NULL else work.on.bits + done // 8
        given = rates_of_block(work, rates, first, on.size)
        if work.on.scales == NULL:
            on.rates = given
        else:
            on.scales = <const double *>given
        to = NULL
        if work.on.to != NULL:
            to = address_of(walk, TO, first) if walk.in_place[TO] else <char *>&items[0]
        if work.ones:
            if on.bits == NULL:
                on.bits = bits
            on.to = NULL
        elif to != NULL:
            on.to = to
            on.from_ = block_of(walk, FROM, <char *>items, first, on.size)
        if not work.drawn:
            kernels.rates(NULL, 0, &on)
        elif (work.offset + first) % GROUP == 0:
            kernels.rates(&work.key, work.offset + first, &on)
        else:
            draw_shifted(work, on, rates, work.offset + first)
        if work.ones:
            write_ones(on.kind, to, on.bits, on.size)
        if to != NULL and not walk.in_place[TO]:
            move_block(walk, TO, <char *>items, first, on.size)
        done += BLOCK


cdef void run_rates(RateWork *work) noexcept nogil:
    """Draw or read the bits of all elements, and use them."""
    parallel_for(work_on_blocks, work, parts(work.on.size, BLOCK), WORK * work.on.size)


cdef struct Check:
    RateWork *work
    int wrong


cdef bint are_rates(const void *rates, bint double_rates, uint64_t count) noexcept nogil:
    if double_rates:
        return doubles_are_rates(<const double *>rates, count)
    return floats_are_rates(<const float *>rates, count)


cdef void check_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef Check *check = <Check *>context
    cdef double rates[BLOCK]
    cdef uint64_t last = min(<uint64_t>end * BLOCK, check.work.on.size)
    cdef uint64_t first = <uint64_t>begin * BLOCK
    cdef uint64_t count
    cdef float_state saved = float_state_enter()  # a subnormal number is not zero
    while first < last:
        count = min(last - first, <uint64_t>BLOCK)
        if not are_rates(rates_of_block(check.work, rates, first, count),
                         check.work.on.double_rates, count):
            set_flag(&check.wrong)
        first += BLOCK
    float_state_leave(saved)


cdef bint rates_are_valid(RateWork *work) noexcept nogil:
    """Whether all rates are probabilities."""
    cdef Check check
    check.work, check.wrong = work, False
    parallel_for(check_blocks, &check, parts(work.on.size, BLOCK), work.on.size)
    return not check.wrong


# ---- Arrays ----

cdef bint is_double(np.ndarray array) noexcept:
    return np.PyArray_ITEMSIZE(array) == sizeof(double)


cdef void set_up_broadcast(RateWork *work, np.ndarray array, int ndim, const np.npy_intp *shape,
                           const np.npy_intp *to_strides,
                           const np.npy_intp *from_strides) noexcept:
    """Describe the order of elements and of a C-contiguous array that is broadcast to them."""
    cdef np.npy_intp sizes[MAX_DIMS]
    cdef np.npy_intp strides[MAX_DIMS]
    cdef int missing = ndim - np.PyArray_NDIM(array)
    cdef int i
    for i in range(ndim):
        sizes[i] = 1 if i < missing else np.PyArray_DIM(array, i - missing)
    broadcast_strides(strides, ndim, sizes, np.PyArray_ITEMSIZE(array))
    work.rates_kind = KIND_F64 if is_double(array) else KIND_F32
    work.on.double_rates = is_double(array)
    work.walk.data[TO], work.walk.data[FROM] = <char *>work.on.to, <char *>work.on.from_
    work.walk.data[BROADCAST] = <char *>np.PyArray_DATA(array)
    work.walk.itemsize[TO] = work.walk.itemsize[FROM] = kind_size(work.on.kind)
    work.walk.itemsize[BROADCAST] = np.PyArray_ITEMSIZE(array)
    set_up_walk(&work.walk, ndim, shape, to_strides, from_strides, strides)


cdef void run_with_gil(RateWork *work) noexcept:
    if work.on.size <= BLOCK:  # releasing the GIL would take longer than a small call
        run_rates(work)
    else:
        with nogil:
            run_rates(work)


cdef np.ndarray read_only_copy(np.ndarray array, object dtype):
    """A C-contiguous copy, which nobody can make writeable."""
    cdef Buffer buffer = new_buffer(np.PyArray_SIZE(array) * <size_t>dtype.itemsize)
    cdef int ndim = np.PyArray_NDIM(array)
    with numpy.errstate(all="ignore"):
        numpy.copyto(array_over(buffer, dtype, ndim, np.PyArray_DIMS(array), True), array,
                     casting="unsafe")
    return array_over(buffer, dtype, ndim, np.PyArray_DIMS(array), False)


cdef np.ndarray rates_of(object rate):
    """A copy of an array of rates, in single or double precision; None for any other argument."""
    cdef np.ndarray array, copy
    cdef RateWork work
    cdef np.npy_intp stride, size
    if not isinstance(rate, np.ndarray) or np.PyArray_NDIM(rate) == 0:
        return None
    array = base_view(rate)
    dtype = numpy.dtype(numpy.float32)
    if array.dtype.kind not in "iu" and kind_of(array, "rate") == KIND_F64:
        dtype = numpy.dtype(numpy.float64)
    copy = read_only_copy(array, dtype)
    memset(&work, 0, sizeof(work))
    size, stride = np.PyArray_SIZE(copy), dtype.itemsize
    work.on.kind = KIND_F32
    work.on.size = size
    set_up_broadcast(&work, copy.reshape(-1), 1, &size, &stride, &stride)
    if not rates_are_valid(&work):
        raise bad_rate(copy, array)
    return copy


cdef object bad_rate(np.ndarray copy, np.ndarray array):
    """The error about the first element that is not a rate."""
    cdef uint64_t i = 0
    cdef bint double_rates = is_double(copy)
    cdef float_state saved = float_state_enter()
    while are_rates(<const char *>np.PyArray_DATA(copy) + i * np.PyArray_ITEMSIZE(copy),
                    double_rates, 1):
        i += 1
    float_state_leave(saved)
    index = tuple([int(j) for j in numpy.unravel_index(i, (<object>copy).shape)])
    return ValueError("`rate` must be a number in [0, 1] or an array of them, got "
                      f"{short_repr((<object>array)[index])} at index {index}")


cdef check_fit(np.ndarray array, tuple shape, str name):
    """Check that an array can be broadcast to a shape, which it does not change."""
    cdef int missing = len(shape) - np.PyArray_NDIM(array)
    cdef tuple own = (<object>array).shape
    if missing < 0 or any([size != 1 and size != other
                           for size, other in zip(own, shape[missing:])]):
        raise ValueError(f"`{name}` must be a number, or an array that NumPy broadcasts to the "
                         f"mask's shape, {shape}, got {short_repr(array)}")


cdef object inverted_scales(np.ndarray rates):
    """1 / (1 - rate) for each rate, and 0 for rate 1, as a read-only array."""
    cdef float_state saved = float_state_enter()
    try:
        with numpy.errstate(divide="ignore"):
            scales = 1.0 / (1.0 - (<object>rates).astype(numpy.float64))
    finally:
        float_state_leave(saved)
    scales[scales == numpy.inf] = 0.0
    scales.flags.writeable = False
    return scales


cdef np.ndarray factors_of(object factors, tuple shape, str name):
    """A copy of an array of finite factors, which can be broadcast to a shape."""
    cdef np.ndarray array = base_view(factors)
    if (<object>array).dtype != numpy.float64 or not numpy.isfinite(array).all():
        raise ValueError(f"`{name}` must be a number or a float64 array of finite numbers, got "
                         f"{short_repr(array)}")
    check_fit(array, shape, name)
    return read_only_copy(array, numpy.dtype(numpy.float64))


cdef object computed_in(np.ndarray x):
    """The dtype that results for x are computed in before they are rounded to its dtype."""
    return numpy.dtype(numpy.float64 if is_double(x) else numpy.float32)


cdef store_changed(np.ndarray to, np.ndarray result, np.ndarray from_, np.ndarray changed):
    """Round a result to an array; copy elements that do not change bit for bit.

    It allocates nothing, and inverts `changed`.
    """
    numpy.copyto(to, result, casting="unsafe", where=changed)
    numpy.logical_not(changed, out=changed)
    numpy.copyto(to, from_, where=changed)


cdef void draw_by_rates(const fastdrop_seed *position, np.ndarray rates, tuple noise_shape,
                        uint64_t offset, uint64_t first, uint64_t size,
                        uint8_t *bits) noexcept:
    """Draw the bits of elements of a noise shape, from element `first` on.

    `offset` is the index of its first element in the stream.
    """
    cdef RateWork work
    cdef np.npy_intp shape[MAX_DIMS]
    cdef np.npy_intp strides[MAX_DIMS]
    cdef int i
    cdef int ndim = len(noise_shape)
    memset(&work, 0, sizeof(work))
    for i in range(ndim):
        shape[i] = noise_shape[i]
    broadcast_strides(strides, ndim, shape, sizeof(float))
    work.on.kind, work.on.size, work.on.bits = KIND_F32, size, bits
    work.drawn, work.first, work.offset = True, first, offset
    derive_other_key(&work.key, position, RATES_DOMAIN)
    set_up_broadcast(&work, rates, ndim, shape, strides, strides)
    run_with_gil(&work)


cdef void scale_by(int kind, np.ndarray to, np.ndarray from_, np.ndarray rates, np.ndarray scales,
                   const fastdrop_seed *position, const uint8_t *bits) noexcept:
    """Multiply kept elements by 1 / (1 - rate), or by their scales, and set the others to zero.

    Without a stream position, `bits` has a bit for each element; with one, the bits are drawn, and
    stored unless `bits` is NULL.
    """
    cdef RateWork work
    memset(&work, 0, sizeof(work))
    work.on.kind, work.on.size, work.on.bits = kind, np.PyArray_SIZE(to), <uint8_t *>bits
    work.on.to, work.on.from_ = np.PyArray_DATA(to), np.PyArray_DATA(from_)
    if scales is not None:
        work.on.scales = <const double *>np.PyArray_DATA(scales)
    if position != NULL:
        work.drawn = True
        derive_other_key(&work.key, position, RATES_DOMAIN)
    set_up_broadcast(&work, rates if scales is None else scales, np.PyArray_NDIM(to),
                     np.PyArray_DIMS(to), np.PyArray_STRIDES(to), np.PyArray_STRIDES(from_))
    run_with_gil(&work)
