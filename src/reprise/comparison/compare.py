"""The comparison of two revisions: everything that a report says, as data."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from reprise.comparison import changes
from reprise.comparison.flips import flips
from reprise.comparison.pairing import Pairing
from reprise.comparison.verdict import LEVEL, Answers, Seeds, Verdict
from reprise.evaluation.calibration import calibration
from reprise.evaluation.groups import SMALLEST, group_name, judge, read_members
from reprise.repo.project import Project
from reprise.repo.revisions import GROUPS, PREDICTIONS, PROCESSED, Revision, experiments, find_revision
from reprise.repo.verify import stale_code
from reprise.runtime.errors import UserError, listed

SEED_PARAM = "train.seed"
BINS = 15  # of a revision whose params do not say


class Comparison:
    """All there is to say of two revisions, base and head: verdict and changes.

    broken, fixed: images that only base, only head has right. regressed: whether head is worse, or has metrics that are
    not numbers where base has numbers. notes: what the reader has to know, most important first.
    """

    def __init__(self, base: Revision, head: Revision, runs: Sequence[Revision] | None = None) -> None:
        """Read and compare; see `compare`. runs: to judge by, those of both settings over seeds are among them."""
        self.base, self.head = base, head
        pairing = Pairing(base, head)
        rows, classes = pairing.test_images()
        answers = _answers((base, head), rows)
        several = None if runs is None else _over_seeds((base, head), rows, runs)
        self.verdict = Verdict(answers, several, _only_the_seed_differs(base, head))
        self.metrics = changes.metric_changes(base, head)
        self.classes = changes.part_changes(answers, {name: answers.labels == name for name in classes})
        self.groups = changes.part_changes(answers, *_groups(head, rows[1], answers))
        self.confusions = changes.confusion_changes(answers)
        bins = head.params.get("evaluate.calibration_bins")
        bins = bins if isinstance(bins, int) and bins > 0 else BINS
        self.calibrations = [calibration(answers.confidence[i], answers.right[i], bins) for i in (0, 1)]
        ids = [head.predictions.ids[row] for row in rows[1].tolist()]
        self.broken, self.fixed = (flips(answers, ids, fixed) for fixed in (False, True))
        self.data = pairing.data_changes()
        bad = set(changes.not_numbers(head)) - set(changes.not_numbers(base))
        self.regressed = self.verdict.word == "worse" or bool(bad)
        self.notes = _notes(base, head, self.verdict, pairing.notes)


def compare(project: Project, base: str, head: str, seeds: bool = False) -> Comparison:
    """Compare two revisions of a project, each a name that `find_revision` takes.

    seeds: judge by all of DVC's experiments that differ from the revisions in nothing but the seed. Raises UserError
    where a revision is not available or the two have nothing in common.
    """
    runs = experiments(project) if seeds else None
    return Comparison(find_revision(project, base), find_revision(project, head), runs)


def _answers(both: tuple[Revision, Revision], rows: np.ndarray) -> Answers:
    """Return the predictions of both revisions, by the rows (2, N) of the images they have in common."""
    labels = both[1].predictions.labels[rows[1]]
    found = []
    for revision, own in zip(both, rows, strict=True):
        said = revision.predictions
        column = {name: index for index, name in enumerate(said.classes)}
        predicted, shares = said.predicted[own], said.probabilities[own]
        of_names = [shares[range(len(own)), [column[name] for name in names]] for names in (labels, predicted)]
        found.append([predicted, *of_names])
    return Answers(labels, *map(np.stack, zip(*found, strict=True)))


def _groups(head: Revision, rows: np.ndarray, answers: Answers) -> tuple[dict[str, np.ndarray], int]:
    """Return which images are in each group that the comparison shows, bool (N,) each, and how many it looks at.

    It shows the groups of `SMALLEST` and more of head's test images, by their rows (N,); and of pairs of these the ones
    whose images broke, or were mended, more often than the others of either group, corrected for all that it looks at.
    """
    path = head.out(GROUPS)
    members = read_members(path.read_text(encoding="utf-8", errors="surrogateescape")) if path else {}
    values = {name: np.array(of_all)[rows] for name, of_all in members.items()}
    parts = {group_name(name, value): own == value for name, own in values.items() for value in np.unique(own).tolist()}
    parts = {name: here for name, here in parts.items() if here.sum() >= SMALLEST}
    base, now = answers.right
    judged = [group for kept in (now | ~base, base | ~now) if values for group in judge(values, kept)]
    pairs = {group.name: group.parts for group in judged if len(group.parts) == 2 and group.p <= LEVEL}
    return parts | {name: parts[one] & parts[other] for name, (one, other) in pairs.items()}, len(judged) // 2


def _over_seeds(both: tuple[Revision, Revision], rows: np.ndarray, among: Sequence[Revision]) -> Seeds:
    """Compare the runs of both settings over seeds, and those among others. Raises UserError if neither has three."""
    labels = both[1].predictions.labels[rows[1]]
    runs = [
        {seed: run.predictions.predicted[own] == labels for seed, run in _runs(revision, among).items()}
        for revision, own in zip(both, rows, strict=True)
    ]
    if max(map(len, runs)) < 3:
        raise UserError(
            f"--seeds: fewer than 3 runs differ from {both[0]} or {both[1]} in {SEED_PARAM} alone; on each of them, "
            f"run `dvc exp run --queue -S '{SEED_PARAM}=1,2,3,4'` and `dvc queue start`"
        )
    return Seeds(*runs)


def _runs(revision: Revision, among: Sequence[Revision]) -> dict[int, Revision]:
    """Return {seed: run} of the revision and those among others with its params, code and data, if evaluated."""
    setting = revision.setting(SEED_PARAM)
    others = (run for run in among if run.evaluated and run.setting(SEED_PARAM) == setting)
    runs: dict[int, Revision] = {}
    for run in (revision, *(run for run in others if run.out(PREDICTIONS))):
        runs.setdefault(int(run.params.get(SEED_PARAM, 0)), run)
    return runs


def _only_the_seed_differs(base: Revision, head: Revision) -> bool:
    same_data = base.md5(PROCESSED) == head.md5(PROCESSED)
    same = same_data and base.setting(SEED_PARAM) == head.setting(SEED_PARAM)
    other_seed = base.params.get(SEED_PARAM) != head.params.get(SEED_PARAM)
    return same and other_seed and not changes.provenance_changes(base, head)


def _notes(base: Revision, head: Revision, verdict: Verdict, of_pairing: list[str]) -> list[str]:
    """Return what the reader has to know of the numbers, the pairing of the images, and the revisions."""
    notes = []
    if verdict.seeds:
        notes.append(f"The seeds decide the verdict alone: all else, classes too, is of two runs, {base} and {head}.")
    for revision in (base, head):
        if names := changes.not_numbers(revision):
            notes.append(f"Not a number in the metrics of {revision}: {', '.join(names)}. That run has failed.")
    if verdict.without_loss:
        share = f"{verdict.without_loss:,} of {verdict.images:,} images"
        notes.append(f"{share} have a probability that is not a number: they are left out of loss and calibration.")
    notes += of_pairing
    if uncommitted := base.project.changed("HEAD") if None in (base.commit, head.commit) else []:
        files = listed(uncommitted, 5)
        notes.append(f"The workspace has uncommitted changes ({files}): nobody else can repeat this yet.")
    for revision in dict.fromkeys((base, head)):
        with suppress(UserError):  # of a pipeline that this DVC does not read
            if stale := {each for found in stale_code(revision.project, revision.commit).values() for each in found}:
                what = listed(sorted(stale), 5)
                notes.append(f"The results of {revision} are older than its {what}: run `dvc repro` there.")
    if base == head or (base.commit and base.commit == head.commit):
        notes.append("The two are one and the same revision.")
    if head.params.get("data.group"):
        notes.append("Test images of one group are counted as independent: the intervals are rather too narrow.")
    if base.commit and not base.project.is_shallow:
        ahead = base.project.git("rev-list", "--count", f"{head.commit or 'HEAD'}..{base.commit}", check=False).strip()
        places = ("refs/heads", "refs/remotes", "refs/tags")  # none of them has an experiment, which nobody merges
        on_branch = base.project.git("for-each-ref", "--contains", base.commit, *places)
        if on_branch and ahead not in ("", "0"):
            notes.append(f"{base} has commits that {head} lacks ({ahead}): here they read as undone. Merge or rebase.")
    return notes
