"""Trains a small transformer to sort numbers: PyTorch's own encoder, which gets fastdrop's dropout
without a change of its code, and a block written with the fused `bias_dropout_add`."""

import argparse
import contextlib
import time
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fastdrop_torch
from fastdrop_torch.functional import bias_dropout_add, relu_dropout

NUMBERS, LENGTH, WIDTH, HEADS, HIDDEN = 10, 12, 64, 4, 256
RATE, BATCH = 0.1, 64


class FusedBlock(nn.TransformerEncoderLayer):
    """PyTorch's block, with the same parameters, whose sublayers end in one pass over memory."""

    def forward(self, src: Tensor, *masks: object, **more: object) -> Tensor:
        attended, _ = self.self_attn(src, src, src, need_weights=False)
        x = self.norm1(bias_dropout_add(attended, None, src, RATE, self.training))
        hidden = relu_dropout(self.linear1(x), RATE, self.training)
        # The bias of the second layer is added in the pass that drops.
        y = nn.functional.linear(hidden, self.linear2.weight)
        return self.norm2(bias_dropout_add(y, self.linear2.bias, x, RATE, self.training))


class Sorter(nn.Module):
    """Predicts, for each place, the number that is there after sorting."""

    def __init__(self, block: type[nn.TransformerEncoderLayer], rate: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUMBERS, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        layer = block(WIDTH, HEADS, HIDDEN, rate, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, NUMBERS)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(numbers) + self.places))


# The block, its rate, and whether PyTorch's own dropout functions run fastdrop's kernels.
VARIANTS = {
    "no dropout": (nn.TransformerEncoderLayer, 0.0, False),
    "PyTorch's": (nn.TransformerEncoderLayer, RATE, False),
    "fastdrop_torch.enabled()": (nn.TransformerEncoderLayer, RATE, True),
    "the same, and fused": (FusedBlock, RATE, True),
}


class Run:
    """A network in training, and the milliseconds of its steps."""

    def __init__(self, name: str) -> None:
        block, rate, self.ours = VARIANTS[name]
        torch.manual_seed(0)
        self.model = Sorter(block, rate)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)
        self.milliseconds: list[float] = []

    def step(self, numbers: Tensor) -> None:
        start = time.perf_counter()
        with fastdrop_torch.enabled() if self.ours else contextlib.nullcontext():
            logits = self.model(numbers)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), sorted_(numbers).flatten()).backward()
        self.optimizer.step()
        self.milliseconds.append(1e3 * (time.perf_counter() - start))

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the percentage of the places with the right number, with dropout off."""
        numbers = torch.randint(NUMBERS, (1000, LENGTH))
        predicted = self.model.eval()(numbers).argmax(2)
        return 100 * (predicted == sorted_(numbers)).float().mean().item()


def sorted_(numbers: Tensor) -> Tensor:
    return numbers.sort(1).values


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 steps: only to try it")
    steps = 10 if parser.parse_args(arguments).quick else 400
    torch.set_num_threads(1)  # a second thread gains little on tensors this small
    runs = {name: Run(name) for name in VARIANTS}
    for _ in range(steps):
        numbers = torch.randint(NUMBERS, (BATCH, LENGTH))
        for run in runs.values():
            run.step(numbers)
    table = Table(title=f"{steps} steps of sorting {LENGTH} numbers, dropout {RATE}")
    table.add_column("dropout", no_wrap=True)
    table.add_column("right places, %", justify="right")
    table.add_column("step, ms, median", justify="right")
    for name, run in runs.items():
        table.add_row(name, f"{run.accuracy():.1f}", f"{np.median(run.milliseconds):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
