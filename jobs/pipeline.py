"""The pipeline: precompute → distill → quantize → evaluate → publish, as one run with steps.

Each step is a run of its own kind, part of the pipeline's, and goes on by itself where it was interrupted. What a step
depends on (its parts of the recipe, weights, prompts, what the step before made) has a fingerprint; under it the store
keeps which run succeeded, so a step that has nothing new to do is skipped, whichever pipeline did it. How the steps
stand is in `steps.json` of the run's folder.
"""

from __future__ import annotations

import hashlib
import json
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args

from jobs.launch.submit import RESUMABLE_KEYS
from jobs.registry import run_job
from jobs.release import publish, release_metrics
from tinymusician.artifacts.keys import keys_folder
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.open import open_store
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.release import split_reference
from tinymusician.artifacts.runs import STEPS_FILE, RunStore, now
from tinymusician.artifacts.store import Store
from tinymusician.data.prompts import load_prompts
from tinymusician.data.shards import fingerprint
from tinymusician.errors import NotFoundError, RunError
from tinymusician.models.musicgen import model_location
from tinymusician.recipe import CachedSignalsConfig, Recipe, Step, parse_recipe

STEPS: tuple[Step, ...] = get_args(Step)
JobStep = Literal["precompute", "distill", "quantize", "evaluate"]
"""The steps that are jobs; the publish step is a call."""
READS: dict[Step, tuple[str, ...]] = {
    "precompute": ("teacher", "sequences", "signals", "training.seed", "training.precision"),
    "distill": (
        "name",
        "teacher",
        "student",
        "text_encoder",
        "codec",
        "joint",
        "sequences",
        "signals",
        "hidden",
        "on_policy",
        "temperature",
        "objective",
        "training",
    ),
    "quantize": ("name", "sequences", "quantize"),
    "evaluate": ("teacher", "evaluate"),
    "publish": ("publish",),
}
"""The parts of the recipe that each step depends on."""
MADE: dict[Step, Step] = {"quantize": "distill", "evaluate": "quantize", "publish": "evaluate"}
"""The step whose result each step works on."""


class Pipeline:
    """One run of the pipeline."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._folder = store, RunStore(store, run_id)
        self._record = self._folder.record()
        self._recipe = parse_recipe(self._record.recipe, run_id)
        self._results: dict[Step, dict[str, Any]] = {}
        self._step_states: list[dict[str, Any]] = [{"step": step, "state": "PENDING"} for step in STEPS]

    def run(self) -> None:
        """Do, or skip, every step that is asked for.

        Raises:
            RunError: a step before the first one that is asked for was never done with these inputs.
        """
        config = self._recipe.pipeline
        first, last = STEPS.index(config.first), STEPS.index(config.last)
        for place, step in enumerate(STEPS):
            if place > last:
                self._report_step(step, "NOT ASKED FOR")
                continue
            inputs = self._inputs(step)
            cached = self._cached_result(step, inputs)
            if step == "precompute" and place >= first and not self._cached_result("distill", self._inputs("distill")):
                cached = None  # shards may have gone since; those that are there are not made again
            if step == "precompute" and self._recipe.needs_teacher:
                cached = {"run": None, "artifact": None, "metrics": {}}  # shards would not be read
            if cached is not None:
                self._report_step(step, "SKIPPED", cached)
            elif place < first:
                raise RunError(
                    f"--from {config.first}: {step} has not been done with this recipe; begin with --from {step}"
                )
            else:
                cached = self._done(step, inputs)
            self._results[step] = cached
        bundle = self._results.get("quantize") or self._results.get("distill") or {}
        result = {"artifact": bundle.get("artifact"), "metrics": self._metrics()}
        self._folder.store.put(self._folder.key("result.json"), json.dumps(result).encode())

    def _done(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
        """Do a step now, and write down that it is done with these inputs."""
        self._report_step(step, "RUNNING")
        print(f"== {step}", flush=True)
        try:
            result = self._publish() if step == "publish" else self._part(step, inputs)
        except BaseException:
            self._report_step(step, "FAILED")
            raise
        self._store.put(_cache_key(inputs), json.dumps(result).encode())
        self._report_step(step, "SUCCEEDED", result)
        return result

    def _part(self, step: JobStep, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run a step's job as a run of its own, which goes on if it was begun before."""
        name = f"{self._record.id}.{step}-{fingerprint(inputs)[:8]}"
        part = RunStore(self._store, name)
        content = self._content(step).model_dump(mode="json")
        changes = {"id": name, "kind": step, "recipe": content, "part_of": self._record.id}
        part.write_record(self._record.model_copy(update=changes))
        for old in ("error.txt", "refused.txt"):
            self._store.delete(part.key(old))
        part.update(state="RUNNING", started=part.status().started or now(), ended=None, message="")
        try:
            run_job(step, name)
        except BaseException as error:
            part.update(state="FAILED", ended=now(), message=" ".join(str(error).split())[-300:])
            raise
        result: dict[str, Any] = json.loads(self._store.get(part.key("result.json")))
        step_result = {"run": name, "artifact": result.get("artifact"), "metrics": result["metrics"]}
        part.update(state="SUCCEEDED", ended=now(), artifact=step_result["artifact"], metrics=step_result["metrics"])
        return step_result

    def _publish(self) -> dict[str, Any]:
        config, bundle = self._recipe.publish, str(self._results["quantize"]["artifact"])
        judged = release_metrics(self._store, self._results["evaluate"]["run"], bundle, config.baseline)
        release = publish(ReleaseRegistry(self._store, keys_folder()), find(self._store, bundle), judged, config)
        return {"run": None, "artifact": bundle, "metrics": {"release": release.reference, "version": release.version}}

    def _content(self, step: Step) -> Recipe:
        """The recipe as a step's own job reads it: on what the steps before made."""
        recipe = self._recipe
        if step in ("precompute", "distill"):
            as_it_is = recipe.needs_teacher or isinstance(recipe.signals, CachedSignalsConfig)
            return recipe if as_it_is else recipe.model_copy(update={"signals": CachedSignalsConfig()})
        if step == "quantize":
            model = {"model": self._results["distill"]["artifact"]}
            return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update=model)})
        models = {"models": (recipe.publish.baseline, str(self._results["quantize"]["artifact"]))}
        return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=models)})

    def _inputs(self, step: Step) -> dict[str, Any]:
        """Everything that a step depends on."""
        recipe = self._recipe.model_dump(mode="json")
        for part, _, field in (name.partition(".") for name in RESUMABLE_KEYS):
            del recipe[part][field]
        parts = {name: reduce(lambda part, key: part[key], name.split("."), recipe) for name in READS[step]}
        inputs: dict[str, Any] = {"step": step, "recipe": parts}
        for model in {"teacher", "student"} & set(READS[step]):
            inputs[model] = weights_fingerprint(getattr(getattr(self._recipe, model), "model", ""))
        if "sequences" in READS[step]:
            prompts = load_prompts(self._recipe.sequences.prompts)
            inputs["prompts"] = fingerprint({"prompts": [(prompt.split, prompt.text) for prompt in prompts]})
        if step in MADE:
            made = self._results[MADE[step]]
            inputs["made_from"] = made["artifact"] or made["run"]
        if step == "evaluate":
            inputs["baseline"] = self._recipe.publish.baseline
        return inputs

    def _cached_result(self, step: Step, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """What an earlier run made of the same inputs, if the store still has it, and devices still see it."""
        try:
            cached: dict[str, Any] = json.loads(self._store.get(_cache_key(inputs)))
            if cached["artifact"]:
                find(self._store, cached["artifact"])
            if cached["run"]:
                RunStore(self._store, cached["run"]).record()
            if step == "publish":
                newest = ReleaseRegistry(self._store, keys_folder()).newest(
                    *split_reference(cached["metrics"]["release"])
                )
                if newest.artifact != cached["artifact"] or newest.expires <= now():
                    return None
        except (NotFoundError, RunError):
            return None
        return cached

    def _metrics(self) -> dict[str, Any]:
        """What the steps say of themselves, the figures of the distillation first, as scripts know them."""
        metrics = {step: result["metrics"] for step, result in self._results.items() if step != "distill"}
        return {**self._results.get("distill", {}).get("metrics", {}), **metrics}

    def _report_step(self, step: Step, state: str, result: dict[str, Any] | None = None) -> None:
        place = STEPS.index(step)
        facts = {"run": result["run"], "artifact": result["artifact"]} if result else {}
        self._step_states[place] = {"step": step, "state": state, "at": now().isoformat(), **facts}
        self._store.put(self._folder.key(STEPS_FILE), json.dumps(self._step_states, indent=2).encode())
        self._folder.tell(step, place + (state in ("SUCCEEDED", "SKIPPED")), len(STEPS))


def run(run_id: str) -> None:
    """The driver."""
    Pipeline(open_store(), run_id).run()


def weights_fingerprint(name: str) -> str:
    """What tells one model's files from another's: the SHA-256 of all in its folder; a hub id is taken at its word."""
    folder = Path(model_location(name)) if name else None
    if folder is None or not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _cache_key(inputs: dict[str, Any]) -> str:
    return f"pipeline/{fingerprint(inputs)}.json"
