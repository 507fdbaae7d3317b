"""YAML as recipes use it: what scalars mean, and what merging, overriding and writing keep."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from foundation.recipe.yaml_source import (
    LocatedList,
    LocatedMapping,
    Place,
    apply_override,
    dump_yaml,
    merge,
    parse_yaml,
    plain,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
WORDS = st.text("abcdefgh_", min_size=1, max_size=3)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)
TREES = st.dictionaries(WORDS, VALUES, max_size=4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("7.", 7.0),
        ("-.inf", -math.inf),
        ("1_000", 1000),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("'3e-4'", "3e-4"),
        ("~", None),
        ("", None),
    ],
)
def test_scalars_mean_what_a_physicist_expects(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_item_knows_its_line() -> None:
    data = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", "f.yaml")
    assert data.places["a"] == Place("f.yaml", 1)
    assert data["a"].places["c"] == Place("f.yaml", 3)
    assert data["a"]["c"].places == [Place("f.yaml", 4), Place("f.yaml", 5)]
    assert str(data["a"]["c"][1].places["d"]) == "f.yaml:5"


def test_anchors_and_merge_keys_work() -> None:
    data = parse_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n", "f")
    assert plain(data["d"]) == {"b": 1, "c": 3}


@given(TREES)
@example({"_": "\x85", "a": "x\u2028y"})
def test_what_is_written_is_read_back(tree: dict[str, Any]) -> None:
    again = plain(parse_yaml(dump_yaml(tree), "x"))
    assert again == tree
    assert repr(sorted(again.items(), key=lambda item: item[0])) == repr(sorted(tree.items(), key=lambda item: item[0]))


def located(tree: Any, source: str) -> Any:
    """The tree as if it had been read from a file of this name."""
    if isinstance(tree, dict):
        mapping = LocatedMapping(Place(source, 1))
        for key, value in tree.items():
            mapping.put(key, located(value, source), Place(source, 1))
        return mapping
    if isinstance(tree, list):
        return LocatedList([located(item, source) for item in tree], [Place(source, 1)] * len(tree))
    return tree


@given(TREES, TREES)
def test_merging_keeps_what_the_top_says_and_what_only_the_base_has(base: dict[str, Any], top: dict[str, Any]) -> None:
    a, b = located(base, "base"), located(top, "top")
    both = merge(a, b)
    assert set(both) == set(base) | set(top) == set(both.places)
    assert plain(merge(both, b)) == plain(both)
    assert (plain(a), plain(b)) == (base, top)
    for key, value in top.items():
        assert both.places[key].source == "top"
        if not isinstance(value, dict) or not isinstance(base.get(key), dict):
            assert plain(both[key]) == value
    for key in base.keys() - top.keys():
        assert plain(both[key]) == base[key]
        assert both.places[key].source == "base"


@given(TREES, st.lists(WORDS, min_size=1, max_size=3), VALUES)
def test_an_override_changes_one_value_and_nothing_else(tree: dict[str, Any], path: list[str], value: Any) -> None:
    node: Any = tree
    for part in path[:-1]:
        node = node.get(part) if isinstance(node, dict) else node
    assume(node is None or isinstance(node, dict))  # through a scalar is an error, tested elsewhere
    recipe = located(tree, "file")
    changed = plain(apply_override(recipe, ".".join(path) + "=" + dump_yaml([value]), tree.keys() | {path[0]}))
    assert plain(recipe) == tree
    expected: Any = plain(tree)
    node = expected
    for part in path[:-1]:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
    node[path[-1]] = [value]
    assert changed == expected
