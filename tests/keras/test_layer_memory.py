"""The memory between forward and backward pass, with the native bridge."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from fastdrop_keras import Dropout

SHAPE = (64, 1024)
SIZE = 64 * 1024
SAVED_BYTES = SIZE // 8 + 8
DEPTH = 4

pytestmark = pytest.mark.alone


@pytest.fixture
def no_collector():
    """The end of the last reference must free memory, without Python's garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(references):
    return [reference() for reference in references if reference() is not None]


def chain(layer_class):
    """A chain of layers, with operations between them whose gradients need no memory."""
    layers = [layer_class(0.5, seed=seed) for seed in range(DEPTH)]

    def forward(x):
        for layer in layers:
            x = tf.negative(layer(x, training=True))
        return x

    return forward


# Memory for the gradient.


def kept_for_the_gradient(forward):
    """The dtypes and sizes of the forward tensors that the backward pass reads, without scalars."""
    kept = {}

    @tf.function
    def f(x, dy):
        graph = tf.compat.v1.get_default_graph()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        before = set(graph.get_operations())
        dx = tape.gradient(y, x, output_gradients=dy)
        for op in set(graph.get_operations()) - before:
            kept.update({t.name: t for t in op.inputs if t.op in before and t is not dy})
        return dx

    f.get_concrete_function(tf.TensorSpec(SHAPE), tf.TensorSpec(SHAPE))
    return [(t.dtype, t.shape.num_elements()) for t in kept.values() if t.shape.rank]


def test_a_graph_saves_one_bit_per_element_and_the_rate():
    assert kept_for_the_gradient(chain(Dropout)) == [(tf.uint8, SAVED_BYTES)] * DEPTH
    # Keras's layer saves a byte per element, which the measurement detects.
    theirs = kept_for_the_gradient(chain(keras.layers.Dropout))
    assert sum(dtype.size * size for dtype, size in theirs) >= DEPTH * SIZE


def test_an_eager_tape_saves_neither_inputs_nor_outputs(no_collector):
    layer = Dropout(0.5)
    x = tf.ones(SHAPE)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        before = tf.negative(x)
        dropped = layer(before, training=True)
        after = tf.negative(dropped)
    gone = [weakref.ref(before), weakref.ref(dropped)]
    del before, dropped
    assert alive(gone) == []
    # The second gradient saves nothing of the first.
    dy = tf.ones(SHAPE)
    with tf.GradientTape() as outer:
        outer.watch(dy)
        dx = tape.gradient(after, x, output_gradients=dy)
        z = tf.negative(dx)
    gone = [weakref.ref(dx)]
    del dx
    assert alive(gone) == []
    np.testing.assert_array_equal(np.abs(outer.gradient(z, dy)), np.asarray(z != 0) * 2)


def test_a_loop_in_a_graph_accumulates_only_what_it_saves():
    layer = Dropout(0.5)

    @tf.function
    def f(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for _ in tf.range(3):
                y = tf.negative(layer(y, training=True))
        return tape.gradient(y, x, output_gradients=dy)

    spec = tf.TensorSpec(SHAPE)
    library = f.get_concrete_function(spec, spec).graph.as_graph_def().library
    pushed = [
        node.attr["element_dtype"].type
        for function in library.function
        for node in function.node_def
        if node.op == "TensorListPushBack"
    ]
    assert pushed == [tf.uint8.as_datatype_enum]


# Memory of the outputs.


VIEWS = {
    "array": np.asarray,
    "numpy": lambda y: y.numpy(),
    "memoryview": lambda y: np.asarray(memoryview(y)),
    "dlpack of TensorFlow": lambda y: np.asarray(
        tf.experimental.dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(y))
    ),
    "dlpack of NumPy": np.from_dlpack,
    "reshaped": lambda y: np.asarray(tf.reshape(y, [-1])),
    "slice": lambda y: np.asarray(y)[3:, ::2],
    "bits": lambda y: np.asarray(tf.bitcast(y, tf.int32)),
    "constant": lambda y: np.asarray(tf.constant(y)),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_memory_with_other_handles_is_not_reused(expected, run, view):
    layer = Dropout(0.5, seed=3)
    f = run(lambda x: layer(x, training=True))
    x = tf.ones(SHAPE)
    seen = [view(f(x)) for _ in range(4)]
    for _ in range(20):
        f(x)
    for step, array in enumerate(seen):
        y = tf.constant(expected.factors(SHAPE, 0.5, 3, step))
        np.testing.assert_array_equal(array, view(y))
