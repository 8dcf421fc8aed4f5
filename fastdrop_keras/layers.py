"""Defines the Keras layers, with the arguments, errors and configurations of Keras's own."""

from __future__ import annotations

import contextlib
import contextvars
import math
import numbers
import operator
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import in_stateless_scope

from fastdrop_keras import bridge, checkpointing, layer_state
from fastdrop_keras.native_bridge import NoiseShape

# Draws for the layers in inference, if `mc_predict` set it in this thread.
sampler: contextvars.ContextVar[Any] = contextvars.ContextVar("sampler", default=None)

# Reentrant: a signal's handler may call a layer while its own thread is in here.
_taking_a_seed = threading.RLock()


def _forget_the_lock() -> None:
    """In a forked child, whose parent's other threads are not there to release it."""
    global _taking_a_seed
    _taking_a_seed = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_lock)


class BaseDropout(keras.layers.Layer):
    """Implements the dropout layers, except for the shape of the mask."""

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rate = layer_state.Rate(checked_rate(rate))
        self.seed = checked_seed(seed)
        # At rate 0 too: the rate can be raised later.
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self._seed_state = layer_state.SeedState(self.seed_generator)
        self._tracked_state = layer_state.Tracked(self.seed_generator, self._rate)
        self.supports_masking = True
        # XLA cannot compile the bridges. Keras then runs the model without it.
        self.supports_jit = False
        # There is nothing to build, unless a subclass says so.
        self.built = type(self).build is keras.layers.Layer.build

    @property
    def rate(self) -> float:
        """The fraction of the input units to drop.

        Setting it takes effect at the next step, in compiled models and `tf.function`s too,
        without retracing. In a function that is being traced, it holds for the calls after it.

        Raises:
            TypeError: If the value is not a number.
            ValueError: If it is not between 0 and 1.
        """
        return self._rate.value

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate.value = checked_rate(value)

    def call(self, inputs: tf.Tensor, training: bool | tf.Tensor | None = False) -> tf.Tensor:
        """Drop in training, pass the inputs through otherwise."""
        drawing = sampler.get()
        if drawing is not None:
            seed, mask_shape = drawing.draw(self, inputs, self._mask_shape())
            return bridge.dropout(inputs, seed, self._rate.read(), mask_shape)[0]
        if tf.is_tensor(training):
            return tf.cond(
                tf.cast(training, tf.bool),
                lambda: self.call(inputs, training=True),
                lambda: self.call(inputs, training=False),
            )
        mask_shape = self._mask_shape()
        reading, writing = checkpointing.runs_around(self, bool(training))
        if reading is not None:
            saved = reading.read(self, bool(training))
            outputs = inputs
            if saved is not None:
                outputs = bridge.dropout_again(inputs, saved, mask_shape)
        elif training:
            seed = self._next_seed()
            outputs, saved = bridge.dropout(inputs, seed, self._rate.read(), mask_shape)
        else:
            outputs, saved = inputs, None
        for run in writing:
            run.write(self, saved)
        return outputs

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `layer_call` as it is; called by Keras for a layer made in a `RematScope`.

        Between forward pass and gradient the layer keeps one bit an element. To compute it again,
        TensorFlow would keep all of its inputs.
        """
        return layer_call

    def _mask_shape(self) -> NoiseShape | None:
        """Return the mask's shape, with `None` where it is the input's."""
        raise NotImplementedError

    def _next_seed(self) -> tf.Tensor:
        """Return the next (low word of the seed, step), and a high word if several draw at once."""
        # The next of the generator as its `next` gives it, in two operations instead of five.
        state = self.seed_generator.state
        distributed = tf.distribute.has_strategy()
        # Between reading and advancing no other thread may read: both would drop the same. Replicas
        # wait for each other on the way, and a graph's threads know nothing of Python's locks.
        alone = tf.executing_eagerly() and not distributed
        with _taking_a_seed if alone else contextlib.nullcontext():
            seed = tf.convert_to_tensor(state)
            step = tf.constant([0, 1], seed.dtype)
            if in_stateless_scope():
                state.assign(seed + step)  # which the scope keeps for its caller
            else:
                state.value.assign_add(step, read_value=False)
        # Replicas and iterations of a vectorized loop have the same generator state, and must not
        # draw the same masks.
        numbers = [] if tf.executing_eagerly() else layer_state.vectorized_loops()[::-1]
        if distributed:
            replica = tf.distribute.get_replica_context()
            if replica is not None:
                numbers.append(replica.replica_id_in_sync_group)
        if not numbers:
            return seed
        high, *rest = (tf.cast(number, seed.dtype) for number in reversed(numbers))
        for number in rest:
            high = high * 2**24 + number
        return tf.concat([seed, tf.reshape(high, [1])], axis=0)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return `input_shape`: dropout changes no shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer again, with the rate of now."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="fastdrop")
class Dropout(BaseDropout):
    """Applies dropout to the input, as `keras.layers.Dropout` does.

    In training, the layer drops each input unit with probability `rate`, independently: the unit
    becomes zero, even if it was NaN or infinite. It multiplies the others by `1 / (1 - rate)`, so
    that the expected sum stays the same. In inference it returns its inputs.

    The mask is a pure function of the seed, the number of the call, the rate and the position: the
    same in eager and in graph mode, on every CPU and with any number of threads, and the same as
    that of `fastdrop.dropout` with this seed and step. The gradient uses the mask of the forward
    pass, which the layer keeps in between, at one bit an element. So does a recomputation under
    gradient checkpointing: `keras.remat`, `keras.RematScope`, `tf.recompute_grad`. In
    `tf.vectorized_map`, each iteration has its own mask.

    The layer runs on the CPU. Models, weights and `tf.train.Checkpoint` save the seed's state. The
    attribute `rate` can be set at any time, also while training. XLA cannot compile the layer:
    under `jit_compile=True`, Keras warns and goes on without.

    Args:
        rate: Float between 0 and 1. Fraction of the input units to drop.
        noise_shape: Tuple or list of integers or `None`: the shape of the mask, which is
            broadcast against the input. `None` stands for the input's size there. For inputs of
            shape `(batch_size, timesteps, features)`, `noise_shape=(None, 1, None)` drops the
            same features in all time steps.
        seed: Integer from 0 to 2**63 - 1, or `None` for one that `keras.utils.set_random_seed`
            determines.
        **kwargs: The arguments of every Keras layer: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        The shape of the input.

    Raises:
        TypeError: If `rate` or `seed` is of the wrong type; in training, if the inputs are of
            another dtype, sparse or ragged.
        ValueError: If `rate`, `seed` or `noise_shape` is not a valid value; in training, if
            `noise_shape` does not fit the inputs. If only the run of a graph can know, it raises
            `tf.errors.InvalidArgumentError`.

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
        super().__init__(rate, seed=seed, **kwargs)
        self.noise_shape = _checked_noise_shape(noise_shape)

    def _mask_shape(self) -> NoiseShape | None:
        return self.noise_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer again, with the rate of now."""
        return {**super().get_config(), "noise_shape": self.noise_shape}


@keras.saving.register_keras_serializable(package="fastdrop")
class SpatialDropout1D(BaseDropout):
    """Drops entire 1D feature maps, as `keras.layers.SpatialDropout1D` does.

    It draws once for each feature map of each sample, and drops all of the map or nothing. This
    regularizes better than single elements where neighbouring time steps are strongly
    correlated. Otherwise it is like `fastdrop_keras.Dropout`, and raises the same errors.

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

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, seed=seed, name=name, dtype=dtype, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=3)

    def _mask_shape(self) -> NoiseShape:
        return (None, 1, None)


class BaseSpatialDropout(BaseDropout):
    """Adds `data_format` for the layers for images and volumes."""

    _spatial_dimensions: int

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, seed=seed, name=name, dtype=dtype, **kwargs)
        self.data_format = _checked_data_format(data_format)
        self.input_spec = keras.layers.InputSpec(ndim=self._spatial_dimensions + 2)

    def _mask_shape(self) -> NoiseShape:
        ones = (1,) * self._spatial_dimensions
        if self.data_format == "channels_first":
            return (None, None, *ones)
        return (None, *ones, None)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer again, with the rate of now."""
        return {**super().get_config(), "data_format": self.data_format}


@keras.saving.register_keras_serializable(package="fastdrop")
class SpatialDropout2D(BaseSpatialDropout):
    """Drops entire 2D feature maps, as `keras.layers.SpatialDropout2D` does.

    It draws once for each feature map of each sample, and drops all of the map or nothing. This
    regularizes better than single elements where neighbouring pixels are strongly
    correlated. Otherwise it is like `fastdrop_keras.Dropout`, and raises the same errors.

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

    _spatial_dimensions = 2


@keras.saving.register_keras_serializable(package="fastdrop")
class SpatialDropout3D(BaseSpatialDropout):
    """Drops entire 3D feature maps, as `keras.layers.SpatialDropout3D` does.

    It draws once for each feature map of each sample, and drops all of the map or nothing. This
    regularizes better than single elements where neighbouring voxels are strongly
    correlated. Otherwise it is like `fastdrop_keras.Dropout`, and raises the same errors.

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

    _spatial_dimensions = 3


def checked_rate(rate: Any, argument: str = "rate") -> float:
    """Return the rate that was given as `argument` as a Python float."""
    expected = "a float value between 0 and 1"
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise wrong_type(argument, expected, rate)
    # The number that is used is checked: a subclass may compare as another number than it is.
    number = float(rate) if 0 <= rate <= 1 else math.nan
    # Written so that NaN fails.
    if not 0 <= number <= 1:
        raise wrong_value(argument, expected, rate)
    return number


def checked_seed(seed: Any) -> int | None:
    """Return `seed` as a Python integer that Keras's seed generators can hold."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise wrong_type("seed", "an integer or None", seed)
    number = operator.index(seed)
    if not 0 <= number < 2**63:
        raise wrong_value("seed", "an integer from 0 to 2**63 - 1 or None", number)
    return number


def checked_count(value: Any, argument: str) -> int:
    """Return the positive integer that was given as `argument`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise wrong_type(argument, "a positive integer", value)
    if value < 1:
        raise wrong_value(argument, "a positive integer", value)
    return int(value)


def _checked_noise_shape(noise_shape: Any) -> NoiseShape | None:
    """Return `noise_shape` as a tuple of positive integers and `None`s."""
    if noise_shape is None:
        return None
    if isinstance(noise_shape, str) or not isinstance(noise_shape, Iterable):
        raise wrong_value("noise_shape", "a tuple or list of integers", repr(noise_shape))
    noise_shape = tuple(noise_shape)
    for index, entry in enumerate(noise_shape):
        integer = isinstance(entry, numbers.Integral) and not isinstance(entry, bool)
        if entry is not None and not (integer and entry > 0):
            kind = "dimensions to be positive integers" if integer else "elements to be integers"
            found = f"{noise_shape}, with {entry!r} at index {index}"
            raise wrong_value("noise_shape", f"all {kind} or None", found)
    return tuple(None if entry is None else operator.index(entry) for entry in noise_shape)


def _checked_data_format(data_format: str | None) -> str:
    """Return `data_format`, or the one that Keras is configured to."""
    if data_format is None:
        return str(keras.config.image_data_format())
    if data_format not in ("channels_first", "channels_last"):
        formats = "'channels_first', 'channels_last' or None"
        raise wrong_value("data_format", formats, repr(data_format))
    return data_format


def wrong_type(argument: str, expected: str, value: Any) -> TypeError:
    """Return the error for a value of the wrong type."""
    return TypeError(_message(argument, expected, f"{value!r} (of type {type(value).__name__})"))


def wrong_value(argument: str, expected: str, value: Any) -> ValueError:
    """Return the error for an invalid value."""
    try:
        return ValueError(_message(argument, expected, str(value)))
    except ValueError:
        # Python prints no integer of more than some 4,000 digits.
        return ValueError(_message(argument, expected, f"an integer of {value.bit_length()} bits"))


def _message(argument: str, expected: str, received: str) -> str:
    return (
        f"Invalid value received for argument `{argument}`. Expected {expected}. "
        f"Received: {argument}={received}"
    )
