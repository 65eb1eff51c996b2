"""Generates audio from prompts with a bundle: its graphs in ONNX Runtime, driven by the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tinymusician.errors import BundleError, RequestError
from tinymusician.runtime.bundle import DEFAULT_BUNDLE, MANIFEST, PACKAGED, Bundle, open_bundle
from tinymusician.runtime.bundle_manifest import Role
from tinymusician.runtime.codec import CodecDecoder, CodecSpec, StreamingDecoder
from tinymusician.runtime.decoder import CrossAttentionKV, Decoder
from tinymusician.runtime.engine import Engine, EngineRequest
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.hugepages import use_large_pages
from tinymusician.runtime.open_session import SessionFactory
from tinymusician.runtime.sampling import SamplingParams, check_real
from tinymusician.runtime.session import Session
from tinymusician.runtime.text import TextEncoder
from tinymusician.runtime.windowed import WindowedGeneration

Samples = npt.NDArray[np.float32]
FIRST_CHUNK, CHUNK = 0.5, 1.0
"""Seconds of audio in the first chunk of a stream, and in the following ones."""
MAX_SECONDS = 600.0
"""The maximum length of a request, in windows."""

_DEVICE_PROVIDERS = frozenset(
    f"{name}ExecutionProvider"
    for name in ("CUDA", "Tensorrt", "NvTensorRTRTX", "ROCM", "MIGraphX", "Dml", "WebGpu", "Js", "CANN")
)
_INPUTS: dict[str, set[str]] = {
    "text_encoder": {"ids", "mask"},
    "cross": {"text_states", "text_mask"},
    "decoder": {"codes", "positions", "text_mask", "past_key.0", "cross_key.0"},
    "codec_decoder": {"codes", "cut", "state", "kept"},
    "codec_encoder": {"audio"},
}
"""Inputs that a graph of each role must have."""


class PromptSection(NamedTuple):
    """Another prompt from second `start` on."""

    start: float
    prompt: str


@dataclass(frozen=True)
class GenerationRequest:
    """A request for audio; fields that are None take the bundle's defaults.

    Without a prompt, generation is unconditional. `sections` change the prompt on the way; each continues the audio
    before it. `clip` [samples] is audio to continue; it counts among the `seconds`. Without `windows`, the maximum
    length is the one that the model was trained on. A prompt with more tokens than the model reads is refused, or cut
    with `truncate_prompt`.
    """

    prompt: str | None
    seconds: float | None = None
    seed: int = 0
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str | None = None
    clip: Samples | None = None
    windows: bool = True
    truncate_prompt: bool = False
    sections: tuple[PromptSection, ...] = ()


class MusicGenerator:
    """Generates audio with one bundle."""

    def __init__(self, bundle: Bundle, threads: int = 0, provider: str = "CPUExecutionProvider") -> None:
        """Load the graphs; with 0 `threads`, there are as many as this process may use.

        Raises:
            BundleError: a graph cannot be loaded, or the execution provider is not available or not allowed.
        """
        self.bundle, self.manifest = bundle, bundle.manifest
        shape = self.manifest.architecture
        open_ = _GraphFactory(bundle, threads, provider)
        self.decoder = Decoder(open_("decoder"))  # the largest first: loading a graph briefly takes twice its memory
        self.text = TextEncoder(bundle.path("tokenizer"), open_("text_encoder"), open_("cross"), shape.text_tokens)
        codec = CodecSpec(shape.sampling_rate, shape.hop, shape.context_before, shape.context_after)
        self.codec = CodecDecoder(open_("codec_decoder"), codec)
        self._encoder = open_("codec_encoder") if bundle.has("codec_encoder") else None
        self.engine = Engine(self.decoder, shape.positions)
        use_large_pages()

    @property
    def window(self) -> float:
        """The length of a window in seconds: that of the training sequences."""
        return self.manifest.architecture.window / self.codec.shape.frame_rate

    @property
    def shortest(self) -> float:
        """The minimum length in seconds."""
        return self.codec.fewest / self.codec.shape.frame_rate

    def request(self, request: GenerationRequest) -> EngineRequest:
        """Apply the bundle's defaults, validate the values, and encode the prompt.

        Raises:
            RequestError: a value is not allowed.
        """
        defaults, rate = self.manifest.sampling, self.codec.shape.frame_rate
        seconds = defaults.seconds if request.seconds is None else request.seconds
        guidance = defaults.guidance if request.guidance is None else request.guidance
        minimum, maximum = self.shortest, MAX_SECONDS if request.windows else self.window
        more = "" if request.windows else " (more with windows)"
        check_real("seconds", seconds, lambda length: minimum <= length <= maximum, f"{minimum:g} to {maximum:g}{more}")
        check_real("guidance", guidance, math.isfinite, "a number")
        if defaults.guidance_range is not None:
            low, high = defaults.guidance_range
            if not low <= guidance <= high:
                raise RequestError(
                    f"guidance {guidance:g}: this model was distilled for {low:g} to {high:g}", "guidance"
                )
        elif defaults.is_fixed and guidance != 1:
            raise RequestError(
                f"guidance {guidance:g}: this model was distilled with its guidance in it; leave it out", "guidance"
            )
        sampling = SamplingParams(
            defaults.temperature if request.temperature is None else request.temperature,
            defaults.top_k if request.top_k is None else request.top_k,
            defaults.top_p if request.top_p is None else request.top_p,
        )
        uncond = self._uncond_text(request, guidance)
        prefix = None if request.clip is None else self._encoded(request.clip, seconds)
        scale = None if defaults.guidance_range is None else guidance
        text = self.text.null(scale) if request.prompt is None else self._text(request, "prompt", scale)
        return EngineRequest(text, uncond, round(seconds * rate), request.seed, guidance, sampling, prefix)

    def _text(
        self, request: GenerationRequest, field: Literal["prompt", "negative_prompt"], scale: float | None
    ) -> CrossAttentionKV:
        prompt = getattr(request, field)
        if not isinstance(prompt, str):
            raise RequestError(f"{field} {prompt!r}: text is allowed", field)
        if not request.truncate_prompt:
            self.text.check_length(prompt)
        return self.text(prompt, scale)

    def _uncond_text(self, request: GenerationRequest, guidance: float) -> CrossAttentionKV | None:
        """The text of guidance's second pass: the negative prompt or none; None if there is no second pass."""
        one_pass, negative = self.manifest.sampling.one_pass, request.negative_prompt
        two_passes = guidance != 1 and not one_pass and request.prompt is not None
        if isinstance(negative, str) and not negative.strip():
            raise RequestError("negative_prompt: is empty; leave it out, or give some words", "negative_prompt")
        if negative is not None and not two_passes:
            why = "this model" if one_pass else "guidance 1" if request.prompt else "audio without a prompt"
            raise RequestError(
                f"negative_prompt: needs the second pass of guidance, and {why} has none", "negative_prompt"
            )
        if not two_passes:
            return None
        return self.text.null() if negative is None else self._text(request, "negative_prompt", None)

    def unknown_words(self, request: GenerationRequest) -> list[str]:
        """The words of a request's prompts that the model does not know, each once, in their order.

        Raises:
            RequestError: a prompt is not valid Unicode.
        """
        prompts = [request.prompt or "", *(section.prompt for section in request.sections)]
        text = "\n".join([*prompts, request.negative_prompt or ""])
        return self.text.unknown_words(text)

    def start(self, request: GenerationRequest) -> WindowedGeneration:
        """Add a request to the running batch; then call `engine.step` and the result's `advance` in turn."""
        return WindowedGeneration(self.engine, self._sections(request), self.manifest.architecture.window)

    def start_prepared(self, request: EngineRequest) -> WindowedGeneration:
        """Like `start`, for a request that `request` has prepared, perhaps on another thread."""
        return WindowedGeneration(self.engine, [request], self.manifest.architecture.window)

    def _sections(self, request: GenerationRequest) -> list[EngineRequest]:
        """The request of every section; its `frames` is the frame at which it ends."""
        if request.sections and request.prompt is None:
            raise RequestError("section: the beginning needs a prompt too")
        whole, rate = self.request(request), self.codec.shape.frame_rate
        starts = [round(section.start * rate) for section in request.sections]
        for before, start, section in zip([0, *starts], starts, request.sections, strict=False):
            if not before < start < whole.frames:
                limit = f"{before / rate:g} and {whole.frames / rate:g}"
                raise RequestError(f"section {section.start:g}: its start must be between {limit} seconds")
        texts = [self.request(replace(request, prompt=section.prompt)).text for section in request.sections]
        ends = [*starts, whole.frames]
        return [replace(whole, text=text, frames=end) for text, end in zip([whole.text, *texts], ends, strict=True)]

    def stream(
        self, request: GenerationRequest, on_progress: Callable[[int, int], None] = lambda done, frames: None
    ) -> Iterator[Samples]:
        """Yield chunks of audio, float32 in [-1, 1], as they become ready. Closing the generator cancels the request.

        `on_progress` receives the number of frames that are ready, and their total.

        Raises:
            RequestError: a value is not allowed.
            EngineError: the engine failed.
        """
        generation = self.start(request)
        audio, rate = StreamingDecoder(self.codec), self.codec.shape.frame_rate
        due = FIRST_CHUNK * rate
        try:
            while not generation.is_finished:
                self.engine.step()
                generation.advance()
                on_progress(generation.frames_ready, generation.frames)
                if generation.frames_ready >= due and not generation.is_finished:
                    due = generation.frames_ready + CHUNK * rate
                    yield audio.feed(generation.codes, last=False)
            if generation.error is not None:
                raise generation.error
            yield audio.feed(generation.codes, last=True)
        finally:
            generation.cancel()
            self.engine.reap()

    def generate(
        self, request: GenerationRequest, on_progress: Callable[[int, int], None] = lambda done, frames: None
    ) -> Samples:
        """The whole audio, float32 [samples] in [-1, 1]; see `stream`."""
        return np.concatenate(list(self.stream(request, on_progress)))

    def generate_batch(
        self,
        requests: Sequence[GenerationRequest],
        on_progress: Callable[[int, int], None] = lambda done, frames: None,
    ) -> list[Samples]:
        """Several requests in one batch; each result equals that of `generate` up to rounding."""
        window = self.manifest.architecture.window
        prepared = [self._sections(request) for request in requests]
        generations = [WindowedGeneration(self.engine, sections, window) for sections in prepared]
        try:
            while not all(generation.is_finished for generation in generations):
                self.engine.step()
                for generation in generations:
                    generation.advance()
                on_progress(
                    sum(generation.frames_ready for generation in generations),
                    sum(generation.frames for generation in generations),
                )
            return [self._wave(generation) for generation in generations]
        finally:
            for generation in generations:
                generation.cancel()
            self.engine.reap()

    def _wave(self, generation: WindowedGeneration) -> Samples:
        if generation.error is not None:
            raise generation.error
        return self.codec(generation.codes)

    def _encoded(self, clip: Samples, seconds: float) -> npt.NDArray[np.int64]:
        """The codes [K, T] of a clip, without its last, incomplete frame."""
        if self._encoder is None:
            raise RequestError(
                "clip: this bundle cannot continue audio, it has no codec encoder; `tmctl submit quantize RECIPE --set "
                "quantize.continuation=true` makes one that can"
            )
        if np.ndim(clip) != 1:
            raise RequestError(f"clip: has {np.ndim(clip)} axes; one is allowed, of mono samples")
        shape = self.codec.shape
        frames = len(clip) // shape.hop
        if not self.codec.fewest <= frames < round(seconds * shape.frame_rate):
            minimum, given = self.codec.fewest / shape.frame_rate, len(clip) / shape.sampling_rate
            raise RequestError(f"clip: lasts {given:g} s; {minimum:g} or more, and less than the requested {seconds:g}")
        audio = clip[None, : frames * shape.hop].astype(np.float32)
        if not np.isfinite(audio).all():
            raise RequestError("clip: has samples that are not finite numbers")
        try:
            codes: npt.NDArray[np.int64] = self._encoder.run(["codes"], {"audio": audio})[0][0]
        except Exception as error:  # ONNX Runtime's exceptions
            raise as_engine_error("the codec's encoder", error) from error
        return codes


def load_generator(
    folder: Path = PACKAGED / DEFAULT_BUNDLE, threads: int = 0, provider: str = "CPUExecutionProvider"
) -> MusicGenerator:
    """Check the bundle in `folder` (by default the packaged one) and load it.

    Raises:
        BundleError: the bundle is incomplete, damaged or not usable here.
    """
    return MusicGenerator(open_bundle(folder), threads, provider)


class _GraphFactory:
    """Opens the graphs of a bundle, and checks that they are what their roles say."""

    def __init__(self, bundle: Bundle, threads: int, provider: str) -> None:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        if provider in _DEVICE_PROVIDERS:
            raise BundleError(
                f"provider {provider!r}: keeps tensors in its device's memory, and the engine's caches are in the "
                "CPU's, so every step would copy them; CPUExecutionProvider is allowed"
            )
        if provider not in available:
            raise BundleError(f"provider {provider!r}: not available; this ONNX Runtime has {', '.join(available)}")
        allowed = bundle.manifest.providers
        if provider not in allowed:
            raise BundleError(f"provider {provider!r}: the bundle allows {', '.join(allowed)} (its plan's `providers`)")
        self._bundle, self._open = bundle, SessionFactory(threads, provider)
        self._is_guidance_conditioned = bundle.manifest.sampling.guidance_range is not None

    def __call__(self, role: Role) -> Session:
        path = self._bundle.path(role)
        session = self._open(path)
        inputs = _INPUTS[role] | ({"guidance"} if role == "cross" and self._is_guidance_conditioned else set())
        names = {value.name for value in session.get_inputs()}
        if lacking := inputs - names:
            why = f"it has no input {', '.join(sorted(lacking))}"
            raise BundleError(f"bundle {self._bundle.folder}: {path.name} is not a {role.replace('_', ' ')}; {why}")
        if self._open.is_older and any(value.type == "tensor(int8)" for value in session.get_inputs()):
            raise BundleError(
                f"bundle {self._bundle.folder}: {path.name} has an int8 cache{self._open.update_advice}, and this is "
                f"{self._open.version}"
            )
        if "guidance" in names - inputs:
            raise BundleError(
                f"bundle {self._bundle.folder}: {path.name} has a guidance input, and "
                f"{MANIFEST} gives no guidance_range"
            )
        return session
