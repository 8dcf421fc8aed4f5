/* Defines float16 and bfloat16, which C lacks, and their conversions from and to float. */
#ifndef FASTDROP_ELEMENTS_H
#define FASTDROP_ELEMENTS_H

#include <stdint.h>
#include <string.h>

/* Structures, so that the compiler distinguishes them from each other and from integers. */
typedef struct {
    uint16_t bits;
} f16;
typedef struct {
    uint16_t bits;
} bf16;

#define F16_MINUS_INFINITY 0xFC00
#define BF16_MINUS_INFINITY 0xFF80

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bf16_to_float(bf16 x) { return float_of_bits((uint32_t)x.bits << 16); }

/* Rounds to nearest even. A NaN keeps its sign and upper payload and becomes quiet, as in the
   hardware's float16 conversions. */
static inline bf16 bf16_of_float(float value) {
    uint32_t bits = bits_of_float(value);
    bf16 result;
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        result.bits = (uint16_t)((bits >> 16) | 0x40u);
    else
        result.bits = (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
    return result;
}

static inline float f16_to_float(f16 x) {
    uint32_t sign = (uint32_t)(x.bits & 0x8000u) << 16;
    uint32_t magnitude = x.bits & 0x7FFFu;
    if (magnitude > 0x7C00u) /* NaN: becomes quiet, keeps its payload */
        return float_of_bits(sign | 0x7FC00000u | (magnitude << 13));
    if (magnitude == 0x7C00u)
        return float_of_bits(sign | 0x7F800000u);
    if (magnitude < 0x0400u) /* subnormal: a multiple of 2^-24, exact in float32 */
        return float_of_bits(sign | bits_of_float((float)magnitude * 0x1p-24f));
    return float_of_bits(sign | ((magnitude << 13) + 0x38000000u));
}

static inline f16 f16_of_float(float value) {
    uint32_t bits = bits_of_float(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7FFFFFFFu;
    f16 result;
    if (magnitude > 0x7F800000u)
        result.bits = (uint16_t)(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    else if (magnitude >= 0x477FF000u) /* rounds to 65536 or more */
        result.bits = (uint16_t)(sign | 0x7C00u);
    else if (magnitude < 0x38800000u)
        /* below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits of the
           sum */
        result.bits =
            (uint16_t)(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000u));
    else
        result.bits =
            (uint16_t)(sign
                       | ((magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13));
    return result;
}

#endif
