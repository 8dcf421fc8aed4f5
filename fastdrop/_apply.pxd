"""Declares how a mask is used on arrays of any strides."""
from libc.stdint cimport int64_t, uint8_t

from numpy cimport ndarray, npy_intp

from fastdrop._kernels.table cimport operands, stream_key
from fastdrop._plan cimport ARRAYS, MAX_DIMS

cdef enum:
    EQUAL_RESIDUALS = 32            # that a kernel reads of a residual that does not advance

cdef struct Work:
    # One operation: its arrays, which have one shape, its mask, and the use of the mask.
    operands on                     # points to the first elements and the first bit
    int itemsize
    int ndim
    int64_t size
    bint aligned                    # every array is aligned to its elements
    bint contiguous                 # aligned and C-contiguous, with a bit of its own per element
    const npy_intp *shape
    const npy_intp *strides[ARRAYS]
    const npy_intp *noise_shape     # `shape`, or `own_noise_shape`
    npy_intp own_noise_shape[MAX_DIMS]
    int64_t columns                 # elements of the bias; 1 without a bias
    uint8_t *relu_bits              # receives ReLU's bits unless `contiguous`; zeros at first

cdef void move_items(char *to, int64_t to_stride, const char *from_, int64_t from_stride,
                     int64_t count, int itemsize) noexcept nogil
cdef void set_up(Work *work, int kind, int use, ndarray to, ndarray from_, tuple noise_shape,
                 double scale)
cdef void set_up_residual(Work *work, ndarray residual)
cdef bint is_contiguous(ndarray array)
cdef int scaling_kind(int kind, int use, double scale) noexcept nogil
cdef int64_t bias_bytes(int kind, int64_t columns) noexcept nogil
cdef void set_up_add(Work *work) noexcept nogil
cdef void set_up_bias(Work *work, char *copy, const char *bias, int64_t stride,
                      int64_t columns) noexcept nogil
cdef void use_on(Work *work, const stream_key *key) noexcept nogil
cdef void use_relu_on(Work *work, const stream_key *key, uint8_t *element_bits) noexcept nogil
cdef void use_on_arrays(Work *work, const stream_key *key)
