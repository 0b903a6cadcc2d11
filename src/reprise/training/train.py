"""Train a network on packed arrays and keep the epoch that validates best.

Everything random is a function of (seed, epoch, step): order and augmentation in `batches`, dropout by a reseed before
each step. Two runs with equal arguments on equal terms (threads, kind of machine) end in equal bits, also where one of
them was killed and resumed.
"""

import copy
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger

from reprise.model.convolutions import repaired
from reprise.params.schema import ModelParams, TrainParams
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.environment import cpus
from reprise.runtime.errors import UserError
from reprise.runtime.provenance import Provenance, cpu_name
from reprise.runtime.signals import Stopped, StopSignals
from reprise.training.callbacks.best_epoch import BestEpoch
from reprise.training.callbacks.ema import WeightAverage
from reprise.training.callbacks.finetuning import FixedNorms, FrozenBackbone
from reprise.training.callbacks.finite_loss import FiniteLoss
from reprise.training.callbacks.progress import Progress
from reprise.training.checkpoint import Checkpoints, Resumption
from reprise.training.debug import Debug
from reprise.training.distributed import Peers, ddp_strategy, failure, slurm_environment
from reprise.training.frozen import fit_head
from reprise.training.loggers import LearningRate
from reprise.training.result import FinishedRun, TrainResult, card_of, provenance_of, report_pretrained
from reprise.training.setup import Assembly, own_callbacks, resolve
from reprise.training.steps import PlateauSchedule, StatelessDropout, chunks
from reprise.training.summary import summary
from reprise.training.threads import resolve_threads


@dataclass(frozen=True)
class Options:
    """What is no parameter: callbacks and loggers, which watch, `debug`, and the rank of this process among several.

    origin: the folder of a finished run that is to go on for more epochs, with a scratch folder; course: a file for the
    history so far, written after each epoch.

    Process 0 alone prints, logs and saves; Lightning starts the others as copies of the script that calls `train`,
    unless torchrun or SLURM have.
    """

    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()
    debug: Debug = field(default_factory=Debug)
    rank: int = 0
    origin: Path | None = None
    course: Path | None = None


def train(
    processed: Path,
    model: ModelParams,
    params: TrainParams,
    scratch: Path | None = None,
    weights: Path | None = None,
    options: Options = Options(),
) -> TrainResult:
    """Train on prepared data and return the best epoch's network, by what `params.select` names.

    weights: the path of `model.weights`. With a scratch folder, the training saves checkpoints below it, resumes from
    an earlier one of the same params, data, code and terms, and leaves it to the caller to discard them once the result
    is safe. Of a frozen backbone it keeps the features, in `features` beside it. Prints its progress to stderr.
    Raises UserError for a model, batch size or image size that do not fit the data or the memory, and as soon as the
    loss is not finite; Stopped, once a checkpoint is written, after SIGTERM, SIGHUP or Ctrl-C.
    """
    assert scratch or not options.origin
    if options.rank:
        scratch, options = None, replace(options, loggers=())
    with _silent() if options.rank else nullcontext():
        params, process = resolve(params, options.rank)
        made = Assembly(processed, model, params, process, weights, options.debug)
        origin = report_pretrained(made)
        earlier = FinishedRun(options.origin, params) if options.origin else None
        if params.threads == "auto":
            params = made.params = params.model_copy(update={"threads": _threads(made, scratch)})
        print(summary(made), file=sys.stderr, flush=True)
        network, metadata = made.network, made.metadata
        progress = Progress(made.batches.batch_size * process.world, made.batches.steps)
        best = BestEpoch(progress, params, None if params.ema is None else WeightAverage(network, params.ema))
        best.course = options.course
        start = made.pretrained_weights
        begun_with = [origin.sha256, start.classes, made.architecture.image_size] if origin and start else None
        terms = options.debug.deciding()
        shared = provenance = provenance_of(metadata, model, params, begun_with, terms)  # by all processes
        if earlier:
            terms = {**terms, "continued": earlier.card.provenance.key()}
            provenance = provenance_of(metadata, model, params, begun_with, terms)
        # a head has nothing to go on from but its features
        checkpoints = Checkpoints(scratch, provenance.key()) if scratch and params.backbone != "frozen" else None
        if earlier and checkpoints:
            earlier.check(provenance, origin, best)
            checkpoints.begun = earlier.checkpoint
        for logger in options.loggers:
            logger.log_hyperparams({"data": metadata.data, "model": model.model_dump(), "train": params.model_dump()})
        try:
            if params.backbone != "frozen":
                _fit(made, best, shared, checkpoints, options)
            else:
                with StopSignals(), _one_line(params.batch_size):
                    fit_head(made, best, provenance, scratch and scratch.with_name("features"))
        except BaseException:
            if checkpoints:
                checkpoints.leave()
            raise
        network = copy.deepcopy(network) if params.compile else network  # a copy is not compiled
        network.load_state_dict(best.weights)
        return TrainResult(network, card_of(made, best, provenance, origin, earlier), best.history, checkpoints)


@contextmanager
def _silent() -> Iterator[None]:
    """Context in which a process that is not the first leaves it to the first to say anything."""
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except Stopped as stopped:
        raise SystemExit(stopped.code) from None


def _fit(
    made: Assembly, best: BestEpoch, provenance: Provenance, checkpoints: Checkpoints | None, options: Options
) -> None:
    """Run Lightning's Trainer over the epochs that the checkpoints have not seen."""
    params, several = made.params, made.process.world > 1
    losses, own = FiniteLoss(params.lr), own_callbacks(params)
    with StopSignals(deferred=True) as signals:
        callbacks = [
            StatelessDropout(params.seed),
            *([Peers(provenance, best.average)] if several else []),
            losses,
            LearningRate(),
            *([FrozenBackbone(made.network.model, params.freeze_epochs)] if params.freeze_epochs else []),
            *([FixedNorms()] if params.backbone == "fixed_norms" else []),
            *own,
            *([best.average] if best.average else []),
            best,
            PlateauSchedule(),
            best.progress,
            Resumption(checkpoints, params.checkpoint_every, made.batches, best, signals, losses, made.data),
            *options.callbacks,
        ]
        trainer = _trainer(made, callbacks, options)
        lit, loader = made.lit(), chunks(trainer, made.batches)
        if several:
            signals.rest()  # until the processes have found each other
        pointwise = resolve_reproducible(params.reproducible) != "portable"
        fast = nullcontext() if params.compile else repaired(lit, pointwise)
        with _one_line(params.batch_size), fast:
            try:
                trainer.fit(lit, loader, made.val_batches)
            finally:
                loader.close()
                lit.graphed = None


def _trainer(made: Assembly, callbacks: list[Callback], options: Options) -> Trainer:
    """Return Lightning's Trainer, without what the callbacks here do themselves."""
    _silence_lightning()
    params, process = made.params, made.process
    return Trainer(
        max_epochs=params.epochs,
        accelerator=process.device,
        devices=params.devices,
        num_nodes=params.num_nodes,
        strategy=ddp_strategy(params) if process.world > 1 else "auto",
        plugins=slurm_environment(),
        use_distributed_sampler=False,
        logger=list(options.loggers),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        detect_anomaly=options.debug.detect_anomaly,
    )


@contextmanager
def _one_line(batch_size: int) -> Iterator[None]:
    """Turn what a machine's limits, or another process, do to the training into a UserError."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises no kind of its own
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"out of memory in training; lower train.batch_size (now {batch_size})") from None
        kernel, missing, _ = str(error).partition(" does not have a deterministic implementation")
        if missing:
            why = f"the model needs {kernel}, which gives other bits each time on this device"
            way_out = "choose another model.name, train.reproducible=portable (on the CPU) or off"
            raise UserError(f"{why}; {way_out}") from None
        if of_others := failure(error):
            raise UserError(of_others) from None
        raise


def _threads(made: Assembly, scratch: Path | None) -> int:
    """Return the fastest number of threads, by steps of a copy of the network; on a GPU all of them: they feed it."""
    params = made.params
    reproducible = resolve_reproducible(params.reproducible)
    if made.process.device == "cuda":
        return cpus()
    lit = made.lit(copy.deepcopy(made.network))
    optimizer = lit.optimizer(lit.parameters())
    made.batches.set_epoch(params.epochs - 1)  # images of full size
    batch = next(iter(made.batches))
    made.batches.set_epoch(0)

    def step() -> None:
        optimizer.zero_grad()
        lit.learn(batch).backward()
        optimizer.step()

    shape = "x".join(map(str, batch[0].shape[1:]))
    key = [made.model.model_dump_json(), params.batch_size, shape, params.precision, reproducible, cpu_name(), cpus()]
    with repaired(lit, pointwise=reproducible != "portable"):
        return resolve_threads(step, cpus(), scratch / "threads.json" if scratch else None, ", ".join(map(str, key)))


def _silence_lightning() -> None:
    """Keep Lightning's greetings, and warnings that a user can do nothing about, off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers|isinstance.treespec, LeafSpec|GPU available but not used",
        "recommended to use .*sync_dist=True",  # what is logged is the same in every process already
        "smaller than the logging interval",  # losses are logged once an epoch
        ".broadcast_buffers. is deprecated",  # to be used all the same, it says, for now
    ):
        warnings.filterwarnings("ignore", message=f".*({message})")
