"""Defines recurrent layers and cells that drop the same units in all time steps of a call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops
from keras.src import backend
from keras.src.backend.common import global_state

from fastdrop_keras import blocks, layer_state
from fastdrop_keras.arguments import checked_count, checked_rate, checked_seed
from fastdrop_keras.backend import BACKEND
from fastdrop_keras.random_layer import RandomLayer, sampler


class MaskDropout(RandomLayer):
    """Draws masks for a recurrent cell: those of its inputs, or those of its states."""

    def draw(self, like: Any, count: int, training: Any) -> tuple[Any, Any] | None:
        """Return `count` masks for `like`, side by side, and the scale; or `None` in inference.

        A mask is true for the kept units. Unlike a mask of factors, it has no gradient, which a
        loop would add up in all time steps.
        """
        ones = ops.ones_like(ops.concatenate([like] * count, axis=-1))
        factors = self._draw(ones, training, None)
        if factors is ones:
            return None
        return factors != 0, ops.stop_gradient(ops.max(factors, initial=0))

    def _mask_shape(self) -> None:
        return None


class _Recurrent(keras.layers.Layer):
    """Checks arguments that Keras's class does not, and has the signature of Keras's class."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = inspect.signature(cls.__bases__[-1])

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(super().__init__).bind(*args, **kwargs).arguments
        checked_count(given["units"], "units")
        for name in ("dropout", "recurrent_dropout"):
            checked_rate(given.get(name, 0.0), name)
        checked_seed(given.get("seed"))
        super().__init__(*args, **kwargs)


class RecurrentCell(_Recurrent):
    """Has all that the cells share. It comes before Keras's class among the bases of a cell.

    A class defines `_advance`, which computes a time step from the product of inputs and kernel.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed_generator = BACKEND.new_seed_generator(self.seed)

    @property
    def input_dropout_layer(self) -> MaskDropout:
        """The layer that draws the masks of the inputs, for example for `RateSchedule`."""
        return self._mask_layer("_input_dropout_layer")

    @property
    def recurrent_dropout_layer(self) -> MaskDropout:
        """The layer that draws the masks of the states, for example for `RateSchedule`."""
        return self._mask_layer("_recurrent_dropout_layer")

    def _mask_layer(self, attribute: str) -> MaskDropout:
        # Keras's constructor sets the rates before a constructor could make both layers.
        if not hasattr(self, attribute):
            name = attribute.removeprefix("_").removesuffix("_layer")
            setattr(self, attribute, MaskDropout(0.0, seed=0, name=name))
        layer: MaskDropout = getattr(self, attribute)
        return layer

    @property
    def dropout(self) -> float:
        """Float between 0 and 1. Fraction of the input units to drop, which may be set."""
        return self.input_dropout_layer.rate

    @dropout.setter
    def dropout(self, value: float) -> None:
        self.input_dropout_layer.rate = checked_rate(value, "dropout")

    @property
    def recurrent_dropout(self) -> float:
        """Float between 0 and 1. Fraction of the state's units to drop, which may be set."""
        return self.recurrent_dropout_layer.rate

    @recurrent_dropout.setter
    def recurrent_dropout(self, value: float) -> None:
        self.recurrent_dropout_layer.rate = checked_rate(value, "recurrent_dropout")

    @property
    def seed_generator(self) -> keras.random.SeedGenerator:
        """`keras.random.SeedGenerator`. Each call takes two steps: for the inputs, and the states.

        Files and checkpoints save its state.
        """
        return self.input_dropout_layer.seed_generator

    @seed_generator.setter
    def seed_generator(self, generator: keras.random.SeedGenerator) -> None:
        # Keras has tracked it as one of the cell's own.
        self._tracker.untrack(generator)
        self.input_dropout_layer.seed_generator = generator
        self.recurrent_dropout_layer.seed_generator = generator

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a cell like this one, with the current rates."""
        return {**super().get_config(), **self._implementation()}

    def _implementation(self) -> dict[str, int]:
        # Keras leaves it out, and a loaded layer might have one mask for all gates.
        return {"implementation": 1} if self._mask_count > 1 else {}

    @property
    def _mask_count(self) -> int:
        """The number of masks in a call: one for each gate, or 1 for all."""
        return getattr(self, "dropout_mask_count", 1)

    def get_dropout_mask(self, step_input: Any) -> Any:
        """Return the mask of the inputs and the scale until `reset_dropout_mask`.

        The masks of gates are side by side. In inference there are none: the result is `None`.
        """
        if getattr(self, "_dropout_mask", None) is None:
            self._dropout_mask = self._drawn(self.input_dropout_layer, step_input)
        return self._dropout_mask

    def get_recurrent_dropout_mask(self, step_input: Any) -> Any:
        """Return the mask of the states and the scale, as `get_dropout_mask` does."""
        if getattr(self, "_recurrent_dropout_mask", None) is None:
            self._recurrent_dropout_mask = self._drawn(self.recurrent_dropout_layer, step_input)
        return self._recurrent_dropout_mask

    def _drawn(self, layer: MaskDropout, like: Any) -> Any:
        # Before the first time step, Keras passes states of the dtype of the stacked cells.
        return layer.draw(ops.cast(like, self.compute_dtype), self._mask_count, _training())

    def call(self, inputs: Any, states: Any, training: Any = False) -> Any:
        """Return the output and the new states of one time step; called by Keras."""
        # A recomputation under gradient checkpointing may have lost `training`.
        may_drop = BACKEND.is_tensor(training) or training or blocks.runs.get() or sampler.get()
        nested = keras.tree.is_nested(states)
        states = list(states) if nested else [states]
        drawn = self.get_dropout_mask(inputs) if may_drop else None
        if drawn is None:
            output, new = super().call(inputs, states, training=False)
        else:
            recurrent = self.get_recurrent_dropout_mask(states[0])
            project, advance = self._parts_of_a_step(drawn[1], *recurrent)
            output, new = advance(project(_dropped(inputs, drawn[0], self._mask_count)), states)
        return output, new if nested else new[0]

    def _parts_of_a_step(self, scale: Any, kept: Any, recurrent_scale: Any) -> tuple[Any, Any]:
        """Return functions for a loop: the product of dropped inputs, and what needs the states.

        They read and scale the weights once, for all time steps.
        """
        kernels = self._parts(self.kernel * scale)
        recurrent_kernels = self._parts(self.recurrent_kernel * recurrent_scale)
        bias, recurrent_bias = self._biases()

        def advance(projected: Any, states: Any) -> Any:
            return self._advance(projected, list(states), kept, recurrent_kernels, recurrent_bias)

        return functools.partial(_product, kernels=kernels, bias=bias), advance

    def _biases(self) -> tuple[Any, Any]:
        """Return the biases of the products of the inputs and of the states, or `None` for each."""
        return None if self.bias is None else ops.convert_to_tensor(self.bias), None

    def _parts(self, kernel: Any) -> list[Any]:
        """Return the parts of a kernel whose inputs have masks of their own."""
        count = self._mask_count
        return ops.split(kernel, count, axis=1) if count > 1 else [kernel]

    def _advance(
        self, projected: Any, states: list[Any], kept: Any, kernels: list[Any], bias: Any
    ) -> Any:
        """Return the output and the new states, from the product of the inputs.

        The product of the states has the mask `kept`, and the kernels and bias of `_step`.
        """
        raise NotImplementedError


class RecurrentLayer(_Recurrent):
    """Has all that the layers share. It comes before Keras's class among the bases of a layer."""

    _cell_class: type[RecurrentCell]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.cell, RecurrentCell):
            change_of(self.cell, self._cell_class)()

    @property
    def dropout(self) -> float:
        """Float between 0 and 1. Fraction of the input units to drop, which may be set."""
        rate: float = self.cell.dropout
        return rate

    @dropout.setter
    def dropout(self, value: float) -> None:
        self.cell.dropout = value

    @property
    def recurrent_dropout(self) -> float:
        """Float between 0 and 1. Fraction of the state's units to drop, which may be set."""
        rate: float = self.cell.recurrent_dropout
        return rate

    @recurrent_dropout.setter
    def recurrent_dropout(self, value: float) -> None:
        self.cell.recurrent_dropout = value

    def get_config(self) -> dict[str, Any]:
        """Return the arguments to make a layer like this one, with the current rates."""
        # Keras's SimpleRNN leaves the seed out.
        return {**super().get_config(), "seed": self.cell.seed, **self.cell._implementation()}

    def _maybe_config_dropout_masks(self, *args: Any) -> None:
        """Store no masks in the cell, which other threads may call: `inner_loop` draws them."""

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: Any = False
    ) -> Any:
        """Return the last output, all outputs and the last states; called by Keras."""
        cell, states = self.cell, keras.tree.flatten(initial_state)
        count = cell._mask_count
        drawn = cell.input_dropout_layer.draw(sequences[:, 0], count, training)
        recurrent = cell.recurrent_dropout_layer.draw(states[0], count, training)
        if drawn is None:
            return super().inner_loop(sequences, initial_state, mask, training=False)
        if getattr(self, "use_cudnn", None) is True:
            raise ValueError(
                "A recurrent layer of fastdrop_keras drops without cuDNN. Expected `use_cudnn` "
                "to be 'auto' or False. Received: use_cudnn=True"
            )
        if keras.config.backend() == "torch" and self.stateful:
            # The variables change in place, and the gradient needs their values.
            states = [ops.copy(state) for state in states]
        project, advance = cell._parts_of_a_step(drawn[1], *recurrent)
        inputs = _dropped(sequences, drawn[0][:, None], count)
        # Before a loop in Python, one product for all time steps is faster than one in each.
        before = keras.config.backend() == "torch"
        return backend.rnn(
            advance if before else lambda x, states: advance(project(x), states),
            project(inputs) if before else inputs,
            states,
            go_backwards=self.go_backwards,
            mask=keras.tree.flatten(mask)[0],
            unroll=self.unroll,
            input_length=sequences.shape[1],
            zero_output_for_mask=self.zero_output_for_mask,
            return_all_outputs=self.return_sequences,
        )


def drops(layer: Any) -> bool:
    """Return whether a recurrent layer or cell has a rate that is not 0."""
    return bool(layer.dropout or layer.recurrent_dropout)


def asks_for_dropout(keras_class: Any, args: Any, kwargs: Any) -> bool:
    """Return whether the arguments of one of Keras's constructors have a rate that is not 0."""
    try:
        given = inspect.signature(keras_class.__init__).bind(None, *args, **kwargs).arguments
    except TypeError:
        return False  # the constructor raises it too
    return any(given.get(name, 0) != 0 for name in ("dropout", "recurrent_dropout"))


def change_of(layer: Any, new_class: type) -> Callable[[], None]:
    """Return a function that makes a layer or cell one of `new_class`, Keras's or ours.

    It keeps its weights, rates and the state of its seed.

    Raises:
        ValueError: If the seed is not valid for `new_class`. Nothing has changed then.
    """
    cell = getattr(layer, "cell", layer)
    checked_seed(cell.seed)
    ours = issubclass(new_class, _Recurrent)
    generator = BACKEND.new_seed_generator(0) if ours else keras.random.SeedGenerator(0)
    layer_state.set_position(generator, layer_state.position(cell.seed_generator))
    if cell is not layer:
        return functools.partial(object.__setattr__, layer, "__class__", new_class)
    return functools.partial(_change_cell, cell, new_class, generator)


def _change_cell(cell: Any, new_class: type, generator: keras.random.SeedGenerator) -> None:
    rates, locked = (cell.dropout, cell.recurrent_dropout), cell._tracker.locked
    cell._tracker.unlock()
    attributes = {"seed_generator"}
    if isinstance(cell, RecurrentCell):
        attributes = {"_input_dropout_layer", "_recurrent_dropout_layer"}
    else:
        del cell.dropout, cell.recurrent_dropout
    for name in attributes:
        cell._tracker.untrack(getattr(cell, name))
        delattr(cell, name)
    object.__setattr__(cell, "__class__", new_class)
    cell.dropout, cell.recurrent_dropout = rates
    cell.seed_generator = generator
    cell._tracker.locked = locked


def _training() -> Any:
    """Return the argument `training` of the call of a layer around, which Keras does not pass."""
    return getattr(global_state.get_global_attribute("current_call_ctx"), "training", None)


def _dropped(x: Any, kept: Any, count: int) -> Any:
    """Return `x` for each mask, with 0 for the units that are not kept, even if they are NaN."""
    copies = ops.concatenate([x] * count, axis=-1) if count > 1 else x
    return ops.where(kept, copies, ops.zeros_like(copies))


def _product(x: Any, kernels: list[Any], bias: Any) -> Any:
    """Return the products of the parts of `x` and the kernels, side by side, with the bias."""
    count = len(kernels)
    parts = ops.split(x, count, axis=-1) if count > 1 else [x]
    products = [ops.matmul(part, kernel) for part, kernel in zip(parts, kernels, strict=True)]
    product = ops.concatenate(products, axis=-1) if count > 1 else products[0]
    return product if bias is None else product + bias


@keras.saving.register_keras_serializable(package="fastdrop")
class LSTMCell(RecurrentCell, keras.layers.LSTMCell):
    """Computes one time step of an LSTM, with dropout, as `keras.layers.LSTMCell` does.

    It is for `keras.layers.RNN` and `keras.layers.StackedRNNCells`, which draw the masks before the
    first time step and use them in all. See `fastdrop_keras.LSTM`, which is faster.

    Args:
        units: Positive integer, the size of the output.
        dropout: Float between 0 and 1. Fraction of the input units to drop.
        recurrent_dropout: Float between 0 and 1. Fraction of the state's units to drop.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The other arguments of `keras.layers.LSTMCell`.

    Call arguments:
        inputs: Tensor of shape `(batch, features)`.
        states: List of two tensors of shape `(batch, units)`.
        training: Boolean, or a boolean tensor: whether to drop.

    Returns:
        The output, of shape `(batch, units)`, and the list of the new states.

    Raises:
        TypeError: If a rate or `seed` has the wrong type.
        ValueError: If a rate or `seed` is not a valid value.

    Reference:

    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287)

    Example:

    >>> import keras
    >>> from fastdrop_keras import LSTMCell
    >>> layer = keras.layers.RNN([LSTMCell(4, recurrent_dropout=0.5), LSTMCell(3, dropout=0.1)])
    >>> layer(keras.ops.ones((2, 5, 6)), training=True).shape
    TensorShape([2, 3])
    """

    def _advance(
        self, projected: Any, states: list[Any], kept: Any, kernels: list[Any], bias: Any
    ) -> Any:
        h, c = states
        gates = projected + _product(_dropped(h, kept, self._mask_count), kernels, bias)
        gates = ops.split(gates, 4, axis=-1)
        c, o = self._compute_carry_and_output_fused(gates, c)
        h = o * self.activation(c)
        return h, [h, c]


@keras.saving.register_keras_serializable(package="fastdrop")
class GRUCell(RecurrentCell, keras.layers.GRUCell):
    """Computes one time step of a GRU, with dropout, as `keras.layers.GRUCell` does.

    Arguments, errors and use are as for `fastdrop_keras.LSTMCell`, and there is one state.

    Example:

    >>> import keras
    >>> from fastdrop_keras import GRUCell
    >>> keras.layers.RNN(GRUCell(4, dropout=0.5))(keras.ops.ones((2, 5, 6)), training=True).shape
    TensorShape([2, 4])
    """

    def _biases(self) -> tuple[Any, Any]:
        bias, none = super()._biases()
        return (bias[0], bias[1]) if self.reset_after and bias is not None else (bias, none)

    def _advance(
        self, projected: Any, states: list[Any], kept: Any, kernels: list[Any], bias: Any
    ) -> Any:
        h = states[0]
        dropped = _dropped(h, kept, self._mask_count)
        x_update, x_reset, x_new = ops.split(projected, 3, axis=-1)
        if self.reset_after:
            product = _product(dropped, kernels, bias)
            h_update, h_reset, h_new = ops.split(product, 3, axis=-1)
            reset = self.recurrent_activation(x_reset + h_reset)
            h_new = reset * h_new
        else:
            if len(kernels) == 1:
                parts, kernels = [dropped] * 3, ops.split(kernels[0], 3, axis=1)
            else:
                parts = ops.split(dropped, 3, axis=-1)
            h_update = ops.matmul(parts[0], kernels[0])
            h_reset = ops.matmul(parts[1], kernels[1])
            reset = self.recurrent_activation(x_reset + h_reset)
            h_new = ops.matmul(reset * parts[2], kernels[2])
        update = self.recurrent_activation(x_update + h_update)
        h = update * h + (1 - update) * self.activation(x_new + h_new)
        return h, [h]


@keras.saving.register_keras_serializable(package="fastdrop")
class SimpleRNNCell(RecurrentCell, keras.layers.SimpleRNNCell):
    """Computes one time step of a simple RNN, with dropout, as `keras.layers.SimpleRNNCell` does.

    Arguments, errors and use are as for `fastdrop_keras.LSTMCell`, and there is one state.

    Example:

    >>> import keras
    >>> from fastdrop_keras import SimpleRNNCell
    >>> layer = keras.layers.RNN(SimpleRNNCell(4, dropout=0.5))
    >>> layer(keras.ops.ones((2, 5, 6)), training=True).shape
    TensorShape([2, 4])
    """

    def _advance(
        self, projected: Any, states: list[Any], kept: Any, kernels: list[Any], bias: Any
    ) -> Any:
        h = projected + _product(_dropped(states[0], kept, 1), kernels, bias)
        h = h if self.activation is None else self.activation(h)
        return h, [h]


@keras.saving.register_keras_serializable(package="fastdrop")
class LSTM(RecurrentLayer, keras.layers.LSTM):
    """Applies an LSTM with dropout to sequences, as `keras.layers.LSTM` does.

    In training, each call draws a mask for the inputs and a mask for the recurrent state, and uses
    them in all time steps (variational dropout). With `recurrent_dropout`, or `implementation=1`,
    each of the four gates has masks of its own; else one mask of the inputs is for all gates. A
    dropped unit counts as zero, even if it is NaN or infinite, and the others are multiplied by
    `1 / (1 - rate)`. In inference, the layer is Keras's.

    The masks are those of `fastdrop.dropout` for the seed: the inputs' at the first step of a call,
    of shape `(batch, features)` or `(batch, 4 * features)` with the gates side by side, and the
    state's at the second, of shape `(batch, units)` or `(batch, 4 * units)`. They are the same on
    each backend of Keras, in eager and in graph mode, for any number of threads, and in a
    recomputation under gradient checkpointing. Files and checkpoints save the seed's state.

    `dropout` and `recurrent_dropout` can be set at any time, and take effect at the next step
    without retracing. Keras draws no masks, or those of a trace, for a rate that was 0 or 1 then,
    drops nothing at rate 1, and draws masks in inference too.

    Training runs on the CPU, without cuDNN. `fastdrop_keras.mc_predict` draws masks for each pass.
    A `RateSchedule` changes these rates only if its `layers` name them: `"input_dropout"` or
    `"recurrent_dropout"` for those of all recurrent layers, or the layers
    `cell.input_dropout_layer` and `cell.recurrent_dropout_layer`.

    `fastdrop_keras.convert` and `enable` make these layers only for recurrent layers with dropout.

    Args:
        units: Positive integer, the size of the output.
        dropout: Float between 0 and 1. Fraction of the input units to drop.
        recurrent_dropout: Float between 0 and 1. Fraction of the state's units to drop.
        seed: Integer from 0 to 2**63 - 1, or `None`, as for `fastdrop_keras.Dropout`.
        **kwargs: The other arguments of `keras.layers.LSTM`.

    Call arguments:
        sequences: Tensor of shape `(batch, timesteps, features)`.
        initial_state: List of two tensors of shape `(batch, units)`, or `None` for zeros.
        mask: Boolean tensor of shape `(batch, timesteps)`, or `None`: the time steps to use.
        training: Boolean, or a boolean tensor: whether to drop. `fit` sets it.

    Output shape:
        `(batch, units)`, or `(batch, timesteps, units)` with `return_sequences=True`; with
        `return_state=True` a tuple of the output and the states.

    Raises:
        TypeError: If a rate or `seed` has the wrong type.
        ValueError: If a rate or `seed` is not a valid value; in training, if `use_cudnn` is true.
        RuntimeError: On JAX, if the layer drops in a traced function without its state.

    Reference:

    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287)

    Example:

    >>> import keras
    >>> from fastdrop_keras import LSTM
    >>> layer = LSTM(4, dropout=0.2, recurrent_dropout=0.2, seed=1)
    >>> layer(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 4])
    >>> layer.recurrent_dropout = 0.5
    """

    _cell_class = LSTMCell


@keras.saving.register_keras_serializable(package="fastdrop")
class GRU(RecurrentLayer, keras.layers.GRU):
    """Applies a GRU with dropout to sequences, as `keras.layers.GRU` does.

    Arguments, errors and masks are as for `fastdrop_keras.LSTM`, with three gates and one state.

    Example:

    >>> import keras
    >>> from fastdrop_keras import GRU
    >>> GRU(4, dropout=0.2, recurrent_dropout=0.2)(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 4])
    """

    _cell_class = GRUCell


@keras.saving.register_keras_serializable(package="fastdrop")
class SimpleRNN(RecurrentLayer, keras.layers.SimpleRNN):
    """Applies a simple RNN with dropout to sequences, as `keras.layers.SimpleRNN` does.

    Arguments, errors and masks are as for `fastdrop_keras.LSTM`, with one mask for the inputs, one
    for the state, and one state.

    Example:

    >>> import keras
    >>> from fastdrop_keras import SimpleRNN
    >>> SimpleRNN(4, recurrent_dropout=0.2)(keras.ops.ones((2, 5, 3)), training=True).shape
    TensorShape([2, 4])
    """

    _cell_class = SimpleRNNCell
