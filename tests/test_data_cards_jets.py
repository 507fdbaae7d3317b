"""Cards of the jet datasets: each is complete and reads a file in its exact layout to the values that were put in."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import uproot

from foundation.data.cards import DatasetCard, load_card
from foundation.data.formats.reading import read_file
from foundation.data.formats.writing import write_file
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError

from layouts import (
    Truth,
    write_aspen_open_jets,
    write_cms_pfnano,
    write_energyflow_qg,
    write_jetclass,
    write_jetnet,
    write_omnilearned,
    write_top_tagging,
)

DATA = Path(__file__).parent / "data"
CARDS = (
    "jetclass", "jetclass2", "aspen_open_jets", "jetnet30", "jetnet150", "top_tagging", "energyflow_qg", "omnilearned",
    "cms_pfnano",
)  # fmt: skip
JETS = 60
FILES: dict[str, tuple[str, Callable[..., Truth]]] = {
    "jetclass": ("TTBar_000.root", write_jetclass),
    "aspen_open_jets": ("RunG_batch0.h5", write_aspen_open_jets),
    "jetnet30": ("t.hdf5", write_jetnet),
    "jetnet150": ("q150.hdf5", lambda path, rng, n: write_jetnet(path, rng, n, places=150)),
    "top_tagging": ("test.h5", write_top_tagging),
    "energyflow_qg": ("QG_jets_3.npz", write_energyflow_qg),
    "omnilearned": ("train_0.h5", write_omnilearned),
    "cms_pfnano": ("nano_1.root", write_cms_pfnano),
}

NOT_WRITTEN = ("cms_pfnano", "top_tagging")


def assert_equals_truth(card: DatasetCard, clouds: PointClouds, truth: Truth) -> None:
    assert np.array_equal(clouds.counts, truth.counts)
    assert np.array_equal(clouds.labels, truth.labels)
    assert set(clouds.features) == set(truth.points), "the truth must say what every feature is"
    for name, values in truth.points.items():
        exact = name in ("pid", "charge", "pdg_id")
        np.testing.assert_allclose(
            clouds.feature(name), values, rtol=0 if exact else 3e-6, atol=0 if exact else 3e-6, err_msg=name
        )
    for name, values in truth.objects.items():
        np.testing.assert_allclose(clouds.condition(name), values, rtol=3e-6, atol=3e-6, err_msg=name)


@pytest.mark.parametrize("name", CARDS)
def test_a_tokenizer_of_one_card_understands_the_others(name: str) -> None:
    """Same names, units and transforms of the kinematics, and the same numbers for the same identities."""
    card, model = load_card(name), load_card("pythia_jetclass")
    assert card.feature_names[:3] == ("pt", "eta_rel", "phi_rel")
    ours = {feature.name: feature for feature in card.features}
    for theirs in model.features:
        if (feature := ours.get(theirs.name)) is None:
            continue
        assert feature.unit == theirs.unit
        assert (feature.log, feature.shift, feature.scale) == (theirs.log, theirs.shift, theirs.scale)
        assert feature.categories[: len(theirs.categories)] == theirs.categories


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_all_that_a_user_must_know(name: str) -> None:
    card = load_card(name)
    assert card.format is not None and card.files is not None and card.traps and card.licence
    assert card.files.download or card.files.manual
    for feature in card.features:
        assert feature.description and (feature.range is not None or feature.categories), feature.name
    assert all(attribute.description for attribute in card.attributes)


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_the_published_layout_is_read_to_what_was_put_in(name: str, tmp_path: Path) -> None:
    file, write = FILES[name]
    truth = write(tmp_path / file, np.random.default_rng(7), JETS)
    card = load_card(name)
    clouds, report = read_file(card, tmp_path / file)
    assert_equals_truth(card, clouds, truth)
    assert dict(report.missing) == truth.missing
    assert (report.objects, report.points) == (JETS, int(truth.counts.sum()))


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_WRITTEN])
def test_written_files_are_read_back_without_a_change(name: str, tmp_path: Path) -> None:
    file, write = FILES[name]
    write(tmp_path / file, np.random.default_rng(8), JETS)
    card = load_card(name)
    clouds, _ = read_file(card, tmp_path / file)
    (tmp_path / "again").mkdir()
    write_file(card, clouds, tmp_path / "again" / file)
    again, _ = read_file(card, tmp_path / "again" / file)
    assert np.array_equal(again.counts, clouds.counts)
    assert np.array_equal(again.labels, clouds.labels)
    for feature in clouds.features:
        # EnergyFlow's arrays are in double precision: what follows from them rounds once more after writing.
        follows = name == "energyflow_qg" and feature in ("eta_rel", "phi_rel")
        difference = np.abs(again.feature(feature) - clouds.feature(feature)).max()
        assert difference <= (1e-6 if follows else 0), feature
    tolerance = 1e-6 if name == "energyflow_qg" else 0
    np.testing.assert_allclose(again.conditions, clouds.conditions, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_formats_that_are_only_read_are_refused_and_leave_no_file(name: str, tmp_path: Path) -> None:
    file, write = FILES[name]
    write(tmp_path / file, np.random.default_rng(3), 5)
    card = load_card(name)
    (tmp_path / "again").mkdir()
    with pytest.raises(DataError):
        write_file(card, read_file(card, tmp_path / file)[0], tmp_path / "again" / file)
    assert not list((tmp_path / "again").iterdir())


def test_written_jetclass_files_have_the_flipped_sign_again(tmp_path: Path) -> None:
    write_jetclass(tmp_path / "a.root", np.random.default_rng(9), JETS)
    card = load_card("jetclass")
    write_file(card, read_file(card, tmp_path / "a.root")[0], tmp_path / "b.root")
    with uproot.open(tmp_path / "a.root") as a, uproot.open(tmp_path / "b.root") as b:
        names = ("part_deta", "part_charge", "part_isMuon", "jet_eta", "label_Tbqq")
        first, second = (file["tree"].arrays(names, library="np") for file in (a, b))
    for name in names:
        ours, theirs = (np.hstack(columns[name]).astype(np.float64) for columns in (second, first))
        assert np.array_equal(ours, theirs), name
    assert len(set(np.sign(first["jet_eta"]))) == 2


@pytest.fixture(scope="module")
def jetclass2_files() -> tuple[PointClouds, PointClouds]:
    """The authors' example as Parquet and as ROOT."""
    card = load_card("jetclass2")
    assert card.format is not None
    as_root = card.model_copy(update={"format": card.format.model_copy(update={"container": "root", "tree": "tree"})})
    parquet, _ = read_file(card, DATA / "JetClassII_example.parquet")
    root, _ = read_file(as_root, DATA / "JetClassII_example.root")
    return parquet, root


def test_the_real_jetclass2_example_is_the_same_as_parquet_and_as_root(
    jetclass2_files: tuple[PointClouds, PointClouds],
) -> None:
    parquet, root = jetclass2_files
    assert len(parquet) == 100 and parquet.counts.max() == 82
    for name in ("points", "offsets", "labels", "conditions"):
        assert np.array_equal(getattr(parquet, name), getattr(root, name)), name


def test_eta_rel_of_the_real_jetclass2_example_has_no_sign_flip(
    jetclass2_files: tuple[PointClouds, PointClouds],
) -> None:
    clouds, _ = jetclass2_files
    px, py, pz = (clouds.feature(name).astype(np.float64) for name in ("px", "py", "pz"))
    eta = np.arcsinh(pz / np.hypot(px, py))
    jet_eta = clouds.condition("jet_eta")[clouds.owners]
    assert (jet_eta < 0).any() and (jet_eta > 0).any()
    np.testing.assert_allclose(clouds.feature("eta_rel"), eta - jet_eta, atol=1e-5)


def test_the_real_jetclass2_example_has_tracks_of_charged_constituents_only(
    jetclass2_files: tuple[PointClouds, PointClouds],
) -> None:
    clouds, _ = jetclass2_files
    neutral = clouds.feature("charge") == 1
    assert 0 < neutral.sum() < len(neutral)
    for name in ("d0", "d0_err", "dz", "dz_err"):
        assert np.array_equal(clouds.feature(name) == 0, neutral), name


def test_labels_of_the_real_jetclass2_example_are_those_that_its_authors_print(
    jetclass2_files: tuple[PointClouds, PointClouds],
) -> None:
    classes = load_card("jetclass2").classes
    assert len(classes) == 188
    clouds, _ = jetclass2_files
    assert clouds.labels[:8].tolist() == [92, 28, 31, 102, 60, 11, 99, 62]
    assert [classes[label] for label in clouds.labels[:3]] == ["X_YY_see", "X_YY_bbq", "X_YY_bbm"]
    assert all(name.startswith("QCD") for name in classes[161:]) and classes[160].startswith("X_")


def test_splits_of_jetclass2_are_those_of_its_authors() -> None:
    files = load_card("jetclass2").files
    assert files is not None
    ends = {"Res2P": (200, 250, 300), "Res34P": (860, 1075, 1290), "QCD": (280, 350, 420)}
    for family, (train, val, test) in ends.items():
        for number in range(test):
            name = f"{family}_{number:04d}.parquet"
            wanted = "train" if number < train else "val" if number < val else "test"
            fitting = [split for split, globs in files.splits.items() if any(fnmatch(name, g) for g in globs.split())]
            assert fitting == [wanted], name


def test_class_of_jetnet_follows_from_the_name_of_the_file(tmp_path: Path) -> None:
    write_jetnet(tmp_path / "w.hdf5", np.random.default_rng(0), 5)
    card = load_card("jetnet30")
    clouds, _ = read_file(card, tmp_path / "w.hdf5")
    assert [card.classes[label] for label in clouds.labels] == ["w"] * 5
    (tmp_path / "w.hdf5").rename(tmp_path / "jets.hdf5")
    with pytest.raises(DataError, match=r"jets\.hdf5"):
        read_file(card, tmp_path / "jets.hdf5")


def test_omnilearned_files_with_four_columns_are_read_by_the_same_card(tmp_path: Path) -> None:
    truth = write_omnilearned(tmp_path / "a.h5", np.random.default_rng(1), JETS, columns=4)
    card = load_card("omnilearned")
    clouds, _ = read_file(card, tmp_path / "a.h5")
    assert_equals_truth(card, clouds, truth)


def test_a_link_of_pfnano_to_a_candidate_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write_cms_pfnano(tmp_path / "a.root", np.random.default_rng(2), JETS)
    with uproot.open(tmp_path / "a.root") as file:
        arrays = {name: file["Events"][name].array() for name in file["Events"].keys()}
    arrays["FatJetPFCands_pFCandsIdx"] = arrays["FatJetPFCands_pFCandsIdx"] + 1000
    with uproot.recreate(tmp_path / "b.root") as file:
        file.mktree("Events", {name: array.type.content for name, array in arrays.items()}).extend(arrays)
    with pytest.raises(DataError, match="FatJetPFCands_pFCandsIdx"):
        read_file(load_card("cms_pfnano"), tmp_path / "b.root")
