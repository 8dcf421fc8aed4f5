"""Trains a PyTorch model in two processes with `DistributedDataParallel`, and shows that their
weights are equal, their masks are not, and another run repeats both."""

import argparse
import os
import tempfile
from collections.abc import Sequence

import torch
from sklearn.datasets import load_digits
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import fastdrop_torch

PROCESSES = 2


def train(rank: int, store: str, steps: int, seed: int) -> None:
    """Train on a part of the digits; process 0 prints what all processes have."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES
    )
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images[rank::PROCESSES] / 16, dtype=torch.float32)
    labels = torch.tensor(labels[rank::PROCESSES])
    torch.manual_seed(seed)
    dropout = fastdrop_torch.Dropout(0.5)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), dropout, nn.Linear(128, 10))
    parallel = DistributedDataParallel(model)  # sends process 0's weights to the others
    optimizer = torch.optim.Adam(parallel.parameters(), 1e-3)
    torch.manual_seed(seed + 1 + rank)  # the masks: a seed for each process
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(images), labels)
        loss.backward()  # averages the gradients of all processes
        optimizer.step()
    weights = gathered(torch.cat([weight.flatten() for weight in model.parameters()]))
    kept = gathered(dropout(torch.ones(64)) != 0)
    if rank == 0:
        different = (kept[0] != kept[1]).sum().item()
        print(
            f"loss of process 0: {loss.item():.6f}; weights equal: {weights[0].equal(weights[1])}"
        )
        print(f"the masks of the processes differ in {different} of 64 elements", flush=True)
    distributed.destroy_process_group()


def gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of all processes."""
    tensors = [torch.empty_like(tensor) for _ in range(PROCESSES)]
    distributed.all_gather(tensors, tensor)
    return tensors


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 steps: only to try it")
    steps = 5 if parser.parse_args(arguments).quick else 200
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the processes are on one machine
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(train, (f"{folder}/store", steps, 42), PROCESSES)


if __name__ == "__main__":
    main()
