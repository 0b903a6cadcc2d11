"""Confidence keeps what it promises on digits: coverage over 100 resplits, risk, and NLL at the temperature of ten models.

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

import torch
import torch.nn.functional as F
from measure import machine

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
PROMISES = [(0.9, "all"), (0.95, "all"), (0.9, "class")]


def trained(overrides: list[str]):
    """Train, and return the card, params.evaluate, and logits and labels of the validation and of the test images."""
    subprocess.run([sys.executable, "src/train.py", *overrides], cwd=ROOT, check=True, capture_output=True)
    run = ROOT / "runs/latest"
    params = load_params(run / "params.yaml")
    network, card = load_model(run / "model.safetensors", run / "model.json")
    data = prepared_data(Project(ROOT), params.data)
    return card, params.evaluate, *(predict_split(network, card, data, split, 256)[1:] for split in ("val", "test"))


def covered(found, logits, labels) -> float:
    """Return the share of images whose set holds their class."""
    probabilities = (logits / found.temperature).softmax(dim=1)
    own = probabilities.gather(1, labels[:, None])[:, 0]
    least = torch.tensor(found.in_set, dtype=torch.float64)
    return float((own >= least[labels if len(least) > 1 else torch.zeros_like(labels)]).double().mean())


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--models", type=int, default=len(MODELS), help="so many of the ten")
    arguments = parser.parse_intermixed_args()
    print(
        f"{machine()}\n\n| model | temperature | test NLL before -> after (95 % interval of the difference) | classes changed ",
        end="",
    )
    print(
        "| coverage by val, on test | wrong: all, at 90 % | risk 0.05: answered, wrong |\n|" + " --- |" * 7, flush=True
    )
    means = []
    for settings in MODELS[: arguments.models]:
        card, params, (val, val_labels), (test, labels) = trained([*arguments.overrides, *settings.split()])
        asked = params.model_copy(update={"calibration": "temperature", "coverage": 0.9})
        found = fitted(val, val_labels, card, asked)
        before, after = (
            F.cross_entropy(test.double() / t, labels, reduction="none").numpy() for t in (1, found.temperature)
        )
        low, high = mean_interval(after - before)
        changed = int((test.argmax(1) != (test / found.temperature).argmax(1)).sum())
        rows = [list(map(float, row)) for row in risk_coverage(test.softmax(1), labels)]
        at_90 = max((row for row in rows if row[0] <= 0.9), default=rows[0])
        try:
            risk = fitted(val, val_labels, card, params.model_copy(update={"risk": 0.05})).answered
            kept = test.softmax(1).max(1).values > risk
            said = f"{kept.double().mean():.3f}, {(test.argmax(1) != labels)[kept].double().mean():.4f}"
        except UserError:
            said = "refused"
        print(
            f"| `{settings or 'default'}` | {found.temperature:.3f} | {before.mean():.4f} -> {after.mean():.4f} ",
            end="",
        )
        print(f"({low:+.4f} to {high:+.4f}) | {changed} | {covered(found, test, labels):.4f} ", end="")
        print(f"| {rows[-1][1]:.4f}, {at_90[1]:.4f} | {said} |", flush=True)
        means.append(resplits(card, params, torch.cat([val, test]), torch.cat([val_labels, labels]), len(val)))
    images, n = len(val) + len(test), len(val)
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
