"""Exports a MusicGen to the graphs of a bundle, and quantizes each component to its own precision."""
