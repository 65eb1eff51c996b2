"""Complete examples that run on one machine."""
