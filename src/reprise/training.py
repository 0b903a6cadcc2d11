"""Train a network on packed arrays and keep the epoch that validates best.

Everything random is a function of (seed, epoch, step): order and augmentation in `batches`, dropout by a reseed before
each step here. Two runs with equal arguments on equal terms (threads, kind of machine) end in equal bits, also where
one of them was killed and taken up again.
"""

import copy
import csv
import io
import json
import logging
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import reprise.torchvision_repair  # noqa: F401

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reprise.batches import EvalBatches, TrainBatches, class_weights, stateless_seed
from reprise.card import Architecture, ModelCard, Origin, Preprocessing, Training
from reprise.checkpoint import Checkpoints, Resumption
from reprise.classifier import LitClassifier
from reprise.convolutions import repaired
from reprise.data.packed import Metadata, load_metadata, load_split
from reprise.debug import Debug
from reprise.ema import WeightAverage
from reprise.errors import UserError
from reprise.finetuning import FrozenBackbone
from reprise.interruption import StopSignals
from reprise.lean_epoch import LeanEpoch
from reprise.loggers import LearningRate
from reprise.model import TIMMBackbone, create_network, find_start, save_model
from reprise.optimization import create_optimizer, create_schedule
from reprise.params import ModelParams, TrainParams
from reprise.pretrained import Start, not_loaded
from reprise.process import cpus, settled, settled_device, settled_precision
from reprise.progress import Progress
from reprise.provenance import Provenance, Reproducible, cpu_name, trace
from reprise.summary import summary
from reprise.threads import settle_threads


@dataclass(frozen=True)
class EpochRow:
    """One line of the history: epoch counts from 1, lr is the one at its end, accuracies are top-1 in 0..1."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_loss_ema: float | None = None
    val_accuracy_ema: float | None = None

    def averaged(self) -> "EpochRow":
        """Return the row of the averaged weights alone."""
        assert self.val_loss_ema is not None
        assert self.val_accuracy_ema is not None
        return EpochRow(
            self.epoch, self.lr, self.train_loss, self.train_accuracy, self.val_loss_ema, self.val_accuracy_ema
        )

    def rounded(self) -> dict[str, float]:
        """Return the row with six significant digits, as it is written to files."""
        facts = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value if name == "epoch" else float(f"{value:.6g}") for name, value in facts.items()}


@dataclass(frozen=True)
class TrainResult:
    """The network with its best weights, its card, what every epoch reached, and the checkpoints that led there."""

    network: TIMMBackbone
    card: ModelCard
    history: list[EpochRow]
    checkpoints: Checkpoints | None

    @property
    def best(self) -> EpochRow:
        """The epoch whose weights the network carries, with what they reached."""
        row = self.history[self.card.training.epoch - 1]
        return row.averaged() if self.card.training.averaged else replace(row, val_loss_ema=None, val_accuracy_ema=None)

    def summary(self) -> str:
        """Return the outcome in one line."""
        name = self.card.architecture.model_name
        best = self.best
        return (
            f"{name}, best epoch {best.epoch} of {len(self.history)}: "
            f"validation accuracy {best.val_accuracy:.4f}, loss {best.val_loss:.4f}"
            + (" (averaged weights)" if self.card.training.averaged else "")
        )

    def discard_checkpoints(self) -> None:
        """Remove the scratch: the result is where it belongs."""
        if self.checkpoints:
            self.checkpoints.discard()

    def save(self, weights: Path, facts: Path, metrics: Path, history: Path) -> None:
        """Write weights (safetensors), facts (JSON), the best epoch's metrics (JSON) and the history (CSV)."""
        save_model(self.network, self.card, weights, facts)
        reached = {name: value for name, value in self.best.rounded().items() if name != "lr"}
        metrics.write_text(json.dumps(reached, indent=2) + "\n", encoding="utf-8")
        with history.open("w", encoding="utf-8", newline="") as file:
            rows = [row.rounded() for row in self.history]
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def train(
    processed: Path,
    model: ModelParams,
    params: TrainParams,
    scratch: Path | None = None,
    weights: Path | None = None,
    callbacks: Sequence[Callback] = (),
    debug: Debug = Debug(),
    loggers: Sequence[Logger] = (),
    rank: int = 0,
) -> TrainResult:
    """Train on prepared data and return the best epoch's network, by what `params.select` names.

    weights: the place of `model.weights`. With a scratch folder, the training saves checkpoints below it, takes up an
    earlier one of the same params, data, code and terms, and leaves it to the caller to discard them once the result
    is safe. Prints its progress to stderr; further callbacks only watch. rank: of this process among several, of which
    0 alone prints, logs and saves; Lightning starts the others as copies of the script that calls this, unless torchrun
    or SLURM have.
    Raises UserError for a model, batch size or image size that do not fit the data or the memory, and as soon as the
    loss is not finite; Stopped, once a checkpoint is written, after SIGTERM, SIGHUP or Ctrl-C.
    """
    if rank:
        with redirect_stderr(io.StringIO()):
            return _train(processed, model, params, None, weights, callbacks, debug, (), rank)
    return _train(processed, model, params, scratch, weights, callbacks, debug, loggers, rank)


def _train(
    processed: Path,
    model: ModelParams,
    params: TrainParams,
    scratch: Path | None,
    weights: Path | None,
    callbacks: Sequence[Callback],
    debug: Debug,
    loggers: Sequence[Logger],
    rank: int,
) -> TrainResult:
    reproducible = settled(params.reproducible)
    where = settled_device(params)
    devices = params.devices if params.devices != "auto" else torch.cuda.device_count() if where == "cuda" else 1
    world = devices * params.num_nodes
    wanted = "fp32" if params.precision == "auto" and where == "cpu" else params.precision
    precision = settled_precision(wanted, reproducible)
    params = params.model_copy(update={"precision": precision, "devices": devices})
    if where == "cuda" and world > 1:
        if devices > torch.cuda.device_count():
            raise UserError(
                f"train.devices = {devices}: there are {torch.cuda.device_count()} GPUs; choose at most that"
            )
        torch.cuda.set_device(rank % devices)
    if params.compile and reproducible == "portable":
        raise UserError(
            "train.compile = true makes kernels for this one CPU, which train.reproducible = portable rules out; "
            "choose compile false, or reproducible machine or off"
        )
    metadata = load_metadata(processed)
    start = find_start(model, weights)
    if start is not None:
        metadata = metadata.model_copy(update=start.normalization(metadata.channels))
    splits = load_split(processed, "train"), load_split(processed, "val")
    train_split, val_split = debug.splits(*splits, params.batch_size, params.seed)
    balanced = params.balance == "sampling"
    batches = TrainBatches(
        train_split, metadata, params.batch_size, params.augment, params.seed, where, balanced, rank, world
    )
    val_batches = EvalBatches(val_split, metadata, params.batch_size, where, rank, world)
    network, architecture = create_network(model, metadata, params.seed, start)
    origin = _origin(start, network, metadata) if start else None
    if params.batch_size == 1 and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        raise UserError(f"train.batch_size = 1: {model.name} normalises over the batch; choose at least 2")
    if params.threads == "auto":
        record = scratch / "threads.json" if scratch else None
        params = params.model_copy(
            update={"threads": _threads(network, batches, metadata, model, params, record, where)}
        )
    lit = lit_classifier(network, len(metadata.classes), params, steps=batches.steps)
    if params.balance == "weights":
        lit.criterion.weight = class_weights(batches.labels, len(metadata.classes))
    print(summary(network, architecture, metadata, params, batches.steps, where), file=sys.stderr, flush=True)
    average = WeightAverage(network, params.ema) if params.ema is not None else None
    best = BestEpoch(Progress(params.batch_size * world, batches.steps), params.select, params.early_stopping, average)
    provenance = _provenance(reproducible, metadata, model, params, origin, debug)
    checkpoints = Checkpoints(scratch, provenance.key()) if scratch else None
    for logger in loggers:
        logger.log_hyperparams({"data": metadata.data, "model": model.model_dump(), "train": params.model_dump()})
    try:
        _fit(
            lit, batches, val_batches, params, reproducible, best, checkpoints, callbacks, debug, loggers, where, world
        )
    except BaseException:
        if checkpoints:
            checkpoints.leave()
        raise
    network.load_state_dict(best.weights)
    card = _card(architecture, metadata, model, params, best, provenance, origin)
    return TrainResult(network, card, best.history, checkpoints)


def _fit(
    lit: LitClassifier,
    batches: TrainBatches,
    val_batches: EvalBatches,
    params: TrainParams,
    reproducible: Reproducible,
    best: "BestEpoch",
    checkpoints: Checkpoints | None,
    callbacks: Sequence[Callback],
    debug: Debug,
    loggers: Sequence[Logger],
    where: Literal["cuda", "cpu"],
    world: int,
) -> None:
    """Run Lightning's Trainer over the epochs that the checkpoints have not seen."""
    resumed = checkpoints.latest() if checkpoints else None
    if resumed:
        position, state = resumed
        best.load_state_dict(state["extra"])
        print(f"continuing in epoch {position.epoch + 1}, step {position.step + 1}", file=sys.stderr)
        if world == 1 and (position.epoch == params.epochs or best.is_over()):
            return
    with StopSignals(deferred=True) as signals:
        losses = FiniteLoss(params.lr)
        resumption = Resumption(checkpoints, params.checkpoint_every, batches, best, signals, resumed, losses.check)
        _silence_lightning()
        trainer = Trainer(
            max_epochs=params.epochs,
            accelerator=where,
            devices=params.devices,
            num_nodes=params.num_nodes,
            strategy=_strategy(params) if world > 1 else "auto",
            use_distributed_sampler=False,
            logger=list(loggers),
            callbacks=[
                StatelessDropout(params.seed),
                *([SharedBuffers(best.average)] if world > 1 else []),
                losses,
                LearningRate(),
                *(
                    [FrozenBackbone(lit.net.get_submodule("model"), params.freeze_epochs)]
                    if params.freeze_epochs
                    else []
                ),
                *([best.average] if best.average else []),
                best,
                best.progress,
                resumption,
                *callbacks,
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            gradient_clip_val=params.clip_grad,
            accumulate_grad_batches=params.accumulate,
            detect_anomaly=debug.detect_anomaly,
        )
        trainer.fit_loop.epoch_loop = LeanEpoch(trainer)
        resumption.prepare(trainer)
        with _limits_in_one_line(params.batch_size), _fast(lit, params, reproducible), _together(trainer):
            trainer.fit(lit, batches, val_batches)


def _strategy(params: TrainParams) -> DDPStrategy:
    """Return Lightning's for several processes; one that waits for another longer than this ends with an error."""
    unused = params.strategy == "ddp_find_unused_parameters_true" or params.freeze_epochs > 0
    return DDPStrategy(find_unused_parameters=unused, timeout=timedelta(minutes=10))


@contextmanager
def _together(trainer: Trainer) -> Iterator[None]:
    """End the processes that this one has started if it fails, and say in one line that another has failed."""
    try:
        yield
    except BaseException as error:
        for process in getattr(trainer.strategy.launcher, "procs", []):
            process.kill()
        if isinstance(error, RuntimeError) and re.search("[Cc]onnection (closed|reset)|Broken pipe", str(error)):
            raise UserError("another process of this training has ended; nothing was published, see above") from None
        raise


@contextmanager
def _limits_in_one_line(batch_size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises no kind of its own
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"out of memory in training; lower train.batch_size (now {batch_size})") from None
        kernel, missing, _ = str(error).partition(" does not have a deterministic implementation")
        if missing:
            raise UserError(
                f"the model needs {kernel}, which gives other bits each time on this device; choose another "
                "model.name, train.reproducible=portable (on the CPU) or off"
            ) from None
        raise


@contextmanager
def _fast(lit: LitClassifier, params: TrainParams, reproducible: Reproducible) -> Iterator[None]:
    """Compile the network, or repair its convolutions, as long as the training lasts."""
    if not params.compile:
        with repaired(lit, pointwise=reproducible != "portable"):
            yield
        return
    lit.net.compile()
    try:
        yield
    finally:
        lit.net._compiled_call_impl = None


def _threads(
    network: nn.Module,
    batches: TrainBatches,
    metadata: Metadata,
    model: ModelParams,
    params: TrainParams,
    record: Path | None,
    where: Literal["cuda", "cpu"],
) -> int:
    """Settle how many threads, on steps of a copy of the network; on a GPU all of them: they feed it."""
    reproducible = settled(params.reproducible)
    if where == "cuda":
        return cpus()
    lit = lit_classifier(copy.deepcopy(network), len(metadata.classes), params, steps=1_000_000)
    optimizer = lit.optimizer(lit.parameters())
    batch = next(iter(batches))

    def step() -> None:
        optimizer.zero_grad()
        lit.learn(batch).backward()
        optimizer.step()

    shape = f"{metadata.image_size}x{metadata.image_size}x{metadata.channels}"
    key = [model.model_dump_json(), params.batch_size, shape, params.precision, reproducible, cpu_name(), cpus()]
    with repaired(lit, pointwise=reproducible != "portable"):
        return settle_threads(step, cpus(), record, ", ".join(map(str, key)))


def lit_classifier(net: nn.Module, num_classes: int, params: TrainParams, steps: int) -> LitClassifier:
    """Return the Lightning module with the optimizer and schedule that the params name; steps: batches in an epoch."""
    model = net.model if isinstance(net, TIMMBackbone) else net
    updates = -(-steps // params.accumulate)
    return LitClassifier(
        net,
        num_classes,
        optimizer=lambda parameters: create_optimizer(model, params),
        scheduler=partial(create_schedule, params=params, steps=updates) if params.schedule != "none" else None,
        interval="epoch" if params.schedule == "plateau" else "step",
        label_smoothing=params.label_smoothing,
        precision="bf16" if params.precision == "bf16" else "fp32",
    )


class StatelessDropout(Callback):
    """Reseeds before every step, so that dropout is a function of (seed, step) and not of what was drawn before."""

    def __init__(self, seed: int) -> None:
        self.key = stateless_seed(seed, "dropout")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch's generators from the global step and the batch within it."""
        accumulate = trainer.accumulate_grad_batches
        step = trainer.global_step * accumulate + batch_idx % accumulate
        step = step * trainer.world_size + trainer.global_rank
        # multiplicative hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4): SHA-256 would be half the cost
        seed = (self.key + 2_654_435_761 * step) % 2**32
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` looks for devices each time: 0.1 ms
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(seed)


class SharedBuffers(Callback):
    """Gives every process the first one's running statistics before a validation: those of the weights to publish."""

    def __init__(self, average: WeightAverage | None) -> None:
        self.average = average

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep what each process counts for itself out of the copying that goes before each step."""
        own = [name for name, _ in pl_module.named_buffers() if not name.startswith("net.")]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, own)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy them, the averaged ones too."""
        for module in (pl_module.net, *([self.average.average.module] if self.average else [])):
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


class FiniteLoss(Callback):
    """Stops at a loss that is not a finite number, before it reaches a checkpoint or the best epoch's weights.

    Reading a loss makes the host wait for the device, so losses are looked at together: every so many steps, at an
    epoch's end and, by `check`, before a checkpoint.
    """

    def __init__(self, lr: float, every: int = 32) -> None:
        self.lr = lr
        self.every = every
        self.losses: list[Tensor] = []
        self.steps: list[int] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Put the loss aside, with the optimizer step that it is part of."""
        self.losses.append(loss.detach())
        self.steps.append(trainer.global_step + 1)
        if len(self.losses) >= self.every:
            self.check(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is left of the epoch."""
        self.check(trainer)

    def check(self, trainer: Trainer) -> None:
        """Raise UserError, naming epoch and step, if a loss since the last check was not finite."""
        losses, steps = torch.stack(self.losses).tolist() if self.losses else [], self.steps
        self.losses, self.steps = [], []
        for step, loss in zip(steps, losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} in epoch {trainer.current_epoch + 1}, step {step}; "
                    "nothing was published, the last good checkpoint is kept. "
                    f"Lower train.lr (now {self.lr:g}), or look for broken images or labels"
                )


class BestEpoch(Checkpoint):
    """Keeps the history and a copy of the best weights so far, averaged or not, and stops a training that stalls.

    Best is the highest validation accuracy, then the lowest loss, or with `select` val_loss the lowest loss, then the
    highest accuracy. Lightning calls a `Checkpoint` after the module has logged the epoch's metrics, any other callback
    before.
    """

    def __init__(
        self,
        progress: Progress,
        select: Literal["val_accuracy", "val_loss"] = "val_accuracy",
        patience: int | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.progress = progress
        self.select = select
        self.patience = patience
        self.average = average
        self.history: list[EpochRow] = []
        self.epoch = 0
        self.averaged = False
        self.weights: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row; copy the weights if they are the best so far; stop if they have not been for too long."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = EpochRow(
            epoch=trainer.current_epoch + 1,
            lr=max(group["lr"] for group in trainer.optimizers[0].param_groups),
            train_loss=metrics["train/loss"],
            train_accuracy=metrics["train/acc"],
            val_loss=metrics["val/loss"],
            val_accuracy=metrics["val/acc"],
            val_loss_ema=metrics.get("val/loss_ema"),
            val_accuracy_ema=metrics.get("val/acc_ema"),
        )
        if not math.isfinite(row.val_loss):
            raise UserError(f"the validation loss became {row.val_loss} in epoch {row.epoch}; lower train.lr")
        best_so_far = self._goodness(self.history[self.epoch - 1], self.averaged) if self.history else None
        averaged = self.average is not None and self._goodness(row, True) > self._goodness(row, False)
        best = best_so_far is None or self._goodness(row, averaged) > best_so_far
        self.history.append(row)
        if best:
            self.epoch, self.averaged = row.epoch, averaged
            weights = self.average.weights if self.average and averaged else pl_module.net.state_dict()  # type: ignore
            self.weights = {name: tensor.clone() for name, tensor in weights.items()}
        trainer.should_stop = self.is_over()
        reached = row.averaged() if averaged else row
        self.progress.epoch_ended(row.epoch, trainer.max_epochs or 0, row.train_loss, reached.val_accuracy, best)

    def is_over(self) -> bool:
        """Say whether the best epoch is as long ago as patience lasts."""
        return self.patience is not None and len(self.history) - self.epoch >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to carry."""
        return {
            "epoch": self.epoch,
            "averaged": self.averaged,
            "weights": self.weights,
            "history": [asdict(row) for row in self.history],
            "average": self.average.state_dict() if self.average else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint carried."""
        self.epoch, self.averaged = state_dict["epoch"], state_dict["averaged"]
        self.weights = state_dict["weights"]
        self.history = [EpochRow(**row) for row in state_dict["history"]]
        if self.average:
            self.average.load_state_dict(state_dict["average"])

    def _goodness(self, row: EpochRow, averaged: bool) -> tuple[float, float]:
        row = row.averaged() if averaged else row
        goodness = row.val_accuracy, -row.val_loss
        return goodness if self.select == "val_accuracy" else goodness[::-1]


def _origin(start: Start, network: TIMMBackbone, metadata: Metadata) -> Origin:
    """Say on stderr, and return, where the weights come from and what they leave as it was."""
    missing = not_loaded(start, network.model)
    if len(missing) > len(network.model.state_dict()) / 2:
        raise UserError(f"{start.origin.source}: not weights of this model: {len(missing)} of its tensors are missing")
    print(f"starting from {start.origin.source}; not loaded: {', '.join(missing[:8]) or 'nothing'}", file=sys.stderr)
    if len(missing) > 8:
        print(f"  and {len(missing) - 8} more, see model.json", file=sys.stderr)
    if start.image_size != metadata.image_size:
        size = f"{start.image_size}x{start.image_size}"
        print(f"  it was trained on {size} images; data.image_size is {metadata.image_size}", file=sys.stderr)
    return start.origin.model_copy(update={"not_loaded": missing})


def _provenance(
    reproducible: Reproducible,
    metadata: Metadata,
    model: ModelParams,
    params: TrainParams,
    origin: Origin | None,
    debug: Debug,
) -> Provenance:
    deciding = {
        "model": model.model_dump(exclude={"weights"}),
        "start": origin.sha256 if origin else None,
        "train": params.model_dump(exclude={"threads", "reproducible", "checkpoint_every", "loggers"}),
        **debug.deciding(),
    }
    data = metadata.model_dump_json().encode()
    assert params.threads != "auto" and params.precision != "auto", "settled by now"
    where = settled_device(params)
    return trace(reproducible, params.threads, where, deciding, data, __name__, params.precision)


def _card(
    architecture: Architecture,
    metadata: Metadata,
    model: ModelParams,
    params: TrainParams,
    best: BestEpoch,
    provenance: Provenance,
    origin: Origin | None,
) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        classes=metadata.classes,
        preprocessing=Preprocessing(
            image_size=metadata.image_size,
            channels=metadata.channels,
            mean=metadata.mean,
            std=metadata.std,
            resize=metadata.resize,
        ),
        training=Training(
            data=metadata.data,
            splits_sha256=metadata.splits_sha256,
            pretrained=model.pretrained,
            start=origin,
            epoch=best.epoch,
            averaged=best.averaged,
            seed=params.seed,
        ),
        provenance=provenance,
    )


def _silence_lightning() -> None:
    """Keep Lightning's greetings, and warnings that a user can do nothing about, off the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*GPU available but not used.*",
        ".*recommended to use .*sync_dist=True.*",  # what is logged is the same in every process already
        ".*smaller than the logging interval.*",  # losses are logged once an epoch
    ):
        warnings.filterwarnings("ignore", message=message)
