"""From logits to what a model answers, one computation for evaluation, prediction and export."""

from torch import Tensor

from reprise.evaluation.confidence import Confidence


def outputs(logits: Tensor, confidence: Confidence) -> tuple[Tensor, ...]:
    """Return probabilities (N, classes) of logits (N, classes) and, if the model has `columns`, energy (N, 1).

    Both are at its temperature (Guo et al., ICML 2017). The energy is the higher, the less an image is like those of
    the training (Liu et al., NeurIPS 2020).
    """
    if not confidence.columns:
        return (logits.softmax(dim=1),)
    logits = logits / confidence.temperature
    return logits.softmax(dim=1), -confidence.temperature * logits.logsumexp(dim=1, keepdim=True)
