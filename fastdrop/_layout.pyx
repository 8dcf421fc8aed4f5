"""Owns the way from arrays of any strides to kernels that see runs of contiguous elements.

An array is walked in the order of its memory, not of its indices: each dimension carries a stride
in memory and a stride in the mask's bits (zero where the mask is broadcast). Dimensions that
continue each other are joined, and what is innermost then decides how bits and elements meet:

    bits    elements       the run
    +1      contiguous     applied as it lies
    0       contiguous     all kept or all dropped
    other   contiguous     the bits are gathered into a window first
    any     strided        elements too are gathered, and scattered
    0, +1   contiguous     a short row of bits that is repeated: a window of repetitions
    +1, 0   contiguous     bits that count for a few elements each: a window of widened bits

Runs are cut into pieces that fit the first cache, and the pieces are shared among threads.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cimport numpy as np

from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    BLOCK, KIND_F32, KIND_F64, KIND_W16, KIND_W32, KIND_W64, stream_key,
)
from fastdrop._threads cimport run, thread_count

np.import_array()

cdef extern from "numpy/arrayobject.h":
    bint PyArray_ISALIGNED(np.ndarray array)

cdef enum:
    MAX_DIMS = 64                   # NumPy's own limit, 32 before NumPy 2
    PIECE = 16384                   # elements applied at a time
    PIECE_BYTES = 2048             # and their bits
    GATHERED = 2048                 # elements gathered at a time, to stay in the first cache
    GATHERED_BYTES = 256            # and their bits
    PARALLEL_SIZE = 1 << 18         # from here on, threads gain more than waking them costs
    LONG_ROW = 2048                 # bits from which a repeated row is cheaper applied as it lies
    LONG_SPREAD = 1024              # elements from which a bit is cheaper applied as one run

cdef enum Run:
    RUN_BITS, RUN_ONE, RUN_WINDOW, RUN_STRIDED, RUN_REPEATED_ROW, RUN_WIDENED_BITS

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
    double scale
    Run run
    int outer                       # how many dims are walked outside of the run
    int64_t rows                    # repeated row, widened bits: how many; otherwise 1
    int64_t row                     # elements of each
    int64_t piece                   # rows, or without rows elements, in a piece
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
    kernels.draw_apply(
        task.kind, task.key, task.first + first, size, task.to + first * task.itemsize,
        task.from_ + first * task.itemsize, task.bits + first // 8 if task.bits else NULL,
        task.scale)


cdef inline int64_t blocks_for_each(int64_t items, int64_t size) noexcept nogil:
    """How many items a thread takes at a time: a few helpings each, so that none is waited for."""
    cdef int64_t helpings = 4 * thread_count()
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
    run(draw_blocks, &task, blocks, blocks_for_each(blocks, size // 8))


cdef int word_kind(int kind) noexcept nogil:
    """The kind that keeps elements of this one as they are."""
    if kind == KIND_F64:
        return KIND_W64
    return KIND_W32 if kind == KIND_F32 else KIND_W16


cdef int scaling_kind(int kind, double scale) noexcept nogil:
    """A scale of one keeps elements bit for bit, a signalling NaN too."""
    return word_kind(kind) if scale == 1.0 else kind


cdef bint is_straight(np.ndarray to, np.ndarray from_, tuple noise_shape):
    """Whether the mask's bits and both arrays' elements lie in the same order without gaps."""
    return (
        np.PyArray_IS_C_CONTIGUOUS(to) and np.PyArray_IS_C_CONTIGUOUS(from_)
        and PyArray_ISALIGNED(to) and PyArray_ISALIGNED(from_)
        and noise_shape == (<object>to).shape
    )


cdef void draw_apply_straight(int kind, const stream_key *key, np.ndarray to, np.ndarray from_,
                              uint8_t *bits, double scale):
    """Draws and applies in one pass; bits is NULL where they are not wanted."""
    cdef DrawTask task
    cdef int64_t blocks
    task.key, task.first, task.size = key, 0, np.PyArray_SIZE(to)
    task.bits, task.scale, task.kind = bits, scale, scaling_kind(kind, scale)
    task.to, task.from_ = <char *>np.PyArray_DATA(to), <const char *>np.PyArray_DATA(from_)
    task.itemsize = np.PyArray_ITEMSIZE(to)
    blocks = (task.size + BLOCK - 1) // BLOCK
    if blocks == 1:  # releasing the GIL costs more than a small call may
        draw_apply_blocks(&task, 0, 1)
    elif blocks > 1:
        with nogil:
            run(draw_apply_blocks, &task, blocks, blocks_for_each(blocks, task.size))


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


cdef void choose_run(Plan *plan, bint aligned) noexcept nogil:
    """How bits and elements meet in the innermost dimensions."""
    cdef Dim *inner = &plan.dims[plan.ndim - 1]
    cdef Dim *outer = &plan.dims[plan.ndim - 2]  # looked at only where it is
    cdef bint contiguous = (
        aligned and inner.to_stride == plan.itemsize and inner.from_stride == plan.itemsize
    )
    cdef bint rows = plan.ndim > 1 and contiguous and continues(outer, inner, False)
    cdef bint repeated = (
        rows and inner.bit_stride == 1 and outer.bit_stride == 0 and inner.size < LONG_ROW
    )
    cdef bint widened = rows and inner.bit_stride == 0 and inner.size < LONG_SPREAD
    plan.row = inner.size
    plan.rows = 1
    plan.outer = plan.ndim - 1
    if repeated or widened:
        plan.run = RUN_REPEATED_ROW if repeated else RUN_WIDENED_BITS
        plan.rows = outer.size
        plan.outer = plan.ndim - 2
        plan.piece = max(PIECE // plan.row, 1)
        plan.pieces = (plan.rows + plan.piece - 1) // plan.piece
        return
    if not contiguous:
        plan.run = RUN_STRIDED
    elif inner.bit_stride == 1:
        plan.run = RUN_BITS
    elif inner.bit_stride == 0:
        plan.run = RUN_ONE
    else:
        plan.run = RUN_WINDOW
    plan.piece = PIECE
    plan.pieces = (plan.row + PIECE - 1) // PIECE


cdef void make_plan(Plan *plan, np.ndarray to, np.ndarray from_, tuple noise_shape):
    """Dimensions in the order of memory, joined; there is at least one element."""
    cdef int i, ndim = np.PyArray_NDIM(to)
    cdef int64_t bit_stride = 1
    cdef Dim *dim
    cdef int64_t noise
    plan.itemsize = np.PyArray_ITEMSIZE(to)
    plan.to = <char *>np.PyArray_DATA(to)
    plan.from_ = <const char *>np.PyArray_DATA(from_)
    plan.bit = 0
    plan.ndim = 0
    for i in range(ndim - 1, -1, -1):
        noise = noise_shape[i]
        dim = &plan.dims[MAX_DIMS - 1 - plan.ndim]
        dim.size = np.PyArray_DIM(to, i)
        dim.to_stride = np.PyArray_STRIDE(to, i)
        dim.from_stride = np.PyArray_STRIDE(from_, i)
        dim.bit_stride = 0 if noise == 1 else bit_stride
        bit_stride *= noise
        if dim.size == 1:
            continue
        plan.ndim += 1
        if dim.to_stride < 0:
            plan.to += (dim.size - 1) * dim.to_stride
            plan.from_ += (dim.size - 1) * dim.from_stride
            plan.bit += (dim.size - 1) * dim.bit_stride
            dim.to_stride = -dim.to_stride
            dim.from_stride = -dim.from_stride
            dim.bit_stride = -dim.bit_stride
    if plan.ndim == 0:
        plan.ndim = 1
        dim = &plan.dims[MAX_DIMS - 1]
        dim.size, dim.to_stride, dim.from_stride, dim.bit_stride = (
            1, plan.itemsize, plan.itemsize, 1)
    for i in range(plan.ndim):
        plan.dims[i] = plan.dims[MAX_DIMS - plan.ndim + i]
    sort_by_stride(plan.dims, plan.ndim)
    join(plan)
    choose_run(plan, PyArray_ISALIGNED(to) and PyArray_ISALIGNED(from_))


# ---- Windows of bits ----

cdef struct BitWriter:
    uint64_t pending
    int count                       # pending bits, below 64
    uint8_t *to


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


cdef inline uint64_t bits_at(const uint8_t *bits, int64_t index, int count) noexcept nogil:
    """Up to 56 bits from any index on; reads no byte that holds none of them."""
    cdef uint64_t word = 0
    memcpy(&word, bits + (index >> 3), (<int>(index & 7) + count + 7) // 8)
    return (word >> (index & 7)) & low_bits(count)


cdef void gather_bits(uint8_t *window, const uint8_t *bits, int64_t first, int64_t stride,
                      int64_t count) noexcept nogil:
    cdef BitWriter writer
    cdef uint64_t word
    cdef int64_t i = 0, j, some
    writer.pending, writer.count, writer.to = 0, 0, window
    while i < count:
        some = min(count - i, 64)
        word = 0
        for j in range(some):
            word |= <uint64_t>bit_at(bits, first + (i + j) * stride) << j
        append_bits(&writer, word, some)
        i += some
    flush_bits(&writer)


cdef void repeat_row(uint8_t *window, const uint8_t *bits, int64_t first, int64_t row,
                     int64_t rows) noexcept nogil:
    cdef BitWriter writer
    cdef uint64_t word
    cdef int64_t i, j, some
    cdef int64_t together = 1
    writer.pending, writer.count, writer.to = 0, 0, window
    if row <= 28:
        # Several short rows in a word.
        together = 56 // row
        word = 0
        for i in range(together):
            word |= bits_at(bits, first, row) << (i * row)
        for _ in range(rows // together):
            append_bits(&writer, word, row * together)
        for _ in range(rows % together):
            append_bits(&writer, word & low_bits(row), row)
    else:
        for _ in range(rows):
            j = 0
            while j < row:
                some = min(row - j, 56)
                append_bits(&writer, bits_at(bits, first + j, some), some)
                j += some
    flush_bits(&writer)


cdef void widen_bits(uint8_t *window, const uint8_t *bits, int64_t first, int64_t stride,
                     int64_t row, int64_t rows) noexcept nogil:
    cdef BitWriter writer
    cdef uint64_t word
    cdef int64_t i, left
    writer.pending, writer.count, writer.to = 0, 0, window
    for i in range(rows):
        word = -<uint64_t>bit_at(bits, first + i * stride)
        left = row
        while left > 64:
            append_bits(&writer, word, 64)
            left -= 64
        append_bits(&writer, word & low_bits(left), left)
    flush_bits(&writer)


# ---- Strided elements ----

cdef inline void move_items(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                            int64_t count, int itemsize) noexcept nogil:
    """Any alignment: memcpy of a known size is one instruction, and is always allowed."""
    cdef int64_t i
    if itemsize == 4:
        for i in range(count):
            memcpy(to + i * to_stride, from_ + i * from_stride, 4)
    elif itemsize == 2:
        for i in range(count):
            memcpy(to + i * to_stride, from_ + i * from_stride, 2)
    else:
        for i in range(count):
            memcpy(to + i * to_stride, from_ + i * from_stride, 8)


cdef void apply_strided(const Plan *plan, char *to, const char *from_, int64_t bit,
                        int64_t size) noexcept nogil:
    cdef const Dim *dim = &plan.dims[plan.ndim - 1]
    cdef uint64_t items[GATHERED]
    cdef uint8_t window[GATHERED_BYTES]
    cdef int64_t count
    while size:
        count = min(size, GATHERED)
        move_items(<char *>items, plan.itemsize, from_, dim.from_stride, count, plan.itemsize)
        if dim.bit_stride == 1:
            kernels.apply(plan.kind, count, items, items, plan.bits, bit, plan.scale)
        elif dim.bit_stride == 0:
            kernels.apply_one(plan.kind, count, items, items, bit_at(plan.bits, bit), plan.scale)
        else:
            gather_bits(window, plan.bits, bit, dim.bit_stride, count)
            kernels.apply(plan.kind, count, items, items, window, 0, plan.scale)
        move_items(to, dim.to_stride, <char *>items, plan.itemsize, count, plan.itemsize)
        to += count * dim.to_stride
        from_ += count * dim.from_stride
        bit += count * dim.bit_stride
        size -= count


# ---- Applying ----

cdef void apply_piece(const Plan *plan, char *to, const char *from_, int64_t bit,
                      int64_t piece) noexcept nogil:
    """One piece of a run that starts at these places."""
    cdef const Dim *dim = &plan.dims[plan.ndim - 1]
    cdef const Dim *outer = &plan.dims[plan.ndim - 2]
    cdef uint8_t window[PIECE_BYTES + 8]
    cdef int64_t first = piece * plan.piece
    cdef int64_t count
    if plan.run == RUN_REPEATED_ROW or plan.run == RUN_WIDENED_BITS:
        count = min(plan.piece, plan.rows - first)
        to += first * outer.to_stride
        from_ += first * outer.from_stride
        bit += first * outer.bit_stride
        if plan.run == RUN_REPEATED_ROW:
            repeat_row(window, plan.bits, bit, plan.row, count)
        else:
            widen_bits(window, plan.bits, bit, outer.bit_stride, plan.row, count)
        kernels.apply(plan.kind, count * plan.row, to, from_, window, 0, plan.scale)
        return
    count = min(plan.piece, plan.row - first)
    to += first * dim.to_stride
    from_ += first * dim.from_stride
    bit += first * dim.bit_stride
    if plan.run == RUN_BITS:
        kernels.apply(plan.kind, count, to, from_, plan.bits, bit, plan.scale)
    elif plan.run == RUN_ONE:
        kernels.apply_one(plan.kind, count, to, from_, bit_at(plan.bits, bit), plan.scale)
    elif plan.run == RUN_WINDOW:
        gather_bits(window, plan.bits, bit, dim.bit_stride, count)
        kernels.apply(plan.kind, count, to, from_, window, 0, plan.scale)
    else:
        apply_strided(plan, to, from_, bit, count)


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


cdef apply_bits(int kind, np.ndarray to, np.ndarray from_, tuple noise_shape, const uint8_t *bits,
                double scale):
    """Applies a mask of that shape to arrays of one shape and any strides."""
    cdef Plan plan
    cdef int64_t pieces
    cdef int64_t size = np.PyArray_SIZE(to)
    cdef int i
    if size == 0:
        return
    make_plan(&plan, to, from_, noise_shape)
    plan.kind = scaling_kind(kind, scale)
    plan.bits = bits
    plan.scale = scale
    pieces = plan.pieces
    for i in range(plan.outer):
        pieces *= plan.dims[i].size
    if size <= BLOCK:  # releasing the GIL costs more than a small call may
        apply_pieces(&plan, 0, pieces)
    else:
        with nogil:
            run(apply_pieces, &plan, pieces, blocks_for_each(pieces, size))
