"""A map of the features of test images, coloured by class.

Shapes: M images on the map, D features, K classes shown.
"""

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ssl_bench.figures.drawing import INK, LINE, MARGIN, MUTED, PAPER, fitted, font
from ssl_bench.figures.neighbours import labelled
from ssl_bench.figures.opened_run import LeftOut, OpenedRun
from ssl_bench.figures.picture import Picture

POINTS, CLASSES, AXES = 1000, 20, 50  # at most: images, classes with a name, principal axes that t-SNE is given
SIZE, LEGEND = 620, 170  # pixels: of the map, of the widest name beside it
FINER = 3  # times that it is drawn larger before it is brought to its size, for smooth edges
# Dark enough on white, and told apart by most who see few colours; the shape tells classes apart as well.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b3589a", "#8a6d00", "#56b4e9", "#7f3c00", "#4b4b4b", "#e69f00", "#5e3c99")
SHAPES = ("circle", "square", "triangle", "diamond", "cross")


def draw(run: OpenedRun, count: int) -> Picture:
    """Features of test images in two dimensions; ``count`` is of pictures of images, of which there are none here."""
    from sklearn.metrics import pairwise_distances

    indices, labels = sample(run)
    features = F.normalize(run.network.features(labelled(run)[0], run.network.primary_feature_type), dim=1)
    points = embedding(features[indices].cpu().double().numpy())
    known = sorted(set(labels.tolist()))
    names = [(run.data.classes or ())[k] for k in known]
    image = scatter(points, np.searchsorted(known, labels), styles(len(known)), names)
    distance = pairwise_distances(points)
    np.fill_diagonal(distance, np.inf)
    same = float((labels[distance.argmin(1)] == labels).mean())
    chance = float((np.bincount(labels) ** 2).sum() / len(labels) ** 2)
    all_classes = len(run.data.classes or ())
    some = f" of {len(known)} of the {all_classes} classes" if len(known) < all_classes else ""
    caption = (
        f"{len(labels)} test images of {run.data.title}{some} where t-SNE puts their frozen "
        f"{run.network.primary_feature_type} features ({run.title}): length 1, at most {AXES} principal axes, "
        f"perplexity 30, seed 0. Near means alike; distances between groups and sizes of groups mean little. "
        f"{same:.0%} have a point of their own class as nearest on the map ({chance:.0%} by chance)."
    )
    alt = f"A scatter plot of {len(labels)} points in {len(known)} colours and shapes, one for each class."
    return Picture(image, caption, alt)


def sample(run: OpenedRun) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices in the test split and classes of the images on the map, of each class as many as there can be.

    Raises:
        LeftOut: There are no labels, or too few images.
    """
    test, _ = labelled(run)
    classes = np.unique(test.labels)
    if len(classes) > CLASSES:
        classes = classes[np.linspace(0, len(classes) - 1, CLASSES).round().astype(int)]
    order = np.random.default_rng(0).permutation(len(test))
    each = POINTS // len(classes)
    indices = np.concatenate([order[test.labels[order] == k][:each] for k in classes])
    if len(indices) < 10:
        raise LeftOut(f"{len(indices)} test images make no map")
    return indices, test.labels[indices]


def embedding(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, D) -> (M, 2), the same for the same features."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    axes = min(AXES, *features.shape)
    with np.errstate(invalid="ignore"):  # features that are all the same vary by 0, which PCA divides by
        flat = PCA(axes, svd_solver="full").fit_transform(features)
    perplexity = min(30.0, (len(features) - 1) / 3)
    start = 1e-4 * flat[:, :2] / flat[:, 0].std() if flat[:, 0].std() > 0 else "random"
    found = TSNE(2, perplexity=perplexity, init=start, random_state=0).fit_transform(flat)
    return np.asarray(found, dtype=np.float64)


def styles(count: int) -> list[tuple[str, str]]:
    """A colour and a shape for each of so many classes, no two alike up to CLASSES."""
    return [(COLOURS[n % len(COLOURS)], SHAPES[(n + n // len(COLOURS)) % len(SHAPES)]) for n in range(count)]


def scatter(
    points: NDArray[np.float64], which: NDArray[np.int64], drawn: list[tuple[str, str]], names: list[str]
) -> Image.Image:
    """(M, 2) points with the style of their class, a legend beside them."""
    low, high = points.min(0), points.max(0)
    placed = 10 + (SIZE - 20) * (points - (low + high) / 2 + (high - low).max() / 2) / max((high - low).max(), 1e-9)
    large = Image.new("RGB", (FINER * SIZE, FINER * SIZE), PAPER)
    pen = ImageDraw.Draw(large)
    for index in np.random.default_rng(0).permutation(len(points)):  # or the last class would cover the others
        x, y = FINER * placed[index]
        marker(pen, (x, y), FINER * 4.0, *drawn[which[index]])
    wide = MARGIN + SIZE + MARGIN + 20 + min(LEGEND, round(max(font().getlength(name) for name in names))) + MARGIN
    sheet = Image.new("RGB", (wide, SIZE + 2 * MARGIN), PAPER)
    sheet.paste(large.resize((SIZE, SIZE), Image.Resampling.LANCZOS), (MARGIN, MARGIN))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((MARGIN, MARGIN, MARGIN + SIZE, MARGIN + SIZE), outline="#d0d7de")
    left, top = MARGIN + SIZE + MARGIN, MARGIN
    draw.text((left, top), "class", fill=MUTED, font=font())
    for name, style in zip(names, drawn, strict=True):
        top += LINE + 6
        draw.text((left + 20, top), fitted(name, LEGEND), fill=INK, font=font())
        sign = Image.new("RGB", (FINER * 14, FINER * 14), PAPER)
        marker(ImageDraw.Draw(sign), (FINER * 7.0, FINER * 7.0), FINER * 5.0, *style)
        sheet.paste(sign.resize((14, 14), Image.Resampling.LANCZOS), (left, top + 2))
    return sheet.quantize(256, dither=Image.Dither.NONE)  # a third of the bytes, and no difference to see


def marker(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, colour: str, shape: str) -> None:
    """A point."""
    (x, y), r = at, radius
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=PAPER)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour, outline=PAPER)
    elif shape == "triangle":
        pen.polygon([(x, y - 1.1 * r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=colour, outline=PAPER)
    elif shape == "diamond":
        pen.polygon([(x, y - 1.2 * r), (x + r, y), (x, y + 1.2 * r), (x - r, y)], fill=colour, outline=PAPER)
    else:
        pen.line([(x - r, y - r), (x + r, y + r)], fill=colour, width=round(0.7 * r))
        pen.line([(x - r, y + r), (x + r, y - r)], fill=colour, width=round(0.7 * r))
