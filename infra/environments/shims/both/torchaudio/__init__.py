"""Stands in for torchaudio, which has no build beside this torch: audiocraft imports it for training and for files."""
