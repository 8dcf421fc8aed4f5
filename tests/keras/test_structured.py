"""Layers that drop weights, blocks of images or whole samples, against slow references."""

import random

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing
from reference import assert_same_bits, blocks_kept, drop_block

import fastdrop
from fastdrop_keras import (
    DropBlock2D,
    DropConnectConv2D,
    DropConnectDense,
    Dropout,
    RateSchedule,
    StochasticDepth,
    convert,
    mc_predict,
    models,
    to_keras,
)
from fastdrop_keras.random_layer import RandomLayer

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (3, 6, 5, 4)
# For inputs of `SHAPE`.
LAYERS = {
    "DropConnectDense": lambda rate=0.5, **kwargs: DropConnectDense(4, rate, **kwargs),
    "DropConnectConv2D": lambda rate=0.5, **kwargs: DropConnectConv2D(4, (2, 3), rate, **kwargs),
    "DropBlock2D": lambda rate=0.5, **kwargs: DropBlock2D(rate, (2, 3), **kwargs),
    "StochasticDepth": lambda rate=0.5, **kwargs: StochasticDepth(rate, **kwargs),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
each_drop_connect = pytest.mark.parametrize("make", list(LAYERS.values())[:2], ids=list(LAYERS)[:2])


def numbers(shape=SHAPE, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def state_of(layer):
    return layer.seed_generator.state.numpy().tolist()


def output_and_gradient(call, x, dy):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(x)
    return y, tape.gradient(y, x, dy)


# DropBlock.


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.usefixtures("bridge")
def test_drop_block(run, data_format, per_channel, dtype):
    layer = DropBlock2D(
        0.3, (2, 3), data_format, seed=7, per_channel=per_channel, dtype=np.dtype(dtype).name
    )
    call = run(lambda x, dy: output_and_gradient(lambda x: layer(x, training=True), x, dy))
    for step in range(2):
        x, dy = numbers(SHAPE, dtype, 2 * step), numbers(SHAPE, dtype, 2 * step + 1)
        x[0], dy[1] = np.nan, np.nan
        kept = blocks_kept(SHAPE, 0.3, (2, 3), 7, step, data_format, per_channel)
        assert 0 < kept.sum() < kept.size
        for got, given in zip(call(tf.constant(x), tf.constant(dy)), (x, dy), strict=True):
            assert_same_bits(got.numpy(), drop_block(given, kept))


@pytest.mark.parametrize("sizes", [1, 2, 5, 6, 7, 100, (6, 1), (1, 5), (9, 2), (2, 9)], ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_every_size_of_blocks(sizes, known):
    pair = (sizes, sizes) if isinstance(sizes, int) else sizes
    layer = DropBlock2D(0.4, sizes, seed=7)
    call = tf.function(
        lambda x: layer(x, training=True),
        input_signature=[tf.TensorSpec(SHAPE if known else (None,) * 4, tf.float32)],
    )
    for step in range(3):
        x = numbers(seed=step)
        want = drop_block(x, blocks_kept(SHAPE, 0.4, pair, 7, step))
        assert_same_bits(call(tf.constant(x)).numpy(), want)


def test_blocks_of_one_element_are_those_of_dropout():
    x = tf.constant(numbers())
    kept = Dropout(0.4, seed=7)(x, training=True) != 0
    assert np.array_equal(DropBlock2D(0.4, 1, seed=7)(x, training=True) != 0, kept)


@pytest.mark.parametrize("sizes", [1, 3])
def test_drop_block_at_the_ends_of_the_rates(sizes):
    x = numbers()
    x[0, 0, 0, :2] = -0.0, np.inf
    assert_same_bits(DropBlock2D(0, sizes, seed=1)(x, training=True).numpy(), x)
    if sizes == 1:
        y = DropBlock2D(1, sizes, seed=1)(np.full_like(x, np.nan), training=True)
        assert_same_bits(y.numpy(), np.zeros_like(x))


def test_an_image_that_is_dropped_becomes_zero():
    y = DropBlock2D(1.0, 100, seed=1)(np.full(SHAPE, -np.inf, np.float32), training=True)
    assert_same_bits(y.numpy(), np.zeros(SHAPE, np.float32))


def test_the_fraction_that_blocks_drop():
    """Without overlap it would be the rate. Overlap is rare for a small rate."""
    y = DropBlock2D(0.02, 4, seed=3)(tf.ones((500, 20, 20, 4)), training=True).numpy()
    assert abs((y == 0).mean() - 0.02) < 0.0015
    # The scale restores the sum.
    np.testing.assert_allclose(y.astype(np.float64).mean(), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 6, 5, 4), (3, 0, 5, 4), (3, 6, 0, 4)])
def test_images_without_elements(run, shape):
    layer = DropBlock2D(0.5, 2, seed=3)
    assert run(lambda x: layer(x, training=True))(tf.ones(shape)).shape == shape


@pytest.mark.parametrize("block_size", [0, -1, (1, 0), (1,), (1, 2, 3), ()], ids=str)
def test_block_sizes_that_are_refused(block_size):
    with pytest.raises(ValueError, match=r"Invalid value .* `block_size`.*Received: block_size="):
        DropBlock2D(0.5, block_size)


@pytest.mark.parametrize("block_size", [1.5, "3", None, True, (1, 2.0)], ids=repr)
def test_block_sizes_of_wrong_types(block_size):
    before = random.getstate()
    with pytest.raises(TypeError, match=r"Invalid value .* `block_size`.*Received: block_size="):
        DropBlock2D(0.5, block_size)
    assert random.getstate() == before


def test_bad_inputs_of_drop_block():
    with pytest.raises(ValueError, match="data_format"):
        DropBlock2D(0.5, 2, "last")
    layer = DropBlock2D(0.5, 2, autocast=False)
    with pytest.raises(TypeError, match="of dtype int32"):
        layer(tf.ones(SHAPE, tf.int32), training=True)
    with pytest.raises(ValueError, match="expected ndim=4"):
        layer(tf.ones((3, 4)), training=True)


# DropConnect.


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 33), (2, 3, 33)], ids=str)
@pytest.mark.usefixtures("bridge")
def test_drop_connect_dense(run, shape, dtype):
    """The outputs and gradients are those of a `Dense` whose kernel is dropped by NumPy."""
    dtype = np.dtype(dtype)
    layer = DropConnectDense(20, 0.3, "tanh", seed=7, bias_initializer="normal", dtype=dtype.name)
    plain = keras.layers.Dense(20, "tanh", dtype=dtype.name)
    for one in (layer, plain):
        one.build(shape)
    kernel, bias = (weight.numpy() for weight in (layer.kernel, layer.bias))

    @run
    def results(one, x):
        with tf.GradientTape() as tape:
            y = one(x, training=True)
        return y, tape.gradient(y, [one.kernel.value, one.bias.value])

    for step in range(2):
        x = numbers(shape, dtype, step)
        stream = fastdrop.Stream(7)
        stream.state = {"seed": 7, "step": step}
        dropped, mask = fastdrop.dropout(kernel, 0.3, seed=stream)
        plain.set_weights([dropped, bias])
        y, (of_kernel, of_bias) = results(layer, tf.constant(x))
        want, (dense, wanted_of_bias) = results(plain, tf.constant(x))
        assert_same_bits(y.numpy(), want.numpy())
        assert_same_bits(of_kernel.numpy(), fastdrop.dropout_grad(dense.numpy(), mask))
        assert_same_bits(of_bias.numpy(), wanted_of_bias.numpy())
    assert_same_bits(layer.kernel.numpy(), kernel)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"padding": "same", "dilation_rate": 2},
        {"groups": 2},
        {"use_bias": False},
    ],
    ids=str,
)
@pytest.mark.usefixtures("bridge")
def test_drop_connect_conv(run, options):
    layer = DropConnectConv2D(6, (2, 3), 0.3, seed=7, bias_initializer="normal", **options)
    plain = keras.layers.Conv2D(6, (2, 3), **options)
    for one in (layer, plain):
        one.build(SHAPE)
    kernel, *bias = layer.get_weights()
    dropped, mask = fastdrop.dropout(kernel, 0.3, seed=7)
    plain.set_weights([dropped, *bias])

    @run
    def results(one, x):
        with tf.GradientTape() as tape:
            y = one(x, training=True)
        return y, tape.gradient(y, one.kernel.value)

    (y, of_kernel), (want, of_dropped) = (
        results(one, tf.constant(numbers())) for one in (layer, plain)
    )
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    wanted = fastdrop.dropout_grad(of_dropped.numpy(), mask)
    np.testing.assert_allclose(of_kernel, wanted, rtol=1e-4, atol=1e-4)
    assert np.array_equal(of_kernel == 0, ~np.asarray(mask))


@each_drop_connect
def test_drop_connect_in_inference_is_the_layer_of_keras(make):
    layer = make(activation="relu", bias_initializer="normal")
    layer.build(SHAPE)
    plain = (
        type(layer)
        .__bases__[1]
        .from_config({k: v for k, v in layer.get_config().items() if k not in ("rate", "seed")})
    )
    plain.build(SHAPE)
    plain.set_weights(layer.get_weights())
    assert_same_bits(layer(numbers()).numpy(), plain(numbers()).numpy())


@each_drop_connect
def test_a_nan_in_a_dropped_weight_does_not_reach_the_outputs(make):
    layer = make(seed=7)
    layer.build(SHAPE)
    kernel = layer.kernel.numpy()
    mask = np.asarray(fastdrop.dropout(kernel, 0.5, seed=7)[1])
    layer.kernel.assign(np.where(mask, kernel, np.nan))
    assert np.isfinite(layer(numbers(), training=True)).all()
    assert np.isnan(layer(numbers())).any()


@each_drop_connect
def test_drop_connect_with_lora_drops_the_sum(make):
    layer = make(seed=7, use_bias=False)
    layer.build(SHAPE)
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(numbers(layer.lora_kernel_b.shape))
    total = keras.ops.convert_to_numpy(layer.kernel)
    x = tf.constant(numbers())
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
    assert all(g is not None for g in tape.gradient(y, layer.trainable_variables))
    dropped = fastdrop.dropout(total, 0.5, seed=7)[0]
    if isinstance(layer, keras.layers.Conv2D):
        want = layer.convolution_op(x, dropped)
    else:
        want = x.numpy() @ dropped
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


@each_drop_connect
def test_drop_connect_is_not_quantized(make):
    layer = make()
    layer(numbers())
    with pytest.raises(NotImplementedError, match="quantize"):
        layer.quantize("int8")
    before = layer(numbers())
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    if isinstance(layer, keras.layers.Dense):
        with pytest.warns(UserWarning, match="quantize"):
            model.quantize("int8")
    assert_same_bits(layer(numbers()).numpy(), before.numpy())
    with pytest.raises(NotImplementedError, match=r"no quantized weights\. Received: dtype='int8"):
        make(dtype="int8_from_float32").build(SHAPE)


@pytest.mark.parametrize("units", [0, 1.5])
def test_arguments_of_keras_are_checked_by_keras(units):
    with pytest.raises(ValueError, match="`units`"):
        DropConnectDense(units, 0.5)
    with pytest.raises(ValueError, match="filters"):
        DropConnectConv2D(-1, 2, 0.5)


# Stochastic depth.


@pytest.mark.parametrize("shape", [(40,), (40, 3), (40, 3, 2), (40, 3, 2, 5)], ids=str)
@pytest.mark.usefixtures("bridge")
def test_stochastic_depth(expected, run, shape):
    layer = StochasticDepth(0.3, seed=7)
    call = run(lambda x, dy: output_and_gradient(lambda x: layer(x, training=True), x, dy))
    noise_shape = (None,) + (1,) * (len(shape) - 1)
    for step in range(2):
        x, dy = numbers(shape, seed=2 * step), numbers(shape, seed=2 * step + 1)
        for got, given in zip(call(tf.constant(x), tf.constant(dy)), (x, dy), strict=True):
            assert_same_bits(got.numpy(), expected.output(given, 0.3, 7, step, noise_shape))


def test_stochastic_depth_has_the_moments_of_kerass():
    """Of keras.src.applications.convnext.StochasticDepth: same rate, same scale."""
    theirs = keras.src.applications.convnext.StochasticDepth(0.3)
    x = tf.ones((20000, 2))
    for layer in (theirs, StochasticDepth(0.3, seed=1)):
        y = layer(x, training=True).numpy()
        assert abs((y[:, 0] == 0).mean() - 0.3) < 0.02
        np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
        assert np.array_equal(y[:, 0], y[:, 1])


# All of them.


# Keras's check trains a model without weights on a generator, and warns about both.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
class TestKerasChecks(testing.TestCase):
    """Keras's own checks of a layer: serialization, building, symbolic calls, a training step."""

    def check(self, layer_class, init_kwargs, output_shape=SHAPE, weights=0):
        for training in (True, False):
            self.run_layer_test(
                layer_class,
                init_kwargs={"rate": 0.5, **init_kwargs},
                input_shape=SHAPE,
                call_kwargs={"training": training},
                expected_output_shape=output_shape,
                expected_num_trainable_weights=weights,
                expected_num_non_trainable_weights=0,
                expected_num_non_trainable_variables=1,
                expected_num_seed_generators=1,
                expected_num_losses=0,
                supports_masking=weights == 0,
                assert_built_after_instantiation=weights == 0,
            )

    def test_drop_block(self):
        self.check(DropBlock2D, {"block_size": (2, 3), "seed": 3})

    def test_drop_block_with_every_argument(self):
        kwargs = {"block_size": 2, "data_format": "channels_first", "per_channel": False}
        self.check(DropBlock2D, {**kwargs, "trainable": False})

    def test_stochastic_depth(self):
        self.check(StochasticDepth, {"seed": 3})

    def test_drop_connect_conv(self):
        kwargs = {"filters": 7, "kernel_size": 2, "strides": 2, "seed": 3}
        self.check(DropConnectConv2D, kwargs, (3, 3, 2, 7), 2)


def test_keras_checks_of_drop_connect_dense():
    """As above: Keras's `Dense` supports masking and is built later."""
    testing.TestCase().run_layer_test(
        DropConnectDense,
        init_kwargs={"units": 7, "rate": 0.5, "use_bias": False, "seed": 3},
        input_shape=SHAPE,
        call_kwargs={"training": True},
        expected_output_shape=(*SHAPE[:-1], 7),
        expected_num_trainable_weights=1,
        expected_num_seed_generators=1,
        supports_masking=True,
        run_training_check=False,
    )


@each_layer
def test_bad_rates_and_seeds(make):
    layer = make(0.25)
    before = random.getstate()
    for bad, error in ((1.5, ValueError), (float("nan"), ValueError), ("0.5", TypeError)):
        with pytest.raises(error, match=r"argument `rate`.*Received: rate="):
            make(bad)
        with pytest.raises(error, match=r"argument `rate`.*Received: rate="):
            layer.rate = bad
    for bad, error in ((-1, ValueError), (2**63, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"argument `seed`.*Received: seed="):
            make(seed=bad)
    assert layer.rate == 0.25
    assert random.getstate() == before


@each_layer
def test_the_rate_changes_without_retracing(make):
    layer, other = make(seed=7), make(0.0, seed=7)
    x = tf.constant(numbers())
    layer(x), other(x)
    other.set_weights(layer.get_weights())
    traces = []

    @tf.function
    def call(x):
        traces.append(None)
        return layer(x, training=True)

    for rate in (0.5, 0.2, 0.9):
        layer.rate = other.rate = rate
        assert_same_bits(call(x).numpy(), other(x, training=True).numpy())
    assert len(traces) == 1
    layer.rate = 0
    np.testing.assert_allclose(call(x), layer(x), rtol=1e-6)


@each_layer
def test_training_may_be_a_tensor(run, make):
    layer, other = make(seed=7), make(seed=7)
    x = tf.constant(numbers())
    layer(x), other(x)
    other.set_weights(layer.get_weights())
    call = run(lambda training: layer(x, training=training))
    for training in (True, False, True):
        got = call(tf.constant(training))
        np.testing.assert_allclose(got, other(x, training=training), rtol=1e-5, atol=1e-5)
    assert state_of(layer) == [7, 2]


@each_layer
@pytest.mark.parametrize("checkpoint", [tf.recompute_grad, keras.remat])
@pytest.mark.usefixtures("bridge")
def test_recomputations_have_the_masks_of_the_forward_pass(run, make, checkpoint):
    layer, other = make(seed=7), make(seed=7)
    x = tf.constant(numbers())
    layer(x), other(x)
    other.set_weights(layer.get_weights())

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for _ in range(2):
        got = run(lambda x: output_and_gradient(checkpoint(block(layer)), x, None))(x)
        want = output_and_gradient(block(other), x, None)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert state_of(layer) == state_of(other) == [7, 4]


@each_layer
def test_in_a_remat_scope(make):
    other = make(seed=7)
    with keras.RematScope(mode="full"):
        layer = make(seed=7)
    x = tf.constant(numbers())
    layer(x), other(x)
    other.set_weights(layer.get_weights())
    for _ in range(2):
        got, want = (
            output_and_gradient(lambda x, one=one: one(x, training=True) ** 2, x, None)
            for one in (layer, other)
        )
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def model_with(make, **kwargs):
    return keras.Sequential(
        [
            keras.Input(SHAPE[1:]),
            keras.layers.Conv2D(4, 1),
            make(**kwargs),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )


@each_layer
@pytest.mark.parametrize("jit_compile", [False, True])
def test_models_train_and_resume(make, jit_compile, tmp_path):
    x, y = numbers((12, *SHAPE[1:])), numbers((12, 1))

    def fit(model, epochs):
        model.fit(x, y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
        return [weight.copy() for weight in model.get_weights()]

    model = model_with(make, seed=7)
    model.compile("adam", "mse", jit_compile=jit_compile)
    fit(model, 1)
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert state_of(resumed.layers[1]) == state_of(model.layers[1]) == [7, 3]
    assert resumed.layers[1].get_config() == model.layers[1].get_config()
    for got, want in zip(fit(resumed, 1), fit(model, 1), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@each_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_policies(make, policy):
    keras.config.set_dtype_policy(policy)
    model = model_with(make)
    model.compile("sgd", "mse", jit_compile=False)
    loss = model.fit(numbers(), numbers((3, 1)), verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert model.layers[1].output.dtype == keras.config.dtype_policy().compute_dtype


@each_drop_connect
def test_mixed_precision_drops_the_kernel_in_half_precision(make):
    layer = make(seed=7, dtype="mixed_bfloat16", use_bias=False)
    layer.build(SHAPE)
    kernel = layer.kernel.numpy().astype(ml_dtypes.bfloat16)
    dropped = fastdrop.dropout(kernel, 0.5, seed=7)[0]
    plain = make(0.0, dtype="mixed_bfloat16", use_bias=False)
    plain.build(SHAPE)
    plain.kernel.assign(dropped.astype(np.float32))
    got, want = layer(numbers(), training=True), plain(numbers(), training=True)
    assert got.dtype == want.dtype == tf.bfloat16
    np.testing.assert_allclose(*(tf.cast(y, tf.float32) for y in (got, want)), rtol=0.02)


@each_layer
def test_models_list_the_layer_and_schedules_set_its_rate(make):
    model = model_with(make)
    assert models.dropout_layers(model, "this test", RandomLayer) == [model.layers[1]]
    model.compile("sgd", "mse", jit_compile=False)
    ramp = RateSchedule(lambda epoch: 0.1 * epoch)
    model.fit(numbers(), numbers((3, 1)), epochs=3, verbose=0, callbacks=[ramp])
    assert model.layers[1].rate == 0.2


@each_layer
@pytest.mark.parametrize("shared_masks", [False, True])
def test_mc_predict(make, shared_masks):
    model = model_with(make, seed=7)
    x = np.repeat(numbers((1, *SHAPE[1:])), 4, axis=0)
    mean, deviation = mc_predict(model, x, 8, seed=1, shared_masks=shared_masks, verbose=False)
    again = mc_predict(model, x, 8, seed=1, shared_masks=shared_masks, verbose=False)
    assert np.array_equal(mean, again[0])
    assert deviation.min() > 0
    of_weights = isinstance(model.layers[1], (keras.layers.Dense, keras.layers.Conv2D))
    # The samples are equal, and so are their predictions if they share a mask.
    assert np.allclose(mean, mean[0]) == (shared_masks or of_weights)
    assert state_of(model.layers[1]) == [7, 0]


@each_layer
def test_each_iteration_of_vectorized_map_has_its_own_mask(make):
    layer = make(seed=7)
    x = tf.constant(np.repeat(numbers()[np.newaxis], 3, axis=0))
    layer(x[0])
    y = tf.vectorized_map(lambda x: layer(x, training=True), x).numpy()
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y[1], y[2])


@each_layer
def test_a_stateless_call(make):
    layer = make(seed=7)
    layer.build(SHAPE)
    values = [variable.value for variable in layer.non_trainable_variables]
    y, (state,) = layer.stateless_call(
        [variable.value for variable in layer.trainable_variables], values, numbers(), training=True
    )
    assert state_of(layer) == [7, 0]
    assert state.numpy().tolist() == [7, 1]
    assert_same_bits(layer(numbers(), training=True).numpy(), y.numpy())


# Conversion.


def with_stochastic_depth():
    inputs = keras.Input((4,))
    theirs = keras.src.applications.convnext.StochasticDepth(0.3, name="depth", dtype="float16")
    return keras.Model(inputs, theirs(keras.layers.Dense(3)(inputs)), name="net")


@pytest.mark.parametrize("in_place", [True, None])
def test_stochastic_depth_of_keras_is_converted_and_back(in_place, tmp_path):
    model = with_stochastic_depth()
    theirs = type(model.get_layer("depth"))
    converted, report = convert(model, in_place=in_place, verbose=False, return_report=True)
    assert [(one.path, one.after) for one in report.changed] == [("depth", StochasticDepth)]
    layer = converted.get_layer("depth")
    assert type(layer) is StochasticDepth
    assert (layer.rate, layer.dtype_policy.name) == (0.3, "float16")
    layer.rate = 0.4
    assert_same_bits(converted(numbers((2, 4))).numpy(), model(numbers((2, 4))).numpy())
    converted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    back = to_keras(loaded, in_place=in_place, verbose=False).get_layer("depth")
    assert type(back) is theirs
    assert (back.drop_path_rate, back.dtype_policy.name) == (0.4, "float16")


def test_the_layers_without_a_counterpart_stay():
    model = keras.Sequential([keras.Input(SHAPE[1:]), *(make() for make in LAYERS.values())])
    back, report = to_keras(model, verbose=False, return_report=True)
    assert [one.before for one in report.changed] == [StochasticDepth]
    assert [type(layer) for layer in back.layers[:3]] == [type(one) for one in model.layers[:3]]
    for layer, copy in zip(model.layers[:3], back.layers[:3], strict=True):
        assert copy.get_config() == layer.get_config()
        assert state_of(copy) == state_of(layer)
    again, report = convert(back, verbose=False, return_report=True)
    assert [one.after for one in report.changed] == [StochasticDepth]
    assert not report.unchanged
    again(numbers(), training=True)


@pytest.mark.parametrize("in_place", [True, None])
def test_layers_of_keras_hub(in_place):
    pytest.importorskip("keras_hub")
    from keras_hub.src.models.dinov2.dinov2_layers import DINOV2DropPath
    from keras_hub.src.models.mit import mit_layers
    from keras_hub.src.models.mobilenetv5 import mobilenetv5_layers
    from keras_hub.src.models.swin_transformer import swin_transformer_layers

    model = keras.Sequential(
        [
            keras.Input((4,)),
            swin_transformer_layers.DropPath(0.1, seed=3),
            mit_layers.DropPath(0.2, seed=4),
            mit_layers.DropPath(0.0, seed=4),
            mobilenetv5_layers.DropPath(0.3),
            mobilenetv5_layers.DropPath(0.4, scale_by_keep=False),
            DINOV2DropPath(0.5),
        ]
    )
    model.layers[1](tf.ones((2, 4)), training=True)
    state = model.layers[1].seed.state.numpy().tolist()
    # The rate has the same meaning, and so has the scale.
    for layer in model.layers[:4]:
        rate = getattr(layer, "rate", None) or getattr(layer, "drop_prob", 0.0)
        y = layer(tf.ones((5000, 1)), training=True).numpy()
        assert abs((y == 0).mean() - rate) < 0.03
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    # In this layer no sample is dropped.
    assert DINOV2DropPath(0.5)(tf.ones((1000, 1)), training=True).numpy().min() > 0
    model.layers[1].seed.state.assign(state)
    converted, report = convert(model, in_place=in_place, verbose=False, return_report=True)
    assert [type(layer) for layer in converted.layers[:4]] == [StochasticDepth] * 4
    assert [layer.rate for layer in converted.layers[:4]] == [0.1, 0.2, 0.0, 0.3]
    assert [layer.seed for layer in converted.layers[:4]] == [3, 4, 4, None]
    assert state_of(converted.layers[1]) == state == [4, 1]
    assert [one.note for one in report.unchanged] == [
        "it does not scale the samples that it keeps",
        "may drop in its own code, which uses 'random'",
    ]
    converted.compile("sgd", "mse", jit_compile=False)
