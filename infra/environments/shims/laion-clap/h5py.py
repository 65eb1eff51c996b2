"""Stands in for h5py: laion-clap imports it for training only."""
