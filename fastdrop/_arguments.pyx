"""Checks arguments: once, here, before any array changes.

Conversions to numbers may run a user's code. They come before the checks of arrays, so that no
array can change between its check and its use.
"""
import itertools
import numbers
import operator
import reprlib
import sys

from cpython.object cimport PyTypeObject
from libc.math cimport isfinite, sqrt
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

# The limit of the exact search for overlapping memory. Beyond it, arrays count as overlapping.
cdef object OVERLAP_EFFORT = 100_000

cdef int64_t LARGEST_SIZE = 2**63 - 1

cdef enum:
    MAX_DIMS = 64                   # NumPy's own limit, 32 before NumPy 2
    FIRST_REGISTERED = 256          # the lowest type number of a dtype that a user registers

# The type number of bfloat16, or -1. ml_dtypes registers it when it is imported.
cdef int bfloat16_type = -1

_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _reprs.maxlong = 200


cdef object short_repr(object value):
    """A value for an error message, abbreviated if it is long.

    `__repr__` may be a user's code: an error in it must not replace the error that is reported.
    """
    cdef np.ndarray array
    cdef str kind
    if isinstance(value, np.ndarray):
        array = base_view(value)
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

cdef object number_of(object value):
    """The number of an array of real numbers without dimensions; any other value as it is."""
    cdef np.ndarray array
    if isinstance(value, np.ndarray):
        array = base_view(value)
        if np.PyArray_NDIM(array) == 0 and array.dtype.kind in "fiu":
            return (<object>array)[()]
    return value


cdef double rate_of(object rate) except -1:
    """The probability of dropping, in [0, 1]."""
    cdef object number
    cdef double value
    cdef bint inside
    if type(rate) is float:
        value = rate
        inside = 0.0 <= value <= 1.0  # not NaN
    else:
        number = number_of(rate)
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise TypeError(f"`rate` must be a number in [0, 1], got {short_repr(rate)}")
        try:
            # Before the conversion, which may round into the interval.
            inside = 0 <= number <= 1
            value = number if inside else 2.0
        except Exception as error:
            raise TypeError(f"`rate` must be a number in [0, 1], got {short_repr(rate)}") from error
    # A user's class may compare as it likes.
    if not (inside and 0.0 <= value <= 1.0):
        raise ValueError(f"`rate` must be a number in [0, 1], got {short_repr(rate)}")
    return value


cdef double default_scale(double rate) noexcept nogil:
    """The scale that preserves the expectation; zero at rate 1."""
    cdef float_state saved = float_state_enter()
    cdef double scale = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
    float_state_leave(saved)
    return scale


cdef object integer_of(object value, str name, object low, object high, str bounds):
    """An int in [low, high]. Bools and arrays are refused."""
    if type(value) is not int:
        if isinstance(value, (bool, numpy.bool_, numpy.ndarray)):
            raise TypeError(f"`{name}` must be an int {bounds}, got {short_repr(value)}")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"`{name}` must be an int {bounds}, got {short_repr(value)}") from None
    else:
        number = value
    if not low <= number <= high:
        raise ValueError(f"`{name}` must be an int {bounds}, got {short_repr(value)}")
    return number


cdef double finite_of(object number, object given, str name, str kind) except? -1:
    """A finite number. For an error: the argument as it was given, its name and what it accepts."""
    cdef double value
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"`{name}` must be {kind}, got {short_repr(given)}")
    try:
        value = number
    except OverflowError:
        value = float("inf")
    except Exception as error:
        raise TypeError(f"`{name}` must be {kind}, got {short_repr(given)}") from error
    if not isfinite(value):
        raise ValueError(f"`{name}` must be {kind}, got {short_repr(given)}")
    return value


cdef double scale_of(object scale, double rate) except? -1:
    """The factor of kept elements."""
    if scale is None:
        return default_scale(rate)
    return finite_of(scale, scale, "scale", "None or a finite number")


cdef double stddev_of(object stddev) except -1:
    """The standard deviation of noise."""
    cdef str kind = "a finite number of at least 0"
    cdef double value = finite_of(number_of(stddev), stddev, "stddev", kind)
    if value < 0.0:
        raise ValueError(f"`stddev` must be {kind}, got {short_repr(stddev)}")
    return value


cdef double stddev_of_rate(object rate) except -1:
    """The standard deviation of Gaussian dropout's factors."""
    cdef double value = rate_of(rate)
    cdef float_state saved
    if value == 1.0:
        raise ValueError("`rate` must be below 1 for Gaussian dropout, whose variance "
                         f"rate / (1 - rate) is infinite at 1, got {short_repr(rate)}")
    saved = float_state_enter()
    value = sqrt(value / (1.0 - value))
    float_state_leave(saved)
    return value


cdef bint flag_of(object value, str name) except -1:
    """The truth of a value, as in an `if`. Arrays of several elements have none."""
    if value is True or value is False:
        return value is True
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a bool, got {short_repr(value)}") from None


# ---- Shapes ----

cdef uint64_t size_of(tuple shape):
    """The number of elements of a checked shape."""
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
        # A subclass may iterate for ever.
        entries = tuple(itertools.islice(shape, MAX_DIMS + 1))
    else:
        raise TypeError(f"`shape` must be an int or a tuple of ints, got {short_repr(shape)}")
    if len(entries) > MAX_DIMS:
        raise ValueError(
            f"`shape` must have at most {MAX_DIMS} dimensions, got {short_repr(shape)}")
    for entry in entries:
        try:
            if not is_integer(entry):
                raise TypeError
            entry = operator.index(entry) if type(entry) is not int else entry
            size = entry
        except TypeError:
            raise TypeError(
                f"`shape` must be an int or a tuple of ints, got {short_repr(shape)}") from None
        except OverflowError:
            size = -1
        # Zeros do not count, as in NumPy: the strides of an empty array must fit, too.
        if size < 0 or (size > 0 and product > LARGEST_SIZE // size):
            raise ValueError(
                "`shape` must hold sizes of at least 0 with a product below 2**63, got "
                f"{short_repr(shape)}"
            )
        product *= size or 1
        sizes.append(entry)
    return tuple(sizes)


cdef tuple noise_entries_of(object noise_shape):
    """The argument as a tuple of ints and None, or None."""
    cdef list entries = []
    if noise_shape is None:
        return None
    if not isinstance(noise_shape, (tuple, list)):
        raise TypeError("`noise_shape` must be None or a tuple of ints and None, got "
                        f"{short_repr(noise_shape)}")
    for entry in noise_shape:
        if len(entries) == MAX_DIMS:
            raise ValueError(f"`noise_shape` must have at most {MAX_DIMS} entries, got "
                             f"{short_repr(noise_shape)}")
        try:
            if entry is not None and not is_integer(entry):
                raise TypeError
            entries.append(None if entry is None else operator.index(entry))
        except TypeError:
            raise TypeError("`noise_shape` must be None or a tuple of ints and None, got "
                            f"{short_repr(noise_shape)}") from None
    return tuple(entries)


cdef tuple noise_shape_of(tuple entries, tuple shape):
    """The mask's shape for arrays of a shape. The same object if the two are equal."""
    cdef int64_t sizes[MAX_DIMS]
    cdef int64_t wanted[MAX_DIMS]
    cdef int64_t fitted[MAX_DIMS]
    cdef int ndim = len(shape)
    cdef int count, i
    cdef tuple noise_shape
    if entries is None:
        return shape
    count = len(entries)
    for i in range(ndim):
        sizes[i] = shape[i]
    for i in range(count):
        # -2 fits no size: the entry is negative or needs more than 63 bits.
        entry = entries[i]
        wanted[i] = -1 if entry is None else entry if 0 <= entry <= LARGEST_SIZE else -2
    if fastdrop_fit_noise_shape(ndim, sizes, count, wanted, fitted) != FASTDROP_OK:
        raise ValueError(
            "`noise_shape` must have an entry for each dimension, each 1, None or the size there; "
            "entries without None may be fewer, for the last dimensions; "
            f"for shape {shape}, got {short_repr(entries)}"
        )
    noise_shape = tuple([fitted[i] for i in range(ndim)])
    return shape if noise_shape == shape else noise_shape


# ---- Arrays ----

cdef int bfloat16_type_number():
    """The type number of ml_dtypes' bfloat16; -1 if ml_dtypes is not imported."""
    try:
        dtype = numpy.dtype(sys.modules["ml_dtypes"].bfloat16)
        if dtype.itemsize == 2 and dtype.num >= FIRST_REGISTERED and dtype.name == "bfloat16":
            return dtype.num
    except Exception:
        pass
    return -1


cdef int kind_of(np.ndarray array, str name) except -1:
    """The array's dtype as an `enum fastdrop_kind`."""
    global bfloat16_type
    cdef int number = np.PyArray_TYPE(array)
    if np.PyArray_ISNOTSWAPPED(array):
        if number == np.NPY_FLOAT32:
            return FASTDROP_FLOAT32
        if number == np.NPY_FLOAT64:
            return FASTDROP_FLOAT64
        if number == np.NPY_FLOAT16:
            return FASTDROP_FLOAT16
        if bfloat16_type < 0:
            bfloat16_type = bfloat16_type_number()
        # Dtypes of NumPy's newer interface all have the number -1.
        if number == bfloat16_type and number >= 0:
            return FASTDROP_BFLOAT16
    order = "" if array.dtype.isnative else " of the other byte order"
    raise TypeError(
        f"`{name}` must have the dtype float16, float32, float64 or bfloat16 (ml_dtypes) in this "
        f"machine's byte order, got {array.dtype!r}{order}; `astype` converts an array"
    )


cdef require_ndarray(object x, str name):
    if not isinstance(x, np.ndarray):
        raise TypeError(
            f"`{name}` must be a numpy.ndarray, since it is changed in place, got {short_repr(x)} "
            f"of type {type(x).__name__}"
        )


cdef np.ndarray base_view(np.ndarray array):
    """The array as a base-class ndarray: a subclass may report any shape."""
    if type(array) is numpy.ndarray:
        return array
    return PyArray_View(array, NULL, <PyTypeObject *>np.ndarray)


cdef np.ndarray own_view(np.ndarray array):
    """A view that no other code has: another thread cannot reshape it while the GIL is released."""
    return PyArray_View(array, NULL, <PyTypeObject *>np.ndarray)


cdef np.ndarray input_of(object x, str name):
    """An array to read, from anything that NumPy converts."""
    if isinstance(x, np.ndarray):
        return base_view(x)
    # Not at the top: that module imports this one.
    from fastdrop._mask import Mask
    if isinstance(x, Mask):
        # Its bools may need more memory than there is.
        raise TypeError(f"`{name}` must be an array of numbers, got {short_repr(x)}")
    try:
        return base_view(numpy.asarray(x))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array: {error}, got {short_repr(x)}") from error


cdef np.ndarray inplace_of(object x, str name):
    """An array to change: writeable, with no memory that two elements share."""
    cdef np.ndarray array
    require_ndarray(x, name)
    array = own_view(x)
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
    """An array for the result of x: the memory of x, or memory disjoint from it."""
    cdef np.ndarray array = inplace_of(out, "out")
    if (<object>array).shape != (<object>x).shape or (<object>array).dtype != (<object>x).dtype:
        raise ValueError(
            f"`out` must have the shape {(<object>x).shape} and the dtype {(<object>x).dtype} of "
            f"`{name}`, got {short_repr(array)}"
        )
    if same_memory(array, x) or disjoint(array, x):
        return array
    try:
        overlap = numpy.shares_memory(array, x, max_work=OVERLAP_EFFORT)
    except numpy.exceptions.TooHardError:
        overlap = True
    if overlap:
        raise ValueError(
            f"`out` must be `{name}` itself or share no memory with it, got an array that overlaps "
            "it partly"
        )
    return array


cdef bint same_memory(np.ndarray a, np.ndarray b):
    """Whether two arrays of one shape have the same address for every element."""
    cdef int i
    if np.PyArray_DATA(a) != np.PyArray_DATA(b):
        return False
    for i in range(np.PyArray_NDIM(a)):
        if np.PyArray_DIM(a, i) > 1 and np.PyArray_STRIDE(a, i) != np.PyArray_STRIDE(b, i):
            return False
    return True


cdef void span(np.ndarray array, const char **begin, const char **end) noexcept:
    """The address range of an array that is not empty."""
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


cdef bint disjoint(np.ndarray a, np.ndarray b):
    """Whether the address ranges are disjoint. Cheap, and true for nearly all separate arrays."""
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
    # Each stride is at least the span of all smaller ones: then all offsets differ, as numbers with
    # different digits do.
    span = (<object>array).itemsize
    for stride, size in dims:
        if stride < span:
            break
        span = stride * (size - 1) + span
    else:
        return False
    # More bytes than the address range has.
    extent = sum(stride * (size - 1) for stride, size in dims) + (<object>array).itemsize
    if extent < (<object>array).nbytes or (<object>array).size > OVERLAP_EFFORT:
        return True
    # Only as_strided makes such views: compare all offsets.
    offsets = numpy.zeros(1, numpy.int64)
    for stride, size in dims:
        offsets = numpy.add.outer(offsets, stride * numpy.arange(size)).ravel()
    offsets.sort()
    return bool((numpy.diff(offsets) < (<object>array).itemsize).any())
