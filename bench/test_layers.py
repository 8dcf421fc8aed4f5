"""Compares our Dropout with Keras's in a TensorFlow graph, per operation in a chain of ten.

Each figure is a ratio of medians over rounds in turns. A chain, since the call of a graph costs
as much as several operations in it. The threads of both are as they are by default.
"""

import os

# Before TensorFlow is imported, which greets at length.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf
from interleave import interleaved, medians

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


@pytest.mark.parametrize("size", ROUNDS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_chain(benchmark, report, backward, size):
    """Dropout in a `tf.function`, over Keras's."""
    calls = {name: chain(layer, size, backward) for name, layer in LAYERS.items()}
    for call in calls.values():
        check(call())
    seconds = medians(interleaved(calls, rounds=ROUNDS[size]))
    per_operation = {name: value / CHAIN for name, value in seconds.items()}
    benchmark.extra_info.update(per_operation)
    benchmark.pedantic(calls["fastdrop"], rounds=ROUNDS[size])
    report.add(
        f"in a graph, {'forward and backward' if backward else 'forward'} (float32, rate {RATE})",
        f"{size:,} elements",
        **{
            "ours / Keras's": f"{seconds['fastdrop'] / seconds['keras']:.2f}",
            "times as fast": f"{seconds['keras'] / seconds['fastdrop']:.1f}",
            "ours, µs an operation": f"{per_operation['fastdrop'] * 1e6:.0f}",
            "Keras's, µs": f"{per_operation['keras'] * 1e6:.0f}",
        },
    )
