/* Calls the C interface for tests in Python, through the header as C and as C++. */
#include "fastdrop.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Each field of a dropout is an argument. `seed` has the low word, the high word and the step. */
int call(const fastdrop_api *api, int back, int kind, int ndim, const int64_t *shape,
         const int64_t *noise_shape, const uint64_t *seed, double rate, double scale, void *to,
         const int64_t *to_strides, const void *from, const int64_t *from_strides, uint8_t *bits) {
    fastdrop_seed drawn_from = {seed[0], seed[1], seed[2]};
    fastdrop_dropout dropout = {kind, ndim, shape, noise_shape, drawn_from, rate, scale};
    if (back)
        return api->backward(&dropout, to, to_strides, from, from_strides, bits);
    return api->forward(&dropout, to, to_strides, from, from_strides, bits);
}

int fused(const fastdrop_api *api, int relu, int kind, int ndim, const int64_t *shape,
          const int64_t *noise_shape, const uint64_t *seed, double rate, double scale, void *to,
          const int64_t *to_strides, const void *from, const int64_t *from_strides,
          const void *bias, int64_t bias_size, const void *residual,
          const int64_t *residual_strides, uint8_t *bits) {
    fastdrop_seed drawn_from = {seed[0], seed[1], seed[2]};
    fastdrop_dropout dropout = {kind, ndim, shape, noise_shape, drawn_from, rate, scale};
    if (relu)
        return api->relu_forward(&dropout, to, to_strides, from, from_strides, bits);
    return api->bias_forward(&dropout, to, to_strides, from, from_strides, bias, bias_size,
                             residual, residual_strides, bits);
}

int noise(const fastdrop_api *api, double stddev, int additive, int kind, int ndim,
          const int64_t *shape, const int64_t *noise_shape, const uint64_t *seed, double rate,
          double scale, void *to, const int64_t *to_strides, const void *from,
          const int64_t *from_strides) {
    fastdrop_seed drawn_from = {seed[0], seed[1], seed[2]};
    fastdrop_dropout dropout = {kind, ndim, shape, noise_shape, drawn_from, rate, scale};
    return api->noise(&dropout, stddev, additive, to, to_strides, from, from_strides);
}

int bernoulli(const fastdrop_api *api, int kind, int ndim, const int64_t *shape,
              const int64_t *noise_shape, const uint64_t *seed, double rate, double scale, void *to,
              const int64_t *to_strides, const void *rates, const int64_t *rates_strides,
              uint8_t *bits) {
    fastdrop_seed drawn_from = {seed[0], seed[1], seed[2]};
    fastdrop_dropout dropout = {kind, ndim, shape, noise_shape, drawn_from, rate, scale};
    return api->bernoulli(&dropout, to, to_strides, rates, rates_strides, bits);
}

int draw(const fastdrop_api *api, const uint64_t *seed, double rate, uint64_t first, uint64_t size,
         uint8_t *bits) {
    fastdrop_seed drawn_from = {seed[0], seed[1], seed[2]};
    return api->draw(&drawn_from, rate, first, size, bits);
}

int get_num_threads(const fastdrop_api *api) { return api->get_num_threads(); }

int set_num_threads(const fastdrop_api *api, int count) { return api->set_num_threads(count); }

int serves(const fastdrop_api *api) { return fastdrop_serves(api); }

int64_t mask_bytes(int ndim, const int64_t *noise_shape) {
    return fastdrop_mask_bytes(ndim, noise_shape);
}

double inverted(void) { return FASTDROP_INVERTED; }

/* What the header was compiled as: its version, and the size of its struct. */
int version(void) { return FASTDROP_API_VERSION; }

int size(void) { return (int)sizeof(fastdrop_api); }

#ifdef __cplusplus
}
#endif
