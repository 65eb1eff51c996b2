"""The audio encoder and its front end against NumPy in float64, transformers' spectrogram and transformers' ViT."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from tinymusician.models.audio_encoder import PATCH_ROWS, AudioEncoder, AudioEncoderShape, sine_positions
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape
from tinymusician.models.spectral_front_end import (
    BANDS,
    FLOOR,
    HOP,
    LOWEST_PITCH,
    RATE,
    FrontEndConfig,
    Scale,
    SpectralFrontEnd,
)

RAW = FrontEndConfig(Scale(0, 1), Scale(0, 1))
SMALL = AudioEncoderShape(width=48, layers=2, heads=4, feed_forward=96, block_columns=8, front_end=RAW)


def noise(seconds: float, clips: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (clips, round(seconds * RATE))).astype(np.float32))


def test_log_mel_is_that_of_transformers() -> None:
    wave = noise(0.5)
    spectra = SpectralFrontEnd(FrontEndConfig())(wave)[0, 0].numpy()
    filters = mel_filter_bank(201, BANDS, 50, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
    window = window_function(400, "hann")
    options = {"power": 2.0, "center": False, "mel_filters": filters, "mel_floor": 0.0}
    power = spectrogram(wave[0].numpy().astype(np.float64), window, 400, HOP, 400, **options)
    expected = np.log(power + np.finfo(np.float32).eps)
    np.testing.assert_allclose(spectra, (expected + 7.056) / 4.193, atol=1e-4)


@pytest.mark.parametrize("pitch", [45, 57, 69, 81, 100])
def test_sine_appears_in_the_band_of_its_semitone(pitch: int) -> None:
    times = np.arange(RATE) / RATE
    wave = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * times)
    power = SpectralFrontEnd(RAW)(torch.from_numpy(wave[None].astype(np.float32)))[0, 1].exp().numpy()
    middle = power[:, power.shape[1] // 2]
    band = pitch - LOWEST_PITCH
    assert middle.argmax() == band
    assert middle[band] == pytest.approx(1, abs=0.05)
    assert middle[band + 2] < 0.05


def test_pitch_channel_is_the_constant_q_transform() -> None:
    """Against the transform's definition in float64, with a window around the frame's centre."""
    wave, band, frame = noise(1.0), 29, 40
    power = SpectralFrontEnd(RAW)(wave)[0, 1, band, frame].exp().item()
    frequency = 440 * 2 ** ((LOWEST_PITCH + band - 69) / 12)
    length, centre = 34 * RATE / frequency, frame * HOP + 200
    times = np.arange(RATE) - centre
    window = np.where(np.abs(times) < length / 2, np.cos(np.pi * times / length) ** 2, 0)
    sum_ = (wave[0].numpy().astype(np.float64) * window * np.exp(-2j * np.pi * frequency * times / RATE)).sum()
    assert power - FLOOR == pytest.approx(abs(2 * sum_ / window.sum()) ** 2, rel=1e-3)


def test_blocks_are_those_of_transformers_vit() -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(SMALL).eval()
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )
    vit = ViTModel(config, add_pooling_layer=False).eval()
    for ours, theirs in zip(encoder.student_encoder.blocks, vit.encoder.layer, strict=True):
        attention = theirs.attention.attention
        for name, weight, bias in zip(
            ("query", "key", "value"), ours.attn.qkv.weight.chunk(3), ours.attn.qkv.bias.chunk(3), strict=True
        ):
            getattr(attention, name).weight.data, getattr(attention, name).bias.data = weight, bias
        theirs.attention.output.dense.load_state_dict(ours.attn.proj.state_dict())
        theirs.intermediate.dense.load_state_dict(ours.mlp.fc1.state_dict())
        theirs.output.dense.load_state_dict(ours.mlp.fc2.state_dict())
        theirs.layernorm_before.load_state_dict(ours.norm1.state_dict())
        theirs.layernorm_after.load_state_dict(ours.norm2.state_dict())
    tokens = torch.randn(2, 11, 48)
    expected = vit.layernorm(vit.encoder(tokens).last_hidden_state)
    torch.testing.assert_close(encoder.student_encoder(tokens), expected, atol=1e-5, rtol=1e-5)


def test_time_step_is_its_patches_from_low_to_high() -> None:
    encoder = AudioEncoder(SMALL).eval()
    spectra = torch.randn(1, 2, BANDS, 64)
    vectors = encoder.encode(spectra)
    tokens = encoder.student_encoder(encoder.with_class_token(encoder.patches(spectra)))[0, 1:]
    assert vectors.shape == (1, 4, PATCH_ROWS * 48)
    for row in range(PATCH_ROWS):
        torch.testing.assert_close(vectors[0, 3, row * 48 : (row + 1) * 48], tokens[row * 4 + 3])


def test_ten_seconds_are_a_block_and_a_remainder() -> None:
    """998 frames: 62 columns and one of the last six frames, encoded as if each were alone."""
    encoder = AudioEncoder(AudioEncoderShape(width=16, layers=1, heads=2, feed_forward=32, front_end=RAW)).eval()
    spectra = encoder.front_end(noise(10))
    vectors = encoder.encode(spectra)
    assert vectors.shape == (1, 63, 80)
    torch.testing.assert_close(vectors[:, :62], encoder.encode(spectra[..., :992]))
    torch.testing.assert_close(vectors[:, 62:], encoder.encode(spectra[..., 992:]))


def test_positions_are_sines_of_column_and_row() -> None:
    table = sine_positions(8, rows=3, columns=4)
    assert table.shape == (13, 8)
    assert not table[0].any()
    column, row = 2, 1
    rates = np.array([1, 1 / 100])
    expected = [*np.sin(column * rates), *np.cos(column * rates), *np.sin(row * rates), *np.cos(row * rates)]
    np.testing.assert_allclose(table[1 + row * 4 + column], expected, atol=1e-6)


def test_tinymu_has_its_published_size() -> None:
    with torch.device("meta"):
        model = AudioLM(AudioLMShape())
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.audio_encoder, model.projector, model.lm)]
    assert [round(count / 1e6, 1) for count in counts] == [85.3, 9.0, 134.5]
    assert round(sum(counts) / 1e6) == 229


def test_answer_logits_are_those_of_the_whole_sequence() -> None:
    torch.manual_seed(0)
    lm = LanguageModelShape(vocabulary=20, width=32, layers=2, heads=4, key_value_heads=2, feed_forward=64)
    model = AudioLM(AudioLMShape(SMALL, 24, lm)).eval()
    features, ids = torch.randn(2, 3, SMALL.output_width), torch.randint(0, 20, (2, 5))
    answers = torch.tensor([[False, False, True, True, False], [False, True, False, False, False]])
    embedded = torch.cat([model.projector(features), model.lm.get_input_embeddings()(torch.zeros(2, 1, dtype=int))], 1)
    embedded = torch.cat([embedded, model.lm.get_input_embeddings()(ids)], 1)
    logits = model.lm(inputs_embeds=embedded).logits
    expected = torch.stack([logits[0, 3 + 2], logits[0, 3 + 3], logits[1, 3 + 1]])
    torch.testing.assert_close(model(features, ids, answers), expected, atol=1e-5, rtol=1e-5)
