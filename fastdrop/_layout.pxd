"""Declares how a mask is drawn and applied to arrays of any strides."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from numpy cimport ndarray, npy_intp

from fastdrop._kernels.table cimport stream_key

cdef void draw_bits(const stream_key *key, uint64_t first, uint64_t size,
                    uint8_t *bits) noexcept nogil
cdef int64_t grains(int64_t items, int64_t size) noexcept nogil
cdef void spread_bits(uint8_t *to, const uint8_t *bits, tuple shape, tuple noise_shape)
cdef bint is_plain(ndarray array)
cdef bint is_straight(ndarray to, ndarray from_, tuple noise_shape)
cdef void draw_apply_flat(int kind, int itemsize, const stream_key *key, uint64_t size, void *to,
                          const void *from_, uint8_t *bits, double scale) noexcept nogil
cdef void draw_apply_straight(int kind, const stream_key *key, ndarray to, ndarray from_,
                              uint8_t *bits, double scale)
cdef void apply_strided(int kind, int itemsize, bint aligned, int ndim, const npy_intp *shape,
                        void *to, const npy_intp *to_strides, const void *from_,
                        const npy_intp *from_strides, const npy_intp *noise_shape,
                        const uint8_t *bits, double scale) noexcept nogil
cdef apply_bits(int kind, ndarray to, ndarray from_, tuple noise_shape, const uint8_t *bits,
                double scale)
