"""The winner of a sweep proves itself: it and the baseline on new seeds, by test images, which are used here alone.

The runs are experiments of DVC, NAME-0007-s1, ... of the winner and NAME-base-s1, ... of the baseline, which is the
commit with which the sweep began. The seeds are a function of the sweep's seed.
"""

import json
from collections.abc import Sequence
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reprise.comparison.compare import SEED_PARAM, Comparison
from reprise.comparison.report import summary
from reprise.params.load import flat, override, parse
from reprise.params.presets import edited, replace
from reprise.repo.project import Project
from reprise.repo.revisions import Revision, experiments
from reprise.repo.trials import remove_trees, workspace
from reprise.runtime.errors import UserError, say
from reprise.search.report import front, write
from reprise.search.space import Definition
from reprise.search.study import Trial, inputs, refuse_mixture

FEWEST, MOST = 3, 20  # seeds; of fewer, no spread is known
STAGES = ("check", "download", "preprocess", "train", "evaluate")
UNCONFIRMED = "Not confirmed on new seeds: `reprise sweep ... --confirm 5` does that."


def conclude(project: Project, definition: Definition, trials: Sequence[Trial], seeds: int | None, apply: bool) -> None:
    """Confirm the winner of a sweep on so many new seeds, if any; write the report; apply the winner, if told to.

    seeds: FEWEST to MOST. May be killed at any moment: the next call goes on. Raises UserError if there is no winner,
    if a run fails, or if the winner is not to be applied.
    """
    base, best = Revision(project, "the baseline", definition.commit), front(trials, definition)
    folder = project.root / "runs/sweeps" / definition.name
    if not best:
        raise UserError(f"no trial is complete, see {write(folder, definition, trials, UNCONFIRMED)}")
    both = {f"{definition.name}-base": {}, best[0].name: best[0].params}
    planned = [_planned(name, params, definition.seed) for name, params in both.items()]
    missing = [run for runs in planned for run in runs[: seeds or 0] if not _existing(base, [run], best[0])]
    if seeds and _has(base, best[0].params):
        say(f"{best[0].name} has the params of {base}: there is nothing to confirm")
    elif missing:
        _train(base, missing, folder, best[0])
    one, other = (_existing(base, runs, best[0]) for runs in planned)
    found = Comparison(one[0], other[0], [*one, *other]) if min(len(one), len(other)) >= FEWEST else None
    said = summary(found) if found else UNCONFIRMED
    say(f"{said}\nbest: {best[0].name}, {best[0].values} -> {write(folder, definition, trials, said)}")
    if apply:
        say(_apply(base, best[0], found))


def _planned(name: str, params: dict[str, Any], seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the runs of a setting, one for each new seed; seed: of the sweep."""
    seeds = np.random.SeedSequence([seed, 2**32]).generate_state(MOST).tolist()
    return [(f"{name}-s{number}", {**params, SEED_PARAM: each}) for number, each in enumerate(seeds, 1)]


def _existing(base: Revision, runs: Sequence[tuple[str, dict[str, Any]]], winner: Trial) -> list[Revision]:
    """Return the runs that exist, without those of an earlier sweep of the same name, and of other images."""
    known = {run.name: run for run in experiments(base.project, str(base.commit))}
    found = [known[name] for name, params in runs if name in known and _has(known[name], params)]
    return [run for run in found if winner.inputs in (None, inputs(run))]


def _has(revision: Revision, params: dict[str, Any]) -> bool:
    return params.items() <= flat(parse(revision.read("params.yaml"), str(revision))).items()


def _train(base: Revision, runs: Sequence[tuple[str, dict[str, Any]]], folder: Path, winner: Trial) -> None:
    """Train and evaluate runs; each is an experiment once it has ended."""
    with workspace(base.project, str(base.commit)) as found:
        for name, params in runs:
            say(f"{name}: {json.dumps(params)}")
            if found.run(params, folder / f"{name}.log", STAGES[-1]).wait():
                raise UserError(f"{name}: failed, see {folder / name}.log; the same command goes on")
            refuse_mixture([winner, with_changes(winner, name=name, inputs=inputs(Revision(Project(found.root))))])
            found.save(name, f"{name}: to confirm the winner of a sweep", STAGES)
    remove_trees(base.project)


def _apply(base: Revision, trial: Trial, found: Comparison | None) -> str:
    """Write the trial's values into params.yaml, comments kept; return what that has changed, as a diff."""
    path, way_out = base.project.root / "params.yaml", f"`dvc exp apply {trial.name}` takes the trial all the same"
    if found and found.regressed:
        raise UserError(f"{trial.name}: worse than the baseline on new seeds, and not applied; {way_out}")
    changes = [f"{key}={json.dumps(value)}" for key, value in trial.params.items()]
    after = edited(base.read(path.name), partial(override, changes=changes))
    if path.read_text("utf-8") == after:
        return f"{path.name}: has the values of {trial.name} already"
    if base.project.changed(str(base.commit), "--", path.name):
        raise UserError(f"{path.name}: not as in {base}, with which the sweep began; {way_out}")
    return replace(path, after)
