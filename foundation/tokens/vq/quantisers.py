"""Quantisers of latent vectors: codebooks that follow the data (VQ, residual VQ), and fixed levels (FSQ).

Both are those of vector-quantize-pytorch. Its codebook compares and counts by matrices of points by codes, a gigabyte
for 4,096 points and 65,536 codes; here a tree finds the nearest code and sums follow it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vector_quantize_pytorch import ResidualFSQ, ResidualVQ
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

from foundation.tokens.vq.nearest import NearestCode, k_means

START_POINTS_PER_CODE = 20
"""Points, at most, from which a code starts by k-means."""


class FollowingCodebook(Codebook):
    """A codebook whose codes are moving averages of the vectors they stand for (arXiv:1711.00937, appendix A.1).

    A code that gets less than `dead` of the points of an evenly used one is put onto a vector of the batch.
    """

    def __init__(self, dim: int, size: int, decay: float, dead: float, batch_points: int) -> None:
        evenly = batch_points / size
        super().__init__(dim, size, decay=decay, threshold_ema_dead_code=dead * evenly, reset_cluster_size=evenly)
        self.evenly = evenly
        self.replaced = 0

    def start(self, vectors: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Start from clusters of vectors [N, D]; what they leave over, [N, D]."""
        chosen = rng.permutation(len(vectors))[: START_POINTS_PER_CODE * self.codebook_size]
        centres, owners = k_means(vectors[chosen], self.codebook_size, rng)
        counts = np.bincount(owners, minlength=len(centres)) * (self.evenly * len(centres) / len(chosen))
        self.embed.copy_(torch.from_numpy(centres)[None])
        self.cluster_size.copy_(torch.from_numpy(counts)[None])
        self.embed_avg.copy_(self.embed * self.cluster_size[..., None])
        return (vectors - centres[NearestCode(centres)(vectors)]).astype(np.float32)

    def forward(self, x: Tensor, **_: object) -> tuple[Tensor, Tensor, None]:
        """Nearest vectors [1, N, D] of vectors [1, N, D], their codes [1, N], and no distances."""
        vectors = x.detach()[0]
        code = torch.from_numpy(NearestCode(self.embed[0].numpy())(vectors.numpy()))
        quantised = self.embed[0][code]
        if self.training:
            self._follow(vectors, code)
        return quantised[None], code[None], None

    @torch.no_grad()
    def _follow(self, vectors: Tensor, code: Tensor) -> None:
        counts = torch.bincount(code, minlength=self.codebook_size).to(vectors.dtype)
        sums = torch.zeros_like(self.embed[0]).index_add_(0, code, vectors)
        self.cluster_size[0].lerp_(counts, 1.0 - self.decay)
        self.embed_avg[0].lerp_(sums, 1.0 - self.decay)
        self.update_ema()
        self.replaced += int((self.cluster_size < self.threshold_ema_dead_code).sum())
        self.expire_codes_(vectors[None])


class Codebooks(ResidualVQ):
    """One codebook, or several of which each codes what the ones before left over (arXiv:2107.03312)."""

    def __init__(
        self, latent: int, size: int, number: int, commitment: float, decay: float, dead: float, batch_points: int
    ) -> None:
        super().__init__(
            dim=latent,
            num_quantizers=number,
            codebook_size=size,
            commitment_weight=commitment,
            rotation_trick=False,
        )
        for layer in self.layers:
            layer._codebook = FollowingCodebook(latent, size, decay, dead, batch_points)
        self._searches: list[NearestCode] = []

    @property
    def replaced(self) -> int:
        """Dead codes that were replaced so far."""
        return sum(layer._codebook.replaced for layer in self.layers)

    def start(self, z: Tensor, seed: int) -> None:
        """Start every codebook by k-means on vectors z [N, latent]."""
        rest, rng = z.numpy(), np.random.default_rng(seed)
        for layer in self.layers:
            rest = layer._codebook.start(rest, rng)

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised z [N, latent] (gradients pass straight through), codes [N, K], commitment loss."""
        quantised, codes, commitment = self(z[None])
        return quantised[0], codes[0], commitment.sum()

    def train(self, mode: bool = True) -> Codebooks:
        self._searches = []  # of codebooks that will have moved
        return super().train(mode)

    def codes(self, z: Tensor) -> Tensor:
        """Nearest codes [N, K] of z [N, latent], each of what the ones before left over."""
        if not self._searches:
            self._searches = [NearestCode(book.numpy()) for book in self.codebooks]
        codes, rest = [], z
        for book, search in zip(self.codebooks, self._searches, strict=True):
            code = torch.from_numpy(search(rest.numpy()))
            rest = rest - book[code]
            codes.append(code)
        return torch.stack(codes, dim=1)

    def vectors(self, codes: Tensor) -> Tensor:
        """Vectors [N, latent] that codes [N, K] stand for."""
        books = self.codebooks
        return sum((book[codes[:, k]] for k, book in enumerate(books)), torch.zeros(1))


class Levels(ResidualFSQ):
    """Each latent dimension rounded to its own number of levels (FSQ, arXiv:2309.15505); several stages refine."""

    replaced = 0

    def __init__(self, levels: Sequence[int], number: int) -> None:
        super().__init__(levels=list(levels), num_quantizers=number)

    def start(self, z: Tensor, seed: int) -> None:
        """Nothing to start: levels do not move."""

    def quantise(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised z [N, levels] (gradients pass straight through), codes [N, K], no commitment loss."""
        quantised, codes = self(z[None])
        return quantised[0], codes[0].long(), torch.zeros(())

    def codes(self, z: Tensor) -> Tensor:
        """Codes [N, K] of z [N, levels]."""
        return self.quantise(z)[1]

    def vectors(self, codes: Tensor) -> Tensor:
        """Vectors [N, levels] that codes [N, K] stand for."""
        return self.get_output_from_indices(codes[None])[0]


Quantiser = Codebooks | Levels


def all_vectors(quantiser: Quantiser) -> list[NDArray[np.float32]]:
    """Vectors [size, latent] of all codes of each of the K stages, as they add up."""
    if isinstance(quantiser, Codebooks):
        return [book.detach().numpy() for book in quantiser.codebooks]
    scales = [scale.numpy() for scale in quantiser.scales]
    return [book.numpy() * scale for book, scale in zip(quantiser.codebooks, scales, strict=True)]
