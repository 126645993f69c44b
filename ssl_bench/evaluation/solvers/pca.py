"""The directions in which features vary, and how much.

Shapes: n images, D features, R <= min(n - 1, D) axes.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Rows = Callable[[], Iterable[Tensor]]  # gives (some, D) at a time, all n in the same order each time it is called


def pca(rows: Rows, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors and eigenvalues of the covariance, through whichever of the D x D and n x n matrices is smaller.

    Args:
        rows: (n, D) features.
        mean: (D,) float64, theirs.

    Returns:
        (D, R) orthonormal axes, and the (R,) mean squares of the features less their mean along them, rising; float64.
        Fewer images than features have no extent in the directions that are left out.
    """
    few = []
    count, gram = 0, None
    for x in rows():
        centred = x.double() - mean
        count += len(x)
        if gram is None and count < len(mean):
            few.append(centred)
            continue
        if gram is None:
            gram = mean.new_zeros(len(mean), len(mean))
        for part in (*few, centred):
            gram.addmm_(part.T, part)
        few.clear()
    if gram is not None:
        square, axes = torch.linalg.eigh(gram)
        return axes, square.clamp(min=0) / count
    centred = torch.cat(few)  # (n, D), n < D
    square, across = torch.linalg.eigh(centred @ centred.T)
    some = square > 1e-12 * square[-1]
    return centred.T @ (across[:, some] / square[some].sqrt()), square[some] / count
