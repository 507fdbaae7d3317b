"""All figures of one dataset, of one model or of several on top of each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foundation.evaluate.comparison import Comparison
from foundation.evaluate.displays import jet_pictures, shower_picture
from foundation.evaluate.figures import Picture
from foundation.evaluate.plots import distribution_pictures, response_picture


def dataset_pictures(models: Mapping[str, Comparison], folder: Path | None = None, pdf: bool = False) -> list[Picture]:
    """Distributions, then jet images, or response and shower displays; models by name, compared to the same truth."""
    pictures = distribution_pictures(models, folder, pdf)
    if next(iter(models.values())).domain == "jet":
        return pictures + jet_pictures(models, folder, pdf)
    response = response_picture(models, folder, pdf)
    return pictures + ([response] if response else []) + [shower_picture(models, folder, pdf)]
