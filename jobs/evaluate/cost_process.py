"""Measures the cost of one model in a process of its own, which the evaluation starts; prints one JSON object.

Standard input is a JSON object: what `WorkerContext` needs, which is secret in part, a model and prompts.

Usage: python -m jobs.evaluate.cost_process < request.json
"""

from __future__ import annotations

import json
import sys

from jobs.evaluate.models import EvaluatedModels
from jobs.worker.context import WorkerContext
from tinymusician.artifacts.authenticated_store import WorkingKeys
from tinymusician.evaluate.inference_cost import measure
from tinymusician.runtime.memory import reset_peak_memory


def main() -> None:
    """Load the model, generate from the prompts, print the cost."""
    request = json.load(sys.stdin)
    keys = WorkingKeys(*map(bytes.fromhex, request["working_keys"])) if request["working_keys"] else None
    context = WorkerContext(request["store"], request["run"], 0, 1, request["device"], request["record"], keys)
    models = EvaluatedModels(context)
    baseline = reset_peak_memory()
    cost = measure(models.load(request["model"]), request["prompts"], models.settings, baseline)
    print(cost.model_dump_json())


if __name__ == "__main__":
    main()
