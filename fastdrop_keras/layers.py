"""Defines dropout layers with the arguments, errors and configurations of Keras's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from fastdrop_keras.arguments import checked_data_format, checked_noise_shape
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.random_layer import RandomLayer


class BaseDropout(RandomLayer, keras.layers.Dropout):
    """Is a dropout layer, except for the mask's shape."""


@keras.saving.register_keras_serializable(package="fastdrop")
class Dropout(BaseDropout):
    """Applies dropout to the input, as `keras.layers.Dropout` does.

    In training, the layer drops each input unit independently with probability `rate`: the unit
    becomes zero, even if it was NaN or infinite. The layer multiplies the other units by
    `1 / (1 - rate)`, which keeps the expected sum. In inference it returns its inputs.

    The mask is a pure function of the seed, the number of the call, the rate and the position. It
    is the same in eager and in graph mode, on every CPU and with any number of threads, and
    `fastdrop.dropout` draws the same mask with this seed and step. So it is with each backend of
    Keras, TensorFlow, PyTorch or JAX. The gradient uses the mask of the forward pass, which the
    layer saves with one bit for each element; on JAX it saves only the seed. A recomputation under
    gradient checkpointing (`keras.remat`, `keras.RematScope`, `tf.recompute_grad`,
    `torch.utils.checkpoint`) uses it too. In `tf.vectorized_map`, each iteration has its own mask,
    and in `torch.vmap` too, except with `randomness="same"` or in `torch.compile`. In `jax.vmap`
    all iterations have one mask, unless the seed's state is mapped too.

    The layer runs on the CPU. Models, weights, `tf.train.Checkpoint` and PyTorch's `state_dict`
    save the seed's state. The attribute `rate` can be set at any time, also while training.
    `torch.compile` compiles the layer, and again for each of the first rates.

    XLA compiles the layer, under `jit_compile=True`, on Linux with TensorFlow 2.18 and newer, for
    the CPU. Elsewhere Keras warns and runs the model without XLA. In a compiled function the
    gradient draws the mask again, from the seed. On JAX, a function that is traced needs the
    layer's state as an argument (`stateless_call`, `keras.StatelessScope`), as in `fit`.

    Args:
        rate: Float between 0 and 1. Fraction of the input units to drop.
        noise_shape: Tuple or list of integers or `None`: the shape of the mask, which is
            broadcast against the input. `None` means the input's size there. For inputs of
            shape `(batch_size, timesteps, features)`, `noise_shape=(None, 1, None)` drops the
            same features in all time steps.
        seed: Integer from 0 to 2**63 - 1, or `None` for a seed from Keras's global generator,
            which `keras.utils.set_random_seed` sets.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If `rate` or `seed` has the wrong type; in training, if the inputs have another
            dtype or are sparse or ragged.
        ValueError: If `rate`, `seed` or `noise_shape` is not a valid value; in training, if
            `noise_shape` does not fit the inputs. If the shape is known only at run time, the run
            raises `tf.errors.InvalidArgumentError`.
        RuntimeError: On JAX, if the layer drops in a traced function without its state.

    Reference:

    - [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html)

    Example:

    >>> import tensorflow as tf
    >>> layer = Dropout(0.5, seed=42)
    >>> layer(tf.ones((2, 8)), training=True).numpy()
    array([[0., 0., 2., 2., 2., 0., 2., 2.],
           [2., 0., 2., 2., 2., 2., 0., 2.]], dtype=float32)
    >>> layer(tf.ones((2, 2))).numpy()
    array([[1., 1.],
           [1., 1.]], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Iterable[int | None] | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        noise_shape = checked_noise_shape(noise_shape)
        BaseDropout.__init__(self, rate, seed=seed, **kwargs)
        self.noise_shape = noise_shape

    def _mask_shape(self) -> NoiseShape | None:
        return self.noise_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        return {**BaseDropout.get_config(self), "noise_shape": self.noise_shape}


@keras.saving.register_keras_serializable(package="fastdrop")
class SpatialDropout1D(BaseDropout, keras.layers.SpatialDropout1D):
    """Drops entire 1D feature maps, as `keras.layers.SpatialDropout1D` does.

    In training, the layer drops or keeps each feature map of each sample as a whole. This
    regularizes better than dropping single elements if neighbouring time steps are strongly
    correlated. Otherwise the layer is like `fastdrop_keras.Dropout`, with the same errors.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        name, dtype, **kwargs: The arguments of every Keras layer.

    Call arguments:
        inputs: Tensor of shape `(samples, timesteps, channels)` and a dtype as for `Dropout`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Reference:

    - [Tompson et al., 2015](https://arxiv.org/abs/1411.4280)

    Example:

    >>> import tensorflow as tf
    >>> layer = SpatialDropout1D(0.5, seed=42)
    >>> layer(tf.ones((1, 3, 4)), training=True).numpy()
    array([[[0., 0., 2., 2.],
            [0., 0., 2., 2.],
            [0., 0., 2., 2.]]], dtype=float32)
    """

    _input_rank = 3

    def _mask_shape(self) -> NoiseShape:
        return (None, 1, None)


class BaseSpatialDropout(BaseDropout):
    """Adds the argument `data_format`, for images and volumes."""

    _input_rank: int

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        data_format = checked_data_format(data_format)
        BaseDropout.__init__(self, rate, seed, name, dtype, **kwargs)
        self.data_format = data_format

    def _mask_shape(self) -> NoiseShape:
        ones = (1,) * (self._input_rank - 2)
        if self.data_format == "channels_first":
            return (None, None, *ones)
        return (None, *ones, None)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        return {**BaseDropout.get_config(self), "data_format": self.data_format}


@keras.saving.register_keras_serializable(package="fastdrop")
class SpatialDropout2D(BaseSpatialDropout, keras.layers.SpatialDropout2D):
    """Drops entire 2D feature maps, as `keras.layers.SpatialDropout2D` does.

    In training, the layer drops or keeps each feature map of each sample as a whole. This
    regularizes better than dropping single elements if neighbouring pixels are strongly
    correlated. Otherwise the layer is like `fastdrop_keras.Dropout`, with the same errors.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        data_format: `"channels_first"` or `"channels_last"`, or `None` for the value of
            `keras.config.image_data_format()`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        name, dtype, **kwargs: The arguments of every Keras layer.

    Call arguments:
        inputs: Tensor of shape `(samples, channels, rows, cols)` if
            `data_format="channels_first"`, else `(samples, rows, cols, channels)`, and a dtype as
            for `Dropout`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Reference:

    - [Tompson et al., 2015](https://arxiv.org/abs/1411.4280)

    Example:

    >>> import tensorflow as tf
    >>> layer = SpatialDropout2D(0.5, seed=42)
    >>> layer(tf.ones((1, 2, 2, 4)), training=True).numpy()
    array([[[[0., 0., 2., 2.],
             [0., 0., 2., 2.]],
    <BLANKLINE>
            [[0., 0., 2., 2.],
             [0., 0., 2., 2.]]]], dtype=float32)
    """

    _input_rank = 4


@keras.saving.register_keras_serializable(package="fastdrop")
class SpatialDropout3D(BaseSpatialDropout, keras.layers.SpatialDropout3D):
    """Drops entire 3D feature maps, as `keras.layers.SpatialDropout3D` does.

    In training, the layer drops or keeps each feature map of each sample as a whole. This
    regularizes better than dropping single elements if neighbouring voxels are strongly
    correlated. Otherwise the layer is like `fastdrop_keras.Dropout`, with the same errors.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        data_format: `"channels_first"` or `"channels_last"`, or `None` for the value of
            `keras.config.image_data_format()`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        name, dtype, **kwargs: The arguments of every Keras layer.

    Call arguments:
        inputs: Tensor of shape `(samples, channels, dim1, dim2, dim3)` if
            `data_format="channels_first"`, else `(samples, dim1, dim2, dim3, channels)`, and a
            dtype as for `Dropout`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Reference:

    - [Tompson et al., 2015](https://arxiv.org/abs/1411.4280)

    Example:

    >>> import tensorflow as tf
    >>> layer = SpatialDropout3D(0.5, seed=42)
    >>> layer(tf.ones((1, 2, 2, 2, 4)), training=True).numpy()[0, 0, 0]
    array([[0., 0., 2., 2.],
           [0., 0., 2., 2.]], dtype=float32)
    """

    _input_rank = 5
