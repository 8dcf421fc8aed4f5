"""Owns what a tensor framework needs: dropout of arrays that are not to be changed, into aligned
memory that is used again, with all that the gradient needs in one array of bytes."""
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cimport numpy as np

from fastdrop._arguments cimport (
    default_scale, held, kind_of, noise_entries_of, noise_shape_of, rate_of, shown, size_of,
)
from fastdrop._kernels.table cimport SCALE, stream_key
from fastdrop._apply cimport Work, look_at, use_on_arrays
from fastdrop._draw cimport derive_key
from fastdrop._memory cimport Buffer, array_over, new_pooled_buffer
from fastdrop._stream cimport fastdrop_seed

import numpy

np.import_array()

cdef extern from "thread_state.h":
    int prepare_thread_states()
    void keep_c_thread_state "keep_thread_state"()

cdef enum:
    RATE_BYTES = 8                  # of the rate, a double, behind the bits of a residual

cdef object UINT8 = numpy.dtype(numpy.uint8)


def keep_thread_state():
    """Makes later callbacks on this thread cheaper.

    To be called in a callback that another library entered through PyGILState_Ensure, and nowhere
    else.
    """
    keep_c_thread_state()


cdef np.ndarray array_like(np.ndarray x, size_t itemsize):
    return array_over(new_pooled_buffer(np.PyArray_SIZE(x) * itemsize), (<object>x).dtype,
                      np.PyArray_NDIM(x), np.PyArray_DIMS(x), True)


def forward(np.ndarray x not None, np.ndarray seed not None, rate, noise_shape):
    """The dropout of x, which is only read.

    Parameters
    ----------
    x : numpy.ndarray
        dtype float16, float32, float64 or bfloat16 (ml_dtypes).
    seed : numpy.ndarray of int
        Two or three numbers: the seed's low word, the step and, if there, the seed's high word.
    rate : float
        In [0, 1].
    noise_shape : tuple of int and None, or None

    Returns
    -------
    y : numpy.ndarray
        Like x, 64-byte aligned.
    residual : numpy.ndarray of uint8
        The packed mask and the rate, for `backward`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.
    """
    cdef double checked_rate = rate_of(rate)
    cdef tuple noise = noise_entries_of(noise_shape)
    cdef double scale = default_scale(checked_rate)
    cdef object words = seed.tolist()
    cdef tuple shape
    cdef Work work
    cdef int kind
    cdef size_t size
    cdef np.npy_intp residual_size
    cdef Buffer residual
    cdef np.ndarray y
    cdef stream_key key
    cdef fastdrop_seed draw
    if not isinstance(words, list) or len(words) not in (2, 3):
        raise ValueError(f"`seed` must hold 2 or 3 integers, got {shown(seed)}")
    draw.low = words[0] & 0xFFFFFFFFFFFFFFFF
    draw.step = words[1] & 0xFFFFFFFFFFFFFFFF
    draw.high = words[2] & 0xFFFFFFFFFFFFFFFF if len(words) == 3 else 0
    derive_key(&key, &draw, checked_rate)
    x = held(x)
    kind = kind_of(x, "x")
    shape = (<object>x).shape
    noise = noise_shape_of(noise, shape)
    size = size_of(noise)
    residual_size = (size + 7) // 8 + RATE_BYTES
    residual = new_pooled_buffer(residual_size)
    y = array_like(x, np.PyArray_ITEMSIZE(x))
    look_at(&work, kind, SCALE, y, x, None if noise is shape else noise, scale)
    work.on.bits = residual.data
    use_on_arrays(&work, &key)
    memcpy(residual.data + residual_size - RATE_BYTES, &checked_rate, RATE_BYTES)
    return y, array_over(residual, UINT8, 1, &residual_size, True)


def backward(np.ndarray dy not None, np.ndarray residual not None, noise_shape):
    """The gradient of `forward` with respect to x; dy is only read.

    Parameters
    ----------
    dy : numpy.ndarray
        Of the shape and dtype of x.
    residual : numpy.ndarray of uint8
        What `forward` returned.
    noise_shape : tuple of int and None, or None
        What `forward` was given.

    Returns
    -------
    dx : numpy.ndarray
        Like dy, 64-byte aligned.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the residual is of another shape's dropout.
    """
    cdef tuple noise = noise_entries_of(noise_shape)
    cdef int kind
    cdef size_t size
    cdef double rate
    cdef const uint8_t *bits
    cdef np.ndarray dx
    cdef tuple shape
    cdef Work work
    dy, residual = held(dy), held(residual)
    kind = kind_of(dy, "dy")
    shape = (<object>dy).shape
    noise = noise_shape_of(noise, shape)
    size = (size_of(noise) + 7) // 8
    if (
        np.PyArray_TYPE(residual) != np.NPY_UINT8 or np.PyArray_NDIM(residual) != 1
        or not np.PyArray_IS_C_CONTIGUOUS(residual)
        or <size_t>np.PyArray_SIZE(residual) != size + RATE_BYTES
    ):
        raise ValueError(
            f"`residual` must be {size + RATE_BYTES} bytes for `dy` of shape "
            f"{(<object>dy).shape}, got {shown(residual)}"
        )
    bits = <const uint8_t *>np.PyArray_DATA(residual)
    memcpy(&rate, bits + size, RATE_BYTES)
    rate = rate_of(rate)
    dx = array_like(dy, np.PyArray_ITEMSIZE(dy))
    look_at(&work, kind, SCALE, dx, dy, None if noise is shape else noise, default_scale(rate))
    work.on.bits = <uint8_t *>bits
    use_on_arrays(&work, NULL)
    return dx


if prepare_thread_states() != 0:
    raise MemoryError("no key left for what belongs to a thread")
