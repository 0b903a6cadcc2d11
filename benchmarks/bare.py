"""The limit: a bare PyTorch loop over tensors that lie ready on the device, with the settings of a training.

No validation, no metrics, no augmentation, nothing that looks at a loss: the least that can be called training; with
the repaired convolutions, so that the loops are compared. Beside it, the real training in this process.
"""

import contextlib
import io
import re
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from reprise.data.formats.packed import load_metadata, load_split
from reprise.loader.batches import stateless_generator
from reprise.model.backbone import create_network
from reprise.model.convolutions import repaired
from reprise.params.schema import Params
from reprise.training.optim import create_optimizer
from reprise.training.train import TrainResult, train


def bare_training(processed: Path, params: Params, where: str = "cpu") -> tuple[float, nn.Module]:
    """Return images/s past the first epoch, and the trained network.

    The order of the images is the real training's, so on a CPU the weights can be, too.
    """
    settings = params.train
    metadata = load_metadata(processed)
    split = load_split(processed, "train")
    network, _ = create_network(params.model, metadata, settings.seed)
    network.to(where)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (metadata.mean, metadata.std))
    images = torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
    images, labels = images.to(where), torch.from_numpy(split.labels).to(where)
    steps = len(images) // settings.batch_size
    optimizer = create_optimizer(network.model, settings)  # norms and biases are not decayed: two groups
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=settings.epochs * steps, cycle_momentum=False
    )
    bf16 = getattr(settings, "precision", "fp32") == "bf16"
    rates = []
    with repaired(network, pointwise=settings.reproducible != "portable"):
        for epoch in range(settings.epochs):
            order = torch.randperm(len(images), generator=stateless_generator(settings.seed, "order", epoch)).to(where)
            started = time.perf_counter()
            for step in range(steps):
                rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
                with torch.autocast(where, torch.bfloat16, enabled=bf16):
                    logits = network(images[rows])
                    loss = F.cross_entropy(logits, labels[rows], label_smoothing=settings.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            loss.item()  # a GPU has then finished, too
            rates.append(steps * settings.batch_size / (time.perf_counter() - started))
    return median(rates[1:] or rates), network


def real_training(processed: Path, params: Params) -> tuple[float, TrainResult]:
    """Return images/s past the first epoch, as its own lines say, and the result of `train`."""
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        result = train(processed, params.model, params.train)
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) images/s", log.getvalue())]
    return median(rates[1:] or rates), result
