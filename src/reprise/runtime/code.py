"""The library's own code, as it was when this process began to load it, and digests of it.

Comments, docstrings and blank lines are no part of a digest: they change no result.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from token import COMMENT, DEDENT, ENCODING, INDENT, NEWLINE, NL, STRING
from tokenize import TokenError, tokenize

SRC = Path(__file__).resolve().parent.parent.parent
# `from reprise.x import (a, b)`, `import reprise.x`; a line of text that looks like one is one file too many
IMPORT = re.compile(rb"^\s*(?:from|import)\s+([\w.]+)(?:\s+import\s+(\([^)]*\)|[^\n]*))?", re.MULTILINE)


def read_code(src: Path, script: str = "") -> dict[str, bytes]:
    """Return {path: content} of the library in a folder, as `src/...`, and of a script relative to its parent."""
    files = [*src.glob("*.py"), *(src / "reprise").rglob("*.py")]
    content = {f"src/{path.relative_to(src).as_posix()}": path.read_bytes() for path in files}
    return content | ({script: (src.parent / script).read_bytes()} if script else {})


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
    lines = source.decode("utf-8", "surrogateescape").splitlines()
    try:
        tokens = list(tokenize(io.BytesIO(source).readline))
    except (SyntaxError, TokenError):
        return source
    for token in tokens:
        if token.type == COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    before = NEWLINE
    for token, following in pairwise(token for token in tokens if token.type not in (COMMENT, NL, ENCODING)):
        if token.type == STRING and before in (NEWLINE, INDENT, DEDENT) and following.type == NEWLINE:
            first, last = token.start[0], token.end[0]
            lines[first - 1 : last] = [""] * (last - first + 1)
        before = token.type
    kept = (line.rstrip() for line in lines)
    return "\n".join(filter(None, kept)).encode("utf-8", "surrogateescape")


LOADED = read_code(SRC)  # imported before all else, see `reprise/__init__.py`
