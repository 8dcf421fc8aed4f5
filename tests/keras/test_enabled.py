"""Keras's classes create the layers of this package if `enable` or `enabled` says so."""

import threading

import keras
import numpy as np
import pytest

import fastdrop_keras
from fastdrop_keras import RateSchedule, disable, enable, enabled, to_keras

NAMES = ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]


def is_ours(layer):
    return type(layer) is getattr(fastdrop_keras, type(layer).__name__)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_is_an_instance_of_kerass_class(name):
    ours, theirs = (getattr(module, name) for module in (fastdrop_keras, keras.layers))
    layer = ours(0.5, seed=3, name="drop")
    assert isinstance(layer, theirs)
    assert isinstance(layer, keras.layers.Dropout)
    assert not isinstance(theirs(0.5), ours)
    # Its configuration and files create our layer, also in Keras's `clone_model`.
    assert type(ours.from_config(layer.get_config())) is ours
    assert keras.saving.get_registered_name(ours) == f"fastdrop>{name}"


@pytest.mark.parametrize("name", NAMES)
def test_kerass_class_creates_our_layer(name):
    theirs, ours = getattr(keras.layers, name), getattr(fastdrop_keras, name)
    with enabled():
        layer = theirs(0.3, seed=5, name="drop")
        with enabled(False):
            assert type(theirs(0.3)) is theirs
        again = theirs.from_config({"rate": 0.2})
        serialized = keras.saving.serialize_keras_object(layer)
    assert type(theirs(0.3)) is theirs
    assert type(layer) is type(again) is ours
    assert (layer.rate, layer.seed, layer.name, again.rate) == (0.3, 5, "drop", 0.2)
    assert type(keras.saving.deserialize_keras_object(serialized)) is ours


def test_arguments_are_checked_as_ours_are():
    with enabled(), pytest.raises(ValueError, match=r"argument `rate`.*rate=2"):
        keras.layers.Dropout(2)


def test_a_users_subclass_is_not_replaced():
    class Own(keras.layers.Dropout):
        pass

    with enabled():
        layer = Own(0.5)
    assert type(layer) is Own
    assert not isinstance(layer, fastdrop_keras.Dropout)


def test_enable_applies_to_all_threads_and_enabled_to_its_own():
    made = {}

    def make(name):
        made[name] = is_ours(keras.layers.Dropout(0.5))

    def in_a_thread(name):
        thread = threading.Thread(target=make, args=[name])
        thread.start()
        thread.join()

    with enabled():
        in_a_thread("beside enabled")
        make("enabled")
    enable()
    try:
        in_a_thread("after enable")
        with enabled(False):
            make("not enabled here")
            in_a_thread("beside not enabled")
    finally:
        disable()
    in_a_thread("after disable")
    assert made == {
        "beside enabled": False,
        "enabled": True,
        "after enable": True,
        "not enabled here": False,
        "beside not enabled": True,
        "after disable": False,
    }


def attention_model():
    inputs = keras.Input((6, 8))
    x = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)(inputs, inputs)
    return keras.Model(inputs, keras.layers.Dropout(0.5)(x))


def dropouts(model):
    return [one for one in model._flatten_layers() if isinstance(one, keras.layers.Dropout)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_loaded_file_has_our_layer_in_layers_that_create_their_own(tmp_path):
    with enabled():
        model = attention_model()
    assert len(dropouts(model)) == 2
    assert all(map(is_ours, dropouts(model)))
    model.save(tmp_path / "model.keras")
    assert sum(map(is_ours, dropouts(keras.models.load_model(tmp_path / "model.keras")))) == 1
    with enabled():
        loaded = keras.models.load_model(tmp_path / "model.keras")
    assert all(map(is_ours, dropouts(loaded)))
    x = np.ones((4, 6, 8), np.float32)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    loaded.compile("sgd", "mse")
    loaded.fit(x, x, verbose=0, callbacks=[RateSchedule(lambda epoch: 0.0)])
    np.testing.assert_array_equal(loaded(x, training=True), loaded(x, training=False))


def test_to_keras_creates_kerass_layers_inside_enabled():
    with enabled():
        model = attention_model()
        theirs = to_keras(model, verbose=False)
    assert not any(map(is_ours, dropouts(theirs)))
