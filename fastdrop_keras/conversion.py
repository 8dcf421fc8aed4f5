"""Replaces Keras's dropout layers in a model by the layers of this package, and back."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.applications import convnext

from fastdrop_keras import layer_code, layer_state, models, recurrent, switch
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.structured import StochasticDepth

_TO_OURS: dict[type, type] = {**switch.CLASSES, convnext.StochasticDepth: StochasticDepth}
_TO_KERAS: dict[type, type] = {ours: theirs for theirs, ours in _TO_OURS.items()}
_RECURRENT_TO_KERAS: dict[type, type] = {ours: theirs for theirs, ours in switch.RECURRENT.items()}
# KerasHub's models have classes of their own for stochastic depth.
_OF_KERAS_HUB = {
    "keras_hub.src.models.mit.mit_layers": "DropPath",
    "keras_hub.src.models.mobilenetv5.mobilenetv5_layers": "DropPath",
    "keras_hub.src.models.swin_transformer.swin_transformer_layers": "DropPath",
}
# The names of the rate, or the deviation, among the arguments and attributes of Keras's and
# KerasHub's layers.
_RATES = ("rate", "drop_path_rate", "drop_prob", "stddev")
# Keras's layers that make dropout layers when they are built.
_MAKERS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
# Layers whose configurations hold the configurations of the layers in them.
_CONTAINERS = tuple(
    getattr(keras.layers, name) for name in ("Wrapper", "Bidirectional", "RNN", "StackedRNNCells")
)
# TensorFlow's lists of the attributes that a layer has, or once had.
_OF_TENSORFLOW = {
    *("_self_unconditional_checkpoint_dependencies", "_self_unconditional_dependency_names"),
    *("_self_unconditional_deferred_dependencies", "_self_name_based_restores"),
    *("_self_saveable_object_factories", "_self_update_uid"),
}
# The names in a class that only changes defaults. Python adds all of them but the first.
_NEUTRAL = {
    *("__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
    *("__firstlineno__", "__static_attributes__", "__type_params__", "__orig_bases__"),
    # Attributes that Keras and TensorFlow set in use.
    *_OF_TENSORFLOW,
    *("train_function", "test_function", "predict_function", "optimizer", "history"),
    *("stop_training", "stop_evaluating", "stop_predicting"),
}


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Reports on one layer of a converted model.

    Args:
        path: String, the names from the model's layer to this one, separated by slashes.
        before: Class of the layer before the conversion.
        after: Class of the layer now, or `None` if it was not changed.
        note: String, the reason why it was not changed, or a restriction.

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
    """Lists the layers that `convert` or `to_keras` changed and did not change; `print` it.

    Args:
        model: String, the model's name.
        in_place: Boolean, whether the model itself was changed.
        changed: Tuple of a `LayerReport` for each changed layer.
        unchanged: Tuple of a `LayerReport` for each other layer that drops units or adds noise.
        notes: Tuple of strings: why a model was not copied, which attributes a copy lacks, which
            models keep the layers of a copied one, and what could not be compiled or traced again.

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
    """Replaces Keras's dropout and noise layers in a model by the layers of this package.

    It finds `Dropout`, `SpatialDropout1D`, `2D` and `3D`, `AlphaDropout`, `GaussianDropout` and
    `GaussianNoise`, and `LSTM`, `GRU`, `SimpleRNN` and their cells if they have a rate that is not
    0, wherever Keras does: in nested models, wrappers and attributes of layers, such as
    `MultiHeadAttention`. The layers keep their names, rates, standard deviations, seeds, noise
    shapes, data formats, dtype policies, flags and the states of their seed generators, but draw
    other masks and other noise. The rest of the model does not change.

    `StochasticDepth` replaces the layer of this name in Keras's ConvNeXt, and `DropPath` in
    KerasHub's Swin Transformer, MiT and MobileNetV5, unless it has `scale_by_keep=False`. The
    layers for this in KerasHub's DINOv2 and DINOv3 stay: they multiply samples by uniform numbers
    above 0 and drop none.

    A sequential or functional model is copied with its weights and its compilation, and so are the
    models in it. Attributes that other code has set on a model or a layer are not copied, and the
    report lists them. The copy shares no state with the original, nor with other models that have
    layers of the original: they keep Keras's layers, and train apart from the copy. To convert
    models that share layers, such as those of a GAN, use `in_place=True`.

    A model that cannot be copied is changed in place: a subclassed model, which is Python code, or
    one whose layers lack `get_config`. Then a dropout layer stays the same object and gets another
    class, so all references to it remain valid: other models that share the layer are converted
    too, and Keras traces their steps again. Your own `tf.function` or `jax.jit` in or around the
    model keeps its trace: make it again.

    A layer of a user's subclass is converted if the class has no more than a constructor, and this
    sets no other attributes: it changes defaults. Its class is then this package's, also in files,
    and after `to_keras` it is Keras's, with the same arguments.

    The report lists the layers that stay Keras's: other subclasses of its dropout layers;
    `GaussianDropout` at rate 1, whose noise would be infinite; layers that drop without a dropout
    layer (other recurrent cells, `keras.layers.Attention`, layers whose own code draws random
    numbers); layers in objects, functions and bound methods that the model refers to and Keras does
    not search; and layers that are not built, since they may make dropout layers then.

    A layer that makes its own dropout layer, such as `MultiHeadAttention`, makes Keras's again when
    a `.keras` file is loaded. Convert the loaded model again.

    Args:
        model: A Keras model, built or not, compiled or not.
        in_place: Boolean, whether to change the model itself, which takes no memory. `None`
            changes a model in place only if it cannot be copied.
        verbose: Boolean, whether to print the report.
        return_report: Boolean, whether to return the report too.

    Returns:
        The converted model, or with `return_report=True` a tuple of it and a `ConversionReport`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `in_place` is `False` and the model cannot be copied. It is then unchanged.

    Example:

    >>> import keras
    >>> from fastdrop_keras import convert
    >>> x = keras.Input((5, 4))
    >>> y = keras.layers.Dropout(0.2, name="drop")(x)
    >>> y = keras.layers.GaussianNoise(0.1, name="noise")(y)
    >>> y = keras.layers.Attention(dropout=0.1, name="attention")([y, y])
    >>> model = convert(keras.Model(x, y, name="small"))
    small (a new model): 2 layers changed
      drop: keras Dropout -> fastdrop_keras Dropout
      noise: keras GaussianNoise -> fastdrop_keras GaussianNoise
    1 layer not changed
      attention: keras Attention (drops without a dropout layer)
    """
    return _converted(model, _TO_OURS, in_place, verbose, return_report)


def to_keras(
    model: keras.Model,
    *,
    in_place: bool | None = None,
    verbose: bool = True,
    return_report: bool = False,
) -> Any:
    """Replaces the layers of this package in a model by Keras's: the inverse of `convert`.

    Arguments, results and errors are as for `fastdrop_keras.convert`. Tracing a training step
    fixes the rates of Keras's layers. `StochasticDepth` becomes the layer of Keras's ConvNeXt
    models, which has no seed. `DropBlock2D`, `DropConnectDense` and `DropConnectConv2D` stay, since
    Keras has no such layers, and so does a `GaussianNoise` whose standard deviation is above 1,
    which Keras refuses.

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
    models.check_model(model, "convert" if classes is _TO_OURS else "to_keras")
    for module, name in _OF_KERAS_HUB.items():
        if hasattr(sys.modules.get(module), name):
            _TO_OURS[getattr(sys.modules[module], name)] = StochasticDepth
    if in_place is not None and not in_place and not _can_be_copied(model):
        raise ValueError(
            f"A subclassed model can only be changed in place. Received: in_place={in_place} for "
            f"{model.name!r} of type {type(model).__name__}. Pass in_place=True"
        )
    result, notes, sharing = model, [], models.models_with_layers_of(model)
    with BACKEND.scope_of(model), switch.enabled(False):
        if not in_place and _can_be_copied(model):
            try:
                result = _copied(model)
                notes += _lost_attributes(model, result)
            except ValueError as error:
                if in_place is not None:
                    raise
                reason = " ".join(str(error.__cause__).partition("\n\n")[0].split())
                notes.append(f"Changed in place, since it cannot be copied: {reason}")
        in_place = result is model
        reports = _change(result, classes)
        if in_place:
            for one in (model, *sharing):
                _reset_compiled(one)
        else:
            notes += _compile_like(result, model)
            if sharing:
                names = ", ".join(sorted(repr(one.name) for one in sharing))
                notes.append(f"The new model has copies of layers that these models keep: {names}")
        missed, traced = _missed(result, classes)
    changed = tuple(one for one in reports if one.after is not None)
    unchanged = (*(one for one in reports if one.after is None), *missed)
    notes += traced if changed else []
    report = ConversionReport(model.name, in_place, changed, unchanged, tuple(notes))
    if verbose:
        print(report)
    return (result, report) if return_report else result


def _change(model: keras.Model, classes: dict[type, type]) -> list[LayerReport]:
    """Change each layer of a class in `classes` to the other class, and report on it."""
    reports, changes = [], []
    for path, line in models.layers_with_paths(model):
        layer, note = line[-1], _creator_note(line)
        after = _new_class(layer, classes)
        if after is None:
            note = _reason_to_stay(layer, classes)
            if classes is _TO_OURS and _is_unbuilt(layer) and not any(map(_is_unbuilt, line[:-1])):
                note = "not built: call it once, then convert it again"
        else:
            try:
                changes.append(_change_of(layer, after))
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                after, note = None, str(error)
        if after or note:
            reports.append(LayerReport(path or model.name, type(layer), after, note))
    # After the loop: an error in it leaves the model unchanged.
    for change in changes:
        change()
    return reports


def _new_class(layer: keras.Layer, classes: dict[type, type]) -> type | None:
    """Return the class that a layer gets, or `None` if it keeps its own."""
    if type(layer) in switch.RECURRENT and classes is _TO_OURS and recurrent.drops(layer):
        return switch.RECURRENT[type(layer)]
    if type(layer) in _RECURRENT_TO_KERAS and classes is _TO_KERAS:
        return _RECURRENT_TO_KERAS[type(layer)]
    return classes.get(_dropout_class(layer))


def _change_of(layer: keras.Layer, after: type) -> Callable[[], None]:
    """Return a function that makes `layer` one of the class `after`, if it can be."""
    if after in _RECURRENT_TO_KERAS or after in switch.RECURRENT:
        return recurrent.change_of(layer, after)
    return functools.partial(_become, layer, _replacement(layer, after), after)


def _dropout_class(layer: keras.Layer) -> type:
    """Return the class of a layer, or the dropout class of which it only changes the defaults."""
    base, name = _base_and_addition(layer)
    return type(layer) if base is None or name else base


def _base_and_addition(layer: keras.Layer) -> tuple[type | None, str]:
    """Return the dropout class that a layer's class extends, if any, and a name that it adds."""
    mro = type(layer).__mro__
    base = next((one for one in mro if one in _TO_OURS or one in _TO_KERAS), None)
    if base in (None, type(layer)):
        return base, ""
    names = [name for one in mro if one not in base.__mro__ for name in vars(one)]
    names += sorted(_own_attributes(layer, base))
    return base, next((name for name in names if name not in _NEUTRAL), "")


def _own_attributes(layer: keras.Layer, base: type) -> set[str]:
    """Return the attributes of a layer that a new layer of the class `base` does not have."""
    seed = {"seed": 0} if "seed" in inspect.signature(base).parameters else {}
    return set(vars(layer)) - set(vars(base(0.5, **seed, name=layer.name)))


def _replacement(layer: keras.Layer, new_class: type) -> keras.Layer:
    """Return a dropout layer of `new_class` with the arguments and the state of `layer`."""
    if new_class is StochasticDepth and not getattr(layer, "scale_by_keep", True):
        raise ValueError("it does not scale the samples that it keeps")
    names = inspect.signature(new_class).parameters.keys() - {"name", "dtype", "kwargs"}
    arguments = {name: _argument(layer, name) for name in names}
    generator = _seed_generator(layer)
    rates = {name: value for name, value in arguments.items() if name in _RATES}
    if generator is not None:
        # Keras creates a seed generator only if the first rate or deviation is not 0.
        arguments |= {name: rate or 0.5 for name, rate in rates.items()}
    new = new_class(**arguments, name=layer.name, dtype=layer.dtype_policy)
    copied = ("trainable", "activity_regularizer", "supports_masking", "input_spec")
    for name, value in [*rates.items(), *((name, getattr(layer, name)) for name in copied)]:
        setattr(new, name, value)
    if generator is not None and _seed_generator(new) is not None:
        position = layer_state.position(generator)
        layer_state.set_position(_seed_generator(new), position)
    return new


def _argument(layer: keras.Layer, name: str) -> Any:
    """Return the value of an argument of a dropout class, from a layer of any of them."""
    if name in _RATES:
        name = next(one for one in _RATES if hasattr(layer, one))
    elif name == "seed":
        # The `seed` of KerasHub's MiT is the generator. ConvNeXt's layer has no seed.
        return getattr(layer, "_seed_val", getattr(layer, "seed", None))
    return getattr(layer, name)


def _seed_generator(layer: keras.Layer) -> keras.random.SeedGenerator | None:
    """Return the seed generator of a dropout layer, which has it in any attribute."""
    generators = (
        one for one in vars(layer).values() if isinstance(one, keras.random.SeedGenerator)
    )
    return next(generators, None)


def _become(layer: keras.Layer, replacement: keras.Layer, new_class: type) -> None:
    """Give `layer` a class and the attributes of `replacement`, so that references stay valid."""
    # Methods that Keras binds to the object, and the layer's calls in functional models.
    kept = ("build", "quantize", "autocast", "_remat_mode", "_inbound_nodes", "_outbound_nodes")
    # Attributes that other code has set.
    own = _own_attributes(layer, _dropout_class(layer))
    attributes = {name: vars(layer)[name] for name in own} | vars(replacement)
    attributes |= {name: vars(layer)[name] for name in kept}
    # The `__setattr__` of layers would track these values.
    object.__setattr__(layer, "__dict__", attributes)
    object.__setattr__(layer, "__class__", new_class)


def _reason_to_stay(layer: keras.Layer, classes: dict[type, type]) -> str:
    """Return why a layer that drops is not changed, or an empty string if it does not drop."""
    if _dropout_class(layer) in classes.values() or type(layer) in _RECURRENT_TO_KERAS:
        return ""
    if isinstance(layer, tuple(classes)):
        return f"a subclass with {_base_and_addition(layer)[1]!r} of its own"
    if classes is _TO_KERAS:
        return ""
    attention = isinstance(layer, (keras.layers.Attention, keras.layers.AdditiveAttention))
    # A recurrent layer returns the rates of its cell, which is reported itself.
    cell = hasattr(layer, "recurrent_dropout") and not hasattr(layer, "cell")
    drops = (attention or cell) and (layer.dropout or getattr(layer, "recurrent_dropout", 0))
    if drops:
        return "drops without a dropout layer"
    name = layer_code.random_name(layer)
    return f"may drop in its own code, which uses {name!r}" if name else ""


def _is_unbuilt(layer: keras.Layer) -> bool:
    """Return whether `layer` may make other layers when it is built, and is not built."""
    own_code = not layer_code.of_a_framework(type(layer))
    builds = isinstance(layer, keras.Model) or not layer_code.of_a_framework(type(layer).build)
    return not layer.built and (isinstance(layer, _MAKERS) or (own_code and builds))


def _creator_note(line: list[keras.Layer]) -> str:
    """Return a note if a layer on `line` makes the last one itself, when a file is loaded."""
    for end in range(len(line) - 1, 0, -1):
        owner = line[end - 1]
        if not _can_be_copied(owner) and not isinstance(owner, _CONTAINERS):
            path = "/".join(one.name for one in line[1:end]) or owner.name
            return f"made by {type(owner).__name__} {path!r}, again when a file is loaded"
    return ""


def _missed(model: keras.Model, classes: dict[type, type]) -> tuple[list[LayerReport], list[str]]:
    """Return reports on layers that Keras does not find in `model`, and notes on functions."""
    reports, notes = [], []
    for path, attribute, value in _missed_by_keras(model):
        layer, before, note = value, type(value), ""
        if isinstance(value, types.MethodType):
            layer, name = value.__self__, getattr(value, "__name__", "")
            if type(layer) in classes.values() and value != getattr(layer, name, None):
                before = (_TO_KERAS | _TO_OURS)[type(layer)]
                note = f"the attribute {attribute!r} refers to its former method {name!r}"
        elif not isinstance(value, keras.Layer):
            if value.experimental_get_tracing_count():
                notes.append(
                    f"{path or model.name}: the `tf.function` {attribute!r} keeps its trace"
                )
        elif _new_class(value, classes) or _reason_to_stay(value, classes):
            note = f"Keras does not find it in the attribute {attribute!r}"
        if note:
            where = "/".join(filter(None, (path, layer.name)))
            reports.append(LayerReport(where, before, None, note))
    return reports, notes


def _missed_by_keras(model: keras.Layer) -> Iterator[tuple[str, str, Any]]:
    """Yield layers, bound methods and `tf.function`s that Keras does not find in `model`.

    They are in the attributes of its layers, at any depth of objects, functions and containers.
    Each comes with the path of the layer and the name of the attribute.
    """
    wanted = (keras.Layer, types.MethodType, *BACKEND.TRACED_FUNCTIONS)
    # The objects too, since Python reuses the id of a deleted object.
    visited = {id(layer): layer for layer in model._flatten_layers()}
    for path, line in models.layers_with_paths(model):
        # Public names first: Keras's private lists hold layers again.
        attributes = _attributes(line[-1])
        names = attributes.keys() - _OF_TENSORFLOW
        for attribute in sorted(names, key=lambda name: (name.startswith("_"), name)):
            waiting = [attributes[attribute]]
            while waiting:
                value = waiting.pop()
                # Python's garbage collector tracks only objects that can refer to others.
                if id(value) in visited or not gc.is_tracked(value):
                    continue
                visited[id(value)] = value
                if isinstance(value, wanted):
                    yield path, attribute, value
                waiting.extend(_referents(value))


def _attributes(layer: keras.Layer) -> dict[str, Any]:
    """Return the attributes of `layer`, with the `tf.function`s of its class bound to it."""
    functions = [
        name
        for base in type(layer).__mro__
        for name, value in vars(base).items()
        if isinstance(value, BACKEND.TRACED_FUNCTIONS)
    ]
    return {**{name: getattr(layer, name) for name in functions}, **vars(layer)}


def _referents(value: Any) -> list[Any]:
    """Return the objects that `value` refers to, unless it belongs to a framework."""
    if isinstance(value, BACKEND.TRACED_FUNCTIONS):
        return [value.python_function]
    if isinstance(value, types.FunctionType) and not layer_code.of_a_framework(value):
        # Only the layers among a module's globals: the others lead through the whole program.
        used = [value.__globals__.get(name) for name in value.__code__.co_names]
        found = [other for other in used if isinstance(other, keras.Layer)]
        return found + [
            other for other in gc.get_referents(value) if other is not value.__globals__
        ]
    if isinstance(value, keras.Layer):
        return list(_attributes(value).values())
    if isinstance(value, (type, types.ModuleType, types.FunctionType)):
        return []
    container = isinstance(value, (dict, list, tuple, set))
    return (
        gc.get_referents(value) if container or not layer_code.of_a_framework(type(value)) else []
    )


def _reset_compiled(model: keras.Model) -> None:
    """Make Keras trace the steps of `model` again."""
    BACKEND.forget_traces(model)
    for layer in list(model._flatten_layers()):
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
            # XLA compiles Keras's layers, and ours on some machines only, so Keras must check the
            # user's setting again. It does so only if the value changes: `None` first.
            layer.jit_compile = None
            if layer.compiled:
                layer.jit_compile = layer._compile_config.config["jit_compile"]


def _can_be_copied(model: keras.Layer) -> bool:
    """Return whether a model is sequential or functional, without its own constructor."""
    functional = isinstance(model, keras.Model) and isinstance(model, keras.Function)
    own = type(model).__init__.__module__.partition(".")[0] != "keras"
    return type(model) is keras.Sequential or (functional and not own)


def _copied(model: keras.Model) -> keras.Model:
    """Return a copy of `model` with its state, but not compiled."""
    originals = list(model._flatten_layers())
    scope = {keras.saving.get_registered_name(type(layer)): type(layer) for layer in originals}
    compiled = [one for one in originals if isinstance(one, keras.Model) and one.compiled]
    for one in compiled:
        # Keras would compile its clone from a configuration, which cannot hold functions.
        one.compiled = False
    try:
        with keras.saving.custom_object_scope(scope):
            result = keras.models.clone_model(model, clone_function=_clone, recursive=True)
        for layer, copy in zip(originals, list(result._flatten_layers()), strict=True):
            _copy_state(layer, copy)
        # A layer sets the flag `trainable` of all variables in it, and saves no seed's state.
        for variable, copy in zip(model.variables, result.variables, strict=True):
            copy.trainable = variable.trainable
            _assign_copy(copy, variable)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be copied: {str(error).strip()}. Give its layers "
            "the methods `get_config` and `from_config`, or change the model in place, with "
            "in_place=True."
        ) from error
    finally:
        for one in compiled:
            one.compiled = True
    return result


def _lost_attributes(model: keras.Model, copy: keras.Model) -> list[str]:
    """Return notes on attributes of layers, set by other code, that their copies lack."""
    notes = []
    for layer, other in zip(model._flatten_layers(), copy._flatten_layers(), strict=True):
        lost = sorted(vars(layer).keys() - vars(other).keys() - _NEUTRAL)
        names = ", ".join(repr(name) for name in lost if not name.startswith("_"))
        if names:
            notes.append(f"The copy of {layer.name!r} lacks attributes: {names}")
    return notes


def _clone(layer: keras.Operation) -> keras.Operation:
    """Return a new layer from the configuration of `layer`, without its state."""
    if type(layer) is keras.layers.Lambda:
        # A configuration holds a lambda's code without the globals that the code uses.
        shape, flags = layer._output_shape, {"name": layer.name, "dtype": layer.dtype_policy}
        return keras.layers.Lambda(layer.function, shape, layer.mask, layer.arguments, **flags)
    try:
        return type(layer).from_config(layer.get_config())
    except Exception as error:
        kind = type(layer).__name__
        raise ValueError(f"{layer.name!r} (of type {kind}): {str(error).strip()}") from error


def _copy_state(layer: keras.Layer, copy: keras.Layer) -> None:
    """Copy the state of `layer`, without the states of the layers in it."""
    # A layer that creates its own dropout layer creates Keras's, whichever it has now.
    before, after = (_TO_OURS.get(one, one) for one in map(_dropout_class, (layer, copy)))
    if (before is not after and type(copy) is not type(layer)) or copy is layer:
        raise TypeError(f"the copy of {layer!r} is {copy!r}")
    if before in _TO_KERAS:
        _become(copy, _replacement(layer, _dropout_class(layer)), type(layer))
        return
    for flag in ("sparse", "ragged", "optional"):
        if isinstance(layer, keras.layers.InputLayer) and getattr(layer, flag, False):
            raise ValueError(f"Keras cannot copy {layer!r}, which is {flag}")
    # The default names of layers that other layers create are numbered.
    copy.name, copy.trainable = layer.name, layer.trainable
    if isinstance(layer, keras.Model):
        copy.dtype_policy = layer.dtype_policy
    # As Keras writes and reads files. Layers may override these methods.
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    if store:
        copy.load_own_variables(store)
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as directory:
            layer.save_assets(directory)
            copy.load_assets(directory)
    if isinstance(layer, keras.layers.RNN) and layer.stateful:
        # Files do not have the states between batches.
        for state, other in zip(*map(keras.tree.flatten, (layer.states, copy.states)), strict=True):
            _assign_copy(other, state)


def _assign_copy(variable: keras.Variable, other: keras.Variable) -> None:
    """Give `variable` the value of `other`. On JAX, `fit` deletes the arrays that it used."""
    variable.assign(keras.ops.copy(other))


def _compile_like(copy: keras.Model, model: keras.Model) -> list[str]:
    """Compile `copy` as `model` is, with the optimizer's state, or return a note why not."""
    if not model.compiled:
        return []
    if type(model).compile is not keras.Model.compile:
        name = type(model).__name__
        return [f"The new model is not compiled, since {name} has a `compile` of its own"]
    # The model's optimizer already includes a loss scaling optimizer, if there is one.
    asked = model._compile_config.config | {"optimizer": model.optimizer, "auto_scale_loss": False}
    try:
        for name in ("optimizer", "metrics", "weighted_metrics"):
            asked[name] = keras.tree.map_structure(_with_own_state, asked[name])
        copy.compile(**asked)
        if model.optimizer is not None and model.optimizer.built:
            copy.optimizer.build(copy.trainable_variables)
            pairs = zip(model.optimizer.variables, copy.optimizer.variables, strict=True)
            for variable, other in pairs:
                _assign_copy(other, variable)
    except Exception as error:
        copy.compiled = False
        return [f"The new model is not compiled: {error}"]
    return []


def _with_own_state(value: Any) -> Any:
    """Return a new optimizer or metric like `value`, or `value` itself if it is neither."""
    stateful = isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric))
    return type(value).from_config(value.get_config()) if stateful else value


def _counted(layers: tuple[LayerReport, ...]) -> str:
    return f"{len(layers)} layer{'s' * (len(layers) != 1)}"


def _class_name(layer_class: type) -> str:
    return f"{layer_class.__module__.partition('.')[0]} {layer_class.__name__}"
