"""Finds the layers of a model, and the models of a layer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, TypeVar

import keras

from fastdrop_keras.random_layer import SampledLayer

_Layer = TypeVar("_Layer", bound=SampledLayer)


def dropout_layers(model: Any, needed_by: str, layer_class: type[_Layer]) -> list[_Layer]:
    """Return the layers of `layer_class` in `model`, for the public function `needed_by`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it has no such layer.
    """
    check_model(model, needed_by)
    found = [layer for layer in model._flatten_layers() if isinstance(layer, layer_class)]
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
