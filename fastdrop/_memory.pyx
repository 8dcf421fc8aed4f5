"""Allocates buffers aligned to 64 bytes, new or from a pool of blocks that were used before."""
cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t

cimport numpy as np

np.import_array()

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **block, size_t alignment, size_t size)
    void free(void *block)

cdef extern from "poison.h" nogil:
    void poison(void *address, size_t size)
    void unpoison(void *address, size_t size)

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyTypeObject *subtype, np.dtype descr, int nd,
                                const np.npy_intp *dims, const np.npy_intp *strides, void *data,
                                int flags, PyObject *obj)

cdef enum:
    ALIGNMENT = 64
    CLASSES = 64                      # a size class for each power of two
    SMALLEST_CLASS = 12               # below a page, the allocator is as fast as the pool
    IDLE_LIMIT = 512 * 1024 * 1024    # capacity of the pool, in bytes

# A linked list of idle blocks for each size class; the link is in the block's first bytes.
cdef void *idle[CLASSES]
cdef size_t idle_bytes = 0
cdef cython.pymutex idle_guard


cdef void *allocate(size_t size) except NULL:
    cdef void *block
    if posix_memalign(&block, ALIGNMENT, size) != 0:
        raise MemoryError(f"unable to allocate {size} bytes")
    return block


@cython.final
@cython.freelist(8)
cdef class Buffer:
    """A block of memory, 64-byte aligned. It is freed, or returned to the pool, with its owner."""

    def __dealloc__(self):
        global idle_bytes
        cdef int index
        if self.data == NULL:
            return
        if self.pooled:
            index = size_class(self.capacity)
            with idle_guard:
                if idle_bytes + self.capacity <= IDLE_LIMIT:
                    unpoison(self.data, sizeof(void *))
                    (<void **>self.data)[0] = idle[index]
                    idle[index] = self.data
                    poison(self.data, self.capacity)
                    idle_bytes += self.capacity
                    self.data = NULL
        free(self.data)


cdef inline int size_class(size_t size) noexcept nogil:
    """The exponent of the smallest power of two that is at least `size`."""
    cdef int index = SMALLEST_CLASS
    while (<size_t>1 << index) < size:
        index += 1
    return index


cdef Buffer new_buffer(size_t size):
    """A buffer of `size` bytes, rounded up to a multiple of 64, and at least 64."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    buffer.capacity = max(<size_t>ALIGNMENT, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    buffer.data = <uint8_t *>allocate(buffer.capacity)
    poison(buffer.data + size, buffer.capacity - size)
    return buffer


cdef Buffer new_pooled_buffer(size_t size):
    """A buffer from the pool if it has one of this size class: its pages are mapped and cached."""
    global idle_bytes
    cdef Buffer buffer
    cdef int index
    if size < <size_t>1 << SMALLEST_CLASS:
        return new_buffer(size)
    buffer = Buffer.__new__(Buffer)
    index = size_class(size)
    buffer.capacity = <size_t>1 << index
    buffer.pooled = True
    with idle_guard:
        if idle[index] != NULL:
            buffer.data = <uint8_t *>idle[index]
            unpoison(buffer.data, buffer.capacity)
            idle[index] = (<void **>buffer.data)[0]
            idle_bytes -= buffer.capacity
    if buffer.data == NULL:
        buffer.data = <uint8_t *>allocate(buffer.capacity)
    poison(buffer.data + size, buffer.capacity - size)
    return buffer


cdef np.ndarray array_over(Buffer buffer, object dtype, int ndim, np.npy_intp *shape,
                           bint writeable):
    """A C-contiguous array over the first bytes of a buffer, which the array keeps alive."""
    cdef np.ndarray array
    cdef int flags = np.NPY_ARRAY_CARRAY if writeable else np.NPY_ARRAY_CARRAY_RO
    Py_INCREF(dtype)  # PyArray_NewFromDescr steals the reference
    array = PyArray_NewFromDescr(<PyTypeObject *>np.ndarray, <np.dtype>dtype, ndim, shape, NULL,
                                 buffer.data, flags, NULL)
    np.set_array_base(array, buffer)
    return array
