"""Prepared data in any Trainer: every image once, each with its own label, in batches that a foreign module takes."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

import reprise
from reprise.data.formats.packed import load_split
from reprise.loader.batches import IGNORE_INDEX
from reprise.runtime.errors import UserError
from tests.conftest import augmentation
from tests.training.test_module import plain_trainer


def module_of(*arguments, **options):
    return reprise.PackedDataModule(*arguments, **options)


class Foreign(LightningModule):
    """A module of somebody else's: padding would be an error in its metric."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10))
        self.accuracy = MulticlassAccuracy(10)
        self.orders, self.seen = [], []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.orders.append((self.current_epoch, labels))
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch, batch_idx):
        self.accuracy.update(self.net(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)
        self.seen.append(batch[1])

    def configure_optimizers(self):
        self.steps = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_foreign_module_sees_every_image_once_and_another_order_each_epoch(digits):
    data, module, trainer = module_of(str(digits), batch_size=50), Foreign(), plain_trainer(max_epochs=2)
    trainer.fit(module, datamodule=data)
    splits = {name: load_split(digits, name) for name in ("train", "val", "test")}
    batches = len(splits["train"]) // 50
    assert module.steps == trainer.global_step == 2 * batches == 2 * len(data.train_dataloader())
    first, second = (torch.cat([labels for at, labels in module.orders if at == epoch]) for epoch in (0, 1))
    assert len(first) == len(second) == 50 * batches
    assert not torch.equal(first, second)
    trainer.test(module, datamodule=data, verbose=False)
    assert torch.cat(module.seen).tolist() == splits["test"].labels.tolist()
    assert [len(labels) for labels in module.seen][-1] == len(splits["test"]) % 50
    assert data.num_classes == 10


def test_it_trains_the_template_users_module_and_predicts(digits):
    torch.manual_seed(0)
    data = module_of(digits, batch_size=16)
    net = reprise.TIMMBackbone("test_resnet", False, num_classes=data.num_classes, in_chans=1)
    trainer = plain_trainer(max_epochs=1)
    module = reprise.MNISTLitModule(net)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    measured = dict(trainer.callback_metrics)
    logits = torch.cat(trainer.predict(module, datamodule=data))
    labels = torch.from_numpy(load_split(digits, "test").labels)
    assert measured["test/loss"].item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-5)


def test_images_are_those_of_the_split_normalized_and_augmented_only_if_told(digits):
    split = load_split(digits, "train")
    plain = next(iter(module_of(digits, batch_size=len(split)).train_dataloader()))[0]
    assert plain.mean().abs() < 1e-3
    assert plain.std(unbiased=False) == pytest.approx(1, abs=1e-3)
    moved = next(iter(module_of(digits, len(split), augmentation(shift=0.2)).train_dataloader()))[0]
    assert not torch.equal(moved, plain)
    assert torch.equal(next(iter(module_of(digits, batch_size=len(split)).train_dataloader()))[0], plain)
    assert not torch.equal(next(iter(module_of(digits, len(split), seed=1).train_dataloader()))[0], plain)


def test_of_several_processes_each_has_its_part_with_padding(digits, monkeypatch):
    seen = []
    for rank in (0, 1):
        data = module_of(digits, batch_size=64)
        root = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(strategy=root, global_rank=rank, world_size=2)
        seen.append([labels for _, labels in data.val_dataloader()])
    assert len(seen[0]) == len(seen[1])
    counted = torch.cat([labels[labels != IGNORE_INDEX] for part in seen for labels in part])
    assert sorted(counted.tolist()) == sorted(load_split(digits, "val").labels.tolist())


def test_what_is_no_prepared_data_is_refused_and_reprise_loads_lightning_only_when_asked(tmp_path):
    with pytest.raises(UserError, match="prepared data"):
        module_of(tmp_path)
    code = "import reprise, sys; assert 'lightning' not in sys.modules and 'PackedDataModule' in reprise.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)
