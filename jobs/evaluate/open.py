"""Opens what a recipe's `evaluate` section names: reference set, embedding model, classifier.

A model's libraries are imported only when the recipe names it.
"""

from __future__ import annotations

import json
from pathlib import Path

from tinymusician.evaluate.embedding import AudioClassifier, Embedder
from tinymusician.evaluate.reference import FileClips, ReferenceSet
from tinymusician.models.musicgen import model_location
from tinymusician.recipe.evaluation import (
    ClapEmbeddingConfig,
    Embedding,
    EncodecEmbeddingConfig,
    LaionClapEmbeddingConfig,
    Reference,
)


def open_reference(config: Reference, count: int, seconds: float, seed: int, corpus: Path) -> ReferenceSet:
    """The clips of `evaluate.reference`; the house band's tunes are rendered into `corpus`.

    Raises:
        DataError: a table or audio file is missing; the message says where it belongs.
    """
    from tinymusician.data.captioned import load_folder, load_musicbench, load_musiccaps

    if config.kind == "band":
        from tinymusician.house_band.corpus import HELD_OUT_CLIPS, load_test_split
        from tinymusician.house_band.reference import RenderedClips

        return RenderedClips(load_test_split(corpus, HELD_OUT_CLIPS), count, seconds, seed)
    audio = Path(config.audio).expanduser()
    if config.kind == "folder":
        return FileClips(load_folder(audio), f"folder {audio.name}", count, seconds, seed)
    table = Path(config.table).expanduser()
    if config.kind == "musiccaps":
        captioned = load_musiccaps(table, audio, config.subset)
        return FileClips(captioned, f"MusicCaps ({config.subset})", count, seconds, seed)
    return FileClips(load_musicbench(table, audio), f"MusicBench ({table.name})", count, seconds, seed)


def open_embedder(config: Embedding, device: str = "cpu") -> Embedder:
    """The embedding model of `evaluate.embedding`.

    Raises:
        ModelError: the model's files are missing; the message says where they belong.
    """
    if isinstance(config, LaionClapEmbeddingConfig):
        from jobs.evaluate.laion_clap_actor import LaionClapActor

        return LaionClapActor(config)
    if isinstance(config, ClapEmbeddingConfig):
        from tinymusician.evaluate.clap_model import ClapEmbedder

        return ClapEmbedder(config.model, device)
    if isinstance(config, EncodecEmbeddingConfig):
        from tinymusician.evaluate.codec_model import EncodecEmbedder

        return EncodecEmbedder(config.model, device)
    from tinymusician.evaluate.vggish import VggishEmbedder

    return VggishEmbedder(config.checkpoint, device)


def open_tagger(name: str, device: str = "cpu") -> AudioClassifier:
    """The packaged band-tagger, or a classifier in transformers' layout by folder or hub id.

    Raises:
        ModelError: there is none of this name.
    """
    folder = model_location(name)
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("model_type") == "band-tagger":
        from tinymusician.house_band.tagger import HouseBandTagger

        return HouseBandTagger(folder, device)
    from tinymusician.evaluate.taggers import TransformersTagger

    return TransformersTagger(name, device)
