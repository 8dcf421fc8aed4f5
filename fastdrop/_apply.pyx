"""Uses a mask on arrays of any strides.

Contiguous arrays are split into blocks, which go to the kernels as they are. Other arrays are split
into the pieces of a plan; a piece that is not contiguous is copied into a buffer for the kernel.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport llabs
from libc.string cimport memcpy, memset

cimport numpy as np

from fastdrop._bits cimport (
    bit_at, fill_transposed, fill_window, put_transposed, put_window, spread_bits,
)
from fastdrop._draw cimport draw_bits
from fastdrop._isa cimport kernels
from fastdrop._kernels.table cimport (
    ADD, ALL_KEPT, BLOCK, KIND_BF16, KIND_F16, KIND_W16, KIND_W32, KIND_W64, SCALE, kind_size,
    kind_sum_size, operands, stream_key,
)
from fastdrop._plan cimport (
    CONTIGUOUS, Dim, FROM, GATHERED, MAX_DIMS, ONE_BIT, PIECE_BYTES, Place, Plan, RESIDUAL,
    SLACK_BYTES, SLACK_WORDS, TILE, TILE_WORDS, TO, TRANSPOSED, choose_run, inner_dim, outer_dim,
    parts, plan_dims, step,
)
from fastdrop._threads cimport parallel_for

np.import_array()

cdef extern from "simd/elements.h" nogil:
    ctypedef struct f16:
        pass
    ctypedef struct bf16:
        pass
    float f16_to_float(f16 x)
    float bf16_to_float(bf16 x)

cdef enum:
    GATHERED_BYTES = 16384          # span of the elements gathered together, to stay in the cache
    SCATTERED = 512                 # elements of a scattered run gathered together
    WHOLE_ROW = 8                   # from this length on, one memcpy is faster than one an item
    LEAST_GATHERED = 128            # elements gathered together are a multiple of this
    BIASES = 1024                   # biases copied together
    LAST_BIASES = 32                # biases that a kernel reads beyond them
    LEAST_PERIOD = 32               # the shortest period of biases that a kernel reads
    # Results of this size bypass the caches: an ordinary store first reads the line that it
    # overwrites. The limit is larger than a core's share of most last-level caches. It is a
    # constant, since virtual machines report wrong cache sizes (256 MiB where a core has 32).
    STREAMED_BYTES = 1 << 25


# ---- Elements ----

cdef inline void move_of_size(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                              int64_t count, int itemsize) noexcept nogil:
    """Copy strided items. memcpy allows any alignment, and is one instruction for a known size."""
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


cdef inline void move_rows_of_size(char *to, const int64_t *to_strides, const char *from_,
                                   const int64_t *from_strides, int64_t rows, int64_t count,
                                   int itemsize) noexcept nogil:
    """Copy rows of items. The strides are of rows and of items."""
    cdef bint whole = (
        count >= WHOLE_ROW and to_strides[1] == itemsize and from_strides[1] == itemsize)
    cdef int64_t j
    for _ in range(rows):
        if whole:
            memcpy(to, from_, count * itemsize)
        else:
            for j in range(count):
                memcpy(to + j * to_strides[1], from_ + j * from_strides[1], itemsize)
        to += to_strides[0]
        from_ += from_strides[0]


cdef void move_rows(char *to, const int64_t *to_strides, const char *from_,
                    const int64_t *from_strides, int64_t rows, int64_t count,
                    int itemsize) noexcept nogil:
    if itemsize == 4:
        move_rows_of_size(to, to_strides, from_, from_strides, rows, count, 4)
    elif itemsize == 2:
        move_rows_of_size(to, to_strides, from_, from_strides, rows, count, 2)
    else:
        move_rows_of_size(to, to_strides, from_, from_strides, rows, count, 8)


cdef void move_items(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                     int64_t count, int itemsize) noexcept nogil:
    if to_stride == itemsize and from_stride == itemsize:
        memcpy(to, from_, count * itemsize)
    elif itemsize == 4:
        move_of_size(to, to_stride, from_, from_stride, count, 4)
    elif itemsize == 2:
        move_of_size(to, to_stride, from_, from_stride, count, 2)
    else:
        move_of_size(to, to_stride, from_, from_stride, count, 8)


cdef struct Gathered:
    # Contiguous copies of elements. The result overwrites the copy of FROM.
    uint64_t items[GATHERED]
    uint64_t residual[GATHERED]


cdef inline Place gathered_place(const Plan *plan, Gathered *gathered,
                                 const Place *place) noexcept nogil:
    cdef Place there = place[0]
    there.at[TO] = there.at[FROM] = <char *>gathered.items
    if plan.on.advance:
        there.at[RESIDUAL] = <char *>gathered.residual
    return there


cdef void gather(const Plan *plan, Gathered *gathered, int64_t index, const Place *place,
                 int64_t count) noexcept nogil:
    """Copy elements of the innermost dimension to the buffer, from an index on."""
    cdef int itemsize = plan.itemsize
    move_items(<char *>gathered.items + index * itemsize, itemsize, place.at[FROM],
               inner_dim(plan).strides[FROM], count, itemsize)
    if plan.on.advance:
        move_items(<char *>gathered.residual + index * itemsize, itemsize, place.at[RESIDUAL],
                   inner_dim(plan).strides[RESIDUAL], count, itemsize)


cdef void scatter(const Plan *plan, const Gathered *gathered, int64_t index, const Place *place,
                  int64_t count) noexcept nogil:
    move_items(place.at[TO], inner_dim(plan).strides[TO],
               <const char *>gathered.items + index * plan.itemsize, plan.itemsize, count,
               plan.itemsize)


# ---- Contiguous runs ----

cdef inline int64_t wrapped(int64_t column, int64_t columns) noexcept nogil:
    column %= columns
    return column + columns if column < 0 else column


cdef void fill_biases(const Plan *plan, char *window, int64_t column, int64_t first,
                      int64_t count) noexcept nogil:
    """Copy the bias of each of `count` elements, from element `first` of a run on.

    `column` is the bias of the run's element 0.
    """
    cdef const char *biases = <const char *>plan.on.bias
    cdef int size = kind_sum_size(plan.on.kind)
    cdef int64_t stride = inner_dim(plan).column_stride
    cdef bint several_rows = plan.rows > 1 and plan.bit_layout != TRANSPOSED
    cdef int64_t row = plan.row if several_rows else first + count
    cdef int64_t row_stride = outer_dim(plan).column_stride
    cdef int64_t place = first % row
    cdef int64_t there, some
    column += first // row * row_stride
    while count:
        # Up to the end of the row or of the bias. The stride is 0, 1 or -1.
        there = wrapped(column + place * stride, plan.columns)
        some = min(row - place, count)
        if stride:
            some = min(some, plan.columns - there if stride > 0 else there + 1)
        move_items(window, size, biases + there * size, stride * size, some, size)
        window += some * size
        place += some
        count -= some
        if place == row:
            place = 0
            column += row_stride
    memset(window, 0, LAST_BIASES * size)


cdef void use_with_biases(const Plan *plan, operands *on, int64_t count, int64_t column,
                          int64_t first) noexcept nogil:
    """Copy biases into the order of the elements, and use the copies."""
    cdef double window[BIASES + LAST_BIASES]
    cdef bint same = inner_dim(plan).column_stride == 0 and (
        plan.rows == 1 or plan.bit_layout == TRANSPOSED)
    cdef int64_t some
    on.bias = &window[0]
    on.period = BIASES
    on.column = 0
    if same:
        on.period = LAST_BIASES
        fill_biases(plan, <char *>window, column, first, 2 * LAST_BIASES)
    while count:
        some = count
        if not same:
            some = min(count, <int64_t>BIASES)
            fill_biases(plan, <char *>window, column, first, some)
        on.size = some
        if plan.bit_layout == ONE_BIT:
            use_one(on, bit_at(on.bits, on.bit))
        else:
            kernels.use(NULL, 0, on)
            on.bit += some
        on.to = <char *>on.to + some * plan.itemsize
        on.from_ = <const char *>on.from_ + some * plan.itemsize
        on.residual = <const char *>on.residual + on.advance * some * plan.itemsize
        first += some
        count -= some


cdef void use_one(const operands *given, bint kept) noexcept nogil:
    """Use one bit on all elements, as a mask of rate 0 or 1."""
    cdef operands on = given[0]
    cdef stream_key key
    key.threshold = ALL_KEPT if kept else 0
    on.bits = NULL
    kernels.use(&key, 0, &on)


cdef void use_run(const Plan *plan, const Place *place, int64_t count, uint8_t *bits, int64_t bit,
                  int64_t first) noexcept nogil:
    """Use bits on contiguous elements, from element `first` of a run or row on.

    `place.column` is the column of the run's element 0.
    """
    cdef operands on = plan.on
    on.to, on.from_, on.residual = place.at[TO], place.at[FROM], place.at[RESIDUAL]
    on.size, on.bits, on.bit = count, bits, bit
    if on.use == ADD and not plan.bias_in_order:
        use_with_biases(plan, &on, count, place.column, first)
        return
    on.column = wrapped(place.column + first, plan.columns)
    if plan.bit_layout == ONE_BIT:
        use_one(&on, bit_at(bits, bit))
    else:
        kernels.use(NULL, 0, &on)


# ---- Pieces ----

cdef void use_row(const Plan *plan, const Place *begin, int64_t count, uint8_t *bits,
                  int64_t bit) noexcept nogil:
    """Use bits on elements with the strides of the innermost dimension."""
    cdef const Dim *dim = inner_dim(plan)
    cdef Place place = begin[0]
    cdef Place there
    cdef Gathered gathered
    cdef int64_t most, some, first = 0
    if plan.contiguous:
        use_run(plan, begin, count, bits, bit, 0)
        return
    most = GATHERED_BYTES // max(llabs(dim.strides[TO]), llabs(dim.strides[FROM]),
                                 llabs(dim.strides[RESIDUAL]), <int64_t>1)
    most = min(max(most // LEAST_GATHERED, <int64_t>1) * LEAST_GATHERED, <int64_t>GATHERED)
    there = gathered_place(plan, &gathered, begin)
    while count:
        some = min(count, most)
        gather(plan, &gathered, 0, &place, some)
        use_run(plan, &there, some, bits, bit, first)
        scatter(plan, &gathered, 0, &place, some)
        step(&place, dim, some)
        if plan.bit_layout != ONE_BIT:
            bit += some
        first += some
        count -= some


cdef void use_rows(const Plan *plan, const Place *begin, int64_t rows, uint8_t *bits,
                   int64_t bit) noexcept nogil:
    """Use contiguous bits on whole rows. They fit the gather buffer unless they are adjacent."""
    cdef Place place = begin[0]
    cdef Place there
    cdef Gathered gathered
    cdef int64_t i
    if rows == 1 or plan.rows_adjacent:
        use_row(plan, begin, rows * plan.row, bits, bit)
        return
    there = gathered_place(plan, &gathered, begin)
    for i in range(rows):
        gather(plan, &gathered, i * plan.row, &place, plan.row)
        step(&place, outer_dim(plan), 1)
    use_run(plan, &there, rows * plan.row, bits, bit, 0)
    place = begin[0]
    for i in range(rows):
        scatter(plan, &gathered, i * plan.row, &place, plan.row)
        step(&place, outer_dim(plan), 1)


cdef void move_scattered(const Plan *plan, int array, char *start, char *items, int64_t first,
                         int64_t count) noexcept nogil:
    """Copy elements of a scattered run, from element `first` on: TO from `items`, others there."""
    cdef int64_t index[MAX_DIMS + 1]
    cdef int64_t there[2]
    cdef int64_t here[2]
    cdef const Dim *inner = &plan.dims[plan.end - 1]
    cdef int64_t rest = first // inner.size
    cdef int64_t place = first % inner.size
    cdef int64_t rows, some
    cdef int i
    for i in range(plan.end - 2, plan.ndim - 1, -1):
        index[i] = rest % plan.dims[i].size
        start += index[i] * plan.dims[i].strides[array]
        rest //= plan.dims[i].size
    there[0], there[1] = plan.dims[plan.end - 2].strides[array], inner.strides[array]
    here[0], here[1] = inner.size * plan.itemsize, plan.itemsize
    while True:
        # Rows of the last two dimensions, or a part of a row.
        i = plan.end - 2
        rows = min(plan.dims[i].size - index[i], count // inner.size)
        some = inner.size
        if place or rows == 0:
            rows, some = 1, min(inner.size - place, count)
        if array == TO:
            move_rows(start + place * there[1], there, items, here, rows, some, plan.itemsize)
        else:
            move_rows(items, here, start + place * there[1], there, rows, some, plan.itemsize)
        items += rows * some * plan.itemsize
        count -= rows * some
        if count == 0:
            return
        place = 0
        index[i] += rows
        start += rows * there[0]
        while index[i] == plan.dims[i].size:
            start -= index[i] * plan.dims[i].strides[array]
            index[i] = 0
            i -= 1
            index[i] += 1
            start += plan.dims[i].strides[array]


cdef void use_scattered(const Plan *plan, const Place *begin, int64_t first, int64_t count,
                        uint8_t *bits) noexcept nogil:
    """Use bits on elements of a scattered run, from element `first` on."""
    cdef Gathered gathered
    cdef Place there = gathered_place(plan, &gathered, begin)
    cdef int64_t some, done = 0
    while done < count:
        some = min(count - done, <int64_t>SCATTERED)
        move_scattered(plan, FROM, begin.at[FROM], <char *>gathered.items, first + done, some)
        if plan.on.advance:
            move_scattered(plan, RESIDUAL, begin.at[RESIDUAL], <char *>gathered.residual,
                           first + done, some)
        use_run(plan, &there, some, bits, done, done)
        move_scattered(plan, TO, begin.at[TO], <char *>gathered.items, first + done, some)
        done += some


cdef void use_transposed_rows(const Plan *plan, const Place *begin, int64_t rows,
                              int64_t count) noexcept nogil:
    """Use adjacent bits of up to 64 rows on `count` elements of each row."""
    cdef uint64_t window[TILE * TILE_WORDS + SLACK_WORDS]
    cdef uint8_t *bits = <uint8_t *>window
    cdef Place place = begin[0]
    cdef int64_t row_bytes = parts(count, TILE) * sizeof(uint64_t)
    cdef int64_t j
    cdef bint whole = plan.rows_adjacent
    fill_transposed(window, plan, begin.bit, rows, count, whole)
    if whole:
        use_row(plan, begin, rows * count, bits, 0)
    else:
        for j in range(rows):
            use_row(plan, &place, count, bits + j * row_bytes, 0)
            step(&place, outer_dim(plan), 1)
    if plan.relu_bits:
        put_transposed(plan, window, begin.bit, rows, count, whole)


cdef void use_piece(const Plan *plan, const Place *run_begin, int64_t piece) noexcept nogil:
    """Use the mask on one piece of the run that begins at `run_begin`."""
    cdef uint8_t window[PIECE_BYTES + SLACK_BYTES]
    cdef Place place = run_begin[0]
    cdef int64_t across = parts(plan.row, plan.piece_row)
    cdef int64_t along = parts(plan.folds, plan.piece_folds)
    cdef int64_t first_fold = piece % along * plan.piece_folds
    cdef int64_t first = piece // along % across * plan.piece_row
    cdef int64_t first_row = piece // along // across * plan.piece_rows
    cdef int64_t rows = min(plan.piece_rows, plan.rows - first_row)
    cdef int64_t count = min(plan.piece_row, plan.row - first)
    cdef uint8_t *bits = window
    cdef int64_t bit = 0
    step(&place, inner_dim(plan), first)
    if plan.rows > 1:
        step(&place, outer_dim(plan), first_row)
    if plan.folds > 1:
        step(&place, &plan.dims[plan.ndim - 3], first_fold)
        count *= min(plan.piece_folds, plan.folds - first_fold)
    if plan.bit_layout == TRANSPOSED:
        use_transposed_rows(plan, &place, rows, count)
        return
    if (plan.bit_layout == CONTIGUOUS or plan.bit_layout == ONE_BIT) and plan.relu_bits == NULL:
        bits, bit = <uint8_t *>plan.bits, place.bit
    else:
        fill_window(window, plan, &place, first, rows, count)
    if plan.scattered:
        use_scattered(plan, &place, first, count, bits)
    elif plan.rows == 1:
        use_row(plan, &place, count, bits, bit)
    else:
        use_rows(plan, &place, rows, bits, bit)
    if plan.relu_bits:
        put_window(plan, window, &place, first, rows, count)


cdef void use_pieces(void *context, int64_t begin, int64_t end) noexcept nogil:
    """Use the mask on pieces begin .. end - 1, numbered through all runs."""
    cdef const Plan *plan = <const Plan *>context
    cdef int64_t index[MAX_DIMS]
    cdef int64_t rest = begin // plan.pieces
    cdef int64_t piece = begin % plan.pieces
    cdef Place place = plan.start
    cdef const Dim *dim
    cdef int i
    for i in range(plan.outer - 1, -1, -1):
        dim = &plan.dims[i]
        index[i] = rest % dim.size
        rest //= dim.size
        step(&place, dim, index[i])
    while begin < end:
        use_piece(plan, &place, piece)
        begin += 1
        piece += 1
        if piece < plan.pieces:
            continue
        piece = 0
        i = plan.outer - 1
        while i >= 0:
            dim = &plan.dims[i]
            step(&place, dim, 1)
            index[i] += 1
            if index[i] < dim.size:
                break
            step(&place, dim, -dim.size)
            index[i] = 0
            i -= 1


# ---- Biases ----

# Arrays of -0.0 for each size, in place of an absent bias or residual: x + -0.0 is x for every x.
cdef uint16_t minus_zeros_16[LEAST_PERIOD + LAST_BIASES]
cdef uint32_t minus_zeros_32[LEAST_PERIOD + LAST_BIASES]
cdef uint64_t minus_zeros_64[LEAST_PERIOD + LAST_BIASES]


cdef void fill_minus_zeros() noexcept:
    cdef int i
    for i in range(LEAST_PERIOD + LAST_BIASES):
        minus_zeros_16[i] = <uint16_t>1 << 15
        minus_zeros_32[i] = <uint32_t>1 << 31
        minus_zeros_64[i] = <uint64_t>1 << 63


fill_minus_zeros()


cdef const void *minus_zeros(int size) noexcept nogil:
    if size == 8:
        return <const void *>minus_zeros_64
    return <const void *>minus_zeros_32 if size == 4 else <const void *>minus_zeros_16


cdef void set_up_add(Work *work) noexcept nogil:
    """Describe the absence of a bias and a residual."""
    work.on.period = LEAST_PERIOD
    work.on.bias = minus_zeros(kind_sum_size(work.on.kind))
    work.on.residual = minus_zeros(work.itemsize)


cdef inline int64_t period_of(int64_t columns) noexcept nogil:
    return columns * parts(LEAST_PERIOD, columns)


cdef int64_t bias_bytes(int kind, int64_t columns) noexcept nogil:
    """The bytes of a bias as kernels read it. If they overflow, more than there can be memory."""
    columns = min(columns, <int64_t>1 << 59)
    return (period_of(columns) + LAST_BIASES) * kind_sum_size(kind)


cdef void set_up_bias(Work *work, char *copy, const char *bias, int64_t stride,
                      int64_t columns) noexcept nogil:
    """Describe a bias of any stride and alignment.

    `copy`, of `bias_bytes` bytes, becomes the bias as kernels read it: in the precision of the
    computation, repeated up to its period and beyond.
    """
    cdef int size = kind_sum_size(work.on.kind)
    cdef int64_t count = period_of(columns) + LAST_BIASES
    cdef int64_t i, some
    cdef f16 half
    cdef bf16 bfloat
    if work.on.kind == KIND_F16:
        for i in range(columns):
            memcpy(&half, bias + i * stride, sizeof(half))
            (<float *>copy)[i] = f16_to_float(half)
    elif work.on.kind == KIND_BF16:
        for i in range(columns):
            memcpy(&bfloat, bias + i * stride, sizeof(bfloat))
            (<float *>copy)[i] = bf16_to_float(bfloat)
    else:
        move_items(copy, size, bias, stride, columns, size)
    i = columns
    while i < count:
        some = min(i, count - i)
        memcpy(copy + i * size, copy, some * size)
        i += some
    work.on.bias, work.on.period, work.columns = copy, period_of(columns), columns


# ---- Arrays ----

cdef int scaling_kind(int kind, int use, double scale) noexcept nogil:
    """The kind to compute with. SCALE by 1 uses word types: they keep signalling NaNs, too."""
    if use != SCALE or scale != 1.0:
        return kind
    if kind_size(kind) == 8:
        return KIND_W64
    return KIND_W32 if kind_size(kind) == 4 else KIND_W16


cdef bint is_contiguous(np.ndarray array):
    """Whether the array is C-contiguous and aligned."""
    return np.PyArray_IS_C_CONTIGUOUS(array) and np.PyArray_ISALIGNED(array)


cdef struct Flat:
    const operands *on
    const stream_key *key
    int itemsize


cdef void use_blocks(void *context, int64_t begin, int64_t end) noexcept nogil:
    cdef const Flat *flat = <const Flat *>context
    cdef operands on = flat.on[0]
    cdef uint64_t first = <uint64_t>begin * BLOCK
    cdef uint64_t offset = first * flat.itemsize
    on.size = min(<uint64_t>end * BLOCK, on.size) - first
    on.to = <char *>on.to + offset
    on.from_ = <const char *>on.from_ + offset
    if on.bits != NULL:
        on.bits += first // 8
    if on.use == ADD:
        on.residual = <const char *>on.residual + on.advance * offset
        on.column = first % on.period
    kernels.use(flat.key, first, &on)


cdef void use_plan(Work *work) noexcept nogil:
    cdef Plan plan
    cdef int64_t pieces
    cdef int i
    plan.on = work.on
    plan.itemsize, plan.columns = work.itemsize, work.columns
    plan.bits, plan.relu_bits = work.on.bits, work.relu_bits
    plan.start.at[TO] = <char *>work.on.to
    plan.start.at[FROM] = <char *>work.on.from_
    plan.start.at[RESIDUAL] = <char *>work.on.residual
    plan_dims(&plan, work.ndim, work.shape, work.strides, work.noise_shape)
    choose_run(&plan, work.aligned)
    pieces = plan.pieces
    for i in range(plan.outer):
        pieces *= plan.dims[i].size
    parallel_for(use_pieces, &plan, pieces, work.size)


cdef void draw_noise(const Work *work, const stream_key *key, uint8_t *bits) noexcept nogil:
    """Draw all bits of the noise shape."""
    cdef uint64_t size = 1
    cdef int i
    for i in range(work.ndim):
        size *= work.noise_shape[i]
    draw_bits(key, 0, size, bits)


cdef void use_on(Work *work, const stream_key *key) noexcept nogil:
    """Draw the mask if there is a key, and use it.

    Without a key, the bits are stored. With one, the bits may be NULL if the work is contiguous.
    """
    cdef Flat flat
    if work.contiguous:
        flat.on, flat.key, flat.itemsize = &work.on, key, work.itemsize
        work.on.streaming = (
            work.on.to != work.on.from_ and work.size * work.itemsize >= STREAMED_BYTES)
        parallel_for(use_blocks, &flat, parts(work.size, BLOCK), work.size)
        return
    if key != NULL:
        draw_noise(work, key, work.on.bits)
    if work.size:
        use_plan(work)


cdef void use_relu_on(Work *work, const stream_key *key, uint8_t *element_bits) noexcept nogil:
    """Draw the mask and use it with ReLU, which stores a bit for each element in `work.on.bits`.

    Unless the work is contiguous, `element_bits` is another buffer for a bit of each element.
    """
    cdef uint8_t *bits = work.on.bits
    if work.contiguous:
        use_on(work, key)
        return
    if work.size == 0:
        return
    if work.noise_shape == work.shape:
        draw_noise(work, key, element_bits)
    else:
        # The noise shape has no more bits than the shape.
        draw_noise(work, key, bits)
        spread_bits(element_bits, bits, work.ndim, work.shape, work.noise_shape)
    memset(bits, 0, parts(work.size, 8))
    work.noise_shape = work.shape
    work.on.bits, work.relu_bits = element_bits, bits
    use_plan(work)


cdef void set_up(Work *work, int kind, int use, np.ndarray to, np.ndarray from_,
                 tuple noise_shape, double scale):
    """Describe two arrays and a mask. The noise shape is None where it equals their shape."""
    cdef int i
    memset(work, 0, sizeof(Work))
    work.on.kind, work.on.use, work.on.scale = scaling_kind(kind, use, scale), use, scale
    work.on.to, work.on.from_ = np.PyArray_DATA(to), np.PyArray_DATA(from_)
    work.itemsize = np.PyArray_ITEMSIZE(to)
    work.ndim = np.PyArray_NDIM(to)
    work.size = work.on.size = np.PyArray_SIZE(to)
    work.shape = work.noise_shape = np.PyArray_DIMS(to)
    work.strides[TO], work.strides[FROM] = np.PyArray_STRIDES(to), np.PyArray_STRIDES(from_)
    work.aligned = np.PyArray_ISALIGNED(to) and np.PyArray_ISALIGNED(from_)
    work.contiguous = is_contiguous(to) and is_contiguous(from_) and noise_shape is None
    work.columns = 1
    if noise_shape is not None:
        work.noise_shape = work.own_noise_shape
        for i in range(work.ndim):
            work.own_noise_shape[i] = noise_shape[i]


cdef void set_up_residual(Work *work, np.ndarray residual):
    work.on.residual, work.on.advance = np.PyArray_DATA(residual), True
    work.strides[RESIDUAL] = np.PyArray_STRIDES(residual)
    work.aligned &= np.PyArray_ISALIGNED(residual)
    work.contiguous &= is_contiguous(residual)


cdef void use_on_arrays(Work *work, const stream_key *key):
    """As `use_on`, for callers that hold the GIL."""
    if work.size <= BLOCK:  # releasing the GIL would take longer than a small call
        use_on(work, key)
    else:
        with nogil:
            use_on(work, key)
