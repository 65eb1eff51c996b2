"""The delay pattern against transformers' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tinymusician.codebooks import delay, inputs_for, undelay, valid

PAD = 16


def codes(batch: int = 2, num_codebooks: int = 4, frames: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, PAD, (batch, num_codebooks, frames))


def test_layout_by_hand() -> None:
    delayed = delay(np.array([[[1, 2, 3], [4, 5, 6]]]), PAD)
    assert delayed.tolist() == [[[1, 2, 3, PAD], [PAD, 4, 5, 6]]]
    assert inputs_for(delayed, PAD).tolist() == [[[PAD, 1, 2, 3], [PAD, PAD, 4, 5]]]
    assert valid(2, 3).tolist() == [[True, True, True, False], [False, True, True, True]]


@pytest.mark.parametrize("num_codebooks", [1, 2, 4, 8])
def test_undelay_is_the_inverse(num_codebooks: int) -> None:
    original = codes(num_codebooks=num_codebooks)
    assert np.array_equal(undelay(delay(original, PAD)), original)
    assert valid(num_codebooks, 6).sum() == num_codebooks * 6


def test_too_short_to_undelay() -> None:
    with pytest.raises(ValueError, match="3 steps; 4 codebooks"):
        undelay(np.zeros((1, 4, 3), int))


def test_agrees_with_transformers(tiny_musicgen: Path) -> None:
    """transformers' pattern for a sequence that is all known must be ours, after its start column."""
    from transformers import MusicgenForConditionalGeneration

    decoder = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen).decoder
    original = codes()
    flat = torch.from_numpy(original.reshape(8, 6))
    start = torch.full((8, 1), PAD)
    longest = 6 + 4
    _, pattern = decoder.build_delay_pattern_mask(torch.cat([start, flat], 1), PAD, max_length=longest)
    theirs = pattern.view(2, 4, longest).numpy()
    ours = np.concatenate([np.full((2, 4, 1), PAD), delay(original, PAD)], axis=2)
    is_valid = theirs != -1
    assert is_valid.sum() > 0
    assert np.array_equal(ours[is_valid], theirs[is_valid])
