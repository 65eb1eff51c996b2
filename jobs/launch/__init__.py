"""Submitting, validating, supervising and deploying: what runs outside a job's own workers."""
