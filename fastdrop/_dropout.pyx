"""Defines `dropout` and `dropout_`: checks arguments, draws a mask and uses it on an array."""
cimport numpy as np

from fastdrop._apply cimport Work, set_up, use_on_arrays
from fastdrop._arguments cimport own_view, inplace_of, input_of, kind_of, output_of
from fastdrop._kernels.table cimport SCALE, stream_key
from fastdrop._mask cimport Mask, Request, request_of

import numpy

np.import_array()


def dropout(x, rate, *, seed=None, noise_shape=None, scale=None, out=None,
            store_mask=True):
    """Drop elements of x at random and scale the others.

    Each element is kept with probability ``1 - rate``. A kept element becomes ``x * scale``; NaN
    and infinities pass through. A dropped one becomes ``+0.0``, even where x is NaN or infinite. At
    rate 0 with the default scale the result equals x bit for bit; at rate 1 it is all zeros.

    The mask is a function of the seed, the step, the rate and the element's index in C order. It is
    the same on every CPU, for every number of threads and every memory layout, in place or not.

    Parameters
    ----------
    x : array_like
        An array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes).
    rate : float or numpy.ndarray
        The probability of dropping an element, in [0, 1]; exact to 2**-48. It may be a NumPy scalar
        or an array without dimensions. An array of rates, which NumPy broadcasts to the mask's
        shape, gives each element a rate of its own [3]_; see Notes.
    seed : int, numpy.random.SeedSequence, Stream or None, optional
        An int in [0, 2**128) or a SeedSequence gives the same mask at each call. A `Stream` gives a
        new mask at each call: the call takes its next step. None takes the next step of the
        process's own stream, which the operating system seeds.
    noise_shape : tuple of int and None, optional
        The shape of the mask, as in Keras. For each dimension, None or the size of x gives each
        index its own decision; 1 shares one decision along the dimension. A shorter tuple, without
        None, has the last dimensions, and 1 for the others. By default each element has its own
        decision.
    scale : float, optional
        The factor of kept elements, rounded to x's dtype. float16 and bfloat16 are computed in
        float32 and rounded to nearest even. The default ``1 / (1 - rate)`` preserves the
        expectation [1]_. With 1.0, as in the first papers [2]_, inference has to multiply by
        ``1 - rate``.
    out : numpy.ndarray, optional
        The array for the result, of x's shape and dtype: x itself, or an array that shares no
        memory with it. Other threads must not read or change it during the call.
    store_mask : bool, optional
        If False, the mask stores no bits. It draws the same bits again at each use.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    mask : Mask
        The elements that were kept, for `dropout_grad`; one bit per element.

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

    An array of rates has the dtype float16, float32, float64, bfloat16 or an integer dtype. Each
    element's decision depends on its own rate, the seed, the step and its index, not on the other
    rates. A kept element is multiplied by its own ``1 / (1 - rate)``, computed in float64 and then
    rounded. The mask holds a copy of the rates. An array of equal rates drops other elements than
    the same rate as a number.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
       overfitting", JMLR 15, 2014, section 10.
    .. [2] G. E. Hinton et al., "Improving neural networks by preventing co-adaptation of feature
       detectors", arXiv:1207.0580, 2012.
    .. [3] J. Ba and B. Frey, "Adaptive dropout for training deep neural networks", NeurIPS 2013.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.dropout(np.ones(6), 0.5, seed=1)
    >>> y
    array([0., 2., 0., 0., 0., 2.])
    >>> mask
    <fastdrop.Mask shape=(6,), rate=0.5, scale=2, seed=1, step=0, 1 bytes>

    A rate for each row:

    >>> y, mask = fastdrop.dropout(np.ones((3, 4)), np.array([[0.0], [0.5], [1.0]]), seed=1)
    >>> y
    array([[1., 1., 1., 1.],
           [0., 0., 2., 0.],
           [0., 0., 0., 0.]])
    """
    cdef Request request = request_of(rate, seed, noise_shape, scale, store_mask)
    cdef np.ndarray from_ = own_view(input_of(x, "x"))
    cdef int kind = kind_of(from_, "x")
    cdef np.ndarray to = (
        numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x"))
    cdef Mask mask = request.new_mask((<object>from_).shape)
    cdef Work work
    cdef stream_key key
    if mask.rates is not None:
        request.drop_by_rates(mask, kind, to, from_)
        return to if out is None else out, mask
    set_up(&work, kind, SCALE, to, from_, mask.own_noise_shape(), mask.scale_)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return to if out is None else out, mask


def dropout_(x, rate, *, seed=None, noise_shape=None, scale=None, store_mask=True):
    """Drop elements of x at random and scale the others, in place.

    `dropout` documents the details.

    Parameters
    ----------
    x : numpy.ndarray
        A writeable array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes). No two elements may share memory. If rows are interleaved in memory, which only
        ``as_strided`` can do, the check takes at most 100,000 elements, and larger views are
        refused. Other threads must not read or change x during the call.
    rate, seed, noise_shape, scale, store_mask
        As for `dropout`.

    Returns
    -------
    mask : Mask
        The elements that were kept, for `dropout_grad`; one bit per element.

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
    >>> x = np.ones(6)
    >>> mask = fastdrop.dropout_(x, 0.5, seed=1)
    >>> x
    array([0., 2., 0., 0., 0., 2.])
    """
    cdef Request request = request_of(rate, seed, noise_shape, scale, store_mask)
    cdef np.ndarray array = inplace_of(x, "x")
    cdef int kind = kind_of(array, "x")
    cdef Mask mask = request.new_mask((<object>array).shape)
    cdef Work work
    cdef stream_key key
    if mask.rates is not None:
        request.drop_by_rates(mask, kind, array, array)
        return mask
    set_up(&work, kind, SCALE, array, array, mask.own_noise_shape(), mask.scale_)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return mask
