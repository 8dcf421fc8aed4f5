"""Defines what the tests of the PyTorch package share."""

import pytest
import torch
import torch._dynamo


@pytest.fixture(autouse=True)
def seeded():
    """Start each test at one state of PyTorch's generator, without compiled functions."""
    torch.manual_seed(20)
    torch._dynamo.reset()
