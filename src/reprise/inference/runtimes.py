"""The network on torch; its like on ONNX Runtime is `reprise.export.session`."""

from pathlib import Path

import numpy as np
import torch

from reprise.augment.functional import resized, to_unit
from reprise.evaluation.confidence import Confidence
from reprise.evaluation.temperature import outputs
from reprise.loader.batches import Normalize
from reprise.model.backbone import load_model
from reprise.model.convolutions import repaired
from reprise.runtime.device import device, to_device


class TorchModel:
    """Published weights, on the CPU or, where the model was not trained as `portable`, on a GPU if there is one.

    exact: with the threads of the training, and on a GPU with its kernels, for the time of each call; otherwise with
    those that torch has. Raises UserError as `reprise.model.backbone.load_model` does.
    """

    def __init__(self, weights: Path, card: Path, project: Path, exact: bool, confidence: Confidence) -> None:
        self.network, self.card = load_model(weights, card, project)
        self.threads = self.card.provenance.threads if exact else torch.get_num_threads()
        self.exact, self.confidence = exact, confidence
        self.device = torch.device(device(self.card.provenance.reproducible if exact else "off"))
        self.network.to(self.device)
        self.normalize = Normalize(self.card.preprocessing.mean, self.card.preprocessing.std, self.device)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities, float32 (N, classes), of images, uint8 (N, S, S, C), S: preprocessing.image_size.

        If the model has `confidence.columns`, the energy is one more column.
        """
        own = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        cudnn = torch.backends.cudnn.flags(enabled=True, deterministic=self.exact, allow_tf32=not self.exact)
        try:
            with cudnn, torch.inference_mode(), repaired(self.network, pointwise=False):
                pixels = to_unit(to_device(torch.from_numpy(images), self.device))
                logits = self.network(self.normalize(resized(pixels, self.card.architecture.image_size)))
                return torch.cat(outputs(logits.float().cpu(), self.confidence), dim=1).numpy()
        finally:
            torch.set_num_threads(own)
