/* Runs one instruction set's kernels without Python, on any machine or emulator. It reads calls from
   the standard input, and writes all memory that each call could have changed.

   KERNELS is the C file that Cython makes from a kernel module, KERNEL(name) the C name of one of
   its kernels. No kernel calls Python, so the linker drops all functions that use it. */
#include KERNELS

#include <stdio.h>
#include <stdlib.h>

#include "poison.h"

enum {
    DRAW,
    USE,
    NOISE,
    BY_RATES
};
enum {
    APART,
    TO_IS_FROM,
    TO_IS_RESIDUAL
};

/* The start of each call, before the bytes of `from`, the bits, the bias, the residual and the sums.
   A count of zero bytes means NULL. Noise has its numbers in place of a bias. Rates are there too,
   with their scales in place of a residual, and are double if `advance`. */
typedef struct {
    int64_t entry, kind, use, place, advance, has_key, streaming, odd_float_modes;
    int64_t alignment, to_alignment;
    int64_t from_bytes, bits_bytes, bias_bytes, residual_bytes, sums_bytes;
    uint64_t first, size, bit, period, column;
    double scale;
    stream_key key;
} call;

enum {
    GUARD = 64,
    PATTERN = 0xA5
};

/* Memory between two guards, at an offset from a multiple of 64. The guards detect writes, and under
   AddressSanitizer reads by a kernel too. */
typedef struct {
    unsigned char *block, *at;
    size_t bytes;
} memory;

static memory reserve(int64_t bytes, int64_t alignment) {
    memory m = {NULL, NULL, (size_t)bytes};
    size_t whole = ((size_t)bytes + 3 * GUARD) / 64 * 64 + 64;
    m.block = aligned_alloc(64, whole);
    if (m.block == NULL)
        abort();
    memset(m.block, PATTERN, whole);
    m.at = m.block + GUARD + alignment;
    return m;
}

static memory receive(int64_t bytes, int64_t alignment) {
    memory m = reserve(bytes, alignment);
    if (fread(m.at, 1, m.bytes, stdin) != m.bytes)
        abort();
    return m;
}

static void *pointer(memory m) { return m.bytes ? m.at : NULL; }

static void close_guards(memory m) {
    poison(m.at - GUARD, GUARD);
    poison(m.at + m.bytes, GUARD);
}

static void send(memory m) {
    unpoison(m.at - GUARD, m.bytes + 2 * GUARD);
    fwrite(m.at - GUARD, 1, m.bytes + 2 * GUARD, stdout);
}

/* The caller's modes flush subnormals and round down (and on aarch64 replace all NaNs by one and
   have no infinities in half precision). They must not change a result, and must be restored. */
#if defined(__aarch64__)
typedef uint64_t float_modes;
static float_modes modes(void) {
    float_modes control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control) : : "memory");
    return control;
}
static void set_modes(float_modes control) {
    __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory");
}
#define ODD_FLOAT_MODES ((uint64_t)(1 << 26 | 1 << 25 | 1 << 24 | 2 << 22))
#else
#include <xmmintrin.h>
typedef unsigned float_modes;
static float_modes modes(void) { return _mm_getcsr() & ~0x3Fu; }
static void set_modes(float_modes control) { _mm_setcsr(control); }
#define ODD_FLOAT_MODES 0xBFC0u
#endif

int main(void) {
    call c;
    fprintf(stderr, "%s\n", ISA_NAME);
    while (fread(&c, sizeof c, 1, stdin) == 1) {
        memory from = receive(c.from_bytes, c.alignment);
        memory bits = receive(c.bits_bytes, c.alignment % 8);
        memory bias = receive(c.bias_bytes, c.alignment);
        memory residual = receive(c.residual_bytes, c.alignment);
        memory sums = receive(c.sums_bytes, c.alignment);
        memory to = reserve(c.from_bytes, c.to_alignment);
        const stream_key *key = c.has_key ? &c.key : NULL;
        const operands on = {
            .kind = (int)c.kind,
            .use = (int)c.use,
            .size = c.size,
            .to = c.place == TO_IS_FROM       ? from.at
                  : c.place == TO_IS_RESIDUAL ? residual.at
                                              : to.at,
            .from = from.at,
            .bits = pointer(bits),
            .bit = c.bit,
            .scale = c.scale,
            .bias = pointer(bias),
            .period = c.period,
            .column = c.column,
            .residual = pointer(residual),
            .advance = (int)c.advance,
            .sums = pointer(sums),
            .streaming = (int)c.streaming,
        };
        const noise_operands noise = {
            .kind = (int)c.kind,
            .additive = (int)c.use,
            .size = c.size,
            .to = on.to,
            .from = from.at,
            .stddev = c.scale,
            .numbers = (const float *)pointer(bias),
        };
        const rate_operands rated = {
            .kind = (int)c.kind,
            .double_rates = (int)c.advance,
            .size = c.size,
            .to = c.from_bytes ? on.to : NULL,
            .from = from.at,
            .rates = bias.at,
            .scales = (const double *)pointer(residual),
            .bits = pointer(bits),
        };
        float_modes before = modes(), wanted = c.odd_float_modes ? ODD_FLOAT_MODES : before;
        int64_t kept_modes;
        close_guards(from), close_guards(to), close_guards(bits);
        close_guards(bias), close_guards(residual), close_guards(sums);
        set_modes(wanted);
        if (c.entry == DRAW)
            KERNEL(draw)(key, c.first, c.size, bits.at);
        else if (c.entry == USE)
            KERNEL(use)(key, c.first, &on);
        else if (c.entry == NOISE)
            KERNEL(noise)(key, c.first, &noise);
        else
            KERNEL(rates)(key, c.first, &rated);
        kept_modes = modes() == wanted;
        set_modes(before);
        fwrite(&kept_modes, sizeof kept_modes, 1, stdout);
        send(from), send(to), send(bits), send(residual), send(sums);
        free(from.block), free(to.block), free(bits.block);
        free(bias.block), free(residual.block), free(sums.block);
    }
    return 0;
}
