"""The cards of the calorimeter datasets: each reads files of its exact layout, and writes them back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import showerdata

from foundation.data.card_format import Conversion, VoxelImages
from foundation.data.cards import DatasetCard, load_card
from foundation.data.formats.reading import plan, read_file, read_range
from foundation.data.formats.writing import write_file
from foundation.data.geometry import n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

import calorimeter_layouts as layouts
from calorimeter_layouts import Truth

DATA = Path(__file__).parent / "data"
# Published numbers of voxels, as the CaloChallenge's check of submissions has them.
VOXELS = {
    "calochallenge_ds1_photons": 368,
    "calochallenge_ds1_pions": 533,
    "calochallenge_ds2": 45 * 16 * 9,
    "calochallenge_ds3": 45 * 50 * 18,
    "getting_high": 30**3,
    "omnijet_alpha_c": 30**3,
    "spade_events": 30**3,
    "spade_separate": 30**3,
    "hgem_par04_siw": 18 * 50 * 45,
    "hgem_par04_scipb": 18 * 50 * 45,
    "lemurs": 9 * 16 * 45,
}
CARDS = (*VOXELS, "caloclouds", "showerdata", "multi_calo")
# Card -> name of a file of it. The energies and angles of the Par04 images stand in names that are not written.
FILES = {
    "calochallenge_ds1_photons": "dataset_1_photons_1.hdf5",
    "calochallenge_ds1_pions": "dataset_1_pions_2.hdf5",
    "calochallenge_ds2": "dataset_2_1.hdf5",
    "calochallenge_ds3": "dataset_3_4.hdf5",
    "getting_high": "showers-1k.hdf5",
    "omnijet_alpha_c": "photons_10_100GeV_float32_sorted_train_part_01_of_16.h5",
    "spade_events": "events.h5",
    "spade_separate": "separate.h5",
    "caloclouds": "photons.hdf5",
    "showerdata": "showers.h5",
    "multi_calo": "allegro_100k.h5",
    "lemurs": "LEMURS_FCCeeCLD_gamma_100kEvents_1GeV100GeV_GPSflat_part3.h5",
    "hgem_par04_siw": "SiW_angle_70.h5",
    "hgem_par04_scipb": "SciPb_angle_90.h5",
}
WRITTEN = [name for name in FILES if not name.startswith("hgem")]


@cache
def card_called(name: str) -> DatasetCard:
    """The shipped card of this name, loaded once."""
    return load_card(name)


def written(name: str, folder: Path) -> tuple[DatasetCard, Path, Truth]:
    """A card, a file in its layout, and what the file holds."""
    card, path, rng = card_called(name), folder / FILES[name], np.random.default_rng(7)
    if card.geometry is None or name in ("omnijet_alpha_c", "spade_events", "spade_separate"):
        writer: Callable[[Path, np.random.Generator], Truth] = getattr(layouts, f"write_{name}")
        return card, path, writer(path, rng)
    if name.startswith("calochallenge"):
        return card, path, layouts.write_calochallenge(path, card.geometry, rng, discrete="ds1" in name)
    if name.startswith("hgem"):
        return card, path, layouts.write_hgem_images(path, card.geometry, rng, 70 if name.endswith("siw") else 90)
    if name == "lemurs":
        return card, path, layouts.write_lemurs(path, card.geometry, rng, card.classes.index("fccee_cld"))
    return card, path, layouts.write_getting_high(path, card.geometry, rng)


def assert_holds(card: DatasetCard, clouds: PointClouds, truth: Truth) -> None:
    """The clouds are the truth: features, counts, labels, conditions and attributes, in the card's units and order."""
    assert clouds.features == card.feature_names and clouds.units == card.feature_units
    np.testing.assert_array_equal(clouds.counts, truth.counts)
    np.testing.assert_array_equal(clouds.labels, truth.labels)
    assert set(card.feature_names) <= set(truth.points)
    for feature in card.features:
        found, wanted = clouds.feature(feature.name), truth.points[feature.name].astype(np.float32)
        if feature.kind == "integer":
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_allclose(found, wanted, rtol=2e-7)
    assert clouds.condition_names == (*(c.name for c in card.conditions), *(a.name for a in card.attributes))
    for quantity in clouds.condition_names:
        np.testing.assert_allclose(clouds.condition(quantity), truth.objects[quantity], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_where_the_data_come_from_and_what_misleads(name: str) -> None:
    card = card_called(name)
    assert card.domain == "shower" and card.format and card.files and card.traps and card.description
    energy = next(c for c in card.conditions if c.name == "incident_energy")
    assert (energy.unit, energy.scale) == ("GeV", "log")
    hit = next(f for f in card.features if f.name == "energy")
    assert hit.unit == "MeV" and hit.log and hit.range is not None and hit.range[0] > 0
    assert [key for key in card.order] == list(card.feature_names[: len(card.order)])


@pytest.mark.parametrize("name", VOXELS)
def test_geometry_and_ranges_are_the_official_ones(name: str) -> None:
    card = card_called(name)
    assert card.geometry is not None and n_voxels(card.geometry) == VOXELS[name]
    corners = card.geometry.coordinates(np.arange(VOXELS[name]))
    for axis in card.geometry.axes:
        feature = next(f for f in card.features if f.name == axis)
        assert feature.range == (0, corners[axis].max()), axis


def test_cards_have_different_tags() -> None:
    tags = [card_called(name).tag for name in CARDS]
    assert len(set(tags)) == len(tags)


def test_discrete_energies_have_a_bin_each() -> None:
    for name, energies in (
        ("calochallenge_ds1_photons", 0.256 * 2.0 ** np.arange(15)),
        ("calochallenge_ds1_pions", 0.256 * 2.0 ** np.arange(15)),
        ("hgem_par04_siw", 2.0 ** np.arange(11)),
    ):
        condition = card_called(name).conditions[0]
        low, high = np.log(condition.range)
        place = (np.log(energies) - low) / (high - low) * condition.bins
        np.testing.assert_allclose(place, np.arange(len(energies)) + 0.5, atol=1e-3)
        assert condition.bins == len(energies)


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_the_published_layout_is_read(name: str, tmp_path: Path) -> None:
    card, path, truth = written(name, tmp_path)
    clouds, report = read_file(card, path)
    assert_holds(card, clouds, truth)
    assert (report.objects, report.points) == (len(truth.counts), int(truth.counts.sum()))
    assert report.empty == int((truth.counts == 0).sum())
    outside = {
        f.name: n
        for f in card.features
        if f.range and (n := int(((v := clouds.feature(f.name)) < f.range[0]).sum() + (v > f.range[1]).sum()))
    }
    assert report.outside == outside
    assert sum(r.stop - r.start for r in plan(card, path)) == len(truth.counts)


@pytest.mark.parametrize("name", FILES)
def test_a_range_is_the_same_as_in_the_whole_file(name: str, tmp_path: Path) -> None:
    card, path, truth = written(name, tmp_path)
    whole, _ = read_file(card, path)
    # From 1 to 3: of the Par04 images, the second of one array and the first of the next.
    part, _ = read_range(card, path, 1, 3)
    np.testing.assert_array_equal(part.points, whole.select(slice(1, 3)).points)
    np.testing.assert_array_equal(part.conditions, whole.conditions[1:3])
    np.testing.assert_array_equal(part.labels, truth.labels[1:3])


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_read_is_written_and_read_again(name: str, tmp_path: Path) -> None:
    card, path, _ = written(name, tmp_path)
    clouds, _ = read_file(card, path)
    # Some files say the class by their name.
    again = tmp_path / "copy" / path.name
    write_file(card, clouds, again)
    copy, _ = read_file(card, again)
    for part in ("points", "offsets", "labels", "conditions"):
        np.testing.assert_array_equal(getattr(copy, part), getattr(clouds, part), err_msg=part)
    with h5py.File(path) as old, h5py.File(again) as new:
        for key in old:
            if key in new and isinstance(old[key], h5py.Dataset) and not key.startswith(("shape", "showers")):
                assert new[key].ndim == old[key].ndim, key


def test_calochallenge_files_have_the_official_order_of_voxels(tmp_path: Path) -> None:
    # By hand: 8 voxels of layer 0, then those of ATLAS layer 1, 16 rings in each of 10 sectors.
    showers = np.zeros((2, 368))
    showers[0, 8 + 2 * 16 + 3], showers[1, 367] = 12.5, 3.25
    path = tmp_path / "dataset_1_photons_2.hdf5"
    with h5py.File(path, "w") as file:
        file["showers"], file["incident_energies"] = showers, np.array([[256.0], [4194304.0]])
    clouds, _ = read_file(card_called("calochallenge_ds1_photons"), path)
    np.testing.assert_array_equal(clouds.points, np.array([[1, 2, 3, 12.5], [4, 0, 4, 3.25]], np.float32))
    np.testing.assert_array_equal(clouds.condition("incident_energy"), np.array([0.256, 4194.304], np.float32))


def test_calochallenge_files_are_written_as_the_official_evaluation_reads_them(tmp_path: Path) -> None:
    card, path, _ = written("calochallenge_ds2", tmp_path)
    clouds, _ = read_file(card, path)
    write_file(card, clouds, tmp_path / "copy.hdf5")
    with h5py.File(path) as old, h5py.File(tmp_path / "copy.hdf5") as new:
        assert set(new) == {"incident_energies", "showers"}
        assert new["incident_energies"].shape == (6, 1) and new["showers"].shape == (6, 6480)
        assert new["showers"].compression == "gzip"
        np.testing.assert_allclose(new["incident_energies"][:], old["incident_energies"][:], rtol=1e-7)
        np.testing.assert_array_equal(new["showers"][:], old["showers"][:])


def test_images_of_getting_high_become_the_points_of_omnijet_alpha_c(tmp_path: Path) -> None:
    images, path, truth = written("getting_high", tmp_path)
    clouds, _ = read_file(images, path)
    points = card_called("omnijet_alpha_c")
    write_file(points, clouds, tmp_path / "points.h5", source=images)
    copy, _ = read_file(points, tmp_path / "points.h5")
    assert_holds(points, copy, truth)
    with h5py.File(tmp_path / "points.h5") as file:
        assert set(file) == {"showers", "genE"}
        first = file["showers"][0, : truth.counts[0]]
    np.testing.assert_array_equal(first[:, 2], truth.points["layer"][: truth.counts[0]])


def test_hits_below_the_threshold_are_counted_and_kept(tmp_path: Path) -> None:
    showers = np.zeros((1, 6480))
    # Below, at and above 0.5 keV / 0.033.
    showers[0, :3] = 0.0151, 0.5e-3 / 0.033, 0.0152
    path = tmp_path / "dataset_2_1.hdf5"
    with h5py.File(path, "w") as file:
        file["showers"], file["incident_energies"] = showers, np.array([[1000.0]])
    clouds, report = read_file(card_called("calochallenge_ds2"), path)
    assert clouds.counts.tolist() == [3] and report.outside == {"energy": 1}


def test_real_caloclouds_showers_are_read() -> None:
    path = DATA / "ild_photons_caloclouds3.hdf5"
    card = card_called("caloclouds")
    clouds, report = read_file(card, path)
    with h5py.File(path) as file:
        events, direction = file["events"][:], file["p_norm_local"][:]
    # Counted by hand: 163 and 236 points after 5837 and 5764 empty places.
    assert clouds.counts.tolist() == [163, 236]
    np.testing.assert_allclose(clouds.condition("incident_energy"), [15.62006, 41.92682], rtol=1e-6)
    np.testing.assert_allclose(clouds.condition("theta"), np.arccos(direction[2]), rtol=1e-6)
    np.testing.assert_allclose(clouds.condition("direction_y"), direction[1], rtol=1e-6)
    energy = np.bincount(clouds.owners, clouds.feature("energy"))
    np.testing.assert_allclose(energy, events[:, :, 3].sum(axis=1) * 1000, rtol=1e-5)
    # Visible energies of photons in this calorimeter are a few per mille of the incident one: MeV, not GeV.
    per_gev = energy / clouds.condition("incident_energy")
    assert per_gev.min() > 1 and per_gev.max() < 5
    first = events[0][events[0, :, 3] > 0]
    found = clouds.select(slice(0, 1))
    order = np.argsort(first[:, 1], kind="stable")
    np.testing.assert_array_equal(found.feature("layer"), first[order, 1])
    np.testing.assert_array_equal(found.feature("x"), first[order, 0])
    np.testing.assert_array_equal(found.feature("y"), first[order, 2])
    assert report.outside == {"energy": 10}


def test_par04_images_with_the_angle_as_a_group_need_only_another_key(tmp_path: Path) -> None:
    card = card_called("hgem_par04_siw")
    assert card.geometry is not None and card.format is not None
    points = VoxelImages(layout="voxels", key="Angle_{theta}/{incident_energy}", axes=("r", "alpha", "layer"))
    form = card.format.model_copy(update={"points": points, "from_file_name": None})
    assert form.conversions == {"theta": Conversion(unit="deg")}
    path = tmp_path / "any_name.h5"
    truth = layouts.write_hgem_images(path, card.geometry, np.random.default_rng(3), 60, group="Angle_60/")
    grouped = card.model_copy(update={"format": form})
    clouds, _ = read_file(grouped, path)
    assert_holds(grouped, clouds, truth)


def test_what_a_name_must_say_is_asked_for(tmp_path: Path) -> None:
    card, path, _ = written("hgem_par04_siw", tmp_path)
    renamed = path.rename(tmp_path / "showers.h5")
    with pytest.raises(DataError, match="SiW_angle_"):
        read_file(card, renamed)
    card, path, _ = written("lemurs", tmp_path)
    renamed = path.rename(tmp_path / "lemurs.h5")
    with pytest.raises(DataError, match=r"\*Par04SiW\*"):
        read_file(card, renamed)


def test_points_of_four_columns_are_not_read_as_points_of_five(tmp_path: Path) -> None:
    # Five points of four numbers are as many numbers as four points of five: only num_points tells.
    points = np.random.default_rng(5).uniform(1, 9, (3, 5, 4)).astype(np.float32)
    path = tmp_path / "showers.h5"
    showerdata.Showers(points=points, energies=np.ones(3), pdg=22).save(path)
    with pytest.raises(DataError, match="'showers'"):
        read_file(card_called("showerdata"), path)


def test_voxels_of_another_geometry_are_refused(tmp_path: Path) -> None:
    _, path, _ = written("calochallenge_ds1_pions", tmp_path)
    with pytest.raises(DataError, match="368"):
        read_file(card_called("calochallenge_ds1_photons"), path)
