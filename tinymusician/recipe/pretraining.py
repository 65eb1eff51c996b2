"""The `pretrain` section of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tinymusician.config_model import ConfigModel, Count, Positive

BandPart = Literal["codec", "band-large", "band-small", "band-clap", "band-tagger"]


class PretrainConfig(ConfigModel):
    """How the house band is trained: corpus, codec and language model. Only the band's recipe has this section."""

    parts: tuple[BandPart, ...] = Field(
        ("codec", "band-large", "band-small", "band-clap", "band-tagger"),
        min_length=1,
        description="the models to train",
    )
    train_clips: Count = Field(9000, description="clips of five seconds rendered from the training tunes")
    held_out_clips: int = Field(400, ge=10, description="clips of validation tunes, and as many of test tunes")
    codec_steps: Count = Field(6000, description="training steps of the codec")
    codec_batch_size: Count = Field(12, description="clips per step of the codec")
    codec_learning_rate: Positive = Field(6e-4, description="the codec's peak learning rate")
    teacher_steps: Count = Field(1300, description="training steps of band-large")
    student_steps: Count = Field(700, description="training steps of band-small")
    lm_batch_size: Count = Field(24, description="clips per step of both language models")
    lm_learning_rate: Positive = Field(1e-3, description="peak learning rate of both language models")
    clap_steps: Count = Field(500, description="training steps of band-clap")
    clap_batch_size: Count = Field(48, description="pairs of clip and caption per step of band-clap")
    tagger_steps: Count = Field(400, description="training steps of band-tagger")
    tagger_batch_size: Count = Field(32, description="clips per step of band-tagger")

    @model_validator(mode="after")
    def _codec_first(self) -> Self:
        if "codec" not in self.parts and {"band-large", "band-small"} & set(self.parts):
            raise ValueError(
                f"parts {list(self.parts)}: band-large and band-small are trained on the codec's codes, so add codec"
            )
        return self
