"""What one model's playing costs, in a process of its own: started by the evaluation, prints one JSON object.

Usage: python -m jobs.costing '{"run": …, "store": …, "voice": …, "device": …, "prompts": […]}'
"""

from __future__ import annotations

import json
import sys

from jobs.evaluation import Evaluator
from jobs.worker import WorkerContext
from tinymusician.evaluate.cost import measure
from tinymusician.runtime.memory import reset_peak_memory


def main() -> None:
    """Open the model, play the prompts, print the cost."""
    asked = json.loads(sys.argv[1])
    evaluation = Evaluator(WorkerContext(asked["store"], asked["run"], 0, 1, asked["device"]))
    bare = reset_peak_memory()
    found = measure(evaluation.musician(asked["voice"]), asked["prompts"], evaluation.settings, bare)
    print(json.dumps(found.facts()))


if __name__ == "__main__":
    main()
