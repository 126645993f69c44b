"""Shapes of a checkpoint's tensors, by name. Torch-free."""

from typing import final

from ssl_bench.errors import UserError


class MissingTensor(UserError):
    """A tensor that a checkpoint lacks."""


@final
class Shapes(dict[str, tuple[int, ...]]):
    """Name -> shape; a name that is asked for and missing is the user's to know of, as is a shape that cannot be."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise MissingTensor(f"the checkpoint lacks {name}: is it whole, and of this method?")

    def of(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor that must have so many dimensions.

        Raises:
            MissingTensor: It is not there.
            UserError: It has others.
        """
        shape = self[name]
        if len(shape) != dims or 0 in shape:
            raise UserError(f"the checkpoint's {name} is {shape}: it must have {dims} dimensions")
        return shape
