"""Measures loading a bundle and generating one clip with it, in a process of its own.

Usage: python -m tinymusician.runtime.measure_playback FOLDER PROMPT
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tinymusician.runtime.measurement_process import run_measurement
from tinymusician.runtime.playback_cost import PlaybackCost


def measure_playback(folder: Path, prompt: str) -> PlaybackCost:
    """Load the bundle in `folder` in a new process, and generate a clip of the bundle's default length.

    Raises:
        EngineError: the process failed.
    """
    return PlaybackCost.model_validate_json(run_measurement(__name__, str(folder), prompt))


def main() -> None:
    """Measure in this process, and print the cost as JSON."""
    from tinymusician.runtime.generator import GenerationRequest, load_generator
    from tinymusician.runtime.memory import peak_memory

    folder, prompt = sys.argv[1:]
    began = time.monotonic()
    generator = load_generator(Path(folder))
    loaded = time.monotonic()
    samples = generator.generate(GenerationRequest(prompt))
    took, seconds = time.monotonic() - loaded, len(samples) / generator.codec.shape.sampling_rate
    cost = PlaybackCost(
        seconds=seconds,
        load_seconds=round(loaded - began, 3),
        generate_seconds=round(took, 3),
        real_time_factor=round(took / seconds, 3),
        peak_memory_bytes=peak_memory(),
    )
    sys.stdout.write(cost.model_dump_json() + "\n")


if __name__ == "__main__":
    main()
