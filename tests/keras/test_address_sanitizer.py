"""The layers in TensorFlow, with our modules built for AddressSanitizer and UBSan.

TensorFlow allocates exactly the size of each tensor, so an access outside of it is detected.
"""

import sys

import pytest
import sanitizers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="native operations are for Linux"),
]

SETUP = """
import ctypes, threading
import numpy as np, tensorflow as tf
import fastdrop, fastdrop_keras
from fastdrop_keras import native_bridge
assert fastdrop._isa.BUILD == "asan"

def gradient(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        total = tf.reduce_sum(y)
    return y, tape.gradient(total, x)

in_a_graph = tf.function(gradient, reduce_retracing=True)

def drop(layer, x):
    # The gradient of ones is the factors.
    for run in (gradient, in_a_graph):
        y, dx = run(layer, x)
        assert tf.reduce_all(y == dx)
"""

EVERYTHING = """
for dtype in ("float16", "bfloat16", "float32", "float64"):
    layer = fastdrop_keras.Dropout(0.3, dtype=dtype)
    rows = fastdrop_keras.Dropout(0.3, noise_shape=(None, 1), dtype=dtype)
    for size in range(601):
        drop(layer, tf.ones([size], dtype))
        drop(rows, tf.ones([size // 7, 7], dtype))

# Refused before any access.
operations = native_bridge.OPERATIONS
def refused(call):
    for run in (call, tf.function(call)):
        try:
            run()
        except tf.errors.InvalidArgumentError:
            continue
        raise AssertionError("not refused")
for seed in ([], [1], [1, 2, 3, 4]):
    refused(lambda: operations.fastdrop_forward(
        x=tf.ones(15), seed=tf.constant(seed, tf.int64), rate=0.0, stream=2))
for size in (0, 1, 8, 9, 11, 20):
    refused(lambda: operations.fastdrop_backward(
        dy=tf.ones(15), saved=tf.zeros(size, tf.uint8)))

layer = fastdrop_keras.Dropout(0.3)
failures = []
def work():
    try:
        for _ in range(50):
            drop(layer, tf.ones([257]))
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
print("done")
"""

# The accesses of a kernel that uses SIZE as the size of a tensor of 33.
BEYOND_THE_END = """
y = np.asarray(fastdrop_keras.Dropout(0.3)(tf.ones([33]), training=True))
assert not y.flags.owndata
fastdrop.dropout_(np.ctypeslib.as_array((ctypes.c_float * SIZE).from_address(y.ctypes.data)), 0.3)
print("done")
"""


@pytest.fixture(scope="module")
def under_sanitizer(tmp_path_factory):
    """Run a program in an interpreter with our modules built for AddressSanitizer."""
    sanitizers.skip_without(sanitizers.MEMORY)
    modules = sanitizers.build_modules(tmp_path_factory.mktemp("asan"), sanitizers.MEMORY)

    def under_sanitizer(code, bridge):
        # Next to the modules, so that the interpreter finds them first.
        program = modules / "program.py"
        program.write_text(SETUP + code)
        return sanitizers.run(
            [sys.executable, program],
            sanitizers.MEMORY,
            timeout=900,
            FASTDROP_KERAS_BRIDGE=bridge,
            # Python's own allocator would hide accesses beyond objects.
            PYTHONMALLOC="malloc",
        )

    return under_sanitizer


def test_no_byte_outside_a_tensor_is_accessed(under_sanitizer, bridge):
    done = under_sanitizer(EVERYTHING, bridge)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]


def test_an_access_beyond_a_tensor_is_detected(under_sanitizer, bridge):
    done = under_sanitizer(BEYOND_THE_END.replace("SIZE", "33"), bridge)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]
    done = under_sanitizer(BEYOND_THE_END.replace("SIZE", "34"), bridge)
    assert (done.returncode, done.stdout) == (66, ""), done.stderr[-4000:]
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr or (
        # The other bridge uses the library's memory, which is poisoned at its end.
        "AddressSanitizer: use-after-poison" in done.stderr
    )
