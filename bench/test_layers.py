"""How fast are the layers in TensorFlow: in a graph, in eager calls and under `jit_compile=True`?

Layers are timed in chains, since the call of a graph can cost more than its operations. All
candidates use the default number of threads: all CPUs.
"""

import functools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastdrop
import fastdrop_keras
from bench.peers import check_dropout
from bench.turns import Prepared

RATE = 0.5
LENGTH, LONGER = 10, 30

DIRECTIONS = pytest.mark.parametrize(
    "direction", [pytest.param("forward", marks=pytest.mark.full), "forward and backward"]
)


def ours(seed, layer="Dropout", dtype=None):
    """Our layer, with the bridge that is set."""
    return functools.partial(
        getattr(fastdrop_keras, layer)(RATE, seed=seed, dtype=dtype), training=True
    )


def keras_layer(seed, layer="Dropout", dtype=None):
    """Keras's own layer."""
    return functools.partial(
        getattr(keras.layers, layer)(RATE, seed=seed, dtype=dtype), training=True
    )


def tf_dropout(seed):
    """TensorFlow's function with a stateful generator."""
    return lambda x: tf.nn.dropout(x, RATE, seed=seed)


def tf_stateless_dropout(seed):
    """TensorFlow's function of a seed, with a counter so that each call draws another mask."""
    seed, counter = tf.constant(seed, tf.int64), tf.Variable(0, dtype=tf.int64, trainable=False)

    def drop(x):
        step = counter.assign_add(1, read_value=True)
        return tf.nn.experimental.stateless_dropout(x, RATE, seed=tf.stack([seed, step]))

    return drop


# The default first; `numpy_function` is available on every machine.
DEFAULT = fastdrop_keras.get_bridge()
BRIDGES = {"fastdrop_keras": DEFAULT}
if DEFAULT != "numpy_function":
    BRIDGES["fastdrop_keras, numpy_function"] = "numpy_function"
KERAS = {"keras.layers.Dropout": keras_layer}
PEERS = {
    **KERAS,
    "tf.nn.dropout": tf_dropout,
    "tf.nn.experimental.stateless_dropout": tf_stateless_dropout,
}


@pytest.fixture(autouse=True)
def default_bridge():
    yield
    fastdrop_keras.set_bridge(DEFAULT)


def through(bridge, call_of):
    """A call of our layers with a bridge. A graph keeps the bridge that it is traced with."""
    fastdrop_keras.set_bridge(bridge)
    call = call_of(ours)
    fastdrop_keras.set_bridge(DEFAULT)
    return call


def candidates(call_of, peers=PEERS):
    """The candidates for `measure`: `call_of` turns a function that creates layers into a call."""
    return {
        "ours": {name: through(bridge, call_of) for name, bridge in BRIDGES.items()},
        "peers": {name: call_of(make) for name, make in peers.items()},
    }


def step(layers, direction):
    """A function that calls the layers one after the other, and may compute their gradient."""

    def forward(x):
        for layer in layers:
            x = layer(x)
        return x

    def forward_and_backward(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        # Both, as in training: TensorFlow would skip operations whose results are not returned.
        return y, tape.gradient(y, x)

    return forward if direction == "forward" else forward_and_backward


def layers_of(make, length, x, **options):
    """Layers, after a check that one of them and its gradient are dropouts."""
    for result in step([make(1, **options)], "forward and backward")(x):
        # A spatial layer drops whole channels, so one element of each channel is checked.
        channels = (slice(None),) + (0,) * (len(result.shape) - 2)
        decisions = result[channels] if "layer" in options else result
        check_dropout(decisions, RATE, make.__name__)
    return [make(seed, **options) for seed in range(length)]


def chain(make, length, x, direction, *, xla=False, **options):
    """A call of a graph with a chain of layers."""
    layers = layers_of(make, length, x, **options)
    graph = tf.function(step(layers, direction), jit_compile=xla)
    # This call traces. Each layer scales by a power of two, so the product is exact.
    for result in tf.nest.flatten(graph(x)):
        values = set(np.unique(tf.cast(result, tf.float32)))
        assert values <= {0.0, (1 / (1 - RATE)) ** length}, f"{make.__name__}: {values}"
    return lambda: graph(x)


def measure_chains(measure, x, direction, row, kind, peers=PEERS, **options):
    # A chain of ten layers on the largest arrays would take gigabytes.
    length = LENGTH if x.shape.num_elements() <= 2**20 else 3
    sides = candidates(lambda make: chain(make, length, x, direction, **options), peers)
    nothing = tf.function(tf.identity)
    limits = {"an empty graph": lambda: nothing(x)}
    group = f"{direction}, {kind}"
    measure("layers", row, group=group, **sides, limits=limits, each=length, seconds=1.5)


@DIRECTIONS
@pytest.mark.exponents(range(8, 25, 2), quick=(12, 16, 20))
def test_chain(measure, exponent, direction):
    """Every peer in a graph."""
    measure_chains(measure, tf.ones([2**exponent]), direction, f"2^{exponent}", "float32")


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.exponents((16, 20))
def test_mixed_precision(measure, exponent, dtype):
    """Layers with a mixed policy, on inputs of its compute dtype."""
    x, policy = tf.ones([2**exponent], dtype), f"mixed_{dtype}"
    measure_chains(
        measure, x, "forward and backward", f"2^{exponent}", policy, peers=KERAS, dtype=policy
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("layer", "shape"),
    [("SpatialDropout1D", (64, 128, 512)), ("SpatialDropout2D", (32, 32, 32, 128))],
)
def test_spatial(measure, layer, shape):
    """Whole channels."""
    x = tf.ones(shape)
    measure_chains(measure, x, "forward and backward", str(shape), layer, peers=KERAS, layer=layer)


@DIRECTIONS
@pytest.mark.parametrize("layer", ["GaussianDropout", "GaussianNoise", "AlphaDropout"])
@pytest.mark.exponents((12, 16, 20, 24), quick=(16,))
def test_noise(measure, exponent, layer, direction):
    """One layer in a graph, beside Keras's of the same name."""
    x = tf.ones([2**exponent])

    def call_of(package):
        drawn = functools.partial(getattr(package, layer)(RATE, seed=1), training=True)
        graph = tf.function(step([drawn], direction))
        graph(x)
        return lambda: graph(x)

    measure(
        "one layer",
        f"2^{exponent}",
        group=f"{layer}, {direction}",
        ours={"fastdrop_keras": call_of(fastdrop_keras)},
        peers={f"keras.layers.{layer}": call_of(keras.layers)},
        seconds=1.5,
    )


def difference(long, short):
    """A call that returns the difference of the times of two calls, in seconds."""

    def measured():
        start = time.perf_counter()
        long()
        middle = time.perf_counter()
        short()
        # Noise can make the difference negative, but it is a divisor.
        return max(2 * middle - start - time.perf_counter(), 1e-9)

    return measured


@DIRECTIONS
@pytest.mark.exponents((10, 12, 14, 16))
def test_further_layer(measure, exponent, direction):
    """The time of one more layer: the difference of two chains."""
    x, array, stream = (
        tf.ones([2**exponent]),
        np.full(2**exponent, 0, np.float32),
        fastdrop.Stream(1),
    )

    def longer(make):
        lengths = (LENGTH + LONGER, LENGTH)
        return difference(*(chain(make, length, x, direction) for length in lengths))

    def kernels():
        for _ in range(LONGER):
            mask = fastdrop.dropout_(array, RATE, seed=stream)
            if direction != "forward":
                fastdrop.dropout_grad_(array, mask)

    limits = {"fastdrop, without TensorFlow": kernels}
    sides = candidates(longer) | {"limits": limits}
    group = f"{direction}, float32"
    measure("further layer", f"2^{exponent}", group=group, **sides, each=LONGER, seconds=1.5)


@DIRECTIONS
@pytest.mark.exponents(range(8, 25, 4), quick=(16,))
def test_eager(measure, exponent, direction):
    """One layer in an eager call."""
    x = tf.ones([2**exponent])
    sides = candidates(lambda make: functools.partial(step(layers_of(make, 1, x), direction), x))
    # Each eager call reads the bridge.
    sides["ours"] = {
        name: Prepared(call, before=functools.partial(fastdrop_keras.set_bridge, BRIDGES[name]))
        for name, call in sides["ours"].items()
    }
    measure("one layer", f"2^{exponent}", group=f"eager, {direction}", **sides)


@DIRECTIONS
@pytest.mark.exponents((8, 12, 16, 20))  # XLA takes most of a second for a million elements.
def test_xla(measure, exponent, direction):
    """One layer under `jit_compile=True`."""
    x = tf.ones([2**exponent])
    sides = candidates(lambda make: chain(make, 1, x, direction, xla=True))
    measure("one layer", f"2^{exponent}", group=f"XLA asked for, {direction}", **sides)
