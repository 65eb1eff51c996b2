"""Opens what a recipe's `evaluate` section names: reference set, embedding model, classifier.

A model's libraries are imported only when the recipe names it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.worker.model_refs import parse_label
from tinymusician.bundle_refs import resolve_bundle
from tinymusician.evaluate.embedding import AudioClassifier, Embedder
from tinymusician.evaluate.reference import FileClips, ReferenceSet, choose_clips
from tinymusician.evaluate.results import REAL, RECONSTRUCTED
from tinymusician.inputs import input_label, input_path, is_on_nodes
from tinymusician.models.musicgen import model_location
from tinymusician.recipe.evaluation import (
    ClapEmbeddingConfig,
    Embedding,
    EncodecEmbeddingConfig,
    EvaluateConfig,
    LaionClapEmbeddingConfig,
)

if TYPE_CHECKING:
    from tinymusician.evaluate.judge import QuestionJudge


def has_clips(config: EvaluateConfig) -> bool:
    """Whether the reference is a set of clips, not their statistics."""
    return config.reference is not None and config.reference.kind != "statistics"


def open_reference(config: EvaluateConfig, corpus: Path) -> ReferenceSet:
    """The clips of `evaluate.reference`; the house band's tunes are rendered into `corpus`.

    They are `evaluate.clips` clips with captions if these are prompts, else all clips of the set.

    Raises:
        DataError: a table or audio file is missing; the message says where it belongs.
    """
    from tinymusician.data.captioned import load_folder, load_musicbench, load_musiccaps, load_recordings

    reference, seconds, seed = config.reference, config.seconds, config.seed
    assert reference is not None
    assert reference.kind != "statistics", "these have no clips"
    if reference.kind == "band":
        from tinymusician.house_band.corpus import HELD_OUT_CLIPS, load_test_split
        from tinymusician.house_band.reference import RenderedClips

        return RenderedClips(load_test_split(corpus, HELD_OUT_CLIPS), config.clips, seconds, seed)
    count = config.clips if config.prompts_are_captions else None
    audio = input_path(reference.audio)
    if reference.kind == "folder":
        load = load_folder if config.prompts_are_captions else load_recordings
        return FileClips(load(audio), f"folder {input_label(reference.audio)}", count, seconds, seed)
    table = input_path(reference.table)
    if reference.kind == "musiccaps":
        captioned = load_musiccaps(table, audio, reference.subset)
        return FileClips(captioned, f"MusicCaps ({reference.subset})", count, seconds, seed)
    return FileClips(load_musicbench(table, audio), f"MusicBench ({table.name})", count, seconds, seed)


def open_audio(source: str, seconds: float) -> ReferenceSet:
    """The clips of an entry of `evaluate.audio`.

    Raises:
        DataError: there is no such folder, or no audio in it.
    """
    from tinymusician.data.captioned import load_recordings

    name = parse_label(source)[1]
    return FileClips(load_recordings(input_path(name)), f"folder {input_label(name)}", None, seconds, 0)


def count_recordings(config: EvaluateConfig) -> dict[str, int]:
    """The number of clips of every source that no model generates: real clips, after the codec, folders of audio.

    Raises:
        DataError: a folder or table cannot be read.
    """
    counts: dict[str, int] = {}
    if has_clips(config):
        assert config.reference is not None
        by_clips = config.prompts_are_captions or config.reference.kind == "band"
        counts[REAL] = config.clips if by_clips else len(open_reference(config, Path()).names)
        if config.evaluates_models:
            counts[RECONSTRUCTED] = counts[REAL]
    return counts | {source: len(open_audio(source, config.seconds).names) for source in config.audio}


def evaluation_prompts(config: EvaluateConfig, training_prompts: str) -> list[str]:
    """The prompts of the models in `evaluate.prompts`; of those that students are trained on, of the test split.

    Raises:
        DataError: the file cannot be read, or has fewer than `evaluate.clips`.
    """
    from tinymusician.data.prompts import load_prompts

    assert config.prompts is not None
    prompts, kind = load_prompts(config.prompts), f"prompts {config.prompts}"
    if config.prompts == training_prompts:
        prompts, kind = [prompt for prompt in prompts if prompt.split == "test"], f"the test split of {kind}"
    return [prompts[index].text for index in choose_clips(len(prompts), config.clips, config.seed, kind)]


def check_inputs(config: EvaluateConfig, training_prompts: str) -> None:
    """Check that reference, folders of audio and prompts can be read.

    Raises:
        DataError: one of them cannot.
    """
    reference = config.reference
    assert reference is not None
    names = [getattr(reference, key, "") for key in ("audio", "table", "file")]
    if any(map(is_on_nodes, names)):
        pass  # the job checks it
    elif reference.kind == "statistics":
        from tinymusician.evaluate.reference_statistics import load_reference_statistics

        load_reference_statistics(input_path(reference.file))
    elif reference.kind != "band":
        _check_clips("evaluate.reference", open_reference(config, Path()), config)
    for source in (one for one in config.audio if not is_on_nodes(parse_label(one)[1])):
        _check_clips(f"evaluate.audio {source}", open_audio(source, config.seconds), config)
    if config.prompts is not None and not is_on_nodes(config.prompts):
        evaluation_prompts(config, training_prompts)


def _check_clips(name: str, clips: ReferenceSet, config: EvaluateConfig) -> None:
    """Say what is left out of a set of files, and check that they can be read."""
    left_out = [f"{reason}: {count}" for reason, count in clips.provenance.items() if reason.startswith("left out")]
    if left_out:
        print(f"{name}: {len(clips.names)} clips; {', '.join(left_out)}", file=sys.stderr)
    if isinstance(clips, FileClips):
        clips.check_readable(all_of_them=config.on_unreadable == "refuse")


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

    return VggishEmbedder(str(input_path(config.checkpoint)), device)


def open_judge(name: str) -> QuestionJudge:
    """The bundle of `evaluate.judge`: a packaged one, an artifact or a folder.

    Raises:
        NotFoundError: there is none of this name.
        BundleError: it does not answer questions.
    """
    from tinymusician.evaluate.judge import QuestionJudge

    return QuestionJudge(resolve_bundle(name))


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
