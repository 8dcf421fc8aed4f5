"""Plans the walk through arrays of any strides: the order of the dimensions, and the pieces.

The walk follows the memory of the arrays, not their indices. Each dimension has a stride in every
array, a stride in the mask's bits (zero where the mask is broadcast) and a stride in the bias (zero
except along the last axis). Dimensions that continue each other are coalesced. The innermost
dimension is a run; several short innermost rows together are one run too. A run's elements are used
in place if they are contiguous, else they are gathered and scattered. The bit stride of the
innermost dimension decides how the run gets its bits:

    +1      CONTIGUOUS: used in place
    0       ONE_BIT: one bit for all elements
    -1      REVERSED: copied backwards into a window
    other   TRANSPOSED: transposed into windows, 64 runs at a time, if another dimension has the
            bit stride +1 or -1 (Fortran order); otherwise STRIDED: gathered one by one

A run of several rows has its bits copied into a window: each row repeats the same bits
(ROWS_REPEATED), has one bit for all its elements (ROWS_WIDENED), or has bits of its own that do not
follow the bits of the row before (ROWS_JOINED). Runs are split into pieces that fit the first-level
cache; threads share the pieces.
"""
from libc.stdint cimport int64_t

from numpy cimport npy_intp

cdef enum:
    TILE_ROW = 2048                 # elements of a transposed piece's row
    LONG_ROW = 2048                 # from this length on, a row with repeated bits is its own run
    LONG_SPREAD = 1024              # from this length on, a row with one bit is its own run
    SHORT_ROW = 64                  # up to this length, several rows make one run
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
    """The dimension outside of the innermost one whose bits are adjacent, or -1."""
    cdef int i
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


cdef void choose_transposed(Plan *plan, int unit) noexcept nogil:
    """Make the unit dimension the rows of the run."""
    cdef Dim *rows = &plan.dims[plan.ndim - 2]
    cdef Dim dim = plan.dims[unit]
    cdef int i
    for i in range(unit, plan.ndim - 2):
        plan.dims[i] = plan.dims[i + 1]
    rows[0] = dim
    if rows.bit_stride < 0:
        flip(plan, rows)
    plan.rows_adjacent = elements_continue(rows, inner_dim(plan))
    plan.bit_layout = TRANSPOSED
    plan.rows = rows.size
    plan.piece_rows = TILE
    plan.piece_row = min(plan.row, <int64_t>TILE_ROW)
    if (
        plan.ndim > 2 and 2 * plan.row <= TILE_ROW
        and elements_continue(&plan.dims[plan.ndim - 3], inner_dim(plan))
        and columns_continue(plan, &plan.dims[plan.ndim - 3], inner_dim(plan))
    ):
        plan.folds = plan.dims[plan.ndim - 3].size
        plan.piece_folds = TILE_ROW // plan.row


cdef bint several_rows(const Plan *plan) noexcept nogil:
    """Whether several rows make a faster run than one row."""
    if plan.ndim == 1:
        return False
    if plan.row <= SHORT_ROW:
        return True
    if not plan.rows_adjacent:
        return False
    if inner_dim(plan).bit_stride == 0:
        return plan.row < LONG_SPREAD
    return (
        inner_dim(plan).bit_stride == 1 and outer_dim(plan).bit_stride == 0
        and plan.row < LONG_ROW
    )


cdef void choose_run(Plan *plan, bint aligned) noexcept nogil:
    """Choose the run, the layout of its bits and the size of its pieces."""
    cdef const Dim *inner = inner_dim(plan)
    cdef const Dim *outer = outer_dim(plan)
    cdef int unit = -1
    cdef int64_t limit
    plan.contiguous = (
        aligned and inner.strides[TO] == plan.itemsize and inner.strides[FROM] == plan.itemsize
        and (not plan.on.advance or inner.strides[RESIDUAL] == plan.itemsize)
    )
    plan.rows_adjacent = plan.ndim > 1 and elements_continue(outer, inner)
    plan.row = inner.size
    plan.rows = plan.folds = plan.piece_folds = 1
    if inner.bit_stride not in (-1, 0, 1):
        unit = unit_dim(plan)
    if unit >= 0:
        choose_transposed(plan, unit)
    elif several_rows(plan):
        plan.rows = outer.size
        if inner.bit_stride == 0:
            plan.bit_layout = ROWS_WIDENED
        elif inner.bit_stride != 1:
            plan.bit_layout = STRIDED
        elif outer.bit_stride == 0:
            plan.bit_layout = ROWS_REPEATED
        else:
            plan.bit_layout = CONTIGUOUS if outer.bit_stride == plan.row else ROWS_JOINED
        limit = PIECE if plan.contiguous and plan.rows_adjacent else GATHERED
        plan.piece_rows = max(limit // plan.row, <int64_t>1)
        plan.piece_row = plan.row
    else:
        if inner.bit_stride == 1:
            plan.bit_layout = CONTIGUOUS
        elif inner.bit_stride == 0:
            plan.bit_layout = ONE_BIT
        else:
            plan.bit_layout = REVERSED if inner.bit_stride == -1 else STRIDED
        plan.piece_rows = 1
        plan.piece_row = PIECE
    plan.bias_in_order = plan.columns == 1 or (
        (inner.column_stride - 1) % plan.columns == 0
        and (plan.rows == 1 or columns_continue(plan, outer_dim(plan), inner))
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
