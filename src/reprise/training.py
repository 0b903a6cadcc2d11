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
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import reprise.torchvision_repair  # noqa: F401

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from reprise.assembly import Assembly, assemble
from reprise.batches import stateless_seed
from reprise.best_epoch import BestEpoch, EpochRow
from reprise.card import Architecture, ModelCard, Origin, Preprocessing, Training
from reprise.checkpoint import Checkpoints, Resumption
from reprise.classifier import LitClassifier
from reprise.convolutions import repaired
from reprise.data.packed import Metadata
from reprise.debug import Debug
from reprise.dependencies import Record
from reprise.distributed import EndTogether, SharedBuffers, ddp_strategy, one_line_if_others_fail, processes
from reprise.ema import WeightAverage
from reprise.errors import UserError, listed
from reprise.finetuning import FrozenBackbone
from reprise.finite_loss import FiniteLoss
from reprise.interruption import Stopped, StopSignals
from reprise.lean_epoch import LeanEpoch
from reprise.loggers import LearningRate
from reprise.model import TIMMBackbone, save_model
from reprise.params import ModelParams, TrainParams
from reprise.pretrained import Start, classifier_prefixes, not_loaded
from reprise.process import cpus, settled, settled_device, settled_precision
from reprise.progress import Progress
from reprise.provenance import Provenance, Reproducible, cpu_name, trace
from reprise.summary import summary
from reprise.threads import settle_threads


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

    def save(self, weights: Path, facts: Path, metrics: Path, history: Path, *, record: Record | None = None) -> None:
        """Write weights (safetensors), facts (JSON), the best epoch's metrics (JSON) and the history (CSV).

        record: what it was trained with, which becomes a part of the facts.
        """
        save_model(self.network, self.card.model_copy(update={"record": record}), weights, facts)
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
        try:
            with redirect_stderr(io.StringIO()):
                return _train(processed, model, params, None, weights, callbacks, debug, (), rank)
        except Stopped as stopped:
            raise SystemExit(stopped.code) from None  # the first says it
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
    devices = processes(params, where)
    world = devices * params.num_nodes
    wanted = "fp32" if params.precision == "auto" and where == "cpu" else params.precision
    precision = settled_precision(wanted, reproducible)
    params = params.model_copy(update={"precision": precision, "devices": devices})
    if params.compile and reproducible == "portable":
        raise UserError(
            "train.compile = true makes kernels for this one CPU, which train.reproducible = portable rules out; "
            "choose compile false, or reproducible machine or off"
        )
    made = assemble(processed, model, params, where, weights, debug, rank, world)
    network, metadata, batches = made.network, made.metadata, made.batches
    origin = _origin(made.start, network, metadata, made.architecture) if made.start else None
    if params.threads == "auto":
        record = scratch / "threads.json" if scratch else None
        params = params.model_copy(update={"threads": _threads(made, model, params, record, where)})
    print(summary(network, made.architecture, metadata, params, batches.steps, where), file=sys.stderr, flush=True)
    average = WeightAverage(network, params.ema) if params.ema is not None else None
    best = BestEpoch(
        Progress(params.batch_size * world, batches.steps),
        params.select,
        params.early_stopping,
        average,
        params.freeze_epochs,
    )
    begun_with = [origin.sha256, made.start.classes, made.architecture.image_size] if origin and made.start else None
    provenance = _provenance(reproducible, metadata, model, params, begun_with, debug)
    checkpoints = Checkpoints(scratch, provenance.key()) if scratch else None
    for logger in loggers:
        logger.log_hyperparams({"data": metadata.data, "model": model.model_dump(), "train": params.model_dump()})
    try:
        _fit(made, params, reproducible, best, checkpoints, callbacks, debug, loggers, where, world)
    except BaseException:
        if checkpoints:
            checkpoints.leave()
        raise
    network.load_state_dict(best.weights)
    card = _card(made.architecture, metadata, model, params, best, provenance, origin)
    return TrainResult(network, card, best.history, checkpoints)


def _fit(
    made: Assembly,
    params: TrainParams,
    reproducible: Reproducible,
    best: BestEpoch,
    checkpoints: Checkpoints | None,
    callbacks: Sequence[Callback],
    debug: Debug,
    loggers: Sequence[Logger],
    where: Literal["cuda", "cpu"],
    world: int,
) -> None:
    """Run Lightning's Trainer over the epochs that the checkpoints have not seen."""
    lit, batches = made.lit(params), made.batches
    resumed = checkpoints.latest() if checkpoints else None
    if resumed:
        position, state = resumed
        best.load_state_dict(state["extra"])
        print(f"continuing in epoch {position.epoch + 1}, step {position.step + 1}", file=sys.stderr)
        if world == 1 and (position.epoch == params.epochs or best.is_over()):
            return
    with StopSignals(deferred=True) as signals:
        losses = FiniteLoss(params.lr)

        def check(trainer: Trainer) -> None:
            losses.check(trainer)
            made.data.check()

        resumption = Resumption(checkpoints, params.checkpoint_every, batches, best, signals, resumed, check)
        _silence_lightning()
        trainer = Trainer(
            max_epochs=params.epochs,
            accelerator=where,
            devices=params.devices,
            num_nodes=params.num_nodes,
            strategy=ddp_strategy(params) if world > 1 else "auto",
            use_distributed_sampler=False,
            logger=list(loggers),
            callbacks=[
                StatelessDropout(params.seed),
                *([SharedBuffers(best.average), EndTogether()] if world > 1 else []),
                losses,
                LearningRate(),
                *([FrozenBackbone(made.network.model, params.freeze_epochs)] if params.freeze_epochs else []),
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
        trainer.fit_loop.epoch_loop = epoch_loop = LeanEpoch(trainer)
        # Lightning's would end in exit code 0, speak to the other processes from within a signal handler and, under
        # SLURM, save checkpoints of their own
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        resumption.prepare(trainer)
        if world > 1:
            signals.rest()  # until the processes have found each other
        with _limits_in_one_line(params.batch_size), _fast(lit, params, reproducible), one_line_if_others_fail():
            try:
                trainer.fit(lit, batches, made.val_batches)
            finally:
                epoch_loop.graphed = None


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
    made: Assembly,
    model: ModelParams,
    params: TrainParams,
    record: Path | None,
    where: Literal["cuda", "cpu"],
) -> int:
    """Settle how many threads, on steps of a copy of the network; on a GPU all of them: they feed it."""
    reproducible = settled(params.reproducible)
    if where == "cuda":
        return cpus()
    lit = replace(made, network=copy.deepcopy(made.network)).lit(params)
    optimizer = lit.optimizer(lit.parameters())
    made.batches.set_epoch(params.epochs - 1)  # images of full size
    batch = next(iter(made.batches))
    made.batches.set_epoch(0)

    def step() -> None:
        optimizer.zero_grad()
        lit.learn(batch).backward()
        optimizer.step()

    shape = "x".join(map(str, batch[0].shape[1:]))
    key = [model.model_dump_json(), params.batch_size, shape, params.precision, reproducible, cpu_name(), cpus()]
    with repaired(lit, pointwise=reproducible != "portable"):
        return settle_threads(step, cpus(), record, ", ".join(map(str, key)))


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


def _origin(start: Start, network: TIMMBackbone, metadata: Metadata, architecture: Architecture) -> Origin:
    """Say on stderr, and return, where the weights come from and what they leave as it was."""
    size, fitted = architecture.image_size, start.for_classes(metadata.classes, architecture.model_name)
    missing, new = not_loaded(fitted, network.model), fitted.origin.new_classes
    if len(missing) > len(network.model.state_dict()) / 2:
        raise UserError(f"{start.origin.source}: not weights of this model: {len(missing)} of its tensors are missing")
    rest = "the classifier's rows of new classes" if new else "nothing"
    print(f"starting from {start.origin.source}; not loaded: {', '.join(missing[:8]) or rest}", file=sys.stderr)
    if len(missing) > 8:
        print(f"  and {len(missing) - 8} more, see model.json", file=sys.stderr)
    if fitted is not start:
        known = [name for name in metadata.classes if name not in new]
        print(
            f"  classes: {len(known)} of {len(metadata.classes)} are known to {start.origin.source}"
            + (f" ({listed(known)})" if known else f", which has {listed(start.classes or [])}")
            + (f", new: {listed(new)}" if new else ""),
            file=sys.stderr,
        )
    elif start.classes != metadata.classes and not any(
        name.startswith(classifier_prefixes(network.model)) for name in missing
    ):
        print("  its classes are unknown: the classifier's rows are taken for those here, in order", file=sys.stderr)
    given, wanted = metadata.image_size, start.image_size or size
    if size != wanted:
        print(f"  trained on {wanted}x{wanted} images, it will see {size}x{size}", file=sys.stderr)
    elif size != given:
        print(
            f"  trained on {size}x{size} images: those of {given}x{given} are resized (data.image_size: {size} keeps "
            f"more detail, model.image_size: {given} is faster)",
            file=sys.stderr,
        )
    return fitted.origin.model_copy(update={"not_loaded": missing})


def _provenance(
    reproducible: Reproducible,
    metadata: Metadata,
    model: ModelParams,
    params: TrainParams,
    start: object,
    debug: Debug,
) -> Provenance:
    deciding = {
        "model": model.model_dump(exclude={"weights"}),
        "start": start,
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
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*GPU available but not used.*",
        ".*recommended to use .*sync_dist=True.*",  # what is logged is the same in every process already
        ".*smaller than the logging interval.*",  # losses are logged once an epoch
    ):
        warnings.filterwarnings("ignore", message=message)
