"""Optuna's study of a sweep: rebuilt at each start in memory, or kept in a storage that several machines share.

In a storage a trial is claimed by its number, and its record is an attribute of it. A trial that its machine has left
is taken over: for Optuna it has failed, and waits under a new number, with its own one as an attribute.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from reprise.runtime.errors import UserError, brief
from reprise.search.space import Definition
from reprise.search.study import NUMBER, RECORD, Trial, as_optuna


def create_study(
    definition: Definition, begun: dict[int, dict[str, Any]], ended: Iterable[Trial], storage: str | None = None
) -> optuna.Study:
    """Return Optuna's study of the trials so far: those that have ended, and those that have begun, waiting.

    begun: {Optuna's number: {"params": ..., "system": what Optuna notes on a trial}} and ended: of this clone. storage:
    a folder or a database's URL, where the study is that of all machines. Raises UserError if it cannot be used, or has
    another sweep of this name.
    """
    study, known = _open(definition, storage), {trial.number: trial for trial in ended}
    if storage:
        for each in study.get_trials(states=[TrialState.RUNNING]):
            if begun.get(each.number, {}).get("params") == each.params:  # by this clone, where no sweep is at work
                take_over(study, definition, each, known)
        return study
    for number in range(max([*known, *begun], default=-1) + 1):
        noted = begun.get(number, {})
        if trial := known.get(number):
            study.add_trial(as_optuna(definition, trial, noted.get("system")))
        else:
            study.enqueue_trial(noted.get("params", {}))
    return study


def _open(definition: Definition, storage: str | None) -> optuna.Study:
    hyperband = definition.pruner == "hyperband"
    name = f"{definition.name} {definition.digest}" if storage else definition.name
    try:
        shared: RDBStorage | JournalStorage | None = None
        if storage:
            file = Path(storage) / "sweeps.log"
            shared = RDBStorage(storage) if "://" in storage else JournalStorage(JournalFileBackend(str(file)))
        study = optuna.create_study(
            storage=shared,
            load_if_exists=True,
            study_name=name,
            directions=[direction for _, direction in definition.objectives],
            pruner=optuna.pruners.HyperbandPruner() if hyperband else optuna.pruners.MedianPruner(4, n_warmup_steps=2),
        )
        names = optuna.get_all_study_names(shared) if shared else [name]
    except (OSError, ImportError, ValueError, StorageInternalError, SQLAlchemyError) as error:
        raise unusable(storage, error) from None
    if next(other for other in names if other.partition(" ")[0] == definition.name) != name:  # the first one made
        way_out = "take its file sweeps/NAME.yaml, or choose another name"
        raise UserError(f"{definition.name}: the storage has another definition or commit of this name; {way_out}")
    return study


def unusable(storage: str | None, error: Exception) -> UserError:
    """Return what to raise for a storage that cannot be used, without the password of a URL."""
    said = brief(str(error).partition("\n")[0], 200)
    allowed = "a folder that exists and all machines can write to, or a database's URL"
    return UserError(f"--storage {str(storage).rpartition('@')[2]}: {said}; give {allowed}")


def number_of(trial: FrozenTrial | optuna.Trial) -> int:
    """Return a trial's number in the sweep."""
    return int(trial.user_attrs.get(NUMBER, trial.number))


def finished(study: optuna.Study) -> list[Trial]:
    """Return the trials that have ended, on whatever machine."""
    lines = [each.user_attrs[RECORD] for each in study.get_trials(deepcopy=False) if RECORD in each.user_attrs]
    return list({trial.number: trial for trial in (Trial(**json.loads(line)) for line in lines)}.values())


def take_over(study: optuna.Study, definition: Definition, trial: FrozenTrial, known: dict[int, Trial]) -> None:
    """Have a trial that nobody is at run again, by whoever is free, unless its result is known.

    known: {number: trial}, beside those that the storage knows.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (UpdateFinishedTrialError, ValueError):  # another machine was faster
        return
    known = {**known, **{each.number: each for each in finished(study)}}
    if (ended := known.get(number_of(trial))) and ended.params == trial.params:
        study.add_trial(as_optuna(definition, ended))
    else:
        study.enqueue_trial(trial.params, {NUMBER: number_of(trial)})
