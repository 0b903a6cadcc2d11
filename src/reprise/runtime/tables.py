"""CSV tables that people open in a spreadsheet: a cell that would be computed there gets a ' before it."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from reprise.runtime.errors import UserError, reason

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # a spreadsheet computes a cell that begins so, and takes one after ' as text


def write_csv(path: Path, header: list[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, as `row_writer` does."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write = row_writer(file)
        for row in chain([header], rows):
            write(row)


def row_writer(file: TextIO) -> Callable[[Sequence[Any]], object]:
    """Return what writes a row, whatever the names in it hold: one that a spreadsheet would compute gets a '."""
    writer = csv.writer(file, lineterminator="\n")
    return lambda row: writer.writerow([_cell(value) for value in row])


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def plain(cell: str) -> str:
    """Return the name that `write_csv` was given for this cell."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def read_csv(path: Path) -> list[list[str]]:
    """Return the rows of a table, none of a missing one. Raises UserError for what is no CSV in UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [list(map(plain, row)) for row in csv.reader(file, strict=True) if row]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no CSV in UTF-8 ({reason(error)}); save it as one, with commas") from None
