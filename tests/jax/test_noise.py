"""Gaussian dropout and noise, and alpha dropout: the reference's values, derivatives, devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fastdrop
from fastdrop_jax import (
    alpha_dropout,
    dropout,
    functional,
    gaussian_dropout,
    gaussian_noise,
    operation,
)

KEY = jax.random.key(5)
FUNCTIONS = [gaussian_dropout, gaussian_noise, alpha_dropout]
each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def seed_of(key):
    words = np.asarray(jax.random.key_data(key))
    return sum(int(word) << 32 * place for place, word in enumerate(words))


def numbers(shape, dtype="float32"):
    values = np.random.default_rng(1).standard_normal(shape)
    with jax.enable_x64(dtype == "float64"):
        return jnp.asarray(values, dtype)


def expected(function, x, key, parameter, noise_shape=None):
    return reference.drawn(function.__name__, x, parameter, seed_of(key), 0, noise_shape)


def slopes(function, x, key, parameter):
    """The derivative of each element."""
    return reference.drawn_gradient(function.__name__, np.ones_like(x), parameter, seed_of(key))


@each_function
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("impl", ["threefry2x32", "unsafe_rbg"])
def test_a_key_gives_the_reference(function, impl, dtype):
    key = jax.random.key(2**31 + 7, impl=impl)
    for shape, entries in [
        ((), ()),
        ((0, 3), (0, 3)),
        ((7, 701), (7, 701)),
        ((4, 5, 6), (4, 1, 6)),
    ]:
        x = numbers(shape, dtype)
        for parameter in (0.2, 0.7):
            right = expected(function, np.asarray(x), key, parameter, entries)
            draw = functools.partial(function, noise_shape=entries)
            for call in (draw, jax.jit(draw, static_argnums=2)):
                y = call(key, x, parameter)
                assert (y.dtype, y.shape) == (x.dtype, x.shape)
                reference.assert_same_bits(np.asarray(y), right)


@each_function
def test_fastdrop_gives_the_same_bits_for_the_keys_words(function):
    x = numbers((100, 33))
    right, _ = getattr(fastdrop, function.__name__)(np.asarray(x), 0.3, seed=seed_of(KEY))
    reference.assert_same_bits(np.asarray(function(KEY, x, 0.3)), right)
    with jax.disable_jit():
        reference.assert_same_bits(np.asarray(function(KEY, x, 0.3)), right)


@each_function
def test_without_noise_the_result_is_the_input_bit_for_bit(function):
    x = jnp.array([1.0, jnp.nan, jnp.inf, -0.0])
    for call in (function, jax.jit(function)):
        reference.assert_same_bits(np.asarray(call(KEY, x, 0.0)), np.asarray(x))


def test_alpha_dropout_of_all_elements_is_zero():
    x = jnp.array([1.0, jnp.nan, jnp.inf, -0.0])
    for call in (alpha_dropout, jax.jit(alpha_dropout)):
        reference.assert_same_bits(np.asarray(call(KEY, x, 1.0)), np.zeros(4, np.float32))


@each_function
def test_a_traced_number_is_read_at_each_call(function):
    x = numbers(3000)
    draw = jax.jit(lambda key, x, parameter: function(key, x, parameter))
    for parameter in (0.1, 0.7):
        y = draw(KEY, x, jnp.float32(parameter))
        right = expected(function, np.asarray(x), KEY, float(np.float32(parameter)))
        reference.assert_same_bits(np.asarray(y), right)
    assert draw._cache_size() == 1


@pytest.mark.parametrize("stddev", [2.0, 1e30])
def test_a_standard_deviation_may_be_large(stddev):
    x = numbers(50)
    right = expected(gaussian_noise, np.asarray(x), KEY, float(np.float32(stddev)))
    for given in (stddev, jnp.float32(stddev)):
        y = jax.jit(gaussian_noise)(KEY, x, given)
        reference.assert_same_bits(np.asarray(y), right)
        assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("function", "parameter", "error", "words"),
    [
        (gaussian_dropout, 1, ValueError, r"`rate` must be in \[0, 1\) for Gaussian .*got 1"),
        (gaussian_dropout, -0.1, ValueError, "`rate` .*got -0.1"),
        (gaussian_dropout, math.nan, ValueError, "`rate` .*got nan"),
        (gaussian_dropout, "half", TypeError, "`rate` must be a number, got 'half'"),
        (gaussian_noise, -1, ValueError, "`stddev` must be finite and at least 0, got -1"),
        (gaussian_noise, math.inf, ValueError, "`stddev` .*got inf"),
        (gaussian_noise, math.nan, ValueError, "`stddev` .*got nan"),
        (gaussian_noise, True, TypeError, "`stddev` must be a number, got True"),
        (alpha_dropout, 1.5, ValueError, r"`rate` must be in \[0, 1\], got 1.5"),
        (alpha_dropout, None, TypeError, "`rate` must be a number, got None"),
    ],
)
def test_bad_numbers_are_named(function, parameter, error, words):
    with pytest.raises(error, match=words):
        function(KEY, jnp.ones(3), parameter)


@pytest.mark.parametrize(
    ("function", "parameter", "words"),
    [
        (gaussian_dropout, 1.0, "`rate` must be below 1 for Gaussian dropout. Received: 1"),
        (gaussian_dropout, math.nan, "`rate` must be from 0 to 1. Received: -?nan"),
        (gaussian_noise, -1.0, "`stddev` must be finite and at least 0. Received: -1"),
        (gaussian_noise, math.inf, "`stddev` must be finite and at least 0. Received: inf"),
        (alpha_dropout, 1.5, "`rate` must be from 0 to 1. Received: 1.5"),
    ],
)
def test_a_traced_number_is_checked_at_run_time(function, parameter, words):
    with pytest.raises(jax.errors.JaxRuntimeError, match=words):
        jax.jit(function)(KEY, jnp.ones(3), parameter)


@each_function
def test_derivatives_of_every_order(function):
    """The function is affine in each element, so its cube has these derivatives."""
    x = numbers(300)
    y, slope = function(KEY, x, 0.4), slopes(function, np.asarray(x), KEY, 0.4)

    def cubes(x):
        return (function(KEY, x, 0.4) ** 3).sum()

    first, second = 3 * slope * y**2, 6 * slope**2 * y
    assert jnp.allclose(jax.grad(cubes)(x), first, rtol=1e-5, atol=1e-6)
    assert jnp.allclose(jnp.diag(jax.hessian(cubes)(x)), second, rtol=1e-5, atol=1e-6)
    assert jnp.allclose(jax.jvp(jax.grad(cubes), (x,), (x,))[1], second * x, rtol=1e-5, atol=1e-6)
    third = jax.grad(lambda x: (jax.grad(lambda x: jax.grad(cubes)(x).sum())(x)).sum())(x)
    assert jnp.allclose(third, 6 * slope**3, rtol=1e-5, atol=1e-6)


@each_function
def test_nothing_is_kept_for_the_gradient(function):
    _, backward = jax.vjp(lambda x: function(KEY, x, 0.4), numbers(300))
    assert all(np.size(kept) <= 8 for kept in jax.tree.leaves(backward))


@each_function
def test_a_checkpointed_function_repeats_its_noise(function):
    x = numbers(300)
    right = slopes(function, np.asarray(x), KEY, 0.4) * jnp.cos(function(KEY, x, 0.4))
    slope = jax.grad(jax.checkpoint(lambda x: jnp.sin(function(KEY, x, 0.4)).sum()))
    assert jnp.allclose(jax.jit(slope)(x), right, atol=1e-6)


@each_function
@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 1, None), (0, None, None), (None, 0, 0)])
@pytest.mark.parametrize("differentiate", [False, True])
def test_vmap_is_a_loop(function, axes, differentiate):
    keys = jax.random.split(KEY, 4)
    x = numbers((4, 3, 7) if axes[1] == 0 else (3, 4, 7) if axes[1] == 1 else (3, 7))
    parameters = jnp.array([0.1, 0.3, 0.5, 0.9])

    def call(key, x, parameter):
        return (function(key, x, parameter) ** 2).sum()

    if differentiate:
        call = jax.grad(call, argnums=1)
    given = (KEY if axes[0] is None else keys, x, 0.3 if axes[2] is None else parameters)
    found = jax.jit(jax.vmap(call, in_axes=axes))(*given)
    for i in range(4):
        one = [
            array if axis is None else jnp.moveaxis(array, axis, 0)[i]
            for array, axis in zip(given, axes, strict=True)
        ]
        assert jnp.allclose(found[i], call(*one), rtol=1e-5)


@each_function
@pytest.mark.parametrize("spec", [P("a"), P(None, "b"), P(("b", "a")), P()], ids=str)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_the_noise_is_that_of_the_whole_array(function, spec, kind):
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(kind,) * 2)
    x = numbers((8, 1200))
    found = jax.device_put(x, NamedSharding(mesh, spec))
    gradient = jax.jit(jax.grad(lambda x: (function(KEY, x, 0.3) ** 2).sum()))
    for broadcast_dims in [(), (0,)]:
        draw = functools.partial(function, KEY, broadcast_dims=broadcast_dims)
        for call in (draw, jax.jit(draw, static_argnums=1)):
            assert (call(found, 0.3) == draw(x, 0.3)).all()
    assert jnp.allclose(gradient(found), gradient(x), rtol=1e-5)


RATES = [("float32", (7, 700)), ("float16", (700,)), ("float32", (7, 1)), ("bfloat16", (1, 700))]


def rates_of(dtype, shape):
    rates = np.random.default_rng(3).uniform(size=shape)
    rates.flat[:2] = 0, 1
    return jnp.asarray(rates, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("rate_dtype", "shape"), RATES)
def test_each_element_has_its_own_rate(dtype, rate_dtype, shape):
    x, rates = numbers((7, 700), dtype), rates_of(rate_dtype, shape)
    wide = np.broadcast_to(np.asarray(rates, np.float64), x.shape)
    kept = reference.keep_by_rates(seed_of(KEY), 0, wide, x.shape)
    keep = np.where(kept, 1 - wide, 1)
    right = np.where(kept, np.asarray(x, np.float64) / keep, 0)
    close = {"rtol": 1e-3 if dtype == "float16" else 1e-6}
    for call in (dropout, jax.jit(dropout)):
        y = np.asarray(call(KEY, x, rates))
        assert y.dtype == x.dtype
        assert np.allclose(y, right, **close)
        assert ((y == 0) == ~kept).all()
    drop = jax.jit(lambda x: (dropout(KEY, x, rates).astype("float32") ** 2).sum())
    assert np.allclose(jax.grad(drop)(x), 2 * right / keep, **close)
    slope = jax.grad(lambda rates: dropout(KEY, x, rates).sum())(rates)
    assert (slope == 0).all()
    x = x.at[0].set(jnp.nan)
    assert (np.isnan(dropout(KEY, x, rates)[0]) == kept[0]).all()


def test_rates_of_shared_decisions():
    x, rates = numbers((7, 700)), rates_of("float32", (700,))
    kept = reference.keep_by_rates(seed_of(KEY), 0, np.asarray(rates), (1, 700))
    for shared in ({"noise_shape": (1, None)}, {"broadcast_dims": (0,)}):
        y = dropout(KEY, x, rates, **shared)
        assert ((y != 0) == np.broadcast_to(kept, x.shape)).all()
    with pytest.raises(ValueError, match=r"`rate` .* broadcast to \(1, 700\), got \(7, 700\)"):
        dropout(KEY, x, jnp.zeros((7, 700)), noise_shape=(1, None))


def test_a_traced_array_of_rates_is_checked_at_run_time():
    with pytest.raises(jax.errors.JaxRuntimeError, match="`rate` must be from 0 to 1 for each"):
        jax.jit(dropout)(KEY, jnp.ones(3), jnp.array([0.5, 1.5, 0]))


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)])
def test_vmap_over_rates_is_a_loop(axes):
    keys = jax.random.split(KEY, 4)
    x = numbers((4, 30) if axes[1] == 0 else (30,))
    rates = rates_of("float32", (4, 30) if axes[2] == 0 else (30,))
    given = (KEY if axes[0] is None else keys, x, rates)
    found = jax.vmap(dropout, in_axes=axes)(*given)
    for i in range(4):
        one = [a if axis is None else a[i] for a, axis in zip(given, axes, strict=True)]
        assert (found[i] == dropout(*one)).all()


def test_rates_of_an_array_that_is_distributed():
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    x, rates = numbers((8, 1200)), rates_of("float32", (8, 1200))
    found = [jax.device_put(array, NamedSharding(mesh, P("a"))) for array in (x, rates)]
    assert (jax.jit(dropout)(KEY, *found) == jax.jit(dropout)(KEY, x, rates)).all()


def test_programs_of_each_function_differ_in_the_cache():
    """The key of JAX's compilation cache has their text alone."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    found = jax.device_put(numbers((8, 12)), NamedSharding(mesh, P("a")))
    texts = {
        jax.jit(lambda x, function=function: function(KEY, x, 0.3))
        .lower(found)
        .as_text()
        .split("custom_call")[0]
        for function in FUNCTIONS
    }
    assert len(texts) == 3


@each_function
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_draws_noise_for_each_key(function, check_vma):
    mesh = jax.make_mesh((4,), ("a",), axis_types=(AxisType.Auto,))
    x, keys = numbers((8, 12)), jax.random.split(KEY, 4)

    def call(keys, x):
        return jax.jvp(lambda x: function(keys[0], x, 0.3) ** 2, (x,), (x,))[1]

    mapped = jax.shard_map(
        call, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"), check_vma=check_vma
    )
    right = jnp.concatenate([call(keys[i : i + 1], x) for i in range(4)])
    assert jnp.allclose(jax.jit(mapped)(keys, x), right, rtol=1e-5)


@each_function
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_programs_for_other_devices_use_jax_alone(function, platform):
    program = jax.jit(jax.value_and_grad(lambda x: (function(KEY, x, 0.3) ** 2).sum()))
    exported = jax.export.export(program, platforms=[platform])(numbers(6))
    assert "custom_call" not in exported.mlir_module()
    assert "f64" not in exported.mlir_module()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", operation.KINDS[1:-1])
def test_jax_draws_the_distribution_on_other_devices(kind, dtype):
    """The function that such a program calls, here on the CPU."""
    x = jnp.full((200, 500), 2, dtype)

    def draw(x, rate, noise_shape=(None, None)):
        words = functional.words_of(KEY, jnp.float32(rate))
        return operation._draw_by_jax(x, words, noise_shape=noise_shape, kind=kind)

    y = draw(x, 0.2)
    alpha = 1.7580993408473766
    a = ((1 - 0.2) * (1 + 0.2 * alpha**2)) ** -0.5
    kept_and_dropped = {
        "alpha_dropout": (a * 2 + a * 0.2 * alpha, -a * alpha + a * 0.2 * alpha),
        "alpha_dropout_gradient": (a * 2, 0),
    }
    if kind in kept_and_dropped:
        kept, dropped = kept_and_dropped[kind]
        mean, variance = 0.8 * kept + 0.2 * dropped, 0.16 * (kept - dropped) ** 2
        assert np.allclose(np.unique(y), sorted([kept, dropped]), rtol=1e-3)
        assert (draw(jnp.full_like(x, jnp.nan), 1) == 0).all()
    else:
        mean, variance = 2, {"gaussian_noise": 0.04, "gaussian_dropout": 4 * 0.25}[kind]
    assert y.dtype == x.dtype
    assert y.astype("float32").mean() == pytest.approx(mean, abs=0.02)
    assert y.astype("float32").var() == pytest.approx(variance, rel=0.03)
    shared = draw(x, 0.2, (1, None))
    assert (shared == shared[0]).all()
    assert jnp.allclose(draw(x, 0.0), x)


def test_alpha_dropouts_constants_are_rounded_to_float16_once():
    """At this rate, a float between would round the shift to another number."""
    x, rate = np.ones(100, np.float16), 0.1436
    shift = -reference.ALPHA * reference.alpha_scale(rate) * (1 - rate)
    assert np.float16(shift) != np.float16(np.float32(shift))
    right = expected(alpha_dropout, x, KEY, rate)
    reference.assert_same_bits(np.asarray(alpha_dropout(KEY, jnp.asarray(x), rate)), right)


def test_jax_drops_at_rates_on_other_devices():
    x, rates = numbers((7, 700)), rates_of("float32", (7, 700))
    exported = jax.export.export(jax.jit(dropout), platforms=["tpu"])(KEY, x, rates)
    assert "custom_call" not in exported.mlir_module()
    words = functional.words_of(KEY, np.zeros(2, np.uint32))
    rates = jnp.repeat(jnp.array([0, 0.2, 0.9, 1]), 10000)
    kept = operation._draw_by_jax(rates, words, noise_shape=(None,), kind="bernoulli")
    assert set(np.unique(kept)) == {0, 1}
    assert np.allclose(kept.reshape(4, -1).mean(1), [1, 0.8, 0.1, 0], atol=0.02)
