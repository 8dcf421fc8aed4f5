"""Runs dropout layers on JAX, by fastdrop_jax: see `backend.Backend` for what each part does.

A function that JAX traces takes variables as arguments and returns their new values. So the rate is
a variable too, for the functions that Keras compiles.

Importing this module replaces the function of `keras.remat` and `keras.RematScope`. Keras's own
returns no new values of variables from a checkpointed function, and makes `training` a tensor.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras.src.backend import get_stateless_scope, in_stateless_scope
from keras.src.backend.jax import core
from keras.src.random.seed_generator import make_default_seed

from fastdrop_jax import operation
from fastdrop_keras import inputs, layer_state
from fastdrop_keras.inputs import NoiseShape

TRACED_FUNCTIONS: tuple[Any, ...] = ()
GENERATORS: tuple[Any, ...] = ()

_DTYPES = ("float16", "bfloat16", "float32", "float64")

# What a layer saves for a recomputation: the seed and the bits of the rate.
Saved = tuple[jax.Array, jax.Array]


class _Bits(keras.Variable):
    """The bits of a rate as float64 in two words, since JAX has 32-bit numbers by default.

    Only `Rate` sets it. What a function returned, called before, does not bring back its rate.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        super().__init__(
            lambda *args, **kwargs: self.new_value(),
            shape=(2,),
            dtype="uint32",
            trainable=False,
            name="rate_bits",
        )

    def new_value(self) -> jax.Array:
        """Return a new array, since functions that Keras compiles delete their arguments."""
        with jax.ensure_compile_time_eval():
            return jnp.array(np.array([self.rate]).view(np.uint32))

    def _direct_assign(self, value: Any) -> None:
        own = self.new_value()
        if not isinstance(value, jax.core.Tracer) and not np.array_equal(value, own):
            warnings.warn(
                f"A dropout layer's variables come from a function that has not used its rate "
                f"{self.rate}, which was set meanwhile. Later calls use it",
                stacklevel=2,
            )
        with jax.ensure_compile_time_eval():
            super()._direct_assign(own)


class Rate:
    """A rate from 0 to 1. Functions take it as a variable, which is not a weight of the layer."""

    def __init__(self, value: float) -> None:
        self._bits = _Bits(value)
        self.variables = (self._bits,)

    @property
    def value(self) -> float:
        """Float between 0 and 1."""
        return self._bits.rate

    @value.setter
    def value(self, value: float) -> None:
        bits, in_scope = self._bits, in_stateless_scope()
        if bits._value is None and bits._initializer is None and not in_scope:
            raise RuntimeError(
                "While a model trains on JAX, Keras has taken the values of its variables, and a "
                "layer's rate is one of them. Call `model.jax_state_sync()` before setting it, in "
                "a callback, or use RateSchedule"
            )
        bits.rate = value
        if in_scope:
            # The later calls in this function use this rate, as with any Python value.
            bits.assign(bits.new_value())
        if bits._value is not None:
            bits._direct_assign(bits.new_value())

    def read(self) -> jax.Array:
        """Return the bits of the rate."""
        bits: jax.Array = self._bits.value
        return bits


def scaled(rate: jax.Array, factor: float) -> jax.Array:
    """Return the bits of the product."""
    with jax.enable_x64(True):
        product = lax.bitcast_convert_type(rate, jnp.float64) * factor
        return lax.bitcast_convert_type(product, jnp.uint32)


class SeedGenerator(keras.random.SeedGenerator):
    """Keeps the seed and the step in two words each, the lower first: Keras's have one of each."""

    def __init__(self, seed: int | None = None, name: str | None = None) -> None:
        number = make_default_seed() if seed is None else seed
        super().__init__(number % 2**32, name=name)
        self._initial_seed = seed
        with keras.name_scope(self.name, caller=self):
            self.state: Any = keras.Variable(
                lambda *args, **kwargs: jnp.array(np.array([number, 0]).view(np.uint32)),
                shape=(4,),
                dtype="uint32",
                trainable=False,
                aggregation="none",
                name="seed_generator_state",
            )


new_seed_generator = SeedGenerator


def tracked(generator: keras.random.SeedGenerator, rate: Rate) -> None:
    """Do nothing: JAX has no checkpoints of its own."""


def next_seed(generator: keras.random.SeedGenerator) -> jax.Array:
    """Return the state, and advance it."""
    with layer_state.taking_a_seed:
        seed: jax.Array = generator.state.value
        _assign(generator.state, _following(seed))
    return seed


@jax.jit
def _following(state: jax.Array) -> jax.Array:
    """Return the state with the next step. It may be one of Keras's own, of two words."""
    if state.size == 2:
        return state + jnp.array([0, 1], state.dtype)
    step = state[2] + 1
    return state.at[2].set(step).at[3].add((step == 0).astype(state.dtype))


def _assign(variable: keras.Variable, value: Any) -> None:
    if isinstance(value, jax.core.Tracer) and not in_stateless_scope():
        raise RuntimeError(
            "A dropout layer was called in a function that JAX traces, without its state: each "
            "call of the function would drop the same elements. Pass the state as an argument, "
            "with `stateless_call` of the layer or model, or with keras.StatelessScope"
        )
    variable.assign(value)


def check(x: Any, noise_shape: NoiseShape | None) -> None:
    """Raise the errors of `dropout` for its input."""
    _entries(_checked(x), noise_shape)


def dropout(
    x: jax.Array, seed: jax.Array, rate: jax.Array, noise_shape: NoiseShape | None
) -> tuple[jax.Array, Saved]:
    """Drop elements of `x`, with gradients of every order."""
    saved = seed, rate
    return dropout_again(x, saved, noise_shape), saved


def dropout_again(x: jax.Array, saved: Saved, noise_shape: NoiseShape | None) -> jax.Array:
    """Drop the elements that the seed selects."""
    return draw("dropout", x, *saved, noise_shape)


def draw(
    kind: str,
    x: jax.Array,
    seed: jax.Array,
    parameter: jax.Array,
    noise_shape: NoiseShape | None = None,
) -> jax.Array:
    """Return the result of a random operation, with gradients of every order."""
    x = _checked(x)
    y: jax.Array = _draw(x, seed, parameter, noise_shape=_entries(x, noise_shape), kind=kind)
    return y


def _checked(x: Any) -> jax.Array:
    """Return `x` as an array of a dtype that the operation supports."""
    x = x.value if isinstance(x, keras.Variable) else x
    if not isinstance(x, jax.Array):
        raise inputs.wrong_input(x, None)
    if x.dtype.name not in _DTYPES:
        raise inputs.wrong_input(x, x.dtype.name)
    return x


def _entries(x: jax.Array, noise_shape: NoiseShape | None) -> NoiseShape:
    """Return 1 for each dimension along which elements share a decision, and else `None`."""
    # Where Keras computes shapes, JAX has symbols for sizes that are not known.
    sizes = [size if isinstance(size, int) else None for size in x.shape]
    entries = inputs.fitted(noise_shape, sizes) or (None,) * x.ndim
    return tuple(1 if entry == 1 else None for entry in entries)


@functools.partial(jax.jit, static_argnames=("noise_shape", "kind"))
def _draw(
    x: jax.Array, seed: jax.Array, parameter: jax.Array, noise_shape: Any, kind: str
) -> jax.Array:
    if seed.size == 2:
        seed = jnp.zeros(4, seed.dtype).at[::2].set(seed)
    return operation.draw(x, jnp.concatenate([seed, parameter]), noise_shape, kind)


def runs_around(layer: Any, training: bool) -> tuple[None, list[Any]]:
    """Return no runs: JAX computes again without calling the layer, from the same seed."""
    return None, []


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a tensor or variable."""
    return isinstance(value, (jax.Array, keras.Variable))


def cond(training: Any, drop: Callable[[], Any], keep: Callable[[], Any]) -> Any:
    """Call one of the functions, or in a trace both."""
    training = keras.ops.convert_to_tensor(training, "bool")
    if not isinstance(training, jax.core.Tracer):
        return drop() if training else keep()
    with _Scope() as scope:
        dropped = drop()
    for variable, value in scope.assigned():
        _assign(variable, jnp.where(training, value, variable.value))
    return jnp.where(training, dropped, keep())


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return a context that does nothing."""
    return contextlib.nullcontext()


def forget_traces(model: keras.Model) -> None:
    """Do nothing: Keras holds all functions that it traces."""


def update_variables(model: keras.Model) -> None:
    """Let Keras assign what its compiled functions returned."""
    model.jax_state_sync()


def random_module(layer: keras.Layer) -> str:
    """Return "rng" for a layer of a function or a module of Flax that takes random numbers."""
    takes_numbers = isinstance(layer, keras.layers.JaxLayer) and "rng" in layer.call_fn_arguments
    return "rng" if takes_numbers else ""


def supports_jit() -> bool:
    """Return True: the layers are a primitive of JAX."""
    return True


def config_lines() -> list[str]:
    """Return the version of JAX."""
    return [f"on JAX {jax.__version__}, by fastdrop_jax"]


# Gradient checkpointing.


class _Scope(keras.StatelessScope):
    """Keeps the values that are assigned in it, for the scope around or the variables."""

    def __init__(self) -> None:
        outer = get_stateless_scope()
        super().__init__(
            collect_losses=outer is None or outer.collect_losses, initialize_variables=False
        )
        self.state_mapping.update({} if outer is None else outer.state_mapping)
        self._variables: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        """Store a variable's new value; called by Keras."""
        super().add_update(update)
        self._variables[id(update[0])] = update[0]

    def assigned(self) -> list[tuple[keras.Variable, Any]]:
        """Return the variables that have new values, and these."""
        return [(one, self.get_current_value(one)) for one in self._variables.values()]


def remat(function: Callable[..., Any]) -> Callable[..., Any]:
    """Work as Keras's function, and return the new values of variables from the checkpoint."""

    @functools.wraps(function)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))]
        variables: list[keras.Variable] = []

        # A new function each time: JAX calls the same one only once for arguments of one type.
        def run(arrays: list[Any]) -> Any:
            for place, array in zip(places, arrays, strict=True):
                leaves[place] = array
            args, kwargs = jax.tree.unflatten(structure, leaves)
            with _Scope() as scope:
                results = function(*args, **kwargs)
            if scope.losses:
                raise NotImplementedError("On JAX, `add_loss` cannot be used under `keras.remat`")
            variables[:] = [variable for variable, _ in scope.assigned()]
            return results, [value for _, value in scope.assigned()]

        results, values = jax.checkpoint(run)([leaves[place] for place in places])
        for variable, value in zip(variables, values, strict=True):
            _assign(variable, value)
        return results

    return checkpointed


core.remat = remat
