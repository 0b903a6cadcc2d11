"""The library's own code, as it was when this process began to load it, and digests of it.

Comments, docstrings and blank lines are no part of a digest: they change no result.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from token import COMMENT, DEDENT, ENCODING, INDENT, NEWLINE, NL, STRING
from tokenize import TokenError, tokenize

ROOT = Path(__file__).resolve().parent.parent.parent.parent
# `from reprise.x import (a, b)`, `import reprise.x`; a line of text that looks like one is one file too many
IMPORT = re.compile(rb"^\s*(?:from|import)\s+([\w.]+)(?:\s+import\s+(\([^)]*\)|[^\n]*))?", re.MULTILINE)


def read_code(root: Path) -> dict[str, bytes]:
    """Return {path relative to the root: content} of the library and the scripts, without editors' hidden files."""
    code: dict[str, bytes] = {}
    for pattern in ("stages/*.py", "src/*.py", "src/reprise/**/*.py"):
        for path in root.glob(pattern):
            if not path.name.startswith("."):
                with suppress(FileNotFoundError):  # it was just removed or replaced
                    code[path.relative_to(root).as_posix()] = path.read_bytes()
    return code


def closure(sources: Mapping[str, bytes], path: str) -> set[str]:
    """Return a file of `read_code` and those that it imports, anywhere in it and however indirectly."""
    found: set[str] = set()
    todo = {path}
    while todo:
        path = todo.pop()
        found.add(path)
        for module, names in IMPORT.findall(code_without_comments(sources[path])):
            parts = module.decode().split(".")
            modules = {"/".join(parts[: depth + 1]) for depth in range(len(parts))}
            modules |= {"/".join([*parts, name.decode()]) for name in re.findall(rb"\w+", names)}
            files = {f"src/{name}{end}" for name in modules for end in (".py", "/__init__.py")}
            todo |= files & sources.keys() - found
    return found


def code_sha256(sources: Mapping[str, bytes], path: str) -> str:
    """Return a digest of the closure of a file, without comments, docstrings and blank lines."""
    digest = hashlib.sha256()
    for name in sorted(closure(sources, path)):
        digest.update(f"{name} {hashlib.sha256(code_without_comments(sources[name])).hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def code_without_comments(source: bytes) -> bytes:
    """Return a Python file without comments, docstrings and blank lines; one that is no Python as it is."""
    lines = source.decode("utf-8", "surrogateescape").split("\n")
    try:
        tokens = list(tokenize(io.BytesIO(source).readline))
    except (SyntaxError, TokenError):
        return source
    for token in tokens:
        if token.type == COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    before, dropped = NEWLINE, set()
    for token, following in pairwise(token for token in tokens if token.type not in (COMMENT, NL, ENCODING)):
        if token.type == STRING and before in (NEWLINE, INDENT, DEDENT) and following.type == NEWLINE:
            first, last = token.start[0], token.end[0]
            lines[first - 1 : last] = [""] * (last - first + 1)
            dropped |= set(range(first, last + 1))
        before = token.type
    texts = {row for token in tokens for row in range(token.start[0], token.end[0]) if token.type not in (NEWLINE, NL)}
    kept = [line if row in texts else line.rstrip() for row, line in enumerate(lines, start=1)]
    return "\n".join(line for row, line in enumerate(kept, start=1) if line or row in texts - dropped).encode(
        "utf-8", "surrogateescape"
    )


LOADED = read_code(ROOT)  # imported before all else, see `reprise/__init__.py`
