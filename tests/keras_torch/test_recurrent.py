"""On PyTorch, the recurrent layers give what they give on TensorFlow."""

import keras
import numpy as np
import pytest
from recurrent_reference import GATES, expected_outputs

import fastdrop_keras

UNITS = 6
SHAPE = (3, 5, 4)


def numbers(shape=SHAPE):
    return np.random.default_rng(0).normal(0, 1, shape)


def made(kind, **kwargs):
    kwargs = {"dropout": 0.4, "seed": 3, "return_sequences": True} | kwargs
    layer = getattr(fastdrop_keras, kind)(UNITS, **kwargs)
    layer.build(SHAPE)
    layer.set_weights([numbers(one.shape) / 4 for one in layer.weights])
    return layer


def called(layer, **kwargs):
    return keras.ops.convert_to_numpy(layer(numbers(), **kwargs))


@pytest.mark.parametrize("recurrent_dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", GATES)
def test_values(expected, kind, recurrent_dropout):
    layer = made(kind, recurrent_dropout=recurrent_dropout)
    cell = type(layer.cell).from_config(layer.cell.get_config())
    rnn = keras.layers.RNN(cell, return_sequences=True)
    rnn.build(SHAPE)
    rnn.set_weights(layer.get_weights())
    for call in range(2):
        want = expected_outputs(expected, layer, kind, numbers(), 3, call)
        for one in (layer, rnn):
            np.testing.assert_allclose(called(one, training=True), want, rtol=1e-5, atol=1e-5)
    keras_layer = getattr(keras.layers, kind).from_config(layer.get_config())
    keras_layer.build(SHAPE)
    keras_layer.set_weights(layer.get_weights())
    np.testing.assert_allclose(called(layer), called(keras_layer), rtol=1e-5, atol=1e-5)
    assert fastdrop_keras.layer_state.position(cell.seed_generator).tolist() == [3, 4]


def network(layers=fastdrop_keras):
    model = keras.Sequential(
        [
            keras.Input(SHAPE[1:], batch_size=SHAPE[0]),
            layers.LSTM(6, recurrent_dropout=0.3, seed=1, return_sequences=True, stateful=True),
            keras.layers.Bidirectional(layers.GRU(3, dropout=0.3, seed=2)),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    return model


def train(model, **kwargs):
    y = np.ones((len(numbers()), 1))
    model.fit(numbers(), y, batch_size=3, epochs=2, verbose=0, shuffle=False, **kwargs)


def test_training_goes_on_from_a_file(tmp_path):
    model = network()
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        one.layers[0].reset_state()
        ramp = fastdrop_keras.linear_ramp(0.0, 0.5, 1)
        train(one, callbacks=[fastdrop_keras.RateSchedule(ramp, layers="recurrent_dropout")])
        assert one.layers[0].recurrent_dropout == 0.5
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_conversion_and_back():
    model = network(keras.layers)
    before = called(model)
    for convert, package in (
        (fastdrop_keras.convert, "fastdrop_keras"),
        (fastdrop_keras.to_keras, "keras"),
    ):
        model = convert(model, in_place=True, verbose=False)
        lstm = model.layers[0]
        assert type(lstm).__module__.partition(".")[0] == package
        assert type(lstm.cell).__module__.partition(".")[0] == package
        lstm.reset_state()
        np.testing.assert_allclose(called(model), before, rtol=1e-5, atol=1e-6)
        train(model)
        lstm.reset_state()
        before = called(model)
