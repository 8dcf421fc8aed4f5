"""The modules that learn how much to drop have the papers' values, terms and gradients."""

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastdrop
from fastdrop_torch import (
    ConcreteDropout,
    Standout,
    VariationalGaussianDropout,
    VariationalLinear,
    mc_predict,
    regularization,
)

NUMPY = {
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}
DTYPES = list(NUMPY)
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 6e-2, torch.float32: 1e-5, torch.float64: 1e-12}
X = np.random.default_rng(0).normal(0, 2, (20, 7))


def position():
    """The seed and the step that the next call takes from PyTorch's generator."""
    state = torch.get_rng_state()
    words = torch.randint(2**63 - 1, (2,)).tolist()
    torch.set_rng_state(state)
    return words


def normals(shape, dtype=np.float32):
    """The standard normal numbers of the next call, in double precision."""
    return reference.drawn("gaussian_noise", np.zeros(shape, dtype), 1.0, *position()).astype(float)


def inputs(dtype=torch.float64):
    """Inputs, and the same numbers in double precision."""
    x = torch.from_numpy(X).to(dtype)
    return x, x.double().numpy()


def assert_close(y, right, dtype):
    assert y.dtype == dtype
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(
        y.detach().double().numpy(), right, rtol=tolerance, atol=4 * tolerance
    )


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class WithTerm(nn.Module):
    """Returns a module's output, and its term of the loss."""

    def __init__(self, module):
        super().__init__()
        self.module = module.double()

    def forward(self, x):
        torch.manual_seed(5)
        return self.module(x), regularization(self.module)


def check_gradients(module):
    """Compare the gradients of the input and the parameters with differences, in float64."""
    module = WithTerm(module)
    names = [name for name, _ in module.named_parameters()]

    def outputs(x, *parameters):
        return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    x = torch.from_numpy(X[:4]).requires_grad_()
    assert torch.autograd.gradcheck(outputs, (x, *module.parameters()))


# Standout.


@pytest.mark.parametrize("dtype", DTYPES)
def test_standout_keeps_units_with_their_own_probabilities(dtype):
    drop = Standout(torch.relu, 0.5, -0.25)
    x, _ = inputs(dtype)
    # At the probabilities in the input's dtype.
    rates = (1 - torch.sigmoid(0.5 * x - 0.25)).double().numpy()
    for _ in range(2):
        kept = torch.from_numpy(reference.keep_by_rates(*position(), rates, x.shape))
        y = drop(x)
        assert y.dtype == dtype
        assert torch.equal(y, torch.where(kept, x.relu(), 0))
    stream = fastdrop.Stream(0)
    stream.state = dict(zip(("seed", "step"), position(), strict=True))
    kept, _ = fastdrop.dropout(np.ones(X.shape), rates, seed=stream)
    assert ((drop(x) > 0).numpy() == ((kept > 0) & (x > 0).numpy())).all()


def test_the_fraction_that_standout_keeps():
    drop = Standout(alpha=0.7, beta=-0.4)
    for z in (-3, -0.5, 1, 2.5):
        kept = (drop(torch.full((100, 1000), float(z))) != 0).double().mean()
        p = sigmoid(0.7 * z - 0.4)
        # Five standard deviations.
        assert abs(kept - p) < 5 * math.sqrt(p * (1 - p) / 100_000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_standout_multiplies_by_the_probabilities_in_evaluation(dtype):
    x, wide = inputs(dtype)
    y = Standout(nn.Tanh(), 0.5, -0.25).eval()(x)
    assert_close(y, np.tanh(wide) * sigmoid(0.5 * wide - 0.25), dtype)


def test_the_mask_of_standout_is_a_constant_in_training_alone():
    drop = Standout(torch.tanh, 0.5, -0.25)
    x = inputs()[0].requires_grad_()
    y = drop(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(dx, torch.where(y == 0, 0, 1 - x.tanh() ** 2))
    check_gradients(drop.eval())


def test_standout_drops_infinities_to_zero_and_keeps_nan():
    x = torch.tensor([-math.inf, math.inf, math.nan])
    for training in (True, False):
        y = Standout().train(training)(x)
        assert y[0] == 0
        assert not y[0].signbit()
        assert y[1] == math.inf
        assert y[2].isnan()


# Variational dropout.


@pytest.mark.parametrize("per", ["layer", "feature"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_variational_noise_is_normal_with_the_learned_variance(per, dtype):
    drop = VariationalGaussianDropout(7, 0.1, per, 0.2, dtype=dtype)
    x, wide = inputs(dtype)
    assert torch.allclose(drop.p, torch.tensor(0.2, dtype=dtype))
    with torch.no_grad():
        drop.log_alpha.copy_(torch.linspace(-3, -0.1, 7)[: drop.log_alpha.numel()].squeeze())
    alpha = np.exp(drop.log_alpha.detach().double().numpy())
    assert_close(drop.p, alpha / (1 + alpha), dtype)
    for _ in range(2):
        numbers = normals(X.shape, NUMPY[dtype])
        assert_close(drop(x), wide * (1 + np.sqrt(alpha) * numbers), dtype)
    assert drop.eval()(x) is x


def exact_divergence(alpha):
    """The divergence of N(1, alpha) from a uniform logarithm, but for a constant.

    -log(sigma) + E log|1 + sqrt(alpha) n|, by the rule of the midpoint.
    """
    edges = np.linspace(-12, 12, 1_000_001)
    n = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(n**2) / 2) / math.sqrt(2 * math.pi)
    mean = np.sum(density * np.log(np.abs(1 + math.sqrt(alpha) * n))) * (edges[1] - edges[0])
    return -math.log(alpha) / 2 + mean


def test_the_divergence_is_the_papers_up_to_alpha_1():
    alphas = np.array([1e-4, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    exact = np.array([exact_divergence(alpha) for alpha in alphas])
    ours = [
        VariationalGaussianDropout(1, 1.0, p=alpha / (1 + alpha)).regularization().item()
        for alpha in alphas
    ]
    difference = exact - ours
    # The authors' accuracy: a term of alpha that is linear near 0 has another slope.
    assert np.ptp(difference) < 0.04
    assert np.ptp(difference[alphas >= 0.1]) < 0.008


def test_the_terms_sum_the_divergences_of_all_features_and_weights():
    alpha = 3 / 7
    of_one = -0.5 * math.log(alpha) - (
        1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3
    )
    for per in ("layer", "feature"):
        drop = VariationalGaussianDropout(5, 0.25, per, 0.3)
        assert drop.log_alpha.shape == (() if per == "layer" else (5,))
        assert drop.regularization().item() == pytest.approx(0.25 * 5 * of_one)
    linear = VariationalLinear(5, 3, kl_weight=0.25, p=0.3)
    assert linear.regularization().item() == pytest.approx(0.25 * 15 * of_one)


@pytest.mark.parametrize("per", ["layer", "feature"])
def test_gradients_of_variational_dropout(per):
    check_gradients(VariationalGaussianDropout(7, 0.3, per, 0.2))


def test_variances_above_1_become_1_and_learn_to_fall():
    for module in (
        VariationalGaussianDropout(7, 0.1, "feature"),
        VariationalLinear(7, 2, kl_weight=0.1),
    ):
        with torch.no_grad():
            module.log_alpha.fill_(0.7)
        assert (module.p == 0.5).all()
        loss = module(inputs(torch.float32)[0]).square().sum()
        assert (module.log_alpha == 0).all()
        loss.backward()
        assert (module.log_alpha.grad.sum() > 0).all()


def fit(layers, samples, features=1, steps=400):
    """Let modules learn y = 3 x of the first of their inputs, from some samples."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(samples, features))).float()
    y = 3 * x[:, :1] + torch.from_numpy(rng.normal(0, 0.5, (samples, 1))).float()
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y) + regularization(model)
        loss.backward()
        optimizer.step()


def test_variational_dropout_learns_which_features_are_noise():
    drop = VariationalGaussianDropout(3, 0.01, "feature", 0.2)
    fit([drop, nn.Linear(3, 1)], samples=200, features=3)
    p = drop.p.tolist()
    assert p[0] < 0.05 < 0.3 < min(p[1:])
    assert max(p) <= 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sums_of_noisy_weights_are_normal(dtype):
    linear = VariationalLinear(7, 5, dtype=dtype, kl_weight=0.1, p=0.3)
    with torch.no_grad():
        linear.log_alpha.uniform_(-3, -0.1)
    alpha, weight, bias = (
        one.detach().double().numpy().copy()
        for one in (linear.log_alpha.exp(), linear.weight, linear.bias)
    )
    x, wide = inputs(dtype)
    deviation = np.sqrt(wide**2 @ (alpha * weight**2).T)
    for _ in range(2):
        numbers = normals((20, 5), NUMPY[dtype])
        assert_close(linear(x), wide @ weight.T + bias + deviation * numbers, dtype)
    assert_close(linear.eval()(x), wide @ weight.T + bias, dtype)


def test_the_noise_of_drawn_weights_has_the_same_distribution():
    linear = VariationalLinear(7, 1, False, kl_weight=0.1, p=0.2)
    x = inputs(torch.float32)[0][:1].repeat(100_000, 1)
    sums = linear(x).detach().double().numpy()[:, 0]
    weight = linear.weight.detach().numpy()[0]
    drawn = weight * (1 + 0.5 * np.random.default_rng(0).normal(size=(100_000, 7)))
    expected = drawn @ X[0]
    assert abs(sums.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(50_000)
    # Five standard deviations of the logarithm of the ratio of two variances.
    assert abs(math.log(sums.var() / expected.var())) < 5 * math.sqrt(4 / 100_000)


def test_without_inputs_noisy_weights_have_finite_gradients():
    linear = VariationalLinear(4, 2, False, kl_weight=0.1)
    x = torch.zeros(3, 4, requires_grad=True)
    y = linear(x)
    assert (y == 0).all()
    gradients = torch.autograd.grad(y.sum(), [x, *linear.parameters()])
    assert all(one.isfinite().all() for one in gradients)


def test_gradients_of_noisy_weights():
    check_gradients(VariationalLinear(7, 2, kl_weight=0.3, p=0.2))


# Concrete dropout.


class Identity(nn.Module):
    """Returns its inputs, and has the attributes of a layer of 7 features."""

    in_features = 7

    def __init__(self, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, x):
        return x


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_concrete_dropout_is_the_papers(dtype, channels):
    drop = ConcreteDropout(Identity(dtype), p=0.3, temperature=0.2, channels=channels)
    p = sigmoid(drop.logit.detach().double().numpy())
    assert p == pytest.approx(0.3, abs=3e-3)
    x, wide = inputs(dtype)
    x, wide = x.reshape(5, 4, 7), wide.reshape(5, 4, 7)
    of_mask = np.float64 if dtype == torch.float64 else np.float32
    for _ in range(2):
        n = normals((5, 4, 1) if channels else x.shape, of_mask)
        u = np.vectorize(math.erf)(n / math.sqrt(2)) / 2 + 0.5
        logits = math.log(p / (1 - p)) + np.log(u) - np.log(1 - u)
        y = drop(x)
        expected = wide * (1 - sigmoid(logits / 0.2)) / (1 - p)
        tolerance = 2e-4 if dtype == torch.float32 else TOLERANCE[dtype]
        assert y.dtype == dtype
        np.testing.assert_allclose(
            y.detach().double(), expected, rtol=tolerance, atol=4 * tolerance
        )
    assert drop.eval()(x) is x


def test_at_a_low_temperature_the_mask_is_that_of_dropout():
    drop = ConcreteDropout(Identity(), p=0.25, temperature=1e-6)
    y = drop(torch.ones(100, 1000)).detach()
    kept = y > 0.5
    assert torch.allclose(y, torch.where(kept, 4 / 3, 0), atol=1e-3)
    # Five standard deviations.
    assert abs(kept.double().mean() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / y.numel())


def test_the_term_of_concrete_dropout_is_the_papers():
    entropy = 0.4 * math.log(0.4) + 0.6 * math.log(0.6)
    for layer, units in ((nn.Linear(3, 4), 3), (nn.Conv2d(5, 2, 3), 5)):
        drop = ConcreteDropout(layer, 0.3, 0.2, p=0.4)
        squares = (layer.weight.detach().double() ** 2).sum().item()
        expected = 0.3 * squares / 0.6 + 0.2 * units * entropy
        assert drop.regularization().item() == pytest.approx(expected)


def test_gradients_of_concrete_dropout():
    check_gradients(ConcreteDropout(nn.Linear(7, 2), 0.1, 0.2, p=0.3, temperature=0.5))


@pytest.mark.parametrize("temperature", [0.1, 2.0])
@pytest.mark.parametrize("logit", [30.0, 89.0, 95.0])
def test_concrete_dropout_is_finite_where_the_scale_is_not(logit, temperature):
    """In float32, exp(89) is infinite."""
    drop = ConcreteDropout(Identity(), 1e-6, 1e-5, temperature=temperature)
    nn.init.constant_(drop.logit, logit)
    x, wide = inputs(torch.float32)
    u = np.vectorize(math.erf)(normals(x.shape) / math.sqrt(2)) / 2 + 0.5
    logits = (logit + np.log(u) - np.log(1 - u)) / temperature
    expected = wide * np.exp(np.logaddexp(0, logit) - np.logaddexp(0, logits))
    y = drop(x)
    np.testing.assert_allclose(y.detach(), expected, rtol=1e-3, atol=1e-30)
    (gradient,) = torch.autograd.grad(y.double().sum(), drop.logit)
    slope = 1 - sigmoid(logits) / temperature
    np.testing.assert_allclose(gradient, (expected * slope).sum(), rtol=1e-3, atol=1e-30)
    term, of_weights = drop.regularization(), 1e-6 * 3 * math.exp(logit)
    gradients = torch.autograd.grad(term, [drop.logit, drop.layer.weight])
    np.testing.assert_allclose(term.item(), of_weights, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], of_weights, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], np.full(3, 2e-6 * math.exp(logit)), rtol=1e-5)


def test_with_more_data_concrete_dropout_learns_a_smaller_probability():
    learned = []
    for samples in (20, 400):
        regularizers = 1e-4 / samples, 20 / samples
        layers = [
            ConcreteDropout(nn.Linear(1, 20), *regularizers),
            nn.ReLU(),
            ConcreteDropout(nn.Linear(20, 1), *regularizers),
        ]
        fit(layers, samples)
        learned.append(layers[2].p)
    assert learned[1] < learned[0] / 2


# All.

MODULES = {
    "Standout": lambda: Standout(torch.tanh, 0.5, 0.1),
    "VariationalGaussianDropout": lambda: VariationalGaussianDropout(7, 0.1, "feature", 0.3),
    "VariationalLinear": lambda: VariationalLinear(7, 5, kl_weight=0.1, p=0.3),
    "ConcreteDropout": lambda: ConcreteDropout(nn.Linear(7, 5), 0.1, 0.2, 0.3, 0.4),
}
each = pytest.mark.parametrize("name", MODULES)


def test_regularization_sums_the_terms_of_a_model():
    learning = [MODULES[name]() for name in list(MODULES)[1:]]
    model = nn.Sequential(nn.Sequential(*learning, MODULES["Standout"]()), learning[0], nn.ReLU())
    expected = sum(one.regularization().item() for one in learning)
    assert regularization(model).item() == pytest.approx(expected)
    regularization(model).backward()
    assert learning[2].logit.grad != 0
    assert regularization(nn.Sequential(nn.Linear(2, 2), nn.Dropout())).item() == 0
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module, got 3"):
        regularization(3)


@each
def test_the_state_and_the_arguments_are_saved(name, tmp_path):
    x, _ = inputs(torch.float32)
    module, again = MODULES[name](), MODULES[name]()
    with torch.no_grad():
        for one in module.parameters():
            one -= 0.25
    torch.save(module.state_dict(), tmp_path / "state.pt")
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    results = []
    for one in (module, again, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(one) == repr(module)
        torch.manual_seed(3)
        results.append(one(x))
    assert not torch.equal(module(x), results[0])
    assert all(torch.equal(one, results[0]) for one in results)


@each
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_uses_the_noise_of_the_forward_pass(name, reentrant):
    module, gradients = MODULES[name](), []
    for again in (False, True):
        torch.manual_seed(3)
        x = inputs(torch.float32)[0].requires_grad_()
        y = checkpoint(module, x, use_reentrant=reentrant) if again else module(x)
        y.square().sum().backward()
        gradients.append([y, x.grad, *(one.grad.clone() for one in module.parameters())])
        module.zero_grad()
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other)


# Of PyTorch's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in MODULES),
        ("VariationalGaussianDropout", "inductor"),
        ("ConcreteDropout", "inductor"),
    ],
)
def test_a_compiled_module_draws_and_has_the_gradients_of_its_noise(name, backend):
    module = MODULES[name]()
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    x = inputs(torch.float32)[0].requires_grad_()
    parameters = [x, *module.parameters()]
    results = []
    for one in (module, compiled, compiled):
        torch.manual_seed(3)
        y = one(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), parameters)])
    different = compiled(x)
    assert not torch.allclose(different, results[1][0])
    for one, other in zip(results[1], results[2], strict=True):
        assert torch.equal(one, other)
    if backend == "aot_eager":
        for one, other in zip(results[0], results[1], strict=True):
            assert torch.allclose(one, other, atol=1e-5)
    module.eval()
    assert torch.allclose(compiled(x), module(x))


@each
def test_mc_predict_draws(name):
    model = nn.Sequential(MODULES[name]()).eval()
    x = inputs(torch.float32)[0][:1].repeat(4, 1)
    mean, deviation = mc_predict(model, x, 20, seed=1)
    assert (deviation > 0).all()
    assert (mean[0] != mean[1]).all()
    assert not model[0].training


@each
def test_autocast(name):
    module = MODULES[name]()
    x = inputs(torch.float32)[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    y.float().square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(one.grad.isfinite().all() for one in module.parameters())


@pytest.mark.parametrize(
    ("make", "argument", "values"),
    [
        (lambda v: Standout(v), "activation", ["relu"]),
        (lambda v: Standout(alpha=v), "alpha", [math.nan, 10**400, None]),
        (lambda v: Standout(beta=v), "beta", ["1", -math.inf]),
        (lambda v: VariationalGaussianDropout(v, 1), "num_features", [0, 2.5, True]),
        (lambda v: VariationalGaussianDropout(7, v), "kl_weight", [-1.0, math.inf, "1"]),
        (lambda v: VariationalGaussianDropout(7, 1, v), "per", ["unit"]),
        (lambda v: VariationalGaussianDropout(7, 1, p=v), "p", [0.6, 0, math.nan, False]),
        (lambda v: VariationalLinear(2, 1, kl_weight=v), "kl_weight", [-1, None]),
        (lambda v: VariationalLinear(2, 1, kl_weight=1, p=v), "p", [1.0, 0.0]),
        (lambda v: ConcreteDropout(v), "layer", [3, nn.ReLU(), nn.Embedding(3, 2)]),
        (lambda v: ConcreteDropout(Identity(), v), "weight_regularizer", [-1e-6]),
        (lambda v: ConcreteDropout(Identity(), 0, v), "dropout_regularizer", [True]),
        (lambda v: ConcreteDropout(Identity(), p=v), "p", [0, 1, math.nan]),
        (lambda v: ConcreteDropout(Identity(), temperature=v), "temperature", [0, math.inf]),
    ],
)
def test_bad_arguments_are_named(make, argument, values):
    state = torch.get_rng_state()
    for value in values:
        with pytest.raises((TypeError, ValueError), match=f"`{argument}` must .*, got ") as caught:
            make(value)
        assert str(caught.value).endswith(f"got {value!r}")
    assert torch.equal(torch.get_rng_state(), state)


@each
def test_inputs_that_no_noise_fits_are_refused(name):
    module, state = MODULES[name](), torch.get_rng_state()
    # PyTorch's own error of a linear module is a RuntimeError.
    with pytest.raises((TypeError, RuntimeError), match=r"(?i)float"):
        module(torch.ones(2, 7, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_of_another_size_are_refused():
    for per in ("layer", "feature"):
        drop = VariationalGaussianDropout(7, 0.1, per)
        for shape in ((), (7, 1)):
            with pytest.raises(ValueError, match=r"size 7, got shape \["):
                drop(torch.ones(shape))


@pytest.mark.parametrize("size", [300.0, 1e-4])
def test_noisy_weights_keep_their_variance_under_autocast(size):
    module = VariationalLinear(3, 4, bias=False, kl_weight=0.1)
    x = torch.full((2000, 3), size)
    with torch.autocast("cpu", torch.float16):
        y = module(x).float()
    right = size * (module.weight**2).sum(1).sqrt()
    np.testing.assert_allclose(y.std(0).detach(), right.detach(), rtol=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariationalGaussianDropout(7, 0.1),
        lambda: VariationalLinear(7, 2, kl_weight=0.1),
        lambda: ConcreteDropout(nn.Linear(7, 2), p=0.5),
    ],
)
def test_vmap_draws_for_each_sample(make):
    x = torch.ones(2, 3, 7)
    y = torch.vmap(make(), randomness="different")(x)
    assert not torch.equal(y[0], y[1])


def test_a_prediction_leaves_a_variance_above_1_as_it_is():
    module = VariationalGaussianDropout(7, 0.1)
    nn.init.constant_(module.log_alpha, 0.5)
    mc_predict(module, torch.ones(3, 7), 2, verbose=False)
    assert module.log_alpha.item() == 0.5


def test_weights_that_are_drawn_anew_have_their_first_variances():
    module = VariationalLinear(7, 2, kl_weight=0.1, p=0.2)
    nn.init.constant_(module.log_alpha, -5)
    module.reset_parameters()
    np.testing.assert_allclose(module.p, 0.2, rtol=1e-6)


def test_channels_of_an_image_without_a_batch_are_refused():
    module = ConcreteDropout(nn.Conv2d(3, 2, 1), channels=True)
    with pytest.raises(
        ValueError, match=r"`input` must have 4 dimensions .* got shape \[3, 5, 5\]"
    ):
        module(torch.ones(3, 5, 5))


def test_standout_without_sums_keeps_infinities_too():
    module = Standout(alpha=0.0, beta=20.0)
    x = torch.tensor([math.inf, -math.inf, 1.0])
    assert torch.equal(module(x), x)
    assert torch.equal(module.eval()(x), x)
