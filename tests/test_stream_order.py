"""The contract of the order: a function of the step alone, each sequence once an epoch, the same for any ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.stream.mixture import Mixture
from foundation.stream.order import RowOrder, Shape
from foundation.stream.planning import blocks_read, plan_stream
from foundation.stream.reading import ShardedDataset
from foundation.stream.row_stream import RowStream, StreamConfig
from foundation.stream.rows import LengthRule, row_table
from foundation.stream.writing import write_shards

# sequences of each dataset: one larger than all others, a usual one, a tiny one, a single one
SIZES = (900, 150, 3, 1)
ROW_TOKENS = 40
RULE = LengthRule(1, 3)
Sequence = tuple[int, int]
"""(dataset, its running number)."""


@dataclass(frozen=True)
class Folders:
    """Datasets on disk; `fits` are the sequences of each that are not longer than a row."""

    paths: list[Path]
    fits: list[set[int]]

    def stream(self, chosen: tuple[int, ...], weights: Mixture | list[float], rows: int, **how: object) -> RowStream:
        data = [ShardedDataset(self.paths[i], "v") for i in chosen]
        settings = {"row_tokens": ROW_TOKENS, "rows_per_step": rows, "seed": 7, **how}
        return RowStream(data, weights, [RULE] * len(data), StreamConfig(**settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    home, rng = tmp_path_factory.mktemp("order"), np.random.default_rng(3)
    found = Folders([], [])
    for number, size in enumerate(SIZES):
        points = rng.integers(0, 30, size)
        points[:: max(2, size // 4)] = 38  # longer than a row
        points[-1] = 5
        path = home / f"d{number}"
        write_shards(
            path, f"d{number}", rng.integers(0, 999, (points.sum(), 1)), np.concatenate([[0], np.cumsum(points)]),
            np.zeros(size, np.int64), np.zeros((size, 1), np.float32), largest_code=999,
            identity={"vocabulary": "v"}, seed=number, block_sequences=17, shard_bytes=2_000,
        )  # fmt: skip
        found.paths.append(path)
        found.fits.append(set(np.flatnonzero(points <= ROW_TOKENS - RULE.extra).tolist()))
    return found


def seen(stream: RowStream, step: int, world: int = 1) -> Counter[Sequence]:
    """Sequences of a step, over all ranks."""
    return Counter(
        (rows.dataset, int(i)) for rank in range(world) for rows in stream.rows(step, rank, world) for i in rows.ids
    )


CASES = st.tuples(
    st.sampled_from([(0,), (0, 1), (1, 0), (0, 2), (2, 0, 3), (3, 1, 2, 0)]),
    st.lists(st.sampled_from([0.1, 0.3, 0.5, 1.0, 7.0]), min_size=4, max_size=4),
    st.sampled_from([(12, (1, 2, 3, 4, 6, 12)), (5, (1, 5)), (48, (1, 8, 48))]),
)


@settings(max_examples=25, deadline=None)
@given(CASES, st.integers(0, 3000), st.data())
def test_the_global_batch_is_the_same_for_any_ranks_and_any_history(folders, case, step, data) -> None:
    chosen, weights, (rows, worlds) = case
    whole = seen(folders.stream(chosen, weights[: len(chosen)], rows), step)
    other = folders.stream(chosen, weights[: len(chosen)], rows)
    for before in data.draw(st.lists(st.integers(0, 3000), max_size=3)):
        other.rows(before, 0, 1)
    for world in worlds:
        assert seen(other, step, world) == whole


@settings(max_examples=20, deadline=None)
@given(CASES, st.integers(0, 6))
def test_every_sequence_once_in_every_epoch_of_its_dataset(folders, case, epoch) -> None:
    chosen, weights, (rows, _) = case
    stream = folders.stream(chosen, weights[: len(chosen)], rows)
    for number, of in enumerate(chosen):
        total = stream.rows_per_epoch(number)
        addresses = stream.order.addresses(np.full(total, number), np.arange(epoch * total, (epoch + 1) * total))
        ids = np.concatenate([part.ids for part in stream.take(addresses)])
        assert len(ids) == len(set(ids.tolist())) and set(ids.tolist()) == folders.fits[of]
    assert stream.left_out == [SIZES[of] - len(folders.fits[of]) for of in chosen]


def test_an_epoch_of_one_dataset_read_step_by_step(folders: Folders) -> None:
    stream = folders.stream((0,), [1.0], 1)
    total = stream.rows_per_epoch(0)
    epochs = [[seen(stream, t) for t in range(e * total, (e + 1) * total)] for e in range(3)]
    for epoch in epochs:
        assert set(sum(epoch, Counter()).items()) == {((0, i), 1) for i in folders.fits[0]}
    # neither the order of the rows nor what shares a row is that of another epoch
    assert sum(a == b for a, b in zip(epochs[0], epochs[1], strict=True)) < 0.05 * total
    assert {frozenset(row) for row in epochs[0]} != {frozenset(row) for row in epochs[1]}


@pytest.mark.parametrize("world", [1, 3])
def test_a_resume_at_every_step_goes_on_as_if_there_had_been_none(folders: Folders, world: int) -> None:
    weights, rows, steps = [0.6, 0.4], 6, 60  # both datasets pass several borders of their epochs
    whole = [seen(folders.stream((1, 2), weights, rows), t) for t in range(steps)]
    for stop in range(0, steps, 7):
        stream = folders.stream((1, 2), weights, rows)
        assert [seen(stream, t, world) for t in range(stop, min(steps, stop + 9))] == whole[stop : stop + 9]


def test_ranks_may_change_at_every_resume(folders: Folders) -> None:
    whole = [seen(folders.stream((0, 1), [0.5, 0.5], 12), t) for t in range(30)]
    resumed = []
    for first, world in ((0, 4), (11, 1), (12, 12), (23, 3)):
        stream = folders.stream((0, 1), [0.5, 0.5], 12)
        resumed = [*resumed[:first], *(seen(stream, t, world) for t in range(first, 30))]
    assert resumed == whole


def test_a_schedule_of_weights_changes_at_its_step(folders: Folders) -> None:
    mixture = Mixture((1.0, 0.0), ((10, (0.0, 1.0)), (20, (0.5, 0.5))))
    stream = folders.stream((0, 1), mixture, 4)
    numbers = [{rows.dataset for rows in stream.rows(t)} for t in range(30)]
    assert numbers == [{0}] * 10 + [{1}] * 10 + [{0, 1}] * 10
    assert seen(stream, 9) == seen(folders.stream((0, 1), [1.0, 0.0], 4), 9)


def test_a_dataset_without_sequences_needs_the_weight_zero(folders: Folders) -> None:
    data = [ShardedDataset(folders.paths[0], "v"), ShardedDataset(folders.paths[1], "v", limit=0)]
    config = StreamConfig(ROW_TOKENS, 4, 1)
    with pytest.raises(DataError, match="d1: has a weight in the mixture, but no sequences"):
        RowStream(data, [0.5, 0.5], [RULE, RULE], config)
    stream = RowStream(data, [1.0, 0.0], [RULE, RULE], config)
    assert {d for d, _ in seen(stream, 3)} == {0}


def test_sequences_that_are_too_long_are_counted_or_refused(folders: Folders, capfd) -> None:
    folders.stream((1,), [1.0], 4)
    assert "5 of 150 sequences are longer than 40 tokens and are left out" in capfd.readouterr().err
    with pytest.raises(DataError, match="5 of 150 sequences are longer than 40 tokens: raise row_tokens"):
        folders.stream((1,), [1.0], 4, too_long="error")
    with pytest.raises(DataError, match="no sequence fits into 2 tokens"):
        folders.stream((1,), [1.0], 4, row_tokens=2)


def test_dropout_is_drawn_anew_in_every_epoch_and_the_same_in_every_run(folders: Folders) -> None:
    how = {"class_dropout": 0.5, "condition_dropout": 0.5}

    def hidden(stream: RowStream, epoch: int) -> dict[int, tuple[bool, bool]]:
        total = stream.rows_per_epoch(0)
        addresses = stream.order.addresses(np.zeros(total, np.int64), np.arange(epoch * total, (epoch + 1) * total))
        (rows,) = stream.take(addresses)
        assert (rows.labels == 0).all()
        dropped = zip((rows.shown < 0).tolist(), np.isnan(rows.conditions[:, 0]).tolist(), strict=True)
        return dict(zip(rows.ids.tolist(), dropped, strict=True))

    first = [hidden(folders.stream((0,), [1.0], 4, **how), epoch) for epoch in (0, 1)]
    assert first[0] != first[1]
    assert first[1] == hidden(folders.stream((0,), [1.0], 4, **how), 1)
    for part in (0, 1):
        assert 0.4 < np.mean([v[part] for v in first[0].values()]) < 0.6


def test_a_bounded_cache_changes_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [seen(folders.stream((0, 1), [0.5, 0.5], 24), t) for t in range(20)]
    monkeypatch.setattr("foundation.stream.row_stream.CACHE_BYTES", 1)
    monkeypatch.setattr("foundation.stream.row_stream.PACKING_BYTES", 0)
    stream = folders.stream((0, 1), [0.5, 0.5], 24)
    assert [seen(stream, t) for t in range(20)] == whole
    assert len(stream._cache) == 1


def test_packed_codes_are_the_codes_of_the_rows(folders: Folders) -> None:
    stream = folders.stream((0, 1), [0.5, 0.5], 8)
    for step in range(5):
        packed, rows = stream.packed_codes(step), stream.rows(step)
        assert packed.codes.dtype == np.int64 and packed.offsets[-1] == len(packed.codes)
        ours = Counter(packed.codes[a:b].tobytes() for a, b in pairwise(packed.offsets))
        starts = [np.concatenate([[0], np.cumsum(part.points)]) for part in rows]
        assert ours == Counter(
            part.codes[a:b, 0].astype(np.int64).tobytes()
            for part, s in zip(rows, starts, strict=True)
            for a, b in pairwise(s)
        )


def test_a_skipped_block_leaves_the_other_rows_where_they_are(folders: Folders, tmp_path: Path) -> None:
    import shutil

    whole = folders.stream((1,), [1.0], 4)
    steps = whole.rows_per_epoch(0) // 4
    home = tmp_path / "damaged"
    shutil.copytree(folders.paths[1], home)
    shard = sorted(home.glob("*.tar"))[1]
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    damaged = RowStream([ShardedDataset(home, "v", on_bad_block="skip")], [1.0], [RULE], StreamConfig(ROW_TOKENS, 4, 7))
    lost = sum((seen(whole, t) - seen(damaged, t) for t in range(steps)), Counter())
    assert len(damaged.datasets[0].bad_blocks) == 1
    (bad,) = damaged.datasets[0].bad_blocks
    assert 0 < len(lost) <= len(whole.datasets[0].lengths_of(bad))
    assert not sum((seen(damaged, t) - seen(whole, t) for t in range(steps)), Counter())


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_of_a_data_loader_give_the_same_order(folders: Folders, workers: int) -> None:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    stream = folders.stream((0, 1), [0.5, 0.5], 6)

    class Steps(IterableDataset):
        def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
            info = get_worker_info()
            mine = range(12) if info is None else range(info.id, 12, info.num_workers)
            for step in mine:
                yield step, torch.from_numpy(stream.packed_codes(step).codes)

    read = list(DataLoader(Steps(), batch_size=None, num_workers=workers))
    assert [step for step, _ in read] == list(range(12))
    alone = folders.stream((0, 1), [0.5, 0.5], 6)
    assert all(np.array_equal(codes.numpy(), alone.packed_codes(step).codes) for step, codes in read)


def test_rows_are_counted_once_and_kept(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ShardedDataset(folders.paths[0], "v")
    table = row_table(data, RULE, 39)
    assert len(list((folders.paths[0] / "rows").glob("*-39-1n+3-*.npy"))) == 1
    monkeypatch.setattr("foundation.stream.rows.pack", None)
    assert np.array_equal(row_table(ShardedDataset(folders.paths[0], "v"), RULE, 39), table)
    assert table["tokens"].sum() == sum(
        RULE.tokens(n)[RULE.tokens(n) <= 39].sum() for n in map(data.lengths_of, range(data.n_blocks))
    )


# Scale, by index arithmetic alone

BIG = [
    Shape("jets", np.random.default_rng(0).integers(2, 5, 100_000), 900_000),
    Shape("showers", np.random.default_rng(1).integers(1, 4, 20_000), 1_100_000),
    Shape("tiny", np.array([3]), 5_000),
]
MIXTURE = Mixture((0.85, 0.149, 0.001))


def test_512_ranks_of_8_workers_read_100000_shards_once() -> None:
    order = RowOrder(BIG, MIXTURE, 1, 2048)
    steps = order.epoch_rows[0] // 1740
    widest = max(len(d.rows) for d in BIG) * 8
    keys = []
    for step in range(steps):
        parts = [order.step(step, rank, 512) for rank in range(512)]
        assert {len(part) for part in parts} == {4}
        d, e, b, r = (
            np.concatenate([getattr(p, name) for p in parts]) for name in ("dataset", "epoch", "block", "row")
        )
        keys.append(((d * 1000 + e) * widest + b) * 8 + r)
        alone = order.step(step)
        assert np.array_equal(keys[-1], ((alone.dataset * 1000 + alone.epoch) * widest + alone.block) * 8 + alone.row)
    found = np.concatenate(keys)
    assert len(np.unique(found)) == len(found)  # no row twice
    counts = order.schedule.counts(steps * 2048)
    for number, shape in enumerate(BIG):
        dataset, epoch = np.divmod(found // 8 // widest, 1000)
        for whole in range(counts[number] // order.epoch_rows[number]):
            block, row = np.divmod(found[(dataset == number) & (epoch == whole)] % (widest * 8), 8)
            assert np.array_equal(np.bincount(block), shape.rows) and (row < shape.rows[block]).all()


def test_any_worker_of_any_rank_finds_its_rows_alone() -> None:
    together = RowOrder(BIG, MIXTURE, 1, 2048)
    for rank, worker in ((0, 0), (17, 5), (511, 7)):
        alone = RowOrder(BIG, MIXTURE, 1, 2048)
        for step in (worker, 10**6 + worker):
            one, other = alone.step(step, rank, 512), together.step(step)[4 * rank : 4 * rank + 4]
            assert list(one) == list(other)


def test_a_rank_meets_few_blocks_however_many_ranks_there_are() -> None:
    rows = [Shape("jets", np.full(20_000, 190), 900_000), Shape("showers", np.full(5_000, 240), 1_100_000)]
    order = RowOrder(rows, Mixture((0.7, 0.3)), 1, 256)
    assert blocks_read(order, 1) == 1
    # without lanes each of 64 ranks would read every block
    assert blocks_read(order, 64) < 8


def test_a_plan_says_what_is_read(folders: Folders) -> None:
    data = [ShardedDataset(p, "v") for p in folders.paths[:2]]
    plan = plan_stream(
        data, Mixture((0.75, 0.25)), [RULE, RULE], ROW_TOKENS, 8, ranks=4, steps=100, tokens_per_second=1e6
    )
    stream = folders.stream((0, 1), [0.75, 0.25], 8)
    jets = plan.datasets[0]
    assert jets.rows_per_epoch == stream.rows_per_epoch(0) and jets.left_out == stream.left_out[0]
    assert jets.steps_per_epoch == pytest.approx(stream.rows_per_epoch(0) / 6)
    assert jets.epochs == pytest.approx(600 / stream.rows_per_epoch(0))
    epoch = [sum(int(RULE.tokens(r.points).sum()) for r in stream.rows(t)) for t in range(200)]
    assert plan.tokens_per_step == pytest.approx(np.mean(epoch), rel=0.02)
    assert 1 <= plan.read_per_use <= 4
    text = "\n".join(plan.lines())
    assert "8 rows of 40 over 4 ranks" in text and "75.00% of the rows" in text and "MB/s a rank" in text
