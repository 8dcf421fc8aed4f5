"""Exported models have no Python functions in their graphs, and run without fastdrop."""

import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.core.protobuf import saved_model_pb2

import fastdrop_keras
from fastdrop_keras import Dropout, RateSchedule, convert, linear_ramp, to_keras

X = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)


def every_layer():
    """A model with each of the four layers."""
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            Dropout(0.2, noise_shape=(None, 1, None)),
            fastdrop_keras.SpatialDropout1D(0.2),
            layers.Reshape((6, 4, 2)),
            fastdrop_keras.SpatialDropout2D(0.2),
            layers.Reshape((6, 2, 2, 2)),
            fastdrop_keras.SpatialDropout3D(0.2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.drops = [Dropout(0.2), Dropout(0.3)]
        self.dense = layers.Dense(3)

    def call(self, x, training=False):
        for drop in self.drops:
            x = drop(x, training=training)
        return self.dense(x)


def converted():
    x = keras.Input(X.shape[1:])
    h = layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)
    h = layers.TimeDistributed(layers.Dropout(0.1))(h)
    return convert(keras.Model(x, layers.Bidirectional(layers.GRU(3))(h)), verbose=False)


def half_precision():
    policy = keras.DTypePolicy("mixed_bfloat16")
    inner = [keras.Input(X.shape[1:]), layers.Dense(3, dtype=policy), Dropout(0.5, dtype=policy)]
    return keras.Sequential([*inner, layers.Activation("linear", dtype="float32")])


MODELS = [every_layer, Subclassed, converted, half_precision]


def trained(make):
    """A model after training, with changed rates."""
    model = make()
    model.compile("sgd", "mse")
    y = np.zeros_like(model(X))
    ramp = RateSchedule(linear_ramp(0.1, 0.5, 3), unit="step")
    model.fit(X, y, batch_size=1, verbose=0, callbacks=[ramp])
    return model


def operations(directory):
    """The names of all operations in the graph and the functions of a SavedModel."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((directory / "saved_model.pb").read_bytes())
    found = set()
    for meta_graph in saved.meta_graphs:
        graph = meta_graph.graph_def
        for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
            found.update(node.op for node in nodes)
    return found


def assert_no_python(directory):
    found = operations(directory)
    assert "MatMul" in found or "Einsum" in found or "BatchMatMulV2" in found
    assert not [name for name in found if "Py" in name or "Fastdrop" in name]


def test_python_functions_in_a_graph_are_detected(bridge, tmp_path):
    """The other tests would detect the layer's function or operation in training."""
    module = tf.Module()
    layer = Dropout(0.5)
    module.layer = layer
    module.drop = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((2,))]
    )
    tf.saved_model.save(module, tmp_path / "dropping")
    operation = "FastdropForward" if bridge == "native" else "PyFuncStateless"
    assert operation in operations(tmp_path / "dropping")


def test_an_export_runs_without_fastdrop(tmp_path, run_python):
    want = {}
    for make in MODELS:
        model = trained(make)
        name = make.__name__
        want[name] = np.asarray(model(X))
        model.export(tmp_path / name, format="tf_saved_model", verbose=False)
        assert_no_python(tmp_path / name)
    np.save(tmp_path / "input.npy", X)
    process = run_python(
        textwrap.dedent(
            f"""
            import sys
            import numpy as np, tensorflow as tf
            for name in {list(want)}:
                model = tf.saved_model.load(name)
                for _ in range(2):
                    np.save(name + ".npy", model.serve(np.load("input.npy")))
            assert not [name for name in sys.modules if name.startswith("fastdrop")]
            """
        )
    )
    assert process.returncode == 0, process.stderr
    for name, outputs in want.items():
        np.testing.assert_allclose(
            np.load(tmp_path / f"{name}.npy"), outputs, rtol=1e-5, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize("make", MODELS)
def test_saved_model(make, tmp_path):
    model = trained(make)
    tf.saved_model.save(model, tmp_path / "saved")
    assert_no_python(tmp_path / "saved")
    signature = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"]
    (outputs,) = signature(tf.constant(X)).values()
    np.testing.assert_allclose(outputs, model(X), rtol=1e-5, atol=1e-6)


def test_export_archive(tmp_path):
    model = trained(Subclassed)
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [tf.TensorSpec((None, *X.shape[1:]))]
    archive.add_endpoint("first", lambda x: model(x, training=False), signature)
    archive.add_endpoint("twice", lambda x: 2 * model(x), signature)
    archive.write_out(tmp_path / "archive", verbose=False)
    assert_no_python(tmp_path / "archive")
    loaded = tf.saved_model.load(tmp_path / "archive")
    np.testing.assert_allclose(loaded.first(X), model(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.twice(X), 2 * model(X), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_tflite():
    model = trained(every_layer)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(inputs["index"], X.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], X)
    interpreter.invoke()
    np.testing.assert_allclose(
        interpreter.get_tensor(outputs["index"]), model(X), rtol=1e-4, atol=1e-5
    )


def test_a_graph_with_dropout_is_exported_with_keras_layers(tmp_path):
    """A graph that is exported with dropout cannot contain our layers."""
    x = keras.Input((64,))
    model = keras.Model(x, layers.Dense(3)(Dropout(0.5)(x, training=True)))
    to_keras(model, verbose=False).export(
        tmp_path / "dropping", format="tf_saved_model", verbose=False
    )
    assert_no_python(tmp_path / "dropping")
    loaded = tf.saved_model.load(tmp_path / "dropping")
    ones = np.ones((2, 64), np.float32)
    assert not np.array_equal(loaded.serve(ones), loaded.serve(ones))
