"""Puts other dropout layers in the place of those in a model, wherever the model keeps them."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import keras
from keras.src.models import Functional, Sequential
from keras.src.ops.function import make_node_key
from keras.src.utils.tracking import DotNotTrackScope

from fastdrop_keras import layer_search, layers

CLASSES = {
    keras.layers.Dropout: layers.Dropout,
    keras.layers.SpatialDropout1D: layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D: layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D: layers.SpatialDropout3D,
}
CLASSES_OF_KERAS = {ours: theirs for theirs, ours in CLASSES.items()}

# What takes back, from the last on, what was changed.
_Undo = list[Callable[[], object]]


def twin(layer: keras.Layer, twin_class: type) -> keras.Layer:
    """Return a dropout layer of `twin_class` that goes on where `layer` is.

    Raises:
        TypeError, ValueError: If the other class does not take the arguments of `layer`.
    """
    names = inspect.signature(twin_class).parameters.keys() - {"name", "dtype", "kwargs"}
    arguments = {name: getattr(layer, name) for name in names}
    has_seed = hasattr(layer, "seed_generator")
    if has_seed and layer.rate == 0:
        # Keras's layer gets a seed generator only where its first rate is not 0.
        arguments["rate"] = 0.5
    other = twin_class(**arguments, name=layer.name, dtype=layer.dtype_policy)
    other.rate = layer.rate
    other.trainable = layer.trainable
    other.activity_regularizer = layer.activity_regularizer
    if has_seed:
        other.seed_generator.state.assign(layer.seed_generator.state)
    return other


def swap(model: keras.Model, pairs: list[tuple[keras.Layer, keras.Layer]]) -> None:
    """Put the second layer of each pair in the place of the first, at any depth of `model`.

    Raises:
        ValueError: If an attribute does not take the new layer. The model is as it was then.
    """
    swaps = {id(old): new for old, new in pairs}
    owners = layer_search.every_layer(model)
    # A sequential model runs a functional one, which is not among its layers.
    owners += [owner._functional for owner in owners if _runs_a_functional(owner)]
    tracked_again = [_tracked_again(owner) for owner in owners]
    undo: _Undo = []
    try:
        for owner in owners:
            _swap_tracked(owner, swaps)
            _swap_in_attributes(owner, swaps, undo)
    except Exception:
        # First and last: what is not tracked is refused as an attribute, and setting one tracks.
        for action in (*tracked_again, *reversed(undo), *tracked_again):
            action()
        raise
    for old, new in pairs:
        _swap_in_graph(old, new)
        for owner in owners:
            if isinstance(owner, Functional):
                _rename_nodes(owner, old, new)


def _runs_a_functional(owner: keras.Layer) -> bool:
    return isinstance(owner, Sequential) and owner._functional is not None


def _tracked(owner: keras.Layer) -> tuple[list[keras.Layer], set[int]]:
    """Return the layers that a layer knows to be its own, and their ids."""
    return owner._tracker.config["layers"][1], owner._tracker.stored_ids["layers"]


def _tracked_again(owner: keras.Layer) -> Callable[[], object]:
    """Return what makes a layer track what it tracks now."""
    tracked, ids = _tracked(owner)
    before, ids_before = list(tracked), set(ids)

    def track_again() -> None:
        tracked[:] = before
        ids.clear()
        ids.update(ids_before)

    return track_again


def _swap_tracked(owner: keras.Layer, swaps: dict[int, keras.Layer]) -> None:
    # To be done first: a layer that is built refuses new ones as attributes, but not these then.
    tracked, ids = _tracked(owner)
    for index, layer in enumerate(tracked):
        if id(layer) in swaps:
            tracked[index] = swaps[id(layer)]
            ids.discard(id(layer))
            ids.add(id(swaps[id(layer)]))


def _swap_in_attributes(owner: keras.Layer, swaps: dict[int, keras.Layer], undo: _Undo) -> None:
    for name, value in list(vars(owner).items()):
        # TensorFlow's own account of the attributes, which setting one brings up to date.
        if name.startswith("_self_"):
            continue
        try:
            replaced = _replaced(value, swaps, set(), undo)
            if replaced is not value:
                _set_attribute(owner, name, replaced)
                undo.append(functools.partial(_set_attribute, owner, name, value))
        except Exception as error:
            raise ValueError(
                f"A dropout layer in the attribute {name!r} of {owner.name!r} (of type "
                f"{type(owner).__name__}) cannot be replaced: {type(error).__name__}: {error}"
            ) from error


def _set_attribute(owner: keras.Layer, name: str, value: Any) -> None:
    if isinstance(value, (list, dict)):
        # As the constructors of functional models do.
        with DotNotTrackScope():
            setattr(owner, name, value)
    else:
        setattr(owner, name, value)


def _replaced(value: Any, swaps: dict[int, keras.Layer], seen: set[int], undo: _Undo) -> Any:
    """Return `value` with its layers replaced: the same object if it can be changed."""
    if isinstance(value, keras.Layer):
        return swaps.get(id(value), value)
    if not isinstance(value, (list, dict, tuple, set)) or id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, set):
        for layer in [layer for layer in value if id(layer) in swaps]:
            # Not with the methods of Keras's sets, which would forget the layers in it.
            set.remove(value, layer)
            set.add(value, swaps[id(layer)])
            undo.append(functools.partial(set.add, value, layer))
            undo.append(functools.partial(set.discard, value, swaps[id(layer)]))
        return value
    if isinstance(value, dict):
        before = [part for item in value.items() for part in item]
    else:
        before = list(value)
    after = [_replaced(part, swaps, seen, undo) for part in before]
    if all(new is old for new, old in zip(after, before, strict=True)):
        return value
    # TensorFlow's wrappers are for lists and dicts that only ever grow.
    wrapped = type(value).__module__.startswith("tensorflow.")
    if isinstance(value, tuple):
        plain = value.__class__
        return plain(*after) if hasattr(value, "_fields") else plain(after)
    if isinstance(value, list):
        if wrapped:
            return after
        list.__setitem__(value, slice(None), after)
        undo.append(functools.partial(list.__setitem__, value, slice(None), before))
        return value
    if wrapped:
        return _dict_of(after)
    undo.append(functools.partial(_fill, value, before))
    _fill(value, after)
    return value


def _dict_of(parts: list[Any]) -> dict[Any, Any]:
    """Return a dict of keys and values that follow each other."""
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _fill(value: dict[Any, Any], parts: list[Any]) -> None:
    # So that the keys keep their order; and not by the method of Keras's dicts.
    (OrderedDict if isinstance(value, OrderedDict) else dict).clear(value)
    value.update(_dict_of(parts))


def _swap_in_graph(old: keras.Layer, new: keras.Layer) -> None:
    """Let the calls of `old` in functional models be calls of `new`."""
    for node in old._inbound_nodes:
        node.operation = new
        for tensor in node.outputs:
            tensor._keras_history = tensor._keras_history._replace(operation=new)
    new._inbound_nodes.extend(old._inbound_nodes)
    new._outbound_nodes.extend(old._outbound_nodes)


def _rename_nodes(model: Functional, old: keras.Layer, new: keras.Layer) -> None:
    """Let a functional model know the calls of `old` that are its own as those of `new`."""
    for index in range(len(new._inbound_nodes)):
        key = make_node_key(old, index)
        if key in model._nodes:
            model._nodes.remove(key)
            model._nodes.add(make_node_key(new, index))
