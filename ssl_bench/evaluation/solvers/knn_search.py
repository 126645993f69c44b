"""The most similar rows of a bank: exactly, without taking all similarities exactly.

On a CPU, all similarities are first taken coarsely: in bfloat16, where the processor multiplies that many times faster.
How far they can be from the exact ones has a bound, which follows from what rounding did to these very vectors. The
k-th largest of the maxima of groups of rows is at most the k-th largest similarity, so rows that are below it by more
than the bound are none of the k. Of the few that are left the product is taken in float32, each pair by itself, and
these are ranked: what is coarse decides nothing, and no query's neighbours depend on the other queries.

Before they are rounded, vectors are moved by the mean c of the rows: q . b = q . c + c . (b - c) + (q - c) . (b - c).
The first term is the same for all rows, the second is kept in two parts, and only the third is coarse. Where all
cosines are 0.99 its factors are short, so that the bound is small beside what tells the rows apart.

Shapes: Q queries, N rows of the bank, D features; q, n of them at a time, n <= m padded to whole groups; k neighbours;
c pairs of a row and a query, candidates.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_bench.runtime.precision import full_precision

QUERIES = 512  # at a time: 768 float32 features of each stay in a processor's cache
ROWS = 2**16  # of the bank at a time, at most: a row's number then has 16 bits
GROUP = 8  # rows of which only the largest coarse similarity is looked at first
CANDIDATES = 2**22  # at a time, at most, unless a single query has more
PADDING = -1e30  # coarse similarity of rows that are none
UNIT = 2.0**-24  # relative rounding error of float32

Found = tuple[Tensor, Tensor]  # similarities and rows, the most similar first


@full_precision()
def neighbours(queries: Callable[[], Iterable[Tensor]], bank: Iterable[Tensor], k: int) -> Found:
    """The k rows of the bank most similar to each query, or all if it has fewer; of equals, the lower row.

    Args:
        queries: Gives (q, D) float32 vectors of length 1 (or 0), chunk by chunk, each time it is called.
        bank: (n, D) of the same feature type, chunk by chunk.
        k: How many.

    Returns:
        (Q, k) similarities, falling, and (Q, k) rows.
    """
    best: list[Found] = []  # of each chunk of queries
    offset = 0
    for chunk in bank:
        for rows in chunk.split(ROWS):
            part = Part.of(rows, coarse_format()) if rows.device.type == "cpu" else None
            for at, query in enumerate(query for given in queries() for query in given.split(QUERIES)):
                known = best[at][0] if at < len(best) else None
                similarity, row = part.nearest(query, k, known) if part is not None else ranked(rows, query, k)
                found = similarity, row + offset
                if known is None:
                    best.append(found)
                else:
                    best[at] = merged(best[at], found, k)
            offset += len(rows)
            del part, rows  # before the next are there
        del chunk
    return torch.cat([similarity for similarity, _ in best]), torch.cat([row for _, row in best])


@full_precision()
def nearest(queries: Callable[[], Iterable[Tensor]], bank: Iterable[Tensor], k: int) -> Found:
    """The same by Euclidean distance, of vectors of any length, and without a coarse search.

    Vectors are moved by the mean of the bank's first chunk, which changes no distance and keeps float32 exact enough.

    Returns:
        (Q, k) minus half of the squared distances, but for what all rows share, falling; and (Q, k) rows.
    """
    best: list[Found] = []
    offset, centre = 0, None
    for chunk in bank:
        centre = chunk.mean(0) if centre is None else centre
        for rows in chunk.split(ROWS):
            rows = torch.cat([rows - centre, -(rows - centre).square().sum(1, keepdim=True) / 2], 1)  # (n, D + 1)
            for at, query in enumerate(query for given in queries() for query in given.split(QUERIES)):
                moved = torch.cat([query - centre, query.new_ones(len(query), 1)], 1)
                similarity, row = ranked(rows, moved, k)
                if at < len(best):
                    best[at] = merged(best[at], (similarity, row + offset), k)
                else:
                    best.append((similarity, row + offset))
            offset += len(rows)
    return torch.cat([similarity for similarity, _ in best]), torch.cat([row for _, row in best])


def merged(first: Found, second: Found, k: int) -> Found:
    """The k best of two lists of (q, some), all rows of the second being the higher."""
    similarity, row = (torch.cat(both, 1) for both in zip(first, second, strict=True))
    order = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
    return similarity.gather(1, order), row.gather(1, order)


@full_precision()
def ranked(rows: Tensor, query: Tensor, k: int) -> Found:
    """The same without a coarse search: (q, min(k, n)) similarities and rows."""
    similarity = query @ rows.T  # (q, n)
    keys = (numbered(similarity) << 16) + torch.arange(len(rows), device=rows.device)
    keys = keys.topk(min(k, len(rows)), dim=1, largest=False).values
    return similarities(keys >> 16), keys & 0xFFFF


def coarse_format() -> torch.dtype:
    """bfloat16 where this processor has instructions that multiply it."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older ones do not tell
    return torch.bfloat16 if capabilities.get("avx512_bf16") else torch.float32


@dataclass(frozen=True)
class Part:
    """Some rows of the bank, on a CPU, and what a coarse search needs to know of them.

    Args:
        rows: (n, D), n at most ROWS.
        centre: (D,), about their mean: c.
        coarse: (m, E) rounded b - c, its product with c in two parts, and zeros.
        length: Of the longest b - c.
        rounding: Length of what rounding changed of a b - c, at most.
        remainder: What its two parts leave of a product with c, at most.
        buffer: (m QUERIES,) for coarse similarities; asking the system for new memory takes as long as the product.
    """

    rows: Tensor
    centre: Tensor
    coarse: Tensor
    length: float
    rounding: float
    remainder: float
    buffer: Tensor

    @classmethod
    def of(cls, rows: Tensor, coarse_as: torch.dtype) -> "Part":
        n, dim = rows.shape
        centre = rows[:: -(-n // 4096)].mean(0)
        coarse = rows.new_zeros(-(-n // 64) * 64, -(-(dim + 2) // 16) * 16, dtype=coarse_as)
        coarse[n:, dim] = PADDING
        most = rows.new_zeros(3)
        for part, out in zip(rows.split(256), coarse[:n].split(256), strict=True):
            moved = part - centre
            out[:, :dim] = moved
            product = moved @ centre
            out[:, dim] = product
            rest = product - out[:, dim].float()
            out[:, dim + 1] = rest
            changes = moved - out[:, :dim].float()
            sizes = moved.norm(dim=1), changes.norm(dim=1), (rest - out[:, dim + 1].float()).abs()
            most = most.maximum(torch.stack([size.amax() for size in sizes]))
        length, rounding, remainder = most.tolist()
        return cls(rows, centre, coarse, length, rounding, remainder, coarse.new_empty(len(coarse) * QUERIES))

    def nearest(self, query: Tensor, k: int, known: Tensor | None = None) -> Found:
        """(q, min(k, n)) similarities and rows; -inf and any row instead of such as others rule out.

        Args:
            query: (q, D), q at most QUERIES.
            k: How many.
            known: (q, k or fewer) similarities of others, falling: if they are k, what is below the last is not wanted.
        """
        candidates = self._candidates(query, k, known)
        if candidates is None:  # too many at once
            halves = [slice(0, len(query) // 2), slice(len(query) // 2, None)]
            found = [self.nearest(query[half], k, None if known is None else known[half]) for half in halves]
            return torch.cat([similarity for similarity, _ in found]), torch.cat([row for _, row in found])
        row, column = candidates
        # By query, then similarity, then row. NumPy sorts integers many times faster than torch.
        keys = (column << 48) + (numbered(dots(self.rows, query, row, column)) << 16) + row
        keys = F.pad(torch.from_numpy(np.sort(keys.numpy())), (0, 1))
        counts = column.bincount(minlength=len(query))
        place = torch.arange(min(k, len(self.rows)))
        there = place < counts[:, None]
        keys = keys[((counts.cumsum(0) - counts)[:, None] + place).where(there, -1)]
        return similarities(keys >> 16 & 0xFFFFFFFF).where(there, -torch.inf), keys & 0xFFFF

    def _candidates(self, query: Tensor, k: int, known: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """(c,) rows, rising, and (c,) queries that may be neighbours; None if they are more than CANDIDATES."""
        q, m = len(query), len(self.coarse)
        similarity, error = self._coarse_similarity(query)  # (m, q), (q,)
        exact = 2 * query.shape[1] * UNIT  # error of products of vectors of length 1, twice
        lowest = torch.full_like(error, PADDING / 2)
        if known is not None and known.shape[1] == k:
            lowest = known[:, -1] - query @ self.centre - error - 2 * exact
        bits = similarity.view(torch.int16 if similarity.dtype == torch.bfloat16 else torch.int32).numpy()
        for ordered in (False, True):
            # Positive floats are ordered as their bits are. It takes changing the bits only where some are negative.
            if ordered:
                bits = monotonic(bits)
            groups = torch.from_numpy(bits).view(GROUP, m // GROUP, q).amax(0).numpy()
            kth = kth_of_maxima(groups, k)  # (q,)
            least = lowest
            if kth is not None:
                bound = torch.from_numpy(monotonic(kth) if ordered else kth).view(similarity.dtype).float()
                bound -= torch.finfo(similarity.dtype).eps / 2 * bound.abs()  # what its own rounding may have added
                least = lowest.maximum(bound - 2 * error - exact)
            least = least.to(similarity.dtype)
            if bool((least > 0).all()):
                break
        least_bits = least.view(torch.from_numpy(bits).dtype).numpy()
        least_bits = monotonic(least_bits) if ordered else least_bits
        pairs = np.flatnonzero(groups >= least_bits)  # of a group and a query
        if len(pairs) * GROUP > CANDIDATES and q > 1:
            return None
        group, column = divided(pairs, q)
        where = torch.from_numpy(pairs).expand(GROUP, -1)
        members = torch.from_numpy(bits).view(GROUP, -1).gather(1, where).numpy()  # (GROUP, pairs)
        member, found = divided(np.flatnonzero(members >= least_bits[column]), max(1, len(pairs)))
        row = member * np.int32(m // GROUP) + group[found]
        return torch.from_numpy(row).long(), torch.from_numpy(column[found]).long()

    def _coarse_similarity(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """(m, q) coarse similarities, less that of each query with the centre, and the (q,) largest errors.

        The error is that before the similarity itself was rounded to its format, which keeps the order.
        """
        dim, width = len(self.centre), self.coarse.shape[1]
        moved = query - self.centre
        coarse = F.pad(moved, (0, width - dim)).to(self.coarse.dtype)  # (q, E)
        coarse[:, dim : dim + 2] = 1
        buffer = self.buffer[: len(self.coarse) * len(query)].view(-1, len(query))
        similarity = torch.mm(self.coarse, coarse.T, out=buffer)
        rounded = coarse[:, :dim].float()
        length, rounding = rounded.norm(dim=1), (moved - rounded).norm(dim=1)
        summing = (width + 16) * UNIT  # of a sum, in whatever order; of the steps before it
        error = rounding * self.length + length * self.rounding + self.remainder
        error += summing * ((length + rounding) * (self.length + self.rounding) + 3 * self.centre.norm() * self.length)
        return similarity, 1.001 * error


def divided(numbers: NDArray[np.int64], by: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Quotients and remainders of numbers below 2^31."""
    small = numbers.astype(np.int32)
    quotients = small // np.int32(by)
    return quotients, small - quotients * np.int32(by)


def monotonic(bits: NDArray[np.signedinteger]) -> NDArray[np.signedinteger]:
    """Bits of floats as integers of the same order; and back, for it is its own inverse."""
    return bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)


def kth_of_maxima(groups: NDArray[np.signedinteger], k: int) -> NDArray[np.signedinteger] | None:
    """(q,) lower bounds of the k-th largest of all that (g, q) maxima are of; None if they are too few.

    The maxima of larger groups bound it less closely, but are fewer.
    """
    g, q = groups.shape
    wide = next((wide for wide in (4, 2, 1) if g // wide >= 2 * k and g % wide == 0), 0)
    if wide == 0:
        return None
    maxima = np.ascontiguousarray(groups.reshape(wide, g // wide, q).max(0).T)
    return np.partition(maxima, g // wide - k, axis=1)[:, g // wide - k]


def dots(rows: Tensor, query: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """(c,) products of (n, D) rows with (q, D) queries, each by itself; ``row`` rises."""
    ends = F.pad(row.bincount(minlength=len(rows)).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse tensors are in beta state
        wanted = torch.sparse_csr_tensor(ends, column, query.new_zeros(len(row)), (len(rows), len(query)))
    products: Tensor = torch.sparse.sampled_addmm(wanted, rows, query.T, beta=0.0).values()
    return products


def numbered(similarity: Tensor) -> Tensor:
    """int64 of 32 bits that rise as similarities fall."""
    bits = (similarity + 0.0).view(torch.int32)  # -0.0 + 0.0 = 0.0
    return 0x7FFFFFFF - torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


def similarities(numbers: Tensor) -> Tensor:
    """What ``numbered`` gave these numbers."""
    bits = (0x7FFFFFFF - numbers).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
