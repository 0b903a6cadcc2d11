"""Sanity checks before a long training: inputs, labels, initial loss, gradients, and whether one batch can be fitted.

They use data and network as the training gets them, after augmentation and normalization, and train the network for up
to STEPS steps: it must not be used afterwards.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.special import bdtrc
from torch import Tensor

from reprise.loader.batches import IGNORE_INDEX, Process
from reprise.params.resolve import resolve_device
from reprise.params.schema import ModelParams, TrainParams
from reprise.training.module import LitClassifier
from reprise.training.setup import Assembly

STEPS = 80  # to fit one batch, at most
BATCH = 32  # images of that batch
IMAGES = 2000  # to check, of each split
DOUBT = 1e-3  # probability of a false alarm, of a check against chance
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Check:
    """The result of one check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    seen: str


def table(checks: Iterable[Check]) -> str:
    """Return the checks as text, one line each."""
    return "\n".join(f"{'pass' if check.passed else 'FAIL'}  {check.name:<36}  {check.seen}" for check in checks)


def sanity(processed: Path, model: ModelParams, params: TrainParams, weights: Path | None = None) -> list[Check]:
    """Check the network and the data as `train` would take them. Raises UserError as `train` does.

    weights: the path of `model.weights`.
    """
    params = params.model_copy(update={"start_size": None})
    device = resolve_device(params)
    made = Assembly(processed, model, params, Process(device), weights)
    slack = 0.3 if made.pretrained_weights is None else 1.0
    return check(made.lit().to(device), made.batches, made.val_batches, len(made.metadata.classes), slack)


def check(lit: LitClassifier, train: Batches, val: Batches, classes: int, slack: float = 0.3) -> list[Check]:
    """Run all checks.

    train, val: batches of images (N, C, H, W) with labels (N,) or soft targets (N, classes). slack: the largest
    deviation of the images' mean from 0 and of their standard deviation from 1 that passes; larger where images are
    normalized by the statistics of pretrained weights.
    """
    images, labels = _gather(train)
    val_images, val_labels = _gather(val)
    checks = [
        _inputs("training images", images, slack + 0.2),  # augmentation may leave black borders
        _inputs("validation images", val_images, slack),
        _labels(labels, val_labels, classes),
        _labels_fit_images(images, labels, val_images, val_labels),
    ]
    batch = images[:BATCH].to(lit.device), labels[:BATCH].to(lit.device)
    with torch.no_grad():
        logits = lit.train().forward(batch[0])
    outputs = logits.shape[1]
    checks.append(Check("one output for each class", outputs == classes, f"{outputs} outputs, {classes} classes"))
    if int(labels.max()) >= outputs:
        return [*checks, Check("loss", False, "not defined: labels beyond the outputs")]
    return [*checks, *_learning(lit, batch, classes)]


def _gather(batches: Batches) -> tuple[Tensor, Tensor]:
    """Return up to IMAGES images with their labels, of soft targets the class of largest weight, without padding."""
    kept: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        labels = labels.argmax(dim=1) if labels.ndim == 2 else labels
        counted = labels != IGNORE_INDEX
        kept.append((images[counted], labels[counted]))
        if sum(len(part) for _, part in kept) >= IMAGES:
            break
    images, labels = map(torch.cat, zip(*kept, strict=True))
    return images[:IMAGES].float().cpu(), labels[:IMAGES].cpu()


def _inputs(name: str, images: Tensor, slack: float) -> Check:
    """Check for mean 0 and standard deviation 1 in every channel, and for images that are all equal."""
    mean, deviation = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    spread = images.std(dim=0).mean().item()
    near = bool((mean.abs() <= slack).all() and ((deviation - 1).abs() <= slack).all())
    seen = ", ".join(f"{m:+.2f} ± {d:.2f}" for m, d in zip(mean.tolist(), deviation.tolist(), strict=True))
    return Check(f"{name}: mean 0, deviation 1", near and spread > 0.01, f"{seen} a channel, of {len(images):,} images")


def _labels(train: Tensor, val: Tensor, classes: int) -> Check:
    """Check for labels out of range and, if there are at least ten images for each class, for classes without one."""
    counts = torch.bincount(train, minlength=classes)
    low, high = int(min(train.min(), val.min())), int(max(train.max(), val.max()))
    missing = int((counts[:classes] == 0).sum())
    most = counts.max().item() / len(train)
    seen = f"{low} to {high}; {missing} of {classes} classes without an image, the largest has {most:.0%}"
    enough = len(train) >= 10 * classes
    return Check("labels: every class, no other", low >= 0 and high < classes and not (missing and enough), seen)


def _labels_fit_images(images: Tensor, labels: Tensor, val_images: Tensor, val_labels: Tensor) -> Check:
    """Check that a validation image and its nearest neighbor share a label more often than by chance.

    Neighbors are training images, by Euclidean distance at 8 x 8 pixels. Chance is what the frequencies of the labels
    give; the test is the binomial one, one-sided at level DOUBT.
    """
    small, val_small = (torch.nn.functional.adaptive_avg_pool2d(part, 8).flatten(1) for part in (images, val_images))
    nearest = labels[torch.cdist(val_small, small).argmin(dim=1)]
    agree, count = int((nearest == val_labels).sum()), len(val_labels)
    most = int(max(labels.max(), val_labels.max())) + 1
    shares = [torch.bincount(part, minlength=most).double() / count for part in (nearest, val_labels)]
    chance = float(shares[0] @ shares[1])
    seen = f"the nearest image has the same label for {agree / count:.0%}, {chance:.0%} by chance"
    return Check("labels: similar images share them", bool(bdtrc(agree - 1, count, chance) < DOUBT), seen)


def _learning(lit: LitClassifier, batch: tuple[Tensor, Tensor], classes: int) -> list[Check]:
    """Fit one batch with the training's own loss; check the initial loss, the gradients and the accuracy reached."""
    trainable = [parameter for parameter in lit.net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-3) if trainable else None
    names = [name for name, _ in lit.net.named_parameters()]
    without = set(names)
    first = last = hits = 0.0
    for step in range(STEPS):
        lit.train().zero_grad()
        loss, preds, targets = lit.step(batch)
        first, last = (loss.item() if step == 0 else first), loss.item()
        hits = (preds == targets).double().mean().item()
        if optimizer is None or not math.isfinite(last):
            break
        loss.backward()
        for name, parameter in lit.net.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                without.discard(name)
        optimizer.step()
        if hits == 1 and step > 5:  # zero-initialized weights hold back gradients for a step or two
            break
    even = math.log(classes)
    some = f"{len(without)} of {len(names)} do not: {', '.join([name for name in names if name in without][:3])}"
    return [
        Check("loss at the start: near log(classes)", 0.5 * even < first < 2 * even, f"{first:.3f}; log is {even:.3f}"),
        Check("every parameter gets a gradient", not without, some if without else f"all {len(names)}"),
        Check("one batch can be learned by heart", hits >= 0.95, f"{hits:.0%} right, loss {last:.3f}, step {step + 1}"),
    ]
