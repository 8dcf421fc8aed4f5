"""Changes the rate of dropout layers while a model trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import keras

from fastdrop_keras.arguments import checked_count, checked_rate, wrong_type, wrong_value
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.models import dropout_layers
from fastdrop_keras.random_layer import RandomLayer
from fastdrop_keras.recurrent import MaskDropout


class RateSchedule(keras.callbacks.Callback):
    """Sets the rate of a model's dropout layers before each epoch, or before each step.

    Layers that learn their rates, such as `fastdrop_keras.ConcreteDropout`, are left alone.

    A new rate takes effect without retracing. When training ends, the layers keep the last rate,
    also in their configurations, so a saved model has the rate in use. At the end of each epoch,
    the callback adds the rate to the logs, and thus to the history.

    A resumed training run continues the schedule: epochs count from `initial_epoch`, and steps
    are counted by `model.optimizer.iterations`, which Keras saves with the model.

    Args:
        schedule: Function of the number of the epoch or step, from 0. Returns the rate: a float
            between 0 and 1.
        layers: A dropout layer of this package, the name of one, or several of both. A name means
            every layer with this name. `None` for all dropout layers in the model, at any depth,
            except for those in recurrent layers. A recurrent layer has two, with these names:
            `"input_dropout"` and `"recurrent_dropout"`.
        unit: `"epoch"` or `"step"`, the unit that `schedule` counts. A step is an update of the
            weights. With `steps_per_execution` above 1, the rate is set once for so many steps.
        log_as: String, the key of the rate in the logs.

    Raises:
        TypeError: If `schedule` is not callable or `log_as` is not a string; in training, if
            `schedule` does not return a number.
        ValueError: If `unit` is another value; when training starts, if the model has no dropout
            layer of this package or lacks one of `layers`, or if `unit` is `"step"` and the model
            has no optimizer; in training, if `schedule` does not return a rate.

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
        layers: str | RandomLayer | Iterable[str | RandomLayer] | None = None,
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
        self._layers: list[RandomLayer] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the layers; called by Keras."""
        found = dropout_layers(self.model, "RateSchedule", RandomLayer)
        if self._choice is None:
            self._layers = [one for one in found if not isinstance(one, MaskDropout)]
            if not self._layers:
                raise wrong_value("layers", 'names, such as "recurrent_dropout"', None)
        else:
            self._layers = _chosen(found, self._choice)
        if self.unit == "step" and self.model.optimizer is None:
            raise ValueError(
                "`RateSchedule` with unit='step' needs `model.optimizer.iterations`, and the model "
                f"{self.model.name!r} has no optimizer. Compile it with one, or use unit='epoch'"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of the epoch; called by Keras."""
        if self.unit == "epoch":
            self._set_rate(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of the step; called by Keras."""
        if self.unit == "step":
            BACKEND.update_variables(self.model)
            self._set_rate(int(self.model.optimizer.iterations.numpy()))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log the rate; called by Keras."""
        if logs is not None:
            logs[self.log_as] = self._layers[0].rate

    def _set_rate(self, number: int) -> None:
        rate = self.schedule(number)
        try:
            for layer in self._layers:
                layer._checked_rate(rate)
        except (TypeError, ValueError) as error:
            raise type(error)(
                "`schedule` must return a rate of its layers: a float value between 0 and 1, "
                "below 1 for GaussianDropout. "
                f"Received: schedule({number})={rate!r} (of type {type(rate).__name__})"
            ) from error
        for layer in self._layers:
            layer.rate = rate


def _chosen(layers: list[RandomLayer], choice: Any) -> list[RandomLayer]:
    """Return the layers in `choice`, which is a layer, a name or several of both.

    Raises:
        ValueError: If `choice` is empty, or if it has a layer or name that is not in `layers`.
    """

    def matches(one: Any, layer: RandomLayer) -> bool:
        return one is layer or (isinstance(one, str) and one == layer.name)

    several = isinstance(choice, Iterable) and not isinstance(choice, str)
    wanted = list(choice) if several else [choice]
    missing = [one for one in wanted if not any(matches(one, layer) for layer in layers)]
    if missing or not wanted:
        names = sorted({layer.name for layer in layers})
        expected = (
            f"dropout layers of fastdrop_keras that are in the model, or their names: {names}"
        )
        received = f"{choice!r}" + (f", with {missing[0]!r}" if several and missing else "")
        raise wrong_value("layers", expected, received)
    return [layer for layer in layers if any(matches(one, layer) for one in wanted)]


def linear_ramp(start: float, end: float, steps: int) -> Callable[[int], float]:
    """Returns a schedule that changes the rate linearly, and then keeps it.

    Args:
        start: Float between 0 and 1. The rate at 0.
        end: Float between 0 and 1. The rate from `steps` on.
        steps: Positive integer. The number of epochs or steps, whichever `RateSchedule` counts.

    Returns:
        A function of an integer, for `fastdrop_keras.RateSchedule`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is not a valid value.

    Example:

    >>> from fastdrop_keras import linear_ramp
    >>> ramp = linear_ramp(0.5, 0.1, 4)
    >>> [round(ramp(step), 3) for step in range(6)]
    [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
    """
    return _ramp(start, end, steps, lambda fraction: fraction)


def cosine_ramp(start: float, end: float, steps: int) -> Callable[[int], float]:
    """Returns a schedule that changes the rate along a cosine, and then keeps it.

    The rate changes slowly near `start` and `end`, and fastest halfway.

    Arguments, results and errors are as for `fastdrop_keras.linear_ramp`.

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
    """Return a schedule that has made `shape(i / steps)` of its way after `i` steps."""
    first, last = checked_rate(start, "start"), checked_rate(end, "end")
    checked_count(steps, "steps")

    def rate(number: int) -> float:
        if number >= steps:
            return last  # exactly, without rounding
        return first + (last - first) * shape(max(number, 0) / steps)

    return rate
