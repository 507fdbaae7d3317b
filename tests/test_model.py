"""Transformer, loss, tasks, sampling: fast paths equal the slow ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import DataError
from foundation.generate.campaign import generate
from foundation.generate.sampler import SamplingConfig, sample
from foundation.model.attention import Packing, attend
from foundation.model.config import TransformerConfig
from foundation.model.embedding import start_from
from foundation.model.loss import restricted_cross_entropy, slot_logits
from foundation.model.transformer import Transformer, count_parameters
from foundation.model.weights import ModelFolder, load_backbone, read_model, save_model
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import Batch, one_pass
from foundation.tasks.base import to_device
from foundation.tasks.classification import Classification
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Slot
from foundation.tokens.vocabulary import EOS

from conftest import JETS, SHOWERS, ToyTokens

CPU = torch.device("cpu")
CONFIG = TransformerConfig(width=32, layers=2, heads=4, kv_heads=2)


def model(toy: ToyTokens, config: TransformerConfig = CONFIG, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(config, toy.vocabulary.size).eval()


def batch(toy: ToyTokens, tag: str = "toy_jets", tokens: int = 400, mode: str = "delayed") -> Batch:
    data = ShardedDataset(toy.home / tag, toy.vocabulary.digest)
    return next(one_pass(data, toy.layout(mode), tokens, hide_class=False))


def alone(b: Batch, i: int) -> Batch:
    """Sequence i of a batch as a batch of its own."""
    s = slice(b.offsets[i], b.offsets[i + 1])
    return Batch(
        b.ids[s], b.targets[s], b.slots[s], b.positions[s],
        np.array([0, s.stop - s.start]), b.labels[i : i + 1], b.dataset[i : i + 1],
    )  # fmt: skip


def test_attention_equals_the_masked_formula(toy: ToyTokens) -> None:
    offsets = np.array([0, 7, 8, 30, 41])
    torch.manual_seed(1)
    qkv = torch.randn(41, 4 + 2 + 2, 8)
    q, k, v = qkv.split((4, 2, 2), dim=1)
    attended = attend(qkv[:, :6], qkv[:, 6:], 4, Packing(offsets, CPU))
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(np.diff(offsets)))
    allowed = (owner[:, None] == owner[None]) & torch.tril(torch.ones(41, 41, dtype=torch.bool))
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(8)
    expected = torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v)
    assert torch.allclose(attended, expected, atol=1e-5)


def test_attention_gradient_is_right() -> None:
    offsets = np.array([0, 5, 6, 9])
    qkv = torch.randn(9, 3, 4, dtype=torch.float64, requires_grad=True)
    packing = Packing(offsets, CPU)
    assert torch.autograd.gradcheck(lambda x: attend(x[:, :2], x[:, 2:], 1, packing), (qkv,))


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
@pytest.mark.parametrize("tag", ["toy_jets", "toy_showers"])
def test_loss_does_not_depend_on_the_batch(toy: ToyTokens, tag: str, mode: str) -> None:
    task = Generation(model(toy), toy.layout(mode))
    b = batch(toy, tag, 600, mode)
    together = float(task(to_device(b, CPU)).detach())
    one_by_one = sum(float(task(to_device(alone(b, i), CPU))) for i in range(len(b.labels)))
    assert together == pytest.approx(one_by_one, rel=1e-5)


def test_no_step_sees_a_later_one_or_another_sequence(toy: ToyTokens) -> None:
    m, b = model(toy), batch(toy)
    tb = to_device(b, CPU)
    embedded: list[torch.Tensor] = []
    m.embedding.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), embedded.append(out)) and None)
    place = int(b.offsets[2]) + 3
    m(tb.ids, tb.positions, tb.packing)[place].sum().backward()
    seen = embedded[0].grad.abs().sum(dim=(1, 2)) > 0
    assert set(torch.nonzero(seen)[:, 0].tolist()) == set(range(int(b.offsets[2]), place + 1))


def test_first_loss_is_the_log_of_the_number_of_legal_ids(toy: ToyTokens) -> None:
    layout, b = toy.layout(), batch(toy)
    loss = float(Generation(model(toy), layout)(to_device(b, CPU)))
    expected = sum(math.log(layout.slots[s].width) for s in b.slots[b.slots >= 0])
    assert loss == pytest.approx(expected, rel=0.05)


def test_restricted_loss_in_chunks_equals_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    table = [Slot(4, 6, True), Slot(10, 5, False)]
    hidden, weight = torch.randn(20, 8, requires_grad=True), torch.randn(15, 8, requires_grad=True)
    slots = torch.randint(-1, 2, (20, 2))
    targets = torch.where(slots == 0, torch.randint(4, 10, (20, 2)), torch.where(slots == 1, 12, -1))
    targets[3, 0], slots[3, 0] = EOS, 0
    expected = torch.zeros(())
    for t, s in zip(*torch.nonzero(slots >= 0, as_tuple=True), strict=True):
        logits = slot_logits(hidden[t : t + 1], weight, table[slots[t, s]])
        slot, y = table[slots[t, s]], int(targets[t, s])
        expected = expected - logits.log_softmax(-1)[0, slot.size if y == EOS else y - slot.start]
    for chunk in (8 * 2**20, 30):
        monkeypatch.setattr("foundation.model.loss.CHUNK_LOGITS", chunk)
        loss = restricted_cross_entropy(hidden, weight, targets, slots, table)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        got = torch.autograd.grad(loss, (hidden, weight))
        want = torch.autograd.grad(expected, (hidden, weight), retain_graph=True)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
def test_cached_decoding_equals_full_recomputation(toy: ToyTokens, mode: str) -> None:
    m, b = model(toy), batch(toy, "toy_showers", 600, mode)
    tb = to_device(b, CPU)
    with torch.no_grad():
        full = m(tb.ids, tb.positions, tb.packing)
        for i in range(3):
            a, z = int(b.offsets[i]), int(b.offsets[i + 1])
            cache = m.open_cache(1, z - a)
            for step in range(z - a):
                hidden = m.decode(tb.ids[a + step : a + step + 1], [cache])
                assert torch.allclose(hidden[0], full[a + step], atol=1e-5)


def test_overfits_a_few_sequences(toy: ToyTokens) -> None:
    torch.manual_seed(0)
    task = Generation(Transformer(CONFIG, toy.vocabulary.size), toy.layout())
    b = batch(toy, tokens=100)
    tb, n = to_device(b, CPU), Generation.count(b)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    for _ in range(150):
        loss = task(tb) / n
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.25


def test_classifier_learns_and_does_not_see_the_class_token(toy: ToyTokens) -> None:
    torch.manual_seed(0)
    task = Classification(Transformer(CONFIG, toy.vocabulary.size), 2)
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    batches = [(b, to_device(b, CPU)) for b in one_pass(data, toy.layout(), 800, hide_class=True)]
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    for _ in range(15):
        for b, tb in batches:
            optimizer.zero_grad()
            (task(tb) / len(b.labels)).backward()
            optimizer.step()
    right = sum(int((task.logits(tb).argmax(1) == tb.labels).sum()) for _, tb in batches)
    assert right / len(data) > 0.9


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
def test_a_sample_depends_on_seed_and_index_only(toy: ToyTokens, mode: str) -> None:
    m, layout = model(toy), toy.layout(mode)
    prefix = layout.prefix("toy_jets", np.arange(12) % 2, np.zeros((12, 0)))
    config = SamplingConfig(max_points=12)

    def draw_objects(index: np.ndarray) -> list[bytes]:
        s = sample(m, layout, "toy_jets", prefix[index], index, 5, config)
        return [s.codes[a:b].tobytes() for a, b in zip(s.offsets[:-1], s.offsets[1:], strict=True)]

    together = draw_objects(np.arange(12))
    assert [o for i in range(12) for o in draw_objects(np.array([i]))] == together
    assert len(set(together)) > 6


@pytest.mark.parametrize("mode", ["delayed", "interleaved"])
def test_sampled_likelihood_matches_the_model(toy: ToyTokens, mode: str) -> None:
    """The first code's frequencies equal the probabilities of the full forward pass."""
    m, layout = model(toy, seed=3), toy.layout(mode)
    with torch.no_grad():
        m.embedding.weight.mul_(15)  # an untrained model is uniform: give it preferences
    n = 3000
    prefix = layout.prefix("toy_jets", np.zeros(n, np.int64), np.zeros((n, 0)))
    s = sample(m, layout, "toy_jets", prefix, np.arange(n), 1, SamplingConfig(max_points=1))
    first = np.where(np.diff(s.offsets) > 0, s.codes[np.minimum(s.offsets[:-1], len(s.codes) - 1), 0], 32)
    ids = torch.zeros(3, layout.columns, dtype=torch.int64)
    ids[:, 0] = torch.from_numpy(prefix[0])
    hidden = m(ids, torch.arange(3), Packing(np.array([0, 3]), CPU))[-1:]
    p = torch.softmax(slot_logits(hidden, m.output_weight, layout.slots[0]).double(), -1)[0].detach().numpy()
    counts = np.bincount(first, minlength=33)
    common = p > 0.004
    chi2 = ((counts - n * p) ** 2 / (n * p))[common].sum()
    assert chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())


def test_generated_clouds_have_the_cards_features_and_conditions(toy: ToyTokens) -> None:
    conditions = np.array([[10.0], [40.0], [np.nan]], np.float32)
    made = generate(
        model(toy), toy.layout(), toy.tokenizers["toy_showers"], SHOWERS, np.zeros(3, np.int64), conditions,
        seed=1, config=SamplingConfig(max_points=20), batch=2,
    )  # fmt: skip
    clouds = made.clouds
    assert clouds.features == SHOWERS.feature_names and len(clouds) == 3
    assert np.array_equal(clouds.conditions, conditions, equal_nan=True)
    assert clouds.feature("layer").max() <= 4 and clouds.feature("energy").min() > 0
    cells = np.stack([clouds.owners, clouds.feature("layer"), clouds.feature("x"), clouds.feature("y")])
    assert np.unique(cells, axis=1).shape[1] == len(clouds.points)


def test_model_folder_round_trip_and_strictness(toy: ToyTokens, tmp_path: Path) -> None:
    task = Generation(model(toy), toy.layout())
    about = ModelFolder(CONFIG, "delayed", "generation", {}, toy.vocabulary)
    save_model(tmp_path / "m", task.state_dict(), about)
    backbone, read = load_backbone(tmp_path / "m")
    assert read.vocabulary.digest == toy.vocabulary.digest and read.transformer == CONFIG
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), task.backbone.parameters(), strict=True))
    state = read_model(tmp_path / "m")[1]
    state.pop("backbone.norm.weight")
    save_model(tmp_path / "bad", state, about)
    with pytest.raises(DataError, match="missing: \\['norm.weight'\\]"):
        load_backbone(tmp_path / "bad")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(DataError, match="damaged"):
        load_backbone(tmp_path / "m")


def test_parameters_are_counted_once_when_tied(toy: ToyTokens) -> None:
    v, d, c = toy.vocabulary.size, 32, CONFIG
    attention = d * (4 + 2 * 2) * 8 + d * d
    block = attention + 3 * d * c.mlp_width + 2 * d
    assert count_parameters(Transformer(c, v)) == v * d + 2 * block + d
    untied = c.model_copy(update={"tied": False})
    assert count_parameters(Transformer(untied, v)) == 2 * v * d + 2 * block + d


def test_impossible_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match="even multiple of heads"):
        TransformerConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        TransformerConfig(width=32, heads=4, kv_heads=3)


def test_cards_of_the_toys_are_cards() -> None:
    assert JETS.domain == "jet" and SHOWERS.geometry is not None and SHOWERS.geometry.n_layers == 5


def test_embeddings_that_start_from_a_codebook_keep_its_neighbourhoods(toy: ToyTokens) -> None:
    m = model(toy, CONFIG.model_copy(update={"width": 64, "tied": False}))
    vectors = torch.linspace(-1, 1, 32)[:, None].repeat(1, 2)
    ids = toy.vocabulary.ranges["toy_jets.code0"]
    before = m.embedding.weight.clone()
    start_from(m, range(ids.start, ids.start + ids.size), vectors, torch.Generator().manual_seed(1))
    own = m.embedding.weight[ids.start : ids.start + ids.size]
    distance = torch.cdist(own, own)
    assert (distance[10, 11] < distance[10, 14] < distance[10, 25]) and own.std().item() == pytest.approx(0.15, rel=0.2)
    assert torch.equal(own, m.output[ids.start : ids.start + ids.size])
    assert torch.equal(before[: ids.start], m.embedding.weight[: ids.start])
    assert torch.equal(before[ids.start + ids.size :], m.embedding.weight[ids.start + ids.size :])
