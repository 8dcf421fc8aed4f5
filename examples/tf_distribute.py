"""Trains a Keras model on two replicas with `tf.distribute.MirroredStrategy`, and shows that the
replicas draw different masks, which are the same in each run."""

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import fastdrop_keras

REPLICAS = ["CPU:0", "CPU:1"]  # for example; or GPUs for the rest of the model


def masks(strategy: tf.distribute.Strategy, dropout: type[keras.layers.Layer]) -> np.ndarray:
    """Return what each replica keeps of 64 ones in its first call, a row for each."""
    with strategy.scope():
        layer = dropout(0.5, seed=42)
    step = tf.function(lambda: strategy.run(layer, (tf.ones(64),), {"training": True}))
    return np.array([y.numpy() != 0 for y in strategy.experimental_local_results(step())])


def train(strategy: tf.distribute.Strategy, epochs: int) -> list[float]:
    """Return the loss of each epoch; each replica trains on a half of each batch."""
    images, labels = load_digits(return_X_y=True)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Dense(128, activation="relu"),
                fastdrop_keras.Dropout(0.5),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss)
    history = model.fit(images / 16, labels, batch_size=128, epochs=epochs, verbose=0)
    return history.history["loss"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 epochs: only to try it")
    epochs = 2 if parser.parse_args(arguments).quick else 10

    # Two devices on one CPU, before TensorFlow uses it.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(REPLICAS)
    for dropout in (keras.layers.Dropout, fastdrop_keras.Dropout):
        first, second = masks(strategy, dropout)
        print(f"{dropout.__module__}: the replicas differ in {np.sum(first != second)} of 64")
    again = np.array_equal(*(masks(strategy, fastdrop_keras.Dropout) for _ in range(2)))
    print(f"the masks of another layer with this seed are {'the same' if again else 'different'}")
    losses, repeated = train(strategy, epochs), train(strategy, epochs)
    print(f"loss: {losses[0]:.4f} in the first epoch, {losses[-1]:.4f} in the last")
    print(f"loss of another run: {repeated[0]:.4f} in the first epoch, {repeated[-1]:.4f}")


if __name__ == "__main__":
    main()
