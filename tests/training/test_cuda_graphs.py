"""Steps that are recorded and replayed end in the bits of steps that are not.

Without a GPU, a stand-in runs the passes again in place of a CUDA graph and spoils what the last step left, as a
replay's memory is written over by the next.
"""

import random

import numpy as np
import pytest
import torch
from torch import nn

from reprise.training import cuda_graphs as graphs
from reprise.training.cuda_graphs import GraphedSteps, UnrecordableError
from reprise.training.steps import ChunkedClassifier
from reprise.training.train import train


def again(forward, backward):
    """What `record` does with CUDA, warming up included."""
    steps = forward.__self__
    for _ in range(graphs.WARM_UP):
        forward()
        backward()

    def run_forward():
        before = steps.outputs[:2]  # the labels may be the batch's own
        forward()
        for tensor in before:
            tensor.detach().fill_(float("nan"))

    return [run_forward, backward]


@pytest.fixture
def recording(monkeypatch):
    """Let steps be recorded here; return the shapes of images for which that has happened."""
    shapes = []

    def record(forward, backward):
        shapes.append(tuple(forward.__self__.batch[0].shape))
        return again(forward, backward)

    monkeypatch.setattr("reprise.training.steps.recordable", lambda module: True)
    monkeypatch.setattr(graphs, "record", record)
    return shapes


CASES = [
    ([], 1),
    (["model.kwargs.drop_rate=0.3", "train.augment.mixup=0.2", "train.balance=weights"], 1),
    (["train.accumulate=2", "train.clip_grad=0.1", "train.ema=0.9"], 1),
    (["train.freeze_epochs=1", "train.epochs=3"], 2),
    (["train.start_size=16", "train.epochs=3"], 3),
    (["train.optimizer=muon", "train.precision=bf16", "train.reproducible=machine"], 1),
]


@pytest.mark.parametrize(("overrides", "times"), CASES)
def test_replayed_steps_end_in_the_same_bits(overrides, times, digits, tiny_params, recording, monkeypatch):
    params = tiny_params("train.batch_size=60", *overrides)
    replayed = train(digits, params.model, params.train)
    assert len(recording) == times
    monkeypatch.setattr("reprise.training.steps.recordable", lambda module: False)
    plain = train(digits, params.model, params.train)
    assert len(recording) == times
    assert replayed.history == plain.history
    state, other = replayed.network.state_dict(), plain.network.state_dict()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []


def test_what_cannot_be_recorded_is_trained_as_ever(digits, tiny_params, monkeypatch, capsys):
    params = tiny_params("train.batch_size=60")
    plain = train(digits, params.model, params.train)
    capsys.readouterr()

    def refuse(forward, backward):
        again(forward, backward)
        raise UnrecordableError("operation not permitted")

    monkeypatch.setattr("reprise.training.steps.recordable", lambda module: True)
    monkeypatch.setattr(graphs, "record", refuse)
    trained = train(digits, params.model, params.train)
    said = capsys.readouterr().err
    assert said.count("steps run without CUDA graphs, slower: operation not permitted\n") == 1
    assert trained.history == plain.history


class Shared(nn.Module):
    """Two weights with one gradient, one that is laid out in another way, one that is not used."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.turned = nn.Parameter(torch.randn(4, 3).t())
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x @ self.turned.t() + (self.first + self.second)


def test_each_gradient_has_memory_of_its_own_laid_out_like_its_weight(monkeypatch):
    monkeypatch.setattr(graphs, "record", again)
    module = ChunkedClassifier(Shared(), 3, steps=1)
    steps = GraphedSteps(module, 1)
    steps.begin()
    batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    steps.backward(steps.learn(batch))
    ours = {name: weight.grad for name, weight in module.net.named_parameters()}
    assert ours["unused"] is None
    assert ours["turned"].stride() == module.net.turned.stride() == (1, 3)
    assert ours["first"].data_ptr() != ours["second"].data_ptr()
    module.zero_grad()
    module.learn(batch).backward()
    for name in ("first", "second", "turned"):
        assert torch.equal(ours[name], getattr(module.net, name).grad), name


def test_hooked_modules_are_not_recorded(recording):
    module = ChunkedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, steps=1)
    steps, heard = GraphedSteps(module, 1), []
    handle = module.net[1].register_forward_hook(lambda *args: heard.append(1))
    batch = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0])
    for _ in range(2):
        steps.begin()
        steps.backward(steps.learn(batch))
    assert (len(heard), recording) == (2, [])
    handle.remove()
    for _ in range(2):
        steps.begin()
        steps.backward(steps.learn(batch))
    assert recording == [(5, 4)]
    for part in (module.net[1].weight, module):
        handle = part.register_hook(heard.append) if part is not module else part.register_forward_hook(heard.append)
        steps.begin()
        steps.learn(batch)
        assert not steps.replays
        handle.remove()
    steps.begin()
    steps.learn(batch)
    assert recording == [(5, 4), (5, 4)], "once more, after the hooks"


def failing(error):
    def work():
        raise error

    return work


@pytest.fixture
def modes(monkeypatch):
    """Let torch note how it is to treat waiting for a GPU."""
    set_to = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_to.append)
    return set_to


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [
        (failing(RuntimeError("called a synchronizing CUDA operation\nand more")), UnrecordableError, "operation$"),
        (failing(torch.OutOfMemoryError("too large")), torch.OutOfMemoryError, "too large"),
        (failing(ValueError("a bug")), ValueError, "a bug"),
        (lambda: torch.rand(1), UnrecordableError, "random numbers on the CPU"),
        (random.random, UnrecordableError, "random numbers on the CPU"),
        (np.random.rand, UnrecordableError, "random numbers on the CPU"),
    ],
)
def test_what_a_graph_would_not_repeat_is_found_before_recording(work, error, said, modes):
    with pytest.raises(error, match=said):
        graphs.check(lambda: None, work)
    assert modes == ["error", 1]


def test_what_can_be_repeated_is_let_through(modes):
    ran = []
    graphs.check(lambda: ran.append(1), lambda: ran.append(2))
    assert (ran, modes) == ([1, 2], ["error", 1])
