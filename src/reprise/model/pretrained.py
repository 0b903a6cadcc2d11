"""Weights to start from, timm's published ones or those of a file, with their origin and normalization.

Nothing but tensors is read: safetensors, or torch files with `weights_only`.
"""

import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from timm.models import PretrainedCfg, load_state_dict
from timm.models._hub import download_cached_file
from torch import Tensor, nn

from reprise.model.artifact import Origin, load_card
from reprise.runtime.checksums import file_sha256
from reprise.runtime.errors import UserError, listed

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # timm's own checkpoints end in .pth.tar
WRAPPERS = re.compile(r"^((net|model|module|_orig_mod)\.)+")  # before timm's names, in checkpoints of training loops


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    weights: by timm's tensor names; mean, std: for each channel, of the images they were trained with; image_size: of
    those images, in pixels; classes: names in the order of the classifier's rows. The last two are None where unknown.
    """

    weights: dict[str, Tensor]
    origin: Origin
    mean: list[float]
    std: list[float]
    image_size: int | None
    classes: list[str] | None = None

    def for_classes(self, classes: list[str], model_name: str) -> "Start":
        """Return the weights with one classifier row for each of these classes, by name.

        The row of a class that the weights do not have is zero. If all are new, the classifier keeps no row and is
        initialized anew. Weights that do not name their classes, or whose classifier is unknown, are returned as they
        are.
        """
        config: Any = timm.get_pretrained_cfg(model_name) or PretrainedCfg()
        heads = (config.classifier,) if isinstance(config.classifier, str) else config.classifier or ()
        names = [f"{head}.{kind}" for head in heads for kind in ("weight", "bias")]
        found = {name: self.weights[name] for name in names if name in self.weights}
        known = {name: row for row, name in enumerate(self.classes or ())}
        if not found or classes == self.classes or any(len(tensor) != len(known) for tensor in found.values()):
            return self
        kept = [name for name in classes if name in known]
        target, source = [classes.index(name) for name in kept], [known[name] for name in kept]
        for name, tensor in found.items():
            found[name] = tensor.new_zeros((len(classes) if kept else 0, *tensor.shape[1:]))
            found[name][target] = tensor[source]
        origin = self.origin.model_copy(update={"new_classes": [name for name in classes if name not in known]})
        return replace(self, weights=self.weights | found, origin=origin, classes=classes)

    def overlay(self, first: str | tuple[str, ...] | None, last: str | tuple[str, ...] | None) -> dict[str, Any]:
        """Return the `pretrained_cfg_overlay` with which timm loads the weights and adapts first and last layer.

        first, last: names of these layers in timm's configuration.
        """
        facts: dict[str, Any] = {"state_dict": dict(self.weights), "label_offset": 0}
        if (weight := self._weight(last)) is not None:
            facts["num_classes"] = weight.shape[0]
        if (weight := self._weight(first)) is not None and weight.ndim == 4:
            size = self.image_size or weight.shape[-1]  # timm requires a size but reads the channels alone
            facts["input_size"] = (weight.shape[1], size, size)
        return facts

    def _weight(self, layer: str | tuple[str, ...] | None) -> Tensor | None:
        name = layer if isinstance(layer, str) else (layer or ("",))[0]
        return self.weights.get(f"{name}.weight")

    def normalization(self, channels: int) -> dict[str, list[float]]:
        """Return mean and std for so many channels: the weights' own or, if they have another number, their average."""
        if len(self.mean) == channels:
            return {"mean": self.mean, "std": self.std}
        return {"mean": [sum(self.mean) / len(self.mean)] * channels, "std": [sum(self.std) / len(self.std)] * channels}


def published_start(model_name: str) -> Start:
    """Return timm's weights of a model, from the hub or its cache (HF_HOME and HF_HUB_OFFLINE as usual).

    Raises UserError if they cannot be fetched or their checksum is wrong.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # ten lines of retries say no more than ours
    config = timm.get_pretrained_cfg(model_name) or PretrainedCfg()
    try:
        if config.hf_hub_id:
            print(f"weights of {config.hf_hub_id}: asking the hub and its cache", file=sys.stderr, flush=True)
            path = _from_hub(config.hf_hub_id)
            origin = Origin(source=config.hf_hub_id, revision=path.parent.name, sha256=file_sha256(path))
            blob = path.resolve()
            if len(blob.name) == 64 and blob.name != origin.sha256:  # the cache names large files by their SHA-256
                raise UserError(f"{blob}: damaged in the download or since; remove it and run it again")
        elif config.url:
            path = Path(download_cached_file(config.url, check_hash=True))
            origin = Origin(source=str(config.url), revision=None, sha256=file_sha256(path))
        else:
            raise RuntimeError("timm has none")
    except UserError:
        raise
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model.pretrained = true: cannot get the weights of {model_name} ({reason}); set model.pretrained: false, "
            "or fetch them where there is a network and copy that hub cache (HF_HOME) here"
        ) from None
    return Start(_read(path), origin, list(config.mean), list(config.std), config.input_size[-1])


def _from_hub(repository: str) -> Path:
    repository, _, revision = repository.partition("@")
    for name in ("model.safetensors", "pytorch_model.bin"):
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) or name == "pytorch_model.bin":
                raise
    raise AssertionError


def file_start(path: Path, model_name: str) -> Start | None:
    """Read weights from a file, or from a folder with one; None for an empty folder.

    In a folder, `model.json` beside `model.safetensors` gives normalization, image size and class names. Otherwise the
    normalization is timm's for the model, the image size the data's. Raises UserError if there is no such file, several
    in the folder, or no tensors in it.
    """
    file = path
    if path.is_dir():
        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        if not inside:
            return None
        found = [entry for entry in inside if entry.suffix.lower() in SUFFIXES]
        if not found:
            raise UserError(
                f"model.weights = {path}: holds {inside[0].name}, but no weights ({', '.join(SUFFIXES)}); "
                "put them there, or empty the folder for random ones"
            )
        if len(found) > 1:
            raise UserError(f"model.weights = {path}: holds {len(found)} files of weights; name one of them")
        file = found[0]
    if not file.is_file():
        raise UserError(f"model.weights = {path}: no such file; an empty folder stands for random weights")
    content = _read(file)
    weights = _unwrapped(content.get("model_state_dict", content))  # the key in PyTorch's tutorial
    if not weights:  # timm would fetch weights from the hub instead
        raise UserError(
            f"{file}: holds no tensors by name, but {', '.join(content) or 'nothing'}; save the model's state_dict()"
        )
    origin = Origin(source=file.name, revision=None, sha256=file_sha256(file))
    facts = file.with_suffix(".json")
    if file.suffix == ".safetensors" and path.is_dir() and facts.exists():
        card = load_card(facts)
        seen = card.preprocessing
        return Start(weights, origin, seen.mean, seen.std, card.architecture.image_size, card.classes)
    config = timm.get_pretrained_cfg(model_name) or PretrainedCfg()
    return Start(weights, origin, list(config.mean), list(config.std), None)


def _unwrapped(content: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors under the most frequent wrapper prefix, without it; others belong to the training loop."""
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    found = Counter(match[0] if (match := WRAPPERS.match(name)) else "" for name in tensors)
    wrapper = max(found, key=found.__getitem__, default="")
    return {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}


def _read(path: Path) -> dict[str, Any]:
    try:
        weights: dict[str, Any] = load_state_dict(str(path), weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever broken bytes provoke deep inside an unpickler, OSError and IndexError too
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path}: not readable as weights ({reason})") from None
    return weights


def classifier_prefixes(network: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of a timm model's classifier tensors; () for a module without a timm configuration."""
    config: Any = getattr(network, "pretrained_cfg", {})
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def not_loaded(start: Start, network: nn.Module) -> list[str]:
    """Return the names of a timm model's tensors that the weights do not set, in the model's order.

    The classifier is not set where the number of classes differs; `for_classes` sets its rows by name. Raises UserError
    for integers where the model has floating point.
    """
    heads, state = classifier_prefixes(network), network.state_dict()
    given = {name: tensor for name, tensor in start.weights.items() if name in state}
    if whole := [name for name in given if state[name].is_floating_point() and not given[name].is_floating_point()]:
        kind, way_out = given[whole[0]].dtype, "quantized weights cannot be trained on; save them as torch.float32"
        raise UserError(f"{start.origin.source}: {listed(whole)}: {kind}, not floating point: {way_out}")
    return [
        name
        for name, tensor in state.items()
        if name not in start.weights or (name.startswith(heads) and start.weights[name].shape != tensor.shape)
    ]
