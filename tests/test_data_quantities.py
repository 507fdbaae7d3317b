"""Quantities that follow from others, units, conversions and their way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foundation.data.card_format import ByValue, Conversion, FileFormat, LabelFile, LabelNumber, LabelOneHot, OneHot
from foundation.data.cards import Attribute, DatasetCard, Feature
from foundation.data.formats.conversions import category_arrays, convert, label_arrays, labels_of, steps_of
from foundation.data.formats.quantities import Quantities, wrapped
from foundation.data.formats.units import unit_factor
from foundation.errors import DataError

COUNTS = np.array([3, 0, 2], np.int64)


def momenta(n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    px, py, pz = rng.normal(0, 20, (3, n))
    return {"px": px, "py": py, "pz": pz, "energy": np.sqrt(px**2 + py**2 + pz**2 + 0.14**2)}


def quantities(points: dict[str, np.ndarray], objects: dict[str, np.ndarray] | None = None) -> Quantities:
    return Quantities(dict(points), dict(objects or {}), COUNTS)


def test_polar_coordinates_follow_from_cartesian_and_back() -> None:
    p = momenta()
    q = quantities(p)
    polar = {name: q.point(name) for name in ("pt", "eta", "phi", "mass")}
    back = quantities(polar)
    for name in ("px", "py", "pz", "energy"):
        np.testing.assert_allclose(back.point(name), p[name], rtol=1e-9)
    np.testing.assert_allclose(q.point("mass"), 0.14, rtol=1e-6)


def test_massless_where_nothing_says_otherwise() -> None:
    p = momenta()
    del p["energy"]
    q = quantities(p)
    np.testing.assert_allclose(q.point("energy") ** 2, p["px"] ** 2 + p["py"] ** 2 + p["pz"] ** 2)


def test_the_jet_is_the_sum_of_its_constituents() -> None:
    p = momenta()
    q = quantities(p)
    first = {name: values[:3].sum() for name, values in p.items()}
    assert q.object("jet_pt")[0] == pytest.approx(np.hypot(first["px"], first["py"]))
    mass2 = first["energy"] ** 2 - first["px"] ** 2 - first["py"] ** 2 - first["pz"] ** 2
    assert q.object("jet_mass")[0] == pytest.approx(np.sqrt(mass2))
    assert q.object("jet_n_constituents").tolist() == COUNTS.tolist()
    np.testing.assert_allclose(q.point("pt_rel") * q.object("jet_pt")[q.owners], q.point("pt"))


def test_relative_coordinates_are_wrapped_and_invertible() -> None:
    phi = np.array([3.1, -3.1, 0.2, 3.0, -3.0])
    q = quantities({"phi": phi}, {"jet_phi": np.array([-3.1, 0.0, 3.1])})
    relative = q.point("phi_rel")
    assert np.abs(relative).max() <= np.pi
    back = quantities({"phi_rel": relative}, {"jet_phi": np.array([-3.1, 0.0, 3.1])})
    np.testing.assert_allclose(back.point("phi"), wrapped(phi))


def test_rapidity_needs_a_mass_to_differ_from_pseudorapidity() -> None:
    q = quantities(momenta())
    rapidity, pt, mass = q.point("rapidity"), q.point("pt"), q.point("mass")
    with_mass = quantities({"rapidity": rapidity, "pt": pt, "mass": mass})
    np.testing.assert_allclose(with_mass.point("eta"), q.point("eta"), rtol=1e-6)
    without = quantities({"rapidity": rapidity, "pt": pt})
    np.testing.assert_array_equal(without.point("eta"), rapidity)


def test_what_cannot_follow_is_named() -> None:
    with pytest.raises(DataError, match="no 'eta_rel', nor what it would follow from"):
        quantities({"pt": np.ones(5)}).point("eta_rel")
    file_axis = Quantities(momenta(), {}, COUNTS, sum_is_axis=False)
    with pytest.raises(DataError, match="the file gives no 'jet_eta'"):
        file_axis.object("jet_eta")


def test_units() -> None:
    assert unit_factor("MeV", "GeV") == pytest.approx(1e-3)
    assert unit_factor("cm", "mm") == 10
    assert unit_factor("deg", "rad") == pytest.approx(np.pi / 180)
    with pytest.raises(DataError, match="did you mean 'MeV'"):
        unit_factor("Mev", "GeV")
    with pytest.raises(DataError, match="length"):
        unit_factor("mm", "GeV")


def card(conversions: dict[str, Conversion], **kinds: object) -> tuple[DatasetCard, FileFormat]:
    form = FileFormat.model_validate(
        {
            "container": "hdf5",
            "points": {"layout": "padded", "key": "p", "columns": ["x"], "real": "x"},
            "conversions": {k: v.model_dump() for k, v in conversions.items()},
            **kinds,
        }
    )
    features = (
        Feature(name="pt", unit="GeV"),
        Feature(name="d0", unit="mm"),
        Feature(name="pid", kind="category", categories=("hadron", "photon", "other")),
    )
    made = DatasetCard(
        name="c",
        title="c",
        domain="jet",
        tag="c",
        licence="none",
        features=features,
        classes=("a", "b"),
        attributes=(Attribute(name="jet_energy", unit="GeV"),),
    )
    return made, form


def test_a_conversion_takes_its_steps_in_order_and_counts_what_is_missing() -> None:
    made, form = card(
        {"d0": Conversion(missing=-1, unit="cm", factor=-1), "pt": Conversion(undo="log", times="jet_pt")}
    )
    q = quantities(
        {"d0": np.array([-1, 0.2, 0.1, -1, 0], np.float32), "pt": np.log([0.5, 0.1, 0.2, 1.0, 0.25])},
        {"jet_pt": np.array([100.0, 50.0, 10.0])},
    )
    assert convert(made, form, q) == {"d0": 2}
    np.testing.assert_allclose(q.points["d0"], [0, -2, -1, 0, 0])
    np.testing.assert_allclose(q.points["pt"], [50, 10, 20, 10, 2.5])


def test_the_sign_of_the_jet_is_taken_out() -> None:
    made, form = card({"pt": Conversion(sign_of="jet_eta")})
    q = quantities({"pt": np.arange(1.0, 6.0)}, {"jet_eta": np.array([-1.2, 1.0, 0.3])})
    convert(made, form, q)
    assert q.points["pt"].tolist() == [-1, -2, -3, 4, 5]


finite = st.floats(2.0**-10, 2.0**10, width=32)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, 5, elements=finite),
    hnp.arrays(np.float32, 3, elements=finite),
    st.sampled_from(["MeV", "TeV", None]),
    st.booleans(),
)
def test_reading_what_was_written_gives_the_same_bits(
    values: np.ndarray, jet_pt: np.ndarray, unit: str | None, relative: bool
) -> None:
    made, form = card({"pt": Conversion(unit=unit, times="jet_pt" if relative else None, factor=-1 if unit else 1)})
    q = quantities({"pt": values}, {"jet_pt": jet_pt})
    convert(made, form, q)
    ours = q.points["pt"].astype(np.float32)
    file = steps_of(made, form)["pt"].backward(ours, lambda name: jet_pt[q.owners])
    again = quantities({"pt": file}, {"jet_pt": jet_pt})
    convert(made, form, again)
    np.testing.assert_array_equal(again.points["pt"].astype(np.float32), ours)


def test_categories_from_flags_and_numbers_and_back() -> None:
    made, form = card(
        {},
        categories={"pid": {"one_hot": {"photon": "is_photon", "hadron": "is_hadron"}, "other": "other"}},
    )
    q = quantities({"is_photon": np.array([1, 0, 0, 1, 0]), "is_hadron": np.array([0, 1, 0, 0, 0])})
    convert(made, form, q)
    assert q.points["pid"].tolist() == [1, 0, 2, 1, 2]
    flags = category_arrays(made.features[2], form.categories["pid"], q.points["pid"])
    np.testing.assert_array_equal(flags["is_photon"], q.points["is_photon"])
    by_value = ByValue(of="pdg_id", values={211: "hadron", -211: "hadron", 22: "photon"})
    made, form = card({}, categories={"pid": by_value.model_dump()})
    q = quantities({"pdg_id": np.array([22, -211, 211, 22, 211])})
    convert(made, form, q)
    assert q.points["pid"].tolist() == [1, 0, 0, 1, 0]
    assert category_arrays(made.features[2], by_value, q.points["pid"])["pdg_id"].tolist() == [22, 211, 211, 22, 211]


def test_unknown_categories_are_refused() -> None:
    made, form = card({}, categories={"pid": {"of": "pdg_id", "values": {22: "photon"}}})
    with pytest.raises(DataError, match=r"'pdg_id' of 2 points is none of the card's, 13.* for example"):
        convert(made, form, quantities({"pdg_id": np.array([22, 13, 22, 13, 22])}))
    made, form = card({}, categories={"pid": OneHot(one_hot={"photon": "a", "hadron": "b"}).model_dump()})
    with pytest.raises(DataError, match="1 points have 2 of the flags"):
        convert(made, form, quantities({"a": np.array([1, 1, 1, 1, 0]), "b": np.array([0, 1, 0, 0, 1])}))


@pytest.mark.parametrize(
    "label",
    [
        LabelOneHot(one_hot={"a": "is_a", "b": "is_b"}),
        LabelNumber(key="y"),
        LabelNumber(key="y", values={7: "b", 3: "a"}),
    ],
)
def test_labels_and_back(label: LabelOneHot | LabelNumber) -> None:
    made, _ = card({})
    labels = np.array([0, 1, 1, 0])
    arrays = label_arrays(made, label, labels)
    np.testing.assert_array_equal(labels_of(made, label, arrays, 4, Path("x.h5")), labels)


def test_labels_of_file_names_and_wrong_labels() -> None:
    made, _ = card({})
    by_file = LabelFile(file={"ZJets*": "a", "*Top*": "b"})
    assert labels_of(made, by_file, {}, 2, Path("/x/MyTop_1.root")).tolist() == [1, 1]
    with pytest.raises(DataError, match="follows from the name of the file"):
        labels_of(made, by_file, {}, 2, Path("other.root"))
    with pytest.raises(DataError, match="is 9 in 1 objects: no class"):
        labels_of(made, LabelNumber(key="y"), {"y": np.array([0, 9])}, 2, Path("x"))
    with pytest.raises(DataError, match="exactly one of the flags"):
        labels_of(made, LabelOneHot(one_hot={"a": "p", "b": "q"}), {"p": np.ones(2), "q": np.ones(2)}, 2, Path("x"))
