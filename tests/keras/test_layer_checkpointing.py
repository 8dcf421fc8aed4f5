"""Gradient checkpointing reuses the masks of the forward pass, or raises an error."""

import contextlib
import gc
import importlib
import threading

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from reference import assert_same_bits
from tensorflow.python.ops import custom_gradient

import fastdrop_keras
from fastdrop_keras import Dropout, checkpointing

SHAPE = (5, 33)

each_checkpoint = pytest.mark.parametrize("checkpoint", [tf.recompute_grad, keras.remat])


def numbers(shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(0).normal(0, 1, shape).astype(dtype)


def square_between(layer):
    """A block that drops, squares and drops again."""
    return lambda x: layer(layer(x, training=True) ** 2, training=True)


def output_and_gradient(block, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = block(x)
    return y, tape.gradient(y, x)


class Chain:
    """The expected results and gradients of a chain of `square_between` blocks."""

    def __init__(self, expected, rate=0.5, seed=3):
        self.factors = lambda step: expected.factors(SHAPE, rate, seed, step).astype(np.float64)

    def __call__(self, x, steps):
        y, dy = x.astype(np.float64), 1
        for first, second in steps:
            a, b = self.factors(first), self.factors(second)
            y, dy = b * (a * y) ** 2, dy * 2 * b * a**2 * y
        return y, dy


@each_checkpoint
@pytest.mark.usefixtures("bridge")
def test_the_gradient_has_the_masks_of_the_forward_pass(expected, run, checkpoint):
    layer = Dropout(0.5, seed=3)
    f = run(lambda x: output_and_gradient(checkpoint(square_between(layer)), x))
    for steps in [(0, 1), (2, 3)]:
        want = Chain(expected)(numbers(), [steps])
        for got, wanted in zip(f(tf.constant(numbers())), want, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
    # The recomputation has drawn no mask.
    assert layer.seed_generator.state.numpy().tolist() == [3, 4]


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64], ids=lambda t: t.__name__
)
@pytest.mark.parametrize("noise_shape", [None, (None, 1)], ids=str)
@pytest.mark.usefixtures("bridge")
def test_the_recomputation_gives_the_same_bits(expected, run, dtype, noise_shape):
    layer = Dropout(0.3, noise_shape, seed=3, dtype=np.dtype(dtype).name)
    outputs = []

    def block(x):
        y = layer(x, training=True)
        outputs.append(y)
        return y

    def f(x):
        outputs.clear()
        _, dx = output_and_gradient(tf.recompute_grad(block), x)
        return outputs[0], outputs[1], dx

    x = np.asarray(numbers(dtype=dtype))
    x[:, ::5] = np.nan
    want = expected.output(x, 0.3, 3, noise_shape=noise_shape)
    forward, again, dx = run(f)(tf.constant(x))
    assert_same_bits(np.asarray(forward), want)
    assert_same_bits(np.asarray(again), want)
    ones = np.ones(SHAPE, dtype)
    assert_same_bits(np.asarray(dx), expected.output(ones, 0.3, 3, noise_shape=noise_shape))


@each_checkpoint
def test_a_block_that_is_called_repeatedly(expected, run, checkpoint):
    block = checkpoint(square_between(Dropout(0.5, seed=3)))
    f = run(lambda x: output_and_gradient(lambda x: block(block(block(x))), x))
    want = Chain(expected)(numbers(), [(0, 1), (2, 3), (4, 5)])
    for got, wanted in zip(f(tf.constant(numbers())), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


@each_checkpoint
@pytest.mark.usefixtures("bridge")
def test_blocks_within_blocks(expected, run, checkpoint):
    layer = Dropout(0.5, seed=3)
    inner = checkpoint(square_between(layer))
    middle = checkpoint(lambda x: inner(square_between(layer)(x)))
    outer = checkpoint(lambda x: inner(middle(x)))
    want = Chain(expected)(numbers(), [(0, 1), (2, 3), (4, 5)])
    f = run(lambda x: output_and_gradient(outer, x))
    for got, wanted in zip(f(tf.constant(numbers())), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert layer.seed_generator.state.numpy().tolist() == [3, 6]


def test_several_layers_in_a_block(expected, run):
    first, second = Dropout(0.5, seed=3), Dropout(0.25, seed=4)

    @tf.recompute_grad
    def block(x):
        return second(first(second(x, training=True) ** 2, training=True), training=True)

    y, dx = run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))
    a, c = (expected.factors(SHAPE, 0.25, 4, step) for step in range(2))
    b = expected.factors(SHAPE, 0.5, 3)
    np.testing.assert_allclose(y, c * b * (a * numbers()) ** 2, rtol=1e-6)
    np.testing.assert_allclose(dx, 2 * c * b * a**2 * numbers(), rtol=1e-6)


def test_gradients_out_of_order_and_after_changes(expected, run):
    layer = Dropout(0.5, seed=3)
    block = run(tf.recompute_grad(square_between(layer)))
    x = tf.constant(numbers())
    tapes, outputs = [], []
    for _ in range(3):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            outputs.append(block(x))
        tapes.append(tape)
    layer.rate = 0.9
    layer.seed_generator.state.assign([7, 0])
    for call in (1, 2, 0, 1):
        _, want = Chain(expected)(numbers(), [(2 * call, 2 * call + 1)])
        np.testing.assert_allclose(tapes[call].gradient(outputs[call], x), want, rtol=1e-6)
    assert layer.seed_generator.state.numpy().tolist() == [7, 0]


@pytest.mark.parametrize("persistent", [False, True])
def test_the_tape_is_outside_of_the_function(expected, persistent):
    block = tf.function(tf.recompute_grad(square_between(Dropout(0.5, seed=3))))
    x = tf.constant(numbers())
    with tf.GradientTape(persistent) as tape:
        tape.watch(x)
        y = block(block(x))
    _, want = Chain(expected)(numbers(), [(0, 1), (2, 3)])
    np.testing.assert_allclose(tape.gradient(y, x), want, rtol=1e-5)


@pytest.mark.usefixtures("bridge")
def test_the_gradient_of_an_eager_forward_pass_in_a_graph(expected):
    block = tf.recompute_grad(square_between(Dropout(0.5, seed=3)))
    x = tf.constant(numbers())
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y = block(x)
    _, want = Chain(expected)(numbers(), [(0, 1)])
    np.testing.assert_allclose(tf.function(lambda: tape.gradient(y, x))(), want, rtol=1e-6)


@pytest.mark.usefixtures("bridge")
def test_blocks_in_a_loop(expected, run):
    block = tf.recompute_grad(square_between(Dropout(0.5, seed=3)))

    def chain(x):
        for _ in tf.range(3):
            x = block(x)
        return x

    f = run(lambda x: output_and_gradient(chain, x))
    want = Chain(expected)(numbers(), [(0, 1), (2, 3), (4, 5)])
    for got, wanted in zip(f(tf.constant(numbers())), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_block_in_a_branch(expected, run):
    block = tf.recompute_grad(square_between(Dropout(0.5, seed=3)))

    def branch(x):
        return tf.cond(tf.reduce_max(x) > 0, lambda: block(x), lambda: x)

    _, dx = run(lambda x: output_and_gradient(branch, x))(tf.constant(numbers()))
    np.testing.assert_allclose(dx, Chain(expected)(numbers(), [(0, 1)])[1], rtol=1e-6)


def test_a_loop_in_an_eager_block(expected):
    layer = Dropout(0.5, seed=3)

    @tf.recompute_grad
    def block(x):
        return tf.while_loop(
            lambda i, x: i < 2, lambda i, x: (i + 1, square_between(layer)(x)), (0, x)
        )[1]

    _, dx = output_and_gradient(block, tf.constant(numbers()))
    np.testing.assert_allclose(dx, Chain(expected)(numbers(), [(0, 1), (2, 3)])[1], rtol=1e-6)


@pytest.mark.usefixtures("bridge")
def test_a_block_in_a_vectorized_loop(run):
    layer = Dropout(0.5, seed=3)
    x = tf.constant(numbers())

    def gradients(block):
        layer.seed_generator.state.assign([3, 0])
        f = run(lambda x: tf.vectorized_map(lambda row: output_and_gradient(block, row)[1], x))
        return f(x)

    want = gradients(square_between(layer))
    np.testing.assert_array_equal(gradients(tf.recompute_grad(square_between(layer))), want)


def test_jacobian(expected, run):
    block = tf.recompute_grad(square_between(Dropout(0.5, seed=3)))

    def f(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x)
        return tape.jacobian(y, x)

    jacobian = run(f)(tf.constant(numbers())).numpy().reshape(165, 165)
    _, want = Chain(expected)(numbers(), [(0, 1)])
    np.testing.assert_allclose(jacobian, np.diag(want.ravel()), rtol=1e-6)


def test_training_is_inherited_from_a_layer_around_the_block(expected, run):
    """In the recomputation, Keras does not know the outer layer's argument."""

    class Checkpointed(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dropout = Dropout(0.5, seed=3)
            self.block = keras.remat(lambda x: self.dropout(self.dropout(x) ** 2))

        def call(self, x, training=False):
            return self.block(x)

    layer = Checkpointed()
    x = tf.constant(numbers())
    y, dx = run(lambda x: output_and_gradient(lambda x: layer(x, training=True), x))(x)
    want, gradient = Chain(expected)(numbers(), [(0, 1)])
    np.testing.assert_allclose(y, want, rtol=1e-6)
    np.testing.assert_allclose(dx, gradient, rtol=1e-6)
    y, dx = run(lambda x: output_and_gradient(layer, x))(x)
    np.testing.assert_allclose(y, numbers() ** 2, rtol=1e-6)
    np.testing.assert_allclose(dx, 2 * numbers(), rtol=1e-6)


@each_checkpoint
def test_a_layer_that_is_built_in_the_block(expected, run, checkpoint):
    """To compute shapes, Keras calls the inner layers once more."""

    class Unbuilt(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(33, kernel_initializer="identity")
            self.dropout = Dropout(0.5, seed=3)

        def call(self, x, training=False):
            x = self.dense(self.dropout(x, training=training))
            return self.dropout(x**2, training=training)

    layer = Unbuilt()
    block = checkpoint(lambda x: layer(x, training=True))
    want = Chain(expected)(numbers(), [(0, 1)])
    f = run(lambda x: output_and_gradient(block, x))
    for got, wanted in zip(f(tf.constant(numbers())), want, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert layer.dropout.seed_generator.state.numpy().tolist() == [3, 2]


def test_inference_between_calls_in_training(expected, run):
    layer = Dropout(0.5, seed=3)

    @tf.recompute_grad
    def block(x):
        return layer(layer(layer(x, training=False), training=True) ** 2, training=False)

    _, dx = run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))
    want = 2 * expected.factors(SHAPE, 0.5, 3) ** 2 * numbers()
    np.testing.assert_allclose(dx, want, rtol=1e-6)


def test_after_a_forward_pass_that_failed(expected, run):
    layer = Dropout(0.5, seed=3)

    @tf.recompute_grad
    def fails(x):
        raise RuntimeError(layer(x, training=True).shape)

    with pytest.raises(RuntimeError, match=r"\(5, 33\)"):
        run(lambda x: output_and_gradient(fails, x))(tf.constant(numbers()))
    layer.seed_generator.state.assign([3, 0])
    block = tf.recompute_grad(square_between(layer))
    _, dx = run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))
    np.testing.assert_allclose(dx, Chain(expected)(numbers(), [(0, 1)])[1], rtol=1e-6)


def test_threads():
    block = tf.recompute_grad(square_between(Dropout(0.5, seed=3)))
    ready = threading.Barrier(4)
    results = []

    def work():
        x = tf.constant(numbers())
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x)
        ready.wait()
        results.append((y.numpy(), tape.gradient(y, x).numpy()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for y, dx in results:
        # y = b (a x)^2 and dx = 2 b a^2 x, for any masks a and b of this thread.
        np.testing.assert_allclose(dx, 2 * y / numbers(), rtol=1e-5)


def test_masks_are_freed_with_the_gradient():
    def blocks():
        gc.collect()
        return sum(type(o) is checkpointing.Block for o in gc.get_objects())

    block = tf.recompute_grad(square_between(Dropout(0.5)))
    x = tf.constant(numbers())
    before = blocks()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = block(x)
    assert blocks() == before + 1
    tape.gradient(y, x)
    del tape, y
    assert blocks() == before


def test_forward_mode_and_second_order_are_right_or_refused_by_tensorflow(expected, run):
    block = tf.recompute_grad(square_between(Dropout(0.5, seed=3)))

    def forward_mode(x):
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            y = block(x)
        return accumulator.jvp(y)

    def second_order(x):
        return output_and_gradient(lambda x: output_and_gradient(block, x)[1], x)[1]

    def second_order_through_the_incoming_gradient(x):
        return output_and_gradient(lambda x: output_and_gradient(lambda x: block(x) ** 2, x)[1], x)[
            1
        ]

    x = tf.constant(numbers())
    if run(tf.executing_eagerly)():
        a, b = (expected.factors(SHAPE, 0.5, 3, step) for step in range(2))
        np.testing.assert_allclose(second_order(x), 2 * b * a**2, rtol=1e-6)
    else:
        with pytest.raises(NotImplementedError, match="recompute_grad"):
            run(second_order)(x)
    for f in (forward_mode, second_order_through_the_incoming_gradient):
        with pytest.raises(NotImplementedError, match="recompute_grad"):
            run(f)(x)


def in_a_function(layer):
    return tf.function(lambda x: layer(x, training=True))


def in_a_function_that_was_used_before(layer):
    f = in_a_function(layer)
    f(tf.constant(numbers()))
    return f


def in_a_function_within_a_function_that_was_used_before(layer):
    inner = in_a_function_that_was_used_before(layer)
    f = tf.function(lambda x: inner(x) + 1)
    f(tf.constant(numbers()))
    return f


def in_a_loop_in_a_function_that_was_used_before(layer):
    @tf.function
    def f(x):
        for _ in tf.range(3):
            x = layer(x, training=True)
        return x

    f(tf.constant(numbers()))
    return f


def in_a_branch_in_a_function_that_was_used_before(layer):
    @tf.function
    def f(x):
        return tf.cond(x[0, 0] > -9, lambda: layer(x, training=True), lambda: x)

    f(tf.constant(numbers()))
    return f


def in_a_vectorized_loop(layer):
    return lambda x: tf.vectorized_map(lambda row: layer(row, training=True), x)


@pytest.mark.parametrize(
    "out_of_reach",
    [
        in_a_function,
        in_a_function_that_was_used_before,
        in_a_function_within_a_function_that_was_used_before,
        in_a_loop_in_a_function_that_was_used_before,
        in_a_branch_in_a_function_that_was_used_before,
        in_a_vectorized_loop,
    ],
)
def test_refused_if_the_mask_is_out_of_reach(run, out_of_reach):
    block = tf.recompute_grad(out_of_reach(Dropout(0.5)))
    with pytest.raises(NotImplementedError, match="Checkpoint a function inside of the"):
        run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))


def in_a_branch(layer):
    return lambda x: tf.cond(x[0, 0] > -9, lambda: layer(x, training=True), lambda: x)


def with_training_as_a_tensor(layer):
    return lambda x: layer(x, training=x[0, 0] > -9)


def in_a_loop(layer):
    return lambda x: tf.while_loop(
        lambda i, x: i < 3, lambda i, x: (i + 1, layer(x, training=True)), (0, x)
    )[1]


@pytest.mark.parametrize("out_of_reach", [in_a_branch, with_training_as_a_tensor, in_a_loop])
def test_refused_if_the_mask_is_out_of_reach_in_a_graph(out_of_reach):
    block = tf.recompute_grad(out_of_reach(Dropout(0.5)))
    f = tf.function(lambda x: output_and_gradient(block, x))
    with pytest.raises(NotImplementedError, match="Checkpoint a function inside of the"):
        f(tf.constant(numbers()))


def test_refused_if_a_loop_is_eager_at_first_and_then_in_a_graph():
    block = tf.recompute_grad(in_a_loop(Dropout(0.5)))
    x = tf.constant(numbers())
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = block(x)
    with pytest.raises(NotImplementedError, match="Checkpoint a function inside of the"):
        tf.function(lambda: tape.gradient(y, x))()


def test_inference_is_not_refused(run):
    layer = Dropout(0.5)
    block = tf.recompute_grad(tf.function(layer))
    y, dx = run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))
    np.testing.assert_array_equal(y, numbers())
    np.testing.assert_array_equal(dx, np.ones(SHAPE))


def test_refused_if_the_recomputation_calls_more_often(run):
    layer = Dropout(0.5)
    calls = []

    @tf.recompute_grad
    def block(x):
        calls.append(None)
        for _ in calls:
            x = layer(x, training=True)
        return x

    with pytest.raises(RuntimeError, match="1 times in the forward pass"):
        run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))


def test_refused_if_the_recomputation_calls_another_layer(run):
    block = tf.recompute_grad(lambda x: Dropout(0.5, seed=3)(x, training=True))
    with pytest.raises(RuntimeError, match="with the same layers"):
        run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))


@pytest.mark.parametrize(
    "function",
    [square_between, lambda layer: layer, lambda layer: tf.recompute_grad(square_between(layer))],
    ids=["training", "inference", "checkpointed again"],
)
def test_refused_in_a_function_that_was_checkpointed_by_another_name(run, function):
    block = custom_gradient.recompute_grad(function(Dropout(0.5)))
    with pytest.raises(NotImplementedError, match="Import fastdrop_keras before"):
        run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))


def test_another_name_inside_of_a_checkpointed_function(expected, run):
    layer = Dropout(0.5, seed=3)
    inner = custom_gradient.recompute_grad(square_between(layer))

    @tf.recompute_grad
    def outer(x):
        return inner(x)

    with pytest.raises(NotImplementedError, match="Import fastdrop_keras before"):
        run(lambda x: output_and_gradient(outer, x))(tf.constant(numbers()))


def test_restore(run):
    checkpointing.restore()
    try:
        assert tf.recompute_grad is custom_gradient.recompute_grad
        block = keras.remat(square_between(Dropout(0.5)))
        with pytest.raises(NotImplementedError, match="Import fastdrop_keras before"):
            run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))
    finally:
        checkpointing.replace()


def test_a_checkpointed_function_keeps_its_name():
    def block(x):
        """The docstring of the block."""
        return x

    checkpointed = tf.recompute_grad(block)
    assert checkpointed.__wrapped__ is block
    assert (checkpointed.__name__, checkpointed.__doc__) == ("block", "The docstring of the block.")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert tf.recompute_grad(model).__wrapped__ is model


def weights_after_fit(mode, run_eagerly):
    """The weights of a model after some steps; if eager, Keras's layers are in the scope too."""
    keras.utils.set_random_seed(99)
    x = numbers((64, 6))
    scope = keras.RematScope(mode=mode, output_size_threshold=16, layer_names=["inner", "drop"])
    with scope if run_eagerly else keras.RematScope(mode=None):
        # On TensorFlow, Keras's own layers fail in graphs, since it calls them by keyword.
        inner = [keras.layers.Dense(33, activation="relu"), Dropout(0.5)]
        layers = [keras.Sequential(inner, name="inner"), keras.layers.Dense(8, activation="relu")]
    with scope:
        layers.append(Dropout(0.25, name="drop"))
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    model.fit(x, x[:, :1], batch_size=24, epochs=2, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize("run_eagerly", [True, False])
@pytest.mark.parametrize("mode", ["full", "activations", "larger_than", "list_of_layers"])
def test_fit_in_a_remat_scope(mode, run_eagerly):
    for got, want in zip(
        weights_after_fit(mode, run_eagerly), weights_after_fit(None, run_eagerly), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


class Residual(keras.layers.Layer):
    """A layer that checkpoints its inner layers."""

    def __init__(self, checkpoint):
        super().__init__()
        self.dense = keras.layers.Dense(16, activation="relu")
        self.dropout = Dropout(0.5)
        self.block = checkpoint(lambda x: self.dropout(self.dense(x)))

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return x + self.block(x)


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_fit_with_blocks_ends_in_the_same_weights(run_eagerly):
    def weights(checkpoint):
        keras.utils.set_random_seed(99)
        model = keras.Sequential(
            [keras.Input((16,)), Residual(checkpoint), Residual(checkpoint), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse", run_eagerly=run_eagerly)
        x = numbers((64, 16))
        model.fit(x, x[:, :1], batch_size=24, epochs=2, verbose=0)
        return model.get_weights()

    for got, want in zip(weights(keras.remat), weights(lambda block: block), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_refused_if_the_recomputation_calls_less_often(run):
    layer = Dropout(0.5)
    calls = []

    @tf.recompute_grad
    def block(x):
        calls.append(None)
        if len(calls) == 1:
            layer(x, training=True)
        return layer(x, training=True)

    with pytest.raises(RuntimeError, match=r"2 times in the forward pass, and 1 times in the"):
        run(lambda x: output_and_gradient(block, x))(tf.constant(numbers()))


def test_a_method(expected):
    class Blocks:
        def __init__(self):
            self.layer = Dropout(0.5, seed=3)

        @tf.recompute_grad
        def block(self, x):
            return square_between(self.layer)(x)

    _, dx = output_and_gradient(Blocks().block, tf.constant(numbers()))
    np.testing.assert_allclose(dx, Chain(expected)(numbers(), [(0, 1)])[1], rtol=1e-6)


def test_a_reload_keeps_tensorflows_function():
    importlib.reload(checkpointing)
    try:
        block = tf.recompute_grad(lambda x: x**2)
        np.testing.assert_array_equal(output_and_gradient(block, tf.constant(3.0))[1], 6.0)
    finally:
        checkpointing.restore()
        assert tf.recompute_grad is custom_gradient.recompute_grad
        checkpointing.replace()


@pytest.mark.parametrize(
    "make",
    [
        lambda: fastdrop_keras.DropConnectDense(3, 0.5, seed=1),
        lambda: fastdrop_keras.VariationalDense(3, 1e-3, seed=1),
        lambda: keras.layers.Dense(3),
    ],
    ids=["DropConnectDense", "VariationalDense", "Dense"],
)
def test_layers_with_weights_train_in_a_remat_scope(make):
    """Keras passes them `training` by name, which TensorFlow refuses in a graph."""
    x, y = np.ones((8, 4)), np.ones((8, 3))

    def trained(scope):
        keras.utils.set_random_seed(0)
        with scope:
            layer = make()
        model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dropout(0.5)])
        model.compile("sgd", "mse")
        model.fit(x, y, epochs=2, verbose=0)
        return layer.get_weights()

    expected = trained(contextlib.nullcontext())
    for weights, others in zip(trained(keras.RematScope("full")), expected, strict=True):
        np.testing.assert_allclose(weights, others, rtol=1e-6)
