"""Any timm classification model, adapted to the data; published as safetensors and JSON, never as a pickle.

The tensors carry timm's own names, so `timm.create_model(...).load_state_dict(safetensors.torch.load_file(...))` works
without Reprise.
"""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reprise.data.formats.packed import Metadata
from reprise.model.artifact import Architecture, ModelCard, load_card
from reprise.model.classifiers import set_classifier
from reprise.model.networks import timm_name
from reprise.model.pretrained import PretrainedWeights, classifier_prefixes, find_pretrained, not_loaded, unavailable
from reprise.params.schema import ModelParams
from reprise.runtime.checksums import file_sha256, write_sealed
from reprise.runtime.errors import UserError, reason, say
from reprise.runtime.parts import ROOT, is_part, part_sha256

# arguments of timm.create_model that are no part of model.kwargs
DECIDED = {"num_classes", "in_chans", "pretrained", "model_name"}
UNTRACKED = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


class TIMMBackbone(nn.Module):
    """A timm model as a plain module: images (N, in_chans, H, W) in, logits (N, num_classes) out.

    kwargs: of `timm.create_model` (in_chans, drop_rate, img_size, ...). `arguments` build the network anew, without its
    weights. Raises UserError for a name that timm does not know and for pretrained weights that cannot be fetched;
    TypeError for an argument that the model does not take.
    """

    def __init__(
        self, model_name: str = "efficientnet_b0", pretrained: bool = True, num_classes: int = 3, **kwargs: Any
    ) -> None:
        super().__init__()
        name = timm_name(model_name)
        building = {name: value for name, value in kwargs.items() if name not in UNTRACKED}
        self.arguments = {"model_name": model_name, "num_classes": num_classes, **building}
        try:
            self.model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
        except (OSError, RuntimeError) as error:
            if not pretrained or (isinstance(error, RuntimeError) and "pretrained" not in str(error)):
                raise
            raise unavailable(model_name, error) from None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes)."""
        return self.model(x)


def adapt(params: ModelParams, metadata: Metadata, pretrained: PretrainedWeights | None = None) -> Architecture:
    """Return the architecture for the data: its classes, its channels and the size of the network's input.

    The size is that of `model.image_size`; `auto`: that of the pretrained weights, or else the data's. Raises
    UserError for an unknown name and for `model.kwargs` that the data or other parameters determine.
    """
    kwargs = dict(params.kwargs)
    for names, why in ((DECIDED, "set by the data or another parameter"), (UNTRACKED, "it brings untracked weights")):
        if refused := names & set(kwargs):
            raise UserError(f"model.name = {params.name}: model.kwargs.{min(refused)}: {why}; remove it")
    size = params.image_size
    if size == "auto":
        size = (pretrained.image_size if pretrained else None) or metadata.image_size
    config = timm.get_pretrained_cfg(timm_name(params.name))
    if config is not None and config.fixed_input_size:
        kwargs.setdefault("img_size", size)
    given: dict[str, Any] = {"num_classes": len(metadata.classes), "in_chans": metadata.channels, "image_size": size}
    return Architecture(model_name=params.name, kwargs=kwargs, code_sha256=part_sha256(params.name), **given)


def build(architecture: Architecture, pretrained: PretrainedWeights | None = None) -> TIMMBackbone:
    """Build the network in channels-last memory, with pretrained weights or random ones by torch's current seed."""
    name = architecture.model_name
    arguments = {**architecture.kwargs, "in_chans": architecture.in_chans}
    if pretrained:
        arguments["pretrained_cfg_overlay"] = pretrained.overlay(name)
    network = TIMMBackbone(name, pretrained is not None, architecture.num_classes, **arguments)
    if pretrained is not None:
        for tensor, value in network.model.state_dict().items():
            given = pretrained.weights.get(tensor, value)
            if value.is_floating_point() and (not given.is_floating_point() or given.itemsize == 1):
                kind = str(given.dtype).removeprefix("torch.")
                raise UserError(f"{pretrained.origin.source}: {tensor} is {kind}, quantized; give the original floats")
        vars(network.model)["pretrained_cfg"].pop("state_dict")  # it is a second copy of the weights
        # A classifier that is not loaded begins at zero (Kolesnikov et al., Big Transfer, 2020): timm's random one,
        # large for few classes in an EfficientNet, would shake what the network knows.
        new, classifier = not_loaded(pretrained, network.model), classifier_prefixes(network.model)
        for tensor, weight in network.model.named_parameters():
            if tensor in new and tensor.startswith(classifier):
                nn.init.zeros_(weight)
    set_classifier(network.model, architecture)
    for values in (*network.parameters(), *network.buffers()):
        if values.ndim == 4:  # `Module.to` would have the five dimensions of a lambda layer in this layout, too
            values.data = values.data.to(memory_format=torch.channels_last)
    return network


def create_network(
    params: ModelParams, metadata: Metadata, seed: int, pretrained: PretrainedWeights | None = None
) -> tuple[TIMMBackbone, Architecture]:
    """Build the network for the data, with pretrained weights or random ones by the seed.

    First and last layer of pretrained weights are adapted; where they name their classes, each class of the data gets
    the classifier row of the same name. Raises UserError if timm cannot build the model with these arguments, image
    size or weights.
    """
    pretrained = pretrained or find_pretrained(params, None)  # of the hub, if the params want them
    if pretrained is not None:
        pretrained = pretrained.for_classes(metadata.classes, params.name)
    architecture = adapt(params, metadata, pretrained)
    size = architecture.image_size
    torch.manual_seed(seed)
    try:
        network = build(architecture, pretrained)
    except Exception as error:  # timm raises whatever a wrong argument provokes deep inside a model
        if is_part(params.name) or isinstance(error, UserError | MemoryError):
            raise
        why = reason(error)[:300]
        if pretrained is not None and "state_dict" in str(error):
            raise UserError(f"{pretrained.origin.source}: not weights of {params.name} ({why})") from None
        given = ", ".join(f"{key}={value!r}" for key, value in architecture.kwargs.items())
        what = f"timm cannot build it for {size}x{size} images{f' with {given}' if given else ''} ({why})"
        way_out = "change model.kwargs, model.image_size or model.name"
        raise UserError(f"model.name = {params.name}: {what}; {way_out}") from None
    check_takes(network, architecture, size, "model.image_size")
    return network.train(), architecture


def check_takes(network: TIMMBackbone, architecture: Architecture, size: int, parameter: str) -> None:
    """Raise UserError, naming the parameter, if images of this size in pixels do not give one logit for each class."""
    name, training = architecture.model_name, network.training
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, architecture.in_chans, size, size))
    except Exception as error:  # whatever the network runs into
        if is_part(name) or isinstance(error, MemoryError):
            raise
        other = _what_it_takes(architecture) if size == architecture.image_size else ""
        way_out = other or f"raise {parameter}, look at model.kwargs or choose another model"
        why = f" ({reason(error)[:300]})" if str(error) else ""
        raise UserError(f"model.name = {name} cannot take {size}x{size} images{why}; {way_out}") from None
    network.train(training)
    if getattr(logits, "shape", None) != (2, architecture.num_classes):
        raise UserError(f"model.name = {name} does not give one logit per class; look at model.kwargs")


def _what_it_takes(architecture: Architecture) -> str:
    """Return which images a model takes, with the parameters for them: RGB ones, of timm's own size, or both."""
    given, config = architecture.image_size, timm.get_pretrained_cfg(timm_name(architecture.model_name))
    own = config.input_size[-1] if config else given
    for channels, size in ((3, given), (architecture.in_chans, own), (3, own)):
        with suppress(Exception):  # this one neither
            build(architecture.model_copy(update={"in_chans": channels})).eval()(torch.zeros(1, channels, size, size))
            gray = ", data.channels: 3 (the images are gray)" * (channels != architecture.in_chans)
            return f"it takes {size}x{size}x{channels}; set model.image_size: {size}{gray}"
    return ""


def count_flops(network: nn.Module, architecture: Architecture) -> int | None:
    """Return the floating-point operations of one forward pass of one image, two for each multiply-add.

    None if they cannot be counted, with the reason in a line on stderr: no training fails for want of this number. The
    network is left as it was.
    """
    size, channels = architecture.image_size, architecture.in_chans
    modes = [(module, module.training) for module in network.modules()]
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        # FlopCounterMode hooks the gradient of a parameter that is an input of a module, which fails without gradients
        network.eval().requires_grad_(False)
        # FlopCounterMode does not count fused attention on CPUs; its matrix products it does
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, channels, size, size))
        return int(counter.get_total_flops())
    except Exception as error:  # whatever the counter or the network runs into
        say(f"{architecture.model_name}: FLOPs not counted ({reason(error)[:300]})", file=sys.stderr)
        return None
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_()


def save_model(network: TIMMBackbone, card: ModelCard, weights_path: Path, card_path: Path) -> None:
    """Write the weights as safetensors and the card as JSON; equal weights give equal bytes.

    The safetensors header gets no metadata, because the order of two or more keys would be random.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.model.state_dict().items()}
    weights_path.write_bytes(safetensors.torch.save(tensors))  # save_file raises an error of its own on a full disk
    card = card.model_copy(update={"weights_sha256": file_sha256(weights_path)})
    write_sealed(card_path, card.model_dump(mode="json"))


def load_model(weights_path: Path, card_path: Path, project: Path = ROOT) -> tuple[TIMMBackbone, ModelCard]:
    """Load a published model for evaluation. Raises UserError if a file is missing, altered or of another model.

    project: the root of the project whose code runs if the model needs some; it must be what the model was made with.
    """
    card = load_card(card_path)
    architecture, name = card.architecture, card.architecture.model_name
    if part_sha256(name, project) != architecture.code_sha256:
        raise UserError(f"{card_path}: needs {name} as in training, unlike {project}; `project=` names another root")
    architecture = architecture.model_copy(update={"model_name": timm_name(name, project)})
    try:
        if UNTRACKED & set(architecture.kwargs):
            raise ValueError("it names weights of its own")
        network = build(architecture)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # timm raises whatever a wrong argument provokes deep inside a model
        raise UserError(f"{card_path}: no model of timm's ({reason(error)[:300]}); run `dvc checkout`") from None
    try:
        if file_sha256(weights_path) != card.weights_sha256:
            raise UserError(f"{weights_path}: altered since it was published; run `dvc checkout` or train it again")
        network.model.load_state_dict(load_file(weights_path))
    except FileNotFoundError:
        raise UserError(f"{weights_path}: no weights there; run `dvc repro train` or `dvc checkout`") from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        what = f"not the weights of {architecture.model_name} ({reason(error)[:300]})"
        raise UserError(f"{weights_path}: {what}; run `dvc checkout` or train it again") from None
    return network.eval(), card
