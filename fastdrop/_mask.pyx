"""Makes masks (packed bits, or the seed that draws them again) and applies them to arrays."""
import numbers
import operator

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

cimport numpy as np

from fastdrop._arguments cimport (
    flag_of, own_view, inplace_of, input_of, integer_of, is_integer, kind_of, noise_entries_of,
    noise_shape_of, output_of, rate_of, scale_of, shape_of, short_repr, size_of,
)
from fastdrop._apply cimport Work, set_up, use_on_arrays
from fastdrop._bits cimport spread_bits
from fastdrop._draw cimport derive_key, draw_bits
from fastdrop._kernels.table cimport BLOCK, SCALE, stream_key
from fastdrop._memory cimport Buffer, array_over, new_buffer
from fastdrop._plan cimport MAX_DIMS
from fastdrop._rates cimport (
    check_fit, draw_by_rates, factors_of, inverted_scales, rates_of, scale_by,
)
from fastdrop._stream cimport (
    Stream, is_other_stream, other_stream, seed_number, stream_of, take_step,
)

import numpy

from fastdrop._config import STREAM_VERSION

np.import_array()

cdef extern from *:
    int __builtin_popcountll(unsigned long long word) noexcept nogil

cdef enum:
    CHUNK = 1 << 24                 # bits that are drawn at a time to count or compare them

cdef object UINT8 = numpy.dtype(numpy.uint8)
cdef object LARGEST_OFFSET = 2**63


@cython.final
@cython.freelist(8)
cdef class Mask:
    """The elements that a dropout keeps, one packed bit each, and their scale.

    `dropout` and the other forward functions, `draw_mask` and `Mask.pack` make masks.

    Attributes
    ----------
    shape : tuple of int
        The shape of the arrays that the mask applies to.
    noise_shape : tuple of int
        The shape of the bits: `shape`, with 1 for each dimension that shares its decisions.
    rate : float, numpy.ndarray or None
        The probability of dropping; None if the mask was packed without one.
    scale : float or numpy.ndarray
        The factor of kept elements.
    seed, step : int or None
        The stream position that the bits were drawn at. None for packed bits, for bits that ReLU
        changed, and for bits from a pickle of another version of the random stream.
    size : int
        The number of bits, ``prod(noise_shape)``.
    bits : numpy.ndarray or None
        The packed bits, a read-only uint8 array. None if they are not stored.
    nbytes : int
        The bytes of the stored bits; 0 if they are not stored.

    Notes
    -----
    A mask never changes, and any number of threads may use one. Masks can be pickled and copied; a
    mask without stored bits stays without.

    For NumPy, a mask is an array of bools of its `shape`, True where an element is kept:
    ``np.asarray(mask)``, ``np.where(mask, x, 0)`` and ``x[mask]`` work, and so do `len`, iteration
    and indices. Integers, slices and ``...`` read the bits that they select; other indices unpack
    the whole mask. The functions of fastdrop do not take a mask for the array that they drop from.

    A notebook shows a mask as a table, with a picture of its first rows and columns.

    Two masks are equal, which is a single bool, if their shapes, noise shapes, rates, scales and
    bits are equal, whatever their seeds. With arrays, numbers, lists and tuples, ``==`` and ``!=``
    compare each element, as NumPy does. A mask equals no other object.

    A mask applies to arrays of its `shape` alone, even if its noise shape would broadcast to
    others: a mask of shape (8, 3) and noise shape (1, 3) raises ValueError on a batch of four rows.
    For these rows the seed draws the same bits again: ``draw_mask((4, 3), mask.rate,
    seed=mask.seed, noise_shape=(3,))`` if the mask's step is 0.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> mask = fastdrop.Mask.pack(np.array([True, False, True, True]), scale=2.0)
    >>> mask.bits
    array([13], dtype=uint8)
    >>> mask.apply(np.array([1.0, np.nan, 3.0, 4.0]))
    array([2., 0., 6., 8.])
    >>> np.where(mask, [1, 2, 3, 4], 0)
    array([1, 0, 3, 4])
    >>> mask[:2]
    array([ True, False])
    >>> mask == np.array([True, True, True, True])
    array([ True, False,  True,  True])
    """

    def __init__(self):
        raise TypeError("masks are made by fastdrop.dropout, draw_mask and Mask.pack, not directly")

    @classmethod
    def pack(cls, kept, *, rate=None, scale=1.0):
        """Make a mask from an array of bools.

        Parameters
        ----------
        kept : array_like of bool, or Mask
            True where an element is kept. Its shape becomes the mask's shape.
        rate : float, numpy.ndarray or None, optional
            The probability of dropping, in [0, 1], or an array that NumPy broadcasts to kept's
            shape: the mask's `rate`, without other effect.
        scale : float, optional
            The factor of kept elements.

        Returns
        -------
        Mask

        Raises
        ------
        TypeError
            If kept is not an array of bools, or rate or scale is not a number.
        ValueError
            If rate is outside [0, 1] or scale is not finite.
        MemoryError
            If there is no memory for the bits.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> fastdrop.Mask.pack(np.eye(3, dtype=bool)).count()
        3
        """
        cdef Mask mask = Mask.__new__(Mask)
        cdef object kept_array = kept.unpack() if isinstance(kept, Mask) else input_of(kept, "kept")
        cdef np.ndarray packed
        if kept_array.dtype != numpy.bool_:
            raise TypeError(f"`kept` must be an array of bools, got {short_repr(kept_array)}")
        mask.shape_ = mask.noise_shape_ = kept_array.shape
        mask.set_rate(rate)
        if scale is None:
            raise TypeError("`scale` must be a finite number, got None")
        mask.scale_ = scale_of(scale, 0.0)
        mask.size_ = kept_array.size
        packed = numpy.packbits(kept_array.ravel(), bitorder="little")
        mask.buffer = new_buffer(mask.packed_size())
        memcpy(mask.buffer.data, np.PyArray_DATA(packed), mask.packed_size())
        return mask

    cdef set_rate(self, object rate):
        """Check the rate of a mask that is not drawn now: None, a number or an array."""
        self.rates = rates_of(rate)
        if self.rates is not None:
            check_fit(self.rates, self.noise_shape_, "rate")
            self.rate_ = self.rates
        else:
            self.rate_ = None if rate is None else rate_of(rate)

    cdef size_t packed_size(self) noexcept nogil:
        """Bytes of the packed bits."""
        return (self.size_ + 7) // 8

    @property
    def shape(self):
        """The shape of the arrays that the mask applies to, a tuple of int."""
        return self.shape_

    @property
    def noise_shape(self):
        """The shape of the bits: `shape`, with 1 for each dimension that shares its decisions."""
        return self.noise_shape_

    @property
    def rate(self):
        """The probability of dropping, a float; None if the mask was packed without one.

        If rates were given as an array: a read-only copy of the array, in float32, or float64 if it
        was of float64. It has the array's shape, which NumPy broadcasts to the noise shape.
        """
        return self.rate_

    @property
    def scale(self):
        """The factor of kept elements, a float.

        If elements have rates of their own and no scale was given: a new float64 array of the
        factors, in the shape of `rate`.
        """
        if self.inverted:
            return inverted_scales(self.rates)
        return self.scale_ if self.scales is None else self.scales

    @property
    def seed(self):
        """The seed that the bits were drawn from, an int, or None.

        None for packed bits, for bits that ReLU changed, and for bits from a pickle of another
        version of the random stream.
        """
        return seed_number(&self.draw) if self.drawn else None

    @property
    def step(self):
        """The step of the seed that the bits were drawn at, an int; None if `seed` is None."""
        return self.draw.step if self.drawn else None

    @property
    def size(self):
        """The number of bits, ``prod(noise_shape)``."""
        return self.size_

    @property
    def nbytes(self):
        """The bytes of the stored bits; 0 if they are not stored."""
        return 0 if self.buffer is None else self.packed_size()

    @property
    def bits(self):
        """The packed bits, or None if they are not stored (``store_mask=False``).

        A read-only uint8 array of ``ceil(size / 8)`` bytes, 64-byte aligned. It shares the mask's
        memory. Element i of the flattened (C order) noise shape is bit ``i % 8`` of byte
        ``i // 8``, as in ``numpy.packbits(..., bitorder="little")``; a set bit means kept. Unused
        high bits of the last byte are zero.
        """
        cdef np.npy_intp count = self.packed_size()
        if self.buffer is None:
            return None
        return array_over(self.buffer, UINT8, 1, &count, False)

    cdef Buffer stored_bits(self):
        """The stored bits, or the same bits drawn again."""
        cdef Buffer buffer = self.buffer
        if buffer is None:
            buffer = new_buffer(self.packed_size())
            self.draw_bits_to(0, self.size_, buffer.data)
        return buffer

    cdef void draw_bits_to(self, uint64_t first, uint64_t size, uint8_t *bits) noexcept:
        """Draw the bits of elements `first` .. `first + size - 1` of the noise shape."""
        cdef stream_key key
        if self.rates is not None:
            draw_by_rates(&self.draw, self.rates, self.noise_shape_, self.offset, first, size, bits)
            return
        derive_key(&key, &self.draw, self.rate_)
        if size <= BLOCK:  # releasing the GIL would take longer than a small call
            draw_bits(&key, self.offset + first, size, bits)
        else:
            with nogil:
                draw_bits(&key, self.offset + first, size, bits)

    cdef size_t chunk_bytes(self) noexcept nogil:
        """The capacity of the buffer that `chunk_bits` needs."""
        return min(self.packed_size(), <size_t>CHUNK // 8)

    cdef const uint8_t *chunk_bits(self, uint64_t first, uint64_t size,
                                   Buffer chunk) except NULL:
        """Up to CHUNK bits, `first` being a multiple of CHUNK. Drawn into `chunk` if not stored."""
        if self.buffer is not None:
            return self.buffer.data + first // 8
        # A mask without stored bits may be so large that this takes years.
        PyErr_CheckSignals()
        self.draw_bits_to(first, size, chunk.data)
        return chunk.data

    cdef tuple own_noise_shape(self):
        """The noise shape; None if each element has a bit of its own."""
        return None if self.noise_shape_ is self.shape_ else self.noise_shape_

    cdef bint scales_differ(self) noexcept:
        """Whether each element has a scale of its own."""
        return self.inverted or self.scales is not None

    cdef Buffer new_element_bits(self):
        """Memory for a bit for each element, if elements share bits; else None."""
        if self.noise_shape_ is self.shape_:
            return None
        return new_buffer((size_of(self.shape_) + 7) // 8)

    cdef const uint8_t *element_bits(self, const uint8_t *bits, Buffer expanded) noexcept:
        """A bit for each element, from those of the noise shape, with `new_element_bits`."""
        cdef np.npy_intp shape[MAX_DIMS]
        cdef np.npy_intp noise_shape[MAX_DIMS]
        cdef int i
        if expanded is None:
            return bits
        for i in range(len(self.shape_)):
            shape[i], noise_shape[i] = self.shape_[i], self.noise_shape_[i]
        spread_bits(expanded.data, bits, len(self.shape_), shape, noise_shape)
        return expanded.data

    cdef void apply_bits(self, int kind, np.ndarray to, np.ndarray from_, const uint8_t *bits,
                         Buffer expanded) noexcept:
        """Apply bits of the noise shape to an array, with the memory of `new_element_bits`."""
        cdef Work work
        if self.scales_differ():
            scale_by(kind, to, from_, self.rates, self.scales, NULL,
                     self.element_bits(bits, expanded))
        else:
            set_up(&work, kind, SCALE, to, from_, self.own_noise_shape(), self.scale_)
            work.on.bits = <uint8_t *>bits
            use_on_arrays(&work, NULL)

    cdef apply_to(self, int kind, np.ndarray to, np.ndarray from_):
        cdef Work work
        cdef stream_key key
        cdef Buffer buffer
        if self.buffer is None and self.offset == 0 and self.rates is None:
            set_up(&work, kind, SCALE, to, from_, self.own_noise_shape(), self.scale_)
            if work.contiguous:
                derive_key(&key, &self.draw, self.rate_)
                use_on_arrays(&work, &key)
                return
        if self.buffer is None and self.draws_at_once():
            scale_by(kind, to, from_, self.rates, None, &self.draw, NULL)
            return
        buffer = self.stored_bits()
        self.apply_bits(kind, to, from_, buffer.data,
                        self.new_element_bits() if self.scales_differ() else None)

    cdef bint draws_at_once(self) noexcept:
        """Whether each element has a rate, a scale and a decision of its own."""
        return self.inverted and self.offset == 0 and self.noise_shape_ is self.shape_

    def count(self):
        """Count the set bits: the kept elements of the noise shape.

        Returns
        -------
        int

        Raises
        ------
        MemoryError
            If there is no memory for a buffer of up to 2 MiB.

        Examples
        --------
        >>> import fastdrop
        >>> fastdrop.draw_mask(16384, 0.2, seed=0).count()
        13066
        """
        cdef Buffer chunk = new_buffer(self.chunk_bytes())
        cdef const uint8_t *bits
        cdef uint64_t some, first = 0, total = 0
        while first < self.size_:
            some = min(self.size_ - first, <uint64_t>CHUNK)
            bits = self.chunk_bits(first, some, chunk)
            with nogil:
                total += count_ones(bits, (some + 7) // 8)
            first += some
        return total

    def unpack(self):
        """Expand the mask to an array of bools.

        Returns
        -------
        numpy.ndarray of bool
            A new array of the mask's `shape`; True where an element is kept.

        Raises
        ------
        MemoryError
            If there is no memory for the array.

        Examples
        --------
        >>> import fastdrop
        >>> mask = fastdrop.draw_mask((2, 3), 0.5, seed=0, noise_shape=(2, 1))
        >>> mask.unpack()
        array([[ True,  True,  True],
               [False, False, False]])
        """
        kept = self.kept_bits(0, self.size_).reshape(self.noise_shape_)
        if self.noise_shape_ == self.shape_:
            return kept
        return numpy.broadcast_to(kept, self.shape_).copy()

    cdef object kept_bits(self, uint64_t first, uint64_t count):
        """Some bits of the flattened noise shape, as a new array of bools."""
        cdef Buffer buffer = self.buffer
        cdef uint64_t above = 0
        cdef np.npy_intp size
        if buffer is None:
            buffer = new_buffer((count + 7) // 8)
            self.draw_bits_to(first, count, buffer.data)
        else:
            above = first
        size = (above + count + 7) // 8
        bits = array_over(buffer, UINT8, 1, &size, False)[above // 8:]
        kept = numpy.unpackbits(bits, count=above % 8 + count, bitorder="little")
        return kept[above % 8:].view(numpy.bool_)

    def __array__(self, dtype=None, copy=None):
        """Expand the mask to an array, for NumPy.

        Parameters
        ----------
        dtype : data-type, optional
            The dtype of the array. By default it is bool.
        copy : bool or None, optional
            None or True. The array never shares the mask's memory.

        Returns
        -------
        numpy.ndarray
            As `unpack`.

        Raises
        ------
        ValueError
            If copy is False.
        MemoryError
            If there is no memory for the array.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> np.asarray(fastdrop.draw_mask((2, 3), 0.5, seed=0, noise_shape=(2, 1)), dtype=int)
        array([[1, 1, 1],
               [0, 0, 0]])
        """
        if copy is not None and not copy:
            raise ValueError("`copy` must be None or True, since the bools of a mask are computed "
                             f"from its bits, got {short_repr(copy)}")
        kept = self.unpack()
        return kept if dtype is None else kept.astype(dtype, copy=False)

    def __len__(self):
        if not self.shape_:
            raise TypeError("a mask without dimensions has no len()")
        return self.shape_[0]

    def __iter__(self):
        if not self.shape_:
            raise TypeError("a mask without dimensions cannot be iterated over")
        return map(self.__getitem__, range(len(self)))

    def __contains__(self, value):
        return value in self.unpack()

    def __getitem__(self, key):
        cdef tuple entries = key if type(key) is tuple else (key,)
        cdef uint64_t first = 0
        cdef tuple noise = self.noise_shape_
        cdef tuple shape = self.shape_
        for entry in entries:
            if not (entry is None or entry is Ellipsis or type(entry) is slice
                    or is_integer(entry)):
                return self.unpack()[key]
        # Leave the dimensions that integers select from, as far as they come first.
        while entries and shape and is_integer(entries[0]):
            index = operator.index(entries[0])
            if not -shape[0] <= index < shape[0]:
                raise IndexError(f"index {short_repr(index)} is out of bounds for axis "
                                 f"{len(self.shape_) - len(shape)} with size {shape[0]}")
            if noise[0] > 1:
                first += index % shape[0] * size_of(noise[1:])
            entries, shape, noise = entries[1:], shape[1:], noise[1:]
        if entries and shape and type(entries[0]) is slice:
            # Leave the rows that the slice does not reach.
            rows = range(*entries[0].indices(shape[0]))
            reached = range(0)
            if rows:
                last = rows[len(rows) - 1]
                reached = range(min(rows[0], last), max(rows[0], last) + 1)
            entries = (slice(None, None, rows.step), *entries[1:])
            shape = (len(reached), *shape[1:])
            if noise[0] > 1:
                first += reached.start * size_of(noise[1:])
                noise = (len(reached), *noise[1:])
        kept = self.kept_bits(first, size_of(noise)).reshape(noise)
        kept = numpy.broadcast_to(kept, shape)[entries]
        return kept.copy() if isinstance(kept, np.ndarray) else kept

    def __bool__(self):
        if size_of(self.shape_) != 1:
            raise ValueError("the truth value of a mask is ambiguous unless it has one element; "
                             "`count` counts the elements that are kept")
        return bool(self.unpack().item())

    def apply(self, x, out=None):
        """Return x with dropped elements set to zero and kept elements scaled.

        ``mask.apply(x, out)`` equals ``fastdrop.dropout_grad(x, mask, out=out)``, which documents
        the details.

        Parameters
        ----------
        x : array_like
            An array of the mask's `shape`, of a supported dtype.
        out : numpy.ndarray, optional
            The array for the result: x itself, or one that shares no memory with it.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As `dropout_grad`; no array has changed then.

        Examples
        --------
        >>> import numpy as np, fastdrop
        >>> fastdrop.draw_mask(4, 0.5, seed=1).apply(np.ones(4))
        array([0., 2., 0., 0.])
        """
        return masked(self, x, out, "x")

    def apply_(self, x):
        """Set dropped elements of x to zero and scale kept elements, in place.

        ``mask.apply_(x)`` equals ``fastdrop.dropout_grad_(x, mask)``, which documents the details.

        Parameters
        ----------
        x : numpy.ndarray
            A writeable array of the mask's `shape`, of a supported dtype. Other threads must not
            read or change it during the call.

        Returns
        -------
        numpy.ndarray
            x.

        Raises
        ------
        TypeError, ValueError, MemoryError
            As `dropout_grad_`; x has not changed then.

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
        cdef Buffer a_chunk, b_chunk
        cdef uint64_t some, first = 0
        if not isinstance(other, Mask):
            # Arrays compare themselves with the mask's bools.
            return self.unpack() == other if is_compared(other) else NotImplemented
        b = other
        if (a.shape_, a.noise_shape_) != (b.shape_, b.noise_shape_):
            return False
        if a.rates is not None or b.rates is not None:
            if not (same_values(a.rates, b.rates) and a.inverted == b.inverted
                    and same_values(a.scales, b.scales)):
                return False
        elif a.rate_ != b.rate_:
            return False
        if a.scale_ != b.scale_:
            return False
        if a is b:
            return True
        # Stored bits are compared, not their seeds: a pickle may pair any seed with its bits.
        if a.buffer is None and b.buffer is None and (
                (a.seed, a.step, a.offset) == (b.seed, b.step, b.offset)):
            return True
        if a.buffer is not None and b.buffer is not None:
            return memcmp(a.buffer.data, b.buffer.data, a.packed_size()) == 0
        a_chunk = new_buffer(a.chunk_bytes())
        b_chunk = new_buffer(a.chunk_bytes())
        while first < a.size_:
            some = min(a.size_ - first, <uint64_t>CHUNK)
            if memcmp(a.chunk_bits(first, some, a_chunk), b.chunk_bits(first, some, b_chunk),
                      (some + 7) // 8) != 0:
                return False
            first += some
        return True

    def __ne__(self, other):
        if isinstance(other, Mask):
            return not self == other
        return self.unpack() != other if is_compared(other) else NotImplemented

    __hash__ = None

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        # Not at the top: that module imports this one.
        from fastdrop import _pickle
        scale = None if self.inverted else self.scale_ if self.scales is None else self.scales
        state = {"shape": self.shape_, "noise_shape": self.noise_shape_, "rate": self.rate_,
                 "scale": scale, "seed": self.seed, "step": self.step, "offset": self.offset,
                 "bits": None if self.buffer is None else self.bits.tobytes(),
                 "stream": STREAM_VERSION}
        return _pickle._mask, (state,)

    def __repr__(self):
        noise = "" if self.noise_shape_ == self.shape_ else f", noise_shape={self.noise_shape_}"
        origin = f", seed={self.seed}, step={self.step}" if self.drawn else ""
        rate = self.rate_ if self.rates is None else f"array of shape {(<object>self.rates).shape}"
        scale = "array" if self.scales_differ() else f"{self.scale_:g}"
        return (f"<fastdrop.Mask shape={self.shape_}{noise}, rate={rate}, "
                f"scale={scale}{origin}, {self.nbytes} bytes>")

    def _repr_html_(self):
        """The table that notebooks show."""
        # Not at the top: that module imports this one.
        from fastdrop import _notebook
        return _notebook.html_of(self)


cdef bint same_values(np.ndarray a, np.ndarray b):
    """Whether two arrays are equal, or both are None."""
    return a is b or (a is not None and b is not None and numpy.array_equal(a, b))


cdef bint is_compared(object value):
    """Whether a mask's elements, not the mask, are compared with a value that is no array."""
    return isinstance(value, (list, tuple, numbers.Number))


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
    """The checked arguments for a random mask."""

    cdef Mask new_mask(self, tuple shape):
        """A mask for arrays of a shape, with memory for its bits but no bits yet."""
        cdef Mask mask = Mask.__new__(Mask)
        mask.shape_ = shape
        mask.noise_shape_ = noise_shape_of(self.noise_entries, shape)
        if self.rates is None:
            mask.rate_ = self.rate
        else:
            check_fit(self.rates, mask.noise_shape_, "rate")
            mask.rate_ = mask.rates = self.rates
            mask.inverted = self.inverted
        mask.scale_ = self.scale
        mask.size_ = size_of(mask.noise_shape_)
        mask.drawn = True
        if self.stored:
            mask.buffer = new_buffer(mask.packed_size())
        return mask

    cdef void prepare(self, Mask mask, Work *work, stream_key *key) except *:
        """Give the work its bits and take the step. Afterwards nothing can fail."""
        if mask.buffer is not None:
            work.on.bits = mask.buffer.data
        elif not work.contiguous:
            # The elements are not in the order of the bits: all bits are drawn first.
            self.temporary = new_buffer(mask.packed_size())
            work.on.bits = self.temporary.data
        self.take_key(mask, key)

    cdef void take_key(self, Mask mask, stream_key *key) except *:
        """Take the stream's step. It is the last action that can fail."""
        mask.draw = self.draw
        take_step(self.stream, &mask.draw)
        derive_key(key, &mask.draw, self.rate)

    cdef drop_by_rates(self, Mask mask, int kind, np.ndarray to, np.ndarray from_):
        """Draw by an array of rates and use the mask, in place of `prepare` and `use_on_arrays`."""
        cdef stream_key key
        cdef Buffer bits = mask.buffer
        cdef Buffer expanded = None
        cdef bint at_once = mask.draws_at_once()
        if not at_once:
            expanded = mask.new_element_bits() if mask.scales_differ() else None
            bits = new_buffer(mask.packed_size()) if bits is None else bits
        self.take_key(mask, &key)
        if at_once:
            scale_by(kind, to, from_, mask.rates, None, &mask.draw,
                     NULL if bits is None else bits.data)
        else:
            mask.draw_bits_to(0, mask.size_, bits.data)
            mask.apply_bits(kind, to, from_, bits.data, expanded)


cdef Request request_of(object rate, object seed, object noise_shape, object scale,
                        object store_mask):
    """Check the arguments that all forward functions share.

    The checks may run a user's code, so callers read nothing of an array before them.
    """
    cdef Request request = Request.__new__(Request)
    request.rates = rates_of(rate)
    if request.rates is None:
        request.rate = rate_of(rate)
    request.inverted = request.rates is not None and scale is None
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
    """Draw a mask without applying it.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the arrays that the mask applies to.
    rate : float or numpy.ndarray
        As for `dropout`.
    seed : int, numpy.random.SeedSequence, Stream or None, optional
        As for `dropout`.
    noise_shape : tuple of int and None, optional
        As for `dropout`.
    scale : float, optional
        As for `dropout`.
    offset : int, optional
        The index of the first bit within a larger mask, in its flattened noise shape. Masks drawn
        with the same seed and step at different offsets are slices of that larger mask.
    store_mask : bool, optional
        As for `dropout`.

    Returns
    -------
    Mask

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described. A call that raises takes no step of a stream.
    MemoryError
        If there is no memory for the bits.
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
    mask.draw_bits_to(0, mask.size_, mask.buffer.data)
    return mask


def restored_mask(state):
    """Restore a pickled mask. Every field is checked as an argument is."""
    cdef Mask mask = Mask.__new__(Mask)
    if not isinstance(state, dict) or set(state) != {
        "shape", "noise_shape", "rate", "scale", "seed", "step", "offset", "bits", "stream"
    }:
        raise ValueError(f"`state` must be the dict that a mask pickles, got {short_repr(state)}")
    other = is_other_stream(state)
    if other and state["bits"] is None:
        raise other_stream(state)
    mask.shape_ = shape_of(state["shape"])
    mask.noise_shape_ = noise_shape_of(noise_entries_of(state["noise_shape"]), mask.shape_)
    mask.size_ = size_of(mask.noise_shape_)
    mask.set_rate(state["rate"])
    mask.inverted = mask.rates is not None and state["scale"] is None
    if mask.inverted:
        mask.scale_ = 1.0
    elif mask.rates is not None and isinstance(state["scale"], np.ndarray):
        mask.scale_ = 1.0
        mask.scales = factors_of(state["scale"], mask.noise_shape_, "scale")
    elif state["scale"] is None:
        raise TypeError("`scale` must be a finite number, got None")
    else:
        mask.scale_ = scale_of(state["scale"], 0.0)
    mask.offset = offset_of(state["offset"], mask.size_)
    mask.drawn = state["seed"] is not None
    if mask.drawn:
        if mask.rate_ is None:
            raise ValueError("`state` must have a rate where it has a seed, got None")
        stream = Stream(0)
        stream.state = {"seed": state["seed"], "step": state["step"]}
        if stream.step == 2**64:
            raise ValueError("`state` must have a step below 2**64, got 2**64")
        take_step(stream, &mask.draw)
    if other:
        # The stored bits are valid; this version would draw other bits from the seed.
        mask.drawn, mask.offset = False, 0
    bits = state["bits"]
    if bits is None:
        if not mask.drawn:
            raise ValueError("`state` must hold the bits of a mask, or a seed, a step and a rate")
        return mask
    if type(bits) is not bytes or <size_t>len(bits) != mask.packed_size():
        raise ValueError(f"`bits` must be {mask.packed_size()} bytes for the noise shape "
                         f"{mask.noise_shape_}, got {short_repr(bits)}")
    if mask.size_ % 8 and bits[len(bits) - 1] >> (mask.size_ % 8):
        raise ValueError("`bits` must have zeros above the last element's bit, got "
                         f"{bits[len(bits) - 1]:#x} in the last byte")
    mask.buffer = new_buffer(mask.packed_size())
    memcpy(mask.buffer.data, PyBytes_AS_STRING(bits), mask.packed_size())
    return mask


# ---- Using masks ----

cdef Mask mask_of(object mask, np.ndarray x, str name):
    """Check the argument `mask`, and that its shape is the array's."""
    cdef Mask checked
    if not isinstance(mask, Mask):
        raise TypeError(f"`mask` must be a fastdrop.Mask, got {short_repr(mask)}")
    checked = mask
    if checked.shape_ != (<object>x).shape:
        raise ValueError(
            f"`mask` must have the shape of `{name}`, {(<object>x).shape}, got {mask!r}")
    return checked


cdef masked(object mask, object x, object out, str name):
    """Apply the mask to x; return a new array or `out`."""
    cdef np.ndarray from_ = own_view(input_of(x, name))
    cdef int kind = kind_of(from_, name)
    cdef Mask checked = mask_of(mask, from_, name)
    cdef np.ndarray to = (
        numpy.empty_like(from_, subok=False) if out is None else output_of(out, from_, name))
    checked.apply_to(kind, to, from_)
    return to if out is None else out


cdef masked_(object mask, object x, str name):
    """Apply the mask to x in place; return x."""
    cdef np.ndarray array = inplace_of(x, name)
    cdef int kind = kind_of(array, name)
    mask_of(mask, array, name).apply_to(kind, array, array)
    return x


def dropout_grad(dy, mask, *, out=None):
    """Compute the gradient of `dropout` with respect to its input.

    A kept element of dx is ``dy * scale``; a dropped one is ``+0.0``, even where dy is NaN. This is
    the dropout of dy by a given mask.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to the output. It has the mask's shape, any strides, and the dtype
        float16, float32, float64 or bfloat16 (ml_dtypes).
    mask : Mask
        The mask that `dropout` returned. Its `shape` is dy's, even if its noise shape would
        broadcast to dy.
    out : numpy.ndarray, optional
        The array for dx, of dy's shape and dtype: dy itself, or an array that shares no memory with
        it. Other threads must not read or change it during the call.

    Returns
    -------
    dx : numpy.ndarray
        `out`, or a new array of dy's shape, dtype and memory order.

    Raises
    ------
    TypeError
        If dy has another dtype, or an argument is of the wrong type.
    ValueError
        If the shapes differ, or out is read-only, overlaps itself, or overlaps dy in part.
    MemoryError
        If there is no memory for dx, or for bits that are not stored.

    Notes
    -----
    A call that raises changes no array.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> y, mask = fastdrop.dropout(np.ones(6), 0.5, seed=1)
    >>> fastdrop.dropout_grad(np.arange(6.0), mask)
    array([ 0.,  2.,  0.,  0.,  0., 10.])
    """
    return masked(mask, dy, out, "dy")


def dropout_grad_(dy, mask):
    """Compute the gradient of `dropout` with respect to its input, in place.

    Parameters
    ----------
    dy : numpy.ndarray
        As for `dropout_grad`, writeable, and without elements that share memory. It becomes dx.
        Other threads must not read or change it during the call.
    mask : Mask
        The mask that `dropout` returned.

    Returns
    -------
    dy : numpy.ndarray
        The same array.

    Raises
    ------
    TypeError
        If dy is not an array or has another dtype, or mask is not a Mask.
    ValueError
        If the shapes differ, or dy is read-only or overlaps itself.
    MemoryError
        If there is no memory for bits that are not stored.

    Notes
    -----
    A call that raises does not change dy.

    Examples
    --------
    >>> import numpy as np, fastdrop
    >>> dy = np.arange(6.0)
    >>> fastdrop.dropout_grad_(dy, fastdrop.draw_mask(6, 0.5, seed=1))
    array([ 0.,  2.,  0.,  0.,  0., 10.])
    """
    return masked_(mask, dy, "dy")
