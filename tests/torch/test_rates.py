"""Dropout by a tensor of probabilities gives the reference, its gradient, and named errors."""

import math

import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import fastdrop
from fastdrop_torch import functional as F  # noqa: N812

# Of PyTorch's own code: forward mode compiles some decompositions by TorchScript.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated", "ignore:There is a performance drop"
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SEED = 2**100 + 12345
SHAPES = [(40, 1), (50,), (40, 50), (1, 1), (1,)]


def array_of(x):
    """The tensor as an array in C order."""
    x = x.detach().contiguous()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def probabilities(shape, dtype=torch.float32):
    """Random probabilities, with 0 and 1 among them if there are more than two."""
    p = torch.rand(shape, dtype=torch.float64)
    if p.numel() > 2:
        p.flatten()[:2] = torch.tensor([0, 1])
    return p.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p_dtype", DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_seed_gives_the_reference(dtype, p_dtype, inplace):
    for shape in SHAPES:
        x, p = torch.randn(40, 50).to(dtype), probabilities(shape, p_dtype)
        x[:, 1] = math.nan
        x[:, 2] = -0.0
        kept = reference.keep_by_rates(SEED, 0, np.broadcast_to(array_of(p), x.shape), x.shape)
        right = reference.dropout_by_scales(
            array_of(x), kept, reference.scales_of_rates(array_of(p))
        )
        y = F.dropout(x, p, inplace=inplace, seed=SEED)
        assert (y is x) is inplace
        reference.assert_same_bits(array_of(y), right)


@pytest.mark.parametrize("shape", SHAPES)
def test_fastdrop_drops_the_same(shape):
    x, p = torch.randn(40, 50), probabilities(shape)
    right, _ = fastdrop.dropout(x.numpy(), p.numpy(), seed=SEED)
    reference.assert_same_bits(F.dropout(x, p, seed=SEED).numpy(), right)


def test_the_mask_follows_the_indices_in_every_layout():
    x, p = torch.randn(30, 40), probabilities((30, 40))
    y = F.dropout(x, p, seed=SEED)
    for copy in (x.T.contiguous().T, torch.cat([x, x], 1)[:, :40]):
        assert torch.equal(F.dropout(copy, p.T.contiguous().T, seed=SEED), y)


@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
        lambda x: torch.cat([x, x], 3)[..., :7],
    ],
)
def test_the_result_and_the_gradient_have_the_memory_format_of_the_input(laid_out):
    x = torch.randn(3, 4, 5, 7)
    for p in (probabilities(x.shape), probabilities((3, 1, 1, 1))):
        copy = laid_out(x).requires_grad_()
        y = F.dropout(copy, p, seed=SEED)
        assert y.stride() == torch.nn.functional.dropout(copy, 0.5).stride()
        assert torch.equal(y, F.dropout(x, p, seed=SEED))
        (dx,) = torch.autograd.grad(y, copy, torch.ones_like(y))
        assert dx.stride() == y.stride()


def test_the_fraction_that_is_dropped():
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    y = F.dropout(torch.ones(100_000, 5), p)
    assert torch.allclose((y == 0).double().mean(0), p.double(), atol=0.01)
    assert torch.allclose(y[:, :4].mean(0), torch.ones(4), atol=0.05)


def test_gradients_take_the_mask_and_p_for_constants():
    x = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    for shape in ((6, 1), (6, 7)):
        p = probabilities(shape, torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, p=p: F.dropout(x, p, seed=3), x, check_forward_ad=True
        )
        assert torch.autograd.gradgradcheck(lambda x, p=p: F.dropout(x, p, seed=3), x)
        y = F.dropout(x, p, seed=3)
        dx, dp = torch.autograd.grad(y.sum(), (x, p), allow_unused=True)
        assert dp is None
        scales = torch.from_numpy(reference.scales_of_rates(p.detach().numpy()))
        assert torch.equal(dx, torch.where(y == 0, 0, scales))
        same = grad(lambda x, p=p: F.dropout(x, p, seed=3).sum())(x.detach())
        assert torch.equal(same, dx)
        tangent = jvp(lambda x, p=p: F.dropout(x, p, seed=3), (x,), (torch.ones_like(x),))[1]
        assert torch.equal(tangent, dx)


def test_the_gradient_of_a_dropped_nan_is_zero():
    x = torch.full((4,), math.nan, requires_grad=True)
    y = F.dropout(x, torch.ones(4))
    y.sum().backward()
    assert y.tolist() == x.grad.tolist() == [0.0] * 4


def test_in_place_on_a_leaf_is_refused():
    leaf = torch.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        F.dropout(leaf, torch.full((4,), 0.5), inplace=True)
    assert torch.equal(leaf, torch.ones(4))


def test_manual_seed_and_generators():
    x, p = torch.ones(1000), torch.full((1000,), 0.5)
    torch.manual_seed(1)
    first, second = F.dropout(x, p), F.dropout(x, p)
    torch.manual_seed(1)
    assert torch.equal(F.dropout(x, p), first)
    assert 400 < int((first != second).sum()) < 600
    one = F.dropout(x, p, generator=torch.Generator().manual_seed(2))
    assert torch.equal(F.dropout(x, p, generator=torch.Generator().manual_seed(2)), one)


def test_without_training_the_input_returns():
    x, p = torch.ones(3), torch.full((3,), 0.5)
    assert F.dropout(x, p, False) is x
    assert F.dropout(x, p, False, inplace=True) is x


def test_a_checkpointed_function_replays_its_mask():
    x, p = torch.ones(1000, requires_grad=True), torch.full((1000,), 0.5)
    y = checkpoint(lambda x: F.dropout(x.sin(), p), x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_function_gives_the_eager_bits(dynamic):
    compiled = torch.compile(lambda x, p: F.dropout(x, p, seed=3), fullgraph=True, dynamic=dynamic)
    for rows in (5, 8) if dynamic else (5,):
        x, p = torch.randn(rows, 7), probabilities((rows, 1))
        assert torch.equal(compiled(x, p), F.dropout(x, p, seed=3))
        with pytest.raises(ValueError, match=r"got 2 at index \[0, 0\]"):
            compiled(x, p + 2)


def test_vmap():
    x, p = torch.ones(3, 500), torch.full((3, 500), 0.5)
    with pytest.raises(RuntimeError, match="random operation while in randomness error mode"):
        vmap(F.dropout)(x, p)
    different = vmap(F.dropout, randomness="different")(x, p)
    assert not torch.equal(different[0], different[1])
    same = vmap(F.dropout, randomness="same", in_dims=(0, None))(x, p[0])
    assert torch.equal(same[0], same[1])
    seeded = vmap(lambda x, p: F.dropout(x, p, seed=SEED))(x, p)
    assert torch.equal(seeded[2], F.dropout(x[2], p[2], seed=SEED))


def test_a_bad_tensor_of_probabilities_is_named():
    x, state = torch.ones(2, 3), torch.get_rng_state()
    for bad in (-0.5, 1.5, math.nan):
        p = torch.full((2, 3), 0.5)
        p[1, 2] = bad
        for inplace in (False, True):
            for training in (False, True):
                with pytest.raises(ValueError, match=rf"but got {bad} at index \[1, 2\]"):
                    F.dropout(x, p, training, inplace)
    for p in (torch.ones(2), torch.ones(1, 2, 3)):
        with pytest.raises(ValueError, match=r"`p` must be .* shape \[2, 3\], got shape \["):
            F.dropout(x, p)
    with pytest.raises(TypeError, match=r"got `p` of torch\.LongTensor"):
        F.dropout(x, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"an input of torch\.LongTensor"):
        F.dropout(x.long(), torch.ones(3))
    assert torch.equal(x, torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_tensor_without_dimensions_is_a_number():
    drop = torch.compile(lambda x, p: F.dropout(x, p, seed=7), backend="eager")
    x = torch.ones(100)
    want = F.dropout(x, 0.25, seed=7)
    assert torch.equal(F.dropout(x, torch.tensor(0.25), seed=7), want)
    assert torch.equal(drop(x, torch.tensor(0.25)), want)
