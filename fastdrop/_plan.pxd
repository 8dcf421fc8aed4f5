"""Declares plans: the order and the pieces in which strided arrays are walked."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from numpy cimport npy_intp

from fastdrop._kernels.table cimport operands

cdef enum:
    MAX_DIMS = 64                   # NumPy's own limit, 32 before NumPy 2
    PIECE = 16384                   # elements of a piece
    PIECE_BYTES = 2048              # bytes of a piece's bits
    GATHERED = 1024                 # capacity of a gather buffer, in elements
    TILE = 64                       # runs whose bits are transposed together
    TILE_WORDS = 32                 # words of bits of each of these runs
    # Padding of a window: its bits are read a word and a byte at a time.
    SLACK_BYTES = 16
    SLACK_WORDS = 2
    WORD = 64                       # bits of a word; the most elements of a unit

cdef enum:
    # Indices of the arrays that are walked together, and their number.
    TO
    FROM
    RESIDUAL
    ARRAYS

cdef enum BitLayout:
    # How the bits of a run lie in the mask, compared with its elements: see _plan.pyx.
    CONTIGUOUS, ONE_BIT, REVERSED, STRIDED, EXPANDED, TRANSPOSED

cdef struct Dim:
    int64_t size
    int64_t strides[ARRAYS]         # in bytes
    int64_t bit_stride              # in bits
    int64_t column_stride           # in elements of the bias

cdef struct Place:
    # A position in all arrays, in the mask and in the bias.
    char *at[ARRAYS]
    int64_t bit
    int64_t column

cdef struct Units:
    # How the bits of EXPANDED become the bits of elements, in order. A unit is some innermost
    # dimensions; a group is as many units as fit a word, before and after they are expanded.
    int size                        # elements of a unit
    int span                        # bits of the mask from a unit's lowest bit to its highest
    int64_t lowest                  # a unit's lowest bit, counted from the bit of its first element
    int64_t stride                  # bits of the mask from a unit to the next
    int around                      # the dimension of this stride, in `dims`; -1 if there is none
    int group                       # units of a group
    int groups                      # groups whose bits of the mask fit a word
    bint in_order                   # a group's bits are in the order of its elements
    uint64_t repeats                # a one at the first element of each unit of a group
    int parts                       # a group's bits are looked up in parts of four
    uint64_t expanded[16][16]       # for each part and value of it, the elements that are set
    int64_t period                  # elements, a multiple of 8, after which the run repeats; or 0

cdef struct Plan:
    operands on                     # the fields that all pieces share
    int itemsize
    int ndim
    Dim dims[MAX_DIMS + 1]          # outermost first, then those that EXPANDED merged
    Place start
    const uint8_t *bits
    int64_t bit_bytes               # bytes of the whole mask
    uint8_t *relu_bits              # receives the bits that ReLU keeps; zeros at first, or NULL
    int64_t columns                 # elements of the bias
    BitLayout bit_layout
    bint contiguous                 # a row's elements are contiguous and aligned
    bint scattered                  # EXPANDED merged dimensions that are gathered one after another
    int end                         # the end of `dims`, with those that EXPANDED merged
    bint rows_adjacent              # each row, with its folds, begins where the one before it ends
    bint bias_in_order              # a run meets the columns of the bias in order
    int outer                       # number of dims outside of the run
    int64_t rows                    # rows of a run
    int64_t row                     # elements of a row
    int64_t places[WORD]            # TRANSPOSED, up to this length: the bits of a row's elements
    int64_t folds                   # adjacent runs that are transposed as one
    int64_t piece_folds             # folds of a piece
    int64_t piece_rows              # rows of a piece
    int64_t piece_row               # elements of a piece's row; a whole row if it has several rows
    int64_t pieces                  # pieces of a run
    Units units                     # of EXPANDED


cdef inline int64_t parts(int64_t whole, int64_t part) noexcept nogil:
    """The quotient, rounded up."""
    return (whole + part - 1) // part


cdef inline const Dim *inner_dim(const Plan *plan) noexcept nogil:
    return &plan.dims[plan.ndim - 1]


cdef inline const Dim *outer_dim(const Plan *plan) noexcept nogil:
    """The dimension around the innermost one; the innermost one if there is no other."""
    return &plan.dims[max(plan.ndim - 2, 0)]


cdef inline void step(Place *place, const Dim *dim, int64_t count) noexcept nogil:
    cdef int i
    for i in range(ARRAYS):
        place.at[i] += count * dim.strides[i]
    place.bit += count * dim.bit_stride
    place.column += count * dim.column_stride


cdef void plan_dims(Plan *plan, int ndim, const npy_intp *shape,
                    const npy_intp *const *strides, const npy_intp *noise_shape) noexcept nogil
cdef bint set_units(Plan *plan, int first, bint always) noexcept nogil
cdef void choose_run(Plan *plan, bint aligned) noexcept nogil
