"""The code sequences of distillation: the teacher's samples, the codes of clips, or both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.artifacts.blobs import digest_of
from tinymusician.data.captioned import load_training_clips
from tinymusician.data.shards import Arrays, ShardCache
from tinymusician.data.tokens import TokenDataset, tokenize_captions
from tinymusician.errors import DataError
from tinymusician.models.conditional_decoder import encode_text
from tinymusician.models.protocols import Codec, Musicgen, Tokenizer
from tinymusician.models.sampling import INVARIANT_ROWS, CodeSampler, sample_seed
from tinymusician.runtime.audio_reader import describe_conversions, read_clip

_logger = logging.getLogger(__name__)
_FILES = 32
"""The number of clips per shard."""


Ids = npt.NDArray[np.int64]
Make = Callable[[int], Arrays]


class ShardedSource(Protocol):
    """Sequences in shards, which any worker can compute in any order."""

    def make(self, index: int) -> Arrays:
        """The arrays of one shard."""

    def read(self, shards: ShardCache, cache: Path, make: Make | None) -> TokenDataset:
        """All sequences of a complete set of shards; `make` computes a damaged one again."""


class TeacherSamples:
    """The teacher's samples for `texts`, `samples` each, as shards of `prompts_per_shard` prompts.

    A sample depends only on its prompt, its number among the prompt's samples, and the seed.
    """

    def __init__(
        self,
        teacher: Musicgen,
        tokenizer: Tokenizer,
        texts: list[str],
        samples: int,
        frames: int,
        guidance: float,
        top_k: int,
        temperature: float,
        seed: int,
        prompts_per_shard: int,
        batch_size: int,
        dtype: torch.dtype,
    ) -> None:
        self._teacher, self._frames, self._dtype = teacher, frames, dtype
        self._samples = samples
        self._guidance, self._top_k, self._temperature = guidance, top_k, temperature
        self._shard, self._batch_size = prompts_per_shard, batch_size
        self._seed, self._texts = seed, texts
        self._ids, self._mask = tokenize_captions(tokenizer, texts)

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self._ids) // self._shard)

    def make(self, index: int) -> Arrays:
        """Sample one shard, `batch_size` rows together: `codes` [N, K, T], `text_ids` and `text_mask` [N, L]."""
        rows = slice(index * self._shard, (index + 1) * self._shard)
        ids, mask = self._ids[rows].repeat(self._samples, 0), self._mask[rows].repeat(self._samples, 0)
        seeds = [sample_seed(self._seed, text, sample) for text in self._texts[rows] for sample in range(self._samples)]
        pieces = [slice(at, at + self._batch_size) for at in range(0, len(ids), self._batch_size)]
        codes = [self._sample(ids[piece], mask[piece], seeds[piece]) for piece in pieces]
        return {"codes": np.concatenate(codes), "text_ids": ids, "text_mask": mask}

    def read(self, shards: ShardCache, cache: Path, make: Make | None) -> TokenDataset:
        """All samples of a complete set of shards, in order; `make` computes a damaged one again."""
        arrays = shards.join(("codes", "text_ids", "text_mask"), cache, make)
        return TokenDataset(arrays["codes"], arrays["text_ids"], arrays["text_mask"])

    @torch.no_grad()
    def _sample(self, ids: Ids, mask: Ids, seeds: list[int]) -> npt.NDArray[np.int16]:
        sampler = shared_sampler(self._teacher, self._dtype)
        device = next(self._teacher.decoder.parameters()).device
        text = encode_text(self._teacher, torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
        codes = sampler.sample(text, self._frames, seeds, self._guidance, self._top_k, self._temperature)
        return codes.numpy().astype(np.int16)


@lru_cache(maxsize=1)
def shared_sampler(teacher: Musicgen, dtype: torch.dtype) -> CodeSampler:
    """The sampler of this process for all splits: its weights and buffers take gigabytes.

    `shared_sampler.cache_clear()` frees them.
    """
    return CodeSampler(teacher, dtype, INVARIANT_ROWS)


class ClipCodes:
    """The codec's codes of the clips in a folder, cut into pieces of `frames`, as shards of several files each."""

    def __init__(self, codec: Codec, tokenizer: Tokenizer, folder: Path, frames: int) -> None:
        """Each clip has its caption beside it.

        Raises:
            DataError: there are no clips, or one lacks its caption.
        """
        clips = load_training_clips(folder)
        self._paths, self._captions = [clip.path for clip in clips], [clip.caption for clip in clips]
        self._codec, self._tokenizer, self._folder, self._frames = codec, tokenizer, folder, frames

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self._paths) // _FILES)

    @property
    def facts(self) -> dict[str, object]:
        """The files' content, by SHA-256, and the length: what the shards depend on beside codec and device."""
        return {"files": [digest_of(path) for path in self._paths], "frames": self._frames}

    @torch.no_grad()
    def make(self, index: int) -> Arrays:
        """Encode one shard's files: `codes` [N, K, T] of all pieces, and the number of `pieces` of each file.

        Raises:
            DataError: a file cannot be read.
        """
        config, device = self._codec.config, next(self._codec.parameters()).device
        size = self._frames * int(np.prod(config.upsampling_ratios))
        codes, counts, clips = [], [], []
        for path in self._paths[index * _FILES : (index + 1) * _FILES]:
            clips.append(read_clip(path, config.sampling_rate))
            pieces = _pieces(clips[-1].wave, size)
            waves = (torch.from_numpy(piece)[None, None].to(device) for piece in pieces)
            codes += [self._codec.encode(wave).audio_codes[0].cpu().numpy() for wave in waves]
            counts.append(len(pieces))
        if changes := describe_conversions(clips):
            _logger.warning("clips %d to %d: %s", index * _FILES + 1, index * _FILES + len(clips), changes)
        merged = np.concatenate(codes) if codes else np.zeros((0, 0, self._frames))
        return {"codes": merged.astype(np.int16), "pieces": np.array(counts)}

    def read(self, shards: ShardCache, cache: Path, make: Make | None) -> TokenDataset:
        """All pieces of a complete set of shards, with their captions; `make` computes a damaged one again.

        Raises:
            DataError: no file is long enough.
        """
        arrays = shards.join(("codes", "pieces"), cache, make)
        captions = np.repeat(self._captions, arrays["pieces"])
        if not len(captions):
            seconds = self._frames / self._codec.config.frame_rate
            raise DataError(f"clips {self._folder}: none is {seconds:g} s long, which sequences.seconds asks for")
        return TokenDataset(arrays["codes"], *tokenize_captions(self._tokenizer, captions.tolist()))


def mix(samples: TokenDataset, clips: TokenDataset, clip_share: float) -> TokenDataset:
    """Samples and clips in one set in which clips have the share `clip_share`; too few clips are repeated."""
    if clip_share == 1:
        return clips
    num_clips = round(len(samples.codes) * clip_share / (1 - clip_share))
    rows = np.arange(num_clips) % len(clips.codes)
    length = max(samples.text_ids.shape[1], clips.text_ids.shape[1])
    return TokenDataset(
        np.concatenate([samples.codes, clips.codes[rows]]),
        np.concatenate([_padded(samples.text_ids, length), _padded(clips.text_ids[rows], length)]),
        np.concatenate([_padded(samples.text_mask, length), _padded(clips.text_mask[rows], length)]),
    )


def _padded(array_NL: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    return np.pad(array_NL, ((0, 0), (0, length - array_NL.shape[1])))


def _pieces(samples: npt.NDArray[np.float32], size: int) -> list[npt.NDArray[np.float32]]:
    return [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)]
