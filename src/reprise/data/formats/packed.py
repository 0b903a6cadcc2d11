"""Prepared data: one packed uint8 array per split, its labels and ids, and the metadata that describe them.

`preprocess` writes a folder of `{train,val,test}_images.npy` (N, H, W, C; uint8), `*_labels.npy` (N; int64),
`*_ids.json`, `dropped.json` and `metadata.json` and, where there is something to say, `test_columns.json`; `load_split`
reads one split with its images memory-mapped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from reprise.params.schema import Resize
from reprise.runtime.checksums import read_sealed, reading, verify_file

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Metadata(BaseModel):
    """Metadata of prepared data, read by every later stage.

    depth: `data.depth`, if it is set: the bits in use of images of 16 bits. mean, std: per channel, of the training
    split, in 0..1. dropped: number of images left out, each with its reason in `dropped.json`, a list of {"id",
    "split", "reason"}. relabeled: number of images with a corrected label, if there are any. test_corrections: how many
    of the test split data/corrections.csv has `relabeled` and `dropped`, if any. source_sha256: of the raw archive;
    splits_sha256: of that and of which image is in which split; sha256: of each file beside the metadata.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    classes: list[str]
    image_size: int
    channels: int
    resize: Resize = "stretch"
    depth: int | None = None
    mean: list[float]
    std: list[float]
    counts: dict[Split, int]
    dropped: int = 0
    relabeled: int | None = None
    test_corrections: dict[str, int] | None = None
    source_sha256: str
    splits_sha256: str
    sha256: dict[str, str]

    def summary(self) -> str:
        """Return counts, shape and classes in one line."""
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        left_out = f", {self.dropped:,} left out (see dropped.json)" if self.dropped else ""
        shape = f"{self.image_size}x{self.image_size}x{self.channels}"
        return f"{counts} images of {shape}, {len(self.classes)} classes{left_out}"


@dataclass(frozen=True)
class PackedSplit:
    """One split: images (N, H, W, C) uint8, labels (N,) int64, ids (N names).

    columns: of the test split, N values each: the further columns of the user's CSV; `size` (pixels) and `aspect`
    (width / height) of the files, where these differ.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: list[str]
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


class Unaltered:
    """The verified files of some splits; `check` raises UserError if one of them has changed since.

    They are memory-mapped, so a file that was written to may have been read in both states, and is refused even if its
    bytes are as before. One that was replaced, or whose rights have changed, is hashed: nothing has read it meanwhile.
    """

    def __init__(self, folder: Path, splits: Sequence[Split]) -> None:
        known, begin = load_metadata(folder).sha256, tuple(f"{split}_" for split in splits)
        self.sha256 = {folder / name: sha256 for name, sha256 in known.items() if name.startswith(begin)}
        self.states = {path: self._state(path) for path in self.sha256}

    def check(self) -> None:
        """Compare size, times and inode and, where these leave a doubt, the bytes."""
        for path, state in self.states.items():
            now = self._state(path)
            if now == state:
                continue
            with reading("prepared data", "preprocess"):
                if now[:1] == state[:1] and now[1:3] != state[1:3]:
                    raise ValueError(f"{path}: written to while it was in use")
                verify_file(path, self.sha256[path])
            self.states[path] = now

    @staticmethod
    def _state(path: Path) -> tuple[int, ...]:
        try:
            status = path.stat()
        except OSError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def load_metadata(folder: Path) -> Metadata:
    """Read `metadata.json` of prepared data. Raises UserError if it is missing or altered."""
    path = folder / "metadata.json"
    with reading("prepared data", "preprocess"):
        content = read_sealed(path)
        try:
            return Metadata.model_validate(content)
        except ValidationError:
            raise ValueError(f"{path}: written by another version") from None


def load_split(folder: Path, split: Split) -> PackedSplit:
    """Verify the files of one split and read them, images memory-mapped. Raises UserError as `load_metadata` does."""
    sha256 = load_metadata(folder).sha256
    parts = ("images.npy", "labels.npy", "ids.json", "columns.json")
    images, labels, ids, columns = (folder / f"{split}_{part}" for part in parts)
    with reading("prepared data", "preprocess"):
        for path in (images, labels, ids, *[columns] * (columns.name in sha256)):
            verify_file(path, sha256[path.name])
        pixels = np.load(images, mmap_mode="r", allow_pickle=False)
        known = json.loads(columns.read_bytes()) if columns.name in sha256 else {}
        return PackedSplit(pixels, np.load(labels, allow_pickle=False), json.loads(ids.read_bytes()), known)
