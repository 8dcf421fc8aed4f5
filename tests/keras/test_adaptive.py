"""The layers that learn how much to drop have the papers' values, losses and gradients."""

import math
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import fastdrop
from fastdrop_keras import (
    ConcreteDropout,
    Dropout,
    RateSchedule,
    Standout,
    VariationalDense,
    VariationalGaussianDropout,
    mc_predict,
    xla_bridge,
)

X = np.random.default_rng(0).normal(0, 2, (20, 7)).astype(np.float32)


def stream_of(seed, step):
    stream = fastdrop.Stream(0)
    stream.state = {"seed": seed, "step": step}
    return stream


def normals(shape, seed, step=0, noise_shape=None, dtype=np.float32):
    """The standard normal numbers of a call."""
    zeros = np.zeros(shape, dtype)
    return fastdrop.gaussian_noise(zeros, 1.0, seed=stream_of(seed, step), noise_shape=noise_shape)[
        0
    ]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numerical_gradient(function, array, step=1e-6):
    """Central differences of a function of a float64 array, which is changed in place."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = function()
        array[index] = value - step
        gradient[index] = (above - function()) / (2 * step)
        array[index] = value
    return gradient


def check_gradients(make, x, variables_of=lambda layer: layer.trainable_variables, training=True):
    """Compare a layer's gradients, its losses included, with differences in float64."""
    x = np.array(x, np.float64)
    weights = np.random.default_rng(1).normal(size=make()(x).shape)
    layer = make()
    layer(x)
    arrays = [np.array(v.numpy()) for v in variables_of(layer)]

    def loss_of(inputs):
        return ops.sum(layer(inputs, training=training) * weights) + sum(layer.losses)

    def loss():
        layer.seed_generator.state.assign([layer.seed, 0])
        for variable, array in zip(variables_of(layer), arrays, strict=True):
            variable.assign(array)
        return float(loss_of(tf.constant(x)))

    loss()
    layer.seed_generator.state.assign([layer.seed, 0])
    with tf.GradientTape() as tape:
        inputs = tf.Variable(x)
        total = loss_of(inputs)
    gradients = tape.gradient(total, [inputs, *[v.value for v in variables_of(layer)]])
    for array, gradient in zip([x, *arrays], gradients, strict=True):
        np.testing.assert_allclose(gradient, numerical_gradient(loss, array), rtol=1e-5, atol=1e-7)


# Standout.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_standout_keeps_units_with_their_own_probabilities(dtype, run):
    layer = Standout("relu", 0.5, -0.25, seed=7, dtype=dtype)
    x = tf.cast(X, dtype)
    # At the probabilities in the layer's dtype.
    rates = 1 - tf.sigmoid(0.5 * x - 0.25)
    call = run(lambda x: layer(x, training=True))
    for step in range(2):
        y = call(x)
        assert y.dtype == dtype
        ones = np.ones_like(rates)
        kept = fastdrop.dropout(ones, rates.numpy(), seed=stream_of(7, step))[0] > 0
        np.testing.assert_array_equal(y, np.where(kept, np.maximum(x, 0), 0))


def test_the_fraction_that_standout_keeps():
    layer = Standout(alpha=0.7, beta=-0.4, seed=1)
    for z in (-3, -0.5, 1, 2.5):
        kept = layer(np.full((100, 1000), z, np.float32), training=True).numpy() != 0
        p = sigmoid(0.7 * z - 0.4)
        # Five standard deviations.
        assert abs(kept.mean() - p) < 5 * math.sqrt(p * (1 - p) / kept.size)


def test_standout_multiplies_by_the_probabilities_in_inference(run):
    y = run(Standout("tanh", 0.5, -0.25))(tf.constant(X))
    np.testing.assert_allclose(y, np.tanh(X) * sigmoid(0.5 * X - 0.25), rtol=1e-5)


def test_the_mask_of_standout_is_a_constant_in_training_alone():
    z = tf.constant(X)
    for training in (True, False):
        layer = Standout("tanh", 0.5, -0.25, seed=3)
        with tf.GradientTape() as tape:
            tape.watch(z)
            y = layer(z, training=training)
        gradient = tape.gradient(y, z)
        if training:
            np.testing.assert_allclose(
                gradient, (1 - np.tanh(X) ** 2) * (y.numpy() != 0), rtol=1e-4
            )
    check_gradients(
        lambda: Standout("tanh", 0.5, -0.25, seed=3, dtype="float64"), X[:4], training=False
    )


def test_standout_drops_infinities_to_zero_and_keeps_nan():
    y = Standout(seed=3)(np.array([-np.inf, np.inf, np.nan], np.float32), training=True).numpy()
    assert y[0].view(np.int32) == 0
    assert y[1] == np.inf
    assert np.isnan(y[2])


def test_standout_without_sums_takes_infinities_as_others():
    layer = Standout(alpha=0.0, beta=-20.0, seed=3)
    x = np.array([-np.inf, np.inf], np.float32)
    np.testing.assert_array_equal(layer(x, training=True), [0, 0])
    np.testing.assert_array_equal(Standout(alpha=0.0, beta=20.0)(x), x)


# Variational dropout.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("per", ["layer", "unit"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_variational_noise_is_normal_with_the_learned_variance(per, dtype, run):
    layer = VariationalGaussianDropout(0.1, per, 0.2, seed=7, dtype=dtype)
    x = tf.cast(X, dtype)
    assert layer(x) is x
    log_alpha = np.log(np.linspace(0.05, 0.9, 7)) if per == "unit" else np.log(0.25)
    layer.log_alpha.assign(log_alpha)
    alpha = np.exp(np.float64(ops.convert_to_numpy(ops.cast(layer.log_alpha, "float64"))))
    call = run(lambda x: layer(x, training=True))
    for step in range(2):
        y = call(x)
        assert y.dtype == dtype
        numbers = normals(X.shape, 7, step, dtype=x.numpy().dtype).astype(np.float64)
        expected = np.float64(tf.cast(x, "float64")) * (1 + np.sqrt(alpha) * numbers)
        tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
        np.testing.assert_allclose(
            tf.cast(y, "float64"), expected, rtol=tolerance, atol=4 * tolerance
        )


def exact_divergence(alpha):
    """The divergence of N(1, alpha) from a uniform logarithm, but for a constant.

    -log(sigma) + E log|1 + sqrt(alpha) n|, by the rule of the midpoint.
    """
    edges = np.linspace(-12, 12, 4_000_001)
    n = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(n**2) / 2) / math.sqrt(2 * math.pi)
    mean = np.sum(density * np.log(np.abs(1 + math.sqrt(alpha) * n))) * (edges[1] - edges[0])
    return -math.log(alpha) / 2 + mean


def test_the_divergence_is_the_papers_up_to_alpha_1():
    alphas = np.array([1e-4, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    exact = np.array([exact_divergence(alpha) for alpha in alphas])
    layer = VariationalGaussianDropout(1.0)
    layer.build((None, 1))
    ours = []
    for alpha in alphas:
        layer.log_alpha.assign(math.log(alpha))
        (loss,) = layer.losses
        ours.append(float(loss))
    difference = exact - ours
    # The authors' accuracy: a term of alpha that is linear near 0 has another slope.
    assert np.ptp(difference) < 0.04
    assert np.ptp(difference[alphas >= 0.1]) < 0.008


def test_the_loss_sums_the_divergences_of_all_units():
    losses = {}
    for per in ("layer", "unit"):
        layer = VariationalGaussianDropout(0.25, per, 0.3)
        layer.build((None, 5))
        (losses[per],) = map(float, layer.losses)
        assert layer.log_alpha.shape == (() if per == "layer" else (5,))
    alpha = 3 / 7
    of_one = -0.5 * math.log(alpha) - (
        1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3
    )
    np.testing.assert_allclose(list(losses.values()), 0.25 * 5 * of_one, rtol=1e-6)


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_gradients_of_variational_dropout(per):
    check_gradients(
        lambda: VariationalGaussianDropout(0.3, per, 0.2, seed=5, dtype="float64"), X[:4]
    )


def fit(layers, samples, inputs=1, steps=400):
    """Let layers learn y = 3 x of the first of their inputs, from some samples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, inputs)).astype(np.float32)
    y = 3 * x[:, :1] + rng.normal(0, 0.5, (samples, 1))
    model = keras.Sequential([keras.Input((inputs,)), *layers])
    model.compile(keras.optimizers.Adam(0.02), "mse")
    # All samples in each step, and all steps in one epoch, which is faster.
    x, y = np.tile(x, (steps, 1)), np.tile(y, (steps, 1))
    model.fit(x, y, batch_size=samples, shuffle=False, verbose=0)


def test_variational_dropout_learns_which_units_are_noise():
    layer = VariationalGaussianDropout(0.01, "unit", 0.2, seed=3)
    fit([layer, keras.layers.Dense(1)], samples=200, inputs=3)
    rates = layer.rate
    assert rates[0] < 0.05 < 0.3 < min(rates[1:])
    # alpha is at most 1.
    assert max(rates) <= 0.5


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_the_sums_of_noisy_weights_are_normal(dtype, run):
    layer = VariationalDense(5, 0.1, "tanh", 0.3, seed=7, dtype=dtype)
    layer.build(X.shape)
    alpha = np.random.default_rng(2).uniform(0.05, 0.9, (7, 5))
    bias = np.arange(5) / 5
    layer.log_alpha.assign(np.log(alpha))
    layer.bias.assign(bias)
    kernel = np.float64(layer.kernel.numpy())
    tolerance = {"float64": 1e-6, "float32": 1e-5}.get(dtype, 4e-2)
    np.testing.assert_allclose(layer(X), np.tanh(X @ kernel + bias), rtol=tolerance, atol=tolerance)
    call = run(lambda x: layer(x, training=True))
    kind = tf.as_dtype(layer.compute_dtype).as_numpy_dtype
    for step in range(2):
        y = call(tf.constant(X))
        assert y.dtype == layer.compute_dtype
        numbers = normals((20, 5), 7, step, dtype=kind).astype(np.float64)
        deviation = np.sqrt(X.astype(np.float64) ** 2 @ (alpha * kernel**2))
        expected = np.tanh(X @ kernel + deviation * numbers + bias)
        np.testing.assert_allclose(tf.cast(y, "float64"), expected, rtol=tolerance, atol=tolerance)


def test_the_noise_of_drawn_weights_has_the_same_distribution():
    layer = VariationalDense(1, 0.1, initial_rate=0.2, use_bias=False, seed=7)
    x = np.repeat(X[:1], 100_000, axis=0)
    sums = layer(x, training=True).numpy()[:, 0]
    kernel = layer.kernel.numpy()[:, 0]
    drawn = kernel * (1 + 0.5 * np.random.default_rng(0).normal(size=(100_000, 7)))
    expected = drawn @ X[0]
    assert abs(sums.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(50_000)
    # Five standard deviations of the logarithm of the ratio of two variances.
    assert abs(math.log(sums.var() / expected.var())) < 5 * math.sqrt(4 / 100_000)


def test_without_inputs_noisy_weights_have_finite_gradients():
    layer = VariationalDense(2, 0.1, seed=1)
    x = tf.zeros((3, 4))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    assert np.all(y == 0)
    gradients = tape.gradient(y, [x, *[v.value for v in layer.trainable_variables]])
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_gradients_of_noisy_weights():
    check_gradients(
        lambda: VariationalDense(
            2, 0.3, "tanh", 0.2, seed=5, kernel_initializer="ones", dtype="float64"
        ),
        X[:4],
    )


# Concrete dropout.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("noise_shape", [None, (None, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16", "mixed_bfloat16"])
def test_concrete_dropout_is_the_papers(dtype, noise_shape, run):
    inner = keras.layers.Dense(7, kernel_initializer="identity", dtype=dtype)
    layer = ConcreteDropout(
        inner, initial_rate=0.3, temperature=0.2, noise_shape=noise_shape, seed=11, dtype=dtype
    )
    np.testing.assert_allclose(layer(X), X, rtol=1e-2)
    rate = layer.rate
    assert abs(rate - 0.3) < 1e-6
    call = run(lambda x: layer(x, training=True))
    kind, tolerance = (np.float64, 1e-12) if dtype == "float64" else (np.float32, 2e-4)
    for step in range(2):
        y = call(tf.constant(X))
        assert y.dtype == layer.compute_dtype
        n = normals(X.shape, 11, step, noise_shape, kind).astype(np.float64)
        u = np.vectorize(math.erf)(n / math.sqrt(2)) / 2 + 0.5
        logits = np.log(rate / (1 - rate)) + np.log(u + 1e-7) - np.log(1 - u + 1e-7)
        expected = X * (1 - sigmoid(logits / 0.2)) / (1 - rate)
        tolerance = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}.get(dtype, tolerance)
        np.testing.assert_allclose(tf.cast(y, "float64"), expected, rtol=tolerance, atol=tolerance)


def test_at_a_low_temperature_the_mask_is_that_of_dropout():
    layer = ConcreteDropout(
        keras.layers.Dense(1000, kernel_initializer="identity"),
        initial_rate=0.25,
        temperature=1e-6,
        seed=1,
    )
    y = layer(np.ones((100, 1000), np.float32), training=True).numpy()
    kept = y > 0.5
    np.testing.assert_allclose(y, np.where(kept, 4 / 3, 0), rtol=1e-6, atol=1e-3)
    # Five standard deviations.
    assert abs(kept.mean() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / y.size)


def test_the_loss_of_concrete_dropout_is_the_papers():
    layer = ConcreteDropout(keras.layers.Dense(4), 0.3, 0.2, initial_rate=0.4)
    layer.build((None, 3))
    (loss,) = layer.losses
    kernel = layer.layer.kernel.numpy()
    entropy = 0.4 * math.log(0.4) + 0.6 * math.log(0.6)
    np.testing.assert_allclose(
        float(loss), 0.3 * (kernel**2).sum() / 0.6 + 0.2 * 3 * entropy, rtol=1e-6
    )


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "float16")])
def test_the_layer_of_concrete_dropout_may_have_another_dtype(dtypes):
    outer, inner = dtypes
    layer = ConcreteDropout(keras.layers.Dense(4, dtype=inner), dtype=outer)
    layer(tf.ones((2, 3), outer), training=True)
    (loss,) = layer.losses
    assert loss.dtype == outer
    kernel = layer.layer.kernel.numpy().astype(np.float64)
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    expected = 1e-6 * (kernel**2).sum() / 0.9 - 1e-5 * 3 * entropy
    np.testing.assert_allclose(float(loss), expected, rtol=1e-3)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_units_of_a_convolution_are_its_channels(data_format):
    conv = keras.layers.Conv2D(2, 3, data_format=data_format, kernel_initializer="zeros")
    layer = ConcreteDropout(conv, 0.3, 0.2, initial_rate=0.5)
    layer.build((None, 5, 6, 7))
    channels = 5 if data_format == "channels_first" else 7
    np.testing.assert_allclose(float(layer.losses[0]), 0.2 * channels * -math.log(2), rtol=1e-6)
    assert layer.compute_output_shape((None, 5, 6, 7)) == conv.compute_output_shape((None, 5, 6, 7))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("logit", [-1000.0, 89.0, 100.0, 1000.0])
def test_a_concrete_rate_near_0_or_1_has_finite_outputs_and_gradients(run, logit, temperature):
    inner = keras.layers.Dense(7, kernel_initializer="identity")
    layer = ConcreteDropout(inner, 0.0, temperature=temperature, seed=11)
    x = tf.ones((1, 7))
    layer(x)
    layer.rate_logit.assign(logit)
    u = np.vectorize(math.erf)(normals((1, 7), 11).astype(float) / math.sqrt(2)) / 2 + 0.5
    drop = (logit + np.log(u + 1e-7) - np.log(1 - u + 1e-7)) / temperature
    factors = np.exp(np.logaddexp(0, logit) - np.logaddexp(0, drop))
    slopes = np.exp(-np.logaddexp(0, -logit)) - np.exp(-np.logaddexp(0, -drop)) / temperature

    def outputs_and_gradient(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
            loss = ops.sum(y) + sum(layer.losses)
        return y, tape.gradient(loss, layer.rate_logit.value)

    y, gradient = run(outputs_and_gradient)(x)
    np.testing.assert_allclose(y, factors, rtol=1e-3)
    np.testing.assert_allclose(gradient, (factors * slopes).sum(), rtol=1e-3, atol=1e-4)


def test_the_loss_of_a_concrete_rate_near_1_is_finite():
    layer = ConcreteDropout(keras.layers.Dense(7, kernel_initializer="identity"), 1e-6)
    layer.build((None, 7))
    layer.rate_logit.assign(100.0)
    with tf.GradientTape() as tape:
        (loss,) = layer.losses
    slope = tape.gradient(loss, layer.rate_logit.value)
    # exp(100) is more than float32 has. The sum of squares is 7.
    np.testing.assert_allclose([loss, slope], 7e-6 * math.exp(100), rtol=1e-4)


def test_gradients_of_concrete_dropout():
    check_gradients(
        lambda: ConcreteDropout(
            keras.layers.Dense(2, kernel_initializer="ones", dtype="float64"),
            0.1,
            0.2,
            initial_rate=0.3,
            temperature=0.5,
            seed=5,
            dtype="float64",
        ),
        X[:4],
    )


def test_with_more_data_concrete_dropout_learns_a_smaller_rate():
    rates = []
    for samples in (20, 400):
        layers = [
            ConcreteDropout(keras.layers.Dense(20, "relu"), 1e-4 / samples, 20 / samples, seed=3),
            ConcreteDropout(keras.layers.Dense(1), 1e-4 / samples, 20 / samples, seed=4),
        ]
        fit(layers, samples)
        rates.append(layers[1].rate)
    assert rates[1] < rates[0] / 2


# All.


def standout(**kwargs):
    return Standout("tanh", 0.5, 0.1, **kwargs)


def noisy_weights(**kwargs):
    return VariationalDense(5, 0.1, initial_rate=0.3, **kwargs)


def variational(**kwargs):
    return VariationalGaussianDropout(0.1, "unit", 0.3, **kwargs)


def concrete(**kwargs):
    return ConcreteDropout(keras.layers.Dense(5), 0.1, 0.2, 0.3, 0.4, (None, 7), **kwargs)


LEARNING = [variational, noisy_weights, concrete]
learning = pytest.mark.parametrize("make", LEARNING)
each = pytest.mark.parametrize("make", [standout, *LEARNING])


def model_of(layer):
    return keras.Sequential([keras.Input((7,)), layer, keras.layers.Dense(2)])


# Of Keras's code, when it saves.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@learning
def test_a_saved_model_has_the_learned_rate_and_the_seeds_state(make, tmp_path):
    model = model_of(make(seed=3))
    model.compile("adam", "mse")
    model.fit(X, X[:, :2], verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    layers = model.layers[0], again.layers[0]
    # The wrapped layer's has a shape, which is a list after loading.
    configs = [{**layer.get_config(), "layer": None} for layer in layers]
    assert configs[0] == configs[1]
    assert np.all(layers[0].rate == layers[1].rate)
    assert np.all(layers[0].rate != 0.3)
    np.testing.assert_array_equal(*(one(X, training=True) for one in (model, again)))


@each
def test_a_recomputation_uses_the_noise_of_the_forward_pass(make):
    inner, layer = make(seed=3), make(seed=3)
    gradients = []
    for function in (
        lambda x: layer(x, training=True) ** 2,
        keras.remat(lambda x: inner(x, training=True) ** 2),
    ):
        one = layer if not gradients else inner
        one(X)
        one.set_weights(layer.get_weights())
        with tf.GradientTape() as tape:
            y = function(tf.constant(X))
        gradients.append([y, *tape.gradient(y, [v.value for v in one.trainable_variables])])
        assert one.seed_generator.state.numpy().tolist() == [3, 1]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_mc_predict_gives_each_input_of_standout_its_mask():
    model = keras.Sequential([keras.Input((7,)), standout(seed=3)])
    x = np.repeat(X[:1], 4, axis=0)
    for shared in (False, True):
        mean, deviation = mc_predict(model, x, 400, seed=1, shared_masks=shared, verbose=False)
        p = sigmoid(0.5 * x + 0.1)
        np.testing.assert_allclose(deviation, abs(np.tanh(x)) * np.sqrt(p * (1 - p)), atol=0.1)
        assert np.ptp(mean[:, 0]) > 0


@learning
def test_mc_predict_draws(make):
    model = model_of(make(seed=3))
    x = np.repeat(X[:1], 4, axis=0)
    mean, deviation = mc_predict(model, x, 20, seed=1, verbose=False)
    assert deviation.min() > 0
    assert np.ptp(mean[:, 0]) > 0
    mean, deviation = mc_predict(model, x, 5, seed=1, shared_masks=True, verbose=False)
    np.testing.assert_allclose(np.ptp(mean, axis=0), 0, atol=1e-5)


@pytest.mark.skipif(bool(xla_bridge.WHY_NOT), reason=xla_bridge.WHY_NOT)
@each
def test_xla_gives_the_noise_of_eager_calls(make):
    layer, other = make(seed=3), make(seed=3)
    layer(X)
    other(X)
    other.set_weights(layer.get_weights())

    def both_passes(one, x):
        with tf.GradientTape() as tape:
            y = one(x, training=True)
        return y, tape.gradient(y, [v.value for v in one.trainable_variables])

    x = tf.constant(X)
    compiled = tf.function(lambda x: both_passes(other, x), jit_compile=True)
    for _ in range(2):
        results = [tf.nest.flatten(both) for both in (both_passes(layer, x), compiled(x))]
        for pair in zip(*results, strict=True):
            np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4)


@learning
def test_a_schedule_leaves_learned_rates_alone(make):
    x = keras.Input((7,))
    plain, layer = Dropout(0.5), make()
    model = keras.Model(x, keras.layers.Dense(1)(plain(layer(x))))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    before = np.array(layer.rate)
    model.fit(X, X[:, :1], verbose=0, callbacks=[RateSchedule(lambda epoch: 0.25)])
    assert plain.rate == 0.25
    np.testing.assert_array_equal(layer.rate, before)
    alone = model_of(make())
    alone.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"RateSchedule.*has none"):
        alone.fit(X, X[:, :2], verbose=0, callbacks=[RateSchedule(lambda epoch: 0.25)])
    with pytest.raises(AttributeError):
        layer.rate = 0.5


INNER = keras.layers.Dense(1)


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (lambda v: VariationalGaussianDropout(v), "kl_weight", -1.0),
        (lambda v: VariationalGaussianDropout(v), "kl_weight", math.inf),
        (lambda v: VariationalGaussianDropout(v), "kl_weight", "1"),
        (lambda v: VariationalGaussianDropout(1, v), "per", "weight"),
        (lambda v: VariationalGaussianDropout(1, "unit", v), "initial_rate", 0.6),
        (lambda v: VariationalGaussianDropout(1, "unit", v), "initial_rate", 0),
        (lambda v: VariationalGaussianDropout(1, seed=v), "seed", -1),
        (lambda v: VariationalDense(1, v), "kl_weight", -1),
        (lambda v: VariationalDense(1, 1, None, v), "initial_rate", 1.0),
        (lambda v: ConcreteDropout(v), "layer", 3),
        (lambda v: ConcreteDropout(INNER, v), "weight_regularizer", -1e-6),
        (lambda v: ConcreteDropout(INNER, 0, v), "dropout_regularizer", True),
        (lambda v: ConcreteDropout(INNER, initial_rate=v), "initial_rate", 1),
        (lambda v: ConcreteDropout(INNER, temperature=v), "temperature", 0),
        (lambda v: ConcreteDropout(INNER, noise_shape=v), "noise_shape", 5),
        (lambda v: VariationalGaussianDropout(v), "kl_weight", 10**400),
        (lambda v: Standout(alpha=v), "alpha", math.nan),
        (lambda v: Standout(beta=v), "beta", "1"),
    ],
)
def test_bad_arguments(make, argument, value):
    shown = re.escape(f"{argument}={value if isinstance(value, (int, float)) else repr(value)}")
    if value == 10**400:
        shown = "kl_weight=1000"
    before = random.getstate()
    with pytest.raises((TypeError, ValueError), match=f"argument `{argument}`.*{shown}"):
        make(value)
    assert random.getstate() == before


@pytest.mark.parametrize("make", [standout, concrete])
@pytest.mark.parametrize("training", [False, True])
def test_integers_are_refused(make, training):
    layer = make(seed=3)
    with pytest.raises(TypeError, match="dtype float16, bfloat16, float32 or float64"):
        layer(np.ones((2, 7), np.int32), training=training)
    assert layer.seed_generator.state.numpy().tolist() == [3, 0]


def test_layers_that_do_not_fit_are_refused_when_they_are_built():
    with pytest.raises(ValueError, match=r"a weight `kernel`.*Activation"):
        ConcreteDropout(keras.layers.Activation("relu"))(X)
    with pytest.raises(ValueError, match=r"size of axis -1.*\(None, None\)"):
        VariationalGaussianDropout(1.0)(keras.Input((None,)))
