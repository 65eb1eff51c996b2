"""Windows cover all of the audio, and its level becomes that of the training clips."""

from __future__ import annotations

import numpy as np
import pytest

from tinymusician.runtime.audio_windows import at_level, split_windows


def test_windows_cover_everything() -> None:
    assert split_windows(10, 16) == [(0, 10)]
    assert split_windows(32, 16) == [(0, 16), (16, 32)]
    assert split_windows(40, 16) == [(0, 16), (16, 32), (24, 40)]


def test_audio_has_the_level_of_training() -> None:
    """Its loudest window is; silence stays, and so does what is loud enough."""
    loud = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    quiet = np.concatenate([0.001 * loud, 0.01 * loud])
    assert at_level(loud, 16_000, (0.05, 0.2)) is loud
    assert at_level(loud, 16_000, None) is loud
    assert not at_level(np.zeros(32_000, np.float32), 16_000, (0.05, 0.2)).any()
    raised = at_level(quiet, 16_000, (0.05, 0.2))
    assert np.sqrt(np.square(raised[16_000:]).mean()) == pytest.approx(0.05, rel=1e-4)
    np.testing.assert_allclose(raised[:16_000], 0.1 * raised[16_000:], rtol=1e-4)
    assert np.sqrt(np.square(at_level(9 * loud, 16_000, (0.05, 0.2))).mean()) == pytest.approx(0.2, rel=1e-4)
