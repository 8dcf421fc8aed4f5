"""The layers for Flax that learn how much to drop have the papers' values, losses and gradients."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx

import fastdrop
from fastdrop_jax.nnx import (
    ConcreteDropout,
    Standout,
    VariationalGaussianDropout,
    VariationalLinear,
    regularization,
)

X = np.random.default_rng(0).normal(0, 2, (20, 7))
KEY = jax.random.key(5)
DTYPES = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def seed_of(key):
    words = np.asarray(jax.random.key_data(key))
    return sum(int(word) << 32 * place for place, word in enumerate(words))


def normals(shape, dtype="float32", noise_shape=None, key=KEY):
    """The standard normal numbers of a call, in float64."""
    zeros = np.zeros(shape, dtype)
    numbers, _ = fastdrop.gaussian_noise(zeros, 1.0, seed=seed_of(key), noise_shape=noise_shape)
    return np.float64(numbers)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def numerical_gradient(function, array, step=1e-6):
    """Central differences of a function of a float64 array."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        change = np.zeros_like(array)
        change[index] = step
        above, below = function(array + change), function(array - change)
        gradient[index] = (above - below) / (2 * step)
    return gradient


def check_gradients(layer, deterministic=False):
    """Compare gradients of outputs and losses, by inputs and parameters, with differences."""
    graph, parameters, others = nnx.split(layer, nnx.Param, ...)
    x = X[:3]
    weights = np.random.default_rng(1).normal(size=layer(x, deterministic=True).shape)

    @jax.jit
    def loss(parameters, x):
        layer = nnx.merge(graph, parameters, others)
        return jnp.sum(layer(x, deterministic=deterministic, rngs=KEY) * weights) + regularization(
            layer
        )

    of_parameters, of_inputs = jax.grad(loss, argnums=(0, 1))(parameters, x)
    np.testing.assert_allclose(
        of_inputs, numerical_gradient(lambda x: loss(parameters, x), x), rtol=1e-5, atol=1e-7
    )
    leaves, structure = jax.tree.flatten(parameters)
    for place, found in enumerate(jax.tree.leaves(of_parameters)):

        def loss_of(array, place=place):
            changed = [array if i == place else leaf for i, leaf in enumerate(leaves)]
            return loss(jax.tree.unflatten(structure, changed), x)

        expected = numerical_gradient(loss_of, np.asarray(leaves[place]))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


# Standout.


@each_dtype
def test_standout_keeps_units_with_their_own_probabilities(dtype):
    with jax.enable_x64(dtype == "float64"):
        layer, x = Standout(nnx.relu, 0.5, -0.25), jnp.asarray(X, dtype)
        # At the probabilities in the dtype of the inputs.
        rates = 1 - jax.nn.sigmoid(0.5 * x - 0.25)
        kept = reference.keep_by_rates(seed_of(KEY), 0, np.float64(rates), x.shape)
        y = layer(x, rngs=KEY)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, np.where(kept, np.maximum(x, 0), 0))


def test_the_fraction_that_standout_keeps():
    layer = Standout(alpha=0.7, beta=-0.4)
    for z in (-3, -0.5, 1, 2.5):
        kept = np.asarray(layer(jnp.full((100, 1000), z, "float32"), rngs=KEY)) != 0
        p = sigmoid(0.7 * z - 0.4)
        # Five standard deviations.
        assert abs(kept.mean() - p) < 5 * math.sqrt(p * (1 - p) / kept.size)


def test_standout_multiplies_by_the_probabilities_in_inference():
    layer = Standout(jnp.tanh, 0.5, -0.25, rngs=nnx.Rngs(0))
    layer.eval()
    y = nnx.jit(lambda layer, x: layer(x))(layer, np.float32(X))
    np.testing.assert_allclose(y, np.tanh(X) * sigmoid(0.5 * X - 0.25), rtol=1e-5, atol=1e-6)


def test_the_mask_of_standout_is_a_constant_in_training_alone():
    layer = Standout(jnp.tanh, 0.5, -0.25)
    with jax.enable_x64(True):
        y, pull_back = jax.vjp(lambda x: layer(x, rngs=KEY), X)
        (slope,) = pull_back(jnp.ones_like(y))
        np.testing.assert_allclose(slope, (1 - np.tanh(X) ** 2) * (np.asarray(y) != 0), rtol=1e-9)
        check_gradients(layer, deterministic=True)


def test_standout_drops_infinities_to_zero_and_keeps_nan():
    x = jnp.array([-jnp.inf, jnp.inf, jnp.nan])
    y = np.asarray(Standout()(x, rngs=KEY))
    assert y[0].view(np.int32) == 0
    assert y[1] == np.inf
    assert np.isnan(y[2])
    assert (np.asarray(Standout()(x[:2], deterministic=True)) == [0, np.inf]).all()


# Variational dropout.


@each_dtype
@pytest.mark.parametrize("per", ["layer", "unit"])
def test_variational_noise_is_normal_with_the_learned_variance(per, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(X, dtype)
        layer = VariationalGaussianDropout(
            7, 0.1, per, 0.2, param_dtype="float64" if dtype == "float64" else "float32"
        )
        np.testing.assert_allclose(layer.rate, np.full(7 if per == "unit" else (), 0.2), rtol=1e-6)
        rate = np.linspace(0.02, 0.48, 7) if per == "unit" else np.float64(0.1)
        layer.rate_logit[...] = jnp.asarray(np.log(2 * rate / (1 - 2 * rate)))
        np.testing.assert_allclose(layer.rate, rate, rtol=1e-5)
        y = layer(x, rngs=KEY)
        assert y.dtype == dtype
        numbers = normals(x.shape, np.asarray(x).dtype)
        expected = np.float64(x) * (1 + np.sqrt(rate / (1 - rate)) * numbers)
        np.testing.assert_allclose(
            np.float64(y), expected, rtol=DTYPES[dtype], atol=4 * DTYPES[dtype]
        )


def exact_divergence(alpha):
    """The divergence of N(1, alpha) from a uniform logarithm, but for a constant.

    -log(sigma) + E log|1 + sqrt(alpha) n|, by the rule of the midpoint.
    """
    edges = np.linspace(-12, 12, 2_000_001)
    n = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(n**2) / 2) / math.sqrt(2 * math.pi)
    mean = np.sum(density * np.log(np.abs(1 + math.sqrt(alpha) * n))) * (edges[1] - edges[0])
    return -math.log(alpha) / 2 + mean


def test_the_divergence_is_the_papers_up_to_alpha_1():
    alphas = np.array([1e-4, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.999])
    exact = np.array([exact_divergence(alpha) for alpha in alphas])
    losses = [
        float(VariationalGaussianDropout(1, 1.0, "layer", alpha / (1 + alpha)).regularization())
        for alpha in alphas
    ]
    difference = exact - losses
    # The authors' accuracy: a term of alpha that is linear near 0 has another slope.
    assert np.ptp(difference) < 0.04
    assert np.ptp(difference[alphas >= 0.1]) < 0.008


def of_one(rate):
    """The paper's approximation of the divergence."""
    alpha = rate / (1 - rate)
    cubic = 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3
    return -0.5 * math.log(alpha) - cubic


def test_the_loss_sums_the_divergences_of_all_units():
    for per in ("layer", "unit"):
        layer = VariationalGaussianDropout(5, 0.25, per, 0.3)
        assert layer.rate_logit.shape == (() if per == "layer" else (5,))
        np.testing.assert_allclose(layer.regularization(), 0.25 * 5 * of_one(0.3), rtol=1e-6)
    layer = VariationalLinear(3, 4, 0.25, 0.3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer.regularization(), 0.25 * 12 * of_one(0.3), rtol=1e-6)


def test_a_rate_near_0_has_finite_noise_and_gradients():
    layer = VariationalGaussianDropout(7, 1.0)
    layer.rate_logit[...] = jnp.float32(-200)

    def loss(layer):
        return layer(jnp.ones(7), rngs=KEY).sum() + layer.regularization()

    value, slopes = nnx.value_and_grad(loss)(layer)
    assert abs(value - 7 - 7 * (100 + math.log(2) / 2)) < 1e-2
    # Of -log(alpha) / 2 for each unit.
    assert abs(slopes["rate_logit"][...] + 7 / 2) < 1e-5


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_gradients_of_variational_dropout(per):
    with jax.enable_x64(True):
        check_gradients(VariationalGaussianDropout(7, 0.3, per, 0.2, param_dtype="float64"))


@each_dtype
def test_the_sums_of_noisy_weights_are_normal(dtype):
    with jax.enable_x64(dtype == "float64"):
        wide = "float64" if dtype == "float64" else "float32"
        layer = VariationalLinear(
            7, 5, 0.1, dtype=dtype, param_dtype=wide, rngs=nnx.Rngs(7, dropout=1)
        )
        assert layer.rate_logit.dtype == wide
        rate = np.random.default_rng(2).uniform(0.05, 0.48, (7, 5))
        layer.rate_logit[...] = jnp.asarray(np.log(2 * rate / (1 - 2 * rate)))
        layer.bias[...] = jnp.arange(5.0) / 5
        x, kernel, bias = jnp.asarray(X, dtype), np.float64(layer.kernel[...]), np.arange(5) / 5
        plain = nnx.Linear(7, 5, dtype=dtype, param_dtype=wide, rngs=nnx.Rngs(7, dropout=1))
        plain.bias[...] = layer.bias[...]
        assert (layer(x, deterministic=True) == plain(x)).all()
        y = layer(x, rngs=KEY)
        assert y.dtype == dtype
        deviation = np.sqrt(np.float64(x) ** 2 @ (rate / (1 - rate) * kernel**2))
        numbers = normals(y.shape, np.asarray(x).dtype)
        expected = np.float64(x) @ kernel + deviation * numbers + bias
        np.testing.assert_allclose(
            np.float64(y), expected, rtol=DTYPES[dtype], atol=8 * DTYPES[dtype]
        )


def test_the_noise_of_drawn_weights_has_the_same_distribution():
    layer = VariationalLinear(7, 1, 0.1, 0.2, rngs=nnx.Rngs(7))
    x = np.repeat(np.float32(X[:1]), 100_000, axis=0)
    sums = np.asarray(layer(x))[:, 0]
    kernel = np.asarray(layer.kernel)[:, 0]
    drawn = kernel * (1 + 0.5 * np.random.default_rng(0).normal(size=(100_000, 7)))
    expected = drawn @ X[0]
    assert abs(sums.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(50_000)
    # Five standard deviations of the logarithm of the ratio of two variances.
    assert abs(math.log(sums.var() / expected.var())) < 5 * math.sqrt(4 / 100_000)


def test_without_inputs_noisy_weights_have_finite_gradients():
    layer = VariationalLinear(4, 2, 0.1, rngs=nnx.Rngs(1))
    y, slopes = nnx.value_and_grad(lambda layer: layer(jnp.zeros((3, 4))).sum())(layer)
    assert y == 0
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))
    assert np.all(np.isfinite(jax.grad(lambda x: layer(x, rngs=KEY).sum())(jnp.zeros((3, 4)))))


def test_gradients_of_noisy_weights():
    with jax.enable_x64(True):
        check_gradients(VariationalLinear(7, 2, 0.3, 0.2, param_dtype="float64", rngs=nnx.Rngs(1)))


# Concrete dropout.


def identity(**kwargs):
    return nnx.Linear(
        7, 7, kernel_init=lambda *_: jnp.eye(7), use_bias=False, rngs=nnx.Rngs(0), **kwargs
    )


@each_dtype
@pytest.mark.parametrize("shared", [(), (1,)])
def test_concrete_dropout_is_the_papers(dtype, shared):
    with jax.enable_x64(dtype == "float64"):
        wide = "float64" if dtype == "float64" else "float32"
        layer = ConcreteDropout(
            identity(dtype=dtype),
            initial_rate=0.3,
            temperature=0.2,
            broadcast_dims=shared,
            param_dtype=wide,
        )
        x = jnp.asarray(X, dtype)
        assert (layer(x, deterministic=True) == x).all()
        np.testing.assert_allclose(layer.rate, 0.3, rtol=1e-6)
        y = layer(x, rngs=KEY)
        assert y.dtype == dtype
        n = normals(x.shape, wide, (20, 1) if shared else None)
        u = np.vectorize(math.erf)(n / math.sqrt(2)) / 2 + 0.5
        logits = np.log(0.3 / 0.7) + np.log(u + 1e-7) - np.log(1 - u + 1e-7)
        expected = np.float64(x) * (1 - sigmoid(logits / 0.2)) / 0.7
        tolerance = {"float64": 1e-12, "float32": 2e-4}.get(dtype, DTYPES[dtype])
        np.testing.assert_allclose(np.float64(y), expected, rtol=tolerance, atol=tolerance)


def test_at_a_low_temperature_the_mask_is_that_of_dropout():
    inner = nnx.Linear(1000, 1000, kernel_init=lambda *_: jnp.eye(1000), rngs=nnx.Rngs(0))
    layer = ConcreteDropout(inner, initial_rate=0.25, temperature=1e-9, rngs=nnx.Rngs(1))
    y = np.asarray(layer(jnp.ones((100, 1000))))
    kept = y > 0.5
    np.testing.assert_allclose(y, np.where(kept, 4 / 3, 0), rtol=1e-6, atol=1e-3)
    # Five standard deviations.
    assert abs(kept.mean() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / y.size)


@pytest.mark.parametrize(
    ("make", "units"),
    [
        (lambda **kwargs: nnx.Linear(3, 4, **kwargs), 3),
        (lambda **kwargs: nnx.Conv(6, 4, (3, 3), **kwargs), 6),
        (lambda **kwargs: nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), **kwargs), 6),
        (lambda **kwargs: nnx.Linear(3, 4, param_dtype="float16", **kwargs), 3),
    ],
)
def test_the_loss_of_concrete_dropout_is_the_papers(make, units):
    layer = ConcreteDropout(make(rngs=nnx.Rngs(0)), 0.3, 0.2, initial_rate=0.4)
    kernel = np.float64(layer.layer.kernel[...])
    entropy = -(0.4 * math.log(0.4) + 0.6 * math.log(0.6))
    expected = 0.3 * (kernel**2).sum() / 0.6 - 0.2 * units * entropy
    loss = layer.regularization()
    assert loss.dtype == "float32"
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def concrete_factors(logit, temperature):
    """The factors of inputs and their derivatives by the logit, without an overflow."""
    u = np.vectorize(math.erf)(normals((7,)) / math.sqrt(2)) / 2 + 0.5
    drop = (logit + np.log(u + 1e-7) - np.log(1 - u + 1e-7)) / temperature
    factors = np.exp(np.logaddexp(0, logit) - np.logaddexp(0, drop))
    slopes = np.exp(-np.logaddexp(0, -logit)) - np.exp(-np.logaddexp(0, -drop)) / temperature
    return factors, factors * slopes


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("logit", [-1000.0, 89.0, 100.0, 1000.0])
def test_a_concrete_rate_near_0_or_1_has_finite_outputs_and_gradients(logit, temperature):
    layer = ConcreteDropout(identity(), 0.0, temperature=temperature)
    layer.rate_logit[...] = jnp.float32(logit)
    factors, slopes = concrete_factors(logit, temperature)
    np.testing.assert_allclose(layer(jnp.ones(7), rngs=KEY), factors, rtol=1e-3)

    def loss(layer):
        return layer(jnp.ones(7), rngs=KEY).sum() + layer.regularization()

    value, gradient = nnx.value_and_grad(loss)(layer)
    np.testing.assert_allclose(value, factors.sum(), rtol=1e-3)
    np.testing.assert_allclose(gradient["rate_logit"][...], slopes.sum(), rtol=1e-3, atol=1e-4)


def test_the_loss_of_a_concrete_rate_near_1_is_finite():
    layer = ConcreteDropout(identity(), 1e-6)
    layer.rate_logit[...] = jnp.float32(100)
    loss, slopes = nnx.value_and_grad(lambda layer: layer.regularization())(layer)
    # exp(100) is more than float32 has. The sum of squares is 7.
    np.testing.assert_allclose([loss, slopes["rate_logit"][...]], 7e-6 * math.exp(100), rtol=1e-4)


def test_gradients_of_concrete_dropout():
    with jax.enable_x64(True):
        inner = nnx.Linear(7, 2, param_dtype="float64", rngs=nnx.Rngs(1))
        check_gradients(ConcreteDropout(inner, 0.1, 0.2, 0.3, 0.5, param_dtype="float64"))


# All.


def standout(**kwargs):
    return Standout(jnp.tanh, 0.5, 0.1, **kwargs)


def variational(**kwargs):
    return VariationalGaussianDropout(7, 0.1, "unit", 0.3, **kwargs)


def noisy_weights(**kwargs):
    return VariationalLinear(7, 5, 0.1, 0.3, **kwargs)


def concrete(rngs, **kwargs):
    return ConcreteDropout(nnx.Linear(7, 5, rngs=rngs), 0.1, 0.2, 0.3, 0.4, rngs=rngs, **kwargs)


LEARNING = [variational, noisy_weights, concrete]
learning = pytest.mark.parametrize("make", LEARNING)
each = pytest.mark.parametrize("make", [standout, *LEARNING])


@each
def test_each_call_has_a_key_and_inference_none(make):
    x = np.float32(X)
    layer = make(rngs=nnx.Rngs(0, noise=3), rng_collection="noise")
    keys = nnx.Rngs(0, noise=3)["noise"].fork()
    for run in (lambda layer, x: layer(x), nnx.jit(lambda layer, x: layer(x))):
        right = layer(x, deterministic=False, rngs=keys())
        np.testing.assert_allclose(run(layer, x), right, rtol=1e-5, atol=1e-6)
    layer.eval()
    assert (layer(x) == layer(x)).all()
    assert (layer(x) == nnx.view(layer, deterministic=True)(x)).all()
    assert layer.rngs.count[...] == 2
    layer.train()
    assert (layer(x) != layer(x)).any()
    with pytest.raises(TypeError, match="`rngs` must be"):
        layer(x, rngs=3)


@each
def test_a_merged_layer_goes_on_with_the_noise(make):
    x = np.float32(X)
    layer = make(rngs=nnx.Rngs(0))
    layer(x)
    graph, *states = nnx.split(layer, nnx.Param, ...)
    assert ("rate_logit" in states[0]) == (make is not standout)
    again = nnx.merge(graph, *states, copy=True)
    assert (again(x) == layer(x)).all()


@each
def test_vmap_is_a_loop(make):
    x, layer = np.float32(X), make(rngs=nnx.Rngs(0))
    keys = jax.random.split(KEY, len(x))
    found = jax.vmap(lambda key, x: layer(x, rngs=key))(keys, x)
    alone = jax.vmap(lambda x: layer(x, rngs=KEY))(x)
    for i, key in enumerate(keys):
        np.testing.assert_allclose(found[i], layer(x[i], rngs=key), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alone[i], layer(x[i], rngs=KEY), rtol=1e-5, atol=1e-5)


@nnx.jit
def train(model, optimizer, x, y):
    def loss(model):
        return ((model(x) - y) ** 2).mean() + regularization(model)

    optimizer.update(model, nnx.grad(loss)(model))


def fit(layers, samples, inputs=1, steps=400):
    """Let layers learn y = 3 x of the first of their inputs, from some samples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, inputs)).astype(np.float32)
    y = 3 * x[:, :1] + rng.normal(0, 0.5, (samples, 1)).astype(np.float32)
    model = nnx.Sequential(*layers)
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    for _ in range(steps):
        train(model, optimizer, x, y)


def test_variational_dropout_learns_which_units_are_noise():
    rngs = nnx.Rngs(3)
    layer = VariationalGaussianDropout(3, 0.01, "unit", 0.2, rngs=rngs)
    fit([layer, nnx.Linear(3, 1, rngs=rngs)], samples=200, inputs=3)
    assert layer.rate[0] < 0.05 < 0.3 < min(layer.rate[1:])
    # alpha is at most 1.
    assert max(layer.rate) <= 0.5


def test_with_more_data_concrete_dropout_learns_a_smaller_rate():
    rates = []
    for samples in (20, 400):
        rngs = nnx.Rngs(3)
        first, last = (
            ConcreteDropout(layer, 1e-4 / samples, 20 / samples, rngs=rngs)
            for layer in (nnx.Linear(1, 20, rngs=rngs), nnx.Linear(20, 1, rngs=rngs))
        )
        fit([first, nnx.relu, last], samples)
        rates.append(last.rate)
    assert rates[1] < rates[0] / 2


def test_the_losses_of_a_model_are_summed_once():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([make(rngs=rngs) for make in LEARNING])
            self.inner = nnx.Sequential(self.layers[0], noisy_weights(rngs=rngs))
            self.others = nnx.List([standout(rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])

    model = Model(nnx.Rngs(0))
    layers = [*model.layers, model.inner.layers[1]]
    np.testing.assert_allclose(
        regularization(model), sum(layer.regularization() for layer in layers), rtol=1e-6
    )
    np.testing.assert_allclose(nnx.jit(regularization)(model), regularization(model), rtol=1e-6)
    assert regularization(layers[0]) == layers[0].regularization()
    assert regularization(model.others[0]) == 0
    with pytest.raises(TypeError, match=r"`module` must be a module of flax\.nnx, got 3"):
        regularization(3)


RNGS = nnx.Rngs(0)
LINEAR = nnx.Linear(1, 1, rngs=RNGS)


@pytest.mark.parametrize(
    ("make", "argument", "value"),
    [
        (lambda v: VariationalGaussianDropout(v, 1), "num_features", 0),
        (lambda v: VariationalGaussianDropout(v, 1), "num_features", True),
        (lambda v: VariationalGaussianDropout(v, 1), "num_features", 2.0),
        (lambda v: VariationalGaussianDropout(1, v), "kl_weight", -1.0),
        (lambda v: VariationalGaussianDropout(1, v), "kl_weight", math.inf),
        (lambda v: VariationalGaussianDropout(1, v), "kl_weight", "1"),
        (lambda v: VariationalGaussianDropout(1, v), "kl_weight", 10**400),
        (lambda v: VariationalGaussianDropout(1, 1, v), "per", "weight"),
        (lambda v: VariationalGaussianDropout(1, 1, "unit", v), "initial_rate", 0.5),
        (lambda v: VariationalGaussianDropout(1, 1, "unit", v), "initial_rate", 0.0),
        (lambda v: VariationalLinear(1, 1, v, rngs=RNGS), "kl_weight", -1),
        (lambda v: VariationalLinear(1, 1, 1, v, rngs=RNGS), "initial_rate", 1.0),
        (lambda v: ConcreteDropout(v), "layer", 3),
        (lambda v: ConcreteDropout(LINEAR, v), "weight_regularizer", -1e-6),
        (lambda v: ConcreteDropout(LINEAR, 0, v), "dropout_regularizer", True),
        (lambda v: ConcreteDropout(LINEAR, initial_rate=v), "initial_rate", 1.0),
        (lambda v: ConcreteDropout(LINEAR, temperature=v), "temperature", 0),
        (lambda v: ConcreteDropout(LINEAR, param_dtype=v), "param_dtype", int),
        (lambda v: Standout(v), "activation", "relu"),
        (lambda v: Standout(alpha=v), "alpha", math.nan),
        (lambda v: Standout(beta=v), "beta", "1"),
    ],
)
def test_bad_arguments_of_the_layers_are_named(make, argument, value):
    with pytest.raises((TypeError, ValueError), match=re.escape(f"`{argument}` must be ")) as error:
        make(value)
    assert str(error.value).endswith(f"got {value!r}")


def test_a_bad_argument_takes_no_key():
    rngs = nnx.Rngs(0)
    for make in (
        lambda: Standout(3, rngs=rngs),
        lambda: Standout(beta="1", rngs=rngs),
        lambda: VariationalGaussianDropout(3, -1, rngs=rngs),
        lambda: VariationalGaussianDropout(3, 1, "unit", 0.5, rngs=rngs),
        lambda: VariationalGaussianDropout(3, 1, param_dtype=int, rngs=rngs),
        lambda: VariationalLinear(3, 2, -1, rngs=rngs),
        lambda: VariationalLinear(3, 2, 1, 0.5, rngs=rngs),
        lambda: ConcreteDropout(LINEAR, -1, rngs=rngs),
        lambda: ConcreteDropout(LINEAR, temperature=0, rngs=rngs),
    ):
        with pytest.raises((TypeError, ValueError), match="` must be "):
            make()
    assert rngs.default.count[...] == 0


def test_bad_inputs_are_named():
    with pytest.raises(ValueError, match=r"`inputs` must have 7 features .*\(7, 2\)"):
        variational()(jnp.ones((7, 2)), rngs=KEY)
    for make in (standout, variational, concrete):
        with pytest.raises(TypeError, match=r"`inputs` must have .* float32, float64, got int32"):
            make(rngs=nnx.Rngs(0))(jnp.ones((2, 7), int), rngs=KEY)


def test_noisy_weights_take_integers_as_flaxs_layer():
    layer = noisy_weights(rngs=nnx.Rngs(0))
    for dtype in (int, bool):
        x = np.arange(14).reshape(2, 7) % 2
        np.testing.assert_array_equal(
            layer(jnp.asarray(x, dtype), rngs=KEY), layer(jnp.float32(x), rngs=KEY)
        )
    with pytest.raises(TypeError, match=r"`inputs` must have .*, got complex64"):
        layer(jnp.ones((2, 7), complex), rngs=KEY)


def test_stacked_layers_sum_their_losses():
    def make(rngs):
        return ConcreteDropout(nnx.Linear(3, 5, rngs=rngs), 1e-2, 1e-1, rngs=rngs)

    stacked = nnx.vmap(make)(nnx.Rngs(0).split(4))
    separate = nnx.vmap(lambda layer: layer.regularization())(stacked)
    np.testing.assert_allclose(regularization(stacked), separate.sum(), rtol=1e-5)


def test_parameters_in_half_precision_do_not_overflow():
    layer = VariationalLinear(512, 512, 1e-5, 0.05, param_dtype="float16", rngs=nnx.Rngs(0))
    assert jnp.isfinite(layer.regularization())
    assert jnp.isfinite(layer(jnp.full((1, 512), 300, "float16"))).all()


def test_standout_without_sums_keeps_infinities_too():
    layer = Standout(alpha=0.0, beta=20.0, rngs=nnx.Rngs(0))
    x = jnp.array([math.inf, -math.inf, 1.0])
    np.testing.assert_array_equal(layer(x), x)
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
