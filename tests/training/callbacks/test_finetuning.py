"""Fine-tuning is worth it, and freezing and lower rates reach the backbone and nothing else."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.evaluation.evaluate import predict
from reprise.loader.batches import EvalBatches
from reprise.model.backbone import create_network
from reprise.runtime.errors import UserError
from reprise.training.callbacks.finetuning import FrozenBackbone
from reprise.training.optim import create_optimizer
from reprise.training.train import train
from tests.training.test_checkpoint import bits, check_resumption
from tests.training.test_optim import params


def classes_only(monkeypatch, first, images=None):
    """Let the training see five of the digits alone, as 0 to 4, and so many training images of them."""

    def split_of(folder, split):
        whole = load_split(folder, split)
        keep = [row for row, label in enumerate(whole.labels) if first <= label < first + 5]
        keep = keep[:images] if split == "train" else keep
        ids = [whole.ids[row] for row in keep]
        return replace(whole, images=np.asarray(whole.images)[keep], labels=whole.labels[keep] - first, ids=ids)

    def facts_of(folder):
        return load_metadata(folder).model_copy(update={"classes": [str(first + digit) for digit in range(5)]})

    monkeypatch.setattr("reprise.training.setup.load_split", split_of)
    monkeypatch.setattr("reprise.training.setup.load_metadata", facts_of)
    return split_of


def test_few_images_of_new_classes_go_further_from_weights_of_others(digits, tiny_params, tmp_path, monkeypatch):
    given = tiny_params("train.epochs=12")
    classes_only(monkeypatch, 0)
    bits(train(digits, given.model, given.train), tmp_path / "first")
    split_of = classes_only(monkeypatch, 5, images=20)
    given = tiny_params("train.epochs=12", "train.batch_size=10", "train.freeze_epochs=2", "train.backbone_lr=0.3")
    accuracy = {}
    for name, weights in (("scratch", None), ("fine-tuned", tmp_path / "first/model.safetensors")):
        chosen = given if weights else tiny_params("train.epochs=12", "train.batch_size=10")
        result = train(digits, chosen.model, chosen.train, weights=weights)
        facts = load_metadata(digits).model_copy(
            update={"mean": result.card.preprocessing.mean, "std": result.card.preprocessing.std}
        )
        logits, labels = predict(result.network, EvalBatches(split_of(digits, "test"), facts, 256), "cpu")
        accuracy[name] = (logits.argmax(1) == labels).float().mean().item()
    assert accuracy["fine-tuned"] > accuracy["scratch"] + 0.1


def test_the_backbone_rests_while_it_is_frozen_its_statistics_too(digits, tiny_params, monkeypatch):
    seen = []
    untouched = FrozenBackbone.on_train_epoch_start

    def watch(self, trainer, pl_module):
        seen.append({name: tensor.clone() for name, tensor in self.network.state_dict().items()})
        untouched(self, trainer, pl_module)

    monkeypatch.setattr(FrozenBackbone, "on_train_epoch_start", watch)
    given = tiny_params("train.epochs=4", "train.freeze_epochs=2")
    result = train(digits, given.model, given.train)
    first, second, third = (
        {name for name in before if not torch.equal(before[name], after[name])} for before, after in pairwise(seen)
    )
    assert first == second == {"fc.weight", "fc.bias"}
    assert third == set(result.network.model.state_dict())
    assert all(weight.requires_grad for weight in result.network.parameters())


def test_a_network_whose_classifier_is_unknown_is_not_frozen():
    with pytest.raises(UserError, match=r"train\.freeze_epochs: .* set it to 0"):
        FrozenBackbone(nn.Linear(2, 2), 1).on_train_epoch_start(SimpleNamespace(current_epoch=0), None)


@pytest.mark.parametrize("decay", ["null", "0.5"])
def test_the_backbone_learns_at_its_own_rate(decay):
    model = timm.create_model("test_resnet", num_classes=3)
    plain, lower = (
        create_optimizer(model, params(f"train.layer_decay={decay}", f"train.backbone_lr={factor}"))
        for factor in (1, 0.1)
    )
    rates = [
        {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
        for optimizer in (plain, lower)
    ]
    assert rates[0].keys() == rates[1].keys() == {id(weight) for weight in model.parameters()}
    for name, weight in model.named_parameters():
        factor = 1 if name.startswith("fc.") else 0.1
        assert rates[1][id(weight)] == pytest.approx(rates[0][id(weight)] * factor), name


@pytest.mark.parametrize(("step", "optimizer"), [(5, "adamw"), (14, "sgd")])
def test_a_crash_while_frozen_or_after_ends_in_equal_bits(step, optimizer, digits, tiny_params, tmp_path):
    options = ("train.freeze_epochs=1", "train.backbone_lr=0.5", "train.checkpoint_every.minutes=0")
    check_resumption(step, digits, tiny_params(*options, f"train.optimizer={optimizer}"), tmp_path)


def test_fixed_norms_keep_their_statistics_while_all_weights_learn(digits, tiny_params, tmp_path):
    given = tiny_params("train.backbone=fixed_norms", "train.epochs=1")
    with pytest.raises(UserError, match="fixed_norms: random weights have nothing worth keeping"):
        train(digits, given.model, given.train)
    before, _ = create_network(given.model, load_metadata(digits), given.train.seed)
    save_file(
        {name: value.contiguous() for name, value in before.model.state_dict().items()}, tmp_path / "mine.safetensors"
    )
    after = train(digits, given.model, given.train, weights=tmp_path / "mine.safetensors").network.state_dict()
    same = {name for name, value in before.state_dict().items() if torch.equal(value, after[name])}
    assert same == {name for name in after if ".running_" in name or name.endswith("num_batches_tracked")}
