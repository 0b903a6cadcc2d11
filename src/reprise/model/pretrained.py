"""Pretrained weights, timm's published ones or those of a file, with their origin and normalization.

Nothing but tensors is read: safetensors, or torch files with `weights_only`.
"""

import logging
import re
import shutil
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
from reprise.model.networks import timm_name
from reprise.params.schema import ModelParams
from reprise.runtime.atomic import publishing
from reprise.runtime.checksums import file_sha256, read_sealed, verify_file, write_sealed
from reprise.runtime.errors import UserError, listed, reason

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")  # timm's own checkpoints end in .pth.tar
ORIGIN = "origin.json"  # beside weights that were fetched
LFS = b"version https://git-lfs"
WRAPPERS = re.compile(r"^((net|model|module|_orig_mod)\.)+")  # before timm's names, in checkpoints of training loops
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its ten lines of retries say less than `unavailable`


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights that a training starts from.

    weights: by timm's tensor names; mean, std: for each channel, of the images they were trained with; image_size: of
    those images, in pixels; classes: names in the order of the classifier's rows. The last two are None where unknown.
    """

    weights: dict[str, Tensor]
    origin: Origin
    mean: list[float]
    std: list[float]
    image_size: int | None
    classes: list[str] | None = None

    def for_classes(self, classes: list[str], model_name: str) -> "PretrainedWeights":
        """Return the weights with one classifier row for each of these classes, by name.

        The row of a class that the weights do not have is zero. If all are new, the classifier keeps no row and is
        initialized anew. Weights that do not name their classes, or whose classifier is unknown, are returned as they
        are.
        """
        names = [f"{layer}.{kind}" for layer in _layers(_config(model_name).classifier) for kind in ("weight", "bias")]
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

    def overlay(self, model_name: str) -> dict[str, Any]:
        """Return the `pretrained_cfg_overlay` with which timm loads the weights and adapts first and last layer."""
        config = _config(model_name)
        ends = [[f"{name}.weight" for name in _layers(each)] for each in (config.first_conv, config.classifier)]
        first, last = (next(map(self.weights.get, names), None) for names in ends)
        overlay: dict[str, Any] = {"state_dict": dict(self.weights), "label_offset": 0}
        if last is not None:
            overlay["num_classes"] = last.shape[0]
        if first is not None and first.ndim == 4:
            size = self.image_size or first.shape[-1]  # timm requires a size but reads the channels alone
            overlay["input_size"] = (first.shape[1], size, size)
        return overlay

    def normalization(self, channels: int) -> dict[str, list[float]]:
        """Return mean and std for so many channels: the weights' own or, if they have another number, their average."""
        own, same = {"mean": self.mean, "std": self.std}, len(self.mean) == channels
        return own if same else {name: [sum(values) / len(values)] * channels for name, values in own.items()}


def _config(model_name: str) -> PretrainedCfg:
    """Return timm's configuration of a model's weights; an empty one for a model without weights."""
    return timm.get_pretrained_cfg(timm_name(model_name)) or PretrainedCfg()


def _layers(names: Any) -> tuple[str, ...]:
    """Return the names of layers in timm's configuration, where one stands alone and none is None."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def unavailable(model_name: str, error: Exception) -> UserError:
    """Return the error for published weights that cannot be fetched, with the first line of the reason."""
    why = (str(error).splitlines() or [type(error).__name__])[0]
    way_out = f"`reprise weights {model_name}` where one is, or set model.pretrained: false"
    return UserError(f"cannot get the weights of {model_name} ({why}); without a network: {way_out}")


def published_weights(model_name: str) -> PretrainedWeights:
    """Return timm's weights of a model, from the hub or its cache (HF_HOME and HF_HUB_OFFLINE as usual).

    Raises UserError if there are none, if they cannot be fetched or their checksum is wrong.
    """
    path, origin = _published_file(model_name)
    config = _config(model_name)
    return PretrainedWeights(_read(path), origin, list(config.mean), list(config.std), config.input_size[-1])


def fetch_weights(model_name: str, folder: Path) -> Origin:
    """Copy timm's weights of a model into a folder, whole or not at all, with what is known of them.

    Returns their origin. A folder that is there is verified, and the hub is not asked. Raises UserError if something
    else is there, and as `published_weights` and `weights_of_file` do.
    """
    if folder.exists():
        if (folder / ORIGIN).exists() and (found := weights_of_file(folder, model_name)):
            return found.origin
        raise UserError(f"{folder}: there already, and not what this command has fetched; move it away")
    with publishing(folder) as (partial,):
        path, origin = _published_file(model_name)
        _read(path)
        partial.mkdir()
        shutil.copyfile(path, partial / path.name)
        write_sealed(partial / ORIGIN, {"model": model_name, "origin": origin.model_dump()})
    return origin


def _published_file(model_name: str) -> tuple[Path, Origin]:
    """Return where the cache has timm's weights of a model, fetched if need be, and their origin."""
    config = _config(model_name)
    source, revision = str(config.hf_hub_id or config.url or ""), None
    if not source:
        raise UserError(f"timm has no weights of {model_name}; choose another model.name, or model.pretrained: false")
    try:
        if config.hf_hub_id:
            print(f"weights of {source}: asking the hub and its cache", file=sys.stderr, flush=True)
            path = _from_hub(source)
            revision = path.parent.name
        else:
            path = Path(download_cached_file(source, check_hash=True))
    except Exception as error:  # the hub's client lets through what its HTTP library raises
        raise unavailable(model_name, error) from None
    origin = Origin(source=source, revision=revision, sha256=file_sha256(path))
    blob = path.resolve()
    if revision and len(blob.name) == 64 and blob.name != origin.sha256:  # large files are named by their SHA-256
        raise UserError(f"{blob}: damaged in the download or since; remove it and run it again")
    return path, origin


def find_pretrained(params: ModelParams, weights_path: Path | None) -> PretrainedWeights | None:
    """Return the weights that a training starts from; None: random ones.

    weights_path: of `model.weights`. Raises UserError if both `model.weights` and `model.pretrained` give some.
    """
    timm_name(params.name)
    given = weights_of_file(weights_path, params.name) if weights_path else None
    if given and params.pretrained:
        raise UserError(f"model.weights holds {given.origin.source}, and model.pretrained is true: choose one of them")
    return published_weights(params.name) if params.pretrained else given


def _from_hub(repository: str) -> Path:
    repository, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision or None))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return Path(hf_hub_download(repository, "pytorch_model.bin", revision=revision or None))


def weights_of_file(path: Path, model_name: str) -> PretrainedWeights | None:
    """Read weights from a file, or from a folder with one; None for an empty folder.

    In a folder, `model.json` beside `model.safetensors` gives normalization, image size and class names, and says of a
    classifier that is an mlp or knn, which is left out; `origin.json`, of `fetch_weights`, gives the first two and the
    origin. Otherwise the normalization is timm's for the model, the image size the data's. Raises UserError if there is
    no such file, several in the folder, no tensors in it, or others than were fetched.
    """
    file = path
    if path.is_dir():
        inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        if not inside:
            return None
        found = [entry for entry in inside if entry.suffix.lower() in SUFFIXES]
        if not found:
            held = f"holds {inside[0].name}, but no weights ({', '.join(SUFFIXES)})"
            raise UserError(f"model.weights = {path}: {held}; name a folder in it, or empty it for random ones")
        if len(found) > 1:
            raise UserError(f"model.weights = {path}: holds {len(found)} files of weights; name one of them")
        file = found[0]
    if not file.is_file():
        raise UserError(f"model.weights = {path}: no such file; `dvc pull`, or an empty folder for random weights")
    content = _read(file)
    weights = _unwrapped(content.get("model_state_dict", content))  # the key in PyTorch's tutorial
    if not weights:  # timm would fetch weights from the hub instead
        held = listed(list(content)) or "nothing"
        raise UserError(f"{file}: holds no tensors by name, but {held}; save the model's state_dict()")
    origin = Origin(source=file.name, revision=None, sha256=file_sha256(file))
    config, image_size = _config(model_name), None
    if (known_path := file.with_name(ORIGIN)).exists():
        try:
            known = read_sealed(known_path)
            verify_file(file, known["origin"]["sha256"])
        except ValueError as error:
            raise UserError(f"{error}; `dvc checkout {file.parent}`, or remove it and fetch anew") from None
        origin, config = Origin.model_validate(known["origin"]), _config(known["model"])
        image_size = config.input_size[-1]
    card_path = file.with_suffix(".json")
    if file.suffix == ".safetensors" and path.is_dir() and card_path.exists():
        card = load_card(card_path)
        seen = card.preprocessing
        if card.architecture.classifier:  # an mlp or a knn, whose tensors are no linear layer's
            heads = tuple(f"{name}." for name in _layers(config.classifier))
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(heads)}
        return PretrainedWeights(weights, origin, seen.mean, seen.std, card.architecture.image_size, card.classes)
    return PretrainedWeights(weights, origin, list(config.mean), list(config.std), image_size)


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """Return the tensors under the most frequent wrapper prefix, without it; others belong to the training loop."""
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in named if isinstance(value, Tensor) and name != "n_averaged"}
    found = Counter(match[0] if (match := WRAPPERS.match(name)) else "" for name in tensors)
    wrapper = max(found, key=found.__getitem__, default="")
    return {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UserError(f"{path}: a pointer of Git LFS, not the weights; `git lfs pull` brings them")
    try:
        return load_state_dict(str(path), weights_only=True)
    except MemoryError:
        raise
    except AttributeError:  # timm takes whatever the file holds for a dictionary with names
        raise UserError(f"{path}: holds no tensors by name; save the model's state_dict()") from None
    except Exception as error:  # whatever broken bytes provoke deep inside an unpickler, OSError and IndexError too
        if re.search("nsupported global|TorchScript", str(error)):
            said = "a pickled model or other objects, whose code is not run; save the model's state_dict() alone"
            raise UserError(f"{path}: holds {said}") from None
        why = "neither safetensors nor a torch file" if "weights_only" in str(error) else reason(error)[:200]
        raise UserError(f"{path}: not readable as weights ({why})") from None


def classifier_prefixes(network: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of a timm model's classifier tensors; () for a module without a timm configuration."""
    return tuple(f"{name}." for name in _layers(getattr(network, "pretrained_cfg", {}).get("classifier")))


def not_loaded(pretrained: PretrainedWeights, network: nn.Module) -> list[str]:
    """Return the names of a timm model's tensors that the weights do not set, in the model's order.

    The classifier is not set where the number of classes differs; `for_classes` sets its rows by name.
    """
    heads, given = classifier_prefixes(network), pretrained.weights
    of_network = network.state_dict().items()
    unfit = {
        name for name, tensor in of_network if name.startswith(heads) and given.get(name, tensor).shape != tensor.shape
    }
    return [name for name, _ in of_network if name not in given or name in unfit]
