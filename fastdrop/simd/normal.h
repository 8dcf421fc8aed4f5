/* Computes standard normal numbers from random words, by the transformation of Box and Muller (1958),
   and applies them to elements. docs/stream.md defines each operation.

   It is written once, in GNU C's vectors of the width that an instruction set's header chooses: it
   defines FLOATS, the type `floats` of as many numbers, `floats_sqrt`, and the conversions
   wide_NAME and narrow_NAME of as many elements. The operations are additions, multiplications,
   divisions, square roots and conversions, which round correctly on every CPU. */
#ifndef FASTDROP_NORMAL_H
#define FASTDROP_NORMAL_H

enum {
    NORMALS = 32 /* numbers that are computed together: a group of elements */
};

typedef int32_t ints __attribute__((vector_size(4 * FLOATS)));
typedef double doubles __attribute__((vector_size(4 * FLOATS)));

static inline floats floats_load(const float *from) {
    floats x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline ints ints_load(const int32_t *from) {
    ints x;
    memcpy(&x, from, sizeof x);
    return x;
}
static inline doubles doubles_load(const double *from) {
    doubles x;
    memcpy(&x, from, sizeof x);
    return x;
}
/* The bits of `yes` where the mask is set, else the bits of `no`. */
static inline ints chosen(ints mask, floats yes, floats no) {
    return (mask & (ints)yes) | (~mask & (ints)no);
}

/* The distance of a point from the origin: the square root of -2 log u, for a number u in (0, 1)
   that each word gives. A number above 1/2 is 1 + h with h < 0: its logarithm is computed from h,
   so the numbers near 1 are as many as those near 0. */
static inline floats radius(ints words) {
    floats h = (__builtin_convertvector(words, floats) + 0.5f) * 0x1p-32f;
    floats u = h + (floats)(words >> 31 & 0x3F800000); /* + 1.0 if h is negative */
    /* u = 2^exponent * m, with m from sqrt(1/2) to sqrt(2) */
    ints exponent = ((ints)u - 0x3F3504F3) >> 23;
    floats m = (floats)((ints)u - (exponent << 23));
    floats g = (floats)chosen(exponent == 0, h, m - 1.0f);
    /* -2 log(1 + g), by the series of the inverse hyperbolic tangent of s */
    floats s = g / (g + 2.0f);
    floats z = s * s;
    floats minus_2_log = s * (z * (z * (z * -0.59743728f - 0.79955074f) - 1.33333553f) - 4.0f);
    return floats_sqrt(__builtin_convertvector(exponent, floats) * -1.38629436f + minus_2_log);
}

/* The coordinates of a point at this distance, in the direction that each word gives: an angle
   between -pi/4 and pi/4 in its upper 30 bits, a reflection at the diagonal, and one at the
   origin. */
static inline void place(ints words, floats distance, floats *first, floats *second) {
    floats t = (__builtin_convertvector(words >> 2, floats) + 0.5f) * 0x1p-29f;
    floats y = t * t;
    floats sine =
        t * (y * (y * (y * -3.59504522e-5f + 2.49000102e-3f) - 0.0807454325f) + 0.785398161f);
    floats cosine = y * (y * (y * -3.19160152e-4f + 0.0158503976f) - 0.308424488f) + 1.0f;
    floats signed_distance = (floats)((ints)distance ^ words << 31);
    ints swapped = words << 30 >> 31;
    *first = (floats)chosen(swapped, sine, cosine) * signed_distance;
    *second = (floats)chosen(swapped, cosine, sine) * signed_distance;
}

/* 32 numbers from 512 bits for the distances and 512 bits for the directions of 16 points: their
   first coordinates, then their second ones. Word i of 32 bits is the lower half of lane i / 2 if i
   is even, else the upper half. */
static inline void normals(float *to, u64x8 distances, u64x8 directions) {
    int32_t distance_words[NORMALS / 2], direction_words[NORMALS / 2];
    float radii[NORMALS / 2];
    u64x8_store((uint8_t *)distance_words, distances);
    u64x8_store((uint8_t *)direction_words, directions);
    /* A loop of its own: a CPU overlaps more of the long divisions and square roots. */
    for (int i = 0; i < NORMALS / 2; i += FLOATS) {
        floats r = radius(ints_load(distance_words + i));
        memcpy(radii + i, &r, sizeof r);
    }
    for (int i = 0; i < NORMALS / 2; i += FLOATS) {
        floats first, second;
        place(ints_load(direction_words + i), floats_load(radii + i), &first, &second);
        memcpy(to + i, &first, sizeof first);
        memcpy(to + NORMALS / 2 + i, &second, sizeof second);
    }
}

/* ---- from * (1 + stddev * number), and from + stddev * number ---- */
#define NOISE(name, type) \
    static inline void noise_times_##name(type *to, const type *from, const float *numbers, \
                                          float stddev) { \
        for (int i = 0; i < NORMALS; i += FLOATS) \
            narrow_##name(to + i, \
                          wide_##name(from + i) * (floats_load(numbers + i) * stddev + 1.0f)); \
    } \
    static inline void noise_plus_##name(type *to, const type *from, const float *numbers, \
                                         float stddev) { \
        for (int i = 0; i < NORMALS; i += FLOATS) \
            narrow_##name(to + i, wide_##name(from + i) + floats_load(numbers + i) * stddev); \
    }
NOISE(f16, f16)
NOISE(bf16, bf16)
NOISE(f32, float)

static inline void noise_times_f64(double *to, const double *from, const float *numbers,
                                   double stddev) {
    double factors[NORMALS];
    for (int i = 0; i < NORMALS; i++)
        factors[i] = numbers[i] * stddev + 1.0;
    for (int i = 0; i < NORMALS; i += FLOATS / 2) {
        doubles product = doubles_load(from + i) * doubles_load(factors + i);
        memcpy(to + i, &product, sizeof product);
    }
}
static inline void noise_plus_f64(double *to, const double *from, const float *numbers,
                                  double stddev) {
    double addends[NORMALS];
    for (int i = 0; i < NORMALS; i++)
        addends[i] = numbers[i] * stddev;
    for (int i = 0; i < NORMALS; i += FLOATS / 2) {
        doubles sum = doubles_load(from + i) + doubles_load(addends + i);
        memcpy(to + i, &sum, sizeof sum);
    }
}

#endif
