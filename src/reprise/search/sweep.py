"""Runs a sweep: trials in work trees of their own, several at a time; the same command goes on after any end.

What a trial tries is noted in runs/sweeps/NAME before it begins, so that it goes on with that, from its checkpoint.
"""

import csv
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError, Popen, TimeoutExpired
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from reprise.repo.project import Project
from reprise.repo.revisions import HISTORY, MODEL, TRAIN, parse_yaml
from reprise.repo.trials import COURSE, Workspace, end, remove_trees, workspace
from reprise.runtime.atomic import Lock, publishing
from reprise.runtime.environment import cpus
from reprise.runtime.errors import UserError, brief, say
from reprise.search.space import Definition
from reprise.search.study import Trial, create_study, record, sampler, suggest, trials

STAGES = ("check", "download", "preprocess", "train")
POLL_S = 0.3
ATTEMPTS = 2  # of a training that ends with an error: another process may have killed it
FEWEST = 4  # trials that have ended, before their failing stops a sweep
SPARE = 2**24  # bytes that the disk must still take after an error, or it is the disk's


class Sweep:
    """A sweep at work, in several threads."""

    def __init__(self, project: Project, definition: Definition, jobs: int) -> None:
        self.project, self.definition, self.commit, self.jobs = project, definition, str(definition.commit), jobs
        self.train = parse_yaml(project.read("params.yaml", self.commit))["train"]
        threads = self.train["threads"]
        if jobs > 1 and jobs * (cpus() if threads == "auto" else int(threads)) > cpus():
            raise UserError(f"--jobs {jobs} with train.threads: {threads} is more than the {cpus()} CPUs; lower one")
        self.folder, self.stop = project.root / "runs/sweeps" / definition.name, threading.Event()
        self.ended = trials(project, definition)
        begun = {int(path.stem): json.loads(path.read_text("utf-8")) for path in self.folder.glob("*.json")}
        self.study = create_study(definition, begun, self.ended)

    def run(self) -> None:
        """Run the trials that are missing. Raises UserError if more than half of all fail."""
        self._reseed()
        work = partial(self.study.optimize, self._objective, catch=CalledProcessError, callbacks=[self._next])
        with ThreadPoolExecutor(1) as pool:
            try:
                if (left := self.definition.trials - len(self.ended)) > 0 and not self._fails():
                    pool.submit(work, n_trials=left, n_jobs=self.jobs).result()
            finally:
                self.stop.set()
        if self._fails():
            failed = [trial for trial in self.ended if trial.state == "failed"]
            way_out = f"without their lines in sweeps/{self.definition.name}.jsonl they run again"
            why = f"{failed[-1].name} by: {failed[-1].reason}"
            raise UserError(f"{len(failed)} of {len(self.ended)} trials failed, {why}; {way_out}")

    def _fails(self) -> bool:
        failed = sum(trial.state == "failed" for trial in self.ended)
        return len(self.ended) >= FEWEST and 2 * failed > len(self.ended)

    def _reseed(self) -> None:
        self.study.sampler = sampler(self.definition, len(self.ended), self.jobs > 1)

    def _next(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prepare the choice of the next trial; this one has ended."""
        self._note(trial.number, params=trial.params, system=trial.system_attrs)
        self._reseed()
        if self._fails():
            study.stop()

    def _note(self, number: int, **content: Any) -> None:
        with publishing(self.folder / f"{number}.json") as (partial,):
            partial.write_text(json.dumps(content), encoding="utf-8")

    def _objective(self, trial: optuna.Trial) -> list[float]:
        """Run one trial; return its values for Optuna. Raises TrialPruned, or CalledProcessError if it fails."""
        params, number = suggest(trial, self.definition), trial.number
        if self.definition.sampler == "grid" and params in [each.params for each in self.ended]:
            self.study.stop()  # there are no others
            raise optuna.TrialPruned
        self._note(number, params=params)
        name, log, started = f"{self.definition.name}-{number:04d}", self.folder / f"{number}.log", time.monotonic()
        with workspace(self.project, self.commit) as found:
            for _ in range(ATTEMPTS):
                process = found.run(params, log, "train")
                epoch, course = self._watch(process, found, trial)
                if epoch or process.returncode == 0:
                    break
                with tempfile.TemporaryFile(dir=self.folder) as file:  # raises if the disk is full
                    file.write(bytes(SPARE))
            seconds = round(time.monotonic() - started, 1)
            ended = Trial(number, name, "complete", params, None, None, seconds, course[:epoch], None)
            if epoch:
                ended = ended.but(state="pruned", reason=f"after epoch {epoch}")
            elif process.returncode:
                ended = ended.but(state="failed", reason=_error(log))
            else:
                ended = ended.but(values=self._values(found))
                message = f"sweep {self.definition.name}, trial {number}\n\n{ended.line()}"
                ended = ended.but(commit=found.save(name, message, STAGES))
        record(self.project, ended)
        self.ended.append(ended)
        say(f"{name}: {ended.values or f'{ended.state}, {ended.reason}'}, {seconds:.0f} s, {json.dumps(params)}")
        if epoch:
            raise optuna.TrialPruned
        if ended.values is None:
            raise CalledProcessError(process.returncode, "train")
        return ended.values

    def _watch(self, process: Popen[bytes], found: Workspace, trial: optuna.Trial) -> tuple[int | None, list[float]]:
        """Wait for a training; return the epoch after which it is pruned, if it is, and its course."""
        epochs = int(trial.params.get("train.epochs", self.train["epochs"])) if self.definition.pruner != "none" else 0
        course: list[float] = []
        try:
            while process.returncode is None:
                if self.stop.is_set():
                    raise SystemExit  # whoever has set it says why
                with suppress(TimeoutExpired):
                    process.wait(POLL_S)
                now = self._course(found.root / (HISTORY if process.returncode == 0 else COURSE))
                for value in now[len(course) :]:
                    course.append(value)
                    if len(course) < epochs:
                        trial.report(value, len(course))
                        if trial.should_prune():
                            return len(course), course
        finally:
            end(process)
        return None, course

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
            reached["flops"] = count_flops(build(architecture), architecture)
        return [float(reached[metric]) for metric in self.definition.metrics]


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
        Sweep(project, definition, jobs).run()
        remove_trees(project)
    finally:
        lock.release()
    return trials(project, definition)


def _error(log: Path) -> str:
    """Return what a training said last, if possible of an error."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] or ["nothing was said"]
    return brief([*lines[-1:], *(line for line in lines if line.startswith("error: "))][-1], 300)
