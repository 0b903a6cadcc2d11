"""Reads the CSV beside a folder's images: `filename,label[,split]` and any further columns."""

import csv
import io
from typing import NamedTuple

from reprise.data.formats.raw import UNSPLIT, shown
from reprise.runtime.errors import UserError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ROLES = {  # of the columns, by their spellings in lower case, without spaces, `_` and `-`
    "file": ("filename", "file", "filepath", "filepaths", "path", "image", "imagepath", "imagename"),
    "label": ("label", "labels", "class", "classname", "target", "category"),
    "split": ("split", "set", "subset", "dataset"),
}


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
    roles = _roles(header, table)
    others = [name for name in header if name and name not in roles.values()]
    rows = []
    for number, line in lines:
        at = f"{table}, line {number}"
        if len(line) != len(header):
            raise UserError(f"{at}: {len(line)} values, but the header has {len(header)} columns")
        values = dict(zip(header, line, strict=True))
        class_name = values[roles["label"]].strip()
        if class_name in ("", ".", "..") or "/" in class_name or "\0" in class_name:
            raise UserError(f"{at}: the label {class_name!r} cannot name a class; write one without slashes")
        split = values[roles["split"]].strip().lower() if "split" in roles else ""
        if split and split not in SPLIT_NAMES:
            raise UserError(f"{at}: the split {split!r} is none of {', '.join(SPLIT_NAMES)}")
        columns = {name: values[name].strip() for name in others}
        rows.append(Row(at, values[roles["file"]], class_name, SPLIT_NAMES.get(split, UNSPLIT), columns))
    splits = {row.split for row in rows}
    if UNSPLIT in splits and len(splits) > 1:
        raise UserError(f"{table}: some lines have a split and some have none; fill them in or remove the column")
    if not splits & {"train", UNSPLIT}:
        raise UserError(f"{table}: no line {'has the split train' if rows else 'but the header'}; add some")
    return rows


def _parse(encoded: bytes, table: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the other lines that are not blank, each with its line number."""
    try:
        text = encoded.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{table}: not UTF-8 text; save it as `CSV UTF-8`") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, line) for line in reader if any(line)]
    except csv.Error as error:
        raise UserError(f"{table}, line {reader.line_num}: not readable as CSV ({error})") from None
    return [name.strip() for name in lines[0][1]] if lines else [], lines[1:]


def _roles(header: list[str], table: str) -> dict[str, str]:
    """Return the column of each role that the header has."""
    roles: dict[str, str] = {}
    named = [name for name in header if name]
    for name in named:
        if named.count(name) > 1:
            raise UserError(f"{table}: two columns are called {shown(name)}; rename one")
        plain = name.lower().translate({ord(char): None for char in " _-"})
        for role in (role for role, spellings in ROLES.items() if plain in spellings):
            if role in roles:
                both = f"{shown(roles[role])} and {shown(name)}"
                raise UserError(f"{table}: two columns for the {role}, {both}; rename one")
            roles[role] = name
    for role in ("file", "label"):
        if role not in roles:
            raise UserError(
                f"{table}: no column for the {role} ({', '.join(ROLES[role])}); its columns: "
                f"{', '.join(map(shown, header)) or 'none'}; rename one, or remove the CSV to use class folders"
            )
    return roles
