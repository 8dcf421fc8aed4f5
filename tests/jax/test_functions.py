"""The functions give the reference's values and clear errors, in and outside of `jax.jit`."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import fastdrop
from fastdrop_jax import bias_dropout_add, dropout, functional, operation, relu_dropout

KEYS = {
    "typed threefry": jax.random.key,
    "raw threefry": jax.random.PRNGKey,
    "typed rbg": lambda seed: jax.random.key(seed, impl="rbg"),
    "raw unsafe_rbg": lambda seed: jax.random.key_data(jax.random.key(seed, impl="unsafe_rbg")),
}
DTYPES = ["float32", "float16", "bfloat16", "float64"]
KEY = KEYS["raw threefry"](5)


def seed_of(key):
    """The seed of a key, written from the text: its words, the first word lowest."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = np.asarray(jax.random.key_data(key) if typed else key)
    return sum(int(word) << 32 * place for place, word in enumerate(words))


def numbers(shape, dtype="float32"):
    values = np.random.default_rng(1).standard_normal(shape)
    with jax.enable_x64(dtype == "float64"):
        return jnp.asarray(values, dtype)


def expected(x, key, rate):
    kept = reference.keep_mask(seed_of(key), 0, rate, x.size).reshape(x.shape)
    return reference.dropout(np.asarray(x), kept, reference.default_scale(rate))


@pytest.mark.parametrize(
    ("make_key", "dtype"),
    [(name, "float32") for name in KEYS] + [("raw unsafe_rbg", dtype) for dtype in DTYPES[1:]],
)
@pytest.mark.parametrize("shape", [(), (1,), (7, 9), (0, 3), (5000,), (2, 3, 4, 5, 6)])
def test_a_key_gives_the_reference(make_key, dtype, shape):
    key = KEYS[make_key](2**31 + 7)
    x = numbers(shape, dtype)
    for rate in (0.2, 0.5, 0.999):
        for call in (dropout, jax.jit(dropout, static_argnums=2)):
            y = call(key, x, rate)
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            reference.assert_same_bits(np.asarray(y), expected(x, key, rate))


def test_a_key_drops_what_fastdrop_drops():
    x = numbers((100, 33))
    y, _ = fastdrop.dropout(np.asarray(x), 0.3, seed=seed_of(KEY))
    assert (dropout(KEY, x, 0.3) == y).all()


def test_rates_of_zero_and_one():
    x = jnp.array([1.0, jnp.nan, jnp.inf, -0.0])
    for call in (dropout, jax.jit(dropout)):
        assert (dropout(KEY, x, 1.0) == 0).all()
        reference.assert_same_bits(np.asarray(call(KEY, x, 0.0)), np.asarray(x))


def test_a_dropped_nan_becomes_zero():
    y = np.asarray(dropout(KEY, jnp.full(1000, jnp.nan), 0.5))
    assert (np.isnan(y) == reference.keep_mask(seed_of(KEY), 0, 0.5, 1000)).all()
    assert not np.signbit(y[~np.isnan(y)]).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_traced_rate_is_read_at_each_call(dtype):
    x = numbers(3000)
    drop = jax.jit(lambda key, x, rate: dropout(key, x, rate))
    with jax.enable_x64(dtype == "float64"):
        rates = [jnp.asarray(rate, dtype) for rate in (0.1, 0.7)]
    for rate in rates:
        assert (drop(KEY, x, rate) == expected(x, KEY, float(rate))).all()
    assert drop._cache_size() == 1


def test_a_rate_in_python_has_64_bits():
    """At this rate, an element is dropped that would be kept at the next float32 below."""
    rate, size = 0.3, 2**22
    kept = reference.keep_mask(seed_of(KEY), 0, rate, size)
    assert (kept != reference.keep_mask(seed_of(KEY), 0, float(np.float32(0.301)), size)).any()
    assert (np.asarray(dropout(KEY, jnp.ones(size), rate) != 0) == kept).all()


@pytest.mark.parametrize(
    ("shared", "entries"),
    [
        ({"noise_shape": (4, 1, 6)}, (4, 1, 6)),
        ({"noise_shape": (None, None, 1)}, (4, 5, 1)),
        ({"noise_shape": (6,)}, (1, 1, 6)),
        ({"noise_shape": ()}, (1, 1, 1)),
        ({"broadcast_dims": (1,)}, (4, 1, 6)),
        ({"broadcast_dims": (-1, 0)}, (1, 5, 1)),
        ({"broadcast_dims": ()}, (4, 5, 6)),
    ],
)
def test_decisions_are_shared_along_dimensions(shared, entries):
    x = numbers((4, 5, 6))
    kept = reference.keep_mask(seed_of(KEY), 0, 0.4, int(np.prod(entries))).reshape(entries)
    kept = np.broadcast_to(kept, x.shape)
    right = reference.dropout(np.asarray(x), kept, reference.default_scale(0.4))
    assert (dropout(KEY, x, 0.4, **shared) == right).all()


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "words"),
    [
        ((KEY, jnp.ones(3), 1.5), {}, ValueError, r"`rate` must be in \[0, 1\], got 1.5"),
        ((KEY, jnp.ones(3), -0.1), {}, ValueError, r"`rate` .*got -0.1"),
        ((KEY, jnp.ones(3), float("nan")), {}, ValueError, "`rate` .*got nan"),
        ((KEY, jnp.ones(3), "half"), {}, TypeError, "`rate` must be a number, got 'half'"),
        ((KEY, jnp.ones(3), jnp.ones(2)), {}, ValueError, r"`rate` .* broadcast to .*got \(2,\)"),
        ((KEY, jnp.ones(3), [0.1] * 3), {}, TypeError, "`rate` must be a number or an array"),
        ((KEY, jnp.ones(3), [[1], [1, 2]]), {}, TypeError, "`rate` must be a number or an array"),
        ((KEY, jnp.ones(3), jnp.ones(3, int)), {}, TypeError, "`rate` .* an array of floats"),
        ((KEY, jnp.ones(3), jnp.array([0, 1.5, 1])), {}, ValueError, r"`rate` .*each .*got 1\.5"),
        ((KEY, jnp.ones(2), np.array([0, np.nan])), {}, ValueError, "`rate` .*each .*got nan"),
        ((KEY, jnp.ones(3), True), {}, TypeError, "`rate` must be a number, got True"),
        ((KEY, jnp.ones(3, int), 0.5), {}, TypeError, "`x` .*got int32"),
        ((0, jnp.ones(3), 0.5), {}, TypeError, "`key` must be a key of jax.random, got 0"),
        ((jnp.zeros(2), jnp.ones(3), 0.5), {}, TypeError, "`key` must be a key"),
        ((jax.random.split(KEY), jnp.ones(3), 0.5), {}, ValueError, r"`key` .*shape \(2, 2\)"),
        ((jnp.zeros(3, "uint32"), jnp.ones(3), 0.5), {}, ValueError, "`key` .*2 or 4 words, got 3"),
        ((KEY, jnp.ones(3), 0.5), {"noise_shape": (2,)}, ValueError, r"`noise_shape` .*\(2,\)"),
        ((KEY, jnp.ones(3), 0.5), {"noise_shape": (3, 3)}, ValueError, "`noise_shape`"),
        ((KEY, jnp.ones((3, 3)), 0.5), {"noise_shape": (None,)}, ValueError, "`noise_shape`"),
        ((KEY, jnp.ones(8), 0.5), {"noise_shape": (8.0,)}, ValueError, "`noise_shape` .*8.0"),
        ((KEY, jnp.ones(1), 0.5), {"noise_shape": (True,)}, ValueError, "`noise_shape` .*True"),
        ((KEY, jnp.ones(8), 0.5), {"noise_shape": "ab"}, ValueError, "`noise_shape` .*'ab'"),
        ((KEY, None, 0.5), {}, TypeError, "`x` must be an array, got None"),
        ((KEY, jnp.ones(3), 0.5), {"broadcast_dims": (1,)}, ValueError, r"`broadcast_dims` .*1"),
        ((KEY, jnp.ones(3), 0.5), {"broadcast_dims": 0}, TypeError, "`broadcast_dims` .*got 0"),
        ((KEY, jnp.ones(3), 0.5), {"broadcast_dims": (0.0,)}, TypeError, "`broadcast_dims`"),
        (
            (KEY, jnp.ones(3), 0.5),
            {"broadcast_dims": (0,), "noise_shape": (1,)},
            ValueError,
            "`broadcast_dims`",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, settings, error, words):
    with pytest.raises(error, match=words):
        dropout(*arguments, **settings)


@pytest.mark.parametrize("rate", [1.5, -0.1, float("nan"), float("inf")])
def test_a_traced_rate_is_checked_at_run_time(rate):
    with pytest.raises(jax.errors.JaxRuntimeError, match="`rate` must be from 0 to 1"):
        jax.jit(dropout)(KEY, jnp.ones(3), rate)


@pytest.mark.parametrize("rate", [0.0, 1e-30, 0.1, 0.3, 0.999, 1.0])
def test_rates_are_widened_to_float64_exactly(rate):
    """JAX does it with 32-bit integers, since TPUs have no float64."""
    rate = np.float32(rate)
    low, high = functional._bits_of_float64(jnp.float32(rate))
    assert (int(low), int(high)) == tuple(np.array([rate], np.float64).view(np.uint32))
    assert operation._float32(low, high) == rate


def test_without_compilation():
    x = numbers(300)
    with jax.disable_jit():
        assert (dropout(KEY, x, 0.3) == expected(x, KEY, 0.3)).all()
        slope = jax.grad(lambda x: dropout(KEY, x, 0.3).sum())(x)
    assert (slope == expected(jnp.ones(300), KEY, 0.3)).all()


def test_relu_dropout():
    x = numbers((40, 30))
    y = relu_dropout(KEY, x, 0.3, broadcast_dims=(0,))
    assert (y == dropout(KEY, jnp.maximum(x, 0), 0.3, broadcast_dims=(0,))).all()
    slope = jax.grad(lambda x: relu_dropout(KEY, x, 0.3).sum())(x)
    kept = reference.keep_mask(seed_of(KEY), 0, 0.3, x.size).reshape(x.shape)
    right = np.where(kept & (np.asarray(x) > 0), np.float32(reference.default_scale(0.3)), 0)
    assert (slope == right).all()


@pytest.mark.parametrize("bias_shape", [None, (), (1,), (30,)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_bias_dropout_add(bias_shape, has_residual):
    x = numbers((40, 30))
    bias = None if bias_shape is None else numbers(bias_shape)
    residual = numbers((40, 30)) + 1 if has_residual else None
    kept = reference.keep_mask(seed_of(KEY), 0, 0.3, x.size).reshape(x.shape)
    total = np.asarray(x) + (0 if bias is None else np.asarray(bias))
    right = reference.dropout(total, kept, reference.default_scale(0.3))
    right = right if residual is None else right + np.asarray(residual)
    for call in (bias_dropout_add, jax.jit(bias_dropout_add, static_argnums=4)):
        assert np.allclose(call(KEY, x, bias, residual, 0.3), right, rtol=1e-6, atol=1e-6)


def test_a_bias_of_one_element_leaves_the_shape():
    assert bias_dropout_add(KEY, jnp.float32(1), jnp.ones(1), None, 0.3).shape == ()


@pytest.mark.parametrize(
    ("bias", "residual", "error", "words"),
    [
        (jnp.ones(2), None, ValueError, r"`bias` .*got \(2,\)"),
        (1.0, None, TypeError, "`bias` must be an array .*got 1.0"),
        (jnp.ones(3, "float16"), None, TypeError, "`bias` .*got float16"),
        (None, jnp.ones((1, 3)), ValueError, r"`residual` .*got \(1, 3\)"),
        (None, jnp.ones((2, 3), "bfloat16"), TypeError, "`residual` .*got bfloat16"),
    ],
)
def test_a_bias_or_residual_that_does_not_fit_is_named(bias, residual, error, words):
    with pytest.raises(error, match=words):
        bias_dropout_add(KEY, jnp.ones((2, 3)), bias, residual, 0.5)


def printed_by(code):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_no_other_framework_is_imported():
    frameworks = {"tensorflow", "torch", "keras", "flax", "equinox"}
    assert (
        printed_by(f"import sys, fastdrop_jax; print({frameworks} & {{*sys.modules}})") == "set()"
    )


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("sys.modules['jax'] = None", 'pip install "fastdrop[jax]"'),
        ("import jax; jax.__version_info__ = (0, 8, 1)", "needs JAX 0.9 or newer"),
        (
            "import pathlib, fastdrop._xla as xla; xla.LIBRARY = pathlib.Path('nowhere')",
            "handler for XLA was not built",
        ),
    ],
)
def test_what_is_missing_is_named(before, words):
    code = f"""
import sys
{before}
try:
    import fastdrop_jax
except ImportError as error:
    print(error)
"""
    assert words in printed_by(code)
