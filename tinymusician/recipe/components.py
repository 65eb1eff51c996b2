"""The sections of a recipe for components beside the language model: text encoder and codec (TinyTTM)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tinymusician.config_model import ConfigModel, Count, Positive

Steps = Annotated[int, Field(ge=2, description="training steps of this component")]


MapStart = Annotated[
    Literal["least_squares", "copy"],
    Field(
        description="the maps from the student's states to the teacher's, at first: fitted to them, or as they are "
        "without a fit, beside the copied layers"
    ),
]


class TextEncoderConfig(ConfigModel):
    """A smaller text encoder, pruned from the teacher's and distilled."""

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="the layers of the teacher's text encoder, counted from 0, that the student keeps"
    )
    width: Count = Field(description="width of its states; must differ from the width of the student's decoder")
    heads: Count = Field(description="attention heads, each as wide as the teacher's")
    feed_forward: Count = Field(description="width of the feed-forward blocks")
    map_start: MapStart = "least_squares"
    steps: Steps = 500
    learning_rate: Positive = 1e-3


class CodecConfig(ConfigModel):
    """A codec with fewer filters, pruned from the teacher's and distilled."""

    filters: Count = Field(
        description="filters of the first convolution; every stage has twice as many as the one before"
    )
    residual_layers: Annotated[int, Field(ge=0)] = Field(description="residual blocks per stage")
    map_start: MapStart = "least_squares"
    steps: Steps = 500
    learning_rate: Positive = 3e-4
    batch_size: Count = Field(8, description="pieces per microbatch")
    seconds: Positive = Field(1.0, le=30.0, description="length of a piece of audio, in seconds")


class JointConfig(ConfigModel):
    """The joint tuning of language model, text encoder and codec, with all their losses."""

    steps: Annotated[int, Field(ge=0)] = Field(
        0, description="training steps; 0 omits the joint tuning; it uses neither `hidden` nor `on_policy`"
    )
    learning_rate: Positive = 1e-4
    balance: Literal["uncertainty", "rates", "equal"] = Field(
        "uncertainty", description="how several losses are balanced, in the training of every component"
    )
