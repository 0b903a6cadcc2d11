"""Outliers: images of which a model's last layer sees something that is far from what it sees of the others.

The distance is that to the k-th nearest neighbor (Ramaswamy, Rastogi and Shim, SIGMOD 2000) among images that the model
has not seen either. It is far where its logarithm is more than 2.5 deviations above the median, by the median absolute
deviation (Leys et al., Journal of Experimental Social Psychology 49, 2013).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reprise.data.formats.packed import Split
from reprise.evaluation.evaluate import predict_split
from reprise.model.artifact import ModelCard
from reprise.model.backbone import TIMMBackbone
from reprise.runtime.errors import UserError

NEAREST = 10  # k, at most: more images than these that are alike are a kind of their own
DIMENSIONS = 256  # of features that are kept; more are projected onto random directions, which nearly keeps distances
FAR = 2.5  # deviations

Answer = tuple[int, np.ndarray, bool]


def watch_last_layer(network: nn.Module, take: Callable[[Tensor], object]) -> RemovableHandle:
    """Return a context in which `take` is handed what the last layer gets of each batch, float32 (N, D), on the CPU.

    That is the classifier that a network of timm's names, or else the last linear layer, or the network itself.
    """
    named = getattr(network, "get_classifier", lambda: None)()
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    layer = named if isinstance(named, nn.Module) else [network, *linear][-1]
    return layer.register_forward_pre_hook(lambda _, given: take(given[0].flatten(1).float().cpu()))


def unseen(network: TIMMBackbone, card: ModelCard, processed: Path, name: Split) -> dict[str, Answer]:
    """Return {id: label, probabilities (K,), whether it is an outlier} of a split that a model has not seen.

    Raises UserError as `predict_split` does, and for answers that are not numbers.
    """
    seen = list[Tensor]()
    with watch_last_layer(network.model, lambda features: seen.append(reduced(features))):
        split, logits, labels = predict_split(network, card, processed, name, batch_size=256)
    features = torch.cat(seen)[: len(labels)]  # without padding
    if not (logits.isfinite().all() and features.isfinite().all()):
        raise UserError("the model's answers are not numbers (NaN); change train.lr, say, and start again")
    probabilities = logits.double().softmax(dim=1).numpy()
    odd = outlying(features.numpy(), probabilities.argmax(axis=1)).tolist()
    return dict(zip(split.ids, zip(labels.tolist(), probabilities, odd, strict=True), strict=True))


def reduced(features: Tensor) -> Tensor:
    """Return features (N, D) in at most DIMENSIONS dimensions, the same ones at each call."""
    directions = torch.randn(features.shape[1], DIMENSIONS, generator=torch.Generator().manual_seed(0))
    return features if features.shape[1] <= DIMENSIONS else features @ directions / DIMENSIONS**0.5


def outlying(features: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return which of N images are outliers, bool (N,), by features (N, D) and predicted classes, int64 (N,).

    k is less than NEAREST, half of them, for a predicted class of few images. Images of equal features count as one.
    """
    from scipy.stats import median_abs_deviation
    from sklearn.neighbors import NearestNeighbors

    units = np.round(features / (features.std() or 1), 3)  # copies in other batches may differ in their last digits
    features, first, copies = np.unique(units, axis=0, return_index=True, return_inverse=True)
    if len(features) < 2 * NEAREST:  # too few to say what is usual
        return np.zeros(len(predicted), bool)
    distances = NearestNeighbors(n_neighbors=NEAREST, algorithm="brute").fit(features.astype(float)).kneighbors()[0]
    k = np.clip(np.bincount(predicted[first])[predicted[first]] // 2, 1, NEAREST)
    far = np.log(distances[np.arange(len(k)), k - 1].clip(1e-9))  # rounding may give 0
    return np.array(far - np.median(far) > FAR * median_abs_deviation(far, scale="normal"))[copies.ravel()]
