"""The teacher's sequences and its signals on them, computed in this worker or read from shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jobs.distill.models import TeacherStudent
from jobs.worker.context import WorkerContext
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.shards import Arrays, ShardCache, make_missing
from tinymusician.data.splits import SPLITS, Split
from tinymusician.data.tokens import TokenDataset
from tinymusician.errors import RunError
from tinymusician.inputs import input_path
from tinymusician.json_types import JsonObject
from tinymusician.recipe import CachedSignalsConfig

if TYPE_CHECKING:
    from tinymusician.distill.sequences import ClipCodes, Make, ShardedSource, TeacherSamples
    from tinymusician.distill.signals import SignalSource, Target


_DIGEST_ROWS = 4096


class ShardSet(NamedTuple):
    """Shards, and the function that makes one of them on this worker's device."""

    shards: ShardCache
    make: Make


def sequence_shards(context: WorkerContext, pair: TeacherStudent) -> dict[str, ShardSet]:
    """The shards of the recipe's sequences, by what they are: samples of each split, and the codes of clips."""
    clip_share = context.recipe.sequences.clip_share
    splits = [split for split in SPLITS if split != "train" or clip_share < 1]
    sources: dict[str, tuple[ShardedSource, ShardCache]]
    sources = {f"{split} samples": _sample_sequences(context, pair, split) for split in splits}
    if clip_share:
        sources["clips"] = _clip_sequences(context, pair)
    return {name: ShardSet(shards, _sequence_maker(context, pair, each)) for name, (each, shards) in sources.items()}


def signal_shards(context: WorkerContext, pair: TeacherStudent) -> dict[str, ShardSet]:
    """The shards of the teacher's logits on the training and validation sequences, by split.

    Raises:
        RunError: sequences are missing.
    """
    splits: tuple[Split, ...] = ("train", "validation")
    tokens = {split: open_sequences(context, pair, split) for split in splits}
    return {
        split: ShardSet(signal_shard_cache(context, pair, each), signal_shard_maker(context, pair, each))
        for split, each in tokens.items()
    }


def make_sequences(context: WorkerContext, pair: TeacherStudent) -> None:
    """Make this worker's share of the clips' codes and the teacher's samples that the store lacks."""
    from tinymusician.distill.sequences import shared_sampler

    for name, shard_set in sequence_shards(context, pair).items():
        make_shards(context, pair, name, shard_set)
    shared_sampler.cache_clear()


def make_shards(context: WorkerContext, pair: TeacherStudent, name: str, shard_set: ShardSet) -> None:
    """Make the missing shards: each worker, or each tensor-parallel group, makes its share."""
    shards, make = shard_set

    def on_progress(index: int) -> None:
        print(f"{name}: shard {index + 1} of {shards.count}", flush=True)
        context.run.report_progress(name, index + 1, shards.count)

    if pair.tp_group is None:
        make_missing(shards, make, context.rank, context.world, on_progress)
        return
    import torch.distributed as dist

    index, count, is_leader, group = pair.tp_group
    missing = [shards.missing()]
    dist.broadcast_object_list(missing, src=dist.get_global_rank(group, 0), group=group)
    make_missing(shards, make, index, count, on_progress, is_leader, missing[0])


def open_sequences(context: WorkerContext, pair: TeacherStudent, split: Split) -> TokenDataset:
    """The sequences of one split: teacher samples, mixed with clips for training.

    Raises:
        RunError: samples are missing.
    """
    from tinymusician.distill.sequences import mix

    share = context.recipe.sequences.clip_share if split == "train" else 0
    sources: list[tuple[ShardedSource, ShardCache]] = [_clip_sequences(context, pair)] if share else []
    sources += [_sample_sequences(context, pair, split)] if share < 1 else []
    sets = []
    for source, shards in sources:
        _check_shards_complete(shards)
        sets.append(
            source.read(shards, context.cache, None if pair.tp_group else _sequence_maker(context, pair, source))
        )
    return mix(sets[1], sets[0], share) if len(sets) == 2 else sets[0]


def _sequence_maker(context: WorkerContext, pair: TeacherStudent, source: ShardedSource) -> Make:
    """A function that makes a shard of sequences on this worker's device."""

    def make(index: int) -> Arrays:
        pair.teacher.to(context.device)  # only when shards are made: reading needs no teacher on the device
        return source.make(index)

    return make


def frames(context: WorkerContext, pair: TeacherStudent) -> int:
    """The length of the recipe's sequences, in codec frames."""
    return round(context.recipe.sequences.seconds * float(pair.teacher.config.audio_encoder.frame_rate))


def _clip_sequences(context: WorkerContext, pair: TeacherStudent) -> tuple[ClipCodes, ShardCache]:
    """The recipe's clips, and the shards of their codes."""
    from tinymusician.distill.sequences import ClipCodes

    folder = input_path(str(context.recipe.sequences.clips))
    source = ClipCodes(pair.teacher.audio_encoder, pair.tokenizer, folder, frames(context, pair))
    facts = {"teacher": pair.teacher_digest, "device": context.device, **source.facts}
    return source, ShardCache(context.run.store, "codes", facts, source.shards)


def _sample_sequences(context: WorkerContext, pair: TeacherStudent, split: Split) -> tuple[TeacherSamples, ShardCache]:
    """The teacher's samples for one split, and their shards."""
    import torch

    from tinymusician.distill.sequences import TeacherSamples

    recipe = context.recipe
    section, teacher = recipe.sequences, recipe.teacher
    texts = texts_of(load_prompts(section.prompts), split)
    sampling: JsonObject = {
        "samples": section.samples_per_prompt if split == "train" else 1,
        "frames": frames(context, pair),
        "guidance": teacher.guidance_scale,
        "top_k": teacher.top_k,
        "temperature": teacher.temperature,
        "seed": recipe.training.seed,
        "prompts_per_shard": section.prompts_per_shard,
    }
    precision = context.precision()
    source = TeacherSamples(
        pair.teacher,
        pair.tokenizer,
        texts,
        batch_size=section.sampling_batch_size,
        dtype=getattr(torch, precision),
        **sampling,
    )
    facts = {"teacher": pair.teacher_digest, "texts": texts, "device": context.device, "precision": precision}
    facts |= sampling
    return source, ShardCache(context.run.store, "samples", facts, source.shards)


def online_signals(
    context: WorkerContext,
    pair: TeacherStudent,
    tokens: TokenDataset,
    passes: Target | None = None,
    layers: Sequence[int] = (),
) -> SignalSource:
    """The teacher in this worker as a source of signals, and of the hidden states after `layers`.

    `passes` overrides the recipe's.
    """
    import torch

    from tinymusician.distill.signals import OnlineTeacher, TensorParallelTeacher

    teacher_config = context.recipe.teacher
    dtype = torch.bfloat16 if context.precision() == "bfloat16" else torch.float32
    teacher = OnlineTeacher(
        pair.teacher.to(context.device),
        tokens,
        passes or teacher_config.passes,
        teacher_config.guidance_scale,
        dtype,
        layers,
    )
    return TensorParallelTeacher(teacher, pair.tp_group.process_group) if pair.tp_group else teacher


def sequences_digest(tokens: TokenDataset) -> str:
    """The SHA-256 of sequences: codes and texts."""
    digest = hashlib.sha256()
    for array in (tokens.codes, tokens.text_ids, tokens.text_mask):
        for first in range(0, len(array), _DIGEST_ROWS):
            digest.update(np.ascontiguousarray(array[first : first + _DIGEST_ROWS]).data)
    return digest.hexdigest()


def signal_shard_cache(context: WorkerContext, pair: TeacherStudent, tokens: TokenDataset) -> ShardCache:
    """The shards of the teacher's logits on `tokens`; their key includes teacher, target and sequences."""
    from tinymusician.distill.cached import FORMAT, SHARD_ROWS, shard_count

    teacher, content = context.recipe.teacher, sequences_digest(tokens)
    facts: JsonObject = {"teacher": pair.teacher_digest, "sequences": content, "shard_rows": SHARD_ROWS}
    facts |= {
        "device": context.device,
        "precision": context.precision(),
        "format": FORMAT,
        "top": _sparse_top_k(context),
    }
    facts |= {"target": teacher.passes} | ({"guidance": teacher.guidance_scale} if teacher.passes == "guided" else {})
    return ShardCache(context.run.store, "signals", facts, shard_count(len(tokens.codes)))


def signal_shard_maker(context: WorkerContext, pair: TeacherStudent, tokens: TokenDataset) -> Make:
    """A function that makes a shard of the teacher's logits on `tokens`."""
    from tinymusician.distill.cached import signal_shard

    def make(index: int) -> Arrays:
        batch = context.recipe.training.batch_size
        return signal_shard(
            online_signals(context, pair, tokens), index, len(tokens.codes), batch, _sparse_top_k(context)
        )

    return make


def _sparse_top_k(context: WorkerContext) -> int | None:
    """The number of logits that shards contain per position; None is all."""
    signals = context.recipe.signals
    return signals.top_k if isinstance(signals, CachedSignalsConfig) else None


def cached_signals(context: WorkerContext, pair: TeacherStudent, tokens: TokenDataset) -> SignalSource:
    """Precomputed shards as a source of signals.

    Raises:
        RunError: some are missing.
    """
    from tinymusician.distill.cached import CachedTeacher
    from tinymusician.distill.signals import PrefetchingSource

    shards = signal_shard_cache(context, pair, tokens)
    _check_shards_complete(shards)
    vocabulary = pair.teacher.config.decoder.vocab_size
    teacher = context.recipe.teacher
    make = signal_shard_maker(context, pair, tokens) if teacher.tensor_parallel_size == 1 else None
    reader = CachedTeacher(shards, tokens, teacher.passes, vocabulary, context.cache, context.device, make)
    return PrefetchingSource(reader.request, prefetch=2)


def _check_shards_complete(shards: ShardCache) -> None:
    """Check that all shards were precomputed.

    Raises:
        RunError: some are missing.
    """
    if missing := shards.missing():
        raise RunError(
            f"{len(missing)} of {shards.count} of the teacher's shards are missing; run `tmctl submit precompute` with "
            f"the same recipe first, or set signals.source=online"
        )
