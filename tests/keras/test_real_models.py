"""Models as people build them: converted, trained, scheduled, saved, loaded and exported."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fastdrop_keras
from fastdrop_keras import RateSchedule, convert, linear_ramp

pytestmark = [
    pytest.mark.slow,
    # Keras's own, whenever it writes a variable to a file with NumPy 2.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # KerasHub compiles its tasks also where `load_model` should not.
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning"),
]

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 32, 32, 3)).astype(np.float32)
TOKENS = RNG.integers(1, 50, size=(4, 12)).astype(np.int32)
LABELS = np.array([0, 1, 2, 0])
WORDS = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}


def bert():
    hub = pytest.importorskip("keras_hub", reason="needs keras-hub, which the extra `test` brings")
    backbone = hub.models.BertBackbone(50, 2, 2, 16, 32, dropout=0.2, max_sequence_length=12)
    model = hub.models.BertTextClassifier(backbone, num_classes=3, dropout=0.2)
    return model, {**WORDS, "segment_ids": np.zeros_like(TOKENS)}, LABELS


def gpt2():
    hub = pytest.importorskip("keras_hub", reason="needs keras-hub, which the extra `test` brings")
    backbone = hub.models.GPT2Backbone(50, 2, 2, 16, 32, dropout=0.2, max_sequence_length=12)
    return hub.models.GPT2CausalLM(backbone), WORDS, np.roll(TOKENS, -1, axis=1)


def sentiment():
    """A functional model around a model with a constructor of its own, which Keras cannot clone."""
    task, words, labels = bert()
    return keras.Model(task.input, task.output), words, labels


def vit():
    hub = pytest.importorskip("keras_hub", reason="needs keras-hub, which the extra `test` brings")
    backbone = hub.models.ViTBackbone(
        (32, 32, 3), (8, 8), 2, 2, 16, 32, dropout_rate=0.2, attention_dropout=0.2
    )
    model = hub.models.ViTImageClassifier(backbone, num_classes=3, dropout=0.2)
    return model, IMAGES, LABELS


def mobilenet():
    model = keras.applications.MobileNet(
        (32, 32, 3), alpha=0.25, dropout=0.5, weights=None, classes=3, classifier_activation=None
    )
    return model, IMAGES, LABELS


def u_net():
    def block(x, filters):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
        return layers.SpatialDropout2D(0.2)(x)

    x = keras.Input((32, 32, 3))
    skipped = []
    h = x
    for filters in (4, 8):
        h = block(h, filters)
        skipped.append(h)
        h = layers.MaxPooling2D()(h)
    h = layers.Dropout(0.5)(block(h, 16))
    for filters, other in zip((8, 4), reversed(skipped), strict=True):
        h = layers.Conv2DTranspose(filters, 2, strides=2)(h)
        h = block(layers.Concatenate()([h, other]), filters)
    model = keras.Model(x, layers.Conv2D(3, 1)(h), name="u_net")
    return model, IMAGES, RNG.integers(0, 3, size=IMAGES.shape[:3])


def lstm():
    model = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(50, 8, mask_zero=True),
            layers.SpatialDropout1D(0.2),
            layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
            layers.TimeDistributed(layers.Dropout(0.2)),
            layers.LSTM(8),
            layers.Dropout(0.5),
            layers.Dense(3),
        ]
    )
    return model, TOKENS, LABELS


@keras.saving.register_keras_serializable("test_real_models")
class GAN(keras.Model):
    """A generator and a discriminator, with a training step for both."""

    def __init__(self, generator, discriminator, **kwargs):
        super().__init__(**kwargs)
        self.generator, self.discriminator = generator, discriminator

    def compile(self, optimizers, loss):
        super().compile(loss=loss)
        self.generator_optimizer, self.discriminator_optimizer = optimizers

    def call(self, latent, training=False):
        return self.discriminator(self.generator(latent, training=training), training=training)

    def train_step(self, data):
        latent, real = data
        ones = tf.ones((tf.shape(latent)[0], 1))
        with tf.GradientTape() as tape:
            fake = self.generator(latent, training=True)
            judged = self.discriminator(tf.concat([fake, real], 0), training=True)
            loss = self.compute_loss(y=tf.concat([0 * ones, ones], 0), y_pred=judged)
        weights = self.discriminator.trainable_variables
        self.discriminator_optimizer.apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            deceived = self.compute_loss(y=ones, y_pred=self(latent, training=True))
        weights = self.generator.trainable_variables
        self.generator_optimizer.apply(tape.gradient(deceived, weights), weights)
        return {"loss": loss + deceived}

    def get_config(self):
        parts = {"generator": self.generator, "discriminator": self.discriminator}
        serialized = {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {**super().get_config(), **serialized}

    @classmethod
    def from_config(cls, config):
        for part in ("generator", "discriminator"):
            config[part] = keras.saving.deserialize_keras_object(config[part])
        return cls(**config)


def gan():
    sizes = [layers.Dense(16, activation="leaky_relu"), layers.Dropout(0.3), layers.Dense(8)]
    generator = keras.Sequential([keras.Input((6,)), *sizes], name="generator")
    judge = [layers.Dense(16), layers.Dropout(0.3), layers.Dense(1)]
    discriminator = keras.Sequential([keras.Input((8,)), *judge], name="discriminator")
    model = GAN(generator, discriminator)
    latent = RNG.normal(size=(4, 6)).astype(np.float32)
    model(latent)
    return model, latent, RNG.normal(size=(4, 8)).astype(np.float32)


def compile_model(model):
    if isinstance(model, GAN):
        optimizers = keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3)
        model.compile(optimizers, keras.losses.BinaryCrossentropy(from_logits=True))
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss)


# The number of dropout layers. Batch normalization computes otherwise in training.
MODELS = [
    (bert, 8, False),
    (sentiment, 8, False),
    (gpt2, 7, False),
    (vit, 8, False),
    (mobilenet, 1, True),
    (u_net, 6, True),
    (lstm, 3, False),
    (gan, 2, False),
]


def dropouts(model):
    kinds = (*fastdrop_keras.switch.CLASSES, *fastdrop_keras.switch.CLASSES.values())
    return [layer for layer in model._flatten_layers() if type(layer) in kinds]


def assert_all_converted(model, count):
    assert len(dropouts(model)) == count
    for layer in dropouts(model):
        assert isinstance(layer, fastdrop_keras.random_layer.RandomLayer)


@pytest.mark.parametrize(("make", "count", "normalizes_batches"), MODELS)
def test_from_conversion_to_export(make, count, normalizes_batches, tmp_path):
    model, x, y = make()
    before = np.asarray(model(x))
    model, report = convert(model, verbose=False, return_report=True)
    assert len(report.changed) == count
    assert report.unchanged == ()
    assert_all_converted(model, count)
    np.testing.assert_array_equal(model(x), before)

    # Trained while the rates rise.
    compile_model(model)
    steps = [layer.seed_generator.state.numpy()[1] for layer in dropouts(model)]
    ramp = RateSchedule(linear_ramp(0.2, 0.5, 2))
    fitted = {"batch_size": 2, "shuffle": False, "verbose": 0}
    history = model.fit(x, y, epochs=3, callbacks=[ramp], **fitted).history
    assert np.isfinite(history["loss"]).all()
    np.testing.assert_allclose(history["dropout_rate"], [0.2, 0.35, 0.5])
    for layer, step in zip(dropouts(model), steps, strict=True):
        assert layer.rate == 0.5
        assert layer.seed_generator.state.numpy()[1] >= step + 6
    training = tf.function(lambda x: model(x, training=True))
    assert not np.array_equal(training(x), training(x))

    # A file and the export serve what the model predicts.
    trained = np.asarray(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    again = convert(loaded, verbose=False)
    assert_all_converted(again, count)
    np.testing.assert_array_equal(again(x), trained)
    again.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(x), trained, rtol=1e-5, atol=1e-6)

    # Without dropout nothing is random: no layer drops that is not ours.
    off = RateSchedule(lambda epoch: 0.0)
    model.fit(x, y, callbacks=[off], **fitted)
    for layer in dropouts(again):
        layer.rate = 0.0
    np.testing.assert_array_equal(training(x), training(x))
    for one in (model, again):
        dropped_nothing = np.asarray(one(x, training=True))
        np.testing.assert_array_equal(one(x, training=True), dropped_nothing)
        if not normalizes_batches:
            np.testing.assert_allclose(one(x), dropped_nothing, rtol=1e-5, atol=1e-6)
