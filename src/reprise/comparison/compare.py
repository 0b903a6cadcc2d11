"""Two revisions, compared: everything that a report says, as data."""

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from reprise.comparison import changes
from reprise.comparison.flips import Flip, flips
from reprise.comparison.pairing import DataChanges, Pairing
from reprise.comparison.verdict import LEVEL, Answers, Seeds, Verdict, judge, over_seeds
from reprise.repo.project import Project
from reprise.repo.revisions import PREDICTIONS, PROCESSED, Revision, experiments, find_revision
from reprise.repo.verify import stale_code
from reprise.runtime.errors import UserError, listed

SEED_PARAM = "train.seed"
BINS = 15  # of a revision whose params do not say


@dataclass(frozen=True)
class Comparison:
    """All there is to say of two revisions; notes: what the reader has to know, most important first."""

    base: Revision
    head: Revision
    verdict: Verdict
    metrics: list[changes.MetricChange]
    classes: list[changes.ClassChange]
    confusions: list[tuple[str, str, int, int]]
    calibrations: tuple[changes.Calibration, changes.Calibration]
    broken: list[Flip]
    fixed: list[Flip]
    data: DataChanges | None
    bad_metrics: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def regressed(self) -> bool:
        """Whether a gate should close: head is worse, or has metrics that are no numbers where base has numbers."""
        return self.verdict.word == "worse" or bool(self.bad_metrics)

    @property
    def worse_classes(self) -> list[changes.ClassChange]:
        """The classes whose recall fell by more than chance, the largest loss first."""
        return [change for change in self.classes if change.difference < 0 and change.p <= LEVEL]

    @property
    def better_classes(self) -> list[changes.ClassChange]:
        """The classes whose recall rose by more than chance, the largest gain first."""
        return [change for change in reversed(self.classes) if change.difference > 0 and change.p <= LEVEL]


def compare(project: Project, base: str, head: str, seeds: bool = False) -> Comparison:
    """Compare two revisions of a project, each a name that `find_revision` takes.

    seeds: judge by all of DVC's experiments that differ from the revisions in nothing but the seed. Raises UserError
    where a revision is not to be had or the two have nothing in common.
    """
    one, other = find_revision(project, base), find_revision(project, head)
    pairing = Pairing(one, other)
    base_rows, head_rows, classes = pairing.test_images()
    answers = _answers(one, other, base_rows, head_rows)
    several = _over_seeds(one, other, base_rows, head_rows) if seeds else None
    verdict = judge(answers, several, _only_the_seed_differs(one, other))
    ids = [other.predictions.ids[row] for row in head_rows.tolist()]
    bins = other.params.get("evaluate.calibration_bins")
    bins = bins if isinstance(bins, int) and bins > 0 else BINS
    data = pairing.data_changes()
    notes = [*_on_numbers(one, other, verdict), *pairing.notes, *_on_revisions(one, other)]
    return Comparison(
        base=one,
        head=other,
        verdict=verdict,
        metrics=changes.metric_changes(one, other),
        classes=changes.class_changes(answers, classes),
        confusions=changes.confusion_changes(answers),
        calibrations=(
            changes.calibration(answers.base_confidence, answers.base_right, bins),
            changes.calibration(answers.head_confidence, answers.head_right, bins),
        ),
        broken=flips(answers, ids, fixed=False),
        fixed=flips(answers, ids, fixed=True),
        data=data,
        bad_metrics=sorted(set(changes.not_numbers(other)) - set(changes.not_numbers(one))),
        notes=notes,
    )


def _answers(base: Revision, head: Revision, base_rows: np.ndarray, head_rows: np.ndarray) -> Answers:
    labels = head.predictions.labels[head_rows]
    of_label, confidence = [], []
    for revision, rows in ((base, base_rows), (head, head_rows)):
        found = revision.predictions
        column = {name: index for index, name in enumerate(found.classes)}
        of_label.append(found.probabilities[rows, [column[label] for label in labels]])
        confidence.append(found.probabilities[rows, [column[guess] for guess in found.predicted[rows]]])
    return Answers(
        labels, base.predictions.predicted[base_rows], head.predictions.predicted[head_rows], *of_label, *confidence
    )


def _over_seeds(base: Revision, head: Revision, base_rows: np.ndarray, head_rows: np.ndarray) -> Seeds:
    """Gather the runs of both settings over seeds. Raises UserError if neither has three."""
    labels = head.predictions.labels[head_rows]
    runs = [
        {seed: run.predictions.predicted[rows] == labels for seed, run in _runs(revision).items()}
        for revision, rows in ((base, base_rows), (head, head_rows))
    ]
    if max(map(len, runs)) < 3:
        raise UserError(
            f"--seeds: fewer than 3 runs differ from {base} or {head} in {SEED_PARAM} alone; on each of them, run "
            f"`dvc exp run --queue -S '{SEED_PARAM}=1,2,3,4'` and `dvc queue start`"
        )
    return over_seeds(*runs)


def _runs(revision: Revision) -> dict[int, Revision]:
    """Return seed -> run, of the revision and all experiments with its params, code and data."""
    runs = {int(revision.params.get(SEED_PARAM, 0)): revision}
    for run in experiments(revision.project):
        if _setting(run) == _setting(revision) and run.out(PREDICTIONS):
            runs.setdefault(int(run.params.get(SEED_PARAM, 0)), run)
    return runs


def _setting(revision: Revision) -> tuple[dict[str, object], dict[str, object]]:
    deps = {path: entry.get("md5") for path, entry in revision.locked("deps").items() if not path.startswith("models/")}
    return {**revision.params, SEED_PARAM: None}, deps


def _only_the_seed_differs(base: Revision, head: Revision) -> bool:
    return (
        [name for name, _, _ in changes.different(base.params, head.params)] == [SEED_PARAM]
        and base.md5(PROCESSED) == head.md5(PROCESSED)
        and not changes.code_changes(base, head)
        and not changes.provenance_changes(base, head)
    )


def _on_numbers(base: Revision, head: Revision, verdict: Verdict) -> list[str]:
    """Say loudly what is no number, and what the seeds have no say in."""
    notes = []
    if verdict.seeds:
        notes.append(f"The seeds decide the verdict alone: all else, classes too, is of two runs, {base} and {head}.")
    for revision in (base, head):
        if names := changes.not_numbers(revision):
            notes.append(f"Not a number in the metrics of {revision}: {', '.join(names)}. That run has failed.")
    if verdict.without_loss:
        notes.append(
            f"{verdict.without_loss:,} of {verdict.images:,} images have a probability that is not a number: they are "
            "left out of loss and calibration."
        )
    return notes


def _on_revisions(base: Revision, head: Revision) -> list[str]:
    notes = []
    if uncommitted := base.project.changed("HEAD") if None in (base.commit, head.commit) else []:
        notes.append(
            f"The workspace has uncommitted changes ({listed(uncommitted, 5)}): nobody else can repeat this yet."
        )
    for revision in dict.fromkeys((base, head)):
        stale: list[str] = []
        with suppress(UserError):  # of a pipeline that this DVC does not read
            stale = stale_code(revision.project, revision.commit)
        if stale:
            notes.append(f"The results of {revision} are older than its {listed(stale, 5)}: run `dvc repro` there.")
    if base == head or (base.commit and base.commit == head.commit):
        notes.append("The two are one and the same revision.")
    if head.params.get("data.group"):
        notes.append("Test images of one group are counted as independent: the intervals are rather too narrow.")
    if base.commit and not base.project.is_shallow:
        ahead = base.project.git("rev-list", "--count", f"{head.commit or 'HEAD'}..{base.commit}", check=False).strip()
        if ahead not in ("", "0"):
            notes.append(
                f"{base} has commits that {head} lacks, {ahead} of them: what they changed reads here as undone. "
                "Merge or rebase."
            )
    return notes
