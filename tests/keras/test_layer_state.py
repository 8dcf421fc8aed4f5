"""The state of a layer: its seed, what saves and restores it, replicas, and a rate that changes."""

import copy
import pickle
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastdrop_keras
from fastdrop_keras import Dropout

# Keras's own, whenever it writes a variable to a file with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (5, 33)
ONES = np.ones(SHAPE, np.float32)


def model(layer=Dropout, seed=None):
    return keras.Sequential(
        [keras.Input((33,)), layer(0.5, seed=seed), keras.layers.Dense(1), layer(0.25, seed=seed)]
    )


def states(model):
    return [layer.seed_generator.state.numpy().tolist() for layer in model.layers[::2]]


@pytest.fixture
def used():
    """A model that has taken three steps."""
    used = model()
    for _ in range(3):
        used(ONES, training=True)
    return used


# Seeds.


def test_a_seed_fixes_the_stream(run):
    first, second = Dropout(0.5, seed=7), Dropout(0.5, seed=7)
    for _ in range(3):
        a = run(lambda x: first(x, training=True))(ONES)
        b = run(lambda x: second(x, training=True))(ONES)
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, first(ONES, training=True))


def test_without_a_seed_set_random_seed_decides():
    def draw():
        return Dropout(0.5)(ONES, training=True).numpy()

    keras.utils.set_random_seed(5)
    first, other = draw(), draw()
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(draw(), first)
    assert not np.array_equal(first, other)


def test_eager_and_graph_calls_share_one_stream(expected):
    layer = Dropout(0.5, seed=7)
    graph = tf.function(lambda x: layer(x, training=True))
    for step, call in enumerate([graph, layer.__call__, graph, layer.__call__]):
        y = call(ONES) if call is graph else call(ONES, training=True)
        np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 7, step))


def test_every_training_call_takes_a_step_whatever_the_rate(expected, run):
    layer = Dropout(0, seed=7)
    f = run(lambda x: layer(x, training=True))
    f(ONES)
    layer.rate = 1
    f(ONES)
    layer.rate = 0.5
    np.testing.assert_array_equal(f(ONES), expected.factors(SHAPE, 0.5, 7, step=2))


def test_a_large_seed_and_a_large_step(expected, run):
    layer = Dropout(0.5, seed=2**63 - 1)
    layer.seed_generator.state.assign([2**63 - 1, 2**40])
    y = run(lambda x: layer(x, training=True))(ONES)
    np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 2**63 - 1, 2**40))


# Saving.


def test_keras_file(used, tmp_path):
    used.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert states(loaded) == states(used)
    assert [s[1] for s in states(loaded)] == [3, 3]
    np.testing.assert_array_equal(loaded(ONES, training=True), used(ONES, training=True))


def test_keras_file_keeps_the_rate_in_use(used, tmp_path):
    used.layers[0].rate = 0.75
    used.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").layers[0].rate == 0.75


@pytest.mark.parametrize("layer", ["SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"])
def test_keras_file_of_a_spatial_layer(layer, tmp_path):
    layer = getattr(fastdrop_keras, layer)(0.5)
    x = tf.ones((2,) * layer.input_spec.ndim)
    used = keras.Sequential([keras.Input(x.shape[1:]), layer])
    used(x, training=True)
    used.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x, training=True), used(x, training=True))


def test_weights_file(used, tmp_path):
    used.save_weights(tmp_path / "model.weights.h5")
    fresh = model()
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert states(fresh) == states(used)


def test_weights_of_a_subclassed_model_with_layers_in_a_list_and_a_dict(tmp_path):
    class Several(keras.Model):
        def __init__(self):
            super().__init__()
            self.listed = [Dropout(0.5), Dropout(0.5)]
            self.named = {"a": Dropout(0.5)}
            self.dense = keras.layers.Dense(1)

        def drops(self):
            return [*self.listed, self.named["a"]]

        def call(self, x, training=False):
            for layer in self.drops():
                x = layer(x, training=training)
            return self.dense(x)

    used, fresh = Several(), Several()
    used(ONES, training=True)
    fresh(ONES)
    used.save_weights(tmp_path / "model.weights.h5")
    fresh.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(used.drops(), fresh.drops(), strict=True):
        np.testing.assert_array_equal(a.seed_generator.state, b.seed_generator.state)


def test_weights_without_state_load_and_leave_the_state(tmp_path):
    """As of a model with Keras's own layers."""
    model(keras.layers.Dropout).save_weights(tmp_path / "model.weights.h5")
    fresh = model(seed=7)
    fresh(ONES, training=True)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert states(fresh) == [[7, 1], [7, 1]]


def test_weights_load_into_a_model_with_the_layers_of_keras(used, tmp_path):
    used.save_weights(tmp_path / "model.weights.h5")
    fresh = model(keras.layers.Dropout)
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(fresh(ONES), used(ONES), rtol=1e-6)


def test_checkpoint(used, tmp_path):
    path = tf.train.Checkpoint(model=used).save(tmp_path / "checkpoint")
    fresh = model()
    tf.train.Checkpoint(model=fresh).restore(path).assert_consumed()
    assert states(fresh) == states(used)


def test_checkpoint_of_a_subclassed_model(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout = Dropout(0.5)

        def call(self, x, training=False):
            return self.dropout(x, training=training)

    used, fresh = Subclassed(), Subclassed()
    used(ONES, training=True)
    path = tf.train.Checkpoint(used).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(fresh).restore(path)
    np.testing.assert_array_equal(used(ONES, training=True), fresh(ONES, training=True))


def test_checkpoint_without_state_restores(tmp_path):
    path = tf.train.Checkpoint(model=model(keras.layers.Dropout)).save(tmp_path / "checkpoint")
    fresh = model(seed=7)
    tf.train.Checkpoint(model=fresh).restore(path)
    assert states(fresh) == [[7, 0], [7, 0]]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies_continue_the_stream(used, duplicate):
    assert states(duplicate(used)) == states(used)
    layer = used.layers[0]
    np.testing.assert_array_equal(duplicate(layer)(ONES, training=True), layer(ONES, training=True))


def test_an_interrupted_and_resumed_fit_ends_in_the_same_weights(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    y = x[:, :1]

    def fit(model, epochs):
        model.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0)

    def fresh():
        keras.utils.set_random_seed(5)
        fresh = model()
        fresh.compile("adam", "mse")
        return fresh

    uninterrupted = fresh()
    fit(uninterrupted, 4)

    interrupted = fresh()
    fit(interrupted, 2)
    interrupted.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(resumed, 2)

    for a, b in zip(uninterrupted.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert states(resumed) == states(uninterrupted)


def test_an_exported_model_serves_where_the_library_is_not_installed(used, tmp_path, run_python):
    used.export(tmp_path / "exported", format="tf_saved_model", verbose=False)
    np.save(tmp_path / "input.npy", ONES)
    process = run_python(
        textwrap.dedent(
            """
            import sys
            sys.modules["fastdrop"] = sys.modules["fastdrop_keras"] = None
            import numpy as np, tensorflow as tf
            model = tf.saved_model.load("exported")
            np.save("output.npy", model.serve(np.load("input.npy")))
            """
        )
    )
    assert process.returncode == 0, process.stderr
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), used(ONES), rtol=1e-5)


# The rate.


def test_the_rate_changes_without_retracing(expected):
    layer = Dropout(0.5, seed=7)
    traces = []

    @tf.function
    def f(x):
        traces.append(1)
        return layer(x, training=True)

    for step, rate in enumerate([0.5, 0.1, 0, 1, 0.9]):
        layer.rate = rate
        np.testing.assert_array_equal(f(ONES), expected.factors(SHAPE, rate, 7, step))
    assert len(traces) == 1


def test_a_callback_can_change_the_rate_during_a_fit(expected):
    seen = []

    class Watch(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                tf.py_function(lambda x: seen.append(int((x.numpy() == 0).sum())), [x], [])
            return x

    x = keras.Input((33,))
    layer = Dropout(0.5, seed=7)
    changed = keras.Model(x, keras.layers.Dense(1)(Watch()(layer(x))))
    changed.compile("sgd", "mse")

    class Schedule(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            layer.rate = epoch / 2

    changed.fit(ONES, ONES[:, :1], epochs=3, verbose=0, callbacks=[Schedule()])
    want = [
        int((~expected.mask(SHAPE, rate, 7, step)).sum()) for step, rate in enumerate([0, 0.5, 1])
    ]
    assert seen == want


# Replicas.


def replica_outputs(strategy, layer):
    @tf.function
    def step():
        return strategy.run(lambda: layer(ONES, training=True))

    return [[y.numpy() for y in strategy.experimental_local_results(step())] for _ in range(3)]


def test_replicas_draw_different_masks_reproducibly(expected, two_replicas):
    with two_replicas.scope():
        layer = Dropout(0.5, seed=7)
    for step, outputs in enumerate(replica_outputs(two_replicas, layer)):
        for replica, y in enumerate(outputs):
            seed = (replica << 64) | 7
            np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, seed, step))


def test_one_replica_draws_what_no_strategy_draws(expected):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        layer = Dropout(0.5, seed=7)
    for step, (y,) in enumerate(replica_outputs(strategy, layer)):
        np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 7, step))


def test_fit_under_a_strategy(two_replicas):
    with two_replicas.scope():
        mirrored = model()
        mirrored.compile("sgd", "mse")
    x = np.ones((32, 33), np.float32)
    history = mirrored.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
