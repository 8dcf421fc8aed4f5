/* Computes the random operations of TensorFlow's native operations and of XLA's handler.

   The thread that calls it may have another rounding mode: it first enters fastdrop's float_state. */
#ifndef FASTDROP_RANDOM_OPERATIONS_H
#define FASTDROP_RANDOM_OPERATIONS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "elements.h"
#include "fastdrop.h"
#include "float_state.h"

/* Graphs and programs have these numbers. */
enum random_kind {
    DROPOUT,
    GAUSSIAN_DROPOUT,
    GAUSSIAN_NOISE,
    ALPHA_DROPOUT,
    ALPHA_DROPOUT_GRADIENT,
    BERNOULLI, /* 1 for the elements that are kept, and 0 for others: x has their rates */
    RANDOM_KINDS
};

#define ALPHA 1.7580993408473766 /* SELU's scale times its alpha */

/* Returns NULL, or what the parameter of a kind must be. */
static inline const char *wrong_parameter(int kind, double parameter) {
    if (kind == GAUSSIAN_NOISE)
        return parameter >= 0 && isfinite(parameter) ? NULL
                                                     : "`stddev` must be finite and at least 0";
    if (kind == GAUSSIAN_DROPOUT && parameter == 1)
        return "`rate` must be below 1 for Gaussian dropout";
    return parameter >= 0 && parameter <= 1 ? NULL : "`rate` must be from 0 to 1";
}

/* Sets the rate, which may be a standard deviation, and the scale. */
static inline void set_parameter(fastdrop_dropout *dropout, int kind, double parameter) {
    dropout->rate = parameter;
    dropout->scale = FASTDROP_INVERTED;
    if ((kind == ALPHA_DROPOUT || kind == ALPHA_DROPOUT_GRADIENT) && parameter > 0 && parameter < 1)
        dropout->scale = 1 / sqrt((ALPHA * ALPHA * parameter + 1) * (1 - parameter));
}

/* Rounds to float16 once: by way of a float that is rounded to odd. */
static inline f16 f16_of_double(double value) {
    float nearest = (float)value;
    if (nearest != value) {
        const uint32_t bits = bits_of_float(nearest);
        nearest = float_of_bits((fabs(nearest) > fabs(value) ? bits - 1 : bits) | 1);
    }
    return f16_of_float(nearest);
}

/* Writes a number as an element, rounded as NumPy rounds it. */
static inline void write_element(int kind, double number, void *element) {
    const float narrow = (float)number;
    const f16 half = f16_of_double(number);
    const bf16 brain = bf16_of_float(narrow);
    switch (kind) {
    case FASTDROP_FLOAT16:
        memcpy(element, &half, sizeof half);
        break;
    case FASTDROP_BFLOAT16:
        memcpy(element, &brain, sizeof brain);
        break;
    case FASTDROP_FLOAT32:
        memcpy(element, &narrow, sizeof narrow);
        break;
    default:
        memcpy(element, &number, sizeof number);
    }
}

/* As fastdrop.alpha_dropout: see docs/stream.md. */
static inline int alpha_drop(const fastdrop_api *api, const fastdrop_dropout *dropout, void *y,
                             const void *x) {
    static const int64_t repeated[FASTDROP_MAX_DIMS];
    double alpha, shift;
    if (dropout->rate == 0 || dropout->rate == 1)
        return api->forward(dropout, y, NULL, x, NULL, NULL);
    write_element(dropout->kind, ALPHA, &alpha);
    write_element(dropout->kind, -ALPHA * dropout->scale * (1 - dropout->rate), &shift);
    return api->bias_forward(dropout, y, NULL, x, NULL, &alpha, 1, &shift, repeated, NULL);
}

/* Writes a random operation on x to y, after `set_parameter`. Returns a status of fastdrop.h. */
static inline int draw_kind(const fastdrop_api *api, const fastdrop_dropout *dropout, int kind,
                            void *y, const void *x) {
    const double parameter = dropout->rate;
    switch (kind) {
    case GAUSSIAN_DROPOUT:
        return api->noise(dropout, sqrt(parameter / (1 - parameter)), 0, y, NULL, x, NULL);
    case GAUSSIAN_NOISE:
        return api->noise(dropout, parameter, 1, y, NULL, x, NULL);
    case ALPHA_DROPOUT:
        return alpha_drop(api, dropout, y, x);
    case BERNOULLI:
        return api->bernoulli(dropout, y, NULL, x, NULL, NULL);
    default:
        return api->forward(dropout, y, NULL, x, NULL, NULL);
    }
}

#endif
