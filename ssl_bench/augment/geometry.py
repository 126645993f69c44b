"""Random resized crops of many images at once, each image with its own box: two small matrix products per image.

Shapes: B images of H x W pixels, s x s pixels of a view. Boxes are rows (top, left, height, width), in pixels.
"""

import math

import torch
from torch import Tensor

ATTEMPTS = 10
HALF_WIDTH = {"bicubic": 2, "bilinear": 1}  # of the interpolation filter, in pixels


def draw_boxes(
    count: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Boxes (count, 4) as torchvision's RandomResizedCrop draws them: ten attempts each, then a central crop."""
    device = generator.device
    attempts = torch.rand(count, ATTEMPTS, 2, generator=generator, device=device)
    corners = torch.rand(count, 2, generator=generator, device=device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * attempts[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * attempts[..., 1])
    heights, widths = torch.round(torch.sqrt(area / aspect)), torch.round(torch.sqrt(area * aspect))
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)

    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    sides = torch.cat([heights.gather(1, first), widths.gather(1, first)], 1)
    room = torch.tensor([height, width], device=device) - sides
    corners = torch.minimum(torch.floor(corners * (room + 1)), room)  # float32 may round u * n up to n
    boxes = torch.cat([corners, sides], 1).long()
    central = torch.tensor(central_box(height, width, ratio), device=device)
    return torch.where(fits.any(1, keepdim=True), boxes, central)


def central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central box whose width over height is within the range."""
    box_height, box_width = height, width
    if width < height * ratio[0]:
        box_height = round(width / ratio[0])
    elif width > height * ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def crop_resize(images: Tensor, boxes: Tensor, size: int, interpolation: str, flip: Tensor) -> Tensor:
    """Cut, resize with antialiasing and mirror where `flip`; (B, 3, H, W) uint8 to (B, 3, s, s) in [0, 1].

    The values are those of torchvision's `resized_crop` on float images. In memory each colour's planes of all images
    lie together, which makes the colour operations fast.
    """
    count, channels, height, width = images.shape
    starts, lengths = boxes.T.reshape(2, 2 * count)  # of all rows, then of all columns
    mirror = torch.cat([torch.zeros_like(flip), flip])
    weights = resize_weights(starts, lengths, max(height, width), size, interpolation, mirror)
    rows, columns = weights[:count, :, :height] / 255, weights[count:, :, :width]  # (B, s, H), (B, s, W)
    wide = images.float().view(count, channels * height, width)
    narrow = torch.bmm(wide, columns.mT).view(count, channels, height, size)
    planes = narrow.new_empty(channels, count, size, size)
    for channel, plane in enumerate(planes):
        torch.bmm(rows, narrow[:, channel], out=plane)
    return planes.clamp_(0, 1).transpose(0, 1)  # bicubic overshoots


def resize_weights(start: Tensor, length: Tensor, extent: int, size: int, interpolation: str, mirror: Tensor) -> Tensor:
    """Matrices (B, s, extent) that resize the part [start, start + length) of a line of `extent` pixels to s pixels.

    Pixels outside that part have no weight and the others sum to one, as in torch's antialiased `interpolate`.
    """
    half_width = HALF_WIDTH[interpolation]
    taps = math.ceil(2 * half_width * max(1.0, extent / size))
    start, length = start.float()[:, None], length.float()[:, None]
    step = length / size
    stretch = step.clamp_min(1)  # when shrinking, the filter is as wide as in the result's pixels
    outputs = torch.arange(0.5, size, device=start.device)
    centre = torch.where(mirror[:, None], size - outputs, outputs) * step  # (B, s)
    window = torch.arange(float(taps), device=start.device)[:, None, None]
    pixels = torch.floor(centre + 0.5 - half_width * stretch) + window  # (taps, B, s)
    inside = torch.minimum(pixels.clamp_min(0), length - 1)
    distance = ((pixels - (centre - 0.5)) / stretch).abs_()
    distance.add_(pixels.sub_(inside).abs_(), alpha=half_width)  # out of the filter's reach when out of the box
    weights = cubic(distance) if interpolation == "bicubic" else triangle(distance)
    weights /= weights.sum(0)
    dense = weights.new_zeros(len(start), size, extent)
    return dense.scatter_add_(2, inside.add_(start).long().permute(1, 2, 0), weights.permute(1, 2, 0))


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, at distances of 0 or more."""
    outer = (2 - distance).clamp_min_(0)
    inner = (outer - 1).clamp_min_(0)
    # Within [1, 2] it is outer^2 (outer - 1) / 2; within [0, 1] inner^2 (1 - 2 inner) comes on top.
    return (outer * outer).mul_(outer.sub_(1)).mul_(0.5).addcmul_(inner * inner, 1 - 2 * inner)


def triangle(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min_(0)
