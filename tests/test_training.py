"""Training keeps the best epoch, stops at a broken loss, and is a function of its arguments."""

import csv
import io
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reprise.data.packed import load_metadata
from reprise.errors import UserError
from reprise.evaluation import evaluate
from reprise.training import BestEpoch, EpochRow, FiniteLoss, StatelessDropout, _goodness, lit_classifier, train


@pytest.fixture(scope="module")
def result(digits):
    from reprise.params import load_params
    from tests.conftest import ROOT, TINY

    params = load_params(ROOT / "params.yaml", [*TINY, "train.epochs=3", "model.kwargs.drop_rate=0.2"])
    return params, train(digits, params.model, params.train)


def test_it_learns_and_reports_the_best_epoch(result):
    _, trained = result
    assert [row.epoch for row in trained.history] == [1, 2, 3]
    assert trained.best == max(trained.history, key=lambda row: (row.val_accuracy, -row.val_loss))
    assert trained.history[-1].train_loss < trained.history[0].train_loss
    assert trained.history[-1].lr < trained.history[0].lr  # one cycle ends near zero


def test_the_published_weights_are_those_of_the_best_epoch(result, digits):
    _, trained = result
    network = trained.network.eval()
    from reprise.batches import EvalBatches
    from reprise.data.packed import load_split
    from reprise.evaluation import predict

    logits, labels = predict(network, EvalBatches(load_split(digits, "val"), load_metadata(digits), 256), "cpu")
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert loss == pytest.approx(trained.best.val_loss, rel=1e-4)
    assert (logits.argmax(1) == labels).float().mean().item() == pytest.approx(trained.best.val_accuracy)


def test_the_same_arguments_give_the_same_bits_whatever_was_drawn_before(result, digits):
    params, first = result
    torch.manual_seed(12345)
    torch.rand(1000)
    second = train(digits, params.model, params.train)
    assert second.history == first.history
    for one, two in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_another_seed_gives_another_result(result, digits, tiny_params):
    _, first = result
    params = tiny_params("train.epochs=1", "train.seed=1")
    assert train(digits, params.model, params.train).history[0].train_loss != first.history[0].train_loss


def test_every_kind_of_augmentation_trains_on_soft_targets(digits, tiny_params):
    strong = {"policy": "randaugment", "crop": 2, "cutout": 0.2, "brightness": 0.2, "mixup": 0.2, "cutmix": 1}
    params = tiny_params("train.epochs=2", *(f"train.augment.{name}={value}" for name, value in strong.items()))
    first, second = (train(digits, params.model, params.train) for _ in range(2))
    assert first.history == second.history
    assert 0 <= first.history[1].train_accuracy <= 1
    assert first.history[1].train_loss < first.history[0].train_loss


def test_higher_accuracy_wins_then_lower_loss():
    def row(accuracy, loss):
        return EpochRow(1, 0.1, 0.0, 0.0, val_loss=loss, val_accuracy=accuracy)

    assert _goodness(row(0.9, 2.0)) > _goodness(row(0.8, 0.1))
    assert _goodness(row(0.9, 0.1)) > _goodness(row(0.9, 0.2))


def test_a_loss_that_is_not_finite_stops_at_that_step(digits, tiny_params):
    params = tiny_params("train.optimizer=sgd", "train.lr=100", "train.schedule=none", "train.epochs=50")
    with pytest.raises(
        UserError, match=r"the loss became (nan|inf) in epoch \d+, step \d+; .* Lower train\.lr \(now 100\)"
    ):
        train(digits, params.model, params.train)


def test_losses_are_looked_at_together_and_the_first_broken_one_is_named():
    watch = FiniteLoss(0.1, every=4)
    steps = iter(range(1, 100))

    def step(loss):
        trainer = SimpleNamespace(global_step=next(steps), current_epoch=2)
        watch.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, 0)
        return trainer

    for loss in (1.0, 2.0, 3.0, 4.0, 1.0):
        step(loss)
    step(float("inf"))
    last = step(float("nan"))
    with pytest.raises(UserError, match=r"the loss became inf in epoch 3, step 6;"):
        watch.check(last)  # as before a checkpoint
    watch.check(last)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 3, step 9;"):
        [step(loss) for loss in (1.0, float("nan"), 1.0, 1.0)]


def test_dropout_is_a_function_of_seed_and_step():
    def mask(seed, step):
        StatelessDropout(seed).on_train_batch_start(SimpleNamespace(global_step=step), None, None, 0)
        return torch.rand(1000).tolist()

    assert mask(0, 3) == mask(0, 3)
    assert mask(0, 3) != mask(0, 4)
    assert mask(0, 3) != mask(1, 3)


def history_of(*epochs):
    """Feed (accuracy, loss) per epoch to a BestEpoch; each epoch's weights are its number."""
    best = BestEpoch(SimpleNamespace(epoch_ended=lambda *arguments: None))
    net = nn.Linear(1, 1, bias=False)
    for number, (accuracy, loss) in enumerate(epochs):
        nn.init.constant_(net.weight, number + 1)
        names = {"train/loss": 1.0, "train/acc": 0.5, "val/loss": loss, "val/acc": accuracy}
        trainer = SimpleNamespace(
            callback_metrics={name: torch.tensor(value) for name, value in names.items()},
            current_epoch=number,
            max_epochs=len(epochs),
            optimizers=[torch.optim.SGD(net.parameters(), lr=0.1)],
        )
        best.on_train_epoch_end(trainer, SimpleNamespace(net=net))
    return best


def test_the_weights_of_a_best_epoch_in_the_middle_are_kept():
    best = history_of((0.5, 1.0), (0.9, 0.5), (0.9, 0.4), (0.9, 0.6), (0.8, 0.1))
    assert best.epoch == 3
    assert best.weights["weight"].item() == 3  # a copy: two more epochs have changed the network


def test_a_validation_loss_that_is_not_finite_stops():
    with pytest.raises(UserError, match="validation loss became nan in epoch 2"):
        history_of((0.5, 1.0), (0.5, float("nan")))


def test_the_params_reach_the_lightning_module(tiny_params):
    params = tiny_params("train.label_smoothing=0.25", "train.weight_decay=0.125", "train.lr=0.5").train
    module = lit_classifier(nn.Linear(2, 2), 2, params, steps=10)
    assert module.criterion.label_smoothing == 0.25
    configured = module.configure_optimizers()
    assert configured["optimizer"].defaults["weight_decay"] == 0.125
    assert configured["lr_scheduler"]["scheduler"].total_steps == 10
    assert configured["lr_scheduler"]["interval"] == "step"


def test_one_image_a_batch_is_refused_for_a_network_that_normalises_over_it(digits, tiny_params):
    params = tiny_params("train.batch_size=1")
    with pytest.raises(UserError, match=r"train\.batch_size = 1: test_resnet normalises over the batch"):
        train(digits, params.model, params.train)


def test_a_batch_larger_than_the_training_split_is_refused(digits, tiny_params):
    params = tiny_params("train.batch_size=5000")
    with pytest.raises(UserError, match=r"train\.batch_size = 5000 .* choose at most 180"):
        train(digits, params.model, params.train)


@pytest.mark.parametrize("schedule", ["onecycle", "plateau", "none"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_optimizer_and_schedule_lowers_the_loss(digits, tiny_params, optimizer, schedule):
    params = tiny_params(f"train.optimizer={optimizer}", f"train.schedule={schedule}", "train.lr=0.01")
    history = train(digits, params.model, params.train).history
    assert history[1].train_loss < history[0].train_loss


def test_what_is_saved_is_what_was_reached(result, tmp_path):
    _, trained = result
    files = [tmp_path / name for name in ("m.safetensors", "m.json", "train.json", "history.csv")]
    trained.save(*files)
    rows = list(csv.DictReader(io.StringIO(files[3].read_text())))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    reached = json.loads(files[2].read_text())
    assert reached == {name: value for name, value in trained.best.rounded().items() if name != "lr"}
    assert float(rows[2]["val_loss"]) == pytest.approx(trained.history[2].val_loss, rel=1e-5)
    card = json.loads(files[1].read_text())
    assert card["classes"] == [str(digit) for digit in range(10)]
    assert card["training"]["epoch"] == trained.best.epoch


def test_without_a_terminal_each_epoch_is_one_plain_line(digits, tiny_params, capsys):
    params = tiny_params()
    train(digits, params.model, params.train)
    summary, lines = (lambda all_lines: (all_lines[:4], all_lines[4:]))(capsys.readouterr().err.splitlines())
    assert [line.split()[0] for line in summary] == ["model", "memory", "data", "schedule"]
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("loss" in line and "val acc" in line and "images/s" in line for line in lines)


def test_evaluation_of_the_result_refuses_other_data(result, tmp_path):
    from tests.data.test_preprocess import prepared, raw_images

    prepared(tmp_path, raw_images())
    _, trained = result
    with pytest.raises(UserError, match="the model was trained on digits"):
        evaluate(trained.network, trained.card, tmp_path / "out", 256, 15)


def test_a_test_split_that_the_model_may_have_seen_is_refused(result, tmp_path):
    from reprise.data.preprocess import preprocess
    from reprise.data.sources import download

    download("digits", tmp_path / "raw", tmp_path / "own", tmp_path / "downloads")
    preprocess(tmp_path / "raw", tmp_path / "processed", 32, 0.1, 0.8, seed=1)
    _, trained = result
    with pytest.raises(UserError, match="is split otherwise"):
        evaluate(trained.network, trained.card, tmp_path / "processed", 256, 15)


def test_a_model_is_measured_with_its_own_mean_and_deviation(result, digits, monkeypatch):
    _, trained = result
    measured = evaluate(trained.network, trained.card, digits, 256, 15)
    facts = load_metadata(digits).model_copy(update={"mean": [0.9], "std": [9.0]})
    monkeypatch.setattr("reprise.evaluation.load_metadata", lambda folder: facts)
    assert evaluate(trained.network, trained.card, digits, 256, 15).metrics == measured.metrics


@pytest.mark.parametrize("name", ["efficientnet_b1", "resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
def test_the_models_that_the_readme_names_train_and_evaluate(name, digits, tiny_params):
    params = tiny_params(f"model.name={name}", "train.epochs=1", "train.batch_size=90")
    trained = train(digits, params.model, params.train)
    assert trained.card.architecture.model_name == name
    measured = evaluate(trained.network, trained.card, digits, 359, 15).metrics
    assert measured["images"] == load_metadata(digits).counts["test"] > 1400
