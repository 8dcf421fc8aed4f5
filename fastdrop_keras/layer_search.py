"""Finds the dropout layers in a model, however deep they are."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from fastdrop_keras.layers import BaseDropout


def every_layer(model: keras.Layer) -> list[keras.Layer]:
    """Return `model` and every layer in it, each once: in models, wrappers, lists, dicts."""
    return list(model._flatten_layers())


def with_paths(model: keras.Layer) -> Iterator[tuple[str, list[keras.Layer]]]:
    """Yield a path of names, and the layers on it from `model` on, for every layer in `model`."""
    seen = {id(model)}
    waiting = [[model]]
    while waiting:
        line = waiting.pop()
        yield "/".join(layer.name for layer in line[1:]), line
        children = line[-1]._flatten_layers(include_self=False, recursive=False)
        unseen = [child for child in children if id(child) not in seen]
        seen.update(map(id, unseen))
        waiting.extend([*line, child] for child in reversed(unseen))


def unknown_to_keras(model: keras.Layer) -> Iterator[tuple[str, str, Any]]:
    """Yield what layers in `model` may call though Keras does not list it as theirs.

    Yields:
        The path of the layer, the name of its attribute, and a layer, a bound method or a
        `tf.function` in it: in a plain object, a function or a container, at any depth.
    """
    # With the objects themselves: an id is used again when its object is gone.
    seen = {id(layer): layer for layer in every_layer(model)}
    for path, line in with_paths(model):
        # Public names first, which say more: TensorFlow has lists of its own of all attributes.
        attributes = _attributes(line[-1])
        for attribute in sorted(attributes, key=lambda name: name.startswith("_")):
            waiting = [attributes[attribute]]
            while waiting:
                value = waiting.pop()
                # Python's collector tracks no numbers and strings: they hold nothing.
                if id(value) in seen or not gc.is_tracked(value):
                    continue
                seen[id(value)] = value
                found = (keras.Layer, types.MethodType, tf.types.experimental.PolymorphicFunction)
                if isinstance(value, found):
                    yield path, attribute, value
                waiting.extend(_parts(value))


def _attributes(layer: keras.Layer) -> dict[str, Any]:
    """Return the attributes of `layer`, and the `tf.function`s that its class makes for it."""
    functions = [
        name
        for base in type(layer).__mro__
        for name, value in vars(base).items()
        if isinstance(value, tf.types.experimental.PolymorphicFunction)
    ]
    return {**{name: getattr(layer, name) for name in functions}, **vars(layer)}


def _parts(value: Any) -> list[Any]:
    """Return what `value` holds, as far as it is a user's and not a framework's."""
    if isinstance(value, tf.types.experimental.PolymorphicFunction):
        return [value.python_function]
    if isinstance(value, types.FunctionType) and not _of_a_framework(value):
        # Of a module's globals, no more than the layers: they lead through the whole program.
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        layers = [other for other in named if isinstance(other, keras.Layer)]
        return layers + [part for part in gc.get_referents(value) if part is not value.__globals__]
    if isinstance(value, keras.Layer):
        return list(_attributes(value).values())
    if isinstance(value, (type, types.ModuleType, types.FunctionType)):
        return []
    plain = isinstance(value, (dict, list, tuple, set))
    return gc.get_referents(value) if plain or not _of_a_framework(type(value)) else []


def _of_a_framework(definition: Any) -> bool:
    return str(definition.__module__).partition(".")[0] in ("keras", "tensorflow", "fastdrop_keras")


def dropout_layers(model: keras.Layer, needed_by: str) -> list[BaseDropout]:
    """Return the dropout layers of this package in `model`, for the public name `needed_by`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it has no such layer.
    """
    check_model(model, needed_by)
    layers = [layer for layer in every_layer(model) if isinstance(layer, BaseDropout)]
    if not layers:
        raise ValueError(
            f"`{needed_by}` needs a model with dropout layers of fastdrop_keras, and the model "
            f"{model.name!r} has none. `model = fastdrop_keras.convert(model)` puts them in the "
            "place of Keras's."
        )
    return layers


def check_model(model: Any, needed_by: str) -> None:
    """Raise a TypeError if `model` is not a Keras model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{needed_by}` expects a Keras model for argument `model`. "
            f"Received: model={model!r} (of type {type(model).__name__})"
        )


def chosen(layers: list[BaseDropout], choice: Any) -> list[BaseDropout]:
    """Return those of `layers` that `choice` names or holds: a layer or a name, or several.

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
