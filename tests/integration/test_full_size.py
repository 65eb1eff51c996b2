"""The engine with layers of MusicGen-Small's shape and random weights, compared with transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.shapes import CAPTIONS, musicgen
from tests.bundles import write_bundle
from tests.generated import generated
from tinymusician.house_band.model import train_tokenizer
from tinymusician.runtime.generator import GenerationRequest, load_generator

pytestmark = pytest.mark.slow

FRAMES = 24


def test_greedy_codes_equal_transformers(tmp_path: Path) -> None:
    model, tokenizer = musicgen(max_layers=4), train_tokenizer(CAPTIONS)
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_bundle(model, tmp_path / "tokenizer.json", tmp_path / "bundle")
    generator = load_generator(tmp_path / "bundle")
    generation = generator.engine.start(
        generator.request(GenerationRequest(CAPTIONS[0], seconds=FRAMES / 50, temperature=0))
    )
    generator.engine.run(generation)

    text = tokenizer([CAPTIONS[0]], return_tensors="pt")
    codes, wave = generated(model, FRAMES, **text, guidance_scale=3.0, do_sample=False)
    assert np.array_equal(generation.codes, codes)
    assert len(np.unique(generation.codes)) > 10
    made = generator.codec(generation.codes)
    np.testing.assert_allclose(made, wave, rtol=0, atol=1e-4 * np.abs(made).max())
