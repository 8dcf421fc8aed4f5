"""Chooses the code for Keras's backend, and lists what this code must define."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import keras

import fastdrop
from fastdrop_keras.inputs import NoiseShape

# The module for each of Keras's backends.
BACKENDS = {
    "tensorflow": "fastdrop_keras.tensorflow_backend",
    "torch": "fastdrop_keras.torch_backend",
    "jax": "fastdrop_keras.jax_backend",
}


class Backend(Protocol):
    """What a module of `BACKENDS` defines; `Any` stands for the backend's own types."""

    # The types of functions that keep a trace of the layers that they called.
    TRACED_FUNCTIONS: tuple[Any, ...]
    # The types of the framework's generators of random numbers.
    GENERATORS: tuple[Any, ...]

    def Rate(self, value: float) -> Any:  # noqa: N802
        """Return an object with a settable `value`, a float, and `read()`, as `dropout` needs.

        It also has `variables`: those that Keras must pass to the functions that it compiles.
        """

    def scaled(self, rate: Any, factor: Any) -> Any:
        """Return what `Rate.read` would return for this rate times `factor`, in float64.

        `factor` is a float, or a scalar float64 tensor where a size is known only at run time.
        """

    def new_seed_generator(self, seed: int | None) -> keras.random.SeedGenerator:
        """Return a generator whose state holds 64 bits of the seed, and the step."""

    def tracked(self, generator: keras.random.SeedGenerator, rate: Any) -> Any:
        """Return what the framework's own checkpoints save as an attribute of the layer."""

    def next_seed(self, generator: keras.random.SeedGenerator) -> Any:
        """Return the seed's low word and the step, and advance the generator's state by a step.

        In a stateless scope only the scope's state advances. There is also a high word where
        several calls share the low word and the step.
        """

    def check(self, x: Any, noise_shape: NoiseShape | None) -> None:
        """Raise the errors of `dropout` for its input, before a seed is taken."""

    def dropout(
        self, x: Any, seed: Any, rate: Any, noise_shape: NoiseShape | None
    ) -> tuple[Any, Any]:
        """Drop elements of `x`; return the result, and what `dropout_again` needs."""

    def dropout_again(self, x: Any, saved: Any, noise_shape: NoiseShape | None) -> Any:
        """Drop the elements of `x` that an earlier call of `dropout` dropped."""

    def draw(
        self,
        kind: str,
        x: Any,
        seed: Any,
        parameter: Any,
        noise_shape: NoiseShape | None = None,
    ) -> Any:
        """Return the result of a random operation on `x`, differentiable to all orders.

        It is a pure function of its arguments, and saves nothing: the gradient draws again. With
        `n`, the stream's standard normal numbers, and `parameter`, what a `Rate` reads, it is

        - "gaussian_dropout": `x * (1 + s * n)`, `s = sqrt(rate / (1 - rate))`, at a rate below 1;
        - "gaussian_noise": `x + stddev * n`, at a finite standard deviation of 0 or more;
        - "alpha_dropout": `fastdrop.alpha_dropout` at a rate;
        - "alpha_dropout_gradient": its derivative, `dropout` with alpha dropout's scale;
        - "bernoulli": 1 for the elements that `fastdrop.dropout` keeps at the rates `x`, and 0 for
          the others. It has no gradient, no noise shape, and ignores `parameter`.
        """

    def runs_around(self, layer: Any, training: bool) -> tuple[Any, list[Any]]:
        """Return the `blocks.Run` that this call of `layer` reads, and those that it writes."""

    def is_tensor(self, value: Any) -> bool:
        """Return whether `value`, the argument `training`, is a tensor."""

    def cond(self, training: Any, drop: Callable[[], Any], keep: Callable[[], Any]) -> Any:
        """Call `drop` if the tensor `training` is true, else `keep`."""

    def scope_of(self, model: keras.Model) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which a copy of `model` must be made."""

    def forget_traces(self, model: keras.Model) -> None:
        """Renew what the framework knows of the layers in `model`, which were changed in place."""

    def update_variables(self, model: keras.Model) -> None:
        """Give the variables of `model` the values that they have between two steps of `fit`."""

    def random_module(self, layer: keras.Layer) -> str:
        """Return the name of a module of the framework in `layer` that drops, or ""."""

    def supports_jit(self) -> bool:
        """Return whether `jit_compile=True` can compile the layers."""

    def config_lines(self) -> list[str]:
        """Return the backend's lines for `fastdrop_keras.show_config`."""


BACKEND = cast(Backend, importlib.import_module(BACKENDS[keras.config.backend()]))


def show_config() -> None:
    """Prints the installation's versions and settings, for bug reports.

    Prints the output of `fastdrop.show_config`, and the backend. For TensorFlow it also prints the
    bridge, and why the native bridge is not loaded.

    Example:

    >>> import fastdrop_keras
    >>> fastdrop_keras.show_config()  # doctest: +ELLIPSIS
    fastdrop ...
      bridge to TensorFlow ...
    """
    fastdrop.show_config()
    for line in BACKEND.config_lines():
        print(f"  {line}")
