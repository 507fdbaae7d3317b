"""From the name of a recipe to a validated one. Imports neither torch nor MLflow: `foundation validate` is quick."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from foundation.data.cards import shipped
from foundation.errors import RecipeError, did_you_mean
from foundation.recipe.problems import NAME, Problem, as_json, report, stage_problems, validation_problems
from foundation.recipe.yaml_source import apply_override, dump_yaml, read_recipe_file, shown


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe ready to run, and where it came from."""

    path: Path
    """The file that was asked for."""
    recipe: Any
    """The validated model (`foundation.recipe.schema.Recipe`)."""
    resolved: dict[str, Any]
    """The whole recipe as plain data, defaults written out: it can be loaded again."""
    sources: tuple[Path, ...]
    """All files read, the asked one last."""
    overrides: tuple[str, ...]
    sha256: str
    """Hash of `resolved`: equal for recipes that say the same."""

    @property
    def folder(self) -> Path:
        """The recipe's folder: paths of dataset cards are relative to it."""
        return self.path.parent

    def as_yaml(self) -> str:
        """The resolved recipe as YAML, with its origin in comments."""
        origin = [f"# resolved from {', '.join(shown(p) for p in self.sources)}"]
        origin += [f"#   --set {text}" for text in self.overrides]
        return "\n".join([*origin, f"# sha256 {self.sha256}", dump_yaml(self.resolved)])


def shipped_recipes() -> dict[str, Path]:
    """Name (path without suffix, below `recipes/`) and file of every recipe that ships with the platform."""
    base = shipped("recipes")
    return {p.relative_to(base).with_suffix("").as_posix(): p for p in sorted(base.rglob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """The recipe file of this path, or the shipped recipe of this name."""
    path = Path(name)
    if path.is_file():
        return path
    known = shipped_recipes()
    if str(name) in known:
        return known[str(name)]
    if path.suffix in (".yaml", ".yml"):
        near = did_you_mean(path.name, (p.name for p in path.parent.glob("*.yaml"))) if path.parent.is_dir() else ""
        raise RecipeError(f"{name}: no such recipe file{near}")
    raise RecipeError(f"no recipe '{name}'{did_you_mean(str(name), known)}; a file is given by its path, x.yaml")


def load_recipe(name: str | Path, overrides: Sequence[str] = (), model: type[BaseModel] | None = None) -> LoadedRecipe:
    """Read, merge, override and validate a recipe; a RecipeError lists everything that is wrong with it, by line.

    `model` is the pydantic model of a recipe; by default that of the platform.
    """
    if model is None:
        from foundation.recipe.schema import Recipe

        model = Recipe
    path = find_recipe(name).resolve()
    data, sources = read_recipe_file(path)
    top_level = [field.alias or key for key, field in model.model_fields.items()]
    for text in overrides:
        data = apply_override(data, text, top_level)
    problems: list[Problem] = []
    recipe = None
    try:
        recipe = model.model_validate_json(as_json(data), strict=True)
    except ValidationError as error:
        problems += validation_problems(error, model)
    if isinstance(data.get("name"), str) and not NAME.fullmatch(data["name"]):
        problems.append((("name",), f"'{data['name']}' cannot name a run folder: use letters, digits, _ and -"))
    stage_type = get_args(model.model_fields["stages"].annotation)[0]
    problems += stage_problems(data, stage_type, path.parent, top_level)
    if problems or recipe is None:
        raise RecipeError(report(problems, data))
    resolved = recipe.model_dump(mode="json", by_alias=True)
    digest = hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()
    return LoadedRecipe(path, recipe, resolved, sources, tuple(overrides), digest)
