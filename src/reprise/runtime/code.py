"""The library's own code, as it was when this process began to load it, and digests of it.

Comments, docstrings and blank lines are no part of a digest: they change no result.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from token import COMMENT, DEDENT, ENCODING, INDENT, NEWLINE, NL, STRING
from tokenize import TokenError, tokenize

ROOT = Path(__file__).resolve().parent.parent.parent.parent
# `from reprise.x import (a, b)`, `import reprise.x`; a line of text that looks like one is one file too many
IMPORT = re.compile(rb"^\s*(?:from|import)\s+([\w.]+)(?:\s+import\s+(\([^)]*\)|[^\n]*))?", re.MULTILINE)


def read_code(root: Path) -> dict[str, bytes]:
    """Return {path relative to the root: content} of library, scripts and `project/`, without editors' hidden files."""
    code: dict[str, bytes] = {}
    for pattern in ("stages/*.py", "src/*.py", "src/reprise/**/*.py", "project/**/*.py"):
        for path in root.glob(pattern):
            if not path.name.startswith("."):
                with suppress(FileNotFoundError):  # it was just removed or replaced
                    code[path.relative_to(root).as_posix()] = path.read_bytes()
    return code


def closure(sources: Mapping[str, bytes], path: str) -> set[str]:
    """Return a file of `read_code`, if it is one, and those that it imports, anywhere in it and however indirectly."""
    found, todo = set[str](), {path} & sources.keys()
    while todo:
        found |= todo
        imports = [(path, *found) for path in todo for found in IMPORT.findall(code_without_comments(sources[path]))]
        todo = set()
        for path, module, names in imports:
            dots = len(module) - len(module.lstrip(b"."))
            parts = [*path.split("/")[: -dots or 0], *filter(None, module.decode().split("."))]
            modules = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
            modules += ["/".join([*parts, name.decode()]) for name in re.findall(rb"\w+", names)]
            files = {f"{name}{end}" for name in modules for end in (".py", "/__init__.py")}
            todo |= {f"{base}{file}" for base in ("src/", "") for file in files} & sources.keys() - found
    return found


def code_sha256(sources: Mapping[str, bytes], path: str) -> str:
    """Return a digest of the closure of a file, without comments, docstrings and blank lines. KeyError without it."""
    digest = hashlib.sha256()
    for name in sorted(closure(sources, path) | {path}):
        digest.update(f"{name} {hashlib.sha256(code_without_comments(sources[name])).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def code_without_comments(source: bytes) -> bytes:
    """Return a Python file without comments, docstrings and blank lines; one that is no Python as it is."""
    rows = dict(enumerate(source.decode("utf-8", "surrogateescape").split("\n"), start=1))
    within: set[int] = set()  # rows that end within a string, where blanks count
    is_start, docstring = True, range(0)  # of a statement; rows of a statement that is nothing but a string
    try:
        for kind, _, (row, column), (end, _), _ in tokenize(io.BytesIO(source).readline):
            if kind == COMMENT:
                rows[row] = rows[row][:column]
            elif kind == NEWLINE:
                for number in docstring:
                    del rows[number]
                is_start, docstring = True, range(0)
            elif kind not in (NL, INDENT, DEDENT, ENCODING):
                docstring = range(row, end + 1) if is_start and kind == STRING else range(0)
                is_start = False
                if end > row:
                    within.update(range(row, end))
    except (SyntaxError, TokenError):
        return source
    rows = {row: line if row in within else line.rstrip() for row, line in rows.items()}
    return "\n".join(line for row, line in rows.items() if line or row in within).encode("utf-8", "surrogateescape")


LOADED = read_code(ROOT)  # imported before all else, see `reprise/__init__.py`
