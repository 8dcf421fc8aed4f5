/* Tests whether the CPU supports an instruction set, and names the compiler. */
#ifndef FASTDROP_CPU_H
#define FASTDROP_CPU_H

#include <string.h>

/* For bug reports. */
#if defined(__clang__)
#define COMPILER_VERSION __VERSION__
#elif defined(__GNUC__)
#define COMPILER_VERSION "GCC " __VERSION__
#else
#define COMPILER_VERSION "unknown"
#endif

/* The extensions of x86-64-v3 and x86-64-v4, one by one: some compilers do not know the names of
   the levels. The compiler's runtime also tests whether the operating system saves the wide
   registers. */
#if defined(__x86_64__) && defined(_WIN32)
#include <cpuid.h>

/* The runtime of zig, which builds for Windows, tests nothing. `saved` are the registers that the
   operating system must save, as in XCR0. */
static int cpu_has(unsigned leaf_7_ebx, unsigned saved) {
    const unsigned v3 = bit_AVX | bit_FMA | bit_F16C | bit_MOVBE | bit_OSXSAVE;
    unsigned a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & v3) != v3)
        return 0;
    if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_LZCNT))
        return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & leaf_7_ebx) != leaf_7_ebx)
        return 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & saved) == saved;
}

#define CPU_V3_BITS (bit_AVX2 | bit_BMI | bit_BMI2)
#define CPU_V4_BITS (bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL)
#define CPU_HAS_V3 cpu_has(CPU_V3_BITS, 0x06)
#define CPU_HAS_V4 cpu_has(CPU_V3_BITS | CPU_V4_BITS, 0xE6)
#elif defined(__x86_64__)
#define CPU_HAS_V3 \
    (__builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") \
     && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") \
     && __builtin_cpu_supports("fma") && cpu_has_f16c_lzcnt_movbe())
#define CPU_HAS_V4 \
    (CPU_HAS_V3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") \
     && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") \
     && __builtin_cpu_supports("avx512vl"))

#include <cpuid.h>

static int cpu_has_f16c_lzcnt_movbe(void) {
    unsigned a, b, c, d, extended;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !__get_cpuid(0x80000001, &a, &b, &extended, &d))
        return 0;
    return (c & bit_F16C) && (c & bit_MOVBE) && (extended & bit_LZCNT);
}
#else
#define CPU_HAS_V3 0
#define CPU_HAS_V4 0
#endif

static int cpu_runs(const char *isa) {
#if defined(__x86_64__) && !defined(_WIN32)
    __builtin_cpu_init();
#endif
    if (strcmp(isa, "avx512") == 0)
        return CPU_HAS_V4;
    if (strcmp(isa, "avx2") == 0)
        return CPU_HAS_V3;
    return strcmp(isa, "neon") == 0 || strcmp(isa, "portable") == 0;
}

#endif
