"""Weights that come without a model card, described by params and prepared data, so that they can be evaluated."""

from pathlib import Path
from typing import Any

import numpy as np

from reprise.data.formats.packed import Metadata, load_metadata
from reprise.model.artifact import ModelCard, Preprocessing, Training
from reprise.model.backbone import TIMMBackbone, create_network
from reprise.model.pretrained import PretrainedWeights, find_pretrained, not_loaded
from reprise.params.schema import Params
from reprise.runtime.device import resolve_reproducible
from reprise.runtime.errors import UserError, listed
from reprise.runtime.provenance import trace


def bare_model(
    params: Params, weights: Path, processed: Path, normalization: str | None
) -> tuple[TIMMBackbone, ModelCard]:
    """Return the network that `params.model` names, with the weights of a file or timm's, and a card for these data.

    normalization: of the images that the weights were trained with, where neither a model card nor the hub says it (see
    `_normalization`). Rows of the classifier without names are taken for the classes in their order. Raises UserError
    as `find_pretrained` does, for a normalization that is unknown, and for weights that leave a part of the network
    random.
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
    metadata = metadata.model_copy(update=_normalization(normalization, metadata, pretrained))
    data: dict[str, Any] = {"data": metadata.data, "splits_sha256": metadata.splits_sha256}
    return network, ModelCard(
        architecture=architecture,
        classes=metadata.classes,
        preprocessing=Preprocessing.model_validate(metadata, from_attributes=True),
        training=Training(**data, pretrained=params.model.pretrained, start=pretrained.origin, epoch=0, seed=0),
        provenance=trace(resolve_reproducible(params.train.reproducible), 1, "cpu", {}, b"", __name__),
    )


def _normalization(given: str | None, metadata: Metadata, pretrained: PretrainedWeights) -> dict[str, list[float]]:
    """Return mean and std for each channel: those of the data, timm's for the model, or the numbers of "MEAN/STD".

    Numbers are for images from 0 to 1, one for all channels or one for each, with commas between them.
    """
    known = pretrained.origin.revision or pretrained.image_size  # the hub or a model card says it
    own = pretrained.normalization(metadata.channels)
    if (given is None and known) or given == "timm":
        return own
    if given == "data":
        return {"mean": metadata.mean, "std": metadata.std}
    ways = f"data ({_shown(metadata.mean, metadata.std)}), timm ({_shown(**own)}) or MEAN/STD, as in 0.5/0.5"
    if given is None:
        unknown = f"{pretrained.origin.source}: does not say how the images of its training were normalized"
        raise UserError(f"{unknown}; add --normalization: {ways}")
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in given.split("/"))
        if {len(mean), len(std)} <= {1, metadata.channels} and min(std) > 0 and np.isfinite([*mean, *std]).all():
            return {"mean": mean * (metadata.channels // len(mean)), "std": std * (metadata.channels // len(std))}
    except ValueError:
        pass
    raise UserError(f"--normalization {given}: allowed are {ways}, for {metadata.channels} channels")


def _shown(mean: list[float], std: list[float]) -> str:
    return "/".join(",".join(f"{number:.4g}" for number in numbers) for numbers in (mean, std))
