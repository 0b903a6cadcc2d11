"""Reads the CSV beside a folder's images: `filename,label[,split]`, or a column of 0 and 1 a class; further columns."""

import csv
import io
from typing import NamedTuple

from reprise.data.download.split_names import plain_split
from reprise.data.formats.raw import UNSPLIT, shown
from reprise.runtime.errors import UserError, listed

# columns by their spellings in lower case, without spaces, `_` and `-`; of a role's two lists the second counts where
# no column is in the first: many tables have one of these that means something else
ROLES = {
    "file": (
        ["filename", "file", "filepath", "filepaths", "path", "image", "imagepath", "imagename", "img"],
        ["imageid", "id", "idcode", "filenames"],
    ),
    "label": (["label", "labels", "class", "classname", "target", "category"], ["classid", "targets"]),
    "split": (["split", "partition"], ["set", "subset", "dataset"]),
}
ZERO, ONE = {"0", "0.0", "false"}, {"1", "1.0", "true"}  # in lower case


class Row(NamedTuple):
    """One line of a CSV: its place, for errors; the image as written; its class and split; the further columns."""

    at: str
    file: str
    class_name: str
    split: str
    columns: dict[str, str]


def read_table(encoded: bytes, table: str) -> list[Row]:
    """Read a CSV (comma, semicolon or tab) with a header; table: its name in errors. Raises UserError with the line."""
    header, lines = _parse(encoded, table)
    for number, line in lines:
        if len(line) != len(header):
            raise UserError(f"{table}, line {number}: {len(line)} values, but the header has {len(header)} columns")
    roles = _roles(header, [line for _, line in lines], table)
    used = {name for names in roles.values() for name in names}
    others = [name for name in header if name and name not in used]
    rows = []
    for number, line in lines:
        at, values = f"{table}, line {number}", dict(zip(header, line, strict=True))
        marked = [name for name in roles["label"] if values[name].lower() in ONE]
        if len(roles["label"]) > 1 and len(marked) != 1:
            columns = listed(roles["label"])
            raise UserError(f"{at}: {len(marked)} of the columns {columns} are 1; correct it: an image has one class")
        class_name = marked[0] if len(roles["label"]) > 1 else values[roles["label"][0]]
        if class_name in ("", ".", "..") or "/" in class_name or "\0" in class_name:
            raise UserError(f"{at}: the label {class_name!r} cannot name a class; write one without slashes")
        written = values[roles["split"][0]] if roles["split"] else ""
        split = plain_split(written) if written else UNSPLIT
        if not split:
            raise UserError(f"{at}: the split {written!r} is none of train, val, test, nor another name for one")
        rows.append(Row(at, values[roles["file"][0]], class_name, split, {name: values[name] for name in others}))
    splits = {row.split for row in rows}
    if UNSPLIT in splits and len(splits) > 1:
        raise UserError(f"{table}: some lines have a split and some have none; fill them in or remove the column")
    if not splits & {"train", UNSPLIT}:
        raise UserError(f"{table}: no line {'has the split train' if rows else 'but the header'}; add some")
    return rows


def read_file_names(encoded: bytes, table: str) -> list[str]:
    """Read the column of image files alone, in its order; other columns may hold anything. Raises UserError."""
    header, lines = _parse(encoded, table)
    found = [place for names in ROLES["file"] for place, name in enumerate(header) if _plain(name) in names]
    if not found or not lines:
        raise UserError(f"{table}: no column for the file ({', '.join(ROLES['file'][0])}), or no line below it")
    return ["".join(line[found[0] : found[0] + 1]) for _, line in lines]


def _plain(name: str) -> str:
    """Return a column's name as in ROLES."""
    return name.lower().translate({ord(char): None for char in " _-"})


def _parse(encoded: bytes, table: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the other lines that are not blank, each with its line number."""
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{table}: not UTF-8 text; save it as `CSV UTF-8`") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in line]) for line in reader if any(line)]
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: not readable as CSV ({error})") from None
    return lines[0][1] if lines else [], lines[1:]


def _roles(header: list[str], lines: list[list[str]], table: str) -> dict[str, list[str]]:
    """Return the column of each role, in a list: empty without a split, several where the classes are one-hot."""
    named = [name for name in header if name]
    if twice := [name for name in named if named.count(name) > 1]:
        raise UserError(f"{table}: two columns are called {shown(twice[0])}; rename one")
    held = {name: {line[header.index(name)].lower() for line in lines} for name in named}
    plain = {name: _plain(name) for name in named}
    roles: dict[str, list[str]] = {}
    for role, (sure, doubtful) in ROLES.items():
        found = [name for name in named if plain[name] in sure] or [name for name in named if plain[name] in doubtful]
        if role == "split":  # a column `dataset` may hold anything, and one of any name the splits
            found = [name for name in found if plain[name] in sure or any(map(plain_split, held[name]))]
            free = [] if found else [name for name in named if name not in roles["file"] + roles["label"]]
            found += [
                name for name in free if {"train"} < set(map(plain_split, held[name])) <= {"train", "val", "test"}
            ]
            if not found and (flags := [name for name in free if plain_split(name) and held[name] <= ZERO | ONE]):
                columns = listed(flags)
                raise UserError(f"{table}: a split in 0 and 1 ({columns}); write one column split of train, val, test")
        if len(found) > 1:
            both = f"{shown(found[0])} and {shown(found[1])}"
            raise UserError(f"{table}: two columns for the {role}, {both}; rename one")
        if role == "label" and not found:
            flags = [name for name in named if name not in roles["file"] and held[name] and held[name] <= ZERO | ONE]
            found = flags if len(flags) > 1 else []
        if role != "split" and not found:
            missing = f"no column for the {role} ({', '.join(sure)})"
            known = f"its columns: {', '.join(map(shown, header)) or 'none'}"
            raise UserError(f"{table}: {missing}; {known}; rename one, or remove the CSV to use class folders")
        roles[role] = found
    return roles
