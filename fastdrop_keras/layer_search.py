"""Finds the dropout layers of this package in a model, however deep they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras

from fastdrop_keras.layers import BaseDropout


def every_layer(model: keras.Layer) -> list[keras.Layer]:
    """Return `model` and every layer in it, each once: in models, wrappers, lists, dicts."""
    # Keras has no public walk through layers that are not models.
    return model._flatten_layers()


def with_paths(model: keras.Layer) -> Iterator[tuple[str, list[keras.Layer]]]:
    """Yield a path of names, and the layers on it from `model` on, for every layer in `model`."""
    seen = {id(model)}
    waiting = [[model]]
    while waiting:
        line = waiting.pop()
        yield "/".join(layer.name for layer in line[1:]), line
        children = [child for child in line[-1]._layers if id(child) not in seen]
        seen.update(map(id, children))
        waiting.extend([*line, child] for child in reversed(children))


def dropout_layers(model: keras.Layer, needed_by: str) -> list[BaseDropout]:
    """Return the dropout layers of this package in `model`.

    Args:
        model: A Keras model.
        needed_by: The public name that needs them, for the error.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it has no such layer.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{needed_by}` expects a Keras model for argument `model`. "
            f"Received: model={model!r} (of type {type(model).__name__})"
        )
    layers = [layer for layer in every_layer(model) if isinstance(layer, BaseDropout)]
    if not layers:
        raise ValueError(
            f"`{needed_by}` needs a model with dropout layers of fastdrop_keras, and the model "
            f"{model.name!r} has none. `model = fastdrop_keras.convert(model)` puts them in the "
            "place of Keras's."
        )
    return layers


def chosen(layers: list[BaseDropout], choice: Any) -> list[BaseDropout]:
    """Return those of `layers` that `choice` names or holds.

    Args:
        layers: The layers to choose from.
        choice: A layer or a name, or several of them.

    Raises:
        ValueError: If `choice` is empty, or something in it is not among `layers`.
    """
    several = isinstance(choice, Iterable) and not isinstance(choice, str)
    wanted = list(choice) if several else [choice]
    strangers = [one for one in wanted if not any(_is_or_names(one, layer) for layer in layers)]
    if strangers or not wanted:
        raise ValueError(
            "Invalid value received for argument `layers`. Expected dropout layers of "
            "fastdrop_keras that are in the model, or their names: "
            f"{sorted({layer.name for layer in layers})}. Received: "
            f"layers={choice!r}" + (f", with {strangers[0]!r}" if several and strangers else "")
        )
    return [layer for layer in layers if any(_is_or_names(one, layer) for one in wanted)]


def _is_or_names(one: Any, layer: BaseDropout) -> bool:
    return one is layer or (isinstance(one, str) and one == layer.name)
