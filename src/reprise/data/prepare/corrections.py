"""data/corrections.csv: the labels that people have corrected, kept in Git; its reader and its writer.

A line names an image by its id and the SHA-256 of its file, with its label, or `drop` to leave it out, by whom and why.
The label may be the one that the image has already: somebody has looked, and it is right.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reprise.data.formats.raw import RawArchive, image_id, read_images, shown
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError, first, listed, nearest
from reprise.runtime.tables import read_csv, write_csv

CORRECTIONS = "data/corrections.csv"
HEADER = ["id", "sha256", "label", "by", "why"]
DROP = "drop"


class Correction(NamedTuple):
    """One line. label: the name of a class, or DROP."""

    id: str
    sha256: str
    label: str
    by: str = ""
    why: str = ""


@dataclass(frozen=True)
class Corrected:
    """What the corrections do to an archive of N images.

    class_names: N, corrected; relabeled: {row: class name before}; dropped: {row: reason}; gone: ids of corrected
    images that the archive has no longer.
    """

    archive: RawArchive
    class_names: list[str]
    relabeled: dict[int, str]
    dropped: dict[int, str]
    gone: list[str]

    def counts(self, splits: Sequence[str]) -> dict[str, Any]:
        """Return the numbers of relabeled, dropped and gone images and, under `test`, those of the test split.

        splits: N names. What is corrected there changes what a model is measured by.
        """
        every = {name: len(vars(self)[name]) for name in ("relabeled", "dropped", "gone")}
        changed = {"relabeled": self.relabeled, "dropped": self.dropped}
        return every | {"test": {name: sum(splits[row] == "test" for row in rows) for name, rows in changed.items()}}


def read_corrections(path: Path, called: str = "") -> dict[str, Correction]:
    """Return the corrections of a file by image; called: its name in messages, if it is not its path.

    Raises UserError for a file that is missing or no such table and, with the line, for one that is incomplete, for
    two of one image, and for two labels of one content.
    """
    header, *rows = read_csv(path) or [[]]
    if header != HEADER:
        raise UserError(f"{path}: its first line has to be {','.join(HEADER)}; write it, or take the file from Git")
    found, of_content, called = dict[str, Correction](), dict[str, Correction](), called or str(path)
    for line, row in enumerate(rows, 2):
        if len(row) != len(HEADER) or not (row[0] and row[2] and re.fullmatch("[0-9a-f]{64}", row[1])):
            needs = f"an id, the SHA-256 of the image's file (`sha256sum`), a class or `{DROP}`, by whom, and why"
            raise UserError(f"{called}, line {line}: a line has 5 values, {needs}; the last two may be empty")
        one = Correction(*row)
        earlier = found.get(one.id) or of_content.get(one.sha256)
        if earlier and (earlier.id == one.id or len({earlier.label, one.label, DROP}) == 3):
            both = f"{shown(one.id)} is {one.label}, above {shown(earlier.id)}, the same image, is {earlier.label}"
            raise UserError(f"{called}, line {line}: {both}; keep one of the lines")
        found[one.id] = one
        of_content |= {one.sha256: one} if one.label != DROP else {}
    return found


@contextmanager
def replacing(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a private path that becomes the file of corrections as by `publishing`; the file's mode stays.

    Raises UserError for a link, which would be replaced by a file.
    """
    if path.is_symlink():
        raise UserError(f"{path}: a link, which is not written to; put the file itself there, into Git")
    with publishing(path, check=check) as (partial,):
        yield partial
        shutil.copymode(path, partial)


def add_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Add lines to a file, in the order of the ids; one of an image that has a line already takes its place.

    The file is whole at any moment, and a second process waits. Raises UserError as `read_corrections` and `replacing`
    do.
    """
    with replacing(path) as partial:
        every = read_corrections(path) | {each.id: each for each in corrections}
        write_csv(partial, HEADER, [every[name] for name in sorted(every)])
        read_corrections(partial, f"{path} as it would be")  # nothing is written that could not be read


def refuse_class_drop(path: Path, classes: Sequence[str]) -> None:
    """Raise UserError if DROP is one of the classes: a label in this file could mean both."""
    if DROP in classes:
        raise UserError(f"{path}: `{DROP}` is a class of these data, too; give that class another name")


def apply_corrections(path: Path | None, archive: RawArchive) -> Corrected:
    """Return what a file of corrections, or none, does to an archive.

    Raises UserError as `read_corrections` does, for a class that the data do not have, in the line of an image that is
    gone, too, but not where all are gone: these are lines of other data. Raises it for an image whose content has
    changed since it was corrected, and for one that has another name now: neither may keep its wrong label unnoticed.
    """
    corrections, class_names = read_corrections(path) if path else {}, archive.placed()[1]
    classes, names = archive.source.classes, list(map(image_id, archive.members))
    labels = {one.label for one in corrections.values()} if corrections.keys() & set(names) else set()
    if unknown := sorted(labels - {*classes, DROP}):
        known = listed(nearest(unknown[0], classes) or classes)
        raise UserError(f"{path}: no class {unknown[0]!r}; the data have {known}, and `{DROP}` leaves an image out")
    if path and DROP in labels:
        refuse_class_drop(path, classes)
    missing = sorted(corrections.keys() - set(names))
    gone = {corrections[name].sha256: name for name in missing}
    found, other = Corrected(archive, class_names, {}, {}, missing), []
    for row, (name, extent) in enumerate(zip(names, archive.members.values(), strict=True)):
        if not gone and name not in corrections:  # where one is gone, each could be the one, renamed
            continue
        digest, one = hashlib.sha256(next(read_images(archive.path, [extent]))).hexdigest(), corrections.get(name)
        if one and one.sha256 != digest:
            other.append(f"{shown(name)} has another content than the image that was corrected")
        elif digest in gone:
            other.append(f"{shown(gone[digest])} is called {shown(name)} now")
        elif one and one.label == DROP:
            found.dropped[row] = f"corrections.csv: {one.why or DROP}"
        elif one and one.label != class_names[row]:
            found.relabeled[row], class_names[row] = class_names[row], one.label
    if other:
        raise UserError(f"{path}: {first(other, 3, '; ')}; correct or remove these lines")
    return found
