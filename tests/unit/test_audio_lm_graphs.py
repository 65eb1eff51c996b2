"""The ONNX graphs of a model that answers questions, in ONNX Runtime, against PyTorch."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape
from tinymusician.models.spectral_front_end import FrontEndConfig, Scale
from tinymusician.quantize.audio_lm import audio_encoder_graph, lm_graph

LM = LanguageModelShape(vocabulary=40, width=32, layers=2, heads=4, key_value_heads=2, feed_forward=48)
SHAPE = AudioLMShape(AudioEncoderShape(24, 2, 3, 48, 62, FrontEndConfig(Scale(-7, 4), Scale(-9, 3))), 20, LM)


@pytest.fixture(scope="module")
def model() -> AudioLM:
    torch.manual_seed(0)
    model = AudioLM(SHAPE).eval()
    for parameter in model.parameters():  # biases and gains of their own
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def session(graph: object) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph.SerializeToString())  # type: ignore[attr-defined]


def weights(model: AudioLM) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def no_past() -> dict[str, np.ndarray]:
    empty = np.zeros((1, 2, 0, 8), np.float32)
    return {f"past_{kind}.{layer}": empty for layer in range(2) for kind in ("key", "value")}


@pytest.mark.parametrize(("samples", "clips"), [(80_000, 2), (400, 1), (1_600, 1), (156_000, 1)])
@pytest.mark.parametrize("pitch", [True, False])
def test_audio_encoder(model: AudioLM, samples: int, clips: int, pitch: bool) -> None:
    if not pitch:
        torch.manual_seed(1)
        front_end = FrontEndConfig(Scale(-7, 4))
        model = AudioLM(AudioLMShape(AudioEncoderShape(24, 2, 3, 48, 62, front_end), 20, LM)).eval()
    waves = np.random.default_rng(0).normal(0, 0.1, (clips, samples)).astype(np.float32)
    with torch.no_grad():
        expected = model.projector(model.audio_encoder(torch.from_numpy(waves))).numpy()
    (embeddings,) = session(audio_encoder_graph(model.shape, weights(model))).run(None, {"audio": waves})
    assert embeddings.shape == expected.shape
    np.testing.assert_allclose(embeddings, expected, atol=1e-4)


def expected_logits(model: AudioLM, embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        text = model.lm.get_input_embeddings()(torch.from_numpy(ids))
        return np.asarray(model.lm(inputs_embeds=torch.cat([torch.from_numpy(embeddings), text], 1)).logits[:, -1])


def test_prefill_is_transformers_llama(model: AudioLM) -> None:
    rng = np.random.default_rng(0)
    embeddings, ids = rng.normal(size=(2, 5, 32)).astype(np.float32), rng.integers(0, 40, (2, 7))
    past = {name: np.repeat(value, 2, axis=0) for name, value in no_past().items()}
    logits = session(lm_graph(LM, weights(model))).run(["logits"], {"embeddings": embeddings, "ids": ids, **past})[0]
    np.testing.assert_allclose(logits, expected_logits(model, embeddings, ids), atol=1e-4)


def test_decoding_with_the_cache_is_prefill_of_everything(model: AudioLM) -> None:
    """Audio first, then the prompt, then token by token."""
    rng = np.random.default_rng(1)
    embeddings, ids = rng.normal(size=(1, 5, 32)).astype(np.float32), rng.integers(0, 40, (1, 6))
    lm = session(lm_graph(LM, weights(model)))
    names = [value.name for value in lm.get_outputs()]
    nothing, past = np.zeros((1, 0, 32), np.float32), no_past()
    for inputs in ((embeddings, ids[:, :1]), (nothing, ids[:, 1:4]), (nothing, ids[:, 4:5]), (nothing, ids[:, 5:])):
        outputs = dict(zip(names, lm.run(None, {"embeddings": inputs[0], "ids": inputs[1], **past}), strict=True))
        past = {name.replace("present", "past"): outputs[name] for name in names if name != "logits"}
    np.testing.assert_allclose(outputs["logits"], expected_logits(model, embeddings, ids), atol=1e-4)
    assert past["past_key.1"].shape == (1, 2, 11, 8)
