"""What must be set before torch loads is set then, or refused."""

import json
import os
import platform
import subprocess
import sys

import pytest

from reprise.runtime import environment as process
from tests.conftest import ROOT


def python(code, **environment):
    own = {"PYTHONPATH": str(ROOT / "src")}  # this code, also where another checkout is installed
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=own | environment, timeout=120)


MODES = ("portable", "auto", "machine", "off")
# Each mode in copies of one process: before it loads torch, and after.
SHOW = """
import gc, json, os
from reprise.runtime.environment import before_torch, after_torch

def in_a_copy(show, mode):
    if os.fork():
        return os.wait()
    print(json.dumps(show(mode)), flush=True)
    os._exit(0)

def before(mode):
    before_torch(2, mode)
    names = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "CUBLAS_WORKSPACE_CONFIG", "OMP_WAIT_POLICY"
    return [[os.environ.get(name) for name in names], sorted(os.environ.keys() & {shell!r}), gc.isenabled()]

def after(mode):
    after_torch(2, mode)
    from reprise.runtime.device import device, resolve_reproducible
    conv = torch.nn.Conv2d(16, 32, 3, padding=1)
    conv(torch.randn(64, 16, 32, 32)).mean().backward()  # under the shell's limit of threads it would never end
    return {{
        "threads": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "means": [resolve_reproducible(mode), device(mode)], "capability": torch.backends.cpu.get_cpu_capability(),
        "fp32": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
        "collector": [gc.isenabled(), gc.get_freeze_count() > 100_000],
    }}

for mode in {modes!r}:
    in_a_copy(before, mode)
before_torch(2, "portable")
import torch
torch.use_deterministic_algorithms(True)  # what this loads is loaded once
for mode in {modes!r}:
    in_a_copy(after, mode)
"""
CAPS = ["avx2", "AVX2", "COMPATIBLE", ":4096:8"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tries each mode in a copy of one process")
def test_each_mode_sets_what_it_promises_whatever_the_shell_has_set():
    limits = {"OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": "true", "MKL_DYNAMIC": "true", "DNNL_DEFAULT_FPMATH_MODE": "BF16"}
    shell = {"CUDA_VISIBLE_DEVICES": "", "ATEN_CPU_CAPABILITY": "default", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    shown = python(SHOW.format(shell=set(limits), modes=MODES), **shell, **limits)
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(lines) == 2 * len(MODES), shown.stderr
    # there is no GPU, so `auto` is portable
    settings = [CAPS, CAPS, [None, None, None, ":4096:8"], [None] * 4]
    assert lines[: len(MODES)] == [[[*each, "passive"], [], False] for each in settings]
    for mode, line in zip(MODES, lines[len(MODES) :], strict=True):
        if line.pop("capability") != "AVX2":
            assert platform.machine() not in ("x86_64", "AMD64")
        assert line == {
            "threads": 2, "deterministic": mode != "off", "means": ["portable" if mode == "auto" else mode, "cpu"],
            "fp32": ["highest", False], "collector": [True, True],
        }  # fmt: skip


@pytest.mark.parametrize(("missing", "asked"), [("libcuda.so.1", 0), ("nothing", 1)])
@pytest.mark.parametrize("answer", [0, 1])
def test_auto_asks_another_process_only_where_a_driver_is(missing, asked, answer, monkeypatch):
    def load(name):
        if name == missing:
            raise OSError(name)

    questions = []
    monkeypatch.setattr(process, "version", lambda name: "2.13.0+cu130")
    monkeypatch.setattr(process.ctypes, "CDLL", load)
    monkeypatch.setattr(
        process.subprocess, "run", lambda command: questions.append(command) or subprocess.CompletedProcess([], answer)
    )
    assert process.gpu() == (asked == 1 and answer == 0)
    assert len(questions) == asked
    for other in ("2.13.0+rocm6.4", "2.13.0a0+git1234567"):  # perhaps for AMD's GPUs, which have another driver
        monkeypatch.setattr(process, "version", lambda name, other=other: other)
        questions.clear()
        assert process.gpu() == (answer == 0)
        assert len(questions) == 1


FREED = """
import ctypes, os
from reprise.runtime.environment import keep_freed_memory
{keep}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
block = libc.malloc(ctypes.c_size_t(16 * 2**20))
ctypes.memset(block, 1, 16 * 2**20)
libc.free(block)
print((resident() - before) // 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
@pytest.mark.parametrize(("keep", "kept"), [("", range(4)), ("keep_freed_memory()", range(14, 18))])
def test_what_a_step_frees_is_kept_for_the_next(keep, kept):
    assert int(python(FREED.format(keep=keep)).stdout) in kept


def test_too_late_is_refused():
    with pytest.raises(RuntimeError, match="before_torch must run before torch is imported"):
        process.before_torch(1, "off")


SIGNALS = """
import os, sys
from reprise.runtime.environment import after_torch, before_torch
before_torch(1, "off")
import reprise, lightning, torchmetrics
for between in {cases!r}:
    if os.fork():
        os.wait()
        continue
    exec(between)
    after_torch(1, "off")
    print("scipy.stats" in sys.modules, "scipy.signal._signal_api" in sys.modules)
    from scipy.signal._ltisys import StateSpace
    import scipy.signal
    print(scipy.signal.StateSpace is StateSpace, scipy.signal is sys.modules["scipy.signal"], flush=True)
    os._exit(0)
"""
WANTED = [
    "from scipy.signal import find_peaks; assert find_peaks([0, 1, 0])[0] == 1",
    "import scipy; assert scipy.signal.convolve([1], [2]) == 2",
    "import scipy.signal; assert not hasattr(scipy.signal, 'nothing of that name')",
]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="tries each way in a copy of one process")
def test_scipys_signals_load_only_where_somebody_wants_them():
    done = python(SIGNALS.format(cases=["", *WANTED]))
    assert done.stdout == "False False\nTrue True\n" + "True True\nTrue True\n" * len(WANTED), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torchvision", "timm", "lightning", "torchmetrics"])
def test_after_the_repair_each_library_imports(module):
    done = python(f"import reprise; import {module}; print('imported')", OMP_WAIT_POLICY="passive")
    assert done.stdout == "imported\n", done.stderr
    assert "torchvision" not in done.stderr  # neither the missing operators nor the missing image extension


# Everything that costs more than 50 ms to import and that some stage could do without.
HEAVY = {
    "dvc", "dvclive", "huggingface_hub", "lightning", "matplotlib", "mlflow", "scipy", "scipy.signal", "sklearn",
    "sympy", "tensorboard", "timm", "torch", "torch._dynamo", "torchmetrics", "torchvision", "wandb",
}  # fmt: skip
NETWORK = {"torch", "torchvision", "timm", "huggingface_hub", "torch._dynamo", "sympy"}  # timm brings the others
STARTUP = {
    "download": set(),
    "preprocess": set(),
    "train": NETWORK | {"lightning", "torchmetrics", "scipy"},  # Lightning brings the others
    "evaluate": NETWORK | {"scipy"},  # for the tests of groups
    "export": set(),  # switched off
}


@pytest.mark.parametrize("stage", STARTUP)
def test_each_stage_imports_these_heavy_modules_and_no_others(stage, reproduced_once):
    modules = reproduced_once.path.with_name("imports").joinpath(stage).read_text().split()
    imported = {*modules, *(name.partition(".")[0] for name in modules)}
    assert imported & HEAVY == STARTUP[stage]


def test_windows_is_refused_in_a_line_that_names_the_way_out():
    code = "import sys; sys.platform = 'win32'; import reprise"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].endswith("on Windows run it in WSL 2")
    assert done.returncode == 1
