"""`portable` keeps its promise: the same bits on a lesser CPU, and whatever the user's shell has set.

A lesser CPU is simulated by what takes instruction sets away from libraries that our own settings do not reach: the C
library's mathematics, numpy, the JPEG decoder, OpenBLAS. Where qemu is installed, an older CPU is emulated as well.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from PIL import Image

from reprise.runtime.environment import PORTABLE
from tests.conftest import ROOT, Workspace, fresh_clone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="portable is a promise about x86-64"),
]

LOADER = Path("/lib64/ld-linux-x86-64.so.2")  # of every x86-64 Linux with glibc
LESSER_CPU = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX2,-FMA,-BMI2,-ERMS",
    "NPY_DISABLE_CPU_FEATURES": " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name]),
    "JSIMD_FORCENONE": "1",
    "OPENBLAS_CORETYPE": "Nehalem",
}
SURROUNDINGS = {
    "much in the shell": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "ALL",
        "MKL_CBWR": "AUTO",
        "OMP_NUM_THREADS": "7",
        "MKL_NUM_THREADS": "7",
        "OMP_WAIT_POLICY": "active",
    },
    "a lesser CPU and little in the shell": LESSER_CPU
    | {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "SSE4_2",
        "OMP_NUM_THREADS": "2",
    },
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A clone with small photos as data, brought in; the stages after that have not run."""
    clone = fresh_clone(tmp_path_factory.mktemp("photos") / "clone")
    clone.set("data.name=folder", "data.val_fraction=0.2", "data.test_fraction=0.3")
    clone.set("train.epochs=2", "train.batch_size=16", "train.augment.flip=true")
    generator = np.random.default_rng(0)
    for number in range(90):
        folder = clone.path / f"data/own/{'abc'[number % 3]}"
        folder.mkdir(exist_ok=True)
        coarse = generator.integers(0, 256, (5, 7, 3), dtype=np.uint8) // (1 + number % 3)
        photo = Image.fromarray(coarse).resize((53 + number, 47), Image.Resampling.BICUBIC)
        photo.save(folder / f"{number}.jpg", quality=60 + number % 30, subsampling=number % 3, progressive=number % 2)
    clone.run("python", "stages/download.py", PYTHONPATH="src")
    return clone


def outs(clone: Workspace, *stages: str, **environment: str) -> dict[str, bytes]:
    """Run stages in a copy; return the bytes of everything that they publish."""
    clone = clone.copy(clone.path.with_name("running"))
    for stage in stages:
        clone.run("python", f"stages/{stage}.py", PYTHONPATH="src", **environment)
    files = [
        path
        for out in ("data/processed", "data/report", "data", "models", "models/export", "metrics")
        for path in (clone.path / out).glob("[!.]*.*")
    ]
    content = {str(path.relative_to(clone.path)): path.read_bytes() for path in files}
    shutil.rmtree(clone.path)
    return content


STAGES = ("preprocess", "train", "evaluate", "export")


@pytest.fixture(scope="module")
def native(photos):
    content = outs(photos, *STAGES)
    assert {"data/processed/train_images.npy", "models/model.safetensors", "models/model.json"} < set(content)
    assert {"metrics/test.json", "metrics/history.csv", "data/predictions.csv"} < set(content)
    return content


def differing(one: dict[str, bytes], two: dict[str, bytes]) -> list[str]:
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_neither_a_lesser_cpu_nor_what_the_shell_has_set_changes_a_byte(photos, native, name):
    assert differing(native, outs(photos, *STAGES, **SURROUNDINGS[name])) == []


needs_avx512 = pytest.mark.skipif(
    not __cpu_features__.get("AVX512F"), reason="only on a CPU with AVX-512 is there more than AVX2 to take away"
)


@needs_avx512
def test_caps_of_a_shell_do_not_reach_a_machine_run_whose_bits_are_others_than_portable_ones(photos):
    portable = outs(photos.copy(photos.path.with_name("portable")), "preprocess", "train")
    clone = photos.copy(photos.path.with_name("machine"))
    clone.set("train.reproducible=machine")
    free = outs(clone, "preprocess", "train")
    capped = outs(clone, "preprocess", "train", **PORTABLE)
    assert list(differing(free, capped)) == []
    assert {"models/model.safetensors", "models/model.json"} <= set(differing(free, portable))
    levels = [json.loads(content["models/model.json"])["provenance"]["cpu_capability"] for content in (free, portable)]
    assert levels == ["AVX512", "AVX2"]


def test_the_lesser_cpu_is_noticed_by_the_libraries():
    def shown(*command):
        run = partial(subprocess.run, command, capture_output=True, text=True)
        return [run(env=environment).stdout for environment in ({}, LESSER_CPU)]

    features = "from numpy._core._multiarray_umath import __cpu_features__ as all; print(sum(all.values()))"
    all_of_them, fewer = map(int, shown(sys.executable, "-c", features))
    assert all_of_them - fewer >= len(LESSER_CPU["NPY_DISABLE_CPU_FEATURES"].split()) > 0
    if LOADER.exists():
        one, other = (re.findall(r"active\[.*", said) for said in shown(LOADER, "--list-diagnostics"))
        assert one != other


STEPS = """
import hashlib, sys
from reprise.runtime.environment import after_torch, before_torch
before_torch(1, sys.argv[1])
import torch
after_torch(1, sys.argv[1])
from torch import nn
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1, groups=2), nn.GELU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
).to(memory_format=torch.channels_last)
images, labels = torch.rand(16, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(16) % 10
weights = list(net.parameters())
for _ in range(2):
    loss = nn.functional.cross_entropy(net(images), labels)
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights)):
        weight.data.sub_(gradient, alpha=0.1)
state = b"".join(tensor.contiguous().numpy().tobytes() for tensor in net.state_dict().values())
print(hashlib.sha256(state).hexdigest())
"""


def qemu() -> str | None:
    """Return the emulator, if it knows AVX2 (7.2 and newer)."""
    found = shutil.which("qemu-x86_64")
    if found is None:
        return None
    shown = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", shown)
    return found if version and tuple(map(int, version.groups())) >= (7, 2) else None


@pytest.mark.skipif(qemu() is None, reason="qemu-x86_64 7.2 or newer is not installed: no CPU is emulated")
def test_an_emulated_older_cpu_takes_the_same_training_steps_to_the_same_bits():
    """Half a minute for two steps: the emulated import of torch alone takes most of it, so no whole training."""
    environment = {"PYTHONPATH": f"{ROOT / 'src'}:{sysconfig.get_paths()['purelib']}"}
    interpreter = str(Path(sys.executable).resolve())  # qemu follows no links

    def weights(mode: str, *emulator: str) -> str:
        command = [*emulator, interpreter, "-c", STEPS, mode]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    portable = weights("portable")
    assert weights("portable", str(qemu()), "-cpu", "Haswell") == portable
    if __cpu_features__.get("AVX512F"):
        assert weights("machine") != portable
