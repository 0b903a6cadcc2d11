"""The Lightning modules work on their own and count each sample once."""

import copy
import pickle
from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from reprise.loader.batches import IGNORE_INDEX
from reprise.model.backbone import TIMMBackbone
from reprise.runtime.errors import UserError
from reprise.training.epoch_metrics import EpochMetrics
from reprise.training.module import LitClassifier, MNISTLitModule, mask_outputs
from reprise.training.setup import lit_classifier
from reprise.training.steps import ChunkedClassifier


def plain_trainer(**options):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", **(quiet | options))


def loader(images, labels, batch_size=4):
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


class Fixed(nn.Module):
    """A network whose logits are its input: what it predicts is known."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.bias


def test_an_epochs_loss_and_accuracy_are_averages_over_samples_not_batches():
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    trainer = plain_trainer()
    trainer.test(LitClassifier(Fixed(), 3), loader(logits, labels), verbose=False)
    assert trainer.callback_metrics["test/loss"].item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)
    right = (logits.argmax(1) == labels).float().mean().item()
    assert trainer.callback_metrics["test/acc"].item() == pytest.approx(right)


def test_padding_counts_nowhere_not_even_a_batch_of_nothing_else():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    padded = torch.cat([logits, torch.full((7, 3), 9.0)])
    padded_labels = torch.cat([labels, torch.full((7,), IGNORE_INDEX)])
    results = []
    for images, targets in ((logits, labels), (padded, padded_labels)):
        trainer = plain_trainer()
        trainer.validate(LitClassifier(Fixed(), 3), loader(images, targets), verbose=False)
        results.append([trainer.callback_metrics[name].item() for name in ("val/loss", "val/acc", "val/acc_best")])
    assert results[1] == pytest.approx(results[0], rel=1e-6)


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step"])
def test_steps_return_the_batch_loss_predictions_and_labels(step):
    module = LitClassifier(Fixed(), 3)
    images = torch.eye(3)
    output = getattr(module, step)((images, torch.tensor([0, 1, IGNORE_INDEX])), 0)
    assert set(output) == {"loss", "preds", "targets"}
    assert output["loss"].item() == pytest.approx(cross_entropy(images[:2], torch.tensor([0, 1])).item())
    assert output["preds"].tolist() == [0, 1]
    assert output["targets"].tolist() == [0, 1]


def test_labels_are_smoothed_in_training_only():
    module = LitClassifier(Fixed(), 3, label_smoothing=0.3)
    batch = torch.eye(3), torch.tensor([0, 1, 2])
    assert module.train().step(batch)[0].item() == pytest.approx(cross_entropy(*batch, label_smoothing=0.3).item())
    assert module.eval().step(batch)[0].item() == pytest.approx(cross_entropy(*batch).item())


def test_soft_targets_enter_the_loss_and_count_as_their_largest_share():
    module = LitClassifier(Fixed(), 3, label_smoothing=0.3).train()
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0]])
    output = module.training_step((logits, targets), 0)
    smooth = 0.7 * targets + 0.3 / 3
    assert output["loss"].item() == pytest.approx(-(smooth * logits.log_softmax(1)).sum(1).mean().item())
    assert output["targets"].tolist() == [0, 0]
    assert output["preds"].tolist() == [0, 1]
    soft, hard = module.step((logits, torch.eye(3)[[0, 1]])), module.step((logits, torch.tensor([0, 1])))
    assert soft[0].item() == pytest.approx(hard[0].item())


def test_training_starts_without_what_the_sanity_check_left_behind():
    class Watched(LitClassifier):
        def on_train_start(self):
            assert self.val_acc_best.compute() == 1.0  # the sanity check saw two right samples
            super().on_train_start()
            assert self.val_acc_best.update_count == self.val_acc.update_count == self.val_loss.update_count == 0

    logits = torch.eye(3)[[0, 1, 2, 0]]
    labels = torch.tensor([0, 1, 0, 1])  # right, right, wrong, wrong
    trainer = plain_trainer(max_epochs=1, num_sanity_val_steps=1)
    trainer.fit(Watched(Fixed(), 3), loader(logits, labels, 2), loader(logits, labels, 2))
    assert trainer.callback_metrics["val/acc_best"] == 0.5


def test_val_acc_best_remembers_the_best_epoch():
    module, trainer = LitClassifier(Fixed(), 3), plain_trainer()
    labels = torch.tensor([0, 1, 2])
    for right in (1, 3, 2):
        guesses = torch.where(torch.arange(3) < right, labels, (labels + 1) % 3)
        trainer.validate(module, loader(torch.eye(3)[guesses], labels), verbose=False)
    assert trainer.callback_metrics["val/acc"] == pytest.approx(2 / 3)
    assert trainer.callback_metrics["val/acc_best"] == 1.0


def test_what_has_been_best_survives_a_fit_that_goes_on_from_a_checkpoint(tmp_path):
    logits, labels = torch.eye(3), torch.tensor([0, 1, 2])
    right, wrong = loader(logits, labels), loader(logits, (labels + 1) % 3)
    first = plain_trainer(max_epochs=1)
    first.fit(LitClassifier(Fixed(), 3), right, right)
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = plain_trainer(max_epochs=2)
    second.fit(LitClassifier(Fixed(), 3), right, wrong, ckpt_path=tmp_path / "last.ckpt")
    assert second.callback_metrics["val/acc"] == 0
    assert second.callback_metrics["val/acc_best"] == 1


class InTheTemplatesStyle(MNISTLitModule):
    """Overrides methods as a copy of lightning-hydra-template's module has them."""

    def model_step(self, batch):
        x, y = batch
        logits = self.forward(x)
        return 2 * self.criterion(logits, y), torch.argmax(logits, dim=1), y

    def training_step(self, batch, batch_idx):
        loss, preds, targets = self.model_step(batch)
        self.train_loss(loss)
        self.train_acc(preds, targets)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_validation_epoch_end(self):
        self.val_acc_best(self.val_acc.compute())
        self.log("val/loss", self.val_loss)
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)


def test_the_templates_arguments_metrics_and_overridden_methods_work_as_there():
    logits = torch.eye(3)[[0, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 1])  # the last is wrong
    module = InTheTemplatesStyle(Fixed(), partial(torch.optim.SGD, lr=0.0), None, False, num_classes=3)
    trainer = plain_trainer(max_epochs=2)
    trainer.fit(module, loader(logits, labels), loader(logits, labels))
    doubled = 2 * cross_entropy(logits, labels).item()
    seen = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert seen == pytest.approx({"train/loss": doubled, "train/acc": 0.75, "val/loss": doubled, "val/acc_best": 0.75})
    (tested,) = trainer.test(module, loader(logits, labels), verbose=False)
    assert tested == pytest.approx({"test/loss": doubled, "test/acc": 0.75})


def test_compile_compiles_the_network_for_a_fit_alone_and_under_its_own_names(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    module = MNISTLitModule(Fixed(), compile=True, num_classes=3)
    data = loader(torch.eye(3), torch.tensor([0, 1, 2]))
    plain_trainer().validate(module, data, verbose=False)
    assert compiled == []
    plain_trainer(max_epochs=1).fit(module, data, data)
    assert compiled == [module.net]
    plain_trainer(max_epochs=1).fit(MNISTLitModule(Fixed(), num_classes=3), data, data)
    assert len(compiled) == 1


@pytest.mark.parametrize("kind", [LitClassifier, MNISTLitModule])
def test_a_checkpoint_of_a_timm_network_loads_by_its_path_alone(kind, tmp_path):
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    net = TIMMBackbone("test_vit", False, num_classes=3, in_chans=1, img_size=32, checkpoint_path="")
    module = kind(net, num_classes=3, label_smoothing=0.1)
    trainer = plain_trainer(max_epochs=1)
    data = loader(images, torch.tensor([0, 1, 2, 0]))
    trainer.fit(module, data, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = kind.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)  # nothing in it is pickled code
    assert loaded.hparams == module.hparams
    assert loaded.hparams["net"] == {"model_name": "test_vit", "num_classes": 3, "in_chans": 1, "img_size": 32}
    assert torch.equal(loaded.eval()(images), module.eval()(images))
    assert isinstance(loaded.configure_optimizers()["optimizer"], torch.optim.AdamW)


def test_a_checkpoint_does_not_train_on_with_another_optimizer_than_its_own(tmp_path):
    given = {"optimizer": partial(torch.optim.SGD, lr=0.25), "scheduler": None}
    net = TIMMBackbone("test_resnet", False, num_classes=3)
    trainer = plain_trainer(max_epochs=1)
    trainer.fit(MNISTLitModule(net, **given), loader(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = MNISTLitModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert loaded.hparams["scheduler"] is None
    with pytest.raises(UserError, match=r"load_from_checkpoint\(path, optimizer=.*SGD'>, lr=0\.25\), scheduler=None"):
        loaded.configure_optimizers()
    again = MNISTLitModule.load_from_checkpoint(tmp_path / "last.ckpt", **given).configure_optimizers()
    assert [group["lr"] for group in again["optimizer"].param_groups] == [0.25]


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        (torch.eye(3), [0, 1, 2]),
        ((torch.eye(3), torch.tensor([2, 2, 2])), [0, 1, 2]),
        ([torch.eye(3), torch.tensor([2, IGNORE_INDEX, 2])], [0, 2]),
        ((torch.eye(3), torch.rand(3, 3)), [0, 1, 2]),
    ],
)
def test_predictions_are_logits_of_images_with_and_without_labels(batch, rows):
    (predicted,) = plain_trainer().predict(LitClassifier(Fixed(), 3), DataLoader([batch], batch_size=None))
    assert torch.equal(predicted, torch.eye(3)[rows])


def test_what_is_counted_does_not_depend_on_which_batches_are_counted_together():
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand((), generator=generator) * 10.0**-number, torch.randn(size, 5, generator=generator), labels)
        for number, size in enumerate((3, 8, 8, 1, 8))
        for labels in [torch.randint(0, 5, (size,), generator=generator)]
    ]
    batches[1][2][2:] = IGNORE_INDEX
    results = []
    for ends in ({0, 1, 2, 3, 4}, {2}, set()):
        metrics = EpochMetrics(5)
        for number, batch in enumerate(batches):
            metrics.add(*batch)
            if number in ends:
                metrics.state_dict()  # a checkpoint in between
        metrics.count()
        counts = metrics.counts.clone()
        results.append([value.item() for value in metrics.compute()])
    assert results[0] == results[1] == results[2]
    logits, labels = torch.cat([batch[1] for batch in batches]), torch.cat([batch[2] for batch in batches])
    kept = labels != IGNORE_INDEX
    predicted, labels = logits.argmax(1)[kept], labels[kept]
    weighted = sum(loss.item() * int((batch != IGNORE_INDEX).sum()) for loss, _, batch in batches)
    assert results[0] == pytest.approx([weighted / len(labels), (predicted == labels).float().mean().item()], rel=1e-6)
    expected = [labels[predicted == labels], labels, predicted]
    assert counts.tolist() == [row.bincount(minlength=5).tolist() for row in expected]


def test_many_logits_are_not_kept(monkeypatch):
    monkeypatch.setattr("reprise.training.epoch_metrics.PENDING_LOGITS", 100)
    metrics = EpochMetrics(10)
    for number in range(10):
        metrics.add(torch.tensor(1.0), torch.zeros(4, 10), torch.zeros(4, dtype=torch.long))
        assert len(metrics.pending) == (number + 1) % 3


def test_bf16_is_mixed_into_training_alone():
    seen = []

    class Watching(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            seen.append(logits.dtype)
            return logits

    module = ChunkedClassifier(Watching(3, 3), 3, precision="bf16", steps=1)
    batch = torch.eye(3), torch.tensor([0, 1, 2])
    module.learn(batch).backward()
    module.eval().step(batch)
    assert seen == [torch.bfloat16, torch.float32]
    assert module.net.weight.grad.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_class_weights_enter_the_loss_of_mixed_labels_as_that_of_others():
    module = LitClassifier(nn.Identity(), 3, label_smoothing=0.1).train()
    module.criterion.weight = torch.tensor([0.5, 1.0, 4.0])
    logits, labels = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, IGNORE_INDEX])
    soft = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert module.step((logits, soft))[0].item() == pytest.approx(module.step((logits, labels))[0].item())
    logs = logits[0].log_softmax(0)
    mixed = torch.tensor([[0.25, 0.0, 0.75]])
    smooth = 0.9 * mixed[0] + 0.1 / 3
    expected = -(smooth * module.criterion.weight * logs).sum() / (0.25 * 0.5 + 0.75 * 4)
    assert module.step((logits[:1], mixed))[0].item() == pytest.approx(expected.item())


def test_the_schedule_monitors_the_validation_loss_by_default():
    schedule = LitClassifier(Fixed(), 3).configure_optimizers()["lr_scheduler"]
    assert isinstance(schedule["scheduler"], ReduceLROnPlateau)
    assert (schedule["monitor"], schedule["interval"]) == ("val/loss", "epoch")
    told = LitClassifier(Fixed(), 3, monitor="train/loss", interval="step").configure_optimizers()["lr_scheduler"]
    assert (told["monitor"], told["interval"]) == ("train/loss", "step")
    assert LitClassifier(Fixed(), 3, scheduler=None).configure_optimizers().keys() == {"optimizer"}


def test_hyperparameters_are_saved_without_the_network():
    given = {"num_classes": 3, "label_smoothing": 0.1}
    others = {"monitor": "val/loss", "interval": "epoch", "precision": "fp32", "compile": False}
    assert dict(LitClassifier(Fixed(), **given).hparams) == given | others


def test_mask_outputs_is_a_method_too():
    assert LitClassifier.mask_outputs is mask_outputs


def test_mnist_module_learns_in_a_plain_trainer_with_an_ordinary_dataloader():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 10
    images = torch.zeros(64, 1, 32, 32)
    images[torch.arange(64), 0, labels * 3, :] = 1  # a bar whose height is the label
    images += 0.1 * torch.rand(images.shape, generator=generator)
    torch.manual_seed(0)
    net = TIMMBackbone("test_resnet", pretrained=False, num_classes=10, in_chans=1)
    module = MNISTLitModule(net=net, optimizer=partial(torch.optim.AdamW, lr=3e-3))
    trainer = plain_trainer(max_epochs=6)
    trainer.fit(module, loader(images, labels, 16), loader(images, labels, 16))
    assert trainer.callback_metrics["train/acc"] > 0.9
    assert set(trainer.callback_metrics) == {"train/loss", "train/acc", "val/loss", "val/acc", "val/acc_best"}
    assert module(images[:2]).shape == (2, 10)


def test_a_loss_that_is_not_a_number_shows_in_the_epochs_mean():
    logits = torch.eye(3)
    logits[2] = float("nan")
    trainer = plain_trainer()
    trainer.validate(LitClassifier(Fixed(), 3), loader(logits, torch.tensor([0, 1, 2]), 1), verbose=False)
    assert trainer.callback_metrics["val/loss"].isnan()


@pytest.mark.parametrize("copied", [lambda module: pickle.loads(pickle.dumps(module)), copy.deepcopy])
def test_a_module_is_pickled_with_what_it_has_not_counted_yet(copied):
    module = ChunkedClassifier(Fixed(), 3, steps=1)
    module.learn((torch.eye(3), torch.tensor([0, 1, 0])))
    with torch.inference_mode():
        module.validation_step((torch.eye(3), torch.tensor([0, 1, IGNORE_INDEX])), 0)
        module.val_metrics.count()
        module.validation_step((2 * torch.eye(3), torch.tensor([1, 1, 2])), 1)
    other = copied(module)
    assert [len(metrics.pending) for metrics in (other.train_metrics, other.val_metrics)] == [1, 1]
    del module.val_metrics.pending[:]  # what the one does, the other does not see
    assert len(other.val_metrics.pending) == 1
    counts = other.state_dict()["val_metrics.counts"]
    assert counts.tolist() == [[1, 2, 1], [1, 3, 1], [2, 2, 1]]  # right, labelled, predicted
    assert other.train_metrics.compute()[1] == 2 / 3
    assert other.val_metrics.compute()[1] == 4 / 5


def test_the_keys_and_bits_of_a_checkpoint():
    module = ChunkedClassifier(Fixed(), 3, steps=1)
    module.validation_step((torch.eye(3), torch.tensor([0, 0, 2])), 0)
    copy_of_it = pickle.loads(pickle.dumps(module))
    saved, same = module.state_dict(prefix="a."), copy_of_it.state_dict(prefix="a.")
    counted = [f"a.{split}_metrics.{kind}" for split in ("train", "val") for kind in ("counts", "loss")]
    assert list(saved) == list(same) == ["a.net.bias", "a.val_acc_best.max_value", *counted]
    assert all(torch.equal(tensor, same[name]) for name, tensor in saved.items())
    assert saved["a.val_metrics.counts"].tolist() == [[1, 0, 1], [2, 0, 1], [1, 1, 1]]
    assert module.state_dict(keep_vars=True)["net.bias"] is module.net.bias


@pytest.mark.parametrize("options", [{}, {"train.layer_decay": 0.5, "train.schedule": "cosine"}])
def test_the_pipelines_module_is_pickled_with_its_optimizer(options, tiny_params):
    params = tiny_params(*(f"{name}={value}" for name, value in options.items())).train
    module = lit_classifier(TIMMBackbone("test_resnet", pretrained=False, num_classes=3), 3, params, 10)
    other = pickle.loads(pickle.dumps(module))
    configured, same = module.configure_optimizers(), other.configure_optimizers()
    assert type(same["lr_scheduler"]["scheduler"]) is type(configured["lr_scheduler"]["scheduler"])
    groups, others = configured["optimizer"].param_groups, same["optimizer"].param_groups
    assert [group["lr"] for group in others] == [group["lr"] for group in groups]
    assert [len(group["params"]) for group in others] == [len(group["params"]) for group in groups]
    own = {id(parameter) for parameter in other.net.parameters()}
    assert {id(parameter) for group in others for parameter in group["params"]} == own
