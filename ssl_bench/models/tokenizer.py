"""The contract of a tokenizer: a frozen network that names each patch of an image with one of a vocabulary.

Shapes: B images, g x g visual tokens, V of them in the vocabulary, s pixels of a token's side.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Tokenizer(nn.Module, ABC):
    """What turns images into visual tokens; a plug-in is a subclass that can be built without arguments.

    Attributes:
        vocabulary: V.
        stride: s.
    """

    vocabulary: int
    stride: int

    @abstractmethod
    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, g * s, g * s) images in [0, 1] -> (B, g, g) visual tokens, int64."""

    def pictures(self, visual_tokens: Tensor) -> Tensor | None:
        """(B, g, g) visual tokens -> (B, 3, g * s, g * s) images, about [0, 1]; None if there is no way back."""
        return None
