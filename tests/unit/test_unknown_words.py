"""Words that a tokenizer maps to its unknown token, for the kinds of tokenizers that models bring."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tinymusician.models.musicgen import model_location
from tinymusician.runtime.text import TextEncoder

UNIGRAM = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0), ("▁", -2.0), *((c, -3.0) for c in "jigreval")]


def unknown_words(tokenizer: Tokenizer, folder: Path, prompt: str) -> list[str]:
    tokenizer.save(str(folder / "tokenizer.json"))
    session: Any = SimpleNamespace(get_outputs=lambda: [SimpleNamespace(shape=np.zeros(3, int))])
    return TextEncoder(folder / "tokenizer.json", session, session, 100).unknown_words(prompt)


def test_words_of_the_house_band(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model_location("band-small") / "tokenizer.json"))
    prompt = "A slow waltz for ACCORDION, accordion and très vite: accordion!"
    assert unknown_words(tokenizer, tmp_path, prompt) == ["ACCORDION", "très", "vite"]
    assert unknown_words(tokenizer, tmp_path, "a fast fiddle reel in D major") == []


@pytest.mark.parametrize(("prompt", "words"), [("a jig", []), ("a jïg reel", ["jïg"]), ("a 🎻 reel", ["🎻"])])
def test_pieces_of_words_name_the_whole_word(tmp_path: Path, prompt: str, words: list[str]) -> None:
    """T5's tokenizer is of this kind."""
    tokenizer = Tokenizer(models.Unigram(UNIGRAM, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert unknown_words(tokenizer, tmp_path, prompt) == words


def test_byte_level_tokenizers_know_everything(tmp_path: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert unknown_words(tokenizer, tmp_path, "a 🎻 jïg") == []
