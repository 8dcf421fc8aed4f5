"""`mc_predict` averages predictions with dropout, and leaves the module as it was."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

import fastdrop_torch
from fastdrop_torch import mc_predict


def summing(p=0.5, features=400):
    """A model whose predictions have a known mean and deviation."""
    model = nn.Sequential(fastdrop_torch.Dropout(p), nn.Linear(features, 1, bias=False))
    nn.init.ones_(model[1].weight)
    return model


def test_mean_and_deviation_are_those_of_dropout():
    mean, deviation = mc_predict(summing(0.2), torch.ones(3, 400), n=2000)
    expected = math.sqrt(400 * 0.2 / 0.8)
    assert mean.dtype == deviation.dtype == torch.float64
    assert mean.shape == deviation.shape == (3, 1)
    assert ((mean - 400).abs() < 5 * expected / math.sqrt(2000)).all()
    assert ((deviation / expected - 1).abs() < 0.1).all()


def test_the_moments_equal_those_of_all_predictions():
    model, x = summing(), torch.randn(5, 400)
    torch.manual_seed(3)
    passes = torch.stack([model(x) for _ in range(7)]).double()
    mean, deviation = mc_predict(model, x, n=7, seed=3)
    assert torch.allclose(mean, passes.mean(0))
    assert torch.allclose(deviation, passes.std(0, correction=0))
    assert (mc_predict(model, x, n=1)[1] == 0).all()


def test_a_seed_repeats_and_leaves_the_generator():
    model, x, state = summing(), torch.randn(5, 400), torch.get_rng_state()
    first, again = mc_predict(model, x, 3, seed=5), mc_predict(model, x, 3, seed=5)
    assert all(map(torch.equal, first, again))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(mc_predict(model, x, 3, seed=6)[0], first[0])
    assert not torch.equal(mc_predict(model, x, 3)[0], mc_predict(model, x, 3)[0])


@pytest.mark.parametrize(
    ("bar", "after_six"), [(torch.hub.tqdm, "6/6"), (torch.hub._Faketqdm, "100.0%")]
)
def test_each_pass_over_a_batch_advances_the_progress(bar, after_six, monkeypatch, capfd):
    monkeypatch.setattr(fastdrop_torch.monte_carlo, "tqdm", bar)
    mc_predict(summing(), torch.ones(3, 400), 3, batch_size=2)
    assert after_six in capfd.readouterr().err
    mc_predict(summing(), torch.ones(3, 400), 3, verbose=False)
    assert capfd.readouterr() == ("", "")


def test_a_module_that_drops_in_place_leaves_the_input():
    x = torch.ones(2000)
    mean, _ = mc_predict(nn.Dropout(0.5, inplace=True), x, 50, seed=1)
    assert (x == 1).all()
    assert abs(mean.mean() - 1) < 0.02


class Named(NamedTuple):
    a: torch.Tensor
    b: list


def test_batches_and_structures():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = fastdrop_torch.Dropout(0.5)

        def forward(self, a, b=None):
            return {"sum": self.drop(a) + b, "pair": (a, [b]), "named": Named(a, [b])}

    a, b = torch.randn(7, 3), torch.randn(7, 3)
    for x in ((a, b), [a, b], {"a": a, "b": b}):
        mean, deviation = mc_predict(Two(), x, 4, batch_size=3)
        assert mean["sum"].shape == (7, 3)
        assert torch.equal(mean["pair"][0], a.double())
        for one in (mean, deviation):
            assert [type(one[key]) for key in one] == [torch.Tensor, tuple, Named]
            assert type(one["pair"][1]) is type(one["named"].b) is list
        assert torch.equal(mean["named"].b[0], b.double())
        assert (deviation["pair"][1][0] == 0).all()
        assert (deviation["sum"] > 0).any()


def test_outputs_without_the_samples_as_their_first_axis_are_not_joined():
    lstm, x = nn.LSTM(8, 4, 2, dropout=0.5, batch_first=True), torch.randn(6, 3, 8)
    assert mc_predict(lstm, x, 2)[0][1][0].shape == (2, 6, 4)
    with pytest.raises(ValueError, match=r"here of a multiple of 3 entries, got shape \[2, 3, 4\]"):
        mc_predict(lstm, x, 2, batch_size=3)

    class Sum(fastdrop_torch.Dropout):
        def forward(self, x):
            return super().forward(x).sum()

    with pytest.raises(ValueError, match=r"here of a multiple of 4 entries, got shape \[\]"):
        mc_predict(Sum(), x, 2, batch_size=4)
    # A single batch is not joined, and a batch may have several rows for each sample.
    assert mc_predict(Sum(), x, 2, batch_size=6)[0].shape == ()
    rows = nn.Sequential(nn.Flatten(0, 1), fastdrop_torch.Dropout())
    assert mc_predict(rows, x, 2, batch_size=4)[0].shape == (18, 8)


def test_the_rest_of_the_model_is_in_evaluation_mode():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    model.train()
    model[2].eval()
    modes = [one.training for one in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mc_predict(model, torch.randn(8, 4), 3)
    assert [one.training for one in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        mc_predict(model, torch.randn(8, 5), 3)
    assert [one.training for one in model.modules()] == modes


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True), 2
        ),
        lambda: nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True),
    ],
)
def test_pytorchs_modules_drop_too(build):
    model = build().eval()
    _, deviation = mc_predict(model, torch.randn(2, 3, 8), 5)
    deviation = deviation[0] if isinstance(deviation, tuple) else deviation
    assert (deviation > 0).any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, torch.ones(2)), TypeError, "`module` must be"),
        ((nn.Linear(2, 2), torch.ones(2, 2)), ValueError, "`module` must have a dropout"),
        ((nn.Dropout(), torch.ones(2), 0), ValueError, "`n` must be a positive integer, got 0"),
        ((nn.Dropout(), torch.ones(2), 1.5), TypeError, "`n` must be a positive integer, got 1"),
        ((nn.Dropout(), "text"), TypeError, "`x` must be a tensor"),
        ((nn.Dropout(), [3]), TypeError, "`x` must be a tensor"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        mc_predict(*arguments)


@pytest.mark.parametrize(
    ("seed", "error"),
    [("x", TypeError), (1.5, TypeError), (True, ValueError), (2**64, ValueError)],
)
def test_a_bad_seed_is_named(seed, error):
    with pytest.raises(error, match=f"`seed` must be an integer .*, got {seed!r}"):
        mc_predict(nn.Dropout(), torch.ones(2), 3, seed=seed)
    for least_or_most in (-(2**63), 2**64 - 1):
        mc_predict(nn.Dropout(), torch.ones(2), 3, seed=least_or_most)


def test_bad_batches():
    for x, size, message in [
        (torch.ones(2), 0, "`batch_size` must be a positive"),
        ((torch.ones(2), torch.ones(3)), 2, "`x` must have tensors of one length"),
        (torch.ones(0, 2), 2, "`x` must have tensors of one length"),
    ]:
        with pytest.raises(ValueError, match=message):
            mc_predict(nn.Dropout(), x, batch_size=size)
