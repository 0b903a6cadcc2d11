"""Training with a frozen backbone: its features are computed once and kept, and heads are fitted to them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from reprise.features.heads import linear_path, prototype_path
from reprise.features.pooled import folded, pooled_features
from reprise.features.store import backbone_sha256, stored
from reprise.loader.batches import EvalBatches
from reprise.params.resolve import resolve_device
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.errors import say
from reprise.runtime.provenance import trace
from reprise.training.callbacks.best_epoch import BestEpoch, EpochRow
from reprise.training.setup import Assembly

PATIENCE = 2  # heads beyond the lowest validation loss, which end a path
PATHS = {"linear": linear_path, "prototypes": prototype_path}


def fit_head(made: Assembly, best: BestEpoch, store: Path | None, loggers: Sequence[Logger]) -> None:
    """Give `best` a row, and the network's weights, for each head of the path that `train.head` names.

    Loss and accuracy of training are of the features of all views. Raises UserError if the data change meanwhile.
    """
    network, params = made.network, made.params
    features = stored(store, _key(made), lambda: _computed(made))
    made.data.check()
    criterion = made.lit().criterion.cpu()
    model: Any = network.model
    layer = model.get_classifier()
    inputs, labels = features["train"], features["train_labels"]
    path = PATHS[params.head](inputs, labels, criterion, len(made.metadata.classes))
    for number, head in enumerate(path, 1):
        with torch.no_grad():
            layer.weight.copy_(head.weight)
            layer.bias.copy_(head.bias)
            train, val = head(inputs), head(features["val"])
            losses = criterion(train, labels), torch.nn.functional.cross_entropy(val, features["val_labels"])
        reached = _accuracy(train, labels), _accuracy(val, features["val_labels"])
        row = EpochRow(number, 0.0, float(losses[0]), reached[0], float(losses[1]), reached[1], strength=head.strength)
        note = "  best so far" if best.add(row, network.state_dict()) else ""
        say(
            f"strength {head.strength:.4g}  loss {row.train_loss:.4f}  val acc {row.val_accuracy:.4f}{note}", sys.stderr
        )
        named = {"train/loss": row.train_loss, "train/acc": reached[0], "val/loss": row.val_loss, "val/acc": reached[1]}
        for logger in loggers:
            logger.log_metrics({**named, "strength": head.strength}, step=number)
            logger.save()
        if min(best.history, key=lambda row: row.val_loss).epoch < number - PATIENCE:
            break


def _key(made: Assembly) -> str:
    """Return a digest of all that decides the features."""
    params, augmented = made.params, {"seed", "augment"} if made.params.feature_views > 1 else set()
    deciding = {
        "weights": backbone_sha256(made.network),
        "architecture": made.architecture.model_dump(exclude={"num_classes"}),
        "train": params.model_dump(include={"batch_size", "feature_views", *augmented}),
        "debug": made.debug.deciding(),
    }
    reproducible, data = resolve_reproducible(params.reproducible), made.metadata.model_dump_json().encode()
    assert params.threads != "auto", "it is resolved before"
    return trace(reproducible, params.threads, resolve_device(params), deciding, data, "reprise.training.frozen").key()


def _computed(made: Assembly) -> dict[str, Tensor]:
    """Return features and labels of the training images, view by view, and of the validation images."""
    params, device = made.params, made.process.device
    images, _ = next(iter(made.val_batches))
    say(f"computing the features of {len(made.train_split):,} + {len(made.val_batches.labels):,} images", sys.stderr)
    network = folded(made.network.to(device), images[:2])
    plain = EvalBatches(made.train_split, made.metadata, params.batch_size, made.process, made.architecture.image_size)
    views = [pooled_features(network, plain)]
    for view in range(1, params.feature_views):
        say(f"features of view {view} of {params.feature_views} are computed", sys.stderr)
        made.batches.set_epoch(view - 1)
        views.append(pooled_features(network, made.batches))
    val, val_labels = pooled_features(network, made.val_batches)
    made.network.cpu()
    made.data.check()
    inputs, labels = (torch.cat(parts) for parts in zip(*views, strict=True))
    return {"train": inputs, "train_labels": labels, "val": val, "val_labels": val_labels}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
