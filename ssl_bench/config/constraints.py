"""What an option's value may be, said in its type: `momentum: UnitInterval = 0.996`. Torch-free.

The types are the plain ones with a note attached (`Annotated`), so that a checker of types sees `float` or `int`. The
command line, configuration files and the environment are held to them (`config/parser.py`), and `--help` shows them.
"""

import math
import os
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, final, get_args, get_origin

MOST_INT = 2**31 - 1  # what torch takes anywhere; no sensible option is near it
MOST_FLOAT = 1e12


class Constraint(ABC):
    """A rule for one value."""

    @abstractmethod
    def described(self) -> str:
        """What a value must be, to follow "must be"; empty where `--help` need not say it."""

    @abstractmethod
    def checked(self, value: Any) -> Any:
        """The value, or what it stands for.

        Raises:
            ValueError: What it must be.
        """


@final
@dataclass(frozen=True)
class Range(Constraint):
    """Finite numbers between two bounds, each included (min, max) or excluded (above, below).

    Args:
        min: The smallest.
        max: The largest.
        above: Larger than this.
        below: Smaller than this.
        also: Single values outside of it that mean something.
        infinite: Infinity counts as a number.
    """

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()
    infinite: bool = False

    def described(self) -> str:
        low = self.min if self.min is not None else self.above
        high = self.max if self.max is not None else self.below
        if self.min is not None and self.max is not None:
            said = f"from {low} to {high}"
        elif self.above is not None and self.below is not None:
            said = f"between {low} and {high}"
        else:
            parts = ("at least", self.min), ("above", self.above), ("at most", self.max), ("below", self.below)
            said = ", ".join(f"{word} {bound}" for word, bound in parts if bound is not None)
        return " or ".join([said, *(f"{value:g}" for value in self.also)])

    def checked(self, value: Any) -> Any:
        if value in self.also:
            return value
        if math.isnan(value) or (math.isinf(value) and not self.infinite):
            raise ValueError(f"must be a finite number, {self.described()}")
        most = MOST_INT if isinstance(value, int) else MOST_FLOAT
        low = (self.min is None or value >= self.min) and (self.above is None or value > self.above)
        high = (self.max is None or value <= self.max) and (self.below is None or value < self.below)
        if not (low and high):
            raise ValueError(f"must be {self.described()}")
        if not math.isinf(value) and self.max is None and abs(value) > most:
            raise ValueError(f"must be at most {most:g}")
        return value


@final
@dataclass(frozen=True)
class Matching(Constraint):
    """Text of a form.

    Args:
        pattern: Regular expression of all of it.
        words: The form in words.
    """

    pattern: str
    words: str

    def described(self) -> str:
        return self.words

    def checked(self, value: Any) -> Any:
        if not re.fullmatch(self.pattern, str(value)):
            raise ValueError(f"must be {self.described()}")
        return value


@final
@dataclass(frozen=True)
class LocalPath(Constraint):
    """A path on this machine: `~` is the home folder, and addresses of the web are refused."""

    def described(self) -> str:
        return ""

    def checked(self, value: Any) -> Any:
        return local_path(str(value))


@final
@dataclass(frozen=True)
class NonEmpty(Constraint):
    """At least one element."""

    def described(self) -> str:
        return ""

    def checked(self, value: Any) -> Any:
        if not len(value):
            raise ValueError("must hold at least one value")
        return value


@final
@dataclass(frozen=True)
class Ascending(Constraint):
    """No element is larger than the next."""

    def described(self) -> str:
        return "in rising order"

    def checked(self, value: Any) -> Any:
        if list(value) != sorted(value):
            raise ValueError(f"must be {self.described()}")
        return value


@final
@dataclass(frozen=True)
class TwoNumbers(Constraint):
    """`low,high` as text, or auto."""

    def described(self) -> str:
        return "two numbers, the first below the second, 0,4095 say, or auto"

    def checked(self, value: Any) -> Any:
        if value != "auto" and two_numbers(value) is None:
            raise ValueError(f"must be {self.described()}")
        return value


PositiveInt = Annotated[int, Range(min=1)]
NonNegativeInt = Annotated[int, Range(min=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(min=0)]
UnitInterval = Annotated[float, Range(min=0, max=1)]
OpenUnitInterval = Annotated[float, Range(above=0, below=1)]
Fraction = Annotated[float, Range(above=0, max=1)]  # of something, but not nothing of it
ProperFraction = Annotated[float, Range(min=0, below=1)]
Seed = Annotated[int, Range(min=0, max=2**32 - 1)]  # what NumPy and Lightning take
ImageSize = Annotated[int, Range(min=4, max=4096)]  # pixels of a side
Width = Annotated[int, Range(min=1, max=65_536)]  # channels of a layer
Depth = Annotated[int, Range(min=0, max=1000)]  # layers, blocks
ScaleRange = Annotated[tuple[Fraction, Fraction], Ascending()]  # smallest and largest part of an image's area
Rates = Annotated[tuple[PositiveFloat, ...], NonEmpty()]
Hue = Annotated[float, Range(min=0, max=0.5)]  # part of the colour circle, either way
PathText = Annotated[str, LocalPath()]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true", "16-true", "64-true"]
FineTunePrecision = Literal["auto", "32-true", "bf16-mixed"]
FeatureType = Annotated[
    str,
    Matching(
        r"cls|avg|cls\+avg|cls_4|cls_raw|avg_raw|gap|pixels|kmeans",
        "one of cls, avg, cls+avg, cls_4, cls_raw, avg_raw, gap, pixels, kmeans",
    ),
]
RandAugment = Annotated[
    str, Matching(r"rand(-(m|n|p|w|mstd|mmax|inc)\d+(\.\d+)?)+", "as timm writes it, such as rand-m9-mstd0.5-inc1")
]
Device = Annotated[
    str, Matching(r"auto|cpu|mps|cuda(:\d{1,3})?", "auto, cpu, mps, cuda, or cuda:N of the N-th GPU from 0")
]


def checked(annotation: Any, value: Any) -> Any:
    """A value of an option, held to all that its type says.

    Raises:
        ValueError: What it must be instead, to follow the option's name and its value.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *notes = get_args(annotation)
        constraints = [note for note in notes if isinstance(note, Constraint)]
        if not any(isinstance(constraint, Range) for constraint in constraints):
            value = checked(inner, value)
        for constraint in constraints:
            value = constraint.checked(value)
        return value
    if origin in (Union, types.UnionType):
        return _one_of(get_args(annotation), value)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = get_args(annotation)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return type(value)(_element(kind, item) for kind, item in zip(kinds, value, strict=True))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


def two_numbers(text: str) -> tuple[float, float] | None:
    """`low,high`; None if it is not that, or the first is not below the second."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def constraints_of(annotation: Any) -> Iterator[Constraint]:
    """All rules in a type, at any depth."""
    for part in get_args(annotation):
        if isinstance(part, Constraint):
            yield part
        else:
            yield from constraints_of(part)


def plain_type(annotation: Any) -> Any:
    """The type without its rules, where they are the outermost."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def local_path(text: str) -> str:
    """A path with `~` and `~user` expanded.

    Raises:
        ValueError: It is a web address, or names a user there is not; to follow the path.
    """
    if text.lower().startswith("file:"):
        plain = re.sub("^file:/*", "/", text, flags=re.IGNORECASE)
        raise ValueError(f"is a web address: give the path itself, {plain}")
    if re.match(r"[A-Za-z][\w+.-]*:/", text):
        raise ValueError("is a web address, and files are read and written here alone: copy or mount it first")
    if "::" in text:
        raise ValueError("holds '::', which storage libraries take for a chain of addresses: choose another name")
    if "\0" in text:
        raise ValueError("holds a zero byte, which no path has")
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        raise ValueError(
            f"names the home of a user that there is not: write it out, or ./{text} for a folder called so"
        )
    return expanded


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    """The value as one of several types has it."""
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        base = plain_type(kind)
        base = get_origin(base) or base
        suits = (
            isinstance(value, list | tuple)
            if base is tuple
            else type(value) is base or (base is float and type(value) is int)
        )
        if suits or base in (Any, Literal):
            try:
                return checked(kind, value)
            except ValueError as error:
                problems.append(str(error))
    if problems:
        first, *others = dict.fromkeys(problems)
        raise ValueError(", or ".join([first, *(other.removeprefix("must be ") for other in others)]))
    return value


def _element(kind: Any, value: Any) -> Any:
    try:
        return checked(kind, value)
    except ValueError as error:
        raise ValueError(f"{value} {error}") from None
