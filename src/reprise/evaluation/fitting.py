"""Temperature, prediction sets and the threshold of an answer, fitted on the validation split alone.

Sets are split-conformal: a class is in them if its log odds reach those of the right class on all but the least sure
validation images (least ambiguous sets; Sadinle, Lei and Wasserman, JASA 114, 2019). Over splits they hold the
right class as often as promised, whatever the model. The threshold is the lowest of SHARES whose risk has an exact
binomial bound (Clopper and Pearson, Biometrika 26, 1934) below the one allowed, with Bonferroni's correction for SHARES
tests, as in Geifman and El-Yaniv, NeurIPS 2017.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import bdtr
from torch import Tensor

from reprise.evaluation.confidence import LEAST, Confidence, log_odds
from reprise.evaluation.evaluate import predict_split
from reprise.model.artifact import ModelCard
from reprise.model.backbone import TIMMBackbone
from reprise.params.schema import EvaluateParams
from reprise.runtime.errors import UserError, first
from reprise.runtime.intervals import mean_interval

BOUND = math.log(20)  # temperatures from 1 / 20 to 20
FOLDS = 5  # of the cross-validation that decides whether a temperature is applied
SHARES = 10  # thresholds that answer a tenth, two tenths, ... of the validation images
ERROR = 0.05 / SHARES  # of each bound; the risk holds at a confidence of 95 %
WAY_OUT = "raise data.val_fraction, or ask for less"


def fit_confidence(network: TIMMBackbone, card: ModelCard, processed: Path, params: EvaluateParams) -> Confidence:
    """Fit what the params ask for on the validation split of packed data; without a pass over it if that is nothing.

    Raises UserError as `predict_split` and `fitted` do.
    """
    if not params.fits:
        return Confidence(weights_sha256=card.weights_sha256)
    _, logits, labels = predict_split(network, card, processed, "val", params.batch_size)
    return fitted(logits, labels, card, params)


def fitted(logits: Tensor, labels: Tensor, card: ModelCard, params: EvaluateParams) -> Confidence:
    """Fit what the params ask for to logits, float32 (N, classes), and labels (N,) of validation images.

    Raises UserError for too few images, logits that are not finite, and a risk that no threshold keeps.
    """
    check_images(card.classes, labels.bincount(minlength=len(card.classes)).tolist(), params)
    if not logits.isfinite().all():
        raise UserError("the model's answers on the validation split are not numbers (NaN); train it again")
    temperature, calibration = fit_temperature(logits, labels) if params.calibration != "none" else (1.0, "")
    found = {"images": len(labels), "temperature": temperature, "calibration": calibration}
    odds, classes = log_odds((logits / temperature).softmax(dim=1).numpy()), labels.numpy()
    if params.coverage:
        own = odds[np.arange(len(odds)), classes]
        by_class = params.coverage_by == "class"
        groups = classes == np.arange(len(card.classes))[:, None] if by_class else classes[None] >= 0
        sets = [least_in_set(own[group], params.coverage) for group in groups]
        found |= {"coverage": params.coverage, "set_log_odds": sets}
    if params.risk:
        right = odds.argmax(axis=1) == classes
        found |= {"risk": params.risk, "answer_log_odds": least_answered(odds.max(axis=1), right, params.risk)}
    return Confidence.model_validate({"weights_sha256": card.weights_sha256, **found})


def check_images(classes: list[str], images: list[int], params: EvaluateParams) -> None:
    """Raise UserError where so many validation images of each class are too few for coverage or risk."""
    total = {"all classes together": sum(images)}
    by_class = dict(zip(classes, images, strict=True)) if params.coverage_by == "class" else total
    c, risk = params.coverage or 0, params.risk
    sets, answers = c / (1 - c), math.log(ERROR) / math.log1p(-risk) if risk else 0
    for name, needed, counts in ("coverage", sets, by_class), ("risk", answers, total):
        least = math.ceil(round(needed, 9)) or int(needed > 0)
        if few := [f"{group} ({count:,})" for group, count in counts.items() if count < least]:
            value = f"evaluate.{name} = {getattr(params, name)}"
            raise UserError(f"{value} needs {least:,} validation images or more; too few: {first(few, 5)}; {WAY_OUT}")


def fit_temperature(logits: Tensor, labels: Tensor) -> tuple[float, str]:
    """Return the temperature of least NLL and a sentence about it; 1 and the reason where it does not help.

    It helps if it lowers the NLL of images that it was not fitted to, in FOLDS-fold cross-validation, by more than the
    95 % interval. Where only a few images are wrong they decide it, and those of the test split would pay.
    """
    folds = np.arange(len(labels)) % FOLDS  # images of a class lie together

    def losses(log: float | np.ndarray) -> np.ndarray:
        return F.cross_entropy(logits.double() / torch.tensor(np.exp(log)), labels, reduction="none").numpy()

    def best(images: np.ndarray) -> float:
        return float(
            minimize_scalar(lambda log: losses(log)[images].mean(), bounds=(-BOUND, BOUND), method="bounded").x
        )

    if len(np.unique(folds[(logits.argmax(dim=1) != labels).numpy()])) < 2:
        return 1.0, "not applied: too few images are wrong to fit one"
    own, others = best(folds >= 0), np.array([best(folds != fold) for fold in range(FOLDS)])
    gains = losses(0) - losses(others[folds][:, None])
    low, high = mean_interval(gains)
    said = (
        f"{math.exp(own):.4g} (lowers cross-validated NLL by {gains.mean():.4f}, 95 % interval {low:.4f} to {high:.4f})"
    )
    if max(abs(own), *abs(others)) > BOUND - 0.01:
        return 1.0, f"not applied: too few images are wrong, or too many, to fit one; it would be {said}"
    return (float(f"{math.exp(own):.6g}"), said) if low > 0 else (1.0, f"not applied: no gain is shown by {said}")


def least_in_set(own: np.ndarray, coverage: float) -> float:
    """Return the least log odds of a class in the sets, from those of the right class of N images (N,).

    Halfway from the quantile to the next value below, so that the last digit of another runtime decides nothing; half
    the odds of the quantile where there is none.
    """
    quantile = np.sort(own)[len(own) - max(1, math.ceil(round((len(own) + 1) * coverage, 9)))]
    return float(quantile + own[own < quantile].max(initial=quantile - 2 * math.log(2))) / 2


def least_answered(odds: np.ndarray, right: np.ndarray, risk: float) -> float:
    """Return the log odds that an answer has to be above, from log odds and right, bool, of N images (N,).

    Above the n-th largest of them the number of errors is binomial, whatever the threshold's value turned out to be. It
    is halfway from there to the next one above: the same images are answered, and a last digit decides nothing. Where
    none is above, as many are equally sure, all of these are answered. Raises UserError if no threshold keeps the risk.
    """
    falling = [*np.sort(odds)[::-1].tolist(), 2 * math.log(LEAST)]  # the last is below all log odds
    for tenth in range(SHARES, 0, -1):
        threshold: float = falling[len(odds) * tenth // SHARES]
        above = odds > threshold if threshold < falling[0] else odds == threshold
        if bdtr((~right[above]).sum(), above.sum(), risk) <= ERROR:
            return threshold if above.all() else float(odds[above].min() + odds[~above].max()) / 2
    wrong = f"{(~right).sum():,} of {len(right):,} validation images are wrong"
    raise UserError(f"evaluate.risk = {risk}: {wrong}, and no threshold is shown to keep it; {WAY_OUT}")
