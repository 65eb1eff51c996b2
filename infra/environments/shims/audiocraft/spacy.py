"""Stands in for spaCy: audiocraft's text-to-music models never ask its tokenizer."""
