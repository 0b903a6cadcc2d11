"""Writes a published model as ONNX: uint8 pixels in, probabilities out, everything between in the graph.

What is exported is the loader's own functions around the network, so that there is one truth of scaling, resizing and
normalization. Equal models give equal bytes in any folder: the names of files and lines that torch writes beside each
operator are removed.
"""

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reprise.augment.functional import resized, to_unit
from reprise.evaluation.confidence import NOTHING, Confidence
from reprise.evaluation.temperature import outputs
from reprise.export.session import CARD, CONFIDENCE, INPUT, OUTPUTS, seal
from reprise.loader.batches import Normalize
from reprise.model.artifact import ModelCard
from reprise.runtime.errors import UserError, brief


class NotExportableError(Exception):
    """A model that ONNX cannot express; the message says why, in one line."""


class Pixels(nn.Module):
    """A network with the preprocessing before it and softmax after it, at the model's temperature."""

    def __init__(self, network: nn.Module, card: ModelCard, confidence: Confidence = NOTHING) -> None:
        super().__init__()
        self.confidence = confidence
        self.network, self.image_size = network, card.architecture.image_size
        self.normalize = Normalize(card.preprocessing.mean, card.preprocessing.std)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return `outputs`, float32, for images, uint8 (N, H, W, C)."""
        pixels = resized(to_unit(images), self.image_size).contiguous()
        return outputs(self.network(self.normalize(pixels)), self.confidence)


def export_onnx(network: nn.Module, card: ModelCard, path: Path, confidence: Confidence = NOTHING) -> None:
    """Write a published model as one ONNX file, sealed, with the card as its metadata property `reprise`.

    confidence: if it adds to the answers, it is the property `confidence`, and the energy a second output.
    network: on the CPU, left as it was but in evaluation mode. Raises NotExportableError where torch's exporter fails,
    and UserError where a package is missing.
    """
    size, channels = card.preprocessing.image_size, card.preprocessing.channels
    example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    try:
        import onnx
        import onnxruntime  # noqa: F401  which has to run it
        import onnxscript  # noqa: F401  which torch's exporter loads
    except ImportError as error:
        way_out = "install it, or set export.enabled: false"
        raise UserError(f"the export to ONNX needs the package {error.name}; {way_out}") from None
    try:
        with _silence(), sdpa_kernel(SDPBackend.MATH):  # other kernels' memory layouts cannot be exported
            program = torch.onnx.export(
                Pixels(network, card, confidence).eval(),
                (example,),
                input_names=[INPUT],
                output_names=OUTPUTS[: 1 + bool(confidence.columns)],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise RuntimeError("torch gives no program")
        model = program.model_proto
        _strip(model)
        model.producer_name, model.producer_version = "reprise", ""
        properties = {CARD: card, CONFIDENCE: confidence} if confidence.columns else {CARD: card}
        onnx.helper.set_model_props(model, {name: part.model_dump_json() for name, part in properties.items()})
        content = model.SerializeToString(deterministic=True)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # whatever the exporter runs into, deep inside a model
        raise NotExportableError(one_line(error)) from error
    path.write_bytes(content + seal(content))


@contextmanager
def _silence() -> Iterator[None]:
    """Context without warnings, logs and what torch prints of graphs that it cannot export."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def _strip(message: Any) -> None:
    """Remove what depends on folders and torch's internals from a protobuf message and all within it."""
    for name in ("doc_string", "metadata_props", "value_info"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if isinstance(value, Iterable) else [value]:
                _strip(part)


def one_line(error: BaseException) -> str:
    """Return the first line of the first cause, for torch adds pages of advice; without addresses and paths."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = re.sub(r"0x[0-9a-f]+|(?<!\w)/\S+", "...", str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {brief(line, 300)}"
