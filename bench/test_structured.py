"""How fast are the Keras layers that drop weights, blocks of images, or samples?"""

import keras
import pytest
import tensorflow as tf
from keras import ops

import fastdrop_keras

RATE = 0.5
BLOCK = 7


class KerasDropConnect(keras.layers.Dense):
    """What a user of Keras writes."""

    def __init__(self, units):
        super().__init__(units)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs, training=False):
        kernel = ops.convert_to_tensor(self.kernel)
        if training:
            kernel = keras.random.dropout(kernel, RATE, seed=self.seed_generator)
        return ops.add(ops.matmul(inputs, kernel), self.bias)


class KerasDropBlock(keras.layers.Layer):
    """The authors' expression, by Keras's functions: uniform numbers for all positions."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs, training=False):
        _, rows, cols, _ = inputs.shape
        places = (rows - BLOCK + 1) * (cols - BLOCK + 1)
        gamma = 0.1 * rows * cols / BLOCK**2 / places
        around = [(0, 0), *[(BLOCK // 2, (BLOCK - 1) // 2)] * 2, (0, 0)]
        valid = ops.pad(ops.ones((1, rows - BLOCK + 1, cols - BLOCK + 1, 1)), around)
        uniform = keras.random.uniform(ops.shape(inputs), seed=self.seed_generator)
        starts = valid * ops.cast(uniform < gamma, "float32")
        kept = 1 - ops.max_pool(starts, BLOCK, strides=1, padding="same")
        return inputs / ops.mean(kept) * kept


def training_step(layer, shape):
    """A call of a graph: the forward pass, and the gradients of the inputs and weights."""
    x = tf.ones(shape)
    layer(x)
    weights = [weight.value for weight in layer.trainable_weights]

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, [x, *weights])

    step(x)
    return lambda: step(x)


CASES = {
    "DropConnectDense(1024), inputs (128, 1024)": (
        lambda: fastdrop_keras.DropConnectDense(1024, RATE, seed=1),
        lambda: KerasDropConnect(1024),
        "keras.random.dropout of the kernel",
        (128, 1024),
    ),
    "DropBlock2D(0.1, 7), inputs (32, 28, 28, 64)": (
        lambda: fastdrop_keras.DropBlock2D(0.1, BLOCK, seed=1),
        KerasDropBlock,
        "the authors' expression",
        (32, 28, 28, 64),
    ),
    "StochasticDepth, inputs (32, 28, 28, 64)": (
        lambda: fastdrop_keras.StochasticDepth(RATE, seed=1),
        lambda: keras.src.applications.convnext.StochasticDepth(RATE),
        "ConvNeXt's layer",
        (32, 28, 28, 64),
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_structured(measure, name):
    """A training step of one layer in a graph."""
    ours, theirs, peer, shape = CASES[name]
    measure(
        "one layer",
        name,
        group="in a graph, forward and backward",
        ours={"fastdrop_keras": training_step(ours(), shape)},
        peers={peer: training_step(theirs(), shape)},
        seconds=1.5,
    )
