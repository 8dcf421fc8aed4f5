"""Declares the parallel loop and the number of its threads."""
from libc.stdint cimport int64_t

ctypedef void (*pool_task)(void *context, int64_t begin, int64_t end) noexcept nogil

cdef int thread_count() noexcept nogil
cdef void set_thread_count(int n) noexcept nogil
cdef void parallel_for(pool_task task, void *context, int64_t items, int64_t size) noexcept nogil
