"""A picture of a run, with its caption and what it shows in text."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Args:
        image: As it will be saved.
        caption: What it shows and what to know of it, in sentences.
        alt: What somebody sees who cannot see it, in a sentence.
    """

    image: Image.Image
    caption: str
    alt: str
