"""Declares the copying of a mask's bits between the mask and windows."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from numpy cimport npy_intp

from fastdrop._plan cimport Place, Plan

cdef inline bint bit_at(const uint8_t *bits, int64_t index) noexcept nogil:
    return (bits[index >> 3] >> (index & 7)) & 1


cdef void fill_window(uint8_t *window, const Plan *plan, const Place *place, int64_t first,
                      int64_t rows, int64_t count) noexcept nogil
cdef void fill_transposed(uint64_t *window, const Plan *plan, int64_t first, int64_t rows,
                          int64_t count, bint close_gaps) noexcept nogil
cdef void put_window(const Plan *plan, const uint8_t *window, const Place *place, int64_t first,
                     int64_t rows, int64_t count) noexcept nogil
cdef void put_transposed(const Plan *plan, const uint64_t *window, int64_t first, int64_t rows,
                         int64_t count, bint closed_gaps) noexcept nogil
cdef void spread_bits(uint8_t *to, const uint8_t *bits, int ndim, const npy_intp *shape,
                      const npy_intp *noise_shape) noexcept nogil
