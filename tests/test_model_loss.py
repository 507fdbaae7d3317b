"""The chunked loss equals the softmax over masked logits, and never holds all logits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.model import loss as loss_module
from foundation.model.config import TransformerConfig
from foundation.model.loss import restricted_cross_entropy, slot_logits
from foundation.model.transformer import Transformer
from foundation.stream.reading import ShardedDataset
from foundation.stream.token_stream import one_pass
from foundation.tasks.base import to_device
from foundation.tasks.generation import Generation
from foundation.tokens.layout import Slot
from foundation.tokens.vocabulary import EOS

from conftest import ToyTokens
from gloo_ranks import run_distributed

TABLE = (Slot(4, 6, True), Slot(10, 5, False), Slot(15, 1, True))
VOCABULARY, WIDTH = 16, 8


def masked_softmax(
    hidden: Tensor, weight: Tensor, targets: Tensor, slots: Tensor, bias: Tensor | None = None, z_loss: float = 0.0
) -> Tensor:
    """The definition: logits of all ids, those that are not legal set to minus infinity."""
    logits = hidden @ weight.t() + (0 if bias is None else bias)
    legal = torch.zeros(len(TABLE), len(weight), dtype=torch.bool)
    for number, slot in enumerate(TABLE):
        legal[number, slot.start : slot.start + slot.size] = True
        legal[number, EOS] = slot.ends
    step, column = torch.nonzero(slots >= 0, as_tuple=True)
    masked = logits[step].masked_fill(~legal[slots[step, column]], -torch.inf)
    log_z = masked.logsumexp(1)
    right = masked.gather(1, targets[step, column][:, None])[:, 0]
    return (log_z - right + z_loss * log_z**2).sum()


def places(steps: int, columns: int, seed: int, filled: float = 0.8) -> tuple[Tensor, Tensor]:
    """Targets and slots [steps, columns] at random; -1 where nothing is predicted."""
    rng = np.random.default_rng(seed)
    slots = np.where(rng.random((steps, columns)) < filled, rng.integers(0, len(TABLE), (steps, columns)), -1)
    targets = np.full_like(slots, -1)
    for number, slot in enumerate(TABLE):
        legal = [*range(slot.start, slot.start + slot.size), *([EOS] if slot.ends else [])]
        targets[slots == number] = rng.choice(legal, int((slots == number).sum()))
    return torch.from_numpy(targets), torch.from_numpy(slots)


def inputs(steps: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> list[Tensor]:
    """Hidden states, output matrix and output bias."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(steps, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    return [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def loss_and_gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss / 3, of, materialize_grads=True)]


@settings(max_examples=30, deadline=None)
@given(
    steps=st.integers(1, 40),
    columns=st.integers(1, 3),
    seed=st.integers(0, 1000),
    filled=st.sampled_from([0.0, 0.1, 0.8, 1.0]),
    chunk=st.sampled_from([1, 8, 50, 10**6]),
    z_loss=st.sampled_from([0.0, 0.1]),
    with_bias=st.booleans(),
)
def test_loss_and_gradients_are_those_of_the_masked_softmax(
    steps: int, columns: int, seed: int, filled: float, chunk: int, z_loss: float, with_bias: bool
) -> None:
    targets, slots = places(steps, columns, seed, filled)
    hidden, weight, bias = inputs(steps, seed=seed)
    given_bias, of = (bias, [hidden, weight, bias]) if with_bias else (None, [hidden, weight])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_LOGITS", chunk)
        patch.setattr(loss_module, "SLICE_LOGITS", max(1, chunk // 3))
        fast = restricted_cross_entropy(hidden, weight, targets, slots, TABLE, given_bias, z_loss)
        got = loss_and_gradients(fast, of)
    wanted = loss_and_gradients(masked_softmax(hidden, weight, targets, slots, given_bias, z_loss), of)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradients_survive_a_second_backward_pass_and_partly_frozen_inputs() -> None:
    targets, slots = places(12, 2, 3)
    hidden, weight, bias = inputs(12)
    loss = restricted_cross_entropy(hidden, weight, targets, slots, TABLE, bias)
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    twice = torch.autograd.grad(2.0 * loss, (hidden, weight))
    assert all(torch.allclose(2 * a, b) for a, b in zip(once, twice, strict=True))
    frozen = restricted_cross_entropy(hidden, weight.detach(), targets, slots, TABLE, bias.detach())
    assert torch.allclose(torch.autograd.grad(frozen, hidden)[0], once[0])
    with torch.no_grad():
        assert not restricted_cross_entropy(hidden, weight, targets, slots, TABLE).requires_grad


def test_logits_far_from_zero_are_no_problem() -> None:
    targets, slots = places(20, 1, 5)
    hidden, weight, _ = inputs(20)
    scaled = (hidden * 1e3).detach().requires_grad_()
    got = loss_and_gradients(restricted_cross_entropy(scaled, weight, targets, slots, TABLE), [scaled, weight])
    wanted = loss_and_gradients(masked_softmax(scaled, weight, targets, slots), [scaled, weight])
    assert all(torch.allclose(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("autocast", [True, False])
def test_bf16_is_near_fp32_and_sums_in_fp32(autocast: bool) -> None:
    targets, slots = places(300, 2, 7)
    exact = inputs(300, torch.float32)
    wanted = loss_and_gradients(restricted_cross_entropy(*exact[:2], targets, slots, TABLE, exact[2]), exact)
    rounded = inputs(300, torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = restricted_cross_entropy(*rounded[:2], targets, slots, TABLE, rounded[2])
    got = loss_and_gradients(loss, rounded)
    assert loss.dtype == torch.float32
    assert [g.dtype for g in got[1:]] == [x.dtype for x in rounded]
    assert float(got[0]) == pytest.approx(float(wanted[0]), rel=2e-3)
    for a, b in zip(got[1:], wanted[1:], strict=True):
        assert float((a.float() - b).norm() / b.norm()) < 0.02


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that a tensor had which any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_of_a_large_vocabulary_never_exist_at_once(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, width, size = 512, 4, 20_000
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS", 40 * size)
    hidden = torch.randn(steps, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(4 + size, width, dtype=dtype, requires_grad=True)
    targets, slots = torch.randint(4, 4 + size, (steps, 1)), torch.zeros(steps, 1, dtype=torch.int64)
    with LargestTensor() as largest:
        restricted_cross_entropy(hidden, weight, targets, slots, [Slot(4, size, True)]).backward()
    assert 20 * size < largest.elements <= 41 * size < steps * size / 10
    with torch.no_grad(), LargestTensor() as largest:
        restricted_cross_entropy(hidden, weight, targets, slots, [Slot(4, size, True)])
    assert largest.elements <= 41 * size


def task_and_batch(toy: ToyTokens, **settings: object) -> tuple[Generation, object]:
    torch.manual_seed(0)
    config = TransformerConfig(width=16, layers=1, heads=2, **settings)  # type: ignore[arg-type]
    task = Generation(Transformer(config, toy.vocabulary.size), toy.layout())
    data = ShardedDataset(toy.home / "toy_jets", toy.vocabulary.digest)
    return task, next(one_pass(data, toy.layout(), 300, hide_class=False))


def test_a_matrix_that_is_input_and_output_gets_both_gradients(toy: ToyTokens) -> None:
    task, b = task_and_batch(toy)
    batch = to_device(b, torch.device("cpu"))  # type: ignore[arg-type]
    task(batch).backward()
    got = task.backbone.embedding.weight.grad.clone()
    task.zero_grad()
    hidden = task.backbone(batch.ids, batch.positions, batch.packing)
    total = torch.zeros(())
    for number, slot in enumerate(task.slots):
        step, column = torch.nonzero(batch.slots == number, as_tuple=True)
        y = batch.targets[step, column]
        logits = slot_logits(hidden[step], task.backbone.output_weight, slot)
        total = total + nn.functional.cross_entropy(
            logits, torch.where(y == EOS, slot.size, y - slot.start), reduction="sum"
        )
    total.backward()
    torch.testing.assert_close(got, task.backbone.embedding.weight.grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_z_loss_is_trained_and_not_validated(toy: ToyTokens) -> None:
    task, b = task_and_batch(toy)
    batch = to_device(b, torch.device("cpu"))  # type: ignore[arg-type]
    plain = float(task(batch))
    task.z_loss = 0.01
    assert float(task(batch)) > plain * 1.01
    assert float(task.eval()(batch)) == pytest.approx(plain)


def test_partitioned_output_matrices_get_their_gradients(toy: ToyTokens) -> None:
    """ZeRO-3 with every parameter cut into parts, tied and with a bias: the gradients of one process."""
    run_distributed(zero_3_gradients, 2, toy)


def zero_3_gradients(toy: ToyTokens) -> None:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    for settings_ in ({}, {"tied": False, "output_bias": True}):
        alone, b = task_and_batch(toy, **settings_)
        task, _ = task_and_batch(toy, **settings_)
        batch = to_device(b, torch.device("cpu"))  # type: ignore[arg-type]
        alone(batch).backward()
        engine, *_ = deepspeed.initialize(
            model=task,
            optimizer=torch.optim.SGD(task.parameters(), lr=0.0),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
                "zero_force_ds_cpu_optimizer": False,
                "zero_allow_untested_optimizer": True,
            },
        )
        engine.backward(engine(batch))
        for (name, p), (_, q) in zip(task.named_parameters(), alone.named_parameters(), strict=True):
            assert p.ds_tensor.numel() < p.ds_numel, name
            torch.testing.assert_close(safe_get_full_grad(p), q.grad, rtol=1e-4, atol=1e-4, msg=name)
        engine.step()
        engine.destroy()


def test_sequences_without_targets_are_no_loss() -> None:
    hidden, weight, _ = inputs(3)
    nothing = torch.full((3, 1), -1)
    loss = restricted_cross_entropy(hidden, weight, nothing, nothing, TABLE)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None and weight.grad is not None  # every rank takes part in the backward pass
    assert not hidden.grad.any() and not weight.grad.any()
