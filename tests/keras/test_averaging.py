"""Averages of all thinned networks are those of plain NumPy, which Monte Carlo approaches."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from fastdrop_keras import (
    Dropout,
    SpatialDropout1D,
    exact_average,
    mc_predict,
    weight_scaling,
)

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
RATE = 0.3


def network(noise_shape=None, rate=RATE, units=6, outputs=3, activation="softmax"):
    return keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(units, "tanh", name="hidden"),
            Dropout(rate, noise_shape, name="drop"),
            layers.Dense(outputs, activation, name="last"),
        ]
    )


def outputs_of_all(model, x, activation):
    """Each mask's probability, and the output of each thinned network, by plain NumPy."""
    hidden = np.tanh(x @ model.get_layer("hidden").kernel.numpy().astype(np.float64))
    kernel = model.get_layer("last").kernel.numpy().astype(np.float64)
    rate, units = model.get_layer("drop").rate, hidden.shape[1]
    probabilities, outputs = [], []
    for kept in itertools.product([0, 1], repeat=units):
        probabilities.append(np.prod([1 - rate if k else rate for k in kept]))
        outputs.append(activation(hidden * kept / (1 - rate) @ kernel))
    return np.array(probabilities), np.array(outputs)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def relu(z):
    return np.maximum(z, 0)


@pytest.mark.parametrize("batch_size", [None, 1, 7, 64, 65, 1000])
@pytest.mark.parametrize("activation", [softmax, relu], ids=["softmax", "relu"])
def test_against_an_enumeration_in_numpy(activation, batch_size):
    model = network(activation=activation.__name__)
    probabilities, outputs = outputs_of_all(model, X, activation)
    want = np.tensordot(probabilities, outputs, 1)
    variance = np.tensordot(probabilities, (outputs - want) ** 2, 1)
    mean, deviation = exact_average(model, X, batch_size=batch_size)
    assert mean.dtype == deviation.dtype == np.float64
    np.testing.assert_allclose(mean, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(deviation, np.sqrt(variance), rtol=1e-4, atol=1e-6)


def test_the_geometric_mean_against_numpy():
    """With two layers after the dropout layer, so that weight scaling is another average."""
    model = network(activation="relu")
    model.add(layers.Dense(3, "softmax", name="softmax"))
    kernel = model.get_layer("softmax").kernel.numpy().astype(np.float64)
    probabilities, outputs = outputs_of_all(model, X, lambda z: softmax(relu(z) @ kernel))
    product = np.prod(outputs ** probabilities[:, None, None], axis=0)
    want = product / product.sum(axis=-1, keepdims=True)
    mean, deviation = exact_average(model, X, geometric=True, batch_size=50)
    np.testing.assert_allclose(mean, want, rtol=1e-5)
    np.testing.assert_array_equal(deviation, exact_average(model, X, batch_size=50)[1])
    assert np.abs(mean - weight_scaling(model, X)).max() > 1e-3


def test_weight_scaling_is_the_geometric_mean_for_one_softmax_layer():
    """Baldi and Sadowski, 2013, section 3."""
    model = network(units=8)
    scaled = weight_scaling(model, X)
    np.testing.assert_allclose(exact_average(model, X, geometric=True)[0], scaled, rtol=1e-5)
    assert np.abs(exact_average(model, X)[0] - scaled).max() > 1e-3


def test_monte_carlo_converges_to_the_exact_average():
    model = network()
    mean, deviation = exact_average(model, X)
    for n in (100, 2500):
        estimate, spread = mc_predict(model, X, n, seed=1, verbose=False)
        assert (np.abs(estimate - mean) < 5 * deviation / np.sqrt(n)).all()
    np.testing.assert_allclose(spread, deviation, rtol=0.15)


def test_weight_scaling_is_the_prediction_in_float64():
    model = network()
    got = weight_scaling(model, X, batch_size=2)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, model.predict(X, batch_size=2, verbose=0))
    dataset = tf.data.Dataset.from_tensor_slices(X).batch(2)
    np.testing.assert_array_equal(weight_scaling(model, dataset), got)


# Layers, masks and rates.


def test_elements_that_share_a_decision_are_one_unit():
    """Also where one noise shape has fewer dimensions, or is the same for the whole batch."""
    x = np.random.default_rng(1).normal(size=(3, 15, 4)).astype(np.float32)
    kept = np.array(list(itertools.product([0, 1], repeat=4)))
    weights = RATE ** (4 - kept.sum(1)) * (1 - RATE) ** kept.sum(1)
    outputs = np.array([relu((x * k / (1 - RATE)).sum(axis=(1, 2))) for k in kept])
    want = weights @ outputs
    for layer in (
        SpatialDropout1D(RATE),
        Dropout(RATE, (None, 1, None)),
        Dropout(RATE, (1, 1, 4)),
        Dropout(RATE, (4,)),
    ):
        model = keras.Sequential([keras.Input((15, 4)), layer, layers.Lambda(sum_and_relu)])
        mean, _ = exact_average(model, x, batch_size=20)
        np.testing.assert_allclose(mean, want, rtol=1e-4, atol=1e-5)


def sum_and_relu(x):
    return keras.ops.relu(keras.ops.sum(x, axis=(1, 2)))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_with_one_mask(rate):
    model = network(rate=rate)
    mean, deviation = exact_average(model, X)
    hidden = model.get_layer("hidden")(X) * (1 - rate)
    np.testing.assert_allclose(mean, model.get_layer("last")(hidden), rtol=1e-5)
    np.testing.assert_array_equal(deviation, 0)


def test_the_other_layers_are_in_inference():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            Dropout(0.5, name="first"),
            layers.BatchNormalization(),
            layers.GaussianNoise(1.0),
            layers.Dropout(0.5),
            Dropout(RATE, name="second"),
            layers.Dense(1, kernel_initializer="ones"),
        ]
    )
    for layer in ("second", model.get_layer("second")):
        mean, deviation = exact_average(model, X, layer)
        x = X / np.sqrt(1 + 1e-3)
        np.testing.assert_allclose(mean[:, 0], x.sum(axis=1), rtol=1e-5, atol=1e-5)
        spread = np.sqrt(RATE / (1 - RATE) * (x**2).sum(axis=1))
        np.testing.assert_allclose(deviation[:, 0], spread, rtol=1e-5)


def test_dropped_values_that_are_not_finite_become_zero():
    model = keras.Sequential([keras.Input((2,)), Dropout(1.0), layers.Dense(1)])
    mean, _ = exact_average(model, np.array([[np.nan, np.inf]], np.float32))
    np.testing.assert_array_equal(mean, 0)


def test_large_values_lose_no_precision():
    """The deviation is 1e-6 of the mean."""
    model = keras.Sequential([keras.Input((4,)), Dropout(0.5), layers.Dense(1)])
    model.layers[-1].set_weights([np.ones((4, 1)), np.full(1, 2.0**20)])
    mean, deviation = exact_average(model, np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(mean, 2.0**20 + 4)
    np.testing.assert_allclose(deviation, 2, rtol=1e-12)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(policy):
    """The scale is exact to the dtype of the products."""
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((1,)), Dropout(0.1), layers.Activation("linear")])
    mean, _ = exact_average(model, np.full((1, 1), 1.25))
    dtype = model(np.ones((1, 1))).numpy().dtype
    np.testing.assert_allclose(mean, 0.9 * float(np.asarray(1.25 / 0.9).astype(dtype)), rtol=1e-12)


def test_the_model_is_not_changed():
    model = network()
    before = [variable.numpy() for variable in model.variables]
    exact_average(model, X)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    np.testing.assert_allclose(model(X), weight_scaling(model, X), rtol=1e-5)


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(as_dict):
    a, b = keras.Input((4,), name="a"), keras.Input((1,), name="b")
    dropped = Dropout(RATE)(a)
    inputs = {"a": a, "b": b} if as_dict else [a, b]
    outputs = {"sum": dropped + b, "same": b} if as_dict else [dropped + b, b]
    x = {"a": X, "b": tf.constant(X[:, :1])} if as_dict else [X, tf.constant(X[:, :1])]
    model = keras.Model(inputs, outputs)
    mean, deviation = exact_average(model, x)
    keras.tree.assert_same_structure(mean, model.predict(x, verbose=0))
    noisy, same = ("sum", "same") if as_dict else (0, 1)
    np.testing.assert_allclose(mean[noisy], X + X[:, :1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(mean[same], X[:, :1])
    np.testing.assert_array_equal(deviation[same], 0)
    assert (deviation[noisy] > 0).all()


# Errors.


def test_twenty_units_are_the_most():
    with pytest.raises(
        ValueError, match=r"at most 20 units.*'drop' has 21, so 2\*\*21 masks.*mc_predict"
    ):
        exact_average(network(units=21), X)
    one_unit = keras.Sequential([keras.Input((21,)), Dropout(0.5, (None, 1)), layers.Dense(1)])
    assert exact_average(one_unit, np.ones((1, 21), np.float32))[0].shape == (1, 1)


def test_several_layers_need_a_choice():
    model = network()
    model.add(Dropout(0.5, name="further"))
    with pytest.raises(ValueError, match=r"argument `layer`.*\['drop', 'further'\].*layer=None"):
        exact_average(model, X)
    with pytest.raises(ValueError, match=r"argument `layer`.*layer='hidden'"):
        exact_average(model, X, "hidden")
    with pytest.raises(ValueError, match=r"argument `layer`.*"):
        exact_average(model, X, Dropout(0.5))
    with pytest.raises(TypeError, match=r"argument `layer`.*layer=1 \(of type int\)"):
        exact_average(model, X, 1)


def test_a_layer_that_is_called_twice():
    drop, x = Dropout(0.5, name="shared"), keras.Input((4,))
    model = keras.Model(x, drop(drop(x)))
    with pytest.raises(ValueError, match=r"calls the layer 'shared' once.*calls it 2 times"):
        exact_average(model, X)


def test_a_layer_of_other_rows():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Lambda(lambda y: y[:1])(Dropout(0.5)(layers.Lambda(twice)(x))))
    with pytest.raises(ValueError, match="a row for each input of the model"):
        exact_average(model, X)


def twice(x):
    return keras.ops.concatenate([x, x])


def test_a_tf_function_in_the_model_is_refused():
    class Within(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = Dropout(0.5, name="inner")
            self.compiled_part = tf.function(lambda x: self.drop(x))

        def call(self, x):
            return self.compiled_part(x)

    with pytest.raises(ValueError, match=r"'inner' is called in a function that is traced"):
        exact_average(Within(), X)


def test_geometric_needs_probabilities():
    for activation in ("sigmoid", "linear"):
        with pytest.raises(ValueError, match="expects predictions that are probabilities"):
            exact_average(network(activation=activation), X, geometric=True)
    with pytest.raises(TypeError, match=r"argument `geometric`.*geometric=1"):
        exact_average(network(), X, geometric=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True], ids=repr)
@pytest.mark.parametrize("average", [exact_average, weight_scaling])
def test_bad_batch_size(average, value):
    error = ValueError if type(value) is int else TypeError
    with pytest.raises(error, match=f"argument `batch_size`.*batch_size={value!r}"):
        average(network(), X, batch_size=value)


@pytest.mark.parametrize("x", [X[:0], 3.0, [X, X[:3]]], ids=["empty", "number", "lengths"])
def test_bad_x(x):
    with pytest.raises(ValueError, match=r"`exact_average` expects .* for argument `x`"):
        exact_average(network(), x)


@pytest.mark.parametrize("average", [exact_average, weight_scaling])
def test_bad_model(average):
    with pytest.raises(TypeError, match=f"`{average.__name__}` expects a Keras model"):
        average(None, X)


def test_a_model_without_our_layers():
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5)], name="theirs")
    with pytest.raises(ValueError, match=r"`exact_average`.*'theirs' has none.*convert"):
        exact_average(model, X)


def test_a_mask_whose_weight_is_no_number_above_zero_is_left_out():
    """Its probability of 0 would count in the geometric mean, as 0 times minus infinity."""
    weights = np.array([[9000.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    model = keras.Sequential(
        [keras.Input((3,)), Dropout(1e-200), keras.layers.Dense(2, activation="softmax")]
    )
    model.layers[-1].set_weights([weights, np.zeros(2)])
    mean, _ = exact_average(model, np.ones((1, 3)), geometric=True)
    np.testing.assert_array_equal(mean, [[1.0, 0.0]])
