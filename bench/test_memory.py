"""How much memory do our layer and Keras's take in training? Linux only.

A figure is the difference of a deep and a shallow model, each in a fresh process, per element and
per additional layer. Memory that both models need once cancels out. Between the dropout layers are
negations, whose gradients need no memory.
"""

import functools
import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = 2**21
# In a graph, the order of operations can add an array at the peak. Many layers make it negligible.
SHALLOW, DEEP = 4, {"graph": 132, "eager": 36}
BIT = 1 / 8

# glibc keeps a varying amount of freed memory. From this size it returns all of it to the system.
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_CPP_MIN_LOG_LEVEL": "3"}


def train(package: str, mode: str, depth: int) -> tuple[int, int]:
    """Train a model in this process, and return the process's growth in bytes.

    The two numbers are the growth at the peak, and between forward and backward (0 in a graph).
    """
    import keras
    import tensorflow as tf

    import fastdrop_keras

    layer_class = {"fastdrop": fastdrop_keras.Dropout, "keras": keras.layers.Dropout}[package]
    layers = [layer_class(0.5, seed=seed) for seed in range(depth)]
    between = 0

    def step(x):
        nonlocal between
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = x
            for layer in layers:
                y = tf.negative(layer(y, training=True))
            z = tf.reduce_sum(y)
        if mode == "eager":
            del y
            gc.collect()  # garbage is not memory for dropout
            between = resident()
        return tape.gradient(z, x)

    if mode == "graph":
        step = tf.function(step, input_signature=[tf.TensorSpec([None])])
    # Trace first, since tracing takes memory for each layer.
    for _ in range(3):
        step(tf.ones([8]))
    before = resident()
    x = tf.ones([SIZE])
    for _ in range(3):
        step(x)
    # `ru_maxrss` would start with the peak of the parent process.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    return peak - before, between - before if between else 0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@functools.cache
def growth(package: str, mode: str, depth: int) -> list[int]:
    """The result of `train` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.test_memory", package, mode, str(depth)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | RETURNED,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("row", "mode", "moment"),
    [
        ("peak, in a tf.function", "graph", 0),
        ("peak, eager", "eager", 0),
        ("alive between forward and backward, eager", "eager", 1),
    ],
)
def test_deep_model(measure, row, mode, moment):
    """Forward and backward through many layers, relative to the size of the packed masks."""

    def bytes_kept(package):
        deep, shallow = (growth(package, mode, depth)[moment] for depth in (DEEP[mode], SHALLOW))
        kept = (deep - shallow) / (DEEP[mode] - SHALLOW) / SIZE
        assert kept > 0.9 * BIT, "less than the bits: a fault of the measure"
        return kept

    measure(
        "memory",
        row,
        ours={"fastdrop_keras.Dropout": lambda: bytes_kept("fastdrop")},
        peers={"keras.layers.Dropout": lambda: bytes_kept("keras")},
        limits={"one bit": lambda: BIT},
    )


if __name__ == "__main__":
    print(*train(sys.argv[1], sys.argv[2], int(sys.argv[3])))
