"""Training with a frozen backbone: its features are computed once and kept, and heads are fitted to them."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reprise.features.heads import HIDDEN, linear_path, mlp_path, neighbor_path, prototype_path
from reprise.features.store import backbone_sha256, folded, kept_features, pooled
from reprise.loader.batches import EvalBatches, stateless_generator, whole
from reprise.model.artifact import Classifier
from reprise.model.classifiers import set_classifier
from reprise.runtime.errors import say
from reprise.runtime.parts import project_md5
from reprise.runtime.provenance import Provenance
from reprise.training.callbacks.best_epoch import BestEpoch, EpochRow
from reprise.training.setup import Assembly

PATHS: dict[str, Any] = {"linear": linear_path, "prototypes": prototype_path, "mlp": mlp_path, "knn": neighbor_path}
PATIENCE = 2  # heads beyond the lowest validation loss, which end a path


@torch.no_grad()
def fit_head(made: Assembly, best: BestEpoch, provenance: Provenance, store: Path | None) -> None:
    """Give `best` a row, and the network's weights, for each head of the path that `train.head` names.

    Loss and accuracy of training are of the features of all views, each of which is its own nearest neighbor. Raises
    UserError if the data change meanwhile.
    """
    model: Any = made.network.model
    kind, criterion = made.params.head, made.lit().criterion.double()
    train, labels, val, val_labels = _features(made, provenance, store)
    classifiers = {"mlp": Classifier(kind="mlp", size=HIDDEN), "knn": Classifier(kind="knn", size=len(train))}
    made.architecture = made.architecture.model_copy(update={"classifier": classifiers.get(kind)})
    torch.manual_seed(made.params.seed)
    set_classifier(model, made.architecture)
    layer = model.get_classifier()
    for number, strength in enumerate(PATHS[kind](train, labels, criterion, layer), 1):
        logits, val_logits = _logits(layer, train), _logits(layer, val)
        learned = float(criterion(logits, labels)), _accuracy(logits, labels)
        reached = float(cross_entropy(val_logits, val_labels)), _accuracy(val_logits, val_labels)
        row = EpochRow(number, 0.0, *learned, *reached, strength=strength)
        best.add(row, made.network.state_dict())
        say(f"strength {strength:.4g}  loss {learned[0]:.4f}  val acc {reached[1]:.4f}", sys.stderr)
        if min(best.history, key=lambda row: row.val_loss).epoch <= number - PATIENCE:
            return


def _features(made: Assembly, provenance: Provenance, store: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features and labels of the training images, view by view, and those of the validation images.

    The features of an image as it is are kept under a digest of its pixels, where other splits of the same images find
    them; those of views, batch by batch, belong to one training split and seed.
    """
    batches, architecture = made.batches, made.architecture
    alone, changed = (store and store / key for key in _keys(made, provenance))
    size, views = whole(made.params.batch_size), range(made.params.feature_views - 1)
    plain = EvalBatches(made.train_split, made.metadata, size, made.process, architecture.image_size)
    # the same images whatever the data are: whether norms are folded decides the bits
    images = torch.randn(2, architecture.in_chans, *[architecture.image_size] * 2, generator=stateless_generator(0))
    network = folded(made.network, images).to(made.process.device)

    def of_images(given: EvalBatches) -> Tensor:
        def compute(rows: list[int]) -> Tensor:
            # always as many images: their number decides how matrix products round
            return pooled(network, given.inputs(torch.tensor(rows + rows[:1] * (size - len(rows)))))[: len(rows)].cpu()

        keys = [hashlib.sha256(image.numpy()).hexdigest() for image in given.images.mapped]
        return kept_features(alone, keys, size, compute, made.data.check)

    def of_batch(numbers: list[int]) -> Tensor:
        batches.start(*divmod(numbers[0], batches.steps))
        return pooled(network, next(iter(batches))[0])[None].cpu()

    train, labels = [of_images(plain)], [plain.labels]
    if views:
        keys = [f"view {view}, batch {step}" for view in views for step in range(batches.steps)]
        train.append(kept_features(changed, keys, 1, of_batch, made.data.check).flatten(0, 1))
        labels += [plain.labels[batches.order(view)[: batches.steps * batches.batch_size]] for view in views]
    val = of_images(made.val_batches)
    made.network.cpu()
    made.data.check()
    return torch.cat(train), torch.cat(labels), val, made.val_batches.labels


def _keys(made: Assembly, provenance: Provenance) -> tuple[str, str]:
    """Return digests of what decides, beside its pixels, the features of an image, and of what decides those of views.

    That is, of the training's terms and of few of its params.
    """
    params, architecture = made.params, made.architecture.model_dump(exclude={"num_classes"})
    seen = [backbone_sha256(made.network), architecture, params.batch_size, made.metadata.mean, made.metadata.std]
    alone = provenance.model_copy(update={"params_sha256": str(seen), "data_sha256": ""}).key()
    augment = [alone, params.seed, params.augment, made.debug.deciding(), params.augment.own and project_md5()]
    return alone, provenance.model_copy(update={"params_sha256": str(augment)}).key()


def _logits(layer: nn.Module, features: Tensor) -> Tensor:
    """Return a classifier's logits, float64 (N, classes); in parts, for neighbors compare each with all examples."""
    return torch.cat([layer(part) for part in features.split(1024)]).double()


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
