"""Swaps Keras's dropout layers in a model for those of this package, and back."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from fastdrop_keras import layer_search, layer_swap, model_copy

# Layers that get theirs as arguments, and make them again from their own configurations.
_CONTAINERS = (
    keras.layers.Wrapper,
    keras.layers.Bidirectional,
    keras.layers.RNN,
    keras.layers.StackedRNNCells,
)


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Args:
        path: The names of the layers that it is in, and its own.
        before: Its class before.
        after: Its class now, or `None` where it stayed.
        note: Why it stayed.
        made_by: The name of the class that made it, and makes another when a file is loaded.
    """

    path: str
    before: type
    after: type | None
    note: str = ""
    made_by: str = ""


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What was changed and what could not be; `str` of it is what is printed.

    Args:
        model: The model's name.
        in_place: Whether the model itself was changed.
        layers: A `LayerReport` for each layer that was changed or that drops and was not.
        notes: What else could not be kept.
    """

    model: str
    in_place: bool
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[LayerReport, ...]:
        """The layers that were changed."""
        return tuple(layer for layer in self.layers if layer.after is not None)

    @property
    def unchanged(self) -> tuple[LayerReport, ...]:
        """The layers that drop units or add noise, and stayed as they are."""
        return tuple(layer for layer in self.layers if layer.after is None)

    def __str__(self) -> str:
        where = "changed in place" if self.in_place else "a new model"
        lines = [f"{self.model} ({where}): {_layers(len(self.changed))} changed"]
        lines += [f"  {_line(layer)}" for layer in self.changed]
        if self.unchanged:
            lines.append(f"{_layers(len(self.unchanged))} not changed")
            lines += [f"  {_line(layer)}" for layer in self.unchanged]
        makers = sorted({layer.made_by for layer in self.changed if layer.made_by})
        if makers:
            lines.append(f"* made by {', '.join(makers)}: made as it was when a file is loaded")
        return "\n".join([*lines, *self.notes])


def convert(
    model: keras.Model,
    *,
    in_place: bool | None = None,
    verbose: bool = True,
    return_report: bool = False,
) -> Any:
    """Puts the dropout layers of this package in the place of Keras's.

    `model = fastdrop_keras.convert(model)` finds `Dropout`, `SpatialDropout1D`,
    `SpatialDropout2D` and `SpatialDropout3D` at any depth: in models in models, in wrappers, in
    layers that have them as attributes or in lists, tuples and dicts, `MultiHeadAttention` among
    them. Their names, rates, seeds, noise shapes, data formats, dtype policies and flags are kept,
    and so are the states of their seed generators: seeds go on where they were, though the masks
    that they give are other ones. All else in the model is as it was: the weights, the other
    layers and what it was compiled with, the state of its optimizer included.

    A sequential or functional model is copied, and the copy is changed: it shares nothing with the
    original, which stays as it is. A subclassed model is Python code, which cannot be copied: it
    is changed in place, and returned. So the returned value is the converted model in any case.

    Not converted but listed are subclasses of Keras's layers, whose `call` may do something else;
    what drops without a dropout layer (recurrent cells, `keras.layers.Attention`); and the other
    kinds: `AlphaDropout`, `GaussianDropout`, `GaussianNoise`.

    A layer that makes its dropout layer itself, such as `MultiHeadAttention` or one that you wrote,
    makes one of Keras's again when a `.keras` file is loaded or its configuration is used: convert
    the loaded model then. They are marked in the list.

    Args:
        model: A Keras model, built or not, compiled or not.
        in_place: Boolean, or `None` for what the kind of the model allows: `True` changes the
            model itself, also where it could be copied. That takes no memory, and keeps all
            references to the model and its layers (but those to the dropout layers) valid. Not
            for a model of whose tensors other functional models were made: they share its graph.
        verbose: Boolean: whether to print the list of what was changed and what could not be.
        return_report: Boolean: whether to return that list too.

    Returns:
        The converted model; with `return_report=True`, a tuple of it and a report: its attributes
        `changed` and `unchanged` hold for each layer its `path`, its classes `before` and `after`,
        a `note` that says why it stayed, and the class that it is `made_by`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If a layer has to be copied and cannot be; if an attribute does not take
            another layer, and the model is as it was then; if `in_place` is `False` and the model
            is a subclassed one.

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
    >>> model.layers[0].rate
    0.2
    """
    return _converted(model, "convert", layer_swap.CLASSES, in_place, verbose, return_report)


def to_keras(
    model: keras.Model,
    *,
    in_place: bool | None = None,
    verbose: bool = True,
    return_report: bool = False,
) -> Any:
    """Puts Keras's dropout layers in the place of those of this package: `convert`, backwards.

    All that `fastdrop_keras.convert` says of its arguments, of what is kept and of copies holds
    here too. Keras's layers have no seed generator where the rate is 0, and their rates are fixed
    when a training step is traced.

    Args:
        model: A Keras model, built or not, compiled or not.
        in_place: Boolean or `None`: whether to change the model itself, as for `convert`.
        verbose: Boolean: whether to print the list of what was changed and what could not be.
        return_report: Boolean: whether to return that list too.

    Returns:
        The converted model; with `return_report=True`, a tuple of it and a report.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If a layer has to be copied and cannot be; if an attribute does not take
            another layer, and the model is as it was then; if `in_place` is `False` and the model
            is a subclassed one.

    Example:

    >>> import keras
    >>> from fastdrop_keras import Dropout, to_keras
    >>> model = keras.Sequential([keras.Input((4,)), Dropout(0.2, name="drop")], name="small")
    >>> model = to_keras(model)
    small (a new model): 1 layer changed
      drop: fastdrop_keras Dropout -> keras Dropout
    """
    return _converted(
        model, "to_keras", layer_swap.CLASSES_OF_KERAS, in_place, verbose, return_report
    )


def _converted(
    model: keras.Model,
    function: str,
    classes: dict[type, type],
    in_place: bool | None,
    verbose: bool,
    return_report: bool,
) -> Any:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`{function}` expects a Keras model for argument `model`. "
            f"Received: model={model!r} (of type {type(model).__name__})"
        )
    if in_place is None:
        in_place = not model_copy.can_be_copied(model)
    elif not in_place and not model_copy.can_be_copied(model):
        raise ValueError(
            f"A subclassed model can only be changed in place. Received: in_place={in_place} for "
            f"{model.name!r} of type {type(model).__name__}"
        )
    note = None
    with model.distribute_strategy.scope():
        result = model if in_place else model_copy.copied(model)
        reports = _swap(result, classes)
        if in_place:
            _forget_compiled_functions(result)
        else:
            note = model_copy.compile_like(result, model)
    notes = () if note is None else (f"The new model is {note}",)
    report = ConversionReport(model.name, in_place, tuple(reports), notes)
    if verbose:
        print(report)
    return (result, report) if return_report else result


def _swap(model: keras.Model, classes: dict[type, type]) -> list[LayerReport]:
    """Put a layer of the other class in the place of every layer of one of `classes`."""
    reports: list[LayerReport] = []
    swaps: list[tuple[keras.Layer, keras.Layer]] = []
    for path, line in layer_search.with_paths(model):
        layer, after, note = line[-1], classes.get(type(line[-1])), ""
        if after is None:
            note = _why_it_stays(layer, classes)
            if not note:
                continue
        else:
            try:
                swaps.append((layer, layer_swap.twin(layer, after)))
            except (TypeError, ValueError) as error:
                after, note = None, str(error)
        maker = "" if after is None else _maker(line)
        reports.append(LayerReport(path, type(layer), after, note, maker))
    layer_swap.swap(model, swaps)
    return reports


def _why_it_stays(layer: keras.Layer, classes: dict[type, type]) -> str:
    """Return why a layer that drops is not changed, or nothing if it does not drop."""
    for known in classes:
        if isinstance(layer, known):
            return "a subclass, whose `call` may do something else"
    if classes is layer_swap.CLASSES_OF_KERAS:
        return ""
    if isinstance(
        layer,
        (keras.layers.AlphaDropout, keras.layers.GaussianDropout, keras.layers.GaussianNoise),
    ):
        return "not dropout of this kind"
    if isinstance(layer, (keras.layers.Attention, keras.layers.AdditiveAttention)):
        return "drops without a dropout layer" if layer.dropout > 0 else ""
    # A recurrent layer shows the rates of its cell, which is in the list itself.
    if hasattr(layer, "recurrent_dropout") and not hasattr(layer, "cell"):
        return "drops without a dropout layer" if layer.dropout or layer.recurrent_dropout else ""
    return ""


def _maker(line: list[keras.Layer]) -> str:
    """Return the class that makes the last layer of `line` itself, if one on it does."""
    for owner in line[:-1]:
        if isinstance(owner, keras.Model) and model_copy.can_be_copied(owner):
            continue
        if not isinstance(owner, _CONTAINERS):
            return type(owner).__name__
    return ""


def _forget_compiled_functions(model: keras.Model) -> None:
    """Let Keras trace the steps again, with the layers that are there now."""
    for layer in layer_search.every_layer(model):
        if not isinstance(layer, keras.Model):
            continue
        layer.train_function = layer.test_function = layer.predict_function = None
        # XLA compiles Keras's layers and not ours: what was asked for counts again. `None` is for
        # later; and Keras looks at nothing where the value is the same object as before.
        layer.jit_compile = None
        if layer.compiled:
            layer.jit_compile = layer._compile_config.config["jit_compile"]


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


def _line(layer: LayerReport) -> str:
    after = "" if layer.after is None else f" -> {_class_name(layer.after)}"
    note = f" ({layer.note})" if layer.note else ""
    mark = " *" if layer.made_by else ""
    return f"{layer.path}: {_class_name(layer.before)}{after}{note}{mark}"


def _class_name(layer_class: type) -> str:
    return f"{layer_class.__module__.partition('.')[0]} {layer_class.__name__}"
