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
    for prediction sets; in_set: the least probability of a class in the set, one for all or one for each class. risk:
    the largest share of wrong ones among the answers; answered: the probability that an answer has to be above.
    """

    weights_sha256: str = ""
    images: int = 0
    calibration: str = ""
    temperature: float = Field(default=1.0, gt=0)
    coverage: float | None = None
    in_set: tuple[float, ...] = ()
    risk: float | None = None
    answered: float | None = None

    @property
    def columns(self) -> list[str]:
        """What `judge` adds to an answer."""
        parts = {"prediction_set": self.in_set, "unknown": self.answered is not None, "energy": self.images}
        return [name for name, there in parts.items() if there]

    def promises(self) -> dict[str, Any] | None:
        """What a user of the answers may know: all but thresholds and digest; None where nothing was fitted."""
        by = {"coverage_by": "class" if len(self.in_set) > 1 else "all" if self.in_set else None}
        return self.model_dump(exclude={"weights_sha256", "in_set", "answered"}) | by if self.columns else None

    def judge(self, classes: list[str], answer: np.ndarray) -> dict[str, Any]:
        """Return of one image, as far as the model has them, prediction_set, unknown and energy (6 digits).

        answer: probabilities and energy, float32 (classes + 1,). A set without a class: even the likeliest one is less
        sure than those of the validation split are.
        """
        probabilities = answer[: len(classes)]
        inside = probabilities >= np.array(self.in_set or 0)
        judged = {
            "prediction_set": [name for name, holds in zip(classes, inside.tolist(), strict=True) if holds],
            "unknown": not probabilities.max() > (self.answered or 0),  # true for NaN, too
            "energy": float(f"{answer[-1]:.6g}"),
        }
        return {name: judged[name] for name in self.columns}


NOTHING = Confidence()


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
