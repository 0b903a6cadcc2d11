"""From a raw archive to packed arrays: split, decode, convert, resize; integer statistics, no torch.

Several processes share the work and write disjoint rows, so the result does not depend on their number.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np

from reprise.data.formats.packed import SPLITS, Metadata, Resize, Split
from reprise.data.formats.raw import UNSPLIT, RawArchive, shown
from reprise.data.prepare.checks import Findings, check
from reprise.data.prepare.packing import all_grey, channel_statistics, leave_out, pack
from reprise.data.prepare.splits import assign_splits, identify
from reprise.data.prepare.workers import spread
from reprise.runtime.checksums import file_sha256, naming, write_sealed
from reprise.runtime.errors import UserError

LISTED = 50  # bad images named in an error; the rest are counted
MANY_IMAGES, MANY_BYTES = 10_000, 32 << 20  # below both, one process is done before others have started


def preprocess(
    raw: Path,
    destination: Path,
    image_size: int,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    workers: int = 1,
    *,
    channels: Literal["auto", 1, 3] = "auto",
    resize: Resize = "stretch",
    on_corrupt: Literal["error", "drop"] = "error",
    on_leak: Literal["error", "warn", "drop"] = "warn",
    group: str | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> tuple[Metadata, Findings]:
    """Decode, convert, resize, split and check the images of a raw folder; write packed arrays into the new folder.

    channels, auto: grey stays one channel where all images are grey, otherwise all become RGB. on_corrupt, drop: images
    that cannot be read are left out and listed in `dropped.json`; nothing else moves. on_leak, drop: so are images of
    train and val that a later split has too, equal or similar; warn: a line on stderr, as for all that is odd. group,
    folds, fold: see `assign_splits`. workers: processes, at most; the result does not depend on them. Raises UserError
    for fewer than two classes, a class with fewer images than splits, a class that only the test split has, for images
    that cannot be read (all of them listed), for a leak with on_leak, error, for an altered archive, and when memory
    runs out.
    """
    archive = RawArchive(raw)
    class_names = [class_name for _, class_name in archive.placed()]
    given = [split for split, _ in archive.placed()]
    classes = archive.source.classes
    if len(classes) < 2:
        found = ", ".join(map(shown, classes))
        raise UserError(f"the data have one class ({found}); classification needs at least 2, each in its own folder")
    ids = [member.removeprefix(f"{UNSPLIT}/") for member in archive.members]
    identities = identify(archive, group)
    splits = assign_splits(identities, class_names, given, val_fraction, test_fraction, seed, folds, fold)
    rows_of = {split: [row for row, name in enumerate(splits) if name == split] for split in SPLITS}

    destination.mkdir()
    many = len(ids) >= MANY_IMAGES or sum(extent.size for extent in archive.members.values()) >= MANY_BYTES
    with spread(workers if many else 1) as map_tasks:
        depth = channels if channels != "auto" else 1 if all_grey(archive, map_tasks) else 3
        shape = (image_size, image_size, depth)
        sums, seen, bad = pack(archive, rows_of, shape, resize, destination, map_tasks)
    if bad and on_corrupt == "error":
        raise UserError(_listed(bad, ids))

    label_of = {name: label for label, name in enumerate(classes)}
    all_labels = np.array([label_of[name] for name in class_names])
    placed = np.array([SPLITS.index(split) for split in splits])
    placed[list(bad)] = -1
    findings = check(archive, ids, placed, all_labels, seen)
    if on_leak == "error":
        findings.refuse_leaks()
    dropped = findings.dropped  # row in the archive: reason
    dropped |= bad
    if on_leak == "drop":
        dropped |= {row: findings.relation(row, twin) for row, twin in findings.leaks().items()}
    rows_of, sums = leave_out(destination, rows_of, shape, dropped, sums)
    _check_training(rows_of, class_names, classes, dropped)

    for split, rows in rows_of.items():
        labels = BytesIO()  # not straight into the file: numpy's error on a full disk has no number
        np.save(labels, all_labels[rows].astype(np.int64))
        _write(destination / f"{split}_labels.npy", labels.getvalue())
        _write(destination / f"{split}_ids.json", _json([ids[row] for row in rows]))
    facts = [{"id": ids[row], "split": splits[row], "reason": dropped[row]} for row in sorted(dropped)]
    _write(destination / "dropped.json", _json(facts))

    mean, std = channel_statistics(sums, len(rows_of["train"]) * image_size**2)
    placement = [f"{split} {ids[row]}" for row, split in enumerate(splits) if row not in dropped]
    metadata = Metadata(
        data=archive.source.name,
        classes=classes,
        image_size=image_size,
        channels=depth,
        resize=resize,
        mean=mean,
        std=std,
        counts={split: len(rows) for split, rows in rows_of.items()},
        dropped=len(dropped),
        source_sha256=archive.source.sha256,
        splits_sha256=hashlib.sha256(json.dumps([archive.source.sha256, *placement]).encode()).hexdigest(),
        sha256={path.name: file_sha256(path) for path in sorted(destination.iterdir())},
    )
    write_sealed(destination / "metadata.json", metadata.model_dump())
    for warning in findings.warnings():
        print(f"preprocess: warning: {warning}", file=sys.stderr)
    return metadata, findings


def _check_training(
    rows_of: dict[Split, list[int]], class_names: list[str], classes: list[str], dropped: Mapping[int, str]
) -> None:
    """Refuse data of which the dropped images were all that a class had to train on, or all of a split."""
    trained = {class_names[row] for row in rows_of["train"]}
    lost = [f"class {name} in train" for name in classes if name not in trained]
    lost += [split for split, rows in rows_of.items() if not rows]
    if dropped and lost:
        raise UserError(f"with {len(dropped):,} images dropped, none is left of {', '.join(lost)}; add images")


def _listed(bad: Mapping[int, str], ids: list[str]) -> str:
    """Return the refusal of bad images, the first of them by name."""
    more = f"\n  and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
    listed = "\n  ".join([f"{shown(ids[row])}: {reason}" for row, reason in bad.items()][:LISTED])
    noun = "image" if len(bad) == 1 else "images"
    return f"{len(bad)} {noun} cannot be read; replace or remove them, or set data.on_corrupt: drop:\n  {listed}{more}"


def _json(values: list[str] | list[dict[str, str]]) -> bytes:
    return (json.dumps(values, indent=0) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with naming(path):
        path.write_bytes(content)
