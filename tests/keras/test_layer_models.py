"""The layers work in models of every kind, with `fit`, `evaluate` and `predict`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastdrop_keras
from fastdrop_keras import Dropout, xla_bridge


def data(samples=64, features=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, features)).astype(np.float32)
    return x, (x[:, :1] - x[:, 1:2] > 0).astype(np.float32)


def sequential():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, activation="relu"),
            Dropout(0.2),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


def functional():
    x = keras.Input((6,))
    h = keras.layers.Dense(16, activation="relu")(x)
    a, b = Dropout(0.2)(h), Dropout(0.1, noise_shape=(None, 1))(h)
    return keras.Model(x, keras.layers.Dense(1, activation="sigmoid")(a + b))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.dropout = Dropout(0.2)
        self.out = keras.layers.Dense(1, activation="sigmoid")

    def call(self, x, training=False):
        return self.out(self.dropout(self.hidden(x), training=training))


def nested():
    inner = keras.Sequential([keras.layers.Dense(16, activation="relu"), Dropout(0.2)])
    x = keras.Input((6,))
    return keras.Model(x, keras.layers.Dense(1, activation="sigmoid")(inner(x)))


def time_distributed():
    x = keras.Input((6,))
    h = keras.layers.Reshape((3, 2))(x)
    h = keras.layers.TimeDistributed(keras.layers.Dense(8, activation="relu"))(h)
    h = keras.layers.TimeDistributed(Dropout(0.2))(h)
    h = fastdrop_keras.SpatialDropout1D(0.1)(h)
    h = keras.layers.Bidirectional(keras.layers.SimpleRNN(4))(h)
    return keras.Model(x, keras.layers.Dense(1, activation="sigmoid")(h))


def convolutional():
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Reshape((2, 3, 1)),
            keras.layers.Conv2D(8, 2, padding="same", activation="relu"),
            fastdrop_keras.SpatialDropout2D(0.2),
            keras.layers.Flatten(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )


each_model = pytest.mark.parametrize(
    "make", [sequential, functional, Subclassed, nested, time_distributed, convolutional]
)


@each_model
def test_fit_evaluate_predict(make):
    x, y = data()
    model = make()
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    # The last batch of an epoch is smaller.
    losses = model.fit(x, y, batch_size=24, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    first = model.evaluate(x, y, verbose=0)
    assert first == model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), model(x), rtol=1e-5, atol=1e-6)
    assert np.isfinite(model.train_on_batch(x, y)).all()


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_model_learns(run_eagerly):
    x, y = data(256)
    model = sequential()
    model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy", run_eagerly=run_eagerly)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, batch_size=32, epochs=3, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before / 2


@pytest.mark.parametrize("make", [sequential, time_distributed])
def test_set_random_seed_reproduces_a_fit(make):
    x, y = data()

    def weights():
        keras.utils.set_random_seed(99)
        model = make()
        model.compile("adam", "binary_crossentropy")
        model.fit(x, y, batch_size=16, epochs=2, verbose=0)
        return model.get_weights()

    for first, second in zip(weights(), weights(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_eager_and_graph_training_end_in_the_same_weights():
    x, y = data()

    def weights(run_eagerly):
        keras.utils.set_random_seed(99)
        model = sequential()
        model.compile("sgd", "binary_crossentropy", run_eagerly=run_eagerly)
        model.fit(x, y, batch_size=16, epochs=2, verbose=0)
        return model.get_weights()

    # The masks have the same bits, but sums may be rounded differently.
    for eager, graph in zip(weights(True), weights(False), strict=True):
        np.testing.assert_allclose(eager, graph, rtol=1e-5, atol=1e-6)


def test_the_mask_of_an_embedding_reaches_later_layers():
    tokens = keras.Input((None,), dtype="int32")
    h = keras.layers.Embedding(9, 6, mask_zero=True)(tokens)
    h = fastdrop_keras.SpatialDropout1D(0.2)(h)
    h = Dropout(0.2, noise_shape=(None, None, 1))(h)
    model = keras.Model(tokens, keras.layers.SimpleRNN(3)(Dropout(0.2)(h)))
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    # Several batch sizes and numbers of time steps.
    for shape in [(8, 5), (3, 7), (8, 1)]:
        x = rng.integers(1, 9, shape)
        assert np.isfinite(model.train_on_batch(x, np.ones((shape[0], 3))))
        padded = np.pad(x, [(0, 0), (0, 4)])
        np.testing.assert_allclose(
            model.predict_on_batch(padded), model.predict_on_batch(x), rtol=1e-4, atol=1e-5
        )


def test_time_distributed_calls_at_each_time_step(expected, run):
    layer = Dropout(0.5, seed=3)
    x = keras.Input((4, 33))
    model = keras.Model(x, keras.layers.TimeDistributed(layer)(x))
    y = run(lambda x: model(x, training=True))(tf.ones((5, 4, 33)))
    wanted = [expected.factors((5, 33), 0.5, 3, step) for step in range(4)]
    np.testing.assert_array_equal(y, np.stack(wanted, axis=1))


@keras.saving.register_keras_serializable("tests")
class DroppingCell(keras.layers.Layer):
    """A recurrent cell that adds up the outputs of a dropout layer."""

    state_size = 6

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = Dropout(0.5, seed=3)

    def call(self, inputs, states, training=False):
        total = states[0] + self.dropout(inputs, training=training)
        return total, [total]


def test_bidirectional(expected, run):
    """Each direction has its own cell, from the configuration of the given one."""
    layer = keras.layers.Bidirectional(
        keras.layers.RNN(DroppingCell(), unroll=True), merge_mode="concat"
    )
    layer.build((5, 4, 6))
    x = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    y = run(lambda x: layer(x, training=True))(tf.constant(x))
    factors = [expected.factors((5, 6), 0.5, 3, step) for step in range(4)]
    there = sum(x[:, step] * factors[step] for step in range(4))
    back = sum(x[:, 3 - step] * factors[step] for step in range(4))
    np.testing.assert_allclose(y, np.concatenate([there, back], axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_empty_batches(run_eagerly):
    model = sequential()
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    weights = model.get_weights()
    model.train_on_batch(np.ones((0, 6)), np.ones((0, 1)))
    assert model.predict_on_batch(np.ones((0, 6))).shape == (0, 1)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    model.fit(*data(), verbose=0)


class Listed(keras.Model):
    def __init__(self):
        super().__init__()
        self.all = [keras.layers.Dense(16), Dropout(0.2), keras.layers.Dense(1)]

    def call(self, x, training=False):
        dense, dropout, out = self.all
        return out(dropout(dense(x), training=training))


@pytest.mark.parametrize("make", [sequential, nested, Listed])
def test_jit_compile_falls_back_where_xla_cannot_call_the_kernels(make, monkeypatch):
    monkeypatch.setattr(xla_bridge, "WHY_NOT", "the reason")
    x, y = data()
    model = make()
    # Keras finds the layers of a subclassed model when it is built.
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("sgd", "binary_crossentropy", jit_compile=True)
    model.fit(x, y, verbose=0)
    model.predict(x, verbose=0)
    assert not model.jit_compile


@pytest.mark.skipif(bool(xla_bridge.WHY_NOT), reason=xla_bridge.WHY_NOT)
@pytest.mark.parametrize("make", [sequential, nested, Listed])
def test_jit_compile(make):
    x, y = data()
    model = make()
    model.compile("sgd", "binary_crossentropy", jit_compile=True)
    model.fit(x, y, verbose=0)
    model.predict(x, verbose=0)
    assert model.jit_compile


def test_steps_per_execution():
    x, y = data()
    model = sequential()
    model.compile("sgd", "binary_crossentropy", steps_per_execution=4)
    model.fit(x, y, batch_size=8, verbose=0)
    dropout = model.layers[1]
    assert dropout.seed_generator.state.numpy()[1] == 8


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_fit_under_a_dtype_policy(policy):
    keras.config.set_dtype_policy(policy)
    x, y = data()
    model = sequential()
    model.compile("adam", "binary_crossentropy")
    assert np.isfinite(model.fit(x, y, epochs=2, verbose=0).history["loss"]).all()
    assert model.layers[1].compute_dtype == keras.config.dtype_policy().compute_dtype


def test_a_layer_used_twice_draws_twice(expected, run):
    layer = Dropout(0.5, seed=3)
    x = tf.ones((5, 33))
    first, second = run(lambda x: (layer(x, training=True), layer(x, training=True)))(x)
    np.testing.assert_array_equal(first, expected.factors((5, 33), 0.5, 3, step=0))
    np.testing.assert_array_equal(second, expected.factors((5, 33), 0.5, 3, step=1))


def test_layers_of_one_model_draw_different_masks():
    layers = [Dropout(0.5) for _ in range(4)]
    masks = {layer(tf.ones((64,)), training=True).numpy().tobytes() for layer in layers}
    assert len(masks) == 4


def test_training_is_inherited_from_the_model(expected):
    model = keras.Sequential([keras.Input((33,)), Dropout(0.5, seed=3)])
    x = np.ones((5, 33), np.float32)
    np.testing.assert_array_equal(model(x), x)
    np.testing.assert_array_equal(model.predict(x, verbose=0), x)
    want = expected.factors((5, 33), 0.5, 3)
    np.testing.assert_array_equal(model(x, training=True), want)


@pytest.mark.usefixtures("bridge")
def test_in_a_dataset_pipeline(expected):
    layer = Dropout(0.5, seed=3)
    batches = tf.data.Dataset.from_tensors(tf.ones((5, 33))).repeat(3)
    for step, y in enumerate(batches.map(lambda x: layer(x, training=True))):
        np.testing.assert_array_equal(y, expected.factors((5, 33), 0.5, 3, step))


@pytest.mark.usefixtures("bridge")
def test_functions_within_functions_and_loops(expected):
    layer = Dropout(0.5, seed=3)
    inner = tf.function(lambda x: layer(x, training=True))

    @tf.function
    def outer(x):
        for _ in tf.range(2):
            x = inner(x)
        return inner(x)

    x = tf.ones((5, 33))
    for call in range(2):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = outer(x)
        factors = [expected.factors((5, 33), 0.5, 3, 3 * call + i) for i in range(3)]
        np.testing.assert_array_equal(y, np.prod(factors, axis=0))
        np.testing.assert_array_equal(tape.gradient(y, x), y)
    concrete = outer.get_concrete_function(tf.TensorSpec((5, 33)))
    assert len(concrete.inputs) == 3  # x, the seed's state and the rate
    np.testing.assert_array_equal(
        concrete(x),
        np.prod([expected.factors((5, 33), 0.5, 3, step) for step in (6, 7, 8)], axis=0),
    )


@pytest.mark.usefixtures("bridge")
def test_a_function_in_training_in_a_saved_model(tmp_path, expected):
    module = tf.Module()
    module.layer = Dropout(0.5, seed=3)
    module.function = tf.function(
        lambda x: module.layer(x, training=True), input_signature=[tf.TensorSpec((5, 33))]
    )
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    # The loaded model has a rate and a state of its own.
    for step, rate in enumerate([0.5, 0.9]):
        module.layer.rate = rate
        want = expected.factors((5, 33), 0.5, 3, step)
        np.testing.assert_array_equal(loaded.function(tf.ones((5, 33))), want)
    want = expected.factors((5, 33), 0.9, 3)
    np.testing.assert_array_equal(module.function(tf.ones((5, 33))), want)


def test_clone_model_starts_the_stream_of_its_seed():
    model = keras.Sequential([keras.Input((33,)), Dropout(0.5, seed=3)])
    x = np.ones((5, 33), np.float32)
    first = model(x, training=True)
    clone = keras.models.clone_model(model)
    assert isinstance(clone.layers[0], Dropout)
    np.testing.assert_array_equal(clone(x, training=True), first)
