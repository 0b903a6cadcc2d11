"""predictions.csv: label, predicted class and probabilities of each test image; writer and reader, without torch."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reprise.runtime.tables import plain, write_csv

Judged = Sequence[dict[str, Any]]
COLUMNS = ["id", "label", "predicted"]  # then p(CLASS) of each class, and what `Confidence.judge` adds


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images: N ids; labels and predicted, class names (N,); probabilities, float64 (N, classes)."""

    classes: list[str]
    ids: list[str]
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray


def write_predictions(
    path: Path, classes: list[str], ids: list[str], labels: list[int], probabilities: np.ndarray, judged: Judged = ()
) -> None:
    """Write ids (N), labels (N) by index and probabilities (N, classes), of 6 digits; judged: of each image, if any."""
    more = map(cells, judged or [{}] * len(ids))
    images = zip(ids, labels, probabilities.argmax(axis=1).tolist(), probabilities.tolist(), more, strict=True)
    rows = ([i, classes[own], classes[best], *(f"{p:.6g}" for p in row), *added] for i, own, best, row, added in images)
    write_csv(path, [*COLUMNS, *(f"p({name})" for name in classes), *(judged[0] if judged else ())], rows)


def cells(judged: dict[str, Any]) -> list[Any]:
    """Return what `Confidence.judge` gave as cells of a CSV; a set, whose classes have any names, and true as JSON."""
    return [value if isinstance(value, float) else json.dumps(value, ensure_ascii=False) for value in judged.values()]


def read_predictions(content: str) -> Predictions:
    """Parse the text of such a file. Raises ValueError if this version has not written it."""
    header, *rows = csv.reader(io.StringIO(content, newline=""))
    classes = [name[2:-1] for name in header[3:] if name.startswith("p(")]
    ids, labels, predicted = ([plain(row[column]) for row in rows if len(row) == len(header)] for column in range(3))
    if header[:3] != COLUMNS or not rows or len(set(ids)) < len(rows):
        raise ValueError("not predictions of this version")
    probabilities = np.array([row[3 : 3 + len(classes)] for row in rows], dtype=np.float64).reshape(
        len(rows), len(classes)
    )
    return Predictions(classes, ids, np.array(labels, dtype=object), np.array(predicted, dtype=object), probabilities)
