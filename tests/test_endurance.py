"""A million small calls leak no memory, descriptor or thread; `make test-slow` runs it."""

import subprocess
import sys

import numpy as np
import pytest
import resident

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc"),
]

CALLS = 1_000_000
# Bytes per round of calls: a leaked reference would be at least eight bytes.
MOST = 4.0

PREPARE = """
import pickle
import numpy as np, fastdrop
x, square = np.ones(100, np.float32), np.ones((10, 10))
out, bias, bools = np.empty_like(x), np.ones(10), np.arange(35) % 3 == 0
stream = fastdrop.Stream(1)
mask = fastdrop.draw_mask(100, 0.5, seed=1)
replayed = fastdrop.draw_mask((10, 10), 0.5, seed=1, noise_shape=(None, 1), store_mask=False)
broken = dict(mask.__reduce__()[1][0], bits=b"short")
restored = mask.__reduce__()[0]

def refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except (TypeError, ValueError):
        return
    raise AssertionError("it was not refused")
"""

GROUPS = {
    "forward": [
        "fastdrop.dropout(x, 0.2, seed=stream)",
        "fastdrop.dropout(square.T, 0.2, noise_shape=(None, 1), out=square.T)",
        "fastdrop.dropout_(out, 0.2, seed=3)",
        "fastdrop.draw_mask((10, 10), 0.5, seed=stream, scale=2).bits",
    ],
    "masks": [
        "mask.apply(x)",
        "mask.apply_(out)",
        "replayed.apply(square)",
        "fastdrop.dropout_grad(x, mask, out=out)",
        "mask.unpack(), replayed.unpack(), mask.count(), mask == replayed, repr(mask)",
        "fastdrop.Mask.pack(bools, rate=0.5)",
    ],
    "fused": [
        "fastdrop.relu_dropout(x, 0.2, seed=stream)",
        "fastdrop.bias_dropout_add(square, bias, square, 0.2, noise_shape=(None, 1))",
        "fastdrop.bias_dropout_add_grad(square, replayed)",
    ],
    "pickles and errors": [
        "pickle.loads(pickle.dumps(mask))",
        "pickle.loads(pickle.dumps(stream))",
        "setattr(stream, 'state', {'seed': 2**100, 'step': 7})",
        "refused(restored, broken)",
        "refused(fastdrop.dropout, x, 2.0)",
        "refused(fastdrop.dropout_, x, 0.5, noise_shape=(3,))",
        "refused(fastdrop.dropout, x, 0.5, out=x[1:])",
        "refused(mask.apply, square)",
        "refused(setattr, stream, 'state', {'seed': -1, 'step': 7})",
    ],
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_million_calls_leak_nothing(group):
    calls = GROUPS[group]
    lines = "\n".join(f"    {call}" for call in calls)
    rounds = CALLS // len(GROUPS) // len(calls)
    program = f"{resident.SAMPLER}\n{PREPARE}\ndef step():\n{lines}\nsample(step, {rounds})\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resident.assert_flat(done.stdout, MOST)


def test_later_calls_reuse_the_threads():
    program = resident.SAMPLER + (
        "import numpy as np, fastdrop\n"
        "fastdrop.set_num_threads(4)\n"
        "x = np.ones(2**18, np.float32)\n"
        "sample(lambda: fastdrop.dropout_(x, 0.5, seed=1), 6000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    resident.assert_flat(done.stdout, 64.0)


def test_the_measurement_detects_a_leaked_reference():
    program = resident.SAMPLER + (
        "import fastdrop\nkept_for_good = []\n"
        "sample(lambda: kept_for_good.append(fastdrop.draw_mask(8, 0.5, seed=1)), 60_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AssertionError):
        resident.assert_flat(done.stdout, MOST)


def test_the_slope_is_the_least_squares_slope():
    rng = np.random.default_rng(0)
    x = np.arange(60) * 100
    y = 3.0 * x + rng.normal(0, 50, 60)
    found = resident.slope([[int(a), float(b)] for a, b in zip(x, y, strict=True)])
    (expected, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.value == pytest.approx(expected)
    assert found.high - found.value == pytest.approx(2 * np.sqrt(covariance[0, 0]))
