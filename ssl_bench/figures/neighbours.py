"""The training images whose features are most like those of a test image.

Shapes: Q test images, N training images, D features.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data.splits import Split, TestSplit, TrainSplit
from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.figures.drawing import Cell, grid, to_image
from ssl_bench.figures.opened_run import LeftOut, OpenedRun
from ssl_bench.figures.picture import Picture

NEAREST = 7
SIDE = 96  # pixels of an image in the picture, at most
CHUNK = 4096


def draw(run: OpenedRun, count: int) -> Picture:
    """Some test images, each with its nearest training images, their classes, and whether these are the same."""
    test, train = labelled(run)
    indices = run.chosen(count)
    similarity, found = nearest(run, indices)
    names = run.data.classes or ()
    short = max(map(len, names), default=0) < 4  # then there is room for the cosine
    size = run.network.img_size
    rows = []
    for index, alike, each in zip(indices, similarity, found, strict=True):
        answer = int(test.labels[index])
        cells = [Cell(to_image(run.seen(test, np.array([index]), size)[0], SIDE), names[answer])]
        for image, row, value in zip(run.seen(train, each.numpy(), size), each, alike, strict=True):
            label = int(train.labels[int(row)])
            text = f"{names[label]}, {float(value):.3f}" if short else names[label]
            cells.append(Cell(to_image(image, SIDE), text, "right" if label == answer else "wrong"))
        rows.append(cells)
    right = sum(cell.mark == "right" for row in rows for cell in row[1:])
    total = sum(len(row) - 1 for row in rows)
    header = ["test image", "nearest", *(str(number) for number in range(2, len(rows[0])))]
    caption = (
        f"{len(rows)} test images of {run.data.title} and the {len(rows[0]) - 1} training images nearest to each, by "
        f"cosine of the frozen {run.network.primary_feature_type} features of {run.title}, the nearest first. A tick "
        f"and a plain frame: the same class; a cross and a dashed frame: another. {right} of these {total} neighbours "
        "are of the same class."
    )
    alt = (
        f"A row for each test image: the image, then its nearest training images; {right} of {total} are marked right."
    )
    return Picture(grid(header, rows, breaks=(1,)), caption, alt)


def labelled(run: OpenedRun) -> tuple[TestSplit, TrainSplit]:
    """Test and training split.

    Raises:
        LeftOut: There are no labels, or no test images.
    """
    if run.data.train is None or run.data.test is None:
        raise LeftOut(f"{run.data.title} has no {'labels' if run.data.train is None else 'test images'}")
    if (why := run.data.lacks("classes")) is not None:
        raise LeftOut(why)
    return run.data.test, run.data.train


def nearest(run: OpenedRun, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    """(Q, k) cosines, falling, and indices in the training split, of the nearest to these indices of the test split."""
    test, train = labelled(run)
    frozen = run.network
    feature_type = frozen.primary_feature_type

    def unit(split: Split, rows: Tensor | slice) -> Tensor:
        return F.normalize(frozen.features(split, feature_type, rows), dim=1)

    asked = unit(test, torch.as_tensor(indices))
    bank = (unit(train, slice(at, at + CHUNK)) for at in range(0, len(train), CHUNK))
    similarity, row = neighbours(lambda: [asked], bank, min(NEAREST, len(train)))
    return similarity.cpu(), row.cpu()
