"""The trials of a sweep that have ended, and Optuna's study of them, which chooses what the next one tries.

A complete trial is an experiment of DVC, whose message holds its record, so that it travels by `dvc exp push`. Pruned
and failed ones cannot be experiments: they, too, are in sweeps/NAME.jsonl, the ledger, which stays on its machine.

Optuna keeps no state of its samplers: each trial has one of its own, seeded by (the sweep's seed, the trial's number).
"""

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import optuna
from optuna import samplers
from optuna.distributions import distribution_to_json

from reprise.params.presets import edited
from reprise.repo.project import Project
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError
from reprise.search.space import Definition

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
State = Literal["complete", "pruned", "failed"]
SCHEMA = "# yaml-language-server: $schema=../src/reprise/search/sweep.schema.json\ntrials: 20\n"


@dataclass(frozen=True)
class Trial:
    """A trial that has ended. values: of the objectives; course: the first one after each epoch; commit: experiment."""

    number: int
    name: str
    state: State
    params: dict[str, Any]
    values: list[float] | None
    reason: str | None
    seconds: float
    course: list[float]
    commit: str | None

    def line(self) -> str:
        """Return the record as a line of JSON."""
        return json.dumps(asdict(self))


def begin(project: Project, name: str, changes: dict[str, Any]) -> Definition:
    """Return a sweep's definition, with these changes; write into its file what is new, and what it begins with.

    Raises UserError for a space that params.yaml refuses, uncommitted changes, or another sweep of the same name.
    """
    path = project.root / "sweeps" / f"{name}.yaml"
    definition = Definition.load(path, **changes)
    before = project.read(f"sweeps/{name}.jsonl") or project.refs(f"refs/exps/*/*/{name}-[0-9]*")
    if definition.commit is None and not before:
        project.refuse_edits("all trials have the code, data and params of the last commit", "sweeps")
        definition.check(project.root / "params.yaml")
        begun = definition.model_copy(update={"commit": project.git("rev-parse", "HEAD").strip()})
        changes = {**changes, "commit": begun.commit, "digest": begun.deciding()}
    elif definition.digest != definition.deciding():
        way_out = "choose another name"
        raise UserError(f"{path.name}: a sweep of this name began with another space, setting or --storage; {way_out}")
    if changes:
        text = path.read_text("utf-8") if path.exists() else SCHEMA
        with publishing(path) as (partial,):
            partial.write_text(edited(text, lambda tree: tree.update(changes)), encoding="utf-8")
    return Definition.load(path)


def trials(project: Project, definition: Definition, elsewhere: Iterable[Trial] = ()) -> list[Trial]:
    """Return the trials that have ended, by number: those of the ledger, and those that exist as experiments alone.

    elsewhere: those of a storage. commit: None for an experiment that was removed, or is at another machine. Raises
    UserError for a line of the ledger that is no record.
    """
    commit = definition.commit or "none"
    form = "--format=%(refname:lstrip=4) %(objectname) %(contents:body)"
    found = project.git("for-each-ref", form, f"refs/exps/{commit[:2]}/{commit[2:]}").splitlines()
    experiments = [line.split(" ", 2) for line in found if re.match(rf"{definition.name}-\d{{4,}} \w+ {{", line)]
    commits = {name: commit for name, commit, _ in experiments}
    path = f"sweeps/{definition.name}.jsonl"
    try:
        lines = [*(line for *_, line in experiments), *project.read(path).splitlines()]
        ended = {trial.number: trial for trial in (Trial(**json.loads(line)) for line in lines)}
    except (ValueError, TypeError):
        raise UserError(f"{path}: a line is no record of a trial; remove that line, and its trial runs again") from None
    ended |= {trial.number: trial for trial in elsewhere}
    return [replace(ended[number], commit=commits.get(ended[number].name)) for number in sorted(ended)]


def record(project: Project, trial: Trial) -> None:
    """Add a trial to its sweep's ledger, whole and synced."""
    path = project.root / "sweeps" / f"{trial.name.rpartition('-')[0]}.jsonl"
    with publishing(path) as (partial,):
        before = path.read_text("utf-8") if path.exists() else ""
        partial.write_text(f"{before}{trial.line()}\n", encoding="utf-8")


class NSGA2(samplers.NSGAIISampler):
    """NSGA-II whose parents are in one order, whether they are chosen now or were noted by an earlier trial."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[optuna.trial.FrozenTrial]:
        """Return the parents of a generation by number."""
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


class Grid(samplers.BruteForceSampler):
    """All combinations, the last of which ends no `Study.optimize`."""

    def after_trial(self, *_: Any) -> None:
        """Do nothing."""


def sampler(definition: Definition, number: int, parallel: bool) -> samplers.BaseSampler:
    """Return Optuna's sampler for one trial. parallel: others run meanwhile, and are taken to end badly."""
    seed = int(np.random.SeedSequence([definition.seed, number]).generate_state(1)[0])
    if definition.sampler == "nsga2":
        return NSGA2(population_size=min(50, max(4, definition.trials // 5)), seed=seed)
    if definition.sampler == "tpe":
        grouped = bool(definition.when)
        return samplers.TPESampler(multivariate=True, group=grouped, constant_liar=parallel, seed=seed)
    return Grid(seed) if definition.sampler == "grid" else samplers.RandomSampler(seed)


def suggest(trial: optuna.Trial, definition: Definition) -> dict[str, Any]:
    """Return the params that the sampler, or whoever enqueued the trial, has chosen."""
    chosen: dict[str, Any] = {}
    for key, each in definition.space.items():
        if any(chosen.get(other, ...) != value for other, value in definition.when.get(key, {}).items()):
            continue
        made = json.loads(distribution_to_json(each))  # {"name": "FloatDistribution", "attributes": {"low": 0, ...}}
        choose = getattr(trial, f"suggest_{made['name'].removesuffix('Distribution').lower()}")
        chosen[key] = choose(key, **made["attributes"])
    return chosen
