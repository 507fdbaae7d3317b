"""Random numbers of an object, rows of a matrix product, and drawing: exact probabilities, whatever is left out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foundation.generate.draw import BLOCK, Masses, choose, ends, masses, truncated
from foundation.generate.products import Product, filled_up, in_pieces, pieces, steady_sizes
from foundation.generate.randomness import object_keys, uniform
from foundation.generate.sampling_config import SamplingConfig, StreamSampling

PLAIN = StreamSampling()


def chi_square(counts: np.ndarray, p: np.ndarray) -> float:
    """In standard deviations above its expectation."""
    expected = counts.sum() * p
    degrees = len(p) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


def filled(logits: Tensor) -> Tensor:
    """Logits of one stream, filled up to whole blocks."""
    return F.pad(logits, (0, -logits.shape[1] % BLOCK), value=-math.inf)


def in_chunks(logits: Tensor, chunk: int) -> list[Tensor]:
    return [part.clone() for part in filled(logits).split(chunk, dim=1)]


def repeated(found: Masses, times: int) -> Masses:
    """The masses of one row, for so many rows."""
    return Masses(found.values.expand(times, -1, -1), found.first, found.cumulative.repeat(times, 1, 1), None)


def test_random_numbers_are_uniform_and_those_of_places_and_objects_differ() -> None:
    keys = object_keys(7, torch.arange(2000))
    numbers = uniform(keys[:, None], torch.arange(500)[None]).numpy()
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    assert abs(chi_square(np.bincount((numbers.ravel() * 1000).astype(int), minlength=1000), np.full(1000, 1e-3))) < 4
    for a, b in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        pairs = (a.ravel() * 20).astype(int) * 20 + (b.ravel() * 20).astype(int)
        assert abs(chi_square(np.bincount(pairs, minlength=400), np.full(400, 1 / 400))) < 4
    assert len(np.unique(numbers)) == numbers.size


def test_random_numbers_depend_on_seed_object_and_place_alone() -> None:
    keys, places = object_keys(7, torch.arange(50)), torch.arange(50) * 3
    together = uniform(keys, places)
    alone = [uniform(object_keys(7, torch.tensor([i])), torch.tensor([3 * i])) for i in range(50)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.isin(uniform(object_keys(8, torch.arange(50)), places), together).any()
    assert (
        len({float(uniform(object_keys(s, torch.tensor([0])), torch.tensor([0]))) for s in (-1, 2**63, 2**64 + 5)}) == 3
    )


@settings(max_examples=50, deadline=None, database=None)
@given(
    rows=st.integers(1, 1500),
    most=st.sampled_from([2, 60, 512]),
    sizes=st.sets(st.sampled_from([1, 4, 16, 48, 64, 512])),
)
def test_pieces_have_room_for_all_rows_and_sizes_that_are_known(rows: int, most: int, sizes: set[int]) -> None:
    known = sorted(sizes)
    parts = pieces(rows, known, most)
    assert sum(parts) >= rows and set(parts) <= (sizes or {rows})
    if sizes:
        assert max(parts) <= max(most, known[0]) and sum(parts[:-1]) < rows
        assert sum(parts) - rows <= max(rows / 3, known[0] - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_a_product_does_not_depend_on_the_number_of_rows(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    products = [Product(torch.randn(n, k).to(dtype), None) for n, k in ((96, 32), (31, 100), (64, 256), (48, 1024))]
    sizes = steady_sizes(products)
    for product in products:
        x = torch.randn(400, product.shape[1]).to(dtype)
        one_by_one = torch.cat([product(filled_up(row[None], sizes[0]))[:1] for row in x[::40]])
        for rows in (3, 16, 80, 400):
            parts = pieces(rows, sizes)
            done = in_pieces(product, parts, filled_up(x[:rows], sum(parts)))[:rows]
            assert torch.equal(done[::40], one_by_one[: -(-rows // 40)])


def test_products_equal_those_of_torch() -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(9, 24), torch.randn(50, 24), torch.randn(50)
    assert torch.allclose(Product(weight, bias)(x), F.linear(x, weight, bias), atol=1e-5)
    assert torch.allclose(Product(weight[10:30], None)(x), F.linear(x, weight[10:30]), atol=1e-5)


@pytest.mark.parametrize(("size", "chunk"), [(3, 1024), (64, 64), (1500, 1024), (65_536, 1024)])
def test_a_code_is_drawn_where_the_exact_distribution_has_it(size: int, chunk: int) -> None:
    torch.manual_seed(size)
    logits = 4 * torch.randn(1, size)
    found = masses(in_chunks(logits, chunk), [size], [PLAIN], True)
    exact = torch.softmax(logits[0].double(), 0).cumsum(0)
    places = torch.cat(
        [torch.rand(20_000, dtype=torch.float64), torch.tensor([0.0, 1.0 - 2.0**-52], dtype=torch.float64)]
    )
    codes = choose(repeated(found, len(places)), places[:, None])[:, 0]
    assert (exact[codes] > places - 1e-6).all()
    assert (torch.where(codes > 0, exact[codes - 1], 0.0) < places + 1e-6).all()
    assert float(found.log_total) == pytest.approx(float(logits.double().logsumexp(1)), abs=1e-5)


PROBABILITIES = np.array([0.05, 0.5, 0.1, 0.2, 0.15])


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (StreamSampling(), [0, 1, 2, 3, 4]),
        (StreamSampling(top_k=2), [1, 3]),
        (StreamSampling(top_k=9), [0, 1, 2, 3, 4]),
        (StreamSampling(top_p=0.65), [1, 3]),
        (StreamSampling(top_p=0.75), [1, 3, 4]),
        (StreamSampling(top_p=0.01), [1]),
        (StreamSampling(min_p=0.25), [1, 3, 4]),
        (StreamSampling(min_p=1.0), [1]),
        (StreamSampling(temperature=2.0), [0, 1, 2, 3, 4]),
        (StreamSampling(temperature=0.5, top_p=0.8), [1, 3]),
        (StreamSampling(top_k=4, top_p=0.9, min_p=0.35), [1, 3]),
        (StreamSampling(temperature=1e-6), [1]),
    ],
    ids=str,
)
def test_what_is_left_of_a_known_distribution(config: StreamSampling, left: list[int]) -> None:
    expected = np.zeros(5)
    expected[left] = (PROBABILITIES[left] / PROBABILITIES.max()) ** (1 / config.temperature)
    expected /= expected.sum()
    logits = torch.from_numpy(PROBABILITIES).log().float()[None]
    found = masses([filled(logits + 3.0)], [5], [config], True)
    p = found.values[0, 0, :5] / found.values.sum()
    assert (
        np.allclose(p.numpy(), expected, atol=1e-6) and (p.numpy()[[c for c in range(5) if c not in left]] < 1e-9).all()
    )
    # what is said about codes is not what decides the end
    assert float(found.log_total) == pytest.approx(3.0, abs=1e-5)


@settings(max_examples=25, deadline=None, database=None)
@given(
    size=st.integers(1, 300),
    k=st.integers(0, 20),
    p=st.floats(0.05, 1.0),
    least=st.floats(0.0, 0.9),
    seed=st.integers(0, 99),
)
def test_leaving_out_equals_the_definition(size: int, k: int, p: float, least: float, seed: int) -> None:
    logits = 2 * torch.randn(4, size, generator=torch.Generator().manual_seed(seed))
    config = StreamSampling(top_k=k, top_p=p, min_p=least)
    kept = truncated(logits.clone(), config).isfinite().numpy()
    for row, own in zip(logits.double().numpy(), kept, strict=True):
        order = np.argsort(-row)[: k or size]
        weights = np.exp(row[order] - row[order[0]])
        share = weights / weights.sum()
        stays = (np.cumsum(share) - share < p) & (weights >= least)
        doubtful = (np.abs(np.cumsum(share) - share - p) < 1e-6) | (np.abs(weights - least) < 1e-6)
        assert own.sum() >= 1 and (own[order] == stays)[~doubtful].all()
        assert not np.delete(own, order).any()


@pytest.mark.parametrize(("rows", "size"), [(3, 4096), (3, 3000), (100, 4096)])
def test_few_rows_at_once_have_the_same_masses_to_the_last_bit(rows: int, size: int) -> None:
    torch.manual_seed(rows)
    logits = 3 * torch.randn(rows, size)
    one_by_one = masses(in_chunks(logits, 1024), [size], [PLAIN], True)
    for alone in range(0, rows, 40):
        found = masses([filled(logits[alone : alone + 1].clone())], [size], [PLAIN], True)
        assert torch.equal(found.values[0], one_by_one.values[alone])
        assert torch.equal(found.cumulative[0], one_by_one.cumulative[alone])
        assert float(found.log_total) == float(one_by_one.log_total[alone])


def test_what_is_left_is_drawn_also_where_whole_chunks_are_left_out() -> None:
    torch.manual_seed(3)
    logits = torch.randn(1, 3000)
    found = masses(in_chunks(logits, 1024), [3000], [StreamSampling(top_k=7)], False)
    drawn = choose(repeated(found, 5000), torch.rand(5000, 1, dtype=torch.float64))
    assert set(drawn[:, 0].tolist()) == set(logits[0].topk(7).indices.tolist()) and found.log_total is None


@pytest.mark.parametrize("sizes", [(62, 62, 62), (3, 64, 65), (1500, 10), (200, 130)])
@pytest.mark.parametrize("config", [PLAIN, StreamSampling(top_k=2), StreamSampling(temperature=0.7)], ids=str)
def test_streams_that_are_drawn_together_are_drawn_as_each_alone(
    sizes: tuple[int, ...], config: StreamSampling
) -> None:
    torch.manual_seed(len(sizes))
    logits = [3 * torch.randn(50, size) for size in sizes]
    settings = [PLAIN, config, PLAIN][: len(sizes)]
    uniform = torch.rand(50, len(sizes), dtype=torch.float64)
    together = masses([torch.cat([filled(own) for own in logits], dim=1)], sizes, settings, True)
    codes = choose(together, uniform)
    for k, (own, size) in enumerate(zip(logits, sizes, strict=True)):
        alone = masses([filled(own)], [size], [settings[k]], True)
        assert torch.equal(choose(alone, uniform[:, k : k + 1])[:, 0], codes[:, k])
        assert bool((codes[:, k] < size).all())
        if k == 0:
            assert together.log_total is not None and torch.allclose(together.log_total, own.logsumexp(1), atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("end_temperature", [1.0, 3.0])
def test_the_end_has_the_probability_that_the_model_gives_it(temperature: float, end_temperature: float) -> None:
    torch.manual_seed(2)
    logits = torch.randn(1, 501)
    p = float(torch.softmax(logits.double(), 1)[0, -1])
    odds = (p / (1 - p)) ** (1 / end_temperature)
    found = masses([filled(logits[:, :-1].clone())], [500], [StreamSampling(temperature=temperature)], True)
    for shift, expected in ((-1e-6, True), (1e-6, False)):
        u = torch.tensor([odds / (1 + odds) + shift], dtype=torch.float64)
        assert bool(ends(logits[:, -1], found, end_temperature, u)) is expected


def test_settings_of_a_stream_stand_in_place_of_the_general_ones() -> None:
    config = SamplingConfig(max_points=3, top_k=5, streams={"energy": StreamSampling(temperature=0.9)})
    assert config.stream("x").top_k == 5 and config.stream("energy") == StreamSampling(temperature=0.9)
    with pytest.raises(ValueError, match="min_points 4 is more than max_points 3"):
        SamplingConfig(max_points=3, min_points=4)
    with pytest.raises(ValueError, match="temperature"):
        SamplingConfig(max_points=3, temperature=0.0)
