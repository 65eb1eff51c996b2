"""A small MusicGen with random weights, in MusicGen's own layout, for tests that need a model but no music."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CAPTIONS = ["a slow fiddle reel", "a fast flute jig", "a sad waltz for piano", "a happy march"]


def write_tiny_musicgen(folder: Path, seed: int = 0, layers: int = 4, text_width: int = 16) -> Path:
    """Write model, tokenizer and feature extractor into `folder`."""
    import torch

    from tinymusician.house_band.model import train_tokenizer
    from tinymusician.models.saving import save_musicgen

    torch.manual_seed(seed)
    tokenizer = train_tokenizer(CAPTIONS)
    save_musicgen(folder, tiny_musicgen(len(tokenizer), layers, text_width), tokenizer)
    return folder


def write_tiny_recipe(folder: Path) -> Path:
    """Write a tiny teacher and the recipe of its student into `folder`; returns the recipe's path."""
    write_tiny_musicgen(folder / "teacher")
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
name: tiny
description: a tiny pair with random weights
teacher: {{model: {folder / "teacher"}}}
student: {{kind: prune_layers, layers: [0, 3]}}
sequences: {{prompts: band, seconds: 0.4, samples_per_prompt: 1, prompts_per_shard: 40}}
training:
  {{steps: 12, global_batch: 8, batch_size: 4, learning_rate: 0.003, warmup_steps: 2, validate_every: 6,
  checkpoint_every: 6, log_every: 1}}
"""
    )
    return path


def tiny_musicgen(vocabulary: int, layers: int, text_width: int) -> Any:
    """The model: 50 frames a second at 800 Hz, width 32, text states of another width, so that they are projected.

    Its codes sound apart: transformers begins with empty codebooks.
    """
    import torch
    from transformers import (
        EncodecConfig,
        GenerationConfig,
        MusicgenConfig,
        MusicgenDecoderConfig,
        MusicgenForConditionalGeneration,
        T5Config,
    )

    codec = EncodecConfig(
        target_bandwidths=[0.8],
        sampling_rate=800,
        audio_channels=1,
        normalize=False,
        hidden_size=8,
        num_filters=4,
        num_residual_layers=1,
        upsampling_ratios=[4, 4],
        num_lstm_layers=1,
        use_causal_conv=False,
        codebook_size=16,
        codebook_dim=8,
        use_conv_shortcut=False,
    )
    text = T5Config(
        vocab_size=vocabulary,
        d_model=text_width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=16,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_codebooks=4,
        pad_token_id=16,
        bos_token_id=16,
        max_position_embeddings=256,
        dropout=0.0,
        audio_channels=1,
        tie_word_embeddings=False,
    )
    decoder.decoder_start_token_id = 16
    model = MusicgenForConditionalGeneration(MusicgenConfig.from_sub_models_config(text, codec, decoder))
    with torch.no_grad():
        for head in model.decoder.lm_heads:
            head.weight.mul_(20)
        for codes in model.audio_encoder.quantizer.layers:
            codes.codebook.embed.normal_()
        for layer in model.decoder.model.decoder.layers:
            for attention in (layer.self_attn, layer.encoder_attn):
                attention.out_proj.weight.mul_(10)
    model.generation_config = GenerationConfig(
        pad_token_id=16, bos_token_id=16, decoder_start_token_id=16, do_sample=True, guidance_scale=3.0, max_length=256
    )
    return model.eval()


def write_tone(path: Path, seconds: float, rate: int = 800) -> None:
    """A WAV file at the tiny model's sampling rate, or at another."""
    import wave

    import numpy as np

    tone = (8000 * np.sin(np.arange(int(seconds * rate)) * 0.3)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(tone.tobytes())


CLIPS, DAMAGED = 24, "07.wav"


def write_clips(folder: Path) -> None:
    """Noises of two rates with captions, one of them in stereo, one no sound at all."""
    import numpy as np
    import soundfile

    random = np.random.default_rng(0)
    for number in range(CLIPS):
        rate = 16_000 if number % 2 else 8_000
        shape = (rate // 2, 2) if number == 3 else (rate // 2,)
        soundfile.write(folder / f"{number:02}.wav", random.normal(0, 0.1, shape), rate)
        (folder / f"{number:02}.txt").write_text(f"a {'slow' if number % 3 else 'fast'} fiddle reel number {number}")
    (folder / DAMAGED).write_bytes(b"RIFF and nothing else")
