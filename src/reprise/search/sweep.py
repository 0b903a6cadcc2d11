"""Runs a sweep: trials in work trees of their own, several at a time; the same command goes on after any end.

What a trial tries is noted in runs/sweeps/NAME before it begins, so that it goes on with that, from its checkpoint.
"""

import csv
import json
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna

from reprise.repo.project import Project
from reprise.repo.revisions import HISTORY, MODEL, TRAIN, parse_yaml
from reprise.repo.trials import COURSE, Workspace, end, remove_trees, workspace
from reprise.runtime.atomic import Lock, publishing
from reprise.runtime.environment import cpus
from reprise.runtime.errors import UserError, brief, say
from reprise.search.space import Definition
from reprise.search.study import STATES, State, Trial, ask, pruner, record, trials

STAGES = ("check", "download", "preprocess", "train")
POLL_S = 0.3
ATTEMPTS = 2  # of a training that ends with an error: another process may have killed it
FEWEST = 4  # trials that have ended, before their failing stops a sweep
SPARE = 2**24  # bytes that the disk must still take after an error, or it is the disk's
Params = dict[str, Any]


class Sweep:
    """The trials of a sweep, those that have ended and those that run. Used by several threads."""

    def __init__(self, project: Project, definition: Definition, jobs: int) -> None:
        assert definition.begun
        self.project, self.definition, self.commit = project, definition, definition.begun.commit
        self.train = parse_yaml(project.read("params.yaml", self.commit))["train"]
        self.folder, self.parallel = project.root / "runs/sweeps" / definition.name, jobs > 1
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.ended = {trial.number: trial for trial in trials(project, definition)}
        threads = self.train["threads"]
        if jobs > 1 and jobs * (cpus() if threads == "auto" else int(threads)) > cpus():
            raise UserError(f"--jobs {jobs} with train.threads: {threads} is more than the {cpus()} CPUs; lower one")
        lengths = getattr(definition.space.get("train.epochs"), "choices", [self.train["epochs"]])
        directions, prune = [direction for _, direction in definition.objectives], pruner(definition, max(lengths))
        self.study = optuna.create_study(study_name=definition.name, directions=directions, pruner=prune)
        begun = {int(path.stem): json.loads(path.read_text("utf-8")) for path in self.folder.glob("*.json")}
        self.waiting: list[tuple[optuna.Trial, Params]] = []
        for number in range(max([*self.ended, *begun], default=-1) + 1):  # as before, so that the study is the same
            ended = self.ended.get(number)
            trial, params = ask(self.study, definition, self.parallel, ended.params if ended else begun.get(number))
            if ended:
                self._hopeless(trial, ended.course, 0, self._epochs(params))
                self.study.tell(number, ended.values, STATES[ended.state])
            else:
                self.waiting.append((trial, params))

    def _epochs(self, params: Params) -> int:
        return int(params.get("train.epochs", self.train["epochs"]))

    def _hopeless(self, trial: optuna.Trial, course: list[float], told: int, epochs: int) -> int | None:
        """Tell Optuna of the epochs after `told`; return the one after which its pruner ends the trial, if it does."""
        for epoch in range(told, min(len(course), epochs - 1) if self.definition.pruner != "none" else 0):
            trial.report(course[epoch], epoch + 1)
            if trial.should_prune():
                return epoch + 1
        return None

    def run_one(self) -> None:
        """Run the next trial, one that was begun first, in a work tree of its own."""
        with self.lock:
            begun = self.waiting.pop(0) if self.waiting else ask(self.study, self.definition, self.parallel)
            trial, params = begun
            if self.definition.sampler == "grid" and params in [
                each.params for each in self.study.trials[: trial.number]
            ]:
                return  # it has no others
            with publishing(self.folder / f"{trial.number}.json") as (partial,):
                partial.write_text(json.dumps(params), encoding="utf-8")
        with workspace(self.project, self.commit) as found:
            if not self.stop.is_set():
                self._run(found, trial, params)

    def _run(self, found: Workspace, trial: optuna.Trial, params: Params) -> None:
        started, log = time.monotonic(), self.folder / f"{trial.number}.log"
        for _ in range(ATTEMPTS):
            process = found.run(params, log, "train")
            epoch, course = self._watch(process, found, trial, self._epochs(params))
            if self.stop.is_set():
                return
            if epoch or process.returncode == 0:
                break
            with tempfile.TemporaryFile(dir=self.folder) as file:  # raises if the disk is full
                file.write(bytes(SPARE))
        state: State = "pruned" if epoch else "failed" if process.returncode else "complete"
        reason = _error(log) if state == "failed" else f"after epoch {epoch}" if epoch else None
        values = self._values(found) if state == "complete" else None
        seconds, name = round(time.monotonic() - started, 1), f"{self.definition.name}-{trial.number:04d}"
        ended = Trial(trial.number, name, state, params, values, reason, seconds, course[:epoch], None)
        if values:
            message = f"sweep {self.definition.name}, trial {trial.number}\n\n{json.dumps(ended._asdict())}"
            ended = ended._replace(commit=found.save(name, message, STAGES))
        self._finish(ended)

    def _watch(
        self, process: subprocess.Popen[bytes], found: Workspace, trial: optuna.Trial, epochs: int
    ) -> tuple[int | None, list[float]]:
        """Wait for a training; return the epoch after which it is pruned, if it is, and its course."""
        course, epoch = list[float](), None
        try:
            while not (epoch or self.stop.is_set() or process.returncode is not None):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                told, path = len(course), found.root / (HISTORY if process.returncode == 0 else COURSE)
                course = max(course, self._course(path), key=len)
                with self.lock:
                    epoch = self._hopeless(trial, course, told, epochs)
        finally:
            end(process)
        return epoch, course

    def _course(self, path: Path) -> list[float]:
        """Return the first objective after each epoch, of a history that may not be whole yet."""
        text = path.read_text("utf-8").rpartition("\n")[0] if path.exists() else ""
        objective, rows = self.definition.metrics[0], csv.DictReader(text.splitlines())
        return [float(row[objective]) for row in rows if objective in row]

    def _values(self, found: Workspace) -> list[float]:
        reached = json.loads((found.root / TRAIN).read_text("utf-8"))
        if "flops" in self.definition.metrics:
            from reprise.model.artifact import load_card
            from reprise.model.backbone import build, count_flops

            architecture = load_card(found.root / MODEL).architecture
            with self.lock:
                reached["flops"] = count_flops(build(architecture), architecture)
        return [float(reached[metric]) for metric in self.definition.metrics]

    def _finish(self, trial: Trial) -> None:
        """Record a trial. Raises UserError once more than half of them have failed."""
        with self.lock:
            record(self.project, trial)
            self.study.tell(trial.number, trial.values, STATES[trial.state])
            self.ended[trial.number] = trial
        said = trial.values or f"{trial.state}, {trial.reason}"
        say(f"{trial.name}: {said}, {trial.seconds:.0f} s, {json.dumps(trial.params)}")
        failed = sum(each.state == "failed" for each in self.ended.values())
        if trial.state == "failed" and len(self.ended) >= FEWEST and 2 * failed > len(self.ended):
            way_out = f"without their lines in sweeps/{self.definition.name}.jsonl they run again"
            raise UserError(f"{failed} of {len(self.ended)} trials failed, the last by: {trial.reason}; {way_out}")


def run_sweep(project: Project, definition: Definition, jobs: int) -> list[Trial]:
    """Run the trials of a sweep that are missing, so many at a time; return all by number.

    Raises UserError if this machine has too few CPUs, if more than half of the trials fail, or while a sweep runs here.
    """
    (project.root / "runs/sweeps" / definition.name).mkdir(parents=True, exist_ok=True)
    lock = Lock(project.root / "runs/sweeps")
    if not lock.acquire(wait=False):
        raise UserError(
            "a sweep is at work in this clone; wait for it, or stop it: --jobs runs several trials at a time"
        )
    try:
        made = Sweep(project, definition, jobs)
        with ThreadPoolExecutor(jobs) as pool:
            try:
                left = definition.trials - len(made.ended)
                for each in as_completed([pool.submit(made.run_one) for _ in range(left)]):
                    each.result()
            finally:
                made.stop.set()
        remove_trees(project)
    finally:
        lock.release()
    return [made.ended[number] for number in sorted(made.ended)]


def _error(log: Path) -> str:
    """Return what a training said last, if possible of an error."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] or ["nothing was said"]
    return brief([*lines[-1:], *(line for line in lines if line.startswith("error: "))][-1], 300)
