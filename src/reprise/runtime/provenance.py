"""What the bits of a result depend on, recorded beside it, so that two differing results explain themselves.

`portable` results depend on none of the machine's own traits, so none is recorded: the record, too, is the same on
every x86-64 machine. No commit is named: equal params, data, code and packages give an equal record anywhere.
"""

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from reprise.runtime.code import LOADED, ROOT, code_sha256, read_code
from reprise.runtime.errors import UserError

Reproducible = Literal["portable", "machine", "off"]
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


def _loaded_code(path: str) -> str:
    """Return the digest of the code that this process has loaded. Raises UserError if that may not be what is there."""
    digest = code_sha256(LOADED, path)
    if code_sha256(read_code(ROOT), path) != digest:
        raise UserError("the library was edited while this process loaded it; start it again")
    return digest


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
