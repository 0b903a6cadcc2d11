"""What the benchmarks share: turns, Markdown tables, the machine in one line, a training in a process of its own.

Contenders take turns in one run, so that what else the machine does meets them all; ratios are medians over the turns.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent

# One real training, as the stage does it: with `kept` published under the locks, with checkpoints. Prints JSON.
TRAINING = """
import contextlib, io, json, re, sys, time
from pathlib import Path
from reprise.params.load import load_params
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.atomic import publishing
processed, folder, kept, *overrides = sys.argv[1:]
params = load_params("params.yaml", overrides)
before_torch(params.train.threads, params.train.reproducible)
from reprise.training.train import train
after_torch(params.train.threads, params.train.reproducible)
names = ("model.safetensors", "model.json", "train.json", "history.csv")
started, log = time.perf_counter(), io.StringIO()
with contextlib.redirect_stderr(log):
    if kept == "kept":
        with publishing(*(Path(folder, name) for name in names)) as outs:
            result = train(Path(processed), params.model, params.train, Path(folder, "scratch"))
            result.save(*outs)
        result.discard_checkpoints()
    else:
        result = train(Path(processed), params.model, params.train)
        result.save(*(Path(folder, name) for name in names))
seconds = time.perf_counter() - started
rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\\d,]+) images/s", log.getvalue())]
import psutil
memory = psutil.Process().memory_info()
print(json.dumps({"seconds": seconds, "rates": rates, "memory": memory.rss - memory.shared}))
"""


def python(*command: str, cwd: Path = ROOT) -> str:
    """Run Python with this library, on the CPU; return what it printed last. Exits with its errors if it fails."""
    settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **settings}
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.splitlines()[-1]


def training(processed: Path, folder: Path, overrides: Iterable[str], kept: bool = False) -> dict[str, float]:
    """Train in a process of its own; return seconds of `train`, images/s past the first epoch, bytes of its own.

    The first epoch is left out where there are others: in it kernels are chosen and memory is first touched. Bytes of
    its own: resident at the end, without the pages of files, which the system takes back when it needs them.
    """
    facts = json.loads(python("-c", TRAINING, str(processed), str(folder), "kept" if kept else "", *overrides))
    rates = facts["rates"][1:] or facts["rates"]
    return {"seconds": facts["seconds"], "rate": statistics.median(rates), "memory": facts["memory"]}


def in_turns(contenders: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Return each contender's measurements, taken in turns."""
    measured: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, measure in contenders.items():
            measured[name].append(measure())
    return measured


def ratio(one: Iterable[float], other: Iterable[float]) -> float:
    """Return the median of the ratios within the turns."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def print_row(*cells: object) -> None:
    """Print one line of a Markdown table."""
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def print_header(*names: str) -> None:
    """Print the head of a Markdown table: the first column to the left, the others to the right."""
    print_row(*names)
    print_row("---", *["---:"] * (len(names) - 1))


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return median (lowest - highest)."""
    ordered = sorted(values)
    shown = f"{statistics.median(ordered):,.{digits}f}"
    return f"{shown} ({ordered[0]:,.{digits}f} - {ordered[-1]:,.{digits}f})" if len(ordered) > 1 else shown


def machine() -> str:
    """Return processor, cores, system and the versions that speed depends on, in one line."""
    cpu = platform.processor() or platform.machine()
    names = Path("/proc/cpuinfo")
    if names.exists():
        cpu = next((line.split(":")[1].strip() for line in names.open() if line.startswith("model name")), cpu)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "timm", "dvc"))
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"


class PeakMemory(threading.Thread):
    """Samples the private memory of this process and its children; `peak` is the most seen together, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until `done`."""
        own = psutil.Process()
        while not self.done.wait(0.05):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
