"""Where every name of an imported checkpoint went."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class Report:
    """Where every name went.

    Args:
        loaded: Names that are the same here.
        renamed: Name in the file -> name here.
        unused: Name in the file -> reason.
        missing: Name here -> reason.
    """

    loaded: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def lines(self, verbose: bool = False) -> Iterator[str]:
        """A table of counts and reasons; with all names."""
        yield f"loaded  {len(self.loaded):5}"
        yield from (f"               {name}" for name in self.loaded if verbose)
        yield f"renamed {len(self.renamed):5}"
        yield from (f"               {old} -> {new}" for old, new in self.renamed.items() if verbose)
        for title, reasons in (("unused", self.unused), ("missing", self.missing)):
            yield f"{title:8}{len(reasons):5}"
            for reason, count in Counter(reasons.values()).items():
                names = [name for name, why in reasons.items() if why == reason]
                shown = len(names) if verbose else 1
                yield f"        {count:5}  {reason}: {names[0]}{', ...' if count > shown else ''}"
                yield from (f"               {name}" for name in names[1:shown])
