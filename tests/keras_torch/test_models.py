"""On PyTorch, models with the layers train, compile, save, convert and use checkpointing."""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from reference import assert_same_bits, drawn

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
    StochasticDepth,
    VariationalDense,
    VariationalGaussianDropout,
)


def data(rows=48):
    x = np.random.default_rng(1).normal(size=(rows, 20)).astype(np.float32)
    return x, x[:, :1]


def small_model(layer, seed=5, **compiled):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((20,))
    hidden = keras.layers.Dense(32, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(layer(hidden)))
    model.compile(keras.optimizers.Adam(0.01), "mse", **compiled)
    return model


def fit(model, **arguments):
    x, y = data()
    arguments = {"batch_size": 16, "verbose": 0, "shuffle": False} | arguments
    return model.fit(x, y, **arguments).history


def state_of(layer):
    return layer.seed_generator.state.value.tolist()


def assert_same(a, b):
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float64"])
def test_fit_and_predict(dtype):
    keras.config.set_dtype_policy(dtype)
    layer = Dropout(0.2, seed=3)
    model = small_model(layer)
    losses = fit(model, epochs=10)["loss"]
    assert losses[-1] < losses[0]
    assert state_of(layer) == [3, 30]
    x, y = data()
    before = model.predict(x, verbose=0)
    np.testing.assert_array_equal(model.predict(x, verbose=0), before)
    assert model.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    assert state_of(layer) == [3, 30]


def test_fit_twice_gives_the_same_weights():
    models = [small_model(Dropout(0.5, seed=3)) for _ in range(2)]
    for model in models:
        fit(model, epochs=2)
    assert_same(*models)


def test_an_interrupted_and_resumed_fit_ends_in_the_same_weights(tmp_path):
    whole, first = (small_model(Dropout(0.5, seed=3)) for _ in range(2))
    fit(whole, epochs=4)
    fit(first, epochs=2)
    first.save(tmp_path / "model.keras")
    first.save_weights(tmp_path / "model.weights.h5")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(resumed, epochs=4, initial_epoch=2)
    assert_same(resumed, whole)
    layer = Dropout(0.5, seed=9)
    other = small_model(layer)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert state_of(layer) == [3, 6]


def test_a_model_whose_shapes_keras_computes_by_a_call():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = SpatialDropout1D(0.5, seed=3)
            self.dense = keras.layers.Dense(2)

        def call(self, x, training=False):
            return self.dense(self.drop(x, training=training))

    model = Model()
    y = model(keras.Input((None, 4)), training=True)
    assert y.shape == (None, None, 2)
    assert state_of(model.drop) == [3, 0]
    model(torch.ones(2, 3, 4), training=True)
    assert state_of(model.drop) == [3, 1]


# torch.compile.


def test_a_compiled_layer_draws_what_it_draws_otherwise(expected):
    layer = Dropout(0.5, seed=3)
    compiled = torch.compile(
        lambda x: layer(x, training=True), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for step, rows in enumerate([5, 5, 8]):
        x = torch.ones(rows, 33, requires_grad=True)
        y = compiled(x)
        y.sum().backward()
        factors = expected.factors((rows, 33), 0.5, 3, step)
        assert torch.equal(y, factors)
        assert torch.equal(x.grad, factors)
    assert torch.equal(layer(torch.ones(50), training=True), expected.factors((50,), 0.5, 3, 3))


def test_a_compiled_layer_may_get_more_rates_than_it_is_compiled_for(expected):
    layer = Dropout(0.5, seed=3)
    compiled = torch.compile(lambda x: layer(x, training=True), backend="aot_eager")
    for step, rate in enumerate(np.linspace(0, 1, 2 + torch._dynamo.config.recompile_limit)):
        layer.rate = rate
        right = expected.factors((50,), rate, 3, step)
        assert torch.equal(compiled(torch.ones(50)), right)


def test_jit_compile(monkeypatch):
    # Without inductor, which takes ten seconds longer.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    weights = []
    for jit_compile in (True, False):
        layer = Dropout(0.5, seed=3)
        model = keras.Sequential([keras.Input((20,)), layer, keras.layers.Dense(1, "linear")])
        model.set_weights([np.ones((20, 1)), np.zeros(1)])
        model.compile("sgd", "mse", jit_compile=jit_compile)
        assert model.jit_compile is jit_compile
        fit(model, epochs=2)
        assert state_of(layer) == [3, 6]
        weights.append(model.get_weights()[0])
    np.testing.assert_allclose(*weights, rtol=1e-5)


# Gradient checkpointing.


def checkpointed(function, use_reentrant):
    return lambda x: torch.utils.checkpoint.checkpoint(function, x, use_reentrant=use_reentrant)


REMAT = {
    "keras": keras.remat,
    "torch": lambda f: checkpointed(f, False),
    "reentrant": lambda f: checkpointed(f, True),
    "nested": lambda f: keras.remat(lambda x: keras.remat(f)(x)),
    "compiled inside": lambda f: keras.remat(torch.compile(f, backend="aot_eager")),
    "compiled outside": lambda f: torch.compile(keras.remat(f), backend="aot_eager"),
}


# Of torch.compile itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("kind", REMAT)
def test_the_gradient_has_the_masks_of_the_forward_pass(expected, kind):
    first, second = Dropout(0.5, seed=3), Dropout(0.5, seed=4)

    def block(x):
        return second(first(x * x, training=True).sin(), training=True)

    block = REMAT[kind](block)
    for step in range(2):
        x = torch.randn(8, 30, requires_grad=True)
        block(x).sum().backward()
        right = x.detach().clone().requires_grad_()
        a, b = (expected.factors((8, 30), 0.5, seed, step) for seed in (3, 4))
        ((right * right * a).sin() * b).sum().backward()
        assert torch.allclose(x.grad, right.grad, atol=1e-6)
    assert state_of(first) == [3, 2]


def test_layers_in_a_remat_scope_drop_in_the_recomputation():
    """Keras does not keep `training` until then."""

    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.drop = Dropout(0.5, seed=3)

        def call(self, x):
            return keras.ops.sin(self.drop(x * x))

    with keras.RematScope("full"):
        blocks = [Block()]
    blocks.append(Block())
    gradients = []
    for block in blocks:
        x = torch.linspace(0, 1, 50).requires_grad_()
        block(x, training=True).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients)


def test_a_recomputation_that_calls_less_often_is_refused():
    layer = Dropout(0.5, seed=3)
    calls = [1, 2]

    def block(x):
        for _ in range(calls.pop()):
            x = layer(x, training=True).sin()
        return x

    y = checkpointed(block, True)(torch.ones(50, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"called a dropout layer 2 times.*1 times"):
        y.sum().backward()


def test_a_function_of_another_checkpointing_is_refused():
    layer = Dropout(0.5, seed=3)
    original = torch.utils.checkpoint.checkpoint.__wrapped__
    y = original(
        lambda x: layer(x, training=True).sin(),
        torch.ones(50, requires_grad=True),
        use_reentrant=False,
    )
    with pytest.raises(NotImplementedError, match="Import fastdrop_keras before this function"):
        y.sum().backward()


def test_a_layer_may_be_called_in_a_hook_of_a_backward_pass():
    layer = Dropout(0.5, seed=3)
    x = torch.ones(50, requires_grad=True)
    x.register_hook(lambda dx: layer(dx, training=True))
    x.sum().backward()
    assert torch.equal(x.grad, Dropout(0.5, seed=3)(torch.ones(50), training=True))


# Models with dropout layers of Keras.


@pytest.mark.parametrize("in_place", [False, True])
def test_convert_and_to_keras(in_place):
    model = small_model(keras.layers.Dropout(0.25, (None, 1), seed=7, name="drop"))
    fit(model)
    x, _ = data()
    before = model.predict(x, verbose=0)
    ours = fastdrop_keras.convert(model, in_place=in_place, verbose=False)
    layer = ours.get_layer("drop")
    assert type(layer) is Dropout
    assert (layer.rate, layer.noise_shape, state_of(layer)) == (0.25, (None, 1), [7, 3])
    np.testing.assert_array_equal(ours.predict(x, verbose=0), before)
    fit(ours)
    assert state_of(layer) == [7, 6]
    parameters = [id(parameter) for parameter in ours.parameters()]
    assert id(layer.seed_generator.state.value) in parameters
    assert len(parameters) == 5
    theirs = fastdrop_keras.to_keras(ours, in_place=in_place, verbose=False)
    assert type(theirs.get_layer("drop")) is keras.layers.Dropout
    assert state_of(theirs.get_layer("drop")) == [7, 6]
    fit(theirs)


def test_a_seed_that_keras_cannot_hold_is_reported():
    model = small_model(Dropout(0.5, seed=2**40, name="drop"))
    theirs, report = fastdrop_keras.to_keras(model, verbose=False, return_report=True)
    assert type(theirs.get_layer("drop")) is Dropout
    assert "without overflow" in report.unchanged[0].note


def test_convert_reports_modules_of_pytorch():
    model = keras.Sequential(
        [
            keras.layers.TorchModuleWrapper(torch.nn.Dropout(0.2), name="module"),
            keras.layers.TorchModuleWrapper(torch.nn.Linear(4, 4), name="linear"),
        ]
    )
    _, report = fastdrop_keras.convert(model, verbose=False, return_report=True)
    assert [(one.path, "torch.nn.Dropout" in one.note) for one in report.unchanged] == [
        ("module", True)
    ]


def test_enabled():
    with fastdrop_keras.enabled():
        attention = keras.layers.MultiHeadAttention(2, 8, dropout=0.5)
        x = torch.ones(2, 3, 8)
        assert not torch.equal(attention(x, x, training=True), attention(x, x, training=True))
    assert type(attention._dropout_layer) is Dropout
    assert type(keras.layers.Dropout(0.5)) is not Dropout


def test_rate_schedule():
    layer = Dropout(0.5, seed=3)
    model = small_model(layer)
    ramp = fastdrop_keras.RateSchedule(fastdrop_keras.linear_ramp(0.0, 0.5, 4), unit="step")
    assert fit(model, epochs=2, callbacks=[ramp])["dropout_rate"] == [0.25, 0.5]
    assert layer.rate == 0.5


def test_exact_average():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    model = keras.Sequential(
        [keras.Input((4,)), Dropout(0.25), keras.layers.Dense(2, "softmax", name="last")]
    )
    geometric, deviation = fastdrop_keras.exact_average(model, x, geometric=True)
    np.testing.assert_allclose(geometric, fastdrop_keras.weight_scaling(model, x), rtol=1e-5)
    assert (deviation > 0).all()


# Layers that drop weights, blocks of images and samples.

STRUCTURED = {
    "DropConnectDense": lambda: DropConnectDense(4, 0.5, seed=7),
    "DropConnectConv2D": lambda: DropConnectConv2D(4, 2, 0.5, seed=7),
    "DropBlock2D": lambda: DropBlock2D(0.5, 2, seed=7),
    "StochasticDepth": lambda: StochasticDepth(0.5, seed=7),
}


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
def test_models_with_structured_layers(make, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 6, 5, 4)).astype(np.float32)
    y = generator.normal(size=(12, 1)).astype(np.float32)

    def fit(model, **kwargs):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0, **kwargs)
        return [weight.copy() for weight in model.get_weights()]

    model = keras.Sequential([keras.Input((None, None, 4)), make()])
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(1))
    model.compile("adam", "mse")
    ramp = fastdrop_keras.RateSchedule(lambda epoch: 0.25)
    fit(model, callbacks=[ramp])
    model.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert resumed.layers[0].rate == 0.25
    assert state_of(resumed.layers[0]) == state_of(model.layers[0]) == [7, 3]
    for got, want in zip(fit(resumed), fit(model), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


# Of torch.compile itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("name", ["DropConnectDense", "DropBlock2D"])
def test_a_compiled_structured_layer_draws_what_it_draws_otherwise(name):
    layer, other = STRUCTURED[name](), STRUCTURED[name]()
    x = torch.linspace(-1, 1, 360).reshape(3, 6, 5, 4)
    layer(x), other(x)
    other.set_weights(layer.get_weights())
    compiled = torch.compile(lambda x: layer(x, training=True), backend="aot_eager")
    for _ in range(2):
        assert torch.allclose(compiled(x), other(x, training=True), atol=1e-6)
    assert state_of(layer) == [7, 2]


def result_and_gradient(function, x):
    x = torch.tensor(x, requires_grad=True)
    y = function(x)
    y.sum().backward()
    return y.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize("make", STRUCTURED.values(), ids=STRUCTURED)
def test_recomputations_of_structured_layers(make):
    layer, other = make(), make()
    x = np.random.default_rng(0).normal(size=(3, 6, 5, 4)).astype(np.float32)
    layer(x), other(x)
    other.set_weights(layer.get_weights())

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for _ in range(2):
        for got, want in zip(
            result_and_gradient(keras.remat(block(layer)), x),
            result_and_gradient(block(other), x),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert state_of(layer) == state_of(other) == [7, 4]


def test_a_model_whose_shapes_keras_computes_by_a_call_of_structured_layers():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.steps = [make() for make in STRUCTURED.values()]

        def call(self, x, training=False):
            for step in self.steps:
                x = step(x, training=training)
            return x

    assert Model()(keras.Input((None, None, 4)), training=True).shape == (None, None, None, 4)


def test_stochastic_depth_of_keras_is_converted_and_back():
    theirs = keras.src.applications.convnext.StochasticDepth(0.3, name="depth")
    model = keras.Sequential([keras.Input((4,)), theirs])
    ours = fastdrop_keras.convert(model, verbose=False)
    assert type(ours.layers[0]) is StochasticDepth
    assert ours.layers[0].rate == 0.3
    back = fastdrop_keras.to_keras(ours, verbose=False).layers[0]
    assert type(back) is type(theirs)
    assert back.drop_path_rate == 0.3


# Layers of noise.

each_noise = pytest.mark.parametrize(
    ("layer_class", "kind", "name"),
    [
        (GaussianDropout, "gaussian_dropout", "rate"),
        (GaussianNoise, "gaussian_noise", "stddev"),
        (AlphaDropout, "alpha_dropout", "rate"),
    ],
)


@each_noise
def test_a_callback_between_steps_may_set_the_parameter_of_noise(layer_class, kind, name):
    layer = layer_class(0.5, seed=3)
    seen = []

    class Recorder(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                seen.append(layer(torch.ones(50), training=True).numpy())
            return x

    class Callback(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            setattr(layer, name, getattr(layer, name) / 2)

    model = keras.Sequential([keras.Input((20,)), Recorder(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    fit(model, epochs=2, callbacks=[Callback()])
    assert len(seen) == 6
    for step, row in enumerate(seen):
        assert_same_bits(row, drawn(kind, np.ones(50, np.float32), 0.5 / 2**step, 3, step))


@each_noise
def test_files_of_layers_of_noise(layer_class, kind, name, tmp_path):
    layer = layer_class(0.5, seed=3)
    model = small_model(layer)
    fit(model)
    setattr(layer, name, 0.25)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.layers[2]) is layer_class
    assert again.layers[2].get_config() == layer.get_config()
    assert getattr(again.layers[2], name) == 0.25
    assert state_of(again.layers[2]) == state_of(layer) == [3, 3]
    fit(model), fit(again)
    assert_same(model, again)


@each_noise
def test_recomputations_of_noise(layer_class, kind, name):
    layer, other = layer_class(0.3, seed=7), layer_class(0.3, seed=7)
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for got, want in zip(
        result_and_gradient(keras.remat(block(layer)), x),
        result_and_gradient(block(other), x),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert state_of(layer) == state_of(other) == [7, 2]


# Layers that learn how much to drop.

ADAPTIVE = {
    "VariationalGaussianDropout": lambda: VariationalGaussianDropout(0.1, "unit", 0.3, seed=7),
    "VariationalDense": lambda: VariationalDense(32, 0.1, initial_rate=0.2, seed=7),
    "ConcreteDropout": lambda: ConcreteDropout(keras.layers.Dense(32), 0.1, 0.2, seed=7),
}
each_adaptive = pytest.mark.parametrize("make", ADAPTIVE.values(), ids=ADAPTIVE)


@each_adaptive
def test_a_learned_rate_is_trained_and_saved(make, tmp_path):
    model = small_model(make())
    layer = model.layers[2]
    rate = np.array(layer.rate)
    first, *_, last = fit(model, epochs=5)["loss"]
    assert last < first
    assert np.all(layer.rate != rate)
    assert state_of(layer) == [7, 15]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_same(model, again)
    fit(model), fit(again)
    assert_same(model, again)


@each_adaptive
def test_recomputations_of_learned_noise(make):
    layer, other = make(), make()
    x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    layer(x), other(x)
    other.set_weights(layer.get_weights())

    def block(one):
        return lambda x: one(one(x, training=True) ** 2, training=True)

    for _ in range(2):
        for got, want in zip(
            result_and_gradient(keras.remat(block(layer)), x),
            result_and_gradient(block(other), x),
            strict=True,
        ):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert state_of(layer) == state_of(other) == [7, 4]


# The environment.


def test_importing_the_package_imports_no_tensorflow():
    code = "import sys, fastdrop_keras; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pytorch_that_is_not_installed():
    code = "import sys; sys.modules['torch'] = None; import fastdrop_keras"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PyTorch is not installed" in done.stderr
    assert 'pip install "fastdrop[torch]"' in done.stderr
