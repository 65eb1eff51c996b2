"""The house band: a small MusicGen family trained from scratch on rendered public-domain tunes.

It stands in for MusicGen where no weights of it are available. No other package of the library imports this one.
"""
