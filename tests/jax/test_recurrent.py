"""Recurrent cells for Flax drop the same units in all time steps, as a slow reference does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_reference
from flax import nnx

import fastdrop
from fastdrop_jax.nnx import RNN, GRUCell, LSTMCell, OptimizedLSTMCell, SimpleCell

X = np.random.default_rng(0).normal(0, 1, (2, 6, 3)).astype(np.float32)
CELLS = [LSTMCell, OptimizedLSTMCell, GRUCell, SimpleCell]
each_cell = pytest.mark.parametrize("cell_class", CELLS, ids=lambda c: c.__name__)
RATES = {"dropout": 0.4, "recurrent_dropout": 0.5}


def make(cell_class, **kwargs):
    return RNN(cell_class(3, 40, rngs=nnx.Rngs(3), **{**RATES, **kwargs}))


def factors(layer, shape, call):
    """The factors of a layer's mask in a call, by the key that Flax gives to all time steps."""
    key = jax.random.fold_in(layer.rngs.key[...], call)
    key = jax.random.fold_in(jax.random.split(key, 1)[0], 0)
    low, high = (int(word) for word in jax.random.key_data(key))
    seed = low | high << 32
    return fastdrop.dropout(np.ones(shape), float(layer.rate), seed=seed)[0]


def weights_of(cell):
    """Keras's kind of the cell, and its weights: one kernel for all gates, in Keras's order."""
    arrays = nnx.to_pure_dict(nnx.state(cell, nnx.Param))
    if isinstance(cell, LSTMCell):
        gates = "ifgo"
        x, h = ([arrays[f"{a}{gate}{'_' * (a + gate == 'if')}"] for gate in gates] for a in "ih")
        parts = [one["kernel"] for one in x], [one["kernel"] for one in h], [b["bias"] for b in h]
        return "LSTM", [np.concatenate(part, axis=-1).astype(float) for part in parts]
    x, h = arrays["dense_i"], arrays["dense_h"]
    bias = h.get("bias", x.get("bias"))
    weights = [np.asarray(part, float) for part in (x["kernel"], h["kernel"], bias)]
    if not isinstance(cell, GRUCell):
        return {40: "SimpleRNN", 160: "LSTM"}[bias.size], weights
    # Flax has the reset gate before the update gate.
    parts = [np.split(part, 3, axis=-1) for part in weights]
    weights = [np.concatenate([z, r, n], axis=-1) for r, z, n in parts]
    return "GRU", [*weights[:2], np.stack([weights[2], 0 * weights[2]])]


def expected(cell, x, call=0):
    kind, weights = weights_of(cell)
    count = recurrent_reference.GATES[kind]
    x_factors = factors(cell.input_dropout, (len(x), 3), call)
    h_factors = factors(cell.state_dropout, (len(x), 40), call)
    return recurrent_reference.outputs(kind, x, weights, [x_factors] * count, [h_factors] * count)


@each_cell
@pytest.mark.parametrize("jit", [True, False])
def test_all_time_steps_have_one_mask_and_each_call_another(cell_class, jit):
    layer = make(cell_class)
    assert isinstance(layer.cell, cell_class.__mro__[2])
    call = nnx.jit(lambda layer, x: layer(x)) if jit else lambda layer, x: layer(x)
    wants = [expected(layer.cell, X, number) for number in range(2)]
    assert np.abs(wants[0] - wants[1]).max() > 0.1
    for want in wants:
        np.testing.assert_allclose(call(layer, X), want, rtol=1e-4, atol=1e-5)


@each_cell
def test_the_gradient_has_the_masks(cell_class):
    """It is zero for the dropped inputs alone, and agrees with differences."""
    layer = make(cell_class)
    graph, state = nnx.split(layer)

    @jax.jit
    def loss(x):
        return (nnx.merge(graph, state, copy=True)(x) ** 2).sum()

    slope = jax.grad(loss)(X)
    dropped = factors(layer.cell.input_dropout, (2, 3), 0) == 0
    assert dropped.any()
    assert (np.abs(slope).max(1) == 0)[dropped].all()
    assert (np.abs(slope).max(1) > 0)[~dropped].all()
    step = 1e-2 * slope / np.linalg.norm(slope)
    numerical = (loss(X + step) - loss(X - step)) / 2
    assert numerical == pytest.approx(float((slope * step).sum()), rel=0.01)


@each_cell
@pytest.mark.parametrize("rates", [{}, {"dropout": 0.0, "recurrent_dropout": 0.0}])
def test_in_inference_and_at_rate_zero_it_is_flaxs(cell_class, rates):
    layer = make(cell_class, **rates)
    if not rates:
        layer.eval()
    theirs = nnx.RNN(cell_class.__mro__[2](3, 40, rngs=nnx.Rngs(3)))
    nnx.update(theirs, nnx.state(layer, nnx.Param))
    np.testing.assert_allclose(layer(X), theirs(X), rtol=1e-5, atol=1e-6)


def test_a_dropped_nan_counts_as_zero():
    layer = make(LSTMCell)
    dropped = factors(layer.cell.input_dropout, (2, 3), 0) == 0
    x = np.where(dropped[:, None], np.nan, X)
    np.testing.assert_allclose(layer(x), expected(layer.cell, X), rtol=1e-4, atol=1e-5)


def test_flaxs_layer_and_the_cell_alone_draw_a_mask_for_each_step():
    cell = make(SimpleCell, dropout=0.5).cell
    ones = jnp.ones((1, 6, 3))
    with_our_layer = RNN(cell)
    zero = jnp.zeros((1, 40))
    assert (cell(zero, ones[:, 0])[1] != cell(zero, ones[:, 0])[1]).any()
    cell.state_dropout.rate = 1.0
    assert len({row.tobytes() for row in np.asarray(with_our_layer(ones)[0])}) == 1
    assert len({row.tobytes() for row in np.asarray(nnx.RNN(cell)(ones)[0])}) > 1


def test_both_directions_and_copies_of_a_vmap_have_masks_of_their_own():
    rngs = nnx.Rngs(0)
    forward, backward = (RNN(GRUCell(3, 4, dropout=0.5, rngs=rngs)) for _ in range(2))
    assert nnx.Bidirectional(forward, backward)(X).shape == (2, 6, 8)
    layer = make(SimpleCell)

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(nnx.StateAxes({nnx.RngState: 0, ...: None}), None))
    def apply(layer, x):
        return layer(x)

    assert len({one.tobytes() for one in np.asarray(apply(layer, X))}) == 3


@pytest.mark.parametrize(
    ("streams", "name"),
    [
        ({"recurrent_dropout": 7}, "recurrent_dropout"),
        ({"recurrent_dropout": 7, "dropout": 8}, "recurrent_dropout"),
        ({"dropout": 7}, "dropout"),
        ({"default": 9, "dropout": 7}, "dropout"),
        ({"default": 7}, "default"),
    ],
)
def test_the_keys_come_from_the_stream_for_dropout(streams, name):
    rngs = nnx.Rngs(params=3, **streams)
    cell = LSTMCell(3, 40, rngs=rngs, **RATES)
    stream = nnx.RngStream(nnx.Rngs(7)(), tag="recurrent_dropout")
    for layer in (cell.input_dropout, cell.state_dropout):
        assert layer.rngs.key[...] == stream()
        assert layer.rngs.tag == "recurrent_dropout"
    # No other stream has given a key.
    assert {one: int(stream.count[...]) for one, stream in rngs.items() if one != "params"} == {
        one: int(one == name) for one in streams
    }


@each_cell
def test_what_gives_no_keys_is_named(cell_class):
    rngs = nnx.Rngs(params=3)
    with pytest.raises(KeyError, match=r"`rngs` must have a stream 'dropout'.*\['params'\]"):
        cell_class(3, 4, rngs=rngs)
    assert rngs.params.count[...] == 0
    with pytest.raises(TypeError, match=r"`rngs` must be flax\.nnx\.Rngs, got 3"):
        cell_class(3, 4, rngs=3)


def test_a_bad_rate_is_named():
    with pytest.raises(ValueError, match=r"`rate` .*got 1.5"):
        make(LSTMCell, dropout=1.5)(X)
