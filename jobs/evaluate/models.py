"""The models of an evaluation: loaded when needed, and identified by the digest of their weights."""

from __future__ import annotations

from functools import cached_property

from jobs.distill.models import untrained_student
from jobs.worker.context import WorkerContext
from jobs.worker.model_refs import check_guidance, is_bundle, parse_label
from tinymusician.config_model import Document
from tinymusician.errors import ModelError
from tinymusician.evaluate.generators import Generator, SamplingSettings, TorchGenerator, open_generator
from tinymusician.inputs import input_path, scheme_of
from tinymusician.models.musicgen import model_commit


class ModelFacts(Document):
    """A model's weights `digest`, the sampling `rate` of its clips in Hz, its `size` in bytes, and a hub's commit."""

    digest: str
    rate: int
    size: int
    commit: str | None = None


class EvaluatedModels:
    """The models of one evaluation on one worker. The last one that was used stays loaded, and so does the teacher."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._loaded: dict[str, Generator] = {}
        self._devices: dict[str, str] = {}

    @cached_property
    def settings(self) -> SamplingSettings:
        """The sampling settings of all models: those of the recipe's teacher."""
        teacher, seconds = self._context.recipe.teacher, self._context.recipe.evaluate.seconds
        return SamplingSettings(seconds, teacher.guidance_scale, teacher.top_k, teacher.temperature)

    def load(self, model_id: str) -> Generator:
        """A loaded model.

        Raises:
            ModelError: its weights are not those that this run started with.
        """
        reference = parse_label(model_id)[1]
        if reference not in self._loaded:
            self._loaded = {name: generator for name, generator in self._loaded.items() if name == "teacher"}
            self._loaded[reference] = self.open(reference)
            self._record_facts(reference, self._loaded[reference])
        return self._loaded[reference]

    def facts(self, model_id: str) -> ModelFacts:
        """A model's facts as this run recorded them; the model is loaded only if the run has not."""
        reference = parse_label(model_id)[1]
        recorded = self._context.run.measurement("model", reference, ModelFacts)
        return recorded or self._record_facts(reference, self.load(reference))

    def device(self, model_id: str) -> str:
        """The device on which a model generates: a bundle always on CPUs."""
        name = parse_label(model_id)[1]
        if name not in self._devices:
            self._devices[name] = "cpu" if is_bundle(self._context.run.store, name) else self._context.device
        return self._devices[name]

    def codec(self) -> TorchGenerator:
        """The teacher, for its codec."""
        teacher = self.load("teacher")
        assert isinstance(teacher, TorchGenerator), "a teacher is a model, never a bundle"
        return teacher

    def open(self, reference: str) -> Generator:
        """Load a model.

        Raises:
            ModelError, BundleError, RecipeError: it cannot be loaded, or not be used with this recipe.
        """
        context = self._context
        if reference == "untrained":
            return TorchGenerator(*untrained_student(context.recipe), context.device)
        generator = open_generator(self._location(reference), context.device, context.threads)
        if generator.guidance_range is not None:
            check_guidance(reference, self.settings.guidance, generator.guidance_range)
        return generator

    def name(self, reference: str) -> str:
        """The folder, hub id, artifact or packaged name that a reference stands for."""
        return self._context.recipe.teacher.model if reference == "teacher" else reference

    def _location(self, reference: str) -> str:
        """The folder, hub id or packaged name of a model; an artifact is downloaded first."""
        name = self.name(reference)
        return str(input_path(name)) if scheme_of(name) else name

    def _record_facts(self, reference: str, generator: Generator) -> ModelFacts:
        commit = model_commit(name) if "/" in (name := self.name(reference)) else None
        size = sum(generator.sizes.values())
        facts = ModelFacts(digest=generator.digest, rate=generator.rate, size=size, commit=commit)
        recorded = self._context.run.measurement("model", reference, ModelFacts)
        if recorded is not None and recorded.digest != facts.digest:
            raise ModelError(f"model {reference}: its weights have changed since the run started; start a new run")
        self._context.run.write_measurement("model", reference, facts)
        return facts
