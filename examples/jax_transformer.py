"""Trains a small transformer to sort numbers, in JAX with Flax: without dropout, with Flax's
dropout and with fastdrop's."""

import argparse
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

import fastdrop_jax.nnx

NUMBERS, LENGTH, WIDTH, HEADS, HIDDEN = 10, 12, 64, 4, 256
RATE, BATCH = 0.1, 64


class Block(nnx.Module):
    """An encoder block with four dropouts, one on the attention weights."""

    def __init__(self, dropout: Callable[[], nnx.Module], rngs: nnx.Rngs) -> None:
        self.project = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.merge = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.expand = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.contract = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.dropouts = nnx.List([dropout() for _ in range(4)])

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = self.project(x).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = (parts[:, :, part] for part in range(3))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / (WIDTH // HEADS) ** 0.5
        weights = self.dropouts[0](jax.nn.softmax(scores))
        attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        x = self.norms[0](x + self.dropouts[1](self.merge(attended)))
        hidden = self.dropouts[2](nnx.relu(self.expand(x)))
        return self.norms[1](x + self.dropouts[3](self.contract(hidden)))


class Sorter(nnx.Module):
    """Predicts, for each place, the number that is there after sorting."""

    def __init__(self, dropout: Callable[[], nnx.Module], rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(NUMBERS, WIDTH, rngs=rngs)
        self.places = nnx.Param(0.1 * jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        self.blocks = nnx.List([Block(dropout, rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, NUMBERS, rngs=rngs)

    def __call__(self, numbers: jax.Array) -> jax.Array:
        x = self.embed(numbers) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x)


# The layer and its rate.
VARIANTS = {
    "no dropout": (nnx.Dropout, 0.0),
    "flax.nnx.Dropout": (nnx.Dropout, RATE),
    "fastdrop_jax.nnx.Dropout": (fastdrop_jax.nnx.Dropout, RATE),
}


@nnx.jit
def train(model: Sorter, optimizer: nnx.Optimizer, numbers: jax.Array) -> jax.Array:
    def loss_of(model: Sorter) -> jax.Array:
        labels = jnp.sort(numbers, 1)
        return optax.softmax_cross_entropy_with_integer_labels(model(numbers), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


class Run:
    """A network in training, and the milliseconds of its steps."""

    def __init__(self, name: str) -> None:
        layer, rate = VARIANTS[name]
        rngs = nnx.Rngs(0)
        self.model = Sorter(lambda: layer(rate, rngs=rngs), rngs)
        self.optimizer = nnx.Optimizer(self.model, optax.adam(1e-3), wrt=nnx.Param)
        self.milliseconds: list[float] = []

    def step(self, numbers: jax.Array) -> None:
        start = time.perf_counter()
        train(self.model, self.optimizer, numbers).block_until_ready()
        self.milliseconds.append(1e3 * (time.perf_counter() - start))

    def accuracy(self, numbers: jax.Array) -> float:
        """Return the percentage of the places with the right number, with dropout off."""
        self.model.eval()
        predicted = self.model(numbers).argmax(2)
        return 100 * float((predicted == jnp.sort(numbers, 1)).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 steps: only to try it")
    steps = 10 if parser.parse_args(arguments).quick else 400
    runs = {name: Run(name) for name in VARIANTS}
    generator = np.random.default_rng(0)
    for _ in range(steps):
        numbers = jnp.asarray(generator.integers(NUMBERS, size=(BATCH, LENGTH)))
        for run in runs.values():
            run.step(numbers)
    test = jnp.asarray(generator.integers(NUMBERS, size=(1000, LENGTH)))
    table = Table(title=f"{steps} steps of sorting {LENGTH} numbers, dropout {RATE}")
    table.add_column("dropout", no_wrap=True)
    table.add_column("right places, %", justify="right")
    table.add_column("step, ms, median", justify="right")
    for name, run in runs.items():
        table.add_row(name, f"{run.accuracy(test):.1f}", f"{np.median(run.milliseconds):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
