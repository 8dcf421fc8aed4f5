"""How fast are the other Keras layers: noise, structured, learned and recurrent dropout?"""

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


class KerasVariational(keras.layers.Layer):
    """Variational dropout in operations of Keras."""

    def build(self, input_shape):
        self.log_alpha = self.add_weight(shape=input_shape[-1:], initializer="zeros")
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        numbers = keras.random.normal(ops.shape(x), seed=self.seeds)
        return x * (1 + ops.exp(self.log_alpha / 2) * numbers)


class KerasConcrete(keras.layers.Layer):
    """Concrete dropout in operations of Keras, before a layer of one unit."""

    def build(self, input_shape):
        self.layer = keras.layers.Dense(1)
        self.logit = self.add_weight(shape=(), initializer="zeros")
        self.seeds = keras.random.SeedGenerator(1)

    def call(self, x, training=False):
        u = keras.random.uniform(ops.shape(x), seed=self.seeds)
        noise = ops.log(u + 1e-7) - ops.log(1 - u + 1e-7)
        kept = ops.sigmoid(-(self.logit + noise) / 0.1)
        return self.layer(x * (kept / (1 - ops.sigmoid(self.logit))))


def training_step(layers, shape):
    """A call of a graph: the forward pass, and the gradients of the inputs and weights."""
    x = tf.ones(shape)
    model = keras.Sequential(layers)
    model(x)
    weights = [weight.value for weight in model.trainable_weights]

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = model(x, training=True)
        return y, tape.gradient(y, [x, *weights])

    step(x)
    return lambda: step(x)


# What makes our layer, what makes the peer, the peer's name and the shape of the inputs.
CASES = {
    "DropConnectDense(1024), inputs (128, 1024)": (
        lambda: fastdrop_keras.DropConnectDense(1024, RATE, seed=1),
        lambda: KerasDropConnect(1024),
        "operations of Keras",
        (128, 1024),
    ),
    "DropBlock2D(0.1, 7), inputs (32, 28, 28, 64)": (
        lambda: fastdrop_keras.DropBlock2D(0.1, BLOCK, seed=1),
        KerasDropBlock,
        "operations of Keras",
        (32, 28, 28, 64),
    ),
    "StochasticDepth, inputs (32, 28, 28, 64)": (
        lambda: fastdrop_keras.StochasticDepth(RATE, seed=1),
        lambda: keras.src.applications.convnext.StochasticDepth(RATE),
        "operations of Keras",
        (32, 28, 28, 64),
    ),
    "VariationalGaussianDropout, inputs (512, 512)": (
        lambda: fastdrop_keras.VariationalGaussianDropout(0.0, per="unit"),
        KerasVariational,
        "operations of Keras",
        (512, 512),
    ),
    "ConcreteDropout, inputs (512, 512)": (
        lambda: fastdrop_keras.ConcreteDropout(keras.layers.Dense(1)),
        KerasConcrete,
        "operations of Keras",
        (512, 512),
    ),
}


def recurrent_case(name, rates):
    def make(package):
        return getattr(package, name)(128, seed=1, **rates)

    return lambda: make(fastdrop_keras), lambda: make(keras.layers), "keras.layers", (32, 50, 64)


for name in ("LSTM", "GRU", "SimpleRNN"):
    CASES[f"{name}(128, dropout=0.2), inputs (32, 50, 64)"] = recurrent_case(name, {"dropout": 0.2})
    CASES[f"{name}(128, dropout=0.2, recurrent_dropout=0.2), inputs (32, 50, 64)"] = recurrent_case(
        name, {"dropout": 0.2, "recurrent_dropout": 0.2}
    )


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_kind(measure, name):
    """A training step of one layer in a graph."""
    ours, theirs, peer, shape = CASES[name]
    measure(
        "kinds",
        name,
        group="one layer in a graph, forward and backward",
        ours={"fastdrop_keras": training_step([ours()], shape)},
        peers={peer: training_step([theirs()], shape)},
        seconds=1.5,
    )


@pytest.mark.exponents((16, 20))
@pytest.mark.parametrize("layer", ["GaussianDropout", "GaussianNoise", "AlphaDropout"])
def test_noise_layers(measure, layer, exponent):
    """Forty layers in a row, since the call of a graph takes as long as several small layers."""

    def step(package):
        layers = [getattr(package, layer)(RATE, seed=seed) for seed in range(40)]
        return training_step(layers, (1, 2**exponent))

    measure(
        "kinds",
        f"{layer}, 2^{exponent}",
        group="forty layers in a graph, forward and backward",
        ours={"fastdrop_keras": step(fastdrop_keras)},
        peers={"keras.layers": step(keras.layers)},
        each=40,
        seconds=1.5,
    )
