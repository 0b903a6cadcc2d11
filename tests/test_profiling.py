"""The profile shares a step's time out and compares with the bare loop; the training it watches is the real one."""

from types import SimpleNamespace

import pytest
import torch

from reprise.profiling import PARTS, Profile, profile


def test_a_slow_part_is_named(digits, tiny_params, monkeypatch):
    """One part in turn takes 20 ms on a clock that stands still otherwise."""
    from reprise.classifier import LitClassifier

    now = 0.0

    def slow(function):
        def slowed(*args, **kwargs):
            nonlocal now
            now += 0.02
            return function(*args, **kwargs)

        return slowed

    places = {
        "forward": (LitClassifier, "learn"),
        "optimiser": (torch.optim.AdamW, "step"),
    }
    params = tiny_params()
    monkeypatch.setattr("reprise.profiling.time", SimpleNamespace(perf_counter=lambda: now))
    for part, (owner, name) in places.items():
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, slow(getattr(owner, name)))
            measured = profile(digits, params.model, params.train, steps=60)
        assert measured.parts == pytest.approx(dict.fromkeys(PARTS, 0.0) | {part: 0.02})
        assert measured.step == pytest.approx(0.02)
        # the bare loop has the same optimizer, but no `learn`
        assert measured.share == pytest.approx(0.0 if part == "forward" else 1.0)


def test_the_table_says_it_in_words():
    parts = dict(zip(PARTS, (0.001, 0.002, 0.004, 0.002, 0.001), strict=True))
    table = Profile(64, parts, step=0.010, bare_step=0.008).table().splitlines()
    assert table[0] == "a step of 64 images: 10.00 ms"
    assert table[1].split() == ["data", "1.000", "ms", "10.0%"]
    assert table[-1] == "6,400 images/s; a bare loop over resident tensors: 8,000; 0.800 of that limit"


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
