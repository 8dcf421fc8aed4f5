"""The Keras layers: Keras's own arguments, errors and configuration in front of the bridge."""

from __future__ import annotations

import contextlib
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

from fastdrop_keras import bridge, recomputation, sampling, seed_state, surroundings
from fastdrop_keras.dial import Dial
from fastdrop_keras.noise_shape import NoiseShape

# Reentrant: a signal's handler may call a layer while its own thread is in here.
_taking_a_seed = threading.RLock()


def _forget_the_lock() -> None:
    """In a forked child, whose parent's other threads are not there to release it."""
    global _taking_a_seed
    _taking_a_seed = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_lock)


class BaseDropout(keras.layers.Layer):
    """What the dropout layers share: all but the shape of the mask.

    Args:
        rate: Float between 0 and 1.
        seed: Integer or `None`.
        **kwargs: What every Keras layer takes.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._dial = Dial(checked_rate(rate))
        self.seed = checked_seed(seed)
        # At rate 0 too: the rate can be raised later.
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self._seed_state = seed_state.SeedState(self.seed_generator)
        self._seed_checkpoint = seed_state.Checkpointed(self.seed_generator)
        self.supports_masking = True
        # XLA compiles no Python functions. Keras then runs the model without it.
        self.supports_jit = False
        # There is nothing to build, unless a subclass says so.
        self.built = type(self).build is keras.layers.Layer.build

    @property
    def rate(self) -> float:
        """The fraction of the input units to drop.

        Setting it takes effect at the next step, in compiled models and `tf.function`s too,
        without retracing.

        Raises:
            TypeError: If the value is not a number.
            ValueError: If it is not between 0 and 1.
        """
        return self._dial.rate

    @rate.setter
    def rate(self, value: float) -> None:
        self._dial.rate = checked_rate(value)

    def call(self, inputs: tf.Tensor, training: bool | tf.Tensor | None = False) -> tf.Tensor:
        """Drop in training, pass the inputs through otherwise."""
        sampler = sampling.current()
        if sampler is not None:
            seed, mask_shape = sampler.draw(self, inputs, self._mask_shape())
            return bridge.dropout(inputs, seed, self._dial, mask_shape)[0]
        if tf.is_tensor(training):
            return tf.cond(
                tf.cast(training, tf.bool),
                lambda: self.call(inputs, training=True),
                lambda: self.call(inputs, training=False),
            )
        around = surroundings.find()
        if around is None:
            return self._drop(inputs, None)[0] if training else inputs
        return self._call_once(inputs, bool(training), around)

    def _drop(
        self, inputs: tf.Tensor, around: surroundings.Surroundings | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return bridge.dropout(inputs, self._next_seed(around), self._dial, self._mask_shape())

    def _call_once(
        self, inputs: tf.Tensor, training: bool, around: surroundings.Surroundings
    ) -> tf.Tensor:
        """Call the layer where TensorFlow may do it again to compute a gradient."""
        recomputation.check(around, self._dial, training)
        outputs, residual = inputs, None
        if around.repeated:
            residual = recomputation.repeat(around.repeated, self._dial, training)
            if residual is not None:
                outputs = bridge.dropout_again(inputs, residual, self._mask_shape())
        elif training:
            recomputation.check_calls_of_function()
            outputs, residual = self._drop(inputs, around)
        recomputation.record(around, self._dial, residual)
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

    def _next_seed(self, around: surroundings.Surroundings | None) -> tf.Tensor:
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
            if isinstance(state.value, tf.Variable):
                state.value.assign_add(step, read_value=False)
            else:  # in `keras.StatelessScope`
                state.assign(seed + step)
        numbers = list(around.iterations) if around is not None else []
        if distributed:
            replica = tf.distribute.get_replica_context()
            if replica is not None:
                numbers.append(replica.replica_id_in_sync_group)
        if not numbers:
            return seed
        # Replicas and iterations of a vectorized loop have the same generator state, and must not
        # draw the same masks.
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

    In training, each input unit is dropped with probability `rate`, independently, and becomes
    zero, even where it was NaN or infinite; the others are multiplied by `1 / (1 - rate)`, so
    that the expected sum stays what it was. In inference the layer returns its inputs.

    What is dropped is a pure function of the seed, the number of the call, the rate and the
    position in the mask: the same in eager and in graph mode, and on every CPU and number of
    threads. It is also what `fastdrop.dropout` drops with the same seed and step. The gradient
    uses the mask of the forward pass, which is all that is kept in between, at one bit an element.
    So does what is computed again under gradient checkpointing: `keras.remat`,
    `keras.RematScope`, `tf.recompute_grad`. In `tf.vectorized_map`, each iteration has a mask of
    its own.

    The layer runs on the CPU; the seed's state is saved and restored with the model, with its
    weights and with `tf.train.Checkpoint`; and the attribute `rate` can be set at any time, also
    while training. XLA cannot compile the layer: under `jit_compile=True`, Keras warns and goes
    on without.

    Args:
        rate: Float between 0 and 1. Fraction of the input units to drop.
        noise_shape: Tuple or list of integers or `None`: the shape of the mask, which is
            broadcast against the input. `None` stands for the input's size there. For inputs of
            shape `(batch_size, timesteps, features)`, `noise_shape=(None, 1, None)` drops the
            same features in all time steps.
        seed: Integer from 0 to 2**63 - 1, or `None` for one that `keras.utils.set_random_seed`
            determines.
        **kwargs: What every Keras layer takes: `name`, `dtype`, `trainable` and so on.

    Call arguments:
        inputs: Tensor of up to 64 dimensions, of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        That of the input.

    Raises:
        TypeError: If `rate` or `seed` is of the wrong type; in training, if the inputs are of
            another dtype, sparse or ragged.
        ValueError: If `rate`, `seed` or `noise_shape` is not a valid value; in training, if
            `noise_shape` does not fit the inputs. Where only the run of a graph can know, it
            raises `tf.errors.InvalidArgumentError`.

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

    Where neighbouring time steps of a feature map are strongly correlated, dropping single
    elements regularizes little. This layer draws once for each feature map of each sample, and
    drops all of it or nothing. In all else it is like `fastdrop_keras.Dropout`.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        seed: Integer from 0 to 2**63 - 1, or `None` for one that `keras.utils.set_random_seed`
            determines.
        name: String, the layer's name.
        dtype: The dtype of the computation, or a `keras.DTypePolicy`.
        **kwargs: What else every Keras layer takes.

    Call arguments:
        inputs: A 3D tensor of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Input shape:
        `(samples, timesteps, channels)`

    Output shape:
        That of the input.

    Raises:
        TypeError: If `rate` or `seed` is of the wrong type; in training, if the inputs are of
            another dtype, sparse or ragged.
        ValueError: If `rate` or `seed` is not a valid value, or the inputs are of another rank.

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
    """What the layers for images and volumes share: `data_format` and where it puts the channels.

    Args:
        rate: Float between 0 and 1.
        data_format: `"channels_first"`, `"channels_last"` or `None`.
        seed: Integer or `None`.
        name: String or `None`.
        dtype: Dtype or policy or `None`.
        **kwargs: What else every Keras layer takes.
    """

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

    Where neighbouring pixels of a feature map are strongly correlated, as in early convolution
    layers, dropping single elements regularizes little. This layer draws once for each feature
    map of each sample, and drops all of it or nothing. In all else it is like
    `fastdrop_keras.Dropout`.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        data_format: `"channels_first"` or `"channels_last"`, or `None` for what
            `keras.config.image_data_format()` says.
        seed: Integer from 0 to 2**63 - 1, or `None` for one that `keras.utils.set_random_seed`
            determines.
        name: String, the layer's name.
        dtype: The dtype of the computation, or a `keras.DTypePolicy`.
        **kwargs: What else every Keras layer takes.

    Call arguments:
        inputs: A 4D tensor of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Input shape:
        `(samples, channels, rows, cols)` if `data_format="channels_first"`,
        `(samples, rows, cols, channels)` if `data_format="channels_last"`.

    Output shape:
        That of the input.

    Raises:
        TypeError: If `rate` or `seed` is of the wrong type; in training, if the inputs are of
            another dtype, sparse or ragged.
        ValueError: If `rate`, `data_format` or `seed` is not a valid value, or the inputs are of
            another rank.

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

    Where neighbouring voxels of a feature map are strongly correlated, as in early convolution
    layers, dropping single elements regularizes little. This layer draws once for each feature
    map of each sample, and drops all of it or nothing. In all else it is like
    `fastdrop_keras.Dropout`.

    Args:
        rate: Float between 0 and 1. Fraction of the feature maps to drop.
        data_format: `"channels_first"` or `"channels_last"`, or `None` for what
            `keras.config.image_data_format()` says.
        seed: Integer from 0 to 2**63 - 1, or `None` for one that `keras.utils.set_random_seed`
            determines.
        name: String, the layer's name.
        dtype: The dtype of the computation, or a `keras.DTypePolicy`.
        **kwargs: What else every Keras layer takes.

    Call arguments:
        inputs: A 5D tensor of dtype float16, bfloat16, float32 or float64.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Input shape:
        `(samples, channels, dim1, dim2, dim3)` if `data_format="channels_first"`,
        `(samples, dim1, dim2, dim3, channels)` if `data_format="channels_last"`.

    Output shape:
        That of the input.

    Raises:
        TypeError: If `rate` or `seed` is of the wrong type; in training, if the inputs are of
            another dtype, sparse or ragged.
        ValueError: If `rate`, `data_format` or `seed` is not a valid value, or the inputs are of
            another rank.

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
    problem = (
        f"Invalid value received for argument `{argument}`. Expected a float value between 0 and 1."
    )
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise TypeError(f"{problem} Received: {argument}={rate!r} (of type {type(rate).__name__})")
    # What is used is what is checked: a subclass may convert to another number than it compares as.
    number = float(rate) if 0 <= rate <= 1 else math.nan
    # Written so that NaN fails.
    if not 0 <= number <= 1:
        raise ValueError(f"{problem} Received: {argument}={_shown(rate)}")
    return number


def _shown(number: Any) -> str:
    """Return a number for an error message: Python prints no int of more than some 4,000 digits."""
    try:
        return str(number)
    except ValueError:
        return f"an integer of {number.bit_length()} bits"


def checked_seed(seed: Any) -> int | None:
    """Return `seed` as a Python integer that Keras's seed generators can hold."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise TypeError(
            "Invalid value received for argument `seed`. Expected an integer or None. "
            f"Received: seed={seed!r} (of type {type(seed).__name__})"
        )
    number = operator.index(seed)
    if not 0 <= number < 2**63:
        raise ValueError(
            "Invalid value received for argument `seed`. Expected an integer from 0 to 2**63 - 1 "
            f"or None. Received: seed={_shown(number)}"
        )
    return number


def _checked_noise_shape(noise_shape: Any) -> NoiseShape | None:
    """Return `noise_shape` as a tuple of positive integers and `None`s."""
    if noise_shape is None:
        return None
    problem = "Invalid value received for argument `noise_shape`."
    if isinstance(noise_shape, str) or not isinstance(noise_shape, Iterable):
        raise ValueError(
            f"{problem} Expected a tuple or list of integers. Received: noise_shape={noise_shape!r}"
        )
    noise_shape = tuple(noise_shape)
    for index, entry in enumerate(noise_shape):
        if entry is None:
            continue
        if isinstance(entry, bool) or not isinstance(entry, numbers.Integral):
            raise ValueError(
                f"{problem} Expected all elements to be integers or None. "
                f"Received: noise_shape={noise_shape}, with {entry!r} at index {index}"
            )
        if entry <= 0:
            raise ValueError(
                f"{problem} Expected all dimensions to be positive integers or None. "
                f"Received: noise_shape={noise_shape}, with {entry} at index {index}"
            )
    return tuple(None if entry is None else operator.index(entry) for entry in noise_shape)


def _checked_data_format(data_format: str | None) -> str:
    """Return `data_format`, or what Keras is configured to where it is `None`."""
    if data_format is None:
        return keras.config.image_data_format()
    if data_format not in ("channels_first", "channels_last"):
        raise ValueError(
            "Invalid value received for argument `data_format`. Expected 'channels_first', "
            f"'channels_last' or None. Received: data_format={data_format!r}"
        )
    return data_format
