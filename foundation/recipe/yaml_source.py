"""Recipes as text: strict YAML that remembers the line of every key, `extends` and `--set`.

Rules of composition, all of them:
- numbers, true/false and null are what YAML 1.2 says, so `3e-4` is a number and `on` is a word; keys are always words;
- `extends: base.yaml` (or a list, relative to the file; later wins): mappings merge, lists and scalars replace;
  the items of `stages` merge by their `name`, new ones are appended; a mapping with another `kind` or `type` replaces;
  the `name` of a recipe is never inherited, because it is the folder that the run writes to;
- `--set stage.key=value` comes last and replaces one value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from foundation.errors import RecipeError, did_you_mean

NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
MAP, SEQ, MERGE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:merge"
# The keys that choose among models: settings of one choice mean nothing to another.
DISCRIMINATORS = ("kind", "type")
NUMBER = re.compile(r"[-+]?(\.\d+|\d[\d_]*(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Place(NamedTuple):
    """Where a value was written: a file and its line, or an option of the command line (no line)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class LocatedMapping(dict[str, Any]):
    """A mapping that knows where it starts and where each of its keys was written."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.places: dict[str, Place] = {}

    def put(self, key: str, value: Any, place: Place) -> None:
        """Set a key together with its place."""
        self[key] = value
        self.places[key] = place


class LocatedList(list[Any]):
    """A list that knows where each of its items was written."""

    def __init__(self, items: Iterable[Any], places: Iterable[Place]) -> None:
        super().__init__(items)
        self.places = list(places)


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `3e-4` is a float, `on`, `012:30` and `2024-01-01` are strings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class StrictDumper(yaml.SafeDumper):
    """SafeDumper that also quotes the strings that only StrictLoader would read as numbers, `1e6` for example."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out twice: anchors are noise for a reader."""
        return True


StrictLoader.add_implicit_resolver(NULL, re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
StrictLoader.add_implicit_resolver(BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
StrictLoader.add_implicit_resolver(INT, re.compile(r"^[-+]?\d[\d_]*$"), list("-+0123456789"))
StrictLoader.add_implicit_resolver(MERGE, re.compile(r"^<<$"), ["<"])
for _reader in (StrictLoader, StrictDumper):
    _reader.add_implicit_resolver(FLOAT, re.compile(f"^({NUMBER.pattern})$"), list("-+.0123456789"))


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
    # Line breaks of Unicode, folded into spaces unless they are written as escapes.
    style = '"' if re.search("[\x85\u2028\u2029]", data) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


StrictDumper.add_representer(str, _text)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # PyYAML's own reads 010 as octal.
    return int(node.value.replace("_", ""))


StrictLoader.add_constructor(INT, _integer)


def shown(path: Path) -> str:
    """A path as the user would type it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def dump_yaml(data: Any) -> str:
    """Text that `parse_yaml` reads back to equal data, keys in the given order."""
    return yaml.dump(
        plain(data), Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


def parse_yaml(text: str, source: str, with_lines: bool = True) -> Any:
    """The data in a YAML text, as plain scalars, LocatedMapping and LocatedList."""
    loader = StrictLoader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _located(loader, node, source, with_lines, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None and with_lines else None
        hint = " (indent with spaces, not tabs)" if "\\t" in str(error.problem) else ""
        raise RecipeError(f"{Place(source, line)}: not valid YAML: {error.problem}{hint}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


def _located(loader: StrictLoader, node: yaml.Node, source: str, with_lines: bool, above: tuple[yaml.Node, ...]) -> Any:
    def place(of: yaml.Node) -> Place:
        return Place(source, of.start_mark.line + 1 if with_lines else None)

    if any(node is one for one in above):
        raise RecipeError(f"{place(node)}: this anchor contains itself")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode) and node.tag == SEQ:
        items = [_located(loader, item, source, with_lines, above) for item in node.value]
        return LocatedList(items, [place(item) for item in node.value])
    if isinstance(node, yaml.MappingNode) and node.tag == MAP:
        _refuse_duplicates(node, source)
        loader.flatten_mapping(node)
        mapping = LocatedMapping(place(node))
        for key, value in node.value:
            mapping.put(key.value, _located(loader, value, source, with_lines, above), place(key))
        return mapping
    return loader.construct_object(node)


def _refuse_duplicates(node: yaml.MappingNode, source: str) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{Place(source, line)}: a key must be a word, not a list or a mapping")
        if key.tag != MERGE and key.value in first:
            raise RecipeError(f"{Place(source, line)}: duplicate key '{key.value}' (first on line {first[key.value]})")
        first[key.value] = line


def plain(node: Any) -> Any:
    """The same data as ordinary dictionaries and lists."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [plain(item) for item in node]
    return node


def merge(base: Any, top: Any) -> Any:
    """`top` laid over `base`: mappings merge key by key, everything else is replaced."""
    if not isinstance(base, LocatedMapping) or not isinstance(top, LocatedMapping):
        return top
    if any(key in base and key in top and base[key] != top[key] for key in DISCRIMINATORS):
        return top
    out = LocatedMapping(top.place)
    for key, value in base.items():
        out.put(key, value, base.places[key])
    for key, value in top.items():
        out.put(key, merge(base[key], value) if key in base else value, top.places[key])
    return out


def stage_names(stages: Any) -> list[str | None]:
    """The names of a list of stages, None for one without a name; empty if it is no list."""
    if not isinstance(stages, list):
        return []
    found = (stage.get("name") if isinstance(stage, dict) else None for stage in stages)
    return [name if isinstance(name, str) else None for name in found]


def _merge_stages(base: LocatedList, top: LocatedList) -> LocatedList:
    out = LocatedList(base, base.places)
    # A name is matched once: a duplicate inside one file stays a duplicate, for the loader to complain about.
    index = {name: i for i, name in enumerate(stage_names(base)) if name is not None}
    for item, name, place in zip(top, stage_names(top), top.places, strict=True):
        i = None if name is None else index.pop(name, None)
        if i is None:
            out.append(item)
            out.places.append(place)
        else:
            out[i], out.places[i] = merge(base[i], item), place
    return out


def merge_recipes(base: LocatedMapping, top: LocatedMapping) -> LocatedMapping:
    """A recipe laid over the one that it extends: as `merge`, and stages merge by name."""
    out: LocatedMapping = merge(base, top)
    if isinstance(base.get("stages"), LocatedList) and isinstance(top.get("stages"), LocatedList):
        out["stages"] = _merge_stages(base["stages"], top["stages"])
    return out


def read_recipe_file(path: Path, above: tuple[Path, ...] = ()) -> tuple[LocatedMapping, tuple[Path, ...]]:
    """A recipe file with everything it extends merged in, and all files read, the given one last."""
    path = path.resolve()
    if path in above:
        chain = " -> ".join(shown(p) for p in (*above, path))
        raise RecipeError(f"{shown(path)}: extends itself: {chain}")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), shown(path))
    except OSError as error:
        raise RecipeError(f"{shown(path)}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{shown(path)}: not a text file in UTF-8") from None
    if not isinstance(data, LocatedMapping):
        raise RecipeError(f"{shown(path)}: not a recipe: it must be a mapping with the keys name and stages")
    return _extend(path, data, above)


def _extend(path: Path, data: LocatedMapping, above: tuple[Path, ...]) -> tuple[LocatedMapping, tuple[Path, ...]]:
    parents, place = data.pop("extends", []), data.places.pop("extends", data.place)
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise RecipeError(f"{place}: extends: must be the path of a recipe, or a list of paths")
    out: LocatedMapping | None = None
    files: list[Path] = []
    for parent in parents:
        file = path.parent / parent
        if not file.is_file():
            near = did_you_mean(file.name, (p.name for p in file.parent.glob("*.yaml") if p != path))
            raise RecipeError(f"{place}: extends: no file '{parent}' beside this recipe{near}")
        base, read = read_recipe_file(file, (*above, path))
        base.pop("name", None)
        files += [p for p in read if p not in files]
        out = base if out is None else merge_recipes(out, base)
    return (data if out is None else merge_recipes(out, data)), (*files, path)


def apply_override(recipe: LocatedMapping, text: str, top_level: Iterable[str]) -> LocatedMapping:
    """The recipe with one `stage.key=value` applied; `top_level` names the keys that a recipe has besides stages."""
    key, equals, value_text = text.partition("=")
    place = Place(f"--set {text}")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise RecipeError(f"{place}: write it as stage.key=value")
    value = parse_yaml(value_text, str(place), with_lines=False)
    names = stage_names(recipe.get("stages"))
    top_level = list(top_level)
    if path[0] in names:
        if len(path) == 1:
            raise RecipeError(f"{place}: say which key of the stage, {path[0]}.KEY=value")
        path = ["stages", str(names.index(path[0])), *path[1:]]
    elif path[0] not in top_level:
        known = [name for name in names if name is not None] + top_level
        raise RecipeError(f"{place}: no stage '{path[0]}'{did_you_mean(path[0], known)}")
    return _assign(recipe, path, value, place)  # type: ignore[no-any-return]


def _assign(node: Any, path: Sequence[str], value: Any, place: Place) -> Any:
    """A copy of `node` in which the value at `path` is replaced; mappings on the way are created."""
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, LocatedList):
        if not head.isdecimal() or int(head) >= len(node):
            raise RecipeError(f"{place}: '{head}' must be an index from 0 to {len(node) - 1}")
        copy, i = LocatedList(node, node.places), int(head)
        # The place of a list item stays: only the value below it comes from the command line.
        copy[i] = _assign(node[i], rest, value, place)
        copy.places[i] = copy.places[i] if rest else place
        return copy
    if node is not None and not isinstance(node, LocatedMapping):
        raise RecipeError(f"{place}: there is no '{head}' in the single value {node!r}")
    out = LocatedMapping(place if node is None else node.place)
    if node is not None:
        for key, old in node.items():
            out.put(key, old, node.places[key])
    out.put(head, _assign(out.get(head), rest, value, place), out.places.get(head, place) if rest else place)
    return out
