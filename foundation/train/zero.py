"""Where DeepSpeed ZeRO keeps the part of a parameter that this process updates.

Attributes of DeepSpeed that its documents do not name are used here and nowhere else (deepspeed 0.19:
utils/tensor_fragment.py, runtime/zero/stage_1_and_2.py, stage3.py).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from foundation.train.state import Apart, Piece


def sharded_piece(name: str, parameter: nn.Parameter, zero: Any) -> Piece | None:
    """ZeRO 1 and 2: groups of parameters are laid end to end and cut into one run per process."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:  # all of it is in the runs of others
        return None
    group = mapping.param_group_index
    owner = zero.optimizer.param_groups[group]["params"][0]
    here, start = mapping.hp_fragment_address, mapping.lp_fragment_address.start
    apart = {}
    if getattr(parameter, "use_muon", False) and hasattr(zero, "params_in_partition"):
        apart["momentum_buffer"] = _whole(parameter, zero.params_in_partition[group])
    return Piece(name, start, owner.data.narrow(0, here.start, here.numel), owner, here.start, apart=apart)


def _whole(parameter: nn.Parameter, of_process: list[nn.Parameter]) -> Apart:
    """Muon's momentum, at ZeRO 1 and 2: whole matrices end to end, also where this process updates a part of one only.

    Not so where ZeRO 1 computes in bf16 (DeepSpeed's BF16_Optimizer): there it is laid out like the weights.
    """
    sizes = [p.numel() for p in of_process]
    place = next(i for i, p in enumerate(of_process) if p is parameter)
    return Apart(sum(sizes[:place]), sizes[place], sum(sizes))


def partitioned_piece(name: str, parameter: nn.Parameter, zero: Any, rank: int) -> Piece | None:
    """ZeRO 3: every parameter is cut into equal parts, the last ones filled up with padding."""
    part = parameter.ds_tensor  # type: ignore[attr-defined]
    start = rank * part.ds_numel
    size = min(part.ds_numel, parameter.ds_numel - start)  # type: ignore[attr-defined]
    if size <= 0:
        return None
    if not parameter.requires_grad:
        return Piece(name, start, part.data.narrow(0, 0, size), None)
    group, at, _ = zero.grad_position[zero.get_param_id(parameter)]
    owner = zero.fp32_partitioned_groups_flat[group]
    return Piece(name, start, owner.data.narrow(0, at, size), owner, at)


def weights_follow(task: nn.Module, pieces: list[Piece], zero: Any, stage: int) -> None:
    """Make the weights that the model computes with anew, from pieces that were just changed; called by all ranks."""
    if stage in (1, 2):
        zero.update_lp_params()
        return
    zero.checkpoint_event_prologue()  # let go of small weights, which are kept whole
    for piece in pieces:
        if piece.owner is not None:
            task.get_parameter(piece.name).ds_tensor.data[: len(piece.values)].copy_(piece.values)  # type: ignore[attr-defined]
    zero.checkpoint_event_epilogue()  # and gather them again
