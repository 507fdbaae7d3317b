"""A recipe model with stages that take milliseconds, to test loading and running without the real ones.

As a program it runs a recipe of these stages: `python tiny_recipe.py RECIPE [KEY=VALUE ...]`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from foundation.cli import exit_code
from foundation.data.cards import Section
from foundation.errors import DataError
from foundation.recipe.loading import LoadedRecipe, load_recipe
from foundation.recipe.running import StageContext, run_recipe


class Shape(Section):
    width: int = Field(8, ge=1)
    depth: int = 2
    rates: tuple[float, ...] = ()


class Flat(Section):
    kind: Literal["flat"]
    size: int


class Round(Section):
    kind: Literal["round"]
    radius: float


class Stage(Section):
    version: ClassVar[int] = 1
    name: str

    @property
    def needs_all_ranks(self) -> bool:
        return False

    def references(self) -> dict[str, str]:
        return {}

    def card_names(self) -> tuple[str, ...]:
        return ()

    def execution_only(self) -> set[str]:
        return set()


class Make(Stage):
    kind: Literal["make"]
    lines: int = 3
    loud: bool = False
    mode: Literal["fast", "slow"] = "fast"
    card: str | None = None
    shape: Shape = Shape()
    limit: float | Literal["auto"] | None = None
    form: Annotated[Flat | Round, Field(discriminator="kind")] | None = None
    workers: int = 1
    fail: Literal["", "mistake", "bug"] = ""

    @field_validator("lines")
    @classmethod
    def _even(cls, lines: int) -> int:
        if lines == 13:
            raise ValueError("13 lines bring bad luck")
        return lines

    def card_names(self) -> tuple[str, ...]:
        return (self.card,) if self.card else ()

    def execution_only(self) -> set[str]:
        return {"workers"}


class Train(Stage):
    kind: Literal["train"]
    from_: str = Field(alias="from")
    steps: int = 4
    hang_at: int = -1

    @property
    def needs_all_ranks(self) -> bool:
        return True

    def references(self) -> dict[str, str]:
        return {"from": self.from_}

    def execution_only(self) -> set[str]:
        return {"hang_at"}


class TinyRecipe(Section):
    name: str
    description: str = ""
    seed: int = 1
    stages: tuple[Annotated[Make | Train, Field(discriminator="kind")], ...]


def run_stage(spec: Any, context: StageContext) -> dict[str, object]:
    """Make writes a text; Train copies it step by step, a step being a meeting of all ranks."""
    if isinstance(spec, Make):
        if spec.fail == "mistake":
            raise DataError("x.h5: no such dataset")
        if spec.fail == "bug":
            raise ZeroDivisionError
        (context.folder / "out.txt").write_text("line\n" * spec.lines)
        return {"lines": spec.lines, "headline": [f"{spec.lines} lines"], "report": "out.txt"}
    return _train(spec, context)


def _train(spec: Train, context: StageContext) -> dict[str, object]:
    text = (context.artifact(spec.from_).folder / "out.txt").read_text()
    state = context.folder / "checkpoints" / f"rank{context.rank}"
    state.parent.mkdir(exist_ok=True)
    first = int(state.read_text()) if state.exists() else 0
    for step in range(first, spec.steps):
        if step == spec.hang_at:
            (context.folder / ".hanging").touch()
            time.sleep(60)
        state.write_text(str(step + 1))
        while any(_step(context, rank) <= step for rank in range(context.world_size)):
            time.sleep(0.01)
    if context.is_main:
        (context.folder / "weights").write_text(text * spec.steps)
    return {"first": first, "ranks": context.world_size}


def _step(context: StageContext, rank: int) -> int:
    try:
        return int((context.folder / "checkpoints" / f"rank{rank}").read_text() or 0)
    except FileNotFoundError:
        return 0


def load(path: Path, *overrides: str) -> LoadedRecipe:
    return load_recipe(path, overrides, TinyRecipe)


def main(path: str, *overrides: str) -> int:
    def work() -> int:
        run_recipe(load(Path(path), *overrides), run_stage=run_stage)
        return 0

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
