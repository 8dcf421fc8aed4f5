"""Declares how a mask is used on arrays of any strides."""
from libc.stdint cimport int64_t, uint8_t

from numpy cimport ndarray, npy_intp

from fastdrop._kernels.table cimport operands, stream_key
from fastdrop._plan cimport ARRAYS, MAX_DIMS

cdef struct Work:
    # Arrays of one shape, and a mask: what is to be done with them.
    operands on                     # with the arrays' first elements and the mask's first bit
    int itemsize
    int ndim
    int64_t size
    bint aligned                    # whether the CPU can load the elements where they are
    bint straight                   # and whether they lie as the bits do, without gaps
    const npy_intp *shape
    const npy_intp *strides[ARRAYS]
    const npy_intp *noise_shape     # the shape itself, or what follows
    npy_intp own_noise_shape[MAX_DIMS]
    int64_t columns                 # of the bias; 1 without
    uint8_t *bits_left              # where ReLU puts its bits unless all is straight, in zeros

cdef void move_items(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                     int64_t count, int itemsize) noexcept nogil
cdef void look_at(Work *work, int kind, int use, ndarray to, ndarray from_, tuple noise_shape,
                  double scale)
cdef void look_at_residual(Work *work, ndarray residual)
cdef bint is_plain(ndarray array)
cdef int scaling_kind(int kind, double scale) noexcept nogil
cdef void use_on(Work *work, const stream_key *key) noexcept nogil
cdef void use_on_arrays(Work *work, const stream_key *key)
