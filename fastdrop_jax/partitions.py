"""Runs dropout of an array that is distributed over several devices, without gathering it.

Each device drops elements of its own block. The decision on an element depends on its position in
the whole array, so the result does not depend on the devices. For noise, the array is gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import dispatch
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.interpreters import mlir
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

# `call(x, words, settings, block)`: the settings are the kind's number and the entries of the noise
# shape; `block`, if it is there, has the sizes of the whole array, and where `x` begins in it.
Call = Callable[..., jax.Array]

_AXIS = "fastdrop_devices"


def allow(primitive: Any) -> None:
    """Make JAX tell the lowering rule of the primitive the devices of its program."""
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def are_needed(ctx: Any) -> bool:
    """Return whether a program is for several devices, over which JAX distributes its arrays."""
    axes = ctx.module_context.axis_context
    return isinstance(axes, mlir.ShardingContext) and axes.num_devices > 1


def distributed(call: Call, *, by_blocks: bool) -> Call:
    """Return `call(x, words, settings)` for arrays that JAX distributes over devices.

    The settings are an argument: JAX's compilation cache does not see what `call` holds. Unless
    `by_blocks`, each device computes the whole result.
    """

    def partition(_: Any, arguments: Any, result: Any) -> Any:
        x, _words, _numbers = arguments
        devices = result.sharding._device_assignment
        mesh = Mesh(np.array(devices), (_AXIS,))
        replicated = NamedSharding(mesh, PartitionSpec())
        if not by_blocks:
            return mesh, call, replicated, (replicated,) * 3
        sharding = result.sharding if _is_even(result.sharding, x.shape) else replicated
        blocks = sharding.devices_indices_map(x.shape)
        starts = np.array([[one.start or 0 for one in blocks[device]] for device in devices])

        def drop_block(x: jax.Array, words: jax.Array, settings: jax.Array) -> jax.Array:
            with jax.enable_x64(True):
                start = jnp.asarray(starts.astype(np.int64))[lax.axis_index(_AXIS)]
                outer = words.ndim - 1  # dimensions of x with words of their own
                words = lax.dynamic_slice(
                    words, [*start[:outer], 0], [*x.shape[:outer], words.shape[-1]]
                )
                whole = jnp.asarray(np.array(whole_shape, np.int64))
                return call(x, words, settings, jnp.stack([whole, start])[:, outer:])

        whole_shape = x.shape
        return mesh, drop_block, sharding, (sharding, replicated, replicated)

    # It takes no constants, and those of a jitted function are not its own.
    function = custom_partitioning(lambda x, words, settings: jax.jit(call)(x, words, settings))
    function.def_partition(partition, infer_sharding_from_operands=_of_input, sharding_rule=_rule)
    return function


def _is_even(sharding: Sharding, shape: tuple[int, ...]) -> bool:
    """Return whether each device has a block of the same shape."""
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def _of_input(mesh: Any, arguments: Any, result: Any) -> Sharding:
    """Return for GSPMD that the result is distributed as `x`."""
    sharding: Sharding = arguments[0].sharding
    return sharding


def _rule(mesh: Any, arguments: Any, results: Any) -> SdyShardingRule:
    """Return the same for Shardy, and that each device has all words and settings."""
    x, words, _ = (argument.shape for argument in arguments)
    dimensions: Any = tuple(f"x{i}" for i in range(len(x)))
    of_settings: Any = ("settings",)
    of_words: Any = tuple(f"words{i}" for i in range(len(words)))
    return SdyShardingRule(
        (dimensions, of_words, of_settings),
        (dimensions,),
        need_replication_factors=of_words + of_settings,
    )
