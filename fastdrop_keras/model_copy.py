"""Copies a model with all of its state: a new model that shares nothing with the first."""

from __future__ import annotations

import tempfile
from typing import Any

import keras
from keras.src.models import Functional, Sequential

from fastdrop_keras import layer_search, layer_swap


def can_be_copied(model: keras.Model) -> bool:
    """Return whether a model says what it is made of: a sequential or a functional one.

    Of a subclass, only one that leaves the constructor as it is can be made again.
    """
    return type(model) is Sequential or (
        isinstance(model, Functional) and type(model).__init__ is Functional.__init__
    )


def copied(model: keras.Model) -> keras.Model:
    """Return a copy of `model`: its layers, weights and flags, the states of its seed generators.

    Not what it was compiled with; see `compile_like`.

    Args:
        model: A model that `can_be_copied`.

    Raises:
        ValueError: If a layer of it cannot be made again from its configuration.
    """
    classes = {type(layer).__name__: type(layer) for layer in layer_search.every_layer(model)}
    with keras.saving.custom_object_scope(classes):
        copy = _Copier().copy(model)
    _copy_state(model, copy)
    return copy


class _Copier:
    """Makes each layer again once, however often and in however many models it is used."""

    def __init__(self) -> None:
        self._copies: dict[int, keras.Operation] = {}

    def copy(self, operation: keras.Operation) -> keras.Operation:
        if id(operation) not in self._copies:
            self._copies[id(operation)] = self._make(operation)
        return self._copies[id(operation)]

    def _make(self, operation: keras.Operation) -> keras.Operation:
        if isinstance(operation, keras.Model) and can_be_copied(operation):
            sequential = isinstance(operation, Sequential)
            model = self._sequential(operation) if sequential else self._functional(operation)
            model.dtype_policy = operation.dtype_policy
            return model
        if type(operation) is keras.layers.Lambda:
            # Its configuration holds the code of a lambda, but not the globals that it uses.
            return keras.layers.Lambda(
                operation.function,
                output_shape=operation._output_shape,
                mask=operation.mask,
                arguments=operation.arguments,
                name=operation.name,
                dtype=operation.dtype_policy,
            )
        try:
            return type(operation).from_config(operation.get_config())
        except Exception as error:
            raise _not_copied(operation, str(error).strip()) from error

    def _sequential(self, model: Sequential) -> Sequential:
        # With the input layer, which the public list leaves out.
        return Sequential([self.copy(layer) for layer in model._layers], name=model.name)

    def _functional(self, model: Functional) -> Functional:
        inputs = keras.tree.map_structure(
            lambda tensor: self.copy(tensor._keras_history.operation).output, model.input
        )
        outputs = model._run_through_graph(inputs, operation_fn=self.copy)
        return type(model)(inputs, outputs, name=model.name)


def _copy_state(model: keras.Model, copy: keras.Model) -> None:
    layers = layer_search.every_layer(model)
    # What other layers make is Keras's and of the first rate, whatever it was changed to.
    pairs = zip(layers, layer_search.every_layer(copy), strict=False)
    swaps = [
        (other, layer_swap.twin(one, type(one)))
        for one, other in pairs
        if _drops(one) and _drops(other)
    ]
    layer_swap.swap(copy, swaps)
    copies = layer_search.every_layer(copy)
    if list(map(type, layers)) != list(map(type, copies)):
        raise _not_copied(model, "made again, it has other layers")
    for layer, twin in zip(layers, copies, strict=True):
        # Layers that others make have names that count on.
        twin.name = layer.name
        try:
            if layer.built and not twin.built:
                twin.build_from_config(layer.get_build_config())
            _copy_layer_state(layer, twin)
        except Exception as error:
            raise _not_copied(layer, str(error).strip()) from error


def _copy_layer_state(layer: keras.Layer, twin: keras.Layer) -> None:
    """Copy the state of `layer` itself, without that of the layers in it."""
    # Keras's own way to files and back, which layers may override.
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    if store:
        twin.load_own_variables(store)
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as directory:
            layer.save_assets(directory)
            twin.load_assets(directory)
    for generator, other in zip(layer._seed_generators, twin._seed_generators, strict=False):
        other.state.assign(generator.state)
    if isinstance(layer, keras.layers.RNN) and layer.stateful:
        # Between batches only: they are in no file.
        pairs = zip(keras.tree.flatten(layer.states), keras.tree.flatten(twin.states), strict=True)
        for variable, other in pairs:
            other.assign(variable)
    # Setting it sets it in the layers inside too: those come later.
    if twin.trainable != layer.trainable:
        twin.trainable = layer.trainable
    for variable, other in zip(_own_variables(layer), _own_variables(twin), strict=True):
        if other.trainable != variable.trainable:
            other.trainable = variable.trainable


def _own_variables(layer: keras.Layer) -> list[keras.Variable]:
    return layer._trainable_variables + layer._non_trainable_variables


def _drops(layer: keras.Layer) -> bool:
    return type(layer) in layer_swap.CLASSES or type(layer) in layer_swap.CLASSES_OF_KERAS


def _not_copied(operation: keras.Operation, reason: str) -> ValueError:
    return ValueError(
        f"{operation.name!r} (of type {type(operation).__name__}) cannot be copied: {reason}. "
        "Give its class the methods `get_config` and `from_config` that make it again, or change "
        "the model itself, with in_place=True."
    )


def compile_like(copy: keras.Model, model: keras.Model) -> str | None:
    """Compile `copy` as `model` is: with the optimizer's state, the same losses, new metrics.

    Returns:
        Why that could not be, or `None`.
    """
    if not model.compiled:
        return None
    if type(model).compile is not keras.Model.compile:
        return f"not compiled, since {type(model).__name__} has a `compile` of its own"
    # The optimizer in use is wrapped already, if it is to be, in one that scales the loss.
    arguments = model._compile_config.config | {
        "optimizer": model.optimizer,
        "auto_scale_loss": False,
    }
    try:
        for name in ("optimizer", "metrics", "weighted_metrics"):
            arguments[name] = keras.tree.map_structure(_made_again, arguments[name])
        copy.compile(**arguments)
        if model.optimizer is not None and model.optimizer.built:
            copy.optimizer.build(copy.trainable_variables)
            pairs = zip(model.optimizer.variables, copy.optimizer.variables, strict=True)
            for variable, other in pairs:
                other.assign(variable)
    except Exception as error:
        copy.compiled = False
        return f"not compiled: {error}"
    return None


def _made_again(value: Any) -> Any:
    """Return another optimizer or metric like `value`, or what has no state as it is."""
    if not isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return value
    return type(value).from_config(value.get_config())
