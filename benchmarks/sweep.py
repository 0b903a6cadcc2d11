"""Sweeps: TPE against random trials on a function, the overhead of a trial, two jobs against one, and kills.

python benchmarks/sweep.py                   the function alone, in seconds
python benchmarks/sweep.py PROJECT           sweeps in a clone of this repository, nothing uncommitted, in minutes
python benchmarks/sweep.py PROJECT --kills   24 trials by two jobs, whose driver is killed twice and a training once
"""

import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from reprise.repo.project import Project
from reprise.search.space import Definition
from reprise.search.storage import create_study
from reprise.search.study import begin, sampler, suggest
from reprise.search.sweep import run_sweep

SPACE = {
    "train.lr": "log(1e-5, 1)",
    "train.weight_decay": "log(1e-6, 1)",
    "train.augment.rotate": "float(0, 45)",
    "train.batch_size": "16|32|64|128",
}
TRIALS, REPETITIONS = 24, 5
EPOCHS = 40  # half a minute


def loss(params: dict) -> float:
    """Return what a training might reach: best at a learning rate of 3e-3, a decay of 1e-2, 10 degrees, 32 images."""
    away = (math.log10(params["train.lr"] / 3e-3), math.log10(params["train.weight_decay"] / 1e-2) / 2)
    return (
        sum(part**2 for part in away)
        + (params["train.augment.rotate"] / 10 - 1) ** 2 / 4
        + params["train.batch_size"] / 256
    )


def best_so_far(name: str, seed: int) -> list[float]:
    """Return the best loss after each trial."""
    definition = Definition.load(
        Path("sweep.yaml"), space=SPACE, sampler=name, seed=seed, objectives=["val_loss"], trials=TRIALS
    )
    study = create_study(definition, {}, [])
    found: list[float] = []
    for number in range(TRIALS):
        study.sampler = sampler(definition, number, parallel=False)
        trial = study.ask()
        value = loss(suggest(trial, definition))
        study.tell(trial, value)
        found.append(min([value, *found[-1:]]))
    return found


def function() -> None:
    needed = []
    for seed in range(REPETITIONS):
        tpe, random = best_so_far("tpe", seed), best_so_far("random", seed)
        reached = next((number for number, value in enumerate(tpe, 1) if value <= random[-1]), None)
        needed.append(reached or TRIALS + 1)
        print(
            f"seed {seed}: best of {TRIALS}: TPE {tpe[-1]:.3f}, random {random[-1]:.3f}; TPE is there after {reached}"
        )
    print(f"TPE needs a median of {statistics.median(needed)} trials to the best of {TRIALS} random ones")


def sweeps(project: Project) -> None:
    """Compare a sweep with its trainings alone, and two jobs with one."""
    rates = {}
    started = time.monotonic()
    alone = [sys.executable, "src/train.py", f"train.epochs={EPOCHS}"]
    subprocess.run(alone, cwd=project.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    training = time.monotonic() - started
    print(f"a training alone, by src/train.py: {training:.1f} s")
    for jobs in (1, 2):
        space, count = {"train.lr": "log(1e-3, 1e-2)", "train.epochs": EPOCHS}, 2 * jobs
        definition = begin(project, f"bench-{jobs}-{int(time.time())}", {"space": space, "trials": count, "seed": jobs})
        started = time.monotonic()
        run_sweep(project, definition, jobs)
        taken = time.monotonic() - started
        rates[jobs] = count / taken
        print(
            f"{jobs} jobs: {count} trials in {taken:.0f} s, {taken * jobs / count / training:.2f} times a training each"
        )
    print(f"two jobs give {rates[2] / rates[1]:.2f} times the trials of one; load {os.getloadavg()}")


def kills(project: Project) -> None:
    """Sweep the default's learning rate and batch size, and confirm the best on three seeds, beside `kill -9`."""
    name = f"kills-{int(time.time())}"
    settings = ["train.lr=log(1e-4,3e-2)", "train.batch_size=16|32|64", "--trials", str(TRIALS), "--jobs", "2"]
    command = [sys.executable, "-m", "reprise", "sweep", *settings, "--name", name, "--confirm", "3"]
    ledger = project.root / f"sweeps/{name}.jsonl"

    def ended() -> int:
        return len(ledger.read_text().splitlines()) if ledger.exists() else 0

    started = time.monotonic()
    driver = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True)
    for victim in ("driver", "training", "driver"):
        enough = ended() + 5
        while ended() < enough and driver.poll() is None:
            time.sleep(0.5)
        below = psutil.Process(driver.pid).children(recursive=True)
        trainings = [each.pid for each in below if "stages/train.py" in " ".join(each.cmdline())]
        pid = driver.pid if victim == "driver" else trainings[0]
        os.kill(pid, 9)
        print(f"after {time.monotonic() - started:.0f} s and {ended()} trials: kill -9 of a {victim}", flush=True)
        if victim == "driver":
            driver.communicate()
            driver = subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True)
    said = driver.communicate()[0]
    taken = time.monotonic() - started
    refs = project.git("for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()
    experiments = [ref for ref in refs if re.fullmatch(rf"{name}-\d+", ref)]
    numbers = re.findall(r'"number": (\d+)', ledger.read_text())
    states = re.findall(r'"state": "(\w+)"', ledger.read_text())
    print(f"exit code {driver.returncode} after {taken:.0f} s: {len(experiments)} experiments, {len(set(numbers))}")
    print(f"trials in {len(numbers)} lines, {states.count('complete')} complete; load {os.getloadavg()}\n{said}")


if __name__ == "__main__":
    function()
    if sys.argv[1:]:
        (kills if "--kills" in sys.argv else sweeps)(Project.find(Path(sys.argv[1])))
