"""What the bits of a result depend on, recorded beside it, so that two differing results explain themselves.

`portable` results depend on none of the machine's own traits, so none is recorded: the record, too, is the same on
every x86-64 machine. No commit is named: equal params, data, code and packages give an equal record anywhere.
"""

import hashlib
import io
import json
import platform
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from token import COMMENT, DEDENT, ENCODING, INDENT, NEWLINE, NL, STRING
from tokenize import TokenError, tokenize
from typing import Literal

from pydantic import BaseModel, ConfigDict

from reprise.runtime.errors import UserError

Reproducible = Literal["portable", "machine", "off"]
# `from reprise.x import (a, b)`, `import reprise.x`; a line of text that looks like one is one file too many
IMPORT = re.compile(rb"^\s*(?:from|import)\s+([\w.]+)(?:\s+import\s+(\([^)]*\)|[^\n]*))?", re.MULTILINE)
SRC = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("lightning", "numpy", "safetensors", "timm", "torch", "torchmetrics")


class Provenance(BaseModel):
    """Where a result comes from; equal records promise equal bits, unless reproducible is `off`.

    device: `cpu` where the result is portable, otherwise the processor's or GPU's name. precision: of training.
    cpu_capability: the instruction set that torch's kernels were allowed. The three digests are of the params, the
    prepared data and the library files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reproducible: Reproducible
    threads: int
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str
    cpu_capability: str
    packages: dict[str, str]
    params_sha256: str
    data_sha256: str
    code_sha256: str

    def key(self) -> str:
        """Return a short name for everything recorded."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


def trace(
    reproducible: Reproducible,
    threads: int,
    device: Literal["cuda", "cpu"],
    params: object,
    data: bytes,
    module: str,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Provenance:
    """Record the terms of this process, the params (as JSON types), the data's metadata, the code of a module."""
    import torch

    portable = reproducible == "portable"
    names = {"cpu": cpu_name, "cuda": _gpu_name}
    return Provenance(
        reproducible=reproducible,
        threads=threads,
        precision=precision,
        device="cpu" if portable else names[device](),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        # `2.13.0+cpu` and `2.13.0+cu130` are builds of one source
        packages={name: version(name).partition("+")[0] if portable else version(name) for name in PACKAGES},
        params_sha256=hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest(),
        data_sha256=hashlib.sha256(data).hexdigest(),
        code_sha256=_loaded_code(f"src/{module.replace('.', '/')}.py"),
    )


def read_code(src: Path, script: str = "") -> dict[str, bytes]:
    """Return {path: content} of the library in a folder, as `src/...`, and of a script relative to its parent."""
    files = [*src.glob("*.py"), *(src / "reprise").rglob("*.py")]
    content = {f"src/{path.relative_to(src).as_posix()}": path.read_bytes() for path in files}
    return content | ({script: (src.parent / script).read_bytes()} if script else {})


LOADED = read_code(SRC)  # before torch and all else, which takes seconds


def _loaded_code(path: str) -> str:
    """Return the digest of the code that this process has loaded. Raises UserError if that may not be what is there."""
    digest = code_sha256(LOADED, path)
    if code_sha256(read_code(SRC), path) != digest:
        raise UserError("the library was edited while this process loaded it; start it again")
    return digest


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


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_name() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
