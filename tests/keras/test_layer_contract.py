"""The layers keep the contract of Keras's own: arguments, errors, configuration and masking."""

import inspect
import random
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src import testing

import fastdrop_keras
from fastdrop_keras import layer_state, xla_bridge

LAYERS = [
    fastdrop_keras.Dropout,
    fastdrop_keras.SpatialDropout1D,
    fastdrop_keras.SpatialDropout2D,
    fastdrop_keras.SpatialDropout3D,
    fastdrop_keras.AlphaDropout,
    fastdrop_keras.GaussianDropout,
    fastdrop_keras.GaussianNoise,
]
SPATIAL = LAYERS[1:4]
each_layer = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda cls: cls.__name__)
each_layer_with_a_rate = pytest.mark.parametrize(
    "layer_class", LAYERS[:-1], ids=lambda cls: cls.__name__
)


# Keras's check trains a model without weights on a generator, and warns about both.
@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights:UserWarning")
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
class TestKerasChecks(testing.TestCase):
    """Keras's own checks of a layer: serialization, building, symbolic calls, a training step."""

    def check(self, layer_class, init_kwargs, input_shape, output_shape=None, weights=0, losses=0):
        for training in (True, False):
            self.run_layer_test(
                layer_class,
                init_kwargs=init_kwargs,
                input_shape=input_shape,
                call_kwargs={"training": training},
                expected_output_shape=output_shape or input_shape,
                expected_num_trainable_weights=weights,
                expected_num_non_trainable_weights=0,
                expected_num_non_trainable_variables=1,
                expected_num_seed_generators=1,
                expected_num_losses=losses,
                supports_masking=True,
                assert_built_after_instantiation=weights == 0,
            )

    def test_dropout(self):
        self.check(fastdrop_keras.Dropout, {"rate": 0.2}, (2, 3))

    def test_dropout_with_every_argument(self):
        kwargs = {"rate": 0.2, "noise_shape": [None, 1, 4], "seed": 3, "trainable": False}
        self.check(fastdrop_keras.Dropout, kwargs, (2, 3, 4))

    def test_rate_zero(self):
        self.check(fastdrop_keras.Dropout, {"rate": 0}, (2, 3))

    def test_spatial_1d(self):
        self.check(fastdrop_keras.SpatialDropout1D, {"rate": 0.5}, (2, 3, 4))

    def test_spatial_2d(self):
        self.check(fastdrop_keras.SpatialDropout2D, {"rate": 0.5}, (2, 3, 4, 5))

    def test_spatial_2d_channels_first(self):
        kwargs = {"rate": 0.5, "data_format": "channels_first", "seed": 3}
        self.check(fastdrop_keras.SpatialDropout2D, kwargs, (2, 3, 4, 5))

    def test_spatial_3d(self):
        self.check(fastdrop_keras.SpatialDropout3D, {"rate": 0.5}, (2, 3, 4, 4, 5))

    def test_spatial_3d_channels_first(self):
        kwargs = {"rate": 0.5, "data_format": "channels_first", "seed": 3}
        self.check(fastdrop_keras.SpatialDropout3D, kwargs, (2, 3, 4, 4, 5))

    def test_standout(self):
        self.check(fastdrop_keras.Standout, {}, (2, 3))
        kwargs = {"activation": "relu", "alpha": 0.5, "beta": -1, "seed": 3}
        self.check(fastdrop_keras.Standout, kwargs, (2, 3, 4))

    def test_variational_dense(self):
        kwargs = {"units": 5, "kl_weight": 0.01, "initial_rate": 0.2, "seed": 3}
        layer_class = fastdrop_keras.VariationalDense
        self.check(layer_class, kwargs, (2, 3, 4), (2, 3, 5), weights=3, losses=1)

    def test_variational_gaussian(self):
        for per in ("layer", "unit"):
            kwargs = {"kl_weight": 0.01, "per": per, "initial_rate": 0.2, "seed": 3}
            layer_class = fastdrop_keras.VariationalGaussianDropout
            self.check(layer_class, kwargs, (2, 3, 4), weights=1, losses=1)

    def test_concrete(self):
        kwargs = {"layer": keras.layers.Dense(5), "noise_shape": [None, 1, 4], "seed": 3}
        layer_class = fastdrop_keras.ConcreteDropout
        self.check(layer_class, kwargs, (2, 3, 4), (2, 3, 5), weights=3, losses=1)

    def test_alpha_dropout(self):
        kwargs = {"rate": 0.2, "noise_shape": [None, 1], "seed": 3}
        self.check(fastdrop_keras.AlphaDropout, kwargs, (2, 3))

    def test_gaussian_dropout(self):
        self.check(fastdrop_keras.GaussianDropout, {"rate": 0.2, "seed": 3}, (2, 3))

    def test_gaussian_noise(self):
        self.check(fastdrop_keras.GaussianNoise, {"stddev": 0.2, "seed": 3}, (2, 3))


# Arguments.


@each_layer
def test_arguments_have_the_names_and_order_of_keras(layer_class):
    keras_class = getattr(keras.layers, layer_class.__name__)
    ours = inspect.signature(layer_class).parameters
    theirs = inspect.signature(keras_class).parameters
    assert list(ours)[: len(theirs) - ("kwargs" in theirs)] == [n for n in theirs if n != "kwargs"]
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default


OUTSIDE = [-0.5, 1.5, -1e-9, 1 + 1e-9, float("nan"), float("inf"), 2]
ARRAYS = [[0.5], (0.5,), np.array([0.5]), [[0], [0, 1]]]
WRONG_TYPE = [True, False, None, "0.5", np.str_("a"), 0.5j, *ARRAYS]


@each_layer_with_a_rate
@pytest.mark.parametrize("rate", OUTSIDE + WRONG_TYPE, ids=repr)
def test_bad_rate(layer_class, rate):
    error = ValueError if rate in OUTSIDE else TypeError
    layer = layer_class(0.25)
    for attempt in (lambda: layer_class(rate), lambda: setattr(layer, "rate", rate)):
        with pytest.raises(
            error,
            match=r"Invalid value received for argument `rate`\. "
            r"Expected a float value between 0 and 1\. Received: rate=" + re.escape(f"{rate!r}"),
        ):
            attempt()
    assert layer.rate == 0.25


def test_a_rate_without_a_value_is_named():
    layer = fastdrop_keras.Dropout(0.25)
    variable = keras.Variable(0.5)

    @tf.function
    def set_rate(rate):
        layer.rate = rate if rate is not None else variable

    for rate in (tf.constant(0.5), None):
        with pytest.raises(TypeError, match=r"argument `rate`\. Expected a float value"):
            set_rate(rate)
    assert layer.rate == 0.25


@pytest.mark.parametrize(
    ("layer_class", "bad"),
    [
        (fastdrop_keras.Dropout, {"noise_shape": 5}),
        (fastdrop_keras.AlphaDropout, {"noise_shape": 5}),
        (fastdrop_keras.SpatialDropout2D, {"data_format": "last"}),
    ],
)
def test_a_bad_argument_takes_no_seed(layer_class, bad):
    before = random.getstate()
    with pytest.raises(ValueError, match=f"argument `{next(iter(bad))}`"):
        layer_class(0.5, **bad)
    assert random.getstate() == before
    layer_class(0.5)
    assert random.getstate() != before


class Fickle(float):
    """Compares as one number and converts to another."""

    def __float__(self):
        return 5.0


def test_a_rate_that_compares_as_another_number():
    layer = fastdrop_keras.Dropout(0.25)
    with pytest.raises(ValueError, match="argument `rate`"):
        layer.rate = Fickle(0.5)
    assert layer.rate == 0.25


@pytest.mark.parametrize("argument", ["rate", "seed"])
def test_integers_of_more_digits_than_python_prints(argument):
    with pytest.raises(ValueError, match=f"argument `{argument}`.*an integer of 16610 bits"):
        fastdrop_keras.Dropout(**{"rate": 0.5, argument: 10**5000})


GOOD = [0, 1, 0.5, np.float32(0.5), np.float16(0.25), np.int64(1), np.array(0.5)]


@pytest.mark.parametrize("rate", [*GOOD, tf.constant(0.5), keras.Variable(0.25)], ids=str)
def test_good_rate(rate):
    layer, other = fastdrop_keras.Dropout(rate), fastdrop_keras.Dropout(0.75)
    other.rate = rate
    assert layer.rate == other.rate == float(rate)
    assert type(layer.rate) is type(other.rate) is float


@each_layer
@pytest.mark.parametrize("seed", [True, 1.5, "1", [1], -1, 2**63, 2**200], ids=repr)
def test_bad_seed(layer_class, seed):
    error = ValueError if type(seed) is int else TypeError
    with pytest.raises(error, match=f"argument `seed`.*{re.escape(f'seed={seed!r}')}"):
        layer_class(0.5, seed=seed)


@pytest.mark.parametrize("seed", [0, 2**63 - 1, np.int32(7), np.uint64(7)])
def test_good_seed(seed):
    layer = fastdrop_keras.Dropout(0.5, seed=seed)
    assert layer.seed == seed
    assert type(layer.seed) is int
    assert layer.seed_generator.state.numpy().tolist() == [seed, 0]


@pytest.mark.parametrize(
    ("noise_shape", "message"),
    [
        (5, "Expected a tuple or list of integers."),
        ("12", "Expected a tuple or list of integers."),
        ((2, 1.5), "Expected all elements to be integers or None."),
        ((True, 2), "Expected all elements to be integers or None."),
        ((2, "1"), "Expected all elements to be integers or None."),
        ((2, 0), "Expected all dimensions to be positive integers or None."),
        ((-1, 2), "Expected all dimensions to be positive integers or None."),
    ],
)
def test_bad_noise_shape(noise_shape, message):
    received = re.escape(f"Received: noise_shape={noise_shape!r}")
    with pytest.raises(
        ValueError, match=rf"argument `noise_shape`\. {re.escape(message)} {received}"
    ):
        fastdrop_keras.Dropout(0.5, noise_shape=noise_shape)


@pytest.mark.parametrize("kind", [tuple, list, iter])
@pytest.mark.parametrize("number", [int, np.int64])
def test_noise_shape_is_kept_as_a_tuple(kind, number):
    noise_shape = kind([number(2), 1, None])
    assert fastdrop_keras.Dropout(0.5, noise_shape).noise_shape == (2, 1, None)


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize(
    "noise_shape", [(2,), (2, 4), (3, 3), (None,), (1, 2, 3), (None, None, None)]
)
def test_noise_shape_that_does_not_fit(noise_shape, run):
    layer = fastdrop_keras.Dropout(0.5, noise_shape)
    with pytest.raises(ValueError, match=r"`noise_shape`.*" + re.escape(f"{noise_shape}")):
        run(lambda x: layer(x, training=True))(tf.ones((2, 3)))


@pytest.mark.usefixtures("bridge")
def test_noise_shape_that_is_refused_at_run_time():
    layer = fastdrop_keras.Dropout(0.5, (2, 1))
    f = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, None))]
    )
    assert f(tf.ones((2, 5))).shape == (2, 5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="noise_shape"):
        f(tf.ones((3, 5)))


@pytest.mark.parametrize("layer_class", SPATIAL[1:], ids=lambda cls: cls.__name__)
def test_data_format(layer_class):
    assert layer_class(0.5).data_format == "channels_last"
    keras.config.set_image_data_format("channels_first")
    assert layer_class(0.5).data_format == "channels_first"
    with pytest.raises(ValueError, match=r"`data_format`.*'channels_middle'"):
        layer_class(0.5, data_format="channels_middle")


@each_layer
def test_unknown_argument(layer_class):
    with pytest.raises(ValueError, match=r"Unrecognized keyword arguments.*drop_rate"):
        layer_class(0.5, drop_rate=0.5)


@each_layer
def test_call_context_arguments_of_every_layer(layer_class):
    layer = layer_class(0.5, name="d", dtype="mixed_bfloat16", trainable=False)
    assert (layer.name, layer.dtype_policy.name, layer.trainable) == ("d", "mixed_bfloat16", False)


# Inputs.


@pytest.mark.parametrize("layer_class", SPATIAL, ids=lambda cls: cls.__name__)
def test_rank_of_the_input(layer_class):
    rank = layer_class(0.5).input_spec.ndim
    with pytest.raises(ValueError, match=f"expected ndim={rank}, found ndim={rank + 1}"):
        layer_class(0.5)(tf.ones((2,) * (rank + 1)))


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("dtype", [tf.int32, tf.bool, tf.complex64, tf.uint8], ids=lambda d: d.name)
def test_unsupported_dtypes(dtype, run):
    layer = fastdrop_keras.Dropout(0.5)
    x = tf.cast(tf.ones((2, 3)), dtype)
    with pytest.raises(TypeError, match=f"float32 or float64.*dtype {dtype.name}"):
        run(lambda x: layer(x, training=True))(x)
    assert layer(x, training=False).dtype == dtype


def test_a_refused_call_takes_no_seed():
    layers = [
        fastdrop_keras.AlphaDropout(0.5, seed=3),
        fastdrop_keras.DropBlock2D(0.5, 2, seed=3),
        fastdrop_keras.Dropout(0.5, seed=3),
        fastdrop_keras.GaussianDropout(0.5, seed=3),
        fastdrop_keras.GaussianNoise(0.5, seed=3),
        fastdrop_keras.SpatialDropout2D(0.5, seed=3),
        fastdrop_keras.Standout(seed=3),
        fastdrop_keras.StochasticDepth(0.5, seed=3),
        fastdrop_keras.VariationalGaussianDropout(0.1, seed=3),
    ]
    for layer in layers:
        with pytest.raises(TypeError, match="dtype float16, bfloat16, float32 or float64"):
            layer(np.ones((2, 3, 4, 5), np.int32), training=True)
    layers.append(fastdrop_keras.Dropout(0.5, (7, 1), seed=3))
    with pytest.raises(ValueError, match="`noise_shape`"):
        layers[-1](np.ones((2, 3), np.float32), training=True)
    for layer in layers:
        assert layer_state.position(layer.seed_generator).tolist() == [3, 0], layer.name


def test_symbolic_tensors_of_the_legacy_package_are_refused():
    class KerasTensor:
        """As in tf_keras."""

        shape, dtype, is_tensor_like = tf.TensorShape((2, 3)), tf.float32, True

    KerasTensor.__module__ = "tf_keras.src.engine.keras_tensor"
    with pytest.raises(TypeError, match=r"for Keras 3\..* from the package tf_keras.*Unset it"):
        fastdrop_keras.Dropout(0.5)(KerasTensor())


def test_ragged_and_sparse_inputs_are_refused():
    layer = fastdrop_keras.Dropout(0.5)
    for x in (tf.ragged.constant([[1.0, 2.0], [3.0]]), tf.sparse.from_dense([[1.0, 0.0]])):
        with pytest.raises(TypeError, match=f"dense.*{type(x).__name__}"):
            layer(x, training=True)


# Configuration.


@pytest.mark.parametrize(
    "layer",
    [
        lambda: fastdrop_keras.Dropout(0.25, (None, 1), 7, name="a", dtype="mixed_float16"),
        lambda: fastdrop_keras.SpatialDropout1D(0.25, 7, "a", "mixed_float16"),
        lambda: fastdrop_keras.SpatialDropout2D(
            0.25, "channels_first", 7, "a", "mixed_float16", trainable=False
        ),
        lambda: fastdrop_keras.SpatialDropout3D(0.25, "channels_first", 7, "a", "mixed_float16"),
        lambda: fastdrop_keras.AlphaDropout(0.25, (None, 1), 7, name="a", dtype="mixed_float16"),
        lambda: fastdrop_keras.GaussianDropout(0.25, 7, name="a", dtype="mixed_float16"),
        lambda: fastdrop_keras.GaussianNoise(0.25, 7, name="a", dtype="mixed_float16"),
    ],
)
def test_config_reproduces_the_layer(layer):
    layer = layer()
    config = layer.get_config()
    keras_class = getattr(keras.layers, type(layer).__name__)
    assert set(keras_class(0.25).get_config()) <= set(config)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    assert again.get_config() == config
    assert again.dtype_policy.name == "mixed_float16"


@each_layer
def test_registered_name(layer_class):
    name = layer_class.__name__
    assert keras.saving.get_registered_name(layer_class) == f"fastdrop>{name}"
    # Keras's own name makes Keras's layer.
    for made in (layer_class, getattr(keras.layers, name)):
        serialized = keras.saving.serialize_keras_object(made(0.5))
        assert type(keras.saving.deserialize_keras_object(serialized)) is made
    argument = "stddev" if name == "GaussianNoise" else "rate"
    short = {"class_name": f"fastdrop>{name}", "config": {argument: 0.5}}
    assert type(keras.layers.deserialize(short)) is layer_class


def test_config_has_the_current_rate():
    layer = fastdrop_keras.Dropout(0.25)
    layer.rate = 0.5
    assert layer.get_config()["rate"] == 0.5


# Other parts of the contract.


@each_layer
def test_attributes(layer_class):
    layer = layer_class(0.5)
    assert layer.built
    assert layer.supports_masking
    assert layer.supports_jit == (not xla_bridge.WHY_NOT)
    assert isinstance(layer.seed_generator, keras.random.SeedGenerator)
    assert layer.weights == []
    assert [v.name for v in layer.variables] == ["seed_generator_state"]
    shape = (None, *range(2, 1 + (layer.input_spec.ndim if layer.input_spec else 3)))
    assert layer.compute_output_shape(shape) == shape
    assert layer(keras.Input(shape[1:])).shape == shape


def test_a_subclass_can_build():
    class Scaled(fastdrop_keras.Dropout):
        def build(self, input_shape):
            self.scale = self.add_weight(shape=input_shape[-1:], initializer="ones")

        def call(self, inputs, training=False):
            return super().call(inputs, training=training) * self.scale

    layer = Scaled(0.5)
    assert not layer.built
    layer(tf.ones((2, 3)), training=True)
    assert layer.built
    assert [w.shape for w in layer.weights] == [(3,)]


@pytest.mark.parametrize("training", [True, False])
def test_mask_of_an_embedding_passes_through(training):
    tokens = tf.constant([[1, 2, 0], [3, 0, 0]])
    embedded = keras.layers.Embedding(4, 5, mask_zero=True)(tokens)
    y = fastdrop_keras.Dropout(0.5)(embedded, training=training)
    np.testing.assert_array_equal(y._keras_mask, tokens != 0)
    np.testing.assert_array_equal(
        fastdrop_keras.Dropout(0.5).compute_mask(embedded, embedded._keras_mask), tokens != 0
    )
