"""The prepared data: one packed uint8 array per split, its labels and ids, and the facts that describe them.

`preprocess` writes a folder of `{train,val,test}_images.npy` (N, H, W, C; uint8), `*_labels.npy` (N; int64),
`*_ids.json` and `metadata.json`; `load_split` reads one split with its images memory-mapped.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from reprise.errors import UserError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
WAY_OUT = "run `dvc repro preprocess` (or `dvc checkout`, if it was altered)"


class Metadata(BaseModel):
    """What every later stage knows of the data; mean and std are per channel, of the training split, in 0..1.

    source_sha256: of the raw archive; splits_sha256: of that and of which image is in which split.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    classes: list[str]
    image_size: int
    channels: int
    mean: list[float]
    std: list[float]
    counts: dict[Split, int]
    source_sha256: str
    splits_sha256: str

    def summary(self) -> str:
        """Return the facts in one line."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        return f"{counts} images of {self.image_size}x{self.image_size}x{self.channels}, {len(self.classes)} classes"


@dataclass(frozen=True)
class PackedSplit:
    """One split: images (N, H, W, C) uint8, labels (N,) int64, ids (N names)."""

    images: np.ndarray
    labels: np.ndarray
    ids: list[str]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def load_metadata(folder: Path) -> Metadata:
    """Read `metadata.json` of prepared data. Raises UserError if it is missing or altered."""
    path = folder / "metadata.json"
    try:
        return Metadata.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no prepared data there; {WAY_OUT}") from None
    except ValidationError as error:
        raise UserError(f"{path}: not readable ({error.error_count()} wrong entries); {WAY_OUT}") from None


def load_split(folder: Path, split: Split) -> PackedSplit:
    """Read one split, images memory-mapped. Raises UserError if it is missing, altered or incomplete."""
    try:
        images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
        ids = json.loads((folder / f"{split}_ids.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no prepared data there; {WAY_OUT}") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{folder}: the {split} split is not readable ({error}); {WAY_OUT}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images) == len(labels) == len(ids):
        raise UserError(f"{folder}: images, labels and ids of the {split} split do not fit together; {WAY_OUT}")
    return PackedSplit(images, labels, ids)
