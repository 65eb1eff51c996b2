"""Captions, prompts, the rendered corpus, and the shards that training reads."""
