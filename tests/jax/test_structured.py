"""Functions and layers that drop blocks, samples or weights give slow references' results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

import fastdrop
from fastdrop_jax import drop_block
from fastdrop_jax.nnx import DropBlock2D, DropConnectConv, DropConnectLinear, StochasticDepth

KEY = jax.random.key(5)
SHAPE = (3, 6, 5, 4)


def seed_of(key):
    words = np.asarray(jax.random.key_data(key))
    return sum(int(word) << 32 * place for place, word in enumerate(words))


def key_of_call(number):
    """The key of a call of a layer that was made with `nnx.Rngs(0)`."""
    rngs = nnx.Rngs(0)["dropout"].fork()
    return [rngs() for _ in range(number + 1)][-1]


def numbers(shape=SHAPE, dtype="float32", seed=1):
    values = np.random.default_rng(seed).standard_normal(shape)
    with jax.enable_x64(dtype == "float64"):
        return jnp.asarray(values, dtype)


def blocks_kept(key, rate, sizes, **kwargs):
    return reference.blocks_kept(SHAPE, rate, sizes, seed_of(key), **kwargs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("jit", [True, False])
def test_blocks_and_their_gradient(jit, per_channel, dtype):
    kept = blocks_kept(KEY, 0.3, (2, 3), per_channel=per_channel)
    assert 0 < kept.sum() < kept.size

    def run(x, dy):
        y, backward = jax.vjp(lambda x: drop_block(KEY, x, 0.3, (2, 3), per_channel=per_channel), x)
        return y, backward(dy)[0]

    with jax.enable_x64(dtype == "float64"):
        x, dy = numbers(dtype=dtype).at[0].set(jnp.nan), numbers(dtype=dtype, seed=2)
        y, dx = (jax.jit(run) if jit else run)(x, dy)
    reference.assert_same_bits(np.asarray(y), reference.drop_block(np.asarray(x), kept))
    reference.assert_same_bits(np.asarray(dx), reference.drop_block(np.asarray(dy), kept))


@pytest.mark.parametrize("sizes", [1, 2, 5, 6, 7, 100, (6, 1), (1, 5), (9, 2), [2, 9]], ids=str)
def test_every_size_of_blocks(sizes):
    pair = (sizes, sizes) if isinstance(sizes, int) else sizes
    x = numbers()
    right = reference.drop_block(np.asarray(x), blocks_kept(KEY, 0.4, pair))
    reference.assert_same_bits(np.asarray(drop_block(KEY, x, 0.4, sizes)), right)


def test_a_traced_rate_of_blocks_is_read_at_each_call():
    drop = jax.jit(lambda x, rate: drop_block(KEY, x, rate, 2))
    for rate in (0.0, 0.25, 1.0):
        kept = blocks_kept(KEY, rate, (2, 2))
        y = np.asarray(drop(numbers(), jnp.float32(rate)))
        reference.assert_same_bits(y, reference.drop_block(np.asarray(numbers()), kept))
    assert drop._cache_size() == 1
    with pytest.raises(jax.errors.JaxRuntimeError, match="`rate` must be from 0 to 1"):
        jax.block_until_ready(drop(numbers(), -0.5))


def test_vmapped_blocks_are_those_of_a_loop():
    keys, x = jax.random.split(KEY, 4), numbers((4, *SHAPE))
    drop = functools.partial(drop_block, rate=0.3, block_size=2)
    found = jax.vmap(drop)(keys, x)
    for i in range(4):
        assert jnp.allclose(found[i], drop(keys[i], x[i]), rtol=1e-6)


def test_one_image_and_images_without_elements():
    x = numbers()
    kept = reference.blocks_kept((1, *SHAPE[1:]), 0.3, (2, 2), seed_of(KEY))
    right = reference.drop_block(np.asarray(x[:1]), kept)
    reference.assert_same_bits(np.asarray(drop_block(KEY, x[0], 0.3, 2)), right[0])
    for shape in [(0, 6, 5, 4), (3, 0, 5, 4), (3, 6, 0, 4), (3, 6, 5, 0)]:
        assert drop_block(KEY, jnp.ones(shape), 0.3, 2).shape == shape


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((numbers(), 1.5, 2), ValueError, r"`rate` .*got 1.5"),
        ((numbers(), 0.5, 0), ValueError, r"`block_size` .*got 0"),
        ((numbers(), 0.5, (1, 2, 3)), ValueError, r"`block_size` .*got \(1, 2, 3\)"),
        ((numbers(), 0.5, 1.5), TypeError, r"`block_size` .*got 1.5"),
        ((numbers(), 0.5, True), TypeError, r"`block_size` .*got True"),
        ((numbers(), 0.5, (True, 2)), TypeError, r"`block_size` .*got \(True, 2\)"),
        ((jnp.ones((3, 4)), 0.5, 2), ValueError, r"`x` .*got shape \(3, 4\)"),
        ((jnp.ones(SHAPE, int), 0.5, 2), TypeError, "`x` .*got int32"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        drop_block(KEY, *arguments)


def test_the_layer_of_blocks():
    layer = DropBlock2D(0.3, (2, 3), per_channel=False, rngs=nnx.Rngs(0))
    for call in range(2):
        kept = blocks_kept(key_of_call(call), 0.3, (2, 3), per_channel=False)
        right = reference.drop_block(np.asarray(numbers()), kept)
        reference.assert_same_bits(np.asarray(layer(numbers())), right)
    layer.eval()
    assert (layer(numbers()) == numbers()).all()
    with pytest.raises(ValueError, match=r"`inputs` must have the shape .*, got shape \(3, 4\)"):
        layer(jnp.ones((3, 4)), deterministic=False)


@pytest.mark.parametrize("shape", [(40,), (40, 3), (40, 2, 3, 2)])
def test_stochastic_depth_drops_samples(shape):
    layer, x = StochasticDepth(0.3, rngs=nnx.Rngs(0)), numbers(shape)
    for call in range(2):
        kept = reference.keep_mask(seed_of(key_of_call(call)), 0, 0.3, 40)
        assert 0 < kept.sum() < 40
        kept = kept.reshape(40, *(1,) * (len(shape) - 1))
        right = np.where(kept, np.asarray(x) * np.float32(1 / 0.7), np.float32(0))
        reference.assert_same_bits(np.asarray(layer(x)), right)
    layer.eval()
    assert layer(x) is x


MAKERS = {
    "linear": lambda maker, *rate, **kwargs: maker(4, 8, *rate, **kwargs),
    "conv": lambda maker, *rate, **kwargs: maker(4, 8, (2, 3), *rate, padding="SAME", **kwargs),
}
LAYERS = {"linear": (DropConnectLinear, nnx.Linear), "conv": (DropConnectConv, nnx.Conv)}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("jit", [True, False])
def test_drop_connect_is_flaxs_layer_with_the_thinned_kernel(kind, jit):
    ours, theirs = (
        MAKERS[kind](LAYERS[kind][i], *([0.4], [])[i], rngs=nnx.Rngs(params=1, dropout=0))
        for i in (0, 1)
    )
    assert isinstance(ours, LAYERS[kind][1])
    theirs.kernel[...] = kernel = numbers(theirs.kernel.shape)
    ours.kernel[...] = kernel
    theirs.bias[...] = ours.bias[...] = numbers((8,))
    call = nnx.jit(lambda layer, x: layer(x)) if jit else lambda layer, x: layer(x)
    slope = nnx.grad(lambda layer: (layer(numbers()) ** 2).sum())
    calls = iter(range(4))
    for _ in range(2):
        key = seed_of(key_of_call(next(calls)))
        thinned, _ = fastdrop.dropout(np.asarray(kernel), 0.4, seed=key)
        theirs.kernel[...] = thinned
        assert jnp.allclose(call(ours, numbers()), theirs(numbers()), rtol=1e-4, atol=1e-5)
        key = seed_of(key_of_call(next(calls)))
        thinned, mask = fastdrop.dropout(np.asarray(kernel), 0.4, seed=key)
        theirs.kernel[...] = thinned
        found, right = slope(ours), slope(theirs)
        through = fastdrop.dropout_grad(np.asarray(right.kernel[...]), mask)
        assert np.allclose(found.kernel[...], through, rtol=1e-4, atol=1e-4)
        assert np.allclose(found.bias[...], right.bias[...], rtol=1e-4, atol=1e-4)
    assert (ours.kernel[...] == kernel).all()
    ours.eval()
    theirs.kernel[...] = kernel
    assert (call(ours, numbers()) == call(theirs, numbers())).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_drop_connect_in_a_function_that_is_traced_around_it(kind):
    """Where Flax refuses changes of the layer."""
    layer, x = MAKERS[kind](LAYERS[kind][0], 0.4, rngs=nnx.Rngs(0)), numbers()
    draw = jax.jit(lambda key, x: layer(x, rngs=key))
    assert jnp.allclose(draw(KEY, x), layer(x, rngs=KEY), atol=1e-5)
    batch = jax.vmap(draw, in_axes=(0, None))(jax.random.split(KEY, 3), x)
    assert len({row.tobytes() for row in np.asarray(batch)}) == 3
    with pytest.raises(ValueError, match=r"`rate` .*got 1.5"):
        MAKERS[kind](LAYERS[kind][0], 1.5, rngs=nnx.Rngs(0))(x)


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_with_weights_name_rngs_of_another_type(kind):
    for rngs in (3, None, jax.random.key(0)):
        with pytest.raises(TypeError, match=r"`rngs` must be flax\.nnx\.Rngs, got "):
            MAKERS[kind](LAYERS[kind][0], 0.5, rngs=rngs)


def test_a_wrong_traced_rate_of_blocks_is_refused():
    drop = jax.jit(lambda rate: drop_block(KEY, jnp.ones((2, 6, 6, 3)), rate, 2))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"`rate` must be .* 1\.3"):
        drop(1.3).block_until_ready()
