"""On PyTorch, the layers have the values, gradients and errors that they have on TensorFlow."""

import concurrent.futures
import math
import pathlib
import re
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
import reference
import torch
from keras.src import testing
from reference import assert_same_bits, blocks_kept, drop_block

import fastdrop
import fastdrop_keras
from fastdrop_keras import (
    AlphaDropout,
    ConcreteDropout,
    DropBlock2D,
    DropConnectConv2D,
    DropConnectDense,
    Dropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
    StochasticDepth,
    VariationalDense,
    VariationalGaussianDropout,
)
from fastdrop_keras.backend import BACKEND

DATA = pathlib.Path(__file__).parent.parent / "data"
DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
}


def numbers(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def state_of(layer):
    return layer.seed_generator.state.value.tolist()


# Keras's check trains a model without weights on a generator, and warns about both.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
class TestKerasChecks(testing.TestCase):
    """Keras's own checks of a layer: serialization, building, symbolic calls, a training step."""

    def check(self, layer_class, init_kwargs, input_shape):
        for training in (True, False):
            self.run_layer_test(
                layer_class,
                init_kwargs=init_kwargs,
                input_shape=input_shape,
                call_kwargs={"training": training},
                expected_output_shape=input_shape,
                expected_num_trainable_weights=0,
                expected_num_non_trainable_weights=0,
                expected_num_non_trainable_variables=1,
                expected_num_seed_generators=1,
                expected_num_losses=0,
                supports_masking=True,
                assert_built_after_instantiation=True,
            )

    def test_dropout(self):
        self.check(Dropout, {"rate": 0.2, "noise_shape": [None, 1, 4], "seed": 3}, (2, 3, 4))

    def test_spatial(self):
        self.check(SpatialDropout1D, {"rate": 0.5}, (2, 3, 4))
        self.check(SpatialDropout2D, {"rate": 0.5, "data_format": "channels_first"}, (2, 3, 4, 5))
        self.check(SpatialDropout3D, {"rate": 0.5}, (2, 3, 4, 4, 5))

    def test_structured(self):
        self.check(DropBlock2D, {"rate": 0.5, "block_size": (2, 3)}, (2, 3, 4, 5))
        self.check(StochasticDepth, {"rate": 0.5, "seed": 3}, (2, 3, 4, 5))


# Bits.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5, 33), (0, 3), (3, 4099)], ids=str)
def test_bits(expected, dtype, shape):
    layer = Dropout(0.3, seed=42, dtype=dtype)
    for step in range(3):
        x = numbers(shape, DTYPES[dtype], step)
        y = layer(keras.ops.convert_to_tensor(x), training=True)
        assert y.dtype is getattr(torch, dtype)
        assert_same_bits(keras.ops.convert_to_numpy(y), expected.output(x, 0.3, 42, step))


def test_frozen_bits():
    """Those of the example in the layer's docstring, which runs on TensorFlow."""
    y = Dropout(0.5, seed=42)(torch.ones(2, 8), training=True)
    assert y.tolist() == [[0, 0, 2, 2, 2, 0, 2, 2], [2, 0, 2, 2, 2, 2, 0, 2]]


@pytest.mark.parametrize("seed", [0, 2**31, 2**40 + 3, 2**63 - 1])
def test_the_array_function_draws_the_same_mask(seed):
    layer = Dropout(0.3, seed=seed)
    stream = fastdrop.Stream(seed)
    for step in range(3):
        x = numbers((6, 50), seed=step)
        y, _ = fastdrop.dropout(x, 0.3, seed=stream)
        assert_same_bits(layer(torch.from_numpy(x), training=True).numpy(), y)
    assert state_of(layer) == [seed, 3]
    assert layer.seed_generator.get_config()["seed"] == layer.get_config()["seed"] == seed


def test_a_seed_from_keras():
    first, second = Dropout(0.5), Dropout(0.5)
    keras.utils.set_random_seed(1234)
    assert state_of(first) == state_of(Dropout(0.5)) != state_of(second)
    layer = Dropout(0.5)
    layer.seed_generator = keras.random.SeedGenerator(7)  # of 32 bits
    y = layer(torch.ones(50), training=True)
    assert torch.equal(y, Dropout(0.5, seed=7)(torch.ones(50), training=True))


@pytest.mark.parametrize(
    ("layer", "shape", "noise_shape"),
    [
        (lambda **k: Dropout(0.5, (None, 1, None), **k), (4, 5, 6), (None, 1, None)),
        (lambda **k: Dropout(0.5, (6,), **k), (4, 5, 6), (1, 1, 6)),
        (lambda **k: SpatialDropout1D(0.5, **k), (9, 5, 6), (None, 1, None)),
        (lambda **k: SpatialDropout2D(0.5, **k), (9, 5, 6, 7), (None, 1, 1, None)),
        (
            lambda **k: SpatialDropout3D(0.5, "channels_first", **k),
            (9, 5, 2, 2, 3),
            (None, None, 1, 1, 1),
        ),
    ],
)
def test_noise_shapes(expected, layer, shape, noise_shape):
    x = numbers(shape)
    y = layer(seed=3)(torch.from_numpy(x), training=True)
    assert_same_bits(y.numpy(), expected.output(x, 0.5, 3, noise_shape=noise_shape))


@pytest.mark.parametrize(
    ("policy", "dtype"), [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")]
)
def test_dtype_policies_cast_the_input(expected, policy, dtype):
    x = numbers((5, 6))
    y = Dropout(0.5, seed=3, dtype=policy)(torch.from_numpy(x), training=True)
    right = expected.output(x.astype(DTYPES[dtype]), 0.5, 3)
    assert_same_bits(keras.ops.convert_to_numpy(y), right)


@pytest.mark.parametrize("training", [False, None, 0, torch.tensor(False)], ids=repr)
def test_inference_is_the_input_itself(training):
    layer = Dropout(0.5, seed=3)
    x = torch.ones(2, 3)
    assert layer(x, training=training) is x
    assert state_of(layer) == [3, 0]


def test_training_as_a_tensor_or_variable(expected):
    layer = Dropout(0.5, seed=3)
    variable = keras.Variable(True, dtype="bool", trainable=False)
    for step, training in enumerate([torch.tensor(True), variable]):
        y = layer(torch.ones(50), training=training)
        assert torch.equal(y, expected.factors((50,), 0.5, 3, step))


def test_the_rate_may_change_at_any_time(expected):
    layer = Dropout(0.5, seed=3)
    of_tensors = {0.5: torch.tensor(0.5, dtype=torch.bfloat16), 0.25: keras.Variable(0.25)}
    for step, rate in enumerate([0.1, 0, 1, *of_tensors]):
        layer.rate = of_tensors.get(rate, rate)
        right = expected.factors((50,), rate, 3, step)
        assert torch.equal(layer(torch.ones(50), training=True), right)
    assert layer.get_config()["rate"] == 0.25


def test_dropped_elements_become_zero():
    x = torch.tensor([float("nan"), float("inf"), -1.0] * 50)
    y = Dropout(0.5, seed=3)(x, training=True)
    dropped = Dropout(0.5, seed=3)(torch.ones(150), training=True) == 0
    assert not y[dropped].view(torch.int32).any()
    assert not Dropout(1.0)(x, training=True).view(torch.int32).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("sizes", [(2, 3), (9, 2), (9, 9)], ids=str)
def test_drop_block(sizes, data_format, dtype):
    for per_channel in (True, False):
        layer = DropBlock2D(
            0.3, sizes, data_format, seed=2**40, per_channel=per_channel, dtype=dtype
        )
        for step in range(2):
            x = numbers((3, 6, 5, 4), DTYPES[dtype], step)
            x[0] = np.nan
            y = layer(keras.ops.convert_to_tensor(x), training=True)
            kept = blocks_kept(x.shape, 0.3, sizes, 2**40, step, data_format, per_channel)
            assert_same_bits(keras.ops.convert_to_numpy(y), drop_block(x, kept))


def test_stochastic_depth(expected):
    layer = StochasticDepth(0.3, seed=7)
    for step in range(2):
        x = numbers((40, 3, 2), seed=step)
        y = layer(keras.ops.convert_to_tensor(x), training=True)
        want = expected.output(x, 0.3, 7, step, (None, 1, 1))
        assert_same_bits(keras.ops.convert_to_numpy(y), want)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("convolution", [False, True])
def test_drop_connect(convolution, policy):
    keras.config.set_dtype_policy(policy)
    options = {"bias_initializer": "normal", "activation": "tanh"}
    if convolution:
        layer = DropConnectConv2D(6, (2, 3), 0.3, seed=7, groups=2, **options)
        plain = keras.layers.Conv2D(6, (2, 3), groups=2, **options)
    else:
        layer = DropConnectDense(6, 0.3, seed=7, **options)
        plain = keras.layers.Dense(6, **options)
    for one in (layer, plain):
        one.build((3, 6, 5, 4))
    kernel, bias = layer.get_weights()
    x = keras.ops.convert_to_tensor(numbers((3, 6, 5, 4)))
    for step in range(2):
        stream = fastdrop.Stream(7)
        stream.state = {"seed": 7, "step": step}
        used = kernel.astype(DTYPES[layer.compute_dtype])
        plain.set_weights([fastdrop.dropout(used, 0.3, seed=stream)[0].astype(np.float32), bias])
        got, want = layer(x, training=True), plain(x)
        assert got.dtype == want.dtype
        got, want = (keras.ops.convert_to_numpy(keras.ops.cast(y, "float32")) for y in (got, want))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    layer.rate = 0
    plain.set_weights([kernel, bias])
    got, want = (
        keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
        for y in (layer(x, training=True), layer(x))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# Layers of noise.

NOISE = [
    (GaussianDropout, "gaussian_dropout"),
    (GaussianNoise, "gaussian_noise"),
    (AlphaDropout, "alpha_dropout"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layer_class", "kind"), NOISE)
def test_noise(layer_class, kind, dtype):
    """The array functions draw the same numbers; the gradient is that of the reference."""
    layer = layer_class(0.3, seed=2**40 + 3, dtype=dtype)
    stream = fastdrop.Stream(2**40 + 3)
    for step in range(2):
        x, slope = (numbers((5, 4099), DTYPES[dtype], seed=seed) for seed in (step, 7))
        right, _ = getattr(fastdrop, kind)(x, 0.3, seed=stream)
        gradient = reference.drawn_gradient(kind, slope, 0.3, 2**40 + 3, step)
        x = keras.ops.convert_to_tensor(x).requires_grad_()
        y = layer(x, training=True)
        assert_same_bits(keras.ops.convert_to_numpy(y), right)
        (dx,) = torch.autograd.grad(y, x, keras.ops.convert_to_tensor(slope))
        assert_same_bits(keras.ops.convert_to_numpy(dx), gradient)
    assert layer(x) is x
    assert state_of(layer) == [2**40 + 3, 2]


def test_noise_shape_of_alpha_dropout():
    x = numbers((4, 5, 6))
    y = AlphaDropout(0.5, (None, 1, None), seed=3)(torch.from_numpy(x), training=True)
    assert_same_bits(y.numpy(), reference.drawn("alpha_dropout", x, 0.5, 3, 0, (4, 1, 6)))
    with pytest.raises(ValueError, match=r"`noise_shape`.*\(3, 3\)"):
        AlphaDropout(0.5, (3, 3))(torch.ones(2, 3), training=True)


@pytest.mark.parametrize(
    ("layer_class", "name", "value"),
    [
        (GaussianDropout, "rate", torch.tensor(1.0)),
        (GaussianDropout, "rate", -0.5),
        (GaussianNoise, "stddev", torch.tensor(-0.5)),
        (GaussianNoise, "stddev", float("inf")),
        (GaussianNoise, "stddev", "0.5"),
        (AlphaDropout, "rate", torch.tensor(2.0)),
        (AlphaDropout, "rate", True),
    ],
)
def test_bad_parameters_of_noise(layer_class, name, value):
    layer = layer_class(0.25)
    for attempt in (lambda: layer_class(value), lambda: setattr(layer, name, value)):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`.*Received: {name}="):
            attempt()
    assert getattr(layer, name) == 0.25


# Gradients.


def test_gradients(expected):
    layer = Dropout(0.5, seed=3)
    factors = expected.factors((5, 33), 0.5, 3)
    x = torch.from_numpy(numbers((5, 33))).requires_grad_()
    y = layer(x, training=True)
    (dx,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    assert torch.allclose(dx, 3 * factors**3 * x**2)
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    assert torch.allclose(ddx, 6 * factors**3 * x)


def test_function_transforms(expected):
    layer = Dropout(0.5, seed=3)
    x = torch.from_numpy(numbers((5, 33)))
    _, tangent = torch.func.jvp(lambda x: layer(x, training=True), (x,), (x.sin(),))
    assert torch.equal(tangent, x.sin() * expected.factors((5, 33), 0.5, 3))
    dx = torch.func.grad(lambda x: layer(x, training=True).sum())(x)
    assert torch.equal(dx, expected.factors((5, 33), 0.5, 3, 1))
    assert state_of(layer) == [3, 2]


def test_each_iteration_of_a_vectorized_loop_has_its_own_mask(expected):
    layer = Dropout(0.5, seed=3)

    def call(x):
        return layer(x, training=True)

    y = keras.ops.vectorized_map(call, torch.ones(4, 50))
    for number, row in enumerate(y):
        assert torch.equal(row, expected.factors((50,), 0.5, number * 2**64 + 3))
    y = torch.vmap(torch.func.vmap(torch.func.grad(lambda x: call(x).sum())))(torch.ones(3, 2, 50))
    high = 2 * 2**24 + 1
    assert torch.equal(y[2, 1], expected.factors((50,), 0.5, high * 2**64 + 3, 1))
    y = torch.vmap(call, randomness="same")(torch.ones(4, 50))
    assert torch.equal(y, expected.factors((50,), 0.5, 3, 2).expand(4, 50))


# Errors.


def test_a_refused_call_takes_no_seed():
    layer = Dropout(0.5, (7, 1), seed=3)
    for x, error in ((numbers((2, 3)), ValueError), (np.ones((7, 3), int), TypeError)):
        with pytest.raises(error, match="Received: "):
            layer(x, training=True)
    assert state_of(layer) == [3, 0]


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (torch.ones(3, dtype=torch.int32), "Tensor of dtype int32"),
        (torch.ones(3, dtype=torch.complex64), "Tensor of dtype complex64"),
        (torch.ones(3).to_sparse(), "of dtype float32 and layout torch.sparse_coo"),
    ],
)
def test_inputs_that_the_kernels_do_not_take(x, problem):
    layer = Dropout(0.5)
    with pytest.raises(TypeError, match=f"float16, bfloat16, float32 or float64.*{problem}"):
        layer(x, training=True)
    assert layer(x, training=False) is x


@pytest.mark.parametrize("noise_shape", [(2,), (3, 3), (None,), (1, 2, 3)])
def test_a_noise_shape_that_does_not_fit(noise_shape):
    with pytest.raises(ValueError, match=r"`noise_shape`.*" + re.escape(f"{noise_shape}")):
        Dropout(0.5, noise_shape)(torch.ones(2, 3), training=True)


@pytest.mark.parametrize("rate", [-0.5, float("nan"), True, "0.5", torch.tensor(2.0)], ids=repr)
def test_a_bad_rate(rate):
    with pytest.raises((ValueError, TypeError), match="a float value between 0 and 1"):
        Dropout(rate)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fastdrop_keras.mc_predict(None, np.ones(3), 2, seed=1),
        lambda: fastdrop_keras.get_bridge(),
        lambda: fastdrop_keras.set_bridge("native"),
    ],
)
def test_what_needs_tensorflow_says_so(call):
    with pytest.raises(NotImplementedError, match=r"needs Keras's backend 'tensorflow'.*'torch'"):
        call()


def test_the_configuration_is_printed(capsys):
    fastdrop_keras.show_config()
    assert f"on PyTorch {torch.__version__}" in capsys.readouterr().out


# State.


def test_a_stateless_call_does_not_change_the_seeds_state(expected):
    layer = Dropout(0.5, seed=3)
    x = torch.ones(50)
    state = layer.non_trainable_variables
    for step in range(3):
        y, state = layer.stateless_call([], state, x, training=True)
        assert torch.equal(y, expected.factors((50,), 0.5, 3, step))
        assert state[0].tolist() == [3, step + 1]
    assert state_of(layer) == [3, 0]
    dx = torch.func.grad(lambda x: layer.stateless_call([], state, x, training=True)[0].sum())(x)
    assert torch.equal(dx, expected.factors((50,), 0.5, 3, 3))


def test_the_state_is_a_parameter_in_the_state_dict():
    layers = Dropout(0.5, seed=3), Dropout(0.5, seed=4)
    models = [keras.Sequential([keras.Input((50,)), layer]) for layer in layers]
    layers[0](torch.ones(50), training=True)
    (parameter,) = layers[1].parameters()
    assert not parameter.requires_grad
    states = [list(model.state_dict().values()) for model in models]
    for saved, own in zip(*states, strict=True):
        own.copy_(saved)
    assert state_of(layers[1]) == [3, 1]


def test_many_threads_on_one_layer(expected):
    layer = Dropout(0.5, seed=3)
    x = torch.ones(64, 64)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = {
            y.numpy().tobytes() for y in threads.map(lambda _: layer(x, training=True), range(40))
        }
    steps = {expected.factors((64, 64), 0.5, 3, step).numpy().tobytes() for step in range(40)}
    assert results == steps


def test_files_of_tensorflow_are_read(expected):
    """The outputs are those that tests/keras/test_layer_state.py expects on TensorFlow."""
    loaded = keras.models.load_model(DATA / "saved_by_0_1.keras")
    for name, rate, seed, shape, noise_shape in [
        ("first", 0.125, 8, (5, 4, 3), (None, 1, None)),
        ("second", 0.25, 7, (5, 2, 2, 3), (None, None, 1, 1)),
        ("third", 0.5, 7, (5, 2, 2, 3, 1), (None, None, 1, 1, 1)),
        ("plain", 0.75, 9, (5, 4, 3), (None, 1, 3)),
    ]:
        y = loaded.get_layer(name)(torch.ones(shape), training=True)
        assert torch.equal(y, expected.factors(shape, rate, seed, 3, noise_shape))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_layers_that_learn_their_rates(policy):
    """With the noise of `fastdrop.gaussian_noise`, in the formulas of the papers."""
    x, tolerance = numbers((20, 7)), 1e-3 if policy == "float32" else 0.1
    stream = fastdrop.Stream(7)

    def normals(shape, dtype):
        numbers, _ = fastdrop.gaussian_noise(np.zeros(shape, dtype), 1.0, seed=stream)
        return numbers.astype(np.float64)

    def check(layer, expected):
        y = layer(torch.from_numpy(x), training=True)
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
        y = keras.ops.cast(y, "float32")
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=tolerance, atol=tolerance)

    half = DTYPES["float32" if policy == "float32" else "bfloat16"]
    layer = VariationalGaussianDropout(0.1, "unit", 0.2, seed=7, dtype=policy)
    check(layer, x * (1 + 0.5 * normals(x.shape, half)))
    np.testing.assert_allclose(layer.rate, np.full(7, 0.2), rtol=1e-6)
    layer = VariationalDense(
        7, 0.1, initial_rate=0.2, seed=7, kernel_initializer="identity", dtype=policy
    )
    stream.state = {"seed": 7, "step": 0}
    check(layer, x + 0.5 * abs(x) * normals(x.shape, half))
    inner = keras.layers.Dense(7, kernel_initializer="identity", dtype=policy)
    layer = ConcreteDropout(inner, initial_rate=0.3, temperature=0.2, seed=7, dtype=policy)
    stream.state = {"seed": 7, "step": 0}
    u = np.vectorize(math.erf)(normals(x.shape, np.float32) / math.sqrt(2)) / 2 + 0.5
    logits = math.log(0.3 / 0.7) + np.log(u + 1e-7) - np.log(1 - u + 1e-7)
    check(layer, x / (1 + np.exp(logits / 0.2)) / 0.7)
    assert round(layer.rate, 5) == 0.3


def test_tensorflow_is_not_imported():
    assert not any(name.startswith("tensorflow.") for name in sys.modules)


KINDS = ("gaussian_dropout", "gaussian_noise", "alpha_dropout", "alpha_dropout_gradient")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_draw(kind, dtype):
    """The random operations beside dropout: a pure function of the seed and the parameter."""
    array, slope = numbers((4, 5, 60), DTYPES[dtype]), numbers((4, 5, 60), DTYPES[dtype], seed=1)
    parameter = BACKEND.Rate(0.3).read()
    for words, seed in [([7, 5], 7), ([7, 5, 3], 3 * 2**64 + 7)]:
        for noise_shape in [None, (None, 1, 60)]:
            x = keras.ops.convert_to_tensor(array).requires_grad_()
            y = BACKEND.draw(kind, x, torch.tensor(words), parameter, noise_shape)
            position = (0.3, seed, 5, noise_shape and (4, 1, 60))
            assert_same_bits(keras.ops.convert_to_numpy(y), reference.drawn(kind, array, *position))
            (dx,) = torch.autograd.grad(y, x, keras.ops.convert_to_tensor(slope))
            assert_same_bits(
                keras.ops.convert_to_numpy(dx), reference.drawn_gradient(kind, slope, *position)
            )
    with pytest.raises(TypeError, match="int32"):
        BACKEND.draw(kind, torch.ones(3, dtype=torch.int32), torch.tensor([7, 5]), parameter)
    assert BACKEND.draw(kind, torch.ones(3, device="meta"), None, parameter).shape == (3,)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draw_of_decisions(dtype):
    rates = np.random.default_rng(0).uniform(size=(40, 50)).astype(DTYPES[dtype])
    x = keras.ops.convert_to_tensor(rates).requires_grad_()
    y = BACKEND.draw("bernoulli", x, torch.tensor([7, 5]), BACKEND.Rate(0.0).read())
    right = reference.keep_by_rates(7, 5, rates, rates.shape)
    assert_same_bits(keras.ops.convert_to_numpy(y), right.astype(rates.dtype))
    assert not y.requires_grad
