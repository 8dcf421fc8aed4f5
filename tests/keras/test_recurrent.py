"""The recurrent layers: one mask for all time steps, and Keras's behaviour in all else."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from pairwise import pairwise
from recurrent_reference import GATES, expected_outputs

import fastdrop_keras
from fastdrop_keras import RateSchedule, linear_ramp, mc_predict, recurrent, to_keras
from fastdrop_keras import convert as convert_to_ours

# From Keras itself, whenever it writes a variable to a file with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

UNITS = 6
SHAPE = (3, 5, 4)
KINDS = pytest.mark.parametrize("kind", GATES)
# With one mask for all gates; with a mask for each; and a GRU of the other kind.
VARIANTS = [
    *((kind, {}) for kind in GATES),
    *((kind, {"recurrent_dropout": 0.3}) for kind in GATES),
    ("LSTM", {"implementation": 1}),
    ("GRU", {"implementation": 1}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "recurrent_dropout": 0.3}),
]


def numbers(shape=SHAPE, dtype=np.float64):
    return np.random.default_rng(0).normal(0, 1, shape).astype(dtype)


def made(kind, dropout=0.4, seed=3, **kwargs):
    """A layer with weights of all sizes, the bias too."""
    kwargs = {"dtype": "float64", "return_sequences": True} | kwargs
    layer = getattr(fastdrop_keras, kind)(UNITS, dropout=dropout, seed=seed, **kwargs)
    layer.build(SHAPE)
    layer.set_weights([numbers(one.shape) / 4 for one in layer.weights])
    return layer


def like(layer, of, **kwargs):
    """A layer of another class with the same arguments and weights."""
    layer_class = getattr(of, type(layer).__name__)
    other = layer_class.from_config({**layer.get_config(), **kwargs})
    other.build(SHAPE)
    other.set_weights(layer.get_weights())
    return other


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


# Values.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_values(expected, run, kind, arguments):
    layer = made(kind, **arguments)
    call = run(lambda x: layer(x, training=True))
    for number in range(2):
        want = expected_outputs(expected, layer, kind, numbers(), 3, number)
        close(call(tf.constant(numbers())), want)


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_a_cell_in_keras_rnn_gives_what_the_layer_gives(run, kind, arguments):
    layer = made(kind, **arguments)
    cell = type(layer.cell).from_config(layer.cell.get_config())
    rnn = keras.layers.RNN(cell, return_sequences=True, dtype="float64")
    rnn.build(SHAPE)
    rnn.set_weights(layer.get_weights())
    call = run(lambda x: rnn(x, training=True))
    for _ in range(2):
        close(call(tf.constant(numbers())), layer(numbers(), training=True))


def test_stacked_cells_each_have_one_mask(expected):
    cells = [
        fastdrop_keras.GRUCell(UNITS, dropout=0.4, seed=3, dtype="float64"),
        fastdrop_keras.LSTMCell(UNITS, recurrent_dropout=0.4, seed=5, dtype="float64"),
    ]
    stacked = keras.layers.RNN(cells, return_sequences=True, dtype="float64")
    got = stacked(numbers(), training=True)
    want = numbers()
    for kind, cell, seed in zip(("GRU", "LSTM"), cells, (3, 5), strict=True):
        layer = getattr(fastdrop_keras, kind).from_config(
            {**cell.get_config(), "return_sequences": True}
        )
        layer.build(want.shape)
        layer.set_weights(cell.get_weights())
        want = expected_outputs(expected, layer, kind, want, seed)
    # Keras's stack computes in float32 between the cells, which have a dtype of their own.
    close(got, want, 1e-6)


OPTIONS = pairwise(*[[False, True]] * 7)


@KINDS
@pytest.mark.parametrize("options", OPTIONS, ids=lambda row: "".join(str(int(one)) for one in row))
def test_all_other_arguments_work_as_in_keras(kind, options):
    """At rates of 0, the loop with dropout gives what Keras's layer gives."""
    names = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll")
    *flags, masked, initial = options
    layer = made(kind, dropout=0.0, **dict(zip(names, flags, strict=True)))
    theirs = like(layer, keras.layers)
    mask = numbers(SHAPE[:2]) > -0.5 if masked else None
    # A state that was given is not kept by a stateful layer of Keras alone.
    states = [numbers((SHAPE[0], UNITS))] * (1 + (kind == "LSTM")) if initial else None
    for _ in range(2):
        got, want = (
            one(numbers(), mask=mask, initial_state=states, training=True)
            for one in (layer, theirs)
        )
        for one, other in zip(*map(keras.tree.flatten, (got, want)), strict=True):
            close(one, other)
    assert layer.compute_output_shape(SHAPE) == theirs.compute_output_shape(SHAPE)


@KINDS
def test_inference_is_keras_bit_for_bit_and_takes_no_seed(kind):
    layer = made(kind, recurrent_dropout=0.3, dtype="float32")
    theirs = like(layer, keras.layers)
    np.testing.assert_array_equal(layer(numbers()), theirs(numbers()))
    rnn = keras.layers.RNN(layer.cell, return_sequences=True)
    np.testing.assert_array_equal(rnn(numbers()), theirs(numbers()))
    assert layer.cell.seed_generator.state.numpy().tolist() == [3, 0]


@KINDS
@pytest.mark.parametrize("recurrent_dropout", [0.0, 0.3])
def test_a_dropped_nan_counts_as_zero(expected, kind, recurrent_dropout):
    layer = made(kind, dropout=0.5, recurrent_dropout=recurrent_dropout)
    masks = 1 if recurrent_dropout == 0 else GATES[kind]
    factors = expected.factors((SHAPE[0], masks * SHAPE[2]), 0.5, 3)
    dropped = ~factors.reshape(SHAPE[0], masks, SHAPE[2]).any(axis=1)
    assert dropped.any()
    x = np.where(dropped[:, None], np.nan, numbers())
    y = layer(x, training=True)
    assert np.isfinite(y).all()
    close(y, expected_outputs(expected, layer, kind, x, 3))


@KINDS
def test_rate_1_drops_all_inputs(kind):
    layer = made(kind, dropout=1.0)
    close(layer(numbers(), training=True), like(layer, keras.layers)(0 * numbers()))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@KINDS
def test_mixed_precision(kind, policy):
    layer = made(kind, recurrent_dropout=0.3, dtype=policy)
    y = layer(numbers(), training=True)
    assert y.dtype == keras.DTypePolicy(policy).compute_dtype
    wide = like(layer, fastdrop_keras, dtype="float64")(numbers(), training=True)
    close(tf.cast(y, "float64"), wide, 0.05)


@KINDS
@pytest.mark.parametrize("recurrent_dropout", [0, 0.5])
def test_a_step_of_training_compiled_by_xla(kind, recurrent_dropout):
    losses = []
    for jit_compile in (False, True):
        layer = made(kind, recurrent_dropout=recurrent_dropout, dtype="float32")
        model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
        model.compile("sgd", "mse", jit_compile=jit_compile)
        x = np.float32(numbers())
        losses += [[model.train_on_batch(x, np.zeros((*SHAPE[:2], UNITS))) for _ in range(3)]]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@KINDS
def test_an_empty_batch_leaves_the_weights_finite(kind):
    layer = made(kind)
    with tf.GradientTape() as tape:
        y = layer(tf.zeros((0, *SHAPE[1:]), tf.float64), training=True)
    assert y.shape == (0, SHAPE[1], UNITS)
    for gradient in tape.gradient(y, layer.trainable_weights):
        assert np.isfinite(gradient).all()


@KINDS
def test_xla(kind):
    layer = made(kind, recurrent_dropout=0.3, dtype="float32")
    same = like(layer, fastdrop_keras)
    compiled = tf.function(lambda x: layer(x, training=True), jit_compile=True)
    close(compiled(tf.constant(numbers())), same(numbers(), training=True), 1e-5)


# Gradients.


@pytest.mark.parametrize(("kind", "arguments"), VARIANTS)
def test_gradients(kind, arguments):
    layer = made(kind, **arguments)
    x = tf.constant(numbers())

    @tf.function
    def loss(x, *weights):
        state = layer.cell.seed_generator.state
        variables = zip(layer.trainable_variables, weights, strict=True)
        with keras.StatelessScope([(state, tf.constant([3, 0], tf.int64)), *variables]):
            return tf.reduce_sum(layer(x, training=True) ** 2)

    arguments = [x, *(tf.constant(one) for one in layer.get_weights())]
    theory, measured = tf.test.compute_gradient(loss, arguments, delta=1e-4)
    for one, other in zip(theory, measured, strict=True):
        close(one, other, 1e-6)


@pytest.mark.parametrize("checkpoint", [tf.recompute_grad, keras.remat])
@KINDS
def test_a_recomputation_has_the_masks_of_the_forward_pass(run, kind, checkpoint):
    layer = made(kind, recurrent_dropout=0.3)
    same = like(layer, fastdrop_keras)

    def gradient(function, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y, tape.gradient(y, x)

    def checkpointed(x):
        return checkpoint(lambda x: layer(x, training=True) ** 2)(x)

    def plain(x):
        return same(x, training=True) ** 2

    call, want = (run(lambda x, f=f: gradient(f, x)) for f in (checkpointed, plain))
    for _ in range(2):
        for one, other in zip(*(f(tf.constant(numbers())) for f in (call, want)), strict=True):
            close(one, other)


# Rates, seeds and files.


@KINDS
@pytest.mark.parametrize("name", ["dropout", "recurrent_dropout"])
def test_a_rate_takes_effect_without_retracing(expected, kind, name):
    layer = made(kind, dropout=0.0)
    call = tf.function(lambda x: layer(x, training=True))
    for number, rate in enumerate((0.0, 0.6, 1.0, 0.3)):
        setattr(layer, name, rate)
        assert layer.get_config()[name] == getattr(layer.cell, name) == rate
        close(call(numbers()), expected_outputs(expected, layer, kind, numbers(), 3, number))
    assert call.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("cell", ["", "Cell"])
@KINDS
def test_wrong_arguments(kind, cell):
    layer_class = getattr(fastdrop_keras, kind + cell)
    for name in ("dropout", "recurrent_dropout"):
        layer = layer_class(2)
        for value, error in ((1.5, ValueError), (-0.1, ValueError), (float("nan"), ValueError)):
            with pytest.raises(error, match=f"`{name}`.*between 0 and 1. Received: {name}="):
                layer_class(2, **{name: value})
            with pytest.raises(error, match=f"`{name}`"):
                setattr(layer, name, value)
        with pytest.raises(TypeError, match=f"`{name}`"):
            layer_class(2, **{name: "0.5"})
        assert getattr(layer, name) == 0
    with pytest.raises(ValueError, match="`seed`"):
        layer_class(2, seed=-1)
    for units, error in ((0, ValueError), ("2", TypeError), (True, TypeError), (2.0, TypeError)):
        with pytest.raises(error, match=f"`units`. Expected a positive integer. .*={units!r}"):
            layer_class(units)


def test_cudnn_is_refused():
    layer = fastdrop_keras.LSTM(2, dropout=0.5, use_cudnn=True)
    with pytest.raises(ValueError, match=r"without cuDNN.*Received: use_cudnn=True"):
        layer(numbers(), training=True)


def network(layers=fastdrop_keras):
    """A model with a recurrent layer, wrapped ones, and cells; and one without dropout."""
    x = keras.Input(SHAPE[1:])
    h = layers.LSTM(6, dropout=0.3, return_sequences=True, seed=1, name="lstm")(x)
    gru = layers.GRU(4, recurrent_dropout=0.2, return_sequences=True, seed=2)
    h = keras.layers.Bidirectional(gru, name="both")(h)
    cells = [layers.LSTMCell(8, dropout=0.1, seed=3), layers.SimpleRNNCell(3, dropout=0.1, seed=4)]
    h = keras.layers.RNN(cells, return_sequences=True, name="cells")(h)
    h = keras.layers.SimpleRNN(3, name="none")(h)
    model = keras.Model(x, keras.layers.Dense(1)(h))
    model.compile("sgd", "mse")
    return model


def train(model, steps=2):
    for _ in range(steps):
        model.train_on_batch(numbers(), np.ones((len(numbers()), 1)))


def positions(model):
    layers = [one for one in model._flatten_layers() if isinstance(one, recurrent.RecurrentCell)]
    return [one.seed_generator.state.numpy().tolist() for one in layers]


def test_a_file_keeps_the_seeds_state(tmp_path):
    model = network()
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert positions(loaded) == positions(model)
    assert all(step == 4 for _, step in positions(loaded))
    for one in (model, loaded):
        train(one)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_checkpoint_keeps_the_seeds_state(tmp_path):
    model, restored = network(), network()
    train(model)
    path = tf.train.Checkpoint(model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(restored).restore(path).expect_partial()
    # TensorFlow does not find the cells in a list, nor their weights.
    assert positions(restored)[:3] == positions(model)[:3] == [[1, 4], [2, 4], [2, 4]]


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_configuration_keeps_a_mask_for_each_gate(kind):
    layer = made(kind, recurrent_dropout=0.3)
    layer.recurrent_dropout = 0.0
    same = like(layer, fastdrop_keras)
    close(same(numbers(), training=True), layer(numbers(), training=True))
    assert like(layer, keras.layers).cell.implementation == 1


def test_keras_layers_load_weights_and_ours_load_theirs(tmp_path):
    ours, theirs = network(), network(keras.layers)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    close(ours(numbers()), theirs(numbers()), 1e-6)
    train(ours)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    close(ours(numbers()), theirs(numbers()), 1e-6)


# Other functions of this package.


@pytest.mark.parametrize("in_place", [False, True])
def test_conversion_and_back(in_place):
    model = network(keras.layers)
    model.compile("sgd", "mse", run_eagerly=True)  # tracing its graphs takes a minute
    train(model)
    before = model.predict(numbers(), verbose=0)
    ours, report = convert_to_ours(model, in_place=in_place, verbose=False, return_report=True)
    assert not report.unchanged
    paths = {one.path.partition("/")[0] for one in report.changed}
    assert paths == {"lstm", "both", "cells"}
    assert type(ours.get_layer("lstm")) is fastdrop_keras.LSTM
    assert type(ours.get_layer("none")) is keras.layers.SimpleRNN
    assert sorted(seed for seed, _ in positions(ours)) == [1, 2, 2, 3, 4]
    np.testing.assert_array_equal(ours.predict(numbers(), verbose=0), before)
    train(ours)
    after = ours.predict(numbers(), verbose=0)
    assert (after != before).any()
    again = convert_to_ours(ours, in_place=in_place, verbose=False, return_report=True)[1]
    assert not again.changed
    assert not again.unchanged
    rate, reached = ours.get_layer("both").forward_layer.recurrent_dropout, positions(ours)
    theirs, report = to_keras(ours, in_place=in_place, verbose=False, return_report=True)
    assert len(report.changed) == 8
    assert type(theirs.get_layer("lstm")) is keras.layers.LSTM
    assert theirs.get_layer("both").forward_layer.recurrent_dropout == rate == 0.2
    state = theirs.get_layer("lstm").cell.seed_generator.state.numpy().tolist()
    assert state == reached[0]
    np.testing.assert_array_equal(theirs.predict(numbers(), verbose=0), after)
    train(theirs)


def test_a_layer_with_a_seed_that_ours_refuse_is_not_changed():
    layer = keras.layers.LSTM(2, dropout=0.1, seed=-1, name="lstm")
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    report = convert_to_ours(model, in_place=True, verbose=False, return_report=True)[1]
    assert not report.changed
    assert all("`seed`" in one.note for one in report.unchanged)
    assert type(layer) is keras.layers.LSTM
    layer(numbers(), training=True)


def test_enabled_makes_layers_with_dropout():
    with fastdrop_keras.enabled():
        model = network(keras.layers)
        positional = keras.layers.SimpleRNNCell(2, *[None] * 11, 0.0, 0.5)
    assert type(model.get_layer("lstm")) is fastdrop_keras.LSTM
    assert type(model.get_layer("both").backward_layer) is fastdrop_keras.GRU
    assert type(model.get_layer("none")) is keras.layers.SimpleRNN
    assert len(positions(model)) == 5
    assert type(positional) is fastdrop_keras.SimpleRNNCell
    train(model)


@pytest.mark.parametrize("shared_masks", [False, True])
def test_mc_predict_drops(shared_masks):
    model = network()
    x = np.repeat(numbers()[:1], 2, axis=0)
    runs = [
        mc_predict(model, x, 3, seed=1, shared_masks=shared_masks, verbose=False) for _ in range(2)
    ]
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, other)
    mean, deviation = runs[0]
    assert (deviation > 0).all()
    assert np.allclose(mean[0], mean[1], 0, 1e-6) == shared_masks
    assert all(step == 0 for _, step in positions(model))


def test_a_schedule_changes_only_the_rates_that_it_names():
    model = network()
    ramp = linear_ramp(0.0, 0.5, 1)
    x, y = numbers(), np.ones((len(numbers()), 1))
    schedule = RateSchedule(ramp, layers="recurrent_dropout")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[schedule])
    lstm = model.get_layer("lstm")
    assert (lstm.dropout, lstm.recurrent_dropout) == (0.3, 0.5)
    schedule = RateSchedule(ramp, layers=lstm.cell.input_dropout_layer)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[schedule])
    assert (lstm.dropout, lstm.recurrent_dropout) == (0.5, 0.5)
    with pytest.raises(ValueError, match='names, such as "recurrent_dropout"'):
        model.fit(x, y, verbose=0, callbacks=[RateSchedule(ramp)])
