"""Makes Keras's classes create the layers of this package, and lists these classes."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Iterator
from typing import Any

import keras

from fastdrop_keras import recurrent
from fastdrop_keras.layers import Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D
from fastdrop_keras.noise_layers import AlphaDropout, GaussianDropout, GaussianNoise

_OURS = (
    *(Dropout, SpatialDropout1D, SpatialDropout2D, SpatialDropout3D),
    *(AlphaDropout, GaussianDropout, GaussianNoise),
)
# Our class for each of Keras's.
CLASSES: dict[type, type] = {getattr(keras.layers, ours.__name__): ours for ours in _OURS}
# The same for recurrent layers and cells, which stay Keras's if they do not drop.
RECURRENT: dict[type, type] = {
    getattr(keras.layers, ours.__name__): ours
    for ours in (
        *(recurrent.LSTM, recurrent.GRU, recurrent.SimpleRNN),
        *(recurrent.LSTMCell, recurrent.GRUCell, recurrent.SimpleRNNCell),
    )
}

# Whether Keras's classes create our layers: in this context, with `None` for the global setting.
_made_here: contextvars.ContextVar[bool | None] = contextvars.ContextVar("made", default=None)
_made_everywhere = False


def _create_ours(root: type) -> None:
    """Make the class `root` of Keras, and its subclasses in `CLASSES`, create our layers."""
    new_of_keras: Any = root.__new__

    def new(keras_class: type, *args: Any, **kwargs: Any) -> Any:
        """Create a layer of `keras_class` or of ours, which Python initializes as a subclass."""
        here = _made_here.get()
        if _made_everywhere if here is None else here:
            keras_class = CLASSES.get(keras_class, keras_class)
            if keras_class in RECURRENT and recurrent.asks_for_dropout(keras_class, args, kwargs):
                keras_class = RECURRENT[keras_class]
        return new_of_keras(keras_class, *args, **kwargs)

    # `help` would print the signature of `new`.
    new.__signature__ = inspect.signature(vars(root)["__init__"])  # type: ignore[attr-defined]
    root.__new__ = staticmethod(new)  # type: ignore[assignment]


for _class in (*CLASSES, *RECURRENT):
    if not any(base in CLASSES for base in _class.__mro__[1:]):
        _create_ours(_class)


def enable() -> None:
    """Makes Keras's classes of dropout and noise create the layers of this package, in all threads.

    `keras.layers.Dropout(0.5)` then returns a `fastdrop_keras.Dropout`, also when Keras or other
    code calls it, for example in `MultiHeadAttention` and when a model is loaded. The same holds
    for `SpatialDropout1D`, `2D` and `3D`, `AlphaDropout`, `GaussianDropout` and `GaussianNoise`,
    and for `LSTM`, `GRU`, `SimpleRNN` and their cells if they are given a rate that is not 0.
    Subclasses of Keras's layers do not change.

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
