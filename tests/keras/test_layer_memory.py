"""What stays in memory between forward and backward, and in whose memory the outputs are."""

import collections
import gc
import os
import sys
import threading
import time
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from fastdrop import _bridge
from fastdrop_keras import Dropout

SHAPE = (64, 1024)
SIZE = 64 * 1024
RESIDUAL_BYTES = SIZE // 8 + 8
DEPTH = 4

# What the kernels make can be watched where Python calls them.
pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("bridge")]
through_python = pytest.mark.parametrize("bridge", ["numpy_function"], indirect=True)

Made = collections.namedtuple("Made", "inputs outputs residuals input_at output_at")


@pytest.fixture
def made(monkeypatch):
    """What the forward kernels read and made, in order: weak references, and addresses."""
    made = Made([], [], [], [], [])
    forward = _bridge.forward

    def watched(x, *arguments):
        y, residual = forward(x, *arguments)
        made.inputs.append(weakref.ref(x))
        made.outputs.append(weakref.ref(y))
        made.residuals.append(weakref.ref(residual))
        made.input_at.append(x.ctypes.data)
        made.output_at.append(y.ctypes.data)
        return y, residual

    monkeypatch.setattr(_bridge, "forward", watched)
    return made


@pytest.fixture
def no_collector():
    """Memory has to be free when the last reference ends, not when cycles are looked for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(references):
    return [reference() for reference in references if reference() is not None]


def chain(layer_class):
    """Layers in a row whose neighbours need nothing for their gradients."""
    layers = [layer_class(0.5, seed=seed) for seed in range(DEPTH)]

    def forward(x):
        for layer in layers:
            x = tf.negative(layer(x, training=True))
        return x

    return forward


@tf.function
def another_python_function():
    """TensorFlow holds the arrays that it was given until it calls Python again."""
    return tf.numpy_function(np.zeros, [[]], tf.float64)


# What the gradient keeps.


def kept_for_the_gradient(forward):
    """What a graph's backward part reads of its forward part: dtypes and sizes, but of scalars."""
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


def test_a_graph_keeps_one_bit_an_element_and_the_scale():
    assert kept_for_the_gradient(chain(Dropout)) == [(tf.uint8, RESIDUAL_BYTES)] * DEPTH
    # Keras's layer keeps a byte, which shows that the measure sees what is kept.
    theirs = kept_for_the_gradient(chain(keras.layers.Dropout))
    assert sum(dtype.size * size for dtype, size in theirs) >= DEPTH * SIZE


@through_python
def test_only_the_residuals_live_between_forward_and_backward(run, made, no_collector):
    forward = run(chain(Dropout))
    x = tf.ones(SHAPE)
    forward(x)
    for references in made:
        references.clear()
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = forward(x)
    another_python_function()
    assert [residual.nbytes for residual in alive(made.residuals)] == [RESIDUAL_BYTES] * DEPTH
    assert alive(made.outputs) == []
    tape.gradient(y, x)
    another_python_function()
    assert alive(made.residuals) == []


@through_python
def test_an_eager_call_without_a_tape_keeps_nothing(made, no_collector):
    y = Dropout(0.5)(tf.ones(SHAPE), training=True)
    assert (len(alive(made.outputs)), len(alive(made.residuals))) == (1, 0)
    del y
    assert alive(made.outputs) == []


def test_an_eager_tape_keeps_neither_inputs_nor_outputs(no_collector):
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
    # And the gradient of the gradient keeps nothing of the gradient.
    dy = tf.ones(SHAPE)
    with tf.GradientTape() as outer:
        outer.watch(dy)
        dx = tape.gradient(after, x, output_gradients=dy)
        z = tf.negative(dx)
    gone = [weakref.ref(dx)]
    del dx
    assert alive(gone) == []
    np.testing.assert_array_equal(np.abs(outer.gradient(z, dy)), np.asarray(z != 0) * 2)


def test_a_loop_in_a_graph_accumulates_only_residuals():
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


# Where the outputs are.


@through_python
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_tensorflow_copies_neither_inputs_nor_outputs(run, made, dtype):
    layer = Dropout(0.5, dtype=dtype)
    x = tf.cast(tf.ones(SHAPE), dtype)
    y = run(lambda x: layer(x, training=True))(x)
    assert made.input_at == [np.asarray(x).ctypes.data]
    assert made.output_at == [np.asarray(y).ctypes.data]


# Natively, TensorFlow's own allocator chooses where, and may take another place each time.
@through_python
def test_outputs_use_the_memory_of_outputs_that_are_gone(run):
    layer = Dropout(0.5)
    f = run(lambda x: layer(x, training=True))
    x = tf.ones(SHAPE)
    addresses = {np.asarray(f(x)).ctypes.data for _ in range(50)}
    # One that is in use, and one that TensorFlow lets go of at its next Python function.
    assert len(addresses) <= 3


def test_outputs_that_are_held_have_memory_of_their_own(run):
    layer = Dropout(0.5)
    f = run(lambda x: layer(x, training=True))
    x = tf.ones(SHAPE)
    held = [f(x) for _ in range(10)]
    assert len({np.asarray(y).ctypes.data for y in held}) == 10


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
def test_memory_that_can_be_seen_is_not_used_again(expected, run, view):
    layer = Dropout(0.5, seed=3)
    f = run(lambda x: layer(x, training=True))
    x = tf.ones(SHAPE)
    seen = [view(f(x)) for _ in range(4)]
    for _ in range(20):
        f(x)
    for step, array in enumerate(seen):
        y = tf.constant(expected.factors(SHAPE, 0.5, 3, step))
        np.testing.assert_array_equal(array, view(y))


# The interpreter's lock.


def test_the_interpreters_lock_is_free_in_a_kernel():
    """Another thread goes on in it, which never takes the lock but where it is given up."""
    count, stop = [0], threading.Event()

    def go_on():
        while not stop.is_set():
            count[0] += 1
            time.sleep(0)

    def steps_during(function):
        before = count[0]
        function()
        return count[0] - before

    x, seed = np.ones(2**24, np.float32), np.array([3, 0])
    _, residual = _bridge.forward(x, seed, 0.5, None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    thread = threading.Thread(target=go_on)
    try:
        thread.start()
        while not count[0]:
            time.sleep(0.001)
        assert steps_during(lambda: _bridge.forward(x, seed, 0.5, None)) > 0
        assert steps_during(lambda: _bridge.backward(x, residual, None)) > 0
        # Neither would the other thread run if the kernels held the lock.
        assert steps_during(lambda: sum(range(10**6))) == 0
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="TensorFlow has one thread here")
@through_python
def test_branches_of_a_graph_run_at_once(monkeypatch):
    both = threading.Barrier(2)
    forward = _bridge.forward

    def meeting(*arguments):
        # Broken, with an error, unless another callback comes while this one waits.
        both.wait(timeout=60)
        return forward(*arguments)

    layers = [Dropout(0.5), Dropout(0.5)]
    f = tf.function(lambda x: sum(layer(x, training=True) for layer in layers))
    monkeypatch.setattr(_bridge, "forward", meeting)
    assert f(tf.ones(SHAPE)).shape == SHAPE
