"""Prepared data of any size without any images: packed arrays of noise, as `preprocess` would have written them."""

import json
from pathlib import Path

import numpy as np

from reprise.data.formats.packed import SPLITS, Metadata, Split
from reprise.runtime.checksums import file_sha256, write_sealed


def write_packed(folder: Path, train: int, image_size: int, channels: int, others: int = 256) -> Path:
    """Write a folder of prepared data in ten classes with `train` images to train on; return it.

    The arrays repeat one block of noise, so that a million images take no time to draw; each class has a brightness of
    its own, so that there is something to learn.
    """
    folder.mkdir(parents=True)
    counts: dict[Split, int] = {"train": train, "val": others, "test": others}
    shape = (image_size, image_size, channels)
    drawn = min(1000, max(counts.values()))
    block = np.random.default_rng(0).integers(0, 128, (drawn, *shape), dtype=np.uint8)
    block += (np.arange(drawn) % 10 * 12).astype(np.uint8)[:, None, None, None]
    for split in SPLITS:
        count = counts[split]
        images = np.lib.format.open_memmap(folder / f"{split}_images.npy", "w+", np.uint8, (count, *shape))
        for start in range(0, count, len(block)):
            images[start : start + len(block)] = block[: count - start]
        images.flush()
        np.save(folder / f"{split}_labels.npy", np.arange(count) % 10)
        (folder / f"{split}_ids.json").write_text(json.dumps([str(number) for number in range(count)]))
    (folder / "dropped.json").write_text("[]")
    sha256 = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    metadata = Metadata(
        data="synthetic",
        classes=[str(number) for number in range(10)],
        image_size=image_size,
        channels=channels,
        mean=[0.46] * channels,
        std=[0.2] * channels,
        counts=counts,
        source_sha256="",
        splits_sha256="",
        sha256=sha256,
    )
    write_sealed(folder / "metadata.json", metadata.model_dump(mode="json"))
    return folder
