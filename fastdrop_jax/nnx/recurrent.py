"""Defines recurrent cells for Flax NNX that drop the same units in all time steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastdrop_jax.nnx.layers import Dropout, checked_rngs, stream_of

# The stream of keys that `RNN` gives to all time steps.
_STREAM = "recurrent_dropout"


class RNN(nnx.RNN):
    """Applies a cell to sequences, as `flax.nnx.RNN` does, with one mask for all time steps.

    It is Flax's with ``broadcast_rngs="recurrent_dropout"``: each call splits a key from these
    streams of its cell, and each time step has this key. So the cell drops the same units in all
    time steps (variational dropout), and others in the next call. No mask is stored, since each
    step draws it again from the key. With another `broadcast_rngs`, which Flax's class has, each
    time step has masks of its own.

    Args:
        cell: A cell, such as `LSTMCell`.
        broadcast_rngs: Filter for the streams of keys that all time steps share.
        **kwargs: The other arguments of `flax.nnx.RNN`.

    Reference:

    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import RNN, LSTMCell
    >>> rngs = nnx.Rngs(0)
    >>> layer = RNN(LSTMCell(3, 4, dropout=0.2, recurrent_dropout=0.2, rngs=rngs))
    >>> layer(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    """

    def __init__(
        self, cell: nnx.RNNCellBase, *, broadcast_rngs: Any = _STREAM, **kwargs: Any
    ) -> None:
        super().__init__(cell, broadcast_rngs=broadcast_rngs, **kwargs)


class RecurrentCell(nnx.Module):
    """Has the dropout layers of a cell. It comes before Flax's class among the bases."""

    def __init__(
        self,
        *args: Any,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        deterministic: bool | None = False,
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        keys = stream_of(checked_rngs(rngs), _STREAM if _STREAM in rngs else "dropout")
        super().__init__(*args, rngs=rngs, **kwargs)  # type: ignore[call-arg]
        # `RNN` looks for this tag, and that of `keys` may be another.
        stream = nnx.RngStream(keys(), tag=_STREAM)
        self.input_dropout = Dropout(dropout, deterministic=deterministic, rngs=stream)
        self.state_dropout = Dropout(recurrent_dropout, deterministic=deterministic, rngs=stream)


LSTMCarry = tuple[jax.Array, jax.Array]


class LSTMCell(RecurrentCell, nnx.LSTMCell):
    """Computes one time step of an LSTM, with dropout, otherwise as `flax.nnx.LSTMCell` does.

    In training, the cell drops elements of its inputs and of its recurrent state, by its layers
    `input_dropout` and `state_dropout`. All gates have one mask. In a `fastdrop_jax.nnx.RNN`, all
    time steps of a call have one mask too; a call of the cell alone draws new masks. The masks are
    those of `fastdrop_jax.dropout` with the keys of the streams of these layers, whose tag is
    ``"recurrent_dropout"``. The memory of the LSTM is not dropped. A dropped element counts as
    zero, even if it is NaN.

    Args:
        in_features: The number of input features.
        hidden_features: The number of output features.
        dropout: Fraction of the inputs to drop, from 0 to 1.
        recurrent_dropout: Fraction of the state to drop, from 0 to 1.
        deterministic: Whether to drop nothing, as in inference.
        rngs: `flax.nnx.Rngs`, for the weights and, from the stream `recurrent_dropout` or, without
            it, `dropout`, the masks.
        **kwargs: The other arguments of `flax.nnx.LSTMCell`.

    Raises:
        KeyError: If `rngs` has none of these streams and no default one.
        TypeError: If `rngs` is of another type.
        TypeError, ValueError: As for `Dropout`, when the cell is called.

    Reference:

    - [Gal and Ghahramani, 2016](https://arxiv.org/abs/1512.05287)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import RNN, LSTMCell
    >>> layer = RNN(LSTMCell(3, 4, dropout=0.1, recurrent_dropout=0.5, rngs=nnx.Rngs(0)))
    >>> layer(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    >>> layer.eval()
    """

    def __call__(self, carry: LSTMCarry, inputs: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        """Return the new carry and the output of one time step."""
        c, h = carry
        return super().__call__((c, self.state_dropout(h)), self.input_dropout(inputs))


class OptimizedLSTMCell(RecurrentCell, nnx.OptimizedLSTMCell):
    """Computes one time step of an LSTM, with dropout, as `flax.nnx.OptimizedLSTMCell` does.

    Arguments, errors and masks are as for `LSTMCell`.

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import RNN, OptimizedLSTMCell
    >>> layer = RNN(OptimizedLSTMCell(3, 4, recurrent_dropout=0.5, rngs=nnx.Rngs(0)))
    >>> layer(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    """

    def __call__(self, carry: LSTMCarry, inputs: jax.Array) -> tuple[LSTMCarry, jax.Array]:
        """Return the new carry and the output of one time step."""
        c, h = carry
        return super().__call__((c, self.state_dropout(h)), self.input_dropout(inputs))


class GRUCell(RecurrentCell, nnx.GRUCell):
    """Computes one time step of a GRU, with dropout, as `flax.nnx.GRUCell` does.

    Arguments, errors and masks are as for `LSTMCell`. The gates see the dropped state, and the
    update gate keeps the whole state.

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import RNN, GRUCell
    >>> layer = RNN(GRUCell(3, 4, dropout=0.5, rngs=nnx.Rngs(0)))
    >>> layer(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    """

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the new carry and the output of one time step."""
        from_x = jnp.split(self.dense_i(self.input_dropout(inputs)), 3, axis=-1)
        from_h = jnp.split(self.dense_h(self.state_dropout(carry)), 3, axis=-1)
        reset, update = (self.gate_fn(x + h) for x, h in zip(from_x[:2], from_h[:2], strict=True))
        new = self.activation_fn(from_x[2] + reset * from_h[2])
        h = (1 - update) * new + update * carry
        return h, h


class SimpleCell(RecurrentCell, nnx.SimpleCell):
    """Computes one time step of a simple RNN, with dropout, as `flax.nnx.SimpleCell` does.

    Arguments, errors and masks are as for `LSTMCell`. With `residual`, the whole state is added.

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import RNN, SimpleCell
    >>> layer = RNN(SimpleCell(3, 4, dropout=0.5, rngs=nnx.Rngs(0)))
    >>> layer(jnp.ones((2, 5, 3))).shape
    (2, 5, 4)
    """

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the new carry and the output of one time step."""
        h = self.dense_i(self.input_dropout(inputs)) + self.dense_h(self.state_dropout(carry))
        h = self.activation_fn(h + carry if self.residual else h)
        return h, h
