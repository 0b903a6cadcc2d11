"""Batched augmentation: each image gets its own random turn, zoom, shift and flip, in a few tensor operations.

Random numbers come from a generator that the caller seeds from (seed, epoch, step), never from carried-along state.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reprise.params import AugmentParams


def augment(images: Tensor, params: AugmentParams, generator: torch.Generator) -> Tensor:
    """Return randomly changed images; (N, C, H, W) float in and out.

    Turn, zoom and shift are one bilinear resampling; what moves in from outside is 0, black. The generator is advanced
    by the same amount whatever the params are, so switching one kind of change on leaves the others' draws alone.
    """
    count = len(images)
    turn, zoom, shift_x, shift_y, flip = torch.rand(5, count, generator=generator).to(images.device)
    if params.flip:
        images = torch.where((flip < 0.5)[:, None, None, None], images.flip(3), images)
    if params.rotate == params.scale == params.shift == 0:
        return images
    angle = (2 * turn - 1) * math.radians(params.rotate)
    factor = 1 / (1 + (2 * zoom - 1) * params.scale)
    cosine, sine = angle.cos() * factor, angle.sin() * factor
    # the grid spans -1..1, so a shift by a share of the image is twice that share
    offset_x, offset_y = (2 * shift_x - 1) * 2 * params.shift, (2 * shift_y - 1) * 2 * params.shift
    theta = torch.stack([cosine, -sine, offset_x, sine, cosine, offset_y], dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
