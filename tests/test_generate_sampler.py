"""The sampling engine: fast paths equal the slow ones, and an object is the same whatever it is drawn together with."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from foundation.errors import DataError
from foundation.generate.runs import CapturedRun
from foundation.generate.sampler import Request, Sampled, Sampler, sample
from foundation.generate.sampling_config import SamplingConfig, StreamSampling
from foundation.generate.walk import Walk
from foundation.generate.waves import PREFIXES, Waves
from foundation.model.attention import Packing
from foundation.model.loss import slot_logits
from foundation.model.sizes import SIZES
from foundation.tokens.grammar import Grammar
from foundation.tokens.layout import Mode

from gloo_ranks import run_distributed
from sequence_models import TAG, drawn, layout_of, model_of, prefixes, same

CPU = torch.device("cpu")
GPT2 = {"norm": "layer", "positions": "learned", "max_steps": 80, "activation": "gelu", "bias": True}
OPTIONS = {
    "default": {"kv_heads": 0},
    "grouped": {"qk_norm": True},
    "omnijet": {k: v for k, v in SIZES["omnijet_alpha"].items() if k not in ("width", "mlp", "layers", "heads")}
    | {"kv_heads": 0},
    "registers": {"registers": 3, "kv_heads": 1, "norm": "layer"},
    "all": GPT2 | {"norm_place": "post", "registers": 2, "qk_norm": True, "output_bias": True, "tied": False},
}
STREAMS = {"one": (40,), "three": (30, 9, 20)}
each_mode = pytest.mark.parametrize("mode", ["delayed", "interleaved"])
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
each_streams = pytest.mark.parametrize("sizes", STREAMS.values(), ids=STREAMS.keys())


# Cached decoding against computing everything anew


@each_option
@each_mode
@each_streams
@pytest.mark.parametrize("rows", [1, 37])
def test_cached_logits_equal_recomputed_ones(options: dict, mode: Mode, sizes: tuple[int, ...], rows: int) -> None:
    """At every position, in waves that begin and lose objects at different times."""
    layout, rng = layout_of(sizes, mode), np.random.default_rng(rows)
    model = model_of(layout, options, preference=1.0)
    offsets = np.concatenate([[0], rng.integers(0, 12, rows).cumsum()])
    codes = np.stack([rng.integers(0, s, offsets[-1]) for s in sizes], axis=1)
    labels = np.arange(rows) % 3
    whole = layout.sequences(TAG, codes, offsets, labels, np.zeros((rows, 0)))
    ids, p = torch.from_numpy(whole.ids), layout.prefix_length(TAG)
    with torch.inference_mode():
        places = torch.from_numpy(np.concatenate([np.arange(n) for n in np.diff(whole.offsets)]))
        expected = model(ids, places, Packing(whole.offsets, CPU))
        waves = Waves(model, layout, 80, (2, 16), torch.float32)
        reached = np.full(rows, p)
        starts = [part for part in np.array_split(np.arange(rows), 3) if len(part)]
        seen = 0
        while starts or len(waves):
            if starts:
                new = starts.pop()
                waves.begin(prefixes(layout, labels[new]), torch.from_numpy(new))
            under_way = waves.rows.numpy()
            at = torch.from_numpy(whole.offsets[under_way] + reached[under_way])
            for slot in layout.slots:
                logits, anew = (
                    slot_logits(h, model.output_weight, slot, model.output_bias)
                    for h in (waves.hidden[: len(at)], expected[at - 1])
                )
                assert torch.allclose(logits, anew, atol=1e-5)
            seen += len(at)
            reached[under_way] += 1
            waves.advance(ids[at], torch.from_numpy(whole.offsets[1:][under_way]) == at + 1)
    assert seen == len(whole.ids) - rows * p


# The same objects, whatever they are drawn together with


@pytest.mark.parametrize(
    ("sizes", "fixed", "options"),
    [((40,), None, OPTIONS["omnijet"]), ((30, 9, 20), None, OPTIONS["registers"]), ((30, 9), 5, OPTIONS["grouped"])],
    ids=["one", "three", "patches"],
)
@each_mode
def test_an_object_depends_on_neither_slots_nor_order_nor_company(
    mode: Mode, sizes: tuple[int, ...], fixed: int | None, options: dict
) -> None:
    layout = layout_of(sizes, mode, fixed)
    model, config = model_of(layout, options), SamplingConfig(max_points=20, top_p=0.95)
    every = drawn(model, layout, config, range(60), slots=64)
    assert len({one.codes.tobytes() for one in every.values()}) > 40
    shuffled = np.random.default_rng(1).permutation(60).tolist()
    for slots in (1, 7, 33):
        few = shuffled[: 4 if slots == 1 else 60]
        assert same(drawn(model, layout, config, few, slots=slots), {i: every[i] for i in few})


@each_mode
@pytest.mark.parametrize(("sizes", "fixed"), [((40,), None), ((30, 9, 20), None), ((30, 9), 5)], ids=str)
def test_steps_of_one_shape_draw_the_same_objects(mode: Mode, sizes: tuple[int, ...], fixed: int | None) -> None:
    """What CUDA graphs are captured of, here without a graph."""
    layout = layout_of(sizes, mode, fixed)
    model, config = model_of(layout, OPTIONS["registers"]), SamplingConfig(max_points=20)
    sampler = Sampler(model, layout, TAG, seed=5, config=config, slots=16)
    run, table = CapturedRun(sampler), prefixes(layout, range(3))
    run.walk.skips = False
    given = {i: np.full((i % 4, len(sizes)), i % 9) for i in range(0, 50, 7)}
    waiting = [Request(i, table[i % 3], given.get(i)) for i in range(50)]
    found: dict[int, Sampled] = {}
    while waiting or run.busy:
        room = run.wanted()
        new, waiting = waiting[:room], waiting[room:]
        found |= {one.index: one for one in run.step(new)}
    assert same(found, drawn(model, layout, config, range(50), given=given))


def test_half_precision_draws_the_same_objects_in_any_number_of_slots() -> None:
    layout = layout_of((40, 300))
    model, config = model_of(layout, {"width": 64, "mlp": 1024}), SamplingConfig(max_points=12)
    every = drawn(model, layout, config, range(80), slots=80, dtype=torch.bfloat16)
    assert same(drawn(model, layout, config, range(80), slots=19, dtype=torch.bfloat16), every)
    assert not same(drawn(model, layout, config, range(80), slots=80), every)


def _draw_share(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    layout = layout_of((30, 9))
    share = drawn(model_of(layout), layout, SamplingConfig(max_points=15), range(rank, 40, 2), slots=5 + 20 * rank)
    np.savez(folder / f"{rank}.npz", **{str(i): one.codes for i, one in share.items()})


def _on_two_ranks(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    _draw_share(folder)


def test_two_ranks_draw_what_one_draws(tmp_path: Path) -> None:
    run_distributed(_on_two_ranks, 2, tmp_path)
    layout = layout_of((30, 9))
    alone = drawn(model_of(layout), layout, SamplingConfig(max_points=15), range(40))
    ranks = [np.load(tmp_path / f"{rank}.npz") for rank in range(2)]
    assert all(np.array_equal(ranks[i % 2][str(i)], alone[i].codes) for i in range(40))


def test_another_seed_draws_other_objects() -> None:
    layout = layout_of((40,))
    model, config = model_of(layout), SamplingConfig(max_points=20)
    a, b = (drawn(model, layout, config, range(30), seed=seed) for seed in (1, 2))
    assert sum(np.array_equal(a[i].codes, b[i].codes) for i in range(30)) < 10


# What the engine promises of objects


def sequences_seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """Records the steps that each slot takes."""
    steps: dict[int, list[Tensor]] = {}
    own = Walk.step

    def step(self: Walk, hidden: Tensor, rows: Tensor, stream: int = 0) -> Tensor:
        ids = own(self, hidden, rows, stream)
        for slot, row in zip(rows.tolist(), ids.numpy().copy(), strict=True):
            steps.setdefault(slot, []).append(row)
        return ids

    monkeypatch.setattr(Walk, "step", step)
    return steps


def check_grammar(monkeypatch: pytest.MonkeyPatch, mode: Mode, sizes: tuple[int, ...], tokens: int) -> None:
    layout = layout_of(sizes, mode)
    model, grammar, prefix = model_of(layout, preference=3.0), Grammar(layout), prefixes(layout, [1])[0]
    steps = sequences_seen(monkeypatch)
    taken = Walk.take
    before = np.zeros((len(prefix), layout.columns), np.int64)
    before[:, 0] = prefix
    seen = [0]

    def take(self: Walk, slots: Tensor) -> list:
        for slot in slots.tolist():
            ids = np.stack(steps.pop(slot))
            grammar.check(TAG, np.concatenate([before, ids]))
            seen[0] += int((ids > 0).sum())
        return taken(self, slots)

    monkeypatch.setattr(Walk, "take", take)
    objects = Sampler(model, layout, TAG, seed=1, config=SamplingConfig(max_points=100), slots=256).objects(
        Request(i, prefix) for i in count()
    )
    while seen[0] < tokens:
        next(objects)


@each_mode
@each_streams
def test_the_grammar_is_never_violated(monkeypatch: pytest.MonkeyPatch, mode: Mode, sizes: tuple[int, ...]) -> None:
    check_grammar(monkeypatch, mode, sizes, 20_000)


@pytest.mark.slow
@each_mode
def test_the_grammar_is_never_violated_in_a_million_tokens(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    check_grammar(monkeypatch, mode, (3000, 9, 20), 1_000_000)


@each_mode
def test_objects_have_as_many_points_as_they_may_and_a_cut_is_told(mode: Mode) -> None:
    layout = layout_of((4, 3), mode)
    model = model_of(layout, preference=3.0)
    free = drawn(model, layout, SamplingConfig(max_points=100), range(200))
    most = drawn(model, layout, SamplingConfig(max_points=4), range(200))
    assert max(len(one.codes) for one in free.values()) < 100 and not any(one.cut for one in free.values())
    for i, one in most.items():
        assert np.array_equal(one.codes, free[i].codes[:4]) and one.cut == (len(free[i].codes) > 4)
    least = drawn(model, layout, SamplingConfig(max_points=9, min_points=3), range(200))
    assert min(len(one.codes) for one in least.values()) == 3
    assert min(len(one.codes) for one in free.values()) == 0


@each_mode
@pytest.mark.parametrize("fixed", [None, 9])
def test_a_partial_object_goes_on_as_if_it_had_been_drawn(mode: Mode, fixed: int | None) -> None:
    layout = layout_of((30, 9, 20), mode, fixed)
    model, config = model_of(layout, preference=3.0), SamplingConfig(max_points=12)
    whole = drawn(model, layout, config, range(60))
    given = {i: one.codes[: i % 7] for i, one in whole.items() if len(one.codes) >= i % 7}
    assert same(drawn(model, layout, config, given, given=given, slots=40), {i: whole[i] for i in given})
    foreign = {i: np.full((4, 3), i % 9) for i in range(60)}
    kept = drawn(model, layout, config, foreign, given=foreign)
    assert all(np.array_equal(one.codes[:4], foreign[i]) for i, one in kept.items())
    assert len({len(one.codes) for one in kept.values()}) == (
        1 if fixed else len({len(o.codes) for o in kept.values()})
    )


def test_endless_requests_are_taken_as_there_is_room() -> None:
    layout = layout_of((40,), classes=2000)
    model, taken = model_of(layout, preference=3.0), []

    def requests():  # type: ignore[no-untyped-def]
        for i in count():
            taken.append(i)
            yield Request(i, prefixes(layout, [i % 2000])[0])

    sampler = Sampler(model, layout, TAG, seed=1, config=SamplingConfig(max_points=9), slots=50)
    objects = sampler.objects(requests())
    got = set()
    for number in range(1, 1201):
        got.add(next(objects).index)
        # those of a step are handed out one by one
        assert len(taken) <= number + 2 * 50
    assert len(got) == 1200
    objects.close()
    assert list(sampler.objects([])) == [] and PREFIXES < 1200


def test_the_callers_model_and_modes_are_left_alone() -> None:
    layout = layout_of((40,))
    model = model_of(layout)
    objects = Sampler(model, layout, TAG, seed=1, config=SamplingConfig(max_points=9), dtype=torch.bfloat16).objects(
        Request(i, p) for i, p in enumerate(prefixes(layout, range(3)))
    )
    next(objects)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert model.embedding.weight.dtype == torch.float32 and model.embedding.weight.requires_grad
    sampler = Sampler(model.train(), layout, TAG, seed=1, config=SamplingConfig(max_points=9))
    assert model.training and not sampler.model.training
    assert sampler.model.embedding.weight.data_ptr() == model.embedding.weight.data_ptr()


def test_an_infinite_loss_of_weights_is_named() -> None:
    layout = layout_of((40,))
    model = model_of(layout)
    with torch.no_grad():
        model.embedding.weight[10] = torch.nan
    with pytest.raises(DataError, match="logits are not finite"):
        drawn(model, layout, SamplingConfig(max_points=9), range(3))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3), np.int64), "shape .2, 3., but its points have 2 streams"),
        (np.zeros((6, 2), np.int64), "of 6 points, which is more than the 5 it may have"),
        (np.array([[3, 9]]), "that its tokenizer does not have: they must be below 30, 9"),
        (np.array([[-1, 0]]), "that its tokenizer does not have"),
    ],
)
def test_given_codes_that_do_not_fit_are_refused(codes: np.ndarray, message: str) -> None:
    layout = layout_of((30, 9))
    with pytest.raises(DataError, match=f"object 2 of 'toy' begins with codes.*{message}"):
        drawn(model_of(layout), layout, SamplingConfig(max_points=5), [2], given={2: codes})


def test_settings_and_models_that_do_not_fit_are_refused() -> None:
    layout = layout_of((30, 9))
    with pytest.raises(DataError, match="settings of the stream 's2', but 'toy' has s0, s1"):
        drawn(model_of(layout), layout, SamplingConfig(max_points=5, streams={"s2": StreamSampling()}), [1])
    with pytest.raises(DataError, match="13 steps, but the model has learned positions for 12: raise max_steps"):
        drawn(model_of(layout, GPT2 | {"max_steps": 12}), layout, SamplingConfig(max_points=9), [1])
    same_number = np.array([4, 4])
    with pytest.raises(DataError, match="two objects of a campaign have the same number"):
        sample(model_of(layout), layout, TAG, prefixes(layout, [0, 1]), same_number, 1, SamplingConfig(max_points=5))


def test_nothing_asked_for_is_nothing_drawn() -> None:
    layout = layout_of((30, 9))
    empty = np.zeros(0, np.int64)
    made = sample(model_of(layout), layout, TAG, prefixes(layout, []), empty, 1, SamplingConfig(max_points=5))
    assert made.codes.shape == (0, 2) and made.offsets.tolist() == [0] and made.cut.shape == (0,)


def test_what_does_not_fit_into_the_default_memory_gets_fewer_slots() -> None:
    layout = layout_of((40,))
    wide = model_of(layout, {"width": 256, "heads": 8, "kv_heads": 0, "layers": 3})
    slots = [
        Sampler(wide, layout, TAG, seed=1, config=SamplingConfig(max_points=n)).slots for n in (100, 1700, 200_000)
    ]
    assert slots[0] == 512 and slots[1] == 2 * 2**30 // (2 * 3 * 256 * 4 * 1704) and slots[2] == 16
