"""GaussianDropout, GaussianNoise and AlphaDropout equal the slow reference on every bridge."""

import math
import re

import keras
import ml_dtypes
import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import assert_same_bits

import fastdrop
import fastdrop_keras
from fastdrop_keras import AlphaDropout, GaussianDropout, GaussianNoise, xla_bridge
from fastdrop_keras.backend import BACKEND

LAYERS = [GaussianDropout, GaussianNoise, AlphaDropout]
each_layer = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda cls: cls.__name__)
DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
needs_xla = pytest.mark.skipif(bool(xla_bridge.WHY_NOT), reason=xla_bridge.WHY_NOT or "XLA works")

WAYS = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


@pytest.fixture(
    params=[
        ("eager", "native"),
        ("graph", "native"),
        ("eager", "numpy_function"),
        ("graph", "numpy_function"),
        pytest.param(("xla", "native"), marks=needs_xla),
    ],
    ids="-".join,
)
def way(request):
    """Runs a function of tensors eagerly, in a graph or compiled by XLA, with a bridge."""
    name, bridge = request.param
    before = fastdrop_keras.get_bridge()
    fastdrop_keras.set_bridge(bridge)
    yield WAYS[name]
    fastdrop_keras.set_bridge(before)


def numbers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def training_call(layer):
    return lambda x: layer(x, training=True)


def expected(layer_class, x, parameter, seed, step=0, noise_shape=None):
    """The layer's output for the array `x`."""
    noise_shape = reference.resolve_noise_shape(x.shape, noise_shape)
    size = math.prod(noise_shape)
    if layer_class is AlphaDropout:
        kept = reference.keep_mask(seed, step, parameter, size).reshape(noise_shape)
        return reference.alpha_dropout(x, np.broadcast_to(kept, x.shape), parameter)
    drawn = reference.normals(seed, step, size).reshape(noise_shape)
    additive = layer_class is GaussianNoise
    stddev = parameter if additive else reference.gaussian_stddev(parameter)
    return reference.noised(x, np.broadcast_to(drawn, x.shape), stddev, additive)


def expected_gradient(layer_class, dy, parameter, seed, step=0):
    """The product of the array `dy` and the derivative of the layer."""
    if layer_class is GaussianNoise:
        return dy
    if layer_class is GaussianDropout:
        return expected(GaussianDropout, dy, parameter, seed, step)
    kept = reference.keep_mask(seed, step, parameter, dy.size).reshape(dy.shape)
    return reference.dropout(dy, kept, reference.alpha_scale(parameter))


# Values.


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(), (1,), (5, 33), (3, 4099)], ids=str)
def test_bits(layer_class, way, dtype, shape):
    layer = layer_class(0.3, seed=42, dtype=dtype.name)
    f = way(training_call(layer))
    for step in range(2):
        x = numbers(shape, dtype, seed=step)
        y = np.asarray(f(tf.constant(x)).numpy())
        assert_same_bits(y, expected(layer_class, x, 0.3, 42, step))


@pytest.mark.parametrize(
    "noise_shape", [(None, 1, None), (4, 1, 6), (1, 1, 1), (5, 6), (None, None, None)], ids=str
)
def test_noise_shape_of_alpha_dropout(way, noise_shape):
    x = numbers((4, 5, 6))
    layer = AlphaDropout(0.5, noise_shape, seed=3)
    y = way(training_call(layer))(tf.constant(x))
    assert_same_bits(y.numpy(), expected(AlphaDropout, x, 0.5, 3, noise_shape=noise_shape))


@each_layer
def test_unknown_shapes(layer_class):
    layer = layer_class(0.3, seed=42)
    f = tf.function(training_call(layer), input_signature=[tf.TensorSpec(None)])
    for step, shape in enumerate([(5, 33), (), (2, 3, 4)]):
        x = numbers(shape)
        assert_same_bits(np.asarray(f(x)), expected(layer_class, x, 0.3, 42, step))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@each_layer
def test_mixed_precision(layer_class, way, policy):
    layer = layer_class(0.3, seed=42, dtype=policy)
    x = numbers((5, 33))
    y = way(training_call(layer))(tf.constant(x))
    assert y.dtype.name == layer.compute_dtype
    half = tf.cast(x, y.dtype).numpy()
    assert_same_bits(y.numpy(), expected(layer_class, half, 0.3, 42))


@each_layer
def test_inference_returns_the_inputs(layer_class, way):
    layer = layer_class(0.3, seed=42)
    x = tf.constant([1.0, float("nan"), -0.0])
    assert_same_bits(way(layer)(x).numpy(), x.numpy())
    assert layer.seed_generator.state.numpy().tolist() == [42, 0]


@each_layer
def test_zero_returns_the_inputs_bit_for_bit(layer_class, way):
    x = np.array([1, -0.0, np.nan, np.inf, 1e-42], np.float32)
    y = way(training_call(layer_class(0, seed=42)))(tf.constant(x))
    np.testing.assert_array_equal(y.numpy().view(np.uint32), x.view(np.uint32))


def test_alpha_dropout_at_rate_one_is_all_zeros(way):
    x = tf.constant([1.0, float("nan"), float("inf")])
    layer = AlphaDropout(1, seed=42)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x)

    for result in way(gradient)(x):
        np.testing.assert_array_equal(result.numpy().view(np.uint32), 0)


def test_dropped_units_of_alpha_dropout_forget_what_they_were(way):
    x = numbers((5, 33))
    y = expected(AlphaDropout, x, 0.5, 42)
    kept = reference.keep_mask(42, 0, 0.5, x.size).reshape(x.shape)
    x[~kept] = np.array([np.nan, np.inf, -np.inf])[np.arange((~kept).sum()) % 3]
    assert_same_bits(way(training_call(AlphaDropout(0.5, seed=42)))(tf.constant(x)).numpy(), y)


@each_layer
def test_the_input_is_not_changed(layer_class, way):
    x = tf.constant(numbers((64, 64)))
    before = x.numpy().copy()
    way(training_call(layer_class(0.3)))(x)
    np.testing.assert_array_equal(x.numpy(), before)


@each_layer
def test_training_may_be_a_tensor(layer_class, way):
    layer = layer_class(0.3, seed=42)
    x = numbers((5, 33))
    f = way(lambda x, training: layer(x, training=training))
    assert_same_bits(f(tf.constant(x), tf.constant(False)).numpy(), x)
    y = expected(layer_class, x, 0.3, 42)
    assert_same_bits(f(tf.constant(x), tf.constant(True)).numpy(), y)


@each_layer
def test_the_parameter_changes_without_retracing(layer_class, way):
    layer = layer_class(0.3, seed=42)
    name = "stddev" if layer_class is GaussianNoise else "rate"
    f = way(training_call(layer))
    x = numbers((5, 33))
    for step, value in enumerate([0.3, 0.5, 0, 0.25]):
        setattr(layer, name, value)
        y = f(tf.constant(x))
        assert_same_bits(y.numpy(), expected(layer_class, x, value, 42, step))
    if hasattr(f, "experimental_get_tracing_count"):
        assert f.experimental_get_tracing_count() == 1


def test_deviations_above_one(way):
    x = numbers((5, 33))
    y = way(training_call(GaussianNoise(1000, seed=42)))(tf.constant(x))
    assert_same_bits(y.numpy(), expected(GaussianNoise, x, 1000, 42))


# Gradients.


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_gradients_of_two_orders(layer_class, way, dtype):
    layer = layer_class(0.3, seed=42, dtype=dtype.name)
    x, dy, v = (tf.constant(numbers((5, 33), dtype, seed=s)) for s in range(3))

    def gradients(x, dy, v):
        with tf.GradientTape() as outer:
            outer.watch(dy)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
            dx = tape.gradient(y, x, output_gradients=dy)
        return dx, outer.gradient(dx, dy, output_gradients=v)

    dx, second = way(gradients)(x, dy, v)
    assert_same_bits(dx.numpy(), expected_gradient(layer_class, dy.numpy(), 0.3, 42))
    assert_same_bits(second.numpy(), expected_gradient(layer_class, v.numpy(), 0.3, 42))


@each_layer
def test_forward_mode(layer_class, way):
    layer = layer_class(0.3, seed=42)
    x, tangent = (tf.constant(numbers((5, 33), seed=s)) for s in range(2))

    def derivative(x, tangent):
        with tf.autodiff.ForwardAccumulator(x, tangent) as accumulator:
            y = layer(x, training=True)
        return accumulator.jvp(y)

    dy = way(derivative)(x, tangent)
    assert_same_bits(dy.numpy(), expected_gradient(layer_class, tangent.numpy(), 0.3, 42))


@each_layer
def test_the_gradient_has_the_parameter_of_its_forward_pass(layer_class, way):
    layer = layer_class(0.3, seed=42)
    f = way(training_call(layer))
    x = tf.constant(numbers((5, 33)))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = f(x)
    layer._rate.value = 0.9
    dx = tape.gradient(y, x, output_gradients=x)
    assert_same_bits(dx.numpy(), expected_gradient(layer_class, x.numpy(), 0.3, 42))


@each_layer
def test_a_sparse_gradient(layer_class, way):
    layer = layer_class(0.3, seed=42)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.gather(layer(x, training=True), [1, 1, 3])
        return tf.convert_to_tensor(tape.gradient(y, x))

    dy = np.zeros((5, 33), np.float32)
    dy[[1, 3]] = [[2], [1]]
    dx = way(gradient)(tf.constant(numbers((5, 33))))
    assert_same_bits(dx.numpy(), expected_gradient(layer_class, dy, 0.3, 42))


@each_layer
def test_vectorized_map(layer_class, way):
    """Each iteration draws noise of its own, by its number as the seed's high word."""
    layer = layer_class(0.3, seed=42)
    x = numbers((4, 33))

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x, output_gradients=x)

    y, dx = way(lambda x: tf.vectorized_map(gradient, x))(tf.constant(x))
    for i in range(4):
        seed = 42 + (i << 64)
        assert_same_bits(y[i].numpy(), expected(layer_class, x[i], 0.3, seed))
        assert_same_bits(dx[i].numpy(), expected_gradient(layer_class, x[i], 0.3, seed))


@each_layer
def test_checkpointing_uses_the_noise_of_the_forward_pass(layer_class, way):
    layer = layer_class(0.3, seed=42)
    block = keras.remat(lambda x: layer(x, training=True) ** 2)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x)
        return y, tape.gradient(y, x)

    x = numbers((5, 33))
    y, dx = way(gradient)(tf.constant(x))
    drawn = expected(layer_class, x, 0.3, 42)
    np.testing.assert_allclose(y, drawn**2, rtol=1e-6)
    slope = expected_gradient(layer_class, 2 * drawn, 0.3, 42)
    np.testing.assert_allclose(dx, slope, rtol=1e-5, atol=1e-6)
    assert layer.seed_generator.state.numpy().tolist() == [42, 1]


# Decisions at a rate for each element.


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_bernoulli_keeps_what_the_array_function_keeps(way, dtype):
    rates = np.random.default_rng(1).random((5, 4099)).astype(dtype)
    rates[0, :9] = [0, 1, 0, 1, 0, 1, 0, 1, 0]
    seed, unused = tf.constant([42, 3], tf.int64), tf.constant(0.0, tf.float64)

    def gradient(rates):
        with tf.GradientTape() as tape:
            tape.watch(rates)
            y = BACKEND.draw("bernoulli", rates, seed, unused)
        return y, tape.gradient(y, rates, unconnected_gradients="zero")

    y, slope = way(gradient)(tf.constant(rates))
    stream = fastdrop.Stream(42)
    stream.state = {"seed": 42, "step": 3}
    kept = np.asarray(fastdrop.dropout(np.ones_like(rates), rates, seed=stream)[1])
    assert_same_bits(y.numpy(), kept.astype(dtype))
    assert_same_bits(slope.numpy(), np.zeros_like(rates))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_bernoulli_of_a_scalar_is_that_of_one_element(way, dtype):
    unused = tf.constant(0.0, tf.float64)
    for step in range(8):
        seed, rates = tf.constant([42, step], tf.int64), tf.constant([0.5], dtype)
        draw = way(lambda rates, seed=seed: BACKEND.draw("bernoulli", rates, seed, unused))
        assert float(draw(rates[0])) == float(draw(rates)[0])


@pytest.mark.parametrize("rate", [-0.5, 1.5, math.nan])
def test_bernoulli_refuses_other_rates(way, rate):
    rates = tf.constant([0.5, rate, 0.5])
    seed, unused = tf.constant([42, 3], tf.int64), tf.constant(0.0, tf.float64)
    with pytest.raises((ValueError, tf.errors.OpError), match="`rate` must be"):
        way(lambda rates: BACKEND.draw("bernoulli", rates, seed, unused))(rates)


@needs_xla
def test_bernoulli_in_a_vectorized_map_with_one_seed():
    """All iterations share the numbers of one seed."""
    rates = tf.constant(np.random.default_rng(1).random((4, 33)), tf.float32)
    seed, unused = tf.constant([42, 3], tf.int64), tf.constant(0.0, tf.float64)

    def draw(rates):
        return BACKEND.draw("bernoulli", rates, seed, unused)

    y = tf.function(lambda rates: tf.vectorized_map(draw, rates), jit_compile=True)(rates)
    for i in range(4):
        assert_same_bits(y[i].numpy(), draw(rates[i]).numpy())


# Operations.


@each_layer
def test_a_graph_saves_no_tensor_of_the_size_of_the_input(layer_class):
    """The gradient's operation needs the seed and the rate alone."""
    if fastdrop_keras.get_bridge() != "native":
        pytest.skip("for native operations")
    layer = layer_class(0.3)

    @tf.function
    def gradient(x):
        y = layer(x, training=True)
        return y, tf.gradients(y, x)[0]

    graph = gradient.get_concrete_function(tf.TensorSpec((5, 33))).graph
    drawn = [op for op in graph.get_operations() if op.type == "FastdropDraw"]
    assert len(drawn) == (1 if layer_class is GaussianNoise else 2)
    forward, *backward = ([tensor.name for tensor in op.inputs] for op in drawn)
    for x, *others in backward:
        assert others == forward[1:]
        assert x not in (forward[0], drawn[0].outputs[0].name)


def operation(x=None, **arguments):
    operations = fastdrop_keras.native_bridge.OPERATIONS
    if operations is None:
        pytest.skip("no native operations")
    given = {"seed": [7, 3], "parameter": 0.5, "kind": 1, "stream": 2} | arguments
    return operations.fastdrop_draw(
        x=tf.ones((2, 3)) if x is None else x,
        **given | {"seed": tf.constant(given["seed"], tf.int64)},
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameter": 1.0}, "`rate` must be below 1 for Gaussian dropout. Received: 1"),
        ({"parameter": -0.5}, "`rate` must be from 0 to 1. Received: -0.5"),
        ({"parameter": 1.5, "kind": 3}, "`rate` must be from 0 to 1. Received: 1.5"),
        ({"parameter": -0.5, "kind": 2}, "`stddev` must be finite and at least 0. Received: -0.5"),
        ({"parameter": math.inf, "kind": 2}, "`stddev` must be finite and at least 0"),
        ({"parameter": math.nan, "kind": 2}, "`stddev` must be finite and at least 0"),
        ({"parameter": [0.5], "kind": 2}, "`stddev` must be a scalar. Received: a tensor of rank"),
        ({"seed": [7]}, "`seed` must hold 2 or 3 integers"),
        ({"kind": 99}, "This fastdrop has no random operation of kind 99"),
        ({"kind": -1}, "This fastdrop has no random operation of kind -1"),
        ({"stream": 1}, "made with random stream 1, and the installed fastdrop draws stream 2"),
        ({"noise_shape": [2, 2], "noise_rank": 2}, "`noise_shape`"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_operation(arguments, message):
    with pytest.raises(tf.errors.OpError, match=re.escape(message)):
        operation(**arguments)


@each_layer
def test_a_rate_that_is_wrong_at_run_time(layer_class, way):
    """Only a variable of the layer's own could have it."""
    layer = layer_class(0.3, seed=42)
    layer._rate.value = math.nan
    with pytest.raises((ValueError, tf.errors.OpError)):
        way(training_call(layer))(tf.ones((2, 3)))


@each_layer
@needs_xla
def test_either_bridge_draws_the_same_as_numpy_and_xla(layer_class):
    function = {
        GaussianDropout: fastdrop.gaussian_dropout,
        GaussianNoise: fastdrop.gaussian_noise,
        AlphaDropout: fastdrop.alpha_dropout,
    }[layer_class]
    x = numbers((50, 333))
    y, _ = function(x, 0.3, seed=42)
    for make in WAYS.values():
        layer = layer_class(0.3, seed=42)
        assert_same_bits(make(training_call(layer))(tf.constant(x)).numpy(), y)


# Arguments, and what Keras's classes have.


@pytest.mark.parametrize("rate", [1, 1.0, np.float32(1), tf.constant(1.0)], ids=str)
def test_gaussian_dropout_refuses_rate_one(rate):
    layer = GaussianDropout(0.25)
    for attempt in (lambda: GaussianDropout(rate), lambda: setattr(layer, "rate", rate)):
        with pytest.raises(
            ValueError,
            match=r"argument `rate`\. Expected a float value of at least 0 and below 1\. "
            r"Received: rate=",
        ):
            attempt()
    assert layer.rate == 0.25


@pytest.mark.parametrize(
    "stddev",
    [-0.5, -1e-9, math.nan, math.inf, 10**400, True, None, "0.5", [0.5], np.array([0.5]), 0.5j],
    ids=str,
)
def test_bad_stddev(stddev):
    error = ValueError if isinstance(stddev, (int, float)) and stddev is not True else TypeError
    layer = GaussianNoise(0.25)
    for attempt in (lambda: GaussianNoise(stddev), lambda: setattr(layer, "stddev", stddev)):
        with pytest.raises(
            error,
            match=r"argument `stddev`\. Expected a finite float value of at least 0\. "
            r"Received: stddev=",
        ):
            attempt()
    assert layer.stddev == 0.25


@pytest.mark.parametrize(
    "stddev", [0, 1, 2.5, 1e30, np.float32(0.5), np.int64(3), tf.constant(0.5)], ids=str
)
def test_good_stddev(stddev):
    layer, other = GaussianNoise(stddev), GaussianNoise(0.75)
    other.stddev = stddev
    assert layer.stddev == other.stddev == float(stddev)
    assert type(layer.stddev) is type(other.stddev) is float
    assert layer.get_config()["stddev"] == float(stddev)


def test_noise_has_no_rate():
    layer = GaussianNoise(0.5)
    assert not hasattr(layer, "rate")
    assert "rate" not in layer.get_config()


# Models.


def noisy_model(rate=0.3):
    return keras.Sequential(
        [
            keras.Input((33,)),
            GaussianDropout(rate, seed=1, name="gaussian_dropout"),
            GaussianNoise(rate, seed=2, name="gaussian_noise"),
            AlphaDropout(rate, (None, 1), seed=3, name="alpha_dropout"),
        ]
    )


def assert_same_layers(model, other):
    for layer, again in zip(model.layers, other.layers, strict=True):
        assert type(again) is type(layer)
        assert again.get_config() == layer.get_config()
        state = layer.seed_generator.state.numpy()
        np.testing.assert_array_equal(again.seed_generator.state.numpy(), state)


def test_files_have_the_parameters_and_the_states(tmp_path):
    model = noisy_model()
    x = numbers((5, 33))
    model(x, training=True)
    model.layers[1].stddev = 2.5
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same_layers(model, loaded)
    model.save_weights(tmp_path / "model.weights.h5")
    other = noisy_model()
    other.load_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
    third = noisy_model()
    tf.train.Checkpoint(third).read(str(tmp_path / "checkpoint")).assert_consumed()
    other.layers[1].stddev = third.layers[1].stddev = 2.5
    y = model(x, training=True).numpy()
    for one in (loaded, other, third):
        assert_same_bits(one(x, training=True).numpy(), y)


@each_layer
@pytest.mark.parametrize("name", ["graph", pytest.param("xla", marks=needs_xla)])
def test_a_saved_model(layer_class, name, tmp_path):
    """A file of TensorFlow's has the operations; their gradients know the kind."""
    if fastdrop_keras.get_bridge() != "native":
        pytest.skip("a SavedModel has no Python functions")
    module = tf.Module()
    module.layer = layer = layer_class(0.3, seed=42)
    call = tf.function(
        training_call(layer),
        input_signature=[tf.TensorSpec((None, 33))],
        jit_compile=name == "xla",
    )
    module.call = call
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    x = numbers((5, 33))
    with tf.GradientTape() as tape:
        tape.watch(variable := tf.constant(x))
        y = loaded.call(variable)
    assert_same_bits(y.numpy(), expected(layer_class, x, 0.3, 42))
    dx = tape.gradient(y, variable, output_gradients=variable)
    assert_same_bits(dx.numpy(), expected_gradient(layer_class, x, 0.3, 42))


def test_mc_predict_drops_and_adds_no_noise():
    x = np.ones((64, 33), np.float32)
    for layer, deviation in [
        (GaussianDropout(0.5), 1.0),
        (AlphaDropout(0.5), reference.alpha_scale(0.5) * (1 + reference.ALPHA) / 2),
    ]:
        model = keras.Sequential([keras.Input((33,)), GaussianNoise(9), layer])
        mean, found = fastdrop_keras.mc_predict(model, x, 200, seed=1, verbose=False)
        np.testing.assert_allclose(found.mean(), deviation, rtol=0.02)
        center = mean.mean()
        shift = reference.alpha_scale(0.5) * (1 + reference.ALPHA) / 2
        shift -= reference.ALPHA * reference.alpha_scale(0.5) / 2
        np.testing.assert_allclose(
            center, 1 if isinstance(layer, GaussianDropout) else shift, atol=0.02
        )
    shared = fastdrop_keras.mc_predict(model, x, 3, shared_masks=True, verbose=False)[0]
    np.testing.assert_array_equal(shared, np.broadcast_to(shared[0], shared.shape))
    only_noise = keras.Sequential([keras.Input((33,)), GaussianNoise(9)])
    with pytest.raises(ValueError, match="has none"):
        fastdrop_keras.mc_predict(only_noise, x, 3)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
def test_a_schedule_sets_rates_and_no_deviations():
    model = noisy_model()
    model.compile("sgd", "mse")
    schedule = fastdrop_keras.RateSchedule(lambda epoch: 0.1 * epoch)
    x = numbers((8, 33))
    model.fit(x, x, epochs=3, verbose=0, callbacks=[schedule])
    assert [layer.get_config().get("rate") for layer in model.layers] == [0.2, None, 0.2]
    assert model.layers[1].stddev == 0.3
    schedule = fastdrop_keras.RateSchedule(lambda epoch: 1)
    with pytest.raises(ValueError, match=r"`schedule` must return.*below 1.*schedule\(0\)=1"):
        model.fit(x, x, verbose=0, callbacks=[schedule])
    assert [layer.get_config().get("rate") for layer in model.layers] == [0.2, None, 0.2]


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=needs_xla)])
def test_a_model_trains(jit_compile):
    x = keras.Input((33,))
    y = noisy_model(0.1)(keras.layers.Dense(33, activation="selu")(x))
    model = keras.Model(x, keras.layers.Dense(1)(y))
    model.compile("adam", "mse", jit_compile=jit_compile)
    x = numbers((64, 33))
    history = model.fit(x, x[:, :1], epochs=5, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]


@each_layer
def test_conversion_and_back(layer_class):
    theirs = getattr(keras.layers, layer_class.__name__)
    shape = {"noise_shape": (None, 1)} if layer_class is AlphaDropout else {}
    model = keras.Sequential([keras.Input((33,)), theirs(0.25, seed=7, name="d", **shape)])
    model(numbers((5, 33)), training=True)
    ours, report = fastdrop_keras.convert(model, verbose=False, return_report=True)
    layer = ours.layers[0]
    assert type(layer) is layer_class
    assert isinstance(layer, theirs)
    assert report.unchanged == ()
    assert layer.get_config() == model.layers[0].get_config()
    assert layer.seed_generator.state.numpy().tolist() == [7, 1]
    back = fastdrop_keras.to_keras(ours, verbose=False)
    assert type(back.layers[0]) is theirs
    assert back.layers[0].get_config() == model.layers[0].get_config()
    in_place = fastdrop_keras.convert(back, in_place=True, verbose=False)
    assert type(in_place.layers[0]) is layer_class


@each_layer
def test_conversion_of_a_layer_that_had_another_first_parameter(layer_class):
    layer = layer_class(0.25, seed=7)
    name = "stddev" if layer_class is GaussianNoise else "rate"
    setattr(layer, name, 0)
    model = fastdrop_keras.to_keras(keras.Sequential([layer]), verbose=False)
    assert getattr(model.layers[0], name) == 0
    assert model.layers[0].seed_generator.state.numpy().tolist() == [7, 0]


def test_layers_that_cannot_be_converted_are_reported():
    model = keras.Sequential([keras.Input((3,)), keras.layers.GaussianDropout(1, name="one")])
    report = fastdrop_keras.convert(model, verbose=False, return_report=True)[1]
    assert "below 1" in report.unchanged[0].note
    model = keras.Sequential([keras.Input((3,)), GaussianNoise(2, name="two")])
    report = fastdrop_keras.to_keras(model, verbose=False, return_report=True)[1]
    assert "`stddev`" in report.unchanged[0].note


@each_layer
def test_enabled_classes_make_our_layers(layer_class):
    theirs = getattr(keras.layers, layer_class.__name__)
    with fastdrop_keras.enabled():
        assert type(theirs(0.5)) is layer_class
    assert type(theirs(0.5)) is theirs
