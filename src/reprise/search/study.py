"""The trials of a sweep that have ended, and Optuna's study of them, which chooses what the next one tries.

A complete trial is an experiment of DVC, whose message holds its record, so that it travels by `dvc exp push`. Pruned
and failed ones cannot be experiments: they, too, are in sweeps/NAME.jsonl, the ledger, which stays on its machine.

Optuna keeps no state of its samplers: each trial has one of its own, seeded by (the sweep's seed, the trial's number).
"""

import json
import re
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, BruteForceSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from reprise.params.presets import edited
from reprise.repo.project import Project
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError
from reprise.search.space import Definition

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
State = Literal["complete", "pruned", "failed"]
SCHEMA = "# yaml-language-server: $schema=../src/reprise/search/sweep.schema.json\ntrials: 20\n"
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Trial(NamedTuple):
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


def begin(project: Project, path: Path, changes: dict[str, Any]) -> Definition:
    """Return a sweep's definition, with these changes; write into its file what is new, and what it begins with.

    Raises UserError for a space that params.yaml refuses, uncommitted changes, or another sweep of the same name.
    """
    definition = Definition.load(path, changes)
    before = project.read(f"sweeps/{path.stem}.jsonl") or project.refs(f"refs/exps/**/{path.stem}-[0-9]*")
    if definition.begun is None and not before:
        project.refuse_edits("all trials have the code, data and params of the last commit", "sweeps")
        definition.check(project.root / "params.yaml")
        commit = project.git("rev-parse", "HEAD").strip()
        changes = {**changes, "begun": {"commit": commit, "digest": definition.digest}}
    elif definition.begun is None or definition.begun.digest != definition.digest:
        raise UserError(f"{path.name}: a sweep of this name began with another space or setting; choose another name")
    if changes:
        text = path.read_text("utf-8") if path.exists() else SCHEMA
        with publishing(path) as (partial,):
            partial.write_text(edited(text, lambda tree: tree.update(changes)), encoding="utf-8")
    return Definition.load(path)


def trials(project: Project, definition: Definition) -> list[Trial]:
    """Return the trials that have ended, by number: those of the ledger, and those that exist as experiments alone.

    commit: None for an experiment that was removed. Raises UserError for a line of the ledger that is no record.
    """
    commit = definition.begun.commit if definition.begun else "none"
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
    return [ended[number]._replace(commit=commits.get(ended[number].name)) for number in sorted(ended)]


def record(project: Project, trial: Trial) -> None:
    """Add a trial to its sweep's ledger, whole and synced."""
    path = project.root / "sweeps" / f"{trial.name.rpartition('-')[0]}.jsonl"
    with publishing(path) as (partial,):
        before = path.read_text("utf-8") if path.exists() else ""
        partial.write_text(f"{before}{json.dumps(trial._asdict())}\n", encoding="utf-8")


def sampler(definition: Definition, number: int, parallel: bool) -> BaseSampler:
    """Return Optuna's sampler for one trial. parallel: others run meanwhile, and are taken to end badly."""
    seed = int(np.random.SeedSequence([definition.seed, number]).generate_state(1)[0])
    if definition.sampler == "nsga2":
        return NSGAIISampler(population_size=min(50, max(4, definition.trials // 5)), seed=seed)
    if definition.sampler == "tpe":
        grouped = bool(definition.when)
        return TPESampler(multivariate=True, group=grouped, constant_liar=parallel, seed=seed)
    return BruteForceSampler(seed) if definition.sampler == "grid" else RandomSampler(seed)


def pruner(definition: Definition, epochs: int) -> BasePruner:
    """Return Optuna's pruner. epochs: of the longest training."""
    if definition.pruner == "median":
        return MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    return HyperbandPruner(1, epochs) if definition.pruner == "hyperband" else NopPruner()


def ask(
    study: optuna.Study, definition: Definition, parallel: bool, params: dict[str, Any] | None = None
) -> tuple[optuna.Trial, dict[str, Any]]:
    """Begin the next trial of a study, with these params or those that the sampler chooses; return it with them."""
    if params is not None:
        study.enqueue_trial(params)
    if params is None or definition.sampler == "nsga2":  # which notes on each trial what the next ones need
        study.sampler = sampler(definition, len(study.trials) - (params is not None), parallel)
    trial, chosen = study.ask(), dict[str, Any]()
    for key, each in definition.space.items():
        if any(chosen.get(other, ...) != value for other, value in definition.when.get(key, {}).items()):
            continue
        match each:
            case CategoricalDistribution():
                chosen[key] = trial.suggest_categorical(key, each.choices)
            case IntDistribution():
                chosen[key] = trial.suggest_int(key, each.low, each.high, step=each.step)
            case FloatDistribution():
                chosen[key] = trial.suggest_float(key, each.low, each.high, log=each.log, step=each.step)
    study.sampler = RandomSampler(0)  # until the next trial: a grid's would end `optimize`, which does not run
    return trial, chosen
