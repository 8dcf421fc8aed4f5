"""Copies the bits of a mask into the order of the elements, and back.

A window holds the bits of one piece of a plan, in the order of the piece's elements.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from numpy cimport npy_intp

from fastdrop._plan cimport (
    ARRAYS, Dim, EXPANDED, MAX_DIMS, Place, Plan, REVERSED, TILE, Units, WORD, set_units,
    inner_dim, outer_dim, parts, plan_dims,
)

cdef extern from *:
    """
    /* Two threads may set bits of one byte, where their pieces meet. */
    #define set_bits(byte, bits) (void)__atomic_fetch_or(byte, bits, __ATOMIC_RELAXED)
    """
    uint64_t __builtin_bswap64(uint64_t word) noexcept nogil
    void set_bits(uint8_t *byte, uint8_t bits) noexcept nogil

cdef struct BitWriter:
    uint64_t pending
    int count                       # number of pending bits, below 64
    uint8_t *to


cdef inline BitWriter writer_to(uint8_t *to) noexcept nogil:
    cdef BitWriter writer
    writer.pending, writer.count, writer.to = 0, 0, to
    return writer


cdef inline void append_bits(BitWriter *writer, uint64_t bits, int count) noexcept nogil:
    """Append up to 64 bits. The bits above `count` are zero."""
    writer.pending |= bits << writer.count
    if writer.count + count >= 64:
        memcpy(writer.to, &writer.pending, 8)
        writer.to += 8
        writer.pending = bits >> (64 - writer.count) if writer.count else 0
        writer.count += count - 64
    else:
        writer.count += count


cdef inline void flush_bits(BitWriter *writer) noexcept nogil:
    memcpy(writer.to, &writer.pending, (writer.count + 7) // 8)


cdef inline uint64_t low_bits(int count) noexcept nogil:
    return ~<uint64_t>0 >> (64 - count)


cdef inline uint64_t bits_at(const Plan *plan, int64_t index, int count) noexcept nogil:
    """Load 1 to 64 bits from an index on. Read no byte beyond the mask."""
    cdef const uint8_t *from_ = plan.bits + (index >> 3)
    cdef int shift = index & 7
    cdef uint64_t word = 0
    cdef uint64_t more = 0
    if (index >> 3) + 9 <= plan.bit_bytes:
        memcpy(&word, from_, 8)
        more = from_[8]
    else:
        memcpy(&word, from_, min(plan.bit_bytes - (index >> 3), <int64_t>8))
    # Two shifts, since a shift by 64 is undefined.
    return (word >> shift | more << 1 << (63 - shift)) & low_bits(count)


cdef inline uint64_t strided_bits(const Plan *plan, int64_t first, int64_t stride,
                                  int count) noexcept nogil:
    cdef uint64_t word = 0
    cdef int i
    if stride == 1:
        return bits_at(plan, first, count)
    for i in range(count):
        word |= <uint64_t>bit_at(plan.bits, first + i * stride) << i
    return word


cdef void gather_rows(uint8_t *window, const Plan *plan, int64_t first, int64_t rows,
                      int64_t count) noexcept nogil:
    """Gather strided bits of several rows, one by one."""
    cdef BitWriter writer = writer_to(window)
    cdef int64_t stride = inner_dim(plan).bit_stride
    cdef int64_t i
    cdef int some
    for _ in range(rows):
        i = 0
        while i < count:
            some = <int>min(count - i, <int64_t>64)
            append_bits(&writer, strided_bits(plan, first + i * stride, stride, some), some)
            i += some
        if rows > 1:
            first += outer_dim(plan).bit_stride
    flush_bits(&writer)


cdef inline uint64_t reversed_bits(uint64_t word) noexcept nogil:
    cdef uint64_t every_other = ~<uint64_t>0 // 3
    cdef uint64_t every_pair = ~<uint64_t>0 // 5
    cdef uint64_t every_four = ~<uint64_t>0 // 17
    word = (word >> 1 & every_other) | (word & every_other) << 1
    word = (word >> 2 & every_pair) | (word & every_pair) << 2
    word = (word >> 4 & every_four) | (word & every_four) << 4
    return __builtin_bswap64(word)


cdef void reverse_row(uint8_t *window, const Plan *plan, int64_t last,
                      int64_t count) noexcept nogil:
    """Copy bits backwards, from `last` down."""
    cdef BitWriter writer = writer_to(window)
    cdef int some
    while count:
        some = <int>min(count, <int64_t>64)
        append_bits(&writer, reversed_bits(bits_at(plan, last - some + 1, some)) >> (64 - some),
                    some)
        last -= some
        count -= some
    flush_bits(&writer)


cdef inline uint64_t expanded(const Units *units, uint64_t bits) noexcept nogil:
    """A group's bits in the order of its elements."""
    cdef uint64_t word = 0
    cdef int i
    if units.in_order:
        return bits
    for i in range(units.parts):
        word |= units.expanded[i][bits & 15]
        bits >>= 4
    return word


cdef inline void append_unit(BitWriter *writer, const Plan *plan, int64_t first,
                             int64_t count) noexcept nogil:
    """Append the expanded bits of one unit `count` times."""
    cdef const Units *units = &plan.units
    cdef int some = units.group * units.size
    cdef uint64_t word
    if units.span == 1:
        word = -<uint64_t>bit_at(plan.bits, first) & low_bits(some)
    else:
        word = units.repeats * expanded(units, bits_at(plan, first + units.lowest, units.span))
    count *= units.size
    while count >= some:
        append_bits(writer, word, some)
        count -= some
    if count:
        append_bits(writer, word & low_bits(<int>count), <int>count)


cdef inline uint64_t units_bits(const Plan *plan, int64_t first, int count) noexcept nogil:
    """Load the bits of up to a group of units, below any other bits."""
    cdef int64_t backwards = min(plan.units.stride, <int64_t>0)
    cdef uint64_t bits = bits_at(plan, first + plan.units.lowest + (count - 1) * backwards, WORD)
    return bits << (plan.units.group - count) * -backwards


cdef inline void append_units(BitWriter *writer, const Plan *plan, int64_t first,
                              int64_t count) noexcept nogil:
    """Append the expanded bits of units. `first` is the bit of the first unit's first element."""
    cdef const Units *units = &plan.units
    cdef int64_t step = units.group * units.stride
    cdef int some = units.group * units.size
    cdef int left = 0
    cdef uint64_t bits = 0
    while count >= units.group:
        if left == 0:
            bits, left = units_bits(plan, first, units.group), units.groups
        append_bits(writer, expanded(units, bits) & low_bits(some), some)
        bits >>= step & (WORD - 1)
        first += step
        count -= units.group
        left -= 1
    if count:
        some = <int>count * units.size
        bits = units_bits(plan, first, <int>count)
        append_bits(writer, expanded(units, bits) & low_bits(some), some)


cdef void expand_units(uint8_t *window, const Plan *plan, int64_t bit, int64_t unit,
                       int64_t count) noexcept nogil:
    """Expand the bits of `count` units of a run, from a unit on. `bit` is the run's first bit."""
    cdef BitWriter writer = writer_to(window)
    cdef const Dim *around = &plan.dims[plan.units.around]
    cdef int64_t index[MAX_DIMS + 1]
    cdef int64_t rest = unit // around.size
    cdef int64_t some
    cdef int i
    unit %= around.size
    for i in range(plan.units.around - 1, plan.ndim - 1, -1):
        index[i] = rest % plan.dims[i].size
        rest //= plan.dims[i].size
        bit += index[i] * plan.dims[i].bit_stride
    while True:
        some = min(around.size - unit, count)
        if around.bit_stride:
            append_units(&writer, plan, bit + unit * around.bit_stride, some)
        else:
            append_unit(&writer, plan, bit, some)
        count -= some
        if count == 0:
            break
        unit = 0
        i = plan.units.around - 1
        while True:
            bit += plan.dims[i].bit_stride
            index[i] += 1
            if index[i] < plan.dims[i].size:
                break
            bit -= plan.dims[i].size * plan.dims[i].bit_stride
            index[i] = 0
            i -= 1
    flush_bits(&writer)


cdef void expand_run(uint8_t *window, const Plan *plan, int64_t bit, int64_t first,
                     int64_t count) noexcept nogil:
    """Expand the bits of `count` elements of a run, from element `first` on; copy what repeats."""
    cdef int64_t some = min(plan.units.period, count) if plan.units.period else count
    cdef int64_t there = some // 8
    cdef int64_t bytes_ = parts(count, 8)
    expand_units(window, plan, bit, first // plan.units.size, some // plan.units.size)
    while some < count and there < bytes_:
        some = min(there, bytes_ - there)
        memcpy(window + there, window, some)
        there += some


cdef void expand_rows(uint8_t *window, const Plan *plan, int64_t bit,
                      int64_t rows) noexcept nogil:
    """Expand the bits of rows, each of them a unit."""
    cdef BitWriter writer = writer_to(window)
    if plan.units.stride:
        append_units(&writer, plan, bit, rows)
    else:
        append_unit(&writer, plan, bit, rows)
    flush_bits(&writer)


cdef inline void transpose_step(uint64_t *to, const uint64_t *from_, int width,
                                uint64_t mask) noexcept nogil:
    cdef uint64_t upper, lower, moved
    cdef int i
    for i in range(32):
        lower, upper = from_[i], from_[i + 32]
        moved = (lower >> width ^ upper) & mask
        to[2 * i] = lower ^ moved << width
        to[2 * i + 1] = upper ^ moved


cdef void transpose(uint64_t *words) noexcept nogil:
    """Bit j of word i becomes bit i of word j, for 64 words.

    Blocks of 32, 16, ... bits are swapped across the diagonal (Warren, Hacker's Delight, 7-3). Each
    step pairs words 32 apart and rotates the bits of the words' indices by one. So all six steps
    have the same access pattern, which vectorizes, and the last one leaves the words in order.
    """
    cdef uint64_t other[TILE]
    cdef uint64_t mask = ~<uint64_t>0 >> 32
    cdef int width = 32
    while width:
        transpose_step(other, words, width, mask)
        width >>= 1
        mask ^= mask << width
        transpose_step(words, other, width, mask)
        width >>= 1
        mask ^= mask << width


cdef inline int64_t bit_of_place(const Plan *plan, int64_t place) noexcept nogil:
    """The bit of an element of a transposed row, counted from the row's first bit."""
    return plan.places[place] if plan.row <= WORD else place * inner_dim(plan).bit_stride


cdef inline void load_rows(uint64_t *words, const Plan *plan, int64_t first, int64_t begin,
                           int64_t end, int count) noexcept nogil:
    """Load the bits of up to 64 rows at positions begin .. end - 1 of a run."""
    cdef int64_t stride = inner_dim(plan).bit_stride
    cdef int64_t fold_stride = plan.dims[plan.ndim - 3].bit_stride if plan.folds > 1 else 0
    cdef int64_t place = begin % plan.row
    cdef int64_t bit
    cdef bint whole_bytes = (
        plan.row > WORD and count == 64 and (first | stride | fold_stride) & 7 == 0)
    cdef int64_t i
    first += begin // plan.row * fold_stride
    for i in range(end - begin):
        bit = first + bit_of_place(plan, place)
        if whole_bytes:
            memcpy(&words[i], plan.bits + (bit >> 3), 8)
        else:
            words[i] = bits_at(plan, bit, count)
        place += 1
        if place == plan.row:
            place = 0
            first += fold_stride


cdef void fill_window(uint8_t *window, const Plan *plan, const Place *place, int64_t first,
                      int64_t rows, int64_t count) noexcept nogil:
    """Copy the bits of a piece to a window. The piece begins at element `first` of its run."""
    if plan.bit_layout == REVERSED:
        reverse_row(window, plan, place.bit, count)
    elif plan.bit_layout != EXPANDED:
        gather_rows(window, plan, place.bit, rows, count)
    elif plan.units.around < plan.ndim:
        expand_rows(window, plan, place.bit, rows)
    else:
        expand_run(window, plan, place.bit, first, count)


cdef void fill_transposed(uint64_t *window, const Plan *plan, int64_t first, int64_t rows,
                          int64_t count, bint close_gaps) noexcept nogil:
    """Transpose adjacent bits of several rows to a window: each row in whole words, or packed."""
    cdef uint64_t words[TILE]
    cdef BitWriter writer
    cdef int64_t row_words = parts(count, TILE)
    cdef int64_t i, j
    memset(words, 0, sizeof(words))
    if close_gaps and count <= TILE:
        # Each tile of rows takes as many words as a row has elements.
        for i in range(parts(rows, TILE)):
            load_rows(words + i * count, plan, first + i * TILE, 0, count,
                      <int>min(rows - i * TILE, <int64_t>TILE))
        transpose(words)
        writer = writer_to(<uint8_t *>window)
        for i in range(parts(rows, TILE)):
            for j in range(min(rows - i * TILE, <int64_t>TILE)):
                append_bits(&writer, words[j] >> i * count & low_bits(<int>count), <int>count)
        flush_bits(&writer)
        return
    for i in range(row_words):
        load_rows(words, plan, first, i * TILE, min(i * TILE + TILE, count), <int>rows)
        for j in range(count - i * TILE, TILE):
            words[j] = 0
        transpose(words)
        for j in range(rows):
            window[j * row_words + i] = words[j]
    if close_gaps and count % TILE:
        # In place: the writer stays behind the words that are still to be read.
        writer = writer_to(<uint8_t *>window)
        for j in range(rows):
            for i in range(row_words):
                append_bits(&writer, window[j * row_words + i],
                            <int>min(count - i * TILE, <int64_t>TILE))
        flush_bits(&writer)


# ---- From a window to a mask of zeros ----

cdef inline uint64_t window_bits(const uint8_t *window, int64_t index, int count) noexcept nogil:
    """Load 1 to 64 bits. Read nine bytes."""
    cdef int shift = index & 7
    cdef uint64_t word
    memcpy(&word, window + (index >> 3), 8)
    return (word >> shift | <uint64_t>window[(index >> 3) + 8] << 1 << (63 - shift)) \
        & low_bits(count)


cdef void put_bits(uint8_t *bits, int64_t first, uint64_t word, int count) noexcept nogil:
    """Set 1 to 64 bits from an index on. Other threads may set other bits of the same bytes."""
    cdef uint8_t *to = bits + (first >> 3)
    cdef int shift = first & 7
    if shift:
        set_bits(to, <uint8_t>(word << shift))
        to += 1
        count -= 8 - shift
        word >>= 8 - shift
    if count > 0:
        memcpy(to, &word, count >> 3)
        if count & 7:
            set_bits(to + (count >> 3), <uint8_t>(word >> (count & ~7)))


cdef void put_row(const Plan *plan, const uint8_t *window, int64_t index, int64_t first,
                  int64_t stride, int64_t count) noexcept nogil:
    """Copy bits from an index of the window to a row whose first bit is `first`."""
    cdef uint64_t word
    cdef int some
    if stride == 1 and first & 7:
        # Up to a whole byte.
        some = <int>min(count, 8 - (first & 7))
        put_bits(plan.relu_bits, first, window_bits(window, index, some), some)
        index += some
        first += some
        count -= some
    while count:
        some = <int>min(count, <int64_t>64)
        word = window_bits(window, index, some)
        index += some
        count -= some
        if stride == 1:
            put_bits(plan.relu_bits, first, word, some)
        elif stride == -1:
            put_bits(plan.relu_bits, first - some + 1, reversed_bits(word) >> (64 - some), some)
        else:
            put_scattered(plan.relu_bits, first, stride, word)
        first += some * stride


cdef void put_scattered(uint8_t *bits, int64_t first, int64_t stride,
                        uint64_t word) noexcept nogil:
    while word:
        if word & 1:
            set_bits(bits + (first >> 3), <uint8_t>(1 << (first & 7)))
        first += stride
        word >>= 1


cdef void put_run(const Plan *plan, const uint8_t *window, int64_t index, int64_t bit,
                  int64_t first, int64_t count) noexcept nogil:
    """Copy bits to merged dimensions, from element `first` of the run on."""
    cdef int64_t stride = plan.dims[plan.end - 1].bit_stride
    cdef int64_t size = plan.dims[plan.end - 1].size
    cdef int64_t row, to, some
    cdef int i, last = plan.end - 2
    while last >= plan.ndim and plan.dims[last].bit_stride == size * stride:
        size *= plan.dims[last].size
        last -= 1
    while count:
        row = first // size
        some = min(size - first % size, count)
        to = bit + first % size * stride
        for i in range(last, plan.ndim - 1, -1):
            to += row % plan.dims[i].size * plan.dims[i].bit_stride
            row //= plan.dims[i].size
        put_row(plan, window, index, to, stride, some)
        index += some
        first += some
        count -= some


cdef void put_window(const Plan *plan, const uint8_t *window, const Place *place, int64_t first,
                     int64_t rows, int64_t count) noexcept nogil:
    """Copy a window of ReLU's bits to where `fill_window` read the piece's bits."""
    cdef int64_t i, bit
    for i in range(rows):
        bit = place.bit + i * outer_dim(plan).bit_stride
        if plan.bit_layout == EXPANDED:
            put_run(plan, window, i * count, bit, first, count)
        else:
            put_row(plan, window, i * count, bit, inner_dim(plan).bit_stride, count)


cdef void put_transposed(const Plan *plan, const uint64_t *window, int64_t first, int64_t rows,
                         int64_t count, bint closed_gaps) noexcept nogil:
    """Copy a window of ReLU's bits to where `fill_transposed` read them."""
    cdef int64_t fold_stride = plan.dims[plan.ndim - 3].bit_stride if plan.folds > 1 else 0
    cdef int64_t row_bits = count if closed_gaps else parts(count, TILE) * TILE
    cdef uint64_t words[TILE]
    cdef int64_t i, j, some, place
    while rows > TILE:
        put_transposed(plan, window, first, TILE, count, closed_gaps)
        window += count  # 64 narrow rows
        first += TILE
        rows -= TILE
    for i in range(parts(count, TILE)):
        some = min(count - i * TILE, <int64_t>TILE)
        for j in range(rows):
            words[j] = window_bits(<const uint8_t *>window, j * row_bits + i * TILE, <int>some)
        for j in range(rows, TILE):
            words[j] = 0
        transpose(words)
        for j in range(some):
            place = i * TILE + j
            put_bits(plan.relu_bits,
                     first + place // plan.row * fold_stride
                     + bit_of_place(plan, place % plan.row), words[j], <int>rows)


# ---- Whole masks ----

cdef void spread_bits(uint8_t *to, const uint8_t *bits, int ndim, const npy_intp *shape,
                      const npy_intp *noise_shape) noexcept nogil:
    """Broadcast a mask from its noise shape to a bit for each element of the shape."""
    cdef Plan plan
    cdef npy_intp strides[MAX_DIMS]
    cdef const npy_intp *arrays[ARRAYS]
    cdef int64_t size = 1
    cdef int i
    for i in range(ndim - 1, -1, -1):
        strides[i] = size
        size *= shape[i]
    if size == 0:
        return
    memset(&plan, 0, sizeof(plan))
    plan.itemsize = plan.columns = 1
    plan.bits = bits
    # Strides of elements of one byte: only their order matters.
    arrays[0] = arrays[1] = strides
    arrays[2] = NULL
    plan_dims(&plan, ndim, shape, arrays, noise_shape)
    set_units(&plan, 0, True)
    fill_window(to, &plan, &plan.start, 0, 1, size)
