"""Out of memory in a layer: an error of that name, no crash, and the next call works."""

import sys

import pytest
import reference

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="limits its memory as Linux counts it"
)

PROGRAM = """
import resource
import numpy as np, tensorflow as tf, fastdrop, fastdrop_keras
fastdrop.set_num_threads(1)
layer = fastdrop_keras.Dropout(0.5, seed=3)
call = lambda x: layer(x, training=True)
if MODE == "graph":
    call = tf.function(call)
call(tf.ones((4, 4)))  # all that is made once
x = tf.ones((4096, 4096))  # 64 MiB
if MODE == "graph":
    call.get_concrete_function(x)
before = layer.seed_generator.state.numpy().tolist()
with open("/proc/self/statm") as pages:
    size = int(pages.read().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, hard))
try:
    call(x)
except (MemoryError, tf.errors.ResourceExhaustedError) as error:
    print(type(error).__name__)
finally:
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
assert (x.numpy() == 1).all()
y = call(x).numpy()
step = layer.seed_generator.state.numpy().tolist()[1] - 1
for part in (slice(0, 4096), slice(-4096, None)):
    print(np.packbits(y.ravel()[part] != 0, bitorder="little").tobytes().hex())
print(step)
"""


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_an_error_and_then_the_next_call(run_python, bridge, mode):
    done = run_python(f"MODE = {mode!r}\n" + PROGRAM, FASTDROP_KERAS_BRIDGE=bridge)
    assert done.returncode == 0, done.stderr
    error, first, last, step = done.stdout.split()
    assert error in ("MemoryError", "ResourceExhaustedError")
    step, size = int(step), 2**24
    # The step of the call that failed is spent or not.
    assert step in (1, 2)
    for bits, offset in ((first, 0), (last, size - 4096)):
        assert bits == keep_bits(step, offset)


def keep_bits(step, offset):
    return reference.pack_bits(reference.keep_mask(3, step, 0.5, 4096, offset)).tobytes().hex()
