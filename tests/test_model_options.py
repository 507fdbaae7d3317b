"""Every option of the transformer: the published models are settings of it, nothing leaks, decoding equals forward."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from foundation.data.ragged import ragged_arange, to_offsets
from foundation.errors import DataError
from foundation.generate.sampler import SamplingConfig, sample
from foundation.model.attention import Packing
from foundation.model.config import TransformerConfig
from foundation.model.loss import restricted_cross_entropy
from foundation.model.sizes import PARAMETERS, SIZES
from foundation.model.transformer import Transformer, count_parameters
from foundation.model.weights import load_backbone
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import StreamConfig, TokenStream
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Slot
from foundation.train.config import TrainConfig
from foundation.train.engine import make_engine

from conftest import ToyTokens
from gloo_ranks import run_distributed

CPU = torch.device("cpu")
VOCABULARY = 40
SLOTS = (Slot(4, 30, True), Slot(34, 6, False))
GPT2 = {"norm": "layer", "positions": "learned", "max_steps": 64, "activation": "gelu", "bias": True}
OPTIONS = {
    "default": {},
    "grouped": {"kv_heads": 2, "qk_norm": True},
    "omnijet": {key: value for key, value in SIZES["omnijet_alpha"].items() if key not in ("width", "mlp", "layers")}
    | {"heads": 4},
    "gpt2": GPT2,
    "registers": {"registers": 3, "kv_heads": 1, "norm": "layer"},
    "all": GPT2 | {"norm_place": "post", "registers": 2, "qk_norm": True, "output_bias": True, "tied": False},
    "features": {"features": ("pt", "eta_rel"), "registers": 1, "positions": "none"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


class Steps:
    """Packed sequences of random ids, two columns wide, and what follows each step."""

    def __init__(self, counts: list[int], features: int, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.offsets = to_offsets(np.array(counts))
        n = int(self.offsets[-1])
        self.ids = torch.stack(
            [torch.randint(4, 34, (n,), generator=rng), torch.randint(34, 40, (n,), generator=rng)], 1
        )
        self.positions = torch.from_numpy(ragged_arange(np.array(counts)))
        self.features = torch.randn(n, features, generator=rng) if features else None
        self.targets, self.slots = self.ids.roll(1, 0), torch.tensor([[0, 1]]).expand(n, 2)

    def part(self, i: int) -> Steps:
        """Sequence i alone."""
        one, own = copy.copy(self), slice(self.offsets[i], self.offsets[i + 1])
        for name in ("ids", "positions", "targets", "slots"):
            setattr(one, name, getattr(self, name)[own])
        one.features = None if self.features is None else self.features[own]
        one.offsets = np.array([0, len(one.ids)])
        return one

    def hidden(self, model: Transformer) -> Tensor:
        return model(self.ids, self.positions, Packing(self.offsets, CPU), self.features)

    def loss(self, model: Transformer) -> Tensor:
        weight, bias = model.output_weight, model.output_bias
        return restricted_cross_entropy(self.hidden(model), weight, self.targets, self.slots, SLOTS, bias)


def build(options: dict, seed: int = 0, **more: object) -> Transformer:
    """A small model with weights of a size at which everything shows: biases, gains and registers too."""
    torch.manual_seed(seed)
    model = Transformer(
        TransformerConfig(**({"width": 32, "layers": 2, "heads": 4} | options | more)), VOCABULARY
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.embedding.weight[0] = 0.0
    return model


def features_of(options: dict) -> int:
    return len(options.get("features", ()))


@pytest.mark.parametrize(("vocabulary", "published"), [(8_194, 6_570_498), (65_538, 35_987_970)])
def test_omnijets_have_the_published_number_of_parameters(vocabulary: int, published: int) -> None:
    """OmniJet-alpha (arXiv:2403.05618) and OmniJet-alpha_C (arXiv:2501.05534)."""
    with torch.device("meta"):
        assert count_parameters(Transformer(TransformerConfig(size="omnijet_alpha"), vocabulary)) == published


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_are_what_their_names_say(size: str) -> None:
    with torch.device("meta"):
        model = Transformer(TransformerConfig(size=size), 100)
    assert count_parameters(model.blocks) == pytest.approx(PARAMETERS[size], rel=0.1)


def test_a_size_fills_in_what_is_not_given() -> None:
    config = TransformerConfig.model_validate({"size": "1b", "layers": 3})
    assert (config.width, config.layers, config.kv_heads) == (2048, 3, 4)
    assert TransformerConfig(**json.loads(json.dumps(config.model_dump()))) == config
    recipe = TransformerConfig.model_validate_json('{"size": "6m", "features": ["pt"], "dropout": 0}', strict=True)
    assert (recipe.width, recipe.features) == (256, ("pt",))
    with pytest.raises(ValidationError, match="features"):
        TransformerConfig.model_validate_json('{"features": [3]}', strict=True)
    with pytest.raises(ValidationError, match="'1m', '6m'"):
        TransformerConfig.model_validate({"size": "2m"})


def test_architectures_that_contradict_themselves_are_refused() -> None:
    for wrong, reason in (
        ({"positions": "learned"}, "max_steps need each other"),
        ({"max_steps": 5}, "max_steps need each other"),
        ({"positions": "none", "width": 30, "heads": 4}, "width 30 must be a multiple"),
        ({"features": ("pt", "pt")}, "each name once"),
    ):
        with pytest.raises(ValidationError, match=reason):
            TransformerConfig.model_validate(wrong)


def test_a_model_written_before_there_were_options_loads(toy: ToyTokens, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    old = {
        "width": 32,
        "layers": 1,
        "heads": 4,
        "kv_heads": 2,
        "mlp": 0,
        "rope_base": 10000.0,
        "dropout": 0.0,
        "tied": True,
    }
    shapes = {"norm_attention": (32,), "norm_mlp": (32,), "attention.qkv": (64, 32), "attention.out": (32, 32)}
    shapes |= {"gate_up": (192, 32), "down": (32, 96)}
    weights = {f"backbone.blocks.0.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    weights |= {
        "backbone.embedding.weight": torch.randn(toy.vocabulary.size, 32),
        "backbone.norm.weight": torch.ones(32),
    }
    save_file(weights, tmp_path / "model.safetensors")
    toy.vocabulary.save(tmp_path / "vocabulary.json")
    head = {"transformer": old, "mode": "delayed", "task": "generation", "settings": {}}
    (tmp_path / "model.json").write_text(json.dumps(head | {"vocabulary": toy.vocabulary.digest}))
    model, _ = load_backbone(tmp_path)
    assert model.config == TransformerConfig(width=32, layers=1, heads=4, kv_heads=2)


def test_post_norm_block_equals_torchs_encoder_layer() -> None:
    steps = Steps([9, 4, 9], 0)
    options = {"norm": "layer", "norm_place": "post", "activation": "relu", "bias": True, "positions": "none"}
    model = build(options, layers=1)
    theirs = torch.nn.TransformerEncoderLayer(32, 4, dim_feedforward=128, dropout=0.0, batch_first=True).eval()
    block = model.blocks[0]
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attention.qkv.weight,
            "self_attn.in_proj_bias": block.attention.qkv.bias,
            **{f"self_attn.out_proj.{name}": p for name, p in block.attention.out.named_parameters()},
            **{f"linear1.{name}": p for name, p in block.gate_up.named_parameters()},
            **{f"linear2.{name}": p for name, p in block.down.named_parameters()},
            **{f"norm1.{name}": p for name, p in block.norm_attention.named_parameters()},
            **{f"norm2.{name}": p for name, p in block.norm_mlp.named_parameters()},
        }
    )
    ours = steps.hidden(model)
    for a, z in zip(steps.offsets[:-1], steps.offsets[1:], strict=True):
        x = model.embedding(steps.ids[a:z]).sum(dim=1)[None]
        causal = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        assert torch.allclose(ours[a:z], theirs(x, src_mask=causal, is_causal=True)[0], atol=1e-5)


@each_option
def test_first_loss_is_the_log_of_the_number_of_legal_ids(options: dict) -> None:
    torch.manual_seed(1)
    model = Transformer(TransformerConfig(**({"width": 32, "heads": 4} | options)), VOCABULARY)
    steps = Steps([20, 30, 7], features_of(options))
    expected = len(steps.ids) * (math.log(31) + math.log(6))
    assert float(steps.loss(model).detach()) == pytest.approx(expected, rel=0.02)


def test_first_loss_is_right_for_a_wide_model() -> None:
    torch.manual_seed(1)
    steps = Steps([20, 30], 0)
    model = Transformer(TransformerConfig(size="7b", layers=1, mlp=64, width=4096, heads=32), VOCABULARY)
    with torch.no_grad():
        assert float(steps.loss(model)) == pytest.approx(50 * (math.log(31) + math.log(6)), rel=0.03)


@each_option
def test_no_step_sees_a_later_one_or_another_sequence(options: dict) -> None:
    model, steps = build(options), Steps([5, 12, 8], features_of(options))
    embedded: list[Tensor] = []
    model.embedding.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), embedded.append(out)) and None)
    if steps.features is not None:
        steps.features.requires_grad_()
    place = 9
    steps.hidden(model)[place].square().sum().backward()
    allowed = set(range(5, place + 1))
    assert set(torch.nonzero(embedded[0].grad.abs().sum(dim=(1, 2)))[:, 0].tolist()) == allowed
    if steps.features is not None:
        assert steps.features.grad is not None
        assert set(torch.nonzero(steps.features.grad.abs().sum(dim=1))[:, 0].tolist()) == allowed


@each_option
@settings(max_examples=8, deadline=None, database=None)
@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=7), seed=st.integers(0, 99))
def test_loss_depends_on_neither_packing_nor_padding_nor_company(options: dict, counts: list[int], seed: int) -> None:
    model, steps = build(options), Steps(counts, features_of(options), seed)
    with torch.no_grad():
        alone = sum(float(steps.part(i).loss(model)) for i in range(len(counts)))
        assert float(steps.loss(model)) == pytest.approx(alone, rel=2e-5)


@each_option
def test_cached_decoding_equals_forward(options: dict) -> None:
    if features_of(options):
        options = {**options, "features": ()}
    model, steps = build(options), Steps([21, 21, 21], 0)
    ids = steps.ids.unflatten(0, (3, 21))
    with torch.no_grad():
        full = steps.hidden(model).unflatten(0, (3, 21))
        cache, rows = model.open_cache(3, 21), torch.arange(3)
        for step in range(21):
            if step == 10:  # one sequence ends
                rows = rows[cache.keep(torch.tensor([1, 2]))]
            assert torch.allclose(model.decode(ids[rows, step], [cache]), full[rows, step], atol=1e-5)


@pytest.mark.parametrize("options", [OPTIONS["registers"], OPTIONS["all"]], ids=["registers", "all"])
def test_sampling_works_with_options(toy: ToyTokens, options: dict) -> None:
    torch.manual_seed(2)
    model = Transformer(TransformerConfig(**({"width": 32, "layers": 2, "heads": 4} | options)), toy.vocabulary.size)
    layout = toy.layout()
    prefix = layout.prefix("toy_jets", np.zeros(6, np.int64), np.zeros((6, 0)))
    drawn = [
        sample(model, layout, "toy_jets", prefix[chosen], chosen, 5, SamplingConfig(max_points=12))
        for chosen in (np.arange(6), np.arange(3))
    ]
    both = int(drawn[1].offsets[-1])
    assert np.array_equal(drawn[0].codes[:both], drawn[1].codes) and both > 3


def test_a_bias_of_the_output_moves_what_is_drawn(toy: ToyTokens) -> None:
    torch.manual_seed(2)
    model = Transformer(TransformerConfig(width=32, heads=4, output_bias=True), toy.vocabulary.size)
    layout = toy.layout()
    with torch.no_grad():
        assert model.output_bias is not None
        model.output_bias[layout.slots[layout.first_slot["toy_jets"]].start + 7] = 50.0
    prefix = layout.prefix("toy_jets", np.zeros(4, np.int64), np.zeros((4, 0)))
    drawn = sample(model, layout, "toy_jets", prefix, np.arange(4), 5, SamplingConfig(max_points=5))
    assert (drawn.codes[:, 0] == 7).all()


def test_sequences_longer_than_learned_positions_are_refused() -> None:
    model = build(OPTIONS["gpt2"], max_steps=8)
    Steps([8, 3], 0).hidden(model)
    with pytest.raises(DataError, match="9 steps, but the model has learned positions for 8"):
        Steps([3, 9], 0).hidden(model)
    with pytest.raises(DataError, match="raise max_steps"):
        cache = model.open_cache(1, 9)
        cache.filled = 8
        model.decode(torch.ones(1, 2, dtype=torch.int64), [cache])


def test_registers_change_what_is_seen_and_learn() -> None:
    steps, model = Steps([5, 9], 0), build(OPTIONS["registers"])
    before = steps.hidden(model)
    before.square().sum().backward()
    assert model.registers is not None and model.registers.vectors.grad is not None
    assert (model.registers.vectors.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        model.registers.vectors[1].neg_()
    assert not torch.allclose(before, steps.hidden(model), atol=1e-3)


def gradients(model: Transformer, steps: Steps) -> list[Tensor]:
    model.train()
    torch.manual_seed(3)
    loss = steps.loss(model)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputed_activations_give_the_same_gradients(dropout: float) -> None:
    model, steps = build(OPTIONS["all"], dropout=dropout), Steps([5, 12, 8], 0)
    kept = gradients(model, steps)
    model.prepare(recompute=True)
    for a, b in zip(kept, gradients(model, steps), strict=True):
        assert torch.equal(a, b)


@each_option
def test_half_precision_is_close(options: dict) -> None:
    """Under autocast, as on one process, and with bf16 weights, as DeepSpeed holds them."""
    model, steps = build(options), Steps([5, 12, 8], features_of(options))
    exact = gradients(model, steps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(gradients(model, steps)[0], exact[0], rtol=0.05)
    assert torch.allclose(gradients(model.bfloat16(), steps)[0].float(), exact[0], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "all"])
def test_compiled_blocks_are_one_graph_before_attention_and_one_after(name: str) -> None:
    """The halves are compiled with fullgraph, which raises at a graph break; no batch makes them compile again."""
    model = build(OPTIONS[name], layers=3)
    batches = [Steps(counts, 0) for counts in ([5, 12, 8], [30], [3, 3, 17, 40, 2])]
    plain = [gradients(model, steps) for steps in batches]
    for recompute in (False, True):
        model.prepare(compile=True, recompute=recompute)
        compiled = gradients(model, batches[0])
        with torch._dynamo.config.patch(error_on_recompile=True):
            others = [gradients(model, steps) for steps in batches[1:]]
        for want, got in zip(plain, [compiled, *others], strict=True):
            assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(want, got, strict=True))


def test_training_prepares_the_blocks(toy: ToyTokens) -> None:
    model = Transformer(TransformerConfig(width=16, layers=1, heads=2), toy.vocabulary.size)
    make_engine(Generation(model, toy.layout()), TrainConfig(recompute=True)).close()
    assert model.recompute and not model.blocks[0].compiled
    make_engine(Generation(model, toy.layout()), TrainConfig(compile=True)).close()
    assert not model.recompute and model.blocks[0].compiled


@pytest.mark.parametrize(
    ("stage", "compile"), [(3, False), pytest.param(1, True, marks=pytest.mark.slow)], ids=["zero3", "zero1-compiled"]
)
def test_two_ranks_with_all_options_train_like_one(toy: ToyTokens, tmp_path: Path, stage: int, compile: bool) -> None:
    """DeepSpeed around recomputed, and compiled, blocks with every kind of parameter."""
    config = TransformerConfig(width=32, heads=4, layers=2, **OPTIONS["all"])
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    stream = TokenStream([data], [1.0], toy.layout(), StreamConfig(60, 4, 1))

    def losses(settings: TrainConfig) -> list[float]:
        torch.manual_seed(0)
        engine = make_engine(Generation(Transformer(config, toy.vocabulary.size), toy.layout()), settings)
        engine.set_learning_rate(1.0)
        found = []
        for step in range(3):
            batches = stream.batches(step, engine.rank, engine.world)
            targets = sum(map(Generation.count, batches))
            found.append(engine.step([to_device(b, CPU) for b in batches], targets).loss)
        return found

    one = losses(TrainConfig())

    def two() -> None:
        assert losses(TrainConfig(zero_stage=stage, compile=compile, recompute=True)) == pytest.approx(one, rel=1e-4)

    run_distributed(two, 2)


def test_compile_does_not_go_with_zero_3() -> None:
    with pytest.raises(ValidationError, match="compile does not go with zero_stage 3"):
        TrainConfig(compile=True, zero_stage=3)


def test_a_model_that_reads_features_needs_them_and_cannot_generate(toy: ToyTokens) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(width=32, heads=4, features=("pt",)), toy.vocabulary.size)
    with pytest.raises(DataError, match="continuous features pt of every point: they are not given"):
        Steps([4], 0).hidden(model)
    layout = toy.layout()
    prefix = layout.prefix("toy_jets", np.zeros(2, np.int64), np.zeros((2, 0)))
    with pytest.raises(DataError, match="to generate, pretrain a model without features"):
        sample(model, layout, "toy_jets", prefix, np.arange(2), 1, SamplingConfig(max_points=3))
