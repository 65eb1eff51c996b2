"""The `pipeline` and `publish` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count, Positive, Share

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


class ReleaseGatesConfig(ConfigModel):
    """What a bundle must retain of its baseline; the defaults are the paper's."""

    clap: Share = Field(0.93, description="minimum share of the baseline's CLAP score")
    fad: Annotated[float, Field(ge=0)] = Field(
        0.095, description="maximum increase of FAD, as a share of the baseline's"
    )
    size: Positive = Field(0.45, description="maximum share of the baseline's bytes")
    degenerate: Annotated[int, Field(ge=0)] = Field(0, description="maximum number of degenerate clips")
    quiet: Share = Field(
        0.02, description="maximum increase of the share of quiet frames (50 ms below -45 dB of full scale)"
    )


class PublishConfig(ConfigModel):
    """How a bundle is released."""

    alias: str = Field("candidate", pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="the alias of a new release")
    baseline: str = Field("teacher", description="the model that gates compare the bundle with")
    days: Count = Field(90, description="days until a release expires, unless it is signed again")
    gates: ReleaseGatesConfig = ReleaseGatesConfig()
