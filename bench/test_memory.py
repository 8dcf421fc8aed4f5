"""Measures how much memory an element of each layer takes in training, ours beside Keras's.

A fresh process for each model: what its peak memory has grown by since the same graph ran on a few
elements. The figures are differences of a deep and a shallow model, for each element and each layer
that the deep one has more, so what is needed once goes out of them. Between the layers are
negations, whose gradient needs nothing: all that is kept is kept for dropout. Linux only.
"""

import os
import subprocess
import sys

import pytest

SIZE = 2**21
SHALLOW, DEEP = 4, 68

# The bits; the scale's eight bytes are too few to be seen.
NEEDED = 1 / 8

PROGRAM = """
import resource, sys
import keras, tensorflow as tf, fastdrop_keras

name, mode, depth, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
layer_class = {"keras": keras.layers.Dropout, "fastdrop": fastdrop_keras.Dropout}[name]
layers = [layer_class(0.5, seed=seed) for seed in range(depth)]

def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for layer in layers:
            y = tf.negative(layer(y, training=True))
        z = tf.reduce_sum(y)
    return z, tape.gradient(z, x)

if mode == "graph":
    step = tf.function(step, input_signature=[tf.TensorSpec([None])])
# Tracing takes memory for each layer, but none for the elements.
for _ in range(3):
    step(tf.ones([8]))
with open("/proc/self/statm") as pages:
    before = int(pages.read().split()[1]) * resource.getpagesize()
x = tf.ones([size])
for _ in range(3):
    step(x)
# Not ru_maxrss, which begins with that of the process that started this one.
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(peak * 1024 - before)
"""


def growth(layer, mode, depth):
    """By how many bytes a process grows that trains a model of `depth` layers."""
    arguments = [layer, mode, str(depth), str(SIZE)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_deep_model(report, mode):
    """Forward and backward through many layers: peak memory, beside what the bits alone take."""
    kept = {
        layer: (growth(layer, mode, DEEP) - growth(layer, mode, SHALLOW)) / (DEEP - SHALLOW) / SIZE
        for layer in ("fastdrop", "keras")
    }
    # Less than the bits would be a fault of the measure.
    assert all(value > 0.9 * NEEDED for value in kept.values())
    report.add(
        f"memory of training, bytes an element and layer ({SIZE:,} elements, float32, rate 0.5)",
        mode,
        **{
            "one bit": f"{NEEDED:.3f}",
            "ours": f"{kept['fastdrop']:.3f}",
            "Keras's": f"{kept['keras']:.3f}",
            "Keras's / ours": f"{kept['keras'] / kept['fastdrop']:.1f}",
        },
    )
