/* Defines dropout and other random operations as a handler of XLA's typed foreign function interface,
   for programs that XLA compiles for the CPU.

       y = fastdrop_dropout(x, words, noise_shape[, block])    {stream[, kind]}

   x, y         buffers of one shape and dtype
   words        int64: the seed's low word, the step, the high word if there are four, and the bits
                of the rate as float64, or of the stddev of GAUSSIAN_NOISE. If it has more
                dimensions, they are the first dimensions of x: each part of x has its own words
   noise_shape  int64: for each other dimension of x 1, its size, or -1 for that
   block        int64, two rows, if x is a block of a larger array: for each other dimension the size
                of the larger array, and the index at which x begins. The mask is that of the larger
                array
   stream       int64: the version of the random stream that the program was made with
   kind         int64: an enum random_kind; without it DROPOUT. Only DROPOUT and
                ALPHA_DROPOUT_GRADIENT have blocks. BERNOULLI has no noise shape

   The mask or the noise is drawn anew in each call, so the gradient of DROPOUT and GAUSSIAN_DROPOUT
   for x is the same function of dy.

   The file declares the structs of the interface itself, and so builds without XLA's headers. The
   fields in use are the same in all versions 0.x of the interface. Python passes in fastdrop's
   public C interface, which computes the dropout, and XLA's functions. */

#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastdrop.h"
#include "random_operations.h"

#define EXPORTED __attribute__((visibility("default")))

/* ---- XLA's interface: xla/ffi/api/c_api.h ---- */

enum {
    SCALAR = 3,   /* an attribute */
    METADATA = 1, /* an extension */
    EXECUTE = 3,  /* a stage */
    S64 = 5,      /* types of elements */
    F16 = 10,
    F32 = 11,
    F64 = 12,
    BF16 = 16,
    INVALID_ARGUMENT = 3, /* errors */
    RESOURCE_EXHAUSTED = 8,
    FAILED_PRECONDITION = 9
};

typedef struct xla_error xla_error;
typedef struct xla_call xla_call;
typedef xla_error *xla_handler(xla_call *);

typedef struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
} xla_extension;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int major, minor;
} xla_version;

typedef struct {
    const char *text;
    size_t size;
} xla_text;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    const char *message;
    int code;
} xla_new_error;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_error *error;
    const char *message;
} xla_get_message;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_error *error;
} xla_destroy_error;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_text name, platform;
    xla_handler *instantiate, *prepare, *initialize, *execute;
    uint32_t traits;
} xla_registration;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    xla_error *(*create_error)(xla_new_error *);
    void (*get_message)(xla_get_message *);
    void (*destroy_error)(xla_destroy_error *);
    xla_error *(*register_handler)(xla_registration *);
} xla_api;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} xla_buffer;

typedef struct {
    size_t struct_size;
    xla_extension *extensions;
    int64_t size;
    int *types;
    void **values;
} xla_values;

struct xla_call {
    size_t struct_size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_values arguments, results;
    struct {
        size_t struct_size;
        xla_extension *extensions;
        int64_t size;
        int *types;
        xla_text **names;
        void **values;
    } attributes;
};

typedef struct {
    int dtype;
    void *value;
} xla_scalar;

typedef struct {
    xla_extension base;
    struct {
        size_t struct_size;
        xla_version version;
        uint32_t traits;
    } *metadata;
} xla_metadata;

/* ---- fastdrop's C interface, from Python ---- */

static _Atomic(const fastdrop_api *) fastdrop;

/* Returns 0, or the version of the interface that this file needs if `api` is older. */
EXPORTED int fastdrop_use(const fastdrop_api *api) {
    if (api && !fastdrop_serves(api))
        return FASTDROP_API_VERSION;
    atomic_store(&fastdrop, api);
    return 0;
}

/* ---- The handler ---- */

static xla_error *failure(const xla_call *call, int code, const char *format, ...) {
    char message[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    xla_new_error error = {sizeof error, NULL, message, code};
    return call->api->create_error(&error);
}

#define invalid(call, ...) failure(call, INVALID_ARGUMENT, __VA_ARGS__)

static int element_kind_of(int dtype) {
    return dtype == F16    ? FASTDROP_FLOAT16
           : dtype == BF16 ? FASTDROP_BFLOAT16
           : dtype == F32  ? FASTDROP_FLOAT32
           : dtype == F64  ? FASTDROP_FLOAT64
                           : -1;
}

static const void *attribute(const xla_call *call, const char *name, int type) {
    for (int64_t i = 0; i < call->attributes.size; i++) {
        const xla_text *found = call->attributes.names[i];
        if (call->attributes.types[i] == type && found->size == strlen(name)
            && !memcmp(found->text, name, found->size))
            return call->attributes.values[i];
    }
    return NULL;
}

/* Refuses a program that a fastdrop with another stream made: its seeds would draw other masks
   here, without a message. */
static xla_error *check_stream(const xla_call *call, const fastdrop_api *api) {
    const xla_scalar *stream = attribute(call, "stream", SCALAR);
    if (!stream || stream->dtype != S64)
        return invalid(call, "Dropout needs the attribute `stream`, an int64");
    if (*(const int64_t *)stream->value != (int64_t)api->stream)
        return failure(call, FAILED_PRECONDITION,
                       "This program was made with random stream %" PRId64
                       ", and the installed fastdrop draws stream %" PRIu32
                       ", which has other masks",
                       *(const int64_t *)stream->value, api->stream);
    return NULL;
}

static xla_error *read_kind(const xla_call *call, bool has_block, int *kind) {
    const xla_scalar *given = attribute(call, "kind", SCALAR);
    const int64_t number = given && given->dtype == S64 ? *(const int64_t *)given->value : DROPOUT;
    if (number < 0 || number >= RANDOM_KINDS)
        return invalid(call, "This fastdrop has no random operation of kind %" PRId64, number);
    if (has_block && number != DROPOUT && number != ALPHA_DROPOUT_GRADIENT)
        return invalid(call, "The random operation of kind %" PRId64 " has no blocks", number);
    *kind = (int)number;
    return NULL;
}

/* The words of all parts. */
typedef struct {
    const int64_t *words;
    size_t each;    /* words for a part */
    int dimensions; /* the first dimensions of x, whose elements are the parts */
    size_t count;   /* of parts */
} xla_parts;

static xla_error *read_parts(const xla_call *call, const xla_buffer *x, const xla_buffer *words,
                             xla_parts *parts) {
    const int64_t last = words->rank - 1;
    if (words->dtype != S64 || last < 0 || last > x->rank
        || (words->dims[last] != 3 && words->dims[last] != 4)
        || memcmp(words->dims, x->dims, (size_t)last * sizeof *x->dims) != 0)
        return invalid(call, "Dropout needs 3 or 4 words for each part of the input: the seed's "
                             "low word, the step, the high word if there, and the bits of the "
                             "rate");
    *parts = (xla_parts){words->data, (size_t)words->dims[last], (int)last, 1};
    for (int64_t i = 0; i < last; i++)
        parts->count *= (size_t)words->dims[i];
    return NULL;
}

static xla_error *read_words(const xla_call *call, int kind, const xla_parts *parts, size_t part,
                             fastdrop_dropout *dropout, double *parameter) {
    const int64_t *words = parts->words + part * parts->each;
    int64_t word[4];
    memcpy(word, words, parts->each * sizeof *word);
    dropout->seed.low = (uint64_t)word[0];
    dropout->seed.step = (uint64_t)word[1];
    dropout->seed.high = parts->each == 4 ? (uint64_t)word[2] : 0;
    memcpy(parameter, &word[parts->each - 1], sizeof *parameter);
    const char *wrong = wrong_parameter(kind, *parameter);
    if (wrong)
        return invalid(call, "%s. Received: %g", wrong, *parameter);
    return NULL;
}

static xla_error *read_noise_shape(const xla_call *call, const xla_buffer *entries, int ndim,
                                   const int64_t *shape, int64_t *noise_shape) {
    if (entries->dtype != S64 || entries->rank != 1 || entries->dims[0] != ndim
        || fastdrop_fit_noise_shape(ndim, shape, ndim, entries->data, noise_shape) != FASTDROP_OK)
        return invalid(call, "Invalid value received for argument `noise_shape`. Expected as many "
                             "entries as the input has dimensions, each None, 1 or the input's "
                             "size there");
    if (fastdrop_mask_bytes(ndim, noise_shape) < 0)
        return invalid(call, "`noise_shape` must have a product below 2^63");
    return NULL;
}

/* x as a block of a larger array: the larger mask's shape, and where the block's mask begins. */
typedef struct {
    int64_t shape[FASTDROP_MAX_DIMS], start[FASTDROP_MAX_DIMS];
} xla_block;

static xla_error *read_block(const xla_call *call, const xla_buffer *block,
                             const xla_buffer *entries, int ndim, const int64_t *shape,
                             xla_block *found) {
    if (block->dtype != S64 || block->rank != 2 || block->dims[0] != 2 || block->dims[1] != ndim)
        return invalid(call, "Dropout of a block needs the larger array's size and the block's "
                             "start in each dimension");
    const int64_t *sizes = block->data, *starts = sizes + ndim;
    for (int i = 0; i < ndim; i++) {
        const bool shared = ((const int64_t *)entries->data)[i] == 1;
        if (starts[i] < 0 || starts[i] > sizes[i] - shape[i])
            return invalid(call, "A block of dropout is not inside its larger array");
        found->shape[i] = shared ? 1 : sizes[i];
        found->start[i] = shared ? 0 : starts[i];
    }
    if (fastdrop_mask_bytes(ndim, found->shape) < 0)
        return invalid(call, "The mask of a larger array must have less than 2^63 elements");
    return NULL;
}

static bool same_type(const xla_buffer *x, const xla_buffer *y) {
    return x->dtype == y->dtype && x->rank == y->rank
           && !memcmp(x->dims, y->dims, (size_t)x->rank * sizeof *x->dims);
}

static size_t bytes_of(int kind, int ndim, const int64_t *shape) {
    size_t bytes = kind == FASTDROP_FLOAT64 ? 8 : kind == FASTDROP_FLOAT32 ? 4 : 2;
    for (int i = 0; i < ndim; i++)
        bytes *= (size_t)shape[i];
    return bytes;
}

enum {
    WINDOW = 1 << 15,
    AT_ONCE = 48,
    SLACK = 8
};

/* Sets `count` zero bits of `to` from bit `at` on. Up to SLACK bytes more are read and written. */
static void copy_bits(uint8_t *to, uint64_t at, const uint8_t *from, uint64_t first,
                      uint64_t count) {
    while (count) {
        const uint64_t some = count < AT_ONCE ? count : AT_ONCE;
        uint64_t bits, old;
        memcpy(&bits, from + first / 8, sizeof bits);
        memcpy(&old, to + at / 8, sizeof old);
        bits = bits >> first % 8 & (((uint64_t)1 << some) - 1);
        old |= bits << at % 8;
        memcpy(to + at / 8, &old, sizeof old);
        at += some, first += some, count -= some;
    }
}

/* Draws the bits of a block, which are zero. The block's rows have one range of bits each. Rows
   that are near each other are drawn together: a draw computes 4096 bits at least. */
static void draw_block(const fastdrop_api *api, const fastdrop_dropout *dropout,
                       const xla_block *block, uint8_t *bits) {
    uint8_t window[WINDOW / 8 + SLACK];
    const int ndim = dropout->ndim;
    uint64_t strides[FASTDROP_MAX_DIMS], whole = 1, first = 0;
    uint64_t row = 1, size = 1, rows = 1, from = 0, end = 0, at = 0;
    int64_t index[FASTDROP_MAX_DIMS];
    int outer = ndim;
    /* The last dimensions, up to the first that the block has a part of. */
    while (outer && row == size) {
        outer--;
        row *= (uint64_t)dropout->noise_shape[outer];
        size *= (uint64_t)block->shape[outer];
    }
    for (int i = ndim - 1; i >= 0; i--) {
        strides[i] = whole, index[i] = 0;
        first += (uint64_t)block->start[i] * whole;
        whole *= (uint64_t)block->shape[i];
        rows *= i < outer ? (uint64_t)dropout->noise_shape[i] : 1;
    }
    for (uint64_t number = 0; row && number < rows; number++) {
        for (uint64_t done = 0; done < row;) {
            const uint64_t here = first + done, left = row - done;
            if (here < from || here >= end) {
                const uint64_t most = size < WINDOW ? WINDOW : left < WINDOW ? left : WINDOW;
                from = here, end = here + (most < whole - here ? most : whole - here);
                api->draw(&dropout->seed, dropout->rate, from, end - from, window);
            }
            const uint64_t some = left < end - here ? left : end - here;
            copy_bits(bits, at, window, here - from, some);
            at += some, done += some;
        }
        /* To the next row. */
        for (int i = outer - 1; i >= 0; i--) {
            first += strides[i];
            if (++index[i] < dropout->noise_shape[i])
                break;
            first -= strides[i] * (uint64_t)index[i], index[i] = 0;
        }
    }
}

/* Drops elements of a block. Returns a status of fastdrop.h. */
static int drop_block(const fastdrop_api *api, const fastdrop_dropout *dropout,
                      const xla_block *block, void *y, const void *x) {
    const int64_t bytes = fastdrop_mask_bytes(dropout->ndim, dropout->noise_shape);
    uint8_t *bits = calloc((size_t)bytes + SLACK, 1);
    if (!bits)
        return FASTDROP_NO_MEMORY;
    draw_block(api, dropout, block, bits);
    const int status = api->backward(dropout, y, NULL, x, NULL, bits);
    free(bits);
    return status;
}

static xla_error *draw(const xla_call *call) {
    const fastdrop_api *api = atomic_load(&fastdrop);
    int64_t noise_shape[FASTDROP_MAX_DIMS];
    xla_parts parts = {0};
    xla_block block;
    xla_error *error;
    if (!api)
        return failure(call, FAILED_PRECONDITION, "Dropout needs fastdrop to be imported");
    const bool has_block = call->arguments.size == 4;
    if ((call->arguments.size != 3 && !has_block) || call->results.size != 1)
        return invalid(call, "Dropout has three or four arguments and one result");
    const xla_buffer *x = call->arguments.values[0], *words = call->arguments.values[1];
    const xla_buffer *y = call->results.values[0];
    const int elements = element_kind_of(x->dtype);
    int kind = DROPOUT;
    if (elements < 0 || x->rank > FASTDROP_MAX_DIMS || !same_type(x, y))
        return invalid(call,
                       "Dropout expects float16, bfloat16, float32 or float64 of at most %d "
                       "dimensions, and a result like its input",
                       FASTDROP_MAX_DIMS);
    if ((error = check_stream(call, api)) || (error = read_kind(call, has_block, &kind))
        || (error = read_parts(call, x, words, &parts)))
        return error;
    const int ndim = (int)x->rank - parts.dimensions;
    const int64_t *shape = x->dims + parts.dimensions;
    const size_t bytes = bytes_of(elements, ndim, shape);
    const xla_buffer *entries = call->arguments.values[2];
    if ((error = read_noise_shape(call, entries, ndim, shape, noise_shape)))
        return error;
    if (has_block
        && (error = read_block(call, call->arguments.values[3], entries, ndim, shape, &block)))
        return error;
    fastdrop_dropout dropout = {
        .kind = elements, .ndim = ndim, .shape = shape, .noise_shape = noise_shape};
    for (size_t part = 0; part < parts.count; part++) {
        double parameter;
        if ((error = read_words(call, kind, &parts, part, &dropout, &parameter)))
            return error;
        /* This thread may have another rounding mode. */
        const float_state saved = float_state_enter();
        void *to = (char *)y->data + part * bytes;
        const void *from = (const char *)x->data + part * bytes;
        set_parameter(&dropout, kind, parameter);
        const int done = has_block ? drop_block(api, &dropout, &block, to, from)
                                   : draw_kind(api, &dropout, kind, to, from);
        float_state_leave(saved);
        if (done == FASTDROP_NO_MEMORY)
            return failure(call, RESOURCE_EXHAUSTED, "There is no memory for a dropout's mask");
        if (done == FASTDROP_BAD_RATE)
            return invalid(call, "`rate` must be from 0 to 1 for each element");
        if (done != FASTDROP_OK)
            return invalid(call, "fastdrop refused the dropout, with status %d of fastdrop.h",
                           done);
    }
    return NULL;
}

/* The version of the interface that a handler is registered with. */
static xla_version registered;

/* XLA calls a handler at registration to ask for the version that it was compiled for, and refuses
   any other than its own. */
static bool tell_version(const xla_call *call) {
    for (xla_extension *one = call->extensions; one; one = one->next) {
        if (one->type != METADATA)
            continue;
        const xla_version *version = call->api ? &call->api->version : &registered;
        xla_metadata *extension = (xla_metadata *)one;
        extension->metadata->version.major = version->major;
        extension->metadata->version.minor = version->minor;
        extension->metadata->traits = 0;
        return true;
    }
    return false;
}

EXPORTED xla_error *fastdrop_dropout_handler(xla_call *call) {
    if (tell_version(call) || call->stage != EXECUTE)
        return NULL;
    return draw(call);
}

/* Registers the handler with XLA's functions in this process. Returns NULL, or a text that says why
   not. */
EXPORTED const char *fastdrop_register(const xla_api *api, const char *name) {
    static char refusal[512];
    xla_get_message message;
    if (api->version.major)
        return "XLA's foreign functions have another major version than 0";
    registered = api->version;
    xla_registration registration = {.struct_size = sizeof registration,
                                     .name = {name, strlen(name)},
                                     .platform = {"Host", 4},
                                     .execute = fastdrop_dropout_handler};
    xla_error *error = api->register_handler(&registration);
    if (!error)
        return NULL;
    message = (xla_get_message){sizeof message, NULL, error, ""};
    api->get_message(&message);
    snprintf(refusal, sizeof refusal, "XLA did not register the handler: %s", message.message);
    xla_destroy_error destroy = {sizeof destroy, NULL, error};
    api->destroy_error(&destroy);
    return refusal;
}
