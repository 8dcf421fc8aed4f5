"""Plans the walk through arrays of any strides: the order of the dimensions, and the pieces.

The walk follows the memory of the arrays, not their indices. Each dimension has a stride in every
array, a stride in the mask's bits (zero where the mask is broadcast) and a stride in the bias (zero
except along the last axis). Dimensions that continue each other are coalesced. The innermost
dimension is a run. Short rows are joined to a run of several dimensions, or of several rows. A
run's elements are used in place if they are contiguous, else they are gathered and scattered. The
bit stride of the innermost dimension decides how the run gets its bits:

    +1      CONTIGUOUS: used in place
    0       ONE_BIT: one bit for all elements
    -1      REVERSED: copied backwards into a window
    other   TRANSPOSED: transposed into windows, 64 runs at a time, if another dimension has the
            bit stride +1 or -1 (Fortran order); otherwise STRIDED: gathered one by one

A run of short rows has its bits EXPANDED into a window. Up to 64 innermost elements are a unit. A
table has the elements of a few units that use each bit, so that a few look-ups expand the bits of
these units. If such rows are too short for a kernel's call, the run is scattered: it has several
dimensions that do not continue each other in memory, and its elements are gathered. Runs are split
into pieces that fit the first-level cache; threads share the pieces.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport llabs
from libc.string cimport memset

from numpy cimport npy_intp

cdef enum:
    TILE_ROW = 2048                 # elements of a transposed piece's row
    LONG_ROW = 4096                 # from this length on, a row is its own run
    SHORT_ROW = WORD                # up to this length, several rows make one run
    FEW_AT_ONCE = 16                # below this number of elements, a look-up does not pay
    TINY_RUN = 192                  # up to this length, copies take less time than a kernel's call
    NARROW = 32                     # up to this length, rows are transposed many at once
    EVEN_UNITS = 32                 # pieces have a multiple of this, for the address of the next
    FEW_RUNS = 4                    # below this number of runs, bits are gathered one by one


cdef void sort_by_stride(Dim *dims, int ndim) noexcept nogil:
    """Largest stride first, so that the walk follows memory. The sort is stable."""
    cdef int i, j
    cdef Dim dim
    for i in range(1, ndim):
        dim = dims[i]
        j = i
        while j > 0 and dims[j - 1].strides[TO] < dim.strides[TO]:
            dims[j] = dims[j - 1]
            j -= 1
        dims[j] = dim


cdef bint elements_continue(const Dim *outer, const Dim *inner) noexcept nogil:
    """Whether a step of the outer dimension begins where the inner dimension ends."""
    cdef int i
    for i in range(ARRAYS):
        if outer.strides[i] != inner.strides[i] * inner.size:
            return False
    return True


cdef bint columns_continue(const Plan *plan, const Dim *outer, const Dim *inner) noexcept nogil:
    """Whether the bias does the same, modulo its size."""
    return (outer.column_stride - inner.column_stride * inner.size) % plan.columns == 0


cdef bint may_merge(const Plan *plan, const Dim *outer, const Dim *inner) noexcept nogil:
    return elements_continue(outer, inner) and columns_continue(plan, outer, inner)


cdef void coalesce(Plan *plan) noexcept nogil:
    cdef int i, last = 0
    cdef Dim *dims = plan.dims
    for i in range(1, plan.ndim):
        if (
            elements_continue(&dims[last], &dims[i])
            and dims[last].bit_stride == dims[i].bit_stride * dims[i].size
            and columns_continue(plan, &dims[last], &dims[i])
        ):
            dims[i].size *= dims[last].size
            dims[last] = dims[i]
        else:
            last += 1
            dims[last] = dims[i]
    plan.ndim = last + 1


cdef int unit_dim(const Plan *plan) noexcept nogil:
    """A dimension whose bits are adjacent, while the innermost one's bits are not; or -1."""
    cdef int i
    if inner_dim(plan).bit_stride in (-1, 0, 1):
        return -1
    for i in range(plan.ndim - 1):
        if plan.dims[i].size >= FEW_RUNS and plan.dims[i].bit_stride in (-1, 1):
            return i
    return -1


cdef void flip(Plan *plan, Dim *dim) noexcept nogil:
    """Reverse the direction of a dimension."""
    cdef int i
    step(&plan.start, dim, dim.size - 1)
    for i in range(ARRAYS):
        dim.strides[i] = -dim.strides[i]
    dim.bit_stride = -dim.bit_stride
    dim.column_stride = -dim.column_stride


cdef void set_places(Plan *plan) noexcept nogil:
    """Merge short rows with the dimensions that they continue; compute the bits of the elements."""
    cdef Dim *dims = plan.dims
    cdef Dim inner = inner_dim(plan)[0]
    cdef int64_t i, size = inner.size
    if size > WORD:
        return
    for i in range(size):
        plan.places[i] = i * inner.bit_stride
    while plan.ndim > 2:
        if inner.size * dims[plan.ndim - 3].size > WORD or (
                not may_merge(plan, &dims[plan.ndim - 3], &inner)):
            break
        size = inner.size
        inner.size *= dims[plan.ndim - 3].size
        for i in range(size, inner.size):
            plan.places[i] = plan.places[i - size] + dims[plan.ndim - 3].bit_stride
        dims[plan.ndim - 3] = dims[plan.ndim - 2]
        dims[plan.ndim - 2] = inner
        plan.ndim -= 1


cdef void choose_transposed(Plan *plan, int unit) noexcept nogil:
    """Make the unit dimension the rows of the run."""
    cdef Dim *rows
    cdef Dim dim = plan.dims[unit]
    cdef Dim row
    cdef int i
    for i in range(unit, plan.ndim - 2):
        plan.dims[i] = plan.dims[i + 1]
    plan.dims[plan.ndim - 2] = dim
    set_places(plan)
    rows = &plan.dims[plan.ndim - 2]
    if rows.bit_stride < 0:
        flip(plan, rows)
    row = inner_dim(plan)[0]
    plan.bit_layout = TRANSPOSED
    plan.row = row.size
    plan.rows = rows.size
    plan.piece_rows = TILE
    plan.piece_row = min(plan.row, <int64_t>TILE_ROW)
    if plan.ndim > 2 and 2 * plan.row <= TILE_ROW and may_merge(
            plan, &plan.dims[plan.ndim - 3], &row):
        plan.folds = plan.dims[plan.ndim - 3].size
        plan.piece_folds = TILE_ROW // plan.row
        row.size *= plan.folds
    plan.rows_adjacent = row.size <= TILE_ROW and may_merge(plan, rows, &row)
    if plan.rows_adjacent and row.size <= NARROW:
        plan.piece_rows = TILE // row.size * TILE


cdef int merged_dim(const Plan *plan) noexcept nogil:
    """The outermost dimension from which on all dimensions continue each other in memory."""
    cdef int i = plan.ndim - 1
    while i > 0 and may_merge(plan, &plan.dims[i - 1], &plan.dims[i]):
        i -= 1
    return i


cdef int expand_dims(const Plan *plan, int first, int *bits, Units *units) noexcept nogil:
    """Make the innermost dimensions, at most from `first` on, a unit. Return the outermost of them.

    bits[i] becomes the bit of the unit's element i, counted from the bit of its first element.
    """
    cdef int taken = plan.ndim
    cdef const Dim *dim
    cdef int64_t j
    units.size = units.span = 1
    units.lowest = bits[0] = 0
    while taken > first:
        dim = &plan.dims[taken - 1]
        if units.size * dim.size > WORD or (
                units.span + llabs(dim.bit_stride) * (dim.size - 1) > WORD):
            break
        for j in range(units.size, units.size * dim.size):
            bits[j] = bits[j - units.size] + <int>dim.bit_stride
        units.size *= <int>dim.size
        units.span += <int>(llabs(dim.bit_stride) * (dim.size - 1))
        units.lowest += min(dim.bit_stride, <int64_t>0) * (dim.size - 1)
        taken -= 1
    return taken


cdef void fill_table(Units *units, const int *bits) noexcept nogil:
    """Compute the elements of a group that use each bit."""
    cdef uint64_t elements[WORD]
    cdef uint64_t word
    cdef int64_t bit
    cdef int i, j, four, low
    units.repeats, units.in_order = 0, True
    memset(&elements[0], 0, sizeof(elements))
    for i in range(units.group):
        units.repeats |= <uint64_t>1 << (i * units.size)
        if i and units.stride == 0:
            continue
        for j in range(units.size):
            bit = i * units.stride + bits[j] - units.lowest
            if units.stride < 0:
                bit -= (units.group - 1) * units.stride
            elements[bit] |= <uint64_t>1 << (i * units.size + j)
            units.in_order &= bit == i * units.size + j
    units.parts = <int>parts((units.group - 1) * llabs(units.stride) + units.span, 4)
    for i in range(0 if units.in_order else units.parts):
        units.expanded[i][0] = 0
        for four in range(1, 16):
            low = 0 if four & 1 else 1 if four & 2 else 2 if four & 4 else 3
            word = elements[4 * i + low]
            units.expanded[i][four] = units.expanded[i][four & (four - 1)] | word


cdef bint set_units(Plan *plan, int first, bint always) noexcept nogil:
    """Merge the dimensions from `first` on and set their units.

    Return False if it does not pay, unless `always` is set.
    """
    cdef Units *units = &plan.units
    cdef Dim merged = inner_dim(plan)[0]
    cdef int bits[WORD]
    cdef bint few
    cdef int i
    for i in range(first, plan.ndim - 1):
        merged.size *= plan.dims[i].size
        merged.bit_stride = 0  # all places of a run have the bit of its first element
    plan.row, plan.rows = merged.size, 1
    if merged.size <= SHORT_ROW and first > 0 and not always:
        plan.rows = plan.dims[first - 1].size
    units.around = expand_dims(plan, first, bits, units) - 1
    units.stride = plan.dims[units.around].bit_stride if units.around >= 0 else 0
    units.group = WORD // units.size
    if units.stride:
        units.group = <int>min(
            <int64_t>units.group, (WORD - units.span) // llabs(units.stride) + 1)
    units.groups = 1
    if units.stride > 0:
        units.groups += <int>((WORD - units.span - (units.group - 1) * units.stride)
                              // (units.group * units.stride))
    units.period = 0
    if plan.dims[first].bit_stride == 0:
        units.period = merged.size // plan.dims[first].size
        while units.period % 8:
            units.period *= 2
    few = units.group * units.size < FEW_AT_ONCE and not 0 < units.period <= GATHERED
    if not always and units.size < merged.size and (plan.rows > 1 or few):
        return False
    fill_table(units, bits)
    for i in range(plan.ndim, first, -1):
        plan.dims[i] = plan.dims[i - 1]
    plan.dims[first] = merged
    plan.end = plan.ndim + 1
    plan.ndim = first + 1
    units.around += units.around >= first
    plan.bit_layout = EXPANDED
    return True


cdef bint choose_units(Plan *plan) noexcept nogil:
    """Choose units, unless the innermost dimension alone is a faster run."""
    cdef const Dim *inner = inner_dim(plan)
    cdef int first = merged_dim(plan)
    cdef int64_t longest = SHORT_ROW
    if first < plan.ndim - 1 and inner.bit_stride in (0, 1):
        longest = LONG_ROW - 1
    if plan.ndim == 1 or inner.size > longest:
        return False
    if inner.bit_stride == 1 and outer_dim(plan).bit_stride == inner.size:
        return False  # the bits of several rows are used in place
    return set_units(plan, first, False) or (
        inner.size <= SHORT_ROW and set_units(plan, plan.ndim - 1, False))


cdef void choose_row(Plan *plan) noexcept nogil:
    """Make the innermost dimension the run; several of its rows, if they are short."""
    cdef const Dim *inner = inner_dim(plan)
    plan.row, plan.rows = inner.size, 1
    if inner.bit_stride == 1:
        plan.bit_layout = CONTIGUOUS
    elif inner.bit_stride == 0:
        plan.bit_layout = ONE_BIT
    else:
        plan.bit_layout = REVERSED if inner.bit_stride == -1 else STRIDED
    if plan.ndim > 1 and plan.row <= SHORT_ROW and (
            plan.bit_layout == STRIDED
            or plan.bit_layout == CONTIGUOUS and outer_dim(plan).bit_stride == plan.row):
        plan.rows = outer_dim(plan).size


cdef bint has_tiny_rows(const Plan *plan, int unit) noexcept nogil:
    """Whether rows of a transposed run would be used one by one, and are tiny."""
    cdef Dim row = inner_dim(plan)[0]
    cdef int i = plan.ndim - 2
    while i >= 0 and may_merge(plan, &plan.dims[i], &row):
        if i == unit:
            return False  # the rows are adjacent
        row.size *= plan.dims[i].size
        i -= 1
    return row.size <= NARROW


cdef int scattered_dim(const Plan *plan, int64_t *size) noexcept nogil:
    """The outermost dimension from which on the bias continues, and the elements from there on."""
    cdef int i = plan.ndim - 1
    size[0] = plan.dims[i].size
    while i > 0 and columns_continue(plan, &plan.dims[i - 1], &plan.dims[i]):
        i -= 1
        size[0] *= plan.dims[i].size
    return i


cdef void scatter_run(Plan *plan, int first) noexcept nogil:
    """Make the dimensions from `first` on one run, wherever their elements are."""
    cdef int i
    cdef Dim *merged = &plan.dims[first]
    if plan.bit_layout == EXPANDED:
        for i in range(plan.ndim - 1, plan.end - 1):
            plan.dims[i] = plan.dims[i + 1]
        plan.ndim = plan.end - 1
    plan.scattered = first < merged_dim(plan)
    set_units(plan, first, True)
    if plan.scattered:
        # A step leaves a place at the run's first element.
        memset(merged.strides, 0, sizeof(merged.strides))


cdef void size_pieces(Plan *plan) noexcept nogil:
    """Choose the size of the pieces of a run."""
    cdef int64_t even
    cdef int64_t limit = PIECE if plan.contiguous and plan.rows_adjacent else GATHERED
    plan.piece_rows, plan.piece_row = 1, PIECE
    if plan.rows > 1:
        plan.piece_rows, plan.piece_row = max(limit // plan.row, <int64_t>1), plan.row
    elif plan.bit_layout == EXPANDED:
        even = EVEN_UNITS * plan.units.size
        plan.piece_row = PIECE // even * even


cdef void choose_run(Plan *plan, bint aligned) noexcept nogil:
    """Choose the run, the layout of its bits and the size of its pieces."""
    cdef const Dim *inner = inner_dim(plan)
    cdef int64_t size
    cdef int first = scattered_dim(plan, &size)
    cdef int unit
    plan.contiguous = (
        aligned and inner.strides[TO] == plan.itemsize and inner.strides[FROM] == plan.itemsize
        and (not plan.on.advance or inner.strides[RESIDUAL] == plan.itemsize)
    )
    plan.folds = plan.piece_folds = 1
    plan.scattered = False
    if not choose_units(plan):
        unit = unit_dim(plan)
        if unit >= 0 and not has_tiny_rows(plan, unit):
            choose_transposed(plan, unit)
        else:
            choose_row(plan)
    if plan.bit_layout != TRANSPOSED:
        if plan.rows * plan.row <= TINY_RUN and plan.rows * plan.row < size:
            scatter_run(plan, first)
        plan.rows_adjacent = plan.ndim > 1 and elements_continue(outer_dim(plan), inner_dim(plan))
        size_pieces(plan)
    inner = inner_dim(plan)
    plan.bias_in_order = plan.columns == 1 or (
        (inner.column_stride - 1) % plan.columns == 0
        and (plan.rows == 1 or columns_continue(plan, outer_dim(plan), inner)
             or plan.bit_layout == TRANSPOSED and plan.rows_adjacent)
    )
    plan.outer = plan.ndim - 1 - (plan.rows > 1) - (plan.folds > 1)
    plan.pieces = (
        parts(plan.rows, plan.piece_rows) * parts(plan.row, plan.piece_row)
        * parts(plan.folds, plan.piece_folds)
    )


cdef void plan_dims(Plan *plan, int ndim, const npy_intp *shape,
                    const npy_intp *const *strides, const npy_intp *noise_shape) noexcept nogil:
    """Sort the dimensions by stride and coalesce them. There is at least one element.

    The strides of an absent array are NULL.
    """
    cdef int i, j
    cdef int64_t bit_stride = 1
    cdef Dim *dim
    plan.start.bit = plan.start.column = 0
    plan.ndim = 0
    for i in range(ndim - 1, -1, -1):
        dim = &plan.dims[MAX_DIMS - 1 - plan.ndim]
        dim.size = shape[i]
        for j in range(ARRAYS):
            dim.strides[j] = strides[j][i] if strides[j] else 0
        dim.bit_stride = 0 if noise_shape[i] == 1 else bit_stride
        dim.column_stride = 1 if i == ndim - 1 else 0
        bit_stride *= noise_shape[i]
        if dim.size == 1:
            continue
        plan.ndim += 1
        if dim.strides[TO] < 0:
            flip(plan, dim)
    if plan.ndim == 0:
        plan.ndim = 1
        dim = &plan.dims[MAX_DIMS - 1]
        dim.size = dim.bit_stride = dim.column_stride = 1
        for j in range(ARRAYS):
            dim.strides[j] = plan.itemsize
    plan.bit_bytes = (bit_stride + 7) // 8
    for i in range(plan.ndim):
        plan.dims[i] = plan.dims[MAX_DIMS - plan.ndim + i]
    sort_by_stride(plan.dims, plan.ndim)
    coalesce(plan)
