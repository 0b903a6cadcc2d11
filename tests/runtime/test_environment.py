"""What must be settled before torch loads is settled then, or refused."""

import json
import os
import platform
import subprocess
import sys

import pytest
import yaml

from reprise.runtime import environment as process
from tests.conftest import ROOT


def python(code, **environment):
    own = {"PYTHONPATH": str(ROOT / "src")}  # this code, also where another checkout is installed
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=own | environment, timeout=120)


SHOW = """
import json, os
from reprise.runtime.environment import before_torch, after_torch
before_torch({threads}, {mode!r})
import torch
after_torch({threads}, {mode!r})
print(json.dumps([torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
                  torch.backends.cpu.get_cpu_capability(), os.environ["OMP_WAIT_POLICY"],
                  [os.environ.get(name) for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR",
                                                     "CUBLAS_WORKSPACE_CONFIG")]]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="portable is a promise about x86-64")
@pytest.mark.parametrize("threads", [1, 2])
def test_portable_caps_the_instruction_set_and_fixes_the_threads(threads):
    done = python(SHOW.format(threads=threads, mode="portable"))
    settings = ["avx2", "AVX2", "COMPATIBLE", ":4096:8"]
    assert json.loads(done.stdout) == [threads, True, "AVX2", "passive", settings]


def test_a_shells_limits_of_threads_and_precision_do_not_reach_the_training():
    shell = {"OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": "true", "MKL_DYNAMIC": "true", "DNNL_DEFAULT_FPMATH_MODE": "BF16"}
    shown = """
import os
from reprise.runtime.environment import before_torch
before_torch(2, "machine")
import torch
conv = torch.nn.Conv2d(16, 32, 3, padding=1)
conv(torch.randn(64, 16, 32, 32)).mean().backward()  # under that limit of threads it would never end
print(torch.get_num_threads(), sorted(os.environ.keys() & {names!r}))
"""
    assert python(shown.format(names=set(shell)), **shell).stdout == "2 []\n"


def test_off_asks_for_nothing_but_the_wait_policy():
    done = python(SHOW.format(threads=1, mode="off"))
    threads, deterministic, _, policy, settings = json.loads(done.stdout)
    assert (threads, deterministic, policy, settings) == (1, False, "passive", [None] * 4)


def test_auto_without_a_gpu_means_portable():
    shown = (
        SHOW.format(threads=1, mode="auto")
        + "from reprise.runtime.device import *; print(resolve_reproducible('auto'), device('auto'))"
    )
    done = python(shown, CUDA_VISIBLE_DEVICES="", ATEN_CPU_CAPABILITY="default")
    settings = ["avx2", "AVX2", "COMPATIBLE", ":4096:8"]
    *shown, meaning = done.stdout.splitlines()
    assert json.loads(shown[0]) == [1, True, "AVX2", "passive", settings]
    assert meaning == "portable cpu"


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


@pytest.mark.parametrize("mode", ["portable", "machine", "off"])
def test_fp32_means_fp32(mode):
    shown = SHOW.format(threads=1, mode=mode)
    shown += "print(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)"
    assert python(shown, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE="1").stdout.splitlines()[1] == "highest False"


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
    done = python("import torch; from reprise.runtime.environment import before_torch; before_torch(1, 'off')")
    assert "before_torch must run before torch is imported" in done.stderr
    assert done.returncode == 1


SIGNALS = """
import sys
from reprise.runtime.environment import after_torch, before_torch
before_torch(1, "off")
import reprise, lightning, torchmetrics
{between}
after_torch(1, "off")
print("scipy.stats" in sys.modules, "scipy.signal._signal_api" in sys.modules)
from scipy.signal._ltisys import StateSpace
import scipy.signal
print(scipy.signal.StateSpace is StateSpace, scipy.signal is sys.modules["scipy.signal"])
"""


@pytest.mark.parametrize(
    ("between", "loaded"),
    [
        ("", "False False"),
        ("from scipy.signal import find_peaks; assert find_peaks([0, 1, 0])[0] == 1", "True True"),
        ("import scipy; assert scipy.signal.convolve([1], [2]) == 2", "True True"),
        ("import scipy.signal; assert not hasattr(scipy.signal, 'nothing of that name')", "True True"),
    ],
)
def test_scipys_signals_load_only_where_somebody_wants_them(between, loaded):
    done = python(SIGNALS.format(between=between))
    assert done.stdout == f"{loaded}\nTrue True\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torchvision", "timm", "lightning", "torchmetrics"])
def test_after_the_repair_each_library_imports(module):
    done = python(f"import reprise; import {module}; print('imported')", OMP_WAIT_POLICY="passive")
    assert done.stdout == "imported\n", done.stderr
    assert "torchvision" not in done.stderr  # neither the missing operators nor the missing image extension


# Everything that costs more than 50 ms to import and that some stage could do without.
HEAVY = {
    "dvc", "huggingface_hub", "lightning", "matplotlib", "scipy", "scipy.signal", "sklearn", "sympy", "tensorboard",
    "timm", "torch", "torch._dynamo", "torchmetrics", "torchvision",
}  # fmt: skip
NETWORK = {"torch", "torchvision", "timm", "huggingface_hub", "torch._dynamo", "sympy"}  # timm brings the others
STARTUP = {
    "download": set(),
    "preprocess": set(),
    "train": NETWORK | {"lightning", "torchmetrics", "scipy"},  # Lightning brings the others
    "evaluate": NETWORK,
}


def test_each_stage_imports_these_heavy_modules_and_no_others(tmp_path, tiny_params):
    params = tiny_params("train.epochs=1")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params.model_dump()))
    (tmp_path / "data/own").mkdir(parents=True)
    (tmp_path / "data/weights").mkdir()
    for name in ("dvc.yaml", "src", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    for stage, allowed in STARTUP.items():
        command = [sys.executable, "-X", "importtime", str(ROOT / f"stages/{stage}.py")]
        environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": os.environ["PATH"]}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
        imported = modules | {name.partition(".")[0] for name in modules}
        assert imported & HEAVY == allowed, stage


def test_the_collector_rests_while_torch_loads_and_works_afterwards():
    code = """if True:
        import gc
        from reprise.runtime.environment import after_torch, before_torch
        before_torch(1, "off")
        resting = not gc.isenabled()
        import torch
        after_torch(1, "off")
        print(resting, gc.isenabled(), gc.get_freeze_count() > 100_000)"""
    assert python(code).stdout == "True True True\n"
