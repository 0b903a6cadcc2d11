"""The averaged weights are what the formula says and are measured like the others."""

import json

import pytest
import torch

from reprise.data.formats.packed import load_metadata, load_split
from reprise.evaluation.evaluate import predict
from reprise.loader.batches import EvalBatches
from reprise.training.callbacks.ema import WeightAverage
from reprise.training.train import train
from tests.training.test_checkpoint import bits

EMA = ["train.ema=0.9", "train.schedule=none", "train.epochs=2"]


def test_the_average_follows_the_weights_of_every_optimizer_step(digits, tiny_params, monkeypatch):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    untouched = WeightAverage.after_batch

    def watch(self, trainer, pl_module, *rest):
        before = self.updates
        untouched(self, trainer, pl_module, *rest)
        if self.updates > before:
            parts = next(pl_module.net.parameters()), next(self.average.module.parameters())
            seen.append(tuple(part.detach().clone() for part in parts))

    monkeypatch.setattr(WeightAverage, "after_batch", watch)
    given = tiny_params(*EMA, "train.epochs=1", "train.accumulate=2")
    train(digits, given.model, given.train)
    assert len(seen) == 6  # of 11 batches, two to a step
    expected = seen[0][0]
    for step, (weight, average) in enumerate(seen, start=1):
        decay = min(0.9, 1 - (1 + step - 1) ** (-2 / 3)) if step > 1 else 0
        expected = decay * expected + (1 - decay) * weight
        assert torch.allclose(average, expected, atol=1e-6)


@pytest.mark.parametrize(("decay", "lr", "epochs", "wins"), [(0.9, 0.0003, 4, False), (0.8, 0.015, 8, True)])
def test_the_published_weights_are_the_better_ones_and_the_card_says_which(
    decay, lr, epochs, wins, digits, tiny_params, tmp_path
):
    given = tiny_params("train.schedule=none", f"train.epochs={epochs}", f"train.ema={decay}", f"train.lr={lr}")
    result = train(digits, given.model, given.train)
    rows = result.history
    averaged = max((row.val_accuracy_ema, -row.val_loss_ema) for row in rows)
    plain = max((row.val_accuracy, -row.val_loss) for row in rows)
    assert result.card.training.averaged == (averaged > plain) == wins
    logits, labels = predict(result.network, EvalBatches(load_split(digits, "val"), load_metadata(digits), 256), "cpu")
    accuracy, loss = max(averaged, plain)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(accuracy)
    assert torch.nn.functional.cross_entropy(logits, labels).item() == pytest.approx(-loss, rel=1e-4)
    files = bits(result, tmp_path / "saved")
    assert json.loads(files["train.json"]).keys() == {
        "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"
    }  # fmt: skip
    assert json.loads(files["train.json"])["val_loss"] == pytest.approx(-loss, rel=1e-5)
    assert files["history.csv"].splitlines()[0].endswith(b"val_accuracy,val_loss_ema,val_accuracy_ema")


def test_averaging_changes_nothing_in_the_training_itself(digits, tiny_params):
    with_it, without = (tiny_params(*EMA, override) for override in ("train.ema=0.9", "train.ema=null"))
    one, two = (train(digits, given.model, given.train).history for given in (with_it, without))
    assert [(row.train_loss, row.val_loss) for row in one] == [(row.train_loss, row.val_loss) for row in two]
    assert two[0].val_loss_ema is None
