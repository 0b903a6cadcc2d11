"""models/confidence.json: what a model's probabilities are worth, and what they make of an answer. Needs no torch.

The stage `evaluate` fits it on the validation split (`reprise.evaluation.fitting`) and seals it to the weights.
"""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from reprise.model.artifact import ModelCard, Part
from reprise.runtime.checksums import read_sealed
from reprise.runtime.errors import UserError

FILE = "confidence.json"  # beside model.json


class Confidence(Part):
    """What was fitted for the weights with this SHA-256 on so many validation images; by default, nothing.

    temperature: logits are divided by it; calibration: a sentence that says why it is what it is. coverage: promised
    for prediction sets; set_log_odds: the least log odds of a class in the set, one for all or one for each class.
    risk: the largest share of wrong ones among the answers; answer_log_odds: what those of an answer have to be above.
    """

    weights_sha256: str = ""
    images: int = 0
    calibration: str = ""
    temperature: float = Field(default=1.0, gt=0)
    coverage: float | None = None
    set_log_odds: tuple[float, ...] = ()
    risk: float | None = None
    answer_log_odds: float | None = None

    @property
    def columns(self) -> list[str]:
        """What `judge` adds to an answer."""
        sets, answers = self.set_log_odds, self.answer_log_odds is not None
        parts = {"prediction_set": sets, "unknown": answers, "energy": self.images}
        return [name for name, there in parts.items() if there]

    def promises(self) -> dict[str, Any] | None:
        """What a user of the answers may know: all but thresholds and digest; None where nothing was fitted."""
        by = {"coverage_by": "class" if len(self.set_log_odds) > 1 else "all" if self.set_log_odds else None}
        told = self.model_dump(exclude={"weights_sha256", "set_log_odds", "answer_log_odds"})
        return told | by if self.columns else None

    def judge(self, classes: list[str], answer: np.ndarray) -> dict[str, Any]:
        """Return of one image, as far as the model has them, prediction_set, unknown and energy (6 digits).

        answer: probabilities and energy, float32 (classes + 1,). A set without a class: even the likeliest one is less
        sure than those of the validation split are.
        """
        odds = log_odds(answer[: len(classes)])
        inside = odds >= np.array(self.set_log_odds or 0)
        judged = {
            "prediction_set": [name for name, holds in zip(classes, inside.tolist(), strict=True) if holds],
            "unknown": not odds.max() > (self.answer_log_odds or 0),  # true for NaN, too
            "energy": float(f"{answer[-1]:.6g}"),
        }
        return {name: judged[name] for name in self.columns}


NOTHING = Confidence()
LEAST = 1e-30  # a probability below it, which softmax in float32 may or may not round to 0, counts as this


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), float64, of probabilities (..., classes); NaN where one of them is.

    1 - p is the sum of the others: p itself is rounded to 1 in float32 long before the answers of a sure model are
    alike, and torch and onnxruntime round it differently.
    """
    every = probabilities.astype(np.float64)
    rest, likeliest = every.copy(), every.argmax(axis=-1)[..., None]
    np.put_along_axis(rest, likeliest, 0, axis=-1)
    others = every.sum(axis=-1, keepdims=True) - every
    np.put_along_axis(others, likeliest, rest.sum(axis=-1, keepdims=True), axis=-1)
    return np.log(np.maximum(every, LEAST)) - np.log(np.maximum(others, LEAST))


def load_confidence(path: Path, card: ModelCard) -> Confidence:
    """Read the file beside a model; NOTHING where it adds nothing to an answer, whatever the weights, or is missing.

    Raises UserError if it is altered or was fitted for other weights.
    """
    way_out = "`dvc repro evaluate` makes it anew; without the file, the model answers with bare probabilities"
    try:
        found = Confidence.model_validate(read_sealed(path))
    except FileNotFoundError:
        return NOTHING
    except ValueError:
        raise UserError(f"{path}: altered, or of another version of Reprise; {way_out}") from None
    if found.columns and found.weights_sha256 != card.weights_sha256:
        raise UserError(f"{path}: fitted for other weights than those that it lies beside; {way_out}")
    return found if found.columns else NOTHING
