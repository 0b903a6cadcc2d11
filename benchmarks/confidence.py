"""Confidence keeps what it promises: coverage over 100 resplits, risk, and NLL at the temperature, of ten models.

    python benchmarks/confidence.py
    python benchmarks/confidence.py --models 1 data.name=archive data.path=cifar10-images.tar.gz model.name=digits_cnn

Trains by `src/train.py`, then works on the logits of the validation and test images. A resplit shuffles both together
and divides them anew into as many images to calibrate and to test. By exchangeability the mean coverage is then
ceil((n + 1) c) / (n + 1), whatever the model, but for ties; its bounds here are those of a binomial share of all these
images. Prints Markdown tables; the result is in benchmarks/README.md.
"""

import argparse
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from measure import machine
from reprise.evaluation.confidence import log_odds
from reprise.evaluation.evaluate import predict_split
from reprise.evaluation.fitting import fitted
from reprise.evaluation.reliability import risk_coverage
from reprise.model.backbone import load_model
from reprise.params.load import load_params
from reprise.repo.project import Project
from reprise.repo.runs import prepared_data
from reprise.runtime.errors import UserError
from reprise.runtime.intervals import mean_interval

ROOT = Path(__file__).resolve().parent.parent
MODELS = [
    "",
    "train.seed=1 train.label_smoothing=0",
    "train.seed=2 train.label_smoothing=0 train.epochs=4",
    "train.seed=3 train.epochs=3",
    "train.seed=4 train.loss=focal train.label_smoothing=0 train.epochs=4",
    "model.name=mlp train.label_smoothing=0",
    "model.name=mlp train.label_smoothing=0 train.epochs=60 train.augment.rotate=0 train.augment.shift=0",
    "model.name=mlp train.label_smoothing=0 train.epochs=60 train.lr=0.02",
    "model.name=mlp train.label_smoothing=0.3",
    "model.name=digits_cnn train.label_smoothing=0 train.epochs=4",
]
RESPLITS = 100
PROMISES = [(0.9, "all"), (0.95, "all"), (0.8, "class")]


def trained(overrides: list[str]):
    """Train, and return the card, params.evaluate, and logits and labels of the validation and of the test images."""
    subprocess.run([sys.executable, "src/train.py", *overrides], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    run = ROOT / "runs/latest"
    params = load_params(run / "params.yaml")
    network, card = load_model(run / "model.safetensors", run / "model.json")
    data = prepared_data(Project(ROOT), params.data)
    val, test = (predict_split(network, card, data, split, 256)[1:] for split in ("val", "test"))
    return card, params.evaluate, val, test


def covered(found, logits, labels) -> float:
    """Return the share of images whose set holds their class."""
    odds, classes = log_odds((logits / found.temperature).softmax(dim=1).numpy()), labels.numpy()
    least = np.array(found.set_log_odds)
    return float((odds[np.arange(len(odds)), classes] >= least[classes if len(least) > 1 else 0 * classes]).mean())


def resplits(card, params, logits, labels, images: int) -> list[list[float]]:
    """Return the coverages on the test images, for each of the promises, of so many resplits."""
    shares = [[] for _ in PROMISES]
    for seed in range(RESPLITS):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        fit, test = order[:images], order[images:]
        for place, (coverage, by) in enumerate(PROMISES):
            asked = params.model_copy(update={"coverage": coverage, "coverage_by": by})
            shares[place].append(covered(fitted(logits[fit], labels[fit], card, asked), logits[test], labels[test]))
    return shares


def row(settings: str, card, params, val, test) -> str:
    """Return a row of the table, for a model's logits and labels of both splits."""
    (logits, labels), asked = test, {"calibration": "temperature", "coverage": 0.9}
    found = fitted(*val, card, params.model_copy(update=asked))
    changed = int((logits.argmax(1) != (logits / found.temperature).argmax(1)).sum())
    losses = [F.cross_entropy(logits.double() / t, labels, reduction="none").numpy() for t in (1, found.temperature)]
    low, high = mean_interval(losses[1] - losses[0])
    curve = [list(map(float, each)) for each in risk_coverage(logits.softmax(1), labels)]
    at_90 = max((each for each in curve if each[0] <= 0.9), default=curve[0])
    try:
        least = fitted(*val, card, params.model_copy(update={"risk": 0.05})).answer_log_odds
        kept = log_odds(logits.softmax(1).numpy()).max(axis=1) > least
        said = f"{kept.mean():.3f}, {(logits.argmax(1) != labels).numpy()[kept].mean():.4f}"
    except UserError:
        said = "refused"
    nll = f"{losses[0].mean():.4f} -> {losses[1].mean():.4f} ({low:+.4f} to {high:+.4f})"
    wrong = f"{curve[-1][1]:.4f}, {at_90[1]:.4f}"
    cells = settings or "default", f"{found.temperature:.3f}", nll, changed, f"{covered(found, *test):.4f}", wrong, said
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--models", type=int, default=len(MODELS), help="so many of the ten")
    arguments = parser.parse_intermixed_args()
    rows, means = [], []
    for settings in MODELS[: arguments.models]:
        card, params, val, test = trained([*arguments.overrides, *settings.split()])
        rows.append(row(settings, card, params, val, test))
        logits, labels = (torch.cat(both) for both in zip(val, test, strict=True))
        means.append(resplits(card, params, logits, labels, len(val[1])))
        print(rows[-1], file=sys.stderr, flush=True)
    print(f"{machine()}\n\n| model | temperature | test NLL before -> after (95 % interval of the difference) ", end="")
    print("| classes changed | coverage for 0.9 | wrong: all, at 90 % | risk 0.05: answered, wrong |\n|" + " --- |" * 7)
    print("\n".join(rows))
    n = len(val[1])
    images = n + len(test[1])
    print(f"\nMean coverage of {RESPLITS} resplits of {images:,} images, {n:,} of them to calibrate:\n")
    print("| promised | lowest and highest mean of the models | binomial bounds |\n| --- | --- | --- |")
    for place, (coverage, by) in enumerate(PROMISES):
        shares = [sum(each[place]) / RESPLITS for each in means]
        spread = 1.96 * math.sqrt(coverage * (1 - coverage) / images)
        excess = 1 / (1 + (n if by == "all" else n / len(card.classes)))
        bounds = f"{coverage - spread:.4f} to {coverage + excess + spread:.4f}"
        print(f"| {coverage} by {by} | {min(shares):.4f}, {max(shares):.4f} | {bounds} |")


if __name__ == "__main__":
    main()
