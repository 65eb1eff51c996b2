"""Continuous batching: requests join and leave the running batch at any step, each with its own position and seed.

`Engine.start`, `Engine.step` and `RequestState.cancel` are thread-safe; steps run one at a time. A guided request
occupies two rows of the batch (with and without text); an unguided one, or one of a model that was distilled with its
guidance, occupies one.
"""

from __future__ import annotations

import enum
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tinymusician.codebooks import delay
from tinymusician.errors import EngineError, RequestError
from tinymusician.runtime.decoder import BatchSlot, CrossAttentionKV, Decoder
from tinymusician.runtime.errors import as_engine_error
from tinymusician.runtime.sampling import Logits, SamplingParams, check_integer, check_real, draw, guide, random_stream

Codes = npt.NDArray[np.int64]
_logger = logging.getLogger(__name__)
_numbers = itertools.count()
_DEFAULT_MAX_ROWS = 16


@dataclass(frozen=True)
class EngineRequest:
    """A request of one window.

    `text` and `uncond` are what the two passes attend to; `uncond` is None where one pass suffices. `prefix` [K, P] are
    codes to continue; they count among the `frames`. The random numbers depend on `seed` and `window` only.

    Raises:
        RequestError: guidance or seed is not allowed.
    """

    text: CrossAttentionKV
    uncond: CrossAttentionKV | None
    frames: int
    seed: int
    guidance: float = 3.0
    sampling: SamplingParams = field(default_factory=SamplingParams)
    prefix: Codes | None = None
    window: int = 0

    def __post_init__(self) -> None:
        check_real("guidance", self.guidance, lambda scale: 0 <= scale <= 1000, "0 to 1000")
        check_integer("seed", self.seed, "a whole number, 0 or more,")


class RequestStatus(enum.Enum):
    """The state of a request: WAITING → RUNNING → FINISHED; CANCELLED or FAILED at any time before that."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()
    CANCELLED = enum.auto()
    FAILED = enum.auto()

    @property
    def is_final(self) -> bool:
        """Whether no other state follows."""
        return self in (RequestStatus.FINISHED, RequestStatus.CANCELLED, RequestStatus.FAILED)


class RequestState:
    """A request in the engine: its codes so far, its rows, its status and its error."""

    def __init__(
        self, request: EngineRequest, num_codebooks: int, pad: int, cancel: Callable[[RequestState], None]
    ) -> None:
        """`cancel` takes a request that has not ended out of its engine."""
        self._cancel = cancel
        frames = request.frames
        self.request, self.id = request, next(_numbers)
        self.status = RequestStatus.WAITING
        self.error: EngineError | None = None
        self._status_lock = threading.Lock()
        self.rows: list[BatchSlot] = []
        self._random = random_stream(request.seed, request.window)
        self._num_codebooks, self._pad = num_codebooks, pad
        self._delayed = np.full((num_codebooks, frames + num_codebooks - 1), pad, np.int64)
        self._given = 0
        self.steps_done = 0
        if request.prefix is not None:
            self._given = request.prefix.shape[1]
            prefix = delay(request.prefix[None], pad)[0]
            self._delayed[:, : prefix.shape[1]] = prefix

    @property
    def steps(self) -> int:
        """The number of steps of the whole request."""
        return self._delayed.shape[1]

    @property
    def is_finished(self) -> bool:
        """Whether no more codes will come: the request is complete, cancelled or failed."""
        return self.status.is_final

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
        """Cancel the request: it leaves the queue at once, its rows at the next step. A finished one stays finished."""
        self._cancel(self)

    def fail(self, error: EngineError) -> None:
        """End the request with an error, unless it has ended."""
        self.transition(RequestStatus.FAILED, error)

    def transition(self, status: RequestStatus, error: EngineError | None = None) -> None:
        """Change the status, and log it; a final one stays, whichever thread is later."""
        with self._status_lock:
            if self.is_finished:
                return
            _logger.debug("request %d: %s -> %s at step %d", self.id, self.status.name, status.name, self.steps_done)
            self.error = error
            self.status = status

    def last_codes(self) -> npt.NDArray[np.int64]:
        """The codes [K] of the previous step, which the next step reads."""
        if self.steps_done == 0:
            return np.full(self._num_codebooks, self._pad, np.int64)
        return self._delayed[:, self.steps_done - 1]

    def guided_logits(self, logits: Logits) -> Logits:
        """The logits [K, V] that this step's codes are drawn from, given those of its rows, [passes, K, V]."""
        return guide(logits[0], logits[1], self.request.guidance) if len(logits) == 2 else logits[0]

    def uniforms(self) -> npt.NDArray[np.float64]:
        """The random numbers [K] of this step, uniform in [0, 1)."""
        return self._random.random(self._num_codebooks)

    def append(self, drawn: Codes) -> None:
        """Append the codes [K] of this step, except where they are given or lie outside the delay pattern."""
        step, codebooks = self.steps_done, np.arange(self._num_codebooks)
        frame = step - codebooks
        is_free = (frame >= self._given) & (frame < self.request.frames)
        self._delayed[is_free, step] = drawn[is_free]
        self.steps_done += 1
        if self.steps_done == self.steps and not self.is_finished:
            self.transition(RequestStatus.FINISHED)


class Engine:
    """Continuous batching over one decoder; requests that do not fit wait, first come first served."""

    def __init__(self, decoder: Decoder, positions: int) -> None:
        """`positions` is the decoder's number of positions. `max_rows`, the maximum batch size in rows, can be set."""
        self._decoder, self._positions, self.max_rows = decoder, positions, _DEFAULT_MAX_ROWS
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._lock = threading.Lock()
        self._step_lock = threading.Lock()

    @property
    def num_codebooks(self) -> int:
        """The decoder's number of codebooks."""
        return self._decoder.num_codebooks

    @property
    def rows(self) -> int:
        """The number of rows in the batch."""
        return self._decoder.rows

    @property
    def waiting(self) -> int:
        """The number of requests that wait for rows."""
        with self._lock:
            return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether no request runs or waits."""
        with self._lock:
            return not self._waiting and not self._running

    def start(self, request: EngineRequest) -> RequestState:
        """Queue a request; it joins the batch at the next step that has room.

        Raises:
            RequestError: its length does not fit the decoder.
        """
        num_codebooks = self._decoder.num_codebooks
        given = 0 if request.prefix is None else request.prefix.shape[1]
        longest = self._positions - num_codebooks + 1
        if not given < request.frames <= longest:
            raise RequestError(f"frames {request.frames}: allowed are {given + 1} to {longest} at once")
        state = RequestState(request, num_codebooks, self._decoder.vocabulary, self._cancel)
        with self._lock:
            self._waiting.append(state)
        return state

    def step(self) -> None:
        """Advance every running request by one step, after freeing finished ones and admitting waiting ones.

        An error of the decoder fails the running requests; later ones may succeed.
        """
        with self._step_lock:
            self._free_finished()
            self._admit()
            if self._running:
                try:
                    self._advance()
                except Exception as error:  # out of memory, or an error of ONNX Runtime
                    self._fail_all(error)
            self._free_finished()

    def reap(self) -> None:
        """Free the rows of cancelled requests without a step."""
        with self._step_lock:
            self._free_finished()

    def run(self, state: RequestState) -> None:
        """Step until this request is finished."""
        while not state.is_finished:
            self.step()

    def _advance(self) -> None:
        columns: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * self._decoder.rows
        for state in self._running:
            for row in state.rows:
                columns[row.index] = state.last_codes()
        logits = self._decoder.step(np.stack(columns))
        by_sampling: dict[SamplingParams, list[RequestState]] = {}
        for state in self._running:
            by_sampling.setdefault(state.request.sampling, []).append(state)
        for sampling, states in by_sampling.items():
            guided = np.stack([one.guided_logits(logits[[row.index for row in one.rows]]) for one in states])
            drawn = draw(guided, np.stack([one.uniforms() for one in states]), sampling)
            finite = [bool(np.isfinite(one).all()) for one in guided]
            for state, codes, is_finite in zip(states, drawn, finite, strict=True):
                if is_finite:
                    state.append(codes)
                else:
                    problem = f"the decoder's logits are not finite at step {state.steps_done}"
                    state.fail(EngineError(f"{problem}: the bundle is not usable here"))

    def _cancel(self, state: RequestState) -> None:
        with self._lock:  # no request is admitted meanwhile
            if not state.is_finished:
                state.transition(RequestStatus.CANCELLED)
            if state in self._waiting:
                self._waiting.remove(state)

    def _fail_all(self, error: Exception) -> None:
        for state in self._running:
            state.rows = []
            if not state.is_finished:
                state.fail(as_engine_error("the decoder", error))
        self._running.clear()
        self._decoder.clear()

    def _free_finished(self) -> None:
        for state in [one for one in self._running if one.is_finished]:
            self._running.remove(state)
            for row in state.rows:
                self._decoder.remove(row)
            state.rows = []

    def _admit(self) -> None:
        with self._lock:
            while self._waiting:
                state = self._waiting[0]
                request = state.request
                texts = [request.text] if request.uncond is None else [request.text, request.uncond]
                if self._decoder.rows and self._decoder.rows + len(texts) > self.max_rows:
                    return
                self._waiting.popleft()
                try:
                    state.rows = self._decoder.add(texts, state.steps)
                    state.transition(RequestStatus.RUNNING)
                    self._running.append(state)
                except Exception as error:  # out of memory: the running requests continue
                    state.fail(as_engine_error("a new request", error))
