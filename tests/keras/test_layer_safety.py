"""Errors in a callback, forks, the end of the interpreter, many threads, and very many steps."""

import os
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from fastdrop import _bridge
from fastdrop_keras import Dropout

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")

ONES = np.ones((5, 33), np.float32)


# Errors.

FAULTS = [
    # An error, and what TensorFlow makes of it where a graph's function raised it.
    (ValueError("no such value"), tf.errors.InvalidArgumentError),
    (MemoryError("no such memory"), tf.errors.ResourceExhaustedError),
    (NotImplementedError("no such thing"), tf.errors.UnimplementedError),
    (RuntimeError("no such luck"), tf.errors.UnknownError),
]
each_fault = pytest.mark.parametrize(
    ("fault", "in_a_graph"), FAULTS, ids=[type(fault).__name__ for fault, _ in FAULTS]
)


# The native operations cannot be broken from here; `test_bridges.py` has what they refuse.
through_python = pytest.mark.parametrize("bridge", ["numpy_function"], indirect=True)


@pytest.fixture
def broken(monkeypatch):
    """Make a kernel raise an error: `broken(name, error)`."""

    def broken(name, error):
        def fail(*_):
            raise error

        monkeypatch.setattr(_bridge, name, fail)

    return broken


@pytest.fixture
def gradient():
    """A function that calls a layer, and has its gradient."""
    layer = Dropout(0.5)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x)

    return gradient


@through_python
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@each_fault
def test_an_error_is_itself_in_eager_mode(broken, gradient, kernel, fault, in_a_graph):
    broken(kernel, fault)
    with pytest.raises(type(fault), match=str(fault)):
        gradient(tf.constant(ONES))


@through_python
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@each_fault
def test_an_error_in_a_graph_is_told_with_its_type_and_place(
    broken, gradient, kernel, fault, in_a_graph
):
    broken(kernel, fault)
    f = tf.function(gradient)
    with pytest.raises(in_a_graph) as caught:
        f(tf.constant(ONES))
    message = str(caught.value)
    assert f"{type(fault).__name__}: {fault}" in message
    assert "test_layer_safety.py" in message
    assert f"fastdrop_{kernel}" in message


@through_python
def test_a_graph_runs_again_after_an_error(broken, monkeypatch, expected):
    layer = Dropout(0.5, seed=3)
    f = tf.function(lambda x: layer(x, training=True))
    broken("forward", ValueError("once"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        f(ONES)
    monkeypatch.undo()
    y = f(ONES).numpy()
    # The step of the call that failed is spent, or not: TensorFlow may have stopped before.
    assert y.tobytes() in [
        expected.factors(ONES.shape, 0.5, 3, step).astype(np.float32).tobytes() for step in (0, 1)
    ]


# Processes.


@needs_fork
def test_a_fork_draws_what_its_parent_would(run_python, bridge):
    done = run_python(
        """
import os, sys, warnings
import numpy as np, tensorflow as tf, fastdrop, fastdrop_keras
# Python warns of forking beside threads, which is what is tested.
warnings.simplefilter("ignore", DeprecationWarning)
fastdrop.set_num_threads(3)
layer = fastdrop_keras.Dropout(0.5, seed=3)
x = tf.ones((2**21,))
layer(x, training=True)
child = os.fork()
y = layer(x, training=True)
stream = fastdrop.Stream(3)
for _ in range(2):
    want, _ = fastdrop.dropout(np.ones(2**21, "f4"), 0.5, seed=stream)
assert np.array_equal(y, want)
if child == 0:
    os._exit(42)
status = os.waitpid(child, 0)[1]
assert os.WEXITSTATUS(status) == 42, status
""",
        FASTDROP_KERAS_BRIDGE=bridge,
    )
    assert done.returncode == 0, done.stderr


def test_the_interpreter_ends_while_a_graph_runs(run_python, bridge):
    """In TensorFlow's own threads. One of Python's that comes back from any operation then, Keras's
    own too, is made to exit through TensorFlow's frames, which can abort the process.
    """
    done = run_python(
        """
import time
import tensorflow as tf, fastdrop_keras
layer = fastdrop_keras.Dropout(0.5)
def drop(x):
    return layer(x, training=True)
data = tf.data.Dataset.from_tensors(tf.ones((64, 1024))).repeat()
batches = iter(data.map(drop, num_parallel_calls=2).prefetch(64))
next(batches)
time.sleep(0.05)
print("end", flush=True)
""",
        FASTDROP_KERAS_BRIDGE=bridge,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr


# Many threads on one layer.


@pytest.fixture
def switching():
    """Python's threads change places at nearly every chance."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_many_threads_on_one_layer():
    """Each call has the mask of a step of its own, and no step is left out."""
    threads, calls, size = 8, 50, 256
    layer, alone = (Dropout(0.5, seed=3) for _ in range(2))
    x = tf.ones([size])
    drawn, ready = [], threading.Barrier(threads)

    def work():
        ready.wait()
        for _ in range(calls):
            drawn.append(np.asarray(layer(x, training=True)).tobytes())

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = [np.asarray(alone(x, training=True)).tobytes() for _ in range(threads * calls)]
    assert len(set(expected)) == threads * calls
    assert sorted(drawn) == sorted(expected)


def test_a_fork_while_another_thread_takes_a_seed(run_python, bridge):
    done = run_python(
        """
import os
import sys
import threading
import tensorflow as tf, fastdrop_keras
from fastdrop_keras import layers
layer = fastdrop_keras.Dropout(0.5)
with layers._taking_a_seed:
    child = os.fork()
    if child == 0:
        os._exit(0 if layers._taking_a_seed.acquire(timeout=10) else 1)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
""",
        FASTDROP_KERAS_BRIDGE=bridge,
    )
    assert done.stdout.strip() == "0", done.stderr


# Very many steps.


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "steps"), [("graph", 100_000), ("eager", 20_000)])
def test_memory_stays_the_same(run_python, bridge, mode, steps):
    done = run_python(
        f"""
import gc, threading
import tensorflow as tf, fastdrop_keras
layer = fastdrop_keras.Dropout(0.5)
x = tf.ones((64, 128))
def step():
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    tape.gradient(y, x)
if {mode!r} == "graph":
    step = tf.function(step)
def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096
def many(n):
    for _ in range(n):
        step()
gc.disable()  # what waits for the collector is a leak, too
def on_two_threads(n):
    threads = [threading.Thread(target=many, args=(n // 2,)) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
on_two_threads({steps} // 5)
before = resident()
on_two_threads({steps})
print((resident() - before) / {steps})
""",
        FASTDROP_KERAS_BRIDGE=bridge,
    )
    assert done.returncode == 0, done.stderr
    # Bytes a step: the smallest thing that could be leaked, a reference, would be eight.
    assert float(done.stdout) < 8
