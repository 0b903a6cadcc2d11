"""The trials of a sweep that have ended, and Optuna's study of them, which chooses what the next one tries.

A complete trial is an experiment of DVC, whose message holds its record, so that it travels by `dvc exp push`. Pruned
and failed ones cannot be experiments: they, too, are in sweeps/NAME.jsonl, the ledger, which stays on its machine.

Optuna keeps no state of its samplers: each trial has one of its own, seeded by (the sweep's seed, the trial's number).
"""

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import optuna
from optuna import samplers
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState, create_trial

from reprise.params.presets import edited
from reprise.repo.project import Project
from reprise.repo.revisions import RAW, Revision
from reprise.runtime.atomic import publishing
from reprise.runtime.errors import UserError
from reprise.search.space import Definition

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
State = Literal["complete", "pruned", "failed"]
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
RECORD, NUMBER = "record", "number"  # attributes of a trial: its line of the ledger; its number when it was taken over
SCHEMA = "# yaml-language-server: $schema=../src/reprise/search/sweep.schema.json\ntrials: 20\n"


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    values: of the objectives; course: the first one after each epoch; commit: of the experiment; digest: of its sweep;
    inputs: see `inputs`, None if it failed.
    """

    number: int
    name: str
    state: State
    params: dict[str, Any]
    values: list[float] | None
    reason: str | None
    seconds: float
    course: list[float]
    commit: str | None
    digest: str | None = None
    inputs: dict[str, str | None] | None = None

    def line(self) -> str:
        """Return the record as a line of JSON."""
        return json.dumps(asdict(self))


def inputs(revision: Revision) -> dict[str, str | None]:
    """Return {path: MD5} of what a training reads that is not in Git: the images as they came, and the weights."""
    ran = [revision.stages.get(stage, {}).get("deps") or [] for stage in ("check", "preprocess")]  # pruned: not train
    deps = {dep["path"]: dep["md5"] for each in ran for dep in each}
    return {path: deps.get(path) for path in (RAW, "data/weights")}


def refuse_mixture(trials: Sequence[Trial]) -> None:
    """Raise UserError if trials cannot be compared, since not all were trained on the same images and weights."""
    known = [(trial.name, trial.inputs) for trial in trials if trial.inputs]
    for name, found in known:
        if other := [path for path, md5 in found.items() if md5 != known[0][1].get(path)]:
            raise UserError(f"{name}: {other[0]} not as for {known[0][0]}; put it back, or choose another name")


def begin(project: Project, name: str, changes: dict[str, Any]) -> Definition:
    """Return a sweep's definition, with these changes; write into its file what is new, and what it begins with.

    Raises UserError for a space that params.yaml refuses, uncommitted changes, another sweep of the same name, or a
    commit that this clone does not have.
    """
    path = project.root / "sweeps" / f"{name}.yaml"
    definition = Definition.load(path, **changes)
    refs = [ref for ref in project.refs(f"refs/exps/*/*/{name}-[0-9]*") if re.fullmatch(rf".*/{name}-\d+", ref)]
    ledger = project.read(f"sweeps/{name}.jsonl")
    records = project.git("for-each-ref", "--format=%(contents:body)", "refs/exps")
    bases = {"".join(ref.split("/")[2:4]) for ref in refs}
    if definition.commit is None and not (refs or ledger):
        project.refuse_edits("all trials have the code, data and params of the last commit", "sweeps")
        definition.check(project.root / "params.yaml")
        bases = {project.git("rev-parse", "HEAD").strip()}
    for base in bases if definition.commit is None else ():  # `dvc exp apply` puts back the file as it was before
        begun = definition.model_copy(update={"commit": base})
        if not refs or begun.deciding() in records:
            changes = {**changes, "commit": base, "digest": begun.deciding()}
    definition = Definition.load(path, **changes)
    if definition.digest != definition.deciding():
        what = "a sweep of this name began with another space, commit, setting or --storage"
        raise UserError(f"{path.name}: {what}; choose another name")
    if not project.git("rev-parse", "--verify", "--quiet", f"{definition.commit}^{{commit}}", check=False):
        raise UserError(f"{path.name}: {definition.commit} is not in this clone; fetch it, or choose another name")
    if changes:
        text = path.read_text("utf-8") if path.exists() else SCHEMA
        with publishing(path) as (partial,):
            partial.write_text(edited(text, lambda tree: tree.update(changes)), encoding="utf-8")
    return Definition.load(path)


def trials(project: Project, definition: Definition, elsewhere: Iterable[Trial] = ()) -> list[Trial]:
    """Return the trials that have ended, by number: those of the ledger, and those that exist as experiments alone.

    elsewhere: those of a storage. commit: None for an experiment that was removed, or is at another machine. Raises
    UserError for a line of the ledger that is no record, a trial of another sweep, and other images or weights.
    """
    commit = definition.commit or "none"
    form = "--format=%(refname:lstrip=4) %(objectname) %(contents:body)"
    found = project.git("for-each-ref", form, f"refs/exps/{commit[:2]}/{commit[2:]}").splitlines()
    experiments = [line.split(" ", 2) for line in found if re.match(rf"{definition.name}-\d{{4,}} \w+ {{", line)]
    commits = {name: commit for name, commit, _ in experiments}
    path = f"sweeps/{definition.name}.jsonl"
    try:
        lines = [*(line for *_, line in experiments), *project.read(path).splitlines()]
        ended = {trial.number: trial for trial in (_read(line, definition) for line in lines)}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: a line is no record of a trial; remove that line, and its trial runs again") from None
    ended |= {trial.number: trial for trial in elsewhere}
    refuse_mixture(list(ended.values()))
    return [replace(ended[number], commit=commits.get(ended[number].name)) for number in sorted(ended)]


def _read(line: str, definition: Definition) -> Trial:
    """Return a trial of the sweep. Raises ValueError, TypeError or KeyError for what is none, UserError for others'."""
    trial = Trial(**json.loads(line))
    if trial.digest != definition.digest:
        raise UserError(f"{trial.name}: of another sweep; choose another name, or `dvc exp remove {trial.name}`")
    as_optuna(definition, trial)
    return trial


def as_optuna(definition: Definition, trial: Trial, system: dict[str, Any] | None = None) -> FrozenTrial:
    """Return a trial as Optuna's; system: what Optuna has noted on it.

    Raises KeyError for params that are not in the space, ValueError for values that do not go with the state.
    """
    return create_trial(
        state=STATES[trial.state],
        values=trial.values,
        params=trial.params,
        distributions={key: definition.space[key] for key in trial.params},
        intermediate_values=dict(enumerate(trial.course, 1)),
        user_attrs={RECORD: trial.line(), NUMBER: trial.number},
        system_attrs=system,
    )


def record(project: Project, trial: Trial) -> None:
    """Add a trial to its sweep's ledger, whole and synced."""
    ledger = f"sweeps/{trial.name.rpartition('-')[0]}.jsonl"
    with publishing(project.root / ledger) as (partial,):
        partial.write_text(f"{project.read(ledger)}{trial.line()}\n", encoding="utf-8")


class NSGA2(samplers.NSGAIISampler):
    """NSGA-II whose parents are in one order, whether they are chosen now or were noted by an earlier trial."""

    def select_parent(self, study: optuna.Study, generation: int) -> list[FrozenTrial]:
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
        return samplers.TPESampler(multivariate=True, group=bool(definition.when), constant_liar=parallel, seed=seed)
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
