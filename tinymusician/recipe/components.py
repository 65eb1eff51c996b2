"""The parts of a recipe that shrink what is beside the language model: text encoder and codec (TinyTTM)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tinymusician.config_model import ConfigModel, Count, Positive

Steps = Annotated[int, Field(ge=2, description="training steps of this part")]


class TextEncoderConfig(ConfigModel):
    """A smaller text encoder, cut out of the teacher's and trained to be heard alike."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="the teacher's text layers, counted from 0, that become the student's"
    )
    width: Count = Field(description="channels of its states; not those of the student's decoder")
    heads: Count = Field(description="attention heads, each as wide as the teacher's")
    feed_forward: Count = Field(description="width of the feed-forward blocks")
    steps: Steps = 500
    learning_rate: Positive = 1e-3


class CodecConfig(ConfigModel):
    """A codec with fewer filters, cut out of the teacher's and trained to sound alike."""

    filters: Count = Field(description="filters next to the wave; every stage has twice as many as the one before")
    residual_layers: Annotated[int, Field(ge=0)] = Field(description="residual blocks a stage")
    steps: Steps = 500
    learning_rate: Positive = 3e-4
    batch_size: Count = Field(8, description="pieces a part of a step")
    seconds: Positive = Field(1.0, le=30.0, description="length of a piece of sound")


class JointConfig(ConfigModel):
    """What is tuned together at last: language model, text encoder and codec, with all their losses at once."""

    steps: Annotated[int, Field(ge=0)] = Field(
        0, description="training steps; 0 leaves it out; hidden and on_policy have no part in it"
    )
    learning_rate: Positive = 1e-4
    balance: Literal["uncertainty", "rates", "equal"] = Field(
        "uncertainty", description="how several losses are weighed against each other, in every part's training"
    )
