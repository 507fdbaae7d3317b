"""Reading by cards: what is refused, skipped and reported; ranges; and that written files are read back bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.data.cards import DatasetCard
from foundation.data.files import write_point_clouds
from foundation.data.formats import reading
from foundation.data.formats.read_report import ReadReport
from foundation.data.formats.reading import open_file, plan, read_file, read_range, with_features
from foundation.data.formats.writing import write_file
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

PLACES = 6


def card(**changes: Any) -> DatasetCard:
    """A card of padded jets with a pT in MeV relative to nothing, and a label."""
    return DatasetCard.model_validate(
        {
            "name": "small",
            "title": "Small",
            "domain": "jet",
            "tag": "small",
            "licence": "none",
            "features": [
                {"name": "pt", "unit": "GeV", "range": [0.1, 100.0], "log": True},
                {"name": "eta_rel", "range": [-1.0, 1.0]},
                {"name": "phi_rel", "unit": "rad"},
            ],
            "order": ["-pt"],
            "classes": ["background", "signal"],
            "conditions": [{"name": "jet_pt", "unit": "GeV", "range": [1, 1000]}],
            "attributes": [{"name": "jet_eta"}],
            "format": {
                "container": "hdf5",
                "points": {"layout": "padded", "key": "p", "columns": ["pt", "eta_rel", "phi_rel"], "real": "pt"},
                "objects": {"jet_pt": "jets[0]", "jet_eta": "jets[1]"},
                "conversions": {"pt": {"unit": "MeV"}},
                "label": {"key": "y"},
            },
            **changes,
        }
    )


def arrays(jets: int = 20) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    points = np.zeros((jets, PLACES, 3), np.float32)
    counts = rng.integers(1, PLACES + 1, jets)
    real = np.arange(PLACES) < counts[:, None]
    points[..., 0] = np.where(real, -np.sort(-rng.uniform(200, 90_000, (jets, PLACES)), axis=1), 0)
    points[..., 1:] = np.where(real[..., None], rng.normal(0, 0.1, (jets, PLACES, 2)), 0)
    axis = np.stack([rng.uniform(100, 900, jets), rng.uniform(-2, 2, jets)], axis=1).astype(np.float32)
    return {"p": points, "jets": axis, "y": rng.integers(0, 2, jets)}


def write(path: Path, content: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as f:
        for key, values in content.items():
            f[key] = values
    return path


def changed(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    content = arrays()
    change(content)
    return write(path, content)


def same(a: PointClouds, b: PointClouds) -> None:
    for name in ("points", "offsets", "labels", "conditions"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.features, a.units, a.condition_names, a.tag) == (b.features, b.units, b.condition_names, b.tag)


def test_values_units_labels_and_object_level_quantities(tmp_path: Path) -> None:
    content = arrays()
    clouds, report = read_file(card(), write(tmp_path / "a.h5", content))
    real = content["p"][..., 0] > 0
    np.testing.assert_allclose(clouds.feature("pt"), content["p"][..., 0][real] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(clouds.counts, real.sum(axis=1))
    np.testing.assert_array_equal(clouds.labels, content["y"])
    np.testing.assert_array_equal(clouds.conditions, content["jets"])
    assert clouds.condition_names == ("jet_pt", "jet_eta")
    assert (report.objects, report.points, report.empty, report.bad) == (20, int(real.sum()), 0, {})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["p"].__setitem__((3, 0, 1), np.nan), "1 objects with NaN or infinite 'eta_rel', .* number 3"),
        (lambda c: c["p"].__setitem__((3, 0, 0), np.nan), "1 objects with NaN or infinite 'pt', the first is number 3"),
        (lambda c: c["p"].__setitem__((5, 0, 0), -1.0), "1 objects with negative 'pt', the first is number 5"),
        (lambda c: c["p"].__setitem__(7, 0.0), "1 objects with no constituents, the first is number 7"),
        (lambda c: c["jets"].__setitem__((2, 0), np.inf), "1 objects with NaN or infinite 'jet_pt', .* number 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_stops_or_is_skipped_and_counted(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    path = changed(tmp_path / "bad.h5", change)
    with pytest.raises(DataError, match=words) as error:
        read_file(card(), path)
    assert str(path) in str(error.value) and "--skip-bad" in str(error.value)
    number = int(words.split()[-1])
    clouds, report = read_file(card(), path, on_bad="skip")
    good, _ = read_file(card(), write(tmp_path / "good.h5", arrays()))
    same(clouds, good.select(np.arange(20) != number))
    assert list(report.bad.values()) == [1] and report.objects == 19
    assert any("skipped 1 objects" in line for line in report.lines())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.pop("jets"), "jets"),
        (lambda c: c.__setitem__("q", c.pop("p")), "'p'"),
        (lambda c: c.__setitem__("y", c["y"][:-1]), "y"),
        (lambda c: c.__setitem__("p", c["p"][..., :2]), "has 2 columns; 3 are expected"),
        (lambda c: c.__setitem__("p", c["p"][..., 0]), "has 2 axes"),
        (lambda c: c.__setitem__("y", c["y"] + 5), "no class of the card"),
        (lambda c: c.__setitem__("y", np.array([b"signal"] * 20)), "y"),
    ],
)
def test_files_of_another_layout_are_one_sentence(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], object], words: str
) -> None:
    path = changed(tmp_path / "other.h5", change)
    with pytest.raises(DataError, match=words) as error:
        read_file(card(), path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_points_in_another_order_are_put_in_order_and_counted(tmp_path: Path) -> None:
    good, _ = read_file(card(), write(tmp_path / "good.h5", arrays()))
    path = changed(tmp_path / "turned.h5", lambda c: c.__setitem__("p", c["p"][:, ::-1]))
    clouds, report = read_file(card(), path)
    same(clouds, good)
    assert report.reordered == int((good.counts > 1).sum())


def test_a_selection_leaves_objects_out_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays())
    everything, _ = read_file(card(), path)
    clouds, report = read_file(card(selection={"jet_pt": [300, 600]}), path)
    inside = (everything.condition("jet_pt") >= 300) & (everything.condition("jet_pt") <= 600)
    same(clouds, everything.select(inside))
    assert report.left_out == {"jet_pt": int((~inside).sum())}


def test_points_outside_a_range_are_counted_and_kept(tmp_path: Path) -> None:
    path = changed(tmp_path / "wide.h5", lambda c: c["p"].__setitem__((0, 0, 1), 3.0))
    clouds, report = read_file(card(), path)
    assert report.outside == {"eta_rel": 1} and clouds.feature("eta_rel").max() == 3.0


def test_ranges_cover_a_file_and_do_not_change_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5", arrays())
    whole, report = read_file(card(), path)
    monkeypatch.setattr(reading, "RANGE_BYTES", 300)
    ranges = plan(card(), path)
    assert len(ranges) > 3 and [r.stop for r in ranges[:-1]] == [r.start for r in ranges[1:]]
    assert (ranges[0].start, ranges[-1].stop) == (0, 20)
    parts = [read_range(card(), path, r.start, r.stop) for r in ranges]
    same(PointClouds.concatenate([clouds for clouds, _ in parts]), whole)
    assert sum((r for _, r in parts), ReadReport()) == report


def test_the_platforms_own_files_are_read_by_the_same_card(tmp_path: Path) -> None:
    clouds, _ = read_file(card(), write(tmp_path / "a.h5", arrays()))
    own = tmp_path / "own.h5"
    write_point_clouds(own, clouds)
    again, report = read_file(card(), own)
    same(again, clouds)
    assert report.objects == 20
    with open_file(card(), own) as file:
        part, _ = file.read(5, 9)
    same(part, clouds.select(slice(5, 9)))
    with pytest.raises(DataError, match="holds 20"):
        read_range(card(), own, 20, 30)


def test_a_card_without_a_format_reads_own_files_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", arrays())
    with pytest.raises(DataError, match="does not say how files are laid out"):
        read_file(card(format=None), path)


def test_some_features_only() -> None:
    made = with_features(card(), ("pt", "phi_rel"))
    assert made.feature_names == ("pt", "phi_rel")
    with pytest.raises(DataError, match="orders its points by 'pt'"):
        with_features(card(), ("phi_rel",))
    assert with_features(card(), ("phi_rel",), ordered=False).order == ()
    with pytest.raises(DataError, match="did you mean 'phi_rel'"):
        with_features(card(), ("phi_real",))


def test_writing_needs_what_the_format_needs(tmp_path: Path) -> None:
    clouds, _ = read_file(card(), write(tmp_path / "a.h5", arrays()))
    bare = PointClouds(
        clouds.points, clouds.offsets, clouds.features, clouds.units, clouds.labels, np.zeros((20, 0), np.float32)
    )
    out = tmp_path / "out.h5"
    with pytest.raises(DataError, match="need jet_pt, jet_eta, .* --assume jet_pt=0"):
        write_file(card(), bare, out)
    assert not out.exists()
    write_file(card(), bare, out, assume={"jet_pt": 500.0, "jet_eta": 0.0})
    again, _ = read_file(card(), out)
    assert set(again.condition("jet_pt")) == {500.0}
    np.testing.assert_array_equal(again.points, clouds.points)


def test_classes_and_categories_are_matched_by_name(tmp_path: Path) -> None:
    clouds, _ = read_file(card(), write(tmp_path / "a.h5", arrays()))
    other = card(name="other", classes=["signal", "background"])
    out = tmp_path / "out.h5"
    write_file(other, clouds, out, source=card())
    again, _ = read_file(other, out)
    names = np.array(["background", "signal"])[clouds.labels]
    np.testing.assert_array_equal(np.array(["signal", "background"])[again.labels], names)


JAGGED = {
    "layout": "ragged",
    "keys": {"pt": "part_pt", "eta_rel": "part_deta", "phi_rel": "part_dphi"},
}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 2**31), st.sampled_from(["root", "parquet"])
)
def test_any_shape_is_read_as_it_was_written(tmp_path: Path, counts: list[int], seed: int, container: str) -> None:
    rng = np.random.default_rng(seed)
    n = sum(counts)
    form = {
        "container": container,
        "tree": "tree" if container == "root" else None,
        "points": JAGGED,
        "objects": {"jet_pt": "jet_pt", "jet_eta": "jet_eta"},
        "conversions": {"pt": {"times": "jet_pt"}, "eta_rel": {"sign_of": "jet_eta"}},
        "label": {"one_hot": {"background": "is_b", "signal": "is_s"}},
    }
    made = card(format=form, order=[])
    written = PointClouds(
        np.stack([rng.uniform(1, 9, n), *rng.normal(0, 1, (2, n))], axis=1).astype(np.float32),
        np.concatenate([[0], np.cumsum(counts)]),
        made.feature_names,
        made.feature_units,
        rng.integers(0, 2, len(counts)),
        rng.uniform(1, 5, (len(counts), 2)).astype(np.float32) * np.array([100, -1], np.float32),
        ("jet_pt", "jet_eta"),
        ("GeV", "1"),
        "small",
    )
    path = tmp_path / f"a.{container}"
    write_file(made, written, path)
    once, _ = read_file(made, path)
    write_file(made, once, path)
    twice, _ = read_file(made, path)
    same(once, twice)
    np.testing.assert_allclose(once.points, written.points, rtol=3e-7)
    np.testing.assert_array_equal(once.labels, written.labels)


def test_files_of_many_parts_are_as_those_of_one(tmp_path: Path) -> None:
    clouds, _ = read_file(card(), write(tmp_path / "a.h5", arrays()))
    one, many = tmp_path / "one.h5", tmp_path / "many.h5"
    write_file(card(), clouds, one, places=PLACES)
    write_file(card(), (clouds.select(slice(i, i + 7)) for i in range(0, 20, 7)), many, places=PLACES)
    same(read_file(card(), one)[0], read_file(card(), many)[0])


def test_too_many_points_for_the_format_are_refused(tmp_path: Path) -> None:
    clouds, _ = read_file(card(), write(tmp_path / "a.h5", arrays()))
    fixed = card().model_dump()
    fixed["format"]["points"]["places"] = 2
    with pytest.raises(DataError, match="have 2 places, but an object has 6 points"):
        write_file(DatasetCard.model_validate(fixed), clouds, tmp_path / "out.h5")
    assert list(tmp_path.iterdir()) == [tmp_path / "a.h5"]
