"""The typed shape of params.yaml: every hyperparameter's type, bounds and help; the values live in params.yaml alone.

What YAML 1.2 reads is taken for what the field's type makes of it: a name may look like a number, a switch may be
written `yes` or `off`, and a blank is null, or an empty list or section.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from reprise.params.backbone import check_backbone
from reprise.params.sections import Section, param
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
Resize = Literal["stretch", "fit", "crop"]
Processors = Annotated[int, Field(ge=1, le=256)] | Literal["auto"]
Bar = Annotated[str, Field(pattern=r"^[\w.]+ *(>=|<=) *-?\d+(\.\d+)?$")]
Side = Annotated[int, Field(ge=8, le=1024)]
Own = Annotated[str, Field(pattern=r"^project/.+\.py:\w+$")]
Address = Annotated[str, Field(pattern="^https?://[!-~]+$")]


class SourceParams(Section):
    """Where the images come from."""

    name: DataSet = param("data set, see `reprise data`; folder, archive: your own images at data.path")
    path: str = param("the folder, or the .zip, .tar or .tar.gz, with your own images", pattern=r"^[^\x00]+$")
    url: Address | None = param("http:// or https:// address of the archive, in place of data.path; no spaces")
    sha256: str | None = param("checksum of the archive, 64 hexadecimal digits", pattern="^[0-9a-fA-F]{64}$")
    split: str | None = param("which of a data set's variants, see `reprise data`; null: the first")
    mirror: Address | None = param("http:// or https:// address to download from in place of the data set's own")

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
    """How the images are prepared and split."""

    image_size: Side = param("height and width after resizing, in pixels")
    channels: Literal["auto", 1, 3] = param("1: gray, 3: RGB, auto: 1 where all images are gray, otherwise 3")
    depth: Literal["auto"] | Annotated[int, Field(ge=8, le=16)] = param(
        "bits in use of images of 16 bits, 8 to 16; auto: 16, and images with small values are refused"
    )
    resize: Resize = param("stretch: to a square; fit: the whole image, on black; crop: the largest central square")
    on_corrupt: Literal["error", "drop"] = param(
        "images that cannot be read: error names them and stops; drop leaves them out and lists them"
    )
    on_leak: Literal["error", "warn", "drop"] = param(
        "images of train or val that a later split has too, equal or similar: error stops, warn says so, "
        "drop leaves them out and lists them"
    )
    val_fraction: float = param("share of the images held out to choose the best epoch", gt=0, lt=1)
    test_fraction: float = param("share held out for evaluation; unused where the data have a test split", gt=0, lt=1)
    seed: int = param("decides which image falls in which split", ge=0, lt=2**32)
    group: str | None = param(
        "keeps images together: a column of the CSV, or a regular expression whose first group (or whole match) "
        "in the image's path names the group; null: each image by itself",
        min_length=1,
    )
    folds: int | None = param("cross-validation: number of parts of equal size; null: none", ge=2, le=1000)
    fold: int = param("the part held out, from 0: for the test or, where that is given, for validation", ge=0)

    @property
    def bits(self) -> int:
        """Bits in use of images of 16 bits."""
        return 16 if self.depth == "auto" else self.depth

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

    title: str | None = param("what the model's card calls the data; null: data.name", min_length=1)

    @property
    def source(self) -> SourceParams:
        """What the stage `download` reads."""
        return self

    @property
    def prepare(self) -> PrepareParams:
        """What the stage `preprocess` reads."""
        return self


class ModelParams(Section):
    """The network and the weights that it starts from."""

    name: str = param("any classification model of timm, e.g. resnet18; or project/FILE.py:NAME", min_length=1)
    pretrained: bool = param("start from the weights that timm publishes (fetched from the model hub)")
    weights: str = param(
        "weights to start from, .safetensors or torch's; or a folder with one, if it is empty: random ones",
        pattern=r"^[^\x00]+$",
    )
    image_size: Side | Literal["auto"] = param(
        "height and width that the network sees, to which the images are resized in training and evaluation; "
        "auto: what the weights to start from were trained on, otherwise data.image_size"
    )
    kwargs: FreeForm = param("further arguments of timm.create_model, e.g. drop_rate: 0.1")


class AugmentParams(Section):
    """Augmentation: random changes to each training image, drawn anew for each image and epoch."""

    rotate: float = param("largest turn to either side, in degrees", ge=0, le=180)
    scale: float = param("largest change of size, as a share: 0.1 is 0.9x to 1.1x", ge=0, lt=1)
    shift: float = param("largest shift in x and in y, as a share of the image", ge=0, lt=1)
    flip: bool | Literal["auto"] = param(
        "mirror each image in every other epoch; auto: photos, not gray images, digits, letters, signs"
    )
    crop: int = param("pixels of black put around the image, from which a window is cut", ge=0, le=1024)
    resized_crop: float = param("least share of the area that is cut out and brought to full size; 0: off", ge=0, lt=1)
    brightness: float = param("largest change of brightness: 0.4 is 0.6x to 1.4x", ge=0, le=1)
    contrast: float = param("largest change of contrast: 0.4 is 0.6x to 1.4x", ge=0, le=1)
    saturation: float = param("largest change of saturation: 0.4 is 0.6x to 1.4x; RGB only", ge=0, le=1)
    hue: float = param("largest turn of the hue, as a share of the circle; RGB only", ge=0, le=0.5)
    policy: Policy = param("randaugment: two changes of medium strength; trivialaugment: one of any strength; none")
    cutout: float = param("side of a black square, as a share of the image's side; 0: off", ge=0, lt=1)
    mixup: float = param("blend pairs of images and labels by shares from Beta(mixup, mixup); 0: off", ge=0, le=100)
    cutmix: float = param("paste a part of another image, with its share of the label; as mixup; 0: off", ge=0, le=100)
    own: list[Own] = param("of your own, after the others: project/FILE.py:NAME, see docs/parts.md")

    @model_validator(mode="after")
    def _one_kind_of_crop(self) -> Self:
        if self.crop and self.resized_crop:
            raise ValueError("crop and resized_crop both cut a window out of the image; set one of them to 0")
        return self


class CheckpointParams(Section):
    """How often a training saves its state, to resume from it after a crash; changes no result."""

    epochs: int = param("after so many epochs, or", ge=1, le=10_000)
    minutes: float = param("after so many minutes, also within an epoch", ge=0, le=100_000)


class TrainParams(Section):
    """How the network is trained."""

    epochs: int = param("passes over the training split", ge=1, le=10_000)
    batch_size: int = param("images per optimizer step, of each process", ge=1, le=65_536)
    lr: float = param("learning rate at its peak", gt=0, le=100)
    optimizer: str = param("any of timm.optim.list_optimizers(), e.g. adamw, sgd, lion", min_length=1)
    optimizer_kwargs: FreeForm = param("further arguments of timm's create_optimizer_v2, e.g. momentum")
    weight_decay: float = param("as the optimizer means it; never of norms and biases", ge=0, le=10)
    layer_decay: float | None = param("factor on the rate from a layer to the one before; null: none", gt=0, le=1)
    backbone_lr: float = param("factor on the learning rate of all but the classifier, for fine-tuning", gt=0, le=1)
    freeze_epochs: int = param("epochs at the start that train the classifier alone", ge=0)
    backbone: Literal["tune", "fixed_norms", "frozen"] = param("see params.yaml; frozen: trains the classifier alone")
    head: Literal["linear", "mlp", "prototypes", "knn"] = param("what is fitted to a frozen backbone; see params.yaml")
    feature_views: int = param("of each image, the first unchanged, all others by train.augment", ge=1, le=100)
    schedule: Schedule = param(
        "onecycle: warm up, then fall to zero; plateau: a tenth whenever val/loss stalls; none: constant; the "
        "others are timm's"
    )
    schedule_kwargs: FreeForm = param("arguments of timm's create_scheduler_v2, OneCycleLR or ReduceLROnPlateau")
    warmup_epochs: int = param("learning rate rises first; onecycle: 0 is 30% of all", ge=0, le=10_000)
    clip_grad: float | None = param("largest norm of the gradient; null: any", gt=0)
    accumulate: int = param("batches whose gradients make one optimizer step", ge=1, le=65_536)
    ema: float | None = param("decay of averaged weights, published if they validate better; null: none", gt=0, lt=1)
    select: Literal["val_accuracy", "val_loss"] = param("what the published epoch is best in")
    early_stopping: int | None = param("stops after so many epochs without a better one; null: never", ge=1)
    balance: Literal["none", "weights", "sampling"] = param(
        "for classes of unequal size; weights: rare ones count more in the loss; sampling: are drawn more"
    )
    loss: Literal["cross_entropy", "focal", "bce"] | Own = param("of training; or your own, project/FILE.py:NAME")
    label_smoothing: float = param("share of the target spread over all classes", ge=0, lt=1)
    augment: AugmentParams
    start_size: Side | None = param(
        "height and width of the images in the first epoch, growing to full size over two thirds of the epochs; "
        "null: full size throughout"
    )
    seed: int = param("initial weights, order of the images, augmentation and dropout", ge=0, lt=2**32)
    precision: Precision = param(
        "of training: fp32; bf16: mixed, the weights stay fp32; auto: bf16 on a GPU that has it, else fp32"
    )
    compile: bool = param("torch.compile the network; pays on a GPU with long trainings")
    threads: Processors = param(
        "CPU threads, which change the last bits of the result; auto: measured once for model and machine, then kept"
    )
    reproducible: Reproducibility = param(
        "portable: on the CPU, the same bits on any x86-64 with AVX2; machine: on the GPU if there is one, the "
        "same bits on machines of one kind; auto: machine on a GPU, else portable; off: no promise, fastest"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = param("auto: as reproducible says; gpu: an error where there is none")
    devices: Processors = param("processes on each machine, one for each GPU; auto: all GPUs, one process on the CPU")
    num_nodes: int = param("machines", ge=1, le=4096)
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = param(
        "Lightning's, for several processes; auto: ddp; the last: where some weights stay unused"
    )
    checkpoint_every: CheckpointParams
    loggers: list[LoggerName] = param(
        "of tensorboard, wandb, mlflow, dvclive: also log there (extras to install); changes no result"
    )
    callbacks: list[Own] = param("Lightning's, of your own, made without arguments: project/FILE.py:NAME")

    @model_validator(mode="after")
    def _values_that_fit(self) -> Self:
        if self.accelerator == "gpu" and self.reproducible == "portable":
            way_out = "choose reproducible machine or off, or accelerator auto"
            raise ValueError(f"accelerator = gpu: reproducible = portable promises the bits of CPUs; {way_out}")
        if self.num_nodes > 1 and self.devices == "auto":
            raise ValueError(f"devices = auto: expected a number with num_nodes = {self.num_nodes}")
        if self.threads == "auto" and (self.num_nodes > 1 or self.devices not in (1, "auto")):
            raise ValueError("threads = auto: expected a number with several processes; it counts for each of them")
        if self.warmup_epochs and (self.schedule in ("plateau", "none") or self.warmup_epochs >= self.epochs):
            allowed = f"less than epochs = {self.epochs}, and 0 with the schedules plateau and none (constant warms up)"
            raise ValueError(f"warmup_epochs = {self.warmup_epochs}: expected {allowed}")
        if self.schedule == "none" and self.schedule_kwargs:
            raise ValueError("schedule_kwargs: schedule = none takes none; set it to {}")
        check_backbone(self)
        return self


class BudgetParams(Section):
    """The most that the published model may need; `evaluate` refuses another one."""

    parameters: int | None = param("weights of the network; null: any number", ge=1)
    flops: int | None = param("floating-point operations for one image; null: any number", ge=1)
    size_mb: float | None = param("megabytes (10^6) of model.safetensors; null: any", gt=0)


class EvaluateParams(Section):
    """How the published model is measured; changes no training result."""

    batch_size: int = param("images per forward pass", ge=1, le=65_536)
    calibration_bins: int = param("confidence bins of the expected calibration error", ge=1, le=1000)
    metrics: list[str] = param("further metrics, torchmetrics' multiclass ones, e.g. auroc; or project/FILE.py:NAME")
    calibration: Literal["none", "temperature"] = param("of probabilities, on the validation split, if that helps")
    coverage: float | None = param("share of images whose prediction set holds their class; null: no sets", gt=0, lt=1)
    coverage_by: Literal["all", "class"] = param("coverage holds over all images, or of each class")
    risk: float | None = param("most that may be wrong among the answers; others are unknown; null: any", gt=0, lt=1)
    title: str | None = param("the project's name, on the model's card")
    budget: BudgetParams
    gates: dict[str, Annotated[float, Field(gt=0, lt=1)]] = param("what the lower end of an interval has to reach")
    gate_confidence: float = param("confidence level of these intervals (Wilson's)", ge=0.5, le=0.9999)

    @property
    def fits(self) -> bool:
        """Whether something is fitted on the validation split."""
        return self.calibration != "none" or self.coverage is not None or self.risk is not None


class ExportParams(Section):
    """The published model as one ONNX file, for programs without torch."""

    enabled: bool = param("export it, and compare its probabilities with torch's on all validation and test images")


class ReviewParams(Section):
    """What `make check` and the review of a pull request demand; changes no result."""

    fail_on: Literal["regression"] | None = param("regression: a worse model than that of the base does not pass")
    require: list[Bar] = param("bars for metrics of test.json, or of train. and data., e.g. accuracy >= 0.95")


class Params(Section):
    """All of params.yaml."""

    data: DataParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    export: ExportParams = ExportParams(enabled=True)
    review: ReviewParams = ReviewParams(fail_on=None, require=[])


def json_schema() -> str:
    """Return the JSON schema of params.yaml, for completion and checks in an editor."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Params.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("params.schema.json").write_text(json_schema(), encoding="utf-8")
