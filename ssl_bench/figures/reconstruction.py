"""What a method makes of what it hid: input, mask, prediction.

Shapes: B images of 3 x s x s pixels, N patches.
"""

import torch

from ssl_bench.errors import UserError
from ssl_bench.figures.drawing import Cell, folded, to_image
from ssl_bench.figures.masks import cover, pixels
from ssl_bench.figures.opened_run import LeftOut, OpenedRun
from ssl_bench.figures.picture import Picture
from ssl_bench.pretraining.reconstruction import Reconstruction
from ssl_bench.runtime.seeds import derive

SIDE = 96  # pixels of an image in the picture, at most
ALT = "Triples of pictures: an image, the same with most patches covered, and the method's prediction in their place."


def draw(run: OpenedRun, count: int) -> Picture:
    """Some test images, what the method sees of them, and its prediction pasted between the visible patches."""
    found = reconstruction(run, count)
    whole = run.unnormalised(found.input)
    seen = run.unnormalised(pasted(found))
    rows = [
        [Cell(to_image(image, SIDE)), Cell(to_image(cover(image, mask), SIDE)), Cell(to_image(guess, SIDE))]
        for image, mask, guess in zip(whole, found.mask, seen, strict=True)
    ]
    unseen = " It never saw these images in training." if run.own and run.data.test is not None else ""
    caption = (
        f"{len(rows)} {run.images_shown()}, what is left of them with {float(found.mask.float().mean()):.0%} of the "
        f"patches hidden, and {run.title}'s prediction in the place of what was hidden.{unseen}"
    )
    return Picture(folded(["image", "visible", "prediction"], rows), f"{caption} {found.note}".strip(), ALT)


def reconstruction(run: OpenedRun, count: int) -> Reconstruction:
    """The method's, of the first chosen images; its masks are the same whenever this is asked.

    Raises:
        LeftOut: It predicts no pixels, or none that can be shown.
    """
    method = run.method
    if method.product != "backbone":
        raise LeftOut("it is a tokenizer's run, which hides nothing")
    images = run.seen(run.shown, run.chosen(count), method.backbone.img_size).to(run.device)
    mean, std = (torch.tensor(values, device=run.device).view(-1, 1, 1) for values in run.statistics)
    with torch.random.fork_rng():
        torch.manual_seed(derive(run.info.seed, 0))
        try:
            found = method.reconstruction((images - mean) / std)
        except UserError as error:
            raise LeftOut(str(error)) from None
    if found is None:
        raise LeftOut(f"{run.title} predicts no pixels")
    return found


def pasted(found: Reconstruction) -> torch.Tensor:
    """(B, 3, s, s), the prediction where patches were hidden, the input elsewhere."""
    hidden = pixels(found.mask, found.input.shape[-1])[:, None]  # (B, 1, s, s)
    return torch.where(hidden, found.prediction, found.input)
