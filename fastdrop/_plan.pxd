"""Declares how arrays of any strides are walked, to what works on the walk's pieces."""
from libc.stdint cimport int64_t, uint8_t

from numpy cimport npy_intp

from fastdrop._kernels.table cimport operands

cdef enum:
    MAX_DIMS = 64                   # NumPy's own limit, 32 before NumPy 2
    PIECE = 16384                   # elements used at a time
    PIECE_BYTES = 2048              # and their bits
    GATHERED = 1024                 # elements gathered at a time at most
    TILE = 64                       # runs whose bits are transposed at once
    TILE_WORDS = 32                 # and words of bits of each
    # Behind the bits of a window, since they are read in words and a byte more.
    SLACK_BYTES = 16
    SLACK_WORDS = 2

cdef enum:
    # The arrays that are walked, and how many they are.
    TO
    FROM
    RESIDUAL
    ARRAYS

cdef enum Bits:
    AS_THEY_LIE, ONE, REVERSED, GATHERED_ONE_BY_ONE, ROWS_AGAIN, ROWS_WIDENED, ROWS_TOGETHER,
    TRANSPOSED

cdef struct Dim:
    int64_t size
    int64_t strides[ARRAYS]         # in bytes
    int64_t bit_stride              # in bits
    int64_t column_stride           # in biases

cdef struct Place:
    char *at[ARRAYS]
    int64_t bit
    int64_t column

cdef struct Plan:
    operands on                     # what the pieces have in common
    int itemsize
    int ndim
    Dim dims[MAX_DIMS]              # outermost first
    Place start
    const uint8_t *bits
    int64_t bit_bytes               # of the whole mask
    uint8_t *bits_left              # of ReLU: zeros, and then the bits of what it leaves; or NULL
    int64_t columns                 # after which the bias begins again
    Bits how
    bint contiguous                 # the elements of a row
    bint continuing                 # one row after the other
    bint in_columns                 # the biases of a run, one after the other
    int outer                       # how many dims are walked outside of the run
    int64_t rows                    # of a run; 1 for one row
    int64_t row                     # elements of each
    int64_t folds                   # runs that continue each other where they are transposed
    int64_t piece_folds
    int64_t piece_rows
    int64_t piece_row               # elements; less than a row only where a piece has one row
    int64_t pieces                  # in a run


cdef inline int64_t parts(int64_t whole, int64_t part) noexcept nogil:
    return (whole + part - 1) // part


cdef inline const Dim *inner_dim(const Plan *plan) noexcept nogil:
    return &plan.dims[plan.ndim - 1]


cdef inline const Dim *outer_dim(const Plan *plan) noexcept nogil:
    """The dimension around the innermost one; that itself where there is no other."""
    return &plan.dims[max(plan.ndim - 2, 0)]


cdef inline void step(Place *place, const Dim *dim, int64_t count) noexcept nogil:
    cdef int i
    for i in range(ARRAYS):
        place.at[i] += count * dim.strides[i]
    place.bit += count * dim.bit_stride
    place.column += count * dim.column_stride


cdef void plan_dims(Plan *plan, int ndim, const npy_intp *shape,
                    const npy_intp *const *strides, const npy_intp *noise_shape) noexcept nogil
cdef void choose_run(Plan *plan, bint aligned) noexcept nogil
