"""Errors in callbacks, forks, the end of the interpreter, many threads, and many steps."""

import os
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

import fastdrop_keras
from fastdrop_keras import Dropout, numpy_bridge

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork here")

ONES = np.ones((5, 33), np.float32)


# Errors.

FAULTS = [
    # An error, and TensorFlow's error if a function in a graph raises it.
    (ValueError("no such value"), tf.errors.InvalidArgumentError),
    (MemoryError("no such memory"), tf.errors.ResourceExhaustedError),
    (NotImplementedError("no such thing"), tf.errors.UnimplementedError),
    (RuntimeError("no such luck"), tf.errors.UnknownError),
]
each_fault = pytest.mark.parametrize(
    ("fault", "in_a_graph"), FAULTS, ids=[type(fault).__name__ for fault, _ in FAULTS]
)


# These tests need a function in Python to break. `test_bridges.py` has errors of native operations.
@pytest.fixture
def through_python():
    """Use the bridge `numpy_function`."""
    before = fastdrop_keras.get_bridge()
    fastdrop_keras.set_bridge("numpy_function")
    yield
    fastdrop_keras.set_bridge(before)


@pytest.fixture
def broken(monkeypatch):
    """Make the bridge's function of arrays raise an error: `broken(error)`."""

    def broken(error):
        def fail(*_):
            raise error

        monkeypatch.setattr(numpy_bridge, "_draw", fail)

    return broken


@pytest.fixture
def gradient():
    """A function that calls a layer and computes its gradient."""
    layer = Dropout(0.5)

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, x)

    return gradient


@pytest.mark.usefixtures("through_python")
@each_fault
def test_an_error_in_an_eager_call_is_not_changed(broken, gradient, fault, in_a_graph):
    broken(fault)
    with pytest.raises(type(fault), match=str(fault)):
        gradient(tf.constant(ONES))


@pytest.mark.usefixtures("through_python")
@each_fault
def test_an_error_in_a_graph_is_reported_with_its_type_and_place(
    broken, gradient, fault, in_a_graph
):
    broken(fault)
    f = tf.function(gradient)
    with pytest.raises(in_a_graph) as caught:
        f(tf.constant(ONES))
    message = str(caught.value)
    assert f"{type(fault).__name__}: {fault}" in message
    assert "test_layer_safety.py" in message
    assert "fastdrop" in message


@pytest.mark.usefixtures("through_python")
def test_a_graph_runs_again_after_an_error(broken, monkeypatch, expected):
    layer = Dropout(0.5, seed=3)
    f = tf.function(lambda x: layer(x, training=True))
    broken(ValueError("once"))
    with pytest.raises(tf.errors.InvalidArgumentError):
        f(ONES)
    monkeypatch.undo()
    y = f(ONES).numpy()
    # The failed call may have taken its step or not: TensorFlow may have stopped before.
    assert y.tobytes() in [
        expected.factors(ONES.shape, 0.5, 3, step).astype(np.float32).tobytes() for step in (0, 1)
    ]


# Processes.


# In the child of a fork, TensorFlow's graphs and multithreaded operations hang, with Keras's layer
# too. A child here makes small eager calls, or uses NumPy.
WORKER = """
import multiprocessing, sys, warnings
import numpy as np, tensorflow as tf, fastdrop, fastdrop_keras
# Python warns of a fork with threads, which these tests need.
warnings.simplefilter("ignore", DeprecationWarning)
LARGE = 2**20 + 77
x = np.ones((5, 33), np.float32)

def masked(step, shape=(5, 33), seed=3):
    stream = fastdrop.Stream(seed)
    stream.state = {"seed": seed, "step": step}
    return fastdrop.dropout(np.ones(shape, np.float32), 0.5, seed=stream)[0]

def gradient(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    return y, tape.gradient(y, x)

def check(layer, step, run=gradient):
    for result in run(layer, tf.constant(x)):
        assert np.array_equal(result, masked(step)), step
"""

FORKED_POOL = """
layer = fastdrop_keras.Dropout(0.5, seed=3)
graph = tf.function(gradient)
large = tf.ones(LARGE)

def work(index):
    # The parent's layer, a new layer of the worker, and fastdrop on NumPy arrays in threads.
    for step in (2, 3) if index < 2 else (4, 5):
        check(layer, step)
    check(fastdrop_keras.Dropout(0.5, seed=3), 0)
    # One operation, which uses fastdrop's threads and not TensorFlow's.
    y = fastdrop_keras.Dropout(0.5, seed=3)(large, training=True)
    assert np.array_equal(y, masked(0, LARGE))
    return masked(index, LARGE).tobytes(), fastdrop.draw_mask(8, 0.5).seed

fastdrop.set_num_threads(2)
check(layer, 0)
check(layer, 1, graph)
expected = [masked(index, LARGE).tobytes() for index in range(4)]
seeds = {fastdrop.draw_mask(8, 0.5).seed}
context = multiprocessing.get_context("fork")
for first in (0, 2):
    # Two workers with a task each, with the layer's state at the fork.
    with context.Pool(2, maxtasksperchild=1) as pool:
        for index, (y, seed) in enumerate(pool.map(work, [first, first + 1], chunksize=1), first):
            assert y == expected[index]
            seeds.add(seed)
    check(layer, 2 + first)
    check(layer, 3 + first, graph)
assert len(seeds) == 5, seeds
print("done")
"""


@needs_fork
def test_a_forked_pool_while_a_layer_is_in_use(run_python, bridge):
    """The workers use the layer, and then the parent uses it, eagerly and in its graph."""
    done = run_python(WORKER + FORKED_POOL, FASTDROP_KERAS_BRIDGE=bridge)
    assert done.stdout == "done\n", done.stderr


SPAWNED_POOL = """
def work(config):
    layer = fastdrop_keras.Dropout.from_config(config)
    check(layer, 0, tf.function(gradient))
    check(layer, 1)
    return fastdrop_keras.get_bridge(), masked(2, LARGE).tobytes(), fastdrop.draw_mask(8, 0.5).seed

if __name__ == "__main__":
    fastdrop.set_num_threads(2)
    layer = fastdrop_keras.Dropout(0.5, seed=3)
    graph = tf.function(gradient)
    check(layer, 0)
    check(layer, 1, graph)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        [found] = pool.map(work, [layer.get_config()])
    *found, seed = found
    assert found == [fastdrop_keras.get_bridge(), masked(2, LARGE).tobytes()]
    assert seed != fastdrop.draw_mask(8, 0.5).seed
    check(layer, 2)
    check(layer, 3, graph)
    print("done")
"""


@pytest.mark.slow
def test_a_spawned_pool_while_a_layer_is_in_use(run_python, bridge, tmp_path):
    path = tmp_path / "spawned.py"
    path.write_text(WORKER + SPAWNED_POOL)
    done = run_python(
        f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')",
        FASTDROP_KERAS_BRIDGE=bridge,
    )
    assert done.stdout == "done\n", done.stderr


LOADING_DATA = """
import keras
multiprocessing.set_start_method("fork")

def batch(index):
    # The data is augmented by dropout, and large enough for fastdrop's threads.
    fastdrop.dropout_(np.ones(LARGE, np.float32), 0.5, seed=index)
    x = np.random.default_rng(index).normal(size=(32, 16)).astype(np.float32)
    fastdrop.dropout_(x, 0.2, seed=index)
    return x, x.sum(axis=1, keepdims=True)

class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return batch(index)

def from_a_pool():
    with multiprocessing.Pool(2) as pool:
        yield from pool.imap(batch, range(8))

def as_tensors(batches):
    like = tuple(tf.TensorSpec(shape, tf.float32) for shape in ((32, 16), (32, 1)))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=like)
    return dataset.apply(tf.data.experimental.assert_cardinality(8))

def trained(data):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((16,)), fastdrop_keras.Dropout(0.5, seed=3), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    return np.concatenate([weight.ravel() for weight in model.get_weights()])

fastdrop.set_num_threads(2)
alone = trained(Batches())
assert np.isfinite(alone).all()
data = {
    "PyDataset": lambda: Batches(workers=2, use_multiprocessing=True),
    "generator": lambda: as_tensors(from_a_pool),
}
assert np.array_equal(trained(data[KIND]()), alone)
print("done")
"""


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PyDataset", "generator"])
def test_workers_that_load_data_while_the_layer_trains(run_python, bridge, kind):
    done = run_python(
        WORKER + LOADING_DATA.replace("KIND", repr(kind)), FASTDROP_KERAS_BRIDGE=bridge
    )
    assert done.stdout == "done\n", done.stderr


def test_the_interpreter_ends_while_a_graph_runs(run_python):
    """The graph runs in TensorFlow's threads.

    A Python thread that returns from an operation at that time exits through TensorFlow's frames,
    which can abort the process, with Keras's layer too. And the process may hang if the graph calls
    `tf.numpy_function`, with any function in it: so this test is for the native bridge alone.
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
        FASTDROP_KERAS_BRIDGE="native",
    )
    assert (done.returncode, done.stdout.strip()) == (0, "end"), done.stderr


# Many threads on one layer.


@pytest.fixture
def switching():
    """Let Python threads interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switching")
def test_many_threads_on_one_layer():
    """Each call draws the mask of its own step, and no step is skipped."""
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


def test_a_fork_while_another_thread_takes_a_seed(run_python):
    done = run_python(
        """
import os
import sys
import threading
import tensorflow as tf, fastdrop_keras
from fastdrop_keras import layer_state
layer = fastdrop_keras.Dropout(0.5)
taken, done = threading.Event(), threading.Event()
def take():
    with layer_state.taking_a_seed:
        taken.set()
        done.wait()
other = threading.Thread(target=take)
other.start()
taken.wait()
child = os.fork()
if child == 0:
    os._exit(0 if layer_state.taking_a_seed.acquire(timeout=10) else 1)
done.set()
other.join()
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""
    )
    assert done.stdout.strip() == "0", done.stderr


@pytest.mark.alone
def test_a_signals_handler_may_call_a_layer(run_python):
    done = run_python(
        """
import signal, time
import tensorflow as tf, fastdrop_keras
one, other = fastdrop_keras.Dropout(0.5), fastdrop_keras.Dropout(0.5)
x = tf.ones(8)
calls = busy = 0
def handle(*_):
    global calls, busy
    if not busy:
        busy = 1
        other(x, training=True)
        calls, busy = calls + 1, 0
one(x, training=True), other(x, training=True)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.00117)
end = time.time() + 30
while calls < 200 and time.time() < end:
    one(x, training=True)
signal.setitimer(signal.ITIMER_REAL, 0)
print(calls)
""",
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 200


# Very many steps.


@pytest.mark.alone
def test_a_new_rate_at_each_eager_step_leaks_nothing(run_python):
    """A schedule sets such rates. TensorFlow keeps a kernel for each new attribute's value."""
    done = run_python(
        """
import tensorflow as tf, fastdrop_keras
layer = fastdrop_keras.Dropout(0.5)
x = tf.ones((4, 8))
def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096
def steps(first, count):
    for i in range(first, first + count):
        layer.rate = i / 10_000
        layer(x, training=True)
steps(0, 500)
before = resident()
steps(500, 1000)
print((resident() - before) / 1000)
"""
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4000
