"""The result of a training: the network of its best epoch, its model card, and the metrics of every epoch."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reprise.data.formats.packed import Metadata
from reprise.model.artifact import ModelCard, Origin, Preprocessing, Training, load_card
from reprise.model.backbone import TIMMBackbone, save_model
from reprise.model.pretrained import classifier_prefixes, not_loaded
from reprise.params.dependencies import Record
from reprise.params.resolve import resolve_device
from reprise.params.schema import ModelParams, TrainParams
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.errors import UserError, listed, say
from reprise.runtime.parts import project_md5
from reprise.runtime.provenance import Provenance, trace
from reprise.training.callbacks.best_epoch import BestEpoch, EpochRow, write_history
from reprise.training.checkpoint import Checkpoints, read_checkpoint
from reprise.training.setup import Assembly

LAST = "last.checkpoint"  # in the folder of a finished run; of no suffix that weights have
ENDLESS = ("none", "constant", "plateau")  # schedules that do not depend on the number of epochs, and arguments for it
TOLD = {"step": "decay_epochs", "multistep": "decay_milestones"}
TRAINING = "reprise.training.train"  # what it imports is the code that decides the bits


@dataclass(frozen=True)
class TrainResult:
    """The network with its best weights, its model card, the metrics of every epoch, and the training's checkpoints."""

    network: TIMMBackbone
    card: ModelCard
    history: list[EpochRow]
    checkpoints: Checkpoints | None

    @property
    def best(self) -> EpochRow:
        """The epoch whose weights the network carries, with their metrics."""
        training = self.card.training
        return self.history[training.epoch - 1].of_weights(training.averaged)

    def summary(self) -> str:
        """Return the outcome in one line."""
        best, name, training = self.best, self.card.architecture.model_name, self.card.training
        what = f"{name}, best {training.head or 'epoch'} {best.epoch} of {len(self.history)}: validation accuracy"
        return f"{what} {best.val_accuracy:.4f}, loss {best.val_loss:.4f}{' (averaged weights)' * training.averaged}"

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints: the result is published."""
        if self.checkpoints:
            self.checkpoints.discard()

    def save(
        self, weights_path: Path, card_path: Path, metrics: Path, history: Path, *, record: Record | None = None
    ) -> None:
        """Write weights (safetensors), model card (JSON), the best epoch's metrics (JSON) and the history (CSV).

        record: what the training script depended on, which becomes a part of the card.
        """
        save_model(self.network, self.card.model_copy(update={"record": record}), weights_path, card_path)
        reached = {name: value for name, value in self.best.rounded().items() if name != "lr"}
        metrics.write_text(json.dumps(reached, indent=2) + "\n", encoding="utf-8")
        write_history(self.history, history)


class FinishedRun:
    """A finished run that goes on for more epochs, by its folder, from the state after its last one.

    What does not depend on the number of epochs goes on as it would have in one training. Any other schedule, and
    `train.start_size`, is from here on that of the larger number: the rate of one-cycle, which has come down to zero,
    is where a longer training would have it. Raises UserError if there is no such state, or for no more epochs.
    """

    def __init__(self, run: Path, params: TrainParams) -> None:
        self.params, self.card = params, load_card(run / "model.json")
        self.anew = f"`python src/train.py model.weights={run}` begins a new run with its weights"
        try:
            self.checkpoint = read_checkpoint(run / LAST)
        except (FileNotFoundError, ValueError):
            raise UserError(f"{run / LAST}: missing or damaged; {self.anew}") from None
        self.continued = [*self.card.training.continued, self.checkpoint[0].epoch]
        if params.epochs <= self.continued[-1]:
            raise UserError(f"train.epochs = {params.epochs}: this run has had {self.continued[-1]}; choose more")

    def check(self, provenance: Provenance, origin: Origin | None, best: BestEpoch) -> None:
        """Say on stderr how it goes on; raise UserError if it cannot: its terms are others now, or it is through.

        provenance and origin (pretrained weights): of the training to come.
        """
        then = self.card.provenance.model_copy(update={"params_sha256": provenance.params_sha256})
        if (then, self.card.training.start) != (provenance, origin):
            raise UserError(f"this run had other data, code, packages or machine than there are now; {self.anew}")
        best.load_state_dict(self.checkpoint[1]["best"])
        if best.is_over():
            raise UserError(f"train.early_stopping has ended this run; {self.anew}")
        params, why = self.params, "train.start_size" if self.params.start_size else ""
        if params.schedule not in ENDLESS and TOLD.get(params.schedule) not in params.schedule_kwargs:
            why = f"train.schedule = {params.schedule}"
        how = f"otherwise than one training of {params.epochs}: {why} depends on that" if why else "as one training"
        say(f"going on after {self.continued[-1]} epochs, {how}", file=sys.stderr)


def report_pretrained(made: Assembly) -> Origin | None:
    """Say on stderr which pretrained weights were loaded and what they do not set; return their origin, if any."""
    if made.pretrained_weights is None:
        return None
    weights, network, metadata = made.pretrained_weights, made.network, made.metadata
    fitted, source = weights.for_classes(metadata.classes, made.model.name), weights.origin.source
    missing, new = not_loaded(fitted, network.model), fitted.origin.new_classes
    classifier = classifier_prefixes(network.model)
    if len(missing) > len(network.model.state_dict()) / 2:
        raise UserError(f"{source}: not weights of this model: {len(missing)} of its tensors are missing")
    rest = "the classifier's rows of new classes" if new else "nothing"
    said = [f"starting from {source}; not loaded: {', '.join(missing[:8]) or rest}"]
    if len(missing) > 8:
        said.append(f"and {len(missing) - 8} more, see model.json")
    if fitted is not weights:
        known = [name for name in metadata.classes if name not in new]
        which = f" ({listed(known)})" if known else f", which has {listed(weights.classes or [])}"
        others = f", new: {listed(new)}" if new else ""
        said.append(f"classes: {len(known)} of {len(metadata.classes)} are known to {source}{which}{others}")
    elif weights.classes != metadata.classes and not any(name.startswith(classifier) for name in missing):
        said.append("its classes are unknown: the classifier's rows are taken for those here, in order")
    given, size = metadata.image_size, made.architecture.image_size
    wanted = weights.image_size or size
    if size != wanted:
        said.append(f"trained on {wanted}x{wanted} images, it will see {size}x{size}")
    elif size != given:
        hint = f"data.image_size: {size} keeps more detail, model.image_size: {given} is faster"
        said.append(f"trained on {size}x{size} images: those of {given}x{given} are resized ({hint})")
    say("\n  ".join(said), file=sys.stderr)
    return fitted.origin.model_copy(update={"not_loaded": missing})


def provenance_of(
    metadata: Metadata, model: ModelParams, params: TrainParams, start: object, terms: dict[str, Any]
) -> Provenance:
    """Return the record of what decides the bits of a training.

    start: what identifies its pretrained weights; terms: of a debug mode, or of a run that goes on.
    """
    deciding = {
        "model": model.model_dump(exclude={"weights"}),
        "start": start,
        "train": params.model_dump(exclude={"threads", "reproducible", "checkpoint_every", "loggers"}),
        **terms,
    }
    deciding |= {"project": project_md5()} if "project/" in str(deciding) else {}
    data = metadata.model_dump_json().encode()
    assert params.threads != "auto" and params.precision != "auto", "both are resolved before"
    reproducible, device = resolve_reproducible(params.reproducible), resolve_device(params)
    return trace(reproducible, params.threads, device, deciding, data, TRAINING, params.precision)


def card_of(
    made: Assembly, best: BestEpoch, provenance: Provenance, origin: Origin | None, earlier: FinishedRun | None
) -> ModelCard:
    """Return the card of the network with the best epoch's weights."""
    return ModelCard(
        architecture=made.architecture,
        classes=made.metadata.classes,
        preprocessing=Preprocessing.model_validate(made.metadata, from_attributes=True),
        training=Training(
            data=made.metadata.data,
            splits_sha256=made.metadata.splits_sha256,
            pretrained=made.model.pretrained,
            start=origin,
            epoch=best.epoch,
            head=f"{made.params.head} head" if made.params.backbone == "frozen" else None,
            averaged=best.averaged,
            continued=earlier.continued if earlier else [],
            seed=made.params.seed,
        ),
        provenance=provenance,
    )
