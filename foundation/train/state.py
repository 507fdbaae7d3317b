"""The state of training in files that do not depend on the number of processes, nor on how ZeRO spreads it over them.

Every process writes what it holds: pieces of flattened parameters with their AdamW moments, each under the name of its
parameter and the place where it begins. Whoever loads, on any number of processes, picks from these files what it
holds now. Nothing is gathered, so neither needs more memory than training does, and nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.errors import TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A run of elements of one flattened parameter (or buffer) that this process holds.

    name:    of the parameter in the task
    start:   first element
    values:  [n]; a view of the weights that the optimiser updates: fp32, also where the model computes in bf16
    owner:   the tensor that the optimiser keeps state for, which may hold many pieces; None for what is not trained
    at:      first element in `owner`
    written: whether this process writes it; of what several hold, one does
    """

    name: str
    start: int
    values: Tensor
    owner: Tensor | None
    at: int = 0
    written: bool = True

    def moment(self, optimizer: torch.optim.Optimizer, kind: str) -> Tensor:
        """The view [n] of a moment of this piece; zeros are made where there is none yet."""
        assert self.owner is not None
        state = optimizer.state[self.owner]
        if kind not in state:
            state[kind] = torch.zeros_like(self.owner)
        return state[kind].view(-1).narrow(0, self.at, len(self.values))


def state_files(folder: Path, world: int) -> list[Path]:
    """The files of a checkpoint that `world` processes wrote, by rank."""
    return [folder / f"state_{rank:05d}.safetensors" for rank in range(world)]


def write_state(path: Path, pieces: Iterable[Piece], optimizer: torch.optim.Optimizer) -> None:
    """Write this process's pieces. Raises OSError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        if not piece.written:
            continue
        place = f"{piece.name}/{piece.start}"
        tensors[f"weights/{place}"] = piece.values
        state = optimizer.state.get(piece.owner, {}) if piece.owner is not None else {}
        if state:  # a parameter that was never updated has none
            tensors[f"step/{place}"] = state["step"].detach().reshape(1).clone()  # safetensors takes a tensor once only
            tensors |= {f"{kind}/{place}": piece.moment(optimizer, kind) for kind in MOMENTS}
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    # safetensors writes for the owner alone; colleagues may read what the folder lets them
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb+") as f:
        os.fsync(f.fileno())  # the marker must not reach the disk before what it vouches for


def read_state(
    paths: Sequence[Path], pieces: Sequence[Piece], optimizer: torch.optim.Optimizer, rank: int, world: int
) -> None:
    """Fill the pieces of this process from the files of any number of processes.

    Begins with the file that most likely has them and stops when nothing is missing, so that as many processes as
    before open one file each. Raises TrainingError naming a file that is damaged, or parameters that are nowhere.
    """
    from safetensors import SafetensorError, safe_open

    missing = {piece.name: len(piece.values) for piece in pieces}
    by_name = {piece.name: piece for piece in pieces}
    first = rank * len(paths) // world
    for path in (*paths[first:], *paths[:first]):
        try:
            with safe_open(path, framework="pt") as saved:
                keys = set(saved.keys())
                for place in (key.removeprefix("weights/") for key in keys if key.startswith("weights/")):
                    name, _, start = place.rpartition("/")
                    if name in missing:
                        trained = f"step/{place}" in keys
                        missing[name] -= _fill(by_name[name], optimizer, saved, place, int(start), trained)
        except (SafetensorError, OSError) as error:
            raise TrainingError(
                f"{path}: missing or damaged ({error}); remove {path.parent} to go on from the checkpoint before it"
            ) from None
        missing = {name: n for name, n in missing.items() if n}
        if not missing:
            return
    raise TrainingError(
        f"{paths[0].parent}: has not all of {', '.join(sorted(missing)[:5])}: written for another model"
    )


def _fill(piece: Piece, optimizer: torch.optim.Optimizer, saved: Any, place: str, start: int, trained: bool) -> int:
    """Copy what a saved piece and this one have in common; returns how many elements. trained: it has moments."""
    weights = saved.get_slice(f"weights/{place}")
    begin = max(start, piece.start)
    end = min(start + weights.get_shape()[0], piece.start + len(piece.values))
    if begin >= end:
        return 0
    here, there = slice(begin - piece.start, end - piece.start), slice(begin - start, end - start)
    piece.values[here].copy_(weights[there])
    if trained and piece.owner is not None:
        for kind in MOMENTS:
            piece.moment(optimizer, kind)[here].copy_(saved.get_slice(f"{kind}/{place}")[there])
        optimizer.state[piece.owner]["step"] = saved.get_tensor(f"step/{place}")[0].to(piece.owner.device)
    return end - begin
