"""The `pipeline` and `publish` sections of a recipe."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count
from tinymusician.settings import QuestionGatesConfig, ReleaseGatesConfig

Step = Literal["precompute", "distill", "quantize", "evaluate", "publish"]


class PipelineConfig(ConfigModel):
    """The steps of the pipeline that run; earlier ones must have run before."""

    first: Step = Field("precompute", description="the first step to run (`--from`)")
    last: Step = Field("publish", description="the last step to run (`--until`)")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        steps = get_args(Step)
        if steps.index(self.first) > steps.index(self.last):
            raise ValueError(f"first {self.first}: comes after last, {self.last}; the order is {', '.join(steps)}")
        return self


class PublishConfig(ConfigModel):
    """How a bundle is released."""

    alias: str = Field("candidate", pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="the alias of a new release")
    baseline: str = Field("teacher", description="the model that gates compare the bundle with")
    days: Count = Field(90, description="days until a release expires, unless it is signed again")
    gates: ReleaseGatesConfig = ReleaseGatesConfig()
    question_gates: QuestionGatesConfig = QuestionGatesConfig()
