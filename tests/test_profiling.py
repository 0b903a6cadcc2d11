"""The profile shares a step's time out and compares with the bare loop; the training it watches is the real one."""

from types import SimpleNamespace

import pytest
import torch

from reprise.classifier import LitClassifier
from reprise.profiling import PARTS, Profile, profile


@pytest.mark.parametrize(
    ("part", "owner", "name", "share"),
    [("forward", LitClassifier, "learn", 0.0), ("optimiser", torch.optim.AdamW, "step", 1.0)],
)
def test_the_time_goes_where_it_was_spent(part, owner, name, share, digits, tiny_params, monkeypatch):
    clock = [0.0]
    untouched = getattr(owner, name)

    def slow(*args, **kwargs):
        clock[0] += 0.25
        return untouched(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)
    monkeypatch.setattr("reprise.profiling.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    params = tiny_params()
    measured = profile(digits, params.model, params.train, steps=60)
    assert measured.parts == {**dict.fromkeys(PARTS, 0.0), part: 0.25}
    assert measured.share == share  # the bare loop has the same optimizer, but no `learn`


def test_the_table_says_it_in_words():
    parts = dict(zip(PARTS, (0.001, 0.002, 0.004, 0.002, 0.001), strict=True))
    table = Profile(64, parts, step=0.010, bare_step=0.008).table().splitlines()
    assert table[0] == "a step of 64 images: 10.00 ms"
    assert table[1].split() == ["data", "1.000", "ms", "10.0%"]
    assert table[-1] == "6,400 images/s; a bare loop over resident tensors: 8,000; 0.800 of that"


def test_what_cannot_train_cannot_be_profiled(digits, tiny_params):
    from reprise.errors import UserError

    params = tiny_params("train.batch_size=5000")
    with pytest.raises(UserError, match=r"train\.batch_size = 5000"):
        profile(digits, params.model, params.train)


def test_an_epoch_of_few_steps_is_enough(digits, tiny_params):
    params = tiny_params("train.batch_size=90")  # two steps
    measured = profile(digits, params.model, params.train, steps=1)
    assert measured.batch_size == 90
    assert 0 < measured.share < 5
