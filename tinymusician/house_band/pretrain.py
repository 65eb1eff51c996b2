"""The steps of making the house band: corpus, codec, tokens, language models, CLAP, packaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinymusician.data.splits import Split
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.house_band.corpus import SEED, RenderedSplit, load_split
from tinymusician.house_band.model import build_musicgen
from tinymusician.house_band.train_clap import TrainableClap, clap_features, new_clap
from tinymusician.house_band.tunes import TUNES, load_tunes
from tinymusician.models.protocols import Codec, Tokenizer
from tinymusician.models.saving import save_musicgen


class Corpus(NamedTuple):
    """The three rendered splits."""

    train: RenderedSplit
    validation: RenderedSplit
    test: RenderedSplit


def load_corpus(folder: Path, train_clips: int, held_out_clips: int) -> Corpus:
    """Read the rendered corpus from `folder`; missing scores are parsed, and missing clips rendered."""
    tunes = load_tunes(folder / TUNES)

    def split(name: Split, count: int) -> RenderedSplit:
        return load_split(folder, tunes, name, count, SEED)

    return Corpus(split("train", train_clips), split("validation", held_out_clips), split("test", held_out_clips))


@torch.no_grad()
def encode_split(codec: Codec, tokenizer: Tokenizer, split: RenderedSplit, batch: int = 50) -> TokenDataset:
    """The codec's tokens of every clip of a split, with those of its caption."""
    device = next(codec.parameters()).device
    codes = []
    for start in range(0, len(split.clips), batch):
        audio = torch.from_numpy(split.audio(slice(start, start + batch))).to(device)
        codes.append(codec.encode(audio[:, None]).audio_codes[0].cpu().numpy().astype(np.int16))
    return TokenDataset(np.concatenate(codes), *tokenize_captions(tokenizer, split.captions))


def assemble(folder: Path, codec: Codec, tokenizer: Tokenizer, weights: dict[str, Tensor], layers: int) -> None:
    """Write a MusicGen folder (float16) from a trained codec and the weights of a `TrainableMusicgen`."""
    model = build_musicgen(codec, len(tokenizer), layers)
    text, rest = _split_prefix(weights, "text_encoder.")
    decoder, _ = _split_prefix(rest, "language_model.decoder.")
    model.text_encoder.load_state_dict(text)
    model.decoder.load_state_dict(decoder)
    save_musicgen(folder, model.half(), tokenizer)


def _split_prefix(weights: dict[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    selected = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return selected, {name: value for name, value in weights.items() if not name.startswith(prefix)}


def save_clap(folder: Path, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> None:
    """Write band-clap (float16) with feature extractor and tokenizer, as `ClapModel` and `ClapProcessor` read it."""
    trainable = TrainableClap(new_clap(len(tokenizer)))
    trainable.load_state_dict(weights)
    trainable.trained().half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    clap_features().save_pretrained(folder)
