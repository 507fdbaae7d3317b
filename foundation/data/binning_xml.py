"""The CaloChallenge's binning files: rings and sectors of every layer, as XML.

    <Bins>
      <Bin pid="22" etaMin="0" etaMax="130" name="photon">
        <Layer id="0" r_edges="0,5,10,30" n_bin_alpha="1"/>
        <Layer id="4" r_edges="0" n_bin_alpha="1"/>

r_edges are in mm. A layer with one edge only has no voxels: it is left out here, and the others keep their ids. The
challenge's own reader takes a layer's position in the file for its number, so the unused ones are written.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Literal

import numpy as np

from foundation.data.geometry import CylindricalGeometry, RingLayers
from foundation.data.section import Section
from foundation.errors import DataError, did_you_mean


class BinningFile(Section):
    """A card's geometry as a binning file of the CaloChallenge."""

    kind: Literal["xml"]
    path: str
    """Relative to the folder of the card."""
    particle: str | None = None
    """Name of the bin; needed where the file has several particles."""
    eta: float | None = None
    """Where a particle has several bins in eta: a value inside, in the file's own unit."""

    def read(self, folder: Path) -> CylindricalGeometry:
        """The geometry, the path taken from this folder."""
        return read_binning_xml(folder / self.path, self.particle, self.eta)


def read_binning_xml(path: Path, particle: str | None = None, eta: float | None = None) -> CylindricalGeometry:
    """The layers of one particle and eta bin: those that have voxels, in the order of the file, with their ids.

    particle: name of the bin; it may be left out where the file has one
    eta: a value between etaMin and etaMax, in the file's own unit (the CaloChallenge's 130 is |eta| = 1.3)

    Raises DataError when the file is missing or damaged, lacks an attribute, declares a document type (and with it
    entities), or when it is not clear which bin is meant.
    """
    chosen = _choose(path, _parse(path), particle, eta)
    layers = [_layer(path, element) for element in chosen.iter("Layer")]
    used = tuple(layer for layer in layers if layer is not None)
    if not used:
        raise DataError(f"{path}: {_describe(chosen)} has no layer with voxels")
    ids = [layer.id for layer in used]
    if len(set(ids)) < len(ids):
        raise DataError(f"{path}: {_describe(chosen)} has two layers of the same id")
    return CylindricalGeometry(kind="cylindrical", layers=used)


def write_binning_xml(geometry: CylindricalGeometry, pid: int, name: str, path: Path) -> None:
    """Write a binning file with one particle. The matter of the layers has no place in it.

    Raises DataError when the ids of the layers do not rise.
    """
    layers = geometry.by_layer
    ids = [position if layer.id is None else layer.id for position, layer in enumerate(layers)]
    if ids != sorted(set(ids)) or min(ids, default=0) < 0:
        raise DataError(f"{path}: a binning file needs rising layer ids from 0, and these are {ids}")
    root = ElementTree.Element("Bins")
    particle = ElementTree.SubElement(root, "Bin", pid=str(pid), name=name)
    by_id = dict(zip(ids, layers, strict=True))
    for number in range(max(ids) + 1):
        layer = by_id.get(number)
        edges = (0.0,) if layer is None else layer.r_edges_mm
        ElementTree.SubElement(
            particle, "Layer", id=str(number), r_edges=",".join(np.format_float_positional(e, trim="-") for e in edges),
            n_bin_alpha=str(1 if layer is None else layer.alpha_bins),
        )  # fmt: skip
    ElementTree.indent(root, "   ")
    part = path.with_name(path.name + ".part")
    part.write_bytes(ElementTree.tostring(root) + b"\n")
    os.replace(part, path)


class _WithoutDocumentType(ElementTree.TreeBuilder):
    """Refuses a document type as soon as it starts: entities are declared in it, and a binning file needs none."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("it declares a document type, which a binning file has no use for; remove the <!DOCTYPE ...>")


def _parse(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path, ElementTree.XMLParser(target=_WithoutDocumentType())).getroot()
    except OSError as error:
        raise DataError(f"{path}: cannot read this binning file ({error.strerror})") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise DataError(f"{path}: not a valid XML file ({error})") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _choose(path: Path, root: ElementTree.Element, particle: str | None, eta: float | None) -> ElementTree.Element:
    bins = list(root.iter("Bin"))
    if not bins:
        raise DataError(f"{path}: no <Bin> in this file; a binning file has one per particle")
    names = [_attribute(path, element, "name") for element in bins]
    if particle is not None and particle not in names:
        raise DataError(f"{path}: no particle '{particle}'{did_you_mean(particle, names)}")
    found = [
        element
        for element, name in zip(bins, names, strict=True)
        if particle in (None, name) and (eta is None or _covers(path, element, eta))
    ]
    if len(found) == 1:
        return found[0]
    have = "; ".join(_describe(element) for element in bins)
    what = "several bins fit: say particle, or particle and eta" if found else f"no bin has eta {eta}"
    raise DataError(f"{path}: {what} (there are: {have})")


def _covers(path: Path, element: ElementTree.Element, eta: float) -> bool:
    """A bin without limits holds for all eta."""
    if "etaMin" not in element.attrib and "etaMax" not in element.attrib:
        return True
    low, high = (_number(path, element, name) for name in ("etaMin", "etaMax"))
    return low <= eta < high


def _describe(element: ElementTree.Element) -> str:
    given = [element.get("name", "?")]
    given += [f"{name} {element.attrib[name]}" for name in ("etaMin", "etaMax") if name in element.attrib]
    return " ".join(given)


def _layer(path: Path, element: ElementTree.Element) -> RingLayers | None:
    """None where the layer has no voxels."""
    number = _number(path, element, "id")
    sectors = _number(path, element, "n_bin_alpha")
    if not (number >= 0 and number == int(number)) or not (sectors >= 1 and sectors == int(sectors)):
        raise DataError(f"{path}: layer {number:g} has n_bin_alpha {sectors:g}; both must be whole numbers")
    text = _attribute(path, element, "r_edges")
    try:
        edges = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        raise DataError(f'{path}: layer {number:g} has r_edges="{text}", which are not numbers') from None
    if len(edges) == 1:
        return None
    if not np.isfinite(edges).all() or edges[0] < 0 or (np.diff(edges) <= 0).any():
        raise DataError(f'{path}: layer {number:g} has r_edges="{text}"; they must rise from 0 or above')
    return RingLayers(id=int(number), r_edges_mm=edges, alpha_bins=int(sectors))


def _number(path: Path, element: ElementTree.Element, name: str) -> float:
    text = _attribute(path, element, name)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f'{path}: <{element.tag}> has {name}="{text}", which is not a number')
    return value


def _attribute(path: Path, element: ElementTree.Element, name: str) -> str:
    if name not in element.attrib:
        raise DataError(f"{path}: a <{element.tag}> has no '{name}'{did_you_mean(name, element.attrib)}")
    return element.attrib[name]
