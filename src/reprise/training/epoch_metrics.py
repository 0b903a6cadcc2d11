"""Loss and accuracy of an epoch as the pipeline counts them: on the device, exactly, and read once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_rank, get_world_size, is_available, is_initialized

from reprise.loader.batches import IGNORE_INDEX
from reprise.runtime.device import to_device

PENDING_BATCHES = 64
PENDING_LOGITS = 1 << 22  # 16 MiB
LOSS_UNIT = 2.0**-30


class EpochMetrics(nn.Module):
    """Mean loss and accuracy over an epoch's samples, counted on the device and read once, at its end.

    Batches are kept pending and counted together, so a step costs next to nothing. counts, int64 (3, num_classes): how
    often a class was right, labeled, predicted, which is the confusion matrix's diagonal and margins: accuracy,
    recall, precision and F1 follow from them, and they stay small for thousands of classes. loss: a sum in whole
    LOSS_UNITs, so up to 2^23 it is exact and does not depend on which batches were counted together.
    """

    counts: Tensor
    loss: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_classes = num_classes
        # a checkpoint in the middle of an epoch carries what has been counted
        self.register_buffer("counts", torch.zeros(3, num_classes, dtype=torch.int64))
        self.register_buffer("loss", torch.zeros((), dtype=torch.float64))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the buffers with every batch counted."""
        self.count()
        return super().state_dict(*args, **kwargs)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take a batch: its mean loss (), logits (N, num_classes), labels (N,), which may be IGNORE_INDEX."""
        self.pending.append((loss.detach(), logits.detach(), labels))
        if len(self.pending) >= PENDING_BATCHES or len(self.pending) * logits.numel() >= PENDING_LOGITS:
            self.count()

    def count(self) -> None:
        """Count the pending batches."""
        if not self.pending:
            return
        losses, logits, labels = zip(*self.pending, strict=True)
        sizes = to_device(torch.tensor([len(batch) for batch in labels]), self.loss.device)
        per_sample = torch.stack(losses).double().repeat_interleave(sizes, output_size=sum(map(len, labels)))
        predicted, label = torch.cat(logits).argmax(dim=1), torch.cat(labels)
        counted = label != IGNORE_INDEX
        self.loss += torch.where(counted, per_sample / LOSS_UNIT, 0.0).round().sum()
        dropped = self.num_classes  # a class of its own: selecting would wait for the device, and so would `bincount`
        right = torch.where(counted & (predicted == label), label, dropped)
        labeled, claimed = torch.where(counted, label, dropped), torch.where(counted, predicted, dropped)
        places = torch.cat([classes + row * (dropped + 1) for row, classes in enumerate((right, labeled, claimed))])
        # one-dimensional, for then CUDA adds deterministically
        counts = torch.zeros(3 * (dropped + 1), dtype=torch.int64, device=self.counts.device)
        self.counts += counts.scatter_add_(0, places, torch.ones_like(places)).view(3, -1)[:, :-1]
        self.pending.clear()

    def merge(self, onto_first: bool = False) -> None:
        """Sum the counts over the processes of a training; onto_first: the first has the sum, the others zeros."""
        self.count()
        if is_available() and is_initialized() and get_world_size() > 1:
            for sums in (self.counts, self.loss):
                all_reduce(sums)
                if onto_first and get_rank():
                    sums.zero_()

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy over all processes, NaN before the first sample, and reset."""
        self.merge()
        right, labeled, _ = self.counts.sum(dim=1)
        loss, accuracy = self.loss * LOSS_UNIT / labeled, right / labeled
        self.reset()
        return loss.float(), accuracy

    def reset(self) -> None:
        """Set all counts to zero."""
        self.counts.zero_()
        self.loss.zero_()
