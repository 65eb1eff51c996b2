"""Training and judging a model that answers questions about music."""
