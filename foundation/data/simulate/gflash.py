"""Electromagnetic showers by the Grindhammer-Peters parametrisation (hep-ex/0001020), in any layered calorimeter.

A shower is a gamma distribution in depth whose two parameters fluctuate together, spread over energy spots that are
distributed radially around the axis. Depth t is in effective radiation lengths, r in effective Moliere radii. The
plates of all layers together make one effective medium; where the plates differ, each layer keeps its own thickness
and its own sampling fraction. Without absorbers the calorimeter is homogeneous and all energy is visible. Photons
behave as electrons from their conversion on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from foundation.data.cards import DatasetCard, GFlashShowers
from foundation.data.geometry import Geometry, n_voxels
from foundation.data.point_clouds import PointClouds
from foundation.data.simulate.matter import Medium, medium_of
from foundation.data.simulate.showers import Hits, Incident, draw_incident, label_of, shower_clouds
from foundation.errors import DataError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SHOWER_SOFTWARE = ("numpy", "scipy")
STEP_X0 = 0.1
# Showers that are drawn together: fixed, because the random numbers are drawn chunk by chunk. At 100 GeV a chunk has
# about half a million spots, some 100 MB.
SHOWERS_PER_CHUNK = 64
MIN_ENERGY_GEV = 1.0
MAX_REDRAWS = 100
SAMPLING_RESOLUTION = 0.11


@dataclass(frozen=True)
class Profile:
    """Longitudinal shape of B showers: dE/dt is a gamma distribution; all arrays [B]."""

    alpha: Floats
    maximum: Floats
    """T: depth of the maximum in radiation lengths, from the start of the shower."""
    mean_alpha: Floats
    """exp<ln alpha>."""

    def share_before(self, depth: Floats, alpha_scale: float = 1.0, maximum_scale: float = 1.0) -> Floats:
        """Share of the energy (with scaled parameters: of the spots) that lies before `depth` [B, D]."""
        alpha, maximum = self.alpha * alpha_scale, self.maximum * maximum_scale
        alpha = np.maximum(alpha, 1.01)
        beta = (alpha - 1) / maximum
        return gammainc(alpha[:, None], beta[:, None] * np.maximum(depth, 0.0))


def draw_profiles(medium: Medium, energy_gev: Floats, rng: np.random.Generator) -> Profile:
    """Correlated fluctuations of ln T and ln alpha around their means.

    In a homogeneous medium the terms with the sampling frequency and with e/mip vanish from the means.
    """
    ln_y = np.log(1000 * energy_gev / medium.critical_energy_mev)
    mean_t = ln_y - 0.812 - 0.55 / medium.sampling_frequency - 0.69 * (1 - medium.e_over_mip)
    mean_alpha = 0.81 + (0.458 + 2.26 / medium.z) * ln_y - 0.476 / medium.sampling_frequency
    if np.any(mean_t <= 0) or np.any(mean_alpha <= 1):
        raise DataError(
            "the GFlash parametrisation does not hold for layers this thick at these energies: "
            "make the absorber thinner or the energy higher"
        )
    if medium.homogeneous:
        sigma_t, sigma_alpha = 1 / (-1.4 + 1.26 * ln_y), 1 / (-0.58 + 0.86 * ln_y)
        rho = 0.705 - 0.023 * ln_y
    else:
        sigma_t, sigma_alpha = 1 / (-2.5 + 1.25 * ln_y), 1 / (-0.82 + 0.79 * ln_y)
        rho = 0.784 - 0.023 * ln_y
    plus, minus = np.sqrt((1 + rho) / 2), np.sqrt((1 - rho) / 2)
    g1, g2 = rng.standard_normal((2, len(energy_gev)))
    maximum = mean_t * np.exp(sigma_t * (plus * g1 + minus * g2))
    alpha = mean_alpha * np.exp(sigma_alpha * (plus * g1 - minus * g2))
    # An alpha below 1 has no maximum; it is a far tail that the parametrisation does not mean to describe.
    return Profile(np.maximum(alpha, 1.1), maximum, mean_alpha)


def draw_radii(medium: Medium, energy_gev: Floats, tau: Floats, rng: np.random.Generator) -> Floats:
    """Distance of spots from the shower axis in Moliere radii, [N], at relative depth tau [N]."""
    z, ln_e = medium.z, np.log(energy_gev)
    per_frequency, one_minus_e = 1 / medium.sampling_frequency, 1 - medium.e_over_mip
    core = 0.0251 + 0.00319 * ln_e + (0.1162 - 0.000381 * z) * tau
    core += -0.0203 * one_minus_e + 0.0397 * per_frequency * np.exp(-tau)
    past = tau - 0.645
    tail = (0.659 - 0.00309 * z) * (np.exp(-2.59 * past) + np.exp((0.3585 + 0.0412 * ln_e) * past))
    tail += -0.14 * one_minus_e - 0.495 * per_frequency * np.exp(-tau)
    x = (0.401 + 0.00187 * z - tau) / (1.313 - 0.0686 * ln_e)
    in_core = (2.632 - 0.00094 * z) * np.exp(x - np.exp(x))
    in_core += one_minus_e * (0.348 - 0.642 * per_frequency * np.exp(-((tau - 1) ** 2)))
    # The corrections for sampling can push widths and shares out of their range, in the first radiation length above
    # all; a spot needs a positive width.
    radius = np.where(rng.random(len(tau)) < in_core, np.maximum(core, 0.01), np.maximum(tail, 0.05))
    u = rng.random(len(tau))
    return radius * np.sqrt(u / (1 - u))


def simulate_showers(card: DatasetCard, count: int, seed: int, energies_gev: NDArray | None = None) -> PointClouds:
    """`count` showers of the card; the same seed gives the same bits. See `showers_and_provenance`."""
    return showers_and_provenance(card, count, seed, energies_gev)[0]


def showers_and_provenance(
    card: DatasetCard, count: int, seed: int, energies_gev: NDArray | None = None, class_name: str | None = None
) -> tuple[PointClouds, dict[str, object]]:
    """`count` showers of one class, and how many had to be drawn again because no cell was above the threshold.

    For what the card may ask for see `showers.shower_clouds`. Energies are those of the card's spectrum, or
    `energies_gev` [count]. A redrawn shower keeps its energy and its angle.

    Raises DataError when the card is not one of GFlash showers, an energy is below 1 GeV, a material is missing or
    unknown, or a shower stays empty.
    """
    simulator, geometry = card.simulator, card.geometry
    if not isinstance(simulator, GFlashShowers) or geometry is None:
        raise DataError(f"card '{card.name}' has no gflash simulator: its showers cannot be simulated")
    label = label_of(card, class_name)
    rng = np.random.default_rng(seed)
    incident = draw_incident(card, simulator, count, rng, energies_gev)
    if not incident.energy_gev.min() >= MIN_ENERGY_GEV:
        raise DataError(
            f"GFlash showers start at {MIN_ENERGY_GEV} GeV; {incident.energy_gev.min():.3g} GeV is asked for"
        )
    photons = simulator.particle_of(class_name) == "photon"
    shower_maker = ShowerMaker(medium_of(geometry), geometry, simulator, photons)
    # The hits of the finished showers, per round of drawing; empty showers go to the next round.
    rounds: list[Hits] = []
    todo, redrawn = np.arange(count), 0
    for _ in range(1 + MAX_REDRAWS):
        for first in range(0, len(todo), SHOWERS_PER_CHUNK):
            chunk = todo[first : first + SHOWERS_PER_CHUNK]
            hits = shower_maker.hits(incident.at(chunk), rng)
            rounds.append(Hits(chunk[hits.shower], hits.voxel, hits.energy_mev))
        todo = np.setdiff1d(np.arange(count), np.concatenate([hits.shower for hits in rounds]))
        if not len(todo):
            break
        redrawn += len(todo)
    else:
        raise DataError(
            f"card '{card.name}': a shower of {incident.energy_gev[todo[0]]:.3g} GeV had no hit above "
            f"{simulator.threshold_mev} MeV in {MAX_REDRAWS} attempts; lower threshold_mev or raise energy_gev"
        )
    clouds = shower_clouds(card, geometry, label, incident, Hits.joined(rounds))
    return clouds, {"redrawn_empty_showers": redrawn}


@dataclass(frozen=True)
class ShowerMaker:
    """Draws the hits of showers in one calorimeter."""

    medium: Medium
    geometry: Geometry
    simulator: GFlashShowers
    photons: bool

    def hits(self, incident: Incident, rng: np.random.Generator) -> Hits:
        """Hits above the threshold of a chunk of B showers."""
        n, layers, voxels = len(incident), self.geometry.n_layers, n_voxels(self.geometry)
        start = rng.exponential(9 / 7, n) if self.photons else np.zeros(n)
        profile = draw_profiles(self.medium, incident.energy_gev, rng)
        # Layers lie 1/cos(theta) further apart along the axis of a shower that leans.
        edges = self.medium.layer_edges_x0 / np.cos(incident.theta)[:, None] - start[:, None]
        visible = self._visible_energy(profile, incident.energy_gev, edges, rng)
        shower, layer, tau = self._spots(profile, incident, start, rng)
        per_layer = np.bincount(shower * layers + layer, minlength=n * layers)
        radius = self.medium.moliere_radius_mm * draw_radii(self.medium, incident.energy_gev[shower], tau, rng)
        phi = 2 * np.pi * rng.random(len(radius))
        # The disc across the axis, cut by the plane of the layer: an ellipse around the point where the axis meets it.
        theta = incident.theta[shower]
        x = radius * np.cos(phi) / np.cos(theta) + self.medium.layer_depths_mm[layer] * np.tan(theta)
        voxel = self.geometry.cell_at(layer, x, radius * np.sin(phi))
        inside = voxel >= 0
        slot = (shower * layers + layer)[inside]
        spot_energy = visible.reshape(-1)[slot] / per_layer[slot]
        cell = shower[inside] * voxels + voxel[inside]
        deposited = np.bincount(cell, spot_energy, n * voxels).astype(np.float64)
        read_out = np.flatnonzero((deposited > 0) & (deposited >= self.simulator.threshold_mev))
        owner, number = np.divmod(read_out, voxels)
        return Hits(owner, number, deposited[read_out])

    def _visible_energy(self, profile: Profile, energy_gev: Floats, edges: Floats, rng: np.random.Generator) -> Floats:
        """Visible energy in MeV in each layer, [B, L], with sampling fluctuations Gamma(dE/c2, c2).

        edges: depth of the layers' boundaries along the axis from the start of the shower, [B, L + 1]. Drawn per layer:
        the sum of the gamma-distributed deposits of its steps has the same distribution.
        """
        deposited_gev = np.diff(profile.share_before(edges), axis=1) * energy_gev[:, None]
        resolution = self.simulator.sampling_resolution or (None if self.medium.homogeneous else SAMPLING_RESOLUTION)
        if self.simulator.sampling_fluctuations and resolution is not None:
            deposited_gev = resolution**2 * rng.standard_gamma(deposited_gev / resolution**2)
        return 1000 * deposited_gev * self.medium.sampling_fractions

    def _spots(
        self, profile: Profile, incident: Incident, start: Floats, rng: np.random.Generator
    ) -> tuple[Integers, Integers, Floats]:
        """Shower, layer and relative depth tau of every spot. Each layer that the shower reaches has at least one."""
        z = self.medium.z
        if self.medium.homogeneous:
            expected = 93 * np.log(z) * incident.energy_gev**0.876
            alpha_scale, maximum_scale = 0.639 + 0.00334 * z, 0.698 + 0.00212 * z
        else:
            expected = 10.3 / (self.simulator.sampling_resolution or SAMPLING_RESOLUTION) * incident.energy_gev**0.959
            alpha_scale, maximum_scale = 0.844 + 0.0026 * z, 0.813 + 0.0019 * z
        edges, layer_of_step = _steps(self.medium.layer_edges_x0)
        depth = edges / np.cos(incident.theta)[:, None] - start[:, None]
        share = np.diff(profile.share_before(depth, alpha_scale, maximum_scale), axis=1)
        number = rng.poisson(share * expected[:, None])
        # Without a spot the energy of a layer would be lost; its last step is one that the shower has surely reached.
        firsts = np.flatnonzero(np.diff(layer_of_step, prepend=-1))
        lasts = np.append(firsts[1:], len(layer_of_step)) - 1
        number[:, lasts] += (np.add.reduceat(number, firsts, axis=1) == 0) & (depth[:, lasts + 1] > 0)
        middle = np.maximum((depth[:, :-1] + depth[:, 1:]) / 2, 0.0)
        to_tau = (profile.alpha - 1) / profile.alpha / profile.maximum * profile.mean_alpha / (profile.mean_alpha - 1)
        shower, step = np.divmod(np.repeat(np.arange(number.size), number.reshape(-1)), number.shape[1])
        return shower, layer_of_step[step], (middle * to_tau[:, None])[shower, step]


def _steps(edges: Floats) -> tuple[Floats, Integers]:
    """Boundaries of steps of at most STEP_X0 that end at every layer boundary, [S + 1], and the layer of each, [S]."""
    per_layer = np.maximum(np.ceil(np.diff(edges) / STEP_X0 - 1e-9), 1).astype(int)
    inner = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(edges[:-1], edges[1:], per_layer, strict=True)]
    return np.concatenate([*inner, edges[-1:]]), np.repeat(np.arange(len(per_layer)), per_layer)
