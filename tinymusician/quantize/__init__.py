"""Compression: a MusicGen in PyTorch to the graphs of a bundle, each part in a precision of its own."""
