"""Defines layers that drop weights, blocks of images, and whole samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.src.backend import in_symbolic_scope

from fastdrop_keras.arguments import (
    checked_count,
    checked_data_format,
    checked_seed,
    wrong_value,
)
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.inputs import NoiseShape, check_floats
from fastdrop_keras.random_layer import RandomLayer, SeededLayer


class RandomKernel(SeededLayer):
    """Uses the kernel of a layer of Keras, the last among the bases, in a random operation."""

    # Of a layer with weights, gradient checkpointing computes everything again but the mask.
    rematerialized_call = keras.layers.Layer.rematerialized_call
    quantize = keras.layers.Layer.quantize  # raises a NotImplementedError

    def build(self, input_shape: Any) -> None:
        """Make the weights; called by Keras."""
        if self.quantization_mode:
            raise NotImplementedError(
                f"{type(self).__name__} has no quantized weights. "
                f"Received: dtype={self.dtype_policy.name!r}"
            )
        super().build(input_shape)

    def _mask_shape(self) -> NoiseShape | None:
        return None


class DropConnect(RandomKernel, RandomLayer):
    """Drops elements of the kernel."""

    def _thinned_kernel(self, training: Any) -> Any:
        kernel = ops.convert_to_tensor(self.kernel)
        return self._draw(kernel, training, self._mask_shape(), of_samples=False)


@keras.saving.register_keras_serializable(package="fastdrop")
class DropConnectDense(DropConnect, keras.layers.Dense):
    """Is a `keras.layers.Dense` whose weights are dropped (DropConnect).

    In training, the layer drops each element of its kernel independently with probability `rate`,
    and multiplies the others by `1 / (1 - rate)`. All samples of a batch have one mask; the paper
    draws a mask for each sample. The bias is not dropped. The mask is the one that
    `fastdrop.dropout(kernel, rate, seed=seed)` draws, and the layer's seed and rate work as those
    of `fastdrop_keras.Dropout`, with `RateSchedule`, `mc_predict`, files and gradient checkpointing
    too.

    In inference, the layer uses the kernel as it is. That is the mean of the outputs before the
    activation. The paper instead draws these sums from a normal distribution of the same mean and
    variance, and averages the activations. `mc_predict` averages over masks.

    With LoRA, the sum of the kernel and its update is dropped. The layer cannot be quantized.

    Args:
        units: Positive integer, the size of the output.
        rate: Float between 0 and 1. Fraction of the weights to drop.
        activation: The activation function, as for `keras.layers.Dense`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The other arguments of `keras.layers.Dense`, such as `use_bias`.

    Call arguments:
        inputs: Tensor of shape `(batch_size, ..., input_dim)`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        `(batch_size, ..., units)`.

    Raises:
        TypeError, ValueError: If an argument is not valid, as for `keras.layers.Dense` and
            `fastdrop_keras.Dropout`.
        NotImplementedError: If the layer is quantized.

    Reference:

    - [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)

    Example:

    >>> import tensorflow as tf
    >>> layer = DropConnectDense(4, 0.5, kernel_initializer="ones", seed=42)
    >>> layer(tf.eye(2), training=True).numpy()
    array([[0., 0., 2., 2.],
           [2., 0., 2., 2.]], dtype=float32)
    >>> layer(tf.eye(2)).numpy()
    array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """

    def __init__(
        self,
        units: int,
        rate: float,
        activation: Any = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Before Keras draws seeds for the initializers.
        rate, seed = self._checked_rate(rate), checked_seed(seed)
        keras.layers.Dense.__init__(self, units, activation, **kwargs)
        self._add_value_and_seed(rate, seed)

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Return the outputs, with a thinned kernel in training."""
        outputs = ops.matmul(inputs, self._thinned_kernel(training))
        if self.bias is not None:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return the output's shape."""
        shape: tuple[int | None, ...] = keras.layers.Dense.compute_output_shape(self, input_shape)
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        config = keras.layers.Dense.get_config(self)
        return {**config, "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="fastdrop")
class DropConnectConv2D(DropConnect, keras.layers.Conv2D):
    """Is a `keras.layers.Conv2D` whose weights are dropped (DropConnect).

    In training, the layer drops each element of its kernel, of shape `(height, width, channels,
    filters)`, as `fastdrop_keras.DropConnectDense` does: one mask for all samples and all
    positions.

    Args:
        filters: Positive integer, the number of output channels.
        kernel_size: Integer, or tuple or list of two, the size of the kernel.
        rate: Float between 0 and 1. Fraction of the weights to drop.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The other arguments of `keras.layers.Conv2D`, such as `strides`.

    Call arguments:
        inputs: Tensor of four dimensions, as for `keras.layers.Conv2D`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        As for `keras.layers.Conv2D`.

    Raises:
        TypeError, ValueError: If an argument is not valid, as for `keras.layers.Conv2D` and
            `fastdrop_keras.Dropout`.
        NotImplementedError: If the layer is quantized.

    Reference:

    - [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)

    Example:

    >>> import tensorflow as tf
    >>> layer = DropConnectConv2D(4, 1, 0.5, kernel_initializer="ones", seed=42)
    >>> layer(tf.eye(2)[tf.newaxis, tf.newaxis], training=True).numpy()
    array([[[[0., 0., 2., 2.],
             [2., 0., 2., 2.]]]], dtype=float32)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        rate: float,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        rate, seed = self._checked_rate(rate), checked_seed(seed)
        keras.layers.Conv2D.__init__(self, filters, kernel_size, **kwargs)
        self._add_value_and_seed(rate, seed)

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Return the outputs, with a thinned kernel in training."""
        outputs = self.convolution_op(inputs, self._thinned_kernel(training))
        if self.bias is not None:
            first = self.data_format == "channels_first"
            outputs = ops.add(outputs, ops.reshape(self.bias, (1, -1, 1, 1) if first else (-1,)))
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return the output's shape."""
        shape: tuple[int | None, ...] = keras.layers.Conv2D.compute_output_shape(self, input_shape)
        return shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        config = keras.layers.Conv2D.get_config(self)
        return {**config, "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="fastdrop")
class DropBlock2D(RandomLayer):
    """Drops blocks of images or feature maps (DropBlock).

    In training, blocks of `block_size` are placed at random, and may overlap. All elements in a
    block become zero, even those that were NaN or infinite. Each position at which a block lies
    within the image has a block with probability

        rate / (block_height * block_width) * (height * width)
            / ((height - block_height + 1) * (width - block_width + 1)),

    so about `rate` of the elements are dropped, and fewer if blocks overlap. The other elements are
    multiplied by the number of all elements of the batch over the number of kept ones. In inference
    the layer returns its inputs.

    As in the authors' code, a block that is larger than the image becomes as large as the image.

    The positions are those that `fastdrop.dropout` drops in an array of shape `(samples,
    height - block_height + 1, width - block_width + 1, channels)`. The layer's seed and rate work
    as those of `fastdrop_keras.Dropout`.

    Args:
        rate: Float between 0 and 1. Fraction of the elements to drop.
        block_size: Positive integer, or tuple or list of two for the height and the width of the
            blocks.
        data_format: `"channels_first"` or `"channels_last"`, or `None` for the value of
            `keras.config.image_data_format()`.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        per_channel: Boolean, whether each channel has blocks of its own, as in the paper and in the
            authors' code. `False` drops the same blocks in all channels, which is faster.
        name, dtype, **kwargs: The arguments of every Keras layer.

    Call arguments:
        inputs: Tensor of shape `(samples, channels, rows, cols)` if
            `data_format="channels_first"`, else `(samples, rows, cols, channels)`, and a dtype as
            for `Dropout`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If `rate`, `block_size` or `seed` has the wrong type; in training, if the inputs
            have another dtype.
        ValueError: If an argument is not a valid value.

    Reference:

    - [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890)

    Example:

    >>> import tensorflow as tf
    >>> layer = DropBlock2D(0.2, block_size=2, seed=5)
    >>> layer(tf.ones((1, 4, 5, 1)), training=True).numpy()[0, :, :, 0]
    array([[1.25, 1.25, 1.25, 1.25, 1.25],
           [1.25, 1.25, 1.25, 1.25, 1.25],
           [1.25, 0.  , 0.  , 1.25, 1.25],
           [1.25, 0.  , 0.  , 1.25, 1.25]], dtype=float32)
    """

    _input_rank = 4

    def __init__(
        self,
        rate: float,
        block_size: int | Sequence[int],
        data_format: str | None = None,
        seed: int | None = None,
        per_channel: bool = True,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        sizes = tuple(block_size) if isinstance(block_size, (tuple, list)) else (block_size,) * 2
        if len(sizes) != 2:
            raise wrong_value("block_size", "a positive integer or two", repr(block_size))
        sizes = tuple(checked_count(size, "block_size") for size in sizes)
        data_format = checked_data_format(data_format)
        RandomLayer.__init__(self, rate, seed, name, dtype, **kwargs)
        self.block_size: tuple[int, ...] = sizes
        self.data_format = data_format
        self.per_channel = bool(per_channel)
        first = self.data_format == "channels_first"
        self._channel_axis, self._image_axes = (1, (2, 3)) if first else (3, (1, 2))

    def _mask_shape(self) -> NoiseShape:
        return tuple(
            1 if axis == self._channel_axis and not self.per_channel else None for axis in range(4)
        )

    def _operation(self, inputs: Any, seed: Any, mask_shape: NoiseShape | None) -> tuple[Any, Any]:
        if in_symbolic_scope():
            return inputs, None  # Keras computes shapes, and JAX has no sizes of images there
        ones, factor = self._positions(inputs, mask_shape)
        rate = BACKEND.scaled(self._rate.read(), factor)
        drawn, saved = BACKEND.dropout(ones, seed, rate, None)
        return self._without_blocks(inputs, drawn), saved

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        ones, _ = self._positions(inputs, mask_shape)
        return self._without_blocks(inputs, BACKEND.dropout_again(ones, saved, None))

    def _positions(self, inputs: Any, mask_shape: NoiseShape | None) -> tuple[Any, Any]:
        """Return ones for the positions of blocks, and their rate over the layer's rate."""
        check_floats(inputs)
        shape = list(ops.shape(inputs))
        factor: Any = 1.0
        for axis, block in zip(self._image_axes, self.block_size, strict=True):
            size = shape[axis]
            if isinstance(size, int):
                block = _window(size, block)
                shape[axis] = max(size, 1) - block + 1
                factor *= size / (block * shape[axis])
            else:
                shape[axis] = ops.maximum(size - block + 1, 1)
                size, positions = (ops.cast(number, "float64") for number in (size, shape[axis]))
                factor *= size / ((size - positions + 1) * positions)
        entries = mask_shape or (None,) * 4
        sizes = zip(entries, shape, strict=True)
        return ops.ones([size if entry is None else entry for entry, size in sizes]), factor

    def _without_blocks(self, inputs: Any, drawn: Any) -> Any:
        """Drop the blocks that begin where `drawn` is zero, and scale the rest."""
        shape = ops.shape(inputs)
        around, image = [(0, 0)] * 4, [slice(None)] * 4
        windows = []
        for axis, block in zip(self._image_axes, self.block_size, strict=True):
            windows.append(_window(shape[axis], block))
            around[axis] = (windows[-1] - 1, windows[-1] - 1)
            # A window may turn out to be larger than the image at run time.
            image[axis] = slice(shape[axis])
        starts = ops.pad(ops.cast(drawn == 0, "float32"), around)
        blocks = ops.max_pool(starts, tuple(windows), strides=1, data_format=self.data_format)
        kept = blocks[tuple(image)] == 0
        # Integers, since their sum does not depend on the order.
        count = ops.maximum(ops.sum(ops.cast(kept, "int32")), 1)
        wide = keras.backend.result_type(inputs.dtype, "float32")
        size = math.prod(ops.shape(kept))
        scale = ops.cast(size, wide) / ops.cast(count, wide)
        outputs = ops.cast(ops.cast(inputs, wide) * scale, inputs.dtype)
        return ops.where(kept, outputs, ops.zeros_like(outputs))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        return {
            **RandomLayer.get_config(self),
            "block_size": self.block_size,
            "data_format": self.data_format,
            "per_channel": self.per_channel,
        }


def _window(size: Any, block: int) -> int:
    """Return a block's size along an axis, if the axis has a size that is known."""
    return min(block, max(size, 1)) if isinstance(size, int) else block


@keras.saving.register_keras_serializable(package="fastdrop")
class StochasticDepth(RandomLayer):
    """Drops whole samples, at the end of a residual branch (stochastic depth, DropPath).

    In training, the layer drops each sample of the batch as a whole with probability `rate`, so
    that only the shortcut remains of the residual block. It multiplies the other samples by
    `1 / (1 - rate)`. In inference it returns its inputs. The paper instead multiplies the branch by
    `1 - rate` in inference. Otherwise the layer is like `fastdrop_keras.Dropout` with the
    `noise_shape` `(None, 1, 1, ...)`, with the same masks and errors.

    Keras's ConvNeXt and KerasHub's Swin Transformer, MiT and MobileNetV5 have such layers of their
    own. `fastdrop_keras.convert` replaces them.

    Args:
        rate: Float between 0 and 1. Fraction of the samples to drop.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        name, dtype, **kwargs: The arguments of every Keras layer.

    Call arguments:
        inputs: Tensor of shape `(samples, ...)`, and a dtype as for `Dropout`.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Reference:

    - [Huang et al., 2016](https://arxiv.org/abs/1603.09382)

    Example:

    >>> import tensorflow as tf
    >>> layer = StochasticDepth(0.5, seed=42)
    >>> layer(tf.ones((4, 2)), training=True).numpy()
    array([[0., 0.],
           [0., 0.],
           [2., 2.],
           [2., 2.]], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        RandomLayer.__init__(self, rate, seed, name, dtype, **kwargs)
        self.input_spec = keras.layers.InputSpec(min_ndim=1)

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Drop samples in training, and return the inputs in inference."""
        return self._draw(inputs, training, (None, *(1,) * (len(inputs.shape) - 1)))

    def _mask_shape(self) -> NoiseShape | None:
        return None  # it depends on the rank of the inputs
