/* Uses the C interface in a Python extension, in C or C++: applies dropout in place to any
   buffer of floats, such as an array.array("f"), without NumPy. docs/c_interface.md says how to
   build it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "fastdrop.h"

static const fastdrop_api *fastdrop;

static fastdrop_dropout dropout_of(const int64_t *shape, double rate) {
    fastdrop_dropout dropout;
    dropout.kind = FASTDROP_FLOAT32;
    dropout.ndim = 1;
    dropout.shape = shape;
    dropout.noise_shape = NULL; /* a decision on each element */
    dropout.rate = rate;
    dropout.scale = FASTDROP_INVERTED;
    return dropout;
}

static PyObject *error_of(int status) {
    if (status == FASTDROP_NO_MEMORY)
        return PyErr_NoMemory();
    return PyErr_Format(PyExc_ValueError, "fastdrop refused with status %d", status);
}

/* drop(floats, rate, seed): applies dropout to floats in place; returns the mask. */
static PyObject *drop(PyObject *module, PyObject *arguments) {
    Py_buffer floats;
    double rate;
    unsigned long long seed;
    if (!PyArg_ParseTuple(arguments, "w*dK", &floats, &rate, &seed))
        return NULL;
    const int64_t shape[1] = {floats.len / (int64_t)sizeof(float)};
    PyObject *mask = PyBytes_FromStringAndSize(NULL, fastdrop_mask_bytes(1, shape));
    if (mask != NULL) {
        fastdrop_dropout dropout = dropout_of(shape, rate);
        dropout.seed.low = seed;
        dropout.seed.high = dropout.seed.step = 0;
        uint8_t *bits = (uint8_t *)PyBytes_AS_STRING(mask);
        int status;
        Py_BEGIN_ALLOW_THREADS
        status = fastdrop->forward(&dropout, floats.buf, NULL, floats.buf, NULL, bits);
        Py_END_ALLOW_THREADS
        if (status != FASTDROP_OK) {
            error_of(status);
            Py_CLEAR(mask);
        }
    }
    PyBuffer_Release(&floats);
    (void)module;
    return mask;
}

/* drop_again(floats, rate, mask): applies the same mask to other floats, such as the gradient. */
static PyObject *drop_again(PyObject *module, PyObject *arguments) {
    Py_buffer floats;
    double rate;
    const char *mask;
    Py_ssize_t mask_bytes;
    if (!PyArg_ParseTuple(arguments, "w*dy#", &floats, &rate, &mask, &mask_bytes))
        return NULL;
    const int64_t shape[1] = {floats.len / (int64_t)sizeof(float)};
    int status = FASTDROP_BAD_SHAPE;
    if (mask_bytes == fastdrop_mask_bytes(1, shape)) {
        fastdrop_dropout dropout = dropout_of(shape, rate);
        Py_BEGIN_ALLOW_THREADS
        status =
            fastdrop->backward(&dropout, floats.buf, NULL, floats.buf, NULL, (const uint8_t *)mask);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&floats);
    (void)module;
    return status == FASTDROP_OK ? Py_NewRef(Py_None) : error_of(status);
}

static PyMethodDef functions[] = {
    {"drop", drop, METH_VARARGS, "drop(floats, rate, seed) -> mask"},
    {"drop_again", drop_again, METH_VARARGS, "drop_again(floats, rate, mask)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "in_place", NULL, -1, functions, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_in_place(void) {
    fastdrop = fastdrop_import();
    if (fastdrop == NULL)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
#ifdef Py_GIL_DISABLED
    if (module != NULL)
        PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
    return module;
}
