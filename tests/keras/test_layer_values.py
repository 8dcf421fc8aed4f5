"""The layers' results equal the slow reference bit for bit, in eager and in graph mode."""

import concurrent.futures

import keras
import ml_dtypes
import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import assert_same_bits

import fastdrop
import fastdrop_keras
from fastdrop_keras import Dropout

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)


def numbers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def training_call(layer):
    return lambda x: layer(x, training=True)


# Bits.


@pytest.mark.usefixtures("bridge")
@each_dtype
@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 33), (2, 3, 4, 5), (3, 4099)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_bits(expected, run, dtype, shape, rate):
    layer = Dropout(rate, seed=42, dtype=dtype.name)
    f = run(training_call(layer))
    for step in range(3):
        x = numbers(shape, dtype, seed=step)
        y = np.asarray(f(tf.constant(x)).numpy())
        assert_same_bits(y, expected.output(x, rate, 42, step))


@pytest.mark.usefixtures("bridge")
def test_the_array_function_draws_the_same_mask(run):
    layer = Dropout(0.3, seed=42)
    stream = fastdrop.Stream(42)
    f = run(training_call(layer))
    for step in range(3):
        x = numbers((6, 50), seed=step)
        y, _ = fastdrop.dropout(x, 0.3, seed=stream)
        assert_same_bits(f(tf.constant(x)).numpy(), y)


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize(
    ("noise_shape", "full"),
    [
        ((None, 1, None), (None, 1, None)),
        ((4, 1, 6), (4, 1, 6)),
        ((1, 5, 1), (1, 5, 1)),
        ((1, 1, 1), (1, 1, 1)),
        ((None, None, None), (None, None, None)),
        ((5, 6), (1, 5, 6)),
        ((6,), (1, 1, 6)),
    ],
)
def test_noise_shape(expected, run, noise_shape, full):
    x = numbers((4, 5, 6))
    layer = Dropout(0.5, noise_shape=noise_shape, seed=3)
    y = run(training_call(layer))(tf.constant(x))
    assert_same_bits(y.numpy(), expected.output(x, 0.5, 3, noise_shape=full))


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize(
    ("layer", "shape", "noise_shape"),
    [
        (lambda **k: fastdrop_keras.SpatialDropout1D(0.5, **k), (9, 5, 6), (None, 1, None)),
        (
            lambda **k: fastdrop_keras.SpatialDropout2D(0.5, "channels_last", **k),
            (9, 5, 6, 7),
            (None, 1, 1, None),
        ),
        (
            lambda **k: fastdrop_keras.SpatialDropout2D(0.5, "channels_first", **k),
            (9, 5, 6, 7),
            (None, None, 1, 1),
        ),
        (
            lambda **k: fastdrop_keras.SpatialDropout3D(0.5, "channels_last", **k),
            (9, 2, 3, 4, 5),
            (None, 1, 1, 1, None),
        ),
        (
            lambda **k: fastdrop_keras.SpatialDropout3D(0.5, "channels_first", **k),
            (9, 2, 3, 4, 5),
            (None, None, 1, 1, 1),
        ),
    ],
)
def test_spatial_layers_drop_whole_feature_maps(expected, run, layer, shape, noise_shape):
    x = numbers(shape)
    y = run(training_call(layer(seed=3)))(tf.constant(x)).numpy()
    assert_same_bits(y, expected.output(x, 0.5, 3, noise_shape=noise_shape))
    maps = (y == 0).reshape(shape)
    axes = tuple(axis for axis, entry in enumerate(noise_shape) if entry == 1)
    np.testing.assert_array_equal(maps.all(axis=axes), maps.any(axis=axes))


def test_kept_units_are_scaled_to_preserve_the_mean(run):
    y = run(training_call(Dropout(0.5, seed=1337)))(tf.ones((200, 500))).numpy()
    assert set(np.unique(y)) == {0.0, 2.0}
    # Five standard deviations.
    assert abs(y.mean() - 1) < 5 / np.sqrt(y.size)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_the_rate_is_exact_in_every_precision(policy):
    layer = Dropout(0.001, seed=11, dtype=policy)
    size = 1_000_000
    y = np.asarray(layer(tf.ones(size), training=True)).astype(np.float64)
    assert abs((y == 0).sum() - 0.001 * size) < 5 * np.sqrt(0.001 * size)


# Special values and rates.


@pytest.mark.usefixtures("bridge")
@each_dtype
def test_every_dropped_unit_becomes_zero(expected, run, dtype):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, -1.5], dtype)
    x = np.resize(special, (11, 13))
    y = np.asarray(run(training_call(Dropout(0.5, seed=5, dtype=dtype.name)))(tf.constant(x)))
    assert_same_bits(y, expected.output(x, 0.5, 5))
    dropped = ~expected.mask(x.shape, 0.5, 5)
    assert not reference.bit_patterns(y[dropped]).any()


@pytest.mark.usefixtures("bridge")
@each_dtype
def test_rate_zero_changes_no_bit(run, dtype):
    x = np.frombuffer(np.random.default_rng(0).bytes(64 * dtype.itemsize), dtype)
    y = np.asarray(run(training_call(Dropout(0, dtype=dtype.name)))(tf.constant(x)))
    assert_same_bits(y, x, nan_payloads=True)


@pytest.mark.usefixtures("bridge")
@each_dtype
def test_rate_one_gives_zeros(run, dtype):
    x = tf.constant(np.array([1.0, -2.0, np.nan, np.inf], dtype))
    y = np.asarray(run(training_call(Dropout(1, dtype=dtype.name)))(x))
    assert not reference.bit_patterns(y).any()


# Shapes.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0, 2)], ids=str)
def test_empty_inputs(run, shape):
    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, x)

    layer = Dropout(0.5)
    for result in run(f)(tf.ones(shape)):
        assert result.shape == shape


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("static", [(None, 6), (None, None), (4, None), None], ids=str)
@pytest.mark.parametrize("noise_shape", [None, (None, 1), (1, 6)], ids=str)
def test_shapes_known_only_at_run_time(expected, static, noise_shape):
    layer = Dropout(0.5, noise_shape=noise_shape, seed=3)
    f = tf.function(training_call(layer), input_signature=[tf.TensorSpec(static)])
    assert f.get_concrete_function().output_shapes == tf.TensorShape(static)
    for step, batch in enumerate([4] if static and static[0] else [4, 1, 7]):
        x = numbers((batch, 6))
        want = expected.output(x, 0.5, 3, step, noise_shape)
        assert_same_bits(f(tf.constant(x)).numpy(), want)


@pytest.mark.usefixtures("bridge")
def test_time_dimension_known_only_at_run_time(expected):
    layer = fastdrop_keras.SpatialDropout1D(0.5, seed=3)
    spec = tf.TensorSpec((None, None, 6))
    f = tf.function(training_call(layer), input_signature=[spec])
    for step, steps in enumerate([5, 1, 9]):
        x = numbers((4, steps, 6))
        want = expected.output(x, 0.5, 3, step, (None, 1, None))
        assert_same_bits(f(tf.constant(x)).numpy(), want)


# Precision policies.


@pytest.mark.parametrize(
    ("policy", "dtype"),
    [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16"), ("float64", "float64")],
)
def test_dtype_policies_cast_the_input(expected, run, policy, dtype):
    x = numbers((5, 6))
    y = run(training_call(Dropout(0.5, seed=3, dtype=policy)))(tf.constant(x))
    assert y.dtype.name == dtype
    cast = np.asarray(tf.cast(x, dtype))
    assert_same_bits(np.asarray(y), expected.output(cast, 0.5, 3))


# Unchanged inputs.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_a_variable_keeps_its_value(expected, run, rate):
    x = numbers((64, 64))
    for variable in (tf.Variable(x), keras.Variable(x)):
        layer = Dropout(rate, seed=3)
        f = run(lambda layer=layer, variable=variable: layer(variable, training=True))
        assert_same_bits(f().numpy(), expected.output(x, rate, 3))
        assert_same_bits(variable.numpy(), x)


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("rate", [0, 0.5, 1])
def test_another_consumer_of_the_input_sees_it_unchanged(run, rate):
    layer = Dropout(rate, seed=3)

    def f(x):
        x = tf.exp(x)
        y = layer(x, training=True)
        return x, y, x + 0.0

    x = numbers((64, 64))
    before, _, after = run(f)(tf.constant(x))
    assert_same_bits(before.numpy(), tf.exp(x).numpy())
    assert_same_bits(after.numpy(), before.numpy())


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_view_outlives_its_tensor(expected, run, dtype):
    layer = Dropout(0.5, seed=3, dtype=dtype)
    f = run(training_call(layer))
    x = np.asarray(tf.cast(numbers((64, 64)), dtype))
    views = [np.asarray(f(tf.constant(x))) for _ in range(20)]
    for step, view in enumerate(views):
        assert_same_bits(view, expected.output(x, 0.5, 3, step))


@pytest.mark.usefixtures("bridge")
def test_many_threads_call_one_layer(expected, run):
    layer = Dropout(0.5, seed=3)
    x = tf.constant(numbers((64, 64)))
    f = run(training_call(layer))
    f(x)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = {y.numpy().tobytes() for y in threads.map(f, [x] * 40)}
    # Concurrent calls may draw the same step, as with Keras's layer, but never parts of steps.
    steps = {expected.output(x.numpy(), 0.5, 3, step).tobytes() for step in range(1, 41)}
    assert results <= steps


# The argument `training`.


@pytest.mark.parametrize("training", [True, 1, np.bool_(True), tf.constant(True)], ids=repr)
def test_training(expected, run, training):
    x = numbers((5, 6))
    layer = Dropout(0.5, seed=3)
    y = run(lambda x: layer(x, training=training))(tf.constant(x))
    assert_same_bits(y.numpy(), expected.output(x, 0.5, 3))


@pytest.mark.parametrize(
    "training", [False, None, 0, np.bool_(False), tf.constant(False)], ids=repr
)
def test_inference(run, training):
    x = numbers((5, 6))
    layer = Dropout(0.5, seed=3)
    y = run(lambda x: layer(x, training=training))(tf.constant(x))
    assert_same_bits(y.numpy(), x)
    assert layer.seed_generator.state.numpy().tolist() == [3, 0]


@pytest.mark.usefixtures("bridge")
def test_training_as_an_input_of_the_graph(expected):
    layer = Dropout(0.5, seed=3)

    @tf.function
    def f(x, training):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
        return y, tape.gradient(y, x)

    x = tf.constant(numbers((5, 6)))
    for step, training in enumerate([True, True]):
        y, dx = f(x, tf.constant(training))
        assert_same_bits(y.numpy(), expected.output(x.numpy(), 0.5, 3, step))
        np.testing.assert_array_equal(dx, expected.factors((5, 6), 0.5, 3, step))
    y, dx = f(x, tf.constant(False))
    assert_same_bits(y.numpy(), x.numpy())
    np.testing.assert_array_equal(dx, np.ones((5, 6)))
    assert layer.seed_generator.state.numpy().tolist() == [3, 2]


def test_training_as_a_variable(expected, run):
    layer = Dropout(0.5, seed=3)
    training = tf.Variable(False)
    x = tf.constant(numbers((5, 6)))
    f = run(lambda x: layer(x, training=training))
    assert_same_bits(f(x).numpy(), x.numpy())
    training.assign(True)
    assert_same_bits(f(x).numpy(), expected.output(x.numpy(), 0.5, 3))


def test_inference_is_the_input_itself():
    layer = Dropout(0.5)
    x = tf.ones((2, 3))
    assert layer(x) is x
    graph = tf.function(lambda x: layer(x, training=False)).get_concrete_function(x).graph
    assert {op.type for op in graph.get_operations()} <= {"Placeholder", "Identity"}


def test_training_is_one_operation_in_the_graph(bridge):
    layer = Dropout(0.5)
    graph = tf.function(training_call(layer)).get_concrete_function(tf.ones((2, 3))).graph
    types = [op.type for op in graph.get_operations()]
    assert types.count("FastdropForward") == (bridge == "native")
    assert types.count("PyFuncStateless") == (bridge == "numpy_function")
    assert "PyFunc" not in types
    # There are also two reads, of the seed's state and the rate, and an advance of the state.
    assert (types.count("ReadVariableOp"), types.count("AssignAddVariableOp")) == (2, 1)


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("threads", [1, 3])
def test_every_instruction_set_and_number_of_threads(expected, run, isa, threads):
    shape = (700, 800)
    layers = {None: Dropout(0.3, seed=3), (None, 1): Dropout(0.3, (None, 1), seed=3)}

    def gradients(x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            outputs = [layer(x, training=True) for layer in layers.values()]
        return outputs, [tape.gradient(y, x) for y in outputs]

    with fastdrop.num_threads(threads):
        outputs, dxs = run(gradients)(tf.ones(shape))
    for noise_shape, y, dx in zip(layers, outputs, dxs, strict=True):
        factors = expected.factors(shape, 0.3, 3, noise_shape=noise_shape)
        np.testing.assert_array_equal(y, factors)
        np.testing.assert_array_equal(dx, factors)


@pytest.mark.usefixtures("bridge")
def test_up_to_64_dimensions(expected, run):
    # NumPy 1 has 32.
    ones = (1,) * (62 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 30)
    x = numbers((20, 33)).reshape(20, 33, *ones)
    y = run(training_call(Dropout(0.5, seed=3)))(tf.constant(x))
    assert_same_bits(y.numpy(), expected.output(x, 0.5, 3))
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"64|ndim|dimension"):
        run(training_call(Dropout(0.5)))(tf.ones((2, 3, *ones, 1)))


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_spatial_layers_refuse_other_dtypes(run, spatial):
    layer = getattr(fastdrop_keras, f"SpatialDropout{spatial}D")(0.5)
    with pytest.raises(TypeError, match="dtype int32"):
        run(training_call(layer))(tf.ones((2,) * (spatial + 2), tf.int32))


@pytest.mark.parametrize("inputs", [None, {"a": 1}, "text"], ids=repr)
def test_inputs_that_are_not_tensors(inputs):
    with pytest.raises(TypeError, match=f"Received: {type(inputs).__name__}"):
        fastdrop_keras.bridge.dropout(inputs, tf.constant([1, 0]), tf.constant(0.5, tf.float64))


@pytest.mark.usefixtures("bridge")
def test_two_rates_in_one_graph(expected):
    layer = Dropout(0.5, seed=3)

    @tf.function
    def f(x):
        layer.rate = 0.1
        a = layer(x, training=True)
        layer.rate = 0.9
        return a, layer(x, training=True)

    x = tf.ones((5, 33))
    for step in (0, 2):
        a, b = f(x)
        np.testing.assert_array_equal(a, expected.factors((5, 33), 0.1, 3, step))
        np.testing.assert_array_equal(b, expected.factors((5, 33), 0.9, 3, step + 1))
        # Elsewhere it is the last one, until it is set.
        assert layer.rate == 0.9
        layer.rate = 0.9
    layer.rate = 0.0
    assert np.all(layer(x, training=True) == x)


def test_a_rate_set_in_a_function_does_not_apply_to_functions_that_it_calls():
    layer = Dropout(0.5, seed=3)
    inner = tf.function(lambda x: layer(x, training=True))

    @tf.function
    def outer(x):
        layer.rate = 0.9
        return inner(x)

    x = tf.ones(1000)
    outer(x)
    layer.rate = 0.0
    np.testing.assert_array_equal(inner(x), x)
