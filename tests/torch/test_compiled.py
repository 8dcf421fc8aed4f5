"""Compiled, exported and scripted functions drop as eager ones do."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import fastdrop_torch
from fastdrop_torch import functional as F  # noqa: N812

# Of PyTorch's own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FUNCTIONS = {
    "dropout": lambda x: F.dropout(x, 0.4, seed=3),
    "channels": lambda x: F.dropout1d(x, 0.4, seed=3),
    "alpha": lambda x: F.alpha_dropout(x, 0.4, True, seed=3),
    "relu": lambda x: F.relu_dropout(x, 0.4, seed=3),
    "bias and residual": lambda x: F.bias_dropout_add(x, x[0], x, 0.4, seed=3),
    "in place": lambda x: F.dropout(x * 1.5, 0.4, inplace=True, seed=3),
    "gaussian": lambda x: F.gaussian_dropout(x, 0.4, seed=3),
    "noise in place": lambda x: F.gaussian_noise(x * 1.5, 0.4, inplace=True, seed=3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_function_gives_the_eager_bits(name, backend, dynamic):
    function = FUNCTIONS[name]
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    for rows in (5, 8) if dynamic else (5,):
        x = torch.randn(rows, 7)
        results = []
        for one in (function, compiled):
            leaf = x.clone().requires_grad_()
            y = one(leaf)
            y.sin().sum().backward()
            results.append((y.detach(), leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_each_call_in_a_compiled_function_has_a_mask_of_its_own(backend):
    compiled = torch.compile(
        lambda x: (F.dropout(x), F.dropout(x)), backend=backend, fullgraph=True
    )
    x = torch.ones(1000)
    torch.manual_seed(1)
    results = [*compiled(x), *compiled(x)]
    torch.manual_seed(1)
    again = [*compiled(x), *compiled(x)]
    for i, one in enumerate(results):
        assert torch.equal(one, again[i])
        assert 400 < int((one != 0).sum()) < 600
        for other in results[:i]:
            assert 400 < int((one != other).sum()) < 600


def test_a_compiled_gradient_has_the_mask_of_its_forward_pass():
    compiled = torch.compile(lambda x: F.dropout(x.sin(), 0.5), fullgraph=True)
    for _ in range(3):
        x = torch.ones(1000, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        assert torch.equal(x.grad != 0, y != 0)


def test_a_module_may_change_p_and_mode_after_compilation():
    drop = fastdrop_torch.Dropout(0.5)
    compiled = torch.compile(drop, fullgraph=True)
    x = torch.ones(10_000)
    for p in (0.5, 0.2):
        drop.p = p
        assert abs((compiled(x) == 0).float().mean() - p) < 0.05
    drop.eval()
    assert torch.equal(compiled(x), x)


def test_an_exported_module_drops():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = fastdrop_torch.Dropout(0.5)

        def forward(self, x):
            return self.drop(x) * 2

    batch = torch.export.Dim("batch")
    program = torch.export.export(Network(), (torch.ones(4, 50),), dynamic_shapes=({0: batch},))
    for one in (program, program.run_decompositions()):
        y = one.module()(torch.ones(30, 50))
        assert set(y.unique().tolist()) == {0.0, 4.0}
    still = torch.export.export(Network().eval(), (torch.ones(4, 50),))
    assert torch.equal(still.module()(torch.ones(4, 50)), torch.full((4, 50), 2.0))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Dropout", (40, 50)),
        ("Dropout1d", (40, 50, 3)),
        ("Dropout2d", (40, 50, 3, 3)),
        ("Dropout3d", (40, 50, 3, 3, 3)),
        ("AlphaDropout", (40, 50)),
        ("FeatureAlphaDropout", (40, 50, 3)),
        ("GaussianDropout", (40, 50)),
        ("GaussianNoise", (40, 50)),
    ],
)
def test_scripted_and_traced_modules(name, shape, inplace, tmp_path):
    module = getattr(fastdrop_torch, name)(0.5, inplace)
    scripted = torch.jit.script(module)
    scripted.save(tmp_path / "module.pt")
    traced = torch.jit.trace(module, torch.ones(shape), check_trace=False)
    torch.manual_seed(5)
    right = module(torch.ones(shape))
    for one in (scripted, torch.jit.load(tmp_path / "module.pt"), traced):
        torch.manual_seed(5)
        assert torch.equal(one(torch.ones(shape)), right)
    assert torch.equal(scripted.eval()(torch.ones(shape)), torch.ones(shape))


class Repeated(nn.Module):
    """Calls one module several times."""

    def __init__(self):
        super().__init__()
        self.drop = fastdrop_torch.Dropout(0.5)

    def forward(self, x):
        masks = []
        for _ in range(5):
            masks.append(self.drop(x))
        return torch.stack(masks)


def test_each_call_in_a_script_has_a_mask_of_its_own():
    scripted = torch.jit.script(Repeated())
    for _ in range(4):  # TorchScript optimizes after some calls
        masks = scripted(torch.ones(500))
        assert len({tuple(mask.tolist()) for mask in masks}) == 5


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_checkpoint_replays_its_mask(backend):
    drop = fastdrop_torch.Dropout(0.5)
    compiled = torch.compile(
        lambda x: checkpoint(lambda x: drop(x.sin()), x, use_reentrant=False),
        backend=backend,
        fullgraph=True,
    )
    x = torch.ones(1000, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


def test_make_fx_traces_the_operations():
    graph = make_fx(lambda x: F.dropout(x, 0.5), tracing_mode="symbolic")(torch.ones(40, 50))
    names = {str(node.target) for node in graph.graph.nodes}
    assert "fastdrop.forward.default" in names
    assert set(graph(torch.ones(7, 50)).unique().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("forward", (0.5, None, False)),
        ("forward", (0.5, [4, 1], False)),
        ("forward", (0.5, None, True)),
        ("bias_forward", (0.5, None, 2.0)),
        ("backward", (2.0, [4, 1])),
        *(("draw", (kind, 0.5, [4, 1])) for kind in range(1, 5)),
    ],
)
def test_opcheck(name, arguments):
    x = torch.randn(4, 5, requires_grad=True)
    seed = torch.tensor([1, 2])
    operands = {
        "forward": (x, seed),
        "bias_forward": (x, torch.randn(5, requires_grad=True), x.detach(), seed),
        "backward": (x, torch.tensor([0b1010], dtype=torch.uint8)),
        "draw": (x, seed),
    }[name]
    operation = getattr(torch.ops.fastdrop, name).default
    torch.library.opcheck(operation, (*operands, *arguments))


@pytest.mark.slow
def test_attention_is_compiled_with_our_dropout_only_where_it_is_switched_on(tmp_path, monkeypatch):
    """Whatever the process compiled before, and whatever others left in PyTorch's cache."""
    program = """
import contextlib, sys, torch, fastdrop_torch
q = torch.ones(1, 2, 16, 8, requires_grad=True)
def attention(q):
    return torch.nn.functional.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
for word in sys.argv[1:]:
    torch.compiler.reset()
    with fastdrop_torch.enabled() if word == "on" else contextlib.nullcontext():
        compiled = torch.compile(attention, fullgraph=True)
        compiled(q).sum().backward()
        with torch.profiler.profile() as profile:
            compiled(q)
    found = any(one.key == "fastdrop::forward" for one in profile.key_averages())
    assert found == (word == "on"), word
"""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for words in (["off", "on"], ["on"], ["off"]):
        subprocess.run([sys.executable, "-c", program, *words], check=True)


@pytest.mark.parametrize("on", [False, True])
def test_a_trace_has_pytorchs_operation_unless_it_is_switched(on):
    x = torch.ones(5)
    with fastdrop_torch.enabled(on):
        traced = make_fx(lambda x: nn.functional.dropout(x), tracing_mode="symbolic")(x)
    names = {str(node.target) for node in traced.graph.nodes}
    assert ("fastdrop.forward.default" in names) == on
    assert ("aten.native_dropout.default" in names) != on
