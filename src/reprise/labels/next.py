"""Which unlabelled images teach a model most: uncertain ones, and not many of a kind.

The order is farthest-first in the space of the gradients that the last layer would get from an image if the predicted
class were its label (BADGE; Ash et al., Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, ICLR
2020), without BADGE's chance: a gradient is long where the model is unsure, and alike images have alike ones.
"""

import numpy as np


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
