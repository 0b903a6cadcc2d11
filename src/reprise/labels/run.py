"""Trains the folds of a cross-validation as experiments of DVC; each image is judged by a model that has not seen it.

A fold that has been trained before, by whatever command, comes from DVC's run cache; one that was killed goes on from
its checkpoint. Data with a test split of their own are folded into train and validation: their validation images have
chosen the epoch, though no weight, and their test images are the first fold's to answer.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reprise.data.formats.packed import Metadata, Split, load_metadata
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
BATCH, TWINS = 256, "data/report/two_labels.csv"


@dataclass(frozen=True)
class Examined:
    """N images, by models that have not seen them, in the order of the archive; it and metadata are the last fold's.

    members: names in the archive; energy: (N,), see `_held_out`; twins: {id: id} of near-duplicates with
    another label, as `preprocess` finds them. The archive's other images were left out
    of the data, or every fold has trained on them.
    """

    archive: RawArchive
    metadata: Metadata
    members: list[str]
    scores: Scores
    energy: np.ndarray
    twins: dict[str, str]


def examine(project: Project, found: Workspace, folds: int) -> Examined:
    """Train the folds in a work tree, and look at the images that each holds out. Raises UserError if a fold fails."""
    parts, own_test = [], False
    for fold in range(folds):
        _train(project, found, fold, folds)
        provenance = load_card(found.root / MODEL).provenance
        settings = provenance.threads, provenance.reproducible  # all folds have the same
        if "torch" not in sys.modules:
            before_torch(*settings)
        after_torch(*settings)
        if fold == 0 or not own_test:
            parts.append(_held_out(found.root, "test"))
            own_test = "test" in RawArchive(found.root / RAW).placed()[0]
        if own_test:
            parts.append(_held_out(found.root, "val"))
    return _together(found.root, parts)


def _train(project: Project, found: Workspace, fold: int, folds: int) -> None:
    log = project.root / f"runs/labels-{fold}-of-{folds}.log"
    log.unlink(missing_ok=True)
    say(f"labels: fold {fold + 1} of {folds}, see {project.short(log)}", sys.stderr)
    dvc = found.run({"data": {"folds": folds, "fold": fold}}, log, "train")  # ends when this process does
    if dvc.wait():
        said = [line for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("error: ")]
        raise UserError(f"fold {fold} of {folds} failed: {''.join(said[-1:]) or project.short(log)}")
    found.save(f"labels-{fold}-of-{folds}", f"reprise labels: fold {fold} of {folds}", STAGES)


def _held_out(root: Path, name: Split) -> tuple[np.ndarray, ...]:
    """Look at a split of the prepared data below a root with the model that is published there.

    Returns of N images ids (N,), labels, int64 (N,), probabilities (N, K), and by how many robust standard deviations
    the energy lies above the median (N,): minus the logarithm of the sum of the exponentials of the logits, which is
    high for what is unlike the training images (Liu et al., NeurIPS 2020).
    """
    from reprise.evaluation.evaluate import predict_split
    from reprise.model.backbone import load_model

    split, logits, labels = predict_split(
        *load_model(root / WEIGHTS, root / MODEL, root), root / PROCESSED, name, BATCH
    )
    energy = -logits.double().logsumexp(dim=1).numpy()
    above = energy - np.median(energy)
    above /= max(1.4826 * float(np.median(np.abs(above))), 1e-6)
    return np.array(split.ids, dtype=object), labels.numpy(), logits.double().softmax(dim=1).numpy(), above


def _together(root: Path, parts: list[tuple[np.ndarray, ...]]) -> Examined:
    """Return all images that were held out; of the models that have not seen an image, the first one's answer."""
    ids, labels, probabilities, energy = map(np.concatenate, zip(*parts, strict=True))
    row_of = {name: row for row, name in reversed(list(enumerate(ids)))}
    archive = RawArchive(root / RAW)
    members = [member for member in archive.members if image_id(member) in row_of]
    rows = [row_of[image_id(member)] for member in members]
    twins = dict(read_csv(root / TWINS))
    scores = Scores(labels[rows], probabilities[rows])
    return Examined(archive, load_metadata(root / PROCESSED), members, scores, energy[rows], twins)
