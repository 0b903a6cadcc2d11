"""Trains the folds of a cross-validation as experiments of DVC; each image is judged by a model that has not seen it.

A fold that has been trained before, by whatever command, comes from DVC's run cache; one that was killed goes on from
its checkpoint. Data with a test split of their own are folded into train and validation: their validation images have
chosen the epoch, though no weight, and their test images are the first fold's to answer. So are the validation images
of data that have these of their own. Data with both are not folded: the model that `dvc repro` trains answers for both.
"""

import sys
from dataclasses import dataclass

import numpy as np

from reprise.data.formats.packed import SPLITS, Metadata, load_metadata
from reprise.data.formats.raw import RawArchive, image_id
from reprise.labels.scores import Scores
from reprise.model.artifact import load_card
from reprise.repo.project import Project
from reprise.repo.revisions import MODEL, PROCESSED, RAW, WEIGHTS
from reprise.repo.trials import STAGES, Workspace
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import UserError, say
from reprise.runtime.tables import read_csv


@dataclass(frozen=True)
class Examined:
    """N images, by models that have not seen them, in the order of the archive; it and metadata are the last fold's.

    members: names in the archive, whose other images were left out of the data, or every model has trained on them.
    outlying: see `reprise.labels.outliers`, bool (N,), each image among those that the same model has not seen. twins:
    {id: id} of equal and similar images with another label, as `preprocess` finds them.
    """

    archive: RawArchive
    metadata: Metadata
    members: list[str]
    scores: Scores
    outlying: np.ndarray
    twins: dict[str, str]


def examine(project: Project, found: Workspace, folds: int) -> Examined:
    """Train the folds in a work tree, and look at the images that each holds out. Raises UserError if a stage fails."""
    root, answers = found.root, dict[str, tuple[int, np.ndarray, bool]]()
    _reproduce(found, {}, "data", "the stage download", "download")
    own = {"val", "test"} & set(RawArchive(root / RAW).placed()[0])
    # both are given: no fold; else of fewer folds than two the stage `check` says what is allowed
    for fold in range(1 if len(own) == 2 else max(folds, 1)):
        if len(own) == 2:
            _reproduce(found, {}, "own", "val and test of the data's own, by the model of their train", "train")
        else:
            name = f"{fold}-of-{folds}"
            _reproduce(found, {"folds": folds, "fold": fold}, name, f"fold {fold + 1} of {folds}", "train")
            found.save(f"labels-{name}", f"reprise labels: fold {fold} of {folds}", STAGES)
        provenance = load_card(root / MODEL).provenance
        if "torch" not in sys.modules:
            before_torch(provenance.threads, provenance.reproducible)
        from reprise.labels.outliers import unseen
        from reprise.model.backbone import load_model

        after_torch(provenance.threads, provenance.reproducible)
        model = load_model(root / WEIGHTS, root / MODEL, root)
        for split in SPLITS[1:] if own else SPLITS[2:]:
            answers = unseen(*model, root / PROCESSED, split) | answers  # the first one counts
    archive = RawArchive(root / RAW)
    members = [member for member in archive.members if image_id(member) in answers]
    given, probabilities, outlying = map(np.array, zip(*(answers[image_id(each)] for each in members), strict=True))
    twins, metadata = dict(read_csv(root / "data/report/two_labels.csv")), load_metadata(root / PROCESSED)
    return Examined(archive, metadata, members, Scores(given, probabilities), outlying, twins)


def _reproduce(found: Workspace, data: dict[str, int], name: str, what: str, target: str) -> None:
    """Run the pipeline up to a stage, with some params of the data changed; raise UserError if it fails."""
    project, log = found.project, found.project.root / f"runs/labels-{name}.log"
    log.unlink(missing_ok=True)
    say(f"labels: {what}, see {project.short(log)}", sys.stderr)
    if found.run({"data": data} if data else {}, log, target).wait():  # it ends when this process does
        said = [line[7:] for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("error: ")]
        raise UserError(f"{what} failed: {''.join(said[-1:]) or project.short(log)}")
