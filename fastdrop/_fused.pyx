"""Owns dropout fused with its neighbours in a network: ReLU before it, a bias and a residual."""
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport llabs
from libc.string cimport memcpy, memset

cimport numpy as np

from fastdrop._apply cimport Work, is_plain, look_at, look_at_residual, use_on_arrays
from fastdrop._arguments cimport held, input_of, kind_of, output_of, shown
from fastdrop._bits cimport spread_bits
from fastdrop._draw cimport draw_bits
from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    ADD, KIND_F16, KIND_F32, KIND_F64, RELU, SCALE, SUM, operands, stream_key,
)
from fastdrop._mask cimport Mask, Request, mask_of, masked, request_of
from fastdrop._memory cimport Buffer, new_buffer
from fastdrop._plan cimport parts
from fastdrop._threads cimport run

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
    STEP = 32                       # what a kernel takes at a time
    SUMMED_ROWS = 128               # rows at most that are added up in single precision
    LEAST_SUMMED_ROWS = 16
    SUMMED_SIZE = 1 << 18           # elements that are added up together, where rows allow it
    LEAST_ROW = 1024                # elements that a call of a kernel is worth
    TILE_ROWS = 16                  # of an array with gaps, copied and added up at a time
    TILE_ROW = 256                  # and elements of each
    PAGE = 4096                     # bytes
    LINE = 64


# ---- ReLU ----

cdef use_relu(Request request, Mask mask, Work *work):
    """Draws the mask, uses it, and leaves it with the bits of what ReLU leaves."""
    cdef stream_key key
    cdef Buffer bits = mask.buffer
    cdef Buffer every = mask.buffer
    cdef Buffer left
    if work.straight:
        request.prepare(mask, work, &key)
        use_on_arrays(work, &key)
    else:
        left = new_buffer((work.size + 7) // 8)
        if mask.noise_shape is not mask.shape:
            every = new_buffer((work.size + 7) // 8)
        request.take_key(mask, &key)
        with nogil:
            draw_bits(&key, 0, mask.size_, bits.data)
        if every is not bits:
            spread_bits(every.data, bits.data, mask.shape, mask.noise_shape)
        memset(left.data, 0, (work.size + 7) // 8)
        work.noise_shape = work.shape
        work.on.bits, work.bits_left = every.data, left.data
        use_on_arrays(work, NULL)
        mask.noise_shape, mask.size_, mask.buffer = mask.shape, work.size, left
    # ReLU decides on each element, from x: the seed alone does not tell the bits any more.
    mask.drawn = False


def relu_dropout(x, rate, *, seed=None, noise_shape=None, scale=None, out=None):
    """Dropout of ReLU: ``dropout(maximum(x, 0), rate)`` in one pass over memory.

    The elements that the dropout of the same arguments keeps are multiplied by the scale where
    they are not <= 0 (NaN is not, and passes through, quiet); all others become ``+0.0``. The mask
    tells which are left, and is all that the gradient needs.

    Parameters
    ----------
    x : array_like
        Of any shape and strides; dtype float16, float32, float64 or bfloat16 (ml_dtypes).
    rate : float
        The probability of dropping an element, in [0, 1]; exact to 2**-48.
    seed, noise_shape, scale
        As for `dropout`: the same seed drops the same elements.
    out : numpy.ndarray, optional
        Where to write the result: of x's shape and dtype; x itself, or apart from it.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape and dtype.
    mask : Mask
        Which elements were kept and positive, for `relu_dropout_grad`; one bit an element, with
        neither a seed nor a noise shape of its own, since ReLU decides on each element.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x of another dtype.
    ValueError
        If a value is outside of what is described, out is read-only or overlaps itself or, partly,
        x. When this raises, nothing has changed and no step of a stream is taken.
    MemoryError
        If there is no memory for the result or the mask; nothing has changed then either.
    OverflowError
        If the stream has no step left; likewise.

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
    cdef np.ndarray from_ = held(input_of(x, "x"))
    cdef int kind = kind_of(from_, "x")
    cdef Mask mask = request.new_mask((<object>from_).shape)
    cdef np.ndarray to = (
        numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x"))
    cdef Work work
    look_at(&work, kind, RELU, to, from_, mask.own_noise_shape(), mask.scale)
    use_relu(request, mask, &work)
    return to if out is None else out, mask


def relu_dropout_grad(dy, mask, *, out=None):
    """The gradient of `relu_dropout` with respect to its input.

    dx is dy times the mask's scale where an element was kept and positive, and ``+0.0`` elsewhere,
    whatever dy is there.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to the output: of the mask's shape, with dtype float16, float32,
        float64 or bfloat16 (ml_dtypes), any strides.
    mask : Mask
        What `relu_dropout` returned.
    out : numpy.ndarray, optional
        Where to write dx: of dy's shape and dtype; dy itself, or apart from it.

    Returns
    -------
    dx : numpy.ndarray
        `out`, or a new array of dy's shape, dtype and memory order.

    Raises
    ------
    TypeError
        If dy has another dtype, mask is no mask or out no array.
    ValueError
        If the shapes differ, or out is read-only or overlaps itself or, partly, dy. When this
        raises, nothing has changed.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.relu_dropout(np.array([1.0, -1.0]), 0.0)
    >>> fastdrop.relu_dropout_grad(np.array([5.0, 5.0]), mask)
    array([5., 0.])
    """
    return masked(mask, dy, out, "dy")


# ---- Bias and residual ----

cdef check_companion(np.ndarray array, np.ndarray x, tuple shape, str name, str which):
    if array is None:
        return
    if (<object>array).dtype != (<object>x).dtype or (<object>array).shape != shape:
        raise ValueError(f"`{name}` must be None or have the dtype {(<object>x).dtype} of `x` and "
                         f"{which}, {shape}, got {shown(array)}")


# What changes no number when it is added, in place of a bias and of a residual.
cdef dict minus_zeros = {}


cdef np.ndarray minus_zeros_of(object dtype):
    cdef np.ndarray numbers = minus_zeros.get(dtype)
    if numbers is None:
        numbers = minus_zeros[dtype] = numpy.full(2 * STEP, -0.0, dtype)
    return numbers


cdef np.ndarray repeated(np.ndarray bias, np.ndarray x, uint64_t *period):
    """The bias in the precision of the sums, as the kernel reads it: for at least a step of it,
    and a step beyond its end."""
    cdef object dtype = numpy.float64 if (<object>x).dtype == numpy.float64 else numpy.float32
    cdef uint64_t columns
    if bias is None or np.PyArray_SIZE(bias) == 0:
        period[0] = STEP
        return minus_zeros_of(dtype)
    columns = np.PyArray_SIZE(bias)
    period[0] = columns * ((STEP + columns - 1) // columns)
    numbers = numpy.empty(period[0] + STEP, dtype)
    numbers[:columns] = bias
    while columns < period[0] + STEP:
        some = min(columns, period[0] + STEP - columns)
        numbers[columns:columns + some] = numbers[:some]
        columns += some
    return numbers


def bias_dropout_add(x, bias, residual, rate, *, seed=None, noise_shape=None, scale=None, out=None,
                     store_mask=True):
    """``residual + dropout(x + bias, rate)`` in one pass over memory, as in transformers.

    Elements that the dropout of the same arguments keeps become ``residual + (x + bias) * scale``,
    the others ``residual + 0``. Each operation is rounded to the dtype; in float16 and bfloat16 all
    is computed in float32 and rounded to nearest even at the end. Which NaN results where two meet,
    or where an infinity meets its negative, is up to the CPU.

    Parameters
    ----------
    x : array_like
        Of any shape and strides; dtype float16, float32, float64 or bfloat16 (ml_dtypes).
    bias : array_like or None
        Of x's dtype and the shape ``x.shape[-1:]``.
    residual : array_like or None
        Of x's dtype and shape.
    rate : float
        The probability of dropping an element, in [0, 1]; exact to 2**-48.
    seed, noise_shape, scale, store_mask
        As for `dropout`: the same seed drops the same elements. With a noise shape of
        ``(None, 1, 1)`` this is the stochastic depth of residual networks [1]_.
    out : numpy.ndarray, optional
        Where to write the result: of x's shape and dtype; x or residual itself, or apart from them.
        It may share memory with bias.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape and dtype.
    mask : Mask
        Which elements were kept, for `bias_dropout_add_grad`.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x of another dtype.
    ValueError
        If a value is outside of what is described, out is read-only or overlaps itself or, partly,
        x or residual. When this raises, nothing has changed and no step of a stream is taken.
    MemoryError
        If there is no memory for the result or the mask; nothing has changed then either.
    OverflowError
        If the stream has no step left; likewise.

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
    # All that may run a user's code comes first: then nobody else has these headers.
    cdef np.ndarray from_ = input_of(x, "x")
    cdef np.ndarray checked_bias = None if bias is None else input_of(bias, "bias")
    cdef np.ndarray checked_residual = None if residual is None else input_of(residual, "residual")
    cdef np.ndarray to, biases, zeros
    cdef tuple shape
    cdef int kind
    cdef Mask mask
    cdef Work work
    cdef stream_key key
    from_ = held(from_)
    checked_bias = None if checked_bias is None else held(checked_bias)
    checked_residual = None if checked_residual is None else held(checked_residual)
    shape = (<object>from_).shape
    kind = kind_of(from_, "x")
    if not shape and bias is not None:
        raise ValueError(f"`bias` must be None for an `x` without axes, got {shown(bias)}")
    check_companion(checked_bias, from_, shape[len(shape) - 1:], "bias",
                    "the shape of its last axis")
    check_companion(checked_residual, from_, shape, "residual", "its shape")
    mask = request.new_mask(shape)
    if out is None:
        to = numpy.empty_like(from_, subok=False)
    else:
        to = output_of(out, from_, "x")
        if checked_residual is not None:
            output_of(to, checked_residual, "residual")
    look_at(&work, kind, ADD, to, from_, mask.own_noise_shape(), mask.scale)
    biases = repeated(checked_bias, from_, &work.on.period)
    work.on.bias = np.PyArray_DATA(biases)
    if checked_bias is not None and np.PyArray_SIZE(checked_bias):
        work.columns = np.PyArray_SIZE(checked_bias)
    if checked_residual is None:
        zeros = minus_zeros_of((<object>from_).dtype)
        work.on.residual = np.PyArray_DATA(zeros)
    else:
        look_at_residual(&work, checked_residual)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return to if out is None else out, mask


# ---- The gradient of a bias ----

cdef struct Sums:
    operands on
    int itemsize
    uint64_t size
    uint64_t row                    # whole biases, at least what a call of a kernel is worth
    uint64_t rows                   # added up together
    uint64_t groups                 # of them
    char *sums                      # a row for each group of rows
    int sum_size
    bint plain
    # Otherwise: the array's dimensions.
    int ndim
    const np.npy_intp *shape
    const np.npy_intp *strides


cdef const char *place_of(const Sums *work, int64_t index) noexcept nogil:
    """Where the element of an index in C order is."""
    cdef const char *place = <const char *>work.on.from_
    cdef int i
    for i in range(work.ndim - 1, -1, -1):
        place += index % work.shape[i] * work.strides[i]
        index //= work.shape[i]
    return place


cdef inline void copy_run(char *tile, const char **places, int64_t stride, int64_t rows,
                          int64_t count, int itemsize) noexcept nogil:
    """Elements of the last axis, of some rows: first along what lies closer together."""
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
    """Elements from the first on, and those as far into the rows below."""
    cdef int64_t columns = work.shape[work.ndim - 1]
    cdef int64_t stride = work.strides[work.ndim - 1]
    cdef const char *places[TILE_ROWS]
    cdef int64_t i, some
    while count:
        for i in range(rows):
            places[i] = place_of(work, first + i * work.row)
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
    """The sums of rows that do not lie in the order of their indices, added up in that order."""
    cdef uint64_t tile[TILE_ROWS * TILE_ROW]
    cdef operands on = work.on
    cdef int64_t column = 0
    cdef int64_t row = work.row
    cdef int64_t place, rows, count, i
    while column < row:
        place = first + column
        while place < last:
            # The last row may end before the others.
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
    """Groups begin .. end - 1 of rows: each has its sums to itself, whatever thread makes them."""
    cdef const Sums *work = <const Sums *>context
    cdef operands on = work.on
    cdef uint64_t group, first, last
    for group in range(<uint64_t>begin, <uint64_t>end):
        first = group * work.rows * work.row
        last = min(first + work.rows * work.row, work.size)
        on.sums = work.sums + group * work.row * work.sum_size
        if not work.plain:
            sum_tiles(work, first, last, <char *>on.sums)
            continue
        while first < last:
            on.size = min(work.row, last - first)
            on.bit = first
            on.to = <char *>work.on.to + first * work.itemsize
            on.from_ = <const char *>work.on.from_ + first * work.itemsize
            kernels.use(NULL, 0, &on)
            first += on.size


cdef void look_at_sums(Sums *sums, int kind, np.ndarray to, np.ndarray from_, double scale):
    cdef uint64_t columns = np.PyArray_DIM(from_, np.PyArray_NDIM(from_) - 1)
    memset(sums, 0, sizeof(Sums))
    sums.on.kind, sums.on.use, sums.on.scale = kind, SUM, scale
    sums.on.to, sums.on.from_ = np.PyArray_DATA(to), np.PyArray_DATA(from_)
    sums.itemsize = np.PyArray_ITEMSIZE(from_)
    sums.size = np.PyArray_SIZE(from_)
    sums.plain = is_plain(to) and is_plain(from_)
    sums.ndim = np.PyArray_NDIM(from_)
    sums.shape, sums.strides = np.PyArray_DIMS(from_), np.PyArray_STRIDES(from_)
    sums.row = columns * parts(LEAST_ROW, columns)
    sums.rows = min(max(SUMMED_SIZE // sums.row, <uint64_t>LEAST_SUMMED_ROWS),
                    <uint64_t>SUMMED_ROWS)
    sums.groups = parts(sums.size, sums.rows * sums.row)
    sums.sum_size = sizeof(double) if kind == KIND_F64 else sizeof(float)


cdef void add_up(const Sums *work, double *totals, uint64_t columns) noexcept nogil:
    """The sums of all groups, in their order."""
    cdef float_state saved = float_state_enter()
    cdef uint64_t i, column = 0
    for i in range(work.groups * work.row):
        if work.on.kind == KIND_F64:
            totals[column] += (<const double *>work.sums)[i]
        else:
            totals[column] += (<const float *>work.sums)[i]
        column += 1
        if column == columns:
            column = 0
    float_state_leave(saved)


cdef float rounded_to_odd(double x) noexcept nogil:
    """In single precision, with the last bit set where that is not exact: rounded once more, to
    half precision, this is x rounded once (Boldo and Melquiond, 2008)."""
    cdef float y = <float>x
    cdef uint32_t bits
    if y == x or x != x:
        return y
    bits = bits_of_float(y)
    if (<double>y > x) == (x > 0):
        bits -= 1
    return float_of_bits(bits | 1)


cdef void round_sums(int kind, const double *totals, void *to, uint64_t columns) noexcept nogil:
    """To nearest even in the dtype of the elements, whatever the caller's modes are."""
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


def bias_dropout_add_grad(dy, mask, *, out=None):
    """The gradients of `bias_dropout_add` with respect to x, bias and residual, in one pass.

    dx is dy times the mask's scale where an element was kept and ``+0.0`` elsewhere; dbias is the
    sum of these products over all axes but the last; dresidual is dy. The products are added up
    before they are rounded to half precision, in an order that is the same on every instruction set
    and number of threads: up to 128 at a time in float32 (in float64 for float64), and those sums
    in float64.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to the output: of the mask's shape, which has at least one axis;
        dtype float16, float32, float64 or bfloat16 (ml_dtypes); of any strides.
    mask : Mask
        What `bias_dropout_add` returned.
    out : numpy.ndarray, optional
        Where to write dx: of dy's shape and dtype, and apart from dy, which is dresidual. For dx
        alone and in place there is `dropout_grad_`.

    Returns
    -------
    dx : numpy.ndarray
        `out`, or a new array of dy's shape and dtype.
    dbias : numpy.ndarray
        Of the shape ``dy.shape[-1:]`` and dy's dtype.
    dresidual : numpy.ndarray
        dy itself, where it is an array.

    Raises
    ------
    TypeError
        If dy has another dtype, mask is no mask or out no array.
    ValueError
        If the shapes differ, dy has no axis, or out is read-only or overlaps itself or dy. When
        this raises, nothing has changed.
    MemoryError
        If there is no memory for the results; nothing has changed then either.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.bias_dropout_add(np.ones((2, 2)), None, None, 0.5, seed=3)
    >>> fastdrop.bias_dropout_add_grad(np.array([[1.0, 2.0], [3.0, 4.0]]), mask)[:2]
    (array([[2., 0.],
           [6., 0.]]), array([8., 0.]))
    """
    cdef np.ndarray array = held(input_of(dy, "dy"))
    cdef int kind = kind_of(array, "dy")
    cdef Mask checked = mask_of(mask, array, "dy")
    cdef np.ndarray to, totals, dbias
    cdef Buffer stored, bits, block
    cdef Sums sums
    cdef Work work
    cdef size_t size
    cdef uint64_t columns
    if np.PyArray_NDIM(array) == 0:
        raise ValueError(f"`dy` must have at least one axis, got {shown(array)}")
    if out is None:
        to = numpy.empty_like(array, subok=False)
    else:
        to = output_of(out, array, "dy")
        if np.PyArray_DATA(to) == np.PyArray_DATA(array) and np.PyArray_SIZE(array):
            raise ValueError("`out` must be apart from `dy`, which is the gradient of the residual "
                             "(dropout_grad_ gives that of x alone, in place), got `dy`")
    columns = np.PyArray_DIM(array, np.PyArray_NDIM(array) - 1)
    try:
        totals = numpy.zeros(columns)
    except ValueError:  # as NumPy says where a size does not fit
        raise MemoryError(f"unable to allocate sums of {columns} columns") from None
    dbias = numpy.empty(columns, (<object>array).dtype)
    if np.PyArray_SIZE(array):
        stored = bits = checked.stored_bits()
        if checked.noise_shape is not checked.shape:
            bits = new_buffer((np.PyArray_SIZE(array) + 7) // 8)
        look_at_sums(&sums, kind, to, array, checked.scale)
        size = sums.groups * sums.row * sums.sum_size
        block = new_buffer(size + PAGE)
        # All memory is there: from here on nothing can fail.
        memset(block.data, 0, size + PAGE)
        sums.sums = <char *>block.data
        if sums.plain and sums.sum_size == sums.itemsize:
            # As far into a line as the elements, so that both have their vectors in whole lines;
            # and half a page from them, since a CPU takes a load for that of what it has just
            # stored where the last twelve bits of the addresses are the same.
            sums.sums += (<uintptr_t>sums.on.to + PAGE // 2 - <uintptr_t>block.data) % PAGE
        if bits is not stored:
            spread_bits(bits.data, stored.data, checked.shape, checked.noise_shape)
        sums.on.bits = bits.data
        if not sums.plain:
            # dx in the order of memory, and the sums in that of the indices.
            look_at(&work, kind, SCALE, to, array, checked.own_noise_shape(), checked.scale)
            # As in one pass, a NaN becomes quiet.
            work.on.kind = kind
            work.on.bits = stored.data
            use_on_arrays(&work, NULL)
        with nogil:
            run(sum_groups, &sums, sums.groups, sums.size)
            add_up(&sums, <double *>np.PyArray_DATA(totals), columns)
    round_sums(kind, <const double *>np.PyArray_DATA(totals), np.PyArray_DATA(dbias), columns)
    return to if out is None else out, dbias, array if not isinstance(dy, numpy.ndarray) else dy
