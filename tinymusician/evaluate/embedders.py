"""The embedding models that a recipe can ask for; each is loaded only when it is asked for."""

from __future__ import annotations

from typing import Any

from tinymusician.evaluate.embedding import Embedder


def open_embedder(config: Any, device: str = "cpu") -> Embedder:
    """The embedding model that a recipe's `evaluate.embedding` asks for.

    Raises:
        ModelError: what is missing, and where it belongs.
    """
    if config.kind == "clap":
        from tinymusician.evaluate.clap_model import ClapEmbedder

        return ClapEmbedder(config.model, device)
    if config.kind == "encodec":
        from tinymusician.evaluate.codec_model import EncodecEmbedder

        return EncodecEmbedder(config.model, device)
    from tinymusician.evaluate.vggish import VggishEmbedder

    return VggishEmbedder(config.checkpoint, device)
