"""Gradients of every order use the mask of the forward pass, in eager and in graph mode."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from reference import assert_same_bits

import fastdrop_keras
from fastdrop_keras import Dropout

pytestmark = pytest.mark.usefixtures("bridge")

SHAPE = (5, 33)


def numbers(shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(0).normal(0, 1, shape).astype(dtype)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda t: t.__name__
)
@pytest.mark.parametrize("rate", [0, 0.25, 0.5, 1])
def test_first_order(expected, run, dtype, rate):
    layer = Dropout(rate, seed=3, dtype=np.dtype(dtype).name)

    def f(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x, output_gradients=dy)

    dy = np.asarray(numbers(dtype=dtype))
    for step in range(2):
        dx = run(f)(tf.constant(numbers(dtype=dtype)), tf.constant(dy))
        assert_same_bits(np.asarray(dx), expected.output(dy, rate, 3, step))


@pytest.mark.parametrize("noise_shape", [(None, 1), (1, None), (5, 1), (33,)], ids=str)
def test_noise_shape(expected, run, noise_shape):
    layer = Dropout(0.5, noise_shape, seed=3)

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x)

    full = (1,) * (2 - len(noise_shape)) + noise_shape
    want = expected.factors(SHAPE, 0.5, 3, noise_shape=full)
    np.testing.assert_array_equal(run(f)(tf.constant(numbers())), want)


def test_second_and_third_order(expected, run):
    layer = Dropout(0.5, seed=3)

    def f(x):
        with tf.GradientTape() as third:
            third.watch(x)
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape() as first:
                    first.watch(x)
                    z = tf.reduce_sum(layer(x, training=True) ** 4)
                g1 = first.gradient(z, x)
            g2 = second.gradient(g1, x)
        return g1, g2, third.gradient(g2, x)

    x = numbers()
    m = expected.factors(SHAPE, 0.5, 3)
    wanted = [4 * m**4 * x**3, 12 * m**4 * x**2, 24 * m**4 * x]
    for got, want in zip(run(f)(tf.constant(x)), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    assert layer.seed_generator.state.numpy().tolist() == [3, 1]


def test_second_order_through_the_incoming_gradient(expected, run):
    layer = Dropout(0.5, seed=3)

    def f(x, dy):
        with tf.GradientTape() as outer:
            outer.watch(dy)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = layer(x, training=True)
            dx = inner.gradient(y, x, output_gradients=dy)
            z = tf.reduce_sum(dx**2)
        return outer.gradient(z, dy)

    dy = numbers()
    got = run(f)(tf.constant(numbers()), tf.constant(dy))
    want = 2 * dy * expected.factors(SHAPE, 0.5, 3) ** 2
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_numerically():
    x = numbers((4, 6), np.float64)
    weights = numbers((4, 6), np.float64)

    def f(x):
        layer = Dropout(0.5, seed=3, dtype="float64")
        return tf.reduce_sum(tf.sin(layer(x, training=True)) * weights)

    theory, measured = tf.test.compute_gradient(f, [x])
    np.testing.assert_allclose(theory[0], measured[0], atol=1e-5)


def test_the_gradient_has_the_mask_and_scale_of_its_forward_when_the_rate_changed(expected, run):
    layer = Dropout(0.25, seed=3)
    x = tf.constant(numbers())
    forward = run(lambda x: layer(x, training=True))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = forward(x)
    layer.rate = 0.75
    np.testing.assert_array_equal(
        tape.gradient(y, x), expected.factors(SHAPE, 0.25, 3).astype(np.float32)
    )


def test_backward_does_not_change_the_incoming_gradient(run):
    layer = Dropout(0.5, seed=3)
    dy = tf.Variable(numbers())

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x, output_gradients=tf.convert_to_tensor(dy))

    run(f)(tf.constant(numbers()))
    np.testing.assert_array_equal(dy, numbers())


def test_sparse_gradient_of_gather(expected, run):
    layer = Dropout(0.5, seed=3)

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            z = tf.reduce_sum(tf.gather(layer(x, training=True), [0, 0, 2]))
        return tf.convert_to_tensor(tape.gradient(z, x))

    want = expected.factors(SHAPE, 0.5, 3) * np.array([2, 0, 1, 0, 0])[:, None]
    np.testing.assert_array_equal(run(f)(tf.constant(numbers())), want)


def test_jacobian(expected, run):
    layer = Dropout(0.5, seed=3)

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.jacobian(y, x)

    jacobian = run(f)(tf.constant(numbers((4, 6)))).numpy().reshape(24, 24)
    np.testing.assert_array_equal(jacobian, np.diag(expected.factors((4, 6), 0.5, 3).ravel()))


def test_second_and_third_order_with_the_tapes_outside_of_the_function(expected):
    layer = Dropout(0.5, seed=3)
    f = tf.function(lambda x: layer(x, training=True) ** 4)
    x = tf.constant(numbers())
    with tf.GradientTape() as third:
        third.watch(x)
        with tf.GradientTape(persistent=True) as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                y = f(x)
            g1 = first.gradient(y, x)
        g2 = second.gradient(g1, x)
    m = expected.factors(SHAPE, 0.5, 3)
    np.testing.assert_allclose(g1, 4 * m**4 * x**3, rtol=1e-5)
    np.testing.assert_allclose(g2, 12 * m**4 * x**2, rtol=1e-5)
    np.testing.assert_allclose(third.gradient(g2, x), 24 * m**4 * x, rtol=1e-5)


def test_the_gradient_of_a_jacobian(expected, run):
    """TensorFlow computes a Jacobian in a vectorized loop, which drops custom gradients."""
    layer = Dropout(0.5, seed=3)

    def f(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                y = layer(x, training=True) ** 3
            jacobian = inner.jacobian(y, x)
        return outer.gradient(jacobian, x)

    x = numbers((4, 6))
    want = 6 * expected.factors((4, 6), 0.5, 3) ** 3 * x
    np.testing.assert_allclose(run(f)(tf.constant(x)), want, rtol=1e-5)


def each_way_to_forward_mode(function):
    return pytest.mark.parametrize(
        ("around", "within"),
        [
            (lambda f: f, lambda f: f),
            (lambda f: f, tf.function),
            (tf.function, lambda f: f),
            (tf.function, tf.function),
        ],
        ids=["eager", "outside of a function", "in a function", "in a function, around another"],
    )(function)


@each_way_to_forward_mode
def test_forward_mode(expected, around, within):
    layer = Dropout(0.5, seed=3)
    f = within(lambda x: layer(3 * x, training=True) ** 2)

    def output_and_tangent(x, dx):
        with tf.autodiff.ForwardAccumulator(x, dx) as accumulator:
            y = f(x)
        return y, accumulator.jvp(y)

    x, dx = numbers(), numbers()[::-1].copy()
    for step in range(2):
        y, dy = around(output_and_tangent)(tf.constant(x), tf.constant(dx))
        m = 3 * expected.factors(SHAPE, 0.5, 3, step)
        np.testing.assert_allclose(y, (m * x) ** 2, rtol=1e-6)
        np.testing.assert_allclose(dy, 2 * m**2 * x * dx, rtol=1e-6)


@each_way_to_forward_mode
def test_forward_mode_over_reverse_mode(expected, around, within):
    layer = Dropout(0.5, seed=3)
    f = within(lambda x: layer(x, training=True) ** 3)

    def hessian_times(x, dx):
        with tf.autodiff.ForwardAccumulator(x, dx) as accumulator:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = f(x)
            gradient = tape.gradient(y, x)
        return accumulator.jvp(gradient)

    x, dx = numbers(), numbers()[::-1].copy()
    got = around(hessian_times)(tf.constant(x), tf.constant(dx))
    want = 6 * expected.factors(SHAPE, 0.5, 3) ** 3 * x * dx
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_forward_mode_of_second_order(expected, run):
    layer = Dropout(0.5, seed=3)

    def f(x, dx):
        with (
            tf.autodiff.ForwardAccumulator(x, dx) as outer,
            tf.autodiff.ForwardAccumulator(x, dx) as inner,
        ):
            y = layer(x, training=True) ** 3
        return outer.jvp(inner.jvp(y))

    x, dx = numbers(), numbers()[::-1].copy()
    want = 6 * expected.factors(SHAPE, 0.5, 3) ** 3 * x * dx**2
    np.testing.assert_allclose(run(f)(tf.constant(x), tf.constant(dx)), want, rtol=1e-5)


def test_forward_mode_through_a_loop(expected, run):
    layer = Dropout(0.5, seed=3)

    @tf.function
    def chain(x):
        for _ in tf.range(3):
            x = layer(x, training=True)
        return x

    def f(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = chain(x)
        return accumulator.jvp(y)

    want = np.prod([expected.factors(SHAPE, 0.5, 3, step) for step in range(3)], axis=0)
    np.testing.assert_array_equal(run(f)(tf.constant(numbers())), want)


def vectorized_factors(expected, shape, step=0):
    """The factors of a vectorized loop: the number of the iteration is the seed's high word."""
    rows = [expected.factors(shape[1:], 0.5, 3 + (i << 64), step) for i in range(shape[0])]
    return np.stack(rows)


def test_vectorized_map(expected, run):
    layer = Dropout(0.5, seed=3)
    f = run(lambda x: tf.vectorized_map(lambda row: layer(row, training=True), x))
    x = numbers()
    for step in range(2):
        want = x * vectorized_factors(expected, SHAPE, step)
        assert_same_bits(np.asarray(f(tf.constant(x))), np.where(want == 0, 0, want))


def test_vectorized_map_of_gradients(expected, run):
    layer = Dropout(0.5, seed=3)

    def gradient(row):
        with tf.GradientTape() as tape:
            tape.watch(row)
            y = layer(row, training=True) ** 2
        return tape.gradient(y, row)

    x = numbers()
    got = run(lambda x: tf.vectorized_map(gradient, x))(tf.constant(x))
    want = 2 * x * vectorized_factors(expected, SHAPE) ** 2
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gradients_of_vectorized_map(expected, run):
    """The gradient is outside of the vectorized loop, which drops custom gradients."""
    layer = Dropout(0.5, seed=3)

    def f(x):
        with tf.GradientTape() as second:
            second.watch(x)
            with tf.GradientTape() as first:
                first.watch(x)
                y = tf.vectorized_map(lambda row: layer(row, training=True) ** 3, x)
            g1 = first.gradient(y, x)
        return g1, second.gradient(g1, x)

    x = numbers()
    m = vectorized_factors(expected, SHAPE)
    for got, want in zip(run(f)(tf.constant(x)), (3 * m**3 * x**2, 6 * m**3 * x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_nested_vectorized_maps_draw_for_each_iteration(run):
    layer = Dropout(0.5)

    def f(x):
        return tf.vectorized_map(
            lambda rows: tf.vectorized_map(lambda row: layer(row, training=True), rows), x
        )

    # More iterations than a byte can count.
    rows = run(f)(tf.ones((3, 300, 64))).numpy().reshape(900, 64)
    assert len({row.tobytes() for row in rows}) == 900


def test_loop_in_a_graph(expected):
    layer = Dropout(0.5, seed=3)

    @tf.function(input_signature=[tf.TensorSpec((None, None))])
    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in tf.range(3):
                y = layer(y, training=True)
        return y, tape.gradient(y, x)

    x = numbers()
    y, dx = f(tf.constant(x))
    want = np.prod([expected.factors(SHAPE, 0.5, 3, step) for step in range(3)], axis=0)
    np.testing.assert_array_equal(dx, want)
    np.testing.assert_array_equal(y, x * want)


def test_spatial_layer(expected, run):
    layer = fastdrop_keras.SpatialDropout2D(0.5, seed=3)

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x)

    shape = (3, 4, 5, 6)
    want = expected.factors(shape, 0.5, 3, noise_shape=(None, 1, 1, None))
    np.testing.assert_array_equal(run(f)(tf.constant(numbers(shape))), want)


OPERATIONS = {
    "native": ["FastdropForward", "FastdropBackward"],
    "numpy_function": ["PyFuncStateless", "PyFuncStateless"],
}


def test_forward_and_backward_are_one_operation_each(bridge):
    layer = Dropout(0.5)

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x)

    graph = tf.function(f).get_concrete_function(tf.ones(SHAPE)).graph
    operations = [op for op in graph.get_operations() if op.type in OPERATIONS[bridge]]
    assert [op.type for op in operations] == OPERATIONS[bridge]
    # The tensors of the forward pass that the backward pass reads.
    saved = operations[1].inputs[1]
    if bridge == "native":
        assert saved is operations[0].outputs[1]
        assert (saved.dtype, saved.shape) == (tf.uint8, -(-5 * 33 // 8) + 8)
    else:
        assert saved is operations[0].inputs[1]
        assert (saved.dtype, saved.shape) == (tf.int64, 3)


def test_gradients_of_a_model_reach_the_layers_before_it(expected, run):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(33), Dropout(0.5, seed=3)])

    def f(x):
        with tf.GradientTape() as tape:
            z = tf.reduce_sum(model(x, training=True))
        return tape.gradient(z, model.trainable_variables)

    x = numbers((5, 6))
    kernel, bias = run(f)(tf.constant(x))
    m = expected.factors(SHAPE, 0.5, 3)
    np.testing.assert_allclose(kernel, x.T @ m, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(bias, m.sum(axis=0), rtol=1e-6)


class WithItsOwnScope(tf.Module):
    def __init__(self, layer):
        super().__init__(name="module")
        self.layer = layer

    @tf.Module.with_name_scope
    def __call__(self, x):
        return self.layer(x, training=True)


@pytest.mark.usefixtures("bridge")
def test_vectorized_map_of_a_module_with_its_own_name_scope(expected, run):
    module = WithItsOwnScope(Dropout(0.5, seed=3))
    y = run(lambda x: tf.vectorized_map(module, x))(tf.ones(SHAPE))
    np.testing.assert_array_equal(y, vectorized_factors(expected, SHAPE))
