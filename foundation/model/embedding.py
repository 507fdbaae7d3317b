"""Starting values of embeddings from what the ids stand for.

A codebook's vectors lie in a space where near means alike. Embeddings that start with that geometry let the transformer
see from the first step which constituents point into the same direction, instead of learning it code by code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.model.transformer import Transformer

SHORTEST, LONGEST = 0.3, 3.0
"""Wave numbers of the features, per standard deviation of the vectors."""
SIZE = 0.15
"""Standard deviation of an embedding that starts so, several times that of the others: chosen by validation loss."""


def fourier_features(vectors: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Random Fourier features [n, width] of vectors [n, dim] (Rahimi, Recht, NIPS 2007), of standard deviation SIZE.

    Their inner products fall with the distance of the vectors, on scales from LONGEST down to SHORTEST.
    """
    x = (vectors - vectors.mean(dim=0)) / vectors.std().clamp_min(1e-12)
    log_scale = torch.tensor([SHORTEST, LONGEST]).log()
    scale = (log_scale[0] + (log_scale[1] - log_scale[0]) * torch.rand(width, generator=generator)).exp()
    waves = torch.randn(x.shape[1], width, generator=generator) * scale
    phases = 2 * torch.pi * torch.rand(width, generator=generator)
    return SIZE * 2**0.5 * torch.cos(x @ waves + phases)


@torch.no_grad()
def start_from(model: Transformer, ids: range, vectors: Tensor, generator: torch.Generator) -> None:
    """Let the embeddings of `ids` start from the vectors [len(ids), dim] that they stand for."""
    features = fourier_features(vectors, model.config.width, generator)
    model.embedding.weight[ids.start : ids.stop] = features
    if model.output is not None:
        model.output[ids.start : ids.stop] = features
