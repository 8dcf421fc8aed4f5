/* Owns the programs that run the native operations as TensorFlow would, for sanitizers to watch:
   what they need of TensorFlow's C interface is here, over memory that ends where a tensor does. */
#include "native_op.c"

#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);        \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

/* ---- TensorFlow's side ---- */

/* What was made and not yet given back, in this thread. */
static _Thread_local int alive;

/* Which of the calls that can fail is to fail next, counted down; none at 0. */
static _Thread_local int fails_at;

static void *made(size_t size) {
    void *block = calloc(1, size);
    CHECK(block);
    alive++;
    return block;
}

static void given_back(void *block) {
    CHECK(block);
    free(block);
    alive--;
}

struct TF_Status {
    TF_Code code;
    char message[600];
};

TF_Status *TF_NewStatus(void) {
    return made(sizeof(TF_Status));
}

void TF_DeleteStatus(TF_Status *status) {
    given_back(status);
}

void TF_SetStatus(TF_Status *status, TF_Code code, const char *message) {
    status->code = code;
    snprintf(status->message, sizeof status->message, "%s", message);
}

TF_Code TF_GetCode(const TF_Status *status) {
    return status->code;
}

const char *TF_Message(const TF_Status *status) {
    return status->message;
}

enum { FAILS_BY_ORDER = 13 };

static bool succeeds(TF_Status *status) {
    bool fails = fails_at && --fails_at == 0;
    TF_SetStatus(status, fails ? FAILS_BY_ORDER : TF_OK, fails ? "by order" : "");
    return !fails;
}

/* A tensor's memory belongs to all of its handles, and to the operation that it is an input of. */
typedef struct {
    int owners;
    size_t bytes;
    void *data; /* of exactly that size; NULL for none, as in TensorFlow */
} memory;

struct TF_Tensor {
    int ndim;
    int64_t shape[FASTDROP_MAX_DIMS + 1];
    memory *memory;
};

static void let_go(memory *of) {
    if (--of->owners == 0) {
        free(of->data);
        given_back(of);
    }
}

static TF_Tensor *tensor_over(memory *of, int ndim, const int64_t *shape) {
    TF_Tensor *tensor = made(sizeof *tensor);
    tensor->ndim = ndim;
    for (int i = 0; i < ndim; i++)
        tensor->shape[i] = shape[i];
    tensor->memory = of;
    of->owners++;
    return tensor;
}

static TF_Tensor *new_tensor(int ndim, const int64_t *shape, size_t bytes) {
    memory *of = made(sizeof *of);
    of->bytes = bytes;
    if (bytes) {
        CHECK(posix_memalign(&of->data, 64, bytes) == 0);
        memset(of->data, 0xa5, bytes);
    }
    return tensor_over(of, ndim, shape);
}

void TF_DeleteTensor(TF_Tensor *tensor) {
    let_go(tensor->memory);
    given_back(tensor);
}

int TF_NumDims(const TF_Tensor *tensor) {
    return tensor->ndim;
}

int64_t TF_Dim(const TF_Tensor *tensor, int index) {
    CHECK(index >= 0 && index < tensor->ndim);
    return tensor->shape[index];
}

size_t TF_TensorByteSize(const TF_Tensor *tensor) {
    return tensor->memory->bytes;
}

void *TF_TensorData(const TF_Tensor *tensor) {
    return tensor->memory->data;
}

struct TF_OpKernelContext {
    TF_Tensor *inputs[2], *outputs[2];
    bool may_forward; /* whether nobody else needs the first input */
    TF_Status failure;
};

void TF_OpKernelContext_Failure(TF_OpKernelContext *context, TF_Status *status) {
    context->failure = *status;
}

void TF_GetInput(TF_OpKernelContext *context, int index, TF_Tensor **tensor, TF_Status *status) {
    TF_Tensor *input = context->inputs[index];
    if (succeeds(status))
        *tensor = tensor_over(input->memory, input->ndim, input->shape);
}

static size_t elements(const int64_t *shape, int ndim) {
    size_t count = 1;
    for (int i = 0; i < ndim; i++)
        count *= (size_t)shape[i];
    return count;
}

static TF_Tensor *output_of(TF_OpKernelContext *context, int index, TF_Tensor *tensor) {
    CHECK(!context->outputs[index]);
    context->outputs[index] = tensor;
    return tensor_over(tensor->memory, tensor->ndim, tensor->shape);
}

TF_Tensor *TF_AllocateOutput(TF_OpKernelContext *context, int index, TF_DataType dtype,
                             const int64_t *shape, int ndim, size_t bytes, TF_Status *status) {
    CHECK(index == 1 && dtype == TF_UINT8 && elements(shape, ndim) == bytes);
    if (!succeeds(status))
        return NULL;
    return output_of(context, index, new_tensor(ndim, shape, bytes));
}

TF_Tensor *TF_ForwardInputOrAllocateOutput(TF_OpKernelContext *context, const int *inputs,
                                           int count, int index, const int64_t *shape, int ndim,
                                           int *forwarded, TF_Status *status) {
    TF_Tensor *input = context->inputs[0], *tensor;
    CHECK(count == 1 && inputs[0] == 0 && index == 0);
    CHECK(elements(shape, ndim) == elements(input->shape, input->ndim));
    if (!succeeds(status))
        return NULL;
    *forwarded = context->may_forward && input->memory->owners == 1 ? 0 : -1;
    tensor = *forwarded < 0 ? new_tensor(ndim, shape, input->memory->bytes)
                            : tensor_over(input->memory, ndim, shape);
    return output_of(context, index, tensor);
}

struct TF_OpKernelConstruction {
    TF_DataType dtype;
    int64_t rank, count;
    int64_t noise_shape[FASTDROP_MAX_DIMS + 1];
    int64_t stream, rate_bits, dial;
    TF_Status failure;
};

void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction *construction, TF_Status *status) {
    construction->failure = *status;
}

void TF_OpKernelConstruction_GetAttrType(TF_OpKernelConstruction *construction, const char *name,
                                         TF_DataType *dtype, TF_Status *status) {
    CHECK(strcmp(name, "T") == 0);
    if (succeeds(status))
        *dtype = construction->dtype;
}

void TF_OpKernelConstruction_GetAttrInt64(TF_OpKernelConstruction *construction, const char *name,
                                          int64_t *value, TF_Status *status) {
    if (succeeds(status))
        *value = strcmp(name, "noise_rank") == 0 ? construction->rank
            : strcmp(name, "stream") == 0        ? construction->stream
            : strcmp(name, "rate_bits") == 0     ? construction->rate_bits
                                                 : construction->dial;
}

void TF_OpKernelConstruction_GetAttrSize(TF_OpKernelConstruction *construction, const char *name,
                                         int32_t *list, int32_t *total, TF_Status *status) {
    CHECK(strcmp(name, "noise_shape") == 0);
    if (succeeds(status)) {
        *list = (int32_t)construction->count;
        *total = -1;
    }
}

void TF_OpKernelConstruction_GetAttrInt64List(TF_OpKernelConstruction *construction,
                                              const char *name, int64_t *values, int most,
                                              TF_Status *status) {
    CHECK(strcmp(name, "noise_shape") == 0 && most == construction->count);
    if (succeeds(status))
        memcpy(values, construction->noise_shape, (size_t)most * sizeof *values);
}

struct TF_ShapeHandle {
    int64_t rank;
};

struct TF_ShapeInferenceContext {
    TF_ShapeHandle inputs[2], output;
};

TF_ShapeHandle *TF_NewShapeHandle(void) {
    return made(sizeof(TF_ShapeHandle));
}

void TF_DeleteShapeHandle(TF_ShapeHandle *handle) {
    given_back(handle);
}

void TF_ShapeInferenceContextGetInput(TF_ShapeInferenceContext *context, int index,
                                      TF_ShapeHandle *handle, TF_Status *status) {
    if (succeeds(status))
        *handle = context->inputs[index];
}

void TF_ShapeInferenceContextWithRank(TF_ShapeInferenceContext *context, TF_ShapeHandle *handle,
                                      int64_t rank, TF_ShapeHandle *result, TF_Status *status) {
    (void)context;
    if (succeeds(status)) {
        *result = *handle;
        if (handle->rank != rank)
            TF_SetStatus(status, TF_INVALID_ARGUMENT, "another rank");
    }
}

void TF_ShapeInferenceContextSetOutput(TF_ShapeInferenceContext *context, int index,
                                       TF_ShapeHandle *handle, TF_Status *status) {
    CHECK(index == 0);
    if (succeeds(status))
        context->output = *handle;
}

void TF_ShapeInferenceContextSetUnknownShape(TF_ShapeInferenceContext *context,
                                             TF_Status *status) {
    if (succeeds(status))
        context->output.rank = -1;
}

/* What the library registers before this program begins. */
struct TF_KernelBuilder {
    void *(*create)(TF_OpKernelConstruction *);
    void (*compute)(void *, TF_OpKernelContext *);
    void (*destroy)(void *);
};

struct TF_OpDefinitionBuilder {
    void (*infer)(TF_ShapeInferenceContext *, TF_Status *);
};

static TF_KernelBuilder forwards, backwards;
static TF_OpDefinitionBuilder definition;
static int kernels_registered;

TF_OpDefinitionBuilder *TF_NewOpDefinitionBuilder(const char *name) {
    (void)name;
    return made(sizeof(TF_OpDefinitionBuilder));
}

void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder *builder, const char *text) {
    (void)builder, (void)text;
}

void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder *builder, const char *text) {
    (void)builder, (void)text;
}

void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder *builder, const char *text) {
    (void)builder, (void)text;
}

void TF_OpDefinitionBuilderSetShapeInferenceFunction(
    TF_OpDefinitionBuilder *builder, void (*infer)(TF_ShapeInferenceContext *, TF_Status *)) {
    builder->infer = infer;
}

void TF_RegisterOpDefinition(TF_OpDefinitionBuilder *builder, TF_Status *status) {
    definition = *builder;
    given_back(builder);
    TF_SetStatus(status, TF_OK, "");
}

TF_KernelBuilder *TF_NewKernelBuilder(const char *name, const char *device,
                                      void *(*make)(TF_OpKernelConstruction *),
                                      void (*run)(void *, TF_OpKernelContext *),
                                      void (*end)(void *)) {
    TF_KernelBuilder *builder = made(sizeof *builder);
    CHECK(strcmp(device, "CPU") == 0);
    *builder = (TF_KernelBuilder){make, run, end};
    *(strcmp(name, "FastdropForward") == 0 ? &forwards : &backwards) = *builder;
    return builder;
}

void TF_KernelBuilder_TypeConstraint(TF_KernelBuilder *builder, const char *attribute,
                                     TF_DataType dtype, TF_Status *status) {
    (void)builder, (void)attribute, (void)dtype;
    TF_SetStatus(status, TF_OK, "");
}

void TF_RegisterKernelBuilder(const char *name, TF_KernelBuilder *builder, TF_Status *status) {
    (void)name;
    kernels_registered++;
    given_back(builder);
    TF_SetStatus(status, TF_OK, "");
}

/* ---- The kernels' side: plain dropout, that touches each byte it was given ---- */

static int itemsize_of(int kind) {
    return kind == FASTDROP_FLOAT64 ? 8 : kind == FASTDROP_FLOAT32 ? 4 : 2;
}

/* Which bit an element has. */
static size_t bit_of(size_t element, int ndim, const int64_t *shape, const int64_t *noise_shape) {
    size_t bit = 0, stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        bit += element % (size_t)shape[i] % (size_t)noise_shape[i] * stride;
        element /= (size_t)shape[i];
        stride *= (size_t)noise_shape[i];
    }
    return bit;
}

static bool is_kept(const fastdrop_seed *seed, double rate, size_t bit) {
    uint64_t mixed = (bit + 1 + seed->low + 3 * seed->high + 5 * seed->step) * 0x9e3779b97f4a7c15;
    return (double)(mixed >> 40) >= rate * (1 << 24);
}

static void use_bits(const fastdrop_dropout *of, char *to, const char *from, const uint8_t *bits) {
    size_t size = (size_t)itemsize_of(of->kind), count = elements(of->shape, of->ndim);
    CHECK(of->rate >= 0 && of->rate <= 1 && of->scale == FASTDROP_INVERTED);
    for (size_t i = 0; i < count; i++) {
        size_t bit = bit_of(i, of->ndim, of->shape, of->noise_shape);
        if (bits[bit / 8] >> bit % 8 & 1)
            memmove(to + i * size, from + i * size, size);
        else
            memset(to + i * size, 0, size);
    }
}

static int plain_forward(const fastdrop_dropout *of, void *y, const int64_t *y_strides,
                         const void *x, const int64_t *x_strides, uint8_t *mask) {
    size_t bits = elements(of->noise_shape, of->ndim), bytes = (bits + 7) / 8;
    CHECK(!y_strides && !x_strides);
    memset(mask, 0, bytes);
    for (size_t bit = 0; bit < bits; bit++)
        if (is_kept(&of->seed, of->rate, bit))
            mask[bit / 8] |= (uint8_t)(1 << bit % 8);
    use_bits(of, y, x, mask);
    return FASTDROP_OK;
}

static int plain_backward(const fastdrop_dropout *of, void *dx, const int64_t *dx_strides,
                          const void *dy, const int64_t *dy_strides, const uint8_t *mask) {
    CHECK(!dx_strides && !dy_strides);
    use_bits(of, dx, dy, mask);
    return FASTDROP_OK;
}

#define STREAM 7
#define INTERFACE_OF(forward, backward)                                                          \
    {FASTDROP_API_VERSION, sizeof(fastdrop_api), STREAM, forward, backward, NULL, NULL, NULL}

static const fastdrop_api plain = INTERFACE_OF(plain_forward, plain_backward);

/* ---- Running operations ---- */

static const TF_DataType DTYPES[] = {TF_HALF, TF_BFLOAT16, TF_FLOAT, TF_DOUBLE};

static int64_t bits_of_rate(double rate) {
    int64_t bits;
    memcpy(&bits, &rate, sizeof bits);
    return bits;
}

static TF_OpKernelConstruction construction_of(TF_DataType dtype, double rate) {
    return (TF_OpKernelConstruction){
        .dtype = dtype, .rank = -1, .stream = STREAM, .rate_bits = bits_of_rate(rate)};
}

static TF_Tensor *new_seed(int count, int64_t first) {
    TF_Tensor *seed = new_tensor(1, (int64_t[]){count}, (size_t)count * sizeof(int64_t));
    for (int i = 0; i < count; i++)
        ((int64_t *)TF_TensorData(seed))[i] = first + i;
    return seed;
}

static TF_Tensor *new_ramp(TF_DataType dtype, int ndim, const int64_t *shape) {
    size_t bytes = elements(shape, ndim) * (size_t)itemsize_of(kind_of(dtype));
    TF_Tensor *tensor = new_tensor(ndim, shape, bytes);
    for (size_t i = 0; i < bytes; i++)
        ((uint8_t *)TF_TensorData(tensor))[i] = (uint8_t)(1 + i % 255);
    return tensor;
}

/* Runs a kernel on inputs that are its own from here on; what it made is in the context. */
static TF_Code run(const TF_KernelBuilder *kernel, void *op, TF_OpKernelContext *context) {
    context->failure.code = TF_OK;
    context->outputs[0] = context->outputs[1] = NULL;
    kernel->compute(op, context);
    for (int i = 0; i < 2; i++)
        TF_DeleteTensor(context->inputs[i]);
    return context->failure.code;
}

static void forget_outputs(TF_OpKernelContext *context) {
    for (int i = 0; i < 2; i++)
        if (context->outputs[i])
            TF_DeleteTensor(context->outputs[i]);
}

/* A dropout and its gradient, to the byte. */
static void drop(const TF_OpKernelConstruction *like, int ndim, const int64_t *shape,
                 bool may_forward, int words) {
    TF_OpKernelConstruction construction = *like;
    void *op = forwards.create(&construction), *back = backwards.create(&construction);
    CHECK(construction.failure.code == TF_OK);
    TF_OpKernelContext there = {.may_forward = may_forward}, again = there;
    TF_Tensor *kept_x = new_ramp(like->dtype, ndim, shape);
    size_t size = (size_t)itemsize_of(kind_of(like->dtype)), count = elements(shape, ndim);
    shapes of = {.ndim = ndim};

    there.inputs[0] = new_ramp(like->dtype, ndim, shape);
    there.inputs[1] = new_seed(words, 7);
    CHECK(run(&forwards, op, &there) == TF_OK);
    again.inputs[0] = new_ramp(like->dtype, ndim, shape);
    again.inputs[1] = there.outputs[1]; /* given back by the run */
    there.outputs[1] = NULL;
    CHECK(run(&backwards, back, &again) == TF_OK);

    for (int i = 0; i < ndim; i++)
        of.shape[i] = shape[i];
    memcpy(of.noise_shape, of.shape, sizeof of.shape);
    if (((operation *)op)->rank >= 0)
        CHECK(fastdrop_fit_noise_shape(ndim, of.shape, (int)((operation *)op)->rank,
                                       ((operation *)op)->noise_shape, of.noise_shape)
              == FASTDROP_OK);
    const fastdrop_seed seed = {.low = 7, .high = words == 3 ? 9 : 0, .step = 8};
    const char *y = TF_TensorData(there.outputs[0]), *dx = TF_TensorData(again.outputs[0]);
    const char *x = TF_TensorData(kept_x);
    const char zero[8] = {0};
    for (size_t i = 0; i < count; i++) {
        bool kept = is_kept(&seed, ((operation *)op)->rate, bit_of(i, ndim, shape, of.noise_shape));
        CHECK(memcmp(y + i * size, kept ? x + i * size : zero, size) == 0);
        CHECK(memcmp(dx + i * size, kept ? x + i * size : zero, size) == 0);
    }
    TF_DeleteTensor(kept_x);
    forget_outputs(&there);
    forget_outputs(&again);
    forwards.destroy(op);
    backwards.destroy(back);
    CHECK(alive == 0);
}

/* ---- The programs ---- */

static void sizes(void) {
    for (int d = 0; d < 4; d++) {
        TF_OpKernelConstruction each = construction_of(DTYPES[d], 0.3), one = each, rows = each;
        one.rank = one.count = 1, one.noise_shape[0] = 1;
        rows.rank = rows.count = 2, rows.noise_shape[0] = -1, rows.noise_shape[1] = 1;
        for (int64_t size = 0; size <= 600; size++) {
            drop(&each, 1, &size, false, 2);
            drop(&each, 1, &size, true, 3);
            drop(&one, 1, &size, size % 2, 3);
            drop(&rows, 2, (int64_t[]){size, 3}, size % 2, 2);
            drop(&rows, 2, (int64_t[]){3, size}, size % 2, 3);
        }
        drop(&each, 0, NULL, false, 2);
        /* Dimensions as many as there can be, of which the noise shape names the last two. */
        int64_t shape[FASTDROP_MAX_DIMS];
        for (int i = 0; i < FASTDROP_MAX_DIMS; i++)
            shape[i] = 1 + i % 9 / 8;
        drop(&each, FASTDROP_MAX_DIMS, shape, true, 3);
        rows.noise_shape[0] = 1;
        drop(&rows, FASTDROP_MAX_DIMS, shape, true, 3);
    }
    /* Where pages are asked for. */
    TF_OpKernelConstruction large = construction_of(TF_FLOAT, 0.5);
    drop(&large, 1, (int64_t[]){((int64_t)8 << 20) + 33}, false, 2);
}

static void refused(const TF_KernelBuilder *kernel, const TF_OpKernelConstruction *like, TF_Tensor *x,
                    TF_Tensor *second, TF_Code code, const char *words) {
    TF_OpKernelConstruction construction = *like;
    void *op = kernel->create(&construction);
    TF_OpKernelContext context = {.inputs = {x, second}};
    CHECK(construction.failure.code == TF_OK);
    TF_Code found = run(kernel, op, &context);
    if (found != code || !strstr(context.failure.message, words))
        fprintf(stderr, "%d: %s\n", found, context.failure.message);
    CHECK(found == code && strstr(context.failure.message, words));
    kernel->destroy(op);
    forget_outputs(&context);
    CHECK(alive == 0);
}

static void refused_at_making(const TF_OpKernelConstruction *like, TF_Code code,
                              const char *words) {
    TF_OpKernelConstruction construction = *like;
    forwards.destroy(forwards.create(&construction));
    CHECK(construction.failure.code == code);
    CHECK(strstr(construction.failure.message, words));
    CHECK(alive == 0);
}

/* Each call that TensorFlow can fail does, one after the other; how many there are. */
static int each_failure(bool backward_too) {
    for (int nth = 1;; nth++) {
        const TF_KernelBuilder *kernel = backward_too ? &backwards : &forwards;
        TF_OpKernelConstruction construction = construction_of(TF_FLOAT, 0.5);
        TF_OpKernelContext context = {.may_forward = nth % 2};
        TF_Code code;
        construction.rank = construction.count = 1;
        construction.noise_shape[0] = -1;
        fails_at = nth;
        void *op = kernel->create(&construction);
        code = construction.failure.code;
        if (code == TF_OK) {
            context.inputs[0] = new_ramp(TF_FLOAT, 1, (int64_t[]){13});
            context.inputs[1] = backward_too ? new_tensor(1, (int64_t[]){2 + 8}, 2 + 8)
                                             : new_seed(2, 1);
            if (backward_too)
                memset(TF_TensorData(context.inputs[1]), 0, 2 + 8);
            code = run(kernel, op, &context);
            forget_outputs(&context);
        }
        kernel->destroy(op);
        CHECK(alive == 0);
        if (fails_at) {
            CHECK(code == TF_OK);
            fails_at = 0;
            return nth - 1;
        }
        CHECK(code == FAILS_BY_ORDER);
    }
}

static void shape_inference(void) {
    for (int nth = 0; nth <= 6; nth++)
        for (int64_t rank = 0; rank < 3; rank++) {
            TF_ShapeInferenceContext context = {.inputs = {{3}, {rank}}, .output = {77}};
            TF_Status status = {0};
            fails_at = nth;
            definition.infer(&context, &status);
            fails_at = 0;
            CHECK(alive == 0);
            if (nth == 0 || nth == 6)
                CHECK(rank == 1 ? !failed(&status) && context.output.rank == 3 : failed(&status));
        }
}

static int refusing_forward(const fastdrop_dropout *of, void *y, const int64_t *y_strides,
                            const void *x, const int64_t *x_strides, uint8_t *mask) {
    (void)of, (void)y, (void)y_strides, (void)x, (void)x_strides, (void)mask;
    return FASTDROP_BAD_RATE;
}

static int refusing_backward(const fastdrop_dropout *of, void *dx, const int64_t *dx_strides,
                             const void *dy, const int64_t *dy_strides, const uint8_t *mask) {
    (void)of, (void)dx, (void)dx_strides, (void)dy, (void)dy_strides, (void)mask;
    return FASTDROP_NO_MEMORY;
}

static void errors(void) {
    TF_OpKernelConstruction usual = construction_of(TF_DOUBLE, 0.5), other;
    int64_t large[FASTDROP_MAX_DIMS + 1], one[FASTDROP_MAX_DIMS + 1];
    for (int i = 0; i <= FASTDROP_MAX_DIMS; i++)
        large[i] = INT64_MAX - i, one[i] = 1;
#define X new_ramp(TF_DOUBLE, 2, (int64_t[]){3, 5})
    fastdrop_use(NULL);
    refused_at_making(&usual, TF_FAILED_PRECONDITION, "to be imported");
    refused(&backwards, &usual, X, new_tensor(1, (int64_t[]){10}, 10), TF_FAILED_PRECONDITION,
            "to be imported");
    /* One that is too old is not taken; one that is newer serves. */
    fastdrop_api older = plain, shorter = plain, newer = plain;
    older.version--, shorter.size--, newer.version++, newer.size += 8;
    CHECK(fastdrop_use(&older) == FASTDROP_API_VERSION);
    CHECK(fastdrop_use(&shorter) == FASTDROP_API_VERSION);
    refused_at_making(&usual, TF_FAILED_PRECONDITION, "to be imported");
    CHECK(fastdrop_use(&newer) == 0);
    drop(&usual, 1, (int64_t[]){16}, false, 2);
    CHECK(fastdrop_use(&plain) == 0);
    other = usual;
    other.stream = 6;
    refused_at_making(&other, TF_FAILED_PRECONDITION, "made with random stream 6");
    refused_at_making(&other, TF_FAILED_PRECONDITION, "draws stream 7");
    fastdrop_api refusing = INTERFACE_OF(refusing_forward, refusing_backward);
    fastdrop_use(&refusing);
    refused(&forwards, &usual, X, new_seed(2, 1), TF_INVALID_ARGUMENT, "status 4 of fastdrop.h");
    refused(&backwards, &usual, X, new_tensor(1, (int64_t[]){10}, 10), TF_INVALID_ARGUMENT,
            "status 7 of fastdrop.h");
    fastdrop_use(&plain);
    for (int words = 0; words < 6; words++)
        if (words != 2 && words != 3)
            refused(&forwards, &usual, X, new_seed(words, 1), TF_INVALID_ARGUMENT, "`seed` must");
    refused(&forwards, &usual, X, new_tensor(0, NULL, 8), TF_INVALID_ARGUMENT, "of rank 0");
    refused(&forwards, &usual, X, new_tensor(2, (int64_t[]){1, 2}, 16), TF_INVALID_ARGUMENT,
            "of rank 2");
    for (int64_t bytes = 0; bytes < 20; bytes++)
        if (bytes != 10)
            refused(&backwards, &usual, X, new_tensor(1, &bytes, (size_t)bytes),
                    TF_INVALID_ARGUMENT, "`residual` must be 10 bytes");
    refused(&backwards, &usual, X, new_tensor(2, (int64_t[]){10, 1}, 10), TF_INVALID_ARGUMENT,
            "of rank 2");
    refused(&backwards, &usual, X, new_tensor(0, NULL, 1), TF_INVALID_ARGUMENT, "of rank 0");
    refused(&forwards, &usual, new_ramp(TF_DOUBLE, FASTDROP_MAX_DIMS + 1, one), new_seed(2, 1),
            TF_INVALID_ARGUMENT, "at most 64 dimensions");
    other = usual;
    other.rank = other.count = 1, other.noise_shape[0] = 4;
    refused(&forwards, &other, X, new_seed(2, 1), TF_INVALID_ARGUMENT, "noise_shape=(4,)");
    other.noise_shape[0] = -1;
    refused(&forwards, &other, X, new_seed(2, 1), TF_INVALID_ARGUMENT, "noise_shape=(None,)");
    /* More to say than there is room for. */
    other.rank = other.count = FASTDROP_MAX_DIMS;
    memcpy(other.noise_shape, large, sizeof large);
    refused(&forwards, &other, X, new_seed(2, 1), TF_INVALID_ARGUMENT, "(9223372036854775807, ");
    refused(&backwards, &other, new_ramp(TF_DOUBLE, FASTDROP_MAX_DIMS, one), new_seed(2, 1),
            TF_INVALID_ARGUMENT, "of shape (1, 1, ");
    other.rank = other.count = FASTDROP_MAX_DIMS + 1;
    refused_at_making(&other, TF_INVALID_ARGUMENT, "at most 64");
    other.count = 3, other.rank = 2;
    refused_at_making(&other, TF_INVALID_ARGUMENT, "3 entries and noise_rank=2");
    other.count = 0, other.rank = -2;
    refused_at_making(&other, TF_INVALID_ARGUMENT, "0 entries and noise_rank=-2");
    for (int i = 0; i < 4; i++) {
        other = construction_of(TF_FLOAT, (double[]){-0.1, 1.1, 1e300, 0.0 / 0.0}[i]);
        refused_at_making(&other, TF_INVALID_ARGUMENT, "`rate_bits` must be those");
    }
    /* Without elements, and with more bits than a size can count. */
    int64_t none[3] = {0, INT64_C(1) << 32, INT64_C(1) << 31};
    other = usual;
    other.rank = other.count = 3, other.noise_shape[0] = 1;
    other.noise_shape[1] = other.noise_shape[2] = -1;
    refused(&forwards, &other, new_tensor(3, none, 0), new_seed(2, 1), TF_INVALID_ARGUMENT,
            "below 2^63");
    none[2] = (INT64_C(1) << 33) + 1;
    refused(&backwards, &other, new_tensor(3, none, 0), new_tensor(1, (int64_t[]){8}, 8),
            TF_INVALID_ARGUMENT, "below 2^63");
    CHECK(each_failure(false) == 11);
    CHECK(each_failure(true) == 7);
    shape_inference();
}

/* One operation runs in many threads while its rate is turned and others are made. */
#define THREADS 4
#define CALLS 400
#define LENGTH 257

static void *shared_op, *shared_back;
static dial *shared_dial;
static const fastdrop_api *fastdrop_of_all = &plain;
static atomic_int running;

static void *compute_often(void *unused) {
    (void)unused;
    for (int i = 0; i < CALLS; i++) {
        TF_OpKernelContext there = {.may_forward = i % 2}, again = {.may_forward = i % 3};
        there.inputs[0] = new_ramp(TF_FLOAT, 1, (int64_t[]){LENGTH});
        there.inputs[1] = new_seed(2 + i % 2, i);
        CHECK(run(&forwards, shared_op, &there) == TF_OK);
        double rate;
        memcpy(&rate, (char *)TF_TensorData(there.outputs[1]) + (LENGTH + 7) / 8, sizeof rate);
        CHECK(rate == 0.25 || rate == 0.75);
        again.inputs[0] = there.outputs[0];
        again.inputs[1] = there.outputs[1];
        CHECK(run(&backwards, shared_back, &again) == TF_OK);
        forget_outputs(&again);
        CHECK(alive == 0);
    }
    atomic_fetch_sub(&running, 1);
    return NULL;
}

static void *make_often(void *first) {
    for (int64_t number = *(int64_t *)first; atomic_load(&running) > 0; number++) {
        TF_OpKernelConstruction construction = construction_of(TF_FLOAT, 0.5);
        dial *own = fastdrop_new_dial(number, 0.25);
        CHECK(own);
        construction.dial = number;
        operation *op = forwards.create(&construction);
        CHECK(op->dial == own);
        forwards.destroy(op);
        /* Python hands the interface over each time its module is loaded. */
        fastdrop_use(fastdrop_of_all);
        fastdrop_turn_dial(shared_dial, number % 2 ? 0.25 : 0.75);
        sched_yield();
    }
    return NULL;
}

static void many_threads(void) {
    TF_OpKernelConstruction construction = construction_of(TF_FLOAT, 0.5);
    pthread_t threads[THREADS + 2];
    int64_t first[2] = {1000000, 2000000};
    shared_dial = fastdrop_new_dial(construction.dial = 1, 0.25);
    shared_op = forwards.create(&construction);
    shared_back = backwards.create(&construction);
    fastdrop_use(fastdrop_of_all);
    atomic_store(&running, THREADS);
    for (int i = 0; i < THREADS + 2; i++)
        CHECK(pthread_create(&threads[i], NULL, i < THREADS ? compute_often : make_often,
                             i < THREADS ? NULL : &first[i - THREADS]) == 0);
    for (int i = 0; i < THREADS + 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    forwards.destroy(shared_op);
    backwards.destroy(shared_back);
}

/* No dial gets lost where threads make them at once. */
#define DIALS 1000

static void *make_dials(void *first) {
    for (int64_t number = 0; number < 20 * DIALS; number++)
        CHECK(fastdrop_new_dial(*(int64_t *)first + number, 0.5));
    return NULL;
}

static void many_dials(void) {
    pthread_t threads[THREADS];
    int64_t first[THREADS], count = 0;
    for (int i = 0; i < THREADS; i++) {
        first[i] = i * 20 * DIALS;
        CHECK(pthread_create(&threads[i], NULL, make_dials, &first[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (dial *each = dials; each; each = each->next)
        count++;
    CHECK(count == THREADS * 20 * DIALS);
}

/* A child of a fork makes operations and dials, whatever its parent's other threads were at. */
#define FORKS 50

static void *make_until_stopped(void *unused) {
    (void)unused;
    while (atomic_load(&running)) {
        /* Looks through all dials. */
        TF_OpKernelConstruction construction = construction_of(TF_FLOAT, 0.5);
        forwards.destroy(forwards.create(&construction));
    }
    return NULL;
}

static void *make_dials_until_stopped(void *unused) {
    (void)unused;
    for (int64_t number = 2 * DIALS; atomic_load(&running); number++) {
        CHECK(fastdrop_new_dial(number, 0.5));
        usleep(20); /* dials stay for good */
    }
    return NULL;
}

static void make_in_child(void) {
    TF_OpKernelConstruction construction = construction_of(TF_FLOAT, 0.5);
    alarm(20); /* which ends a child that hangs */
    dial *own = fastdrop_new_dial(construction.dial = DIALS + 1, 0.25);
    operation *op = forwards.create(&construction);
    _exit(own && op && op->dial == own ? 0 : 1);
}

static void forks(void) {
    pthread_t threads[THREADS];
    for (int64_t number = 1; number <= DIALS; number++)
        CHECK(fastdrop_new_dial(number, 0.5));
    atomic_store(&running, THREADS);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL,
                             i ? make_until_stopped : make_dials_until_stopped, NULL) == 0);
    for (int i = 0; i < FORKS; i++) {
        int status;
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            make_in_child();
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    atomic_store(&running, 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* What the sanitizers have to find: kernels that read a byte too many of the residual, or count
   their calls in all threads without a lock. */
static int over_reading_backward(const fastdrop_dropout *of, void *dx, const int64_t *dx_strides,
                                 const void *dy, const int64_t *dy_strides, const uint8_t *mask) {
    volatile uint8_t read = mask[(elements(of->noise_shape, of->ndim) + 7) / 8 + sizeof(double)];
    (void)read;
    return plain_backward(of, dx, dx_strides, dy, dy_strides, mask);
}

static int counting_forward(const fastdrop_dropout *of, void *y, const int64_t *y_strides,
                            const void *x, const int64_t *x_strides, uint8_t *mask) {
    static int calls;
    calls++;
    return plain_forward(of, y, y_strides, x, x_strides, mask);
}

static const fastdrop_api over_reading = INTERFACE_OF(plain_forward, over_reading_backward);
static const fastdrop_api counting = INTERFACE_OF(counting_forward, plain_backward);

static void byte_too_many(void) {
    TF_OpKernelConstruction construction = construction_of(TF_FLOAT, 0.5);
    fastdrop_use(&over_reading);
    drop(&construction, 1, (int64_t[]){16}, false, 2);
}

static void unguarded_count(void) {
    fastdrop_of_all = &counting;
    many_threads();
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(void);
    } programs[] = {{"sizes", sizes},
                    {"errors", errors},
                    {"many_threads", many_threads},
                    {"many_dials", many_dials},
                    {"forks", forks},
                    {"byte_too_many", byte_too_many},
                    {"unguarded_count", unguarded_count}};
    CHECK(kernels_registered == 8);
    CHECK(alive == 0);
    fastdrop_use(&plain);
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        if (argc == 2 && strcmp(argv[1], programs[i].name) == 0) {
            programs[i].run();
            puts("done");
            return 0;
        }
    return 9;
}
