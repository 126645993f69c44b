"""Numbers that are no mean over test images, but follow from sums over them: mean IoU, expected calibration error.

Such a number is T(sum of x_i), x_i what image i adds. Two things are made of it:

- its interval, by the bootstrap: images are drawn with replacement, and T is taken of the sums of those drawn;
- the part of each image, T + n dT/dw_i, w_i being the image's weight (the infinitesimal jackknife; Efron, "The
  Jackknife, the Bootstrap and Other Resampling Plans", 1982, chapter 6). Their mean is T, since T does not change when
  all weights do, and drawing them again moves their mean as drawing images again moves T, to first order. So two
  methods are compared image by image as accuracies are. Of a mean, the part of an image is its own value.

Shapes: N images, P sums, B draws.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from ssl_bench.statistics.intervals import LEVEL

Floats: TypeAlias = NDArray[np.float64]

DRAWS = 2000
STEP = 1e-4  # of a weight, by which the derivative is taken on both sides
AT_ONCE = 2**22  # sums of draws in memory


@final
@dataclass(frozen=True, eq=False)
class Statistic:
    """A number in [0, 1] that follows from sums over images.

    Args:
        sums: (N, P) what each image adds.
        of: (..., P) sums -> (...,) the number; the same for all multiples of the sums.
    """

    sums: Floats
    of: Callable[[Floats], Floats]

    @cached_property
    def value(self) -> float:
        """Of all images."""
        return float(self.of(self.sums.sum(0)))

    def interval(self, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
        """For new images of the same kind: quantiles of the bootstrap.

        Draws are moved so that their mean is the number itself: that of a calibration error is too high, as an error
        that chance makes is never below 0. Deviations are scaled by sqrt(n / (n - 1)), as n drawn of n vary too little.
        """
        n = len(self.sums)
        if n < 2:
            return 0.0, 1.0  # one image says nothing of others
        rng = np.random.default_rng(seed)
        found = []
        step = max(1, AT_ONCE // max(n, self.sums.shape[1]))
        for start in range(0, draws, step):
            times = rng.multinomial(n, np.full(n, 1 / n), min(step, draws - start))  # (B, N)
            found.append(self.of(times.astype(np.float64) @ self.sums))
        moved = np.concatenate(found)
        moved = self.value + (moved - moved.mean()) * math.sqrt(n / (n - 1))
        low, high = np.quantile(moved, [(1 - level) / 2, (1 + level) / 2])
        return max(0.0, min(self.value, float(low))), min(1.0, max(self.value, float(high)))

    def parts(self) -> Floats:
        """(N,) of each image; their mean is the number."""
        total, n = self.sums.sum(0), len(self.sums)
        slope = (self.of(total + STEP * self.sums) - self.of(total - STEP * self.sums)) / (2 * STEP)
        return np.asarray(self.value + n * (slope - slope.mean()))


def mean_of(values: Floats) -> Statistic:
    """The mean of a value of each image."""
    return Statistic(np.stack([values, np.ones(len(values))], 1), lambda sums: sums[..., 0] / sums[..., 1])
