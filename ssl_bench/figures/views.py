"""The views of a batch, as the method saw them.

Shapes: B images, V views of each, 3 x s x s pixels.
"""

from ssl_bench.figures.drawing import Cell, folded, to_image
from ssl_bench.figures.opened_run import OpenedRun
from ssl_bench.figures.picture import Picture

WIDTH = 900  # pixels that a row may fill
SIDE = 96  # of the largest view, at most


def draw(run: OpenedRun, count: int) -> Picture:
    """Some images of the first batch of the last epoch, each with all its views, sized as they are to each other."""
    batch, images = run.batch
    views = [run.unnormalised(view[:count]) for view in batch.views]  # V of (B, 3, s, s)
    largest = max(view.shape[-1] for view in views)
    shares = [view.shape[-1] / largest for view in views]
    side = min(SIDE, max(largest if largest <= SIDE else 0, int(WIDTH / (1 + sum(shares)))))
    rows = [
        [Cell(to_image(images[row], side))]
        + [Cell(to_image(view[row], round(side * share))) for view, share in zip(views, shares, strict=True)]
        for row in range(min(count, len(images)))
    ]
    numbers = [f"view {n}" if share > 0.7 else f"{n}" for n, share in enumerate(shares, 1)]
    header = ["image", *(numbers if len(numbers) > 1 else ["view"])]
    caption = _caption(run, [view.shape[-1] for view in views])
    return Picture(folded(header, rows, breaks=(1,)), caption, _alt(len(views)))


def _caption(run: OpenedRun, sizes: list[int]) -> str:
    kinds = [f"{sizes.count(size)} of {size} px" for size in sorted(set(sizes), reverse=True)]
    saw = "saw" if run.own else "would see"
    return (
        f"Training images of {run.data.title} and the views of each that {run.title} {saw} in the first batch of epoch "
        f"{run.epoch + 1} (seed {run.info.seed}): {' and '.join(kinds)}, normalisation undone."
    )


def _alt(views: int) -> str:
    what = f"{views} augmented views" if views > 1 else "augmented view"
    return f"A row for each training image: the image, then its {what}."
