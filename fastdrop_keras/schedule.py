"""Drop rates that change while a model trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras

from fastdrop_keras import layer_search
from fastdrop_keras.layers import (
    BaseDropout,
    checked_count,
    checked_rate,
    wrong_type,
    wrong_value,
)


class RateSchedule(keras.callbacks.Callback):
    """Sets the rate of a model's dropout layers before each epoch, or before each step.

    The rate takes effect without retracing anything, and stays when training ends: it is in the
    layers' configuration, so a model that is saved has the rate in use. At the end of each epoch
    it is in the logs, and so in the history.

    A training run that is resumed goes on where it was: epochs count from `initial_epoch`, and
    steps are those of `model.optimizer.iterations`, which is saved with the model.

    Args:
        schedule: Function of the number of the epoch, or of the step, from 0 on. Returns the rate:
            a float between 0 and 1.
        layers: What it is set on: a dropout layer of this package or the name of one, or several
            of them; `None` for all of them in the model, at any depth. A name stands for every
            layer that has it.
        unit: `"epoch"` or `"step"`: what `schedule` is a function of. A step is an update of the
            weights. With `steps_per_execution` above 1, the rate is set once for as many steps.
        log_as: String, the key of the rate in the logs.

    Raises:
        TypeError: If `schedule` is not callable or `log_as` no string.
        ValueError: If `unit` is not one of the two. When training starts: if the model has no
            dropout layer of this package, or not those of `layers`; if steps are to be counted
            and there is no optimizer. While it runs, with the number of the epoch or step: if
            what `schedule` returns is not a rate; that is a `TypeError` if it is not a number.

    Example:

    >>> import keras, numpy as np
    >>> from fastdrop_keras import Dropout, RateSchedule, linear_ramp
    >>> model = keras.Sequential([keras.Input((4,)), Dropout(0.5), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> ramp = RateSchedule(linear_ramp(0.0, 0.5, 2))
    >>> history = model.fit(x, y, epochs=4, verbose=0, callbacks=[ramp])
    >>> history.history["dropout_rate"]
    [0.0, 0.25, 0.5, 0.5]
    """

    def __init__(
        self,
        schedule: Callable[[int], float],
        layers: str | BaseDropout | Iterable[str | BaseDropout] | None = None,
        unit: str = "epoch",
        log_as: str = "dropout_rate",
    ) -> None:
        super().__init__()
        if not callable(schedule):
            raise wrong_type("schedule", "a function of the epoch or of the step", schedule)
        if unit not in ("epoch", "step"):
            raise wrong_value("unit", "'epoch' or 'step'", repr(unit))
        if not isinstance(log_as, str):
            raise wrong_type("log_as", "a string", log_as)
        self.schedule = schedule
        self.unit = unit
        self.log_as = log_as
        self._choice = layers
        self._layers: list[BaseDropout] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the layers; called by Keras."""
        layers = layer_search.dropout_layers(self.model, "RateSchedule")
        self._layers = layers if self._choice is None else layer_search.chosen(layers, self._choice)
        if self.unit == "step" and self.model.optimizer is None:
            raise ValueError(
                "`RateSchedule` with unit='step' counts by `model.optimizer.iterations`, and the "
                f"model {self.model.name!r} has no optimizer"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of the epoch; called by Keras."""
        if self.unit == "epoch":
            self._set_rate(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of the step; called by Keras."""
        if self.unit == "step":
            self._set_rate(int(self.model.optimizer.iterations.numpy()))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the rate; called by Keras."""
        if logs is not None:
            logs[self.log_as] = self._layers[0].rate

    def _set_rate(self, number: int) -> None:
        rate = self.schedule(number)
        try:
            rate = checked_rate(rate)
        except (TypeError, ValueError) as error:
            raise type(error)(
                "`schedule` must return a float value between 0 and 1. "
                f"Received: schedule({number})={rate!r} (of type {type(rate).__name__})"
            ) from error
        for layer in self._layers:
            layer.rate = rate


def linear_ramp(start: float, end: float, steps: int) -> Callable[[int], float]:
    """Returns a schedule that goes from one rate to another in a straight line, and stays there.

    Args:
        start: Float between 0 and 1. The rate at 0.
        end: Float between 0 and 1. The rate from `steps` on.
        steps: Positive integer. In how many epochs or steps, whichever `RateSchedule` counts.

    Returns:
        A function of an integer, for `fastdrop_keras.RateSchedule`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If it is not a valid value.

    Example:

    >>> from fastdrop_keras import linear_ramp
    >>> ramp = linear_ramp(0.5, 0.1, 4)
    >>> [round(ramp(step), 3) for step in range(6)]
    [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
    """
    return _ramp(start, end, steps, lambda fraction: fraction)


def cosine_ramp(start: float, end: float, steps: int) -> Callable[[int], float]:
    """Returns a schedule that goes from one rate to another along a cosine, and stays there.

    It leaves `start` and reaches `end` slowly, and is fastest in the middle.

    Args:
        start: Float between 0 and 1. The rate at 0.
        end: Float between 0 and 1. The rate from `steps` on.
        steps: Positive integer. In how many epochs or steps, whichever `RateSchedule` counts.

    Returns:
        A function of an integer, for `fastdrop_keras.RateSchedule`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If it is not a valid value.

    Example:

    >>> from fastdrop_keras import cosine_ramp
    >>> ramp = cosine_ramp(0.5, 0.1, 4)
    >>> [round(ramp(step), 3) for step in range(6)]
    [0.5, 0.441, 0.3, 0.159, 0.1, 0.1]
    """
    return _ramp(start, end, steps, lambda fraction: (1 - math.cos(math.pi * fraction)) / 2)


def _ramp(
    start: float, end: float, steps: int, shape: Callable[[float], float]
) -> Callable[[int], float]:
    """Return the schedule that covers `shape(i / steps)` of the way from `start` to `end`."""
    first, last = checked_rate(start, "start"), checked_rate(end, "end")
    checked_count(steps, "steps")

    def rate(number: int) -> float:
        # The end itself, and not what is rounded to somewhere near it.
        if number >= steps:
            return last
        return first + (last - first) * shape(max(number, 0) / steps)

    return rate
