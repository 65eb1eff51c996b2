"""Training and judging models that answer questions about music."""
