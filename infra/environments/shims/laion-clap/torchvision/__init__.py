"""Stands in for torchvision, whose build beside this torch breaks transformers: laion-clap imports it for training."""

from . import datasets as datasets
from . import ops as ops
from . import transforms as transforms
