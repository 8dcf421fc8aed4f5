"""The modules that drop samples, blocks and weights give the reference, and are found in models."""

import copy
import math
import pickle
import sys
import types

import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastdrop_torch
from fastdrop_torch import functional as F  # noqa: N812

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SEED = 2**100 + 12345
# A module, and the shape of its inputs.
MODULES = {
    "row": (lambda p: fastdrop_torch.StochasticDepth(p), (64, 3, 5, 5)),
    "batch": (lambda p: fastdrop_torch.StochasticDepth(p, "batch"), (4, 3, 5, 5)),
    "DropBlock2d": (lambda p: fastdrop_torch.DropBlock2d(p, (2, 3)), (8, 3, 9, 10)),
    "DropConnectLinear": (lambda p: fastdrop_torch.DropConnectLinear(30, 40, p=p), (5, 30)),
    "DropConnectConv2d": (
        lambda p: fastdrop_torch.DropConnectConv2d(4, 6, 3, stride=2, padding=1, groups=2, p=p),
        (2, 4, 9, 9),
    ),
}
each_module = pytest.mark.parametrize("name", MODULES)


def position():
    """The seed and the step that the next call takes from PyTorch's generator."""
    state = torch.get_rng_state()
    words = torch.randint(2**63 - 1, (2,)).tolist()
    torch.set_rng_state(state)
    return words


def kept(p, shape, seed, step=0):
    return torch.from_numpy(reference.keep_mask(seed, step, p, math.prod(shape)).reshape(shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth(mode, dtype):
    x = torch.randn(70, 3, 4).to(dtype)
    x[0] = x[1] = math.nan
    for p in (0.0, 0.3, 1.0):
        for seed in range(SEED, SEED + 5):
            keep = kept(p, (70, 1, 1) if mode == "row" else (1, 1, 1), seed)
            right = torch.where(keep, x * (1 / (1 - p) if p < 1 else 0.0), 0)
            y = F.stochastic_depth(x, p, mode, seed=seed)
            assert y.dtype == dtype
            assert torch.allclose(y, right, rtol=0.01, equal_nan=True)
            assert torch.equal(y.signbit() & (y == 0), x.signbit() & (right == 0) & (x == 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 3, (2, 5), (8, 1), 20])
def test_drop_block(dtype, block):
    sizes = block if isinstance(block, tuple) else (block, block)
    x = torch.randn(3, 4, 8, 9).to(dtype)
    x[:, :, 2] = math.nan
    for p in (0.1, 0.5, 1.0):
        keep = reference.blocks_kept(x.shape, p, sizes, SEED, data_format="channels_first")
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = torch.tensor(keep.size, dtype=wide) / max(int(keep.sum()), 1)
        right = torch.where(torch.from_numpy(keep), (x.to(wide) * scale).to(dtype), 0)
        y = F.drop_block2d(x, p, block, seed=SEED)
        assert y.dtype == dtype
        assert torch.equal(y.nan_to_num(7), right.nan_to_num(7))
        changed = x.clone()
        assert F.drop_block2d(changed, p, block, inplace=True, seed=SEED) is changed
        assert torch.equal(changed.nan_to_num(7), right.nan_to_num(7))


@pytest.mark.parametrize("name", ["DropConnectLinear", "DropConnectConv2d"])
def test_drop_connect_drops_weights(name):
    make, shape = MODULES[name]
    layer, x = make(0.3), torch.randn(shape)
    seed, step = position()
    y = layer(x)
    keep = kept(0.3, layer.weight.shape, seed, step)
    weight = torch.where(keep, layer.weight * np.float32(1 / 0.7), 0)
    if name == "DropConnectLinear":
        right = nn.functional.linear(x, weight, layer.bias)
    else:
        right = nn.functional.conv2d(x, weight, layer.bias, 2, 1, groups=2)
    assert torch.allclose(y, right, atol=1e-6)
    y.sum().backward()
    assert torch.equal(layer.weight.grad != 0, keep)
    assert (layer.bias.grad != 0).all()


@pytest.mark.parametrize("name", ["DropConnectLinear", "DropConnectConv2d"])
def test_drop_connect_in_evaluation_is_the_module_of_pytorch(name):
    make, shape = MODULES[name]
    layer, x = make(0.3).eval(), torch.randn(shape)
    theirs = {
        "DropConnectLinear": lambda: nn.Linear(30, 40),
        "DropConnectConv2d": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
    }[name]()
    theirs.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), theirs(x))
    assert isinstance(layer, type(theirs))
    assert repr(layer) == repr(theirs).replace(type(theirs).__name__, name)[:-1] + ", p=0.3)"


@each_module
def test_manual_seed_repeats_and_p_can_change(name):
    make, shape = MODULES[name]
    module, x = make(0.5), torch.randn(shape)
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append([module(x) for _ in range(8)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert any(not torch.equal(one, results[0][0]) for one in results[0])
    module.p = 0.0
    assert torch.equal(module(x), module.eval()(x))
    for one in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(one(x), module(x))


@each_module
def test_a_recomputation_has_the_mask_of_the_forward_pass(name):
    make, shape = MODULES[name]
    module, x = make(0.5), torch.randn(shape, requires_grad=True)
    gradients = []
    for through in (lambda x: module(x), lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(3)
        y = through(x)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
    assert torch.equal(*gradients)


# Of PyTorch's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each_module
def test_a_compiled_module_drops(name):
    make, shape = MODULES[name]
    module, x = make(0.5), torch.randn(shape)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    right = [module(x) for _ in range(4)]
    torch.manual_seed(1)
    for one in right:
        assert torch.allclose(compiled(x), one)


@each_module
def test_autocast(name):
    make, shape = MODULES[name]
    module, x = make(0.5), torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == (torch.bfloat16 if "Connect" in name else torch.float32)


@each_module
def test_mc_predict_lets_it_draw(name):
    make, shape = MODULES[name]
    module, x = make(0.5), torch.randn(shape)
    _, deviation = fastdrop_torch.mc_predict(nn.Sequential(module), x, 20, seed=1)
    assert (deviation > 0).double().mean() > 0.5
    assert module.training


def test_gradients_are_those_of_the_kept_elements():
    x = torch.randn(3, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    for function in (
        lambda x: F.stochastic_depth(x, 0.5, seed=3),
        lambda x: F.drop_block2d(x, 0.3, 2, seed=3),
    ):
        assert torch.autograd.gradcheck(function, x)


def test_bad_arguments_are_named():
    x = torch.ones(2, 3, 4, 4)
    state = torch.get_rng_state()
    for p in (-0.1, 1.1, math.nan):
        for call in (
            *(lambda p=p, make=make: make(p) for make, _ in MODULES.values()),
            lambda p=p: F.stochastic_depth(x, p),
            lambda p=p: F.drop_block2d(x, p, 2, inplace=True),
        ):
            with pytest.raises(ValueError, match=f"between 0 and 1, but got {p}"):
                call()
    for call in (
        *(lambda make=make: make("0.5") for make, _ in MODULES.values()),
        lambda: F.drop_block2d(x, "0.5", 2),
    ):
        with pytest.raises(TypeError, match=r"`p` must be a number, got '0\.5'"):
            call()
    for call in (
        lambda: fastdrop_torch.StochasticDepth(0.5, "column"),
        lambda: F.stochastic_depth(x, 0.5, "column"),
    ):
        with pytest.raises(ValueError, match="`mode` must be 'row' or 'batch', got 'column'"):
            call()
    for size, error in (
        (0, ValueError),
        ((2, -1), ValueError),
        (1.5, TypeError),
        ((1,), TypeError),
    ):
        with pytest.raises(error, match="`block_size` must be a positive integer or two, got "):
            fastdrop_torch.DropBlock2d(0.5, size)
    with pytest.raises(ValueError, match=r"4 dimensions, got shape \(3, 4, 4\)"):
        F.drop_block2d(x[0], 0.5, 2)
    with pytest.raises(TypeError, match=r"floats, got torch\.int64"):
        F.drop_block2d(x.long(), 0.5, 2)
    with pytest.raises(ValueError, match="`input` must have a dimension of samples"):
        F.stochastic_depth(torch.ones(()), 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, torch.ones(2, 3, 4, 4))


class TorchvisionStochasticDepth(nn.Module):
    """Has the attributes of torchvision's."""

    def __init__(self, p, mode):
        super().__init__()
        self.p, self.mode = p, mode


class DropPath(nn.Module):
    """Has the attributes of timm's."""

    def __init__(self, drop_prob=0.0, scale_by_keep=True):
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep


def test_convert_replaces_stochastic_depth_of_other_packages(monkeypatch):
    model = nn.Sequential(
        TorchvisionStochasticDepth(0.3, "batch"),
        DropPath(0.2),
        DropPath(0.1, False),
        DropPath(None),
    )
    _, report = fastdrop_torch.convert(model, verbose=False, return_report=True)
    assert report.changed == ()  # the packages are not loaded
    torchvision, timm = types.ModuleType("torchvision.ops"), types.ModuleType("timm.layers")
    torchvision.StochasticDepth, timm.DropPath = TorchvisionStochasticDepth, DropPath
    monkeypatch.setitem(sys.modules, "torchvision.ops", torchvision)
    monkeypatch.setitem(sys.modules, "timm.layers", timm)
    _, report = fastdrop_torch.convert(model, verbose=False, return_report=True)
    ours = fastdrop_torch.StochasticDepth
    assert [type(one) for one in model] == [ours, ours, DropPath, ours]
    assert [(one.p, one.mode) for one in (model[0], model[1], model[3])] == [
        (0.3, "batch"),
        (0.2, "row"),
        (0.0, "row"),
    ]
    assert [one.path for one in report.changed] == ["0", "1", "3"]
    assert [(one.path, one.note) for one in report.unchanged] == [
        ("2", "does not scale the samples that it keeps")
    ]
    x = torch.ones(100, 3)
    assert set(model[1](x).unique().tolist()) == {0.0, 1.25}


def test_conversions_list_no_module_of_ours_as_pytorchs():
    model = nn.Sequential(
        *(make(0.5) for make, _ in MODULES.values()),
        fastdrop_torch.GaussianDropout(),
        fastdrop_torch.GaussianNoise(1.0),
    )
    classes = [type(one) for one in model]
    _, report = fastdrop_torch.convert(model, verbose=False, return_report=True)
    assert report.changed == report.unchanged == ()
    _, report = fastdrop_torch.to_torch(model, verbose=False, return_report=True)
    assert {one.note for one in report.unchanged} == {"PyTorch has no such module"}
    assert len(report.unchanged) == len(model)
    assert [type(one) for one in model] == classes
