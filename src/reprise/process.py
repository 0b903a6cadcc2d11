"""What a process must settle before torch loads: threads, memory, OpenMP's waiting, and on what the bits may depend.

Measured on 2 shared cores: OpenMP's default busy wait makes two training threads up to 26 times slower than one as
soon as something else runs; passive waiting costs nothing measurable. The policy is read when torch loads, hence the
order: `before_torch`, then import torch, then `after_torch`.
"""

import ctypes
import os
import platform
import subprocess
import sys
from typing import Literal

from reprise.params import Reproducibility
from reprise.provenance import Reproducible

# Without all three, convolutions and matrix products pick kernels, and so rounding, by what the CPU offers.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}

# What a shell may have set that decides the bits, too: a recorded result depends on none of it.
FOREIGN = ("DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE")

# glibc's mallopt: parameter and value. By default it hands large blocks back to the kernel as they are freed, and each
# step pays for the same pages anew. 32 MiB is the most that it takes; both are bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 32 * 2**20)


def before_torch(threads: int, reproducible: Reproducibility) -> None:
    """Set the environment that torch, oneDNN, MKL and CUDA read once, when they load.

    `auto` has to know whether there is a GPU before torch may load here: it asks a process of its own (2 s). Raises
    RuntimeError if torch is loaded already: the settings would silently not count.
    """
    if "torch" in sys.modules:
        raise RuntimeError("before_torch must run before torch is imported")
    keep_freed_memory()
    for name in (*PORTABLE, *FOREIGN):
        os.environ.pop(name, None)
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if reproducible == "auto":
        script = "import sys, torch; sys.exit(not torch.cuda.is_available())"
        reproducible = "portable" if subprocess.run([sys.executable, "-c", script]).returncode else "machine"
    if reproducible == "portable":
        os.environ.update(PORTABLE)
    if reproducible != "off":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


def keep_freed_memory() -> None:
    """Let malloc keep what is freed for the next step; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, value)


def after_torch(threads: int, reproducible: Reproducibility) -> None:
    """Fix torch's thread count (it changes the bits of a result) and, unless `off`, ask for deterministic kernels."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(reproducible != "off")
    torch.backends.cudnn.benchmark = reproducible == "off"
    torch.backends.cudnn.allow_tf32 = reproducible == "off"  # fp32 means fp32
    if reproducible != "off":
        torch.set_float32_matmul_precision("highest")  # the default, unless the environment says otherwise


def settled(reproducible: Reproducibility) -> Reproducible:
    """Return what `auto` means here: `machine` on a GPU, otherwise `portable`; the others mean themselves."""
    import torch

    if reproducible != "auto":
        return reproducible
    return "machine" if torch.cuda.is_available() else "portable"


def device(reproducible: Reproducibility) -> Literal["cuda", "cpu"]:
    """Return where to compute: `portable` promises something of CPUs and keeps to them; the others use a GPU."""
    import torch

    return "cuda" if reproducible != "portable" and torch.cuda.is_available() else "cpu"
