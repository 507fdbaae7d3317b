"""Simulators: what they make is physics, the same for the same seed, and survives kills and other worker counts."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.data.cards import DatasetCard, load_card
from foundation.data.files import read_point_clouds
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.campaign import campaign_jobs, derived_seed, run_campaign, run_job
from foundation.data.simulate.gflash import medium_of, showers_and_provenance, simulate_showers
from foundation.errors import DataError


def with_simulator(card: DatasetCard, **changes: object) -> DatasetCard:
    assert card.simulator is not None
    return card.model_copy(update={"simulator": card.simulator.model_copy(update=changes)})


def fast_jets() -> DatasetCard:
    """The shipped card without multiparton interactions: several times faster."""
    return with_simulator(load_card("pythia_jets"), mpi=False)


# showers


def visible(clouds: PointClouds) -> np.ndarray:
    return np.bincount(clouds.owners, clouds.feature("energy").astype(float), len(clouds))


def at_energy(card: DatasetCard, gev: float, n: int = 80, seed: int = 5) -> PointClouds:
    return simulate_showers(card, n, seed, np.full(n, gev))


def test_visible_energy_is_linear_and_a_few_percent() -> None:
    card = load_card("gflash_siw")
    low, high = (visible(at_energy(card, gev)).mean() for gev in (8.0, 40.0))
    assert high / low == pytest.approx(5.0, rel=0.08)
    assert 0.8 < low / 8000 * 100 < 1.3  # 0.5 mm of silicon in 5.6 mm of tungsten: 1.5 % for a MIP, times e/mip
    fractions = medium_of(load_card("gflash_ild").geometry).sampling_fractions  # type: ignore[arg-type]
    assert 0.02 < fractions[0] < 0.035 and fractions[-1] == pytest.approx(fractions[0] / 2, rel=0.05)


def test_the_maximum_moves_in_with_energy_and_the_shower_is_contained() -> None:
    card = with_simulator(load_card("gflash_siw"), particle="electron")
    maxima = []
    for gev in (5.0, 50.0):
        clouds = at_energy(card, gev, 200)
        profile = np.bincount(clouds.feature("layer").astype(int), clouds.feature("energy").astype(float), 12)
        maxima.append(float(np.average(np.arange(12), weights=profile)))
        assert 2 <= profile.argmax() <= 5
        assert profile[-1] < 0.05 * profile.sum()
        x = clouds.feature("x").astype(int)
        core = np.isin(x, (4, 5, 6, 7)) & np.isin(clouds.feature("y").astype(int), (4, 5, 6, 7))
        assert clouds.feature("energy")[core].sum() > 0.8 * clouds.feature("energy").sum()
        assert np.average(x, weights=clouds.feature("energy")) == pytest.approx(5.5, abs=0.15)  # no side is preferred
    assert 0.8 < maxima[1] - maxima[0] < 2.0  # ln(10) = 2.3 radiation lengths, 1.6 a layer


def test_photons_start_later_than_electrons() -> None:
    card = load_card("gflash_siw")
    depth = [at_energy(with_simulator(card, particle=p), 20.0).feature("layer").mean() for p in ("photon", "electron")]
    assert depth[0] > depth[1] + 0.3


def test_shower_columns() -> None:
    card = load_card("gflash_siw")
    clouds = simulate_showers(card, 50, seed=3)
    assert clouds.features == ("layer", "x", "y", "energy") and clouds.condition_names == ("incident_energy",)
    assert clouds.counts.min() > 25 and clouds.counts.max() < 220
    assert clouds.feature("energy").min() >= np.float32(0.1)
    energies = clouds.condition("incident_energy")
    assert energies.min() >= 5 and energies.max() <= 50 and not clouds.labels.any()
    for points in clouds:
        assert np.array_equal(points, points[np.lexsort((points[:, 2], points[:, 1], points[:, 0]))])
        assert len(np.unique(points[:, :3], axis=0)) == len(points)
        assert points[:, :3].min() >= 0 and points[:, :3].max() <= 11


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 900_000_000))
def test_showers_follow_from_the_seed(seed: int) -> None:
    card = load_card("gflash_siw")
    a, b, c = (simulate_showers(card, 3, s) for s in (seed, seed, seed + 1))
    assert a.points.tobytes() == b.points.tobytes() != c.points.tobytes()
    assert a.conditions.tobytes() == b.conditions.tobytes() != c.conditions.tobytes()


def test_empty_showers_are_drawn_again_and_counted() -> None:
    card = with_simulator(load_card("gflash_siw"), threshold_mev=5.5)
    clouds, provenance = showers_and_provenance(card, 100, 1, np.full(100, 8.0))
    assert len(clouds) == 100 and clouds.counts.min() >= 1
    assert np.all(clouds.condition("incident_energy") == 8.0)
    assert isinstance(provenance["redrawn_empty_showers"], int) and provenance["redrawn_empty_showers"] > 0
    with pytest.raises(DataError, match="no hit above"):
        showers_and_provenance(with_simulator(card, threshold_mev=1e5), 1, 1, np.array([5.0]))


def test_shower_mistakes_are_named() -> None:
    card = load_card("gflash_siw")
    with pytest.raises(DataError, match="start at 1.0 GeV"):
        simulate_showers(card, 1, 1, np.array([0.5]))
    with pytest.raises(DataError, match="has shape"):
        simulate_showers(card, 2, 1, np.array([5.0]))
    with pytest.raises(DataError, match="no gflash simulator"):
        simulate_showers(load_card("pythia_jets"), 1, 1)


# campaigns


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        run_campaign(fast_jets(), {"train": 3}, 7, tmp_path / str(workers), workers)
    one, two = hashes(tmp_path / "1"), hashes(tmp_path / "2")
    assert one == two and len(set(one.values())) == 2
    assert list(one) == ["train/qg-00000.h5", "train/top-00000.h5"]


def test_finished_files_are_kept_and_others_made_again(tmp_path: Path) -> None:
    card = load_card("gflash_siw")
    files = run_campaign(card, {"train": 30}, 7, tmp_path, 1, shard_size=10)["train"]
    before, whole = [path.stat().st_mtime_ns for path in files], hashes(tmp_path)
    files[1].write_bytes(files[1].read_bytes()[:1000])  # as a disk that was full would leave it
    files[2].unlink()
    assert run_campaign(card, {"train": 30}, 7, tmp_path, 1, shard_size=10)["train"] == files
    assert files[0].stat().st_mtime_ns == before[0] and hashes(tmp_path) == whole
    run_campaign(card, {"train": 30}, 8, tmp_path, 1, shard_size=10)  # another seed is another job
    assert not set(hashes(tmp_path).values()) & set(whole.values())


def test_objects_are_divided_evenly_over_the_classes(tmp_path: Path) -> None:
    jobs = campaign_jobs(fast_jets(), {"train": 25, "test": 0}, 1, tmp_path, 10)
    assert [(j.class_name, j.count) for j in jobs["train"]] == [("qg", 10), ("qg", 3), ("top", 10), ("top", 2)]
    assert jobs["test"] == [] and len({j.seed for j in jobs["train"]}) == 4
    with pytest.raises(DataError, match="at least 1"):
        run_campaign(fast_jets(), {"train": 1}, 1, tmp_path, 0)


@given(st.integers(0, 2**40), st.text(max_size=5), st.integers(0, 99))
def test_derived_seeds_are_seeds_for_pythia(seed: int, split: str, index: int) -> None:
    value = derived_seed(seed, "card", split, index)
    assert 1 <= value <= 900_000_000 and value == derived_seed(seed, "card", split, index)
    assert value != derived_seed(seed, "card", split, index + 1)


CAMPAIGN = """
import sys
from pathlib import Path
from foundation.data.cards import load_card
from foundation.data.simulate.campaign import run_campaign
if __name__ == "__main__":
    run_campaign(load_card("gflash_ild"), {"train": 100000}, 1, Path(sys.argv[1]), 2, shard_size=20)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_campaign_leaves_no_process_and_only_whole_files(tmp_path: Path, how: signal.Signals) -> None:
    script, out = tmp_path / "campaign.py", tmp_path / "out"
    script.write_text(CAMPAIGN)
    root = Path(__file__).resolve().parent.parent
    # Whatever process still holds the write end of this pipe keeps it open: its end is the end of all workers.
    alive, held = os.pipe()
    run = subprocess.Popen(
        [sys.executable, str(script), str(out)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stderr=held,
        stdout=held,
        start_new_session=True,
    )
    os.close(held)
    limit = time.monotonic() + 60
    while len(list(out.rglob("*.h5"))) < 3 and time.monotonic() < limit:
        time.sleep(0.05)
    run.send_signal(how) if how == signal.SIGKILL else os.killpg(run.pid, how)
    run.wait(timeout=30)
    with os.fdopen(alive, "rb") as stream:
        printed = stream.read().decode()
    assert printed.count("KeyboardInterrupt") == (1 if how == signal.SIGINT else 0)
    files = sorted(out.rglob("*.h5"))
    assert len(files) >= 3 and all(len(read_point_clouds(path)) == 20 for path in files)
    first = campaign_jobs(load_card("gflash_ild"), {"train": 20}, 1, tmp_path / "again", 20)["train"][0]
    run_job(first)
    assert first.path.read_bytes() == (out / "train" / first.path.name).read_bytes()
