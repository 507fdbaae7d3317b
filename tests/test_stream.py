"""Shards and the stream: readable by plain webdataset, checked, deterministic, every sequence once an epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import DataError
from foundation.stream.mixture import MixtureSchedule
from foundation.stream.packing import pack
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import Batch, StreamConfig, TokenStream, one_pass
from foundation.stream.writing import write_shards

from conftest import ToyTokens


def stream(toy: ToyTokens, rows: int = 6, tokens: int = 64, **settings: object) -> TokenStream:
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    return TokenStream(data, [0.7, 0.3], toy.layout(), StreamConfig(tokens, rows, 3, **settings))  # type: ignore[arg-type]


def sequences(batch: Batch) -> list[bytes]:
    return sorted(
        batch.ids[a:b].tobytes() + batch.targets[a:b].tobytes()
        for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    )


def test_shards_are_read_by_plain_webdataset(toy: ToyTokens) -> None:
    import webdataset as wds

    shards = sorted(str(p) for p in (toy.home / "toy_jets").glob("*.tar"))
    assert len(shards) > 1
    blocks = list(wds.WebDataset(shards, shardshuffle=False).decode())
    assert sum(len(b["offsets.npy"]) - 1 for b in blocks) == len(toy.clouds["toy_jets"])
    assert sum(int(b["codes.npy"].astype(int).sum()) for b in blocks) == toy.codes["toy_jets"].sum()
    assert blocks[0]["codes.npy"].dtype == np.uint16


def test_writing_twice_gives_the_same_bytes(toy: ToyTokens, tmp_path: Path) -> None:
    clouds, tag = toy.clouds["toy_jets"], "toy_jets"
    for name in ("a", "b"):
        write_shards(
            tmp_path / name, tag, toy.codes[tag], clouds.offsets, clouds.labels, clouds.conditions,
            largest_code=9, identity={"vocabulary": "v"}, seed=1, block_sequences=50,
        )  # fmt: skip
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@given(st.lists(st.integers(1, 90), max_size=60), st.randoms())
def test_packing_splits_nothing_and_fills_rows_whatever_the_order(lengths: list[int], random) -> None:
    rows = pack(np.array(lengths, np.int64), 64)
    placed = sorted(int(i) for row in rows for i in row)
    assert placed == [i for i, n in enumerate(lengths) if n <= 64]
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    shuffled = random.sample(lengths, len(lengths))
    assert len(pack(np.array(shuffled, np.int64), 64)) == len(rows)


@given(st.lists(st.floats(0.05, 10), min_size=1, max_size=5), st.integers(1, 2500))
def test_mixture_keeps_the_weights_at_every_prefix_and_counts_rows_without_gaps(weights, n) -> None:
    schedule = MixtureSchedule(weights)
    seen: dict[int, int] = {}
    for g in range(n):
        dataset, index = schedule.row(g)
        assert index == seen.get(dataset, 0)
        seen[dataset] = index + 1
        if len(weights) == 2:
            assert abs(seen.get(0, 0) - schedule.shares[0] / 1000 * (g + 1)) <= 1


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan")], [1, 1e-9]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weight"):
        MixtureSchedule(weights)


@settings(max_examples=15, deadline=None)
@given(step=st.integers(0, 400), world=st.sampled_from([1, 2, 3, 6]), accumulation=st.sampled_from([1, 2]))
def test_the_global_batch_does_not_depend_on_ranks_or_history(toy, step, world, accumulation) -> None:
    if 6 % (world * accumulation):
        accumulation = 1
    whole = sequences(stream(toy, class_dropout=0.4).batches(step)[0])
    other = stream(toy, class_dropout=0.4)
    if step:
        other.batches(step - 1)
    parts = [s for r in range(world) for b in other.batches(step, r, world, accumulation) for s in sequences(b)]
    assert sorted(parts) == whole


def test_every_sequence_once_an_epoch_and_another_order_in_the_next(toy: ToyTokens) -> None:
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    s = TokenStream([data], [1.0], toy.layout(), StreamConfig(64, 1, 3))
    rows = s.rows_per_epoch(0)
    epochs = [[q for t in range(e * rows, (e + 1) * rows) for q in sequences(s.batches(t)[0])] for e in range(2)]
    assert len(epochs[0]) == len(data)
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]


def test_targets_are_the_next_step_and_rows_are_full(toy: ToyTokens) -> None:
    s = stream(toy, rows=8, tokens=128)
    fill = []
    for step in range(10):
        batch = s.batches(step)[0]
        fill.append(len(batch.ids) / (8 * 128))
        inner = np.ones(len(batch.ids), bool)
        inner[batch.offsets[1:] - 1] = False
        next_ids = np.roll(batch.ids, -1, axis=0)
        known = (batch.targets >= 0) & inner[:, None]
        assert (batch.targets[known] == next_ids[known]).all()
        assert ((batch.targets >= 0) == (batch.slots >= 0)).all()
    assert np.mean(fill) > 0.8  # blocks of 50 short sequences: a row in seven is a half-empty last one


def test_class_dropout_hides_the_class_but_not_the_label(toy: ToyTokens) -> None:
    hidden = stream(toy, class_dropout=1.0).batches(0)[0]
    shown = stream(toy, class_dropout=0.0).batches(0)[0]
    any_id = 3
    assert (hidden.ids[hidden.offsets[:-1] + 2, 0] == any_id).all()
    assert (shown.ids[shown.offsets[:-1] + 2, 0] != any_id).all()
    assert np.array_equal(hidden.labels, shown.labels)


def test_condition_dropout_hides_the_incident_energy_alone(toy: ToyTokens) -> None:
    hidden = stream(toy, condition_dropout=1.0).batches(0)[0]
    showers = hidden.offsets[:-1][hidden.dataset == 1]
    any_id = 3
    assert (
        len(showers) and (hidden.ids[showers + 3, 0] == any_id).all() and (hidden.ids[showers + 2, 0] != any_id).all()
    )


def test_one_pass_sees_everything_once_within_the_limit(toy: ToyTokens) -> None:
    data = ShardedDataset(toy.home / "toy_showers", toy.vocabulary.digest)
    whole = list(one_pass(data, toy.layout(), 100, hide_class=False))
    assert sum(len(b.labels) for b in whole) == len(data)
    assert max(len(b.ids) for b in whole) <= 100
    some = list(one_pass(data, toy.layout(), 100, hide_class=True, limit=61))
    assert sum(len(b.labels) for b in some) == 61


def test_a_label_budget_takes_the_first_sequences(toy: ToyTokens) -> None:
    few = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest, limit=70)
    assert len(few) == 70 and sum(len(few.block(b)) for b in range(few.n_blocks)) == 70
    with pytest.raises(DataError, match="100000 sequences asked for"):
        ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest, limit=100000)


def test_sequences_longer_than_a_row_are_counted(toy: ToyTokens, capfd: pytest.CaptureFixture[str]) -> None:
    stream(toy, tokens=16)
    assert "are longer than 16 tokens and are left out" in capfd.readouterr().err
    with pytest.raises(DataError, match="no sequence fits into 4 tokens"):
        stream(toy, tokens=4)


def test_rows_that_cannot_be_divided_over_ranks_are_refused(toy: ToyTokens) -> None:
    with pytest.raises(DataError, match="choose a multiple of 4"):
        stream(toy).batches(0, 0, 4)


def damage(folder: Path, kind: str) -> None:
    """One of the ways in which a dataset on disk goes wrong."""
    shard = sorted(folder.glob("*.tar"))[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    if kind == "missing shard":
        shard.unlink()
    elif kind == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-3000])
    elif kind == "flipped byte":
        index = json.loads(shard.with_suffix(".index.json").read_text())
        offset, size, _ = index["blocks"][1]["members"]["codes.npy"]
        data = bytearray(shard.read_bytes())
        data[offset + size - 3] ^= 1
        shard.write_bytes(bytes(data))
    elif kind == "empty shard":
        shard.write_bytes(b"")
    elif kind == "no manifest":
        (folder / "manifest.json").unlink()
    elif kind == "half a manifest":
        (folder / "manifest.json").write_text(json.dumps(manifest)[:100])
    elif kind == "no index":
        shard.with_suffix(".index.json").unlink()
    elif kind == "another vocabulary":
        (folder / "manifest.json").write_text(json.dumps(manifest | {"vocabulary": "f" * 64}))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing shard", "000000.tar: shard is missing"),
        ("truncated shard", "000000.tar: shard has"),
        ("empty shard", "000000.tar: shard has 0 bytes"),
        ("flipped byte", "block 00000001, member codes.npy: damaged"),
        ("no manifest", "manifest.json: missing"),
        ("half a manifest", "manifest.json: not valid JSON"),
        ("no index", "000000.index.json: missing"),
        ("another vocabulary", "tokenised with vocabulary ffffffffffff"),
    ],
)
def test_damage_is_named(toy: ToyTokens, tmp_path: Path, kind: str, said: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(toy.home / "toy_jets", folder)
    damage(folder, kind)
    with pytest.raises(DataError, match=said):
        data = ShardedDataset(folder, toy.vocabulary.digest)
        for number in range(data.n_blocks):
            data.block(number)
