"""How fast is dropout in JAX: one call, and a training step in Flax?"""

import statistics
import time

import pytest

import fastdrop
from bench.peers import JAX_OURS, JAX_PEERS, check_peer, jax_calls, jax_on_one_thread

jax = pytest.importorskip("jax")
nnx = pytest.importorskip("flax.nnx")
optax = pytest.importorskip("optax")
fastdrop_jax = pytest.importorskip("fastdrop_jax", exc_type=ImportError)
flax_layers = pytest.importorskip("fastdrop_jax.nnx")

RATE = 0.1

# JAX's default generator, and the fastest that it documents.
GENERATORS = pytest.mark.parametrize(
    "generator",
    ["threefry2x32", pytest.param("unsafe_rbg", marks=pytest.mark.full)],
)


@pytest.fixture(autouse=True)
def one_thread():
    jax_on_one_thread()
    with fastdrop.num_threads(1):
        yield


@GENERATORS
@pytest.mark.parametrize(
    "direction", [pytest.param("forward", marks=pytest.mark.full), "forward and backward"]
)
@pytest.mark.exponents((4, 10, 14, 18, 22), quick=(14,))
def test_call(measure, exponent, direction, generator):
    """One call of a jitted function."""
    size = 2**exponent

    def calls(makers):
        made = {}
        for name, make in makers.items():

            def make_one(size, rate, make=make):
                return make(size, rate, generator)

            check_peer(name, make_one, size, RATE)
            made[name] = call_of(make_one(size, RATE))
        return made

    def call_of(calls):
        return calls.forward if direction == "forward" else calls.training

    product = jax_calls(lambda key, x, rate: x * (1 / (1 - rate)), size, RATE, generator)
    measure(
        "jax layers",
        f"2^{exponent}",
        group=f"{direction}, {generator}",
        ours=calls(JAX_OURS),
        peers=calls(JAX_PEERS),
        limits={"a multiplication": call_of(product)},
    )


@GENERATORS
@pytest.mark.exponents((10, 14, 18, 22), quick=(18,))
def test_noise(measure, exponent, generator):
    """Gaussian dropout and its gradient, in a jitted function."""

    def of_jax(key, x, rate):
        stddev = (rate / (1 - rate)) ** 0.5
        return x * (1 + stddev * jax.random.normal(key, x.shape, x.dtype))

    ours, peer = (
        jax_calls(draw, 2**exponent, RATE, generator).training
        for draw in (fastdrop_jax.gaussian_dropout, of_jax)
    )
    measure(
        "jax layers",
        f"2^{exponent}",
        group=f"Gaussian dropout, forward and backward, {generator}",
        ours={"fastdrop_jax": ours},
        peers={"JAX's operations": peer},
    )


def standout_of_jax(key, x, rate):
    return jax.numpy.where(jax.random.bernoulli(key, jax.nn.sigmoid(x)), x, 0)


def variational_of_jax(key, x, rate):
    deviation = jax.numpy.exp(jax.numpy.log(rate / (1 - rate)) / 2)
    return x * (1 + deviation * jax.random.normal(key, x.shape, x.dtype))


# The layer for inputs of a size, and the operations of JAX.
ADAPTIVE = {
    "Standout": (lambda size: flax_layers.Standout(), standout_of_jax),
    "VariationalGaussianDropout": (
        lambda size: flax_layers.VariationalGaussianDropout(size, 0.0, initial_rate=RATE),
        variational_of_jax,
    ),
}


@GENERATORS
@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.exponents((10, 14, 18, 22), quick=(18,))
def test_adaptive(measure, exponent, name, generator):
    """A layer that computes or learns its rates, and the gradient of its inputs."""
    make, of_jax = ADAPTIVE[name]
    layer = make(2**exponent)

    def ours(key, x, rate):
        return layer(x, rngs=key)

    measure(
        "jax layers",
        f"2^{exponent}",
        group=f"{name}, forward and backward, {generator}",
        ours={"fastdrop_jax": jax_calls(ours, 2**exponent, RATE, generator).training},
        peers={"JAX's operations": jax_calls(of_jax, 2**exponent, RATE, generator).training},
    )


def drop_block_of_jax(key, x):
    """The authors' expression: a number for each position at which a block can begin."""
    n, h, w, c = x.shape
    gamma = 0.1 * h * w / 7**2 / ((h - 6) * (w - 6))
    starts = jax.random.bernoulli(key, gamma, (n, h - 6, w - 6, c)).astype(x.dtype)
    around, window = ((0, 0), (6, 6), (6, 6), (0, 0)), (1, 7, 7, 1)
    starts = jax.numpy.pad(starts, around)
    blocks = jax.lax.reduce_window(starts, 0.0, jax.lax.max, window, (1,) * 4, "valid")
    return x * (1 - blocks) * (blocks.size / (blocks.size - blocks.sum()))


def stochastic_depth_of_jax(key, x):
    return x * jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1)) / 0.5


def kinds():
    """Our function and JAX's operations, each of a key and inputs, and the inputs' shape."""
    rngs, images = nnx.Rngs(0), (32, 28, 28, 64)
    connected = flax_layers.DropConnectLinear(1024, 1024, 0.5, rngs=rngs)
    kernel, bias = connected.kernel[...], connected.bias[...]
    rates = {"dropout": 0.2, "recurrent_dropout": 0.2}
    cell = flax_layers.OptimizedLSTMCell(64, 128, **rates, rngs=rngs)
    ours, theirs = nnx.split(flax_layers.RNN(cell)), nnx.OptimizedLSTMCell(64, 128, rngs=rngs)

    def lstm(key, x):
        model = nnx.merge(*ours, copy=True)
        nnx.reseed(model, recurrent_dropout=key)
        return model(x)

    def lstm_of_jax(key, x):
        of_x, of_h = jax.random.split(key)
        of_x = jax.random.bernoulli(of_x, 0.8, (len(x), 1, 64)) / 0.8
        of_h = jax.random.bernoulli(of_h, 0.8, (len(x), 128)) / 0.8

        def step(carry, x):
            c, h = carry
            return theirs((c, h * of_h), x)

        steps = jax.numpy.swapaxes(x * of_x, 0, 1)
        zeros = jax.numpy.zeros((len(x), 128))
        return jax.lax.scan(step, (zeros, zeros), steps)[1]

    return {
        "drop_block(0.1, 7), inputs (32, 28, 28, 64)": (
            lambda key, x: fastdrop_jax.drop_block(key, x, 0.1, 7),
            drop_block_of_jax,
            images,
        ),
        "StochasticDepth(0.5), inputs (32, 28, 28, 64)": (
            lambda key, x: flax_layers.StochasticDepth(0.5)(x, rngs=key),
            stochastic_depth_of_jax,
            images,
        ),
        "DropConnectLinear(1024, 1024), inputs (128, 1024)": (
            lambda key, x: connected(x, rngs=key),
            lambda key, x: x @ (kernel * jax.random.bernoulli(key, 0.5, kernel.shape) / 0.5) + bias,
            (128, 1024),
        ),
        "OptimizedLSTMCell(64, 128) with dropout, inputs (32, 50, 64)": (
            lstm,
            lstm_of_jax,
            (32, 50, 64),
        ),
    }


@pytest.mark.full
@pytest.mark.parametrize("name", kinds())
def test_kind(measure, name):
    """Another kind of dropout and the gradient of its inputs, in a jitted function."""
    ours, of_jax, shape = kinds()[name]
    x = jax.numpy.ones(shape)

    def training(function):
        @jax.jit
        def step(key, x):
            key, one = jax.random.split(key)
            y, pull = jax.vjp(lambda x: function(one, x), x)
            return key, y, pull(y)

        keys = [jax.random.key(0)]

        def call():
            keys[0], *results = step(keys[0], x)
            jax.block_until_ready(results)

        return call

    measure(
        "jax layers",
        name,
        group="other kinds, forward and backward, threefry2x32",
        ours={"fastdrop_jax": training(ours)},
        peers={"JAX's operations": training(of_jax)},
        seconds=1.5,
    )


class Perceptron(nnx.Module):
    """The network of tutorials on MNIST, with two dropouts."""

    def __init__(self, dropout, rngs):
        self.layers = nnx.List([nnx.Linear(784, 512, rngs=rngs), nnx.Linear(512, 512, rngs=rngs)])
        self.dropouts = nnx.List([dropout(), dropout()])
        self.last = nnx.Linear(512, 10, rngs=rngs)

    def __call__(self, x):
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            x = dropout(nnx.relu(layer(x)))
        return self.last(x)


class Block(nnx.Module):
    """An encoder block with four dropouts, one on attention weights."""

    heads, width, hidden = 4, 256, 1024

    def __init__(self, dropout, rngs):
        self.project = nnx.Linear(self.width, 3 * self.width, rngs=rngs)
        self.merge = nnx.Linear(self.width, self.width, rngs=rngs)
        self.expand = nnx.Linear(self.width, self.hidden, rngs=rngs)
        self.contract = nnx.Linear(self.hidden, self.width, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(self.width, rngs=rngs) for _ in range(2)])
        self.dropouts = nnx.List([dropout() for _ in range(4)])

    def __call__(self, x):
        batch, length, width = x.shape
        parts = self.project(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = (parts[:, :, i] for i in range(3))
        scores = jax.numpy.einsum("bqhd,bkhd->bhqk", query, key) / (width // self.heads) ** 0.5
        weights = self.dropouts[0](jax.nn.softmax(scores))
        attended = jax.numpy.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        x = self.norms[0](x + self.dropouts[1](self.merge(attended)))
        inner = self.dropouts[2](nnx.relu(self.expand(x)))
        return self.norms[1](x + self.dropouts[3](self.contract(inner)))


class Encoder(nnx.Module):
    """Two encoder blocks, and a classifier at each position."""

    def __init__(self, dropout, rngs):
        self.blocks = nnx.List([Block(dropout, rngs) for _ in range(2)])
        self.last = nnx.Linear(Block.width, 10, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.last(x)


# The network, its inputs' shape, its rate, and the steps of one turn.
NETWORKS = {
    "MLP, 784-512-512-10, batch 128": (Perceptron, (128, 784), 0.5, 8),
    "transformer encoder, 128 x 256, batch 16": (Encoder, (16, 128, 256), RATE, 1),
}


def steps(network, layer, generator):
    """A call that trains for a few steps and returns the median seconds of a step."""
    build, shape, rate, count = NETWORKS[network]
    rngs = nnx.Rngs(params=0, dropout=jax.random.key(0, impl=generator))
    model = build(lambda: layer(rate, rngs=rngs), rngs)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(1), shape)
    labels = jax.random.randint(jax.random.key(2), shape[:-1], 0, 10)

    @nnx.jit
    def step(model, optimizer, x, labels):
        def loss_of(model):
            losses = optax.softmax_cross_entropy_with_integer_labels(model(x), labels)
            return losses.mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    def train():
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            step(model, optimizer, x, labels).block_until_ready()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    return train


@GENERATORS
@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=() if name.startswith("MLP") else pytest.mark.full)
        for name in NETWORKS
    ],
)
def test_step(measure, network, generator):
    """With our dropout, with Flax's, and without dropout."""

    def without(rate, rngs):
        return nnx.Dropout(0.0, rngs=rngs)

    measure(
        "jax training",
        network,
        group=generator,
        ours={"fastdrop_jax": steps(network, flax_layers.Dropout, generator)},
        peers={"flax.nnx.Dropout": steps(network, nnx.Dropout, generator)},
        limits={"no dropout": steps(network, without, generator)},
        seconds=12.0,
    )
