"""Adapters of a language model: they begin at nothing, train alone, and merge into the weights."""

from __future__ import annotations

import torch

from tinymusician.models.audio_encoder import AudioEncoderShape
from tinymusician.models.audio_lm import AudioLM, AudioLMShape, LanguageModelShape
from tinymusician.understand.answer_task import AnswerModule
from tinymusician.understand.lora import AdapterConfig, add_adapters, merge_adapters

SETTINGS = AdapterConfig(rank=2, alpha=8)


def model() -> AudioLM:
    torch.manual_seed(0)
    encoder = AudioEncoderShape(width=8, layers=1, heads=2, feed_forward=16, block_columns=4)
    lm = LanguageModelShape(vocabulary=40, width=32, layers=2, heads=4, key_value_heads=2, feed_forward=64)
    return AudioLM(AudioLMShape(encoder, 32, lm)).eval()


def logits(model: AudioLM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    audio, ids = torch.randn(2, 3, 40, generator=generator), torch.tensor([[3, 4, 7], [5, 6, 0]])
    with torch.no_grad():
        output: torch.Tensor = model(audio, ids, torch.ones_like(ids, dtype=torch.bool))
    return output


def test_adapters_change_nothing_before_training() -> None:
    adapted = model()
    add_adapters(adapted, SETTINGS)
    torch.testing.assert_close(logits(adapted), logits(model()))


def test_projector_and_adapters_train_alone() -> None:
    adapted = model()
    add_adapters(adapted, SETTINGS)
    trained = {name: value for name, value in AnswerModule(adapted).named_parameters() if value.requires_grad}
    shapes = sorted(tuple(value.shape) for name, value in trained.items() if name.startswith("lm."))
    queries, values = [(2, 32), (32, 2)], [(2, 32), (16, 2)]
    assert shapes == sorted(2 * (queries + values))  # two layers
    assert {name for name in trained if not name.startswith("lm.")} == {
        f"projector.linear{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    }


def test_merged_weights_have_the_products() -> None:
    """Against W + alpha / rank * B A in float64, and in the model's outputs."""
    adapted, plain = model(), model()
    add_adapters(adapted, SETTINGS)
    module = AnswerModule(adapted)
    for name, value in module.named_parameters():
        if name.startswith("lm."):
            torch.nn.init.normal_(value, std=0.2)
    factors = [value.double() for name, value in module.named_parameters() if name.startswith("lm.")]
    expected = logits(adapted)
    merge_adapters(adapted)
    torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-5)
    assert list(adapted.state_dict()) == list(plain.state_dict())
    first = plain.lm.state_dict()["model.layers.0.self_attn.q_proj.weight"].double()
    merged = adapted.lm.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(merged.double(), first + 8 / 2 * factors[1] @ factors[0], atol=1e-5, rtol=1e-5)
    assert not torch.equal(expected, logits(plain))
