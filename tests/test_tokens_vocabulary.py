"""Vocabulary and grammar: ids that never move, shared ranges, condition bins, and sequences that are legal or not."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import Condition, DatasetCard
from foundation.data.ragged import to_offsets
from foundation.errors import DataError
from foundation.generate.sampler import SampledCodes, SamplingConfig, sample
from foundation.model.attention import Packing
from foundation.model.config import TransformerConfig
from foundation.model.loss import restricted_cross_entropy, slot_logits
from foundation.model.transformer import Transformer
from foundation.tokens.conditions import (
    ANY_BIN,
    condition_bins,
    condition_edges,
    condition_values,
    conditions_outside,
)
from foundation.tokens.grammar import Grammar
from foundation.tokens.growth import compare, new_ids
from foundation.tokens.id_names import IdNames
from foundation.tokens.kinds import load_tokenizer
from foundation.tokens.layout import Layout, Mode, Sequences
from foundation.tokens.tokenizer import Stream
from foundation.tokens.vocabulary import ANY, BOS, EOS, NONE, Addition, DatasetEntry, Range, Vocabulary

from conftest import JETS, SHOWERS, ToyTokens

V1 = Path(__file__).parent / "data" / "tokenizers_v1"
CPU = torch.device("cpu")
MODES = pytest.mark.parametrize("mode", ["delayed", "interleaved"])


def card(tag: str, classes: int = 0, conditions: int = 0) -> DatasetCard:
    """A card of which the vocabulary needs tag, classes and conditions."""
    energy = Condition(name="energy", unit="GeV", range=(1.0, 100.0), bins=6, scale="log")
    named = tuple(energy.model_copy(update={"name": f"energy{i}"}) for i in range(conditions))
    names = tuple(f"c{i}" for i in range(classes))
    return JETS.model_copy(update={"name": tag, "tag": tag, "classes": names, "conditions": named})


def addition(
    tag: str, codes: str, sizes: tuple[int, ...], fixed: int | None = None, classes: int = 0, conditions: int = 0
) -> Addition:
    """A dataset with a tokenizer of these stream sizes; its digest is that of its name."""
    streams = tuple(Stream(f"s{k}", size) for k, size in enumerate(sizes))
    return Addition(card(tag, classes, conditions), codes, streams, hashlib.sha256(codes.encode()).hexdigest(), fixed)


MIXED = Vocabulary.build(
    [
        addition("one", "one", (9,), classes=2, conditions=1),
        addition("three", "three", (5, 6, 7), conditions=2),
        addition("patches", "patches", (8,), fixed=4, conditions=1),
        addition("residual", "residual", (5, 4), fixed=3, classes=3),
        addition("also_three", "three", (5, 6, 7), classes=1),
    ]
)


# The artefact


def test_the_first_versions_vocabulary_is_byte_equal_and_built_the_same() -> None:
    text = (V1 / "vocabulary.json").read_text()
    vocabulary = Vocabulary.load(V1 / "vocabulary.json")
    assert json.dumps(vocabulary.to_json(), indent=1) == text
    tokenizers = {tag: load_tokenizer(V1 / tag) for tag in vocabulary.datasets}
    built = Vocabulary.build(
        [
            Addition.of(c, tokenizers[c.tag], vocabulary.dataset(c.tag).tokenizer) for c in (JETS, SHOWERS)
        ]
    )  # fmt: skip
    assert built.digest == vocabulary.digest == (V1 / "vocabulary.sha256").read_text().strip()


def test_what_is_new_in_a_vocabulary_is_kept_and_marked(tmp_path: Path) -> None:
    MIXED.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert loaded.digest == MIXED.digest and loaded.datasets == MIXED.datasets
    assert loaded.to_json()["version"] == 2  # an older program must not take it for one that it knows
    assert loaded.dataset("patches").tokens_per_object == 4 and loaded.dataset("also_three").codes == "three"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a vocabulary"),
        ("{", "not a vocabulary"),
        ('{"version": 3}', "version 3 is not readable here"),
        ('{"version": 1, "ranges": [], "datasets": []}', "damaged"),
        ('{"version": 1, "ranges": [{"name": "special", "start": 1, "size": 4}], "datasets": []}', "contiguous"),
        ('{"version": 1, "ranges": [{"name": "special", "start": 0, "size": 4}], "datasets": [{"name": "a", "classes":'
         ' [], "conditions": [], "streams": [], "tokenizer": ""}]}', "needs the range 'tag.a'"),
    ],
)  # fmt: skip
def test_damaged_vocabularies_are_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(DataError, match=f"v.json: .*{words}"):
        Vocabulary.load(tmp_path / "v.json")


# Sharing


def test_datasets_of_one_tokenizer_share_its_ranges_and_slots() -> None:
    assert MIXED.stream_ranges("three") == MIXED.stream_ranges("also_three")
    assert [r.name for r in MIXED.stream_ranges("also_three")] == ["three.s0", "three.s1", "three.s2"]
    assert list(MIXED.tokenizers) == ["one", "three", "patches", "residual"]
    layout = Layout(MIXED)
    assert layout.first_slot["three"] == layout.first_slot["also_three"] and len(layout.slots) == 1 + 3 + 1 + 2
    assert "also_three.s0" not in MIXED.ranges and MIXED.class_range("also_three").size == 1
    assert MIXED.tag_id("also_three") != MIXED.tag_id("three")


def test_two_tokenizers_of_one_name_are_an_error() -> None:
    other = Addition(card("new"), "three", (Stream("s0", 5), Stream("s1", 6), Stream("s2", 7)), "f" * 64)
    with pytest.raises(DataError, match=r"two tokenizers are called 'three': that of 'three' .* that of 'new'"):
        MIXED.grow([other])
    twice = [addition("a", "jets", (5,)), Addition(card("b"), "jets", (Stream("s0", 5),), "f" * 64)]
    with pytest.raises(DataError, match="two tokenizers are called 'jets'"):
        Vocabulary.build(twice)


def test_names_that_clash_are_errors() -> None:
    with pytest.raises(DataError, match="a tag names one dataset only"):
        MIXED.grow([addition("one", "x", (4,))])
    with pytest.raises(DataError, match="already has a dataset 'a'"):
        MIXED.grow([addition("a", "a", (4,)), addition("a", "b", (4,))])
    with pytest.raises(DataError, match="two parts of the vocabulary would be called 'tag.s0'"):
        MIXED.grow([addition("s0", "tag", (1,))])
    bad = card("x", conditions=1)
    for update, words in (({"range": (0.0, 5.0)}, "start the range above 0"), ({"range": (5.0, 5.0)}, "must be below")):
        condition = bad.conditions[0].model_copy(update=update)
        with pytest.raises(DataError, match=f"condition 'energy0' of 'x' .*{words}"):
            MIXED.grow([Addition(bad.model_copy(update={"conditions": (condition,)}), "x", (), "")])


def test_ranges_are_asked_for_by_dataset() -> None:
    assert MIXED.stream_range("residual", "s1").size == 4
    with pytest.raises(DataError, match="have no stream 's2'.*s1"):
        MIXED.stream_range("residual", "s2")
    with pytest.raises(DataError, match="did you mean 'patches'"):
        MIXED.stream_range("patch", "s0")


# Growth

POOL = {"a": ((4,), None), "b": ((3, 5), None), "c": ((6, 2, 2), None), "d": ((7,), 3), "e": ((2, 3), 2)}
"""Tokenizers: sizes of their streams, tokens of an object."""


@st.composite
def growths(draw: st.DrawFn) -> list[list[Addition]]:
    """Up to four growths by up to three datasets each; tokenizers come up again, so that some are shared."""
    number, steps = 0, []
    for count in draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)):
        step = []
        for _ in range(count):
            codes = draw(st.sampled_from(sorted(POOL)))
            sizes, fixed = POOL[codes]
            step.append(addition(f"d{number}", codes, sizes, fixed, draw(st.integers(0, 2)), draw(st.integers(0, 2))))
            number += 1
        steps.append(step)
    return steps


@settings(max_examples=40, deadline=None)
@given(growths(), st.sampled_from(["delayed", "interleaved"]))
def test_growth_moves_no_id(steps: list[list[Addition]], mode: Mode) -> None:
    vocabulary = Vocabulary.build(steps[0])
    for step in steps[1:]:
        grown = vocabulary.grow(step)
        for name, r in vocabulary.ranges.items():
            assert grown.ranges[name] == r
        stops = [r.stop for r in grown.ranges.values()]
        assert [r.start for r in grown.ranges.values()] == [0, *stops[:-1]] and grown.size == stops[-1]
        assert new_ids(vocabulary, grown) == range(vocabulary.size, grown.size) and len(new_ids(vocabulary, grown))
        assert compare(vocabulary, grown).is_growth and not compare(grown, vocabulary).is_growth
        names, names_now = IdNames(vocabulary), IdNames(grown)
        assert all(names.of(i) == names_now.of(i) for i in range(vocabulary.size))
        for tag in vocabulary.datasets:
            before, now = (example(Layout(v, mode), tag, (2, 0, 3), 1) for v in (vocabulary, grown))
            columns = before.ids.shape[1]
            assert np.array_equal(before.ids, now.ids[:, :columns]) and (now.ids[:, columns:] == NONE).all()
        assert Vocabulary.from_json(json.loads(json.dumps(grown.to_json()))).digest == grown.digest
        vocabulary = grown


def test_a_dataset_of_a_known_tokenizer_brings_its_tag_classes_and_conditions_only() -> None:
    grown = MIXED.grow([addition("new", "one", (9,), classes=4, conditions=1)])
    assert grown.size == MIXED.size + 1 + 4 + 6
    assert [r.name for r in compare(MIXED, grown).ranges] == ["tag.new", "class.new", "condition.new.energy0"]


def test_what_is_no_growth_is_said() -> None:
    assert compare(MIXED, MIXED).is_growth and len(new_ids(MIXED, MIXED)) == 0
    other = Vocabulary.build(
        [addition("one", "one", (9,), classes=3, conditions=1), addition("three", "x", (5, 6, 7), fixed=2)]
    )
    changed = compare(MIXED, other).changed
    for words in (
        "range 'class.one' had ids 9 to 10 and has ids 6 to 8",
        "range 'three.s0' (ids 48 to 52) is gone",
        "classes of 'one' were c0, c1 and are c0, c1, c2",
        "conditions of 'three', or their ranges, bins or units, are others",
        "codes of 'three' were s0, s1, s2 and are s0, s1, s2 of 2 tokens",
        "'three' was coded by tokenizer 'three'",
        "dataset 'patches' is gone",
    ):
        assert any(sentence.startswith(words) for sentence in changed), (words, changed)
    with pytest.raises(DataError, match=r"not a growth of the model's: range .* more of such"):
        new_ids(MIXED, other)
    turned = Vocabulary(list(MIXED.ranges.values()), list(reversed(MIXED.datasets.values())))
    assert compare(MIXED, turned).changed == ("the datasets stand in another order",)


def test_ids_are_said_in_words() -> None:
    names = IdNames(MIXED)
    assert names.of(NONE) == "" and names.of(EOS) == "2 eos"
    start = MIXED.stream_range("also_three", "s1").start
    assert names.of(start + 2) == f"{start + 2} three.s1 2"
    assert names.meaning(start + 2) == "code 2 of 0 to 5 of the codes of three, also_three"
    assert names.meaning(MIXED.class_range("residual").start + 1) == "class 'c1' of 'residual'"
    assert names.meaning(MIXED.tag_id("one")) == "an object of dataset 'one'"
    assert names.meaning(MIXED.condition_range("one", "energy0").start + 3) == (
        "condition 'energy0' of 'one': 10 to 21.5443 GeV"
    )
    with pytest.raises(DataError, match=f"ids go from 0 to {MIXED.size - 1}"):
        names.meaning(MIXED.size)


# Conditions

SCALES = st.sampled_from([("linear", -20.0, 80.0), ("linear", 0.0, 1.0), ("log", 0.5, 1000.0), ("log", 500.0, 501.0)])


@settings(deadline=None)
@given(SCALES, st.integers(1, 500), st.floats(0, 1, exclude_max=True), st.data())
def test_bins_of_values_of_bins_are_the_bins(scale, bins: int, uniform: float, data: st.DataObject) -> None:
    kind, low, high = scale
    c = Condition(name="e", unit="GeV", range=(low, high), bins=bins, scale=kind)
    chosen = np.array([data.draw(st.integers(-1, bins - 1)), 0, bins - 1, ANY_BIN])
    for numbers in (None, np.full(4, uniform)):
        values = condition_values(c, chosen, numbers)
        assert np.array_equal(condition_bins(c, values), chosen)
        known = values[chosen >= 0]
        edges = condition_edges(c)
        assert (known >= edges[chosen[chosen >= 0]]).all() and (known <= edges[chosen[chosen >= 0] + 1]).all()
    assert np.isnan(values[3])


def test_the_middle_of_a_bin_is_that_of_its_scale() -> None:
    c = Condition(name="e", unit="GeV", range=(1.0, 100.0), bins=2, scale="log")
    assert condition_values(c, np.array([0, 1])) == pytest.approx([10**0.5, 10**1.5])
    linear = c.model_copy(update={"scale": "linear"})
    assert condition_values(linear, np.array([0, 1])) == pytest.approx([25.75, 75.25])
    with pytest.raises(DataError, match="has bins 0 to 1, not 0..2"):
        condition_values(c, np.array([0, 2]))


def test_values_outside_are_in_the_first_or_last_bin_and_counted() -> None:
    c = Condition(name="e", unit="GeV", range=(1.0, 1000.0), bins=10, scale="log")
    t = Condition(name="theta", unit="rad", range=(-1.0, 0.1), bins=3)
    values = np.array(
        [[0.5, 0.0], [1.0, 0.1], [1000.0, -1.0], [np.inf, -np.inf], [np.nan, np.nan], [1000.5, 0.11]], np.float32
    )
    assert condition_bins(c, values[:, 0]).tolist() == [0, 0, 9, 9, ANY_BIN, 9]
    assert condition_bins(t, values[:, 1]).tolist() == [2, 2, 0, 0, ANY_BIN, 2]
    # the float32 of 0.1 lies above 0.1 and is not outside
    assert conditions_outside((c, t), values) == {"e": 3, "theta": 2}
    assert conditions_outside((c,), values[1:3, :1]) == {}


@pytest.mark.parametrize("value", [0.0, -2.0, -np.inf])
def test_logarithmic_bins_refuse_what_has_no_logarithm(value: float) -> None:
    words = f"condition 'energy0' of 'one' is {value:g} GeV for an object, but its bins are logarithmic"
    with pytest.raises(DataError, match=words):
        Layout(MIXED).prefix("one", np.zeros(2, np.int64), np.array([[5.0], [value]]))
    with pytest.raises(DataError, match=words):
        conditions_outside(MIXED.dataset("one").conditions, np.array([[value]]), "one")


def test_a_condition_that_is_not_given_is_any() -> None:
    prefix = Layout(MIXED).prefix("three", np.array([-1, -1]), np.array([[np.nan, 5.0], [100.0, np.nan]]))
    energy = [MIXED.condition_range("three", f"energy{i}").start for i in (0, 1)]
    assert prefix[:, 2:].tolist() == [[ANY, ANY, energy[1] + 2], [ANY, energy[0] + 5, ANY]]


# The grammar


def example(layout: Layout, tag: str, counts: tuple[int, ...], seed: int) -> Sequences:
    """Random sequences with so many points each; where the number of tokens is fixed, it is that."""
    rng, vocabulary = np.random.default_rng(seed), layout.vocabulary
    entry = vocabulary.dataset(tag)
    n = np.array([count if entry.tokens_per_object is None else entry.tokens_per_object for count in counts])
    codes = [rng.integers(0, r.size, n.sum()) for r in vocabulary.stream_ranges(tag)]
    conditions = rng.choice([2.0, 30.0, 99.0, np.nan], (len(n), len(entry.conditions)))
    labels = rng.integers(-1, len(entry.classes), len(n))
    return layout.sequences(tag, np.stack(codes, axis=1), to_offsets(n), labels, conditions)


def is_built(layout: Layout, tag: str, ids: np.ndarray) -> bool:
    """Whether `Layout.sequences` builds these ids from any object: read back, built again, and compared."""
    vocabulary, p = layout.vocabulary, layout.prefix_length(tag)
    entry, ranges = vocabulary.dataset(tag), vocabulary.stream_ranges(tag)
    k, body = len(ranges), len(ids) - p
    points = (body - 1) / k if layout.mode == "interleaved" else body - max(1, k - 1)
    if points < 0 or points != int(points) or entry.tokens_per_object not in (None, points):
        return False
    n = int(points)
    codes = np.zeros((n, k), np.int64)
    for stream, r in enumerate(ranges):
        j = np.arange(n)
        found = ids[p + j * k + stream, 0] if layout.mode == "interleaved" else ids[p + j + stream, stream]
        codes[:, stream] = np.clip(found - r.start, 0, r.size - 1)
    label = ids[2, 0] - vocabulary.class_range(tag).start
    label = label if 0 <= label < len(entry.classes) else -1
    conditions = []
    for place, c in enumerate(entry.conditions):
        one = ids[3 + place, 0] - vocabulary.condition_range(tag, c.name).start
        conditions.append(condition_values(c, np.array([one if 0 <= one < c.bins else ANY_BIN]))[0])
    given = np.array(conditions).reshape(1, len(conditions))
    return np.array_equal(layout.sequences(tag, codes, np.array([0, n]), np.array([label]), given).ids, ids)


@cache
def grammar(mode: Mode) -> Grammar:
    """The grammar of the mixed vocabulary."""
    return Grammar(Layout(MIXED, mode))


def mutated(ids: np.ndarray, tag: str, data: st.DataObject) -> np.ndarray:
    """A sequence after one accident."""
    ids, steps = ids.copy(), len(ids)
    what = data.draw(st.sampled_from(["id", "drop", "repeat", "swap steps", "swap columns", "cut", "more"]))
    at = data.draw(st.integers(0, steps - 1))
    if what == "id":
        special = st.sampled_from([NONE, BOS, EOS, ANY, -1, MIXED.size])
        anywhere = st.integers(0, MIXED.size - 1)
        ids[at, data.draw(st.integers(0, ids.shape[1] - 1))] = data.draw(special | anywhere)
    elif what in ("drop", "repeat", "swap steps"):
        order = list(range(steps))
        other = data.draw(st.integers(0, steps - 1))
        order[at : at + 1] = {"drop": [], "repeat": [at, at], "swap steps": [other]}[what]
        order = [at if what == "swap steps" and i == other and order[i] == other and i != at else s
                 for i, s in enumerate(order)]  # fmt: skip
        ids = ids[order]
    elif what == "swap columns":
        ids = ids[:, data.draw(st.permutations(range(ids.shape[1])))]
    else:
        ids = ids[:at] if what == "cut" else np.concatenate([ids, ids[-1:]])
    return ids


TAGS = st.sampled_from(list(MIXED.datasets))
MODE = st.sampled_from(["delayed", "interleaved"])


@settings(max_examples=250, deadline=None)
@given(TAGS, MODE, st.integers(0, 5), st.integers(0, 99), st.data())
def test_the_grammar_accepts_what_is_built_and_nothing_else(
    tag: str, mode: Mode, count: int, seed: int, data: st.DataObject
) -> None:
    g = grammar(mode)
    ids = example(g.layout, tag, (count,), seed).ids
    assert g.problem(tag, ids) is None
    g.check(tag, ids)
    wrong = mutated(ids, tag, data)
    problem = g.problem(tag, wrong)
    assert (problem is None) == (len(wrong) > g.layout.prefix_length(tag) and is_built(g.layout, tag, wrong))
    if problem is not None:
        assert "step" in problem and len(problem) < 250
        with pytest.raises(DataError, match=f"not a sequence of '{tag}'"):
            g.check(tag, wrong)


@settings(max_examples=100, deadline=None)
@given(TAGS, MODE, st.integers(0, 5), st.integers(0, 99), st.data())
def test_an_illegal_id_is_named_with_its_place(
    tag: str, mode: Mode, count: int, seed: int, data: st.DataObject
) -> None:
    g = grammar(mode)
    ids = example(g.layout, tag, (count,), seed).ids
    p = g.layout.prefix_length(tag)
    step = data.draw(st.integers(0, len(ids) - 1))
    column = data.draw(st.integers(0, ids.shape[1] - 1))
    ids[step, column] = BOS if step else EOS
    problem = g.problem(tag, ids)
    eos_is_gone = step >= p and not (ids[p:, 0] == EOS).any()
    if not eos_is_gone:
        assert problem is not None and problem.startswith(f"step {step}, column {column} has ")


@MODES
def test_fixed_lengths_end_after_their_last_token_and_not_before(mode: Mode) -> None:
    g = grammar(mode)
    for tag in ("patches", "residual"):
        ids = example(g.layout, tag, (0,), 1).ids
        p = g.layout.prefix_length(tag)
        end = int(np.flatnonzero(ids[:, 0] == EOS)[0])
        for step in range(p, len(ids)):
            for other in ([*ids[:step], *ids[step + 1 :]], [*ids[: step + 1], *ids[step:]]):
                assert g.problem(tag, np.array(other)) is not None
            early = ids.copy()
            early[step, 0] = EOS
            assert (g.problem(tag, early) is None) == (step == end)
        codes = np.zeros((5, len(MIXED.stream_ranges(tag))), np.int64)
        with pytest.raises(DataError, match=r"every object of '\w+' has \d tokens, but object 0 has 5"):
            conditions = np.ones((1, len(MIXED.dataset(tag).conditions)))
            g.layout.sequences(tag, codes, np.array([0, 5]), np.array([-1]), conditions)


def test_problems_are_sentences() -> None:
    g = grammar("delayed")
    ids = example(g.layout, "three", (2,), 1).ids
    r, eos = MIXED.stream_range("three", "s0"), "2 eos"
    wrong = ids.copy()
    wrong[6, 0] = BOS
    assert g.problem("three", wrong) == (
        f"step 6, column 0 has 1 bos, where {r.start} to {r.stop - 1} (three.s0) or {eos} is legal"
    )
    assert g.problem("three", ids[:-1]) == "it breaks off after step 7, and has 9 steps with its 2 points"
    assert g.problem("three", ids[:6]) == "it breaks off after step 5 without eos"
    assert g.problem("three", np.concatenate([ids, ids])) == "it goes on at step 9, after its end"
    assert g.problem("one", ids) == "step 1, column 0 has 5 tag.three, where 4 (tag.one) is legal"
    assert g.problem("three", ids[:0]) == "it has no steps"
    assert g.problem("three", ids[:, :2]) == "it has the shape (9, 2), but steps have 3 columns"


def test_codes_may_be_as_narrow_as_shards_hold_them() -> None:
    layout = Layout(Vocabulary.build([addition("many", "many", (300,)), addition("few", "few", (8,))]))
    codes, nothing = np.arange(4)[:, None], np.zeros((1, 0))
    wide, narrow = (
        layout.sequences("few", codes.astype(t), np.array([0, 4]), np.array([-1]), nothing).ids
        for t in (np.int64, np.uint8)
    )
    assert wide.max() > 300 and np.array_equal(wide, narrow)


@MODES
def test_slots_are_the_legal_ids_wherever_there_is_a_choice(mode: Mode) -> None:
    g = grammar(mode)
    for tag in MIXED.datasets:
        made = example(g.layout, tag, (3,), 2)
        points = MIXED.dataset(tag).tokens_per_object or 3
        legal, p = g.legal(tag, points), g.layout.prefix_length(tag)
        for place in np.ndindex(made.slots[p:].shape):
            step, column = place[0] + p, place[1]
            number, size = made.slots[step, column], legal.stop[step, column] - legal.start[step, column]
            if number < 0:
                assert size == 0
                continue
            slot = g.layout.slots[number]
            assert slot.ends == (MIXED.dataset(tag).tokens_per_object is None and g.layout.first_slot[tag] == number)
            if size:
                assert (slot.start, slot.size) == (legal.start[step, column], size)
            else:
                assert made.ids[step, column] == EOS and slot.ends


# Fixed lengths in the loss and in sampling


def transformer(seed: int = 0) -> Transformer:
    """A small model of the mixed vocabulary that has preferences."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(width=32, layers=2, heads=4, kv_heads=2), MIXED.size).eval()
    with torch.no_grad():
        model.embedding.weight.mul_(15)
    return model


def draw_objects(
    model: Transformer, mode: Mode, tag: str, index: np.ndarray, config: SamplingConfig
) -> tuple[np.ndarray, SampledCodes]:
    """Prefixes and sampled codes of the objects `index`."""
    layout, entry = Layout(MIXED, mode), MIXED.dataset(tag)
    prefix = layout.prefix(tag, np.full(len(index), -1), np.full((len(index), len(entry.conditions)), 10.0))
    return prefix, sample(model, layout, tag, prefix, index, 5, config)


@MODES
@pytest.mark.parametrize("tag", ["patches", "residual"])
def test_sampling_gives_each_object_its_number_of_tokens(mode: Mode, tag: str) -> None:
    model, fixed = transformer(), MIXED.dataset(tag).tokens_per_object
    assert fixed is not None
    # max_points is for objects that end by themselves
    for most in (1, 100):
        _, made = draw_objects(model, mode, tag, np.arange(12), SamplingConfig(max_points=most))
        assert (np.diff(made.offsets) == fixed).all() and not made.cut.any()
        objects = made.codes.reshape(12, fixed, -1)
        for i in (0, 7):
            alone = draw_objects(model, mode, tag, np.array([i]), SamplingConfig(max_points=most))[1]
            assert np.array_equal(alone.codes, objects[i])
        assert len(np.unique(objects, axis=0)) > 2


@MODES
@pytest.mark.parametrize("tag", ["patches", "residual", "also_three"])
def test_the_coldest_sample_is_the_models_first_choice_at_every_place(mode: Mode, tag: str) -> None:
    """The sampler walks through the same sequences that the layout builds for training."""
    model, layout = transformer(3), Layout(MIXED, mode)
    prefix, made = draw_objects(model, mode, tag, np.arange(1), SamplingConfig(max_points=6, temperature=1e-6))
    p, n = prefix.shape[1], int(made.offsets[-1])
    built = layout.sequences(tag, made.codes, made.offsets, np.array([-1]), np.full((1, p - 3), 10.0))
    assert np.array_equal(built.ids[:p, 0], prefix[0])
    steps = len(built.ids)
    with torch.no_grad():
        hidden = model(torch.from_numpy(built.ids), torch.arange(steps), Packing(np.array([0, steps]), CPU))
    seen = 0
    for step, column in np.argwhere(built.slots >= 0):
        slot, wanted = layout.slots[built.slots[step, column]], built.ids[step, column]
        if wanted == EOS and made.cut[0]:
            continue
        best = int(slot_logits(hidden[step - 1 : step], model.output_weight, slot).argmax())
        assert (EOS if best == slot.size else slot.start + best) == wanted
        seen += 1
    assert seen >= n * len(MIXED.stream_ranges(tag))


@MODES
def test_a_certain_end_costs_and_counts_nothing(mode: Mode) -> None:
    layout = Layout(MIXED, mode)
    made = example(layout, "residual", (0, 0), 4)
    assert (made.slots >= 0).sum() == 2 * 3 * 2  # objects, tokens, streams
    slots, targets = (torch.from_numpy(a[1:]) for a in (made.slots, np.where(made.slots >= 0, made.ids, -1)))
    uniform = torch.zeros(len(slots), 8)
    loss = restricted_cross_entropy(uniform, torch.zeros(MIXED.size, 8), targets, slots, layout.slots)
    assert float(loss) == pytest.approx(2 * 3 * (math.log(5) + math.log(4)))


def test_entries_and_slots_of_datasets_are_what_the_tokenizers_say(toy: ToyTokens) -> None:
    new = Addition.of(JETS, toy.tokenizers["toy_jets"], "1" * 64)
    assert new.codes == "toy_jets" and new.tokens_per_object is None and new.sizes["toy_jets.code0"] == 32
    assert new.entry == DatasetEntry("toy_jets", JETS.classes, (), ("code0", "code1", "charge"), "1" * 64)
    assert toy.vocabulary.stream_range("toy_jets", "code1") == Range(
        "toy_jets.code1", toy.vocabulary.stream_range("toy_jets", "code0").stop, 32
    )
