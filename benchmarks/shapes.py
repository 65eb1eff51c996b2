"""Models of MusicGen's shapes with random weights, for measurements of speed and memory.

    python benchmarks/shapes.py {small,medium,large,tiny} FOLDER [--dtype float16]

writes a checkpoint in the hub's layout with a small tokenizer, for any command that takes a model's folder:

    tmctl submit distill tinymusician --set teacher.model=FOLDER --set training.steps=10 …
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from tinymusician.models.protocols import Musicgen

Size = Literal["small", "medium", "large", "tiny"]
DECODERS: dict[Size, tuple[int, int, int, int]] = {
    "small": (24, 1024, 4096, 16),
    "medium": (48, 1536, 6144, 24),
    "large": (48, 2048, 8192, 32),
    "tiny": (2, 64, 128, 4),
}
"""Layers, width, feed-forward width and heads of each."""

CAPTIONS = ["a slow fiddle reel", "a fast flute jig", "a sad waltz for piano", "a happy march"]
FRAMES = 1500


# Long: the configurations of three models, value by value.
def musicgen(size: Size = "small", seed: int = 0, max_layers: int = 48) -> Musicgen:
    """facebook/musicgen-SIZE as transformers builds it: T5-base, the size's decoder, EnCodec at 32 kHz.

    Text encoder and decoder have `max_layers` layers at most: every layer has the same shape.
    LM heads are scaled, so that the argmax is unambiguous; codebooks are random, since transformers initializes them
    with zeros.
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
        num_layers=min(12, max_layers),
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
    layers, width, feed_forward, attention_heads = DECODERS[size]
    decoder = MusicgenDecoderConfig(
        vocab_size=2048,
        hidden_size=width,
        ffn_dim=feed_forward,
        num_hidden_layers=min(layers, max_layers),
        num_attention_heads=attention_heads,
        num_codebooks=4,
        max_position_embeddings=2048,
        pad_token_id=2048,
        bos_token_id=2048,
        audio_channels=1,
        tie_word_embeddings=False,
    )
    decoder.decoder_start_token_id = 2048
    parts = {"text_encoder": text, "audio_encoder": codec, "decoder": decoder}
    config = MusicgenConfig(**{name: part.to_dict() for name, part in parts.items()})
    model = MusicgenForConditionalGeneration(config)
    with torch.no_grad():
        for head in model.decoder.lm_heads:
            head.weight.mul_(20)
        for codes in model.audio_encoder.quantizer.layers:
            codes.codebook.embed.normal_()
    tokens = {"pad_token_id": 2048, "bos_token_id": 2048, "decoder_start_token_id": 2048}
    model.generation_config = GenerationConfig(**tokens, do_sample=True, guidance_scale=3.0, max_length=FRAMES)
    return model.eval()


def write_musicgen(folder: Path, size: Size = "small", dtype: Literal["float32", "float16"] = "float32") -> Path:
    """The model as a folder that `from_pretrained` reads, with a small tokenizer of its own."""
    import torch

    from tinymusician.house_band.model import train_tokenizer
    from tinymusician.models.saving import save_musicgen

    if not (folder / "tokenizer.json").exists():
        save_musicgen(folder, musicgen(size).to(getattr(torch, dtype)), train_tokenizer(CAPTIONS))
    return folder


def main() -> None:
    """Write one."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("size", choices=DECODERS)
    options.add_argument("folder", type=Path)
    options.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the file; float32")
    chosen = options.parse_args()
    write_musicgen(chosen.folder, chosen.size, chosen.dtype)
    print(f"{chosen.folder}: MusicGen-{chosen.size.capitalize()}'s shape, random weights")


if __name__ == "__main__":
    main()
