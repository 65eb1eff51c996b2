"""What a recipe asks its teacher for: sequences, and signals on them, online or from shards in the store."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from jobs.pair import Pair
from jobs.worker import Context
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.scores import Split
from tinymusician.data.shards import ShardSet, make_missing
from tinymusician.data.tokens import TokenSet
from tinymusician.errors import RunError


def sequences(context: Context, pair: Pair, split: Split, make: bool = True) -> TokenSet:
    """The sequences of one split: teacher samples, made where the store has none yet, mixed with clips for training.

    Raises:
        RunError: samples are missing, and `make` is false.
    """
    from tinymusician.distill.sequences import TeacherSamples, mix, read_clips, read_samples

    recipe = context.recipe
    part, asked, seed = recipe.sequences, recipe.teacher, recipe.training.seed
    frames = round(part.seconds * pair.teacher.config.audio_encoder.frame_rate)
    texts = texts_of(load_prompts(part.prompts), split)
    if split == "train" and part.clips is not None and part.clip_share == 1:
        return read_clips(pair.teacher.audio_encoder, pair.tokenizer, Path(part.clips), frames)
    samples = part.samples if split == "train" else 1
    sampling = {"samples": samples, "frames": frames, "guidance": asked.guidance, "top_k": asked.top_k}
    sampling |= {"temperature": asked.temperature, "seed": seed, "shard_prompts": part.shard_prompts}
    sampling |= {"at_once": part.samples_at_once}
    source = TeacherSamples(pair.teacher, pair.tokenizer, texts, **sampling)
    facts = {"teacher": pair.teacher_digest, "texts": texts, "device": context.device, **sampling}
    shards = ShardSet(context.run.store, "samples", facts, source.shards)
    if not make:
        check_complete(shards)

    def told(index: int) -> None:
        print(f"{split} samples: shard {index + 1} of {shards.count}", flush=True)
        context.run.tell(f"{split} samples", index + 1, shards.count)

    make_missing(shards, source.make, context.rank, context.world, told)
    context.meet()
    tokens = read_samples(shards, context.cache)
    if split != "train" or part.clips is None:
        return tokens
    clips = read_clips(pair.teacher.audio_encoder, pair.tokenizer, Path(part.clips), frames)
    return mix(tokens, clips, part.clip_share)


def online(context: Context, pair: Pair, tokens: TokenSet) -> Any:
    """The teacher in this worker as a source of signals."""
    import torch

    from tinymusician.distill.signals import OnlineTeacher

    asked = context.recipe.teacher
    dtype = torch.bfloat16 if context.precision() == "bfloat16" else torch.float32
    return OnlineTeacher(pair.teacher.to(context.device), tokens, asked.target, asked.guidance, dtype)


def signal_shards(context: Context, pair: Pair, tokens: TokenSet) -> ShardSet:
    """The shards of the teacher's logits on `tokens`, known by teacher, target and the sequences themselves."""
    from tinymusician.distill.cached import SHARD_ROWS, shard_count

    content = hashlib.sha256(tokens.codes.tobytes() + tokens.text_ids.tobytes() + tokens.text_mask.tobytes())
    asked = context.recipe.teacher
    facts: dict[str, Any] = {"teacher": pair.teacher_digest, "sequences": content.hexdigest(), "shard_rows": SHARD_ROWS}
    facts |= {"device": context.device, "precision": context.precision()}
    facts |= {"target": asked.target} | ({"guidance": asked.guidance} if asked.target == "guided" else {})
    return ShardSet(context.run.store, "signals", facts, shard_count(len(tokens.codes)))


def cached(context: Context, pair: Pair, tokens: TokenSet) -> Any:
    """Precomputed shards as a source of signals.

    Raises:
        RunError: some are not there yet.
    """
    from tinymusician.distill.cached import CachedTeacher

    shards = signal_shards(context, pair, tokens)
    check_complete(shards)
    pad = pair.teacher.config.decoder.vocab_size
    return CachedTeacher(shards, tokens, context.recipe.teacher.target, pad, context.cache, context.device)


def check_complete(shards: ShardSet) -> None:
    """Raise if shards that should have been precomputed are not there.

    Raises:
        RunError: so many are missing.
    """
    if missing := shards.missing():
        raise RunError(
            f"signals.source = 'cached': {len(missing)} of {shards.count} shards are missing; run "
            f"`tmctl submit precompute` with the same recipe first, or set signals.source=online"
        )
