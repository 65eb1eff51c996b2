"""Embedding models against transformers' feature extraction and against plain sums; audio formats."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoTokenizer,
    ClapFeatureExtractor,
    ClapModel,
    EncodecModel,
)
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from jobs.evaluate.open import open_tagger
from tinymusician.errors import ModelError
from tinymusician.evaluate.clap_model import ClapEmbedder
from tinymusician.evaluate.codec_model import EncodecEmbedder
from tinymusician.evaluate.embedding import windows
from tinymusician.evaluate.taggers import TransformersTagger
from tinymusician.evaluate.vggish import VggishEmbedder, log_mel, network
from tinymusician.models.musicgen import load_musicgen, model_location

RATE = 16_000


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


class TestWindows:
    def test_windows_are_consecutive_and_end_with_the_clip(self) -> None:
        result = windows(np.arange(25, dtype=np.float32), 10)
        assert result[:, 0].tolist() == [0, 10, 15]
        assert result[-1, -1] == 24
        assert windows(np.arange(20, dtype=np.float32), 10)[:, 0].tolist() == [0, 10]

    def test_a_short_clip_is_repeated_and_padded_as_clap_does(self) -> None:
        assert windows(np.arange(1, 4, dtype=np.float32), 8).tolist() == [[1, 2, 3, 1, 2, 3, 0, 0]]
        assert windows(np.zeros(0, np.float32), 4).tolist() == [[0, 0, 0, 0]]


class TestClap:
    def test_it_agrees_with_transformers_processor_and_model(self) -> None:
        folder = model_location("band-clap")
        model = ClapModel.from_pretrained(folder).float().eval()
        extractor, tokenizer = ClapFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        waves = [noise(5, 1), noise(2, 2)]
        prompts = ["a fast fiddle reel", "a slow waltz for piano in D major"]
        inputs = dict(extractor(waves, sampling_rate=RATE, return_tensors="pt"))
        inputs |= dict(tokenizer(prompts, padding=True, return_tensors="pt"))
        with torch.no_grad():
            audio = model.get_audio_features(input_features=inputs["input_features"], is_longer=inputs["is_longer"])
            text = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        ours = ClapEmbedder()
        unit = torch.nn.functional.normalize
        np.testing.assert_allclose(np.concatenate(ours(waves)), unit(audio, dim=-1).numpy(), atol=2e-4)
        np.testing.assert_allclose(ours.text(prompts), unit(text, dim=-1).numpy(), atol=1e-5)

    def test_long_clip_is_embedded_in_fixed_windows(self) -> None:
        ours, wave = ClapEmbedder(), noise(12)
        (result,) = ours([wave])
        assert result.shape == (3, 128)
        cut = [wave[: 5 * RATE], wave[5 * RATE : 10 * RATE], wave[-5 * RATE :]]
        np.testing.assert_allclose(result, np.concatenate(ours(cut)), atol=1e-5)
        np.testing.assert_array_equal(result, ours([wave])[0])

    def test_non_clap_model_is_rejected(self, tiny_musicgen: Path) -> None:
        with pytest.raises(ModelError, match="cannot be loaded"):
            ClapEmbedder(str(tiny_musicgen))


class TestEncodec:
    def test_states_equal_the_encoders(self, tiny_musicgen: Path, tmp_path: Path) -> None:
        codec = load_musicgen(str(tiny_musicgen)).audio_encoder
        codec.save_pretrained(tmp_path / "codec")
        wave = noise(1, 3, 800)
        with torch.no_grad():
            expected = EncodecModel.from_pretrained(tmp_path / "codec").encoder(torch.from_numpy(wave)[None, None])[0].T
        for name in (tiny_musicgen, tmp_path / "codec"):
            embedder = EncodecEmbedder(str(name))
            np.testing.assert_allclose(embedder([wave])[0], expected.numpy(), atol=1e-6)
        assert expected.shape == (50, 8)

    def test_non_codec_is_rejected(self) -> None:
        with pytest.raises(ModelError):
            EncodecEmbedder("band-clap")


class TestVggish:
    def test_front_end_equals_the_papers(self) -> None:
        """Transformers' spectrogram as the reference: frames of 25 ms every 10 ms, magnitude, HTK mel, log offset."""
        wave = noise(0.96 + 0.015)
        filters = mel_filter_bank(257, 64, 125, 7500, RATE, norm=None, mel_scale="htk")
        magnitude = spectrogram(
            wave,
            window_function(400, "hann"),
            400,
            160,
            fft_length=512,
            power=1.0,
            center=False,
            mel_filters=filters,
            mel_floor=0.0,
        )
        result = log_mel(torch.from_numpy(wave[None, : 96 * 160]))
        assert result.shape == (1, 96, 64)
        np.testing.assert_allclose(result[0, :94].numpy(), np.log(magnitude.T[:94] + 0.01), atol=1e-4)

    def test_vggish_network_is_channels_last(self) -> None:
        torch.manual_seed(0)
        net = network().double().eval()
        example = torch.rand(1, 1, 96, 64, dtype=torch.double)
        with torch.no_grad():
            result = net(example)[0].numpy()
            states = example[0].numpy()
            weights = {name: value.numpy() for name, value in net.state_dict().items()}
        for layer, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
            kernel, bias = weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"]
            if layer > 3:
                break  # SciPy takes too long for the wide ones; the two narrow ones say how they are applied
            states = np.stack(
                [
                    sum(correlate2d(one, k, mode="same") for one, k in zip(states, kernels, strict=True)) + b
                    for kernels, b in zip(kernel, bias, strict=True)
                ]
            )
            states = np.maximum(states, 0)
            if pooled:
                states = states.reshape(len(states), states.shape[1] // 2, 2, -1, 2).max((2, 4))
        with torch.no_grad():
            rest = net.features[6:](torch.from_numpy(states)[None])[0].numpy()
        flat = rest.transpose(1, 2, 0).ravel()
        for layer in (0, 2, 4):
            flat = weights[f"embeddings.{layer}.weight"] @ flat + weights[f"embeddings.{layer}.bias"]
            flat = np.maximum(flat, 0) if layer < 4 else flat
        np.testing.assert_allclose(result, flat, atol=1e-10)

    def test_checkpoint_is_loaded_and_other_files_are_rejected(self, tmp_path: Path) -> None:
        torch.save({**network().state_dict(), "pproc.pca": torch.zeros(1)}, tmp_path / "v.pth")
        embedder = VggishEmbedder(str(tmp_path / "v.pth"))
        (result,) = embedder([noise(2)])
        assert result.shape == (3, 128)
        (tmp_path / "other.pth").write_bytes(b"nothing")
        with pytest.raises(ModelError, match="download vggish"):
            VggishEmbedder(str(tmp_path / "other.pth"))


class TestTaggers:
    def test_any_classifier_of_transformers_layout(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = ASTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_length=64,
            num_labels=5,
        )
        model = ASTForAudioClassification(config).eval()
        model.save_pretrained(tmp_path)
        features = ASTFeatureExtractor(max_length=64)
        features.save_pretrained(tmp_path)
        waves = [noise(1, 1), noise(1, 2)]
        tagger = open_tagger(str(tmp_path))
        assert isinstance(tagger, TransformersTagger)
        with torch.no_grad():
            expected = model(**features(waves, sampling_rate=RATE, return_tensors="pt")).logits.softmax(-1)
        np.testing.assert_allclose(tagger(waves)["class"], expected.numpy(), atol=1e-5)

    def test_non_classifier_is_rejected(self, tmp_path: Path) -> None:
        shutil.copy(model_location("band-clap") / "config.json", tmp_path / "config.json")
        with pytest.raises(ModelError, match="cannot be loaded"):
            open_tagger(str(tmp_path))
