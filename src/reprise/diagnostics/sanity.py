"""Checks before a long training: does anything stand in the way of learning?

Each is cheap and says what it saw. They look at data and network as the training gets them, after augmentation and
normalisation, and train the network for a few steps: it is not to be used afterwards.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reprise.loader.batches import IGNORE_INDEX
from reprise.params.resolve import resolve_device
from reprise.params.schema import ModelParams, TrainParams
from reprise.training.module import LitClassifier
from reprise.training.setup import Process, assemble

STEPS = 80  # of learning one batch by heart
BATCH = 32  # its images
IMAGES = 2000  # to look at, of either split
DOUBT = 1e-3  # a check of chance fails wrongly so rarely


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is as it should be, and what was seen."""

    name: str
    passed: bool
    seen: str


def table(checks: Iterable[Check]) -> str:
    """Return a line for each check."""
    return "\n".join(f"{'pass' if check.passed else 'FAIL'}  {check.name:<36}  {check.seen}" for check in checks)


def sanity(processed: Path, model: ModelParams, params: TrainParams, weights: Path | None = None) -> list[Check]:
    """Check the network and the data as `train` would take them. Raises UserError as `train` does."""
    params = params.model_copy(update={"start_size": None})
    where = resolve_device(params)
    made = assemble(processed, model, params, Process(where), weights)
    slack = 0.3 if made.start is None else 1.0
    return check(made.lit(params).to(where), made.batches, made.val_batches, len(made.metadata.classes), slack)


def check(
    lit: LitClassifier,
    train: Iterable[tuple[Tensor, Tensor]],
    val: Iterable[tuple[Tensor, Tensor]],
    classes: int,
    slack: float = 0.3,
) -> list[Check]:
    """Run all checks. train, val: batches of images (N, C, H, W) and labels (N,) or, mixed, (N, classes).

    slack: how far from 0 and 1 mean and deviation of the images may be: further with those that other images had,
    which the weights to start from want.
    """
    images, labels = _gather(train)
    val_images, val_labels = _gather(val)
    checks = [
        _inputs("training images", images, slack + 0.2),  # augmentation may lay black around them
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


def _gather(batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return up to IMAGES images with their labels, of mixed ones the weightiest, padding dropped."""
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
    """Look for mean 0 and deviation 1 in every channel, and for images that are all the same."""
    mean, deviation = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    spread = images.std(dim=0).mean().item()
    near = bool((mean.abs() <= slack).all() and ((deviation - 1).abs() <= slack).all())
    seen = ", ".join(f"{m:+.2f} ± {d:.2f}" for m, d in zip(mean.tolist(), deviation.tolist(), strict=True))
    return Check(f"{name}: mean 0, deviation 1", near and spread > 0.01, f"{seen} a channel, of {len(images):,} images")


def _labels(train: Tensor, val: Tensor, classes: int) -> Check:
    """Look for classes without an image, as far as so many images must have shown them, and for labels beyond them."""
    counts = torch.bincount(train, minlength=classes)
    low, high = int(min(train.min(), val.min())), int(max(train.max(), val.max()))
    missing = int((counts[:classes] == 0).sum())
    most = counts.max().item() / len(train)
    seen = f"{low} to {high}; {missing} of {classes} classes without an image, the largest has {most:.0%}"
    enough = len(train) >= 10 * classes
    return Check("labels: every class, no other", low >= 0 and high < classes and not (missing and enough), seen)


def _labels_fit_images(images: Tensor, labels: Tensor, val_images: Tensor, val_labels: Tensor) -> Check:
    """See whether similar images have the same label more often than by chance: each against its nearest one.

    Validation images against training images, as 8 x 8 pixels; chance is what the frequencies of the labels give, the
    bound a normal approximation of the binomial.
    """
    small, val_small = (torch.nn.functional.adaptive_avg_pool2d(part, 8).flatten(1) for part in (images, val_images))
    nearest = labels[torch.cdist(val_small, small).argmin(dim=1)]
    agree = (nearest == val_labels).double().mean().item()
    most = int(max(labels.max(), val_labels.max())) + 1
    shares = [torch.bincount(part, minlength=most).double() / len(part) for part in (nearest, val_labels)]
    chance = float(shares[0] @ shares[1])
    bound = chance + torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - DOUBT)).item() * math.sqrt(
        chance * (1 - chance) / len(val_labels)
    )
    seen = f"the nearest image has the same label for {agree:.0%}, {chance:.0%} by chance"
    return Check("labels: similar images share them", agree > bound, seen)


def _learning(lit: LitClassifier, batch: tuple[Tensor, Tensor], classes: int) -> list[Check]:
    """Learn one batch by heart with the training's own loss; watch the loss, the hits and every gradient."""
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
        if hits == 1 and step > 5:  # weights that begin at zero hold back the gradients of others for a step or two
            break
    even = math.log(classes)
    some = f"{len(without)} of {len(names)} do not: {', '.join([name for name in names if name in without][:3])}"
    return [
        Check("loss at the start: near log(classes)", 0.5 * even < first < 2 * even, f"{first:.3f}; log is {even:.3f}"),
        Check("every parameter gets a gradient", not without, some if without else f"all {len(names)}"),
        Check("one batch can be learned by heart", hits >= 0.95, f"{hits:.0%} right, loss {last:.3f}, step {step + 1}"),
    ]
