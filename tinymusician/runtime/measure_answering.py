"""Measures loading a bundle that answers questions, and its answers about one window of noise, in a process of its own.

Usage: python -m tinymusician.runtime.measure_answering FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tinymusician.config_model import Document
from tinymusician.runtime.measurement_process import run_measurement

_QUESTION = "Which instrument plays?"


class AnsweringCost(Document):
    """The cost of questions about one window, without the start of Python: times in seconds, the process's peak memory.

    `question_seconds` is a question with two options, about audio that nothing was asked about before.
    """

    load_seconds: float
    question_seconds: float
    peak_memory_bytes: int


def measure_answering(folder: Path) -> AnsweringCost:
    """Load the bundle in `folder` in a new process, and ask it.

    Raises:
        EngineError: the process failed.
    """
    return AnsweringCost.model_validate_json(run_measurement(__name__, str(folder)))


def main() -> None:
    """Measure in this process, and print the cost as JSON."""
    import numpy as np

    from tinymusician.runtime.memory import peak_memory
    from tinymusician.runtime.question_answerer import QuestionAnswerer

    (folder,) = sys.argv[1:]
    began = time.monotonic()
    answerer = QuestionAnswerer(Path(folder))
    loaded = time.monotonic()
    samples = round(answerer.shape.window_seconds * answerer.shape.sampling_rate)
    noise = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    answerer.ask(answerer.read(noise), _QUESTION, ("flute", "fiddle"))
    answered = time.monotonic()
    if answerer.manifest.questions:
        answerer.ask_all(answerer.read(noise))
    cost = AnsweringCost(
        load_seconds=round(loaded - began, 3),
        question_seconds=round(answered - loaded, 3),
        peak_memory_bytes=peak_memory(),
    )
    sys.stdout.write(cost.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
