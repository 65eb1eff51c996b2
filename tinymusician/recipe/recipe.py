"""The complete recipe, and how it is read from a file."""

from __future__ import annotations

from copy import deepcopy
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Self, cast

import yaml
from pydantic import Field, ValidationError, model_validator

from tinymusician.config_model import ConfigModel
from tinymusician.errors import RecipeError
from tinymusician.json_types import JsonObject
from tinymusician.recipe.components import CodecConfig, JointConfig, TextEncoderConfig
from tinymusician.recipe.compression import QuantizeConfig
from tinymusician.recipe.distillation import (
    HiddenConfig,
    LayerPrunedStudent,
    Objective,
    OnlineSignalsConfig,
    OnPolicyConfig,
    PretrainedStudent,
    SequencesConfig,
    Signals,
    StageMixedConfig,
    TeacherConfig,
    TemperatureConfig,
    TrainingConfig,
    WidthPrunedStudent,
)
from tinymusician.recipe.evaluation import EvaluateConfig, SweepConfig
from tinymusician.recipe.pretraining import PretrainConfig
from tinymusician.recipe.release import PipelineConfig, PublishConfig


class Recipe(ConfigModel):
    """A recipe; jobs read the sections that they need."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="also the name of the artifact")
    description: str
    teacher: TeacherConfig
    student: Annotated[LayerPrunedStudent | WidthPrunedStudent | PretrainedStudent, Field(discriminator="kind")]
    text_encoder: TextEncoderConfig | None = Field(
        None, description="a smaller text encoder; if not given, the teacher's"
    )
    codec: CodecConfig | None = Field(None, description="a smaller codec; if not given, the teacher's")
    joint: JointConfig = JointConfig()
    sequences: SequencesConfig = SequencesConfig()
    signals: Signals = OnlineSignalsConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    hidden: HiddenConfig = HiddenConfig()
    on_policy: OnPolicyConfig = OnPolicyConfig()
    objective: Objective = StageMixedConfig()
    training: TrainingConfig = TrainingConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sweep: SweepConfig = SweepConfig()
    publish: PublishConfig = PublishConfig()
    pipeline: PipelineConfig = PipelineConfig()
    pretrain: PretrainConfig | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether training needs more of the teacher than shards contain."""
        return bool(self.on_policy.share or self.hidden.weight)

    @model_validator(mode="after")
    def _split_among_workers(self) -> Self:
        if self.teacher.tensor_parallel_size > 1 and self.signals.source == "actors":
            raise ValueError(
                "teacher.tensor_parallel_size: only workers hold a teacher together; allowed sources are online, cached"
            )
        if self.training.min_workers and (self.teacher.tensor_parallel_size > 1 or self.signals.source == "actors"):
            raise ValueError(
                "training.min_workers: Ray counts neither actors nor teams of workers when it goes on with fewer; "
                "allowed are teacher.tensor_parallel_size 1 and sources online, cached"
            )
        return self

    @model_validator(mode="after")
    def _states_come_from_the_teacher_itself(self) -> Self:
        if self.hidden.weight and self.signals.source != "online":
            raise ValueError(f"hidden.weight = {self.hidden.weight:g}: only source online gives the teacher's states")
        return self

    @property
    def has_small_parts(self) -> bool:
        """Whether more components than the language model are made smaller."""
        return self.text_encoder is not None or self.codec is not None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.has_small_parts and isinstance(self.student, PretrainedStudent):
            raise ValueError(
                "student.kind = pretrained: brings its own text encoder and codec; with these sections, allowed are "
                "prune_layers and prune_width"
            )
        if self.has_small_parts and self.teacher.tensor_parallel_size > 1:
            raise ValueError(
                "teacher.tensor_parallel_size: text_encoder and codec are cut out of a whole teacher; allowed is 1"
            )
        if self.joint.steps and not (self.text_encoder and self.codec):
            raise ValueError(f"joint.steps = {self.joint.steps}: tunes text_encoder and codec; both are needed")
        if self.joint.steps and self.training.zero_stage == 3:
            raise ValueError("joint.steps: needs whole weights in each worker; allowed are training.zero_stage 0 to 2")
        return self

    @model_validator(mode="after")
    def _check_on_policy(self) -> Self:
        share, batch = self.on_policy.share, self.training.batch_size
        if share == 0:
            return self
        if self.signals.source == "cached":
            raise ValueError("on_policy.share: shards know no new sequences; allowed sources are online, actors")
        if self.teacher.tensor_parallel_size > 1:
            raise ValueError(
                f"on_policy.share: workers that hold a teacher together judge what all of them have, and samples are "
                f"each one's own; teacher.tensor_parallel_size = {self.teacher.tensor_parallel_size}, allowed is 1"
            )
        if self.training.zero_stage == 3:
            raise ValueError(
                "on_policy.share: needs whole weights in each worker; allowed are training.zero_stage 0 to 2"
            )
        if round(share * batch) == 0:
            raise ValueError(f"on_policy.share = {share:g}: is less than one of training.batch_size = {batch}")
        return self


_KIND_KEYS = {
    "objective": "name",
    "student": "kind",
    "signals": "source",
    "evaluate.reference": "kind",
    "evaluate.embedding": "kind",
}
"""The sections that have several kinds, and the key that names the kind."""


def recipe_names() -> list[str]:
    """The packaged recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in _packaged().iterdir() if p.name.endswith(".yaml"))


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Load a packaged recipe by name or a YAML file by path, and apply `section.key=value` overrides.

    Raises:
        RecipeError: there is no such recipe, it is not YAML, or a key or value is not allowed.
    """
    return parse_recipe(overridden(_read(name), overrides), name)


def overridden(content: JsonObject, overrides: tuple[str, ...]) -> JsonObject:
    """A recipe's content after `section.key=value` overrides."""
    content = deepcopy(content)
    for override in overrides:
        _override(content, override)
    return content


def parse_recipe(content: object, name: str) -> Recipe:
    """Validate the content of a recipe file; `name` is for messages.

    Raises:
        RecipeError: a key or value is not allowed.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_explain(error)}") from None


def _packaged() -> Traversable:
    return resources.files("tinymusician") / "recipes"


def _read(name: str) -> JsonObject:
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    if not is_path and name not in recipe_names():
        raise RecipeError(
            f"recipe {name!r}: not packaged; allowed are {', '.join(recipe_names())}, or a YAML file's path"
        )
    try:
        text = Path(name).read_text() if is_path else (_packaged() / f"{name}.yaml").read_text()
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {name}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {name}: holds {type(content).__name__}, a mapping of keys is needed")
    return cast(JsonObject, content)


def _override(content: JsonObject, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {override!r}: the form is part.key=value, such as training.steps=200")
    section = content
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise RecipeError(f"--set {override!r}: {key!r} is a value, not a part")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML") from error
    if keys[-1] == _KIND_KEYS.get(".".join(keys[:-1])) and section.get(keys[-1]) != value:
        section.clear()  # another kind has other keys: what the old one said does not apply
    section[keys[-1]] = value


def _without_kinds(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A field's location as in the recipe: pydantic adds the kind after a section that has several."""
    for depth in (1, 2):
        if ".".join(str(key) for key in location[:depth]) in _KIND_KEYS:
            return location[:depth] + location[depth + 1 :]
    return location


def _explain(error: ValidationError) -> str:
    """Each problem as `field (value): what is allowed`, on one line."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(key) for key in _without_kinds(problem["loc"])) or "recipe"
        given = problem["input"]
        shown = f" = {given!r}" if isinstance(given, str | int | float | bool | None) else ""
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "no such key"
        lines.append(f"{field}{shown}: {message[0].lower()}{message[1:]}")
    return "; ".join(lines)
