"""Split and class of each image of a tree, by its names alone: class folders, split folders above them, or a CSV.

A tree is a list of relative names with `/` and a function that reads one of them; whether it is a folder or an archive
plays no part.
"""

import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from reprise.data.download.csv import SPLIT_NAMES, Row, read_table
from reprise.data.formats.raw import UNSPLIT, shown
from reprise.runtime.errors import UserError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".pgm", ".ppm", ".jfif", ".avif"}
OTHER_IMAGES = {".heic", ".heif", ".svg", ".jxl", ".jp2", ".raw", ".cr2", ".nef", ".arw", ".dng", ".psd", ".dcm"}
ARCHIVE_SUFFIXES = {".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"}


class Placed(NamedTuple):
    """One image: its name in the tree; its split, class and file name in the archive; further columns of a CSV."""

    name: str
    split: str
    class_name: str
    file_name: str
    columns: dict[str, str]


def lay_out(names: Iterable[str], read: Callable[[str], bytes], tree: str) -> tuple[list[Placed], int]:
    """Place the images of a tree; return them, sorted by name, and how many images its CSV does not name.

    tree: its name in errors. Hidden files and `__MACOSX` are ignored, and so are folders around everything.
    Raises UserError for a tree without images, in none of the layouts, or that would lose images silently.
    """
    visible = [name for name in names if not is_hidden(name)]
    for name in visible:
        if is_suffix(name, OTHER_IMAGES):
            kind = PurePosixPath(name).suffix
            raise UserError(f"{_at(tree, name)}: {kind} is not read here; convert it, e.g. to JPEG, or remove it")
    images = sorted((name for name in visible if is_suffix(name, IMAGE_SUFFIXES)), key=lambda name: name.split("/"))
    if not images:
        packed = [shown(name) for name in visible if is_suffix(name, ARCHIVE_SUFFIXES)]
        instead = "; look whether it is the right one"
        if packed:
            instead = f", but an archive, {packed[0]}: unpack the outer one and set data.path to the inner one"
        raise UserError(f"{tree} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){instead}")
    for name in images:
        if name != name.encode(errors="ignore").decode():  # bytes that are no text come as lone surrogates
            raise UserError(f"{f'{tree}/{name}'!a}: the name is not UTF-8; rename it")
    tables = [name for name in visible if is_suffix(name, {".csv"})]
    top = _redundant_top(images, tables)
    tables = sorted(name for name in tables if "/" not in name.removeprefix(top))
    if len(tables) > 1:
        named = ", ".join(map(shown, tables))
        raise UserError(f"{tree} has {len(tables)} CSV files at the top ({named}); keep one, or none for class folders")
    below = {name.removeprefix(top): name for name in images}
    if tables:
        placed = _by_table(read_table(read(tables[0]), _at(tree, tables[0])), below, top)
    else:
        placed = _by_folders(below, _at(tree, top.rstrip("/")) if top else tree)
    _check_classes(placed, tree)
    return placed, len(images) - len(placed)


def expected(tree: str) -> str:
    """Return the layouts that are understood, in words."""
    return (
        f"expected {tree}/CLASS/IMAGE, {tree}/train|val|test/CLASS/IMAGE, or images and one CSV with the columns "
        "filename,label[,split]"
    )


def is_hidden(name: str) -> bool:
    """Return whether a name is, or lies in, what systems put beside the data: hidden files and folders, `__MACOSX`."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_suffix(name: str, suffixes: set[str]) -> bool:
    """Return whether a name ends in one of these suffixes, in any case."""
    return PurePosixPath(name).suffix.lower() in suffixes


def _at(tree: str, name: str) -> str:
    return shown(f"{tree}/{name}")


def _composed(name: str) -> str:
    """Return a name with accents composed with their letters; some systems write them apart."""
    return unicodedata.normalize("NFC", name)


def _redundant_top(images: list[str], tables: list[str]) -> str:
    """Return the folders around everything, each with its slash, down to the CSV, the splits or the classes."""
    with_table = {name[: name.rfind("/") + 1] for name in tables}
    top = ""
    while top not in with_table:
        folder = images[0].removeprefix(top).partition("/")[0]
        deeper = f"{top}{folder}/"
        if not all(name.startswith(deeper) for name in images):
            break
        holds_classes = folder.lower() in SPLIT_NAMES or any(name.count("/") == top.count("/") + 1 for name in images)
        if holds_classes and deeper not in with_table:
            break
        top = deeper
    return top


def _by_folders(files: dict[str, str], tree: str) -> list[Placed]:
    """Place `[SPLIT/]CLASS/...`. files: name below the top -> name in the tree."""
    parts_of = {name: name.split("/") for name in files}
    top = {parts[0] for parts in parts_of.values()}
    splits = {name: SPLIT_NAMES[name.lower()] for name in top if name.lower() in SPLIT_NAMES}
    deep = any(len(parts) > 2 for parts in parts_of.values() if parts[0] in splits)
    if deep:
        counts = Counter(splits.values())
        if odd := top - set(splits):
            raise UserError(f"{_at(tree, min(odd))} lies beside {_at(tree, min(splits))}, a split; {expected(tree)}")
        if same := sorted(name for name in splits if counts[splits[name]] > 1):
            raise UserError(f"{tree}: the folders {' and '.join(same)} are the same split; merge them")
        if "train" not in counts:
            raise UserError(f"{tree} has split folders but no train folder; {expected(tree)}")
    placed = []
    for name, parts in parts_of.items():
        split = splits[parts[0]] if deep else UNSPLIT
        class_name, *rest = parts[1:] if deep else parts
        if not rest:
            raise UserError(f"{_at(tree, name)}: an image outside a class folder; {expected(tree)}")
        placed.append(Placed(files[name], split, class_name, "/".join(rest), {}))
    return placed


def _check_classes(placed: list[Placed], tree: str) -> None:
    """Raise UserError for classes that differ only in case (one folder on some systems), or without training images."""
    spellings: dict[str, str] = {}
    splits_of: dict[str, set[str]] = defaultdict(set)
    for image in placed:
        splits_of[image.class_name].add(image.split)
    for name in sorted(splits_of):
        other = spellings.setdefault(_composed(name).casefold(), name)
        if other != name:
            raise UserError(f"{tree}: the classes {shown(other)} and {shown(name)} differ only in case; rename one")
        if not splits_of[name] & {"train", UNSPLIT}:
            split = min(splits_of[name])
            raise UserError(f"{tree}: class {shown(name)} is in {split} but not in train; add some there or remove it")


def _by_table(rows: list[Row], files: dict[str, str], top: str) -> list[Placed]:
    """Place the images that a CSV names: by their path from the CSV, or by their file name where that is unique."""
    by_name = defaultdict(list)
    for name in files:
        for spelling in {_composed(name), _composed(posixpath.basename(name))}:
            by_name[spelling].append(name)
    row_of: dict[str, Row] = {}
    for row in rows:
        path = posixpath.normpath(row.file).removeprefix(top)
        found = [path] if path in files else by_name.get(_composed(path), [])
        if len(found) != 1:
            what = f"names {len(found)} images; write the path" if found else "is not among the images; correct it"
            raise UserError(f"{row.at}: {shown(row.file)} {what}")
        if found[0] in row_of:
            raise UserError(f"{row.at}: {shown(row.file)} stands there already ({row_of[found[0]].at}); remove one")
        row_of[found[0]] = row
    return [
        Placed(tree_name, named.split, named.class_name, name, named.columns)
        for name, tree_name in files.items()
        if (named := row_of.get(name))
    ]
