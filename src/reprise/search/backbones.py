"""Which pretrained network suits the data: each is tried frozen, under a linear head, as an experiment of DVC.

They are ranked by accuracy on the validation split; the test split is not looked at. Networks whose interval against
the best one includes zero are as good as the data can tell.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from reprise.comparison.pictures import Axes, document, label
from reprise.comparison.statistics import accuracy_difference
from reprise.model.pretrained import ORIGIN
from reprise.params.backbone import FROZEN
from reprise.repo.project import Project
from reprise.repo.revisions import MODEL, PROCESSED, WEIGHTS, experiments
from reprise.repo.trials import STAGES, workspace
from reprise.runtime.errors import UserError
from reprise.runtime.markup import table, text

BATCH = 256  # images to a batch when answers are compared
SECONDS = re.compile(r" in (\d+\.\d) s$")


class Backbone(NamedTuple):
    """A network that was tried: its experiment, which validation images it has right, and what it costs.

    failed: why it could not be tried; the other fields are empty then. seconds: of the whole trial.
    """

    name: str
    experiment: str = ""
    right: Sequence[bool] = ()
    parameters: int = 0
    flops: int = 0
    seconds: float = 0.0
    failed: str = ""

    @property
    def accuracy(self) -> float:
        """On the validation split."""
        return sum(self.right) / len(self.right)


def candidates(root: Path, names: Sequence[str], fetch: Callable[[str], str]) -> dict[str, str]:
    """Return {timm's name: path of weights, from the root}; without names, of all in data/weights named after a model.

    root: of the project. names: each a name, or NAME=PATH; weights that are not there come from `fetch`, by its path.
    Raises UserError without any.
    """
    found = {path.stem: path for path in sorted(root.glob("data/weights/*.safetensors"))}
    found |= {path.parent.name: path.parent for path in sorted(root.glob(f"data/weights/*/{ORIGIN}"))}
    there = {name: path.relative_to(root).as_posix() for name, path in found.items()}
    given = [name.partition("=")[::2] for name in names]
    if len(dict(given)) < len(given):
        raise UserError("a model is named twice; an experiment has one of its kind")
    models = {name: path or there.get(name) or fetch(name) for name, path in given} or there
    if not models:
        raise UserError("data/weights: no weights there; name models of timm, whose weights are fetched to it")
    return models


def rank(project: Project, models: dict[str, str], say: Callable[[str], object]) -> list[Backbone]:
    """Try networks, each as an experiment of HEAD; return all, the best one first, failed ones last.

    models: {timm's name: path of weights, from the root}. Raises UserError for uncommitted changes, and where none
    could be tried.
    """
    project.refuse_edits("every network is tried on the last commit")
    head = project.git("rev-parse", "HEAD").strip()
    found = [_try(project, head, name, file, say) for name, file in models.items()]
    if all(each.failed for each in found):
        raise UserError(f"none could be tried; {found[0].name}: {found[0].failed}")
    return sorted(found, key=lambda each: (bool(each.failed), -sum(each.right), each.parameters))


def _try(project: Project, head: str, name: str, file: str, say: Callable[[str], object]) -> Backbone:
    """Run a network's trial, which DVC takes from its cache if weights, data and code are those of an earlier one."""
    experiment, log = f"backbone-{re.sub('[^0-9A-Za-z_.-]', '-', name)}", project.root / f"runs/backbones/{name}.log"
    before = next((run for run in experiments(project, head) if run.name == experiment), None)
    with workspace(project, head) as here:
        say(f"{name}: at work, see {project.short(log)}")
        log.unlink(missing_ok=True)
        model = {"name": name, "weights": file, "pretrained": False}
        train = {**FROZEN, "backbone": "frozen", "head": "linear", "feature_views": 1, "precision": "fp32"}
        begun = time.perf_counter()
        if here.run({"model": model, "train": train}, log, "train").wait():
            said = [line for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("error:")]
            return Backbone(name, failed=said[-1].removeprefix("error: ") if said else f"see {project.short(log)}")
        message = f"backbone {name} in {time.perf_counter() - begun:.1f} s"
        commit = here.save(experiment, message, STAGES)
        if before and not project.git("diff", "--name-only", str(before.commit), commit):
            commit = str(before.commit)  # with the time that it took
            project.git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{experiment}", commit)
        seconds = SECONDS.search(project.git("log", "-1", "--format=%s", commit).strip())
        return Backbone(name, experiment, *_measured(project, here.root), float(seconds[1]) if seconds else math.nan)


def _measured(project: Project, root: Path) -> tuple[list[bool], int, int]:
    """Return which validation images the model below a root has right, its parameters and its FLOPs."""
    from reprise.evaluation.evaluate import predict_split
    from reprise.model.backbone import count_flops, load_model

    network, card = load_model(root / WEIGHTS, root / MODEL, project.root)
    _, logits, labels = predict_split(network, card, root / PROCESSED, "val", BATCH)
    size = sum(weight.numel() for weight in network.parameters())
    return (logits.argmax(dim=1) == labels).tolist(), size, count_flops(network, card.architecture) or 0


def ranking(found: Sequence[Backbone]) -> str:
    """Return a Markdown table of what `rank` has found."""
    best, rows = found[0], []
    for each in found:
        if each.failed:
            rows.append([text(each.name), *["-"] * 5, text(each.failed)])
            continue
        pairs = list(zip(best.right, each.right, strict=True))
        broken, fixed = pairs.count((True, False)), pairs.count((False, True))
        low, high = accuracy_difference(broken, fixed, len(pairs))
        against = "-" if each is best else f"{each.accuracy - best.accuracy:+.4f} ({low:+.4f} to {high:+.4f})"
        size = [f"{each.parameters / 1e6:.1f}", f"{each.flops / 1e9:.2f}", f"{each.seconds:.1f}"]
        rows.append([text(each.name), f"{each.accuracy:.4f}", against, *size, f"dvc exp apply {each.experiment}"])
    header = ["model", "validation accuracy", "against the best (95 %)", "M parameters", "GFLOPs", "seconds", ""]
    return table(header, rows)


def picture(found: Sequence[Backbone]) -> str:
    """Draw validation accuracy over size, as SVG."""
    tried = [each for each in found if not each.failed]
    sizes = [math.log10(each.parameters) for each in tried]
    top, bottom = max(each.accuracy for each in tried), min(each.accuracy for each in tried)
    title = "validation accuracy by parameters (log10)"
    axes = Axes(70, 30, (560, 300), (min(sizes) - 0.1, max(sizes) + 0.3), (bottom - 0.02, top + 0.02), title)
    parts = axes.frame()
    for each, size in zip(tried, sizes, strict=True):
        x, y = axes.place((size, each.accuracy))
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='#0b67b2'/>", label(x + 7, y + 4, each.name)]
    return document(720, 370, parts)
