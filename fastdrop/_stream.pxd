"""Declares streams of seeds."""
from libc.stdint cimport uint64_t

cdef extern from "fastdrop.h" nogil:
    ctypedef struct fastdrop_seed:
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

cdef Stream stream_of(object seed, fastdrop_seed *draw)
cdef void take_step(Stream stream, fastdrop_seed *draw) except *
cdef bint is_other_stream(dict state) except -1
cdef object other_stream(dict state)
cdef object seed_number(const fastdrop_seed *draw)
