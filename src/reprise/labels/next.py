"""Which unlabelled images teach a model most: uncertain ones, and not many of a kind.

The order is farthest-first in the space of the gradients that the last layer would get from an image if the predicted
class were its label (BADGE; Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR
2020), without BADGE's chance: a gradient is long where the model is unsure, and alike images have alike ones.
"""

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.special import entr

from reprise.data.formats.raw import shown
from reprise.inference.predict import Model
from reprise.inference.sources import decoded, named_images
from reprise.labels.outliers import watch_last_layer
from reprise.labels.review import Candidate
from reprise.runtime.checksums import file_sha256

BATCH = 64


def to_label(model: Model, folder: Path, count: int, workers: int) -> tuple[list[Candidate], list[str]]:
    """Return the images of a folder that teach a model, on torch, most, and those that were left out, with reasons.

    Left out are images that cannot be read, and names that a page cannot show.
    """
    images = decoded(named_images(folder), model.card.preprocessing, workers)
    names, found, left_out = list[str](), list[tuple[np.ndarray, np.ndarray]](), list[str]()
    while batch := list(islice(images, BATCH)):
        good = {name: pixels for name, pixels in batch if not isinstance(pixels, str) and name.isprintable()}
        bad = [(name, pixels) for name, pixels in batch if name not in good]
        left_out += [f"{shown(name)}: {why if isinstance(why, str) else 'an unprintable name'}" for name, why in bad]
        names += good
        found += [_seen(model, np.stack([*good.values()]))] if good else []
    candidates = list[Candidate]()
    if names:
        probabilities, features = map(np.concatenate, zip(*found, strict=True))
        for row in teaching_order(probabilities, features, count):
            *_, second, first = np.argsort(probabilities[row])
            sure, margin = probabilities[row, first], probabilities[row, first] - probabilities[row, second]
            why = f"{sure:.2f} sure, margin {margin:.2f}, entropy {entr(probabilities[row]).sum():.2f}"
            sha256 = file_sha256(folder / names[row])
            candidates.append(Candidate(names[row], "", model.card.classes[first], why, sha256))
    return candidates, left_out


def _seen(model: Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, classes) and what the last layer sees (N, D)."""
    taken = list[torch.Tensor]()
    with watch_last_layer(model.run.network.model, taken.append):
        probabilities = model.probabilities(images)
    return probabilities, taken[0][: len(images)].numpy()


def teaching_order(probabilities: np.ndarray, features: np.ndarray, count: int) -> list[int]:
    """Return the indices of `count` images, the one that teaches most first.

    probabilities: (N, classes); features: (N, D), what the last layer sees. Of equal distances the first image counts.
    """
    classes = probabilities.shape[1]
    wrong = probabilities - np.eye(classes)[probabilities.argmax(axis=1)]
    lengths = (wrong**2).sum(axis=1) * (features**2).sum(axis=1)
    nearest, order = lengths.copy(), list[int]()  # squared distance to what is chosen; at first to a sure image
    for _ in range(min(count, len(probabilities))):
        best = int(nearest.argmax())
        order.append(best)
        inner = (wrong @ wrong[best]) * (features @ features[best])
        nearest = np.minimum(nearest, np.maximum(lengths + lengths[best] - 2 * inner, 0))
        nearest[order] = -1
    return order
