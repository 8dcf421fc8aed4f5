"""Owns dropout itself: from a user's array to the same array, dropped and scaled, and its mask."""
cimport numpy as np

from fastdrop._apply cimport Work, look_at, use_on_arrays
from fastdrop._arguments cimport held, inplace_of, input_of, kind_of, output_of
from fastdrop._kernels.table cimport SCALE, stream_key
from fastdrop._mask cimport Mask, Request, request_of

import numpy

np.import_array()


def dropout(x, rate, *, seed=None, noise_shape=None, scale=None, out=None,
            store_mask=True):
    """Drops elements of x at random and scales the others: a new array.

    An element is kept with probability ``1 - rate``. Kept: ``x * scale``, where NaN and infinities
    pass through. Dropped: ``+0.0``, whatever x was there, NaN and infinities too. At rate 0 the
    result is bit-identical to x (with the default scale), at rate 1 it is all zeros. Which elements
    are kept is a function of the seed, its step, the rate and the element's index in C order, and
    of nothing else: the same on every CPU, thread count and memory layout, in place or not.

    Parameters
    ----------
    x : array_like
        Of any shape and strides; dtype float16, float32, float64 or bfloat16 (ml_dtypes).
    rate : float
        The probability of dropping an element, in [0, 1]; exact to 2**-48.
    seed : int, numpy.random.SeedSequence, Stream or None, optional
        An int in [0, 2**128) or a SeedSequence: the same mask at each call. A `Stream`: each call
        takes its next step. None: a stream of the process's own, seeded from the operating system.
    noise_shape : tuple of int and None, optional
        The shape of the mask, as in Keras: for each dimension of x, None or x's size for decisions
        of their own, 1 for one decision shared along it. Default: every element has its own.
    scale : float, optional
        What kept elements are multiplied by, rounded to x's dtype (float16 and bfloat16 are
        computed in float32 and rounded to nearest even). Default ``1 / (1 - rate)``, which keeps
        the expectation [1]_; 1.0 is the dropout of the first papers [2]_, which leaves the factor
        ``1 - rate`` to inference.
    out : numpy.ndarray, optional
        Where to write the result: of x's shape and dtype; x itself, or apart from it.
    store_mask : bool, optional
        If False, the mask stores no bits and draws them again when it is used, with the same
        results.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    mask : Mask
        Which elements were kept, for `dropout_grad`; one bit an element.

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

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
       overfitting", JMLR 15, 2014, section 10.
    .. [2] G. E. Hinton et al., "Improving neural networks by preventing co-adaptation of feature
       detectors", arXiv:1207.0580, 2012.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.dropout(np.ones(6), 0.5, seed=1)
    >>> y
    array([0., 2., 0., 0., 0., 2.])
    >>> mask
    <fastdrop.Mask shape=(6,), rate=0.5, scale=2, seed=1, step=0, 1 bytes>
    """
    cdef Request request = request_of(rate, seed, noise_shape, scale, store_mask)
    cdef np.ndarray from_ = held(input_of(x, "x"))
    cdef int kind = kind_of(from_, "x")
    cdef np.ndarray to = (
        numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x"))
    cdef Mask mask = request.new_mask((<object>from_).shape)
    cdef Work work
    cdef stream_key key
    look_at(&work, kind, SCALE, to, from_, mask.own_noise_shape(), mask.scale)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return to if out is None else out, mask


def dropout_(x, rate, *, seed=None, noise_shape=None, scale=None, store_mask=True):
    """Drops elements of x at random and scales the others, in place.

    As `dropout`, which has the details, with x itself for the result.

    Parameters
    ----------
    x : numpy.ndarray
        Of any shape and strides, writeable and without elements that share memory; dtype float16,
        float32, float64 or bfloat16 (ml_dtypes). Of views whose rows lie between each other's
        elements, as only ``as_strided`` makes them, up to 100,000 elements are looked at; larger
        ones are taken to share memory, and refused.
    rate, seed, noise_shape, scale, store_mask
        As for `dropout`.

    Returns
    -------
    mask : Mask
        Which elements were kept, for `dropout_grad`; one bit an element.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x of another dtype.
    ValueError
        If a value is outside of what is described, or x is read-only or overlaps itself. When this
        raises, nothing has changed and no step of a stream is taken.
    MemoryError
        If there is no memory for the mask; nothing has changed then either.
    OverflowError
        If the stream has no step left; likewise.

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
    look_at(&work, kind, SCALE, array, array, mask.own_noise_shape(), mask.scale)
    request.prepare(mask, &work, &key)
    use_on_arrays(&work, &key)
    return mask
