"""Defines Gaussian dropout and Gaussian noise, which draw normal numbers and apply them to arrays.

Threads share the blocks of 4096 elements, in C order. Elements that are not contiguous are gathered
for the kernel, a block or two at once, and scattered. If several elements share a number, all
numbers of the noise shape are drawn first, and gathered too.
"""
cimport cython
from libc.stdint cimport int64_t, uint64_t

cimport numpy as np

from fastdrop._arguments cimport (
    flag_of, inplace_of, input_of, kind_of, noise_entries_of, noise_shape_of, output_of, own_view,
    shape_of, short_repr, size_of, stddev_of, stddev_of_rate,
)
from fastdrop._draw cimport derive_other_key
from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    BLOCK, KIND_F32, NOISE_DOMAIN, kind_size, noise_operands, stream_key,
)
from fastdrop._memory cimport Buffer, array_over, new_buffer
from fastdrop._plan cimport MAX_DIMS, parts
from fastdrop._rates cimport computed_in, factors_of, rates_of, store_changed
from fastdrop._stream cimport (
    Stream, fastdrop_seed, is_other_stream, other_stream, seed_number, stream_of, take_step,
)
from fastdrop._threads cimport parallel_for
from fastdrop._walk cimport (
    BROADCAST, FROM, TO, Walk, address_of, block_of, broadcast_strides, move_block, set_up_walk,
)

import numpy

from fastdrop._config import STREAM_VERSION

np.import_array()

cdef extern from "simd/float_state.h" nogil:
    ctypedef struct float_state:
        pass
    float_state float_state_enter()
    void float_state_leave(float_state saved)

cdef enum:
    MOST = 2 * BLOCK                # elements that are gathered at once
    WORK = 4                        # an element takes this many times as long as in a dropout


# ---- The numbers, and the walk through the arrays ----

cdef void set_up_noise(NoiseWork *work, int ndim, const np.npy_intp *shape,
                       const np.npy_intp *to_strides, const np.npy_intp *from_strides,
                       const np.npy_intp *noise_shape) noexcept nogil:
    """Describe the order of the elements of `work.on`, whose other fields are set."""
    cdef np.npy_intp number_strides[MAX_DIMS]
    cdef Walk *walk = &work.walk
    work.noise_size = broadcast_strides(number_strides, ndim, noise_shape, sizeof(float))
    walk.data[TO], walk.data[FROM] = <char *>work.on.to, <char *>work.on.from_
    walk.data[BROADCAST] = <char *>work.on.numbers
    walk.itemsize[TO] = walk.itemsize[FROM] = kind_size(work.on.kind)
    walk.itemsize[BROADCAST] = sizeof(float)
    set_up_walk(walk, ndim, shape, to_strides, from_strides, number_strides)


cdef void apply_to_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef const NoiseWork *work = <const NoiseWork *>context
    cdef const Walk *walk = &work.walk
    cdef uint64_t items[BLOCK]
    cdef float numbers[MOST]
    cdef noise_operands on = work.on
    cdef uint64_t first = <uint64_t>begin * BLOCK
    cdef uint64_t last = min(<uint64_t>end * BLOCK, work.on.size)
    cdef uint64_t most = last - first
    if not (walk.in_place[TO] and walk.in_place[FROM] and walk.in_place[BROADCAST]):
        most = min(<uint64_t>sizeof(items) // walk.itemsize[TO], <uint64_t>MOST)
    while first < last:
        on.size = min(last - first, most)
        on.from_ = block_of(walk, FROM, <char *>items, first, on.size)
        on.to = &items[0]
        if walk.in_place[TO]:
            on.to = address_of(walk, TO, first)
        if work.on.numbers != NULL:
            on.numbers = <const float *>block_of(walk, BROADCAST, <char *>numbers, first, on.size)
        kernels.noise(&work.key, first, &on)
        if not walk.in_place[TO]:
            move_block(walk, TO, <char *>items, first, on.size)
        first += on.size


cdef void run(NoiseWork *work) noexcept nogil:
    parallel_for(apply_to_blocks, work, parts(work.on.size, BLOCK), WORK * work.on.size)


cdef void draw_numbers(const stream_key *key, float *numbers, uint64_t size) noexcept nogil:
    """Draw standard normal numbers: 1 times each, added to -0.0."""
    cdef NoiseWork work
    cdef np.npy_intp shape = size
    cdef np.npy_intp stride = sizeof(float)
    cdef uint64_t i
    for i in range(size):
        numbers[i] = -0.0
    work.key = key[0]
    work.on.kind, work.on.additive, work.on.stddev = KIND_F32, True, 1.0
    work.on.size, work.on.to, work.on.from_, work.on.numbers = size, numbers, numbers, NULL
    set_up_noise(&work, 1, &shape, &stride, &stride, &shape)
    run(&work)


cdef void draw_and_apply(NoiseWork *work, const fastdrop_seed *position) noexcept nogil:
    """Apply the noise of a stream position. `on.numbers` has room for numbers that are shared."""
    derive_other_key(&work.key, position, NOISE_DOMAIN)
    if work.on.numbers != NULL:
        draw_numbers(&work.key, <float *>work.on.numbers, work.noise_size)
    run(work)


# ---- Noise ----

@cython.final
@cython.freelist(8)
cdef class Noise:
    """Normal noise that a call drew, which draws the same numbers again.

    `gaussian_dropout` and `gaussian_noise` make it. It stores no numbers: they are a function of
    the seed, the step and the element's index.

    Attributes
    ----------
    shape : tuple of int
        The shape of the arrays that the noise applies to.
    noise_shape : tuple of int
        The shape of the numbers: `shape`, with 1 for each dimension that shares its numbers.
    stddev : float or numpy.ndarray
        The standard deviation.
    additive : bool
        Whether the noise is added to elements, with mean 0; else elements are multiplied by it, and
        its mean is 1.
    seed, step : int
        The stream position that the numbers are drawn at.

    Notes
    -----
    Noise never changes, and any number of threads may use it. It can be pickled and copied. Two
    objects are equal if all their attributes are.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, noise = fastdrop.gaussian_dropout(np.full(4, 2.0, np.float32), 0.5, seed=1)
    >>> noise
    <fastdrop.Noise shape=(4,), times N(1, 1), seed=1, step=0>
    >>> np.array_equal(2 * noise.draw(), y)
    True
    """

    def __init__(self):
        raise TypeError("noise is made by fastdrop.gaussian_dropout and fastdrop.gaussian_noise, "
                        "not directly")

    @property
    def shape(self):
        """The shape of the arrays that the noise applies to, a tuple of int."""
        return self.shape_

    @property
    def noise_shape(self):
        """The shape of the numbers: `shape`, with 1 for each dimension that shares its numbers."""
        return self.noise_shape_

    @property
    def stddev(self):
        """The standard deviation, a float.

        If rates were given as an array: a read-only float64 array of its shape.
        """
        return self.stddev_ if self.stddevs is None else self.stddevs

    @property
    def additive(self):
        """Whether the noise is added, with mean 0; else it multiplies, with mean 1. A bool."""
        return self.additive_

    @property
    def seed(self):
        """The seed that the numbers are drawn from, an int."""
        return seed_number(&self.position)

    @property
    def step(self):
        """The step of the seed that the numbers are drawn at, an int."""
        return self.position.step

    cdef Buffer new_numbers(self):
        """Memory for the numbers, if several elements share one; else None."""
        if self.noise_shape_ is self.shape_:
            return None
        return new_buffer(size_of(self.noise_shape_) * sizeof(float))

    cdef void apply_with(self, int kind, np.ndarray to, np.ndarray from_, Buffer buffer) noexcept:
        """Apply the noise to an array of its shape, with the buffer of `new_numbers`."""
        cdef NoiseWork work
        cdef np.npy_intp noise_shape[MAX_DIMS]
        cdef int i
        for i in range(len(self.noise_shape_)):
            noise_shape[i] = self.noise_shape_[i]
        work.on.kind, work.on.additive, work.on.stddev = kind, self.additive_, self.stddev_
        work.on.size = np.PyArray_SIZE(to)
        work.on.to, work.on.from_ = np.PyArray_DATA(to), np.PyArray_DATA(from_)
        work.on.numbers = NULL if buffer is None else <float *>buffer.data
        set_up_noise(&work, np.PyArray_NDIM(to), np.PyArray_DIMS(to), np.PyArray_STRIDES(to),
                     np.PyArray_STRIDES(from_), noise_shape)
        if work.on.size <= BLOCK:  # releasing the GIL would take longer than a small call
            draw_and_apply(&work, &self.position)
        else:
            with nogil:
                draw_and_apply(&work, &self.position)

    cdef apply_to(self, int kind, np.ndarray to, np.ndarray from_, Stream stream):
        """Take the step of a stream, if there is one, and apply the noise to an array."""
        cdef Buffer numbers
        if self.stddevs is not None:
            self.apply_by_stddevs(to, from_, stream)
            return
        numbers = self.new_numbers()
        # The last action that can fail.
        take_step(stream, &self.position)
        self.apply_with(kind, to, from_, numbers)

    cdef apply_by_stddevs(self, np.ndarray to, np.ndarray from_, Stream stream):
        """Multiply by noise with a standard deviation for each element, in simple passes."""
        cdef uint64_t size = size_of(self.noise_shape_)
        cdef Buffer numbers = new_buffer(size * sizeof(float))
        cdef np.npy_intp noise_size = size
        cdef np.ndarray drawn = array_over(
            numbers, numpy.dtype(numpy.float32), 1, &noise_size, True)
        cdef np.ndarray result
        cdef stream_key key
        cdef object wide = computed_in(from_)
        cdef float_state saved = float_state_enter()
        try:
            with numpy.errstate(all="ignore"):
                stddevs = (<object>self.stddevs).astype(wide)
                changed = self.stddevs != 0
                factors = numpy.empty(self.noise_shape_, wide)
                result = numpy.array(from_, wide, order="C")
                # The last action that can fail.
                take_step(stream, &self.position)
                derive_other_key(&key, &self.position, NOISE_DOMAIN)
                draw_numbers(&key, <float *>numbers.data, size)
                numpy.multiply(drawn.reshape(self.noise_shape_), stddevs, out=factors)
                numpy.add(factors, 1, out=factors)
                numpy.multiply(result, factors, out=result)
                store_changed(to, result, from_, changed)
        finally:
            float_state_leave(saved)

    cdef check(self, np.ndarray x):
        if self.shape_ != (<object>x).shape:
            raise ValueError(
                f"`x` must have the shape of the noise, {self.shape_}, got {short_repr(x)}")

    def apply(self, x, out=None):
        """Apply the same noise to an array, as the call that drew it did.

        An element is multiplied by its number, which is the gradient of `gaussian_dropout` if x is
        the gradient with respect to the output; or the number is added, if the noise is `additive`.

        Parameters
        ----------
        x : array_like
            An array of the noise's `shape`, of any strides, and of dtype float16, float32, float64
            or bfloat16 (ml_dtypes), which need not be the dtype of the first call.
        out : numpy.ndarray, optional
            The array for the result, of x's shape and dtype: x itself, or an array that shares no
            memory with it. Other threads must not read or change it during the call.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array of x's shape, dtype and memory order.

        Raises
        ------
        TypeError
            If x has another dtype, or an argument is of the wrong type.
        ValueError
            If the shapes differ, or out is read-only, overlaps itself, or overlaps x in part.
        MemoryError
            If there is no memory for the result, or for numbers that several elements share.

        Notes
        -----
        A call that raises changes no array.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> y, noise = fastdrop.gaussian_dropout(np.ones(3), 0.5, seed=1)
        >>> np.array_equal(noise.apply(np.ones(3)), y)
        True
        """
        cdef np.ndarray from_ = own_view(input_of(x, "x"))
        cdef int kind = kind_of(from_, "x")
        cdef np.ndarray to
        self.check(from_)
        to = numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x")
        self.apply_to(kind, to, from_, None)
        return to if out is None else out

    def apply_(self, x):
        """Apply the same noise to an array in place.

        Parameters
        ----------
        x : numpy.ndarray
            As for `apply`, writeable, and without elements that share memory. Other threads must
            not read or change it during the call.

        Returns
        -------
        numpy.ndarray
            x.

        Raises
        ------
        TypeError
            If x is not an array or has another dtype.
        ValueError
            If the shapes differ, or x is read-only or overlaps itself.
        MemoryError
            If there is no memory for numbers that several elements share.

        Notes
        -----
        A call that raises does not change x.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> x = np.ones(3)
        >>> noise = fastdrop.gaussian_noise_(x, 0.1, seed=1)
        >>> noise.apply_(np.ones(3)).tolist() == x.tolist()
        True
        """
        cdef np.ndarray array = inplace_of(x, "x")
        cdef int kind = kind_of(array, "x")
        self.check(array)
        self.apply_to(kind, array, array, None)
        return x

    def draw(self):
        """Draw the noise.

        Returns
        -------
        numpy.ndarray
            A new float32 array of the noise's `shape`: what a float32 element is multiplied by, or
            what is added to it.

        Raises
        ------
        MemoryError
            If there is no memory for the array, or for numbers that several elements share.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> x = np.zeros(1000, np.float32)
        >>> noise = fastdrop.gaussian_noise_(x, 2.0, seed=1)
        >>> np.array_equal(noise.draw(), x), round(float(x.std()), 1)
        (True, 2.0)
        """
        cdef np.ndarray array
        try:
            array = numpy.full(self.shape_, -0.0 if self.additive_ else 1.0, numpy.float32)
        except ValueError:  # NumPy's error for a size that does not fit
            raise MemoryError(f"unable to allocate an array of shape {self.shape_}") from None
        self.apply_to(KIND_F32, array, array, None)
        return array

    def __eq__(self, other):
        if not isinstance(other, Noise):
            return NotImplemented
        a, b = self.state(), (<Noise>other).state()
        return numpy.array_equal(a.pop("stddev"), b.pop("stddev")) and a == b

    __hash__ = None

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    cdef dict state(self):
        return {"shape": self.shape_, "noise_shape": self.noise_shape_, "stddev": self.stddev,
                "additive": self.additive_, "seed": self.seed, "step": self.step,
                "stream": STREAM_VERSION}

    def __reduce__(self):
        # Not at the top: that module imports this one.
        from fastdrop import _pickle
        return _pickle._noise, (self.state(),)

    def __repr__(self):
        noise = "" if self.noise_shape_ == self.shape_ else f", noise_shape={self.noise_shape_}"
        kind = "plus N(0" if self.additive_ else "times N(1"
        variance = f"{self.stddev_**2:g}" if self.stddevs is None else (
            f"variances of shape {(<object>self.stddevs).shape}")
        return (f"<fastdrop.Noise shape={self.shape_}{noise}, {kind}, {variance}), "
                f"seed={self.seed}, step={self.step}>")


def restored_noise(state):
    """Restore pickled noise. Every field is checked as an argument is."""
    cdef Noise noise = Noise.__new__(Noise)
    if not isinstance(state, dict) or set(state) != {
        "shape", "noise_shape", "stddev", "additive", "seed", "step", "stream"
    }:
        raise ValueError(f"`state` must be the dict that noise pickles, got {short_repr(state)}")
    if is_other_stream(state):
        raise other_stream(state)
    noise.shape_ = shape_of(state["shape"])
    noise.noise_shape_ = noise_shape_of(noise_entries_of(state["noise_shape"]), noise.shape_)
    noise.additive_ = flag_of(state["additive"], "additive")
    if isinstance(state["stddev"], np.ndarray) and np.PyArray_NDIM(state["stddev"]):
        noise.stddevs = factors_of(state["stddev"], noise.noise_shape_, "stddev")
        if noise.additive_ or (<object>noise.stddevs < 0).any():
            raise ValueError("`stddev` must hold numbers of at least 0, of noise that multiplies, "
                             f"got {short_repr(noise.stddevs)}")
    else:
        noise.stddev_ = stddev_of(state["stddev"])
    stream = Stream(0)
    stream.state = {"seed": state["seed"], "step": state["step"]}
    if stream.step == 2**64:
        raise ValueError("`state` must have a step below 2**64, got 2**64")
    take_step(stream, &noise.position)
    return noise


# ---- Drawing ----

cdef np.ndarray stddevs_of_rates(np.ndarray rates):
    """The standard deviation of Gaussian dropout's factors for each rate, below 1."""
    cdef float_state saved = float_state_enter()
    try:
        values = (<object>rates).astype(numpy.float64)
        wrong = numpy.argwhere(values == 1.0)
        if len(wrong):
            raise ValueError("`rate` must be below 1 for Gaussian dropout, whose variance "
                             "rate / (1 - rate) is infinite at 1, got 1.0 at index "
                             f"{tuple(wrong[0].tolist())}")
        return numpy.sqrt(values / (1.0 - values))
    finally:
        float_state_leave(saved)


cdef tuple dropped(object x, object rate, object seed, object noise_shape, object out,
                   bint in_place):
    """Gaussian dropout by one rate or an array of them."""
    cdef np.ndarray rates = rates_of(rate)
    if rates is None:
        return noised(x, stddev_of_rate(rate), None, False, seed, noise_shape, out, in_place)
    return noised(x, 0.0, stddevs_of_rates(rates), False, seed, noise_shape, out, in_place)


cdef tuple noised(object x, double stddev, np.ndarray stddevs, bint additive, object seed,
                  object noise_shape, object out, bint in_place):
    """Check the arguments that are left, draw noise and apply it; return the result and the noise.

    The checks may run a user's code, so nothing of an array is read before them.
    """
    cdef Noise noise = Noise.__new__(Noise)
    cdef tuple entries = noise_entries_of(noise_shape)
    cdef Stream stream = stream_of(seed, &noise.position)
    cdef np.ndarray from_ = inplace_of(x, "x") if in_place else own_view(input_of(x, "x"))
    cdef int kind = kind_of(from_, "x")
    cdef np.ndarray to = from_
    if not in_place:
        to = numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, "x")
    noise.shape_ = (<object>from_).shape
    noise.noise_shape_ = noise_shape_of(entries, noise.shape_)
    noise.stddev_, noise.additive_ = stddev, additive
    if stddevs is not None:
        noise.stddevs = factors_of(stddevs, noise.noise_shape_, "rate")
    noise.apply_to(kind, to, from_, stream)
    return to if out is None else out, noise


def gaussian_dropout(x, rate, *, seed=None, noise_shape=None, out=None):
    """Multiply elements of x by normal numbers of mean 1 and variance ``rate / (1 - rate)``.

    This is the Gaussian form of dropout [1]_: no element is dropped, and the products have the
    mean and the variance of `dropout`'s results. At rate 0 the result equals x bit for bit. NaN and
    infinities are multiplied as other numbers.

    The numbers are a function of the seed, the step and the element's index in C order. They are
    the same on every CPU, for every number of threads and every memory layout, in place or not. The
    mask of the same seed and step is independent of them.

    Parameters
    ----------
    x : array_like
        An array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes).
    rate : float or numpy.ndarray
        The rate of the dropout that the variance is that of, in [0, 1). An array of rates, which
        NumPy broadcasts to the noise's shape, gives each element a variance of its own, of the same
        numbers; it takes several simple passes over memory.
    seed, noise_shape
        As for `dropout`: elements that would share a decision share a number.
    out : numpy.ndarray, optional
        The array for the result, of x's shape and dtype: x itself, or an array that shares no
        memory with it. Other threads must not read or change it during the call.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    noise : Noise
        It draws the same numbers again: ``noise.apply(dy)`` is the gradient with respect to x.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, also for rate 1, where the variance would be infinite;
        or out is read-only, overlaps itself, or overlaps x in part.
    MemoryError
        If there is no memory for the result, or for numbers that several elements share.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises changes no array and takes no step of a stream.

    The numbers have the 24 digits of float32, and float16, bfloat16 and float32 elements are
    multiplied in float32, float64 elements in float64. The largest is 6.76 standard deviations from
    the mean. The page on the random stream, ``docs/stream.md``, defines each operation.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: a simple way to prevent neural networks from
       overfitting", JMLR 15, 2014, section 10.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, noise = fastdrop.gaussian_dropout(np.ones(4, np.float32), 0.2, seed=1)
    >>> y
    array([1.7704322 , 0.7134294 , 0.7632931 , 0.04189444], dtype=float32)
    >>> noise.apply(np.full(4, 10, np.float32))
    array([17.704323  ,  7.134294  ,  7.6329308 ,  0.41894436], dtype=float32)
    """
    return dropped(x, rate, seed, noise_shape, out, False)


def gaussian_dropout_(x, rate, *, seed=None, noise_shape=None):
    """Multiply elements of x by normal numbers of mean 1 and variance ``rate / (1 - rate)``, in
    place.

    `gaussian_dropout` documents the details.

    Parameters
    ----------
    x : numpy.ndarray
        As for `dropout_`.
    rate, seed, noise_shape
        As for `gaussian_dropout`.

    Returns
    -------
    noise : Noise
        It draws the same numbers again: ``noise.apply(dy)`` is the gradient with respect to x.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, or x is read-only or overlaps itself.
    MemoryError
        If there is no memory for numbers that several elements share.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises does not change x and takes no step of a stream.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> x = np.ones(4, np.float32)
    >>> noise = fastdrop.gaussian_dropout_(x, 0.2, seed=1)
    >>> x
    array([1.7704322 , 0.7134294 , 0.7632931 , 0.04189444], dtype=float32)
    """
    return dropped(x, rate, seed, noise_shape, None, True)[1]


def gaussian_noise(x, stddev, *, seed=None, noise_shape=None, out=None):
    """Add normal numbers of mean 0 and a standard deviation to elements of x.

    At standard deviation 0 the result equals x bit for bit. The numbers are those of
    `gaussian_dropout` for the same seed and step, but for their mean and standard deviation.

    Parameters
    ----------
    x : array_like
        An array of any shape and strides, of dtype float16, float32, float64 or bfloat16
        (ml_dtypes).
    stddev : float
        The standard deviation, finite and at least 0, rounded to float32 unless x is of float64.
    seed, noise_shape, out
        As for `gaussian_dropout`.

    Returns
    -------
    y : numpy.ndarray
        `out`, or a new array of x's shape, dtype and memory order.
    noise : Noise
        It draws the same numbers again. The gradient does not need it: dx is dy.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, or out is read-only, overlaps itself, or overlaps x in
        part.
    MemoryError
        If there is no memory for the result, or for numbers that several elements share.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises changes no array and takes no step of a stream.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, noise = fastdrop.gaussian_noise(np.zeros(4, np.float32), 0.5, seed=1)
    >>> y
    array([ 0.7704323 , -0.2865706 , -0.23670691, -0.95810556], dtype=float32)
    """
    return noised(x, stddev_of(stddev), None, True, seed, noise_shape, out, False)


def gaussian_noise_(x, stddev, *, seed=None, noise_shape=None):
    """Add normal numbers of mean 0 and a standard deviation to elements of x, in place.

    `gaussian_noise` documents the details.

    Parameters
    ----------
    x : numpy.ndarray
        As for `dropout_`.
    stddev, seed, noise_shape
        As for `gaussian_noise`.

    Returns
    -------
    noise : Noise
        It draws the same numbers again. The gradient does not need it: dx is dy.

    Raises
    ------
    TypeError
        If an argument is of the wrong type, or x has another dtype.
    ValueError
        If an argument has an invalid value, or x is read-only or overlaps itself.
    MemoryError
        If there is no memory for numbers that several elements share.
    OverflowError
        If the stream has no step left.

    Notes
    -----
    A call that raises does not change x and takes no step of a stream.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> x = np.zeros(4, np.float32)
    >>> noise = fastdrop.gaussian_noise_(x, 0.5, seed=1)
    >>> x
    array([ 0.7704323 , -0.2865706 , -0.23670691, -0.95810556], dtype=float32)
    """
    return noised(x, stddev_of(stddev), None, True, seed, noise_shape, None, True)[1]
