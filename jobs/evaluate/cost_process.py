"""What one model's playing costs, in a process of its own: started by the evaluation, prints one JSON object.

Usage: python -m jobs.evaluate.cost_process '{"run": …, "store": …, "voice": …, "device": …, "prompts": […]}'
"""

from __future__ import annotations

import json
import sys

from jobs.evaluate.evaluator import Evaluator
from jobs.worker.context import WorkerContext
from tinymusician.evaluate.inference_cost import measure
from tinymusician.runtime.memory import reset_peak_memory


def main() -> None:
    """Open the model, play the prompts, print the cost."""
    request = json.loads(sys.argv[1])
    evaluation = Evaluator(WorkerContext(request["store"], request["run"], 0, 1, request["device"]))
    bare = reset_peak_memory()
    cost = measure(evaluation.generator(request["voice"]), request["prompts"], evaluation.settings, bare)
    print(json.dumps(cost.facts()))


if __name__ == "__main__":
    main()
