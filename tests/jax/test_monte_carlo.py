"""mc_predict for functions and models: the moments, the keys, and which layers drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fastdrop_jax
import fastdrop_jax.nnx
from fastdrop_jax.nnx import Dropout, GaussianNoise

KEY = jax.random.key(5)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), "float32")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("jit", [True, False])
def test_the_moments_are_those_of_the_passes(jit, dtype):
    def function(key, x):
        return {
            "y": fastdrop_jax.dropout(key, x, 0.5),
            "sum": fastdrop_jax.dropout(key, x, 0.2).sum(),
        }

    def run(key, x):
        return fastdrop_jax.mc_predict(function, x, 20, key=key)

    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(X, dtype) + 1000
        mean, deviation = (jax.jit(run) if jit else run)(KEY, x)
        passes = [function(key, x) for key in jax.random.split(KEY, 20)]
    for name in ("y", "sum"):
        outputs = np.stack([np.asarray(one[name], np.float64) for one in passes])
        assert mean[name].dtype == ("float64" if dtype == "float64" else "float32")
        np.testing.assert_allclose(mean[name], outputs.mean(0), rtol=1e-5)
        np.testing.assert_allclose(deviation[name], outputs.std(0), rtol=1e-4)


def test_a_small_deviation_beside_a_large_mean():
    """The difference of squares would lose it in float32."""

    def function(key, x):
        return x + jax.random.normal(key, x.shape)

    _, deviation = fastdrop_jax.mc_predict(function, jnp.full(100, 1e5), 400, key=KEY)
    assert np.mean(deviation) == pytest.approx(1, abs=0.02)


def test_one_pass_has_no_deviation():
    mean, deviation = fastdrop_jax.mc_predict(lambda key, x: x, X, 1, key=KEY)
    assert (mean == X).all()
    assert (deviation == 0).all()


class Model(nnx.Module):
    def __init__(self, rngs):
        self.noise = GaussianNoise(5.0, rngs=rngs)
        self.first = nnx.Linear(6, 32, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)
        self.dropout = Dropout(0.5, rngs=rngs)
        self.flaxs = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(32, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(self.noise(x))))
        return self.last(self.flaxs(self.dropout(x)))


def test_dropout_layers_alone_draw_and_the_model_stays_as_it_is():
    model = Model(nnx.Rngs(0))
    model.norm.mean[...] += 0.3
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    mean, deviation = fastdrop_jax.nnx.mc_predict(model, X, 2000, key=KEY)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before, after))
    assert not model.dropout.deterministic
    assert not model.noise.deterministic
    assert not model.norm.use_running_average
    # Of a sum of independent elements; noise or the batch's averages would make it another.
    model.eval()
    hidden = nnx.relu(model.norm(model.first(X)))
    kernel = model.last.kernel[...]
    variance = (hidden**2 @ kernel**2) * (1 / (0.5 * 0.8) - 1)
    np.testing.assert_allclose(mean, model(X), atol=5 * float(jnp.sqrt(variance).max() / 2000**0.5))
    np.testing.assert_allclose(deviation, jnp.sqrt(variance), rtol=0.1)


def test_the_key_fixes_the_masks():
    model = Model(nnx.Rngs(0))
    first, again, other = (
        fastdrop_jax.nnx.mc_predict(model, X, 3, key=key) for key in (KEY, KEY, jax.random.key(6))
    )
    assert (first[0] == again[0]).all()
    assert (first[0] != other[0]).any()
    compiled = nnx.jit(lambda model, key: fastdrop_jax.nnx.mc_predict(model, X, 3, key=key))
    assert jnp.allclose(compiled(model, KEY)[0], first[0], atol=1e-5)


@pytest.mark.parametrize(
    ("n", "error", "words"), [(0, ValueError, "`n` .*got 0"), (1.5, TypeError, "`n` .*got 1.5")]
)
def test_bad_counts_are_named(n, error, words):
    with pytest.raises(error, match=words):
        fastdrop_jax.mc_predict(lambda key, x: x, X, n, key=KEY)


def test_what_cannot_be_predicted_is_named():
    with pytest.raises(TypeError, match="must be arrays of floats, got int32"):
        fastdrop_jax.mc_predict(lambda key, x: x.astype(int), X, 2, key=KEY)
    with pytest.raises(TypeError, match=r"`module` must be .*got 3"):
        fastdrop_jax.nnx.mc_predict(3, X, key=KEY)
    with pytest.raises(ValueError, match="must have a dropout layer, got Linear"):
        fastdrop_jax.nnx.mc_predict(nnx.Linear(6, 2, rngs=nnx.Rngs(0)), X, key=KEY)


def test_stacked_layers_draw_with_a_key_each():
    @nnx.split_rngs(splits=4)
    @nnx.vmap
    def make(rngs):
        return Dropout(0.5, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = make(nnx.Rngs(0))

        def __call__(self, x):
            return nnx.vmap(lambda layer: layer(x))(self.layers)

    mean, _ = fastdrop_jax.nnx.mc_predict(Stack(), jnp.ones((3, 5)), 200, key=KEY)
    assert (abs(mean - 1) < 0.4).all()
    assert len(np.unique(np.asarray(mean).round(3), axis=0)) == 4


def test_the_gradient_of_a_deviation_of_zero_is_zero():
    def total(x):
        return fastdrop_jax.mc_predict(lambda key, x: x, x, 3, key=KEY)[1].sum()

    assert not jax.grad(total)(X).any()


def test_a_key_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"`key` must be a key .* got 3"):
        fastdrop_jax.mc_predict(lambda key, x: x, X, 3, key=3)
