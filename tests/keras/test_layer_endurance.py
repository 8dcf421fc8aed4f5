"""A hundred thousand steps of a layer leak no memory, descriptor or thread."""

import sys

import pytest
import resident

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc"),
]

STEPS = 100_000


@pytest.mark.parametrize(
    ("mode", "rate"), [("graph", "fixed"), ("eager", "fixed"), ("graph", "new"), ("eager", "new")]
)
def test_steps_leak_nothing(run_python, bridge, mode, rate):
    done = run_python(
        f"""{resident.SAMPLER}
import itertools
import tensorflow as tf, fastdrop_keras
layer = fastdrop_keras.Dropout(0.5)
x = tf.ones((16, 32))
def step():
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
    # TensorFlow removes operations whose results a graph does not return.
    return tape.gradient(y, x)
if {mode!r} == "graph":
    step = tf.function(step)
rates = itertools.count(1)
def turned():
    layer.rate = 1 / (2 + next(rates))
    return step()
sample(step if {rate!r} == "fixed" else turned, {STEPS})
""",
        FASTDROP_KERAS_BRIDGE=bridge,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    # Bytes per step: a leaked reference would be at least eight bytes.
    resident.assert_flat(done.stdout, 4.0)
