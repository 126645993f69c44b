"""Durations and counts as a reader takes them in at a glance."""


def duration(seconds: float) -> str:
    """Two or three digits and a unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} s" if seconds else "-"


def short_count(count: int) -> str:
    """Three digits and G, M or k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
