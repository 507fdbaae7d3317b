"""Running a recipe: stage by stage, in the order of the file, skipping what is finished, continuing what was cut off.

Several ranks (torchrun, accelerate launch) walk through the same stages. Rank 0 runs the stages that need one process
while the others wait for its artifact; all ranks meet in the stages that train. Nobody has to tell the other ranks what
to skip: an artifact with the right key either was there before the launch, or can appear only after every rank took
part, and rank 0 removes what could be mistaken for one before it starts.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from foundation.console import say
from foundation.errors import FoundationError, RecipeError, TrainingError, did_you_mean
from foundation.recipe.artifact import (
    FILE,
    KEY_FILE,
    Artifact,
    StageSpec,
    finished_artifact,
    input_keys,
    recipe_keys,
    write_artifact,
    write_atomically,
)
from foundation.recipe.loading import LoadedRecipe

T = TypeVar("T")
RunStage = Callable[[Any, "StageContext"], dict[str, Any]]
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.05, 2.0


class StageError(FoundationError):
    """A user's mistake that only showed inside a stage."""

    def __init__(self, stage: str, error: FoundationError) -> None:
        super().__init__(f"error in stage {stage}: {error}")


class Tracker(Protocol):
    """What a stage may log (`foundation.registry.tracking.Tracker` has more)."""

    run_id: str | None
    ui_command: str

    def log_params(self, params: Mapping[str, Any]) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...

    def log_artifact(self, path: Path) -> None: ...

    def log_dataset(self, name: str, digest: str, context: str) -> None: ...


class StageTracker:
    """Opens the tracking run of a stage when it first logs something: a stage that logs nothing never loads MLflow."""

    def __init__(self, run_folder: Path, recipe_name: str, spec: StageSpec, key: str) -> None:
        self._run_folder, self._recipe_name, self._spec, self._key = run_folder, recipe_name, spec, key
        self._opened: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._opened is None:
            from foundation.registry.tracking import open_tracker

            tags = {"foundation.kind": self._spec.kind, "foundation.key": self._key}
            self._opened = open_tracker(self._run_folder, self._recipe_name, self._spec.name, tags=tags)
            self._opened.log_params(self._spec.model_dump(mode="json", by_alias=True))
        return getattr(self._opened, name)

    def close(self, status: str) -> None:
        """End the tracking run, if there is one: FINISHED, FAILED or KILLED."""
        if self._opened is not None:
            self._opened.close(status)


@dataclass(frozen=True)
class StageContext:
    """Where a stage works and what it may use."""

    folder: Path
    """The stage's own folder: it writes here and nowhere else; what it finds is of a killed run of the same key."""
    run_folder: Path
    recipe_folder: Path
    """Folder of the recipe file: paths of dataset cards are relative to it."""
    recipe: Any
    seed: int
    rank: int
    world_size: int
    tracker: Tracker
    artifacts: Mapping[str, Artifact]
    """The finished stages before this one, by name."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only one that writes."""
        return self.rank == 0

    def artifact(self, name: str) -> Artifact:
        """The finished stage of this name."""
        if name not in self.artifacts:
            raise RecipeError(f"no finished stage '{name}' before this one{did_you_mean(name, self.artifacts)}")
        return self.artifacts[name]


def run_recipe(
    loaded: LoadedRecipe, until: str | None = None, only: str | None = None, run_stage: RunStage | None = None
) -> dict[str, Artifact]:
    """Run the stages of a recipe in `$FOUNDATION_RUNS/NAME` (./runs/NAME) and return their artifacts.

    `until` stops after that stage; `only` runs just that one, on finished earlier ones. `run_stage` does the work of a
    stage in its folder and returns a summary (JSON); by default that of the platform, imported when a stage must run.
    """
    from foundation.registry.store import runs_base

    recipe, rank = loaded.recipe, int(os.environ.get("RANK", "0"))
    names = [spec.name for spec in recipe.stages]
    for name in (until, only):
        if name is not None and name not in names:
            raise RecipeError(f"no stage '{name}' in recipe '{recipe.name}'{did_you_mean(name, names)}")
    last = names.index(only or until or names[-1]) + 1 if names else 0
    run_folder = runs_base() / recipe.name
    run = _Run(loaded, run_folder, rank, recipe_keys(recipe.stages, recipe.seed, loaded.folder), run_stage)
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(locked(run_folder))
            write_atomically(run_folder / "recipe.yaml", loaded.as_yaml())
        for i, spec in enumerate(recipe.stages[:last]):
            heading = f"[{i + 1}/{last}] {spec.kind:<10} {spec.name}"
            if only is None or spec.name == only:
                run.stage(spec, heading)
            else:
                run.reuse(spec)
        if rank == 0:
            _closing_lines(run.artifacts, run_folder)
    return run.artifacts


class _Run:
    """One pass of one rank over the stages of a recipe."""

    def __init__(
        self, loaded: LoadedRecipe, run_folder: Path, rank: int, keys: dict[str, str], run_stage: RunStage | None
    ) -> None:
        self.loaded, self.run_folder, self.rank, self.keys = loaded, run_folder, rank, keys
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.run_stage = run_stage
        self.artifacts: dict[str, Artifact] = {}

    def reuse(self, spec: StageSpec) -> None:
        """Take the artifact of a stage that is not to be run; without one, only later stages that use it fail."""
        artifact = finished_artifact(self.run_folder / spec.name, self.keys[spec.name])
        if artifact is not None:
            self.artifacts[spec.name] = artifact

    def stage(self, spec: StageSpec, heading: str) -> None:
        """Skip, run or wait for one stage; afterwards its artifact is there."""
        folder, key = self.run_folder / spec.name, self.keys[spec.name]
        artifact = finished_artifact(folder, key)
        if artifact is not None:
            say(f"{heading}  (finished, skipped)")
        elif self.rank == 0:
            artifact = self._run_main(spec, heading)
        else:
            artifact = self._run_beside(spec)
        self.artifacts[spec.name] = artifact

    def _run_main(self, spec: StageSpec, heading: str) -> Artifact:
        folder, key = self.run_folder / spec.name, self.keys[spec.name]
        inputs = input_keys(spec, self.keys)
        missing = [name for name in inputs if name not in self.artifacts]
        if missing:
            raise RecipeError(f"stage '{spec.name}' uses '{missing[0]}', which is not finished: run that one first")
        say(f"{heading}  {_prepare(folder, key)}".rstrip())
        started = time.time()
        summary = self._work(spec, folder)
        artifact = write_artifact(folder, spec, key, self.loaded.recipe.seed, inputs, summary, started)
        say(f"      {_duration(artifact.seconds)}  {_one_line(artifact.summary)}".rstrip())
        return artifact

    def _run_beside(self, spec: StageSpec) -> Artifact:
        folder, key = self.run_folder / spec.name, self.keys[spec.name]
        if spec.needs_all_ranks:
            # Rank 0 may still be emptying the folder of an older key; it writes the new key when it is done.
            _wait_for(lambda: _read_key(folder) == key or None)
            artifact = finished_artifact(folder, key)
            if artifact is not None:
                return artifact
            self._work(spec, folder)
        return _wait_for(lambda: finished_artifact(folder, key))

    def _work(self, spec: Any, folder: Path) -> dict[str, Any]:
        if self.run_stage is None:
            from foundation.recipe.stages import run_stage

            self.run_stage = run_stage
        recipe = self.loaded.recipe
        tracker = StageTracker(self.run_folder, recipe.name, spec, self.keys[spec.name])
        context = StageContext(
            folder=folder,
            run_folder=self.run_folder,
            recipe_folder=self.loaded.folder,
            recipe=recipe,
            seed=recipe.seed,
            rank=self.rank,
            world_size=self.world_size,
            tracker=tracker,
            artifacts=MappingProxyType(dict(self.artifacts)),
        )
        try:
            summary = self.run_stage(spec, context)
        except FoundationError as error:
            tracker.close("FAILED")
            raise StageError(spec.name, error) from error
        except BaseException as error:
            tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
            error.add_note(f"in stage {spec.name} ({spec.kind}) of recipe {recipe.name}")
            raise
        tracker.close("FINISHED")
        return summary


@contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder; the lock goes with the process, however that ends."""
    import fcntl  # not on Windows, where recipes can still be validated
    import socket

    try:
        run_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{run_folder}: this folder cannot be made ({error.strerror})") from None
    with (run_folder / ".lock").open("a+") as f:
        try:
            # A record lock and not flock: forked workers that outlive a killed run must not keep it.
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            f.seek(0)
            owner = f.read().strip() or "another process"
            raise RecipeError(
                f"{run_folder} is in use by {owner}: wait until it ends, or give this recipe another name"
            ) from None
        f.truncate(0)
        f.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        f.flush()
        yield
        f.truncate(0)


def _prepare(folder: Path, key: str) -> str:
    """Make the folder ready for a stage of this key, and say what became of what was in it."""
    found = _read_key(folder)
    contents = [path for path in folder.iterdir() if path.name != KEY_FILE] if folder.is_dir() else []
    if found == key:
        # Its outputs are incomplete; without this, another rank could take it for finished as they come back.
        (folder / FILE).unlink(missing_ok=True)
        return "(continuing)" if contents else ""
    if contents and found is None:
        raise RecipeError(f"{folder} was not written by this program: move it away, or give this recipe another name")
    # The old key stays until the folder is empty: killed in between, the next run empties it again.
    for path in contents:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / KEY_FILE, key + "\n")
    return "(settings or inputs changed: the old result was removed)" if contents else ""


def _read_key(folder: Path) -> str | None:
    try:
        return (folder / KEY_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _wait_for(look: Callable[[], T | None]) -> T:
    """Look again and again until there is something; other ranks wait so for what rank 0 does."""
    launcher, pause = os.getppid(), FIRST_WAIT_SECONDS
    while (found := look()) is None:
        if os.getppid() != launcher:
            raise TrainingError("the launcher of this process is gone, so nobody will end this wait")
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_WAIT_SECONDS)
    return found


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def _one_line(summary: Mapping[str, Any]) -> str:
    """The summary's own `line`, or its numbers and words, as far as they fit."""
    if "line" in summary:
        return str(summary["line"])
    parts: list[str] = []
    for key, value in summary.items():
        if isinstance(value, bool | int | float | str) and key not in ("report", "ui_command"):
            parts.append(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}")
    while parts and len(", ".join(parts)) > 100:
        parts.pop()
    return ", ".join(parts)


def _closing_lines(artifacts: Mapping[str, Artifact], run_folder: Path) -> None:
    """Where the report is, the scores, and how to look at the runs."""
    finished = list(artifacts.values())
    say()
    report = next((a.folder / str(a.summary["report"]) for a in reversed(finished) if "report" in a.summary), None)
    if report is not None:
        say(f"report: {report}")
    for line in next((a.summary["headline"] for a in reversed(finished) if "headline" in a.summary), []):
        say(f"  {line}")
    if (run_folder / "mlflow.json").exists():
        from foundation.registry.store import Store

        say(f"runs: {Store.of(run_folder.parent).ui_command}")
