"""Gaussian dropout and noise, and what Keras draws, have the reference's values and errors."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
import reference
import torch

import fastdrop
import fastdrop_torch
from fastdrop_torch import functional as F  # noqa: N812

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SEED = 2**100 + 12345
FUNCTIONS = {
    "gaussian_dropout": (F.gaussian_dropout, fastdrop_torch.GaussianDropout),
    "gaussian_noise": (F.gaussian_noise, fastdrop_torch.GaussianNoise),
}
BERNOULLI = 5
KINDS = ["dropout", *FUNCTIONS, "alpha_dropout", "alpha_dropout_gradient"]
LAYOUTS = {
    "C order": lambda x: x,
    "transposed": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "sliced": lambda x: torch.cat([x, x], 2)[..., ::2].copy_(x),
    "expanded": lambda x: x[:1, :, :1].expand(x.shape),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def array_of(x):
    """The tensor as an array in C order."""
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def numbers(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@each_function
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_seed_gives_the_reference(name, dtype, inplace):
    for shape in [(), (0, 3), (7, 701), (3, 4, 5)]:
        for parameter in (0.2, 0.7):
            x = numbers(shape, dtype)
            right = reference.drawn(name, array_of(x), parameter, SEED)
            y = FUNCTIONS[name][0](x, parameter, inplace=inplace, seed=SEED)
            assert (y is x) is inplace
            reference.assert_same_bits(array_of(y), right)


@each_function
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_noise_follows_the_indices_in_every_layout(name, layout):
    x = LAYOUTS[layout](numbers((3, 40, 50))).requires_grad_()
    before = x.detach().clone()
    y = FUNCTIONS[name][0](x, 0.4, seed=SEED)
    reference.assert_same_bits(array_of(y), reference.drawn(name, array_of(x), 0.4, SEED))
    assert torch.equal(x, before)
    t = LAYOUTS[layout](numbers((3, 40, 50)))
    (dx,) = torch.autograd.grad(y, x, t)
    slope = reference.drawn_gradient(name, array_of(t), 0.4, SEED)
    reference.assert_same_bits(array_of(dx), slope)


@each_function
def test_fastdrop_gives_the_same_bits(name):
    x = numbers((100, 33))
    right, _ = getattr(fastdrop, name)(x.numpy(), 0.3, seed=SEED)
    assert (FUNCTIONS[name][0](x, 0.3, seed=SEED).numpy() == right).all()


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
def test_draw_gives_the_reference(kind, dtype):
    """The operation of the Keras layers, at each stream position and with shared numbers."""
    x, t = numbers((4, 5, 600), dtype).requires_grad_(), numbers((4, 5, 600), dtype)
    words = torch.tensor([7, 5, 3])
    for noise_shape in (None, [4, 1, 600]):
        for parameter in (0.0, 0.3, *(() if kind == 1 else (1.0,))):
            position = (parameter, 3 * 2**64 + 7, 5, noise_shape)
            y = torch.ops.fastdrop.draw(x, words, kind, parameter, noise_shape)
            right = reference.drawn(KINDS[kind], array_of(x), *position)
            reference.assert_same_bits(array_of(y), right)
            (dx,) = torch.autograd.grad(y, x, t)
            right = reference.drawn_gradient(KINDS[kind], array_of(t), *position)
            reference.assert_same_bits(array_of(dx), right)


def test_alpha_dropouts_constants_are_rounded_to_float16_once():
    """At this rate, a float between would round the shift to another number."""
    rate = 0.1436
    x = torch.ones(100, dtype=torch.float16)
    shift = -reference.ALPHA * reference.alpha_scale(rate) * (1 - rate)
    assert np.float16(shift) != np.float16(np.float32(shift))
    right = reference.drawn("alpha_dropout", x.numpy(), rate, SEED)
    reference.assert_same_bits(F.alpha_dropout(x, rate, True, seed=SEED).numpy(), right)
    drawn = torch.ops.fastdrop.draw(x, torch.tensor([SEED % 2**64, 0, SEED >> 64]), 3, rate)
    reference.assert_same_bits(drawn.numpy(), right)


@each_function
def test_without_noise_the_input_returns(name):
    function, module = FUNCTIONS[name]
    x = torch.tensor([1.0, math.nan, math.inf, -0.0])
    assert function(x, 0.0) is x
    assert function(x, 0.5, training=False) is x
    assert module(0.5).eval()(x) is x
    integers = torch.ones(3, dtype=torch.int64)
    assert function(integers, 0.5, training=False) is integers


@each_function
def test_a_module_is_its_function(name):
    function, module = FUNCTIONS[name]
    x = numbers((40, 50))
    for inplace in (False, True):
        layer = pickle.loads(pickle.dumps(module(0.5, inplace)))
        assert layer.state_dict() == {}
        parameter = "p" if name == "gaussian_dropout" else "stddev"
        assert repr(layer) == f"{module.__name__}({parameter}=0.5, inplace={inplace})"
        setattr(layer, parameter, 0.25)
        torch.manual_seed(5)
        right = function(x, 0.25)
        torch.manual_seed(5)
        copy = x.clone()
        y = layer(copy)
        assert torch.equal(y, right)
        assert (y is copy) is inplace


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("gaussian_dropout", [-0.1, 1, 1.5, math.nan], "probability has to be at least 0 and, .*"),
        ("gaussian_noise", [-1, math.inf, math.nan], "deviation has to be finite and at least 0, "),
    ],
)
def test_a_bad_parameter_is_named(name, parameters, words):
    function, module = FUNCTIONS[name]
    x = torch.ones(3)
    for parameter in parameters:
        for call in (
            lambda parameter=parameter: function(x, parameter),
            lambda parameter=parameter: function(x, parameter, inplace=True),
            lambda parameter=parameter: module(parameter),
        ):
            with pytest.raises(ValueError, match=f"{words}but got {parameter}"):
                call()
    argument = "p" if name == "gaussian_dropout" else "stddev"
    with pytest.raises(TypeError, match=f"`{argument}` must be a number, got '0.5'"):
        module("0.5")
    assert torch.equal(x, torch.ones(3))


@each_function
def test_other_tensors_and_seeds_are_refused(name):
    function, _ = FUNCTIONS[name]
    for x in (
        torch.ones(3, dtype=torch.int64),
        torch.ones(3, 3).to_sparse(),
        torch.ones(3, device="meta"),
    ):
        with pytest.raises(TypeError, match="Noise needs a dense CPU tensor of dtype float16"):
            function(x, 0.5)
    with pytest.raises(ValueError, match="`seed` must be in"):
        function(torch.ones(3), 0.5, seed=-1)


@each_function
def test_in_place_noise_on_a_leaf_is_refused(name):
    leaf = torch.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        FUNCTIONS[name][0](leaf, 0.5, inplace=True)
    assert torch.equal(leaf, torch.ones(4))


@each_function
def test_nothing_but_the_seed_is_kept_for_the_gradient(name):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        FUNCTIONS[name][0](numbers(1000).requires_grad_(), 0.5)
    assert sum(x.numel() for x in kept) <= 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bernoulli_decides_by_each_elements_rate(dtype, layout):
    rates = torch.rand((3, 40, 50), dtype=torch.float64).to(dtype)
    rates.flatten()[:2] = torch.tensor([0, 1])
    rates = LAYOUTS[layout](rates).requires_grad_()
    y = torch.ops.fastdrop.draw(rates, torch.tensor([7, 0, 3]), BERNOULLI, 0.0)
    right = reference.keep_by_rates(3 * 2**64 + 7, 0, array_of(rates), rates.shape)
    assert (array_of(y) == right).all()
    assert y.dtype == dtype
    assert not y.requires_grad
    batched = torch.func.vmap(
        lambda rates: torch.ops.fastdrop.draw(rates, torch.tensor([7, 0, 3]), BERNOULLI, 0.0)
    )(rates.detach()[None].repeat(2, 1, 1, 1))
    assert torch.equal(batched, torch.stack([y, y]))


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": torch.ones(3, dtype=torch.int64)}, TypeError, "float64, got Long"),
        ({"seed": torch.tensor([7])}, RuntimeError, "`seed` must be a contiguous tensor of two"),
        ({"seed": torch.tensor([7.0, 0])}, RuntimeError, "`seed` must be .* int64 words"),
        ({"kind": 99}, RuntimeError, "`kind` must be from 0 to 5, got 99"),
        ({"kind": -1}, RuntimeError, "`kind` must be from 0 to 5, got -1"),
        ({"kind": 0, "parameter": 1.5}, ValueError, r"`parameter` must be .* to 1, got 1\.5"),
        ({"kind": 1, "parameter": 1.0}, ValueError, "`parameter` must be .* below 1 .* got 1"),
        ({"kind": 2, "parameter": -1.0}, ValueError, "`parameter` must be a standard .* got -1"),
        ({"kind": 3, "parameter": math.nan}, ValueError, "`parameter` must be .* got nan"),
        ({"noise_shape": [2]}, ValueError, r"`noise_shape` must .* shape \[3\], .* got \[2\]"),
        ({"noise_shape": [1, 1]}, ValueError, r"`noise_shape` must .* got \[1, 1\]"),
        (
            {"kind": BERNOULLI, "x": torch.tensor([0.5, 1.5, 2])},
            ValueError,
            r"between 0 and 1, but got 1\.5 at index \[1\]",
        ),
    ],
)
def test_draw_names_a_bad_argument(changed, error, words):
    arguments = {"x": torch.ones(3), "seed": torch.tensor([7, 0]), "kind": 0, "parameter": 0.5}
    torch.ops.fastdrop.draw(**arguments)
    with pytest.raises(error, match=words):
        torch.ops.fastdrop.draw(**{**arguments, **changed})
