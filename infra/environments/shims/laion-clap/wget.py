"""Stands in for wget: laion-clap imports it for training only."""
