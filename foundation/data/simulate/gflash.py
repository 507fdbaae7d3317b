"""Electromagnetic showers by the Grindhammer-Peters parametrisation (hep-ex/0001020), in any layered calorimeter.

A shower is a gamma distribution in depth whose two parameters fluctuate together, spread over energy spots that are
distributed radially around the axis. Depth t is in effective radiation lengths, r in effective Moliere radii. The
plates of all layers together make one effective medium; where the plates differ, each layer keeps its own thickness
and its own sampling fraction. Photons behave as electrons from their conversion on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from foundation.data.by_card import clouds_of_card
from foundation.data.cards import DatasetCard, Geometry, GFlashShowers
from foundation.data.point_clouds import PointClouds
from foundation.errors import DataError, did_you_mean

Floats = NDArray[np.float64]

SHOWER_SOFTWARE = ("numpy", "scipy")
SCALE_ENERGY_MEV = 21.2
STEP_X0 = 0.1
# Showers that are drawn together: fixed, because the random numbers are drawn chunk by chunk. At 100 GeV a chunk has
# about half a million spots, some 100 MB.
SHOWERS_PER_CHUNK = 64
MIN_ENERGY_GEV = 1.0
MAX_REDRAWS = 100


@dataclass(frozen=True)
class Material:
    """Z, A, density [g/cm3], radiation length [g/cm2], energy loss of a minimum-ionising particle [MeV cm2/g].

    Values of the Particle Data Group's tables of atomic and nuclear properties.
    """

    z: float
    a: float
    density: float
    radiation_length: float
    minimum_loss: float

    @property
    def critical_energy(self) -> float:
        """Critical energy in MeV, as the parametrisation defines it."""
        return 2.66 * (self.radiation_length * self.z / self.a) ** 1.1


MATERIALS = {
    "Si": Material(14, 28.085, 2.329, 21.82, 1.664),
    "LAr": Material(18, 39.948, 1.396, 19.55, 1.508),
    "Fe": Material(26, 55.845, 7.874, 13.84, 1.451),
    "Cu": Material(29, 63.546, 8.96, 12.86, 1.403),
    "W": Material(74, 183.84, 19.30, 6.76, 1.145),
    "Pb": Material(82, 207.2, 11.35, 6.37, 1.122),
}


@dataclass(frozen=True)
class Medium:
    """What the parametrisation needs to know of a calorimeter of L layers; see `medium_of`."""

    z: float
    critical_energy_mev: float
    moliere_radius_mm: float
    sampling_frequency: float
    """F_S: effective radiation length over the thickness of one layer."""
    e_over_mip: float
    """Response to electrons over that to minimum-ionising particles."""
    layer_edges_x0: Floats
    """Depth of the layer boundaries in radiation lengths, [L + 1]."""
    sampling_fractions: Floats
    """Visible share of the energy that an electron loses in a layer, [L]."""


def medium_of(geometry: Geometry) -> Medium:
    """The effective medium of a geometry, by mass fractions (hep-ex/0001020, section 3).

    Raises DataError when the geometry names a material that is not in `MATERIALS`.
    """
    for name in {name for group in geometry.layers for name in (group.absorber, group.active)} - set(MATERIALS):
        raise DataError(f"the geometry names the material '{name}'{did_you_mean(name, MATERIALS)}")
    plates = [  # (material, thickness in cm of all plates of a group together)
        (MATERIALS[name], group.repeat * mm / 10)
        for group in geometry.layers
        for name, mm in ((group.absorber, group.absorber_mm), (group.active, group.active_mm))
    ]
    mass = sum(m.density * cm for m, cm in plates)
    thickness = sum(cm for _, cm in plates) + sum(group.repeat * group.gap_mm / 10 for group in geometry.layers)
    share = [m.density * cm / mass for m, cm in plates]
    x0 = 1 / sum(w / m.radiation_length for w, (m, _) in zip(share, plates, strict=True))
    loss = sum(w * m.critical_energy / m.radiation_length for w, (m, _) in zip(share, plates, strict=True))
    x0_mm = 10 * x0 * thickness / mass
    z_absorber = _mean_z([(MATERIALS[g.absorber], g.repeat * g.absorber_mm) for g in geometry.layers])
    z_active = _mean_z([(MATERIALS[g.active], g.repeat * g.active_mm) for g in geometry.layers])
    e_over_mip = 1 / (1 + 0.007 * (z_absorber - z_active))
    depths, fractions = [], []
    for group in geometry.layers:
        absorber, active = MATERIALS[group.absorber], MATERIALS[group.active]
        g_cm2 = (absorber.density * group.absorber_mm / 10, active.density * group.active_mm / 10)
        depths += [g_cm2[0] / absorber.radiation_length + g_cm2[1] / active.radiation_length] * group.repeat
        lost = absorber.minimum_loss * g_cm2[0], active.minimum_loss * g_cm2[1]
        fractions += [e_over_mip * lost[1] / (lost[0] + lost[1])] * group.repeat
    return Medium(
        z=sum(w * m.z for w, (m, _) in zip(share, plates, strict=True)),
        critical_energy_mev=x0 * loss,
        moliere_radius_mm=10 * SCALE_ENERGY_MEV / loss * thickness / mass,
        sampling_frequency=x0_mm / (10 * thickness / geometry.n_layers),
        e_over_mip=e_over_mip,
        layer_edges_x0=np.concatenate([[0.0], np.cumsum(depths)]),
        sampling_fractions=np.array(fractions),
    )


def _mean_z(plates: list[tuple[Material, float]]) -> float:
    weights = [m.density * thickness for m, thickness in plates]
    return sum(w * m.z for w, (m, _) in zip(weights, plates, strict=True)) / sum(weights)


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
    """Correlated fluctuations of ln T and ln alpha around their means in a sampling calorimeter."""
    ln_y = np.log(1000 * energy_gev / medium.critical_energy_mev)
    mean_t = ln_y - 0.812 - 0.55 / medium.sampling_frequency - 0.69 * (1 - medium.e_over_mip)
    mean_alpha = 0.81 + (0.458 + 2.26 / medium.z) * ln_y - 0.476 / medium.sampling_frequency
    if np.any(mean_t <= 0) or np.any(mean_alpha <= 1):
        raise DataError(
            "the GFlash parametrisation does not hold for layers this thick at these energies: "
            "make the absorber thinner or the energy higher"
        )
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
    card: DatasetCard, count: int, seed: int, energies_gev: NDArray | None = None
) -> tuple[PointClouds, dict[str, object]]:
    """`count` showers, and how many had to be drawn again because no cell was above the threshold.

    Features the card may ask for: layer, x, y (indices), energy (visible, MeV). Condition: incident_energy [GeV], from
    the card's spectrum or from `energies_gev` [count]. The label is 0. A redrawn shower keeps its energy.

    Raises DataError when the card is not one of GFlash showers, an energy is below 1 GeV, a material is unknown, or a
    shower stays empty.
    """
    simulator, geometry = card.simulator, card.geometry
    if not isinstance(simulator, GFlashShowers) or geometry is None:
        raise DataError(f"card '{card.name}' has no gflash simulator: its showers cannot be simulated")
    rng = np.random.default_rng(seed)
    energies = _incident_energies(simulator, count, rng) if energies_gev is None else np.asarray(energies_gev, float)
    if count < 1 or energies.shape != (count,):
        raise DataError(f"{count} showers are asked for, but energies_gev has shape {energies.shape}")
    if not energies.min() >= MIN_ENERGY_GEV:
        raise DataError(f"GFlash showers start at {MIN_ENERGY_GEV} GeV; {energies.min():.3g} GeV is asked for")
    medium = medium_of(geometry)
    # Cells of the finished showers: (shower, cell, energy) per round of drawing; empty showers go to the next round.
    rounds: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []
    todo, redrawn = np.arange(count), 0
    for _ in range(1 + MAX_REDRAWS):
        for first in range(0, len(todo), SHOWERS_PER_CHUNK):
            chunk = todo[first : first + SHOWERS_PER_CHUNK]
            shower, cell, energy = _hits(medium, geometry, simulator, energies[chunk], rng)
            rounds.append((chunk[shower], cell, energy))
        filled = np.unique(np.concatenate([owner for owner, _, _ in rounds]))
        todo = np.setdiff1d(np.arange(count), filled)
        if not len(todo):
            break
        redrawn += len(todo)
    else:
        raise DataError(
            f"card '{card.name}': a shower of {energies[todo[0]]:.3g} GeV had no hit above {simulator.threshold_mev} "
            f"MeV in {MAX_REDRAWS} attempts; lower threshold_mev or raise energy_gev"
        )
    owners, cells, visible = (np.concatenate([r[i] for r in rounds]) for i in range(3))
    layer, in_layer = np.divmod(cells, geometry.cells**2)
    x, y = np.divmod(in_layer, geometry.cells)
    columns = {"layer": layer, "x": x, "y": y, "energy": visible}
    clouds = clouds_of_card(card, columns, owners, np.zeros(count, np.int64), {"incident_energy": energies})
    return clouds, {"redrawn_empty_showers": redrawn}


def _incident_energies(simulator: GFlashShowers, count: int, rng: np.random.Generator) -> Floats:
    low, high = simulator.energy_gev
    if simulator.spectrum == "log":
        return np.exp(rng.uniform(np.log(low), np.log(high), count))
    return rng.uniform(low, high, count)


def _steps(edges: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Boundaries of steps of at most STEP_X0 that end at every layer boundary, [S + 1], and the layer of each, [S]."""
    per_layer = np.maximum(np.ceil(np.diff(edges) / STEP_X0 - 1e-9), 1).astype(int)
    inner = [np.linspace(a, b, n, endpoint=False) for a, b, n in zip(edges[:-1], edges[1:], per_layer, strict=True)]
    return np.concatenate([*inner, edges[-1:]]), np.repeat(np.arange(len(per_layer)), per_layer)


def _hits(
    medium: Medium, geometry: Geometry, simulator: GFlashShowers, energy_gev: Floats, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Cells above the threshold of a chunk of B showers: shower, cell = (layer, x, y) as one index, energy in MeV."""
    n, layers = len(energy_gev), geometry.n_layers
    start = rng.exponential(9 / 7, n) if simulator.particle == "photon" else np.zeros(n)
    profile = draw_profiles(medium, energy_gev, rng)
    visible = _visible_energy(medium, profile, simulator, energy_gev, start, rng)
    shower, layer, tau = _spots(medium, profile, simulator, energy_gev, start, rng)
    per_layer = np.bincount(shower * layers + layer, minlength=n * layers)
    radius = medium.moliere_radius_mm * draw_radii(medium, energy_gev[shower], tau, rng)
    phi = 2 * np.pi * rng.random(len(radius))
    x, y = (np.floor(radius * along / geometry.cell_mm + geometry.cells / 2) for along in (np.cos(phi), np.sin(phi)))
    inside = (x >= 0) & (x < geometry.cells) & (y >= 0) & (y < geometry.cells)
    slot = (shower * layers + layer)[inside]
    spot_energy = visible.reshape(-1)[slot] / per_layer[slot]
    cell = (slot * geometry.cells + x[inside].astype(np.int64)) * geometry.cells + y[inside].astype(np.int64)
    deposited = np.bincount(cell, spot_energy, n * layers * geometry.cells**2).astype(np.float64)
    read_out = np.flatnonzero((deposited > 0) & (deposited >= simulator.threshold_mev))
    owner, cell = np.divmod(read_out, layers * geometry.cells**2)
    return owner, cell, deposited[read_out]


def _visible_energy(
    medium: Medium,
    profile: Profile,
    simulator: GFlashShowers,
    energy_gev: Floats,
    start: Floats,
    rng: np.random.Generator,
) -> Floats:
    """Energy in MeV in the active plate of each layer, [B, L], with the sampling fluctuations of eq. Gamma(dE/c2, c2).

    Drawn per layer: the sum of the gamma-distributed deposits of its steps has the same distribution.
    """
    share = np.diff(profile.share_before(medium.layer_edges_x0 - start[:, None]), axis=1)
    c2 = simulator.sampling_resolution**2
    deposited_gev = c2 * rng.standard_gamma(share * energy_gev[:, None] / c2)
    return 1000 * deposited_gev * medium.sampling_fractions


def _spots(
    medium: Medium,
    profile: Profile,
    simulator: GFlashShowers,
    energy_gev: Floats,
    start: Floats,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Shower, layer and relative depth tau of every spot. Each layer that the shower reaches has at least one."""
    edges, layer_of_step = _steps(medium.layer_edges_x0)
    depth = edges - start[:, None]
    share = np.diff(profile.share_before(depth, 0.844 + 0.0026 * medium.z, 0.813 + 0.0019 * medium.z), axis=1)
    expected = 10.3 / simulator.sampling_resolution * energy_gev**0.959
    number = rng.poisson(share * expected[:, None])
    # Without a spot the energy of a layer would be lost; its last step is one that the shower has surely reached.
    firsts = np.flatnonzero(np.diff(layer_of_step, prepend=-1))
    lasts = np.append(firsts[1:], len(layer_of_step)) - 1
    number[:, lasts] += (np.add.reduceat(number, firsts, axis=1) == 0) & (depth[:, lasts + 1] > 0)
    middle = np.maximum((depth[:, :-1] + depth[:, 1:]) / 2, 0.0)
    to_tau = (profile.alpha - 1) / profile.alpha / profile.maximum * profile.mean_alpha / (profile.mean_alpha - 1)
    shower, step = np.divmod(np.repeat(np.arange(number.size), number.reshape(-1)), number.shape[1])
    return shower, layer_of_step[step], (middle * to_tau[:, None])[shower, step]
