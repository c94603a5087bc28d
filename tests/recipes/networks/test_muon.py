"""Muon: against PyTorch's own where that reaches, and split between processes."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from data.recipes.networks import muon


@pytest.mark.parametrize("shape", [(8, 8), (6, 30), (30, 6)])
def test_singular_values_become_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(muon.orthogonalize(matrix))
    assert values.min() > 0.3 and values.max() < 1.3
    direction = (muon.orthogonalize(matrix) * (left @ right)).sum() / len(values)
    assert direction == pytest.approx(values.mean().item(), rel=0.02), "singular vectors stay"


def test_matrices_are_trained_as_by_pytorchs_muon():
    torch.manual_seed(1)
    start, target = torch.randn(12, 20), torch.randn(12, 20)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 0.05, "weight_decay": 0.01}
    reference = torch.optim.Muon([theirs], **settings, adjust_lr_fn="match_rms_adamw")
    for parameter, optimizer in ((ours, muon.Muon([ours], **settings)), (theirs, reference)):
        for _ in range(8):
            optimizer.zero_grad()
            ((parameter - target) ** 2).sum().backward()
            optimizer.step()
    moved = (theirs - start).detach()
    assert moved.norm() > 1
    assert (ours - theirs).norm() < 0.02 * moved.norm(), "bfloat16 rounds a little differently"


def test_a_kernel_is_trained_as_its_matrix():
    torch.manual_seed(2)
    start, gradient = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    before = start.clone()
    kernel, matrix = torch.nn.Parameter(start), torch.nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    for parameter in (kernel, matrix):
        muon.Muon([parameter], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(kernel, before)


class Meeting:
    """As much of torch.distributed as the optimizer asks for, between two threads."""

    def __init__(self):
        self.barrier, self.here, self.sums = threading.Barrier(2), threading.local(), [None, None]

    def is_initialized(self) -> bool:
        return hasattr(self.here, "rank")

    def get_rank(self) -> int:
        return self.here.rank

    def get_world_size(self) -> int:
        return 2

    def all_reduce(self, flat: torch.Tensor) -> None:
        self.sums[self.here.rank] = flat.clone()
        self.barrier.wait(timeout=60)
        flat.copy_(sum(self.sums))
        self.barrier.wait(timeout=60)


def trained() -> list[torch.Tensor]:
    """Five matrices, two of one shape, after two steps."""
    numbers = torch.Generator().manual_seed(3)
    shapes = [(5, 7), (5, 8), (9, 4), (5, 7), (2, 3, 2, 2)]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=numbers)) for shape in shapes]
    optimizer = muon.Muon(parameters, lr=0.1)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = parameter.detach() ** 2
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def test_processes_share_the_work_and_agree(monkeypatch):
    alone, shared, meeting = trained(), [0, 0], Meeting()
    orthogonalize = muon.orthogonalize

    def counted(matrices: torch.Tensor) -> torch.Tensor:
        shared[meeting.get_rank()] += len(matrices)
        return orthogonalize(matrices)

    monkeypatch.setattr(muon, "dist", meeting)
    monkeypatch.setattr(muon, "orthogonalize", counted)

    def work(rank: int) -> list[torch.Tensor]:
        meeting.here.rank = rank
        return trained()

    with ThreadPoolExecutor(2) as threads:
        for apart in threads.map(work, range(2)):
            for one, other in zip(alone, apart, strict=True):
                torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)
    assert shared == [6, 4], "three of five matrices in each of two steps, and two"


def test_both_optimizers_stop_and_go_on():
    def steps(net, both, count):
        for number in range(count):
            both.zero_grad()
            (net(torch.full((1, 4), number + 1.0)) ** 2).sum().backward()
            both.step()

    def fresh():
        torch.manual_seed(4)
        net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
        return net, muon.Both(net, ("2",), 0.01, betas=(0.9, 0.99))

    net, both = fresh()
    adam, matrices = (
        sum(p.numel() for g in part.param_groups for p in g["params"]) for part in both.parts
    )
    assert (adam, matrices) == (6 + 12 + 2, 24), "biases and the outer layer are AdamW's"
    steps(net, both, 2)
    other, again = fresh()
    other.load_state_dict(net.state_dict())
    again.load_state_dict(copy.deepcopy(both.state_dict()))
    steps(net, both, 2)
    steps(other, again, 2)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert {group["lr"] for group in both.param_groups} == {0.01}
