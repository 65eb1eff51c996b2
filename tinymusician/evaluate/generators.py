"""Generators: the evaluation's interface to a model in PyTorch or a bundle in the engine.

Both use the same random numbers for the same seed, so that their clips differ by the models alone. Shapes: N clip, K
codebook, T frame, S step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from tinymusician.errors import ModelError
from tinymusician.models.conditional_decoder import TextCondition, guidance_condition
from tinymusician.models.guidance import plays_in_one_pass, range_of, sampling_scale
from tinymusician.models.likelihood import forced_logits
from tinymusician.models.musicgen import load_musicgen, load_tokenizer
from tinymusician.models.protocols import Musicgen, Tokenizer
from tinymusician.models.prune_layers import weights_digest
from tinymusician.models.sampling import CodeSampler, decode_audio
from tinymusician.models.shape import RELEASE, is_packaged, is_release
from tinymusician.runtime.audio_reader import Wave
from tinymusician.runtime.bundle import MANIFEST, read_manifest
from tinymusician.runtime.generator import GenerationRequest, load_generator
from tinymusician.runtime.rollout import ForcedBatch, rollout

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SamplingSettings:
    """The sampling settings of all models; models with one pass have their guidance in the weights."""

    seconds: float
    guidance: float
    top_k: int
    temperature: float


@dataclass(frozen=True)
class GeneratedClip:
    """A clip: its codes [K, T], and their wave."""

    codes: Codes
    wave: Wave


class Generator(Protocol):
    """A model. `sizes` are bytes by component; `one_pass` means that guidance is in its weights.

    A guidance-conditioned model has a `guidance_range`.
    """

    rate: int
    frame_rate: float
    digest: str
    sizes: dict[str, int]
    one_pass: bool
    guidance_range: tuple[float, float] | None

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings) -> list[GeneratedClip]:
        """One clip per prompt, each with its own seed."""

    def forced(self, prompts: Sequence[str], codes_NKT: Codes, guidance: float) -> torch.Tensor:
        """Logits along the codes under each prompt, and then under none: [2N, K, S, V]; [N, …] from one pass.

        `guidance` is the scale of a guidance-conditioned model.
        """


class TorchGenerator:
    """A MusicGen in PyTorch."""

    def __init__(self, model: Musicgen, tokenizer: Tokenizer, device: str = "cpu") -> None:
        self.model, self._tokenizer, self._device = model.to(device), tokenizer, device
        codec = model.config.audio_encoder
        self.rate, self.frame_rate = int(codec.sampling_rate), float(codec.frame_rate)
        self.digest = weights_digest(model)
        self.one_pass = plays_in_one_pass(model)
        self.guidance_range = range_of(model)
        parts = {"text encoder": model.text_encoder, "decoder": model.decoder, "codec": model.audio_encoder}
        self.sizes = {
            name: sum(p.numel() * p.element_size() for p in part.parameters()) for name, part in parts.items()
        }

    @cached_property
    def _sampler(self) -> CodeSampler:
        return CodeSampler(self.model)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings) -> list[GeneratedClip]:
        """One clip per prompt, each with its own seed."""
        codes = self._sampler.sample(
            self._condition(prompts, settings.guidance),
            round(settings.seconds * self.frame_rate),
            seeds,
            sampling_scale(self.model, settings.guidance),
            settings.top_k,
            settings.temperature,
        )
        waves = decode_audio(self.model, codes.to(self._device)).float().cpu().numpy()
        return [GeneratedClip(clip_codes, wave) for clip_codes, wave in zip(codes.cpu().numpy(), waves, strict=True)]

    @torch.no_grad()
    def forced(self, prompts: Sequence[str], codes_NKT: Codes, guidance: float) -> torch.Tensor:
        """Logits along the codes under each prompt, and then under none: [2N, K, S, V]; [N, …] from one pass."""
        condition = self._condition(prompts, guidance)
        logits, _ = forced_logits(self.model, condition, codes_NKT)
        if self.one_pass:
            return logits.float().cpu()
        without, _ = forced_logits(self.model, condition.without_text(), codes_NKT)
        return torch.cat([logits, without]).float().cpu()

    @torch.no_grad()
    def reconstruct(self, wave: Wave) -> Wave:
        """A wave at `rate` after the codec: its reconstruction."""
        codec, samples = self.model.audio_encoder, torch.from_numpy(np.asarray(wave, np.float32))[None, None]
        codes = codec.encode(samples.to(self._device)).audio_codes
        return np.asarray(codec.decode(codes, [None]).audio_values[0, 0, : len(wave)].float().cpu().numpy())

    @torch.no_grad()
    def _condition(self, prompts: Sequence[str], guidance: float) -> TextCondition:
        text = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self._device)
        return guidance_condition(self.model, text["input_ids"], text["attention_mask"], guidance)


class OnnxGenerator:
    """A bundle in the engine."""

    def __init__(self, folder: Path, threads: int = 0) -> None:
        self._generator = load_generator(folder, threads)
        manifest = self._generator.manifest
        self.rate, self.frame_rate = self._generator.codec.shape.sampling_rate, self._generator.codec.shape.frame_rate
        self.digest = "-".join(sorted(file.sha256[:16] for file in manifest.files))
        self.one_pass, self.guidance_range = manifest.sampling.one_pass, manifest.sampling.guidance_range
        self.sizes = {file.role.replace("_", " "): file.size for file in manifest.files}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings) -> list[GeneratedClip]:
        """One clip per prompt, each with its own seed."""
        generator = self._generator
        guidance = None if generator.manifest.sampling.is_fixed else settings.guidance
        generations = [
            generator.start(
                GenerationRequest(
                    prompt,
                    settings.seconds,
                    seed,
                    guidance,
                    settings.temperature,
                    settings.top_k,
                    top_p=1.0,
                    windows=False,
                    truncate_prompt=True,
                )
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        try:
            while not all(generation.is_finished for generation in generations):
                generator.engine.step()
            for generation in generations:
                if generation.error is not None:
                    raise generation.error
            return [GeneratedClip(generation.codes, generator.codec(generation.codes)) for generation in generations]
        finally:
            for generation in generations:
                generation.cancel()
            generator.engine.reap()

    def forced(self, prompts: Sequence[str], codes_NKT: Codes, guidance: float) -> torch.Tensor:
        """Logits along the codes under each prompt, and then under none: [2N, K, S, V]; [N, …] from one pass."""
        scales = (guidance,) * len(prompts) if self.guidance_range else None
        logits = rollout(self._generator, ForcedBatch(list(prompts), codes_NKT, not self.one_pass, scales))
        return torch.from_numpy(logits).permute(1, 2, 0, 3)


def open_generator(name: str, device: str = "cpu", threads: int = 0) -> Generator:
    """A bundle's folder, or a MusicGen by folder, hub id or packaged name.

    Raises:
        ModelError, BundleError: it is neither.
    """
    if is_packaged(name):  # whatever folder of this name the process runs in
        return TorchGenerator(load_musicgen(name), load_tokenizer(name), device)
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file():
        read_manifest(folder)
        return OnnxGenerator(folder, threads)
    if folder.is_dir() and not (folder / "config.json").is_file() and not is_release(folder):
        raise ModelError(
            f"model {name!r}: the folder is neither a bundle ({MANIFEST}) nor a MusicGen (config.json, or "
            f"{' and '.join(RELEASE)} of audiocraft)"
        )
    return TorchGenerator(load_musicgen(name), load_tokenizer(name), device)
