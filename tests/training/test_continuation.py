"""A finished run goes on for more epochs, as one longer training where that can be, and says so where it cannot."""

import shutil

import pytest
import torch

from reprise.model.artifact import load_card
from reprise.repo.runs import RESULT
from reprise.runtime.errors import UserError
from reprise.training.result import LAST
from reprise.training.train import Options, train


@pytest.fixture
def finished(digits, tmp_path):
    """Return a function that trains, and writes the run's folder; it returns the folder and the result."""

    def make(params, name="run", **options):
        run = tmp_path / name
        run.mkdir(exist_ok=True)
        result = train(digits, params.model, params.train, tmp_path / "scratch", options=Options(**options))
        result.save(*(run / file for file in RESULT))
        result.checkpoints.keep(run / f"{LAST}.partial")
        (run / f"{LAST}.partial").replace(run / LAST)
        result.discard_checkpoints()
        return run, result

    return make


EXACT = {
    "constant": [],
    "none": [],
    "plateau": ["train.ema=0.9"],
    "step": ["train.schedule_kwargs.decay_epochs=1", "train.optimizer=sgd"],
    "multistep": ["train.schedule_kwargs.decay_milestones=[1, 3]"],
}


@pytest.mark.parametrize("schedule", EXACT)
def test_a_schedule_without_an_end_gives_the_bits_of_one_training(schedule, finished, tiny_params, capsys):
    given = [f"train.schedule={schedule}", *EXACT[schedule]]
    _, whole = finished(tiny_params("train.epochs=3", *given), "whole")
    run, first = finished(tiny_params("train.epochs=2", *given))
    capsys.readouterr()
    _, second = finished(tiny_params("train.epochs=3", *given), origin=run)
    assert "going on after 2 epochs, as one training\n" in capsys.readouterr().err
    assert second.history == whole.history
    for one, two in zip(whole.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert (first.card.training.continued, whole.card.training.continued) == ([], [])
    assert load_card(run / "model.json").training.continued == [2]
    assert second.card.provenance.key() != whole.card.provenance.key()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["train.schedule=onecycle"], "train.schedule = onecycle"),
        (["train.schedule=cosine"], "train.schedule = cosine"),
        (["train.schedule=step"], "train.schedule = step"),
        (["train.schedule=constant", "train.start_size=16"], "train.start_size"),
    ],
)
def test_what_depends_on_the_number_of_epochs_is_named_and_follows_the_larger_one(
    given, why, finished, tiny_params, capsys
):
    run, first = finished(tiny_params("train.epochs=2", *given))
    capsys.readouterr()
    _, second = finished(tiny_params("train.epochs=4", *given), origin=run)
    assert (
        f"going on after 2 epochs, otherwise than one training of 4: {why} depends on that" in capsys.readouterr().err
    )
    _, whole = finished(tiny_params("train.epochs=4", *given), "whole")
    assert second.history[:2] == first.history
    assert second.history != whole.history
    assert [row.lr for row in second.history[2:]] == pytest.approx([row.lr for row in whole.history[2:]])
    finished(tiny_params("train.epochs=5", *given), origin=run)
    assert load_card(run / "model.json").training.continued == [2, 4]


def test_a_run_that_cannot_go_on_is_refused_with_the_way_out(finished, tiny_params, tmp_path):
    run, _ = finished(
        tiny_params("train.epochs=2", "train.early_stopping=1", "train.lr=1e-9", "train.schedule=constant")
    )
    before = (run / "model.json").read_bytes()

    def refusal(*overrides, origin=run):
        with pytest.raises(UserError) as refused:
            finished(tiny_params("train.lr=1e-9", "train.schedule=constant", *overrides), "other", origin=origin)
        return str(refused.value)

    assert "train.epochs = 2: this run has had 2; choose more" in refusal("train.epochs=2")
    assert load_card(run / "model.json").training.epoch == 1
    assert "train.early_stopping has ended this run" in refusal("train.epochs=5", "train.early_stopping=1")
    assert "other data, code, packages or machine" in refusal("train.epochs=5", "train.reproducible=machine")
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    content = bytearray((damaged / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / LAST).write_bytes(content)
    way_out = f"missing or damaged; `python src/train.py model.weights={damaged}` begins a new run"
    assert way_out in refusal("train.epochs=5", origin=damaged)
    (damaged / LAST).unlink()
    assert way_out in refusal("train.epochs=5", origin=damaged)
    assert (run / "model.json").read_bytes() == before


@pytest.mark.slow
def test_several_processes_go_on_to_the_bits_of_one_training(reproduced):
    command, weights = ["python", "src/train.py"], reproduced.path / "runs/latest/model.safetensors"
    given = ["train.devices=2", "train.accelerator=cpu", "train.schedule=constant"]
    reproduced.run(*command, "train.epochs=1", *given)
    done = reproduced.run(*command, "--resume", "runs/latest", "train.epochs=2")
    assert "going on after 1 epochs, as one training" in done.stderr
    assert "broadcast_buffers" not in done.stderr
    resumed = weights.read_bytes()
    reproduced.run(*command, "train.epochs=2", *given)
    assert weights.read_bytes() == resumed
