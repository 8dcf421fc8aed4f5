"""Conversion from Keras's dropout layers to ours and back changes only these layers."""

import collections
import functools
import gc
import itertools
import re
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fastdrop_keras
from fastdrop_keras import convert, to_keras, xla_bridge

# From Keras itself, whenever it writes a variable to a file with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KERAS = [layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D]
OURS = [getattr(fastdrop_keras, theirs.__name__) for theirs in KERAS]

X = np.random.default_rng(0).normal(size=(4, 5, 8)).astype(np.float32)


def dropouts(model, classes=(*KERAS, *OURS)):
    """Every layer of one of `classes`, at any depth."""
    return [layer for layer in model._flatten_layers() if type(layer) in classes]


def state(layer):
    return layer.seed_generator.state.numpy().tolist()


def outputs(model, x=X, **kwargs):
    return [np.asarray(y) for y in keras.tree.flatten(model(x, **kwargs))]


def assert_same_outputs(first, second, x=X):
    for a, b in zip(outputs(first, x), outputs(second, x), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same_variables(first, second):
    """Assert equal values and flags, except for the seeds of dropout at rate 0."""
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a is not b
        assert a.trainable == b.trainable
        assert a.dtype == b.dtype


# Models.


class Cell(layers.Layer):
    """A recurrent cell with a dropout layer."""

    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.state_size = units
        self.dense = layers.Dense(units)
        self.dropout = layers.Dropout(0.2)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, states, training=False):
        y = self.dropout(self.dense(x), training=training) + states[0]
        return y, [y]

    def get_config(self):
        return {**super().get_config(), "units": self.state_size}


Pair = collections.namedtuple("Pair", ["first", "second"])


class Block(layers.Layer):
    """Has dropout layers in every kind of attribute that Keras searches."""

    def __init__(self, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.dense = layers.Dense(8)
        self.one = layers.Dropout(rate)
        self.listed = [layers.Dropout(rate), [layers.Dropout(rate)]]
        self.pair = (layers.Dropout(rate), {"deep": layers.SpatialDropout1D(rate)})
        self.named_pair = Pair(layers.Dropout(rate), "no layer")
        self.named = {"a": layers.Dropout(rate)}
        self.ordered = collections.OrderedDict(z=layers.Dropout(rate), a=layers.Dropout(rate))
        self.a_set = {layers.Dropout(rate)}
        self.by_layer = {self.one: 0.5}
        self.inner = keras.Sequential([layers.Dense(8), layers.Dropout(rate)])

    def drops(self):
        listed, (third, fourth) = self.listed, self.pair
        yield from (self.one, listed[0], listed[1][0], third, fourth["deep"])
        yield from (self.named_pair.first, self.named["a"], *self.ordered.values(), *self.a_set)

    def call(self, x, training=False):
        x = self.dense(x)
        for layer in self.drops():
            x = layer(x, training=training)
        return self.inner(x, training=training)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


BLOCK_DROPOUTS = 11


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(), {"second": Block()}]
        self.functional = encoder()
        self.recurrent = layers.RNN(Cell())
        self.top = layers.Dense(1)

    def call(self, x, training=False):
        x = self.blocks[0](x, training=training)
        x = self.blocks[1]["second"](x, training=training)
        x = self.functional(x, training=training)
        return self.top(self.recurrent(x, training=training))


class Small(keras.Model):
    def __init__(self):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
        self.pair = (layers.Dropout(0.1), layers.Dropout(0.1))
        self.listed = [layers.Dropout(0.1)]

    def call(self, x, training=False):
        x = self.attention(x, x, training=training)
        for layer in (*self.pair, *self.listed):
            x = layer(x, training=training)
        return x


def sequential():
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            layers.Dense(6, activation="relu"),
            layers.SpatialDropout1D(0.2),
            layers.Flatten(),
            layers.Dropout(0.5, noise_shape=(None, 1)),
            layers.Dense(1),
        ]
    )


def encoder():
    """A transformer's encoder."""
    x = keras.Input(X.shape[1:])
    attended = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    h = layers.LayerNormalization()(x + layers.Dropout(0.1)(attended))
    dense = [layers.Dense(16, activation="relu"), layers.Dense(8), layers.Dropout(0.1)]
    y = keras.Sequential(dense, name="feed_forward")(h)
    return keras.Model(x, layers.LayerNormalization()(h + y))


def graph(shared_by_models=True):
    """A model with two inputs, two outputs, shared layers, nested models and operations."""
    a, b = keras.Input((5, 8), name="a"), keras.Input((5, 8), name="b")
    shared = layers.Dropout(0.3, name="shared")
    deepest = [keras.Input((5, 8)), layers.Dense(8), layers.Dropout(0.1)]
    deepest = keras.Sequential(deepest, name="deepest")
    z = keras.Input((5, 8))
    in_middle = shared if shared_by_models else layers.Dropout(0.3)
    middle = keras.Model(z, in_middle(deepest(z)) * 2, name="middle")
    h = shared(middle(shared(a))) + middle(b)
    h = keras.ops.concatenate([h[:, :, :3], b], axis=-1)
    always = layers.Dropout(0.0, name="always")(h, training=True)
    return keras.Model(
        {"a": a, "b": b},
        {"mean": keras.ops.mean(always, axis=1), "out": layers.Dense(1, name="out")(h)},
        name="graph",
    )


def wrapped():
    x = keras.Input(X.shape[1:])
    h = layers.TimeDistributed(layers.Dropout(0.2))(x)
    h = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(h)
    return keras.Model(x, layers.RNN(layers.StackedRNNCells([layers.GRUCell(4), Cell()]))(h))


def block():
    x = keras.Input(X.shape[1:])
    return keras.Model(x, Block()(x))


COPIED = {
    sequential: (2, X),
    encoder: (3, X),
    graph: (3, {"a": X, "b": X[::-1]}),
    wrapped: (2, X),
    block: (BLOCK_DROPOUTS, X),
}
each_copied = pytest.mark.parametrize("make", COPIED)


def custom_objects():
    return keras.saving.custom_object_scope({"Cell": Cell, "Block": Block})


# Converted layers.


@each_copied
def test_a_model_is_copied_and_the_copy_converted(make):
    count, x = COPIED[make]
    with custom_objects():
        model = make()
    before = outputs(model, x)
    converted, report = convert(model, verbose=False, return_report=True)
    assert len(dropouts(converted, OURS)) == len(report.changed) == count
    assert not dropouts(converted, KERAS)
    assert not report.in_place
    assert_same_outputs(converted, model, x)
    assert_same_variables(converted, model)
    names = [layer.name for layer in model._flatten_layers()]
    assert [layer.name for layer in converted._flatten_layers()] == names

    # The original does not change, even if the new model trains.
    assert len(dropouts(model, KERAS)) == count
    converted.compile("sgd", "mse")
    y = keras.tree.map_structure(np.ones_like, converted(x))
    before_training = [state(layer)[1] for layer in dropouts(converted)]
    converted.train_on_batch(x, y)
    assert all(
        state(layer)[1] > steps
        for layer, steps in zip(dropouts(converted), before_training, strict=True)
    )
    for a, b in zip(before, outputs(model, x), strict=True):
        np.testing.assert_array_equal(a, b)


@each_copied
def test_to_keras_inverts_convert(make):
    count, x = COPIED[make]
    with custom_objects():
        model = make()
    converted = convert(model, verbose=False)
    # Not where it drops in inference too; and Keras's layer has no seed there.
    used = [layer for layer in dropouts(converted) if layer.rate > 0]
    for layer in used:
        layer.rate = 0.4
    outputs(converted, x, training=True)
    back, report = to_keras(converted, verbose=False, return_report=True)
    assert len(dropouts(back, KERAS)) == len(report.changed) == count
    assert not dropouts(back, OURS)
    assert len(dropouts(converted, OURS)) == count
    # The copy also has our layers where a layer creates its own dropout layer.
    again, nothing = convert(converted, verbose=False, return_report=True)
    assert not nothing.changed
    assert len(dropouts(again, OURS)) == count
    assert_same_outputs(again, model, x)
    assert_same_outputs(back, model, x)
    assert_same_variables(back, model)
    theirs_used = [layer for layer in dropouts(back) if layer.rate > 0]
    for ours, theirs in zip(used, theirs_used, strict=True):
        assert theirs.rate == 0.4
        assert state(theirs) == state(ours)


def graph_for_files():
    """A graph without layers that nested models share, whose weights Keras itself loads wrongly."""
    return graph(shared_by_models=False)


@pytest.mark.parametrize("make", [sequential, graph_for_files])
@pytest.mark.parametrize("in_place", [False, True])
def test_files_and_checkpoints_of_a_converted_model(make, in_place, tmp_path):
    count, x = (COPIED | {graph_for_files: (4, COPIED[graph][1])})[make]
    model = convert(make(), verbose=False, in_place=in_place)
    outputs(model, x, training=True)
    states = [state(layer) for layer in dropouts(model)]
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    checkpoint = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")

    loaded = keras.models.load_model(tmp_path / "model.keras")
    with_weights = convert(make(), verbose=False, in_place=in_place)
    with_weights.load_weights(tmp_path / "model.weights.h5")
    restored = convert(make(), verbose=False, in_place=in_place)
    tf.train.Checkpoint(model=restored).restore(checkpoint).assert_existing_objects_matched()
    for other in (loaded, with_weights, restored):
        assert len(dropouts(other, OURS)) == count
        assert [state(layer) for layer in dropouts(other)] == states
        assert_same_outputs(other, model, x)


def test_subclassed_models_are_changed_in_place():
    model = Subclassed()
    before = outputs(model)
    inner, weights = model.functional, model.weights
    converted, report = convert(model, verbose=False, return_report=True)
    assert converted is model
    assert report.in_place
    assert len(dropouts(model, OURS)) == len(report.changed) == 2 * BLOCK_DROPOUTS + 3 + 1
    assert not dropouts(model, KERAS)
    # All other objects are the same.
    assert model.functional is inner
    assert all(a is b for a, b in zip(weights, model.weights, strict=True))
    for a, b in zip(before, outputs(model), strict=True):
        np.testing.assert_array_equal(a, b)

    assert to_keras(model, verbose=False) is model
    assert not dropouts(model, OURS)
    for a, b in zip(before, outputs(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoints_and_weights_of_a_subclassed_model(tmp_path):
    def made():
        model = Small()
        model(X)
        return convert(model, verbose=False)

    model, restored, loaded = made(), made(), made()
    model(X, training=True)
    checkpoint = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=restored).restore(checkpoint).assert_existing_objects_matched()
    model.save_weights(tmp_path / "model.weights.h5")
    loaded.load_weights(tmp_path / "model.weights.h5")
    for other in (restored, loaded):
        assert_same_outputs(other, model)
    # TensorFlow's checkpoints do not find layers in lists.
    first, *others = ([state(layer) for layer in dropouts(m)] for m in (model, loaded, restored))
    assert first == others[0]
    assert first[:-1] == others[1][:-1]


def test_in_place_for_a_model_that_could_be_copied():
    model = graph()
    x = COPIED[graph][1]
    before, weights = outputs(model, x), model.weights
    converted = convert(model, verbose=False, in_place=True)
    assert converted is model
    assert not dropouts(model, KERAS)
    assert {type(layer) for layer in model.layers if "shared" in layer.name} == {OURS[0]}
    assert all(a is b for a, b in zip(weights, model.weights, strict=True))
    for a, b in zip(before, outputs(model, x), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_converted_layer_is_found_as_kerass_class(in_place, tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5), layers.Dense(1)])
    model = convert(model, verbose=False, in_place=in_place)
    model.save(tmp_path / "model.keras")
    for one in (
        model,
        keras.models.clone_model(model),
        keras.Sequential.from_config(model.get_config()),
        keras.models.load_model(tmp_path / "model.keras"),
    ):
        drop = tf.function(lambda x, one=one: one.layers[0](x, training=True))
        ones = tf.ones((2, 64))
        assert not np.array_equal(drop(ones), ones)
        found = [layer for layer in one.layers if isinstance(layer, layers.Dropout)]
        assert [type(layer) for layer in found] == [OURS[0]]
        for layer in found:
            layer.rate = 0.0
        np.testing.assert_array_equal(drop(ones), ones)
        assert one.get_config()["layers"][1]["config"]["rate"] == 0


@pytest.mark.parametrize("in_place", [False, True])
def test_models_of_a_part_are_converted_with_a_model_and_can_be_made_of_it(in_place):
    model = sequential()
    before = keras.Model(model.inputs[0], model.layers[3].output)
    model = convert(model, verbose=False, in_place=in_place)
    after = keras.Model(model.inputs[0], model.layers[3].output)
    assert dropouts(after, OURS) == dropouts(model)
    assert dropouts(before, OURS) == (dropouts(model) if in_place else [])
    assert_same_outputs(before, after)


# References to a layer.


class Referring(layers.Layer):
    """Refers to one dropout layer in many ways."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # The attribute's name in `TransformerEncoder` of KerasHub.
        self._self_dropout = drop = layers.Dropout(0.5, name="drop")
        self.partial = functools.partial(drop, training=True)
        self.namespace = types.SimpleNamespace(drop=drop)
        self.closure = lambda x: drop(x, training=True)
        self.method = drop.__call__

    def call(self, x, training=False):
        x = self._self_dropout(x, training=training)
        x = self.namespace.drop(self.partial(x), training=training)
        return self.method(self.closure(x), training=training)


@pytest.mark.parametrize("in_place", [False, True])
def test_every_reference_to_a_layer_is_converted(in_place):
    model = keras.Sequential([keras.Input((64,)), Referring()])
    model, report = convert(model, verbose=False, in_place=in_place, return_report=True)
    assert [layer.path.split("/")[-1] for layer in report.changed] == ["drop"]
    assert not report.unchanged
    ones = np.ones((4, 64), np.float32)
    assert np.mean(model(ones, training=True) == 0) > 0.8
    schedule = fastdrop_keras.RateSchedule(lambda epoch: 0.0)
    schedule.set_model(model)
    schedule.on_train_begin()
    schedule.on_epoch_begin(0)
    np.testing.assert_array_equal(model(ones, training=True), ones)


LOST = layers.Dropout(0.5, name="in_a_global")


class Slots:
    __slots__ = ("drop",)


class Hiding(layers.Layer):
    """Has dropout layers that Keras does not find, and a traced function."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5, name="found")
        self.method = self.drop.call
        self.partial = functools.partial(layers.Dropout(0.5, name="in_a_partial"))
        self.namespace = types.SimpleNamespace(
            deep=[keras.Sequential([layers.Dropout(0.5, name="in_a_model")], name="model")]
        )
        self.slots = Slots()
        self.slots.drop = layers.GaussianNoise(0.5, name="in_slots")
        self.function = lambda x: LOST(x)
        in_closure = layers.Dropout(0.5, name="in_a_closure")
        self.traced = tf.function(lambda x: in_closure(self.drop(x)))

    @tf.function
    def call(self, x, training=False):
        return self.drop(x, training=training)


def test_layers_that_keras_does_not_find_are_listed():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.hiding = Hiding(name="hiding")

        def call(self, x, training=False):
            return self.hiding(x, training=training)

    model = Model()
    model(X)
    _, report = convert(model, verbose=False, return_report=True)
    assert [layer.path for layer in report.changed] == ["hiding/found"]
    assert {(layer.path, layer.note) for layer in report.unchanged} == {
        ("hiding/found", "the attribute 'method' refers to its former method 'call'"),
        ("hiding/in_a_partial", "Keras does not find it in the attribute 'partial'"),
        ("hiding/in_a_model", "Keras does not find it in the attribute 'namespace'"),
        ("hiding/in_slots", "Keras does not find it in the attribute 'slots'"),
        ("hiding/in_a_global", "Keras does not find it in the attribute 'function'"),
        ("hiding/in_a_closure", "Keras does not find it in the attribute 'traced'"),
    }
    # The other function was never called.
    assert report.notes == ("hiding: the `tf.function` 'call' keeps its trace",)


def test_a_changed_layer_stays_the_same_object():
    model = sequential()
    inside, spec = dropouts(model), [layer.output for layer in dropouts(model)]
    alive = weakref.WeakSet(o for o in gc.get_objects() if type(o) in (*KERAS, *OURS))
    convert(model, verbose=False, in_place=True)
    assert dropouts(model, OURS) == inside
    assert all(layer.output is tensor for layer, tensor in zip(inside, spec, strict=True))
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) in OURS and o not in alive]


# The arguments and the state of a layer.

ARGUMENTS = [
    (0, {"rate": 0.25, "seed": 3, "name": "kept", "noise_shape": (None, 1, 8)}),
    (0, {"rate": 0.0, "dtype": "mixed_bfloat16", "trainable": False}),
    (0, {"rate": 1.0, "activity_regularizer": "l2"}),
    (1, {"rate": 0.25, "seed": 3, "name": "kept"}),
    (2, {"rate": 0.25, "data_format": "channels_first", "dtype": "float64"}),
    (3, {"rate": 0.25, "data_format": "channels_last", "seed": 2**40}),
]


@pytest.mark.parametrize(("index", "arguments"), ARGUMENTS)
@pytest.mark.parametrize("in_place", [False, True])
def test_arguments(index, arguments, in_place):
    def model_of(layer):
        return keras.Sequential([layer])

    arguments = {"name": "layer"} | arguments
    theirs, ours, *originals = (each[index](**arguments) for each in (KERAS, OURS) * 2)
    for layer in (theirs, ours, *originals):
        layer.trainable = arguments.get("trainable", True)
    got = convert(model_of(originals[0]), verbose=False, in_place=in_place).layers[0]
    back = to_keras(model_of(originals[1]), verbose=False, in_place=in_place).layers[0]
    assert type(got) is OURS[index]
    assert type(back) is KERAS[index]
    assert got.get_config() == ours.get_config()
    assert back.get_config() == theirs.get_config()
    for layer in (got, back):
        assert layer.dtype_policy == theirs.dtype_policy
        assert layer.trainable == theirs.trainable
        assert bool(layer.activity_regularizer) == bool(theirs.activity_regularizer)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_seeds_state_is_copied(expected, in_place):
    model = keras.Sequential([keras.Input((33,)), layers.Dropout(0.5, seed=7)])
    x = np.ones((5, 33), np.float32)
    for _ in range(3):
        model(x, training=True)
    converted = convert(model, verbose=False, in_place=in_place)
    assert state(converted.layers[0]) == [7, 3]
    np.testing.assert_array_equal(
        converted(x, training=True), expected.factors((5, 33), 0.5, 7, step=3)
    )


def test_flags_and_states_of_the_other_layers(tmp_path):
    normalization = layers.Normalization()
    normalization.adapt(X)
    noise = layers.GaussianNoise(0.1)
    dense = layers.Dense(8, name="frozen", trainable=False)
    hidden = Block(name="block")
    x = keras.Input(X.shape[1:])
    batch = layers.BatchNormalization()
    y = batch(dense(noise(normalization(x))))
    model = keras.Model(x, hidden(y))
    model(X, training=True)
    hidden.dense.trainable = False
    hidden.inner.layers[0].kernel.trainable = False
    converted = convert(model, verbose=False)
    assert_same_outputs(converted, model)
    assert_same_variables(converted, model)
    assert len(converted.trainable_variables) == len(model.trainable_variables)
    assert not converted.get_layer("frozen").trainable
    assert not converted.get_layer("block").dense.trainable
    assert state(converted.get_layer(noise.name)) == state(noise)


class Gentle(layers.Dropout):
    """Changes only defaults."""

    def __init__(self, rate=0.3, **kwargs):
        super().__init__(rate, **kwargs)


class GentleMaps(layers.SpatialDropout1D):
    def __init__(self, rate=0.2, seed=5, **kwargs):
        super().__init__(rate, seed=seed, **kwargs)
        self.supports_masking = False


class Gentler(Gentle):
    def __init__(self, **kwargs):
        kwargs = {"rate": 0.1, "noise_shape": (None, 1, None)} | kwargs
        super().__init__(**kwargs)


class OurGentle(fastdrop_keras.Dropout):
    def __init__(self, rate=0.3, **kwargs):
        super().__init__(rate, **kwargs)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_subclass_that_only_changes_defaults_is_converted(in_place, tmp_path, expected):
    inside = [Gentle(seed=7, activity_regularizer="l2"), GentleMaps(), Gentler()]
    inside[1].trainable = False
    theirs = keras.Sequential([keras.Input((33, 2)), *inside], name="theirs")
    x = np.ones((5, 33, 2), np.float32)
    theirs(x, training=True)
    # Sets attributes of the layers.
    theirs.export(tmp_path / "export", verbose=False)
    states = [state(layer) for layer in inside]
    model, report = convert(theirs, verbose=False, in_place=in_place, return_report=True)
    assert not report.unchanged
    assert [one.before for one in report.changed] == [Gentle, GentleMaps, Gentler]
    assert [type(layer) for layer in model.layers] == [OURS[0], OURS[1], OURS[0]]
    assert [layer.rate for layer in model.layers] == [0.3, 0.2, 0.1]
    assert [layer.supports_masking for layer in model.layers] == [True, False, True]
    assert [layer.trainable for layer in model.layers] == [True, False, True]
    assert [state(layer) for layer in model.layers] == states
    assert model.layers[0].activity_regularizer
    assert model.layers[2].noise_shape == (None, 1, None)
    assert_same_outputs(theirs, model, x)
    # The user's classes are not needed to load the file.
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.layers[0](x, training=True), expected.factors(x.shape, 0.3, 7, step=1)
    )
    back = to_keras(loaded, verbose=False, in_place=in_place)
    assert [type(layer) for layer in back.layers] == [KERAS[0], KERAS[1], KERAS[0]]
    assert [layer.rate for layer in back.layers] == [0.3, 0.2, 0.1]
    ours = keras.Sequential([keras.Input((3,)), OurGentle(seed=7)])
    assert not convert(ours, verbose=False, in_place=in_place, return_report=True)[1].unchanged
    (layer,) = to_keras(ours, verbose=False, in_place=in_place).layers
    assert (type(layer), layer.rate, state(layer)) == (layers.Dropout, 0.3, [7, 0])


def test_a_copy_of_a_subclass_that_is_not_converted_keeps_its_class():
    """`to_keras` leaves them, also where the rate was 0 and where the object was changed."""
    model = keras.Sequential([keras.Input(X.shape[1:]), Gentle(), Gentle(), Block()])
    model.layers[0].rate = 0.0
    model.layers[1].tag = "a user's"
    back, report = to_keras(model, verbose=False, in_place=False, return_report=True)
    assert [type(layer) for layer in back.layers[:2]] == [Gentle, Gentle]
    assert [state(layer) for layer in back.layers[:2]] == [state(one) for one in model.layers[:2]]
    assert not report.changed
    assert not report.unchanged


def test_a_vocabulary_is_kept():
    lookup = layers.StringLookup()
    lookup.adapt(np.array(["a", "b", "c", "b"]))
    x = keras.Input((2,), dtype="string")
    h = layers.Dropout(0.5)(layers.Embedding(5, 3)(lookup(x)))
    model = keras.Model(x, h)
    words = tf.constant([["a", "b"], ["c", "unknown"]])
    assert_same_outputs(convert(model, verbose=False), model, words)


def test_the_states_of_recurrent_layers():
    lstm = layers.Bidirectional(layers.LSTM(3, stateful=True, return_sequences=True))
    model = keras.Sequential([keras.Input(batch_shape=X.shape), lstm, layers.Dropout(0.5)])
    model(X)
    converted = convert(model, verbose=False)
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    assert not np.array_equal(fresh(X), converted(X))
    model(X)
    assert_same_outputs(converted, model)


GLOBAL_SCALE = 3.0


def test_a_lambda_with_globals_and_a_closure():
    scale = 2.0
    x = keras.Input(X.shape[1:])
    h = layers.Lambda(lambda x: x * scale * GLOBAL_SCALE, name="scaled")(x)
    model = keras.Model(x, layers.Dropout(0.5)(h))
    assert_same_outputs(convert(model, verbose=False), model)


def test_dtype_policies_of_models():
    keras.config.set_dtype_policy("float64")
    model, nested = sequential(), graph()
    keras.config.set_dtype_policy("float32")
    converted = convert(model, verbose=False)
    assert converted.dtype_policy == model.dtype_policy
    assert outputs(converted)[0].dtype == np.float64
    assert_same_outputs(converted, model)
    assert_same_outputs(convert(nested, verbose=False), nested, COPIED[graph][1])


def test_an_unbuilt_sequential():
    model = keras.Sequential([layers.Dense(3), layers.Dropout(0.5)])
    converted = convert(model, verbose=False)
    assert not converted.built
    assert dropouts(converted, OURS)
    assert converted(X).shape == (4, 5, 3)


class WithItsOwnStep(keras.Model):
    steps = 0

    def train_step(self, data):
        type(self).steps += 1
        return super().train_step(data)


def test_a_functional_model_of_a_class_with_its_own_training_step():
    x = keras.Input(X.shape[1:])
    model = WithItsOwnStep(x, layers.Dropout(0.5)(layers.Dense(1)(x)))
    steps = WithItsOwnStep.steps
    converted = convert(model, verbose=False)
    assert converted is not model
    assert type(converted) is WithItsOwnStep
    converted.compile("sgd", "mse", run_eagerly=True)
    converted.fit(X, X[..., :1], verbose=0)
    assert WithItsOwnStep.steps == steps + 1


def test_attributes_that_a_copy_lacks_are_listed():
    inner = keras.Sequential([layers.Dense(8), layers.Dropout(0.5, name="drop")], name="inner")
    x = keras.Input(X.shape[1:])
    model = WithItsOwnStep(x, layers.Dense(1, name="dense")(inner(x)), name="outer")
    inner.layers[1].tag, model.inner, model.alpha = "a user's", inner, 0.5
    for one, y in ((inner, X), (model, X[..., :1])):
        one.compile("sgd", "mse", metrics=["mae"])
        one.fit(X, y, validation_data=(X, y), verbose=0)
        one.predict(X, verbose=0)
    expected = [
        "The copy of 'outer' lacks attributes: 'alpha', 'inner'",
        "The copy of 'drop' lacks attributes: 'tag'",
    ]
    converted, report = convert(model, verbose=False, return_report=True)
    assert [note for note in report.notes if "lacks" in note] == expected
    assert "lacks" not in str(convert(converted, verbose=False, return_report=True)[1])
    # In place nothing is lost.
    assert not convert(model, verbose=False, in_place=True, return_report=True)[1].notes
    assert (model.alpha, model.inner) == (0.5, inner)


def test_a_functional_model_with_its_own_constructor_is_changed_in_place():
    class Special(keras.Model):
        def __init__(self, units):
            x = keras.Input(X.shape[1:])
            super().__init__(x, layers.Dropout(0.5)(layers.Dense(units)(x)))

    model = Special(3)
    before = outputs(model)
    assert convert(model, verbose=False) is model
    assert dropouts(model, OURS)
    np.testing.assert_array_equal(before, outputs(model))


# Compilation.


def compiled(make=sequential, **kwargs):
    model = make()
    loss = keras.losses.MeanSquaredError()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, loss, metrics=["mae"], **kwargs)
    return model


def train(model, epochs=1):
    y = np.zeros_like(model(X))
    return model.fit(X, y, batch_size=2, epochs=epochs, shuffle=False, verbose=0).history


@pytest.mark.parametrize("make", [sequential, Small])
def test_training_continues_as_without_conversion(make):
    """The rates are 0, so the masks are the same."""

    def without_dropout():
        keras.utils.set_random_seed(5)
        model = compiled(make)
        model(X)
        for layer in dropouts(model):
            layer.rate = 0.0
        return model

    uninterrupted = without_dropout()
    train(uninterrupted, 4)
    model = without_dropout()
    train(model, 2)
    model = convert(model, verbose=False)
    history = train(model)
    model = to_keras(model, verbose=False)
    train(model)
    assert set(history) == {"loss", "mae"}
    assert int(model.optimizer.iterations.numpy()) == 8
    pairs = [
        (uninterrupted.weights, model.weights),
        (uninterrupted.optimizer.variables, model.optimizer.variables),
    ]
    for first, second in itertools.chain(*(zip(*pair, strict=True) for pair in pairs)):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


def test_the_copy_has_its_own_optimizer_and_metrics():
    class Metric(keras.metrics.MeanAbsoluteError):
        pass

    def loss(y, y_pred):
        return keras.ops.mean((y - y_pred) ** 2)

    model = sequential()
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    metric = Metric(name="mine")
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9), loss, metrics=[metric])
    train(model)
    converted = convert(model, verbose=False)
    slots = [np.array(v) for v in model.optimizer.variables]
    for a, b in zip(slots, converted.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "mine" in train(converted)
    for a, b in zip(slots, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert converted.loss is loss
    assert not any(m is metric for m in converted.metrics)
    # A nested model needs no compilation.
    outer = convert(keras.Sequential([model]), verbose=False)
    assert_same_outputs(outer, model)
    assert model.compiled


def test_arguments_of_compile():
    model = compiled(steps_per_execution=2, run_eagerly=False, weighted_metrics=["mse"])
    converted = convert(model, verbose=False)
    assert converted.steps_per_execution == 2
    assert set(train(converted)) == {"loss", "mae", "mse"}
    model = convert(compiled(run_eagerly=True), verbose=False)
    assert model.run_eagerly


@pytest.mark.parametrize("auto_scale_loss", [True, False])
def test_mixed_float16_keeps_the_scale_of_the_loss(auto_scale_loss):
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(auto_scale_loss=auto_scale_loss)
    train(model)
    converted = convert(model, verbose=False)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == auto_scale_loss
    assert type(converted.optimizer) is type(model.optimizer)
    for a, b in zip(model.optimizer.variables, converted.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    train(converted)


def test_a_model_compiled_without_an_optimizer():
    model = sequential()
    model.compile(optimizer=None, loss="mse")
    converted = convert(model, verbose=False)
    assert converted.compiled
    assert converted.optimizer is None
    y = np.zeros((len(X), 1))
    assert converted.evaluate(X, y, verbose=0) == model.evaluate(X, y, verbose=0)


def test_an_uncompiled_model_stays_uncompiled():
    assert not convert(sequential(), verbose=False).compiled


@pytest.mark.parametrize("in_place", [False, True])
def test_xla_is_off_where_it_cannot_compile_our_layers_and_then_on_again(in_place, monkeypatch):
    monkeypatch.setattr(xla_bridge, "WHY_NOT", "the reason")
    model = compiled(jit_compile=True)
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        converted = convert(model, verbose=False, in_place=in_place)
    assert not converted.jit_compile
    train(converted)
    assert to_keras(converted, verbose=False, in_place=in_place).jit_compile


@pytest.mark.skipif(bool(xla_bridge.WHY_NOT), reason=xla_bridge.WHY_NOT)
@pytest.mark.parametrize("in_place", [False, True])
def test_xla_stays_on(in_place):
    converted = convert(compiled(jit_compile=True), verbose=False, in_place=in_place)
    assert converted.jit_compile
    train(converted)
    assert to_keras(converted, verbose=False, in_place=in_place).jit_compile


def test_compiled_functions_are_traced_again(expected):
    class Watched(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout = layers.Dropout(0.5, seed=7)
            self.dense = layers.Dense(1)

        def call(self, x, training=False):
            return self.dense(self.dropout(x, training=training))

    model = Watched()
    model.compile("sgd", "mse")
    x = np.ones((5, 33), np.float32)
    model.fit(x, x[:, :1], verbose=0)
    model.predict(x, verbose=0)
    convert(model, verbose=False)
    kernel, bias = (np.array(v) for v in model.dense.weights)
    dropped = expected.factors((5, 33), 0.5, 7, step=1)
    model.fit(x, x[:, :1], verbose=0)
    # One step of gradient descent on the mean squared error, with the reference's mask.
    error = dropped @ kernel + bias - 1
    np.testing.assert_allclose(
        model.dense.kernel, kernel - 0.01 * dropped.T @ (2 * error / 5), rtol=1e-4, atol=1e-5
    )


def test_a_model_with_its_own_compile_is_not_compiled():
    class Own(keras.Model):
        def compile(self, extra, **kwargs):
            super().compile(**kwargs)
            self.extra = extra

    x = keras.Input(X.shape[1:])
    model = Own(x, layers.Dropout(0.5)(layers.Dense(1)(x)))
    model.compile(3, optimizer="sgd", loss="mse")
    converted, report = convert(model, verbose=False, return_report=True)
    assert not converted.compiled
    assert "Own has a `compile` of its own" in str(report)
    assert convert(model, verbose=False, in_place=True).extra == 3
    assert model.compiled


def test_an_optimizer_that_cannot_be_copied():
    class Own(keras.optimizers.SGD):
        def __init__(self, needed):
            super().__init__(0.1)

    model = sequential()
    model.compile(Own(1), "mse")
    converted, report = convert(model, verbose=False, return_report=True)
    assert not converted.compiled
    assert "The new model is not compiled: " in str(report)


def test_under_a_strategy(two_replicas):
    with two_replicas.scope():
        model = compiled()
    converted = convert(model, verbose=False)
    assert converted.distribute_strategy is two_replicas
    assert np.isfinite(train(converted)["loss"]).all()


# Models that share layers.


def two_models(kind):
    """A model and another one with its layers: around it, on its tensors, or of its layers."""
    x = keras.Input((8,), name="x")
    drop = layers.Dropout(0.5)(layers.Dense(8)(x))
    inner = keras.Model(x, layers.Dense(1)(drop), name="inner")
    if kind == "around":
        other = keras.Sequential([keras.Input((8,)), inner, layers.Dense(1)], name="other")
    elif kind == "tensors":
        other = keras.Model(x, layers.Dense(1)(inner.output), name="other")
    else:
        other = keras.Sequential([*inner.layers, layers.Dense(1)], name="other")
    return inner, other


def trained(model, x=X[:, 0]):
    model.compile("sgd", "mse")
    model.fit(x, np.ones_like(model(x)), verbose=0)


each_pair = pytest.mark.parametrize("kind", ["around", "tensors", "layers"])


@each_pair
@pytest.mark.parametrize("function", [convert, to_keras])
def test_models_that_share_layers_are_converted_in_place_together(kind, function):
    x, (model, other) = X[:, 0], two_models(kind)
    if function is to_keras:
        convert(model, verbose=False, in_place=True)
    trained(model), trained(other)
    _, report = function(model, verbose=False, in_place=True, return_report=True)
    assert not report.notes
    assert dropouts(other) == dropouts(model)
    (layer,) = dropouts(other, OURS if function is convert else KERAS)
    before = state(layer)[1]
    # A trace of the former layer would drop by its rate, and draw from its state.
    layer.rate = 0.0
    expected = np.mean((1 - other(x)) ** 2)
    loss = other.fit(x, np.ones((4, 1)), verbose=0).history["loss"]
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)
    assert state(layer)[1] == before + (function is convert)


@each_pair
def test_a_copy_lists_the_models_that_keep_the_layers(kind):
    model, other = two_models(kind)
    converted, report = convert(model, verbose=False, return_report=True)
    kept = "The new model has copies of layers that these models keep: "
    assert report.notes == (f"{kept}'other'",)
    assert dropouts(other, KERAS)
    before = [np.array(v) for v in other.weights]
    trained(converted)
    for a, b in zip(before, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    # The models in a model are copied with it.
    _, report = convert(other, verbose=False, return_report=True)
    assert report.notes == (f"{kept}'inner'",)


def test_only_living_models_share_layers():
    model = keras.Sequential([keras.Input((3,))])
    for units in range(1, 4):
        # Each makes another functional model in the sequential one.
        model.add(layers.Dense(units))
    keras.Model(model.inputs, model.outputs)
    unfinished = keras.Model.__new__(keras.Model)
    _, report = convert(model, verbose=False, return_report=True)
    assert report.notes == ()
    del unfinished


# The report.


class Theirs(layers.Dropout):
    def call(self, x, training=False):
        return super().call(x, training=training) * 2


class OwnCell(layers.LSTMCell):
    """A subclass of a recurrent cell that drops."""


def test_unconverted_layers_are_listed_with_the_reason():
    x = keras.Input(X.shape[1:])
    h = x
    for layer in (
        Theirs(0.1, name="subclass"),
        layers.GaussianDropout(1, name="gaussian"),
        layers.Dropout(0.1, seed=-1, name="bad_seed"),
        layers.RNN(OwnCell(8, dropout=0.1, name="cell"), return_sequences=True, name="rnn"),
        layers.GRU(8, return_sequences=True, name="no_dropout"),
        layers.SpatialDropout1D(0.1, name="converted"),
    ):
        h = layer(h)
    h = layers.Attention(dropout=0.1, name="attention")([h, x])
    h = layers.AdditiveAttention(dropout=0.1, name="additive")([h, x])
    model = keras.Model(x, h, name="all")
    converted, report = convert(model, verbose=False, return_report=True)
    assert [layer.path for layer in report.changed] == ["converted"]
    reasons = {layer.path: layer.note for layer in report.unchanged}
    assert reasons.pop("bad_seed").startswith("Invalid value received for argument `seed`.")
    assert reasons.pop("gaussian").startswith("Invalid value received for argument `rate`.")
    assert reasons == {
        "subclass": "a subclass with 'call' of its own",
        "rnn/cell": "drops without a dropout layer",
        "attention": "drops without a dropout layer",
        "additive": "drops without a dropout layer",
    }
    once = keras.Sequential([keras.Input((3,)), layers.GaussianDropout(1)])
    assert len(convert(once, verbose=False, return_report=True)[1].unchanged) == 1
    assert_same_outputs(converted, model)


class Attribute(Gentle):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._self_factor = 3


class Method(Gentle):
    def compute_mask(self, inputs, mask=None):
        return None


class Mixed(Gentle, Slots):
    pass


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Attribute, "_self_factor"), (Method, "compute_mask"), (Mixed, "__slots__"), (Theirs, "call")],
)
def test_a_subclass_with_more_than_a_constructor_is_listed(kind, name):
    layer = kind(rate=0.5)
    model = keras.Sequential([keras.Input((3,)), layer])
    model, report = convert(model, verbose=False, in_place=True, return_report=True)
    assert type(model.layers[0]) is kind
    assert [one.note for one in report.unchanged] == [f"a subclass with {name!r} of its own"]


def drop_path(x):
    return x * tf.floor(tf.random.uniform((tf.shape(x)[0], 1, 1)) + 0.5)


class Path(layers.Layer):
    def call(self, x, training=False):
        return self.dropped(x) if training else x

    def dropped(self, x):
        return drop_path(x)


class InAGraph(layers.Layer):
    @tf.function
    def call(self, x, training=False):
        return tf.cond(tf.cast(training, tf.bool), lambda: tf.nn.dropout(x, 0.5), lambda: x)


class Inherited(InAGraph):
    pass


class OnItsObject(layers.Layer):
    def __init__(self):
        super().__init__()
        self.call = lambda x: keras.random.dropout(x, 0.5)


class InAClosure(layers.Layer):
    def __init__(self):
        super().__init__()

        def helper(x):
            return keras.random.dropout(x, self.rate)

        self.rate = 0.5
        self.helper = helper

    def call(self, x):
        return self.helper(x)


class Static(layers.Layer):
    helper = staticmethod(drop_path)

    def call(self, x):
        return self.helper(x)


class OfItsRate(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dropout = 0.5

    def call(self, x):
        from keras import random

        return random.dropout(x, self.dropout)


class OfAGenerator(layers.Layer):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def call(self, x):
        return x * tf.cast(self.generator.normal(), x.dtype)


class OfAGeneratorInAClosure(layers.Layer):
    def __init__(self, generator):
        super().__init__()
        self.scale = lambda: generator.normal()

    def call(self, x):
        return x * tf.cast(self.scale(), x.dtype)


class NotRandom(layers.Layer):
    def __init__(self):
        super().__init__()
        self.dropout, self.random, self.stateless_dropout = layers.Dropout(0.5), None, 0.5
        self.unused = np.random.default_rng(0)

    def call(self, x, training=False):
        rates = {"dropout": self.stateless_dropout}
        dropout = rates["dropout"]
        x = self.dropout(tf.nn.relu(x), training=training) if dropout else x
        return x if self.random is None else self.random(x)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Path, "random"),
        (InAGraph, "dropout"),
        (Inherited, "dropout"),
        (OnItsObject, "random"),
        (InAClosure, "random"),
        (Static, "random"),
        (OfItsRate, "random"),
        (lambda: layers.Lambda(lambda x: tf.nn.dropout(x, 0.5)), "dropout"),
        (lambda: OfAGenerator(np.random.default_rng(0)), "Generator"),
        (lambda: OfAGenerator(np.random.RandomState(0)), "RandomState"),
        (lambda: OfAGeneratorInAClosure(np.random.default_rng(0)), "Generator"),
        (NotRandom, None),
        (lambda: layers.Lambda(tf.nn.relu), None),
    ],
)
def test_layers_that_may_drop_in_their_own_code_are_listed(make, name):
    layer = make()
    model = keras.Sequential([keras.Input(X.shape[1:]), layer])
    _, report = convert(model, verbose=False, in_place=True, return_report=True)
    found = [(one.path, one.note) for one in report.unchanged]
    note = f"may drop in its own code, which uses {name!r}"
    assert found == ([(layer.name, note)] if name else [])


def test_a_model_that_may_drop_in_its_own_code_is_listed():
    class Model(keras.Model):
        def call(self, x, training=False):
            return tf.nn.dropout(x, 0.5) if training else x

    model = Model(name="own")
    model(X)
    _, report = convert(model, verbose=False, return_report=True)
    assert str(report.unchanged[0]) == (
        "own: tests Model (may drop in its own code, which uses 'dropout')"
    ).replace("tests", __name__.partition(".")[0])


class MakesInBuild(layers.Layer):
    def build(self, shape):
        self.drop = layers.Dropout(0.5)

    def call(self, x, training=False):
        return self.drop(x, training=training)


class NotCalled(keras.Model):
    def __init__(self):
        super().__init__(name="outer")
        self.inner = MakesInBuild(name="inner")
        self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")

    def call(self, x, training=False):
        return self.inner(self.attention(x, x, training=training), training=training)


UNBUILT = "not built: call it once, then convert it again"


@pytest.mark.parametrize(
    ("make", "paths"),
    [
        (NotCalled, ["outer"]),
        (lambda: keras.Sequential([layers.Dense(8), MakesInBuild(name="inner")]), ["inner"]),
        (lambda: keras.Sequential([layers.Dense(8), layers.Dropout(0.5)]), []),
        (encoder, []),
    ],
)
def test_layers_that_are_not_built_are_listed(make, paths):
    model, report = convert(make(), verbose=False, return_report=True)
    assert [(one.path, one.note) for one in report.unchanged] == [(path, UNBUILT) for path in paths]
    model(X)
    again, report = convert(model, verbose=False, return_report=True)
    assert not report.unchanged
    assert bool(report.changed) == bool(paths)
    assert not dropouts(again, KERAS)
    assert not to_keras(again, verbose=False, return_report=True)[1].unchanged


def test_attention_that_is_not_built_is_listed():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = layers.Dropout(0.5, name="used")
            self.query = layers.MultiHeadAttention(2, 4, dropout=0.1, name="query")
            self.group = layers.GroupQueryAttention(4, 2, 1, dropout=0.1, name="group")

        def call(self, x, training=False):
            return self.used(x, training=training)

    model = Model()
    model.built = True
    _, report = convert(model, verbose=False, return_report=True)
    assert [(one.path, one.note) for one in report.unchanged] == [
        ("query", UNBUILT),
        ("group", UNBUILT),
    ]


def test_the_maker_of_a_layer_is_named_with_its_path():
    class Inner(layers.Layer):
        def __init__(self):
            super().__init__(name="inner")
            self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1, name="attention")
            self.stack = keras.Sequential([layers.Dropout(0.5, name="in_stack")], name="stack")
            self.each = layers.TimeDistributed(layers.Dropout(0.5, name="in_each"), name="each")

        def call(self, x, training=False):
            x = self.each(self.attention(x, x, training=training), training=training)
            return self.stack(x, training=training)

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="model")
            self.mine = layers.Dropout(0.5, name="mine")
            self.inner = Inner()

        def call(self, x, training=False):
            return self.mine(self.inner(x, training=training), training=training)

    model = Model()
    model(X)
    _, report = convert(model, verbose=False, return_report=True)
    notes = {one.path.rpartition("/")[2]: one.note for one in report.changed}
    (made_in_build,) = notes.keys() - {"in_stack", "in_each", "mine"}
    again = "again when a file is loaded"
    assert notes == {
        made_in_build: f"made by MultiHeadAttention 'inner/attention', {again}",
        "in_stack": f"made by Inner 'inner', {again}",
        "in_each": f"made by Inner 'inner', {again}",
        "mine": f"made by Model 'model', {again}",
    }


@pytest.mark.parametrize("verbose", [True, False])
def test_the_printed_report(verbose, capsys):
    model = encoder()
    model.name = "encoder"
    attention = model.layers[1]
    attention.name = "attention"
    for name, layer in zip("abc", dropouts(model), strict=True):
        layer.name = name
    _, report = convert(model, verbose=verbose, return_report=True)
    lines = [
        "encoder (a new model): 3 layers changed",
        "  attention/a: keras Dropout -> fastdrop_keras Dropout (made by MultiHeadAttention "
        "'attention', again when a file is loaded)",
        "  b: keras Dropout -> fastdrop_keras Dropout",
        "  feed_forward/c: keras Dropout -> fastdrop_keras Dropout",
        "The new model has copies of layers that these models keep: 'feed_forward'",
    ]
    printed = "\n".join(lines)
    assert str(report) == printed
    assert capsys.readouterr().out == (f"{report}\n" if verbose else "")


def test_a_model_without_dropout_is_copied():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3)], name="dense")
    converted, report = convert(model, verbose=False, return_report=True)
    assert str(report) == "dense (a new model): 0 layers changed"
    assert converted is not model
    assert_same_variables(converted, model)


def test_user_subclasses_of_ours_stay_ours():
    class Mine(fastdrop_keras.Dropout):
        def get_config(self):
            return super().get_config()

    model = keras.Sequential([keras.Input((3,)), Mine(0.5)])
    back, report = to_keras(model, verbose=False, return_report=True)
    assert type(back.layers[0]) is Mine
    assert report.unchanged[0].note == "a subclass with 'get_config' of its own"


# Errors.


@pytest.mark.parametrize("function", [convert, to_keras])
@pytest.mark.parametrize("model", [None, "model", layers.Dropout(0.5), [1]], ids=repr)
def test_bad_model(function, model):
    with pytest.raises(TypeError, match=f"`{function.__name__}` expects a Keras model.*model="):
        function(model)


def test_a_loaded_layer_that_creates_its_own_dropout_is_converted_again(tmp_path):
    def dropouts(model):
        return [type(layer) for layer in model._flatten_layers() if "Drop" in type(layer).__name__]

    x = keras.Input((5, 8))
    attention = keras.Model(x, layers.MultiHeadAttention(2, 4, dropout=0.5)(x, x))
    ours = convert(attention, verbose=False)
    ours.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (dropouts(ours), dropouts(loaded)) == ([fastdrop_keras.Dropout], [layers.Dropout])
    again = convert(loaded, verbose=False)
    assert dropouts(again) == [fastdrop_keras.Dropout]
    numbers = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    np.testing.assert_array_equal(again(numbers), ours(numbers))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_cannot_be_converted_completely_is_not_changed(in_place, monkeypatch):
    model = compiled()
    inside = dropouts(model)
    before = [dict(vars(layer)) for layer in inside]

    def refuse(self, rate, noise_shape=None, seed=None, **kwargs):
        raise MemoryError

    # The class of the second layer fails; the first layer could be changed.
    monkeypatch.setattr(type(convert(model, verbose=False).layers[-2]), "__init__", refuse)
    with pytest.raises(MemoryError):
        convert(model, verbose=False, in_place=in_place)
    assert [type(layer) for layer in inside] == [layers.SpatialDropout1D, layers.Dropout]
    assert [vars(layer) for layer in inside] == before
    assert model.compiled


@pytest.mark.parametrize("function", [convert, to_keras])
def test_a_subclassed_model_cannot_be_copied(function):
    with pytest.raises(
        ValueError, match=r"only be changed in place.*in_place=False.*Small.*Pass in_place=True"
    ):
        function(Small(), in_place=False)


class NoConfig(layers.Layer):
    def __init__(self, function):
        super().__init__(name="no_config")
        self.function = function

    def call(self, x):
        return self.function(x)


class Sharing(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "inner": self.inner}


def without_configuration():
    x = keras.Input(X.shape[1:])
    return keras.Model(x, layers.Dropout(0.5)(NoConfig(lambda x: x + 1)(x)))


def with_a_layer_that_copies_would_share():
    return keras.Sequential([keras.Input(X.shape[1:]), Sharing(layers.Dropout(0.5))])


def with_a_sparse_input():
    x = keras.Input(X.shape[1:], sparse=True)
    return keras.Model(x, layers.Dropout(0.5)(layers.Dense(2)(x)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (without_configuration, r"'no_config' \(of type NoConfig\)"),
        (with_a_layer_that_copies_would_share, r"the copy of <Dropout.* is <Dropout"),
        (with_a_sparse_input, r"<InputLayer.* which is sparse"),
    ],
)
def test_a_model_that_cannot_be_copied_is_changed_in_place_and_says_so(make, reason):
    model = make()
    with pytest.raises(ValueError, match=f"cannot be copied: .*{reason}"):
        convert(model, verbose=False, in_place=False)
    assert dropouts(model, KERAS)
    converted, report = convert(model, verbose=False, return_report=True)
    assert converted is model
    assert report.in_place
    assert not dropouts(model, KERAS)
    (note,) = report.notes
    assert re.match(f"Changed in place, since it cannot be copied: .*{reason}", note)
    # All of the reason, and none of the example that Keras adds to it.
    assert "\n" not in note
    assert to_keras(model, verbose=False) is model
    assert not dropouts(model, OURS)


# Keras's applications.

IMAGES = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "count"), [("EfficientNetB0", 10), ("ConvNeXtTiny", 0), ("VGG16", 0)]
)
@pytest.mark.slow
def test_a_keras_application(name, count, tmp_path):
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=IMAGES.shape[1:], classes=3)
    converted, report = convert(model, verbose=False, return_report=True)
    assert len(report.changed) == count
    assert not report.unchanged
    assert_same_outputs(converted, model, IMAGES)
    assert_same_variables(converted, model)
    converted.compile("sgd", "categorical_crossentropy")
    assert np.isfinite(converted.train_on_batch(IMAGES, np.eye(3)[:2]))
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(dropouts(loaded, OURS)) == count
    assert_same_outputs(loaded, converted, IMAGES)
    assert len(dropouts(to_keras(converted, verbose=False), KERAS)) == count


def test_a_layer_changed_in_place_keeps_its_flags_and_other_attributes():
    keras.config.set_dtype_policy("mixed_float16")
    with keras.RematScope(mode="full"):
        model = keras.Sequential([layers.Dropout(0.5, autocast=False)])
    x = tf.ones((2, 3))
    model(x)
    model.layers[0].tag = "a user's"
    for change in (convert, to_keras):
        change(model, in_place=True, verbose=False)
        layer = model.layers[0]
        assert layer(x).dtype == tf.float32
        assert (layer.tag, layer.autocast, layer._remat_mode.mode) == ("a user's", False, "full")
