"""Runs in the environment of laion-clap: a checkpoint with random weights, and its embeddings of some clips.

Usage: python laion_reference.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer

from tinymusician.evaluate.laion_clap import new_module

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PROMPTS = ["calm piano", "loud rock music"]


def main() -> None:
    """Write tokenizer, checkpoint and `reference.npz`."""
    folder = Path(sys.argv[1])
    (folder / "tokenizer").mkdir()
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(["calm piano music with loud rock"] * 10, vocab_size=400, special_tokens=SPECIAL)
    words.save_model(str(folder / "tokenizer"))
    torch.manual_seed(0)
    model = new_module(str(folder / "tokenizer"), "HTSAT-tiny", "cpu")
    weights = {f"module.{name}": value for name, value in model.model.state_dict().items()}
    weights["module.text_branch.embeddings.position_ids"] = torch.arange(514)[None]  # as in the published files
    torch.save({"state_dict": weights}, folder / "checkpoint.pt")
    model.eval()
    random = np.random.default_rng(0)
    whole = random.normal(0, 0.1, 480_000).astype(np.float32)
    rounded = (whole * 32767).astype(np.int16) / np.float32(32767)
    with torch.no_grad():
        audio = model.get_audio_embedding_from_data(x=rounded[None].astype(np.float32), use_tensor=False)
        text = model.get_text_embedding(PROMPTS)
    np.savez(folder / "reference.npz", wave=whole, audio=audio, text=np.asarray(text))


if __name__ == "__main__":
    main()
