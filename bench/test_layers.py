"""Compares our Dropout with Keras's in a TensorFlow graph, per operation in a chain of ten.

Each figure is a ratio of medians over rounds in turns. A chain, since the call of a graph costs
as much as several operations in it. The threads of both are as they are by default. And what of an
operation is our own: the Python of a callback, without TensorFlow's way there.
"""

import functools
import os
import statistics
import time

# Before TensorFlow is imported, which greets at length.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from interleave import interleaved, medians

import fastdrop
import fastdrop_keras

RATE = 0.5
CHAIN = 10
ROUNDS = {2**10: 200, 2**12: 200, 2**13: 150, 2**16: 60, 2**20: 20}
LAYERS = {"keras": keras.layers.Dropout, "fastdrop": fastdrop_keras.Dropout}


def chain(layer_class, size, backward):
    """A graph of ten layers in a row on `size` elements, and of their gradient if asked for."""
    layers = [layer_class(RATE, seed=seed) for seed in range(CHAIN)]
    x = tf.ones([size])

    def forward(x):
        for layer in layers:
            x = layer(x, training=True)
        return x

    def forward_and_backward(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        # Both, as in training: without y, TensorFlow would leave out what only y needs.
        return y, tape.gradient(y, x)

    graph = tf.function(forward_and_backward if backward else forward)
    return lambda: graph(x)


def check(result):
    """That all elements went through the chain: dropped on the way, or scaled ten times."""
    for tensor in tf.nest.flatten(result):
        assert set(np.unique(tensor)) <= {0.0, (1 / (1 - RATE)) ** CHAIN}
        assert not np.all(tensor)


def chains(size, backward):
    """The chain of Keras's layers, that of ours through each bridge, and a graph of nothing."""
    calls = {"keras": chain(keras.layers.Dropout, size, backward)}
    before = fastdrop_keras.get_bridge()
    for bridge in ("native", "numpy_function"):
        try:
            fastdrop_keras.set_bridge(bridge)
        except ValueError:
            continue  # no native operations here
        calls[bridge] = chain(fastdrop_keras.Dropout, size, backward)
        check(calls[bridge]())  # traced with this bridge
    fastdrop_keras.set_bridge(before)
    check(calls["keras"]())
    nothing, x = tf.function(tf.identity), tf.ones([size])
    calls["nothing"] = lambda: nothing(x)
    return calls


@pytest.mark.parametrize("size", ROUNDS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_chain(benchmark, report, backward, size):
    """Dropout in a `tf.function` through each bridge, over Keras's."""
    calls = chains(size, backward)
    seconds = medians(interleaved(calls, rounds=ROUNDS[size]))
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(calls[fastdrop_keras.get_bridge()], rounds=ROUNDS[size])
    call = seconds.pop("nothing")
    theirs = seconds.pop("keras")
    for bridge, ours in seconds.items():
        report.add(
            f"{bridge}, in a graph, {'forward and backward' if backward else 'forward'} (float32, "
            f"rate {RATE})",
            f"{size:,} elements",
            **{
                "times as fast as Keras's": f"{theirs / ours:.1f}",
                "less the graph's call": f"{(theirs - call) / (ours - call):.1f}",
                "ours, µs an operation": f"{ours / CHAIN * 1e6:.0f}",
                "Keras's, µs": f"{theirs / CHAIN * 1e6:.0f}",
                "the call's share, µs": f"{call / CHAIN * 1e6:.0f}",
            },
        )


def test_fit(benchmark, report):
    """A training step of a network with three large dropout layers, and our threads beside
    TensorFlow's own: a pool that kept the CPU busy between calls would show here."""

    def model(layer_class):
        layers = [keras.Input((256,))]
        for seed in range(3):
            layers.append(keras.layers.Dense(1024, activation="relu"))
            if layer_class is not None:
                layers.append(layer_class(0.2, seed=seed))
        layers.append(keras.layers.Dense(10, activation="softmax"))
        model = keras.Sequential(layers)
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model

    x, y = tf.random.normal((512, 256)), tf.zeros((512,), tf.int32)
    without = model(None)
    models = {name: model(layer_class) for name, layer_class in LAYERS.items()}

    def ours(threads):
        with fastdrop.num_threads(threads):
            models["fastdrop"].train_on_batch(x, y)

    threads = fastdrop._threads.allowed_cpus()
    calls = {
        "no dropout": lambda: without.train_on_batch(x, y),
        "keras.layers.Dropout": lambda: models["keras"].train_on_batch(x, y),
        "ours, 1 thread": lambda: ours(1),
        f"ours, {threads} threads": lambda: ours(threads),
    }
    seconds = medians(interleaved(calls, rounds=60))
    benchmark.extra_info.update(seconds)
    benchmark.pedantic(ours, (threads,), rounds=10)
    for name, value in seconds.items():
        report.add(
            "a training step with three layers on 2^19 elements each",
            name,
            ms=f"{value * 1e3:.2f}",
            **{"over no dropout": f"{value / seconds['no dropout']:.3f}"},
        )


CALLBACK_SIZE = 1024
CALLBACK_RUNS = 2000


@pytest.fixture
def timed_callbacks(monkeypatch):
    """How long each Python function of a graph takes from its first line to its last, by name."""
    seconds = {}
    numpy_function = tf.numpy_function

    def numpy_function_timed(function, inputs, dtypes, *, name, **options):
        figures = seconds.setdefault(name, [])

        def timed(*arrays):
            start = time.perf_counter()
            result = function(*arrays)
            figures.append(time.perf_counter() - start)
            return result

        return numpy_function(timed, inputs, dtypes, name=name, **options)

    monkeypatch.setattr(tf, "numpy_function", numpy_function_timed)
    before = fastdrop_keras.get_bridge()
    fastdrop_keras.set_bridge("numpy_function")
    yield seconds
    fastdrop_keras.set_bridge(before)


def test_callback(report, timed_callbacks):
    """Our Python functions in a graph, beside one that only multiplies."""
    layer = fastdrop_keras.Dropout(RATE)
    # Not written into `step`, whose functions TensorFlow rewrites.
    multiply = functools.partial(np.multiply, np.float32(1 / (1 - RATE)))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        dx = tape.gradient(y, x)
        # After the others and not beside them, where it would wait for the interpreter's lock.
        return tf.numpy_function(multiply, [dx], x.dtype, stateful=False, name="numpy.multiply")

    x = tf.ones([CALLBACK_SIZE])
    for _ in range(CALLBACK_RUNS):
        step(x)
    medians = {name: statistics.median(figures) for name, figures in timed_callbacks.items()}
    peer = medians["numpy.multiply"]
    assert set(medians) == {"fastdrop_forward", "fastdrop_backward", "numpy.multiply"}
    for name, value in medians.items():
        report.add(
            f"the Python function itself, in a graph ({CALLBACK_SIZE:,} elements, float32)",
            name,
            **{"µs": f"{value * 1e6:.1f}", "over numpy.multiply": f"{value / peer:.1f}"},
        )
    for name in ("fastdrop_forward", "fastdrop_backward"):
        report.ask("callback at 1,024 elements, µs", "≤ 10", name, medians[name] * 1e6)
