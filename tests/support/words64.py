"""A tokenizer of 64 visual tokens, as a user's own package would bring it."""

from torch import Tensor

from ssl_bench.models.tokenizer import Tokenizer


class Words64(Tokenizer):
    """Stands for the tokenizer of the golden CAE, whose visual tokens its loss is given."""

    size = 1

    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = 64

    def visual_tokens(self, images: Tensor) -> Tensor:
        raise AssertionError("the tokens are given")
