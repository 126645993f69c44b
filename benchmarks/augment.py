"""Two SimCLR views per image at 32 px on one thread: batched views against torchvision's per-image pipeline on PIL images.
"""

import random
import statistics
import time
from collections.abc import Callable

import ssl_bench.torchvision_guard  # noqa: F401

# isort: split
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from ssl_bench.augment import DeviceViews
from ssl_bench.views import View

BATCH = 256
REPEATS = 15
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.float)
    images = torch.nn.functional.interpolate(images, 32, mode="bicubic").clamp(0, 255).byte()
    pillows = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    pipeline = per_image()
    batched = DeviceViews([View(32, count=2, jitter=(0.8, 0.8, 0.8, 0.2), grayscale=0.2, blur=0.5)], MEAN, STD)
    generator = torch.Generator().manual_seed(0)

    def ours() -> None:
        for _ in range(8):
            batched(images, generator)

    def theirs() -> None:
        torch.stack([pipeline(image) for image in pillows]), torch.stack([pipeline(image) for image in pillows])

    ours(), theirs()
    rates = [(8 * BATCH / seconds(ours), BATCH / seconds(theirs)) for _ in range(REPEATS)]
    fast, slow = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    print(f"batched {fast:,.0f} images/s, per image {slow:,.0f} images/s, ratio {ratio:.1f}")


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def per_image() -> transforms.Compose:
    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=(0.08, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([blur], p=0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


if __name__ == "__main__":
    main()
