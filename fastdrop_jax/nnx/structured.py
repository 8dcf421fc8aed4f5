"""Defines layers for Flax NNX that drop weights, blocks of images, and whole samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from fastdrop_jax.blocks import checked_images, drop_block
from fastdrop_jax.functional import dropout
from fastdrop_jax.nnx.layers import Dropout, RandomLayer, Rngs, checked_rngs


class DropBlock2D(RandomLayer):
    """Drops blocks of images or feature maps in training, by `fastdrop_jax.drop_block`.

    Args:
        rate: Fraction of the elements to drop, from 0 to 1.
        block_size: Positive integer, or two for the height and the width of the blocks.
        per_channel: Whether each channel has blocks of its own.
        deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If `rngs` is of another type.
        TypeError, ValueError: As for `fastdrop_jax.drop_block`, when the layer is called, and if it
            drops without keys.

    Reference:

    - [Ghiasi et al., 2018](https://arxiv.org/abs/1810.12890)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import DropBlock2D
    >>> layer = DropBlock2D(0.2, block_size=2, rngs=nnx.Rngs(1))
    >>> layer(jnp.ones((1, 4, 5, 1)))[0, :, :, 0]
    Array([[1.25, 0.  , 0.  , 1.25, 1.25],
           [1.25, 0.  , 0.  , 1.25, 1.25],
           [1.25, 1.25, 1.25, 1.25, 1.25],
           [1.25, 1.25, 1.25, 1.25, 1.25]], dtype=float32)
    """

    def __init__(
        self,
        rate: float | jax.Array,
        block_size: int | Sequence[int],
        *,
        per_channel: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate, self.block_size, self.per_channel = rate, block_size, per_channel

    def _checked(self, inputs: Any) -> jax.Array:
        return checked_images(inputs, "inputs")

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return drop_block(key, inputs, self.rate, self.block_size, per_channel=self.per_channel)


class StochasticDepth(RandomLayer):
    """Drops whole samples, at the end of a residual branch (stochastic depth, DropPath).

    In training, the layer drops each sample (along the first dimension) as a whole with probability
    `rate`, so that only the shortcut remains of the residual block. It multiplies the other samples
    by ``1 / (1 - rate)``. The paper instead multiplies the branch by ``1 - rate`` in inference. It
    is `fastdrop_jax.dropout` with the `noise_shape` ``(None, 1, 1, ...)``.

    Args:
        rate: Fraction of the samples to drop, from 0 to 1.
        deterministic, rng_collection, rngs: As for `Dropout`.

    Raises:
        TypeError: If `rngs` is of another type.
        TypeError, ValueError: As for `fastdrop_jax.dropout`, when the layer is called, and if it
            drops without keys.

    Reference:

    - [Huang et al., 2016](https://arxiv.org/abs/1603.09382)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import StochasticDepth
    >>> StochasticDepth(0.5, rngs=nnx.Rngs(0))(jnp.ones((4, 2)))
    Array([[0., 0.],
           [2., 2.],
           [2., 2.],
           [0., 0.]], dtype=float32)
    """

    def __init__(self, rate: float | jax.Array, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate = rate

    def _draw(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        return dropout(key, inputs, self.rate, broadcast_dims=range(1, inputs.ndim))


class DropConnect(nnx.Module):
    """Drops elements of the kernel of one of Flax's layers, which comes after it in the bases."""

    kernel: nnx.Param[jax.Array]
    dropout: Dropout

    def __call__(
        self,
        inputs: jax.Array,
        out_sharding: Any = None,
        *,
        deterministic: bool | None = None,
        rngs: Rngs | jax.Array | None = None,
    ) -> jax.Array:
        """Return the outputs, with a thinned kernel unless `deterministic`.

        Args:
            inputs, out_sharding: As for Flax's layer.
            deterministic: Whether to use the whole kernel; the setting of `dropout` if `None`.
            rngs: Keys in place of the layer's: a key, a stream or `flax.nnx.Rngs`.

        Returns:
            Array as from Flax's layer.
        """
        kernel = self.dropout(self.kernel[...], deterministic=deterministic, rngs=rngs)
        thinned = copy.copy(self)
        # Flax refuses to change the attributes of a layer from outside of the traced function.
        vars(thinned)["kernel"] = nnx.Param(kernel)
        outputs: jax.Array = super(DropConnect, thinned).__call__(inputs, out_sharding)
        return outputs


class DropConnectLinear(DropConnect, nnx.Linear):
    """Is a `flax.nnx.Linear` whose weights are dropped (DropConnect).

    In training, the layer drops each element of its kernel independently with probability `rate`,
    and multiplies the others by ``1 / (1 - rate)``, by its layer `dropout`. All samples of a batch
    have one mask; the paper draws a mask for each sample, as `jax.vmap` over keys does. The bias is
    not dropped. The mask is the one that `fastdrop_jax.dropout` draws for the kernel with the key.

    In inference, the layer is Flax's: that is the mean of the outputs. The paper instead draws them
    from a normal distribution of the same mean and variance.

    Args:
        in_features: The number of input features.
        out_features: The number of output features.
        rate: Fraction of the weights to drop, from 0 to 1.
        deterministic: Whether to use the whole kernel, as in inference.
        rng_collection: The name of the stream of keys of the masks in `rngs`.
        rngs: `flax.nnx.Rngs`, for the weights and the masks.
        **kwargs: The other arguments of `flax.nnx.Linear`.

    Raises:
        TypeError, ValueError: As for `Dropout`, when the layer is called.

    Reference:

    - [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import DropConnectLinear
    >>> ones = nnx.initializers.ones
    >>> layer = DropConnectLinear(2, 4, 0.5, kernel_init=ones, rngs=nnx.Rngs(0))
    >>> layer(jnp.eye(2))
    Array([[2., 0., 0., 2.],
           [2., 2., 2., 0.]], dtype=float32)
    >>> layer.eval()
    >>> layer(jnp.eye(2))
    Array([[1., 1., 1., 1.],
           [1., 1., 1., 1.]], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_features, out_features, rngs=checked_rngs(rngs), **kwargs)
        self.dropout = Dropout(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )


class DropConnectConv(DropConnect, nnx.Conv):
    """Is a `flax.nnx.Conv` whose weights are dropped (DropConnect).

    In training, the layer drops each element of its kernel, as `DropConnectLinear` does: one mask
    for all samples and all positions.

    Args:
        in_features: The number of input channels.
        out_features: The number of output channels.
        kernel_size: Integer, or sequence of integers, the size of the kernel.
        rate: Fraction of the weights to drop, from 0 to 1.
        deterministic, rng_collection, rngs: As for `DropConnectLinear`.
        **kwargs: The other arguments of `flax.nnx.Conv`.

    Raises:
        TypeError, ValueError: As for `Dropout`, when the layer is called.

    Reference:

    - [Wan et al., 2013](https://proceedings.mlr.press/v28/wan13.html)

    Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fastdrop_jax.nnx import DropConnectConv
    >>> ones = nnx.initializers.ones
    >>> layer = DropConnectConv(2, 4, (1, 1), 0.5, kernel_init=ones, rngs=nnx.Rngs(0))
    >>> layer(jnp.eye(2)[None, None])[0, 0]
    Array([[2., 0., 0., 2.],
           [2., 2., 2., 0.]], dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        rate: float,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
        **kwargs: Any,
    ) -> None:
        rngs = checked_rngs(rngs)
        super().__init__(in_features, out_features, kernel_size, rngs=rngs, **kwargs)
        self.dropout = Dropout(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
