"""Training keeps the best epoch, stops at a broken loss, and is a function of its arguments."""

import csv
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.evaluation.evaluate import evaluate, predict
from reprise.loader.batches import EvalBatches
from reprise.model.backbone import load_model
from reprise.params.load import load_params
from reprise.runtime.errors import UserError
from reprise.training.callbacks.best_epoch import BestEpoch
from reprise.training.callbacks.finite_loss import FiniteLoss
from reprise.training.module import LitClassifier
from reprise.training.setup import lit_classifier
from reprise.training.train import Options, StatelessDropout, train
from tests.conftest import PARAMS, TINY, data_params
from tests.training.test_checkpoint import bits


@pytest.fixture(scope="module")
def result(digits):
    params = load_params(PARAMS, [*TINY, "train.epochs=3", "model.kwargs.drop_rate=0.2"])
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


def test_a_loss_that_is_not_finite_stops_at_that_step(digits, tiny_params):
    params = tiny_params("train.optimizer=sgd", "train.lr=100", "train.schedule=none", "train.epochs=50")
    said = r"the loss became (nan|inf) in epoch \d+, step \d+; .* Lower train\.lr \(now 100\)"
    with pytest.raises(UserError, match=said):
        train(digits, params.model, params.train)


def test_losses_are_looked_at_together_and_the_first_broken_one_is_named():
    watch = FiniteLoss(0.1, every=4)

    def steps(*losses):
        for done, loss in losses:
            trainer = SimpleNamespace(global_step=done, current_epoch=2)
            watch.on_before_backward(trainer, None, torch.tensor(loss, requires_grad=True))
        return trainer

    steps((0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (4, 1.0))
    last = steps((5, float("inf")), (6, float("nan")))
    with pytest.raises(UserError, match=r"the loss became inf in epoch 3, step 6;"):
        watch.check(last)  # as before a checkpoint
    watch.check(last)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 3, step 9;"):
        steps((7, 1.0), (8, float("nan")), (9, 1.0), (10, 1.0))
    with pytest.raises(UserError, match=r"the loss became nan in epoch 3, step 22;"):  # of an unfinished accumulation
        steps((20, 1.0), (20, 1.0), (20, 1.0), (21, float("nan")))


def test_dropout_is_a_function_of_seed_and_step():
    def mask(seed, step):
        trainer = SimpleNamespace(global_step=step // 2, world_size=1, global_rank=0)
        module = SimpleNamespace(accumulate=2)
        StatelessDropout(seed).before_batch(trainer, module, None, step % 2)
        return torch.rand(1000).tolist()

    assert mask(0, 3) == mask(0, 3)
    assert mask(0, 3) != mask(0, 4)
    assert mask(0, 2) != mask(0, 3)  # of one optimizer step
    assert mask(0, 3) != mask(1, 3)


def history_of(*epochs, average=None, **options):
    """Feed (accuracy, loss) per epoch, and the averaged weights' after them, to a BestEpoch until it stops.

    Each epoch's weights are its number, the averaged ones its tenfold.
    """
    params = SimpleNamespace(**{"select": "val_accuracy", "early_stopping": None, "freeze_epochs": 0} | options)
    best = BestEpoch(SimpleNamespace(epoch_ended=lambda *arguments: None), params, average)
    net = nn.Linear(1, 1, bias=False)
    for number, values in enumerate(epochs):
        nn.init.constant_(net.weight, number + 1)
        if average:
            average.weights = {"weight": net.weight.detach() * 10}
        names = ["val/acc", "val/loss", "val/acc_ema", "val/loss_ema"]
        metrics = {"train/loss": 1.0, "train/acc": 0.5, **dict(zip(names, values, strict=False))}
        trainer = SimpleNamespace(
            callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
            current_epoch=number,
            max_epochs=len(epochs),
            optimizers=[torch.optim.SGD(net.parameters(), lr=0.1)],
        )
        best.on_train_epoch_end(trainer, SimpleNamespace(net=net))
        if trainer.should_stop:
            break
    return best


def test_the_weights_of_a_best_epoch_in_the_middle_are_kept():
    epochs = [(0.5, 1.0), (0.9, 0.5), (0.9, 0.4), (0.9, 0.6), (0.8, 0.1)]
    best = history_of(*epochs)
    assert best.epoch == 3
    assert best.weights["weight"].item() == 3  # a copy: two more epochs have changed the network
    assert history_of(*epochs, select="val_loss").epoch == 5
    assert history_of((0.5, 0.2), (0.9, 0.2), (0.8, 0.2), select="val_loss").epoch == 2


def test_training_stops_when_no_epoch_has_been_better_for_as_long_as_patience_lasts():
    epochs = [(0.5, 1.0), (0.9, 0.5), (0.8, 0.4), (0.9, 0.5), (0.95, 0.1)]
    assert len(history_of(*epochs).history) == 5
    assert len(history_of(*epochs, early_stopping=3).history) == 5
    stopped = history_of(*epochs, early_stopping=2)
    assert (len(stopped.history), stopped.epoch) == (4, 2)
    assert len(history_of(*epochs, early_stopping=1, select="val_loss").history) == 4
    worse = [(0.5, 1.0), (0.4, 1.0), (0.3, 1.0), (0.2, 1.0)]
    assert [len(history_of(*worse, early_stopping=1, freeze_epochs=frozen).history) for frozen in (0, 2)] == [2, 3]


def test_the_history_so_far_is_written_after_each_epoch(digits, tiny_params, tmp_path):
    course, seen, rates = tmp_path / "course", [], []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            rates.append(float(trainer.callback_metrics["lr"]))  # of this epoch

        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(course.read_text() if course.exists() else "")

    params = tiny_params("train.epochs=3")
    result = train(digits, params.model, params.train, options=Options(callbacks=[Watch()], course=course))
    paths = [tmp_path / name for name in ("weights", "card", "metrics", "history")]
    result.save(*paths)
    lines = paths[-1].read_text().splitlines(keepends=True)
    assert seen == ["", "".join(lines[:2]), "".join(lines[:3])]
    assert course.read_text() == "".join(lines)
    assert rates == pytest.approx([float(row["lr"]) for row in csv.DictReader(lines)], rel=1e-4)


@pytest.mark.parametrize(
    ("epochs", "epoch", "averaged", "weight"),
    [
        ([(0.5, 1, 0.6, 1), (0.6, 1, 0.6, 2)], 1, True, 10),
        ([(0.5, 1, 0.6, 1), (0.7, 1, 0.65, 1)], 2, False, 2),
        ([(0.5, 1, 0.4, 1), (0.5, 1, 0.5, 0.5), (0.5, 1, 0.5, 0.5)], 2, True, 20),
        ([(0.5, 1, 0.5, 1)], 1, False, 1),
    ],
)
def test_the_better_of_averaged_and_plain_weights_is_kept(epochs, epoch, averaged, weight):
    best = history_of(*epochs, average=SimpleNamespace())
    assert (best.epoch, best.averaged, best.weights["weight"].item()) == (epoch, averaged, weight)


def test_a_validation_loss_that_is_not_finite_stops():
    with pytest.raises(UserError, match="validation loss became nan in epoch 2"):
        history_of((0.5, 1.0), (0.5, float("nan")))


def test_the_params_reach_the_lightning_module(tiny_params):
    params = tiny_params("train.label_smoothing=0.25", "train.weight_decay=0.125", "train.lr=0.5").train
    module = lit_classifier(nn.Linear(2, 2), 2, params, steps=10)
    assert module.criterion.label_smoothing == 0.25
    configured = module.configure_optimizers()
    assert {group["weight_decay"] for group in configured["optimizer"].param_groups} == {0, 0.125}
    assert configured["lr_scheduler"]["scheduler"].total_steps == 20
    assert configured["lr_scheduler"]["interval"] == "step"


def few_ones(folder, split):
    """Leave ones and sevens, and of the training split's ones only two."""
    whole = load_split(folder, split)
    keep = [row for row, label in enumerate(whole.labels) if label in (1, 7)]
    if split == "train":
        ones = [row for row in keep if whole.labels[row] == 1]
        keep = [row for row in keep if row not in ones[2:]]
    ids = [whole.ids[row] for row in keep]
    return replace(whole, images=whole.images[keep], labels=whole.labels[keep], ids=ids)


def test_a_rare_class_weighs_more_in_the_training_loss_alone(digits, tiny_params, monkeypatch):
    monkeypatch.setattr("reprise.training.setup.load_split", few_ones)
    modules = []
    untouched = LitClassifier.on_train_start
    monkeypatch.setattr(LitClassifier, "on_train_start", lambda self: (modules.append(self), untouched(self)))
    given = tiny_params("train.balance=weights", "train.epochs=1", "train.batch_size=10")
    train(digits, given.model, given.train)
    sevens = len(few_ones(digits, "train")) - 2
    weight = modules[0].criterion.weight
    assert weight[[1, 7]].tolist() == pytest.approx([(sevens + 2) / 20, (sevens + 2) / 10 / sevens])
    assert modules[0].plain_criterion.weight is None


def test_what_is_saved_is_what_was_reached(result, tmp_path):
    _, trained = result
    files = bits(trained, tmp_path)
    rows = list(csv.DictReader(io.StringIO(files["history.csv"].decode())))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    reached = json.loads(files["train.json"])
    assert reached == {name: value for name, value in trained.best.rounded().items() if name != "lr"}
    assert float(rows[2]["val_loss"]) == pytest.approx(trained.history[2].val_loss, rel=1e-5)
    card = json.loads(files["model.json"])
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
    from tests.data.prepare.test_prepare import prepared, raw_images

    prepared(tmp_path, raw_images())
    _, trained = result
    with pytest.raises(UserError, match="the model was trained on digits"):
        evaluate(trained.network, trained.card, tmp_path / "out", 256, 15)


def test_a_test_split_that_the_model_may_have_seen_is_refused(result, tmp_path):
    from reprise.data.download.sources import download
    from reprise.data.prepare.prepare import preprocess

    params = data_params(test_fraction=0.8, seed=1)
    download(params, tmp_path / "raw", tmp_path / "downloads")
    preprocess(tmp_path / "raw", tmp_path / "processed", params)
    _, trained = result
    with pytest.raises(UserError, match="is split otherwise"):
        evaluate(trained.network, trained.card, tmp_path / "processed", 256, 15)


def test_a_model_is_measured_with_its_own_mean_and_deviation(result, digits, monkeypatch):
    _, trained = result
    measured = evaluate(trained.network, trained.card, digits, 256, 15)
    facts = load_metadata(digits).model_copy(update={"mean": [0.9], "std": [9.0]})
    monkeypatch.setattr("reprise.evaluation.evaluate.load_metadata", lambda folder: facts)
    assert evaluate(trained.network, trained.card, digits, 256, 15).metrics == measured.metrics
    extra = evaluate(trained.network, trained.card, digits, 256, 15, ["cohen_kappa"])
    assert list(extra.metrics.items())[:-1] == list(measured.metrics.items())
    assert list(extra.metrics)[-1] == "cohen_kappa"
    with pytest.raises(UserError, match=r"evaluate\.metrics: accuracy is the name of another metric"):
        evaluate(trained.network, trained.card, digits, 256, 15, ["accuracy"])


SLOW = ["efficientnet_b1", "resnet18", "vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    "name",  # of the readme, and one that gives a parameter to a module
    ["mobilenetv3_small_100", "pit_ti_224", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)],
)
def test_models_of_any_family_train_evaluate_and_are_counted(name, digits, tiny_params, tmp_path):
    params = tiny_params(f"model.name={name}", "train.epochs=1", "train.batch_size=90")
    trained = train(digits, params.model, params.train)
    assert trained.card.architecture.model_name == name
    bits(trained, tmp_path)
    loaded = load_model(tmp_path / "model.safetensors", tmp_path / "model.json")
    results = [evaluate(*made, digits, 359, 15) for made in ((trained.network, trained.card), loaded)]
    assert torch.equal(results[0].probabilities, results[1].probabilities)
    assert results[0].metrics == results[1].metrics
    assert isinstance(results[0].metrics["flops"], int)
    assert results[0].metrics["images"] == load_metadata(digits).counts["test"] > 1400


def test_images_grow_in_training_and_are_seen_whole_in_evaluation(digits, tiny_params, monkeypatch):
    seen = []
    untouched = LitClassifier.forward_loss

    def watch(self, batch):
        size = batch[0].shape[-1]
        if (self.training, size) not in seen[-1:]:
            seen.append((self.training, size))
        return untouched(self, batch)

    monkeypatch.setattr(LitClassifier, "forward_loss", watch)
    given = tiny_params("train.epochs=3", "train.start_size=16", "model.image_size=24")
    trained = train(digits, given.model, given.train)
    assert seen == [(True, 16), (False, 24), (True, 20), (False, 24), (True, 24), (False, 24)]
    assert (trained.card.architecture.image_size, trained.card.preprocessing.image_size) == (24, 32)
    smaller = evaluate(trained.network, trained.card, digits, 256, 15).metrics
    assert smaller["flops"] == 2 * 2_450_112  # at 32 pixels 2 * 4,025,280
    batches = EvalBatches(load_split(digits, "test"), trained_on(digits, trained), 256, image_size=24)
    logits, labels = predict(trained.network, batches, "cpu")
    assert smaller["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), rel=1e-5)


def trained_on(digits, result):
    """Return the data's metadata with the mean and deviation that the model was trained with."""
    seen = result.card.preprocessing
    return load_metadata(digits).model_copy(update={"mean": seen.mean, "std": seen.std})
