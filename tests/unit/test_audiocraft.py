"""Conversion of a release in audiocraft's names, made from a tiny model: the same model, or what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.tiny import write_tiny_musicgen
from tinymusician.errors import ModelError
from tinymusician.models.audiocraft import CODEC, LANGUAGE_MODEL, convert
from tinymusician.models.musicgen import load_musicgen

PROJECTION = "condition_provider.conditioners.description.output_proj."
NAMES = (
    ("model.decoder.layer_norm.", "out_norm."),
    ("model.decoder.embed_tokens.", "emb."),
    ("model.decoder.", "transformer."),
    ("lm_heads.", "linears."),
    ("self_attn_layer_norm.", "norm1."),
    ("encoder_attn_layer_norm.", "norm_cross."),
    ("final_layer_norm.", "norm2."),
    ("encoder_attn.", "cross_attention."),
    ("fc1.", "linear1."),
    ("fc2.", "linear2."),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model whose text states are narrower than its decoder."""
    return write_tiny_musicgen(tmp_path / "model", text_width=16)


def audiocraft_weights(model: Path) -> dict[str, Tensor]:
    """The language model under audiocraft's names, queries, keys and values in one tensor."""
    musicgen, weights = load_musicgen(str(model)), dict[str, Tensor]()
    for name, value in musicgen.decoder.state_dict().items():
        for old, new in NAMES:
            name = name.replace(old, new)
        weights[name] = value
    weights = {name: value for name, value in weights.items() if "embed_positions" not in name}
    for name in [name for name in weights if name.endswith("q_proj.weight")]:
        parts = [weights.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        weights[name.replace("q_proj.weight", "in_proj_weight")] = torch.cat(parts)
    return weights | {f"{PROJECTION}{key}": value for key, value in musicgen.enc_to_dec_proj.state_dict().items()}


def write_release(
    model: Path, folder: Path, change: Callable[[dict[str, Tensor]], object] = lambda weights: None
) -> Path:
    """A release whose codec and text encoder lie beside it."""
    musicgen, weights = load_musicgen(str(model)), audiocraft_weights(model)
    change(weights)
    folder.mkdir()
    musicgen.audio_encoder.save_pretrained(folder / "codec")
    musicgen.text_encoder.save_pretrained(folder / "t5-tiny")
    for file in model.glob("tokenizer*"):
        (folder / "t5-tiny" / file.name).write_bytes(file.read_bytes())
    decoder = musicgen.config.decoder
    settings = {
        "transformer_lm": {
            "dim": decoder.hidden_size,
            "card": decoder.vocab_size,
            "num_layers": decoder.num_hidden_layers,
            "num_heads": decoder.num_attention_heads,
            "hidden_scale": decoder.ffn_dim / decoder.hidden_size,
            "n_q": decoder.num_codebooks,
        },
        "codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 1, 2, 3]}},
        "conditioners": {"args": {}, "description": {"t5": {"name": "t5-tiny"}}},
    }
    torch.save({"best_state": weights, "xp.cfg": yaml.safe_dump(settings)}, folder / LANGUAGE_MODEL)
    torch.save({"pretrained": "tiny/codec"}, folder / CODEC)
    return folder


def test_the_converted_model_is_the_same(model: Path, tmp_path: Path) -> None:
    convert(write_release(model, tmp_path / "release"), tmp_path / "converted")
    before, after = (load_musicgen(str(folder)).state_dict() for folder in (model, tmp_path / "converted"))
    shared = {name for name in before if "embed_positions" not in name}
    assert shared == {name for name in after if "embed_positions" not in name}
    assert all(torch.equal(before[name], after[name]) for name in shared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: [weights.pop(f"{PROJECTION}{key}") for key in ("weight", "bias")],
            "2 of 2 tensors are missing",
        ),
        (lambda weights: weights.pop(f"{PROJECTION}bias"), "1 of 2 tensors are missing, such as bias"),
        (lambda weights: weights.update({f"{PROJECTION}bias": torch.zeros(5)}), "bias: [5]; [32] is needed"),
        (lambda weights: weights.update({"linears.0.weight": torch.zeros(3, 32)}), "lm_heads.0.weight: [3, 32]"),
        (lambda weights: weights["linears.0.weight"].fill_(torch.nan), "lm_heads.0.weight are not finite"),
        (lambda weights: weights.update({"transformer.x": torch.zeros(1)}), "1 tensors are not those of this model"),
    ],
)
def test_another_tensor_is_named(
    change: Callable[[dict[str, Tensor]], object], message: str, model: Path, tmp_path: Path
) -> None:
    release = write_release(model, tmp_path / "release", change)
    with pytest.raises(ModelError, match=re.escape(message)):
        convert(release, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()
