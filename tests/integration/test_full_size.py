"""The engine on MusicGen-Small's exact shape with random weights: the codes are those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.shapes import CAPTIONS, musicgen
from tests.bundles import write_bundle
from tinymusician.models.band import train_tokenizer
from tinymusician.runtime.player import Wish, open_player

pytestmark = pytest.mark.slow

FRAMES = 24


def test_greedy_codes_are_those_of_transformers(tmp_path: Path) -> None:
    model, tokenizer = musicgen(), train_tokenizer(CAPTIONS)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_bundle(model, tmp_path / "tokenizer.json", tmp_path / "bundle")
    player = open_player(tmp_path / "bundle")
    generation = player.engine.start(player.request(Wish(CAPTIONS[0], seconds=FRAMES / 50, temperature=0)))
    player.engine.run(generation)

    seen: list[Any] = []
    decode = model.audio_encoder.decode

    def listen(audio_codes: Any, **more: Any) -> Any:
        seen.append(audio_codes)
        return decode(audio_codes, **more)

    text = tokenizer([CAPTIONS[0]], return_tensors="pt")
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.audio_encoder, "decode", listen)
        wave = model.generate(**text, guidance_scale=3.0, max_new_tokens=FRAMES + 3, do_sample=False)
    assert np.array_equal(generation.codes, seen[0][0, 0].numpy())
    assert len(np.unique(generation.codes)) > 10
    made = player.codec(generation.codes)
    np.testing.assert_allclose(made, wave[0, 0].numpy(), rtol=0, atol=1e-4 * np.abs(made).max())
