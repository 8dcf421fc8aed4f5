"""How much memory does an element of each layer take in training, ours beside Keras's?

A fresh process for each model. The figures are differences of a deep and a shallow model, for each
element and each layer that the deep one has more, so what is needed once goes out of them. Between
the layers are negations, whose gradient needs nothing: all that is kept is kept for dropout. Linux
only.
"""

import functools
import os
import subprocess
import sys

import pytest

SIZE = 2**21
# In a graph, whether one array more is alive at the peak is up to how its operations fall together:
# over many layers that does not matter.
SHALLOW, DEEP = 4, {"graph": 132, "eager": 36}

# The bits; the scale's eight bytes are too few to be seen.
NEEDED = 1 / 8

PROGRAM = """
import gc, resource, sys
import keras, tensorflow as tf, fastdrop_keras

name, mode, depth, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
layer_class = {"keras": keras.layers.Dropout, "fastdrop": fastdrop_keras.Dropout}[name]
layers = [layer_class(0.5, seed=seed) for seed in range(depth)]

def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize()

def step(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for layer in layers:
            y = tf.negative(layer(y, training=True))
        z = tf.reduce_sum(y)
    if mode == "eager":
        del y
        gc.collect()
        between.append(resident())
    return z, tape.gradient(z, x)

between = []
if mode == "graph":
    step = tf.function(step, input_signature=[tf.TensorSpec([None])])
# Tracing takes memory for each layer, but none for the elements.
for _ in range(3):
    step(tf.ones([8]))
before = resident()
x = tf.ones([size])
for _ in range(3):
    step(x)
# Not ru_maxrss, which begins with that of the process that started this one.
with open("/proc/self/status") as lines:
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
print(peak - before, between[-1] - before if between else 0)
"""


# What is freed goes back to the system at once, ours and Keras's: glibc otherwise keeps much of it,
# and how much is chance.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@functools.cache
def growth(layer, mode, depth):
    """By how many bytes a process has grown that trains a model of `depth` layers: at its peak, and
    between forward and backward."""
    arguments = [layer, mode, str(depth), str(SIZE)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | RETURNED,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


PEAK, BETWEEN = 0, 1


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("mode", "when", "row"),
    [
        ("graph", PEAK, "peak, in a tf.function"),
        ("eager", PEAK, "peak, eager"),
        ("eager", BETWEEN, "alive between forward and backward, eager"),
    ],
)
def test_deep_model(record, mode, when, row):
    """Forward and backward through many layers, beside what the bits alone take."""
    kept = {
        layer: (growth(layer, mode, DEEP[mode])[when] - growth(layer, mode, SHALLOW)[when])
        / (DEEP[mode] - SHALLOW)
        / SIZE
        for layer in ("fastdrop", "keras")
    }
    # Less than the bits would be a fault of the measure.
    assert all(value > 0.9 * NEEDED for value in kept.values())
    ours, theirs = "fastdrop_keras.Dropout", "keras.layers.Dropout"
    record(
        "memory",
        row,
        {ours: kept["fastdrop"], theirs: kept["keras"], "one bit": NEEDED},
        ratios={"Keras's over ours": (theirs, ours), "ours over one bit": (ours, "one bit")},
    )
