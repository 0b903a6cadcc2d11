"""What a training gives: the network of its best epoch, a card of where it comes from, and what every epoch reached."""

import csv
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from reprise.data.formats.packed import Metadata
from reprise.model.artifact import ModelCard, Origin, Preprocessing, Training
from reprise.model.backbone import TIMMBackbone, save_model
from reprise.model.pretrained import Start, classifier_prefixes, not_loaded
from reprise.params.dependencies import Record
from reprise.params.resolve import resolve_device
from reprise.params.schema import ModelParams, TrainParams
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.errors import UserError, listed
from reprise.runtime.provenance import Provenance, trace
from reprise.training.callbacks.best_epoch import BestEpoch, EpochRow
from reprise.training.checkpoint import Checkpoints
from reprise.training.debug import Debug
from reprise.training.setup import Assembly

TRAINING = "reprise.training.train"  # what it imports is the code that decides the bits


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


def starting_point(made: Assembly, start: Start) -> Origin:
    """Say on stderr, and return, where the weights come from and what they leave as it was."""
    network, metadata, architecture = made.network, made.metadata, made.architecture
    size, fitted = architecture.image_size, start.for_classes(metadata.classes, architecture.model_name)
    missing, new = not_loaded(fitted, network.model), fitted.origin.new_classes
    if len(missing) > len(network.model.state_dict()) / 2:
        raise UserError(f"{start.origin.source}: not weights of this model: {len(missing)} of its tensors are missing")
    rest = "the classifier's rows of new classes" if new else "nothing"
    print(f"starting from {start.origin.source}; not loaded: {listed(missing) or rest}", file=sys.stderr)
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


def provenance_of(
    metadata: Metadata, model: ModelParams, params: TrainParams, start: object, debug: Debug
) -> Provenance:
    """Return the record of what decides the bits of a training."""
    deciding = {
        "model": model.model_dump(exclude={"weights"}),
        "start": start,
        "train": params.model_dump(exclude={"threads", "reproducible", "checkpoint_every", "loggers"}),
        **debug.deciding(),
    }
    data = metadata.model_dump_json().encode()
    assert params.threads != "auto" and params.precision != "auto", "settled by now"
    reproducible, device = resolve_reproducible(params.reproducible), resolve_device(params)
    return trace(reproducible, params.threads, device, deciding, data, TRAINING, params.precision)


def card_of(
    made: Assembly,
    model: ModelParams,
    params: TrainParams,
    best: BestEpoch,
    provenance: Provenance,
    origin: Origin | None,
) -> ModelCard:
    """Return the card of the network with the best epoch's weights."""
    metadata = made.metadata
    return ModelCard(
        architecture=made.architecture,
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
