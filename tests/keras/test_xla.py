"""Functions that XLA compiles draw the same masks as eager calls and graphs, or are refused."""

import importlib
import math
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from pairwise import pairs_of
from reference import assert_same_bits

import fastdrop_keras
from fastdrop_keras import Dropout, xla_bridge
from fastdrop_keras.bridge import dropout

SHAPE = (5, 33)
CALL = "XlaCallModule"

# Older ones have no foreign functions of XLA, which then does not compile the layers.
supported = sys.platform == "linux" and tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 18)
needs_xla = pytest.mark.skipif(not supported, reason="this TensorFlow has no foreign functions")


def numbers(shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(0).normal(0, 1, shape).astype(dtype)


def compiled(function=None, **options):
    return tf.function(function, jit_compile=True, **options)


def training_call(layer):
    return lambda x: layer(x, training=True)


def gradient(function):
    def of(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x)

    return of


@needs_xla
def test_xla_can_call_the_kernels():
    assert not xla_bridge.WHY_NOT
    assert Dropout(0.5).supports_jit


# Masks.

DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(), (5,), SHAPE, (2, 3, 5), (2, 3, 4, 5), (2, 3, 1, 4, 5), (0, 3), (3, 0), (513, 1027)]


@needs_xla
@pairs_of("shape dtype rate", SHAPES, DTYPES, [0.0, 0.2, 0.5, 1.0])
def test_bits(isa, expected, shape, dtype, rate):
    layer, eager, graph = (Dropout(rate, seed=3, dtype=dtype) for _ in range(3))
    x = tf.cast(tf.constant(numbers(shape)), dtype)
    f, g = compiled(training_call(layer)), tf.function(training_call(graph))
    for step in range(2):
        y = np.asarray(f(x).numpy())
        assert_same_bits(y, expected.output(np.asarray(x.numpy()), rate, 3, step))
        assert_same_bits(y, np.asarray(eager(x, training=True).numpy()))
        assert_same_bits(y, np.asarray(g(x).numpy()))
    assert layer.seed_generator.state.numpy().tolist() == [3, 2]


@needs_xla
@pytest.mark.parametrize("known", [SHAPE, (None, 33), (None, None), None], ids=str)
@pytest.mark.parametrize("noise_shape", [None, (None, 1), (1, None), (5, 1), (33,), (1,), ()])
def test_noise_shapes(expected, noise_shape, known):
    layer = Dropout(0.5, noise_shape, seed=3)
    f = compiled(
        lambda x: (layer(x, training=True), gradient(training_call(layer))(x)),
        input_signature=[tf.TensorSpec(known)],
    )
    full = None if noise_shape is None else (1,) * (2 - len(noise_shape)) + noise_shape
    for step, result in enumerate(f(tf.ones(SHAPE))):
        np.testing.assert_array_equal(result, expected.factors(SHAPE, 0.5, 3, step, full))


@needs_xla
@pytest.mark.parametrize("noise_shape", [(4, 1), (1, 4, 2), (2, None), (None, 1, 1)], ids=str)
@pytest.mark.parametrize("known", [(None, None), None], ids=str)
def test_a_noise_shape_that_does_not_fit(noise_shape, known):
    layer = Dropout(0.5, noise_shape)
    f = compiled(training_call(layer), input_signature=[tf.TensorSpec(known)])
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"noise_shape|shape"):
        f(tf.ones(SHAPE))


@needs_xla
def test_sizes_beyond_32_bits():
    layer = Dropout(0.5)
    x = tf.reshape(tf.zeros(0), tf.constant((0, 2**32, 2**33), tf.int64))
    assert compiled(training_call(layer))(x).shape == x.shape


@needs_xla
def test_the_high_word_of_a_seed(expected):
    seed = tf.constant((7, 3, 9), tf.int64)
    f = compiled(lambda x: dropout(x, seed, tf.constant(0.5, tf.float64))[0])
    want = expected.factors(SHAPE, 0.5, (9 << 64) | 7, 3)
    np.testing.assert_array_equal(f(tf.ones(SHAPE)), want)


@needs_xla
def test_either_bridge_outside_of_xla(bridge, expected):
    layer = Dropout(0.5, seed=3)
    f, g = compiled(training_call(layer)), tf.function(training_call(layer))
    for step, function in enumerate((f, g, f, g)):
        y = function(tf.ones(SHAPE))
        np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 3, step))


@needs_xla
def test_the_rate_changes_without_retracing(expected):
    layer = Dropout(0.5, seed=3)
    f = compiled(training_call(layer))
    for step, rate in enumerate((0.5, 0.0, 1.0, 0.2)):
        layer.rate = rate
        want = expected.factors(SHAPE, rate, 3, step)
        np.testing.assert_array_equal(f(tf.ones(SHAPE)), want)
    assert f.experimental_get_tracing_count() == 1


@needs_xla
def test_training_may_be_a_tensor(expected):
    layer = Dropout(0.5, seed=3)
    f = compiled(lambda x, training: layer(x, training=training))
    np.testing.assert_array_equal(f(tf.ones(SHAPE), tf.constant(False)), np.ones(SHAPE))
    want = expected.factors(SHAPE, 0.5, 3)
    np.testing.assert_array_equal(f(tf.ones(SHAPE), tf.constant(True)), want)


@needs_xla
def test_a_stateless_call(expected):
    layer = Dropout(0.5, seed=3)
    state = layer.seed_generator.state
    f = compiled(lambda x, seed: layer.stateless_call([], [seed], x, training=True))
    y, (after,) = f(tf.ones(SHAPE), state.value)
    np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, 3))
    assert after.numpy().tolist() == [3, 1]
    assert state.numpy().tolist() == [3, 0]


# Gradients.


@needs_xla
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "outside"])
def test_gradients_of_three_orders(expected, outside):
    layer = Dropout(0.5, seed=3)

    def power(x):
        return layer(x, training=True) ** 4

    f = compiled(power) if outside else power

    def gradients(x):
        with tf.GradientTape() as third:
            third.watch(x)
            with tf.GradientTape(persistent=True) as second:
                second.watch(x)
                with tf.GradientTape() as first:
                    first.watch(x)
                    y = f(x)
                g1 = first.gradient(y, x)
            g2 = second.gradient(g1, x)
        return g1, g2, third.gradient(g2, x)

    x = numbers()
    m = expected.factors(SHAPE, 0.5, 3)
    found = (gradients if outside else compiled(gradients))(tf.constant(x))
    for got, want in zip(found, (4 * m**4 * x**3, 12 * m**4 * x**2, 24 * m**4 * x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert layer.seed_generator.state.numpy().tolist() == [3, 1]


@needs_xla
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_dropout_of_the_incoming_one(expected, dtype):
    layer = Dropout(0.2, (1, None), seed=3, dtype=dtype)

    @compiled
    def f(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x, output_gradients=dy)

    dy = tf.cast(tf.constant(numbers()), dtype)
    for step in range(2):
        want = expected.output(np.asarray(dy), 0.2, 3, step, (1, None))
        assert_same_bits(np.asarray(f(tf.ones(SHAPE, dtype), dy)), want)


@needs_xla
def test_the_gradient_has_the_rate_of_its_forward_pass(expected):
    layer = Dropout(0.25, seed=3)
    x = tf.constant(numbers())
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = compiled(training_call(layer))(x)
    layer.rate = 0.75
    want = expected.factors(SHAPE, 0.25, 3).astype(np.float32)
    np.testing.assert_array_equal(tape.gradient(y, x), want)


@needs_xla
def test_a_sparse_gradient(expected):
    layer = Dropout(0.5, seed=3)
    f = gradient(lambda x: tf.gather(layer(x, training=True), [0, 0, 2]))
    want = expected.factors(SHAPE, 0.5, 3) * np.array([2, 0, 1, 0, 0])[:, None]
    np.testing.assert_array_equal(compiled(f)(tf.constant(numbers())), want)


@needs_xla
@pytest.mark.parametrize(
    ("around", "within"),
    [
        (lambda f: f, compiled),
        (compiled, lambda f: f),
        (compiled, tf.function),
        (tf.function, compiled),
        (compiled, compiled),
    ],
    ids=["outside", "inside", "around a graph", "in a graph", "around another"],
)
def test_forward_mode(expected, around, within):
    layer = Dropout(0.5, seed=3)
    f = within(lambda x: layer(3 * x, training=True) ** 3)

    def tangents(x, dx):
        with tf.autodiff.ForwardAccumulator(x, dx) as accumulator:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(x)
            gradient = tape.gradient(y, x)
        return y, accumulator.jvp(y), accumulator.jvp(gradient)

    x, dx = numbers(), numbers()[::-1].copy()
    tangents = around(tangents)
    for step in range(2):
        y, dy, over_reverse = tangents(tf.constant(x), tf.constant(dx))
        m = 3 * expected.factors(SHAPE, 0.5, 3, step)
        np.testing.assert_allclose(y, (m * x) ** 3, rtol=1e-5)
        np.testing.assert_allclose(dy, 3 * m**3 * x**2 * dx, rtol=1e-5)
        np.testing.assert_allclose(over_reverse, 6 * m**3 * x * dx, rtol=1e-5)


@needs_xla
@pytest.mark.parametrize("noise_shape", [None, (None, 1), (5, 1)], ids=str)
def test_forward_mode_of_an_unknown_rank(expected, noise_shape):
    layer = Dropout(0.5, noise_shape, seed=3)

    @compiled(input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)])
    def f(x, dx):
        with tf.autodiff.ForwardAccumulator(x, dx) as accumulator:
            y = layer(x, training=True)
        return accumulator.jvp(y)

    want = expected.factors(SHAPE, 0.5, 3, noise_shape=noise_shape)
    np.testing.assert_array_equal(f(tf.ones(SHAPE), tf.ones(SHAPE)), want)


@needs_xla
def test_forward_mode_of_second_order(expected):
    layer = Dropout(0.5, seed=3)

    @compiled
    def f(x, dx):
        with (
            tf.autodiff.ForwardAccumulator(x, dx) as outer,
            tf.autodiff.ForwardAccumulator(x, dx) as inner,
        ):
            y = layer(x, training=True) ** 3
        return outer.jvp(inner.jvp(y))

    x, dx = numbers(), numbers()[::-1].copy()
    want = 6 * expected.factors(SHAPE, 0.5, 3) ** 3 * x * dx**2
    np.testing.assert_allclose(f(tf.constant(x), tf.constant(dx)), want, rtol=1e-5)


# Loops.


@needs_xla
def test_a_loop(expected):
    layer = Dropout(0.5, seed=3)

    def f(x):
        for _ in tf.range(3):
            x = layer(x, training=True)
        return x

    both = compiled(lambda x: (f(x), gradient(f)(x)), input_signature=[tf.TensorSpec((None, 33))])
    results = both(tf.ones(SHAPE))
    for first, result in zip((0, 3), results, strict=True):
        steps = range(first, first + 3)
        want = np.prod([expected.factors(SHAPE, 0.5, 3, step) for step in steps], axis=0)
        np.testing.assert_array_equal(result, want)


def vectorized_factors(expected, shape, step=0, noise_shape=None):
    """The factors of a vectorized loop: the number of the iteration is the seed's high word."""
    rows = [
        expected.factors(shape[1:], 0.5, 3 + (i << 64), step, noise_shape) for i in range(shape[0])
    ]
    return np.stack(rows)


@needs_xla
@pytest.mark.parametrize("noise_shape", [None, (1, None)], ids=str)
def test_vectorized_map(expected, noise_shape):
    layer = Dropout(0.5, noise_shape, seed=3)
    shape = (4, 3, 7)

    @compiled
    def f(x):
        with tf.GradientTape() as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                y = tf.vectorized_map(lambda row: layer(row, training=True) ** 3, x)
            g1 = first.gradient(y, x)
        within = tf.vectorized_map(gradient(lambda row: layer(row, training=True) ** 2), x)
        return y, g1, second.gradient(g1, x), within

    x = numbers(shape)
    m = vectorized_factors(expected, shape, 0, noise_shape)
    y, g1, g2, within = f(tf.constant(x))
    np.testing.assert_allclose(y, (m * x) ** 3, rtol=1e-5)
    np.testing.assert_allclose(g1, 3 * m**3 * x**2, rtol=1e-5)
    np.testing.assert_allclose(g2, 6 * m**3 * x, rtol=1e-5)
    m = vectorized_factors(expected, shape, 1, noise_shape)
    np.testing.assert_allclose(within, 2 * m**2 * x, rtol=1e-5)


@needs_xla
def test_a_vectorized_map_of_one_input(expected):
    """The iterations have the same input, and a mask each."""
    layer = Dropout(0.5, seed=3)
    x = numbers((33,))
    f = compiled(lambda x: tf.vectorized_map(lambda _: layer(x, training=True), tf.range(5)))
    want = x * vectorized_factors(expected, SHAPE)
    assert_same_bits(np.asarray(f(tf.constant(x))), np.where(want == 0, 0, want))


@needs_xla
def test_a_jacobian_and_its_gradient(expected):
    layer = Dropout(0.5, (None, 1), seed=3)

    @compiled
    def f(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                y = layer(x, training=True) ** 3
            jacobian = inner.jacobian(y, x)
        return jacobian, outer.gradient(jacobian, x)

    x = numbers((4, 6))
    m = expected.factors((4, 6), 0.5, 3, noise_shape=(None, 1))
    jacobian, its_gradient = f(tf.constant(x))
    diagonal = np.diag((3 * m**3 * x**2).ravel())
    np.testing.assert_allclose(jacobian.numpy().reshape(24, 24), diagonal, rtol=1e-5)
    np.testing.assert_allclose(its_gradient, 6 * m**3 * x, rtol=1e-5)


@needs_xla
def test_nested_vectorized_maps_are_refused():
    layer = Dropout(0.5)
    f = compiled(
        lambda x: tf.vectorized_map(
            lambda rows: tf.vectorized_map(lambda row: layer(row, training=True), rows), x
        )
    )
    with pytest.raises(NotImplementedError, match=r"in nested tf\.vectorized_map"):
        f(tf.ones((3, 4, 5)))


# Checkpointing.


@needs_xla
@pytest.mark.parametrize("checkpoint", [tf.recompute_grad, keras.remat], ids=["tf", "keras"])
def test_checkpointing_uses_the_mask_of_the_forward_pass(expected, checkpoint):
    layer = Dropout(0.5, seed=3)
    f = checkpoint(lambda x: layer(3 * x, training=True) ** 2)
    both = compiled(lambda x: (f(x), gradient(f)(x)))
    x = numbers()
    y, dx = both(tf.constant(x))
    m = 3 * expected.factors(SHAPE, 0.5, 3)
    np.testing.assert_allclose(y, (m * x) ** 2, rtol=1e-5)
    m = 3 * expected.factors(SHAPE, 0.5, 3, 1)
    np.testing.assert_allclose(dx, 2 * m**2 * x, rtol=1e-5)
    assert layer.seed_generator.state.numpy().tolist() == [3, 2]


@needs_xla
def test_checkpointing_a_function_of_xla_is_refused():
    layer = Dropout(0.5)
    f = tf.recompute_grad(compiled(training_call(layer)))
    with pytest.raises(NotImplementedError, match="cannot be given the mask"):
        compiled(gradient(f))(tf.ones(SHAPE))


# Models.


def model_of(first=None, second=None):
    return keras.Sequential(
        [
            keras.Input((3, 8)),
            keras.layers.Dense(16, activation="relu"),
            first or Dropout(0.3, seed=1),
            keras.layers.Dense(16),
            second or fastdrop_keras.SpatialDropout1D(0.2, seed=5),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )


def fitted(jit_compile, **options):
    """The losses and the state of the seed after a training with a last batch of another size."""
    keras.utils.set_random_seed(1)
    model = model_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.compile("sgd", "mse", jit_compile=jit_compile, **options)
    assert model.jit_compile == jit_compile
    x = numbers((45, 3, 8))
    losses = model.fit(x, x[:, 0, :1], batch_size=8, epochs=2, verbose=0).history["loss"]
    model.predict(x, verbose=0)
    return losses, model.layers[1].seed_generator.state.numpy().tolist()


@needs_xla
@pytest.mark.parametrize("options", [{}, {"steps_per_execution": 4}], ids=str)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float64"])
def test_a_compiled_model_trains_as_in_a_graph(policy, options):
    keras.config.set_dtype_policy(policy)
    losses, state = fitted(jit_compile=True, **options)
    want, want_state = fitted(jit_compile=False)
    np.testing.assert_allclose(losses, want, rtol=1e-2 if policy == "mixed_bfloat16" else 1e-5)
    assert state == want_state == [1, 12]


@needs_xla
def test_a_model_with_keras_layers_trains_too():
    ours = Dropout(0.3, seed=1)
    model = model_of(keras.layers.Dropout(0.3), ours)
    model.compile("sgd", "mse", jit_compile=True)
    x = numbers((16, 3, 8))
    model.fit(x, x[:, 0, :1], batch_size=8, verbose=0)
    assert ours.seed_generator.state.numpy().tolist() == [1, 2]


@needs_xla
def test_mc_predict_of_a_compiled_model():
    results = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        model = model_of()
        model.compile("sgd", "mse", jit_compile=jit_compile)
        results.append(fastdrop_keras.mc_predict(model, numbers((5, 3, 8)), 3, verbose=0))
    for ours, want in zip(*results, strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-5)


@needs_xla
def test_a_saved_model(expected, tmp_path):
    module = tf.Module()
    module.layer = layer = Dropout(0.2, seed=3)
    module.drop = compiled(training_call(layer), input_signature=[tf.TensorSpec((None, 33))])
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    x = tf.constant(numbers())
    for step, around in enumerate((lambda f: f, tf.function, compiled)):
        m = expected.factors(SHAPE, 0.2, 3, step)
        got = around(gradient(lambda x: loaded.drop(x) ** 2))(x)
        np.testing.assert_allclose(got, 2 * m**2 * x, rtol=1e-5)


# Functions that are traced with XLA and without.


@needs_xla
@pytest.mark.parametrize("first", ["graph", "xla"])
def test_a_function_is_traced_for_xla_and_for_graphs(expected, first):
    layer = Dropout(0.5, seed=3)
    inner = tf.function(training_call(layer))
    outer = compiled(lambda x: inner(x))
    another = compiled(lambda x: inner(x) + 0)
    calls = [inner, outer, inner, outer, another]
    for step, f in enumerate(calls if first == "graph" else calls[1:]):
        want = expected.factors(SHAPE, 0.5, 3, step)
        np.testing.assert_array_equal(f(tf.ones(SHAPE)), want)
    assert inner.experimental_get_tracing_count() == 2


@needs_xla
def test_a_function_without_dropout_has_a_trace_for_xla_and_one_for_graphs():
    inner = tf.function(tf.sin)
    for function in (inner, compiled(lambda x: inner(x)), compiled(lambda x: inner(x)), inner):
        function(tf.ones(SHAPE))
    assert inner.experimental_get_tracing_count() == 2


def test_a_trace_of_a_graph_is_refused_in_xla(tmp_path):
    if fastdrop_keras.get_bridge() != "native":
        pytest.skip("only native operations have an error of their own")
    module = tf.Module()
    module.layer = layer = Dropout(0.5)
    module.drop = tf.function(training_call(layer), input_signature=[tf.TensorSpec(SHAPE)])
    tf.saved_model.save(module, tmp_path)
    concrete, loaded = module.drop.get_concrete_function(), tf.saved_model.load(tmp_path)
    for f in (concrete, gradient(concrete), loaded.drop):
        with pytest.raises(tf.errors.UnimplementedError, match=r"call the `tf\.function` itself"):
            compiled(f)(tf.ones(SHAPE))


@needs_xla
def test_a_trace_of_xla_works_in_a_graph(expected):
    layer = Dropout(0.5, seed=3)
    outer = compiled(lambda x: inner.get_concrete_function(x)(x))
    inner = tf.function(training_call(layer))
    concrete = compiled(training_call(layer)).get_concrete_function(tf.TensorSpec(SHAPE))
    functions = (outer, tf.function(lambda x: concrete(x)), concrete, gradient(concrete))
    for step, f in enumerate(functions):
        want = expected.factors(SHAPE, 0.5, 3, step)
        np.testing.assert_array_equal(f(tf.ones(SHAPE)), want)


# Refusals.


@needs_xla
def test_a_shape_that_depends_on_values_is_refused():
    layer = Dropout(0.5)
    f = compiled(lambda x: layer(tf.boolean_mask(x, x[:, 0] > 0), training=True))
    with pytest.raises(tf.errors.UnimplementedError, match="dynamic dimension"):
        f(tf.constant(numbers()))


def words(rate, *seed):
    return np.array([*seed, np.float64(rate).view(np.int64)], np.int64)


@needs_xla
@pytest.mark.parametrize(
    ("saved", "noise_shape", "message"),
    [
        (words(1.5, 7, 3), (-1, -1), r"`rate` must be from 0 to 1\. Received: 1\.5"),
        (words(math.nan, 7, 3), (-1, -1), r"`rate` must be from 0 to 1\. Received: nan"),
        (words(0.5, 7), (-1, -1), "3 or 4 words"),
        (words(0.5, 7, 3, 0, 0), (-1, -1), "3 or 4 words"),
        ([words(0.5, 7, 3)] * 4, (-1,), "3 or 4 words"),
        (words(0.5, 7, 3), (2, -1), "noise_shape"),
    ],
    ids=str,
)
def test_bad_arguments_of_the_handler(saved, noise_shape, message):
    entries = tf.constant(noise_shape, tf.int64)
    f = compiled(lambda x, saved: xla_bridge._called("dropout", x, saved, entries))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        f(tf.ones(SHAPE), tf.constant(np.asarray(saved)))


@needs_xla
def test_a_program_of_another_stream_is_refused(monkeypatch):
    monkeypatch.setattr(xla_bridge, "STREAM_VERSION", 1)
    monkeypatch.setattr(xla_bridge, "_module", xla_bridge._module.__wrapped__)
    layer = Dropout(0.5)
    with pytest.raises(tf.errors.FailedPreconditionError, match=r"stream 1, .* stream 2,"):
        compiled(training_call(layer))(tf.ones(SHAPE))


@pytest.fixture
def without_xla(monkeypatch):
    monkeypatch.setattr(xla_bridge, "WHY_NOT", "the reason")


@pytest.mark.usefixtures("without_xla")
def test_without_xla_keras_compiles_without_it(capsys):
    fastdrop_keras.show_config()
    assert "compiled by XLA: no (the reason)\n" in capsys.readouterr().out
    model = model_of()
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        model.compile("sgd", "mse", jit_compile=True)
    x = numbers((16, 3, 8))
    model.fit(x, x[:, 0, :1], verbose=0)
    assert not model.jit_compile


@pytest.mark.usefixtures("without_xla")
def test_without_xla_a_function_is_refused_with_the_reason():
    layer = Dropout(0.5)
    with pytest.raises(NotImplementedError, match=r"XLA cannot compile.*the reason"):
        compiled(training_call(layer))(tf.ones(SHAPE))


@needs_xla
def test_keras_does_not_compile_the_layers_for_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [kind])
    assert not Dropout(0.5).supports_jit


@needs_xla
def test_show_config(capsys):
    fastdrop_keras.show_config()
    assert "compiled by XLA: yes\n" in capsys.readouterr().out


# TensorFlow's registries.


@needs_xla
def test_reloading_is_harmless(expected):
    importlib.reload(xla_bridge)
    assert not xla_bridge.WHY_NOT
    layer = Dropout(0.5, seed=3)
    got = compiled(gradient(training_call(layer)))(tf.ones(SHAPE))
    np.testing.assert_array_equal(got, expected.factors(SHAPE, 0.5, 3))


@needs_xla
def test_programs_of_others_have_no_gradient_and_are_vectorized_as_before():
    from tensorflow.compiler.mlir.stablehlo import stablehlo
    from tensorflow.compiler.tf2xla.python import xla

    text = """func.func public @main(%x: tensor<33xf32>) -> tensor<33xf32> {
        %y = stablehlo.add %x, %x : tensor<33xf32>
        return %y : tensor<33xf32>
    }"""
    module = stablehlo.serialize_portable_artifact_str(text, "1.4.0")

    def double(x):
        (y,) = xla.call_module(
            [x], version=9, module=module, Tout=[tf.float32], Sout=[(33,)], platforms=["CPU"]
        )
        return y

    x = numbers()
    y = compiled(lambda x: tf.vectorized_map(double, x))(tf.constant(x))
    np.testing.assert_array_equal(y, 2 * x)
    with pytest.raises(LookupError, match="gradient registry has no entry for: XlaCallModule"):
        compiled(gradient(double), autograph=False)(tf.constant(x[0]))


@needs_xla
def test_forward_and_backward_are_one_operation_each():
    layer = Dropout(0.5)
    graph = compiled(gradient(training_call(layer))).get_concrete_function(tf.ones(SHAPE)).graph
    calls = [op for op in graph.get_operations() if op.type == CALL]
    assert len(calls) == 2
    # What the forward pass saves: two words of the seed, and the rate.
    assert calls[1].inputs[1] is calls[0].inputs[1]
    assert (calls[0].inputs[1].dtype, calls[0].inputs[1].shape) == (tf.int64, 3)
