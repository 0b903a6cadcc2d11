"""The JSON file beside published weights: all that is needed to rebuild and use the network. Needs no torch."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from reprise.params.dependencies import Record
from reprise.runtime.checksums import read_sealed
from reprise.runtime.errors import UserError
from reprise.runtime.provenance import Provenance


class Part(BaseModel):
    """A part of the model card: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Classifier(Part):
    """A classifier other than timm's linear one: an mlp of so many hidden units, or a knn of so many examples."""

    kind: Literal["mlp", "knn"]
    size: PositiveInt


class Architecture(Part):
    """The arguments of TIMMBackbone that rebuild the network, and the height and width of its input in pixels.

    code_sha256: of the file that model_name names and those of `project/` that it imports; None for a model of timm's.
    classifier: what takes the place of timm's, left out of the JSON file if nothing does.
    """

    model_name: str
    num_classes: PositiveInt
    in_chans: PositiveInt
    image_size: int = Field(ge=1, le=4096)
    kwargs: dict[str, Any]
    code_sha256: str | None = None
    classifier: Classifier | None = Field(None, exclude_if=lambda value: value is None)


class Preprocessing(Part):
    """How an image becomes the network's input, in this order.

    Decode, rotate upright by EXIF, of 16-bit gray keep `value >> (depth - 8)` (None: a depth of 16), lay transparency
    over white, convert to `channels` (1 gray, 3 RGB), resize to a square of image_size pixels (stretch; fit: the whole
    image on black; crop: the largest square in the middle), scale to value_range, resize to the architecture's
    image_size if that differs, subtract mean and divide by std of each channel. docs/data.md has the roundings.
    """

    image_size: int = Field(ge=1, le=4096)
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]
    depth: int | None = Field(None, ge=8, le=16)
    resize: Literal["stretch", "fit", "crop"] = "stretch"
    interpolation: Literal["bilinear, antialiased"] = "bilinear, antialiased"
    value_range: tuple[float, float] = (0.0, 1.0)


class Origin(Part):
    """The weights that a training started from.

    source: a repository of the hub, an address or the name of a file; revision: the repository's commit; not_loaded:
    the network's tensors that the weights did not set; new_classes: the classes whose rows of the classifier they did
    not set, because they name their classes and these are not among them.
    """

    source: str
    revision: str | None
    sha256: str
    not_loaded: list[str] = []
    new_classes: list[str] = []


class Training(Part):
    """How the weights were trained.

    start: the pretrained weights it began with, None for random ones; head: of a frozen backbone, with epoch then the
    number of the head on its path; averaged: they are the average of `train.ema`;
    continued: after which epochs a finished run went on for more; up to there it had the schedule of so many.
    """

    data: str
    splits_sha256: str
    pretrained: bool
    start: Origin | None = None
    epoch: int
    head: str | None = None
    averaged: bool = False
    continued: list[int] = []
    seed: int


class ModelCard(Part):
    """All that is needed to rebuild and use published weights.

    weights_sha256: of the file of weights, "" until it is saved; record: what the training script depended on; kept:
    digests of earlier codes, from the one that trained it on; `reprise keep` showed the record's to train the same.
    """

    architecture: Architecture
    classes: list[str]
    preprocessing: Preprocessing
    training: Training
    provenance: Provenance
    weights_sha256: str = ""
    record: Record | None = None
    kept: list[str] = []

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        net, kept = self.architecture, self.preprocessing
        if len(self.classes) != net.num_classes or {len(kept.mean), len(kept.std), net.in_chans} != {kept.channels}:
            raise ValueError("its classes or channels do not agree")
        if kept.value_range != (0, 1):
            raise ValueError("another range of values than 0 to 1")
        return self


def load_card(path: Path) -> ModelCard:
    """Read the JSON file of a model. Raises UserError if it is missing, altered or not a model's."""
    try:
        return ModelCard.model_validate(read_sealed(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no model there; run `dvc repro train` or `python src/train.py`") from None
    except ValidationError as error:
        what = f"not a model's description, or of another version of Reprise ({error.error_count()} wrong entries)"
        raise UserError(f"{path}: {what}; use that version, or train it again") from None
    except ValueError as error:
        raise UserError(f"{error}; run `dvc checkout` or train it again") from None
