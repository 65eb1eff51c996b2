"""The part of a recipe that says what may be released, and under which name."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count, Positive, Share

Step = Literal["precompute", "distill", "quantize", "evaluate", "publish"]


class PipelineConfig(ConfigModel):
    """Which steps of the pipeline are done; earlier ones must have been done before."""

    first: Step = Field("precompute", description="the first step that is done (`--from`)")
    last: Step = Field("publish", description="the last step that is done (`--until`)")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        steps = get_args(Step)
        if steps.index(self.first) > steps.index(self.last):
            raise ValueError(f"first {self.first}: comes after last, {self.last}; the order is {', '.join(steps)}")
        return self


class ReleaseGatesConfig(ConfigModel):
    """What a bundle must keep of its baseline; the defaults are the paper's."""

    clap: Share = Field(0.93, description="smallest share of the baseline's CLAP score")
    fad: Annotated[float, Field(ge=0)] = Field(0.095, description="largest rise of FAD, as a share of the baseline's")
    size: Positive = Field(0.45, description="largest share of the baseline's bytes")
    degenerate: Annotated[int, Field(ge=0)] = Field(0, description="most degenerate clips")


class PublishConfig(ConfigModel):
    """How a bundle is released."""

    alias: str = Field("candidate", pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="what points at a new release")
    baseline: str = Field("teacher", description="the model of the evaluation that gates compare with")
    days: Count = Field(90, description="days until a release expires, unless it is signed anew")
    gates: ReleaseGatesConfig = ReleaseGatesConfig()
