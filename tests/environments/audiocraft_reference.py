"""Runs in the environment of audiocraft: a tiny release with random weights, and its outputs.

Usage: python audiocraft_reference.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from omegaconf import OmegaConf
from transformers import T5Config, T5EncoderModel, T5Tokenizer, T5TokenizerFast

WORDS = ["calm piano music with soft strings", "loud rock guitar and drums", "upbeat jazz trio"]
PROMPTS = ["calm piano", "loud jazz guitar"]
RATE, NUM_CODEBOOKS, CARD = 16_000, 4, 64

LANGUAGE_MODEL = """
device: cpu
dtype: float32
lm_model: transformer_lm
dataset: {{segment_duration: 30}}
codebooks_pattern: {{modeling: delay, delay: {{delays: [0,1,2,3], flatten_first: 0, empty_initial: 0}}}}
attribute_dropout: {{}}
classifier_free_guidance: {{training_dropout: 0.3, inference_coef: 3.0}}
fuser: {{cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1, sum: [], prepend: [], cross: [description],
  input_interpolate: []}}
conditioners: {{description: {{model: t5, t5: {{name: {text}, finetune: false, word_dropout: 0.0,
  normalize_text: false}}}}}}
transformer_lm: {{dim: 64, num_heads: 4, num_layers: 2, hidden_scale: 4, n_q: 4, card: 64, dropout: 0., emb_lr: null,
  activation: gelu, norm_first: true, bias_ff: false, bias_attn: false, bias_proj: false, past_context: null,
  causal: true, custom: false, memory_efficient: true, attention_as_float32: false, layer_scale: null,
  positional_embedding: sin, xpos: false, checkpointing: none, weight_init: gaussian, depthwise_init: current,
  zero_bias_init: true, norm: layer_norm, cross_attention: false, qk_layer_norm: false, qk_layer_norm_cross: false,
  attention_dropout: null, kv_repeat: 1, two_step_cfg: false}}
"""
CODEC = """
device: cpu
compression_model: encodec
encodec: {autoencoder: seanet, quantizer: rvq, sample_rate: 16000, channels: 1, causal: false, renormalize: false}
seanet: {dimension: 16, channels: 1, causal: false, n_filters: 4, n_residual_layers: 1, ratios: [8,5,4,4],
  activation: ELU, activation_params: {alpha: 1.}, norm: weight_norm, norm_params: {}, kernel_size: 7,
  residual_kernel_size: 3, last_kernel_size: 7, dilation_base: 2, pad_mode: constant, true_skip: true, compress: 2,
  lstm: 2, disable_norm_outer_blocks: 0,
  decoder: {trim_right_ratio: 1.0, final_activation: null, final_activation_params: null}, encoder: {}}
rvq: {n_q: 4, q_dropout: false, bins: 64, decay: 0.99, kmeans_init: false, kmeans_iters: 50,
  threshold_ema_dead_code: 2, orthogonal_reg_weight: 0.0, orthogonal_reg_active_codes_only: false}
"""


def write_text_encoder(folder: Path) -> None:
    """A T5 of two layers with a tokenizer of thirty pieces."""
    folder.mkdir(parents=True)
    (folder / "words.txt").write_text("\n".join(WORDS * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "words.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=30,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    T5Tokenizer(str(folder / "spiece.model"), extra_ids=0).save_pretrained(folder)
    fast = T5TokenizerFast.from_pretrained(folder, from_slow=True).backend_tokenizer
    fast.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "T5Tokenizer"}
    settings.pop("add_prefix_space", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=64, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4)).save_pretrained(
        folder
    )


def answers(model: Any, prompt: str, codes: Any) -> torch.Tensor:
    """Logits under one prompt alone: in a batch audiocraft also attends to the padding of shorter prompts."""
    from audiocraft.modules.conditioners import ConditioningAttributes

    attributes = model.lm.condition_provider.tokenize([ConditioningAttributes(text={"description": prompt})])
    states = model.lm.condition_provider(attributes)
    return model.lm(torch.from_numpy(codes), conditions=[], condition_tensors=states)


def main() -> None:
    """Write the release and `reference.npz`."""
    folder = Path(sys.argv[1])
    text = folder / "tiny-t5"
    write_text_encoder(text)
    from audiocraft.models import MusicGen, builders
    from audiocraft.modules.conditioners import T5Conditioner

    T5Conditioner.MODELS.append(str(text))
    T5Conditioner.MODELS_DIMS[str(text)] = 48
    settings, coding = OmegaConf.create(LANGUAGE_MODEL.format(text=text)), OmegaConf.create(CODEC)
    torch.manual_seed(0)
    parts = {
        "state_dict.bin": builders.get_lm_model(settings),
        "compression_state_dict.bin": builders.get_compression_model(coding),
    }
    for (name, part), description in zip(parts.items(), (settings, coding), strict=True):
        content = {
            "best_state": part.state_dict(),
            "xp.cfg": OmegaConf.to_yaml(description),
            "version": "1.3.0",
            "exported": True,
        }
        torch.save(content, folder / name)
    model = MusicGen.get_pretrained(str(folder), device="cpu")
    random = np.random.default_rng(0)
    codes = random.integers(0, CARD, (len(PROMPTS), NUM_CODEBOOKS, 12))
    wave = random.normal(0, 0.3, (1, 1, RATE)).astype(np.float32)
    with torch.no_grad():
        logits = torch.cat([answers(model, prompt, codes[n : n + 1]) for n, prompt in enumerate(PROMPTS)])
        encoded, _ = model.compression_model.encode(torch.from_numpy(wave))
        played = model.compression_model.decode(encoded)
    np.savez(
        folder / "reference.npz",
        codes=codes,
        logits=logits.numpy(),
        wave=wave,
        encoded=encoded.numpy(),
        played=played.numpy(),
    )


if __name__ == "__main__":
    main()
