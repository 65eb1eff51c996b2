"""Settings that library functions take as arguments, and that recipes contain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tinymusician.config_model import ConfigModel, Positive, Share

Precision = Literal["float32", "float16", "int8", "int4"]
"""The precisions of weights in a bundle."""


class DegenerateThresholds(ConfigModel):
    """Thresholds above which a clip counts as degenerate."""

    silent: Share = Field(0.9, description="share of its 20 ms frames below -60 dB of full scale")
    clipped: Share = Field(0.01, description="share of its samples at full scale")
    offset: Share = Field(0.05, description="its mean, as a share of full scale")
    looped: Share = Field(0.9, description="share of its frames whose codes repeat those of one fixed lag before")
    quiet: Share = Field(0.5, description="share of its 50 ms frames below -45 dB of full scale")


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


class QuestionGatesConfig(ConfigModel):
    """What a bundle that answers questions must reach on the benchmark of its run."""

    accuracy: Share = Field(0.75, description="minimum share of right answers of the bundle")
    circular: Share = Field(
        0.65, description="minimum share of questions that the bundle gets right in all rotations of their options"
    )
    loss: Share = Field(0.01, description="maximum loss of accuracy against the model in float32")
    controls: Annotated[int, Field(ge=0)] = Field(
        0, description="maximum number of controls whose 99 % interval does not contain chance"
    )
