"""Standout and learned dropout give what NumPy computes from the papers, and learn."""

import copy
import math

import numpy as np
import pytest
import reference
import torch
from scipy.special import ndtr
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastdrop
import fastdrop_torch

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Modules for inputs of shape (20, 6).
MODULES = {
    "Standout": lambda: fastdrop_torch.Standout(torch.tanh),
    "per layer": lambda: fastdrop_torch.VariationalGaussianDropout(6, 0.5, p=0.3),
    "per feature": lambda: fastdrop_torch.VariationalGaussianDropout(6, 0.5, "feature", 0.3),
    "VariationalLinear": lambda: fastdrop_torch.VariationalLinear(6, 4, kl_weight=0.5, p=0.3),
    "ConcreteDropout": lambda: fastdrop_torch.ConcreteDropout(nn.Linear(6, 4), 0.1, 0.2, p=0.3),
}
LEARNED = [name for name in MODULES if name != "Standout"]
each_module = pytest.mark.parametrize("name", MODULES)


def position():
    """The seed and the step that the next call takes from PyTorch's generator."""
    state = torch.get_rng_state()
    words = torch.randint(2**63 - 1, (2,)).tolist()
    torch.set_rng_state(state)
    return words


def normals(shape, seed, step):
    return reference.normals(seed, step, math.prod(shape)).reshape(shape).astype(np.float64)


def parameter(value):
    return value.detach().double().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
def test_standout_decides_by_its_keep_probabilities(dtype):
    z = (3 * torch.randn(30, 40)).to(dtype)
    z[0], z[1], z[2] = math.inf, -math.inf, math.nan
    layer = fastdrop_torch.Standout(torch.tanh, alpha=0.5, beta=-1.0)
    keep = torch.sigmoid(0.5 * z - 1)
    rates = torch.where(z.isnan(), 0, 1 - keep).double().numpy()
    right = reference.keep_by_rates(*position(), rates, z.shape)
    y = layer(z)
    assert y.dtype == dtype
    expected = torch.where(torch.from_numpy(right), z.tanh(), 0)
    assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))
    assert not y[1].signbit().any()
    assert y[2].isnan().all()


def test_standout_drops_what_fastdrop_drops():
    z = torch.randn(100, 7)
    rates = (1 - torch.sigmoid(z)).numpy()
    words = position()
    y = fastdrop_torch.Standout()(z)
    mask = fastdrop.draw_mask(z.shape, rates, seed=fastdrop_stream(*words))
    assert (mask.unpack() == (y != 0).numpy()).all()


def fastdrop_stream(seed, step):
    stream = fastdrop.Stream(seed)
    stream.state = {"seed": seed, "step": step}
    return stream


def test_standout_multiplies_by_the_probabilities_in_evaluation():
    layer = fastdrop_torch.Standout(nn.ReLU(), alpha=2.0, beta=0.5).eval()
    z = torch.randn(5, 6, dtype=torch.float64)
    right = np.maximum(z.numpy(), 0) / (1 + np.exp(-(2 * z.numpy() + 0.5)))
    assert np.allclose(layer(z).numpy(), right)
    assert (layer(torch.full((2,), -math.inf)) == 0).all()


def test_the_mask_of_standout_is_a_constant_in_training_alone():
    layer = fastdrop_torch.Standout()
    z = torch.randn(50, dtype=torch.float64, requires_grad=True)
    y = layer(z)
    assert torch.equal(torch.autograd.grad(y.sum(), z)[0], (y != 0).double())
    assert torch.autograd.gradcheck(layer.eval(), z)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["per layer", "per feature"])
def test_variational_gaussian_dropout(name, dtype):
    layer = MODULES[name]().to(dtype)
    x = torch.randn(20, 6).to(dtype)
    with torch.no_grad():
        layer.log_alpha += torch.rand(layer.log_alpha.shape).to(dtype) / 2
    numbers = normals(x.shape, *position())
    right = parameter(x) * (1 + np.sqrt(np.exp(parameter(layer.log_alpha))) * numbers)
    tolerance = {torch.float16: 0.01, torch.bfloat16: 0.08}.get(dtype, 1e-5)
    y = layer(x)
    assert y.dtype == dtype
    assert np.allclose(parameter(y), right, atol=tolerance)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("name", ["per layer", "per feature", "VariationalLinear"])
def test_the_divergence_is_the_papers_polynomial(name):
    layer = MODULES[name]().double()
    with torch.no_grad():
        layer.log_alpha -= torch.rand(layer.log_alpha.shape)
    a = np.exp(parameter(layer.log_alpha))
    divergence = 0.5 * np.log(a) + 1.16145124 * a - 1.50204118 * a**2 + 0.58629921 * a**3
    right = 0.5 * -divergence.sum() * (6 if name == "per layer" else 1)
    assert np.isclose(layer.regularization().item(), right)
    assert np.allclose(layer.p.numpy(), a / (1 + a))
    (gradient,) = torch.autograd.grad(layer.regularization(), layer.log_alpha)
    assert (gradient < 0).all()  # it asks for more noise


@pytest.mark.parametrize("name", ["per layer", "per feature", "VariationalLinear"])
def test_alpha_stays_up_to_1(name):
    for call in (lambda layer: layer(torch.ones(20, 6)), lambda layer: layer.regularization()):
        layer = MODULES[name]()
        with torch.no_grad():
            layer.log_alpha.fill_(0.5)
        assert (layer.p == 0.5).all()
        call(layer).sum().backward()
        assert (layer.log_alpha == 0).all()
        assert (layer.log_alpha.grad != 0).any()


def test_variational_linear():
    layer = MODULES["VariationalLinear"]().double()
    x = torch.randn(20, 6, dtype=torch.float64)
    w, b = parameter(layer.weight), parameter(layer.bias)
    variance = x.numpy() ** 2 @ (np.exp(parameter(layer.log_alpha)) * w**2).T
    numbers = normals((20, 4), *position())
    right = x.numpy() @ w.T + b + np.sqrt(variance) * numbers
    assert np.allclose(parameter(layer(x)), right)
    layer.eval()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert set(layer.state_dict()) == {"weight", "bias", "log_alpha"}


def test_variational_linear_has_finite_gradients_at_zero():
    layer = MODULES["VariationalLinear"]()
    x = torch.zeros(2, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert layer.log_alpha.grad.isfinite().all()


@pytest.mark.parametrize("channels", [False, True])
def test_concrete_dropout(channels):
    layer = fastdrop_torch.ConcreteDropout(
        nn.Conv2d(3, 4, 3), p=0.3, temperature=0.2, channels=channels
    )
    x = torch.randn(2, 3, 5, 5)
    uniform = ndtr(normals((2, 3, 1, 1) if channels else x.shape, *position()))
    logits = np.log(0.3 / 0.7) + np.log(uniform) - np.log1p(-uniform)
    factors = (1 - 1 / (1 + np.exp(-logits / 0.2))) / 0.7
    right = layer.module((x.double() * torch.from_numpy(factors)).float())
    assert torch.allclose(layer(x), right, atol=1e-4)
    assert torch.equal(layer.eval()(x), layer.module(x))


def test_the_regularization_of_concrete_dropout():
    layer = MODULES["ConcreteDropout"]()
    w = parameter(layer.module.weight)
    p, logit = 0.3, layer.p_logit

    def term(p):
        entropy = p * np.log(p) + (1 - p) * np.log(1 - p)
        return 0.1 * (w**2).sum() / (1 - p) + 0.2 * 6 * entropy

    assert np.isclose(layer.regularization().item(), term(p), rtol=1e-5)
    (gradient,) = torch.autograd.grad(layer.regularization(), logit)
    slope = (term(p + 1e-6) - term(p - 1e-6)) / 2e-6 * p * (1 - p)
    assert np.isclose(float(gradient), slope, rtol=1e-3)


def test_regularization_adds_the_terms_of_a_model():
    model = nn.Sequential(*(MODULES[name]() for name in LEARNED), nn.Linear(4, 4))
    right = sum(model[i].regularization().item() for i in range(len(LEARNED)))
    assert np.isclose(fastdrop_torch.regularization(model).item(), right)
    assert fastdrop_torch.regularization(nn.Linear(3, 3)).item() == 0
    with pytest.raises(TypeError, match="`module` must be"):
        fastdrop_torch.regularization("model")


@pytest.mark.parametrize("name", LEARNED)
def test_a_training_step_changes_all_parameters(name):
    model = MODULES[name]()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    loss = model(torch.randn(20, 6)).square().mean() + fastdrop_torch.regularization(model)
    loss.backward()
    optimizer.step()
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    other = MODULES[name]()
    other.load_state_dict(model.state_dict())
    assert all(map(torch.equal, other.parameters(), model.parameters()))


@each_module
def test_recomputations_and_seeds(name):
    module, x = MODULES[name](), torch.randn(20, 6, requires_grad=True)
    gradients = []
    for through in (lambda x: module(x), lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(through(x).square().sum(), x)[0])
    assert torch.equal(*gradients)
    assert not torch.equal(module(x), module(x))


# Of PyTorch's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@each_module
def test_a_compiled_module_draws_the_same(name):
    module, x = MODULES[name](), torch.randn(20, 6)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    right = module(x)
    torch.manual_seed(1)
    y = compiled(x)
    assert torch.allclose(y, right)
    y.sum().backward() if name in LEARNED else None


@each_module
def test_autocast(name):
    module, x = MODULES[name](), torch.randn(20, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == (torch.bfloat16 if "Linear" in name or "Concrete" in name else torch.float32)
    assert y.isfinite().all()


@each_module
def test_mc_predict_lets_it_draw(name):
    module = nn.Sequential(MODULES[name]())
    x = torch.randn(20, 6)
    _, deviation = fastdrop_torch.mc_predict(module, x, 20, seed=1)
    assert (deviation > 0).double().mean() > 0.9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fastdrop_torch.Standout(alpha=math.nan), "`alpha` must be a finite .* got nan"),
        (lambda: fastdrop_torch.Standout(beta=math.inf), "`beta` must be a finite .* got inf"),
        (
            lambda: fastdrop_torch.VariationalGaussianDropout(3, -1.0),
            r"`kl_weight` .* 0 or larger, got -1\.0",
        ),
        (lambda: fastdrop_torch.VariationalGaussianDropout(0, 1.0), "`num_features` .* got 0"),
        (lambda: fastdrop_torch.VariationalGaussianDropout(3, 1.0, "unit"), "`per` .* 'unit'"),
        (lambda: fastdrop_torch.VariationalGaussianDropout(3, 1.0, p=0.6), "at most 0.5, .* 0.6"),
        (lambda: fastdrop_torch.VariationalLinear(3, 4, kl_weight=1.0, p=0.0), "above 0 .* got 0"),
        (lambda: fastdrop_torch.ConcreteDropout(nn.Linear(3, 4), p=1.0), "below 1, but got 1"),
        (lambda: fastdrop_torch.ConcreteDropout(nn.Linear(3, 4), -1), "`weight_regularizer`"),
        (
            lambda: fastdrop_torch.ConcreteDropout(nn.Linear(3, 4), temperature=0),
            "`temperature` must be above 0, got 0",
        ),
        (
            lambda: fastdrop_torch.VariationalGaussianDropout(3, 1.0)(torch.ones(2, 4)),
            r"`input` must have a last axis of size 3, got shape \(2, 4\)",
        ),
    ],
)
def test_bad_values_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_bad_types_are_named():
    with pytest.raises(TypeError, match="`activation` must be a function or None, got 'relu'"):
        fastdrop_torch.Standout("relu")
    with pytest.raises(TypeError, match=r"`module` must be .* got ReLU\(\)"):
        fastdrop_torch.ConcreteDropout(nn.ReLU())
    with pytest.raises(TypeError, match="dense CPU tensors of dtype float16"):
        fastdrop_torch.Standout()(torch.ones(3, device="meta"))
