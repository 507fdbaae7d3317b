"""What the CaloChallenge's evaluation fixes for each of its datasets, and by which version of it we go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foundation.data.cards import DatasetCard
from foundation.data.formats.units import unit_factor
from foundation.data.geometry import CylindricalGeometry
from foundation.errors import DataError

Floats = NDArray[np.float64]

DEFINITIONS = {
    "features": "high_level_features/calochallenge-9b41df7",
    "separation": "separation_power/calochallenge-9b41df7",
    "classifier_low": "classifier_low/calochallenge-9b41df7",
    "classifier_low_normed": "classifier_low_normed/calochallenge-9b41df7, thresholded",
    "classifier_high": "classifier_high/calochallenge-9b41df7",
    "classifier_resnet": "classifier_resnet/calochallenge-9b41df7",
    "fpd": "fpd/jetnet-0.2.5, calochallenge-9b41df7",
    "kpd": "kpd/jetnet-0.2.5, calochallenge-9b41df7",
    "fpd_trimmed": "fpd_trimmed/cms-hgcal-challenge-28d61fc",
    "prdc": "prdc/prdc-0.2, calochallenge-9b41df7",
}
"""Names and versions for metrics.json: a commit of github.com/CaloChallenge/homepage, or a package."""

READOUT_MEV = 0.5e-3 / 0.033
"""Datasets 2 and 3: 0.5 keV in silicon, divided by the sampling fraction as all their energies are."""


@dataclass(frozen=True)
class Settings:
    """Thresholds, histogram limits and split sizes; the lists have one entry per layer of the geometry.

    name:          of the card
    threshold_mev: a voxel below it counts as empty, in both samples
    centre_mm:     centres of energy in eta and phi are histogrammed in -centre_mm .. centre_mm
    width_mm, radius_mm, radial_width_mm: their widths, the centres in r and their widths, from 0 to this
    split:         showers of each sample to train a classifier, to choose its epoch, to quote its result; used where
                   the samples have exactly that many, else 60, 20 and 20 % of them are
    official:      of the challenge, or derived from the card for a dataset that is none of the challenge's
    """

    name: str
    geometry: CylindricalGeometry
    threshold_mev: float
    centre_mm: tuple[float, ...]
    width_mm: tuple[float, ...]
    radius_mm: tuple[float, ...]
    radial_width_mm: tuple[float, ...]
    split: tuple[int, int, int] | None = None
    official: bool = True

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Number of each layer in the experiment's own counting."""
        layers = self.geometry.by_layer
        return tuple(position if layer.id is None else layer.id for position, layer in enumerate(layers))

    @property
    def sectored(self) -> NDArray[np.int64]:
        """Positions of the layers that are cut in alpha: only these have centres in eta and phi."""
        return np.flatnonzero(self.geometry.alpha_bins > 1)


def settings_of(card: DatasetCard) -> Settings:
    """The challenge's settings for one of its cards; for another card of rings, settings in the same spirit.

    Derived settings take the lowest energy of the card's range as threshold and limits in proportion to the outer
    radius of each layer, as for dataset 2.

    Raises DataError for a card without rings.
    """
    geometry = card.geometry
    if not isinstance(geometry, CylindricalGeometry):
        raise DataError(
            f"card '{card.name}': the CaloChallenge's metrics need layers of rings (geometry: {{kind: cylindrical}}); "
            "showers in square cells have the observables of the ILD instead"
        )
    if card.name in ("calochallenge_ds1_photons", "calochallenge_ds1_pions"):
        last = 21_000 if card.name.endswith("photons") else 20_800
        return _atlas(card.name, geometry, (80_000, 20_000, last))
    if card.name in ("calochallenge_ds2", "calochallenge_ds3"):
        everywhere = (1.0,) * geometry.n_layers
        return Settings(
            card.name, geometry, READOUT_MEV, _times(30.0, everywhere), _times(30.0, everywhere),
            _times(42.0, everywhere), _times(20.0, everywhere), (60_000, 20_000, 20_000),
        )  # fmt: skip
    return _derived(card, geometry)


def _atlas(name: str, geometry: CylindricalGeometry, split: tuple[int, int, int]) -> Settings:
    ids = [layer.id for layer in geometry.by_layer]
    return Settings(
        name, geometry, 1.0,
        tuple(500.0 if i in (12, 13) else 100.0 for i in ids),
        tuple(400.0 if i in (12, 13) else 100.0 for i in ids),
        tuple(1500.0 if i in (12, 13, 14) else 500.0 for i in ids),
        tuple(1500.0 if i in (12, 13, 14) else 500.0 for i in ids),
        split,
    )  # fmt: skip


def _derived(card: DatasetCard, geometry: CylindricalGeometry) -> Settings:
    energy = next((feature for feature in card.features if feature.name == "energy"), None)
    if energy is None or energy.range is None or energy.range[0] <= 0:
        raise DataError(
            f"card '{card.name}' has no feature 'energy' with a range above 0, which would be the threshold of the "
            "CaloChallenge's metrics; give it one"
        )
    outer = tuple(layer.r_edges_mm[-1] for layer in geometry.by_layer)
    return Settings(
        card.name, geometry, energy.range[0] * unit_factor(energy.unit, "MeV"), _times(0.7, outer), _times(0.7, outer),
        _times(1.0, outer), _times(0.5, outer), official=False,
    )  # fmt: skip


def _times(factor: float, values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(factor * value for value in values)
