"""The complete recipe."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel
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
from tinymusician.recipe.understanding import UnderstandConfig


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
    understand: UnderstandConfig | None = None

    @property
    def needs_teacher(self) -> bool:
        """Whether training needs more of the teacher than shards contain."""
        return bool(self.on_policy.share or self.hidden.weight)

    @model_validator(mode="after")
    def _split_among_workers(self) -> Self:
        if self.teacher.tensor_parallel_size > 1 and self.signals.source == "actors":
            raise ValueError("signals.source = actors: teacher.tensor_parallel_size > 1 needs source online or cached")
        if self.training.min_workers and (self.teacher.tensor_parallel_size > 1 or self.signals.source == "actors"):
            raise ValueError(
                "training.min_workers: not supported with teacher.tensor_parallel_size > 1 or signals.source = actors, "
                "because Ray continues with fewer workers of one kind only"
            )
        return self

    @model_validator(mode="after")
    def _states_come_from_the_teacher_itself(self) -> Self:
        if self.hidden.weight and self.signals.source != "online":
            raise ValueError(
                f"hidden.weight = {self.hidden.weight:g}: needs hidden states, so signals.source must be online"
            )
        return self

    @property
    def has_small_components(self) -> bool:
        """Whether more components than the language model are made smaller."""
        return self.text_encoder is not None or self.codec is not None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.has_small_components and isinstance(self.student, PretrainedStudent):
            raise ValueError(
                "student.kind = pretrained: brings its own text encoder and codec; with these sections, allowed are "
                "prune_layers and prune_width"
            )
        if self.has_small_components and self.teacher.tensor_parallel_size > 1:
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
        if self.objective.hard:
            raise ValueError(
                f"objective.hard = {self.objective.hard:g}: the student's own samples are no labels; allowed is "
                "on_policy.share = 0"
            )
        if self.signals.source == "cached":
            raise ValueError(
                "on_policy.share: shards have no signals of new sequences; allowed sources are online, actors"
            )
        if self.teacher.tensor_parallel_size > 1:
            raise ValueError(
                f"on_policy.share: not supported with teacher.tensor_parallel_size > 1 "
                f"(it is {self.teacher.tensor_parallel_size}), because each worker samples sequences of its own"
            )
        if self.training.zero_stage == 3:
            raise ValueError(
                "on_policy.share: needs whole weights in each worker; allowed are training.zero_stage 0 to 2"
            )
        if round(share * batch) == 0:
            raise ValueError(f"on_policy.share = {share:g}: is less than one of training.batch_size = {batch}")
        return self
