"""Is any shape, layout or noise shape slower than NumPy's recipe, or in a layer than Keras's?

The report has two of many cases, measured once more: the one with the worst ratio, and the median.
"""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastdrop
import fastdrop_keras
from bench.test_layers import step
from bench.turns import Turns

RATE, SCALE = 0.2, np.float32(1.25)
ROUNDS = 5

# 2^16 to 2^20 elements.
SHAPES = [
    *[(2**16,), (2**20,), (2**15, 2), (2**14, 7), (900, 100), (250, 400), (2, 2**16), (3, 40000)],
    *[(250000, 2, 2), (2**14, 3, 5), (2000, 3, 100), (64, 64, 32), (16, 4096, 16), (3, 3, 9000)],
    *[(8000, 3, 2, 3), (30, 30, 30, 3), (8, 28, 28, 32), (5000, 2, 2, 2, 2), (9, 9, 9, 9, 11)],
]
VIEWS = {
    "contiguous": lambda shape: zeros(shape),
    "transposed": lambda shape: zeros(shape[::-1]).T,
    "first two axes swapped": lambda shape: zeros((*shape[:2][::-1], *shape[2:])).swapaxes(0, 1),
    "cut from a wider array": lambda shape: zeros([n + 3 for n in shape])[tuple(map(slice, shape))],
    "[..., ::2]": lambda shape: zeros((*shape[:-1], 2 * shape[-1]))[..., ::2],
    "[..., ::-1]": lambda shape: zeros(shape)[..., ::-1],
}
LAYER_SHAPES = [(2**16,), (250000, 2, 2), (2000, 3, 100), (64, 64, 32), (8, 28, 28, 32)]


def zeros(shape):
    """An array of zeros that were written, which scaling does not change."""
    return np.full(shape, 0, np.float32)


def noise_shapes(shape):
    """Each that shares the decisions of some axes, but not of all."""
    for kept in itertools.product((True, False), repeat=len(shape)):
        if any(kept):
            yield tuple(n if keep else 1 for n, keep in zip(shape, kept, strict=True))


def array_calls(view, shape, noise_shape):
    """Dropout in place, and NumPy's fastest recipe: bools, their product with the scale, and x's.

    One thread.
    """
    x, stream = VIEWS[view](shape), fastdrop.Stream(42)
    generator = np.random.Generator(np.random.SFC64(42))

    def ours():
        with fastdrop.num_threads(1):
            fastdrop.dropout_(x, RATE, seed=stream, noise_shape=noise_shape)

    def recipe():
        keep = generator.random(noise_shape, np.float32) >= np.float32(RATE)
        np.multiply(x, keep * SCALE, out=x)

    for call in (ours, recipe):
        x.fill(1)
        call()
        assert ((x == 0) | (x == SCALE)).all(), (call.__name__, shape, noise_shape)
    x.fill(0)
    return {"fastdrop": ours}, {"NumPy's operations": recipe}


def layer_calls(view, shape, noise_shape):
    """A layer's forward pass and gradient in a graph."""
    x = tf.zeros(shape)

    def pass_of(package):
        layer = package.Dropout(RATE, noise_shape=noise_shape, seed=1)
        drop = functools.partial(layer, training=True)
        graph = tf.function(step([drop], "forward and backward"))
        return lambda: graph(x)

    return (
        {"fastdrop_keras": pass_of(fastdrop_keras)},
        {"keras.layers.Dropout": pass_of(keras.layers)},
    )


GROUPS = {
    "NumPy arrays, in place": (array_calls, SHAPES, VIEWS),
    "layers, forward and backward": (layer_calls, LAYER_SHAPES, ["contiguous"]),
}


@functools.cache
def ranking(group):
    """All cases, from the best to the worst ratio of the least times."""
    calls_of, shapes, views = GROUPS[group]
    ranked = []
    for view, shape in itertools.product(views, shapes):
        if len(shape) == 1 and view in ("transposed", "first two axes swapped"):
            continue
        for noise_shape in noise_shapes(shape):
            ours, peers = calls_of(view, shape, noise_shape)
            turns = Turns(ours | peers)
            for _ in range(ROUNDS):
                turns.round()
            us, them = map(min, turns.figures.values())
            ranked.append((us / them, view, shape, noise_shape))
    return sorted(ranked)


@pytest.mark.full
@pytest.mark.parametrize("place", ["worst", "median"])
@pytest.mark.parametrize("group", GROUPS)
def test_shapes(measure, group, place):
    """The worst case and the median one."""
    ranked = ranking(group)
    _, *case = ranked[-1 if place == "worst" else len(ranked) // 2]
    view, shape, noise_shape = case
    ours, peers = GROUPS[group][0](*case)
    row = f"{place} of {len(ranked)}: {view} {shape}, noise {noise_shape}"
    measure("shapes", row, group=group, ours=ours, peers=peers, each=int(np.prod(shape)))
