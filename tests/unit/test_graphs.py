"""The exported graphs against transformers' own modules, float32 on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from tinymusician.errors import ModelError
from tinymusician.models.conditional_decoder import ConditionedDecoder
from tinymusician.models.musicgen import load_musicgen
from tinymusician.quantize.codec import codec_decoder_graph, codec_encoder_graph, codec_weights, frames_around
from tinymusician.quantize.export import decoder_weights
from tinymusician.quantize.fused import cross_graph, decoder_graph
from tinymusician.quantize.graph import save
from tinymusician.quantize.text import MAX_TEXT_TOKENS, buckets, text_graph
from tinymusician.runtime.codec import CodecDecoder, CodecSpec, StreamingDecoder
from tinymusician.runtime.decoder import CrossAttentionKV, Decoder


def session(model: Any, folder: Path) -> Any:
    save(model, folder / "graph.onnx")
    return onnxruntime.InferenceSession(str(folder / "graph.onnx"), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=["band-large", "tiny"])
def model(request: pytest.FixtureRequest, tiny_musicgen: Path) -> Any:
    """One model with text states of the decoder's width, one where they are projected."""
    return load_musicgen(str(tiny_musicgen) if request.param == "tiny" else request.param)


def attended(model: Any, folder: Path, states: torch.Tensor, mask: torch.Tensor) -> list[CrossAttentionKV]:
    graph = session(cross_graph(model.config, decoder_weights(model)), folder)
    names = [value.name for value in graph.get_outputs()]
    feeds = {"text_states": states.numpy(), "text_mask": mask.numpy().astype(np.int32)}
    result = dict(zip(names, graph.run(None, feeds), strict=True))
    order = [f"cross_{kind}.{layer}" for layer in range(len(names) // 2) for kind in ("key", "value")]
    return [
        CrossAttentionKV([result[name][row] for name in order], feeds["text_mask"][row]) for row in range(len(mask))
    ]


def test_decoder_rows_at_different_positions(model: Any, tmp_path: Path) -> None:
    """Rows join late, leave early and change places; each one's logits are those of the whole sequence at once."""
    config, steps, rows = model.config.decoder, 30, 4
    torch.manual_seed(0)
    states = torch.randn(rows, 6, model.config.text_encoder.d_model)
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4, [0] * 6, [1] * 5 + [0]])
    inputs = torch.randint(0, config.vocab_size, (rows, config.num_codebooks, steps))
    inputs[:, :, 0] = config.vocab_size
    with torch.no_grad():
        expected = ConditionedDecoder(model)(inputs, states * mask[..., None], mask).numpy()
    texts = attended(model, tmp_path, states, mask)
    decoder = Decoder(session(decoder_graph(model.config, decoder_weights(model)), tmp_path))
    joins, leaves = [0, 0, 5, 150], [30, 12, 30, 30]
    present: dict[int, Any] = {}
    worst = 0.0
    for clock in range(181):
        for number in list(present):
            if present[number].position == leaves[number]:
                decoder.remove(present.pop(number))
        for number in range(rows):
            if joins[number] == clock:
                present[number] = decoder.add([texts[number]], steps)[0]
        assert decoder.rows == len(present)
        if not present:
            continue
        order = sorted(present, key=lambda number: present[number].index)
        positions = [present[number].position for number in order]
        logits = decoder.step(inputs.numpy()[order, :, positions])
        for index, (number, place) in enumerate(zip(order, positions, strict=True)):
            worst = max(worst, float(np.abs(logits[index] - expected[number, :, place]).max()))
    assert worst < 1e-4 * float(np.abs(expected).max())


def test_decoder_rejects_unknown_configurations(tiny_musicgen: Path) -> None:
    model = load_musicgen(str(tiny_musicgen))
    model.config.decoder.activation_function = "relu"
    with pytest.raises(ModelError, match="activation 'relu'"):
        decoder_graph(model.config, decoder_weights(model))
    model.config.decoder.activation_function = "gelu"
    model.config.decoder.num_attention_heads = 16
    with pytest.raises(ModelError, match="heads of width 2; a multiple of 8 is needed"):
        decoder_graph(model.config, decoder_weights(model))


@pytest.mark.parametrize("forward", ["relu", "gated-gelu"])
def test_text_encoder(forward: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=64, d_kv=16, d_ff=100, num_layers=3, num_heads=5, feed_forward_proj=forward
    )
    encoder = T5EncoderModel(config).eval()
    ids, mask = torch.randint(3, 50, (3, 200)), torch.ones(3, 200, dtype=torch.long)
    mask[1, 9:] = 0
    mask[2, 1:] = 0
    with torch.no_grad():
        expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    weights = {name: value.numpy() for name, value in encoder.state_dict().items()}
    graph = session(text_graph(config, weights), tmp_path)
    (actual,) = graph.run(None, {"ids": ids.numpy(), "mask": mask.numpy().astype(np.int32)})
    seen = mask.numpy().astype(bool)
    np.testing.assert_allclose(actual[seen], expected[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "largest"), [(32, 128), (16, 64)])
def test_relative_position_buckets_equal_transformers(count: int, largest: int) -> None:
    distance = torch.arange(1 - MAX_TEXT_TOKENS, MAX_TEXT_TOKENS)
    expected = T5Attention._relative_position_bucket(distance, True, count, largest)
    assert np.array_equal(buckets(count, largest), expected.numpy())


def test_text_encoder_of_another_kind() -> None:
    with pytest.raises(ModelError, match="feed_forward_proj 'gated-silu'"):
        text_graph(T5Config(feed_forward_proj="gated-silu"), {})


def lively_codec(**changes: Any) -> Any:
    """MusicGen's codec in small: 2 LSTM layers, a residual block a scale, weights that make every path count."""
    facts = {"sampling_rate": 1600, "num_filters": 4, "upsampling_ratios": [4, 3, 2], "num_lstm_layers": 2}
    facts |= {"hidden_size": 12, "codebook_dim": 12, "codebook_size": 32, "num_residual_layers": 1}
    facts |= {"use_causal_conv": False, "normalize": False, "audio_channels": 1, "use_conv_shortcut": False}
    torch.manual_seed(0)
    config = EncodecConfig(**{**facts, **changes})
    config.target_bandwidths = [4 * 5 * config.frame_rate / 1000]
    codec = EncodecModel(config).eval()
    with torch.no_grad():
        for module in codec.modules():
            if hasattr(module, "parametrizations"):
                module.weight = torch.randn_like(module.weight) * 1.5 / module.weight[0].numel() ** 0.5
        for layer in codec.quantizer.layers:
            layer.codebook.embed.normal_()
    return codec


CODECS = {
    "band": lambda: load_musicgen("band-large").audio_encoder,
    "lively": lively_codec,
    "shortcut": lambda: lively_codec(use_conv_shortcut=True, num_residual_layers=2, residual_kernel_size=5),
}


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Any:
    return CODECS[request.param]()


def decoder_of(codec: Any, folder: Path) -> CodecDecoder:
    config = codec.config
    shape = CodecSpec(config.sampling_rate, int(np.prod(config.upsampling_ratios)), *frames_around(config))
    return CodecDecoder(session(codec_decoder_graph(config, codec_weights(codec)), folder), shape)


def played(codec: Any, frames: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    codes = torch.randint(0, codec.config.codebook_size, (codec.config.num_quantizers, frames))
    with torch.no_grad():
        return codes.numpy(), codec.decode(codes[None, None], [None]).audio_values[0, 0].numpy()


def test_codec_decoder(codec: Any, tmp_path: Path) -> None:
    decoder = decoder_of(codec, tmp_path)
    for frames in (decoder.fewest, 5, 60):
        codes, expected = played(codec, frames)
        np.testing.assert_allclose(decoder(codes), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("arrivals", [[60], [1, 2, 9, 10, 31, 60], list(range(1, 61)), [59, 60], [30, 60, 60]])
def test_stream_chunks_concatenate_to_the_audio(codec: Any, tmp_path: Path, arrivals: list[int]) -> None:
    """Whatever the chunks: joined they are the wave decoded at once."""
    decoder = decoder_of(codec, tmp_path)
    codes, expected = played(codec, 60)
    stream = StreamingDecoder(decoder)
    pieces = [
        stream.feed(codes[:, :arrived], last=number == len(arrivals) - 1) for number, arrived in enumerate(arrivals)
    ]
    np.testing.assert_allclose(np.concatenate(pieces), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_codec_encoder(codec: Any, tmp_path: Path) -> None:
    _, wave = played(codec, 40)
    with torch.no_grad():
        expected = codec.encode(torch.from_numpy(wave)[None, None]).audio_codes[0].numpy()
    graph = session(codec_encoder_graph(codec.config, codec_weights(codec)), tmp_path)
    (actual,) = graph.run(None, {"audio": wave[None]})
    assert np.array_equal(actual, expected)


def test_codec_of_another_kind() -> None:
    with pytest.raises(ModelError, match="use_causal_conv = True; only False can be exported"):
        codec_weights(lively_codec(use_causal_conv=True))
