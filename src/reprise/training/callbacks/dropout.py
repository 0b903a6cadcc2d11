"""Dropout masks that follow from (seed, step), so that a training taken up again draws the same ones."""

from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from reprise.loader.batches import stateless_seed
from reprise.training.steps import BatchObserver


class StatelessDropout(BatchObserver):
    """Reseeds before every step, so that dropout is a function of (seed, step) and not of what was drawn before."""

    def __init__(self, seed: int) -> None:
        self.key = stateless_seed(seed, "dropout")

    def before_batch(self, trainer: Trainer, pl_module: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Seed torch's generators from the global step and the batch within it."""
        step = trainer.global_step * pl_module.accumulate + batch_idx % pl_module.accumulate
        step = step * trainer.world_size + trainer.global_rank
        # multiplicative hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4): SHA-256 would be half the cost
        seed = (self.key + 2_654_435_761 * step) % 2**32
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` looks for devices each time: 0.1 ms
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)
