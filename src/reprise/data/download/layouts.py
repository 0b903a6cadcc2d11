"""Split and class of each image of a tree, by its names: class folders, split folders above or below them, or a CSV.

A tree is a list of relative names with `/` and a function that reads one of them; whether it is a folder or an archive
plays no part. What a file of an unknown suffix is follows from its first bytes.
"""

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import PurePosixPath
from typing import NamedTuple

from reprise.data.download.csv import Row, read_table
from reprise.data.download.split_names import plain_split, split_folders
from reprise.data.formats.images import HEAD, IMAGE_SUFFIXES, OTHER_IMAGES, READ, kind_of
from reprise.data.formats.raw import UNSPLIT, shown
from reprise.runtime.errors import UserError, first, listed

# images that are not read; a camera's raw file holds a preview that looks like a TIFF
OTHER_SUFFIXES = {".heic", ".heif", ".svg", ".jxl", ".jp2", ".raw", ".cr2", ".nef", ".arw", ".dng", ".psd", ".dcm"}
# texts beside images, and copies that programs leave behind: left out without a look into them
NO_IMAGE_SUFFIXES = {".txt", ".csv", ".json", ".xml", ".md", ".html", ".yaml", ".bak", ".orig", ".tmp", ".part"}
IMAGE = "image"  # the kind of what is read
NAMED = 8  # kinds of what is left out, in a message
LEFTOVERS = {  # of systems, in lower case; hidden files are left out as well
    *("__macosx", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin"),
    *("recycler", "system volume information", "lost+found", "network trash folder", "temporary items"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"),
}


class Placed(NamedTuple):
    """One image: its name in the tree; its split, class and file name in the archive; further columns of a CSV."""

    name: str
    split: str
    class_name: str
    file_name: str
    columns: dict[str, str]


def lay_out(names: Iterable[str], read: Callable[[str, int], bytes], tree: str) -> tuple[list[Placed], list[str]]:
    """Place the images of a tree; return them, sorted by name, and a line for each kind of thing that is left out.

    read: returns the first so many bytes of a file, -1 for all. tree: its name in errors. Hidden files and LEFTOVERS
    are ignored, and so are folders around everything. Raises UserError for a tree without images, in none of the
    layouts, or that would lose images silently.
    """
    visible = [name for name in names if not is_hidden(name)]
    kinds = {name: _kind(name, read) for name in visible}
    if unread := sorted(name for name in visible if kinds[name] in OTHER_IMAGES or kinds[name] in OTHER_SUFFIXES):
        named = first([f"{_at(tree, name)} ({kinds[name]})" for name in unread], NAMED)
        raise UserError(f"images of kinds that are not read: {named}; convert them, e.g. to JPEG, or remove them")
    images = sorted((name for name in visible if kinds[name] == IMAGE), key=lambda name: name.split("/"))
    if not images:
        packed = next((shown(name) for name in visible if kinds[name] == "archive"), "")
        inner = f", but an archive, {packed}: unpack the outer one and set data.path to the inner one"
        instead = inner if packed else "; look whether it is the right one"
        raise UserError(f"{tree} holds no images ({', '.join(READ)}){instead}")
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
        placed = _by_table(read_table(read(tables[0], -1), _at(tree, tables[0])), below, top)
    else:
        placed = _by_folders(below, _at(tree, top.rstrip("/")) if top else tree)
    _check_classes(placed, tree)
    notes = [f"the CSV of {tree} leaves {len(images) - len(placed):,} images out"] if len(placed) < len(images) else []
    if not tables and placed[0].split == UNSPLIT:
        notes += _alike(placed, tree)
    if left_out := [name for name in visible if kinds[name] != IMAGE and name not in tables]:
        notes.append(f"no images, left out of {tree}: {_counted(left_out)}")
    return placed, notes


def find_images(names: Iterable[str], read: Callable[[str, int], bytes], tree: str) -> list[str]:
    """Return the names of a tree's images, those of kinds that are not read too, sorted folder by folder.

    As in `lay_out`, hidden files and LEFTOVERS are left out. Raises UserError if there are none.
    """
    known = {IMAGE, *OTHER_IMAGES, *OTHER_SUFFIXES}
    if not (images := [name for name in names if not is_hidden(name) and _kind(name, read) in known]):
        raise UserError(f"{tree} holds no images ({', '.join(READ)}); look whether it is the right one")
    return sorted(images, key=lambda name: name.split("/"))


def _kind(name: str, read: Callable[[str, int], bytes]) -> str:
    """Return IMAGE, the kind of what is not read, or "" for what is no image or cannot be opened."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return IMAGE
    kind = ""
    if suffix not in NO_IMAGE_SUFFIXES and not suffix.endswith(("~", "_original")):
        with suppress(OSError):
            kind = kind_of(read(name, HEAD))
    if suffix in OTHER_SUFFIXES and (kind == "TIFF" or kind not in READ):
        return suffix
    return IMAGE if kind in READ else kind


def _counted(names: list[str]) -> str:
    """Return how many files there are of each suffix, the most frequent first, each with an example."""
    of_suffix = defaultdict(list)
    for name in names:
        of_suffix[PurePosixPath(name).suffix.lower() or "without suffix"].append(name)
    kinds = sorted(of_suffix.items(), key=lambda item: (-len(item[1]), item[0]))
    return first([f"{len(same):,} {shown(suffix)} ({shown(min(same))})" for suffix, same in kinds], NAMED)


def expected(tree: str) -> str:
    """Return the layouts that are understood, in words."""
    folders = ", ".join(f"{tree}/{each}/IMAGE" for each in ("CLASS", "train|val|test/CLASS", "CLASS/train|val|test"))
    return f"expected {folders}, or images and one CSV with the columns filename,label[,split]"


def is_hidden(name: str) -> bool:
    """Return whether a name is, or lies in, what systems put beside the data: hidden files and folders, LEFTOVERS."""
    return any(part.startswith(".") or part.lower() in LEFTOVERS for part in name.split("/"))


def is_suffix(name: str, suffixes: Collection[str]) -> bool:
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
        holds_classes = plain_split(folder) or any(name.count("/") == top.count("/") + 1 for name in images)
        if holds_classes and deeper not in with_table:
            break
        top = deeper
    return top


def _by_folders(files: dict[str, str], tree: str) -> list[Placed]:
    """Place `[SPLIT/]CLASS/...` and `CLASS/SPLIT/IMAGE`. files: name below the top -> name in the tree."""
    parts_of = {name: name.split("/") for name in files}
    top = {parts[0] for parts in parts_of.values() if len(parts) > 1}
    plain = {name: split for name in top if (split := plain_split(name))}
    deep = any(len(parts) > 2 and parts[0] in plain for parts in parts_of.values())
    splits = split_folders(top) or (plain if deep else {})
    way_out = f"{expected(tree)}; if {' or '.join(sorted(splits))} is a class, rename it" if splits else expected(tree)
    if splits:
        counts = Counter(splits.values())
        if odd := top - set(splits):
            beside = f"{_at(tree, min(odd))} lies beside {_at(tree, min(splits))}, a split: move it away"
            raise UserError(f"{beside}; {way_out}")
        if same := sorted(name for name in splits if counts[splits[name]] > 1):
            raise UserError(f"{tree}: the folders {' and '.join(same)} are the same split; merge them")
        if "train" not in counts:
            raise UserError(f"{tree} has split folders but no train folder; {way_out}")
    elif splits := split_folders(part for parts in parts_of.values() for part in parts[1:-1]):
        for name, parts in parts_of.items():
            if len(parts) != 3 or parts[1] not in splits:
                inner = " and ".join(sorted(splits))
                raise UserError(f"{_at(tree, name)}: {inner} are splits below classes, but not here; {expected(tree)}")
            parts[:2] = parts[1::-1]
    placed = []
    for name, parts in parts_of.items():
        below = parts[1 + (parts[:1] == parts[1:2]) :] if splits else parts  # seg_train/seg_train/CLASS
        if len(below) < 2:
            raise UserError(f"{_at(tree, name)}: an image outside a class folder; {way_out}")
        split = splits[parts[0]] if splits else UNSPLIT
        placed.append(Placed(files[name], split, below[0], "/".join(below[1:]), {}))
    return placed


def _check_classes(placed: list[Placed], tree: str) -> None:
    """Raise UserError for classes that differ only in how they are written, or that have no training images."""
    spellings: dict[str, str] = {}
    splits_of: dict[str, set[str]] = defaultdict(set)
    for image in placed:
        splits_of[image.class_name].add(image.split)
    for name in sorted(splits_of):
        plain = " ".join(_composed(_composed(name).casefold()).split())
        if number := re.fullmatch(r"0*([0-9]+)(\.0*)?", plain):  # 1, 1.0, 01
            plain = number[1]
        other = spellings.setdefault(plain, name)
        if other != name:
            show = ascii if _composed(other) == _composed(name) else shown  # where both look alike
            both = f"{tree}: the classes {show(other)} and {show(name)}"
            raise UserError(f"{both} differ only in case, accents, blanks, or as 1 and 1.0; rename one")
        if not splits_of[name] & {"train", UNSPLIT}:
            split = min(splits_of[name])
            raise UserError(f"{tree}: class {shown(name)} is in {split} but not in train; add some there or remove it")


def _alike(placed: list[Placed], tree: str) -> list[str]:
    """Return a line on classes that may be splits, because all of them have the same folders."""
    below: dict[str, set[str]] = defaultdict(set)
    for image in placed:
        below[image.class_name].add(image.file_name.rpartition("/")[0])
    folders = sorted(next(iter(below.values())))
    if len(folders) < 2 or any(below[name] != set(folders) for name in below):
        return []
    same = f"the classes of {tree}, {listed(sorted(below))}, have the same folders, {listed(folders)}"
    return [f"{same}; if these are the classes and those splits, call those train, val and test"]


def _by_table(rows: list[Row], files: dict[str, str], top: str) -> list[Placed]:
    """Place the images that a CSV names: by their path from the CSV, or by their file name where that is unique.

    Paths may have backslashes, folders above the CSV if all share them, and no image suffix if none has one. Without a
    column for it, the split is that of the folder, if all images lie in split folders.
    """
    paths = [row.file if row.file in files else _from_csv(row.file).removeprefix(top) for row in rows]
    bare = not any(is_suffix(path, IMAGE_SUFFIXES) for path in paths)
    by_path, by_name = defaultdict(list), defaultdict(list)
    for name in files:
        path = _composed(posixpath.splitext(name)[0] if bare and is_suffix(name, IMAGE_SUFFIXES) else name)
        by_path[path].append(name)
        by_name[posixpath.basename(path)].append(name)
    folders = [f"{part}/" for part in posixpath.commonpath([posixpath.dirname(path) for path in paths]).split("/")]
    above = ("".join(folders[:depth]) for depth in range(len(folders) + 1))
    shared = next((prefix for prefix in above if _composed(paths[0].removeprefix(prefix)) in by_path), "")
    row_of: dict[str, Row] = {}
    for row, path in zip(rows, paths, strict=True):
        path = path.removeprefix(shared)
        plain = _composed(path)
        found = [path] if path in files else by_path.get(plain) or by_name.get(plain, [])
        if len(found) != 1:
            what = f"names {len(found)} images; write the path" if found else "is not among the images; correct it"
            raise UserError(f"{row.at}: {shown(row.file)} {what}")
        if found[0] in row_of:
            raise UserError(f"{row.at}: {shown(row.file)} stands there already ({row_of[found[0]].at}); remove one")
        row_of[found[0]] = row
    folders_of = {name: name.split("/")[:-1] for name in row_of}
    splits = split_folders(chain(*folders_of.values())) if rows[0].split == UNSPLIT else {}
    placed = []
    for name, row in ((name, row_of[name]) for name in files if name in row_of):
        own = {splits[folder] for folder in folders_of[name] if folder in splits} or {row.split}
        if len(own) > 1 or (splits and UNSPLIT in own):
            where = f"{shown(row.file)} lies in none, or two, of the split folders {' and '.join(sorted(splits))}"
            raise UserError(f"{row.at}: {where}; add a column split")
        placed.append(Placed(files[name], own.pop(), row.class_name, name, row.columns))
    return placed


def _from_csv(path: str) -> str:
    """Return a path that a CSV holds without drive, leading slash and `.`, with slashes for backslashes."""
    return posixpath.normpath(re.sub(r"^([A-Za-z]:)?/+", "", path.replace("\\", "/")))
