"""Without memory a call raises MemoryError and changes nothing; with memory it then succeeds."""

import json
import os
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import reference

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="limits its memory as Linux counts it"
    ),
]

# Calls that need more memory than is left, by the allocation that fails.
CALLS = {
    "dropout: the result": "fastdrop.dropout(x, 0.5, seed=stream)",
    "dropout: the mask": "fastdrop.dropout(x, 0.5, seed=stream, out=out)",
    "dropout: bits of a noise shape": (
        "fastdrop.dropout(thick, 0.5, seed=stream, out=thick, noise_shape=(None, 1, None),"
        " store_mask=False)"
    ),
    "dropout_: the mask": "fastdrop.dropout_(x, 0.5, seed=stream)",
    "dropout_: bits in another order": (
        "fastdrop.dropout_(x.T, 0.5, seed=stream, store_mask=False)"
    ),
    "draw_mask": "fastdrop.draw_mask(x.shape, 0.5, seed=stream)",
    "pack": "fastdrop.Mask.pack(kept)",
    "unpack: the bools": "stored.unpack()",
    "unpack: the bits": "replayed.unpack()",
    "apply: the result": "stored.apply(x)",
    "apply: the bits": "shifted.apply(x, out=out)",
    "apply_: the bits": "shifted.apply_(x)",
    "dropout_grad: the result": "fastdrop.dropout_grad(x, stored)",
    "dropout_grad_: the bits": "fastdrop.dropout_grad_(x, shifted)",
    "==": "replayed == stored",
    "count: the bits": "replayed.count()",
    "pickle": "pickle.dumps(stored)",
    "unpickle": "pickle.loads(pickled)",
    "relu_dropout: the result": "fastdrop.relu_dropout(x, 0.5, seed=stream)",
    "relu_dropout: the mask": "fastdrop.relu_dropout(x, 0.5, seed=stream, out=out)",
    "relu_dropout: bits for each element": (
        "fastdrop.relu_dropout(x, 0.5, seed=stream, out=out, noise_shape=(1, None))"
    ),
    "relu_dropout: bits in another order": (
        "fastdrop.relu_dropout(x.T, 0.5, seed=stream, out=out.T)"
    ),
    "relu_dropout: bits for each element, in another order": (
        "fastdrop.relu_dropout(x.T, 0.5, seed=stream, out=out.T, noise_shape=(1, None))"
    ),
    "relu_dropout_grad: the result": "fastdrop.relu_dropout_grad(x, stored)",
    "bias_dropout_add: the result": "fastdrop.bias_dropout_add(x, None, None, 0.5, seed=stream)",
    "bias_dropout_add: the mask": (
        "fastdrop.bias_dropout_add(x, None, x, 0.5, seed=stream, out=out)"
    ),
    "bias_dropout_add: bits in another order": (
        "fastdrop.bias_dropout_add(x.T, None, None, 0.5, seed=stream, out=out.T)"
    ),
    "alpha_dropout: the result": "fastdrop.alpha_dropout(x, 0.5, seed=stream)",
    "alpha_dropout: the mask": "fastdrop.alpha_dropout(x, 0.5, seed=stream, out=out)",
    "alpha_dropout_: the mask": "fastdrop.alpha_dropout_(x, 0.5, seed=stream)",
    "gaussian_dropout: the result": "fastdrop.gaussian_dropout(x, 0.5, seed=stream)",
    "gaussian_dropout: the numbers": (
        "fastdrop.gaussian_dropout(thick, 0.5, seed=stream, out=thick, noise_shape=(None, 1, None))"
    ),
    "gaussian_noise_: the numbers": (
        "fastdrop.gaussian_noise_(thick, 0.5, seed=stream, noise_shape=(None, 1, None))"
    ),
    "Noise.apply: the result": "noise.apply(x)",
    "Noise.apply_: the numbers": "shared_noise.apply_(thick)",
    "Noise.draw: the numbers": "noise.draw()",
    "bias_dropout_add_grad: the result": "fastdrop.bias_dropout_add_grad(x, stored)",
    "bias_dropout_add_grad: the sums": "fastdrop.bias_dropout_add_grad(x.T, kept_t, out=out.T)",
    "bias_dropout_add_grad: the bits": "fastdrop.bias_dropout_add_grad(x, replayed, out=out)",
    "bias_dropout_add_grad: bits for each element": (
        "fastdrop.bias_dropout_add_grad(x, shared, out=out)"
    ),
}

PROGRAM = """
import json, pickle, resource, sys
import numpy as np
import fastdrop, fastdrop._pickle

calls = json.load(sys.stdin)
fastdrop.set_num_threads(1)  # the stacks of threads count too
shape = (8192, 8192)  # 128 MiB of float16; 8 MiB of bits
x, out = np.ones(shape, np.float16), np.ones(shape, np.float16)
thick = x.reshape(8192, 2, 4096)
kept = np.ones(shape, bool)
stream = fastdrop.Stream(5)
stored = fastdrop.draw_mask(shape, 0.5, seed=1)
replayed = fastdrop.draw_mask(shape, 0.5, seed=2, store_mask=False)
shifted = fastdrop.draw_mask(shape, 0.5, seed=2, offset=3, store_mask=False)
kept_t = fastdrop.draw_mask(shape, 0.5, seed=1)
shared = fastdrop.draw_mask(shape, 0.5, seed=2, noise_shape=(1, None))
pickled = pickle.dumps(stored)
noise = fastdrop._pickle._noise(dict(shape=shape, noise_shape=None, stddev=0.5, additive=False,
                                     seed=1, step=0, stream=2))
shared_noise = fastdrop._pickle._noise(dict(shape=thick.shape, noise_shape=(None, 1, None),
                                            stddev=0.5, additive=True, seed=1, step=0, stream=2))
ones = int(np.ones(4, np.float16).view(np.uint64)[0])


def size():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[0]) * resource.getpagesize()


def outcome(code, room):
    resource.setrlimit(resource.RLIMIT_AS, (size() + room, hard))
    try:
        eval(code)
    except MemoryError:
        error = "MemoryError"
    except BaseException as other:
        error = repr(other)
    else:
        error = "none"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    same = all(
        int(array.view(np.uint64).min()) == int(array.view(np.uint64).max()) == ones
        for array in (x, out)
    )
    return {"error": error, "arrays are the same": same, "steps taken": stream.step}


hard = resource.getrlimit(resource.RLIMIT_AS)[1]
results = {}
for name, code in calls.items():
    # First leave memory for the interpreter but not for a mask. Then leave more for each further
    # allocation of the call, so that each allocation fails once.
    for mebibytes in (2, 10, 18, 26, 130, 138, 146, 154):
        result = outcome(code, mebibytes << 20)
        if mebibytes == 2 or result["error"] != "none":
            results.setdefault(name, []).append(result)
        if result["error"] == "none":
            break
    result = results[name][0]
    x[...] = out[...] = 1
    stream.state = {"seed": 5, "step": 0}
    eval(code)  # raises an unexpected error here
    result["works with memory"] = True
    x[...] = out[...] = 1
    stream.state = {"seed": 5, "step": 0}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcomes():
    """The outcome of each call, all in one process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        input=json.dumps(CALLS),
        # Freed memory returns to the system at once, so it cannot be reused. One arena: after a
        # failure glibc opens another, and the 64 MiB that it reserves serve later calls.
        env=os.environ
        | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        | {"MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("call", CALLS)
def test_a_call_without_memory_changes_nothing(outcomes, call):
    if call == "pickle" and sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("the bytes come out of what this Python has set aside for objects")
    assert outcomes[call][0].pop("works with memory")
    for outcome in outcomes[call]:
        assert outcome == {"error": "MemoryError", "arrays are the same": True, "steps taken": 0}


def test_without_memory_for_threads_fewer_threads_run(run_python):
    done = run_python(
        """
import resource
import numpy as np, fastdrop
fastdrop.set_num_threads(8)
x = np.ones(2**24 + 77, np.float32)
kept = np.empty(2**24 + 77, bool)
with open("/proc/self/statm") as pages:
    size = int(pages.read().split()[0]) * resource.getpagesize()
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (size + 2**23, hard))
fastdrop.dropout_(x, 0.5, seed=3)
import os
print(len(os.listdir("/proc/self/task")))
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
np.not_equal(x, 0, out=kept)
print(np.packbits(kept[-5000:]).tobytes().hex(), int(kept.sum()))
"""
    )
    assert done.returncode == 0, done.stderr
    threads, bits, kept = done.stdout.split()
    assert int(threads) < 8
    expected = reference.keep_mask(3, 0, 0.5, 5000, offset=2**24 + 77 - 5000)
    assert bits == np.packbits(expected).tobytes().hex()
    assert abs(int(kept) - 2**23) < 5 * 2**11
