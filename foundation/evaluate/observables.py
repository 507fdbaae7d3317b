"""What is measured on one jet or one shower: names, units, and how a quantity may be compared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Observable:
    """One number per object.

    name:    key in the tables of observables
    label:   for axes, mathtext
    unit:    "1" where dimensionless
    signed:  may be negative or zero around its median, so that a relative difference of medians means nothing
    integer: counts; histogram bins then have integer widths
    """

    name: str
    label: str
    unit: str = "1"
    signed: bool = False
    integer: bool = False

    @property
    def axis(self) -> str:
        """Label with unit, as a physicist writes it on an axis."""
        return self.label if self.unit == "1" else f"{self.label} [{self.unit}]"


JET_OBSERVABLES = (
    Observable("mass", r"jet mass $m$", "GeV"),
    Observable("pt", r"jet $p_\mathrm{T}$", "GeV"),
    Observable("multiplicity", "constituents", integer=True),
    Observable("tau21", r"$\tau_{21}$"),
    Observable("tau32", r"$\tau_{32}$"),
)

SHOWER_OBSERVABLES = (
    Observable("energy_sum", "visible energy", "MeV"),
    Observable("hits", "hits", integer=True),
    Observable("response", "visible / incident energy"),
    Observable("cog_layer", "centre of gravity in depth", "layer"),
    Observable("cog_x", "centre of gravity in x", "mm", signed=True),
    Observable("cog_y", "centre of gravity in y", "mm", signed=True),
)
