"""What a training is made of: the network, its batches and its loss, put together from params and prepared data.

One place for `train` and the checks before it, so that they look at what will be trained.
"""

from functools import partial
from pathlib import Path

from lightning import Callback
from torch import nn

from reprise.augment.pipeline import resolve_augmentation
from reprise.data.formats.packed import Metadata, Unaltered, load_metadata, load_split
from reprise.features.store import check_backbone
from reprise.loader.batches import EvalBatches, Process, TrainBatches, class_weights, growing_sizes
from reprise.model.artifact import Architecture
from reprise.model.backbone import TIMMBackbone, check_takes, create_network
from reprise.model.pretrained import find_pretrained
from reprise.params.resolve import resolve_device, resolve_precision
from reprise.params.schema import ModelParams, Params, TrainParams
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.errors import UserError
from reprise.runtime.parts import create_part, is_part
from reprise.training.debug import Debug
from reprise.training.distributed import processes
from reprise.training.losses import find_loss
from reprise.training.optim import create_optimizer, create_schedule
from reprise.training.steps import ChunkedClassifier


class Assembly:
    """A network with the batches that it is to see, put together from params and prepared data for one process.

    weights: the path of `model.weights`. metadata: of the data, with the mean and standard deviation that
    `pretrained_weights` were trained with. Raises UserError for a model, batch size or image size that do not fit the
    data.
    """

    def __init__(
        self,
        processed: Path,
        model: ModelParams,
        params: TrainParams,
        process: Process,
        weights: Path | None = None,
        debug: Debug = Debug(),
    ) -> None:
        self.model, self.params, self.process, self.debug = model, params, process, debug
        self.metadata = load_metadata(processed)
        self.pretrained_weights = find_pretrained(model, weights)
        if self.pretrained_weights is not None:
            normalization = self.pretrained_weights.normalization(self.metadata.channels)
            self.metadata = self.metadata.model_copy(update=normalization)
        self.data = Unaltered(processed, ("train", "val"))
        splits = load_split(processed, "train"), load_split(processed, "val")
        self.train_split, val_split = debug.splits(*splits, params.batch_size * process.world, params.seed)
        self.network, self.architecture = create_network(model, self.metadata, params.seed, self.pretrained_weights)
        size = self.architecture.image_size
        epochs = max(params.epochs, params.feature_views)
        sizes = growing_sizes(epochs, check_start_size(self.network, self.architecture, params.start_size), size)
        self.batches = TrainBatches(self.train_split, self.metadata, params, process, sizes)
        self.val_batches = EvalBatches(val_split, self.metadata, params.batch_size, process, size)
        check_backbone(params.backbone, self.network, self.architecture, self.pretrained_weights)
        check_batch_size(self.network, self.architecture, self.batches.batch_size)

    def lit(self, network: TIMMBackbone | None = None) -> ChunkedClassifier:
        """Return the Lightning module around the network, or another, with the data's class weights if asked for."""
        classes = len(self.metadata.classes)
        lit = lit_classifier(network or self.network, classes, self.params, self.batches.steps)
        if self.params.balance == "weights":
            lit.criterion.weight = class_weights(self.batches.labels, classes)
        lit.own_loss = find_loss(self.params.loss)
        return lit


def resolve(params: TrainParams, rank: int) -> tuple[TrainParams, Process]:
    """Return the params with precision and devices as they are here, and this process's place among all.

    Raises UserError for a device, precision, compilation or number of processes that is not possible here.
    """
    reproducible = resolve_reproducible(params.reproducible)
    device = resolve_device(params)
    devices = processes(params, device)
    plain = params.precision == "auto" and (device == "cpu" or params.backbone == "frozen")
    precision = resolve_precision("fp32" if plain else params.precision, reproducible)
    if params.compile and reproducible == "portable":
        why = "makes kernels for this one CPU, which train.reproducible = portable rules out"
        raise UserError(f"train.compile = true {why}; choose compile false, or reproducible machine or off")
    params = params.model_copy(update={"precision": precision, "devices": devices})
    return params, Process(device, rank, devices * params.num_nodes)


def check_start_size(network: TIMMBackbone, architecture: Architecture, start_size: int | None) -> int:
    """Return the image size of the first epoch, in pixels. Raises UserError for a start size that does not fit."""
    size = architecture.image_size
    first = start_size or size
    if first > size:
        raise UserError(f"train.start_size = {first}: images grow to {size}; choose at most that")
    if first < size:
        check_takes(network, architecture, first, "train.start_size")
    return first


def check_batch_size(network: TIMMBackbone, architecture: Architecture, batch_size: int) -> None:
    """Raise UserError for batches of one image where the network normalizes over the batch."""
    norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    if batch_size == 1 and any(isinstance(part, norms) for part in network.modules()):
        raise UserError(f"train.batch_size = 1: {architecture.model_name} normalizes over the batch; choose at least 2")


def lit_classifier(net: nn.Module, num_classes: int, params: TrainParams, steps: int) -> ChunkedClassifier:
    """Return the Lightning module with the optimizer and schedule that the params name; steps: batches in an epoch."""
    updates = -(-steps // params.accumulate)
    return ChunkedClassifier(
        net,
        num_classes,
        optimizer=partial(create_optimizer, net.model if isinstance(net, TIMMBackbone) else net, params),
        scheduler=partial(create_schedule, params=params, steps=updates) if params.schedule != "none" else None,
        interval="epoch" if params.schedule == "plateau" else "step",
        label_smoothing=params.label_smoothing,
        precision="bf16" if params.precision == "bf16" else "fp32",
        compile=params.compile,
        steps=steps,
        accumulate=params.accumulate,
        clip_grad=params.clip_grad,
    )


def own_callbacks(params: TrainParams) -> list[Callback]:
    """Return the callbacks of the user's own. Raises UserError for what is none."""
    made = [create_part(name) for name in params.callbacks]
    for name, callback in zip(params.callbacks, made, strict=True):
        if not isinstance(callback, Callback) or type(callback).state_dict is not Callback.state_dict:
            raise UserError(f"train.callbacks: {name} is no lightning.Callback, or has a state_dict, which is not kept")
    return made


def check_settings(params: Params, weights: Path, data: Metadata | None = None) -> TIMMBackbone | None:
    """Raise UserError for settings of a training that can be refused before its data are there; return the network.

    weights: the path of `model.weights`. data: the metadata where they are known; otherwise the images are taken for
    RGB ones where `data.channels` is `auto`, and nothing is said that depends on the number of images and classes; a
    network of the user's own that cannot be built for them is None.
    """
    model, train = params.model, params.train
    resolve(train, 0)
    find_loss(train.loss)
    own_callbacks(train)
    for name in train.augment.own:
        create_part(name)
    if data is None:
        size, channels = params.data.image_size, 3 if params.data.channels == "auto" else params.data.channels
        data = Metadata.model_construct(data=params.data.name, classes=["a", "b"], image_size=size, channels=channels)
    resolve_augmentation(train.augment, data)
    try:
        pretrained = find_pretrained(model, weights)
        network, architecture = create_network(model, data, train.seed, pretrained)
    except Exception as error:  # of a network of the user's own, which may want the true channels and classes
        if is_part(model.name) and not isinstance(error, UserError):
            return None
        raise
    check_backbone(train.backbone, network, architecture, pretrained)
    check_start_size(network, architecture, train.start_size)
    check_batch_size(network, architecture, train.batch_size)
    optimizer = create_optimizer(network.model, train)
    if train.schedule != "none":
        create_schedule(optimizer, train, 100)
    return network
