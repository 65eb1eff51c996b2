"""What each worker of a quantization loads: the model, its float32 graphs, sequences, and cached measurements."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.worker.context import WorkerContext
from jobs.worker.model_refs import check_guidance
from tinymusician.artifacts.manifest import find
from tinymusician.artifacts.store import DAY
from tinymusician.data.prompts import load_prompts, texts_of
from tinymusician.data.shards import Arrays, ShardCache, fingerprint, make_missing, read_arrays
from tinymusician.data.splits import Split
from tinymusician.errors import RecipeError
from tinymusician.inputs import scheme_of
from tinymusician.json_types import JsonObject
from tinymusician.models.licence import inherited_licence
from tinymusician.quantize.adaptive import PlanEvaluator, PlanMetrics, alone, trials
from tinymusician.quantize.export import GRAPHS_VERSION
from tinymusician.quantize.package import describe
from tinymusician.quantize.precision import PLANS, PrecisionPlan, packaged_plan
from tinymusician.recipe import QuantizeConfig
from tinymusician.runtime.bundle import Bundle
from tinymusician.runtime.bundle_manifest import Architecture, BundleManifest, SamplingDefaults
from tinymusician.runtime.generator import MusicGenerator
from tinymusician.runtime.rollout import ForcedBatch
from tinymusician.settings import Precision

_COMPARED_PLANS = (
    ("int8-rtn", "int8", "rtn", True),
    ("int4-rtn", "int4", "rtn", True),
    ("int4-rtn-asymmetric", "int4", "rtn", False),
    ("int4-hqq", "int4", "hqq", False),
)
"""Whole plans that the report compares: name, precision, method, symmetric."""


@dataclass(frozen=True)
class PlanTrial:
    """A plan to measure: one group alone in one precision, a candidate, or a plan for comparison in the report."""

    plan: PrecisionPlan
    group: tuple[str, Precision] | None = None
    chosen: bool = False

    @property
    def name(self) -> str:
        """Its name in the log."""
        return self.plan.name if self.group is None else " in ".join(self.group)


class QuantizationWorkspace:
    """The model, its float32 graphs, and the sequences to measure on."""

    def __init__(self, context: WorkerContext) -> None:
        from tinymusician.models.guidance import plays_in_one_pass, range_of
        from tinymusician.models.musicgen import load_musicgen, load_tokenizer
        from tinymusician.models.prune_layers import check_codec, weights_digest

        self.context, self.recipe, self.config = context, context.recipe, context.recipe.quantize
        assert self.config.model is not None
        self.name, is_artifact = self.config.model, scheme_of(self.config.model) == "artifact"
        self.artifact = find(context.run.store, self.name) if is_artifact else None
        self.model, self.tokenizer = load_musicgen(self.name), load_tokenizer(self.name)
        check_codec(self.model, f"model {self.config.model}")
        self.digest = weights_digest(self.model)
        self.one_pass = plays_in_one_pass(self.model)
        self.guidance_range = range_of(self.model)
        if self.guidance_range is not None:
            check_guidance_input(self.config, self.recipe.teacher.guidance_scale, self.guidance_range)
        self.exported = self._export()

    @cached_property
    def architecture(self) -> Architecture:
        """The dimensions of the model that the engine needs."""
        from tinymusician.quantize.export import architecture_of

        return architecture_of(self.model, self.tokenizer.model_max_length)

    @cached_property
    def manifest(self) -> BundleManifest:
        """The manifest of the float32 graphs, as far as the engine needs it."""
        facts: JsonObject = {"licence": "", "minimum_memory": 0, "parity": {}, "cost": {}, "lineage": {}}
        return describe(self.exported, self.recipe.name, self.architecture, self.defaults(), **facts)

    def defaults(self) -> SamplingDefaults:
        """The defaults of a request: the recipe's sampling settings of the teacher."""
        teacher = self.recipe.teacher
        return SamplingDefaults(
            guidance=teacher.guidance_scale if self.guidance_range or not self.one_pass else 1.0,
            temperature=teacher.temperature,
            top_k=teacher.top_k,
            seconds=self.recipe.sequences.seconds,
            one_pass=self.one_pass,
            guidance_range=self.guidance_range,
        )

    def float32_generator(self) -> MusicGenerator:
        """The float32 graphs, ready to run."""
        return MusicGenerator(Bundle(self.exported, self.manifest), self.context.threads)

    def sequences(self, split: Split, count: int, seconds: float | None) -> ForcedBatch:
        """The model's own samples for prompts of one split, from the store or sampled now.

        `seconds` None is the maximum length.
        """
        from tinymusician.distill.guidance_scales import evenly_spaced_scales

        shape = self.manifest.architecture
        max_frames = shape.window if seconds is None else round(seconds * shape.sampling_rate / shape.hop)
        frames = min(shape.window, max_frames)
        texts = texts_of(load_prompts(self.recipe.sequences.prompts), split)[:count]
        scales = evenly_spaced_scales(self.guidance_range, len(texts)) if self.guidance_range else None
        guidance = 1.0 if self.one_pass else self.recipe.teacher.guidance_scale
        facts = {"model": self.digest, "texts": texts, "frames": frames, "guidance": scales or guidance}
        facts |= {"top_k": self.recipe.teacher.top_k, "seed": self.recipe.training.seed}
        facts |= {"temperature": self.recipe.teacher.temperature, "graphs": self.exported.name}
        shards = ShardCache(self.context.run.store, "rollouts", facts, 1)

        def make(_: int) -> Arrays:
            return {"codes": self._sample(texts, frames, guidance, scales)}

        make_missing(shards, make, 0, 1, lambda index: None)
        codes = read_arrays(shards.fetch(0, self.context.cache))["codes"]
        return ForcedBatch(texts, codes, not self.one_pass, scales, guidance)

    def trials(self, evaluator: PlanEvaluator) -> list[PlanTrial]:
        """Everything to measure: the plans that the report compares, and every group alone for `adaptive`."""
        base = self.base_plan()
        compared = [packaged_plan(name) for name in PLANS if name != "float32"]
        compared += [
            base.model_copy(update={"name": name, "default": default, "method": method, "symmetric": symmetric})
            for name, default, method, symmetric in _COMPARED_PLANS
        ]
        result = [PlanTrial(plan) for plan in compared]
        if self.config.plan == "adaptive":
            pairs = trials(list(evaluator.groups), self.config.precisions)
            result += [PlanTrial(alone(group, precision, base), (group, precision)) for group, precision in pairs]
        return result

    @property
    def licence(self) -> str:
        """The model's licence."""
        return inherited_licence([self.name])

    def lineage(self) -> JsonObject:
        """The origin of a bundle."""
        from tinymusician.models.musicgen import model_commit

        record = self.context.record
        return {
            "run": record.id,
            "model": self.config.model,
            "model_sha256": self.digest,
            "model_commit": None if self.artifact else model_commit(str(self.config.model)),
            "versions": record.versions,
            "git": record.git,
            "seeds": record.seeds,
        }

    def base_plan(self) -> PrecisionPlan:
        """The recipe's rounding method, with every group in float32."""
        config = self.config
        return PrecisionPlan(
            name="float32",
            block_size=config.block_size,
            symmetric=config.symmetric,
            method=config.method,
            cache=config.cache,
            uniform_int8=False,
        )

    def measure(self, evaluator: PlanEvaluator, trials: list[PlanTrial]) -> None:
        """Measure the trials that the store has no metrics of."""
        for trial in trials:
            cache = self._cache_of(evaluator.sequences, trial.plan)
            if cache.missing():
                cache.write(0, _to_arrays(self._outcome(evaluator, trial)))
                print(f"measured {trial.name}", flush=True)

    def measure_or_load(self, evaluator: PlanEvaluator, trials: list[PlanTrial]) -> list[PlanMetrics | None]:
        """The metrics of every trial; None for a plan that is not possible for this model."""
        self.measure(evaluator, trials)
        caches = [self._cache_of(evaluator.sequences, trial.plan) for trial in trials]
        return [_from_arrays(read_arrays(shard.fetch(0, self.context.cache))) for shard in caches]

    def measure_chosen(self, evaluator: PlanEvaluator, plan: PrecisionPlan) -> PlanMetrics:
        """The metrics of a plan that must be possible."""
        (metrics,) = self.measure_or_load(evaluator, [PlanTrial(plan, chosen=True)])
        assert metrics is not None, "an impossible plan that was chosen raises an error"
        return metrics

    def _outcome(self, evaluator: PlanEvaluator, trial: PlanTrial) -> PlanMetrics | None:
        """The metrics of a trial; None if its plan is only compared, and is not possible."""
        try:
            return evaluator.measure(trial.plan)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever a quantizer meets in a graph of another size or shape
            if trial.group is not None or trial.chosen:
                raise
            print(f"plan {trial.name} is not possible here: {' '.join(str(error).split())[:200]}", flush=True)
            return None

    def _cache_of(self, sequences: ForcedBatch, plan: PrecisionPlan) -> ShardCache:
        """The cache of a plan's metrics for this model."""
        codes = fingerprint({"codes": sequences.codes.tolist(), "null": sequences.null, "guidance": sequences.guidance})
        content = plan.model_dump(mode="json", exclude={"name", "note", "providers"})
        facts = {"model": self.digest, "sequences": codes, "plan": content, "graphs": self.exported.name}
        facts |= {"onnxruntime": metadata.version("onnxruntime")}
        return ShardCache(self.context.run.store, "outcomes", facts, 1)

    def _export(self) -> Path:
        """Export the float32 graphs, once per machine; the folder is complete as soon as it has its final name."""
        from tinymusician.quantize.export import export_fused

        tokens = self.tokenizer.backend_tokenizer.to_str()
        config = without_paths(self.model.config.to_dict())
        facts: dict[str, object] = {"weights": self.digest, "config": config, "tokenizer": tokens}
        facts |= {"encoder": self.config.continuation, "graphs": GRAPHS_VERSION}
        folder = self.context.cache / "exports" / fingerprint(json.loads(json.dumps(facts, default=str)))
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_stale_scratch(folder.parent)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                tokenizer = Path(scratch) / "tokenizer.json"
                self.tokenizer.backend_tokenizer.save(str(tokenizer))
                export_fused(self.model, tokenizer, Path(scratch) / "graphs", self.config.continuation)
                try:
                    os.rename(Path(scratch) / "graphs", folder)
                except OSError:  # another worker of this machine was first
                    shutil.rmtree(Path(scratch) / "graphs")
        return folder

    def _sample(
        self, texts: list[str], frames: int, guidance: float, scales: tuple[float, ...] | None
    ) -> npt.NDArray[np.int64]:
        """Codes [N, K, T], sampled by the engine from the float32 graphs in one batch; `scales` are of guidance."""
        from tinymusician.runtime.engine import EngineRequest
        from tinymusician.runtime.sampling import SamplingParams

        generator, top_k = self.float32_generator(), self.recipe.teacher.top_k
        uncond = None if guidance == 1 else generator.text.null()
        sampling, first = SamplingParams(self.recipe.teacher.temperature, top_k), self.recipe.training.seed
        attended = [generator.text(*pair) for pair in zip(texts, scales or [None] * len(texts), strict=True)]
        generations = [
            generator.engine.start(EngineRequest(text, uncond, frames, seed, guidance, sampling))
            for seed, text in enumerate(attended, first)
        ]
        while not all(generation.is_finished for generation in generations):
            generator.engine.step()
        for generation in generations:
            if generation.error is not None:
                raise generation.error
        return np.stack([generation.codes for generation in generations])


def check_guidance_input(config: QuantizeConfig, guidance: float, range_: tuple[float, float]) -> None:
    """A guidance-conditioned student needs the fused format, and a default guidance within its range.

    Raises:
        RecipeError: another format, or a default guidance outside its range.
    """
    if config.format != "fused":
        raise RecipeError(
            f"quantize.format = {config.format}: has no guidance input, which {config.model} needs; allowed is fused"
        )
    check_guidance(str(config.model), guidance, range_)


def without_paths(config: JsonObject) -> JsonObject:
    """A model's configuration without the paths that its components were loaded from."""
    cleaned = {key: value for key, value in config.items() if key != "_name_or_path"}
    return {key: without_paths(value) if isinstance(value, dict) else value for key, value in cleaned.items()}


def remove_stale_scratch(folder: Path) -> None:
    """Remove temporary folders of killed workers that are more than a day old."""
    for stale in folder.glob(f"{tempfile.gettempprefix()}*"):
        if time.time() - stale.stat().st_mtime > DAY:
            shutil.rmtree(stale, ignore_errors=True)


def _to_arrays(metrics: PlanMetrics | None) -> Arrays:
    if metrics is None:
        return {"size": np.zeros(0, np.int64)}
    values = {"size": [metrics.size], "kl": metrics.by_codebook, "codec_snr": [metrics.codec_snr]}
    return {name: np.array(value) for name, value in values.items()}


def _from_arrays(arrays: Arrays) -> PlanMetrics | None:
    if len(arrays["size"]) == 0:
        return None
    return PlanMetrics(int(arrays["size"][0]), tuple(arrays["kl"].tolist()), float(arrays["codec_snr"][0]))
