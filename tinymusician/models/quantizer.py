"""Trains EnCodec's residual vector quantizer: k-means initialization, moving averages, revival of dead codes.

transformers has EnCodec's quantizer for inference only; this trains its buffers in place. Source: EnCodec (arXiv
2210.13438, section 3.2) and VQ-VAE's moving averages (arXiv 1711.00937, appendix A.1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician.models.protocols import Codebook, Quantizer


class QuantizerOutput(NamedTuple):
    """`latent` [B, D, T] with straight-through gradients, the scalar `commitment` loss, and `codes` [B, K, T]."""

    latent: Tensor
    commitment: Tensor
    codes: Tensor


class QuantizerTrainer(nn.Module):
    """Runs an `EncodecResidualVectorQuantizer` with gradients and updates its codebooks by moving averages."""

    def __init__(self, quantizer: Quantizer, decay: float = 0.99, revive_below: float = 0.05) -> None:
        """A code is dead if its usage falls below the share `revive_below` of an even usage."""
        super().__init__()
        self.quantizer = quantizer
        self.decay, self.revive_below = decay, revive_below

    @torch.no_grad()
    def start(self, latents_ND: Tensor, generator: torch.Generator, iterations: int = 10) -> None:
        """Fit each codebook by k-means to the residual of those before it."""
        residual = latents_ND.float()
        for layer in self.quantizer.layers:
            book = layer.codebook
            centres, sizes = k_means(residual, book.codebook_size, generator, iterations)
            book.embed.copy_(centres)
            book.cluster_size.copy_(sizes.clamp(min=1) / sizes.sum() * book.codebook_size)
            book.embed_avg.copy_(centres * book.cluster_size[:, None])
            residual = residual - centres[book.quantize(residual)]

    def forward(self, latent_BDT: Tensor, depth_B: Tensor, generator: torch.Generator | None) -> QuantizerOutput:
        """Quantize with the first `depth_B[b]` codebooks of each row; in training mode also update the codebooks."""
        batch, width, frames = latent_BDT.shape
        residual = latent_BDT.permute(0, 2, 1).reshape(-1, width).float()
        total, commitment, codes = torch.zeros_like(residual), residual.new_zeros(()), []
        for level, layer in enumerate(self.quantizer.layers):
            book = layer.codebook
            index = book.quantize(residual.detach())
            chosen = F.embedding(index, book.embed)
            used = (depth_B > level).to(residual.dtype).repeat_interleave(frames)[:, None]
            error = (residual - chosen).square().mean(1, keepdim=True)
            commitment = commitment + (error * used).sum() / used.sum().clamp(min=1)
            if self.training and generator is not None:
                self._update(book, residual.detach()[used[:, 0] > 0], index[used[:, 0] > 0], generator)
            total, residual = total + chosen * used, residual - chosen
            codes.append(index.view(batch, frames))
        quantized = total.view(batch, frames, width).permute(0, 2, 1)
        straight = latent_BDT + (quantized - latent_BDT).detach()
        return QuantizerOutput(straight, commitment, torch.stack(codes, 1))

    @torch.no_grad()
    def _update(self, book: Codebook, residual: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Update by moving averages; cluster sizes are multiples of an even usage, so that their mean is one."""
        count = torch.bincount(index, minlength=book.codebook_size).float()
        sums = torch.zeros_like(book.embed).index_add_(0, index, residual)
        if dist.is_initialized():
            dist.all_reduce(count)
            dist.all_reduce(sums)
        even = book.codebook_size / count.sum().clamp(min=1)
        book.cluster_size.lerp_(count * even, 1 - self.decay)
        book.embed_avg.lerp_(sums * even, 1 - self.decay)
        dead = book.cluster_size < self.revive_below
        book.embed.copy_(book.embed_avg / book.cluster_size.clamp(min=1e-6)[:, None])
        if dead.any() and count.sum() > 0:
            self._revive(book, dead, residual, generator)

    def _revive(self, book: Codebook, dead: Tensor, residual: Tensor, generator: torch.Generator) -> None:
        """Replace dead codes by random latents of this batch, equal on all ranks.

        The latents are those of the lowest rank that has any.
        """
        fresh = book.embed[dead]
        if len(residual):
            picks = torch.randint(len(residual), (len(fresh),), generator=generator)
            fresh = residual[picks.to(residual.device)]
        if dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
            source = torch.tensor(rank if len(residual) else world, device=residual.device)
            dist.all_reduce(source, dist.ReduceOp.MIN)
            dist.broadcast(fresh, int(source))
        book.embed[dead], book.embed_avg[dead], book.cluster_size[dead] = fresh, fresh, 1.0


def k_means(points: Tensor, clusters: int, generator: torch.Generator, iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random points [N, D], empty clusters restarted; returns centres [C, D] and sizes [C]."""
    centres = points[torch.randint(len(points), (clusters,), generator=generator)].clone()
    sizes = torch.ones(clusters)
    for _ in range(iterations):
        nearest = torch.cdist(points, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=clusters).float()
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        strays = points[torch.randint(len(points), (clusters,), generator=generator)]
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], strays)
    return centres, sizes
