/* Registers dropout as two TensorFlow operations, FastdropForward and FastdropBackward, and other
   random operations, which save nothing, as FastdropDraw.

   It declares the functions of TensorFlow's C interface itself, and so builds without TensorFlow's
   headers. The functions have not changed since TensorFlow 2.5. Python passes in fastdrop's public C
   interface, which computes the dropout. */

#define _GNU_SOURCE /* for madvise */
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fastdrop.h"
#include "random_operations.h"

#define EXPORTED __attribute__((visibility("default")))

/* ---- TensorFlow's C interface: tensorflow/c/{ops,kernels,tf_tensor,tf_status,tf_datatype}.h ---- */

typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_KernelBuilder TF_KernelBuilder;
typedef struct TF_OpKernelConstruction TF_OpKernelConstruction;
typedef struct TF_OpKernelContext TF_OpKernelContext;
typedef int TF_DataType;
typedef int TF_Code;

enum {
    TF_FLOAT = 1,
    TF_DOUBLE = 2,
    TF_UINT8 = 4,
    TF_BFLOAT16 = 14,
    TF_HALF = 19
};
enum {
    TF_OK = 0,
    TF_INVALID_ARGUMENT = 3,
    TF_FAILED_PRECONDITION = 9,
    TF_UNIMPLEMENTED = 12
};

TF_Status *TF_NewStatus(void);
void TF_DeleteStatus(TF_Status *);
void TF_SetStatus(TF_Status *, TF_Code, const char *message);
TF_Code TF_GetCode(const TF_Status *);
const char *TF_Message(const TF_Status *);

void TF_DeleteTensor(TF_Tensor *);
int TF_NumDims(const TF_Tensor *);
int64_t TF_Dim(const TF_Tensor *, int);
size_t TF_TensorByteSize(const TF_Tensor *);
void *TF_TensorData(const TF_Tensor *);

TF_OpDefinitionBuilder *TF_NewOpDefinitionBuilder(const char *name);
void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder *, const char *);
void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder *, const char *);
void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder *, const char *);
void TF_OpDefinitionBuilderSetShapeInferenceFunction(TF_OpDefinitionBuilder *,
                                                     void (*)(TF_ShapeInferenceContext *,
                                                              TF_Status *));
void TF_RegisterOpDefinition(TF_OpDefinitionBuilder *, TF_Status *);

TF_ShapeHandle *TF_NewShapeHandle(void);
void TF_DeleteShapeHandle(TF_ShapeHandle *);
void TF_ShapeInferenceContextGetInput(TF_ShapeInferenceContext *, int, TF_ShapeHandle *,
                                      TF_Status *);
void TF_ShapeInferenceContextWithRank(TF_ShapeInferenceContext *, TF_ShapeHandle *, int64_t rank,
                                      TF_ShapeHandle *result, TF_Status *);
void TF_ShapeInferenceContextSetOutput(TF_ShapeInferenceContext *, int, TF_ShapeHandle *,
                                       TF_Status *);
void TF_ShapeInferenceContextSetUnknownShape(TF_ShapeInferenceContext *, TF_Status *);

TF_KernelBuilder *TF_NewKernelBuilder(const char *op, const char *device,
                                      void *(*create)(TF_OpKernelConstruction *),
                                      void (*compute)(void *, TF_OpKernelContext *),
                                      void (*destroy)(void *));
void TF_KernelBuilder_TypeConstraint(TF_KernelBuilder *, const char *attr, TF_DataType,
                                     TF_Status *);
void TF_RegisterKernelBuilder(const char *name, TF_KernelBuilder *, TF_Status *);

void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction *, TF_Status *);
void TF_OpKernelConstruction_GetAttrType(TF_OpKernelConstruction *, const char *, TF_DataType *,
                                         TF_Status *);
void TF_OpKernelConstruction_GetAttrInt64(TF_OpKernelConstruction *, const char *, int64_t *,
                                          TF_Status *);
void TF_OpKernelConstruction_GetAttrSize(TF_OpKernelConstruction *, const char *, int32_t *list,
                                         int32_t *total, TF_Status *);
void TF_OpKernelConstruction_GetAttrInt64List(TF_OpKernelConstruction *, const char *, int64_t *,
                                              int most, TF_Status *);

void TF_OpKernelContext_Failure(TF_OpKernelContext *, TF_Status *);
void TF_GetInput(TF_OpKernelContext *, int, TF_Tensor **, TF_Status *);
TF_Tensor *TF_AllocateOutput(TF_OpKernelContext *, int index, TF_DataType, const int64_t *dims,
                             int ndims, size_t bytes, TF_Status *);
TF_Tensor *TF_ForwardInputOrAllocateOutput(TF_OpKernelContext *, const int *inputs, int count,
                                           int output, const int64_t *dims, int ndims,
                                           int *forwarded, TF_Status *);

/* ---- fastdrop's C interface, from Python ---- */

static _Atomic(const fastdrop_api *) fastdrop;

/* Returns 0, or the version of the interface that this file needs if `api` is older. */
EXPORTED int fastdrop_use(const fastdrop_api *api) {
    if (api && !fastdrop_serves(api))
        return FASTDROP_API_VERSION;
    atomic_store(&fastdrop, api);
    return 0;
}

/* ---- Kernels ---- */

typedef enum {
    FORWARD,
    BACKWARD,
    DRAW
} role;

typedef struct {
    role role;
    int kind;
    int64_t random_kind;
    int64_t rank;                           /* of the noise shape, -1 without one */
    int64_t noise_shape[FASTDROP_MAX_DIMS]; /* -1 for the input's size */
} operation;

static void fail(TF_Status *status, TF_Code code, const char *format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    TF_SetStatus(status, code, message);
}

#define invalid(status, ...) fail(status, TF_INVALID_ARGUMENT, __VA_ARGS__)

static bool failed(const TF_Status *status) { return TF_GetCode(status) != TF_OK; }

static int kind_of(TF_DataType dtype) {
    return dtype == TF_HALF       ? FASTDROP_FLOAT16
           : dtype == TF_BFLOAT16 ? FASTDROP_BFLOAT16
           : dtype == TF_FLOAT    ? FASTDROP_FLOAT32
                                  : FASTDROP_FLOAT64;
}

static const fastdrop_api *fastdrop_or_failure(TF_Status *status) {
    const fastdrop_api *api = atomic_load(&fastdrop);
    if (!api)
        fail(status, TF_FAILED_PRECONDITION,
             "Dropout's operations need the package fastdrop_keras to be imported");
    return api;
}

/* Refuses a graph that a fastdrop with another stream saved: its seeds would draw other masks here,
   without a message. */
static void check_stream(TF_OpKernelConstruction *construction, TF_Status *status) {
    int64_t stream;
    const fastdrop_api *api = fastdrop_or_failure(status);
    if (!api)
        return;
    TF_OpKernelConstruction_GetAttrInt64(construction, "stream", &stream, status);
    if (!failed(status) && stream != (int64_t)api->stream)
        fail(status, TF_FAILED_PRECONDITION,
             "This graph was made with random stream %" PRId64
             ", and the installed fastdrop draws stream %" PRIu32 ", which has other masks",
             stream, api->stream);
}

static void read_attributes(operation *op, TF_OpKernelConstruction *construction,
                            TF_Status *status) {
    int32_t count = 0, total = 0;
    TF_DataType dtype = TF_FLOAT;
    TF_OpKernelConstruction_GetAttrType(construction, "T", &dtype, status);
    op->kind = kind_of(dtype);
    if (!failed(status))
        TF_OpKernelConstruction_GetAttrInt64(construction, "noise_rank", &op->rank, status);
    if (!failed(status))
        TF_OpKernelConstruction_GetAttrSize(construction, "noise_shape", &count, &total, status);
    if (failed(status))
        return;
    if (count > FASTDROP_MAX_DIMS || (op->rank != -1 && op->rank != count)) {
        invalid(status,
                "`noise_shape` must have `noise_rank` entries, at most %d. Received: %d "
                "entries and noise_rank=%" PRId64,
                FASTDROP_MAX_DIMS, count, op->rank);
        return;
    }
    if (count)
        TF_OpKernelConstruction_GetAttrInt64List(construction, "noise_shape", op->noise_shape,
                                                 count, status);
    if (!failed(status) && op->role != BACKWARD)
        check_stream(construction, status);
    if (failed(status) || op->role != DRAW)
        return;
    TF_OpKernelConstruction_GetAttrInt64(construction, "kind", &op->random_kind, status);
    if (!failed(status) && (op->random_kind < 0 || op->random_kind >= RANDOM_KINDS))
        invalid(status, "This fastdrop has no random operation of kind %" PRId64, op->random_kind);
}

static void *create(TF_OpKernelConstruction *construction, role role) {
    TF_Status *status = TF_NewStatus();
    operation *op = calloc(1, sizeof *op);
    if (op) {
        op->role = role;
        read_attributes(op, construction, status);
    } else {
        invalid(status, "There is no memory for an operation of dropout");
    }
    if (failed(status))
        TF_OpKernelConstruction_Failure(construction, status);
    TF_DeleteStatus(status);
    return op;
}

static void *create_forward(TF_OpKernelConstruction *construction) {
    return create(construction, FORWARD);
}

static void *create_backward(TF_OpKernelConstruction *construction) {
    return create(construction, BACKWARD);
}

static void *create_draw(TF_OpKernelConstruction *construction) {
    return create(construction, DRAW);
}

/* XLA creates a kernel when it compiles a program, in which the operations of `xla_bridge.py` replace
   these. */
static void *refuse_xla(TF_OpKernelConstruction *construction) {
    TF_Status *status = TF_NewStatus();
    fail(status, TF_UNIMPLEMENTED,
         "XLA cannot compile an operation of fastdrop_keras in a function that was traced without "
         "XLA. In a function with `jit_compile=True`, call the `tf.function` itself, which is "
         "traced again, and not its concrete function or a function of a SavedModel");
    TF_OpKernelConstruction_Failure(construction, status);
    TF_DeleteStatus(status);
    return NULL;
}

static void destroy(void *op) { free(op); }

/* The shapes of a tensor and of its mask. */
typedef struct {
    int ndim;
    int64_t shape[FASTDROP_MAX_DIMS];
    int64_t noise_shape[FASTDROP_MAX_DIMS];
    int64_t saved_bytes; /* for the packed mask and the rate */
} shapes;

typedef struct {
    char text[200];
} shape_text;

/* The shape as Python prints it, cut off after 199 characters. */
static shape_text text_of(const int64_t *shape, int64_t count) {
    shape_text of = {"("};
    size_t used = 1;
    const size_t room = sizeof of.text;
    for (int64_t i = 0; i < count && used < room; i++) {
        const char *comma = i ? ", " : "";
        used += (size_t)(shape[i] < 0 ? snprintf(of.text + used, room - used, "%sNone", comma)
                                      : snprintf(of.text + used, room - used, "%s%" PRId64, comma,
                                                 shape[i]));
    }
    if (used < room)
        snprintf(of.text + used, room - used, count == 1 ? ",)" : ")");
    return of;
}

static bool read_shapes(const operation *op, const TF_Tensor *tensor, shapes *of,
                        TF_Status *status) {
    of->ndim = TF_NumDims(tensor);
    if (of->ndim > FASTDROP_MAX_DIMS) {
        invalid(status, "Dropout expects at most %d dimensions. Received: %d", FASTDROP_MAX_DIMS,
                of->ndim);
        return false;
    }
    for (int i = 0; i < of->ndim; i++)
        of->shape[i] = TF_Dim(tensor, i);
    /* Without a noise shape, the mask has the tensor's shape. */
    memcpy(of->noise_shape, of->shape, sizeof of->shape);
    if (op->rank >= 0
        && fastdrop_fit_noise_shape(of->ndim, of->shape, (int)op->rank, op->noise_shape,
                                    of->noise_shape)
               != FASTDROP_OK) {
        invalid(status,
                "Invalid value received for argument `noise_shape`. Expected as many entries as "
                "the input has dimensions, each None, 1 or the input's size there. Received: "
                "noise_shape=%s for an input of shape %s",
                text_of(op->noise_shape, op->rank).text, text_of(of->shape, of->ndim).text);
        return false;
    }
    of->saved_bytes = fastdrop_mask_bytes(of->ndim, of->noise_shape) + (int64_t)sizeof(double);
    if (of->saved_bytes < (int64_t)sizeof(double))
        invalid(status,
                "`noise_shape` must have a product below 2^63. Received: a mask of shape %s",
                text_of(of->noise_shape, of->ndim).text);
    return !failed(status);
}

/* From this size, glibc maps and unmaps memory for each allocation, so all pages of an output are
   new: for 64 MiB that is 16,384 page faults, or 32 with huge pages. */
static const size_t always_new = (size_t)32 << 20;

static void advise_huge_pages(void *data, size_t bytes) {
    if (bytes < always_new)
        return;
    const uintptr_t page = 4096, first = ((uintptr_t)data + page - 1) & ~(page - 1);
    /* A system without huge pages ignores the advice. */
    (void)madvise((void *)first, ((uintptr_t)data + bytes - first) & ~(page - 1), MADV_HUGEPAGE);
}

/* Returns an output over the input if TensorFlow can reuse its memory, else a new tensor.
   TensorFlow reuses memory only without other handles of the input, so this function deletes the
   handle. The memory itself remains until the kernel returns. */
static TF_Tensor *output_over(TF_OpKernelContext *context, TF_Tensor **input, const shapes *of,
                              TF_Status *status) {
    int forwarded, candidate = 0;
    TF_DeleteTensor(*input);
    *input = NULL;
    TF_Tensor *output = TF_ForwardInputOrAllocateOutput(context, &candidate, 1, 0, of->shape,
                                                        of->ndim, &forwarded, status);
    if (!failed(status) && forwarded < 0)
        advise_huge_pages(TF_TensorData(output), TF_TensorByteSize(output));
    return output;
}

static bool read_seed(const TF_Tensor *tensor, fastdrop_seed *seed, TF_Status *status) {
    size_t count = TF_TensorByteSize(tensor) / sizeof(int64_t);
    int64_t words[3] = {0, 0, 0};
    if (TF_NumDims(tensor) != 1 || (count != 2 && count != 3)) {
        invalid(status,
                "`seed` must hold 2 or 3 integers: the low word, the step and, if there, "
                "the high word. Received: %zu of rank %d",
                count, TF_NumDims(tensor));
        return false;
    }
    memcpy(words, TF_TensorData(tensor), count * sizeof(int64_t));
    seed->low = (uint64_t)words[0];
    seed->high = (uint64_t)words[2];
    seed->step = (uint64_t)words[1];
    return true;
}

static bool read_parameter(const operation *op, const TF_Tensor *tensor, double *parameter,
                           TF_Status *status) {
    const char *wrong;
    if (TF_NumDims(tensor) != 0) {
        invalid(status, "`%s` must be a scalar. Received: a tensor of rank %d",
                op->random_kind == GAUSSIAN_NOISE ? "stddev" : "rate", TF_NumDims(tensor));
        return false;
    }
    memcpy(parameter, TF_TensorData(tensor), sizeof *parameter);
    wrong = wrong_parameter((int)op->random_kind, *parameter);
    if (wrong)
        invalid(status, "%s. Received: %g", wrong, *parameter);
    return !failed(status);
}

/* fastdrop computes the scale from the rate: this thread may have another rounding mode. */
static fastdrop_dropout dropout_of(const operation *op, const shapes *of, double rate) {
    return (fastdrop_dropout){.kind = op->kind,
                              .ndim = of->ndim,
                              .shape = of->shape,
                              .noise_shape = of->noise_shape,
                              .rate = rate,
                              .scale = FASTDROP_INVERTED};
}

static void check_done(int done, TF_Status *status) {
    if (done == FASTDROP_BAD_RATE)
        invalid(status, "`rate` must be from 0 to 1 for each element");
    else if (done != FASTDROP_OK)
        invalid(status, "fastdrop refused the dropout, with status %d of fastdrop.h", done);
}

/* `tensors` are the inputs, then the outputs. `compute` deletes them. */
static void forward(const operation *op, TF_OpKernelContext *context, TF_Tensor **tensors,
                    TF_Status *status) {
    const void *x = TF_TensorData(tensors[0]);
    const fastdrop_api *api = fastdrop_or_failure(status);
    fastdrop_seed seed;
    fastdrop_dropout dropout;
    uint8_t *saved;
    double rate;
    shapes of;
    if (failed(status) || !read_shapes(op, tensors[0], &of, status)
        || !read_seed(tensors[1], &seed, status) || !read_parameter(op, tensors[2], &rate, status))
        return;
    tensors[3] = output_over(context, &tensors[0], &of, status);
    if (failed(status))
        return;
    tensors[4] =
        TF_AllocateOutput(context, 1, TF_UINT8, &of.saved_bytes, 1, (size_t)of.saved_bytes, status);
    if (failed(status))
        return;
    dropout = dropout_of(op, &of, rate);
    dropout.seed = seed;
    saved = TF_TensorData(tensors[4]);
    check_done(api->forward(&dropout, TF_TensorData(tensors[3]), NULL, x, NULL, saved), status);
    memcpy(saved + of.saved_bytes - sizeof rate, &rate, sizeof rate);
}

static void backward(const operation *op, TF_OpKernelContext *context, TF_Tensor **tensors,
                     TF_Status *status) {
    const void *dy = TF_TensorData(tensors[0]);
    const uint8_t *saved = TF_TensorData(tensors[1]);
    const fastdrop_api *api = fastdrop_or_failure(status);
    fastdrop_dropout dropout;
    double rate;
    shapes of;
    if (failed(status) || !read_shapes(op, tensors[0], &of, status))
        return;
    if (TF_NumDims(tensors[1]) != 1 || TF_Dim(tensors[1], 0) != of.saved_bytes) {
        invalid(status,
                "`saved` must be %" PRId64 " bytes for `dy` of shape %s. Received: %zu "
                "of rank %d",
                of.saved_bytes, text_of(of.shape, of.ndim).text, TF_TensorByteSize(tensors[1]),
                TF_NumDims(tensors[1]));
        return;
    }
    tensors[2] = output_over(context, &tensors[0], &of, status);
    if (failed(status))
        return;
    memcpy(&rate, saved + of.saved_bytes - sizeof rate, sizeof rate);
    dropout = dropout_of(op, &of, rate);
    check_done(api->backward(&dropout, TF_TensorData(tensors[2]), NULL, dy, NULL, saved), status);
}

static void draw(const operation *op, TF_OpKernelContext *context, TF_Tensor **tensors,
                 TF_Status *status) {
    const void *x = TF_TensorData(tensors[0]);
    const fastdrop_api *api = fastdrop_or_failure(status);
    const int kind = (int)op->random_kind;
    fastdrop_seed seed;
    fastdrop_dropout dropout;
    float_state saved;
    double parameter;
    shapes of;
    if (failed(status) || !read_shapes(op, tensors[0], &of, status)
        || !read_seed(tensors[1], &seed, status)
        || !read_parameter(op, tensors[2], &parameter, status))
        return;
    tensors[3] = output_over(context, &tensors[0], &of, status);
    if (failed(status))
        return;
    dropout = dropout_of(op, &of, parameter);
    dropout.seed = seed;
    saved = float_state_enter();
    set_parameter(&dropout, kind, parameter);
    check_done(draw_kind(api, &dropout, kind, TF_TensorData(tensors[3]), x), status);
    float_state_leave(saved);
}

static void compute(void *created, TF_OpKernelContext *context) {
    const operation *op = created;
    void (*const run[])(const operation *, TF_OpKernelContext *, TF_Tensor **,
                        TF_Status *) = {forward, backward, draw};
    const int inputs = op->role == BACKWARD ? 2 : 3;
    TF_Status *status = TF_NewStatus();
    TF_Tensor *tensors[5] = {NULL};
    for (int i = 0; i < inputs && !failed(status); i++)
        TF_GetInput(context, i, &tensors[i], status);
    if (!failed(status))
        run[op->role](op, context, tensors, status);
    for (int i = 0; i < 5; i++)
        if (tensors[i])
            TF_DeleteTensor(tensors[i]);
    if (failed(status))
        TF_OpKernelContext_Failure(context, status);
    TF_DeleteStatus(status);
}

/* ---- Registration ---- */

static void infer_shapes(TF_ShapeInferenceContext *context, TF_Status *status) {
    TF_ShapeHandle *handle = TF_NewShapeHandle();
    TF_ShapeHandle *vector = TF_NewShapeHandle();
    TF_ShapeInferenceContextSetUnknownShape(context, status);
    if (!failed(status))
        TF_ShapeInferenceContextGetInput(context, 1, handle, status);
    if (!failed(status)) /* `seed`, or `saved` */
        TF_ShapeInferenceContextWithRank(context, handle, 1, vector, status);
    if (!failed(status))
        TF_ShapeInferenceContextGetInput(context, 0, handle, status);
    if (!failed(status))
        TF_ShapeInferenceContextSetOutput(context, 0, handle, status);
    TF_DeleteShapeHandle(handle);
    TF_DeleteShapeHandle(vector);
}

static void print_failure(const char *name, const TF_Status *status) {
    if (failed(status))
        fprintf(stderr, "fastdrop: TensorFlow did not register %s: %s\n", name, TF_Message(status));
}

static void register_operation(const char *name, const char *const *inputs,
                               const char *const *outputs, const char *const *attributes) {
    TF_Status *status = TF_NewStatus();
    TF_OpDefinitionBuilder *builder = TF_NewOpDefinitionBuilder(name);
    for (; *attributes; attributes++)
        TF_OpDefinitionBuilderAddAttr(builder, *attributes);
    for (; *inputs; inputs++)
        TF_OpDefinitionBuilderAddInput(builder, *inputs);
    for (; *outputs; outputs++)
        TF_OpDefinitionBuilderAddOutput(builder, *outputs);
    TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, infer_shapes);
    TF_RegisterOpDefinition(builder, status);
    print_failure(name, status);
    TF_DeleteStatus(status);
}

static void register_kernels(const char *name, const char *device,
                             void *(*make)(TF_OpKernelConstruction *)) {
    static const TF_DataType dtypes[] = {TF_HALF, TF_BFLOAT16, TF_FLOAT, TF_DOUBLE};
    TF_Status *status = TF_NewStatus();
    for (int i = 0; i < 4; i++) {
        TF_KernelBuilder *builder = TF_NewKernelBuilder(name, device, make, compute, destroy);
        TF_KernelBuilder_TypeConstraint(builder, "T", dtypes[i], status);
        if (!failed(status))
            TF_RegisterKernelBuilder(name, builder, status);
        print_failure(name, status);
    }
    TF_DeleteStatus(status);
}

#define TYPES "T: {half, bfloat16, float, double}"
#define NOISE_SHAPE "noise_shape: list(int) = []", "noise_rank: int = -1"

__attribute__((constructor)) static void register_all(void) {
    register_operation("FastdropForward",
                       (const char *[]){"x: T", "seed: int64", "rate: double", NULL},
                       (const char *[]){"y: T", "saved: uint8", NULL},
                       (const char *[]){TYPES, NOISE_SHAPE, "stream: int", NULL});
    register_operation("FastdropBackward", (const char *[]){"dy: T", "saved: uint8", NULL},
                       (const char *[]){"dx: T", NULL}, (const char *[]){TYPES, NOISE_SHAPE, NULL});
    register_operation("FastdropDraw",
                       (const char *[]){"x: T", "seed: int64", "parameter: double", NULL},
                       (const char *[]){"y: T", NULL},
                       (const char *[]){TYPES, NOISE_SHAPE, "kind: int", "stream: int", NULL});
    register_kernels("FastdropForward", "CPU", create_forward);
    register_kernels("FastdropBackward", "CPU", create_backward);
    register_kernels("FastdropDraw", "CPU", create_draw);
    register_kernels("FastdropForward", "XLA_CPU_JIT", refuse_xla);
    register_kernels("FastdropBackward", "XLA_CPU_JIT", refuse_xla);
    register_kernels("FastdropDraw", "XLA_CPU_JIT", refuse_xla);
}
