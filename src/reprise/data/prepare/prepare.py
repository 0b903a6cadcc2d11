"""Preparation: from a raw archive to packed arrays, split, decoded, converted, resized and checked, without torch.

Several processes share the work and write disjoint rows, so the result does not depend on their number.
"""

import hashlib
import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np

from reprise.data.formats.packed import SPLITS, Metadata, Split
from reprise.data.formats.raw import RawArchive, image_id, shown
from reprise.data.prepare.checks import Findings, check
from reprise.data.prepare.corrections import apply_corrections
from reprise.data.prepare.packing import all_gray, channel_statistics, pack, take_out
from reprise.data.prepare.splits import assign_splits, identify, missed_shares
from reprise.data.prepare.workers import spread
from reprise.params.schema import PrepareParams
from reprise.runtime.checksums import file_sha256, naming, write_sealed
from reprise.runtime.errors import UserError, say

MANY_IMAGES, MANY_BYTES = 10_000, 32 << 20  # below both, one process is done before others have started


def preprocess(
    raw: Path, destination: Path, params: PrepareParams, workers: int = 1, corrections: Path | None = None
) -> tuple[Metadata, Findings]:
    """Decode, convert, resize, split and check the images of a raw folder; write packed arrays into the new folder.

    Dropped images are listed in `dropped.json`; warnings go to stderr. workers: the most processes to use; the result
    does not depend on them. corrections: a file of them, see `apply_corrections`; splits are drawn by the labels of the
    raw data, so that no correction moves another image. Raises UserError for fewer than two classes, a class with fewer
    images than splits, a class that only the test split has, for unreadable images (all of them listed) and leaks, as
    `params` say, for images of 16 bits with small values, for an altered archive, and when memory runs out.
    """
    archive = RawArchive(raw)
    given, class_names = archive.placed()
    classes = archive.source.classes
    if len(classes) < 2:
        raise UserError(f"the data have one class ({shown(classes[0])}); at least 2 are needed, each in its own folder")
    ids = list(map(image_id, archive.members))
    splits = assign_splits(identify(archive, params.group), class_names, given, params)
    corrected = apply_corrections(corrections, archive)
    rows_of = {split: [row for row, name in enumerate(splits) if name == split] for split in SPLITS}

    destination.mkdir()
    with spread(workers if _is_many(archive) else 1) as map_tasks:
        depth = params.channels if params.channels != "auto" else 1 if all_gray(archive, map_tasks) else 3
        shape = (params.image_size, params.image_size, depth)
        sums, seen, wrong = pack(archive, rows_of, shape, params, destination, map_tasks)
    findings = check(splits, corrected, seen, wrong, params)
    findings.missed.extend(missed_shares(splits, class_names, given, params))
    if params.depth == "auto":
        findings.check_depth()
    findings.treat_leaks(params.on_leak)
    rows_of, sums = take_out(destination, rows_of, shape, findings.dropped, sums)
    _check_training(rows_of, findings)
    _write_lists(destination, rows_of, findings, splits)
    mean, std = channel_statistics(sums, len(rows_of["train"]) * params.image_size**2)
    gone = findings.dropped.keys() - corrected.dropped.keys()  # a correction moves no image
    placement = [f"{split} {ids[row]}" for row, split in enumerate(splits) if row not in gone]
    metadata = Metadata(
        data=archive.source.name,
        classes=classes,
        image_size=params.image_size,
        channels=depth,
        resize=params.resize,
        depth=None if params.depth == "auto" else params.depth,
        mean=mean,
        std=std,
        counts={split: len(rows) for split, rows in rows_of.items()},
        dropped=len(findings.dropped),
        relabeled=len(corrected.relabeled.keys() - findings.dropped.keys()) or None,
        test_corrections=findings.corrections["test"] if any(findings.corrections["test"].values()) else None,
        source_sha256=archive.source.sha256,
        splits_sha256=hashlib.sha256(json.dumps([archive.source.sha256, *placement]).encode()).hexdigest(),
        sha256={path.name: file_sha256(path) for path in sorted(destination.iterdir())},
    )
    write_sealed(destination / "metadata.json", metadata.model_dump(exclude_none=True))
    for warning in findings.warnings():
        say(f"preprocess: warning: {warning}", file=sys.stderr)
    return metadata, findings


def _is_many(archive: RawArchive) -> bool:
    """Return whether several processes are worth their start."""
    sizes = [extent.size for extent in archive.members.values()]
    return len(sizes) >= MANY_IMAGES or sum(sizes) >= MANY_BYTES


def _check_training(rows_of: dict[Split, list[int]], findings: Findings) -> None:
    """Raise UserError if the dropped and relabeled images were all those of a class in train, or of a split."""
    changed, class_names = len(findings.dropped) + len(findings.corrected.relabeled), findings.corrected.class_names
    trained = {class_names[row] for row in rows_of["train"]}
    lost = [f"class {name} in train" for name in findings.archive.source.classes if name not in trained]
    lost += [split for split, rows in rows_of.items() if not rows]
    if changed and lost:
        raise UserError(f"with {changed:,} images dropped or relabeled, none is left of {', '.join(lost)}; add images")


def _write_lists(destination: Path, rows_of: dict[Split, list[int]], findings: Findings, splits: list[Split]) -> None:
    """Write labels, ids and columns, and what was dropped; splits: of every image, as assigned."""
    ids = findings.ids
    for split, rows in rows_of.items():
        labels, path = BytesIO(), destination / f"{split}_labels.npy"
        np.save(labels, findings.labels[rows].astype(np.int64))  # into a full disk, numpy's error has no number
        with naming(path):
            path.write_bytes(labels.getvalue())
        _write_json(destination / f"{split}_ids.json", [ids[row] for row in rows])
    dropped = [{"id": ids[row], "split": splits[row], "reason": why} for row, why in sorted(findings.dropped.items())]
    _write_json(destination / "dropped.json", dropped)
    if columns := _columns(findings, rows_of["test"]):
        _write_json(destination / "test_columns.json", columns)


def _columns(findings: Findings, rows: list[int]) -> dict[str, list[str]]:
    """Return what is known of these images besides, see `PackedSplit`."""
    archive, (width, height) = findings.archive, findings.sizes[rows].T
    members, differ = list(archive.members), len(np.unique(findings.sizes[rows], axis=0)) > 1
    measured = {"size": width * height, "aspect": (width / height).round(4)} if differ else {}
    columns = {name: [archive.columns[members[row]][name] for row in rows] for name in archive.source.columns}
    return {name: list(map(str, values.tolist())) for name, values in measured.items()} | columns


def _write_json(path: Path, values: list[str] | list[dict[str, str]] | dict[str, list[str]]) -> None:
    with naming(path):
        path.write_text(json.dumps(values, indent=0) + "\n", encoding="utf-8")
