"""What was hidden in the views of a batch, as the method saw them.

Shapes: B images, V masked views of each, N patches, 3 x s x s pixels.
"""

import math

from torch import Tensor

from ssl_bench.figures.drawing import HIDDEN, Cell, folded, in_colours, to_image
from ssl_bench.figures.opened_run import OpenedRun
from ssl_bench.figures.picture import Picture

SIDE = 96  # pixels of a view in the picture, at most


def draw(run: OpenedRun, count: int) -> Picture:
    """Views of the first batch of the last epoch, whole and with their hidden patches covered."""
    masks = run.masks()  # (V, B, N)
    batch, _ = run.batch
    views = [run.unnormalised(view[:count]) for view in batch.views[: len(masks)]]
    rows = [
        [
            cell
            for view, mask in zip(views, masks, strict=True)
            for cell in (Cell(to_image(view[row], SIDE)), Cell(to_image(cover(view[row], mask[row]), SIDE)))
        ]
        for row in range(len(views[0]))
    ]
    numbers = [f"view {number}" for number in range(1, len(views) + 1)] if len(views) > 1 else ["view"]
    header = [text for number in numbers for text in (number, "visible")]
    return Picture(folded(header, rows, breaks=range(2, len(header), 2)), _caption(run, masks), ALT)


ALT = "Pairs of pictures: a view of a training image, and the same view with its hidden patches covered in gray."


def _caption(run: OpenedRun, masks: Tensor) -> str:
    saw = "in" if run.own else "as in"
    shares = masks.float().mean(2)  # (V, B)
    low, high = float(shares.min()), float(shares.max())
    part = f"{low:.0%}" if high - low < 0.005 else f"{low:.0%} to {high:.0%} (on average {float(shares.mean()):.0%})"
    return (
        f"Views of training images of {run.data.title}, and what {run.title} left of them {saw} the first batch of "
        f"epoch {run.epoch + 1} (seed {run.info.seed}): {part} of the {masks.shape[2]} patches of a view are hidden."
    )


def cover(view: Tensor, mask: Tensor) -> Tensor:
    """(C, s, s) -> (3, s, s) with a plain gray where the (N,) mask is True."""
    view = in_colours(view)
    where = pixels(mask, view.shape[-1]).to(view.device)
    gray = view.new_tensor(HIDDEN).view(3, 1, 1) / 255
    return view.where(~where, gray)


def pixels(mask: Tensor, side: int) -> Tensor:
    """(..., N) masks of square patches -> (..., side, side), True for hidden pixels."""
    cells = math.isqrt(mask.shape[-1])
    square = mask.reshape(*mask.shape[:-1], cells, cells)
    return square.repeat_interleave(side // cells, -2).repeat_interleave(side // cells, -1)
