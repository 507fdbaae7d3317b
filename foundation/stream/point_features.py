"""Continuous features of points beside their codes, in the columns that a model reads.

Columns have names, so that datasets with different features share a stream: a dataset fills the columns whose names it
stores, and the others are zero, about the mean of a transformed feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.errors import DataError, did_you_mean
from foundation.stream.reading import Block, ShardedDataset


def stored_features(dataset: ShardedDataset) -> list[str]:
    """Names of the continuous features in the shards of a dataset, in their order there."""
    return list(dataset.manifest.get("features", ()))


def require_features(datasets: Sequence[ShardedDataset], names: Sequence[str], every: bool = False) -> None:
    """Raise DataError where these datasets store none of the features `names`, or, with `every`, not each of them."""
    stored = {name for dataset in datasets for name in stored_features(dataset)}
    missing = [name for name in names if name not in stored]
    if not missing or (len(missing) < len(names) and not every):
        return
    if not stored:
        raise DataError(
            f"the model reads the continuous features {', '.join(names)}, but {', '.join(d.tag for d in datasets)} "
            "store none: tokenise with `features: float16`"
        )
    raise DataError(f"no dataset of the stream stores the feature '{missing[0]}'{did_you_mean(missing[0], stored)}")


def feature_columns(dataset: ShardedDataset, block: Block, names: Sequence[str]) -> NDArray[np.floating]:
    """The features `names` of all points of a block, [N, len(names)] in the stored type; zero where there is none."""
    if block.features is None:
        return np.zeros((len(block.codes), len(names)), np.float16)
    stored = stored_features(dataset)
    if stored == list(names):
        return block.features
    columns = np.zeros((len(block.codes), len(names)), block.features.dtype)
    for column, name in enumerate(names):
        if name in stored:
            columns[:, column] = block.features[:, stored.index(name)]
    return columns
