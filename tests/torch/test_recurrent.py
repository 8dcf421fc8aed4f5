"""The recurrent modules have one mask for all time steps, and are PyTorch's in all else."""

import copy

import numpy as np
import pytest
import reference
import torch
from pairwise import name_of, pairwise
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fastdrop_torch

STEPS, BATCH, FEATURES, UNITS, PROJECTED = 5, 3, 4, 6, 2
SEED = 7
# The kinds of modules, and those whose states and gates PyTorch computes otherwise.
CASES = {
    "LSTM": {},
    "LSTM with a projection": {"proj_size": PROJECTED},
    "GRU": {},
    "RNN": {},
    "RNN with ReLU": {"nonlinearity": "relu"},
}
KINDS = pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
# Of the inputs, between the layers, and of the states.
PROBABILITIES = [(0.4, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.5), (0.4, 0.3, 0.5)]
PATHS = pytest.mark.parametrize("recurrent_dropout", [0.0, 0.5])


def made(case, dtype=torch.float64, **kwargs):
    kind = getattr(fastdrop_torch, case.split()[0])
    return kind(FEATURES, UNITS, dtype=dtype, **CASES[case], **kwargs)


def theirs(module, case, **kwargs):
    """PyTorch's module with the same weights."""
    kind = getattr(nn, case.split()[0])
    dtype = module.weight_ih_l0.dtype
    other = kind(FEATURES, UNITS, dtype=dtype, **CASES[case], **kwargs)
    other.load_state_dict(module.state_dict())
    return other


def inputs(dtype=torch.float64):
    return torch.randn(STEPS, BATCH, FEATURES, dtype=dtype)


def seeded(module, *args):
    torch.manual_seed(SEED)
    return module(*args)


def flat(result):
    """The output, and one or two last states, as a list."""
    output, states = result
    return [output, *(states if isinstance(states, tuple) else [states])]


def close(got, want, tolerance=1e-12):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, torch.as_tensor(other), rtol=tolerance, atol=tolerance)


# The reference: one sample, one time step and one gate at a time.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def factors(p, units):
    """The factors of the next mask, for each sample: 0, or what a kept unit is multiplied by."""
    if p == 0:
        return np.ones((BATCH, units))
    low, step = torch.randint(2**63 - 1, (2,)).tolist()
    kept = reference.keep_mask(low, step, p, BATCH * units)
    return kept.reshape(BATCH, units) * reference.default_scale(p)


def next_states(module, x, states, h_factors, suffix):
    def parts(name):
        value = getattr(module, name + suffix, None)
        return value if value is None else np.split(value.detach().numpy(), len(value) // UNITS)

    def product(gate, weights, biases, value):
        return weights[gate] @ value + (0 if biases is None else biases[gate])

    def from_x(gate):
        return product(gate, parts("weight_ih"), parts("bias_ih"), x)

    def from_h(gate):
        return product(gate, parts("weight_hh"), parts("bias_hh"), states[0] * h_factors)

    if module.mode == "LSTM":
        i, f, g, o = (from_x(gate) + from_h(gate) for gate in range(4))
        c = sigmoid(f) * states[1] + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        if module.proj_size:
            h = getattr(module, "weight_hr" + suffix).detach().numpy() @ h
        return [h, c]
    if module.mode == "GRU":
        r, z = (sigmoid(from_x(gate) + from_h(gate)) for gate in range(2))
        n = np.tanh(from_x(2) + r * from_h(2))
        return [(1 - z) * n + z * states[0]]
    total = from_x(0) + from_h(0)
    return [np.tanh(total) if module.mode == "RNN_TANH" else np.maximum(total, 0)]


def expected(module, x, hx, lengths):
    """The outputs and last states, as `flat` lists them; outputs after a sample's end are zero."""
    torch.manual_seed(SEED)
    directions = 2 if module.bidirectional else 1
    x = x.detach().numpy()
    last = [one.detach().numpy().copy() for one in hx]
    for layer in range(module.num_layers):
        x_factors = factors(module.dropout if layer else module.input_dropout, x.shape[2])
        outputs = []
        for direction in range(directions):
            row = layer * directions + direction
            suffix = f"_l{layer}" + "_reverse" * direction
            h_factors = factors(module.recurrent_dropout, last[0].shape[2])
            output = np.zeros((STEPS, BATCH, last[0].shape[2]))
            for n in range(BATCH):
                states = [one[row, n] for one in last]
                for t in list(range(lengths[n]))[:: -1 if direction else 1]:
                    dropped = x[t, n] * x_factors[n]
                    states = next_states(module, dropped, states, h_factors[n], suffix)
                    output[t, n] = states[0]
                for one, state in zip(last, states, strict=True):
                    one[row, n] = state
            outputs.append(output)
        x = np.concatenate(outputs, axis=2)
    return [x, *last]


def initial_states(module, random):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or UNITS, UNITS] if module.mode == "LSTM" else [UNITS]
    make = torch.randn if random else torch.zeros
    return tuple(make(rows, BATCH, size, dtype=torch.float64) for size in sizes)


ROWS = pairwise(
    list(CASES), PROBABILITIES, [1, 3], *[[False, True]] * 4, ["padded", "sorted", "in any order"]
)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize(
    ("case", "probabilities", "layers", "bidirectional", "bias", "initial", "batch_first", "form"),
    ROWS,
    ids=name_of,
)
def test_values(case, probabilities, layers, bidirectional, bias, initial, batch_first, form):
    input_dropout, dropout, recurrent_dropout = probabilities
    module = made(
        case,
        num_layers=layers,
        bidirectional=bidirectional,
        bias=bias,
        batch_first=batch_first,
        input_dropout=input_dropout,
        dropout=dropout,
        recurrent_dropout=recurrent_dropout,
    )
    x, states = inputs(), initial_states(module, initial)
    hx = None
    if initial:
        hx = states if module.mode == "LSTM" else states[0]
    lengths = {"padded": [STEPS] * 3, "sorted": [5, 3, 1], "in any order": [3, 5, 1]}[form]
    want = expected(module, x, states, lengths)
    given = x.transpose(0, 1) if batch_first else x
    if form == "padded":
        output, *last = flat(seeded(module, given, hx))
    else:
        packed = pack_padded_sequence(given, lengths, batch_first, form == "sorted")
        output, *last = flat(seeded(module, packed, hx))
        output, _ = pad_packed_sequence(output, batch_first)
    close([output.transpose(0, 1) if batch_first else output, *last], want)


@KINDS
@PATHS
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_input_without_a_batch_is_one_sample(kind, recurrent_dropout, batch_first):
    module = made(
        kind, batch_first=batch_first, input_dropout=0.4, recurrent_dropout=recurrent_dropout
    )
    x, states = inputs()[:, 0], [one[:, 0] for one in initial_states(module, True)]
    axis = 0 if batch_first else 1
    for hx, batch_hx in [
        (None, None),
        (tuple(states), tuple(one[:, None] for one in states)),
    ]:
        if kind != "LSTM" and hx:
            hx, batch_hx = hx[0], batch_hx[0]
        output, *last = flat(seeded(module, x.unsqueeze(axis), batch_hx))
        want = [output.squeeze(axis), *(one.squeeze(1) for one in last)]
        close(flat(seeded(module, x, hx)), want, 0)


# Masks.


def copies(what, **kwargs):
    """An RNN without a bias that adds nothing to its inputs, "ih", or to its states, "hh"."""
    module = fastdrop_torch.RNN(8, 8, 2, nonlinearity="relu", bias=False, **kwargs)
    for name, weight in module.named_parameters():
        weight.data = torch.eye(8, weight.shape[1]) if what in name else torch.zeros_like(weight)
    return module


def test_the_inputs_of_each_layer_have_one_mask_for_all_steps():
    module = copies("ih", input_dropout=0.5, dropout=0.5)
    x = torch.ones(9, 40, 8)
    both = seeded(module, x)[0] != 0
    module.dropout = 0.0
    first = seeded(module, x)[0] != 0
    for kept, fraction in ((first, 0.5), (both, 0.25)):
        assert torch.equal(kept, kept[:1].expand_as(kept))
        assert abs(float(kept[0].double().mean()) - fraction) < 0.1
        assert len(kept[0].unique(dim=0)) > 20


def test_the_states_of_each_layer_and_direction_have_one_mask_for_all_steps():
    module = copies("hh", bidirectional=True, recurrent_dropout=0.5)
    # With a mask for each of four steps, a unit would be kept once in 16.
    last = module(torch.zeros(4, 40, 8), torch.ones(4, 40, 8))[1]
    kept = last != 0
    assert torch.equal(last, kept * 2.0**4)
    for row in range(4):
        assert abs(float(kept[row].double().mean()) - 0.5) < 0.1
        assert len(kept[row].unique(dim=0)) > 20
        for other in range(row):
            assert 100 < int((kept[row] != kept[other]).sum()) < 220


@KINDS
@PATHS
def test_manual_seed_repeats(kind, recurrent_dropout):
    module, x = made(kind, input_dropout=0.4, recurrent_dropout=recurrent_dropout), inputs()
    first = seeded(module, x)[0]
    assert not torch.equal(module(x)[0], first)
    assert torch.equal(seeded(module, x)[0], first)


@pytest.mark.parametrize("kind", ["LSTM", "RNN"])
@PATHS
def test_a_dropped_nan_counts_as_zero(kind, recurrent_dropout):
    module = made(kind, input_dropout=0.5, recurrent_dropout=recurrent_dropout)
    x, states = inputs(), initial_states(module, True)
    torch.manual_seed(SEED)
    dropped_inputs = torch.from_numpy(factors(0.5, FEATURES) == 0)
    dropped_states = torch.from_numpy(factors(recurrent_dropout, UNITS) == 0)
    want = expected(module, x, states, [STEPS] * BATCH)
    x = torch.where(dropped_inputs, torch.nan, x).requires_grad_()
    states[0][0, dropped_states] = torch.nan
    got = flat(seeded(module, x, states if kind == "LSTM" else states[0]))
    close(got, want)
    got[0].sum().backward()
    assert dropped_inputs.any()
    assert (x.grad[:, dropped_inputs] == 0).all()
    assert x.grad[:, ~dropped_inputs].all()


@KINDS
def test_probability_1_drops_all(kind):
    module = made(kind, input_dropout=1.0, recurrent_dropout=1.0)
    states = initial_states(module, False)
    x = inputs()
    got = module(x)
    for name, weight in module.named_parameters():
        if "weight" in name:
            weight.data.zero_()
    close(flat(got), expected(module, x, states, [STEPS] * BATCH))


# PyTorch's module.


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
def test_evaluation_is_pytorchs_and_takes_nothing_from_the_generator(case):
    options = {"num_layers": 2, "bidirectional": True, "dropout": 0.3}
    module = made(case, torch.float32, input_dropout=0.4, recurrent_dropout=0.5, **options)
    other = theirs(module, case, **options)
    x, state = inputs(torch.float32), torch.get_rng_state()
    close(flat(module.eval()(x)), flat(other.eval()(x)), 0)
    for name in ("dropout", "input_dropout", "recurrent_dropout"):
        setattr(module, name, 0.0)
    close(flat(module.train()(x)), flat(other(x)), 0)
    assert torch.equal(torch.get_rng_state(), state)


@KINDS
@PATHS
def test_probabilities_may_be_set_at_any_time(kind, recurrent_dropout):
    module, x = made(kind), inputs()
    module.input_dropout, module.recurrent_dropout = 0.4, recurrent_dropout
    states = initial_states(module, False)
    close(flat(seeded(module, x)), expected(module, x, states, [STEPS] * BATCH))


@KINDS
def test_a_copy_and_new_weights(kind):
    """`functional_call` gives other weights, which PyTorch's module reads late."""
    module, x = made(kind, recurrent_dropout=0.5), inputs()
    copied = copy.deepcopy(module)
    weights = {name: torch.randn_like(one) for name, one in module.named_parameters()}
    got = seeded(lambda x: torch.func.functional_call(module, weights, x), x)
    assert not torch.equal(seeded(copied, x)[0], got[0])
    copied.load_state_dict(weights)
    close(flat(seeded(copied, x)), flat(got), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@KINDS
@PATHS
def test_other_dtypes(kind, recurrent_dropout, dtype):
    module = made(kind, dtype, input_dropout=0.4, recurrent_dropout=recurrent_dropout)
    wide, x = copy.deepcopy(module).double(), inputs(dtype)
    got = seeded(module, x)[0]
    assert got.dtype == dtype
    close([got.double()], [seeded(wide, x.double())[0]], 1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("onednn", [False, True])
@PATHS
def test_autocast_gives_the_dtypes_of_pytorchs_module(
    case, packed, onednn, recurrent_dropout, monkeypatch
):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", onednn)
    options = {"num_layers": 2, "bidirectional": True}
    module = made(
        case, torch.float32, input_dropout=0.4, recurrent_dropout=recurrent_dropout, **options
    )
    x, lengths = inputs(torch.float32), [STEPS, 3, 1] if packed else [STEPS] * BATCH
    given = pack_padded_sequence(x, lengths) if packed else x
    with torch.autocast("cpu", torch.bfloat16):
        got = flat(seeded(module, given))
        want = flat(theirs(module, case, **options)(given))
    assert [one.data.dtype for one in got] == [one.data.dtype for one in want]
    if packed:
        got[0], _ = pad_packed_sequence(got[0])
    right = expected(module.double(), x.double(), initial_states(module, False), lengths)
    close([one.double() for one in got], right, 0.05)


# Of PyTorch's compiler.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@KINDS
@PATHS
def test_compiled(kind, recurrent_dropout):
    """As for PyTorch's module, the compiler leaves the call of the module to Python."""
    module, x = made(kind, input_dropout=0.4, recurrent_dropout=recurrent_dropout), inputs()
    compiled = torch.compile(lambda x: module(x.sin())[0].cos(), backend="aot_eager")
    close([seeded(compiled, x)], [seeded(module, x.sin())[0].cos()])


def test_convert_leaves_them_and_mc_predict_draws():
    module = made("LSTM", num_layers=2, dropout=0.3)
    _, report = fastdrop_torch.convert(module, verbose=False, return_report=True)
    assert not report.changed
    assert not report.unchanged
    _, deviation = fastdrop_torch.mc_predict(module, inputs(), n=3)
    assert deviation[0].all()


def test_repr_has_the_probabilities():
    module = fastdrop_torch.GRU(3, 4, input_dropout=0.2, recurrent_dropout=0.1)
    assert repr(module) == "GRU(3, 4, input_dropout=0.2, recurrent_dropout=0.1)"
    assert repr(fastdrop_torch.GRU(3, 4)) == "GRU(3, 4)"


# Gradients.


@pytest.mark.parametrize("case", CASES)
@PATHS
def test_gradients(case, recurrent_dropout):
    options = {"num_layers": 2, "dropout": 0.3, "input_dropout": 0.4}
    module = made(case, recurrent_dropout=recurrent_dropout, **options)
    names = [name for name, _ in module.named_parameters()]
    x, states = inputs().requires_grad_(), initial_states(module, True)

    def call(x, *args):
        hx, weights = args[: len(states)], dict(zip(names, args[len(states) :], strict=True))
        hx = hx if module.mode == "LSTM" else hx[0]
        torch.manual_seed(SEED)
        return tuple(flat(torch.func.functional_call(module, weights, (x, hx))))

    weights = [one.detach().clone().requires_grad_() for one in module.parameters()]
    args = (x, *(one.requires_grad_() for one in states), *weights)
    assert torch.autograd.gradcheck(call, args, fast_mode=True)


@KINDS
def test_a_checkpointed_module_replays_its_masks(kind):
    module = made(kind, input_dropout=0.4, recurrent_dropout=0.5)
    x = inputs().requires_grad_()
    plain, recomputed = (
        torch.autograd.grad(seeded(call, x)[0].square().sum(), x)
        for call in (module, lambda x: checkpoint(module, x, use_reentrant=False))
    )
    close(plain, recomputed, 0)


# Bad input.


@pytest.mark.parametrize("name", ["input_dropout", "recurrent_dropout", "dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "0.5", None])
@KINDS
def test_a_bad_probability_is_named(kind, name, value):
    if name != "dropout":
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=f"`{name}` must be .* got {value!r}"):
            made(kind, **{name: value})
        assert torch.equal(torch.get_rng_state(), state)
    module, x = made(kind, input_dropout=0.5, recurrent_dropout=0.5), inputs()
    state = torch.get_rng_state()
    setattr(module, name, value)
    with pytest.raises(ValueError, match=f"`{name}` must be .* got {value!r}"):
        module(x)
    assert torch.equal(torch.get_rng_state(), state)


@KINDS
@PATHS
def test_bad_inputs_raise_pytorchs_errors_and_take_nothing_from_the_generator(
    kind, recurrent_dropout
):
    module = made(kind, input_dropout=0.5, recurrent_dropout=recurrent_dropout)
    other = theirs(module, kind)
    bad = [
        (inputs()[..., :3],),
        (inputs().float(),),
        (inputs()[:, 0, :3],),
        (inputs(), tuple(one[:, :2] for one in initial_states(module, True))),
    ]
    state = torch.get_rng_state()
    for x, *states in bad:
        hx = states[0] if states and kind == "LSTM" else states[0][0] if states else None
        with pytest.raises((RuntimeError, ValueError)) as theirs_raised:
            other(x, hx)
        with pytest.raises(theirs_raised.type) as raised:
            module(x, hx)
        assert str(raised.value) == str(theirs_raised.value)
    assert torch.equal(torch.get_rng_state(), state)
