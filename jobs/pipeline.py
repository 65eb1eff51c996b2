"""The pipeline: precompute → distill → quantize → evaluate → publish, as one run with steps.

Each step is a run of its own kind, and continues where it was interrupted. A step's inputs (its parts of the recipe,
weights, prompts, the previous step's artifact) have a fingerprint, under which the store caches the run that succeeded,
signed by the driver; a step whose inputs are unchanged is skipped, whichever pipeline ran it, if a trusted driver did.
`pipeline.json` in the run's folder has the states of the steps.
"""

from __future__ import annotations

import hashlib
from functools import reduce
from typing import Literal, get_args

from pydantic import Field

from jobs.launch.submit import RESUMABLE_KEYS
from jobs.registry import run_job
from jobs.release import check_release_key, publish, release_metrics
from jobs.sign_result import sign_result
from jobs.worker import mlflow
from tinymusician.artifacts.attestations import read_signed, write_signed
from tinymusician.artifacts.keys import keys_folder
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.reference import split_reference
from tinymusician.artifacts.registry import ReleaseRegistry
from tinymusician.artifacts.run_state import PipelineStep, RunResult, StepState, now
from tinymusician.artifacts.runs import RunStore
from tinymusician.config_model import Document
from tinymusician.data.prompts import load_prompts
from tinymusician.data.shards import fingerprint
from tinymusician.errors import NotFoundError, RunError, UntrustedError
from tinymusician.inputs import scheme_of
from tinymusician.json_types import JsonObject
from tinymusician.models.musicgen import local_folder
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
_STEP = "pipeline-step"
MADE: dict[Step, Step] = {"quantize": "distill", "evaluate": "quantize", "publish": "evaluate"}
"""The step whose result each step works on."""


class StepResult(Document):
    """The result of a step with a fingerprint of its inputs: run, artifact and metrics.

    `publish` is not a run; `release` is what it published.
    """

    inputs: str = ""
    run: str | None = None
    artifact: str | None = None
    release: str | None = None
    metrics: JsonObject = Field(default_factory=dict)


class Pipeline:
    """One run of the pipeline."""

    def __init__(self, run: RunStore) -> None:
        self._store, self._run = run.store, run
        self._record = run.record()
        self._recipe = parse_recipe(self._record.recipe, run.id)
        self._results: dict[Step, StepResult] = {}
        self._steps = [PipelineStep(step=step) for step in STEPS]

    def run(self) -> RunResult:
        """Run or skip every requested step; returns the model's artifact and all metrics.

        Raises:
            RunError: a step before the first requested one was never run with these inputs.
            KeyFileError: a step is to run, the last is to publish, and there is no release key here.
        """
        config = self._recipe.pipeline
        first, last = STEPS.index(config.first), STEPS.index(config.last)
        for index, step in enumerate(STEPS):
            if index > last:
                self._report(step, "NOT REQUESTED")
                continue
            inputs = self._inputs(step)
            result = self._cached(step, inputs)
            if step == "precompute" and index >= first and not self._cached("distill", self._inputs("distill")):
                result = None  # shards may have been removed since; those that exist are not made again
            if step == "precompute" and self._recipe.needs_teacher:
                result = StepResult()  # distillation would not read shards
            if result is not None:
                self._report(step, "SKIPPED", result)
            elif index < first:
                raise RunError(
                    f"--from {config.first}: {step} has not been done with this recipe; begin with --from {step}"
                )
            else:
                if config.last == "publish":
                    check_release_key(self._store)
                result = self._run_step(step, inputs)
            self._results[step] = result
        model = self._results.get("quantize") or self._results.get("distill") or StepResult()
        return RunResult(artifact=model.artifact, metrics=self._metrics())

    def _run_step(self, step: Step, inputs: JsonObject) -> StepResult:
        """Run a step, and cache its result under its inputs."""
        started = StepResult(run=None if step == "publish" else self._job_run(step, inputs).id)
        self._report(step, "RUNNING", started)
        print(f"== {step}", flush=True)
        try:
            result = self._publish() if step == "publish" else self._run_job(step, inputs)
        except BaseException:
            self._report(step, "FAILED", started)
            raise
        result = result.model_copy(update={"inputs": fingerprint(inputs)})
        write_signed(self._store, _cache_key(inputs), _STEP, result)
        self._report(step, "SUCCEEDED", result)
        return result

    def _run_job(self, step: JobStep, inputs: JsonObject) -> StepResult:
        """Run a step's job as a run of its own; an interrupted one continues."""
        run = self._job_run(step, inputs)
        recipe = self._step_recipe(step).model_dump(mode="json")
        changes = {"id": run.id, "kind": step, "recipe": recipe, "part_of": self._record.id}
        run = run.write_record(self._record.model_copy(update=changes))
        run.start()
        try:
            result = run_job(step, run)
        except BaseException as error:
            run.fail(" ".join(str(error).split())[-300:])
            raise
        assert result is not None, "a pipeline's steps run as a whole"
        sign_result(run, result)
        run.succeed(result)
        mlflow.end_run(run, "SUCCEEDED")
        return StepResult(run=run.id, artifact=result.artifact, metrics=result.metrics)

    def _job_run(self, step: JobStep, inputs: JsonObject) -> RunStore:
        """The run of a step's job."""
        return RunStore(self._store, f"{self._record.id}.{step}-{fingerprint(inputs)[:8]}")

    def _publish(self) -> StepResult:
        config, bundle = self._recipe.publish, str(self._results["quantize"].artifact)
        metrics = release_metrics(self._store, str(self._results["evaluate"].run), bundle, config.baseline)
        release = publish(ReleaseRegistry(self._store, keys_folder()), find(self._store, bundle), metrics, config)
        facts = {"release": release.reference, "version": release.version}
        return StepResult(artifact=bundle, release=release.reference, metrics=facts)

    def _step_recipe(self, step: JobStep) -> Recipe:
        """The recipe of a step's job, with the results of earlier steps as its models."""
        recipe = self._recipe
        if step in ("precompute", "distill"):
            unchanged = recipe.needs_teacher or isinstance(recipe.signals, CachedSignalsConfig)
            return recipe if unchanged else recipe.model_copy(update={"signals": CachedSignalsConfig()})
        if step == "quantize":
            model = {"model": self._results["distill"].artifact}
            return recipe.model_copy(update={"quantize": recipe.quantize.model_copy(update=model)})
        models = {"models": (recipe.publish.baseline, str(self._results["quantize"].artifact))}
        return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=models)})

    def _inputs(self, step: Step) -> JsonObject:
        """The inputs of a step: everything that its result depends on."""
        recipe = self._recipe.model_dump(mode="json")
        for section, _, field in (name.partition(".") for name in RESUMABLE_KEYS):
            del recipe[section][field]
        sections = {name: reduce(lambda part, key: part[key], name.split("."), recipe) for name in READS[step]}
        inputs: JsonObject = {"step": step, "recipe": sections}
        for model in {"teacher", "student"} & set(READS[step]):
            inputs[model] = weights_fingerprint(getattr(getattr(self._recipe, model), "model", ""))
        if "sequences" in READS[step]:
            prompts = load_prompts(self._recipe.sequences.prompts)
            inputs["prompts"] = fingerprint({"prompts": [(prompt.split, prompt.text) for prompt in prompts]})
        if step in MADE:
            made = self._results[MADE[step]]
            inputs["made_from"] = made.artifact or made.run
        if step == "evaluate":
            inputs["baseline"] = self._recipe.publish.baseline
        return inputs

    def _cached(self, step: Step, inputs: JsonObject) -> StepResult | None:
        """The result of an earlier run with the same inputs, if the store still has all of it."""
        try:
            result = read_signed(self._store, _cache_key(inputs), _STEP, StepResult)
            if result.inputs != fingerprint(inputs):
                raise UntrustedError(f"{_cache_key(inputs)}: is signed for other inputs")
            if result.artifact:
                find(self._store, result.artifact)
            if result.run:
                RunStore(self._store, result.run).record()
            if result.release:
                newest = ReleaseRegistry(self._store, keys_folder()).newest(*split_reference(result.release))
                if newest.artifact != result.artifact or newest.expires <= now():
                    return None
        except (NotFoundError, RunError):
            return None
        except UntrustedError as error:
            print(f"step {inputs['step']}: an earlier result does not count: {error}", flush=True)
            return None
        return result

    def _metrics(self) -> JsonObject:
        """The metrics of distillation, and those of the other steps by step."""
        metrics: JsonObject = dict(self._results.get("distill", StepResult()).metrics)
        metrics.update({step: result.metrics for step, result in self._results.items() if step != "distill"})
        return metrics

    def _report(self, step: Step, state: StepState, result: StepResult | None = None) -> None:
        index, made = STEPS.index(step), result or StepResult()
        self._steps[index] = PipelineStep(step=step, state=state, at=now(), run=made.run, artifact=made.artifact)
        self._run.write_pipeline(self._steps)
        self._run.report_progress(step, index + (state in ("SUCCEEDED", "SKIPPED")), len(STEPS))


def run(run: RunStore) -> RunResult:
    """The driver."""
    return Pipeline(run).run()


def weights_fingerprint(name: str) -> str:
    """A fingerprint of a model: the SHA-256 of the files in its folder; a hub id or artifact stands for itself."""
    folder = local_folder(name) if name and scheme_of(name) != "artifact" else None
    if folder is None:
        return name
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _cache_key(inputs: JsonObject) -> str:
    return f"pipeline/{fingerprint(inputs)}.json"
