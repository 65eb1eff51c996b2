"""Stands in for webdataset: laion-clap imports it for training only."""
