"""Image transforms on whole batches, each image with an amount of its own.

Unless said otherwise images are float32 (N, C, H, W) in 0..1 with C 1 or 3, and amounts are (N,). Results are in 0..1,
in channels-last memory, on the same device; arguments are not changed. Color formulas are those of PIL and torchvision.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from reprise.runtime.device import to_device

CHANNELS_LAST = torch.channels_last


def crop_flip(images: Tensor, top: Tensor, left: Tensor, mirror: Tensor, padding: int) -> Tensor:
    """Pad images with `padding` black pixels on each side, crop each to its former size, and mirror the chosen ones.

    images: uint8 (N, H, W, C), and so is the result; top, left: corner of the crop, int64 (N,) in 0..2 * padding;
    mirror: left to right, bool (N,). It works on bytes, before the conversion to float makes them four times as large.
    """
    count, height, width, channels = images.shape
    device = images.device
    padded = F.pad(images, (0, 0, padding, padding, padding, padding)) if padding else images
    line, column = torch.arange(height, device=device), torch.arange(width, device=device)
    first = torch.arange(count, device=device) * (height + 2 * padding) + top
    rows = (first[:, None] + line) * (width + 2 * padding)
    columns = left[:, None] + torch.where(mirror[:, None], column.flip(0), column)
    pixels = (rows[:, :, None] + columns[:, None, :]).view(-1)
    return padded.reshape(-1, channels).index_select(0, pixels).view(images.shape)


def to_unit(images: Tensor) -> Tensor:
    """Convert images from uint8 (N, H, W, C) to float32 (N, C, H, W) in 0..1, in channels-last memory."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize images to (N, C, size, size), bilinear and antialiased; images of that size are returned as they are."""
    same = images.shape[2] == size
    return images if same else F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Apply an affine transform to each image, with bilinear resampling.

    theta: (N, 2, 3), from coordinates of the result to coordinates of the image, both in -1..1, as for `F.affine_grid`.
    What lies outside the image is 0, black.
    """
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.contiguous(memory_format=CHANNELS_LAST)


def turn_zoom_shift(angle: Tensor, zoom: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Return theta (N, 2, 3) for `affine`: angle in radians, zoom as a factor, shifts as shares of the image's side."""
    factor = 1 / zoom
    cosine, sine = angle.cos() * factor, angle.sin() * factor
    # coordinates span -1..1, so a shift by a share of the image is twice that share
    return torch.stack([cosine, -sine, 2 * shift_x, sine, cosine, 2 * shift_y], dim=1).view(-1, 2, 3)


def window(share: Tensor, ratio: Tensor, across: Tensor, down: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return top, left, height and width, each int64 (N,) in pixels, of random crops of square images.

    share: of the image's area; ratio: width divided by height, each side limited to the image's; across, down: position
    in [0, 1), 0 for the leftmost and topmost; size: of the images, in pixels.
    """
    height = (size * (share / ratio).sqrt()).round().clamp(1, size).long()
    width = (size * (share * ratio).sqrt()).round().clamp(1, size).long()
    return (down * (size - height + 1)).long(), (across * (size - width + 1)).long(), height, width


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Crop each image to a window of its own and resize it to the size of the image, bilinearly.

    top, left, height, width: int64 (N,), in pixels.
    """
    count, _, rows, columns = images.shape

    def places(first: Tensor, length: Tensor, size: int) -> Tensor:
        """Return sampling coordinates (N, size) in -1..1, clamped to the centers of the window's outermost pixels."""
        middles = (torch.arange(size, device=images.device) + 0.5) / size
        pixels = (middles * length[:, None] - 0.5).clamp(min=0)
        pixels = torch.minimum(pixels, length[:, None] - 1.0) + first[:, None]
        return (2 * pixels + 1) / size - 1

    x = places(left, width, columns)[:, None, :].expand(count, rows, columns)
    y = places(top, height, rows)[:, :, None].expand(count, rows, columns)
    grid = torch.stack([x, y], dim=3)
    cut = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.contiguous(memory_format=CHANNELS_LAST)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by the factor; 0 gives black, 1 changes nothing."""
    return (images * _each(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of the image; factor 0 gives plain gray, 1 changes nothing."""
    return _blend(_luminance(images).mean(dim=(1, 2, 3), keepdim=True), images, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image in gray; factor 0 gives gray, 1 changes nothing. Gray images are returned as they are."""
    return images if images.shape[1] == 1 else _blend(_luminance(images), images, factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue by a share of the color circle, value and saturation kept. Gray images are returned as they are.

    By the closed form of HSV to RGB: with k = (n + 6 hue) mod 6, channel n = 5, 3, 1 (red, green, blue) is value -
    chroma * max(0, min(k, 4 - k, 1)).
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.contiguous().unbind(1)  # planes in contiguous memory: twice as fast
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = chroma.clamp(min=1e-12)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turn[:, None, None]
    k = (sixth[:, None] + torch.arange(5.0, 0.0, -2.0, device=images.device)[:, None, None]) % 6
    turned = value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
    return turned.clamp_(0, 1).contiguous(memory_format=CHANNELS_LAST)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image; factor 0 gives that, 1 changes nothing. Border pixels are unchanged."""
    channels = images.shape[1]
    kernel = torch.ones(3, 3)
    kernel[1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(
        images, to_device(kernel / 13, images.device).expand(channels, 1, 3, 3), groups=channels
    )
    return _blend(smooth, images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the leading bits of each channel's eight; bits: int64 (N,) in 0..8."""
    step = _each(2.0 ** (8 - bits))
    return ((images * 255).round_().div_(step).floor_() * step).div_(255)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert pixels at or above the threshold, in 0..1; a threshold above 1 changes nothing."""
    return torch.where(images >= _each(threshold), 1 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Scale each channel so that its minimum becomes 0 and its maximum 1; constant channels are unchanged."""
    planes = images.contiguous()  # in channels-last memory amin and amax take ten times as long
    low, high = planes.amin(dim=(2, 3), keepdim=True), planes.amax(dim=(2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, images, (images - low) / torch.where(flat, 1, high - low)).clamp_(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Equalize the histogram of each channel, of 256 levels, by PIL's integer formula."""
    count, channels, height, width = images.shape
    levels = (images * 255).round_().long()
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1, 1)
    places = (planes * 256 + levels).flatten()
    # one-dimensional, because then CUDA's scatter_add_ is deterministic
    histogram = torch.zeros(count * channels * 256, dtype=torch.long, device=images.device)
    histogram = histogram.scatter_add_(0, places, torch.ones_like(places)).view(-1, 256)
    used = torch.arange(256, device=images.device) * (histogram > 0)
    brightest = histogram.gather(1, used.amax(dim=1, keepdim=True))
    step = (height * width - brightest) // 255
    below = histogram.cumsum(dim=1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    spread = table.view(-1).index_select(0, places).view(count, channels, height, width)
    return spread.to(images.dtype).div_(255).contiguous(memory_format=CHANNELS_LAST)


def box(middle_y: Tensor, middle_x: Tensor, side: Tensor, height: int, width: int) -> Tensor:
    """Return a mask of squares, bool (N, 1, H, W), cut off at the image's border.

    middle_y, middle_x, side: (N,), as shares of height and width, so in an image that is not square they are
    rectangles.
    """

    def inside(middle: Tensor, size: int) -> Tensor:
        first = ((middle - side / 2) * size).round()
        pixels = torch.arange(size, device=middle.device)
        return (pixels >= first[:, None]) & (pixels < (first + (side * size).round())[:, None])

    return (inside(middle_y, height)[:, :, None] & inside(middle_x, width)[:, None, :])[:, None]


def mix(images: Tensor, targets: Tensor, partner: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each image and its target with those of its partner.

    targets: (N, classes); partner: row numbers, int64 (N,); weight: of the partner at each pixel, (N, 1, H, W) or (N,
    1, 1, 1), in 0..1; the target's weight is its mean.
    """
    other = images.permute(0, 2, 3, 1).index_select(0, partner).permute(0, 3, 1, 2)
    share = weight.mean(dim=(1, 2, 3), dtype=torch.float64).float()[:, None]  # exact for equal weights
    return torch.lerp(images, other, weight), torch.lerp(targets, targets.index_select(0, partner), share)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return one-hot targets, float32 (N, classes); all zero for a label below 0, which is padding."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _each(amount: Tensor) -> Tensor:
    return amount[:, None, None, None]


def _luminance(images: Tensor) -> Tensor:
    """Return luminance (N, 1, H, W), by the weights of ITU-R BT.601."""
    if images.shape[1] == 1:
        return images
    weights = to_device(torch.tensor([0.2989, 0.587, 0.114]), images.device)
    return (images.permute(0, 2, 3, 1) @ weights)[:, None]


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate between `other` (factor 0) and the images (factor 1); other factors extrapolate."""
    return torch.lerp(other.expand_as(images), images, _each(factor)).clamp_(0, 1)
