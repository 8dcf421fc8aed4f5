"""Fuses dropout with the operations beside it: ReLU, and adding a bias and a residual."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport llabs
from libc.string cimport memcpy, memset

cimport numpy as np

from fastdrop._apply cimport (
    Work, bias_bytes, is_contiguous, set_up, set_up_add, set_up_bias, set_up_residual,
    use_on_arrays, use_relu_on,
)
from fastdrop._arguments cimport own_view, input_of, kind_of, output_of, short_repr
from fastdrop._bits cimport spread_bits
from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    ADD, BLOCK, KIND_F16, KIND_F32, KIND_F64, RELU, SCALE, SUM, kind_sum_size, operands,
    stream_key,
)
from fastdrop._mask cimport Mask, Request, mask_of, masked, request_of
from fastdrop._memory cimport Buffer, new_buffer
from fastdrop._plan cimport parts
from fastdrop._rates cimport computed_in
from fastdrop._threads cimport parallel_for

import numpy

np.import_array()

cdef extern from "simd/elements.h" nogil:
    ctypedef struct f16:
        pass
    ctypedef struct bf16:
        pass
    f16 f16_of_float(float value)
    bf16 bf16_of_float(float value)
    uint32_t bits_of_float(float value)
    float float_of_bits(uint32_t bits)

cdef extern from "simd/float_state.h" nogil:
    ctypedef struct float_state:
        pass
    float_state float_state_enter()
    void float_state_leave(float_state saved)

cdef enum:
    SUMMED_ROWS = 128               # most rows that are summed in single precision
    LEAST_SUMMED_ROWS = 16
    SUMMED_SIZE = 1 << 18           # elements of a group of rows, within these limits
    LEAST_ROW = 1024                # fewest elements for which calling a kernel pays
    TILE_ROWS = 16                  # rows of a strided array that are copied and summed together
    TILE_ROW = 256                  # elements of each of these rows
    PAGE = 4096                     # bytes
    LINE = 64                       # bytes


# ---- ReLU ----

cdef use_relu(Request request, Mask mask, Work *work):
    """Draw the mask and use it; clear the bits of elements that ReLU drops."""
    cdef stream_key key
    cdef Buffer element_bits
    cdef uint8_t *data = NULL
    if mask.noise_shape_ is not mask.shape_:
        # ReLU decides on each element.
        mask.noise_shape_, mask.size_ = mask.shape_, work.size
        mask.buffer = new_buffer(mask.packed_size())
    if not work.contiguous:
        element_bits = new_buffer((work.size + 7) // 8)
        data = element_bits.data
    request.prepare(mask, work, &key)
    if work.size <= BLOCK:  # releasing the GIL would take longer than a small call
        use_relu_on(work, &key, data)
    else:
        with nogil:
            use_relu_on(work, &key, data)
    # The bits depend on x: the seed cannot draw them again.
    mask.drawn = False


cdef use_relu_by_rates(Request request, Mask mask, int kind, np.ndarray to, np.ndarray from_):
    """Draw the mask by an array of rates and use it, in simple passes."""
    cdef stream_key key
    cdef np.ndarray positive
    cdef Buffer expanded = mask.new_element_bits()
    cdef const uint8_t *drawn
    cdef const uint8_t *signs
    cdef size_t i
    cdef object one = (<object>from_).dtype.type(1)
    cdef float_state saved = float_state_enter()
    try:
        with numpy.errstate(all="ignore"):
            positive = numpy.packbits(numpy.ravel(~(from_ <= 0)), bitorder="little")
            signs = <const uint8_t *>np.PyArray_DATA(positive)
            request.take_key(mask, &key)
            mask.draw_bits_to(0, mask.size_, mask.buffer.data)
            drawn = mask.element_bits(mask.buffer.data, expanded)
            if expanded is not None:
                mask.buffer = expanded
            mask.noise_shape_, mask.size_ = mask.shape_, np.PyArray_SIZE(from_)
            for i in range(mask.packed_size()):
                mask.buffer.data[i] = drawn[i] & signs[i]
            numpy.multiply(from_, one, out=to)  # a NaN becomes quiet
    finally:
        float_state_leave(saved)
    mask.apply_bits(kind, to, to, mask.buffer.data, None)
    mask.drawn = False


def relu_dropout(x, rate, *, seed=None, noise_shape=None, scale=None, out=None):
    """Compute ``dropout(maximum(x, 0), rate)`` in one pass over memory.

    An element becomes ``x * scale`` if `dropout` with the same arguments keeps it and it is
    positive or NaN; a NaN becomes quiet. Every other element becomes ``+0.0``. The gradient needs
    only the mask.

    Parameters
    ----------
    x : array_like
        An array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes).
    rate : float or numpy.ndarray
        The probability of dropping an element, in [0, 1]; exact to 2**-48. An array of rates, one
        for each element, decides as in `dropout`; it takes several simple passes over memory.
    seed, noise_shape, scale
        As for `dropout`: the same seed drops the same elements.
    out : numpy.ndarray, optional
        The array for the result, of x's shape and dtype: x itself, or an array that shares no
        memory with it. Other threads must not read or change it during the call.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape and dtype.
    mask : Mask
        The elements that were kept and positive, for `relu_dropout_grad`; one bit per element. It
        has no seed, and its noise shape is x's shape, since ReLU decides on each element.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, or out is read-only, overlaps itself, or overlaps x in
        part.
    MemoryError
        If there is no memory for the result or the mask.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises changes no array and takes no step of a stream.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> x = np.array([1.0, -2.0, 3.0, 4.0, -5.0, 6.0])
    >>> y, mask = fastdrop.relu_dropout(x, 0.5, seed=0)
    >>> y
    array([ 2.,  0.,  0.,  8.,  0., 12.])
    >>> fastdrop.relu_dropout_grad(np.ones(6), mask)
    array([2., 0., 0., 2., 0., 2.])
    """
    cdef Request request = request_of(rate, seed, noise_shape, scale, True)
    cdef np.ndarray from_ = own_view(input_of(x, "x"))
    cdef int kind = kind_of(from_, "x")
    cdef Mask mask = request.new_mask((<object>from_).shape)
    cdef np.ndarray to = (
        numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x"))
    cdef Work work
    if mask.rates is not None:
        use_relu_by_rates(request, mask, kind, to, from_)
        return to if out is None else out, mask
    set_up(&work, kind, RELU, to, from_, mask.own_noise_shape(), mask.scale_)
    use_relu(request, mask, &work)
    return to if out is None else out, mask


def relu_dropout_grad(dy, mask, *, out=None):
    """Compute the gradient of `relu_dropout` with respect to its input.

    An element of dx is ``dy * scale`` where x was kept and positive, and ``+0.0`` elsewhere, even
    where dy is NaN.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to the output. It has the mask's shape, any strides, and the dtype
        float16, float32, float64 or bfloat16 (ml_dtypes).
    mask : Mask
        The mask that `relu_dropout` returned.
    out : numpy.ndarray, optional
        The array for dx, of dy's shape and dtype: dy itself, or an array that shares no memory with
        it. Other threads must not read or change it during the call.

    Returns
    -------
    dx : numpy.ndarray
        `out`, or a new array of dy's shape, dtype and memory order.

    Raises
    ------
    TypeError
        If dy has another dtype, or an argument is of the wrong type.
    ValueError
        If the shapes differ, or out is read-only, overlaps itself, or overlaps dy in part.
    MemoryError
        If there is no memory for dx.

    Notes
    -----
    A call that raises changes no array.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.relu_dropout(np.array([1.0, -1.0]), 0.0)
    >>> fastdrop.relu_dropout_grad(np.array([5.0, 5.0]), mask)
    array([5., 0.])
    """
    return masked(mask, dy, out, "dy")


# ---- Bias and residual ----

cdef check_operand(np.ndarray array, np.ndarray x, tuple shape, str name, str which):
    if array is None:
        return
    if (<object>array).dtype != (<object>x).dtype or (<object>array).shape != shape:
        raise ValueError(f"`{name}` must be None or have the dtype {(<object>x).dtype} of `x` and "
                         f"{which}, {shape}, got {short_repr(array)}")


cdef add_by_rates(Request request, Mask mask, np.ndarray to, np.ndarray from_, np.ndarray bias,
                  np.ndarray residual):
    """Compute ``residual + dropout(x + bias)`` by an array of rates, in simple passes."""
    cdef np.ndarray total
    cdef object wide = computed_in(from_)
    cdef float_state saved = float_state_enter()
    try:
        with numpy.errstate(all="ignore"):
            total = numpy.array(from_, wide, order="C")
            if bias is not None:
                numpy.add(total, (<object>bias).astype(wide), out=total)
            added = 0 if residual is None else (<object>residual).astype(wide, copy=False)
            request.drop_by_rates(mask, KIND_F64 if wide == numpy.float64 else KIND_F32, total,
                                  total)
            if residual is not None:
                numpy.add(added, total, out=total)
            numpy.copyto(to, total, casting="unsafe")
    finally:
        float_state_leave(saved)


def bias_dropout_add(x, bias, residual, rate, *, seed=None, noise_shape=None, scale=None, out=None,
                     store_mask=True):
    """Compute ``residual + dropout(x + bias, rate)`` in one pass over memory, as in transformers.

    An element becomes ``residual + (x + bias) * scale`` if `dropout` with the same arguments keeps
    it, and ``residual + 0`` otherwise. Each operation is rounded to the dtype. float16 and bfloat16
    are computed in float32 and rounded to nearest even at the end. Where two NaNs, or two opposite
    infinities, are added, the CPU chooses the NaN that results.

    Parameters
    ----------
    x : array_like
        An array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes).
    bias : array_like or None
        An array of x's dtype and the shape ``x.shape[-1:]``.
    residual : array_like or None
        An array of x's dtype and shape.
    rate : float or numpy.ndarray
        The probability of dropping an element, in [0, 1]; exact to 2**-48. An array of rates, one
        for each element, decides as in `dropout`; it takes several simple passes over memory.
    seed, noise_shape, scale, store_mask
        As for `dropout`: the same seed drops the same elements. The noise shape ``(None, 1, 1)``
        gives the stochastic depth of residual networks [1]_.
    out : numpy.ndarray, optional
        The array for the result, of x's shape and dtype: x itself, residual itself, or an array
        that shares no memory with them. It may share memory with bias. Other threads must not read
        or change it during the call.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape and dtype.
    mask : Mask
        The elements that were kept, for `bias_dropout_add_grad`.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, or out is read-only, overlaps itself, or overlaps x or
        residual in part.
    MemoryError
        If there is no memory for the result or the mask.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises changes no array and takes no step of a stream.

    References
    ----------
    .. [1] G. Huang et al., "Deep networks with stochastic depth", ECCV 2016.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> x, bias, residual = np.ones((2, 3)), np.array([0.0, 1.0, 2.0]), np.full((2, 3), 10.0)
    >>> y, mask = fastdrop.bias_dropout_add(x, bias, residual, 0.5, seed=0)
    >>> y
    array([[12., 10., 10.],
           [12., 14., 16.]])
    >>> dx, dbias, dresidual = fastdrop.bias_dropout_add_grad(np.ones((2, 3)), mask)
    >>> dbias
    array([4., 2., 2.])
    """
    cdef Request request = request_of(rate, seed, noise_shape, scale, store_mask)
    # Conversions may run a user's code. They all come before own_view.
    cdef np.ndarray from_ = input_of(x, "x")
    cdef np.ndarray checked_bias = None if bias is None else input_of(bias, "bias")
    cdef np.ndarray checked_residual = None if residual is None else input_of(residual, "residual")
    cdef np.ndarray to
    cdef Buffer copy
    cdef tuple shape
    cdef int kind
    cdef Mask mask
    cdef Work work
    cdef stream_key key
    from_ = own_view(from_)
    checked_bias = None if checked_bias is None else own_view(checked_bias)
    checked_residual = None if checked_residual is None else own_view(checked_residual)
    shape = (<object>from_).shape
    kind = kind_of(from_, "x")
    if not shape and bias is not None:
        raise ValueError(f"`bias` must be None for an `x` without axes, got {short_repr(bias)}")
    check_operand(checked_bias, from_, shape[len(shape) - 1:], "bias", "the shape of its last axis")
    check_operand(checked_residual, from_, shape, "residual", "its shape")
    mask = request.new_mask(shape)
    if out is None:
        to = numpy.empty_like(from_, subok=False)
    else:
        to = output_of(out, from_, "x")
        if checked_residual is not None:
            output_of(to, checked_residual, "residual")
    if mask.rates is not None:
        add_by_rates(request, mask, to, from_, checked_bias, checked_residual)
        return to if out is None else out, mask
    set_up(&work, kind, ADD, to, from_, mask.own_noise_shape(), mask.scale_)
    set_up_add(&work)
    if checked_bias is not None and work.size:
        copy = new_buffer(bias_bytes(kind, np.PyArray_SIZE(checked_bias)))
        set_up_bias(&work, <char *>copy.data, <const char *>np.PyArray_DATA(checked_bias),
                    np.PyArray_STRIDE(checked_bias, 0), np.PyArray_SIZE(checked_bias))
    if checked_residual is not None:
        set_up_residual(&work, checked_residual)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return to if out is None else out, mask


# ---- The gradient of a bias ----

cdef struct Sums:
    operands on
    int itemsize
    uint64_t size
    uint64_t row                    # several rows of the array, at least LEAST_ROW elements
    uint64_t rows                   # rows that are summed into one row of sums: a group
    uint64_t groups
    char *sums                      # a row of sums for each group
    int sum_size
    bint contiguous
    # The array's dimensions, if it is not contiguous.
    int ndim
    const np.npy_intp *shape
    const np.npy_intp *strides


cdef const char *address_of(const Sums *work, int64_t index) noexcept nogil:
    """The address of the element with an index in C order."""
    cdef const char *address = <const char *>work.on.from_
    cdef int i
    for i in range(work.ndim - 1, -1, -1):
        address += index % work.shape[i] * work.strides[i]
        index //= work.shape[i]
    return address


cdef inline void copy_run(char *tile, const char **places, int64_t stride, int64_t rows,
                          int64_t count, int itemsize) noexcept nogil:
    """Copy elements along the last axis of several rows, in the order of memory."""
    cdef int64_t i, j
    if llabs(stride) < LINE:
        for i in range(rows):
            for j in range(count):
                memcpy(tile + (i * TILE_ROW + j) * itemsize, places[i] + j * stride, itemsize)
        return
    for j in range(count):
        for i in range(rows):
            memcpy(tile + (i * TILE_ROW + j) * itemsize, places[i] + j * stride, itemsize)


cdef void copy_tile(const Sums *work, char *tile, int64_t first, int64_t rows,
                    int64_t count) noexcept nogil:
    """Copy `count` elements of each row, from element `first` of the first row on."""
    cdef int64_t columns = work.shape[work.ndim - 1]
    cdef int64_t stride = work.strides[work.ndim - 1]
    cdef const char *places[TILE_ROWS]
    cdef int64_t i, some
    while count:
        for i in range(rows):
            places[i] = address_of(work, first + i * work.row)
        some = min(columns - first % columns, count)
        if work.itemsize == 4:
            copy_run(tile, places, stride, rows, some, 4)
        elif work.itemsize == 2:
            copy_run(tile, places, stride, rows, some, 2)
        else:
            copy_run(tile, places, stride, rows, some, 8)
        tile += some * work.itemsize
        first += some
        count -= some


cdef void sum_tiles(const Sums *work, int64_t first, int64_t last, char *sums) noexcept nogil:
    """Sum rows of a strided array, in the order of their indices."""
    cdef uint64_t tile[TILE_ROWS * TILE_ROW]
    cdef operands on = work.on
    cdef int64_t column = 0
    cdef int64_t row = work.row
    cdef int64_t place, rows, count, i
    while column < row:
        place = first + column
        while place < last:
            # The last row may be shorter.
            count = min(row - column, last - place, <int64_t>TILE_ROW)
            rows = min((last - place - count) // row + 1, <int64_t>TILE_ROWS)
            copy_tile(work, <char *>tile, place, rows, count)
            on.size, on.sums = count, sums + column * work.sum_size
            for i in range(rows):
                on.to = on.from_ = <char *>tile + i * TILE_ROW * work.itemsize
                on.bit = place + i * row
                kernels.use(NULL, 0, &on)
            place += rows * row
        column += TILE_ROW


cdef void sum_groups(void *context, int64_t begin, int64_t end) noexcept nogil:
    """Sum groups begin .. end - 1. Each group has a row of sums, so threads share none."""
    cdef const Sums *work = <const Sums *>context
    cdef operands on = work.on
    cdef uint64_t group, first, last
    for group in range(<uint64_t>begin, <uint64_t>end):
        first = group * work.rows * work.row
        last = min(first + work.rows * work.row, work.size)
        on.sums = work.sums + group * work.row * work.sum_size
        if not work.contiguous:
            sum_tiles(work, first, last, <char *>on.sums)
            continue
        while first < last:
            on.size = min(work.row, last - first)
            on.bit = first
            on.to = <char *>work.on.to + first * work.itemsize
            on.from_ = <const char *>work.on.from_ + first * work.itemsize
            kernels.use(NULL, 0, &on)
            first += on.size


cdef void set_up_sums(Sums *sums, int kind, np.ndarray to, np.ndarray from_, double scale):
    cdef uint64_t columns = np.PyArray_DIM(from_, np.PyArray_NDIM(from_) - 1)
    memset(sums, 0, sizeof(Sums))
    sums.on.kind, sums.on.use, sums.on.scale = kind, SUM, scale
    sums.on.to, sums.on.from_ = np.PyArray_DATA(to), np.PyArray_DATA(from_)
    sums.itemsize = np.PyArray_ITEMSIZE(from_)
    sums.size = np.PyArray_SIZE(from_)
    sums.contiguous = is_contiguous(to) and is_contiguous(from_)
    sums.ndim = np.PyArray_NDIM(from_)
    sums.shape, sums.strides = np.PyArray_DIMS(from_), np.PyArray_STRIDES(from_)
    sums.row = columns * parts(LEAST_ROW, columns)
    sums.rows = min(max(SUMMED_SIZE // sums.row, <uint64_t>LEAST_SUMMED_ROWS),
                    <uint64_t>SUMMED_ROWS)
    sums.groups = parts(sums.size, sums.rows * sums.row)
    sums.sum_size = kind_sum_size(kind)


cdef void add_groups(const Sums *work, double *totals, uint64_t columns) noexcept nogil:
    """Add the sums of all groups, in order."""
    cdef float_state saved = float_state_enter()
    cdef uint64_t i, column = 0
    for i in range(work.groups * work.row):
        if work.sum_size == sizeof(double):
            totals[column] += (<const double *>work.sums)[i]
        else:
            totals[column] += (<const float *>work.sums)[i]
        column += 1
        if column == columns:
            column = 0
    float_state_leave(saved)


cdef float rounded_to_odd(double x) noexcept nogil:
    """Round to single precision, to odd where inexact. Rounding the result to half precision then
    equals rounding x once (Boldo and Melquiond, 2008)."""
    cdef float y = <float>x
    cdef uint32_t bits
    if y == x or x != x:
        return y
    bits = bits_of_float(y)
    if (<double>y > x) == (x > 0):
        bits -= 1
    return float_of_bits(bits | 1)


cdef void round_sums(int kind, const double *totals, void *to, uint64_t columns) noexcept nogil:
    """Round the sums to nearest even, to the elements' dtype. The caller's modes have no effect."""
    cdef float_state saved = float_state_enter()
    cdef uint64_t i
    for i in range(columns):
        if kind == KIND_F64:
            (<double *>to)[i] = totals[i]
        elif kind == KIND_F32:
            (<float *>to)[i] = <float>totals[i]
        elif kind == KIND_F16:
            (<f16 *>to)[i] = f16_of_float(rounded_to_odd(totals[i]))
        else:
            (<bf16 *>to)[i] = bf16_of_float(rounded_to_odd(totals[i]))
    float_state_leave(saved)


cdef sum_by_scales(Mask mask, np.ndarray to, np.ndarray from_, np.ndarray totals):
    """Compute dx where elements have their own scales, and its sums, in simple passes."""
    cdef object wide = computed_in(from_)
    cdef np.ndarray products
    cdef float_state saved = float_state_enter()
    try:
        with numpy.errstate(all="ignore"):
            products = numpy.array(from_, wide, order="C")
            mask.apply_to(KIND_F64 if wide == numpy.float64 else KIND_F32, products, products)
            numpy.sum(products.reshape(-1, np.PyArray_SIZE(totals)), 0, numpy.float64, totals)
            numpy.copyto(to, products, casting="unsafe")
    finally:
        float_state_leave(saved)


def bias_dropout_add_grad(dy, mask, *, out=None):
    """Compute the gradients of `bias_dropout_add` with respect to x, bias and residual.

    A kept element of dx is ``dy * scale``; a dropped one is ``+0.0``. dbias is the sum of dx over
    all axes but the last, taken before dx is rounded to half precision. dresidual is dy. Up to 128
    products are added in float32 (in float64 for float64), and these partial sums in float64. The
    order is the same on every instruction set and for every number of threads. It takes one pass
    over memory, or two if an array is not C-contiguous. If elements have scales of their own, it
    takes several simple passes, and all products are added in float64.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to the output. It has the mask's shape, at least one axis, any
        strides, and the dtype float16, float32, float64 or bfloat16 (ml_dtypes).
    mask : Mask
        The mask that `bias_dropout_add` returned.
    out : numpy.ndarray, optional
        The array for dx, of dy's shape and dtype. It must share no memory with dy, which is
        dresidual; `dropout_grad_` computes dx alone, in place. Other threads must not read or
        change it during the call.

    Returns
    -------
    dx : numpy.ndarray
        `out`, or a new array of dy's shape and dtype.
    dbias : numpy.ndarray
        An array of the shape ``dy.shape[-1:]`` and of dy's dtype.
    dresidual : numpy.ndarray
        dy itself if it is an array, else dy as an array.

    Raises
    ------
    TypeError
        If dy has another dtype, or an argument is of the wrong type.
    ValueError
        If the shapes differ, dy has no axis, or out is read-only, overlaps itself, or overlaps dy.
    MemoryError
        If there is no memory for the results.

    Notes
    -----
    A call that raises changes no array.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.bias_dropout_add(np.ones((2, 2)), None, None, 0.5, seed=3)
    >>> fastdrop.bias_dropout_add_grad(np.array([[1.0, 2.0], [3.0, 4.0]]), mask)[:2]
    (array([[2., 0.],
           [6., 0.]]), array([8., 0.]))
    """
    cdef np.ndarray array = own_view(input_of(dy, "dy"))
    cdef int kind = kind_of(array, "dy")
    cdef Mask checked = mask_of(mask, array, "dy")
    cdef np.ndarray to, totals, dbias
    cdef Buffer stored, bits, block
    cdef Sums sums
    cdef Work work
    cdef size_t size
    cdef uint64_t columns
    if np.PyArray_NDIM(array) == 0:
        raise ValueError(f"`dy` must have at least one axis, got {short_repr(array)}")
    if out is None:
        to = numpy.empty_like(array, subok=False)
    else:
        to = output_of(out, array, "dy")
        if np.PyArray_DATA(to) == np.PyArray_DATA(array) and np.PyArray_SIZE(array):
            raise ValueError("`out` must share no memory with `dy`, which is the gradient of "
                             "`residual` (dropout_grad_ computes the gradient of `x` alone, in "
                             "place), got `dy`")
    columns = np.PyArray_DIM(array, np.PyArray_NDIM(array) - 1)
    try:
        totals = numpy.zeros(columns)
    except ValueError:  # NumPy's error for a size that does not fit
        raise MemoryError(f"unable to allocate sums of {columns} columns") from None
    dbias = numpy.empty(columns, (<object>array).dtype)
    if checked.scales_differ() and np.PyArray_SIZE(array):
        sum_by_scales(checked, to, array, totals)
    elif np.PyArray_SIZE(array):
        stored = bits = checked.stored_bits()
        if checked.noise_shape_ is not checked.shape_:
            bits = new_buffer((np.PyArray_SIZE(array) + 7) // 8)
        set_up(&work, kind, SCALE, to, array, checked.own_noise_shape(), checked.scale_)
        set_up_sums(&sums, kind, to, array, checked.scale_)
        size = sums.groups * sums.row * sums.sum_size
        block = new_buffer(size + PAGE)
        # All memory is allocated: from here on nothing can fail.
        memset(block.data, 0, size + PAGE)
        sums.sums = <char *>block.data
        if sums.contiguous and sums.sum_size == sums.itemsize:
            # The sums begin at the same offset within a cache line as the elements, so that whole
            # vectors of both are aligned. They begin half a page away from them modulo a page,
            # since a CPU takes a load to depend on an earlier store if the last twelve bits of
            # their addresses are equal.
            sums.sums += (<uintptr_t>sums.on.to + PAGE // 2 - <uintptr_t>block.data) % PAGE
        if bits is not stored:
            with nogil:
                spread_bits(bits.data, stored.data, work.ndim, work.shape, work.noise_shape)
        sums.on.bits = bits.data
        if not sums.contiguous:
            # dx is computed in the order of memory, the sums in the order of the indices.
            # Multiplies at scale 1, too: a NaN becomes quiet, as in one pass.
            work.on.kind = kind
            work.on.bits = stored.data
            use_on_arrays(&work, NULL)
        with nogil:
            parallel_for(sum_groups, &sums, sums.groups, sums.size)
            add_groups(&sums, <double *>np.PyArray_DATA(totals), columns)
    round_sums(kind, <const double *>np.PyArray_DATA(totals), np.PyArray_DATA(dbias), columns)
    return to if out is None else out, dbias, array if not isinstance(dy, numpy.ndarray) else dy
