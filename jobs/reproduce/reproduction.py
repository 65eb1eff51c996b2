"""Runs jobs one after the other, each once: a run is named by its content and reused when it has succeeded."""

from __future__ import annotations

import json
from collections.abc import Mapping

from jobs.cli.follow import follow
from jobs.launch.prepare import prepare
from jobs.launch.submit import submit
from jobs.registry import JobKind
from jobs.sign_result import made_by
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.run_state import ENDED
from tinymusician.artifacts.run_summary import effective_status
from tinymusician.artifacts.runs import RunStore
from tinymusician.data.shards import fingerprint
from tinymusician.errors import TinyMusicianError
from tinymusician.evaluate.results import EvaluationResult, ModelResult
from tinymusician.recipe import load_recipe

Models = Mapping[str, ModelResult]
"""The results of an evaluation's models by the labels that they were given."""


class Reproduction:
    """Jobs of one recipe on this machine; `prefix` begins the ids of their runs."""

    def __init__(self, prefix: str, recipe: str, workers: int) -> None:
        self.prefix, self.recipe, self.workers = prefix, recipe, workers

    def run(self, kind: JobKind, name: str, *overrides: str) -> RunStore:
        """A run that has succeeded: an earlier one of the same content, or a new one.

        Raises:
            TinyMusicianError: it failed.
        """
        store = open_store()
        content = load_recipe(self.recipe, overrides).model_dump(mode="json")
        digest = fingerprint({"kind": kind, "recipe": content})[:8]
        run = RunStore(store, f"{self.prefix}-{name}-{digest}")
        state = effective_status(run).state if run.exists() else None
        if state is not None and state not in ENDED:  # from an interrupted reproduction
            print(f"== {name}: {run.id} is still running", flush=True)
            state = follow(run, quiet=False)
        if state != "SUCCEEDED":
            resume = run.id if state is not None else None
            print(f"== {name}: {run.id} {kind} {' '.join(overrides)}", flush=True)
            recipe = prepare(store, kind, self.recipe, () if resume else overrides, None, resume)
            submit(store, kind, recipe, None if resume else self.workers, None, run.id, resume)
            if follow(run, quiet=False) != "SUCCEEDED":
                raise TinyMusicianError(f"{self.prefix}: {name} failed; see `tmctl logs {run.id}`, then run this again")
        return run

    def quantize(self, name: str, model: str, plan: str, *overrides: str) -> str:
        """Quantize a model; returns the bundle's reference."""
        run = self.run("quantize", name, f"quantize.model={model}", f"quantize.plan={plan}", *overrides)
        return made_by(run)

    def distill(self, name: str, *overrides: str) -> str:
        """Distil a student; returns its reference."""
        return made_by(self.run("distill", name, *overrides))

    def evaluate(self, name: str, *overrides: str, **references: str) -> tuple[RunStore, EvaluationResult]:
        """Evaluate models under the given labels; returns the run and its result."""
        models = json.dumps([f"{label}={reference}" for label, reference in references.items()])
        run = self.run("evaluate", name, f"evaluate.models={models}", *overrides)
        return run, run.report(EvaluationResult)
