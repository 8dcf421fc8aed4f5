"""The two bridges from TensorFlow to the kernels, their choice, and the native operations."""

import importlib
import struct
import sys

import numpy as np
import pytest
import reference
import tensorflow as tf
from reference import assert_same_bits
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import kernels
from tensorflow.python.framework.ops import gradient_registry

import fastdrop_keras
from fastdrop._config import STREAM_VERSION
from fastdrop_keras import Dropout, get_bridge, native_bridge, set_bridge
from fastdrop_keras.bridge import dropout, dropout_again
from fastdrop_keras.numpy_bridge import _gradient_name

native_only = pytest.mark.skipif(sys.platform != "linux", reason="native operations are for Linux")

SHAPE = (5, 33)
SEED = (7, 3)


def drop(x, rate=0.5, noise_shape=None, seed=SEED):
    seed = seed if tf.is_tensor(seed) else tf.constant(seed, tf.int64)
    return dropout(x, seed, tf.constant(rate, tf.float64), noise_shape)


# The choice.


def test_the_default_bridge(run_python):
    done = run_python("import fastdrop_keras; print(fastdrop_keras.get_bridge())")
    first = "native" if sys.platform == "linux" else "numpy_function"
    assert done.stdout == f"{first}\n", done.stderr


@native_only
def test_native_operations_are_for_the_cpu():
    """The kernels for XLA only raise an error."""
    for name in ("FastdropForward", "FastdropBackward"):
        registered = kernels.get_registered_kernels_for_op(name).kernel
        assert {kernel.device_type for kernel in registered} == {"CPU", "XLA_CPU_JIT"}


@pytest.mark.parametrize("name", ["", "Native", "python", None, 1])
def test_unknown_bridge(name):
    before = get_bridge()
    with pytest.raises(ValueError, match=r"argument `name`.*Received: name="):
        set_bridge(name)
    assert get_bridge() == before


def test_a_new_bridge_applies_to_functions_traced_later(bridge):
    layer = Dropout(0.5, seed=1)
    graph = tf.function(lambda x: layer(x, training=True))
    before = graph.get_concrete_function(tf.ones(SHAPE))
    set_bridge("numpy_function")
    assert graph.get_concrete_function(tf.ones(SHAPE)) is before


@pytest.mark.parametrize("name", ["native", "numpy_function"])
def test_environment_variable(run_python, name):
    if name == "native" and sys.platform != "linux":
        pytest.skip("native operations are for Linux")
    done = run_python(
        "import fastdrop_keras as f; print(f.get_bridge())", FASTDROP_KERAS_BRIDGE=name
    )
    assert done.stdout.split() == [name], done.stderr


def test_environment_variable_with_an_unknown_bridge(run_python):
    done = run_python("import fastdrop_keras", FASTDROP_KERAS_BRIDGE="fast")
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "FASTDROP_KERAS_BRIDGE='fast'" in done.stderr


WITHOUT_LIBRARY = """
import pathlib
real = pathlib.Path.exists
pathlib.Path.exists = lambda path: not path.name.startswith("libfastdrop_") and real(path)
import fastdrop, tensorflow
import fastdrop_keras
pathlib.Path.exists = real
"""


def test_without_the_library_the_layer_works_and_says_why(run_python, expected):
    done = run_python(
        WITHOUT_LIBRARY
        + f"""
import tensorflow as tf
y = fastdrop_keras.Dropout(0.5, seed=42)(tf.ones((2, 8)), training=True)
assert y.numpy().tolist() == {expected.factors((2, 8), 0.5, 42).tolist()}
fastdrop_keras.show_config()
try:
    fastdrop_keras.set_bridge("native")
except ValueError as error:
    print(error)
"""
    )
    assert done.returncode == 0, done.stderr
    assert "numpy_function (native not loaded: it was not built)" in done.stdout
    assert "compiled by XLA: no (" in done.stdout
    assert "The native bridge cannot be used: it was not built" in done.stdout


def test_the_environment_cannot_choose_an_unavailable_bridge(run_python):
    done = run_python(WITHOUT_LIBRARY, FASTDROP_KERAS_BRIDGE="native")
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "it was not built" in done.stderr


def test_show_config(bridge, capsys):
    fastdrop_keras.show_config()
    printed = capsys.readouterr().out
    assert f"bridge to TensorFlow {tf.__version__}: {bridge}\n" in printed
    assert "stream version" in printed


# Both bridges.


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("noise_shape", [None, (None, 1), (1, None), (1, 1), (33,), (1,), ()])
@pytest.mark.parametrize("known", [SHAPE, (None, 33), (None, None), None], ids=str)
def test_noise_shapes_are_fitted_when_the_shape_is_known(bridge, expected, noise_shape, known):
    @tf.function(input_signature=[tf.TensorSpec(known)])
    def twice(x):
        y, saved = drop(x, noise_shape=noise_shape)
        return y, dropout_again(3 * x, saved, noise_shape)

    y, again = twice(tf.ones(SHAPE))
    shape = None if noise_shape is None else (1,) * (2 - len(noise_shape)) + noise_shape
    np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, *SEED, shape))
    np.testing.assert_array_equal(again, 3 * y)


def test_high_word_of_a_seed(bridge, expected, run):
    f = run(lambda x, seed: drop(x, seed=seed)[0])
    y = f(tf.ones(SHAPE), tf.constant((7, 3, 9), tf.int64))
    np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.5, (9 << 64) | 7, 3))


@pytest.mark.usefixtures("bridge")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_large_tensors(bridge, expected, run, dtype):
    x = tf.cast(tf.random.normal((513, 1027)), dtype)
    y, again = run(lambda x: _twice(x, 0.2))(x)
    want = expected.output(x.numpy(), 0.2, *SEED)
    assert_same_bits(y.numpy(), want)
    assert_same_bits(again.numpy(), want)


def _twice(x, rate):
    y, saved = drop(x, rate)
    return y, dropout_again(x, saved)


def test_two_branches_of_a_graph(bridge, expected):
    layers = [Dropout(0.5, seed=seed) for seed in range(8)]

    @tf.function
    def branches(x):
        return [layer(x, training=True) for layer in layers]

    shape = (300, 1000)
    for step in range(3):
        for seed, y in enumerate(branches(tf.ones(shape))):
            np.testing.assert_array_equal(y, expected.factors(shape, 0.5, seed, step))


def test_a_saved_mask_is_used_by_the_bridge_that_saved_it(bridge, expected):
    y, saved = drop(tf.ones(SHAPE))
    for other in ("native", "numpy_function") if sys.platform == "linux" else ("numpy_function",):
        set_bridge(other)
        np.testing.assert_array_equal(dropout_again(tf.ones(SHAPE), saved), y)


def test_the_native_bridge_saves_the_bits_and_the_rate():
    """One bit per element, and the rate."""
    set_bridge("native")
    y, (_, saved) = drop(tf.ones(SHAPE), 0.2)
    np.testing.assert_array_equal(saved[:-8], reference.pack_bits(y.numpy() != 0))
    assert struct.unpack("<d", saved[-8:].numpy().tobytes()) == (0.2,)


# The native operations, called directly.


@pytest.fixture
def operations():
    if sys.platform != "linux":
        pytest.skip("native operations are for Linux")
    return native_bridge.OPERATIONS


def forward(operations, x, seed=SEED, rate=0.5, **options):
    return operations.fastdrop_forward(
        x=x,
        seed=tf.constant(seed, tf.int64),
        rate=tf.constant(rate, tf.float64),
        **{"stream": STREAM_VERSION, **options},
    )


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), float("inf")])
def test_bad_rate(operations, rate):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`rate` must be from 0 to 1"):
        forward(operations, tf.ones(SHAPE), rate=rate)


def test_a_rate_that_is_not_a_scalar(operations, run):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"scalar|rank"):
        run(lambda x: forward(operations, x, rate=[0.5]))(tf.ones(SHAPE))


@pytest.mark.parametrize("seed", [(), (1,), (1, 2, 3, 4), ((1, 2),), 5], ids=str)
def test_bad_seed(operations, run, seed):
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=r"seed|rank"):
        run(lambda x: forward(operations, x, seed))(tf.ones(SHAPE))


@pytest.mark.parametrize("noise_shape", [(5,), (2, 33), (-1,), (1, 1, 1), (0, 33)], ids=str)
def test_bad_noise_shape(operations, noise_shape):
    options = {"noise_shape": list(noise_shape), "noise_rank": len(noise_shape)}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`noise_shape`.*shape \(5, 33\)"):
        forward(operations, tf.ones(SHAPE), **options)
    saved = tf.zeros([29], tf.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`noise_shape`.*shape \(5, 33\)"):
        operations.fastdrop_backward(dy=tf.ones(SHAPE), saved=saved, **options)


def test_noise_rank_that_differs_from_the_rank(operations):
    with pytest.raises(tf.errors.InvalidArgumentError, match="noise_rank=1"):
        forward(operations, tf.ones(SHAPE), noise_shape=[1, 1], noise_rank=1)


@pytest.mark.parametrize("size", [0, 8, 28, 30, 1000])
def test_saved_bytes_of_another_shape(operations, size):
    saved = tf.zeros([size], tf.uint8)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"29 bytes.*Received: {size} "):
        operations.fastdrop_backward(dy=tf.ones(SHAPE), saved=saved)


def test_shapes_are_inferred(operations):
    @tf.function(input_signature=[tf.TensorSpec((None, 33)), tf.TensorSpec(None)])
    def shapes(x, y):
        shapes.found = [forward(operations, z)[0].shape for z in (x, y)]
        return x

    shapes.get_concrete_function()
    assert shapes.found[0].as_list() == [None, 33]
    assert shapes.found[1].rank is None


def test_an_input_without_other_users_is_overwritten(operations):
    """A chain of layers on a large tensor needs one buffer, not one per layer."""

    @tf.function
    def chain(x):
        y = x + 1
        for _ in range(50):
            y, _ = forward(operations, y, rate=0.0)
        return y

    before = peak_of_process()
    chain(tf.ones([2**22]))
    # Without reuse, 50 buffers of 16 MiB.
    assert peak_of_process() - before < 200 * 2**20


def peak_of_process():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_loading_twice_is_harmless(operations):
    assert tf.load_op_library(str(native_bridge.LIBRARY)).fastdrop_forward
    importlib.reload(native_bridge)
    x = tf.ones(SHAPE)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y, _ = forward(native_bridge.OPERATIONS, x)
    np.testing.assert_array_equal(tape.gradient(y, x), y)


SERVE = """
import numpy as np, tensorflow as tf
{first}
module = tf.saved_model.load({path!r})
print(module.drop(tf.ones((5, 33))).numpy().tolist())
"""


def test_a_graph_with_dropout_needs_the_operations(bridge, expected, tmp_path, run_python):
    if bridge != "native":
        pytest.skip("Python functions cannot be saved")
    layer = Dropout(0.5, seed=4)
    module = tf.Module()
    module.layer = layer
    module.drop = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(SHAPE)]
    )
    layer.rate = 0.2
    tf.saved_model.save(module, tmp_path)
    layer.rate = 0.9
    done = run_python(SERVE.format(first="import fastdrop_keras", path=str(tmp_path)))
    assert done.returncode == 0, done.stderr
    y = np.array(eval(done.stdout), np.float32)
    np.testing.assert_array_equal(y, expected.factors(SHAPE, 0.2, 4))
    done = run_python(SERVE.format(first="", path=str(tmp_path)))
    assert done.returncode != 0
    assert "FastdropForward" in done.stderr


@pytest.mark.parametrize("stream", [1, 3])
def test_a_graph_of_another_stream_is_refused(bridge, tmp_path, run_python, stream):
    """Its seeds would draw other masks here. Its gradient reads bits, of any stream."""
    if bridge != "native":
        pytest.skip("Python functions cannot be saved")
    layer = Dropout(0.5, seed=4)
    module = tf.Module()
    module.layer = layer
    module.drop = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec(SHAPE)]
    )
    tf.saved_model.save(module, tmp_path)
    path = tmp_path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(path.read_bytes())
    library = saved.meta_graphs[0].graph_def.library
    drops = [node for f in library.function for node in f.node_def if node.op == "FastdropForward"]
    assert drops
    for node in drops:
        assert node.attr["stream"].i == STREAM_VERSION
        node.attr["stream"].i = stream
    path.write_bytes(saved.SerializeToString())
    done = run_python(SERVE.format(first="import fastdrop_keras", path=str(tmp_path)))
    assert done.returncode != 0
    last = done.stderr.strip()
    assert "FailedPreconditionError" in last
    assert f"made with random stream {stream}, and the installed fastdrop draws stream 2" in last


def test_an_operation_of_another_stream_is_refused(operations, run):
    with pytest.raises(tf.errors.FailedPreconditionError, match=r"stream 1, .* stream 2,"):
        run(lambda x: forward(operations, x, stream=1))(tf.ones(SHAPE))


@pytest.mark.parametrize("sizes", [(0, 2**32, 2**31), (0, 2**31, 2**33 + 1)], ids=str)
def test_a_mask_of_2_to_63_bits_is_refused(run, bridge, sizes):
    """The array has no elements, but its mask has an entry of 1 for the dimension of size 0."""
    x = tf.reshape(tf.zeros(0), tf.constant(sizes, tf.int64))
    shared = Dropout(0.5, noise_shape=(1, None, None))
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
        run(lambda x: shared(x, training=True))(x)
    if bridge == "native":  # NumPy does not support such sizes
        own = Dropout(0.5)
        assert run(lambda x: own(x, training=True))(x).shape == sizes


def test_a_gradient_without_an_operation_is_refused_when_it_runs():
    """`tf.saved_model.save` looks up gradients of operations that `tf.vectorized_map` copied."""
    gradient = gradient_registry.lookup(_gradient_name("dropout", None))
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not in a SavedModel"):
        gradient(None, tf.ones(3))
