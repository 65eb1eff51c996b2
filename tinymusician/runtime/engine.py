"""The engine: requests join and leave a running batch at any step, each at its own position and with its own numbers.

`start`, `step` and `Generation.cancel` may be called from any thread; steps take turns. A guided request holds two rows
of the batch (with and without text), an unguided one, or one whose guidance is in the weights, holds one.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tinymusician.codebooks import delay
from tinymusician.errors import EngineError, RequestError
from tinymusician.runtime.decoder import BatchSlot, CrossAttentionKV, Decoder
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.sampling import Logits, SamplingParams, draw, guide, numbers_of

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EngineRequest:
    """What is to be played.

    `text` and `without` are what the two passes attend to; `without` is None where one pass suffices. `prefix` [K, P]
    are codes to go on from; they are part of the `frames` that come out. `seed` alone decides the random numbers; every
    `window` of a longer piece has its own.
    """

    text: CrossAttentionKV
    without: CrossAttentionKV | None
    frames: int
    seed: int
    guidance: float = 3.0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    prefix: Codes | None = None
    window: int = 0


class RequestState:
    """A request on its way through the engine."""

    def __init__(self, request: EngineRequest, num_codebooks: int, pad: int) -> None:
        frames = request.frames
        self.request = request
        self.error: EngineError | None = None
        self.cancelled = False
        self.rows: list[BatchSlot] = []
        self._random = numbers_of(request.seed, request.window)
        self._num_codebooks, self._pad = num_codebooks, pad
        self._delayed = np.full((num_codebooks, frames + num_codebooks - 1), pad, np.int64)
        self._given = 0
        self.steps_done = 0
        if request.prefix is not None:
            self._given = request.prefix.shape[1]
            begun = delay(request.prefix[None], pad)[0]
            self._delayed[:, : begun.shape[1]] = begun

    @property
    def steps(self) -> int:
        """How many steps it takes."""
        return self._delayed.shape[1]

    @property
    def finished(self) -> bool:
        """Whether nothing more will come: it is complete, was cancelled or failed."""
        return self.steps_done == self.steps or self.failed

    @property
    def failed(self) -> bool:
        """Whether it ended before it was complete: it was cancelled, or something went wrong."""
        return self.cancelled or self.error is not None

    @property
    def frames_ready(self) -> int:
        """How many frames have all their codes."""
        return max(0, self.steps_done - self._num_codebooks + 1)

    @property
    def codes(self) -> Codes:
        """The frames that are ready, [K, T]."""
        ready = self.frames_ready
        return np.stack([self._delayed[k, k : k + ready] for k in range(self._num_codebooks)])

    def cancel(self) -> None:
        """Give up; its rows are free at the next step."""
        self.cancelled = True

    def column(self) -> npt.NDArray[np.int64]:
        """The codes [K] that the next step reads: those of the step before."""
        if self.steps_done == 0:
            return np.full(self._num_codebooks, self._pad, np.int64)
        return self._delayed[:, self.steps_done - 1]

    def scores(self, logits: Logits) -> Logits:
        """What the codes [K] of this step are drawn from, [K, V], out of the logits [passes, K, V] of its rows."""
        return guide(logits[0], logits[1], self.request.guidance) if len(logits) == 2 else logits[0]

    def numbers(self) -> npt.NDArray[np.float64]:
        """The random numbers [K] of this step."""
        return self._random.random(self._num_codebooks)

    def take(self, drawn: Codes) -> None:
        """Keep the codes [K] of this step, where they are not given or outside the pattern."""
        step, codebooks = self.steps_done, np.arange(self._num_codebooks)
        frame = step - codebooks
        open_ = (frame >= self._given) & (frame < self.request.frames)
        self._delayed[open_, step] = drawn[open_]
        self.steps_done += 1


class Engine:
    """Continuous batching over one decoder."""

    def __init__(self, decoder: Decoder, positions: int, most_rows: int = 16) -> None:
        """At most `most_rows` rows are in the batch; further requests wait for their turn, first come first served."""
        self._decoder, self._positions, self.most_rows = decoder, positions, most_rows
        self._waiting: deque[RequestState] = deque()
        self._playing: list[RequestState] = []
        self._lock = threading.Lock()
        self._stepping = threading.Lock()

    @property
    def num_codebooks(self) -> int:
        """The decoder's codebooks."""
        return self._decoder.num_codebooks

    @property
    def rows(self) -> int:
        """How many rows are in the batch."""
        return self._decoder.rows

    @property
    def waiting(self) -> int:
        """How many generations wait for rows."""
        with self._lock:
            return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        with self._lock:
            return not self._waiting and not self._playing

    def start(self, request: EngineRequest) -> RequestState:
        """Let a request join at the next step.

        Raises:
            RequestError: its length does not fit the decoder.
        """
        num_codebooks = self._decoder.num_codebooks
        given = 0 if request.prefix is None else request.prefix.shape[1]
        if not given < request.frames <= self._positions - num_codebooks + 1:
            raise RequestError(
                f"frames {request.frames}: allowed are {given + 1} to {self._positions - num_codebooks + 1} at once"
            )
        generation = RequestState(request, num_codebooks, self._decoder.vocabulary)
        with self._lock:
            self._waiting.append(generation)
        return generation

    def step(self) -> None:
        """One step of every generation in the batch, after those that are done have left and others have joined.

        What goes wrong in the decoder ends the generations in the batch, each with its `error`; later ones may play.
        """
        with self._stepping:
            self._leave()
            self._join()
            if self._playing:
                try:
                    self._advance()
                except Exception as error:  # memory, or one of ONNX Runtime's own kinds
                    self._fail(error)
            self._leave()

    def sweep(self) -> None:
        """Free the rows of what was cancelled, without a step of the others."""
        with self._stepping:
            self._leave()

    def _advance(self) -> None:
        columns: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * self._decoder.rows
        for generation in self._playing:
            for row in generation.rows:
                columns[row.index] = generation.column()
        logits = self._decoder.step(np.stack(columns))
        alike: dict[SamplingParams, list[RequestState]] = {}
        for generation in self._playing:
            alike.setdefault(generation.request.sampling, []).append(generation)
        for sampling, generations in alike.items():
            scores = np.stack([one.scores(logits[[row.index for row in one.rows]]) for one in generations])
            drawn = draw(scores, np.stack([one.numbers() for one in generations]), sampling)
            finite = [bool(np.isfinite(one).all()) for one in scores]
            for generation, codes, usable in zip(generations, drawn, finite, strict=True):
                if usable:
                    generation.take(codes)
                else:
                    generation.error = EngineError(
                        f"the decoder gave no finite numbers at step {generation.steps_done}: the bundle is not usable "
                        f"here"
                    )

    def _fail(self, error: Exception) -> None:
        for generation in self._playing:
            generation.error, generation.rows = as_engine_error("the decoder", error), []
        self._playing.clear()
        self._decoder.clear()

    def run(self, generation: RequestState) -> None:
        """Step until this one is finished."""
        while not generation.finished:
            self.step()

    def _leave(self) -> None:
        for generation in [g for g in self._playing if g.finished]:
            self._playing.remove(generation)
            for row in generation.rows:
                self._decoder.remove(row)
            generation.rows = []

    def _join(self) -> None:
        with self._lock:
            while self._waiting:
                generation = self._waiting[0]
                request = generation.request
                texts = [request.text] if request.without is None else [request.text, request.without]
                if self._decoder.rows and self._decoder.rows + len(texts) > self.most_rows:
                    return
                self._waiting.popleft()
                if generation.cancelled:
                    continue
                try:
                    generation.rows = self._decoder.add(texts, generation.steps)
                    self._playing.append(generation)
                except Exception as error:  # memory: those that play go on
                    generation.error = as_engine_error("a new request", error)
