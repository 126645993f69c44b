"""Sheets of pictures with text, drawn with Pillow: one margin, one font, a light background.

Shapes: 3 x H x W pixels.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LIMIT = 300 * 1024  # bytes of a file
MARGIN, GAP, LINE = 16, 8, 17  # pixels; LINE is a line of text
PAGE = 960  # pixels that a sheet may be wide if it can be narrower
PAPER, INK, MUTED, HIDDEN = "#ffffff", "#1f2328", "#57606a", (222, 222, 218)
RIGHT, WRONG = "#1a7f37", "#b42318"


@dataclass(frozen=True)
class Cell:
    """A picture with a word under it.

    Args:
        image: None for an empty place.
        text: Under it, cut to its width.
        mark: `right` (a tick, a plain frame), `wrong` (a cross, a dashed frame), or none.
    """

    image: Image.Image | None = None
    text: str = ""
    mark: str = ""


def in_colours(pixels: Tensor) -> Tensor:
    """(C, H, W) -> (3, H, W): the first three channels as red, green and blue, or the only one as gray."""
    return pixels[[min(channel, len(pixels) - 1) for channel in range(3)]]


def to_image(pixels: Tensor, side: int) -> Image.Image:
    """(C, H, W) in [0, 1], square, at most about ``side`` pixels wide: small images enlarged by whole numbers."""
    values = (in_colours(pixels).detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(values))
    if image.width <= side:
        size = image.width * (side // image.width)
        return image.resize((size, size), Image.Resampling.NEAREST)
    return image.resize((side, side), Image.Resampling.LANCZOS)


@cache
def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that pictures are the same on every machine."""
    return ImageFont.load_default(size)


def fitted(text: str, width: float, size: int = 13) -> str:
    """The text, or its beginning and an ellipsis, within so many pixels; in one line."""
    text = " ".join(text.split())
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def grid(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], breaks: Sequence[int] = (), blocks: Sequence[int] = ()
) -> Image.Image:
    """Cells in rows and columns, a line of text above each column.

    Args:
        header: Of each column.
        rows: As many cells each.
        breaks: Columns before which there is a wider gap.
        blocks: Columns before which there is a much wider one.
    """
    columns = list(zip(*rows, strict=True))
    words = [max(font().getlength(text) for text in title.split("\n")) for title in header]
    widths = [
        max([cell.image.width for cell in column if cell.image is not None] + [round(word)])
        for column, word in zip(columns, words, strict=True)
    ]
    heights = [max(cell.image.height for cell in row if cell.image is not None) for row in rows]
    texts = [LINE if any(cell.text or cell.mark for cell in row) else 0 for row in rows]
    lefts, x = [], MARGIN
    for number, width in enumerate(widths):
        x += 2 * GAP * (number in breaks) + 5 * GAP * (number in blocks)
        lefts.append(x)
        x += width + GAP
    top = MARGIN + LINE * max(title.count("\n") + 1 for title in header) + 4 if any(header) else MARGIN
    below = sum(heights) + sum(texts) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (x - GAP + MARGIN, top + below + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, title in zip(lefts, header, strict=True):
        draw.multiline_text((left, MARGIN - 2), title, fill=INK, font=font(), spacing=3)
    for row, height, text in zip(rows, heights, texts, strict=True):
        for left, width, cell in zip(lefts, widths, row, strict=True):
            _place(sheet, draw, cell, (left, top), width)
        top += height + text + GAP
    return sheet


def folded(header: Sequence[str], rows: Sequence[Sequence[Cell]], breaks: Sequence[int] = ()) -> Image.Image:
    """The same, in blocks side by side as far as a page is wide; down the first block, then down the next."""
    width = grid(header, rows, breaks).width - 2 * MARGIN
    most = max(1, (PAGE - 2 * MARGIN + 6 * GAP) // (width + 6 * GAP))
    even = max(n for n in range(1, most + 1) if len(rows) % n == 0)
    blocks = even if even > 1 else min(most, len(rows))
    length = -(-len(rows) // blocks)
    filled = [*rows, *([[Cell()] * len(header)] * (blocks * length - len(rows)))]
    wide = [[cell for block in range(blocks) for cell in filled[block * length + row]] for row in range(length)]
    starts = [block * len(header) for block in range(blocks)]
    return grid(list(header) * blocks, wide, [s + b for s in starts for b in breaks], starts[1:])


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, at: tuple[int, int], width: int) -> None:
    if cell.image is None:
        return
    left, top = at
    sheet.paste(cell.image, at)
    bottom = top + cell.image.height + 1
    text_left = left
    if cell.mark:
        frame(draw, (left, top, left + cell.image.width - 1, top + cell.image.height - 1), cell.mark)
        sign(draw, (left, bottom + 2), cell.mark)
        text_left += 16
    if cell.text:
        text = fitted(cell.text, width - (text_left - left))
        draw.text((text_left, bottom), text, fill=MUTED if not cell.mark else INK, font=font())


def frame(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], mark: str) -> None:
    """A plain frame around what is right, a dashed one around what is wrong."""
    left, top, right, bottom = box
    if mark == "right":
        draw.rectangle(box, outline=RIGHT, width=2)
        return
    for start in range(0, max(right - left, bottom - top), 8):
        for y in (top, bottom - 1):
            draw.rectangle((left + start, y, min(left + start + 4, right), y + 1), fill=WRONG)
        for x in (left, right - 1):
            draw.rectangle((x, top + start, x + 1, min(top + start + 4, bottom)), fill=WRONG)


def sign(draw: ImageDraw.ImageDraw, at: tuple[int, int], mark: str) -> None:
    """A tick or a cross, 11 pixels wide."""
    x, y = at
    if mark == "right":
        draw.line([(x, y + 6), (x + 4, y + 10), (x + 11, y + 1)], fill=RIGHT, width=2)
    else:
        draw.line([(x + 1, y + 1), (x + 10, y + 10)], fill=WRONG, width=2)
        draw.line([(x + 1, y + 10), (x + 10, y + 1)], fill=WRONG, width=2)


def encoded(sheet: Image.Image) -> bytes:
    """PNG of at most LIMIT bytes: in true colours, else in 256 of its own, else smaller."""
    while True:
        for image in (sheet, sheet.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)):
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            if buffer.tell() <= LIMIT:
                return buffer.getvalue()
        sheet = sheet.resize((round(sheet.width * 0.8), round(sheet.height * 0.8)), Image.Resampling.LANCZOS)
