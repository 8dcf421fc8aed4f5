"""Owns the ways of dropping in TensorFlow that are compared: each is one class, listed in `PEERS`.

A peer is made once for each layer of a chain and then called with a tensor, as in training.
"""

from __future__ import annotations

import keras
import tensorflow as tf

import fastdrop_keras


class Native:
    """Our layer through TensorFlow's native operations, the way it takes where they are built."""

    name = "fastdrop_keras"
    bridge = "native"
    xla = False

    def __init__(
        self, rate: float, seed: int, layer: str = "Dropout", dtype: str | None = None
    ) -> None:
        self.layer = getattr(fastdrop_keras, layer)(rate, seed=seed, dtype=dtype)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.layer(x, training=True)

    @classmethod
    def before(cls) -> None:
        """Choose the bridge, for tracing and for eager calls."""
        if fastdrop_keras.get_bridge() != cls.bridge:
            fastdrop_keras.set_bridge(cls.bridge)

    @classmethod
    def unavailable(cls) -> str | None:
        """Why it cannot be measured here, or None."""
        bridge = fastdrop_keras.get_bridge()
        try:
            fastdrop_keras.set_bridge(cls.bridge)
        except ValueError as error:
            return str(error)
        fastdrop_keras.set_bridge(bridge)
        return None


class PythonBridge(Native):
    """Our layer through `tf.numpy_function`, the way it takes where nothing can be built."""

    name = "fastdrop_keras, numpy_function"
    bridge = "numpy_function"


class Peer:
    """A way that is always there and needs nothing before it is called."""

    xla = True

    @staticmethod
    def before() -> None:
        """Nothing to choose."""

    @staticmethod
    def unavailable() -> str | None:
        """Never."""
        return None


class KerasLayer(Peer):
    """Keras's own layer, as everybody uses it."""

    name = "keras.layers.Dropout"

    def __init__(
        self, rate: float, seed: int, layer: str = "Dropout", dtype: str | None = None
    ) -> None:
        self.layer = getattr(keras.layers, layer)(rate, seed=seed, dtype=dtype)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.layer(x, training=True)


class TfNnDropout(Peer):
    """TensorFlow's function with the stateful generator: no seed to read, no state to advance."""

    name = "tf.nn.dropout"

    def __init__(self, rate: float, seed: int) -> None:
        self.rate, self.seed = rate, seed

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.dropout(x, self.rate, seed=self.seed)


class StatelessDropout(Peer):
    """TensorFlow's function of a seed, with a counter, without which each call dropped the same.

    `rng_alg` stays `auto_select`, which is Philox on the CPU, the faster of the two that it has.
    """

    name = "tf.nn.experimental.stateless_dropout"

    def __init__(self, rate: float, seed: int) -> None:
        self.rate = rate
        self.seed = tf.constant(seed, tf.int64)
        self.counter = tf.Variable(0, dtype=tf.int64, trainable=False)

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        step = self.counter.assign_add(1, read_value=True)
        return tf.nn.experimental.stateless_dropout(x, self.rate, seed=tf.stack([self.seed, step]))


# Ours first, and last the one that two runs are compared by.
LAYERS = (Native, PythonBridge, KerasLayer)
PEERS = (Native, PythonBridge, TfNnDropout, StatelessDropout, KerasLayer)


def available(peers: tuple[type, ...] = PEERS) -> list[type]:
    """Those that run here; of the others, one line each says why not."""
    here = []
    for peer in peers:
        why = peer.unavailable()
        if why is None:
            here.append(peer)
        else:
            print(f"{peer.name} is left out: {why}")
    return here
