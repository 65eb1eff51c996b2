"""MusicGen in PyTorch: loading, sampling, and the pruning of students."""
