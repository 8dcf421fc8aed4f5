"""How fast is dropout in PyTorch: one call, and a training step? Eager and compiled."""

import contextlib
import statistics
import time

import pytest

import fastdrop
from bench.peers import TORCH_OURS, TORCH_PEERS, check_peer, torch_on_one_thread

torch = pytest.importorskip("torch")
fastdrop_torch = pytest.importorskip("fastdrop_torch", exc_type=ImportError)
nn = torch.nn
# Of PyTorch's compiler.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# The default of `nn.TransformerEncoderLayer`.
RATE = 0.1

COMPILED = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="eager"),
        pytest.param(True, id="compiled", marks=pytest.mark.full),
    ],
)


@pytest.fixture(autouse=True)
def one_thread():
    """Run each benchmark on one thread, with nothing compiled by the one before."""
    threads = torch.get_num_threads()
    torch_on_one_thread()
    torch.compiler.reset()
    with fastdrop.num_threads(1):
        yield
    torch.set_num_threads(threads)


@COMPILED
@pytest.mark.parametrize(
    "direction", [pytest.param("forward", marks=pytest.mark.full), "forward and backward"]
)
@pytest.mark.exponents((4, 10, 14, 18, 22), quick=(14,))
def test_call(measure, exponent, direction, compiled):
    """One call of `dropout`."""
    size = 2**exponent

    def call_of(calls):
        return calls.forward if direction == "forward" else calls.training

    def calls(makers):
        made = {}
        for name, make in makers.items():

            def make_one(size, rate, make=make):
                return make(size, rate, compiled)

            check_peer(name, make_one, size, RATE)
            made[name] = call_of(make_one(size, RATE))
        return made

    x, dy, leaf = torch.ones(size), torch.ones(size), torch.ones(size, requires_grad=True)
    limits = {
        "forward": lambda: x * 1.25,
        "forward and backward": lambda: torch.autograd.grad(leaf * 1.25, leaf, dy),
    }
    measure(
        "torch layers",
        f"2^{exponent}",
        group=f"{direction}, {'compiled' if compiled else 'eager'}",
        ours=calls(TORCH_OURS),
        peers=calls(TORCH_PEERS),
        limits={"an eager multiplication": limits[direction]},
    )


@pytest.mark.exponents((10, 14, 18, 22), quick=(18,))
def test_noise(measure, exponent):
    """Gaussian dropout and its gradient, eager."""
    x, dy = torch.ones(2**exponent, requires_grad=True), torch.ones(2**exponent)
    stddev = (RATE / (1 - RATE)) ** 0.5

    def gradient_of(draw):
        return lambda: torch.autograd.grad(draw(), x, dy)

    measure(
        "torch layers",
        f"2^{exponent}",
        group="Gaussian dropout, forward and backward, eager",
        ours={
            "fastdrop_torch": gradient_of(
                lambda: fastdrop_torch.functional.gaussian_dropout(x, RATE)
            )
        },
        peers={
            "PyTorch's operations": gradient_of(
                lambda: x * torch.randn_like(x).mul_(stddev).add_(1)
            )
        },
    )


def their_stochastic_depth(x):
    """The expression of torchvision and timm."""
    return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5)


def their_drop_block(x):
    """The expression of torchvision, which draws a number for each position."""
    n, c, h, w = x.shape
    gamma = 0.1 * h * w / 7**2 / ((h - 6) * (w - 6))
    starts = torch.bernoulli(torch.full((n, c, h - 6, w - 6), gamma))
    starts = nn.functional.pad(starts, [3] * 4)
    kept = 1 - nn.functional.max_pool2d(starts, 7, 1, 3)
    return x * kept * (kept.numel() / (1e-6 + kept.sum()))


def their_rates(p):
    """Dropout by a tensor of probabilities, in PyTorch's operations."""
    return lambda x: x * torch.bernoulli(1 - p).div_(1 - p)


F = fastdrop_torch.functional
RATES = torch.linspace(0, 0.9, 2**18)
LINEAR = fastdrop_torch.DropConnectLinear(1024, 1024, p=0.5)
NETWORK, THEIR_NETWORK = fastdrop_torch.LSTM(256, 256, input_dropout=0.5), nn.LSTM(256, 256)
# Ours, PyTorch's expression, and the input's shape.
STRUCTURED = {
    "stochastic_depth, inputs (32, 64, 28, 28)": (
        lambda x: F.stochastic_depth(x, 0.5),
        their_stochastic_depth,
        (32, 64, 28, 28),
    ),
    "drop_block2d(0.1, 7), inputs (32, 64, 28, 28)": (
        lambda x: F.drop_block2d(x, 0.1, 7),
        their_drop_block,
        (32, 64, 28, 28),
    ),
    "DropConnectLinear(1024, 1024), inputs (128, 1024)": (
        LINEAR,
        lambda x: nn.functional.linear(x, nn.functional.dropout(LINEAR.weight, 0.5), LINEAR.bias),
        (128, 1024),
    ),
    "LSTM(256, 256) with masked inputs (50, 32, 256)": (
        lambda x: NETWORK(x)[0],
        lambda x: THEIR_NETWORK(x * torch.empty_like(x[:1]).bernoulli_(0.5).div_(0.5))[0],
        (50, 32, 256),
    ),
    "dropout by 2^18 probabilities": (
        lambda x: F.dropout(x, RATES),
        their_rates(RATES),
        (2**18,),
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", STRUCTURED)
def test_structured(measure, name):
    """Dropout of samples, blocks, weights, sequences, and by a tensor of rates, eager."""
    ours, theirs, shape = STRUCTURED[name]
    x, dy = torch.ones(shape, requires_grad=True), torch.ones(shape)

    def gradient_of(function):
        return lambda: torch.autograd.grad(function(x), x, dy)

    measure(
        "torch layers",
        name,
        group="forward and backward, eager",
        ours={"fastdrop_torch": gradient_of(ours)},
        peers={"PyTorch's operations": gradient_of(theirs)},
        seconds=1.5,
    )


def plain_lstm(lstm, x):
    """Return the outputs of an LSTM in PyTorch's operations, with one mask for all time steps."""
    w_ih, w_hh, b_ih, b_hh = lstm.all_weights[0]
    h = c = x.new_zeros(x.shape[1], lstm.hidden_size)
    x_factors = nn.functional.dropout(torch.ones_like(x[0]), RATE)
    h_factors = nn.functional.dropout(torch.ones_like(h), RATE)
    outputs = []
    for from_x in nn.functional.linear(x * x_factors, w_ih, b_ih + b_hh):
        i, f, g, o = torch.addmm(from_x, h * h_factors, w_hh.t()).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def test_recurrent(measure):
    """An LSTM with dropout of inputs and states, and its gradients, eager."""
    x = torch.ones(50, 32, 64)
    ours = fastdrop_torch.LSTM(64, 128, input_dropout=RATE, recurrent_dropout=RATE)
    plain = nn.LSTM(64, 128)
    measure(
        "torch layers",
        "50 x 64, 128 units, batch 32",
        group="LSTM with dropout of inputs and states, forward and backward, eager",
        ours={"fastdrop_torch": lambda: ours(x)[0].sum().backward()},
        peers={"PyTorch's operations": lambda: plain_lstm(plain, x).sum().backward()},
        limits={"torch.nn.LSTM without dropout": lambda: plain(x)[0].sum().backward()},
    )


def perceptron(rate):
    """The network of tutorials on MNIST, with two dropouts."""
    return nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Dropout(rate)),
        *(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(rate)),
        nn.Linear(512, 10),
    )


def transformer_encoder(rate):
    """Two of PyTorch's encoder blocks, each with four dropouts, one on attention weights."""
    block = nn.TransformerEncoderLayer(256, 4, 1024, rate, batch_first=True)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Linear(256, 10))


# The network, its inputs' shape, its rate, and the steps of one turn.
NETWORKS = {
    "MLP, 784-512-512-10, batch 128": (perceptron, (128, 784), 0.5, 8),
    "transformer encoder, 128 x 256, batch 16": (transformer_encoder, (16, 128, 256), RATE, 1),
}


def steps(network, dropout, compiled):
    """A call that trains for a few steps and returns the median seconds of a step.

    `dropout` is "none", "theirs" or "ours".
    """
    build, shape, rate, count = NETWORKS[network]
    torch.manual_seed(0)
    model = build(0.0 if dropout == "none" else rate)
    switch = contextlib.nullcontext
    if dropout == "ours":
        fastdrop_torch.convert(model, verbose=False)
        switch = fastdrop_torch.enabled
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    x, labels = torch.randn(shape), torch.randint(10, shape[:-1])

    def loss_of(x, labels):
        return nn.functional.cross_entropy(model(x).flatten(0, -2), labels.flatten())

    if compiled:
        loss_of = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def train():
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            with switch():
                optimizer.zero_grad()
                loss_of(x, labels).backward()
                optimizer.step()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    return train


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(name, marks=() if name.startswith("MLP") else pytest.mark.full)
        for name in NETWORKS
    ],
)
@pytest.mark.parametrize(
    ("threads", "compiled"),
    [
        pytest.param(1, False, id="eager"),
        pytest.param(2, False, id="eager, 2 threads", marks=pytest.mark.full),
        pytest.param(1, True, id="compiled", marks=pytest.mark.full),
    ],
)
def test_step(measure, threads, compiled, network):
    """With our dropout, with PyTorch's, and without dropout."""
    torch.set_num_threads(threads)
    fastdrop.set_num_threads(threads)
    measure(
        "torch training",
        network,
        group=f"{'compiled' if compiled else 'eager'}, {threads} thread{'s' * (threads > 1)}",
        ours={"fastdrop_torch": steps(network, "ours", compiled)},
        peers={"torch.nn.Dropout": steps(network, "theirs", compiled)},
        limits={"no dropout": steps(network, "none", compiled)},
        seconds=12.0,
    )
