"""Declares the streams of seeds to the modules that draw."""
from libc.stdint cimport uint64_t

cdef struct Draw:
    # What a mask is drawn from besides its rate and shape.
    uint64_t low
    uint64_t high
    uint64_t step

cdef class Stream:
    cdef uint64_t low
    cdef uint64_t high
    cdef uint64_t next_step
    cdef bint exhausted
    cdef _set(self, object seed, object step)
    cdef dict _take(self, object n)
    cdef _give_back(self, dict state, object n)

cdef Stream stream_of(object seed, Draw *draw)
cdef void take_step(Stream stream, Draw *draw) except *
cdef object seed_number(const Draw *draw)
