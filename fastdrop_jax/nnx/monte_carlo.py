"""Estimates a model's uncertainty by predictions with dropout (Monte Carlo dropout)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fastdrop_jax import monte_carlo
from fastdrop_jax.nnx.layers import GaussianNoise, RandomLayer


def mc_predict(module: nnx.Module, x: Any, n: int = 100, *, key: jax.Array) -> tuple[Any, Any]:
    """Predict with dropout `n` times, and return the mean and the standard deviation.

    Dropout layers drop as in training, those of Flax and its attention too. All other layers are in
    evaluation mode: batch normalization uses its running averages, and `GaussianNoise` adds none.
    Each pass has keys of its own, which follow from `key`. The model is left as it is. Otherwise
    this is `fastdrop_jax.mc_predict`.

    Args:
        module: A `flax.nnx.Module` with dropout layers that have keys (`rngs`).
        x: The argument of the module's call.
        n: Positive integer, the number of passes.
        key: Key of `jax.random`.

    Returns:
        A tuple ``(mean, standard deviation)``, each with the structure of the module's output.

    Raises:
        TypeError: If `module` is no `flax.nnx.Module`, or as for `fastdrop_jax.mc_predict`.
        ValueError: If the module has no dropout layer, or one without keys, or `n` is not positive.

    Reference:

    - [Gal and Ghahramani, 2016](https://proceedings.mlr.press/v48/gal16.html)

    Example:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import Dropout, mc_predict
    >>> rngs = nnx.Rngs(0)
    >>> model = nnx.Sequential(nnx.Linear(3, 100, rngs=rngs), Dropout(0.5, rngs=rngs))
    >>> model.eval()
    >>> mean, deviation = mc_predict(model, jnp.ones((2, 3)), 50, key=jax.random.key(1))
    >>> mean.shape, deviation.shape
    ((2, 100), (2, 100))
    """
    if not isinstance(module, nnx.Module):
        raise TypeError(f"`module` must be a flax.nnx.Module, got {module!r}")
    if not any(_drops(None, one) for _, one in nnx.iter_modules(module)):
        raise ValueError(f"`module` must have a dropout layer, got {type(module).__name__}")
    # Copies, whose arrays are those of the module.
    model = nnx.view(module, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, state = nnx.split(nnx.view(model, only=_drops, deterministic=False))

    def predict(key: jax.Array, x: Any) -> Any:
        model: Any = nnx.merge(graph, state, copy=True)
        streams = [one for _, one in nnx.iter_graph(model) if isinstance(one, nnx.RngStream)]
        for number, stream in enumerate(streams):
            # A stream of stacked layers has a key for each.
            shape, own = stream.key[...].shape, jax.random.fold_in(key, number)
            stream.key.set_value(jax.random.split(own, shape) if shape else own)
            stream.count.set_value(jnp.zeros_like(stream.count[...]))
        return model(x)

    return monte_carlo.mc_predict(predict, x, n, key=key)


def _drops(_: Any, module: Any) -> bool:
    """Return whether a module drops in training; the filter of `flax.nnx.view`."""
    dropping = (nnx.Dropout, nnx.MultiHeadAttention, RandomLayer)
    return isinstance(module, dropping) and not isinstance(module, GaussianNoise)
