"""Without memory a layer's call raises an error, and the next call works."""

import json
import os
import subprocess
import sys

import pytest
import reference

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="limits its memory as Linux counts it"
    ),
]

PROGRAM = """
import json, resource, sys
import numpy as np, tensorflow as tf, fastdrop, fastdrop_keras
fastdrop.set_num_threads(1)
x = tf.ones((4096, 4096))  # 64 MiB

def outcome(mode):
    layer = fastdrop_keras.Dropout(0.5, seed=3)
    call = lambda x: layer(x, training=True)
    if mode == "graph":
        call = tf.function(call)
    call(tf.ones((4, 4)))  # allocate all that is allocated once
    if mode == "graph":
        call.get_concrete_function(x)
    with open("/proc/self/statm") as pages:
        size = int(pages.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**24, hard))
    try:
        call(x)
        name = None
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        name = type(error).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert (x.numpy() == 1).all()
    y = call(x).numpy()
    step = layer.seed_generator.state.numpy().tolist()[1] - 1
    parts = [y.ravel()[part] != 0 for part in (slice(0, 4096), slice(-4096, None))]
    return name, step, *(np.packbits(part, bitorder="little").tobytes().hex() for part in parts)

outcomes = {}
for bridge in ("native", "numpy_function"):
    fastdrop_keras.set_bridge(bridge)
    outcomes[bridge] = outcome(sys.argv[1])
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module", params=["eager", "graph"])
def outcomes(request):
    """The outcome of the call with each bridge, in one process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, request.param],
        # Freed memory returns to the system at once, so it cannot be reused.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_error_and_then_the_next_call(outcomes, bridge):
    error, step, first, last = outcomes[bridge]
    assert error in ("MemoryError", "ResourceExhaustedError")
    # The failed call may have taken its step or not.
    assert step in (1, 2)
    for bits, offset in ((first, 0), (last, 2**24 - 4096)):
        assert bits == keep_bits(step, offset)


def keep_bits(step, offset):
    return reference.pack_bits(reference.keep_mask(3, step, 0.5, 4096, offset)).tobytes().hex()
