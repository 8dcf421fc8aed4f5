"""Defines dropout layers with the arguments, errors and configurations of Keras's own.

It also finds these layers in a model, and checks the arguments of this package's functions.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import inspect
import math
import numbers
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

import fastdrop
from fastdrop_keras import layer_state
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.blocks import Setting
from fastdrop_keras.inputs import NoiseShape

# In this thread, `mc_predict` sets the object that gives each layer its seed, also in inference.
sampler = Setting("sampler", None)


class BaseDropout(keras.layers.Dropout):
    """Implements a dropout layer, except for the mask's shape.

    It is an instance of Keras's class for `isinstance`, but uses none of its methods.
    """

    _input_rank: int | None = None  # any

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        keras.layers.Layer.__init__(self, name=name, dtype=dtype, **kwargs)
        if self._input_rank is not None:
            self.input_spec = keras.layers.InputSpec(ndim=self._input_rank)
        self._rate = BACKEND.Rate(checked_rate(rate))
        self.seed = checked_seed(seed)
        # Also at rate 0, since the rate can be raised later.
        self.seed_generator = BACKEND.new_seed_generator(self.seed)
        self.supports_masking = True
        # Where the framework's compiler cannot compile the layer, Keras runs the model without it.
        self.supports_jit = BACKEND.supports_jit()
        # Keras sets `built` only where a layer builds, and these layers have nothing to build.
        self.built = type(self).build is keras.layers.Layer.build

    @property
    def rate(self) -> float:
        """Float between 0 and 1. Fraction of the input units to drop.

        A new rate takes effect at the next step, in compiled models and `tf.function`s too,
        without retracing. If a function sets it while it is traced, its later calls use it.

        On JAX, functions take the rate as the last of the layer's `variables`: in `fit` the current
        one, and in `stateless_call` the one that it is given.

        Raises:
            TypeError: If the new rate is not a number.
            ValueError: If the new rate is not between 0 and 1.
            RuntimeError: On JAX, between the steps of `fit`, where Keras has taken the values of
                all variables, unless a callback calls `model.jax_state_sync()` first.
        """
        value: float = self._rate.value
        return value

    @rate.setter
    def rate(self, value: float) -> None:
        self._rate.value = checked_rate(value)

    @property
    def variables(self) -> list[Any]:
        """List of the variables: the seed's state and, on JAX, the bits of the rate."""
        return [*super().variables, *self._rate.variables]

    @property
    def seed_generator(self) -> keras.random.SeedGenerator:
        """`keras.random.SeedGenerator`. Its state is the seed and the step of the next call.

        A new generator takes effect in functions that are traced later. Files and checkpoints save
        the state of the current generator.
        """
        return self._seed_generator

    @seed_generator.setter
    def seed_generator(self, generator: keras.random.SeedGenerator) -> None:
        # Keras would keep the former generator's state among the layer's variables.
        self._tracker.untrack(vars(self).get("_seed_generator"))
        self._seed_generator = generator
        self._seed_state = layer_state.SeedState(generator)
        self._tracked_state = BACKEND.tracked(generator, self._rate)

    def call(self, inputs: Any, training: Any = False) -> Any:
        """Drop elements in training, and return the inputs in inference."""
        if type(inputs).__module__.startswith("tf_keras"):
            raise TypeError(
                "fastdrop_keras has layers for Keras 3. Received a tensor of Keras 2, from the "
                "package tf_keras, which is tf.keras if TF_USE_LEGACY_KERAS is set"
            )
        drawing = sampler.get()
        if drawing is not None:
            seed, mask_shape = drawing.draw(self, inputs, self._mask_shape())
            return BACKEND.dropout(inputs, seed, self._rate.read(), mask_shape)[0]
        if BACKEND.is_tensor(training):
            return BACKEND.cond(
                training,
                lambda: self.call(inputs, training=True),
                lambda: self.call(inputs, training=False),
            )
        mask_shape = self._mask_shape()
        reading, writing = BACKEND.runs_around(self, bool(training))
        if reading is not None:
            saved = reading.read(self, bool(training))
            outputs = inputs
            if saved is not None:
                outputs = BACKEND.dropout_again(inputs, saved, mask_shape)
        elif training:
            seed = BACKEND.next_seed(self.seed_generator)
            outputs, saved = BACKEND.dropout(inputs, seed, self._rate.read(), mask_shape)
        else:
            outputs, saved = inputs, None
        for run in writing:
            run.write(self, saved)
        return outputs

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `layer_call` unchanged; called by Keras for a layer made in a `RematScope`.

        The layer saves one bit for each element. Recomputation would save all of its inputs.
        """
        return layer_call

    def _mask_shape(self) -> NoiseShape | None:
        """Return the mask's shape, with `None` for the input's size."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return `input_shape`, which is the output's shape too."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        config = keras.layers.Layer.get_config(self)
        return {**config, "rate": self.rate, "seed": self.seed}


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
        BaseDropout.__init__(self, rate, seed=seed, **kwargs)
        self.noise_shape = _checked_noise_shape(noise_shape)

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
        BaseDropout.__init__(self, rate, seed, name, dtype, **kwargs)
        if data_format not in ("channels_first", "channels_last", None):
            formats = "'channels_first', 'channels_last' or None"
            raise wrong_value("data_format", formats, repr(data_format))
        self.data_format = data_format or keras.config.image_data_format()

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


# Our class for each of Keras's.
CLASSES: dict[type, type] = {
    getattr(keras.layers, ours.__name__): ours
    for ours in (Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D)
}

# Whether Keras's classes create our layers: in this context, with `None` for the global setting.
_made_here: contextvars.ContextVar[bool | None] = contextvars.ContextVar("made", default=None)
_made_everywhere = False
_new_of_keras = keras.layers.Dropout.__new__


def _new(keras_class: type, *args: Any, **kwargs: Any) -> Any:
    """Create a layer of `keras_class` or of our class, which Python initializes as a subclass."""
    here = _made_here.get()
    if _made_everywhere if here is None else here:
        keras_class = CLASSES.get(keras_class, keras_class)
    return _new_of_keras(keras_class, *args, **kwargs)


# `help` would print the signature of `_new`.
_new.__signature__ = inspect.signature(keras.layers.Dropout.__init__)  # type: ignore[attr-defined]
keras.layers.Dropout.__new__ = staticmethod(_new)


def enable() -> None:
    """Makes Keras's dropout classes create the layers of this package, in all threads.

    `keras.layers.Dropout(0.5)` then returns a `fastdrop_keras.Dropout`, also when Keras or other
    code calls it, for example in `MultiHeadAttention` and when a model is loaded. The same holds
    for `SpatialDropout1D`, `2D` and `3D`. Subclasses of Keras's layers do not change.

    Example:

    >>> import keras, fastdrop_keras
    >>> fastdrop_keras.enable()
    >>> isinstance(keras.layers.Dropout(0.5), fastdrop_keras.Dropout)
    True
    >>> fastdrop_keras.disable()
    >>> isinstance(keras.layers.Dropout(0.5), fastdrop_keras.Dropout)
    False
    """
    global _made_everywhere
    _made_everywhere = True


def disable() -> None:
    """Ends `fastdrop_keras.enable`. Existing layers do not change.

    Example:

    >>> import keras, fastdrop_keras
    >>> fastdrop_keras.disable()
    >>> type(keras.layers.Dropout(0.5)).__module__.partition(".")[0]
    'keras'
    """
    global _made_everywhere
    _made_everywhere = False


@contextlib.contextmanager
def enabled(value: bool = True) -> Iterator[None]:
    """Works as `fastdrop_keras.enable`, but only in a `with` statement and in its thread.

    Args:
        value: Boolean. `False` makes Keras's classes create Keras's layers.

    Example:

    >>> import keras, fastdrop_keras
    >>> with fastdrop_keras.enabled():  # or: model = keras.models.load_model("model.keras")
    ...     layer = keras.layers.MultiHeadAttention(2, 8, dropout=0.1)
    ...     y = layer(keras.ops.ones((1, 3, 8)), keras.ops.ones((1, 3, 8)))
    >>> type(layer._dropout_layer)
    <class 'fastdrop_keras.layers.Dropout'>
    """
    token = _made_here.set(value)
    try:
        yield
    finally:
        _made_here.reset(token)


def show_config() -> None:
    """Prints the installation's versions and settings, for bug reports.

    Prints the output of `fastdrop.show_config`, and the backend. For TensorFlow it also prints the
    bridge, and why the native bridge is not loaded.

    Example:

    >>> import fastdrop_keras
    >>> fastdrop_keras.show_config()  # doctest: +ELLIPSIS
    fastdrop ...
      bridge to TensorFlow ...
    """
    fastdrop.show_config()
    for line in BACKEND.config_lines():
        print(f"  {line}")


def dropout_layers(model: Any, needed_by: str) -> list[BaseDropout]:
    """Return the layers of this package in `model`, for the public function `needed_by`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it has no such layer.
    """
    check_model(model, needed_by)
    found = [layer for layer in model._flatten_layers() if isinstance(layer, BaseDropout)]
    if not found:
        raise ValueError(
            f"`{needed_by}` needs a model with dropout layers of fastdrop_keras, and the model "
            f"{model.name!r} has none. `model = fastdrop_keras.convert(model)` replaces Keras's "
            "dropout layers."
        )
    return found


def layers_with_paths(model: keras.Layer) -> Iterator[tuple[str, list[keras.Layer]]]:
    """Yield each layer in `model` once: a path of names, and the layers from `model` to it."""
    visited = {id(model)}
    waiting = [[model]]
    while waiting:
        line = waiting.pop()
        yield "/".join(layer.name for layer in line[1:]), line
        children = line[-1]._flatten_layers(include_self=False, recursive=False)
        new = [child for child in children if id(child) not in visited]
        visited.update(map(id, new))
        waiting.extend([*line, child] for child in reversed(new))


def models_with_layers_of(model: keras.Model, collected: bool = False) -> list[keras.Model]:
    """Return the other models in this process that have layers of `model`, and those in it."""
    own = {id(one) for one in model._flatten_layers() if type(one) is not keras.layers.InputLayer}
    alive = [one for one in gc.get_objects() if issubclass(type(one), keras.Model)]
    # Not those that are half made.
    alive = [one for one in alive if hasattr(one, "_layers")]
    excluded = {id(model)}
    for one in alive:
        if isinstance(one, keras.Sequential):
            # Beside its layers it has each functional model that it was since they were added.
            tracked = one._tracker.config["layers"][1]
            excluded.update({id(layer) for layer in tracked} - {id(layer) for layer in one.layers})
    found = [
        one
        for one in alive
        if id(one) not in excluded and any(id(layer) in own for layer in one._flatten_layers())
    ]
    if found and not collected:
        # Without those that only reference cycles keep alive.
        del alive, found, one
        gc.collect()
        return models_with_layers_of(model, collected=True)
    return found


def check_model(model: Any, needed_by: str) -> None:
    """Raise a TypeError if `model` is not a Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{needed_by}` expects a Keras model for argument `model`. "
            f"Received: model={model!r} (of type {type(model).__name__})"
        )


def checked_rate(rate: Any, argument: str = "rate") -> float:
    """Return `rate`, the value of `argument`, as a Python float."""
    expected = "a float value between 0 and 1"
    if np.ndim(rate) == 0 and (hasattr(rate, "numpy") or BACKEND.is_tensor(rate)):
        # An eager tensor or variable, for example from a Keras schedule.
        rate = rate.value if isinstance(rate, keras.Variable) else rate
        of_tensorflow = hasattr(rate, "numpy") and not hasattr(rate, "detach")
        rate = rate.numpy() if of_tensorflow else rate.item()
    if isinstance(rate, np.ndarray) and rate.ndim == 0:
        rate = rate[()]
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        raise wrong_type(argument, expected, rate)
    # Before the conversion, since a large integer has no float. After it, since a subclass may
    # compare as another number. NaN fails both times.
    number = float(rate) if 0 <= rate <= 1 else math.nan
    if not 0 <= number <= 1:
        raise wrong_value(argument, expected, rate)
    return number


def checked_seed(seed: Any) -> int | None:
    """Return `seed` as a Python integer that fits Keras's seed generators."""
    if seed is None:
        return None
    if not _is_integer(seed):
        raise wrong_type("seed", "an integer or None", seed)
    number = operator.index(seed)
    if not 0 <= number < 2**63:
        raise wrong_value("seed", "an integer from 0 to 2**63 - 1 or None", number)
    return number


def checked_count(value: Any, argument: str) -> int:
    """Return `value`, the value of `argument`, as a positive Python integer."""
    if not _is_integer(value):
        raise wrong_type(argument, "a positive integer", value)
    if value < 1:
        raise wrong_value(argument, "a positive integer", value)
    return int(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _checked_noise_shape(noise_shape: Any) -> NoiseShape | None:
    """Return `noise_shape` as a tuple of positive integers and `None`s."""
    if noise_shape is None:
        return None
    if isinstance(noise_shape, str) or not isinstance(noise_shape, Iterable):
        raise wrong_value("noise_shape", "a tuple or list of integers", repr(noise_shape))
    noise_shape = tuple(noise_shape)
    for index, entry in enumerate(noise_shape):
        integer = _is_integer(entry)
        if entry is not None and not (integer and entry > 0):
            kind = "dimensions to be positive integers" if integer else "elements to be integers"
            found = f"{noise_shape}, with {entry!r} at index {index}"
            raise wrong_value("noise_shape", f"all {kind} or None", found)
    return tuple(None if entry is None else operator.index(entry) for entry in noise_shape)


def wrong_type(argument: str, expected: str, value: Any) -> TypeError:
    """Return the error for a value of the wrong type."""
    return TypeError(_message(argument, expected, f"{value!r} (of type {type(value).__name__})"))


def wrong_value(argument: str, expected: str, value: Any) -> ValueError:
    """Return the error for an invalid value."""
    try:
        return ValueError(_message(argument, expected, str(value)))
    except ValueError:
        # Python refuses to print integers of more than about 4,000 digits.
        return ValueError(_message(argument, expected, f"an integer of {value.bit_length()} bits"))


def _message(argument: str, expected: str, received: str) -> str:
    return (
        f"Invalid value received for argument `{argument}`. Expected {expected}. "
        f"Received: {argument}={received}"
    )
