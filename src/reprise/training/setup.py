"""What a training is made of: the network, its batches and its loss, put together from params and prepared data.

One place for `train` and the checks before it, so that they look at what will be trained.
"""

from functools import partial
from pathlib import Path

import timm
from lightning import Callback
from torch import nn

from reprise.data.formats.packed import Metadata, Unaltered, load_metadata, load_split
from reprise.loader.batches import EvalBatches, Process, TrainBatches, class_weights, growing_sizes
from reprise.model.backbone import TIMMBackbone, check_takes, create_network
from reprise.model.networks import timm_name
from reprise.model.pretrained import find_pretrained
from reprise.params.schema import ModelParams, Params, TrainParams
from reprise.runtime.errors import UserError
from reprise.runtime.parts import create_part, is_part
from reprise.training.debug import Debug
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
        self.model, self.params, self.process = model, params, process
        self.metadata = load_metadata(processed)
        self.pretrained_weights = find_pretrained(model, weights)
        if self.pretrained_weights is not None:
            normalization = self.pretrained_weights.normalization(self.metadata.channels)
            self.metadata = self.metadata.model_copy(update=normalization)
        self.data = Unaltered(processed, ("train", "val"))
        splits = load_split(processed, "train"), load_split(processed, "val")
        train_split, val_split = debug.splits(*splits, params.batch_size * process.world, params.seed)
        self.network, self.architecture = create_network(model, self.metadata, params.seed, self.pretrained_weights)
        size, start_size = self.architecture.image_size, params.start_size or self.architecture.image_size
        if start_size > size:
            raise UserError(f"train.start_size = {start_size}: images grow to {size}; choose at most that")
        if start_size < size:
            check_takes(self.network, self.architecture, start_size, "train.start_size")
        sizes = growing_sizes(params.epochs, start_size, size)
        self.batches = TrainBatches(train_split, self.metadata, params, process, sizes)
        self.val_batches = EvalBatches(val_split, self.metadata, params.batch_size, process, size)
        norms = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
        if self.batches.batch_size == 1 and any(isinstance(part, norms) for part in self.network.modules()):
            raise UserError(f"train.batch_size = 1: {model.name} normalizes over the batch; choose at least 2")

    def lit(self, network: TIMMBackbone | None = None) -> ChunkedClassifier:
        """Return the Lightning module around the network, or another, with the data's class weights if asked for."""
        classes = len(self.metadata.classes)
        lit = lit_classifier(network or self.network, classes, self.params, self.batches.steps)
        if self.params.balance == "weights":
            lit.criterion.weight = class_weights(self.batches.labels, classes)
        lit.own_loss = find_loss(self.params.loss)
        return lit


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


def check_settings(params: Params, from_file: bool) -> None:
    """Raise UserError for names and arguments of network, optimizer, schedule and own parts that no data make right.

    from_file: whether the training begins with weights of a file, which decide the size of the images.
    """
    model, size = params.model, params.data.image_size
    published = timm.get_pretrained_cfg(timm_name(model.name))
    find_loss(params.train.loss)
    own_callbacks(params.train)
    for name in (*params.train.augment.own, *filter(is_part, params.evaluate.metrics)):
        create_part(name)
    if model.pretrained:
        if not (published and (published.hf_hub_id or published.url)):
            raise UserError(f"model.pretrained = true: timm has no weights of {model.name}; set it to false")
        size = published.input_size[-1]
    network: nn.Module = nn.Linear(2, 2)
    train = params.train.model_copy(update={"layer_decay": None})
    if not from_file or model.image_size != "auto":
        channels = 3 if params.data.channels == "auto" else params.data.channels
        data = Metadata.model_construct(classes=["a", "b"], image_size=size, channels=channels)
        network, train = create_network(model.model_copy(update={"pretrained": False}), data, 0)[0].model, params.train
    optimizer = create_optimizer(network, train)
    if params.train.schedule != "none":
        create_schedule(optimizer, params.train, 100)
