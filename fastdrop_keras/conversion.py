"""Turns Keras's dropout layers in a model or its copy into those of this package, and back."""

from __future__ import annotations

import dataclasses
import inspect
import tempfile
import types
from typing import Any

import keras

from fastdrop_keras import layer_search, layers

_OURS = (layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)
_TO_KERAS: dict[type, type] = {ours: getattr(keras.layers, ours.__name__) for ours in _OURS}
_TO_OURS: dict[type, type] = {theirs: ours for ours, theirs in _TO_KERAS.items()}
_OTHERS = (keras.layers.AlphaDropout, keras.layers.GaussianDropout, keras.layers.GaussianNoise)
# Layers that get theirs as arguments, and make them again from their own configurations.
_CONTAINERS = (
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.RNN,
    keras.layers.StackedRNNCells,
)


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Says what became of one layer.

    Args:
        path: String, the names of the layers that it is in, and its own, with slashes between.
        before: Its class before.
        after: Its class now, or `None` where it stayed.
        note: String: why it stayed, or what to know of it.

    Example:

    >>> import keras
    >>> from fastdrop_keras import Dropout, LayerReport
    >>> print(LayerReport("block/drop", keras.layers.Dropout, Dropout))
    block/drop: keras Dropout -> fastdrop_keras Dropout
    """

    path: str
    before: type
    after: type | None
    note: str = ""

    def __str__(self) -> str:
        after = "" if self.after is None else f" -> {_class_name(self.after)}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.path}: {_class_name(self.before)}{after}{note}"


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """Says what `convert` or `to_keras` changed and what it could not: `print(report)`.

    Args:
        model: String, the model's name.
        in_place: Boolean: whether the model itself was changed.
        changed: Tuple of a `LayerReport` for each layer that was changed.
        unchanged: Tuple of one for each layer that drops units or adds noise, and stayed.
        notes: Tuple of strings: what else could not be kept.

    Example:

    >>> import keras
    >>> from fastdrop_keras import convert
    >>> model = keras.Sequential([keras.layers.Dropout(0.2, name="drop")])
    >>> model, report = convert(model, verbose=False, return_report=True)
    >>> [layer.path for layer in report.changed]
    ['drop']
    """

    model: str
    in_place: bool
    changed: tuple[LayerReport, ...]
    unchanged: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = "changed in place" if self.in_place else "a new model"
        lines = [f"{self.model} ({where}): {_counted(self.changed)} changed"]
        lines += [f"  {layer}" for layer in self.changed]
        if self.unchanged:
            lines += [f"{_counted(self.unchanged)} not changed"]
            lines += [f"  {layer}" for layer in self.unchanged]
        return "\n".join([*lines, *self.notes])


def convert(
    model: keras.Model,
    *,
    in_place: bool | None = None,
    verbose: bool = True,
    return_report: bool = False,
) -> Any:
    """Turns Keras's dropout layers in a model into those of this package.

    It finds `Dropout` and `SpatialDropout1D`, `2D` and `3D` wherever Keras does: in models in
    models, in wrappers, in the attributes of layers, `MultiHeadAttention` among them. Names, rates,
    seeds, noise shapes, data formats, dtype policies and flags stay, and so do the states of the
    seed generators, though the masks are other ones. All else in the model is as it was.

    A sequential or functional model is copied, with its weights and what it was compiled with; the
    copy shares no state with the original. A subclassed model is Python code, which cannot be
    copied: it is changed itself. A dropout layer that is changed in place stays the same object, of
    another class, so that all references to it hold. Compile other models that share it again.

    The report lists what stays Keras's: subclasses of its layers, whose `call` may do something
    else; other kinds (`AlphaDropout`, `GaussianDropout`, `GaussianNoise`); what drops without a
    dropout layer (recurrent cells, `keras.layers.Attention`); layers that Keras does not find, in
    plain objects and functions; and methods of a layer that the model holds.

    A layer that makes its dropout layer itself, such as `MultiHeadAttention`, makes Keras's again
    when a `.keras` file is loaded: convert the loaded model then.

    Args:
        model: A Keras model, built or not, compiled or not.
        in_place: Boolean: whether to change the model itself, which takes no memory. `None` for
            what the kind of the model allows.
        verbose: Boolean: whether to print the report.
        return_report: Boolean: whether to return the report too.

    Returns:
        The converted model, or with `return_report=True` a tuple of it and a `ConversionReport`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If a layer cannot be copied, or if `in_place` is `False` and the model is a
            subclassed one. The model is as it was then.

    Example:

    >>> import keras
    >>> from fastdrop_keras import convert
    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dropout(0.2, name="drop"),
    ...     keras.layers.GaussianNoise(0.1, name="noise"),
    ... ], name="small")
    >>> model = convert(model)
    small (a new model): 1 layer changed
      drop: keras Dropout -> fastdrop_keras Dropout
    1 layer not changed
      noise: keras GaussianNoise (not dropout of this kind)
    """
    return _converted(model, _TO_OURS, in_place, verbose, return_report)


def to_keras(
    model: keras.Model,
    *,
    in_place: bool | None = None,
    verbose: bool = True,
    return_report: bool = False,
) -> Any:
    """Turns the dropout layers of this package in a model into Keras's: `convert`, backwards.

    Arguments, results and errors are those of `fastdrop_keras.convert`. The rates of Keras's
    layers are fixed when a training step is traced.

    Example:

    >>> import keras
    >>> from fastdrop_keras import Dropout, to_keras
    >>> model = keras.Sequential([keras.Input((4,)), Dropout(0.2, name="drop")], name="small")
    >>> model = to_keras(model)
    small (a new model): 1 layer changed
      drop: fastdrop_keras Dropout -> keras Dropout
    """
    return _converted(model, _TO_KERAS, in_place, verbose, return_report)


def _converted(
    model: Any, classes: dict[type, type], in_place: bool | None, verbose: bool, return_report: bool
) -> Any:
    layer_search.check_model(model, "convert" if classes is _TO_OURS else "to_keras")
    if in_place is None:
        in_place = not _can_be_copied(model)
    elif not in_place and not _can_be_copied(model):
        raise ValueError(
            f"A subclassed model can only be changed in place. Received: in_place={in_place} for "
            f"{model.name!r} of type {type(model).__name__}"
        )
    with model.distribute_strategy.scope():
        result = model if in_place else _copied(model)
        reports = _change(result, classes)
        notes = _forget_traces(result) if in_place else _compile_like(result, model)
    changed = tuple(one for one in reports if one.after is not None)
    missed, traced = _missed(result, classes)
    unchanged = (*(one for one in reports if one.after is None), *missed)
    notes += traced if changed else []
    report = ConversionReport(model.name, in_place, changed, unchanged, tuple(notes))
    if verbose:
        print(report)
    return (result, report) if return_report else result


def _change(model: keras.Model, classes: dict[type, type]) -> list[LayerReport]:
    """Turn every layer of one of `classes` into the other class."""
    reports, changes = [], []
    for path, line in layer_search.with_paths(model):
        layer, after, note = line[-1], classes.get(type(line[-1])), _maker(line)
        if after is None:
            note = _why_it_stays(layer, classes)
        else:
            try:
                changes.append((layer, _twin(layer, after)))
            except (TypeError, ValueError) as error:
                after, note = None, str(error)
        if after or note:
            reports.append(LayerReport(path, type(layer), after, note))
    # Only now that there is all that is needed: nothing is changed by halves.
    for layer, twin in changes:
        _become(layer, twin)
    return reports


def _twin(layer: keras.Layer, twin_class: type) -> keras.Layer:
    """Return a dropout layer of `twin_class` that goes on where `layer` is."""
    names = inspect.signature(twin_class).parameters.keys() - {"name", "dtype", "kwargs"}
    arguments = {name: getattr(layer, name) for name in names}
    has_seed = hasattr(layer, "seed_generator")
    if has_seed and layer.rate == 0:
        # Keras's layer gets a seed generator only where its first rate is not 0.
        arguments["rate"] = 0.5
    twin = twin_class(**arguments, name=layer.name, dtype=layer.dtype_policy)
    twin.rate = layer.rate
    twin.trainable = layer.trainable
    twin.activity_regularizer = layer.activity_regularizer
    if has_seed:
        twin.seed_generator.state.assign(layer.seed_generator.state)
    return twin


def _become(layer: keras.Layer, twin: keras.Layer) -> None:
    """Make `layer` what `twin` is, for all that refers to it, in whatever way."""
    # What Keras bound to the object when it was made, and its calls in functional models.
    stays = ("build", "quantize", "_inbound_nodes", "_outbound_nodes")
    attributes = vars(twin) | {name: vars(layer)[name] for name in stays}
    # Not with the `__setattr__` of layers, which tracks what it sets.
    object.__setattr__(layer, "__dict__", attributes)
    object.__setattr__(layer, "__class__", type(twin))


def _why_it_stays(layer: keras.Layer, classes: dict[type, type]) -> str:
    """Return why a layer that drops is not changed, or nothing if it does not drop."""
    if isinstance(layer, tuple(classes)):
        return "a subclass, whose `call` may do something else"
    if classes is _TO_KERAS:
        return ""
    if isinstance(layer, _OTHERS):
        return "not dropout of this kind"
    attention = isinstance(layer, (keras.layers.Attention, keras.layers.AdditiveAttention))
    # A recurrent layer shows the rates of its cell, which is in the list itself.
    cell = hasattr(layer, "recurrent_dropout") and not hasattr(layer, "cell")
    drops = (attention or cell) and (layer.dropout or getattr(layer, "recurrent_dropout", 0))
    return "drops without a dropout layer" if drops else ""


def _maker(line: list[keras.Layer]) -> str:
    """Return a note on the layer on `line` that makes the last one itself, if there is one."""
    for owner in line[:-1]:
        if not _can_be_copied(owner) and not isinstance(owner, _CONTAINERS):
            return f"{type(owner).__name__} makes one as before when a file is loaded"
    return ""


def _missed(model: keras.Model, classes: dict[type, type]) -> tuple[list[LayerReport], list[str]]:
    """Return the layers that `model` may call and Keras does not find, and notes on functions."""
    reports, notes = [], []
    for path, attribute, value in layer_search.unknown_to_keras(model):
        if isinstance(value, keras.Layer):
            if type(value) in classes or _why_it_stays(value, classes):
                note = f"Keras does not find it in the attribute {attribute!r}"
                where = "/".join(filter(None, (path, value.name)))
                reports.append(LayerReport(where, type(value), None, note))
        elif isinstance(value, types.MethodType):
            owner: Any = value.__self__
            name = getattr(value, "__name__", "")
            if type(owner) in classes.values() and value != getattr(owner, name, None):
                note = f"the attribute {attribute!r} holds its method {name!r} of before"
                before = (_TO_KERAS | _TO_OURS)[type(owner)]
                where = "/".join(filter(None, (path, owner.name)))
                reports.append(LayerReport(where, before, None, note))
        elif value.experimental_get_tracing_count():
            notes.append(f"{path or model.name}: the `tf.function` {attribute!r} stays as traced")
    return reports, notes


def _forget_traces(model: keras.Model) -> list[str]:
    """Let Keras trace the steps again, with the layers that are there now."""
    for layer in layer_search.every_layer(model):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
            # XLA compiles Keras's layers and not ours: what was asked for counts again. `None`
            # first, since Keras looks at nothing where the value is the same object as before.
            layer.jit_compile = None
            if layer.compiled:
                layer.jit_compile = layer._compile_config.config["jit_compile"]
    return []


def _can_be_copied(model: keras.Layer) -> bool:
    """Return whether a model is sequential or functional, without a constructor of its own."""
    functional = isinstance(model, keras.Model) and isinstance(model, keras.Function)
    own = type(model).__init__.__module__.partition(".")[0] != "keras"
    return type(model) is keras.Sequential or (functional and not own)


def _copied(model: keras.Model) -> keras.Model:
    """Return a copy of `model` with its state, but not compiled."""
    layers = layer_search.every_layer(model)
    scope = {keras.saving.get_registered_name(type(layer)): type(layer) for layer in layers}
    compiled = [one for one in layers if isinstance(one, keras.Model) and one.compiled]
    for one in compiled:
        # Keras would compile its clone from a configuration, which holds no functions.
        one.compiled = False
    try:
        with keras.saving.custom_object_scope(scope):
            result = keras.models.clone_model(model, clone_function=_made_again, recursive=True)
        for layer, copy in zip(layers, layer_search.every_layer(result), strict=True):
            _copy_state(layer, copy)
        # Setting a layer's flag set those of all that is in it; no file has the seeds' states.
        for variable, copy in zip(model.variables, result.variables, strict=True):
            copy.trainable = variable.trainable
            copy.assign(variable)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be copied: {str(error).strip()}. Give its layers "
            "the methods `get_config` and `from_config` that make them again, or change the model "
            "itself, with in_place=True."
        ) from error
    finally:
        for one in compiled:
            one.compiled = True
    return result


def _made_again(layer: keras.Operation) -> keras.Operation:
    """Return another `layer`, without its state."""
    if type(layer) is keras.layers.Lambda:
        # Its configuration holds the code of a lambda, but not the globals that it uses.
        shape, flags = layer._output_shape, {"name": layer.name, "dtype": layer.dtype_policy}
        return keras.layers.Lambda(layer.function, shape, layer.mask, layer.arguments, **flags)
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        kind = type(layer).__name__
        raise ValueError(f"{layer.name!r} (of type {kind}): {str(error).strip()}") from error


def _copy_state(layer: keras.Layer, copy: keras.Layer) -> None:
    """Copy the state of `layer` itself, without that of the layers in it."""
    # Layers make Keras's dropout layers again, whichever are in theirs now.
    before, after = (_TO_OURS.get(type(one), type(one)) for one in (layer, copy))
    if before is not after or copy is layer:
        raise TypeError(f"made again, {layer!r} is {copy!r}")
    if before in _OURS:
        _become(copy, _twin(layer, type(layer)))
        return
    for flag in ("sparse", "ragged", "optional"):
        if isinstance(layer, keras.layers.InputLayer) and getattr(layer, flag, False):
            raise ValueError(f"Keras cannot make {layer!r} again, which is {flag}")
    # Layers that others make have names that count on.
    copy.name, copy.trainable = layer.name, layer.trainable
    if isinstance(layer, keras.Model):
        copy.dtype_policy = layer.dtype_policy
    # Keras's own way to files and back, which layers may override.
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    if store:
        copy.load_own_variables(store)
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as directory:
            layer.save_assets(directory)
            copy.load_assets(directory)
    if isinstance(layer, keras.layers.RNN) and layer.stateful:
        # Between batches only: they are in no file.
        for state, other in zip(*map(keras.tree.flatten, (layer.states, copy.states)), strict=True):
            other.assign(state)


def _compile_like(copy: keras.Model, model: keras.Model) -> list[str]:
    """Compile `copy` as `model` is, with the optimizer's state, or return a note on why not."""
    if not model.compiled:
        return []
    if type(model).compile is not keras.Model.compile:
        name = type(model).__name__
        return [f"The new model is not compiled, since {name} has a `compile` of its own"]
    # The optimizer in use is wrapped already, if it is to be, in one that scales the loss.
    asked = model._compile_config.config | {"optimizer": model.optimizer, "auto_scale_loss": False}
    try:
        for name in ("optimizer", "metrics", "weighted_metrics"):
            asked[name] = keras.tree.map_structure(_with_own_state, asked[name])
        copy.compile(**asked)
        if model.optimizer is not None and model.optimizer.built:
            copy.optimizer.build(copy.trainable_variables)
            pairs = zip(model.optimizer.variables, copy.optimizer.variables, strict=True)
            for variable, other in pairs:
                other.assign(variable)
    except Exception as error:
        copy.compiled = False
        return [f"The new model is not compiled: {error}"]
    return []


def _with_own_state(value: Any) -> Any:
    """Return another optimizer or metric like `value`, or what has no state as it is."""
    stateful = isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric))
    return type(value).from_config(value.get_config()) if stateful else value


def _counted(layers: tuple[LayerReport, ...]) -> str:
    return f"{len(layers)} layer{'s' * (len(layers) != 1)}"


def _class_name(layer_class: type) -> str:
    return f"{layer_class.__module__.partition('.')[0]} {layer_class.__name__}"
