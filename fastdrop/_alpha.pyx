"""Defines alpha dropout, which keeps the mean and the variance of SELU's results.

It is the fused kernel that adds a bias and a residual, with a constant for each.
"""
from libc.math cimport sqrt

cimport numpy as np

from fastdrop._apply cimport (
    EQUAL_RESIDUALS, Work, bias_bytes, set_up, set_up_add, set_up_bias, use_on_arrays,
)
from fastdrop._arguments cimport inplace_of, input_of, kind_of, output_of, own_view
from fastdrop._kernels.table cimport ADD, KIND_F32, KIND_F64, SCALE, stream_key
from fastdrop._mask cimport Mask, Request, request_of
from fastdrop._memory cimport Buffer, new_buffer
from fastdrop._rates cimport computed_in, factors_of, store_changed

import numpy

np.import_array()

cdef extern from "simd/float_state.h" nogil:
    ctypedef struct float_state:
        pass
    float_state float_state_enter()
    void float_state_leave(float_state saved)

cdef double ALPHA = 1.7580993408473766  # SELU's scale times its alpha; its least result is -ALPHA


cdef drop_by_rates(Request request, Mask mask, np.ndarray to, np.ndarray from_):
    """Drop by an array of rates, in simple passes."""
    cdef np.ndarray total
    cdef object wide = computed_in(from_)
    cdef object dtype = (<object>from_).dtype
    cdef float_state saved = float_state_enter()
    try:
        with numpy.errstate(all="ignore"):
            rates = (<object>mask.rates).astype(numpy.float64)
            scales = 1.0 / numpy.sqrt((ALPHA * ALPHA * rates + 1.0) * (1.0 - rates))
            scales[rates == 1.0] = 0.0
            mask.inverted, mask.scales = False, factors_of(scales, mask.noise_shape_, "scale")
            shifts = (-ALPHA * scales * (1.0 - rates)).astype(dtype).astype(wide)
            changed = rates != 0.0
            total = numpy.array(from_, wide, order="C")
            numpy.add(total, numpy.array(ALPHA, dtype).astype(wide), out=total)
            request.drop_by_rates(mask, KIND_F64 if wide == numpy.float64 else KIND_F32, total,
                                  total)
            numpy.add(total, shifts, out=total)
            store_changed(to, total, from_, changed)
    finally:
        float_state_leave(saved)


cdef tuple alpha_dropped(object x, object rate, object seed, object noise_shape, object out,
                         bint in_place):
    """Check the arguments and drop; return the result and the mask."""
    cdef Request request = request_of(rate, seed, noise_shape, None, True)
    cdef np.ndarray from_ = inplace_of(x, "x") if in_place else own_view(input_of(x, "x"))
    cdef int kind = kind_of(from_, "x")
    cdef np.ndarray to = from_
    cdef np.ndarray bias, residual
    cdef Buffer copy
    cdef Mask mask
    cdef Work work
    cdef stream_key key
    cdef float_state saved
    cdef double shift
    cdef int use = SCALE
    if not in_place:
        to = numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x")
    mask = request.new_mask((<object>from_).shape)
    if mask.rates is not None:
        drop_by_rates(request, mask, to, from_)
        return to if out is None else out, mask
    if 0.0 < request.rate < 1.0:
        # At rate 0 the result is x bit for bit, at rate 1 zero: then it is a dropout.
        use = ADD
        # The caller's rounding mode must not reach NumPy's conversions either.
        saved = float_state_enter()
        try:
            request.scale = 1.0 / sqrt((ALPHA * ALPHA * request.rate + 1.0) * (1.0 - request.rate))
            shift = -ALPHA * request.scale * (1.0 - request.rate)
            bias = numpy.full(1, ALPHA, (<object>from_).dtype)
            residual = numpy.full(EQUAL_RESIDUALS, shift, (<object>from_).dtype)
        finally:
            float_state_leave(saved)
        mask.scale_ = request.scale
        copy = new_buffer(bias_bytes(kind, 1))
    set_up(&work, kind, use, to, from_, mask.own_noise_shape(), mask.scale_)
    if use == ADD:
        set_up_add(&work)
        set_up_bias(&work, <char *>copy.data, <const char *>np.PyArray_DATA(bias), 0, 1)
        work.on.residual = np.PyArray_DATA(residual)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return to if out is None else out, mask


def alpha_dropout(x, rate, *, seed=None, noise_shape=None, out=None):
    """Drop elements of x so that the mean and the variance of SELU's results stay the same.

    The dropout of self-normalizing networks [1]_ in one pass over memory: with
    ``alpha = 1.7580993408473766`` and ``a = 1 / sqrt((1 - rate) * (1 + rate * alpha**2))``, a kept
    element becomes ``(x + alpha) * a - alpha * a * (1 - rate)``, and a dropped one
    ``-alpha * a * (1 - rate)``. If x has mean 0 and variance 1, so has the result. At rate 0 it
    equals x bit for bit; at rate 1 it is all zeros, as in PyTorch.

    Parameters
    ----------
    x : array_like
        An array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes).
    rate : float or numpy.ndarray
        The probability of dropping an element, in [0, 1]; exact to 2**-48. An array of rates, one
        for each element, decides as in `dropout`; it takes several simple passes over memory.
    seed, noise_shape
        As for `dropout`: the same seed drops the same elements, on every CPU and for every number
        of threads.
    out : numpy.ndarray, optional
        The array for the result, of x's shape and dtype: x itself, or an array that shares no
        memory with it. Other threads must not read or change it during the call.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    mask : Mask
        The elements that were kept, one bit each. Its scale is a, so ``dropout_grad(dy, mask)`` is
        the gradient with respect to x.

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

    Both constants that are added are rounded to x's dtype, and so is each operation; float16 and
    bfloat16 are computed in float32 and rounded to nearest even at the end.

    References
    ----------
    .. [1] G. Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.alpha_dropout(np.ones(4, np.float32), 0.5, seed=42)
    >>> y
    array([-0.77919394, -0.77919394,  1.6655989 ,  1.6655989 ], dtype=float32)
    >>> fastdrop.dropout_grad(np.ones(4, np.float32), mask)
    array([0.       , 0.       , 0.8864049, 0.8864049], dtype=float32)
    """
    return alpha_dropped(x, rate, seed, noise_shape, out, False)


def alpha_dropout_(x, rate, *, seed=None, noise_shape=None):
    """Drop elements of x in place so that the mean and variance of SELU's results stay the same.

    `alpha_dropout` documents the details.

    Parameters
    ----------
    x : numpy.ndarray
        As for `dropout_`.
    rate, seed, noise_shape
        As for `alpha_dropout`.

    Returns
    -------
    mask : Mask
        The elements that were kept, as for `alpha_dropout`.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, or x is read-only or overlaps itself.
    MemoryError
        If there is no memory for the mask.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises does not change x and takes no step of a stream.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> x = np.ones(4, np.float32)
    >>> mask = fastdrop.alpha_dropout_(x, 0.5, seed=42)
    >>> x
    array([-0.77919394, -0.77919394,  1.6655989 ,  1.6655989 ], dtype=float32)
    """
    return alpha_dropped(x, rate, seed, noise_shape, None, True)[1]
