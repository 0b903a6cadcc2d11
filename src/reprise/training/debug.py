"""Debug modes: a training on less data, or with more checks, to look for bugs; its result is no result.

They are no parameters: nothing that is tracked is made with them.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from reprise.data.formats.packed import PackedSplit
from reprise.loader.batches import stateless_generator
from reprise.runtime.errors import UserError


@dataclass(frozen=True)
class Debug:
    """The debug mode of a training.

    limit: share of the training and validation images. batches: at most so many of each. overfit: validate on the
    training images, which a sound model memorizes. detect_anomaly: name the operation that first gives NaN in a
    backward pass (slow). Raises UserError for values that are out of range.
    """

    limit: float = 1.0
    batches: int | None = None
    overfit: bool = False
    detect_anomaly: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            raise UserError(f"--limit {self.limit:g}: expected a share of the images, above 0 and up to 1")
        if self.batches is not None and self.batches < 1:
            raise UserError(f"--overfit {self.batches}: expected a number of batches, 1 or more")

    def deciding(self) -> dict[str, Any]:
        """Return the options that change the bits of the result and differ from the defaults."""
        changed = asdict(self).items() - asdict(Debug()).items()
        return {name: value for name, value in sorted(changed) if name != "detect_anomaly"}

    def splits(
        self, train: PackedSplit, val: PackedSplit, batch_size: int, seed: int
    ) -> tuple[PackedSplit, PackedSplit]:
        """Return the images to train on and to validate on."""
        few = self._few(train, batch_size, seed)
        return few, few if self.overfit else self._few(val, batch_size, seed)

    def _few(self, split: PackedSplit, batch_size: int, seed: int) -> PackedSplit:
        count = math.ceil(self.limit * len(split))
        if self.batches is not None:
            count = min(count, self.batches * batch_size)
        if count == len(split):
            return split
        rows = torch.randperm(len(split), generator=stateless_generator(seed, "limit"))[:count].sort().values.numpy()
        return PackedSplit(split.images[rows], split.labels[rows], [split.ids[row] for row in rows])
