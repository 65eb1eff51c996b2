"""MusicGen-Small's exact shape with random weights: speed and memory do not depend on what the weights say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CAPTIONS = ["a slow fiddle reel", "a fast flute jig", "a sad waltz for piano", "a happy march"]
FRAMES = 1500


def musicgen_small(seed: int = 0) -> Any:
    """facebook/musicgen-small as transformers builds it: T5-base, 24 decoder layers of width 1024, EnCodec at 32 kHz.

    Heads are made larger than their start, so that the likeliest code is clear.
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

    torch.manual_seed(seed)
    text = T5Config(
        vocab_size=32128,
        d_model=768,
        d_kv=64,
        d_ff=3072,
        num_layers=12,
        num_heads=12,
        is_encoder_decoder=False,
        use_cache=False,
    )
    codec = EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32000,
        audio_channels=1,
        normalize=False,
        num_filters=64,
        num_residual_layers=1,
        upsampling_ratios=[8, 5, 4, 4],
        use_causal_conv=False,
        codebook_size=2048,
        codebook_dim=128,
        hidden_size=128,
        use_conv_shortcut=False,
    )
    decoder = MusicgenDecoderConfig(
        vocab_size=2048,
        hidden_size=1024,
        ffn_dim=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_codebooks=4,
        max_position_embeddings=2048,
        pad_token_id=2048,
        bos_token_id=2048,
        audio_channels=1,
        tie_word_embeddings=False,
    )
    decoder.decoder_start_token_id = 2048
    model = MusicgenForConditionalGeneration(MusicgenConfig.from_sub_models_config(text, codec, decoder))
    with torch.no_grad():
        for head in model.decoder.lm_heads:
            head.weight.mul_(20)
    tokens = {"pad_token_id": 2048, "bos_token_id": 2048, "decoder_start_token_id": 2048}
    model.generation_config = GenerationConfig(**tokens, do_sample=True, guidance_scale=3.0, max_length=FRAMES)
    return model.eval()


def write_musicgen_small(folder: Path) -> Path:
    """The model as a folder that `from_pretrained` reads, with a small tokenizer of its own."""
    from tinymusician.models.band import train_tokenizer
    from tinymusician.models.saving import save_musicgen

    if not (folder / "tokenizer.json").exists():
        save_musicgen(folder, musicgen_small(), train_tokenizer(CAPTIONS))
    return folder
