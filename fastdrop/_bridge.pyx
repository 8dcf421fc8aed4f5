"""Owns what a tensor framework needs: dropout of arrays that are not to be changed, into aligned
memory that is used again, with all that the gradient needs in one array of bytes."""
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

cimport numpy as np

from fastdrop._arguments cimport (
    default_scale, held, kind_of, noise_entries_of, noise_shape_of, rate_of, shown, size_of,
)
from fastdrop._kernels.table cimport KIND_F32, KIND_F64, SCALE, stream_key
from fastdrop._apply cimport Work, look_at, scaling_kind, use_on, use_on_arrays
from fastdrop._draw cimport derive_key
from fastdrop._memory cimport Buffer, array_over, new_pooled_buffer
from fastdrop._stream cimport Draw

from fastdrop._plan cimport FROM, TO

import numpy

np.import_array()

cdef extern from "thread_state.h":
    int prepare_thread_states()
    void keep_c_thread_state "keep_thread_state"()

cdef extern from "tensor_table.h" nogil:
    enum:
        TENSOR_MAX_DIMS
        SCALE_BYTES "RESIDUAL_SCALE_BYTES"

    ctypedef struct tensor_table:
        void (*forward)(int kind, int ndim, const int64_t *shape, const int64_t *noise_shape,
                        const uint64_t *seed, double rate, void *y, const void *x,
                        uint8_t *residual) noexcept nogil
        void (*backward)(int kind, int ndim, const int64_t *shape, const int64_t *noise_shape,
                         void *dx, const void *dy, const uint8_t *residual) noexcept nogil

    const char *TENSOR_TABLE_CAPSULE

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
        The packed mask and the scale, for `backward`.

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
    cdef Draw draw
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
    residual_size = (size + 7) // 8 + SCALE_BYTES
    residual = new_pooled_buffer(residual_size)
    y = array_like(x, np.PyArray_ITEMSIZE(x))
    look_at(&work, kind, SCALE, y, x, None if noise is shape else noise, scale)
    work.on.bits = residual.data
    use_on_arrays(&work, &key)
    memcpy(residual.data + residual_size - SCALE_BYTES, &scale, SCALE_BYTES)
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
    cdef double scale
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
        or <size_t>np.PyArray_SIZE(residual) != size + SCALE_BYTES
    ):
        raise ValueError(
            f"`residual` must be {size + SCALE_BYTES} bytes for `dy` of shape "
            f"{(<object>dy).shape}, got {shown(residual)}"
        )
    bits = <const uint8_t *>np.PyArray_DATA(residual)
    memcpy(&scale, bits + size, SCALE_BYTES)
    dx = array_like(dy, np.PyArray_ITEMSIZE(dy))
    look_at(&work, kind, SCALE, dx, dy, None if noise is shape else noise, scale)
    work.on.bits = <uint8_t *>bits
    use_on_arrays(&work, NULL)
    return dx


# ---- Without Python ----

cdef struct Tensor:
    Work work
    np.npy_intp shape[TENSOR_MAX_DIMS]
    np.npy_intp strides[TENSOR_MAX_DIMS]
    int64_t bits


cdef void describe(Tensor *tensor, int kind, int ndim, const int64_t *shape,
                   const int64_t *noise_shape, void *to, const void *from_, const uint8_t *residual,
                   double scale) noexcept nogil:
    cdef Work *work = &tensor.work
    cdef int i
    memset(work, 0, sizeof(Work))
    work.ndim = ndim
    work.itemsize = 8 if kind == KIND_F64 else 4 if kind == KIND_F32 else 2
    work.size = tensor.bits = 1
    work.aligned = work.straight = True
    work.columns = 1
    for i in range(ndim - 1, -1, -1):
        tensor.shape[i], work.own_noise_shape[i] = shape[i], noise_shape[i]
        tensor.strides[i] = work.size * work.itemsize
        work.size *= shape[i]
        tensor.bits *= noise_shape[i]
        work.straight &= shape[i] == noise_shape[i]
    work.shape, work.noise_shape = tensor.shape, work.own_noise_shape
    work.strides[TO] = work.strides[FROM] = tensor.strides
    work.on.kind, work.on.use, work.on.scale = scaling_kind(kind, scale), SCALE, scale
    work.on.size, work.on.to, work.on.from_ = work.size, to, from_
    work.on.bits = <uint8_t *>residual


cdef void tensor_forward(int kind, int ndim, const int64_t *shape, const int64_t *noise_shape,
                         const uint64_t *seed, double rate, void *y, const void *x,
                         uint8_t *residual) noexcept nogil:
    cdef Tensor tensor
    cdef stream_key key
    cdef Draw draw
    cdef double scale = default_scale(rate)
    describe(&tensor, kind, ndim, shape, noise_shape, y, x, residual, scale)
    draw.low, draw.high, draw.step = seed[0], seed[1], seed[2]
    derive_key(&key, &draw, rate)
    use_on(&tensor.work, &key)
    memcpy(residual + (tensor.bits + 7) // 8, &scale, SCALE_BYTES)


cdef void tensor_backward(int kind, int ndim, const int64_t *shape, const int64_t *noise_shape,
                          void *dx, const void *dy, const uint8_t *residual) noexcept nogil:
    cdef Tensor tensor
    cdef double scale
    describe(&tensor, kind, ndim, shape, noise_shape, dx, dy, residual, 0)
    memcpy(&scale, residual + (tensor.bits + 7) // 8, SCALE_BYTES)
    tensor.work.on.kind, tensor.work.on.scale = scaling_kind(kind, scale), scale
    use_on(&tensor.work, NULL)


cdef tensor_table functions
functions.forward = tensor_forward
functions.backward = tensor_backward
table = PyCapsule_New(&functions, TENSOR_TABLE_CAPSULE, NULL)

if prepare_thread_states() != 0:
    raise MemoryError("no key left for what belongs to a thread")
