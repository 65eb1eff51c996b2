"""The audio encoder of MATPAC++: a vision transformer over patches of a log spectrum.

Architecture and names of weights are those of the published checkpoints (arXiv 2508.12709, aurianworld/matpac), whose
blocks are timm's: pre-norm attention with a joint projection, GELU, fixed positions by sine and cosine. The class token
takes part in attention and is dropped at the end. The patches of one time step are concatenated over frequency, so a
clip becomes 6.25 vectors per second.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician.models.spectral_front_end import BANDS, FrontEndConfig, SpectralFrontEnd

PATCH = 16
PATCH_ROWS = BANDS // PATCH
_EPSILON = 1e-6


@dataclass(frozen=True)
class AudioEncoderShape:
    """The encoder's shape; the defaults are MATPAC++'s. A block of at most `block_columns` columns is encoded at once.

    62 columns are 992 frames; MATPAC++ encodes 10 s as one block and a remainder of one column.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    block_columns: int = 62
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)

    @property
    def output_width(self) -> int:
        """The width of a time step: its five patches, concatenated."""
        return PATCH_ROWS * self.width


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BPD: Tensor) -> Tensor:
        query, key, value = self.qkv(x_BPD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return output


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=_EPSILON), _Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=_EPSILON), _FeedForward(width, feed_forward)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class EncoderBlocks(nn.Module):
    """Transformer blocks and a final norm: tokens [B, P, width] to tokens."""

    def __init__(self, width: int, layers: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(width, heads, feed_forward) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=_EPSILON)

    def forward(self, x_BPD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BPD = block(x_BPD)
        output: Tensor = self.norm(x_BPD)
        return output


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, PATCH, stride=PATCH)


class AudioEncoder(nn.Module):
    """Waves [B, N] at 16 kHz to vectors [B, T, 5 · width], T = ceil(frames / 16).

    Keys of the state dict are the published checkpoint's: `patch_embed.proj`, `cls_token`, `pos_embed`,
    `student_encoder.blocks.N`, `student_encoder.norm`.
    """

    pos_embed: Tensor

    def __init__(self, shape: AudioEncoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.front_end = SpectralFrontEnd(shape.front_end)
        self.patch_embed = _PatchEmbed(shape.front_end.channels, shape.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.register_buffer("pos_embed", sine_positions(shape.width, PATCH_ROWS, shape.block_columns)[None])
        self.student_encoder = EncoderBlocks(shape.width, shape.layers, shape.heads, shape.feed_forward)
        self.apply(_initialize)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, waves_BN: Tensor) -> Tensor:
        return self.encode(self.front_end(waves_BN))

    def encode(self, spectra_BCFT: Tensor) -> Tensor:
        """The vectors of normalized spectra; zeros fill the last patch, and each block of columns is by itself."""
        padding = -spectra_BCFT.shape[-1] % PATCH
        blocks = torch.split(F.pad(spectra_BCFT, (0, padding)), PATCH * self.shape.block_columns, dim=-1)
        return torch.cat([self._encode_block(block) for block in blocks], dim=1)

    def patches(self, spectra_BCFT: Tensor) -> Tensor:
        """The embedded patches of one block with their positions, frequency by frequency, [B, 5 · columns, width]."""
        embedded = self.patch_embed.proj(spectra_BCFT)
        output: Tensor = embedded.flatten(2).transpose(1, 2) + self.positions(embedded.shape[-1])
        return output

    def positions(self, columns: int) -> Tensor:
        """The positions of the patches of `columns` columns, [1, 5 · columns, width]."""
        return first_columns(self.pos_embed, columns)

    def with_class_token(self, patches_BPD: Tensor) -> Tensor:
        """Prepend the class token."""
        token = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches_BPD), -1, -1)
        return torch.cat([token, patches_BPD], dim=1)

    def _encode_block(self, spectra_BCFT: Tensor) -> Tensor:
        encoded = self.student_encoder(self.with_class_token(self.patches(spectra_BCFT)))[:, 1:]
        return torch.unflatten(encoded, 1, (PATCH_ROWS, -1)).transpose(1, 2).flatten(2)


def sine_positions(width: int, rows: int, columns: int) -> Tensor:
    """Fixed positions of a grid, and zeros for the class token in front, [1 + rows · columns, width].

    The first half of the channels encodes the column, the second half the row (as in MAE, arXiv 2111.06377).
    """
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    encoded = np.concatenate([_sines(width // 2, column.ravel()), _sines(width // 2, row.ravel())], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, width)), encoded])).float()


def first_columns(positions_1PD: Tensor, columns: int) -> Tensor:
    """The positions of a grid's first columns without the class token's, [1, rows · columns, width]."""
    return torch.unflatten(positions_1PD[:, 1:], 1, (PATCH_ROWS, -1))[:, :, :columns].flatten(1, 2)


def _sines(width: int, positions: np.ndarray) -> np.ndarray:
    rates = 1 / 10_000 ** (np.arange(width // 2) / (width // 2))
    phases = positions[:, None] * rates
    return np.concatenate([np.sin(phases), np.cos(phases)], axis=1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
