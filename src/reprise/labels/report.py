"""runs/labels: the images whose labels are doubtful as a ranked CSV, how labels are mixed up, and contact sheets."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from reprise.comparison.flips import contact_sheet
from reprise.data.formats.raw import RawArchive, image_id
from reprise.data.prepare.decode import decode
from reprise.labels.run import Examined
from reprise.repo.project import Project
from reprise.repo.revisions import RAW
from reprise.runtime.errors import UserError, listed
from reprise.runtime.markup import table, text
from reprise.runtime.tables import read_csv, write_csv

HEADER = ["id", "label", "suggested", "score", "why", "sha256", "near"]
REASONS = "other class", "outlier", "nothing like any class", "near-duplicate with another label"
NEAR = 6  # images that are answered most alike
SHOWN, ROWS = 48, 50  # images on a sheet, rows of a table on the page


class Doubt(NamedTuple):
    """One image: its label, the class that is suggested or "", the score (see `Scores`), why, the file's SHA-256.

    near: [[id, label], ...] as JSON, of the images that were answered most alike, by distance of log probabilities.
    """

    id: str
    label: str
    suggested: str
    score: str
    why: str
    sha256: str
    near: str


def doubts(found: Examined, decided: Collection[str]) -> list[Doubt]:
    """Return the images whose labels are doubtful, the worst score first; decided: ids of those to leave out."""
    scores, classes, ids = found.scores, found.metadata.classes, list(map(image_id, found.members))
    alike, rows = cKDTree(logged := np.log(scores.probabilities + 1e-9)), []
    for row in sorted(range(len(ids)), key=scores.score.__getitem__):
        reasons = {
            "other class": scores.suspicious[row],
            "outlier": found.outlying[row],
            "nothing like any class": scores.unlike[row],
            f"near-duplicate with another label: {found.twins.get(ids[row])}": ids[row] in found.twins,
        }
        if any(reasons.values()) and ids[row] not in decided:
            label, other = classes[scores.labels[row]], classes[scores.counted[row]] * int(scores.suspicious[row])
            why = "; ".join(reason for reason, applies in reasons.items() if applies)
            sha256 = hashlib.sha256(found.archive.read(found.members[row])).hexdigest()
            nearest = np.atleast_1d(alike.query(logged[row], min(NEAR + 1, len(ids)))[1]).tolist()
            near = [[ids[each], classes[scores.labels[each]]] for each in nearest if each != row][:NEAR]
            score = f"{scores.score[row]:.6g}"
            rows.append(Doubt(ids[row], label, other, score, why, sha256, json.dumps(near, ensure_ascii=False)))
    return rows


def write_report(found: Examined, rows: list[Doubt], folder: Path) -> str:
    """Write labels.csv, noise.csv, their page labels.md and its pictures into a new folder; return a summary."""
    folder.mkdir()
    write_csv(folder / "labels.csv", HEADER, rows)
    kept, classes, images = found.metadata, found.metadata.classes, len(found.members)
    names = ["label", "really", "images", "share", "low", "high"]
    noise = [[classes[a], classes[b], *(f"{each:.4g}" for each in more)] for a, b, *more in found.scores.mixed()]
    write_csv(folder / "noise.csv", names, noise)
    member_of, sheets = {image_id(member): member for member in found.members}, []
    for reason in REASONS:
        some = [row for row in rows if reason in row.why.partition(": ")[0].split("; ")]  # an id follows, with anything
        tiles = []
        for row in some[:SHOWN]:
            encoded = found.archive.read(member_of[row.id])
            pixels = decode(encoded, kept.image_size, kept.channels, kept.resize, kept.depth or 16).pixels
            tiles.append((pixels, row.label, row.suggested or row.why))
        if tiles:
            name = f"{reason.replace(' ', '-')}.svg"
            (folder / name).write_bytes(contact_sheet(tiles))
            sheets.append(f"{len(some):,} {reason}, the first:\n\n![{reason}: label, and what is suggested]({name})")
    other, unseen = sum(bool(row.suggested) for row in rows), len(found.archive.members) - images
    summary = f"{images:,} images, {found.scores.agreed:.1%} as the models say: {other:,} seem to be of another class, "
    more = f"; {unseen:,} more were left out, or every model has trained on them" * bool(unseen)
    summary += f"{len(rows) - other:,} are odd otherwise{more}"
    page = [
        f"# Labels\n\n{summary}",
        *sheets,
        table(HEADER[:5], [list(map(text, row[:5])) for row in rows[:ROWS]]),
        "Estimated, how many images with a label are really of another class; share with its 95 % interval:",
        table(names, [list(map(text, row)) for row in noise[:ROWS]]),
    ]
    (folder / "labels.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"images": images, "agreed": found.scores.agreed}) + "\n")
    return summary


def read_doubts(path: Path) -> list[Doubt]:
    """Read labels.csv. Raises UserError where it is missing, or is none that this version has written."""
    header, *rows = read_csv(path) or [[]]
    if header != HEADER or any(len(row) != len(header) for row in rows):
        raise UserError(f"{path}: not there, or not written by this version; `reprise labels` writes it")
    return [Doubt(*row) for row in rows]


def read_own_doubts(project: Project) -> tuple[list[Doubt], RawArchive]:
    """Read runs/labels/labels.csv; return it with the raw data.

    Raises UserError as `read_doubts` does, and for a list of other data, or of images whose content was another one.
    """
    rows, archive = read_doubts(project.root / "runs/labels/labels.csv"), RawArchive(project.root / RAW)
    members = {image_id(member): member for member in archive.members}
    read = {row.id: hashlib.sha256(archive.read(members[row.id])).hexdigest() for row in rows if row.id in members}
    if other := [row.id for row in rows if read.get(row.id) != row.sha256]:
        anew = "`dvc repro`, then `reprise labels`"
        raise UserError(f"runs/labels is of other data than data/raw: {listed(other)}; {anew}")
    return rows, archive


def read_agreed(path: Path) -> float:
    """Read the share of labels that the models agree with from the summary.json that `write_report` writes, too.

    Raises UserError if it is missing.
    """
    if not path.exists():
        raise UserError(f"{path}: not there; `reprise labels` writes it")
    return float(json.loads(path.read_bytes())["agreed"])
