"""The state of a layer: its seed, files and checkpoints, replicas, and a changing rate."""

import copy
import json
import pathlib
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import fastdrop
import fastdrop_keras
from fastdrop_keras import Dropout, tensorflow_state

# From Keras itself, whenever it writes a variable to a file with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (5, 33)
ONES = np.ones(SHAPE, np.float32)
DATA = pathlib.Path(__file__).parents[1] / "data"


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


@pytest.mark.usefixtures("bridge")
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


@pytest.mark.usefixtures("bridge")
def test_a_large_seed_and_a_large_step(expected, run):
    layer = Dropout(0.5, seed=2**63 - 1)
    layer.seed_generator.state.assign([2**63 - 1, 2**40])
    y = run(lambda x: layer(x, training=True))(ONES)
    np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 2**63 - 1, 2**40))


# The masks of a training run.


@pytest.mark.parametrize("by", ["set_random_seed", "seed"])
def test_a_run_on_a_dataset_is_repeated_exactly(by):
    x = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)

    def run(threads):
        keras.utils.set_random_seed(5)
        run = model(seed=6 if by == "seed" else None)
        if by == "seed":
            # From here, other seeds affect only the order of the data.
            keras.utils.set_random_seed(threads)
            tf.random.set_seed(5)
        run.compile("adam", "mse")
        data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(64, seed=3)
        data = data.map(lambda x, y: (x * 2, y), num_parallel_calls=4).batch(24).prefetch(2)
        with fastdrop.num_threads(threads):
            run.fit(data, epochs=3, shuffle=False, verbose=0)
        return run.get_weights()

    for first, second in zip(run(threads=1), run(threads=3), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_layer_in_a_deterministic_parallel_map_is_repeated_exactly(
    run_python,
):
    done = run_python(
        """
import keras, numpy as np, tensorflow as tf, fastdrop, fastdrop_keras
keras.utils.set_random_seed(1)
tf.config.experimental.enable_op_determinism()
layer = fastdrop_keras.Dropout(0.5, seed=3)
data = tf.data.Dataset.from_tensors(tf.ones((64,))).repeat(100)
data = data.map(lambda x: layer(x, training=True), num_parallel_calls=8)
stream = fastdrop.Stream(3)
for y in data:
    want, _ = fastdrop.dropout(np.ones(64, "f4"), 0.5, seed=stream)
    assert np.array_equal(y, want), stream.state
assert stream.state["step"] == 100
"""
    )
    assert done.returncode == 0, done.stderr


# Saving.


def test_keras_file(used, tmp_path):
    used.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert states(loaded) == states(used)
    assert [s[1] for s in states(loaded)] == [3, 3]
    np.testing.assert_array_equal(loaded(ONES, training=True), used(ONES, training=True))


def test_files_save_the_state_of_the_current_generator(used, tmp_path, expected):
    used.layers[0].seed_generator = keras.random.SeedGenerator(7)
    assert len(used.variables) == len(model().variables)
    np.testing.assert_array_equal(
        used.layers[0](ONES, training=True), expected.factors(SHAPE, 0.5, 7)
    )
    used.save(tmp_path / "model.keras")
    used.save_weights(tmp_path / "model.weights.h5")
    checkpoint = tf.train.Checkpoint(model=used).save(tmp_path / "checkpoint")
    loaded, restored = model(), model()
    loaded.load_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=restored).restore(checkpoint).assert_existing_objects_matched()
    for other in (keras.models.load_model(tmp_path / "model.keras"), loaded, restored):
        assert states(other) == states(used)
        assert states(other)[0] == [7, 1]


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


@keras.saving.register_keras_serializable("tests")
class InListsAndDicts(keras.Model):
    """Has layers that `tf.train.Checkpoint` does not find."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.listed = [Dropout(0.5), [Dropout(0.5)]]
        self.named = {"a": Dropout(0.5)}
        self.dense = [keras.layers.Dense(3)]

    def dropouts(self):
        return [self.listed[0], self.listed[1][0], self.named["a"]]

    def states(self):
        return [layer.seed_generator.state.numpy().tolist() for layer in self.dropouts()]

    def call(self, x, training=False):
        for layer in self.dropouts():
            x = layer(x, training=training)
        return self.dense[0](x)


def test_keras_files_save_layers_in_lists_and_dicts_but_checkpoints_do_not(tmp_path):
    used, x = InListsAndDicts(), tf.ones((4, 33))
    for _ in range(2):
        used(x, training=True)
    used.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.states() == used.states()
    np.testing.assert_array_equal(loaded(x), used(x))
    # It does not save Keras's weights there either: see docs/limits.md.
    path = tf.train.Checkpoint(model=used).save(str(tmp_path / "checkpoint"))
    fresh = InListsAndDicts()
    fresh(x)
    states, kernel = fresh.states(), fresh.dense[0].kernel.numpy()
    tf.train.Checkpoint(model=fresh).restore(path).expect_partial()
    assert fresh.states() == states
    np.testing.assert_array_equal(fresh.dense[0].kernel, kernel)


@pytest.mark.parametrize(
    "damaged",
    [
        np.array([np.nan, np.inf]),
        np.array([1.5, 2.5], np.float32),
        np.array([1 + 2j, 3]),
        np.array([True, False]),
        np.zeros(3, np.int64),
        np.zeros((2, 1), np.int64),
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_and_changes_nothing(used, tmp_path, damaged):
    used.save_weights(tmp_path / "damaged.weights.h5")
    saved = []
    with h5py.File(tmp_path / "damaged.weights.h5", "r+") as file:
        file.visit(lambda name: saved.append(name) if name.endswith("/state") else None)
        for name in saved:
            del file[name]
            file[name] = damaged
    assert saved
    fresh = model()
    before = states(fresh)
    with pytest.raises(ValueError, match="seed generator must be two integers"):
        fresh.load_weights(tmp_path / "damaged.weights.h5")
    assert states(fresh) == before


def of_stream(path, number):
    """Write another number of the random stream into a file of weights, or none."""
    written = []
    with h5py.File(path, "r+") as file:
        file.visit(lambda name: written.append(name) if name.endswith("/stream") else None)
        for name in written:
            assert file[name][...].tolist() == [2]
            del file[name]
            if number is not None:
                file[name] = number
    assert len(written) == 2


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ([1], "stream 1 in the file"),
        ([3], "stream 3 in the file"),
        ([2**40], f"stream {2**40} in the file"),
        (None, "stream 1 in the file"),
        ([2.0], "must be one integer"),
        ([True], "must be one integer"),
        ([2, 2], "must be one integer"),
        (2, "must be one integer"),
        (b"2", "must be one integer"),
    ],
    ids=str,
)
def test_a_file_of_another_stream_is_refused(used, tmp_path, number, said):
    """A file without a number is from the first stream."""
    path = tmp_path / "model.weights.h5"
    used.save_weights(path)
    of_stream(path, number)
    fresh = model()
    before = states(fresh)
    with pytest.raises(ValueError, match=said) as error:
        fresh.load_weights(path)
    assert "integer" in said or "random stream 2," in str(error.value)
    assert states(fresh) == before


def test_a_keras_file_of_another_stream_is_refused(used, tmp_path):
    used.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as ours:
        ours.extractall(tmp_path)
    of_stream(tmp_path / "model.weights.h5", [1])
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as other:
        for name in ours.namelist():
            other.write(tmp_path / name, name)
    with pytest.raises(ValueError, match=r"random stream 2,.*\bof stream 1 in the file"):
        keras.models.load_model(tmp_path / "other.keras")


def test_weights_without_state_load_and_leave_the_state(tmp_path):
    """Such weights are from a model with Keras's layers."""
    model(keras.layers.Dropout).save_weights(tmp_path / "model.weights.h5")
    fresh = model(seed=7)
    fresh(ONES, training=True)
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert states(fresh) == [[7, 1], [7, 1]]


def test_weights_load_into_a_model_with_keras_layers(used, tmp_path):
    used.save_weights(tmp_path / "model.weights.h5")
    fresh = model(keras.layers.Dropout)
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(fresh(ONES), used(ONES), rtol=1e-6)


def test_checkpoint(used, tmp_path):
    path = tf.train.Checkpoint(model=used).save(tmp_path / "checkpoint")
    fresh = model()
    tf.train.Checkpoint(model=fresh).restore(path).assert_consumed()
    assert states(fresh) == states(used)


@pytest.mark.parametrize("number", ["1", "3", "two"])
def test_a_checkpoint_of_another_stream_is_refused(used, tmp_path, number, monkeypatch):
    with monkeypatch.context() as other:
        other.setattr(tensorflow_state.StreamNumber, "serialize", lambda self: number)
        path = tf.train.Checkpoint(model=used).save(tmp_path / "checkpoint")
    fresh = model()
    before = states(fresh)
    with pytest.raises(ValueError, match=f"random stream 2,.*of stream {number} in the checkpoint"):
        tf.train.Checkpoint(model=fresh).restore(path)
    assert states(fresh) == before


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


class Interrupt(keras.callbacks.Callback):
    """Ends a training run with an error, in the middle of its third epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 10:
            raise InterruptedError("in the third epoch")


def fit(model, *callbacks, **options):
    x = np.random.default_rng(0).normal(size=(64, 33)).astype(np.float32)
    model.fit(
        x, x[:, :1], batch_size=16, shuffle=False, verbose=0, callbacks=list(callbacks), **options
    )


def fresh():
    """A model that has the same weights and seeds each time."""
    keras.utils.set_random_seed(5)
    fresh = model()
    fresh.compile("adam", "mse")
    return fresh


def other():
    """A model with other weights and seeds."""
    keras.utils.set_random_seed(6)
    other = model()
    other.compile("adam", "mse")
    return other


def assert_same(first, second):
    assert states(first) == states(second)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def uninterrupted():
    """A model that was trained for four epochs."""
    uninterrupted = fresh()
    fit(uninterrupted, epochs=4)
    return uninterrupted


def test_an_interrupted_and_resumed_fit_ends_in_the_same_weights(uninterrupted, tmp_path):
    interrupted = fresh()
    fit(interrupted, epochs=2)
    interrupted.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(resumed, epochs=2)
    assert_same(resumed, uninterrupted)


def test_backup_and_restore_ends_in_the_same_weights(uninterrupted, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(InterruptedError):
        fit(fresh(), backup(), Interrupt(), epochs=4)
    resumed = other()
    fit(resumed, backup(), epochs=4)
    assert_same(resumed, uninterrupted)


def test_a_checkpoint_of_tensorflow_ends_in_the_same_weights(uninterrupted, tmp_path):
    def checkpoint(model):
        return tf.train.Checkpoint(model=model, optimizer=model.optimizer)

    interrupted = fresh()
    fit(interrupted, epochs=2)
    path = checkpoint(interrupted).save(tmp_path / "checkpoint")
    resumed = other()
    resumed.optimizer.build(resumed.trainable_variables)
    checkpoint(resumed).restore(path).assert_consumed()
    fit(resumed, epochs=4, initial_epoch=2)
    assert_same(resumed, uninterrupted)


# Files of other versions, and of Keras.


def saved_by_0_1(expected):
    """The next outputs of the layers in the files in `data`: name, input and output."""
    for name, rate, seed, shape, noise_shape in [
        ("first", 0.125, 8, (5, 4, 3), (None, 1, None)),
        ("second", 0.25, 7, (5, 2, 2, 3), (None, None, 1, 1)),
        ("third", 0.5, 7, (5, 2, 2, 3, 1), (None, None, 1, 1, 1)),
        ("plain", 0.75, 9, (5, 4, 3), (None, 1, 3)),
    ]:
        yield name, tf.ones(shape), expected.factors(shape, rate, seed, 3, noise_shape)


def test_a_keras_file_of_version_0_1(expected):
    loaded = keras.models.load_model(DATA / "saved_by_0_1.keras")
    for name, x, y in saved_by_0_1(expected):
        np.testing.assert_array_equal(loaded.get_layer(name)(x, training=True), y)


def test_a_weights_file_of_version_0_1(expected):
    model = keras.models.clone_model(keras.models.load_model(DATA / "saved_by_0_1.keras"))
    assert model.get_layer("plain").seed_generator.state.numpy().tolist() == [9, 0]
    model.load_weights(DATA / "saved_by_0_1.weights.h5")
    np.testing.assert_array_equal(model.get_layer("dense").kernel, np.ones((3, 1)))
    for name, x, y in saved_by_0_1(expected):
        np.testing.assert_array_equal(model.get_layer(name)(x, training=True), y)


def test_a_keras_file_with_fewer_entries_and_without_state(used, tmp_path):
    """Such a file may be from an older version. Missing entries have their default values."""
    used.save(tmp_path / "new.keras")
    weights = tmp_path / "stateless.weights.h5"
    model(keras.layers.Dropout).save_weights(weights)
    with (
        zipfile.ZipFile(tmp_path / "new.keras") as new,
        zipfile.ZipFile(tmp_path / "old.keras", "w") as old,
    ):
        config = json.loads(new.read("config.json"))
        dropout = config["config"]["layers"][1]["config"]
        for entry in set(dropout) - {"rate", "name"}:
            del dropout[entry]
        old.writestr("metadata.json", new.read("metadata.json"))
        old.writestr("config.json", json.dumps(config))
        old.writestr("model.weights.h5", weights.read_bytes())
    loaded = keras.models.load_model(tmp_path / "old.keras")
    layer = loaded.layers[0]
    assert (layer.rate, layer.seed, layer.noise_shape) == (0.5, None, None)
    assert [step for _, step in states(loaded)] == [0, 0]
    assert np.isfinite(loaded(ONES, training=True)).all()


def test_a_keras_file_with_keras_layers_loads_next_to_ours(tmp_path):
    theirs = model(keras.layers.Dropout, seed=7)
    theirs.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is keras.layers.Dropout
    converted = fastdrop_keras.convert(loaded, verbose=False)
    assert type(converted.layers[0]) is Dropout
    np.testing.assert_allclose(converted(ONES), theirs(ONES), rtol=1e-6)


# The rate.


@pytest.mark.usefixtures("bridge")
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


@pytest.mark.usefixtures("bridge")
def test_replicas_draw_different_masks_reproducibly(expected, two_replicas):
    with two_replicas.scope():
        layer = Dropout(0.5, seed=7)
    for step, outputs in enumerate(replica_outputs(two_replicas, layer)):
        for replica, y in enumerate(outputs):
            seed = (replica << 64) | 7
            np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, seed, step))


def test_one_replica_draws_the_same_as_without_a_strategy(expected):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        layer = Dropout(0.5, seed=7)
    for step, (y,) in enumerate(replica_outputs(strategy, layer)):
        np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 7, step))


def test_a_fit_under_a_strategy_is_repeated_exactly(two_replicas):
    def trained():
        with two_replicas.scope():
            mirrored = fresh()
        fit(mirrored, epochs=2)
        return mirrored

    first = trained()
    assert all(np.isfinite(weights).all() for weights in first.get_weights())
    assert_same(first, trained())


def test_a_stateless_call_does_not_change_the_seeds_state(expected):
    layer = Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((33,)), layer])
    x = tf.ones((5, 33))

    def call(state):
        y, others = model.stateless_call([], state, x, training=True)
        return y, others

    state = [layer.seed_generator.state.value.numpy()]
    (y, first), (again, _) = call(state), call(state)
    np.testing.assert_array_equal(y, expected.factors((5, 33), 0.5, 1))
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(first[0], [1, 1])
    y, _ = call(first)
    np.testing.assert_array_equal(y, expected.factors((5, 33), 0.5, 1, 1))
    with keras.StatelessScope() as scope:
        layer(x, training=True)
        layer(x, training=True)
    assert scope.get_current_value(layer.seed_generator.state).numpy().tolist() == [1, 2]
    assert layer.seed_generator.state.numpy().tolist() == [1, 0]
