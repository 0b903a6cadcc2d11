"""The parity gate: onnxruntime gives the probabilities that evaluation measured, image by image, or nothing appears.

TOLERANCE is absolute, for each probability, and relative for an energy beyond 1. Both sides compute in fp32 and sum in
another order: four networks trained on digits differ by 1e-6 to 2.3e-5. A mean that is wrong by one gray level moves a
probability of the default model by 0.015, a deviation that is wrong by a thousandth by 0.0023, an epsilon of batch norm
of 1e-6 in place of 1e-5 by 0.0005. Since no probability moves by more, a class can change only where torch has the two
best less than 2 * TOLERANCE apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from reprise.data.formats.packed import Split
from reprise.evaluation.confidence import NOTHING, Confidence
from reprise.evaluation.evaluate import predict_split
from reprise.evaluation.temperature import outputs
from reprise.export.onnx import NotExportableError, export_onnx, one_line
from reprise.export.outcome import ONNX, Export
from reprise.export.session import OnnxModel, open_onnx
from reprise.model.artifact import ModelCard
from reprise.model.backbone import TIMMBackbone
from reprise.runtime.errors import UserError

TOLERANCE = 1e-4
SPLITS: tuple[Split, ...] = ("val", "test")


def export_model(
    network: TIMMBackbone, card: ModelCard, processed: Path, batch_size: int, folder: Path, fitted: Confidence = NOTHING
) -> Export:
    """Export a published model to `folder`, which is created, and compare it with torch on validation and test images.

    A model that torch cannot export or onnxruntime cannot run leaves the folder empty, and the reason is in the result.
    Raises UserError if the exported one computes something else, and as `predict_split` and `export_onnx` do.
    """
    folder.mkdir()
    path = folder / ONNX
    try:
        export_onnx(network, card, path, fitted)
        with _runnable():
            model = open_onnx(path)
        return compare(network, model, processed, batch_size, path.stat().st_size)
    except NotExportableError as error:
        path.unlink(missing_ok=True)
        return Export(reason=f"{card.architecture.model_name} cannot be exported to ONNX: {error}")


@contextmanager
def _runnable() -> Iterator[None]:
    """Turn an error of onnxruntime into NotExportableError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's own kinds, each derived from Exception directly
        raise NotExportableError(f"onnxruntime fails: {one_line(error)}") from None


def compare(network: TIMMBackbone, model: OnnxModel, processed: Path, batch_size: int, size: int) -> Export:
    """Compare all probabilities, and energies, of the validation and test images; size: of the file, in bytes.

    Raises UserError, with image, class and both numbers, where they differ by more than TOLERANCE.
    """
    classes, counts, largest, worst = model.card.classes, np.zeros(3, np.int64), 0.0, ""
    columns = [*(f"class {name}" for name in classes), "energy"]
    for name in SPLITS:
        split, logits, _ = predict_split(network, model.card, processed, name, batch_size)
        expected = np.concatenate([each.numpy() for each in outputs(logits, model.confidence)], axis=1)
        starts = range(0, len(split), batch_size)
        with _runnable():
            given = np.concatenate([model(split.images[start : start + batch_size]) for start in starts])
            given[:1] = model(split.images[:1])  # alone, as most images come
        difference = np.nan_to_num(np.abs(given - expected) / np.maximum(1, np.abs(expected)), nan=np.inf)
        row, column = np.unravel_index(difference.argmax(), difference.shape)
        if difference[row, column] > largest:
            largest = float(difference[row, column])
            numbers = f"{expected[row, column]:.6g} by torch, {given[row, column]:.6g} by onnxruntime"
            worst = f"{name} image {split.ids[row]}, {columns[column]}: {numbers}"
        given, expected = given[:, : len(classes)], expected[:, : len(classes)]
        second, first = np.sort(expected, axis=1)[:, -2:].T
        other = given.argmax(axis=1) != expected.argmax(axis=1)
        clear = first - second > 2 * TOLERANCE
        counts += (len(split), (other & clear).sum(), (other & ~clear).sum())
    images, changed, ties = counts.tolist()
    if largest > TOLERANCE:
        raise UserError(
            f"the exported model computes something else than torch: {worst} (tolerance {TOLERANCE:g}); {changed:,} of "
            f"{images:,} images get another class; nothing is exported. Choose another model, or export.enabled: false"
        )
    return Export("", TOLERANCE, images, changed, round(size / 1e6, 2), largest, ties)
