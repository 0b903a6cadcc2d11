"""Settings that must be made before torch loads: threads, memory, OpenMP's wait policy, what the bits may depend on.

Measured on 2 shared cores: OpenMP's default busy wait makes two training threads up to 26 times slower than one as
soon as something else runs; passive waiting costs nothing measurable. The policy is read when torch loads, hence the
order: `before_torch`, then import torch, then `after_torch`. In between the garbage collector is off: it would walk the
half million objects of the imports again and again, a third of their time. And `scipy.signal`, which Lightning's
metrics load without using it, is deferred: another fifth.
"""

import ctypes
import gc
import importlib
import os
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType
from typing import Any, Literal

Reproducibility = Literal["auto", "portable", "machine", "off"]  # as params.yaml has it

# Without all three, convolutions and matrix products pick kernels, and so rounding, by what the CPU offers.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}

# What a shell may have set that decides the bits, too: a recorded result depends on none of it. oneDNN knows
# its settings by two names each. With fewer threads than it was told of, a convolution waits for the others for ever.
FOREIGN = (
    *("DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE", "MKL_ENABLE_INSTRUCTIONS"),
    *("OMP_THREAD_LIMIT", "OMP_DYNAMIC", "MKL_DYNAMIC", "MKL_DOMAIN_NUM_THREADS", "NVIDIA_TF32_OVERRIDE"),
)

# glibc's mallopt: parameter and value. By default it hands large blocks back to the kernel as they are freed, and each
# step pays for the same pages anew. 32 MiB is the most that it takes; both are bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = (-1, 2**31 - 1), (-3, 32 * 2**20)


def before_torch(threads: int | Literal["auto"], reproducible: Reproducibility) -> None:
    """Set the environment that torch, oneDNN, MKL and CUDA read once, when they load.

    `auto` has to know whether there is a GPU before torch may load here, see `gpu`. Raises RuntimeError if torch is
    loaded already: the settings would silently not count.
    """
    if "torch" in sys.modules:
        raise RuntimeError("before_torch must run before torch is imported")
    keep_freed_memory()
    for name in (*PORTABLE, *FOREIGN):
        os.environ.pop(name, None)
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cpus() if threads == "auto" else threads)
    if reproducible == "auto":
        reproducible = "machine" if gpu() else "portable"
    if reproducible == "portable":
        os.environ.update(PORTABLE)
    if reproducible != "off":
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if "scipy.signal" not in sys.modules:  # until `after_torch`
        sys.modules["scipy.signal"] = Deferred("scipy.signal", hamming=None)  # torchmetrics asks whether it has that
    gc.disable()


def gpu() -> bool:
    """Return whether torch will find a GPU, without loading torch in this process.

    A build for CUDA, or for CPUs alone, finds none without a driver. Otherwise another process imports torch (2 s).
    """
    build = version("torch").partition("+")[2]
    if build.startswith(("cu", "cpu")) or not build:
        try:
            ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        except OSError:
            return False
    script = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", script]).returncode == 0


class Deferred(ModuleType):
    """Stands in for a module until another attribute than those given here (and dunder names) is asked for."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        """Load the module, and return its attribute. Raises AttributeError if there is none."""
        if name.startswith("__") and name not in ("__path__", "__all__"):
            raise AttributeError(name)  # `inspect` asks each module for its __file__
        self.make_way()
        return getattr(importlib.import_module(self.__name__), name)

    def make_way(self) -> None:
        """Let the next import load the module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step; does nothing where the C library is not glibc."""
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            ctypes.CDLL(None).mallopt(parameter, value)


def after_torch(threads: int | Literal["auto"], reproducible: Reproducibility) -> None:
    """Set torch's thread count, which changes the bits of a result, and, unless `off`, deterministic kernels.

    `auto` threads: as many as there are CPUs, until the training has measured.
    """
    import torch

    torch.set_num_threads(cpus() if threads == "auto" else threads)
    torch.use_deterministic_algorithms(reproducible != "off")
    # By default this would also fill every new tensor before it is written to: a tenth of a small network's time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = reproducible == "off"
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in evaluation always; bf16 is there for speed
    torch.set_float32_matmul_precision("highest")  # the default, unless the environment says otherwise
    end_imports()


def end_imports() -> None:
    """End what `before_torch` has begun for the time of the imports."""
    if isinstance(stand_in := sys.modules.get("scipy.signal"), Deferred):
        stand_in.make_way()
    gc.freeze()  # what was imported stays: no collection looks at it again
    gc.enable()


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
