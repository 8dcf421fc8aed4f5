"""Processes that train one model draw different masks, which are the same at every run."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

WORKER = """
import sys
import numpy as np, tensorflow as tf, fastdrop_keras

strategy = tf.distribute.MultiWorkerMirroredStrategy()
assert strategy.num_replicas_in_sync == 2
with strategy.scope():
    layer = fastdrop_keras.Dropout(0.5, seed=7)

@tf.function
def step():
    return strategy.run(lambda: layer(tf.ones((5, 33)), training=True))

@tf.function
def total():
    return strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None)

# The workers must run at the same time.
assert total() == 2
np.save(sys.argv[1], [step() for _ in range(3)])
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def train(directory, bridge, workers=2):
    """The masks of each worker at each step."""
    addresses = [f"localhost:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(workers):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(directory / f"{index}.npy")],
                env=os.environ
                | {"TF_CONFIG": json.dumps(cluster), "FASTDROP_KERAS_BRIDGE": bridge},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [np.load(directory / f"{index}.npy") for index in range(workers)]


def test_workers_draw_different_masks_reproducibly(expected, bridge, tmp_path):
    for worker, steps in enumerate(train(tmp_path, bridge)):
        for step, y in enumerate(steps):
            want = expected.factors((5, 33), 0.5, (worker << 64) | 7, step)
            np.testing.assert_array_equal(y, want)
