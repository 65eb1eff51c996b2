"""What a MusicGen decoder's shape costs: parameters and memory, reckoned without loading anything.

The shapes of the released models are known here; any other model is read from its folder's config.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from tinymusician.errors import ModelError

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class DecoderShape:
    """A decoder's `layers`, `width`, `feed_forward` width, `codebooks` of `vocabulary` codes, and text width `text`."""

    layers: int
    width: int
    feed_forward: int
    codebooks: int = 4
    vocabulary: int = 2048
    text: int = 768

    @property
    def parameters(self) -> int:
        """Parameters of the decoder as transformers counts them, without the projection of the text states."""
        attention = 8 * self.width * self.width
        a_layer = attention + 2 * self.width * self.feed_forward + 6 * self.width
        embeddings = self.codebooks * (2 * self.vocabulary + 1) * self.width
        return self.layers * a_layer + embeddings + 2 * self.width

    @property
    def projection(self) -> int:
        """Parameters of the projection from text states to the decoder's width, if there is one."""
        return 0 if self.text == self.width else (self.text + 1) * self.width

    def with_layers(self, layers: int) -> DecoderShape:
        """The same shape with another depth."""
        return replace(self, layers=layers)


RELEASED = {
    "facebook/musicgen-small": DecoderShape(24, 1024, 4096),
    "facebook/musicgen-medium": DecoderShape(48, 1536, 6144),
    "facebook/musicgen-large": DecoderShape(48, 2048, 8192),
}


def shape_of(name: str) -> DecoderShape | None:
    """The decoder's shape of a packaged, local or released model; None for a hub id that is not known here.

    Raises:
        ModelError: a local folder without a readable MusicGen configuration.
    """
    if name in RELEASED:
        return RELEASED[name]
    folder = WEIGHTS / name if (WEIGHTS / name).is_dir() else Path(name).expanduser()
    if not folder.is_dir():
        return None
    try:
        config = json.loads((folder / "config.json").read_text())
        decoder, text = config["decoder"], config["text_encoder"]
        return DecoderShape(
            layers=decoder["num_hidden_layers"],
            width=decoder["hidden_size"],
            feed_forward=decoder["ffn_dim"],
            codebooks=decoder["num_codebooks"],
            vocabulary=decoder["vocab_size"],
            text=text["d_model"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {name!r}: config.json is missing or not a MusicGen's ({error!r})") from error
