"""The audio samples of an evaluation's report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from jobs.evaluate.evaluator import Evaluator
from jobs.evaluate.open import has_clips
from tinymusician.errors import DataError
from tinymusician.evaluate.audio import encode_flac
from tinymusician.evaluate.results import REAL, AudioClip, FolderResult, ModelResult, PromptSamples
from tinymusician.runtime.audio_reader import Wave
from tinymusician.runtime.pcm16 import from_pcm16

_Sample = tuple[str, str, Callable[[], tuple[Wave, int]]]
"""A model's id, a label, and what gives the wave and its rate."""


def write_samples(
    evaluator: Evaluator, models: Sequence[ModelResult], folders: Sequence[FolderResult]
) -> tuple[PromptSamples, ...]:
    """Write some clips to the run: those of the first prompts of all models, and the first ones of every folder."""
    rows = []
    for number, (title, samples) in enumerate(_rows(evaluator, models, folders)):
        clips = []
        for place, (model_id, label, read) in enumerate(samples):
            try:
                flac = encode_flac(*read())
            except DataError as error:
                print(f"skipped: {error}", flush=True)
                continue
            clips.append(AudioClip(model_id=model_id, label=label, file=f"{number}-{place}.flac"))
            evaluator.context.run.write_audio(clips[-1].file, flac)
        rows.append(PromptSamples(prompt=title, clips=tuple(clips)))
    return tuple(rows)


def _rows(
    evaluator: Evaluator, models: Sequence[ModelResult], folders: Sequence[FolderResult]
) -> Iterator[tuple[str, list[_Sample]]]:
    """The samples that the report shows side by side, with their title."""
    config = evaluator.config
    if models:
        for clip, prompt in enumerate(evaluator.prompts(range(min(config.num_audio_samples, config.clips)))):
            real = [_recorded(evaluator, REAL, clip, REAL)] if config.prompts_are_captions else []
            yield prompt, [*real, *(_generated(evaluator, model, clip) for model in models)]
    if has_clips(config) and not config.prompts_are_captions:
        yield REAL, _folder(evaluator, REAL)
    for folder in folders:
        yield folder.label, _folder(evaluator, folder.model_id)


def _folder(evaluator: Evaluator, source: str) -> list[_Sample]:
    names = evaluator.recordings.clips(source).names[: evaluator.config.num_audio_samples]
    return [_recorded(evaluator, source, clip, name) for clip, name in enumerate(names)]


def _recorded(evaluator: Evaluator, source: str, clip: int, label: str) -> _Sample:
    def read() -> tuple[Wave, int]:
        loaded = evaluator.recordings.clips(source).wave(clip, evaluator.features.embedder.rate)
        return loaded.wave, loaded.rate

    return source, label, read


def _generated(evaluator: Evaluator, model: ModelResult, clip: int) -> _Sample:
    def read() -> tuple[Wave, int]:
        (arrays,) = evaluator.generated(model.model_id, [clip])
        return from_pcm16(arrays["wave"]), evaluator.models.facts(model.model_id).rate

    return model.model_id, model.label, read
