"""Copies the bits of a mask into the order of the elements, and back.

A window holds the bits of one piece of a plan, in the order of the piece's elements.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from numpy cimport npy_intp

from fastdrop._plan cimport (
    ARRAYS, MAX_DIMS, ONE_BIT, PIECE_BYTES, Plan, REVERSED, ROWS_JOINED, ROWS_REPEATED,
    ROWS_WIDENED, SLACK_BYTES, TILE, choose_run, inner_dim, outer_dim, parts, plan_dims,
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


cdef inline void append_row(BitWriter *writer, const Plan *plan, int64_t first,
                            int64_t count) noexcept nogil:
    cdef int some
    while count:
        some = <int>min(count, <int64_t>64)
        append_bits(writer, bits_at(plan, first, some), some)
        first += some
        count -= some


cdef void append_window(BitWriter *writer, const uint8_t *window, int64_t count) noexcept nogil:
    cdef uint64_t word = 0
    while count >= 64:
        memcpy(&word, window, 8)
        append_bits(writer, word, 64)
        window += 8
        count -= 64
    if count:
        memcpy(&word, window, (count + 7) // 8)
        append_bits(writer, word & low_bits(<int>count), <int>count)


cdef inline void append_same(BitWriter *writer, bint bit, int64_t count) noexcept nogil:
    cdef uint64_t word = -<uint64_t>bit
    while count >= 64:
        append_bits(writer, word, 64)
        count -= 64
    if count:
        append_bits(writer, word & low_bits(<int>count), <int>count)


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


cdef void repeat_row(uint8_t *window, const Plan *plan, int64_t first,
                     int64_t rows) noexcept nogil:
    """Repeat one row's bits: bit by bit until they fill whole bytes, then by doubling."""
    cdef BitWriter writer = writer_to(window)
    cdef int64_t some = min(rows, <int64_t>8)
    cdef int64_t there = some * plan.row // 8
    cdef int64_t bytes_ = (rows * plan.row + 7) // 8
    for _ in range(some):
        append_row(&writer, plan, first, plan.row)
    flush_bits(&writer)
    while rows > 8 and there < bytes_:
        some = min(there, bytes_ - there)
        memcpy(window + there, window, some)
        there += some


cdef void widen_bits(uint8_t *window, const Plan *plan, int64_t first, int64_t rows) noexcept nogil:
    """Repeat each bit for a whole row. For short rows it takes four bits at a time."""
    cdef BitWriter writer = writer_to(window)
    cdef int64_t stride = outer_dim(plan).bit_stride
    cdef int64_t row = plan.row
    cdef uint64_t widened[16]
    cdef uint64_t word
    cdef int bit, four, some
    if row <= 16:
        for four in range(16):
            widened[four] = 0
            for bit in range(4):
                if four >> bit & 1:
                    widened[four] |= low_bits(<int>row) << (bit * row)
    while rows:
        some = <int>min(rows, <int64_t>64)
        word = strided_bits(plan, first, stride, some)
        first += some * stride
        rows -= some
        if row <= 16:
            while some >= 4:
                append_bits(&writer, widened[word & 15], 4 * <int>row)
                word >>= 4
                some -= 4
        while some:
            append_same(&writer, word & 1, row)
            word >>= 1
            some -= 1
    flush_bits(&writer)


cdef void join_rows(uint8_t *window, const Plan *plan, int64_t first, int64_t rows) noexcept nogil:
    cdef BitWriter writer = writer_to(window)
    for _ in range(rows):
        append_row(&writer, plan, first, plan.row)
        first += outer_dim(plan).bit_stride
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


cdef inline void load_rows(uint64_t *words, const Plan *plan, int64_t first, int64_t begin,
                           int64_t end, int count) noexcept nogil:
    """Load the bits of up to 64 rows at positions begin .. end - 1 of a run; pad with zeros."""
    cdef int64_t stride = inner_dim(plan).bit_stride
    cdef int64_t fold_stride = plan.dims[plan.ndim - 3].bit_stride if plan.folds > 1 else 0
    cdef int64_t place = begin % plan.row
    cdef int64_t bit = first + begin // plan.row * fold_stride + place * stride
    cdef bint whole_bytes = count == 64 and (first | stride | fold_stride) & 7 == 0
    cdef int64_t i
    for i in range(end - begin):
        if whole_bytes:
            memcpy(&words[i], plan.bits + (bit >> 3), 8)
        else:
            words[i] = bits_at(plan, bit, count)
        bit += stride
        place += 1
        if place == plan.row:
            place = 0
            bit += fold_stride - plan.row * stride
    for i in range(end - begin, TILE):
        words[i] = 0


cdef void fill_window(uint8_t *window, const Plan *plan, int64_t first, int64_t rows,
                      int64_t count) noexcept nogil:
    """Copy the bits of a piece to a window. `first` is the bit of its first element."""
    if plan.bit_layout == REVERSED:
        reverse_row(window, plan, first, count)
    elif plan.bit_layout == ROWS_REPEATED:
        repeat_row(window, plan, first, rows)
    elif plan.bit_layout == ROWS_WIDENED:
        widen_bits(window, plan, first, rows)
    elif plan.bit_layout == ROWS_JOINED:
        join_rows(window, plan, first, rows)
    else:
        gather_rows(window, plan, first, rows, count)


cdef void fill_transposed(uint64_t *window, const Plan *plan, int64_t first, int64_t rows,
                          int64_t count, bint close_gaps) noexcept nogil:
    """Transpose adjacent bits of several rows to a window: each row in whole words, or packed."""
    cdef uint64_t words[TILE]
    cdef BitWriter writer
    cdef int64_t row_words = parts(count, TILE)
    cdef int64_t i, j
    for i in range(row_words):
        load_rows(words, plan, first, i * TILE, min(i * TILE + TILE, count), <int>rows)
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
                  int64_t count) noexcept nogil:
    """Copy bits from an index of the window to a row whose first bit is `first`."""
    cdef int64_t stride = inner_dim(plan).bit_stride
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


cdef void put_window(const Plan *plan, const uint8_t *window, int64_t first, int64_t rows,
                     int64_t count) noexcept nogil:
    """Copy a window of ReLU's bits to where `fill_window` read the piece's bits."""
    cdef int64_t i
    for i in range(rows):
        put_row(plan, window, i * count, first + i * outer_dim(plan).bit_stride, count)


cdef void put_transposed(const Plan *plan, const uint64_t *window, int64_t first, int64_t rows,
                         int64_t count, bint closed_gaps) noexcept nogil:
    """Copy a window of ReLU's bits to where `fill_transposed` read them."""
    cdef int64_t stride = inner_dim(plan).bit_stride
    cdef int64_t fold_stride = plan.dims[plan.ndim - 3].bit_stride if plan.folds > 1 else 0
    cdef int64_t row_bits = count if closed_gaps else parts(count, TILE) * TILE
    cdef uint64_t words[TILE]
    cdef int64_t i, j, some, place
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
                     first + place // plan.row * fold_stride + place % plan.row * stride, words[j],
                     <int>rows)


# ---- Whole masks ----

cdef void spread_runs(const Plan *plan, uint8_t *to) noexcept nogil:
    """Append the bits of all runs, in C order."""
    cdef BitWriter writer = writer_to(to)
    cdef uint8_t window[PIECE_BYTES + SLACK_BYTES]
    cdef int64_t index[MAX_DIMS]
    cdef int64_t bit = plan.start.bit
    cdef int64_t row, rows
    cdef int i
    for i in range(plan.ndim):
        index[i] = 0
    while True:
        row = 0
        while row < plan.rows:
            rows = min(plan.rows - row, plan.piece_rows)
            if plan.bit_layout == ROWS_REPEATED:
                repeat_row(window, plan, bit, rows)
                append_window(&writer, window, rows * plan.row)
            elif plan.bit_layout == ROWS_WIDENED:
                widen_bits(window, plan, bit + row * outer_dim(plan).bit_stride, rows)
                append_window(&writer, window, rows * plan.row)
            elif plan.bit_layout == ROWS_JOINED:
                join_rows(window, plan, bit + row * outer_dim(plan).bit_stride, rows)
                append_window(&writer, window, rows * plan.row)
            elif plan.bit_layout == ONE_BIT:
                append_same(&writer, bit_at(plan.bits, bit), plan.row)
            else:
                append_row(&writer, plan, bit + row * plan.row, rows * plan.row)
            row += rows
        i = plan.outer - 1
        while i >= 0:
            bit += plan.dims[i].bit_stride
            index[i] += 1
            if index[i] < plan.dims[i].size:
                break
            bit -= plan.dims[i].size * plan.dims[i].bit_stride
            index[i] = 0
            i -= 1
        if i < 0:
            break
    flush_bits(&writer)


cdef void spread_bits(uint8_t *to, const uint8_t *bits, tuple shape, tuple noise_shape):
    """Broadcast a mask from its noise shape to a bit for each element of the shape."""
    cdef Plan plan
    cdef npy_intp sizes[MAX_DIMS]
    cdef npy_intp strides[MAX_DIMS]
    cdef npy_intp noise[MAX_DIMS]
    cdef const npy_intp *arrays[ARRAYS]
    cdef int ndim = len(shape)
    cdef int64_t size = 1
    cdef int i
    for i in range(ndim - 1, -1, -1):
        sizes[i], strides[i], noise[i] = shape[i], size, noise_shape[i]
        size *= sizes[i]
    if size == 0:
        return
    memset(&plan, 0, sizeof(plan))
    plan.itemsize = plan.columns = 1
    plan.bits = bits
    # Strides of elements of one byte: only their order matters.
    arrays[0] = arrays[1] = strides
    arrays[2] = NULL
    plan_dims(&plan, ndim, sizes, arrays, noise)
    with nogil:
        choose_run(&plan, True)
        spread_runs(&plan, to)
