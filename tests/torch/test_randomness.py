"""Masks come from PyTorch's generator, and differ between processes, threads and replicas."""

import os
import socket
import threading

import pytest
import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

import fastdrop
import fastdrop_torch
from fastdrop_torch import functional as F  # noqa: N812

X = torch.ones(1000)
CALLS = {
    "dropout": lambda **random: F.dropout(X, 0.5, **random),
    "dropout in place": lambda **random: F.dropout(X.clone(), 0.5, inplace=True, **random),
    "dropout1d": lambda **random: F.dropout1d(X[:, None], 0.5, **random),
    "alpha_dropout": lambda **random: F.alpha_dropout(X, 0.5, True, **random),
    "alpha_dropout in place": lambda **random: F.alpha_dropout(
        X.clone(), 0.5, True, True, **random
    ),
    "feature_alpha_dropout": lambda **random: F.feature_alpha_dropout(
        X[:, None, None], 0.5, True, **random
    ),
    "relu_dropout": lambda **random: F.relu_dropout(X, 0.5, **random),
    "gaussian_dropout": lambda **random: F.gaussian_dropout(X, 0.5, **random),
    "gaussian_dropout in place": lambda **random: F.gaussian_dropout(
        X.clone(), 0.5, inplace=True, **random
    ),
    "gaussian_noise": lambda **random: F.gaussian_noise(X, 0.5, **random),
    "bias_dropout_add": lambda **random: F.bias_dropout_add(X, None, None, 0.5, **random),
}


@pytest.mark.parametrize("name", CALLS)
def test_manual_seed_repeats(name):
    call = CALLS[name]
    torch.manual_seed(1)
    first, second = call(), call()
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(call(), first)
    with torch.random.fork_rng(devices=[]):
        call()
    assert torch.equal(call(), second)
    torch.set_rng_state(state)
    assert torch.equal(call(), first)


@pytest.mark.parametrize("name", CALLS)
def test_a_generator_of_ones_own(name):
    call, state = CALLS[name], torch.get_rng_state()
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    first = call(generator=generators[0])
    assert torch.equal(call(generator=generators[1]), first)
    assert not torch.equal(call(generator=generators[1]), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CALLS)
def test_a_seed_fixes_the_mask_and_takes_nothing_from_the_generator(name):
    call, state = CALLS[name], torch.get_rng_state()
    assert torch.equal(call(seed=2**127 + 1), call(seed=2**127 + 1))
    for other in (1, 2**127, 2**127 + 2**64):
        assert not torch.equal(call(seed=2**127 + 1), call(seed=other))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failing_call_takes_nothing_from_the_generator():
    state = torch.get_rng_state()
    for bad in ({"p": 2.0}, {"seed": -1}):
        with pytest.raises(ValueError, match="got"):
            F.dropout(X, **bad)
    leaf = torch.ones(2, 3, 4, 5, requires_grad=True)
    for in_place in (
        lambda x: F.dropout(x, 0.5, inplace=True),
        lambda x: F.dropout(x, torch.full((5,), 0.5), inplace=True),
        lambda x: F.dropout2d(x, 0.5, inplace=True),
        lambda x: F.alpha_dropout(x, 0.5, True, True),
        lambda x: F.feature_alpha_dropout(x, 0.5, True, True),
        lambda x: F.gaussian_dropout(x, 0.5, inplace=True),
        lambda x: F.gaussian_noise(x, 0.5, inplace=True),
        lambda x: F.drop_block2d(x, 0.5, 2, inplace=True),
    ):
        with pytest.raises(RuntimeError, match="leaf"):
            in_place(leaf)
        assert torch.equal(torch.get_rng_state(), state)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    x = torch.randn(2**19 + 5, requires_grad=True)
    results = []
    for threads in (1, 2, 5):
        with fastdrop.num_threads(threads):
            y = F.dropout(x, 0.3, seed=4)
            results.append((y, torch.autograd.grad(y, x, x)[0]))
    for y, dx in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(dx, results[0][1])


def test_threads_may_drop_at_once():
    right = F.dropout(torch.ones(10_000), 0.5, seed=9)
    failures, masks = [], []

    def work():
        for _ in range(200):
            x = torch.ones(10_000, requires_grad=True)
            y = F.dropout(x, 0.5, seed=9)
            y.sum().backward()
            if not (torch.equal(y, right) and torch.equal(x.grad, right)):
                failures.append(y)
        masks.append(F.dropout(torch.ones(10_000)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


class Augmented(Dataset):
    """Drops in the workers of a DataLoader."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return fastdrop_torch.Dropout(0.5)(torch.ones(500))


# Python warns of any fork of a process with threads.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_of_a_data_loader_draw_different_masks():
    # The parent has used the kernels and their threads.
    F.dropout(torch.ones(2**19))
    loader = DataLoader(Augmented(), num_workers=2, multiprocessing_context="fork", timeout=100)
    rows = torch.cat(list(loader))
    assert len({tuple(row.tolist()) for row in rows}) == 4
    assert set(rows.unique().tolist()) == {0.0, 2.0}


def train_replica(rank, port, results):
    """Train one of two replicas under DistributedDataParallel."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(50, 50), fastdrop_torch.Dropout(0.5))
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(100 + rank)
    y = parallel(torch.ones(4, 50))
    y.square().sum().backward()
    results.put((rank, (y == 0).tolist(), model[0].weight.grad.sum().item()))
    torch.distributed.destroy_process_group()


def test_two_replicas_draw_different_masks_and_share_gradients():
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=train_replica, args=(rank, port, results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
        assert process.exitcode == 0
    (_, first, gradient), (_, second, same) = sorted([results.get(), results.get()])
    assert first != second
    assert gradient == same
