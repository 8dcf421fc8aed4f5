"""Owns the checks: what a user passes is looked at here, once, before anything changes.

What may run a user's code (conversions to numbers) comes before what looks at arrays, so that no
array can change between its check and its use.
"""
import itertools
import numbers
import operator
import reprlib
import sys

from cpython.object cimport PyTypeObject
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint64_t

cimport numpy as np

import numpy

np.import_array()

cdef extern from "numpy/arrayobject.h":
    # NumPy's own declarations leave this one out.
    object PyArray_View(np.ndarray array, void *dtype, PyTypeObject *type)

cdef extern from "fastdrop.h":
    enum:
        FASTDROP_FLOAT16
        FASTDROP_BFLOAT16
        FASTDROP_FLOAT32
        FASTDROP_FLOAT64
        FASTDROP_OK

    int fastdrop_fit_noise_shape(int ndim, const int64_t *shape, int count,
                                 const int64_t *entries, int64_t *noise_shape)

cdef extern from "simd/float_state.h" nogil:
    ctypedef struct float_state:
        pass
    float_state float_state_enter()
    void float_state_leave(float_state saved)

# How much work the exact search for overlapping memory may be; beyond it, the answer is taken to
# be yes.
cdef object OVERLAP_EFFORT = 100_000

cdef int64_t LARGEST_SIZE = 2**63 - 1

cdef enum:
    MAX_DIMS = 64                   # NumPy's own limit, 32 before NumPy 2
    FIRST_REGISTERED = 256          # the lowest number of a dtype that is not NumPy's own

# ml_dtypes registers bfloat16 at run time, so its number is known only once that is imported.
cdef int bfloat16_number = -1

_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _reprs.maxlong = 200


cdef object shown(object value):
    """A value for an error message: whole if it is short. What shows itself may be a user's code,
    and an error of its own would take the place of the one that is told."""
    cdef np.ndarray array
    cdef str kind
    if isinstance(value, np.ndarray):
        array = plain(value)
        kind = f"an array of shape {(<object>array).shape} and dtype {(<object>array).dtype}"
        try:
            return f"{kind}, {value!r}" if np.PyArray_SIZE(array) <= 8 else kind
        except Exception:
            return kind
    try:
        return _reprs.repr(value)
    except Exception:
        # Python prints no int of more than some thousand digits.
        if isinstance(value, int):
            return f"an int of {value.bit_length()} bits"
        return f"an object of type {type(value).__name__}"


# ---- Numbers ----

cdef double rate_of(object rate) except -1:
    """The probability of dropping, in [0, 1]."""
    cdef double value
    cdef bint inside
    if type(rate) is float:
        value = rate
        inside = 0.0 <= value <= 1.0  # not NaN
    else:
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
            raise TypeError(f"`rate` must be a number in [0, 1], got {shown(rate)}")
        try:
            # Before it is rounded, which may lead into the interval.
            inside = 0 <= rate <= 1
            value = rate if inside else 2.0
        except Exception as error:
            raise TypeError(f"`rate` must be a number in [0, 1], got {shown(rate)}") from error
    # A number of a user's may say anything of itself.
    if not (inside and 0.0 <= value <= 1.0):
        raise ValueError(f"`rate` must be a number in [0, 1], got {shown(rate)}")
    return value


cdef double default_scale(double rate) noexcept nogil:
    """The factor that keeps the expectation; zero where nothing is kept."""
    cdef float_state saved = float_state_enter()
    cdef double scale = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
    float_state_leave(saved)
    return scale


cdef object integer_of(object value, str name, object low, object high, str bounds):
    """An int in [low, high]; bools and arrays are no integers here."""
    if type(value) is not int:
        if isinstance(value, (bool, numpy.bool_, numpy.ndarray)):
            raise TypeError(f"`{name}` must be an int {bounds}, got {shown(value)}")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"`{name}` must be an int {bounds}, got {shown(value)}") from None
    else:
        number = value
    if not low <= number <= high:
        raise ValueError(f"`{name}` must be an int {bounds}, got {shown(value)}")
    return number


cdef double scale_of(object scale, double rate) except? -1:
    """What kept elements are multiplied by."""
    cdef double value
    if scale is None:
        return default_scale(rate)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
        raise TypeError(f"`scale` must be None or a finite number, got {shown(scale)}")
    try:
        value = scale
    except OverflowError:
        value = float("inf")
    except Exception as error:
        raise TypeError(
            f"`scale` must be None or a finite number, got {shown(scale)}") from error
    if not isfinite(value):
        raise ValueError(f"`scale` must be None or a finite number, got {shown(scale)}")
    return value


cdef bint flag_of(object value, str name) except -1:
    """Whether a value is true, as in an `if`; not every array is one or the other."""
    if value is True or value is False:
        return value is True
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a bool, got {shown(value)}") from None


# ---- Shapes ----

cdef uint64_t size_of(tuple shape):
    """The number of elements, of a shape that was checked."""
    cdef uint64_t size = 1
    for entry in shape:
        size *= <uint64_t>entry
    return size


cdef bint is_integer(object value):
    return type(value) is int or (
        hasattr(type(value), "__index__")
        and not isinstance(value, (bool, numpy.bool_, numpy.ndarray)))


cdef tuple shape_of(object shape):
    """A shape given as an int or a sequence of ints."""
    cdef int64_t product = 1
    cdef int64_t size
    cdef list sizes = []
    cdef tuple entries
    if type(shape) is tuple:
        entries = shape
    elif is_integer(shape):
        entries = (shape,)
    elif isinstance(shape, (tuple, list)):
        # No more than are looked at: what is iterated over may be a subclass that never ends.
        entries = tuple(itertools.islice(shape, MAX_DIMS + 1))
    else:
        raise TypeError(f"`shape` must be an int or a tuple of ints, got {shown(shape)}")
    if len(entries) > MAX_DIMS:
        raise ValueError(f"`shape` must have at most {MAX_DIMS} dimensions, got {shown(shape)}")
    for entry in entries:
        try:
            if not is_integer(entry):
                raise TypeError
            entry = operator.index(entry) if type(entry) is not int else entry
            size = entry
        except TypeError:
            raise TypeError(
                f"`shape` must be an int or a tuple of ints, got {shown(shape)}") from None
        except OverflowError:
            size = -1
        # Counted as NumPy does, without the zeros: even an empty array's strides must fit.
        if size < 0 or (size > 0 and product > LARGEST_SIZE // size):
            raise ValueError(
                "`shape` must hold sizes of at least 0 with a product below 2**63, got "
                f"{shown(shape)}"
            )
        product *= size or 1
        sizes.append(entry)
    return tuple(sizes)


cdef tuple noise_entries_of(object noise_shape):
    """The argument as a tuple of plain ints and None, or None."""
    cdef list entries = []
    if noise_shape is None:
        return None
    if not isinstance(noise_shape, (tuple, list)):
        raise TypeError(
            f"`noise_shape` must be None or a tuple of ints and None, got {shown(noise_shape)}")
    for entry in noise_shape:
        if len(entries) == MAX_DIMS:
            raise ValueError(f"`noise_shape` must have an entry for each dimension, at most "
                             f"{MAX_DIMS}, got {shown(noise_shape)}")
        try:
            if entry is not None and not is_integer(entry):
                raise TypeError
            entries.append(None if entry is None else operator.index(entry))
        except TypeError:
            raise TypeError("`noise_shape` must be None or a tuple of ints and None, got "
                            f"{shown(noise_shape)}") from None
    return tuple(entries)


cdef tuple noise_shape_of(tuple entries, tuple shape):
    """The mask's shape for an array of that shape: that itself where they are the same."""
    cdef int64_t sizes[MAX_DIMS]
    cdef int64_t wanted[MAX_DIMS]
    cdef int64_t fitted[MAX_DIMS]
    cdef int ndim = len(shape)
    cdef bint fits = False
    cdef tuple noise_shape
    cdef int i
    if entries is None:
        return shape
    if len(entries) == ndim:
        for i in range(ndim):
            sizes[i] = shape[i]
            # One that has no place in 63 bits, or below zero, is no size.
            entry = entries[i]
            wanted[i] = -1 if entry is None else entry if 0 <= entry <= LARGEST_SIZE else -2
        fits = fastdrop_fit_noise_shape(ndim, sizes, ndim, wanted, fitted) == FASTDROP_OK
    if not fits:
        raise ValueError(
            "`noise_shape` must have an entry for each dimension, each 1, None or the size there, "
            f"for shape {shape}, got {shown(entries)}"
        )
    noise_shape = tuple([fitted[i] for i in range(ndim)])
    return shape if noise_shape == shape else noise_shape


# ---- Arrays ----

cdef int number_of_bfloat16():
    """What ml_dtypes has registered; -1 where it is not imported, or something else of its name."""
    try:
        dtype = numpy.dtype(sys.modules["ml_dtypes"].bfloat16)
        if dtype.itemsize == 2 and dtype.num >= FIRST_REGISTERED and dtype.name == "bfloat16":
            return dtype.num
    except Exception:
        pass
    return -1


cdef int kind_of(np.ndarray array, str name) except -1:
    """The dtype, as an `enum fastdrop_kind`."""
    global bfloat16_number
    cdef int number = np.PyArray_TYPE(array)
    if np.PyArray_ISNOTSWAPPED(array):
        if number == np.NPY_FLOAT32:
            return FASTDROP_FLOAT32
        if number == np.NPY_FLOAT64:
            return FASTDROP_FLOAT64
        if number == np.NPY_FLOAT16:
            return FASTDROP_FLOAT16
        if bfloat16_number < 0:
            bfloat16_number = number_of_bfloat16()
        # Dtypes made with NumPy's newer interface all have the number -1.
        if number == bfloat16_number and number >= 0:
            return FASTDROP_BFLOAT16
    order = "" if array.dtype.isnative else " of the other byte order"
    raise TypeError(
        f"`{name}` must have the dtype float16, float32, float64 or bfloat16 (ml_dtypes) in this "
        f"machine's byte order, got {array.dtype!r}{order}"
    )


cdef ndarray_only(object x, str name):
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"`{name}` must be a numpy.ndarray, since it is changed in place, got {shown(x)} of "
            f"type {type(x).__name__}"
        )


cdef np.ndarray plain(np.ndarray array):
    """The array without its subclass, which may say anything of its shape."""
    if type(array) is numpy.ndarray:
        return array
    return PyArray_View(array, NULL, <PyTypeObject *>np.ndarray)


cdef np.ndarray held(np.ndarray array):
    """The same elements under a header of our own, which nobody else can change: other threads may
    give an array another shape as soon as kernels let go of the GIL."""
    return PyArray_View(array, NULL, <PyTypeObject *>np.ndarray)


cdef np.ndarray input_of(object x, str name):
    """An array to read: anything that NumPy makes an array of."""
    if isinstance(x, np.ndarray):
        return plain(x)
    try:
        return plain(numpy.asarray(x))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array: {error}, got {shown(x)}") from error


cdef np.ndarray inplace_of(object x, str name):
    """An array to change: writeable, each element in a place of its own."""
    cdef np.ndarray array
    ndarray_only(x, name)
    array = held(x)
    if not np.PyArray_ISWRITEABLE(array):
        raise ValueError(f"`{name}` must be writeable, got a read-only array of shape "
                         f"{(<object>array).shape}")
    if overlaps_itself(array):
        raise ValueError(
            f"`{name}` must not overlap itself in memory, got an array of shape "
            f"{(<object>array).shape} and strides {(<object>array).strides}"
        )
    return array


cdef np.ndarray output_of(object out, np.ndarray x, str name):
    """An array to write the result of x to: x itself, or apart from it."""
    cdef np.ndarray array = inplace_of(out, "out")
    if (<object>array).shape != (<object>x).shape or (<object>array).dtype != (<object>x).dtype:
        raise ValueError(
            f"`out` must have the shape {(<object>x).shape} and the dtype {(<object>x).dtype} of "
            f"`{name}`, got {shown(array)}"
        )
    if same_memory(array, x) or apart(array, x):
        return array
    try:
        overlap = numpy.shares_memory(array, x, max_work=OVERLAP_EFFORT)
    except numpy.exceptions.TooHardError:
        overlap = True
    if overlap:
        raise ValueError(
            f"`out` must be `{name}` itself or apart from it in memory, got an array that overlaps "
            "it partly"
        )
    return array


cdef bint same_memory(np.ndarray a, np.ndarray b):
    """Whether two arrays of one shape hold each element in the same place."""
    cdef int i
    if np.PyArray_DATA(a) != np.PyArray_DATA(b):
        return False
    for i in range(np.PyArray_NDIM(a)):
        if np.PyArray_DIM(a, i) > 1 and np.PyArray_STRIDE(a, i) != np.PyArray_STRIDE(b, i):
            return False
    return True


cdef void span(np.ndarray array, const char **begin, const char **end) noexcept:
    """Where the bytes of an array with elements begin and end."""
    cdef np.npy_intp reach
    cdef int i
    begin[0] = <const char *>np.PyArray_DATA(array)
    end[0] = begin[0] + np.PyArray_ITEMSIZE(array)
    for i in range(np.PyArray_NDIM(array)):
        reach = (np.PyArray_DIM(array, i) - 1) * np.PyArray_STRIDE(array, i)
        if reach < 0:
            begin[0] += reach
        else:
            end[0] += reach


cdef bint apart(np.ndarray a, np.ndarray b):
    """Whether one ends before the other begins, which is so of nearly all that do not overlap."""
    cdef const char *a_begin
    cdef const char *a_end
    cdef const char *b_begin
    cdef const char *b_end
    if np.PyArray_SIZE(a) == 0 or np.PyArray_SIZE(b) == 0:
        return True
    span(a, &a_begin, &a_end)
    span(b, &b_begin, &b_end)
    return a_end <= b_begin or b_end <= a_begin


cdef bint overlaps_itself(np.ndarray array):
    """Whether two elements share a byte."""
    if np.PyArray_IS_C_CONTIGUOUS(array) or np.PyArray_IS_F_CONTIGUOUS(array):
        return False
    dims = sorted(
        (abs(stride), size)
        for stride, size in zip((<object>array).strides, (<object>array).shape)
        if size > 1
    )
    # What the smaller strides span, plus an element, fits within each larger stride: then the
    # places are those of a number system, and no two are the same.
    span = (<object>array).itemsize
    for stride, size in dims:
        if stride < span:
            break
        span = stride * (size - 1) + span
    else:
        return False
    # More elements than fit between the first place and the last.
    extent = sum(stride * (size - 1) for stride, size in dims) + (<object>array).itemsize
    if extent < (<object>array).nbytes or (<object>array).size > OVERLAP_EFFORT:
        return True
    # Rare and odd views (of as_strided): look at all the places.
    places = numpy.zeros(1, numpy.int64)
    for stride, size in dims:
        places = numpy.add.outer(places, stride * numpy.arange(size)).ravel()
    places.sort()
    return bool((numpy.diff(places) < (<object>array).itemsize).any())
