"""An exported model, opened with onnxruntime: one file that holds network, class names and preprocessing.

Needs neither torch nor onnx. The file ends with a seal, the SHA-256 of all before it, as one more metadata property of
the ONNX model, so that other programs read the file as any ONNX model and an altered one is refused here.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from reprise.evaluation.confidence import Confidence
from reprise.model.artifact import ModelCard
from reprise.runtime.checksums import naming
from reprise.runtime.environment import cpus
from reprise.runtime.errors import UserError, reason

INPUT, OUTPUTS = "images", ["probabilities", "energy"]  # names in the ONNX model; the second, if it has `columns`
CARD, CONFIDENCE = "reprise", "confidence"  # of metadata properties
# protobuf: field 14 of ModelProto (metadata_props), 74 bytes; its key, 6 bytes; its value, 64 bytes, which follow
SEAL = b"\x72\x4a\x0a\x06sha256\x12\x40"
SEAL_BYTES = len(SEAL) + 64


class OnnxModel:
    """An exported model, from the pixels of `decode` to probabilities; on the CPU.

    card: all that is known of it. A row of the result depends on the batch it is in by less than 1e-6.
    """

    def __init__(self, session: Any, card: ModelCard, confidence: Confidence) -> None:
        self.session, self.card, self.confidence = session, card, confidence

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (N, classes), of images, uint8 (N, S, S, C), S: preprocessing.image_size.

        If the model has `confidence.columns`, the energy is one more column.
        """
        return np.concatenate(self.session.run(None, {INPUT: images}), axis=1)


def open_onnx(path: Path, threads: int = 0) -> OnnxModel:
    """Open an exported model; threads: of the CPU, 0: one for each CPU that this process may use.

    Raises UserError for a file that is missing, altered, not exported by Reprise or written by another version, that
    reads other files or is unlike its card, and where onnxruntime is missing or cannot run it.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path}: needs onnxruntime; install it with `pip install onnxruntime`") from None
    try:
        with naming(path):
            content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no model there; run `dvc repro export` or `dvc checkout`") from None
    if content[-SEAL_BYTES:] != seal(memoryview(content)[:-SEAL_BYTES]):
        raise UserError(f"{path}: altered, or not exported by Reprise; run `dvc checkout` or fetch it again")
    # protobuf: the key of TensorProto.external_data that names a file, after the last byte of its length
    if b"\x08location" in content or b"\x00location" in content:
        raise UserError(f"{path}: reads weights from other files, which Reprise exports none to; export it again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cpus()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # another would name files otherwise
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        properties = session.get_modelmeta().custom_metadata_map
        card = ModelCard.model_validate_json(properties[CARD])
        confidence = Confidence.model_validate_json(properties.get(CONFIDENCE, "{}"))
    except ValidationError:
        raise UserError(f"{path}: written by another version of Reprise; export it again, or update") from None
    except Exception as error:  # onnxruntime's own kinds, each derived from Exception directly
        why = f"onnxruntime {onnxruntime.__version__} cannot run it ({reason(error)[:300]})"
        raise UserError(f"{path}: {why}; use a newer onnxruntime") from None
    found = [(each.name, each.type, each.shape[1:]) for each in (*session.get_inputs(), *session.get_outputs())]
    shape = [*[card.preprocessing.image_size] * 2, card.preprocessing.channels]
    widths = zip(OUTPUTS, [len(card.classes), *[1] * bool(confidence.columns)], strict=False)
    expected = [(INPUT, "tensor(uint8)", shape), *((name, "tensor(float)", [width]) for name, width in widths)]
    if found != expected or isinstance(session.get_inputs()[0].shape[0], int):
        raise UserError(f"{path}: its inputs and outputs are not those of its card; export it again")
    return OnnxModel(session, card, confidence)


def seal(model: bytes | memoryview) -> bytes:
    """Return the bytes that seal a serialized ONNX model; they are appended to it."""
    return SEAL + hashlib.sha256(model).hexdigest().encode()
