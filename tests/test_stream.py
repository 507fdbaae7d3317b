"""Batches of the stream: laid out right, the same for any ranks, prepared ahead by a thread that leaves no trace."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import Condition
from foundation.errors import DataError
from foundation.stream.batches import NO_LABEL, lay_out
from foundation.stream.prefetch import Prefetcher
from foundation.stream.reading import Block, ShardedDataset
from foundation.stream.token_stream import Batch, StreamConfig, TokenStream, one_pass
from foundation.stream.writing import write_shards
from foundation.tokens.layout import Layout
from foundation.tokens.vocabulary import DatasetEntry, Range, Vocabulary

from conftest import ToyTokens


def stream(toy: ToyTokens, rows: int = 6, tokens: int = 64, **settings: object) -> TokenStream:
    data = [ShardedDataset(toy.home / tag, toy.vocabulary.digest) for tag in toy.clouds]
    return TokenStream(data, [0.7, 0.3], toy.layout(), StreamConfig(tokens, rows, 3, **settings))  # type: ignore[arg-type]


def sequences(batch: Batch) -> list[bytes]:
    return sorted(batch.ids[a:b].tobytes() + batch.targets[a:b].tobytes() for a, b in pairwise(batch.offsets))


@settings(max_examples=15, deadline=None)
@given(step=st.integers(0, 400), world=st.sampled_from([1, 2, 3, 6]), accumulation=st.sampled_from([1, 2]))
def test_the_global_batch_does_not_depend_on_ranks_or_history(toy, step, world, accumulation) -> None:
    if 6 % (world * accumulation):
        accumulation = 1
    whole = sequences(stream(toy, class_dropout=0.4).batches(step)[0])
    other = stream(toy, class_dropout=0.4)
    if step:
        other.batches(step - 1)
    batches = [b for r in range(world) for b in other.batches(step, r, world, accumulation)]
    assert sorted(s for b in batches for s in sequences(b)) == whole
    assert {b.cursor for b in batches} == {step + 1}


def test_the_sources_say_which_sequences_a_batch_holds(toy: ToyTokens) -> None:
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    s = TokenStream([data], [1.0], toy.layout(), StreamConfig(64, 1, 3))
    epoch = np.concatenate([s.batches(t)[0].sources for t in range(s.rows_per_epoch(0))])
    assert sorted(epoch.tolist()) == list(range(len(data)))
    batch, clouds = s.batches(3)[0], toy.clouds["toy_jets"]
    assert np.array_equal(batch.labels, clouds.labels[batch.sources.astype(int)])


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


def test_rows_that_cannot_be_divided_over_ranks_are_refused(toy: ToyTokens) -> None:
    with pytest.raises(DataError, match="choose a multiple of 4"):
        stream(toy).batches(0, 0, 4)


@pytest.fixture(scope="module")
def mixed_layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Vocabulary]:
    """Datasets of one, two and four codes per point, in one vocabulary; some clouds are empty. In two, every object has
    the same number of tokens."""
    sizes = {
        "special": 4, "tag.one": 1, "tag.two": 1, "tag.many": 1, "tag.six": 1, "tag.ten": 1,
        "class.one": 2, "class.two": 1, "class.many": 1, "condition.one.energy": 4, "condition.six.energy": 4,
        "one.code": 50, "two.x": 7, "two.y": 8,
        "many.w": 7, "many.x": 8, "many.y": 9, "many.z": 9,
        "patch.code0": 7, "patch.code1": 7, "cell.code": 7,
    }  # fmt: skip
    starts = np.concatenate([[0], np.cumsum(list(sizes.values()))]).tolist()
    energy = Condition(name="energy", unit="GeV", range=(1.0, 9.0), bins=4)
    vocabulary = Vocabulary(
        [Range(name, start, size) for (name, size), start in zip(sizes.items(), starts, strict=False)],
        [
            DatasetEntry("one", ("a", "b"), (energy,), ("code",), "0"),
            DatasetEntry("two", ("c",), (), ("x", "y"), "0"),
            DatasetEntry("many", ("d",), (), ("w", "x", "y", "z"), "0"),
            DatasetEntry("six", (), (energy,), ("code0", "code1"), "0", "patch", 6),
            DatasetEntry("ten", (), (), ("code",), "0", "cell", 10),
        ],
    )
    home, rng, folders = tmp_path_factory.mktemp("mixed"), np.random.default_rng(1), []
    for tag, entry in vocabulary.datasets.items():
        streams, conditions, classes = len(entry.streams), len(entry.conditions), max(1, len(entry.classes))
        points = rng.integers(0, 20, 120) * (rng.random(120) < 0.8)
        if entry.tokens_per_object is not None:
            points[:] = entry.tokens_per_object
        write_shards(
            home / tag, tag, rng.integers(0, 7, (points.sum(), streams)), np.concatenate([[0], np.cumsum(points)]),
            rng.integers(0, classes, 120) - (not entry.classes),
            rng.uniform(1, 9, (120, conditions)).astype(np.float32), largest_code=9,
            identity={"vocabulary": "v"}, seed=1, block_sequences=50,
        )  # fmt: skip
        folders.append(home / tag)
    return folders, vocabulary


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
@pytest.mark.parametrize("chosen", [(0,), (1,), (2,), (3,), (4,), (0, 1, 2), (0, 2, 3, 4)])
def test_batches_are_what_the_layout_says(mixed_layouts, mode, chosen) -> None:
    """The stream lays out one step per point by a way of its own; the layout's sequences are the truth."""
    folders, vocabulary = mixed_layouts
    layout = Layout(vocabulary, mode)
    data = [ShardedDataset(folders[i], "v") for i in chosen]
    batch = TokenStream(data, [1.0] * len(data), layout, StreamConfig(80, 6, 1)).batches(2)[0]
    expected = {}
    for number, d in enumerate(data):
        for block in map(d.block, range(d.n_blocks)):
            whole = layout.sequences(d.tag, block.codes, block.offsets, block.labels, block.conditions)
            for i, (a, b) in enumerate(pairwise(whole.offsets)):
                expected[number, int(block.ids[i])] = whole.ids[a:b], whole.slots[a:b]
    assert len(batch.labels) > 10
    for i, (a, b) in enumerate(pairwise(batch.offsets)):
        ids, slots = expected[int(batch.dataset[i]), int(batch.sources[i])]
        assert np.array_equal(batch.ids[a:b], ids[:-1]) and np.array_equal(batch.slots[a:b], slots[1:])
        assert np.array_equal(batch.targets[a:b], np.where(slots[1:] >= 0, ids[1:], -1))
        assert np.array_equal(batch.positions[a:b], np.arange(b - a))


def test_a_batch_of_nothing_has_one_step_and_no_target(toy: ToyTokens) -> None:
    batch = lay_out(toy.layout(), ["toy_jets"], [], cursor=5)
    assert batch.ids.shape == (1, toy.layout().columns) and (batch.targets == -1).all() and (batch.slots == -1).all()
    assert batch.labels.tolist() == [NO_LABEL] and batch.offsets.tolist() == [0, 1] and batch.cursor == 5


def test_a_batch_of_skipped_blocks_has_no_loss(toy: ToyTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from foundation.model.config import TransformerConfig
    from foundation.model.transformer import Transformer
    from foundation.tasks.base import to_device
    from foundation.tasks.classification import Classification
    from foundation.tasks.generation import Generation

    read = ShardedDataset.block

    def damaged(data: ShardedDataset, number: int) -> Block:
        block = read(data, number)
        return replace(block.first(0), offsets=np.zeros(len(block) + 1, np.int64), bad=True)

    monkeypatch.setattr(ShardedDataset, "block", damaged)
    batch = stream(toy).batches(0)[0]
    backbone = Transformer(TransformerConfig(width=16, layers=1, heads=1), toy.vocabulary.size)
    for task in (Generation(backbone, toy.layout()), Classification(backbone, 2)):
        loss = task(to_device(batch, torch.device("cpu")))
        loss.backward()
        assert float(loss.detach()) == 0.0
    assert Generation.count(batch) == 0
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    assert list(one_pass(data, toy.layout(), 100, hide_class=False)) == []


# Preparing ahead


def prefetching() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_batches_prepared_ahead_are_the_same_in_the_same_order(toy: ToyTokens, depth: int) -> None:
    s, alone = stream(toy), stream(toy)
    with Prefetcher(lambda step: s.batches(step)[0], 7, 19, depth) as ahead:
        for step, batch in zip(range(7, 19), ahead, strict=True):
            assert sequences(batch) == sequences(alone.batches(step)[0]) and batch.cursor == step + 1
    assert not prefetching()


def test_a_resume_after_batches_prepared_in_vain_misses_none(toy: ToyTokens) -> None:
    seen, cursor = [], 0
    for _ in range(4):
        s = stream(toy)
        with Prefetcher(lambda step, s=s: s.batches(step)[0], cursor, 100, 4) as ahead:
            for batch, _ in zip(ahead, range(3), strict=False):
                seen.append(sequences(batch))
                cursor = batch.cursor
        assert not prefetching()
    assert seen == [sequences(stream(toy).batches(step)[0]) for step in range(12)]


@pytest.mark.parametrize("depth", [0, 3])
def test_an_error_while_preparing_comes_at_its_step_with_its_cause(depth: int) -> None:
    def make(step: int) -> int:
        if step == 5:
            raise DataError("000000.tar: block 000000-00002: CRC differs")
        return step

    taken: list[int] = []
    with pytest.raises(DataError, match="block 000000-00002") as caught, Prefetcher(make, 0, 10, depth) as ahead:
        taken += ahead
    # what was ready before is handed out first, and the traceback shows where it happened
    assert [*taken, *range(5)][:5] == list(range(5)) and caught.traceback[-1].name == "make"
    assert not prefetching()


def test_a_consumer_that_fails_leaves_no_thread() -> None:
    with pytest.raises(ZeroDivisionError), Prefetcher(lambda step: step, 0, 10**9, 2) as ahead:
        for step in ahead:
            1 / (step - 3)
    assert not prefetching()
    Prefetcher(lambda step: step, 0, 3, 2).close()  # one that was never used


class Quiet:
    """A metric logger that keeps nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass


def trained(toy: ToyTokens, folder: Path, tokens: TokenStream, prefetch: int) -> str:
    """The metrics of six steps of training."""
    import torch

    from foundation.model.config import TransformerConfig
    from foundation.model.transformer import Transformer
    from foundation.tasks.generation import Generation
    from foundation.train.config import TrainConfig
    from foundation.train.loop import train

    folder.mkdir()
    torch.manual_seed(0)
    task = Generation(Transformer(TransformerConfig(width=16, layers=1, heads=1), toy.vocabulary.size), toy.layout())
    config = TrainConfig(steps=6, row_tokens=64, rows_per_step=6, accumulation=2)
    summary = train(task, tokens, config, folder, Quiet(), 1, "toy", lambda *_: {}, prefetch).summary
    assert summary["left_out"] == {"toy_jets": 0, "toy_showers": 0}
    return (folder / "metrics.jsonl").read_text()


def test_training_is_the_same_with_batches_prepared_ahead(toy: ToyTokens, tmp_path: Path) -> None:
    alone = trained(toy, tmp_path / "alone", stream(toy), 0)
    assert alone.count("loss") == 6 and alone == trained(toy, tmp_path / "ahead", stream(toy), 3)
    assert not prefetching()


def test_an_error_of_the_stream_ends_training_with_its_words(toy: ToyTokens, tmp_path: Path) -> None:
    class Damaged(TokenStream):
        def batches(self, step: int, rank: int = 0, world: int = 1, accumulation: int = 1) -> list[Batch]:
            if step == 4:
                raise DataError("000003.tar: block 000003-00001: CRC differs")
            return super().batches(step, rank, world, accumulation)

    whole = stream(toy)
    damaged = Damaged(whole.datasets, [0.7, 0.3], whole.layout, whole.config)
    with pytest.raises(DataError, match="000003.tar: block 000003-00001"):
        trained(toy, tmp_path / "damaged", damaged, 2)
    assert not prefetching()
