"""What is said before a training is true, and saying it changes nothing."""

import re
import warnings

import pytest
import torch
from torch import nn

from reprise.loader.batches import Process
from reprise.training.setup import Assembly
from reprise.training.summary import _kept_bytes, summary
from reprise.training.train import _silence_lightning


def test_kept_bytes_of_a_known_network():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    assert _kept_bytes(network, torch.zeros(1, 1, 8, 8)) == 4 * (
        64 + 256
    )  # the image for the convolution; ReLU and the linear layer share one tensor


@pytest.fixture
def assembled(digits, tiny_params):
    """Put a training together from the tiny setting and more overrides."""

    def assemble(*overrides, device="cpu"):
        params = tiny_params(*overrides)
        made = Assembly(digits, params.model, params.train, Process())
        made.process = Process(device)
        return made

    return assemble


def test_the_summary_states_the_run_and_leaves_network_and_random_state_alone(assembled):
    made = assembled("train.batch_size=16")
    network = made.network
    before, state = {name: t.clone() for name, t in network.state_dict().items()}, torch.get_rng_state()
    text = summary(made)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    assert "test_resnet: 373,370 parameters, 4,025,280 multiply-adds an image" in text  # metrics/test.json has both
    assert "2 epochs of 11 steps, adamw, onecycle, learning rate 0.003, on cpu, portable" in text
    assert f"digits: {made.metadata.summary()}" in text
    batch = float(re.search(r"([\d.]+) MB for a batch of 16", text)[1])
    twice = summary(assembled("train.batch_size=32"))
    assert abs(float(re.search(r"([\d.]+) MB for a batch of 32", twice)[1]) - 2 * batch) < 0.2
    assert "2 epochs of 11 steps, 1 with a frozen backbone, adamw" in summary(assembled("train.freeze_epochs=1"))


def test_a_network_that_cannot_be_counted_is_still_trained(assembled, monkeypatch):
    monkeypatch.setattr("reprise.training.summary.count_flops", lambda network, architecture: None)
    assert "373,370 parameters, uncounted multiply-adds an image" in summary(assembled())


@pytest.mark.parametrize(
    ("gpu", "device", "overrides", "said"),
    [
        (True, "cpu", [], True),
        (False, "cpu", [], False),
        (True, "cuda", ["train.reproducible=machine"], False),
        (True, "cpu", ["train.accelerator=cpu"], False),
    ],
)
def test_a_gpu_that_the_terms_leave_idle_is_mentioned(gpu, device, overrides, said, assembled, monkeypatch):
    made = assembled(*overrides, device=device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert ("there is a GPU: train.reproducible: machine would use it" in summary(made)) is said


def test_a_warning_that_a_user_can_do_something_about_is_shown(recwarn):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        _silence_lightning()
        warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck", stacklevel=1)
        warnings.warn("Corrupt EXIF data", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["Corrupt EXIF data"]
