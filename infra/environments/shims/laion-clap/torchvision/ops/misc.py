"""The names that laion-clap imports."""

from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """Named in a type check only."""
