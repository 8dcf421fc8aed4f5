"""Predictions with dropout have the right moments and masks, and do not change the model."""

import threading
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fastdrop_keras
from fastdrop_keras import Dropout, convert, mc_predict, to_keras

X = np.random.default_rng(0).normal(size=(7, 33)).astype(np.float32)


def linear(rate=0.5, features=33, noise_shape=None):
    """A model that is linear in the outputs of its dropout layer."""
    return keras.Sequential(
        [keras.Input((features,)), Dropout(rate, noise_shape), layers.Dense(3, name="dense")]
    )


def quiet(model, x=X, n=5, **kwargs):
    return mc_predict(model, x, n, **{"seed": 11, "verbose": False} | kwargs)


def of_reference(outputs):
    """Mean and deviation of a list of outputs, by NumPy."""
    outputs = np.array(outputs, np.float64)
    return outputs.mean(axis=0), outputs.std(axis=0)


def high_word(number, layer, count):
    """The seed's high word, which differs between passes and layers."""
    return (number * count + layer) << 64


# The masks, against the reference.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("run_eagerly", [False, True])
def test_against_the_masks_of_the_reference(expected, run_eagerly):
    model = linear()
    model.run_eagerly = run_eagerly
    kernel, bias = model.get_layer("dense").get_weights()
    outputs = []
    for number in range(5):
        batches = [
            expected.output(X[start : start + 3], 0.5, high_word(number, 0, 1) | 11, batch << 32)
            for batch, start in enumerate((0, 3, 6))
        ]
        outputs.append(np.concatenate(batches) @ kernel + bias)
    for got, want in zip(quiet(model, batch_size=3), of_reference(outputs), strict=True):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("noise_shape", [None, (None, 1), (7, 33), (33,), (1, 33)])
@pytest.mark.parametrize("batch_size", [None, 7])
def test_shared_masks_against_the_reference(expected, noise_shape, batch_size):
    model = linear(noise_shape=noise_shape)
    kernel, bias = model.get_layer("dense").get_weights()
    one_mask = (1, 1) if noise_shape == (None, 1) else (1, 33)
    outputs = [
        expected.output(X, 0.5, high_word(number, 0, 1) | 11, 0, one_mask) @ kernel + bias
        for number in range(5)
    ]
    got = quiet(model, batch_size=batch_size, shared_masks=True)
    for moment, want in zip(got, of_reference(outputs), strict=True):
        np.testing.assert_allclose(moment, want, rtol=1e-5, atol=1e-6)


def test_a_layer_called_several_times_and_several_layers(expected):
    """Also in a loop, whose body is traced once."""

    class Looped(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = Dropout(0.5), Dropout(0.25)

        def call(self, x, training=False):
            _, x = tf.while_loop(
                lambda i, x: i < 3,
                lambda i, x: (i + 1, x + self.first(x, training=training)),
                [0, x],
            )
            return self.second(x, training=training)

    outputs = []
    for number in range(5):
        y = X
        for step in range(3):
            y = y + expected.output(y, 0.5, high_word(number, 0, 2) | 11, step)
        outputs.append(expected.output(y, 0.25, high_word(number, 1, 2) | 11))
    for got, want in zip(quiet(Looped()), of_reference(outputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_known_moments():
    """The moments of a sum of units that are dropped independently."""
    rate, n = 0.2, 2000
    x = np.arange(1, 21, dtype=np.float32)[None]
    model = linear(rate, 20)
    kernel = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    model.get_layer("dense").set_weights([kernel, np.ones(3)])
    mean, deviation = quiet(model, x, n)
    want = x @ kernel + 1
    spread = np.sqrt(rate / (1 - rate) * (x**2) @ (kernel**2))
    np.testing.assert_array_less(np.abs(mean - want), 5 * spread / np.sqrt(n))
    np.testing.assert_allclose(deviation, spread, rtol=0.1)


def test_large_values_lose_no_precision():
    """The deviation is 1e-6 of the mean, and float32 has 7 digits."""
    model = linear(0.5, 4)
    dense = model.get_layer("dense")
    dense.set_weights([np.ones((4, 3)), np.full(3, 2.0**20)])
    mean, deviation = quiet(model, np.ones((1, 4), np.float32), 2000)
    np.testing.assert_allclose(mean - 2.0**20, 4, atol=0.3)
    np.testing.assert_allclose(deviation, 2, rtol=0.1)


# Layers in training and in inference.


def test_other_layers_are_in_inference():
    normalization = layers.BatchNormalization()
    model = keras.Sequential(
        [
            keras.Input((33,)),
            normalization,
            layers.GaussianNoise(1.0),
            layers.Dropout(0.9),
            layers.GaussianDropout(0.9),
            Dropout(0.0),
        ]
    )
    normalization.set_weights([np.full(33, value) for value in (2.0, 1.0, 3.0, 4.0)])
    before = [v.numpy() for v in model.variables]
    mean, deviation = quiet(model)
    np.testing.assert_allclose(mean, (X - 3) / np.sqrt(4 + 1e-3) * 2 + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(deviation, 0)
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_the_model_is_not_changed(expected):
    model = linear()
    layer = model.layers[0]
    model.compile("sgd", "mse")
    model(X, training=True)
    state = layer.seed_generator.state.numpy()
    predicted = model.predict(X, verbose=0)
    function = model.predict_function
    quiet(model)
    np.testing.assert_array_equal(layer.seed_generator.state, state)
    assert model.predict_function is function
    np.testing.assert_array_equal(model.predict(X, verbose=0), predicted)
    np.testing.assert_allclose(model(X), predicted, rtol=1e-5, atol=1e-6)
    seed = int(state[0])
    np.testing.assert_array_equal(layer(X, training=True), expected.output(X, 0.5, seed, step=1))


def test_an_error_leaves_the_model_in_inference():
    class Breaks(layers.Layer):
        def call(self, x):
            raise RuntimeError("broken")

    dropout = Dropout(0.5)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout, self.breaks = dropout, Breaks()

        def call(self, x, training=False):
            x = self.dropout(x, training=training)
            return self.breaks(x) if isinstance(x, tf.Tensor) else x

    model = Model()
    model.built = True
    with pytest.raises(RuntimeError, match="broken"):
        quiet(model)
    np.testing.assert_array_equal(dropout(X), X)


def test_layers_at_any_depth(expected):
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.listed = [{"deep": Dropout(0.5)}]

        def call(self, x, training=False):
            return self.listed[0]["deep"](x, training=training)

    inner = keras.Sequential([Block()])
    x = keras.Input((33,))
    model = keras.Model(x, keras.Sequential([inner])(x))
    outputs = [expected.output(X, 0.5, high_word(number, 0, 1) | 11) for number in range(5)]
    for got, want in zip(quiet(model), of_reference(outputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_attention_and_wrappers():
    x = keras.Input((5, 8))
    h = layers.MultiHeadAttention(2, 4, dropout=0.5)(x, x)
    h = layers.TimeDistributed(layers.Dropout(0.5))(h)
    model = fastdrop_keras.convert(keras.Model(x, h), verbose=False)
    data = np.random.default_rng(2).normal(size=(3, 5, 8)).astype(np.float32)
    for shared_masks in (False, True):
        _, deviation = quiet(model, data, shared_masks=shared_masks)
        assert (deviation > 0).any()


# Reproducible masks.


def test_a_seed_fixes_the_result():
    model = linear()
    first = quiet(model)
    model(X, training=True)
    np.testing.assert_array_equal(quiet(model), first)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(quiet(clone), first)
    assert not np.array_equal(quiet(model, seed=12), first)


def test_without_a_seed_set_random_seed_decides():
    model = linear()

    def result():
        return quiet(model, seed=None)

    keras.utils.set_random_seed(3)
    first, second = result(), result()
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(result(), first)
    assert not np.array_equal(first, second)


def test_shared_masks_do_not_depend_on_the_batches():
    model = linear()
    whole = quiet(model, batch_size=7, shared_masks=True)
    for batch_size in (1, 2, 3):
        parts = quiet(model, batch_size=batch_size, shared_masks=True)
        np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_equal_inputs_differ_only_by_their_masks():
    same = np.ones((6, 33), np.float32)
    _, own = quiet(linear(), same, batch_size=2)
    _, shared = quiet(linear(), same, batch_size=2, shared_masks=True)
    assert len(np.unique(own, axis=0)) == 6
    np.testing.assert_allclose(shared, shared[:1].repeat(6, axis=0), rtol=1e-6)


def test_one_pass_has_no_deviation():
    mean, deviation = quiet(linear(), n=1)
    assert mean.shape == (7, 3)
    np.testing.assert_array_equal(deviation, np.zeros((7, 3)))


def test_the_current_rate_is_used():
    model = linear(0.5)
    model.layers[0].rate = 0.0
    _, deviation = quiet(model)
    np.testing.assert_array_equal(deviation, 0)


@pytest.mark.alone
def test_memory_does_not_grow_with_the_passes():
    model = linear(0.5, 4)
    x = np.ones((20_000, 4), np.float32)

    def peak(n):
        tracemalloc.start()
        quiet(model, x, n, batch_size=20_000)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(3)
    # One output is 480 kB in float64.
    assert peak(40) - peak(3) < 400_000


# Structures of inputs and outputs.


def test_arrays_tensors_and_datasets_give_the_same():
    model = linear()
    want = quiet(model, batch_size=3)
    batches = tf.data.Dataset.from_tensor_slices(X).batch(3)
    with_targets = tf.data.Dataset.from_tensor_slices((X, X[:, :1], X[:, 0])).batch(3)
    unknown = batches.filter(lambda x: True)
    np.testing.assert_array_equal(quiet(model, tf.constant(X), batch_size=3), want)
    np.testing.assert_array_equal(quiet(model, X.astype(np.float64), batch_size=3), want)
    for dataset in (batches, with_targets, unknown):
        np.testing.assert_array_equal(quiet(model, dataset), want)


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(as_dict):
    a, b = keras.Input((33,), name="a"), keras.Input((33,), name="b")
    dropped = Dropout(0.5)(a)
    inputs = {"a": a, "b": b} if as_dict else [a, b]
    outputs = {"sum": dropped + b, "same": b} if as_dict else [dropped + b, b]
    model = keras.Model(inputs, outputs)
    x = {"a": X, "b": 2 * X} if as_dict else [X, 2 * X]
    mean, deviation = quiet(model, x, batch_size=4)
    keras.tree.assert_same_structure(mean, model.predict(x, verbose=0))
    keras.tree.assert_same_structure(deviation, mean)
    noisy, same = ("sum", "same") if as_dict else (0, 1)
    np.testing.assert_array_equal(mean[same], 2 * X)
    np.testing.assert_array_equal(deviation[same], 0)
    assert (deviation[noisy] > 0).any()


def test_a_subclassed_model_that_was_never_called():
    class Unbuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def build(self, shape):
            self.dense.build(shape)
            self.dropout = Dropout(0.5)

        def call(self, x, training=False):
            return self.dropout(self.dense(x), training=training)

    mean, deviation = quiet(Unbuilt())
    assert mean.shape == (7, 3)
    assert (deviation > 0).any()


def test_a_model_without_the_argument_training():
    class NoTraining(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout = Dropout(0.5)

        def call(self, x):
            return self.dropout(x)

    assert (quiet(NoTraining())[1] > 0).any()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_dtype_policies(policy):
    keras.config.set_dtype_policy(policy)
    mean, deviation = quiet(linear())
    assert mean.dtype == deviation.dtype == np.float64
    assert (deviation > 0).all()


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_the_progress_bar(verbose, known, capsys):
    data = tf.data.Dataset.from_tensor_slices(X).batch(4)
    quiet(linear(), data if known else data.filter(lambda x: True), verbose=verbose)
    printed = capsys.readouterr().out
    assert ("10/10" in printed or (not known and "10/" in printed)) == verbose
    assert bool(printed) == verbose


# Threads, and functions in the model.


def test_other_threads_predict_without_dropout_meanwhile():
    model = linear()
    want = model.predict_on_batch(X)
    first = quiet(model, n=50)
    results, seen = [], []
    threads = [
        threading.Thread(target=lambda: results.append(quiet(model, n=50))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.append(np.asarray(model(X)))
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results, [first, first])
    for y in seen:
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)


def within_a_function():
    class Within(keras.Model):
        def __init__(self):
            super().__init__()
            self.outer, self.inner = Dropout(0.5, name="outer"), Dropout(0.5, name="inner")
            self.compiled_part = tf.function(lambda x: self.inner(x))

        def call(self, x):
            return self.compiled_part(self.outer(x))

    return Within()


def test_a_tf_function_in_the_model_is_refused():
    model = within_a_function()
    model.built = True
    with pytest.raises(ValueError, match=r"'inner' is called in a `tf.function`"):
        quiet(model)
    np.testing.assert_array_equal(model(X), X)


def test_a_traced_tf_function_in_the_model_gives_a_warning():
    model = within_a_function()
    model(X)
    with pytest.warns(UserWarning, match=r"does not call these dropout layers.*\['inner'\]"):
        quiet(model)


def test_a_call_in_a_tf_function_is_refused():
    model = keras.Sequential([keras.Input(X.shape[1:]), Dropout(0.5)])
    with pytest.raises(RuntimeError, match=r"Call `mc_predict` outside of the function"):
        tf.function(lambda x: mc_predict(model, x, 2))(X)


def test_control_flow_is_not_a_tf_function():
    class Branches(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout = Dropout(0.5)

        def call(self, x):
            return tf.cond(tf.reduce_sum(x) > -1e9, lambda: self.dropout(x), lambda: x)

    assert (quiet(Branches())[1] > 0).any()


# Errors.


@pytest.mark.parametrize("argument", ["n", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True], ids=repr)
def test_bad_counts(argument, value):
    error = ValueError if type(value) is int else TypeError
    with pytest.raises(error, match=f"argument `{argument}`.*{argument}={value!r}"):
        quiet(linear(), **{argument: value})


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "1"], ids=repr)
def test_bad_seed(seed):
    error = ValueError if type(seed) is int else TypeError
    with pytest.raises(error, match=f"argument `seed`.*seed={seed!r}"):
        quiet(linear(), seed=seed)


def test_a_model_without_our_layers():
    model = keras.Sequential([keras.Input((33,)), layers.Dropout(0.5)], name="theirs")
    with pytest.raises(ValueError, match=r"`mc_predict`.*'theirs' has none.*convert"):
        quiet(model)


@pytest.mark.parametrize("model", [None, Dropout(0.5), lambda x: x], ids=["None", "layer", "f"])
def test_bad_model(model):
    with pytest.raises(TypeError, match="`mc_predict` expects a Keras model"):
        quiet(model)


@pytest.mark.parametrize(
    "x",
    [X[:0], tf.constant(X[:0]), [X[:0], X[:0]], 3.0, [X, X[:3]], [1.0, 2.0], iter([X])],
    ids=["empty", "empty tensor", "empty list", "number", "lengths", "numbers", "iterator"],
)
def test_bad_x(x):
    with pytest.raises(ValueError, match=r"`mc_predict` expects .* for argument `x`"):
        quiet(linear(), x)


def test_bad_datasets():
    data = tf.data.Dataset.from_tensor_slices(X).batch(3)
    with pytest.raises(ValueError, match=r"batch_size=None with a `tf.data.Dataset`.*=3"):
        quiet(linear(), data, batch_size=3)
    with pytest.raises(ValueError, match="an empty dataset"):
        quiet(linear(), data.take(0))
    with pytest.raises(ValueError, match="an infinite one"):
        quiet(linear(), data.repeat())


def test_sparse_x():
    with pytest.raises(TypeError, match=r"dense arrays.*SparseTensor.*to_dense"):
        quiet(linear(), tf.sparse.from_dense(X))


def test_a_model_that_calls_no_dropout_layer_in_inference():
    class OnlyInTraining(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout = Dropout(0.5, name="skipped")

        def call(self, x, training=False):
            return self.dropout(x, training=training) if training else x

    with pytest.raises(ValueError, match=r"calls none of its dropout layers.*\['skipped'\]"):
        quiet(OnlyInTraining())


def test_a_layer_that_keras_does_not_find():
    hidden = Dropout(0.5, name="hidden")
    x = keras.Input((33,))

    class Hides(layers.Layer):
        def call(self, x):
            return hidden(x)

    model = keras.Model(x, Hides()(Dropout(0.5)(x)))
    with pytest.raises(ValueError, match="Keras does not find the layer 'hidden'"):
        quiet(model)


def test_shared_masks_need_a_rank():
    class Unranked(keras.Model):
        def __init__(self):
            super().__init__()
            self.dropout = Dropout(0.5, name="unranked")

        def call(self, x):
            y = self.dropout(tf.py_function(lambda x: x, [x], x.dtype))
            return tf.ensure_shape(y, (None, 33))

    assert quiet(Unranked())[0].shape == X.shape
    with pytest.raises(ValueError, match=r"'unranked' cannot share a mask.*ensure_shape"):
        quiet(Unranked(), shared_masks=True)


# Details of arguments.

MANY = np.random.default_rng(1).normal(size=(40, 33)).astype(np.float32)


def test_batches_have_32_inputs_by_default():
    model = linear()
    np.testing.assert_array_equal(quiet(model, MANY), quiet(model, MANY, batch_size=32))
    assert not np.array_equal(quiet(model, MANY), quiet(model, MANY, batch_size=40))


def test_a_dataset_is_iterated_once():
    begun = []

    def batches():
        begun.append(1)
        yield from np.split(MANY, 4)

    signature = tf.TensorSpec((10, 33))
    quiet(linear(), tf.data.Dataset.from_generator(batches, output_signature=signature))
    assert begun == [1]


def test_a_tuple_of_inputs():
    a, b = keras.Input((33,)), keras.Input((33,))
    model = keras.Model((a, b), Dropout(0.5)(a) + b)
    np.testing.assert_array_equal(quiet(model, (X, 2 * X)), quiet(model, [X, 2 * X]))


class Batches(keras.utils.PyDataset):
    def __init__(self, x, size):
        super().__init__()
        self.x, self.size = x, size

    def __len__(self):
        return -(-len(self.x) // self.size)

    def __getitem__(self, index):
        part = self.x[index * self.size : (index + 1) * self.size]
        return part, np.zeros(len(part))


def test_a_pydataset_gives_the_results_of_its_arrays():
    model = keras.Sequential([keras.Input((7,)), Dropout(0.5), keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(10, 7)).astype(np.float32)
    want = mc_predict(model, x, 3, seed=1, batch_size=4, verbose=False)
    got = mc_predict(model, Batches(x, 4), 3, seed=1, verbose=False)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_is_traced_once():
    traces = []

    class Count(keras.layers.Layer):
        def call(self, x):
            traces.append(None)
            return x

    model = keras.Sequential([keras.Input((7,)), Dropout(0.5, name="drop"), Count()])
    x = np.ones((2, 7), np.float32)
    mc_predict(model, x, 2, seed=1, verbose=False)
    before = len(traces)
    first = mc_predict(model, x, 5, seed=1, verbose=False)
    again = mc_predict(model, x, 5, seed=1, verbose=False)
    assert len(traces) == before
    np.testing.assert_array_equal(first, again)
    # Another seed and rate are inputs.
    model.get_layer("drop").rate = 0.0
    np.testing.assert_array_equal(mc_predict(model, x, 5, seed=2, verbose=False)[0], x)
    assert len(traces) == before


def lora(model):
    model.get_layer("dense").enable_lora(2)
    model.get_layer("dense").lora_kernel_b.assign(np.ones((2, 3)))


def other_activation(model):
    model.get_layer("dense").activation = keras.activations.relu
    model.compile("sgd", "mse")


def converted_there_and_back(model):
    to_keras(model, in_place=True, verbose=False)
    convert(model, in_place=True, verbose=False)
    model.get_layer("drop").rate = 0.25


def other_noise_shape(model):
    model.get_layer("drop").noise_shape = (None, 1)


@pytest.mark.parametrize(
    "change", [lora, other_activation, converted_there_and_back, other_noise_shape]
)
def test_a_changed_model_is_retraced(change):
    model = keras.Sequential(
        [keras.Input((7,)), Dropout(0.5, name="drop"), keras.layers.Dense(3, name="dense")]
    )
    x = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    before = mc_predict(model, x, 5, seed=1, verbose=False)
    change(model)
    after = mc_predict(model, x, 5, seed=1, verbose=False)
    assert not np.array_equal(before, after)
    model.run_eagerly = True
    np.testing.assert_allclose(mc_predict(model, x, 5, seed=1, verbose=False), after, rtol=1e-5)


def test_threads_that_predict_with_one_model():
    class Loop(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.drop = Dropout(0.5)

        def call(self, x):
            return tf.while_loop(
                lambda i, x: i < 20, lambda i, x: (i + 1, self.drop(x) + 1.0), (0, x)
            )[1]

    model = keras.Sequential([keras.Input((64,)), Loop()])
    x = np.ones((4096, 64), np.float32)

    def predict(seed):
        return mc_predict(model, x, 5, seed=seed, batch_size=4096, verbose=False)[0]

    want = {seed: predict(seed) for seed in (1, 2)}
    same = []

    def work(seed):
        for _ in range(10):
            same.append(np.array_equal(predict(seed), want[seed]))

    threads = [threading.Thread(target=work, args=[seed]) for seed in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 20
