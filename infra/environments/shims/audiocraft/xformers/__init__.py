"""Stands in for xformers, which needs CUDA: audiocraft's attention is PyTorch's own unless it is told otherwise."""

from . import ops as ops
