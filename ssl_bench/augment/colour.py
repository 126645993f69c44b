"""Colour, blur and solarisation of many images at once, each image with its own parameters.

The values are those of torchvision's functions on float images. Fastest when each colour's planes of all images lie
together in memory, as `crop_resize` leaves them; nothing else depends on it.

Shapes: B images (B, 3, H, W) in [0, 1], factors (B,).
"""

from itertools import accumulate

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)
HUE_OF_CHANNEL = (0.0, 2.0, 4.0)  # in sixths of the colour circle


def luma(images: Tensor) -> Tensor:
    """Brightness of each pixel, (B, H, W)."""
    red, green, blue = images.unbind(1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend_(images.clone(), factors, torch.full_like(factors, BRIGHTNESS))


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _blend_(images.clone(), factors, torch.full_like(factors, CONTRAST))


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend_(images.clone(), factors, torch.full_like(factors, SATURATION))


def _blend_(images: Tensor, factors: Tensor, kind: Tensor) -> Tensor:
    """Blend each image in place with black, its mean luma or its luma, by `kind` (B,).

    One code for the three, so that images whose jitter has another order go through it together.
    """
    target = luma(images)
    average = target.mean((1, 2)).mul_(kind == CONTRAST)
    target.mul_((kind == SATURATION)[:, None, None]).add_(average[:, None, None])
    return torch.lerp(target[:, None], images, factors[:, None, None, None], out=images).clamp_(0, 1)


def adjust_hue(images: Tensor, shifts: Tensor, out: Tensor | None = None) -> Tensor:
    """Turn the colour circle by `shifts`, 1 being the full circle; into `out` when given, which may be the images."""
    red, green, blue = images.unbind(1)
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = most.sub_(least)
    # With channels scaled to [0, 1], a colour is 1 + green + blue - red sixths from red, towards green or blue.
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp_min(1e-12)).add_(1)
    hue = torch.copysign(hue, green - blue, out=hue)  # [-3, 3]
    turn = 6 * shifts[:, None] - shifts.new_tensor(HUE_OF_CHANNEL)
    turn -= 6 * torch.round(turn / 6)  # (B, 3), [-3, 3]
    # A channel is full up to 1 from its own hue and gone from 2 on; at 6 it is back at that hue.
    ramp = (hue[:, None] + turn[..., None, None]).abs_().sub_(3).abs_().clamp_(1, 2)
    return torch.addcmul(least.sub_(chroma)[:, None], ramp, chroma[:, None], out=out)


def jitter_(images: Tensor, factors: Tensor, order: Tensor, turns: list[int]) -> Tensor:
    """torchvision's ColorJitter in place, each image with its own factors and order.

    Images come sorted by when their hue is turned, so that it is turned in all of them at once.

    Args:
        images: B of them.
        factors: (B, 4), of brightness, contrast, saturation and hue.
        order: (B, 3), of brightness, contrast and saturation.
        turns: In how many images the hue is turned before, between (twice) and after these.
    """
    factor = factors.gather(1, order)
    reached = list(accumulate(turns))  # images whose hue is turned at this point or earlier
    for stage in range(3):
        later = slice(reached[stage], None)
        _blend_(images[later], factor[later, stage], order[later, stage])
    adjust_hue(images, factors[:, HUE], out=images)
    for stage in range(3):
        earlier = slice(reached[stage])
        _blend_(images[earlier], factor[earlier, stage], order[earlier, stage])
    return images


def grayscale(images: Tensor) -> Tensor:
    return luma(images)[:, None].expand(-1, 3, -1, -1)


def solarize(images: Tensor) -> Tensor:
    """Invert values of 0.5 and more."""
    return torch.minimum(images, 1 - images)


def gaussian_blur(images: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Blur over `taps` x `taps` pixels, mirrored at the border: two matrix products per image and colour."""
    count, channels, height, width = images.shape
    offsets = torch.arange(float(taps), device=images.device) - taps // 2
    kernel = torch.softmax(-0.5 * (offsets / sigma[:, None]).square(), 1)
    kernel = kernel * (kernel > 1e-10)  # products of smaller ones are subnormal numbers: no effect, very slow
    down, along = blur_matrices(kernel, height), blur_matrices(kernel, width).mT
    planes = images.new_empty(channels, count, height, width)
    for channel, plane in enumerate(planes):
        torch.bmm(torch.bmm(down, images[:, channel]), along, out=plane)
    return planes.transpose(0, 1)


def blur_matrices(kernel: Tensor, extent: int) -> Tensor:
    """Matrices (B, extent, extent) that blur a line of pixels by kernels (B, taps)."""
    count, taps = kernel.shape
    assert taps // 2 < extent, "a mirror image is no larger than the image"
    pixels = torch.arange(extent, device=kernel.device)
    reads = (pixels[:, None] + torch.arange(taps, device=kernel.device) - taps // 2).abs()
    reads = (extent - 1) - (extent - 1 - reads).abs()  # (extent, taps)
    dense = kernel.new_zeros(count, extent, extent)
    return dense.scatter_add_(2, reads.expand(count, -1, -1), kernel[:, None].expand(-1, extent, -1))
