"""The search against sorting all similarities, and its bound against the errors that there are."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.evaluation.solvers import knn_search as search
from ssl_bench.evaluation.solvers.knn_search import Part, neighbours, ranked

FORMATS = (torch.bfloat16, torch.float32)  # both, whatever this processor is quick at


@pytest.fixture(params=FORMATS, ids=str)
def coarse(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(search, "coarse_format", lambda: request.param)
    return request.param


def features(count: int, dim: int, offset: float = 0.0, seed: int = 0) -> Tensor:
    """(count, dim) unit vectors in five clusters; the larger the offset, the nearer all cosines are to 1."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, dim, generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    return F.normalize(centres[torch.randint(5, (count,), generator=generator)] + noise + offset, dim=1)


def assert_nearest(queries: Tensor, bank: Tensor, similarity: Tensor, row: Tensor, k: int) -> None:
    """Against float64: the k largest, falling, up to the rounding of float32."""
    k = min(k, len(bank))
    exact = queries.double() @ bank.double().T
    assert similarity.shape == row.shape == (len(queries), k)
    assert (similarity.double() - exact.gather(1, row)).abs().max() < 3e-7
    assert (similarity.diff(dim=1) <= 0).all()
    assert (row.sort(dim=1).values.diff(dim=1) > 0).all(), "each once"
    beaten = exact.scatter(1, row, -torch.inf).amax(1)  # the best of the others
    assert (beaten <= exact.gather(1, row).amin(1) + 3e-7).all()


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_nearest_of_clusters(offset: float, k: int, coarse: torch.dtype) -> None:
    """Cosines about 0.5, 0.99 and 0.999999, which are those of masked image models and of collapsed networks."""
    vectors = features(4100, 48, offset)
    queries, bank = vectors[:100], vectors[100:]
    assert_nearest(queries, bank, *neighbours(lambda: queries.split(70), bank.split(3000), k), k)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many cosines each call computes exactly."""
    found: list[int] = []
    original = search.dots

    def counted(rows: Tensor, query: Tensor, row: Tensor, column: Tensor) -> Tensor:
        found.append(len(row))
        return original(rows, query, row, column)

    monkeypatch.setattr(search, "dots", counted)
    return found


def test_hardly_anything_is_looked_at_exactly(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    """Neither among spread features nor where all cosines are 0.99."""
    monkeypatch.setattr(search, "coarse_format", lambda: torch.bfloat16)
    for offset in (0.0, 10.0):
        vectors = features(20_200, 96, offset)
        neighbours(lambda: [vectors[:200]], [vectors[200:]], 20)  # noqa: B023
    assert len(counts) == 2 and max(counts) < 200 * 60


@pytest.mark.parametrize("k", [1, 7, 300])
@pytest.mark.parametrize("bank", [1, 9, 100, 5000])
def test_of_equals_the_first_in_the_bank(bank: int, k: int, coarse: torch.dtype) -> None:
    same = torch.ones(bank, 4) / 2  # a collapsed backbone: everything is equally near
    similarity, row = neighbours(lambda: [same[:3], same[:2]], same.split(1700), k)
    assert (row == torch.arange(min(k, bank))).all()
    assert similarity.eq(1).all()


@pytest.mark.parametrize("candidates", [1, 2**22])
@pytest.mark.integration
def test_a_stable_sort(candidates: int, coarse: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CANDIDATES", candidates)
    generator = torch.Generator().manual_seed(0)
    unit = torch.randn(3000, 4, generator=generator).sign() / 2  # 16 vectors, similarities of both signs and 0
    unit[::3] *= -0.0
    expected = (unit[:50] @ unit.T).sort(dim=1, descending=True, stable=True)
    for k in (30, 2500, 3000):
        similarity, row = neighbours(lambda: unit[:50].split(20), unit.split(1000), k)
        assert torch.equal(row, expected.indices[:, :k])
        assert torch.equal(similarity, expected.values[:, :k])


def test_opposite_neighbours(coarse: torch.dtype) -> None:
    """All similarities are below zero, where the order of a float's bits is reversed."""
    bank = F.normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)) + 3, dim=1)
    queries = F.normalize(torch.randn(60, 16, generator=torch.Generator().manual_seed(1)) - 3, dim=1)
    found = neighbours(lambda: [queries], bank.split(2500), 50)
    assert found[0].max() < 0
    assert_nearest(queries, bank, *found, 50)


def test_without_a_coarse_search_it_is_the_same() -> None:
    vectors = features(3000, 32, 2.0)
    plain, searched = ranked(vectors[100:], vectors[:100], 40), neighbours(lambda: [vectors[:100]], [vectors[100:]], 40)
    assert_nearest(vectors[:100], vectors[100:], *plain, 40)
    assert torch.allclose(plain[0], searched[0], atol=1e-6)
    same = torch.ones(500, 4) / 2
    assert (ranked(same, same[:3], 7)[1] == torch.arange(7)).all()
    assert ranked(same, same[:3], 600)[1].shape == (3, 500)


def test_a_query_by_itself_has_the_same_neighbours(coarse: torch.dtype) -> None:
    vectors = features(2600, 24, 3.0)
    queries, bank = vectors[:600], vectors[600:]
    similarity, row = neighbours(lambda: [queries], bank.split(700), 30)
    for at in (0, 311, 599):
        alone = neighbours(lambda at=at: [queries[at : at + 1]], [bank], 30)
        assert torch.equal(alone[0][0], similarity[at]) and torch.equal(alone[1][0], row[at])


@pytest.mark.parametrize("offset", [0.0, 10.0, 300.0])
@pytest.mark.parametrize("coarse_as", FORMATS, ids=str)
def test_the_bound_holds_and_is_no_guess(offset: float, coarse_as: torch.dtype) -> None:
    vectors = features(1700, 200, offset)
    queries, bank = vectors[:200], vectors[200:]
    part = Part.of(bank, coarse_as)
    similarity, error = part._coarse_similarity(queries)
    exact = (bank.double() @ queries.double().T) - part.centre.double() @ queries.double().T
    differences = similarity[: len(bank)].double() - exact
    rounded = torch.finfo(coarse_as).eps / 2 * similarity[: len(bank)].double().abs()
    assert (differences.abs() <= error + rounded).all()
    assert (similarity[len(bank) :] < -1e29).all()
    spread = exact.std()
    assert error.max() < (0.02 if coarse_as == torch.bfloat16 else 2e-3) * max(spread, 1e-4 / 2e-3)


@pytest.mark.parametrize("coarse_as", FORMATS, ids=str)
def test_the_bound_holds_at_its_worst(coarse_as: torch.dtype) -> None:
    """All rounding errors point the same way, in queries and rows; or there is none but in what the centre adds."""
    up = torch.full((200,), 200**-0.5)
    bank = torch.stack([up, -up] * 20)  # their mean is 0
    similarity, error = Part.of(bank, coarse_as)._coarse_similarity(bank[:2])
    assert ((similarity[0, 0].double() - 1).abs() <= 2.0**-8 + error[0]).all() and error[0] < 0.01
    if coarse_as == torch.bfloat16:
        changed = 2 * 200**-0.5 * abs(float(up[0].bfloat16()) - float(up[0])) * 200
        assert changed < error[0] < 1.1 * changed + 2e-4

    bank = torch.eye(2)[[0] * 85 + [1] * 43]  # rows less the centre have 7 bits, their products with it have 12
    part = Part.of(bank, coarse_as)
    similarity, error = part._coarse_similarity(torch.full((1, 2), 0.5))
    assert (similarity.abs() <= error).all() and error < 2e-5


@pytest.mark.parametrize("error", [0.0, 1e-3, 4e-3, 0.05])
def test_coarse_similarities_may_be_as_wrong_as_the_bound_says(
    error: float, coarse: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever belongs to the nearest looks farther, whatever does not looks nearer."""
    k = 20

    def worst(self: Part, query: Tensor) -> tuple[Tensor, Tensor]:
        exact = self.rows @ query.T
        kth = exact.topk(k, dim=0).values[-1]
        wrong = torch.where(exact >= kth, exact - error, (exact + error).minimum(kth + error)) - query @ self.centre
        padding = torch.full((len(self.coarse) - len(exact), len(query)), search.PADDING)
        return torch.cat([wrong, padding]).to(coarse), torch.full((len(query),), error + 1e-7)

    monkeypatch.setattr(Part, "_coarse_similarity", worst)
    vectors = features(4300, 24, 0.3)
    queries, bank = vectors[:300], vectors[300:]
    assert_nearest(queries, bank, *neighbours(lambda: [queries], bank.split(2500), k), k)


def test_rounding_of_the_similarity_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A farther row looks as near as 1 after rounding, the nearest as near as 0.9961, the number below 1."""
    monkeypatch.setattr(search, "coarse_format", lambda: torch.bfloat16)
    cosine = torch.tensor([0.99715, 0.9972] + [0.5] * 62)
    looks = torch.tensor([0.99806, 0.9963] + [0.5] * 62)
    monkeypatch.setattr(Part, "_coarse_similarity", lambda *_: (looks[:, None].bfloat16(), torch.tensor([0.00092])))
    bank = torch.stack([cosine, (1 - cosine.square()).sqrt()], 1)
    assert neighbours(lambda: [torch.tensor([[1.0, 0.0]])], [bank], 1)[1].tolist() == [[1]]


def test_not_too_many_at_once(monkeypatch: pytest.MonkeyPatch, counts: list[int]) -> None:
    monkeypatch.setattr(search, "CANDIDATES", 5000)
    same = torch.ones(1000, 4) / 2
    neighbours(lambda: [same[:100]], [same], 5)
    assert max(counts) <= 5000 and sum(counts) == 100 * 1000


def test_zero_has_no_sign() -> None:
    numbers = search.numbered(torch.tensor([1.0, 0.0, -0.0, -1.0]))
    assert numbers[0] < numbers[1] == numbers[2] < numbers[3]
    assert search.similarities(numbers).tolist() == [1, 0, 0, -1]


def test_similarities_stay_float32_in_a_bfloat16_process(coarse: torch.dtype) -> None:
    unit = features(500, 64, 5.0)  # cosines of 0.96, where bfloat16 has steps of 0.004
    before = torch.get_float32_matmul_precision()
    expected = neighbours(lambda: [unit], [unit], 10), ranked(unit, unit, 10)
    try:
        torch.set_float32_matmul_precision("medium")
        found = neighbours(lambda: [unit], [unit], 10), ranked(unit, unit, 10)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(
        torch.equal(a, b) for some, other in zip(found, expected, strict=True) for a, b in zip(some, other, strict=True)
    )


@pytest.mark.parametrize("seed", range(4))
def test_any_sizes(seed: int, coarse: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw: Callable[[int], int] = lambda most: int(torch.randint(1, most, (), generator=generator))  # noqa: E731
    monkeypatch.setattr(search, "QUERIES", draw(100))
    monkeypatch.setattr(search, "ROWS", draw(1000))
    monkeypatch.setattr(search, "CANDIDATES", draw(10_000))
    vectors, k = features(1500, draw(60), 3 * seed, seed), draw(300)
    queries, bank = vectors[:150], vectors[150 : 200 + draw(1300)]
    parts = queries.split(draw(150))
    found = neighbours(lambda: parts, bank.split(draw(1500)), k)
    assert_nearest(queries, bank, *found, k)
