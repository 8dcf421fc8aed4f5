"""Owns the way from arrays of any strides to kernels that see runs of contiguous elements.

An array is walked in the order of its memory, not of its indices: each dimension carries a stride
in memory and a stride in the mask's bits (zero where the mask is broadcast). Dimensions that
continue each other are joined. A run is what is left innermost, or a few short rows of it; its
elements are used where they lie if they have no gaps, else gathered and scattered; and its bits,
by their stride, are

    +1      used where they lie
    0       one for all
    -1      reversed into a window
    other   transposed into windows, 64 runs at a time, if another dimension has the stride +1 or
            -1 (Fortran order), else gathered one by one

or, for rows, put together in a window: the same bits again for each row, or each bit for a row.
Runs are cut into pieces that fit the first cache, and the pieces are shared among threads.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport llabs
from libc.string cimport memcpy

cimport numpy as np

from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    ALL_KEPT, BLOCK, KIND_F32, KIND_F64, KIND_W16, KIND_W32, KIND_W64, SCALE, operands, stream_key,
)
from fastdrop._threads cimport run, thread_count

np.import_array()

cdef extern from "numpy/arrayobject.h":
    bint PyArray_ISALIGNED(np.ndarray array)

cdef extern from *:
    uint64_t __builtin_bswap64(uint64_t word) noexcept nogil

cdef enum:
    MAX_DIMS = 64                   # NumPy's own limit, 32 before NumPy 2
    PIECE = 16384                   # elements applied at a time
    PIECE_BYTES = 2048              # and their bits
    GATHERED = 2048                 # elements gathered at a time at most
    GATHERED_BYTES = 16384          # of memory between the first and the last, to stay in the cache
    LEAST_GATHERED = 128            # and at least
    TILE = 64                       # runs whose bits are transposed at once
    TILE_ROW = 8192                 # and elements of each
    TILE_WORDS = 128                # and words of bits
    PARALLEL_SIZE = 1 << 18         # from here on, threads gain more than waking them costs
    LONG_ROW = 2048                 # bits from which a repeated row is cheaper applied as it lies
    LONG_SPREAD = 1024              # elements from which a bit is cheaper applied as one run
    SHORT_ROW = 64                  # elements up to which several rows are better taken together
    FEW_RUNS = 4                    # below, bits are gathered one by one

cdef enum Bits:
    AS_THEY_LIE, ONE, REVERSED, GATHERED_ONE_BY_ONE, ROWS_AGAIN, ROWS_WIDENED, ROWS_TOGETHER,
    TRANSPOSED

cdef struct Dim:
    int64_t size
    int64_t to_stride               # in bytes
    int64_t from_stride             # in bytes
    int64_t bit_stride              # in bits

cdef struct Plan:
    int kind
    int itemsize
    int ndim
    Dim dims[MAX_DIMS]              # outermost first
    char *to
    const char *from_
    const uint8_t *bits
    int64_t bit
    int64_t bit_bytes               # of the whole mask
    double scale
    Bits how
    bint contiguous                 # the elements of a row
    bint continuing                 # one row after the other
    int outer                       # how many dims are walked outside of the run
    int64_t rows                    # of a run; 1 for one row
    int64_t row                     # elements of each
    int64_t folds                   # runs that continue each other where they are transposed
    int64_t piece_folds
    int64_t piece_rows
    int64_t piece_row               # elements; less than a row only where a piece has one row
    int64_t pieces                  # in a run


# ---- Drawing ----

cdef struct DrawTask:
    const stream_key *key
    uint64_t first
    uint64_t size
    uint8_t *bits
    # Of draw_apply only:
    int kind
    char *to
    const char *from_
    int itemsize
    double scale


cdef void draw_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef DrawTask *task = <DrawTask *>context
    cdef uint64_t first = <uint64_t>begin * BLOCK
    cdef uint64_t size = min(<uint64_t>end * BLOCK, task.size) - first
    kernels.draw(task.key, task.first + first, size, task.bits + first // 8)


cdef void draw_apply_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef DrawTask *task = <DrawTask *>context
    cdef uint64_t first = <uint64_t>begin * BLOCK
    cdef uint64_t size = min(<uint64_t>end * BLOCK, task.size) - first
    cdef operands on
    on.kind, on.use, on.size, on.scale = task.kind, SCALE, size, task.scale
    on.to = task.to + first * task.itemsize
    on.from_ = task.from_ + first * task.itemsize
    on.bits = task.bits + first // 8 if task.bits else NULL
    on.bit = 0
    on.streaming = False
    kernels.use(task.key, task.first + first, &on)


cdef int64_t grains(int64_t items, int64_t size) noexcept nogil:
    """How many items a thread takes at a time: a few helpings each, so that none is waited for."""
    cdef int64_t helpings = 4 * <int64_t>thread_count()
    if size < PARALLEL_SIZE:
        return items
    return (items + helpings - 1) // helpings


cdef void draw_bits(const stream_key *key, uint64_t first, uint64_t size,
                    uint8_t *bits) noexcept nogil:
    """The mask of elements first .. first + size - 1."""
    cdef DrawTask task
    cdef int64_t blocks = (size + BLOCK - 1) // BLOCK
    if size == 0:
        return
    task.key, task.first, task.size, task.bits = key, first, size, bits
    # Drawing touches little memory: it takes eight times the elements to be worth a thread.
    run(draw_blocks, &task, blocks, grains(blocks, size // 8))


cdef int word_kind(int kind) noexcept nogil:
    """The kind that keeps elements of this one as they are."""
    if kind == KIND_F64:
        return KIND_W64
    return KIND_W32 if kind == KIND_F32 else KIND_W16


cdef int scaling_kind(int kind, double scale) noexcept nogil:
    """A scale of one keeps elements bit for bit, a signalling NaN too."""
    return word_kind(kind) if scale == 1.0 else kind


cdef bint is_plain(np.ndarray array):
    """Whether the elements lie in C order without gaps, where the CPU can load them."""
    return np.PyArray_IS_C_CONTIGUOUS(array) and PyArray_ISALIGNED(array)


cdef bint is_straight(np.ndarray to, np.ndarray from_, tuple noise_shape):
    """Whether the mask's bits and both arrays' elements lie in the same order without gaps."""
    return is_plain(to) and is_plain(from_) and noise_shape == (<object>to).shape


cdef void draw_apply_flat(int kind, int itemsize, const stream_key *key, uint64_t size, void *to,
                          const void *from_, uint8_t *bits, double scale) noexcept nogil:
    """Draws and applies in one pass; bits is NULL where they are not wanted."""
    cdef DrawTask task
    cdef int64_t blocks = (size + BLOCK - 1) // BLOCK
    task.key, task.first, task.size, task.itemsize = key, 0, size, itemsize
    task.bits, task.scale, task.kind = bits, scale, scaling_kind(kind, scale)
    task.to, task.from_ = <char *>to, <const char *>from_
    if blocks:
        run(draw_apply_blocks, &task, blocks, grains(blocks, size))


cdef void draw_apply_straight(int kind, const stream_key *key, np.ndarray to, np.ndarray from_,
                              uint8_t *bits, double scale):
    """The same for arrays that are straight."""
    cdef uint64_t size = np.PyArray_SIZE(to)
    cdef int itemsize = np.PyArray_ITEMSIZE(to)
    cdef void *to_data = np.PyArray_DATA(to)
    cdef const void *from_data = np.PyArray_DATA(from_)
    if size <= BLOCK:  # releasing the GIL costs more than a small call may
        draw_apply_flat(kind, itemsize, key, size, to_data, from_data, bits, scale)
    else:
        with nogil:
            draw_apply_flat(kind, itemsize, key, size, to_data, from_data, bits, scale)


# ---- Planning ----

cdef void sort_by_stride(Dim *dims, int ndim) noexcept nogil:
    """Largest stride first, so that the walk follows memory; equal ones stay in order."""
    cdef int i, j
    cdef Dim dim
    for i in range(1, ndim):
        dim = dims[i]
        j = i
        while j > 0 and dims[j - 1].to_stride < dim.to_stride:
            dims[j] = dims[j - 1]
            j -= 1
        dims[j] = dim


cdef bint continues(const Dim *outer, const Dim *inner, bint with_bits) noexcept nogil:
    """Whether stepping the outer dimension goes on where the inner one ends."""
    return (
        outer.to_stride == inner.to_stride * inner.size
        and outer.from_stride == inner.from_stride * inner.size
        and (not with_bits or outer.bit_stride == inner.bit_stride * inner.size)
    )


cdef void join(Plan *plan) noexcept nogil:
    cdef int i, last = 0
    cdef Dim *dims = plan.dims
    for i in range(1, plan.ndim):
        if continues(&dims[last], &dims[i], True):
            dims[i].size *= dims[last].size
            dims[last] = dims[i]
        else:
            last += 1
            dims[last] = dims[i]
    plan.ndim = last + 1


cdef inline Dim *outer_dim(const Plan *plan) noexcept nogil:
    """The dimension around the innermost one; that itself where there is no other."""
    return <Dim *>&plan.dims[max(plan.ndim - 2, 0)]


cdef inline int64_t parts(int64_t whole, int64_t part) noexcept nogil:
    return (whole + part - 1) // part


cdef int unit_dim(const Plan *plan) noexcept nogil:
    """The dimension, other than the innermost, along which bits lie next to each other; or -1."""
    cdef int i
    for i in range(plan.ndim - 1):
        if plan.dims[i].size >= FEW_RUNS and plan.dims[i].bit_stride in (-1, 1):
            return i
    return -1


cdef void flip(Plan *plan, Dim *dim) noexcept nogil:
    """Walks a dimension the other way."""
    plan.to += (dim.size - 1) * dim.to_stride
    plan.from_ += (dim.size - 1) * dim.from_stride
    plan.bit += (dim.size - 1) * dim.bit_stride
    dim.to_stride = -dim.to_stride
    dim.from_stride = -dim.from_stride
    dim.bit_stride = -dim.bit_stride


cdef void use_transposed(Plan *plan, int unit) noexcept nogil:
    """Moves the unit dimension next to the innermost one."""
    cdef Dim *inner = &plan.dims[plan.ndim - 1]
    cdef Dim *rows = &plan.dims[plan.ndim - 2]
    cdef Dim dim = plan.dims[unit]
    cdef int i
    for i in range(unit, plan.ndim - 2):
        plan.dims[i] = plan.dims[i + 1]
    rows[0] = dim
    if rows.bit_stride < 0:
        flip(plan, rows)
    plan.continuing = continues(rows, inner, False)
    plan.how = TRANSPOSED
    plan.rows = rows.size
    plan.piece_rows = TILE
    plan.piece_row = min(plan.row, <int64_t>TILE_ROW)
    if plan.ndim > 2 and continues(&plan.dims[plan.ndim - 3], inner, False) \
            and 2 * plan.row <= TILE_ROW:
        plan.folds = plan.dims[plan.ndim - 3].size
        plan.piece_folds = TILE_ROW // plan.row


cdef bint rows_together(const Plan *plan) noexcept nogil:
    """Whether several of the innermost rows make a better run than one."""
    cdef const Dim *inner = &plan.dims[plan.ndim - 1]
    cdef const Dim *outer = outer_dim(plan)
    if plan.ndim == 1:
        return False
    if plan.row <= SHORT_ROW:
        return True
    if not plan.continuing:
        return False
    if inner.bit_stride == 0:
        return plan.row < LONG_SPREAD
    return inner.bit_stride == 1 and outer.bit_stride == 0 and plan.row < LONG_ROW


cdef void choose_run(Plan *plan, bint aligned) noexcept nogil:
    """How bits and elements meet in the innermost dimensions."""
    cdef Dim *inner = &plan.dims[plan.ndim - 1]
    cdef Dim *outer = outer_dim(plan)
    cdef int unit = -1
    cdef int64_t most
    plan.contiguous = (
        aligned and inner.to_stride == plan.itemsize and inner.from_stride == plan.itemsize
    )
    plan.continuing = plan.ndim > 1 and continues(outer, inner, False)
    plan.row = inner.size
    plan.rows = plan.folds = plan.piece_folds = 1
    if inner.bit_stride not in (-1, 0, 1):
        unit = unit_dim(plan)
    if unit >= 0:
        use_transposed(plan, unit)
    elif rows_together(plan):
        plan.rows = outer.size
        if inner.bit_stride == 0:
            plan.how = ROWS_WIDENED
        elif inner.bit_stride != 1:
            plan.how = GATHERED_ONE_BY_ONE
        elif outer.bit_stride == 0:
            plan.how = ROWS_AGAIN
        else:
            plan.how = AS_THEY_LIE if outer.bit_stride == plan.row else ROWS_TOGETHER
        most = PIECE if plan.contiguous and plan.continuing else GATHERED
        plan.piece_rows = max(most // plan.row, <int64_t>1)
        plan.piece_row = plan.row
    else:
        if inner.bit_stride == 1:
            plan.how = AS_THEY_LIE
        elif inner.bit_stride == 0:
            plan.how = ONE
        else:
            plan.how = REVERSED if inner.bit_stride == -1 else GATHERED_ONE_BY_ONE
        plan.piece_rows = 1
        plan.piece_row = PIECE
    plan.outer = plan.ndim - 1 - (plan.rows > 1) - (plan.folds > 1)
    plan.pieces = (
        parts(plan.rows, plan.piece_rows) * parts(plan.row, plan.piece_row)
        * parts(plan.folds, plan.piece_folds)
    )


cdef void plan_dims(Plan *plan, int ndim, const np.npy_intp *shape,
                    const np.npy_intp *to_strides, const np.npy_intp *from_strides,
                    const np.npy_intp *noise_shape) noexcept nogil:
    """Dimensions in the order of memory, joined; there is at least one element."""
    cdef int i
    cdef int64_t bit_stride = 1
    cdef Dim *dim
    cdef int64_t noise
    plan.bit = 0
    plan.ndim = 0
    for i in range(ndim - 1, -1, -1):
        noise = noise_shape[i]
        dim = &plan.dims[MAX_DIMS - 1 - plan.ndim]
        dim.size = shape[i]
        dim.to_stride = to_strides[i]
        dim.from_stride = from_strides[i]
        dim.bit_stride = 0 if noise == 1 else bit_stride
        bit_stride *= noise
        if dim.size == 1:
            continue
        plan.ndim += 1
        if dim.to_stride < 0:
            flip(plan, dim)
    if plan.ndim == 0:
        plan.ndim = 1
        dim = &plan.dims[MAX_DIMS - 1]
        dim.size, dim.to_stride, dim.from_stride, dim.bit_stride = (
            1, plan.itemsize, plan.itemsize, 1)
    plan.bit_bytes = (bit_stride + 7) // 8
    for i in range(plan.ndim):
        plan.dims[i] = plan.dims[MAX_DIMS - plan.ndim + i]
    sort_by_stride(plan.dims, plan.ndim)
    join(plan)


# ---- Windows of bits ----

cdef struct BitWriter:
    uint64_t pending
    int count                       # pending bits, below 64
    uint8_t *to


cdef inline BitWriter writer_to(uint8_t *to) noexcept nogil:
    cdef BitWriter writer
    writer.pending, writer.count, writer.to = 0, 0, to
    return writer


cdef inline void append_bits(BitWriter *writer, uint64_t bits, int count) noexcept nogil:
    """Up to 64 bits, those above count being zero."""
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


cdef inline bint bit_at(const uint8_t *bits, int64_t index) noexcept nogil:
    return (bits[index >> 3] >> (index & 7)) & 1


cdef inline uint64_t bits_at(const Plan *plan, int64_t index, int count) noexcept nogil:
    """From 1 to 64 bits from any index on; reads no byte beyond the mask."""
    cdef const uint8_t *from_ = plan.bits + (index >> 3)
    cdef int shift = index & 7
    cdef uint64_t word = 0
    cdef uint64_t more = 0
    if (index >> 3) + 9 <= plan.bit_bytes:
        memcpy(&word, from_, 8)
        more = from_[8]
    else:
        memcpy(&word, from_, min(plan.bit_bytes - (index >> 3), <int64_t>8))
    # In two shifts, since one by 64 is undefined.
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
    """The first bits of each of some rows, one bit at a time."""
    cdef BitWriter writer = writer_to(window)
    cdef int64_t stride = plan.dims[plan.ndim - 1].bit_stride
    cdef int64_t i
    cdef int some
    for _ in range(rows):
        i = 0
        while i < count:
            some = <int>min(count - i, <int64_t>64)
            append_bits(&writer, strided_bits(plan, first + i * stride, stride, some), some)
            i += some
        if rows > 1:
            first += plan.dims[plan.ndim - 2].bit_stride
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
    """The bits from last downwards."""
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
    """The same row some times: until it fills whole bytes bit by bit, then by copies of all that
    is there."""
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
    """Each bit for a whole row; for short rows, four bits at a time."""
    cdef BitWriter writer = writer_to(window)
    cdef int64_t stride = plan.dims[plan.ndim - 2].bit_stride
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
        first += plan.dims[plan.ndim - 2].bit_stride
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

    Blocks of 32, 16, ... bits change places across the diagonal (Warren, Hacker's Delight, 7-3).
    Each step works on words 32 apart and rotates the bits of the words' numbers by one, so that
    all six do the same, in vectors, and the last one leaves the words in order.
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
    """The first bits that belong to the places begin .. end - 1 of a run, up to 64; then zeros."""
    cdef int64_t stride = plan.dims[plan.ndim - 1].bit_stride
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


# ---- Elements ----

cdef inline void move_of_size(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                              int64_t count, int itemsize) noexcept nogil:
    """Any alignment: memcpy of a known size is one instruction, and is always allowed."""
    while count >= 4:
        memcpy(to, from_, itemsize)
        memcpy(to + to_stride, from_ + from_stride, itemsize)
        memcpy(to + 2 * to_stride, from_ + 2 * from_stride, itemsize)
        memcpy(to + 3 * to_stride, from_ + 3 * from_stride, itemsize)
        to += 4 * to_stride
        from_ += 4 * from_stride
        count -= 4
    while count:
        memcpy(to, from_, itemsize)
        to += to_stride
        from_ += from_stride
        count -= 1


cdef void move_items(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                     int64_t count, int itemsize) noexcept nogil:
    if itemsize == 4:
        move_of_size(to, to_stride, from_, from_stride, count, 4)
    elif itemsize == 2:
        move_of_size(to, to_stride, from_, from_stride, count, 2)
    else:
        move_of_size(to, to_stride, from_, from_stride, count, 8)


cdef inline void use_bits(const Plan *plan, void *to, const void *from_, int64_t count,
                          const uint8_t *bits, int64_t bit) noexcept nogil:
    cdef stream_key same
    cdef operands on
    on.kind, on.use, on.size, on.scale = plan.kind, SCALE, count, plan.scale
    on.to, on.from_, on.bits, on.bit, on.streaming = to, from_, <uint8_t *>bits, bit, False
    if plan.how == ONE:
        same.threshold = ALL_KEPT if bit_at(bits, bit) else 0
        on.bits = NULL
        kernels.use(&same, 0, &on)
    else:
        kernels.use(NULL, 0, &on)


cdef void apply_row(const Plan *plan, char *to, const char *from_, int64_t count,
                    const uint8_t *bits, int64_t bit) noexcept nogil:
    """Elements with the strides of the innermost dimension."""
    cdef const Dim *dim = &plan.dims[plan.ndim - 1]
    cdef uint64_t items[GATHERED]
    cdef int64_t most, some
    if plan.contiguous:
        use_bits(plan, to, from_, count, bits, bit)
        return
    most = GATHERED_BYTES // max(llabs(dim.to_stride), llabs(dim.from_stride), <int64_t>1)
    most = min(max(most, <int64_t>LEAST_GATHERED), <int64_t>GATHERED)
    while count:
        some = min(count, most)
        move_items(<char *>items, plan.itemsize, from_, dim.from_stride, some, plan.itemsize)
        use_bits(plan, items, items, some, bits, bit)
        move_items(to, dim.to_stride, <char *>items, plan.itemsize, some, plan.itemsize)
        to += some * dim.to_stride
        from_ += some * dim.from_stride
        if plan.how != ONE:
            bit += some
        count -= some


cdef void apply_rows(const Plan *plan, char *to, const char *from_, int64_t rows,
                     const uint8_t *bits, int64_t bit) noexcept nogil:
    """Whole rows, which their bits follow without gaps; the elements fit where they are gathered
    unless each row goes on where the one before it ends."""
    cdef const Dim *inner = &plan.dims[plan.ndim - 1]
    cdef const Dim *outer = outer_dim(plan)
    cdef uint64_t items[GATHERED]
    cdef int64_t row_bytes = plan.row * plan.itemsize
    cdef int64_t i
    if rows == 1 or plan.continuing:
        apply_row(plan, to, from_, rows * plan.row, bits, bit)
        return
    for i in range(rows):
        move_items(<char *>items + i * row_bytes, plan.itemsize, from_ + i * outer.from_stride,
                   inner.from_stride, plan.row, plan.itemsize)
    use_bits(plan, items, items, rows * plan.row, bits, bit)
    for i in range(rows):
        move_items(to + i * outer.to_stride, inner.to_stride, <char *>items + i * row_bytes,
                   plan.itemsize, plan.row, plan.itemsize)


# ---- Applying ----

cdef void apply_transposed(const Plan *plan, char *to, const char *from_, int64_t bit,
                           int64_t rows, int64_t count) noexcept nogil:
    """Some elements, at most as many as a window has bits for, of up to 64 rows whose bits are
    neighbours."""
    cdef const Dim *outer = outer_dim(plan)
    cdef uint64_t window[TILE * TILE_WORDS]
    cdef uint64_t words[TILE]
    cdef BitWriter writer
    cdef int64_t row_words = parts(count, TILE)
    cdef int64_t i, j
    for i in range(row_words):
        load_rows(words, plan, bit, i * TILE, min(i * TILE + TILE, count), <int>rows)
        transpose(words)
        for j in range(rows):
            window[j * row_words + i] = words[j]
    if plan.continuing and count == plan.row:
        if count % TILE:
            # Closes the gaps; what is written was read before.
            writer = writer_to(<uint8_t *>window)
            for j in range(rows):
                for i in range(row_words):
                    append_bits(&writer, window[j * row_words + i],
                                <int>min(count - i * TILE, <int64_t>TILE))
            flush_bits(&writer)
        apply_rows(plan, to, from_, rows, <const uint8_t *>window, 0)
        return
    for j in range(rows):
        apply_row(plan, to + j * outer.to_stride, from_ + j * outer.from_stride, count,
                  <const uint8_t *>&window[j * row_words], 0)


cdef void apply_piece(const Plan *plan, char *to, const char *from_, int64_t bit,
                      int64_t piece) noexcept nogil:
    """One piece of a run that starts at these places."""
    cdef const Dim *inner = &plan.dims[plan.ndim - 1]
    cdef const Dim *outer = outer_dim(plan)
    cdef uint8_t window[PIECE_BYTES + 8]
    cdef int64_t across = parts(plan.row, plan.piece_row)
    cdef int64_t along = parts(plan.folds, plan.piece_folds)
    cdef int64_t first_fold = piece % along * plan.piece_folds
    cdef int64_t first = piece // along % across * plan.piece_row
    cdef int64_t first_row = piece // along // across * plan.piece_rows
    cdef int64_t rows = min(plan.piece_rows, plan.rows - first_row)
    cdef int64_t count = min(plan.piece_row, plan.row - first)
    to += first * inner.to_stride
    from_ += first * inner.from_stride
    bit += first * inner.bit_stride
    if plan.rows > 1:
        to += first_row * outer.to_stride
        from_ += first_row * outer.from_stride
        bit += first_row * outer.bit_stride
    if plan.folds > 1:
        to += first_fold * plan.row * inner.to_stride
        from_ += first_fold * plan.row * inner.from_stride
        bit += first_fold * plan.dims[plan.ndim - 3].bit_stride
        count *= min(plan.piece_folds, plan.folds - first_fold)
    if plan.how == TRANSPOSED:
        apply_transposed(plan, to, from_, bit, rows, count)
        return
    if plan.how == AS_THEY_LIE or plan.how == ONE:
        if plan.rows == 1:
            apply_row(plan, to, from_, count, plan.bits, bit)
        else:
            apply_rows(plan, to, from_, rows, plan.bits, bit)
        return
    if plan.how == REVERSED:
        reverse_row(window, plan, bit, count)
    elif plan.how == ROWS_AGAIN:
        repeat_row(window, plan, bit, rows)
    elif plan.how == ROWS_WIDENED:
        widen_bits(window, plan, bit, rows)
    elif plan.how == ROWS_TOGETHER:
        join_rows(window, plan, bit, rows)
    else:
        gather_rows(window, plan, bit, rows, count)
    if plan.rows == 1:
        apply_row(plan, to, from_, count, window, 0)
    else:
        apply_rows(plan, to, from_, rows, window, 0)


cdef void apply_pieces(void *context, int64_t begin, int64_t end) noexcept nogil:
    """Pieces begin .. end - 1, counted through all the runs."""
    cdef const Plan *plan = <const Plan *>context
    cdef int64_t index[MAX_DIMS]
    cdef int64_t rest = begin // plan.pieces
    cdef int64_t piece = begin % plan.pieces
    cdef char *to = plan.to
    cdef const char *from_ = plan.from_
    cdef int64_t bit = plan.bit
    cdef const Dim *dim
    cdef int i
    for i in range(plan.outer - 1, -1, -1):
        dim = &plan.dims[i]
        index[i] = rest % dim.size
        rest //= dim.size
        to += index[i] * dim.to_stride
        from_ += index[i] * dim.from_stride
        bit += index[i] * dim.bit_stride
    while begin < end:
        apply_piece(plan, to, from_, bit, piece)
        begin += 1
        piece += 1
        if piece < plan.pieces:
            continue
        piece = 0
        i = plan.outer - 1
        while i >= 0:
            dim = &plan.dims[i]
            to += dim.to_stride
            from_ += dim.from_stride
            bit += dim.bit_stride
            index[i] += 1
            if index[i] < dim.size:
                break
            to -= dim.size * dim.to_stride
            from_ -= dim.size * dim.from_stride
            bit -= dim.size * dim.bit_stride
            index[i] = 0
            i -= 1


cdef void apply_strided(int kind, int itemsize, bint aligned, int ndim, const np.npy_intp *shape,
                        void *to, const np.npy_intp *to_strides, const void *from_,
                        const np.npy_intp *from_strides, const np.npy_intp *noise_shape,
                        const uint8_t *bits, double scale) noexcept nogil:
    """Applies a mask of the noise shape; there is at least one element."""
    cdef Plan plan
    cdef int64_t pieces
    cdef int64_t size = 1
    cdef int i
    plan.kind = scaling_kind(kind, scale)
    plan.scale, plan.itemsize, plan.bits = scale, itemsize, bits
    plan.to, plan.from_ = <char *>to, <const char *>from_
    plan_dims(&plan, ndim, shape, to_strides, from_strides, noise_shape)
    choose_run(&plan, aligned)
    pieces = plan.pieces
    for i in range(plan.outer):
        pieces *= plan.dims[i].size
    for i in range(ndim):
        size *= shape[i]
    run(apply_pieces, &plan, pieces, grains(pieces, size))


cdef apply_bits(int kind, np.ndarray to, np.ndarray from_, tuple noise_shape, const uint8_t *bits,
                double scale):
    """The same for arrays of one shape and any strides."""
    cdef np.npy_intp noise[MAX_DIMS]
    cdef int64_t size = np.PyArray_SIZE(to)
    cdef int itemsize = np.PyArray_ITEMSIZE(to)
    cdef int ndim = np.PyArray_NDIM(to)
    cdef bint aligned = PyArray_ISALIGNED(to) and PyArray_ISALIGNED(from_)
    cdef void *to_data = np.PyArray_DATA(to)
    cdef const void *from_data = np.PyArray_DATA(from_)
    cdef const np.npy_intp *shape = np.PyArray_DIMS(to)
    cdef const np.npy_intp *to_strides = np.PyArray_STRIDES(to)
    cdef const np.npy_intp *from_strides = np.PyArray_STRIDES(from_)
    cdef int i
    for i in range(ndim):
        noise[i] = noise_shape[i]
    if size == 0:
        return
    if size <= BLOCK:  # releasing the GIL costs more than a small call may
        apply_strided(kind, itemsize, aligned, ndim, shape, to_data, to_strides, from_data,
                      from_strides, noise, bits, scale)
    else:
        with nogil:
            apply_strided(kind, itemsize, aligned, ndim, shape, to_data, to_strides, from_data,
                          from_strides, noise, bits, scale)


cdef void spread_bits(uint8_t *to, const uint8_t *bits, tuple shape, tuple noise_shape):
    """The bits of a mask of the noise shape, for each element of the shape, in C order."""
    cdef Plan plan
    cdef np.npy_intp sizes[MAX_DIMS]
    cdef np.npy_intp strides[MAX_DIMS]
    cdef np.npy_intp noise[MAX_DIMS]
    cdef int ndim = len(shape)
    cdef int64_t size = 1
    cdef int i
    for i in range(ndim - 1, -1, -1):
        sizes[i], strides[i], noise[i] = shape[i], size, noise_shape[i]
        size *= sizes[i]
    if size == 0:
        return
    plan.itemsize = 1
    plan.to, plan.from_, plan.bits = <char *>to, <const char *>to, bits
    plan_dims(&plan, ndim, sizes, strides, strides, noise)
    with nogil:
        choose_run(&plan, True)
        spread_runs(&plan, to)


cdef void spread_runs(const Plan *plan, uint8_t *to) noexcept nogil:
    """All runs, one after the other: in C order, each row goes on where the one before it ends."""
    cdef BitWriter writer = writer_to(to)
    cdef uint8_t window[PIECE_BYTES + 8]
    cdef int64_t index[MAX_DIMS]
    cdef int64_t bit = plan.bit
    cdef int64_t row, rows
    cdef int i
    for i in range(plan.ndim):
        index[i] = 0
    while True:
        row = 0
        while row < plan.rows:
            rows = min(plan.rows - row, plan.piece_rows)
            if plan.how == ROWS_AGAIN:
                repeat_row(window, plan, bit, rows)
                append_window(&writer, window, rows * plan.row)
            elif plan.how == ROWS_WIDENED:
                widen_bits(window, plan, bit + row * outer_dim(plan).bit_stride, rows)
                append_window(&writer, window, rows * plan.row)
            elif plan.how == ROWS_TOGETHER:
                join_rows(window, plan, bit + row * outer_dim(plan).bit_stride, rows)
                append_window(&writer, window, rows * plan.row)
            elif plan.how == ONE:
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
