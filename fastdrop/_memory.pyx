"""Allocates buffers aligned to 64 bytes, and makes arrays over them."""
cimport cython
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t

cimport numpy as np

np.import_array()

cdef extern from * nogil:
    """
    #include <stdlib.h>
    #if defined(_WIN32)
    #include <malloc.h>
    static int aligned_block(void **block, size_t alignment, size_t size) {
        *block = _aligned_malloc(size, alignment);
        return *block == NULL;
    }
    #define free_aligned_block _aligned_free
    #else
    #define aligned_block posix_memalign
    #define free_aligned_block free
    #endif
    """
    int aligned_block(void **block, size_t alignment, size_t size)
    void free_aligned_block(void *block)

cdef extern from "poison.h" nogil:
    void poison(void *address, size_t size)

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(PyTypeObject *subtype, np.dtype descr, int nd,
                                const np.npy_intp *dims, const np.npy_intp *strides, void *data,
                                int flags, PyObject *obj)

cdef enum:
    ALIGNMENT = 64


cdef void *allocate(size_t size) except NULL:
    cdef void *block
    if aligned_block(&block, ALIGNMENT, size) != 0:
        raise MemoryError(f"unable to allocate {size} bytes")
    return block


@cython.final
@cython.freelist(8)
cdef class Buffer:
    """A block of memory, 64-byte aligned, which is freed with its owner."""

    def __dealloc__(self):
        free_aligned_block(self.data)


cdef Buffer new_buffer(size_t size):
    """A buffer of `size` bytes, rounded up to a multiple of 64, and at least 64."""
    cdef Buffer buffer = Buffer.__new__(Buffer)
    buffer.capacity = max(<size_t>ALIGNMENT, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
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
