"""Stands in for xformers, which needs CUDA: audiocraft uses PyTorch's attention by default."""

from . import ops as ops
