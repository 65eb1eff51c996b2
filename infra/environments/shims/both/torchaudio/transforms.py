"""The names that audiocraft imports."""

from __future__ import annotations

from torch import nn


class MelSpectrogram(nn.Module):
    """Used by losses of training only."""
