"""The modules take the place of PyTorch's; `convert` and `enabled` bring the kernels to others."""

import copy
import math
import pickle
import threading

import pytest
import torch
from torch import nn

import fastdrop_torch

SHAPES = {
    "Dropout": (4, 5),
    "Dropout1d": (4, 5, 3),
    "Dropout2d": (4, 5, 3, 3),
    "Dropout3d": (4, 5, 3, 3, 3),
    "AlphaDropout": (4, 5),
    "FeatureAlphaDropout": (4, 5, 3),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_module_is_pytorchs_but_for_the_kernels(name):
    ours, theirs = getattr(fastdrop_torch, name), getattr(nn, name)
    for arguments in [(), (0.2,), (0.2, True)]:
        assert repr(ours(*arguments)) == repr(theirs(*arguments))
    module = ours(0.2)
    assert isinstance(module, theirs)
    assert module.state_dict() == {}
    for one in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(one) is ours
        assert vars(one).keys() == vars(module).keys()
        assert one.p == 0.2
    x = torch.ones(SHAPES[name])
    assert module.eval()(x) is x
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            ours(p)
    for p in ("0.5", None, [0.5], torch.tensor([0.5, 0.5])):
        with pytest.raises(TypeError) as raised:
            ours(p)
        assert str(raised.value) == f"`p` must be a number, got {p!r}"


@pytest.mark.parametrize("name", SHAPES)
def test_p_can_change_at_any_time(name):
    module = getattr(fastdrop_torch, name)(0.5)
    x = torch.full(SHAPES[name], 3.0)
    module.p = 0.0
    assert torch.equal(module(x), x)
    module.p = 1.0
    assert (module(x) == 0).all()
    module.p = 1.5
    with pytest.raises(ValueError, match=r"but got 1\.5"):
        module(x)


@pytest.mark.parametrize("name", SHAPES)
def test_in_place_modules(name):
    """As in PyTorch, the two alpha modules ignore `inplace`."""
    module = getattr(fastdrop_torch, name)(1.0, inplace=True)
    x = torch.ones(SHAPES[name])
    assert (module(x) is x) is ("Alpha" not in name)
    assert (x == 0).all() == ("Alpha" not in name)


class Attention(nn.Module):
    """Drops in its own code, as models of other packages do."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Dropout2d(0.3)

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class MyDropout(nn.Dropout):
    """A user's subclass."""


def network():
    return nn.Sequential(
        nn.Linear(8, 8),
        nn.Dropout(0.2, inplace=True),
        Attention(),
        MyDropout(0.1),
        nn.LSTM(8, 8, 2, dropout=0.1),
        nn.LSTM(8, 8, 2),
        nn.MultiheadAttention(8, 2, dropout=0.1),
        nn.AlphaDropout(0.1),
        fastdrop_torch.Dropout(0.4),
    )


def test_convert_changes_modules_in_place_and_lists_the_others(capsys):
    model = network()
    drop = model[1]
    drop.register_forward_hook(lambda *_: None)
    drop.mine = "kept"
    state = model.state_dict()
    converted, report = fastdrop_torch.convert(model, return_report=True)
    assert converted is model
    assert model[1] is drop
    assert type(drop) is fastdrop_torch.Dropout
    assert (drop.p, drop.inplace, drop.mine, len(drop._forward_hooks)) == (0.2, True, "kept", 1)
    assert model.state_dict().keys() == state.keys()
    assert {one.path: one.after.__name__ for one in report.changed} == {
        "1": "Dropout",
        "2.inner": "Dropout2d",
        "7": "AlphaDropout",
    }
    notes = {one.path: one.note for one in report.unchanged}
    assert notes.keys() == {"2", "3", "4", "6"}
    assert "names 'dropout'" in notes["2"]
    assert "a subclass" in notes["3"]
    assert "without a dropout module" in notes["4"]
    assert "without a dropout module" in notes["6"]
    assert capsys.readouterr().out.startswith("3 modules changed\n")
    assert fastdrop_torch.to_torch(model, verbose=False) is model
    assert [type(one) for one in model] == [
        *(nn.Linear, nn.Dropout, Attention, MyDropout, nn.LSTM, nn.LSTM),
        *(nn.MultiheadAttention, nn.AlphaDropout, nn.Dropout),
    ]
    assert capsys.readouterr().out == ""


def test_convert_reads_the_code_of_any_class():
    """It finds class methods and static methods that Python makes."""

    class Model(nn.Module):
        def __init_subclass__(cls, **arguments):
            super().__init_subclass__(**arguments)

        def __new__(cls, *arguments):
            return super().__new__(cls)

        def forward(self, x):
            return nn.functional.dropout(x)

    _, report = fastdrop_torch.convert(Model(), verbose=False, return_report=True)
    assert "names 'dropout'" in report.unchanged[0].note


def test_convert_of_a_single_module_and_of_shared_ones():
    drop = nn.Dropout(0.3)
    assert fastdrop_torch.convert(drop, verbose=False) is drop
    assert type(drop) is fastdrop_torch.Dropout
    shared = nn.Dropout(0.3)
    _, report = fastdrop_torch.convert(
        nn.ModuleList([shared, shared]), verbose=False, return_report=True
    )
    assert len(report.changed) == 1
    for bad in (3, [nn.Dropout()]):
        with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module"):
            fastdrop_torch.convert(bad)


def drops_like_ours(function, x):
    """Whether a call drops what our kernels drop from the same generator's state."""
    torch.manual_seed(8)
    y = function(x)
    torch.manual_seed(8)
    return torch.equal(y, fastdrop_torch.functional.dropout(x, 0.5))


def test_enable_reaches_pytorchs_functions_and_disable_ends_it():
    x = torch.ones(1000)
    functions = [lambda x: nn.functional.dropout(x, 0.5), nn.Dropout(0.5)]
    for function in functions:
        assert not drops_like_ours(function, x)
        with fastdrop_torch.enabled():
            assert drops_like_ours(function, x)
            with fastdrop_torch.enabled(False):
                assert not drops_like_ours(function, x)
            assert drops_like_ours(function, x.requires_grad_())
        assert not drops_like_ours(function, x)
    fastdrop_torch.enable()
    try:
        for function in functions:
            assert drops_like_ours(function, x)
            with torch.inference_mode():
                assert drops_like_ours(function, torch.ones(1000))
    finally:
        fastdrop_torch.disable()
    assert not any(drops_like_ours(function, x) for function in functions)


def test_enabled_is_for_one_thread_and_enable_for_all():
    seen = {}

    def look(name):
        # NaN survives PyTorch's dropout, not ours.
        dropped = nn.functional.dropout(torch.full((4,), math.nan), 1.0)
        seen[name] = not dropped.isnan().any()

    def in_thread(name):
        thread = threading.Thread(target=look, args=(name,))
        thread.start()
        thread.join()

    with fastdrop_torch.enabled():
        look("here")
        in_thread("another thread")
    fastdrop_torch.enable()
    try:
        in_thread("everywhere")
    finally:
        fastdrop_torch.disable()
    in_thread("after")
    assert seen == {"here": True, "another thread": False, "everywhere": True, "after": False}


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (nn.functional.dropout1d, (2, 3, 4)),
        (nn.functional.dropout2d, (2, 3, 4, 4)),
        (nn.functional.dropout3d, (2, 3, 4, 4, 4)),
        (lambda x, p, inplace: nn.functional.dropout(x, p, inplace=inplace), (3, 4)),
        (lambda x, p, inplace: nn.functional.alpha_dropout(x, p, True, inplace), (3, 4)),
        (lambda x, p, inplace: nn.functional.feature_alpha_dropout(x, p, True, inplace), (3, 4)),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_every_function_of_pytorch_is_switched(function, shape, inplace):
    for switched in (False, True):
        with fastdrop_torch.enabled(switched):
            y = function(torch.full(shape, math.nan), p=1.0, inplace=inplace)
            assert y.isnan().any() != switched


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
        lambda: nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
        lambda: nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True),
    ],
)
def test_the_switch_reaches_dropout_inside_of_pytorchs_modules(build):
    module, x = build(), torch.randn(3, 5, 8, requires_grad=True)
    arguments = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)

    def run():
        torch.manual_seed(4)
        y = module(*arguments)
        y = y[0] if isinstance(y, tuple) else y
        return y, torch.autograd.grad(y.sum(), x)[0]

    theirs = run()
    with fastdrop_torch.enabled():
        ours, again = run(), run()
    assert not torch.equal(ours[0], theirs[0])
    assert all(map(torch.equal, ours, again))
    assert all(map(torch.equal, theirs, run()))
    with fastdrop_torch.enabled():
        # Without dropout nothing changes.
        module.eval()
        still = run()
    assert all(map(torch.allclose, still, run()))


def test_attention_drops_by_our_kernels_when_switched():
    q = torch.randn(2, 4, 10, 8)
    v = torch.full((2, 4, 10, 8), math.nan)
    attention = nn.functional.scaled_dot_product_attention
    # NaN in the weights survives PyTorch's dropout of all of them, not ours.
    q[0, 0, 0, 0] = math.nan
    v[...] = 1.0
    assert attention(q, q, v, dropout_p=1.0).isnan().any()
    with fastdrop_torch.enabled():
        assert (attention(q, q, v, dropout_p=1.0) == 0).all()
