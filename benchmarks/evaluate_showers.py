"""Speed and memory of the CaloChallenge's high-level features, beside the official code where it is given.

    python benchmarks/evaluate_showers.py --showers 100000 --official PATH/TO/homepage/code

`--official` is the folder `code` of a checkout of github.com/CaloChallenge/homepage. It runs in the same process on
fewer showers (`--official-showers`), dense and in float64; its cost per shower does not fall with more of them. Seconds
are of CPU time, as both sides work on one core. Showers are GFlash ones of 1 GeV to 1 TeV in the voxels of dataset 2; a
few hundred are simulated, and repeated with their energies scaled.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from foundation.data.cards import load_card
from foundation.data.point_clouds import PointClouds
from foundation.data.ragged import rows_of
from foundation.data.simulate.gflash import simulate_showers
from foundation.evaluate.calochallenge.features import high_level_features
from foundation.evaluate.calochallenge.separation import separation_powers, voxel_separation
from foundation.evaluate.calochallenge.settings import settings_of
from foundation.evaluate.calochallenge.voxels import voxel_matrix

DIFFERENT = 300
"""Showers that are simulated; a sample repeats them, each time with energies scaled anew."""
CARD = "calochallenge_ds2"


def simulated(count: int, seed: int) -> PointClouds:
    """`count` showers like those of dataset 2."""
    card = load_card(CARD)
    rng = np.random.default_rng(seed)
    few = min(DIFFERENT, count)
    made = simulate_showers(load_card("gflash_par04"), few, seed, np.exp(rng.uniform(0, np.log(1000), few)))
    rows, offsets = rows_of(made.offsets, np.arange(count) % few)
    points = made.points[rows]
    # 0.033: the sampling fraction that the energies of dataset 2 are divided by
    points[:, card.feature_names.index("energy")] *= np.repeat(rng.uniform(0.9, 1.1, count), np.diff(offsets)) / 0.033
    conditions = made.conditions[np.arange(count) % few]
    return replace(
        made, points=points, offsets=offsets, labels=np.zeros(count, np.int64), conditions=conditions, tag=card.tag
    )


def official_seconds(code: Path, clouds: PointClouds) -> tuple[float, float]:
    """CPU seconds per shower of the official features, and the largest relative difference of a layer's energy."""
    sys.path.insert(0, str(code))
    os.environ.setdefault("MPLBACKEND", "Agg")
    import HighLevelFeatures as HLF

    settings = settings_of(load_card(CARD))
    dense = voxel_matrix(clouds, settings).toarray().astype(np.float64)
    here = Path.cwd()
    os.chdir(code)
    theirs = HLF.HighLevelFeatures("electron", filename="binning_dataset_2.xml")
    os.chdir(here)
    started = time.process_time()
    # what evaluate.py does between reading the file and the histograms
    thresholded = np.where(dense < settings.threshold_mev, np.zeros_like(dense), dense)
    theirs.CalculateFeatures(thresholded)
    seconds = time.process_time() - started
    ours = high_level_features(clouds, settings).layer_energy
    layers = np.stack(list(theirs.GetElayers().values()), axis=1)
    return seconds / len(clouds), float((np.abs(ours - layers) / np.maximum(layers, 1e-3)).max())


def peak_gb() -> float:
    """Highest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Print the figures, a line each, and return them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--showers", type=int, default=2000)
    parser.add_argument("--official", type=Path, help="folder `code` of github.com/CaloChallenge/homepage")
    parser.add_argument("--official-showers", type=int, default=5000)
    options = parser.parse_args(arguments)
    settings, found = settings_of(load_card(CARD)), {}
    truth = simulated(options.showers, 1)
    found["hits_per_shower"] = float(truth.counts.mean())
    found["memory_sample_gb"] = peak_gb()
    wall, cpu = time.perf_counter(), time.process_time()
    features = high_level_features(truth, settings)
    found["features_wall_s"], found["features_s"] = time.perf_counter() - wall, time.process_time() - cpu
    found["memory_features_gb"] = peak_gb()
    generated = truth.select(np.random.default_rng(2).permutation(len(truth))[: max(2, len(truth) // 10)])
    cpu = time.process_time()
    separation_powers(features, high_level_features(generated, settings))
    voxel_separation(truth, generated, settings, highest=features.highest_voxel)
    found["separation_s"] = time.process_time() - cpu
    found["memory_gb"] = peak_gb()
    if options.official:
        few = truth.select(slice(min(options.official_showers, len(truth))))
        per_shower, difference = official_seconds(options.official.resolve(), few)
        found["official_features_s"] = per_shower * len(truth)
        found["official_difference"] = difference
        found["times_faster"] = found["official_features_s"] / found["features_s"]
    print(f"{options.showers:,} showers of dataset 2's size")
    for name, value in found.items():
        print(f"  {name:22} {value:.4g}")
    return found


if __name__ == "__main__":
    main()
