"""A head for each step: which weights a sample meets, however the batch is put together."""

# pyright: reportArgumentType=false
import json
from typing import Any

import pytest
import torch
from helpers import BadRow, bad_input, normal
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from sdekit.networks import PerStepMLP


def network(dim: int = 2, **arguments: Any) -> PerStepMLP:
    """In float64, with an output that is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = PerStepMLP(dim, **{"steps": 7, "hidden": 8, **arguments}).double()
        for weight in net.out.parameters():
            weight.data.normal_(std=0.3)
    return net


def by_hand(net: PerStepMLP, x: Tensor, step: int) -> Tensor:
    """One sample through the trunk and the head of one step."""
    h = x.flatten()
    for layer in net.trunk:
        h = F.silu(layer.weight @ h + layer.bias)
    h = F.silu(h @ net.heads.weight[step] + net.heads.bias[step, 0])
    return h @ net.out.weight[step] + net.out.bias[step, 0]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 3))
def test_a_sample_meets_the_head_of_its_step(labels: list[int], depth: int, readings: int) -> None:
    net, x = network(depth=depth, readings=readings), normal(len(labels), 2)
    out = net(x, torch.tensor(labels))
    assert out.shape == (len(labels), 2 * readings)
    for row, point, label in zip(out, x, labels, strict=True):
        assert (row - by_hand(net, point, label)).abs().max() < 1e-14


@pytest.mark.parametrize("event", [(), (1,), (6,), (2, 3), (1, 2, 3)], ids=str)
def test_the_first_axis_of_the_event_is_doubled(event: tuple[int, ...]) -> None:
    x = normal(5, *event)
    net = network(x[0].numel())
    wide = (2 * event[0], *event[1:]) if event else (2,)
    for t in (torch.tensor([3]), torch.arange(5)):
        assert net(x, t).shape == (5, *wide)
    assert net(x[:0], torch.arange(0)).shape == (0, *wide)


def test_one_label_for_all_is_that_label_for_each() -> None:
    net, x = network(), normal(6, 2)
    for label in range(7):
        shared = net(x, torch.tensor([label]))
        assert (shared - net(x, torch.full((6,), label))).abs().max() < 1e-14
    assert (net(x, torch.tensor([0])) - net(x, torch.tensor([1]))).abs().min() > 1e-3


def test_gradients_reach_the_heads_that_ran_and_no_others() -> None:
    net, x = network(), normal(9, 2)
    labels = torch.tensor([4, 1, 4, 4, 1, 0, 0, 1, 4])
    net(x, labels).square().sum().backward()
    for name, weight in net.named_parameters():
        if not name.startswith("trunk"):
            used = weight.grad.flatten(1).abs().amax(1) > 0
            assert used.nonzero().flatten().tolist() == [0, 1, 4], name
    together = {name: weight.grad.clone() for name, weight in net.named_parameters()}
    net.zero_grad()
    for point, label in zip(x, labels, strict=True):
        net(point[None], label[None]).square().sum().backward()
    for name, weight in net.named_parameters():
        assert (weight.grad - together[name]).abs().max() < 1e-12


def test_second_derivatives_exist() -> None:
    net, labels = network(hidden=4), torch.tensor([2, 0, 2])
    x = normal(3, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: net(x, labels), x)


def test_the_published_swiss_roll_network_has_its_parameters() -> None:
    """2-64-64, then 40 times 64-64-4 (Sohl-Dickstein et al. 2015)."""
    assert sum(p.numel() for p in PerStepMLP(2).parameters()) == 181_152


def test_starts_at_zero_and_the_config_rebuilds_it() -> None:
    x, labels = normal(5, 2), torch.arange(5)
    assert not PerStepMLP(2).double()(x, labels).any()
    net = network(depth=3, readings=1)
    twin = PerStepMLP(**json.loads(json.dumps(net.config))).double()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x, labels), net(x, labels))
    assert twin.config == net.config


BAD: list[BadRow] = [
    ("dim", lambda: PerStepMLP(0), ValueError, ["dim must be >= 1, got 0"]),
    ("steps", lambda: PerStepMLP(2, 0), ValueError, ["steps must be >= 1"]),
    ("hidden", lambda: PerStepMLP(2, hidden=8.0), TypeError, ["hidden must be an integer"]),
    ("depth", lambda: PerStepMLP(2, depth=True), TypeError, ["depth must be an integer"]),
    ("readings", lambda: PerStepMLP(2, readings=0), ValueError, ["readings must be >= 1"]),
    (
        "x of another dim",
        lambda: network()(normal(3, 4), torch.arange(3)),
        ValueError,
        ["2 numbers in an event", "(3, 4)"],
    ),
    (
        "times that are no labels",
        lambda: network()(normal(3, 2), torch.rand(3)),
        TypeError,
        ['time="label"', "float32"],
    ),
    (
        "labels of another batch",
        lambda: network()(normal(3, 2), torch.arange(4)),
        ValueError,
        ["(n,) or (1,)", "(4,)"],
    ),
    (
        "a label past the last",
        lambda: network()(normal(3, 2), torch.tensor([0, 7, 1])),
        ValueError,
        ["0 .. 6", "0 .. 7"],
    ),
    (
        "a label below 0",
        lambda: network()(normal(3, 2), torch.tensor([-1])),
        ValueError,
        ["0 .. 6", "-1 .. -1"],
    ),
]
test_bad_input = bad_input(BAD)
