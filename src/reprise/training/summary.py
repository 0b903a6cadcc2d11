"""What is about to be trained, in four lines: model, memory, data, schedule. Costs two forward passes of one image."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from reprise.model.backbone import count_flops
from reprise.training.setup import Assembly


def summary(made: Assembly) -> str:
    """Return the lines. The network is left as it was, and no random number is drawn.

    Multiply-adds are those of convolutions and matrix products. Memory: weights, gradients and two moments of each
    weight in float32, and what a batch keeps for its backward pass, of one image times the batch size.
    """
    network, architecture, metadata, params = made.network, made.architecture, made.metadata, made.params
    size, device = architecture.image_size, made.process.device
    resized = "" if size == metadata.image_size else f", resized to {size}x{size}"
    resized += f", at first to {params.start_size}x{params.start_size}" if params.start_size else ""
    idle = device == "cpu" and params.accelerator != "cpu" and torch.cuda.is_available()
    unused = " (there is a GPU: train.reproducible: machine would use it)" if idle else ""
    kept = _kept_bytes(network, torch.zeros(1, architecture.in_chans, size, size))
    flops = count_flops(network, architecture)
    operations = "uncounted" if flops is None else f"{flops // 2:,}"
    weights = sum(parameter.numel() for parameter in network.parameters())
    counts = f"model     {architecture.model_name}: {weights:,} parameters, {operations} multiply-adds an image"
    images = f"data      {metadata.data}: {metadata.summary()}{resized}"
    if params.backbone == "frozen":
        how = f"{params.head}, on features of {params.feature_views} views of each image, computed once on {device}"
        return f"{counts}\n{images}\nhead      {how}"
    frozen = f", {params.freeze_epochs} with a frozen backbone" if params.freeze_epochs else ""
    memory = f"memory    about {16 * weights / 1e6:,.1f} MB for weights, gradients and optimizer, "
    memory += f"{kept * made.batches.batch_size / 1e6:,.1f} MB for a batch of {made.batches.batch_size}"
    schedule = f"schedule  {params.epochs} epochs of {made.batches.steps} steps{frozen}, {params.optimizer}, "
    schedule += f"{params.schedule}, learning rate {params.lr:g}, on {device}, {params.reproducible}{unused}"
    return "\n".join([counts, memory, images, schedule])


def _kept_bytes(network: nn.Module, image: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass."""
    own = {parameter.data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = network.training
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network.eval()(image)
    network.train(training)
    return sum(sizes.values())
