"""Provenance: what the bits of a result depend on, recorded beside it, so that two differing results can be explained.

`portable` results depend on no trait of the machine, so none is recorded: the record, too, is the same on every x86-64
machine. No commit is named: equal params, data, code and packages give an equal record anywhere.
"""

import hashlib
import json
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from reprise.runtime.code import LOADED, ROOT, code_sha256, read_code
from reprise.runtime.errors import UserError

Reproducible = Literal["portable", "machine", "off"]
PACKAGES = ("lightning", "numpy", "safetensors", "timm", "torch", "torchmetrics")


class Provenance(BaseModel):
    """What a result was made with; equal records promise equal bits, unless reproducible is `off`.

    device: `cpu` where the result is portable, otherwise the processor's or GPU's name. precision: of training.
    cpu_capability: the instruction set that torch's kernels were allowed. The three digests are of the params, the
    prepared data and the library files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reproducible: Reproducible
    threads: PositiveInt
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str
    cpu_capability: str
    packages: dict[str, str]
    params_sha256: str
    data_sha256: str
    code_sha256: str

    def key(self) -> str:
        """Return a digest of the record, 16 hexadecimal digits."""
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
    """Record the settings of this process, the params (as JSON types), the data's metadata, the code of a module.

    Raises UserError if the code on the disk is no longer what this process has loaded.
    """
    import torch

    path = f"src/{module.replace('.', '/')}.py"
    code = code_sha256(LOADED, path)
    if code_sha256(read_code(ROOT), path) != code:
        raise UserError("the library was edited while this process loaded it; start it again")
    portable = reproducible == "portable"
    return Provenance(
        reproducible=reproducible,
        threads=threads,
        precision=precision,
        device="cpu" if portable else cpu_name() if device == "cpu" else _gpu_name(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        # `2.13.0+cpu` and `2.13.0+cu130` are builds of one source
        packages={name: version(name).partition("+")[0] if portable else version(name) for name in PACKAGES},
        params_sha256=hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest(),
        data_sha256=hashlib.sha256(data).hexdigest(),
        code_sha256=code,
    )


def cpu_name() -> str:
    """Return the processor's name as the operating system gives it."""
    with suppress(OSError):  # not Linux
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_name() -> str:
    import torch

    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
