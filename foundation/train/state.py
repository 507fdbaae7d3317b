"""The state of training in files that do not depend on the number of processes, nor on how ZeRO spreads it over them.

Every process writes what it holds: pieces of flattened parameters with the state that the optimiser keeps for them
(moments, momentum, slow weights, number of updates) and their moving average, each under the name of its parameter and
the place where it begins. Whoever loads, on any number of processes, picks from these files what it holds now. Nothing
is gathered, so neither needs more memory than training does, and nothing is pickled.

Names in a file: `weights/PARAMETER/START`, `KIND/PARAMETER/START` for state of the optimiser under the optimiser's own
word for it (`exp_avg`, `step`), `STORE.KIND/PARAMETER/START` for other state (`average.weights`). What has an entry per
element of the parameter is [n]; what is one number for all of them has no dimension.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.errors import TrainingError

States = MutableMapping[Tensor, dict[str, Any]]
"""State by the tensor that it is kept for, as `torch.optim.Optimizer.state`: tensors of its size, and numbers."""


@dataclass(frozen=True)
class Apart:
    """Where a parameter begins in state that is laid out in its own way and kept for whole parameters.

    at:     place of the parameter's first element in the tensor of the state
    length: elements of the parameter; this process needs them all, though it updates some only
    size:   elements of the tensor
    """

    at: int
    length: int
    size: int


@dataclass(frozen=True)
class Piece:
    """A run of elements of one flattened parameter (or buffer) that this process holds.

    name:    of the parameter in the task
    start:   first element
    values:  [n]; a view of the weights that the optimiser updates: fp32, also where the model computes in bf16
    owner:   the tensor that the optimiser keeps state for, which may hold many pieces; None for what is not trained
    at:      first element in `owner`, and in all state that is laid out like it
    written: whether this process writes it; of what several hold, one does
    apart:   by kind, where state lies that is laid out otherwise
    """

    name: str
    start: int
    values: Tensor
    owner: Tensor | None
    at: int = 0
    written: bool = True
    apart: Mapping[str, Apart] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Under which a file has this piece."""
        return f"{self.name}/{self.start}"

    def wanted(self, kind: str) -> range:
        """The elements of the parameter of which this process holds such weights or state."""
        if kind in self.apart:
            return range(self.apart[kind].length)
        return range(self.start, self.start + len(self.values))

    def wanted_at_all(self) -> range:
        """The elements of the parameter of which this process holds anything."""
        return max((self.wanted(kind) for kind in ("weights", *self.apart)), key=len)

    def state(self, states: States, kind: str) -> Tensor:
        """The view of all `wanted(kind)` elements of a state; zeros are made where there is none yet."""
        assert self.owner is not None
        apart, kept = self.apart.get(kind), states.setdefault(self.owner, {})
        if kind not in kept:
            kept[kind] = self.owner.new_zeros(apart.size) if apart else torch.zeros_like(self.owner)
        return kept[kind].view(-1).narrow(0, apart.at if apart else self.at, len(self.wanted(kind)))

    def own_state(self, states: States, kind: str) -> Tensor:
        """The view [n] of a state of this piece's own elements."""
        return self.state(states, kind).narrow(0, self.start - self.wanted(kind).start, len(self.values))


def state_files(folder: Path, world: int) -> list[Path]:
    """The files of a checkpoint that `world` processes wrote, by rank."""
    return [folder / f"state_{rank:05d}.safetensors" for rank in range(world)]


def state_tensors(pieces: Iterable[Piece], stores: Mapping[str, States]) -> dict[str, Tensor]:
    """What this process writes, by name: views of what is being trained, to be copied by whoever trains on meanwhile.

    stores: the optimiser's states under the name "", others under theirs.
    """
    tensors: dict[str, Tensor] = {}
    for piece in pieces:
        if not piece.written:
            continue
        tensors[f"weights/{piece.place}"] = piece.values
        for store, states in stores.items():
            kept = states.get(piece.owner, {}) if piece.owner is not None else {}  # none if it was never updated
            for kind, value in kept.items():
                single = not isinstance(value, Tensor) or value.ndim == 0
                # cloned, as many pieces share it and safetensors takes a tensor once only
                part = torch.as_tensor(value).detach().clone() if single else piece.own_state(states, kind)
                tensors[f"{store}.{kind}/{piece.place}".removeprefix(".")] = part
    return tensors


def write_state(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the state of one process. Raises OSError when the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    # safetensors writes for the owner alone; colleagues may read what the folder lets them
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb+") as f:
        os.fsync(f.fileno())  # the marker must not reach the disk before what it vouches for


def read_state(
    paths: Sequence[Path], pieces: Sequence[Piece], stores: Mapping[str, States], rank: int, world: int
) -> None:
    """Fill the pieces of this process, and their state, from the files of any number of processes.

    Begins with the file that most likely has them and stops when nothing is missing, so that as many processes as
    before open one file each. State of a store that is not in `stores` stays in the file. Raises TrainingError naming
    a file that is damaged, or parameters that are nowhere.
    """
    from safetensors import SafetensorError, safe_open

    missing = {piece.name: len(piece.wanted_at_all()) for piece in pieces}
    by_name = {piece.name: piece for piece in pieces}
    first = rank * len(paths) // world
    for path in (*paths[first:], *paths[:first]):
        try:
            with safe_open(path, framework="pt") as saved:
                for place, kinds in _kinds_by_place(saved.keys()).items():
                    name = place.rpartition("/")[0]
                    if name in missing:
                        missing[name] -= _fill(by_name[name], stores, saved, place, kinds)
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


def _kinds_by_place(keys: Iterable[str]) -> dict[str, list[str]]:
    """The kinds that a file has of each piece."""
    found: dict[str, list[str]] = {}
    for key in keys:
        kind, _, place = key.partition("/")
        found.setdefault(place, []).append(kind)
    return found


def _fill(piece: Piece, stores: Mapping[str, States], saved: Any, place: str, kinds: Sequence[str]) -> int:
    """Copy what a saved piece and this one have in common; returns how many elements of it were wanted."""
    start = int(place.rpartition("/")[2])
    there = range(start, start + saved.get_slice(f"weights/{place}").get_shape()[0])
    if not _common(there, piece.wanted_at_all()):
        return 0
    for kind in kinds:
        store, _, word = kind.rpartition(".")
        if kind == "weights":
            _copy_common(saved.get_slice(f"weights/{place}"), there, piece.values, piece.wanted("weights"))
        elif piece.owner is not None and store in stores:
            _fill_state(piece, stores[store], word, saved, f"{kind}/{place}", there)
    return len(_common(there, piece.wanted_at_all()))


def _fill_state(piece: Piece, states: States, kind: str, saved: Any, key: str, there: range) -> None:
    assert piece.owner is not None
    # of old checkpoints, `step` is one number too, though it has a dimension
    if saved.get_slice(key).get_shape() and kind != "step":
        _copy_common(saved.get_slice(key), there, piece.state(states, kind), piece.wanted(kind))
        return
    number = saved.get_tensor(key).reshape(())
    # numbers that an optimiser counts in Python come back as such
    value = number.to(piece.owner.device) if number.is_floating_point() else int(number)
    states.setdefault(piece.owner, {})[kind] = value


def _copy_common(source: Any, there: range, target: Tensor, here: range) -> None:
    """Copy the elements that both runs of a parameter have."""
    both = _common(there, here)
    if both:
        part = source[both.start - there.start : both.stop - there.start]
        target[both.start - here.start : both.stop - here.start].copy_(part)


def _common(a: range, b: range) -> range:
    return range(max(a.start, b.start), min(a.stop, b.stop))
