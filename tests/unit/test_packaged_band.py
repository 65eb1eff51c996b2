"""The packaged house band: it loads with transformers, is small, and generates notes."""

from __future__ import annotations

import re

import numpy as np
import torch
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, MusicgenForConditionalGeneration

from tinymusician.data.prompts import load_prompts
from tinymusician.house_band.attributes import INSTRUMENTS
from tinymusician.house_band.audio_features import chroma_correlation, in_tune, pitch_track
from tinymusician.house_band.synth import Note, SoundfontSynth
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.prune_layers import weights_digest
from tinymusician.models.sampling import decode_audio, sample_codes
from tinymusician.models.shape import WEIGHTS, shape_of
from tinymusician.models.spectral import si_sdr
from tinymusician.runtime.bundle import DEFAULT_BUNDLE, PACKAGED, open_bundle


def test_packaged_models_are_within_their_size_limits() -> None:
    sizes = {path.parent.name: path.stat().st_size for path in WEIGHTS.rglob("*.safetensors")}
    assert sizes.pop("band-mu") <= 12e6
    assert sum(sizes.values()) <= 48e6
    large, small = shape_of("band-large"), shape_of("band-small")
    assert large is not None
    assert small is not None
    assert 1 / 5 <= small.parameters / large.parameters <= 1 / 3
    for name in ("band-large", "band-small"):
        model = MusicgenForConditionalGeneration.from_pretrained(WEIGHTS / name)
        shape = shape_of(name)
        assert shape is not None
        assert shape.parameters == sum(p.numel() for p in model.decoder.parameters())
        assert model.config.audio_encoder.frame_rate == 50


def test_no_file_names_a_machine() -> None:
    for path in WEIGHTS.rglob("*.json"):
        assert not re.search(r'"/\w', path.read_text("utf-8")), f"{path.name}: an absolute path"


def test_every_prompt_uses_the_vocabulary() -> None:
    tokenizer = load_tokenizer("band-large")
    for prompt in load_prompts("band"):
        assert tokenizer.unk_token_id not in tokenizer(prompt.text).input_ids, prompt.text


def test_codec_reconstructs_its_input() -> None:
    """A scale that no training held, on every instrument."""
    codec, band = load_musicgen("band-large").audio_encoder, SoundfontSynth()
    notes = [Note(12 * i, 12 * i + 11, 61 + 2 * i) for i in range(10)]
    audio = torch.from_numpy(np.stack([band.render(notes, name, 125) for name in INSTRUMENTS]))
    with torch.no_grad():
        codes = codec.encode(audio[:, None]).audio_codes
        made = codec.decode(codes, [None]).audio_values[:, 0]
    assert si_sdr(made, audio).mean() > 6
    pairs = zip(made.numpy(), audio.numpy(), strict=True)
    assert np.mean([chroma_correlation(one, other, 16_000) for one, other in pairs]) > 0.85


def test_teacher_generates_pitched_notes() -> None:
    model, tokenizer = load_musicgen("band-large"), load_tokenizer("band-large")
    text = tokenizer(["a slow flute waltz", "a slow trumpet march"], padding=True, return_tensors="pt")
    with torch.no_grad():
        condition = encode_text(model, text["input_ids"], text["attention_mask"])
        codes = sample_codes(model, condition, 100, [0, 1])
    for wave in decode_audio(model, codes).numpy():
        track = pitch_track(wave, 16_000)
        assert np.sqrt(np.mean(wave**2)) > 0.02
        assert np.mean(~np.isnan(track)) > 0.5
        assert in_tune(track) > 0.8


def test_band_clap_loads() -> None:
    folder = WEIGHTS / "band-clap"
    clap, tokenizer = ClapModel.from_pretrained(folder).eval().float(), AutoTokenizer.from_pretrained(folder)
    features = ClapFeatureExtractor.from_pretrained(folder)
    band = SoundfontSynth()
    notes = [Note(16 * i, 16 * i + 15, 67 + i % 3) for i in range(15)]
    waves = [band.render(notes, name, 250) for name in ("flute", "banjo")]
    inputs = features(waves, sampling_rate=16_000, return_tensors="pt")
    text = tokenizer(["a fast flute tune", "a fast banjo tune"], padding=True, return_tensors="pt")
    with torch.no_grad():
        likeness = clap(**inputs, input_ids=text["input_ids"], attention_mask=text["attention_mask"]).logits_per_audio
    assert likeness.argmax(1).tolist() == [0, 1]


def test_packaged_bundle_is_that_of_band_small() -> None:
    """`open_bundle` checks every file against the manifest; the manifest names the weights that it was made from."""
    bundle = open_bundle(PACKAGED / DEFAULT_BUNDLE)
    assert bundle.manifest.lineage["model_sha256"] == weights_digest(load_musicgen("band-small"))
    assert sum(file.size for file in bundle.manifest.files) < 6e6
