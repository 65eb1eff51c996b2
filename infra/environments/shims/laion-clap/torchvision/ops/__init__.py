"""The names that laion-clap imports."""

from . import misc as misc
