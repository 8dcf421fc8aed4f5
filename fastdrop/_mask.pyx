"""Owns the mask: the packed bits of one dropout, or what they are drawn from, and their use."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

cimport numpy as np

from fastdrop._arguments cimport (
    flag_of, held, inplace_of, input_of, integer_of, kind_of, noise_entries_of, noise_shape_of,
    output_of, rate_of, scale_of, shape_of, shown, size_of,
)
from fastdrop._apply cimport Work, look_at, use_on_arrays
from fastdrop._draw cimport derive_key, draw_bits
from fastdrop._kernels.table cimport BLOCK, SCALE, stream_key
from fastdrop._memory cimport Buffer, array_over, new_buffer
from fastdrop._stream cimport (
    Stream, is_other_stream, other_stream, seed_number, stream_of, take_step,
)

import numpy

from fastdrop._config import STREAM_VERSION

np.import_array()

cdef extern from *:
    int __builtin_popcountll(unsigned long long word) noexcept nogil

cdef enum:
    COUNTED = 1 << 24               # elements that are drawn at once to count them

cdef object UINT8 = numpy.dtype(numpy.uint8)
cdef object LARGEST_OFFSET = 2**63


@cython.final
@cython.freelist(8)
cdef class Mask:
    """Which elements a dropout keeps: a packed bit for each, and the factor of those kept.

    Masks come from `dropout` and its relatives, `draw_mask` and `Mask.pack`. They never change.

    Attributes
    ----------
    shape : tuple of int
        The shape of the arrays that the mask is for.
    noise_shape : tuple of int
        The shape of the mask's own bits: `shape` with 1 where one decision is shared along a
        dimension.
    rate : float or None
        The probability of dropping that it was drawn with; None if it was packed without one.
    scale : float
        What kept elements are multiplied by.
    seed, step : int or None
        What the bits were drawn from; None if they were packed, are ReLU's too, or come from a
        pickle of another version of the random stream.
    size : int
        The number of bits, ``prod(noise_shape)``.
    bits : numpy.ndarray or None
        Read-only uint8 array of ``ceil(size / 8)`` bytes, 64-byte aligned: element i of the
        flattened (C order) noise shape is bit ``i % 8`` of byte ``i // 8``
        (``numpy.packbits(..., bitorder="little")``), set where kept; unused high bits are zero.
        None where nothing is stored (``store_mask=False``).
    nbytes : int
        Bytes that the stored bits take; 0 where nothing is stored.

    Notes
    -----
    Masks are equal when their shapes, rates, scales and bits are, wherever the bits came from.
    They can be pickled and copied; one without stored bits stays without.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> mask = fastdrop.Mask.pack(np.array([True, False, True, True]), scale=2.0)
    >>> mask.bits
    array([13], dtype=uint8)
    >>> mask.apply(np.array([1.0, np.nan, 3.0, 4.0]))
    array([2., 0., 6., 8.])
    """

    def __init__(self):
        raise TypeError("masks are made by fastdrop.dropout, draw_mask and Mask.pack, not directly")

    @classmethod
    def pack(cls, kept, *, rate=None, scale=1.0):
        """Makes a mask of decisions made elsewhere.

        Parameters
        ----------
        kept : array_like of bool
            True where an element is kept; any shape, which is the mask's.
        rate : float or None, optional
            The probability of dropping, in [0, 1], for the record.
        scale : float, optional
            What kept elements are multiplied by.

        Returns
        -------
        Mask

        Raises
        ------
        TypeError
            If kept is not of bools, or rate or scale are no numbers.
        ValueError
            If rate is outside [0, 1] or scale is not finite.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> fastdrop.Mask.pack(np.eye(3, dtype=bool)).count()
        3
        """
        cdef Mask mask = Mask.__new__(Mask)
        cdef object kept_array = input_of(kept, "kept")
        cdef np.ndarray packed
        if kept_array.dtype != numpy.bool_:
            raise TypeError(f"`kept` must be an array of bools, got {shown(kept_array)}")
        mask.rate = None if rate is None else rate_of(rate)
        if scale is None:
            raise TypeError("`scale` must be a finite number, got None")
        mask.scale = scale_of(scale, 0.0)
        mask.shape = mask.noise_shape = kept_array.shape
        mask.size_ = kept_array.size
        packed = numpy.packbits(kept_array.ravel(), bitorder="little")
        mask.buffer = new_buffer(mask.packed_size())
        memcpy(mask.buffer.data, np.PyArray_DATA(packed), mask.packed_size())
        return mask

    cdef size_t packed_size(self) noexcept nogil:
        """Bytes that the bits take when they are stored."""
        return (self.size_ + 7) // 8

    @property
    def seed(self):
        return seed_number(&self.draw) if self.drawn else None

    @property
    def step(self):
        return self.draw.step if self.drawn else None

    @property
    def size(self):
        return self.size_

    @property
    def nbytes(self):
        return 0 if self.buffer is None else self.packed_size()

    @property
    def bits(self):
        cdef np.npy_intp count = self.packed_size()
        if self.buffer is None:
            return None
        return array_over(self.buffer, UINT8, 1, &count, False)

    cdef Buffer stored_bits(self):
        """The bits, drawn again where they are not stored."""
        cdef stream_key key
        cdef Buffer buffer = self.buffer
        if buffer is None:
            buffer = new_buffer(self.packed_size())
            derive_key(&key, &self.draw, self.rate)
            with nogil:
                draw_bits(&key, self.offset, self.size_, buffer.data)
        return buffer

    cdef size_t window_bytes(self) noexcept nogil:
        """What `some_bits` needs."""
        return min(self.packed_size(), <size_t>COUNTED // 8)

    cdef const uint8_t *some_bits(self, uint64_t first, uint64_t size,
                                  Buffer window) except NULL:
        """Up to COUNTED bits (first a multiple of it), in the window where they are not stored."""
        cdef stream_key key
        if self.buffer is not None:
            return self.buffer.data + first // 8
        # A mask without bits can be of any size, and take years.
        PyErr_CheckSignals()
        derive_key(&key, &self.draw, self.rate)
        with nogil:
            draw_bits(&key, self.offset + first, size, window.data)
        return window.data

    cdef tuple own_noise_shape(self):
        """None for a bit for each element."""
        return None if self.noise_shape is self.shape else self.noise_shape

    cdef apply_to(self, int kind, np.ndarray to, np.ndarray from_):
        cdef Work work
        cdef stream_key key
        cdef Buffer buffer
        look_at(&work, kind, SCALE, to, from_, self.own_noise_shape(), self.scale)
        if self.buffer is None and self.offset == 0 and work.straight:
            derive_key(&key, &self.draw, self.rate)
            use_on_arrays(&work, &key)
        else:
            buffer = self.stored_bits()
            work.on.bits = buffer.data
            use_on_arrays(&work, NULL)

    def count(self):
        """The number of set bits: elements of the noise shape that are kept.

        Returns
        -------
        int

        Examples
        --------
        >>> import fastdrop
        >>> fastdrop.draw_mask(16384, 0.2, seed=0).count()
        13066
        """
        cdef Buffer window = new_buffer(self.window_bytes())
        cdef const uint8_t *bits
        cdef uint64_t some, first = 0, total = 0
        while first < self.size_:
            some = min(self.size_ - first, <uint64_t>COUNTED)
            bits = self.some_bits(first, some, window)
            with nogil:
                total += count_ones(bits, (some + 7) // 8)
            first += some
        return total

    def unpack(self):
        """The mask as bools, one for each element of an array.

        Returns
        -------
        numpy.ndarray of bool
            Of the mask's `shape`, new and writeable; True where kept.

        Examples
        --------
        >>> import fastdrop
        >>> mask = fastdrop.draw_mask((2, 3), 0.5, seed=0, noise_shape=(2, 1))
        >>> mask.unpack()
        array([[ True,  True,  True],
               [False, False, False]])
        """
        cdef Buffer buffer = self.stored_bits()
        cdef np.npy_intp count = self.packed_size()
        bits = array_over(buffer, UINT8, 1, &count, False)
        kept = numpy.unpackbits(bits, count=self.size_, bitorder="little").view(numpy.bool_)
        kept = kept.reshape(self.noise_shape)
        if self.noise_shape == self.shape:
            return kept
        return numpy.broadcast_to(kept, self.shape).copy()

    def apply(self, x, out=None):
        """A new array: x with what the mask drops set to zero and what it keeps scaled.

        The same as ``fastdrop.dropout_grad(x, mask, out=out)``, which has the details.

        Parameters
        ----------
        x : array_like
            Of the mask's `shape` and a supported dtype.
        out : numpy.ndarray, optional
            Where to write the result: x itself, or apart from it.

        Returns
        -------
        numpy.ndarray

        Raises
        ------
        TypeError, ValueError
            As `dropout_grad`; nothing has changed then.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> fastdrop.draw_mask(4, 0.5, seed=1).apply(np.ones(4))
        array([0., 2., 0., 0.])
        """
        return masked(self, x, out, "x")

    def apply_(self, x):
        """Changes x in place: what the mask drops becomes zero, what it keeps is scaled.

        The same as ``fastdrop.dropout_grad_(x, mask)``, which has the details.

        Parameters
        ----------
        x : numpy.ndarray
            Of the mask's `shape` and a supported dtype, writeable.

        Returns
        -------
        numpy.ndarray
            x.

        Raises
        ------
        TypeError, ValueError
            As `dropout_grad_`; nothing has changed then.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> x = np.ones(4)
        >>> fastdrop.draw_mask(4, 0.5, seed=1).apply_(x) is x
        True
        """
        return masked_(self, x, "x")

    def __eq__(self, other):
        cdef Mask a = self, b
        cdef Buffer a_window, b_window
        cdef uint64_t some, first = 0
        if not isinstance(other, Mask):
            return NotImplemented
        b = other
        if (a.shape, a.noise_shape, a.rate, a.scale) != (b.shape, b.noise_shape, b.rate, b.scale):
            return False
        if a is b:
            return True
        # What is stored is looked at: a pickle may say any seed of its bits.
        if a.buffer is None and b.buffer is None and (
                (a.seed, a.step, a.offset) == (b.seed, b.step, b.offset)):
            return True
        if a.buffer is not None and b.buffer is not None:
            return memcmp(a.buffer.data, b.buffer.data, a.packed_size()) == 0
        a_window = new_buffer(a.window_bytes())
        b_window = new_buffer(a.window_bytes())
        while first < a.size_:
            some = min(a.size_ - first, <uint64_t>COUNTED)
            if memcmp(a.some_bits(first, some, a_window), b.some_bits(first, some, b_window),
                      (some + 7) // 8) != 0:
                return False
            first += some
        return True

    __hash__ = None

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        # Only here: that module imports this one.
        from fastdrop import _pickle
        state = {"shape": self.shape, "noise_shape": self.noise_shape, "rate": self.rate,
                 "scale": self.scale, "seed": self.seed, "step": self.step, "offset": self.offset,
                 "bits": None if self.buffer is None else self.bits.tobytes(),
                 "stream": STREAM_VERSION}
        return _pickle._mask, (state,)

    def __repr__(self):
        noise = "" if self.noise_shape == self.shape else f", noise_shape={self.noise_shape}"
        origin = f", seed={self.seed}, step={self.step}" if self.drawn else ""
        return (f"<fastdrop.Mask shape={self.shape}{noise}, rate={self.rate}, scale={self.scale:g}"
                f"{origin}, {self.nbytes} bytes>")


cdef uint64_t count_ones(const uint8_t *bits, uint64_t count) noexcept nogil:
    cdef uint64_t word, i = 0, total = 0
    while i + 8 <= count:
        memcpy(&word, bits + i, 8)
        total += __builtin_popcountll(word)
        i += 8
    while i < count:
        total += __builtin_popcountll(bits[i])
        i += 1
    return total


# ---- Making masks ----

@cython.final
@cython.freelist(8)
cdef class Request:
    """What a user asks of a random mask, checked before anything is looked at that may change."""

    cdef Mask new_mask(self, tuple shape):
        """A mask for arrays of a shape, whose bits are yet to be drawn."""
        cdef Mask mask = Mask.__new__(Mask)
        mask.shape = shape
        mask.noise_shape = noise_shape_of(self.noise_entries, shape)
        mask.rate = self.rate
        mask.scale = self.scale
        mask.size_ = size_of(mask.noise_shape)
        mask.drawn = True
        if self.stored:
            mask.buffer = new_buffer(mask.packed_size())
        return mask

    cdef void prepare(self, Mask mask, Work *work, stream_key *key) except *:
        """Gives the work its bits and takes the step; what remains is `use_on_arrays`."""
        if mask.buffer is not None:
            work.on.bits = mask.buffer.data
        elif not work.straight:
            # Their order is not that of the elements: all are drawn first.
            self.temporary = new_buffer(mask.packed_size())
            work.on.bits = self.temporary.data
        self.take_key(mask, key)

    cdef void take_key(self, Mask mask, stream_key *key) except *:
        """Takes the step: the last thing that may fail."""
        mask.draw = self.draw
        take_step(self.stream, &mask.draw)
        derive_key(key, &mask.draw, self.rate)


cdef Request request_of(object rate, object seed, object noise_shape, object scale,
                        object store_mask):
    """The arguments that all operations share. What may run a user's code is here: nothing of an
    array may be read before."""
    cdef Request request = Request.__new__(Request)
    request.rate = rate_of(rate)
    request.scale = scale_of(scale, request.rate)
    request.noise_entries = noise_entries_of(noise_shape)
    request.stored = flag_of(store_mask, "store_mask")
    request.stream = stream_of(seed, &request.draw)
    return request


cdef object offset_of(object offset, uint64_t size):
    return integer_of(offset, "offset", 0, LARGEST_OFFSET - size,
                      f"of at least 0 that ends, with the {size} bits drawn, at most at 2**63")


def draw_mask(shape, rate, *, seed=None, noise_shape=None, scale=None, offset=0,
              store_mask=True):
    """Draws a mask without applying it.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the arrays that the mask is for.
    rate : float
        The probability of dropping an element, in [0, 1]; exact to 2**-48.
    seed : int, numpy.random.SeedSequence, Stream or None, optional
        As for `dropout`.
    noise_shape : tuple of int and None, optional
        As for `dropout`.
    scale : float, optional
        As for `dropout`.
    offset : int, optional
        The index, in the flattened noise shape of a larger array, at which this piece begins.
        Pieces drawn apart with the same seed and step are exactly the slices of the whole.
    store_mask : bool, optional
        As for `dropout`.

    Returns
    -------
    Mask

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described; no step of a stream is taken then.
    MemoryError
        If there is no memory for the bits; likewise.
    OverflowError
        If the stream has no step left.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> whole = fastdrop.draw_mask(1000, 0.2, seed=7).unpack()
    >>> piece = fastdrop.draw_mask(100, 0.2, seed=7, offset=300).unpack()
    >>> np.array_equal(piece, whole[300:400])
    True
    """
    cdef tuple checked_shape
    cdef Request request
    cdef Mask mask
    cdef stream_key key
    checked_shape = shape_of(shape)
    request = request_of(rate, seed, noise_shape, scale, store_mask)
    mask = request.new_mask(checked_shape)
    if offset is not 0:
        mask.offset = offset_of(offset, mask.size_)
    request.take_key(mask, &key)
    if mask.buffer is None:
        return mask
    if mask.size_ <= BLOCK:  # releasing the GIL costs more than a small call may
        draw_bits(&key, mask.offset, mask.size_, mask.buffer.data)
    else:
        with nogil:
            draw_bits(&key, mask.offset, mask.size_, mask.buffer.data)
    return mask


def restored_mask(state):
    """A mask from its state, for unpickling: every field is checked as an argument would be."""
    cdef Mask mask = Mask.__new__(Mask)
    if not isinstance(state, dict) or set(state) != {
        "shape", "noise_shape", "rate", "scale", "seed", "step", "offset", "bits", "stream"
    }:
        raise ValueError(f"`state` must be the dict that a mask pickles, got {shown(state)}")
    other = is_other_stream(state)
    if other and state["bits"] is None:
        raise other_stream(state)
    mask.shape = shape_of(state["shape"])
    mask.noise_shape = noise_shape_of(noise_entries_of(state["noise_shape"]), mask.shape)
    mask.size_ = size_of(mask.noise_shape)
    mask.rate = None if state["rate"] is None else rate_of(state["rate"])
    if state["scale"] is None:
        raise TypeError("`scale` must be a finite number, got None")
    mask.scale = scale_of(state["scale"], 0.0)
    mask.offset = offset_of(state["offset"], mask.size_)
    mask.drawn = state["seed"] is not None
    if mask.drawn:
        if mask.rate is None:
            raise ValueError("`state` must have a rate where it has a seed, got None")
        stream = Stream(0)
        stream.state = {"seed": state["seed"], "step": state["step"]}
        if stream.step == 2**64:
            raise ValueError("`state` must have a step below 2**64, got 2**64")
        take_step(stream, &mask.draw)
    if other:
        # Its bits are what they are; from its seed this library would draw others.
        mask.drawn, mask.offset = False, 0
    bits = state["bits"]
    if bits is None:
        if not mask.drawn:
            raise ValueError("`state` must hold the bits of a mask, or a seed, a step and a rate")
        return mask
    if type(bits) is not bytes or <size_t>len(bits) != mask.packed_size():
        raise ValueError(f"`bits` must be {mask.packed_size()} bytes for the noise shape "
                         f"{mask.noise_shape}, got {shown(bits)}")
    if mask.size_ % 8 and bits[len(bits) - 1] >> (mask.size_ % 8):
        raise ValueError("`bits` must have zeros above the last element's bit, got "
                         f"{bits[len(bits) - 1]:#x} in the last byte")
    mask.buffer = new_buffer(mask.packed_size())
    memcpy(mask.buffer.data, PyBytes_AS_STRING(bits), mask.packed_size())
    return mask


# ---- Using masks ----

cdef Mask mask_of(object mask, np.ndarray x, str name):
    """The argument `mask`, of the array's shape."""
    cdef Mask checked
    if not isinstance(mask, Mask):
        raise TypeError(f"`mask` must be a fastdrop.Mask, got {shown(mask)}")
    checked = mask
    if checked.shape != (<object>x).shape:
        raise ValueError(
            f"`mask` must have the shape of `{name}`, {(<object>x).shape}, got {mask!r}")
    return checked


cdef masked(object mask, object x, object out, str name):
    """A new array, or out, with the mask applied to x."""
    cdef np.ndarray from_ = held(input_of(x, name))
    cdef int kind = kind_of(from_, name)
    cdef Mask checked = mask_of(mask, from_, name)
    cdef np.ndarray to = (
        numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, name))
    checked.apply_to(kind, to, from_)
    return to if out is None else out


cdef masked_(object mask, object x, str name):
    """x with the mask applied in place."""
    cdef np.ndarray array = inplace_of(x, name)
    cdef int kind = kind_of(array, name)
    mask_of(mask, array, name).apply_to(kind, array, array)
    return x


def dropout_grad(dy, mask, *, out=None):
    """The gradient of a dropout with respect to its input.

    Where the mask keeps an element, dx is dy times the mask's scale; where it drops one, dx is
    ``+0.0``, whatever dy is there. So this is the dropout of dy with the mask given.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to the dropout's output: of the mask's shape, with dtype float16,
        float32, float64 or bfloat16 (ml_dtypes), any strides.
    mask : Mask
        What `dropout` returned.
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
    >>> y, mask = fastdrop.dropout(np.ones(6), 0.5, seed=1)
    >>> fastdrop.dropout_grad(np.arange(6.0), mask)
    array([ 0.,  2.,  0.,  0.,  0., 10.])
    """
    return masked(mask, dy, out, "dy")


def dropout_grad_(dy, mask):
    """The gradient of a dropout with respect to its input, in place.

    Parameters
    ----------
    dy : numpy.ndarray
        As for `dropout_grad`, writeable and without elements that share memory. It becomes dx.
    mask : Mask
        What `dropout` returned.

    Returns
    -------
    dy : numpy.ndarray
        The same array.

    Raises
    ------
    TypeError
        If dy is no array or has another dtype, or mask is no mask.
    ValueError
        If the shapes differ, or dy is read-only or overlaps itself. When this raises, nothing has
        changed.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> dy = np.arange(6.0)
    >>> fastdrop.dropout_grad_(dy, fastdrop.draw_mask(6, 0.5, seed=1))
    array([ 0.,  2.,  0.,  0.,  0., 10.])
    """
    return masked_(mask, dy, "dy")
