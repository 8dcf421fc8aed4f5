"""Defines what all layers of this package have: a seed, and calls that use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from fastdrop_keras import layer_state
from fastdrop_keras.arguments import checked_rate, checked_seed
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.blocks import Setting
from fastdrop_keras.inputs import NoiseShape

# In this thread, `mc_predict` and `exact_average` set the object that draws in place of each layer,
# also in inference.
sampler = Setting("sampler", None)


class SeededLayer(keras.layers.Layer):
    """Has a seed and a number that can be set at any time, and applies a random operation.

    It comes before Keras's class among the bases of a layer, which is an instance of Keras's class
    for `isinstance` and uses none of its methods.
    """

    _input_rank: int | None = None  # any

    def __init__(
        self,
        value: float,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        keras.layers.Layer.__init__(self, name=name, dtype=dtype, **kwargs)
        if self._input_rank is not None:
            self.input_spec = keras.layers.InputSpec(ndim=self._input_rank)
        self._add_value_and_seed(value, seed)
        self.supports_masking = True
        # Keras sets `built` only where a layer builds, and these layers have nothing to build.
        self.built = type(self).build is keras.layers.Layer.build

    def _add_value_and_seed(self, value: float, seed: int | None) -> None:
        # The rate, or the standard deviation of noise.
        self._rate = BACKEND.Rate(value)
        self.seed = checked_seed(seed)
        # Also at rate 0, since the rate can be raised later.
        self.seed_generator = BACKEND.new_seed_generator(self.seed)
        # Where the framework's compiler cannot compile the layer, Keras runs the model without it.
        self.supports_jit = BACKEND.supports_jit()

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
        check_keras_3(inputs)
        return self._draw(inputs, training, self._mask_shape())

    def _draw(
        self,
        inputs: Any,
        training: Any,
        mask_shape: NoiseShape | None,
        *,
        of_samples: bool = True,
    ) -> Any:
        """Apply the layer's random operation to `inputs` in training, else return them.

        A call of the layer may draw several times, always in the same order. `of_samples` tells
        whether the first axis of `inputs` is that of the samples.
        """
        if BACKEND.is_tensor(training):
            return BACKEND.cond(
                training,
                lambda: self._draw(inputs, True, mask_shape, of_samples=of_samples),
                lambda: self._draw(inputs, False, mask_shape, of_samples=of_samples),
            )
        reading, writing = BACKEND.runs_around(self, bool(training))
        if reading is not None:
            saved = reading.read(self, bool(training))
            outputs = inputs
            if saved is not None:
                outputs = self._operation_again(inputs, saved, mask_shape)
        elif training:
            BACKEND.check(inputs, mask_shape)
            seed = BACKEND.next_seed(self.seed_generator)
            outputs, saved = self._operation(inputs, seed, mask_shape)
        else:
            outputs, saved = inputs, None
        for run in writing:
            run.write(self, saved)
        return outputs

    def _operation(self, inputs: Any, seed: Any, mask_shape: NoiseShape | None) -> tuple[Any, Any]:
        """Return the result of the random operation, and what `_operation_again` needs."""
        raise NotImplementedError

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        """Return the result of an earlier `_operation` on other inputs."""
        raise NotImplementedError

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `layer_call` unchanged; called by Keras for a layer made in a `RematScope`.

        The layer saves a bit for each element, or none. Recomputation would save all of its inputs.
        """
        return layer_call

    def _mask_shape(self) -> NoiseShape | None:
        """Return the mask's shape, with `None` for the input's size."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return `input_shape`, which is the output's shape too."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one."""
        return {**keras.layers.Layer.get_config(self), "seed": self.seed}


class SampledLayer(SeededLayer):
    """Applies its random operation in `mc_predict` too."""

    def _draw(
        self,
        inputs: Any,
        training: Any,
        mask_shape: NoiseShape | None,
        *,
        of_samples: bool = True,
    ) -> Any:
        drawing = sampler.get()
        if drawing is not None:
            return drawing.apply(self, inputs, mask_shape, of_samples)
        return SeededLayer._draw(self, inputs, training, mask_shape, of_samples=of_samples)


class RandomLayer(SampledLayer):
    """Has a rate that can be set, and applies dropout or another random operation."""

    def __init__(
        self,
        rate: float,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        SeededLayer.__init__(self, self._checked_rate(rate), seed, name, dtype, **kwargs)

    @staticmethod
    def _checked_rate(rate: Any) -> float:
        """Return `rate` as a Python float, if the layer can have it."""
        return checked_rate(rate)

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
        self._rate.value = self._checked_rate(value)

    def _operation(self, inputs: Any, seed: Any, mask_shape: NoiseShape | None) -> tuple[Any, Any]:
        return BACKEND.dropout(inputs, seed, self._rate.read(), mask_shape)

    def _operation_again(self, inputs: Any, saved: Any, mask_shape: NoiseShape | None) -> Any:
        return BACKEND.dropout_again(inputs, saved, mask_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rate."""
        return {**SeededLayer.get_config(self), "rate": self.rate}


def check_keras_3(inputs: Any) -> None:
    """Raise a TypeError if `inputs` is a tensor of Keras 2."""
    if type(inputs).__module__.startswith("tf_keras"):
        raise TypeError(
            "fastdrop_keras has layers for Keras 3. Received a tensor of Keras 2, from the "
            "package tf_keras, which is tf.keras if TF_USE_LEGACY_KERAS is set. Unset it, or make "
            "the model of the package keras"
        )
