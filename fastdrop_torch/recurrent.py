"""Defines recurrent modules that drop the same units in all time steps of a call."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from fastdrop_torch.functional import dropout
from fastdrop_torch.modules import RandomModule

# PyTorch's function for all time steps of a layer.
_FUSED: dict[str, Any] = {
    "LSTM": torch.lstm,
    "GRU": torch.gru,
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
}


class RecurrentModule(RandomModule, nn.RNNBase):
    """Has all that the modules share. It comes before PyTorch's class among the bases of a module.

    `_advance` computes the rest of a time step after the product of the inputs and their weights.
    """

    def __init__(
        self,
        *args: Any,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # Before PyTorch draws weights.
        _check_probabilities(input_dropout=input_dropout, recurrent_dropout=recurrent_dropout)
        super().__init__(*args, **kwargs)
        self.input_dropout = input_dropout
        self.recurrent_dropout = recurrent_dropout

    def extra_repr(self) -> str:
        """Return the arguments for the module's text."""
        text = super().extra_repr()
        for name in ("input_dropout", "recurrent_dropout"):
            if getattr(self, name):
                text += f", {name}={getattr(self, name)}"
        return text

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Return the outputs of all time steps, and the last states."""
        if not self.training:
            return super().forward(input, hx)
        _check_probabilities(
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            recurrent_dropout=self.recurrent_dropout,
        )
        between = self.dropout if self.num_layers > 1 else 0
        if not (self.input_dropout or self.recurrent_dropout or between):
            return super().forward(input, hx)
        self._update_flat_weights()
        if isinstance(input, PackedSequence):
            x, batch_sizes, order, order_back = input
            hx = self._checked_states(x, hx, batch_sizes)
            samples = torch.cat([torch.arange(n, device=x.device) for n in batch_sizes.tolist()])
            samples = samples if order is None else order[samples]
            x, hx = self._run(x, self.permute_hidden(hx, order), batch_sizes, samples)
            hx = self.permute_hidden(hx, order_back)
            return PackedSequence(x, batch_sizes, order, order_back), hx
        if input.dim() == 2:
            batch_axis = 0 if self.batch_first else 1
            hx = None if hx is None else _map_states(lambda one: one.unsqueeze(1), hx)
            x, hx = self.forward(input.unsqueeze(batch_axis), hx)
            return x.squeeze(batch_axis), _map_states(lambda one: one.squeeze(1), hx)
        hx = self._checked_states(input, hx, None)
        x, hx = self._run(input.transpose(0, 1) if self.batch_first else input, hx)
        return x.transpose(0, 1) if self.batch_first else x, hx

    def _checked_states(self, x: Tensor, hx: Any, batch_sizes: Tensor | None) -> Any:
        """Return the states, or zeros for `None`, after PyTorch's checks of all arguments."""
        if hx is None:
            hx = x.new_zeros(self.get_expected_hidden_size(x, batch_sizes))
            if isinstance(self, nn.LSTM):
                hx = hx, x.new_zeros(self.get_expected_cell_size(x, batch_sizes))
        self.check_forward_args(x, hx, batch_sizes)
        return hx

    def _run(
        self, x: Tensor, hx: Any, batch_sizes: Tensor | None = None, samples: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Return the outputs of the last layer and the last states of all layers.

        `x` has the shape `(steps, batch, features)`, or is packed: then it has a row for each time
        step of each sample, and `samples` has the row's sample.
        """
        directions = 2 if self.bidirectional else 1
        is_lstm = isinstance(self, nn.LSTM)
        states = hx if is_lstm else (hx,)
        batch = states[0].size(1)
        # The rows of a packed `x` begin with the first time step of each sample.
        order = None if samples is None else samples[:batch]
        last = []
        for layer in range(self.num_layers):
            x = _dropped(x, self.dropout if layer else self.input_dropout, batch, samples)
            own = slice(layer * directions, (layer + 1) * directions)
            weights, before = self.all_weights[own], [one[own] for one in states]
            if self.recurrent_dropout:
                x, *after = self._run_steps(x, before, weights, batch_sizes, order)
            else:
                x, *after = self._run_fused(x, before, weights, batch_sizes)
            last.append(after)
        last_states = tuple(torch.cat(layers) for layers in zip(*last, strict=True))
        return x, last_states if is_lstm else last_states[0]

    def _run_fused(
        self, x: Tensor, states: list[Tensor], weights: list[Any], batch_sizes: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the outputs and the last states of a layer, by PyTorch's function."""
        hx = states if isinstance(self, nn.LSTM) else states[0]
        flat = [one for direction in weights for one in direction]
        options = (self.bias, 1, 0.0, self.training, self.bidirectional)
        if batch_sizes is None:
            return _FUSED[self.mode](x, hx, flat, *options, False)
        return _FUSED[self.mode](x, batch_sizes, hx, flat, *options)

    def _run_steps(
        self,
        x: Tensor,
        states: list[Tensor],
        weights: list[Any],
        batch_sizes: Tensor | None,
        order: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the outputs and the last states of a layer, with dropout of the states."""
        outputs, last = [], []
        for direction, (w_ih, w_hh, *others) in enumerate(weights):
            biases: list[Any] = others[:2] if self.bias else [None, None]
            b_ih, b_hh = biases
            if self.bias and not isinstance(self, nn.GRU):
                b_ih, b_hh = b_ih + b_hh, None
            w_hr = others[-1] if self.proj_size else None
            state = [one[direction] for one in states]
            batch = len(state[0])
            kept = _kept(state[0], self.recurrent_dropout)
            kept = kept if order is None else kept[order]
            # The factor on what is kept.
            w_hh = w_hh * _scale(self.recurrent_dropout)
            from_x = linear(x, w_ih, b_ih)
            steps = from_x.unbind() if batch_sizes is None else from_x.split(batch_sizes.tolist())
            results = []
            for one in reversed(steps) if direction else steps:
                # Samples of a packed input that have ended, or not begun, keep their state.
                rows = len(one)
                now = state if rows == batch else [part[:rows] for part in state]
                h = torch.where(kept if rows == batch else kept[:rows], now[0], 0)
                new = self._advance(one, h, now, w_hh, b_hh, w_hr)
                results.append(new[0])
                if rows < batch:
                    pairs = zip(new, state, strict=True)
                    new = [torch.cat([part, old[rows:]]) for part, old in pairs]
                state = new
            join = torch.stack if batch_sizes is None else torch.cat
            outputs.append(join(results[::-1] if direction else results))
            last.append(state)
        joined = torch.cat(outputs, -1), *map(torch.stack, zip(*last, strict=True))
        if batch_sizes is None and self._is_onednns(x):
            return tuple(one.to(torch.get_autocast_dtype("cpu")) for one in joined)
        return joined

    def _is_onednns(self, x: Tensor) -> bool:
        """Return whether oneDNN runs PyTorch's module on a tensor in a region of autocast.

        All results are in the lower precision then. Else PyTorch's dtypes follow from its
        operations, as here.
        """
        return (
            self.mode == "LSTM"
            and not self.proj_size
            and torch.is_autocast_enabled("cpu")
            and x.device.type == "cpu"
            and x.dtype != torch.float64
            and torch.backends.mkldnn.is_available()
            and bool(torch.backends.mkldnn.enabled)
        )

    def _advance(
        self,
        from_x: Tensor,
        h: Tensor,
        states: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
    ) -> list[Tensor]:
        """Return the new states of one time step; `h` is the dropped state."""
        raise NotImplementedError


def _check_probabilities(**probabilities: Any) -> None:
    for name, p in probabilities.items():
        is_number = isinstance(p, numbers.Real) and not isinstance(p, bool)
        if not is_number or not 0 <= p <= 1:
            raise ValueError(f"`{name}` must be a number between 0 and 1, got {p!r}")


def _map_states(function: Callable[[Tensor], Tensor], hx: Any) -> Any:
    """Call the function on a state, or on both of an LSTM."""
    return tuple(map(function, hx)) if isinstance(hx, (tuple, list)) else function(hx)


def _kept(like: Tensor, p: float) -> Tensor:
    """Draw which elements are kept, of the shape of a tensor."""
    return dropout(torch.ones_like(like), p) != 0


def _scale(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0


def _dropped(x: Tensor, p: float, batch: int, samples: Tensor | None) -> Tensor:
    """Drop the same features of a sample in all time steps."""
    if not p:
        return x
    kept = _kept(x.new_empty(batch, x.size(-1)), p)
    # A product would leave a NaN.
    return torch.where(kept if samples is None else kept[samples], x * _scale(p), 0)


class LSTM(RecurrentModule, nn.LSTM):
    """Applies an LSTM with dropout to sequences, as `torch.nn.LSTM` does.

    In training, each call draws a mask for the inputs of each layer and, with `recurrent_dropout`,
    one for the state of each layer and direction. A mask has a decision for each sample and
    feature, which holds in all time steps (variational dropout) and for all gates. `torch.nn.LSTM`
    knows `dropout` alone, and draws it for each time step anew. A dropped unit counts as zero, even
    if it is NaN or infinite, and the others are multiplied by `1 / (1 - p)`. In evaluation, or if
    all probabilities are 0, the module is PyTorch's.

    The masks are those of `fastdrop.dropout` for seeds from PyTorch's default generator, of the
    shapes `(N, features)` and `(N, hidden_size)` (or `proj_size`). `torch.manual_seed` repeats
    them. The three probabilities may be set at any time. The `state_dict` is that of
    `torch.nn.LSTM`.

    With `recurrent_dropout`, Python runs the time steps; otherwise PyTorch's function runs all at
    once. Inputs that are not batched or are a `PackedSequence`, and projections, work in both. In
    a region of `torch.autocast`, the results for a tensor have the dtypes of PyTorch's. As for
    `torch.nn.LSTM`, `torch.compile` breaks the graph at the module.

    Args:
        *args: The arguments of `torch.nn.LSTM`.
        input_dropout: Probability of dropping a feature of the inputs, from 0 to 1.
        recurrent_dropout: Probability of dropping a unit of the hidden state on its way to the next
            time step, from 0 to 1. The cell state drops nothing.
        **kwargs: The arguments of `torch.nn.LSTM`. `dropout` is the probability for the inputs of
            all layers but the first.

    Raises:
        ValueError: If a probability is not a number between 0 and 1, also if it was set later.

    Reference:

    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287)

    Example:

    >>> import torch
    >>> from fastdrop_torch import LSTM
    >>> lstm = LSTM(3, 4, num_layers=2, dropout=0.1, input_dropout=0.2, recurrent_dropout=0.3)
    >>> lstm
    LSTM(3, 4, num_layers=2, dropout=0.1, input_dropout=0.2, recurrent_dropout=0.3)
    >>> output, (h, c) = lstm(torch.ones(5, 2, 3))
    >>> output.shape, h.shape, c.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]), torch.Size([2, 2, 4]))
    """

    def _advance(
        self,
        from_x: Tensor,
        h: Tensor,
        states: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
    ) -> list[Tensor]:
        i, f, g, o = torch.addmm(from_x, h, w_hh.t()).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * states[1], i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        return [h if w_hr is None else linear(h, w_hr), c]


class GRU(RecurrentModule, nn.GRU):
    """Applies a GRU with dropout to sequences, as `torch.nn.GRU` does.

    Arguments, errors and masks are as for `LSTM`, with one state. The sum of the old and the new
    state drops nothing.

    Example:

    >>> import torch
    >>> from fastdrop_torch import GRU
    >>> output, h = GRU(3, 4, input_dropout=0.2, recurrent_dropout=0.3)(torch.ones(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """

    def _advance(
        self,
        from_x: Tensor,
        h: Tensor,
        states: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
    ) -> list[Tensor]:
        sizes = [2 * self.hidden_size, self.hidden_size]
        gates_x, new_x = from_x.split(sizes, 1)
        gates_h, new_h = linear(h, w_hh, b_hh).split(sizes, 1)
        reset, update = (gates_x + gates_h).sigmoid().chunk(2, 1)
        new = torch.addcmul(new_x, reset, new_h).tanh()
        return [torch.addcmul(new, update, states[0] - new)]


class RNN(RecurrentModule, nn.RNN):
    """Applies a simple RNN with dropout to sequences, as `torch.nn.RNN` does.

    Arguments, errors and masks are as for `LSTM`, with one state.

    Example:

    >>> import torch
    >>> from fastdrop_torch import RNN
    >>> output, h = RNN(3, 4, input_dropout=0.2, recurrent_dropout=0.3)(torch.ones(5, 2, 3))
    >>> output.shape
    torch.Size([5, 2, 4])
    """

    def _advance(
        self,
        from_x: Tensor,
        h: Tensor,
        states: list[Tensor],
        w_hh: Tensor,
        b_hh: Tensor | None,
        w_hr: Tensor | None,
    ) -> list[Tensor]:
        product = torch.addmm(from_x, h, w_hh.t())
        return [product.tanh() if self.nonlinearity == "tanh" else product.relu()]
