"""The functions give the reference's values, PyTorch's errors, and change nothing else."""

import math

import numpy as np
import pytest
import reference
import torch
from torch.nn import functional as theirs

import fastdrop
from fastdrop_torch import functional as ours

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SEED = 2**100 + 12345

# Layouts of a tensor of shape (3, 4, 5, 6).
LAYOUTS = {
    "C order": lambda x: x,
    "transposed": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 3)[..., ::2].copy_(x),
    "expanded": lambda x: x[:1, :, :1].expand(3, 4, 5, 6),
}


def numbers(shape, dtype=torch.float32):
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def bits(x):
    """The elements as integers, in C order."""
    x = x.detach().contiguous()
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]).numpy()


def expected(x, kept, scale):
    """The reference's dropout of a tensor: in float32 for half precision."""
    kept = torch.from_numpy(kept.reshape(x.shape))
    wide = x.float() if x.element_size() == 2 else x
    scaled = wide * torch.tensor(scale, dtype=wide.dtype)
    return torch.where(kept, scaled, torch.zeros(())).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.2, 0.5, 0.999])
@pytest.mark.parametrize("shape", [(), (1,), (7, 9), (0, 3), (5000,), (2, 3, 4, 5, 6)])
def test_a_seed_gives_the_reference(dtype, p, shape):
    x = numbers(shape, dtype)
    kept = reference.keep_mask(SEED, 0, p, x.numel())
    y = ours.dropout(x, p, seed=SEED)
    assert y.dtype == dtype
    assert (bits(y) == bits(expected(x, kept, reference.default_scale(p)))).all()


def test_a_seed_drops_what_fastdrop_drops():
    x = numbers((100, 33))
    y, _ = fastdrop.dropout(x.numpy(), 0.3, seed=SEED)
    assert (ours.dropout(x, 0.3, seed=SEED).numpy() == y).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_mask_follows_the_indices_in_every_layout(layout, inplace):
    x = LAYOUTS[layout](numbers((3, 4, 5, 6)))
    right = ours.dropout(x.contiguous(), 0.4, seed=3)
    if inplace and layout == "expanded":
        with pytest.raises(RuntimeError, match="single memory location"):
            ours.dropout(x, 0.4, inplace=True, seed=3)
        return
    strides = x.stride()
    y = ours.dropout(x, 0.4, inplace=inplace, seed=3)
    assert torch.equal(y, right)
    assert (y is x) is inplace
    if layout in ("transposed", "channels last"):
        assert y.stride() == strides


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_has_the_mask_in_every_layout(layout):
    x = numbers((3, 4, 5, 6)).requires_grad_()
    dy = LAYOUTS[layout](numbers((3, 4, 5, 6)))
    y = ours.dropout(x, 0.4, seed=3)
    y.backward(dy)
    assert torch.equal(x.grad, ours.dropout(dy.contiguous(), 0.4, seed=3))


def test_dropped_elements_become_positive_zero_and_kept_ones_pass():
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, -5.0] * 50, requires_grad=True)
    y = ours.dropout(x, 0.5, seed=1)
    kept = torch.from_numpy(reference.keep_mask(1, 0, 0.5, 250))
    assert (bits(y[~kept]) == 0).all()
    assert torch.equal(y[kept].isnan(), x[kept].isnan())
    y.backward(torch.full((250,), math.nan))
    assert (bits(x.grad[~kept]) == 0).all()
    assert x.grad[kept].isnan().all()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "name", ["dropout", "dropout1d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"]
)
def test_without_dropping_the_input_returns(name, inplace):
    x = numbers((2, 3, 4) if name != "dropout3d" else (1, 2, 3, 4, 5))
    before = x.clone()
    state = torch.get_rng_state()
    for p, training in [(0.5, False), (0.0, True)]:
        assert getattr(ours, name)(x, p, training, inplace) is x
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout"])
def test_probability_one_gives_zeros(name):
    x = torch.full((2, 3), math.nan, requires_grad=True)
    y = getattr(ours, name)(x, 1.0, True)
    assert (bits(y) == 0).all()
    y.sum().backward()
    assert (bits(x.grad) == 0).all()


@pytest.mark.parametrize(
    ("name", "shape", "mask_shape"),
    [
        ("dropout1d", (3, 50, 5), (3, 50, 1)),
        ("dropout1d", (50, 5), (50, 1)),
        ("dropout2d", (3, 50, 5, 2), (3, 50, 1, 1)),
        ("dropout3d", (3, 50, 5, 2, 2), (3, 50, 1, 1, 1)),
        ("dropout3d", (50, 5, 2, 2), (50, 1, 1, 1)),
        ("feature_alpha_dropout", (3, 50, 7), (3, 50, 1)),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_channels_are_dropped_as_a_whole(name, shape, mask_shape, inplace):
    x = numbers(shape)
    original = x.clone()
    y = getattr(ours, name)(x, 0.5, True, inplace, seed=SEED)
    assert (y is x) is inplace
    kept = reference.keep_mask(SEED, 0, 0.5, math.prod(mask_shape)).reshape(mask_shape)
    kept = np.broadcast_to(kept, shape)
    if name == "feature_alpha_dropout":
        whole = alpha_reference(original.double(), kept, 0.5)
        assert torch.allclose(y.double(), whole, atol=1e-6)
    else:
        assert torch.equal(y, expected(original, kept.copy(), 2.0))


def alpha_reference(x, kept, p):
    """Alpha dropout as its paper has it: dropped units become -lambda * alpha, then a * x + b."""
    saturation = -1.0507009873554805 * 1.6732632423543772
    a = ((1 - p) * (1 + p * saturation**2)) ** -0.5
    b = -a * p * saturation
    return a * torch.where(torch.from_numpy(kept.copy()), x, saturation) + b


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("inplace", [False, True])
def test_alpha_dropout(dtype, p, inplace):
    x = numbers((40, 51), dtype)
    right = alpha_reference(x.double(), reference.keep_mask(7, 0, p, 2040).reshape(40, 51), p)
    y = ours.alpha_dropout(x, p, True, inplace, seed=7)
    assert (y is x) is inplace
    assert torch.allclose(y.double(), right, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("p", [0, 0.3, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_alpha_dropout_has_the_bits_of_fastdrop(dtype, p):
    x = numbers((40, 51), dtype)
    y, _ = fastdrop.alpha_dropout(x.numpy(), p, seed=SEED)
    assert (bits(ours.alpha_dropout(x, p, True, seed=SEED)) == bits(torch.from_numpy(y))).all()


def test_alpha_dropout_keeps_mean_and_variance():
    x = torch.nn.functional.selu(torch.randn(2**21))
    y = ours.alpha_dropout(x, 0.3, True)
    assert abs(y.mean() - x.mean()) < 0.005
    assert abs(y.std() - x.std()) < 0.005


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_relu_dropout_equals_the_separate_operations(dtype, layout):
    x = LAYOUTS[layout](numbers((3, 4, 5, 6), dtype)).detach().requires_grad_()
    dy = numbers((3, 4, 5, 6), dtype)
    y = ours.relu_dropout(x, 0.3, seed=5)
    right = ours.dropout(torch.relu(x), 0.3, seed=5)
    assert torch.equal(y, right)
    gradients = [torch.autograd.grad(result, x, dy)[0] for result in (y, right)]
    assert torch.equal(*gradients)
    assert torch.equal(ours.relu_dropout(x, 0.3, training=False), torch.relu(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
def test_bias_dropout_add_equals_the_separate_operations(dtype, layout, has_bias, has_residual):
    x = LAYOUTS[layout](numbers((3, 4, 5, 6), dtype)).detach().requires_grad_()
    bias = numbers(6, dtype).requires_grad_() if has_bias else None
    residual = numbers((3, 4, 5, 6), dtype).requires_grad_() if has_residual else None
    y = ours.bias_dropout_add(x, bias, residual, 0.3, seed=5)
    kept = reference.keep_mask(5, 0, 0.3, x.numel()).reshape(x.shape)
    # One rounding at the end, for half precision.
    wide = [None if one is None else one.double().detach() for one in (x, bias, residual)]
    total = wide[0] if bias is None else wide[0] + wide[1]
    right = torch.where(torch.from_numpy(kept), total / 0.7, 0.0)
    right = right if residual is None else right + wide[2]
    assert torch.allclose(y.double(), right, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    dy = numbers((3, 4, 5, 6), dtype)
    y.backward(dy)
    dx = ours.dropout(dy, 0.3, seed=5)
    assert torch.equal(x.grad, dx)
    if has_bias:
        assert torch.equal(bias.grad, dx.sum((0, 1, 2)))
    if has_residual:
        assert torch.equal(residual.grad, dy)


def test_bias_dropout_add_broadcasts_as_pytorch_does():
    x, bias, residual = numbers((4, 5)), numbers((4, 1)), numbers((3, 4, 5))
    y = ours.bias_dropout_add(x, bias, residual, 0.3, seed=5)
    assert torch.equal(y, residual + ours.dropout(x + bias, 0.3, seed=5))


@pytest.mark.parametrize("p", [-0.1, 1.1, 2, math.inf])
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout"])
@pytest.mark.parametrize("inplace", [False, True])
def test_errors_for_p_are_pytorchs(name, p, inplace):
    x = torch.ones(3, 4)
    errors = []
    for package in (theirs, ours):
        with pytest.raises(ValueError, match="between 0 and 1, but got") as error:
            getattr(package, name)(x, p, True, inplace)
        errors.append(str(error.value))
    assert errors[0] == errors[1].partition("\n")[0]
    assert (x == 1).all()


def test_a_nan_probability_is_refused():
    x = torch.ones(4)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="between 0 and 1, but got nan"):
            ours.dropout(x, math.nan, inplace=inplace)
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("seed", "error"),
    [(-1, ValueError), (2**128, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError)],
)
def test_a_bad_seed_is_refused(seed, error):
    x = torch.ones(4)
    with pytest.raises(error, match="`seed`"):
        ours.dropout(x, inplace=True, seed=seed)
    assert (x == 1).all()


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5)])
def test_dropout1d_refuses_other_ranks(shape):
    for package in (theirs, ours):
        with pytest.raises(RuntimeError, match="dropout1d: Expected 2D or 3D input"):
            package.dropout1d(torch.ones(shape))


@pytest.mark.parametrize(("name", "shape"), [("dropout2d", (2, 3, 4)), ("dropout3d", (2, 3, 4))])
def test_warnings_for_ranks_are_pytorchs(name, shape):
    for package in (theirs, ours):
        with pytest.warns(UserWarning, match=f"{name}: Received a 3"):
            getattr(package, name)(torch.ones(shape))


def test_a_tensor_on_another_device_goes_to_pytorch():
    x = torch.ones(4, device="meta")
    assert ours.dropout(x, 0.5).device == x.device
    with pytest.raises(TypeError, match="`seed` and `generator` need a dense CPU tensor"):
        ours.dropout(x, 0.5, seed=1)


def test_a_default_device_does_not_move_a_seed():
    x = torch.ones(100)
    with torch.device("meta"):
        y = ours.dropout(x, 0.5, seed=3)
    assert torch.equal(y, ours.dropout(x, 0.5, seed=3))


def test_integers_are_refused_as_by_pytorch():
    for package in (theirs, ours):
        with pytest.raises(RuntimeError, match="Long"):
            package.dropout(torch.ones(4, dtype=torch.int64), 0.5)


def test_out_of_place_calls_leave_the_input():
    x = numbers((50, 50))
    before, version = x.clone(), x._version
    for function in (ours.dropout, ours.relu_dropout):
        function(x, 0.5)
    ours.alpha_dropout(x, 0.5, True)
    ours.bias_dropout_add(x, None, x, 0.5)
    assert torch.equal(x, before)
    assert x._version == version


def test_between_forward_and_backward_one_bit_an_element_is_kept():
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    x = numbers((1000, 80)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = ours.dropout(x, 0.5)
        y = ours.relu_dropout(y, 0.5)
        ours.bias_dropout_add(y, x[0], x, 0.5)
    assert [(one.dtype, one.numel()) for one in saved] == [(torch.uint8, 10_000)] * 3
