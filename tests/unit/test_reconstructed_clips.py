"""Clips that pass through a codec: the selected ones change as transformers' EnCodec says, the others do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EncodecModel, MusicgenForConditionalGeneration

from tinymusician.errors import ModelError
from tinymusician.models.shape import WEIGHTS
from tinymusician.understand.reconstructed_clips import load_codec, with_reconstructions

WAVES = np.random.default_rng(0).normal(0, 0.1, (5, 4000)).astype(np.float32)
IS_CODED = np.array([False, True, False, False, True])


def test_selected_clips_pass_through_the_codec() -> None:
    codec = load_codec("band-small")
    read = with_reconstructions(lambda rows: WAVES[rows].copy(), IS_CODED, codec)
    clips = np.concatenate([read(slice(0, 2)), read(slice(2, 4)), read(slice(4, 5))])
    model = MusicgenForConditionalGeneration.from_pretrained(WEIGHTS / "band-small").float()
    assert isinstance(model.audio_encoder, EncodecModel)
    with torch.no_grad():
        expected = model.audio_encoder(torch.from_numpy(WAVES[IS_CODED])[:, None]).audio_values[:, 0].numpy()
    np.testing.assert_array_equal(clips[~IS_CODED], WAVES[~IS_CODED])
    np.testing.assert_allclose(clips[IS_CODED], expected[:, :4000], atol=1e-5)


def test_codec_of_another_rate_is_refused(tiny_musicgen: Path) -> None:
    with pytest.raises(ModelError, match="800 Hz; an audio encoder reads 16000 Hz"):
        load_codec(str(tiny_musicgen))
