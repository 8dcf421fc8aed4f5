"""Owns memory aligned for any instruction set (64 bytes), plain and from a pool of used blocks."""
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
    CLASSES = 64                      # one for each power of two
    SMALLEST_CLASS = 12               # below a page, the allocator is as fast as the pool
    IDLE_LIMIT = 512 * 1024 * 1024    # idle bytes that the pool keeps at most

# Free blocks of each size, linked through their own first bytes.
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
    """A block of at least the size asked for, 64-byte aligned, freed or returned when unused."""

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
    """The power of two that is at least size."""
    cdef int index = SMALLEST_CLASS
    while (<size_t>1 << index) < size:
        index += 1
    return index


cdef Buffer new_buffer(size_t size):
    """Memory of the size rounded up to whole lines of 64 bytes (at least one)."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    buffer.capacity = max(<size_t>ALIGNMENT, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
    buffer.data = <uint8_t *>allocate(buffer.capacity)
    poison(buffer.data + size, buffer.capacity - size)
    return buffer


cdef Buffer new_pooled_buffer(size_t size):
    """Memory that was used before where there is some: its pages are mapped and warm."""
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
    """An array (C order) over the buffer's first bytes, which it keeps alive."""
    cdef np.ndarray array
    cdef int flags = np.NPY_ARRAY_CARRAY if writeable else np.NPY_ARRAY_CARRAY_RO
    Py_INCREF(dtype)  # PyArray_NewFromDescr takes it over
    array = PyArray_NewFromDescr(<PyTypeObject *>np.ndarray, <np.dtype>dtype, ndim, shape, NULL,
                                 buffer.data, flags, NULL)
    np.set_array_base(array, buffer)
    return array
