"""On JAX, models with the layers train, compile, save, convert and use checkpointing."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from reference import assert_same_bits, drawn

import fastdrop_keras
from fastdrop_keras import (
    AlphaDropout,
    ConcreteDropout,
    DropBlock2D,
    DropConnectConv2D,
    DropConnectDense,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    StochasticDepth,
    VariationalDense,
    VariationalGaussianDropout,
    layer_state,
)


def data(rows=48):
    x = np.random.default_rng(1).normal(size=(rows, 20)).astype(np.float32)
    return x, x[:, :1]


def small_model(layer, seed=5, **compiled):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((20,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(hidden)))
    model.compile(keras.optimizers.Adam(0.01), "mse", **compiled)
    return model


def fit(model, **arguments):
    x, y = data()
    arguments = {"batch_size": 16, "verbose": 0, "shuffle": False} | arguments
    return model.fit(x, y, **arguments).history


def state_of(layer):
    return layer_state.position(layer.seed_generator).tolist()


def assert_same(a, b):
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


class MaskRecorder(keras.layers.Layer):
    """Adds the output of a dropout layer for ones to a state, so that `fit` shows its masks."""

    def __init__(self, layer, count):
        super().__init__()
        self.layer = layer
        self.seen = self.add_weight((count, 50), trainable=False, initializer="zeros")
        self.step = self.add_weight((), dtype="int32", trainable=False, initializer="zeros")
        self.traces = 0

    def call(self, x, training=False):
        if training:
            self.traces += 1
            y = self.layer(keras.ops.ones(50), training=True)
            self.seen.assign(self.seen.value.at[self.step.value].set(y))
            self.step.assign(self.step + 1)
        return x


def recording_model(layer, count, **compiled):
    recorder = MaskRecorder(layer, count)
    model = keras.Sequential([keras.Input((20,)), recorder, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **compiled)
    recorder.traces = 0
    return model, recorder


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fit_and_predict(dtype):
    keras.config.set_dtype_policy(dtype)
    layer = Dropout(0.2, seed=3)
    model = small_model(layer)
    assert model.jit_compile
    losses = fit(model, epochs=10)["loss"]
    assert losses[-1] < losses[0]
    assert state_of(layer) == [3, 30]
    x, y = data()
    before = model.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert model.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    assert state_of(layer) == [3, 30]
    model.train_on_batch(x, y)
    assert state_of(layer) == [3, 31]


@pytest.mark.parametrize(
    "compiled", [{}, {"jit_compile": False}, {"run_eagerly": True}, {"steps_per_execution": 2}]
)
def test_fit_draws_the_masks_of_the_stream(expected, compiled):
    model, recorder = recording_model(Dropout(0.3, seed=3), 6, **compiled)
    fit(model, epochs=2)
    for step, row in enumerate(np.asarray(recorder.seen)):
        assert_same_bits(row, expected.factors((50,), 0.3, 3, step))


def test_the_loss_and_gradient_of_a_step(expected):
    """The first step of `fit` computes what NumPy does with the mask of the reference."""
    layer = Dropout(0.5, seed=3)
    model = keras.Sequential([keras.Input((20,)), layer, keras.layers.Dense(1, use_bias=False)])
    weights = np.full((20, 1), 0.5, np.float32)
    model.set_weights([weights])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = data(16)
    dropped = expected.output(x, 0.5, 3)
    error = dropped @ weights - y
    assert np.isclose(model.train_on_batch(x, y), (error**2).mean(), rtol=1e-5)
    right = weights - 0.1 * 2 * dropped.T @ error / 16
    np.testing.assert_allclose(model.get_weights()[0], right, rtol=1e-4)


def test_fit_twice_gives_the_same_weights():
    models = [small_model(Dropout(0.5, seed=3)) for _ in range(2)]
    for model in models:
        fit(model, epochs=2)
    assert_same(*models)


def test_an_interrupted_and_resumed_fit_ends_in_the_same_weights(tmp_path):
    whole, first = (small_model(Dropout(0.5, seed=3)) for _ in range(2))
    fit(whole, epochs=4)
    fit(first, epochs=2)
    first.save(tmp_path / "model.keras")
    first.save_weights(tmp_path / "model.weights.h5")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(resumed, epochs=4, initial_epoch=2)
    assert_same(resumed, whole)
    layer = Dropout(0.5, seed=9)
    other = small_model(layer)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert state_of(layer) == [3, 6]


def test_files_hold_the_seed_as_those_of_other_backends(tmp_path):
    h5py = pytest.importorskip("h5py")
    layer = Dropout(0.5, seed=2**40 + 3)
    model = keras.Sequential([keras.Input((20,)), layer])
    layer(jnp.ones(5), training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    found = {}
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, item: found.update({name.split("/")[-1]: item}))
        assert found["state"].dtype == np.int64
        assert found["state"][:].tolist() == [2**40 + 3, 1]
        assert "rate_bits" not in found
    assert not model.weights


def test_a_model_whose_shapes_keras_computes_by_a_call():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = SpatialDropout1D(0.5, seed=3)
            self.dense = keras.layers.Dense(2)

        def call(self, x, training=False):
            return self.dense(self.drop(x, training=training))

    model = Model()
    y = model(keras.Input((None, 4)), training=True)
    assert y.shape == (None, None, 2)
    assert state_of(model.drop) == [3, 0]
    model(jnp.ones((2, 3, 4)), training=True)
    assert state_of(model.drop) == [3, 1]


def test_a_layer_that_is_made_while_a_model_is_built(expected):
    class Block(keras.layers.Layer):
        def build(self, shape):
            self.drop = Dropout(0.5)
            self.drop.rate = 0.25

        def call(self, x, training=False):
            return self.drop(x, training=training)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def call(self, x, training=False):
            return self.block(x, training=training)

    model = Model()
    model.compile(loss="mse")
    model.predict(np.ones((2, 50), np.float32), verbose=0)
    seed, step = state_of(model.block.drop)
    assert step == 0
    y = model(np.ones((2, 50), np.float32), training=True)
    assert_same_bits(np.asarray(y), expected.factors((2, 50), 0.25, seed))


# Rates.


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_rate_schedule(expected, unit):
    layer = Dropout(0.5, seed=3)
    model, recorder = recording_model(layer, 12)
    rates = [0.5, 0.0, 1.0, 0.123456789]
    schedule = fastdrop_keras.RateSchedule(lambda number: rates[number % 4], unit=unit)
    history = fit(model, epochs=4, callbacks=[schedule])
    assert recorder.traces == 1
    steps = [rates[step % 4] if unit == "step" else rates[step // 3] for step in range(12)]
    assert history["dropout_rate"] == steps[2::3]
    for step, row in enumerate(np.asarray(recorder.seen)):
        assert_same_bits(row, expected.factors((50,), steps[step], 3, step))
    assert layer.rate == steps[-1]
    y = layer(jnp.ones(50), training=True)
    assert_same_bits(np.asarray(y), expected.factors((50,), steps[-1], 3, 12))


SETTINGS = [{}, {"run_eagerly": True}, {"steps_per_execution": 2}]


@pytest.mark.parametrize("compiled", SETTINGS)
def test_a_callback_between_steps_may_set_the_rate(expected, compiled):
    """But for a call of Keras's, there would be no values of variables then."""
    layer = Dropout(0.0, seed=3)
    model, recorder = recording_model(layer, 8, **compiled)
    rates = iter([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.jax_state_sync()
            layer.rate = next(rates)

    x, y = data(64)
    model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[Callback()])
    assert compiled or recorder.traces == 1
    each = compiled.get("steps_per_execution", 1)
    for step, row in enumerate(np.asarray(recorder.seen)):
        assert_same_bits(row, expected.factors((50,), step // each / 10, 3, step))
    assert np.isclose(layer.rate, 0.8 / each)
    np.testing.assert_array_equal(layer.variables[1].numpy().view("float64"), [layer.rate])


@pytest.mark.parametrize("compiled", SETTINGS)
def test_a_rate_that_a_step_would_not_use_is_refused(compiled):
    layer = Dropout(0.5, seed=3)
    model = small_model(layer, **compiled)
    errors = []

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            with pytest.raises(RuntimeError, match=r"Call `model\.jax_state_sync") as caught:
                layer.rate = 0.25
            errors.append(caught.value)
            assert layer.rate in (0.5, 0.75)
            self.model.jax_state_sync()
            layer.rate = 0.75

    fit(model, callbacks=[Callback()])
    assert errors
    assert layer.rate == 0.75


# Gradient checkpointing.


def squared(first, second):
    """A function with two dropout layers, which keep nothing but seeds for its recomputation."""

    def block(x):
        return keras.ops.sin(second(keras.ops.sin(first(x * x, training=True)), training=True))

    return block


REMAT = {
    "keras": keras.remat,
    "nested": lambda f: keras.remat(lambda x: keras.remat(f)(x)),
}


@pytest.mark.parametrize("kind", REMAT)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_has_the_masks_of_the_forward_pass(expected, kind, compiled):
    first, second = Dropout(0.5, seed=3), Dropout(0.5, seed=4)
    block = REMAT[kind](squared(first, second))
    x = numbers = np.random.default_rng(1).normal(size=(8, 30)).astype(np.float32)
    variables = [*first.variables, *second.variables]

    def loss(x, state):
        with keras.StatelessScope(zip(variables, state, strict=True)) as scope:
            y = block(block(x))
        return y.sum(), [scope.get_current_value(variable) for variable in variables]

    function = jax.value_and_grad(loss, has_aux=True)
    if compiled:
        function = jax.jit(function)
    state = [variable.value for variable in variables]
    for step in (0, 2):
        (value, state), gradient = function(x, state)

        def right(x, step=step):
            for number in (step, step + 1):
                a, b = (expected.factors((8, 30), 0.5, seed, number) for seed in (3, 4))
                x = jnp.sin(jnp.sin(x * x * a) * b)
            return x.sum()

        np.testing.assert_allclose(value, right(numbers), rtol=1e-4)
        np.testing.assert_allclose(gradient, jax.grad(right)(numbers), atol=1e-4)
    assert state[0].tolist() == [3, 0, 4, 0]
    assert state_of(first) == [3, 0]


def test_eager_calls_of_a_checkpointed_function(expected):
    layer = Dropout(0.5, seed=3)
    block = keras.remat(lambda x: layer(x, training=True))
    for step in range(3):
        assert_same_bits(np.asarray(block(jnp.ones(50))), expected.factors((50,), 0.5, 3, step))
    dx = jax.grad(lambda x: block(x).sum())(jnp.ones(50))
    assert_same_bits(np.asarray(dx), expected.factors((50,), 0.5, 3, 3))
    assert state_of(layer) == [3, 4]
    with pytest.raises(RuntimeError, match="Pass the state as an argument"):
        jax.jit(block)(jnp.ones(50))


def test_a_checkpointed_function_is_computed_again():
    block = squared(Dropout(0.5), Dropout(0.5))

    def sines(function):
        gradient = jax.grad(lambda x: function(x).sum())
        return str(jax.make_jaxpr(gradient)(jnp.ones(50))).count(" sin ")

    with keras.StatelessScope():
        assert (sines(block), sines(keras.remat(block))) == (2, 3)


class Block(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(20)
        self.drop = Dropout(0.5, seed=3)
        self.normal = keras.layers.BatchNormalization()

    def build(self, shape):
        self.dense.build(shape)
        self.normal.build(shape)

    def call(self, x, training=False):
        x = self.drop(self.dense(x), training=training)
        return keras.ops.sin(self.normal(x, training=training))


def test_fit_in_a_remat_scope():
    models = []
    for scope in (keras.RematScope("full"), keras.name_scope("plain")):
        keras.utils.set_random_seed(5)
        with scope:
            block = Block()
        model = keras.Sequential([keras.Input((20,)), block, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        fit(model, epochs=2)
        assert state_of(block.drop) == [3, 6]
        models.append(model)
        x, _ = data()
        assert model.predict(x, verbose=0).shape == (48, 1)
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_loss_that_a_checkpointed_layer_adds_is_refused():
    class Layer(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.sum(x))
            return x

    with keras.RematScope("full"):
        layer = Layer()
    layer.built = True
    with pytest.raises(NotImplementedError, match="`add_loss`"):
        layer.stateless_call([], [], jnp.ones(3), return_losses=True)


# Models with dropout layers of Keras.


@pytest.mark.parametrize("in_place", [False, True])
def test_convert_and_to_keras(in_place):
    model = small_model(keras.layers.Dropout(0.25, (None, 1), seed=7, name="drop"))
    fit(model)
    x, _ = data()
    before = model.predict(x, verbose=0)
    ours = fastdrop_keras.convert(model, in_place=in_place, verbose=False)
    layer = ours.get_layer("drop")
    assert type(layer) is Dropout
    assert (layer.rate, layer.noise_shape, state_of(layer)) == (0.25, (None, 1), [7, 3])
    np.testing.assert_array_equal(ours.predict(x, verbose=0), before)
    fit(ours)
    assert state_of(layer) == [7, 6]
    theirs = fastdrop_keras.to_keras(ours, in_place=in_place, verbose=False)
    assert type(theirs.get_layer("drop")) is keras.layers.Dropout
    assert state_of(theirs.get_layer("drop")) == [7, 6]
    fit(theirs)


def test_a_converted_model_and_the_original_share_no_array():
    """Keras's functions delete the arrays that they were given."""
    x, y = np.ones((8, 16)), np.ones((8, 3))
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(3), keras.layers.Dropout(0.5, seed=1)]
    )
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    before = model.predict(x, verbose=0)
    ours = fastdrop_keras.convert(model, verbose=False)
    ours.fit(x, y, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    model.fit(x, y, verbose=0)
    assert np.isfinite(ours.predict(x, verbose=0)).all()


def test_convert_reports_functions_of_jax_that_take_random_numbers():
    def noisy(params, rng, inputs):
        return inputs + jax.random.normal(rng, inputs.shape)

    model = keras.Sequential(
        [
            keras.layers.JaxLayer(noisy, params={}, name="noisy"),
            keras.layers.JaxLayer(lambda params, inputs: inputs, params={}, name="plain"),
        ]
    )
    _, report = fastdrop_keras.convert(model, verbose=False, return_report=True)
    assert [(one.path, "'rng'" in one.note) for one in report.unchanged] == [("noisy", True)]


def test_clone_model():
    layer = Dropout(0.25, seed=7, name="drop")
    copy = keras.models.clone_model(small_model(layer)).get_layer("drop")
    assert (copy.rate, state_of(copy)) == (0.25, [7, 0])
    copy.rate = 0.5
    assert layer.rate == 0.25


def test_a_seed_that_keras_cannot_hold_is_reported():
    model = small_model(Dropout(0.5, seed=2**40, name="drop"))
    theirs, report = fastdrop_keras.to_keras(model, verbose=False, return_report=True)
    assert type(theirs.get_layer("drop")) is Dropout
    assert "1099511627776" in report.unchanged[0].note


def test_enabled():
    with fastdrop_keras.enabled():
        attention = keras.layers.MultiHeadAttention(2, 8, dropout=0.5)
        x = jnp.ones((2, 3, 8))
        assert not jnp.array_equal(attention(x, x, training=True), attention(x, x, training=True))
    assert type(attention._dropout_layer) is Dropout
    assert type(keras.layers.Dropout(0.5)) is not Dropout


# Several devices.


def test_data_parallel(expected):
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=keras.distribution.list_devices("cpu"))
    )
    layer = Dropout(0.5, seed=3)
    model = small_model(layer)
    x, y = data()

    class Rates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.jax_state_sync()
            layer.rate = 0.25

    model.fit(x, y, batch_size=16, verbose=0, shuffle=False, epochs=2, callbacks=[Rates()])
    assert state_of(layer) == [3, 6]
    spread = jax.device_put(
        np.ones((16, 50), np.float32),
        jax.sharding.NamedSharding(
            keras.distribution.distribution().device_mesh.backend_mesh,
            jax.sharding.PartitionSpec("batch"),
        ),
    )
    call = jax.jit(lambda state, x: layer.stateless_call([], state, x, training=True)[0])
    y = call([variable.value for variable in layer.variables], spread)
    assert len(y.sharding.device_set) == 4
    assert_same_bits(np.asarray(y), expected.factors((16, 50), 0.25, 3, 6))


def test_devices_do_not_change_the_weights():
    weights = []
    for devices in (keras.distribution.list_devices("cpu"), None):
        keras.distribution.set_distribution(
            None if devices is None else keras.distribution.DataParallel(devices=devices)
        )
        model = small_model(Dropout(0.5, seed=3))
        fit(model, epochs=2)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_exact_average():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    model = keras.Sequential(
        [keras.Input((4,)), Dropout(0.25), keras.layers.Dense(2, "softmax", name="last")]
    )
    geometric, deviation = fastdrop_keras.exact_average(model, x, geometric=True)
    np.testing.assert_allclose(geometric, fastdrop_keras.weight_scaling(model, x), rtol=1e-5)
    assert (deviation > 0).all()


# Layers that drop weights, blocks of images and samples.

STRUCTURED = {
    "DropConnectDense": lambda: DropConnectDense(4, 0.5, seed=7),
    "DropConnectConv2D": lambda: DropConnectConv2D(4, 2, 0.5, seed=7),
    "DropBlock2D": lambda: DropBlock2D(0.5, 2, seed=7),
    "StochasticDepth": lambda: StochasticDepth(0.5, seed=7),
}


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_models_with_structured_layers(make, jit_compile, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 6, 5, 4)).astype(np.float32)
    y = generator.normal(size=(12, 1)).astype(np.float32)

    def fit(model, **kwargs):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **kwargs)
        return [weight.copy() for weight in model.get_weights()]

    model = keras.Sequential([keras.Input((None, None, 4)), make()])
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(1))
    model.compile("adam", "mse", jit_compile=jit_compile)
    ramp = fastdrop_keras.RateSchedule(lambda epoch: 0.25)
    fit(model, callbacks=[ramp])
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert resumed.layers[0].rate == 0.25
    assert state_of(resumed.layers[0]) == state_of(model.layers[0]) == [7, 3]
    for got, want in zip(fit(resumed), fit(model), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def result_and_gradient(function, x):
    y, gradient = jax.vjp(function, jnp.asarray(x))
    return y, gradient(jnp.ones_like(y))[0]


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
def test_recomputations_of_structured_layers(make):
    layer, other = make(), make()
    x = np.random.default_rng(0).normal(size=(3, 6, 5, 4)).astype(np.float32)
    layer(x), other(x)
    other.set_weights(layer.get_weights())

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for _ in range(2):
        for got, want in zip(
            result_and_gradient(keras.remat(block(layer)), x),
            result_and_gradient(block(other), x),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert state_of(layer) == state_of(other) == [7, 4]


def test_a_model_whose_shapes_keras_computes_by_a_call_of_structured_layers():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.steps = [make() for make in STRUCTURED.values()]

        def call(self, x, training=False):
            for step in self.steps:
                x = step(x, training=training)
            return x

    assert Model()(keras.Input((None, None, 4)), training=True).shape == (None, None, None, 4)


def test_stochastic_depth_of_keras_is_converted_and_back():
    theirs = keras.src.applications.convnext.StochasticDepth(0.3, name="depth")
    model = keras.Sequential([keras.Input((4,)), theirs])
    ours = fastdrop_keras.convert(model, verbose=False)
    assert type(ours.layers[0]) is StochasticDepth
    assert ours.layers[0].rate == 0.3
    back = fastdrop_keras.to_keras(ours, verbose=False).layers[0]
    assert type(back) is type(theirs)
    assert back.drop_path_rate == 0.3


# Layers of noise.

each_noise = pytest.mark.parametrize(
    ("layer_class", "kind", "name"),
    [
        (GaussianDropout, "gaussian_dropout", "rate"),
        (GaussianNoise, "gaussian_noise", "stddev"),
        (AlphaDropout, "alpha_dropout", "rate"),
    ],
)


@each_noise
def test_a_callback_between_steps_may_set_the_parameter_of_noise(layer_class, kind, name):
    layer = layer_class(0.5, seed=3)
    model, recorder = recording_model(layer, 6)

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.jax_state_sync()
            setattr(layer, name, getattr(layer, name) / 2)

    fit(model, epochs=2, callbacks=[Callback()])
    assert recorder.traces == 1
    for step, row in enumerate(np.asarray(recorder.seen)):
        assert_same_bits(row, drawn(kind, np.ones(50, np.float32), 0.5 / 2**step, 3, step))


@each_noise
def test_files_of_layers_of_noise(layer_class, kind, name, tmp_path):
    layer = layer_class(0.5, seed=3)
    model = small_model(layer)
    fit(model)
    setattr(layer, name, 0.25)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[2]) is layer_class
    assert again.layers[2].get_config() == layer.get_config()
    assert getattr(again.layers[2], name) == 0.25
    assert state_of(again.layers[2]) == state_of(layer) == [3, 3]
    fit(model), fit(again)
    assert_same(model, again)


@each_noise
def test_recomputations_of_noise(layer_class, kind, name):
    layer, other = layer_class(0.3, seed=7), layer_class(0.3, seed=7)
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for got, want in zip(
        result_and_gradient(keras.remat(block(layer)), x),
        result_and_gradient(block(other), x),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert state_of(layer) == state_of(other) == [7, 2]


# Layers that learn how much to drop.

ADAPTIVE = {
    "VariationalGaussianDropout": lambda: VariationalGaussianDropout(0.1, "unit", 0.3, seed=7),
    "VariationalDense": lambda: VariationalDense(32, 0.1, initial_rate=0.2, seed=7),
    "ConcreteDropout": lambda: ConcreteDropout(keras.layers.Dense(32), 0.1, 0.2, seed=7),
}
each_adaptive = pytest.mark.parametrize("make", ADAPTIVE.values(), ids=ADAPTIVE)


@each_adaptive
def test_a_learned_rate_is_trained_and_saved(make, tmp_path):
    model = small_model(make())
    layer = model.layers[2]
    rate = np.array(layer.rate)
    first, *_, last = fit(model, epochs=5)["loss"]
    assert last < first
    assert np.all(layer.rate != rate)
    assert state_of(layer) == [7, 15]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_same(model, again)
    fit(model), fit(again)
    assert_same(model, again)


@each_adaptive
def test_recomputations_of_learned_noise(make):
    layer, other = make(), make()
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    layer(x), other(x)
    other.set_weights(layer.get_weights())

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for _ in range(2):
        for got, want in zip(
            result_and_gradient(keras.remat(block(layer)), x),
            result_and_gradient(block(other), x),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert state_of(layer) == state_of(other) == [7, 4]


# The environment.


def test_importing_the_package_imports_no_other_framework():
    """Keras itself imports TensorFlow where it is."""
    code = "import sys, keras; before = {*sys.modules}; import fastdrop_keras; "
    code += "sys.exit(any(name in {*sys.modules} - before for name in ('tensorflow', 'torch')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jax_that_is_not_installed():
    code = "import sys; sys.modules['jax'] = None; import fastdrop_keras"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "JAX is not installed" in done.stderr
    assert 'pip install "fastdrop[jax]"' in done.stderr
