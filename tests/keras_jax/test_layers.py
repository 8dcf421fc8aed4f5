"""On JAX, the layers have the values, gradients and errors that they have on TensorFlow."""

import concurrent.futures
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import keras
import ml_dtypes
import numpy as np
import pytest
import reference
from jax.experimental import sparse
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
    layer_state,
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
    return layer_state.position(layer.seed_generator).tolist()


def values_of(layer):
    return [variable.value for variable in layer.non_trainable_variables]


# Keras's check trains a model without weights on a generator, and warns about both.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
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
                expected_num_non_trainable_variables=2,
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
    # JAX has numbers of 64 bits only on request.
    with jax.enable_x64(dtype == "float64"):
        layer = Dropout(0.3, seed=42, dtype=dtype)
        for step in range(3):
            x = numbers(shape, DTYPES[dtype], step)
            y = layer(x, training=True)
            assert y.dtype == DTYPES[dtype]
            assert_same_bits(np.asarray(y), expected.output(x, 0.3, 42, step))


def test_frozen_bits():
    """Those of the example in the layer's docstring, which runs on TensorFlow."""
    y = Dropout(0.5, seed=42)(jnp.ones((2, 8)), training=True)
    assert y.tolist() == [[0, 0, 2, 2, 2, 0, 2, 2], [2, 0, 2, 2, 2, 2, 0, 2]]


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1, 2**40 + 3, 2**63 - 1])
def test_the_array_function_draws_the_same_mask(seed):
    layer = Dropout(0.3, seed=seed)
    stream = fastdrop.Stream(seed)
    for step in range(3):
        x = numbers((6, 50), seed=step)
        y, _ = fastdrop.dropout(x, 0.3, seed=stream)
        assert_same_bits(np.asarray(layer(x, training=True)), y)
    assert state_of(layer) == [seed, 3]
    assert layer.seed_generator.get_config()["seed"] == layer.get_config()["seed"] == seed


def test_a_step_of_more_than_32_bits(expected):
    layer = Dropout(0.5, seed=3)
    layer_state.set_position(layer.seed_generator, [3, 2**32 - 1])
    for step in (2**32 - 1, 2**32, 2**32 + 1):
        y = layer(jnp.ones(50), training=True)
        assert_same_bits(np.asarray(y), expected.factors((50,), 0.5, 3, step))


def test_a_seed_from_keras():
    first, second = Dropout(0.5), Dropout(0.5)
    keras.utils.set_random_seed(1234)
    assert state_of(first) == state_of(Dropout(0.5)) != state_of(second)
    layer = Dropout(0.5)
    layer.seed_generator = keras.random.SeedGenerator(7)  # of 32 bits
    ours = Dropout(0.5, seed=7)
    for _ in range(2):
        y = layer(jnp.ones(50), training=True)
        assert jnp.array_equal(y, ours(jnp.ones(50), training=True))
    assert state_of(layer) == state_of(ours) == [7, 2]


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
    y = layer(seed=3)(x, training=True)
    assert_same_bits(np.asarray(y), expected.output(x, 0.5, 3, noise_shape=noise_shape))


@pytest.mark.parametrize(
    ("policy", "dtype"), [("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")]
)
def test_dtype_policies_cast_the_input(expected, policy, dtype):
    x = numbers((5, 6))
    y = Dropout(0.5, seed=3, dtype=policy)(x, training=True)
    assert_same_bits(np.asarray(y), expected.output(x.astype(DTYPES[dtype]), 0.5, 3))


@pytest.mark.parametrize("training", [False, None, 0, jnp.array(False)], ids=repr)
def test_inference_is_the_input_itself(training):
    layer = Dropout(0.5, seed=3)
    x = jnp.ones((2, 3))
    assert layer(x, training=training) is x
    assert state_of(layer) == [3, 0]


def test_training_as_a_tensor_or_variable(expected):
    layer = Dropout(0.5, seed=3)
    variable = keras.Variable(True, dtype="bool", trainable=False)
    for step, training in enumerate([jnp.array(True), variable]):
        y = layer(jnp.ones(50), training=training)
        assert_same_bits(np.asarray(y), expected.factors((50,), 0.5, 3, step))


def test_training_as_an_argument_of_a_compiled_function(expected):
    layer = Dropout(0.5, seed=3)
    call = jax.jit(lambda state, x, training: layer.stateless_call([], state, x, training=training))
    state, x, step = values_of(layer), numbers((50,)), 0
    for training in (True, False, True):
        y, state = call(state, x, training)
        assert_same_bits(np.asarray(y), expected.output(x, 0.5, 3, step) if training else x)
        step += training
    assert state[0].tolist() == [3, 0, 2, 0]


def test_the_rate_may_change_at_any_time(expected):
    layer = Dropout(0.5, seed=3)
    of_tensors = {0.5: jnp.bfloat16(0.5), 0.25: keras.Variable(0.25)}
    for step, rate in enumerate([0.1, 0, 1, *of_tensors]):
        layer.rate = of_tensors.get(rate, rate)
        y = layer(jnp.ones(50), training=True)
        assert_same_bits(np.asarray(y), expected.factors((50,), rate, 3, step))
    assert layer.get_config()["rate"] == 0.25


def test_dropped_elements_become_zero():
    x = jnp.array([np.nan, np.inf, -1.0] * 50)
    y = Dropout(0.5, seed=3)(x, training=True)
    dropped = Dropout(0.5, seed=3)(jnp.ones(150), training=True) == 0
    assert not y[dropped].view(jnp.int32).any()
    assert not Dropout(1.0)(x, training=True).view(jnp.int32).any()


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
        with jax.enable_x64(dtype == "float64"):
            y, vjp = jax.vjp(lambda x: layer(x, training=True), jnp.asarray(x))
            assert_same_bits(np.asarray(y), right)
            assert_same_bits(np.asarray(vjp(jnp.asarray(slope))[0]), gradient)
    assert layer(y) is y
    assert state_of(layer) == [2**40 + 3, 2]


def test_noise_shape_of_alpha_dropout():
    x = numbers((4, 5, 6))
    y = AlphaDropout(0.5, (None, 1, None), seed=3)(x, training=True)
    assert_same_bits(np.asarray(y), reference.drawn("alpha_dropout", x, 0.5, 3, 0, (4, 1, 6)))
    with pytest.raises(ValueError, match=r"`noise_shape`.*\(3, 3\)"):
        AlphaDropout(0.5, (3, 3))(jnp.ones((2, 3)), training=True)


@pytest.mark.parametrize(
    ("layer_class", "name", "value"),
    [
        (GaussianDropout, "rate", jnp.array(1.0)),
        (GaussianDropout, "rate", -0.5),
        (GaussianNoise, "stddev", jnp.array(-0.5)),
        (GaussianNoise, "stddev", float("inf")),
        (GaussianNoise, "stddev", "0.5"),
        (AlphaDropout, "rate", jnp.array(2.0)),
        (AlphaDropout, "rate", True),
    ],
)
def test_bad_parameters_of_noise(layer_class, name, value):
    layer = layer_class(0.25)
    for attempt in (lambda: layer_class(value), lambda: setattr(layer, name, value)):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`.*Received: {name}="):
            attempt()
    assert getattr(layer, name) == 0.25


# Transformations.


def test_gradients(expected):
    layer = Dropout(0.5, seed=3)
    x = numbers((5, 33))
    state = values_of(layer)

    def total(x):
        return (layer.stateless_call([], state, x, training=True)[0] ** 3).sum()

    factors = expected.factors((5, 33), 0.5, 3)
    np.testing.assert_allclose(jax.grad(total)(x), 3 * factors**3 * x**2, rtol=1e-6)
    second = jax.jit(jax.grad(lambda x: jax.grad(total)(x).sum()))(x)
    np.testing.assert_allclose(second, 6 * factors**3 * x, rtol=1e-6)


def test_gradients_of_eager_calls(expected):
    layer = Dropout(0.5, seed=3)
    x = jnp.asarray(numbers((5, 33)))
    _, tangent = jax.jvp(lambda x: layer(x, training=True), (x,), (x + 1,))
    assert_same_bits(np.asarray(tangent), expected.output(np.asarray(x + 1), 0.5, 3))
    dx = jax.grad(lambda x: layer(x, training=True).sum())(x)
    assert_same_bits(np.asarray(dx), expected.factors((5, 33), 0.5, 3, 1))
    assert state_of(layer) == [3, 2]


def test_iterations_of_vmap_share_the_mask_unless_they_have_states(expected):
    layer = Dropout(0.5, seed=3)

    def call(state, x):
        return layer.stateless_call([], state, x, training=True)

    x, state = jnp.ones((4, 50)), values_of(layer)
    y, following = jax.vmap(call, (None, 0), (0, None))(state, x)
    assert_same_bits(np.asarray(y), np.tile(expected.factors((50,), 0.5, 3), (4, 1)))
    assert following[0].tolist() == [3, 0, 1, 0]
    state = [jnp.array([[n, 0, 5, 0] for n in range(4)], "uint32"), jnp.tile(state[1], (4, 1))]
    y, following = jax.jit(jax.vmap(call))(state, x)
    for seed, row in enumerate(np.asarray(y)):
        assert_same_bits(row, expected.factors((50,), 0.5, seed, 5))
    assert following[0][:, 2].tolist() == [6] * 4
    # As with Keras's own layer.
    y = keras.ops.vectorized_map(lambda x: layer(x, training=True), x)
    assert_same_bits(np.asarray(y), np.tile(expected.factors((50,), 0.5, 3), (4, 1)))
    assert state_of(layer) == [3, 1]


# Functions that JAX compiles.


def test_a_stateless_call_does_not_change_the_seeds_state(expected):
    layer = Dropout(0.5, seed=3)
    state = values_of(layer)
    for call in (layer.stateless_call, jax.jit(layer.stateless_call, static_argnames="training")):
        for step in range(3):
            y, state = call([], state, jnp.ones(50), training=True)
            assert_same_bits(np.asarray(y), expected.factors((50,), 0.5, 3, step))
            assert state[0].tolist() == [3, 0, step + 1, 0]
        state = values_of(layer)
    assert state_of(layer) == [3, 0]


def test_a_stateless_scope(expected):
    layer = Dropout(0.5, seed=3)
    state = layer.seed_generator.state
    with keras.StatelessScope([(state, np.array([9, 0, 4, 0]))]) as scope:
        y = layer(jnp.ones(50), training=True)
    assert_same_bits(np.asarray(y), expected.factors((50,), 0.5, 9, 4))
    assert scope.get_current_value(state).tolist() == [9, 0, 5, 0]
    assert state_of(layer) == [3, 0]


def test_a_new_rate_is_used_without_compiling_again(expected):
    layer = Dropout(0.5, seed=3)
    traces = []

    @jax.jit
    def call(state, x):
        traces.append(x)
        return layer.stateless_call([], state, x, training=True)[0]

    for rate in (0.5, 0.1, 0, 1, 0.123456789):
        layer.rate = rate
        y = call(values_of(layer), jnp.ones(5000))
        assert_same_bits(np.asarray(y), expected.factors((5000,), rate, 3))
    assert len(traces) == 1


def test_a_rate_that_is_set_while_a_function_is_traced(expected):
    layer = Dropout(0.5, seed=3)

    @jax.jit
    def call(state, x):
        y, state = layer.stateless_call([], state, x, training=True)
        with keras.StatelessScope(zip(layer.non_trainable_variables, state, strict=True)):
            layer.rate = 0.25
            return y, layer(x, training=True)

    for _ in range(2):
        first, second = call([jnp.array([3, 0, 0, 0]), values_of(Dropout(0.5))[1]], jnp.ones(50))
        assert_same_bits(np.asarray(first), expected.factors((50,), 0.5, 3))
        assert_same_bits(np.asarray(second), expected.factors((50,), 0.25, 3, 1))
    assert layer.rate == 0.25
    y = layer(jnp.ones(50), training=True)
    assert_same_bits(np.asarray(y), expected.factors((50,), 0.25, 3))


def test_a_state_from_before_a_new_rate_warns_and_keeps_the_new_rate(expected):
    layer = Dropout(0.5, seed=3)
    _, state = layer.stateless_call([], values_of(layer), jnp.ones(50), training=True)
    layer.rate = 0.25
    layer.seed_generator.state.assign(state[0])
    with pytest.warns(UserWarning, match=r"has not used its rate 0\.25"):
        layer.non_trainable_variables[1].assign(state[1])
    y = layer(jnp.ones(50), training=True)
    assert_same_bits(np.asarray(y), expected.factors((50,), 0.25, 3, 1))


@pytest.mark.parametrize("transformation", [jax.jit, jax.checkpoint])
def test_a_function_that_is_traced_without_the_state_is_refused(transformation):
    layer = Dropout(0.5, seed=3)
    with pytest.raises(RuntimeError, match="Pass the state as an argument, with `stateless_call`"):
        transformation(lambda x: layer(x, training=True))(jnp.ones(50))
    assert state_of(layer) == [3, 0]
    y = jax.jit(lambda x: layer(x, training=False))(jnp.ones(50))
    assert y.tolist() == [1] * 50


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
        (jnp.ones(3, "int32"), "of dtype int32"),
        (jnp.ones(3, "complex64"), "of dtype complex64"),
        (jnp.ones(3, "float8_e4m3fn"), "of dtype float8_e4m3fn"),
        (sparse.BCOO.fromdense(jnp.ones(3)), "BCOO"),
    ],
)
def test_inputs_that_the_kernels_do_not_take(x, problem):
    layer = Dropout(0.5, autocast=False)
    with pytest.raises(TypeError, match=f"float16, bfloat16, float32 or float64.*{problem}"):
        layer(x, training=True)
    assert layer(x, training=False) is x


@pytest.mark.parametrize("noise_shape", [(2,), (3, 3), (None,), (1, 2, 3)])
def test_a_noise_shape_that_does_not_fit(noise_shape):
    with pytest.raises(ValueError, match=r"`noise_shape`.*" + re.escape(f"{noise_shape}")):
        Dropout(0.5, noise_shape)(jnp.ones((2, 3)), training=True)


def test_a_traced_rate_is_named():
    layer = Dropout(0.25)

    def set_rate(rate):
        layer.rate = rate

    with pytest.raises(TypeError, match=r"argument `rate`.*Tracer"):
        jax.jit(set_rate)(0.5)
    assert layer.rate == 0.25


@pytest.mark.parametrize("rate", [-0.5, float("nan"), True, "0.5", jnp.array(2.0)], ids=repr)
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
    with pytest.raises(NotImplementedError, match=r"needs Keras's backend 'tensorflow'.*'jax'"):
        call()


def test_the_configuration_is_printed(capsys):
    fastdrop_keras.show_config()
    assert f"on JAX {jax.__version__}" in capsys.readouterr().out


# State.


def test_many_threads_on_one_layer(expected):
    layer = Dropout(0.5, seed=3)
    x = jnp.ones((64, 64))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        results = {
            np.asarray(y).tobytes()
            for y in threads.map(lambda _: layer(x, training=True), range(40))
        }
    assert results == {expected.factors((64, 64), 0.5, 3, step).tobytes() for step in range(40)}


def test_files_of_tensorflow_are_read(expected):
    """The outputs are those that tests/keras/test_layer_state.py expects on TensorFlow."""
    loaded = keras.models.load_model(DATA / "saved_by_0_1.keras")
    for name, rate, seed, shape, noise_shape in [
        ("first", 0.125, 8, (5, 4, 3), (None, 1, None)),
        ("second", 0.25, 7, (5, 2, 2, 3), (None, None, 1, 1)),
        ("third", 0.5, 7, (5, 2, 2, 3, 1), (None, None, 1, 1, 1)),
        ("plain", 0.75, 9, (5, 4, 3), (None, 1, 3)),
    ]:
        y = loaded.get_layer(name)(jnp.ones(shape), training=True)
        assert_same_bits(np.asarray(y), expected.factors(shape, rate, seed, 3, noise_shape))


def test_a_state_that_a_generator_cannot_hold_is_refused():
    generator = keras.random.SeedGenerator(7)  # of 32 bits
    with pytest.raises(ValueError, match=r"uint32 cannot hold.*\[4294967296, 0\]"):
        layer_state.set_position(generator, [2**32, 0])
    assert layer_state.position(generator).tolist() == [7, 0]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_layers_that_learn_their_rates(policy):
    """With the noise of `fastdrop.gaussian_noise`, in the formulas of the papers."""
    x, tolerance = numbers((20, 7)), 1e-3 if policy == "float32" else 0.1
    stream = fastdrop.Stream(7)

    def normals(shape, dtype):
        numbers, _ = fastdrop.gaussian_noise(np.zeros(shape, dtype), 1.0, seed=stream)
        return numbers.astype(np.float64)

    def check(layer, expected):
        y = layer(jnp.asarray(x), training=True)
        assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
        y = keras.ops.cast(y, "float32")
        np.testing.assert_allclose(np.asarray(y), expected, rtol=tolerance, atol=tolerance)

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
    for words, seed in [([7, 5], 7), ([7, 1, 5, 0], 2**32 + 7)]:
        for noise_shape in [None, (None, 1, 60)]:
            position = (0.3, seed, 5, noise_shape and (4, 1, 60))
            right = reference.drawn(kind, array, *position)
            with jax.enable_x64(dtype == "float64"):
                x, t, state = jnp.asarray(array), jnp.asarray(slope), jnp.array(words, "uint32")
                y, gradient = jax.vjp(
                    lambda x, state=state, shape=noise_shape: BACKEND.draw(
                        kind, x, state, parameter, shape
                    ),
                    x,
                )
                assert_same_bits(np.asarray(y), right)
                right = reference.drawn_gradient(kind, slope, *position)
                assert_same_bits(np.asarray(gradient(t)[0]), right)
    with pytest.raises(TypeError, match="int32"):
        BACKEND.draw(kind, jnp.ones(3, "int32"), jnp.array([7, 5], "uint32"), parameter)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draw_of_decisions(dtype):
    rates = np.random.default_rng(0).uniform(size=(40, 50)).astype(DTYPES[dtype])
    seed, rate = jnp.array([7, 5], "uint32"), BACKEND.Rate(0.0).read()
    right = reference.keep_by_rates(7, 5, rates, rates.shape)
    with jax.enable_x64(dtype == "float64"):
        y, gradient = jax.vjp(
            lambda x: BACKEND.draw("bernoulli", x, seed, rate), jnp.asarray(rates)
        )
        assert_same_bits(np.asarray(y), right.astype(rates.dtype))
        assert (gradient(y)[0] == 0).all()
