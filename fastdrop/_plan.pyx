"""Owns the way through arrays of any strides: in which order, and in what pieces.

Arrays are walked in the order of their memory, not of their indices: each dimension carries a
stride in the memory of each array, one in the mask's bits (zero where the mask is broadcast) and
one in the bias (zero but for the last axis). Dimensions that continue each other are joined. A run
is what is left innermost, or a few short rows of it; its elements are used where they lie if they
have no gaps, else gathered and scattered; and its bits, by their stride, are

    +1      used where they lie
    0       one for all
    -1      reversed into a window
    other   transposed into windows, 64 runs at a time, if another dimension has the stride +1 or
            -1 (Fortran order), else gathered one by one

or, for rows, put together in a window: the same bits again for each row, or each bit for a row.
Runs are cut into pieces that fit the first cache, and the pieces are shared among threads.
"""
from libc.stdint cimport int64_t

from numpy cimport npy_intp

cdef enum:
    TILE_ROW = 2048                 # elements of each run whose bits are transposed
    LONG_ROW = 2048                 # bits from which a repeated row is cheaper applied as it lies
    LONG_SPREAD = 1024              # elements from which a bit is cheaper applied as one run
    SHORT_ROW = 64                  # elements up to which several rows are better taken together
    FEW_RUNS = 4                    # below, bits are gathered one by one


cdef void sort_by_stride(Dim *dims, int ndim) noexcept nogil:
    """Largest stride first, so that the walk follows memory; equal ones stay in order."""
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
    """Whether stepping the outer dimension goes on where the inner one ends."""
    cdef int i
    for i in range(ARRAYS):
        if outer.strides[i] != inner.strides[i] * inner.size:
            return False
    return True


cdef bint columns_continue(const Plan *plan, const Dim *outer, const Dim *inner) noexcept nogil:
    """The same of biases, which begin again after the last."""
    return (outer.column_stride - inner.column_stride * inner.size) % plan.columns == 0


cdef void join(Plan *plan) noexcept nogil:
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
    """The dimension, other than the innermost, along which bits lie next to each other; or -1."""
    cdef int i
    for i in range(plan.ndim - 1):
        if plan.dims[i].size >= FEW_RUNS and plan.dims[i].bit_stride in (-1, 1):
            return i
    return -1


cdef void flip(Plan *plan, Dim *dim) noexcept nogil:
    """Walks a dimension the other way."""
    cdef int i
    step(&plan.start, dim, dim.size - 1)
    for i in range(ARRAYS):
        dim.strides[i] = -dim.strides[i]
    dim.bit_stride = -dim.bit_stride
    dim.column_stride = -dim.column_stride


cdef void use_transposed(Plan *plan, int unit) noexcept nogil:
    """Moves the unit dimension next to the innermost one."""
    cdef Dim *rows = &plan.dims[plan.ndim - 2]
    cdef Dim dim = plan.dims[unit]
    cdef int i
    for i in range(unit, plan.ndim - 2):
        plan.dims[i] = plan.dims[i + 1]
    rows[0] = dim
    if rows.bit_stride < 0:
        flip(plan, rows)
    plan.continuing = elements_continue(rows, inner_dim(plan))
    plan.how = TRANSPOSED
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


cdef bint rows_together(const Plan *plan) noexcept nogil:
    """Whether several of the innermost rows make a better run than one."""
    if plan.ndim == 1:
        return False
    if plan.row <= SHORT_ROW:
        return True
    if not plan.continuing:
        return False
    if inner_dim(plan).bit_stride == 0:
        return plan.row < LONG_SPREAD
    return (
        inner_dim(plan).bit_stride == 1 and outer_dim(plan).bit_stride == 0
        and plan.row < LONG_ROW
    )


cdef void choose_run(Plan *plan, bint aligned) noexcept nogil:
    """How bits and elements meet in the innermost dimensions."""
    cdef const Dim *inner = inner_dim(plan)
    cdef const Dim *outer = outer_dim(plan)
    cdef int unit = -1
    cdef int64_t most
    plan.contiguous = (
        aligned and inner.strides[TO] == plan.itemsize and inner.strides[FROM] == plan.itemsize
        and (not plan.on.advance or inner.strides[RESIDUAL] == plan.itemsize)
    )
    plan.continuing = plan.ndim > 1 and elements_continue(outer, inner)
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
    plan.in_columns = plan.columns == 1 or (
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
    """Dimensions in the order of memory, joined; there is at least one element. Strides that are
    NULL are of an array that is not there."""
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
    join(plan)
