"""Runs dropout layers on PyTorch, by fastdrop_torch: see `backend.Backend` for what each part does.

`keras.remat` and `keras.RematScope` use `torch.utils.checkpoint.checkpoint`. Importing this module
replaces it: each call of a checkpointed function becomes a `Block`, whose layers keep their seeds.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import keras
import torch
import torch.utils.checkpoint
from keras.src.backend import in_stateless_scope, in_symbolic_scope
from torch._functorch import pyfunctorch

from fastdrop_keras import blocks, inputs, layer_state
from fastdrop_keras.inputs import NoiseShape
from fastdrop_keras.kinds import KINDS
from fastdrop_torch import conversion, modules  # the import registers the operations

TRACED_FUNCTIONS: tuple[Any, ...] = ()
GENERATORS: tuple[Any, ...] = (torch.Generator,)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What a layer saves for a recomputation: the seed and the rate.
Saved = tuple[torch.Tensor, float]


class Rate:
    """A rate from 0 to 1. PyTorch reads it at each call, and compiles again for a new one."""

    variables = ()

    def __init__(self, value: float) -> None:
        self.value = value

    def read(self) -> float:
        """Return the rate."""
        return self.value


def scaled(rate: float, factor: float) -> float:
    """Return the product."""
    return rate * factor


class SeedGenerator(keras.random.SeedGenerator):
    """Keeps a seed of 64 bits: on PyTorch, Keras's generators have 32."""

    def __init__(self, seed: int | None = None, name: str | None = None) -> None:
        super().__init__(None if seed is None else seed % 2**31, name=name)
        self._initial_seed = seed
        narrow = self.state

        def initial(shape: Any, dtype: Any = None) -> Any:
            low = int(narrow.value[0]) if seed is None else seed
            return keras.ops.convert_to_tensor([low, 0], dtype)

        with keras.name_scope(self.name, caller=self):
            self.state: Any = keras.Variable(
                initial,
                shape=(2,),
                dtype="int64",
                trainable=False,
                aggregation="none",
                name="seed_generator_state",
            )


new_seed_generator = SeedGenerator


def tracked(generator: keras.random.SeedGenerator, rate: Rate) -> None:
    """Do nothing: the state is among the layer's PyTorch parameters, and so in its `state_dict`."""


def next_seed(generator: keras.random.SeedGenerator) -> torch.Tensor:
    """Return a copy of the state, with a high word in a `torch.vmap`, and advance the state."""
    state = generator.state
    # A compiled function runs without Python's locks.
    alone = not torch.compiler.is_compiling()
    with layer_state.taking_a_seed if alone else contextlib.nullcontext():
        value = state.value.detach()
        seed: torch.Tensor = value.clone()
        if in_stateless_scope():
            following = value.clone()
            following[1] += 1
            state.assign(following)  # the scope stores it for its caller
        elif alone:
            # Function transforms refuse to change a tensor that is not an argument.
            with torch._C._DisableFuncTorch():
                value[1] += 1
        else:
            value[1] += 1
    high = _iterations() if alone else None
    return seed if high is None else torch.cat([seed, high.to(seed).reshape(1)])


def _iterations() -> torch.Tensor | None:
    """Return a number for each iteration of the `torch.vmap`s around, if there are any.

    They read the same state, and their numbers make their masks differ, unless they are asked for
    the same random numbers.
    """
    numbers = None
    if torch._C._functorch.peek_interpreter_stack() is None:
        return None
    for one in pyfunctorch.retrieve_all_functorch_interpreters():
        if isinstance(one, pyfunctorch.VmapInterpreter) and one.randomness() != "same":
            with torch._C._DisableFuncTorch():
                own = torch.arange(one.batch_size())
                own = torch._C._functorch._add_batch_dim(own, 0, one.level())
            numbers = own if numbers is None else numbers * 2**24 + own
    return numbers


def check(x: Any, noise_shape: NoiseShape | None) -> None:
    """Raise the errors of `dropout` for its input."""
    _entries(_checked(x), noise_shape)


def dropout(
    x: torch.Tensor, seed: torch.Tensor, rate: float, noise_shape: NoiseShape | None
) -> tuple[torch.Tensor, Saved]:
    """Drop elements of `x`, with gradients of every order."""
    saved = seed, rate
    return dropout_again(x, saved, noise_shape), saved


def dropout_again(x: torch.Tensor, saved: Saved, noise_shape: NoiseShape | None) -> torch.Tensor:
    """Drop the elements that the seed selects."""
    x = _checked(x)
    entries = _entries(x, noise_shape)
    if x.is_meta:
        return torch.empty_like(x)  # Keras computes shapes
    seed, rate = saved
    seed = seed.to("cpu", torch.int64)
    y: torch.Tensor = torch.ops.fastdrop.forward(x, seed, rate, entries)[0]
    return y


def draw(
    kind: str,
    x: torch.Tensor,
    seed: torch.Tensor,
    parameter: float,
    noise_shape: NoiseShape | None = None,
) -> torch.Tensor:
    """Return the result of a random operation, with gradients of every order."""
    x = _checked(x)
    entries = _entries(x, noise_shape)
    if x.is_meta:
        return torch.empty_like(x)  # Keras computes shapes
    seed = seed.to("cpu", torch.int64)
    y: torch.Tensor = torch.ops.fastdrop.draw(x, seed, KINDS[kind], parameter, entries)
    return y


def _entries(x: torch.Tensor, noise_shape: NoiseShape | None) -> tuple[int, ...] | None:
    """Return an entry for each dimension of `x`, or `None` if all elements are drawn for."""
    entries = inputs.fitted(noise_shape, x.shape)
    if entries is None:
        return None
    pairs = zip(entries, x.shape, strict=True)
    return tuple(size if entry is None else entry for entry, size in pairs)


def _checked(x: Any) -> torch.Tensor:
    """Return `x` as a dense tensor of a dtype and device that the kernels support."""
    x = x.value if isinstance(x, keras.Variable) else x
    if not isinstance(x, torch.Tensor):
        raise inputs.wrong_input(x, None)
    if x.dtype not in _DTYPES:
        raise inputs.wrong_input(x, str(x.dtype).removeprefix("torch."))
    where = ""
    if x.layout != torch.strided or x.is_nested:
        where = f" and layout {'nested' if x.is_nested else str(x.layout)}"
    elif x.device.type not in ("cpu", "meta"):
        where = f" on {x.device}: fastdrop_keras runs on the CPU, and keras.layers.Dropout there"
    if where:
        raise inputs.wrong_input(x, str(x.dtype).removeprefix("torch."), where)
    return x


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a tensor or variable."""
    return isinstance(value, (torch.Tensor, keras.Variable))


def cond(
    training: Any, drop: Callable[[], torch.Tensor], keep: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Call one of the functions."""
    return drop() if bool(keras.ops.convert_to_tensor(training)) else keep()


def scope_of(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Return a context that does nothing."""
    return contextlib.nullcontext()


def forget_traces(model: keras.Model) -> None:
    """Collect the model's PyTorch parameters again, since the seeds' states are new ones."""
    for layer in model._flatten_layers():
        if "_torch_params" in layer._modules:
            layer._track_variables()


def update_variables(model: keras.Model) -> None:
    """Do nothing: each step assigns the variables."""


def random_module(layer: keras.Layer) -> str:
    """Return the class of a module that drops in a layer that Keras makes of a PyTorch module."""
    if isinstance(layer, keras.layers.TorchModuleWrapper):
        for module in layer.module.modules():
            if type(module) in modules.CLASSES or conversion._reason_to_stay(module):
                return f"torch.nn.{type(module).__name__}"
    return ""


def supports_jit() -> bool:
    """Return True: `torch.compile` compiles the layers as it compiles fastdrop_torch's."""
    return True


def config_lines() -> list[str]:
    """Return the version of PyTorch."""
    return [f"on PyTorch {torch.__version__}, by fastdrop_torch"]


# Gradient checkpointing.


def runs_around(layer: Any, training: bool) -> tuple[blocks.Run | None, list[blocks.Run]]:
    """Return the run from which this call of `layer` reads its seed, and those it writes to."""
    # In a symbolic scope, Keras computes shapes.
    if in_symbolic_scope():
        return None, []
    if blocks.runs.get():
        return blocks.split_runs(_FOREIGN)
    # A recomputation is in the backward pass, with gradients.
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and _in_backward_pass()):
        return None, []
    raise blocks.refusal(_FOREIGN)


_FOREIGN = (
    "a backward pass, in a function that was checkpointed not by the "
    "`torch.utils.checkpoint.checkpoint` that fastdrop_keras replaces when it is imported. Import "
    "fastdrop_keras before this function"
)


def _in_backward_pass() -> bool:
    return torch._C._current_graph_task_id() != -1


_original = torch.utils.checkpoint.checkpoint


@functools.wraps(_original)
def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Work as `torch.utils.checkpoint.checkpoint`, and reuse the masks of the forward pass."""
    return _original(blocks.Block(function).run, *args, **kwargs)


torch.utils.checkpoint.checkpoint = checkpoint
