"""The typed shape of params.yaml: every hyperparameter's type, bounds and help; the values live in params.yaml alone.

What YAML 1.2 reads is taken for what the field's type makes of it: a name may look like a number, a switch may be
written `yes` or `off`, and a blank is null, or an empty list or section.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from reprise.runtime.environment import Reproducibility
from reprise.runtime.errors import brief

if TYPE_CHECKING:
    FreeForm = dict[str, Any]
else:
    FreeForm = dict[str, JsonValue]
DataSet = Literal[
    "digits", "folder", "archive",
    # torchvision's
    "caltech101", "caltech256", "cifar10", "cifar100", "clevr_classification", "country211", "dtd", "emnist",
    "eurosat", "fashion_mnist", "fer2013", "fgvc_aircraft", "flowers102", "food101", "gtsrb", "imagenette",
    "inaturalist", "kmnist", "mnist", "omniglot", "oxford_iiit_pet", "pcam", "places365", "qmnist", "rendered_sst2",
    "semeion", "stanford_cars", "stl10", "sun397", "svhn", "usps",
]  # fmt: skip
Schedule = Literal[
    "onecycle", "cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau", "none"
]  # fmt: skip
LoggerName = Literal["tensorboard", "wandb", "mlflow", "dvclive"]
Policy = Literal["none", "randaugment", "trivialaugment"]
Precision = Literal["fp32", "bf16", "auto"]
Processors = Annotated[int, Field(ge=1, le=256)] | Literal["auto"]
ImageSize = Annotated[int, Field(ge=8, le=1024)] | Literal["auto"]


class Section(BaseModel):
    """A group of parameters: unknown keys are refused, a blank means null where null is allowed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Take a blank for an empty list or section, and `true` for no number."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if value is None and get_origin(kind) in (list, dict):
            return [] if get_origin(kind) is list else {}
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            return str(value).lower()
        return value


class SourceParams(Section):
    """Where the images come from."""

    name: DataSet = Field(description="data set, see `reprise data`; folder, archive: your own images at data.path")
    path: str = Field(
        pattern=r"^[^\x00]+$", description="the folder, or the .zip, .tar or .tar.gz, with your own images"
    )
    url: str | None = Field(
        pattern="^https?://[!-~]+$",
        description="http:// or https:// address of the archive, in place of data.path; no spaces",
    )
    sha256: str | None = Field(
        pattern="^[0-9a-fA-F]{64}$", description="checksum of the archive, 64 hexadecimal digits"
    )
    split: str | None = Field(description="which of a data set's variants, see `reprise data`; null: the first")
    mirror: str | None = Field(description="address to download from in place of the data set's own; null: its own")

    @property
    def is_own(self) -> bool:
        """Whether the images are the user's own, at `path`."""
        return self.name in ("folder", "archive") and self.url is None

    @model_validator(mode="after")
    def _archive_params_with_an_archive(self) -> Self:
        if self.name != "archive" and (self.url or self.sha256):
            raise ValueError(f"url and sha256 are for data.name: archive, not {self.name}; set it, or leave them null")
        return self


class PrepareParams(Section):
    """How they are prepared and split."""

    image_size: int = Field(ge=8, le=1024, description="height and width after resizing, in pixels")
    channels: Literal["auto", 1, 3] = Field(
        description="1: grey, 3: RGB, auto: 1 where all images are grey, otherwise 3"
    )
    resize: Literal["stretch", "fit", "crop"] = Field(
        description="stretch: to a square; fit: the whole image, on black; crop: the largest square in its middle"
    )
    on_corrupt: Literal["error", "drop"] = Field(
        description="images that cannot be read: error names them and stops; drop leaves them out and lists them"
    )
    on_leak: Literal["error", "warn", "drop"] = Field(
        description="images of train or val that a later split has too, equal or similar: error stops; warn says so; "
        "drop leaves them out and lists them"
    )
    val_fraction: float = Field(gt=0, lt=1, description="share of the images held out to choose the best epoch")
    test_fraction: float = Field(
        gt=0, lt=1, description="share held out for evaluation; not used where the data set has its own test split"
    )
    seed: int = Field(ge=0, lt=2**32, description="decides which image falls in which split")
    group: str | None = Field(
        min_length=1,
        description="keeps images together in one split: a column of the CSV, or a regular expression whose first "
        "group (or whole match) in the image's path says where it belongs; null: every image for itself",
    )
    folds: int | None = Field(ge=2, le=1000, description="cross-validation: so many parts of equal size; null: none")
    fold: int = Field(
        ge=0, description="the part held out, from 0: for the test or, where that is given, for validation"
    )

    @field_validator("group")
    @classmethod
    def _is_an_expression(cls, group: str | None) -> str | None:
        try:
            re.compile(group or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{brief(str(group))} is not a regular expression: {brief(str(error))}") from None
        return group

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1: nothing is left to train on")
        if self.folds is not None and self.val_fraction + 1 / self.folds >= 1:
            raise ValueError("val_fraction + 1 / folds must be below 1: nothing is left to train on")
        if self.fold >= (self.folds or 1):
            allowed = f"0 to {self.folds - 1} with folds = {self.folds}" if self.folds else "0 as long as folds is null"
            raise ValueError(f"fold = {self.fold} is not allowed: expected {allowed}")
        return self


class DataParams(PrepareParams, SourceParams):
    """The images: each stage takes its own part of the section."""

    @property
    def source(self) -> SourceParams:
        """What the stage `download` reads."""
        return self

    @property
    def prepare(self) -> PrepareParams:
        """What the stage `preprocess` reads."""
        return self


class ModelParams(Section):
    """Which network."""

    name: str = Field(min_length=1, description="any classification model of timm, e.g. resnet18 or efficientnet_b0")
    pretrained: bool = Field(description="start from the weights that timm publishes (fetched from the model hub)")
    weights: str = Field(
        pattern=r"^[^\x00]+$",
        description="weights to start from, .safetensors or torch's; or a folder with one, if it is empty: random ones",
    )
    image_size: ImageSize = Field(
        description="height and width that the network sees, to which the images are resized in training and "
        "evaluation; auto: what the weights to start from were trained on, otherwise data.image_size"
    )
    kwargs: FreeForm = Field(description="further arguments of timm.create_model, e.g. drop_rate: 0.1")


class AugmentParams(Section):
    """Random changes to each training image, drawn anew for each image and epoch."""

    rotate: float = Field(ge=0, le=180, description="largest turn to either side, in degrees")
    scale: float = Field(ge=0, lt=1, description="largest change of size, as a share: 0.1 is 0.9x to 1.1x")
    shift: float = Field(ge=0, lt=1, description="largest shift in x and in y, as a share of the image")
    flip: bool | Literal["auto"] = Field(
        description="mirror each image in every other epoch; auto: photos, not grey images, digits, letters, signs"
    )
    crop: int = Field(ge=0, le=1024, description="pixels of black put around the image, from which a window is cut")
    resized_crop: float = Field(
        ge=0, lt=1, description="smallest share of the area that is cut out and brought to full size; 0: off"
    )
    brightness: float = Field(ge=0, le=1, description="largest change of brightness: 0.4 is 0.6x to 1.4x")
    contrast: float = Field(ge=0, le=1, description="largest change of contrast: 0.4 is 0.6x to 1.4x")
    saturation: float = Field(ge=0, le=1, description="largest change of saturation: 0.4 is 0.6x to 1.4x; RGB only")
    hue: float = Field(ge=0, le=0.5, description="largest turn of the hue, as a share of the circle; RGB only")
    policy: Policy = Field(
        description="randaugment: two changes of medium strength; trivialaugment: one of any strength; none"
    )
    cutout: float = Field(ge=0, lt=1, description="side of a black square, as a share of the image's side; 0: off")
    mixup: float = Field(
        ge=0, le=100, description="blend pairs of images and their labels by shares from Beta(mixup, mixup); 0: off"
    )
    cutmix: float = Field(
        ge=0, le=100, description="paste a part of another image, with its share of the label; as mixup; 0: off"
    )

    @model_validator(mode="after")
    def _one_kind_of_crop(self) -> Self:
        if self.crop and self.resized_crop:
            raise ValueError("crop and resized_crop both cut a window out of the image; set one of them to 0")
        return self


class CheckpointParams(Section):
    """How often a training saves its state, to be taken up again after a crash; changes no result."""

    epochs: int = Field(ge=1, le=10_000, description="after so many epochs, or")
    minutes: float = Field(ge=0, le=100_000, description="after so many minutes, also within an epoch")


class TrainParams(Section):
    """How the network is trained."""

    epochs: int = Field(ge=1, le=10_000, description="passes over the training split")
    batch_size: int = Field(ge=1, le=65_536, description="images per optimiser step, of each process")
    lr: float = Field(gt=0, le=100, description="learning rate at its peak")
    optimizer: str = Field(min_length=1, description="any of timm.optim.list_optimizers(), e.g. adamw, sgd, lion")
    optimizer_kwargs: FreeForm = Field(description="further arguments of timm's create_optimizer_v2, e.g. momentum")
    weight_decay: float = Field(ge=0, le=10, description="as the optimizer means it; never of norms and biases")
    layer_decay: float | None = Field(
        gt=0, le=1, description="factor on the learning rate from each layer to the one before; null: the same for all"
    )
    backbone_lr: float = Field(
        gt=0, le=1, description="factor on the learning rate of everything but the classifier, for fine-tuning"
    )
    freeze_epochs: int = Field(ge=0, description="epochs at the start that train the classifier alone")
    schedule: Schedule = Field(
        description="onecycle: warm up, then fall to zero; plateau: a tenth whenever val/loss stalls; none: constant; "
        "the others are timm's"
    )
    schedule_kwargs: FreeForm = Field(
        description="further arguments of timm's create_scheduler_v2, torch's OneCycleLR or ReduceLROnPlateau"
    )
    warmup_epochs: int = Field(ge=0, le=10_000, description="learning rate rises first; onecycle: 0 is 30% of all")
    clip_grad: float | None = Field(gt=0, description="largest norm of the gradient; null: any")
    accumulate: int = Field(ge=1, le=65_536, description="batches whose gradients make one optimizer step")
    ema: float | None = Field(
        gt=0, lt=1, description="decay of a moving average of the weights, published if it validates better; null: none"
    )
    select: Literal["val_accuracy", "val_loss"] = Field(description="what the published epoch is best in")
    early_stopping: int | None = Field(ge=1, description="stops after so many epochs without a better one; null: never")
    balance: Literal["none", "weights", "sampling"] = Field(
        description="for classes of unequal size; weights: rare ones count more in the loss; sampling: are drawn more"
    )
    label_smoothing: float = Field(ge=0, lt=1, description="share of the target spread over all classes")
    augment: AugmentParams
    start_size: int | None = Field(
        ge=8,
        le=1024,
        description="height and width of the images in the first epoch, growing to full size over two "
        "thirds of the epochs; null: full size throughout",
    )
    seed: int = Field(ge=0, lt=2**32, description="initial weights, order of the images, augmentation and dropout")
    precision: Precision = Field(
        description="of training: fp32; bf16: mixed, the weights stay fp32; auto: bf16 on a GPU that has it, else fp32"
    )
    compile: bool = Field(description="torch.compile the network; pays on a GPU with long trainings")
    threads: Processors = Field(
        description="CPU threads, which change the last bits of the result; auto: measured once for model and machine, "
        "then kept"
    )
    reproducible: Reproducibility = Field(
        description="portable: on the CPU, the same bits on any x86-64 with AVX2; machine: on the GPU if there is one, "
        "the same bits on machines of one kind; auto: machine on a GPU, else portable; off: no promise, fastest"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(
        description="auto: as `reproducible` says; cpu; gpu: an error where there is none"
    )
    devices: Processors = Field(
        description="processes on each machine, one for each GPU; auto: all GPUs, one process on the CPU"
    )
    num_nodes: int = Field(ge=1, le=4096, description="machines")
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = Field(
        description="Lightning's, for several processes; auto: ddp; the last: where some weights stay unused"
    )
    checkpoint_every: CheckpointParams
    loggers: list[LoggerName] = Field(
        description="of tensorboard, wandb, mlflow, dvclive: also log there (extras to install); changes no result"
    )

    @model_validator(mode="after")
    def _devices_that_fit(self) -> Self:
        if self.accelerator == "gpu" and self.reproducible == "portable":
            raise ValueError(
                "accelerator = gpu: reproducible = portable promises the bits of CPUs; choose reproducible machine or "
                "off, or accelerator auto"
            )
        if self.num_nodes > 1 and self.devices == "auto":
            raise ValueError(f"devices = auto: expected a number with num_nodes = {self.num_nodes}")
        if self.threads == "auto" and (self.num_nodes > 1 or self.devices not in (1, "auto")):
            raise ValueError("threads = auto: expected a number with several processes; it counts for each of them")
        return self

    @model_validator(mode="after")
    def _warm_up_that_fits(self) -> Self:
        if self.warmup_epochs and (self.schedule in ("plateau", "none") or self.warmup_epochs >= self.epochs):
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs}: expected less than epochs = {self.epochs}, and 0 with the "
                "schedules plateau and none (constant warms up)"
            )
        if self.schedule == "none" and self.schedule_kwargs:
            raise ValueError("schedule_kwargs: schedule = none takes none; set it to {}")
        return self


class EvaluateParams(Section):
    """How the published model is measured; changes no training result."""

    batch_size: int = Field(ge=1, le=65_536, description="images per forward pass")
    calibration_bins: int = Field(ge=1, le=1000, description="confidence bins of the expected calibration error")
    metrics: list[str] = Field(description="further metrics, torchmetrics' multiclass ones, e.g. auroc, cohen_kappa")


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams


def json_schema() -> str:
    """Return the JSON schema of params.yaml, for completion and checks in an editor."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("params.schema.json").write_text(json_schema(), encoding="utf-8")
