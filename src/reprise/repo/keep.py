"""Keep a trained model after a change of the code that provably changes no bit of its training.

Both versions of the code run the stage `train` for a few epochs, on the project's own data and params. Where model,
history and metrics come out byte for byte the same, the published model is recorded as one of the present code.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from reprise.model.artifact import load_card
from reprise.params.dependencies import Dependencies, Record, record_path
from reprise.params.presets import edited
from reprise.repo.differences import difference
from reprise.repo.project import Project, environment
from reprise.runtime.atomic import Lock, publishing, remove
from reprise.runtime.checksums import file_sha256, listing_md5, md5_listing, write_sealed
from reprise.runtime.code import code_sha256, read_code
from reprise.runtime.errors import UserError, listed

MADE = ("models/model.safetensors", "metrics/history.csv", "metrics/train.json")
OF_CODE = {"record", "kept", "provenance"}  # of a model card: what differs between codes that compute the same
OUTS = ("dvc.lock", "metrics/")  # which a `keep` that failed may have changed, by `dvc repro preprocess`
STAGE = "stages/train.py"


def keep(project: Project, epochs: int = 2) -> Iterator[str]:
    """Record the published model as one of HEAD's code if short trainings agree; yield what a person has to know.

    epochs: of the short trainings. Prepared data are brought up to date first. The model's weights, and what its card
    says of their training, stay as they are. Raises UserError, with nothing recorded, if more than the code has changed
    since the model was trained, if the commit that recorded the model has another code than trained it, and if the
    trainings differ.
    """
    if edits := [path for path in project.changed("HEAD") if not path.startswith(OUTS)]:
        raise UserError(f"uncommitted changes ({listed(edits, 3)}): the code that is compared is the last commit's")
    path = project.root / record_path("train")
    card = load_card(path)
    weights = project.root / MADE[0]
    if not weights.is_file() or file_sha256(weights) != card.weights_sha256:
        raise UserError(f"{weights}: missing, or not of this model.json; `dvc checkout models/model.safetensors`")
    if not project.dvc_shown("repro", "preprocess"):
        raise UserError("`dvc repro preprocess` failed, see above")
    dependencies = Dependencies.of_stage("train", project.root)
    dependencies.begin()
    now, then = dependencies.record(), card.record
    if then is None:
        raise UserError(f"{path}: has no record of its code; `dvc repro` trains it anew")
    different = then.differences(project.root, "train", dependencies.all_params, now.inputs)
    if different not in ([], ["its code"]):
        raise UserError(f"changed since the model was trained: {'; '.join(different)}; `dvc repro` trains it anew")
    if different:
        yield _proven(project, then, epochs)
        kept = card.model_copy(update={"record": now, "kept": [*card.kept, then.code_sha256]})
        with publishing(path, check=dependencies.check) as (partial,):
            write_sealed(partial, kept.model_dump(mode="json"))
    else:
        yield "the code of the training has changed in nothing but comments, if at all"
    project.dvc("commit", "--force", "train")
    yield "the model is recorded as one of this code; `dvc repro` runs the stages after it, then commit"


def _proven(project: Project, then: Record, epochs: int) -> str:
    """Train by the code of a record and by HEAD's; return what was shown. Raises UserError as `keep` does."""
    md5 = listing_md5(md5_listing(project.root / record_path("train")))
    recorded = project.git("log", "-m", f"-S{md5}", "--format=%H", "--", "dvc.lock").split()
    if not recorded:
        raise UserError("dvc.lock was never committed with this model; commit it with the code that trained it")
    before, folder = recorded[-1], project.root / "runs/keep"
    folder.mkdir(parents=True, exist_ok=True)
    with _tree(project, before, folder / "old") as old, _tree(project, "HEAD", folder / "new") as new:
        if code_sha256(read_code(old), STAGE) != then.code_sha256:
            raise UserError(f"commit {before[:7]}, where dvc.lock got this model, has not the code that trained it")
        trained = [_train(project, tree, epochs) for tree in (old, new)][-1]
        found = [(name, difference(old / name, new / name)) for name in MADE]
        cards = [load_card(tree / record_path("train")).model_dump(exclude=OF_CODE) for tree in (old, new)]
        found += [("models/model.json", f"its {name}") for name, value in cards[0].items() if value != cards[1][name]]
    if first := next((f"{name}: {what}" for name, what in found if what), None):
        raise UserError(f"the trainings differ, first in {first}; `dvc repro` trains the model anew")
    return f"{before[:7]} and HEAD train the same bits for {trained} epochs, and the same card: {', '.join(MADE)}"


@contextmanager
def _tree(project: Project, revision: str, tree: Path) -> Iterator[Path]:
    """Yield the project's folder in a new work tree of the revision; one of a `keep` that was killed is removed."""
    with Lock(tree):
        remove(tree)
        project.git("worktree", "prune")
        project.git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree / project.prefix
        finally:
            project.git("worktree", "remove", "--force", str(tree))


def _train(project: Project, tree: Path, epochs: int) -> int:
    """Run a tree's stage `train` on the project's data; return the number of epochs. Raises UserError if it fails.

    With a backbone that is frozen at first, there is an epoch after that.
    """

    def shorten(params: Any) -> None:
        train = params["train"]
        train["epochs"] = min(max(epochs, train["freeze_epochs"] + 1), train["epochs"])
        train["warmup_epochs"] = min(train["epochs"] - 1, train["warmup_epochs"])

    path = tree / "params.yaml"
    path.write_text(edited(path.read_text("utf-8"), shorten), encoding="utf-8")
    for name in ("data/processed", "data/weights"):
        remove(tree / name)
        (tree / name).symlink_to(project.root / name)
    own = {**environment(), "PYTHONPATH": str(tree / "src"), "DVC_ROOT": str(tree)}
    if subprocess.run([sys.executable, STAGE], cwd=tree, env=own, stdout=sys.stderr).returncode:
        raise UserError("a short training failed in a tree of one of the two versions, see above")
    return int(YAML(typ="safe").load(path)["train"]["epochs"])
