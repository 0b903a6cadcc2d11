"""Training with a frozen backbone: its features are computed once and kept, and heads are fitted to them."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reprise.features.heads import linear_path, prototype_path
from reprise.features.store import backbone_sha256, folded, pooled_features, stored
from reprise.loader.batches import EvalBatches
from reprise.runtime.errors import say
from reprise.runtime.parts import project_md5
from reprise.runtime.provenance import Provenance
from reprise.training.callbacks.best_epoch import BestEpoch, EpochRow
from reprise.training.setup import Assembly

PATIENCE = 2  # heads beyond the lowest validation loss, which end a path


def fit_head(made: Assembly, best: BestEpoch, provenance: Provenance, store: Path | None) -> None:
    """Give `best` a row, and the network's weights, for each head of the path that `train.head` names.

    Loss and accuracy of training are of the features of all views. Raises UserError if the data change meanwhile.
    """
    model: Any = made.network.model
    layer, criterion = model.get_classifier(), made.lit().criterion.double()
    features = stored(store / _key(made, provenance), lambda: _computed(made)) if store else _computed(made)
    path = linear_path if made.params.head == "linear" else prototype_path
    train, labels, val, val_labels = (features[name] for name in ("train", "train_labels", "val", "val_labels"))
    with torch.no_grad():
        for number, head in enumerate(path(train, labels, criterion, layer.out_features), 1):
            layer.weight.copy_(head.weight)
            layer.bias.copy_(head.bias)
            logits, val_logits = layer(train).double(), layer(val).double()
            learned = float(criterion(logits, labels)), _accuracy(logits, labels)
            reached = float(cross_entropy(val_logits, val_labels)), _accuracy(val_logits, val_labels)
            row = EpochRow(number, 0.0, *learned, *reached, strength=head.strength)
            best.add(row, made.network.state_dict())
            say(f"strength {head.strength:.4g}  loss {learned[0]:.4f}  val acc {reached[1]:.4f}", sys.stderr)
            if min(best.history, key=lambda row: row.val_loss).epoch <= number - PATIENCE:
                return


def _key(made: Assembly, provenance: Provenance) -> str:
    """Return a digest of all that decides the features: of the training's terms, but of few of its params."""
    augmented = {"seed", "augment"} if made.params.feature_views > 1 else set()
    own = project_md5() if augmented and made.params.augment.own else ""
    architecture = made.architecture.model_dump_json(exclude={"num_classes"})
    params = made.params.model_dump_json(include={"batch_size", "feature_views", *augmented})
    deciding = f"{backbone_sha256(made.network)} {architecture} {params} {made.debug.deciding()} {own}"
    return provenance.model_copy(update={"params_sha256": deciding}).key()


def _computed(made: Assembly) -> dict[str, Tensor]:
    """Return features and labels of the training images, view by view, and of the validation images."""
    params, val_batches = made.params, made.val_batches
    say(f"computing the features of {len(made.train_split):,} + {len(val_batches.labels):,} images", sys.stderr)
    images, _ = next(iter(val_batches))
    network = folded(made.network.to(images.device), images[:2])
    plain = EvalBatches(made.train_split, made.metadata, params.batch_size, made.process, val_batches.image_size)
    views = [pooled_features(network, plain)]
    for view in range(params.feature_views - 1):
        made.batches.set_epoch(view)
        views.append(pooled_features(network, made.batches))
    val, val_labels = pooled_features(network, val_batches)
    made.network.cpu()
    made.data.check()
    train, labels = map(torch.cat, zip(*views, strict=True))
    return {"train": train, "train_labels": labels, "val": val, "val_labels": val_labels}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
