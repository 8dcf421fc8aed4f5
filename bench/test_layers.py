"""How fast are the layers in TensorFlow, eager, in a graph and beside XLA's?

In chains, since the call of a graph can cost more than the operations in it. The threads of all are
as they are by default: all CPUs.
"""

import numpy as np
import pytest
import tensorflow as tf

import fastdrop
from bench import layer_peers
from bench.tables import power
from bench.turns import Candidate, difference, part
from bench.validity import check_dropout

RATE = 0.5
LENGTH, LONGER = 10, 30
SIZES = tuple(2**exponent for exponent in range(8, 25, 2))
FEWER_SIZES = tuple(2**exponent for exponent in range(8, 25, 4))
# XLA takes most of a second for a million elements.
XLA_SIZES = tuple(2**exponent for exponent in range(8, 21, 4))
QUICK_SIZES = (2**12, 2**16, 2**20)

DIRECTIONS = pytest.mark.parametrize(
    "backward",
    [pytest.param(False, marks=pytest.mark.full, id="forward"), pytest.param(True, id="training")],
)


def step(layers, backward):
    """The function that calls layers in a row, and takes their gradient if asked for."""

    def forward(x):
        for layer in layers:
            x = layer(x)
        return x

    def forward_and_backward(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = forward(x)
        # Both, as in training: without y, TensorFlow would leave out what only y needs.
        return y, tape.gradient(y, x)

    return forward_and_backward if backward else forward


def chain(peer, length, x, backward, *, xla=False, **options):
    """A graph of layers in a row, as a call."""
    peer.before()
    layers = [peer(RATE, seed, **options) for seed in range(length)]
    # XLA has no operation of ours: where it is asked for, Keras runs our layers in a plain graph.
    graph = tf.function(step(layers, backward), jit_compile=xla and peer.xla)
    # Traced while this peer's choices hold. Each layer has dropped or scaled by 2, a power of two.
    for result in tf.nest.flatten(graph(x)):
        values = np.unique(tf.cast(result, tf.float32))
        assert set(values) <= {0.0, (1 / (1 - RATE)) ** length}, f"{peer.name}: {values}"
    return lambda: graph(x)


def check(peer, x, **options):
    """That a layer of this kind drops as it says, and so does its gradient."""
    peer.before()
    for result in step([peer(RATE, 1, **options)], backward=True)(x):
        # Where a channel is dropped as a whole, one place of it tells.
        channels = (slice(None),) + (0,) * (len(result.shape) - 2)
        decisions = result[channels] if "layer" in options else result
        # Every scale here is a power of two, which all of them have to hit exactly.
        check_dropout(tf.cast(decisions, tf.float32), RATE, 1 / (1 - RATE), name=peer.name)


def faster(candidates):
    """The time of every peer over that of ours, the first."""
    ours, *others = candidates
    return {f"faster than {name}": (name, ours) for name in others}


def measure_chains(measure, peers, x, backward, row, of="float32", **options):
    """Chains of all peers, and a graph of nothing."""
    # Chains of ten of the largest would need gigabytes, and are no faster an operation.
    length = LENGTH if x.shape.num_elements() <= 2**20 else 3
    candidates = {}
    for peer in peers:
        check(peer, x, **options)
        candidates[peer.name] = part(chain(peer, length, x, backward, **options), length)
    ratios = faster(candidates)
    nothing = tf.function(tf.identity)
    last = candidates.popitem()
    candidates |= {"an empty graph": part(lambda: nothing(x), length), last[0]: last[1]}
    group = f"{'forward and backward' if backward else 'forward'}, {of}"
    measure("layers", row, candidates, group=group, ratios=ratios, seconds=1.5)


@DIRECTIONS
@pytest.mark.sizes(SIZES, QUICK_SIZES)
def test_chain(measure, backward, size):
    """Every peer in a graph."""
    measure_chains(measure, layer_peers.available(), tf.ones([size]), backward, power(size))


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("size", [2**16, 2**20], ids=power)
def test_mixed_precision(measure, dtype, size):
    """Layers whose policy is mixed, on what the layer before them gives."""
    peers = layer_peers.available(layer_peers.LAYERS)
    x = tf.ones([size], dtype)
    row = power(size)
    measure_chains(measure, peers, x, True, row, of=f"mixed_{dtype}", dtype=f"mixed_{dtype}")


SPATIAL = {
    "SpatialDropout1D": (64, 128, 512),
    "SpatialDropout2D": (32, 32, 32, 128),
}


@pytest.mark.full
@pytest.mark.parametrize("layer", SPATIAL)
def test_spatial(measure, layer):
    """Whole channels."""
    peers = layer_peers.available(layer_peers.LAYERS)
    shape = SPATIAL[layer]
    measure_chains(measure, peers, tf.ones(shape), True, f"{shape}", of=layer, layer=layer)


@DIRECTIONS
@pytest.mark.sizes(SIZES[1:5], ())
def test_further_layer(measure, backward, size):
    """What one layer more costs: the same chains at two lengths."""
    x = tf.ones([size])
    candidates = {}
    for peer in layer_peers.available():
        short = chain(peer, LENGTH, x, backward)
        candidates[peer.name] = difference(chain(peer, LENGTH + LONGER, x, backward), short, LONGER)
    ratios = faster(candidates)
    ours = next(iter(candidates))
    # What nobody can be faster than with these kernels: called in a row, without TensorFlow.
    array, stream = np.full(size, 0, np.float32), fastdrop.Stream(1)

    def kernels():
        for _ in range(LENGTH):
            mask = fastdrop.dropout_(array, RATE, seed=stream)
            if backward:
                fastdrop.dropout_grad_(array, mask)

    last = candidates.popitem()
    candidates |= {"fastdrop, without TensorFlow": part(kernels, LENGTH), last[0]: last[1]}
    ratios["x fastdrop, without TensorFlow"] = (ours, "fastdrop, without TensorFlow")
    group = f"{'forward and backward' if backward else 'forward'}, float32"
    measure("further layer", power(size), candidates, group=group, ratios=ratios, seconds=1.5)


@DIRECTIONS
@pytest.mark.sizes(FEWER_SIZES, QUICK_SIZES[1:2])
def test_eager(measure, backward, size):
    """One layer without a graph."""
    x = tf.ones([size])
    candidates = {}
    for peer in layer_peers.available():
        call = step([peer(RATE, 1)], backward)
        candidates[peer.name] = Candidate(lambda call=call: call(x), before=peer.before)
    group = f"eager, {'forward and backward' if backward else 'forward'}"
    measure("one layer", power(size), candidates, group=group, ratios=faster(candidates))


@DIRECTIONS
@pytest.mark.sizes(XLA_SIZES, ())
def test_xla(measure, backward, size):
    """One layer where XLA is asked for."""
    x = tf.ones([size])
    candidates = {
        peer.name: chain(peer, 1, x, backward, xla=True) for peer in layer_peers.available()
    }
    group = f"XLA asked for, {'forward and backward' if backward else 'forward'}"
    measure("one layer", power(size), candidates, group=group, ratios=faster(candidates))
