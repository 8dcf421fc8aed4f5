/* Emulates AVX-512's intrinsics with SIMDe, in portable C. This file adds the intrinsics that SIMDe
   0.7.4 lacks, one element at a time, by Intel's description.

   It replaces the compiler's header of this name, so that simd/avx512.h compiles unchanged. */
#ifndef FASTDROP_EMULATED_IMMINTRIN_H
#define FASTDROP_EMULATED_IMMINTRIN_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t __mmask8;
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

/* Compares the words of both operands one by one, and returns the results as a mask. */
#define EMULATED_COMPARISON(name, type, operation) \
    static inline __mmask32 name(__m512i a, __m512i b) { \
        type x[32], y[32]; \
        __mmask32 mask = 0; \
        memcpy(x, &a, sizeof x); \
        memcpy(y, &b, sizeof y); \
        for (int i = 0; i < 32; i++) \
            mask |= (__mmask32)(x[i] operation y[i]) << i; \
        return mask; \
    }
EMULATED_COMPARISON(_mm512_cmpgt_epi16_mask, int16_t, >)
EMULATED_COMPARISON(_mm512_cmpgt_epu16_mask, uint16_t, >)

static inline __mmask32 _kand_mask32(__mmask32 a, __mmask32 b) { return a & b; }
static inline __mmask32 _kor_mask32(__mmask32 a, __mmask32 b) { return a | b; }
static inline uint32_t _cvtmask32_u32(__mmask32 a) { return a; }
static inline __mmask32 _cvtu32_mask32(uint32_t a) { return a; }
static inline void _store_mask32(__mmask32 *to, __mmask32 mask) { memcpy(to, &mask, sizeof mask); }
static inline __mmask32 _mm512_kunpackw(__mmask32 high, __mmask32 low) {
    return high << 16 | (low & 0xFFFF);
}
static inline __mmask16 _mm512_kunpackb(__mmask16 high, __mmask16 low) {
    return (__mmask16)(high << 8 | (low & 0xFF));
}

static inline __m512i _mm512_mask_sub_epi16(__m512i from, __mmask32 mask, __m512i a, __m512i b) {
    uint16_t result[32], x[32], y[32];
    memcpy(result, &from, sizeof result);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1)
            result[i] = (uint16_t)(x[i] - y[i]);
    memcpy(&from, result, sizeof result);
    return from;
}
static inline __m256 _mm512_cvtpd_ps(__m512d a) {
    double x[8];
    float rounded[8];
    __m256 result;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 8; i++)
        rounded[i] = (float)x[i];
    memcpy(&result, rounded, sizeof result);
    return result;
}
static inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
    uint16_t x[16];
    uint32_t wide[16];
    __m512i result;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 16; i++)
        wide[i] = x[i];
    memcpy(&result, wide, sizeof result);
    return result;
}
static inline __m256i _mm512_cvtepi32_epi16(__m512i a) {
    uint32_t x[16];
    uint16_t narrow[16];
    __m256i result;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 16; i++)
        narrow[i] = (uint16_t)x[i];
    memcpy(&result, narrow, sizeof result);
    return result;
}

/* The instruction requires an address that is a multiple of 64. */
static inline void _mm512_stream_si512(void *to, __m512i a) {
    if ((uintptr_t)to % 64)
        abort();
    memcpy(to, &a, sizeof a);
}

/* The compiler's _Float16 is IEEE half precision, rounded to nearest even. */
static inline __m512 _mm512_cvtph_ps(__m256i a) {
    _Float16 x[16];
    float wide[16];
    __m512 result;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 16; i++)
        wide[i] = (float)x[i];
    memcpy(&result, wide, sizeof result);
    return result;
}
static inline __m256i emulated_cvtps_ph(__m512 a) {
    float x[16];
    _Float16 narrow[16];
    __m256i result;
    memcpy(x, &a, sizeof x);
    for (int i = 0; i < 16; i++)
        narrow[i] = (_Float16)x[i];
    memcpy(&result, narrow, sizeof result);
    return result;
}
#define _mm512_cvtps_ph(a, rounding) emulated_cvtps_ph(a)

#endif
