"""The layers for Flax and Equinox replace theirs: the same arguments, keys and states."""

import re

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import nnx

import fastdrop_jax.equinox
import fastdrop_jax.nnx
from fastdrop_jax import dropout

X = jnp.asarray(np.random.default_rng(3).standard_normal((20, 30)), "float32")


def key_of_call(number, seed=0):
    """The key of a call of a layer that was made with `nnx.Rngs(seed)`."""
    rngs = nnx.Rngs(seed)["dropout"].fork()
    for _ in range(number):
        rngs()
    return rngs()


def test_the_keys_are_those_of_flaxs_layer():
    layer = fastdrop_jax.nnx.Dropout(0.3, rngs=nnx.Rngs(0))
    assert isinstance(layer, nnx.Dropout)
    for call in range(3):
        assert (layer(X) == dropout(key_of_call(call), X, 0.3)).all()


def test_the_states_are_those_of_flaxs_layer():
    ours, theirs = (module.Dropout(0.3, rngs=nnx.Rngs(5)) for module in (fastdrop_jax.nnx, nnx))
    for _ in range(3):
        ours(X), theirs(X)
    states = [nnx.to_pure_dict(nnx.state(layer)) for layer in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert states[0]["rngs"]["count"] == states[1]["rngs"]["count"] == 3
    fresh = fastdrop_jax.nnx.Dropout(0.3, rngs=nnx.Rngs(0))
    nnx.update(fresh, nnx.state(theirs))
    assert (fresh(X) == ours(X)).all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("deterministic", [False, np.bool_(False), True, None])
@pytest.mark.parametrize("at_call", [False, True, None])
def test_when_it_drops(rate, deterministic, at_call):
    makers = (fastdrop_jax.nnx.Dropout, nnx.Dropout)
    ours, theirs = (
        maker(rate, deterministic=deterministic, broadcast_dims=(0,), rngs=nnx.Rngs(1))
        for maker in makers
    )
    if deterministic is at_call is None:
        for layer in (ours, theirs):
            with pytest.raises(ValueError, match="No `deterministic`"):
                layer(X)
        return
    y, z = (layer(X, deterministic=at_call) for layer in (ours, theirs))
    dropped = ((y == 0).mean(), (z == 0).mean())
    assert (dropped[0] in (0, 1)) == (dropped[1] in (0, 1))
    if dropped[1] in (0, 1):
        assert (y == z).all()
    else:
        assert ((y == 0).all(0) | (y != 0).all(0)).all()
        assert (y == dropout(key_of_call(0, seed=1), X, rate, broadcast_dims=(0,))).all()
    # Neither has used more keys than the other.
    assert (ours.rngs.count[...] == theirs.rngs.count[...]).all()


def test_keys_that_are_given():
    layer = fastdrop_jax.nnx.Dropout(0.3)
    key = jax.random.key(4)
    assert (layer(X, rngs=key) == dropout(key, X, 0.3)).all()
    rngs = nnx.Rngs(4)
    again = nnx.Rngs(4)
    assert (layer(X, rngs=rngs) == dropout(again.dropout(), X, 0.3)).all()
    assert (layer(X, rngs=rngs.dropout) == dropout(again.dropout(), X, 0.3)).all()
    with pytest.raises(ValueError, match="no `rngs`"):
        layer(X)
    with pytest.raises(TypeError, match="`rngs` must be"):
        layer(X, rngs=3)
    with pytest.raises(TypeError, match="`rngs` must be a key"):
        layer(X, rngs=jnp.ones(2))
    with pytest.raises(ValueError, match="`rngs` must be one key"):
        layer(X, rngs=jax.random.split(key))


@pytest.mark.parametrize("rate", [1.5, -0.1, np.nan, "half", None, True, np.False_, [[1], [1, 2]]])
def test_a_bad_rate_is_refused_at_the_call(rate):
    with pytest.raises((TypeError, ValueError), match=f"`rate` .*got {re.escape(repr(rate))}"):
        fastdrop_jax.nnx.Dropout(rate, rngs=nnx.Rngs(0))(X)


LAYERS = ["AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "StochasticDepth"]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (jnp.ones((2, 3), int), "have one of the dtypes .*, got int32"),
        (None, "be an array, got None"),
    ],
)
def test_bad_inputs_for_flax_are_named_and_take_no_key(name, inputs, words):
    layer = getattr(fastdrop_jax.nnx, name)(0.5, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=f"`inputs` must {words}"):
        layer(inputs)
    assert layer.rngs.count[...] == 0


@pytest.mark.parametrize("name", [*LAYERS, "Standout"])
def test_a_missing_stream_is_named(name):
    maker = getattr(fastdrop_jax.nnx, name)
    arguments = () if name == "Standout" else (0.5,)
    words = r"`rngs` must have a stream 'noise', .*nnx\.Rngs\(params=0, noise=1\).*\['params'\]"
    with pytest.raises(KeyError, match=words):
        maker(*arguments, rng_collection="noise", rngs=nnx.Rngs(params=0))
    with pytest.raises(KeyError, match=words):
        maker(*arguments, rng_collection="noise")(X, rngs=nnx.Rngs(params=0))


class Network(nnx.Module):
    def __init__(self, layer, rngs):
        self.first = nnx.Linear(30, 16, rngs=rngs)
        self.dropout = layer(0.3, rngs=rngs)
        self.last = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.first(x))))


@nnx.jit
def train(model, optimizer):
    def loss(model):
        return ((model(X) - X[:, :1]) ** 2).mean()

    value, slopes = nnx.value_and_grad(loss)(model)
    optimizer.update(model, slopes)
    return value


def test_a_network_learns():
    model = Network(fastdrop_jax.nnx.Dropout, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(train(model, optimizer)) for _ in range(200)]
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert len({*losses}) == 200  # the masks differ
    model.eval()
    assert (model(X) == model(X)).all()
    assert not nnx.view(model, deterministic=False).dropout.deterministic


def test_a_vmapped_layer_has_a_mask_for_each_copy():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,))
    def drop(rngs):
        return fastdrop_jax.nnx.Dropout(0.5)(jnp.ones(100), rngs=rngs)

    y = drop(nnx.Rngs(0))
    assert len({row.tobytes() for row in np.asarray(y)}) == 3


NOISE = ["gaussian_dropout", "gaussian_noise", "alpha_dropout"]


def layer_of(module, function):
    return getattr(module, "".join(word.title() for word in function.split("_")))


def seed_of(key):
    words = np.asarray(jax.random.key_data(key))
    return sum(int(word) << 32 * place for place, word in enumerate(words))


@pytest.mark.parametrize("function", NOISE)
def test_layers_of_noise_for_flax_give_the_reference_for_each_key(function):
    layer = layer_of(fastdrop_jax.nnx, function)(0.3, rngs=nnx.Rngs(0))
    for call, run in enumerate((lambda layer, x: layer(x), nnx.jit(lambda layer, x: layer(x)))):
        right = reference.drawn(function, np.asarray(X), 0.3, seed_of(key_of_call(call)), 0, None)
        reference.assert_same_bits(np.asarray(run(layer, X)), right)
    shared = layer_of(fastdrop_jax.nnx, function)(0.3, broadcast_dims=(0,), rngs=nnx.Rngs(0))
    right = reference.drawn(function, np.asarray(X), 0.3, seed_of(key_of_call(0)), 0, (1, 30))
    reference.assert_same_bits(np.asarray(shared(X)), right)
    assert layer(X, deterministic=True) is X
    assert nnx.view(layer, deterministic=True)(X) is X
    layer.eval()
    assert layer(X) is X


@pytest.mark.parametrize("function", NOISE)
def test_layers_of_noise_for_flax_need_keys_and_a_mode(function):
    layer = layer_of(fastdrop_jax.nnx, function)(0.3, deterministic=None)
    key = jax.random.key(4)
    right = reference.drawn(function, np.asarray(X), 0.3, seed_of(key), 0, None)
    reference.assert_same_bits(np.asarray(layer(X, deterministic=False, rngs=key)), right)
    with pytest.raises(ValueError, match="No `deterministic`"):
        layer(X)
    with pytest.raises(ValueError, match="no `rngs`"):
        layer(X, deterministic=False)
    with pytest.raises(TypeError, match=r"`rngs` must be .*got 3"):
        layer(X, deterministic=False, rngs=3)
    with pytest.raises(TypeError, match=r"`rngs` must be .*got 3"):
        layer_of(fastdrop_jax.nnx, function)(0.3, rngs=3)
    with pytest.raises(ValueError, match="got -1"):
        layer_of(fastdrop_jax.nnx, function)(-1, rngs=nnx.Rngs(0))(X)


@pytest.mark.parametrize("function", NOISE)
def test_layers_of_noise_for_equinox(function):
    layer, key = layer_of(fastdrop_jax.equinox, function)(0.3), jax.random.key(9)
    right = reference.drawn(function, np.asarray(X), 0.3, seed_of(key), 0, None)
    reference.assert_same_bits(np.asarray(layer(X, key=key)), right)
    assert jnp.allclose(equinox.filter_jit(layer)(X, key=key), right, rtol=1e-5, atol=1e-6)
    assert layer(X, inference=True) is X
    assert equinox.nn.inference_mode(layer)(X) is X
    with pytest.raises(RuntimeError, match="requires a key"):
        layer(X)


def test_equinoxs_layer():
    layer = fastdrop_jax.equinox.Dropout(0.3)
    assert isinstance(layer, equinox.nn.Dropout)
    key = jax.random.key(9)
    assert (layer(X, key=key) == dropout(key, X, 0.3)).all()
    assert (equinox.filter_jit(layer)(X, key=key) == dropout(key, X, jnp.float32(0.3))).all()
    assert layer(X, inference=True) is X
    assert equinox.nn.inference_mode(layer)(X) is X
    assert fastdrop_jax.equinox.Dropout(0.0)(X) is X
    with pytest.raises(RuntimeError, match="requires a key"):
        layer(X)
    with pytest.warns(UserWarning, match="deprecated"):
        assert layer(X, deterministic=True) is X


@pytest.mark.parametrize("name", ["AlphaDropout", "Dropout", "GaussianDropout"])
@pytest.mark.parametrize("p", [1.5, -0.1, np.nan, "half", None, True, [0.1]])
def test_a_bad_p_for_equinox_is_named(name, p):
    with pytest.raises((TypeError, ValueError), match=f"`p` must .*got {re.escape(repr(p))}"):
        getattr(fastdrop_jax.equinox, name)(p)(X, key=jax.random.key(9))
