"""The optimisers of a recipe, and the learning rate of each parameter.

adamw   torch's fused one (arXiv:1711.05101)
muon    DeepSpeed's (kellerjordan.github.io/posts/muon): matrices of the blocks move by orthogonalised momentum, with a
        learning rate of their own; everything else, and so embeddings, outputs, norms and heads, by AdamW
ranger  rectified Adam with lookahead, from the package pytorch_optimizer (arXiv:1908.03265, arXiv:1907.08610)
lion    the sign of a momentum, from the same package (arXiv:2302.06675)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from foundation.errors import TrainingError
from foundation.tasks.base import Task
from foundation.train.config import TrainConfig

Groups = list[dict[str, Any]]

BETAS = {"adamw": (0.9, 0.95), "muon": (0.9, 0.95), "ranger": (0.95, 0.999), "lion": (0.9, 0.99)}
"""What each optimiser takes where the recipe gives no betas: the authors' own for the last two."""
MUON_MOMENTUM = 0.95


def make_optimizer(task: Task, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of all that is trained. Raises TrainingError for what does not go together."""
    _check(config)
    return _MAKERS[config.optimizer](parameter_groups(task, config), config)


def parameter_groups(task: Task, config: TrainConfig) -> Groups:
    """Optimiser groups: matrices with weight decay, the rest without; each knows its peak learning rate.

    Parameters whose rate is 0 are frozen and in no group.
    """
    head = {id(p) for p in task.head_parameters()}
    hidden = {id(p) for p in task.backbone.blocks.parameters() if p.ndim == 2}
    backbone_rate = config.learning_rate if config.backbone_learning_rate is None else config.backbone_learning_rate
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for parameter in task.parameters():
        rate = config.learning_rate if id(parameter) in head else backbone_rate
        if rate == 0:
            parameter.requires_grad_(False)
            continue
        use_muon = config.optimizer == "muon" and id(parameter) in hidden
        if id(parameter) in hidden:
            rate *= _hidden_rate(task.backbone.config.width, config)
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay, use_muon), []).append(parameter)
    return [
        {"params": p, "peak": rate, "lr": rate, "weight_decay": decay, "use_muon": use_muon}
        for (rate, decay, use_muon), p in groups.items()
    ]


def largest_norm(config: TrainConfig) -> float:
    """To which norm gradients are clipped. Muon's are not: an orthogonalised update has a size of its own.

    DeepSpeed under ZeRO would even clip Muon's updates themselves, whose norm is far above any sensible limit for
    gradients, and with them shrink the learning rate.
    """
    return math.inf if config.optimizer == "muon" else config.clip


def _hidden_rate(width: int, config: TrainConfig) -> float:
    """Factor on the rate of the blocks' matrices.

    With Adam's updates, whose entries have a size of their own, the change of a layer's output grows with the number of
    its inputs: the rate of matrices goes with 1 / width, that of everything else stays (arXiv:2203.03466, table 3;
    this is all that is taken from there). Muon's updates are scaled to the shape of the matrix already.
    """
    if config.optimizer == "muon":
        return config.muon_learning_rate / config.learning_rate
    return 1.0 if config.learning_rate_width is None else config.learning_rate_width / width


def _check(config: TrainConfig) -> None:
    if config.optimizer == "muon" and config.offload != "none":
        raise TrainingError("optimizer muon works on whole matrices, which offload cuts up: use offload none, or adamw")


def _adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=config.betas or BETAS["adamw"], fused=True)


def _muon(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """torch.optim.Muon is no choice: ZeRO hands optimisers flat runs, and only DeepSpeed's own knows the matrices."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    if not torch.cuda.is_available():
        _uncompile_muon()
    betas = config.betas or BETAS["muon"]
    for group in groups:
        group |= {"momentum": MUON_MOMENTUM} if group["use_muon"] else {"betas": betas, "eps": 1e-8}
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]  # how DeepSpeed tells them apart
    return MuonWithAuxAdam(groups, adam_optimizer=torch.optim.AdamW, adam_optimizer_kwargs={"fused": True})


def _uncompile_muon() -> None:
    """DeepSpeed compiles the update for every shape of a matrix, which on a CPU takes longer than small runs do."""
    from deepspeed.runtime.zero.muon import muon_optimizer, original_muon

    names = ("muon_update", "zeropower_via_newtonschulz5", "zeropower_via_gram_newtonschulz")
    plain = {name: getattr(original_muon, name) for name in names}
    plain = {name: getattr(f, "_torchdynamo_orig_callable", f) for name, f in plain.items()}
    for name in names:
        setattr(original_muon, name, plain[name])
    muon_optimizer.muon_update = plain["muon_update"]


def _ranger(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    from pytorch_optimizer import Ranger

    class CountingRanger(Ranger):
        """Ranger whose number of updates is in the state of each parameter, not of the group.

        ZeRO 3 updates one flat run after the other, and each time calls all groups, which would count too fast.
        """

        def step(self, closure: Callable[[], float] | None = None) -> Any:
            for group in self.param_groups:
                group["step"] = max((self.state[p].get("step", 0) for p in group["params"]), default=0)
            loss = super().step(closure)
            for group in self.param_groups:
                for parameter in group["params"]:
                    if self.state[parameter]:
                        self.state[parameter]["step"] = group["step"]
            return loss

    # use_gc: centralising gradients needs the rows of matrices, which are lost in ZeRO's flat runs.
    # degenerated_to_sgd: the first updates are momentum's, as in the first Ranger; without it the package (4.1.0) takes
    # them with the opposite sign, and climbs.
    return CountingRanger(groups, betas=config.betas or BETAS["ranger"], use_gc=False, degenerated_to_sgd=True)


def _lion(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    from pytorch_optimizer import Lion

    return Lion(groups, betas=config.betas or BETAS["lion"])


_MAKERS: dict[str, Callable[[Groups, TrainConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "muon": _muon,
    "ranger": _ranger,
    "lion": _lion,
}
