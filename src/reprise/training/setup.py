"""What a training is made of: the network, its batches and its loss, put together from params and prepared data.

One place for `train` and the checks before it, so that they look at what will be trained.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from reprise.data.formats.packed import Metadata, Unaltered, load_metadata, load_split
from reprise.loader.batches import EvalBatches, TrainBatches, class_weights, growing_sizes
from reprise.model.artifact import Architecture
from reprise.model.backbone import TIMMBackbone, check_takes, create_network, find_start
from reprise.model.pretrained import Start
from reprise.params.schema import ModelParams, TrainParams
from reprise.runtime.errors import UserError
from reprise.training.debug import Debug
from reprise.training.optim import create_optimizer, create_schedule
from reprise.training.steps import ChunkedClassifier


@dataclass(frozen=True)
class Process:
    """A process of a training: its device, and which of how many it is."""

    device: Literal["cuda", "cpu"]
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Assembly:
    """A network with the batches that it is to see; the metadata are those of the data, normalised as `start` wants."""

    metadata: Metadata
    start: Start | None
    network: TIMMBackbone
    architecture: Architecture
    batches: TrainBatches
    val_batches: EvalBatches
    data: Unaltered

    def lit(self, params: TrainParams) -> ChunkedClassifier:
        """Return the Lightning module around the network, with the class weights of the data if they are asked for."""
        classes = len(self.metadata.classes)
        lit = lit_classifier(self.network, classes, params, self.batches.steps)
        if params.balance == "weights":
            lit.criterion.weight = class_weights(self.batches.labels, classes)
        return lit


def assemble(
    processed: Path,
    model: ModelParams,
    params: TrainParams,
    process: Process,
    weights: Path | None = None,
    debug: Debug = Debug(),
) -> Assembly:
    """Put together what the params name, for one process; weights: the place of `model.weights`.

    Raises UserError for a model, batch size or image size that do not fit the data.
    """
    metadata = load_metadata(processed)
    start = find_start(model, weights)
    if start is not None:
        metadata = metadata.model_copy(update=start.normalization(metadata.channels))
    unaltered = Unaltered(processed, ("train", "val"))
    splits = load_split(processed, "train"), load_split(processed, "val")
    train_split, val_split = debug.splits(*splits, params.batch_size * process.world, params.seed)
    network, architecture = create_network(model, metadata, params.seed, start)
    size = architecture.image_size
    if params.start_size is not None:
        if params.start_size > size:
            raise UserError(f"train.start_size = {params.start_size}: images grow to {size}; choose at most that")
        check_takes(network, architecture, params.start_size, "train.start_size")
    batches = TrainBatches(
        train_split,
        metadata,
        params,
        process.device,
        process.rank,
        process.world,
        growing_sizes(params.epochs, params.start_size or size, size),
    )
    val_batches = EvalBatches(val_split, metadata, params.batch_size, process.device, process.rank, process.world, size)
    norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    if params.batch_size == 1 and any(isinstance(part, norms) for part in network.modules()):
        raise UserError(f"train.batch_size = 1: {model.name} normalises over the batch; choose at least 2")
    return Assembly(metadata, start, network, architecture, batches, val_batches, unaltered)


def lit_classifier(net: nn.Module, num_classes: int, params: TrainParams, steps: int) -> ChunkedClassifier:
    """Return the Lightning module with the optimizer and schedule that the params name; steps: batches in an epoch."""
    model = net.model if isinstance(net, TIMMBackbone) else net
    updates = -(-steps // params.accumulate)
    return ChunkedClassifier(
        net,
        num_classes,
        optimizer=partial(_optimizer_of, model, params),
        scheduler=partial(create_schedule, params=params, steps=updates) if params.schedule != "none" else None,
        interval="epoch" if params.schedule == "plateau" else "step",
        label_smoothing=params.label_smoothing,
        precision="bf16" if params.precision == "bf16" else "fp32",
        steps=steps,
        accumulate=params.accumulate,
        clip_grad=params.clip_grad,
    )


def _optimizer_of(model: nn.Module, params: TrainParams, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Return the optimizer of the timm model, whose names and layers decide the groups; parameters: the same ones."""
    return create_optimizer(model, params)
