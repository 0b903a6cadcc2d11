"""`load_model`, and a model that predicts: any images in, one `Prediction` for each out.

from reprise import load_model

model = load_model("models")
for prediction in model.predict(["cat.jpg", "photos", "more.zip"]):
    print(prediction.name, prediction.label or prediction.reason)
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reprise.evaluation.confidence import FILE, load_confidence
from reprise.evaluation.predictions import cells
from reprise.inference.sources import decoded, named_images
from reprise.model.artifact import ModelCard, load_card
from reprise.runtime.environment import before_torch, end_imports
from reprise.runtime.errors import UserError, reason
from reprise.runtime.parts import ROOT

BATCH, BATCH_PIXELS = 256, 1 << 21  # through the network at once, at most
SAME_BITS = 16  # that of reprise.loader.batches, which needs torch


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer for one image, or the reason why there is none.

    top: the likeliest classes with their probabilities, the first one first; probabilities: float32 (classes,) in the
    order of the model's classes. Without an answer label, probability and probabilities are None. judged: as far as
    the model has them, prediction_set, unknown (then the label is no more than the best guess) and energy; see
    `Confidence.judge`.
    """

    name: str
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    probabilities: np.ndarray | None = None
    reason: str = ""
    judged: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return name, label, probability, top, reason and what `judged` has, for JSON; probabilities have 6 digits."""
        top = [(name, float(f"{p:.6g}")) for name, p in self.top]
        answer = {"name": self.name, "label": self.label, "probability": top[0][1] if top else None, "top": top}
        return answer | {"reason": self.reason} | self.judged

    def row(self, columns: int) -> list[Any]:
        """Return a row of a CSV, digits as in data/predictions.csv; columns: of probabilities and what `judged` has."""
        digits: list[Any] = [""] * columns
        if self.probabilities is not None:
            digits = [*(f"{p:.6g}" for p in self.probabilities.tolist()), *cells(self.judged)]
        return [self.name, self.label or "", *digits, self.reason]

    def line(self) -> str:
        """Return a line of a table."""
        shown = ["unknown"] * bool(self.judged.get("unknown")) + [f"{name} {p:.4f}" for name, p in self.top]
        if "prediction_set" in self.judged:
            shown.append(f"{{{', '.join(self.judged['prediction_set'])}}}")
        return f"{self.name}  {self.reason or '  '.join(shown)}".replace("\n", "\\n")


class Model:
    """A model ready to predict; `card` says all that is known of it.

    run: a TorchModel or OnnxModel, which takes images, uint8 (N, S, S, C), and returns probabilities, float32 (N,
    classes), with the energy as one more column if it has `confidence.columns`. exact: see `load_model`.
    """

    def __init__(self, card: ModelCard, run: Any, exact: bool = True) -> None:
        self.card, self.run, self.exact, self.confidence = card, run, exact, run.confidence

    def predict(self, images: Any, top: int = 5, workers: int = 1) -> list[Prediction]:
        """Return a `Prediction` for each image; see `stream`."""
        return list(self.stream(images, top, workers))

    def stream(self, images: Any, top: int = 5, workers: int = 1) -> Iterator[Prediction]:
        """Yield a `Prediction` for each image, in constant memory for any number of them.

        images: a path, also of a folder, an archive or a CSV, bytes, an open file, an image of Pillow's, an array, or
        any number of these (see `reprise.inference.sources`). workers: processes that decode; a script that asks for
        more than one needs its `if __name__ == "__main__"`. Raises UserError for a folder, archive or CSV without
        images.
        """
        images = decoded(named_images(images), self.card.preprocessing, workers)
        most = BATCH_PIXELS // self.card.architecture.image_size**2 // SAME_BITS * SAME_BITS
        while batch := list(islice(images, min(BATCH, max(SAME_BITS, most)))):
            good = [pixels for _, pixels in batch if not isinstance(pixels, str)]
            answers = iter(self.answers(np.stack(good)) if good else [])
            for name, found in batch:
                bad = isinstance(found, str)
                yield Prediction(name, reason=str(found)) if bad else self.prediction(name, next(answers), top)

    def prediction(self, name: str, answer: np.ndarray, top: int = 5) -> Prediction:
        """Return the answer for an image of this name from its row of `answers`."""
        probabilities = answer[: len(self.card.classes)]
        if not np.isfinite(probabilities).all():
            return Prediction(name, reason="the model's answer is not a number (NaN); train it again")
        order = np.argsort(-probabilities, kind="stable")[: max(1, top)].tolist()
        best = [(self.card.classes[label], float(probabilities[label])) for label in order]
        return Prediction(name, *best[0], best, probabilities, "", self.confidence.judge(self.card.classes, answer))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (N, classes), of images, uint8 (N, S, S, C), as `decode` gives them."""
        return self.answers(images)[:, : len(self.card.classes)]

    def answers(self, images: np.ndarray) -> np.ndarray:
        """Return what `run` gives for images, uint8 (N, S, S, C), as `decode` gives them."""
        padding = -len(images) % SAME_BITS if self.exact else 0
        return self.run(np.pad(images, [(0, padding), (0, 0), (0, 0), (0, 0)]))[: len(images)]


def load_model(
    source: str | Path = "models",
    *,
    repo: str | None = None,
    rev: str | None = None,
    runtime: Literal["torch", "onnx"] | None = None,
    project: str | Path | None = None,
    exact: bool = True,
) -> Model:
    """Load a published model: a folder (of models, or of a run), a .safetensors file beside its .json, or a .onnx file.

    repo, rev: source is a path in this repository of DVC's (address or folder; None: the working directory's), at this
    revision of Git's. runtime: onnx needs no torch; None: torch, if it is installed and the weights are there. project:
    the folder whose `project/` may run, for a model with code of its own.

    exact: an answer does not depend on the number of images, and on torch has the bits of evaluation: batches are
    filled up to a multiple of 16, and computed with the threads of the training. Where torch is not loaded yet, its
    environment variables are set as in training (`before_torch`); where it is, the last digits may differ. False: all
    that the machine has, and a single image up to 16 times faster. Raises UserError for a model that is missing,
    incomplete, altered or of another version, and for code that was not asked for.
    """
    with _fetched(Path(source), repo, rev) as path:
        weights, description, exported, _ = model_files(path)
        on_torch = path.suffix != ".onnx" and weights.is_file() and find_spec("torch") is not None
        if runtime == "onnx" or (runtime is None and exported.is_file() and not on_torch):
            return _on_onnx(exported, description, exact)
        if path.suffix == ".onnx" or not weights.is_file():
            what = f"no model there that {runtime or 'torch'} can run" if path.exists() else "no such file or folder"
            known = "a folder with model.safetensors and model.json, or with model.onnx, or one of these files"
            raise UserError(f"{path}: {what}; name {known}")
        if not on_torch:
            raise UserError(f"{weights}: torch is not installed; install it, or use the exported model, model.onnx")
        return _on_torch(weights, description, exported, project, exact)


def model_files(path: Path) -> tuple[Path, Path, Path, Path]:
    """Return where a model's weights, description, export and confidence are, or would be; path: see `load_model`."""
    if not path.is_dir():
        weights, description, exported = (path.with_suffix(kind) for kind in (".safetensors", ".json", ".onnx"))
        return weights, description, exported, path.with_name(FILE)
    folder = path if (path / "model.onnx").is_file() else path / "export"
    return path / "model.safetensors", path / "model.json", folder / "model.onnx", path / FILE


def _on_onnx(exported: Path, description: Path, exact: bool) -> Model:
    from reprise.export.session import open_onnx

    session = open_onnx(exported)
    folder = exported.absolute().parent
    if folder.name == "export" and not description.is_file():  # the stage's out, beside what it was exported from
        description = folder.with_name("model.json")
    if description.is_file() and load_card(description).weights_sha256 != session.card.weights_sha256:
        raise UserError(f"{exported}: exported from other weights than those of {description}; run `dvc repro export`")
    beside = description.with_name(FILE)
    if not (beside.is_file() or session.confidence.columns):
        _refuse_unfitted(beside)
    if beside.is_file() and load_confidence(beside, session.card) != session.confidence:
        raise UserError(f"{exported}: exported with another {beside}; run `dvc repro export`")
    return Model(session.card, session, exact)


def _refuse_unfitted(beside: Path, promised: bool = False) -> None:
    """Raise UserError for a missing confidence.json that is promised, or that the params of its project ask for.

    When the stage `evaluate` fails, DVC has removed it: the model would answer without the sets and "unknown".
    """
    folder = beside.absolute().parent
    pipeline = folder.with_name("dvc.yaml")
    if pipeline.is_file() and f"{folder.name}/{FILE}" in pipeline.read_text("utf-8"):
        from reprise.params.load import load_params

        promised |= load_params(folder.with_name("params.yaml")).evaluate.fits
    if promised:
        way_out = "`dvc repro evaluate` makes it, or says which gate the model misses"
        raise UserError(f"{beside}: missing, but params.yaml or the exported model promises it; {way_out}")


def _on_torch(weights: Path, description: Path, exported: Path, project: str | Path | None, exact: bool) -> Model:
    card = load_card(description)
    if card.architecture.code_sha256 and project is None:
        code = card.architecture.model_name.partition(":")[0]
        raise UserError(f"{weights}: needs {code}; `project=FOLDER` (--project) lets the code in that folder run")
    beside, fitted = description.with_name(FILE), f'{{"weights_sha256":"{card.weights_sha256}"'  # as confidence begins
    if not beside.is_file():
        _refuse_unfitted(beside, exported.is_file() and fitted.encode() in exported.read_bytes())
    confidence = load_confidence(beside, card)
    first = exact and "torch" not in sys.modules
    if first:
        before_torch(card.provenance.threads, card.provenance.reproducible)
    from reprise.inference.runtimes import TorchModel

    if first:
        end_imports()
    return Model(card, TorchModel(weights, description, Path(project or ROOT), exact, confidence), exact)


@contextmanager
def _fetched(source: Path, repo: str | None, rev: str | None) -> Iterator[Path]:
    """Yield the path of a model, fetched from a revision into a temporary folder if one is asked for."""
    if repo is None and rev is None:
        yield source
        return
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    names = ["model.safetensors", "model.json", "model.onnx", "export/model.onnx", FILE]
    whole = source
    if source.suffix:
        whole, names = source.parent, [source.name, source.with_suffix(".json").name, FILE]
    names += ["../model.json", f"../{FILE}"] * (whole.name == "export")  # what it was exported from
    names += ["../dvc.yaml", "../params.yaml"] * (whole.name not in ("", "export"))  # what is asked for
    with tempfile.TemporaryDirectory() as folder:
        try:
            with suppress(NotDvcRepoError), Repo(repo) as here:  # a folder; at a revision, paths begin at Git's root
                whole = Path(here.root_dir).relative_to(here.scm.root_dir) / whole if rev is not None else whole
            files = DVCFileSystem(repo, rev=rev, subrepos=True)
            files.info(whole.as_posix())  # raises for a revision or a folder that is not there; `isfile` does not
            for name in names:
                path = (whole / name).as_posix()
                if files.isfile(path) and files.info(path)["size"] != 0:  # as of an out that dvc.lock does not name
                    Path(folder, whole.name, name).parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(path, str(Path(folder, whole.name, name)))
        except (DvcException, SCMError, OSError) as error:
            at = f"{source} of {repo or 'this repository'}, at {rev or 'its work tree'}"
            raise UserError(f"{at}: {reason(error)}") from None
        yield Path(folder, whole.name, source.name if source.suffix else "")
