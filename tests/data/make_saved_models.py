"""Makes model files of version 0.1, which every later version must load.

    python tests/data/make_saved_models.py

Run it only to add files, with the version in the files' names.
"""

import pathlib
import warnings

import keras
import numpy as np

import fastdrop_keras

HERE = pathlib.Path(__file__).parent


def model():
    """A chain of all layers, each with other arguments."""
    options = {"seed": 7, "data_format": "channels_first"}
    return keras.Sequential(
        [
            keras.Input((2, 2, 3)),
            fastdrop_keras.SpatialDropout2D(0.25, name="second", **options),
            keras.layers.Reshape((2, 2, 3, 1)),
            fastdrop_keras.SpatialDropout3D(0.5, name="third", **options),
            keras.layers.Reshape((4, 3)),
            fastdrop_keras.SpatialDropout1D(0.125, seed=8, name="first"),
            fastdrop_keras.Dropout(0.75, noise_shape=(None, 1, 3), seed=9, name="plain"),
            keras.layers.Dense(1, kernel_initializer="ones", name="dense"),
        ]
    )


if __name__ == "__main__":
    used = model()
    for _ in range(3):
        used(np.ones((5, 2, 2, 3), np.float32), training=True)
    with warnings.catch_warnings():
        # From Keras itself, whenever it writes a variable to a file with NumPy 2.
        warnings.filterwarnings("ignore", message="__array__ implementation")
        used.save(HERE / "saved_by_0_1.keras")
        used.save_weights(HERE / "saved_by_0_1.weights.h5")
