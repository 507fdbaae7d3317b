"""Everything that is wrong with a recipe, in the words of its author: place, key, reason, nearest valid name.

Pydantic finds the mistakes; here its locations lose what is not in the YAML (tags of unions) and gain a line.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from foundation.data.cards import load_card
from foundation.errors import DataError, did_you_mean
from foundation.recipe.yaml_source import LocatedList, LocatedMapping, Place, plain, stage_names

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MODELS = "models:/"
EXPECTED = {
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping",
    "finite_number": "should be a finite number",
    "float_type": "should be a number",
    "int_type": "should be a whole number",
    "list_type": "should be a list",
    "model_type": "should be a mapping",
    "string_type": "should be text",
    "tuple_type": "should be a list",
}


def as_json(data: Any) -> str:
    """JSON for pydantic's strict mode, which refuses `true` or "3" for a number; whole floats (1e6) become integers."""

    def whole(value: Any) -> Any:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, dict):
            return {key: whole(item) for key, item in value.items()}
        return [whole(item) for item in value] if isinstance(value, list) else value

    return json.dumps(whole(plain(data)))


def validation_problems(error: ValidationError, model: Any, at: KeyPath = ()) -> list[Problem]:
    """Pydantic's errors as (path in the YAML, reason); the reasons of one path are joined by "or"."""
    reasons: dict[KeyPath, list[str]] = {}
    for one in error.errors(include_url=False):
        path, owner = _follow(model, one["loc"])
        path, reason = _explain(dict(one), path, owner)
        known = reasons.setdefault((*at, *path), [])
        if reason not in known:
            known.append(reason)
    return [(path, " or ".join(texts)) for path, texts in reasons.items()]


def _explain(error: Mapping[str, Any], path: KeyPath, owner: type[BaseModel] | None) -> tuple[KeyPath, str]:
    kind, context, given = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return path, "unknown key" + did_you_mean(str(path[-1]), _keys(owner))
    if kind == "missing":
        return path[:-1], f"missing key '{path[-1]}'"
    if kind == "union_tag_not_found":
        return path, f"missing key {context['discriminator']}"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        key = context["discriminator"].strip("'")
        return (*path, key), f"unknown {key} '{context['tag']}'{did_you_mean(context['tag'], known)}"
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        near = did_you_mean(given, known) if isinstance(given, str) else ""
        near = near if "did you mean" in near else ""
        return path, f"should be {context['expected']}{_got(given)}{near}"
    if kind in ("value_error", "assertion_error"):
        return path, str(context["error"])
    return path, EXPECTED.get(kind, error["msg"].replace("Input should be", "should be")) + _got(given)


def _got(value: Any) -> str:
    text = json.dumps(value, default=str)
    return f" (got {text if len(text) <= 60 else text[:57] + '...'})"


def _keys(model: type[BaseModel] | None) -> list[str]:
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _follow(annotation: Any, location: tuple[str | int, ...]) -> tuple[KeyPath, type[BaseModel] | None]:
    """The location without the labels that pydantic adds for unions, and the model that its last key belongs to."""
    path: list[str | int] = []
    owner: type[BaseModel] | None = None
    rest = list(location)
    while rest:
        annotation = _strip(annotation)
        if _is_union(annotation):
            label = str(rest.pop(0))
            annotation = next((m for m in get_args(annotation) if label in _labels(m)), None)
            continue
        part = rest.pop(0)
        if part == "[key]":
            continue
        path.append(part)
        owner, annotation = _step(annotation, part)
    return tuple(path), owner


def _step(annotation: Any, part: str | int) -> tuple[type[BaseModel] | None, Any]:
    arguments = get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = next((f for name, f in annotation.model_fields.items() if part in (name, f.alias)), None)
        return annotation, None if field is None else field.annotation
    if isinstance(part, int) and arguments:
        return None, arguments[part] if Ellipsis not in arguments and part < len(arguments) else arguments[0]
    return None, arguments[-1] if arguments else None


def _strip(annotation: Any) -> Any:
    """The annotation without Annotated and without "or None", neither of which appears in a location."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif _is_union(annotation) and type(None) in get_args(annotation):
            members = tuple(m for m in get_args(annotation) if m is not type(None))
            annotation = Union[members]  # noqa: UP007
        else:
            return annotation


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _labels(member: Any) -> set[str]:
    """What pydantic may call this member of a union in a location: its class name, or a tag."""
    member = _strip(member)
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return {str(getattr(member, "__name__", member))}
    tags = [get_args(f.annotation) for f in member.model_fields.values() if get_origin(f.annotation) is Literal]
    return {member.__name__, *(str(tag) for values in tags for tag in values)}


def stage_problems(data: LocatedMapping, stage_type: Any, folder: Path, reserved: Iterable[str]) -> list[Problem]:
    """What pydantic does not see: names, references and dataset cards, of every stage that is valid by itself."""
    stages = data.get("stages")
    if not isinstance(stages, LocatedList):
        return []
    adapter: TypeAdapter[Any] = TypeAdapter(stage_type)
    names = stage_names(stages)
    problems = _name_problems(names, reserved)
    for i, stage in enumerate(stages):
        try:
            spec = adapter.validate_json(as_json(stage), strict=True)
        except ValidationError:
            continue
        problems += _reference_problems(spec.references(), i, names)
        problems += _card_problems(spec.card_names(), i, stage, folder)
    return problems


def _name_problems(names: list[str | None], reserved: Iterable[str]) -> list[Problem]:
    problems: list[Problem] = []
    rule = "use letters, digits, _ and -, and no key of a recipe"
    for i, name in enumerate(names):
        if name is None:
            continue
        path = ("stages", i, "name")
        if name in names[:i]:
            problems.append((path, f"duplicate stage name '{name}'"))
        if not NAME.fullmatch(name) or name in reserved:
            problems.append((path, f"'{name}' cannot name a stage: {rule}"))
    return problems


def _reference_problems(references: Mapping[str, str], i: int, names: list[str | None]) -> list[Problem]:
    problems: list[Problem] = []
    for field, target in references.items():
        if target.startswith(MODELS) or target in names[:i]:
            continue
        path = ("stages", i, *(int(part) if part.isdecimal() else part for part in field.split(".")))
        if target == names[i]:
            problems.append((path, "a stage cannot use itself"))
        elif target in names:
            problems.append((path, f"stage '{target}' comes later: move it before '{names[i]}'"))
        else:
            near = did_you_mean(target, [name for name in names[:i] if name is not None])
            problems.append((path, f"no stage '{target}' before this one{near}"))
    return problems


def _card_problems(cards: Iterable[str], i: int, stage: Any, folder: Path) -> list[Problem]:
    problems: list[Problem] = []
    for card in cards:
        try:
            load_card(card, folder)
        except DataError as error:
            within = _find(stage, card) or ()
            problems.append((("stages", i, *within), str(error)))
    return problems


def _find(node: Any, word: str) -> KeyPath | None:
    """The path of the first item whose key or value is this word."""
    items: Iterable[tuple[str | int, Any]]
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if word in (key, value):
            return (key,)
        below = _find(value, word)
        if below is not None:
            return (key, *below)
    return None


def report(problems: Iterable[Problem], data: LocatedMapping) -> str:
    """One line per problem: `file:line: stages.pretrain.model.widht: unknown key - did you mean 'width'?`"""
    found: dict[str, list[tuple[int, str]]] = {}
    for path, reason in problems:
        place, words = _place(data, path)
        text = f"{place}: {'.'.join(words)}: {reason}" if words else f"{place}: {reason}"
        found.setdefault(place.source, []).append((place.line or 0, text))
    # File by file, from top to bottom.
    ordered = (text for lines in found.values() for _, text in sorted(lines, key=lambda line: line[0]))
    return "\n".join(dict.fromkeys(ordered))


def _place(data: LocatedMapping, path: KeyPath) -> tuple[Place, list[str]]:
    """Where the end of a path was written, and the path in words: a stage is called by its name."""
    node: Any = data
    place = data.place
    words: list[str] = []
    for part in path:
        if isinstance(node, LocatedMapping) and part in node:
            place, node = node.places[str(part)], node[str(part)]
        elif isinstance(node, LocatedList) and isinstance(part, int) and part < len(node):
            place, node = node.places[part], node[part]
        else:
            node = None
        named = words == ["stages"] and isinstance(node, dict) and isinstance(node.get("name"), str)
        words.append(node["name"] if named else str(part))
    return place, words
