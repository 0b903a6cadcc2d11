"""Weights that come without a model card, described by params and prepared data, so that they can be evaluated."""

import sys
from pathlib import Path
from typing import Any

from reprise.data.formats.packed import load_metadata
from reprise.model.artifact import ModelCard, Preprocessing, Training
from reprise.model.backbone import TIMMBackbone, create_network
from reprise.model.pretrained import find_pretrained, not_loaded
from reprise.params.schema import Params
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.errors import UserError, listed
from reprise.runtime.provenance import trace


def bare_model(params: Params, weights: Path, processed: Path) -> tuple[TIMMBackbone, ModelCard]:
    """Return the network that `params.model` names, with the weights of a file or timm's, and a card for these data.

    Images are normalized as `find_pretrained` says; rows of the classifier without names are taken for the classes in
    their order. Raises UserError as that does, and for weights that leave a part of the network random.
    """
    metadata = load_metadata(processed)
    pretrained = find_pretrained(params.model, None if params.model.pretrained else weights)
    if pretrained is None:
        raise UserError(f"model.weights = {weights}: no weights there; name their file, or set model.pretrained=true")
    pretrained = pretrained.for_classes(metadata.classes, params.model.name)
    network, architecture = create_network(params.model, metadata, 0, pretrained)
    missing = [name for name in not_loaded(pretrained, network.model) if not name.endswith("num_batches_tracked")]
    if missing := missing or pretrained.origin.new_classes:
        lacking = f"lacks {listed(missing)} of {params.model.name} for the {len(metadata.classes)} classes here"
        raise UserError(f"{pretrained.origin.source}: {lacking}; train it on them first, with src/train.py")
    normalization = pretrained.normalization(metadata.channels)
    metadata = metadata.model_copy(update=normalization)
    if not pretrained.origin.revision and not pretrained.image_size:  # neither the hub nor a card says it
        print(f"normalized by {normalization}, timm's: weights trained on others are measured too low", file=sys.stderr)
    data: dict[str, Any] = {"data": metadata.data, "splits_sha256": metadata.splits_sha256}
    return network, ModelCard(
        architecture=architecture,
        classes=metadata.classes,
        preprocessing=Preprocessing.model_validate(metadata, from_attributes=True),
        training=Training(**data, pretrained=params.model.pretrained, start=pretrained.origin, epoch=0, seed=0),
        provenance=trace(resolve_reproducible(params.train.reproducible), 1, "cpu", {}, b"", __name__),
    )
