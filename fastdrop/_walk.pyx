"""Walks through arrays of one shape in C order, and copies blocks of elements that are strided.

A result, an input, and an array that is broadcast against them: numbers or rates, which several
elements may share.
"""
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport llabs

cimport numpy as np

from fastdrop._apply cimport move_items

cdef enum:
    SHORT_ROW = 8                   # elements
    LINE = 64                       # bytes


cdef bint continues(const Walk *walk, int dim, const int64_t *strides) noexcept nogil:
    """Whether a step of a dimension begins where the next dimension of `walk` ends."""
    cdef int i
    for i in range(ARRAYS):
        if strides[i] != walk.strides[i][dim] * walk.shape[dim]:
            return False
    return True


cdef void add_dim(Walk *walk, int64_t size, const int64_t *strides) noexcept nogil:
    """Add a dimension around the others, or merge it with the outermost one. The innermost is 0."""
    cdef int last = walk.ndim - 1
    cdef int i
    if size == 1:
        return
    if last >= 0 and continues(walk, last, strides):
        walk.shape[last] *= size
        return
    walk.shape[walk.ndim] = size
    for i in range(ARRAYS):
        walk.strides[i][walk.ndim] = strides[i]
    walk.ndim += 1


cdef bint is_in_c_order(const Walk *walk, int array, int ndim, const np.npy_intp *shape,
                        const np.npy_intp *strides) noexcept nogil:
    """Whether an array is C-contiguous and aligned."""
    cdef int64_t stride = walk.itemsize[array]
    cdef int i
    for i in range(ndim - 1, -1, -1):
        if shape[i] != 1 and strides[i] != stride:
            return False
        stride *= shape[i]
    return <uintptr_t>walk.data[array] % walk.itemsize[array] == 0


cdef uint64_t broadcast_strides(np.npy_intp *strides, int ndim, const np.npy_intp *shape,
                                int64_t itemsize) noexcept nogil:
    """Compute the strides in which a C-contiguous array is broadcast; return its size."""
    cdef uint64_t size = 1
    cdef int i
    for i in range(ndim - 1, -1, -1):
        strides[i] = <int64_t>size * itemsize if shape[i] > 1 else 0
        size *= shape[i]
    return size


cdef void set_up_walk(Walk *walk, int ndim, const np.npy_intp *shape,
                      const np.npy_intp *to_strides, const np.npy_intp *from_strides,
                      const np.npy_intp *broadcast) noexcept nogil:
    """Describe the order of the elements. `data` and `itemsize` are set."""
    cdef int64_t strides[ARRAYS]
    cdef int i
    walk.in_place[TO] = is_in_c_order(walk, TO, ndim, shape, to_strides)
    walk.in_place[FROM] = is_in_c_order(walk, FROM, ndim, shape, from_strides)
    walk.in_place[BROADCAST] = is_in_c_order(walk, BROADCAST, ndim, shape, broadcast)
    walk.ndim = 0
    for i in range(ndim - 1, -1, -1):
        strides[TO], strides[FROM] = to_strides[i], from_strides[i]
        strides[BROADCAST] = broadcast[i]
        add_dim(walk, shape[i], strides)
    if walk.ndim == 0:
        walk.ndim = walk.shape[0] = 1
        for i in range(ARRAYS):
            walk.strides[i][0] = 0


cdef char *address_of(const Walk *walk, int array, int64_t index) noexcept nogil:
    """The address of an element of an array that is in place."""
    return walk.data[array] + index * walk.itemsize[array]


cdef char *block_of(const Walk *walk, int array, char *items, int64_t first,
                    int64_t count) noexcept nogil:
    """Elements in C order, from index `first` on: in place, or copied to `items`."""
    if walk.in_place[array]:
        return address_of(walk, array, first)
    move_block(walk, array, items, first, count)
    return items


cdef void move_block(const Walk *walk, int array, char *items, int64_t first,
                     int64_t count) noexcept nogil:
    """Copy elements in C order, from index `first` on: TO from `items`, other arrays to
    them."""
    cdef int64_t index[MAX_DIMS]
    cdef const int64_t *strides = walk.strides[array]
    cdef int itemsize = walk.itemsize[array]
    cdef char *place = walk.data[array]
    # Whole rows are copied column by column if they are short, or if the elements of a column are
    # closer to each other.
    cdef bint by_columns = walk.ndim > 1 and (
        walk.shape[0] <= SHORT_ROW
        or llabs(strides[0]) >= LINE and llabs(strides[1]) < llabs(strides[0]))
    cdef int64_t some, rows, j
    cdef int i
    for i in range(walk.ndim):
        index[i] = first % walk.shape[i]
        first //= walk.shape[i]
        place += index[i] * strides[i]
    while True:
        some, rows = min(walk.shape[0] - index[0], count), 1
        if by_columns and some == walk.shape[0]:
            rows = min(walk.shape[1] - index[1], count // some)
            for j in range(some):
                if array == TO:
                    move_items(place + j * strides[0], strides[1], items + j * itemsize,
                               some * itemsize, rows, itemsize)
                else:
                    move_items(items + j * itemsize, some * itemsize, place + j * strides[0],
                               strides[1], rows, itemsize)
        elif array == TO:
            move_items(place, strides[0], items, itemsize, some, itemsize)
        else:
            move_items(items, itemsize, place, strides[0], some, itemsize)
        items += rows * some * itemsize
        count -= rows * some
        if count == 0:
            return
        index[0] += some
        place += some * strides[0]
        if rows > 1:
            index[1] += rows - 1
            place += (rows - 1) * strides[1]
        i = 0
        while index[i] == walk.shape[i]:
            place -= index[i] * strides[i]
            index[i] = 0
            i += 1
            index[i] += 1
            place += strides[i]
