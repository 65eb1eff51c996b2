"""Submission, validation, supervision and deployment: everything outside a job's own workers."""
