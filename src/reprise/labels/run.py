"""Trains the folds of a cross-validation as experiments of DVC; each image is judged by a model that has not seen it.

A fold that has been trained before, by whatever command, comes from DVC's run cache; one that was killed goes on from
its checkpoint. Data with a test split of their own are folded into train and validation: their validation images have
chosen the epoch, though no weight, and their test images are the first fold's to answer.
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
from reprise.repo.trials import Workspace
from reprise.runtime.environment import after_torch, before_torch
from reprise.runtime.errors import UserError, say
from reprise.runtime.tables import read_csv

STAGES = ("check", "download", "preprocess", "train")


@dataclass(frozen=True)
class Examined:
    """N images, by models that have not seen them, in the order of the archive; it and metadata are the last fold's.

    members: names in the archive, whose other images were left out of the data, or every fold has trained on them.
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
    """Train the folds in a work tree, and look at the images that each holds out. Raises UserError if a fold fails."""
    root, answers = found.root, dict[str, tuple[int, np.ndarray, bool]]()
    for fold in range(max(folds, 1)):  # of fewer than two, the stage `check` says what is allowed
        log = project.root / f"runs/labels-{fold}-of-{folds}.log"
        log.unlink(missing_ok=True)
        say(f"labels: fold {fold + 1} of {folds}, see {project.short(log)}", sys.stderr)
        dvc = found.run({"data": {"folds": folds, "fold": fold}}, log, "train")  # ends when this process does
        if dvc.wait():
            said = [line[7:] for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("error: ")]
            raise UserError(f"fold {fold + 1} of {folds} failed: {''.join(said[-1:]) or project.short(log)}")
        found.save(f"labels-{fold}-of-{folds}", f"reprise labels: fold {fold} of {folds}", STAGES)
        provenance = load_card(root / MODEL).provenance
        if "torch" not in sys.modules:
            before_torch(provenance.threads, provenance.reproducible)
        from reprise.labels.outliers import unseen
        from reprise.model.backbone import load_model

        after_torch(provenance.threads, provenance.reproducible)
        model, archive = load_model(root / WEIGHTS, root / MODEL, root), RawArchive(root / RAW)
        for name in SPLITS[1:] if "test" in archive.placed()[0] else SPLITS[2:]:
            answers = unseen(*model, root / PROCESSED, name) | answers  # the first one counts
    members = [member for member in archive.members if image_id(member) in answers]
    given, probabilities, outlying = map(np.array, zip(*(answers[image_id(each)] for each in members), strict=True))
    twins, metadata = dict(read_csv(root / "data/report/two_labels.csv")), load_metadata(root / PROCESSED)
    return Examined(archive, metadata, members, Scores(given, probabilities), outlying, twins)
