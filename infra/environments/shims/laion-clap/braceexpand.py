"""Stands in for braceexpand: laion-clap imports it for training only."""
