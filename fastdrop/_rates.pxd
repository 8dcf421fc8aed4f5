"""Declares decisions by an array of rates, and the scaling by an array."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from numpy cimport ndarray, npy_intp

from fastdrop._kernels.table cimport rate_operands, stream_key
from fastdrop._stream cimport fastdrop_seed
from fastdrop._walk cimport Walk

cdef struct RateWork:
    rate_operands on                # `bits` points to those of element `first`
    Walk walk                       # BROADCAST: the rates or the scales
    int rates_kind                  # half precision is converted for the kernel
    bint ones                       # write 1 where kept, without FROM
    bint drawn                      # by `key`; else the bits are read
    stream_key key
    uint64_t first                  # the first element that is worked on, in C order
    uint64_t offset                 # the index of element 0 in the stream

cdef bint rates_are_valid(RateWork *work) noexcept nogil
cdef void run_rates(RateWork *work) noexcept nogil

cdef ndarray rates_of(object rate)
cdef object inverted_scales(ndarray rates)
cdef ndarray factors_of(object factors, tuple shape, str name)
cdef object computed_in(ndarray x)
cdef store_changed(ndarray to, ndarray result, ndarray from_, ndarray changed)
cdef check_fit(ndarray array, tuple shape, str name)
cdef void draw_by_rates(const fastdrop_seed *position, ndarray rates, tuple noise_shape,
                        uint64_t offset, uint64_t first, uint64_t size,
                        uint8_t *bits) noexcept
cdef void scale_by(int kind, ndarray to, ndarray from_, ndarray rates, ndarray scales,
                   const fastdrop_seed *position, const uint8_t *bits) noexcept
