"""The profile shares a step's time out and compares with the bare loop; the training it watches is the real one."""

from types import SimpleNamespace

import pytest
import torch

from reprise.diagnostics.profile import PARTS, Profile, profile
from reprise.runtime.errors import UserError
from reprise.training.steps import ChunkedClassifier

MLP = "model.name=mlp"  # the quickest network


@pytest.fixture
def slowed(monkeypatch):
    """Let a method take a quarter of a second on the profile's clock, and nothing else any time."""
    clock = [0.0]

    def slow(owner, name):
        untouched = getattr(owner, name)

        def method(*args, **kwargs):
            result = untouched(*args, **kwargs)  # the optimizer's begins with the hook before it
            clock[0] += 0.25
            return result

        monkeypatch.setattr(owner, name, method)

    monkeypatch.setattr("reprise.diagnostics.profile.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    return slow


@pytest.mark.parametrize(
    ("part", "owner", "name", "share"),
    [("forward", ChunkedClassifier, "learn", 0.0), ("optimizer", torch.optim.AdamW, "step", 1.0)],
)
def test_the_time_goes_where_it_was_spent(part, owner, name, share, digits, tiny_params, slowed):
    slowed(owner, name)
    params = tiny_params(MLP, "train.batch_size=60")
    measured = profile(digits, params.model, params.train, steps=12)
    assert measured.parts == {**dict.fromkeys(PARTS, 0.0), part: 0.25}
    assert measured.share == share  # the bare loop has the same optimizer, but no `learn`


def test_the_table_says_it_in_words():
    parts = dict(zip(PARTS, (0.001, 0.002, 0.004, 0.002, 0.001), strict=True))
    table = Profile(64, parts, step=0.010, bare_step=0.008).table().splitlines()
    assert table[0] == "a step of 64 images: 10.00 ms"
    assert table[1].split() == ["data", "1.000", "ms", "10.0%"]
    assert table[-1] == "6,400 images/s; a bare loop over resident tensors: 8,000; 0.800 of that"


@pytest.mark.parametrize(("asked", "seen"), [(90, 90), (500, 180)])
def test_an_epoch_of_few_steps_is_enough(asked, seen, digits, tiny_params, capsys):
    params = tiny_params(f"train.batch_size={asked}")  # two steps, or all images in one
    measured = profile(digits, params.model, params.train, steps=1)
    assert measured.batch_size == seen
    assert 0 < measured.share < 5
    assert "epoch" not in capsys.readouterr().err  # those of the profile are not the params'


@pytest.mark.parametrize("overrides", [["train.accumulate=2"], ["train.accumulate=3", "train.batch_size=90"]])
def test_accumulated_batches_share_a_step_in_training_and_bare_loop(overrides, digits, tiny_params, slowed):
    slowed(torch.optim.AdamW, "step")
    params = tiny_params(MLP, *overrides)
    measured = profile(digits, params.model, params.train, steps=12)
    assert 0 < measured.parts["optimizer"] <= 0.125
    assert sum(measured.parts.values()) == measured.parts["optimizer"]
    assert measured.share == 1


def test_what_ends_a_training_or_freezes_it_for_a_while_does_neither_to_the_profile(digits, tiny_params, monkeypatch):
    trained = []
    learn = ChunkedClassifier.learn

    def watched(self, batch):
        trained.append(all(weight.requires_grad for weight in self.net.parameters()))
        return learn(self, batch)

    monkeypatch.setattr(ChunkedClassifier, "learn", watched)
    params = tiny_params(
        MLP,
        "train.batch_size=90",
        "train.early_stopping=1",
        "train.lr=1e-9",
        "train.freeze_epochs=1",
        "train.devices=2",
    )
    measured = profile(digits, params.model, params.train, steps=100)
    assert (measured.batch_size, measured.step > 0, 0 < measured.share < 5) == (90, True, True)
    assert len(trained) >= 2 * (2 * 3 + 1)  # two steps of each round, marked or not, and of the first
    assert all(trained)


def test_the_weights_to_start_from_are_those_of_the_training(digits, tiny_params, tmp_path):
    params = tiny_params(f"model.weights={tmp_path / 'none.safetensors'}")
    with pytest.raises(UserError, match=r"none\.safetensors"):
        profile(digits, params.model, params.train, weights=tmp_path / "none.safetensors")
