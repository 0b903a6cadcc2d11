"""Runs a sweep: trials in work trees of their own, several at a time; the same command goes on after any end.

What a trial tries is noted in runs/sweeps/NAME before it begins, so that it goes on with that, from its checkpoint.
"""

import csv
import json
import math
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from subprocess import Popen, TimeoutExpired
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from reprise.repo.project import Project
from reprise.repo.revisions import HISTORY, MODEL, TRAIN, Revision, parse_yaml
from reprise.repo.trials import COURSE, STAGES, Workspace, end, remove_trees, workspace
from reprise.runtime.atomic import Lock, publishing
from reprise.runtime.environment import cpus
from reprise.runtime.errors import UserError, brief, say
from reprise.search.space import Definition
from reprise.search.storage import create_study, finished, number_of, take_over, unusable
from reprise.search.study import NUMBER, RECORD, STATES, Trial, inputs, record, refuse_mixture, sampler, suggest, trials

POLL_S = 0.3
SIGN = "sign"  # of life, a user attribute of a trial at work
SIGN_S, DEAD_S = 60, 600  # seconds between signs, and without one
ATTEMPTS = 2  # of a training that ends with an error: another process may have killed it
FEWEST = 4  # trials that have ended, before their failing stops a sweep
SPARE = 2**24  # bytes that the disk must still take after an error, or it is the disk's


class Sweep:
    """A sweep at work, in several threads; storage: shared with other machines, see `create_study`."""

    def __init__(self, project: Project, definition: Definition, jobs: int, storage: str | None = None) -> None:
        self.project, self.definition, self.commit, self.jobs = project, definition, str(definition.commit), jobs
        self.train, self.storage = parse_yaml(project.read("params.yaml", self.commit))["train"], storage
        threads = self.train["threads"]
        if jobs > 1 and jobs * (cpus() if threads == "auto" else int(threads)) > cpus():
            raise UserError(f"--jobs {jobs} with train.threads: {threads} is more than the {cpus()} CPUs; lower one")
        self.folder, self.stop = project.root / "runs/sweeps" / definition.name, threading.Event()
        self.choosing, self.exhausted, self.own = threading.Lock(), False, set[int]()
        self.signs: dict[tuple[int, float], float] = {}  # of life, and since when they have not changed
        begun = {int(path.stem): json.loads(path.read_text("utf-8")) for path in self.folder.glob("*.json")}
        self.study = create_study(definition, begun, trials(project, definition), storage)

    def run(self) -> list[Trial]:
        """Run the trials that are missing; return those of all machines. Raises UserError if more than half fail."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for job in as_completed([pool.submit(self._work) for _ in range(self.jobs)]):
                    job.result()
            except StorageInternalError as error:
                raise unusable(self.storage, error) from None
            finally:
                self.stop.set()
        if failed := self._failed():
            way_out = f"without their lines in sweeps/{self.definition.name}.jsonl they run again"
            why = f"{failed[-1].name} by: {failed[-1].reason}"
            raise UserError(f"{len(failed)} of {len(finished(self.study))} trials failed, {why}; {way_out}")
        return finished(self.study)

    def _work(self) -> None:
        """Run one trial after another until all have ended, here and elsewhere."""
        while not (self.stop.is_set() or self._failed()):
            with self.choosing:
                trial = self._choose()
            if trial:
                with suppress(UpdateFinishedTrialError):  # another machine has taken it over
                    self._run(trial)
            elif running := [each for each in self._begun() if each.state == TrialState.RUNNING]:
                self._wait(running)
            else:
                return

    def _choose(self) -> optuna.Trial | None:
        """Return the next trial with its params, if there is one."""
        if self.exhausted or len(set(map(number_of, self._begun()))) >= self.definition.trials:
            return None
        trial = self.study.ask()
        self.study.sampler = sampler(self.definition, trial.number, self.jobs > 1 or bool(self.storage))
        params, before = suggest(trial, self.definition), [each for each in self._begun() if each.number < trial.number]
        self.exhausted = self.definition.sampler == "grid" and params in [each.params for each in before]
        if self.exhausted or len(set(map(number_of, before))) >= self.definition.trials:  # by other machines meanwhile
            self.study.tell(trial, state=TrialState.FAIL)
            self.study.enqueue_trial(params, {NUMBER: number_of(trial)})  # if more are asked for later
            return None
        self.own.add(trial.number)
        self._note(trial)
        return trial

    def _begun(self) -> list[FrozenTrial]:
        """Return the trials at work and those with a record; the others are void: taken over, or one too many."""
        known = self.study.get_trials(deepcopy=False)
        return [each for each in known if each.state == TrialState.RUNNING or RECORD in each.user_attrs]

    def _wait(self, running: list[FrozenTrial]) -> None:
        """Wait for trials of other machines; take over those without a sign of life."""
        now, signs = time.monotonic(), [(each.number, each.user_attrs.get(SIGN, -1)) for each in running]
        self.signs = {sign: self.signs.get(sign, now) for sign in signs}
        for each, sign in zip(running, signs, strict=True):
            if each.number not in self.own and now - self.signs[sign] > DEAD_S:
                say(f"trial {number_of(each)}: no sign of the machine that ran it, so it runs again")
                take_over(self.study, self.definition, each, {})
        self.stop.wait(POLL_S)

    def _failed(self) -> list[Trial]:
        """Return the failed trials, if they are so many that the sweep ends."""
        ended = finished(self.study)
        failed = [trial for trial in ended if trial.state == "failed"]
        return failed if len(ended) >= FEWEST and 2 * len(failed) > len(ended) else []

    def _note(self, trial: optuna.Trial) -> None:
        noted = self.study.get_trials(deepcopy=False)[trial.number]
        with publishing(self.folder / f"{trial.number}.json") as (partial,):
            partial.write_text(json.dumps({"params": noted.params, "system": noted.system_attrs}), encoding="utf-8")

    def _run(self, trial: optuna.Trial) -> None:
        params, number, started = trial.params, number_of(trial), time.monotonic()
        name, log = f"{self.definition.name}-{number:04d}", self.folder / f"{number}.log"
        with workspace(self.project, self.commit) as found:
            several: list[list[float]] = []
            for place, own in enumerate(self.definition.runs, 1):
                process, epoch, course = self._train(found, params | own, log, trial, judged=place == 1)
                if epoch or process.returncode:
                    break
                several.append(self._values(found))
                if place < len(self.definition.runs):
                    found.save(f"{name}-{place}", f"sweep {self.definition.name}, trial {number}, a part", STAGES)
            seconds = round(time.monotonic() - started, 1)
            read, digest = inputs(Revision(Project(found.root))), self.definition.digest
            ended = Trial(number, name, "complete", params, None, None, seconds, course[:epoch], None, digest, read)
            values = [] if epoch or process.returncode else [fmean(each) for each in zip(*several, strict=True)]
            if epoch:
                ended = replace(ended, state="pruned", reason=f"after epoch {epoch}")
            elif process.returncode:
                ended = replace(ended, state="failed", reason=_error(log), inputs=None)
            elif not all(map(math.isfinite, values)):
                ended = replace(ended, state="failed", reason=f"an objective is no number: {values}")
            refuse_mixture([*finished(self.study), ended])
            if ended.state == "complete":
                ended = replace(ended, values=values)
                trial.set_user_attr(SIGN, 0)  # or it is not this machine's any more
                message = f"sweep {self.definition.name}, trial {number}\n\n{ended.line()}"
                ended = replace(ended, commit=found.save(name, message, STAGES))
        record(self.project, ended)
        trial.set_user_attr(RECORD, ended.line())
        say(f"{name}: {ended.values or f'{ended.state}, {ended.reason}'}, {seconds:.0f} s, {json.dumps(params)}")
        self.study.tell(trial, ended.values, STATES[ended.state] if ended.values is None else None)
        self._note(trial)

    def _train(
        self, found: Workspace, params: dict[str, Any], log: Path, trial: optuna.Trial, judged: bool
    ) -> tuple[Popen[bytes], int | None, list[float]]:
        """Run a training, a second time if it fails; return its process and what `_watch` gives."""
        for _ in range(ATTEMPTS):
            process = found.run(params, log, "train")
            epoch, course = self._watch(process, found, trial, judged)
            if epoch or process.returncode == 0:
                break
            with tempfile.TemporaryFile(dir=self.folder) as file:  # raises if the disk is full
                file.write(bytes(SPARE))
        return process, epoch, course

    def _watch(
        self, process: Popen[bytes], found: Workspace, trial: optuna.Trial, judged: bool
    ) -> tuple[int | None, list[float]]:
        """Wait for a training; return the epoch after which it is pruned, if it is, and its course."""
        pruned = judged and self.definition.pruner != "none"
        epochs = int(trial.params.get("train.epochs", self.train["epochs"])) if pruned else 0
        course: list[float] = []
        signed = time.monotonic()
        try:
            while process.returncode is None:
                if self.stop.is_set():
                    raise SystemExit  # whoever has set it says why
                if time.monotonic() - signed > SIGN_S:
                    signed = time.monotonic()
                    trial.set_user_attr(SIGN, signed)
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
        text = ""
        with suppress(FileNotFoundError):  # it gets its final name, or has not begun
            text = path.read_text("utf-8").rpartition("\n")[0]
        objective, rows = self.definition.metrics[0], csv.DictReader(text.splitlines())
        return [float(row[objective]) for row in rows if objective in row]

    def _values(self, found: Workspace) -> list[float]:
        reached = json.loads((found.root / TRAIN).read_text("utf-8"))
        if "flops" in self.definition.metrics:
            from reprise.model.artifact import load_card
            from reprise.model.backbone import build, count_flops

            architecture = load_card(found.root / MODEL).architecture
            reached["flops"] = count_flops(build(architecture), architecture)
        return [math.nan if reached[metric] is None else float(reached[metric]) for metric in self.definition.metrics]


def run_sweep(project: Project, definition: Definition, jobs: int, storage: str | None = None) -> list[Trial]:
    """Run the trials of a sweep that are missing, so many at a time; return all by number.

    storage: of a sweep that several machines share, see `create_study`; all their trials have ended at the end. Raises
    UserError if this machine has too few CPUs, if more than half of the trials fail, or while a sweep runs here.
    """
    (project.root / "runs/sweeps" / definition.name).mkdir(parents=True, exist_ok=True)
    lock = Lock(project.root / "runs/sweeps")
    if not lock.acquire(wait=False):
        raise UserError("a sweep is at work in this clone; wait for it, or stop it and give it more --jobs")
    try:
        ended = Sweep(project, definition, jobs, storage).run()
        remove_trees(project)
    finally:
        lock.release()
    return trials(project, definition, ended)


def _error(log: Path) -> str:
    """Return what a training said last, if possible of an error."""
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] or ["nothing was said"]
    return brief([*lines[-1:], *(line for line in lines if line.startswith("error: "))][-1], 300)
