"""Schedules set the right rate at each step, in the right layers."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastdrop_keras
from fastdrop_keras import Dropout, RateSchedule, cosine_ramp, linear_ramp

SHAPE = (8, 33)
ONES = np.ones(SHAPE, np.float32)


class CountDropped(keras.layers.Layer):
    """Returns its inputs, and counts the dropped units of each training step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, inputs, training=False):
        if training:
            tf.py_function(lambda x: self.seen.append(int((x.numpy() == 0).sum())), [inputs], [])
        return inputs


def watched(rate=0.5, optimizer="sgd", **compile_arguments):
    """A model with one dropout layer, and the list of its numbers of dropped units."""
    watch = CountDropped()
    model = keras.Sequential(
        [keras.Input(SHAPE[1:]), Dropout(rate, seed=7), watch, keras.layers.Dense(1)]
    )
    model.compile(optimizer, "mse", **compile_arguments)
    return model, watch.seen


def fit(model, *callbacks, epochs=3, batch_size=8, **kwargs):
    kwargs = {"epochs": epochs, "batch_size": batch_size, "verbose": 0, **kwargs}
    return model.fit(ONES, ONES[:, :1], callbacks=list(callbacks), **kwargs).history


# Rates of steps.


def test_each_epoch_drops_with_its_rate(expected):
    rates = [0, 0.3, 1]
    model, dropped = watched()
    history = fit(model, RateSchedule(rates.__getitem__))
    assert dropped == [
        int((~expected.mask(SHAPE, rate, 7, step)).sum()) for step, rate in enumerate(rates)
    ]
    assert history["dropout_rate"] == rates
    assert model.layers[0].rate == 1


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("convert", [tf.constant, np.array, np.float32])
def test_a_schedule_may_return_tensors_and_arrays_without_dimensions(unit, convert):
    rates = [0.5, 0.25, 0.125]
    model, _ = watched()
    history = fit(model, RateSchedule(lambda number: convert(rates[number]), unit=unit))
    assert history["dropout_rate"] == rates
    assert {type(rate) for rate in (*history["dropout_rate"], model.layers[0].rate)} == {float}


def test_a_schedule_of_keras_for_learning_rates(expected):
    decay = keras.optimizers.schedules.PolynomialDecay(0.75, 2, 0.25)
    assert tf.is_tensor(decay(1))
    model, dropped = watched()
    assert fit(model, RateSchedule(decay))["dropout_rate"] == [0.75, 0.5, 0.25]
    masks = [expected.mask(SHAPE, rate, 7, step) for step, rate in enumerate([0.75, 0.5, 0.25])]
    assert dropped == [int((~mask).sum()) for mask in masks]


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_each_step_drops_with_its_rate(expected, run_eagerly):
    model, dropped = watched(run_eagerly=run_eagerly)
    history = fit(model, RateSchedule(lambda step: step / 8, unit="step"), epochs=2, batch_size=2)
    assert dropped == [int((~expected.mask((2, 33), step / 8, 7, step)).sum()) for step in range(8)]
    assert history["dropout_rate"] == [3 / 8, 7 / 8]


def test_nothing_is_retraced():
    model, _ = watched()
    traces = []

    class Traced(keras.layers.Layer):
        def call(self, x):
            traces.append(1)
            return x

    model = keras.Sequential([model, Traced()])
    model.compile("sgd", "mse")
    fit(model, epochs=1)
    before = len(traces)
    fit(model, RateSchedule(lambda step: step / 8, unit="step"), epochs=2)
    assert len(traces) == before


def test_steps_per_execution_sets_the_rate_once_for_several_steps():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5

    model, _ = watched(steps_per_execution=4)
    fit(model, RateSchedule(schedule, unit="step"), epochs=2, batch_size=1)
    assert asked == [0, 4, 8, 12]


def test_a_resumed_training_counts_epochs_from_initial_epoch():
    model, _ = watched()
    history = fit(model, RateSchedule(lambda epoch: epoch / 8), initial_epoch=4, epochs=6)
    assert history["dropout_rate"] == [0.5, 0.625]


# From Keras itself, whenever it writes a variable to a file with NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_resumed_training_counts_the_optimizers_steps(tmp_path):
    model = keras.Sequential([keras.Input(SHAPE[1:]), Dropout(0.9), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    schedule = RateSchedule(linear_ramp(0, 0.5, 20), unit="step")
    fit(model, schedule, epochs=2, batch_size=2)
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    # Keras saves the rate in use with the model.
    assert resumed.layers[0].rate == pytest.approx(7 / 40)
    history = fit(resumed, schedule, epochs=1, batch_size=2)
    assert history["dropout_rate"] == [pytest.approx(11 / 40)]


def test_validation_and_other_callbacks_see_the_rate():
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["dropout_rate"])

    model, _ = watched()
    history = fit(
        model, RateSchedule(lambda epoch: epoch / 4), Watch(), validation_data=(ONES, ONES[:, :1])
    )
    assert seen == [0, 0.25, 0.5]
    assert "val_loss" in history


# Layers.


class Block(keras.layers.Layer):
    """Has layers in an attribute, a list, a tuple and a dict."""

    def __init__(self):
        super().__init__()
        self.one = Dropout(0.1)
        self.listed = [Dropout(0.1), [Dropout(0.1)]]
        self.pair = (Dropout(0.1), Dropout(0.1))
        self.named = {"a": Dropout(0.1), "b": {"c": Dropout(0.1)}}

    def all(self):
        one, listed, named = self.one, self.listed, self.named
        return [one, listed[0], listed[1][0], *self.pair, named["a"], named["b"]["c"]]

    def call(self, x, training=False):
        for layer in self.all():
            x = layer(x, training=training)
        return x


def test_layers_at_any_depth():
    block, wrapped = Block(), Dropout(0.1)
    innermost, spatial = Dropout(0.1), fastdrop_keras.SpatialDropout1D(0.1)
    deep = keras.Sequential([keras.Sequential([keras.layers.Dense(4), innermost]), block])
    x = keras.Input(SHAPE[1:])
    y = keras.layers.Reshape((2, 2))(deep(x))
    y = spatial(keras.layers.TimeDistributed(wrapped)(y))
    other = keras.layers.Dropout(0.1)
    model = keras.Model(x, keras.layers.Dense(1)(other(keras.layers.Flatten()(y))))
    model.compile("sgd", "mse")
    fit(model, RateSchedule(lambda epoch: 0.75), epochs=1)
    assert {layer.rate for layer in [*block.all(), wrapped, innermost, spatial]} == {0.75}
    assert other.rate == 0.1


def chain():
    first, second = Dropout(0.1, name="first"), Dropout(0.1, name="second")
    third = Dropout(0.1, name="third")
    inner = keras.Sequential([second, keras.layers.Dense(3)])
    model = keras.Sequential([keras.Input(SHAPE[1:]), first, inner, third, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model, (first, second, third)


@pytest.mark.parametrize(
    ("choose", "rates"),
    [
        (lambda first, second, third: None, (0.5, 0.5, 0.5)),
        (lambda first, second, third: "second", (0.1, 0.5, 0.1)),
        (lambda first, second, third: first, (0.5, 0.1, 0.1)),
        (lambda first, second, third: ["first", third], (0.5, 0.1, 0.5)),
        (lambda first, second, third: {"second"}, (0.1, 0.5, 0.1)),
    ],
)
def test_chosen_layers(choose, rates):
    model, layers = chain()
    history = fit(model, RateSchedule(lambda epoch: 0.5, layers=choose(*layers)), epochs=1)
    assert tuple(layer.rate for layer in layers) == rates
    assert history["dropout_rate"] == [0.5]


def test_two_schedules_for_different_layers():
    model, layers = chain()
    history = fit(
        model,
        RateSchedule(lambda epoch: 0.2, layers="first", log_as="early"),
        RateSchedule(lambda epoch: 0.4, layers=["second", "third"], log_as="late"),
        epochs=2,
    )
    assert [layer.rate for layer in layers] == [0.2, 0.4, 0.4]
    assert (history["early"], history["late"]) == ([0.2, 0.2], [0.4, 0.4])


# Ramps.


@pytest.mark.parametrize(("start", "end"), [(0.1, 0.5), (0.5, 0.1), (0, 1), (1, 0), (0.3, 0.3)])
def test_ramps_against_numpy(start, end):
    steps = 7
    fractions = np.arange(steps + 1) / steps
    linear, cosine = linear_ramp(start, end, steps), cosine_ramp(start, end, steps)
    np.testing.assert_allclose(
        [linear(i) for i in range(steps + 1)], np.linspace(start, end, steps + 1), rtol=1e-14
    )
    np.testing.assert_allclose(
        [cosine(i) for i in range(steps + 1)],
        end + (start - end) * (1 + np.cos(math.pi * fractions)) / 2,
        rtol=1e-14,
        atol=1e-15,
    )


@pytest.mark.parametrize("ramp", [linear_ramp, cosine_ramp])
def test_ramps_reach_their_ends_exactly(ramp):
    schedule = ramp(0.1, 0.3, 3)
    assert [schedule(-1), schedule(0)] == [0.1, 0.1]
    assert [schedule(i) for i in (3, 4, 10**9)] == [0.3, 0.3, 0.3]
    assert ramp(0, np.float32(0.5), np.int64(1))(1) == 0.5


@pytest.mark.parametrize("ramp", [linear_ramp, cosine_ramp])
@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((1.5, 0, 3), ValueError, "argument `start`.*start=1.5"),
        ((0, -0.1, 3), ValueError, "argument `end`.*end=-0.1"),
        ((0, float("nan"), 3), ValueError, "argument `end`.*end=nan"),
        (("0", 1, 3), TypeError, "argument `start`.*start='0'.*str"),
        ((0, True, 3), TypeError, "argument `end`.*end=True.*bool"),
        ((0, 1, 0), ValueError, "argument `steps`.*steps=0"),
        ((0, 1, -3), ValueError, "argument `steps`.*steps=-3"),
        ((0, 1, 2.0), TypeError, "argument `steps`.*steps=2.0.*float"),
        ((0, 1, True), TypeError, "argument `steps`.*steps=True.*bool"),
    ],
)
def test_bad_ramp(ramp, arguments, error, said):
    with pytest.raises(error, match=said):
        ramp(*arguments)


# Errors.


@pytest.mark.parametrize("schedule", [0.5, None, [0.1, 0.2]], ids=repr)
def test_bad_schedule(schedule):
    with pytest.raises(TypeError, match=f"argument `schedule`.*{re.escape(repr(schedule))}"):
        RateSchedule(schedule)


def test_a_name_in_the_logs_is_a_string():
    with pytest.raises(TypeError, match=r"argument `log_as`.*log_as=\['x'\]"):
        RateSchedule(lambda epoch: 0.5, log_as=["x"])


@pytest.mark.parametrize("unit", ["epochs", "batch", None, 1], ids=repr)
def test_bad_unit(unit):
    with pytest.raises(ValueError, match=f"argument `unit`.*unit={unit!r}"):
        RateSchedule(lambda epoch: 0.5, unit=unit)


@pytest.mark.parametrize(
    ("rate", "error"),
    [(1.5, ValueError), (float("nan"), ValueError), ("0.5", TypeError), (None, TypeError)],
)
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_a_schedule_that_does_not_return_a_rate(rate, error, unit):
    model, _ = watched(0.25)
    schedule = RateSchedule(lambda number: rate if number == 1 else 0.5, unit=unit)
    with pytest.raises(error, match=r"`schedule` must return.*" + re.escape(f"(1)={rate!r}")):
        fit(model, schedule)
    assert model.layers[0].rate == 0.5


def test_a_model_without_our_layers():
    model = keras.Sequential([keras.Input((33,)), keras.layers.Dropout(0.5)], name="theirs")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"`RateSchedule`.*'theirs' has none.*convert"):
        fit(model, RateSchedule(lambda epoch: 0.5))


@pytest.mark.parametrize("layers", ["fourth", ["first", "fourth"], [], 3, Dropout(0.5)], ids=repr)
def test_layers_that_are_not_in_the_model(layers):
    model, _ = chain()
    with pytest.raises(ValueError, match=r"argument `layers`.*\['first', 'second', 'third'\]"):
        fit(model, RateSchedule(lambda epoch: 0.5, layers=layers))


def test_steps_without_an_optimizer():
    model, _ = watched()
    model.optimizer = None
    with pytest.raises(ValueError, match=r"no optimizer.*unit='epoch'"):
        fit(model, RateSchedule(lambda step: 0.5, unit="step"))


def test_a_name_means_every_layer_with_it():
    same, other = [Dropout(0.1, name="same") for _ in range(2)], Dropout(0.1, name="other")
    inner = [keras.Sequential([keras.Input(SHAPE[1:]), layer]) for layer in same]
    model = keras.Sequential([keras.Input(SHAPE[1:]), *inner, other, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    fit(model, RateSchedule(lambda epoch: 0.5, layers="same"))
    assert [layer.rate for layer in (*same, other)] == [0.5, 0.5, 0.1]
