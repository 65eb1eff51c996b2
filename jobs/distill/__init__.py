"""The distill and precompute jobs."""
