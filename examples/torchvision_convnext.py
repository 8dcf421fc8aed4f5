"""Replaces stochastic depth in torchvision's ConvNeXt, without pretrained weights, trains it on
random images, and shows that a seed repeats the losses."""

import argparse
from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models import convnext_tiny

import fastdrop_torch


def losses(model: nn.Module, steps: int, seed: int) -> list[float]:
    """Return the losses of training steps on the same random images, with masks from the seed."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, 64, 64, generator=random)
    labels = torch.randint(10, (8,), generator=random)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    torch.manual_seed(seed)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 steps: only to try it")
    steps = 2 if parser.parse_args(arguments).quick else 20

    torch.manual_seed(1)
    model = convnext_tiny(weights=None, num_classes=10, stochastic_depth_prob=0.3)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fastdrop_torch.convert(model)  # prints what it replaces
    first = losses(model, steps, seed=2)
    model.load_state_dict(weights)
    again = losses(model, steps, seed=2)
    print(f"loss: {first[0]:.3f} in the first step, {first[-1]:.3f} in the last of {steps}")
    print(f"the same seed gives the same losses: {first == again}")


if __name__ == "__main__":
    main()
