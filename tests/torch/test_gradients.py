"""Gradients of every kind have the mask of the forward pass."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, vmap
from torch.utils.checkpoint import checkpoint

import fastdrop_torch
from fastdrop_torch import functional as F  # noqa: N812

# PyTorch's forward mode compiles some of its decompositions by TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

FUNCTIONS = {
    "dropout": lambda x: F.dropout(x, 0.4, seed=3),
    "channels": lambda x: F.dropout1d(x, 0.4, seed=3),
    "alpha": lambda x: F.alpha_dropout(x, 0.4, True, seed=3),
    "relu": lambda x: F.relu_dropout(x, 0.4, seed=3),
    "bias and residual": lambda x: F.bias_dropout_add(x, x[0], x, 0.4, seed=3),
    "in place": lambda x: F.dropout(x * 1.5, 0.4, inplace=True, seed=3),
    "channels in place": lambda x: F.dropout1d(x * 1.5, 0.4, inplace=True, seed=3),
    "gaussian": lambda x: F.gaussian_dropout(x, 0.4, seed=3),
    "gaussian in place": lambda x: F.gaussian_dropout(x * 1.5, 0.4, inplace=True, seed=3),
    "noise": lambda x: F.gaussian_noise(x, 0.4, seed=3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name):
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FUNCTIONS[name], x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(FUNCTIONS[name], x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients():
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    function = FUNCTIONS["dropout"]
    assert torch.autograd.gradcheck(
        function, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_of_functions(name):
    function, x, t = FUNCTIONS[name], torch.randn(5, 7), torch.randn(5, 7)
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    (dx,) = torch.autograd.grad((y * t).sum(), leaf)
    assert torch.equal(grad(lambda x: (function(x) * t).sum())(x), dx)
    primal, tangent = jvp(function, (x,), (t,))
    assert torch.equal(primal, y.detach())
    assert torch.allclose((tangent * t).sum(), (dx * t).sum())
    with forward_ad.dual_level():
        dual = function(forward_ad.make_dual(x, t))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, tangent)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_second_derivatives_of_functions():
    x = torch.randn(6)
    matrix = hessian(lambda x: (FUNCTIONS["dropout"](x) ** 3).sum())(x)
    y = FUNCTIONS["dropout"](x)
    scale = torch.where(y == 0, 0.0, 1 / 0.6)
    assert torch.allclose(matrix, torch.diag(6 * y * scale**2))
    assert torch.allclose(jacfwd(FUNCTIONS["dropout"])(x), torch.diag(scale))


@pytest.mark.parametrize(
    "name", ["dropout", "channels", "alpha", "relu", "bias and residual", "gaussian", "noise"]
)
def test_vmap_of_a_seeded_function_has_one_mask(name):
    x = torch.randn(3, 5, 7)
    y = vmap(FUNCTIONS[name])(x)
    assert torch.equal(y, torch.stack([FUNCTIONS[name](one) for one in x]))
    dx = vmap(grad(lambda x: FUNCTIONS[name](x).sum()))(x)
    right = torch.stack([grad(lambda x: FUNCTIONS[name](x).sum())(one) for one in x])
    assert torch.equal(dx, right)
    # Along another axis of the input and of the output.
    y = vmap(FUNCTIONS[name], in_dims=1, out_dims=2)(x.movedim(0, 1))
    assert torch.equal(y.movedim(2, 0), vmap(FUNCTIONS[name])(x))


@pytest.mark.parametrize("name", ["dropout", "relu_dropout", "in place"])
def test_vmap_randomness(name):
    def function(x):
        if name == "in place":
            return F.dropout(x * 1.0, 0.5, inplace=True)
        return getattr(F, name)(x, 0.5)

    x = torch.ones(3, 500)
    with pytest.raises(RuntimeError, match="random operation while in randomness error mode"):
        vmap(function)(x)
    same = vmap(function, randomness="same")(x)
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], same[2])
    different = vmap(function, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    assert not torch.equal(different[1], different[2])
    for y in (same, different):
        assert ((y == 0) | (y == 2)).all()
        assert abs(y.mean() - 1) < 0.3
    gradients = vmap(grad(lambda x: function(x).sum()), randomness="different")(x)
    assert set(gradients.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    "name", ["dropout", "dropout1d", "feature_alpha_dropout", "gaussian_dropout", "gaussian_noise"]
)
def test_vmap_randomness_of_an_input_that_is_not_batched(name):
    def function(z):
        return getattr(F, name)(torch.ones(1, 500, 1), 0.5, True) + 0 * z

    batch = torch.ones(3)
    with pytest.raises(RuntimeError, match="random operation while in randomness error mode"):
        vmap(function)(batch)
    same = vmap(function, randomness="same")(batch)
    assert torch.equal(same[0], same[1])
    different = vmap(function, randomness="different")(batch)
    assert not torch.equal(different[0], different[1])


def test_vmap_randomness_of_channels():
    x = torch.ones(3, 500, 2)
    for name in ("dropout1d", "feature_alpha_dropout"):
        y = vmap(lambda x, name=name: getattr(F, name)(x[None], 0.5, True), randomness="different")(
            x
        )
        assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_a_checkpointed_function_replays_its_mask(reentrant, inplace):
    drop = fastdrop_torch.Dropout(0.5, inplace)
    x = torch.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: drop(x.sin()), x, use_reentrant=reentrant)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    assert 400 < int((y != 0).sum()) < 600


def test_in_place_on_a_leaf_is_refused():
    for leaf in (torch.ones(4, requires_grad=True), torch.ones(4, requires_grad=True)[:2]):
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            F.dropout(leaf, inplace=True)
        assert (leaf == 1).all()
    leaf = torch.ones(400, requires_grad=True)
    with torch.no_grad():
        assert F.dropout(leaf, inplace=True) is leaf
    assert (leaf != 1).all()


def test_in_place_raises_the_version():
    x = torch.rand(10, requires_grad=True) * 2
    y = x.exp()  # it saves its result
    version = y._version
    F.dropout(y, inplace=True)
    assert y._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_in_place_on_a_view_changes_its_base():
    w = torch.randn(4, 5, requires_grad=True)
    x = w * 3
    F.dropout(x[1:3], 0.5, inplace=True, seed=1)
    right = w.detach() * 3
    right[1:3] = F.dropout(right[1:3], 0.5, seed=1)
    assert torch.equal(x, right)
    x.sum().backward()
    assert torch.equal(w.grad == 0, right == 0)


def test_an_inference_tensor_can_be_dropped():
    with torch.inference_mode():
        x = torch.ones(100)
        y = F.dropout(x, seed=1)
        assert torch.equal(F.dropout(x, inplace=True, seed=1), y)
    assert torch.equal(F.dropout(torch.ones(100), seed=1), y)


def test_a_second_backward_needs_retain_graph():
    x = torch.ones(8, requires_grad=True)
    y = F.dropout(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


def test_autocast_leaves_the_dtype():
    x = torch.randn(8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.dropout(torch.nn.functional.linear(x, x), 0.5)
        assert y.dtype == torch.bfloat16
        assert F.dropout(x).dtype == torch.float32
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_negated_view_is_read_as_its_values():
    x = torch.randn(100, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    right = F.dropout(x.resolve_neg(), seed=1)
    assert torch.equal(F.dropout(x, seed=1), right)
    assert torch.equal(F.dropout(x, inplace=True, seed=1), right)
