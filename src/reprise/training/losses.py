"""Losses of training other than cross-entropy, built in or of the user's own.

Each takes logits, float32 (N, C), and targets, float32 (N, C), the share of each class in each image: one-hot, smoothed
by `train.label_smoothing`, mixed by mixup and cutmix. It returns the loss of each image, (N,).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from reprise.runtime.errors import UserError
from reprise.runtime.parts import create_part, is_part

Loss = Callable[[Tensor, Tensor], Tensor]


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy times (1 - p)^2: what is known counts less (Lin et al., Focal loss for object detection, 2017)."""
    logs = logits.log_softmax(dim=1)
    return -(targets * (1 - logs.exp()) ** 2 * logs).sum(dim=1)


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the classes of each one's own yes or no (Wightman et al., ResNet strikes back, 2021)."""
    return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


LOSSES: dict[str, Loss | None] = {"cross_entropy": None, "focal": focal, "bce": bce}


def find_loss(name: str) -> Loss | None:
    """Return the loss that `train.loss` names; None: cross-entropy. Raises UserError for one that cannot be used."""
    if not is_part(name):
        return LOSSES[name]
    loss: Loss = create_part(name)
    if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
        raise UserError(f"train.loss = {name}: has parameters of its own, which nothing would train")
    if getattr(loss(torch.zeros(3, 2), torch.eye(2)[[0, 1, 1]]), "shape", None) != (3,):
        raise UserError(f"train.loss = {name}: expected the loss of each image, [3] for logits [3, 2]")
    return loss
