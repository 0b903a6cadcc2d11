"""The data report: findings as a Markdown page, its HTML twin and pictures; equal findings give equal bytes.

The pictures are PNG without compression, whose bytes would depend on the version of zlib.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from reprise.data.formats.packed import SPLITS
from reprise.data.prepare.checks import Findings
from reprise.data.prepare.decode import decode
from reprise.data.prepare.duplicates import MOST_BITS
from reprise.runtime.checksums import naming
from reprise.runtime.markup import html, table, text
from reprise.runtime.tables import write_csv

SIDE, EXAMPLES = 64, 8  # pixels of a picture, pictures of a class
CLASSES, PAIRS, ACROSS = 200, 48, 12  # classes with pictures; pairs drawn, in a row of them
LISTED = 1000  # lines of one list


def write_report(findings: Findings, folder: Path) -> None:
    """Write `report.md`, `report.html`, their pictures, and `two_labels.csv` of images and twins, into a new folder."""
    folder.mkdir()
    leaks = list(findings.leaks().items())
    lines = [*_overview(findings), *_classes(findings, folder), *_duplicates(findings)]
    if leaks:
        drawn = leaks[:: -(-len(leaks) // PAIRS)]  # from all over the list
        strips = []  # each image above its twin
        for start in range(0, len(drawn), ACROSS):
            strips.append([_strip(findings, rows, ACROSS) for rows in zip(*drawn[start : start + ACROSS], strict=True)])
        _save(folder / "leaks.png", [np.concatenate(strip) for strip in strips])
        lines += ["", "## Images in two splits", "", "![each image above its twin](leaks.png)", ""]
        lines += _pairs(findings, leaks)
    for kind in ("equal", "similar"):
        if pairs := list(findings.two_labels(kind).items()):
            lines += ["", f"## {kind.capitalize()} images under two labels", "", *_pairs(findings, pairs)]
    two = {row: twin for kind in ("similar", "equal") for row, twin in findings.two_labels(kind).items()}
    write_csv(folder / "two_labels.csv", ["id", "twin"], [[findings.ids[row] for row in pair] for pair in two.items()])
    if findings.complaints:
        lines += ["", "## Read, but with a damaged part", ""]
        lines += _bullets([f"{text(findings.ids[row])}: {text(said)}" for row, said in findings.complaints.items()])
    if findings.dropped:
        lines += ["", "## Left out", "", "All of them are listed in `data/processed/dropped.json`.", ""]
        dropped = sorted(findings.dropped.items())
        lines += _bullets([f"{text(findings.ids[row])}: {text(reason)}" for row, reason in dropped])
    page = "\n".join(lines) + "\n"
    for path, content in ((folder / "report.md", page), (folder / "report.html", html(page))):
        with naming(path):
            path.write_text(content, encoding="utf-8")


def _overview(findings: Findings) -> list[str]:
    metrics = findings.metrics()
    images, dropped, hand = metrics["images"], metrics["dropped"], metrics["corrections"]
    side = "{0} {1[min]:,} to {1[max]:,}, median {1[median]:,}".format
    sizes = side("width", metrics["width"]), side("height", metrics["height"])
    return [
        f"# Data: {text(findings.archive.source.name)}",
        "",
        f"- {sum(images.values()):,} images in {metrics['classes']:,} classes: "
        + ", ".join(f"{count:,} {split}" for split, count in images.items()),
        f"- sizes in pixels: {'; '.join(sizes)}",
        f"- left out: {dropped['corrupt']:,} that cannot be read, {dropped['leaks']:,} that a later split has too",
        f"- by corrections.csv: {hand['relabeled']:,} labels changed, {hand['dropped']:,} images left out; "
        f"of the test split {hand['test']['relabeled']:,} and {hand['test']['dropped']:,}",
        *([f"- {findings.range()}"] if findings.peaks.any() else []),
        f"- imbalance: the largest class of train has {metrics['imbalance']:g} times the images of the smallest",
        *(f"- groups: {text(line)}" for line in findings.missed[:LISTED]),
        *(f"- no images of class {text(name)} in {split}" for name, split in findings.missing()[:LISTED]),
    ]


def _classes(findings: Findings, folder: Path) -> list[str]:
    """Write a strip of examples per class; return the table that shows them."""
    lines = ["", "## Classes", "", "| class | train | val | test | examples |", "| --- | ---: | ---: | ---: | --- |"]
    kept = findings.splits >= 0
    kept[list(findings.dropped)] = False
    for label, (name, counts) in enumerate(zip(findings.archive.source.classes, findings.counts(), strict=True)):
        picture = ""
        if label < CLASSES:
            (rows,) = np.nonzero(kept & (findings.labels == label))
            chosen = np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(np.int64))  # from all over the class
            picture = f"![examples](class_{label}.png)"
            _save(folder / f"class_{label}.png", [_strip(findings, rows[chosen], EXAMPLES)])
        lines.append(f"| {text(name)} | {counts[0]:,} | {counts[1]:,} | {counts[2]:,} | {picture} |")
    return lines


def _duplicates(findings: Findings) -> list[str]:
    equal, similar = findings.shared("equal"), findings.shared("similar")
    rows = []
    for key in equal:
        later, _, earlier = key.partition("_in_")
        images = f"of {later}, also in {earlier}" if earlier else f"of {later}, more than once"
        rows.append([images, f"{equal[key]:,}", f"{similar[key]:,}"])
    bits = findings.similar_bits
    similar_is = f"at most {bits} of 128 bits of the perceptual hash differ" if bits >= 0 else "not told"
    lines = ["", "## Duplicates", "", table(["images", "equal", "similar"], rows), ""]
    lines += ["Equal: the same pixels once prepared. Counted before any was left out.", f"Similar: {similar_is}."]
    if bits < MOST_BITS:
        lines.append(
            f"That is fewer than the usual {MOST_BITS}, because these images resemble one another, by nature (as "
            "digits do) or because most have a twin (as frames of a video do: `data.group` keeps those in one split)."
        )
    return lines


def _pairs(findings: Findings, pairs: Sequence[tuple[int, int]]) -> list[str]:
    ids, splits = findings.ids, findings.splits
    return _bullets([f"{text(ids[a])} ({SPLITS[splits[a]]}): {text(findings.relation(a, b))}" for a, b in pairs])


def _bullets(lines: Sequence[str]) -> list[str]:
    more = [f"- and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return [*(f"- {line}" for line in lines[:LISTED]), *more]


def _strip(findings: Findings, rows: Iterable[int], places: int) -> np.ndarray:
    """Return framed images side by side, uint8 (SIDE + 2, places * (SIDE + 4), 3).

    Small ones are enlarged by a whole number, so that every pixel is a square.
    """
    members = list(findings.archive.members)
    strip = np.full((SIDE + 2, places * (SIDE + 4), 3), 255, np.uint8)
    for place, row in enumerate(rows):
        side = min(SIDE, int(findings.sizes[row].max()))
        pixels = decode(findings.archive.read(members[row]), side, 3, "fit", findings.depth)[0]
        enlarged = pixels.repeat(SIDE // side, axis=0).repeat(SIDE // side, axis=1)
        framed = np.pad(enlarged, ((1, 1), (1, 1), (0, 0)), constant_values=200)  # gray
        strip[: len(framed), place * (SIDE + 4) :][:, : len(framed)] = framed
    return strip


def _save(path: Path, parts: Sequence[np.ndarray]) -> None:
    gap = np.full((6, parts[0].shape[1], 3), 255, np.uint8)
    pixels = np.concatenate([part for strip in parts for part in (strip, gap)][:-1])
    with naming(path):
        Image.fromarray(pixels).save(path, "PNG", compress_level=0)
