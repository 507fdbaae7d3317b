"""Numbering of voxels, binning files, and cards that name one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.binning_xml import read_binning_xml, write_binning_xml
from foundation.data.cards import card_paths, load_card
from foundation.data.geometry import (
    CartesianGeometry,
    CylindricalGeometry,
    LayerGroup,
    RingLayers,
    checked_coordinates,
    inside,
    n_voxels,
)
from foundation.errors import DataError

RINGS = st.builds(
    lambda widths, alpha_bins, repeat: RingLayers(
        r_edges_mm=tuple(np.cumsum([0, *widths]).tolist()), alpha_bins=alpha_bins, repeat=repeat
    ),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 3),
)
CYLINDERS = st.builds(
    lambda layers: CylindricalGeometry(kind="cylindrical", layers=tuple(layers)),
    st.lists(RINGS, min_size=1, max_size=4),
)
GRIDS = st.builds(
    lambda cells, size, repeat: CartesianGeometry(cells=cells, cell_mm=size, layers=(LayerGroup(repeat=repeat),)),
    st.integers(1, 8),
    st.sampled_from([1.0, 5.0883, 10.0]),
    st.integers(1, 6),
)
GEOMETRIES = st.one_of(CYLINDERS, GRIDS)

SMALL = CylindricalGeometry(
    kind="cylindrical",
    layers=(
        RingLayers(id=0, r_edges_mm=(0, 5, 10.25)),
        RingLayers(id=1, r_edges_mm=(0, 2, 4, 6), alpha_bins=4),
        RingLayers(id=12, r_edges_mm=(0, 100)),
    ),
)
BINNING = """<Bins>
   <Bin pid="22" etaMin="0" etaMax="130" name="photon">
      <Layer id="0" r_edges="0,5,10.25" n_bin_alpha="1" />
      <Layer id="1" r_edges="0,2,4,6" n_bin_alpha="4"/>
      <Layer id="2" r_edges="0" n_bin_alpha="1" />
      <Layer id="12" r_edges="0,100" n_bin_alpha="1" />
   </Bin>
   <Bin pid="211" etaMin="0" etaMax="80" name="pion"> <Layer id="0" r_edges="0,5" n_bin_alpha="2" /> </Bin>
   <Bin pid="211" etaMin="80" etaMax="130" name="pion"> <Layer id="0" r_edges="0,7" n_bin_alpha="3" /> </Bin>
</Bins>
"""


@settings(max_examples=40, deadline=None)
@given(GEOMETRIES)
def test_numbers_and_coordinates_are_each_others_inverse(geometry: CartesianGeometry | CylindricalGeometry) -> None:
    numbers = np.arange(n_voxels(geometry))
    coordinates = geometry.coordinates(numbers)
    assert tuple(coordinates) == geometry.axes
    np.testing.assert_array_equal(geometry.numbers(coordinates), numbers)
    assert inside(geometry, coordinates).all()
    np.testing.assert_array_equal(np.bincount(coordinates["layer"]), geometry.voxels_per_layer)


@settings(max_examples=40, deadline=None)
@given(GEOMETRIES)
def test_the_centre_of_a_voxel_lies_in_it(geometry: CartesianGeometry | CylindricalGeometry) -> None:
    numbers = np.arange(n_voxels(geometry))
    coordinates = geometry.coordinates(numbers)
    x, y = geometry.centres_mm(coordinates)
    np.testing.assert_array_equal(geometry.cell_at(coordinates["layer"], x, y), numbers)
    np.testing.assert_allclose(geometry.radii_mm(coordinates), np.hypot(x, y), atol=1e-9)
    far = np.full(len(numbers), 1e6)
    assert (geometry.cell_at(coordinates["layer"], far, far) == -1).all()


def test_regular_cylinders_count_as_an_array_of_layer_alpha_r() -> None:
    geometry = CylindricalGeometry(
        kind="cylindrical", layers=(RingLayers(repeat=3, r_edges_mm=(0, 1, 2, 3), alpha_bins=4),)
    )
    assert geometry.regular_shape == (3, 4, 3)
    coordinates = dict(zip(geometry.axes, (grid.ravel() for grid in np.indices((3, 4, 3))), strict=True))
    np.testing.assert_array_equal(geometry.numbers(coordinates), np.arange(36))


def test_sectors_start_at_minus_pi_and_their_centres_half_a_sector_later() -> None:
    first = {"layer": np.array([1, 0]), "alpha": np.array([0, 0]), "r": np.array([1, 0])}
    x, y = SMALL.centres_mm(first)
    # sector 0 of 4 is centred at -3/4 pi, ring 1 at 3 mm; one whole sector is centred at 0
    np.testing.assert_allclose(x, [-3 / np.sqrt(2), 2.5])
    np.testing.assert_allclose(y, [-3 / np.sqrt(2), 0], atol=1e-12)


def test_voxels_that_do_not_exist_have_no_place_and_are_refused_by_name() -> None:
    assert n_voxels(SMALL) == 2 + 12 + 1 and SMALL.regular_shape is None
    cells = {"layer": np.array([1, 0, 3, 1]), "alpha": np.array([3, 3, 0, 0]), "r": np.array([2, 0, 0, 3])}
    assert inside(SMALL, cells).tolist() == [True, False, False, False]
    assert np.isnan(SMALL.centres_mm(cells)[0]).tolist() == [False, True, True, True]
    with pytest.raises(DataError, match="'alpha' is 3 .* 0 to 0"):
        checked_coordinates(SMALL, {name: values[:2] for name, values in cells.items()})
    with pytest.raises(DataError, match="'r' must be the index of a cell, .* 0.5"):
        checked_coordinates(SMALL, {**cells, "r": np.array([0, 0.5, 0, 0])})


def test_reads_the_particle_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "binning.xml"
    path.write_text(BINNING)
    assert read_binning_xml(path, "photon") == SMALL
    assert read_binning_xml(path, "pion", eta=100).alpha_bins.tolist() == [3]
    with pytest.raises(DataError, match="several bins fit.*photon etaMin 0 etaMax 130; pion etaMin 0"):
        read_binning_xml(path)
    with pytest.raises(DataError, match="several bins fit"):
        read_binning_xml(path, "pion")
    with pytest.raises(DataError, match="no bin has eta 130"):
        read_binning_xml(path, "pion", eta=130)
    with pytest.raises(DataError, match="no particle 'phton' - did you mean 'photon'"):
        read_binning_xml(path, "phton")


@settings(max_examples=30, deadline=None)
@given(CYLINDERS)
def test_binning_files_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, geometry: CylindricalGeometry
) -> None:
    path = tmp_path_factory.mktemp("xml") / "binning.xml"
    write_binning_xml(geometry, 11, "electron", path)
    back = read_binning_xml(path)
    assert [layer.id for layer in back.layers] == list(range(geometry.n_layers))
    for ours, theirs in zip(geometry.by_layer, back.by_layer, strict=True):
        assert ours.r_edges_mm == theirs.r_edges_mm and ours.alpha_bins == theirs.alpha_bins


def test_unused_layers_are_written_and_ids_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "binning.xml"
    write_binning_xml(SMALL, 22, "photon", path)
    assert path.read_text().count("<Layer") == 13 and path.read_text().count('r_edges="0"') == 10
    assert read_binning_xml(path) == SMALL
    falling = SMALL.model_copy(update={"layers": SMALL.layers[::-1]})
    with pytest.raises(DataError, match="rising layer ids"):
        write_binning_xml(falling, 22, "photon", path)
    assert read_binning_xml(path) == SMALL and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<Bins><Bin name='photon'>", "not a valid XML file"),
        ("", "not a valid XML file"),
        ("<Bins/>", "no <Bin>"),
        ("<Bins><Bin/></Bins>", "a <Bin> has no 'name'"),
        ("<Bins><Bin name='e'><Layer id='0' r_edge='0,1' n_bin_alpha='1'/></Bin></Bins>", "no 'r_edges' - did you"),
        ("<Bins><Bin name='e'><Layer id='0' r_edges='0,1'/></Bin></Bins>", "a <Layer> has no 'n_bin_alpha'"),
        ("<Bins><Bin name='e'><Layer id='0' r_edges='0,2,1' n_bin_alpha='1'/></Bin></Bins>", "must rise"),
        ("<Bins><Bin name='e'><Layer id='0' r_edges='0,nan' n_bin_alpha='1'/></Bin></Bins>", "must rise"),
        ("<Bins><Bin name='e'><Layer id='0' r_edges='0,a' n_bin_alpha='1'/></Bin></Bins>", "not numbers"),
        ("<Bins><Bin name='e'><Layer id='0' r_edges='0,1' n_bin_alpha='0'/></Bin></Bins>", "whole numbers"),
        ("<Bins><Bin name='e'><Layer id='x' r_edges='0,1' n_bin_alpha='1'/></Bin></Bins>", 'id="x".* not a number'),
        ("<Bins><Bin name='e'><Layer id='0' r_edges='0' n_bin_alpha='1'/></Bin></Bins>", "no layer with voxels"),
        (
            "<Bins><Bin name='e'><Layer id='0' r_edges='0,1' n_bin_alpha='1'/>"
            "<Layer id='0' r_edges='0,1' n_bin_alpha='1'/></Bin></Bins>",
            "two layers of the same id",
        ),
        ("<!DOCTYPE Bins [<!ENTITY e SYSTEM 'file:///etc/hostname'>]><Bins><Bin name='&e;'/></Bins>", "document type"),
        ("<!DOCTYPE Bins [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><Bins>&b;</Bins>", "document type"),
    ],
)
def test_broken_binning_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "binning.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_binning_xml(path)
    assert str(path) in str(error.value)


def test_a_missing_binning_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.xml: cannot read"):
        read_binning_xml(tmp_path / "none.xml")


def test_a_card_may_name_a_binning_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "binning.xml").write_text(BINNING)
    content = yaml.safe_load(card_paths()["gflash_ild"].read_text())
    content.pop("simulator")
    content["geometry"] = {"kind": "xml", "path": "binning.xml", "particle": "photon"}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(content))
    card = load_card(str(tmp_path / "card.yaml"))
    assert card.geometry == SMALL
    assert type(card).model_validate_json(card.model_dump_json()) == card
    content["geometry"]["particle"] = "kaon"
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="no particle 'kaon'"):
        load_card(str(tmp_path / "card.yaml"))
    content["geometry"] = {"kind": "xml"}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match="path: Field required"):
        load_card(str(tmp_path / "card.yaml"))
